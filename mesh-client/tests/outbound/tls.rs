//! Mutual TLS fails closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Request;
use mesh_client::{Client, ClientBuilder, Io};
use mesh_core::error::{Blame, Code, Fault, Retry};
use mesh_core::id::{SpiffeId, TrustDomain};
use mesh_core::identity::{Identity, TrustBundle, TrustBundles};
use mesh_core::policy::{
    Address, Balancer, ClientCertificate, Cluster, ConnectionOptions, EndpointMetadata, Instances, MeshTls,
    OriginatedTls, RetryOn, RootsTls, StringMatcher, UpstreamProtocol, UpstreamTls,
};
use mesh_core::source::{Identities, Watched};
use mesh_testkit::{Behaviour, CertificateSpec, EchoServer, FixedSource, TestCa, clock, crypto, policy};
use rustls::pki_types::UnixTime;
use rustls::sign::{Signer, SigningKey};
use rustls::time_provider::TimeProvider;
use rustls::{SignatureAlgorithm, SignatureScheme};

use super::{TARGET, answers, cluster, fetch, forward_with, post, retrying, server_of, snapshot_with};

pub(super) const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";

pub(super) fn builder(cluster: Cluster, server: &EchoServer) -> ClientBuilder {
    let source = FixedSource::of(TARGET, policy::snapshot_of(cluster, [server.endpoint()]));
    Client::builder(source).crypto(crypto())
}

#[tokio::test]
async fn both_sides_know_each_other_over_both_versions() {
    let ca = TestCa::new();
    let server = EchoServer::start_mtls("reviews", &ca.identity("default", "reviews")).await;
    for (protocol, version) in [
        (UpstreamProtocol::Http1, "HTTP/1.1"),
        (UpstreamProtocol::Http2, "HTTP/2.0"),
        (UpstreamProtocol::Alpn, "HTTP/2.0"),
    ] {
        let mut secure = policy::mtls_cluster("test", &[REVIEWS]);
        secure.connection = ConnectionOptions { protocol, ..ConnectionOptions::default() };
        let client = builder(secure, &server).identity(ca.watched("default", "web")).build();
        let response = fetch(&client, "/").await.unwrap();
        assert_eq!(response.headers()["x-echo-peer"], "spiffe://cluster.local/ns/default/sa/web");
        assert_eq!(response.headers()["x-echo-version"], version);
    }
}

#[tokio::test]
async fn another_identity_than_expected_is_refused() {
    let ca = TestCa::new();
    let server = EchoServer::start_mtls("impostor", &ca.identity("default", "impostor")).await;
    let client = |peer_ids: &[&str]| {
        builder(policy::mtls_cluster("test", peer_ids), &server).identity(ca.watched("default", "web")).build()
    };
    let error = fetch(&client(&[REVIEWS]), "/").await.unwrap_err();
    assert_eq!(error.code(), Code::WRONG_PEER_IDENTITY);
    let text = error.to_string();
    assert!(text.contains("sa/impostor") && text.contains("sa/reviews"), "{text}");
    assert_eq!(server.requests(), 0);
    // Control: any peer of the mesh is fine where the policy names none.
    assert_eq!(fetch(&client(&[]), "/").await.unwrap().status(), 200);
}

#[tokio::test]
async fn s71_without_an_identity_nothing_is_sent() {
    let ca = TestCa::new();
    let identity = ca.identity("default", "reviews");
    let (secure, plain) = (EchoServer::start_mtls("secure", &identity).await, EchoServer::start("plain").await);
    for server in [&secure, &plain] {
        let client = builder(policy::mtls_cluster("test", &[]), server).build();
        assert_eq!(fetch(&client, "/").await.unwrap_err().code(), Code::NO_IDENTITY);
        assert_eq!((server.connections(), server.requests()), (0, 0));
    }
    // The controls: with an identity it is sent, and where nobody demands one.
    let known = builder(policy::mtls_cluster("test", &[]), &secure).identity(ca.watched("default", "web")).build();
    assert_eq!(fetch(&known, "/").await.unwrap().status(), 200);
    assert_eq!(fetch(&builder(cluster("test"), &plain).build(), "/").await.unwrap().status(), 200);
}

#[tokio::test]
async fn s70_a_strict_peer_is_sent_nothing_in_plaintext() {
    let server = EchoServer::start("reviews").await;
    for (tls, refused, code) in [
        (UpstreamTls::Disable, true, Some(Code::PLAINTEXT_TO_STRICT)),
        (UpstreamTls::Auto(MeshTls::default()), true, Some(Code::PLAINTEXT_TO_STRICT)),
        // The controls: to others, as the cluster says.
        (UpstreamTls::Disable, false, None),
        (UpstreamTls::Auto(MeshTls::default()), false, None),
    ] {
        let (connections, mut endpoint) = (server.connections(), server.endpoint());
        endpoint.metadata = Arc::new(EndpointMetadata { plaintext_refused: refused, ..EndpointMetadata::default() });
        let plain = Cluster { tls, ..cluster("test") };
        let client = Client::builder(FixedSource::of(TARGET, policy::snapshot_of(plain, [endpoint]))).build();
        let answer = fetch(&client, "/").await;
        assert_eq!(answer.as_ref().err().map(|error| error.code()), code);
        assert_eq!(server.connections() - connections, u64::from(!refused));
        if let Err(error) = answer {
            let text = error.to_string();
            assert!(text.contains("demands mutual TLS") && text.contains("DestinationRule"), "{text}");
        }
    }
}

#[tokio::test]
async fn a_strangers_certificate_is_told_as_a_tls_failure() {
    let (ours, theirs) = (TestCa::new(), TestCa::new());
    let server = EchoServer::start_mtls("theirs", &theirs.identity("default", "reviews")).await;
    let client = builder(policy::mtls_cluster("test", &[]), &server).identity(ours.watched("default", "web")).build();
    let error = fetch(&client, "/").await.unwrap_err();
    assert_eq!(error.code(), Code::TLS_HANDSHAKE);
    let text = error.to_string();
    let plain = "the certificate of spiffe://cluster.local/ns/default/sa/reviews is not valid here";
    assert!(text.contains(plain) && !text.contains("Other"), "the reason in plain words: {text}");
}

#[tokio::test]
async fn a_server_that_refuses_our_certificate_is_told_as_a_tls_failure() {
    let ca = TestCa::new();
    let server = EchoServer::start_mtls("strict", &ca.identity("default", "reviews")).await;
    let strangers = Arc::new(TestCa::new().identity("default", "web").trusting(ca.bundles()));
    for (protocol, upgrades) in
        [(UpstreamProtocol::Http1, false), (UpstreamProtocol::Http1, true), (UpstreamProtocol::Http2, false)]
    {
        for (identity, ended) in [(ca.expired("default", "web"), true), (strangers.clone(), false)] {
            let client = builder(speaking(protocol), &server).identity(Watched::fixed(Some(identity)));
            let dials = Arc::<AtomicU64>::default();
            let client = counting(client, server.endpoint().address, dials.clone()).random(|below| below / 2).build();
            let request = || {
                let mut request = post("/", "pay");
                if upgrades {
                    request.headers_mut().insert("connection", "upgrade".parse().unwrap());
                    request.headers_mut().insert("upgrade", "websocket".parse().unwrap());
                }
                request
            };
            let error = client.send(request()).await.unwrap_err();
            assert_eq!((error.code(), error.retry()), (Code::TLS_HANDSHAKE, Retry::Safe), "{protocol:?}: {error}");
            assert_eq!(error.to_string().contains("our own certificate ended"), ended, "{protocol:?}: {error}");
            assert!(error.to_string().contains("alert"), "{protocol:?}: {error}");
            // As if the handshake had told: it is left alone for a while.
            let error = client.send(request()).await.unwrap_err();
            let dialled = dials.load(Ordering::Relaxed);
            assert_eq!((error.code(), dialled), (Code::TLS_HANDSHAKE, 1), "{protocol:?}: {error}");
        }
    }
    assert_eq!(server.requests(), 0);
}

/// Counts how often `of` is dialled.
fn counting(client: ClientBuilder, of: Address, dials: Arc<AtomicU64>) -> ClientBuilder {
    client.connector(move |address: Address| {
        if address == of {
            dials.fetch_add(1, Ordering::Relaxed);
        }
        async move {
            let Address::Socket(address) = address else { unreachable!("it is one") };
            Ok(Box::new(tokio::net::TcpStream::connect(address).await?) as Box<dyn Io>)
        }
    })
}

/// One of two lags in a change of roots, say. It comes after the handshake of TLS 1.3, which costs no request: nobody has seen it.
#[tokio::test]
async fn an_endpoint_that_refuses_our_certificate_costs_no_request_and_is_not_dialled_for_each() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let ours = ca.identity("default", "web");
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let good = EchoServer::start_mtls("good", &ca.identity("default", "reviews")).await;
        let lags = Arc::new(ca.identity("default", "reviews").trusting(other.bundles()));
        let lagging = EchoServer::start_mtls("lagging", &lags).await;
        let cluster = Cluster { balancer: Balancer::RoundRobin, ..speaking(protocol) };
        let snapshot = policy::snapshot_of(cluster, [lagging.endpoint(), good.endpoint()]);
        let source = FixedSource::of(TARGET, snapshot);
        let identity = Watched::fixed(Some(ours.clone()));
        let dials = Arc::<AtomicU64>::default();
        let client = Client::builder(source).crypto(crypto()).identity(identity).random(|below| below / 2);
        let client = counting(client, lagging.endpoint().address, dials.clone()).build();
        for n in 0..10 {
            let mut request = post("/", "pay");
            request.headers_mut().insert("authorization", "me".parse().unwrap());
            let answer = client.send(request).await;
            assert_eq!(answer.as_ref().map(server_of).map_err(|e| e.to_string()), Ok("good"), "{protocol:?} {n}");
        }
        assert_eq!((lagging.requests(), good.requests()), (0, 10));
        assert!(
            good.received().iter().all(|request| request.headers["authorization"] == "me" && request.body == "pay")
        );
        // Half a second passes before it is asked again.
        let dialled = dials.load(Ordering::Relaxed);
        assert!((1..5).contains(&dialled), "{protocol:?}: {dialled}");
    }
}

/// When every certificate has ended: those of the tests last for two thousand years.
#[derive(Debug)]
struct Later;

impl TimeProvider for Later {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + 5_000 * 365 * 86_400)))
    }
}

#[tokio::test]
async fn a_server_is_judged_by_the_date_that_the_client_is_given() {
    let ca = TestCa::new();
    let server = EchoServer::start_mtls("reviews", &ca.identity("default", "reviews")).await;
    let client = |clock: Option<Later>| {
        let client = builder(policy::mtls_cluster("test", &[REVIEWS]), &server).identity(ca.watched("default", "web"));
        clock.into_iter().fold(client, |client, clock| client.clock(Arc::new(clock))).build()
    };
    let error = fetch(&client(Some(Later)), "/").await.unwrap_err();
    assert_eq!(error.code(), Code::TLS_HANDSHAKE);
    assert!(error.to_string().contains("sa/reviews is not valid here: it ended"), "{error}");
    assert_eq!(fetch(&client(None), "/").await.unwrap().status(), 200, "the control: the system's");
}

#[tokio::test]
async fn what_asks_for_https_never_goes_out_in_plaintext() {
    let ca = TestCa::new();
    let identity = ca.identity("default", "reviews");
    let (secure, plain) = (EchoServer::start_mtls("secure", &identity).await, EchoServer::start("plain").await);
    let send = async |client: &Client, scheme: &str| {
        let request = http::Request::get(format!("{scheme}://{TARGET}/")).body(String::new()).unwrap();
        client.send(request).await.map(|response| response.status().as_u16())
    };
    let auto = || Cluster { tls: UpstreamTls::Auto(MeshTls::default()), ..cluster("test") };
    for without in [cluster("test"), auto()] {
        // A matter of configuration: no further try helps.
        let retries = retrying(2, RetryOn { connect_failure: true, ..RetryOn::default() });
        let source = FixedSource::of(TARGET, snapshot_with(forward_with(Some(retries)), without, &[&plain]));
        let client = Client::builder(source).crypto(crypto()).identity(ca.watched("default", "web")).build();
        for scheme in ["https", "wss", "WSS"] {
            let error = send(&client, scheme).await.unwrap_err();
            let seen = (error.code(), error.blame(), error.retry(), error.attempts());
            assert_eq!(seen, (Code::HTTPS_TO_PLAINTEXT, Blame::Configuration, Retry::Never, 1), "{scheme}");
            assert!(error.to_string().contains("scheme is https"), "{error}");
        }
        // Nobody knows of these.
        for scheme in ["ftp", "grpcs", "unix"] {
            let error = send(&client, scheme).await.unwrap_err();
            assert_eq!((error.code(), error.blame()), (Code::BAD_TARGET, Blame::Caller), "{scheme}");
            assert!(error.to_string().contains(&format!("{scheme:?} is none of HTTP's")), "{error}");
        }
    }
    assert_eq!((plain.connections(), plain.requests()), (0, 0));
    // The controls: plaintext for whoever asks for no more, and TLS where policy has some.
    for scheme in ["http", "ws"] {
        assert_eq!(send(&builder(auto(), &plain).build(), scheme).await.unwrap(), 200);
    }
    let client = builder(auto(), &secure).identity(ca.watched("default", "web")).build();
    for scheme in ["https", "wss"] {
        assert_eq!(send(&client, scheme).await.unwrap(), 200);
    }
}

#[tokio::test]
async fn automatic_tls_follows_the_endpoint() {
    let ca = TestCa::new();
    let identity = ca.identity("default", "reviews");
    let (secure, plain) = (EchoServer::start_mtls("secure", &identity).await, EchoServer::start("plain").await);
    for (server, peer) in [(&secure, "spiffe://cluster.local/ns/default/sa/web"), (&plain, "-")] {
        let auto = Cluster { tls: UpstreamTls::Auto(MeshTls::default()), ..cluster("test") };
        let client = builder(auto, server).identity(ca.watched("default", "web")).build();
        let response = fetch(&client, "/").await.unwrap();
        assert_eq!(response.headers()["x-echo-peer"], peer);
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_used_for_new_connections() {
    let ca = TestCa::new();
    let server = EchoServer::start_mtls("reviews", &ca.identity("default", "reviews")).await;
    let (publisher, watched) = Watched::channel(Some(ca.identity("default", "before")));
    let mut secure = policy::mtls_cluster("test", &[REVIEWS]);
    secure.connection.max_requests_per_connection = Some(1);
    let client = builder(secure, &server).identity(watched).build();
    let peer = async || fetch(&client, "/").await.unwrap().headers()["x-echo-peer"].clone();
    assert_eq!(peer().await, "spiffe://cluster.local/ns/default/sa/before");
    publisher.publish(Some(ca.identity("default", "after")));
    assert_eq!(peer().await, "spiffe://cluster.local/ns/default/sa/after");
}

/// An identity of `own` with other bundles.
fn trusting(own: &TestCa, bundles: TrustBundles) -> Option<Arc<Identity>> {
    Some(Arc::new(own.identity("default", "web").trusting(bundles)))
}

pub(super) fn speaking(protocol: UpstreamProtocol) -> Cluster {
    let mut secure = policy::mtls_cluster("test", &[REVIEWS]);
    secure.connection = ConnectionOptions { protocol, idle_timeout: None, ..ConnectionOptions::default() };
    secure
}

/// Waits until requests fail for want of a server that is trusted.
async fn distrusted(client: &Client) {
    let code = loop {
        match fetch(client, "/").await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error.code(),
        }
    };
    assert_eq!(code, Code::TLS_HANDSHAKE);
}

#[tokio::test]
async fn s67_a_connection_whose_server_is_not_trusted_any_more_takes_no_request() {
    let ca = TestCa::new();
    let numbered = CertificateSpec { serial: Some(7), ..CertificateSpec::of(&ca.id("default", "reviews")) };
    let server = EchoServer::start_mtls("reviews", &ca.identity_from(&numbered)).await;
    // Its root was taken out, or it was revoked.
    let cases = [UpstreamProtocol::Http1, UpstreamProtocol::Http2].map(|p| [(p, false), (p, true)]);
    for (protocol, revoked) in cases.into_iter().flatten() {
        let (publisher, watched) = Watched::channel(Some(ca.identity("default", "web")));
        let client = builder(speaking(protocol), &server).identity(watched).build();
        let before = server.connections();
        assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
        // The control: another certificate, and another domain beside ours, change nothing for it.
        let elsewhere = TestCa::in_domain("elsewhere.test");
        let mut federated = ca.bundles();
        let theirs = TrustBundle::new([elsewhere.root().clone()]).unwrap();
        federated.insert(TrustDomain::new("elsewhere.test").unwrap(), theirs);
        publisher.publish(Some(Arc::new(ca.identity("default", "web").trusting(federated))));
        assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
        assert_eq!(server.connections(), before + 1, "{protocol:?}");

        let other = if revoked { ca.bundles_revoking(&[7]) } else { TestCa::new().bundles() };
        publisher.publish(trusting(&ca, other));
        distrusted(&client).await;
        publisher.publish(trusting(&ca, if revoked { ca.bundles_revoking(&[8]) } else { ca.bundles() }));
        // An endpoint that was refused is left alone for a moment.
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(5)).await;
        tokio::time::resume();
        assert_eq!(fetch(&client, "/").await.unwrap().status(), 200, "{protocol:?}");
    }
}

/// Its name may become somebody else's although its root stays.
#[tokio::test]
async fn s67_a_connection_whose_server_is_somebody_else_by_its_name_now_takes_no_request() {
    let ca = TestCa::new();
    let domain = |name: &str| TrustDomain::new(name).unwrap();
    let former = SpiffeId::for_service_account(&domain("other.test"), "default", "reviews").unwrap();
    let server = EchoServer::start_mtls("reviews", &ca.identity_from(&CertificateSpec::of(&former))).await;
    let aliased = |aliases: &[&str]| {
        let mut bundles = ca.bundles();
        aliases.iter().for_each(|alias| bundles.alias(domain(alias), domain("cluster.local")));
        bundles
    };
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let (publisher, watched) = Watched::channel(trusting(&ca, aliased(&["other.test"])));
        let client = builder(speaking(protocol), &server).identity(watched).build();
        let before = server.connections();
        assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
        // The control: trust changes, and nothing of its name, or of everybody's.
        let mut renamed = TrustBundles::single(domain("new.test"), TrustBundle::new([ca.root().clone()]).unwrap());
        ["other.test", "cluster.local"].into_iter().for_each(|f| renamed.alias(domain(f), domain("new.test")));
        for same in [aliased(&["other.test", "third.test"]), renamed] {
            publisher.publish(trusting(&ca, same));
            answers(&client, 50).await;
        }
        assert_eq!(server.connections(), before + 1, "{protocol:?}");
        let mut theirs = aliased(&["other.test"]);
        theirs.insert(domain("other.test"), TrustBundle::new([ca.root().clone()]).unwrap());
        publisher.publish(trusting(&ca, theirs));
        let refused = async {
            loop {
                match fetch(&client, "/").await {
                    Ok(_) => tokio::task::yield_now().await,
                    Err(error) => break error.code(),
                }
            }
        };
        let code = tokio::time::timeout(Duration::from_secs(60), refused).await;
        assert_eq!(code, Ok(Code::WRONG_PEER_IDENTITY), "{protocol:?}");
    }
}

/// What becomes of the runtime that connects first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    EndsBefore,
    EndsMeanwhile,
    StandsStill,
}

#[test]
fn s67_connections_of_one_runtime_are_watched_whatever_becomes_of_another() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let home = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let ca = TestCa::new();
    let cases = [First::EndsBefore, First::EndsMeanwhile, First::StandsStill].map(|case| [(case, false), (case, true)]);
    for (case, common) in cases.into_iter().flatten() {
        let server = home.block_on(EchoServer::start_mtls("reviews", &ca.identity("default", "reviews")));
        let (publisher, watched) = Watched::channel(Some(ca.identity("default", "web")));
        let (first, second) = (runtime(), runtime());
        let mut builder = builder(speaking(UpstreamProtocol::Http1), &server).identity(watched);
        if common {
            // One that runs, but for the case that all that it did ends.
            let handle = if case == First::StandsStill { home.handle() } else { first.handle() };
            builder = builder.runtime(handle.clone());
        }
        let client = builder.build();
        // In flight over a connection, so that the other runtime needs another one.
        server.behave(Behaviour::Hold);
        let held = client.clone();
        let task = first.spawn(async move { fetch(&held, "/").await.map(drop) });
        first.block_on(server.wait_for_requests(1));
        server.behave(Behaviour::Echo);
        let mut first = Some(first);
        if case == First::EndsBefore {
            first.take();
        }
        second.block_on(fetch(&client, "/")).unwrap();
        if case == First::EndsMeanwhile {
            first.take();
        }
        // The control: nothing changes by that.
        second.block_on(fetch(&client, "/")).unwrap();
        // Whose runtime for all has ended is not watched over by it, and connects anew.
        let anew = u64::from(common && case == First::EndsMeanwhile);
        assert_eq!(server.connections(), 2 + anew, "{case:?} {common}");
        publisher.publish(trusting(&ca, TestCa::new().bundles()));
        let distrusted =
            second.block_on(async { tokio::time::timeout(Duration::from_secs(60), distrusted(&client)).await });
        distrusted.unwrap_or_else(|_| panic!("{case:?} {common}: it takes no further request"));
        drop((task, first));
    }
}

/// By roots alone, whether of nobody in particular or of a trust domain.
#[tokio::test]
async fn s67_a_connection_by_roots_alone_whose_server_is_not_trusted_any_more_takes_no_request() {
    let ca = TestCa::new();
    let by_id = CertificateSpec { serial: Some(7), ..CertificateSpec::of(&ca.id("default", "reviews")) };
    let by_name = CertificateSpec { serial: Some(7), dns: vec!["api.test".into()], ..CertificateSpec::default() };
    let nobodys = |bundles: TrustBundles| TrustBundles::of_any_domain(bundles.iter().next().unwrap().1.clone());
    let same = |bundles: TrustBundles| bundles;
    for (spec, given) in [(&by_id, &same as &dyn Fn(_) -> _), (&by_id, &nobodys), (&by_name, &nobodys)] {
        let server = EchoServer::start_tls("api", ca.server_showing(ca.certified(spec), &[b"http/1.1"])).await;
        for other in [TestCa::new().bundles(), ca.bundles_revoking(&[7])] {
            let (publisher, roots) = Watched::channel(Some(given(ca.bundles())));
            let identities = Identities::from(ca.watched("default", "web")).with_roots([("ca".into(), roots)]);
            let tls = UpstreamTls::Roots(RootsTls { instance: Some("ca".into()), ..RootsTls::default() });
            let client = builder(Cluster { tls, ..cluster("test") }, &server).identity(identities).build();
            let before = server.connections();
            assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
            // The control: a list on which it is not.
            publisher.publish(Some(given(ca.bundles_revoking(&[8]))));
            answers(&client, 10).await;
            assert_eq!(server.connections(), before + 1);
            publisher.publish(Some(given(other)));
            let distrusted = tokio::time::timeout(Duration::from_secs(60), distrusted(&client)).await;
            distrusted.expect("it takes no further request");
        }
    }
}

/// Signs as another key does, and counts: a session that is resumed needs no signature.
#[derive(Debug)]
struct Counting(Arc<dyn SigningKey>, Arc<AtomicU64>);

#[derive(Debug)]
struct CountingSigner(Box<dyn Signer>, Arc<AtomicU64>);

impl SigningKey for Counting {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let signer = self.0.choose_scheme(offered)?;
        Some(Box::new(CountingSigner(signer, self.1.clone())))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl Signer for CountingSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.sign(message)
    }

    fn scheme(&self) -> SignatureScheme {
        self.0.scheme()
    }
}

#[tokio::test]
async fn s66_no_session_is_resumed_with_servers_outside_of_the_mesh_either() {
    let ca = TestCa::new();
    let files = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = files.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(&path, text).unwrap();
        path
    };
    let (chain, key) = ca.pem("default", "web");
    let shown =
        ClientCertificate { certificate_file: write("chain.pem", &chain), private_key_file: write("key.pem", &key) };
    let simple = |names: &[&str]| OriginatedTls {
        sni: Some("api.test".to_owned()),
        auto_host_sni: false,
        subject_alt_names: names.iter().map(|name| StringMatcher::exact(*name)).collect(),
        ca_file: Some(write("root.pem", ca.root_pem())),
        insecure_skip_verify: false,
    };
    let roots = RootsTls { instance: Some("ca".into()), ..RootsTls::default() };
    let root = TrustBundle::from_pem(ca.root_pem().as_bytes()).unwrap();
    for tls in [
        UpstreamTls::Simple(simple(&[])),
        UpstreamTls::Simple(simple(&["api.test"])),
        UpstreamTls::Mutual(simple(&[]), shown),
        UpstreamTls::Roots(roots),
    ] {
        let spec = CertificateSpec { dns: vec!["api.test".into()], ..CertificateSpec::default() };
        let (mut certified, signatures) = (ca.certified(&spec), Arc::<AtomicU64>::default());
        certified.key = Arc::new(Counting(certified.key, signatures.clone()));
        let server = EchoServer::start_tls("api", ca.server_showing(certified, &[b"http/1.1"])).await;
        let mut cluster = Cluster { tls: tls.clone(), ..cluster("test") };
        cluster.connection.max_requests_per_connection = Some(1);
        let given = Watched::fixed(Some(TrustBundles::of_any_domain(root.clone())));
        let identities = Identities::from(ca.watched("default", "web")).with_roots([("ca".into(), given)]);
        let client = builder(cluster, &server).identity(identities).build();
        answers(&client, 3).await;
        assert_eq!((server.connections(), signatures.load(Ordering::Relaxed)), (3, 3), "{tls:?}");
    }
}

#[tokio::test]
async fn s67_what_is_in_flight_to_a_server_that_is_not_trusted_any_more_has_seconds_to_end() {
    let ca = TestCa::new();
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        for (passed, ends) in [(Duration::from_secs(2), true), (Duration::from_secs(6), false)] {
            let server = EchoServer::start_mtls("reviews", &ca.identity("default", "reviews")).await;
            let (publisher, watched) = Watched::channel(Some(ca.identity("default", "web")));
            let client = builder(speaking(protocol), &server).identity(watched).build();
            server.behave(Behaviour::Hold);
            let meanwhile = async {
                server.wait_for_requests(1).await;
                server.behave(Behaviour::Echo);
                publisher.publish(trusting(&ca, TestCa::new().bundles()));
                distrusted(&client).await;
                tokio::time::pause();
                tokio::time::advance(passed).await;
                tokio::time::resume();
                // Of a connection that was cut nothing comes, whatever is sent.
                if ends {
                    server.release();
                }
            };
            let both = async { tokio::join!(fetch(&client, "/"), meanwhile) };
            let (answer, ()) = tokio::time::timeout(Duration::from_secs(60), both).await.expect("it ends");
            assert_eq!(answer.is_ok(), ends, "{protocol:?} {passed:?}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_connection_of_the_mesh_has_an_hour_and_another_one_has_no_end() {
    let ca = TestCa::new();
    for (cluster, secure, minutes, connections) in [
        (speaking(UpstreamProtocol::Http2), true, 53, 1),
        (speaking(UpstreamProtocol::Http2), true, 61, 2),
        (speaking(UpstreamProtocol::Http1), true, 61, 2),
        (Cluster { tls: UpstreamTls::Roots(RootsTls::default()), ..speaking(UpstreamProtocol::Http1) }, true, 61, 2),
        (Cluster { tls: UpstreamTls::Disable, ..speaking(UpstreamProtocol::Http2) }, false, 61, 1),
    ] {
        let by_roots = matches!(cluster.tls, UpstreamTls::Roots(_));
        let server = match secure {
            true if by_roots => {
                let shown = ca.certified(&CertificateSpec::of(&ca.id("default", "reviews")));
                EchoServer::start_tls("reviews", ca.server_showing(shown, &[b"http/1.1"])).await
            }
            true => EchoServer::start_mtls("reviews", &ca.identity("default", "reviews")).await,
            false => EchoServer::start("reviews").await,
        };
        let client = builder(cluster, &server).identity(ca.watched("default", "web")).build();
        // In steps: a destination that nobody asks for is forgotten, and its connections with it.
        for _ in 0..minutes {
            assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(60)).await;
            tokio::time::resume();
        }
        assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
        assert_eq!(server.connections(), connections, "{minutes} minutes, secure: {secure}");
    }
}

#[tokio::test]
async fn ordinary_tls_checks_the_roots_and_the_names() {
    let ca = TestCa::new();
    let spec = CertificateSpec { dns: vec!["api.test".into()], ..CertificateSpec::default() };
    let server = EchoServer::start_tls("api", ca.server_showing(ca.certified(&spec), &[b"http/1.1"])).await;
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), ca.root_pem()).unwrap();
    let tls = |sni: &str, names: &[&str]| OriginatedTls {
        sni: Some(sni.to_owned()),
        auto_host_sni: false,
        subject_alt_names: names.iter().map(|name| StringMatcher::exact(*name)).collect(),
        ca_file: Some(roots.path().to_str().unwrap().to_owned()),
        insecure_skip_verify: false,
    };
    let missing = OriginatedTls { ca_file: Some("/nowhere/ca.pem".into()), ..tls("api.test", &[]) };
    let careless = OriginatedTls { insecure_skip_verify: true, ..missing.clone() };
    for (tls, expected) in [
        (tls("api.test", &[]), Ok("api")),
        (tls("other.test", &[]), Err(Code::WRONG_PEER_IDENTITY)),
        (tls("other.test", &["api.test"]), Ok("api")),
        (tls("api.test", &["other.test"]), Err(Code::WRONG_PEER_IDENTITY)),
        (missing, Err(Code::TLS_HANDSHAKE)),
        (careless, Ok("api")),
    ] {
        let client = builder(Cluster { tls: UpstreamTls::Simple(tls.clone()), ..cluster("test") }, &server).build();
        let answer = fetch(&client, "/").await;
        let answer = answer.as_ref().map(server_of).map_err(Fault::code);
        assert_eq!(answer, expected, "{tls:?}");
    }
}

#[tokio::test]
async fn s69_a_servers_chain_that_could_be_put_together_in_many_ways_is_refused_whatever_the_tls() {
    let ca = TestCa::new();
    let spec = CertificateSpec { dns: vec!["api.test".into()], ..CertificateSpec::of(&ca.id("default", "reviews")) };
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), ca.root_pem()).unwrap();
    let by_file = |names: &[&str]| OriginatedTls {
        sni: Some("api.test".to_owned()),
        auto_host_sni: false,
        subject_alt_names: names.iter().map(|name| StringMatcher::exact(*name)).collect(),
        ca_file: Some(roots.path().to_str().unwrap().to_owned()),
        insecure_skip_verify: false,
    };
    let any = TrustBundles::of_any_domain(TrustBundle::from_pem(ca.root_pem().as_bytes()).unwrap());
    for (shown, taken) in [(TestCa::tangled(&spec, 8), false), (ca.certified(&spec), true)] {
        let server = EchoServer::start_tls("api", ca.server_showing(shown, &[b"http/1.1"])).await;
        for tls in [
            UpstreamTls::Simple(by_file(&[])),
            UpstreamTls::Simple(by_file(&["api.test"])),
            UpstreamTls::Roots(RootsTls { instance: Some("ca".into()), ..RootsTls::default() }),
            UpstreamTls::Mesh(MeshTls::default()),
        ] {
            let identities = Identities::from(ca.watched("default", "web"))
                .with_roots([("ca".into(), Watched::fixed(Some(any.clone())))]);
            let cluster = Cluster { tls: tls.clone(), ..cluster("test") };
            let answer = fetch(&builder(cluster, &server).identity(identities).build(), "/").await;
            match answer {
                Ok(_) => assert!(taken, "{tls:?}"),
                Err(error) => {
                    let refused = error.to_string().contains("MaximumPathBuildCallsExceeded");
                    assert!(!taken && refused, "{tls:?}: {error}");
                }
            }
        }
    }
}

/// No CA means the system's, and never nobody in particular.
#[tokio::test]
async fn s88_without_a_ca_of_its_own_ordinary_tls_trusts_nobody_whom_the_system_does_not_know() {
    let ca = TestCa::new();
    let spec = CertificateSpec { dns: vec!["api.test".into()], ..CertificateSpec::default() };
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), ca.root_pem()).unwrap();
    let file = Some(roots.path().to_str().unwrap().to_owned());
    for (ca_file, taken) in [(None, false), (file, true)] {
        let server = EchoServer::start_tls("api", ca.server_showing(ca.certified(&spec), &[b"http/1.1"])).await;
        for names in [vec![], vec![StringMatcher::exact("api.test")]] {
            let tls = OriginatedTls {
                sni: Some("api.test".to_owned()),
                auto_host_sni: false,
                subject_alt_names: names,
                ca_file: ca_file.clone(),
                insecure_skip_verify: false,
            };
            let client = builder(Cluster { tls: UpstreamTls::Simple(tls), ..cluster("test") }, &server).build();
            let answer = fetch(&client, "/").await.map(|answer| answer.status().as_u16());
            assert_eq!(answer.map_err(|e| e.code()), if taken { Ok(200) } else { Err(Code::TLS_HANDSHAKE) });
        }
        assert_eq!(server.requests() > 0, taken, "it is told nothing");
    }
}

#[tokio::test]
async fn b10_by_roots_alone_a_client_stays_unknown_and_checks_the_server_a29_a87() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let by_name = CertificateSpec { dns: vec!["api.test".into()], ..CertificateSpec::default() };
    let by_id = CertificateSpec::of(&ca.id("default", "reviews"));
    let start = async |spec| EchoServer::start_tls("api", ca.server_showing(ca.certified(spec), &[b"http/1.1"])).await;
    let [named, meshed] = [start(&by_name).await, start(&by_id).await];
    let plain = |ca: &TestCa| TrustBundles::of_any_domain(TrustBundle::from_pem(ca.root_pem().as_bytes()).unwrap());
    for (server, roots, names, expected) in [
        (&named, Some(plain(&ca)), &["api.test"][..], Ok("api")),
        (&named, Some(plain(&ca)), &[], Ok("api")),
        (&meshed, Some(plain(&ca)), &[REVIEWS], Ok("api")),
        (&named, Some(plain(&ca)), &["other.test"], Err(Code::WRONG_PEER_IDENTITY)),
        (&named, Some(plain(&other)), &[], Err(Code::TLS_HANDSHAKE)),
        (&named, None, &[], Err(Code::TLS_HANDSHAKE)),
        // Roots of trust domains vouch for SPIFFE IDs, and for nothing else.
        (&meshed, Some(ca.bundles()), &[REVIEWS], Ok("api")),
        (&meshed, Some(ca.bundles()), &["spiffe://cluster.local/ns/default/sa/web"], Err(Code::WRONG_PEER_IDENTITY)),
        (&named, Some(ca.bundles()), &[], Err(Code::TLS_HANDSHAKE)),
        (&meshed, Some(TestCa::in_domain("partner.test").bundles()), &[], Err(Code::TLS_HANDSHAKE)),
    ] {
        let names = names.iter().map(|name| StringMatcher::exact(*name)).collect();
        let tls = RootsTls { names, instance: Some("ca".into()), ..RootsTls::default() };
        let identities =
            Identities::from(ca.watched("default", "web")).with_roots([("ca".into(), Watched::fixed(roots))]);
        let cluster = Cluster { tls: UpstreamTls::Roots(tls.clone()), ..cluster("test") };
        let answer = fetch(&builder(cluster, server).identity(identities).build(), "/").await;
        if let Ok(answer) = &answer {
            assert_eq!(answer.headers()["x-echo-peer"], "-", "nothing is shown, though there is a certificate");
        }
        assert_eq!(answer.as_ref().map(server_of).map_err(Fault::code), expected, "{tls:?}");
    }
}

#[tokio::test]
async fn b10_roots_of_another_instance_take_effect_for_new_connections_a29() {
    let (home, partner) = (TestCa::new(), TestCa::in_domain("partner.test"));
    let known = TrustBundle::from_pem(home.root_pem().as_bytes()).unwrap();
    let server = partner.identity("default", "reviews").trusting(home.bundles());
    let server = EchoServer::start_mtls("reviews", &server).await;
    let (publisher, roots) = Watched::channel(Some(TrustBundles::of_any_domain(known)));
    let identities = Identities::from(home.watched("default", "web")).with_roots([("ca".into(), roots)]);
    let instances = Instances { certificate: None, roots: Some("ca".into()) };
    let mut secure = Cluster { tls: UpstreamTls::Mesh(MeshTls { instances, ..MeshTls::default() }), ..cluster("test") };
    secure.connection.max_requests_per_connection = Some(1);
    let client = builder(secure, &server).identity(identities).build();
    let strange = fetch(&client, "/").await.unwrap_err();
    assert_eq!(strange.code(), Code::TLS_HANDSHAKE, "the control: {strange}");
    // An endpoint that failed is not asked again at once.
    tokio::time::pause();
    clock::pass(Duration::from_secs(2)).await;
    tokio::time::resume();
    let theirs = TrustBundle::from_pem(partner.root_pem().as_bytes()).unwrap();
    for roots in [TrustBundles::of_any_domain(theirs), partner.bundles()] {
        publisher.publish(Some(roots));
        let answer = fetch(&client, "/").await.unwrap();
        assert_eq!(answer.headers()["x-echo-peer"], "spiffe://cluster.local/ns/default/sa/web");
    }
    publisher.publish(Some(home.bundles()));
    assert_eq!(fetch(&client, "/").await.unwrap_err().code(), Code::TLS_HANDSHAKE);
}

#[tokio::test]
async fn s65_a_wildcard_stands_for_one_label() {
    let ca = TestCa::new();
    let spec = CertificateSpec { dns: vec!["*.api.test".into()], ..CertificateSpec::default() };
    let server = EchoServer::start_tls("api", ca.server_showing(ca.certified(&spec), &[b"http/1.1"])).await;
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), ca.root_pem()).unwrap();
    for (sni, taken) in [("eu.api.test", true), ("a.eu.api.test", false), ("api.test", false), ("euapi.test", false)] {
        let tls = OriginatedTls {
            sni: Some(sni.to_owned()),
            auto_host_sni: false,
            subject_alt_names: Vec::new(),
            ca_file: Some(roots.path().to_str().unwrap().to_owned()),
            insecure_skip_verify: false,
        };
        let client = builder(Cluster { tls: UpstreamTls::Simple(tls), ..cluster("test") }, &server).build();
        assert_eq!(fetch(&client, "/").await.is_ok(), taken, "{sni}");
    }
}

#[test]
fn a_client_needs_no_runtime_to_be_built() {
    let source: Arc<FixedSource> = FixedSource::new();
    drop(Client::builder(source).build());
}

#[tokio::test]
async fn what_connections_need_that_are_open_already_no_request_lacks_and_none_is_said_to() {
    let ca = TestCa::new();
    let server = EchoServer::start_mtls("reviews", &ca.identity("default", "reviews")).await;
    let (publisher, identity) = Watched::channel(Some(ca.identity("default", "web")));
    let client = || {
        let mut secure = policy::mtls_cluster("test", &[]);
        secure.connection.protocol = UpstreamProtocol::Http2;
        builder(secure, &server).identity(identity.clone()).build()
    };
    let explained =
        |client: &Client| client.explain(&Request::get(format!("http://{TARGET}/")).body(()).unwrap()).error;
    let (connected, other) = (client(), client());
    assert_eq!(fetch(&connected, "/").await.unwrap().status(), 200);
    publisher.publish(None);
    assert_eq!(explained(&connected), None);
    assert_eq!(fetch(&connected, "/").await.unwrap().status(), 200);
    // The control: one that has no connection yet.
    assert_eq!(fetch(&other, "/").await.unwrap_err().code(), Code::NO_IDENTITY);
    let said = explained(&other).unwrap();
    assert!(said.starts_with(&Code::NO_IDENTITY.to_string()), "{said}");
}
