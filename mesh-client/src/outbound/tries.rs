//! The tries of one request at one cluster, one after the other: which outcome is tried again, and when; of an aggregate at its
//! next part, where one has nobody to take the request.
//! Tries side by side are [`hedge`](super::hedge)'s.
//!
//! Refuses to know routes beyond the retry policy, and how one try is made.

use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Response, StatusCode};
use mesh_core::context::RETRIED;
use mesh_core::policy::Forward;
use mesh_core::retry::{FailureKind, Pushback, RetryTokens, TryOutcome, pushback, reset};
use tokio::time::{Instant, sleep, timeout};

use super::attempt::{Again, Failed, Progress, Resends, Shared};
use super::exchange::{Exchange, Hold};
use super::filters::Ticket;
use super::head::Head;
use super::places::Places;
use super::session::Session;
use super::{Call, deadline, hedge};
use crate::body::{Incoming, Payload};
use crate::cluster::{Backend, Members, Retrying};
use crate::connect::Needs;
use crate::error::Cause;
use crate::router::{Part, Plan, Retries, Router};

/// What came of a try. What an answer holds is the exchange's.
pub(super) type Outcome = Result<Response<Incoming>, Cause>;

/// Tries until an outcome stands. `part` becomes that of the last try: of an aggregate the next one serves where one has nobody
/// to take the request.
pub(super) async fn send<'r>(
    call: &mut Call<'_>,
    router: &Router,
    part: &mut Part<'r>,
    plan: &Plan,
    forward: &Forward,
    session: &Session<'_>,
    endpoint_host: bool,
) -> Outcome {
    let (mut members, budget) = (call.arrive(part.cluster).await?, router.budget());
    if let Some(budget) = budget {
        budget.record_request(call.now);
    }
    members.check_drops(part.cluster, call.env)?;
    call.mirror(plan, forward);
    part.look_again(Some(Needs::of(call.exchange.is_grpc())), call.env);
    let draw = || call.env.draw_million();
    let retries = plan.retry.as_ref();
    // Nobody retries for who is a retry itself: the tries of a chain of services would multiply.
    let may = !call.trace.is_retry() && retries.is_some_and(|retries| retries.concerns(|| call.head.view(&draw)));
    let (mut progress, mut left) = (Progress::default(), Vec::<&'r Backend>::new());
    loop {
        let Call { env, now, head, trace, payload, exchange, hash, .. } = &mut *call;
        let shared = Shared {
            places: Places { env, cluster: part.cluster, members, retries, session, hash: *hash },
            now: *now,
            trace,
            payload,
            grpc: exchange.is_grpc(),
            limit: exchange.limit(),
            told: plan.told.as_ref(),
            attempts: retries.filter(|_| may).map_or(0, |retries| retries.attempts(exchange.is_grpc())),
            endpoint_host,
            tokens: router.tokens(),
            budget,
            high_priority: plan.high_priority,
            part: *part,
            left: &left,
        };
        let outcome = match &forward.hedge {
            Some(policy) if hedge::applies(policy, &shared) => {
                // Boxed: requests that are not hedged are no larger for it.
                let outcome = Box::pin(hedge::send(&shared, policy, head, exchange)).await;
                let seen = exchange.is_seen();
                progress.goes_on = outcome.as_ref().is_err_and(|cause| !seen && shared.goes_on(cause, head));
                outcome
            }
            _ => one_by_one(&shared, &mut progress, head, exchange).await,
        };
        let next = if progress.goes_on { part.next(&left, env) } else { None };
        let Some(next) = next else {
            if let (Some(tokens), Ok(answer)) = (router.tokens(), &outcome) {
                shared.earn(tokens, answer, exchange);
            }
            return outcome;
        };
        progress = progress.elsewhere();
        left.push(part.cluster);
        *part = next;
        // As it was, and from now on: what was waited for is not the next one's time.
        call.head.again();
        call.now = Instant::now();
        call.goes_to(part.cluster);
        members = call.arrive(part.cluster).await?;
        members.check_drops(part.cluster, call.env)?;
    }
}

impl Call<'_> {
    /// Its endpoints, as soon as they are known.
    async fn arrive(&mut self, cluster: &Backend) -> Result<Arc<Members>, Cause> {
        if cluster.resolved().await {
            self.now = Instant::now();
        }
        // There may have been a delay, too: nothing goes out, copies neither, nor counts, for whom nobody waits.
        self.exchange.limit().check(self.now)?;
        Ok(cluster.members())
    }
}

async fn one_by_one(shared: &Shared<'_>, progress: &mut Progress, head: &mut Head, exchange: &mut Exchange) -> Outcome {
    loop {
        let outcome = one_in_time(shared, progress, head, exchange).await;
        let unmet = match &outcome {
            Err(cause) if shared.goes_on(cause, head) => {
                progress.goes_on = true;
                return outcome;
            }
            Err(Cause::PerTryTimeout(after)) if progress.unmet => Some((*after, Cause::PerTryTimeout(*after))),
            Err(Cause::IdleTimeout(after)) if progress.unmet => Some((*after, Cause::IdleTimeout(*after))),
            _ => None,
        };
        match shared.judge(outcome, progress, exchange) {
            ControlFlow::Continue(wait) => sleep(wait).await,
            ControlFlow::Break(answer) => return answer,
        }
        head.again();
        progress.retried += 1;
        // Whoever has not let a try in so far would have the next one wait as well.
        if let Some((after, cause)) = unmet
            && shared.leaves_part(progress, after)
        {
            progress.goes_on = true;
            return Err(cause);
        }
    }
}

/// Gives an answer up for another try.
pub(super) fn give_up(response: Response<Incoming>, hold: Hold) {
    // One that is read to its end already leaves its connection usable; another one closes it.
    if http_body::Body::is_end_stream(response.body()) {
        hold.release(response.into_body(), Instant::now());
    }
}

/// One try within its time.
async fn one_in_time(
    shared: &Shared<'_>,
    progress: &mut Progress,
    head: &mut Head,
    exchange: &mut Exchange,
) -> Outcome {
    // A soft limit, beyond which hedging adds a try, ends none.
    let hard = shared.retries.filter(|retries| !retries.hedges_on_timeout());
    let (time, idle) = (hard.and_then(Retries::per_try_timeout), shared.retries.and_then(Retries::per_try_idle));
    let outcome = {
        let work = pin!(one_and_again(shared, progress, head, exchange));
        match (time, idle) {
            (None, None) => work.await,
            // Boxed: tries without limits of their own are no larger for those that have some.
            _ => Box::pin(within(time, idle, shared.payload, work)).await,
        }
    };
    outcome.map_err(|cause| {
        // Its place and its connection are free for others, whatever comes of it.
        match exchange.let_go() {
            Some(mut hold) => {
                progress.unmet = !hold.is_seen();
                hold.ended_by(cause)
            }
            None => cause,
        }
    })
}

/// Runs a try within the time that the policy gives it.
pub(super) async fn within<T>(
    time: Option<Duration>,
    idle: Option<Duration>,
    payload: &Payload,
    work: Pin<&mut impl Future<Output = Result<T, Cause>>>,
) -> Result<T, Cause> {
    let work = deadline::unless_silent(idle, payload, work);
    match time {
        Some(after) => timeout(after, work).await.unwrap_or(Err(Cause::PerTryTimeout(after))),
        None => work.await,
    }
}

/// One try. If nobody has seen it, or most likely nobody has, once more: that is no retry of the policy's.
async fn one_and_again(
    shared: &Shared<'_>,
    progress: &mut Progress,
    head: &mut Head,
    exchange: &mut Exchange,
) -> Outcome {
    // Boxed: requests that are not sent again are no larger for it.
    let (mut resends, mut before) = (Resends::default(), None::<Box<(Cause, Again)>>);
    loop {
        // One statement, for what a launch leaves behind would be held while we wait.
        let hold = match shared.launch(progress, exchange, before.as_ref().map(|before| before.1)) {
            Ok(launch) => exchange.hold(launch),
            Err(cause @ (Cause::Deadline | Cause::Timeout(_))) => return Err(cause),
            // Where there is no other place to go, what happened at the first one is worth more than that.
            Err(cause) => return Err(before.map_or(cause, |before| before.0)),
        };
        let Failed { cause, again } = match shared.fly(hold, head).await {
            Ok(answer) => return Ok(answer),
            Err(failed) => failed,
        };
        match again {
            Some(again)
                if head.is_there() && shared.payload.rewind() && shared.goes_again(again, &mut resends, progress) =>
            {
                before = Some(Box::new((cause, again)));
            }
            _ => return Err(cause),
        }
        drop(exchange.let_go());
        head.again();
    }
}

impl<'t> Shared<'t> {
    /// Whether an outcome stands, or another try begins after a wait. Takes the outcome: an answer is given up before
    /// the wait, so that its connection and its place are free for others.
    fn judge(
        &self,
        outcome: Outcome,
        progress: &mut Progress,
        exchange: &mut Exchange,
    ) -> ControlFlow<Outcome, Duration> {
        let Some(retries) = self.retry_for(outcome.as_ref(), exchange.early()) else {
            return ControlFlow::Break(outcome);
        };
        match self.next(retries, outcome.as_ref().ok().map(Response::headers), progress) {
            Ok(wait) => {
                if let (Ok(response), Some(hold)) = (outcome, exchange.let_go()) {
                    give_up(response, hold);
                }
                ControlFlow::Continue(wait)
            }
            Err(flags) => {
                self.trace.spend();
                exchange.flag(flags);
                ControlFlow::Break(outcome)
            }
        }
    }

    /// The retry policy, if it asks for another try after this outcome. `early` is the gRPC status that came with the
    /// head of an answer: one without a body has it there.
    pub(super) fn retry_for(
        &self,
        outcome: Result<&Response<Incoming>, &Cause>,
        early: Option<i32>,
    ) -> Option<&'t Retries> {
        let retries = self.retries.filter(|_| self.attempts > 0)?;
        let outcome = match outcome {
            Ok(response) => answered(response, early),
            Err(cause) => TryOutcome::Failure(failure_kind(cause)),
        };
        if let Some(tokens) = self.tokens
            && self.is_costly(&outcome)
        {
            tokens.failed();
        }
        retries.rules.condition(&outcome, self.grpc).map(|_| retries)
    }

    /// Whether a try costs a token (gRFC A6): the policy names its outcome, or the server wants no further one. Nothing does
    /// where there are no retries.
    fn is_costly(&self, outcome: &TryOutcome<'_>) -> bool {
        let Some(retries) = self.retries.filter(|_| self.attempts > 0) else { return false };
        let stop = || {
            let TryOutcome::Answer { headers, .. } = outcome else { return false };
            self.grpc && pushback(headers) == Some(Pushback::Stop)
        };
        retries.rules.condition(outcome, self.grpc).is_some() || stop()
    }

    /// Counts the answer that stands (gRFC A6), whatever policy its method has: a call's status may still be to come.
    /// What has cost a token with its head is counted.
    fn earn(&self, tokens: &Arc<RetryTokens>, answer: &Response<Incoming>, exchange: &mut Exchange) {
        let (status, early) = (answer.status(), exchange.early());
        if self.is_costly(&answered(answer, early)) {
            return;
        }
        match early {
            None if self.grpc && status == StatusCode::OK => {
                let costly = self.retries.filter(|_| self.attempts > 0).map(|retries| retries.statuses);
                exchange.owe(Ticket::of_tokens(tokens, costly, exchange.started()));
            }
            early if status.as_u16() < 400 && early.is_none_or(|status| status == 0) => tokens.succeeded(),
            _ => {}
        }
    }

    /// How long to wait before one more try, if there may be one: attempts, a body that can be sent again, the
    /// answer's own word in its `headers`, time, breaker, budget; then the body goes back to its beginning, and last the
    /// budget is charged, for there will be a try.
    ///
    /// # Errors
    /// There may be none: the response flags that say why.
    fn next(
        &self,
        retries: &Retries,
        headers: Option<&HeaderMap>,
        progress: &mut Progress,
    ) -> Result<Duration, &'static str> {
        if progress.retried >= self.attempts {
            return Err("URX");
        }
        let replayable = Some(()).filter(|()| self.payload.can_be_sent_again());
        let wait = replayable.and_then(|()| self.wait(retries, headers, progress)).ok_or("-")?;
        let retrying = self.retrying().ok_or("UO")?;
        if !self.payload.rewind() {
            return Err("-");
        }
        self.charge();
        progress.retrying = Some(retrying);
        Ok(wait)
    }

    /// The wait before the next try: what the answer asks for, else the back-off. `None` if the answer forbids
    /// it, or if it could not begin before the deadline: then an answer is worth more than waiting for nothing.
    pub(super) fn wait(
        &self,
        retries: &Retries,
        headers: Option<&HeaderMap>,
        progress: &mut Progress,
    ) -> Option<Duration> {
        let mut draw = |below| self.env.draw(below);
        if headers.is_some_and(|headers| headers.contains_key(&RETRIED)) {
            // Those further down have had their tries.
            return None;
        }
        let told = headers.filter(|_| self.grpc).and_then(pushback);
        let limited = retries.policy.rate_limited.as_ref().zip(headers);
        let limited = limited.and_then(|(policy, headers)| reset(policy, headers, self.env.unix_time(), &mut draw));
        let wait = match (told, limited) {
            (Some(Pushback::Stop), _) => return None,
            (Some(Pushback::After(wait)), _) => {
                progress.waits = 0;
                wait
            }
            (None, Some(wait)) => wait,
            (None, None) => {
                progress.waits += 1;
                retries.backoff.delay(progress.waits - 1, &mut draw)
            }
        };
        let in_time = |at| Instant::now().checked_add(wait).is_some_and(|begin| begin < at);
        self.limit.at().is_none_or(in_time).then_some(wait)
    }

    /// A place for one more retry, if tokens, breaker and budget have one. Once it is sure that the try will be made, the
    /// budget is to be [charged](Self::charge).
    pub(super) fn retrying(&self) -> Option<Retrying> {
        if self.tokens.is_some_and(|tokens| !tokens.allows()) {
            return None;
        }
        let retrying = Retrying::within(self.cluster, self.high_priority)?;
        self.budget.is_none_or(|budget| budget.allows(Instant::now())).then_some(retrying)
    }

    /// Takes a retry out of the budget.
    pub(super) fn charge(&self) {
        self.budget.iter().for_each(|budget| budget.record_retry(Instant::now()));
    }
}

/// How they see an answer, with the gRPC status of its head.
fn answered(response: &Response<Incoming>, grpc_status: Option<i32>) -> TryOutcome<'_> {
    TryOutcome::Answer { status: response.status(), headers: response.headers(), grpc_status }
}

/// How the retry rules see a failure.
fn failure_kind(cause: &Cause) -> FailureKind {
    match cause {
        cause if cause.is_unreached() => FailureKind::ConnectFailed,
        Cause::StreamRefused { .. } => FailureKind::Refused,
        Cause::ConnectionLost { sent: false, .. } => FailureKind::ResetBeforeRequest,
        Cause::ConnectionLost { sent: true, .. } => FailureKind::Reset,
        Cause::Queued { last, .. } => failure_kind(last),
        Cause::PerTryTimeout(_) | Cause::IdleTimeout(_) => FailureKind::PerTryTimeout,
        _ => FailureKind::Local,
    }
}
