//! What this version accepts and does not enforce: one table for each kind of resource. Who enforces a
//! further field deletes its line here.
//!
//! A new policy field breaks the build in [`everything_is_considered`] until somebody has thought about
//! it.

use super::{
    Balancer, CircuitBreakers, Cluster, ConnectionOptions, Endpoints, Forward, HttpFilterKind, InboundLimits,
    InboundListener, Listener, RetryPolicy, RouteAction, RouteConfiguration, Unenforced,
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
    line("balancer", "least request is used instead of latency", |c| c.balancer == Balancer::PeakEwma),
    line("balancer", "round robin without load reports is used", |c| {
        matches!(c.balancer, Balancer::WeightedRoundRobin(_))
    }),
    line("balancer", "least request is used: requests of one key do not stay together", |c| {
        matches!(c.balancer, Balancer::RingHash { .. } | Balancer::Maglev { .. })
    }),
    line("balancer", "least request over all endpoints is used", |c| matches!(c.balancer, Balancer::PickFirst { .. })),
    line("locality.panic_threshold", "unhealthy endpoints are never used", |c| {
        c.locality.panic_threshold.is_some_and(|share| share.get() > 0)
    }),
    line("slow_start", "a new endpoint gets its full share at once", |c| c.slow_start.is_some()),
    line("outlier", "failing endpoints are not ejected", |c| c.outlier.is_some()),
    line("health_checks", "endpoints are not checked; the control plane's word counts", |c| {
        !c.health_checks.is_empty()
    }),
    line("connection.max_concurrent_streams", "only the endpoint's own limit counts", |c| {
        c.connection.max_concurrent_streams.is_some()
    }),
    line("connection.tcp_keepalive", "TCP keep-alive stays as the system has it", |c| {
        c.connection.tcp_keepalive.is_some()
    }),
];

const FORWARD: &[Line<Forward>] = &[
    line("idle_timeout", "a silent stream is not ended", |f| f.idle_timeout.is_some()),
    line("mirrors", "no copy is sent", |f| !f.mirrors.is_empty()),
    line("hash", "requests of one key do not stay together", |f| !f.hash.is_empty()),
    line("cors", "preflights are forwarded and answers get no CORS headers", |f| f.cors.is_some()),
];

const RETRY: &[Line<RetryPolicy>] = &[
    line("retry.per_try_idle_timeout", "a silent try is ended by the other timeouts only", |r| {
        r.per_try_idle_timeout.is_some()
    }),
    line("retry.next_locality", "a retry stays in the priority in use", |r| r.next_locality),
    line("retry.on.http3_post_connect_failure", "HTTP/3 is not spoken", |r| r.on.http3_post_connect_failure),
];

const INBOUND: &[Line<InboundListener>] = &[
    line("authorization", "rules are not evaluated; the server fails closed and refuses what they govern", |l| {
        !l.authorization.is_empty()
    }),
    line("limits.max_connection_age", "connections are not closed for their age", |l| {
        l.limits.max_connection_age.is_some()
    }),
];

impl Report for Cluster {
    fn report(&self, out: &mut Vec<Unenforced>) {
        look(CLUSTER, self, &format!("cluster {}", self.name), "", out);
    }
}

impl Report for Endpoints {
    // Everything of them is enforced; the check below keeps asking.
    fn report(&self, _out: &mut Vec<Unenforced>) {}
}

impl Report for RouteConfiguration {
    fn report(&self, out: &mut Vec<Unenforced>) {
        let resource = format!("routes {}", self.name);
        for (i, host) in self.virtual_hosts.iter().enumerate() {
            if let Some(retry) = &host.retry {
                look(RETRY, retry, &resource, &format!("virtual_hosts[{i}]."), out);
            }
            for (j, route) in host.routes.iter().enumerate() {
                let RouteAction::Forward(forward) = &route.action else { continue };
                let path = format!("virtual_hosts[{i}].routes[{j}].");
                look(FORWARD, forward, &resource, &path, out);
                if let Some(retry) = &forward.retry {
                    look(RETRY, retry, &resource, &path, out);
                }
            }
        }
    }
}

impl Report for Listener {
    fn report(&self, out: &mut Vec<Unenforced>) {
        let resource = format!("listener {}", self.name);
        for (i, filter) in self.filters.iter().enumerate() {
            match &filter.kind {
                HttpFilterKind::Fault(_) => {}
                HttpFilterKind::Skipped { .. } => out.push(Unenforced {
                    resource: resource.clone(),
                    field: format!("filters[{i}] {}", filter.name),
                    effect: "the filter is unknown here and marked optional: it is skipped",
                }),
            }
        }
        if let super::RouteSource::Inline(routes) = &self.routes {
            routes.report(out);
        }
    }
}

impl Report for InboundListener {
    fn report(&self, out: &mut Vec<Unenforced>) {
        look(INBOUND, self, &format!("inbound {}", self.name), "", out);
    }
}

fn look<T>(table: &[Line<T>], policy: &T, resource: &str, path: &str, out: &mut Vec<Unenforced>) {
    out.extend(table.iter().filter(|line| (line.used)(policy)).map(|line| Unenforced {
        resource: resource.to_owned(),
        field: format!("{path}{}", line.field),
        effect: line.effect,
    }));
}

/// Never called. Every field is named, so that a new one is a build error here: enforce it or add a
/// line above, then add it here.
#[allow(dead_code)]
fn everything_is_considered(
    cluster: Cluster,
    forward: Forward,
    retry: RetryPolicy,
    endpoints: Endpoints,
    listener: Listener,
    inbound: InboundListener,
) {
    let Cluster {
        name: _,
        discovery: _,
        balancer: _,
        locality: _,
        slow_start: _,
        breaker:
            CircuitBreakers { max_connections: _, max_pending: _, max_requests: _, max_retries: _, retry_budget: _ },
        outlier: _,
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
                http2_keepalive: _,
                tcp_keepalive: _,
            },
        telemetry: _,
    } = cluster;
    let Forward {
        to: _,
        timeout: _,
        idle_timeout: _,
        max_stream_duration: _,
        retry: _,
        mirrors: _,
        rewrite: _,
        hash: _,
        cors: _,
    } = forward;
    let RetryPolicy {
        attempts: _,
        on: _,
        per_try_timeout: _,
        per_try_idle_timeout: _,
        backoff_base: _,
        backoff_max: _,
        avoid_previous_hosts: _,
        next_locality: _,
    } = retry;
    let Endpoints { cluster: _, localities: _, drops: _ } = endpoints;
    let Listener { name: _, routes: _, filters: _, max_stream_duration: _ } = listener;
    let InboundListener {
        name: _,
        address: _,
        tls: _,
        authorization: _,
        limits: InboundLimits { max_connections: _, max_concurrent_streams: _, max_connection_age: _ },
    } = inbound;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::ClusterName;
    use crate::policy::{
        ClusterChoice, DirectResponse, HeaderPolicy, HttpFilter, LocalityBalancing, Mirror, OutlierDetection,
        PerMillion, RetryOn, Route, RouteMatch, RouteSource, VirtualHost, WeightedRoundRobin,
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
        let (fault, response_classes) = (None, Vec::new());
        let route = Route { name: "r".into(), matcher, action, headers: headers(), fault, response_classes };
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
        let by_header = ClusterChoice::Header(http::HeaderName::from_static("x-cluster"));
        assert_eq!(fields(&routes(forward(|f| f.to = by_header), None)), [""; 0]);
    }

    #[test]
    fn what_a_cluster_asks_for_in_vain_is_named() {
        for (change, want) in [
            (cluster(|c| c.outlier = Some(OutlierDetection::default())), "outlier"),
            (cluster(|c| c.balancer = Balancer::PeakEwma), "balancer"),
            (cluster(|c| c.balancer = Balancer::Maglev { table_size: 65537 }), "balancer"),
            (cluster(|c| c.balancer = Balancer::WeightedRoundRobin(WeightedRoundRobin::default())), "balancer"),
            (
                cluster(|c| c.locality = LocalityBalancing { weighted: true, panic_threshold: Some(PerMillion::ALL) }),
                "locality.panic_threshold",
            ),
        ] {
            let report = unenforced(&change);
            assert_eq!(report.len(), 1, "{report:?}");
            assert_eq!((report[0].resource.as_str(), report[0].field.as_str()), ("cluster c", want));
            assert!(!report[0].effect.is_empty());
        }
    }

    #[test]
    fn what_a_route_asks_for_in_vain_is_named_with_its_place() {
        let mirror = Mirror { cluster: ClusterName::new("m"), share: PerMillion::ALL };
        let retry = RetryPolicy { next_locality: true, ..RetryPolicy::new(1, RetryOn::default()) };
        let config = routes(forward(|f| f.mirrors = vec![mirror]), Some(retry));
        let want = ["virtual_hosts[0].retry.next_locality", "virtual_hosts[0].routes[0].mirrors"];
        assert_eq!(fields(&config), want);

        let skipped = HttpFilterKind::Skipped { type_url: "t".into() };
        let filters = vec![HttpFilter { name: "wasm".into(), kind: skipped }];
        let inline = RouteSource::Inline(Arc::new(config));
        let listener = Listener { name: "l".into(), routes: inline, filters, max_stream_duration: None };
        assert_eq!(fields(&listener)[0], "filters[0] wasm");
        assert_eq!(fields(&listener)[1..], want);
    }
}
