//! The context of the request being served: opened by the server, picked up by every client call made
//! while it is served, so that trace, deadline and caller travel without the application's help.
//!
//! It follows the task: work moved to another task with `tokio::spawn` takes it along through
//! [`scope`]. This is the one task-local of the library; it holds a request, never configuration.

mod trace;

pub use self::trace::{InvalidTraceparent, TraceContext};

use std::future::Future;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use crate::id::SpiffeId;

/// What a served request passes on to the calls made for it.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// Trace position of the served request (W3C Trace Context).
    pub trace: TraceContext,
    /// `tracestate`, passed on unread.
    pub trace_state: Option<HeaderValue>,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// The verified caller.
    pub caller: Option<SpiffeId>,
    /// Headers passed on as they came: `x-request-id`, `baggage`.
    pub forwarded: Vec<(HeaderName, HeaderValue)>,
}

tokio::task_local! {
    static CURRENT: Arc<RequestContext>;
}

/// Headers that are passed on unread beside the trace headers.
pub static FORWARDED: [HeaderName; 2] = [HeaderName::from_static("x-request-id"), HeaderName::from_static("baggage")];

/// W3C Trace Context, level 1.
pub static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// A future that runs inside a request's context.
pub type Scoped<F> = tokio::task::futures::TaskLocalFuture<Arc<RequestContext>, F>;

/// Runs `future` as part of serving the request of `context`. The answer has a name, so that layers
/// can hold it without a box.
pub fn scope<F: Future>(context: Arc<RequestContext>, future: F) -> Scoped<F> {
    CURRENT.scope(context, future)
}

/// Runs `work` as part of serving the request of `context`: for what a service does inside `call`,
/// before its future is polled.
pub fn enter<R>(context: Arc<RequestContext>, work: impl FnOnce() -> R) -> R {
    CURRENT.sync_scope(context, work)
}

/// The context of the request being served on this task, if any.
pub fn current() -> Option<Arc<RequestContext>> {
    CURRENT.try_with(Arc::clone).ok()
}

impl RequestContext {
    /// Reads the context of an incoming request: its `traceparent` (a new trace if absent or broken),
    /// `tracestate` and forwarded headers. `ids` gives random bits for a new trace and span.
    pub fn from_headers(headers: &HeaderMap, ids: impl FnMut() -> u64) -> Self {
        let trace = TraceContext::from_headers(headers, ids);
        let forwarded =
            FORWARDED.iter().filter_map(|name| headers.get(name).map(|value| (name.clone(), value.clone()))).collect();
        let trace_state = headers.get(&TRACESTATE).cloned();
        Self { trace, trace_state, deadline: None, caller: None, forwarded }
    }

    /// Writes the headers of a call made for this request: a child span's `traceparent`, `tracestate`
    /// and the forwarded headers. What the application set itself stays.
    pub fn write_headers(&self, span_id: u64, headers: &mut HeaderMap) {
        if !headers.contains_key(&TRACEPARENT) {
            headers.insert(&TRACEPARENT, self.trace.child(span_id).to_header());
            if let Some(state) = &self.trace_state {
                headers.insert(&TRACESTATE, state.clone());
            }
        }
        for (name, value) in &self.forwarded {
            if !headers.contains_key(name) {
                headers.insert(name.clone(), value.clone());
            }
        }
    }
}
