//! One cluster: how its endpoints are found, chosen, connected to and limited
//! (`envoy.config.cluster.v3.Cluster`, Istio DestinationRule).

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{Endpoints, PerMillion, StringMatcher};
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
    /// Limits that fail fast.
    pub breaker: CircuitBreakers,
    /// Ejection of failing endpoints. None = off.
    pub outlier: Option<OutlierDetection>,
    /// Active health checks.
    pub health_checks: Vec<HealthCheck>,
    /// Transport security towards the endpoints.
    pub tls: UpstreamTls,
    /// Protocol and connection options.
    pub connection: ConnectionOptions,
    /// Names for metrics.
    pub telemetry: ClusterTelemetry,
}

impl Cluster {
    /// An EDS cluster with every default.
    pub fn new(name: ClusterName) -> Self {
        Self {
            name,
            discovery: Discovery::Eds { service_name: None },
            balancer: Balancer::LeastRequest { choices: 2 },
            locality: LocalityBalancing::default(),
            slow_start: None,
            breaker: CircuitBreakers::default(),
            outlier: None,
            health_checks: Vec::new(),
            tls: UpstreamTls::Disable,
            connection: ConnectionOptions::default(),
            telemetry: ClusterTelemetry::default(),
        }
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
    /// Several clusters in order of priority.
    Aggregate(Vec<ClusterName>),
}

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
    },
    /// Uniformly at random.
    Random,
    /// Power of two choices over peak-sensitive moving average latency (Linkerd).
    PeakEwma,
    /// Weights from load reports (gRFC A58).
    WeightedRoundRobin(WeightedRoundRobin),
    /// Consistent hashing on a ring (gRFC A42).
    RingHash {
        /// Smallest ring. Default 1024.
        min_size: u64,
        /// Largest ring. Default 8,388,608.
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
    /// No choice: dial what the caller dialled (Istio PASSTHROUGH).
    Passthrough,
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
        }
    }
}

/// How localities take part in balancing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct LocalityBalancing {
    /// Use the localities' weights. Default false: all endpoints of a priority are one pool.
    pub weighted: bool,
    /// Below this share of healthy endpoints all are used. Istio's default 0 = off; Envoy's 50 %.
    pub panic_threshold: Option<PerMillion>,
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

/// Limits of one process towards one cluster. None = unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct CircuitBreakers {
    /// Connections (Istio `tcp.maxConnections`).
    pub max_connections: Option<u32>,
    /// Requests waiting for a connection (Istio `http1MaxPendingRequests`).
    pub max_pending: Option<u32>,
    /// Requests in flight (Istio `http2MaxRequests`; gRFC A32).
    pub max_requests: Option<u32>,
    /// Retries in flight (Istio `maxRetries`).
    pub max_retries: Option<u32>,
    /// Share of active requests that may be retries, with a floor (Envoy `retry_budget`).
    pub retry_budget: Option<RetryConcurrency>,
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
    /// Consecutive local failures (connect, timeout), counted apart. None = not split.
    pub consecutive_local_origin: Option<u32>,
    /// Sweep period. Default 10 s.
    pub interval: Duration,
    /// First ejection; multiplied by the number of ejections. Default 30 s.
    pub base_ejection: Duration,
    /// Longest ejection. Default 300 s.
    pub max_ejection: Duration,
    /// Largest share ejected; one is always allowed. Default 10 %.
    pub max_ejected: PerMillion,
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
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected: PerMillion::new(100_000),
            success_rate: None,
            failure_percentage: None,
        }
    }
}

/// Ejection of endpoints whose success rate is an outlier.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct SuccessRateEjection {
    /// Standard deviations below the mean, times 1000. Default 1900.
    pub stdev_factor: u32,
    /// Share of such endpoints really ejected. Default 100 %.
    pub enforcing: PerMillion,
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
    /// Share of such endpoints really ejected.
    pub enforcing: PerMillion,
    /// Endpoints needed. Default 5.
    pub minimum_hosts: u32,
    /// Requests needed per endpoint. Default 50.
    pub request_volume: u32,
}

/// An active health check.
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
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthProbe {
    /// A connection.
    Tcp,
    /// A GET on this path, answered 200.
    Http {
        /// Path.
        path: String,
        /// Host header; empty = the cluster name.
        host: String,
    },
    /// `grpc.health.v1.Health/Check` of this service.
    Grpc {
        /// Service name; may be empty.
        service: String,
    },
}

/// Transport security towards the endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamTls {
    /// Plaintext (Istio DISABLE).
    Disable,
    /// Mesh mTLS to endpoints whose metadata says `tlsMode: istio`, plaintext to the others
    /// (Istio's automatic mTLS).
    Auto(MeshTls),
    /// Mesh mTLS to all (Istio ISTIO_MUTUAL).
    Mesh(MeshTls),
    /// Ordinary TLS, server authentication only (Istio SIMPLE).
    Simple(OriginatedTls),
    /// Ordinary TLS with a client certificate from files (Istio MUTUAL).
    Mutual(OriginatedTls, ClientCertificate),
}

/// Mesh mTLS: our SPIFFE identity, the mesh's trust bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct MeshTls {
    /// Peer SPIFFE IDs accepted (any of); empty = any peer of the trust bundle.
    pub peer_ids: Vec<StringMatcher>,
    /// SNI sent, `outbound_.<port>_.<subset>_.<fqdn>` from Istio. None = the endpoint's address.
    pub sni: Option<String>,
}

/// TLS begun by us towards something that is not a mesh peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct OriginatedTls {
    /// SNI; None = the dialled host.
    pub sni: Option<String>,
    /// Names of which the certificate must carry one; empty = the SNI.
    pub subject_alt_names: Vec<StringMatcher>,
    /// PEM file of trusted roots; None = the system's.
    pub ca_file: Option<String>,
    /// Take any certificate (Istio `insecureSkipVerify`). Default false.
    pub insecure_skip_verify: bool,
}

/// A client certificate from files.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ClientCertificate {
    /// PEM chain.
    pub certificate_file: String,
    /// PEM key.
    pub private_key_file: String,
}

/// Protocol and connection options.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ConnectionOptions {
    /// HTTP version spoken to the endpoints.
    pub protocol: UpstreamProtocol,
    /// Time for TCP connect and TLS handshake together. Default 10 s.
    pub connect_timeout: Duration,
    /// Idle connections are closed after this. Default 1 h; None = never.
    pub idle_timeout: Option<Duration>,
    /// Connections older than this are drained. None = never.
    pub max_age: Option<Duration>,
    /// Requests per connection; 1 = no keep-alive. None = unlimited.
    pub max_requests_per_connection: Option<u32>,
    /// Streams per HTTP/2 connection. None = the peer's limit.
    pub max_concurrent_streams: Option<u32>,
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

/// HTTP/2 PING settings.
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
