//! The stock gRPC client, in plaintext: it must find, split, route and follow changes as the manifests say, and
//! refuse nothing.

use serde_json::json;

use crate::backend::Backend;
use crate::caller::Report;
use crate::client::StockClient;
use crate::manifests::{routes, service};
use crate::world::{World, eventually};

const NODE: &str = "stock-client";
const REVIEWS: &str = "xds:///reviews.default:9080";
/// Listener, routes, clusters, endpoints.
const TYPES: usize = 4;

#[tokio::test]
async fn the_stock_client_and_the_backend_understand_each_other_without_a_mesh() {
    let backend = Backend::start("v1").await;
    let mut client = StockClient::start(&format!("dns:///{}", backend.address), &json!({}));
    assert_eq!(client.call(3, &[]).await, Report::all(3, "v1"));
}

#[tokio::test]
async fn a_stock_client_follows_the_manifests() {
    let (v1, v2, v3) = (Backend::start("v1").await, Backend::start("v2").await, Backend::start("v3").await);
    let world = World::start(&[
        ("reviews.yaml", service("reviews", None)),
        ("reviews-v1.yaml", service("reviews-v1", Some(&v1))),
        ("reviews-v2.yaml", service("reviews-v2", Some(&v2))),
        ("routes.yaml", routes(20)),
    ])
    .await;
    let mut client = StockClient::start(REVIEWS, &world.bootstrap(NODE));

    let report = client.call(1000, &[]).await;
    assert!(report.errors.is_empty(), "{report:?}");
    assert_eq!(report.from("v1") + report.from("v2"), 1000, "{report:?}");
    // Six standard deviations of 1000 draws at one in five.
    assert!(report.from("v2").abs_diff(200) <= 76, "{report:?}");
    assert_eq!(client.call(20, &[("x-user", "jason")]).await, Report::all(20, "v2"));

    world.apply("routes.yaml", &routes(0));
    eventually("all calls go to v1", async || (client.call(20, &[]).await == Report::all(20, "v1")).then_some(()))
        .await;
    assert_eq!(client.call(20, &[("x-user", "jason")]).await, Report::all(20, "v2"));

    world.apply("reviews-v1.yaml", &service("reviews-v1", Some(&v3)));
    eventually("the new endpoint answers", async || {
        (client.call(20, &[]).await == Report::all(20, "v3")).then_some(())
    })
    .await;

    world.assert_nothing_refused(NODE, TYPES).await;
}

#[tokio::test]
async fn a_stock_client_is_told_that_a_service_does_not_exist() {
    let world = World::start(&[("reviews.yaml", service("reviews", None))]).await;
    let mut absent = StockClient::start("xds:///nobody.default:9080", &world.bootstrap(NODE));
    let report = absent.call(1, &[]).await;
    let error = report.errors.keys().next().expect("nobody answers");
    assert!(error.starts_with("UNAVAILABLE"), "{error}");

    // It is an answer and no outage: the same control plane serves the name once it exists.
    let backend = Backend::start("late").await;
    world.apply("nobody.yaml", &service("nobody", Some(&backend)));
    eventually("the service is there", async || (absent.call(1, &[]).await == Report::all(1, "late")).then_some(()))
        .await;
    world.assert_nothing_refused(NODE, TYPES).await;
}

#[tokio::test]
async fn a47_a_stock_client_takes_all_of_a_destination_from_the_authority_that_it_names() {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let world = World::start(&[
        ("reviews.yaml", service("reviews", None)),
        ("reviews-v1.yaml", service("reviews-v1", Some(&v1))),
        ("reviews-v2.yaml", service("reviews-v2", Some(&v2))),
        ("routes.yaml", routes(0)),
    ])
    .await;
    let mut bootstrap = world.bootstrap(NODE);
    bootstrap["authorities"] = json!({ "plane": {
        "client_listener_resource_name_template": "xdstp://plane/envoy.config.listener.v3.Listener/%s",
        "xds_servers": bootstrap["xds_servers"],
    } });
    // Whatever is asked of another authority never comes.
    bootstrap["xds_servers"][0]["server_uri"] = "127.0.0.1:1".into();
    let mut client = StockClient::start("xds://plane/reviews.default:9080", &bootstrap);
    assert_eq!(client.call(20, &[]).await, Report::all(20, "v1"));
    assert_eq!(client.call(20, &[("x-user", "jason")]).await, Report::all(20, "v2"));
    world.apply("routes.yaml", &routes(100));
    eventually("all calls go to v2", async || (client.call(20, &[]).await == Report::all(20, "v2")).then_some(()))
        .await;
    world.assert_nothing_refused(NODE, TYPES).await;
}

#[tokio::test]
async fn a_stock_client_refuses_nothing_of_a_rich_configuration() {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let port = |backend: &Backend| backend.address.port().to_string();
    let ratings = include_str!("manifests/ratings.yaml");
    let ratings = ratings.replace("PORT_V1", &port(&v1)).replace("PORT_V2", &port(&v2));
    let world = World::start(&[("ratings.yaml", ratings)]).await;
    let mut client = StockClient::start("xds:///ratings.example.com:9080", &world.bootstrap(NODE));

    assert_eq!(client.call(20, &[]).await, Report::all(20, "v1"), "{}", world.debug("/findings?format=text").await);
    assert_eq!(client.call(20, &[("x-version", "v2")]).await, Report::all(20, "v2"), "a regular expression");
    assert_eq!(client.call(20, &[("x-user", "jason")]).await, Report::all(20, "v2"), "an absent header and a prefix");
    assert_eq!(client.call(20, &[("x-user", "jason"), ("x-version", "v1")]).await, Report::all(20, "v1"));
    assert_eq!(client.call(5, &[("x-fault", "delay")]).await, Report::all(5, "v1"));
    let aborted = client.call(5, &[("x-fault", "abort")]).await;
    assert!(aborted.answers.is_empty() && aborted.errors.keys().all(|e| e.starts_with("UNAVAILABLE")), "{aborted:?}");

    world.assert_nothing_refused(NODE, TYPES).await;
}
