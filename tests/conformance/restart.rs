//! What a client keeps on disk is what it has in use: a start without a control plane goes on where the last run was, and
//! joins no two control planes that the last run held apart (R05, R08, gRFC A71).

use std::path::Path;
use std::time::Duration;

use mesh_core::policy::{DestinationState, InboundRoutes, InboundState};
use mesh_core::source::{DestinationSource, InboundSource};
use mesh_discovery::codec;
use mesh_discovery::xds::{SnapshotConfig, Variant, XdsClient};
use mesh_testkit::clock;

use crate::inbound::{ADDRESS, guarded, listener, serves, serving};
use crate::plane::{
    BOTH, Mood, Plane, becomes, client_of, cluster_named, destination, endpoints_of, goes_to, ports, route_to,
};

/// A client that keeps what it knows in this folder, as by default.
fn keeping(variant: Variant, planes: &[&Plane], folder: &Path) -> XdsClient {
    client_of(variant, planes, |config| config.snapshot = Some(SnapshotConfig::new(folder.join("snapshot"))))
}

/// The end of a client and the start of the next, which finds nobody.
async fn restarted(client: XdsClient, variant: Variant, planes: &[&Plane], folder: &Path) -> XdsClient {
    client.save().await.unwrap();
    drop(client);
    planes.iter().for_each(|plane| plane.is(Mood::Down));
    keeping(variant, planes, folder)
}

#[tokio::test(start_paused = true)]
async fn r05_a_restart_joins_no_two_control_planes_that_were_held_apart() {
    for (variant, whole) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let folder = tempfile::tempdir().unwrap();
        // The same names everywhere, so that nothing but the origin tells them apart.
        let (first, second) = (Plane::with("x", 10), Plane::with("x", 11));
        let planes = [&first, &second];
        second.delete(codec::CLUSTER, "x");
        let client = keeping(variant, &planes, folder.path());
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 10).await;
        first.is(Mood::Down);
        let _reason = client.destination(&"b:80".parse().unwrap());
        second.sees("everything is asked for", |plane| plane.asked(codec::ENDPOINTS) == ["x"]).await;
        clock::pass(Duration::from_secs(60)).await;
        assert!(matches!(&**state.load(), DestinationState::Ready(s) if ports(s) == [10]));
        // The control: once the second has everything, that is what is kept.
        if whole {
            second.put(cluster_named("x"));
            goes_to(&mut state, 11).await;
        }
        let client = restarted(client, variant, &planes, folder.path()).await;
        goes_to(&mut client.destination(&"a:80".parse().unwrap()), if whole { 11 } else { 10 }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn r08_a_restart_in_the_middle_of_an_update_goes_on_with_what_served_before_it() {
    for (variant, whole) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let folder = tempfile::tempdir().unwrap();
        let plane = Plane::with("x", 10);
        plane.put(listener(InboundRoutes::Named("in".to_owned())));
        plane.put(serving("in", "/a"));
        let client = keeping(variant, &[&plane], folder.path());
        let mut state = client.destination(&"a:80".parse().unwrap());
        let mut inbound = client.inbound(ADDRESS.parse().unwrap());
        goes_to(&mut state, 10).await;
        serves(&mut inbound, "/a").await;
        plane.put(route_to("r", "y"));
        plane.put(listener(InboundRoutes::Named("out".to_owned())));
        plane.sees("y is asked for", |plane| plane.asked(codec::CLUSTER).contains(&"y".to_owned())).await;
        plane.sees("and the routes", |plane| plane.asked(codec::ROUTES).contains(&"out".to_owned())).await;
        if whole {
            plane.put_all([cluster_named("y"), endpoints_of("y", 11), serving("out", "/b")]);
            goes_to(&mut state, 11).await;
            serves(&mut inbound, "/b").await;
        }
        let client = restarted(client, variant, &[&plane], folder.path()).await;
        goes_to(&mut client.destination(&"a:80".parse().unwrap()), if whole { 11 } else { 10 }).await;
        let mut inbound = client.inbound(ADDRESS.parse().unwrap());
        serves(&mut inbound, if whole { "/b" } else { "/a" }).await;
        assert!(matches!(&**inbound.load(), InboundState::Ready(_)));

        // And back: what the control plane says then replaces it, when all of it is there.
        plane.put_all([cluster_named("y"), endpoints_of("y", 12), serving("out", "/c")]);
        plane.is(Mood::Up);
        goes_to(&mut client.destination(&"a:80".parse().unwrap()), 12).await;
        serves(&mut inbound, "/c").await;
    }
}

/// A filter that is off in the listener, and on where its routes say so: the next run knows of it too.
#[tokio::test(start_paused = true)]
async fn r08_a_restart_knows_what_the_routes_of_a_server_change() {
    for variant in BOTH {
        let folder = tempfile::tempdir().unwrap();
        let plane = Plane::with("x", 10);
        plane.put_all(guarded("/a"));
        let client = keeping(variant, &[&plane], folder.path());
        let mut inbound = client.inbound(ADDRESS.parse().unwrap());
        serves(&mut inbound, "/a").await;
        let before = inbound.load_full();
        let guards = |state: &InboundState| match state {
            InboundState::Ready(listener) => {
                let routes = listener.routes.iter().filter_map(|route| route.serves.as_ref());
                (listener.authorization.len(), routes.map(|guards| guards.authorization.len()).collect::<Vec<_>>())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(guards(&before), (0, vec![1]));
        assert!(format!("{before:?}").contains("Deny"), "{before:?}");
        let client = restarted(client, variant, &[&plane], folder.path()).await;
        let mut inbound = client.inbound(ADDRESS.parse().unwrap());
        serves(&mut inbound, "/a").await;
        assert_eq!(inbound.load_full(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn r08_a_job_of_a_few_seconds_leaves_a_snapshot_and_one_that_ends_in_order_its_latest_state() {
    for (variant, in_order) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let folder = tempfile::tempdir().unwrap();
        let plane = Plane::with("x", 10);
        let client = keeping(variant, &[&plane], folder.path());
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 10).await;
        clock::pass(Duration::from_secs(2)).await;
        plane.put(endpoints_of("x", 11));
        goes_to(&mut state, 11).await;
        if in_order {
            client.save().await.unwrap();
        }
        let writes = client.status().snapshot.unwrap().writes;
        assert_eq!(writes, if in_order { 2 } else { 1 });
        drop(client);
        plane.is(Mood::Down);
        let client = keeping(variant, &[&plane], folder.path());
        goes_to(&mut client.destination(&"a:80".parse().unwrap()), if in_order { 11 } else { 10 }).await;
        // There is nothing to say of what nobody vouches for, and nobody waits for it.
        client.save().await.unwrap();
        assert_eq!(client.status().snapshot.unwrap().writes, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn r05_a_restart_joins_nothing_that_two_control_planes_gave_to_two_runs() {
    for (variant, apart) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (Plane::with("x", 10), Plane::with("x", 11));
        let planes = [&first, &second];
        first.put_all([destination("d:80", "q"), route_to("q", "x")]);
        let client = keeping(variant, &planes, folder.path());
        let mut both = ["a:80", "d:80"].map(|name| client.destination(&name.parse().unwrap()));
        for state in &mut both {
            goes_to(state, 10).await;
        }
        client.save().await.unwrap();
        drop((client, both));
        // The next run asks for one of them, and hears of the second control plane alone.
        if apart {
            first.is(Mood::Down);
        }
        let client = keeping(variant, &planes, folder.path());
        let (mut state, of_last) = (client.destination(&"a:80".parse().unwrap()), if apart { 11 } else { 10 });
        goes_to(&mut state, of_last).await;
        second.sees("it is asked, or nobody need be", |plane| !apart || plane.asked(codec::ENDPOINTS) == ["x"]).await;
        let client = restarted(client, variant, &planes, folder.path()).await;
        goes_to(&mut client.destination(&"a:80".parse().unwrap()), of_last).await;
        // The routes of the one with the clusters of the other are nobody's configuration.
        let mut joined = client.destination(&"d:80".parse().unwrap());
        if apart {
            becomes(&mut joined, "nobody can be asked", |state| matches!(state, DestinationState::Unreachable(_)))
                .await;
        } else {
            goes_to(&mut joined, 10).await;
        }
    }
}
