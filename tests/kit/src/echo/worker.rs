//! The tasks of an echo server: one accepts, one more a connection; all end with their handle.
#![allow(clippy::disallowed_methods, reason = "a worker file: the tasks belong to `Worker`")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::Shared;
use super::answer::answer;
use mesh_core::id::SpiffeId;
use mesh_core::identity::peer_spiffe_id;

/// Owns the accepting task; dropping it ends that and every connection.
pub(super) struct Worker(JoinHandle<()>);

impl Worker {
    pub(super) fn spawn(listener: TcpListener, tls: Option<Arc<ServerConfig>>, shared: Arc<Shared>) -> Self {
        Self(tokio::spawn(accept(listener, tls.map(TlsAcceptor::from), shared)))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((socket, _)) = accepted {
                    connections.spawn(connection(socket, tls.clone(), shared.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(socket: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let Some(tls) = tls else {
        return serve(socket, None, shared).await;
    };
    // A handshake that fails is the client's to notice.
    let Ok(stream) = tls.accept(socket).await else { return };
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = leaf.and_then(|leaf| peer_spiffe_id(leaf).ok());
    serve(stream, peer, shared).await;
}

async fn serve<S>(stream: S, peer: Option<SpiffeId>, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    shared.connections.fetch_add(1, Ordering::Relaxed);
    let close = Arc::new(watch::Sender::new(false));
    let mut closed = close.subscribe();
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    if let Some(most) = shared.streams {
        builder.http2().max_concurrent_streams(most);
    }
    let service = service_fn(move |request| answer(shared.clone(), peer.clone(), close.clone(), request));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::select! {
        // Whatever ended it, the client has seen it.
        _ = connection => {}
        _ = closed.wait_for(|closed| *closed) => {}
    }
}
