//! The tasks of a server on loopback: one accepts, one more a connection; all end with their handle.
#![allow(clippy::disallowed_methods, reason = "a worker file: the tasks belong to `Worker`")]

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::id::SpiffeId;
use mesh_core::identity::peer_spiffe_id;
use mesh_core::policy::{Address, Endpoint, EndpointMetadata};
use rustls::{HandshakeKind, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// Bytes, over TLS or not.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, its handshake done.
pub(crate) struct Accepted {
    pub(crate) stream: Box<dyn Io>,
    /// The client's verified identity.
    pub(crate) peer: Option<SpiffeId>,
    /// The ALPN protocol agreed on.
    pub(crate) alpn: Option<String>,
    /// Whether a TLS session of before was taken up again.
    pub(crate) resumed: bool,
}

/// A server that listens. Dropping it closes its port and its connections.
pub(crate) struct Worker {
    address: SocketAddr,
    tls: bool,
    accepting: JoinHandle<()>,
}

impl Worker {
    /// Listens on a free port of loopback and gives every connection to `serve`.
    pub(crate) async fn start<S, F>(tls: Option<ServerConfig>, serve: S) -> Self
    where
        S: Fn(Accepted) -> F + Clone + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let with_tls = tls.is_some();
        let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        Self { address, tls: with_tls, accepting: tokio::spawn(accept(listener, tls, serve)) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn has_tls(&self) -> bool {
        self.tls
    }

    /// The endpoint for policy; it accepts mesh mTLS if the server has TLS.
    pub(crate) fn endpoint(&self) -> Endpoint {
        let metadata = EndpointMetadata { mesh_tls: self.tls, ..EndpointMetadata::default() };
        Endpoint { metadata: Arc::new(metadata), ..Endpoint::new(Address::Socket(self.address)) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept<S, F>(listener: TcpListener, tls: Option<TlsAcceptor>, serve: S)
where
    S: Fn(Accepted) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((socket, _)) = accepted {
                    let (tls, serve) = (tls.clone(), serve.clone());
                    connections.spawn(async move {
                        // A handshake that fails is the client's to notice.
                        if let Some(accepted) = handshake(socket, tls).await {
                            serve(accepted).await;
                        }
                    });
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn handshake(socket: TcpStream, tls: Option<TlsAcceptor>) -> Option<Accepted> {
    let Some(tls) = tls else {
        return Some(Accepted { stream: Box::new(socket), peer: None, alpn: None, resumed: false });
    };
    let stream = tls.accept(socket).await.ok()?;
    let session = stream.get_ref().1;
    let leaf = session.peer_certificates().and_then(<[_]>::first);
    let peer = leaf.and_then(|leaf| peer_spiffe_id(leaf).ok());
    let alpn = session.alpn_protocol().map(|protocol| String::from_utf8_lossy(protocol).into_owned());
    let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
    Some(Accepted { stream: Box::new(stream), peer, alpn, resumed })
}
