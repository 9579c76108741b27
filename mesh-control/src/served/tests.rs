//! When revisions come, and what they say they changed.

use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;

use super::*;
use crate::jwks::Known;
use crate::model::KeySource;
use crate::registry::Registration;
use crate::registry::tests::registration;
use crate::registry::{Key, table_of};
use crate::state_dir::StateDir;
use crate::translate::NodeScope;
use crate::xds::{Kind, subject};

/// A served revision that runs, and the time at which each later one came.
async fn watch(cache: &Cache, mut until: impl FnMut(&str) -> bool) {
    while !until(&cache.version()) {
        mesh_testkit::clock::pass(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_change_is_served_at_once_those_that_follow_together_and_none_waits_for_ever() {
    let (publisher, registrations) = Watched::channel(Registrations::default());
    let model = Watched::fixed(Model::default());
    let served =
        Served::new(model, registrations, Watched::fixed(Keys::default()), Options::default(), Held::load(None), "7");
    let cache = served.cache();
    assert_eq!(&*cache.version(), "7/1");
    tokio::select! {
        () = served.run() => unreachable!("it runs for ever"),
        () = async {
            mesh_testkit::clock::pass(QUIET).await;
            let begin = Instant::now();
            publisher.publish(table_of(&[registration(1)]));
            watch(&cache, |version| version == "7/2").await;
            assert!(begin.elapsed() < QUIET / 2, "{:?}", begin.elapsed());
            for port in 2..=4 {
                publisher.publish(table_of(&[registration(port)]));
                mesh_testkit::clock::pass(QUIET / 2).await;
            }
            assert_eq!(&*cache.version(), "7/2", "gathered");
            watch(&cache, |version| version == "7/3").await;
            let busy = Instant::now();
            while &*cache.version() == "7/3" {
                publisher.publish(Registrations::default());
                mesh_testkit::clock::pass(QUIET / 2).await;
            }
            assert!(busy.elapsed() >= PATIENCE && busy.elapsed() < 2 * PATIENCE, "{:?}", busy.elapsed());
        } => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_brings_a_bug_to_light_is_told_of_and_the_next_one_comes() {
    let (publisher, registrations) = Watched::channel(Registrations::default());
    let (model, keys) = (Watched::fixed(Model::default()), Watched::fixed(Keys::default()));
    let served = Served::new(model, registrations, keys, Options::default(), Held::load(None), "7");
    let (cache, findings, panics) = (served.cache(), served.findings(), served.panics.clone());
    let mut seat = cache.seat(NodeScope::namespace("default"), &Arc::default());
    let name = seat.subscribe(Kind::Endpoints, "outbound|9080||reviews.default.svc.cluster.local");
    tokio::select! {
        () = served.run() => unreachable!("it runs for ever"),
        () = async {
            let before = seat.resource(Kind::Endpoints, &name).map(|encoded| encoded.version);
            panics.store(true, Relaxed);
            publisher.publish(table_of(&[registration(1)]));
            while findings.load().is_empty() {
                mesh_testkit::clock::pass(Duration::from_millis(1)).await;
            }
            assert_eq!(findings.load()[0].severity, Severity::Error);
            let broken = seat.resource(Kind::Endpoints, &name).map(|encoded| encoded.version);
            assert!(broken != before && broken.is_some(), "it is out");
            // The control: the next one, without the bug. It is what there was before, and takes back what is out.
            panics.store(false, Relaxed);
            publisher.publish(Registrations::default());
            watch(&cache, |version| version == "7/3").await;
            mesh_testkit::clock::pass(PATIENCE).await;
            assert!(findings.load().is_empty());
            assert_eq!(seat.resource(Kind::Endpoints, &name).map(|encoded| encoded.version), before);
        } => {}
    }
}

#[tokio::test(start_paused = true)]
async fn keys_of_an_issuer_are_served_when_they_come_and_why_they_do_not_is_found() {
    const URL: &str = "https://issuer.test/keys";
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: a}}\nspec: {{jwtRules: [{{issuer: i, jwksUri: '{URL}'}}]}}\n"
    );
    let model = Watched::fixed(Model::from_texts([("a.yaml", &*text)]));
    let (publisher, keys) = Watched::channel(Keys::default());
    let registrations = Watched::fixed(Registrations::default());
    let served = Served::new(model, registrations, keys, Options::default(), Held::load(None), "7");
    let (cache, findings) = (served.cache(), served.findings());
    let mut seat = cache.seat(NodeScope::namespace("default"), &Arc::default());
    let name = seat.subscribe(Kind::Listener, "xds.istio.io/grpc/lds/inbound/10.0.0.1:80");
    let shown = || seat.resource(Kind::Listener, &name).map(|encoded| encoded.version);
    let publish = |failure: Option<&str>| {
        let known = Known {
            document: Some("keys".into()),
            failure: failure.map(str::to_owned),
            max_age: Duration::from_secs(1),
        };
        publisher.publish(Keys::from([(KeySource::Uri(URL.to_owned()), known)]));
    };
    tokio::select! {
        () = served.run() => unreachable!("it runs for ever"),
        () = async {
            let before = shown();
            publish(None);
            watch(&cache, |version| version == "7/2").await;
            let fetched = shown();
            assert!(before.is_some() && fetched.is_some() && before != fetched);
            assert_eq!(findings.load().len(), 0);
            publish(Some("no answer"));
            watch(&cache, |version| version == "7/3").await;
            mesh_testkit::clock::pass(PATIENCE).await;
            assert_eq!(findings.load().len(), 1);
            assert_eq!(shown(), fetched, "the listener is the same");
        } => {}
    }
}

#[test]
fn versions_of_two_runs_that_began_in_the_same_second_are_told_apart() {
    let clock = Clock::new(|| std::time::UNIX_EPOCH + Duration::from_secs(7));
    let begin = || {
        let (model, registrations) = (Watched::fixed(Model::default()), Watched::fixed(Registrations::default()));
        let (keys, options) = (Watched::fixed(Keys::default()), Options::default());
        Served::new(model, registrations, keys, options, Held::load(None), run_name(&clock)).cache()
    };
    let (before, now) = (begin(), begin());
    let seat = now.seat(NodeScope::namespace("default"), &Arc::default());
    assert!(!seat.remembers(&before.version()), "{} {}", before.version(), now.version());
    // The control, and what an operator reads of it: when it began.
    assert!(seat.remembers(&now.version()) && now.version().starts_with("7-"), "{}", now.version());
}

/// How many revisions ten seconds of changes make, one `every` so long, and whether the last change was served.
async fn storm(every: Duration, pace: Option<Pace>) -> (u64, bool) {
    const TIME: Duration = Duration::from_secs(10);
    let (publisher, registrations) = Watched::channel(Registrations::default());
    // The clock has run for a while, as it has in a process.
    mesh_testkit::clock::pass(Duration::from_secs(60)).await;
    let model = Watched::fixed(Model::default());
    let mut served =
        Served::new(model, registrations, Watched::fixed(Keys::default()), Options::default(), Held::load(None), "7");
    served.pace = pace.unwrap_or(served.pace);
    let cache = served.cache();
    let revision = || cache.version().rsplit_once('/').unwrap().1.parse::<u64>().unwrap();
    let mut seat = cache.seat(NodeScope::namespace("default"), &Arc::default());
    let name = seat.subscribe(Kind::Endpoints, "outbound|9080||reviews.default.svc.cluster.local");
    let shown = || seat.resource(Kind::Endpoints, &name).map(|encoded| encoded.version);
    let changes = async {
        let begin = Instant::now();
        for port in (1..3).cycle() {
            if begin.elapsed() >= TIME {
                break;
            }
            publisher.publish(table_of(&[registration(port)]));
            mesh_testkit::clock::pass(every).await;
        }
        let revisions = revision() - 1;
        mesh_testkit::clock::pass(2 * PATIENCE).await;
        let before = shown();
        publisher.publish(table_of(&[registration(9)]));
        mesh_testkit::clock::pass(2 * PATIENCE).await;
        let (last, served) = (revision(), shown() != before && before.is_some());
        mesh_testkit::clock::pass(TIME).await;
        assert_eq!(revision(), last, "without a change there is no revision");
        (revisions, served)
    };
    tokio::select! {
        () = served.run() => unreachable!("it runs for ever"),
        outcome = changes => outcome,
    }
}

#[tokio::test(start_paused = true)]
async fn no_stream_of_changes_makes_more_revisions_than_the_rate_r41() {
    // A thousand a second, a new one as soon as it has been quiet, and now and then.
    for (every, at_least) in [(1, 90), (11, 150), (40, 150), (200, 49)] {
        let (revisions, served) = storm(Duration::from_millis(every), None).await;
        assert!((at_least..=164).contains(&revisions), "{revisions} revisions, a change every {every} ms");
        assert!(served, "the last change, after one every {every} ms");
    }
}

/// Control run: without the rate, changes that come just slower than they are gathered are all revisions.
#[tokio::test(start_paused = true)]
async fn without_the_rate_well_spaced_changes_are_all_revisions_r41() {
    let unbound = Pace::new((1_000, 1_000), Instant::now());
    let (revisions, served) = storm(Duration::from_millis(11), Some(unbound)).await;
    assert!(revisions > 800 && served, "{revisions}");
}

const MANIFESTS: &str = "
apiVersion: v1
kind: Service
metadata: { name: s0, namespace: default }
spec: { selector: { app: x }, ports: [{ name: http, port: 80 }, { name: tcp, port: 81, targetPort: 4001 }] }
---
apiVersion: v1
kind: Service
metadata: { name: s1, namespace: default }
spec: { ports: [{ name: http, port: 80 }] }
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: s0, namespace: default }
spec:
  host: s0
  subsets: [{ name: y, labels: { tier: y } }]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: picked, namespace: default }
spec:
  hosts: [picked.example.com]
  ports: [{ number: 80, name: http, protocol: HTTP }]
  resolution: STATIC
  workloadSelector: { labels: { app: x } }
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: all, namespace: default }
spec:
  hosts: [all.example.com]
  ports: [{ number: 80, name: http, protocol: HTTP }]
  resolution: STATIC
  workloadSelector: { labels: {} }
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: x, namespace: default }
spec:
  selector: { matchLabels: { app: x } }
  mtls: { mode: STRICT }
";

/// Everything that a client could ask for here.
fn names() -> Vec<(Kind, String)> {
    let hosts = ["s0", "s1", "s2", "s3"].map(|name| format!("{name}.default.svc.cluster.local"));
    let hosts: Vec<String> = hosts.into_iter().chain(["picked", "all"].map(|h| format!("{h}.example.com"))).collect();
    let mut names = Vec::new();
    for host in &hosts {
        for port in [80, 81] {
            let plain = format!("outbound|{port}||{host}");
            names.extend([Kind::Cluster, Kind::Endpoints, Kind::Routes].map(|kind| (kind, plain.clone())));
            names.push((Kind::Endpoints, format!("outbound|{port}|y|{host}")));
            names.push((Kind::Listener, format!("{host}:{port}")));
        }
    }
    names.extend(["s0:80", "s2:80", "s3.default:80"].map(|name| (Kind::Listener, name.to_owned())));
    names.extend((4000..4004).map(|p| (Kind::Listener, format!("xds.istio.io/grpc/lds/inbound/127.0.0.1:{p}"))));
    names
}

fn announced(service: usize, port: u16, app: bool, tier: bool, service_port: bool) -> Registration {
    let text = |is: bool| if is { "x" } else { "y" }.to_owned();
    Registration {
        service: format!("s{service}"),
        service_port: if service_port { 80 } else { 81 },
        labels: [("app".to_owned(), text(app)), ("tier".to_owned(), text(tier))].into(),
        mesh_tls: tier,
        ..registration(port)
    }
}

/// A slice of service `s{service}` with one endpoint.
fn slice(service: usize, name: u8, host: u8) -> String {
    format!(
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: slice-{name}, namespace: default, labels: {{ kubernetes.io/service-name: s{service} }} }}
addressType: IPv4
ports: [{{ name: http, port: 4000 }}]
endpoints: [{{ addresses: [10.0.0.{host}] }}]
"
    )
}

/// The model with those slices and no others; everything else is shared.
fn with_slices(model: &Model, slices: &[String]) -> Arc<Model> {
    let text = slices.join("---");
    let made = Model::from_texts([("slices.yaml", &*text)]);
    assert_eq!((made.endpoint_slices.len(), made.findings()), (slices.len(), &[][..]));
    let mut model = model.clone();
    model.endpoint_slices = made.endpoint_slices;
    Arc::new(model)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A world that follows changes is the world built anew, and nothing differs that it did not say.
    #[test]
    fn a_world_that_follows_is_the_world_built_anew(
        steps in proptest::collection::vec(
            (
                proptest::collection::vec(
                    (0usize..4, 4000u16..4004, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()), 0..4),
                proptest::option::of(proptest::collection::btree_map(0u8..3, (0usize..3, 1u8..4), 0..3)),
            ),
            1..8),
    ) {
        let mut model = Arc::new(Model::from_texts([("m.yaml", MANIFESTS)]));
        let mut table = Registrations::default();
        let mut world = World::of(model.clone(), table.clone(), Options::default());
        let scope = NodeScope::namespace("default");
        for (announcements, slices) in steps {
            if let Some(slices) = slices {
                let texts: Vec<_> = slices.iter().map(|(name, (service, host))| slice(*service, *name, *host)).collect();
                model = with_slices(&model, &texts);
            }
            for (service, port, app, tier, service_port, gone) in announcements {
                let registration = announced(service, port, app, tier, service_port);
                let key = Key::of(&registration);
                if gone { table.remove(&key); } else { table.insert(key, Arc::new(registration)); }
            }
            let (next, changed) = world.follow(&model, table.clone()).expect("nothing else changed");
            let anew = World::of(model.clone(), table.clone(), Options::default());
            let touched = changed.map(touched);
            for (kind, name) in names() {
                let now = next.resource(&scope, kind, &name);
                prop_assert_eq!(&now, &anew.resource(&scope, kind, &name), "{}", name);
                if now != world.resource(&scope, kind, &name) {
                    let said = match &touched {
                        None | Some(Touched::All) => true,
                        Some(Touched::Subjects(subjects)) => subjects.contains(&*subject(kind, &name)),
                    };
                    prop_assert!(said, "{} changed without a word: {:?}", name, touched);
                }
            }
            prop_assert_eq!(next.findings(), anew.findings());
            world = next;
        }
    }
}

#[test]
fn one_change_touches_one_service_of_many() {
    let of = |service: usize, zone: &str| Registration {
        service: format!("s{service}"),
        locality: mesh_core::id::Locality { zone: zone.into(), ..Default::default() },
        ..registration(1 + u16::try_from(service).unwrap())
    };
    let mut table = table_of(&(0..10_000).map(|service| of(service, "a")).collect::<Vec<_>>());
    let world = World::of(Arc::default(), table.clone(), Options::default());
    let changed = of(7, "b");
    table.insert(Key::of(&changed), Arc::new(changed));
    let (_, changed) = world.follow(&Arc::default(), table.clone()).unwrap();
    let subjects = ["s7.default.svc.cluster.local".to_owned(), "127.0.0.1:8".to_owned()];
    assert_eq!(touched(changed.unwrap()), Touched::Subjects(subjects.into()));
    // The control: a service that was not there changes what hosts there are.
    let new = of(10_000, "a");
    table.insert(Key::of(&new), Arc::new(new));
    let (_, changed) = world.follow(&Arc::default(), table).unwrap();
    assert!(changed.unwrap().names);
}

#[test]
fn a_slice_touches_its_service_and_another_manifest_everything() {
    let model = Model::from_texts([("m.yaml", MANIFESTS)]);
    let of = |slices: &[String]| with_slices(&model, slices);
    let (old, other) = (slice(0, 0, 1), slice(1, 1, 1));
    let before = of(&[old, other.clone()]);
    let world = World::of(before.clone(), Registrations::default(), Options::default());
    // The other one is a new object as well, of a new reading: only references are compared.
    let (next, changed) = world.follow(&of(&[slice(0, 0, 2), other]), Registrations::default()).unwrap();
    let hosts = ["s0", "s1"].map(|name| format!("{name}.default.svc.cluster.local"));
    assert_eq!(touched(changed.unwrap()), Touched::Subjects(hosts.into()));
    let name = "outbound|80||s0.default.svc.cluster.local";
    let of = |world: &World| world.endpoints(&NodeScope::namespace("default"), name).unwrap().iter().next().cloned();
    assert_ne!(of(&world), of(&next));
    // The control: a service that goes.
    let mut smaller = Model::clone(&before);
    smaller.services.pop_first();
    assert!(world.follow(&Arc::new(smaller), Registrations::default()).is_none());
}

#[test]
fn an_edit_that_leads_nowhere_takes_no_effect_by_a_restart() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{name: http, port: 80}]}\n---\n";
    let rule = |host: &str, timeout: &str| {
        format!(
            "{service}apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a}}\nspec: {{hosts: [a], http: [{{timeout: {timeout}, route: [{{destination: {{host: {host}}}}}]}}]}}\n"
        )
    };
    let timeout = |served: &Served| served.world.model.virtual_services.values().next().unwrap().spec.http[0].timeout;
    let folder = tempfile::tempdir().unwrap();
    let state = || Some(StateDir::open(folder.path()).unwrap());
    let start = |text: &str, state| {
        let (publisher, model) = Watched::channel(Model::from_texts([("a.yaml", text)]));
        let (registrations, options) = (Watched::fixed(Registrations::default()), Options::default());
        (publisher, Served::new(model, registrations, Watched::fixed(Keys::default()), options, Held::load(state), "7"))
    };
    let ended = |served: &mut Served| {
        served.publish();
        served.held.store(&kept(&served.world, &served.model.load()));
    };

    let (publisher, mut served) = start(&rule("a", "1s"), state());
    publisher.publish(Model::from_texts([("a.yaml", rule("gone", "2s").as_str())]));
    ended(&mut served);
    assert_eq!(timeout(&served), Some(Duration::from_secs(1)));
    // Twice: the first restart must not forget what is in force.
    for _ in 0..2 {
        let (_publisher, mut served) = start(&rule("gone", "2s"), state());
        assert_eq!(timeout(&served), Some(Duration::from_secs(1)));
        assert!(served.world.findings().iter().any(|found| found.message.contains("stays in force")));
        ended(&mut served);
    }
    // The control: who keeps nothing takes what there is.
    assert_eq!(timeout(&start(&rule("gone", "2s"), None).1), Some(Duration::from_secs(2)));
    // What is mended takes effect, and is all that counts from then on.
    let (_publisher, mut served) = start(&rule("a", "3s"), state());
    assert_eq!(timeout(&served), Some(Duration::from_secs(3)));
    ended(&mut served);
    assert_eq!(timeout(&start(&rule("gone", "4s"), state()).1), Some(Duration::from_secs(4)));
}
