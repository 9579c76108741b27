//! Whether the outcome of a try is one that the retry policy names (Envoy `retry_on`, Linkerd
//! `isRetryable`).

use http::{HeaderMap, HeaderName, StatusCode};

use crate::matcher::HeaderCondition;
use crate::policy::{ResponseClass, ResponseMatch, RetryOn};

// Names made once: a look-up by text has to check and sort the text each time.
static RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What came of a try.
#[derive(Clone, Copy, Debug)]
pub enum TryOutcome<'a> {
    /// The endpoint answered.
    Answer {
        /// Its status.
        status: StatusCode,
        /// Its headers.
        headers: &'a HeaderMap,
        /// gRPC status: from the headers of an answer without a body (see [`grpc_status`]), or from the
        /// trailers if they are there already. `None` for plain HTTP and while it is not known.
        grpc_status: Option<i32>,
    },
    /// No answer.
    Failure(FailureKind),
}

/// The HTTP status that stands for a gRPC status (Envoy `grpcToHttpStatus`). An unknown one is an error of the
/// server.
pub fn http_status_of(grpc_status: i32) -> StatusCode {
    match grpc_status {
        0 => StatusCode::OK,
        // Envoy's and nginx's "client closed request", which has no name here.
        1 => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        3 | 9 | 11 => StatusCode::BAD_REQUEST,
        4 => StatusCode::GATEWAY_TIMEOUT,
        5 => StatusCode::NOT_FOUND,
        6 | 10 => StatusCode::CONFLICT,
        7 => StatusCode::FORBIDDEN,
        8 => StatusCode::TOO_MANY_REQUESTS,
        12 => StatusCode::NOT_IMPLEMENTED,
        14 => StatusCode::SERVICE_UNAVAILABLE,
        16 => StatusCode::UNAUTHORIZED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The gRPC status of an answer that is none of gRPC's, by its HTTP status (gRPC "HTTP to gRPC Status Code Mapping").
pub fn grpc_status_of(status: StatusCode) -> i32 {
    match status.as_u16() {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// Why a try had no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// No connection: refused, unreachable, timed out, TLS failed. Nothing was sent.
    ConnectFailed,
    /// The peer refused the stream before processing it (HTTP/2 `REFUSED_STREAM`, GOAWAY above its last
    /// stream).
    Refused,
    /// The connection broke before the request was begun to be sent.
    ResetBeforeRequest,
    /// The connection broke without an answer, somewhere after that.
    Reset,
    /// The time for one try ran out.
    PerTryTimeout,
    /// Our own limits refused it, or configuration or the caller is at fault: never tried again.
    Local,
}

impl FailureKind {
    /// The gRPC status that the application sees.
    fn grpc_status(self) -> Option<i32> {
        match self {
            Self::ConnectFailed | Self::Refused | Self::ResetBeforeRequest | Self::Reset => Some(14),
            Self::PerTryTimeout => Some(4),
            Self::Local => None,
        }
    }
}

/// The retry conditions of a route, compiled.
#[derive(Debug)]
pub struct RetryRules {
    on: RetryOn,
    headers: Box<[HeaderCondition]>,
    classes: Box<[ResponseClass]>,
    // Whether a condition may hold for an answer that is no error.
    judges_successes: bool,
}

impl RetryRules {
    /// Compiles the conditions; `classes` are the route's response classes, for
    /// [`RetryOn::classified_failure`].
    pub fn new(on: &RetryOn, classes: &[ResponseClass]) -> Self {
        let judges_successes = on.envoy_ratelimited
            || !on.response_headers.is_empty()
            || (on.retriable_status_codes && on.status_codes.iter().any(|code| *code < 400))
            || (on.classified_failure && !classes.is_empty());
        Self {
            judges_successes,
            headers: on.response_headers.iter().map(HeaderCondition::new).collect(),
            on: on.clone(),
            classes: classes.into(),
        }
    }

    /// The name of the condition that asks for a retry, as `retry_on` writes it; `None` = do not retry.
    ///
    /// A gRPC call always ends with a status: `grpc` says that what has none is judged by the one that its
    /// application would see as well (gRFC A6, A44). Not so where the connection broke after the call was sent, and the
    /// policy names other failures of connections, as Istio's default does: then only `reset` and what includes it ask for
    /// a retry, as in Envoy.
    pub fn condition(&self, outcome: &TryOutcome<'_>, grpc: bool) -> Option<&'static str> {
        match *outcome {
            TryOutcome::Answer { status, headers, grpc_status } => {
                let made = || (grpc && status != StatusCode::OK).then(|| grpc_status_of(status));
                self.of_answer(status, headers, grpc_status.or_else(made))
            }
            TryOutcome::Failure(kind) => self.of_failure(kind).or_else(|| self.of_status(kind, grpc)),
        }
    }

    /// The gRPC statuses for which it asks for a retry, whatever else the answer says: one bit for each.
    pub fn grpc_statuses(&self) -> u32 {
        let none = HeaderMap::new();
        let named = |code: &i32| self.of_answer(StatusCode::OK, &none, Some(*code)).is_some();
        (1..=16).filter(named).fold(0, |bits, code| bits | 1 << code)
    }

    fn of_status(&self, kind: FailureKind, grpc: bool) -> Option<&'static str> {
        // Whoever names failures by what happened to the connection has named those that are tried again: to the others
        // `unavailable` says no more than to Envoy, which reads it in answers. The server may have worked on the call.
        if kind == FailureKind::Reset && names_failures(&self.on) {
            return None;
        }
        match kind.grpc_status().filter(|_| grpc)? {
            4 => self.on.deadline_exceeded.then_some("deadline-exceeded"),
            _ => self.on.unavailable.then_some("unavailable"),
        }
    }

    fn of_answer(&self, status: StatusCode, headers: &HeaderMap, grpc: Option<i32>) -> Option<&'static str> {
        // Nearly every answer, and it is asked of every one.
        if !self.judges_successes && status.as_u16() < 400 && grpc.is_none_or(|grpc| grpc == 0) {
            return None;
        }
        let on = &self.on;
        // Told to go away: nothing but the condition made for it asks for a retry (Envoy).
        if headers.contains_key(&RATE_LIMITED) {
            return on.envoy_ratelimited.then_some("envoy-ratelimited");
        }
        let code = status.as_u16();
        let conditions = [
            ("5xx", on.server_error && code >= 500),
            ("gateway-error", on.gateway_error && matches!(code, 502..=504)),
            ("retriable-4xx", on.retriable_4xx && code == 409),
            ("retriable-status-codes", on.retriable_status_codes && on.status_codes.contains(&code)),
            ("cancelled", on.cancelled && grpc == Some(1)),
            ("deadline-exceeded", on.deadline_exceeded && grpc == Some(4)),
            ("resource-exhausted", on.resource_exhausted && grpc == Some(8)),
            ("internal", on.internal && grpc == Some(13)),
            ("unavailable", on.unavailable && grpc == Some(14)),
            ("isRetryable", on.classified_failure && is_failure(&self.classes, status, grpc)),
        ];
        let named = conditions.iter().find(|(_, holds)| *holds).map(|(name, _)| *name);
        named.or_else(|| self.headers.iter().any(|h| h.holds_response(headers)).then_some("retriable-headers"))
    }

    fn of_failure(&self, kind: FailureKind) -> Option<&'static str> {
        use FailureKind::{ConnectFailed, Local, Refused, ResetBeforeRequest};
        let on = &self.on;
        if kind == Local {
            return None;
        }
        // The precise names first; then those that take in every answer that never came (Envoy counts
        // `gateway-error` among them). Linkerd does not retry without an answer.
        let nothing_sent = matches!(kind, ResetBeforeRequest | ConnectFailed);
        let conditions = [
            ("connect-failure", on.connect_failure && kind == ConnectFailed),
            ("refused-stream", on.refused_stream && kind == Refused),
            ("reset-before-request", on.reset_before_request && nothing_sent),
            ("reset", on.reset),
            ("5xx", on.server_error),
            ("gateway-error", on.gateway_error),
        ];
        conditions.iter().find(|(_, holds)| *holds).map(|(name, _)| *name)
    }
}

/// Whether conditions say what is to become of failures without an answer. gRPC's own policies cannot.
fn names_failures(on: &RetryOn) -> bool {
    let RetryOn { connect_failure, refused_stream, reset_before_request, .. } = *on;
    connect_failure || refused_stream || reset_before_request
}

/// Whether an answer counts as a failure: the first response class that holds decides; without one a
/// 5xx or a gRPC status other than OK does (Linkerd ServiceProfile `responseClasses`).
pub fn is_failure(classes: &[ResponseClass], status: StatusCode, grpc_status: Option<i32>) -> bool {
    match classes.iter().find(|class| holds(&class.matcher, status)) {
        Some(class) => class.is_failure,
        None => status.is_server_error() || grpc_status.is_some_and(|code| code != 0),
    }
}

fn holds(matcher: &ResponseMatch, status: StatusCode) -> bool {
    match matcher {
        ResponseMatch::Status { min, max } => (*min..=*max).contains(&status.as_u16()),
        ResponseMatch::All(all) => all.iter().all(|one| holds(one, status)),
        ResponseMatch::Any(any) => any.iter().any(|one| holds(one, status)),
        ResponseMatch::Not(not) => !holds(not, status),
    }
}

/// The gRPC status in headers or trailers; `None` if it is absent or no number.
pub fn grpc_status(headers: &HeaderMap) -> Option<i32> {
    grpc_status_text(headers)?.parse().ok()
}

/// The gRPC status in headers or trailers as it came; what is no text is empty.
pub fn grpc_status_text(headers: &HeaderMap) -> Option<&str> {
    // A walk: most heads have few headers and not this one, and a look-up hashes its name.
    let (_, value) = headers.iter().find(|(name, _)| **name == GRPC_STATUS)?;
    Some(value.to_str().unwrap_or_default())
}

#[cfg(test)]
mod tests;
