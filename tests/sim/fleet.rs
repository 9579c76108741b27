//! Servers in memory for a real client: HTTP over pipes, on the paused clock. Each works on so many requests at once,
//! lets others wait in line, and can be made slow, failing, unreachable, silent or be cut off at any moment.
//!
//! Refuses to know the client: it stands where TCP would (`ClientBuilder::connector`).

use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_client::Io;
use mesh_core::balance::{EndpointReport, ServedLoad};
use mesh_core::orca;
use mesh_core::policy::{Address, Endpoint};
use parking_lot::Mutex;
use tokio::io::DuplexStream;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use crate::pipe::Pipe;

/// A body of any kind.
pub(crate) type AnyBody = UnsyncBoxBody<Bytes, Infallible>;
/// Answers requests in place of [`Server::work`].
pub(crate) type Handler = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<AnyBody>> + Send + Sync>;

/// The header that names the server which answered.
pub(crate) const SERVER: &str = "x-server";

/// How a server is, to be changed at any time.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    /// Mean time of a request once its turn has come.
    pub(crate) time: Duration,
    /// The time is always the mean, and not exponential as between unrelated requests.
    pub(crate) even: bool,
    /// Requests in hand, those in line among them; what is beyond is refused at once.
    pub(crate) most: usize,
    /// After which it answers 504 itself. The work goes on.
    pub(crate) patience: Option<Duration>,
    /// Share of the requests that are answered 503 at once.
    pub(crate) failing: f64,
    /// Whether and how connections are taken.
    pub(crate) door: Door,
    /// It tells its load (ORCA) with each answer, and this is its utilization; `None` = it tells nothing there. Who asks for its
    /// load is told what it measures itself, whatever this is.
    pub(crate) utilization: Option<f64>,
}

impl Default for Manner {
    fn default() -> Self {
        let (time, door) = (Duration::from_millis(5), Door::Open);
        Self { time, even: false, most: usize::MAX, patience: None, failing: 0.0, door, utilization: None }
    }
}

/// What becomes of a connection attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Open,
    /// Refused at once.
    Shut,
    /// No answer, ever.
    Silent,
}

/// One server.
pub(crate) struct Server {
    index: usize,
    manner: Mutex<Manner>,
    places: Semaphore,
    in_hand: AtomicUsize,
    load: Arc<ServedLoad>,
    random: Mutex<fastrand::Rng>,
    handler: Option<Handler>,
    wire: Wire,
    seen: AtomicU64,
    connects: AtomicU64,
    open: Arc<AtomicUsize>,
    lines: Mutex<Vec<AbortHandle>>,
    // Of the connections that it takes now.
    silent: Mutex<Arc<AtomicBool>>,
    recycle: watch::Sender<()>,
}

/// What a server speaks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wire {
    Http1,
    /// With so many streams at once.
    Http2(u32),
}

/// Counts a connection, or a request in hand, until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Server {
    pub(crate) fn change(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut self.manner.lock());
    }

    /// Requests that reached it; who asks for its load is none.
    pub(crate) fn seen(&self) -> u64 {
        self.seen.load(Relaxed)
    }

    /// Attempts to connect to it, those in vain among them.
    pub(crate) fn connects(&self) -> u64 {
        self.connects.load(Relaxed)
    }

    /// Connections open to it.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Ends its connections without a word.
    pub(crate) fn cut(&self) {
        self.lines.lock().drain(..).for_each(|line| line.abort());
    }

    /// Asks for its connections to be replaced: `connection: close`, or GOAWAY in two steps.
    pub(crate) fn recycle(&self) {
        self.recycle.send_replace(());
    }

    /// From now on nothing goes either way over the connections that it has, and nobody is told.
    pub(crate) fn fall_silent(&self) {
        self.silent.lock().store(true, Relaxed);
        self.change(|manner| manner.door = Door::Silent);
    }

    /// The same for the connections that it has now, and not for those to come.
    pub(crate) fn lose(&self) {
        std::mem::take(&mut *self.silent.lock()).store(true, Relaxed);
    }

    /// What it tells of its load, as a server of ours does: requests that their callers gave up count no more.
    fn tell(&self) -> Response<AnyBody> {
        let mut response = plain(StatusCode::NO_CONTENT);
        response.headers_mut().insert(&orca::BINARY, orca::value(&self.load.report(0, Instant::now())));
        response
    }

    /// Works on one request as the server's manner says. The work goes on when the client gives up, as that of most
    /// servers does: that is what makes overload last.
    async fn work(self: Arc<Self>) -> StatusCode {
        let (time, most, failing, patience) = {
            let (manner, mut random) = (self.manner.lock(), self.random.lock());
            let factor = if manner.even { 1.0 } else { -(1.0 - random.f64()).ln() };
            (manner.time.mul_f64(factor), manner.most, random.f64() < manner.failing, manner.patience)
        };
        if failing || self.in_hand.load(Relaxed) >= most {
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        self.in_hand.fetch_add(1, Relaxed);
        let serving = self.load.begin(Instant::now());
        let (done, is_done) = oneshot::channel();
        tokio::spawn(async move {
            {
                let _place = self.places.acquire().await;
                mesh_testkit::clock::pass(time).await;
            }
            self.in_hand.fetch_sub(1, Relaxed);
            let _ = done.send(());
        });
        // Longer than any test.
        if timeout(patience.unwrap_or(Duration::from_secs(1 << 30)), is_done).await.is_err() {
            return StatusCode::GATEWAY_TIMEOUT;
        }
        serving.answered(Instant::now());
        StatusCode::OK
    }

    /// What it tells of its load with each answer.
    fn told(&self) -> Option<HeaderValue> {
        let manner = self.manner.lock();
        let utilization = manner.utilization?;
        let (in_flight, latency) = (Some(self.in_hand.load(Relaxed) as u32), Some(manner.time));
        let requests_per_second = 100.0;
        let report =
            EndpointReport { requests_per_second, utilization, in_flight, latency, ..EndpointReport::default() };
        Some(orca::value(&report))
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<AnyBody>, Infallible> {
        if self.handler.is_none() && request.uri().path() == orca::PROBE_PATH {
            return Ok(self.tell());
        }
        self.seen.fetch_add(1, Relaxed);
        let name = self.index.into();
        let mut response = match &self.handler {
            Some(handler) => handler(request).await,
            None => {
                let grpc = request.headers().get(CONTENT_TYPE).is_some_and(mesh_core::context::is_grpc);
                let status = self.clone().work().await;
                if grpc { self.grpc(status) } else { plain(status) }
            }
        };
        response.headers_mut().insert(SERVER, name);
        response.headers_mut().extend(self.told().map(|load| (orca::BINARY.clone(), load)));
        Ok(response)
    }

    /// The same as the answer to a gRPC call: its status is at its end, or in its head where there are no trailers.
    fn grpc(&self, status: StatusCode) -> Response<AnyBody> {
        let status = HeaderValue::from(match status {
            StatusCode::OK => 0,
            StatusCode::GATEWAY_TIMEOUT => 4,
            _ => 14,
        });
        let end = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), status)]);
        let mut response = match self.wire {
            Wire::Http1 => {
                let mut response = plain(StatusCode::OK);
                response.headers_mut().extend(end);
                response
            }
            Wire::Http2(_) => Response::new(Empty::new().with_trailers(ready(Some(Ok(end)))).boxed_unsync()),
        };
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }

    async fn serve(self: Arc<Self>, line: DuplexStream) {
        let (wire, mut recycled) = (self.wire, self.recycle.subscribe());
        let service = service_fn(move |request| self.clone().answer(request));
        let (io, recycled) = (TokioIo::new(line), async move { drop(recycled.changed().await) });
        // A client that goes away is no news.
        let _ = match wire {
            Wire::Http1 => {
                let mut serving = std::pin::pin!(http1::Builder::new().serve_connection(io, service));
                tokio::select! {
                    end = &mut serving => end,
                    () = recycled => {
                        serving.as_mut().graceful_shutdown();
                        serving.await
                    }
                }
            }
            Wire::Http2(streams) => {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                let mut serving = std::pin::pin!(builder.max_concurrent_streams(streams).serve_connection(io, service));
                tokio::select! {
                    end = &mut serving => end,
                    () = recycled => {
                        serving.as_mut().graceful_shutdown();
                        serving.await
                    }
                }
            }
        };
    }

    async fn take(self: Arc<Self>) -> io::Result<Box<dyn Io>> {
        self.connects.fetch_add(1, Relaxed);
        let door = self.manner.lock().door;
        match door {
            Door::Open => {}
            Door::Shut => return Err(io::ErrorKind::ConnectionRefused.into()),
            Door::Silent => return std::future::pending().await,
        }
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        self.open.fetch_add(1, Relaxed);
        let counted = Counted(self.open.clone());
        let serving = self.clone().serve(theirs);
        let line = tokio::spawn(async move {
            let _counted = counted;
            serving.await;
        });
        let mut lines = self.lines.lock();
        lines.retain(|line| !line.is_finished());
        lines.push(line.abort_handle());
        Ok(Box::new(Pipe::new(ours, self.silent.lock().clone())))
    }
}

fn plain(status: StatusCode) -> Response<AnyBody> {
    let mut response = Response::new(Empty::new().boxed_unsync());
    *response.status_mut() = status;
    response
}

/// Several servers.
#[derive(Clone)]
pub(crate) struct Fleet(Arc<[Arc<Server>]>);

impl Fleet {
    /// Servers that work on `places` requests at once, over HTTP/1.1.
    pub(crate) fn new(servers: usize, places: usize, manner: &Manner) -> Self {
        Self::of(servers, places, manner, Wire::Http1, None)
    }

    /// Servers that answer with `handler`.
    pub(crate) fn with(servers: usize, wire: Wire, handler: Handler) -> Self {
        Self::of(servers, 1, &Manner::default(), wire, Some(handler))
    }

    pub(crate) fn of(servers: usize, places: usize, manner: &Manner, wire: Wire, handler: Option<Handler>) -> Self {
        let server = |index| Server {
            index,
            manner: Mutex::new(manner.clone()),
            places: Semaphore::new(places),
            in_hand: AtomicUsize::new(0),
            load: Arc::new(ServedLoad::new(Instant::now())),
            random: Mutex::new(fastrand::Rng::with_seed(fastrand::u64(..))),
            handler: handler.clone(),
            wire,
            seen: AtomicU64::new(0),
            connects: AtomicU64::new(0),
            open: Arc::default(),
            lines: Mutex::default(),
            silent: Mutex::default(),
            recycle: watch::channel(()).0,
        };
        Self((0..servers).map(|index| Arc::new(server(index))).collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn server(&self, index: usize) -> &Arc<Server> {
        &self.0[index]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Server>> {
        self.0.iter()
    }

    pub(crate) fn seen(&self) -> Vec<u64> {
        self.iter().map(|server| server.seen()).collect()
    }

    /// Connections open to all of them.
    pub(crate) fn open(&self) -> usize {
        self.iter().map(|server| server.open()).sum()
    }

    /// One of the addresses of a server: it has many.
    pub(crate) fn address(&self, index: usize, alias: usize) -> SocketAddr {
        let number = (alias * self.len() + index) as u32 + 1;
        SocketAddr::from(((0x0a00_0000 + number).to_be_bytes(), 80))
    }

    pub(crate) fn endpoint(&self, index: usize) -> Endpoint {
        Endpoint::new(Address::Socket(self.address(index, 0)))
    }

    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        (0..self.len()).map(|index| self.endpoint(index)).collect()
    }

    /// The way to the servers.
    pub(crate) fn connect(&self, address: &Address) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        let Address::Socket(SocketAddr::V4(address)) = address else { panic!("{address} is none of the fleet's") };
        let number = u32::from(*address.ip()) - 0x0a00_0001;
        Box::pin(self.server(number as usize % self.len()).clone().take())
    }
}
