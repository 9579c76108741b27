//! The trace position of a request: a child of the request being served, or a new trace.

use std::sync::Arc;

use http::HeaderMap;
use mesh_core::context::{self, RequestContext, TRACEPARENT, TraceContext};
use tokio::time::Instant;

use crate::connect::Lease;
use crate::env::Env;

/// Where a request stands in its trace.
pub(crate) struct Trace {
    served: Option<Arc<RequestContext>>,
    position: TraceContext,
}

impl Trace {
    /// Picks up the request being served on this task, if any.
    pub(crate) fn begin(env: &Env) -> Self {
        let served = context::current();
        let position = match &served {
            Some(context) => context.trace,
            None => TraceContext::new(|| env.id()),
        };
        Self { served, position }
    }

    pub(crate) fn position(&self) -> TraceContext {
        self.position
    }

    /// Whether the request being served is a retry, or made for one.
    pub(crate) fn is_retry(&self) -> bool {
        self.served.as_ref().is_some_and(|served| served.retried)
    }

    /// Tells whoever is served that a call made for it failed for good.
    pub(crate) fn spend(&self) {
        self.served.iter().for_each(|served| served.spent.set());
    }

    /// The same for a copy of the request, which is not recorded.
    pub(crate) fn of_copy(&self) -> Self {
        let unsampled = |served: &Arc<RequestContext>| RequestContext {
            trace: served.trace.unsampled(),
            ..RequestContext::clone(served)
        };
        Self {
            served: self.served.as_ref().map(|served| Arc::new(unsampled(served))),
            position: self.position.unsampled(),
        }
    }

    /// When the caller of the request being served stops waiting.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.served.as_ref()?.deadline
    }

    /// Writes the headers of one try, each a span of its own. What the application set itself stays.
    pub(crate) fn write(&self, env: &Env, lease: &Lease, headers: &mut HeaderMap) {
        let value = match &self.served {
            Some(context) => {
                context.write_headers(env.id(), headers);
                headers.get_mut(&TRACEPARENT)
            }
            None => Some(headers.entry(&TRACEPARENT).or_insert_with(|| self.position.child(env.id()).to_header())),
        };
        // Differs in every request: HPACK must not put it into its table. Only that of a connection's first request
        // goes there, so that the name of the others is sent as a number.
        if lease.is_http2()
            && lease.is_reused()
            && let Some(value) = value
        {
            value.set_sensitive(true);
        }
    }
}
