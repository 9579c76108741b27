//! What every part of one client shares: identity, metrics, randomness, limits. Nothing of it is global.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_core::balance::MakePicker;
use mesh_core::id::Workload;
use mesh_core::policy::Balancer;
use mesh_core::retry::RetryThrottling;
use mesh_core::source::{Identities, Resolve};
use mesh_core::telemetry::load::LoadStore;
use mesh_core::telemetry::{Metrics, PeerLabels, Reporter, RequestLabels};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::cluster::Breakers;
use crate::connect::Custom;
use crate::connect::worker::Drain;

/// Gives a uniform number below its argument, which is never 0.
pub(crate) type Random = Arc<dyn Fn(u64) -> u64 + Send + Sync>;

/// The surroundings of one client.
pub(crate) struct Env {
    pub(crate) identities: Identities,
    pub(crate) crypto: Option<Arc<CryptoProvider>>,
    pub(crate) workload: Arc<Workload>,
    pub(crate) metrics: Arc<Metrics>,
    /// Where load is counted for the control plane.
    pub(crate) load: Option<Arc<LoadStore>>,
    /// Where control tasks run as long as it is there; `None` = the runtime of the request that needs one first, or takes
    /// one over.
    pub(crate) runtime: Option<Handle>,
    /// What is in flight, and the injected faults under way, of all clients that share it.
    pub(crate) breakers: Breakers,
    pub(crate) random: Random,
    pub(crate) resolver: Arc<dyn Resolve>,
    /// Stands in for TCP and unix sockets.
    pub(crate) connector: Custom,
    pub(crate) limits: Limits,
    /// The date, by which certificates are judged.
    pub(crate) clock: Arc<dyn TimeProvider>,
    /// Start of this client's clock.
    pub(crate) epoch: Instant,
    /// Pickers of the application's own.
    pub(crate) picker: Option<Arc<MakePicker>>,
    /// They may be for any cluster, and not only for those that name one.
    pub(crate) picks_all: bool,
    /// Which of its fleet this client is, for subsetting.
    pub(crate) number: u64,
    /// One random number for this client's life, to hash by (gRFC A42).
    pub(crate) channel_id: u64,
}

/// The date by the operating system. Before 1970 there is none, where rustls' own would panic.
#[derive(Debug)]
pub(crate) struct SystemClock;

impl TimeProvider for SystemClock {
    fn current_time(&self) -> Option<UnixTime> {
        since_epoch().map(UnixTime::since_unix_epoch)
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place of the client that knows the date")]
fn since_epoch() -> Option<Duration> {
    SystemTime::now().duration_since(UNIX_EPOCH).ok()
}

/// Bounds of one client.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Longest wait of a first request for its destination's configuration.
    pub(crate) config_wait: Duration,
    /// Destinations unused for so long are forgotten.
    pub(crate) forget_after: Duration,
    /// Destinations held at once.
    pub(crate) destinations: usize,
    /// Bytes of a streaming request body kept for a retry.
    pub(crate) replay: usize,
    /// Copies of requests under way at once.
    pub(crate) mirrors: usize,
    /// Shortest TTL of a name that is believed.
    pub(crate) dns_min_refresh: Duration,
    /// Routers of one destination built at once, and then each second: of changes that come faster the newest counts.
    pub(crate) builds: (u32, u32),
    /// Longest wait of a request for a connection while as many as allowed are in use.
    pub(crate) queue_wait: Option<Duration>,
    /// Time for what is under way to an endpoint that is gone.
    pub(crate) drain: Drain,
    /// Longest wait for a connection of any kind, after which further requests fail at once.
    pub(crate) fail_fast: Option<Duration>,
    /// gRPC's retry throttling, of each destination by itself.
    pub(crate) retry_throttling: Option<RetryThrottling>,
    /// Throttling by the SRE book's rule, of each destination by itself: K, and the window.
    pub(crate) throttling: Option<(f64, Duration)>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            config_wait: Duration::from_secs(5),
            forget_after: Duration::from_secs(600),
            destinations: 4096,
            replay: 64 * 1024,
            mirrors: 256,
            dns_min_refresh: Duration::from_secs(5),
            builds: (4, 16),
            queue_wait: None,
            drain: Drain { requests: Duration::from_secs(30), handed: Duration::MAX },
            fail_fast: None,
            retry_throttling: None,
            throttling: None,
        }
    }
}

impl Env {
    /// Makes a cluster's picker, if that may be one of the application's own.
    pub(crate) fn picker_for(&self, balancer: &Balancer) -> Option<Arc<MakePicker>> {
        let named = matches!(balancer.leaf(), Balancer::Custom { .. });
        self.picker.clone().filter(|_| self.picks_all || named)
    }

    /// A uniform number below `below`.
    pub(crate) fn draw(&self, below: u64) -> u64 {
        (self.random)(below)
    }

    /// A draw for [`PerMillion`](mesh_core::policy::PerMillion).
    pub(crate) fn draw_million(&self) -> u32 {
        self.draw(1_000_000) as u32
    }

    /// This client's clock, as balancers want it.
    pub(crate) fn since_epoch(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    /// The same in milliseconds.
    pub(crate) fn millis(&self, now: Instant) -> u64 {
        self.since_epoch(now).as_millis() as u64
    }

    /// The time since 1970: where an answer names a point in time, to the millisecond. For nothing that must not jump.
    pub(crate) fn unix_time(&self) -> Duration {
        since_epoch().unwrap_or_default()
    }

    /// Random bits for ids.
    pub(crate) fn id(&self) -> u64 {
        self.draw(u64::MAX)
    }

    /// The runtime for the owner of a destination, and all that it begins.
    pub(crate) fn runtime(&self) -> Handle {
        self.runtime.clone().unwrap_or_else(Handle::current)
    }

    /// Labels of requests of ours to a service; the endpoint's are added where it is known.
    pub(crate) fn labels(&self, service: String, name: String, namespace: String) -> RequestLabels {
        let identity = self.identities.own().load();
        let principal = identity.as_ref().as_ref().map(|identity| identity.id());
        RequestLabels {
            reporter: Reporter::Source,
            source: PeerLabels::of(&self.workload, principal),
            destination: PeerLabels::default(),
            destination_service: service,
            destination_service_name: name,
            destination_service_namespace: namespace,
            mutual_tls: None,
        }
    }
}
