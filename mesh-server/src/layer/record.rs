//! One request's record: counted and logged once, when its response has ended or was given up.

use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode, Uri, header};
use tokio::time::Instant;

use mesh_core::context::TraceContext;
use mesh_core::identity::PeerIdentity;
use mesh_core::telemetry::{Outcome, RequestSeries};

use super::headers::grpc_status;

/// Envoy's flag for a peer that went away before the response had ended.
const DOWNSTREAM_GONE: &str = "DC";

/// Dropping it before [`finish`](Self::finish) means that the peer went away.
pub(super) struct Record {
    series: Arc<RequestSeries>,
    started: Instant,
    grpc: bool,
    head: bool,
    code: u16,
    grpc_status: Option<i32>,
    // Body bytes announced and still to come; what is not announced is never complete by count.
    remaining: Option<u64>,
    access: Option<Box<Access>>,
    done: bool,
}

/// What only the access log wants to know; kept only if somebody listens.
struct Access {
    method: Method,
    uri: Uri,
    version: http::Version,
    trace: TraceContext,
    peer: Option<PeerIdentity>,
}

impl Record {
    pub(super) fn begin<B>(
        request: &http::Request<B>,
        series: Arc<RequestSeries>,
        grpc: bool,
        trace: TraceContext,
        peer: Option<&PeerIdentity>,
    ) -> Self {
        let access = tracing::enabled!(target: "mesh::access", tracing::Level::INFO).then(|| {
            Box::new(Access {
                method: request.method().clone(),
                uri: request.uri().clone(),
                version: request.version(),
                trace,
                peer: peer.cloned(),
            })
        });
        Self {
            series,
            started: Instant::now(),
            grpc,
            head: request.method() == Method::HEAD,
            code: 0,
            grpc_status: None,
            remaining: None,
            access,
            done: false,
        }
    }

    /// Notes the head of the response.
    pub(super) fn head(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.code = status.as_u16();
        self.trailers(headers);
        let bodiless = self.head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        self.remaining = if bodiless || status == StatusCode::SWITCHING_PROTOCOLS {
            Some(0)
        } else {
            headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
        };
    }

    /// Notes trailers, or headers that may hold what trailers do.
    pub(super) fn trailers(&mut self, trailers: &HeaderMap) {
        if self.grpc
            && let Some(status) = grpc_status(trailers)
        {
            self.grpc_status = Some(status);
        }
    }

    /// Notes bytes of the body.
    pub(super) fn data(&mut self, bytes: usize) {
        if let Some(remaining) = &mut self.remaining {
            *remaining = remaining.saturating_sub(bytes as u64);
        }
    }

    /// Whether all announced bytes have been handed out: hyper drops such a body without asking for its
    /// end.
    pub(super) fn is_whole(&self) -> bool {
        self.remaining == Some(0)
    }

    /// The response has ended.
    pub(super) fn finish(mut self) {
        self.end("-");
    }

    fn end(&mut self, flags: &'static str) {
        self.done = true;
        let duration = self.started.elapsed();
        let outcome = Outcome { code: self.code, grpc_status: self.grpc_status, flags, grpc: self.grpc };
        self.series.record(outcome, duration);
        if let Some(access) = self.access.take() {
            let peer = access.peer.as_ref();
            tracing::info!(
                target: "mesh::access",
                method = %access.method,
                path = access.uri.path(),
                authority = access.uri.authority().map(http::uri::Authority::as_str),
                version = ?access.version,
                code = self.code,
                grpc_status = self.grpc_status,
                flags,
                duration_ms = duration.as_secs_f64() * 1000.0,
                peer = peer.map(|peer| tracing::field::display(peer.address)),
                principal = peer.and_then(|peer| peer.spiffe_id.as_ref()).map(tracing::field::display),
                trace_id = %format_args!("{:032x}", access.trace.trace_id()),
            );
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.done {
            self.end(DOWNSTREAM_GONE);
        }
    }
}
