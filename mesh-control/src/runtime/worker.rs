//! Every task of the control plane: accepting connections, renewing its certificate, and what the
//! builder hands in. Tasks are owned: dropping the handle ends them.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_core::drain::{self, DrainWatch};
use mesh_core::id::SpiffeId;
use mesh_core::identity::{EndingRoots, peer_spiffe_id};
use mesh_core::source::{Watched, WatchedIdentity};
use rustls::crypto::CryptoProvider;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tower_service::Service;

use super::admission::{Admission, Bounds};
use super::standing::End;
use super::{Caller, CertificateError, Peer, ServerCertificate, certificate};
use crate::ca::{CertificateAuthority, Federation, is_joined};

/// A client that does not begin its handshake in this time is let go, and one that does not finish it either.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A client without a certificate asks for one and leaves; it has no reason to stay longer.
const ANONYMOUS: Duration = Duration::from_secs(30);
/// A client whose host died is noticed after both together.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long streams have to end when the control plane stops.
const GRACEFUL: Duration = Duration::from_secs(3);
/// Wait after an error of `accept`, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long who lost its root has to be told of the others.
const FAREWELL: Duration = Duration::from_secs(2);
const RENEW_RETRY: Duration = Duration::from_secs(10);
const GONE: &str = "the root of your certificate is trusted no more";
/// How often the authority's files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A task that ends when its handle is dropped.
#[derive(Debug)]
pub(crate) struct Task(JoinHandle<()>);

impl Task {
    /// Ends it and waits until it has ended.
    pub(crate) async fn cancelled(self) {
        self.0.abort();
        self.finished().await;
    }

    /// Waits for its end.
    pub(crate) async fn finished(mut self) {
        if let Err(e) = (&mut self.0).await
            && e.is_panic()
        {
            tracing::error!(error = %e, "a task of the control plane panicked");
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs `work` until it ends or the handle is dropped.
#[expect(clippy::disallowed_methods, reason = "the one place that spawns; the handle owns the task")]
pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Task {
    Task(tokio::spawn(work))
}

/// A listening port and what it serves.
pub(crate) struct Port {
    pub(crate) listener: TcpListener,
    /// None = plaintext.
    pub(crate) certificate: Option<Arc<ServerCertificate>>,
    pub(crate) routes: axum::Router,
    pub(crate) bounds: Bounds,
    pub(crate) drain: DrainWatch,
}

/// Accepts connections until told to stop, then lets open ones finish for a moment.
pub(crate) async fn serve(port: Port) {
    let Port { listener, certificate, routes, bounds, drain } = port;
    let admission = Arc::new(Admission::new(bounds));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = drain.drained() => break,
            accepted = accept(&listener, &admission) => accepted,
        };
        // Those that have ended are taken out as new ones come.
        while connections.try_join_next().is_some() {}
        let (stream, address, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (certificate, admission) = (certificate.clone(), admission.clone());
        let (routes, drain) = (routes.clone(), drain.clone());
        connections.spawn(async move {
            connection(stream, address, certificate.as_deref(), &admission, routes, drain).await;
            drop(permit);
        });
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(GRACEFUL, all).await.is_err() {
        tracing::info!("connections still open are cut");
    }
}

async fn accept(
    listener: &TcpListener,
    admission: &Admission,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = admission.connections.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, permit))
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    certificate: Option<&ServerCertificate>,
    admission: &Admission,
    routes: axum::Router,
    drain: DrainWatch,
) {
    // Small messages, each awaited by somebody.
    let _ = stream.set_nodelay(true);
    let Some(certificate) = certificate else {
        return http(stream, Peer { address, caller: Caller::Insecure, joined: false }, routes, drain, pending()).await;
    };
    let Some(unproved) = admission.enter(address.ip()) else {
        return tracing::debug!(%address, "too many connections without a certificate from there");
    };
    // Who says nothing keeps nobody from shaking hands.
    if !matches!(timeout(HANDSHAKE, stream.peek(&mut [0])).await, Ok(Ok(1))) {
        return tracing::debug!(%address, "a TLS handshake was not begun in time");
    }
    let handshaking = admission.handshake().await;
    let handshake = TlsAcceptor::from(certificate.config()).accept(stream);
    let stream = match timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::info!(%address, %error, "a TLS handshake failed"),
        Err(_) => return tracing::info!(%address, "a TLS handshake was not finished in time"),
    };
    drop(handshaking);
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let Some(leaf) = chain.first() else {
        let Some(_place) = admission.anonymous() else {
            return tracing::debug!(%address, "too many connections without a certificate");
        };
        return anonymous(stream, address, routes, drain).await;
    };
    let (caller, joined) = match peer_spiffe_id(leaf) {
        Ok(id) => (Caller::Workload(id), is_joined(leaf)),
        Err(error) => return tracing::warn!(%address, %error, "a verified certificate names nobody"),
    };
    drop(unproved);
    let standing = certificate.standing_of(chain);
    http(stream, Peer { address, caller, joined }, routes, drain, standing.end()).await;
}

/// Serves somebody without a certificate for as long as it may take to ask for one.
async fn anonymous<I>(io: I, address: SocketAddr, routes: axum::Router, drain: DrainWatch)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = Peer { address, caller: Caller::Anonymous, joined: false };
    if timeout(ANONYMOUS, http(io, peer, routes, drain, pending())).await.is_err() {
        tracing::debug!(%address, "a connection without a certificate is cut");
    }
}

/// Serves one connection, at most until `end`; HTTP/2 alone, for only gRPC is spoken here.
async fn http<I>(io: I, peer: Peer, routes: axum::Router, drain: DrainWatch, end: impl Future<Output = End>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let from = peer.clone();
    let (closing, closed) = drain::channel();
    let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let (mut routes, closed) = (routes.clone(), closed.clone());
        async move {
            Ok::<_, Infallible>(tokio::select! {
                biased;
                () = closed.drained() => Status::unauthenticated(GONE).into_http(),
                answer = routes.call(request) => infallible(answer),
            })
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(100)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.drained() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        end = end => match end {
            End::Aged => {
                connection.as_mut().graceful_shutdown();
                // Streams of configuration have no end of their own.
                timeout(GRACEFUL, connection).await.unwrap_or(Ok(()))
            }
            end => {
                tracing::info!(peer = %from, reason = %end, "a connection is cut: its certificate is no longer good");
                if matches!(end, End::RootGone(_)) {
                    // Nothing new is answered; what is told on open streams, of roots above all, still arrives.
                    closing.drain();
                    connection.as_mut().graceful_shutdown();
                    let _ = timeout(FAREWELL, connection).await;
                }
                return;
            }
        },
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %from, %error, "a connection broke");
    }
}

fn infallible<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

/// Serves plain HTTP/1 and 2, for the debug port.
pub(crate) async fn serve_http(listener: TcpListener, routes: axum::Router, drain: DrainWatch) {
    if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(drain.drained()).await {
        tracing::error!(%error, "the debug port failed");
    }
}

/// Waits for so long by the authority's clock, which certificates go by: one that is set ahead, or of a machine that slept,
/// cuts it short, and so does one that is set back, for what was signed before may not have begun.
async fn passes(authority: &CertificateAuthority, time: Duration) {
    let begun = authority.now();
    let over = begun.saturating_add(time.as_secs());
    loop {
        sleep(LOOK).await;
        if !(begun..over).contains(&authority.now()) {
            return;
        }
    }
}

/// Renews the control plane's certificate at half its life, and at once when the authority has other keys or roots;
/// on failure keeps the old one and tries again.
pub(crate) async fn renew(certificate: Arc<ServerCertificate>, first: Duration) {
    let mut changes = certificate.changes();
    let mut wait = first / 2;
    loop {
        tokio::select! {
            () = passes(certificate.authority(), wait) => {}
            () = changes.changed() => {}
        }
        wait = match certificate.renew() {
            Ok(life) => life / 2,
            Err(error) => {
                tracing::error!(%error, "the control plane's certificate could not be renewed; it is tried again");
                RENEW_RETRY
            }
        };
    }
}

/// An identity for somebody in this process, signed without a network and renewed like any other, until the last
/// reader of the answer is dropped.
pub(crate) fn identity(
    authority: Arc<CertificateAuthority>,
    federation: Arc<Federation>,
    id: SpiffeId,
    provider: Arc<CryptoProvider>,
) -> Result<WatchedIdentity, CertificateError> {
    let (mut changes, mut others) = (authority.changes(), federation.watch());
    let (signing, of) = (authority.clone(), id.clone());
    let issue = move |generation| {
        let bundles = federation.beside(certificate::own_bundles(&signing));
        certificate::identity(&signing, bundles, &of, &[], &provider, generation)
    };
    let (first, mut life) = issue(0)?;
    let (publisher, watched) = Watched::channel(Some(Arc::new(first)));
    let task = spawn(async move {
        let mut wait = life / 2;
        for generation in 1.. {
            tokio::select! {
                () = passes(&authority, wait) => {}
                () = changes.changed() => {}
                () = others.changed() => {}
            }
            match issue(generation) {
                Ok((identity, lives)) => {
                    publisher.publish(Some(Arc::new(identity)));
                    life = lives;
                    wait = life / 2;
                }
                Err(error) => {
                    tracing::error!(%error, %id, "no new certificate; the old one stays in use");
                    wait = RENEW_RETRY.min(life / 16);
                }
            }
        }
    });
    Ok(watched.with_guard(Arc::new(task)))
}

/// Takes up what commands do to the authority's files.
pub(crate) async fn follow(authority: Arc<CertificateAuthority>, federation: Arc<Federation>) {
    let (mut said, mut ending) = ([None, None], EndingRoots::default());
    loop {
        if let Some(not_after) = ending.look(&certificate::own_bundles(&authority), authority.now()) {
            tracing::warn!(target: "mesh::ca", not_after, "a root ends soon: change it before then (mesh cert rotate-root)");
        }
        sleep(LOOK).await;
        // One has nothing to do with the other: lists and roots do not wait for a bundle of somebody else's.
        for (reloaded, said) in [authority.reload(), federation.reload()].into_iter().zip(&mut said) {
            match reloaded {
                Ok(true) => tracing::info!(target: "mesh::ca", "files of the authority have changed"),
                Ok(false) => *said = None,
                Err(error) => {
                    let error = error.to_string();
                    if said.as_ref() != Some(&error) {
                        tracing::error!(target: "mesh::ca", %error, "what was good of it last stays in use");
                    }
                    *said = Some(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::UNIX_EPOCH;

    use mesh_core::id::TrustDomain;
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::Clock;
    use crate::ca::CertificateLife;

    /// An authority, a port of it that serves nothing, and how a client without a certificate goes there.
    async fn port(home: &Path, bounds: Bounds) -> (SocketAddr, Task, TlsConnector) {
        let domain = TrustDomain::new("cluster.local").unwrap();
        let authority = CertificateAuthority::open(home, domain, CertificateLife::default(), Clock::system()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.bundle().roots()[0].clone()).unwrap();
        let id = "spiffe://cluster.local/ns/mesh-system/sa/control-plane".parse().unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let names = vec!["localhost".to_owned()];
        let (certificate, _) = ServerCertificate::new(Arc::new(authority), id, names, provider.clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (certificate, routes) = (Some(Arc::new(certificate)), axum::Router::new());
        let (trigger, drain) = mesh_core::drain::channel();
        let task = spawn(async move {
            serve(Port { listener, certificate, routes, bounds, drain }).await;
            drop(trigger);
        });
        (address, task, TlsConnector::from(Arc::new(config)))
    }

    #[tokio::test]
    async fn who_connects_and_says_nothing_keeps_nobody_from_shaking_hands() {
        let home = tempfile::tempdir().unwrap();
        let bounds = Bounds { handshakes: 1, anonymous: 1, ..Bounds::default() };
        let (address, _task, tls) = port(home.path(), bounds).await;
        let silent = TcpStream::connect(address).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
        let connect = async || tls.connect(name.clone(), TcpStream::connect(address).await.unwrap()).await;
        let mut first = connect().await.unwrap();
        // What an HTTP/2 server says first.
        let mut settings = [0; 9];
        first.read_exact(&mut settings).await.unwrap();
        let still = silent.try_read(&mut [0]).unwrap_err();
        assert_eq!(still.kind(), io::ErrorKind::WouldBlock, "the silent one is still there");
        // Of those without a certificate there is room for one.
        let mut second = connect().await.unwrap();
        assert!(second.read_exact(&mut settings).await.is_err());
        drop(first);
        loop {
            let mut third = connect().await.unwrap();
            if third.read_exact(&mut settings).await.is_ok() {
                break;
            }
        }
    }

    /// Speaks HTTP/2 and answers pings until the server closes.
    async fn linger(io: impl AsyncRead + AsyncWrite) {
        let (mut read, mut write) = tokio::io::split(io);
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        write.write_all(preface).await.unwrap();
        let mut frame = [0; 9];
        while read.read_exact(&mut frame).await.is_ok() {
            let mut payload = vec![0; usize::from(frame[1]) << 8 | usize::from(frame[2])];
            read.read_exact(&mut payload).await.unwrap();
            // A PING that is no answer.
            if frame[3] == 6 && frame[4] == 0 {
                frame[4] = 1;
                // The server may close just now.
                let _ = write.write_all(&[&frame[..], &payload].concat()).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_certificate_is_cut_after_a_while() {
        let (_trigger, drain) = mesh_core::drain::channel();
        let (address, routes) = (SocketAddr::from(([192, 0, 2, 1], 1)), axum::Router::new());
        let begin = tokio::time::Instant::now();
        let (client, server) = tokio::io::duplex(4096);
        tokio::join!(linger(client), anonymous(server, address, routes.clone(), drain.clone()));
        assert_eq!(begin.elapsed(), ANONYMOUS);
        // The control: who has one stays.
        let caller = Caller::Workload("spiffe://cluster.local/ns/default/sa/a".parse().unwrap());
        let (client, server) = tokio::io::duplex(4096);
        let served = http(server, Peer { address, caller, joined: false }, routes, drain, pending());
        let both = async { tokio::join!(linger(client), served) };
        assert!(timeout(10 * ANONYMOUS, both).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_certificate_is_renewed_at_half_its_life() {
        let home = tempfile::tempdir().unwrap();
        let (_, certificate, first) = certificate_for_a_thousand_seconds(home.path());
        assert_eq!(first, Duration::from_secs(1_000));
        let before = certificate.config();
        let _task = spawn(renew(certificate.clone(), first));
        mesh_testkit::clock::pass(Duration::from_secs(499)).await;
        assert!(Arc::ptr_eq(&before, &certificate.config()));
        mesh_testkit::clock::pass(Duration::from_secs(2)).await;
        let renewed = certificate.config();
        assert!(!Arc::ptr_eq(&before, &renewed));
        mesh_testkit::clock::pass(Duration::from_secs(500)).await;
        assert!(!Arc::ptr_eq(&renewed, &certificate.config()), "and again");
    }

    /// A clock that is so many seconds ahead of the test's, and a certificate by it, with its life.
    fn certificate_for_a_thousand_seconds(home: &Path) -> (Arc<AtomicI64>, Arc<ServerCertificate>, Duration) {
        let (begin, ahead) = (tokio::time::Instant::now(), Arc::<AtomicI64>::default());
        let set = ahead.clone();
        let clock = Clock::new(move || {
            let right = 1_800_000_000 + begin.elapsed().as_secs();
            UNIX_EPOCH + Duration::from_secs(right.saturating_add_signed(set.load(Ordering::Relaxed)))
        });
        let domain = TrustDomain::new("cluster.local").unwrap();
        let life = CertificateLife::at_most(Duration::from_secs(1_000));
        let authority = Arc::new(CertificateAuthority::open(home, domain, life, clock).unwrap());
        let id = "spiffe://cluster.local/ns/mesh-system/sa/control-plane".parse().unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let names = vec!["localhost".to_owned(), "::1".to_owned()];
        let (certificate, life) = ServerCertificate::new(authority, id, names, provider).unwrap();
        (ahead, Arc::new(certificate), life)
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_brings_the_control_plane_a_certificate_at_once_r24() {
        for (seconds, renewed) in [(-86_400, true), (-400, true), (500, true), (86_400, true), (400, false), (0, false)]
        {
            let home = tempfile::tempdir().unwrap();
            let (ahead, certificate, life) = certificate_for_a_thousand_seconds(home.path());
            let before = certificate.config();
            let _task = spawn(renew(certificate.clone(), life));
            mesh_testkit::clock::pass(Duration::from_secs(10)).await;
            ahead.store(seconds, Ordering::Relaxed);
            mesh_testkit::clock::pass(2 * LOOK).await;
            assert_eq!(!Arc::ptr_eq(&before, &certificate.config()), renewed, "{seconds}");
            // Once is enough.
            let after = certificate.config();
            mesh_testkit::clock::pass(Duration::from_secs(60)).await;
            assert!(Arc::ptr_eq(&after, &certificate.config()), "{seconds}");
        }
    }
}
