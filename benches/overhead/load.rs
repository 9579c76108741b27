//! A closed loop of requests, and what it cost.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, try_join_all};
use hdrhistogram::Histogram;

use crate::Error;

/// One side of the comparison: something that can make workers.
pub trait Side: Send + Sync {
    /// A worker: has a way of its own to send one request at a time.
    fn worker(&self) -> BoxFuture<'_, Result<Box<dyn Worker>, Error>>;
}

/// Sends one request and reads the whole answer.
pub trait Worker: Send {
    /// One exchange.
    fn exchange(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), Error>>;
}

/// What one run measured.
pub struct Sample {
    pub requests_per_second: f64,
    /// CPU nanoseconds of the whole process for one request.
    pub cpu_per_request: f64,
    pub p50: f64,
    pub p99: f64,
}

/// Keeps `in_flight` requests going for `time`.
pub async fn run(side: &dyn Side, in_flight: usize, time: Duration) -> Result<Sample, Error> {
    let mut workers = Vec::new();
    for _ in 0..in_flight {
        workers.push(side.worker().await?);
    }
    let body = Bytes::from(vec![b'x'; 100]);
    let cpu = cpu_nanos()?;
    let started = Instant::now();
    let tasks = workers.into_iter().map(|mut worker| {
        let body = body.clone();
        tokio::spawn(async move {
            let mut latency = Histogram::<u64>::new(3)?;
            while started.elapsed() < time {
                let sent = Instant::now();
                worker.exchange(body.clone()).await?;
                latency.record(sent.elapsed().as_nanos() as u64)?;
            }
            Ok::<_, Error>(latency)
        })
    });
    let mut all = Histogram::<u64>::new(3)?;
    for latency in try_join_all(tasks).await? {
        all.add(latency?)?;
    }
    let elapsed = started.elapsed().as_secs_f64();
    let cpu = cpu_nanos()? - cpu;
    let requests = all.len() as f64;
    Ok(Sample {
        requests_per_second: requests / elapsed,
        cpu_per_request: cpu as f64 / requests,
        p50: all.value_at_quantile(0.5) as f64,
        p99: all.value_at_quantile(0.99) as f64,
    })
}

/// CPU time of all threads, nanoseconds (Linux: the first field of each thread's schedstat).
fn cpu_nanos() -> Result<u64, Error> {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        total += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(total)
}
