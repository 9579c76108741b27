//! Copies of a request for other clusters (Envoy `request_mirror_policies`): each is sent once, beside the
//! request and never waited for, and its answer is read and dropped. It counts in the metrics and the limits
//! of its own cluster.
//!
//! A copy needs the whole body. What is at hand at the start (anything in memory, a unary call) is copied at
//! once; what is streamed is copied when the request was answered, if all of it was small enough to be kept
//! for a retry by then. Larger bodies are not copied: nothing slows the request down for them.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use mesh_core::policy::{Forward, Mirror};
use tokio::time::Instant;

use super::Call;
use super::attempt::{Progress, Shared};
use super::deadline::Deadline;
use super::exchange::Exchange;
use super::head::Head;
use super::places::Places;
use super::session::Session;
use super::trace::Trace;
use crate::body::{Body, Payload};
use crate::cluster::Backend;
use crate::connect::Needs;
use crate::destination::Destination;
use crate::env::Env;
use crate::error::Cause;
use crate::router::{Part, Plan, Slot};

/// Time for a copy on a route without a timeout (Envoy's default for routes).
const TIMEOUT: Duration = Duration::from_secs(15);

/// A copy to be sent.
pub(super) struct Copy {
    env: Arc<Env>,
    cluster: Backend,
    destination: Arc<Destination>,
    head: Head,
    trace: Trace,
    grpc: bool,
    hash: Option<u64>,
    timeout: Duration,
}

/// The copies that the route wants of this request, as it is about to be sent.
pub(super) fn copies(call: &Call<'_>, plan: &Plan, forward: &Forward) -> Vec<Copy> {
    let wanted = forward.mirrors.iter().zip(&plan.mirrors);
    let wanted = wanted.filter(|(mirror, _)| mirror.share.hit(call.env.draw_million()));
    wanted.filter_map(|(mirror, slot)| Copy::new(call, mirror, slot, forward.timeout)).collect()
}

impl Copy {
    /// `None` if the cluster is not there.
    fn new(call: &Call<'_>, mirror: &Mirror, slot: &Slot, timeout: Option<Duration>) -> Option<Self> {
        let mut head = call.head.copy();
        if mirror.shadow_host {
            head.set_authority(&shadow(call.head.authority()));
        }
        let (part, grpc) = (slot.choose(call.env).ok()?, call.exchange.is_grpc());
        // There may be nobody else who passes over what is away there.
        part.look_again(Some(Needs::of(grpc)), call.env);
        Some(Self {
            env: call.env.clone(),
            cluster: part.cluster.clone(),
            destination: call.exchange.destination().clone(),
            head,
            trace: call.trace.of_copy(),
            grpc,
            hash: call.hash,
            timeout: timeout.filter(|timeout| !timeout.is_zero()).unwrap_or(TIMEOUT),
        })
    }

    /// Sends it and reads the answer to its end.
    pub(super) async fn send(self, payload: Payload) {
        let Self { env, cluster, destination, mut head, trace, grpc, hash, timeout } = self;
        let started = Instant::now();
        let mut exchange = Box::new(Exchange::new(destination, started, cluster.series().clone(), grpc, None));
        let limit = Deadline::none().route(started, timeout);
        exchange.set_deadline(limit);
        let session = Session::new(None, None, &head);
        let outcome = {
            let work = async {
                cluster.resolved().await;
                let members = cluster.members();
                members.check_drops(&cluster, &env)?;
                let shared = Shared {
                    places: Places { env: &env, cluster: &cluster, members, retries: None, session: &session, hash },
                    now: Instant::now(),
                    trace: &trace,
                    payload: &payload,
                    grpc,
                    limit,
                    told: None,
                    attempts: 0,
                    endpoint_host: false,
                    tokens: None,
                    budget: None,
                    high_priority: false,
                    part: Part::only(&cluster),
                    left: &[],
                };
                let launch = shared.launch(&mut Progress::default(), &mut exchange, None)?;
                shared.fly(exchange.hold(launch), &mut head).await.map_err(|failed| failed.cause)
            };
            limit.bound(pin!(work)).await
        };
        match outcome {
            Ok(response) => {
                exchange.answered(response.status(), response.headers());
                let mut body = Body::of(response.into_body(), exchange);
                while let Some(Ok(_)) = body.frame().await {}
            }
            Err(cause) => {
                // Counted; there is nobody to be told.
                let cause: Cause = cause;
                drop(exchange.give_up(cause));
            }
        }
    }
}

/// The authority of a copy, by which an endpoint tells it from a request.
fn shadow(authority: &str) -> String {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => format!("{host}-shadow:{port}"),
        _ => format!("{authority}-shadow"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_goes_before_the_port() {
        for (authority, want) in
            [("a.test", "a.test-shadow"), ("a.test:80", "a.test-shadow:80"), ("[::1]", "[::1]-shadow")]
        {
            assert_eq!(shadow(authority), want);
        }
    }
}
