//! Tries side by side (Envoy `hedge_policy`): several at the start, or a further one beside a try that takes
//! too long. The first good answer wins; the others are dropped, and with them what they hold.
//!
//! All of them run in the request's own future. A try needs the whole body for itself, so a body that is still
//! being streamed is not hedged. Every try beyond the first counts as a retry to breakers and budget.

use std::future::pending;
use std::pin::pin;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::{HeaderMap, Response};
use mesh_core::policy::HedgePolicy;
use mesh_core::retry::is_failure;
use tokio::time::{Instant, sleep_until};

use super::attempt::{Failed, Progress, Resends, Shared};
use super::exchange::{Exchange, Hold};
use super::head::Head;
use super::tries::{Outcome, give_up, within};
use crate::body::Incoming;
use crate::cluster::Retrying;
use crate::error::Cause;
use crate::router::Retries;

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
    shared: &Shared<'_>,
    policy: &HedgePolicy,
    head: &mut Head,
    exchange: &mut Exchange,
) -> Outcome {
    shared.payload.read_ahead();
    let head = &*head;
    let fly = |launch: Hold, resends| fly(shared, head.copy(), launch, resends);
    let mut race = Race { shared, exchange, progress: Progress::default(), again: None };
    let mut flying = FuturesUnordered::new();
    let additional = policy.additional_request.hit(shared.env.draw_million());
    let wanted = (policy.initial_requests as usize).saturating_add(usize::from(additional)).min(MAX_FLYING);
    flying.push(fly(shared.launch(&mut race.progress, race.exchange, None)?, Resends::default()));
    while flying.len() < wanted
        && let Some(more) = race.beside()
    {
        flying.push(fly(more, Resends::default()));
    }
    let patience = shared.retries.filter(|retries| retries.hedges_on_timeout()).and_then(Retries::per_try_timeout);
    let late = || patience.and_then(|patience| Instant::now().checked_add(patience));
    let mut beside = late();
    loop {
        let mut landed = tokio::select! {
            biased;
            Some(landed) = flying.next() => landed,
            again = due(race.again.as_ref().map(|again| again.at), beside) => {
                if !again {
                    beside = None;
                }
                match if again { race.again() } else { Ok(race.late(flying.len())) } {
                    Ok(Some(more)) => {
                        flying.push(fly(more, Resends::default()));
                        beside = late();
                    }
                    Err(cause) if flying.is_empty() => return Err(cause),
                    Ok(None) | Err(_) => {}
                }
                continue;
            }
        };
        let alone = flying.is_empty();
        race.exchange.over(landed.seen);
        if let Err(Failed { cause: cause @ (Cause::Timeout(_) | Cause::Deadline), .. }) = &landed.outcome {
            // The time of all is over, and this one was under way: what others waited for is not why.
            return Err(cause.clone());
        }
        if let Some(more) = race.once_more(&mut landed, alone) {
            flying.push(fly(more, landed.resends));
            continue;
        }
        let outcome = landed.outcome.map_err(|failed| failed.cause);
        // Others may still do better than this one, if it is no good.
        let others = !alone || race.again.is_some();
        let early = outcome.as_ref().ok().and_then(|(_, hold)| hold.attempt.early());
        let give_up = |(response, hold)| give_up(response, hold);
        match shared.retry_for(outcome.as_ref().map(|(response, _)| response), early) {
            None if others && is_bad(shared, &outcome) => outcome.into_iter().for_each(give_up),
            None => return race.stands(outcome, "-"),
            Some(retries) if race.after(retries, headers(&outcome), flying.len()) => {
                outcome.into_iter().for_each(give_up);
            }
            Some(_) if others => outcome.into_iter().for_each(give_up),
            Some(_) => {
                shared.trace.spend();
                let flags = if race.progress.retried >= shared.attempts { "URX" } else { "-" };
                return race.stands(outcome, flags);
            }
        }
    }
}

/// Whether an outcome that is not tried again should give way to others: a failure, and without a retry policy
/// (which would have named it) an answer that says so.
fn is_bad(shared: &Shared<'_>, outcome: &Answered) -> bool {
    let Ok((response, hold)) = outcome else { return true };
    shared.attempts == 0 && is_failure(&[], response.status(), hold.attempt.early())
}

fn headers(outcome: &Answered) -> Option<&HeaderMap> {
    outcome.as_ref().ok().map(|(response, _)| response.headers())
}

/// An answer with what it holds, for there may be several; or none.
type Answered = Result<(Response<Incoming>, Hold), Cause>;

/// A try after one that failed, paid for and with its place among the retries.
struct Next {
    at: Instant,
    retrying: Retrying,
}

/// Waits for what is due next: whether that is a try after one that failed, and not one beside a slow one.
async fn due(again: Option<Instant>, beside: Option<Instant>) -> bool {
    let (at, is_again) = match (again, beside) {
        (Some(again), Some(beside)) => (again.min(beside), again <= beside),
        (Some(again), None) => (again, true),
        (None, Some(beside)) => (beside, false),
        (None, None) => pending().await,
    };
    sleep_until(at).await;
    is_again
}

/// A try that has come to its end.
struct Landed {
    outcome: Result<(Response<Incoming>, Hold), Failed>,
    resends: Resends,
    // Retries before it.
    number: u32,
    // The endpoint may have seen it.
    seen: bool,
}

/// One try up to the head of its answer.
async fn fly(shared: &Shared<'_>, mut head: Head, mut launch: Hold, resends: Resends) -> Landed {
    let (mut again, number) = (None, launch.number);
    let outcome = {
        let work = pin!(async {
            shared.fly(&mut launch, &mut head).await.map_err(|failed| {
                again = failed.again;
                failed.cause
            })
        });
        let policy = shared.retries;
        // A try whose time is over goes on beside the next, if so the policy says.
        let time = policy.filter(|retries| !retries.hedges_on_timeout()).and_then(Retries::per_try_timeout);
        let work = within(time, policy.and_then(Retries::per_try_idle), shared.payload, work);
        // With the request's own time as well, for only here it is known what it waited for then.
        shared.limit.bound(work).await
    };
    let seen = launch.is_seen();
    let outcome = match outcome {
        Ok(response) => Ok((response, launch)),
        Err(cause) => Err(Failed { cause: launch.ended_by(cause), again }),
    };
    Landed { outcome, resends, number, seen }
}

/// What decides about further tries.
struct Race<'r, 't> {
    shared: &'r Shared<'t>,
    exchange: &'r mut Exchange,
    progress: Progress,
    // One at a time: failures that fall into its wait are answered by it.
    again: Option<Next>,
}

impl Race<'_, '_> {
    /// One more, which holds this place among the retries.
    fn further(&mut self, retrying: Retrying) -> Result<Hold, Cause> {
        self.progress.retried += 1;
        self.progress.retrying = Some(retrying);
        let launch = self.shared.launch(&mut self.progress, self.exchange, None);
        launch.inspect_err(|_| self.progress.retried -= 1)
    }

    /// One more beside others, if body, breaker and budget allow it.
    fn beside(&mut self) -> Option<Hold> {
        let retrying = self.shared.payload.is_at_hand().then(|| self.shared.retrying())??;
        let launch = self.further(retrying).ok()?;
        self.shared.charge();
        Some(launch)
    }

    /// One more beside a try that takes too long, if the policy has one left that is not promised yet.
    fn late(&mut self, flying: usize) -> Option<Hold> {
        let spent = self.progress.retried + u32::from(self.again.is_some());
        let left = spent < self.shared.attempts && (1..MAX_FLYING).contains(&flying);
        if left { self.beside() } else { None }
    }

    /// The one that was decided on after a failure.
    fn again(&mut self) -> Result<Option<Hold>, Cause> {
        let next = self.again.take();
        next.map(|next| self.further(next.retrying)).transpose()
    }

    /// The same once more, if nobody has seen it or most likely nobody has.
    fn once_more(&mut self, landed: &mut Landed, alone: bool) -> Option<Hold> {
        let again = landed.outcome.as_ref().err()?.again?;
        let shared = self.shared;
        if !self.can_go_again(alone) || !shared.goes_again(again, &mut landed.resends, &mut self.progress) {
            return None;
        }
        let retried = std::mem::replace(&mut self.progress.retried, landed.number);
        let launch = shared.launch(&mut self.progress, self.exchange, Some(again));
        self.progress.retried = retried;
        // Where there is no other place to go, what happened at the first one is worth more than that.
        launch.ok()
    }

    /// Whether the body can be sent once more, without taking it from a try under way.
    fn can_go_again(&self, alone: bool) -> bool {
        self.shared.payload.is_at_hand() || (alone && self.shared.payload.rewind())
    }

    /// Whether there will be a try after this outcome: if so it has its place, and the budget is charged.
    fn after(&mut self, retries: &Retries, headers: Option<&HeaderMap>, flying: usize) -> bool {
        let most = self.progress.retried >= self.shared.attempts || flying >= MAX_FLYING;
        if most || self.again.is_some() {
            return false;
        }
        let Some(wait) = self.shared.wait(retries, headers, &mut self.progress) else { return false };
        let retrying = self.shared.retrying().filter(|_| self.can_go_again(flying == 0));
        self.again = retrying.map(|retrying| Next { at: Instant::now() + wait, retrying });
        // Now, though another try may win meanwhile: of many that fail at once each would find room.
        self.again.iter().for_each(|_| self.shared.charge());
        self.again.is_some()
    }

    /// The outcome is the request's.
    fn stands(self, outcome: Answered, flags: &'static str) -> Outcome {
        let (response, hold) = outcome?;
        // Another try may have been begun after this one.
        self.exchange.at(&hold.endpoint);
        self.exchange.hold(hold);
        self.exchange.flag(flags);
        Ok(response)
    }
}
