//! Certificates and roots change while requests are under way: none is lost, and nothing is ever sent in plaintext.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh::Mesh;
use mesh::parts::mesh_core::id::TrustDomain;
use mesh::parts::mesh_core::identity::Identity;
use mesh_control::Clock;
use mesh_control::ca::{CertificateLife, RootRotation, RotateError, RotationState, RotationStep};
use mesh_testkit::{CertificateSpec, TestCa};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::probe;
use crate::support::{Load, Plane, becomes, call, eventually, plain_get};

const REVIEWS: &str = "http://reviews:9080/";

/// Of certificates: a change of roots takes a few of these.
const LIFE: Duration = Duration::from_secs(16);

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn current(mesh: &Mesh) -> Arc<Identity> {
    mesh.identity().load_full().as_ref().clone().unwrap()
}

fn roots(mesh: &Mesh) -> usize {
    let identity = current(mesh);
    identity.bundles().get(&identity.id().trust_domain()).unwrap().roots().len()
}

/// Open connections of a server's callers by the root that vouches for them, as its debug page says.
async fn inbound_by_root(mesh: &Mesh) -> BTreeMap<String, u64> {
    by_root(mesh.debug_address().unwrap(), "destination").await
}

async fn by_root(debug: std::net::SocketAddr, reporter: &str) -> BTreeMap<String, u64> {
    let (_, text) = plain_get(debug, "/metrics").await.unwrap();
    let begin = format!("mesh_tls_peers_by_root{{reporter=\"{reporter}\",root=\"");
    let lines = text.lines().filter_map(|line| line.strip_prefix(&begin)?.split_once("\"} "));
    lines.map(|(root, open)| (root.to_owned(), open.parse().unwrap())).collect()
}

/// Makes the next step as soon as it cuts nobody off.
async fn advance(plane: &Plane, wanted: RotationStep) -> RotationState {
    let domain = TrustDomain::new("cluster.local").unwrap();
    let rotation =
        RootRotation::open(plane.state_dir(), domain, CertificateLife::at_most(LIFE), Clock::system()).unwrap();
    let made = eventually("the next step is safe", || async {
        match rotation.advance(false) {
            Err(RotateError::TooEarly { .. }) => None,
            made => Some(made.unwrap()),
        }
    })
    .await;
    assert_eq!(made.step, wanted);
    made
}

/// Handshakes one after the other, each with the identity of the moment, until it is told to stop.
struct Handshakes {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Handshakes {
    fn begin(visitor: &Mesh, server: std::net::SocketAddr) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (visitor, until, count) = (visitor.clone(), stop.clone(), done.clone());
        let task = tokio::spawn(async move {
            let mut failures = Vec::new();
            let mut pace = tokio::time::interval(Duration::from_millis(20));
            while !until.load(Ordering::Relaxed) {
                pace.tick().await;
                if let Err(error) = probe::get(server, &current(&visitor)).await {
                    failures.push(error.to_string());
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            failures
        });
        Self { stop, done, task }
    }

    async fn all_well(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        assert_eq!(self.task.await.unwrap(), Vec::<String>::new());
        self.done.load(Ordering::Relaxed)
    }
}

/// R26 at test scale.
#[tokio::test]
async fn the_root_changes_under_load_and_neither_a_request_nor_a_handshake_fails() {
    let plane = Plane::with(|builder| builder.certificate_ttl(LIFE)).await;
    let server = plane.answering("reviews", "", "hello").await;
    let (caller, visitor) = (plane.caller("productpage").await, plane.caller("visitor").await);
    becomes(&caller, REVIEWS, &[], "hello").await;
    visitor.identity().wait_for(Option::is_some).await;
    let load = Load::begin(&caller, REVIEWS);
    let handshakes = Handshakes::begin(&visitor, server.address);
    // Somebody whose certificate of the old root does not end.
    let old = TestCa::of_pem("cluster.local", &plane.state("root-cert.pem"), &plane.state("ca-key.pem"));
    let old = old.identity("default", "left-behind");
    assert!(probe::get(server.address, &probe::trusting(&old, &plane)).await.is_ok(), "control");

    let old_root = match &inbound_by_root(&server.mesh).await.into_iter().collect::<Vec<_>>()[..] {
        [(root, open)] if *open > 0 => root.clone(),
        other => panic!("all live by one root: {other:?}"),
    };
    let added = advance(&plane, RotationStep::Added).await;
    assert_eq!(added.signing, old_root, "under the name that the command has for it");
    let everybody = [&server.mesh, &caller, &visitor];
    eventually("all trust both roots", || async { everybody.iter().all(|mesh| roots(mesh) == 2).then_some(()) }).await;
    let new_root = advance(&plane, RotationStep::Switched).await.signing;
    load.more(50).await;
    assert!(probe::get(server.address, &probe::trusting(&old, &plane)).await.is_ok(), "still trusted");
    let mut live = probe::connect(server.address, &probe::trusting(&old, &plane)).await.unwrap();
    live.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(live.read(&mut [0; 1024]).await.unwrap() > 0);
    // Who is left behind is seen, at the server and at the control plane, before the root goes.
    eventually("connections of both roots are counted apart", || async {
        let open = inbound_by_root(&server.mesh).await;
        (open[&old_root] > 0 && open.get(&new_root).is_some_and(|open| *open > 0)).then_some(())
    })
    .await;
    eventually("members come to the control plane with the new root", || async {
        by_root(plane.debug(), "destination").await.get(&new_root).is_some_and(|open| *open > 0).then_some(())
    })
    .await;

    advance(&plane, RotationStep::Idle).await;
    eventually("all trust the new root alone", || async {
        everybody.iter().all(|mesh| roots(mesh) == 1).then_some(())
    })
    .await;
    assert!(probe::get(server.address, &probe::trusting(&old, &plane)).await.is_err(), "the old one is out");
    // Well before a silent connection is closed for its silence.
    let closed = tokio::time::timeout(Duration::from_secs(5), live.read_to_end(&mut Vec::new())).await;
    let _ = closed.expect("a connection of the old root is closed");
    eventually("nobody lives by the old root", || async {
        (inbound_by_root(&server.mesh).await[&old_root] == 0).then_some(())
    })
    .await;
    load.more(50).await;
    load.all_well().await;
    assert!(handshakes.all_well().await > 100);
    // Who joins now, joins under the new root.
    let fresh = plane.caller("visitor").await;
    assert_eq!(call(&fresh, REVIEWS, &[]).await.unwrap().1, "hello");
}

#[tokio::test]
async fn s67_who_is_on_the_operators_revocation_list_is_refused_by_every_member_and_cut_off() {
    let plane = Plane::start().await;
    let server = plane.answering("reviews", "", "hello").await;
    let caller = plane.caller("productpage").await;
    becomes(&caller, REVIEWS, &[], "hello").await;
    let load = Load::begin(&caller, REVIEWS);
    // The operator signs with the authority's key, so that a number may be chosen.
    let operator = TestCa::of_pem("cluster.local", &plane.state("root-cert.pem"), &plane.state("ca-key.pem"));
    let numbered = |serial| {
        let id = operator.id("default", "visitor");
        operator.identity_from(&CertificateSpec { serial: Some(serial), ..CertificateSpec::of(&id) })
    };
    let (stolen, other) = (numbered(7), numbered(8));
    let write = |text: &[u8]| std::fs::write(plane.state_dir().join("ca-crl.pem"), text).unwrap();
    let known = |mesh: &Mesh| {
        let identity = current(mesh);
        identity.bundles().get(&identity.id().trust_domain()).unwrap().revocation_lists().to_vec()
    };
    // Control runs: no list, and one that names somebody else.
    assert!(probe::get(server.address, &stolen).await.is_ok());
    write(operator.revocation_list(&[9]).as_bytes());
    let before = eventually("members know the list", || async {
        let known = [&server.mesh, &caller].map(known);
        known.iter().all(|lists| lists.len() == 1).then_some(known)
    })
    .await;
    assert!(probe::get(server.address, &stolen).await.is_ok());
    let mut live = probe::connect(server.address, &stolen).await.unwrap();
    live.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(live.read(&mut [0; 1024]).await.unwrap() > 0);

    write(operator.revocation_list(&[7]).as_bytes());
    eventually("it is refused", || async { probe::get(server.address, &stolen).await.is_err().then_some(()) }).await;
    let closed = tokio::time::timeout(Duration::from_secs(5), live.read_to_end(&mut Vec::new())).await;
    let _ = closed.expect("its open connection is closed");
    assert!(probe::get(server.address, &other).await.is_ok(), "only that one");

    // A file that is no list changes nothing, and who joins meanwhile learns the last good one.
    write(b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    let fresh = plane.caller("productpage").await;
    fresh.identity().wait_for(Option::is_some).await;
    assert_eq!(known(&fresh).len(), 1);
    assert_ne!(known(&fresh), before[0]);
    assert!(probe::get(server.address, &stolen).await.is_err());
    load.more(20).await;
    load.all_well().await;
}

/// R25 at test scale.
#[tokio::test]
async fn until_it_ends_a_certificate_outlives_the_authority_and_after_that_nothing_falls_back_to_plaintext() {
    let mut plane = Plane::with(|builder| builder.certificate_ttl(LIFE)).await;
    let server = plane.answering("reviews", "", "hello").await;
    let caller = plane.caller("productpage").await;
    becomes(&caller, REVIEWS, &[], "hello").await;
    let load = Load::begin(&caller, REVIEWS);
    plane.stop().await;
    // What is held now is not renewed; whoever of the two ends first, ends new handshakes.
    let ends = current(&server.mesh).not_after().min(current(&caller).not_after());
    let mut made = 0;
    while now() + 1 < ends {
        probe::get(server.address, &current(&caller)).await.unwrap();
        made += 1;
        load.more(1).await;
    }
    assert!(made > 0);
    load.all_well().await;
    eventually("the certificate ends", || async { (now() > ends + 1).then_some(()) }).await;
    let refused = probe::get(server.address, &current(&caller)).await;
    assert!(refused.is_err(), "{refused:?}");
    let (_, ready) = plain_get(server.mesh.debug_address().unwrap(), "/readyz").await.unwrap();
    assert!(ready.contains("certificate: it has ended and was not renewed"), "{ready}");

    // In the server's place stands somebody who notes how connections begin.
    let place_of_server = server.address;
    drop(server);
    let listener = eventually("the port is free", || async { TcpListener::bind(place_of_server).await.ok() }).await;
    let begun = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let note = begun.clone();
    let recorder = tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut first = [0];
            let read = socket.read(&mut first).await;
            note.lock().push(read.is_ok_and(|count| count == 1).then_some(first[0]));
        }
    });
    eventually("calls have been tried", || async {
        let error = call(&caller, REVIEWS, &[]).await;
        assert!(error.as_ref().map_or(true, |(status, _)| !status.is_success()), "{error:?}");
        (begun.lock().len() >= 3).then_some(())
    })
    .await;
    recorder.abort();
    let begun = begun.lock().clone();
    assert!(begun.contains(&Some(0x16)), "it has tried: {begun:?}");
    assert!(begun.iter().flatten().all(|first| *first == 0x16), "TLS and nothing else: {begun:?}");

    // A join token is good once, and the certificate that could prove a renewal has ended: both join anew.
    plane.resume().await;
    let _server = plane.answering("reviews", "", "hello").await;
    let fresh = plane.caller("productpage").await;
    becomes(&fresh, REVIEWS, &[], "hello").await;
}
