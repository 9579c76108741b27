//! Whoever makes calls, and what came of many of them.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh::{Body, Mesh};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

use crate::grpc;
use crate::world::{PATIENCE, eventually};

/// Makes one call at a time.
pub(crate) trait Caller: Send + 'static {
    /// One call: the answer, or what went wrong.
    fn call(&mut self, metadata: &[(&str, &str)]) -> impl Future<Output = Result<String, String>> + Send;

    /// So many calls, one after the other.
    async fn calls(&mut self, calls: u32, metadata: &[(&str, &str)]) -> Report {
        let mut report = Report::default();
        for _ in 0..calls {
            match self.call(metadata).await {
                Ok(answer) => *report.answers.entry(answer).or_default() += 1,
                Err(error) => *report.errors.entry(error).or_default() += 1,
            }
        }
        report
    }

    /// Calls until so many in a row are answered with `answer`.
    async fn becomes(&mut self, in_a_row: u32, metadata: &[(&str, &str)], answer: &str) {
        let mut last = Report::default();
        let wanted = Report::all(in_a_row, answer);
        let patience = Instant::now() + PATIENCE;
        while last != wanted {
            assert!(Instant::now() < patience, "{metadata:?} is not answered by {answer} alone: {last:?}");
            last = self.calls(in_a_row, metadata).await;
            tokio::task::yield_now().await;
        }
    }
}

/// What came of a number of calls.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct Report {
    /// How often each answer came.
    pub(crate) answers: BTreeMap<String, u32>,
    /// How often each failure was seen.
    pub(crate) errors: BTreeMap<String, u32>,
}

impl Report {
    /// Every call was answered with `answer`.
    pub(crate) fn all(calls: u32, answer: &str) -> Self {
        Self { answers: BTreeMap::from([(answer.to_owned(), calls)]), errors: BTreeMap::new() }
    }

    /// How often an answer came that begins so.
    pub(crate) fn from(&self, beginning: &str) -> u32 {
        self.answers.iter().filter(|(answer, _)| answer.starts_with(beginning)).map(|(_, count)| count).sum()
    }
}

/// Calls over one plaintext connection, as a process beside a proxy does.
pub(crate) struct Direct {
    sender: SendRequest<Full<Bytes>>,
    origin: String,
    connection: AbortHandle,
}

impl Direct {
    pub(crate) async fn open(address: SocketAddr, authority: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Self { sender, origin: format!("http://{authority}"), connection }
    }
}

impl Caller for Direct {
    async fn call(&mut self, metadata: &[(&str, &str)]) -> Result<String, String> {
        let request = grpc::request(&self.origin, metadata);
        self.sender.ready().await.map_err(|error| error.to_string())?;
        let response = self.sender.send_request(request).await.map_err(|error| error.to_string())?;
        grpc::read(response).await
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Calls through our client.
pub(crate) struct Member {
    pub(crate) mesh: Mesh,
    pub(crate) origin: &'static str,
}

impl Caller for Member {
    async fn call(&mut self, metadata: &[(&str, &str)]) -> Result<String, String> {
        let request: http::Request<Body> = grpc::request(self.origin, metadata);
        let response = self.mesh.client().send(request).await.map_err(|error| error.to_string())?;
        grpc::read(response).await
    }
}

/// One call after the other until it is told to stop.
pub(crate) struct Load<C> {
    name: &'static str,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    task: JoinHandle<(C, Report)>,
}

impl<C: Caller> Load<C> {
    pub(crate) fn begin(name: &'static str, caller: C) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let task = tokio::spawn(work(caller, stop.clone(), done.clone()));
        Self { name, stop, done, task }
    }

    /// Waits until `count` more calls are done.
    pub(crate) async fn more(&self, count: usize) {
        let until = self.done() + count;
        eventually("the load goes on", async || (self.done() >= until).then_some(())).await;
    }

    /// How many calls are done.
    pub(crate) fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// Ends it and gives the caller back.
    pub(crate) async fn end(self) -> (C, Report) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }

    /// Ends it, puts what came of it among the others' and gives the caller back.
    pub(crate) async fn told(self, reports: &mut BTreeMap<&'static str, Report>) -> C {
        let name = self.name;
        let (caller, report) = self.end().await;
        reports.insert(name, report);
        caller
    }

    /// Ends it and gives the caller back; fails if any call failed.
    pub(crate) async fn all_well(self) -> C {
        let name = self.name;
        let (caller, report) = self.end().await;
        assert!(report.errors.is_empty(), "{name}: {report:#?}");
        caller
    }
}

async fn work<C: Caller>(mut caller: C, stop: Arc<AtomicBool>, done: Arc<AtomicUsize>) -> (C, Report) {
    let mut report = Report::default();
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !stop.load(Ordering::Relaxed) {
        pace.tick().await;
        match caller.call(&[]).await {
            Ok(answer) => *report.answers.entry(answer).or_default() += 1,
            Err(error) => *report.errors.entry(error).or_default() += 1,
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    (caller, report)
}
