//! A herd of clients loses its control plane for a minute (R03): it comes back spread out, each client is told
//! once, and nothing is sent that is held.
//!
//! All clients are real ones, over a network in memory. Ten thousand of them hold a stream and ask for nothing: that is
//! who comes back when. What they are told is looked at with a thousand that follow a destination, for decoding ten
//! thousand times in an unoptimised build would take half a minute and show nothing else.

use std::time::Duration;

use mesh_core::policy::DestinationState;
use mesh_core::source::DestinationSource;
use mesh_discovery::xds::{Variant, XdsClient};
use mesh_testkit::clock;
use tokio::time::Instant;

use crate::plane::{BOTH, Mood, Plane, client, endpoints_of, goes_to, ports};
use crate::seeded;

const CLIENTS: usize = 10_000;
const FOLLOWERS: usize = 1_000;
const OUTAGE: Duration = Duration::from_secs(60);
const BIN: Duration = Duration::from_millis(100);

/// Clients of one control plane. Those that are `alike` draw the same numbers: their jitter is worth nothing.
async fn herd(
    plane: &Plane,
    variant: impl Into<Option<Variant>> + Copy,
    clients: usize,
    alike: bool,
) -> Vec<XdsClient> {
    let seed = seeded();
    let one = |_| {
        if alike {
            fastrand::seed(seed);
        }
        client(variant, &[plane])
    };
    let all: Vec<XdsClient> = (0..clients).map(one).collect();
    plane.sees("all are there", |plane| plane.streams() == clients).await;
    all
}

/// How streams came back after the moment `back`.
struct Return {
    /// Opened in the fullest bin.
    peak: usize,
    /// Opened in all.
    streams: usize,
    /// Until the last one.
    last: Duration,
}

/// Gives everything that could still be opened its time.
async fn returned(plane: &Plane, back: Instant) -> Return {
    clock::pass(2 * OUTAGE).await;
    let times: Vec<Duration> = plane.opened_since(back).into_iter().map(|at| at - back).collect();
    let last = times.iter().max().copied().unwrap_or_default();
    let mut bins = vec![0; (last.as_millis() / BIN.as_millis()) as usize + 1];
    times.iter().for_each(|time| bins[(time.as_millis() / BIN.as_millis()) as usize] += 1);
    let back = Return { peak: bins.into_iter().max().unwrap_or_default(), streams: times.len(), last };
    println!("{} streams, at most {} in {BIN:?}, all within {:?}", back.streams, back.peak, back.last);
    back
}

/// A minute without the control plane, from the first to the last stream that comes back.
async fn outage(variant: Variant, clients: usize, alike: bool) -> Return {
    let plane = Plane::with("x", 1);
    let _herd = herd(&plane, variant, clients, alike).await;
    // Long enough for silence to be understood: nothing is owed.
    clock::pass(OUTAGE).await;
    plane.is(Mood::Down);
    clock::pass(OUTAGE).await;
    let back = Instant::now();
    plane.is(Mood::Up);
    returned(&plane, back).await
}

#[tokio::test(start_paused = true)]
async fn a_herd_comes_back_spread_out_r03() {
    for variant in BOTH {
        let back = outage(variant, CLIENTS, false).await;
        assert!(back.peak <= CLIENTS / 50, "{} streams in {BIN:?}", back.peak);
        assert!(back.last <= OUTAGE, "{:?}", back.last);
        assert_eq!(back.streams, CLIENTS, "one stream each");
    }
}

/// Control run: without jitter between them, all come at once.
#[tokio::test(start_paused = true)]
async fn a_herd_whose_clients_draw_alike_stampedes_r03() {
    let clients = CLIENTS / 20;
    for variant in BOTH {
        let back = outage(variant, clients, true).await;
        assert!(back.peak > clients / 50, "{} streams in {BIN:?}", back.peak);
    }
}

#[tokio::test(start_paused = true)]
async fn each_of_a_herd_is_told_once_and_only_what_it_does_not_hold_r03() {
    for variant in [Some(Variant::Delta), Some(Variant::StateOfTheWorld), None] {
        let plane = Plane::with("x", 1);
        if variant.is_none() {
            plane.has_no_delta();
        }
        let herd = herd(&plane, variant, FOLLOWERS, false).await;
        let target = "a:80".parse().unwrap();
        let mut all: Vec<_> = herd.iter().map(|client| client.destination(&target)).collect();
        for state in &mut all {
            goes_to(state, 1).await;
        }
        plane.is(Mood::Down);
        // So long that whoever has no delta is asked for it again, which says nothing of what is held.
        clock::pass(if variant.is_none() { 11 * OUTAGE } else { OUTAGE }).await;
        plane.put(endpoints_of("x", 2));
        let serves = |state: &DestinationState| matches!(state, DestinationState::Ready(s) if ports(s) == [1]);
        assert!(all.iter().all(|state| serves(&state.load())), "the last good serves meanwhile");

        let (back, sent) = (Instant::now(), plane.sent());
        plane.is(Mood::Up);
        for state in &mut all {
            goes_to(state, 2).await;
        }
        assert!(back.elapsed() <= OUTAGE, "{:?}", back.elapsed());
        let back = returned(&plane, back).await;
        assert_eq!(back.streams, FOLLOWERS, "one stream each");
        assert_eq!(plane.sent() - sent, FOLLOWERS, "{variant:?}: of four resources the one that changed");
    }
}
