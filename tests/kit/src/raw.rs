//! A server of bytes, plain or over TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use mesh_core::identity::{Identity, server_config};
use mesh_core::policy::Endpoint;

use crate::crypto;
use crate::worker::{Accepted, Io, Worker};

/// A TCP server on loopback. Dropping it closes its port and its connections.
///
/// It greets with a line, `name peer alpn` (the client's SPIFFE ID and the ALPN protocol, `-` for none), and then
/// gives back what it gets, until the client has nothing more to say.
pub struct RawServer {
    shared: Arc<Shared>,
    worker: Worker,
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
        let serving = shared.clone();
        let worker = Worker::start(tls, move |accepted| counted(accepted, serving.clone())).await;
        Self { shared, worker }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.worker.address()
    }

    /// The endpoint for policy; it accepts mesh mTLS if the server was started with TLS.
    pub fn endpoint(&self) -> Endpoint {
        self.worker.endpoint()
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
            .field("address", &self.worker.address())
            .field("tls", &self.worker.has_tls())
            .finish_non_exhaustive()
    }
}

async fn counted(accepted: Accepted, shared: Arc<Shared>) {
    shared.accepted.fetch_add(1, Ordering::Relaxed);
    shared.open.send_modify(|open| *open += 1);
    let Accepted { stream, peer, alpn, .. } = accepted;
    let peer = peer.map_or_else(|| "-".to_owned(), |id| id.to_string());
    let greeting = format!("{} {peer} {}\n", shared.name, alpn.as_deref().unwrap_or("-"));
    // Whatever ended it, the client has seen it.
    let _ = serve(stream, &greeting).await;
    shared.open.send_modify(|open| *open -= 1);
}

async fn serve(mut stream: Box<dyn Io>, greeting: &str) -> io::Result<()> {
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
