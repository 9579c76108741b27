//! From an endpoint's address to a connection that can carry requests: TCP, TLS with the peer's
//! identity checked, HTTP/1.1 or HTTP/2, and the pool that keeps them.
//!
//! Refuses to know clusters, routes and retries.

mod back_off;
mod custom;
mod handed;
mod http;
mod http1;
mod http2;
pub(crate) mod names;
pub(crate) mod pool;
mod settings;
mod stream;
mod system;
mod tls;
mod trust;
mod tunnel;
mod verify;
pub(crate) mod worker;

use std::sync::{Arc, Weak};
use std::time::Duration;

use mesh_core::id::{ClusterName, SpiffeId};
use mesh_core::policy::{Address, Cluster, ConnectionOptions, EndpointMetadata, HttpProxy, UpstreamProtocol};
use mesh_core::race;
use tokio::time::{Instant, timeout};

pub(crate) use self::custom::Custom;
pub use self::custom::{Connect, Io};
pub(crate) use self::handed::{Handed, Held, Way};
use self::http::Life;
pub(crate) use self::http::{Connection, SharedConnection, SoleConnection, changes_protocol};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::http1::answer;
pub(crate) use self::http1::{Download as Http1Download, Error as Http1Error, Flight as Http1Flight, RequestHead};
pub(crate) use self::http2::Download as Http2Download;
use self::names::Names;
use self::pool::Counts;
pub(crate) use self::pool::{Connections, Full, Lease, OpenGuard, PER_HOST, Pool, Room};
pub(crate) use self::stream::IoStream;
pub use self::system::SystemResolver;
pub(crate) use self::tls::refusal;
use self::tls::{Alpn, Tls, speaks_none_of_ours};
use self::worker::Drain;
use crate::env::{Env, Random};
use crate::error::Cause;

/// Longest life of a connection of the mesh's, or one by the roots of a certificate provider, for which policy names none:
/// then its peer proves anew who it is.
const MESH_AGE: Duration = Duration::from_secs(3600);
/// Why a request that asks for another protocol cannot be sent where the peer settles what is spoken.
const NO_HTTP1: &str = "the request asks for another protocol than HTTP (Upgrade), which HTTP/2 has no words for, and the \
                        endpoint does not speak HTTP/1.1";

/// Where one endpoint is reached, and what TLS has to know of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    /// Where to connect.
    pub(crate) address: Address,
    /// Its other addresses, tried beside the first.
    pub(crate) additional: Box<[Address]>,
    /// What policy says of it; one for many endpoints.
    pub(crate) metadata: Arc<EndpointMetadata>,
}

/// What is under way at an endpoint whose pool is closed.
pub(crate) struct Rest {
    /// Where that is.
    pub(crate) address: Address,
    counts: Weak<Counts>,
}

impl Rest {
    pub(crate) fn of(pool: &Pool) -> Self {
        Self { address: pool.peer.address.clone(), counts: Arc::downgrade(&pool.counts) }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.counts.strong_count() == 0
    }

    /// Its endpoint is gone, and it has so long from when that was said first.
    pub(crate) fn end_within(&self, limit: Drain, cluster: &ClusterName) {
        if let Some(counts) = self.counts.upgrade() {
            // Whoever hears of it is told which one.
            let who = || format!("the endpoint {} of cluster {cluster}", self.address).into();
            counts.lines.end_within(limit, who);
        }
    }

    /// Its endpoint is there.
    pub(crate) fn stay(&self) {
        if let Some(counts) = self.counts.upgrade() {
            counts.lines.stay();
        }
    }
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

/// What a request asks of its connection, beyond what its cluster says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing.
    Nothing,
    /// HTTP/2: it is a gRPC call.
    Http2,
    /// HTTP/1.1 where there is a choice: its connection is to become something else than HTTP.
    Http1,
}

impl Needs {
    pub(crate) fn of(grpc: bool) -> Self {
        if grpc { Self::Http2 } else { Self::Nothing }
    }
}

/// Makes the connections of one cluster.
pub(crate) struct Dialer {
    options: ConnectionOptions,
    // On the way to the endpoints (gRFC A86).
    proxy: Option<HttpProxy>,
    tls: Arc<Tls>,
    names: Arc<Names>,
    custom: Custom,
    random: Random,
    // Of the whole cluster, for `max_connections`.
    open: Arc<Connections>,
}

impl Pool {
    /// Whether its connections are TLS.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.dialer.encrypts(&self.peer)
    }

    /// A failure of one of its connections, with what of our own may be the reason.
    pub(crate) fn explained(&self, cause: Cause) -> Cause {
        self.dialer.tls.explained(cause)
    }
}

impl Dialer {
    /// `open` counts the connections of the cluster; `before` is that of the one whose place it takes.
    pub(crate) fn new(
        cluster: &Cluster,
        dialled_host: &str,
        env: &Env,
        open: Arc<Connections>,
        before: Option<&Self>,
    ) -> Self {
        let tls = Tls::new(cluster.tls.clone(), dialled_host, env);
        let names =
            Names::new(env.resolver.clone(), env.random.clone(), env.limits.dns_min_refresh, cluster.dns.clone());
        let names = names.knowing(before.map(|before| &*before.names));
        let (options, custom, random) = (cluster.connection.clone(), env.connector.clone(), env.random.clone());
        Self { options, proxy: cluster.proxy.clone(), tls: Arc::new(tls), names: Arc::new(names), custom, random, open }
    }

    /// Whether the connections to a peer are TLS.
    pub(crate) fn encrypts(&self, peer: &Peer) -> bool {
        self.tls.applies_to(peer)
    }

    /// What keeps connections to a peer from being made now, as far as that is known beforehand.
    pub(crate) fn lacks(&self, peer: &Peer) -> Option<Cause> {
        self.tls.lacks(peer)
    }

    /// The same ways with other options; its connections are counted apart.
    pub(crate) fn with(&self, options: ConnectionOptions) -> Self {
        let (tls, names) = (self.tls.clone(), self.names.clone());
        let (proxy, custom, random) = (self.proxy.clone(), self.custom.clone(), self.random.clone());
        Self { options, proxy, tls, names, custom, random, open: Arc::default() }
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
        self.open.get()
    }

    /// What a request is sent over: gRPC is HTTP/2 whatever the cluster says.
    pub(crate) fn want(&self, needs: Needs, peer: &Peer) -> Want {
        match (needs, self.options.protocol) {
            (Needs::Http2, _) | (_, UpstreamProtocol::Http2) => Want::Http2,
            (_, UpstreamProtocol::Http1) | (Needs::Http1, UpstreamProtocol::Alpn) => Want::Http1,
            (Needs::Nothing, UpstreamProtocol::Alpn) if self.tls.applies_to(peer) => Want::Either,
            (Needs::Nothing, UpstreamProtocol::Alpn) => Want::Http1,
        }
    }

    /// Connects: TCP, TLS and the HTTP preface together within the connect timeout.
    pub(crate) async fn dial(&self, peer: &Peer, want: Want, open: OpenGuard) -> Result<Connection, Cause> {
        self.in_time(peer, self.dial_http(peer, want, open)).await
    }

    /// Connects for bytes of any kind: TCP and TLS within the connect timeout. Tells who the peer is, if the
    /// connection is the mesh's.
    pub(crate) async fn dial_raw(&self, peer: &Peer) -> Result<(IoStream, Option<SpiffeId>), Cause> {
        let io = self.in_time(peer, self.secure(peer, Alpn::Raw)).await?;
        let id = if self.tls.is_mesh(peer) { io.peer_id() } else { None };
        Ok((io, id))
    }

    async fn in_time<T>(&self, peer: &Peer, dial: impl Future<Output = Result<T, Cause>>) -> Result<T, Cause> {
        let after = self.options.connect_timeout;
        let connected = match timeout(after, dial).await {
            Ok(connected) => connected,
            Err(_) => Err(Cause::ConnectTimeout { address: peer.address.clone(), after }),
        };
        if let Err(Cause::ConnectFailed { .. } | Cause::ConnectTimeout { .. }) = &connected {
            // The name may stand for something else by now.
            self.names.suspect();
        }
        connected
    }

    async fn dial_http(&self, peer: &Peer, want: Want, open: OpenGuard) -> Result<Connection, Cause> {
        let io = self.stream(peer, want).await?;
        // A peer without TLS, or one that ignores ALPN, speaks what the cluster says.
        let h2 = io.negotiated_h2().unwrap_or(want == Want::Http2);
        let life = self.life(peer);
        if !h2 {
            return Ok(http::http1(io, life, open));
        }
        let connected = http::http2(io, &self.options, life, open).await;
        connected.map_err(|error| {
            let address = peer.address.clone();
            match refusal(error.error()) {
                Some(refusal) => self.tls.explained(Cause::TlsHandshake { address, source: Arc::new(refusal) }),
                None => Cause::ConnectFailed { address, source: error.into_source() },
            }
        })
    }

    /// The bytes below HTTP: TCP, and TLS as the policy says.
    pub(crate) async fn stream(&self, peer: &Peer, want: Want) -> Result<IoStream, Cause> {
        let alpn = match want {
            Want::Http1 => Alpn::Http1,
            Want::Http2 => Alpn::Http2,
            Want::Either => Alpn::Either,
        };
        self.secure(peer, alpn).await
    }

    /// TCP, and TLS if policy says so.
    async fn secure(&self, peer: &Peer, alpn: Alpn) -> Result<IoStream, Cause> {
        let failed = |e: std::io::Error| Cause::ConnectFailed { address: peer.address.clone(), source: Arc::new(e) };
        // Before TCP: a policy that cannot be kept must not even connect.
        let tls = self.tls.connector(peer, alpn).await?;
        let tcp = self.reach(peer).await.map_err(failed)?;
        match tls {
            None => Ok(tcp),
            // Whoever answers there may be somebody else by now.
            Some(connector) => connector.handshake(tcp, peer).await.map_err(|cause| {
                // It was asked for less than it may speak: that is no failure of its own.
                let asked_for_less = self.options.protocol == UpstreamProtocol::Alpn && alpn == Alpn::Http1;
                if asked_for_less && speaks_none_of_ours(&cause) {
                    return Cause::UnsupportedAction(NO_HTTP1);
                }
                self.names.suspect();
                self.tls.explained(cause)
            }),
        }
    }

    /// How long a connection made now may live.
    fn life(&self, peer: &Peer) -> Life {
        let age = self.options.max_age.or_else(|| self.tls.is_watched(peer).then_some(MESH_AGE));
        let worn_at = age.and_then(|age| Instant::now().checked_add(self.shortened(age)));
        Life { worn_at, idle: self.options.idle_timeout.map(|most| self.shortened(most)) }
    }

    /// Limits are up to a tenth shorter for some connections than for others, so that those made together do not end
    /// together.
    fn shortened(&self, limit: Duration) -> Duration {
        let tenth = u64::try_from(limit.as_micros() / 10).unwrap_or(u64::MAX);
        let early = if tenth == 0 { 0 } else { (self.random)(tenth) };
        limit - Duration::from_micros(early)
    }

    /// A connected stream to one of the peer's addresses, or to the proxy in front of them.
    async fn reach(&self, peer: &Peer) -> std::io::Result<IoStream> {
        match self.proxy.as_ref().and_then(|proxy| proxy.of(&peer.metadata)) {
            None => self.reach_one_of(&peer.address, &peer.additional).await,
            Some(proxy) => tunnel::through(self.reach_one_of(proxy, &[]).await?, &peer.address).await,
        }
    }

    async fn reach_one_of(&self, address: &Address, additional: &[Address]) -> std::io::Result<IoStream> {
        match address {
            Address::Unix(_) => return self.connect_to(address.clone()).await,
            Address::Socket(socket) if additional.is_empty() && !self.names.has_alternates(socket) => {
                return self.connect_to(address.clone()).await;
            }
            Address::Socket(_) | Address::Name { .. } => {}
        }
        let all = std::iter::once(address).chain(additional);
        let addresses = self.names.sockets(all).await.map_err(std::io::Error::other)?;
        race::race(&race::interleave(&addresses), |address| self.connect_to(Address::Socket(address))).await
    }

    async fn connect_to(&self, address: Address) -> std::io::Result<IoStream> {
        match (&self.custom, address) {
            (Some(custom), address) => Ok(custom.connect(address).await?.into()),
            (None, Address::Socket(address)) => stream::tcp(address, self.options.tcp_keepalive.as_ref()).await,
            (None, Address::Unix(path)) => stream::unix(&path).await,
            (None, Address::Name { .. }) => Err(std::io::Error::other("a name that was not looked up")),
        }
    }
}
