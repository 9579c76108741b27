//! What a request in progress holds, and what happens at its end: the connection goes back, the limits
//! are freed, the request is counted and logged. Exactly once, whichever way it ends.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use mesh_core::error::Fault;
use mesh_core::retry::{Pushback, grpc_status, pushback};
use mesh_core::telemetry::{Outcome, RequestSeries};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::access::Access;
use super::deadline::Deadline;
use super::filters::Ticket;
use crate::body::{Failure, Incoming, Receipt};
use crate::cluster::{Attempt, Endpoint, Permit};
use crate::connect::{Held, Lease};
use crate::destination::Destination;
use crate::error::{Cause, Error};
use crate::router::CountedRoute;

/// The status of a gRPC answer that ended without one (gRPC over HTTP/2): what a truncated one looks like.
const UNKNOWN: i32 = 2;

/// One request from its start to the end of its answer.
pub(crate) struct Exchange {
    // Held up to the answer's end: one with a stream of hours is not forgotten, nor what is known of its endpoints.
    destination: Arc<Destination>,
    started: Instant,
    series: Arc<RequestSeries>,
    route: Option<Arc<CountedRoute>>,
    outcome: Outcome,
    attempts: u32,
    access: Option<Box<Access>>,
    deadline: Deadline,
    idle: Option<Duration>,
    // Of the try under way, and then of the answer: written here once, and not moved from future to future.
    hold: Option<Hold>,
    // Why an answer stands that a retry was wanted for.
    flags: &'static str,
    // Limits that wait for word of the head or the end, with the randomness they need. Nothing unless policy has such.
    tickets: SmallVec<[Ticket; 1]>,
    // An endpoint may have seen a try that is over.
    seen: bool,
    counted: bool,
}

/// What one try holds of its endpoint, from the pick to the end of its answer.
pub(crate) struct Hold {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) attempt: Attempt,
    pub(crate) permit: Permit,
    /// Once there is one, unless nobody can have seen the request after all.
    pub(crate) lease: Option<Lease>,
    pub(crate) receipt: Receipt,
    /// Which member of the cluster it is.
    pub(crate) index: usize,
    /// Retries before this one.
    pub(crate) number: u32,
    /// Nothing was tried before it.
    pub(crate) first: bool,
    /// It may not use a connection that carried requests before.
    pub(crate) fresh: bool,
}

impl Hold {
    /// What ended the try before its answer; what it was waiting for then is known here.
    pub(crate) fn ended_by(&mut self, cause: Cause) -> Cause {
        self.attempt.ended_by(cause, self.receipt.waits_for_caller())
    }

    /// Whether the endpoint may have seen the request.
    pub(crate) fn is_seen(&self) -> bool {
        self.lease.is_some()
    }

    /// Where to leave it, if its connection may be something else than HTTP now.
    fn handed(&self) -> Option<Held> {
        match &self.lease {
            Some(Lease::Sole(connection)) => connection.held(),
            Some(Lease::Shared(_)) | None => None,
        }
    }

    /// The answer came to its end.
    pub(crate) fn release(mut self, answer: Incoming, now: Instant) {
        let left = self.leave();
        drop(self);
        left.release(answer, now);
    }

    /// Its connection, for when the rest of it is gone: it is large, and not moved for that.
    fn leave(&mut self) -> Left {
        // A stream of HTTP/2 is not used again.
        let is_sent = matches!(self.lease, Some(Lease::Sole(_))) && self.receipt.is_sent();
        Left { endpoint: self.endpoint.clone(), lease: self.lease.take(), is_sent }
    }
}

/// What a try leaves behind whose answer has ended.
struct Left {
    endpoint: Arc<Endpoint>,
    lease: Option<Lease>,
    is_sent: bool,
}

impl Left {
    /// An HTTP/1.1 connection whose request is through as well can be used again.
    fn release(self, answer: Incoming, now: Instant) {
        match self.lease {
            Some(Lease::Sole(connection)) if self.is_sent => self.endpoint.pool().release(connection, answer, now),
            lease => {
                // The socket first, and then its place.
                drop(answer);
                drop(lease);
            }
        }
    }
}

impl Exchange {
    pub(crate) fn new(
        destination: Arc<Destination>,
        started: Instant,
        series: Arc<RequestSeries>,
        grpc: bool,
        access: Option<Box<Access>>,
    ) -> Self {
        // What is counted if the application drops the request.
        let outcome = Outcome { code: 0, grpc_status: None, flags: "DC", grpc };
        let deadline = Deadline::none();
        let (route, hold, flags, tickets, idle) = (None, None, "-", SmallVec::new(), None);
        let (attempts, seen, counted) = (0, false, false);
        Self {
            destination,
            started,
            series,
            route,
            outcome,
            attempts,
            access,
            deadline,
            idle,
            hold,
            flags,
            tickets,
            seen,
            counted,
        }
    }

    pub(crate) fn destination(&self) -> &Arc<Destination> {
        &self.destination
    }

    pub(crate) fn is_grpc(&self) -> bool {
        self.outcome.grpc
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    pub(crate) fn access(&mut self) -> Option<&mut Access> {
        self.access.as_deref_mut()
    }

    /// A limit will hear of the request's end.
    pub(crate) fn owe(&mut self, ticket: Ticket) {
        self.tickets.push(ticket);
    }

    /// Requests that end from now on are counted here.
    pub(crate) fn count_in(&mut self, series: &Arc<RequestSeries>) {
        self.series = series.clone();
    }

    /// It takes a route that is counted on its own.
    pub(crate) fn takes(&mut self, route: &Arc<CountedRoute>) {
        self.route = Some(route.clone());
    }

    /// A try goes to this endpoint, or the answer comes from it.
    pub(crate) fn at(&mut self, endpoint: &Endpoint) {
        self.count_in(endpoint.series());
        if let Some(access) = &mut self.access {
            access.upstream = endpoint.address().to_string();
        }
    }

    pub(crate) fn next_attempt(&mut self) {
        self.attempts += 1;
    }

    pub(crate) fn set_deadline(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    /// When the request must be over, and whose limit that is.
    pub(crate) fn limit(&self) -> Deadline {
        self.deadline
    }

    /// Longest silence of the answer's body: the shorter of these.
    pub(crate) fn set_idle(&mut self, limits: [Option<Duration>; 2]) {
        self.idle = limits.into_iter().flatten().min();
    }

    pub(crate) fn idle(&self) -> Option<Duration> {
        self.idle
    }

    /// When last a byte of the request went out, if somebody asked for it to be noted.
    pub(crate) fn sent(&self) -> Option<Instant> {
        self.hold.as_ref()?.receipt.moved()
    }

    /// Whether its cluster has others under way.
    pub(crate) fn is_in_company(&self) -> bool {
        self.hold.as_ref().is_some_and(|hold| hold.permit.is_in_company())
    }

    /// When the answer must have ended.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline.at()
    }

    /// Why an answer stands although a retry was wanted.
    pub(crate) fn flag(&mut self, flags: &'static str) {
        self.flags = flags;
    }

    /// Notes the head of the answer, after which there is no further try. The rest happens at its end.
    pub(crate) fn answered(&mut self, status: http::StatusCode, headers: &HeaderMap) {
        self.hold.iter().for_each(|hold| hold.receipt.stands());
        self.outcome.code = status.as_u16();
        self.outcome.flags = self.flags;
        if self.outcome.grpc {
            self.outcome.grpc_status = match &self.hold {
                Some(hold) => hold.attempt.early(),
                None => grpc_status(headers),
            };
        }
        if !self.tickets.is_empty() {
            self.tell_head();
        }
    }

    #[cold]
    fn tell_head(&mut self) {
        let now = Instant::now();
        self.tickets.iter_mut().for_each(|ticket| ticket.head(&self.outcome, now));
    }

    /// Keeps the endpoint: until [`let_go`](Self::let_go), or the answer's end.
    pub(crate) fn hold(&mut self, hold: Hold) -> &mut Hold {
        self.hold.insert(hold)
    }

    /// The try has come to nothing, or its answer is given up.
    pub(crate) fn let_go(&mut self) -> Option<Hold> {
        let hold = self.hold.take()?;
        self.over(hold.is_seen());
        Some(hold)
    }

    /// A try is over, whatever came of it.
    pub(crate) fn over(&mut self, seen: bool) {
        self.seen |= seen;
    }

    /// Whether an endpoint may have seen a try that is over.
    pub(crate) fn is_seen(&self) -> bool {
        self.seen
    }

    /// The gRPC status that came with the head of the answer.
    pub(crate) fn early(&self) -> Option<i32> {
        self.hold.as_ref()?.attempt.early()
    }

    /// The endpoint of the answer.
    pub(crate) fn endpoint(&self) -> Option<&Endpoint> {
        self.hold.as_ref().map(|hold| &*hold.endpoint)
    }

    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) {
        self.hold.iter().for_each(|hold| hold.attempt.hear(trailers));
        if self.outcome.grpc
            && let Some(status) = grpc_status(trailers)
        {
            self.outcome.grpc_status = Some(status);
            if pushback(trailers) == Some(Pushback::Stop) {
                self.tickets.iter_mut().for_each(Ticket::pushed_back);
            }
            self.hold.iter_mut().for_each(|hold| hold.attempt.ended(status));
        }
    }

    /// The answer is complete; what held its body, if an endpoint gave it.
    pub(crate) fn end(&mut self, answer: Option<Incoming>) {
        let now = Instant::now();
        let mut truncated = false;
        if let (Some(hold), Some(answer)) = (&mut self.hold, answer) {
            truncated = self.outcome.grpc && self.outcome.code == 200 && self.outcome.grpc_status.is_none();
            if truncated {
                hold.attempt.ended(UNKNOWN);
            }
            match hold.handed() {
                Some(held) => self.hand_on(held, answer),
                None => {
                    let left = hold.leave();
                    // What it counts in, before others are given its connection.
                    self.hold = None;
                    left.release(answer, now);
                }
            }
        }
        self.hold = None;
        self.settle(now);
        if truncated {
            // After the limits, to which an answer without a status is a failure whatever policy makes of this one.
            self.outcome.grpc_status = Some(UNKNOWN);
        }
        self.count(now, true);
    }

    /// It may go on as something else than HTTP: then it is in flight until it is closed, whatever came of its request.
    #[cold]
    fn hand_on(&mut self, held: Held, answer: Incoming) {
        let Some(mut hold) = self.hold.take() else { return };
        let lease = hold.lease.take();
        // Its request is over, and its body is nobody's.
        hold.receipt = Receipt::Whole;
        held.keep((hold, self.destination.clone()));
        drop((answer, lease));
    }

    fn settle(&mut self, now: Instant) {
        for ticket in self.tickets.drain(..) {
            ticket.settle(&self.outcome, now, self.attempts > 0);
        }
    }

    /// The answer broke off after its head.
    pub(crate) fn fail(&mut self, failure: Failure) -> Error {
        let cause = match failure {
            Failure::Late => {
                self.hold.iter_mut().for_each(|hold| hold.attempt.unfinished());
                self.deadline.cause()
            }
            Failure::Silent(cause) => {
                // A stream may have nothing to say for long, and who should have is not known here (Envoy blames nobody either).
                self.hold.iter_mut().for_each(|hold| hold.attempt.unfinished());
                cause
            }
            Failure::Broken(error) => {
                let hold = self.hold.as_mut().expect("an answer's body holds its endpoint until it has ended");
                match hold.receipt.failure() {
                    // The rest of the request was not to be had: that says nothing of the endpoint.
                    Some(source) => {
                        hold.attempt.unfinished();
                        Cause::RequestBody(source)
                    }
                    None => {
                        hold.attempt.failed();
                        let address = hold.endpoint.address().clone();
                        Cause::ConnectionLost { address, source: error.into_source(), sent: true }
                    }
                }
            }
        };
        self.give_up(cause)
    }

    /// The request ends without an answer.
    pub(crate) fn give_up(&mut self, cause: Cause) -> Error {
        // A try that its time cut short ends here.
        let cause = match self.let_go() {
            Some(mut hold) => hold.ended_by(cause),
            None => cause,
        };
        let error = Error::new(self.destination.target().as_str(), cause, self.attempts).seen(self.seen);
        self.outcome.flags = error.code().response_flag();
        if self.outcome.code == 0 {
            self.outcome.code = error.http_status().as_u16();
        }
        if self.outcome.grpc {
            self.outcome.grpc_status = Some(error.grpc_status());
        }
        let now = Instant::now();
        self.settle(now);
        self.count(now, false);
        error
    }

    fn count(&mut self, now: Instant, complete: bool) {
        if std::mem::replace(&mut self.counted, true) {
            return;
        }
        let duration = now.saturating_duration_since(self.started);
        self.series.record(self.outcome, duration);
        if let Some(route) = &self.route {
            route.record(&self.outcome, complete, duration);
        }
        if let Some(access) = &self.access {
            access.write(&self.outcome, duration, self.attempts);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.counted {
            // Dropped by the application, before or in the middle of the answer.
            self.outcome.flags = "DC";
            self.count(Instant::now(), false);
        }
    }
}
