//! What clients feel of servers that are slow, fail or stall: `cargo xtask bench faulty [-- -o json]`.
//!
//! A simulation in virtual time (see [`backends`]): the same run gives the same numbers on every machine, however
//! busy it is. The client is the real one, from its route to bytes on a connection. Rows are ratios against the
//! same load on servers that are all well, or shares of requests; [`load::by_tower`] is the reference from outside.

#![allow(clippy::print_stdout, clippy::print_stderr, missing_docs, reason = "a program, not a library")]

mod backends;
mod load;
#[path = "../common/rows.rs"]
mod rows;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use mesh::parts::mesh_core::policy::{
    Balancer, HedgePolicy, OutlierDetection, PerMillion, PerMillionRatio, Prequal, RetryBudget, RetryOn, RetryPolicy,
    WeightedRoundRobin,
};

use self::backends::{CAPACITY, Fleet, Health};
use self::load::{Load, Outcome, Policy, by_client, by_many, by_mesh, by_tower};
use self::rows::Row;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Servers in trouble, simulated.
#[derive(Parser)]
struct Args {
    /// How to print: `table` or `json`.
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
    /// Shorter runs: shows that it works.
    #[arg(long)]
    smoke: bool,
    /// Passed by cargo to every bench target.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Everything that is drawn.
    fastrand::seed(11);
    let seconds = if args.smoke { 3 } else { 30 };
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(Error::from)
        .and_then(|runtime| runtime.block_on(all(Duration::from_secs(seconds))));
    match outcome {
        Ok(rows) => {
            rows::print(&rows, args.output == "json");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("faulty: {error}");
            ExitCode::from(2)
        }
    }
}

/// A little more than half of what the servers can do: 3,600 requests a second at eight.
fn half(servers: usize, time: Duration) -> Load {
    Load { rate: CAPACITY * servers as f64 * 0.5625, time, warm_up: Duration::from_secs(2) }
}

fn balancers() -> [(&'static str, Policy); 5] {
    let of = |balancer| Policy { balancer: Some(balancer), ..Policy::default() };
    [
        ("peak_ewma", of(Balancer::PeakEwma)),
        ("least_request", of(Balancer::least_request())),
        ("round_robin", of(Balancer::RoundRobin)),
        ("random", of(Balancer::Random)),
        ("prequal", of(Balancer::Prequal(Prequal::default()))),
    ]
}

/// Those that go by other things than the servers' answers: by reports that these servers do not make, by a hash of the
/// request, by the order of the endpoints, or by a part of them.
fn further_balancers() -> [(&'static str, Policy); 5] {
    let of = |balancer| Policy { balancer: Some(balancer), ..Policy::default() };
    let child = Box::new(Balancer::least_request());
    [
        ("weighted_round_robin", of(Balancer::WeightedRoundRobin(WeightedRoundRobin::default()))),
        ("ring_hash", of(Balancer::RingHash { min_size: 1024, max_size: 8_388_608 })),
        ("maglev", of(Balancer::Maglev { table_size: 65_537 })),
        ("pick_first", of(Balancer::PickFirst { shuffle: false })),
        ("subsetting", of(Balancer::RandomSubsetting { size: 5, of_each: false, child })),
    ]
}

async fn all(time: Duration) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    equal(time, &mut rows).await?;
    slow(time, &mut rows).await?;
    healed(&mut rows).await?;
    failing(time, &mut rows).await?;
    stalling(time, &mut rows).await?;
    half_slow(time, &mut rows).await?;
    overload(time, &mut rows).await?;
    side_by_side(time, &mut rows).await?;
    Ok(rows)
}

/// One of eight with `health` against eight that are well.
async fn pair(time: Duration, policy: &Policy, health: Health) -> Result<[Outcome; 2], Error> {
    let (well, mut one) = ([Health::Well; 8], [Health::Well; 8]);
    one[3] = health;
    let load = half(8, time);
    let (well, one) = (Fleet::new(&well), Fleet::new(&one));
    Ok([by_mesh(load, &well, policy).await?, by_mesh(load, &one, policy).await?])
}

/// All are well: how evenly they are used.
async fn equal(time: Duration, rows: &mut Vec<Row>) -> Result<(), Error> {
    for (name, policy) in balancers() {
        let fleet = Fleet::new(&[Health::Well; 8]);
        let outcome = by_mesh(half(8, time), &fleet, &policy).await?;
        let seen = fleet.seen();
        let busiest = seen.iter().max().copied().unwrap_or_default() as f64;
        let mean = seen.iter().sum::<u64>() as f64 / seen.len() as f64;
        rows.push(Row::new(format!("equal/{name}/busiest_to_mean"), "times", busiest / mean, 1.1));
        rows.push(Row::new(format!("equal/{name}/p99"), "ms", outcome.percentile(99.0), None));
    }
    Ok(())
}

/// One that was slow for five seconds is used like the others again: its share of the requests, to a fair one, in the
/// ten seconds that begin fifteen seconds later.
async fn healed(rows: &mut Vec<Row>) -> Result<(), Error> {
    for (name, policy) in balancers() {
        let mut health = [Health::Well; 8];
        health[3] = Health::Healed(Duration::from_secs(5));
        let fleet = Fleet::new(&health);
        let client = policy.client(&fleet);
        let load = |seconds| Load { warm_up: Duration::ZERO, ..half(8, Duration::from_secs(seconds)) };
        by_client(load(20), &fleet, &client).await?;
        let before = fleet.seen();
        by_client(load(10), &fleet, &client).await?;
        let seen: Vec<u64> = fleet.seen().iter().zip(before).map(|(now, before)| now - before).collect();
        let share = seen[3] as f64 * 8.0 / seen.iter().sum::<u64>() as f64;
        // The other way round, so that less is better as everywhere here.
        rows.push(Row::new(format!("healed/{name}/missing_of_fair_share"), "share", 1.0 - share, 0.2));
    }
    Ok(())
}

/// One of eight ten times slower.
async fn slow(time: Duration, rows: &mut Vec<Row>) -> Result<(), Error> {
    for (name, policy) in balancers() {
        let [well, one] = pair(time, &policy, Health::Slow(10.0)).await?;
        // The goal is for who looks at latency; the others are told beside it.
        let goal = |at_most: f64| (name == "peak_ewma").then_some(at_most);
        for (percent, at_most) in [(99.0, 1.3), (99.9, 2.0)] {
            let ratio = one.percentile(percent) / well.percentile(percent);
            rows.push(Row::new(format!("one_slow/{name}/p{percent}"), "times", ratio, goal(at_most)));
        }
    }
    Ok(())
}

/// One of eight failing at once, from the first second on that counts.
async fn failing(time: Duration, rows: &mut Vec<Row>) -> Result<(), Error> {
    let outlier = Some(OutlierDetection { max_ejected: PerMillion::new(300_000), ..OutlierDetection::default() });
    let on = RetryOn { server_error: true, ..RetryOn::default() };
    let retry = RetryPolicy { backoff_base: Duration::from_millis(1), ..RetryPolicy::new(2, on) };
    for (name, policy) in balancers() {
        let health = Health::Failing(Duration::from_secs(1));
        let [_, one] = pair(time, &policy, health).await?;
        rows.push(Row::new(format!("one_failing/{name}/errors"), "share", one.errors(), None));
        let detecting = Policy { outlier: outlier.clone(), ..policy };
        let [_, one] = pair(time, &detecting, health).await?;
        rows.push(Row::new(format!("one_failing/{name}/outlier_detection/errors"), "share", one.errors(), 0.01));
        let retrying = Policy { retry: Some(retry.clone()), ..detecting };
        let [_, one] = pair(time, &retrying, health).await?;
        rows.push(Row::new(format!("one_failing/{name}/retries/errors"), "share", one.errors(), 0.0));
        rows.push(Row::new(format!("one_failing/{name}/retries/tries_per_request"), "tries", one.amplification, 1.1));
    }
    Ok(())
}

/// One in twenty requests of one server takes 400 ms.
async fn stalling(time: Duration, rows: &mut Vec<Row>) -> Result<(), Error> {
    let hedge = HedgePolicy { initial_requests: 1, additional_request: PerMillion::NONE, on_per_try_timeout: true };
    let patience = Some(Duration::from_millis(30));
    let retry = RetryPolicy { per_try_timeout: patience, ..RetryPolicy::new(1, RetryOn::default()) };
    for (name, policy) in balancers() {
        let hedging = Policy { hedge: Some(hedge.clone()), retry: Some(retry.clone()), ..policy.clone() };
        for (how, policy, goal) in [("alone", policy, None), ("hedging", hedging, Some(2.0))] {
            let [well, one] = pair(time, &policy, Health::Stalling(0.05)).await?;
            let ratio = one.percentile(99.9) / well.percentile(99.9);
            rows.push(Row::new(format!("one_stalling/{name}/{how}/p99.9"), "times", ratio, goal));
        }
    }
    Ok(())
}

/// Half of the servers twice as slow, at 90 % of what all can do together, asked by twenty clients of which each knows
/// a twentieth of the load: Prequal, which asks the servers, against power of two choices by one's own requests.
async fn half_slow(time: Duration, rows: &mut Vec<Row>) -> Result<(), Error> {
    let load = Load { rate: CAPACITY * 6.0 * 0.9, time, warm_up: Duration::from_secs(2) };
    let of = |balancer| Policy { balancer: Some(balancer), ..Policy::default() };
    let mut p99 = Vec::new();
    for (name, policy) in [
        ("least_request", of(Balancer::least_request())),
        ("prequal", of(Balancer::Prequal(Prequal::default()))),
        ("peak_ewma", of(Balancer::PeakEwma)),
        ("round_robin", of(Balancer::RoundRobin)),
    ] {
        let health: [Health; 8] = std::array::from_fn(|n| if n < 4 { Health::Slow(2.0) } else { Health::Well });
        let outcome = by_many(load, &Fleet::new(&health), &policy, 20).await?;
        p99.push(outcome.percentile(99.0));
        rows.push(Row::new(format!("half_slow/{name}/p99"), "ms", outcome.percentile(99.0), None));
    }
    rows.push(Row::new("half_slow/prequal_to_least_request/p99", "times", p99[1] / p99[0], 0.85));
    Ok(())
}

/// Everything fails: what is sent for what is asked.
async fn overload(time: Duration, rows: &mut Vec<Row>) -> Result<(), Error> {
    let on = RetryOn { server_error: true, ..RetryOn::default() };
    let retry = Some(RetryPolicy { backoff_base: Duration::from_millis(1), ..RetryPolicy::new(3, on) });
    let budget =
        RetryBudget { retry_ratio: PerMillionRatio(200_000), min_retries_per_second: 0, ttl: Duration::from_secs(10) };
    let [(_, policy), ..] = balancers();
    for (name, budget, goal) in [("no_budget", None, None), ("budget", Some(budget), Some(1.2))] {
        let policy = Policy { retry: retry.clone(), budget, ..policy.clone() };
        let fleet = Fleet::new(&[Health::Failing(Duration::ZERO); 8]);
        let outcome = by_mesh(half(8, time), &fleet, &policy).await?;
        rows.push(Row::new(format!("all_failing/{name}/tries_per_request"), "tries", outcome.amplification, goal));
    }
    Ok(())
}

/// All balancers and tower's, with one slow and one failing of ten: milliseconds, and the share of failures.
async fn side_by_side(time: Duration, rows: &mut Vec<Row>) -> Result<(), Error> {
    let fleet = || {
        let mut health = [Health::Well; 10];
        (health[2], health[7]) = (Health::Slow(10.0), Health::Failing(Duration::ZERO));
        Fleet::new(&health)
    };
    let load = half(10, time);
    let mut tell = |name: &str, outcome: &Outcome| {
        for percent in [50.0, 99.0, 99.9] {
            let row = format!("slow_and_failing/{name}/p{percent}");
            rows.push(Row::new(row, "ms", outcome.percentile(percent), None));
        }
        rows.push(Row::new(format!("slow_and_failing/{name}/errors"), "share", outcome.errors(), None));
    };
    for (name, policy) in balancers().into_iter().chain(further_balancers()) {
        tell(name, &by_mesh(load, &fleet(), &policy).await?);
    }
    tell("tower_p2c", &by_tower(load, &fleet()).await?);
    Ok(())
}
