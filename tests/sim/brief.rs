//! A thousand short storms: servers, policy and trouble are drawn from the seed, and whatever they are, every request ends in
//! its time, nothing stays counted, nobody is asked more often than policy allows, and when the trouble is over all is well.

use std::future::Future;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};
use mesh_client::{Client, Error};
use mesh_core::context::{RequestContext, scope};
use mesh_core::id::Locality;
use mesh_core::policy::{
    Balancer, CircuitBreakers, ClusterState, Endpoints, FailureAccrual, HedgePolicy, HttpFilter, HttpFilterKind,
    LocalityEndpoints, Mirror, PerMillion, PerMillionRatio, RetryBudget, SessionSource, Snapshot, StatefulSession,
    WeightedRoundRobin,
};
use mesh_testkit::{FixedSource, clock};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::each_seed;
use crate::fleet::{Door, Fleet, Manner, Wire};
use crate::health::ejecting;
use crate::load::{Policy, Record, TARGET, client_from, get, read, request, run_with};

const SECOND: Duration = Duration::from_secs(1);
/// Longest time of a request.
const TIMEOUT: Duration = Duration::from_secs(1);

/// One of several, by the seed.
pub(crate) fn one_of<T: Clone>(several: &[T]) -> T {
    several[fastrand::usize(..several.len())].clone()
}

fn often() -> bool {
    fastrand::bool()
}

/// One of all that there are but passthrough, or a part of the endpoints and one of them.
fn balancer() -> Balancer {
    let hashing = Balancer::RingHash { min_size: 64, max_size: 1024 };
    let first = Balancer::PickFirst { shuffle: true };
    let prequal = Balancer::Prequal(Default::default());
    let by_load = WeightedRoundRobin { blackout_period: Duration::ZERO, ..WeightedRoundRobin::default() };
    let leaf = one_of(&[
        Balancer::least_request(),
        Balancer::RoundRobin,
        Balancer::Random,
        Balancer::PeakEwma,
        Balancer::Maglev { table_size: 251 },
        hashing,
        first,
        prequal,
        Balancer::WeightedRoundRobin(by_load),
    ]);
    let (size, child) = (fastrand::u32(1..4), Box::new(leaf.clone()));
    match fastrand::u8(..4) {
        0 => Balancer::RandomSubsetting { size, of_each: false, child },
        1 => Balancer::DeterministicSubsetting { size, of_each: false, child },
        _ => leaf,
    }
}

fn policy(wire: Wire, attempts: u32) -> Policy {
    let mut policy = if matches!(wire, Wire::Http1) { Policy::default() } else { Policy::http2() };
    policy.timeout = Some(TIMEOUT);
    let cluster = &mut policy.cluster;
    cluster.balancer = balancer();
    cluster.connection.connect_timeout = TIMEOUT / 4;
    cluster.outlier = often().then(|| ejecting(3, SECOND));
    cluster.accrual = often().then(|| FailureAccrual { max_failures: 3, ..FailureAccrual::default() });
    cluster.locality.weighted = often();
    cluster.locality.panic_threshold = often().then(|| PerMillion::new(500_000));
    if often() {
        let limits = (one_of(&[None, Some(1), Some(8)]), one_of(&[None, Some(4)]), one_of(&[None, Some(1)]));
        let (max_connections, max_pending, max_retries) = limits;
        cluster.breaker = CircuitBreakers { max_connections, max_pending, max_retries, ..CircuitBreakers::default() };
    }
    if attempts > 0 && often() {
        let (initial_requests, additional_request) = (1, PerMillion::NONE);
        policy.hedge = Some(HedgePolicy { initial_requests, additional_request, on_per_try_timeout: true });
    }
    let share = PerMillion::new(500_000);
    policy.mirrors =
        often().then(|| Mirror { cluster: "fleet".into(), share, shadow_host: true }).into_iter().collect();
    let budget = || RetryBudget { retry_ratio: PerMillionRatio(200_000), min_retries_per_second: 10, ttl: 10 * SECOND };
    policy.budget = often().then(budget);
    let mut policy = policy.retrying(attempts, one_of(&[None, Some(TIMEOUT / 10)]));
    let retry = policy.retry.as_mut().unwrap();
    retry.per_try_idle_timeout = often().then_some(TIMEOUT / 5);
    retry.avoid_previous_hosts = often();
    retry.next_locality = often();
    policy
}

const SESSION: HeaderName = HeaderName::from_static("x-session");

/// The fleet in one or two localities, of the same priority or not, with sessions or without.
fn snapshot(fleet: &Fleet, policy: &Policy) -> Snapshot {
    let mut snapshot = policy.snapshot(Vec::new());
    let zones = fastrand::usize(1..=fleet.len().min(2));
    let next = fastrand::u32(..2);
    let group = |zone: usize| LocalityEndpoints {
        locality: Locality { zone: format!("zone-{zone}"), ..Locality::default() },
        priority: zone as u32 * next,
        weight: one_of(&[NonZeroU32::MIN, NonZeroU32::new(4).unwrap()]),
        endpoints: (zone..fleet.len()).step_by(zones).map(|server| fleet.endpoint(server)).collect(),
    };
    let localities = (0..zones).map(group).collect();
    let endpoints = Arc::new(Endpoints { cluster: "fleet".into(), localities, ..Endpoints::default() });
    let cluster = Arc::new(policy.cluster.clone());
    snapshot.clusters.insert("fleet".into(), ClusterState::Ready { cluster, endpoints });
    if often() {
        let session = StatefulSession { source: SessionSource::Header(SESSION), strict: often() };
        let kind = HttpFilterKind::Session(Some(session));
        Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "session".into(), kind }];
    }
    snapshot
}

/// What the requests of a storm are.
#[derive(Clone, Debug)]
struct Calls {
    method: Method,
    grpc: bool,
    /// Some have less time than the route gives them, and some none.
    hurried: bool,
    /// The session of the last answer that named one, of which some requests are.
    session: Arc<Mutex<Option<HeaderValue>>>,
}

impl Calls {
    fn drawn() -> Self {
        let grpc = often();
        let method = if grpc { Method::POST } else { one_of(&[Method::GET, Method::POST]) };
        Self { method, grpc, hurried: often(), session: Arc::default() }
    }

    fn send(&self, client: &Client) -> impl Future<Output = Result<Response<Bytes>, Error>> + Send + use<> {
        let mut request = request(self.method.clone(), "/", "");
        if self.grpc {
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        }
        let session = self.session.lock().clone().filter(|_| often());
        request.headers_mut().extend(session.map(|session| (SESSION, session)));
        let mut context = RequestContext::from_headers(&HeaderMap::new());
        let time = one_of(&[None, Some(Duration::ZERO), Some(TIMEOUT / 100), Some(TIMEOUT / 3)]);
        context.deadline = time.filter(|_| self.hurried).map(|time| Instant::now() + time);
        let (client, session) = (client.clone(), self.session.clone());
        scope(context.into(), async move {
            let answer = read(client.send(request).await?).await?;
            if let Some(named) = answer.headers().get(SESSION) {
                *session.lock() = Some(named.clone());
            }
            Ok(answer)
        })
    }
}

/// Something happens to one of the servers.
fn trouble(fleet: &Fleet) {
    let server = fleet.server(fastrand::usize(..fleet.len()));
    match fastrand::u8(..7) {
        0 => server.change(|manner| manner.failing = 1.0),
        1 => server.change(|manner| manner.failing = 0.3),
        // Work goes on when nobody waits any more, and must be over when the trouble has been for a while.
        2 => server.change(|manner| manner.time = (manner.time * 20).min(2 * SECOND)),
        3 => server.change(|manner| manner.door = Door::Shut),
        4 => server.change(|manner| manner.door = Door::Silent),
        5 => server.recycle(),
        _ => server.cut(),
    }
}

fn end_of_trouble(fleet: &Fleet, manner: &Manner) {
    for server in fleet.iter() {
        server.change(|own| *own = manner.clone());
    }
}

#[test]
fn whatever_happens_requests_end_in_time_and_nothing_stays_behind() {
    each_seed(1000, || async {
        let wire = one_of(&[Wire::Http1, Wire::Http2(100), Wire::Http2(1)]);
        // Some tell their load to those who go by it.
        let manner = Manner { utilization: often().then_some(0.5), ..Manner::default() };
        let fleet = Fleet::of(fastrand::usize(1..5), 4, &manner, wire, None);
        let attempts = fastrand::u32(..3);
        let policy = policy(wire, attempts);
        let source = FixedSource::of(TARGET, snapshot(&fleet, &policy));
        let client = client_from(&fleet, &source);
        let storm = async {
            for _ in 0..4 {
                clock::pass(SECOND / 20).await;
                trouble(&fleet);
            }
        };
        let calls = Calls::drawn();
        let (records, ()) = join(run_with(|| calls.send(&client), 60.0, SECOND / 4), storm).await;
        let late: Vec<&Record> = records.iter().filter(|record| record.took > TIMEOUT + SECOND / 100).collect();
        assert!(late.is_empty(), "{late:?} under {policy:?}");
        // What is sent again without a policy is sent once more, and nobody has worked on it.
        let most = records.len() as u64 * (u64::from(attempts) + 2 + policy.mirrors.len() as u64);
        assert!(fleet.seen().iter().sum::<u64>() <= most, "{:?} of {}", fleet.seen(), records.len());

        end_of_trouble(&fleet, &manner);
        clock::pass(120 * SECOND).await;
        let dump = client.dump();
        assert_eq!(dump.mirrors, 0, "{policy:?}");
        let cluster = &dump.destinations[0].clusters[0];
        assert_eq!((cluster.default_priority.requests, cluster.default_priority.pending), (0, 0), "{policy:?}");
        assert!(cluster.endpoints.iter().all(|endpoint| endpoint.in_flight == 0), "{:?}", cluster.endpoints);
        // One after the other, for who is on probation takes one at a time.
        for number in 0..10 {
            let answer = get(&client).await.map(|answer| answer.status());
            assert!(matches!(&answer, Ok(status) if *status == 200), "{number}: {answer:?}, under {policy:?}");
        }
    });
}
