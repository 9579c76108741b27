//! Endpoints that fail: panic (R15), everybody ejected (R16), who is ejected and who is not (R17), the slow start of
//! new ones (R33), and a zone that only some can reach (R40).

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use mesh_client::Client;
use mesh_core::health::Standing;
use mesh_core::id::Locality;
use mesh_core::policy::{
    Balancer, ClusterState, Endpoints, FailurePercentageEjection, HashPolicy, HashSource, Health, LocalityEndpoints,
    OutlierDetection, PerMillion, RetryOn, RetryPolicy, SlowStart, Snapshot,
};
use mesh_testkit::{FixedSource, clock};

use crate::fleet::{Door, Fleet, Manner};
use crate::load::{Policy, Record, TARGET, client, client_from, either, failures, get, goodput, quantile, run};
use crate::{Verdict, each_seed, ensure, fails_for_some_seed, holds_for_each_seed};

const SECOND: Duration = Duration::from_secs(1);

/// The share of so many requests that are answered well while the endpoints of `down` fail, and discovery says so; and
/// whether panic was as long as they lasted.
async fn success(
    client: &Client,
    source: &FixedSource,
    fleet: &Fleet,
    policy: &Policy,
    down: &[usize],
    requests: usize,
) -> (f64, bool) {
    let mut endpoints = fleet.endpoints();
    for (index, server) in fleet.iter().enumerate() {
        endpoints[index].health = if down.contains(&index) { Health::Unhealthy } else { Health::Healthy };
        server.change(|manner| manner.failing = f64::from(u8::from(down.contains(&index))));
    }
    source.set_snapshot(TARGET, policy.snapshot(endpoints));
    clock::pass(Duration::from_millis(10)).await;
    let in_panic = || client.dump().destinations[0].clusters[0].pools.iter().any(|pool| pool.panic);
    let (mut good, mut panic) = (0, Vec::new());
    for _ in 0..requests {
        good += usize::from(get(client).await.is_ok_and(|answer| answer.status() == 200));
        panic.push(in_panic());
    }
    panic.dedup();
    assert_eq!(panic.len(), 1, "once in a step at most");
    (good as f64 / requests as f64, panic[0])
}

/// Every step of `steps`, of that many of ten endpoints.
async fn panics_below_half(steps: impl Iterator<Item = usize> + Clone, requests: usize) {
    let fleet = Fleet::new(10, 8, &Manner::default());
    let mut policy = Policy::default();
    policy.cluster.balancer = Balancer::RoundRobin;
    let mut order: Vec<_> = (0..10).collect();
    fastrand::shuffle(&mut order);
    for threshold in [Some(PerMillion::new(500_000)), None] {
        policy.cluster.locality.panic_threshold = threshold;
        let (client, source) = client(&fleet, &policy);
        for down in steps.clone() {
            let (got, panic) = success(&client, &source, &fleet, &policy, &order[..down], requests).await;
            // Without a threshold (the control run) the last healthy one serves all.
            let want = match (threshold, down) {
                (_, 10) => 0.0,
                (Some(_), 6..) => 1.0 - down as f64 / 10.0,
                _ => 1.0,
            };
            assert!((got - want).abs() <= 0.05, "{got} answered with {down} of 10 down, {threshold:?}");
            assert_eq!(panic, threshold.is_some() && down > 5, "{down} of 10 down, {threshold:?}");
        }
    }
}

#[test]
fn below_the_threshold_all_endpoints_are_used_and_above_it_only_the_healthy_r15() {
    each_seed(1, || panics_below_half((0..=10).chain((0..10).rev()), 200));
    // Two rounds of the ten.
    each_seed(20, || {
        let steps: Vec<_> = (0..3).map(|_| fastrand::usize(..=10)).collect();
        async move { panics_below_half(steps.iter().copied(), 20).await }
    });
}

/// Of two to six endpoints as many fail as the seed says, and then as many others; what threshold they have is drawn too.
async fn panics_at_its_threshold(has_threshold: bool) -> Verdict {
    let (mut policy, wire) = either(fastrand::bool());
    let fleet = Fleet::of(fastrand::usize(2..=6), 8, &Manner::default(), wire, None);
    // Where more than 71 per cent are left there is no panic whatever the threshold, as with Envoy.
    let (all, tenths) = (fleet.len(), fastrand::usize(2..=7));
    policy.cluster.balancer = Balancer::RoundRobin;
    policy.cluster.locality.panic_threshold = has_threshold.then(|| PerMillion::new(100_000 * tenths as u32));
    let (client, source) = client(&fleet, &policy);
    let mut order: Vec<_> = (0..all).collect();
    for _ in 0..2 {
        fastrand::shuffle(&mut order);
        let down = fastrand::usize(..=all);
        let (got, panic) = success(&client, &source, &fleet, &policy, &order[..down], all).await;
        let well = all - down;
        let below = well * 10 < tenths * all;
        let want = if below { well as f64 / all as f64 } else { 1.0 };
        ensure((got - want).abs() <= 0.05 && panic == below, || {
            format!("{got} answered with {down} of {all} down, below {tenths} tenths: {below}, panic: {panic}")
        })?;
    }
    Ok(())
}

#[test]
fn however_many_are_down_panic_begins_below_its_threshold_r15() {
    holds_for_each_seed(|| panics_at_its_threshold(true));
}

/// Control run.
#[test]
fn without_a_threshold_there_is_no_panic_r15() {
    fails_for_some_seed(|| panics_at_its_threshold(false));
}

pub(crate) fn ejecting(failures: u32, ejection: Duration) -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: Some(failures),
        interval: SECOND,
        base_ejection: ejection,
        max_ejection: ejection,
        ..OutlierDetection::default()
    }
}

/// Endpoints that are ejected now.
fn ejected(client: &Client) -> usize {
    let dump = client.dump();
    let endpoints = &dump.destinations[0].clusters[0].endpoints;
    endpoints.iter().filter(|endpoint| matches!(endpoint.standing, Standing::Ejected(_))).count()
}

#[test]
fn when_all_fail_few_are_ejected_and_all_serve_again_at_once_r16() {
    each_seed(1, || async {
        for servers in [1, 2, 3, 20] {
            let fleet = Fleet::new(servers, 8, &Manner { failing: 1.0, ..Manner::default() });
            let mut policy = Policy::default();
            policy.cluster.outlier = Some(ejecting(5, Duration::from_secs(30)));
            let (client, _source) = client(&fleet, &policy);
            let watch = async {
                let mut most = 0;
                for _ in 0..120 {
                    clock::pass(SECOND / 2).await;
                    most = most.max(ejected(&client));
                }
                fleet.iter().for_each(|server| server.change(|manner| manner.failing = 0.0));
                most
            };
            let (records, most) = tokio::join!(run(&client, 40.0, 75 * SECOND), watch);
            let allowed = if servers == 1 { 0 } else { (servers / 10).max(1) };
            assert_eq!(most, allowed, "ejected of {servers}");
            // Traffic went on: that is what the failures are.
            assert!(fleet.seen().iter().sum::<u64>() as usize > 60 * 40 / 2, "{:?}", fleet.seen());
            assert_eq!(goodput(&records, 61 * SECOND, 75 * SECOND), 1.0, "{servers}: {:?}", failures(&records));
        }
    });
}

/// One to three endpoints fail, all of them: of those that may be ejected (or all, if there is no limit) one is at most.
async fn one_is_ejected_at_most(limited: bool) -> Verdict {
    let (mut policy, wire) = either(fastrand::bool());
    let servers = fastrand::usize(1..=3);
    let fleet = Fleet::of(servers, 8, &Manner { failing: 1.0, ..Manner::default() }, wire, None);
    let mut outlier = ejecting(fastrand::u32(1..=3), 30 * SECOND);
    if !limited {
        outlier.max_ejected = PerMillion::ALL;
    }
    policy.cluster.outlier = Some(outlier);
    let (client, _source) = client(&fleet, &policy);
    let status = async || get(&client).await.map_or(0, |answer| answer.status().as_u16());
    for number in 0..9 {
        let status = status().await;
        ensure(status == 503, || format!("{status}: request {number} asks nobody, of {servers}"))?;
        clock::pass(Duration::from_millis(fastrand::u64(..300))).await;
    }
    let out = ejected(&client);
    ensure(out == usize::from(servers > 1), || format!("{out} of {servers} ejected"))?;
    fleet.iter().for_each(|server| server.change(|manner| manner.failing = 0.0));
    for _ in 0..servers * 2 {
        let status = status().await;
        ensure(status == 200, || format!("{status}, of {servers}, {wire:?}"))?;
    }
    Ok(())
}

#[test]
fn whoever_fails_first_one_is_ejected_at_most_and_all_serve_again_at_once_r16() {
    holds_for_each_seed(|| one_is_ejected_at_most(true));
}

/// Control run.
#[test]
fn without_a_limit_those_that_would_serve_again_are_not_asked_r16() {
    fails_for_some_seed(|| one_is_ejected_at_most(false));
}

/// Control run: with no limit on their number nobody is left to ask, though they would serve.
#[test]
fn without_a_limit_all_are_ejected_r16() {
    each_seed(1, || async {
        let fleet = Fleet::new(3, 8, &Manner { failing: 1.0, ..Manner::default() });
        let mut policy = Policy::default();
        let all = OutlierDetection { max_ejected: PerMillion::ALL, ..ejecting(5, Duration::from_secs(30)) };
        policy.cluster.outlier = Some(all);
        let (client, _source) = client(&fleet, &policy);
        run(&client, 40.0, 5 * SECOND).await;
        fleet.iter().for_each(|server| server.change(|manner| manner.failing = 0.0));
        assert_eq!(ejected(&client), 3);
        assert_eq!(goodput(&run(&client, 40.0, 5 * SECOND).await, Duration::ZERO, 5 * SECOND), 0.0);
    });
}

/// Requests that a server got, of those that began in this time.
fn share(records: &[Record], server: usize, from: Duration, to: Duration) -> f64 {
    let of: Vec<_> =
        records.iter().filter(|r| (from..to).contains(&r.at)).filter_map(|r| r.outcome.as_ref().ok()).collect();
    of.iter().filter(|index| ***index == server).count() as f64 / of.len().max(1) as f64
}

/// What is wrong with one of several endpoints.
#[derive(Clone, Copy, Debug)]
enum Ill {
    /// Fails so often.
    Failing(f64),
    /// A second slower.
    Slow,
}

/// One of `servers` endpoints is ill; the others fail once in a thousand. `rate` requests come in a second, and endpoints
/// are looked at every `interval`: it is ejected within two of them, and nobody else.
async fn the_ill_one_is_ejected(servers: usize, rate: f64, interval: Duration, ill: Ill) {
    let fleet = Fleet::new(servers, 32, &Manner { failing: 0.001, ..Manner::default() });
    let mut policy = Policy { timeout: Some(SECOND / 2), ..Policy::default() };
    policy.cluster.balancer = Balancer::RoundRobin;
    policy.cluster.outlier =
        Some(OutlierDetection { interval, max_ejected: PerMillion::new(200_000), ..ejecting(5, 300 * SECOND) });
    let (client, _source) = client(&fleet, &policy);
    let patient = fleet.server(fastrand::usize(..servers));
    let trouble = async {
        clock::pass(3 * SECOND).await;
        let well = patient.seen();
        patient.change(|manner| match ill {
            Ill::Slow => manner.time += SECOND,
            Ill::Failing(share) => manner.failing = share,
        });
        clock::pass(2 * interval).await;
        let (ejected_by_then, seen) = (ejected(&client), patient.seen());
        clock::pass(3 * SECOND).await;
        (well, ejected_by_then, patient.seen() - seen)
    };
    let time = 6 * SECOND + 2 * interval;
    let (records, (well, count, seen)) = tokio::join!(run(&client, rate, time), trouble);
    assert_eq!((count, seen), (1, 0), "{ill:?}");
    let share = well as f64 / records.iter().filter(|record| record.at < 3 * SECOND).count() as f64;
    assert!((share * servers as f64 - 1.0).abs() < 0.2, "it had its share");
    assert_eq!(ejected(&client), 1, "nobody else");
}

#[test]
fn who_fails_half_the_time_or_is_far_too_slow_is_ejected_and_nobody_else_r17() {
    each_seed(1, || async {
        for ill in [Ill::Failing(0.5), Ill::Slow] {
            the_ill_one_is_ejected(20, 200.0, 10 * SECOND, ill).await;
        }
    });
    // As the interop case of gRPC has it: 100 in a second to five, one of which fails.
    each_seed(4, || the_ill_one_is_ejected(5, 100.0, 2 * SECOND, Ill::Failing(1.0)));
}

/// How one of a few is ill in a round of requests, one for each.
#[derive(Clone, Copy, Debug)]
enum Round {
    Well,
    Failing,
    Slow,
}

/// One of three to five endpoints, drawn, fails at every request, or is too slow, or fails at half of its requests, in any
/// order; another one fails once. The one is ejected within two sweeps, gets nothing after that, and nobody else is ejected.
async fn one_of_few_is_ill(detected: bool) -> Verdict {
    let (mut policy, wire) = either(fastrand::bool());
    let fleet = Fleet::of(fastrand::usize(3..=5), 8, &Manner::default(), wire, None);
    let failures = fastrand::u32(2..=3);
    policy.timeout = Some(SECOND / 2);
    policy.cluster.balancer = Balancer::RoundRobin;
    let share = FailurePercentageEjection {
        threshold: PerMillion::new(500_000),
        enforcing: PerMillion::ALL,
        enforcing_local_origin: PerMillion::NONE,
        minimum_hosts: 1,
        request_volume: 4,
    };
    let half = fastrand::usize(..3) == 0;
    let rule = OutlierDetection { interval: 10 * SECOND, ..ejecting(failures, 300 * SECOND) };
    let by_share = OutlierDetection { consecutive_5xx: None, failure_percentage: Some(share), ..rule.clone() };
    policy.cluster.outlier = detected.then_some(if half { by_share } else { rule });
    let mut rounds = vec![[Round::Failing, Round::Slow][fastrand::usize(..2)]; failures as usize];
    if half {
        rounds = vec![Round::Well, Round::Well, Round::Failing, Round::Failing];
        fastrand::shuffle(&mut rounds);
    }
    let patient = fastrand::usize(..fleet.len());
    let other = (patient + fastrand::usize(1..fleet.len())) % fleet.len();
    let (client, _source) = client(&fleet, &policy);
    for (number, round) in rounds.iter().enumerate() {
        fleet.server(other).change(|manner| manner.failing = f64::from(u8::from(number == 0)));
        fleet.server(patient).change(|manner| match round {
            Round::Well => manner.failing = 0.0,
            Round::Failing => manner.failing = 1.0,
            Round::Slow => (manner.time, manner.even) = (SECOND, true),
        });
        for _ in 0..fleet.len() {
            let _ = get(&client).await;
        }
    }
    fleet.server(other).change(|manner| manner.failing = 0.0);
    // Those that are counted by their share are looked at when the time comes.
    clock::pass(20 * SECOND).await;
    let (out, seen) = (ejected(&client), fleet.server(patient).seen());
    ensure(seen == rounds.len() as u64 && out == 1, || format!("{out} ejected, {seen} requests, {rounds:?}"))?;
    for _ in 0..fleet.len() {
        let answer = get(&client).await.map_err(|error| error.to_string())?;
        ensure(answer.status() == 200, || format!("{}, {rounds:?}", answer.status()))?;
    }
    ensure(fleet.server(patient).seen() == seen, || format!("{patient} was asked, {rounds:?}"))
}

#[test]
fn whoever_of_few_is_ill_is_ejected_and_nobody_else_r17() {
    holds_for_each_seed(|| one_of_few_is_ill(true));
}

/// Control run.
#[test]
fn without_detection_whoever_is_ill_is_asked_r17() {
    fails_for_some_seed(|| one_of_few_is_ill(false));
}

/// The control is the failing one among them, which is ejected at the end of the hour.
#[test]
fn who_fails_once_in_a_thousand_is_not_ejected_in_an_hour_r17() {
    each_seed(1, || async {
        let fleet = Fleet::new(20, 8, &Manner { failing: 0.001, ..Manner::default() });
        let mut policy = Policy::default();
        policy.cluster.balancer = Balancer::RoundRobin;
        // Seen for sure by who looks once in a minute.
        policy.cluster.outlier = Some(ejecting(5, Duration::from_secs(300)));
        let (client, _source) = client(&fleet, &policy);
        let watch = async {
            let mut most = 0;
            for _ in 0..60 {
                clock::pass(60 * SECOND).await;
                most = most.max(ejected(&client));
            }
            most
        };
        let (records, most) = tokio::join!(run(&client, 20.0, 3600 * SECOND), watch);
        let failed = records.iter().filter(|record| record.outcome.is_err()).count();
        assert!(failed > 20, "{failed} of {} failed", records.len());
        assert_eq!(most, 0, "ejected in an hour");
        fleet.server(7).change(|manner| manner.failing = 1.0);
        run(&client, 40.0, 20 * SECOND).await;
        assert_eq!(ejected(&client), 1, "control");
    });
}

/// Control run: without detection it keeps its share of failures.
#[test]
fn without_detection_a_failing_endpoint_keeps_its_share_r17() {
    each_seed(1, || async {
        let fleet = Fleet::new(20, 8, &Manner::default());
        let mut policy = Policy::default();
        policy.cluster.balancer = Balancer::RoundRobin;
        let (client, _source) = client(&fleet, &policy);
        fleet.server(7).change(|manner| manner.failing = 0.5);
        run(&client, 100.0, 30 * SECOND).await;
        let seen = fleet.seen();
        assert!(seen[7] > seen.iter().sum::<u64>() / 30, "{seen:?}");
    });
}

#[test]
fn a_new_endpoint_gets_a_growing_share_and_a_second_one_does_not_disturb_it_r33() {
    each_seed(1, || async {
        let fleet = Fleet::new(6, 64, &Manner::default());
        let mut policy = Policy::default();
        policy.cluster.balancer = Balancer::RoundRobin;
        let window = 30 * SECOND;
        policy.cluster.slow_start =
            Some(SlowStart { window, aggression: 1_000_000, min_share: PerMillion::new(100_000) });
        let source = FixedSource::of(TARGET, policy.snapshot(fleet.endpoints().split_off(2)));
        let client = client_from(&fleet, &source);
        run(&client, 100.0, 2 * SECOND).await;
        let adding = async {
            source.set_snapshot(TARGET, policy.snapshot(fleet.endpoints().split_off(1)));
            clock::pass(10 * SECOND).await;
            source.set_snapshot(TARGET, policy.snapshot(fleet.endpoints()));
        };
        let (records, ()) = tokio::join!(run(&client, 400.0, 42 * SECOND), adding);
        assert!(failures(&records).is_empty());
        for second in (0..40).step_by(5) {
            let (from, to) = (second * SECOND, (second + 5) * SECOND);
            let of_one = |server| share(&records, server, from, to);
            let full = (2..6).map(of_one).sum::<f64>() / 4.0;
            for (server, added) in [(1, 0), (0, 10)] {
                let age = f64::from(second) + 2.5 - f64::from(added);
                let want = if age < 0.0 { 0.0 } else { (age / 30.0).clamp(0.1, 1.0) };
                let got = of_one(server) / full;
                assert!((got - want).abs() <= 0.1, "server {server} at {second} s: {got:.2} of a share, not {want:.2}");
            }
        }
    });
}

/// Added to five others, for 30 s of a slow start and ten after that: a server that is ten times slower. How its share grew
/// over the ramp, and the 99th of a hundred requests before and after it came.
async fn a_slow_one_is_added(balancer: Balancer) -> (Vec<f64>, [Duration; 2]) {
    let fleet = Fleet::new(6, 64, &Manner::default());
    fleet.server(0).change(|manner| manner.time *= 10);
    let mut policy = Policy::default();
    policy.cluster.balancer = balancer;
    let (window, min_share) = (30 * SECOND, PerMillion::new(100_000));
    policy.cluster.slow_start = Some(SlowStart { window, aggression: 1_000_000, min_share });
    let source = FixedSource::of(TARGET, policy.snapshot(fleet.endpoints().split_off(1)));
    let client = client_from(&fleet, &source);
    run(&client, 400.0, SECOND).await;
    let steady = run(&client, 400.0, 20 * SECOND).await;
    source.set_snapshot(TARGET, policy.snapshot(fleet.endpoints()));
    let records = run(&client, 400.0, 40 * SECOND).await;
    assert!(failures(&records).is_empty());
    let shares = (0..40).step_by(5).map(|second| share(&records, 0, second * SECOND, (second + 5) * SECOND) * 6.0);
    (shares.collect(), [quantile(&steady, 0.99), quantile(&records, 0.99)])
}

#[test]
fn a_slow_new_endpoint_costs_nobody_his_time_where_the_balancer_goes_by_latency_r33() {
    each_seed(1, || async {
        let (shares, [before, after]) = a_slow_one_is_added(Balancer::PeakEwma).await;
        assert!(after <= before.mul_f64(1.5), "{before:?}, and {after:?} with it");
        for (step, share) in shares.iter().enumerate() {
            let ramp = ((step as f64 * 5.0 + 2.5) / 30.0).clamp(0.1, 1.0);
            assert!(*share <= ramp + 0.1, "{share:.2} of a share at step {step}, of {ramp:.2}: {shares:?}");
        }
        // Control: who goes by turns gives it the share of the ramp, and that is what all wait for.
        let (shares, [before, after]) = a_slow_one_is_added(Balancer::RoundRobin).await;
        assert!(after > before.mul_f64(1.5) && shares[7] > 0.8, "{before:?}, {after:?}, {shares:?}");
    });
}

/// Control run: without a slow start a new one has its whole share at once.
#[test]
fn without_a_slow_start_a_new_endpoint_has_its_whole_share_r33() {
    each_seed(1, || async {
        let fleet = Fleet::new(4, 64, &Manner::default());
        let mut policy = Policy::default();
        policy.cluster.balancer = Balancer::RoundRobin;
        let source = FixedSource::of(TARGET, policy.snapshot(fleet.endpoints().split_off(1)));
        let client = client_from(&fleet, &source);
        run(&client, 100.0, SECOND).await;
        source.set_snapshot(TARGET, policy.snapshot(fleet.endpoints()));
        let records = run(&client, 400.0, 5 * SECOND).await;
        assert!(share(&records, 0, Duration::ZERO, 5 * SECOND) > 0.2);
    });
}

/// So many zones of two servers each, of one priority or of one each.
fn zones(fleet: &Fleet, policy: &Policy, count: usize, one_priority: bool) -> Snapshot {
    let zone = |number: usize| LocalityEndpoints {
        locality: Locality { zone: format!("zone-{number}"), ..Locality::default() },
        priority: if one_priority { 0 } else { number as u32 },
        weight: NonZeroU32::MIN,
        endpoints: (2 * number..2 * number + 2).map(|index| fleet.endpoint(index)).collect(),
    };
    let mut snapshot = policy.snapshot(Vec::new());
    let localities = (0..count).map(zone).collect();
    let endpoints = Arc::new(Endpoints { cluster: "fleet".into(), localities, ..Endpoints::default() });
    let cluster = Arc::new(policy.cluster.clone());
    snapshot.clusters.insert("fleet".into(), ClusterState::Ready { cluster, endpoints });
    snapshot
}

/// A client that cannot reach the first zone for some time, and one that can.
#[derive(Clone, Copy, Debug)]
struct Partition {
    /// Both retry, if they do, in the next zone or in any.
    next_locality: Option<bool>,
    /// Those retries may go where the request was, as those of Envoy and of gRPC may.
    same_hosts: bool,
    /// The requests of each have one hash, and go to one endpoint while it can be reached.
    ring: bool,
    door: Door,
    http2: bool,
    zones: usize,
    one_priority: bool,
    rate: f64,
    /// Before it, while it lasts, and after it.
    seconds: [u32; 3],
}

impl Partition {
    fn whole(next_locality: Option<bool>, door: Door, zones: usize) -> Self {
        let (same_hosts, ring, http2, one_priority) = (false, false, false, false);
        Self { next_locality, same_hosts, ring, door, http2, zones, one_priority, rate: 50.0, seconds: [20, 20, 30] }
    }

    /// Anything, with so many requests in a second.
    fn drawn(zones: usize, rate: f64, seconds: [u32; 3]) -> Self {
        let door = if fastrand::bool() { Door::Shut } else { Door::Silent };
        let next_locality = RETRIES[fastrand::usize(..3)];
        let [same_hosts, ring, http2, one_priority] = [(); 4].map(|()| fastrand::bool());
        Self { next_locality, same_hosts, ring, door, http2, zones, one_priority, rate, seconds }
    }

    async fn play(self) -> [Vec<Record>; 2] {
        // The same servers by two ways: what is shut to one client is open to the other.
        let (policy, wire) = either(self.http2);
        let fleet = || Fleet::of(4, 8, &Manner::default(), wire, None);
        let (near, far) = (fleet(), fleet());
        let mut policy = Policy { timeout: Some(5 * SECOND), ..policy };
        let all = OutlierDetection { max_ejected: PerMillion::ALL, ..ejecting(3, 5 * SECOND) };
        policy.cluster.outlier = Some(all);
        policy.cluster.connection.connect_timeout = SECOND;
        let on = RetryOn { connect_failure: true, reset: true, ..RetryOn::default() };
        let avoid_previous_hosts = !self.same_hosts;
        policy.retry = self.next_locality.map(|next_locality| RetryPolicy {
            next_locality,
            avoid_previous_hosts,
            ..RetryPolicy::new(2, on)
        });
        if self.ring {
            policy.cluster.balancer = Balancer::RingHash { min_size: 128, max_size: 8 << 20 };
            policy.hash = vec![HashPolicy { source: HashSource::ChannelId, terminal: false }];
        }
        let one = |fleet: &Fleet| {
            let source = FixedSource::of(TARGET, zones(fleet, &policy, self.zones, self.one_priority));
            client_from(fleet, &source)
        };
        let (a, b) = (one(&near), one(&far));
        let [before, lasts, after] = self.seconds.map(|seconds| seconds * SECOND);
        let cut = async {
            let zone = [near.server(0), near.server(1)];
            clock::pass(before).await;
            for server in zone {
                server.change(|manner| manner.door = self.door);
                server.cut();
            }
            clock::pass(lasts).await;
            zone.iter().for_each(|server| server.change(|manner| manner.door = Door::Open));
        };
        let time = before + lasts + after;
        let (a, b, ()) = tokio::join!(run(&a, self.rate, time), run(&b, self.rate, time), cut);
        [a, b]
    }

    /// Nothing is lost but what was under way, the zone is left within two seconds by who cannot reach it and by nobody
    /// else, and no request waits for connections in vain twice.
    async fn is_survived(self) -> Result<Vec<Record>, String> {
        let [a, b] = self.play().await;
        let lost = a.iter().filter(|record| record.outcome.is_err()).count();
        ensure(lost <= 3, || format!("{self:?}: {lost} lost: {:?}", failures(&a)))?;
        let longest = a.iter().map(|record| record.took).max().unwrap_or_default();
        ensure(longest < 2 * SECOND, || format!("{self:?}: {longest:?} is two connect timeouts"))?;
        let [before, lasts, _] = self.seconds;
        ensure(of_first_zone(&a, before + 2, before + lasts) == 0.0, || format!("{self:?}: it is not left"))?;
        ensure(failures(&b).is_empty(), || format!("{self:?}: {:?} who can reach it", failures(&b)))?;
        if !self.one_priority {
            let all = self.seconds.iter().sum();
            ensure(of_second_zone(&a, 0, before - 1) == 0.0, || format!("{self:?}: left before"))?;
            ensure(of_second_zone(&b, 0, all) == 0.0, || format!("{self:?}: who can reach it stays"))?;
        }
        Ok(a)
    }
}

/// What could not be connected goes elsewhere whatever the retry policy says, and if there is none.
const RETRIES: [Option<bool>; 3] = [Some(true), Some(false), None];

fn of_first_zone(records: &[Record], from: u32, to: u32) -> f64 {
    (0..2).map(|server| share(records, server, from * SECOND, to * SECOND)).sum()
}

fn of_second_zone(records: &[Record], from: u32, to: u32) -> f64 {
    (2..4).map(|server| share(records, server, from * SECOND, to * SECOND)).sum()
}

#[test]
fn a_zone_out_of_reach_is_left_within_two_seconds_by_who_cannot_reach_it_r40() {
    each_seed(1, || async {
        for (door, next) in RETRIES.into_iter().flat_map(|next| [(Door::Shut, next), (Door::Silent, next)]) {
            for (same_hosts, ring) in [(false, false), (true, false), (true, true)] {
                let a = Partition { same_hosts, ring, ..Partition::whole(next, door, 2) }.is_survived().await.unwrap();
                // Each ejection is five seconds longer: the third may begin just before the zone is back.
                assert!(of_first_zone(&a, 57, 70) > 0.95, "{door:?}: {}", of_first_zone(&a, 57, 70));
            }
        }
    });
    each_seed(10, || {
        let partition = Partition::drawn(2, 20.0, [2, 5, 0]);
        async move { drop(partition.is_survived().await.unwrap()) }
    });
}

/// Anything that a seed draws, with few requests.
async fn short_partition(zones: usize) -> Verdict {
    Partition::drawn(zones, 2.0, [1, 3, 0]).is_survived().await.map(drop)
}

#[test]
fn whatever_the_policy_a_zone_out_of_reach_is_left_r40() {
    holds_for_each_seed(|| short_partition(2));
}

/// Control run.
#[test]
fn whatever_the_policy_without_another_zone_requests_are_lost_r40() {
    fails_for_some_seed(|| short_partition(1));
}

/// The share of the first priority, of which so many of four endpoints are away, and come back one by one.
#[test]
fn a_zone_spills_over_where_less_than_71_per_cent_of_it_are_left_and_has_its_share_again_by_and_by_r40() {
    each_seed(1, || async {
        let fleet = Fleet::new(8, 64, &Manner::default());
        let mut policy = Policy::default();
        policy.cluster.balancer = Balancer::RoundRobin;
        policy.cluster.outlier = Some(OutlierDetection { max_ejected: PerMillion::ALL, ..ejecting(2, SECOND) });
        let mut snapshot = policy.snapshot(Vec::new());
        let zone = |number: usize| LocalityEndpoints {
            locality: Locality { zone: format!("zone-{number}"), ..Locality::default() },
            priority: number as u32,
            weight: NonZeroU32::MIN,
            endpoints: (4 * number..4 * number + 4).map(|index| fleet.endpoint(index)).collect(),
        };
        let localities = (0..2).map(zone).collect();
        let endpoints = Arc::new(Endpoints { cluster: "fleet".into(), localities, ..Endpoints::default() });
        let cluster = Arc::new(policy.cluster.clone());
        snapshot.clusters.insert("fleet".into(), ClusterState::Ready { cluster, endpoints });
        let client = client_from(&fleet, &FixedSource::of(TARGET, snapshot));
        // 140 % of what is left, in a hundredth.
        let steps = [(0, 100), (1, 100), (2, 70), (3, 35), (4, 0), (3, 35), (2, 70), (1, 100), (0, 100)];
        for (down, want) in steps {
            for (index, server) in fleet.iter().enumerate().take(4) {
                server.change(|manner| manner.failing = f64::from(u8::from(index < down)));
            }
            // Those that fail are ejected, and those that do not come back: for longer each time.
            run(&client, 100.0, 12 * SECOND).await;
            let seen = |from: usize| fleet.seen()[from..from + 4].iter().sum::<u64>();
            let before = (seen(0), seen(4));
            run(&client, 200.0, SECOND / 2).await;
            let (near, far) = (seen(0) - before.0, seen(4) - before.1);
            let got = near as f64 / (near + far) as f64 * 100.0;
            assert!((got - f64::from(want)).abs() <= 15.0, "{got:.0} % with {down} of four down");
        }
    });
}

/// Control run: without another zone, what comes while there is none is lost.
#[test]
fn without_another_zone_one_out_of_reach_costs_requests_r40() {
    each_seed(1, || async {
        let [a, _] = Partition::whole(Some(true), Door::Silent, 1).play().await;
        let lost = a.iter().filter(|record| record.outcome.is_err()).count();
        assert!(lost > 50 * 10, "{lost} lost");
    });
}
