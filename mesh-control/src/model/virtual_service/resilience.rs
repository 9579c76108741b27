//! Retries, faults and CORS of an HTTP route.

use std::time::Duration;

use mesh_core::policy::{
    AbortStatus, Cors, Fault, FaultAbort, FaultDelay, PerMillion, RetryOn, RetryPolicy, StringMatch, StringMatcher,
};

use super::positive;
use super::spec::{AbortSpec, CorsSpec, DelaySpec, FaultSpec, RetriesSpec};
use crate::model::check::Check;
use crate::model::values::{PercentSpec, duration, percent, string_matcher};

/// Checks a `retries` block.
pub(super) fn retries(spec: &RetriesSpec, check: &mut Check<'_>, path: &str) -> Option<RetryPolicy> {
    let Ok(attempts) = u32::try_from(spec.attempts) else {
        check.error(&format!("{path}.attempts"), format!("{} is not a number of retries", spec.attempts));
        return None;
    };
    let others = spec.per_try_timeout.is_some()
        || !spec.retry_on.is_empty()
        || spec.retry_remote_localities.is_some()
        || spec.retry_ignore_previous_hosts.is_some()
        || spec.backoff.is_some();
    if attempts == 0 && others {
        check.error(&format!("{path}.attempts"), "0 turns retries off; the other retry fields contradict it");
        return None;
    }
    let on = if spec.retry_on.is_empty() {
        RetryPolicy::istio_default().on
    } else {
        retry_on(&spec.retry_on, check, &format!("{path}.retryOn"))
    };
    let mut policy = RetryPolicy::new(attempts, on);
    let per_try = spec.per_try_timeout.as_deref();
    policy.per_try_timeout =
        per_try.and_then(|text| positive(text, check, &format!("{path}.perTryTimeout"))).filter(|t| !t.is_zero());
    if let Some(backoff) = spec.backoff.as_deref().and_then(|text| positive(text, check, &format!("{path}.backoff"))) {
        policy.backoff_base = backoff;
        policy.backoff_max = backoff.saturating_mul(10);
    }
    policy.next_locality = spec.retry_remote_localities.unwrap_or(false);
    policy.avoid_previous_hosts = spec.retry_ignore_previous_hosts.unwrap_or(true);
    Some(policy)
}

fn retry_on(text: &str, check: &mut Check<'_>, path: &str) -> RetryOn {
    let mut on = RetryOn::default();
    for token in text.split(',').map(str::trim) {
        let flag = match token {
            "5xx" => &mut on.server_error,
            "gateway-error" => &mut on.gateway_error,
            "reset" => &mut on.reset,
            "reset-before-request" => &mut on.reset_before_request,
            "connect-failure" => &mut on.connect_failure,
            "refused-stream" => &mut on.refused_stream,
            "retriable-4xx" => &mut on.retriable_4xx,
            "envoy-ratelimited" => &mut on.envoy_ratelimited,
            "http3-post-connect-failure" => &mut on.http3_post_connect_failure,
            "retriable-status-codes" => &mut on.retriable_status_codes,
            // Needs a list of headers, which VirtualService has no field for: never true, as in Istio.
            "retriable-headers" => continue,
            "cancelled" => &mut on.cancelled,
            "deadline-exceeded" => &mut on.deadline_exceeded,
            "internal" => &mut on.internal,
            "resource-exhausted" => &mut on.resource_exhausted,
            "unavailable" => &mut on.unavailable,
            number => {
                match number.parse::<u16>() {
                    Ok(code) if (100..=599).contains(&code) => {
                        on.retriable_status_codes = true;
                        on.status_codes.push(code);
                    }
                    _ => check.error(path, format!("{number:?} is not a retry condition or a status code")),
                }
                continue;
            }
        };
        *flag = true;
    }
    on
}

/// Checks a `fault` block.
pub(super) fn fault(spec: &FaultSpec, check: &mut Check<'_>, path: &str) -> Option<Fault> {
    if spec.delay.is_none() && spec.abort.is_none() {
        check.error(path, "a delay or an abort is needed");
        return None;
    }
    let delay = spec.delay.as_ref().and_then(|delay| fault_delay(delay, check, &format!("{path}.delay")));
    let abort = spec.abort.as_ref().and_then(|abort| fault_abort(abort, check, &format!("{path}.abort")));
    Some(Fault { delay, abort, ..Fault::default() })
}

fn fault_delay(spec: &DelaySpec, check: &mut Check<'_>, path: &str) -> Option<FaultDelay> {
    if spec.exponential_delay.is_some() {
        check.error(&format!("{path}.exponentialDelay"), "not supported; use fixedDelay");
    }
    let Some(text) = spec.fixed_delay.as_deref() else {
        check.error(&format!("{path}.fixedDelay"), "a delay needs its length");
        return None;
    };
    let field = format!("{path}.fixedDelay");
    let duration = positive(text, check, &field)?;
    if duration.is_zero() {
        check.error(&field, "a delay must be at least 1ms");
    }
    let share = match (&spec.percentage, spec.percent) {
        (None, Some(percent)) => {
            check.warn(&format!("{path}.percent"), "deprecated; use percentage.value");
            let read = PerMillion::from_percent(percent as f64).map_err(|error| error.reason);
            check.take(&format!("{path}.percent"), read)?
        }
        (percentage, _) => share(percentage.as_ref(), check, path)?,
    };
    Some(FaultDelay::of(duration, share))
}

fn fault_abort(spec: &AbortSpec, check: &mut Check<'_>, path: &str) -> Option<FaultAbort> {
    if spec.http2_error.is_some() {
        check.error(&format!("{path}.http2Error"), "not supported; use httpStatus or grpcStatus");
        return None;
    }
    let share = share(spec.percentage.as_ref(), check, path)?;
    let status = match (spec.http_status, spec.grpc_status.as_deref()) {
        (Some(status), None) => match u16::try_from(status) {
            Ok(status) if (200..=599).contains(&status) => AbortStatus::Http(status),
            _ => {
                check.error(&format!("{path}.httpStatus"), format!("{status} is not between 200 and 599"));
                return None;
            }
        },
        (None, Some(name)) => match grpc_status(name) {
            Some(code) => AbortStatus::Grpc(code),
            None => {
                check
                    .error(&format!("{path}.grpcStatus"), format!("{name:?} is not a gRPC status such as UNAVAILABLE"));
                return None;
            }
        },
        (Some(_), Some(_)) => {
            check.error(path, "only one of httpStatus and grpcStatus may be given");
            return None;
        }
        (None, None) => {
            check.warn(path, "no status: this abort does nothing; set httpStatus or grpcStatus");
            return None;
        }
    };
    Some(FaultAbort::with(status, share))
}

fn share(spec: Option<&PercentSpec>, check: &mut Check<'_>, path: &str) -> Option<PerMillion> {
    match spec {
        Some(spec) => check.take(&format!("{path}.percentage"), percent(spec)),
        None => {
            check.warn(
                &format!("{path}.percentage"),
                "no percentage means 0: nothing is injected; set percentage.value",
            );
            Some(PerMillion::NONE)
        }
    }
}

/// The code of a gRPC status name; OK is no fault.
fn grpc_status(name: &str) -> Option<u32> {
    const NAMES: [&str; 16] = [
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let at = NAMES.iter().position(|known| *known == name)?;
    u32::try_from(at + 1).ok()
}

/// Checks a `corsPolicy`.
pub(super) fn cors(spec: &CorsSpec, check: &mut Check<'_>, path: &str) -> Cors {
    const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"];

    let mut allow_origins: Vec<StringMatcher> = Vec::new();
    for (i, origin) in spec.allow_origins.iter().enumerate() {
        allow_origins.extend(string_matcher(origin, check, &format!("{path}.allowOrigins[{i}]")));
    }
    if !spec.allow_origin.is_empty() {
        check.warn(&format!("{path}.allowOrigin"), "deprecated; use allowOrigins");
        // The newer list replaces it, as in Istio.
        if allow_origins.is_empty() {
            let exact =
                |origin: &String| StringMatcher { pattern: StringMatch::Exact(origin.clone()), ignore_case: false };
            allow_origins.extend(spec.allow_origin.iter().map(exact));
        }
    }
    for (i, method) in spec.allow_methods.iter().enumerate() {
        if method != "*" && !METHODS.contains(&method.as_str()) {
            check.error(&format!("{path}.allowMethods[{i}]"), format!("{method:?} is not an HTTP method"));
        }
    }
    let max_age = spec.max_age.as_deref().and_then(|age| {
        let path = format!("{path}.maxAge");
        let read = check.take(&path, duration(age));
        if read.is_some_and(|age| age != Duration::from_secs(age.as_secs())) {
            check.error(&path, "whole seconds only");
        }
        read
    });
    let forward_unmatched = match spec.unmatched_preflights.as_deref() {
        None | Some("UNSPECIFIED" | "FORWARD") => true,
        Some("IGNORE") => false,
        Some(other) => {
            check.error(&format!("{path}.unmatchedPreflights"), format!("{other:?} is neither FORWARD nor IGNORE"));
            true
        }
    };
    Cors {
        allow_origins,
        allow_methods: spec.allow_methods.clone(),
        allow_headers: spec.allow_headers.clone(),
        expose_headers: spec.expose_headers.clone(),
        max_age,
        allow_credentials: spec.allow_credentials.unwrap_or(false),
        forward_unmatched,
    }
}
