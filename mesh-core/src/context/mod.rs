//! The context of the request being served: opened by the server, picked up by every client call made
//! while it is served, so that trace, deadline and caller travel without the application's help.
//!
//! It follows the task: work moved to another task with `tokio::spawn` takes it along through
//! [`scope`]. This is the one thing of the library that a task has without being given it; it holds a request, never configuration.

mod scope;
mod timeout;
mod trace;

pub use self::scope::{Scoped, caller, claims, current, enter, is_open, scope};
pub use self::timeout::{EXPECTED_TIMEOUT, GRPC_TIMEOUT, TimeoutHeader, expected_timeout, grpc_timeout, is_grpc};
pub use self::trace::{InvalidTraceparent, TraceContext};

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use crate::identity::PeerIdentity;
use crate::jwt::Tokens;
use crate::policy::is_fixed_header;

/// What a served request passes on to the calls made for it. Printed it shows the names alone of what was only passed on.
#[derive(Clone)]
pub struct RequestContext {
    /// Trace position of the served request (W3C Trace Context). `None` if it brought none: where a trace begins, and
    /// whether it is recorded, is a tracer's decision.
    pub trace: Option<TraceContext>,
    /// `tracestate`, passed on unread.
    pub trace_state: Option<HeaderValue>,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// Who sent the request, if whoever accepted its connection knows. Calls made for it are hashed by this address where
    /// policy hashes the source ([`HashSource::SourceAddress`](crate::policy::HashSource::SourceAddress)).
    pub caller: Option<Arc<PeerIdentity>>,
    /// Its tokens that hold; `None` = nobody looked for any.
    pub tokens: Option<Arc<Tokens>>,
    /// Headers passed on as they came: `x-request-id`, `baggage`.
    pub forwarded: Vec<(HeaderName, HeaderValue)>,
    /// It is a retry, or made for one: what is called for it is not retried once more, so that the tries of
    /// a chain of services add up and do not multiply.
    pub retried: bool,
    /// Whether a call made for it failed for good.
    pub spent: Flag,
    /// Whether its body stopped coming.
    pub stalled: Flag,
}

/// Something that happens to a request at most once while it is served, and that its answer is to say.
///
/// As `spent`: a call made for it failed although it may be tried again, for its tries are used up, or there is no
/// budget for one more. The answer says so ([`RETRIED`]), and nobody further up the chain tries what was tried enough.
#[derive(Debug, Default)]
pub struct Flag(AtomicBool);

impl Flag {
    /// It has happened.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it has.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Clone for Flag {
    fn clone(&self) -> Self {
        Self(AtomicBool::new(self.is_set()))
    }
}

/// Headers that are passed on unread beside the trace headers.
pub static FORWARDED: [HeaderName; 2] = [HeaderName::from_static("x-request-id"), HeaderName::from_static("baggage")];

/// W3C Trace Context, level 1.
pub static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// On a retry, and on every request made for one: nobody further down retries again. On an answer: a call made for the
/// request failed for good, and nobody further up retries.
pub static RETRIED: HeaderName = HeaderName::from_static("mesh-retried");
/// Number of earlier tries of this request (gRFC A6).
pub static PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
// Number of this try, from 1 (Envoy `include_request_attempt_count`).
static ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// In the extensions of a request that a client sends: the `Host` that the endpoint is to see, whatever names the
/// destination and chooses the route. For a question about a request of another host.
#[derive(Clone, Debug)]
pub struct SentHost(pub HeaderValue);

impl RequestContext {
    /// Reads the context of an incoming request: its `traceparent` (no trace if absent or broken),
    /// `tracestate` and forwarded headers, and whether it is a retry.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        // One walk: a request has few headers, and four look-ups cost more than all of them.
        let (mut parent, mut parents, mut trace_state, mut forwarded) = (None, 0, None, Vec::new());
        let mut retried = false;
        for (name, value) in headers {
            // By their text: nearly always the length alone tells that it is another one.
            match name.as_str() {
                "traceparent" => (parent, parents) = (Some(value), parents + 1),
                "tracestate" => _ = trace_state.get_or_insert_with(|| value.clone()),
                "x-request-id" | "baggage" => forwarded.push((name.clone(), value.clone())),
                name => retried |= says_retry(name, value),
            }
        }
        // Two of them are ambiguous: the specification says to pass neither on.
        let trace = parent.filter(|_| parents == 1).and_then(|value| TraceContext::read(value.as_bytes()).ok());
        let (deadline, caller, tokens) = (None, None, None);
        let (spent, stalled) = (Flag::default(), Flag::default());
        Self { trace, trace_state, deadline, caller, tokens, forwarded, retried, spent, stalled }
    }

    /// The context of a question that the mesh itself asks about this request: the same trace and the same caller. What the
    /// caller could hinder the question by stays behind: its deadline, and that it is a retry; and a question that fails
    /// is not to the request's account.
    #[must_use]
    pub fn of_question(&self) -> Self {
        let (spent, stalled) = (Flag::default(), Flag::default());
        Self { deadline: None, retried: false, spent, stalled, ..self.clone() }
    }

    /// Writes the headers of a call made for this request, as [`each_header`](Self::each_header) gives them.
    pub fn write_headers(&self, headers: &mut HeaderMap) {
        let mut given = Vec::new();
        self.each_header(headers, |name, value| given.push((name, value)));
        for (name, value) in given {
            headers.insert(name, value);
        }
    }

    /// Gives the headers of a call made for this request which has these of its `own`: its `traceparent` as it came (a span
    /// that nobody records would tear the trace), `tracestate`, the forwarded headers and the mark of a retry. What the
    /// application set itself stays, and what frames a message or says where it goes is not forwarded.
    pub fn each_header<'c>(&'c self, own: &HeaderMap, mut give: impl FnMut(&'c HeaderName, HeaderValue)) {
        let trace = self.trace.filter(|_| !own.contains_key(&TRACEPARENT));
        let traced = trace.is_some();
        if let Some(trace) = trace {
            give(&TRACEPARENT, trace.to_header());
            if let Some(state) = &self.trace_state {
                give(&TRACESTATE, state.clone());
            }
        }
        for (at, (name, value)) in self.forwarded.iter().enumerate() {
            let is_given = self.forwarded[..at].iter().any(|(before, _)| before == name)
                || (traced && (*name == TRACEPARENT || *name == TRACESTATE));
            if !is_given && !own.contains_key(name) && !is_fixed_header(name) {
                give(name, value.clone());
            }
        }
        if self.retried {
            give(&RETRIED, HeaderValue::from_static("1"));
        }
    }
}

impl fmt::Debug for RequestContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.forwarded.iter().map(|(name, _)| name.as_str());
        f.debug_struct("RequestContext")
            .field("trace", &self.trace)
            .field("deadline", &self.deadline)
            .field("caller", &self.caller)
            .field("tokens", &self.tokens.as_ref().map(|tokens| tokens.iter().count()))
            .field("forwarded", &names.collect::<Vec<_>>())
            .field("retried", &self.retried)
            .field("spent", &self.spent)
            .field("stalled", &self.stalled)
            .finish_non_exhaustive()
    }
}

/// Whether a header of a request says how whoever sends it on is to go about it: the time that is left, that it is a retry,
/// a fault to make. A question about the request that went with them would be under the caller's orders.
pub fn is_of_hop(name: &HeaderName) -> bool {
    let known = [&GRPC_TIMEOUT, &EXPECTED_TIMEOUT, &RETRIED, &PREVIOUS_ATTEMPTS, &ATTEMPT_COUNT];
    known.contains(&name) || name.as_str().starts_with("x-envoy-fault-")
}

/// Whether a header says that its request is a retry or made for one, in the words of a mesh client, of
/// gRPC or of Envoy.
fn says_retry(name: &str, value: &HeaderValue) -> bool {
    let number = || value.to_str().ok().and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    match name {
        "mesh-retried" => true,
        "grpc-previous-rpc-attempts" => number() > 0,
        "x-envoy-attempt-count" => number() > 1,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_what_is_passed_on_counts_and_what_the_application_set_stays() {
        let pairs = [("baggage", "a=1"), ("baggage", "a=2"), ("x-request-id", "1")];
        let headers = pairs.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut served = HeaderMap::new();
        for (name, value) in headers {
            served.append(name, value);
        }
        let context = RequestContext::from_headers(&served);
        let mut call = HeaderMap::from_iter([(FORWARDED[0].clone(), HeaderValue::from_static("own"))]);
        context.write_headers(&mut call);
        let told = (&call["baggage"], &call["x-request-id"]);
        assert_eq!((call.len(), told), (2, (&HeaderValue::from_static("a=1"), &HeaderValue::from_static("own"))));
    }

    #[test]
    fn what_frames_a_message_is_not_passed_on_and_neither_is_a_second_trace() {
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut context = RequestContext::from_headers(&HeaderMap::new());
        context.trace = Some(TraceContext::parse(trace).unwrap());
        let named = |name| (HeaderName::from_static(name), HeaderValue::from_static("1"));
        let names = ["host", "content-length", "transfer-encoding", "connection", "traceparent", "x-kept"];
        context.forwarded = names.map(named).into();
        let mut call = HeaderMap::new();
        context.write_headers(&mut call);
        assert_eq!((call.len(), &call["traceparent"]), (2, &HeaderValue::from_static(trace)), "{call:?}");
        assert!(call.contains_key("x-kept"));
        // The control: without one of its own it is passed on.
        context.trace = None;
        let mut call = HeaderMap::new();
        context.write_headers(&mut call);
        assert_eq!(call["traceparent"], "1");
    }

    #[test]
    fn what_is_read_by_its_text_has_the_names_that_are_written() {
        let names = [&TRACEPARENT, &TRACESTATE, &RETRIED, &PREVIOUS_ATTEMPTS, &ATTEMPT_COUNT];
        let read = ["traceparent", "tracestate", "mesh-retried", "grpc-previous-rpc-attempts", "x-envoy-attempt-count"];
        assert_eq!(names.map(HeaderName::as_str), read);
        assert_eq!(FORWARDED.each_ref().map(HeaderName::as_str), ["x-request-id", "baggage"]);
    }

    #[test]
    fn a_retry_is_known_in_three_languages_and_marks_what_is_called_for_it() {
        for (name, value, retried) in [
            ("mesh-retried", "1", true),
            ("grpc-previous-rpc-attempts", "2", true),
            ("grpc-previous-rpc-attempts", "0", false),
            ("x-envoy-attempt-count", "2", true),
            ("x-envoy-attempt-count", "1", false),
            ("x-envoy-attempt-count", "many", false),
            ("x-request-id", "2", false),
        ] {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))]);
            let context = RequestContext::from_headers(&headers);
            assert_eq!(context.retried, retried, "{name}: {value}");
            let mut call = HeaderMap::new();
            context.write_headers(&mut call);
            assert_eq!(call.contains_key(&RETRIED), retried, "{name}: {value}");
        }
    }
}
