//! Who gets in: modes, first bytes, certificates, changes at run time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use mesh_core::error::BoxError;
use mesh_core::id::{SpiffeId, TrustDomain};
use mesh_core::identity::{Identity, SpiffeServerVerifier, TrustBundle, TrustBundles};
use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, InboundState, InboundTls, Instances, PathMatch,
    Permission, Principal, StringMatcher,
};
use mesh_core::source::{Identities, Watched};
use mesh_server::{Config, Refusal};
use mesh_testkit::{CertificateSpec, TestCa, crypto};

use crate::kit::{Http, World, client_tls, eventually, get, identity_trusting, listener, policy, spawn, text, within};
use crate::raw::{DATA, GOAWAY, HEADERS, PREFACE, SETTINGS, frame, get as raw_get, next, request, status};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n";

/// What a raw plaintext client gets back.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    // The server may have closed already: what counts is what it answered.
    let _ = tcp.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = within(tcp.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn peer_of() -> impl Fn(
    http::Request<mesh_server::Body>,
) -> std::future::Ready<Result<http::Response<http_body_util::Full<bytes::Bytes>>, BoxError>>
+ Clone {
    |_| {
        let peer = mesh_server::caller().expect("the server knows it");
        let id = peer.spiffe_id.as_ref().map_or("plaintext".to_owned(), ToString::to_string);
        std::future::ready(text(id))
    }
}

#[tokio::test]
async fn s70_strict_refuses_plaintext_and_says_why_to_http1() {
    let world = World::hello(InboundTls::Strict).await;
    let answer = raw(world.address, REQUEST).await;
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
    assert!(answer.contains("MESH-2001") && answer.contains("PERMISSIVE"), "{answer}");
    assert_eq!(raw(world.address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await, "");
    assert_eq!(raw(world.address, b"\0\0\0").await, "");
    assert_eq!(world.server.stats().refused(Refusal::Plaintext), 3);
    // The first byte of a handshake, and no handshake.
    raw(world.address, b"\x16GET / HTTP/1.1\r\nhost: reviews\r\n\r\n").await;
    assert_eq!(world.server.stats().refused(Refusal::Handshake), 1);
    assert_eq!(world.metrics_text(), "", "no request was seen");
    assert_eq!(world.mutual(Http::One).await.get("/").await.unwrap().0, 200, "the control");
}

#[tokio::test]
async fn permissive_lets_the_same_plaintext_through() {
    let world = World::hello(InboundTls::Permissive).await;
    let answer = raw(world.address, REQUEST).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hello"), "{answer}");
    assert_eq!(world.server.stats().refused(Refusal::Plaintext), 0);
    assert_eq!(plaintext_peers(&world), ["127.0.0.1"]);
}

/// Who has had a plaintext connection, whether it has ended or not.
fn plaintext_peers(world: &World) -> Vec<String> {
    world.server.stats().plaintext_peers().into_iter().filter_map(|(ip, _)| Some(ip?.to_string())).collect()
}

#[tokio::test]
async fn plaintext_connections_are_counted_while_they_are_open() {
    let world = World::hello(InboundTls::Permissive).await;
    let open = |wanted: u64| {
        let stats = world.server.stats();
        eventually(move || (stats.plaintext_peers().iter().map(|(_, open)| open).sum::<u64>() == wanted).then_some(()))
    };
    let (mut one, mut two) = (world.plain(Http::One).await, world.plain(Http::Two).await);
    assert_eq!((one.get("/").await.unwrap().0, two.get("/").await.unwrap().0), (200, 200));
    open(2).await;
    drop(one);
    open(1).await;
    drop(two);
    open(0).await;
    assert_eq!(plaintext_peers(&world), ["127.0.0.1"], "who it was is still known");
}

#[tokio::test]
async fn permissive_serves_both_on_one_port_with_the_right_peer() {
    let service = tower::service_fn(peer_of());
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    for version in [Http::One, Http::Two] {
        let plain = world.plain(version).await.get("/").await.unwrap();
        assert_eq!(plain, (200, "plaintext".to_owned()), "{version:?}");
        let mutual = world.mutual(version).await.get("/").await.unwrap();
        assert_eq!(mutual, (200, "spiffe://cluster.local/ns/default/sa/productpage".to_owned()), "{version:?}");
    }
    // Only plaintext peers are listed as such.
    assert_eq!(plaintext_peers(&world), ["127.0.0.1"]);
}

#[tokio::test]
async fn clients_without_a_valid_certificate_of_the_mesh_are_refused() {
    let world = World::hello(InboundTls::Strict).await;
    let ca = &world.ca;
    for version in [Http::One, Http::Two] {
        let showing = |certificate| Arc::new(ca.client_showing(certificate, &[version.alpn()]));
        let no_id = CertificateSpec { dns: vec!["reviews".to_owned()], ..CertificateSpec::default() };
        for (who, tls) in [
            // All of them trust the server, so the refusal is the server's.
            ("another CA", client_tls(&identity_trusting(&TestCa::new(), "productpage", ca), version)),
            ("expired", client_tls(&ca.expired("default", "productpage"), version)),
            ("another trust domain", client_tls(&ca.wrong_domain("default", "productpage"), version)),
            ("no SPIFFE ID", showing(Some(ca.certified(&no_id)))),
            ("no certificate", showing(None)),
        ] {
            let before = world.server.stats().refused(Refusal::Handshake);
            // TLS 1.3: the client learns of the refusal with its first read.
            let refused = match world.mutual_with(tls, version).await {
                Ok(mut client) => client.get("/").await.is_err(),
                Err(_) => true,
            };
            assert!(refused, "{who} over {version:?}");
            assert_eq!(world.server.stats().refused(Refusal::Handshake), before + 1, "{who} over {version:?}");
        }
        assert_eq!(world.mutual(version).await.get("/").await.unwrap().0, 200, "{version:?}");
    }
}

#[tokio::test]
async fn s72_http2_over_tls_takes_an_agreement() {
    let world = World::hello(InboundTls::Strict).await;
    // Without an agreement HTTP/1.1 is spoken; Istio's sidecars may agree on nothing but that they are the mesh's.
    for (alpn, version) in [
        (&[&b"h2"[..]][..], Http::Two),
        (&[b"istio-h2", b"istio", b"h2"], Http::Two),
        (&[b"istio-peer-exchange", b"istio"], Http::Two),
        (&[b"istio-peer-exchange", b"istio"], Http::One),
        (&[b"http/1.1"], Http::One),
        (&[], Http::One),
    ] {
        assert_eq!(within(world.offering(alpn, version)).await.unwrap(), 200, "{alpn:?} {version:?}");
    }
    assert_eq!(world.server.stats().refused(Refusal::Alpn), 0);
    for (count, alpn) in [&[][..], &[&b"http/1.1"[..]]].into_iter().enumerate() {
        assert!(within(world.offering(alpn, Http::Two)).await.is_err(), "{alpn:?}");
        assert_eq!(world.server.stats().refused(Refusal::Alpn), count as u64 + 1, "{alpn:?}");
    }
    // Without TLS nothing can be agreed on.
    let world = World::hello(InboundTls::Permissive).await;
    assert_eq!(world.plain(Http::Two).await.get("/").await.unwrap().0, 200);
}

#[tokio::test]
async fn s72_a_peer_that_says_goodbye_in_the_handshake_is_gone() {
    let world = World::hello(InboundTls::Strict).await;
    let client = client_tls(&world.ca.identity("default", "productpage"), Http::Two);
    let mut client = rustls::ClientConnection::new(client, "mesh".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let goodbye = [21, 3, 3, 0, 2, 1, 0];
    for (count, cut) in [hello.len(), 0].into_iter().enumerate() {
        let bytes = [&hello[..cut], &goodbye.repeat(3)].concat();
        raw(world.address, &bytes).await;
        let stats = world.server.stats();
        let refused = || stats.refused(Refusal::Handshake) + stats.refused(Refusal::Plaintext);
        eventually(|| (refused() == count as u64 + 1).then_some(())).await;
    }
    assert_eq!(world.mutual(Http::Two).await.get("/").await.unwrap().0, 200);
}

#[tokio::test]
async fn disable_serves_plaintext_and_closes_tls() {
    let world = World::hello(InboundTls::Disable).await;
    assert_eq!(world.plain(Http::One).await.get("/").await.unwrap().0, 200);
    let identity = world.ca.identity("default", "productpage");
    assert!(world.mutual_as(&identity, Http::One).await.is_err());
    assert_eq!(world.server.stats().refused(Refusal::TlsDisabled), 1);
    assert!(world.server.stats().plaintext_peers().is_empty(), "plaintext is what policy wants here");
}

#[tokio::test]
async fn s52_nothing_is_accepted_without_policy_or_certificate() {
    let world = World::hello(InboundTls::Permissive).await;
    let identity = world.ca.identity("default", "productpage");
    world.policy.publish(InboundState::Pending);
    assert_eq!(raw(world.address, REQUEST).await, "");
    assert!(world.mutual_as(&identity, Http::Two).await.is_err());
    world.policy.publish(InboundState::Failed("no such listener".into()));
    assert_eq!(raw(world.address, REQUEST).await, "");
    assert_eq!(world.server.stats().refused(Refusal::NoPolicy), 3);

    world.identity.publish(None);
    world.policy.publish(policy(InboundTls::Strict));
    assert!(world.mutual_as(&identity, Http::Two).await.is_err());
    assert_eq!(world.server.stats().refused(Refusal::NoIdentity), 1);
    eventually(|| (!world.server.readiness().is_ready()).then_some(())).await;

    world.identity.publish(Some(world.ca.identity("default", "reviews")));
    assert_eq!(world.mutual_as(&identity, Http::Two).await.unwrap().get("/").await.unwrap().0, 200);
    eventually(|| world.server.readiness().is_ready().then_some(())).await;
}

#[tokio::test]
async fn turning_strict_ends_plaintext_connections_after_their_request_and_keeps_mutual_ones() {
    let (began, mut begins) = tokio::sync::mpsc::channel(8);
    let (open, gate) = tokio::sync::watch::channel(false);
    let service = tower::service_fn(move |request: http::Request<mesh_server::Body>| {
        let (began, mut gate) = (began.clone(), gate.clone());
        async move {
            if request.uri().path() == "/slow" {
                began.send(()).await?;
                gate.wait_for(|open| *open).await?;
            }
            text("done")
        }
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    let mut mutual = world.mutual(Http::Two).await;
    let mut idle = world.plain(Http::One).await;
    let mut busy = world.plain(Http::Two).await;
    for client in [&mut mutual, &mut idle, &mut busy] {
        assert_eq!(client.get("/").await.unwrap().0, 200);
    }
    let in_flight = spawn(busy.send(get("/slow")));
    within(begins.recv()).await.unwrap();

    world.policy.publish(policy(InboundTls::Strict));
    within(idle.ended).await.unwrap();
    assert!(raw(world.address, REQUEST).await.starts_with("HTTP/1.1 403"));
    assert_eq!(mutual.get("/").await.unwrap().0, 200);
    open.send_replace(true);
    assert_eq!(within(in_flight).await.unwrap().unwrap().status(), 200);
    within(busy.ended).await.unwrap();
    assert_eq!(mutual.get("/").await.unwrap().0, 200);
}

#[tokio::test]
async fn a_new_certificate_serves_new_connections_and_old_ones_stay() {
    let world = World::hello(InboundTls::Strict).await;
    let mut old = world.mutual(Http::Two).await;
    world.identity.publish(Some(world.ca.identity("default", "reviews-renewed")));
    let mut new = world.mutual(Http::Two).await;
    assert!(old.server.as_deref().is_some_and(|id| id.ends_with("/sa/reviews")));
    assert!(new.server.as_deref().is_some_and(|id| id.ends_with("/sa/reviews-renewed")));
    assert_eq!(old.get("/").await.unwrap().0, 200);
    assert_eq!(new.get("/").await.unwrap().0, 200);
}

#[tokio::test]
async fn s67_a_connection_whose_peer_is_not_trusted_any_more_ends() {
    let world = World::hello(InboundTls::Strict).await;
    for version in [Http::One, Http::Two] {
        let mut known = world.mutual(version).await;
        assert_eq!(known.get("/").await.unwrap().0, 200);
        // The control: another certificate, and another domain beside ours, change nothing for it.
        let mut federated = world.ca.bundles();
        let elsewhere = TestCa::in_domain("elsewhere.test");
        federated
            .insert(TrustDomain::new("elsewhere.test").unwrap(), TrustBundle::new([elsewhere.root().clone()]).unwrap());
        world.identity.publish(Some(Arc::new(world.ca.identity("default", "reviews").trusting(federated))));
        assert_eq!(known.get("/").await.unwrap().0, 200);

        world.identity.publish(Some(identity_trusting(&world.ca, "reviews", &TestCa::new())));
        let _ = within(known.ended).await;
        world.identity.publish(Some(world.ca.identity("default", "reviews")));
    }
}

#[tokio::test]
async fn s67_a_connection_whose_peer_is_revoked_ends() {
    let world = World::hello(InboundTls::Strict).await;
    let numbered = |account: &str, serial| {
        let id = world.ca.id("default", account);
        world.ca.identity_from(&CertificateSpec { serial: Some(serial), ..CertificateSpec::of(&id) })
    };
    let revoking = |serials: &[u64]| {
        let bundles = world.ca.bundles_revoking(serials);
        world.identity.publish(Some(Arc::new(world.ca.identity("default", "reviews").trusting(bundles))));
    };
    for version in [Http::One, Http::Two] {
        revoking(&[]);
        let mut stolen = world.mutual_as(&numbered("productpage", 7), version).await.unwrap();
        let mut other = world.mutual_as(&numbered("productpage", 8), version).await.unwrap();
        for client in [&mut stolen, &mut other] {
            assert_eq!(client.get("/").await.unwrap().0, 200);
        }
        revoking(&[7]);
        let _ = within(stolen.ended).await;
        let again = world.mutual_as(&numbered("productpage", 7), version).await;
        let again = async { Ok::<_, mesh_core::error::BoxError>(again?.get("/").await?.0) };
        assert!(within(again).await.is_err(), "{version:?}");
        // The control: one that no list names.
        assert_eq!(other.get("/").await.unwrap().0, 200);
    }
}

/// Over HTTP/2: the next of its frames of that kind, its stream and what it carries.
async fn answered(io: &mut (impl tokio::io::AsyncRead + Unpin), kind: u8) -> (u32, Vec<u8>) {
    loop {
        let (of, _, stream, payload) = within(next(io)).await.expect("the connection goes on");
        if of == kind {
            return (stream, payload);
        }
    }
}

/// A peer that puts off to say that it has heard of the end of its connection makes no request meanwhile.
#[tokio::test]
async fn s67_a_revoked_peer_that_holds_its_connection_open_is_served_nothing() {
    for narrowed_before in [false, true] {
        let world = World::hello(InboundTls::Strict).await;
        let id = world.ca.id("default", "productpage");
        let identity = world.ca.identity_from(&CertificateSpec { serial: Some(7), ..CertificateSpec::of(&id) });
        let tcp = TcpStream::connect(world.address).await.unwrap();
        let tls = tokio_rustls::TlsConnector::from(client_tls(&identity, Http::Two));
        let mut tls = tls.connect("mesh".try_into().unwrap(), tcp).await.unwrap();
        let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &request(1, &raw_get("/", &[]))].concat();
        tls.write_all(&hello).await.unwrap();
        let (stream, head) = answered(&mut tls, HEADERS).await;
        assert_eq!((stream, status(&head)), (1, 200));
        if narrowed_before {
            // Something is shut to it, and nothing that it asks for.
            let rule = AuthorizationRule {
                name: "r".to_owned(),
                permissions: vec![Permission::Path(PathMatch::Exact("/x".into()))],
                principals: vec![Principal::Any],
            };
            let deny = AuthorizationPolicy::new("p", AuthorizationAction::Deny);
            let mut narrower = listener(InboundTls::Strict);
            narrower.authorization = vec![AuthorizationPolicy { rules: vec![rule], ..deny }];
            world.policy.publish(InboundState::Ready(Arc::new(narrower)));
            answered(&mut tls, GOAWAY).await;
        }
        let revoked = world.ca.bundles_revoking(&[7]);
        world.identity.publish(Some(Arc::new(world.ca.identity("default", "reviews").trusting(revoked))));
        if !narrowed_before {
            // Its PING is not answered: more requests are taken.
            answered(&mut tls, GOAWAY).await;
        }
        for id in (3..).step_by(2) {
            tls.write_all(&request(id, &raw_get("/", &[]))).await.unwrap();
            let (stream, head) = answered(&mut tls, HEADERS).await;
            assert_eq!(stream, id);
            if status(&head) == 403 {
                break;
            }
            // The first time nothing says when the revocation has been heard of; the connection lives for five seconds.
            assert!(narrowed_before && status(&head) == 200, "{}", status(&head));
        }
    }
}

/// Nor does one in plaintext where policy demands mutual TLS meanwhile, and it is told why.
#[tokio::test]
async fn s51_over_http2_a_plaintext_peer_that_holds_its_connection_open_is_told_of_strict() {
    let world = World::hello(InboundTls::Permissive).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &request(1, &raw_get("/", &[]))].concat();
    tcp.write_all(&hello).await.unwrap();
    let (stream, head) = answered(&mut tcp, HEADERS).await;
    assert_eq!((stream, status(&head)), (1, 200));
    world.policy.publish(policy(InboundTls::Strict));
    answered(&mut tcp, GOAWAY).await;
    tcp.write_all(&request(3, &raw_get("/", &[]))).await.unwrap();
    let (stream, head) = answered(&mut tcp, HEADERS).await;
    assert_eq!((stream, status(&head)), (3, 403));
    let (_, body) = answered(&mut tcp, DATA).await;
    assert!(String::from_utf8_lossy(&body).contains("MESH-2001"), "{}", String::from_utf8_lossy(&body));
}

#[tokio::test]
async fn b10_a_listeners_instance_is_who_the_server_is_and_nothing_stands_in_for_it_a29() {
    let (home, partner) = (TestCa::new(), TestCa::in_domain("partner.test"));
    let named = [("outer".into(), partner.watched("default", "gate"))];
    let identities = Identities::new(home.watched("default", "reviews"), named);
    let as_instance = |name: Option<&str>, max_connections| {
        let mut listener = listener(InboundTls::Strict);
        listener.instances = Instances::one(name.map(Arc::from));
        listener.limits.max_connections = max_connections;
        InboundState::Ready(Arc::new(listener))
    };
    let outer = as_instance(Some("outer"), None);
    let hello = tower::service_fn(|_: http::Request<mesh_server::Body>| async { text("hello") });
    let world = World::start_with(outer.clone(), Config::default(), |server| server.identity(identities), hello).await;
    let (ours, theirs) = (home.identity("default", "productpage"), partner.identity("default", "visitor"));
    for version in [Http::One, Http::Two] {
        world.policy.publish(outer.clone());
        let mut visitor = world.mutual_as(&theirs, version).await.unwrap();
        assert_eq!(visitor.server.as_deref(), Some("spiffe://partner.test/ns/default/sa/gate"));
        assert_eq!(visitor.get("/").await.unwrap().0, 200);
        assert!(world.mutual_as(&ours, version).await.is_err(), "home is a stranger there");
        // The control: another change of the listener costs no connection.
        world.policy.publish(as_instance(Some("outer"), Some(9)));
        assert_eq!(visitor.get("/").await.unwrap().0, 200);

        world.policy.publish(as_instance(None, None));
        let _ = within(visitor.ended).await;
        let mut own = world.mutual_as(&ours, version).await.unwrap();
        assert_eq!(own.server.as_deref(), Some("spiffe://cluster.local/ns/default/sa/reviews"));
        assert_eq!(own.get("/").await.unwrap().0, 200);
    }
    eventually(|| world.server.readiness().is_ready().then_some(())).await;
    world.policy.publish(as_instance(Some("nobody's"), None));
    assert!(world.mutual_as(&ours, Http::Two).await.is_err());
    assert_eq!(world.server.stats().refused(Refusal::NoIdentity), 1);
    eventually(|| (!world.server.readiness().is_ready()).then_some(())).await;
}

#[tokio::test]
async fn b10_a_listeners_roots_may_be_of_another_instance_and_are_followed_a29() {
    let (home, partner) = (TestCa::new(), TestCa::in_domain("partner.test"));
    let (publisher, roots) = Watched::channel(Some(partner.bundles()));
    let identities = Identities::from(home.watched("default", "reviews")).with_roots([("guests".into(), roots)]);
    let mut listener = listener(InboundTls::Strict);
    listener.instances.roots = Some("guests".into());
    let strict = InboundState::Ready(Arc::new(listener));
    let hello = tower::service_fn(|_: http::Request<mesh_server::Body>| async { text("hello") });
    let world = World::start_with(strict, Config::default(), |server| server.identity(identities), hello).await;
    let guest = partner.identity("default", "visitor").trusting(home.bundles());
    let ours = home.identity("default", "productpage");
    let mut visitor = world.mutual_as(&guest, Http::Two).await.unwrap();
    assert_eq!(visitor.get("/").await.unwrap().0, 200);
    assert_eq!(visitor.server.as_deref(), Some("spiffe://cluster.local/ns/default/sa/reviews"));
    // A client is done before the server has judged it.
    let turned_away = async |identity: &Identity| match world.mutual_as(identity, Http::Two).await {
        Ok(mut client) => client.get("/").await.is_err(),
        Err(_) => true,
    };
    assert!(turned_away(&ours).await, "its own roots do not count then");

    // Who was let in by roots that are gone has to leave. A CA of no domain vouches for names of ours, not for others.
    let of_nobody = |ca: &TestCa| TrustBundles::of_any_domain(TrustBundle::from_pem(ca.root_pem().as_bytes()).unwrap());
    publisher.publish(Some(of_nobody(&home)));
    let _ = within(visitor.ended).await;
    assert_eq!(world.mutual_as(&ours, Http::Two).await.unwrap().get("/").await.unwrap().0, 200);
    publisher.publish(Some(of_nobody(&partner)));
    assert!(turned_away(&guest).await);
}

/// A client of one version of TLS that takes up its sessions again where a server lets it, unlike ours: then nobody would
/// look at its certificate again.
fn remembering(identity: &Identity, version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
    let verifier = SpiffeServerVerifier::new(identity.bundles().clone(), Vec::new(), crypto());
    let mut config = ClientConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified().clone())));
    config.alpn_protocols = vec![Http::One.alpn().to_vec()];
    config.resumption = Resumption::in_memory_sessions(8);
    Arc::new(config)
}

/// That such a client does take up sessions is the control of `s66_…` of `mesh_core::identity`.
#[tokio::test]
async fn s66_no_change_is_passed_by_with_a_session_of_before() {
    for version in [&TLS13, &TLS12] {
        let world = World::hello(InboundTls::Strict).await;
        let client = remembering(&world.ca.identity("default", "productpage"), version);
        // Who the server is, and what it answers; never is a session of before taken up.
        let met = async || {
            let mut connection = world.mutual_with(client.clone(), Http::One).await?;
            assert!(!connection.resumed, "{version:?}");
            let (status, _) = connection.get("/").await?;
            Ok::<_, BoxError>((connection.server.unwrap(), status))
        };
        let reviews = "spiffe://cluster.local/ns/default/sa/reviews".to_owned();
        for _ in 0..3 {
            assert_eq!(met().await.unwrap(), (reviews.clone(), 200), "{version:?}");
        }
        // Policy lets others in.
        world.policy.publish(allowing("spiffe://cluster.local/ns/default/sa/ratings"));
        assert_eq!(met().await.unwrap(), (reviews, 403), "{version:?}");
        world.policy.publish(policy(InboundTls::Strict));
        // The server has another name.
        world.identity.publish(Some(world.ca.identity("default", "reviews-renewed")));
        let renewed = "spiffe://cluster.local/ns/default/sa/reviews-renewed".to_owned();
        assert_eq!(met().await.unwrap(), (renewed, 200), "{version:?}");
        // It trusts another authority only; its own certificate stays.
        world.identity.publish(Some(identity_trusting(&world.ca, "reviews", &TestCa::new())));
        assert!(met().await.is_err(), "{version:?}");
    }
}

#[tokio::test]
async fn an_allow_policy_without_rules_denies_and_a_dry_run_does_not() {
    let world = World::hello(InboundTls::Permissive).await;
    // A change of policy ends connections: each request has its own.
    let ask = || async { world.plain(Http::One).await.get("/").await.unwrap() };
    assert_eq!(ask().await.0, 200);
    let mut allowing = listener(InboundTls::Permissive);
    allowing.authorization.push(AuthorizationPolicy::new("nothing", AuthorizationAction::Allow));
    world.policy.publish(InboundState::Ready(Arc::new(allowing.clone())));
    assert_eq!(ask().await.0, 403);
    allowing.authorization[0].dry_run = true;
    world.policy.publish(InboundState::Ready(Arc::new(allowing)));
    assert_eq!(ask().await.0, 200);
}

/// What policy says of a workload holds for it under a former name of its trust domain.
#[tokio::test]
async fn a_caller_of_an_alias_is_judged_by_its_present_name() {
    let web = "spiffe://cluster.local/ns/default/sa/productpage";
    let world = World::start(allowing(web), Config::default(), tower::service_fn(peer_of())).await;
    let old = TrustDomain::new("old.test").unwrap();
    let former = |account| {
        let id = SpiffeId::for_service_account(&old, "default", account).unwrap();
        world.ca.identity_from(&CertificateSpec::of(&id))
    };
    // The control: nobody has said that it is one.
    assert!(answer_to(&world, &former("productpage")).await.is_none());
    let mut bundles = world.ca.bundles();
    bundles.alias(old.clone(), TrustDomain::new("cluster.local").unwrap());
    world.identity.publish(Some(Arc::new(world.ca.identity("default", "reviews").trusting(bundles))));
    assert_eq!(answer_to(&world, &former("productpage")).await, Some((200, web.to_owned())));
    assert_eq!(answer_to(&world, &former("ratings")).await.map(|(status, _)| status), Some(403));
    assert_eq!(answer_to(&world, &world.ca.identity("default", "productpage")).await.unwrap().0, 200);
}

/// Requests are judged by the name of the handshake: where that would be another one, the connection ends.
#[tokio::test]
async fn a_connection_ends_when_its_peer_has_another_name() {
    let name = |domain: &str| TrustDomain::new(domain).unwrap();
    let (home, other, partner) = (name("cluster.local"), name("other.test"), name("partner.test"));
    let open = policy(InboundTls::Strict);
    let mut config = Config::default();
    config.lame_duck = Duration::from_millis(10);
    for (renamed, version) in [(false, Http::Two), (false, Http::One), (true, Http::Two), (true, Http::One)] {
        let world = World::start(open.clone(), config.clone(), tower::service_fn(peer_of())).await;
        let named = |domain: &TrustDomain, account: &str| {
            let id = SpiffeId::for_service_account(domain, "default", account).unwrap();
            world.ca.identity_from(&CertificateSpec::of(&id))
        };
        let root = TrustBundle::new([world.ca.root().clone()]).unwrap();
        let mut before = world.ca.bundles();
        before.alias(other.clone(), home.clone());
        let publish = |own: &TrustDomain, bundles: &TrustBundles| {
            world.identity.publish(Some(Arc::new(named(own, "reviews").trusting(bundles.clone()))));
        };
        publish(&home, &before);
        let mut both = world.ca.bundles();
        both.insert(other.clone(), root.clone());
        let web = named(&other, "productpage").trusting(both);
        let mut client = world.mutual_as(&web, version).await.unwrap();
        let known = client.get("/").await.unwrap().1;
        assert_eq!(known, "spiffe://cluster.local/ns/default/sa/productpage");
        // The control: trust changes, and nothing of its name.
        let mut federated = before.clone();
        federated.insert(partner.clone(), root.clone());
        publish(&home, &federated);
        for _ in 0..50 {
            assert_eq!(client.get("/").await.unwrap().1, known);
        }
        // The mesh takes the other name, or the other name becomes somebody else's whose root is the same.
        let now = if renamed {
            let mut now = TrustBundles::single(other.clone(), root.clone());
            now.alias(home.clone(), other.clone());
            now
        } else {
            let mut now = before.clone();
            now.insert(other.clone(), root.clone());
            now
        };
        publish(if renamed { &other } else { &home }, &now);
        eventually(|| client.ended.is_finished().then_some(())).await;
        let (_, present) = answer_to(&world, &web).await.unwrap();
        assert_eq!(present, "spiffe://other.test/ns/default/sa/productpage");
    }
}

/// A federated domain's roots vouch for its own names, and for nobody else's.
#[tokio::test]
async fn a_caller_of_a_federated_domain_is_let_in_by_its_principal_and_an_impostor_is_not() {
    let guest = "spiffe://partner.test/ns/default/sa/visitor";
    let world = World::start(allowing(guest), Config::default(), tower::service_fn(peer_of())).await;
    let (domain, partner) = (TrustDomain::new("partner.test").unwrap(), TestCa::in_domain("partner.test"));
    let showing = |ca: &TestCa, domain: &TrustDomain, account| {
        let id = SpiffeId::for_service_account(domain, "default", account).unwrap();
        Arc::new(ca.identity_from(&CertificateSpec::of(&id)).trusting(world.ca.bundles()))
    };
    let visitor = showing(&partner, &domain, "visitor");
    assert!(answer_to(&world, &visitor).await.is_none(), "the control: no bundle of its domain");
    let mut bundles = world.ca.bundles();
    bundles.insert(domain.clone(), TrustBundle::new([partner.root().clone()]).unwrap());
    world.identity.publish(Some(Arc::new(world.ca.identity("default", "reviews").trusting(bundles))));
    assert_eq!(answer_to(&world, &visitor).await, Some((200, guest.to_owned())));
    assert_eq!(answer_to(&world, &showing(&partner, &domain, "other")).await.map(|(status, _)| status), Some(403));
    // The same account of our own domain is somebody else.
    assert_eq!(answer_to(&world, &world.ca.identity("default", "visitor")).await.map(|(status, _)| status), Some(403));
    // Our authority has no say over theirs, and theirs none over ours.
    let home = TrustDomain::new("cluster.local").unwrap();
    assert!(answer_to(&world, &showing(&world.ca, &domain, "visitor")).await.is_none());
    assert!(answer_to(&world, &showing(&partner, &home, "visitor")).await.is_none());
}

fn allowing(principal: &str) -> InboundState {
    let principal = Principal::Authenticated(Some(StringMatcher::exact(principal)));
    let rule = AuthorizationRule {
        name: "ns[default]-policy[one]-rule[0]".to_owned(),
        permissions: vec![Permission::Any],
        principals: vec![principal],
    };
    let mut listener = listener(InboundTls::Strict);
    let one = AuthorizationPolicy::new("one", AuthorizationAction::Allow);
    listener.authorization.push(AuthorizationPolicy { rules: vec![rule], ..one });
    InboundState::Ready(Arc::new(listener))
}

/// Status and body; `None` = the handshake failed. A client is done before the server has judged it.
async fn answer_to(world: &World, identity: &Identity) -> Option<(u16, String)> {
    let mut client = world.mutual_as(identity, Http::Two).await.ok()?;
    let (status, body) = client.get("/").await.ok()?;
    Some((status, body))
}
