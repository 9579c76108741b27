//! Retry policies (gRFC A44 and Envoy's HTTP conditions).

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::retry_policy::{
    RetryBackOff, RetryHostPredicate, RetryPriority, retry_host_predicate, retry_priority,
};
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use mesh_core::policy::{RetryOn, RetryPolicy};

use super::common;
use super::extension::{self, url};
use super::matcher;
use super::report::{At, Report};
use crate::proto::policy::RetryExtra;

pub(super) use envoy_types::pb::envoy::config::route::v3::RetryPolicy as Proto;

/// Shortest back-off; gRFC A44 rounds shorter ones up.
const MIN_BACKOFF: Duration = Duration::from_millis(1);
/// Tries of host selection that Istio sends along with the previous-hosts predicate.
const HOST_SELECTION_TRIES: i64 = 5;

/// The condition tokens with the flag each stands for.
macro_rules! tokens {
    ($($token:literal => $flag:ident),* $(,)?) => {
        fn token_names(on: &RetryOn) -> Vec<&'static str> {
            let mut names = Vec::new();
            $( if on.$flag { names.push($token); } )*
            names
        }

        fn set_token(on: &mut RetryOn, token: &str) -> bool {
            match token {
                $( $token => on.$flag = true, )*
                _ => return false,
            }
            true
        }
    };
}

tokens! {
    "5xx" => server_error,
    "gateway-error" => gateway_error,
    "reset" => reset,
    "reset-before-request" => reset_before_request,
    "connect-failure" => connect_failure,
    "refused-stream" => refused_stream,
    "retriable-4xx" => retriable_4xx,
    "envoy-ratelimited" => envoy_ratelimited,
    "http3-post-connect-failure" => http3_post_connect_failure,
    "retriable-status-codes" => retriable_status_codes,
    "cancelled" => cancelled,
    "deadline-exceeded" => deadline_exceeded,
    "internal" => internal,
    "resource-exhausted" => resource_exhausted,
    "unavailable" => unavailable,
}

/// The token that turns `retriable_headers` on; the model needs no flag for it.
const RETRIABLE_HEADERS: &str = "retriable-headers";

/// Encodes a policy and what of it travels beside.
pub(super) fn encode(policy: &RetryPolicy) -> (Proto, RetryExtra) {
    let mut names = token_names(&policy.on);
    if !policy.on.response_headers.is_empty() {
        names.push(RETRIABLE_HEADERS);
    }
    let retry_on = names.join(",");
    let mut extra = RetryExtra { classified_failure: policy.on.classified_failure, ..Default::default() };
    let base = policy.backoff_base.max(MIN_BACKOFF);
    let mut proto = Proto {
        num_retries: common::uint32(policy.attempts),
        per_try_timeout: policy.per_try_timeout.map(common::duration),
        per_try_idle_timeout: policy.per_try_idle_timeout.map(common::duration),
        retriable_status_codes: policy.on.status_codes.iter().map(|c| u32::from(*c)).collect(),
        retriable_headers: policy.on.response_headers.iter().map(matcher::header).collect(),
        retry_back_off: Some(RetryBackOff {
            base_interval: Some(common::duration(base)),
            max_interval: Some(common::duration(policy.backoff_max.max(base))),
        }),
        ..Default::default()
    };
    if policy.attempts == 0 {
        extra.no_attempts = true;
        extra.retry_on = retry_on;
        proto.num_retries = None;
    } else {
        proto.retry_on = retry_on;
    }
    if policy.avoid_previous_hosts {
        let config = extension::pack(url::PREVIOUS_HOSTS, &PreviousHostsPredicate {});
        proto.host_selection_retry_max_attempts = HOST_SELECTION_TRIES;
        proto.retry_host_predicate.push(RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
            config_type: Some(retry_host_predicate::ConfigType::TypedConfig(config)),
        });
    }
    if policy.next_locality {
        let config = extension::pack(url::PREVIOUS_PRIORITIES, &PreviousPrioritiesConfig { update_frequency: 1 });
        proto.retry_priority = Some(RetryPriority {
            name: "envoy.retry_priorities.previous_priorities".to_owned(),
            config_type: Some(retry_priority::ConfigType::TypedConfig(config)),
        });
    }
    (proto, extra)
}

/// Decodes a policy; `extra` is what travelled beside it.
pub(super) fn decode(proto: &Proto, extra: &RetryExtra, at: &At<'_>, report: &mut Report) -> Option<RetryPolicy> {
    let attempts = match proto.num_retries {
        _ if extra.no_attempts => 0,
        Some(tries) if tries.value == 0 => {
            report.problem(&at.field("num_retries"), "0 is not allowed (gRFC A44); leave retry_on empty instead");
            return None;
        }
        Some(tries) => tries.value,
        None => 1,
    };
    let tokens = if extra.no_attempts { &extra.retry_on } else { &proto.retry_on };
    let mut on = read_conditions(tokens, proto, at, report);
    on.classified_failure = extra.classified_failure;
    let (backoff_base, backoff_max) = read_backoff(proto, at, report);
    note_unenforced(proto, at, report);
    Some(RetryPolicy {
        attempts,
        on,
        per_try_timeout: common::nonzero_duration(proto.per_try_timeout.as_ref(), at, "per_try_timeout", report),
        per_try_idle_timeout: common::nonzero_duration(
            proto.per_try_idle_timeout.as_ref(),
            at,
            "per_try_idle_timeout",
            report,
        ),
        backoff_base,
        backoff_max,
        avoid_previous_hosts: proto.retry_host_predicate.iter().any(is_previous_hosts),
        next_locality: proto.retry_priority.as_ref().is_some_and(is_previous_priorities),
    })
}

fn read_conditions(tokens: &str, proto: &Proto, at: &At<'_>, report: &mut Report) -> RetryOn {
    let mut on = RetryOn::default();
    let mut with_headers = false;
    for token in tokens.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        if token == RETRIABLE_HEADERS {
            with_headers = true;
        } else if !set_token(&mut on, token) {
            report.unenforced(&at.key("retry_on", token), "an unknown retry condition is never met");
        }
    }
    for (i, code) in proto.retriable_status_codes.iter().enumerate() {
        match u16::try_from(*code) {
            Ok(code) if (100..600).contains(&code) => on.status_codes.push(code),
            _ => report.problem(&at.item("retriable_status_codes", i), format!("{code} is not an HTTP status")),
        }
    }
    let headers = matcher::read_headers(&proto.retriable_headers, at, "retriable_headers", report);
    if with_headers {
        on.response_headers = headers;
    }
    on
}

/// gRFC A44: base 25 ms, longest ten times the base, rounded up to 1 ms.
fn read_backoff(proto: &Proto, at: &At<'_>, report: &mut Report) -> (Duration, Duration) {
    let default = (Duration::from_millis(25), Duration::from_millis(250));
    let Some(backoff) = &proto.retry_back_off else { return default };
    let at = at.field("retry_back_off");
    let base = common::opt_duration(backoff.base_interval.as_ref(), &at, "base_interval", report);
    let longest = common::opt_duration(backoff.max_interval.as_ref(), &at, "max_interval", report);
    let Some(base) = base.filter(|base| !base.is_zero()) else {
        report.problem(&at.field("base_interval"), "a base above 0 is required");
        return default;
    };
    if longest.is_some_and(|longest| longest < base) {
        report.problem(&at.field("max_interval"), "it must not be shorter than base_interval");
    }
    let base = base.max(MIN_BACKOFF);
    (base, longest.unwrap_or(base.saturating_mul(10)).max(base))
}

fn note_unenforced(proto: &Proto, at: &At<'_>, report: &mut Report) {
    let other = proto.retry_host_predicate.iter().any(|p| !is_previous_hosts(p));
    report.unenforced_if(other, at, "retry_host_predicate", "only endpoints already tried are avoided");
    let other = proto.retry_priority.as_ref().is_some_and(|p| !is_previous_priorities(p));
    report.unenforced_if(other, at, "retry_priority", "retries choose priorities as first tries do");
    let set = !proto.retry_options_predicates.is_empty();
    report.unenforced_if(set, at, "retry_options_predicates", "retries keep the options of the first try");
    let set = proto.rate_limited_retry_back_off.is_some();
    report.unenforced_if(set, at, "rate_limited_retry_back_off", "the answer's headers do not set the back-off");
    let set = !proto.retriable_request_headers.is_empty();
    report.unenforced_if(set, at, "retriable_request_headers", "retries do not depend on the request's headers");
}

fn is_previous_hosts(predicate: &RetryHostPredicate) -> bool {
    match &predicate.config_type {
        Some(retry_host_predicate::ConfigType::TypedConfig(any)) => extension::type_of(any) == url::PREVIOUS_HOSTS,
        // Before typed configs the name alone said it.
        None => predicate.name == "envoy.retry_host_predicates.previous_hosts",
    }
}

fn is_previous_priorities(priority: &RetryPriority) -> bool {
    match &priority.config_type {
        Some(retry_priority::ConfigType::TypedConfig(any)) => extension::type_of(any) == url::PREVIOUS_PRIORITIES,
        None => priority.name == "envoy.retry_priorities.previous_priorities",
    }
}
