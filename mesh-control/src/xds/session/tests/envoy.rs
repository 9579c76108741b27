//! What an Envoy needs beyond the protocol's letter.

use std::collections::BTreeMap;

use mesh_testkit::clock;

use super::*;
use crate::runtime::{Caller, EVERY, Peer};
use crate::test_log::Listening;
use crate::xds::nodes::Nodes;

/// An Envoy as far as it has started: it makes clusters that are new or changed anew, and answers the response that they were
/// in when all have their endpoints (`ClusterManagerImpl::updateClusterCounts`). It asks for those of new ones.
struct Envoy {
    client: Client,
    clusters: BTreeMap<String, bytes::Bytes>,
    warming: BTreeSet<String>,
    owes: bool,
}

impl Envoy {
    /// With all clusters, and the listeners and routes of this name.
    fn new(cache: &Arc<Cache>, form: Form, name: &str, limits: Limits) -> Self {
        let scope = NodeScope { dialect: Dialect::Envoy, ..NodeScope::default() };
        let client = Client::of(scope, cache, form, false, limits);
        let mut envoy = Self { client, clusters: BTreeMap::new(), warming: BTreeSet::new(), owes: false };
        envoy.client.ask(Kind::Cluster, &[]);
        envoy.settle();
        envoy.client.ask(Kind::Listener, &[name]);
        envoy.client.ask(Kind::Routes, &[name]);
        envoy.settle();
        envoy
    }

    /// Reads the next response, and answers it unless it waits for endpoints.
    fn take(&mut self) -> Option<Row> {
        let seen = self.client.next()?;
        self.read(&seen);
        if seen.kind != Kind::Cluster {
            self.client.answer(seen.kind, None);
        }
        self.answer_clusters();
        Some((seen.kind, seen.resources, seen.removed))
    }

    fn read(&mut self, seen: &Seen) {
        match seen.kind {
            Kind::Cluster => {
                self.owes = true;
                for (name, content) in seen.resources.iter().zip(&seen.contents) {
                    if self.clusters.insert(name.clone(), content.clone()).as_ref() != Some(content) {
                        self.warming.insert(name.clone());
                    }
                }
                let whole = self.client.session.form() == Form::State;
                self.clusters
                    .retain(|name, _| !seen.removed.contains(name) && (!whole || seen.resources.contains(name)));
                self.warming.retain(|name| self.clusters.contains_key(name));
                let names: Vec<String> = self.clusters.keys().cloned().collect();
                if names != self.client.names[Kind::Endpoints.index()] {
                    self.client.ask(Kind::Endpoints, &names.iter().map(String::as_str).collect::<Vec<_>>());
                }
            }
            Kind::Endpoints => {
                self.warming.retain(|name| !seen.resources.contains(name) && !seen.removed.contains(name))
            }
            Kind::Listener | Kind::Routes => {}
        }
    }

    fn answer_clusters(&mut self) {
        if self.warming.is_empty() && std::mem::take(&mut self.owes) {
            self.client.answer(Kind::Cluster, None);
        }
    }

    fn settle(&mut self) -> Vec<Row> {
        std::iter::from_fn(|| self.take()).collect()
    }

    /// Whether it has all of its clusters in use.
    fn is_warm(&self) -> bool {
        self.warming.is_empty() && !self.client.status(Kind::Cluster).waiting
    }
}

/// What is sent of clusters that changed, where there are these.
fn clusters(form: Form, all: &[&str], changed: &[&str]) -> Row {
    row(Kind::Cluster, if form == Form::State { all } else { changed }, &[])
}

fn client(cache: &Arc<Cache>, form: Form, dialect: Dialect) -> Client {
    let scope = NodeScope { dialect, ..NodeScope::default() };
    Client::of(scope, cache, form, false, Limits::default())
}

fn fake(edition: u32) -> Fake {
    Fake::default().with(Kind::Cluster, "a", edition).with(Kind::Cluster, "b", 1).with(Kind::Endpoints, "a", 1).with(
        Kind::Endpoints,
        "b",
        1,
    )
}

#[test]
fn the_endpoints_of_a_changed_cluster_are_sent_again() {
    for form in BOTH {
        let cache = fake(1).cache();
        let mut envoy = client(&cache, form, Dialect::Envoy);
        let mut proxyless = client(&cache, form, Dialect::Proxyless);
        for client in [&mut envoy, &mut proxyless] {
            client.ask(Kind::Cluster, &[]);
            client.ask(Kind::Endpoints, &["a", "b"]);
            client.settle();
        }
        fake(2).publish(&cache, "2");
        let whole: &[&str] = if form == Form::State { &["a", "b"] } else { &["a"] };
        let clusters = row(Kind::Cluster, whole, &[]);
        assert_eq!(envoy.settle(), [clusters.clone(), row(Kind::Endpoints, &["a"], &[])], "{form:?}");
        assert_eq!(proxyless.settle(), [clusters], "{form:?}");
        fake(2).publish(&cache, "3");
        assert_eq!(envoy.settle(), [], "once");
    }
}

#[test]
fn the_endpoints_of_a_changed_cluster_of_an_authority_are_sent_again() {
    let cluster = "xdstp://east/envoy.config.cluster.v3.Cluster/a";
    let endpoints = "xdstp://east/envoy.config.endpoint.v3.ClusterLoadAssignment/a";
    let fake = |edition| Fake::default().with(Kind::Cluster, cluster, edition).with(Kind::Endpoints, endpoints, 1);
    for form in BOTH {
        let cache = fake(1).cache();
        let mut envoy = client(&cache, form, Dialect::Envoy);
        envoy.ask(Kind::Cluster, &[cluster]);
        envoy.ask(Kind::Endpoints, &[endpoints]);
        envoy.settle();
        fake(2).publish(&cache, "2");
        let both = [row(Kind::Cluster, &[cluster], &[]), row(Kind::Endpoints, &[endpoints], &[])];
        assert_eq!(envoy.settle(), both, "{form:?}");
    }
}

#[test]
fn endpoints_known_from_an_earlier_stream_are_sent_again() {
    // How many are sent on a second stream to a client that says what it has.
    let sent_again = |dialect| {
        let cache = fake(1).cache();
        let mut first = client(&cache, Form::Delta, dialect);
        first.ask(Kind::Endpoints, &["a"]);
        let Some(Response::Delta(sent)) = first.session.next(first.now) else { panic!("nothing was sent") };
        let mut second = client(&cache, Form::Delta, dialect);
        let request = DeltaDiscoveryRequest {
            type_url: sent.type_url,
            resource_names_subscribe: vec!["a".to_owned()],
            initial_resource_versions: [("a".to_owned(), sent.resources[0].version.clone())].into(),
            ..DeltaDiscoveryRequest::default()
        };
        second.session.delta_request(request).unwrap();
        second.settle().len()
    };
    assert_eq!([sent_again(Dialect::Envoy), sent_again(Dialect::Proxyless)], [1, 0]);
}

#[test]
fn endpoints_of_a_new_cluster_go_out_though_clusters_changed_again() {
    for form in BOTH {
        let one = all_kinds(&["a"], 1);
        let cache = one.cache();
        let mut envoy = Envoy::new(&cache, form, "a", Limits::default());
        let two = one.with(Kind::Cluster, "b", 1).with(Kind::Endpoints, "b", 1);
        two.publish(&cache, "2");
        assert_eq!(envoy.take(), Some(clusters(form, &["a", "b"], &["b"])));
        assert!(!envoy.is_warm(), "the control: it waits for the endpoints");
        two.with(Kind::Cluster, "a", 2).publish(&cache, "3");
        let endpoints = |name| row(Kind::Endpoints, &[name], &[]);
        assert_eq!(envoy.settle(), [endpoints("b"), clusters(form, &["a", "b"], &["a"]), endpoints("a")], "{form:?}");
        assert!(envoy.is_warm());
    }
}

#[test]
fn endpoints_of_a_changed_cluster_go_out_though_older_ones_were_not_answered_yet() {
    for form in BOTH {
        let one = all_kinds(&["a"], 1);
        let cache = one.cache();
        let mut envoy = Envoy::new(&cache, form, "a", Limits::default());
        let two = one.with(Kind::Endpoints, "a", 2);
        two.publish(&cache, "2");
        assert_eq!(envoy.client.next().unwrap().kind, Kind::Endpoints);
        let three = two.with(Kind::Cluster, "a", 3);
        three.publish(&cache, "3");
        assert_eq!(envoy.take(), Some(clusters(form, &["a"], &["a"])));
        three.with(Kind::Cluster, "a", 4).publish(&cache, "4");
        assert_eq!(envoy.take(), None);
        envoy.client.answer(Kind::Endpoints, None);
        let both = [clusters(form, &["a"], &["a"]), row(Kind::Endpoints, &["a"], &[])];
        assert_eq!(envoy.settle(), [&both[1..], &both[..]].concat(), "{form:?}");
        assert!(envoy.is_warm());
    }
}

#[test]
fn the_endpoints_of_clusters_that_come_in_parts_go_out_between_them() {
    let names = ["a", "b", "c"];
    let fake = all_kinds(&names, 1);
    let cache = fake.cache();
    let mut envoy = Envoy::new(&cache, Form::Delta, "a", Limits::default());
    names
        .iter()
        .fold(fake.with(Kind::Listener, "a", 2), |all, name| all.with(Kind::Cluster, name, 2))
        .publish(&cache, "2");
    // Clusters come one by one, and of endpoints what there is.
    let sent: Vec<_> = std::iter::from_fn(|| {
        let waiting = envoy.client.status(Kind::Cluster).waiting;
        envoy.client.session.limits.response_bytes = if waiting { 1 << 20 } else { 1 };
        envoy.take()
    })
    .collect();
    assert!(envoy.is_warm(), "{sent:?}");
    let routes = sent.iter().position(|(kind, ..)| *kind == Kind::Listener).unwrap();
    assert_eq!(sent[..routes].iter().filter(|(kind, ..)| *kind == Kind::Cluster).count(), 3, "{sent:?}");
    for name in names {
        let with =
            |kind| sent.iter().filter(|(of, names, _)| *of == kind && names.iter().any(|sent| sent == name)).count();
        assert_eq!((with(Kind::Cluster), with(Kind::Endpoints)), (1, 1), "once for each cluster: {sent:?}");
    }
}

#[test]
fn listeners_and_routes_wait_until_the_clusters_are_in_use() {
    for form in BOTH {
        let one = all_kinds(&["a"], 1);
        let cache = one.cache();
        let mut envoy = Envoy::new(&cache, form, "a", Limits::default());
        let mut proxyless = client(&cache, form, Dialect::Proxyless);
        Kind::ALL.into_iter().for_each(|kind| proxyless.ask(kind, &["a", "b"]));
        proxyless.settle();
        let two = one.with(Kind::Cluster, "b", 1).with(Kind::Endpoints, "b", 1);
        let two = two.with(Kind::Listener, "a", 2).with(Kind::Routes, "a", 2);
        two.publish(&cache, "2");
        envoy.take();
        // The endpoints are there, and the Envoy is not done with them yet.
        let endpoints = envoy.client.next().unwrap();
        assert_eq!((endpoints.kind, envoy.take()), (Kind::Endpoints, None), "{form:?}");
        envoy.read(&endpoints);
        envoy.client.answer(Kind::Endpoints, None);
        assert_eq!(envoy.take(), None, "{form:?}");
        envoy.answer_clusters();
        assert_eq!(envoy.settle(), [Kind::Listener, Kind::Routes].map(|kind| row(kind, &["a"], &[])), "{form:?}");
        // The control: who waits by itself is sent everything at once.
        let kinds: Vec<Kind> = std::iter::from_fn(|| proxyless.next()).map(|seen| seen.kind).collect();
        assert_eq!(kinds, Kind::ALL, "{form:?}");
    }
}

#[test]
fn an_envoy_that_does_not_take_its_clusters_into_use_holds_up_nothing_for_long() {
    for form in BOTH {
        let one = all_kinds(&["a"], 1);
        let cache = one.cache();
        let mut envoy = Envoy::new(&cache, form, "a", Limits::default());
        let started = envoy.client.now;
        assert_eq!(envoy.client.session.late_at(started), None);
        // Of `b` no endpoints come: of a cluster with a certificate that it waits for, say.
        let two = one.with(Kind::Cluster, "b", 1).with(Kind::Routes, "a", 2);
        two.publish(&cache, "2");
        envoy.take();
        if let Some(seen) = envoy.client.next() {
            envoy.client.answer(seen.kind, None);
        }
        assert_eq!(envoy.client.session.late_at(started), Some(started + PATIENCE), "{form:?}");
        envoy.client.now += PATIENCE - Duration::from_millis(1);
        assert_eq!(envoy.take(), None, "{form:?}");
        envoy.client.now += Duration::from_millis(1);
        assert_eq!(envoy.take(), Some(row(Kind::Routes, &["a"], &[])), "{form:?}");
        assert_eq!(envoy.client.session.late_at(envoy.client.now), None);
        // From then on it gets everything as it comes, clusters that mend it among them.
        let three = two.with(Kind::Cluster, "b", 3).with(Kind::Routes, "a", 3);
        three.clone().with(Kind::Endpoints, "b", 3).publish(&cache, "3");
        let seen = std::iter::from_fn(|| envoy.client.next()).map(|seen| seen.kind).collect::<Vec<_>>();
        assert_eq!(seen, [Kind::Cluster, Kind::Endpoints, Kind::Routes], "{form:?}");
        // It has recovered, and is waited for again.
        for kind in [Kind::Endpoints, Kind::Routes, Kind::Cluster] {
            envoy.client.answer(kind, None);
        }
        assert_eq!(envoy.client.next(), None);
        three.with(Kind::Cluster, "a", 4).with(Kind::Routes, "a", 4).publish(&cache, "4");
        assert_eq!(envoy.client.next().unwrap().kind, Kind::Cluster);
        assert_eq!(envoy.client.next().unwrap().kind, Kind::Endpoints);
        assert_eq!(envoy.client.next(), None, "{form:?}");
    }
}

/// As `/sync` tells it.
#[test]
fn who_asks_is_told_of_an_envoy_that_is_late_and_of_no_other_client() {
    for form in BOTH {
        let one = all_kinds(&["a"], 1);
        let cache = one.cache();
        let nodes = Arc::<Nodes>::default();
        let peer = Peer { address: ([127, 0, 0, 1], 1).into(), caller: Caller::Anonymous, joined: false };
        let entry = nodes.enter(&peer, &Limits::default()).unwrap();
        let is_late = |client: &mut Client| {
            let spare = Session::new(cache.seat(NodeScope::default(), &Arc::default()), form, false, Limits::default());
            entry.node.lock().session = Some(std::mem::replace(&mut client.session, spare));
            let [status] = &nodes.list(None, false)[..] else { panic!("one") };
            let late = serde_json::to_value(status).unwrap()["late"].as_bool().unwrap();
            client.session = entry.node.lock().session.take().unwrap();
            late
        };
        let mut envoy = Envoy::new(&cache, form, "a", Limits::default());
        let two = one.clone().with(Kind::Cluster, "b", 1).with(Kind::Routes, "a", 2);
        two.publish(&cache, "2");
        envoy.take();
        assert!(!is_late(&mut envoy.client), "{form:?}: it has time");
        envoy.client.now += PATIENCE;
        while envoy.client.next().is_some() {}
        assert!(is_late(&mut envoy.client), "{form:?}");
        // With its clusters it is not, though nothing waits for it before it has what waited for them.
        two.clone().with(Kind::Routes, "a", 3).publish(&cache, "3");
        assert_eq!(envoy.client.next(), None, "{form:?}: it has routes to answer");
        envoy.client.answer(Kind::Endpoints, None);
        envoy.client.answer(Kind::Cluster, None);
        assert_eq!(envoy.client.next(), None, "{form:?}");
        assert!(envoy.client.session.is_late() && !is_late(&mut envoy.client), "{form:?}");
        envoy.client.answer(Kind::Routes, None);
        envoy.client.settle();
        assert!(!envoy.client.session.is_late(), "{form:?}: it has recovered");

        // The control: a client that came back and does not take its routes for as long, for which its clusters wait no more.
        let mut client = client(&cache, Form::State, Dialect::Proxyless);
        resumed::first_request(&mut client, Kind::Cluster, &["a", "gone"], "run/1");
        resumed::first_request(&mut client, Kind::Routes, &["a"], "1");
        while client.next().is_some() {}
        client.now += PATIENCE;
        let sent: Vec<_> = std::iter::from_fn(|| client.next()).map(|seen| seen.kind).collect();
        assert_eq!(sent, [Kind::Cluster]);
        assert!(client.session.is_late() && !is_late(&mut client));
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_is_told_once_that_an_envoy_is_late() {
    let (log, nodes) = (Listening::begin(), Arc::<Nodes>::default());
    let peer = Peer { address: ([127, 0, 0, 1], 1).into(), caller: Caller::Anonymous, joined: false };
    let entry = nodes.enter(&peer, &Limits::default()).unwrap();
    let one = all_kinds(&["a"], 1);
    let cache = one.cache();
    let mut envoy = Envoy::new(&cache, Form::Delta, "a", Limits::default());
    one.with(Kind::Cluster, "b", 1).with(Kind::Routes, "a", 2).publish(&cache, "2");
    envoy.take();
    let now = envoy.client.now;
    entry.node.lock().session = Some(envoy.client.session);
    let said = |now| {
        while entry.due(&peer, now).0.is_some() {}
        log.lines(&["has not taken its clusters into use"])
    };
    assert_eq!(said(now), 0, "it has time");
    assert_eq!(said(now + PATIENCE), 1, "{}", log.text());
    // However often it is looked at.
    clock::pass(2 * EVERY).await;
    assert_eq!(said(now + 2 * PATIENCE), 1, "{}", log.text());
}

#[test]
fn each_of_the_responses_that_a_late_envoy_has_yet_to_answer_is_answered_by_its_nonce() {
    let one = all_kinds(&["a", "b", "c"], 1);
    let cache = one.cache();
    let mut envoy = Envoy::new(&cache, Form::Delta, "a", Limits::default());
    let two = one.with(Kind::Cluster, "a", 2).with(Kind::Cluster, "b", 2).with(Kind::Routes, "a", 2);
    two.publish(&cache, "2");
    let first = envoy.client.next().unwrap();
    while envoy.client.next().is_some_and(|seen| seen.kind != Kind::Endpoints) {}
    envoy.client.now += PATIENCE;
    two.with(Kind::Cluster, "b", 3).with(Kind::Cluster, "c", 3).publish(&cache, "3");
    let second = std::iter::from_fn(|| envoy.client.next()).find(|seen| seen.kind == Kind::Cluster).unwrap();
    assert_eq!(
        (&first.resources[..], &second.resources[..]),
        (&["a", "b"].map(str::to_owned)[..], &["b", "c"].map(str::to_owned)[..])
    );
    let mut answer = |nonce: &str, error: Option<&str>| {
        envoy.client.nonce[Kind::Cluster.index()] = nonce.to_owned();
        envoy.client.answer(Kind::Cluster, error)
    };
    let nacked = Some("bad".to_owned());
    assert_eq!(answer(&first.nonce, Some("bad")), Outcome { acked: false, nacked });
    let [a, b, c] = ["a", "b", "c"].map(str::to_owned);
    let yet = |client: &Client| client.states(Kind::Cluster);
    assert_eq!(
        yet(&envoy.client),
        [(a.clone(), "refused"), (b.clone(), "sent"), (c.clone(), "sent")],
        "of what came again it says nothing"
    );
    let mut answer = |nonce: &str, error: Option<&str>| {
        envoy.client.nonce[Kind::Cluster.index()] = nonce.to_owned();
        envoy.client.answer(Kind::Cluster, error)
    };
    assert_eq!(answer(&first.nonce, Some("bad")), Outcome::default(), "once");
    assert_eq!(answer(&second.nonce, None), Outcome { acked: true, nacked: None });
    // The control: what came again is what the newer response says of it.
    assert_eq!(yet(&envoy.client), [(a, "refused"), (b, "accepted"), (c, "accepted")]);
}

#[test]
fn an_answer_to_the_newest_response_is_one_to_those_that_were_never_answered() {
    for error in [None, Some("bad")] {
        let one = all_kinds(&["a", "b"], 1);
        let cache = one.cache();
        let mut envoy = Envoy::new(&cache, Form::Delta, "a", Limits::default());
        let two = one.with(Kind::Cluster, "a", 2).with(Kind::Routes, "a", 2);
        two.publish(&cache, "2");
        while envoy.client.next().is_some_and(|seen| seen.kind != Kind::Endpoints) {}
        envoy.client.now += PATIENCE;
        two.with(Kind::Cluster, "b", 3).publish(&cache, "3");
        while envoy.client.next().is_some_and(|seen| seen.kind != Kind::Cluster) {}
        let before = envoy.client.states(Kind::Cluster);
        assert_eq!(before, [("a".to_owned(), "sent"), ("b".to_owned(), "sent")]);
        envoy.client.answer(Kind::Cluster, error);
        let state = if error.is_some() { "refused" } else { "accepted" };
        assert_eq!(envoy.client.states(Kind::Cluster), [("a".to_owned(), state), ("b".to_owned(), state)]);
    }
}

#[test]
fn an_envoy_that_took_its_clusters_into_use_at_the_last_moment_is_not_late_with_the_next_ones() {
    for form in BOTH {
        let one = all_kinds(&["a"], 1);
        let cache = one.cache();
        let mut envoy = Envoy::new(&cache, form, "a", Limits::default());
        let two = one.with(Kind::Cluster, "a", 2).with(Kind::Routes, "a", 2);
        two.publish(&cache, "2");
        assert_eq!(envoy.client.next().unwrap().kind, Kind::Cluster);
        assert_eq!(envoy.client.next().unwrap().kind, Kind::Endpoints);
        envoy.client.now += PATIENCE - Duration::from_secs(1);
        envoy.client.answer(Kind::Endpoints, None);
        envoy.client.answer(Kind::Cluster, None);
        assert_eq!(envoy.client.next().unwrap().kind, Kind::Routes, "{form:?}");
        envoy.client.answer(Kind::Routes, None);
        // Before the stream looks again there is more.
        two.with(Kind::Cluster, "a", 3).with(Kind::Routes, "a", 3).publish(&cache, "3");
        assert_eq!(envoy.client.next().unwrap().kind, Kind::Cluster, "{form:?}");
        assert_eq!(envoy.client.next().unwrap().kind, Kind::Endpoints, "{form:?}");
        envoy.client.now += Duration::from_secs(1);
        assert_eq!((envoy.client.next(), envoy.client.session.is_late()), (None, false), "{form:?}");
        // The control: it has as long as ever.
        envoy.client.now += PATIENCE - Duration::from_secs(1);
        assert_eq!(envoy.client.next().unwrap().kind, Kind::Routes, "{form:?}");
        assert!(envoy.client.session.is_late());
        for kind in [Kind::Endpoints, Kind::Routes, Kind::Cluster] {
            envoy.client.answer(kind, None);
        }
        assert_eq!((envoy.client.next(), envoy.client.session.is_late()), (None, false), "{form:?}");
    }
}

#[test]
fn changes_of_clusters_one_after_the_other_hold_up_routes_no_longer_than_that() {
    for form in BOTH {
        let fake = |edition| all_kinds(&["a"], edition);
        let cache = fake(1).cache();
        let mut envoy = Envoy::new(&cache, form, "a", Limits::default());
        let (mut kinds, mut rounds) = (Vec::new(), 0);
        for edition in 2..100 {
            // Whenever it is done with one change, there is another.
            fake(edition).publish(&cache, &edition.to_string());
            envoy.answer_clusters();
            while let Some(seen) = envoy.client.next() {
                envoy.read(&seen);
                if seen.kind != Kind::Cluster {
                    envoy.client.answer(seen.kind, None);
                }
                kinds.push(seen.kind);
            }
            if kinds.contains(&Kind::Routes) {
                break;
            }
            rounds += 1;
            envoy.client.now += Duration::from_secs(1);
        }
        assert_eq!(rounds, PATIENCE.as_secs(), "{form:?} {kinds:?}");
        assert_eq!(kinds[kinds.len() - 4..], Kind::ALL, "{form:?}");
    }
}

/// An Envoy that was sent the cluster `name`, in its second edition or as a new one, which then vanishes with its endpoints
/// before those were sent, and with the routes to it; so many revisions later it is asked what it needs.
fn without_endpoints(form: Form, name: &str, revisions: usize) -> Envoy {
    let one = all_kinds(&["a", "b"], 1);
    let cache = one.cache();
    let mut envoy = Envoy::new(&cache, form, "a", Limits::default());
    let two = one.with(Kind::Cluster, name, 2).with(Kind::Endpoints, name, 1);
    two.publish(&cache, "2");
    let seen = envoy.client.next().unwrap();
    assert_eq!(seen.kind, Kind::Cluster, "{form:?}");
    envoy.read(&seen);
    let three = two.without(Kind::Cluster, name).without(Kind::Endpoints, name).with(Kind::Routes, "a", 2);
    for revision in 0..revisions {
        three.publish(&cache, &(3 + revision).to_string());
    }
    envoy
}

#[test]
fn endpoints_that_vanish_while_a_cluster_waits_for_them_go_as_they_were_and_in_the_end() {
    for form in BOTH {
        for name in ["a", "c"] {
            let mut envoy = without_endpoints(form, name, 1);
            let told = envoy.settle();
            let kinds: Vec<_> = told.iter().map(|(kind, ..)| *kind).collect();
            assert_eq!(kinds, [Kind::Endpoints, Kind::Routes, Kind::Cluster], "{form:?} {told:?}");
            assert_eq!(told[0], row(Kind::Endpoints, &[name], &[]), "{form:?}: who is routed to it still needs them");
            assert!(envoy.is_warm() && !envoy.clusters.contains_key(name), "{form:?} {:?}", envoy.clusters);
        }
    }
}

#[test]
fn an_envoy_is_told_at_once_of_endpoints_that_a_cluster_waits_for_and_nobody_knows_any_more() {
    for name in ["a", "c"] {
        let mut envoy = without_endpoints(Form::Delta, name, 3);
        let told = envoy.settle();
        assert_eq!(told[0], row(Kind::Endpoints, &[], &[name]), "{told:?}");
        assert!(envoy.is_warm() && !envoy.clusters.contains_key(name), "{told:?}");
        // The control: only in the incremental form the protocol can say that there are no endpoints.
        let mut envoy = without_endpoints(Form::State, name, 3);
        assert_eq!((envoy.settle(), envoy.is_warm()), (vec![], false), "{name}");
        envoy.client.now += PATIENCE;
        envoy.settle();
        assert!(envoy.is_warm() && !envoy.clusters.contains_key(name), "{name} {:?}", envoy.clusters);
    }
}

#[test]
fn endpoints_stay_while_their_vanished_cluster_must_wait() {
    let one = all_kinds(&["a", "b"], 1);
    let cache = one.cache();
    let mut proxyless = client(&cache, Form::Delta, Dialect::Proxyless);
    Kind::ALL.into_iter().for_each(|kind| proxyless.ask(kind, &["a", "b"]));
    proxyless.settle();
    let two = one.with(Kind::Cluster, "a", 2);
    two.publish(&cache, "2");
    assert_eq!(proxyless.next().unwrap().kind, Kind::Cluster);
    two.without(Kind::Cluster, "b").without(Kind::Endpoints, "b").publish(&cache, "3");
    assert_eq!(proxyless.next(), None);
    proxyless.answer(Kind::Cluster, None);
    assert_eq!(proxyless.settle(), [Kind::Cluster, Kind::Endpoints].map(|kind| row(kind, &[], &["b"])));
}
