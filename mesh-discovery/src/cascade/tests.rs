mod inbound;

use std::collections::BTreeMap;

use futures_util::FutureExt;
use mesh_core::id::ClusterName;
use mesh_core::policy::{
    Cluster, ClusterChoice, ClusterState, Discovery, Domain, Endpoints, Forward, HeaderPolicy, Listener, Mirror,
    PerMillion, Route, RouteAction, RouteConfiguration, RouteMatch, RouteSource, TcpForward, VirtualHost,
    WeightedCluster, WeightedClusters,
};
use mesh_core::source::Watched;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::xds::{Loss, Origin, Value};

/// A control plane that answers when told.
#[derive(Default)]
struct Plane {
    wanted: BTreeMap<Key, Vec<SubscriptionId>>,
    has: BTreeMap<Key, (Result<Resource, String>, Origin)>,
    /// Nobody can be asked for what is not there.
    away: bool,
    /// What is not to be had for now.
    lost: BTreeMap<Key, Loss>,
    server: u16,
}

impl Resources for Plane {
    fn want(&mut self, by: SubscriptionId, kind: Kind, name: &str) -> (Name, Known<'_, Resource>) {
        let name: Name = name.into();
        let users = self.wanted.entry(Key::new(kind, name.clone())).or_default();
        if !users.contains(&by) {
            users.push(by);
        }
        (name.clone(), self.known(kind, &name))
    }

    fn release(&mut self, by: SubscriptionId, key: &Key) {
        let Some(users) = self.wanted.get_mut(key) else { return };
        users.retain(|user| *user != by);
        if users.is_empty() {
            self.wanted.remove(key);
        }
    }

    fn users(&self, key: &Key) -> &[SubscriptionId] {
        self.wanted.get(key).map_or(&[], Vec::as_slice)
    }

    fn wanted_by(&self, by: SubscriptionId) -> Vec<Key> {
        self.wanted.iter().filter(|(_, users)| users.contains(&by)).map(|(key, _)| key.clone()).collect()
    }

    fn known(&self, kind: Kind, name: &str) -> Known<'_, Resource> {
        let key = &Key::new(kind, name);
        assert!(self.wanted.contains_key(key), "{key} was not asked for");
        if let Some(loss) = self.lost.get(key) {
            return Known::Lost("it is not to be had", *loss);
        }
        match self.has.get(key) {
            None if self.away => Known::Lost("nobody can be asked", Loss::Unreachable(0)),
            None => Known::Pending,
            Some((Ok(resource), origin)) => Known::Value(resource, *origin),
            Some((Err(reason), origin)) => Known::Missing(reason, *origin),
        }
    }

    fn hold(&self, _: &Key, _: Duration) -> Hold {
        Hold::Confirmed
    }
}

/// A cascade with one destination `a:80`.
struct World {
    plane: Plane,
    cascade: Cascade,
    state: Watched<DestinationState>,
    /// Every change is followed by a whole walk.
    walks: bool,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            plane: Plane::default(),
            cascade: Cascade::default(),
            state: Watched::fixed(DestinationState::Pending),
            walks: false,
        };
        world.state = world.watch(1);
        world
    }

    fn watch(&mut self, id: SubscriptionId) -> Watched<DestinationState> {
        let (publisher, state) = Watched::channel(DestinationState::Pending);
        let root = Root::Destination { target: "a:80".parse().unwrap(), listener: "a:80".to_owned(), publisher };
        self.cascade.add(id, root, &mut self.plane);
        state
    }

    fn give(&mut self, kind: Kind, name: &str, resource: Result<Value, &str>) {
        let key = Key::new(kind, name);
        let resource = resource.map(|value| Resource { value, unenforced: Arc::from([]) }).map_err(str::to_owned);
        let origin = Origin { authority: 0, server: self.plane.server };
        self.plane.lost.remove(&key);
        self.plane.has.insert(key.clone(), (resource, origin));
        self.changed(key);
    }

    fn changed(&mut self, key: Key) {
        let mut keys = vec![key];
        // Not of endpoints alone.
        keys.extend(self.walks.then(|| Key::new(Kind::Listener, "nobody's")));
        self.cascade.changed(&keys, &mut self.plane);
    }

    /// Given by one control plane, and not to be had from the one that counts now.
    fn lose(&mut self, kind: Kind, name: &str) {
        self.lose_for(kind, name, Loss::Former(Origin { authority: 0, server: 1 }));
    }

    fn lose_for(&mut self, kind: Kind, name: &str, loss: Loss) {
        let key = Key::new(kind, name);
        self.plane.lost.insert(key.clone(), loss);
        self.changed(key);
    }

    /// Listener, routes to `x`, cluster `x` and its endpoints.
    fn complete() -> Self {
        let mut world = Self::new();
        world.give(Kind::Listener, "a:80", Ok(listener("r")));
        world.give(Kind::Routes, "r", Ok(routes("r", &["x"])));
        world.give(Kind::Cluster, "x", Ok(cluster("x", eds(None))));
        world.give(Kind::Endpoints, "x", Ok(endpoints("x")));
        world
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        match &*self.state.load_full() {
            DestinationState::Ready(snapshot) => snapshot.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn wanted(&self) -> Vec<String> {
        self.plane.wanted.keys().map(|key| format!("{:?} {}", key.kind, key.name)).collect()
    }
}

fn listener(routes: &str) -> Value {
    Value::Listener(Arc::new(Listener::new("a:80", RouteSource::Named(routes.to_owned()))))
}

fn routes(name: &str, clusters: &[&str]) -> Value {
    let route = |cluster: &&str| route(Forward::to(ClusterName::from(*cluster)));
    Value::Routes(Arc::new(route_configuration(name, clusters.iter().map(route).collect())))
}

fn route(forward: Forward) -> Route {
    Route::new(RouteMatch::any(), RouteAction::Forward(Box::new(forward)))
}

fn route_configuration(name: &str, routes: Vec<Route>) -> RouteConfiguration {
    let host = VirtualHost {
        name: "all".to_owned(),
        domains: vec![Domain::new("*").unwrap()],
        routes,
        headers: HeaderPolicy::default(),
        retry: None,
    };
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![host],
        headers: HeaderPolicy::default(),
        retry_budget: None,
    }
}

fn eds(service_name: Option<&str>) -> Discovery {
    Discovery::Eds { service_name: service_name.map(str::to_owned) }
}

fn cluster(name: &str, discovery: Discovery) -> Value {
    Value::Cluster(Arc::new(Cluster { discovery, ..Cluster::new(name.into()) }))
}

fn endpoints(name: &str) -> Value {
    Value::Endpoints(Arc::new(Endpoints { cluster: name.to_owned(), ..Default::default() }))
}

#[test]
fn nothing_is_published_until_everything_is_known() {
    let mut world = World::new();
    assert_eq!(world.wanted(), ["Listener a:80"]);
    world.give(Kind::Listener, "a:80", Ok(listener("r")));
    world.give(Kind::Routes, "r", Ok(routes("r", &["x", "y"])));
    assert_eq!(world.wanted(), ["Listener a:80", "Routes r", "Cluster x", "Cluster y"], "all at once");
    world.give(Kind::Cluster, "x", Ok(cluster("x", eds(Some("elsewhere")))));
    world.give(Kind::Endpoints, "elsewhere", Ok(endpoints("elsewhere")));
    assert_eq!(**world.state.load(), DestinationState::Pending);
    world.give(Kind::Cluster, "y", Err("it was refused"));
    let snapshot = world.snapshot();
    assert!(matches!(snapshot.clusters[&"x".into()], ClusterState::Ready { .. }));
    let ClusterState::Failed(reason) = &snapshot.clusters[&"y".into()] else { panic!("it failed") };
    assert!(reason.contains("it was refused"), "{reason}");
}

#[test]
fn the_clusters_of_raw_connections_belong_to_the_destination() {
    let mut world = World::complete();
    let raw = TcpForward::to("raw".into());
    let with_raw = Listener { tcp: Some(raw), ..Listener::new("a:80", RouteSource::Named("r".to_owned())) };
    let before = world.snapshot();
    world.give(Kind::Listener, "a:80", Ok(Value::Listener(Arc::new(with_raw))));
    assert!(Arc::ptr_eq(&before, &world.snapshot()), "make before break");
    world.give(Kind::Cluster, "raw", Ok(cluster("raw", eds(None))));
    world.give(Kind::Endpoints, "raw", Ok(endpoints("raw")));
    let known: Vec<_> = world.snapshot().clusters.keys().map(ToString::to_string).collect();
    assert_eq!(known, ["raw", "x"]);
    world.give(Kind::Listener, "a:80", Ok(listener("r")));
    assert_eq!(world.snapshot().clusters.len(), 1);
    assert!(!world.wanted().contains(&"Cluster raw".to_owned()), "{:?}", world.wanted());
}

#[test]
fn an_update_changes_its_part_and_leaves_the_other_arcs() {
    let mut world = World::complete();
    let before = world.snapshot();
    let mut more = Endpoints { cluster: "x".to_owned(), ..Default::default() };
    more.drops.push(mesh_core::policy::DropOverload { category: "c".to_owned(), share: PerMillion::ALL });
    world.give(Kind::Endpoints, "x", Ok(Value::Endpoints(Arc::new(more))));
    let after = world.snapshot();
    assert_ne!(before, after);
    assert!(Arc::ptr_eq(&before.listener, &after.listener) && Arc::ptr_eq(&before.routes, &after.routes));
    let of = |snapshot: &Snapshot| match &snapshot.clusters[&ClusterName::from("x")] {
        ClusterState::Ready { cluster, .. } => cluster.clone(),
        ClusterState::Failed(reason) => panic!("{reason}"),
    };
    assert!(Arc::ptr_eq(&of(&before), &of(&after)));
}

#[test]
fn an_unchanged_state_is_not_published_again() {
    let mut world = World::complete();
    let before = world.snapshot();
    for (kind, name) in [(Kind::Listener, "a:80"), (Kind::Routes, "r"), (Kind::Cluster, "x"), (Kind::Endpoints, "x")] {
        world.cascade.changed(&[Key::new(kind, name)], &mut world.plane);
    }
    assert!(Arc::ptr_eq(&before, &world.snapshot()));
}

#[test]
fn routes_to_an_unknown_cluster_wait_behind_the_old_ones() {
    let mut world = World::complete();
    let before = world.snapshot();
    world.give(Kind::Routes, "r", Ok(routes("r", &["new"])));
    assert!(Arc::ptr_eq(&before, &world.snapshot()), "make before break");
    assert!(world.wanted().contains(&"Endpoints x".to_owned()), "what is in use stays subscribed");

    // The old clusters go on being kept up to date while the new one is on its way.
    let breaker = mesh_core::policy::CircuitBreakers { max_requests: Some(7), ..Default::default() };
    let changed = Cluster { breaker, ..Cluster::new("x".into()) };
    world.give(Kind::Cluster, "x", Ok(Value::Cluster(Arc::new(changed))));
    let meanwhile = world.snapshot();
    assert!(Arc::ptr_eq(&before.routes, &meanwhile.routes) && before != meanwhile);

    world.give(Kind::Cluster, "new", Ok(cluster("new", eds(None))));
    assert!(Arc::ptr_eq(&meanwhile, &world.snapshot()), "its endpoints are missing");
    world.give(Kind::Endpoints, "new", Ok(endpoints("new")));
    assert_eq!(world.snapshot().clusters.keys().map(ClusterName::as_str).collect::<Vec<_>>(), ["new"]);
    assert_eq!(world.wanted(), ["Listener a:80", "Routes r", "Cluster new", "Endpoints new"], "the old one is let go");
}

#[test]
fn a_cluster_that_moves_to_unknown_endpoints_keeps_the_old_ones_meanwhile() {
    let mut world = World::complete();
    let before = world.snapshot();
    world.give(Kind::Cluster, "x", Ok(cluster("x", eds(Some("moved")))));
    assert!(Arc::ptr_eq(&before, &world.snapshot()));
    assert!(world.wanted().contains(&"Endpoints x".to_owned()));
    world.give(Kind::Endpoints, "moved", Ok(endpoints("moved")));
    assert_ne!(before, world.snapshot());
    assert!(!world.wanted().contains(&"Endpoints x".to_owned()));
}

#[test]
fn routes_that_fail_leave_the_published_ones() {
    let mut world = World::complete();
    let before = world.snapshot();
    world.give(Kind::Listener, "a:80", Ok(listener("other")));
    world.give(Kind::Routes, "other", Err("gone"));
    assert!(Arc::ptr_eq(&before, &world.snapshot()));
}

#[test]
fn a_cluster_that_never_comes_fails_alone() {
    let mut world = World::complete();
    world.give(Kind::Routes, "r", Ok(routes("r", &["x", "new"])));
    world.give(Kind::Cluster, "new", Err("the control plane did not send it within 15s"));
    let snapshot = world.snapshot();
    assert!(matches!(snapshot.clusters[&"x".into()], ClusterState::Ready { .. }));
    assert!(matches!(snapshot.clusters[&"new".into()], ClusterState::Failed(_)));
}

#[test]
fn a_share_of_0_is_neither_asked_for_nor_waited_for_a28() {
    let split = |canary: u32| {
        let entry = |name: &str, weight| WeightedCluster::new(name.into(), weight);
        let split = WeightedClusters::new(vec![entry("x", 100), entry("canary", canary)]).unwrap();
        let forward = Forward { to: ClusterChoice::Weighted(split), ..Forward::to("x".into()) };
        Ok(Value::Routes(Arc::new(route_configuration("r", vec![route(forward)]))))
    };
    let mut world = World::complete();
    let before = world.snapshot();
    world.give(Kind::Routes, "r", split(0));
    let after = world.snapshot();
    assert!(before.routes != after.routes && after.clusters.len() == 1, "they are in force");
    assert!(!world.wanted().contains(&"Cluster canary".to_owned()), "{:?}", world.wanted());
    // The control run: what is sent something has to be there first.
    world.give(Kind::Routes, "r", split(1));
    assert!(Arc::ptr_eq(&after, &world.snapshot()) && world.wanted().contains(&"Cluster canary".to_owned()));
}

#[test]
fn a_cluster_that_cannot_be_had_fails_alone_and_holds_no_routes_back() {
    let origin = Origin { authority: 0, server: 0 };
    let mirrored = || {
        let mut forward = Forward::to("x".into());
        forward.mirrors.push(Mirror { cluster: "y".into(), share: PerMillion::ALL, shadow_host: false });
        Ok(Value::Routes(Arc::new(route_configuration("r", vec![route(forward)]))))
    };
    for (loss, alone) in [
        (Loss::Late(origin), true),
        (Loss::Unreachable(1), true),
        // Its own control plane is away: it says nothing more of the routes either.
        (Loss::Unreachable(0), false),
        (Loss::Former(Origin { server: 1, ..origin }), false),
    ] {
        for (kind, routes) in [
            (Kind::Cluster, Ok(routes("r", &["x", "y"]))),
            (Kind::Endpoints, Ok(routes("r", &["x", "y"]))),
            (Kind::Cluster, mirrored()),
        ] {
            let mut world = World::complete();
            let before = world.snapshot();
            world.give(Kind::Routes, "r", routes);
            world.give(Kind::Cluster, "y", Ok(cluster("y", eds(None))));
            assert!(Arc::ptr_eq(&before, &world.snapshot()), "it may be on its way");
            world.lose_for(kind, "y", loss);
            let after = world.snapshot();
            assert_eq!(before.routes != after.routes, alone, "{loss:?} {kind:?}");
            let failed = after.clusters.iter().filter(|(_, state)| matches!(state, ClusterState::Failed(_)));
            assert_eq!(failed.map(|(name, _)| name.as_str()).eq(["y"]), alone);
            // It comes after all.
            world.give(Kind::Cluster, "y", Ok(cluster("y", Discovery::Static(Arc::default()))));
            assert!(world.snapshot().clusters.values().all(|state| matches!(state, ClusterState::Ready { .. })));
            assert_eq!(world.snapshot().clusters.len(), 2);
        }
    }
    // Listener and routes are not a part: what is in use stays.
    for (kind, name) in [(Kind::Listener, "a:80"), (Kind::Routes, "r")] {
        let mut world = World::complete();
        let before = world.snapshot();
        world.lose_for(kind, name, Loss::Late(origin));
        assert!(Arc::ptr_eq(&before, &world.snapshot()));
    }
}

#[test]
fn a_destination_that_does_not_exist_fails_and_can_come_to_life() {
    let mut world = World::new();
    world.give(Kind::Listener, "a:80", Err("not sent"));
    let DestinationState::Failed(reason) = &*world.state.load_full() else { panic!("it failed") };
    assert!(reason.contains("no such destination a:80") && reason.contains("not sent"), "{reason}");
    world.give(Kind::Listener, "a:80", Ok(listener("r")));
    assert_eq!(**world.state.load(), DestinationState::Pending, "it exists now");
    world.give(Kind::Routes, "r", Ok(routes("r", &[])));
    world.snapshot();
}

#[test]
fn clusters_that_find_their_own_endpoints_need_none_and_mirrors_count() {
    let mut world = World::new();
    world.give(Kind::Listener, "a:80", Ok(listener("r")));
    let mut forward = Forward::to("static".into());
    forward.mirrors.push(Mirror { cluster: "dns".into(), share: PerMillion::ALL, shadow_host: false });
    let two = vec![route(forward), route(Forward::to("original".into()))];
    world.give(Kind::Routes, "r", Ok(Value::Routes(Arc::new(route_configuration("r", two)))));
    let some = Arc::new(Endpoints { cluster: "static".to_owned(), ..Default::default() });
    world.give(Kind::Cluster, "static", Ok(cluster("static", Discovery::Static(some.clone()))));
    world.give(Kind::Cluster, "dns", Ok(cluster("dns", Discovery::StrictDns(Arc::default()))));
    world.give(Kind::Cluster, "original", Ok(cluster("original", Discovery::OriginalDestination)));
    let snapshot = world.snapshot();
    assert_eq!(snapshot.clusters.len(), 3);
    let ClusterState::Ready { endpoints, .. } = &snapshot.clusters[&"static".into()] else { panic!("ready") };
    assert!(Arc::ptr_eq(endpoints, &some));
    assert!(!world.wanted().iter().any(|key| key.starts_with("Endpoints")));
}

#[test]
fn the_children_of_an_aggregate_are_followed_even_in_a_circle() {
    let mut world = World::new();
    world.give(Kind::Listener, "a:80", Ok(listener("r")));
    world.give(Kind::Routes, "r", Ok(routes("r", &["top"])));
    world.give(Kind::Cluster, "top", Ok(cluster("top", Discovery::Aggregate(vec!["x".into(), "again".into()]))));
    world.give(Kind::Cluster, "again", Ok(cluster("again", Discovery::Aggregate(vec!["top".into()]))));
    world.give(Kind::Cluster, "x", Ok(cluster("x", eds(None))));
    assert_eq!(**world.state.load(), DestinationState::Pending);
    world.give(Kind::Endpoints, "x", Ok(endpoints("x")));
    assert_eq!(world.snapshot().clusters.len(), 3);

    // A new child that is on its way does not show up in a parent without it.
    let before = world.snapshot();
    world.give(Kind::Cluster, "top", Ok(cluster("top", Discovery::Aggregate(vec!["new".into()]))));
    assert!(Arc::ptr_eq(&before, &world.snapshot()));
}

#[test]
fn resources_are_shared_and_let_go_with_their_last_user() {
    let mut world = World::complete();
    let late = world.watch(2);
    assert!(matches!(&**late.load(), DestinationState::Ready(_)), "a late watcher gets the current state at once");
    world.cascade.remove(1, &mut world.plane);
    assert_eq!(world.wanted().len(), 4, "the second still uses them");
    world.cascade.remove(2, &mut world.plane);
    assert!(world.wanted().is_empty());
    assert!(world.cascade.followed.is_empty());
}

#[test]
fn what_two_control_planes_say_is_never_joined() {
    let mut world = World::complete();
    let before = world.snapshot();
    world.plane.server = 1;
    // The same content from somebody else is no change to see, but it is one to wait for.
    world.give(Kind::Listener, "a:80", Ok(listener("r")));
    world.give(Kind::Routes, "r", Ok(routes("r", &["x", "y"])));
    world.give(Kind::Cluster, "y", Ok(cluster("y", eds(None))));
    world.give(Kind::Endpoints, "y", Ok(endpoints("y")));
    assert!(Arc::ptr_eq(&before, &world.snapshot()), "x is still the other's");
    world.give(Kind::Endpoints, "x", Ok(Value::Endpoints(Arc::default())));
    world.give(Kind::Cluster, "x", Ok(cluster("x", Discovery::Static(Arc::default()))));
    assert_eq!(world.snapshot().clusters.len(), 2);

    // Control run: from one control plane the same steps show at once.
    let mut world = World::complete();
    world.give(Kind::Routes, "r", Ok(routes("r", &["x", "y"])));
    world.give(Kind::Cluster, "y", Ok(cluster("y", eds(None))));
    world.give(Kind::Endpoints, "y", Ok(endpoints("y")));
    assert_eq!(world.snapshot().clusters.len(), 2);
}

#[test]
fn a_late_watcher_of_a_mixed_destination_waits() {
    let mut world = World::complete();
    world.plane.server = 1;
    world.give(Kind::Listener, "a:80", Ok(listener("r")));
    let late = world.watch(2);
    assert_eq!(**late.load(), DestinationState::Pending);
    world.give(Kind::Routes, "r", Ok(routes("r", &["x"])));
    world.give(Kind::Cluster, "x", Ok(cluster("x", Discovery::Static(Arc::default()))));
    assert!(matches!(&**late.load(), DestinationState::Ready(_)));
}

#[test]
fn what_is_missing_because_nobody_can_be_asked_replaces_nothing_good() {
    let mut world = World::complete();
    let before = world.snapshot();
    world.plane.away = true;
    world.give(Kind::Routes, "r", Ok(routes("r", &["new"])));
    assert!(Arc::ptr_eq(&before, &world.snapshot()));
    // Where there is nothing good, it is an answer.
    let late = world.watch(2);
    let DestinationState::Ready(snapshot) = &**late.load() else { panic!("{late:?}") };
    assert!(matches!(&snapshot.clusters[&"new".into()], ClusterState::Failed(reason) if reason.contains("nobody")));
}

#[test]
fn aggregates_that_are_nested_too_deep_fail() {
    for (levels, deep) in [(16, false), (17, true)] {
        let mut world = World::new();
        world.give(Kind::Listener, "a:80", Ok(listener("r")));
        world.give(Kind::Routes, "r", Ok(routes("r", &["c1"])));
        for level in 1..levels {
            let child = format!("c{}", level + 1);
            let aggregate = Discovery::Aggregate(vec![child.as_str().into()]);
            world.give(Kind::Cluster, &format!("c{level}"), Ok(cluster(&format!("c{level}"), aggregate)));
        }
        let leaf = format!("c{levels}");
        if !deep {
            world.give(Kind::Cluster, &leaf, Ok(cluster(&leaf, Discovery::Static(Arc::default()))));
        }
        let snapshot = world.snapshot();
        let failed = snapshot.clusters.values().filter(|state| matches!(state, ClusterState::Failed(_))).count();
        assert_eq!((failed, snapshot.clusters.len()), (usize::from(deep), 16));
    }
}

#[test]
fn a_part_of_what_is_published_that_was_dropped_on_purpose_fails_the_destination() {
    for kind in [Kind::Listener, Kind::Routes] {
        let mut world = World::complete();
        world.give(kind, if kind == Kind::Listener { "a:80" } else { "r" }, Err("deleted"));
        assert!(matches!(&**world.state.load(), DestinationState::Failed(reason) if reason.contains("deleted")));
    }
}

/// Some news: what, of whom, from which control plane.
fn hear(world: &mut World, (what, of, server): (u8, usize, u16)) {
    let name = ["x", "y", "elsewhere"][of];
    world.plane.server = server;
    let endpoints = |factor: u8| {
        let cluster = name.to_owned();
        Value::Endpoints(Arc::new(Endpoints {
            cluster,
            overprovisioning_factor: Some(factor.into()),
            ..Default::default()
        }))
    };
    match what {
        0..10 => world.give(Kind::Endpoints, name, Ok(endpoints(what / 3))),
        10 => world.give(Kind::Endpoints, name, Err("refused")),
        11 => world.lose(Kind::Endpoints, name),
        20 => world.lose_for(Kind::Endpoints, name, Loss::Late(Origin { authority: 0, server })),
        21 => world.lose_for(Kind::Cluster, name, Loss::Unreachable(server)),
        12 => world.give(Kind::Cluster, name, Ok(cluster(name, eds(None)))),
        13 => world.give(Kind::Cluster, name, Ok(cluster(name, eds(Some("elsewhere"))))),
        14 => world.give(Kind::Cluster, name, Ok(cluster(name, Discovery::Aggregate(vec!["y".into()])))),
        15 => world.give(Kind::Cluster, name, Err("refused")),
        16 => world.lose(Kind::Cluster, name),
        17 => world.give(Kind::Routes, "r", Ok(routes("r", &[name]))),
        18 => world.give(Kind::Listener, "a:80", Ok(listener("r"))),
        _ => world.give(Kind::Routes, "r", Ok(routes("r", &["x", "y"]))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// News of endpoints alone take a short way, and so do all before something is published; it leads to where the
    /// whole walk leads.
    #[test]
    fn a_short_way_makes_what_a_whole_walk_makes(
        complete in any::<bool>(),
        news in vec((0..22_u8, 0..3_usize, 0..2_u16), 1..60),
    ) {
        let begin = if complete { World::complete } else { World::new };
        let mut short = begin();
        let mut whole = World { walks: true, ..begin() };
        for news in news {
            // One control plane for most of the time, so that much is complete.
            let news = (news.0, news.1, if news.0 % 5 == 0 { news.2 } else { short.plane.server });
            hear(&mut short, news);
            hear(&mut whole, news);
            prop_assert_eq!(&**short.state.load(), &**whole.state.load());
            prop_assert_eq!(short.wanted(), whole.wanted());
            let woken = |world: &mut World| world.state.changed().now_or_never().is_some();
            prop_assert_eq!(woken(&mut short), woken(&mut whole));
        }
    }
}

/// The short way is taken: the listener, the routes and the cluster are not even asked after.
#[test]
fn new_endpoints_are_published_without_a_walk_through_the_rest() {
    let mut world = World::complete();
    for (kind, name) in [(Kind::Listener, "a:80"), (Kind::Routes, "r"), (Kind::Cluster, "x")] {
        // Asking after it would fail the test.
        world.plane.wanted.remove(&Key::new(kind, name));
    }
    hear(&mut world, (3, 0, 0));
    let ClusterState::Ready { endpoints, .. } = &world.snapshot().clusters[&"x".into()] else { panic!("it is there") };
    assert_eq!(endpoints.overprovisioning_factor, Some(1));
    assert_eq!(world.wanted(), ["Endpoints x"]);
}
