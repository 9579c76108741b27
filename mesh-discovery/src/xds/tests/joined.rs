//! A server's listener and the routes that it names: what is told of them where they do not fit, and where they do
//! (gRFC A36, A39, A40, A78).

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::admin::v3::ClientResourceStatus::{self, Acked, Nacked};
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration as RoutesProto;
use envoy_types::pb::envoy::service::status::v3::ClientStatusRequest;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{
    AdaptiveConcurrency, Composite, DirectResponse, Domain, FilterOverride, HeaderPolicy, HttpFilter, HttpFilterKind,
    InboundListener, InboundRoutes, InboundState, InboundTls, MatcherRule, MatcherTree, OnMatch, PathMatch, Route,
    RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};
use mesh_core::source::InboundSource;
use mesh_testkit::clock::pass;
use prost::Message as _;

use super::super::csds::StatusService;
use super::super::kind::Kind;
use super::super::{Request, SnapshotConfig, Variant, XdsConfig};
use super::{Server, Stream, response};
use crate::codec;

const ADDRESS: &str = "127.0.0.1:80";
const NAME: &str = "xds.istio.io/grpc/lds/inbound/127.0.0.1:80";
const OTHER: &str = "127.0.0.1:81";

fn client(variant: Variant) -> (StatusService, Server) {
    client_of(|config| config.variant = Some(variant))
}

fn client_of(change: impl FnOnce(&mut XdsConfig)) -> (StatusService, Server) {
    let (client, server) = super::client::client_of(change);
    (StatusService { client: Arc::new(client) }, server)
}

/// A listener with a filter of this name, which no tree of a route may stand in for.
fn listener(filter: &str) -> Any {
    listener_of(ADDRESS, filter)
}

fn listener_of(address: &str, filter: &str) -> Any {
    listener_with(address, filter, "r")
}

fn listener_with(address: &str, filter: &str, routes: &str) -> Any {
    let kind = HttpFilterKind::AdaptiveConcurrency(Some(AdaptiveConcurrency::default()));
    codec::encode_inbound(&InboundListener {
        filters: vec![HttpFilter { name: filter.to_owned(), kind }],
        routes: InboundRoutes::Named(routes.to_owned()),
        ..InboundListener::new(NAME.replace(ADDRESS, address), address.parse().unwrap(), InboundTls::Strict)
    })
}

/// Routes that have a tree for a filter of this name.
fn routes(filter: &str) -> Any {
    let tree = MatcherTree { rule: MatcherRule::List(Vec::new()), on_no_match: Some(OnMatch::Skip) };
    let mut route = path("/a", RouteAction::NonForwarding);
    route.filters = Arc::new([(filter.to_owned(), FilterOverride::Composite(Composite::of(tree)).into())].into());
    table(vec![route])
}

fn path(path: &str, action: RouteAction) -> Route {
    Route::new(RouteMatch { path: PathMatch::Exact(path.to_owned()), ..RouteMatch::any() }, action)
}

fn table(routes: Vec<Route>) -> Any {
    let headers = HeaderPolicy::default;
    let domains = vec![Domain::new("*").unwrap()];
    let host = VirtualHost { name: "h".into(), domains, routes, headers: headers(), retry: None };
    codec::encode_routes(&RouteConfiguration {
        name: "r".into(),
        virtual_hosts: vec![host],
        headers: headers(),
        retry_budget: None,
    })
}

/// What the client answers to this.
async fn say(stream: &mut Stream, kind: Kind, version: &str, said: Any) -> Request {
    let mut said = response(kind, version, &format!("n{version}"), vec![said]);
    said.resources[0].version = version.to_owned();
    stream.send(said);
    answer_to(stream, kind, &format!("n{version}")).await
}

async fn answer_to(stream: &mut Stream, kind: Kind, nonce: &str) -> Request {
    loop {
        let request = stream.request().await;
        if request.nonce == nonce && request.type_url == kind.type_url() {
            return request;
        }
    }
}

fn row(service: &StatusService, kind: Kind) -> GenericXdsConfig {
    let answer = service.answer(&ClientStatusRequest::default()).unwrap();
    let mut rows = answer.config.into_iter().flat_map(|config| config.generic_xds_configs);
    rows.find(|row| row.type_url == kind.type_url()).unwrap()
}

fn status(service: &StatusService) -> [ClientResourceStatus; 2] {
    [Kind::Listener, Kind::Routes].map(|kind| row(service, kind).client_status())
}

/// What is told of the listener, and how often it counts as not enforced.
fn told(service: &StatusService) -> (Option<String>, usize) {
    let error = row(service, Kind::Listener).error_state.map(|error| error.details);
    (error, service.client.unenforced()[0].1)
}

#[tokio::test(start_paused = true)]
async fn l3_of_halves_that_do_not_fit_those_before_stay_and_the_listener_says_so() {
    for variant in [Variant::Delta, Variant::StateOfTheWorld] {
        let (service, mut server) = client(variant);
        let state = service.client.inbound(ADDRESS.parse().unwrap());
        let mut stream = server.accept().await;
        assert_eq!(say(&mut stream, Kind::Listener, "1", listener("f")).await.error, None);
        assert_eq!(told(&service), (None, 0));
        // Each is good by itself, and acknowledged. Nothing is in force.
        pass(Duration::from_secs(60)).await;
        assert_eq!(say(&mut stream, Kind::Routes, "2", routes("f")).await.error, None);
        assert!(matches!(&**state.load(), InboundState::Failed(_)));
        let (error, count) = told(&service);
        let error = error.unwrap();
        assert!(error.contains("\"r\"") && error.contains("http_filters[0]"), "{error}");
        assert!(error.contains("nothing is served"), "{error}");
        assert_eq!((status(&service), count), ([Acked, Acked], 1));
        let dump = service.client.config_dump();
        assert_eq!(dump["resources"][0]["error"]["age_seconds"], 0, "since the routes came: {dump}");
        assert_eq!(dump["resources"][0]["unenforced"][0]["field"], "rds");

        // The control: routes that change another filter. From now on something is in force.
        assert_eq!(say(&mut stream, Kind::Routes, "3", routes("g")).await.error, None);
        assert_eq!(told(&service), (None, 0));
        let good = state.load_full();
        assert!(matches!(&*good, InboundState::Ready(_)), "{good:?}");
        assert_eq!(say(&mut stream, Kind::Listener, "4", listener("g")).await.error, None);
        assert_eq!((status(&service), &**state.load()), ([Acked, Acked], &*good));
        assert!(told(&service).0.unwrap().contains("stays"));
        // It goes back, and forth again, and then the other is mended.
        assert_eq!(say(&mut stream, Kind::Listener, "5", listener("f")).await.error, None);
        assert_eq!((told(&service), &**state.load()), ((None, 0), &*good));
        assert_eq!(say(&mut stream, Kind::Listener, "6", listener("g")).await.error, None);
        assert_eq!(told(&service).1, 1);
        assert_eq!(say(&mut stream, Kind::Routes, "7", routes("h")).await.error, None);
        assert_eq!(told(&service), (None, 0));
        assert!(matches!(&**state.load(), InboundState::Ready(now) if now.filters[0].name == "g"));
        // What is refused by itself is told of first.
        let mut torn = listener("h");
        torn.value.truncate(torn.value.len() - 1);
        let mut response = response(Kind::Listener, "8", "n8", vec![torn]);
        response.resources[0].name = NAME.to_owned();
        stream.send(response);
        assert!(answer_to(&mut stream, Kind::Listener, "n8").await.error.is_some());
        assert_eq!((status(&service), told(&service).1), ([Nacked, Acked], 0));
    }
}

/// Routes that fit one listener and not another serve the other, and only the one complains.
#[tokio::test(start_paused = true)]
async fn routes_that_fit_one_listener_of_two_serve_that_one() {
    let (service, mut server) = client(Variant::Delta);
    let [one, other] = [ADDRESS, OTHER].map(|address| service.client.inbound(address.parse().unwrap()));
    let mut stream = server.accept().await;
    stream.send(response(Kind::Listener, "1", "n1", vec![listener("f"), listener_of(OTHER, "g")]));
    assert_eq!(answer_to(&mut stream, Kind::Listener, "n1").await.error, None);
    assert_eq!(say(&mut stream, Kind::Routes, "2", routes("f")).await.error, None);
    assert!(matches!(&**one.load(), InboundState::Failed(_)));
    assert!(matches!(&**other.load(), InboundState::Ready(_)));
    let dump = service.client.config_dump();
    let complains = |index: usize| dump["resources"][index].get("error").is_some();
    assert_eq!([complains(0), complains(1), complains(2)], [true, false, false], "{dump}");
    assert_eq!(&service.client.unenforced()[..2], [("listener", 1), ("routes", 0)]);
    // Nobody is left who could complain.
    drop(one);
    pass(Duration::from_secs(1)).await;
    assert_eq!(service.client.unenforced()[0], ("listener", 0));
}

/// What was in force is in force again after a restart in an outage, for its control plane has vouched for the listener all along.
#[tokio::test(start_paused = true)]
async fn what_stays_in_force_is_no_older_on_disk_than_the_word_of_its_control_plane() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = SnapshotConfig { delay: Duration::ZERO, ..SnapshotConfig::new(folder.path().join("snapshot")) };
    let of = |config: &mut XdsConfig| config.snapshot = Some(snapshot.clone());
    let (service, mut server) = client_of(of);
    let mut state = service.client.inbound(ADDRESS.parse().unwrap());
    let mut stream = server.accept().await;
    say(&mut stream, Kind::Listener, "1", listener("f")).await;
    say(&mut stream, Kind::Routes, "2", routes("g")).await;
    let good = state.wait_for(|state| matches!(state, InboundState::Ready(_))).await;
    pass(Duration::from_secs(30 * 3600)).await;
    let writes = || service.client.status().snapshot.unwrap().writes;
    let before = writes();
    say(&mut stream, Kind::Routes, "3", routes("f")).await;
    assert_eq!(told(&service).1, 1);
    while writes() == before {
        tokio::task::yield_now().await;
    }
    drop((service, stream, server));
    let (service, _away) = client_of(of);
    let mut state = service.client.inbound(ADDRESS.parse().unwrap());
    assert_eq!(state.wait_for(|state| matches!(state, InboundState::Ready(_))).await, good);
}

/// What a server does not enforce of its routes is said where they meet their listener, as if it had them in itself.
#[tokio::test(start_paused = true)]
async fn what_is_not_enforced_of_a_listener_with_its_routes_is_listed_and_counted_once() {
    let answer = RouteAction::DirectResponse(DirectResponse { status: 200, body: Vec::new() });
    let mut changing =
        RoutesProto::decode(table(vec![path("/a", RouteAction::NonForwarding), path("/b", answer)]).value.as_slice())
            .unwrap();
    let header = HeaderValue { key: "x".to_owned(), value: "y".to_owned(), ..Default::default() };
    changing.virtual_hosts[0].request_headers_to_add =
        vec![HeaderValueOption { header: Some(header), ..Default::default() }];
    let routes = Any { type_url: codec::ROUTES.to_owned(), value: changing.encode_to_vec() };
    let (service, mut server) = client(Variant::Delta);
    let _state = service.client.inbound(ADDRESS.parse().unwrap());
    let mut stream = server.accept().await;
    say(&mut stream, Kind::Listener, "1", listener("f")).await;
    assert_eq!(&service.client.unenforced()[..2], [("listener", 0), ("routes", 0)], "the control");
    assert_eq!(say(&mut stream, Kind::Routes, "2", routes.clone()).await.error, None);
    let lines = |kind: &str| {
        let dump = service.client.config_dump();
        let rows = dump["resources"].as_array().unwrap();
        let row = rows.iter().find(|row| row["type"] == kind).unwrap();
        let lines = row["unenforced"].as_array().unwrap().iter().map(|line| line["field"].as_str().unwrap().to_owned());
        lines.collect::<Vec<_>>()
    };
    assert_eq!(lines("listener"), ["routes.virtual_hosts[0].routes[1]"]);
    assert_eq!(lines("routes"), ["virtual_hosts[0].request_headers_to_add"]);
    assert_eq!(&service.client.unenforced()[..2], [("listener", 1), ("routes", 1)]);
    // Those in force stay so, and listed, while a listener waits for other routes.
    let waits = listener_with(ADDRESS, "f", "s");
    assert_eq!(say(&mut stream, Kind::Listener, "3", waits).await.error, None);
    assert_eq!(lines("listener"), ["routes.virtual_hosts[0].routes[1]"]);
    assert_eq!(say(&mut stream, Kind::Listener, "4", listener("f")).await.error, None);
    // Nor of routes that are gone.
    let only = table(vec![path("/a", RouteAction::NonForwarding)]);
    assert_eq!(say(&mut stream, Kind::Routes, "5", only).await.error, None);
    assert_eq!(&service.client.unenforced()[..2], [("listener", 0), ("routes", 0)]);
}
