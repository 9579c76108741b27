//! The whole client over a control plane in memory, with real resources.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use envoy_types::pb::google::protobuf::Any;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use mesh_core::id::Target;
use mesh_core::policy::{
    AuthorityRewrite, Cluster, ClusterState, DestinationState, Discovery, Domain, Endpoint, Endpoints, Forward,
    HeaderPolicy, InboundListener, InboundState, InboundTls, Instances, JwtAuthentication, JwtRequirement, Listener,
    LocalityEndpoints, MeshTls, Route, RouteAction, RouteConfiguration, RouteMatch, RouteSource, Snapshot,
    StringMatcher, UpstreamTls, VirtualHost,
};
use mesh_core::source::{DestinationSource, InboundSource, Watched};
use mesh_testkit::clock;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::super::kind::Kind;
use super::super::{
    AdsStream, Request, Response, SnapshotConfig, StreamError, Transport, Variant, XdsClient, XdsConfig,
};
use super::machine::BOTH;
use super::{Server, Stream, asked, network, response, version};
use crate::bootstrap::{Authority, Bootstrap, ChannelCredentials, Node, XdsServer};
use crate::codec;

const INBOUND: &str = "xds.istio.io/grpc/lds/inbound/127.0.0.1:80";

fn client() -> (XdsClient, Server) {
    client_of(|_| {})
}

fn client_with(variant: Variant, snapshot: &std::path::Path) -> (XdsClient, Server) {
    client_of(|config| {
        config.variant = Some(variant);
        let mut snapshot = SnapshotConfig::new(snapshot);
        snapshot.delay = Duration::ZERO;
        config.snapshot = Some(snapshot);
    })
}

pub(super) fn target() -> Target {
    "a:80".parse().unwrap()
}

pub(super) fn listener() -> Any {
    codec::encode_listener(&Listener::new("a:80", RouteSource::Named("r".to_owned())))
}

fn routes(cluster: &str) -> Any {
    let route = Route::new(RouteMatch::any(), RouteAction::Forward(Box::new(Forward::to(cluster.into()))));
    let host = VirtualHost {
        name: "all".to_owned(),
        domains: vec![Domain::new("*").unwrap()],
        routes: vec![route],
        headers: HeaderPolicy::default(),
        retry: None,
    };
    codec::encode_routes(&RouteConfiguration {
        name: "r".to_owned(),
        virtual_hosts: vec![host],
        headers: HeaderPolicy::default(),
        retry_budget: None,
    })
}

fn cluster(name: &str) -> Any {
    codec::encode_cluster(&Cluster::new(name.into()))
}

fn endpoints(name: &str, port: u16) -> Any {
    let endpoint = Endpoint::new(mesh_core::policy::Address::Socket(([127, 0, 0, 1], port).into()));
    let locality = LocalityEndpoints {
        locality: Default::default(),
        priority: 0,
        weight: std::num::NonZeroU32::MIN,
        endpoints: vec![endpoint],
    };
    codec::encode_endpoints(&Endpoints { cluster: name.to_owned(), localities: vec![locality], ..Endpoints::default() })
}

fn inbound(tls: InboundTls, jwt: Vec<JwtAuthentication>) -> Any {
    let listener = InboundListener::new(INBOUND, "127.0.0.1:80".parse().unwrap(), tls);
    codec::encode_inbound(&InboundListener { jwt, ..listener })
}

/// Plays the control plane for `a:80` until everything has been acknowledged.
pub(super) async fn serve_all(stream: &mut Stream, version: &str) {
    stream.expect(Kind::Listener, &["a:80"]).await;
    stream.respond(Kind::Listener, version, "l1", vec![listener()]);
    stream.expect(Kind::Routes, &["r"]).await;
    stream.expect(Kind::Listener, &["a:80"]).await;
    stream.respond(Kind::Routes, version, "r1", vec![routes("x")]);
    stream.expect(Kind::Cluster, &["x"]).await;
    stream.expect(Kind::Routes, &["r"]).await;
    stream.respond(Kind::Cluster, version, "c1", vec![cluster("x")]);
    stream.expect(Kind::Endpoints, &["x"]).await;
    stream.expect(Kind::Cluster, &["x"]).await;
    stream.respond(Kind::Endpoints, version, "e1", vec![endpoints("x", 1)]);
    stream.expect(Kind::Endpoints, &["x"]).await;
}

pub(super) async fn snapshot(state: &mut Watched<DestinationState>) -> Arc<Snapshot> {
    match &*state.wait_for(|state| matches!(state, DestinationState::Ready(_))).await {
        DestinationState::Ready(snapshot) => snapshot.clone(),
        other => panic!("{other:?}"),
    }
}

fn port_of(snapshot: &Arc<Snapshot>, cluster: &str) -> u16 {
    match &snapshot.clusters[&cluster.into()] {
        ClusterState::Ready { endpoints, .. } => match &endpoints.iter().next().unwrap().address {
            mesh_core::policy::Address::Socket(address) => address.port(),
            other => panic!("{other}"),
        },
        ClusterState::Failed(reason) => panic!("{reason}"),
    }
}

#[tokio::test]
async fn a_destination_is_followed_to_its_endpoints_and_let_go() {
    let (client, mut server) = client();
    let mut state = client.destination(&target());
    let mut stream = server.accept().await;
    serve_all(&mut stream, "v1").await;
    assert_eq!(port_of(&snapshot(&mut state).await, "x"), 1);

    // A late watcher shares the subscription and has the state at once.
    let late = client.destination(&target());
    assert!(matches!(&**late.load(), DestinationState::Ready(_)));
    drop(state);
    let dump = client.config_dump();
    let names: Vec<_> = dump["resources"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a:80", "r", "x", "x"]);
    assert!(dump["resources"].as_array().unwrap().iter().all(|row| row["state"] == "acked" && row["version"] == "v1"));
    assert_eq!(dump["resources"][0]["value"]["listener"]["name"], "a:80");

    drop(late);
    for kind in Kind::ALL {
        stream.expect(kind, &[]).await;
    }
    let status = client.status();
    assert!(status.connected && status.streams_opened == 1 && status.responses == 4, "{status:?}");
    client.ready().await;
}

#[tokio::test]
async fn a_refused_resource_is_named_and_its_good_sibling_used() {
    let (client, mut server) = client();
    let mut state = client.destination(&target());
    let address = "127.0.0.1:80".parse().unwrap();
    let mut inbound_state = client.inbound(address);
    let mut stream = server.accept().await;
    // The subscriptions may be seen one by one.
    while asked(&stream.request().await).len() < 2 {}
    stream.respond(Kind::Listener, "v1", "n1", vec![listener(), inbound(InboundTls::Strict, Vec::new())]);
    stream.expect(Kind::Routes, &["r"]).await;
    stream.expect(Kind::Listener, &["a:80", INBOUND]).await;
    let ready = inbound_state.wait_for(|state| matches!(state, InboundState::Ready(_))).await;

    // Security fails closed: a listener with demands that nobody could meet is refused, its sibling used.
    let mut tokens = JwtAuthentication::optional("jwt", []);
    let nobody = JwtRequirement::Provider { name: "nobody".to_owned(), audiences: Vec::new() };
    tokens.rules[0].requirement = Some(nobody);
    let changed = codec::encode_listener(&Listener::new("a:80", RouteSource::Named("r2".to_owned())));
    stream.respond(Kind::Listener, "v2", "n2", vec![changed, inbound(InboundTls::Disable, vec![tokens])]);
    stream.expect(Kind::Routes, &["r2"]).await;
    let nack = stream.expect(Kind::Listener, &["a:80", INBOUND]).await;
    assert_eq!((version(&nack), nack.nonce.as_str()), ("v1", "n2"));
    let error = nack.error.unwrap();
    assert!(error.contains(INBOUND) && error.contains("nobody"), "{error}");
    assert_eq!(*inbound_state.load_full(), *ready, "the last good stays");
    assert_eq!(client.status().nacks, 1);

    let dump = client.config_dump();
    let row = dump["resources"].as_array().unwrap().iter().find(|row| row["name"] == INBOUND).unwrap().clone();
    assert_eq!((row["state"].as_str(), row["version"].as_str()), (Some("nacked"), Some("v1")));
    assert!(row["error"]["reason"].as_str().unwrap().contains("nobody"));
    assert_eq!(**state.load(), DestinationState::Pending);
    drop(state.changed());
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_stays_away_does_not_exist_after_its_time() {
    let (client, mut server) = client();
    let mut state = client.destination(&target());
    let mut stream = server.accept().await;
    stream.expect(Kind::Listener, &["a:80"]).await;
    let asked = tokio::time::Instant::now();
    let failed = state.wait_for(|state| *state != DestinationState::Pending).await;
    assert_eq!(asked.elapsed(), Duration::from_secs(15));
    let DestinationState::Failed(reason) = &*failed else { panic!("{failed:?}") };
    assert!(reason.contains("no such destination a:80"), "{reason}");
    assert_eq!(client.config_dump()["resources"][0]["state"], "does_not_exist");
}

#[tokio::test(start_paused = true)]
async fn without_a_control_plane_a_destination_says_so_and_comes_to_life_with_one() {
    let (client, mut server) = client();
    let mut state = client.destination(&target());
    drop(server.accept().await);
    let failed = state.wait_for(|state| *state != DestinationState::Pending).await;
    let DestinationState::Unreachable(reason) = &*failed else { panic!("{failed:?}") };
    assert!(reason.contains("memory:1 cannot be reached") && reason.contains("without an answer"), "{reason}");
    let status = client.status();
    assert!(!status.connected && status.last_error.is_some(), "{status:?}");

    let mut stream = server.accept().await;
    serve_all(&mut stream, "v1").await;
    snapshot(&mut state).await;
    assert_eq!(client.status().last_error, None);
}

#[tokio::test(start_paused = true)]
async fn an_outage_keeps_the_last_good_and_asks_again_with_versions() {
    let (client, mut server) = client();
    let mut state = client.destination(&target());
    let mut stream = server.accept().await;
    serve_all(&mut stream, "v7").await;
    let before = snapshot(&mut state).await;

    stream.fail(StreamError::new("the control plane restarts"));
    let broke = tokio::time::Instant::now();
    let mut stream = server.accept().await;
    assert!(broke.elapsed() <= Duration::from_secs(1), "a restarted control plane is found quickly");
    for kind in Kind::ALL {
        let request = stream.request().await;
        assert_eq!(request.type_url, kind.type_url());
        assert_eq!((version(&request), request.nonce.as_str()), ("v7", ""));
        assert_eq!(request.node.is_some(), kind == Kind::Listener, "the node goes with the first request only");
    }
    assert!(Arc::ptr_eq(&before, &snapshot(&mut state).await));
    stream.respond(Kind::Endpoints, "v8", "e1", vec![endpoints("x", 2)]);
    stream.expect(Kind::Endpoints, &["x"]).await;
    assert_eq!(port_of(&snapshot(&mut state).await, "x"), 2);
    let status = client.status();
    assert_eq!((status.streams_opened, status.last_error), (2, None));
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_never_answers_is_tried_less_and_less() {
    let (client, mut server) = client();
    let mut last = tokio::time::Instant::now();
    let mut longest = Duration::ZERO;
    for _ in 0..12 {
        server.accept().await;
        longest = longest.max(last.elapsed());
        last = tokio::time::Instant::now();
    }
    assert!(longest > Duration::from_secs(1) && longest <= Duration::from_secs(31), "{longest:?}");
    let error = client.status().last_error.unwrap();
    assert!(error.contains("without an answer"), "{error}");
}

#[tokio::test]
async fn torn_configuration_never_shows() {
    let (client, mut server) = client();
    let mut state = client.destination(&target());
    let mut stream = server.accept().await;
    serve_all(&mut stream, "v1").await;
    let before = snapshot(&mut state).await;

    stream.respond(Kind::Routes, "v2", "r2", vec![routes("y")]);
    stream.expect(Kind::Cluster, &["x", "y"]).await;
    stream.expect(Kind::Routes, &["r"]).await;
    assert!(Arc::ptr_eq(&before, &snapshot(&mut state).await));
    stream.respond(Kind::Cluster, "v2", "c2", vec![cluster("x"), cluster("y")]);
    stream.expect(Kind::Endpoints, &["x", "y"]).await;
    stream.expect(Kind::Cluster, &["x", "y"]).await;
    assert!(Arc::ptr_eq(&before, &snapshot(&mut state).await));
    stream.respond(Kind::Endpoints, "v2", "e2", vec![endpoints("y", 9)]);
    let after = state.wait_for(|state| matches!(state, DestinationState::Ready(s) if !Arc::ptr_eq(s, &before))).await;
    let DestinationState::Ready(after) = &*after else { panic!("{after:?}") };
    assert_eq!((after.clusters.len(), port_of(after, "y")), (1, 9));
    stream.expect(Kind::Cluster, &["y"]).await;
    stream.expect(Kind::Endpoints, &["y"]).await;
}

#[tokio::test]
async fn deletion_and_equal_pushes_wake_nobody() {
    let (client, mut server) = client();
    let mut state = client.destination(&target());
    let mut stream = server.accept().await;
    serve_all(&mut stream, "v1").await;
    let before = snapshot(&mut state).await;

    stream.respond(Kind::Cluster, "v2", "c2", vec![]);
    assert_eq!(version(&stream.expect(Kind::Cluster, &["x"]).await), "v2", "a deletion is acknowledged");
    stream.respond(Kind::Listener, "v2", "l2", vec![]);
    stream.expect(Kind::Listener, &["a:80"]).await;
    stream.respond(Kind::Endpoints, "v3", "e3", vec![endpoints("x", 1)]);
    stream.expect(Kind::Endpoints, &["x"]).await;
    assert_eq!(client.config_dump()["resources"][0]["state"], "does_not_exist");

    // Nothing of this was published; a real change still is.
    tokio::select! {
        biased;
        () = state.changed() => panic!("woken without a change"),
        () = std::future::ready(()) => {}
    }
    assert!(Arc::ptr_eq(&before, &snapshot(&mut state).await));
    stream.respond(Kind::Endpoints, "v4", "e4", vec![endpoints("x", 4)]);
    state.changed().await;
    assert_eq!(port_of(&snapshot(&mut state).await, "x"), 4);
}

#[tokio::test]
async fn dropping_the_client_ends_its_stream_and_keeps_what_was_handed_out() {
    let (client, mut server) = client();
    let mut state = client.destination(&target());
    let mut stream = server.accept().await;
    serve_all(&mut stream, "v1").await;
    snapshot(&mut state).await;
    drop(client);
    assert!(stream.requests.recv().await.is_none());
    assert!(matches!(&**state.load(), DestinationState::Ready(_)));
}

#[tokio::test]
async fn what_an_earlier_run_knew_serves_until_the_control_plane_answers() {
    for variant in BOTH {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        let (client, mut server) = client_with(variant, &path);
        assert!(client.status().snapshot.unwrap().age_seconds.is_none(), "there is none yet");
        let mut state = client.destination(&target());
        let mut stream = server.accept().await;
        serve_all(&mut stream, "v1").await;
        let before = snapshot(&mut state).await;
        // Written in time, on another thread: the whole of it once it is.
        while client.status().snapshot.unwrap().writes == 0 || written(&path).await < 4 {
            tokio::task::yield_now().await;
        }
        drop(client);

        // The control plane is away: the destination is there at once, and so is readiness.
        let (client, server) = client_with(variant, &path);
        drop(server);
        client.ready().await;
        let mut state = client.destination(&target());
        assert_eq!(snapshot(&mut state).await, before);
        let status = client.status().snapshot.unwrap();
        assert_eq!((status.in_use, status.error, status.age_seconds.is_some()), (4, None, true));
        drop(client);

        // It is back: what it says replaces the whole, when all of it is there.
        let (client, mut server) = client_with(variant, &path);
        let mut state = client.destination(&target());
        let old = snapshot(&mut state).await;
        let mut stream = server.accept().await;
        serve_restored(&mut stream).await;
        let new = state.wait_for(|state| matches!(state, DestinationState::Ready(s) if **s != *old)).await;
        let DestinationState::Ready(new) = &*new else { panic!("{new:?}") };
        assert_eq!(port_of(new, "x"), 9);
        assert_eq!(client.status().snapshot.unwrap().in_use, 0);

        // Control run: a damaged file is refused with its reason, and nothing serves.
        drop(client);
        std::fs::write(&path, b"mesh xDS snapshot 4\nnonsense that is long enough to end with something").unwrap();
        let (client, _server) = client_with(variant, &path);
        assert_eq!(**client.destination(&target()).load(), DestinationState::Pending);
        let error = loop {
            match client.status().snapshot.unwrap().error {
                Some(error) => break error,
                None => tokio::task::yield_now().await,
            }
        };
        assert!(error.contains("damaged"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_takes_nothing_out_of_the_snapshot_and_makes_it_no_younger() {
    for variant in BOTH {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        let (client, mut server) = client_with(variant, &path);
        let mut state = client.destination(&target());
        let mut stream = server.accept().await;
        serve_all(&mut stream, "v1").await;
        snapshot(&mut state).await;
        while client.status().snapshot.unwrap().writes == 0 || written(&path).await < 4 {
            tokio::task::yield_now().await;
        }
        drop(client);
        let before = std::fs::read(&path).unwrap();

        // Nobody can be asked, and only a part of what is known is in use; that nobody can be asked is itself a change.
        let (client, server) = client_with(variant, &path);
        drop(server);
        let other = client.destination(&"b:80".parse().unwrap());
        other.clone().wait_for(|state| matches!(state, DestinationState::Unreachable(_))).await;
        clock::pass(Duration::from_secs(3 * 3600)).await;
        assert_eq!(client.status().snapshot.unwrap().writes, 0);
        assert_eq!(std::fs::read(&path).unwrap(), before);
        drop(client);

        // The control run: once the control plane speaks it is written.
        let (client, mut server) = client_with(variant, &path);
        let mut state = client.destination(&target());
        let mut stream = server.accept().await;
        serve_restored(&mut stream).await;
        state.wait_for(|state| matches!(state, DestinationState::Ready(s) if port_of(s, "x") == 9)).await;
        while client.status().snapshot.unwrap().writes == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// Plays the control plane for a client that knows `a:80` from an earlier run.
async fn serve_restored(stream: &mut Stream) {
    while asked(&stream.request().await) != ["x"] {}
    stream.respond(Kind::Listener, "v2", "l1", vec![listener()]);
    stream.respond(Kind::Routes, "v2", "r1", vec![routes("x")]);
    while asked(&stream.request().await) != ["x"] {}
    stream.respond(Kind::Cluster, "v2", "c1", vec![cluster("x")]);
    stream.respond(Kind::Endpoints, "v2", "e1", vec![endpoints("x", 9)]);
}

/// Resources in a snapshot file.
async fn written(path: &std::path::Path) -> u32 {
    let bytes = tokio::fs::read(path).await.unwrap();
    let count = b"mesh xDS snapshot 3\n".len() + 8 + 16;
    u32::from_le_bytes(bytes[count..count + 4].try_into().unwrap())
}

/// A control plane that has said everything in advance. `ahead` responses are taken from it at once; each
/// time one is taken, `seen` gets the port that readers see then.
struct Script {
    responses: Vec<Response>,
    ahead: usize,
    state: Arc<OnceLock<Watched<DestinationState>>>,
    seen: Arc<Mutex<Vec<Option<u16>>>>,
    requests: Option<mpsc::Receiver<Request>>,
}

impl Transport for Script {
    fn open(&mut self, _: Variant) -> BoxFuture<'static, Result<AdsStream, StreamError>> {
        // Room for every request: nobody reads them.
        let (requests, received) = mpsc::channel(1024);
        self.requests = Some(received);
        let (state, seen) = (self.state.clone(), self.seen.clone());
        let responses = std::mem::take(&mut self.responses).into_iter().map(move |response| {
            let port = match &**state.get().unwrap().load() {
                DestinationState::Ready(snapshot) => Some(port_of(snapshot, "x")),
                _ => None,
            };
            seen.lock().push(port);
            Ok(response)
        });
        let responses = stream::iter(responses).chain(stream::pending()).ready_chunks(self.ahead);
        let responses = responses.flat_map(stream::iter).boxed();
        Box::pin(async move { Ok(AdsStream { requests, responses }) })
    }
}

#[tokio::test]
async fn x10_no_response_is_read_before_the_last_one_has_reached_its_readers() {
    const UPDATES: u16 = 300;
    for (variant, (ahead, in_step)) in BOTH.into_iter().flat_map(|v| [(v, (1, true)), (v, (4, false))]) {
        let mut responses = vec![
            response(Kind::Listener, "v", "l", vec![listener()]),
            response(Kind::Routes, "v", "r", vec![routes("x")]),
            response(Kind::Cluster, "v", "c", vec![cluster("x")]),
        ];
        let before = responses.len();
        responses.extend((1..=UPDATES).map(|port| response(Kind::Endpoints, "v", "e", vec![endpoints("x", port)])));
        let (state, seen) = (Arc::<OnceLock<_>>::default(), Arc::<Mutex<Vec<_>>>::default());
        let script =
            Mutex::new(Some(Script { responses, ahead, state: state.clone(), seen: seen.clone(), requests: None }));
        let memory = XdsServer::new("memory:1".parse().unwrap(), ChannelCredentials::Insecure);
        let mut config = XdsConfig::new(Bootstrap::new(memory, Node { id: "me".to_owned(), ..Default::default() }));
        config.variant = Some(variant);
        let client = XdsClient::spawn(config, |_: &XdsServer| script.lock().take().unwrap(), &Handle::current());
        let mut watched = client.destination(&target());
        state.set(watched.clone()).ok().unwrap();
        let last = |state: &DestinationState| matches!(state, DestinationState::Ready(s) if port_of(s, "x") == UPDATES);
        watched.wait_for(last).await;
        let seen = seen.lock()[before..].to_vec();
        let expected: Vec<_> = std::iter::once(None).chain((1..UPDATES).map(Some)).collect();
        assert_eq!(seen == expected, in_step, "reading ahead by {ahead}: {seen:?}");
    }
}

/// A client whose bootstrap was changed.
pub(super) fn client_of(change: impl FnOnce(&mut XdsConfig)) -> (XdsClient, Server) {
    let (transport, server) = network();
    let memory = XdsServer::new("memory:1".parse().unwrap(), ChannelCredentials::Insecure);
    let mut config = XdsConfig::new(Bootstrap::new(memory, Node { id: "me".to_owned(), ..Default::default() }));
    config.variant = Some(Variant::StateOfTheWorld);
    change(&mut config);
    (XdsClient::spawn(config, move |_: &XdsServer| transport.clone(), &Handle::current()), server)
}

/// Its name says that it is a cluster, so it cannot be the name of its endpoints.
#[tokio::test]
async fn a47_a_cluster_with_an_xdstp_name_says_what_its_endpoints_are_called() {
    let name = "xdstp://other/envoy.config.cluster.v3.Cluster/x";
    let named = "xdstp://other/envoy.config.endpoint.v3.ClusterLoadAssignment/x";
    let (client, mut server) = client_of(|config| {
        let client_listener_template = "xdstp://other/envoy.config.listener.v3.Listener/%s".to_owned();
        let authority = Authority { client_listener_template, servers: vec![], fallback_on_reachability_only: false };
        config.bootstrap.authorities.insert("other".to_owned(), authority);
    });
    let mut state = client.destination(&target());
    let mut stream = server.accept().await;
    stream.expect(Kind::Listener, &["a:80"]).await;
    stream.respond(Kind::Listener, "v1", "l1", vec![listener()]);
    stream.expect(Kind::Routes, &["r"]).await;
    stream.expect(Kind::Listener, &["a:80"]).await;
    stream.respond(Kind::Routes, "v1", "r1", vec![routes(name)]);
    stream.expect(Kind::Cluster, &[name]).await;
    stream.expect(Kind::Routes, &["r"]).await;
    stream.respond(Kind::Cluster, "v1", "c1", vec![cluster(name)]);
    let nack = stream.expect(Kind::Cluster, &[name]).await;
    let error = nack.error.expect("it is refused");
    assert!(error.contains(name) && error.contains("eds_cluster_config.service_name"), "{error}");
    // Control: one that says it, by the same name.
    let discovery = Discovery::Eds { service_name: Some(named.to_owned()) };
    let good = codec::encode_cluster(&Cluster { discovery, ..Cluster::new(name.into()) });
    stream.respond(Kind::Cluster, "v2", "c2", vec![good]);
    stream.expect(Kind::Endpoints, &[named]).await;
    assert_eq!(stream.expect(Kind::Cluster, &[name]).await.error, None);
    stream.respond(Kind::Endpoints, "v1", "e1", vec![endpoints(named, 7)]);
    let is_whole = |state: &DestinationState| match state {
        DestinationState::Ready(snapshot) => {
            matches!(snapshot.clusters.get(&name.into()), Some(ClusterState::Ready { .. }))
        }
        _ => false,
    };
    let whole = state.wait_for(is_whole).await;
    let DestinationState::Ready(whole) = &*whole else { unreachable!() };
    assert_eq!(port_of(whole, name), 7);
}

#[tokio::test]
async fn b10_a_certificate_provider_that_the_bootstrap_does_not_declare_is_refused_a29() {
    let files = || {
        let provider = r#"{"plugin_name":"file_watcher","config":{"ca_certificate_file":"/roots"}}"#;
        let server = r#"{"server_uri":"memory:1","channel_creds":[{"type":"insecure"}]}"#;
        let json = format!(r#"{{"xds_servers":[{server}],"certificate_providers":{{"NAME":{provider}}}}}"#);
        move |name: &str| Bootstrap::from_json(&json.replace("NAME", name)).unwrap().certificate_providers
    };
    // (instance in the bootstrap, `default` from a join token, accepted)
    let cases = [
        (None, false, true),
        (Some("default"), false, true),
        (Some("other"), false, false),
        (Some("other"), true, true),
    ];
    for (declared, default_provider, accepted) in cases {
        let (client, mut server) = client_of(|config| {
            config.bootstrap.certificate_providers = declared.map(files()).unwrap_or_default();
            config.default_provider = default_provider;
        });
        let _state = client.destination(&target());
        let _inbound = client.inbound("127.0.0.1:80".parse().unwrap());
        let mut stream = server.accept().await;
        while asked(&stream.request().await).len() < 2 {}
        stream.respond(Kind::Listener, "v1", "n1", vec![listener(), inbound(InboundTls::Strict, Vec::new())]);
        stream.expect(Kind::Routes, &["r"]).await;
        let answer = stream.expect(Kind::Listener, &["a:80", INBOUND]).await;
        assert_eq!(answer.error.is_none(), accepted, "{declared:?} {:?}", answer.error);
        stream.respond(Kind::Routes, "v1", "r1", vec![routes("x")]);
        stream.expect(Kind::Cluster, &["x"]).await;
        stream.expect(Kind::Routes, &["r"]).await;
        let tls = UpstreamTls::Mesh(MeshTls::default());
        let secure = codec::encode_cluster(&Cluster { tls, ..Cluster::new("x".into()) });
        stream.respond(Kind::Cluster, "v1", "c1", vec![secure]);
        if accepted {
            stream.expect(Kind::Endpoints, &["x"]).await;
        }
        let answer = stream.expect(Kind::Cluster, &["x"]).await;
        match answer.error {
            None => assert!(accepted),
            Some(error) => {
                assert!(!accepted);
                assert!(
                    error.contains("instance \"default\"") && error.contains("tls_certificate_provider"),
                    "{error}"
                );
            }
        }
    }
}

/// One identity must not stand in for another.
#[tokio::test]
async fn b10_a_certificate_provider_that_lacks_what_is_asked_of_it_is_refused_a29() {
    let files = |declared: &[(&str, &str)]| {
        let provider = |(name, config): &(&str, &str)| {
            let config = format!("{{{config}}}");
            format!(r#""{name}":{{"plugin_name":"file_watcher","config":{config}}}"#)
        };
        let providers: Vec<_> = declared.iter().map(provider).collect();
        let server = r#"{"server_uri":"memory:1","channel_creds":[{"type":"insecure"}]}"#;
        let providers = providers.join(",");
        let json = format!(r#"{{"xds_servers":[{server}],"certificate_providers":{{{providers}}}}}"#);
        Bootstrap::from_json(&json).unwrap().certificate_providers
    };
    let roots = r#""ca_certificate_file":"/roots""#;
    let certificate = r#""certificate_file":"/c","private_key_file":"/k""#;
    let whole = &format!("{roots},{certificate}");
    for (declared, named, why) in [
        (&[("default", roots), ("another", roots)][..], "default", None),
        (&[("default", roots), ("another", roots)], "another", Some("instance \"another\" has no certificate")),
        (&[("default", roots), ("another", certificate)], "another", Some("instance \"another\" has no roots")),
        (&[("default", roots), ("another", whole)], "another", None),
        (&[("default", whole)], "another", Some("declares no certificate provider instance \"another\"")),
        (&[], "another", Some("declares no certificate provider instances")),
    ] {
        let (client, mut server) = client_of(|config| config.bootstrap.certificate_providers = files(declared));
        let inbound_state = client.inbound("127.0.0.1:80".parse().unwrap());
        let mut stream = server.accept().await;
        stream.expect(Kind::Listener, &[INBOUND]).await;
        let mut resource = inbound(InboundTls::Strict, Vec::new());
        rename(&mut resource.value, b"default", named.as_bytes());
        stream.respond(Kind::Listener, "v1", "n1", vec![resource]);
        let answer = stream.expect(Kind::Listener, &[INBOUND]).await;
        assert_eq!(answer.error.is_none(), why.is_none(), "{declared:?} {named}: {:?}", answer.error);
        if let (Some(error), Some(why)) = (answer.error, why) {
            assert!(error.contains(why) && error.contains("certificate_provider_instance"), "{error}");
            assert_eq!(client.status().nacks, 1);
        } else {
            let mut state = inbound_state;
            let state = state.wait_for(|state| matches!(state, InboundState::Ready(_))).await;
            let InboundState::Ready(listener) = &*state else { unreachable!() };
            assert_eq!(listener.instances, Instances::one((named != "default").then(|| named.into())));
        }
    }
}

/// Puts bytes of the same length in the place of others, wherever they are.
fn rename(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    assert_eq!(old.len(), new.len());
    let places: Vec<usize> = (0..=bytes.len() - old.len()).filter(|at| bytes[*at..].starts_with(old)).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|at| bytes[at..at + new.len()].copy_from_slice(new));
}

#[tokio::test]
async fn r15_only_a_trusted_control_plane_has_the_authority_rewritten_to_the_endpoints_a81() {
    // Also after a restart while the control plane is away, where the table, which a server may use as well, is kept as it came.
    for (trusted, serves) in [(true, false), (false, false), (true, true), (false, true)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        let of = |config: &mut XdsConfig| {
            config.bootstrap.servers[0].features.trusted_xds_server = trusted;
            config.snapshot = Some(SnapshotConfig { delay: Duration::ZERO, ..SnapshotConfig::new(&path) });
        };
        let (client, mut server) = client_of(of);
        let mut state = client.destination(&target());
        let mut forward = Forward::to("x".into());
        forward.rewrite.authority = Some(AuthorityRewrite::Endpoint);
        let action = RouteAction::Forward(Box::new(forward));
        let actions = std::iter::once(action).chain(serves.then_some(RouteAction::NonForwarding));
        let host = VirtualHost {
            name: "all".to_owned(),
            domains: vec![Domain::new("*").unwrap()],
            routes: actions.map(|action| Route::new(RouteMatch::any(), action)).collect(),
            headers: HeaderPolicy::default(),
            retry: None,
        };
        let (name, headers) = ("r".to_owned(), HeaderPolicy::default());
        let inline = RouteConfiguration { name, virtual_hosts: vec![host], headers, retry_budget: None };
        let rewriting = codec::encode_routes(&inline);
        let mut stream = server.accept().await;
        stream.expect(Kind::Listener, &["a:80"]).await;
        stream.respond(Kind::Listener, "v", "l1", vec![listener()]);
        stream.expect(Kind::Routes, &["r"]).await;
        stream.expect(Kind::Listener, &["a:80"]).await;
        stream.respond(Kind::Routes, "v", "r1", vec![rewriting]);
        stream.expect(Kind::Cluster, &["x"]).await;
        assert_eq!(stream.expect(Kind::Routes, &["r"]).await.error, None, "it is no error");
        stream.respond(Kind::Cluster, "v", "c1", vec![cluster("x")]);
        stream.expect(Kind::Endpoints, &["x"]).await;
        stream.expect(Kind::Cluster, &["x"]).await;
        stream.respond(Kind::Endpoints, "v", "e1", vec![endpoints("x", 1)]);
        let is_rewritten = async |state: &mut Watched<DestinationState>| {
            let snapshot = snapshot(state).await;
            let RouteAction::Forward(forward) = &snapshot.routes.virtual_hosts[0].routes[0].action else { panic!() };
            forward.rewrite.authority.is_some()
        };
        assert_eq!(is_rewritten(&mut state).await, trusted);
        let listed = client.config_dump().to_string().contains("routes[0].route.auto_host_rewrite");
        assert_eq!(listed, !trusted);
        assert_eq!(client.unenforced()[1], ("routes", usize::from(!trusted)));

        while client.status().snapshot.unwrap().writes == 0 || written(&path).await < 4 {
            tokio::task::yield_now().await;
        }
        drop((client, server));
        let (client, _away) = client_of(of);
        assert_eq!(is_rewritten(&mut client.destination(&target())).await, trusted);
    }
}

#[tokio::test]
async fn s61_a_cluster_that_expects_nobody_in_particular_is_taken_and_reported_a29() {
    for (peers, reported) in [(&[][..], 1), (&["spiffe://cluster.local/ns/default/sa/reviews"], 0)] {
        let (client, mut server) = client_of(|config| config.default_provider = true);
        let mut state = client.destination(&target());
        let peer_ids = peers.iter().map(|peer| StringMatcher::exact(*peer)).collect();
        let tls = UpstreamTls::Mesh(MeshTls { peer_ids, ..MeshTls::default() });
        let secure = codec::encode_cluster(&Cluster { tls, ..Cluster::new("x".into()) });
        let mut stream = server.accept().await;
        stream.expect(Kind::Listener, &["a:80"]).await;
        stream.respond(Kind::Listener, "v", "l1", vec![listener()]);
        stream.expect(Kind::Routes, &["r"]).await;
        stream.expect(Kind::Listener, &["a:80"]).await;
        stream.respond(Kind::Routes, "v", "r1", vec![routes("x")]);
        stream.expect(Kind::Cluster, &["x"]).await;
        stream.expect(Kind::Routes, &["r"]).await;
        stream.respond(Kind::Cluster, "v", "c1", vec![secure]);
        stream.expect(Kind::Endpoints, &["x"]).await;
        assert_eq!(stream.expect(Kind::Cluster, &["x"]).await.error, None, "it is no error");
        stream.respond(Kind::Endpoints, "v", "e1", vec![endpoints("x", 1)]);
        snapshot(&mut state).await;
        assert_eq!(client.unenforced().iter().map(|(_, fields)| fields).sum::<usize>(), reported, "{peers:?}");
        let listed = client.config_dump().to_string().contains("match_typed_subject_alt_names");
        assert_eq!(listed, reported == 1);
    }
}
