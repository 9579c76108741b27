//! A thousand short storms: servers, policy and trouble are drawn from the seed, and whatever they are, every request ends in
//! its time, nothing stays counted, nobody is asked more often than policy allows, and when the trouble is over all is well.

use std::time::Duration;

use futures_util::future::join;
use http::Method;
use mesh_core::policy::{Balancer, CircuitBreakers, FailureAccrual, HedgePolicy, PerMillion};
use mesh_testkit::clock;

use crate::each_seed;
use crate::fleet::{Door, Fleet, Manner, Wire};
use crate::health::ejecting;
use crate::load::{Policy, Record, client, get, run_of};

const SECOND: Duration = Duration::from_secs(1);
/// Longest time of a request.
const TIMEOUT: Duration = Duration::from_secs(1);

/// One of several, by the seed.
fn one_of<T: Clone>(several: &[T]) -> T {
    several[fastrand::usize(..several.len())].clone()
}

fn often() -> bool {
    fastrand::bool()
}

fn balancer() -> Balancer {
    let hashing = Balancer::RingHash { min_size: 64, max_size: 1024 };
    let first = Balancer::PickFirst { shuffle: true };
    let prequal = Balancer::Prequal(Default::default());
    one_of(&[
        Balancer::least_request(),
        Balancer::RoundRobin,
        Balancer::Random,
        Balancer::PeakEwma,
        Balancer::Maglev { table_size: 251 },
        hashing,
        first,
        prequal,
    ])
}

fn policy(wire: Wire, attempts: u32) -> Policy {
    let mut policy = if matches!(wire, Wire::Http1) { Policy::default() } else { Policy::http2() };
    policy.timeout = Some(TIMEOUT);
    let cluster = &mut policy.cluster;
    cluster.balancer = balancer();
    cluster.connection.connect_timeout = TIMEOUT / 4;
    cluster.outlier = often().then(|| ejecting(3, SECOND));
    cluster.accrual = often().then(|| FailureAccrual { max_failures: 3, ..FailureAccrual::default() });
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
    policy.retrying(attempts, one_of(&[None, Some(TIMEOUT / 10)]))
}

/// Something happens to one of the servers.
fn trouble(fleet: &Fleet) {
    let server = fleet.server(fastrand::usize(..fleet.len()));
    match fastrand::u8(..7) {
        0 => server.change(|manner| manner.failing = 1.0),
        1 => server.change(|manner| manner.failing = 0.3),
        2 => server.change(|manner| manner.time *= 20),
        3 => server.change(|manner| manner.door = Door::Shut),
        4 => server.change(|manner| manner.door = Door::Silent),
        5 => server.recycle(),
        _ => server.cut(),
    }
}

fn end_of_trouble(fleet: &Fleet) {
    for server in fleet.iter() {
        server.change(|manner| *manner = Manner::default());
    }
}

#[test]
fn whatever_happens_requests_end_in_time_and_nothing_stays_behind() {
    each_seed(1000, || async {
        let wire = one_of(&[Wire::Http1, Wire::Http2(100), Wire::Http2(1)]);
        let fleet = Fleet::of(fastrand::usize(1..5), 4, &Manner::default(), wire, None);
        let attempts = fastrand::u32(..3);
        let policy = policy(wire, attempts);
        let (client, _source) = client(&fleet, &policy);
        let storm = async {
            for _ in 0..4 {
                clock::pass(SECOND / 20).await;
                trouble(&fleet);
            }
        };
        let method = one_of(&[Method::GET, Method::POST]);
        let (records, ()) = join(run_of(&client, method, 60.0, SECOND / 4), storm).await;
        let late: Vec<&Record> = records.iter().filter(|record| record.took > TIMEOUT + SECOND / 100).collect();
        assert!(late.is_empty(), "{late:?} under {policy:?}");
        // What is sent again without a policy is sent once more, and nobody has worked on it.
        let most = records.len() as u64 * (u64::from(attempts) + 2);
        assert!(fleet.seen().iter().sum::<u64>() <= most, "{:?} of {}", fleet.seen(), records.len());

        end_of_trouble(&fleet);
        clock::pass(120 * SECOND).await;
        let cluster = &client.dump().destinations[0].clusters[0];
        assert_eq!((cluster.default_priority.requests, cluster.default_priority.pending), (0, 0), "{policy:?}");
        assert!(cluster.endpoints.iter().all(|endpoint| endpoint.in_flight == 0), "{:?}", cluster.endpoints);
        // One after the other, for who is on probation takes one at a time.
        for number in 0..10 {
            let answer = get(&client).await.map(|answer| answer.status());
            assert!(matches!(&answer, Ok(status) if *status == 200), "{number}: {answer:?}, under {policy:?}");
        }
    });
}
