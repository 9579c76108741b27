//! The filters that a request passes before it is tried, in the listener's order: faults and limits.
//!
//! A limit's state belongs to the place that configures it, the listener, the routes that share it, or one entry of a split, and
//! lives on while its policy there is equal; a limit that follows latency is each cluster's own. Refuses to know how
//! requests are routed and tried.

use std::collections::HashMap;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use mesh_core::id::ClusterName;
use mesh_core::limit::{Gradient, RateLimit, RateLimited, Throttle};
use mesh_core::matcher::RequestView;
use mesh_core::policy::{
    AdaptiveConcurrency, AdmissionControl, FilterOverride, HttpFilter, HttpFilterKind, LocalRateLimit, PerMillion,
    RouteMatch, StatefulSession,
};
use mesh_core::retry::RetryTokens;
use mesh_core::telemetry::Outcome;
use tokio::time::Instant;

use super::composite::{Composite, Composites, Failing};
use super::fault::Faults;
use crate::error::{Cause, Refusal};
use crate::explain::FilterExplanation;

/// One filter, ready for requests.
pub(crate) enum Filter {
    Fault(Faults),
    RateLimit(Arc<RateLimit>),
    Throttle(Arc<Throttling>),
    Concurrency(Arc<Concurrency>),
    /// In a composite's chain only. It is asked where the cluster is chosen, and passed by.
    Session(StatefulSession),
    Composite(Arc<Composite>),
    /// In place of a composite's filters where there are none to pass.
    Failing(Failing),
}

/// Client-side throttling.
pub(crate) struct Throttling {
    throttle: Throttle,
    http_success: Vec<Range<u16>>,
    // One bit for each code.
    grpc_success: u32,
}

/// A limit that follows latency.
pub(crate) struct Concurrency {
    gradient: Gradient,
    status: StatusCode,
}

/// What a request that passed a limit owes it: word of its end. Dropped without one, it was given up.
pub(crate) struct Ticket {
    to: Limit,
    began: Instant,
    // Drawn where the request was let in: who ends it has no source of randomness.
    random: u64,
    settled: bool,
}

enum Limit {
    Throttle(Arc<Throttling>),
    Concurrency(Arc<Concurrency>),
    // gRPC's retry tokens, and one bit for each status that costs one; None = nothing does.
    Tokens(Arc<RetryTokens>, Option<u32>),
}

/// The states of one destination's limits.
#[derive(Default)]
pub(crate) struct Limits(HashMap<Key, Filter>);

/// Which limit: where it is configured, by which filter, and how.
type Key = (Place, String, Policy);

/// Where a filter is configured; `None` = the listener.
pub(crate) type Place = Option<RoutePlace>;

/// Virtual host, condition of the route, and entry of a split.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct RoutePlace {
    pub(crate) host: String,
    pub(crate) matcher: RouteMatch,
    pub(crate) entry: Option<ClusterName>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Policy {
    RateLimit(LocalRateLimit),
    Throttle(AdmissionControl),
    /// Of this cluster: others have a latency of their own. `None` = where nothing is forwarded.
    Concurrency(AdaptiveConcurrency, Option<ClusterName>),
}

/// Takes limits over from the router before, and makes those that it did not have.
pub(crate) struct Compiler<'l> {
    pub(crate) before: Option<&'l Limits>,
    pub(crate) limits: Limits,
    pub(crate) now: Instant,
    /// Most routes have one as it is elsewhere.
    pub(crate) composites: Composites,
    /// Where a limit that several places share, as the routes of a virtual host do, was met first: it has one bucket (Envoy). By
    /// the address of what is said of it.
    pub(crate) shared: HashMap<usize, Place>,
}

impl Compiler<'_> {
    /// The filters of one place, whose requests go to `cluster` if that is settled there. `overridden` gives what
    /// differs there, and where that is said.
    pub(crate) fn compile<'p>(
        &mut self,
        filters: &'p [HttpFilter],
        cluster: Option<&ClusterName>,
        overridden: impl Fn(&str) -> Option<(&'p FilterOverride, Place)>,
    ) -> Arc<[Filter]> {
        let compiled = filters.iter().filter_map(|filter| {
            let (own, place) = match overridden(&filter.name) {
                Some((FilterOverride::Disabled, _)) => return None,
                Some((own, place)) => (Some(own), place),
                None => (None, None),
            };
            let name = &filter.name;
            match (&filter.kind, own) {
                (HttpFilterKind::Fault(_), Some(FilterOverride::Fault(fault))) => {
                    Some(Filter::Fault(Faults::new(fault)))
                }
                (HttpFilterKind::Fault(fault), _) => Some(Filter::Fault(Faults::new(fault.as_ref()?))),
                (HttpFilterKind::RateLimit(_), Some(FilterOverride::RateLimit(limit))) => {
                    let place = self.shared.entry(ptr::from_ref(limit).addr()).or_insert(place).clone();
                    self.limit(place, name, Policy::RateLimit(limit.clone()))
                }
                (HttpFilterKind::RateLimit(limit), _) => self.limit(None, name, Policy::RateLimit(limit.clone())),
                (HttpFilterKind::AdmissionControl(policy), _) => {
                    self.limit(None, name, Policy::Throttle(policy.clone()?))
                }
                (HttpFilterKind::AdaptiveConcurrency(policy), _) => {
                    self.limit(None, name, Policy::Concurrency(policy.clone()?, cluster.cloned()))
                }
                (HttpFilterKind::Composite(_), Some(FilterOverride::Composite(own))) => {
                    self.composite(own, name, place, cluster).map(Filter::Composite)
                }
                (HttpFilterKind::Composite(composite), _) => {
                    self.composite(composite, name, None, cluster).map(Filter::Composite)
                }
                _ => None,
            }
        });
        compiled.collect()
    }

    /// The limit of this name that a place has.
    pub(super) fn limit(&mut self, place: Place, name: &str, policy: Policy) -> Option<Filter> {
        let key = (place, name.to_owned(), policy);
        let known = self.limits.0.get(&key).or_else(|| self.before?.0.get(&key)).and_then(Filter::share);
        let filter = match known {
            Some(known) => known,
            None => Filter::make(&key.2, self.now)?,
        };
        self.limits.0.insert(key, filter.share()?);
        Some(filter)
    }
}

impl Filter {
    fn make(policy: &Policy, now: Instant) -> Option<Self> {
        Some(match policy {
            Policy::RateLimit(policy) => Self::RateLimit(Arc::new(RateLimit::new(policy, now)?)),
            Policy::Throttle(policy) => Self::Throttle(Arc::new(Throttling::new(policy, now))),
            Policy::Concurrency(policy, _) => Self::Concurrency(Arc::new(Concurrency::new(policy, now))),
        })
    }

    /// What it would do to a request to `cluster`, without doing it. `came` is the request before it was rewritten. `None` =
    /// nothing, here.
    pub(crate) fn explain(
        &self,
        came: &RequestView<'_>,
        cluster: &ClusterName,
        now: Instant,
    ) -> Option<FilterExplanation> {
        Some(match self {
            Self::Fault(faults) => FilterExplanation::Fault {
                meant: faults.concerns(came, Some(cluster)),
                policy: faults.policy().clone(),
            },
            Self::RateLimit(limit) => {
                let (tokens, most) = limit.quota(now);
                FilterExplanation::RateLimit { tokens, most }
            }
            Self::Throttle(limit) => limit.explain(now),
            Self::Concurrency(limit) => {
                let (limit, in_flight) = (limit.gradient.limit(), limit.gradient.in_flight());
                FilterExplanation::Concurrency { limit, in_flight }
            }
            Self::Composite(composite) => composite.explain(came, cluster, now),
            Self::Session(_) | Self::Failing(_) => return None,
        })
    }

    /// Why it would surely fail a request, whoever makes it and when.
    pub(crate) fn fails(&self, came: &RequestView<'_>) -> Option<Cause> {
        match self {
            Self::Composite(composite) => composite.fails(came),
            Self::Failing(failing) => Some(failing.cause()),
            _ => None,
        }
    }

    /// The same limit once more.
    fn share(&self) -> Option<Self> {
        match self {
            Self::Fault(_) | Self::Session(_) | Self::Composite(_) | Self::Failing(_) => None,
            Self::RateLimit(limit) => Some(Self::RateLimit(limit.clone())),
            Self::Throttle(limit) => Some(Self::Throttle(limit.clone())),
            Self::Concurrency(limit) => Some(Self::Concurrency(limit.clone())),
        }
    }
}

/// Takes a token of a rate limit, or says how the request is refused.
/// `draw` gives a uniform number below a million.
pub(crate) fn pass_rate(
    limit: &RateLimit,
    headers: &mut HeaderMap,
    now: Instant,
    draw: impl Fn() -> u32,
) -> Result<(), Cause> {
    limit.pass(headers, now, draw).map_err(|RateLimited { status, grpc_status, headers }| {
        Cause::RateLimited(Box::new(Refusal { status, grpc_status, headers }))
    })
}

impl Throttling {
    pub(crate) fn new(policy: &AdmissionControl, now: Instant) -> Self {
        // Those that fewer requests would not change (Envoy).
        const USUAL: [u32; 11] = [0, 1, 2, 3, 5, 6, 7, 9, 11, 12, 16];
        let codes = if policy.grpc_success.is_empty() { &USUAL[..] } else { &policy.grpc_success };
        let grpc_success = codes.iter().filter(|code| **code < 32).fold(0, |bits, code| bits | 1 << code);
        Self { throttle: Throttle::new(policy, now), http_success: policy.http_success.clone(), grpc_success }
    }

    /// By the SRE book's rule; successes are what they are where policy names none.
    pub(crate) fn sre(k: f64, window: Duration, now: Instant) -> Self {
        Self { throttle: Throttle::sre(k, window, now), ..Self::new(&AdmissionControl::default(), now) }
    }

    fn is_success(&self, outcome: &Outcome) -> bool {
        if outcome.grpc
            && let Some(code) = outcome.grpc_status
        {
            return (0..32).contains(&code) && self.grpc_success & 1 << code != 0;
        }
        match &self.http_success[..] {
            // A gRPC answer without a status is none.
            _ if outcome.grpc => false,
            [] => outcome.code < 500,
            ranges => ranges.iter().any(|range| range.contains(&outcome.code)),
        }
    }

    pub(crate) fn explain(&self, now: Instant) -> FilterExplanation {
        let refused = PerMillion::new((self.throttle.share(now) * 1e6).round() as u32);
        FilterExplanation::Throttling { refused }
    }

    /// `draw` is uniform below a million.
    pub(crate) fn pass(self: &Arc<Self>, now: Instant, draw: u32) -> Result<Ticket, Cause> {
        if self.throttle.refuses(now, draw) {
            let percent = (self.throttle.share(now) * 100.0).round() as u32;
            return Err(Cause::Throttled { percent });
        }
        Ok(Ticket { to: Limit::Throttle(self.clone()), began: now, random: 0, settled: false })
    }
}

impl Concurrency {
    pub(crate) fn new(policy: &AdaptiveConcurrency, now: Instant) -> Self {
        let status = StatusCode::from_u16(policy.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        Self { gradient: Gradient::new(policy.clone(), now), status }
    }

    pub(crate) fn pass(self: &Arc<Self>, now: Instant, random: impl FnOnce() -> u64) -> Result<Ticket, Cause> {
        if !self.gradient.try_begin(now) {
            return Err(Cause::ConcurrencyLimited { limit: self.gradient.limit(), status: self.status });
        }
        Ok(Ticket { to: Limit::Concurrency(self.clone()), began: now, random: random(), settled: false })
    }
}

impl Ticket {
    /// For a gRPC call whose status is still to come: one in `costly`, a bit for each, costs a token, and OK earns.
    pub(crate) fn of_tokens(tokens: &Arc<RetryTokens>, costly: Option<u32>, now: Instant) -> Self {
        Self { to: Limit::Tokens(tokens.clone(), costly), began: now, random: 0, settled: false }
    }

    /// The server wants no retry: every failure costs a token.
    pub(crate) fn pushed_back(&mut self) {
        if let Limit::Tokens(_, Some(costly)) = &mut self.to {
            *costly = u32::MAX;
        }
    }

    /// Tells the head of the answer. Client-side throttling judges by it, as in Envoy: who looks at no more than the status
    /// had an answer. Of gRPC it does where the status is there; else that is still to come.
    pub(crate) fn head(&mut self, outcome: &Outcome, now: Instant) {
        if let Limit::Throttle(limit) = &self.to
            && (!outcome.grpc || outcome.grpc_status.is_some())
            && !std::mem::replace(&mut self.settled, true)
        {
            limit.throttle.record(now, limit.is_success(outcome));
        }
    }

    /// Tells the end of the request: its answer has ended, or it failed. `tried` = an endpoint saw it, or should have:
    /// what was refused on the way says nothing of latency.
    pub(crate) fn settle(mut self, outcome: &Outcome, now: Instant, tried: bool) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        match &self.to {
            Limit::Throttle(limit) => limit.throttle.record(now, limit.is_success(outcome)),
            Limit::Concurrency(limit) if tried => {
                limit.gradient.finish(self.began, now, |below| self.random % below);
            }
            Limit::Concurrency(limit) => limit.gradient.cancel(),
            Limit::Tokens(tokens, costly) => match outcome.grpc_status {
                Some(0) => tokens.succeeded(),
                Some(code) if (0..32).contains(&code) && costly.unwrap_or(0) & 1 << code != 0 => tokens.failed(),
                _ => {}
            },
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        match &self.to {
            // As in Envoy: whoever gave up before the head, or before the status of gRPC, did not get what was wanted.
            Limit::Throttle(limit) => limit.throttle.record(Instant::now(), false),
            // How long it would have taken nobody knows.
            Limit::Concurrency(limit) => limit.gradient.cancel(),
            // Neither a failure nor a success.
            Limit::Tokens(..) => {}
        }
    }
}
