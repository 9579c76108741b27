//! Endpoints that fail: panic (R15), everybody ejected (R16), who is ejected and who is not (R17), the slow start of
//! new ones (R33), and a zone that only some can reach (R40).

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use mesh_client::Client;
use mesh_core::health::Standing;
use mesh_core::id::Locality;
use mesh_core::policy::{
    Balancer, ClusterState, Endpoints, Health, LocalityEndpoints, OutlierDetection, PerMillion, RetryOn, RetryPolicy,
    SlowStart, Snapshot,
};
use mesh_testkit::{FixedSource, clock};

use crate::each_seed;
use crate::fleet::{Door, Fleet, Manner};
use crate::load::{Policy, Record, TARGET, client, client_from, failures, get, goodput, quantile, run};

const SECOND: Duration = Duration::from_secs(1);

/// The share of requests that are answered well when the first `down` of ten endpoints fail and discovery says so.
async fn success(client: &Client, source: &FixedSource, fleet: &Fleet, policy: &Policy, down: usize) -> f64 {
    let mut endpoints = fleet.endpoints();
    for (index, server) in fleet.iter().enumerate() {
        endpoints[index].health = if index < down { Health::Unhealthy } else { Health::Healthy };
        server.change(|manner| manner.failing = f64::from(u8::from(index < down)));
    }
    source.set_snapshot(TARGET, policy.snapshot(endpoints));
    clock::pass(Duration::from_millis(10)).await;
    let mut good = 0;
    for _ in 0..200 {
        good += usize::from(get(client).await.is_ok_and(|answer| answer.status() == 200));
    }
    good as f64 / 200.0
}

#[test]
fn below_the_threshold_all_endpoints_are_used_and_above_it_only_the_healthy_r15() {
    each_seed(1, || async {
        let fleet = Fleet::new(10, 8, &Manner::default());
        let mut policy = Policy::default();
        policy.cluster.balancer = Balancer::RoundRobin;
        for threshold in [Some(PerMillion::new(500_000)), None] {
            policy.cluster.locality.panic_threshold = threshold;
            let (client, source) = client(&fleet, &policy);
            for down in (0..=10).chain((0..10).rev()) {
                let got = success(&client, &source, &fleet, &policy, down).await;
                // Without a threshold (the control run) the last healthy one serves all.
                let want = match (threshold, down) {
                    (_, 10) => 0.0,
                    (Some(_), 6..) => 1.0 - down as f64 / 10.0,
                    _ => 1.0,
                };
                assert!((got - want).abs() <= 0.05, "{got} answered with {down} of 10 down, {threshold:?}");
            }
        }
    });
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
    of.iter().filter(|index| ***index == server).count() as f64 / of.len() as f64
}

#[test]
fn who_fails_half_the_time_or_is_far_too_slow_is_ejected_and_nobody_else_r17() {
    each_seed(1, || async {
        for slow in [false, true] {
            let fleet = Fleet::new(10, 32, &Manner { failing: 0.001, ..Manner::default() });
            let mut policy = Policy { timeout: Some(SECOND / 2), ..Policy::default() };
            policy.cluster.balancer = Balancer::RoundRobin;
            policy.cluster.outlier = Some(ejecting(5, Duration::from_secs(300)));
            let (client, _source) = client(&fleet, &policy);
            let trouble = async {
                clock::pass(3 * SECOND).await;
                fleet.server(7).change(|manner| match slow {
                    true => manner.time += SECOND,
                    false => manner.failing = 0.5,
                });
                clock::pass(20 * SECOND).await;
                let ejected_by_then = ejected(&client);
                let seen = fleet.server(7).seen();
                clock::pass(3 * SECOND).await;
                (ejected_by_then, fleet.server(7).seen() - seen)
            };
            // Twenty in a second to each, as the interop case of gRPC has it.
            let (records, (count, seen)) = tokio::join!(run(&client, 200.0, 27 * SECOND), trouble);
            assert_eq!((count, seen), (1, 0), "slow: {slow}");
            assert!((0.08..0.12).contains(&share(&records, 7, Duration::ZERO, 3 * SECOND)), "it had its share");
            assert_eq!(ejected(&client), 1, "nobody else");
        }
    });
}

/// The control is the failing one among them, which is ejected at the end of the hour.
#[test]
fn who_fails_once_in_a_thousand_is_not_ejected_in_an_hour_r17() {
    each_seed(1, || async {
        let fleet = Fleet::new(10, 8, &Manner { failing: 0.001, ..Manner::default() });
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
        run(&client, 20.0, 20 * SECOND).await;
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

/// Two servers in the first zone, and two in the second.
fn zones(fleet: &Fleet, policy: &Policy, count: usize) -> Snapshot {
    let zone = |number: usize| LocalityEndpoints {
        locality: Locality { zone: format!("zone-{number}"), ..Locality::default() },
        priority: number as u32,
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

/// A client that cannot reach the first zone for 20 of 70 seconds, and one that can. Both retry, if they do, in the next
/// zone or in any.
async fn partition(next_locality: Option<bool>, door: Door, zones: usize) -> [Vec<Record>; 2] {
    // The same servers by two ways: what is shut to one client is open to the other.
    let (near, far) = (Fleet::new(4, 8, &Manner::default()), Fleet::new(4, 8, &Manner::default()));
    let mut policy = Policy { timeout: Some(5 * SECOND), ..Policy::default() };
    let all = OutlierDetection { max_ejected: PerMillion::ALL, ..ejecting(3, 5 * SECOND) };
    policy.cluster.outlier = Some(all);
    policy.cluster.connection.connect_timeout = SECOND;
    let on = RetryOn { connect_failure: true, reset: true, ..RetryOn::default() };
    policy.retry = next_locality.map(|next_locality| RetryPolicy { next_locality, ..RetryPolicy::new(2, on) });
    let one = |fleet: &Fleet| {
        let source = FixedSource::of(TARGET, self::zones(fleet, &policy, zones));
        client_from(fleet, &source)
    };
    let (a, b) = (one(&near), one(&far));
    let cut = async {
        let zone = [near.server(0), near.server(1)];
        clock::pass(20 * SECOND).await;
        for server in zone {
            server.change(|manner| manner.door = door);
            server.cut();
        }
        clock::pass(20 * SECOND).await;
        zone.iter().for_each(|server| server.change(|manner| manner.door = Door::Open));
    };
    let (a, b, ()) = tokio::join!(run(&a, 50.0, 70 * SECOND), run(&b, 50.0, 70 * SECOND), cut);
    [a, b]
}

fn of_first_zone(records: &[Record], from: u32, to: u32) -> f64 {
    (0..2).map(|server| share(records, server, from * SECOND, to * SECOND)).sum()
}

#[test]
fn a_zone_out_of_reach_is_left_within_two_seconds_by_who_cannot_reach_it_r40() {
    each_seed(1, || async {
        // What could not be connected goes elsewhere whatever the retry policy says, and if there is none.
        let retries = [Some(true), Some(false), None];
        for (door, next) in retries.into_iter().flat_map(|next| [(Door::Shut, next), (Door::Silent, next)]) {
            let [a, b] = partition(next, door, 2).await;
            // But for what was under way when it was cut.
            let lost = a.iter().filter(|record| record.outcome.is_err()).count();
            assert!(lost <= 3, "{door:?} {next:?}: {lost} lost: {:?}", failures(&a));
            assert_eq!(of_first_zone(&a, 0, 19), 1.0, "{door:?}");
            assert_eq!(of_first_zone(&a, 22, 40), 0.0, "{door:?}");
            // Each ejection is five seconds longer: the third may begin just before the zone is back.
            assert!(of_first_zone(&a, 57, 70) > 0.95, "{door:?}: {}", of_first_zone(&a, 57, 70));
            let longest = a.iter().map(|record| record.took).max().unwrap();
            assert!(longest < 2 * SECOND, "{door:?}: {longest:?} is two connect timeouts");
            assert!(failures(&b).is_empty());
            assert_eq!(of_first_zone(&b, 0, 70), 1.0, "who can reach it stays");
        }
    });
}

/// Control run: without another zone, what comes while there is none is lost.
#[test]
fn without_another_zone_one_out_of_reach_costs_requests_r40() {
    each_seed(1, || async {
        let [a, _] = partition(Some(true), Door::Silent, 1).await;
        let lost = a.iter().filter(|record| record.outcome.is_err()).count();
        assert!(lost > 50 * 10, "{lost} lost");
    });
}
