//! Medians of paired ratios, as a table or as JSON, beside their goals.
//!
//! Of the pairs the calmer half counts: those in which other processes used least CPU. Other work on the machine stops all
//! requests in flight at once for some milliseconds, a handful of times a second, and that handful is the hundredth part that
//! a p99 begins with: whether it falls on one side or the other is no property of either.

use serde_json::{Value, json};

use crate::Protocol;
use crate::load::Sample;

/// The same load on both sides, one right after the other.
pub(crate) struct Pair {
    pub(crate) bare: Sample,
    pub(crate) mesh: Sample,
}

/// One comparison.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) goals: Goals,
    pub(crate) pairs: Vec<Pair>,
    /// Heap allocations that the mesh adds to a request: client, server.
    pub(crate) allocations_added: [f64; 2],
}

/// At most; for throughput, at least. `None` = no goal.
#[derive(Clone, Copy)]
pub(crate) struct Goals {
    throughput: Option<f64>,
    cpu: Option<f64>,
    p50: Option<f64>,
    p99: Option<f64>,
}

const GOAL_ALLOCATIONS: [f64; 2] = [4.0, 2.0];

impl Goals {
    pub(crate) fn of(protocol: Protocol, in_flight: usize) -> Self {
        let busy = in_flight > 1;
        // On one connection, and without gRPC's own cost beside it, bare HTTP/2 costs next to nothing.
        let (throughput, cpu) = if protocol == Protocol::Http2 { (0.80, 1.22) } else { (0.88, 1.12) };
        Self {
            throughput: busy.then_some(throughput),
            cpu: busy.then_some(cpu),
            // One at a time is a matter of latency.
            p50: (!busy).then_some(1.08),
            p99: busy.then_some(1.15),
        }
    }

    fn all(&self) -> [Option<f64>; 4] {
        [self.throughput, self.cpu, self.p50, self.p99]
    }
}

impl Row {
    /// Median over the calmer pairs of mesh / bare.
    fn ratio(&self, of: fn(&Sample) -> f64) -> f64 {
        let mut pairs: Vec<&Pair> = self.pairs.iter().collect();
        pairs.sort_by_key(|pair| pair.bare.others + pair.mesh.others);
        pairs.truncate(pairs.len().div_ceil(2));
        let mut ratios: Vec<f64> = pairs.into_iter().map(|pair| of(&pair.mesh) / of(&pair.bare)).collect();
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn ratios(&self) -> [f64; 4] {
        [
            self.ratio(|s| s.requests_per_second),
            self.ratio(|s| s.cpu_per_request),
            self.ratio(|s| s.p50),
            self.ratio(|s| s.p99),
        ]
    }

    /// The goals that it does not meet.
    fn missed(&self) -> Vec<&'static str> {
        let names = ["throughput_ratio", "cpu_ratio", "p50_ratio", "p99_ratio"];
        let ratios = names.into_iter().zip(self.ratios().map(rounded)).zip(self.goals.all());
        // What is no number meets nothing.
        let met = |name, ratio, goal| if name == "throughput_ratio" { ratio >= goal } else { ratio <= goal };
        let missed = ratios.filter(|((name, ratio), goal)| goal.is_some_and(|goal| !met(*name, *ratio, goal)));
        let heap = self.allocations_added.iter().zip(&GOAL_ALLOCATIONS).any(|(added, goal)| added > goal);
        missed.map(|((name, _), _)| name).chain(heap.then_some("allocations_added")).collect()
    }

    fn json(&self) -> Value {
        let [throughput, cpu, p50, p99] = self.ratios().map(rounded);
        let [client, server] = self.allocations_added.map(rounded);
        json!({
            "name": self.name,
            "throughput_ratio": throughput,
            "cpu_ratio": cpu,
            "p50_ratio": p50,
            "p99_ratio": p99,
            "allocations_added": {"client": client, "server": server},
            "missed": self.missed(),
            "goal": {
                "throughput_ratio": self.goals.throughput,
                "cpu_ratio": self.goals.cpu,
                "p50_ratio": self.goals.p50,
                "p99_ratio": self.goals.p99,
                "allocations_added": {"client": GOAL_ALLOCATIONS[0], "server": GOAL_ALLOCATIONS[1]},
            },
        })
    }
}

/// Prints all rows.
pub(crate) fn print(rows: &[Row], json: bool) {
    if json {
        println!("{}", json!({"rows": rows.iter().map(Row::json).collect::<Vec<_>>()}));
        return;
    }
    println!(
        "{:<10} {:>10} {:>8} {:>8} {:>8}   {:>22}",
        "mesh/bare", "throughput", "cpu", "p50", "p99", "allocations, cl + sv"
    );
    for row in rows {
        let [throughput, cpu, p50, p99] = row.ratios();
        let [client, server] = row.allocations_added;
        println!("{:<10} {throughput:>10.3} {cpu:>8.3} {p50:>8.3} {p99:>8.3}   {client:>10.1} + {server:.1}", row.name);
        let [throughput, cpu, p50, p99] =
            row.goals.all().map(|goal| goal.map_or(String::new(), |goal| goal.to_string()));
        let [client, server] = GOAL_ALLOCATIONS;
        print!("{:<10} {throughput:>10} {cpu:>8} {p50:>8} {p99:>8}   {client:>10.1} + {server:.1}", "  goal");
        match &*row.missed() {
            [] => println!(),
            missed => println!("   missed: {}", missed.join(", ")),
        }
    }
}

fn rounded(ratio: f64) -> f64 {
    (ratio * 1000.0).round() / 1000.0
}
