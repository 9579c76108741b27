//! Retry policies (gRFC A44 and Envoy's HTTP conditions).

use std::collections::BTreeMap;
use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::HedgePolicy as HedgeProto;
use envoy_types::pb::envoy::config::route::v3::retry_policy::{
    RateLimitedRetryBackOff, ResetHeader as ResetProto, ResetHeaderFormat, RetryBackOff, RetryHostPredicate,
    RetryPriority, retry_host_predicate, retry_priority,
};
use envoy_types::pb::envoy::extensions::retry::host::{
    omit_host_metadata::v3::OmitHostMetadataConfig, previous_hosts::v3::PreviousHostsPredicate,
};
use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use http::HeaderName;
use mesh_core::policy::{HedgePolicy, PerMillion, RateLimitedBackoff, ResetHeader, RetryOn, RetryPolicy};

use super::common;
use super::extension::{self, url};
use super::matcher;
use super::report::{At, Report, consider};
use crate::proto::policy::RetryExtra;

pub(super) use envoy_types::pb::envoy::config::route::v3::RetryPolicy as Proto;

/// Shortest back-off; gRFC A44 rounds shorter ones up.
const MIN_BACKOFF: Duration = Duration::from_millis(1);
/// Longest back-off that an answer may ask for, when nothing is said (Envoy).
const MAX_ASKED: Duration = Duration::from_secs(300);
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
        rate_limited_retry_back_off: policy.rate_limited.as_ref().map(encode_rate_limited),
        retriable_request_headers: policy.request_headers.iter().map(matcher::header).collect(),
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
    for metadata in &policy.avoid_metadata {
        let config = OmitHostMetadataConfig { metadata_match: extension::lb_metadata(metadata) };
        proto.host_selection_retry_max_attempts = HOST_SELECTION_TRIES;
        proto.retry_host_predicate.push(RetryHostPredicate {
            name: "envoy.retry_host_predicates.omit_host_metadata".to_owned(),
            config_type: Some(retry_host_predicate::ConfigType::TypedConfig(extension::pack(
                url::OMIT_METADATA,
                &config,
            ))),
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
    let predicates = read_predicates(proto, at, report);
    let next_locality = read_priority(proto.retry_priority.as_ref(), at, report);
    let rate_limited = proto.rate_limited_retry_back_off.as_ref();
    let rate_limited =
        rate_limited.and_then(|b| read_rate_limited(b, &at.field("rate_limited_retry_back_off"), report));
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
        rate_limited,
        request_headers: matcher::read_headers(
            &proto.retriable_request_headers,
            at,
            "retriable_request_headers",
            report,
        ),
        avoid_previous_hosts: predicates.previous,
        avoid_metadata: predicates.metadata,
        next_locality,
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
    consider!(proto, at, report, Proto {
        read: [
            retry_on, num_retries, per_try_timeout, per_try_idle_timeout, retry_priority, retry_host_predicate,
            retriable_status_codes, retry_back_off, rate_limited_retry_back_off, retriable_headers,
            retriable_request_headers,
        ],
        // How often Envoy draws an endpoint that the predicates take; ours asks the balancer for another.
        idle: [host_selection_retry_max_attempts],
        retry_options_predicates => "retries keep the options of the first try",
        refresh_cluster_on_retry => "retries stay in the cluster that was chosen",
    });
}

fn encode_rate_limited(policy: &RateLimitedBackoff) -> RateLimitedRetryBackOff {
    let headers = policy.headers.iter().map(|header| {
        let format = if header.unix_timestamp { ResetHeaderFormat::UnixTimestamp } else { ResetHeaderFormat::Seconds };
        ResetProto { name: header.name.as_str().to_owned(), format: format.into() }
    });
    RateLimitedRetryBackOff {
        reset_headers: headers.collect(),
        max_interval: Some(common::duration(policy.max_interval)),
    }
}

fn read_rate_limited(proto: &RateLimitedRetryBackOff, at: &At<'_>, report: &mut Report) -> Option<RateLimitedBackoff> {
    if proto.reset_headers.is_empty() {
        report.problem(&at.field("reset_headers"), "at least one header is required");
    }
    let max_interval = common::nonzero_duration(proto.max_interval.as_ref(), at, "max_interval", report);
    let mut headers = Vec::with_capacity(proto.reset_headers.len());
    for (i, header) in proto.reset_headers.iter().enumerate() {
        let at = at.item("reset_headers", i);
        let Ok(name) = HeaderName::try_from(header.name.as_str()) else {
            report.problem(&at.field("name"), format!("{:?} is not a header name", header.name));
            continue;
        };
        let unix_timestamp = header.format == i32::from(ResetHeaderFormat::UnixTimestamp);
        headers.push(ResetHeader { name, unix_timestamp });
    }
    Some(RateLimitedBackoff { headers, max_interval: max_interval.unwrap_or(MAX_ASKED) })
}

/// What of an endpoint keeps retries away from it.
#[derive(Default)]
struct Predicates {
    previous: bool,
    metadata: Vec<BTreeMap<String, String>>,
}

fn read_predicates(proto: &Proto, at: &At<'_>, report: &mut Report) -> Predicates {
    let mut found = Predicates::default();
    for (i, predicate) in proto.retry_host_predicate.iter().enumerate() {
        let at = at.item("retry_host_predicate", i);
        let config = predicate.config_type.as_ref();
        let config = config.map(|retry_host_predicate::ConfigType::TypedConfig(any)| any);
        // Before typed configs the name alone said it.
        let kind = config.map_or_else(|| predicate.name.clone(), extension::type_of);
        match (kind.as_str(), config) {
            (url::PREVIOUS_HOSTS | "envoy.retry_host_predicates.previous_hosts", _) => found.previous = true,
            (url::OMIT_CANARY | "envoy.retry_host_predicates.omit_canary_hosts", _) => {
                found.metadata.push(BTreeMap::from([("canary".to_owned(), "true".to_owned())]));
            }
            (url::OMIT_METADATA, Some(any)) => {
                let config: OmitHostMetadataConfig = extension::unpack(any, &at, report).unwrap_or_default();
                let metadata = extension::read_lb_metadata(config.metadata_match.as_ref());
                // One that names nothing rejects all endpoints alike, so that there is none to go to instead.
                found.metadata.extend(Some(metadata).filter(|metadata| !metadata.is_empty()));
            }
            _ => report.unenforced(&at, "an unknown predicate keeps retries away from no endpoint"),
        }
    }
    found
}

/// Whether retries move on to the next priority.
fn read_priority(proto: Option<&RetryPriority>, at: &At<'_>, report: &mut Report) -> bool {
    let Some(priority) = proto else { return false };
    let at = at.field("retry_priority");
    match &priority.config_type {
        Some(retry_priority::ConfigType::TypedConfig(any)) if extension::type_of(any) == url::PREVIOUS_PRIORITIES => {
            let config: PreviousPrioritiesConfig = extension::unpack(any, &at, report).unwrap_or_default();
            let later = config.update_frequency > 1;
            report.unenforced_if(later, &at, "update_frequency", "every retry moves on to the next priority");
            true
        }
        None if priority.name == "envoy.retry_priorities.previous_priorities" => true,
        _ => {
            report.unenforced(&at, "retries choose priorities as first tries do");
            false
        }
    }
}

/// Encodes hedging.
pub(super) fn encode_hedge(hedge: &HedgePolicy) -> HedgeProto {
    HedgeProto {
        initial_requests: common::uint32(hedge.initial_requests),
        additional_request_chance: Some(common::fraction(hedge.additional_request)),
        hedge_on_per_try_timeout: hedge.on_per_try_timeout,
    }
}

/// Decodes hedging.
pub(super) fn decode_hedge(proto: &HedgeProto, at: &At<'_>, report: &mut Report) -> HedgePolicy {
    let HedgeProto { initial_requests, additional_request_chance, hedge_on_per_try_timeout } = proto;
    let initial_requests = initial_requests.map_or(1, |n| n.value);
    if initial_requests == 0 {
        report.problem(&at.field("initial_requests"), "it must be above 0");
    }
    let chance = additional_request_chance.as_ref();
    let chance = chance.and_then(|c| common::read_fraction(c, &at.field("additional_request_chance"), report));
    HedgePolicy {
        initial_requests,
        additional_request: chance.unwrap_or(PerMillion::NONE),
        on_per_try_timeout: *hedge_on_per_try_timeout,
    }
}
