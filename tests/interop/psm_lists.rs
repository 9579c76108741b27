//! The cases of gRPC's interop suite that are about things no manifest can say: which route table a listener names, and
//! lists of load-balancing policies. The control plane is a server of the tests that says them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use envoy_types::pb::envoy::config::cluster::v3::load_balancing_policy::Policy;
use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::google::protobuf::Any;
use mesh::parts::mesh_client::ClientBuilder;
use mesh::parts::mesh_core::balance::{Candidates, Draw, Pick, Picker};
use mesh::{Mesh, MeshBuilder};
use mesh_core::policy::{
    Address, Balancer, Cluster, Domain, Endpoint, Endpoints, FailurePercentageEjection, Forward, HeaderKey,
    HeaderMatch, HeaderMatcher, HeaderPolicy, Listener, LocalityEndpoints, OutlierDetection, PathMatch, PerMillion,
    Route, RouteAction, RouteConfiguration, RouteMatch, RouteSource, StringMatch, StringMatcher, VirtualHost,
};
use mesh_discovery::codec;
use prost::Message;
use serde_json::json;

use crate::actor::Actor;
use crate::psm::{BOTH, Caller, PATH, Protocol, actors, within, within_with};
use crate::puppet::{Puppet, Said, TARGET};
use crate::world::eventually;

/// A caller that follows the control plane at `plane`.
async fn caller(plane: SocketAddr, protocol: Protocol, client: fn(ClientBuilder) -> ClientBuilder) -> Caller {
    caller_with(plane, protocol, |mesh| mesh.client(client)).await
}

async fn caller_with(plane: SocketAddr, protocol: Protocol, build: impl FnOnce(MeshBuilder) -> MeshBuilder) -> Caller {
    let bootstrap = json!({
        "xds_servers": [{"server_uri": plane, "channel_creds": [{"type": "insecure"}]}],
        "node": {"id": "me"},
    });
    let mesh = build(Mesh::builder().bootstrap(bootstrap.to_string())).build().await.unwrap();
    Caller { mesh, protocol, target: TARGET }
}

/// Says that [`TARGET`] is routed by the table `listens`, and these tables, clusters and servers.
fn say(
    version: &'static str,
    listens: &str,
    tables: &[(&str, &str)],
    clusters: Vec<Any>,
    servers: &[(&str, Vec<&Actor>)],
) -> Said {
    let listener = Listener::new(TARGET, RouteSource::Named(listens.to_owned()));
    let table = |(name, cluster): &(&str, &str)| table(name, vec![route(RouteMatch::any(), cluster)]);
    let endpoints = |(cluster, actors): &(&str, Vec<&Actor>)| {
        let endpoints = actors.iter().map(|actor| Endpoint::new(Address::Socket(actor.address))).collect();
        let group = LocalityEndpoints { locality: Default::default(), priority: 0, weight: NonZeroU32::MIN, endpoints };
        let cluster = (*cluster).to_owned();
        codec::encode_endpoints(&Endpoints { cluster, localities: vec![group], ..Endpoints::default() })
    };
    let resources = BTreeMap::from([
        (codec::LISTENER, vec![codec::encode_listener(&listener)]),
        (codec::ROUTES, tables.iter().map(table).collect()),
        (codec::CLUSTER, clusters),
        (codec::ENDPOINTS, servers.iter().map(endpoints).collect()),
    ]);
    Said { version, resources }
}

fn route(matcher: RouteMatch, cluster: &str) -> Route {
    Route::new(matcher, RouteAction::Forward(Box::new(Forward::to(cluster.into()))))
}

/// A table of these routes for every host.
fn table(name: &str, routes: Vec<Route>) -> Any {
    let host = VirtualHost {
        name: "all".to_owned(),
        domains: vec![Domain::new("*").unwrap()],
        routes,
        headers: HeaderPolicy::default(),
        retry: None,
    };
    let (name, headers) = (name.to_owned(), HeaderPolicy::default());
    codec::encode_routes(&RouteConfiguration { name, virtual_hosts: vec![host], headers, retry_budget: None })
}

fn plain(name: &str) -> Any {
    codec::encode_cluster(&Cluster { balancer: Balancer::RoundRobin, ..Cluster::new(name.into()) })
}

/// A cluster `c` with a policy that nobody knows before the one that `balancer` is.
fn after_an_unknown_one(balancer: Balancer) -> Any {
    let known = codec::encode_cluster(&Cluster { balancer, ..Cluster::new("c".into()) });
    let mut proto = ClusterProto::decode(&*known.value).unwrap();
    let unknown = Any { type_url: "type.googleapis.com/test.ThisPolicyDoesNotExist".to_owned(), value: Vec::new() };
    let unknown = TypedExtensionConfig { name: "test.unknown".to_owned(), typed_config: Some(unknown) };
    let policies = &mut proto.load_balancing_policy.as_mut().expect("a list").policies;
    policies.insert(0, Policy { typed_extension_config: Some(unknown) });
    Any { value: proto.encode_to_vec(), ..known }
}

#[tokio::test]
async fn api_listener_02() {
    for protocol in BOTH {
        let [a, b] = actors(["a", "b"]).await;
        let version = |version, listens, tables: &[(&str, &str)]| {
            say(version, listens, tables, vec![plain("c"), plain("d")], &[("c", vec![&a]), ("d", vec![&b])])
        };
        let (address, plane) = Puppet::start(version("1", "first", &[("first", "c")])).await;
        let caller = caller(address, protocol, |client| client).await;
        caller.becomes(20, &["a"]).await;
        // The second set is there, then it is in use, then the first one is deleted: no call fails or goes elsewhere.
        let carried_on = async || assert_eq!(caller.calls(50, &[]).await, BTreeMap::from([("a".to_owned(), 50)]));
        for said in [
            version("2", "first", &[("first", "c"), ("second", "c")]),
            version("3", "second", &[("first", "c"), ("second", "c")]),
            version("4", "second", &[("second", "c")]),
        ] {
            plane.send_replace(said);
            carried_on().await;
        }
        // The control: it is the second table that is obeyed now, and the first one that is not.
        plane.send_replace(version("5", "second", &[("first", "c"), ("second", "d")]));
        eventually("the second table counts", async || {
            let answer = caller.call().await;
            assert!(answer.is_ok(), "{protocol:?}: {answer:?}");
            (answer.as_deref() == Ok("b")).then_some(())
        })
        .await;
        caller.becomes(50, &["b"]).await;
    }
}

/// The matchers that Istio's manifests have no word for.
#[tokio::test]
async fn header_matching_30_by_suffix_and_range() {
    let suffix = StringMatcher { pattern: StringMatch::Suffix("nate".to_owned()), ignore_case: false };
    let cases = [
        ("2", HeaderMatch::Text(suffix), vec!["alternate", "nate"], vec!["alternates", "ate", "NATE"]),
        ("3", HeaderMatch::Range { start: 10, end: 20 }, vec!["10", "19"], vec!["9", "20", "1a", "alternate"]),
    ];
    for protocol in BOTH {
        let [a, b] = actors(["a", "b"]).await;
        let version = |version, routes| {
            let servers = [("c", vec![&a]), ("d", vec![&b])];
            let mut said = say(version, "r", &[], vec![plain("c"), plain("d")], &servers);
            said.resources.insert(codec::ROUTES, vec![table("r", routes)]);
            said
        };
        let (address, plane) = Puppet::start(version("1", vec![route(RouteMatch::any(), "c")])).await;
        let caller = caller(address, protocol, |client| client).await;
        caller.becomes(20, &["a"]).await;
        for (number, value, inside, outside) in &cases {
            let name = HeaderKey::parse("x-test").unwrap();
            let header = HeaderMatcher { name, value: value.clone(), invert: false, treat_missing_as_empty: false };
            let matcher = RouteMatch { headers: vec![header], ..RouteMatch::any() };
            plane.send_replace(version(*number, vec![route(matcher, "d"), route(RouteMatch::any(), "c")]));
            for text in inside {
                eventually(&format!("{protocol:?}: {text} is matched by {value:?}"), async || {
                    (caller.call_with(PATH, &[("x-test", *text)]).await.as_deref() == Ok("b")).then_some(())
                })
                .await;
            }
            // The control.
            for text in outside {
                let answer = caller.call_with(PATH, &[("x-test", *text)]).await;
                assert_eq!(answer.as_deref(), Ok("a"), "{protocol:?}: {text} by {value:?}");
            }
            assert_eq!(caller.call().await.as_deref(), Ok("a"), "{protocol:?}: none by {value:?}");
        }
    }
}

/// One of its candidates gets everything, the one from the end that its configuration says: no policy does that.
#[derive(Debug)]
struct FromTheEnd(Option<usize>);

impl FromTheEnd {
    fn make(config: &str, candidates: &Candidates, _: &mut Draw<'_>) -> Option<Box<dyn Picker>> {
        let config: serde_json::Value = serde_json::from_str(config).unwrap();
        let back = usize::try_from(config["back"].as_u64()?).unwrap();
        Some(Box::new(Self(candidates.len().checked_sub(back))))
    }
}

impl Picker for FromTheEnd {
    fn pick(&self, _: &Pick<'_>, _: &mut Draw<'_>) -> Option<usize> {
        self.0
    }
}

#[tokio::test]
async fn custom_lb_09() {
    for protocol in BOTH {
        let [a, b, c] = actors(["a", "b", "c"]).await;
        let version = |version, balancer| {
            let servers = [("c", vec![&a, &b, &c])];
            say(version, "r", &[("r", "c")], vec![after_an_unknown_one(balancer)], &servers)
        };
        let custom = |config: &str| Balancer::Custom { name: "test.FromTheEnd".into(), config: config.into() };
        let (address, plane) = Puppet::start(version("1", custom(r#"{"back":1}"#))).await;
        let own = caller_with(address, protocol, |mesh| mesh.balancer("test.FromTheEnd", FromTheEnd::make)).await;
        // The control: who has no policy of that name takes the next one of the list.
        let stock = caller_with(address, protocol, |mesh| mesh.balancer("test.Another", FromTheEnd::make)).await;
        own.becomes(30, &["c"]).await;
        stock.becomes(30, &["a", "b", "c"]).await;
        plane.send_replace(version("2", custom(r#"{"back":2}"#)));
        own.becomes(30, &["b"]).await;
        // One that gives none for this configuration.
        plane.send_replace(version("3", custom("{}")));
        own.becomes(30, &["a", "b", "c"]).await;
        // The control: by another policy both do as it says.
        plane.send_replace(version("4", Balancer::PickFirst { shuffle: false }));
        own.becomes(30, &["a"]).await;
        stock.becomes(30, &["a"]).await;
    }
}

#[tokio::test]
async fn subsetting_19() {
    const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
    for protocol in BOTH {
        let actors = actors(NAMES).await;
        let version = |version, balancer| {
            let cluster = codec::encode_cluster(&Cluster { balancer, ..Cluster::new("c".into()) });
            say(version, "r", &[("r", "c")], vec![cluster], &[("c", actors.iter().collect())])
        };
        let subset = Balancer::RandomSubsetting { size: 4, of_each: false, child: Box::new(Balancer::RoundRobin) };
        let (address, plane) = Puppet::start(version("1", subset)).await;
        let heard = async |caller: &Caller| {
            eventually("four answer", async || {
                let report = caller.calls(40, &[]).await;
                let even = report.len() == 4 && report.values().all(|count| *count == 10);
                even.then(|| report.into_keys().collect::<BTreeSet<_>>())
            })
            .await
        };
        // Of 70 subsets two clients may well have the same; that of a dozen no three differ, has a chance of 1e-15.
        let (mut clients, mut subsets) = (Vec::new(), BTreeSet::new());
        while subsets.len() < 3 && clients.len() < 12 {
            let client = caller(address, protocol, |client| client).await;
            subsets.insert(heard(&client).await);
            clients.push(client);
        }
        assert_eq!(subsets.len(), 3, "{protocol:?}: {subsets:?}");
        // Clients of one number have one subset, and keep it.
        let [one, other] = [(); 2].map(|()| caller(address, protocol, |client| client.number(7)));
        let (one, other) = (one.await, other.await);
        let mine = heard(&one).await;
        assert_eq!((heard(&other).await, heard(&one).await), (mine.clone(), mine), "{protocol:?}");
        plane.send_replace(version("2", Balancer::RoundRobin));
        for client in &clients {
            client.becomes(40, &NAMES).await;
        }
    }
}

/// By the share of failures, of twenty requests at least, every two seconds.
#[tokio::test]
async fn outlier_detection_16_every_two_seconds_by_twenty_requests() {
    for protocol in BOTH {
        let [a, b, c] = actors(["a", "b", "c"]).await;
        let said = {
            let share = FailurePercentageEjection {
                threshold: PerMillion::new(500_000),
                enforcing: PerMillion::ALL,
                enforcing_local_origin: PerMillion::NONE,
                minimum_hosts: 3,
                request_volume: 20,
            };
            let outlier = OutlierDetection {
                consecutive_5xx: None,
                interval: Duration::from_secs(2),
                base_ejection: Duration::from_secs(2),
                max_ejected: PerMillion::new(500_000),
                failure_percentage: Some(share),
                ..OutlierDetection::default()
            };
            let balancer = Balancer::RoundRobin;
            let cluster = Cluster { balancer, outlier: Some(outlier), ..Cluster::new("c".into()) };
            say("1", "r", &[("r", "c")], vec![codec::encode_cluster(&cluster)], &[("c", vec![&a, &b, &c])])
        };
        let (address, _plane) = Puppet::start(said).await;
        let caller = caller(address, protocol, |client| client).await;
        caller.becomes(30, &["a", "b", "c"]).await;
        b.fail(true).await;
        caller.becomes(90, &["a", "c"]).await;
        b.fail(false).await;
        caller.becomes(90, &["a", "b", "c"]).await;
        // Control: to who has made fewer requests it is as good as the others.
        let (few, many) = (self::caller(address, protocol, |client| client), self::caller(address, protocol, |c| c));
        let (few, many) = (few.await, many.await);
        few.becomes(3, &["a", "b", "c"]).await;
        b.fail(true).await;
        many.becomes(90, &["a", "c"]).await;
        let report = few.calls(3, &[]).await;
        let unavailable = if protocol == Protocol::Grpc { "14" } else { "503" };
        assert!(report.contains_key(unavailable), "{protocol:?}: {report:?}");
    }
}

#[tokio::test]
async fn timeout_34_by_the_longest_life_of_a_stream() {
    let [a] = actors(["a"]).await;
    for protocol in BOTH {
        let mut said = say("1", "r", &[], vec![plain("c")], &[("c", vec![&a])]);
        let limited = Forward { max_stream_duration: Some(Duration::from_secs(3)), ..Forward::to("c".into()) };
        let path = RouteMatch { path: PathMatch::Exact(PATH.to_owned()), ..RouteMatch::any() };
        let limited = Route::new(path, RouteAction::Forward(Box::new(limited)));
        said.resources.insert(codec::ROUTES, vec![table("r", vec![limited, route(RouteMatch::any(), "c")])]);
        let (address, _plane) = Puppet::start(said).await;
        let caller = caller(address, protocol, |client| client).await;
        caller.becomes(5, &["a"]).await;
        let kept = [("rpc-behavior", "keep-open")];
        let late = Err(if protocol == Protocol::Grpc { "4" } else { "504" }.to_owned());
        // The other method waits on, until it is let go.
        let (limited, other, ()) =
            tokio::join!(caller.call_with(PATH, &kept), caller.call_with("/psm.Test/Other", &kept), async {
                eventually("both are kept", async || (a.kept().await == 2).then_some(())).await;
                eventually("the first is given up", async || (a.kept().await == 1).then_some(())).await;
                a.release().await;
            });
        assert_eq!((limited, other.as_deref()), (late.clone(), Ok("a")), "{protocol:?}");
        // The application's second is over before the stream's three.
        tokio::select! {
            biased;
            first = caller.call_with(PATH, &kept) => panic!("{protocol:?}: its stream ended first: {first:?}"),
            own = within_with(&caller, PATH, &kept, 1000) => assert_eq!(own, late, "{protocol:?}"),
        }
        assert_eq!(within(&caller, 3000).await.as_deref(), Ok("a"), "{protocol:?}: not exceeded");
    }
}
