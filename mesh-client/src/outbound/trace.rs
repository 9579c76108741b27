//! What a call takes along from the request being served: its trace, its deadline, whose it is, and that it is a retry.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_core::context::{self, RequestContext, TraceContext};
use tokio::time::Instant;

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

    /// The address of whoever sent the request being served.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        Some(self.0.as_ref()?.caller.as_ref()?.address.ip())
    }

    /// Gives the headers of one try of a request with these of its `own`. What the application set itself stays.
    pub(crate) fn each_header<'t>(&'t self, own: &HeaderMap, give: impl FnMut(&'t HeaderName, HeaderValue)) {
        if let Some(served) = &self.0 {
            served.each_header(own, give);
        }
    }
}
