//! The access log: one `tracing` event a request at target `mesh::access`, made only if somebody listens.

use std::time::Duration;

use http::Method;
use mesh_core::context::{TRACEPARENT, TraceContext};
use mesh_core::telemetry::Outcome;
use tracing::Level;

use super::head::Head;
use super::trace::Trace;

/// Target of the events.
const TARGET: &str = "mesh::access";

/// What an event says beyond the outcome.
pub(crate) struct Access {
    method: Method,
    authority: String,
    path: String,
    pub(crate) route: String,
    pub(crate) cluster: String,
    pub(crate) upstream: String,
    trace: Option<TraceContext>,
}

impl Access {
    /// Remembers the request as the application made it; `None` if nobody listens.
    pub(crate) fn open(head: &Head, trace: &Trace) -> Option<Box<Self>> {
        if !tracing::enabled!(target: TARGET, Level::INFO) {
            return None;
        }
        let empty = String::new;
        let own = head.headers.get(&TRACEPARENT).and_then(|value| TraceContext::parse(value.to_str().ok()?).ok());
        Some(Box::new(Self {
            method: head.method.clone(),
            authority: head.authority().to_owned(),
            path: head.uri().path().to_owned(),
            route: empty(),
            cluster: empty(),
            upstream: empty(),
            trace: own.or_else(|| trace.position()),
        }))
    }

    pub(crate) fn write(&self, outcome: &Outcome, duration: Duration, attempts: u32) {
        let trace_id = self.trace.map(|trace| format!("{:032x}", trace.trace_id()));
        tracing::event!(
            target: TARGET,
            Level::INFO,
            method = %self.method,
            authority = self.authority,
            path = self.path,
            route = self.route,
            cluster = self.cluster,
            upstream = self.upstream,
            code = outcome.code,
            grpc_status = outcome.grpc_status,
            flags = outcome.flags,
            duration_ms = duration.as_secs_f64() * 1000.0,
            attempts,
            trace_id,
            "outbound request"
        );
    }
}
