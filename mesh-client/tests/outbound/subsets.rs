//! Parts of a cluster by the metadata of its endpoints (Envoy load balancer subsets).

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use mesh_client::Client;
use mesh_core::error::{Code, Fault};
use mesh_core::policy::{
    Cluster, ClusterChoice, Discovery, Endpoint, EndpointMetadata, FailureAccrual, Forward, Listener, PathMatch,
    RouteMatch, Snapshot, SubsetFallback, Subsets, TcpForward, TcpShare, UpstreamProtocol, WeightedCluster,
    WeightedClusters,
};
use mesh_testkit::{Behaviour, EchoServer, FixedSource, RawServer, policy};

use super::{TARGET, client_of, cluster, fetch, get, read, server_of};

const HOUR: Duration = Duration::from_secs(3600);

type Labels = BTreeMap<String, String>;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn labelled(endpoint: Endpoint, pairs: &[(&str, &str)]) -> Endpoint {
    let metadata = Arc::new(EndpointMetadata { lb: labels(pairs), ..EndpointMetadata::default() });
    Endpoint { metadata, ..endpoint }
}

fn by_stage(fallback: SubsetFallback) -> Cluster {
    Cluster { subsets: Some(Subsets { fallback, selectors: vec![vec!["stage".to_owned()]] }), ..cluster("test") }
}

/// Two in production and one in development.
struct Fleet([EchoServer; 3]);

impl Fleet {
    async fn start() -> Self {
        Self([EchoServer::start("p1").await, EchoServer::start("p2").await, EchoServer::start("d").await])
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        let stages = ["prod", "prod", "dev"];
        self.0.iter().zip(stages).map(|(server, stage)| labelled(server.endpoint(), &[("stage", stage)])).collect()
    }
}

/// A route for each path, which wants its endpoints to be of this stage.
fn by_path(cluster: &Cluster, paths: &[(&str, &[(&str, &str)])], endpoints: Vec<Endpoint>) -> Snapshot {
    let routes = paths.iter().map(|(path, wanted)| {
        let matcher = RouteMatch { path: PathMatch::Exact((*path).to_owned()), ..RouteMatch::any() };
        policy::forward(matcher, Forward { metadata_match: labels(wanted), ..Forward::to(cluster.name.clone()) })
    });
    policy::snapshot(policy::routes(routes), [(cluster.clone(), endpoints)])
}

async fn seen(client: &Client, path: &str) -> Result<BTreeSet<String>, Code> {
    let mut seen = BTreeSet::new();
    for _ in 0..40 {
        seen.insert(server_of(&fetch(client, path).await.map_err(|error| error.code())?).to_owned());
    }
    Ok(seen)
}

fn set(names: &[&str]) -> Result<BTreeSet<String>, Code> {
    Ok(names.iter().map(|name| (*name).to_owned()).collect())
}

const PATHS: &[(&str, &[(&str, &str)])] =
    &[("/prod", &[("stage", "prod")]), ("/dev", &[("stage", "dev")]), ("/none", &[("stage", "x")]), ("/any", &[])];

#[tokio::test]
async fn a_route_has_the_endpoints_of_its_metadata_and_others_what_policy_falls_back_to() {
    let fleet = Fleet::start().await;
    let default = SubsetFallback::Default(labels(&[("stage", "dev")]));
    for (fallback, instead) in [
        (SubsetFallback::Fail, Err(Code::NO_ENDPOINT)),
        (SubsetFallback::Any, set(&["d", "p1", "p2"])),
        (default, set(&["d"])),
    ] {
        let (client, _) = client_of(by_path(&by_stage(fallback.clone()), PATHS, fleet.endpoints()));
        assert_eq!(seen(&client, "/prod").await, set(&["p1", "p2"]));
        assert_eq!(seen(&client, "/dev").await, set(&["d"]));
        assert_eq!(seen(&client, "/none").await, instead, "{fallback:?}");
        assert_eq!(seen(&client, "/any").await, instead, "{fallback:?}");
    }
    let (client, _) = client_of(by_path(&cluster("test"), PATHS, fleet.endpoints()));
    assert_eq!(seen(&client, "/dev").await, set(&["d", "p1", "p2"]), "control: a cluster without subsets");
}

#[tokio::test]
async fn who_finds_nobody_in_the_subset_is_told_why() {
    let fleet = Fleet::start().await;
    let (client, _) = client_of(by_path(&by_stage(SubsetFallback::Fail), PATHS, fleet.endpoints()));
    let error = client.send(get("/none")).await.unwrap_err().to_string();
    assert!(error.contains("none of 3 endpoints has the metadata that the route asks for"), "{error}");
    let explained = client.explain(&http::Request::get(format!("http://{TARGET}/dev")).body(()).unwrap());
    let shown: Vec<_> = explained.clusters[0].cluster.endpoints.iter().map(|e| e.address.to_string()).collect();
    assert_eq!(shown, [fleet.0[2].address().to_string()], "people are shown who is in it");
    assert_eq!(client.dump().destinations[0].clusters[0].endpoints.len(), 3, "and all of the cluster");
}

#[tokio::test]
async fn entries_of_a_split_clusters_of_a_header_parts_of_an_aggregate_and_raw_connections_have_theirs() {
    let fleet = Fleet::start().await;
    let test = by_stage(SubsetFallback::Fail);
    let of = |to: ClusterChoice, route: &[(&str, &str)]| {
        let forward = Forward { to, metadata_match: labels(route), ..Forward::to("test".into()) };
        let whole = Cluster { discovery: Discovery::Aggregate(vec!["test".into()]), ..cluster("whole") };
        let clusters = [(test.clone(), fleet.endpoints()), (whole, Vec::new())];
        policy::snapshot(policy::routes([policy::forward(RouteMatch::any(), forward)]), clusters)
    };
    let entry =
        WeightedCluster { metadata_match: labels(&[("stage", "dev")]), ..WeightedCluster::new("test".into(), 1) };
    let split = ClusterChoice::Weighted(WeightedClusters::new(vec![entry]).unwrap());
    let prod = &[("stage", "prod")];
    let (client, _) = client_of(of(split, prod));
    assert_eq!(seen(&client, "/").await, set(&["d"]), "the entry beats its route");
    let (client, _) = client_of(of(ClusterChoice::Cluster("whole".into()), prod));
    assert_eq!(seen(&client, "/").await, set(&["p1", "p2"]));

    let (client, _) = client_of(of(ClusterChoice::Header(HeaderName::from_static("x-to")), &[("stage", "dev")]));
    for to in ["test", "whole"] {
        let mut request = get("/");
        request.headers_mut().insert("x-to", to.parse().unwrap());
        assert_eq!(server_of(&read(client.send(request).await.unwrap()).await.unwrap()), "d", "{to}");
    }

    let raw = [RawServer::start("p").await, RawServer::start("d").await];
    let endpoints = raw.iter().zip(["prod", "dev"]).map(|(raw, stage)| labelled(raw.endpoint(), &[("stage", stage)]));
    let mut tcp = TcpForward::split(vec![TcpShare::new("test".into(), NonZeroU32::MIN)]).unwrap();
    tcp.metadata_match = labels(&[("stage", "dev")]);
    let mut snapshot = policy::snapshot_of(test.clone(), endpoints);
    snapshot.listener = Arc::new(Listener { tcp: Some(tcp), ..Listener::clone(&snapshot.listener) });
    let client = Client::builder(FixedSource::of(TARGET, snapshot)).build();
    for _ in 0..10 {
        let connection = client.connect(TARGET).await.unwrap();
        assert_eq!(connection.address().to_string(), raw[1].address().to_string());
    }
}

#[tokio::test]
async fn a_subset_follows_its_endpoints_and_shares_their_connections_and_health() {
    let fleet = Fleet::start().await;
    let accrual =
        Some(FailureAccrual { max_failures: 1, min_penalty: HOUR, max_penalty: HOUR, ..FailureAccrual::default() });
    let mut test = Cluster { accrual, ..by_stage(SubsetFallback::Fail) };
    test.connection.protocol = UpstreamProtocol::Http2;
    test.subsets.as_mut().unwrap().selectors.push(vec!["tier".to_owned()]);
    // Another route finds the same servers by another key.
    let paths: Vec<(&str, &[(&str, &str)])> = [PATHS, &[("/tier", &[("tier", "1")])]].concat();
    let of = |stages: [&str; 3]| {
        let endpoints = fleet.0.iter().zip(stages);
        let endpoints =
            endpoints.map(|(server, stage)| labelled(server.endpoint(), &[("stage", stage), ("tier", "1")]));
        by_path(&test, &paths, endpoints.collect())
    };
    let (client, source) = client_of(of(["prod", "prod", "dev"]));
    assert_eq!(seen(&client, "/tier").await, set(&["d", "p1", "p2"]));
    assert_eq!(seen(&client, "/prod").await, set(&["p1", "p2"]));
    assert_eq!(seen(&client, "/dev").await, set(&["d"]));
    let open = client.dump().destinations[0].clusters[0].open_connections;
    assert_eq!(open, 3, "one to each, whoever asks");

    // What one route learns of a server, the others know.
    fleet.0[0].behave(Behaviour::Status(503));
    while server_of(&fetch(&client, "/tier").await.unwrap()) != "p1" {}
    let bad = |client: &Client| client.dump().destinations[0].clusters[0].endpoints.iter().filter(|e| e.usable).count();
    while bad(&client) == 3 {
        tokio::task::yield_now().await;
    }
    assert_eq!(seen(&client, "/prod").await, set(&["p2"]));

    source.set_snapshot(TARGET, of(["prod", "dev", "dev"]));
    while seen(&client, "/dev").await != set(&["d", "p2"]) {}
    assert_eq!(seen(&client, "/prod").await, Err(Code::NO_ENDPOINT), "all of it is ill, and that is no fallback");
}

#[tokio::test]
async fn a_request_of_another_subset_is_load_in_this_one_too() {
    let fleet = Fleet::start().await;
    let mut test = by_stage(SubsetFallback::Fail);
    test.subsets.as_mut().unwrap().selectors.push(vec!["name".to_owned()]);
    let endpoints = fleet.0.iter().zip(["p1", "p2", "p3"]);
    let endpoints = endpoints.map(|(server, name)| labelled(server.endpoint(), &[("stage", "prod"), ("name", name)]));
    let paths: &[(&str, &[(&str, &str)])] = &[("/prod", &[("stage", "prod")]), ("/p1", &[("name", "p1")])];
    let (client, _) = client_of(by_path(&test, paths, endpoints.take(2).collect()));
    fleet.0[0].script([Behaviour::Hold]);
    let meanwhile = async {
        fleet.0[0].wait_for_requests(1).await;
        assert_eq!(seen(&client, "/prod").await, set(&["p2"]));
        fleet.0[0].release();
    };
    let (held, ()) = tokio::join!(fetch(&client, "/p1"), meanwhile);
    assert_eq!(server_of(&held.unwrap()), "p1");
    assert_eq!(seen(&client, "/prod").await, set(&["p1", "p2"]), "control: with nothing in flight both serve");
}
