//! The tasks of a raw server: one accepts, one more a connection; all end with their handle.
#![allow(clippy::disallowed_methods, reason = "a worker file: the tasks belong to `Worker`")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::Shared;
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
        return counted(socket, "- -", &shared).await;
    };
    // A handshake that fails is the client's to notice.
    let Ok(stream) = tls.accept(socket).await else { return };
    let session = stream.get_ref().1;
    let leaf = session.peer_certificates().and_then(<[_]>::first);
    let peer = leaf.and_then(|leaf| peer_spiffe_id(leaf).ok()).map_or_else(|| "-".to_owned(), |id| id.to_string());
    let alpn = session.alpn_protocol().map_or("-".into(), String::from_utf8_lossy);
    let who = format!("{peer} {alpn}");
    counted(stream, &who, &shared).await;
}

async fn counted<S: AsyncRead + AsyncWrite + Unpin>(stream: S, who: &str, shared: &Shared) {
    shared.accepted.fetch_add(1, Ordering::Relaxed);
    shared.open.send_modify(|open| *open += 1);
    // Whatever ended it, the client has seen it.
    let _ = serve(stream, &format!("{} {who}\n", shared.name)).await;
    shared.open.send_modify(|open| *open -= 1);
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, greeting: &str) -> io::Result<()> {
    stream.write_all(greeting.as_bytes()).await?;
    stream.flush().await?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.shutdown().await,
            bytes => {
                stream.write_all(&buffer[..bytes]).await?;
                stream.flush().await?;
            }
        }
    }
}
