//! Connections over loopback: what is sent with every RPC, and what is kept of the files.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::process::Command;
use std::task::{Context, Poll};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use mesh_core::id::{SpiffeId, TrustDomain};
use mesh_core::source::Watched;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tonic::Code;
use tower_service::Service;

use super::*;
use crate::bootstrap::TlsCredentials;
use crate::proto::certificate::{IstioCertificateRequest, IstioCertificateServiceClient};
use crate::test_plane::{Ca, PeerChain, SERVER_SERIAL, Serving, crypto, now, serve};

/// Answers nothing of use and notes the `authorization` values and the certificate of each request.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Seen>>>);

type Seen = (Vec<String>, bool);

impl Service<http::Request<hyper::body::Incoming>> for Recorder {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<hyper::body::Incoming>) -> Self::Future {
        let values = request.headers().get_all(AUTHORIZATION).iter().map(|v| v.to_str().unwrap().to_owned()).collect();
        let certified = !request.extensions().get::<PeerChain>().unwrap().0.is_empty();
        self.0.lock().push((values, certified));
        ready(Ok(tonic::Status::not_found("recorded").into_http()))
    }
}

/// A server with TLS, and what it takes to reach it.
struct World {
    ca: Ca,
    root: tempfile::NamedTempFile,
    seen: Recorder,
    serving: Serving,
}

impl World {
    async fn new() -> Self {
        let (ca, seen) = (Ca::new(), Recorder::default());
        let serving = serve(seen.clone(), Some(ca.server_config()), 0).await;
        Self { root: ca.root_file(), ca, seen, serving }
    }

    fn credentials(&self) -> TlsCredentials {
        let ca_certificate_file = Some(self.root.path().to_str().unwrap().to_owned());
        TlsCredentials { ca_certificate_file, ..Default::default() }
    }

    fn server(&self, credentials: TlsCredentials) -> XdsServer {
        let uri = format!("127.0.0.1:{}", self.serving.port).parse().unwrap();
        XdsServer::new(uri, ChannelCredentials::Tls(credentials))
    }

    /// A server whose RPCs carry the tokens of these files.
    fn with_tokens(&self, files: &[&tempfile::NamedTempFile]) -> XdsServer {
        let token = |file: &&tempfile::NamedTempFile| CallCredentials::JwtTokenFile {
            path: file.path().to_str().unwrap().to_owned(),
        };
        XdsServer { call_credentials: files.iter().map(token).collect(), ..self.server(self.credentials()) }
    }
}

/// A token file, and the header that it gives.
fn token_file(name: &str) -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let claims = BASE64_URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{}}}"#, now() + 3600));
    let token = format!("e30.{claims}.{name}");
    std::fs::write(file.path(), &token).unwrap();
    (file, format!("Bearer {token}"))
}

async fn rpc(connection: &Connection, authorization: Option<&str>) -> tonic::Status {
    let mut client = IstioCertificateServiceClient::with_origin(connection.clone(), connection.origin());
    let mut request = tonic::Request::new(IstioCertificateRequest::default());
    if let Some(value) = authorization {
        request.metadata_mut().insert("authorization", value.parse().unwrap());
    }
    client.create_certificate(request).await.unwrap_err()
}

#[tokio::test]
async fn b4_every_rpc_of_a_connection_carries_all_call_credentials() {
    let world = World::new().await;
    let ((one, first), (two, second)) = (token_file("one"), token_file("two"));
    let connection = Connector::new(world.with_tokens(&[&one, &two]), crypto()).connect().await.unwrap();
    for _ in 0..2 {
        assert_eq!(rpc(&connection, None).await.message(), "recorded");
    }
    rpc(&connection, Some("Bearer join-token")).await;
    let without = Connector::new(world.server(world.credentials()), crypto()).connect().await.unwrap();
    rpc(&without, None).await;
    let both = vec![first, second];
    let own = vec!["Bearer join-token".to_owned()];
    let seen: Vec<_> = world.seen.0.lock().drain(..).map(|(values, _)| values).collect();
    assert_eq!(seen, [both.clone(), both, own, Vec::new()]);
}

#[tokio::test]
async fn b4_an_rpc_without_a_usable_token_fails_and_the_connection_stays() {
    let world = World::new().await;
    let (file, _) = token_file("one");
    let connector = Connector::new(world.with_tokens(&[&file]), crypto());
    let connection = connector.connect().await.unwrap();
    let path = file.path().to_owned();
    std::fs::remove_file(&path).unwrap();
    let status = rpc(&connection, None).await;
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains(path.to_str().unwrap()), "{status}");
    assert!(world.seen.0.lock().is_empty(), "nothing is sent without proof");
    assert_eq!(rpc(&connection, Some("Bearer join-token")).await.message(), "recorded");

    std::fs::write(&path, "no token").unwrap();
    let status = rpc(&Connector::new(world.with_tokens(&[&file]), crypto()).connect().await.unwrap(), None).await;
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn b4_call_credentials_are_only_sent_over_tls() {
    let (file, _) = token_file("one");
    let seen = Recorder::default();
    let serving = serve(seen.clone(), None, 0).await;
    let uri: ServerUri = format!("127.0.0.1:{}", serving.port).parse().unwrap();
    let plaintext = XdsServer::new(uri, ChannelCredentials::Insecure);
    let control = Connector::new(plaintext.clone(), crypto()).connect().await.unwrap();
    assert_eq!(rpc(&control, None).await.message(), "recorded");

    let path = file.path().to_str().unwrap().to_owned();
    let server = XdsServer { call_credentials: vec![CallCredentials::JwtTokenFile { path }], ..plaintext };
    let error = Connector::new(server, crypto()).connect().await.err().expect("refused");
    assert!(error.to_string().contains("only sent over TLS"), "{error}");
}

#[tokio::test]
async fn s12_the_mesh_identity_is_shown_where_the_bootstrap_names_no_other_proof() {
    let world = World::new().await;
    let identity = Arc::new(world.ca.identity("spiffe://cluster.local/ns/default/sa/reviews", 0));
    let (known, never) = (Watched::fixed(Some(identity)), Watched::fixed(None));

    let connector = Connector::new(world.server(world.credentials()), crypto());
    rpc(&connector.clone().with_identity(known.clone()).connect().await.unwrap(), None).await;
    let waiting = connector.with_identity(never.clone());
    tokio::select! {
        biased;
        _ = waiting.connect() => panic!("it has nothing to show yet"),
        () = tokio::task::yield_now() => {}
    }

    let (token, _) = token_file("one");
    for identity in [known, never.clone()] {
        let connector = Connector::new(world.with_tokens(&[&token]), crypto()).with_identity(identity);
        rpc(&connector.connect().await.unwrap(), None).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let files = world.ca.write_identity(directory.path(), "spiffe://cluster.local/ns/default/sa/files");
    let credentials = TlsCredentials { identity: Some(files), ..world.credentials() };
    let connector = Connector::new(world.server(credentials), crypto()).with_identity(never);
    rpc(&connector.connect().await.unwrap(), None).await;

    let shown: Vec<_> = world.seen.0.lock().iter().map(|(_, certified)| *certified).collect();
    assert_eq!(shown, [true, false, false, true]);
}

#[tokio::test]
async fn who_waits_for_an_identity_hears_each_reason_once_and_then_waits_on() {
    let world = World::new().await;
    let (publisher, identity) = Watched::channel(None);
    let (refused, refusal) = Watched::channel(Some(Arc::from("the token is spent")));
    let connector = Connector::new(world.server(world.credentials()), crypto());
    let connector = connector.with_identity(identity).with_refusal(refusal);
    let error = connector.connect().await.err().expect("there is none");
    assert!(error.to_string().ends_with("this process has no certificate: the token is spent"), "{error}");

    let mut waiting = std::pin::pin!(connector.connect());
    tokio::select! {
        biased;
        _ = &mut waiting => panic!("it failed for the same reason again"),
        () = tokio::task::yield_now() => {}
    }
    refused.publish(Some("the CA is away".into()));
    let error = waiting.await.err().expect("there is none");
    assert!(error.to_string().contains("the CA is away"), "{error}");

    publisher.publish(Some(Arc::new(world.ca.identity("spiffe://cluster.local/ns/default/sa/reviews", 0))));
    rpc(&connector.connect().await.unwrap(), None).await;
}

#[tokio::test]
async fn b4_the_call_credentials_of_one_control_plane_are_not_shown_to_another() {
    let (one, other) = (World::new().await, World::new().await);
    let (token, _) = token_file("one");
    let connector = Connector::new(one.with_tokens(&[&token]), crypto());
    rpc(&connector.connect().await.unwrap(), None).await;
    let elsewhere = connector.to(other.server(other.credentials()));
    rpc(&elsewhere.connect().await.unwrap(), None).await;
    let authorized = |world: &World| world.seen.0.lock().iter().map(|(sent, _)| !sent.is_empty()).collect::<Vec<_>>();
    assert_eq!((authorized(&one), authorized(&other)), (vec![true], vec![false]));
}

#[tokio::test]
async fn s8_a_root_file_that_breaks_leaves_the_roots_of_before() {
    let world = World::new().await;
    let connector = Connector::new(world.server(world.credentials()), crypto());
    connector.connect().await.unwrap();
    std::fs::write(world.root.path(), "rubbish").unwrap();
    connector.connect().await.unwrap();
    let fresh = Connector::new(world.server(world.credentials()), crypto()).connect().await;
    assert!(fresh.is_err(), "control: who has no roots yet cannot connect");
    // Good roots of somebody else take effect at once.
    std::fs::write(world.root.path(), Ca::new().root.pem()).unwrap();
    assert!(connector.connect().await.is_err());
}

/// Lists that have ended, or are silent, keep nobody from where the newer ones come from.
#[tokio::test]
async fn s67_a_control_plane_that_was_taken_back_is_refused() {
    let world = World::new().await;
    let connector = Connector::new(world.server(world.credentials()), crypto());
    let identity = world.ca.identity("spiffe://cluster.local/ns/default/sa/reviews", 0);
    let domain = identity.id().trust_domain();
    let later = now() + 3_600;
    for (list, taken) in [
        (world.ca.revoking(&[SERVER_SERIAL], later), false),
        (world.ca.revoking(&[SERVER_SERIAL], now() - 60), false),
        (world.ca.revoking(&[SERVER_SERIAL + 1], later), true),
        (world.ca.revoking(&[], now() - 60), true),
    ] {
        let bundle = identity.bundles().get(&domain).unwrap().clone().with_revocation_lists(vec![list]).unwrap();
        let mut bundles = identity.bundles().clone();
        bundles.insert(domain.clone(), bundle);
        let answer = connector.connect_as(Some(&identity.trusting(bundles))).await;
        assert_eq!(answer.is_ok(), taken);
        if let Err(error) = answer {
            assert!(error.to_string().contains("Revoked"), "{error}");
        }
    }
}

const PORT: &str = "PORT_TO_DIAL";

#[tokio::test]
async fn b3_tls_without_a_ca_file_trusts_the_roots_of_the_system() {
    // The system's roots are the process's environment, so this runs once more in another process.
    if let Ok(port) = std::env::var(PORT) {
        let uri = format!("127.0.0.1:{port}").parse().unwrap();
        let server = XdsServer::new(uri, ChannelCredentials::Tls(TlsCredentials::default()));
        Connector::new(server, crypto()).connect().await.unwrap();
        return;
    }
    let world = World::new().await;
    let untrusted = Connector::new(world.server(TlsCredentials::default()), crypto()).connect().await;
    assert!(untrusted.is_err(), "control: the system does not know this root");

    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "connect::tests::b3_tls_without_a_ca_file_trusts_the_roots_of_the_system", "--nocapture"]);
    child.env("SSL_CERT_FILE", world.root.path()).env(PORT, world.serving.port.to_string());
    let output = tokio::task::spawn_blocking(move || child.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// The way to a control plane in plaintext, which is reached in memory.
fn in_memory() -> Connector {
    Connector::new(XdsServer::new("memory:1".parse().unwrap(), ChannelCredentials::Insecure), crypto())
}

/// The preface of an HTTP/2 server: settings, and none of them.
const PREFACE: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

fn asking(connection: &Connection) -> impl Future<Output = Result<http::Response<hyper::body::Incoming>, BoxError>> {
    let request = http::Request::get(connection.origin()).body(tonic::body::Body::empty()).unwrap();
    connection.clone().call(request)
}

/// Serves HTTP/2, answers PINGs and no request; the first one ends the connection, if there is a `reason`.
async fn mute(io: tokio::io::DuplexStream, reason: Option<h2::Reason>) {
    let mut connection = h2::server::handshake(io).await.unwrap();
    let mut held = Vec::new();
    while let Some(Ok(request)) = connection.accept().await {
        held.push(request);
        if let Some(reason) = reason {
            connection.abrupt_shutdown(reason);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_control_plane_is_noticed_within_30_seconds_r10() {
    let (near, mut dead) = tokio::io::duplex(1 << 16);
    dead.write_all(&PREFACE).await.unwrap();
    let connection = in_memory().http2(near, "http").await.unwrap();
    let begun = tokio::time::Instant::now();
    assert!(asking(&connection).await.is_err());
    assert!(begun.elapsed() <= Duration::from_secs(30), "{:?}", begun.elapsed());

    // Control run: one that answers PINGs is alive, whatever else it does not answer.
    let (near, far) = tokio::io::duplex(1 << 16);
    let connector = in_memory();
    let served = async { asking(&connector.http2(near, "http").await.unwrap()).await };
    let waited = tokio::time::timeout(Duration::from_secs(600), served);
    tokio::select! {
        answer = waited => assert!(answer.is_err(), "{answer:?}"),
        () = mute(far, None) => panic!("it ended"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_is_asked_too_often_is_asked_less_often() {
    for (reason, seconds) in [(h2::Reason::ENHANCE_YOUR_CALM, [40, 80, 160, 320, 320]), (h2::Reason::CANCEL, [20; 5])] {
        let connector = in_memory();
        assert_eq!(connector.probing.interval().as_secs(), 20);
        for seconds in seconds {
            let (near, far) = tokio::io::duplex(1 << 16);
            let asked = async { asking(&connector.http2(near, "http").await.unwrap()).await };
            let (answer, ()) = tokio::join!(asked, mute(far, Some(reason)));
            assert!(answer.is_err(), "it was cut off");
            // Everything that is on its way happens.
            mesh_testkit::clock::pass(Duration::from_millis(1)).await;
            assert_eq!(connector.probing.interval().as_secs(), seconds, "{reason:?}");
        }
    }
}

#[tokio::test]
async fn a_connection_that_is_lent_is_used_by_others_for_as_long_as_it_is_open() {
    let world = World::new().await;
    let here = crate::test_plane::connector(world.serving.port, Some(&world.root));
    let same = |a: &Connection, b: &Connection| Arc::ptr_eq(&a.driver, &b.driver);
    // The control: nothing is lent yet, so each has its own, and an own one is nobody else's.
    let alone = here.shared().await.unwrap();
    assert!(!same(&alone, &here.shared().await.unwrap()));

    let owner = here.connect_to_lend().await.unwrap();
    assert!(same(&owner, &here.clone().shared().await.unwrap()));
    assert!(same(&owner, &here.to(here.server.clone()).shared().await.unwrap()), "a way to the same control plane");
    let elsewhere = serve(Recorder::default(), Some(world.ca.server_config()), 0).await;
    let there = crate::test_plane::connector(elsewhere.port, Some(&world.root));
    assert!(!same(&owner, &here.to(there.server.clone()).shared().await.unwrap()), "another control plane");

    drop(owner);
    let first = here.shared().await.unwrap();
    assert!(!same(&first, &here.shared().await.unwrap()), "what was lent has ended with its owner");
    let owner = here.connect_to_lend().await.unwrap();
    let port = world.serving.port;
    drop(world.serving);
    // Still held, but broken.
    while !owner.requests.is_closed() {
        tokio::task::yield_now().await;
    }
    let _again = serve(Recorder::default(), Some(world.ca.server_config()), port).await;
    assert!(!same(&owner, &here.shared().await.unwrap()));
}

#[tokio::test]
async fn s69_a_control_planes_chain_that_could_be_put_together_in_many_ways_is_refused() {
    let ca = Ca::new();
    let (root, mut config) = (ca.root_file(), Arc::unwrap_or_clone(ca.server_config()));
    let spec = mesh_testkit::CertificateSpec { ips: vec!["127.0.0.1".parse().unwrap()], ..Default::default() };
    let tangled = mesh_testkit::TestCa::tangled(&spec, 8);
    config.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(tangled));
    let connect = async |config: Arc<rustls::ServerConfig>| {
        let serving = serve(Recorder::default(), Some(config), 0).await;
        let ca_certificate_file = Some(root.path().to_str().unwrap().to_owned());
        let credentials = TlsCredentials { ca_certificate_file, ..Default::default() };
        let uri = format!("127.0.0.1:{}", serving.port).parse().unwrap();
        let server = XdsServer::new(uri, ChannelCredentials::Tls(credentials));
        Connector::new(server, crypto()).connect_as(None).await.map(drop)
    };
    let error = connect(Arc::new(config)).await.unwrap_err().to_string();
    assert!(error.contains("MaximumPathBuildCallsExceeded"), "{error}");
    connect(ca.server_config()).await.expect("the control: with a certificate of its root");
}

#[tokio::test]
async fn a_workload_with_a_good_certificate_of_that_name_is_not_taken_for_the_control_plane() {
    const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";
    let ca = Ca::new();
    let (root, seen) = (ca.root_file(), Recorder::default());
    let control_plane: SpiffeId = "spiffe://cluster.local/ns/mesh-system/sa/control-plane".parse().unwrap();
    let workload = serve(seen.clone(), Some(ca.server_config_of(REVIEWS)), 0).await;
    let genuine = serve(seen.clone(), Some(ca.server_config()), 0).await;
    let under = |domain: &str| control_plane.as_str().replace("cluster.local", domain);
    let renamed = serve(seen.clone(), Some(ca.server_config_of(&under("other.test"))), 0).await;
    let foreign = serve(seen.clone(), Some(ca.server_config_of(&under("foreign.test"))), 0).await;
    let alike =
        serve(seen.clone(), Some(ca.server_config_of(&REVIEWS.replace("cluster.local", "other.test"))), 0).await;
    let connect = async |serving: &Serving, id: Option<&SpiffeId>, identity: Option<&Identity>| {
        let ca_certificate_file = Some(root.path().to_str().unwrap().to_owned());
        let server_id_aliases = vec![TrustDomain::new("other.test").unwrap()];
        let credentials =
            TlsCredentials { ca_certificate_file, server_id: id.cloned(), server_id_aliases, ..Default::default() };
        let uri = format!("127.0.0.1:{}", serving.port).parse().unwrap();
        let server = XdsServer::new(uri, ChannelCredentials::Tls(credentials));
        Connector::new(server, crypto()).connect_as(identity).await.map(drop)
    };
    let member = ca.identity(REVIEWS, 0);
    for identity in [None, Some(&member)] {
        connect(&genuine, Some(&control_plane), identity).await.unwrap();
        let error = connect(&workload, Some(&control_plane), identity).await.unwrap_err().to_string();
        assert!(error.contains("not the control plane's") && error.contains(REVIEWS), "{error}");
        // Under another name of the mesh it is the same, and nobody else is.
        connect(&renamed, Some(&control_plane), identity).await.unwrap();
        for serving in [&foreign, &alike] {
            assert!(connect(serving, Some(&control_plane), identity).await.is_err());
        }
        // Control run: by its name alone it passes.
        connect(&workload, None, identity).await.unwrap();
        // The name that is asked for may be another one.
        connect(&workload, Some(&REVIEWS.parse().unwrap()), identity).await.unwrap();
    }
}

#[tokio::test]
async fn x1_a_dead_address_of_a_control_plane_holds_no_connection_up() {
    let world = World::new().await;
    let connector = Connector::new(world.server(world.credentials()), crypto());
    let good = SocketAddr::from(([127, 0, 0, 1], world.serving.port));
    // The kernel takes the connection, and nobody ever says a word on it.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute_at = mute.local_addr().unwrap();
    // Bound, and nobody listens.
    let [refusing, again] = [(); 2].map(|()| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        socket
    });
    let [refusing_at, again_at] = [&refusing, &again].map(|socket| socket.local_addr().unwrap());
    for addresses in [&[mute_at, good][..], &[refusing_at, good], &[refusing_at, mute_at, good]] {
        let connecting = connector.first_of(addresses, "127.0.0.1", None);
        let connection = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.expect("not held up").unwrap();
        assert_eq!(rpc(&connection, None).await.message(), "recorded");
    }
    // The control: the good one's word decided, and where there is none, every address is told.
    let error = connector.first_of(&[refusing_at, again_at], "127.0.0.1", None).await.err().expect("nobody is there");
    assert!(error.contains(&refusing_at.to_string()) && error.contains(&again_at.to_string()), "{error}");
    let error = connector.first_of(&[], "127.0.0.1", None).await.err().expect("no address");
    assert!(error.contains("no address"), "{error}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_root_file_that_is_not_read_to_its_end_fails_connections_and_stops_nothing_else() {
    let (world, pipe) = (World::new().await, crate::test_plane::Pipe::new());
    let of = |file: &str| {
        let ca_certificate_file = Some(file.to_owned());
        Connector::new(world.server(TlsCredentials { ca_certificate_file, ..Default::default() }), crypto())
    };
    let error = of("/dev/zero").connect().await.err().unwrap().to_string();
    assert!(error.contains("larger than 4 MiB"), "{error}");
    // All of it is on this thread.
    let goes_on = async {
        let other = Connector::new(world.server(world.credentials()), crypto()).connect().await.unwrap();
        rpc(&other, None).await
    };
    let connector = of(&pipe.path);
    tokio::select! {
        biased;
        connected = connector.connect() => panic!("{:?}", connected.map(drop)),
        status = goes_on => assert_eq!(status.message(), "recorded"),
    }
    let error = connector.connect().await.err().unwrap().to_string();
    assert!(error.contains("not read within 3s"), "{error}");
    // It is tried again, and what is there by then is used, whether the read that was left is at its end or about to be.
    std::fs::write(&pipe.path, world.ca.root.pem()).unwrap();
    std::fs::copy(world.root.path(), format!("{}.new", pipe.path)).unwrap();
    std::fs::rename(format!("{}.new", pipe.path), &pipe.path).unwrap();
    connector.connect().await.unwrap();
}

/// Of a process that hangs, or is stopped, the system takes connections all the same.
#[tokio::test(start_paused = true)]
async fn x6_a_connection_that_the_control_plane_has_said_nothing_on_is_none() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let serving = serve(Recorder::default(), None, 0).await;
    for (port, speaks) in [(silent.local_addr().unwrap().port(), false), (serving.port, true)] {
        let uri = format!("127.0.0.1:{port}").parse().unwrap();
        let connector = Connector::new(XdsServer::new(uri, ChannelCredentials::Insecure), crypto());
        match mesh_testkit::clock::hold(connector.connect()).await {
            // The control.
            Ok(_) => assert!(speaks),
            Err(error) => assert!(!speaks && error.to_string().contains("within 10s"), "{error}"),
        }
    }
}
