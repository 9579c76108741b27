//! What is shared, what is looked at again, and who is told.

use futures_util::FutureExt;

use mesh_core::id::Locality;

use super::super::fake::Fake;
use super::*;
use crate::model::Model;
use crate::registry::Registration;
use crate::translate::{Dialect, World};

fn scope(namespace: &str) -> NodeScope {
    NodeScope::namespace(namespace)
}

fn name(host: &str) -> String {
    format!("outbound|80||{host}")
}

/// The next revision, which touches these subjects.
fn publish(cache: &Cache, fake: &Fake, subjects: &[&str]) {
    let resources: Arc<dyn Resources> = Arc::new(fake.clone());
    let subjects = subjects.iter().map(|subject| (*subject).to_owned()).collect();
    cache.publish("next".to_owned(), &resources, &Touched::Subjects(subjects));
}

fn due(seat: &Seat) -> Vec<String> {
    seat.take_due().iter().flatten().map(ToString::to_string).collect()
}

#[test]
fn nodes_that_see_the_same_share_its_bytes() {
    let cache = Fake::default().with(Kind::Cluster, "a", 1).cache();
    let mut seats = ["default", "default", "other"].map(|namespace| cache.seat(scope(namespace), &Arc::default()));
    let found = seats.each_mut().map(|seat| {
        let name = seat.subscribe(Kind::Cluster, "a");
        seat.resource(Kind::Cluster, &name).unwrap()
    });
    assert!(Arc::ptr_eq(&found[0], &found[1]) && Arc::ptr_eq(&found[0], &found[2]));
    assert_eq!(cache.evaluated(), 2, "once for each scope");
    assert_eq!(cache.size(), (2, found[0].any.len()));
}

#[test]
fn a_revision_looks_at_what_it_touches_and_the_rest_keeps_its_bytes() {
    let hosts: Vec<String> = (0..1_000).map(|n| format!("s{n}")).collect();
    let fake = hosts.iter().fold(Fake::default(), |fake, host| fake.with(Kind::Endpoints, &name(host), 1));
    let cache = fake.cache();
    let mut seat = cache.seat(scope("default"), &Arc::default());
    let names: Vec<_> = hosts.iter().map(|host| seat.subscribe(Kind::Endpoints, &name(host))).collect();
    let before: Vec<_> = names.iter().map(|name| seat.resource(Kind::Endpoints, name).unwrap()).collect();
    let evaluated = cache.evaluated();

    let fake = fake.with(Kind::Endpoints, &name("s7"), 2);
    publish(&cache, &fake, &["s7", "s8"]);
    assert_eq!(cache.evaluated() - evaluated, 2);
    assert_eq!(due(&seat), [name("s7")], "the other one is equal");
    for (name, before) in names.iter().zip(&before) {
        let same = Arc::ptr_eq(before, &seat.resource(Kind::Endpoints, name).unwrap());
        assert_eq!(same, !name.ends_with("s7"), "{name}");
    }
    // The control: a revision of which nothing is known looks at everything, and finds nothing.
    fake.publish(&cache, "4");
    assert_eq!(cache.evaluated() - evaluated, 1_002);
    assert_eq!(due(&seat), [""; 0]);
    publish(&cache, &fake, &[]);
    assert_eq!(cache.evaluated() - evaluated, 1_002);
}

#[test]
fn those_alone_are_woken_who_subscribe_to_what_changed() {
    let fake = Fake::default().with(Kind::Endpoints, &name("a"), 1).with(Kind::Endpoints, &name("b"), 1);
    let cache = fake.cache();
    let (mut one, mut other) =
        (cache.seat(scope("default"), &Arc::default()), cache.seat(scope("default"), &Arc::default()));
    one.subscribe(Kind::Endpoints, &name("a"));
    other.subscribe(Kind::Endpoints, &name("b"));
    publish(&cache, &fake.with(Kind::Endpoints, &name("a"), 2), &["a"]);
    assert!(one.mailbox().woken().now_or_never().is_some());
    assert!(other.mailbox().woken().now_or_never().is_none());
    assert_eq!((due(&one), due(&other)), (vec![name("a")], vec![]));
}

#[test]
fn what_is_due_many_times_is_there_once() {
    let fake = Fake::default().with(Kind::Endpoints, &name("a"), 1);
    let cache = fake.cache();
    let mut seat = cache.seat(scope("default"), &Arc::default());
    seat.subscribe(Kind::Endpoints, &name("a"));
    for edition in 2..100 {
        publish(&cache, &fake.clone().with(Kind::Endpoints, &name("a"), edition), &["a"]);
    }
    assert_eq!(due(&seat), [name("a")]);
    assert_eq!(cache.contents.lock().by_version.values().filter(|e| e.strong_count() > 0).count(), 1);
}

#[test]
fn a_stream_that_ends_leaves_nothing_behind() {
    let cache = Fake::default().with(Kind::Cluster, "a", 1).cache();
    let (mut one, mut other) =
        (cache.seat(scope("default"), &Arc::default()), cache.seat(scope("default"), &Arc::default()));
    for seat in [&mut one, &mut other] {
        seat.subscribe(Kind::Cluster, "a");
        seat.subscribe(Kind::Cluster, "missing");
        seat.cover(Kind::Cluster);
    }
    assert_eq!(cache.size().0, 2);
    drop(one);
    assert_eq!(cache.size().0, 2, "the other one is there");
    drop(other);
    let inner = cache.inner.lock();
    assert!(inner.entries.is_empty() && inner.subjects.is_empty() && inner.wildcards.is_empty());
    assert!(inner.scopes.is_empty());
}

#[test]
fn many_streams_of_one_resource_come_and_go_without_order() {
    let cache = Fake::default().with(Kind::Cluster, "a", 1).cache();
    let mut seats: Vec<_> = (0..100).map(|_| cache.seat(scope("default"), &Arc::default())).collect();
    for at in [50, 3, 99, 0, 77] {
        seats[at].subscribe(Kind::Cluster, "a");
        seats[at].subscribe(Kind::Cluster, "a");
    }
    Fake::default().with(Kind::Cluster, "a", 2).publish(&cache, "2");
    let told: Vec<_> = (0..100).filter(|at| !due(&seats[*at]).is_empty()).collect();
    assert_eq!(told, [0, 3, 50, 77, 99]);
    seats.remove(50);
    Fake::default().with(Kind::Cluster, "a", 3).publish(&cache, "3");
    assert_eq!(seats.iter().filter(|seat| !due(seat).is_empty()).count(), 4);
}

#[test]
fn a_herd_that_comes_back_looks_at_each_resource_once() {
    let hosts: Vec<String> = (0..20).map(|n| name(&format!("s{n}"))).collect();
    let fake = hosts.iter().fold(Fake::default(), |fake, host| fake.with(Kind::Endpoints, host, 1));
    let cache = fake.cache();
    let mut herd: Vec<_> = (0..2_000).map(|_| cache.seat(scope("default"), &Arc::default())).collect();
    for seat in &mut herd {
        for host in &hosts {
            let name = seat.subscribe(Kind::Endpoints, host);
            assert!(seat.resource(Kind::Endpoints, &name).is_some());
        }
    }
    assert_eq!((cache.evaluated(), cache.size().0), (20, 20));
    // The control: another view of the mesh is looked at for itself, and shares the bytes.
    let bytes = cache.size().1;
    cache.seat(scope("other"), &Arc::default()).subscribe(Kind::Endpoints, &hosts[0]);
    assert_eq!((cache.evaluated(), cache.size().1), (21, bytes));
}

#[test]
fn who_comes_while_a_revision_is_made_has_the_one_before_until_all_of_it_is_there() {
    let one = ["r", "gone", "same"].into_iter().fold(Fake::default(), |fake, name| fake.with(Kind::Routes, name, 1));
    let one = one.with(Kind::Cluster, "a", 1).with(Kind::Cluster, "old", 1);
    let two = one.clone().with(Kind::Cluster, "c", 1).without(Kind::Cluster, "old");
    let two = two.with(Kind::Routes, "r", 2).with(Kind::Routes, "new", 1).without(Kind::Routes, "gone");
    let cache = one.cache();
    let resources: Arc<dyn Resources> = Arc::new(two.clone());
    let (stale, wildcards) = cache.begin("2".to_owned(), &resources, &Touched::All);
    // A scope that nobody has had, of which nothing is stale.
    let mut seat = cache.seat(scope("default"), &Arc::default());
    let covered = seat.cover(Kind::Cluster);
    assert_eq!(covered.iter().map(|name| &**name).collect::<Vec<_>>(), ["a", "old"]);
    let names = ["gone", "new", "r", "same"].map(|name| seat.subscribe(Kind::Routes, name));
    let has = |seat: &Seat, fake: &Fake| {
        let there_is = |name: &str| fake.resource(seat.scope(), Kind::Routes, name);
        let version = |name: &Arc<str>| there_is(name).map(|resource| Version::of(&resource, seat.scope()));
        names.iter().all(|name| seat.resource(Kind::Routes, name).map(|found| found.version) == version(name))
    };
    assert!(has(&seat, &one), "routes to a cluster that it lacks");
    assert_eq!((&*seat.version(), due(&seat)), ("1", vec![]));

    cache.finish(&two, stale, wildcards);
    assert!(has(&seat, &two), "as everybody");
    assert_eq!((&*seat.version(), due(&seat)), ("2", ["c", "old", "gone", "new", "r"].map(str::to_owned).to_vec()));
    assert!(
        seat.resource(Kind::Cluster, &"c".into()).is_some() && seat.resource(Kind::Cluster, &"old".into()).is_none()
    );
    // The control: who comes then has the new one at once.
    let mut late = cache.seat(scope("other"), &Arc::default());
    assert_eq!(late.cover(Kind::Cluster).iter().map(|name| &**name).collect::<Vec<_>>(), ["a", "c"]);
    drop((seat, late));
    assert_eq!(cache.size().0, 0, "nothing is left of them");
}

#[test]
fn what_scopes_see_alike_of_a_large_service_is_made_once() {
    for endpoints in [100u8, 10] {
        let world = |zone: &str| -> Arc<dyn Resources> {
            let member = |n: u8| Registration {
                locality: Locality { zone: if n == 0 { zone } else { "a" }.to_owned(), ..Locality::default() },
                address: ([10, 0, 0, n], 80).into(),
                ..crate::registry::tests::registration(1)
            };
            Arc::new(World::build(&Model::default(), &(0..endpoints).map(member).collect::<Vec<_>>()))
        };
        let cache = Cache::new("1".to_owned(), world("a"));
        let asked = world("a").wildcard(&NodeScope { dialect: Dialect::Envoy, ..scope("n0") }, Kind::Cluster).remove(0);
        let mut seats: Vec<_> = (0..10).map(|n| cache.seat(scope(&format!("n{n}")), &Arc::default())).collect();
        let kinds = [Kind::Cluster, Kind::Endpoints];
        let has = |seat: &Seat, kind| seat.resource(kind, &asked.as_str().into()).unwrap();
        seats.iter_mut().for_each(|seat| kinds.iter().for_each(|kind| _ = seat.subscribe(*kind, &asked)));
        // The control: of a few endpoints the view is not worth a look.
        let made = if endpoints == 100 { 2 } else { 20 };
        assert_eq!(cache.evaluated(), made);
        let before = kinds.map(|kind| has(&seats[0], kind));

        let host = asked.rsplit_once('|').unwrap().1.to_owned();
        cache.publish("2".to_owned(), &world("b"), &Touched::Subjects([host].into()));
        assert_eq!(cache.evaluated(), 2 * made);
        assert_eq!(cache.views.len(), if endpoints == 100 { 2 } else { 0 }, "nothing of the revision before");
        for seat in &seats {
            assert_eq!(due(seat), [asked.as_str()], "its endpoints");
            assert!(Arc::ptr_eq(&has(seat, Kind::Cluster), &before[0]));
            assert!(Arc::ptr_eq(&has(seat, Kind::Endpoints), &has(&seats[0], Kind::Endpoints)));
            assert!(has(seat, Kind::Endpoints).version != before[1].version);
        }
    }
}
