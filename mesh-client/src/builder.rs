//! Puts a [`Client`] together.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::balance::{Candidates, Draw, MakeNamed, MakePicker, Picker};
use mesh_core::id::Workload;
use mesh_core::policy::{self, Balancer};
use mesh_core::retry::RetryThrottling;
use mesh_core::source::{DestinationSource, Identities, Resolve, Watched};
use mesh_core::telemetry::Metrics;
use mesh_core::telemetry::load::LoadStore;
use rustls::crypto::CryptoProvider;
use rustls::time_provider::TimeProvider;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::client::Client;
use crate::cluster::Breakers;
use crate::connect::{Connect, Custom, SystemResolver};
use crate::destination::Destinations;
use crate::env::{Env, Limits, Random, SystemClock};

/// Settings of a [`Client`]; all have defaults.
#[must_use]
pub struct ClientBuilder {
    source: Arc<dyn DestinationSource>,
    identities: Identities,
    crypto: Option<Arc<CryptoProvider>>,
    clock: Arc<dyn TimeProvider>,
    workload: Arc<Workload>,
    metrics: Arc<Metrics>,
    load: Option<Arc<LoadStore>>,
    runtime: Option<Handle>,
    breakers: Breakers,
    random: Random,
    resolver: Option<Arc<dyn Resolve>>,
    connector: Custom,
    limits: Limits,
    picker: Option<Arc<MakePicker>>,
    balancers: BTreeMap<String, Arc<MakeNamed>>,
    number: Option<u64>,
}

impl ClientBuilder {
    pub(crate) fn new(source: Arc<dyn DestinationSource>) -> Self {
        Self {
            source,
            identities: Identities::new(Watched::fixed(None), []),
            crypto: None,
            clock: Arc::new(SystemClock),
            workload: Arc::default(),
            metrics: Arc::default(),
            load: None,
            runtime: None,
            breakers: Breakers::default(),
            // As uniform as 64 bits let it be; what fastrand does for the rest is a division for each id.
            random: Arc::new(|below| ((u128::from(fastrand::u64(..)) * u128::from(below)) >> 64) as u64),
            resolver: None,
            connector: None,
            limits: Limits::default(),
            picker: None,
            balancers: BTreeMap::new(),
            number: None,
        }
    }

    /// Our certificate, for mutual TLS. Default: none; destinations whose policy demands one then fail
    /// with `MESH-1106`. One [watched identity](mesh_core::source::WatchedIdentity), or several of which policy chooses.
    pub fn identity(mut self, identity: impl Into<Identities>) -> Self {
        self.identities = identity.into();
        self
    }

    /// The cryptography of TLS connections. Default: none; destinations whose policy demands TLS fail.
    pub fn crypto(mut self, provider: Arc<CryptoProvider>) -> Self {
        self.crypto = Some(provider);
        self
    }

    /// The date by which certificates of peers are judged. All waiting goes by tokio's clock. Default: the operating
    /// system's.
    pub fn clock(mut self, clock: Arc<dyn TimeProvider>) -> Self {
        self.clock = clock;
        self
    }

    /// Who we are, for routes that depend on the caller and for metrics. Default: unknown.
    pub fn workload(mut self, workload: Arc<Workload>) -> Self {
        self.workload = workload;
        self
    }

    /// Where requests are counted. Default: metrics of this client's own.
    pub fn metrics(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = metrics;
        self
    }

    /// Where the load of clusters is counted whose control plane wants to hear of it (LRS). Default: it is not.
    pub fn load(mut self, load: Arc<LoadStore>) -> Self {
        self.load = Some(load);
        self
    }

    /// Where control tasks run: one for each destination, and those of its clusters. It has to be driven; when it has ended, they
    /// go on where requests are. Default: the runtime of the request that needs one first, or misses it (see
    /// [`Client`](Client#several-runtimes)). Connections are always driven on the runtime of the request that made them.
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Counters of what is in flight, for circuit breakers: give the same to all clients of a process whose clusters
    /// are the same (gRFC A32). Injected faults under way are counted there as well (gRFC A33). Default: this client's own.
    pub fn breakers(mut self, breakers: Breakers) -> Self {
        self.breakers = breakers;
        self
    }

    /// Randomness: gives a uniform number below its argument, which is never 0. Default: fastrand.
    pub fn random(mut self, random: impl Fn(u64) -> u64 + Send + Sync + 'static) -> Self {
        self.random = Arc::new(random);
        self
    }

    /// Who looks names up. Default: the operating system ([`SystemResolver`]), which tells no TTL and knows
    /// no SRV records.
    pub fn resolver(mut self, resolver: Arc<dyn Resolve>) -> Self {
        self.resolver = Some(resolver);
        self
    }

    /// Who connects to endpoints. Default: TCP and unix sockets of the operating system.
    pub fn connector(mut self, connector: impl Connect) -> Self {
        self.connector = Some(Arc::new(connector));
        self
    }

    /// Shortest TTL of a name that is believed (Envoy's `dns_min_refresh_rate`), and shortest time between a look-up and
    /// one more because a connection failed. A cluster's `dns_refresh_rate` may be shorter. Default 5 s.
    pub fn dns_min_refresh(mut self, time: Duration) -> Self {
        self.limits.dns_min_refresh = time;
        self
    }

    /// Pickers of the application's own: asked for every cluster and every pool of candidates in it (one
    /// for each priority, usually, or for each of its localities where policy weighs them and does not hash); `None` = the balancer that policy names. Default: policy's.
    ///
    /// One that panics when it is asked for a picker has none to give.
    ///
    /// What stands around a picker stays: priorities, shares of localities, panic, slow start, and passing over endpoints that
    /// cannot be reached.
    ///
    /// What endpoints say of their load with answers (ORCA) it [hears](Picker::hear), whatever balancer policy names. Streams of
    /// reports are opened, and probes sent, only where that balancer is one of ours that goes by them; what those say is in the
    /// [load](Candidates), as ours read it.
    pub fn picker(
        mut self,
        make: impl Fn(&policy::Cluster, &Candidates, &mut Draw<'_>) -> Option<Box<dyn Picker>> + Send + Sync + 'static,
    ) -> Self {
        // It is called where endpoints are kept up to date: a panic would end that for good.
        let make = move |cluster: &policy::Cluster, candidates: &Candidates, draw: &mut Draw<'_>| {
            catch_unwind(AssertUnwindSafe(|| make(cluster, candidates, draw))).unwrap_or_else(|_| {
                tracing::error!(cluster = %cluster.name, "the maker of pickers panicked: the balancer is policy's");
                None
            })
        };
        self.picker = Some(Arc::new(make));
        self
    }

    /// A load-balancing policy of the application's own, for clusters whose policy is [`Balancer::Custom`] of this name: asked
    /// as [`picker`](Self::picker) is, and after it, with the policy's configuration; it hears what one of those hears. `None`, or a panic = in turn, by weight.
    /// Over xDS such a policy is taken if the source of configuration knows of the name: `MeshBuilder::balancer` of the facade
    /// tells both.
    pub fn balancer(
        mut self,
        name: impl Into<String>,
        make: impl Fn(&str, &Candidates, &mut Draw<'_>) -> Option<Box<dyn Picker>> + Send + Sync + 'static,
    ) -> Self {
        self.balancers.insert(name.into(), Arc::new(make));
        self
    }

    /// Which of its fleet this client is, counted from 0 (the ordinal of a StatefulSet, say), for clusters
    /// of which each client uses a part. Bits above the 32nd tell fleets apart, which would have the same parts otherwise.
    /// Default: a random number, with which deterministic subsetting is as uneven as random subsetting.
    pub fn number(mut self, number: u64) -> Self {
        self.number = Some(number);
        self
    }

    /// Longest wait of a request for the first configuration of its destination. Default 5 s.
    pub fn config_wait(mut self, wait: Duration) -> Self {
        self.limits.config_wait = wait;
        self
    }

    /// Longest wait of a request for a connection or stream while as many as policy allows are in use; then it fails
    /// with `MESH-1301`. Those who wait are served in the order in which they came: one that nobody polls, or whose runtime
    /// stands still, keeps those behind it waiting, as at any fair lock. How many may wait is policy's `max_pending`.
    /// Default: until the request's own deadline, as in Envoy.
    pub fn queue_wait(mut self, wait: Duration) -> Self {
        self.limits.queue_wait = Some(wait);
        self
    }

    /// Time for requests under way to an endpoint that discovery says is gone, alone or with its whole cluster or
    /// destination; then their connections are closed. Meanwhile no other request goes there. A cluster that routes
    /// merely no longer name is not gone: what is under way to it ends in its own time, as in Envoy and gRPC (A31), and so
    /// it does where other policy for a cluster leaves its endpoints. If the endpoint comes back within the limit, what is
    /// under way there goes on. An answer over HTTP/1.1 that is held and not read is cut off when it is read again or
    /// dropped. Connections that are the application's have a [limit of their own](Self::raw_drain_limit). Default 30 s;
    /// `Duration::MAX` = until they end, as in Envoy.
    pub fn drain_limit(mut self, limit: Duration) -> Self {
        self.limits.drain.requests = limit;
        self
    }

    /// The same for connections that are the application's, be they raw ([`Client::connect`](crate::Client::connect)) or such
    /// that have changed their protocol over HTTP/1.1 (a WebSocket, a tunnel by CONNECT; over HTTP/2 that is a stream, and a
    /// request like others). At the limit one is closed whether anybody uses it then or not: reading and writing fail with
    /// [`ConnectionAborted`](std::io::ErrorKind::ConnectionAborted).
    ///
    /// Default: `Duration::MAX`, until one of both sides ends them, or, of a raw one, policy's idle timeout. So it is in Envoy, where removal of a
    /// host, or of its cluster, drains pools and leaves the connections of `tcp_proxy` alone
    /// (only `close_connections_on_host_health_failure` closes those, and for health), and in Linkerd's proxy, which forwards
    /// until one side closes. Nobody but the two sides knows where a protocol may be interrupted: a server that leaves finishes
    /// the transactions it has, a client that is cut off in one cannot tell whether it was made, and sends it again to another one.
    /// What is lost without a limit: an endpoint that is gone without a word holds its connections, and their places among
    /// `max_connections`, until the kernel's keepalive (policy's `tcp_keepalive`) or a write finds out, or its reader's timeout.
    pub fn raw_drain_limit(mut self, limit: Duration) -> Self {
        self.limits.drain.handed = limit;
        self
    }

    /// Linkerd's fail-fast, for each cluster by itself: a request that gets no connection within `wait`, be it that all
    /// are in use or that none can be made, fails with `MESH-1301`; if no other request got one meanwhile, those that
    /// follow fail at once, but for one in each `wait` that looks again, until one has a connection. What finds a
    /// connection that is free passes all the time. Linkerd's proxy waits 3 s. Default: none, as in Envoy.
    pub fn fail_fast(mut self, wait: Duration) -> Self {
        self.limits.fail_fast = Some(wait);
        self
    }

    /// gRPC's retry throttling (gRFC A6), for each destination by itself: retries and hedged tries end when failures
    /// have emptied half of its tokens. In gRPC it stands in a service config, which xDS does not carry: there Envoy's
    /// retry budget bounds retries, and this counts beside it. A call counts with its status, be it in the trailers; one
    /// whose method has no retry policy earns tokens and costs none. Default: none.
    pub fn retry_throttling(mut self, throttling: RetryThrottling) -> Self {
        self.limits.retry_throttling = Some(throttling);
        self
    }

    /// Client-side throttling as in the SRE book ("Handling Overload"), for each destination by itself: once there are `k`
    /// times as many requests within `window` as succeed, a share of them fails at once with `MESH-1303`, the larger the fewer
    /// succeed, and no destination is spared for good. A request is counted when it is asked for, and succeeds unless its
    /// status is 5xx or one of gRPC's for servers in trouble. The book has a `k` of 2 (taken as at least 1) and two minutes.
    /// Envoy's variant is policy's (`admission_control`). Default: none.
    pub fn throttling(mut self, k: f64, window: Duration) -> Self {
        self.limits.throttling = Some((k, window));
        self
    }

    /// Destinations unused for so long are forgotten, their connections closed. Default 10 minutes.
    pub fn forget_after(mut self, unused: Duration) -> Self {
        self.limits.forget_after = unused;
        self
    }

    /// Destinations held at once; requests to more fail. Default 4096.
    pub fn max_destinations(mut self, most: usize) -> Self {
        self.limits.destinations = most;
        self
    }

    /// Bytes of a streaming request body kept so that it can be sent again; a body that grows beyond is
    /// not retried. Default 64 KiB.
    pub fn replay_limit(mut self, bytes: usize) -> Self {
        self.limits.replay = bytes;
        self
    }

    /// Copies of requests (mirrors) under way at once; what would be more is not sent. Default 256.
    pub fn max_mirrors(mut self, most: usize) -> Self {
        self.limits.mirrors = most;
        self
    }

    /// The client. Needs no runtime yet; the first request does.
    pub fn build(self) -> Client {
        let source = self.source.clone();
        let env = self.env();
        let destinations = Arc::new(Destinations::new(env.clone(), source));
        Client::of(env, destinations)
    }

    /// What all parts of the client share.
    pub(crate) fn env(self) -> Arc<Env> {
        let number = self.number.unwrap_or_else(|| (self.random)(u64::MAX));
        let channel_id = (self.random)(u64::MAX);
        Arc::new(Env {
            identities: self.identities,
            crypto: self.crypto,
            clock: self.clock,
            workload: self.workload,
            metrics: self.metrics,
            load: self.load,
            runtime: self.runtime,
            breakers: self.breakers,
            random: self.random,
            resolver: self.resolver.unwrap_or_else(|| Arc::new(SystemResolver::new())),
            connector: self.connector,
            limits: self.limits,
            epoch: Instant::now(),
            picks_all: self.picker.is_some(),
            picker: named(self.balancers, self.picker),
            number,
            channel_id,
        })
    }
}

/// The picker of the application's own, `before`, and its balancers for clusters that name them.
fn named(balancers: BTreeMap<String, Arc<MakeNamed>>, before: Option<Arc<MakePicker>>) -> Option<Arc<MakePicker>> {
    if balancers.is_empty() {
        return before;
    }
    Some(Arc::new(move |cluster: &policy::Cluster, candidates: &Candidates, draw: &mut Draw<'_>| {
        let own = before.as_ref().and_then(|before| before(cluster, candidates, draw));
        own.or_else(|| {
            let Balancer::Custom { name, config } = cluster.balancer.leaf() else { return None };
            let make = balancers.get(&**name)?;
            catch_unwind(AssertUnwindSafe(|| make(config, candidates, draw))).unwrap_or_else(|_| {
                tracing::error!(cluster = %cluster.name, balancer = %name, "the maker of pickers panicked: it goes in turn");
                None
            })
        })
    }))
}
