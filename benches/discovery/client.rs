//! The client alone: what it costs to take a change, and what it holds.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use mesh::Client;
use mesh_discovery::xds::Variant;
use tokio::runtime::Runtime;

use crate::median;
use crate::memory::{Use, held, per_endpoint, request, routed};
use crate::plane::{Book, Size, World, address};
use crate::rows::Row;
use crate::{Error, Scale, cpu};

/// Every row of the client.
pub(crate) fn rows(runtime: &Runtime, scale: &Scale) -> Result<Vec<Row>, Error> {
    let mut rows = memory(scale)?;
    rows.extend(task(runtime, changes(*scale))?);
    rows.extend(task(runtime, large(*scale))?);
    rows.extend(task(runtime, tables(*scale, Variant::StateOfTheWorld))?);
    rows.extend(task(runtime, tables(*scale, Variant::Delta))?);
    Ok(rows)
}

/// Runs `work` as a task like those of the client: what a runtime's `block_on` polls itself is woken through the kernel,
/// which would cost more than what is measured.
fn task(
    runtime: &Runtime,
    work: impl Future<Output = Result<Vec<Row>, Error>> + Send + 'static,
) -> Result<Vec<Row>, Error> {
    runtime.block_on(runtime.spawn(work))?
}

/// Loading, and one change in a small world and a large one, in turn.
async fn changes(scale: Scale) -> Result<Vec<Row>, Error> {
    let large = Size { clusters: scale.clusters, endpoints: 10 };
    let book = Book::of(Variant::Delta, large)?;
    // One thread does it all: with nobody else on the machine this is the time it takes.
    let before = cpu::seconds()?;
    let mut large = World::load(Variant::Delta, large, book).await?;
    let loaded = cpu::seconds()? - before;
    let size = Size { clusters: 10, endpoints: 10 };
    let mut small = World::load(Variant::Delta, size, Book::of(Variant::Delta, size)?).await?;

    let (mut costs, mut ratios) = (Vec::new(), Vec::new());
    for pair in 0..scale.pairs {
        let (small, large) = if pair % 2 == 0 {
            let small = change(&mut small, scale.changes, None, None).await?;
            (small, change(&mut large, scale.changes, None, None).await?)
        } else {
            let large = change(&mut large, scale.changes, None, None).await?;
            (change(&mut small, scale.changes, None, None).await?, large)
        };
        costs.push(large);
        ratios.push(large / small);
    }
    let (mut alike, mut cold) = (Vec::new(), Vec::new());
    let mut others = vec![0; OTHERS];
    for pair in 0..scale.pairs {
        let few = (scale.changes / 10).max(10);
        let (small, large) = if pair % 2 == 0 {
            let small = change_among_others(&mut small, few, &mut others).await?;
            (small, change_among_others(&mut large, few, &mut others).await?)
        } else {
            let large = change_among_others(&mut large, few, &mut others).await?;
            (change_among_others(&mut small, few, &mut others).await?, large)
        };
        cold.push(large);
        alike.push(large / small);
    }
    drop(others);

    // The same with a client that has made every destination ready for requests.
    let client = Client::builder(large.client.clone()).max_destinations(scale.clusters).build();
    for n in 0..large.clusters() {
        client.explain(&request(n)?);
    }
    while !routed(&client, large.clusters() - 1)? {
        tokio::task::yield_now().await;
    }
    let mut routers = Vec::new();
    for _ in 0..scale.pairs {
        routers.push(change(&mut large, scale.changes, Some(&client), None).await?);
    }

    let mut repeats = Vec::new();
    for _ in 0..scale.pairs {
        repeats.push(repeat(&mut large, scale.changes).await?);
    }
    Ok(vec![
        Row::new("table_load", "s", loaded, 0.4),
        // The goals of a change are those of one that comes off a socket.
        Row::new("change", "us", median(costs), None),
        // Of changes one upon another, when ten clusters never leave the processor's first caches.
        Row::new("change_against_10_clusters", "ratio", median(ratios), None),
        Row::new("change_against_10_clusters_out_of_cache", "ratio", median(alike), None),
        // Time and not CPU, with the caches filled again: what it costs is memory's.
        Row::new("change_out_of_cache", "us", median(cold), None),
        Row::new("change_to_router", "us", median(routers), 30.0),
        // With its envelope, its acknowledgement, and the task switches between the bench and the client.
        Row::new("same_response_again", "us", median(repeats), 1.0),
    ])
}

/// A destination's router is built 16 times a second at most: each of its changes makes one after this long a rest.
const REST: Duration = Duration::from_millis(70);

/// CPU microseconds of one change, from its bytes to what requests find; with a `rest` after each. A client has just read
/// those bytes off its connection, so each change is read once more before it is sent, and that is not counted.
async fn change(
    world: &mut World,
    changes: usize,
    client: Option<&Client>,
    rest: Option<Duration>,
) -> Result<f64, Error> {
    let clusters = world.clusters();
    // Not one after the other, as the memory would like it.
    let at = |i: usize| (i * 7919 + 1) % clusters;
    let mut prepared = Vec::with_capacity(changes);
    for i in 0..changes {
        prepared.push(world.change(at(i))?);
    }
    let mut read = Vec::with_capacity(changes);
    let before = cpu::seconds()?;
    for bytes in &prepared {
        let start = Instant::now();
        let bytes = bytes.clone();
        read.push(start.elapsed().as_secs_f64());
        world.push([bytes]).await?;
        if client.is_some() {
            // The destination's task was woken by the publication, before the acknowledgement.
            tokio::task::yield_now().await;
        }
        if let Some(rest) = rest {
            tokio::time::sleep(rest).await;
        }
    }
    // The median of them, as the clock stands still for nobody: another process may have had the processor meanwhile.
    let cost = cpu::seconds()? - before - median(read) * changes as f64;
    let last = at(changes - 1);
    if !world.shows(last, world.revision()) {
        return Err("a change is acknowledged and not to be seen".into());
    }
    if let Some(client) = client {
        tokio::time::sleep(REST).await;
        if !explained(client, last)?.contains(&address(last, 0, world.revision()).to_string()) {
            return Err("a change is published and the client does not route by it".into());
        }
    }
    Ok(cost * 1e6 / changes as f64)
}

/// Bytes that the application is held to have used between two changes: more than a processor's caches hold.
const OTHERS: usize = 96 << 20;

/// Microseconds of one change as [`change`] makes it, the median of `changes`, when the application has used the
/// processor's caches for something else since the one before. So a world of any size is found in the same place, and
/// what is left to differ is what grows with it.
async fn change_among_others(world: &mut World, changes: usize, others: &mut [u8]) -> Result<f64, Error> {
    let clusters = world.clusters();
    let mut times = Vec::with_capacity(changes);
    for i in 0..changes {
        let bytes = world.change((i * 7919 + 1) % clusters)?;
        for line in others.iter_mut().step_by(64) {
            *line = line.wrapping_add(1);
        }
        std::hint::black_box(&mut *others);
        // A client has just read them off its connection.
        std::hint::black_box(bytes.clone());
        let start = Instant::now();
        world.push([bytes]).await?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(times))
}

/// CPU microseconds of one response with one resource that is as it was.
async fn repeat(world: &mut World, times: usize) -> Result<f64, Error> {
    let bytes = world.change(0)?;
    world.push([bytes.clone()]).await?;
    let mut state = world.states[0].clone();
    // Marks it seen.
    let _ = state.changed().now_or_never();
    let prepared = vec![bytes; times];
    let before = cpu::seconds()?;
    world.push(prepared).await?;
    let cost = cpu::seconds()? - before;
    if state.changed().now_or_never().is_some() {
        return Err("a repetition woke a reader".into());
    }
    Ok(cost * 1e6 / times as f64)
}

/// One change in one large cluster.
async fn large(scale: Scale) -> Result<Vec<Row>, Error> {
    let size = Size { clusters: 1, endpoints: scale.clusters };
    let mut world = World::load(Variant::Delta, size, Book::of(Variant::Delta, size)?).await?;
    let client = Client::builder(world.client.clone()).build();
    while !routed(&client, 0)? {
        tokio::task::yield_now().await;
    }
    let (changes, few) = ((scale.changes / 20).max(2), (scale.changes / 100).max(2));
    let (mut alone, mut routers) = (Vec::new(), Vec::new());
    for _ in 0..scale.pairs {
        routers.push(change(&mut world, few, Some(&client), Some(REST)).await? / 1e3);
    }
    drop(client);
    tokio::task::yield_now().await;
    for _ in 0..scale.pairs {
        alone.push(change(&mut world, changes, None, None).await? / 1e3);
    }
    Ok(vec![
        Row::new("change_of_10000_endpoints", "ms", median(alone), 12.0),
        Row::new("change_of_10000_endpoints_to_router", "ms", median(routers), 12.0),
    ])
}

/// The whole table once more: what one variant says every time, and the other after a restart of the control plane.
async fn tables(scale: Scale, variant: Variant) -> Result<Vec<Row>, Error> {
    let size = Size { clusters: scale.clusters, endpoints: 10 };
    let mut world = World::load(variant, size, Book::of(variant, size)?).await?;
    let (mut changed, mut same) = (Vec::new(), Vec::new());
    for _ in 0..scale.pairs {
        let pages = world.table(true)?;
        let before = cpu::seconds()?;
        world.push(pages).await?;
        changed.push((cpu::seconds()? - before) * 1e3);
        if !world.shows(0, world.revision()) {
            return Err("a change is acknowledged and not to be seen".into());
        }
        let pages = world.table(false)?;
        world.push(pages).await?;
        let mut states = world.states.clone();
        for state in &mut states {
            // Marks it seen.
            let _ = state.changed().now_or_never();
        }
        let pages = world.table(false)?;
        let before = cpu::seconds()?;
        world.push(pages).await?;
        same.push((cpu::seconds()? - before) * 1e6 / (4 * scale.clusters) as f64);
        if states.iter_mut().any(|state| state.changed().now_or_never().is_some()) {
            return Err("a repetition woke a reader".into());
        }
    }
    let names = match variant {
        Variant::StateOfTheWorld => ["table_again_one_changed", "same_resource_again"],
        Variant::Delta => ["table_again_one_changed_delta", "same_resource_again_delta"],
    };
    Ok(vec![Row::new(names[0], "ms", median(changed), 40.0), Row::new(names[1], "us", median(same), 1.0)])
}

fn explained(client: &Client, n: usize) -> Result<String, Error> {
    Ok(serde_json::to_string(&client.explain(&request(n)?))?)
}

/// Heap of the whole table, and by how much it grows with each endpoint.
fn memory(scale: &Scale) -> Result<Vec<Row>, Error> {
    let whole = held(Size { clusters: scale.clusters, endpoints: 10 }, Use::Nothing)?;
    let each = |share: usize, used| per_endpoint(scale.clusters / share, used);
    Ok(vec![
        Row::new("table_memory", "MB", whole / 1e6, 60.0),
        Row::new("memory_per_endpoint", "B", each(10, Use::Nothing)?, 128.0),
        Row::new("memory_per_endpoint_in_router", "B", each(10, Use::Routed)?, 128.0),
        Row::new("memory_per_endpoint_used", "B", each(100, Use::Requested)?, 512.0),
    ])
}
