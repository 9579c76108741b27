//! Every task of the control plane: accepting connections, renewing its certificate, and what the
//! builder hands in. Tasks are owned: dropping the handle ends them.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_core::drain::DrainWatch;
use mesh_core::id::SpiffeId;
use mesh_core::identity::peer_spiffe_id;
use mesh_core::source::{Watched, WatchedIdentity};
use rustls::crypto::CryptoProvider;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

use super::{Caller, CertificateError, Peer, ServerCertificate, certificate};
use crate::ca::CertificateAuthority;

/// Connections of one port at once.
const MAX_CONNECTIONS: usize = 30_000;
/// Handshakes of one port at once: when many come back together, those that have begun are finished in
/// time while the others wait to be accepted.
const MAX_HANDSHAKES: usize = 2_000;
/// A client that does not finish its handshake in this time is let go.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A client whose host died is noticed after both together.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long streams have to end when the control plane stops.
const GRACEFUL: Duration = Duration::from_secs(3);
/// Wait after an error of `accept`, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const RENEW_RETRY: Duration = Duration::from_secs(10);
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
    pub(crate) drain: DrainWatch,
}

/// Accepts connections until told to stop, then lets open ones finish for a moment.
pub(crate) async fn serve(port: Port) {
    let Port { listener, certificate, routes, drain } = port;
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = drain.drained() => break,
            accepted = accept(&listener, &permits, &handshakes) => accepted,
        };
        // Those that have ended are taken out as new ones come.
        while connections.try_join_next().is_some() {}
        let (stream, address, [permit, handshake]) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (certificate, routes, drain) = (certificate.clone(), routes.clone(), drain.clone());
        connections.spawn(async move {
            connection(stream, address, certificate.as_deref(), handshake, routes, drain).await;
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
    permits: &Arc<Semaphore>,
    handshakes: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, [OwnedSemaphorePermit; 2])> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let handshake = handshakes.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, [permit, handshake]))
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    certificate: Option<&ServerCertificate>,
    handshaking: OwnedSemaphorePermit,
    routes: axum::Router,
    drain: DrainWatch,
) {
    // Small messages, each awaited by somebody.
    let _ = stream.set_nodelay(true);
    let Some(certificate) = certificate else {
        drop(handshaking);
        return http(stream, Peer { address, caller: Caller::Insecure }, routes, drain).await;
    };
    let handshake = TlsAcceptor::from(certificate.config()).accept(stream);
    let stream = match timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::info!(%address, %error, "a TLS handshake failed"),
        Err(_) => return tracing::info!(%address, "a TLS handshake was not finished in time"),
    };
    drop(handshaking);
    let caller = match stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
        None => Caller::Anonymous,
        Some(leaf) => match peer_spiffe_id(leaf) {
            Ok(id) => Caller::Workload(id),
            Err(error) => return tracing::warn!(%address, %error, "a verified certificate names nobody"),
        },
    };
    http(stream, Peer { address, caller }, routes, drain).await;
}

/// Serves one connection; HTTP/2 alone, for only gRPC is spoken here.
async fn http<I>(io: I, peer: Peer, routes: axum::Router, drain: DrainWatch)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let from = peer.clone();
    let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let mut routes = routes.clone();
        async move { Ok::<_, Infallible>(infallible(routes.call(request).await)) }
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

/// Renews the control plane's certificate at half its life, and at once when the authority has other keys or roots;
/// on failure keeps the old one and tries again.
pub(crate) async fn renew(certificate: Arc<ServerCertificate>, first: Duration) {
    let mut changes = certificate.changes();
    let mut wait = first / 2;
    loop {
        tokio::select! {
            () = sleep(wait) => {}
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
    id: SpiffeId,
    provider: Arc<CryptoProvider>,
) -> Result<WatchedIdentity, CertificateError> {
    let (first, mut life) = certificate::identity(&authority, &id, &[], &provider, 0)?;
    let (publisher, watched) = Watched::channel(Some(Arc::new(first)));
    let mut changes = authority.changes();
    let task = spawn(async move {
        let mut wait = life / 2;
        for generation in 1.. {
            tokio::select! {
                () = sleep(wait) => {}
                () = changes.changed() => {}
            }
            match certificate::identity(&authority, &id, &[], &provider, generation) {
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
pub(crate) async fn follow(authority: Arc<CertificateAuthority>) {
    let mut said = None;
    loop {
        sleep(LOOK).await;
        match authority.reload() {
            Ok(true) => tracing::info!(target: "mesh::ca", "keys or roots of the authority have changed"),
            Ok(false) => said = None,
            Err(error) => {
                let error = error.to_string();
                if said.as_ref() != Some(&error) {
                    tracing::error!(target: "mesh::ca", %error, "what was read last of the authority's files stays in use");
                }
                said = Some(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use mesh_core::id::TrustDomain;

    use super::*;
    use crate::Clock;
    use crate::ca::CertificateLife;

    #[tokio::test(start_paused = true)]
    async fn the_certificate_is_renewed_at_half_its_life() {
        let home = tempfile::tempdir().unwrap();
        let begin = tokio::time::Instant::now();
        let clock = Clock::new(move || UNIX_EPOCH + Duration::from_secs(1_800_000_000) + begin.elapsed());
        let domain = TrustDomain::new("cluster.local").unwrap();
        let life = CertificateLife::at_most(Duration::from_secs(1_000));
        let authority = Arc::new(CertificateAuthority::open(home.path(), domain, life, clock).unwrap());
        let id = "spiffe://cluster.local/ns/mesh-system/sa/control-plane".parse().unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let names = vec!["localhost".to_owned(), "::1".to_owned()];
        let (certificate, first) = ServerCertificate::new(authority, id, names, provider).unwrap();
        assert_eq!(first, Duration::from_secs(1_000));

        let certificate = Arc::new(certificate);
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
}
