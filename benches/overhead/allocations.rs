//! Heap allocations of one request, counted exactly: on a quiet machine or a busy one the number is the
//! same, so this is what a gate can lean on.

use futures_util::future::try_join_all;
use tokio::runtime::{Handle, Runtime};

use crate::load::{Workers, body};
use crate::runtime::{ServerThread, single};
use crate::{Error, Protocol, Side};

/// Requests counted; what happens once in a while is spread over them.
const REQUESTS: u32 = 500;

/// Allocations of one request.
pub(crate) struct Allocations {
    pub(crate) client: f64,
    pub(crate) server: f64,
}

/// Counts one request at a time of `side`. The counter is that of the calling thread.
pub(crate) fn of(side: Side, ca: &mesh_testkit::TestCa, protocol: Protocol) -> Result<Allocations, Error> {
    let elsewhere = ServerThread::start()?;
    let client = count(side, ca, protocol, Some(elsewhere.handle()))?;
    let both = count(side, ca, protocol, None)?;
    Ok(Allocations { client, server: both - client })
}

/// Many requests, both sides on the calling thread, or the server `apart`.
pub(crate) fn profile(
    side: Side,
    ca: &mesh_testkit::TestCa,
    protocol: Protocol,
    in_flight: usize,
    apart: bool,
) -> Result<(), Error> {
    let runtime = single()?;
    let elsewhere = if apart { Some(ServerThread::start()?) } else { None };
    let server = elsewhere.as_ref().map_or(runtime.handle(), ServerThread::handle);
    let (_guard, mut workers) = runtime.block_on(side.start(ca, protocol, in_flight, server))?;
    runtime.block_on(try_join_all(workers.iter_mut().map(|worker| worker.exchange(body()))))?;
    steady(&runtime, workers)
}

/// What a profiler should look at (`--toggle-collect='*steady*'`): everything is connected.
#[inline(never)]
fn steady(runtime: &Runtime, workers: Workers) -> Result<(), Error> {
    // Tasks, as when it is measured: none is polled because another was woken.
    let all = workers.into_iter().map(|worker| runtime.spawn(async move { exchanges(&mut vec![worker]).await }));
    let all = all.collect::<Vec<_>>();
    runtime.block_on(try_join_all(all))?.into_iter().collect()
}

fn count(side: Side, ca: &mesh_testkit::TestCa, protocol: Protocol, server: Option<&Handle>) -> Result<f64, Error> {
    let runtime = single()?;
    let server = server.unwrap_or(runtime.handle());
    let (_guard, mut workers) = runtime.block_on(side.start(ca, protocol, 1, server))?;
    runtime.block_on(exchanges(&mut workers))?;
    let mut result = Ok(());
    let counted = allocation_counter::measure(|| result = runtime.block_on(exchanges(&mut workers)));
    result?;
    Ok(counted.count_total as f64 / f64::from(REQUESTS))
}

async fn exchanges(workers: &mut Workers) -> Result<(), Error> {
    for worker in workers {
        for _ in 0..REQUESTS {
            worker.exchange(body()).await?;
        }
    }
    Ok(())
}
