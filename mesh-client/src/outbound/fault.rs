//! Fault injection (gRFC A33): which faults a request gets. Refuses to know how they are carried out.

use std::time::Duration;

use http::HeaderMap;
use mesh_core::id::ClusterName;
use mesh_core::limit::Count;
use mesh_core::matcher::{HeaderCondition, RequestView};
use mesh_core::policy::{AbortStatus, Fault, PerMillion, ShareUnit};

/// A fault policy, compiled.
pub(crate) struct Faults {
    policy: Fault,
    headers: Box<[HeaderCondition]>,
}

/// A fault under way; counts until it is dropped.
pub(crate) struct Active<'c>(&'c Count);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Faults {
    pub(crate) fn new(policy: &Fault) -> Self {
        Self { headers: policy.headers.iter().map(HeaderCondition::new).collect(), policy: policy.clone() }
    }

    pub(crate) fn policy(&self) -> &Fault {
        &self.policy
    }

    /// Whether the request is meant at all. `cluster` = where it is to go.
    pub(crate) fn concerns(&self, request: &RequestView<'_>, cluster: Option<&ClusterName>) -> bool {
        self.policy.cluster.as_ref().is_none_or(|wanted| cluster == Some(wanted))
            && self.headers.iter().all(|header| header.holds(request))
    }

    /// Counts a fault in; `None` if there are as many as there may be.
    pub(crate) fn begin<'c>(&self, active: &'c Count) -> Option<Active<'c>> {
        let most = self.policy.max_active.unwrap_or(u32::MAX);
        active.enter_below(most).then(|| Active(active))
    }

    /// How long this request waits.
    pub(crate) fn delay(&self, headers: &HeaderMap, draw: impl Fn() -> u32) -> Option<Duration> {
        let delay = self.policy.delay.as_ref()?;
        let (duration, share) = match delay.duration {
            Some(duration) => (duration, delay.share),
            None => {
                let wanted = number(headers, "x-envoy-fault-delay-request")?;
                let asked = share(headers, "x-envoy-fault-delay-request-percentage", delay.share, delay.unit);
                (Duration::from_millis(wanted), asked)
            }
        };
        share.hit(draw()).then_some(duration)
    }

    /// What this request is answered instead.
    pub(crate) fn abort(&self, headers: &HeaderMap, draw: impl Fn() -> u32) -> Option<AbortStatus> {
        let abort = self.policy.abort.as_ref()?;
        let (status, share) = match abort.status {
            None => {
                let http = number(headers, "x-envoy-fault-abort-request").and_then(|n| u16::try_from(n).ok());
                let http = http.filter(|status| (200..600).contains(status)).map(AbortStatus::Http);
                let grpc = || number(headers, "x-envoy-fault-abort-grpc-request").and_then(|n| u32::try_from(n).ok());
                let grpc = || grpc().filter(|code| (1..=16).contains(code)).map(AbortStatus::Grpc);
                (http.or_else(grpc)?, share(headers, "x-envoy-fault-abort-request-percentage", abort.share, abort.unit))
            }
            Some(status) => (status, abort.share),
        };
        share.hit(draw()).then_some(status)
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// The share that a header asks for, so many of `unit`, at most `ceiling`; `ceiling` if it asks for none.
fn share(headers: &HeaderMap, name: &str, ceiling: PerMillion, unit: ShareUnit) -> PerMillion {
    let asked = number(headers, name).and_then(|count| u32::try_from(count).ok());
    asked.map_or(ceiling, |count| unit.share(count).min(ceiling))
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Method};
    use mesh_core::policy::{FaultAbort, FaultDelay, HeaderKey, HeaderMatch, HeaderMatcher};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_request_asks_for_its_own_fault_within_the_ceiling() {
        let half = PerMillion::new(500_000);
        let delay = Some(FaultDelay { duration: None, share: half, unit: ShareUnit::Hundred });
        let abort = Some(FaultAbort { status: None, share: half, unit: ShareUnit::Hundred });
        let faults = Faults::new(&Fault { delay, abort, ..Fault::default() });
        let plain = headers(&[]);
        assert_eq!((faults.delay(&plain, || 0), faults.abort(&plain, || 0)), (None, None));
        let asking = headers(&[
            ("x-envoy-fault-delay-request", "30"),
            ("x-envoy-fault-delay-request-percentage", "100"),
            ("x-envoy-fault-abort-grpc-request", "7"),
            ("x-envoy-fault-abort-request-percentage", "1"),
        ]);
        assert_eq!(faults.delay(&asking, || 499_999), Some(Duration::from_millis(30)));
        assert_eq!(faults.delay(&asking, || 500_000), None, "the ceiling holds");
        assert_eq!(faults.abort(&asking, || 9_999), Some(AbortStatus::Grpc(7)));
        assert_eq!(faults.abort(&asking, || 10_000), None);
        // 30 of ten thousand are 0.3 %, as Envoy and gRPC count.
        for (unit, hit) in [(ShareUnit::TenThousand, 2_999), (ShareUnit::Million, 29), (ShareUnit::Hundred, 299_999)] {
            let delay = Some(FaultDelay { duration: None, share: half, unit });
            let faults = Faults::new(&Fault { delay, ..Fault::default() });
            let asking =
                headers(&[("x-envoy-fault-delay-request", "7"), ("x-envoy-fault-delay-request-percentage", "30")]);
            let delays = [hit, hit + 1].map(|drawn| faults.delay(&asking, || drawn).is_some());
            assert_eq!(delays, [true, false], "{unit:?}");
        }
        let nonsense = headers(&[("x-envoy-fault-abort-request", "99"), ("x-envoy-fault-delay-request", "-1")]);
        assert_eq!((faults.delay(&nonsense, || 0), faults.abort(&nonsense, || 0)), (None, None));
    }

    #[test]
    fn only_requests_that_are_meant_and_only_so_many_get_it() {
        let name = HeaderKey::parse("x-chaos").unwrap();
        let value = HeaderMatch::Present(true);
        let meant = HeaderMatcher { name, value, invert: false, treat_missing_as_empty: false };
        let policy = Fault { headers: vec![meant], cluster: Some("c".into()), max_active: Some(1), ..Fault::default() };
        let faults = Faults::new(&policy);
        let concerns = |headers: &HeaderMap, cluster: Option<&str>| {
            let (method, draw) = (Method::GET, || 0);
            let view = RequestView {
                authority: "a",
                method: &method,
                path_and_query: "/",
                scheme: "http",
                headers,
                draw: &draw,
            };
            faults.concerns(&view, cluster.map(ClusterName::new).as_ref())
        };
        let marked = headers(&[("x-chaos", "1")]);
        assert!(concerns(&marked, Some("c")) && !concerns(&headers(&[]), Some("c")));
        assert!(!concerns(&marked, Some("d")) && !concerns(&marked, None));

        let count = Count::default();
        let first = faults.begin(&count);
        assert!(first.is_some() && faults.begin(&count).is_none());
        drop(first);
        assert!(faults.begin(&count).is_some());
    }
}
