//! One endpoint's stream of reports (`xds.service.orca.v3.OpenRcaService/StreamCoreMetrics`), begun again with growing
//! waits for as long as the endpoint is there, and over another connection where that one is not to be used any more.
//! Refuses to know who else is listened to.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt;
use mesh_core::orca::{self, Frames};
use mesh_core::policy::WeightedRoundRobin;
use mesh_core::retry::{Backoff, grpc_status};
use tokio::time::{Instant, sleep};

use super::{MUTE, ask};
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

/// Listens for as long as this is polled.
pub(super) async fn listen(endpoint: Arc<Endpoint>, own: Option<Pool>, settings: WeightedRoundRobin, env: Arc<Env>) {
    let pool = own.as_ref().unwrap_or(endpoint.pool());
    let (mut failures, mut told) = (0, false);
    loop {
        let mut heard = false;
        let end = follow(&endpoint, pool, &settings, &env, &mut heard).await;
        let endpoint = endpoint.address();
        let wait = match end {
            End::Unknown(why) => {
                if !told {
                    tracing::warn!(%endpoint, why, "the endpoint streams no load reports: it keeps its configured weight");
                }
                // Who answers there later on may have it.
                (failures, told) = (0, true);
                MUTE
            }
            End::Broken(why) => {
                tracing::debug!(%endpoint, why, "the stream of load reports ended");
                (failures, told) = if heard { (0, false) } else { (failures + 1, told) };
                BACKOFF.delay(failures, &mut |below| env.draw(below))
            }
        };
        sleep(wait).await;
    }
}

async fn follow(endpoint: &Endpoint, pool: &Pool, settings: &WeightedRoundRobin, env: &Env, heard: &mut bool) -> End {
    let acquired = pool.acquire(Needs::Http2, false, Instant::now(), Room::ANY, |_| Ok(()), &mut None).await;
    let lease = match acquired {
        Ok(lease) => lease,
        Err(cause) => return broken(cause),
    };
    let Lease::Shared(stream) = &lease else { return End::Unknown("it speaks HTTP/1.1 only".to_owned()) };
    let connection = stream.connection.clone();
    tokio::select! {
        biased;
        Ok(end) | Err(end) = read(endpoint, pool, lease, settings, env, heard) => end,
        // Open, it would hold up a server that leaves until that is killed, and keep what is too old beside what has its place.
        why = connection.retires() => {
            pool.discard(&connection);
            broken(why)
        }
    }
}

/// Asks, and takes over what is said, to the stream's end.
async fn read(
    endpoint: &Endpoint,
    pool: &Pool,
    mut lease: Lease,
    settings: &WeightedRoundRobin,
    env: &Env,
    heard: &mut bool,
) -> Result<End, End> {
    let message = orca::frame(&orca::encode_request(settings.out_of_band_period));
    let request = ask::stream(endpoint, message).map_err(broken)?;
    let response = ask::send(pool, &mut lease, request).await.map_err(broken)?;
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
        let frame = frame.map_err(broken)?;
        if let Some(trailers) = frame.trailers_ref() {
            status = grpc_status(trailers).or(status);
        }
        frames.push(frame.data_ref().map_or(&[], |data| &data[..]));
        while let Some(message) = frames.next_message().map_err(broken)? {
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

fn broken(why: impl Display) -> End {
    End::Broken(why.to_string())
}
