//! `trafficPolicy.connectionPool`, `outlierDetection` and `retryBudget`.

use std::time::Duration;

use mesh_core::policy::{Keepalive, OutlierDetection, PerMillion, RetryConcurrency, TcpKeepalive};

use super::ConnectionPool;
use super::spec::{ConnectionPoolSpec, HttpPoolSpec, OutlierSpec, RetryBudgetSpec, TcpPoolSpec};
use crate::model::check::Check;
use crate::model::values::duration;

/// Checks a `connectionPool` block.
pub(super) fn connection_pool(spec: &ConnectionPoolSpec, check: &mut Check<'_>, path: &str) -> ConnectionPool {
    let mut pool = ConnectionPool::default();
    if spec.tcp.is_none() && spec.http.is_none() {
        check.error(path, "an empty connection pool says nothing; remove it");
    }
    if let Some(tcp) = &spec.tcp {
        tcp_pool(tcp, check, &format!("{path}.tcp"), &mut pool);
    }
    if let Some(http) = &spec.http {
        http_pool(http, check, &format!("{path}.http"), &mut pool);
    }
    pool
}

fn tcp_pool(spec: &TcpPoolSpec, check: &mut Check<'_>, path: &str, pool: &mut ConnectionPool) {
    pool.max_connections = limit(spec.max_connections, check, &format!("{path}.maxConnections"));
    pool.connect_timeout = time(spec.connect_timeout.as_deref(), check, &format!("{path}.connectTimeout"));
    if pool.connect_timeout.is_some_and(|timeout| timeout < Duration::from_millis(1)) {
        check.error(&format!("{path}.connectTimeout"), "the least is 1ms");
    }
    pool.max_age = time(spec.max_connection_duration.as_deref(), check, &format!("{path}.maxConnectionDuration"));
    if let Some(keepalive) = &spec.tcp_keepalive {
        let path = format!("{path}.tcpKeepalive");
        pool.tcp_keepalive = Some(TcpKeepalive {
            probes: probes(keepalive.probes, check, &format!("{path}.probes")),
            time: keepalive_time(keepalive.time.as_deref(), check, &format!("{path}.time")),
            interval: keepalive_time(keepalive.interval.as_deref(), check, &format!("{path}.interval")),
        });
    }
    pool.tcp_idle_timeout = time(spec.idle_timeout.as_deref(), check, &format!("{path}.idleTimeout"));
}

fn http_pool(spec: &HttpPoolSpec, check: &mut Check<'_>, path: &str, pool: &mut ConnectionPool) {
    pool.max_pending = limit(spec.http1_max_pending_requests, check, &format!("{path}.http1MaxPendingRequests"));
    pool.max_requests = limit(spec.http2_max_requests, check, &format!("{path}.http2MaxRequests"));
    pool.max_retries = limit(spec.max_retries, check, &format!("{path}.maxRetries"));
    let per_connection = format!("{path}.maxRequestsPerConnection");
    pool.max_requests_per_connection = limit(spec.max_requests_per_connection, check, &per_connection);
    pool.max_concurrent_streams = limit(spec.max_concurrent_streams, check, &format!("{path}.maxConcurrentStreams"));
    pool.idle_timeout = time(spec.idle_timeout.as_deref(), check, &format!("{path}.idleTimeout"));
    let field = format!("{path}.h2UpgradePolicy");
    match spec.h2_upgrade_policy.as_deref() {
        None | Some("DEFAULT" | "DO_NOT_UPGRADE") => {}
        Some("UPGRADE") => pool.http2 = true,
        Some(other) => check.error(&field, format!("{other:?} is not one of DEFAULT, DO_NOT_UPGRADE, UPGRADE")),
    }
    if spec.use_client_protocol == Some(true) {
        if pool.http2 {
            check.error(&format!("{path}.useClientProtocol"), "contradicts h2UpgradePolicy UPGRADE");
        }
        check.unenforced(&format!("{path}.useClientProtocol"), "there is no client connection to copy from");
    }
    if let Some(keepalive) = &spec.http2_keep_alive {
        let path = format!("{path}.http2KeepAlive");
        match (keepalive.interval.as_deref(), keepalive.timeout.as_deref()) {
            (Some(interval), Some(timeout)) => {
                let interval = above_zero(interval, check, &format!("{path}.interval"));
                let timeout = above_zero(timeout, check, &format!("{path}.timeout"));
                pool.http2_keepalive = interval.zip(timeout).map(|(interval, timeout)| Keepalive { interval, timeout });
            }
            _ => check.error(&path, "interval and timeout are both needed"),
        }
    }
}

/// A limit: 0 counts as not written, a negative number is wrong.
fn limit(value: Option<i64>, check: &mut Check<'_>, path: &str) -> Option<u32> {
    let read = u32::try_from(value?).map_err(|_| format!("{} is not a limit", value.unwrap_or_default()));
    check.take(path, read).filter(|limit| *limit > 0)
}

/// The operating system's bound on probes; 0 counts as not written.
fn probes(value: Option<u32>, check: &mut Check<'_>, path: &str) -> Option<u32> {
    let probes = value.filter(|probes| *probes > 0)?;
    if probes > 127 {
        check.error(path, format!("{probes} probes; give 1 to 127"));
    }
    Some(probes)
}

/// A time that the operating system takes for keep-alive.
fn keepalive_time(text: Option<&str>, check: &mut Check<'_>, path: &str) -> Option<Duration> {
    let value = time(text, check, path)?;
    if !(1..=32_767).contains(&value.as_secs()) {
        check.error(path, "not a time for TCP keep-alive; give 1s to 32767s, or leave it out");
    }
    Some(value)
}

fn above_zero(text: &str, check: &mut Check<'_>, path: &str) -> Option<Duration> {
    let value = check.take(path, duration(text))?;
    if value.is_zero() {
        check.error(path, "it must be above 0; to send no pings leave http2KeepAlive out");
    }
    Some(value)
}

fn time(text: Option<&str>, check: &mut Check<'_>, path: &str) -> Option<Duration> {
    check.take(path, duration(text?))
}

/// Checks an `outlierDetection` block; the second value is `minHealthPercent`.
pub(super) fn outlier(spec: &OutlierSpec, check: &mut Check<'_>, path: &str) -> (OutlierDetection, PerMillion) {
    let mut outlier = OutlierDetection::default();
    if spec.consecutive_errors.is_some() {
        check.warn(&format!("{path}.consecutiveErrors"), "deprecated and without effect; use consecutive5xxErrors");
    }
    if let Some(count) = spec.consecutive_5xx_errors {
        outlier.consecutive_5xx = limit(Some(count), check, &format!("{path}.consecutive5xxErrors"));
    }
    let gateway = format!("{path}.consecutiveGatewayErrors");
    outlier.consecutive_gateway = limit(spec.consecutive_gateway_errors, check, &gateway);
    let local = format!("{path}.consecutiveLocalOriginFailures");
    match (spec.split_external_local_origin_errors, spec.consecutive_local_origin_failures) {
        (true, None) => outlier.consecutive_local_origin = Some(5),
        (true, count) => outlier.consecutive_local_origin = limit(count, check, &local),
        (false, Some(count)) if count != 0 => {
            check.error(&local, "counted only with splitExternalLocalOriginErrors: true");
        }
        (false, _) => {}
    }
    let period = |text: Option<&str>, check: &mut Check<'_>, path: &str| {
        let value = time(text, check, path)?;
        if value < Duration::from_millis(1) {
            check.error(path, "the least is 1ms");
        }
        Some(value)
    };
    outlier.interval = period(spec.interval.as_deref(), check, &format!("{path}.interval")).unwrap_or(outlier.interval);
    if let Some(base) = period(spec.base_ejection_time.as_deref(), check, &format!("{path}.baseEjectionTime")) {
        outlier.base_ejection = base;
        // Envoy raises the ceiling to the base when the base is above it.
        outlier.max_ejection = outlier.max_ejection.max(base);
    }
    if let Some(value) = spec.max_ejection_percent {
        outlier.max_ejected = share(value, check, &format!("{path}.maxEjectionPercent"));
    }
    let panic = spec
        .min_health_percent
        .map_or(PerMillion::NONE, |value| share(value, check, &format!("{path}.minHealthPercent")));
    (outlier, panic)
}

fn share(value: i64, check: &mut Check<'_>, path: &str) -> PerMillion {
    let read = PerMillion::from_percent(value as f64).map_err(|error| error.reason);
    check.take(path, read).unwrap_or(PerMillion::NONE)
}

/// Checks a `retryBudget` block.
pub(super) fn retry_budget(spec: &RetryBudgetSpec, check: &mut Check<'_>, path: &str) -> RetryConcurrency {
    let percent = spec.percent.as_ref().map_or(20.0, |percent| percent.0);
    let read = PerMillion::from_percent(percent).map_err(|error| error.reason);
    let share = check.take(&format!("{path}.percent"), read).unwrap_or(PerMillion::NONE);
    let floor = spec.min_retry_concurrency.unwrap_or(3);
    let min_concurrency = u32::try_from(floor).map_err(|_| format!("{floor} is not a number of retries"));
    let min_concurrency = check.take(&format!("{path}.minRetryConcurrency"), min_concurrency).unwrap_or(3);
    if spec.budget_interval.as_ref().is_some_and(|interval| !interval.0.starts_with('0')) {
        check.unenforced(&format!("{path}.budgetInterval"), "only requests in flight count");
    }
    RetryConcurrency { share, min_concurrency }
}
