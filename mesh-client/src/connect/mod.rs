//! From an endpoint's address to a connection that can carry requests: TCP, TLS with the peer's
//! identity checked, HTTP/1.1 or HTTP/2, and the pool that keeps them.
//!
//! Refuses to know clusters, routes and retries.

mod http;
pub(crate) mod names;
pub(crate) mod pool;
mod race;
mod stream;
mod system;
mod tls;
mod verify;
pub(crate) mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use mesh_core::policy::{Address, ConnectionOptions, UpstreamProtocol, UpstreamTls};
use mesh_core::source::WatchedIdentity;
use rustls::crypto::CryptoProvider;
use tokio::time::timeout;

pub(crate) use self::http::{Connection, SharedConnection, SoleConnection};
use self::names::Names;
pub(crate) use self::pool::{Lease, Pool, Room};
use self::stream::IoStream;
pub use self::system::SystemResolver;
use self::tls::{Alpn, Tls};
use crate::error::Cause;

/// Where one endpoint is reached, and what TLS has to know of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    /// Where to connect.
    pub(crate) address: Address,
    /// Its other addresses, tried beside the first.
    pub(crate) additional: Box<[Address]>,
    /// It accepts mesh mTLS.
    pub(crate) mesh_tls: bool,
    /// Name for SNI and authority rewriting.
    pub(crate) hostname: Option<String>,
}

/// Which HTTP version a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Whatever ALPN settles on.
    Either,
}

/// Makes the connections of one cluster.
pub(crate) struct Dialer {
    options: ConnectionOptions,
    tls: Tls,
    names: Names,
    // Of the whole cluster, for `max_connections`.
    open: Arc<AtomicU32>,
}

impl Dialer {
    pub(crate) fn new(
        options: ConnectionOptions,
        tls: UpstreamTls,
        dialled_host: &str,
        names: Names,
        identity: WatchedIdentity,
        provider: Option<Arc<CryptoProvider>>,
        open: Arc<AtomicU32>,
    ) -> Self {
        let tls = Tls::new(tls, dialled_host, identity, provider);
        Self { options, tls, names, open }
    }

    pub(crate) fn options(&self) -> &ConnectionOptions {
        &self.options
    }

    /// What the cluster's names stand for.
    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// Connections open in the cluster.
    pub(crate) fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// What a request needs: gRPC is HTTP/2 whatever the cluster says.
    pub(crate) fn want(&self, grpc: bool, peer: &Peer) -> Want {
        match self.options.protocol {
            _ if grpc => Want::Http2,
            UpstreamProtocol::Http1 => Want::Http1,
            UpstreamProtocol::Http2 => Want::Http2,
            UpstreamProtocol::Alpn if self.tls.applies_to(peer) => Want::Either,
            UpstreamProtocol::Alpn => Want::Http1,
        }
    }

    /// Connects: TCP, TLS and the HTTP preface together within the connect timeout.
    pub(crate) async fn dial(&self, peer: &Peer, want: Want, open: pool::OpenGuard) -> Result<Connection, Cause> {
        let after = self.options.connect_timeout;
        let connected = match timeout(after, self.dial_unbounded(peer, want, open)).await {
            Ok(connected) => connected,
            Err(_) => Err(Cause::ConnectTimeout { address: peer.address.clone(), after }),
        };
        if let Err(Cause::ConnectFailed { .. } | Cause::ConnectTimeout { .. }) = &connected {
            // The name may stand for something else by now.
            self.names.suspect();
        }
        connected
    }

    async fn dial_unbounded(&self, peer: &Peer, want: Want, open: pool::OpenGuard) -> Result<Connection, Cause> {
        let failed = |e: std::io::Error| Cause::ConnectFailed { address: peer.address.clone(), source: Arc::new(e) };
        let alpn = match want {
            Want::Http1 => Alpn::Http1,
            Want::Http2 => Alpn::Http2,
            Want::Either => Alpn::Either,
        };
        // Before TCP: a policy that cannot be kept must not even connect.
        let tls = self.tls.connector(peer, alpn).await?;
        let tcp = self.reach(peer).await.map_err(failed)?;
        let (io, h2) = match tls {
            None => (tcp, want == Want::Http2),
            Some(connector) => {
                let io = connector.handshake(tcp, peer).await?;
                let h2 = io.negotiated_h2();
                // A peer that ignores ALPN speaks what the cluster says.
                (io, h2.unwrap_or(want == Want::Http2))
            }
        };
        if h2 { http::http2(io, &self.options, open).await } else { http::http1(io, open).await }
            .map_err(|e| Cause::ConnectFailed { address: peer.address.clone(), source: Arc::new(e) })
    }

    /// A connected stream to one of the peer's addresses.
    async fn reach(&self, peer: &Peer) -> std::io::Result<IoStream> {
        let keepalive = self.options.tcp_keepalive.is_some();
        match &peer.address {
            Address::Unix(path) => return stream::unix(path).await,
            Address::Socket(address) if peer.additional.is_empty() && !self.names.has_alternates(address) => {
                return stream::tcp(*address, keepalive).await;
            }
            Address::Socket(_) | Address::Name { .. } => {}
        }
        let all = std::iter::once(&peer.address).chain(&peer.additional);
        let addresses = self.names.sockets(all).await.map_err(std::io::Error::other)?;
        race::race(&race::interleave(&addresses), |address| stream::tcp(address, keepalive)).await
    }
}
