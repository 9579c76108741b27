//! The server's word on its own load (ORCA, gRFC A51): with every answer, on a stream of its own, and to probes.
//!
//! Nothing of it happens unless the builder is given a [`LoadReporter`]. Refuses to know who goes by it.

mod stream;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Buf;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use tokio::time::Instant;

use mesh_core::balance::{EndpointReport, ServedLoad, Serving};
use mesh_core::drain::DrainWatch;
use mesh_core::orca;

pub(crate) use self::stream::ReportStream;
use crate::layer::grpc_status;

/// What the application says of its load; clones are one.
///
/// The one that [`ServerBuilder::load_reports`](crate::ServerBuilder::load_reports) is given speaks for the process.
/// The one in a request's extensions speaks for that request, and its word is in the answer only: for gRPC in the
/// trailers, for plain HTTP in the headers, so there it must be said before the answer is given.
///
/// Measured without the application's doing, unless it says otherwise: requests in flight and latency (for Prequal),
/// requests and failures a second. Weighted round robin (gRFC A58) needs one thing more, how busy the process is:
/// `application_utilization` or `cpu_utilization`.
///
/// ```
/// use http::{Request, Response};
/// use mesh_server::{Body, LoadReporter, Server};
///
/// let load = LoadReporter::new();
/// let server = Server::builder().load_reports(load.clone()).build();
/// // Now and then, whatever "busy" means to this application:
/// load.set("application_utilization", 0.4);
///
/// async fn handler(request: Request<Body>) -> Response<String> {
///     if let Some(load) = request.extensions().get::<LoadReporter>() {
///         load.set("request_cost.rows", 120.0);
///     }
///     Response::new("found".to_owned())
/// }
/// # let _ = (server, handler);
/// ```
#[derive(Clone, Debug, Default)]
pub struct LoadReporter(Arc<ArcSwapOption<EndpointReport>>);

impl LoadReporter {
    /// One that says nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says a value by the name of its field in `xds.data.orca.v3.OrcaLoadReport`: `application_utilization`,
    /// `cpu_utilization` and `mem_utilization` (1 = fully used), `rps_fractional`, `eps`, or one of the application's
    /// own that begins with `named_metrics.`, `utilization.` or `request_cost.`. It stands until it is said anew; 0 is
    /// as good as nothing said. False, and nothing changes, if there is no such field or the value is negative,
    /// infinite or not a number.
    pub fn set(&self, name: &str, value: f64) -> bool {
        let mut taken = false;
        self.0.rcu(|said| {
            let mut said = said.as_deref().cloned().unwrap_or_default();
            taken = said.set(name, value);
            Some(Arc::new(said))
        });
        taken
    }

    fn add_to(&self, report: &mut EndpointReport) {
        if let Some(said) = &*self.0.load() {
            report.merge(said);
        }
    }
}

/// The load of one server.
pub(crate) struct LoadReports {
    process: LoadReporter,
    served: Arc<ServedLoad>,
    // Shortest interval of a stream.
    floor: Duration,
}

/// Streams do not get faster than that, whatever the configuration.
const SHORTEST: Duration = Duration::from_millis(1);

/// One request whose answer tells of the load.
pub(crate) struct Reporting {
    reports: Arc<LoadReports>,
    serving: Serving,
    own: LoadReporter,
}

/// A request that is for nothing but the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// A probe.
    Once,
    /// For reports again and again.
    Stream,
}

impl Question {
    pub(crate) fn of<B>(request: &Request<B>, grpc: bool) -> Option<Self> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, orca::PROBE_PATH) => Some(Self::Once),
            (&Method::POST, orca::STREAM_PATH) if grpc => Some(Self::Stream),
            _ => None,
        }
    }
}

/// What a question is answered with, in place of the application.
pub(crate) enum Told {
    /// This, without a body.
    Once(Response<()>),
    Stream(Box<ReportStream>),
}

impl LoadReports {
    pub(crate) fn new(process: LoadReporter, floor: Duration) -> Self {
        Self { process, served: Arc::new(ServedLoad::new(Instant::now())), floor: floor.max(SHORTEST) }
    }

    /// Answers a question, whose request had this body.
    pub(crate) fn answer<B>(self: &Arc<Self>, question: Question, body: B, drain: &DrainWatch) -> Told
    where
        B: Body<Data: Buf> + Send + 'static,
    {
        match question {
            Question::Once => {
                let mut response = Response::new(());
                *response.status_mut() = StatusCode::NO_CONTENT;
                let headers = response.headers_mut();
                headers.insert(&orca::BINARY, orca::value(&self.report(0)));
                // A report of yesterday helps nobody.
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
                Told::Once(response)
            }
            Question::Stream => Told::Stream(Box::new(ReportStream::new(self.clone(), body, drain))),
        }
    }

    /// Counts a request in that goes to the application.
    pub(crate) fn begin(self: &Arc<Self>) -> Box<Reporting> {
        let serving = self.served.begin(Instant::now());
        Box::new(Reporting { reports: self.clone(), serving, own: LoadReporter::new() })
    }

    /// What is measured, and over it what the application says. `own` requests in flight are the asker's.
    fn report(&self, own: u32) -> EndpointReport {
        let mut report = self.served.report(own, Instant::now());
        self.process.add_to(&mut report);
        report
    }
}

impl Reporting {
    /// For the request's extensions.
    pub(crate) fn reporter(&self) -> LoadReporter {
        self.own.clone()
    }

    /// The head of the answer. Plain HTTP has the report here, and so has a gRPC answer without a body.
    pub(crate) fn head(&mut self, status: StatusCode, headers: &mut HeaderMap, grpc: bool) {
        let early = if grpc { grpc_status(headers) } else { None };
        let failed = early.map_or(status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED, is_failure);
        if failed {
            self.serving.failed(Instant::now());
        } else {
            self.serving.answered(Instant::now());
        }
        if !grpc || early.is_some() {
            self.write(headers);
        }
    }

    /// The trailers of an answer.
    pub(crate) fn trailers(&mut self, trailers: &mut HeaderMap, grpc: bool) {
        if grpc {
            if grpc_status(trailers).is_some_and(is_failure) {
                self.serving.failed(Instant::now());
            }
            self.write(trailers);
        }
    }

    fn write(&self, headers: &mut HeaderMap) {
        // The one that ends here is no load any more.
        let mut report = self.reports.report(1);
        self.own.add_to(&mut report);
        headers.insert(&orca::BINARY, orca::value(&report));
    }
}

/// Statuses that are the server's fault: unknown, deadline exceeded, resource exhausted, internal, unavailable, data
/// loss.
fn is_failure(grpc_status: i32) -> bool {
    matches!(grpc_status, 2 | 4 | 8 | 13 | 14 | 15)
}
