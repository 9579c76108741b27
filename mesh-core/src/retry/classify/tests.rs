use http::HeaderValue;

use super::*;
use crate::policy::{HeaderKey, HeaderMatch, HeaderMatcher, RetryPolicy, StringMatcher};

const NOT_RETRIED: Option<&str> = None;

fn answer(on: &RetryOn, status: u16, headers: &[(&'static str, &'static str)]) -> Option<&'static str> {
    classified(on, &[], status, headers)
}

fn classified(
    on: &RetryOn,
    classes: &[ResponseClass],
    status: u16,
    headers: &[(&'static str, &'static str)],
) -> Option<&'static str> {
    let headers: HeaderMap =
        headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect();
    let status = StatusCode::from_u16(status).unwrap();
    let grpc_status = grpc_status(&headers);
    RetryRules::new(on, classes).condition(&TryOutcome::Answer { status, headers: &headers, grpc_status }, false)
}

fn failure(on: &RetryOn, kind: FailureKind) -> Option<&'static str> {
    RetryRules::new(on, &[]).condition(&TryOutcome::Failure(kind), false)
}

const KINDS: [FailureKind; 6] = [
    FailureKind::ConnectFailed,
    FailureKind::Refused,
    FailureKind::ResetBeforeRequest,
    FailureKind::Reset,
    FailureKind::PerTryTimeout,
    FailureKind::Local,
];

#[test]
fn answers_by_status() {
    let server_error = RetryOn { server_error: true, ..RetryOn::default() };
    let gateway_error = RetryOn { gateway_error: true, ..RetryOn::default() };
    let conflict = RetryOn { retriable_4xx: true, ..RetryOn::default() };
    let codes = RetryOn { retriable_status_codes: true, status_codes: vec![418, 503], ..RetryOn::default() };
    let codes_unused = RetryOn { status_codes: vec![418, 503], ..RetryOn::default() };
    for (on, status, want) in [
        (&server_error, 500, Some("5xx")),
        (&server_error, 503, Some("5xx")),
        (&server_error, 499, NOT_RETRIED),
        (&gateway_error, 500, NOT_RETRIED),
        (&gateway_error, 502, Some("gateway-error")),
        (&gateway_error, 504, Some("gateway-error")),
        (&gateway_error, 505, NOT_RETRIED),
        (&conflict, 409, Some("retriable-4xx")),
        (&conflict, 404, NOT_RETRIED),
        (&codes, 418, Some("retriable-status-codes")),
        (&codes, 500, NOT_RETRIED),
        (&codes_unused, 418, NOT_RETRIED),
    ] {
        assert_eq!(answer(on, status, &[]), want, "{on:?} {status}");
    }
}

#[test]
fn answers_by_grpc_status() {
    let of = |set: fn(&mut RetryOn)| {
        let mut on = RetryOn::default();
        set(&mut on);
        on
    };
    for (on, code, name) in [
        (of(|on| on.cancelled = true), "1", "cancelled"),
        (of(|on| on.deadline_exceeded = true), "4", "deadline-exceeded"),
        (of(|on| on.resource_exhausted = true), "8", "resource-exhausted"),
        (of(|on| on.internal = true), "13", "internal"),
        (of(|on| on.unavailable = true), "14", "unavailable"),
    ] {
        assert_eq!(answer(&on, 200, &[("grpc-status", code)]), Some(name));
        assert_eq!(answer(&on, 200, &[("grpc-status", "0")]), NOT_RETRIED);
        assert_eq!(answer(&on, 200, &[("grpc-status", "nonsense")]), NOT_RETRIED);
        assert_eq!(answer(&on, 200, &[]), NOT_RETRIED);
    }
}

#[test]
fn answers_by_header() {
    let throttled = HeaderMatcher {
        name: HeaderKey::parse("x-throttled").unwrap(),
        value: HeaderMatch::Text(StringMatcher::exact("yes")),
        invert: false,
        treat_missing_as_empty: false,
    };
    let on = RetryOn { response_headers: vec![throttled], ..RetryOn::default() };
    assert_eq!(answer(&on, 200, &[("x-throttled", "yes")]), Some("retriable-headers"));
    assert_eq!(answer(&on, 200, &[("x-throttled", "no")]), NOT_RETRIED);
}

#[test]
fn a_rate_limited_answer_is_retried_only_by_the_condition_for_it() {
    let limited = [("x-envoy-ratelimited", "true")];
    let server_error = RetryOn { server_error: true, ..RetryOn::default() };
    assert_eq!(answer(&server_error, 503, &limited), NOT_RETRIED);
    assert_eq!(answer(&server_error, 503, &[]), Some("5xx"), "control");
    let ratelimited = RetryOn { envoy_ratelimited: true, ..RetryOn::default() };
    assert_eq!(answer(&ratelimited, 503, &limited), Some("envoy-ratelimited"));
}

#[test]
fn failures_by_kind() {
    let of = |set: fn(&mut RetryOn)| {
        let mut on = RetryOn::default();
        set(&mut on);
        KINDS.map(|kind| failure(&on, kind))
    };
    let no = NOT_RETRIED;
    let connect = Some("connect-failure");
    assert_eq!(of(|on| on.connect_failure = true), [connect, no, no, no, no, no]);
    assert_eq!(of(|on| on.refused_stream = true), [no, Some("refused-stream"), no, no, no, no]);
    let before = Some("reset-before-request");
    assert_eq!(of(|on| on.reset_before_request = true), [before, no, before, no, no, no]);
    for (set, name) in [
        ((|on| on.reset = true) as fn(&mut RetryOn), "reset"),
        (|on| on.server_error = true, "5xx"),
        (|on| on.gateway_error = true, "gateway-error"),
    ] {
        let all = Some(name);
        assert_eq!(of(set), [all, all, all, all, all, no]);
    }
    assert_eq!(of(|on| on.classified_failure = true), [no; 6], "Linkerd does not retry without an answer");
}

#[test]
fn istio_without_a_word_on_retries_spares_503_and_what_was_sent() {
    let on = RetryPolicy::istio_default().on;
    assert_eq!(answer(&on, 503, &[]), NOT_RETRIED);
    assert_eq!(answer(&on, 200, &[("grpc-status", "14")]), Some("unavailable"));
    assert_eq!(
        KINDS.map(|kind| failure(&on, kind)),
        [Some("connect-failure"), Some("refused-stream"), None, None, None, None]
    );
}

#[test]
fn a_service_profile_without_is_retryable_retries_nothing() {
    let on = RetryOn::default();
    assert_eq!(answer(&on, 500, &[]), NOT_RETRIED);
    assert_eq!(KINDS.map(|kind| failure(&on, kind)), [NOT_RETRIED; 6]);
}

#[test]
fn the_first_response_class_that_holds_decides_what_a_failure_is() {
    let status = |min, max| ResponseMatch::Status { min, max };
    let class = |matcher, is_failure| ResponseClass { matcher, is_failure };
    let classes = [
        class(ResponseMatch::All(vec![status(500, 599), ResponseMatch::Not(Box::new(status(501, 501)))]), true),
        class(ResponseMatch::Any(vec![status(429, 429), status(404, 404)]), true),
        class(status(400, 599), false),
    ];
    let on = RetryOn { classified_failure: true, ..RetryOn::default() };
    for (code, failure) in [(500, true), (501, false), (429, true), (404, true), (400, false), (200, false)] {
        let want = failure.then_some("isRetryable");
        assert_eq!(classified(&on, &classes, code, &[]), want, "{code}");
    }
    // Without a class that holds: 5xx and failing gRPC statuses.
    assert_eq!(answer(&on, 500, &[]), Some("isRetryable"));
    assert_eq!(answer(&on, 404, &[]), NOT_RETRIED);
    assert_eq!(answer(&on, 200, &[("grpc-status", "2")]), Some("isRetryable"));
    assert_eq!(answer(&on, 200, &[("grpc-status", "0")]), NOT_RETRIED);
}

#[test]
fn what_has_no_grpc_status_of_its_own_is_judged_by_that_which_the_application_sees() {
    let unavailable = RetryOn { unavailable: true, ..RetryOn::default() };
    let late = RetryOn { deadline_exceeded: true, ..RetryOn::default() };
    let judge = |on: &RetryOn, outcome: TryOutcome<'_>, grpc| RetryRules::new(on, &[]).condition(&outcome, grpc);
    for kind in KINDS {
        let failed = TryOutcome::Failure(kind);
        let lost = !matches!(kind, FailureKind::PerTryTimeout | FailureKind::Local);
        assert_eq!(judge(&unavailable, failed, true), lost.then_some("unavailable"), "{kind:?}");
        let slow = kind == FailureKind::PerTryTimeout;
        assert_eq!(judge(&late, failed, true), slow.then_some("deadline-exceeded"), "{kind:?}");
        assert_eq!(judge(&unavailable, failed, false), NOT_RETRIED, "{kind:?}: HTTP has no such status");
    }
    let headers = HeaderMap::new();
    for (status, grpc_status, want) in [
        (503, None, Some("unavailable")),
        (429, None, Some("unavailable")),
        (500, None, NOT_RETRIED),
        (200, None, NOT_RETRIED),
        (503, Some(13), NOT_RETRIED),
        (200, Some(14), Some("unavailable")),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        let answer = TryOutcome::Answer { status, headers: &headers, grpc_status };
        assert_eq!(judge(&unavailable, answer, true), want, "{status} {grpc_status:?}");
        if grpc_status.is_none() {
            assert_eq!(judge(&unavailable, answer, false), NOT_RETRIED, "{status}: HTTP has no such status");
        }
    }
}

#[test]
fn what_was_sent_is_not_replayed_where_a_policy_names_other_failures_of_connections() {
    let sent = |on: &RetryOn| RetryRules::new(on, &[]).condition(&TryOutcome::Failure(FailureKind::Reset), true);
    let default = RetryPolicy::istio_default().on;
    assert_eq!(sent(&default), NOT_RETRIED);
    // What nobody has seen is.
    for kind in [FailureKind::ConnectFailed, FailureKind::Refused, FailureKind::ResetBeforeRequest] {
        assert!(RetryRules::new(&default, &[]).condition(&TryOutcome::Failure(kind), true).is_some(), "{kind:?}");
    }
    // Controls: gRPC's own policy, and one that says so.
    assert_eq!(sent(&RetryOn { unavailable: true, ..RetryOn::default() }), Some("unavailable"));
    assert_eq!(sent(&RetryOn { reset: true, ..default }), Some("reset"));
}
