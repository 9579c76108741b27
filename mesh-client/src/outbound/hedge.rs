//! Tries side by side (Envoy `hedge_policy`): several at the start, or a further one beside a try that takes
//! too long. The first good answer wins; the others are dropped, and with them what they hold.
//!
//! All of them run in the request's own future. A try needs the whole body for itself, so a body that is still
//! being streamed is not hedged. Every try beyond the first counts as a retry to breakers and budget.

use std::future::pending;
use std::pin::pin;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Response;
use hyper::body::Incoming;
use mesh_core::policy::HedgePolicy;
use mesh_core::retry::{grpc_status, is_failure};
use tokio::time::{Instant, sleep_until};

use super::attempt::{Again, Failed, Launch, Progress, Shared};
use super::exchange::{Exchange, Hold};
use super::head::Head;
use super::tries::{Outcome, give_up, stands, within};
use crate::error::Cause;
use crate::router::{Retries, Router};

/// Tries under way at once, at most (gRFC A6 allows as many in all).
const MAX_FLYING: usize = 5;

/// Whether there can be a second try at all.
pub(super) fn applies(policy: &HedgePolicy, shared: &Shared<'_>) -> bool {
    let more = policy.initial_requests > 1 || policy.additional_request.get() > 0;
    let later = policy.on_per_try_timeout && shared.attempts > 0;
    // A chain of services is not multiplied, and a strict session has one place to go.
    (more || later) && !shared.trace.is_retry() && !shared.session.is_strict()
}

/// Tries side by side until an outcome stands.
pub(super) async fn send(
    shared: Shared<'_>,
    policy: &HedgePolicy,
    head: &mut Head,
    exchange: &mut Exchange,
    router: &Router,
) -> Result<(Response<Incoming>, &'static str), Cause> {
    shared.payload.read_ahead();
    let head = &*head;
    let fly = |launch, resent| fly(&shared, head.copy(), launch, resent);
    let mut race = Race { shared: &shared, exchange, router, progress: Progress::default() };
    let mut flying = FuturesUnordered::new();
    let additional = policy.additional_request.hit(shared.env.draw_million());
    let wanted = (policy.initial_requests as usize).saturating_add(usize::from(additional)).min(MAX_FLYING);
    flying.push(fly(race.launch(None)?, false));
    while flying.len() < wanted
        && let Some(more) = race.beside()
    {
        flying.push(fly(more, false));
    }
    let patience = shared.retries.filter(|retries| retries.hedges_on_timeout()).and_then(Retries::per_try_timeout);
    let late = || patience.and_then(|patience| Instant::now().checked_add(patience));
    let mut next = Next { beside: late(), again: None };
    loop {
        let landed = tokio::select! {
            biased;
            Some(landed) = flying.next() => landed,
            again = next.due() => {
                match if again { race.again().map(Some) } else { Ok(race.late(flying.len())) } {
                    Ok(Some(more)) => {
                        flying.push(fly(more, false));
                        next.beside = late();
                    }
                    Err(cause) if flying.is_empty() => return Err(cause),
                    Ok(None) | Err(_) => {}
                }
                continue;
            }
        };
        let alone = flying.is_empty();
        let outcome = match landed {
            Landed { outcome: Err(Failed { again: Some(again), .. }), resent: false } if race.can_go_again(alone) => {
                match race.resend(again) {
                    Ok(more) => {
                        flying.push(fly(more, true));
                        continue;
                    }
                    Err(cause) => Err(cause),
                }
            }
            landed => landed.outcome.map_err(|failed| failed.cause),
        };
        // Others may still do better than this one, if it is no good.
        let others = !alone || next.again.is_some();
        match shared.retry_for(&outcome) {
            None if others && is_bad(&shared, &outcome) => outcome.into_iter().for_each(give_up),
            None => return race.stands(outcome, "-"),
            Some(retries) => match race.after(retries, &outcome, flying.len()) {
                Some(at) => {
                    next.again = Some(next.again.map_or(at, |other| other.min(at)));
                    outcome.into_iter().for_each(give_up);
                }
                None if others => outcome.into_iter().for_each(give_up),
                None => return race.stands(outcome, "URX"),
            },
        }
    }
}

/// Whether an outcome that is not tried again should give way to others: a failure, and without a retry policy
/// (which would have named it) an answer that says so.
fn is_bad(shared: &Shared<'_>, outcome: &Outcome) -> bool {
    let Ok((response, _)) = outcome else { return true };
    let grpc = if shared.grpc { grpc_status(response.headers()) } else { None };
    shared.attempts == 0 && is_failure(&[], response.status(), grpc)
}

/// When a further try begins.
struct Next {
    /// Beside one that takes too long.
    beside: Option<Instant>,
    /// After one that failed; paid for already.
    again: Option<Instant>,
}

impl Next {
    /// Waits for what is due next and takes it; whether it is a try after one that failed.
    async fn due(&mut self) -> bool {
        let (at, again) = match (self.beside, self.again) {
            (Some(beside), Some(again)) => (beside.min(again), again <= beside),
            (Some(beside), None) => (beside, false),
            (None, Some(again)) => (again, true),
            (None, None) => pending().await,
        };
        sleep_until(at).await;
        if again {
            self.again = None
        } else {
            self.beside = None
        }
        again
    }
}

/// A try that has come to its end.
struct Landed {
    outcome: Result<(Response<Incoming>, Hold), Failed>,
    // It was sent for the second time because nobody had seen it.
    resent: bool,
}

/// One try up to the head of its answer.
async fn fly(shared: &Shared<'_>, mut head: Head, launch: Launch, resent: bool) -> Landed {
    let mut again = None;
    let outcome = {
        let work = pin!(async {
            shared.fly(launch, &mut head).await.map_err(|failed| {
                again = failed.again;
                failed.cause
            })
        });
        let policy = shared.retries;
        // A try whose time is over goes on beside the next, if so the policy says.
        let time = policy.filter(|retries| !retries.hedges_on_timeout()).and_then(Retries::per_try_timeout);
        within(time, policy.and_then(Retries::per_try_idle), shared.payload, work).await
    };
    Landed { outcome: outcome.map_err(|cause| Failed { cause, again }), resent }
}

/// What decides about further tries.
struct Race<'r, 't> {
    shared: &'r Shared<'t>,
    exchange: &'r mut Exchange,
    router: &'r Router,
    progress: Progress,
}

impl Race<'_, '_> {
    fn launch(&mut self, fresh: Option<usize>) -> Result<Launch, Cause> {
        self.shared.launch(&mut self.progress, self.exchange, fresh)
    }

    /// One more beside others, if body, breaker and budget allow it.
    fn beside(&mut self) -> Option<Launch> {
        let allowed = self.shared.payload.is_at_hand() && self.shared.allows_retry(0, self.router);
        if !allowed {
            return None;
        }
        self.progress.retried += 1;
        self.launch(None).ok()
    }

    /// One more beside a try that takes too long, if the policy has one left.
    fn late(&mut self, flying: usize) -> Option<Launch> {
        let left = self.progress.retried < self.shared.attempts && flying < MAX_FLYING;
        if left { self.beside() } else { None }
    }

    /// One more after a failure; it is paid for.
    fn again(&mut self) -> Result<Launch, Cause> {
        self.progress.retried += 1;
        self.launch(None)
    }

    /// The same once more: nobody has seen it.
    fn resend(&mut self, again: Again) -> Result<Launch, Cause> {
        match again {
            Again::Fresh(index) => self.launch(Some(index)),
            Again::Elsewhere => self.launch(None),
        }
    }

    /// Whether the body can be sent once more, without taking it from a try under way.
    fn can_go_again(&self, alone: bool) -> bool {
        self.shared.payload.is_at_hand() || (alone && self.shared.payload.rewind())
    }

    /// When the try after this outcome begins; the budget is charged.
    fn after(&mut self, retries: &Retries, outcome: &Outcome, flying: usize) -> Option<Instant> {
        if self.progress.retried >= self.shared.attempts || flying >= MAX_FLYING {
            return None;
        }
        let wait = self.shared.wait(retries, outcome, &mut self.progress)?;
        let own = u32::from(outcome.is_ok() && self.progress.retried > 0);
        let allowed = self.shared.allows_retry(own, self.router) && self.can_go_again(flying == 0);
        allowed.then(|| Instant::now() + wait)
    }

    fn stands(self, outcome: Outcome, flags: &'static str) -> Result<(Response<Incoming>, &'static str), Cause> {
        if let Ok((_, hold)) = &outcome {
            // Another try may have been begun after this one.
            self.exchange.at(&hold.endpoint);
        }
        stands(outcome, self.exchange, flags)
    }
}
