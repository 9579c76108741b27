//! One probe: what an endpoint says of its load, over the connections that requests use and within their limits.
//! Refuses to know whom to probe, and what for.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use mesh_core::balance::EndpointReport;
use mesh_core::orca;
use mesh_core::policy::Address;
use tokio::time::{Instant, timeout};

use super::ask;
use crate::cluster::Endpoint;
use crate::connect::{Lease, Needs, Room};

/// Bytes of an answer that are read, so that its connection can be used again.
const MAX_ANSWER: usize = 16 * 1024;

/// What came of a probe.
pub(super) struct Probed {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) heard: Heard,
}

/// What the endpoint said.
pub(super) enum Heard {
    Report(EndpointReport),
    /// It answered, and not with a report: it knows no probes.
    Nothing,
    /// No answer in time, or no connection to spare.
    Silence,
}

/// Asks once.
pub(super) async fn probe(endpoint: Arc<Endpoint>, room: Room, patience: Duration) -> Probed {
    let heard = timeout(patience, ask(&endpoint, room)).await.ok().flatten().unwrap_or(Heard::Silence);
    Probed { endpoint, heard }
}

async fn ask(endpoint: &Endpoint, room: Room) -> Option<Heard> {
    let pool = endpoint.pool();
    // Whoever has to wait for a connection learns that the endpoint is busy; and requests come first.
    let room = Room { patience: Some(Duration::ZERO), ..room };
    let mut lease = pool.acquire(Needs::Nothing, false, Instant::now(), room, |_| Ok(()), &mut None).await.ok()?;
    let request = ask::probe(endpoint, lease.is_http2()).ok()?;
    let response = ask::send(pool, &mut lease, request).await.ok()?;
    let report = orca::read(response.headers());
    let mut body = response.into_body();
    // One that is too long is not worth its connection.
    let whole = Limited::new(&mut body, MAX_ANSWER).collect().await.is_ok();
    if let (true, Lease::Sole(connection)) = (whole, lease) {
        pool.release(connection, body, Instant::now());
    }
    Some(heard(report))
}

fn heard(report: Option<EndpointReport>) -> Heard {
    report.filter(|report| report.in_flight.is_some()).map_or(Heard::Nothing, Heard::Report)
}

/// Where it went.
impl Probed {
    pub(super) fn address(&self) -> &Address {
        self.endpoint.address()
    }
}
