//! How often a router is built while the configuration changes (R41), and how the owner shows that it is there.

use mesh_core::policy::{Cluster, ClusterState, Snapshot};
use mesh_core::source::DestinationSource;
use mesh_testkit::FixedSource;
use mesh_testkit::clock::pass;

use super::*;
use crate::builder::ClientBuilder;

struct Changing(Watched<DestinationState>);

impl DestinationSource for Changing {
    fn destination(&self, _: &Target) -> Watched<DestinationState> {
        self.0.clone()
    }
}

/// A destination whose every request goes to the cluster of this name.
fn to(cluster: &str) -> DestinationState {
    let cluster = Cluster::of_addresses(cluster, []);
    DestinationState::Ready(Arc::new(Snapshot::of_one_cluster("c:80", cluster, None)))
}

/// Routers built in ten seconds of a thousand changes a second, whether one change in quiet made one at once, and
/// whether the last one is the newest.
async fn storm(pace: Option<(u32, u32)>) -> (usize, bool, bool) {
    let (changes, states) = Watched::channel(to("first"));
    let mut env = ClientBuilder::new(FixedSource::new()).number(0).env();
    let limits = &mut Arc::get_mut(&mut env).expect("nobody else has it yet").limits;
    limits.builds = pace.unwrap_or(limits.builds);
    let destinations = Arc::new(Destinations::new(env, Arc::new(Changing(states))));
    pass(Duration::from_secs(60)).await;
    let destination = destinations.subscribe(&"c:80".parse().unwrap()).unwrap();
    pass(Duration::from_millis(1)).await;
    let goes_to = |name: &str| match &**destination.phase() {
        Phase::Ready(router) => {
            matches!(router.snapshot().clusters.get(&name.into()), Some(ClusterState::Ready { .. }))
        }
        _ => false,
    };
    changes.publish(to("quiet"));
    pass(Duration::from_millis(1)).await;
    let at_once = goes_to("quiet");

    let mut routers = destination.phase.clone();
    let mut built = 0;
    let change = async {
        for n in 0..10_000 {
            changes.publish(to(if n % 2 == 0 { "even" } else { "odd" }));
            pass(Duration::from_millis(1)).await;
        }
        changes.publish(to("last"));
        pass(Duration::from_millis(200)).await;
    };
    let count = async {
        loop {
            routers.changed().await;
            built += 1;
        }
    };
    tokio::select! {
        biased;
        () = count => unreachable!("it runs for ever"),
        () = change => {}
    }
    (built, at_once, goes_to("last"))
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_changes_builds_no_more_routers_than_the_pace_r41() {
    let (built, at_once, newest) = storm(None).await;
    assert!((150..=170).contains(&built), "{built}");
    assert!(at_once && newest);
}

/// Control run: without the pace every change makes one.
#[tokio::test(start_paused = true)]
async fn without_the_pace_every_change_builds_a_router_r41() {
    let (built, at_once, newest) = storm(Some((1_000_000, 1_000_000))).await;
    assert!(built > 9_000 && at_once && newest, "{built}");
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_was_not_driven_for_a_while_is_not_missed_once_it_is() {
    let (_changes, states) = Watched::channel(to("first"));
    let env = ClientBuilder::new(FixedSource::new()).number(0).env();
    let destinations = Arc::new(Destinations::new(env.clone(), Arc::new(Changing(states))));
    let destination = destinations.subscribe(&"c:80".parse().unwrap()).unwrap();
    pass(Duration::from_millis(1)).await;
    let is_missed = || destination.is_missed(env.millis(Instant::now()));
    // Beyond several sweeps at once.
    tokio::time::advance(Duration::from_secs(60)).await;
    tokio::task::yield_now().await;
    assert!(!is_missed());
    for after in 1..=4 {
        pass(SWEEP / 2).await;
        assert!(!is_missed(), "{after}");
    }
}
