//! One endpoint at run time: its connections, its load, its metrics. Made by the first request to it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{HeaderMap, StatusCode};
use mesh_core::balance::{InFlight, Load};
use mesh_core::health::{AccrualState, Evidence};
use mesh_core::policy::{self, Address, StringMatch, UpstreamTls};
use mesh_core::retry::{TryOutcome, grpc_status};
use mesh_core::telemetry::load::Issued;
use mesh_core::telemetry::{PeerLabels, RequestLabels, RequestSeries, TcpSeries};
use tokio::time::Instant;

use super::Cluster;
use super::health::{Watch, Watched};
use super::orca::Ear;
use crate::connect::{Full, Needs, Peer, Pool, Room};
use crate::env::Env;
use crate::error::Cause;

/// One endpoint of a cluster.
pub(crate) struct Endpoint {
    // With its load.
    pool: Pool,
    series: Arc<RequestSeries>,
    // Of raw connections; most endpoints never see one.
    tcp: ArcSwapOption<TcpSeries>,
    // If policy wants to hear what requests see.
    watch: Option<Arc<Watch>>,
}

impl Endpoint {
    pub(super) fn new(policy: &policy::Endpoint, load: Arc<Load>, cluster: &Cluster, env: &Env) -> Self {
        let pool = Pool::new(cluster.dialer.clone(), peer(policy), load);
        let series = env.metrics.series(&labels(policy, cluster));
        let watch = Watch::new(&cluster.policy, cluster.wake.as_ref());
        Self { pool, series, tcp: ArcSwapOption::empty(), watch }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.pool.peer().address
    }

    pub(crate) fn hostname(&self) -> Option<&str> {
        self.pool.peer().metadata.hostname.as_deref()
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn load(&self) -> &Arc<Load> {
        self.pool.load()
    }

    /// What requests have seen, if policy wants to hear of it.
    pub(super) fn watch(&self) -> Option<&Watch> {
        self.watch.as_deref()
    }

    /// Where the breaker of failure accrual is, if policy has one.
    pub(crate) fn accrual(&self) -> Option<AccrualState> {
        self.watch.as_ref()?.accrual()
    }

    /// Counts a request in, from the pick to the end of its answer; `began` is when it `started` by the clock that the
    /// load counts by. `None` = it must go elsewhere: the endpoint is on probation, and another request is under way.
    pub(crate) fn begin(&self, started: Instant, began: Duration) -> Option<Attempt> {
        let watched = match &self.watch {
            None => None,
            Some(watch) => Some(watch.enter()?),
        };
        Some(Attempt {
            in_flight: self.load().start(),
            started,
            began,
            measured: false,
            head: None,
            issued: None,
            watched,
            limit: None,
            late: Late::Never,
            ear: None,
            waits_at: None,
            met: false,
            early: None,
        })
    }

    /// Connects before there is a request for it; `needs`: none = for bytes of any kind, which leaves no connection. Requests
    /// profit from what that says of the endpoint. False: there was no room for another connection, whoever has those there are.
    pub(crate) async fn warm(&self, needs: Option<Needs>, room: Room, env: &Env) -> Result<bool, Cause> {
        let result = match needs {
            Some(needs) => self.pool.warm(needs, room).await,
            None => self.knock(room).await,
        };
        match &result {
            Ok(true) => self.load().reached(),
            Ok(false) | Err(Cause::BackingOff { .. }) => {}
            Err(cause) if cause.is_unreached() => self.load().unreachable(env.since_epoch(Instant::now())),
            Err(_) => {}
        }
        result
    }

    /// No connection came about beside the requests: as of a request, for no other is to find out.
    pub(super) fn not_connected(&self) {
        if let Some(mut watched) = self.watch.as_ref().and_then(Watch::enter) {
            watched.record(Evidence::Lost);
        }
    }

    /// Whether a raw connection can be had; false as in [`warm`](Self::warm).
    async fn knock(&self, room: Room) -> Result<bool, Cause> {
        let Ok(_open) = self.pool.room(room) else { return Ok(false) };
        self.pool.dial_raw().await.map(|_| true)
    }

    /// Counts the requests that went here.
    pub(crate) fn series(&self) -> &Arc<RequestSeries> {
        &self.series
    }

    /// Counts the raw connections that went here; `policy` is what the endpoint was made of.
    pub(crate) fn tcp_series(&self, policy: &policy::Endpoint, cluster: &Cluster, env: &Env) -> Arc<TcpSeries> {
        self.tcp.load_full().unwrap_or_else(|| {
            // Whoever else asks at this moment is given the same.
            let series = env.metrics.tcp(&labels(policy, cluster), "-");
            self.tcp.store(Some(series.clone()));
            series
        })
    }
}

fn peer(policy: &policy::Endpoint) -> Peer {
    Peer {
        address: policy.address.clone(),
        additional: policy.additional_addresses.clone(),
        metadata: policy.metadata.clone(),
    }
}

impl Cluster {
    /// Whether requests to an endpoint go over TLS.
    pub(crate) fn encrypts(&self, endpoint: &policy::Endpoint) -> bool {
        self.dialer.encrypts(&peer(endpoint))
    }

    /// What keeps connections to an endpoint from being made now, as far as that is known beforehand.
    pub(crate) fn lacks(&self, endpoint: &policy::Endpoint) -> Option<Cause> {
        self.dialer.lacks(&peer(endpoint))
    }
}

/// Labels of what goes to an endpoint.
pub(super) fn labels(policy: &policy::Endpoint, cluster: &Cluster) -> RequestLabels {
    let mut labels = cluster.labels.clone();
    if let Some(workload) = &policy.metadata.workload {
        labels.destination = PeerLabels::of(workload, None);
    }
    labels.destination.principal = expected_principal(&cluster.policy.tls, policy.metadata.mesh_tls);
    labels
}

/// The one identity that policy lets this endpoint have; empty if it leaves a choice.
fn expected_principal(tls: &UpstreamTls, mesh_tls: bool) -> String {
    let ids = match tls {
        UpstreamTls::Mesh(mesh) => &mesh.peer_ids,
        UpstreamTls::Auto(mesh) if mesh_tls => &mesh.peer_ids,
        _ => return String::new(),
    };
    match &ids[..] {
        [one] => match &one.pattern {
            StringMatch::Exact(id) => id.clone(),
            _ => String::new(),
        },
        _ => String::new(),
    }
}

/// One try at an endpoint: in flight until it is dropped, measured up to the head of the answer.
pub(crate) struct Attempt {
    in_flight: InFlight,
    started: Instant,
    // The same by the load's clock.
    began: Duration,
    measured: bool,
    // When the head of an answer came that is no failure, by the load's clock.
    head: Option<Duration>,
    // Counted for the control plane.
    issued: Option<Issued>,
    watched: Option<Watched>,
    // When its time is over, whoever allowed it.
    limit: Option<Instant>,
    late: Late,
    // Hears what the answer says of the endpoint's load.
    ear: Option<Ear>,
    // The limit of our own at which it waits for a connection.
    waits_at: Option<Full>,
    // It has a connection.
    met: bool,
    // gRPC status in the head of the answer: it is asked for more than once, and a look-up is a hash.
    early: Option<i32>,
}

/// Whether it is the endpoint's fault if there is no answer.
#[derive(Clone, Copy)]
enum Late {
    Never,
    AtLimit,
    /// The time that policy gives it is over.
    Now,
}

/// Who gives up waiting for a connection after so long warns others.
const PATIENCE: Duration = Duration::from_secs(1);
/// Timers may be early by less than that.
const TICK: Duration = Duration::from_millis(1);

impl Attempt {
    /// When it began.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Counts the try for the control plane as well. To it a failure is every gRPC status but OK, every 5xx,
    /// and whatever did not end.
    pub(crate) fn report(&mut self, issued: Option<Issued>) {
        self.issued = issued;
    }

    /// When its time is over, and whether policy says so: then a missing answer is the endpoint's fault. A limit of the
    /// caller's own is none.
    pub(crate) fn limit(&mut self, at: Option<Instant>, of_policy: bool) {
        self.limit = at;
        self.late = if of_policy { Late::AtLimit } else { Late::Never };
    }

    /// Listens to what the answer says of the endpoint's load.
    pub(crate) fn listen(&mut self, ear: Option<Ear>) {
        self.ear = ear;
    }

    /// Headers or trailers of the answer.
    pub(crate) fn hear(&self, headers: &HeaderMap) {
        if let Some(ear) = &self.ear {
            ear.hear(headers, self.in_flight.load(), self.issued.as_ref(), self.clock().1);
        }
    }

    /// The limit of our own at which it waits for a connection, while it does.
    pub(crate) fn waits_at(&mut self) -> &mut Option<Full> {
        &mut self.waits_at
    }

    /// It has a connection, new or not.
    pub(crate) fn met(&mut self) {
        self.met = true;
    }

    /// What ended the try, with the limit at which it waited then. The retry policy's time for one try, and its patience with
    /// silence, say something of the endpoint; not of one that was asked late in that try, because others could not be reached:
    /// it had less time than policy means to give. While the rest of the request is waited for (`waits_for_caller`) the time is its
    /// caller's, and no limit says anything (Envoy's begin when the request is complete).
    pub(crate) fn ended_by(&mut self, cause: Cause, waits_for_caller: bool) -> Cause {
        use Cause::{Deadline, IdleTimeout, PerTryTimeout, Timeout};
        if let PerTryTimeout(limit) | IdleTimeout(limit) = cause
            && self.started.elapsed() >= limit / 2
        {
            self.late = Late::Now;
        }
        if waits_for_caller {
            self.late = Late::Never;
        }
        match (self.waits_at, cause) {
            (Some(Full { limit, allowed }), cause @ (Deadline | IdleTimeout(_) | PerTryTimeout(_) | Timeout(_))) => {
                Cause::Queued { last: Box::new(cause), limit, allowed }
            }
            (_, cause) => cause,
        }
    }

    /// Notes whether a connection could be had.
    pub(crate) fn connected(&self, worked: bool) {
        if worked {
            self.in_flight.load().reached();
        } else {
            self.in_flight.load().unreachable(self.clock().1);
        }
    }

    /// Notes the head of an answer.
    pub(crate) fn answered(&mut self, status: StatusCode, headers: &HeaderMap, grpc: bool) {
        // Over a connection that was there perhaps; whatever became of a further one, requests get through.
        self.in_flight.load().reached();
        self.hear(headers);
        let early = if grpc { grpc_status(headers) } else { None };
        self.early = early;
        self.witness(Evidence::of(&TryOutcome::Answer { status, headers, grpc_status: early }, grpc));
        if grpc && early.is_none() && status == StatusCode::OK {
            self.watched.iter_mut().for_each(Watched::answered);
        }
        let failed = if grpc { early.is_some_and(is_failure) } else { is_server_failure(status) };
        if failed || (grpc && status != StatusCode::OK) {
            self.slipped(status == StatusCode::GATEWAY_TIMEOUT || early == Some(DEADLINE_EXCEEDED));
        } else {
            self.succeeded();
        }
        // The status of a gRPC answer comes at its end, unless there is nothing else.
        self.judge(if grpc { early == Some(0) } else { !status.is_server_error() });
    }

    /// The gRPC status that came with the head of the answer: an answer without a body has it there.
    pub(crate) fn early(&self) -> Option<i32> {
        self.early
    }

    /// A raw connection stands. How long that took is all that is measured of it.
    pub(crate) fn established(&mut self) {
        // What Envoy makes of a connection that came about.
        self.witness(Evidence::Status(StatusCode::OK.as_u16()));
        self.succeeded();
        self.judge(true);
    }

    /// Notes the status of a gRPC answer that came with its trailers.
    pub(crate) fn ended(&mut self, grpc_status: i32) {
        self.witness(Evidence::Grpc(grpc_status));
        if is_failure(grpc_status) {
            self.slipped(grpc_status == DEADLINE_EXCEEDED);
        }
        self.judge(grpc_status == 0);
    }

    /// The answer was cut off.
    pub(crate) fn unfinished(&mut self) {
        self.judge(false);
    }

    fn judge(&mut self, successful: bool) {
        if let Some(issued) = &mut self.issued {
            issued.judge(successful);
        }
    }

    /// No connection, or it broke, and it is the endpoint's fault.
    pub(crate) fn failed(&mut self) {
        self.witness(Evidence::Lost);
        self.slipped(false);
    }

    /// The endpoint refused the request before looking at it: it has enough to do, which makes it no outlier.
    pub(crate) fn refused(&mut self) {
        self.slipped(false);
    }

    fn witness(&mut self, evidence: Evidence) {
        if let Some(watched) = &mut self.watched {
            watched.record(evidence);
        }
    }

    fn succeeded(&mut self) {
        self.measured = true;
        let (took, now) = self.clock();
        self.head = Some(now);
        self.in_flight.load().succeeded(took, now);
    }

    /// The endpoint is to blame for how the try ended; `for_time`: it says itself that its time was over.
    fn slipped(&mut self, for_time: bool) {
        let (took, now) = self.clock();
        let load = self.in_flight.load();
        // Overload ends so. Who says it early on, unlike who did so after most of the time there was, is as fast and idle as
        // others that fail.
        let waited = self.head.map_or(took, |head| head.saturating_sub(self.began));
        let late = for_time && self.limit.is_some_and(|at| waited >= at.saturating_duration_since(self.started) / 2);
        // The latency is that of the head: what came after may have been a stream of hours, and whoever sends the head at once
        // looks fast and idle.
        match (std::mem::replace(&mut self.measured, true), self.head.filter(|_| late)) {
            (false, _) if late => load.late(took, now),
            (false, _) => load.failed(took, now),
            (true, Some(head)) => load.ended_late(took, head, now),
            (true, None) => load.failed_late(now),
        }
        self.judge(false);
    }

    /// How long it took so far, and the time of the load's clock: one look at the clock.
    fn clock(&self) -> (Duration, Duration) {
        let took = self.started.elapsed();
        (took, self.began + took)
    }

    /// It was waited for a connection for as long as policy allows at all.
    pub(crate) fn suspected(&self) {
        let (took, now) = self.clock();
        self.in_flight.load().suspected(took, now);
    }

    /// Nothing was sent, and that says nothing of the endpoint.
    pub(crate) fn not_sent(&mut self) {
        self.measured = true;
    }

    /// The same, and it was we who held the request back: to the control plane no endpoint has had it.
    pub(crate) fn held_back(&mut self) {
        self.not_sent();
        self.issued.take().into_iter().for_each(Issued::withdraw);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        // What waits for a place among our own connections says nothing of the endpoint.
        if self.waits_at.is_some() {
            self.held_back();
        }
        if self.measured {
            return;
        }
        let (took, now) = self.clock();
        if !self.met && took >= PATIENCE {
            self.suspected();
        }
        let late = match self.late {
            Late::Never => false,
            Late::AtLimit => self.limit.is_some_and(|at| self.started + took + TICK >= at),
            Late::Now => true,
        };
        if late {
            self.witness(Evidence::Late);
            self.judge(false);
            self.in_flight.load().late(took, now);
        } else {
            // Given up before an answer: it would have taken longer than this.
            self.in_flight.load().abandoned(took, now);
        }
    }
}

/// What a gRPC server says whose time is over.
const DEADLINE_EXCEEDED: i32 = 4;

/// Whether an answer says that the endpoint is not well; 501 is about the request.
fn is_server_failure(status: StatusCode) -> bool {
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
}

/// Whether a gRPC status says so: unknown, deadline exceeded, resource exhausted, internal, unavailable,
/// data loss. The others are about the request or the caller.
fn is_failure(grpc_status: i32) -> bool {
    matches!(grpc_status, 2 | 4 | 8 | 13 | 14 | 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(load: &Arc<Load>) -> Attempt {
        let now = Instant::now();
        Attempt {
            in_flight: load.start(),
            started: now,
            began: Duration::from_secs(1),
            measured: false,
            head: None,
            issued: None,
            watched: None,
            limit: None,
            late: Late::Never,
            ear: None,
            waits_at: None,
            met: false,
            early: None,
        }
    }

    fn penalty(load: &Load) -> f32 {
        load.failure_penalty(Duration::from_secs(1))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_the_endpoints_fault_counts_against_it_and_nothing_else() {
        let none = HeaderMap::new();
        for (status, failed) in [(200, false), (404, false), (429, false), (500, true), (501, false), (503, true)] {
            let load = Arc::<Load>::default();
            attempt(&load).answered(StatusCode::from_u16(status).unwrap(), &none, false);
            assert_eq!(penalty(&load) > 1.0, failed, "{status}");
        }
        for (status, failed) in [(0, false), (1, false), (3, false), (5, false), (12, false), (13, true), (14, true)] {
            let load = Arc::<Load>::default();
            let headers = [(http::HeaderName::from_static("grpc-status"), status.into())].into_iter().collect();
            attempt(&load).answered(StatusCode::OK, &headers, true);
            assert_eq!(penalty(&load) > 1.0, failed, "gRPC status {status} in the head");
            let load = Arc::<Load>::default();
            let mut own = attempt(&load);
            own.answered(StatusCode::OK, &none, true);
            own.ended(status);
            assert_eq!(penalty(&load) > 1.0, failed, "gRPC status {status} in the trailers");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_answers_is_there_whatever_became_of_a_further_connection() {
        for status in [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE] {
            let load = Arc::<Load>::default();
            let mut own = attempt(&load);
            load.unreachable(Duration::from_secs(1));
            assert!(load.is_away());
            own.answered(status, &HeaderMap::new(), false);
            assert!(!load.is_away(), "{status}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_control_plane_hears_of_every_end_that_is_not_a_success() {
        use mesh_core::telemetry::load::LoadStore;

        let (store, none) = (LoadStore::default(), HeaderMap::new());
        let cluster = store.cluster(&"a".into(), "", Instant::now());
        let load = cluster.locality(&Default::default());
        let status = |status: i32| -> HeaderMap {
            [(http::HeaderName::from_static("grpc-status"), status.into())].into_iter().collect()
        };
        type End<'e> = &'e dyn Fn(&mut Attempt);
        let ends: [(&str, bool, End<'_>); 9] = [
            ("200", true, &|a| a.answered(StatusCode::OK, &none, false)),
            ("404", true, &|a| a.answered(StatusCode::NOT_FOUND, &none, false)),
            ("501", false, &|a| a.answered(StatusCode::NOT_IMPLEMENTED, &none, false)),
            ("no answer", false, &|_| {}),
            ("gRPC OK at once", true, &|a| a.answered(StatusCode::OK, &status(0), true)),
            ("gRPC NOT_FOUND at once", false, &|a| a.answered(StatusCode::OK, &status(5), true)),
            ("gRPC without trailers", false, &|a| a.answered(StatusCode::OK, &none, true)),
            ("gRPC OK", true, &|a| {
                a.answered(StatusCode::OK, &none, true);
                a.ended(0);
            }),
            ("cut off", false, &|a| {
                a.answered(StatusCode::OK, &none, false);
                a.unfinished();
            }),
        ];
        for (name, successful, end) in ends {
            let mut attempt = attempt(&Arc::default());
            attempt.report(Some(load.issue()));
            end(&mut attempt);
            drop(attempt);
            let seen = &store.take(|_| true, Instant::now())[0].localities[0];
            let want = (u64::from(successful), u64::from(!successful));
            assert_eq!((seen.issued, seen.successful, seen.failed), (1, want.0, want.1), "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_we_held_back_ourselves_the_control_plane_does_not_hear_of() {
        use mesh_core::telemetry::load::LoadStore;

        let store = LoadStore::default();
        let cluster = store.cluster(&"a".into(), "", Instant::now());
        let load = cluster.locality(&Default::default());
        let full = Some(Full { limit: "max_pending_requests", allowed: 1 });
        type End = fn(&mut Attempt, Option<Full>);
        let ends: [(&str, u64, End); 3] = [
            ("a limit", 0, |a, _| a.held_back()),
            ("waiting at one", 0, |a, full| *a.waits_at() = full),
            ("control: no connection", 1, |a, _| a.failed()),
        ];
        for (name, counted, end) in ends {
            let mut attempt = attempt(&Arc::default());
            attempt.report(Some(load.issue()));
            end(&mut attempt, full);
            drop(attempt);
            let seen = store.take(|_| true, Instant::now());
            let counts = |report: &mesh_core::telemetry::load::ClusterReport| report.localities[0].issued;
            assert_eq!(seen.first().map_or(0, counts), counted, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_had_most_of_a_trys_time_is_to_blame_for_its_end() {
        let (limit, second) = (Duration::from_secs(10), Duration::from_secs(1));
        for (cause, had, waits, blamed) in [
            (Cause::PerTryTimeout(limit), limit, false, true),
            (Cause::IdleTimeout(limit), limit, false, true),
            (Cause::IdleTimeout(limit), limit, true, false),
            (Cause::PerTryTimeout(limit), 6 * second, false, true),
            (Cause::PerTryTimeout(limit), second, false, false),
            (Cause::PerTryTimeout(limit), limit, true, false),
            (Cause::Deadline, limit, false, false),
        ] {
            let load = Arc::<Load>::default();
            let mut own = attempt(&load);
            tokio::time::advance(had).await;
            let cause = own.ended_by(cause, waits);
            drop(own);
            assert_eq!(load.failure_penalty(second + had) > 1.0, blamed, "{cause} after {had:?}");
            // Who was overloaded is needed again.
            assert!(load.failure_penalty(second + had * 2) < 2.0, "{cause} after {had:?}");
        }
        // As long as it took, and no longer, as after a failure.
        for (answers, penalty) in [(false, 1.7..1.8), (true, 1.0..1.1)] {
            let load = Arc::<Load>::default();
            let mut own = attempt(&load);
            tokio::time::advance(second / 2).await;
            if answers {
                load.succeeded(second / 2, second + second / 2);
            }
            tokio::time::advance(second / 2).await;
            own.ended_by(Cause::PerTryTimeout(second), false);
            drop(own);
            let later = load.failure_penalty(3 * second + second / 10);
            assert!(penalty.contains(&later), "{answers}: {later}");
        }
    }

    /// What servers answer that have a limit of their own, after so many milliseconds of a second, whoever allowed that.
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_says_no_more_than_too_late_is_late_after_half_of_the_time_and_before_it_a_failure() {
        let status = |status: i32| -> HeaderMap {
            [(http::HeaderName::from_static("grpc-status"), status.into())].into_iter().collect()
        };
        type End<'e> = &'e dyn Fn(&mut Attempt);
        let ends: [(&str, bool, End<'_>); 7] = [
            ("504", true, &|a| a.answered(StatusCode::GATEWAY_TIMEOUT, &HeaderMap::new(), false)),
            ("504 for gRPC", true, &|a| a.answered(StatusCode::GATEWAY_TIMEOUT, &HeaderMap::new(), true)),
            ("gRPC status 4 at once", true, &|a| a.answered(StatusCode::OK, &status(4), true)),
            ("gRPC status 4", true, &|a| {
                a.answered(StatusCode::OK, &HeaderMap::new(), true);
                a.ended(4);
            }),
            ("503", false, &|a| a.answered(StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new(), false)),
            ("gRPC status 14 at once", false, &|a| a.answered(StatusCode::OK, &status(14), true)),
            ("gRPC status 14", false, &|a| {
                a.answered(StatusCode::OK, &HeaderMap::new(), true);
                a.ended(14);
            }),
        ];
        let second = Duration::from_secs(1);
        for (name, for_time, end) in ends {
            for (after, limited, half) in [(500, true, true), (499, true, false), (900, false, false)] {
                let (load, after) = (Arc::<Load>::default(), Duration::from_millis(after));
                let mut own = attempt(&load);
                own.limit(limited.then(|| own.started() + second), false);
                tokio::time::advance(after).await;
                end(&mut own);
                drop(own);
                let (now, late) = (second + after, half && for_time);
                let told = load.late_for(now).map(|time| time.as_millis());
                assert_eq!(told, late.then_some(after.as_millis()), "{name} after {after:?}, {limited}");
                // A failure counts for longer.
                let later = load.failure_penalty(now + after + TICK);
                assert_eq!(later < 2.0, late, "{name} after {after:?}, {limited}: {later}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_ends_for_lack_of_time_has_failed_unless_its_head_was_late() {
        let second = Duration::from_secs(1);
        for (head, late) in [(1, false), (4, false), (5, true), (8, true)] {
            let load = Arc::<Load>::default();
            let mut own = attempt(&load);
            own.limit(Some(own.started() + 10 * second), false);
            tokio::time::advance(head * second).await;
            own.answered(StatusCode::OK, &HeaderMap::new(), true);
            tokio::time::advance((9 - head) * second).await;
            own.ended(4);
            assert_eq!(load.late_for(10 * second).is_some(), late, "{head}");
            assert!(load.failure_penalty(10 * second) > 1.0, "{head}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_given_up_counts_as_slow_and_one_not_sent_as_nothing() {
        let load = Arc::<Load>::default();
        let (given_up, mut not_sent) = (attempt(&load), attempt(&load));
        tokio::time::advance(Duration::from_secs(2)).await;
        not_sent.not_sent();
        drop(not_sent);
        let known = |load: &Load| load.latency(Duration::from_secs(3)) > 1e6;
        assert!(!known(&load));
        drop(given_up);
        assert!(known(&load));
        assert_eq!((load.in_flight(), penalty(&load)), (0, 1.0));
    }
}
