//! R27: handshakes while both ends change their certificates.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use mesh_core::error::BoxError;
use mesh_core::identity::{Identity, server_config};
use mesh_core::policy::InboundTls;
use mesh_core::source::{Watched, WatchedIdentity};
use mesh_testkit::{TestCa, crypto};

use crate::kit::{Client, Http, World, client_tls, spawn, text, within};

const CALLERS: usize = 8;

/// One connection with the identity of the moment, and a request over it.
async fn handshake(address: SocketAddr, own: &WatchedIdentity) -> Result<u16, BoxError> {
    let identity = Option::clone(&own.load_full()).expect("nothing takes it away");
    let tcp = TcpStream::connect(address).await?;
    let tls = TlsConnector::from(client_tls(&identity, Http::One)).connect("mesh".try_into()?, tcp).await?;
    Ok(Client::over(tls, Http::One).await?.get("/").await?.0)
}

/// So many handshakes of several callers at a time; with each begins a change of both ends' certificates. Gives what failed.
async fn race(
    ca: &TestCa,
    address: SocketAddr,
    handshakes: usize,
    mut rotate: impl FnMut(Arc<Identity>),
) -> Vec<String> {
    let (ours, own) = Watched::channel(Some(ca.identity("default", "productpage")));
    let (begins, mut begun) = unbounded_channel();
    let call = |begins: UnboundedSender<()>| {
        let own = own.clone();
        async move {
            let mut failed = Vec::new();
            for _ in 0..handshakes / CALLERS {
                begins.send(()).unwrap();
                match within(handshake(address, &own)).await {
                    Ok(200) => {}
                    other => failed.push(format!("{other:?}")),
                }
            }
            failed
        }
    };
    let callers: Vec<_> = (0..CALLERS).map(|_| spawn(call(begins.clone()))).collect();
    drop(begins);
    while begun.recv().await.is_some() {
        rotate(ca.identity("default", "reviews"));
        ours.publish(Some(ca.identity("default", "productpage")));
    }
    let mut failed = Vec::new();
    for caller in callers {
        failed.extend(caller.await.unwrap());
    }
    failed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn handshakes_race_rotations_and_none_fails_r27() {
    let world = World::hello(InboundTls::Strict).await;
    let failed = race(&world.ca, world.address, 5_000, |next| world.identity.publish(Some(next))).await;
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Certificate and key in two places.
#[derive(Debug)]
struct Apart {
    chain: Mutex<Vec<CertificateDer<'static>>>,
    key: Mutex<Arc<dyn SigningKey>>,
}

impl ResolvesServerCert for Apart {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::new(CertifiedKey::new(self.chain.lock().clone(), self.key.lock().clone())))
    }
}

/// The control: the same race against a server that changes its certificate first and its key when it comes to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn where_certificate_and_key_change_apart_handshakes_fail_r27() {
    let ca = TestCa::new();
    let first = ca.identity("default", "reviews");
    let CertifiedKey { cert, key, .. } = &**first.certified();
    let apart = Arc::new(Apart { chain: Mutex::new(cert.clone()), key: Mutex::new(key.clone()) });
    let mut config = server_config(&first, true, &[b"http/1.1"], &crypto()).unwrap();
    config.cert_resolver = apart.clone();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let hello = hyper::service::service_fn(|_| async { Ok::<_, Infallible>(text("hello").unwrap()) });
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), hello).await;
            });
        }
    });
    let mut late = None;
    let failed = race(&ca, address, 400, |next| match late.take() {
        None => {
            *apart.chain.lock() = next.certified().cert.clone();
            late = Some(next);
        }
        Some(next) => *apart.key.lock() = next.certified().key.clone(),
    });
    let failed = failed.await;
    assert!(failed.len() > 20, "{failed:#?}");
    assert!(failed.iter().all(|why| why.contains("BadSignature")), "{failed:#?}");
    serving.abort();
}
