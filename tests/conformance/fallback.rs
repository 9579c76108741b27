//! Several control planes (gRFC A71): the five cases of grpc-go, and what must never happen between them (R11).

use std::time::Duration;

use mesh_core::policy::DestinationState;
use mesh_core::source::DestinationSource;
use mesh_discovery::codec;
use mesh_testkit::clock;

use crate::plane::{BOTH, Mood, Plane, becomes, client, client_with, goes_to, ports, route_to, server};

/// Three control planes that send `a:80` to clusters and ports of their own.
fn three() -> [Plane; 3] {
    [Plane::with("x0", 10), Plane::with("x1", 11), Plane::with("x2", 12)]
}

#[tokio::test(start_paused = true)]
async fn a71_on_startup_the_next_one_serves_until_the_first_is_there() {
    for variant in BOTH {
        let [first, second, _] = three();
        first.is(Mood::Down);
        second.is(Mood::Down);
        let client = client(variant, &[&first, &second]);
        let mut state = client.destination(&"a:80".parse().unwrap());
        let failed = becomes(&mut state, "nobody is there", |s| matches!(s, DestinationState::Unreachable(_))).await;
        assert!(format!("{failed:?}").contains("plane1:1"), "{failed:?}");

        second.is(Mood::Up);
        goes_to(&mut state, 11).await;
        assert_eq!(client.status().server, server(1).uri.to_string());
        first.is(Mood::Up);
        goes_to(&mut state, 10).await;
        second.sees("it is let go", |plane| plane.streams() == 0).await;

        // Down again, the first and then the other: what is cached serves, and nobody else is asked.
        let asked = second.opened();
        first.is(Mood::Down);
        clock::pass(Duration::from_secs(300)).await;
        assert!(matches!(&**state.load(), DestinationState::Ready(s) if ports(s) == [10]));
        assert_eq!(second.opened(), asked, "nothing is missing, so there is no reason to fall back");
    }
}

/// What gRPC's libraries call cached: everything that was answered, if only by a refusal of ours or by word that there is none.
#[tokio::test(start_paused = true)]
async fn a71_what_was_answered_is_no_reason_to_fall_back_whatever_the_answer() {
    for variant in BOTH {
        for (bad, answered) in [("missing:80", true), ("broken:80", true), ("missing:80", false)] {
            let [first, second, _] = three();
            if answered {
                first.tells_absence();
            }
            first.put(crate::plane::broken(codec::LISTENER, "broken:80"));
            let client = client(variant, &[&first, &second]);
            let mut state = client.destination(&"a:80".parse().unwrap());
            goes_to(&mut state, 10).await;
            let mut bad = client.destination(&bad.parse().unwrap());
            if answered {
                becomes(&mut bad, "it fails", |s| matches!(s, DestinationState::Failed(_))).await;
            } else {
                first.sees("it is asked for", |plane| plane.asked(codec::LISTENER).len() == 2).await;
            }
            first.is(Mood::Down);
            clock::pass(Duration::from_secs(100)).await;
            // The control: what was never answered is.
            assert_eq!(second.opened() > 0, !answered, "{variant:?}: {bad:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a71_mid_startup_the_next_one_finishes_what_the_first_began() {
    for variant in BOTH {
        let [first, second, _] = three();
        first.delete(codec::CLUSTER, "x0");
        let client = client(variant, &[&first, &second]);
        let mut state = client.destination(&"a:80".parse().unwrap());
        first.sees("the cluster is asked for", |plane| plane.asked(codec::CLUSTER) == ["x0"]).await;
        first.is(Mood::Down);
        goes_to(&mut state, 11).await;
        first.put(crate::plane::cluster_named("x0"));
        first.is(Mood::Up);
        goes_to(&mut state, 10).await;
        second.sees("it is let go", |plane| plane.streams() == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a71_mid_update_the_whole_of_the_next_one_wins() {
    for variant in BOTH {
        let [first, second, _] = three();
        let client = client(variant, &[&first, &second]);
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 10).await;
        first.put(route_to("r", "new"));
        first.sees("new is asked for", |plane| plane.asked(codec::CLUSTER).contains(&"new".to_owned())).await;
        first.is(Mood::Down);
        goes_to(&mut state, 11).await;

        first.put(crate::plane::cluster_named("new"));
        first.put(crate::plane::endpoints_of("new", 13));
        first.is(Mood::Up);
        goes_to(&mut state, 13).await;
        second.sees("it is let go", |plane| plane.streams() == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a71_a_startup_that_succeeds_never_asks_the_next_one() {
    for variant in BOTH {
        let [first, second, _] = three();
        let client = client(variant, &[&first, &second]);
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 10).await;
        assert_eq!(second.opened(), 0);
        // A new name while the first is away is a reason to.
        first.is(Mood::Down);
        second.put(crate::plane::destination("b:80", "r"));
        let mut new = client.destination(&"b:80".parse().unwrap());
        goes_to(&mut new, 11).await;
        goes_to(&mut state, 11).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a71_three_control_planes_are_climbed_back_one_by_one() {
    for variant in BOTH {
        let [first, second, third] = three();
        first.is(Mood::Down);
        second.is(Mood::Down);
        let client = client(variant, &[&first, &second, &third]);
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 12).await;
        second.is(Mood::Up);
        goes_to(&mut state, 11).await;
        third.sees("it is let go", |plane| plane.streams() == 0).await;
        first.is(Mood::Up);
        goes_to(&mut state, 10).await;
        second.sees("it is let go", |plane| plane.streams() == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a71_a_control_plane_that_hangs_is_passed_over() {
    for variant in BOTH {
        let [first, second, _] = three();
        first.is(Mood::Mute);
        let client = client(variant, &[&first, &second]);
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 11).await;
        first.is(Mood::Up);
        goes_to(&mut state, 10).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a71_names_that_both_have_are_never_joined_on_the_way_there_and_back() {
    for variant in BOTH {
        // The same names everywhere, so that nothing but the origin tells them apart.
        let (first, second) = (Plane::with("x", 10), Plane::with("x", 11));
        second.delete(codec::CLUSTER, "x");
        let client = client(variant, &[&first, &second]);
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 10).await;
        first.is(Mood::Down);
        let _reason = client.destination(&"b:80".parse().unwrap());
        second.sees("everything is asked for", |plane| plane.asked(codec::ENDPOINTS) == ["x"]).await;
        clock::pass(Duration::from_secs(60)).await;
        // The second has everything but the cluster: its endpoints are not put into the first one's cluster.
        assert!(matches!(&**state.load(), DestinationState::Ready(s) if ports(s) == [10]));
        second.put(crate::plane::cluster_named("x"));
        goes_to(&mut state, 11).await;
        first.is(Mood::Up);
        goes_to(&mut state, 10).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a71_what_only_the_fallback_has_is_deleted_once_the_first_is_back() {
    for (variant, strict) in BOTH.into_iter().flat_map(|variant| [(variant, true), (variant, false)]) {
        let (first, second) = (Plane::with("x", 10), Plane::with("x", 11));
        first.delete(codec::LISTENER, "a:80");
        first.put(crate::plane::destination("b:80", "r"));
        first.is(Mood::Down);
        let client = crate::plane::client_with(variant, &[&first, &second], |bootstrap| {
            bootstrap.servers.iter_mut().for_each(|server| server.features.fail_on_data_errors = strict);
        });
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 11).await;
        first.is(Mood::Up);
        if strict {
            let failed = becomes(&mut state, "the first has none", |s| matches!(s, DestinationState::Failed(_))).await;
            assert!(format!("{failed:?}").contains("no such destination a:80"), "{failed:?}");
        } else {
            // Deleted, and the last good stays (gRFC A88).
            first.sees("it is asked", |plane| plane.asked(codec::LISTENER).contains(&"a:80".to_owned())).await;
            clock::pass(Duration::from_secs(120)).await;
            assert!(matches!(&**state.load(), DestinationState::Ready(s) if ports(s) == [11]));
        }
        first.put(crate::plane::destination("a:80", "r"));
        goes_to(&mut state, 10).await;

        // The control run: a fallback that lacks it ends nothing.
        second.delete(codec::LISTENER, "a:80");
        first.is(Mood::Down);
        let _reason = client.destination(&"c:80".parse().unwrap());
        second.sees("it is asked", |plane| plane.asked(codec::LISTENER).contains(&"a:80".to_owned())).await;
        clock::pass(Duration::from_secs(120)).await;
        assert!(matches!(&**state.load(), DestinationState::Ready(s) if ports(s) == [10]), "{strict}");
    }
}

/// What the fallback says not to exist is a data error like any: gRPC keeps what it has of the first, as this library does, and
/// drops it if the fallback has `fail_on_data_errors`. Beyond gRPC nothing of the fallback is put into what is kept.
#[tokio::test(start_paused = true)]
async fn a71_a88_that_something_does_not_exist_is_the_word_of_a_fallback_too() {
    for (variant, strict) in BOTH.into_iter().flat_map(|variant| [(variant, true), (variant, false)]) {
        for kind in [codec::LISTENER, codec::CLUSTER] {
            let (first, second) = (Plane::with("x", 10), Plane::with("x", 11));
            let name = if kind == codec::LISTENER { "a:80" } else { "x" };
            second.delete(kind, name);
            second.put_all([crate::plane::destination("b:80", "s"), route_to("s", "y")]);
            second.put_all([crate::plane::cluster_named("y"), crate::plane::endpoints_of("y", 12)]);
            if variant == BOTH[0] {
                second.tells_absence();
            }
            let client = client_with(variant, &[&first, &second], |bootstrap| {
                bootstrap.servers[1].features.fail_on_data_errors = strict;
            });
            let mut state = client.destination(&"a:80".parse().unwrap());
            goes_to(&mut state, 10).await;
            first.is(Mood::Down);
            let mut other = client.destination(&"b:80".parse().unwrap());
            goes_to(&mut other, 12).await;
            if strict {
                let is_gone = |s: &DestinationState| match s {
                    DestinationState::Failed(_) => kind == codec::LISTENER,
                    DestinationState::Ready(s) => kind == codec::CLUSTER && ports(s) == [0],
                    _ => false,
                };
                becomes(&mut state, "the fallback has none", is_gone).await;
            } else {
                clock::pass(Duration::from_secs(120)).await;
                let kept = state.load_full();
                assert!(matches!(&*kept, DestinationState::Ready(s) if ports(s) == [10]), "{kind} {kept:?}");
            }
            second.put_all([crate::plane::destination("a:80", "r"), crate::plane::cluster_named("x")]);
            goes_to(&mut state, 11).await;
            first.is(Mood::Up);
            goes_to(&mut state, 10).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a95_an_authority_may_fall_back_for_the_sake_of_reachability_alone() {
    for (variant, alone) in BOTH.into_iter().flat_map(|variant| [(variant, true), (variant, false)]) {
        let listener = |plane: &Plane| {
            plane.put(crate::plane::destination(NAME, "xdstp://n/envoy.config.route.v3.RouteConfiguration/r"))
        };
        let routes = |plane: &Plane, cluster| {
            plane.put(route_to("xdstp://n/envoy.config.route.v3.RouteConfiguration/r", cluster));
        };
        let (top, first, second) = (Plane::with("x0", 10), Plane::new(), Plane::new());
        top.put(crate::plane::cluster_named("x1"));
        top.put(crate::plane::endpoints_of("x1", 11));
        listener(&first);
        listener(&second);
        routes(&first, "x0");
        routes(&second, "x1");
        let client = client_with(variant, &[&top, &first, &second], |bootstrap| {
            bootstrap.servers = vec![server(0)];
            bootstrap.client_listener_template = NAME.replace("a:80", "%s");
            let authority = mesh_discovery::bootstrap::Authority {
                client_listener_template: NAME.replace("a:80", "%s"),
                servers: vec![server(1), server(2)],
                fallback_on_reachability_only: alone,
            };
            bootstrap.authorities.insert("n".to_owned(), authority);
        });
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 10).await;
        first.is(Mood::Down);
        if alone {
            goes_to(&mut state, 11).await;
        } else {
            clock::pass(Duration::from_secs(120)).await;
            assert_eq!(second.opened(), 0, "everything is cached");
        }
    }
}

/// Control run: without a second control plane the same outages are felt, at the start and in the middle of an update.
#[tokio::test(start_paused = true)]
async fn a71_without_a_next_one_an_outage_is_felt_r11() {
    for variant in BOTH {
        let [first, second, _] = three();
        first.is(Mood::Down);
        let starting = client(variant, &[&first]);
        let mut state = starting.destination(&"a:80".parse().unwrap());
        becomes(&mut state, "nobody is there", |s| matches!(s, DestinationState::Unreachable(_))).await;
        clock::pass(Duration::from_secs(300)).await;
        assert!(matches!(&**state.load(), DestinationState::Unreachable(_)));
        assert_eq!(second.opened(), 0);
        drop((starting, state));

        first.is(Mood::Up);
        let updating = client(variant, &[&first]);
        let mut state = updating.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 10).await;
        first.put(route_to("r", "new"));
        first.sees("new is asked for", |plane| plane.asked(codec::CLUSTER).contains(&"new".to_owned())).await;
        first.is(Mood::Down);
        clock::pass(Duration::from_secs(300)).await;
        assert!(matches!(&**state.load(), DestinationState::Ready(s) if ports(s) == [10]), "the update hangs");
    }
}

const NAME: &str = "xdstp://n/envoy.config.listener.v3.Listener/a:80";
