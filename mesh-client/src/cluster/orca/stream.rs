//! One endpoint's stream of reports (`xds.service.orca.v3.OpenRcaService/StreamCoreMetrics`), begun again with growing
//! waits for as long as the endpoint is there. Refuses to know who else is listened to.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt;
use mesh_core::orca::{self, Frames};
use mesh_core::policy::WeightedRoundRobin;
use mesh_core::retry::{Backoff, grpc_status};
use tokio::time::{Instant, sleep};

use super::ask;
use crate::cluster::Endpoint;
use crate::connect::{Lease, Needs, Pool, Room};
use crate::env::Env;

/// gRPC's for connections.
const BACKOFF: Backoff = Backoff { base: Duration::from_secs(1), max: Duration::from_secs(120) };
/// gRPC's UNIMPLEMENTED.
const UNIMPLEMENTED: i32 = 12;

/// How a stream ended.
enum End {
    /// The endpoint has no such service.
    Unknown(String),
    /// Anything else, for this reason.
    Broken(String),
}

/// Listens until the endpoint turns out not to have the service.
pub(super) async fn listen(endpoint: Arc<Endpoint>, own: Option<Pool>, settings: WeightedRoundRobin, env: Arc<Env>) {
    let pool = own.as_ref().unwrap_or(endpoint.pool());
    let mut failures = 0;
    loop {
        let mut heard = false;
        let end = follow(&endpoint, pool, &settings, &env, &mut heard).await;
        let endpoint = endpoint.address();
        match end {
            End::Unknown(why) => {
                tracing::warn!(%endpoint, why, "the endpoint streams no load reports: it keeps its configured weight");
                return;
            }
            End::Broken(why) => tracing::debug!(%endpoint, why, "the stream of load reports ended"),
        }
        failures = if heard { 0 } else { failures + 1 };
        sleep(BACKOFF.delay(failures, &mut |below| env.draw(below))).await;
    }
}

async fn follow(endpoint: &Endpoint, pool: &Pool, settings: &WeightedRoundRobin, env: &Env, heard: &mut bool) -> End {
    match try_follow(endpoint, pool, settings, env, heard).await {
        Ok(end) | Err(end) => end,
    }
}

async fn try_follow(
    endpoint: &Endpoint,
    pool: &Pool,
    settings: &WeightedRoundRobin,
    env: &Env,
    heard: &mut bool,
) -> Result<End, End> {
    let broken = |why: &dyn std::fmt::Display| End::Broken(why.to_string());
    let mut lease = pool
        .acquire(Needs::Http2, false, Instant::now(), Room::ANY, |_| Ok(()), &mut None)
        .await
        .map_err(|e| broken(&e))?;
    if let Lease::Sole(_) = lease {
        return Err(End::Unknown("it speaks HTTP/1.1 only".to_owned()));
    }
    let message = orca::frame(&orca::encode_request(settings.out_of_band_period));
    let request = ask::stream(endpoint, message).map_err(|e| broken(&e))?;
    let response = ask::send(pool, &mut lease, request).await.map_err(|e| broken(&e))?;
    let (head, mut body) = response.into_parts();
    // What has no gRPC status of its own has that of its HTTP status.
    if head.status != StatusCode::OK {
        let unknown = head.status == StatusCode::NOT_FOUND;
        let why = format!("answered {}", head.status);
        return Ok(if unknown { End::Unknown(why) } else { End::Broken(why) });
    }
    let mut status = grpc_status(&head.headers);
    let mut frames = Frames::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| broken(&e))?;
        if let Some(trailers) = frame.trailers_ref() {
            status = grpc_status(trailers).or(status);
        }
        frames.push(frame.data_ref().map_or(&[], |data| &data[..]));
        while let Some(message) = frames.next_message().map_err(|e| broken(&e))? {
            // One that cannot be read says nothing; the next one may.
            if let Some(report) = orca::decode(&message) {
                *heard = true;
                endpoint.load().report(&report, settings, env.since_epoch(Instant::now()));
            }
        }
    }
    let why = format!("gRPC status {}", status.unwrap_or(2));
    Ok(if status == Some(UNIMPLEMENTED) { End::Unknown(why) } else { End::Broken(why) })
}
