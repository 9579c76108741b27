//! `mesh.policy.v1`: the parts of our policy that xDS has no field for.
//!
//! They travel as typed metadata of the resource they belong to, under
//! `metadata.typed_filter_metadata["mesh.policy.v1"]` (the key is [`METADATA_KEY`]): one message per
//! carrier, named after it. A stock client reads past it; a control plane that is not ours never sends
//! it. What a stock client does instead is written at each field: authorization gets stricter, automatic
//! mTLS becomes plaintext (as istiod shows it), and conditions on the caller (`port`, `source_labels`,
//! `source_namespace`) are lost, so a control plane that serves stock clients resolves those per node.
//!
//! Load balancing policies that are ours ([`PeakEwma`]) travel as typed extension configs instead.

use std::collections::BTreeMap;

use envoy_types::pb::google::protobuf::Duration;

/// Key of the typed metadata.
pub const METADATA_KEY: &str = "mesh.policy.v1";

/// Metadata of `envoy.config.route.v3.RouteConfiguration`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RouteConfigurationPolicy {
    /// Linkerd's retry budget.
    #[prost(message, optional, tag = "1")]
    pub retry_budget: Option<RetryBudget>,
}

/// Linkerd's retry budget.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RetryBudget {
    /// Retries per request, in millionths.
    #[prost(uint64, tag = "1")]
    pub ratio_per_million: u64,
    /// Retries a second whatever the ratio.
    #[prost(uint32, tag = "2")]
    pub min_retries_per_second: u32,
    /// How long a request earns budget.
    #[prost(message, optional, tag = "3")]
    pub ttl: Option<Duration>,
}

/// Metadata of `envoy.config.route.v3.VirtualHost`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VirtualHostPolicy {
    /// What the virtual host's retry policy cannot say.
    #[prost(message, optional, tag = "1")]
    pub retry: Option<RetryExtra>,
}

/// What `envoy.config.route.v3.RetryPolicy` cannot say.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RetryExtra {
    /// Retry what the route's response classes call a failure (Linkerd `isRetryable`).
    #[prost(bool, tag = "1")]
    pub classified_failure: bool,
    /// No retries at all. gRPC refuses `num_retries: 0`, so the policy itself carries an empty
    /// `retry_on`, which everybody understands, and the tokens travel in `retry_on` here.
    #[prost(bool, tag = "2")]
    pub no_attempts: bool,
    /// The tokens of a policy without attempts.
    #[prost(string, tag = "3")]
    pub retry_on: String,
}

/// Metadata of `envoy.config.route.v3.Route`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RoutePolicy {
    /// Methods of the match. The route's first header condition, on `:method`, says the same and is
    /// what foreign clients obey.
    #[prost(string, repeated, tag = "1")]
    pub methods: Vec<String>,
    /// Dialled port of the match.
    #[prost(uint32, optional, tag = "2")]
    pub port: Option<u32>,
    /// Labels of the calling workload.
    #[prost(btree_map = "string, string", tag = "3")]
    pub source_labels: BTreeMap<String, String>,
    /// Namespace of the calling workload.
    #[prost(string, optional, tag = "4")]
    pub source_namespace: Option<String>,
    /// Linkerd's response classes.
    #[prost(message, repeated, tag = "5")]
    pub response_classes: Vec<ResponseClass>,
    /// What the route's retry policy cannot say.
    #[prost(message, optional, tag = "6")]
    pub retry: Option<RetryExtra>,
    /// Ceiling on `grpc-timeout` when the route also has a timeout; `grpc_timeout_header_max` then carries
    /// the shorter of both for gRPC clients.
    #[prost(message, optional, tag = "7")]
    pub grpc_timeout_max: Option<Duration>,
}

/// Linkerd's response class.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResponseClass {
    /// The condition.
    #[prost(message, optional, tag = "1")]
    pub matcher: Option<ResponseMatch>,
    /// Whether such an answer is a failure.
    #[prost(bool, tag = "2")]
    pub is_failure: bool,
}

/// A condition on an answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResponseMatch {
    /// The condition.
    #[prost(oneof = "response_match::Rule", tags = "1, 2, 3, 4")]
    pub rule: Option<response_match::Rule>,
}

/// The kinds of [`ResponseMatch`].
pub mod response_match {
    /// Bounds on the status, both inclusive.
    #[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
    pub struct StatusRange {
        /// Lowest.
        #[prost(uint32, tag = "1")]
        pub min: u32,
        /// Highest.
        #[prost(uint32, tag = "2")]
        pub max: u32,
    }

    /// Several conditions.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Set {
        /// The conditions.
        #[prost(message, repeated, tag = "1")]
        pub rules: Vec<super::ResponseMatch>,
    }

    /// The condition.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Rule {
        /// Status within bounds.
        #[prost(message, tag = "1")]
        Status(StatusRange),
        /// All hold.
        #[prost(message, tag = "2")]
        All(Set),
        /// One holds.
        #[prost(message, tag = "3")]
        Any(Set),
        /// It does not hold.
        #[prost(message, tag = "4")]
        Not(Box<super::ResponseMatch>),
    }
}

/// Metadata of `envoy.config.cluster.v3.Cluster`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClusterPolicy {
    /// Automatic mTLS: mesh TLS to endpoints marked `tlsMode: istio`. Foreign clients see a plaintext
    /// cluster, as istiod shows them (`transport_socket_matches` makes gRPC refuse the cluster).
    #[prost(message, optional, tag = "1")]
    pub auto_tls: Option<AutoTls>,
    /// Slow start for a load balancing policy that has no field for it.
    #[prost(message, optional, tag = "2")]
    pub slow_start: Option<SlowStart>,
    /// Shares of outlier detection finer than a whole percent.
    #[prost(message, optional, tag = "3")]
    pub outlier: Option<OutlierShares>,
    /// HTTP/2 settings of an HTTP/1 cluster, for its gRPC requests.
    #[prost(message, optional, tag = "4")]
    pub http2: Option<Http2Settings>,
    /// Error penalty of weighted round robin, in millionths, where `float` loses it.
    #[prost(uint32, optional, tag = "5")]
    pub error_penalty: Option<u32>,
    /// Spill-over by load.
    #[prost(message, optional, tag = "6")]
    pub spill: Option<LoadSpill>,
    /// Linkerd's failure accrual.
    #[prost(message, optional, tag = "7")]
    pub accrual: Option<FailureAccrual>,
    /// Which parts of the endpoints, from the outermost, are taken of each locality, where the order of `wrr_locality` and
    /// subsetting does not say it: below it are those that it draws a locality for, and no ring. Foreign clients take parts of all
    /// localities together there.
    #[prost(bool, repeated, tag = "8")]
    pub parts_of_each: Vec<bool>,
}

/// Linkerd's failure accrual. Foreign clients keep failing endpoints in.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FailureAccrual {
    /// Failures in a row.
    #[prost(uint32, tag = "1")]
    pub max_failures: u32,
    /// First time out.
    #[prost(message, optional, tag = "2")]
    pub min_penalty: Option<Duration>,
    /// Longest time out.
    #[prost(message, optional, tag = "3")]
    pub max_penalty: Option<Duration>,
    /// Share added at random, in millionths.
    #[prost(uint32, tag = "4")]
    pub jitter: u32,
}

/// When the first priority is left for its load: requests in flight of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct LoadSpill {
    /// Come back at this many.
    #[prost(uint32, tag = "1")]
    pub low: u32,
    /// Go on at this many.
    #[prost(uint32, tag = "2")]
    pub high: u32,
}

/// Automatic mTLS.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AutoTls {
    /// Accepted peer SPIFFE IDs; empty = any of the trust bundle.
    #[prost(message, repeated, tag = "1")]
    pub peer_ids: Vec<envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher>,
    /// SNI sent.
    #[prost(string, optional, tag = "2")]
    pub sni: Option<String>,
}

/// Ramp-up of new endpoints.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SlowStart {
    /// Length of the ramp.
    #[prost(message, optional, tag = "1")]
    pub window: Option<Duration>,
    /// Shape, in millionths.
    #[prost(uint32, tag = "2")]
    pub aggression: u32,
    /// Smallest share of the weight, in millionths.
    #[prost(uint32, tag = "3")]
    pub min_share: u32,
}

/// Exact shares, in millionths; each absent when the plain field says it exactly.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct OutlierShares {
    /// `max_ejection_percent`.
    #[prost(uint32, optional, tag = "1")]
    pub max_ejected: Option<u32>,
    /// `enforcing_success_rate`.
    #[prost(uint32, optional, tag = "2")]
    pub success_enforcing: Option<u32>,
    /// `failure_percentage_threshold`.
    #[prost(uint32, optional, tag = "3")]
    pub failure_threshold: Option<u32>,
    /// `enforcing_failure_percentage`.
    #[prost(uint32, optional, tag = "4")]
    pub failure_enforcing: Option<u32>,
    /// `enforcing_consecutive_5xx`.
    #[prost(uint32, optional, tag = "5")]
    pub consecutive_5xx: Option<u32>,
    /// `enforcing_consecutive_gateway_failure`.
    #[prost(uint32, optional, tag = "6")]
    pub consecutive_gateway: Option<u32>,
    /// `enforcing_consecutive_local_origin_failure`.
    #[prost(uint32, optional, tag = "7")]
    pub consecutive_local_origin: Option<u32>,
    /// `enforcing_local_origin_success_rate`.
    #[prost(uint32, optional, tag = "8")]
    pub success_local_origin: Option<u32>,
    /// `enforcing_failure_percentage_local_origin`.
    #[prost(uint32, optional, tag = "9")]
    pub failure_local_origin: Option<u32>,
}

/// HTTP/2 settings.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Http2Settings {
    /// Streams per connection.
    #[prost(uint32, optional, tag = "1")]
    pub max_concurrent_streams: Option<u32>,
    /// Time between pings.
    #[prost(message, optional, tag = "2")]
    pub keepalive_interval: Option<Duration>,
    /// Time for the answer to a ping.
    #[prost(message, optional, tag = "3")]
    pub keepalive_timeout: Option<Duration>,
    /// Bytes that the peer may send ahead on one stream.
    #[prost(uint32, optional, tag = "4")]
    pub initial_stream_window: Option<u32>,
    /// Bytes that the peer may send ahead on one connection.
    #[prost(uint32, optional, tag = "5")]
    pub initial_connection_window: Option<u32>,
}

/// Metadata of a server's `envoy.config.listener.v3.Listener`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct InboundPolicy {
    /// Connections open at once.
    #[prost(uint32, optional, tag = "1")]
    pub max_connections: Option<u32>,
    /// What single RBAC filters cannot say.
    #[prost(message, repeated, tag = "2")]
    pub policies: Vec<AuthorizationExtra>,
    /// Trusted proxies before the workload: the connection manager's own field for them is refused by gRPC (A41).
    #[prost(uint32, tag = "3")]
    pub trusted_proxies: u32,
    /// Which keys of JWT filters the control plane fetched: they do not hold for ever without it.
    #[prost(message, repeated, tag = "4")]
    pub fetched_keys: Vec<FetchedKeys>,
}

/// Keys of a provider of a JWT filter.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FetchedKeys {
    /// Instance name of the filter.
    #[prost(string, tag = "1")]
    pub filter: String,
    /// Name of the provider.
    #[prost(string, tag = "2")]
    pub provider: String,
    /// How long they hold while nothing is heard of the control plane.
    #[prost(message, optional, tag = "3")]
    pub max_age: Option<Duration>,
}

/// What one RBAC filter cannot say.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AuthorizationExtra {
    /// Instance name of the filter.
    #[prost(string, tag = "1")]
    pub filter: String,
    /// Name of the policy where the filter's name is not it.
    #[prost(string, optional, tag = "2")]
    pub policy: Option<String>,
    /// External authorizer of a CUSTOM policy. Servers that cannot ask it see a DENY filter.
    #[prost(string, optional, tag = "3")]
    pub custom: Option<String>,
    /// The rules in order, where it is not that of the filter's keys or a key is not the name.
    #[prost(message, repeated, tag = "4")]
    pub rules: Vec<RuleName>,
    /// Where that authorizer is asked over gRPC.
    #[prost(message, optional, tag = "5")]
    pub grpc: Option<GrpcAuthorizer>,
    /// The rules are routes: what none matches is not found. Servers that do not know that deny it (ALLOW).
    #[prost(bool, tag = "6")]
    pub route: bool,
    /// Where that authorizer is asked over plain HTTP. Servers that do not know that have nobody to ask, and deny.
    #[prost(message, optional, tag = "7")]
    pub http: Option<HttpAuthorizer>,
}

/// A service that answers requests like those it is asked about.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct HttpAuthorizer {
    /// Where it is, and what holds without its answer; of a body there are bytes only.
    #[prost(message, optional, tag = "1")]
    pub service: Option<GrpcAuthorizer>,
    /// Stands before the path.
    #[prost(string, tag = "2")]
    pub path_prefix: String,
    /// Headers of the request that it is told: names, or with `*` at the beginning or the end.
    #[prost(string, repeated, tag = "3")]
    pub request_headers: Vec<String>,
    /// Headers that it is told besides.
    #[prost(message, repeated, tag = "4")]
    pub added_headers: Vec<HeaderText>,
    /// Headers of a yes that the application sees.
    #[prost(string, repeated, tag = "5")]
    pub upstream_on_allow: Vec<String>,
    /// Headers of a yes that the caller sees.
    #[prost(string, repeated, tag = "6")]
    pub downstream_on_allow: Vec<String>,
    /// Headers of a no that the caller sees; none here = all.
    #[prost(string, repeated, tag = "7")]
    pub downstream_on_deny: Vec<String>,
}

/// A header.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct HeaderText {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Value.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// A service that speaks `envoy.service.auth.v3.Authorization`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GrpcAuthorizer {
    /// `host:port`.
    #[prost(string, tag = "1")]
    pub target: String,
    /// Time for an answer.
    #[prost(message, optional, tag = "2")]
    pub timeout: Option<Duration>,
    /// Without an answer requests pass.
    #[prost(bool, tag = "3")]
    pub fail_open: bool,
    /// HTTP status without an answer.
    #[prost(uint32, tag = "4")]
    pub status_on_error: u32,
    /// Bytes of a request's body that it is told at most; 0 = nothing of it.
    #[prost(uint32, tag = "5")]
    pub max_body_bytes: u32,
    /// Of a longer body the beginning.
    #[prost(bool, tag = "6")]
    pub partial_body: bool,
    /// The body as bytes and not as text.
    #[prost(bool, tag = "7")]
    pub body_as_bytes: bool,
}

/// Name of one rule.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RuleName {
    /// Key in the filter's map of policies.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Name of the rule.
    #[prost(string, tag = "2")]
    pub name: String,
}

/// HTTP filter of a server: rate limits by who calls. It is optional, so that a stock server reads past it and limits no
/// caller by itself; what holds for all callers together is Envoy's own filter.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CallerRateLimit {
    /// Requests a second of each identity; 0 = unlimited.
    #[prost(uint32, tag = "1")]
    pub each: u32,
    /// Identities with another limit.
    #[prost(message, repeated, tag = "2")]
    pub groups: Vec<CallerGroup>,
}

/// Callers that share a limit.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CallerGroup {
    /// SPIFFE IDs.
    #[prost(string, repeated, tag = "1")]
    pub callers: Vec<String>,
    /// Requests a second of all of them together; above 0.
    #[prost(uint32, tag = "2")]
    pub per_second: u32,
}

/// Load balancing policy: two choices over a peak-sensitive moving average of latency.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct PeakEwma {}

/// Prequal.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Prequal {
    /// Probes for each request, in millionths.
    #[prost(uint32, tag = "1")]
    pub probes_per_request: u32,
    /// Age up to which an answer is used.
    #[prost(message, optional, tag = "2")]
    pub max_age: Option<Duration>,
    /// Where an endpoint begins to be hot, in millionths.
    #[prost(uint32, tag = "3")]
    pub hot_quantile: u32,
}

/// Deterministic subsetting.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeterministicSubsetting {
    /// How many endpoints; above 0.
    #[prost(uint32, tag = "1")]
    pub size: u32,
    /// How one of them is chosen.
    #[prost(message, optional, tag = "2")]
    pub child_policy: Option<envoy_types::pb::envoy::config::cluster::v3::LoadBalancingPolicy>,
}
