//! Routes: which request goes to which cluster, and under what rules
//! (`envoy.config.route.v3`, Istio VirtualService, Linkerd ServiceProfile).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde::Serialize;

use super::{
    FAULT_FILTER, Fault, FilterOverride, FilterOverrides, HeaderKey, HeaderPolicy, InvalidPolicy, Pattern, PerMillion,
    StringMatcher,
};
use crate::id::ClusterName;

/// A route table: virtual hosts chosen by the request's authority.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RouteConfiguration {
    /// Resource name, such as `outbound|9080||reviews.default.svc.cluster.local`.
    pub name: String,
    /// Virtual hosts; no two share a domain.
    pub virtual_hosts: Vec<VirtualHost>,
    /// Header operations for every request.
    pub headers: HeaderPolicy,
    /// Linkerd's retry budget for the destination, shared by all its routes. None = no budget.
    pub retry_budget: Option<RetryBudget>,
}

/// Routes for a set of domains.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct VirtualHost {
    /// Name, for logs.
    pub name: String,
    /// Authorities served: matched exact, then longest `*suffix`, then longest `prefix*`, then `*`.
    pub domains: Vec<Domain>,
    /// Routes; the first that matches decides.
    pub routes: Vec<Route>,
    /// Header operations for every route.
    pub headers: HeaderPolicy,
    /// Retry policy of routes that have none.
    pub retry: Option<RetryPolicy>,
}

/// A domain pattern of a virtual host: lower case, at most one `*`, at its beginning or end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Domain(String);

impl Domain {
    /// Checks a pattern.
    ///
    /// # Errors
    /// It is empty, or has a `*` in the middle or more than one.
    pub fn new(text: &str) -> Result<Self, InvalidPolicy> {
        let stars = text.bytes().filter(|b| *b == b'*').count();
        let at_edge = text.starts_with('*') || text.ends_with('*');
        if text.is_empty() || stars > 1 || (stars == 1 && !at_edge) {
            return Err(InvalidPolicy::new("domains", format!("{text:?}: one '*' at the beginning or the end")));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Route {
    /// Name, for logs and metrics; may be empty.
    pub name: String,
    /// Which requests it takes.
    pub matcher: RouteMatch,
    /// What happens to them.
    pub action: RouteAction,
    /// Header operations.
    pub headers: HeaderPolicy,
    /// Filters that differ on this route, by instance name. Routes that differ in nothing of their own share it.
    pub filters: Arc<FilterOverrides>,
    /// Linkerd response classes; empty = 5xx (and failing gRPC statuses) are failures.
    pub response_classes: Vec<ResponseClass>,
    /// The name under which its requests are counted (Envoy `stat_prefix`, the name of a ServiceProfile's route); empty =
    /// they are counted with those of the destination only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stat_prefix: String,
}

impl Route {
    /// A route without a name and without extras.
    pub fn new(matcher: RouteMatch, action: RouteAction) -> Self {
        Self {
            name: String::new(),
            matcher,
            action,
            headers: HeaderPolicy::default(),
            filters: Arc::default(),
            response_classes: Vec::new(),
            stat_prefix: String::new(),
        }
    }

    /// The same route with a fault under the filter's usual name ([`FAULT_FILTER`]); the listener must
    /// have that filter.
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        let filters = Arc::make_mut(&mut self.filters);
        filters.insert(FAULT_FILTER.to_owned(), FilterOverride::Fault(fault).into());
        self
    }
}

/// All conditions of a route; every one must hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RouteMatch {
    /// Path condition, on the path without its query.
    pub path: PathMatch,
    /// Case rule of the path; a regex ignores it. Default true.
    pub case_sensitive: bool,
    /// Methods; empty = any.
    pub methods: Vec<String>,
    /// Header conditions, also on pseudo-headers.
    pub headers: Vec<HeaderMatcher>,
    /// Query conditions.
    pub query: Vec<QueryMatcher>,
    /// Cookie conditions.
    pub cookies: Vec<CookieMatcher>,
    /// Only this share of requests, drawn anew for each. None = all.
    pub fraction: Option<PerMillion>,
    /// Only requests dialled to this port. None = any.
    pub port: Option<u16>,
    /// Only callers whose workload has these labels.
    pub source_labels: BTreeMap<String, String>,
    /// Only callers of this namespace.
    pub source_namespace: Option<String>,
}

impl RouteMatch {
    /// A match for every request.
    pub fn any() -> Self {
        Self {
            path: PathMatch::Prefix("/".into()),
            case_sensitive: true,
            methods: Vec::new(),
            headers: Vec::new(),
            query: Vec::new(),
            cookies: Vec::new(),
            fraction: None,
            port: None,
            source_labels: BTreeMap::new(),
            source_namespace: None,
        }
    }
}

/// A path condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// A plain text prefix: `/foo` takes `/foobar` (Istio, Envoy `prefix`).
    Prefix(String),
    /// A prefix of whole path elements: `/foo` takes `/foo` and `/foo/bar` only (Gateway API,
    /// Envoy `path_separated_prefix`).
    PathSeparatedPrefix(String),
    /// The whole path matches.
    Regex(Pattern),
}

/// A condition on one header. Several values of one header are joined by `,` first (gRFC A28).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct HeaderMatcher {
    /// The header.
    pub name: HeaderKey,
    /// The condition.
    pub value: HeaderMatch,
    /// Turn the result round. An absent header fails a value condition even when inverted, unless
    /// `treat_missing_as_empty` is set.
    pub invert: bool,
    /// Compare an absent header as an empty one (Istio `withoutHeaders` needs it). Default false.
    pub treat_missing_as_empty: bool,
}

/// What is asked of a header.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderMatch {
    /// Its text.
    Text(StringMatcher),
    /// An integer in `[start, end)`.
    Range {
        /// First value inside.
        start: i64,
        /// First value outside.
        end: i64,
    },
    /// Present (true) or absent (false).
    Present(bool),
}

/// A condition on one query parameter; the first value counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct QueryMatcher {
    /// Parameter name.
    pub name: String,
    /// What is asked of it.
    pub value: QueryMatch,
}

/// What is asked of a query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryMatch {
    /// Its text.
    Text(StringMatcher),
    /// Present (true) or absent (false).
    Present(bool),
}

/// A condition on one cookie of the request; an absent cookie fails it, unless it is inverted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct CookieMatcher {
    /// Cookie name.
    pub name: String,
    /// Its text; any of several cookies of the name.
    pub value: StringMatcher,
    /// Turn the result round.
    pub invert: bool,
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteAction {
    /// Send to a cluster.
    Forward(Box<Forward>),
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Answer at once.
    DirectResponse(DirectResponse),
    /// Server side only: hand to the application.
    NonForwarding,
}

/// Forwarding and everything around it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Forward {
    /// Where to.
    pub to: ClusterChoice,
    /// Time for the whole request, all tries and back-off included, from its begin. None = unlimited. Envoy's time
    /// begins when the request's body has been sent: where bodies are long, allow for them.
    pub timeout: Option<Duration>,
    /// Time without a byte in either direction. None = unlimited.
    pub idle_timeout: Option<Duration>,
    /// Longest life of a stream (Envoy `max_stream_duration`), in place of the listener's. None = the listener's; zero =
    /// unlimited, whatever the listener says.
    pub max_stream_duration: Option<Duration>,
    /// The same for gRPC calls alone, whatever their `grpc-timeout` (Envoy `grpc_timeout_header_max`, gRFC A31). None = as
    /// for other requests; zero = unlimited.
    pub grpc_timeout_max: Option<Duration>,
    /// Retry policy; beats the virtual host's. None = the virtual host's, else none.
    pub retry: Option<RetryPolicy>,
    /// Further tries beside one that is under way. None = off.
    pub hedge: Option<HedgePolicy>,
    /// Its requests count against the cluster's limits for high priority. Default false.
    pub high_priority: bool,
    /// Metadata `envoy.lb` of the endpoints that take part, where the cluster has subsets.
    pub metadata_match: BTreeMap<String, String>,
    /// Copies to send elsewhere.
    pub mirrors: Vec<Mirror>,
    /// Change of path and authority.
    pub rewrite: Rewrite,
    /// Where a consistent-hash balancer takes its hash from.
    pub hash: Vec<HashPolicy>,
    /// CORS answers for browsers.
    pub cors: Option<Arc<Cors>>,
}

impl Forward {
    /// Plain forwarding to one cluster.
    pub fn to(cluster: ClusterName) -> Self {
        Self {
            to: ClusterChoice::Cluster(cluster),
            timeout: None,
            idle_timeout: None,
            max_stream_duration: None,
            grpc_timeout_max: None,
            retry: None,
            hedge: None,
            high_priority: false,
            metadata_match: BTreeMap::new(),
            mirrors: Vec::new(),
            rewrite: Rewrite::default(),
            hash: Vec::new(),
            cors: None,
        }
    }
}

impl RouteConfiguration {
    /// Gives every cluster that routes and mirrors name another name; what request headers name stays.
    pub fn rename_clusters(&mut self, to: &dyn Fn(&ClusterName) -> ClusterName) {
        for route in self.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
            let RouteAction::Forward(forward) = &mut route.action else { continue };
            match &mut forward.to {
                ClusterChoice::Cluster(name) => *name = to(name),
                ClusterChoice::Weighted(split) => split.0.iter_mut().for_each(|entry| entry.name = to(&entry.name)),
                ClusterChoice::Header(_) => {}
            }
            forward.mirrors.iter_mut().for_each(|mirror| mirror.cluster = to(&mirror.cluster));
        }
    }
}

/// Which cluster a forwarded request goes to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClusterChoice {
    /// This one.
    Cluster(ClusterName),
    /// One of several, drawn by weight once per request.
    Weighted(WeightedClusters),
    /// The one named by a request header.
    Header(#[serde(serialize_with = "as_text")] HeaderName),
}

/// Clusters with weights: at least one, total weight above 0 and within `u32`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct WeightedClusters(Vec<WeightedCluster>);

/// One entry of a weighted split.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct WeightedCluster {
    /// The cluster.
    pub name: ClusterName,
    /// Its weight, relative to the sum; 0 gets nothing.
    pub weight: u32,
    /// Header operations for requests that go here, before the route's.
    pub headers: HeaderPolicy,
    /// Filters that differ for requests that go here; they beat the route's.
    pub filters: FilterOverrides,
    /// Authority sent; beats the route's rewrite.
    pub authority: Option<String>,
    /// Beats the route's of the same name, key by key.
    pub metadata_match: BTreeMap<String, String>,
}

impl WeightedCluster {
    /// An entry without extras.
    pub fn new(name: ClusterName, weight: u32) -> Self {
        Self {
            name,
            weight,
            headers: HeaderPolicy::default(),
            filters: FilterOverrides::new(),
            authority: None,
            metadata_match: BTreeMap::new(),
        }
    }
}

impl WeightedClusters {
    /// Checks the weights (xDS: the sum must be above 0 and fit `u32`).
    ///
    /// # Errors
    /// The list is empty, the sum is 0, or it overflows `u32`.
    pub fn new(entries: Vec<WeightedCluster>) -> Result<Self, InvalidPolicy> {
        let total: u64 = entries.iter().map(|e| u64::from(e.weight)).sum();
        if total == 0 || total > u64::from(u32::MAX) {
            return Err(InvalidPolicy::new(
                "weighted_clusters",
                format!("the weights sum to {total}; the sum must be 1 to {}", u32::MAX),
            ));
        }
        Ok(Self(entries))
    }

    /// The entries in listed order.
    pub fn entries(&self) -> &[WeightedCluster] {
        &self.0
    }

    /// Sum of the weights; never 0.
    pub fn total(&self) -> u32 {
        self.0.iter().map(|e| e.weight).sum()
    }

    /// The entry that a draw from `0..total()` falls on.
    pub fn pick(&self, draw: u32) -> &WeightedCluster {
        let mut left = draw % self.total();
        for entry in &self.0 {
            if left < entry.weight {
                return entry;
            }
            left -= entry.weight;
        }
        unreachable!("the draw is below the sum of the weights")
    }
}

/// When and how often to try again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RetryPolicy {
    /// Tries beyond the first. 0 = none.
    pub attempts: u32,
    /// What is retried.
    pub on: RetryOn,
    /// Time for one try. None = the route's timeout only.
    pub per_try_timeout: Option<Duration>,
    /// Time one try may be without a byte.
    pub per_try_idle_timeout: Option<Duration>,
    /// First back-off, doubled each time with full jitter. Default 25 ms.
    pub backoff_base: Duration,
    /// Longest back-off. Default ten times the base.
    pub backoff_max: Duration,
    /// Back-off told by the answer. None = only the two above.
    pub rate_limited: Option<RateLimitedBackoff>,
    /// Only requests of which one of these holds are tried again; empty = all.
    pub request_headers: Vec<HeaderMatcher>,
    /// Skip endpoints already tried (Istio `retryIgnorePreviousHosts`). Default true.
    pub avoid_previous_hosts: bool,
    /// Skip endpoints with all of one of these in their metadata `envoy.lb`; empty = none (Envoy `omit_host_metadata`,
    /// `omit_canary_hosts`, one each).
    pub avoid_metadata: Vec<BTreeMap<String, String>>,
    /// Try the next locality priority after the current one. Default false.
    pub next_locality: bool,
}

impl RetryPolicy {
    /// A policy with Envoy's back-off defaults.
    pub fn new(attempts: u32, on: RetryOn) -> Self {
        Self {
            attempts,
            on,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            rate_limited: None,
            request_headers: Vec::new(),
            avoid_previous_hosts: true,
            avoid_metadata: Vec::new(),
            next_locality: false,
        }
    }

    /// Istio's default for a route that says nothing: two retries on connection failure, refused
    /// stream, gRPC unavailable and cancelled (config-surface 1.1.7; 503 is not in the set).
    pub fn istio_default() -> Self {
        Self::new(
            2,
            RetryOn {
                connect_failure: true,
                refused_stream: true,
                unavailable: true,
                cancelled: true,
                retriable_status_codes: true,
                ..RetryOn::default()
            },
        )
    }
}

/// Back-off that an answer's header tells (Envoy `rate_limited_retry_back_off`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RateLimitedBackoff {
    /// Headers in order; the first that is there and can be read counts. Not empty.
    pub headers: Vec<ResetHeader>,
    /// Longer times are not obeyed. Default 300 s.
    pub max_interval: Duration,
}

/// A header that says when to try again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ResetHeader {
    /// Its name, such as `retry-after`.
    #[serde(serialize_with = "as_text")]
    pub name: HeaderName,
    /// It is a point in time, in seconds since 1970, and not a number of seconds. Default false.
    pub unix_timestamp: bool,
}

/// Further tries beside one that is under way (Envoy `hedge_policy`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct HedgePolicy {
    /// Tries at the start; above 0. Default 1.
    pub initial_requests: u32,
    /// Share of requests with one more. Default none.
    pub additional_request: PerMillion,
    /// A try whose per-try timeout has passed goes on beside the next. Default false.
    pub on_per_try_timeout: bool,
}

/// Retry conditions: Envoy's `retry_on` and `retry_grpc_on` tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[allow(clippy::struct_excessive_bools)]
pub struct RetryOn {
    /// `5xx`: any 5xx answer, and no answer at all.
    pub server_error: bool,
    /// `gateway-error`: 502, 503, 504.
    pub gateway_error: bool,
    /// `reset`: the connection broke without an answer.
    pub reset: bool,
    /// `reset-before-request`: it broke before the request was sent.
    pub reset_before_request: bool,
    /// `connect-failure`.
    pub connect_failure: bool,
    /// `refused-stream`.
    pub refused_stream: bool,
    /// `retriable-4xx`: 409.
    pub retriable_4xx: bool,
    /// `envoy-ratelimited`: the answer carries `x-envoy-ratelimited`.
    pub envoy_ratelimited: bool,
    /// `http3-post-connect-failure`.
    pub http3_post_connect_failure: bool,
    /// `retriable-status-codes`: those in `status_codes`.
    pub retriable_status_codes: bool,
    /// Status codes of the condition above; plain numbers in Istio's `retryOn` end up here.
    pub status_codes: Vec<u16>,
    /// `retriable-headers`: the answer has a header that matches.
    pub response_headers: Vec<HeaderMatcher>,
    /// gRPC status 1.
    pub cancelled: bool,
    /// gRPC status 4.
    pub deadline_exceeded: bool,
    /// gRPC status 13.
    pub internal: bool,
    /// gRPC status 8.
    pub resource_exhausted: bool,
    /// gRPC status 14, and of gRPC calls whatever else its application sees as that (gRFC A6); but of a call that was sent
    /// and whose connection broke only where none of the three conditions on connections above `retriable-4xx` is set.
    pub unavailable: bool,
    /// Linkerd `isRetryable`: answers that the route's response classes call failures.
    pub classified_failure: bool,
}

/// Linkerd's retry budget (ServiceProfile `retryBudget`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RetryBudget {
    /// Retries may add this share of the original requests. Linkerd's default 200,000 (0.2).
    pub retry_ratio: PerMillionRatio,
    /// Retries a second allowed whatever the ratio. Linkerd's default 10.
    pub min_retries_per_second: u32,
    /// How long a request earns budget: 1 s to 60 s. Linkerd's default 10 s.
    pub ttl: Duration,
}

/// A ratio in millionths that may exceed one (a budget ratio may be up to 1000).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct PerMillionRatio(pub u64);

/// A Linkerd response class: the first whose status range holds decides.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ResponseClass {
    /// The condition.
    pub matcher: ResponseMatch,
    /// Whether such an answer is a failure.
    pub is_failure: bool,
}

/// A condition on an answer's status (Linkerd `responseClasses[].condition`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseMatch {
    /// Status within the bounds, both inclusive.
    Status {
        /// Lowest.
        min: u16,
        /// Highest.
        max: u16,
    },
    /// All hold.
    All(Vec<ResponseMatch>),
    /// One holds.
    Any(Vec<ResponseMatch>),
    /// It does not hold.
    Not(Box<ResponseMatch>),
}

/// A copy of the request sent to another cluster, its answer dropped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Mirror {
    /// Where to.
    pub cluster: ClusterName,
    /// Share of requests.
    pub share: PerMillion,
    /// The copy's authority ends in `-shadow` (Envoy, unless `disable_shadow_host_suffix_append`; current Istio
    /// does without).
    pub shadow_host: bool,
}

/// Change of path and authority before sending.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Rewrite {
    /// New path.
    pub path: Option<PathRewrite>,
    /// New authority.
    pub authority: Option<AuthorityRewrite>,
    /// Tell the endpoint the authority there was, in `x-forwarded-host`. Default false.
    pub forwarded_host: bool,
}

/// How the path changes; the query stays.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathRewrite {
    /// Replace the matched prefix, or the whole path where the route matched otherwise
    /// (Envoy `prefix_rewrite`).
    Prefix(String),
    /// Replace the whole path (Envoy `path_rewrite`).
    Full(String),
    /// Replace what a pattern finds; `\1` refers to its groups (Envoy `regex_rewrite`).
    Regex {
        /// What to find.
        pattern: Pattern,
        /// What to put there.
        substitution: String,
    },
}

/// How the authority changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthorityRewrite {
    /// To this text.
    Literal(String),
    /// To the chosen endpoint's hostname (gRFC A81).
    Endpoint,
    /// To the value of this request header, if it is there.
    Header(#[serde(serialize_with = "as_text")] HeaderName),
    /// To the request's path, query excluded, after a substitution (Envoy `host_rewrite_path_regex`).
    Path {
        /// What to find.
        pattern: Pattern,
        /// What to put there; `\1` refers to a group.
        substitution: String,
    },
}

/// A redirect answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub code: u16,
    /// New scheme.
    pub scheme: Option<String>,
    /// New host.
    pub host: Option<String>,
    /// New port.
    pub port: Option<u16>,
    /// New path. A whole one that has a query of its own takes the place of the request's query as well.
    pub path: Option<PathRewrite>,
    /// Drop the request's query. Default false.
    pub strip_query: bool,
}

impl Redirect {
    /// Whether the query is the new path's own, whatever the request's was (Envoy `path_redirect`).
    pub fn has_own_query(&self) -> bool {
        matches!(&self.path, Some(PathRewrite::Full(path)) if path.contains('?'))
    }
}

/// An answer given without an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct DirectResponse {
    /// HTTP status, 200 to 599.
    pub status: u16,
    /// Body, at most 1 MiB.
    pub body: Vec<u8>,
}

/// Where a consistent-hash balancer takes its hash from (Envoy `hash_policy`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct HashPolicy {
    /// The source.
    pub source: HashSource,
    /// Stop here if a hash exists.
    pub terminal: bool,
}

/// One source of a hash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HashSource {
    /// A header's value.
    Header {
        /// Its name.
        #[serde(serialize_with = "as_text")]
        name: HeaderName,
        /// A substitution in the value, first.
        rewrite: Option<RegexRewrite>,
    },
    /// A cookie; with a `ttl` it is made when missing (0 = session cookie).
    Cookie {
        /// Cookie name.
        name: String,
        /// Path of a made cookie.
        path: String,
        /// Life of a made cookie. None = only read.
        ttl: Option<Duration>,
    },
    /// A query parameter.
    Query(String),
    /// The address of whoever sent the request that is being served, for which this one is sent (Envoy
    /// `connection_properties.source_ip`, Istio `useSourceIp`): the server's context has it. The source of a request that is
    /// sent for none, and of raw connections, is the client itself: all of them go to one endpoint, as those of the one
    /// application behind a sidecar do.
    SourceAddress,
    /// One random value for the life of the channel (`io.grpc.channel_id`).
    ChannelId,
}

/// Find and replace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RegexRewrite {
    /// What to find.
    pub pattern: Pattern,
    /// What to put there; `\1` refers to a group.
    pub substitution: String,
}

/// Answers to browsers' cross-origin questions (Istio `corsPolicy`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Cors {
    /// Origins allowed.
    pub allow_origins: Vec<StringMatcher>,
    /// `access-control-allow-methods`; `*` alone = what a preflight asks for (Envoy).
    pub allow_methods: Vec<String>,
    /// `access-control-allow-headers`; `*` alone = what a preflight asks for (Envoy).
    pub allow_headers: Vec<String>,
    /// `access-control-expose-headers`.
    pub expose_headers: Vec<String>,
    /// `access-control-max-age`.
    pub max_age: Option<Duration>,
    /// `access-control-allow-credentials`.
    pub allow_credentials: bool,
    /// Forward preflights that match no origin. Default true.
    pub forward_unmatched: bool,
}

fn as_text<S: serde::Serializer>(name: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}
