//! A closed loop of requests, and what it cost.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use crate::Error;

/// What threads that keep CPUs awake are called; what they use is no request's.
pub(crate) const SPINNER: &str = "spinner";

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
    /// CPU nanoseconds of other processes meanwhile.
    pub(crate) others: u64,
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
        cpu_per_request: (after.own - before.own) as f64 / requests,
        p50: all.value_at_quantile(0.5) as f64,
        p99: all.value_at_quantile(0.99) as f64,
        // Those that have ended took their account with them.
        others: after.others.saturating_sub(before.others),
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

/// CPU time, nanoseconds.
struct Scheduled {
    own: u64,
    /// Of all other processes: what else the machine does.
    others: u64,
}

impl Scheduled {
    fn now() -> Result<Self, Error> {
        let own = Path::new("/proc/self");
        let (this, mut others) = (std::process::id().to_string(), 0);
        for process in std::fs::read_dir("/proc")? {
            let process = process?;
            let name = process.file_name();
            if name.to_str().is_some_and(|name| name != this && name.bytes().all(|b| b.is_ascii_digit())) {
                // It may have ended meanwhile.
                others += of_threads(&process.path()).unwrap_or_default();
            }
        }
        Ok(Self { own: of_threads(own)?, others })
    }
}

/// What the scheduler gave all threads of a process (Linux: the first field of each one's schedstat), but for those that only
/// keep CPUs awake.
fn of_threads(process: &Path) -> Result<u64, Error> {
    let mut total = 0;
    for task in std::fs::read_dir(process.join("task"))? {
        let task = task?.path();
        if std::fs::read_to_string(task.join("comm"))?.trim_end() == SPINNER {
            continue;
        }
        let text = std::fs::read_to_string(task.join("schedstat"))?;
        total += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(total)
}
