//! One cluster: how its endpoints are found, chosen, connected to and limited
//! (`envoy.config.cluster.v3.Cluster`, Istio DestinationRule).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{Address, EndpointMetadata, Endpoints, HeaderWrite, Health, PerMillion, UpstreamTls};
use crate::id::ClusterName;

/// One cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Cluster {
    /// Resource name.
    pub name: ClusterName,
    /// Where its endpoints come from.
    pub discovery: Discovery,
    /// How one is chosen.
    pub balancer: Balancer,
    /// How localities take part.
    pub locality: LocalityBalancing,
    /// Ramp-up of new endpoints.
    pub slow_start: Option<SlowStart>,
    /// How consistent hashing places endpoints.
    pub hashing: Hashing,
    /// Choice among endpoints by their metadata. None = every endpoint takes part.
    pub subsets: Option<Subsets>,
    /// What an endpoint may be for a pinned session to stay with it, sorted (gRFC A55, A60). Default
    /// healthy and unknown; empty = sessions are never pinned.
    pub override_host: Vec<Health>,
    /// Limits that fail fast.
    pub breaker: CircuitBreakers,
    /// Limits of requests whose route has high priority, counted apart. None = like
    /// [`breaker`](Self::breaker).
    pub breaker_high: Option<CircuitBreakers>,
    /// Ejection of failing endpoints. None = off.
    pub outlier: Option<OutlierDetection>,
    /// Consecutive failures that take an endpoint out until one request got through. None = off.
    pub accrual: Option<FailureAccrual>,
    /// Active health checks. An endpoint must pass all of them.
    pub health_checks: Vec<HealthCheck>,
    /// Transport security towards the endpoints.
    pub tls: UpstreamTls,
    /// Protocol and connection options.
    pub connection: ConnectionOptions,
    /// HTTP CONNECT proxy on the way to the endpoints (gRFC A86). None = connect straight.
    pub proxy: Option<HttpProxy>,
    /// How its names are resolved.
    pub dns: DnsOptions,
    /// Load reports to the control plane (LRS). None = off.
    pub load_report: Option<LoadReport>,
    /// Names for metrics.
    pub telemetry: ClusterTelemetry,
}

impl Cluster {
    /// An EDS cluster with every default.
    pub fn new(name: ClusterName) -> Self {
        Self {
            name,
            discovery: Discovery::Eds { service_name: None },
            balancer: Balancer::least_request(),
            locality: LocalityBalancing::default(),
            slow_start: None,
            hashing: Hashing::default(),
            subsets: None,
            override_host: vec![Health::Healthy, Health::Unknown],
            breaker: CircuitBreakers::default(),
            breaker_high: None,
            outlier: None,
            accrual: None,
            health_checks: Vec::new(),
            tls: UpstreamTls::Disable,
            connection: ConnectionOptions::default(),
            proxy: None,
            dns: DnsOptions::default(),
            load_report: None,
            telemetry: ClusterTelemetry::default(),
        }
    }

    /// The same with a fixed list of endpoints.
    ///
    /// ```
    /// use mesh_core::policy::{Balancer, Cluster, Snapshot};
    ///
    /// let mut cluster = Cluster::of_addresses("reviews", ["127.0.0.1:9080".parse()?, "127.0.0.1:9081".parse()?]);
    /// cluster.balancer = Balancer::RoundRobin;
    /// let snapshot = Snapshot::of_one_cluster("reviews:9080", cluster, None);
    /// assert!(snapshot.clusters.contains_key(&"reviews".into()));
    /// # Ok::<(), std::net::AddrParseError>(())
    /// ```
    pub fn of_addresses(name: &str, addresses: impl IntoIterator<Item = std::net::SocketAddr>) -> Self {
        let discovery = Discovery::Static(Arc::new(Endpoints::at(name, addresses)));
        Self { discovery, ..Self::new(name.into()) }
    }
}

/// Where a cluster's endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Discovery {
    /// Over EDS, under `service_name` or else the cluster's own name.
    Eds {
        /// EDS resource name when it differs from the cluster's.
        service_name: Option<String>,
    },
    /// Written in the cluster.
    Static(Arc<Endpoints>),
    /// By DNS: every address of every name is an endpoint (Istio resolution DNS).
    StrictDns(Arc<Endpoints>),
    /// By DNS: one address at connection time (Istio DNS_ROUND_ROBIN).
    LogicalDns(Arc<Endpoints>),
    /// Connect to what the caller dialled (Istio resolution NONE, PASSTHROUGH).
    OriginalDestination,
    /// Several clusters in order: each serves as far as it can (down to 71 % healthy all requests, Envoy's overprovisioning),
    /// the next ones what is left. One in panic serves where no other can. One of which nothing can be connected to serves again
    /// once a connection stands, and a request that could not be connected to anything of it goes on to the next. Names that are
    /// looked up for the first time are waited for.
    Aggregate(Vec<ClusterName>),
}

/// Entries of a ring at most, whatever policy says.
pub(crate) const LARGEST_RING: u64 = 65_536;

/// How one endpoint among the usable ones is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Balancer {
    /// In turn, by weight.
    RoundRobin,
    /// Fewest requests in flight among `choices` random ones (power of two choices).
    LeastRequest {
        /// How many are compared: 2 to 10. Default 2.
        choices: u8,
        /// How much requests in flight lower an endpoint's weight where weights differ, in millionths:
        /// 0 = weight alone, 1,000,000 = weight / (in flight + 1). Default 1,000,000.
        bias: u32,
    },
    /// Uniformly at random.
    Random,
    /// Power of two choices over peak-sensitive moving average latency (Linkerd).
    PeakEwma,
    /// Weights from load reports (gRFC A58).
    WeightedRoundRobin(WeightedRoundRobin),
    /// Probes of requests in flight and latency, hot and cold (Prequal).
    Prequal(Prequal),
    /// Consistent hashing on a ring (gRFC A42).
    RingHash {
        /// Smallest ring. Default 1024. Of more than 65,536 that many are made.
        min_size: u64,
        /// Largest ring. Default 8,388,608; 65,536 is the most that is made, which ends it sooner only for weights so far
        /// apart.
        max_size: u64,
    },
    /// Consistent hashing by Maglev's table.
    Maglev {
        /// Table size, prime. Default 65537.
        table_size: u64,
    },
    /// The first that connects (gRFC A62).
    PickFirst {
        /// Shuffle first. Default false.
        shuffle: bool,
    },
    /// A random part of the endpoints, chosen anew for each process and stable under churn, and another
    /// balancer over it (gRFC A68). A session that began elsewhere stays at its endpoint outside of the part.
    RandomSubsetting {
        /// How many endpoints; above 0.
        size: u32,
        /// A part of each locality, each as large as `size` says. False: of each priority, whatever their localities. A locality's
        /// share of the requests is that of those of its endpoints that are in the part: with few of them each has much of
        /// this client's requests, and with none its share goes to the others, so that over a fleet endpoints of localities
        /// with weights are served evenly only by parts of each. gRPC does the one where `wrr_locality` has the subsetting
        /// below it, the other where it is below that; a control plane of this mesh says so by the order of both.
        of_each: bool,
        /// How one of them is chosen.
        child: Box<Balancer>,
    },
    /// A part of the endpoints that depends on which of its fleet this client is, so that every endpoint
    /// is in about as many parts as the others, and another balancer over it. Sessions as for a random part.
    DeterministicSubsetting {
        /// How many endpoints, about; above 0.
        size: u32,
        /// A part of each locality, as for [`RandomSubsetting`](Self::RandomSubsetting).
        of_each: bool,
        /// How one of them is chosen.
        child: Box<Balancer>,
    },
    /// No choice: dial what the caller dialled (Istio PASSTHROUGH).
    Passthrough,
    /// One of the application's own, which the control plane names (gRFC A52); in turn, by weight, where the application has
    /// none of this name or gives none.
    Custom {
        /// By this the application has registered it.
        name: Box<str>,
        /// Its configuration, a JSON object.
        config: Box<str>,
    },
}

impl Balancer {
    /// Least request as it is by default: two choices, full bias.
    pub const fn least_request() -> Self {
        Self::LeastRequest { choices: 2, bias: 1_000_000 }
    }

    /// The balancer under all that only narrow the choice.
    pub fn leaf(&self) -> &Self {
        match self {
            Self::RandomSubsetting { child, .. } | Self::DeterministicSubsetting { child, .. } => child.leaf(),
            other => other,
        }
    }
}

/// Settings of Prequal (Wydrowski et al., NSDI 2024).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Prequal {
    /// Probes sent for each request, in millionths. Default 3,000,000.
    pub probes_per_request: u32,
    /// An answer older than this is not used. Default 1 s.
    pub max_age: Duration,
    /// An endpoint with more requests in flight than this share of those lately heard of is hot.
    /// Default 84 %.
    pub hot_quantile: PerMillion,
}

impl Default for Prequal {
    fn default() -> Self {
        Self { probes_per_request: 3_000_000, max_age: Duration::from_secs(1), hot_quantile: PerMillion::new(840_000) }
    }
}

/// Settings of client-side weighted round robin (gRFC A58).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct WeightedRoundRobin {
    /// Reports on a stream of their own. Default false.
    pub out_of_band: bool,
    /// Period of those reports. Default 10 s.
    pub out_of_band_period: Duration,
    /// How long a new endpoint's weight is not used. Default 10 s.
    pub blackout_period: Duration,
    /// When a weight is too old. Default 180 s.
    pub weight_expiration: Duration,
    /// How often weights are taken over. Default 1 s.
    pub weight_update: Duration,
    /// Penalty per error rate, in millionths. Default 1,000,000.
    pub error_penalty: u32,
    /// Metrics that stand for utilization where the application names none (gRFC A114), such as
    /// `named_metrics.queue`; the largest counts.
    pub metric_names: Vec<String>,
}

impl Default for WeightedRoundRobin {
    fn default() -> Self {
        Self {
            out_of_band: false,
            out_of_band_period: Duration::from_secs(10),
            blackout_period: Duration::from_secs(10),
            weight_expiration: Duration::from_secs(180),
            weight_update: Duration::from_secs(1),
            error_penalty: 1_000_000,
            metric_names: Vec::new(),
        }
    }
}

/// How localities take part in balancing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct LocalityBalancing {
    /// Use the localities' weights: each has its share of the requests, whatever the balancer. Default false: all endpoints
    /// of a priority are one pool. A ring goes by them in any case, and so does the shuffling of pick first (gRFC A42, A113).
    pub weighted: bool,
    /// Below this share of healthy endpoints all are used, if the other priorities cannot take over.
    /// None or 0 = off, as Istio and gRPC have it; Envoy's default is 50 %.
    pub panic_threshold: Option<PerMillion>,
    /// Prefer the caller's own zone. None = off.
    pub zone_aware: Option<ZoneAware>,
    /// Go on to the next priority by load. None = by health only.
    pub spill: Option<LoadSpill>,
}

/// Preference of the caller's own zone (Envoy `zone_aware_lb_config`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ZoneAware {
    /// Share of requests that prefer their zone. Default all.
    pub share: PerMillion,
    /// Fewest endpoints of the cluster for it. Default 6.
    pub min_cluster_size: u64,
    /// In panic fail instead of using unhealthy endpoints. Default false.
    pub fail_on_panic: bool,
}

impl Default for ZoneAware {
    fn default() -> Self {
        Self { share: PerMillion::ALL, min_cluster_size: 6, fail_on_panic: false }
    }
}

/// When the first priority (the own zone) is left for its load (as Linkerd's high-availability zonal
/// load balancing does): in requests in flight of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct LoadSpill {
    /// At this many or fewer requests come back by and by.
    pub low: u32,
    /// At this many or more a growing share goes on to the next priority. Above `low`.
    pub high: u32,
}

/// How ring hash and Maglev place endpoints (Envoy `consistent_hashing_lb_config`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Hashing {
    /// Hash the endpoint's hostname, not its address. Default false.
    pub use_hostname: bool,
    /// An endpoint that would have more requests in flight than this percentage of the average, by weight and rounded up,
    /// is passed over; 100 or more. None = no bound.
    pub balance_factor: Option<u32>,
}

/// Choice among endpoints by metadata `envoy.lb` (Envoy `lb_subset_config`): the route's
/// `metadata_match` says which.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Subsets {
    /// What requests get whose metadata names no subset.
    pub fallback: SubsetFallback,
    /// Sets of keys that make subsets, each sorted.
    pub selectors: Vec<Vec<String>>,
}

/// What happens to a request whose subset does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SubsetFallback {
    /// It fails.
    Fail,
    /// It goes to any endpoint.
    Any,
    /// It goes to the endpoints with this metadata.
    Default(BTreeMap<String, String>),
}

/// Ramp-up of new endpoints (Envoy `slow_start_config`, Istio `warmup`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct SlowStart {
    /// How long the ramp is.
    pub window: Duration,
    /// Shape, in millionths; 1,000,000 is linear.
    pub aggression: u32,
    /// Smallest share of the full weight.
    pub min_share: PerMillion,
}

/// Limits of one process towards one cluster and one priority. None = unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct CircuitBreakers {
    /// Connections (Istio `tcp.maxConnections`).
    pub max_connections: Option<u32>,
    /// Requests waiting for a connection, one that is being made for them included (Istio `http1MaxPendingRequests`).
    pub max_pending: Option<u32>,
    /// Requests in flight (Istio `http2MaxRequests`; gRFC A32).
    pub max_requests: Option<u32>,
    /// Retries in flight (Istio `maxRetries`).
    pub max_retries: Option<u32>,
    /// Share of active requests that may be retries, with a floor (Envoy `retry_budget`).
    pub retry_budget: Option<RetryConcurrency>,
    /// Connections to one endpoint, above 0 (Envoy `per_host_thresholds`, gRFC A105). Unlike the others not counted over the
    /// process: each destination that is dialled has connections of its own, and so has a cluster whose policy changed while
    /// its former connections drain.
    pub max_connections_per_host: Option<u32>,
}

/// Envoy's retry budget.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RetryConcurrency {
    /// Share of active requests. Default 20 %.
    pub share: PerMillion,
    /// Retries allowed whatever the share. Default 3.
    pub min_concurrency: u32,
}

/// Ejection of failing endpoints (Envoy `outlier_detection`, gRFC A50, Istio `outlierDetection`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct OutlierDetection {
    /// Consecutive 5xx before ejection. None = off. Istio's default 5.
    pub consecutive_5xx: Option<u32>,
    /// Consecutive 502, 503, 504. None = off.
    pub consecutive_gateway: Option<u32>,
    /// Consecutive local failures (connect, timeout), where they are counted apart. None = off.
    pub consecutive_local_origin: Option<u32>,
    /// Count failures of the connection apart from failures that the endpoint answered. Default false:
    /// both count as failures.
    pub split_local_origin: bool,
    /// Shares of the consecutive failures that really eject.
    pub enforcing: ConsecutiveShares,
    /// Sweep period. Default 10 s.
    pub interval: Duration,
    /// First ejection; multiplied by the number of ejections. Default 30 s.
    pub base_ejection: Duration,
    /// Longest ejection; one below the first counts as that (gRFC A50). Default 300 s.
    pub max_ejection: Duration,
    /// Up to this much is added to an ejection at random. Default 0.
    pub max_ejection_jitter: Duration,
    /// Largest share ejected. If it is more than 0, one is always allowed, unless it is the last one in use. Default 10 %.
    pub max_ejected: PerMillion,
    /// A passed health check ends an ejection. Default true.
    pub health_check_unejects: bool,
    /// By success rate.
    pub success_rate: Option<SuccessRateEjection>,
    /// By failure percentage.
    pub failure_percentage: Option<FailurePercentageEjection>,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_5xx: Some(5),
            consecutive_gateway: None,
            consecutive_local_origin: None,
            split_local_origin: false,
            enforcing: ConsecutiveShares::default(),
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejection_jitter: Duration::ZERO,
            max_ejected: PerMillion::new(100_000),
            health_check_unejects: true,
            success_rate: None,
            failure_percentage: None,
        }
    }
}

/// Shares of consecutive failures that really eject; the others are only counted (Envoy
/// `enforcing_consecutive_*`). All by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ConsecutiveShares {
    /// Of 5xx.
    pub server_error: PerMillion,
    /// Of 502, 503, 504.
    pub gateway: PerMillion,
    /// Of local failures.
    pub local_origin: PerMillion,
}

impl Default for ConsecutiveShares {
    fn default() -> Self {
        Self { server_error: PerMillion::ALL, gateway: PerMillion::ALL, local_origin: PerMillion::ALL }
    }
}

/// Ejection of endpoints whose success rate is an outlier.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct SuccessRateEjection {
    /// Standard deviations below the mean, times 1000. Default 1900.
    pub stdev_factor: u32,
    /// Share of such endpoints really ejected. Default 100 %.
    pub enforcing: PerMillion,
    /// The same for failures of the connection, where they are counted apart. Default 100 %.
    pub enforcing_local_origin: PerMillion,
    /// Endpoints needed. Default 5.
    pub minimum_hosts: u32,
    /// Requests needed per endpoint. Default 100.
    pub request_volume: u32,
}

/// Ejection of endpoints whose failures pass a threshold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct FailurePercentageEjection {
    /// Failure share that ejects. Default 85 %.
    pub threshold: PerMillion,
    /// Share of such endpoints really ejected. Default 0.
    pub enforcing: PerMillion,
    /// The same for failures of the connection, where they are counted apart. Default 0.
    pub enforcing_local_origin: PerMillion,
    /// Endpoints needed. Default 5.
    pub minimum_hosts: u32,
    /// Requests needed per endpoint. Default 50.
    pub request_volume: u32,
}

/// Consecutive failures that take an endpoint out, and probation on the way back (Linkerd
/// `balancer.linkerd.io/failure-accrual: consecutive`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct FailureAccrual {
    /// Failures in a row; above 0. Default 7.
    pub max_failures: u32,
    /// First time out, doubled with each failed probe. Default 1 s.
    pub min_penalty: Duration,
    /// Longest time out. Default 60 s.
    pub max_penalty: Duration,
    /// Up to this share is added to a time out at random, within the longest. Default 50 %.
    pub jitter: PerMillion,
}

impl Default for FailureAccrual {
    fn default() -> Self {
        Self {
            max_failures: 7,
            min_penalty: Duration::from_secs(1),
            max_penalty: Duration::from_secs(60),
            jitter: PerMillion::new(500_000),
        }
    }
}

/// An active health check. What is without a default here has none in Envoy either.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: HealthProbe,
    /// Time between checks.
    pub interval: Duration,
    /// Time for one check.
    pub timeout: Duration,
    /// Failures in a row that make an endpoint unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes in a row that make it healthy.
    pub healthy_threshold: u32,
    /// Further times between checks.
    pub pace: HealthCheckPace,
    /// Port to check instead of the endpoint's. None = the endpoint's.
    pub port: Option<u16>,
    /// HTTP and gRPC: check over one connection that stays open. Default true.
    pub reuse_connection: bool,
}

/// Times between checks that differ from [`HealthCheck::interval`]. None = that one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct HealthCheckPace {
    /// Up to this much is waited before the first check.
    pub initial_jitter: Duration,
    /// Up to this much is added to each time.
    pub jitter: Duration,
    /// Up to this percentage of the time is added to it.
    pub jitter_percent: u32,
    /// While the cluster has had no traffic. None = 60 s (Envoy) while the endpoint is healthy.
    pub no_traffic: Option<Duration>,
    /// While the cluster has had no traffic and the endpoint is healthy. None = that.
    pub no_traffic_healthy: Option<Duration>,
    /// While the endpoint is unhealthy.
    pub unhealthy: Option<Duration>,
    /// After the failure that may be the beginning of trouble.
    pub unhealthy_edge: Option<Duration>,
    /// After the success that may be the end of it.
    pub healthy_edge: Option<Duration>,
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthProbe {
    /// A connection, and maybe some bytes over it.
    Tcp(TcpProbe),
    /// A request.
    Http(HttpProbe),
    /// `grpc.health.v1.Health/Check` of this service, one call a check, as in Envoy. The stream `Watch` of gRFC A17 is for
    /// service configs, which xDS does not have.
    Grpc {
        /// Service name; may be empty.
        service: String,
        /// Authority; empty = the cluster name.
        authority: String,
    },
}

/// Bytes that check health. Without any a connection is enough.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct TcpProbe {
    /// What is sent.
    pub send: Vec<u8>,
    /// What must come back: each block, in this order, with anything between them.
    pub receive: Vec<Vec<u8>>,
}

/// A request that checks health.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct HttpProbe {
    /// Path.
    pub path: String,
    /// Host header; empty = the cluster name.
    pub host: String,
    /// Method. Default GET.
    pub method: String,
    /// Speak HTTP/2. Default false.
    pub http2: bool,
    /// Headers to add.
    pub headers: Vec<HeaderWrite>,
    /// Healthy answers: ranges of status, both inclusive. Empty = 200 only.
    pub expected: Vec<(u16, u16)>,
    /// Answers that are failures like any other, where others make the endpoint unhealthy at once.
    pub retriable: Vec<(u16, u16)>,
}

impl HttpProbe {
    /// A GET on `path`, answered 200.
    pub fn get(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            host: String::new(),
            method: "GET".to_owned(),
            http2: false,
            headers: Vec::new(),
            expected: Vec::new(),
            retriable: Vec::new(),
        }
    }
}

/// Protocol and connection options.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ConnectionOptions {
    /// HTTP version spoken to the endpoints.
    pub protocol: UpstreamProtocol,
    /// Time for TCP connect, TLS handshake and, over HTTP/2, the peer's SETTINGS together. Default 10 s.
    pub connect_timeout: Duration,
    /// Idle connections are closed after this. Default 1 h; None = never.
    pub idle_timeout: Option<Duration>,
    /// Connections older than this, or up to a tenth less, are drained. None = an hour for the mesh's own TLS, whose
    /// peers then prove anew who they are, and never for others.
    pub max_age: Option<Duration>,
    /// Requests per connection; 1 = no keep-alive. None = unlimited.
    pub max_requests_per_connection: Option<u32>,
    /// Streams per HTTP/2 connection. None = the peer's limit.
    pub max_concurrent_streams: Option<u32>,
    /// Bytes of one HTTP/2 stream that the peer may send ahead. None = the client's default, 2 MiB.
    pub initial_stream_window: Option<u32>,
    /// Bytes of one HTTP/2 connection that the peer may send ahead. None = 256 MiB, Envoy's default: the most that
    /// a connection takes of memory for what nobody has read, and of it 2 MiB for each stream. Streams that nobody reads may
    /// take all of it, which at that are 128, and then the others wait.
    pub initial_connection_window: Option<u32>,
    /// HTTP/2 PING.
    pub http2_keepalive: Option<Keepalive>,
    /// TCP keep-alive.
    pub tcp_keepalive: Option<TcpKeepalive>,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            protocol: UpstreamProtocol::Http1,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Some(Duration::from_secs(3600)),
            max_age: None,
            max_requests_per_connection: None,
            max_concurrent_streams: None,
            initial_stream_window: None,
            initial_connection_window: None,
            http2_keepalive: None,
            tcp_keepalive: None,
        }
    }
}

/// HTTP version spoken to the endpoints. gRPC requests use HTTP/2 whatever this says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 (prior knowledge, or ALPN under TLS).
    Http2,
    /// Whatever ALPN settles on; HTTP/1.1 without TLS.
    Alpn,
}

/// HTTP/2 PING settings, as Envoy's `connection_keepalive`: pings go out whether requests are under way or not. A gRPC
/// server by another library must allow that, and this often (gRFC A8).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Keepalive {
    /// Time between pings.
    pub interval: Duration,
    /// Time for the answer.
    pub timeout: Duration,
}

/// TCP keep-alive settings. None = the system's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct TcpKeepalive {
    /// Probes before giving up.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}

/// An HTTP CONNECT proxy (Envoy `Http11ProxyUpstreamTransport`): the endpoint's own
/// ([`EndpointMetadata::proxy`](super::EndpointMetadata::proxy)), else the one here, else none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct HttpProxy {
    /// For endpoints that name none.
    pub default: Option<Address>,
}

impl HttpProxy {
    /// The proxy on the way to an endpoint.
    pub fn of<'p>(&'p self, endpoint: &'p EndpointMetadata) -> Option<&'p Address> {
        endpoint.proxy.as_ref().or(self.default.as_ref())
    }
}

/// How names are resolved. Whatever it says, a connection that fails lets the client look again sooner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct DnsOptions {
    /// Which addresses are asked for.
    pub family: DnsFamily,
    /// Time between resolutions. None = the answer's time to live, not below the client's floor.
    pub refresh: Option<Duration>,
    /// Time until the next resolution after one that failed. None = the client's own pace.
    pub failure_refresh: Option<DnsBackoff>,
    /// The answer's time to live, not below the client's floor, beats [`refresh`](Self::refresh) where it is known.
    /// Default false.
    pub respect_ttl: bool,
    /// Up to this much is added to the time after a success. Default 0.
    pub jitter: Duration,
}

/// Waits between look-ups that fail (Envoy `dns_failure_refresh_rate`): doubled each time, with jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct DnsBackoff {
    /// The first.
    pub base: Duration,
    /// The longest; at least `base`. Envoy's default is ten times that.
    pub max: Duration,
}

/// Which addresses of a name are used (Envoy `dns_lookup_family`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsFamily {
    /// IPv6, and IPv4 if there is none (Envoy's default). Here an IPv6 address that cannot be connected to is fallen
    /// back from as well.
    #[default]
    Auto,
    /// IPv4 only.
    V4Only,
    /// IPv6 only.
    V6Only,
    /// IPv4, and IPv6 if there is none.
    V4Preferred,
    /// Both: each address is an endpoint of its own.
    All,
}

/// Load reports to the control plane (gRFC A85).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct LoadReport {
    /// Metrics of the endpoints' ORCA reports to pass on, such as `cpu_utilization`,
    /// `named_metrics.queue` or `named_metrics.*`.
    pub metrics: Vec<String>,
}

/// Names for metrics and spans (Istio cluster metadata `istio.services`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct ClusterTelemetry {
    /// `destination_service`: FQDN or external host.
    pub service: String,
    /// `destination_service_name`: short name.
    pub service_name: String,
    /// `destination_service_namespace`.
    pub service_namespace: String,
}
