//! One request's record: counted and logged once, when its response has ended or was given up.

use std::sync::Arc;
use std::task::Context;

use http::{HeaderMap, Method, StatusCode, Uri, header};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use mesh_core::context::TraceContext;
use mesh_core::identity::PeerIdentity;
use mesh_core::telemetry::{Outcome, RequestSeries};

use super::headers::grpc_status;
use super::limits::Ticket;
use super::over::Wait;
use crate::load::Reporting;

/// Envoy's flag for a peer that went away before the response had ended.
const DOWNSTREAM_GONE: &str = "DC";

/// Dropping it before [`finish`](Self::finish) means that the peer went away.
pub(super) struct Record {
    series: Arc<RequestSeries>,
    started: Instant,
    grpc: bool,
    // When it has had its time.
    over: Option<Wait>,
    head: bool,
    code: u16,
    grpc_status: Option<i32>,
    // Body bytes announced and still to come; what is not announced is never complete by count.
    remaining: Option<u64>,
    access: Option<Box<Access>>,
    // If the answer tells of the load.
    load: Option<Box<Reporting>>,
    // Its place among the requests in flight, if they are limited.
    #[allow(dead_code, reason = "held for its drop")]
    place: Option<OwnedSemaphorePermit>,
    // Of the limits that want to know its end, or say something in its answer.
    tickets: Vec<Ticket>,
    // Envoy's flag, if the mesh answers.
    flag: &'static str,
    done: bool,
}

/// What only the access log wants to know; kept only if somebody listens.
struct Access {
    method: Method,
    uri: Uri,
    version: http::Version,
    trace: Option<TraceContext>,
    peer: Option<PeerIdentity>,
    // Why the mesh answered, in Envoy's words (`response_code_details`).
    details: Option<Box<str>>,
}

impl Record {
    pub(super) fn begin<B>(
        request: &http::Request<B>,
        series: Arc<RequestSeries>,
        started: Instant,
        grpc: bool,
        trace: Option<TraceContext>,
        peer: Option<&PeerIdentity>,
    ) -> Self {
        let access = tracing::enabled!(target: "mesh::access", tracing::Level::INFO).then(|| {
            Box::new(Access {
                method: request.method().clone(),
                uri: request.uri().clone(),
                version: request.version(),
                trace,
                peer: peer.cloned(),
                details: None,
            })
        });
        Self {
            series,
            started,
            grpc,
            over: None,
            head: request.method() == Method::HEAD,
            code: 0,
            grpc_status: None,
            remaining: None,
            access,
            load: None,
            place: None,
            tickets: Vec::new(),
            flag: "-",
            done: false,
        }
    }

    /// It is heard of when what is in flight has had its time.
    pub(super) fn ends_with(&mut self, over: Wait) {
        self.over = Some(over);
    }

    /// Whether it has had its time; if not, the task is woken when it has.
    pub(super) fn is_over(&mut self, cx: &Context<'_>) -> bool {
        self.over.as_mut().is_some_and(|over| over.is_over(cx))
    }

    /// The same for a request whose answer goes on: a gRPC call can be told more than that its connection ends.
    pub(super) fn is_answer_over(&mut self, cx: &Context<'_>) -> bool {
        self.grpc && self.is_over(cx)
    }

    /// Notes why the mesh answers in the application's place, for the access log.
    pub(super) fn note(&mut self, details: Box<str>) {
        if let Some(access) = &mut self.access {
            access.details = Some(details);
        }
    }

    /// Notes Envoy's flag for why the mesh answers.
    pub(super) fn flag(&mut self, flag: &'static str) {
        self.flag = flag;
    }

    /// The request has passed limits that want to know its end, or say something in its answer.
    pub(super) fn owe(&mut self, tickets: Vec<Ticket>) {
        self.tickets.extend(tickets);
    }

    /// The request has a place among those in flight, until its answer has ended.
    pub(super) fn hold(&mut self, place: OwnedSemaphorePermit) {
        self.place = Some(place);
    }

    /// The request goes no further: it gives its place back, and the limits learn nothing of its latency.
    pub(super) fn release(&mut self) {
        self.place = None;
        self.tickets.retain(Ticket::tells);
    }

    /// The answer will tell of the load.
    pub(super) fn report_load(&mut self, load: Box<Reporting>) {
        self.load = Some(load);
    }

    /// The request is none that is counted.
    pub(super) fn forget(mut self) {
        self.done = true;
    }

    /// Notes the head of the response, and writes into it what it is to tell.
    pub(super) fn head(&mut self, status: StatusCode, headers: &mut HeaderMap) {
        self.code = status.as_u16();
        self.note_status(headers);
        if let Some(load) = &mut self.load {
            load.head(status, headers, self.grpc);
        }
        for ticket in &self.tickets {
            ticket.head(headers);
        }
        let bodiless = self.head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        self.remaining = if bodiless || status == StatusCode::SWITCHING_PROTOCOLS {
            Some(0)
        } else {
            headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
        };
    }

    /// Notes trailers, and writes into them what they are to tell.
    pub(super) fn trailers(&mut self, trailers: &mut HeaderMap) {
        self.note_status(trailers);
        if let Some(load) = &mut self.load {
            load.trailers(trailers, self.grpc);
        }
    }

    fn note_status(&mut self, trailers: &HeaderMap) {
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
    pub(super) fn finish(&mut self) {
        for ticket in std::mem::take(&mut self.tickets) {
            ticket.finish();
        }
        self.end(self.flag);
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
                details = access.details.as_deref(),
                duration_ms = duration.as_secs_f64() * 1000.0,
                peer = peer.map(|peer| tracing::field::display(peer.address)),
                principal = peer.and_then(|peer| peer.spiffe_id.as_ref()).map(tracing::field::display),
                trace_id = access.trace.map(|trace| format!("{:032x}", trace.trace_id())),
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

#[cfg(test)]
mod tests {
    use mesh_testkit::Log;

    use super::*;

    // The one test that meets the access log's callsites in this binary: tracing remembers whether
    // anybody listens to a callsite, and threads that do and don't listen disturb each other.
    #[test]
    fn each_request_leaves_one_access_log_event() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let trace = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").ok();
        let id = "spiffe://cluster.local/ns/default/sa/productpage".parse().unwrap();
        let peer = PeerIdentity { spiffe_id: Some(id), address: ([127, 0, 0, 1], 80).into() };
        let request = http::Request::get("http://reviews:9080/path?secret=1").body(()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            let mut record = Record::begin(&request, Arc::default(), Instant::now(), true, trace, Some(&peer));
            record.head(StatusCode::OK, &mut HeaderMap::new());
            record.trailers(&mut HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), 5.into())]));
            record.finish();
            drop(Record::begin(&request, Arc::default(), Instant::now(), false, None, None));
        });
        let log = log.text();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("mesh::access")).collect();
        let [finished, gone] = lines[..] else { panic!("one line a request: {log}") };
        for part in [
            "method=GET",
            "path=\"/path\"",
            "authority=\"reviews:9080\"",
            "code=200 grpc_status=5 flags=\"-\"",
            "principal=spiffe://cluster.local/ns/default/sa/productpage",
            "trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\"",
        ] {
            assert!(finished.contains(part), "{part} in {finished}");
        }
        assert!(gone.contains("code=0 flags=\"DC\"") && !gone.contains("trace_id"), "{gone}");
        assert!(!log.contains("secret"), "a query may hold secrets: {log}");
    }
}
