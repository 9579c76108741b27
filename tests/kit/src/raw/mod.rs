//! A server of bytes, plain or over TLS.

mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::ServerConfig;
use tokio::sync::watch;

use mesh_core::identity::{Identity, server_config};
use mesh_core::policy::{Address, Endpoint, EndpointMetadata};

use crate::crypto;

/// A TCP server on loopback. Dropping it closes its port and its connections.
///
/// It greets with a line, `name peer alpn` (the client's SPIFFE ID and the ALPN protocol, `-` for none), and then
/// gives back what it gets, until the client has nothing more to say.
pub struct RawServer {
    address: SocketAddr,
    tls: bool,
    shared: Arc<Shared>,
    _worker: worker::Worker,
}

/// What the server and its connections share.
struct Shared {
    name: String,
    accepted: AtomicU64,
    open: watch::Sender<usize>,
}

impl RawServer {
    /// A plaintext server called `name`.
    pub async fn start(name: &str) -> Self {
        Self::run(name, None).await
    }

    /// A server with mesh mTLS: only clients with a certificate of the mesh get in. It knows the ALPN protocol
    /// `istio`.
    pub async fn start_mtls(name: &str, identity: &Identity) -> Self {
        let config = server_config(identity, true, &[b"istio"], &crypto());
        Self::start_tls(name, config.expect("the provider has the default versions")).await
    }

    /// A server with any TLS configuration.
    pub async fn start_tls(name: &str, config: ServerConfig) -> Self {
        Self::run(name, Some(config)).await
    }

    async fn run(name: &str, tls: Option<ServerConfig>) -> Self {
        let (accepted, open) = (AtomicU64::new(0), watch::Sender::new(0));
        let shared = Arc::new(Shared { name: name.to_owned(), accepted, open });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let with_tls = tls.is_some();
        let worker = worker::Worker::spawn(listener, tls.map(Arc::new), shared.clone());
        Self { address, tls: with_tls, shared, _worker: worker }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The endpoint for policy; it accepts mesh mTLS if the server was started with TLS.
    pub fn endpoint(&self) -> Endpoint {
        let metadata = EndpointMetadata { mesh_tls: self.tls, ..EndpointMetadata::default() };
        Endpoint { metadata: Arc::new(metadata), ..Endpoint::new(Address::Socket(self.address)) }
    }

    /// Connections that were greeted so far; with TLS those whose handshake succeeded.
    pub fn connections(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Waits until exactly `count` connections are open.
    pub async fn wait_for_open(&self, count: usize) {
        let mut open = self.shared.open.subscribe();
        open.wait_for(|open| *open == count).await.expect("the sender is ours");
    }
}

impl std::fmt::Debug for RawServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawServer")
            .field("name", &self.shared.name)
            .field("address", &self.address)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}
