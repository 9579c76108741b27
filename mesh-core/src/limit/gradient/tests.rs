//! The limit against backends that queue.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn policy() -> AdaptiveConcurrency {
    AdaptiveConcurrency { max_limit: 2000, ..AdaptiveConcurrency::default() }
}

fn fixed(min_rtt: Duration) -> AdaptiveConcurrency {
    AdaptiveConcurrency { min_rtt: MinRtt::Fixed(min_rtt), ..policy() }
}

/// A backend with so many workers, each taking 10 ms a request, and clients that always want more.
struct World {
    gradient: Gradient,
    start: Instant,
    now: Instant,
    workers: u32,
    // Ends of requests, the next first, with their beginnings.
    under_way: BinaryHeap<Reverse<(Instant, Instant)>>,
    slowest: Duration,
}

impl World {
    fn new(policy: AdaptiveConcurrency, workers: u32) -> Self {
        let start = Instant::now();
        let gradient = Gradient::new(policy, start);
        Self { gradient, start, now: start, workers, under_way: BinaryHeap::new(), slowest: Duration::ZERO }
    }

    /// Lets time pass with up to `offered` requests in flight.
    fn run(&mut self, time: Duration, offered: u32) {
        let end = self.now + time;
        while self.now < end {
            while (self.under_way.len() as u32) < offered && self.gradient.try_begin(self.now) {
                // Who finds all workers busy waits for its share of them.
                let busy = (self.under_way.len() as u32 + 1).max(self.workers);
                self.under_way.push(Reverse((self.now + 10 * MS * busy / self.workers, self.now)));
            }
            self.now += MS;
            while self.under_way.peek().is_some_and(|Reverse((ends, _))| *ends <= self.now) {
                let Some(Reverse((_, began))) = self.under_way.pop() else { break };
                self.slowest = self.slowest.max(self.now - began);
                self.gradient.finish(began, self.now, |below| below / 2);
            }
        }
    }
}

#[test]
fn the_limit_settles_near_what_the_backend_can_do() {
    let mut world = World::new(policy(), 100);
    world.run(Duration::from_secs(20), 1000);
    let limit = world.gradient.limit();
    // 100 workers, a quarter more for the buffer, and the root of that.
    assert!((100..=220).contains(&limit), "{limit}");
    world.slowest = Duration::ZERO;
    world.run(Duration::from_secs(1), 1000);
    assert!(world.slowest <= 30 * MS, "{:?}", world.slowest);
    // Control: without the limit all thousand queue.
    let pinned = AdaptiveConcurrency { min_limit: 1000, max_limit: 1000, ..fixed(10 * MS) };
    let mut open = World::new(pinned, 100);
    open.run(Duration::from_secs(1), 1000);
    assert!(open.slowest >= 90 * MS, "{:?}", open.slowest);
}

#[test]
fn it_follows_a_backend_that_loses_and_regains_workers() {
    let mut world = World::new(policy(), 100);
    world.run(Duration::from_secs(10), 1000);
    let before = world.gradient.limit();
    world.workers = 20;
    world.run(Duration::from_secs(10), 1000);
    let during = world.gradient.limit();
    assert!(during < before / 2, "{before}, then {during}");
    world.workers = 100;
    world.run(Duration::from_secs(10), 1000);
    let after = world.gradient.limit();
    assert!(after > during * 2, "{during}, then {after}");
}

#[test]
fn it_begins_low_and_measures_until_enough_have_ended() {
    let mut world = World::new(policy(), 100);
    assert!(world.gradient.is_measuring());
    assert_eq!((world.gradient.limit(), world.gradient.min_rtt()), (3, Duration::ZERO));
    // Three at a time, 10 ms each: 17 rounds make 50.
    world.run(169 * MS, 1000);
    assert!(world.gradient.is_measuring());
    assert_eq!(world.gradient.in_flight(), 3);
    world.run(2 * MS, 1000);
    assert!(!world.gradient.is_measuring());
    let least = world.gradient.min_rtt();
    assert!((96 * MS / 10..=104 * MS / 10).contains(&least), "{least:?}");
}

#[test]
fn the_least_latency_is_measured_again_with_jitter_and_the_limit_comes_back() {
    let mut world = World::new(policy(), 100);
    world.run(Duration::from_secs(10), 1000);
    let measured = 170 * MS;
    // A minute and, by our draw, half of 15 % of it.
    let due = measured + Duration::from_millis(60_000 + 4500);
    world.run(world.start + due - 2 * MS - world.now, 1000);
    assert!(!world.gradient.is_measuring());
    let before = world.gradient.limit();
    world.run(15 * MS, 1000);
    assert!(world.gradient.is_measuring());
    assert_eq!(world.gradient.limit(), 3);
    // Those of before drain; then three at a time.
    world.run(Duration::from_millis(400), 1000);
    assert!(!world.gradient.is_measuring());
    let after = world.gradient.limit();
    assert!(after.abs_diff(before) <= before / 2, "{before}, then {after}");
    let least = world.gradient.min_rtt();
    assert!(least <= 11 * MS, "requests that began before the measurement do not count: {least:?}");
}

#[test]
fn a_limit_long_at_its_floor_has_the_least_latency_measured_again() {
    let now = Instant::now();
    let gradient = Gradient::new(policy(), now);
    let request = |at: Instant, took: Duration| {
        assert!(gradient.try_begin(at));
        gradient.finish(at, at + took, |_| 0);
    };
    (0..50).for_each(|_| request(now, MS));
    assert!(!gradient.is_measuring());
    // The backend is ten times slower now, for good.
    let mut at = now;
    let mut periods = 0;
    while !gradient.is_measuring() {
        at += 101 * MS;
        request(at, 10 * MS);
        periods += 1;
        assert!(periods < 20, "the limit is {}", gradient.limit());
    }
    assert_eq!(gradient.limit(), 3);
    (0..50).for_each(|_| request(at + 10 * MS, 10 * MS));
    assert!(gradient.min_rtt() > 9 * MS);
    // Control: a least latency that policy knows is never measured.
    let gradient = Gradient::new(fixed(MS), now);
    for period in 0..50 {
        let at = now + 101 * MS * period;
        assert!(gradient.try_begin(at));
        gradient.finish(at, at + 10 * MS, |_| 0);
    }
    assert_eq!((gradient.is_measuring(), gradient.limit()), (false, 3));
}

#[test]
fn what_is_cancelled_frees_its_place_and_says_nothing() {
    let now = Instant::now();
    let gradient = Gradient::new(policy(), now);
    for _ in 0..200 {
        assert!(gradient.try_begin(now));
        gradient.cancel();
    }
    assert!(gradient.is_measuring());
    assert_eq!(gradient.in_flight(), 0);
    let three = (0..10).filter(|_| gradient.try_begin(now)).count();
    assert_eq!((three, gradient.in_flight()), (3, 3));
}

#[test]
fn threads_together_never_exceed_the_limit_and_leave_nothing_behind() {
    let now = Instant::now();
    let pinned = AdaptiveConcurrency { min_limit: 4, max_limit: 4, ..fixed(MS) };
    let gradient = Gradient::new(pinned, now);
    let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for thread in 0..8_u32 {
            let (gradient, inside, most) = (&gradient, &inside, &most);
            scope.spawn(move || {
                for i in 0..5000_u32 {
                    let at = now + MS * i;
                    if gradient.try_begin(at) {
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        if (i + thread) % 3 == 0 { gradient.cancel() } else { gradient.finish(at, at + MS, |_| 0) }
                    }
                }
            });
        }
    });
    assert!(most.load(Ordering::SeqCst) <= 4);
    assert_eq!((gradient.in_flight(), gradient.limit()), (0, 4));
}

proptest! {
    #[test]
    fn whatever_the_latencies_the_limit_stays_within_its_bounds(
        latencies in prop::collection::vec(0..10_000_000_u64, 1..400), floor in 1..50_u32, ceiling in 1..50_u32,
        concurrency in 1..20_u32, requests in 1..60_u32, jitter in 0..=1_000_000_u32, draw in any::<u64>(),
    ) {
        let now = Instant::now();
        let min_rtt = MinRtt::Measured {
            interval: Duration::from_secs(2), requests, jitter: PerMillion::new(jitter), concurrency,
        };
        let policy = AdaptiveConcurrency { min_limit: floor, max_limit: ceiling, min_rtt, ..policy() };
        let gradient = Gradient::new(policy, now);
        let mut at = now;
        for micros in latencies {
            if gradient.try_begin(at) {
                let took = Duration::from_micros(micros);
                gradient.finish(at, at + took, |below| draw % below);
                at += took.min(50 * MS);
            }
            let limit = gradient.limit();
            let bounds = floor.min(concurrency)..=floor.max(ceiling).max(concurrency);
            prop_assert!(bounds.contains(&limit), "{} is not in {:?}", limit, bounds);
            prop_assert_eq!(gradient.in_flight(), 0);
        }
    }
}
