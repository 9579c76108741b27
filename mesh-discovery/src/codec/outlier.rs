//! Outlier detection (gRFC A50) and circuit breakers (gRFC A32).

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::{
    CircuitBreakers as BreakersProto, OutlierDetection as Proto,
    circuit_breakers::{Thresholds, thresholds::RetryBudget},
};
use envoy_types::pb::envoy::config::core::v3::RoutingPriority;
use envoy_types::pb::google::protobuf::UInt32Value;
use mesh_core::policy::{
    CircuitBreakers, FailurePercentageEjection, OutlierDetection, PerMillion, RetryConcurrency, SuccessRateEjection,
};

use super::common;
use super::report::{At, Report};
use crate::proto::policy::OutlierShares;

/// Millionths in a percent.
const PERCENT: u32 = 10_000;
/// gRFC A32: requests in flight when nothing is said.
const DEFAULT_MAX_REQUESTS: u32 = 1024;

/// Encodes outlier detection; shares that whole percents cannot say go beside.
pub(super) fn encode(outlier: &OutlierDetection) -> (Proto, OutlierShares) {
    let on = |limit: Option<u32>| common::uint32(if limit.is_some() { 100 } else { 0 });
    let success = outlier.success_rate.as_ref();
    let failure = outlier.failure_percentage.as_ref();
    let whole = |share: Option<PerMillion>| common::uint32(share.map_or(0, |s| s.get().div_ceil(PERCENT)));
    let exact = |share: Option<PerMillion>| share.map(PerMillion::get).filter(|share| share % PERCENT != 0);
    let proto = Proto {
        consecutive_5xx: outlier.consecutive_5xx.and_then(common::uint32),
        enforcing_consecutive_5xx: on(outlier.consecutive_5xx),
        consecutive_gateway_failure: outlier.consecutive_gateway.and_then(common::uint32),
        enforcing_consecutive_gateway_failure: on(outlier.consecutive_gateway),
        split_external_local_origin_errors: outlier.consecutive_local_origin.is_some(),
        consecutive_local_origin_failure: outlier.consecutive_local_origin.and_then(common::uint32),
        enforcing_consecutive_local_origin_failure: on(outlier.consecutive_local_origin),
        interval: Some(common::duration(outlier.interval)),
        base_ejection_time: Some(common::duration(outlier.base_ejection)),
        max_ejection_time: Some(common::duration(outlier.max_ejection)),
        max_ejection_percent: whole(Some(outlier.max_ejected)),
        enforcing_success_rate: whole(success.map(|s| s.enforcing)),
        enforcing_local_origin_success_rate: whole(success.map(|s| s.enforcing)),
        success_rate_stdev_factor: success.and_then(|s| common::uint32(s.stdev_factor)),
        success_rate_minimum_hosts: success.and_then(|s| common::uint32(s.minimum_hosts)),
        success_rate_request_volume: success.and_then(|s| common::uint32(s.request_volume)),
        enforcing_failure_percentage: whole(failure.map(|f| f.enforcing)),
        enforcing_failure_percentage_local_origin: whole(failure.map(|f| f.enforcing)),
        failure_percentage_threshold: failure.and_then(|f| whole(Some(f.threshold))),
        failure_percentage_minimum_hosts: failure.and_then(|f| common::uint32(f.minimum_hosts)),
        failure_percentage_request_volume: failure.and_then(|f| common::uint32(f.request_volume)),
        ..Default::default()
    };
    let shares = OutlierShares {
        max_ejected: exact(Some(outlier.max_ejected)),
        success_enforcing: exact(success.map(|s| s.enforcing)),
        failure_threshold: exact(failure.map(|f| f.threshold)),
        failure_enforcing: exact(failure.map(|f| f.enforcing)),
    };
    (proto, shares)
}

/// Decodes outlier detection with Envoy's defaults.
pub(super) fn decode(proto: &Proto, exact: &OutlierShares, at: &At<'_>, report: &mut Report) -> OutlierDetection {
    note_unenforced(proto, at, report);
    let number = |value: &Option<UInt32Value>, default: u32| value.map_or(default, |v| v.value);
    let limit = |value: &Option<UInt32Value>, default: u32| Some(number(value, default)).filter(|n| *n > 0);
    let mut share = |value: &Option<UInt32Value>, name: &str, exact: Option<u32>, default: u32| {
        let percent = number(value, default);
        if percent > 100 {
            report.problem(&at.field(name), format!("{percent} is more than 100 (gRFC A50)"));
        }
        PerMillion::new(exact.unwrap_or(percent.saturating_mul(PERCENT)))
    };
    let max_ejected = share(&proto.max_ejection_percent, "max_ejection_percent", exact.max_ejected, 10);
    let success = share(&proto.enforcing_success_rate, "enforcing_success_rate", exact.success_enforcing, 100);
    let failure =
        share(&proto.enforcing_failure_percentage, "enforcing_failure_percentage", exact.failure_enforcing, 0);
    let threshold =
        share(&proto.failure_percentage_threshold, "failure_percentage_threshold", exact.failure_threshold, 85);
    let mut enforced =
        |value: &Option<UInt32Value>, name: &str, default| share(value, name, None, default) != PerMillion::NONE;
    let on_5xx = enforced(&proto.enforcing_consecutive_5xx, "enforcing_consecutive_5xx", 100);
    let on_gateway = enforced(&proto.enforcing_consecutive_gateway_failure, "enforcing_consecutive_gateway_failure", 0);
    let on_local =
        enforced(&proto.enforcing_consecutive_local_origin_failure, "enforcing_consecutive_local_origin_failure", 100);
    let mut time = |value, name, default| common::opt_duration(value, at, name, report).unwrap_or(default);
    let interval = time(proto.interval.as_ref(), "interval", Duration::from_secs(10));
    let base_ejection = time(proto.base_ejection_time.as_ref(), "base_ejection_time", Duration::from_secs(30));
    let longest = base_ejection.max(Duration::from_secs(300));
    OutlierDetection {
        consecutive_5xx: limit(&proto.consecutive_5xx, 5).filter(|_| on_5xx),
        consecutive_gateway: limit(&proto.consecutive_gateway_failure, 5).filter(|_| on_gateway),
        consecutive_local_origin: limit(&proto.consecutive_local_origin_failure, 5)
            .filter(|_| on_local && proto.split_external_local_origin_errors),
        interval,
        base_ejection,
        max_ejection: time(proto.max_ejection_time.as_ref(), "max_ejection_time", longest),
        max_ejected,
        success_rate: (success != PerMillion::NONE).then(|| SuccessRateEjection {
            stdev_factor: number(&proto.success_rate_stdev_factor, 1900),
            enforcing: success,
            minimum_hosts: number(&proto.success_rate_minimum_hosts, 5),
            request_volume: number(&proto.success_rate_request_volume, 100),
        }),
        failure_percentage: (failure != PerMillion::NONE).then(|| FailurePercentageEjection {
            threshold,
            enforcing: failure,
            minimum_hosts: number(&proto.failure_percentage_minimum_hosts, 5),
            request_volume: number(&proto.failure_percentage_request_volume, 50),
        }),
    }
}

fn note_unenforced(proto: &Proto, at: &At<'_>, report: &mut Report) {
    let partly = |value: &Option<UInt32Value>| value.is_some_and(|v| (1..100).contains(&v.value));
    let notes = [
        (
            partly(&proto.enforcing_consecutive_5xx)
                || partly(&proto.enforcing_consecutive_gateway_failure)
                || partly(&proto.enforcing_consecutive_local_origin_failure),
            "enforcing_consecutive_5xx",
            "consecutive failures always eject, not in a share of cases",
        ),
        (proto.max_ejection_time_jitter.is_some(), "max_ejection_time_jitter", "ejections have no jitter"),
        (!proto.monitors.is_empty(), "monitors", "monitor extensions are not known"),
        (
            common::is_true(proto.detect_degraded_hosts.as_ref()),
            "detect_degraded_hosts",
            "degraded answers do not count",
        ),
    ];
    for (set, name, effect) in notes {
        report.unenforced_if(set, at, name, effect);
    }
}

/// Encodes limits; none is the largest number, for unset means Envoy's and gRPC's defaults.
pub(super) fn encode_breaker(breaker: &CircuitBreakers) -> BreakersProto {
    let limit = |value: Option<u32>| common::uint32(value.unwrap_or(u32::MAX));
    BreakersProto {
        thresholds: vec![Thresholds {
            priority: RoutingPriority::Default.into(),
            max_connections: limit(breaker.max_connections),
            max_pending_requests: limit(breaker.max_pending),
            max_requests: limit(breaker.max_requests),
            max_retries: limit(breaker.max_retries),
            retry_budget: breaker.retry_budget.as_ref().map(|b| RetryBudget {
                budget_percent: Some(common::percent(b.share)),
                min_retry_concurrency: common::uint32(b.min_concurrency),
                ..Default::default()
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Decodes limits. The limit on requests is on even when nothing is said (gRFC A32); the others are
/// then off, as for gRPC.
pub(super) fn decode_breaker(proto: Option<&BreakersProto>, at: &At<'_>, report: &mut Report) -> CircuitBreakers {
    let unset = Thresholds::default();
    let default_priority = |t: &&Thresholds| t.priority == i32::from(RoutingPriority::Default);
    let limits = proto.and_then(|p| p.thresholds.iter().find(default_priority)).unwrap_or(&unset);
    if let Some(proto) = proto {
        let set = proto.thresholds.iter().any(|t| !default_priority(&t));
        report.unenforced_if(set, at, "thresholds", "the default priority's limits apply to every request");
        let set = !proto.per_host_thresholds.is_empty();
        report.unenforced_if(set, at, "per_host_thresholds", "limits hold per cluster, not per endpoint");
    }
    let limit = |value: Option<UInt32Value>| value.map(|v| v.value).filter(|v| *v != u32::MAX);
    let max_requests = limits.max_requests.unwrap_or(UInt32Value { value: DEFAULT_MAX_REQUESTS });
    CircuitBreakers {
        max_connections: limit(limits.max_connections),
        max_pending: limit(limits.max_pending_requests),
        max_requests: limit(Some(max_requests)),
        max_retries: limit(limits.max_retries),
        retry_budget: limits.retry_budget.as_ref().map(|budget| {
            let at = at.field("retry_budget.budget_percent");
            let share = budget.budget_percent.as_ref().and_then(|p| common::read_percent(p, &at, report));
            RetryConcurrency {
                share: share.unwrap_or(PerMillion::new(20 * PERCENT)),
                min_concurrency: budget.min_retry_concurrency.map_or(3, |c| c.value),
            }
        }),
    }
}
