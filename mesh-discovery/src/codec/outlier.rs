//! Outlier detection (gRFC A50), Linkerd's failure accrual, and circuit breakers (gRFC A32).

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::{
    CircuitBreakers as BreakersProto, OutlierDetection as Proto,
    circuit_breakers::{Thresholds, thresholds::RetryBudget},
};
use envoy_types::pb::envoy::config::core::v3::RoutingPriority;
use envoy_types::pb::google::protobuf::UInt32Value;
use mesh_core::policy::{
    CircuitBreakers, ConsecutiveShares, FailureAccrual, FailurePercentageEjection, OutlierDetection, PerMillion,
    RetryConcurrency, SuccessRateEjection,
};

use super::common;
use super::report::{At, Report, consider};
use crate::proto::policy::{FailureAccrual as AccrualProto, OutlierShares};

/// Millionths in a percent.
const PERCENT: u32 = 10_000;
/// gRFC A32: requests in flight when nothing is said.
const DEFAULT_MAX_REQUESTS: u32 = 1024;

/// Encodes outlier detection; shares that whole percents cannot say go beside.
pub(super) fn encode(outlier: &OutlierDetection) -> (Proto, OutlierShares) {
    let success = outlier.success_rate.as_ref();
    let failure = outlier.failure_percentage.as_ref();
    let whole = |share: Option<PerMillion>| common::uint32(share.map_or(0, |s| s.get().div_ceil(PERCENT)));
    let exact = |share: Option<PerMillion>| share.map(PerMillion::get).filter(|share| share % PERCENT != 0);
    let enforcing = &outlier.enforcing;
    let on_5xx = outlier.consecutive_5xx.map(|_| enforcing.server_error);
    let on_gateway = outlier.consecutive_gateway.map(|_| enforcing.gateway);
    let on_local = outlier.consecutive_local_origin.map(|_| enforcing.local_origin);
    let proto = Proto {
        consecutive_5xx: outlier.consecutive_5xx.and_then(common::uint32),
        enforcing_consecutive_5xx: whole(on_5xx),
        consecutive_gateway_failure: outlier.consecutive_gateway.and_then(common::uint32),
        enforcing_consecutive_gateway_failure: whole(on_gateway),
        split_external_local_origin_errors: outlier.split_local_origin,
        consecutive_local_origin_failure: outlier.consecutive_local_origin.and_then(common::uint32),
        enforcing_consecutive_local_origin_failure: whole(on_local),
        interval: Some(common::duration(outlier.interval)),
        base_ejection_time: Some(common::duration(outlier.base_ejection)),
        max_ejection_time: Some(common::duration(outlier.max_ejection)),
        max_ejection_time_jitter: (!outlier.max_ejection_jitter.is_zero())
            .then(|| common::duration(outlier.max_ejection_jitter)),
        max_ejection_percent: whole(Some(outlier.max_ejected)),
        // Envoy ejects none where the share rounds down to nobody, unless told so.
        always_eject_one_host: common::boolean(outlier.max_ejected.get() > 0),
        successful_active_health_check_uneject_host: common::boolean(outlier.health_check_unejects),
        enforcing_success_rate: whole(success.map(|s| s.enforcing)),
        enforcing_local_origin_success_rate: whole(success.map(|s| s.enforcing_local_origin)),
        success_rate_stdev_factor: success.and_then(|s| common::uint32(s.stdev_factor)),
        success_rate_minimum_hosts: success.and_then(|s| common::uint32(s.minimum_hosts)),
        success_rate_request_volume: success.and_then(|s| common::uint32(s.request_volume)),
        enforcing_failure_percentage: whole(failure.map(|f| f.enforcing)),
        enforcing_failure_percentage_local_origin: whole(failure.map(|f| f.enforcing_local_origin)),
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
        consecutive_5xx: exact(on_5xx),
        consecutive_gateway: exact(on_gateway),
        consecutive_local_origin: exact(on_local),
        success_local_origin: exact(success.map(|s| s.enforcing_local_origin)),
        failure_local_origin: exact(failure.map(|f| f.enforcing_local_origin)),
    };
    (proto, shares)
}

/// Decodes outlier detection with Envoy's defaults.
pub(super) fn decode(proto: &Proto, exact: &OutlierShares, at: &At<'_>, report: &mut Report) -> OutlierDetection {
    let number = |value: &Option<UInt32Value>, default: u32| value.map_or(default, |v| v.value);
    let mut share = |value: &Option<UInt32Value>, name: &str, exact: Option<u32>, default: u32| {
        let percent = number(value, default);
        if percent > 100 {
            report.problem(&at.field(name), format!("{percent} is more than 100 (gRFC A50)"));
        }
        PerMillion::new(exact.unwrap_or(percent.saturating_mul(PERCENT)))
    };
    let on_5xx = share(&proto.enforcing_consecutive_5xx, "enforcing_consecutive_5xx", exact.consecutive_5xx, 100);
    let name = "enforcing_consecutive_gateway_failure";
    let on_gateway = share(&proto.enforcing_consecutive_gateway_failure, name, exact.consecutive_gateway, 0);
    let name = "enforcing_consecutive_local_origin_failure";
    let on_local = share(&proto.enforcing_consecutive_local_origin_failure, name, exact.consecutive_local_origin, 100);
    let max_ejected = share(&proto.max_ejection_percent, "max_ejection_percent", exact.max_ejected, 10);
    let success = share(&proto.enforcing_success_rate, "enforcing_success_rate", exact.success_enforcing, 100);
    let name = "enforcing_local_origin_success_rate";
    let local_success = share(&proto.enforcing_local_origin_success_rate, name, exact.success_local_origin, 100);
    let failure =
        share(&proto.enforcing_failure_percentage, "enforcing_failure_percentage", exact.failure_enforcing, 0);
    let name = "enforcing_failure_percentage_local_origin";
    let local_failure = share(&proto.enforcing_failure_percentage_local_origin, name, exact.failure_local_origin, 0);
    let threshold =
        share(&proto.failure_percentage_threshold, "failure_percentage_threshold", exact.failure_threshold, 85);
    let split = proto.split_external_local_origin_errors;
    // A limit of which no share is enforced is none.
    let limit = |value: &Option<UInt32Value>, enforced: PerMillion| {
        Some(number(value, 5)).filter(|n| *n > 0 && enforced != PerMillion::NONE)
    };
    let enforced = |limit: Option<u32>, share: PerMillion| if limit.is_some() { share } else { PerMillion::ALL };
    let consecutive_5xx = limit(&proto.consecutive_5xx, on_5xx);
    let consecutive_gateway = limit(&proto.consecutive_gateway_failure, on_gateway);
    let consecutive_local_origin = limit(&proto.consecutive_local_origin_failure, on_local).filter(|_| split);
    let by_rate = |all: PerMillion, local: PerMillion| all != PerMillion::NONE || split && local != PerMillion::NONE;
    note_unenforced(proto, max_ejected, at, report);
    let mut time = |value, name, default| common::opt_duration(value, at, name, report).unwrap_or(default);
    let interval = time(proto.interval.as_ref(), "interval", Duration::from_secs(10));
    let base_ejection = time(proto.base_ejection_time.as_ref(), "base_ejection_time", Duration::from_secs(30));
    let longest = base_ejection.max(Duration::from_secs(300));
    let jitter = proto.max_ejection_time_jitter.as_ref();
    OutlierDetection {
        consecutive_5xx,
        consecutive_gateway,
        consecutive_local_origin,
        split_local_origin: split,
        enforcing: ConsecutiveShares {
            server_error: enforced(consecutive_5xx, on_5xx),
            gateway: enforced(consecutive_gateway, on_gateway),
            local_origin: enforced(consecutive_local_origin, on_local),
        },
        interval,
        base_ejection,
        max_ejection: time(proto.max_ejection_time.as_ref(), "max_ejection_time", longest),
        max_ejection_jitter: time(jitter, "max_ejection_time_jitter", Duration::ZERO),
        max_ejected,
        health_check_unejects: proto.successful_active_health_check_uneject_host.is_none_or(|b| b.value),
        success_rate: by_rate(success, local_success).then(|| SuccessRateEjection {
            stdev_factor: number(&proto.success_rate_stdev_factor, 1900),
            enforcing: success,
            enforcing_local_origin: local_success,
            minimum_hosts: number(&proto.success_rate_minimum_hosts, 5),
            request_volume: number(&proto.success_rate_request_volume, 100),
        }),
        failure_percentage: by_rate(failure, local_failure).then(|| FailurePercentageEjection {
            threshold,
            enforcing: failure,
            enforcing_local_origin: local_failure,
            minimum_hosts: number(&proto.failure_percentage_minimum_hosts, 5),
            request_volume: number(&proto.failure_percentage_request_volume, 50),
        }),
    }
}

fn note_unenforced(proto: &Proto, max_ejected: PerMillion, at: &At<'_>, report: &mut Report) {
    consider!(proto, at, report, Proto {
        read: [
            consecutive_5xx, interval, base_ejection_time, max_ejection_percent, enforcing_consecutive_5xx,
            enforcing_success_rate, success_rate_minimum_hosts, success_rate_request_volume, success_rate_stdev_factor,
            consecutive_gateway_failure, enforcing_consecutive_gateway_failure, split_external_local_origin_errors,
            consecutive_local_origin_failure, enforcing_consecutive_local_origin_failure,
            enforcing_local_origin_success_rate, failure_percentage_threshold, enforcing_failure_percentage,
            enforcing_failure_percentage_local_origin, failure_percentage_minimum_hosts,
            failure_percentage_request_volume, max_ejection_time, max_ejection_time_jitter,
            successful_active_health_check_uneject_host, detect_degraded_hosts, always_eject_one_host,
        ],
        idle: [],
        monitors => "monitor extensions are not known",
    });
    // Where nothing is said of it: Envoy ejects none while one is more than the share, and gRPC (gRFC A50) one. Of a share of 0 both
    // eject none.
    let (always, has_share) = (proto.always_eject_one_host.map(|always| always.value), max_ejected.get() > 0);
    let effect = "one endpoint may always be ejected if others are left, however small the share above 0 (gRFC A50)";
    report.unenforced_if(always == Some(false) && has_share, at, "always_eject_one_host", effect);
    let effect = "of a share of 0 none is ejected (gRFC A50)";
    report.unenforced_if(always == Some(true) && !has_share, at, "always_eject_one_host", effect);
    let set = common::is_true(proto.detect_degraded_hosts.as_ref());
    report.unenforced_if(set, at, "detect_degraded_hosts", "degraded answers do not count");
}

pub(super) fn encode_accrual(accrual: &FailureAccrual) -> AccrualProto {
    AccrualProto {
        max_failures: accrual.max_failures,
        min_penalty: Some(common::duration(accrual.min_penalty)),
        max_penalty: Some(common::duration(accrual.max_penalty)),
        jitter: accrual.jitter.get(),
    }
}

/// Decodes failure accrual; times that are not said are Linkerd's.
pub(super) fn decode_accrual(proto: &AccrualProto, at: &At<'_>, report: &mut Report) -> FailureAccrual {
    let default = FailureAccrual::default();
    if proto.max_failures == 0 {
        report.problem(&at.field("accrual.max_failures"), "0 failures would take every endpoint out");
    }
    let mut time = |value, name| common::opt_duration(value, at, name, report);
    FailureAccrual {
        max_failures: proto.max_failures,
        min_penalty: time(proto.min_penalty.as_ref(), "accrual.min_penalty").unwrap_or(default.min_penalty),
        max_penalty: time(proto.max_penalty.as_ref(), "accrual.max_penalty").unwrap_or(default.max_penalty),
        jitter: PerMillion::new(proto.jitter),
    }
}

/// Encodes the limits of both priorities.
pub(super) fn encode_breakers(breaker: &CircuitBreakers, high: Option<&CircuitBreakers>) -> BreakersProto {
    let mut thresholds = vec![encode_limits(breaker, RoutingPriority::Default)];
    thresholds.extend(high.map(|high| encode_limits(high, RoutingPriority::High)));
    let per_host = |breaker: &CircuitBreakers, priority: RoutingPriority| {
        let max_connections = common::uint32(breaker.max_connections_per_host?);
        Some(Thresholds { priority: priority.into(), max_connections, ..Default::default() })
    };
    let per_host_thresholds =
        [per_host(breaker, RoutingPriority::Default), high.and_then(|high| per_host(high, RoutingPriority::High))];
    BreakersProto { thresholds, per_host_thresholds: per_host_thresholds.into_iter().flatten().collect() }
}

/// Encodes limits; none is the largest number, for unset means Envoy's and gRPC's defaults.
fn encode_limits(breaker: &CircuitBreakers, priority: RoutingPriority) -> Thresholds {
    let limit = |value: Option<u32>| common::uint32(value.unwrap_or(u32::MAX));
    Thresholds {
        priority: priority.into(),
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
    }
}

/// Decodes the limits of the default priority, and those of the high one where the cluster has any of
/// its own.
pub(super) fn decode_breakers(
    proto: Option<&BreakersProto>,
    at: &At<'_>,
    report: &mut Report,
) -> (CircuitBreakers, Option<CircuitBreakers>) {
    let proto = proto.cloned().unwrap_or_default();
    let limits = |priority: RoutingPriority, report: &mut Report| {
        // The first entry of a priority counts (gRFC A32).
        let of = |list: &[Thresholds]| list.iter().position(|t| t.priority == i32::from(priority));
        let (own, per_host) = (of(&proto.thresholds), of(&proto.per_host_thresholds));
        if priority == RoutingPriority::High && own.or(per_host).is_none() {
            return None;
        }
        let unset = Thresholds::default();
        let thresholds = own.map_or(&unset, |i| &proto.thresholds[i]);
        let mut breaker = decode_limits(thresholds, &at.item("thresholds", own.unwrap_or_default()), report);
        if let Some(i) = per_host {
            let at = at.item("per_host_thresholds", i);
            breaker.max_connections_per_host = decode_per_host(&proto.per_host_thresholds[i], &at, report);
        }
        Some(breaker)
    };
    (limits(RoutingPriority::Default, report).unwrap_or_default(), limits(RoutingPriority::High, report))
}

/// The limit on requests is on even when nothing is said (gRFC A32); the others are then off, as for gRPC.
fn decode_limits(proto: &Thresholds, at: &At<'_>, report: &mut Report) -> CircuitBreakers {
    consider!(proto, at, report, Thresholds {
        read: [priority, max_connections, max_pending_requests, max_requests, max_retries, retry_budget],
        idle: [track_remaining],
        max_connection_pools => "the number of connection pools is not limited",
    });
    let limit = |value: Option<UInt32Value>| value.map(|v| v.value).filter(|v| *v != u32::MAX);
    let max_requests = proto.max_requests.unwrap_or(UInt32Value { value: DEFAULT_MAX_REQUESTS });
    CircuitBreakers {
        max_connections: limit(proto.max_connections),
        max_pending: limit(proto.max_pending_requests),
        max_requests: limit(Some(max_requests)),
        max_retries: limit(proto.max_retries),
        retry_budget: proto.retry_budget.as_ref().map(|budget| {
            let at = at.field("retry_budget.budget_percent");
            let share = budget.budget_percent.as_ref().and_then(|p| common::read_percent(p, &at, report));
            RetryConcurrency {
                share: share.unwrap_or(PerMillion::new(20 * PERCENT)),
                min_concurrency: budget.min_retry_concurrency.map_or(3, |c| c.value),
            }
        }),
        max_connections_per_host: None,
    }
}

/// gRFC A105: connections only, above 0.
fn decode_per_host(proto: &Thresholds, at: &At<'_>, report: &mut Report) -> Option<u32> {
    consider!(proto, at, report, Thresholds {
        read: [priority, max_connections],
        idle: [track_remaining],
        max_pending_requests => "an endpoint's connections are limited, not its requests",
        max_requests => "an endpoint's connections are limited, not its requests",
        max_retries => "an endpoint's connections are limited, not its retries",
        retry_budget => "an endpoint's connections are limited, not its retries",
        max_connection_pools => "the number of connection pools is not limited",
    });
    let limit = proto.max_connections.map(|v| v.value)?;
    if limit == 0 {
        report.problem(&at.field("max_connections"), "it must be above 0 (gRFC A105)");
    }
    Some(limit).filter(|limit| *limit != u32::MAX)
}
