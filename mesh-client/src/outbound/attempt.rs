//! One try: to an endpoint, over a connection, up to the head of its answer.
//!
//! [`Shared::launch`] picks and counts, [`Shared::fly`] sends: what flies holds nothing of the request but the
//! head that it is given, so that several tries may be under way at once. Refuses to know whether there is
//! another try.

use std::future::poll_fn;
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response};
use mesh_core::context::{PREVIOUS_ATTEMPTS, RETRIED, TRACEPARENT};
use mesh_core::error::Retry;
use mesh_core::policy::Address;
use mesh_core::retry::{Budget, RetryTokens};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::deadline::{self, Deadline, Told};
use super::exchange::{Exchange, Hold};
use super::head::{Head, Said};
use super::places::Places;
use super::trace::Trace;
use crate::body::{Broken, Incoming, Outgoing, Payload, Receipt, Unanswered};
use crate::cluster::{Attempt, Backend, Endpoint, Permit, Retrying};
use crate::connect::{Http1Error, Http1Flight, Lease, Needs, SoleConnection, refusal};
use crate::error::{Cause, Source, find};
use crate::router::{Part, Retries};

/// Members beyond the first that one try turns to because the one before could not be connected to. gRPC's picks only
/// go to connected members; here one or two dead addresses in a list must not cost a request, nor a dead fleet its time.
const MAX_UNREACHED: u32 = 5;
/// Connections that close before the request goes out, and after which it goes out once more. gRPC has no bound (gRFC A6);
/// here one that takes every connection and closes it is not to be dialled for ever.
const MAX_UNSENT: u32 = 3;
/// A connection that closes so soon after a request went out was being closed when it did.
const CLOSE_RACE: Duration = Duration::from_secs(1);
const NO_UPGRADE: &str = "the request asks for another protocol than HTTP (Upgrade), which HTTP/2 has no words for, and the \
                          cluster's protocol is HTTP/2";
/// How long after a try's begin a server may still be about to look at our certificate.
const REFUSAL: Duration = Duration::from_secs(10);

/// What the tries of a request share.
pub(super) struct Shared<'t> {
    /// Where they go.
    pub(super) places: Places<'t>,
    /// When the first of them begins.
    pub(super) now: Instant,
    pub(super) trace: &'t Trace,
    pub(super) payload: &'t Payload,
    pub(super) grpc: bool,
    pub(super) limit: Deadline,
    /// The route's timeout.
    pub(super) told: Option<&'t Told>,
    /// Retries allowed; 0 where this request may have none, whatever the policy.
    pub(super) attempts: u32,
    pub(super) endpoint_host: bool,
    /// What retries of this destination may cost (gRFC A6).
    pub(super) tokens: Option<&'t Arc<RetryTokens>>,
    /// What retries of this destination may add to its requests (Linkerd).
    pub(super) budget: Option<&'t Budget>,
    /// Counts in the limits of high priority.
    pub(super) high_priority: bool,
    /// Where they are, among the parts of an aggregate.
    pub(super) part: Part<'t>,
    /// The parts of it that had nobody to take the request.
    pub(super) left: &'t [&'t Backend],
}

/// How far the tries of a request are.
#[derive(Default)]
pub(super) struct Progress {
    /// Indices of the members tried.
    pub(super) tried: SmallVec<[usize; 4]>,
    /// Retries made, hedged tries among them.
    pub(super) retried: u32,
    /// Steps of the back-off taken.
    pub(super) waits: u32,
    /// The place of the next retry among those in flight.
    pub(super) retrying: Option<Retrying>,
    /// Connecting took all the time there was: others near that member may be out of reach like it, and no request is
    /// to wait for that twice while there are members of another priority.
    pub(super) silent: bool,
    /// Those of them to which no connection came about: no place to go again while there are others, whatever the policy.
    pub(super) unreached: SmallVec<[usize; 4]>,
    /// The last try ended before it had a connection.
    pub(super) unmet: bool,
    /// The request is to go on to another part of its aggregate.
    pub(super) goes_on: bool,
}

impl Progress {
    /// It goes on at members of whom none was tried.
    pub(super) fn elsewhere(self) -> Self {
        Self { retried: self.retried, waits: self.waits, ..Self::default() }
    }
}

/// A try that came to nothing.
pub(super) struct Failed {
    pub(super) cause: Cause,
    /// How the request may be sent once more whatever the policy.
    pub(super) again: Option<Again>,
}

/// Where a request goes once more that no retry policy need allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// To another member that was not tried: no connection to this one came about, or none that can carry the request.
    Unreached(usize),
    /// The same, and this one did not even say so in time: if there is one, to a member of another priority.
    Silent(usize),
    /// It did not go out, for its connection closed before: to this member over a fresh connection, if the one used had
    /// carried requests before; else to another member.
    Unsent(Option<usize>),
    /// To the same member over a fresh connection, or to another one if this one takes none now, as a retry: over HTTP/1.1
    /// the one used, which had carried requests before, was closed while it went out, and it is idempotent (RFC 9112,
    /// section 9.3.1).
    Fresh(usize),
    /// To another member, for nobody has seen it: this one refused it, or is leaving.
    Elsewhere,
}

impl Again {
    /// The member that it goes to, if that takes it.
    fn member(self) -> Option<usize> {
        match self {
            Self::Unsent(index) => index,
            Self::Fresh(index) => Some(index),
            Self::Unreached(_) | Self::Silent(_) | Self::Elsewhere => None,
        }
    }
}

/// What a try has used up of the ways to go out once more.
#[derive(Clone, Copy, Default)]
pub(super) struct Resends {
    unreached: u32,
    unsent: u32,
    lost: bool,
}

/// What a try says of those before it.
#[derive(Clone, Copy)]
struct Tried {
    /// Retries of the policy's before it.
    before: u32,
    /// It is a retry, the policy's or not.
    is_retry: bool,
    /// Its connection may be something else than HTTP after it.
    changes: bool,
    /// When its connection was there.
    begun: Instant,
    /// Its connection is new, and the server may yet refuse our certificate: over HTTP/1.1 that takes the place of the answer.
    may_be_refused: bool,
}

impl From<Cause> for Failed {
    fn from(cause: Cause) -> Self {
        Self { cause, again: None }
    }
}

impl<'t> Deref for Shared<'t> {
    type Target = Places<'t>;

    fn deref(&self) -> &Places<'t> {
        &self.places
    }
}

impl Shared<'_> {
    /// Picks an endpoint (or takes that of the try before, to go out `again`) and counts the try in, unless the time is over.
    pub(super) fn launch(
        &self,
        progress: &mut Progress,
        exchange: &mut Exchange,
        again: Option<Again>,
    ) -> Result<Hold, Cause> {
        // Between the request's begin and its first try nobody has waited: one look at the clock is enough.
        let now = if progress.tried.is_empty() { self.now } else { Instant::now() };
        self.limit.check(now)?;
        // Above the picker: waiting for an endpoint counts as load, and a full cluster fails fast.
        let is_retry = progress.retried > 0;
        let more = || is_retry.then(|| Retrying::again(self.cluster, self.high_priority));
        let permit = Permit::request(self.cluster, progress.retrying.take().or_else(more), self.high_priority)?;
        let wanted = again.and_then(Again::member);
        let (index, endpoint, mut attempt) =
            self.begin(progress, now, wanted).ok_or_else(|| self.cluster.no_endpoint(&self.members))?;
        // That member may be full by now: then this is a try like any other.
        let fresh = wanted == Some(index);
        let replayed = matches!(again, Some(Again::Fresh(_)));
        if replayed {
            // What costs a retry is charged only now that there is a place to go.
            self.charge();
        }
        if !fresh {
            progress.tried.push(index);
        }
        if !fresh || replayed {
            exchange.next_attempt();
        }
        exchange.at(&endpoint);
        let missed = self.missed(index);
        if self.members.ready.passes_over() || missed.is_some() {
            self.cluster.look_again(&self.members, Some(Needs::of(self.grpc)), Some(&endpoint), missed, self.env);
        }
        // Counted before connecting, so that a slow connection repels further requests.
        attempt.report(self.members.issue(index));
        let time = self.time_of_a_try(now);
        attempt.limit(time.at(), time.of_route().is_some());
        attempt.listen(self.cluster.listen(&self.members, index, self.env));
        let (lease, receipt, number) = (None, Receipt::Whole, progress.retried);
        // Another try goes where none was made: those before it do not overtake it.
        let first = progress.tried.len() == 1 && number == 0 && again.is_none();
        Ok(Hold { endpoint, attempt, permit, lease, receipt, index, number, first, fresh })
    }

    /// Whether a request goes out once more whatever the retry policy says.
    pub(super) fn goes_again(&self, again: Again, resends: &mut Resends, progress: &mut Progress) -> bool {
        progress.silent |= matches!(again, Again::Silent(_));
        if let Again::Unreached(index) | Again::Silent(index) = again {
            progress.unreached.push(index);
            resends.unreached += 1;
            // A session's own need be none of those that a pick can give, and one may have been tried twice.
            let (ready, avoided) = (&self.members.ready, self.avoided(progress));
            let is_other = |index: &usize| ready.is_usable(*index) && !avoided.contains(index);
            let others = !self.session.is_strict() && (0..ready.known()).any(|index| is_other(&index));
            let leaves =
                progress.silent && self.leaves_part(progress, self.cluster.policy().connection.connect_timeout);
            return others && !leaves && resends.unreached <= MAX_UNREACHED;
        }
        if let Again::Unsent(_) = again {
            resends.unsent += 1;
            return resends.unsent <= MAX_UNSENT;
        }
        if std::mem::replace(&mut resends.lost, true) {
            return false;
        }
        if let Again::Fresh(_) = again {
            // Some of it may have been read: that is a retry, but for the policy's leave.
            progress.retrying = self.may_replay().then(|| self.retrying()).flatten();
            return progress.retrying.is_some();
        }
        true
    }

    /// Whether the request goes on to another part of its aggregate, whatever the retry policy says: this one had nobody to take
    /// it.
    pub(super) fn goes_on(&self, cause: &Cause, head: &Head) -> bool {
        let has_next = || !self.stays() && self.part.next(self.left, self.env).is_some();
        cause.met_nobody() && has_next() && head.is_there() && self.payload.rewind()
    }

    /// Whether a request that has `waited` so long in vain goes on to another part of the aggregate: nobody waits for neighbours of who
    /// is silent while there is one that can take it as far as is known.
    pub(super) fn leaves_part(&self, progress: &Progress, waited: Duration) -> bool {
        !self.stays() && self.part.has_next(self.left, self.env) && !self.has_elsewhere(progress, waited)
    }

    /// A strict session stays with its endpoint, where that is.
    fn stays(&self) -> bool {
        let is_here = |address| self.members.ready.find_anywhere(address).is_some();
        self.session.is_strict() && self.session.address().is_some_and(is_here)
    }

    /// Whether what its endpoint may have seen is sent again for its method alone: not where a policy wants no retry of
    /// it, nor for who is a retry itself.
    fn may_replay(&self) -> bool {
        !self.trace.is_retry() && (self.retries.is_none() || self.attempts > 0)
    }

    /// Sends the request once.
    pub(super) async fn fly(&self, launch: &mut Hold, head: &mut Head) -> Result<Response<Incoming>, Failed> {
        if head.is_https() && !launch.endpoint.pool().is_encrypted() {
            // Nobody is to take for encrypted what is not.
            launch.attempt.held_back();
            return Err(Cause::HttpsToPlaintext { address: launch.endpoint.address().clone() }.into());
        }
        // What asks for another protocol than HTTP has to be HTTP/1.1. A tunnel may be a stream of HTTP/2.
        let changes = !self.grpc && head.changes_protocol();
        let upgrades = changes && head.method != Method::CONNECT;
        let needs = if upgrades { Needs::Http1 } else { Needs::of(self.grpc) };
        if upgrades && launch.endpoint.pool().insists_on_http2(needs) {
            launch.attempt.held_back();
            return Err(Cause::UnsupportedAction(NO_UPGRADE).into());
        }
        // Where nobody waits for a connection, one look at the clock is enough.
        let mut begun = launch.attempt.started();
        let lease = if launch.first && self.picks_first() {
            // Boxed: requests of other clusters are no larger for it.
            let lease = Box::pin(self.first_of_list(launch, needs)).await?;
            begun = Instant::now();
            lease
        } else {
            let (pool, permit) = (launch.endpoint.pool(), &launch.permit);
            match permit.at_hand(pool, needs, launch.fresh, begun) {
                Some(lease) => Ok(lease),
                None => {
                    let lease = permit.connection(pool, needs, launch.fresh, begun, launch.attempt.waits_at()).await;
                    begun = Instant::now();
                    lease
                }
            }
        };
        launch.reached(lease)?;
        if upgrades && launch.lease.as_ref().is_some_and(Lease::is_http2) {
            // An application's own connection. Without the headers that ask for it, it would be another request.
            launch.lease = None;
            launch.attempt.held_back();
            return Err(Cause::UnsupportedAction(NO_UPGRADE).into());
        }
        if self.endpoint_host
            && let Some(host) = launch.endpoint.hostname()
        {
            // As it was before, for the next endpoint may have no name.
            head.keep();
            head.set_authority(host);
        }
        let lease = launch.lease.as_mut().expect("it was reached");
        launch.receipt = self.payload.receipt();
        let may_be_refused = !lease.is_http2() && !lease.is_reused() && launch.endpoint.pool().is_encrypted();
        let tried = Tried { before: launch.number, is_retry: launch.permit.is_retry(), changes, begun, may_be_refused };
        match self.exchange(head, lease, tried).await {
            Ok(response) => {
                launch.attempt.answered(response.status(), response.headers(), self.grpc);
                launch.permit.answered();
                Ok(response)
            }
            Err(lost) => Err(launch.lost(lost, &head.method)),
        }
    }

    /// Picks an endpoint (or takes that of `fresh`) and counts the request in. One that is on probation takes one
    /// request at a time: others go on to another endpoint, or fail if there is none.
    fn begin(
        &self,
        progress: &Progress,
        now: Instant,
        mut fresh: Option<usize>,
    ) -> Option<(usize, Arc<Endpoint>, Attempt)> {
        let (began, mut full) = (self.env.since_epoch(now), SmallVec::<[usize; 4]>::new());
        loop {
            let index = fresh.take().or_else(|| {
                let index = self.pick(progress, &progress.tried, began, &full)?;
                // Passing over both can leave nobody, and then nobody is passed over: rather one that was tried.
                if full.contains(&index) { self.pick(progress, &[], began, &full) } else { Some(index) }
            })?;
            if full.contains(&index) {
                return None;
            }
            let endpoint = self.cluster.endpoint(&self.members, index, self.env);
            if let Some(attempt) = endpoint.begin(now, began) {
                return Some((index, endpoint, attempt));
            }
            full.push(index);
        }
    }

    /// When the endpoint's time for a try that begins now is over.
    fn time_of_a_try(&self, now: Instant) -> Deadline {
        let own = self.retries.and_then(Retries::per_try_timeout);
        own.map_or(self.limit, |timeout| self.limit.route(now, timeout))
    }

    /// Puts the request on the connection and waits for the answer's head.
    async fn exchange(&self, head: &mut Head, lease: &mut Lease, tried: Tried) -> Result<Response<Incoming>, Lost> {
        let (http2, reused) = (lease.is_http2(), lease.is_reused());
        let sent = match lease {
            Lease::Sole(connection) if !tried.changes => {
                // By a function of its own: what it needs is not held while we wait.
                match self.write(head, connection, tried) {
                    Ok(mut flight) => poll_fn(|cx| flight.poll_head(cx)).await.map_err(Unanswered::sent),
                    Err(unanswered) => Err(unanswered),
                }
            }
            // Boxed: requests that stay HTTP are no larger for it.
            Lease::Sole(connection) => {
                let request = self.request(head, (http2, reused), tried);
                Box::pin(connection.send(request)).await
            }
            // Made and moved on at once: it is large.
            Lease::Shared(stream) => stream.send(self.request(head, (http2, reused), tried)).await,
        };
        sent.map_err(|Unanswered { error, sent, back }| {
            if let Some(request) = back {
                head.take_back(*request);
            }
            let body = self.payload.failure().or_else(|| error.of_request());
            Lost { error, sent, body }
        })
    }

    /// Writes the request on an HTTP/1.1 connection. Its head stays as it is.
    fn write(&self, head: &Head, connection: &mut SoleConnection, tried: Tried) -> Result<Http1Flight, Unanswered> {
        let said = self.said(head, tried);
        connection.begin(&head.written(&said), self.payload.body())
    }

    /// The request of this try over a connection of HTTP/2 or not, that was there before or not.
    fn request(&self, head: &mut Head, (http2, reused): (bool, bool), tried: Tried) -> Request<Outgoing> {
        // An HTTP/2 stream may be refused unseen; an HTTP/1.1 connection may have gone stale.
        let may_resend = http2 || tried.may_be_refused || (reused && is_idempotent(&head.method));
        if may_resend || tried.before < self.attempts {
            head.keep();
        }
        let said = self.said(head, tried);
        let mut request = head.request(http2, said, self.payload.body());
        // A trace differs in every request: HPACK must not put it into its table. Only that of a connection's first request
        // goes there, so that the name of the others is sent as a number.
        if http2
            && reused
            && let Some(value) = request.headers_mut().get_mut(&TRACEPARENT)
        {
            value.set_sensitive(true);
        }
        request
    }

    /// What this try says beside the request's own headers.
    fn said(&self, head: &Head, tried: Tried) -> Said<'_> {
        let mut said = Said::nothing();
        self.trace.each_header(&head.headers, |name, value| said.say(name, value));
        if tried.is_retry {
            said.say(&RETRIED, HeaderValue::from_static("1"));
        }
        if tried.before > 0 && self.grpc {
            said.say(&PREVIOUS_ATTEMPTS, HeaderValue::from(tried.before));
        }
        // What `grpc-timeout` limits is the whole call, its answer's messages too; a try's time ends at the head.
        let limit = if self.grpc { self.limit } else { self.limit_of_a_try(tried.begun) };
        let told = [self.told, self.retries.and_then(|retries| retries.told.as_ref())];
        if let Some((name, value)) = deadline::timeout_header(&limit, tried.begun, self.grpc, told, &head.headers) {
            said.say(name, value);
        }
        said
    }

    /// When the endpoint need not go on: the request's deadline, or the end of the try that begins now.
    fn limit_of_a_try(&self, begun: Instant) -> Deadline {
        let own = self.retries.filter(|retries| !retries.hedges_on_timeout()).and_then(Retries::per_try_timeout);
        own.map_or(self.limit, |timeout| self.limit.route(begun, timeout))
    }
}

impl Hold {
    /// Notes whether a connection could be had, and keeps it.
    fn reached(&mut self, lease: Result<Lease, Cause>) -> Result<(), Failed> {
        let waits_at = self.attempt.waits_at().take();
        match lease {
            Ok(lease) => {
                self.attempt.met();
                // A connection that was there says nothing new.
                if !lease.is_reused() {
                    self.attempt.connected(true);
                }
                self.lease = Some(lease);
                Ok(())
            }
            Err(cause) => {
                if cause.is_unreached() {
                    if let Cause::BackingOff { .. } = cause {
                        // That says nothing new: who made the attempt has told.
                        self.attempt.not_sent();
                    } else {
                        self.attempt.connected(false);
                        self.attempt.failed();
                    }
                    let silent = matches!(cause, Cause::ConnectTimeout { .. });
                    let again = if silent { Again::Silent(self.index) } else { Again::Unreached(self.index) };
                    return Err(Failed { cause, again: Some(again) });
                }
                if let Cause::FailFast { after, .. } = cause
                    && waits_at.is_none()
                    && self.attempt.started().elapsed() >= after
                {
                    self.attempt.suspected();
                }
                // A local limit says nothing of the endpoint, nor does that it cannot speak what this one request needs: others may.
                self.attempt.held_back();
                let again = matches!(cause, Cause::UnsupportedAction(_)).then_some(Again::Unreached(self.index));
                Err(Failed { cause, again })
            }
        }
    }

    /// It got no answer over its connection: whose fault that is, and whether it may go again.
    #[cold]
    fn lost(&mut self, lost: Lost, method: &Method) -> Failed {
        let again = self.again(&lost, method);
        // A connection that ended while nobody used it says nothing of the endpoint, nor does one that is replaced in peace.
        if lost.is_ours() || lost.is_goodbye() || matches!(again, Some(Again::Fresh(_) | Again::Unsent(Some(_)))) {
            self.attempt.not_sent()
        } else if lost.is_unseen() {
            self.attempt.refused()
        } else {
            self.attempt.failed()
        }
        if let Some(Lease::Shared(stream)) = &self.lease
            && lost.connection_is_gone()
        {
            self.endpoint.pool().discard(&stream.connection);
        }
        let fresh = !self.lease.as_ref().is_some_and(Lease::is_reused) && self.attempt.started().elapsed() < REFUSAL;
        let cause = self.endpoint.pool().explained(lost.cause(self.endpoint.address(), fresh));
        if cause.retry() == Retry::Safe {
            self.lease = None;
        }
        if let Cause::TlsHandshake { .. } = cause {
            // As if the handshake had told.
            self.attempt.connected(false);
            self.endpoint.pool().refused(&cause);
            return Failed { cause, again: Some(Again::Unreached(self.index)) };
        }
        Failed { cause, again }
    }

    /// How it may go once more whatever the policy.
    fn again(&self, lost: &Lost, method: &Method) -> Option<Again> {
        let lease = self.lease.as_ref()?;
        if lost.is_unseen() {
            return Some(Again::Elsewhere);
        }
        let was_there = lease.is_reused() && !self.fresh;
        match lost.connection_is_gone().then_some(lost.sent)? {
            false => Some(Again::Unsent(was_there.then_some(self.index))),
            // Closed as it was being used again: its end was on the way, and it has most likely not been looked at.
            true if was_there && !lease.is_http2() && is_idempotent(method) && lost.is_closed() => {
                (self.attempt.started().elapsed() < CLOSE_RACE).then_some(Again::Fresh(self.index))
            }
            true => None,
        }
    }
}

/// A request without an answer.
struct Lost {
    error: Broken,
    /// Some of it may have reached the endpoint.
    sent: bool,
    /// The application's body failed.
    body: Option<Source>,
}

impl Lost {
    /// Whether the connection went away, as opposed to this one stream or our own body.
    fn connection_is_gone(&self) -> bool {
        let stream_only = find::<h2::Error>(self.error.error()).is_some_and(h2::Error::is_reset);
        !stream_only && self.body.is_none()
    }

    /// Whether the peer closed the connection and said nothing before: whatever it says is an answer to this request.
    fn is_closed(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
        let ended = |e: &io::Error| {
            matches!(e.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
        };
        match &self.error {
            Broken::Http1(error) => matches!(error, Http1Error::Incomplete),
            Broken::Hyper(error) => {
                error.is_incomplete_message() || error.is_closed() || find::<io::Error>(error).is_some_and(ended)
            }
            Broken::Io(error) => ended(error),
            Broken::Http2(_) | Broken::RequestBody(_) | Broken::Silent => false,
        }
    }

    /// Whether the application's body failed and not the endpoint.
    fn is_ours(&self) -> bool {
        self.body.is_some()
    }

    /// Whether the peer said that it has not looked at the request: it refused the stream, or its GOAWAY names
    /// an earlier stream as the last (RFC 9113, section 8.7). h2 fails no other stream with a peer's GOAWAY.
    fn is_unseen(&self) -> bool {
        let unseen =
            |e: &h2::Error| e.is_remote() && (e.is_go_away() || e.reason() == Some(h2::Reason::REFUSED_STREAM));
        // One that was not sent is another thing.
        // Nor is what an application's own connection is made of.
        let of_streams = matches!(self.error, Broken::Http2(_));
        of_streams && self.sent && self.body.is_none() && find::<h2::Error>(self.error.error()).is_some_and(unseen)
    }

    /// Whether the request was not looked at for nothing but that the peer closes this connection: it may be as well as ever.
    fn is_goodbye(&self) -> bool {
        let goodbye = |e: &h2::Error| e.is_go_away() && e.reason() == Some(h2::Reason::NO_ERROR);
        self.is_unseen() && find::<h2::Error>(self.error.error()).is_some_and(goodbye)
    }

    /// The server's refusal of our certificate, which in TLS 1.3 arrives after the handshake: it has read nothing else then.
    /// Where something of an answer is there the error is another one.
    fn refusal(&self) -> Option<rustls::Error> {
        if matches!(self.error, Broken::Io(_) | Broken::Hyper(_)) { refusal(self.error.error()) } else { None }
    }

    /// `fresh`: its connection had carried no requests before, and has not been there for long. A server that took those has
    /// taken our certificate as well.
    fn cause(self, address: &Address, fresh: bool) -> Cause {
        let address = address.clone();
        let unseen = self.is_unseen();
        if let Some(failed) = self.body {
            return Cause::RequestBody(failed);
        }
        if unseen {
            return Cause::StreamRefused { address, source: self.error.into_source() };
        }
        if fresh && let Some(refusal) = self.refusal() {
            return Cause::TlsHandshake { address, source: Arc::new(refusal) };
        }
        Cause::ConnectionLost { address, source: self.error.into_source(), sent: self.sent }
    }
}

/// Idempotent methods (RFC 9110, section 9.2.2).
fn is_idempotent(method: &Method) -> bool {
    method.is_safe() || *method == Method::PUT || *method == Method::DELETE
}
