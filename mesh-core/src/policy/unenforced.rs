//! What this version accepts and does not enforce: one table for each kind of resource. Who enforces a
//! further field deletes its line here.
//!
//! A new policy field breaks the build in one of the `.._considered` functions until somebody has thought
//! about it.

use super::{
    AuthorityRewrite, Balancer, CircuitBreakers, Cluster, ClusterChoice, Composite, ConnectionOptions, DnsOptions,
    Endpoint, EndpointMetadata, Endpoints, Fault, FilterOverride, FilterOverrides, Forward, HttpFilter, HttpFilterKind,
    InboundLimits, InboundListener, InboundRoutes, Instances, JwtAuthentication, JwtKeys, LARGEST_RING, Listener,
    LocalRateLimit, LocalityBalancing, LocalityEndpoints, Mirror, OriginatedTls, RetryPolicy, Rewrite, Route,
    RouteAction, RouteConfiguration, RouteMatch, Unenforced, VirtualHost, WeightedCluster,
};

/// What of `policy` is accepted and not enforced by this version; empty if all of it is enforced.
pub fn unenforced(policy: &impl Report) -> Vec<Unenforced> {
    let mut out = Vec::new();
    policy.report(&mut out);
    out
}

/// A resource that can be asked. Implemented for the resources of this module and not meant for others.
pub trait Report {
    #[doc(hidden)]
    fn report(&self, out: &mut Vec<Unenforced>);
}

struct Line<T> {
    field: &'static str,
    effect: &'static str,
    used: fn(&T) -> bool,
}

const fn line<T>(field: &'static str, effect: &'static str, used: fn(&T) -> bool) -> Line<T> {
    Line { field, effect, used }
}

const CLUSTER: &[Line<Cluster>] = &[
    // As in Envoy without a `local_cluster_name`.
    line(
        "locality.zone_aware",
        "the caller's own zone is not preferred, for its share depends on how the callers are spread over zones, which a \
         client is not told; what fails in panic, priorities of localities, and their weights under any balancer, are enforced",
        |c| c.locality.zone_aware.is_some(),
    ),
    line(
        "balancer.min_size",
        "a ring has 65,536 entries at most: with more asked for, some keys belong elsewhere than with who makes them all. A \
         largest size above that alone changes nothing, but for weights so far apart that the lightest endpoint would \
         have less than one of them",
        |c| least_ring(&c.balancer).is_some_and(|least| least > LARGEST_RING),
    ),
];

/// Entries that a ring is to have at least.
fn least_ring(balancer: &Balancer) -> Option<u64> {
    match balancer {
        Balancer::RingHash { min_size, max_size } => Some(*min_size.min(max_size)),
        Balancer::RandomSubsetting { child, .. } | Balancer::DeterministicSubsetting { child, .. } => least_ring(child),
        _ => None,
    }
}

const ROUTE: &[Line<Forward>] = &[line(
    "to.header",
    "a client asks for the clusters that it reads the names of: a request whose header names one that no other route of \
         the destination names, or none, fails",
    |forward| matches!(forward.to, ClusterChoice::Header(_)),
)];

const RETRY: &[Line<RetryPolicy>] =
    &[line("retry.on.http3_post_connect_failure", "HTTP/3 is not spoken", |r| r.on.http3_post_connect_failure)];

const INBOUND: &[Line<InboundListener>] =
    &[line("jwt.providers.keys.remote", "a server fetches no keys: no token of such a provider holds", |l| {
        has_remote_keys(&l.jwt)
    })];

impl Report for Cluster {
    fn report(&self, out: &mut Vec<Unenforced>) {
        look(CLUSTER, self, &format!("cluster {}", self.name), "", out);
    }
}

impl Report for Endpoints {
    fn report(&self, _out: &mut Vec<Unenforced>) {
        // All of it is enforced.
    }
}

impl Report for RouteConfiguration {
    fn report(&self, out: &mut Vec<Unenforced>) {
        let resource = format!("routes {}", self.name);
        for (i, host) in self.virtual_hosts.iter().enumerate() {
            if let Some(retry) = &host.retry {
                look(RETRY, retry, &resource, &format!("virtual_hosts[{i}]."), out);
            }
            for (j, route) in host.routes.iter().enumerate() {
                let path = format!("virtual_hosts[{i}].routes[{j}].");
                overrides(&route.filters, &resource, &path, out);
                let RouteAction::Forward(forward) = &route.action else { continue };
                look(ROUTE, forward, &resource, &path, out);
                if let Some(retry) = &forward.retry {
                    look(RETRY, retry, &resource, &path, out);
                }
                if let ClusterChoice::Weighted(split) = &forward.to {
                    for (k, entry) in split.entries().iter().enumerate() {
                        overrides(&entry.filters, &resource, &format!("{path}clusters[{k}]."), out);
                    }
                }
            }
        }
    }
}

impl Report for Listener {
    fn report(&self, out: &mut Vec<Unenforced>) {
        let resource = format!("listener {}", self.name);
        filters(&self.filters, &resource, Some(OUTBOUND_RATE_LIMIT), out);
        if let super::RouteSource::Inline(routes) = &self.routes {
            routes.report(out);
        }
    }
}

impl Report for InboundListener {
    fn report(&self, out: &mut Vec<Unenforced>) {
        let resource = format!("inbound {}", self.name);
        look(INBOUND, self, &resource, "", out);
        filters(&self.before, &resource, None, out);
        filters(&self.filters, &resource, None, out);
        if let InboundRoutes::Listed(hosts) = &self.routes {
            for (i, host) in hosts.iter().enumerate() {
                for (j, _) in host.routes.iter().enumerate().filter(|(_, route)| route.serves.is_none()) {
                    let field = format!("routes.virtual_hosts[{i}].routes[{j}]");
                    let effect = "a server only serves: without non_forwarding_action what matches is refused";
                    out.push(Unenforced::new(resource.clone(), field, effect));
                }
            }
        }
    }
}

fn filters(
    list: &[HttpFilter],
    resource: &str,
    rate_limit: Option<&[Line<LocalRateLimit>]>,
    out: &mut Vec<Unenforced>,
) {
    filters_at(list, resource, rate_limit, "", out);
}

fn filters_at(
    list: &[HttpFilter],
    resource: &str,
    rate_limit: Option<&[Line<LocalRateLimit>]>,
    path: &str,
    out: &mut Vec<Unenforced>,
) {
    for (i, filter) in list.iter().enumerate() {
        let path = format!("{path}filters[{i}] {}", filter.name);
        let effect = match &filter.kind {
            HttpFilterKind::RateLimit(limit) => {
                effects(rate_limit.unwrap_or_default(), limit, resource, &path, out);
                continue;
            }
            HttpFilterKind::CallerRateLimit(_) if rate_limit.is_some() => "who calls is known to servers only",
            HttpFilterKind::Composite(composite) => {
                chains(composite, resource, rate_limit, &path, out);
                continue;
            }
            HttpFilterKind::Fault(_)
            | HttpFilterKind::CallerRateLimit(_)
            | HttpFilterKind::AdmissionControl(_)
            | HttpFilterKind::AdaptiveConcurrency(_)
            | HttpFilterKind::Session(_) => continue,
            HttpFilterKind::Skipped { .. } => "the filter is unknown here and marked optional: it is skipped",
        };
        out.push(Unenforced::new(resource, path, effect));
    }
}

/// What a composite may choose.
fn chains(
    composite: &Composite,
    resource: &str,
    rate_limit: Option<&[Line<LocalRateLimit>]>,
    path: &str,
    out: &mut Vec<Unenforced>,
) {
    for (i, chain) in composite.chains().into_iter().enumerate() {
        let path = format!("{path}.chains[{i}].");
        if has_remote_keys(&chain.jwt) {
            out.push(Unenforced::new(resource, format!("{path}{}", INBOUND[0].field), INBOUND[0].effect));
        }
        filters_at(&chain.filters, resource, rate_limit, &path, out);
    }
}

fn has_remote_keys(jwt: &[JwtAuthentication]) -> bool {
    let mut providers = jwt.iter().flat_map(|jwt| jwt.providers.values());
    providers.any(|provider| matches!(provider.keys, JwtKeys::Remote { .. }))
}

fn overrides(map: &FilterOverrides, resource: &str, path: &str, out: &mut Vec<Unenforced>) {
    for (name, filter) in map {
        let path = || format!("{path}filters[{name:?}]");
        match &**filter {
            FilterOverride::RateLimit(limit) => effects(OUTBOUND_RATE_LIMIT, limit, resource, &path(), out),
            FilterOverride::Composite(composite) => {
                chains(composite, resource, Some(OUTBOUND_RATE_LIMIT), &path(), out);
            }
            _ => {}
        }
    }
}

/// What of one filter is not enforced; `field` is the filter.
fn effects<T>(table: &[Line<T>], policy: &T, resource: &str, field: &str, out: &mut Vec<Unenforced>) {
    let used = table.iter().filter(|line| (line.used)(policy));
    out.extend(used.map(|line| Unenforced::new(resource, field, line.effect)));
}

/// Of a rate limit on the client's side.
const OUTBOUND_RATE_LIMIT: &[Line<LocalRateLimit>] = &[
    line(
        "per_connection",
        "the application has no connections of its own to the mesh: all its requests share one bucket",
        |limit| limit.bucket.is_some() && limit.per_connection,
    ),
    line("quota_headers", "a client tells its application what is left with a refusal only", |limit| {
        limit.bucket.is_some() && limit.quota_headers
    }),
];

fn look<T>(table: &[Line<T>], policy: &T, resource: &str, path: &str, out: &mut Vec<Unenforced>) {
    let used = table.iter().filter(|line| (line.used)(policy));
    out.extend(used.map(|line| Unenforced::new(resource, format!("{path}{}", line.field), line.effect)));
}

// Never called: each names every field of its resources, so that a new one is a build error here. Enforce it or
// add a line above, then add it here.

#[allow(dead_code)]
fn cluster_is_considered(cluster: Cluster, tls: OriginatedTls) {
    let Cluster {
        name: _,
        discovery: _,
        balancer: _,
        locality: LocalityBalancing { weighted: _, panic_threshold: _, zone_aware: _, spill: _ },
        slow_start: _,
        hashing: _,
        subsets: _,
        override_host: _,
        breaker:
            CircuitBreakers {
                max_connections: _,
                max_pending: _,
                max_requests: _,
                max_retries: _,
                retry_budget: _,
                max_connections_per_host: _,
            },
        breaker_high: _,
        outlier: _,
        accrual: _,
        health_checks: _,
        tls: _,
        connection:
            ConnectionOptions {
                protocol: _,
                connect_timeout: _,
                idle_timeout: _,
                max_age: _,
                max_requests_per_connection: _,
                max_concurrent_streams: _,
                initial_stream_window: _,
                initial_connection_window: _,
                http2_keepalive: _,
                tcp_keepalive: _,
            },
        proxy: _,
        dns: DnsOptions { family: _, refresh: _, failure_refresh: _, respect_ttl: _, jitter: _ },
        load_report: _,
        telemetry: _,
    } = cluster;
    let OriginatedTls { sni: _, auto_host_sni: _, subject_alt_names: _, ca_file: _, insecure_skip_verify: _ } = tls;
}

#[allow(dead_code)]
fn routes_are_considered(
    routes: RouteConfiguration,
    host: VirtualHost,
    route: Route,
    matcher: RouteMatch,
    forward: Forward,
    parts: (WeightedCluster, Mirror, Rewrite, AuthorityRewrite, Fault),
    retry: RetryPolicy,
) {
    let RouteConfiguration { name: _, virtual_hosts: _, headers: _, retry_budget: _ } = routes;
    let VirtualHost { name: _, domains: _, routes: _, headers: _, retry: _ } = host;
    let Route { name: _, matcher: _, action: _, headers: _, filters: _, response_classes: _, stat_prefix: _ } = route;
    let RouteMatch {
        path: _,
        case_sensitive: _,
        methods: _,
        headers: _,
        query: _,
        cookies: _,
        fraction: _,
        port: _,
        source_labels: _,
        source_namespace: _,
    } = matcher;
    let Forward {
        to: _,
        timeout: _,
        idle_timeout: _,
        max_stream_duration: _,
        grpc_timeout_max: _,
        retry: _,
        hedge: _,
        high_priority: _,
        metadata_match: _,
        mirrors: _,
        rewrite: _,
        hash: _,
        cors: _,
    } = forward;
    let (
        WeightedCluster { name: _, weight: _, headers: _, filters: _, authority: _, metadata_match: _ },
        Mirror { cluster: _, share: _, shadow_host: _ },
        Rewrite { path: _, authority: _, forwarded_host: _ },
        AuthorityRewrite::Literal(_)
        | AuthorityRewrite::Endpoint
        | AuthorityRewrite::Header(_)
        | AuthorityRewrite::Path { .. },
        Fault { delay: _, abort: _, headers: _, cluster: _, max_active: _ },
    ) = parts;
    let RetryPolicy {
        attempts: _,
        on: _,
        per_try_timeout: _,
        per_try_idle_timeout: _,
        backoff_base: _,
        backoff_max: _,
        rate_limited: _,
        request_headers: _,
        avoid_previous_hosts: _,
        avoid_metadata: _,
        next_locality: _,
    } = retry;
}

#[allow(dead_code)]
fn endpoints_are_considered(endpoints: (Endpoints, LocalityEndpoints, Endpoint, EndpointMetadata)) {
    let (
        Endpoints { cluster: _, localities: _, drops: _, overprovisioning_factor: _ },
        LocalityEndpoints { locality: _, priority: _, weight: _, endpoints: _ },
        Endpoint { address: _, additional_addresses: _, weight: _, health: _, metadata: _ },
        EndpointMetadata {
            mesh_tls: _,
            plaintext_refused: _,
            hostname: _,
            workload: _,
            lb: _,
            proxy: _,
            health_check: _,
        },
    ) = endpoints;
}

#[allow(dead_code)]
fn listeners_are_considered(listener: Listener, inbound: InboundListener) {
    let Listener { name: _, routes: _, filters: _, max_stream_duration: _, tcp: _ } = listener;
    let InboundListener {
        name: _,
        address: _,
        tls: _,
        instances: Instances { certificate: _, roots: _ },
        before: _,
        jwt: _,
        authorization: _,
        filters: _,
        routes: _,
        limits: InboundLimits { max_connections: _, max_concurrent_streams: _, max_connection_age: _, underscores: _ },
        trusted_proxies: _,
    } = inbound;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::ClusterName;
    use crate::policy::{
        ClusterChoice, DirectResponse, ExecuteFilters, HeaderPolicy, HttpFilter, MatcherRule, MatcherTree, OnMatch,
        RetryOn, Route, RouteMatch, RouteSource, VirtualHost, ZoneAware,
    };

    fn fields(policy: &impl Report) -> Vec<String> {
        unenforced(policy).into_iter().map(|u| u.field).collect()
    }

    fn cluster(change: impl FnOnce(&mut Cluster)) -> Cluster {
        let mut cluster = Cluster::new(ClusterName::new("c"));
        change(&mut cluster);
        cluster
    }

    fn routes(action: RouteAction, retry: Option<RetryPolicy>) -> RouteConfiguration {
        let headers = HeaderPolicy::default;
        let matcher = RouteMatch::any();
        let route = Route { name: "r".into(), ..Route::new(matcher, action) };
        let (domains, routes) = (Vec::new(), vec![route]);
        let host = VirtualHost { name: "h".into(), domains, routes, headers: headers(), retry };
        RouteConfiguration { name: "t".into(), virtual_hosts: vec![host], headers: headers(), retry_budget: None }
    }

    fn forward(change: impl FnOnce(&mut Forward)) -> RouteAction {
        let mut forward = Forward::to(ClusterName::new("c"));
        change(&mut forward);
        RouteAction::Forward(Box::new(forward))
    }

    #[test]
    fn plain_policy_is_enforced_whole() {
        assert_eq!(fields(&cluster(|_| {})), [""; 0]);
        assert_eq!(fields(&routes(forward(|f| f.retry = Some(RetryPolicy::istio_default())), None)), [""; 0]);
        assert_eq!(
            fields(&routes(RouteAction::DirectResponse(DirectResponse { status: 200, body: vec![] }), None)),
            [""; 0]
        );
    }

    #[test]
    fn what_a_cluster_asks_for_in_vain_is_named() {
        let zone_aware = Some(ZoneAware::default());
        let report = unenforced(&cluster(|c| c.locality.zone_aware = zone_aware));
        assert_eq!(report.len(), 1, "{report:?}");
        assert_eq!((report[0].resource.as_str(), report[0].field.as_str()), ("cluster c", "locality.zone_aware"));
        assert!(!report[0].effect.is_empty());
        let ring = |min_size, max_size| {
            let ring = Balancer::RingHash { min_size, max_size };
            [ring.clone(), Balancer::RandomSubsetting { size: 20, of_each: false, child: Box::new(ring) }]
        };
        for balancer in ring(65_537, 8 << 20) {
            assert_eq!(fields(&cluster(|c| c.balancer = balancer)), ["balancer.min_size"]);
        }
        // The control: these are enforced.
        for balancer in [ring(65_536, 8 << 20), ring(1 << 20, 1024)].into_iter().flatten() {
            assert_eq!(fields(&cluster(|c| c.balancer = balancer)), [""; 0]);
        }
        assert_eq!(fields(&cluster(|c| c.hashing.balance_factor = Some(125))), [""; 0]);
        assert_eq!(fields(&cluster(|c| c.dns.respect_ttl = true)), [""; 0]);
    }

    #[test]
    fn what_a_route_asks_for_in_vain_is_named_with_its_place() {
        let http3 = RetryOn { http3_post_connect_failure: true, ..RetryOn::default() };
        let retry = || Some(RetryPolicy::new(1, http3.clone()));
        let config = routes(forward(|f| f.retry = retry()), retry());
        let http3 = "retry.on.http3_post_connect_failure";
        let want = [format!("virtual_hosts[0].{http3}"), format!("virtual_hosts[0].routes[0].{http3}")];
        assert_eq!(fields(&config), want);
        // The names of the clusters are those of requests to come.
        let by_header = ClusterChoice::Header(http::HeaderName::from_static("x-cluster"));
        let named_later = routes(forward(|f| f.to = by_header), None);
        assert_eq!(fields(&named_later), ["virtual_hosts[0].routes[0].to.header"]);

        let skipped = HttpFilterKind::Skipped { type_url: "t".into() };
        let filters = vec![HttpFilter { name: "wasm".into(), kind: skipped }];
        let inline = RouteSource::Inline(Arc::new(config));
        let listener = Listener { filters, ..Listener::new("l", inline) };
        assert_eq!(fields(&listener)[0], "filters[0] wasm");
        // In a composite too.
        let chain = OnMatch::Execute(Arc::new(ExecuteFilters::all(listener.filters.clone())));
        let rule = MatcherRule::List(Vec::new());
        let composite = Composite::of(MatcherTree { rule, on_no_match: Some(chain) });
        let kind = HttpFilterKind::Composite(composite);
        let composed = Listener {
            filters: vec![HttpFilter { name: "composite".into(), kind }],
            ..Listener::new("l", RouteSource::Named("r".into()))
        };
        assert_eq!(fields(&composed), ["filters[0] composite.chains[0].filters[0] wasm"]);
        assert_eq!(fields(&listener)[1..], want);
    }
}
