//! The tries of one request at one cluster: which outcome is tried again, and how one try is made.
//!
//! Refuses to know routes beyond the retry policy.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use http::{Method, Response};
use hyper::body::Incoming;
use mesh_core::balance::Pick;
use mesh_core::policy::Address;
use mesh_core::retry::{FailureKind, TryOutcome, grpc_status};
use smallvec::SmallVec;
use tokio::time::{Instant, sleep, timeout};

use super::exchange::Hold;
use super::session::Session;
use super::{Call, deadline};
use crate::cluster::{Attempt, Cluster, Endpoint, Members, Permit};
use crate::connect::Lease;
use crate::error::{Cause, Source};
use crate::router::{Plan, Retries, Router};

/// The tries of one request.
struct Tries<'t> {
    cluster: &'t Arc<Cluster>,
    members: Arc<Members>,
    retries: Option<&'t Retries>,
    session: &'t Session<'t>,
    endpoint_host: bool,
    high_priority: bool,
    // Indices of the members tried.
    tried: SmallVec<[usize; 4]>,
    // Retries made.
    retried: u32,
}

/// A try that came to nothing.
struct Failed {
    cause: Cause,
    // The member at which the request may be sent once more whatever the policy: its connection had
    // carried requests before and was closed before this one could have done anything.
    stale: Option<usize>,
}

impl From<Cause> for Failed {
    fn from(cause: Cause) -> Self {
        Self { cause, stale: None }
    }
}

/// Tries until an outcome stands. Gives the answer and its response flags.
pub(super) async fn send(
    call: &mut Call<'_>,
    router: &Router,
    cluster: &Arc<Cluster>,
    plan: &Plan,
    session: &Session<'_>,
    endpoint_host: bool,
) -> Result<(Response<Incoming>, &'static str), Cause> {
    cluster.resolved().await;
    if let Some(budget) = router.budget() {
        budget.record_request(Instant::now());
    }
    let members = cluster.members();
    members.check_drops(cluster, call.env)?;
    let (tried, retries, high_priority) = (SmallVec::new(), plan.retry.as_ref(), plan.high_priority);
    let mut tries = Tries { cluster, members, retries, session, endpoint_host, high_priority, tried, retried: 0 };
    loop {
        let outcome = tries.one_in_time(call).await;
        let Some(retries) = tries.retry_for(&outcome, call.exchange.is_grpc()) else {
            return outcome.map(|response| (response, "-"));
        };
        if !tries.may_retry(retries, outcome.is_ok(), call, router) {
            return outcome.map(|response| (response, "URX"));
        }
        // The answer is given up before the wait: its connection and its place are free for others.
        if let Ok(response) = outcome {
            call.exchange.abandon(response);
        }
        call.head.again();
        sleep(retries.backoff.delay(tries.retried, &mut |below| call.env.draw(below))).await;
        tries.retried += 1;
    }
}

impl<'t> Tries<'t> {
    /// The retry policy, if it asks for another try after this outcome.
    fn retry_for(&self, outcome: &Result<Response<Incoming>, Cause>, grpc: bool) -> Option<&'t Retries> {
        let outcome = match outcome {
            Ok(response) => TryOutcome::Answer {
                status: response.status(),
                headers: response.headers(),
                grpc_status: if grpc { grpc_status(response.headers()) } else { None },
            },
            Err(cause) => TryOutcome::Failure(failure_kind(cause)),
        };
        self.retries.filter(|retries| retries.rules.condition(&outcome).is_some())
    }

    /// Whether there may be one more: attempts, a body that can be sent again, breaker, and then the
    /// budget, for asking takes from it; last the body goes back to its beginning.
    fn may_retry(&self, retries: &Retries, answered: bool, call: &Call<'_>, router: &Router) -> bool {
        // An answer still holds its own place among the retries.
        let own = u32::from(answered && self.retried > 0);
        self.retried < retries.policy.attempts
            && call.payload.can_be_sent_again()
            && self.cluster.admission().allows_retry(own, self.high_priority)
            && router.budget().is_none_or(|budget| budget.try_retry(Instant::now()))
            && call.payload.rewind()
    }

    async fn one_in_time(&mut self, call: &mut Call<'_>) -> Result<Response<Incoming>, Cause> {
        match self.retries.and_then(|retries| retries.policy.per_try_timeout) {
            Some(after) if !after.is_zero() => match timeout(after, self.one_or_fresh(call)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(Cause::PerTryTimeout(after)),
            },
            _ => self.one_or_fresh(call).await,
        }
    }

    /// One try. If it only met a connection that was no longer alive, once more on a fresh one.
    async fn one_or_fresh(&mut self, call: &mut Call<'_>) -> Result<Response<Incoming>, Cause> {
        match self.one(call, None).await {
            Ok(response) => Ok(response),
            Err(Failed { stale: Some(index), .. }) if call.payload.rewind() => {
                call.head.again();
                self.one(call, Some(index)).await.map_err(|failed| failed.cause)
            }
            Err(failed) => Err(failed.cause),
        }
    }

    /// Sends the request once: to a picked endpoint, or on a fresh connection to the one of `stale`.
    async fn one(&mut self, call: &mut Call<'_>, stale: Option<usize>) -> Result<Response<Incoming>, Failed> {
        // Above the picker: waiting for an endpoint counts as load, and a full cluster fails fast.
        let permit = Permit::request(self.cluster, self.retried > 0, self.high_priority)?;
        let now = Instant::now();
        let (index, endpoint, attempt) =
            self.begin(call, now, stale).ok_or_else(|| self.cluster.no_endpoint(&self.members))?;
        let stale = stale.filter(|stale| *stale == index);
        if stale.is_none() {
            self.tried.push(index);
            call.exchange.next_attempt();
        }
        call.exchange.count_in(endpoint.series());
        if let Some(access) = call.exchange.access() {
            access.upstream = endpoint.address().to_string();
        }
        // Counted before connecting, so that a slow connection repels further requests.
        let mut attempt = attempt.reported(self.members.issue(index)).limited(self.limit(call, now));
        let grpc = call.exchange.is_grpc();
        let lease = endpoint.pool().acquire(grpc, stale.is_some(), permit.room(), || permit.wait()).await;
        note_reach(&mut attempt, &lease);
        let lease = lease?;
        if let Some(host) = endpoint.hostname().filter(|_| self.endpoint_host) {
            call.head.set_authority(host);
        }
        let mut hold = Hold { endpoint, lease, attempt, permit, receipt: call.payload.receipt() };
        match self.exchange(call, &mut hold.lease).await {
            Ok(response) => {
                hold.attempt.answered(response.status(), response.headers(), grpc);
                call.exchange.hold(hold);
                Ok(response)
            }
            Err(lost) => {
                let gone = lost.connection_is_gone();
                let again = hold.lease.is_reused() && stale.is_none() && gone;
                let again = again && (!lost.sent || is_idempotent(&call.head.method));
                // A connection that ended while nobody used it says nothing of the endpoint.
                if lost.is_ours() || again {
                    hold.attempt.not_sent()
                } else if lost.is_refusal() {
                    hold.attempt.refused()
                } else {
                    hold.attempt.failed()
                }
                if let Lease::Shared(stream) = &hold.lease
                    && gone
                {
                    hold.endpoint.pool().discard(&stream.connection);
                }
                Err(Failed { cause: lost.cause(hold.endpoint.address()), stale: Some(index).filter(|_| again) })
            }
        }
    }

    /// Picks an endpoint (or takes that of `stale`) and counts the request in. One that is on probation takes one
    /// request at a time: others go on to another endpoint, or fail if there is none.
    fn begin(
        &self,
        call: &Call<'_>,
        now: Instant,
        mut stale: Option<usize>,
    ) -> Option<(usize, Arc<Endpoint>, Attempt)> {
        let mut full = SmallVec::<[usize; 4]>::new();
        loop {
            let index = stale.take().or_else(|| self.pick(call, now, &full))?;
            if full.contains(&index) {
                return None;
            }
            let endpoint = self.cluster.endpoint(&self.members, index, call.env);
            if let Some(attempt) = endpoint.begin(now) {
                return Some((index, endpoint, attempt));
            }
            full.push(index);
        }
    }

    /// When the endpoint's time for this try is over.
    fn limit(&self, call: &Call<'_>, now: Instant) -> Option<Instant> {
        let own = self.retries.and_then(|retries| retries.policy.per_try_timeout).filter(|own| !own.is_zero());
        own.map_or(call.exchange.limit(), |own| call.exchange.limit().route(now, own)).of_route()
    }

    /// `full` can take no further request.
    fn pick(&self, call: &Call<'_>, now: Instant, full: &[usize]) -> Option<usize> {
        if let Some(address) = self.session.address() {
            let pinned = self.members.ready.pinned(address, &self.cluster.policy().override_host);
            match pinned.map(|(index, _)| index) {
                // A retry goes elsewhere, unless the session must not.
                Some(index) if self.session.is_strict() || !(self.tried.contains(&index) || full.contains(&index)) => {
                    return Some(index);
                }
                None if self.session.is_strict() => return None,
                _ => {}
            }
        }
        let policy = self.retries.map(|retries| &retries.policy);
        let avoid = policy.is_none_or(|policy| policy.avoid_previous_hosts);
        let tried = if avoid { &self.tried[..] } else { &[] };
        let both: SmallVec<[usize; 8]>;
        let pick = Pick {
            now: call.env.since_epoch(now),
            tried: if full.is_empty() {
                tried
            } else {
                both = tried.iter().chain(full).copied().collect();
                &both
            },
            hash: call.hash,
            other_priority: policy.is_some_and(|policy| policy.next_locality),
        };
        self.members.ready.pick(&pick, &mut |below| call.env.draw(below)).map(|(index, _)| index)
    }

    /// Puts the request on the connection and waits for the answer's head.
    async fn exchange(&self, call: &mut Call<'_>, lease: &mut Lease) -> Result<Response<Incoming>, Lost> {
        let may_resend = lease.is_reused() && is_idempotent(&call.head.method);
        let may_retry = self.retries.is_some_and(|retries| self.retried < retries.policy.attempts);
        if may_resend || may_retry {
            call.head.keep();
        }
        let http2 = lease.is_http2();
        let mut request = call.head.request(http2, call.payload.body());
        call.trace.write(call.env, http2, request.headers_mut());
        let limit = call.exchange.limit();
        deadline::write_timeout(&limit, call.exchange.is_grpc(), request.headers_mut());
        let sent = match lease {
            Lease::Sole(connection) => connection.sender.try_send_request(request).await,
            Lease::Shared(stream) => stream.connection.sender().try_send_request(request).await,
        };
        sent.map_err(|mut error| {
            let unsent = error.take_message();
            let sent = unsent.is_none();
            if let Some(request) = unsent {
                call.head.take_back(request);
            }
            Lost { error: error.into_error(), sent, body: call.payload.failure() }
        })
    }
}

/// Notes whether a connection could be had.
fn note_reach(attempt: &mut Attempt, lease: &Result<Lease, Cause>) {
    match lease {
        Ok(lease) if !lease.is_reused() => attempt.connected(true),
        // A connection that was there says nothing new.
        Ok(_) => {}
        Err(cause) if cause.is_unreached() => {
            attempt.connected(false);
            attempt.failed();
        }
        // A local limit says nothing of the endpoint.
        Err(_) => attempt.not_sent(),
    }
}

/// A request without an answer.
struct Lost {
    error: hyper::Error,
    /// Some of it may have reached the endpoint.
    sent: bool,
    /// The application's body failed.
    body: Option<Source>,
}

impl Lost {
    /// Whether the connection went away, as opposed to this one stream or our own body.
    fn connection_is_gone(&self) -> bool {
        let stream_only = find::<h2::Error>(&self.error).is_some_and(h2::Error::is_reset);
        !stream_only && self.body.is_none()
    }

    /// Whether the application's body failed and not the endpoint.
    fn is_ours(&self) -> bool {
        self.body.is_some()
    }

    /// Whether the peer refused the stream without looking at it.
    fn is_refusal(&self) -> bool {
        let refused = |e: &h2::Error| e.is_remote() && e.reason() == Some(h2::Reason::REFUSED_STREAM);
        find::<h2::Error>(&self.error).is_some_and(refused)
    }

    fn cause(self, address: &Address) -> Cause {
        let address = address.clone();
        let refused = self.is_refusal();
        if let Some(failed) = self.body {
            return Cause::RequestBody(failed);
        }
        if refused {
            return Cause::StreamRefused { address, source: Arc::new(self.error) };
        }
        // In TLS 1.3 a server's refusal of our certificate arrives after the handshake.
        if let Some(alert @ rustls::Error::AlertReceived(_)) = find::<rustls::Error>(&self.error) {
            return Cause::TlsHandshake { address, source: Arc::new(alert.clone()) };
        }
        Cause::ConnectionLost { address, source: Arc::new(self.error), sent: self.sent }
    }
}

/// The first error of a type in a chain of sources.
fn find<'e, E: StdError + 'static>(error: &'e (dyn StdError + 'static)) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        // `io::Error` skips the error it wraps when asked for its source.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}

/// How the retry rules see a failure.
fn failure_kind(cause: &Cause) -> FailureKind {
    match cause {
        cause if cause.is_unreached() => FailureKind::ConnectFailed,
        Cause::StreamRefused { .. } => FailureKind::Refused,
        Cause::ConnectionLost { sent: false, .. } => FailureKind::ResetBeforeRequest,
        Cause::ConnectionLost { sent: true, .. } => FailureKind::Reset,
        Cause::PerTryTimeout(_) => FailureKind::PerTryTimeout,
        _ => FailureKind::Local,
    }
}

/// Idempotent methods (RFC 9110, section 9.2.2).
fn is_idempotent(method: &Method) -> bool {
    method.is_safe() || *method == Method::PUT || *method == Method::DELETE
}
