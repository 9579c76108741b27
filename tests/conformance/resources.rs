//! One control plane: what is asked for, taken, refused, missing and deleted.

use std::time::Duration;

use mesh_core::policy::DestinationState;
use mesh_core::source::DestinationSource;
use mesh_discovery::bootstrap::Authority;
use mesh_discovery::codec;
use mesh_testkit::clock;
use tokio::time::Instant;

use crate::plane::{
    BOTH, Mood, Plane, becomes, broken, client, client_with, cluster_named, destination, endpoints_of, goes_to,
    route_to, server,
};

const TYPES: [&str; 4] = [codec::LISTENER, codec::ROUTES, codec::CLUSTER, codec::ENDPOINTS];

fn is_ready(state: &DestinationState) -> bool {
    matches!(state, DestinationState::Ready(_))
}

fn is_failed(state: &DestinationState) -> bool {
    matches!(state, DestinationState::Failed(_))
}

fn is_unreachable(state: &DestinationState) -> bool {
    matches!(state, DestinationState::Unreachable(_))
}

#[tokio::test(start_paused = true)]
async fn a27_names_are_followed_and_what_nobody_wants_is_unsubscribed() {
    for variant in BOTH {
        let plane = Plane::with("x", 1);
        let client = client(variant, &[&plane]);
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 1).await;
        let asked = || TYPES.map(|type_url| plane.asked(type_url).join(" "));
        assert_eq!(asked(), ["a:80", "r", "x", "x"]);
        assert_eq!(plane.opened(), 1, "one stream for everything");

        plane.put(route_to("r", "y"));
        plane.put(cluster_named("y"));
        plane.put(endpoints_of("y", 2));
        goes_to(&mut state, 2).await;
        plane.sees("the old cluster is let go", |_| asked() == ["a:80", "r", "y", "y"]).await;

        // The last name of every type, too.
        drop(state);
        plane.sees("everything is let go", |_| asked() == ["", "", "", ""]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a46_a_bad_resource_is_named_and_its_siblings_are_used() {
    for variant in BOTH {
        let plane = Plane::with("x", 1);
        plane.put(broken(codec::LISTENER, "b:80"));
        let client = client(variant, &[&plane]);
        let mut good = client.destination(&"a:80".parse().unwrap());
        let mut bad = client.destination(&"b:80".parse().unwrap());
        goes_to(&mut good, 1).await;
        let failed = becomes(&mut bad, "b:80 is refused", is_failed).await;
        assert!(format!("{failed:?}").contains("b:80"), "{failed:?}");
        plane.sees("a refusal", |plane| !plane.nacks().is_empty()).await;
        assert!(plane.nacks()[0].contains("b:80"), "{:?}", plane.nacks());
        plane.put(destination("b:80", "r"));
        goes_to(&mut bad, 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a57_a_refused_update_leaves_the_last_good_also_for_late_watchers() {
    for variant in BOTH {
        let plane = Plane::with("x", 1);
        plane.put(destination("b:80", "r"));
        let client = client(variant, &[&plane]);
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 1).await;
        for round in 1..=100 {
            plane.put(broken(codec::ROUTES, "r"));
            plane.sees("a refusal for every push", |plane| plane.nacks().len() == round).await;
        }
        let nacks = plane.nacks();
        assert!(nacks.iter().all(|nack| *nack == nacks[0]), "one distinct complaint (R06)");
        assert_eq!(client.status().nacks, 100);
        assert!(is_ready(&state.load()));
        // Somebody new who needs the refused routes gets the last good ones.
        let mut late = client.destination(&"b:80".parse().unwrap());
        goes_to(&mut late, 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a57_what_is_not_sent_does_not_exist_after_15_seconds_on_an_open_stream() {
    for variant in BOTH {
        let plane = Plane::new();
        plane.is(Mood::Mute);
        let client = client(variant, &[&plane]);
        client.ready().await;
        let begun = Instant::now();
        let mut state = client.destination(&"a:80".parse().unwrap());
        becomes(&mut state, "it does not exist", is_failed).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(15));
        assert_eq!(client.config_dump()["resources"][0]["state"], "does_not_exist");
        plane.is(Mood::Up);
        plane.put(destination("a:80", "r"));
        becomes(&mut state, "it exists after all", |state| *state == DestinationState::Pending).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a57_the_timer_stops_with_the_stream_and_begins_anew_with_the_next() {
    for variant in BOTH {
        let plane = Plane::with("x", 1);
        let client = client(variant, &[&plane]);
        let mut other = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut other, 1).await;
        let mut state = client.destination(&"missing:80".parse().unwrap());
        clock::pass(Duration::from_secs(14)).await;
        assert_eq!(**state.load(), DestinationState::Pending);
        plane.is(Mood::Down);
        plane.sees("the stream is gone", |plane| plane.streams() == 0).await;
        plane.is(Mood::Up);
        plane.sees("a new stream", |plane| plane.streams() == 1).await;
        let begun = Instant::now();
        // Unreachable for a moment is not "does not exist".
        becomes(&mut state, "it does not exist", |state| format!("{state:?}").contains("within 15s")).await;
        assert!(begun.elapsed() >= Duration::from_secs(15), "{:?}", begun.elapsed());
        assert!(is_ready(&other.load()), "what is cached has no timer");
    }
}

#[tokio::test(start_paused = true)]
async fn a88_where_absence_is_reported_a_late_resource_is_a_transient_error_after_30_seconds() {
    for variant in BOTH {
        let plane = Plane::new();
        let feature = |bootstrap: &mut mesh_discovery::bootstrap::Bootstrap| {
            bootstrap.servers[0].features.resource_timer_is_transient_error = true;
        };
        let client = client_with(variant, &[&plane], feature);
        client.ready().await;
        let begun = Instant::now();
        let mut state = client.destination(&"a:80".parse().unwrap());
        becomes(&mut state, "it is late", is_unreachable).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(30));
        assert_eq!(client.config_dump()["resources"][0]["state"], "timed_out");
    }
}

#[tokio::test(start_paused = true)]
async fn a88_a_deletion_leaves_the_last_good_unless_the_server_says_otherwise() {
    for (variant, strict) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let plane = Plane::with("x", 1);
        let client = client_with(variant, &[&plane], |bootstrap| {
            bootstrap.servers[0].features.fail_on_data_errors = strict;
        });
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 1).await;
        plane.delete(codec::LISTENER, "a:80");
        // Something that comes after the deletion.
        plane.put(endpoints_of("x", 2));
        if strict {
            let failed = becomes(&mut state, "it fails", is_failed).await;
            assert!(format!("{failed:?}").contains("deleted"), "{failed:?}");
        } else {
            goes_to(&mut state, 2).await;
            assert_eq!(client.config_dump()["resources"][0]["state"], "does_not_exist");
            plane.put(destination("a:80", "r"));
            plane.put(endpoints_of("x", 3));
            goes_to(&mut state, 3).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tp3_absence_that_is_told_needs_no_timer() {
    for variant in BOTH {
        let plane = Plane::new();
        plane.tells_absence();
        let client = client(variant, &[&plane]);
        client.ready().await;
        let begun = Instant::now();
        let mut state = client.destination(&"a:80".parse().unwrap());
        becomes(&mut state, "it does not exist", is_failed).await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "{variant:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a57_an_outage_keeps_what_is_known_and_fails_what_is_not() {
    for variant in BOTH {
        let plane = Plane::with("x", 1);
        let client = client(variant, &[&plane]);
        let mut known = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut known, 1).await;
        plane.is(Mood::Down);
        let mut unknown = client.destination(&"new:80".parse().unwrap());
        let failed = becomes(&mut unknown, "nobody can be asked", is_unreachable).await;
        assert!(format!("{failed:?}").contains("cannot be reached"), "{failed:?}");
        clock::pass(Duration::from_secs(24 * 3600)).await;
        assert!(is_ready(&known.load()));

        plane.put(endpoints_of("x", 2));
        plane.put(destination("new:80", "r"));
        plane.is(Mood::Up);
        let back = Instant::now();
        goes_to(&mut known, 2).await;
        goes_to(&mut unknown, 2).await;
        assert!(back.elapsed() <= Duration::from_secs(31), "{:?}", back.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a74_routes_to_an_unknown_cluster_wait_and_are_never_seen_without_it() {
    for variant in BOTH {
        let plane = Plane::with("x", 1);
        let client = client(variant, &[&plane]);
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 1).await;
        plane.put(route_to("r", "y"));
        plane.sees("y is asked for", |plane| plane.asked(codec::CLUSTER).contains(&"y".to_owned())).await;
        assert!(matches!(&**state.load(), DestinationState::Ready(s) if crate::plane::ports(s) == [1]));
        // An outage in the middle changes nothing about that.
        plane.is(Mood::Down);
        clock::pass(Duration::from_secs(120)).await;
        assert!(matches!(&**state.load(), DestinationState::Ready(s) if crate::plane::ports(s) == [1]));
        plane.put(cluster_named("y"));
        plane.put(endpoints_of("y", 2));
        plane.is(Mood::Up);
        goes_to(&mut state, 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a27_a_control_plane_without_delta_is_served_by_the_state_of_the_world() {
    let plane = Plane::with("x", 1);
    plane.has_no_delta();
    let client = client(None, &[&plane]);
    let mut state = client.destination(&"a:80".parse().unwrap());
    goes_to(&mut state, 1).await;
    assert_eq!(client.status().servers[0].variant, BOTH[1]);
    assert_eq!(client.status().last_error, None);
}

#[tokio::test(start_paused = true)]
async fn a47_authorities_have_control_planes_of_their_own_and_equal_ones_are_one_stream() {
    let listener = "xdstp://left/envoy.config.listener.v3.Listener/a:80";
    let routes = "xdstp://right/envoy.config.route.v3.RouteConfiguration/r?a=1&b=2";
    for variant in BOTH {
        let (top, right) = (Plane::with("x", 1), Plane::new());
        // The order of context parameters does not matter.
        top.put(destination(listener, "xdstp://right/envoy.config.route.v3.RouteConfiguration/r?b=2&a=1"));
        right.put(route_to(routes, "x"));
        let client = client_with(variant, &[&top, &right], |bootstrap| {
            bootstrap.servers = vec![server(0)];
            let authority = |servers| Authority {
                client_listener_template: "xdstp://left/envoy.config.listener.v3.Listener/%s".to_owned(),
                servers,
                fallback_on_reachability_only: false,
            };
            bootstrap.authorities.insert("left".to_owned(), authority(Vec::new()));
            bootstrap.authorities.insert("right".to_owned(), authority(vec![server(1)]));
            bootstrap.client_listener_template = "xdstp://left/envoy.config.listener.v3.Listener/%s".to_owned();
        });
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 1).await;
        assert_eq!((top.opened(), right.opened()), (1, 1));
        assert_eq!(right.asked(codec::ROUTES), [routes]);
        drop(state);
        right.sees("nobody needs it any more", |plane| plane.streams() == 0).await;
        assert_eq!(top.streams(), 1, "the first control plane stays");
    }
}

#[tokio::test(start_paused = true)]
async fn wishes_that_come_and_go_do_not_dial_who_is_away_without_back_off() {
    let listener = "xdstp://left/envoy.config.listener.v3.Listener/a:80";
    for variant in BOTH {
        let (top, left) = (Plane::with("x", 1), Plane::new());
        left.put(destination(listener, "r"));
        left.is(Mood::Down);
        let client = client_with(variant, &[&top, &left], |bootstrap| {
            bootstrap.servers = vec![server(0)];
            bootstrap.client_listener_template = listener.replace("a:80", "%s");
            let authority = Authority {
                client_listener_template: bootstrap.client_listener_template.clone(),
                servers: vec![server(1)],
                fallback_on_reachability_only: false,
            };
            bootstrap.authorities.insert("left".to_owned(), authority);
        });
        let target = "a:80".parse().unwrap();
        for _ in 0..100 {
            let mut state = client.destination(&target);
            becomes(&mut state, "nobody is there", |s| matches!(s, DestinationState::Unreachable(_))).await;
            drop(state);
            clock::pass(Duration::from_millis(50)).await;
        }
        // In five seconds; each wish would be one.
        assert!(left.tries() <= 20, "{} tries", left.tries());
        left.is(Mood::Up);
        goes_to(&mut client.destination(&target), 1).await;
    }
}
