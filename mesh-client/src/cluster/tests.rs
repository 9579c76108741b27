//! What a cluster holds for its endpoints, and what an update does to it.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, OnceLock, Weak};
use std::time::Duration;

use allocation_counter::measure;
use mesh_core::balance::{Candidates, Draw, Pick, Score};
use mesh_core::policy::{
    self, Address, Balancer, Discovery, EndpointMetadata, Endpoints, Health, LoadSpill, LocalityBalancing,
    LocalityEndpoints, PerMillion, SlowStart,
};
use mesh_testkit::{FakeResolver, FixedSource};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Backend, Cluster, Endpoint, Labels, Members};
use crate::builder::ClientBuilder;
use crate::connect::{PER_HOST, Room};
use crate::env::Env;

fn env() -> Arc<Env> {
    ClientBuilder::new(FixedSource::new()).number(0).env()
}

fn address(index: usize) -> Address {
    let ip = std::net::Ipv4Addr::from(0x0a00_0000 + index as u32);
    Address::Socket((ip, 80).into())
}

fn endpoints(indices: impl Iterator<Item = usize>) -> Arc<Endpoints> {
    // Shared by equal endpoints, as discovery shares it.
    let metadata = Arc::<EndpointMetadata>::default();
    let endpoint = |index| policy::Endpoint { metadata: metadata.clone(), ..policy::Endpoint::new(address(index)) };
    let endpoints = indices.map(endpoint).collect();
    let group = LocalityEndpoints { locality: Default::default(), priority: 0, weight: NonZeroU32::MIN, endpoints };
    Arc::new(Endpoints { cluster: "c".into(), localities: vec![group], ..Endpoints::default() })
}

fn cluster(policy: policy::Cluster, endpoints: Arc<Endpoints>, env: &Arc<Env>) -> Arc<Cluster> {
    Cluster::new(Arc::new(policy), endpoints, &"c:80".parse().unwrap(), env, None)
}

fn plain() -> policy::Cluster {
    policy::Cluster::new("c".into())
}

fn at(cluster: &Cluster, members: &Members, index: usize, env: &Env) -> Arc<Endpoint> {
    cluster.endpoint(members, members.ready.find(&address(index)).unwrap(), env)
}

#[test]
fn an_endpoint_costs_little_until_it_is_used() {
    const COUNT: usize = 10_000;
    let env = env();
    let mut held = None;
    // Policy and members together.
    let built = measure(|| held = Some(cluster(plain(), endpoints(0..COUNT), &env)));
    let cluster = held.unwrap();
    let unused = built.bytes_current / COUNT as i64;
    assert!((64..=128).contains(&unused), "{unused} bytes for each unused endpoint");
    let members = cluster.members();
    let used = measure(|| (0..COUNT).for_each(|index| drop(cluster.endpoint(&members, index, &env))));
    let used = unused + used.bytes_current / COUNT as i64;
    assert!((129..=512).contains(&used), "{used} bytes for each used endpoint");
}

#[test]
fn what_never_had_a_connection_takes_nothing_to_be_closed() {
    let env = env();
    let cluster = cluster(plain(), endpoints(0..2), &env);
    let members = cluster.members();
    let [one, other] = [0, 1].map(|index| at(&cluster, &members, index, &env));
    // What the thread keeps of its own is there after the first.
    one.pool().close();
    let closed = measure(|| other.pool().close());
    assert_eq!(closed.count_total, 0);
    assert!(other.pool().is_closed());
}

/// Real threads: one that is refused at its endpoint again and again, and one whose endpoint has room.
#[test]
fn who_is_refused_at_one_endpoint_takes_no_place_from_another() {
    let env = env();
    let cluster = cluster(plain(), endpoints(0..2), &env);
    let members = cluster.members();
    let [full, free] = [0, 1].map(|index| at(&cluster, &members, index, &env));
    let room = Room { of_cluster: Some(2), of_endpoint: Some(1), ..Room::ANY };
    let _held = full.pool().room(room).ok().unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let refused = full.pool().room(room).err().unwrap();
                assert!(
                    [(PER_HOST, 1), ("max_connections", 2)].contains(&(refused.limit, refused.allowed)),
                    "{refused:?}"
                );
            }
        });
        let refused = (0..200_000).filter(|_| free.pool().room(room).is_err()).count();
        over.store(true, Ordering::Relaxed);
        assert_eq!(refused, 0);
    });
}

#[test]
fn an_update_keeps_who_stays_and_closes_who_goes() {
    let env = env();
    let cluster = cluster(plain(), endpoints(0..5), &env);
    let members = cluster.members();
    let (stays, goes) = (at(&cluster, &members, 1, &env), at(&cluster, &members, 4, &env));
    let _request = stays.begin(Instant::now(), Duration::ZERO).unwrap();
    cluster.update(&endpoints(1..4), &env);
    let members = cluster.members();
    let now = at(&cluster, &members, 1, &env);
    assert!(Arc::ptr_eq(&now, &stays));
    let in_flight = members.ready.candidates()[members.ready.find(&address(1)).unwrap()].in_flight();
    assert_eq!((in_flight, members.in_use().count()), (1, 1));
    assert_eq!((stays.pool().is_closed(), goes.pool().is_closed()), (false, true));
}

#[test]
fn an_update_of_one_among_ten_thousand_keeps_the_live_state_of_all_others() {
    const COUNT: usize = 10_000;
    let env = env();
    let cluster = cluster(plain(), endpoints(0..COUNT), &env);
    let before = cluster.members();
    let all: Vec<_> = (0..COUNT).map(|index| at(&cluster, &before, index, &env)).collect();
    cluster.update(&endpoints(1..COUNT + 1), &env);
    let members = cluster.members();
    assert!((1..COUNT).all(|index| Arc::ptr_eq(&at(&cluster, &members, index, &env), &all[index])));
    let closed: Vec<usize> = (0..COUNT).filter(|index| all[*index].pool().is_closed()).collect();
    assert_eq!((closed, members.in_use().count()), (vec![0], COUNT - 1));
}

#[test]
fn the_same_address_with_other_facts_is_another_endpoint() {
    let env = env();
    let cluster = cluster(plain(), endpoints(0..2), &env);
    let metadata = Arc::new(EndpointMetadata { mesh_tls: true, ..Default::default() });
    let now = policy::Endpoint { metadata, ..policy::Endpoint::new(address(0)) };
    let moved = policy::Endpoint { additional_addresses: [address(7)].into(), ..now.clone() };
    let mut before = at(&cluster, &cluster.members(), 0, &env);
    for facts in [now, moved] {
        let mut changed = Endpoints::clone(&endpoints(0..2));
        changed.localities[0].endpoints[0] = facts;
        cluster.update(&Arc::new(changed), &env);
        let after = at(&cluster, &cluster.members(), 0, &env);
        assert!(!Arc::ptr_eq(&before, &after) && before.pool().is_closed() && !after.pool().is_closed());
        before = after;
    }
}

#[test]
fn a_request_that_began_before_an_update_makes_no_second_endpoint() {
    let env = env();
    let cluster = cluster(plain(), endpoints(0..3), &env);
    let before = cluster.members();
    cluster.update(&endpoints(1..4), &env);
    let (late, gone) = (at(&cluster, &before, 1, &env), at(&cluster, &before, 0, &env));
    assert!(Arc::ptr_eq(&late, &at(&cluster, &cluster.members(), 1, &env)));
    assert!(Arc::ptr_eq(&late, &at(&cluster, &before, 1, &env)));
    let place = |members: &Members| members.ready.find(&address(1)).unwrap();
    let _request = late.begin(Instant::now(), Duration::ZERO).unwrap();
    for members in [before.clone(), cluster.members()] {
        assert_eq!(members.ready.candidates()[place(&members)].in_flight(), 1, "one load for both sets");
    }
    assert!(gone.pool().is_closed(), "no connection to it outlives its request");
}

/// Real threads: loom does not see the atomics of `arc_swap` (`mesh-core/tests/interleavings.rs`).
#[test]
fn who_picks_while_sets_are_swapped_has_what_its_own_set_says() {
    let env = env();
    let cluster = cluster(plain(), endpoints(0..8), &env);
    let picks = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    let act = || {
        while !over.load(Ordering::Relaxed) {
            let members = cluster.members();
            let (index, _) =
                members.ready.pick(&Pick::default(), &mut |below| env.draw(below)).expect("there are eight");
            let endpoint = cluster.endpoint(&members, index, &env);
            assert_eq!(*endpoint.address(), members.ready.candidates().policy(index).1.address);
            let load = members.ready.candidates()[index].load();
            assert!(load.is_some_and(|load| Arc::ptr_eq(load, endpoint.load())), "one load for all sets");
            drop(endpoint.begin(Instant::now(), Duration::ZERO));
            picks.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(act)));
        let mut first = 0;
        while first < 500 || picks.load(Ordering::Relaxed) < 5000 {
            first += 1;
            cluster.update(&endpoints(first % 16..first % 16 + 8), &env);
        }
        over.store(true, Ordering::Relaxed);
    });
    let members = cluster.members();
    assert!(members.ready.candidates().iter().all(|candidate| candidate.in_flight() == 0));
}

#[test]
fn what_spills_over_goes_on_doing_so_when_endpoints_change() {
    let env = env();
    let of = |indices: std::ops::Range<usize>| {
        let mut all = Endpoints::clone(&endpoints(indices));
        let next = LocalityEndpoints { priority: 1, ..endpoints(100..101).localities[0].clone() };
        all.localities.push(next);
        Arc::new(all)
    };
    let locality = LocalityBalancing { spill: Some(LoadSpill { low: 0, high: 1 }), ..LocalityBalancing::default() };
    let cluster = cluster(policy::Cluster { locality, ..plain() }, of(0..2), &env);
    let picks = || {
        let members = cluster.members();
        let picked = members.ready.pick(&Pick::default(), &mut |below| env.draw(below)).expect("there are three").0;
        (members.ready.candidates().policy(picked).0.priority, members)
    };
    // Both of the first have a request: in the end all others go on.
    let (_, members) = picks();
    let busy: Vec<_> = (0..2).map(|index| at(&cluster, &members, index, &env)).collect();
    let _requests: Vec<_> =
        busy.iter().map(|endpoint| endpoint.begin(Instant::now(), Duration::ZERO).unwrap()).collect();
    let at_first = (0..5).filter(|_| picks().0 == 1).count();
    assert!(at_first <= 3, "control: at first hardly any does: {at_first} of 5");
    (0..400).for_each(|_| drop(picks()));
    cluster.update(&of(0..3), &env);
    let on = (0..20).filter(|_| picks().0 == 1).count();
    assert!(on >= 15, "{on} of 20");
}

#[tokio::test(start_paused = true)]
async fn a_new_endpoint_begins_a_slow_start_of_its_own_and_the_first_ones_do_not() {
    let slow_start =
        SlowStart { window: Duration::from_secs(100), aggression: 1_000_000, min_share: PerMillion::new(100_000) };
    let env = env();
    let locality = LocalityBalancing { panic_threshold: Some(PerMillion::new(500_000)), ..Default::default() };
    let ramped = policy::Cluster { slow_start: Some(slow_start), locality, balancer: Balancer::RoundRobin, ..plain() };
    let cluster = cluster(ramped, endpoints(0..4), &env);
    let share = |index: usize| {
        let members = cluster.members();
        let pick = mesh_core::balance::Pick { now: env.since_epoch(Instant::now()), ..Default::default() };
        let own = members.ready.find(&address(index)).unwrap();
        let hits = (0..4000).filter(|_| members.ready.pick(&pick, &mut |n| env.draw(n)).unwrap().0 == own).count();
        hits as f64 / 4000.0 * members.ready.len() as f64
    };
    assert!(share(0) > 0.9, "the first ones have their share at once");
    tokio::time::advance(Duration::from_secs(10)).await;
    cluster.update(&endpoints(0..5), &env);
    tokio::time::advance(Duration::from_secs(50)).await;
    let first = share(4);
    assert!((0.4..0.7).contains(&first), "{first}");
    cluster.update(&endpoints(0..6), &env);
    // 0.65 and 0.13 are expected: the bounds are five standard deviations and more away.
    let (first, second) = (share(4), share(5));
    assert!((0.45..0.85).contains(&first) && second < 0.25, "{first} {second}");
    tokio::time::advance(Duration::from_secs(60)).await;
    let (first, second) = (share(4), share(5));
    assert!(first > 0.9 && (0.4..0.8).contains(&second), "{first} {second}");
    // In a panic those that are not healthy are asked as well, and begin nothing anew with each change of the set.
    let ill_but = |healthy: std::ops::Range<usize>| {
        let mut all = Endpoints::clone(&endpoints(0..6));
        for endpoint in all.localities.iter_mut().flat_map(|locality| &mut locality.endpoints) {
            let is_healthy = healthy.clone().any(|index| address(index) == endpoint.address);
            endpoint.health = if is_healthy { Health::Healthy } else { Health::Unhealthy };
        }
        Arc::new(all)
    };
    cluster.update(&ill_but(0..1), &env);
    cluster.update(&ill_but(0..2), &env);
    let (healthy, ill) = (share(0), share(3));
    assert!(healthy > 0.9 && ill > 0.9, "{healthy} {ill}");
    let back = share(1);
    assert!(back < 0.25, "the control: one that is healthy again begins anew: {back}");
}

#[test]
fn a_client_of_a_subset_knows_all_and_uses_its_part() {
    let env = env();
    let part = Balancer::RandomSubsetting { size: 10, of_each: false, child: Box::new(Balancer::RoundRobin) };
    let cluster = cluster(policy::Cluster { balancer: part, ..plain() }, endpoints(0..100), &env);
    let members = cluster.members();
    assert_eq!((members.ready.len(), members.source().iter().count()), (10, 100));
}

/// A client that uses ten of them.
fn ten_of(balancer: Balancer) -> policy::Cluster {
    let part = Balancer::DeterministicSubsetting { size: 10, of_each: false, child: Box::new(balancer) };
    policy::Cluster { balancer: part, ..plain() }
}

/// The same as `at` of one that a session names.
fn named(cluster: &Cluster, members: &Members, index: usize, env: &Env) -> Arc<Endpoint> {
    let (found, _) = members.ready.pinned(&address(index), &[Health::Healthy]).expect("it is in the cluster");
    cluster.endpoint(members, found, env)
}

#[test]
fn what_a_session_made_outside_goes_on_while_its_endpoint_is_in_the_cluster_and_no_longer() {
    let env = env();
    let cluster = cluster(ten_of(Balancer::RoundRobin), endpoints(0..100), &env);
    let before = cluster.members();
    let others: Vec<usize> = (0..100).filter(|index| before.ready.find(&address(*index)).is_none()).collect();
    let (one, other) = (others[0], others[1]);
    let made = named(&cluster, &before, one, &env);
    assert!(Arc::ptr_eq(&made, &named(&cluster, &before, one, &env)));
    assert_eq!((before.in_use().count(), before.inside().count()), (1, 0));
    cluster.refresh(&env);
    assert!(Arc::ptr_eq(&made, &named(&cluster, &cluster.members(), one, &env)), "health has changed");
    cluster.update(&endpoints((0..100).filter(|index| *index != other)), &env);
    assert!(Arc::ptr_eq(&made, &named(&cluster, &cluster.members(), one, &env)), "others have changed");
    // A request that began before.
    let last = others[2];
    let late = named(&cluster, &before, last, &env);
    assert!(Arc::ptr_eq(&late, &named(&cluster, &cluster.members(), last, &env)));
    // It is in the subset now, and then again it is not: what is not wanted for sessions goes.
    cluster.update(&endpoints([one, last].into_iter()), &env);
    let members = cluster.members();
    assert!(members.ready.outside().is_none());
    assert!(
        [one, last]
            .iter()
            .zip([&made, &late])
            .all(|(at_, made)| Arc::ptr_eq(made, &at(&cluster, &members, *at_, &env)))
    );
    assert!(!made.pool().is_closed() && !late.pool().is_closed());
    cluster.update(&endpoints(0..100), &env);
    assert!(made.pool().is_closed() && late.pool().is_closed() && cluster.members().in_use().next().is_none());
    // The endpoint goes.
    let made = named(&cluster, &cluster.members(), one, &env);
    assert!(!made.pool().is_closed(), "control");
    cluster.update(&endpoints((0..100).filter(|index| *index != one)), &env);
    assert!(made.pool().is_closed() && cluster.members().in_use().next().is_none());
    let gone = Arc::downgrade(&made);
    drop((made, before));
    cluster.rests.lock().clear();
    assert!(gone.upgrade().is_none(), "nothing holds it");
}

#[test]
fn a_request_of_no_session_leaves_nothing_at_an_endpoint_that_is_outside_by_now() {
    let env = env();
    let cluster = cluster(ten_of(Balancer::RoundRobin), endpoints(0..10), &env);
    let before = cluster.members();
    cluster.update(&endpoints(0..100), &env);
    let members = cluster.members();
    let index = (0..10).find(|index| members.ready.find(&address(*index)).is_none()).expect("most are outside");
    assert!(at(&cluster, &before, index, &env).pool().is_closed());
    assert!(members.in_use().next().is_none());
}

#[test]
fn endpoints_outside_cost_what_policy_has_of_them_until_a_session_names_one() {
    const COUNT: usize = 10_000;
    let env = env();
    let few = endpoints(0..10);
    let all = endpoints(0..COUNT);
    let held = |endpoints: &Arc<Endpoints>| {
        let mut held = None;
        let built = measure(|| held = Some(cluster(ten_of(Balancer::RoundRobin), endpoints.clone(), &env)));
        (built.bytes_current, held.unwrap())
    };
    let ((plain, _), (bytes, cluster)) = (held(&few), held(&all));
    // Parts are between half and twice as large as asked for.
    assert!(bytes < plain + 4096, "{bytes} beside {plain}");
    let members = cluster.members();
    let mut draw = |below| env.draw(below);
    let index = members.ready.pick(&Pick::default(), &mut draw).unwrap().0;
    cluster.endpoint(&members, index, &env);
    assert!(members.ready.outside().is_some_and(|outside| outside.kept().next().is_none()));
    let others = (0..COUNT).find(|index| members.ready.find(&address(*index)).is_none()).unwrap();
    // Nor who only asks.
    assert!(members.ready.would_pin(&address(others), &[Health::Healthy]).is_some());
    assert!(members.ready.outside().is_some_and(|outside| outside.kept().next().is_none()));
    let made = measure(|| drop(named(&cluster, &members, others, &env)));
    assert!(made.bytes_current < 32 * COUNT as i64, "{}", made.bytes_current);
    let next = (0..COUNT).rfind(|index| members.ready.find(&address(*index)).is_none()).unwrap();
    let made = measure(|| drop(named(&cluster, &members, next, &env)));
    assert!(made.bytes_current < 1024, "{}", made.bytes_current);
}

#[test]
fn a_part_by_metadata_and_the_whole_have_one_endpoint_outside() {
    let env = env();
    let policy =
        policy::Cluster { balancer: ten_of(Balancer::RoundRobin).balancer, ..in_subsets(Balancer::RoundRobin) };
    let cluster = cluster(policy, staged(100), &env);
    let part = Backend::whole(cluster.clone()).part(&stage("even"), &env);
    let (whole, own) = (cluster.members(), part.members());
    let outside =
        |even: bool| (0..100).find(|i| (i % 2 == 0) == even && whole.ready.find(&address(*i)).is_none()).unwrap();
    let (even, odd) = (outside(true), outside(false));
    let made = named(&cluster, &own, even, &env);
    assert!(Arc::ptr_eq(&made, &named(&cluster, &whole, even, &env)));
    assert!(own.ready.pinned(&address(odd), &[Health::Healthy]).is_none(), "the route does not want it");
    assert!(whole.ready.pinned(&address(odd), &[Health::Healthy]).is_some(), "control");
    cluster.update(&staged(101), &env);
    assert!(Arc::ptr_eq(&made, &named(&cluster, &part.members(), even, &env)));
}

#[tokio::test]
async fn an_answer_that_is_listened_to_holds_no_set_of_endpoints() {
    let env = env();
    let prequal = Balancer::Prequal(policy::Prequal::default());
    for balancer in [Balancer::WeightedRoundRobin(policy::WeightedRoundRobin::default()), prequal] {
        let cluster = cluster(policy::Cluster { balancer, ..plain() }, endpoints(0..5), &env);
        let (members, set) = (cluster.members(), Arc::downgrade(&cluster.members()));
        let ear = cluster.listen(&members, 0, &env).expect("the balancer goes by it");
        drop(members);
        assert!(set.strong_count() > 0, "control: it is in force");
        cluster.update(&endpoints(1..4), &env);
        assert_eq!(set.strong_count(), 0);
        drop(ear);
    }
}

fn in_subsets(balancer: Balancer) -> policy::Cluster {
    let selectors = vec![["stage".to_owned()].into()];
    let subsets = policy::Subsets { fallback: policy::SubsetFallback::Any, selectors };
    policy::Cluster { balancer, subsets: Some(subsets), ..plain() }
}

/// Endpoints of which the even ones are on the stage "even".
fn staged(count: usize) -> Arc<Endpoints> {
    let mut all = Endpoints::clone(&endpoints(0..count));
    let metadata = EndpointMetadata { lb: stage("even"), ..Default::default() };
    let metadata = Arc::new(metadata);
    for endpoint in all.localities[0].endpoints.iter_mut().step_by(2) {
        endpoint.metadata = metadata.clone();
    }
    Arc::new(all)
}

fn stage(name: &str) -> Labels {
    [("stage".to_owned(), name.to_owned())].into()
}

#[test]
fn what_an_endpoint_says_of_its_load_is_heard_in_each_part_that_it_is_in() {
    let env = env();
    let cluster = cluster(in_subsets(Balancer::Prequal(Default::default())), staged(8), &env);
    let whole = Backend::whole(cluster.clone());
    // A route that wants nothing has all, and that set hears it once.
    let (part, all) = (whole.part(&stage("even"), &env), whole.part(&Labels::new(), &env));
    assert_eq!((part.members().ready.known(), all.members().ready.known()), (4, 8));
    let now = env.since_epoch(Instant::now());
    // Indices of those whose answers a picker goes by.
    let heard = |backend: &Backend| {
        let members = backend.members();
        let probed = |index: &usize| {
            let own = members.ready.find(&address(*index));
            let score = own.and_then(|own| members.ready.rating(own, now)?.score);
            matches!(score, Some(Score::Probed { .. }))
        };
        (0..8).filter(probed).collect::<Vec<_>>()
    };
    for index in [0, 2, 3, 5] {
        at(&cluster, &cluster.members(), index, &env).load().report_load(1, None, 0, now);
    }
    assert_eq!(heard(&part), [0; 0], "control: pickers are told");
    for index in [0, 2, 3, 5] {
        cluster.reported(&address(index), now);
    }
    assert_eq!([heard(&whole), heard(&all), heard(&part)], [vec![0, 2, 3, 5], vec![0, 2, 3, 5], vec![0, 2]]);
}

#[test]
fn no_request_waits_for_the_sets_of_parts() {
    // Whether requests to new endpoints have to wait while a set is built, by the number of its endpoints.
    let seen = Arc::new(Mutex::new(Vec::new()));
    let building = Arc::new(OnceLock::<Weak<Cluster>>::new());
    let (notes, of) = (seen.clone(), building.clone());
    let look = move |_: &policy::Cluster, candidates: &Candidates, _: &mut Draw<'_>| {
        let cluster = of.get().and_then(Weak::upgrade);
        cluster.iter().for_each(|cluster| notes.lock().push((candidates.len(), cluster.changing.is_locked())));
        None
    };
    let env = ClientBuilder::new(FixedSource::new()).number(0).picker(look).env();
    let cluster = cluster(in_subsets(Balancer::RoundRobin), staged(8), &env);
    building.set(Arc::downgrade(&cluster)).unwrap();
    let part = Backend::whole(cluster.clone()).part(&stage("even"), &env);
    cluster.update(&staged(10), &env);
    cluster.refresh(&env);
    assert_eq!(*seen.lock(), [(4, false), (10, true), (5, false), (10, true), (5, false)]);
    // An endpoint that a request makes while it has an older part is the one that later ones find.
    let before = part.members();
    cluster.update(&staged(12), &env);
    let late = at(&cluster, &before, 2, &env);
    assert!(Arc::ptr_eq(&late, &at(&cluster, &part.members(), 2, &env)));
    assert!(Arc::ptr_eq(&late, &at(&cluster, &cluster.members(), 2, &env)));
}

/// Real threads: two requests at once find that what looks after a destination has to be begun anew.
#[test]
fn who_begins_anew_at_once_with_another_breaks_no_look_off() {
    let resolver = FakeResolver::new();
    resolver.hang("c");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let env = ClientBuilder::new(FixedSource::new()).resolver(resolver).number(0).env();
    let names = policy::Endpoint::new(Address::Name { host: "c".into(), port: 80 });
    let discovery = Discovery::StrictDns(mesh_testkit::policy::endpoints(&"c".into(), vec![names]).into());
    let cluster = runtime.block_on(async { cluster(policy::Cluster { discovery, ..plain() }, Arc::default(), &env) });
    for _ in 0..2_000 {
        let both = Barrier::new(2);
        let resume = || {
            let _on = runtime.enter();
            both.wait();
            cluster.resume(&env);
        };
        std::thread::scope(|scope| _ = [scope.spawn(resume), scope.spawn(resume)]);
        // Those that were replaced end.
        while runtime.metrics().num_alive_tasks() > 1 {
            runtime.block_on(tokio::task::yield_now());
        }
        assert!(cluster.look.as_ref().unwrap().borrow().is_under_way(), "by the one that is left");
    }
}
