//! The way of one request, from the application to the wire: read [`send`], then [`forward`], then
//! `tries.rs`.
//!
//! ```text
//! send      destination → trace, caller's deadline → router → route
//! forward   cors → cluster, composites → filters: faults, limits → rewrite, headers → mirrors → route timeout
//! tries     retries, hedges ─▶ attempt: admission → endpoint → connection ‖ wire
//! back      classification → response headers → body (counts, frees and logs at its end)
//! ```

mod access;
pub(crate) mod affinity;
mod attempt;
pub(crate) mod composite;
pub(crate) mod deadline;
mod exchange;
pub(crate) mod fault;
pub(crate) mod filters;
mod first;
pub(crate) mod head;
mod hedge;
mod local;
mod mirror;
pub(crate) mod places;
pub(crate) mod session;
pub(crate) mod tcp;
pub(crate) mod trace;
mod tries;
pub(crate) mod warm;
pub(crate) mod worker;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::header::{CONTENT_TYPE, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Response};
use mesh_core::balance::hash::HashInput;
use mesh_core::context;
use mesh_core::id::{ClusterName, Target};
use mesh_core::matcher::{CompiledRoute, CorsVerdict};
use mesh_core::policy::{AuthorityRewrite, Forward, HeaderPolicy, RouteAction, WeightedCluster};
use tokio::time::{Instant, sleep};

use self::access::Access;
use self::composite::Draws;
use self::deadline::Deadline;
pub(crate) use self::deadline::Silence;
pub(crate) use self::exchange::Exchange;
use self::fault::Faults;
use self::filters::{Filter, pass_rate};
pub(crate) use self::head::Head;
use self::mirror::Copy;
use self::session::Session;
use self::trace::Trace;
use self::worker::Mirrors;
use crate::body::{Body, Incoming, Payload};
use crate::cluster::Backend;
use crate::destination::{Destination, Destinations};
use crate::env::Env;
use crate::error::{Cause, Error};
use crate::router::{Chosen, Plan, Retries, Router};

/// Sends one request. The order is the behaviour:
pub(crate) async fn send(
    destinations: &Arc<Destinations>,
    to: Option<&Target>,
    head: &mut Head,
    payload: &Payload,
) -> Result<Response<Body>, Error> {
    let (started, env) = (Instant::now(), destinations.env());
    // Above all else, for nothing is known of a request without its destination.
    let destination = find(destinations, to, head)?;
    destination.touch(started, env);
    head.goes_to(&destination);
    let trace = Trace::begin();
    let caller = Deadline::none().caller(trace.deadline());
    let (grpc, timeout) = told(&head.headers);
    let caller = caller.header(started, timeout);
    // Above everything that can fail, so that each request is counted and logged, once.
    let mut exchange = open(&destination, head, &trace, started, grpc);
    let mirrors = destinations.mirrors();
    let answer = {
        let mut call = Call {
            env,
            now: started,
            mirrors,
            head,
            trace: &trace,
            payload,
            exchange: &mut exchange,
            caller,
            copies: Vec::new(),
            hash: None,
        };
        call.answer(&destination).await
    };
    match answer {
        Ok(Answer::Endpoint(mut response)) => {
            response.body_mut().leave_room(head.room());
            Ok(response.map(|body| Body::of(body, exchange)))
        }
        Ok(Answer::Local(response, flags)) => {
            exchange.flag(flags);
            exchange.answered(response.status(), response.headers());
            exchange.end(None);
            Ok(response)
        }
        Err(cause) => Err(exchange.give_up(cause)),
    }
}

/// Where a request goes: `to`, or where its head says.
pub(crate) fn destination(
    destinations: &Arc<Destinations>,
    to: Option<&Target>,
    head: &Head,
) -> Result<Arc<Destination>, Cause> {
    if let Some(scheme) = head.foreign_scheme() {
        let why = format!("the scheme {scheme:?} is none of HTTP's: it is to be http or https, ws or wss, or left out");
        return Err(Cause::BadTarget(why));
    }
    match to {
        Some(target) => destinations.to(target),
        None => destinations.of(head.uri(), &head.headers),
    }
}

fn find(destinations: &Arc<Destinations>, to: Option<&Target>, head: &Head) -> Result<Arc<Destination>, Error> {
    destination(destinations, to, head)
        .map_err(|cause| Error::new(head.uri().authority().map_or("(none)", |a| a.as_str()), cause, 0))
}

/// Whether a request is gRPC, and the time it says it has, each kind by a header of its own: one walk, for a request
/// has few headers, and most of them none of these.
fn told(headers: &HeaderMap) -> (bool, Option<Duration>) {
    let (mut grpc, mut timeout, mut expected) = (None, None, None);
    for (name, value) in headers {
        if *name == CONTENT_TYPE {
            grpc.get_or_insert_with(|| context::is_grpc(value));
        } else if *name == context::GRPC_TIMEOUT {
            timeout.get_or_insert(value);
        } else if *name == context::EXPECTED_TIMEOUT {
            expected.get_or_insert(value);
        }
    }
    match grpc {
        Some(true) => (true, timeout.and_then(context::grpc_timeout)),
        _ => (false, expected.and_then(context::expected_timeout)),
    }
}

fn open(destination: &Arc<Destination>, head: &Head, trace: &Trace, started: Instant, grpc: bool) -> Box<Exchange> {
    let access = Access::open(head, trace);
    // Room first, for then it is made in its place.
    let room = Box::new_uninit();
    Box::write(room, Exchange::new(destination.clone(), started, destination.series().clone(), grpc, access))
}

/// One request under way.
struct Call<'c> {
    env: &'c Arc<Env>,
    // The time, as far as nothing was waited for since.
    now: Instant,
    mirrors: &'c Mirrors,
    head: &'c mut Head,
    trace: &'c Trace,
    payload: &'c Payload,
    exchange: &'c mut Exchange,
    caller: Deadline,
    // Copies for other clusters that were not sent yet.
    copies: Vec<Copy>,
    // For balancers that keep requests of one key together.
    hash: Option<u64>,
}

/// An answer and where it comes from.
enum Answer {
    Endpoint(Response<Incoming>),
    /// With the response flags.
    Local(Response<Body>, &'static str),
}

impl Answer {
    fn headers_mut(&mut self) -> &mut HeaderMap {
        match self {
            Self::Endpoint(response) => response.headers_mut(),
            Self::Local(response, _) => response.headers_mut(),
        }
    }
}

impl Call<'_> {
    /// From the destination to the route.
    async fn answer(&mut self, destination: &Arc<Destination>) -> Result<Answer, Cause> {
        let wait = self.env.limits.config_wait;
        let wait = self.caller.at().map_or(wait, |at| wait.min(at.saturating_duration_since(self.exchange.started())));
        // Kept for the whole request, retries included: one request never sees two configurations.
        let router = match destination.ready() {
            Some(router) => router,
            None => {
                let router = destination.first_router(wait).await?;
                self.now = Instant::now();
                router
            }
        };
        let draw = || self.env.draw_million();
        let route = router.table().route(&self.head.view(&draw)).ok_or_else(|| self.no_route())?;
        if let Some(access) = self.exchange.access() {
            access.route = route.route().name.clone();
        }
        let plan = router.plan(route);
        if let Some(counted) = &plan.counted {
            self.exchange.takes(counted);
        }
        match &route.route().action {
            RouteAction::Forward(forward) => {
                let cors = plan.cors.as_ref().map(|cors| (cors, cors.judge(&self.head.method, &self.head.headers)));
                if let Some((_, CorsVerdict::Answer(headers))) = cors {
                    return Ok(Answer::Local(local::preflight(headers), "-"));
                }
                let mut answer = self.forward(&router, route, plan, forward).await?;
                // Last of all: what lets a page read the answer is policy's word, not the application's.
                if let Some((cors, CorsVerdict::Allow(origin))) = cors {
                    cors.decorate(&origin, answer.headers_mut());
                }
                Ok(answer)
            }
            RouteAction::Redirect(_) | RouteAction::DirectResponse(_) if self.exchange.is_grpc() => {
                Err(Cause::UnsupportedAction(OWN_ANSWER))
            }
            RouteAction::Redirect(policy) => self.own(route, plan, |head| local::redirect(policy, route, head)).await,
            RouteAction::DirectResponse(policy) => self.own(route, plan, |_| local::direct(policy)).await,
            RouteAction::NonForwarding => Err(Cause::UnsupportedAction(OF_SERVERS)),
        }
    }

    /// An answer of the route's own. Filters come before it, as in Envoy: they are for what is not forwarded too.
    async fn own(
        &mut self,
        route: &CompiledRoute,
        plan: &Plan,
        make: impl FnOnce(&Head) -> Response<Body>,
    ) -> Result<Answer, Cause> {
        self.caller.check(self.now)?;
        let filters = {
            let (env, head) = (self.env, &self.head);
            let draw = || env.draw_million();
            composite::passed(&plan.filters, || head.view(&draw), &Draws::new(env))
        };
        // Boxed: requests that are forwarded are no larger for it.
        if !filters.is_empty()
            && let Some(answer) = Box::pin(self.filter(&filters, None)).await?
        {
            return Ok(answer);
        }
        let answer = answered(make(self.head), route);
        Ok(Answer::Local(local::described(answer, &self.head.method), "-"))
    }

    /// From the route to its cluster.
    async fn forward(
        &mut self,
        router: &Router,
        route: &CompiledRoute,
        plan: &Plan,
        forward: &Forward,
    ) -> Result<Answer, Cause> {
        // Drawn once: all tries of a request go to the same cluster, as long as that has anybody to take it. Composites see the request as routes do, before it is
        // rewritten, and their chains and sessions are of one choice.
        let (Chosen { mut part, share, session, pinned, .. }, filters) = {
            let (env, head) = (self.env, &self.head);
            let (shown, draw) = ((&head.headers, head.uri().path()), || env.draw_million());
            let (request, draws) = (|| head.view(&draw), Draws::new(env));
            let chosen = router.choose(plan, forward, shown, request, &draws, env)?;
            let filters = composite::passed(chosen.filters, request, &draws);
            (chosen, filters)
        };
        let session = Session::new(session, pinned, self.head);
        self.goes_to(part.cluster);
        // What comes too late takes nothing from limits, and nobody is sent it.
        self.caller.check(self.now)?;
        // Before the request is changed and before the timeout begins, as in Envoy: they look at what came, and a delay is not
        // the endpoint's time.
        if !filters.is_empty()
            && let Some(answer) = self.filter(&filters, Some(&part.cluster.policy().name)).await?
        {
            return Ok(answer);
        }
        // After faults and limits: what they end would never have been the destination's to answer.
        if let Some(throttling) = router.throttling() {
            self.exchange.owe(throttling.pass(self.now, self.env.draw_million())?);
        }
        // Before header operations: those are the last word on what is sent.
        self.head.rewrite(route, forward, share);
        let changes_headers = plan.changes_headers || share.is_some_and(|share| !share.headers.is_empty());
        if changes_headers {
            header_policies(route, share).for_each(|headers| headers.request.apply(&mut self.head.headers));
        }
        self.head.show_host();
        let cookies = self.hash(plan);
        let deadline = self.deadline(router, forward);
        self.exchange.set_deadline(deadline);
        let idle = forward.idle_timeout.filter(|timeout| !timeout.is_zero());
        self.exchange.set_idle([idle, plan.retry.as_ref().and_then(Retries::per_try_idle)]);
        let endpoint_host = matches!(forward.rewrite.authority, Some(AuthorityRewrite::Endpoint));
        // Above the tries: they and the back-off between them share the time.
        let outcome = {
            let payload = self.payload;
            // Pinned here: what `bound` takes by value it would hold three times.
            let tries = pin!(tries::send(self, router, &mut part, plan, forward, &session, endpoint_host));
            match idle {
                None => deadline.bound(tries).await,
                // Boxed: requests that nobody listens to are no larger for it.
                _ => deadline.bound(Box::pin(deadline::unless_silent(idle, payload, tries))).await,
            }
        };
        self.mirror_late();
        let mut response = outcome?;
        if response.body().is_of_one_thread() && self.exchange.is_in_company() {
            give_way().await;
        }
        if changes_headers {
            header_policies(route, share).for_each(|headers| headers.response.apply(response.headers_mut()));
        }
        if let Some(endpoint) = self.exchange.endpoint() {
            session.write(endpoint, part.cluster, share.map(|share| &share.name), response.headers_mut());
        }
        for cookie in cookies {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
        self.exchange.answered(response.status(), response.headers());
        Ok(Answer::Endpoint(response))
    }

    /// Counts it with what goes to this cluster.
    fn goes_to(&mut self, cluster: &Backend) {
        self.exchange.count_in(cluster.series());
        if let Some(access) = self.exchange.access() {
            access.cluster = cluster.policy().name.to_string();
        }
    }

    /// Sends the copies that the route asks for, if the body is at hand.
    fn mirror(&mut self, plan: &Plan, forward: &Forward) {
        if !plan.mirrors.is_empty() {
            self.payload.read_ahead();
            self.copies = mirror::copies(self, plan, forward);
            self.send_copies();
        }
    }

    /// Sends those whose body had to be streamed first.
    fn mirror_late(&mut self) {
        if !self.copies.is_empty() {
            self.send_copies();
        }
    }

    fn send_copies(&mut self) {
        while let Some(payload) = self.payload.copy(self.env.limits.replay)
            && let Some(copy) = self.copies.pop()
        {
            self.mirrors.send(copy.send(payload));
        }
    }

    /// Faults and limits, in the order of the listener's filters; an answer if one of them gives it. `cluster` = where the
    /// request is to go.
    async fn filter(&mut self, lists: &[&[Filter]], cluster: Option<&ClusterName>) -> Result<Option<Answer>, Cause> {
        for list in lists {
            let mut left = *list;
            while let Some((fault, rest)) = self.pass(left)? {
                if let Some(answer) = self.inject(fault, cluster).await? {
                    return Ok(Some(answer));
                }
                // There may have been a delay.
                self.now = Instant::now();
                left = rest;
            }
        }
        Ok(None)
    }

    /// Passes filters up to the next fault; gives that and those after it.
    fn pass<'f>(&mut self, filters: &'f [Filter]) -> Result<Option<(&'f Faults, &'f [Filter])>, Cause> {
        let env = self.env;
        for (at, filter) in filters.iter().enumerate() {
            match filter {
                Filter::Fault(fault) => return Ok(Some((fault, &filters[at + 1..]))),
                Filter::RateLimit(limit) => {
                    pass_rate(limit, &mut self.head.headers, Instant::now(), || env.draw_million())?
                }
                Filter::Throttle(limit) => self.exchange.owe(limit.pass(Instant::now(), env.draw_million())?),
                Filter::Concurrency(limit) => self.exchange.owe(limit.pass(Instant::now(), || env.id())?),
                Filter::Failing(failing) => return Err(failing.cause()),
                // Looked at before, with the request as it came.
                Filter::Session(_) | Filter::Composite(_) => continue,
            }
            self.now = Instant::now();
        }
        Ok(None)
    }

    /// Hashes the request as it will be sent; gives the cookies that the answer must set.
    fn hash(&mut self, plan: &Plan) -> Vec<HeaderValue> {
        if plan.hash.is_empty() {
            return Vec::new();
        }
        let query = self.head.uri().query().unwrap_or_default();
        let channel_id = self.env.channel_id;
        let input = HashInput { headers: &self.head.headers, query, source: self.trace.source(), channel_id };
        let hashed = plan.hash.hash(&input, &mut |below| self.env.draw(below));
        self.hash = hashed.hash;
        hashed.cookies
    }

    /// The delay first, then the abort, each drawn by itself (gRFC A33).
    async fn inject(&mut self, fault: &Faults, cluster: Option<&ClusterName>) -> Result<Option<Answer>, Cause> {
        let env = self.env;
        let draw = || env.draw_million();
        if !fault.concerns(&self.head.view(&draw), cluster) {
            return Ok(None);
        }
        let Some(_active) = fault.begin(env.breakers.faults()) else { return Ok(None) };
        if let Some(delay) = fault.delay(&self.head.headers, draw) {
            let wait = async {
                sleep(delay).await;
                Ok(())
            };
            // Boxed: requests without a fault are no larger for it.
            Box::pin(self.caller.bound(wait)).await?;
        }
        let status = fault.abort(&self.head.headers, draw);
        Ok(status.map(|status| {
            let answer = local::abort(status, self.exchange.is_grpc());
            Answer::Local(local::described(answer, &self.head.method), "FI")
        }))
    }

    /// The earliest of the caller's deadline, the route's timeout, and the longest life of a stream: the route's for gRPC
    /// calls, else the route's for all, else the listener's (Envoy; gRFC A31).
    fn deadline(&self, router: &Router, forward: &Forward) -> Deadline {
        let of_calls = forward.grpc_timeout_max.filter(|_| self.exchange.is_grpc());
        let ceiling = of_calls.or(forward.max_stream_duration).or(router.snapshot().listener.max_stream_duration);
        // Zero switches a limit off, and those that it stands in place of.
        let limits = [forward.timeout, ceiling].into_iter().flatten().filter(|timeout| !timeout.is_zero());
        limits.fold(self.caller, |deadline, timeout| deadline.route(self.now, timeout))
    }

    fn no_route(&self) -> Cause {
        Cause::NoRoute {
            method: self.head.method.clone(),
            authority: self.head.authority().to_owned(),
            path: self.head.uri().path().to_owned(),
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        // Their body was too large, or whoever wanted the answer has gone before it was streamed.
        if !self.copies.is_empty() {
            self.mirrors.miss(self.copies.len());
        }
    }
}

/// Lets others go on once more before an answer is. Answers that come at one time are all there before the first is gone on
/// with, so that the next requests go out together, their server finds several at each look, and each step's instructions stay
/// in the cache. Only where one thread does all of it: another one would be woken for this. Never before an answer stands, or a
/// limit that is over as well would end it.
async fn give_way() {
    let mut given = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Header operations for a request on a route: the more specific first, as Envoy orders them.
pub(crate) fn header_policies<'r>(
    route: &'r CompiledRoute,
    share: Option<&'r WeightedCluster>,
) -> impl Iterator<Item = &'r HeaderPolicy> + use<'r> {
    let levels = [Some(&route.route().headers), Some(&route.virtual_host().headers), Some(&route.config().headers)];
    std::iter::once(share.map(|share| &share.headers)).chain(levels).flatten().filter(|policy| !policy.is_empty())
}

const OWN_ANSWER: &str = "the route gives an answer of its own, and gRPC calls have none (gRFC A28)";
const OF_SERVERS: &str = "the route is for servers: it hands over to an application";

/// Why a request gets no answer on a route with this action.
pub(crate) fn unsupported(action: &RouteAction, grpc: bool) -> Option<Cause> {
    match action {
        RouteAction::Redirect(_) | RouteAction::DirectResponse(_) => {
            grpc.then_some(Cause::UnsupportedAction(OWN_ANSWER))
        }
        RouteAction::NonForwarding => Some(Cause::UnsupportedAction(OF_SERVERS)),
        RouteAction::Forward(_) => None,
    }
}

/// A local answer with its route's response headers.
fn answered(mut response: Response<Body>, route: &CompiledRoute) -> Response<Body> {
    for headers in header_policies(route, None) {
        headers.response.apply(response.headers_mut());
    }
    response
}
