//! Putting a [`Server`] together.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use tokio::time::Instant;

use mesh_core::authz::{ExternalAuthorizer, ExternalAuthorizers};
use mesh_core::drain::{self, DrainWatch};
use mesh_core::id::Workload;
use mesh_core::policy::{AuthorizerProvider, InboundState};
use mesh_core::source::{Identities, Watched};
use mesh_core::telemetry::Metrics;

use crate::dates::Dates;
use crate::inbound::Door;
use crate::layer::{Concurrency, Gate, Limits, Places, Policy, Priorities, Scope, Shared, Slashes};
use crate::listen::TlsAccept;
use crate::load::LoadReports;
use crate::{Config, InboundLayer, InboundStats, LoadReporter, Readiness, Server};

/// Builds a [`Server`]. What is not given: no identity (TLS is refused), no policy (connections are refused; the
/// [layer alone](Server::inbound_layer) lets everything pass), no drain, and fresh counters that nobody reads.
#[must_use]
pub struct ServerBuilder {
    identities: Identities,
    crypto: Option<Arc<CryptoProvider>>,
    clock: Arc<dyn TimeProvider>,
    inbound: Option<Watched<InboundState>>,
    workload: Arc<Workload>,
    service_host: Option<String>,
    metrics: Arc<Metrics>,
    stats: Arc<InboundStats>,
    drain: Option<DrainWatch>,
    readiness: Readiness,
    config: Config,
    load: Option<LoadReporter>,
    authorizers: Arc<dyn ExternalAuthorizers>,
}

impl ServerBuilder {
    pub(crate) fn new() -> Self {
        Self {
            identities: Identities::new(Watched::fixed(None), []),
            crypto: None,
            clock: Arc::new(SystemClock),
            inbound: None,
            workload: Arc::default(),
            service_host: None,
            metrics: Arc::default(),
            stats: Arc::default(),
            drain: None,
            readiness: Readiness::default(),
            config: Config::default(),
            load: None,
            authorizers: Arc::new(Nobody),
        }
    }

    /// Our certificate and whom we trust; followed through rotations. One
    /// [watched identity](mesh_core::source::WatchedIdentity), or several of which policy chooses.
    pub fn identity(mut self, identity: impl Into<Identities>) -> Self {
        self.identities = identity.into();
        self
    }

    /// The cryptography TLS uses. Default: a fresh aws-lc-rs provider; the process default is never
    /// touched.
    pub fn crypto(mut self, provider: Arc<CryptoProvider>) -> Self {
        self.crypto = Some(provider);
        self
    }

    /// The date, by which certificates of callers and their tokens are judged. All waiting goes by tokio's clock. Default: the
    /// operating system's.
    pub fn clock(mut self, clock: Arc<dyn TimeProvider>) -> Self {
        self.clock = clock;
        self
    }

    /// The policy of the listening address, followed as it changes. Until it comes everything is refused: connections, and
    /// requests to the [layer alone](Server::inbound_layer) (503, `MESH-1003`).
    pub fn inbound(mut self, inbound: Watched<InboundState>) -> Self {
        self.inbound = Some(inbound);
        self
    }

    /// Who we are in metrics.
    pub fn workload(mut self, workload: Arc<Workload>) -> Self {
        self.workload = workload;
        self
    }

    /// The service we are, for metrics' `destination_service`. Default:
    /// `<canonical name>.<namespace>.svc.cluster.local`.
    pub fn service_host(mut self, host: impl Into<String>) -> Self {
        self.service_host = Some(host.into());
        self
    }

    /// Where requests are counted.
    pub fn metrics(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = metrics;
        self
    }

    /// Where connections are counted.
    pub fn stats(mut self, stats: Arc<InboundStats>) -> Self {
        self.stats = stats;
        self
    }

    /// What ends the server: after [`Config::lame_duck`] it stops accepting, lets requests in flight finish, and
    /// returns.
    pub fn drain(mut self, drain: DrainWatch) -> Self {
        self.drain = Some(drain);
        self
    }

    /// Where the server says whether it can serve.
    pub fn readiness(mut self, readiness: Readiness) -> Self {
        self.readiness = readiness;
        self
    }

    /// Limits. Default: [`Config::default`].
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Tells callers of the load (ORCA, gRFC A51), which they balance by: in the trailer `endpoint-load-metrics-bin` of
    /// gRPC answers and the header of that name of others; on a stream
    /// (`xds.service.orca.v3.OpenRcaService/StreamCoreMetrics`); and to a GET of `/.well-known/mesh-load`, with which
    /// Prequal probes. The two paths are the server's own then: they are not counted as requests, and only authorization
    /// stands before them. Default: nobody is told anything.
    pub fn load_reports(mut self, load: LoadReporter) -> Self {
        self.load = Some(load);
        self
    }

    /// Whom CUSTOM policies ask. Default: nobody, so that what they match is denied.
    pub fn authorizers(mut self, authorizers: Arc<dyn ExternalAuthorizers>) -> Self {
        self.authorizers = authorizers;
        self
    }

    /// The server.
    pub fn build(self) -> Server {
        let workload = self.workload;
        let service_host = self
            .service_host
            .unwrap_or_else(|| format!("{}.{}.svc.cluster.local", workload.canonical_name, workload.namespace));
        let provider = self.crypto.unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
        let drain = self.drain.unwrap_or_else(|| drain::channel().1);
        let identities = self.identities.clone();
        let policy = Policy::new(self.inbound.clone());
        let inbound = self.inbound.unwrap_or_else(|| Watched::fixed(InboundState::Pending));
        let metrics = self.metrics;
        let peers = metrics.peers().clone();
        let floor = self.config.min_load_report_interval;
        let layer = InboundLayer::new(Shared {
            policy,
            identities,
            workload,
            service_host,
            metrics: metrics.clone(),
            drain: drain.clone(),
            load: self.load.map(|load| Arc::new(LoadReports::new(load, floor))),
            slashes: Slashes::new(self.config.encoded_slash, &self.config.encoded_slash_at),
            gate: Gate::new(self.authorizers, self.clock.clone(), metrics),
            lent: AtomicBool::new(false),
            max_headers: self.config.max_headers,
            places: self.config.max_requests.map(Places::new),
            priorities: Priorities::new(&self.config.priorities),
            adaptive: self
                .config
                .adaptive_concurrency
                .as_ref()
                .map(|policy| Arc::new(Concurrency::new(policy, Instant::now()))),
            limits: Limits::new(Scope::Server),
        });
        let dates = Arc::new(Dates::new(self.clock.clone()));
        let tls = TlsAccept::new(&self.identities, provider, self.clock, peers);
        let door = Door::new(self.config, inbound, tls, layer, self.stats, drain, dates);
        Server::new(Arc::new(door), self.readiness)
    }
}

/// The date by the operating system. Before 1970 there is none, where rustls' own would panic.
#[derive(Debug)]
struct SystemClock;

impl TimeProvider for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place of the server that knows the date")]
    fn current_time(&self) -> Option<UnixTime> {
        SystemTime::now().duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// Nobody to ask.
struct Nobody;

impl ExternalAuthorizers for Nobody {
    fn authorizer(&self, _: &AuthorizerProvider) -> Option<Arc<dyn ExternalAuthorizer>> {
        None
    }
}
