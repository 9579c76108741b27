//! What a call takes along from the request being served: its trace, its deadline, and that it is a retry.

use std::sync::Arc;

use http::HeaderMap;
use mesh_core::context::{self, RequestContext, TRACEPARENT, TraceContext};
use tokio::time::Instant;

use crate::connect::Lease;

/// The request being served, if there is one. Outside of one no trace begins: that is a tracer's to do.
pub(crate) struct Trace(Option<Arc<RequestContext>>);

impl Trace {
    /// Picks up the request being served on this task, if any.
    pub(crate) fn begin() -> Self {
        Self(context::current())
    }

    /// The trace of the request being served.
    pub(crate) fn position(&self) -> Option<TraceContext> {
        self.0.as_ref()?.trace
    }

    /// Whether the request being served is a retry, or made for one.
    pub(crate) fn is_retry(&self) -> bool {
        self.0.as_ref().is_some_and(|served| served.retried)
    }

    /// Tells whoever is served that a call made for it failed for good.
    pub(crate) fn spend(&self) {
        self.0.iter().for_each(|served| served.spent.set());
    }

    /// The same for a copy of the request, which is not recorded.
    pub(crate) fn of_copy(&self) -> Self {
        let unsampled = |served: &Arc<RequestContext>| RequestContext {
            trace: served.trace.map(TraceContext::unsampled),
            ..RequestContext::clone(served)
        };
        Self(self.0.as_ref().map(|served| Arc::new(unsampled(served))))
    }

    /// When the caller of the request being served stops waiting.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.0.as_ref()?.deadline
    }

    /// Writes the headers of one try. What the application set itself stays.
    pub(crate) fn write(&self, lease: &Lease, headers: &mut HeaderMap) {
        if let Some(served) = &self.0 {
            served.write_headers(headers);
        }
        // Differs in every request: HPACK must not put it into its table. Only that of a connection's first request
        // goes there, so that the name of the others is sent as a number.
        if lease.is_http2()
            && lease.is_reused()
            && let Some(value) = headers.get_mut(&TRACEPARENT)
        {
            value.set_sensitive(true);
        }
    }
}
