//! Every order in which two threads may come to what requests share: the breakers, the budget, token buckets, the limit
//! on requests in flight and their count, an endpoint's load, the connections of a pool and who waits for one, fail-fast, pickers. Played by
//! loom, in whose hands the feature `_loom` puts the atomics:
//! `cargo test -p mesh-core --features _loom --test interleavings`.
//!
//! Of the swap of one set of endpoints for the next all is played but the swap itself (`arc_swap::ArcSwap`, whose atomics are
//! the standard library's, which loom does not see): a request picks from the set that it loaded while the next one is
//! built of the same endpoints, and what both share of them is one. `mesh-client` picks from real threads while real sets are
//! swapped. Of a pool there are the counts and who waits; its connections lie behind locks, and who waits is woken by
//! `tokio::sync::Notify`.

use std::sync::Arc;
use std::time::Duration;

use loom::thread;
use mesh_core::balance::{Load, Pick, ReadySet};
use mesh_core::health::{Accrual, AccrualState, Evidence};
use mesh_core::limit::{Count, FailFast, Gradient, TokenBucket, Waiters};
use mesh_core::policy::{self, AdaptiveConcurrency, FailureAccrual, MinRtt, PerMillionRatio, RetryBudget};
use mesh_core::retry::Budget;
use tokio::time::Instant;

/// Plays `scenario` in every order.
fn in_every_order(scenario: impl Fn() + Sync + Send + 'static) {
    loom::model(scenario);
}

/// What `act` gave on a thread of its own and on this one.
fn two<T: Send + 'static>(act: impl Fn() -> T + Send + Sync + 'static) -> [T; 2] {
    let act = Arc::new(act);
    let other = thread::spawn({
        let act = act.clone();
        move || act()
    });
    let own = act();
    [own, other.join().expect("a thread of a test does not panic")]
}

fn strict() -> FailureAccrual {
    FailureAccrual { max_failures: 1, ..FailureAccrual::default() }
}

fn on_probation() -> Arc<Accrual> {
    let accrual = Arc::<Accrual>::default();
    let mut turn = accrual.enter().expect("it is closed");
    assert!(accrual.record(&mut turn, Evidence::Status(503), &strict()));
    accrual.leave(turn);
    assert!(accrual.enter().is_none(), "it is open");
    accrual.begin_probation();
    accrual
}

#[test]
fn on_probation_one_of_two_gets_through_r18() {
    in_every_order(|| {
        let accrual = on_probation();
        let entering = accrual.clone();
        let turns = two(move || entering.enter());
        assert_eq!(turns.iter().flatten().count(), 1);
        assert_eq!(accrual.state(), AccrualState::Probing);
        turns.into_iter().flatten().for_each(|turn| accrual.leave(turn));
        assert_eq!(accrual.state(), AccrualState::Probation, "given up, it leaves its place to the next");
    });
}

#[test]
fn whatever_becomes_of_probes_there_is_a_way_back_r18() {
    for evidence in [None, Some(Evidence::Status(200)), Some(Evidence::Status(503))] {
        in_every_order(move || {
            let accrual = on_probation();
            let probing = accrual.clone();
            two(move || {
                let Some(mut turn) = probing.enter() else { return };
                if let Some(evidence) = evidence {
                    probing.record(&mut turn, evidence, &strict());
                }
                probing.leave(turn);
            });
            // The owner ends a penalty, if there is one.
            accrual.begin_probation();
            let turn = accrual.enter();
            assert!(turn.is_some(), "{:?} after {evidence:?}", accrual.state());
            turn.into_iter().for_each(|turn| accrual.leave(turn));
        });
    }
}

#[test]
fn one_failure_too_many_opens_once_however_many_fail_at_once_r18() {
    in_every_order(|| {
        let accrual = Arc::<Accrual>::default();
        let failing = accrual.clone();
        let opened = two(move || {
            let Some(mut turn) = failing.enter() else { return false };
            let opened = failing.record(&mut turn, Evidence::Status(503), &strict());
            failing.leave(turn);
            opened
        });
        assert_eq!(opened.into_iter().filter(|opened| *opened).count(), 1, "the owner is told once");
        assert_eq!(accrual.state(), AccrualState::Open);
    });
}

#[test]
fn a_budget_forgets_no_retry_that_it_allowed() {
    in_every_order(|| {
        let ttl = Duration::from_secs(10);
        let policy = RetryBudget { retry_ratio: PerMillionRatio(1_000_000), min_retries_per_second: 0, ttl };
        let now = Instant::now();
        let budget = Arc::new(Budget::new(policy, now));
        let asking = budget.clone();
        let takes = move |budget: &Budget| {
            let allowed = budget.allows(now);
            if allowed {
                budget.record_retry(now);
            }
            allowed
        };
        // Each brings a request, which earns it a retry.
        let allowed = two(move || {
            asking.record_request(now);
            takes(&asking)
        });
        assert!(allowed.iter().any(|allowed| *allowed), "who comes last finds both requests");
        let left = (0..3).filter(|_| takes(&budget)).count();
        let taken = allowed.into_iter().filter(|allowed| *allowed).count();
        assert_eq!(taken + left, 2, "as many as were earned");
    });
}

#[test]
fn the_last_token_is_given_once() {
    in_every_order(|| {
        let policy =
            policy::TokenBucket { max_tokens: 1, tokens_per_fill: 1, fill_interval: Duration::from_secs(3600) };
        let now = Instant::now();
        let bucket = Arc::new(TokenBucket::new(&policy, now));
        let taken = two(move || bucket.take(now));
        assert_eq!(taken.into_iter().filter(|taken| *taken).count(), 1);
    });
}

#[test]
fn the_last_place_is_given_once_and_comes_back() {
    in_every_order(|| {
        let min_rtt = MinRtt::Fixed(Duration::from_secs(1));
        let one = AdaptiveConcurrency { min_limit: 1, max_limit: 1, min_rtt, ..AdaptiveConcurrency::default() };
        let now = Instant::now();
        let gradient = Arc::new(Gradient::new(one, now));
        let entering = gradient.clone();
        let begun = two(move || entering.try_begin(now));
        assert_eq!(begun.into_iter().filter(|begun| *begun).count(), 1);
        gradient.cancel();
        assert_eq!(gradient.in_flight(), 0);
        assert!(gradient.try_begin(now));
    });
}

/// What circuit breakers (requests, retries, those that wait), limits of connections and of injected faults count with.
#[test]
fn the_last_place_of_a_breaker_is_given_once_and_comes_back() {
    in_every_order(|| {
        let count = Arc::<Count>::default();
        let entering = count.clone();
        let entered = two(move || entering.enter_within(Some(1)));
        assert_eq!(entered.into_iter().filter(|entered| *entered).count(), 1);
        assert_eq!(count.get(), 1, "who was refused is not counted");
        count.leave();
        let passing = count.clone();
        two(move || {
            if passing.enter_below(1) {
                passing.leave();
            }
        });
        assert!(count.get() == 0 && count.enter_below(1));
    });
    // Whoever comes when the only place comes free, one of two has it.
    in_every_order(|| {
        let count = Arc::<Count>::default();
        assert!(count.enter_below(1));
        let entering = count.clone();
        let other = thread::spawn(move || entering.enter_below(1));
        count.leave();
        let own = count.enter_below(1);
        let other = other.join().expect("a thread of a test does not panic");
        assert!(own != other && count.get() == 1);
    });
}

/// One connection there may be, and it is closed while a request finds that there may be no other: either the request
/// sees its room, or it is told. What a pool does, one step for one; `see` is how who waits is counted, and `ask` what
/// asks for it.
fn a_connection_is_closed_as_one_waits(see: fn(&Waiters), ask: fn()) {
    in_every_order(move || {
        let (open, waiters) = (Arc::<Count>::default(), Arc::<Waiters>::default());
        assert!(open.enter_below(1));
        let (closing, asked) = (open.clone(), waiters.clone());
        let told = thread::spawn(move || {
            closing.leave();
            ask();
            asked.any()
        });
        let found = open.enter_below(1) || {
            see(&waiters);
            open.enter_below(1)
        };
        let told = told.join().expect("a thread of a test does not panic");
        assert!(found || told, "forgotten");
        assert_eq!(open.get(), u32::from(found));
    });
}

#[test]
fn who_waits_for_a_connection_finds_room_or_is_told_of_it() {
    a_connection_is_closed_as_one_waits(Waiters::enter, Waiters::given_back);
}

/// Control run: who asks before the room is there for all to see may see nobody.
#[test]
#[should_panic(expected = "forgotten")]
fn without_a_fence_who_waits_can_be_forgotten() {
    a_connection_is_closed_as_one_waits(Waiters::enter, || {});
}

/// Control run: so may who is counted after its last look.
#[test]
#[should_panic(expected = "forgotten")]
fn who_is_counted_too_late_can_be_forgotten() {
    a_connection_is_closed_as_one_waits(|_| {}, Waiters::given_back);
}

/// Limits of the cluster and of the endpoint, as `OpenGuard::within` asks for them: both or neither.
#[test]
fn who_is_refused_by_one_of_two_limits_takes_no_place_of_the_other() {
    in_every_order(|| {
        let counts = Arc::new((Count::default(), Count::default()));
        let entering = counts.clone();
        let got = two(move || {
            let (of_endpoint, of_cluster) = &*entering;
            if !of_endpoint.enter_below(2) {
                return false;
            }
            let both = of_cluster.enter_below(1);
            if !both {
                of_endpoint.leave();
            }
            both
        });
        assert_eq!(got.into_iter().filter(|got| *got).count(), 1);
        assert_eq!((counts.0.get(), counts.1.get()), (1, 1));
    });
}

#[test]
fn who_finds_a_connection_is_not_overruled_by_who_gives_up_at_that_moment() {
    let ms = Duration::from_millis;
    in_every_order(move || {
        let fast = Arc::new(FailFast::new(ms(100)));
        let finding = fast.clone();
        let other = thread::spawn(move || finding.found(ms(200)));
        fast.missed(ms(200));
        other.join().expect("a thread of a test does not panic");
        assert!(fast.may_wait(ms(201)) && fast.may_wait(ms(201)));
    });
    // Control: who gives up alone is believed, and then one of two may look.
    in_every_order(move || {
        let fast = Arc::new(FailFast::new(ms(100)));
        fast.missed(ms(200));
        assert!(!fast.may_wait(ms(299)));
        let looking = fast.clone();
        let looked = two(move || looking.may_wait(ms(300)));
        assert_eq!(looked.into_iter().filter(|looked| *looked).count(), 1);
    });
}

#[test]
fn what_is_in_flight_is_counted_while_it_is_and_no_longer() {
    in_every_order(|| {
        let load = Arc::<Load>::default();
        let requests = load.clone();
        let seen = two(move || {
            let in_flight = requests.start();
            let seen = in_flight.load().in_flight();
            drop(in_flight);
            seen
        });
        assert!(seen.into_iter().all(|seen| seen == 1 || seen == 2), "{seen:?}");
        assert_eq!(load.in_flight(), 0);
    });
}

/// What a success takes off is of the time that it finds, and it never puts an older one in place of a newer.
#[test]
fn who_is_late_as_another_try_succeeds_is_late() {
    let ms = Duration::from_millis;
    in_every_order(move || {
        let load = Arc::<Load>::default();
        load.late(ms(200), ms(1000));
        let succeeding = load.clone();
        let other = thread::spawn(move || succeeding.succeeded(ms(1), ms(1999)));
        load.late(ms(1), ms(2000));
        other.join().expect("a thread of a test does not panic");
        let late = load.late_for(ms(2000)).map(|time| time.as_millis());
        assert_eq!(late, Some(300), "twice as long, less a quarter");
    });
}

/// A set of two endpoints that requests share.
fn set_of_two(balancer: policy::Balancer) -> Arc<ReadySet<Arc<Load>>> {
    let loads = [0, 1].map(|_| Arc::<Load>::default());
    set_of(balancer, &loads)
}

/// The same of endpoints that there were before.
fn set_of(balancer: policy::Balancer, loads: &[Arc<Load>; 2]) -> Arc<ReadySet<Arc<Load>>> {
    let address = |last: u8| policy::Address::Socket(([10, 0, 0, last], 80).into());
    let endpoints = [0, 1].map(|last| policy::Endpoint::new(address(last)));
    let group = policy::LocalityEndpoints {
        locality: Default::default(),
        priority: 0,
        weight: std::num::NonZeroU32::MIN,
        endpoints: endpoints.into(),
    };
    let endpoints = policy::Endpoints { localities: vec![group], ..Default::default() };
    let cluster = policy::Cluster { balancer, ..policy::Cluster::new("test".into()) };
    let ready = ReadySet::build(endpoints.into(), cluster.into(), None, Duration::ZERO, &mut |_| 0, |endpoint| {
        let load = &loads[usize::from(endpoint.address == address(1))];
        (load.clone(), Some(load.clone()))
    });
    Arc::new(ready)
}

fn pick(set: &ReadySet<Arc<Load>>) -> Option<usize> {
    set.pick(&Pick::default(), &mut |_| 0).map(|(index, _)| index)
}

#[test]
fn who_picks_in_turn_at_once_picks_different_ones() {
    in_every_order(|| {
        let set = set_of_two(policy::Balancer::RoundRobin);
        let picked = two(move || pick(&set));
        assert_eq!(picked.into_iter().flatten().sum::<usize>(), 1, "{picked:?}");
    });
}

#[test]
fn who_finds_the_first_one_lost_goes_to_the_next_whoever_found_it_first() {
    in_every_order(|| {
        let set = set_of_two(policy::Balancer::PickFirst { shuffle: false });
        // It was used before it was lost.
        assert_eq!(pick(&set), Some(0));
        set.endpoints()[0].unreachable(Duration::ZERO);
        assert_eq!(two(move || pick(&set)), [Some(1); 2]);
    });
}

/// A request has loaded the set that is being replaced: the next one is built of the same endpoints, and picked from, while
/// it picks.
#[test]
fn requests_of_two_sets_count_at_the_same_endpoints_while_one_replaces_the_other() {
    for balancer in [policy::Balancer::RoundRobin, policy::Balancer::PickFirst { shuffle: false }] {
        let first = matches!(balancer, policy::Balancer::PickFirst { .. });
        in_every_order(move || {
            let loads = [0, 1].map(|_| Arc::<Load>::default());
            let before = set_of(balancer.clone(), &loads);
            if first {
                // What both have to find out, whoever comes first.
                assert_eq!(pick(&before), Some(0));
                loads[0].unreachable(Duration::ZERO);
            }
            let (next, own) = (balancer.clone(), loads.clone());
            let replacing = thread::spawn(move || {
                let next = set_of(next, &own);
                let index = pick(&next).expect("there are two");
                (index, next.endpoints()[index].start())
            });
            let index = pick(&before).expect("there are two");
            let request = before.endpoints()[index].start();
            let (other, second) = replacing.join().expect("a thread of a test does not panic");
            let in_flight = |index: usize| loads[index].in_flight() as usize;
            assert_eq!(in_flight(index), 1 + usize::from(index == other));
            assert_eq!(in_flight(0) + in_flight(1), 2, "of one endpoint there is one count");
            assert!(!first || (index, other) == (1, 1), "{index} and {other}");
            drop((request, second));
            assert_eq!(in_flight(0) + in_flight(1), 0);
        });
    }
}

/// Control run: what looks and then takes, in two steps, is seen to take twice.
#[test]
#[should_panic(expected = "taken twice")]
fn a_look_before_a_leap_is_found_out() {
    use loom::sync::atomic::{AtomicU32, Ordering};
    in_every_order(|| {
        let places = Arc::new(AtomicU32::new(1));
        let taking = places.clone();
        let taken = two(move || {
            let free = taking.load(Ordering::SeqCst) > 0;
            if free {
                taking.fetch_sub(1, Ordering::SeqCst);
            }
            free
        });
        assert!(taken != [true, true], "taken twice");
    });
}
