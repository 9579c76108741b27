//! A closed loop of requests, and what it cost.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use crate::Error;

/// Sends one request at a time and reads the whole answer.
pub(crate) trait Worker: Send {
    /// One exchange.
    fn exchange(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), Error>>;
}

/// As many requests in flight as there are workers.
pub(crate) type Workers = Vec<Box<dyn Worker>>;

/// What one run measured.
pub(crate) struct Sample {
    pub(crate) requests_per_second: f64,
    /// CPU nanoseconds of the whole process for one request.
    pub(crate) cpu_per_request: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Nanoseconds that threads of the process were ready and had no CPU: how much else the machine did.
    pub(crate) kept_waiting: u64,
}

/// Keeps all workers busy for `time`.
pub(crate) async fn run(workers: &mut Workers, time: Duration) -> Result<Sample, Error> {
    let before = Scheduled::now()?;
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for worker in workers.drain(..) {
        tasks.spawn(one(worker, started, time));
    }
    let mut all = Histogram::<u64>::new(3)?;
    while let Some(done) = tasks.join_next().await {
        let (worker, latency) = done??;
        workers.push(worker);
        all.add(latency)?;
    }
    let elapsed = started.elapsed().as_secs_f64();
    let after = Scheduled::now()?;
    let requests = all.len() as f64;
    Ok(Sample {
        requests_per_second: requests / elapsed,
        cpu_per_request: (after.cpu - before.cpu) as f64 / requests,
        p50: all.value_at_quantile(0.5) as f64,
        p99: all.value_at_quantile(0.99) as f64,
        kept_waiting: after.kept_waiting - before.kept_waiting,
    })
}

async fn one(
    mut worker: Box<dyn Worker>,
    started: Instant,
    time: Duration,
) -> Result<(Box<dyn Worker>, Histogram<u64>), Error> {
    let mut latency = Histogram::new(3)?;
    let body = body();
    while started.elapsed() < time {
        let sent = Instant::now();
        worker.exchange(body.clone()).await?;
        latency.record(sent.elapsed().as_nanos() as u64)?;
    }
    Ok((worker, latency))
}

/// What every request carries: 100 bytes.
pub(crate) fn body() -> Bytes {
    Bytes::from_static(&[b'x'; 100])
}

/// What all threads had from the scheduler, nanoseconds (Linux: the first two fields of each thread's schedstat).
struct Scheduled {
    cpu: u64,
    kept_waiting: u64,
}

impl Scheduled {
    fn now() -> Result<Self, Error> {
        let mut all = Self { cpu: 0, kept_waiting: 0 };
        for task in std::fs::read_dir("/proc/self/task")? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            let mut fields = text.split(' ');
            all.cpu += fields.next().unwrap_or_default().parse::<u64>()?;
            all.kept_waiting += fields.next().unwrap_or_default().parse::<u64>()?;
        }
        Ok(all)
    }
}
