//! What a client refused, and goes on without.

use super::*;
use crate::runtime::{Caller, Peer};
use crate::xds::nodes::Nodes;

/// As `/sync` tells it.
fn in_sync(cache: &Arc<Cache>, client: &mut Client) -> bool {
    let nodes = Arc::<Nodes>::default();
    let peer = Peer { address: ([127, 0, 0, 1], 1).into(), caller: Caller::Anonymous, joined: false };
    let entry = nodes.enter(&peer, &Limits::default()).unwrap();
    let form = client.session.form();
    let spare = Session::new(cache.seat(NodeScope::default(), &Arc::default()), form, false, Limits::default());
    entry.node.lock().session = Some(std::mem::replace(&mut client.session, spare));
    let [status] = &nodes.list(None, false)[..] else { panic!("one") };
    client.session = entry.node.lock().session.take().unwrap();
    status.in_sync
}

#[test]
fn a_client_that_refused_something_is_not_in_sync_though_it_accepted_what_came_later() {
    for form in BOTH {
        let fake = Fake::default().with(Kind::Routes, "a", 1).with(Kind::Routes, "b", 1);
        let cache = fake.cache();
        let mut client = Client::new(&cache, form);
        client.ask(Kind::Routes, &["a"]);
        client.next();
        client.answer(Kind::Routes, Some("no"));
        client.ask(Kind::Routes, &["a", "b"]);
        assert_eq!(client.settle(), [row(Kind::Routes, &["b"], &[])], "{form:?}");
        let status = client.status(Kind::Routes);
        assert_eq!((status.nack, status.refused), (None, vec!["a".to_owned()]), "{form:?}");
        assert!(!in_sync(&cache, &mut client), "{form:?}");
        // The control: neither what is mended nor what is given up is refused.
        fake.clone().with(Kind::Routes, "a", 2).publish(&cache, "2");
        assert_eq!(client.settle(), [row(Kind::Routes, &["a"], &[])], "{form:?}");
        assert!(client.status(Kind::Routes).refused.is_empty() && in_sync(&cache, &mut client), "{form:?}");
        fake.with(Kind::Routes, "a", 3).publish(&cache, "3");
        client.next();
        client.answer(Kind::Routes, Some("no"));
        client.ask(Kind::Routes, &["b"]);
        client.settle();
        assert!(client.status(Kind::Routes).refused.is_empty(), "{form:?}");
    }
}

#[test]
fn what_stood_beside_something_bad_goes_again_with_its_better_version_or_once_it_is_gone() {
    for form in BOTH {
        for is_mended in [true, false] {
            let fake = all_kinds(&["good", "bad", "other"], 1);
            let cache = fake.cache();
            let mut client = Client::new(&cache, form);
            client.ask(Kind::Endpoints, &["good", "bad"]);
            client.next();
            client.answer(Kind::Endpoints, Some("bad: no"));
            // What has nothing to do with it sends nothing again.
            client.ask(Kind::Endpoints, &["good", "bad", "other"]);
            assert_eq!(client.settle(), [row(Kind::Endpoints, &["other"], &[])], "{form:?}");
            let next =
                if is_mended { fake.with(Kind::Endpoints, "bad", 2) } else { fake.without(Kind::Endpoints, "bad") };
            next.publish(&cache, "2");
            let sent: Vec<_> = client.settle().into_iter().flat_map(|(_, resources, _)| resources).collect();
            let wanted: &[&str] = if is_mended { &["bad", "good"] } else { &["good"] };
            assert_eq!(sent, wanted, "{form:?} {is_mended}");
            let states = client.states(Kind::Endpoints);
            let good = states.iter().find(|(name, _)| name == "good").unwrap();
            assert_eq!(good.1, "accepted", "{form:?} {is_mended}");
        }
    }
}

#[test]
fn what_is_refused_in_several_responses_goes_again_once_and_not_without_end() {
    for form in BOTH {
        let fake = all_kinds(&["a", "b"], 1);
        let cache = fake.cache();
        let limits = Limits { response_bytes: 1, ..Limits::default() };
        let mut client = Client::with(&cache, form, false, limits);
        client.ask(Kind::Endpoints, &["a", "b"]);
        for name in ["a", "b"] {
            assert_eq!(client.next().map(|seen| seen.resources), Some(vec![name.to_owned()]), "{form:?}");
            client.answer(Kind::Endpoints, Some("no"));
        }
        fake.with(Kind::Endpoints, "a", 2).publish(&cache, "2");
        for (name, error) in [("a", None), ("b", Some("no"))] {
            assert_eq!(client.next().map(|seen| seen.resources), Some(vec![name.to_owned()]), "{form:?}");
            client.answer(Kind::Endpoints, error);
        }
        assert!(client.next().is_none(), "{form:?}");
    }
}

#[test]
fn what_changes_and_stays_bad_goes_alone_each_time_until_it_is_mended() {
    for form in BOTH {
        let fake = all_kinds(&["bad", "c", "d", "e"], 1);
        let cache = fake.cache();
        let mut client = Client::new(&cache, form);
        client.ask(Kind::Endpoints, &["bad", "c", "d", "e"]);
        client.next();
        client.answer(Kind::Endpoints, Some("bad: no"));
        for edition in 2..10 {
            fake.clone().with(Kind::Endpoints, "bad", edition).publish(&cache, &edition.to_string());
            assert_eq!(client.next().map(|seen| seen.resources), Some(vec!["bad".to_owned()]), "{form:?}");
            client.answer(Kind::Endpoints, Some("bad: no"));
            assert!(client.next().is_none(), "{form:?}");
        }
        // The control: the others are not forgotten.
        fake.with(Kind::Endpoints, "bad", 10).publish(&cache, "10");
        assert_eq!(client.next().map(|seen| seen.resources), Some(vec!["bad".to_owned()]), "{form:?}");
        client.answer(Kind::Endpoints, None);
        assert_eq!(client.settle(), [row(Kind::Endpoints, &["c", "d", "e"], &[])], "{form:?}");
        assert!(client.status(Kind::Endpoints).refused.is_empty(), "{form:?}");
    }
}

#[test]
fn what_stood_beside_something_bad_goes_again_once_the_client_lets_go_of_that() {
    for form in BOTH {
        // As it was refused, or while its next version is on its way.
        for is_underway in [false, true] {
            let fake = all_kinds(&["good", "bad"], 1);
            let cache = fake.cache();
            let mut client = Client::new(&cache, form);
            client.ask(Kind::Routes, &["good", "bad"]);
            client.next();
            client.answer(Kind::Routes, Some("bad: no"));
            if is_underway {
                fake.with(Kind::Routes, "bad", 2).publish(&cache, "2");
                assert_eq!(client.next().map(|seen| seen.resources), Some(vec!["bad".to_owned()]), "{form:?}");
                client.answer(Kind::Routes, Some("bad: no"));
            }
            client.ask(Kind::Routes, &["good"]);
            assert_eq!(client.settle(), [row(Kind::Routes, &["good"], &[])], "{form:?} {is_underway}");
            assert!(client.status(Kind::Routes).refused.is_empty(), "{form:?} {is_underway}");
        }
    }
}

#[test]
fn what_stood_beside_something_bad_goes_again_once_the_client_lets_go_of_the_wildcard() {
    for form in BOTH {
        let cache = all_kinds(&["good", "bad"], 1).cache();
        let mut client = Client::new(&cache, form);
        client.ask(Kind::Cluster, &["*", "good"]);
        assert_eq!(
            client.next().map(|seen| seen.resources),
            Some(vec!["bad".to_owned(), "good".to_owned()]),
            "{form:?}"
        );
        client.answer(Kind::Cluster, Some("bad: no"));
        assert!(client.next().is_none(), "{form:?}");
        client.ask(Kind::Cluster, &["good"]);
        assert_eq!(client.settle(), [row(Kind::Cluster, &["good"], &[])], "{form:?}");
        assert!(client.status(Kind::Cluster).refused.is_empty(), "{form:?}");
    }
}

#[test]
fn what_stood_in_a_list_of_everything_goes_again_once_the_client_lets_go_of_something_bad_in_it() {
    for form in BOTH {
        let cache = all_kinds(&["good", "bad"], 1).cache();
        let mut client = Client::new(&cache, form);
        client.ask(Kind::Listener, &["good", "bad"]);
        client.next();
        client.answer(Kind::Listener, Some("bad: no"));
        client.ask(Kind::Listener, &["good"]);
        assert_eq!(client.settle(), [row(Kind::Listener, &["good"], &[])], "{form:?}");
        assert!(client.status(Kind::Listener).refused.is_empty(), "{form:?}");
    }
}

/// The clusters that a client has.
fn clusters(client: &Client) -> Vec<String> {
    let has = client.status(Kind::Cluster).resources.unwrap();
    has.into_iter().filter(|found| !found.version.is_empty()).map(|found| found.name).collect()
}

/// A client that asks for all clusters, for these listeners and these routes.
fn asking(cache: &Arc<Cache>, form: Form, dialect: Dialect, listeners: &[&str], routes: &[&str]) -> Client {
    let scope = NodeScope { dialect, ..NodeScope::default() };
    let mut client = Client::of(scope, cache, form, false, Limits::default());
    client.ask(Kind::Cluster, &["*"]);
    for (kind, names) in [(Kind::Listener, listeners), (Kind::Routes, routes)] {
        if !names.is_empty() {
            client.ask(kind, names);
        }
    }
    client.settle();
    client
}

/// Refuses all of this type and accepts the rest, until nothing more comes.
fn settle_refusing(client: &mut Client, refused: Kind) {
    while let Some(seen) = client.next() {
        client.answer(seen.kind, (seen.kind == refused).then_some("no"));
    }
}

fn with_clusters(names: &[&str]) -> Fake {
    names.iter().fold(Fake::default(), |fake, name| fake.with(Kind::Cluster, name, 1))
}

#[test]
fn who_refuses_something_for_good_keeps_what_its_older_version_names_and_no_more() {
    for form in BOTH {
        for kind in [Kind::Listener, Kind::Routes] {
            let of = |there_are: &[&str], edition, named: &[&str]| {
                with_clusters(there_are).naming(kind, "r", edition, named)
            };
            let cache = of(&["a", "b", "c"], 1, &["a", "b"]).cache();
            let mut client = asking(&cache, form, Dialect::Proxyless, &["r"], &["r"]);
            of(&["a"], 2, &["a"]).publish(&cache, "2");
            settle_refusing(&mut client, kind);
            assert_eq!(clusters(&client), ["a", "b"], "{form:?} {kind}: nothing in use names `c`");
            // Whatever comes of it: of what it was sent since it has taken nothing.
            of(&["d"], 3, &["d"]).publish(&cache, "3");
            settle_refusing(&mut client, kind);
            of(&["e"], 4, &["e"]).publish(&cache, "4");
            settle_refusing(&mut client, kind);
            assert_eq!(clusters(&client), ["a", "b", "e"], "{form:?} {kind}");
            // The control: what is mended keeps nothing.
            of(&["e"], 5, &["e"]).publish(&cache, "5");
            client.settle();
            assert_eq!(clusters(&client), ["e"], "{form:?} {kind}");
        }
    }
}

#[test]
fn who_refused_what_comes_back_meanwhile_keeps_what_its_older_version_names() {
    for form in BOTH {
        for kind in [Kind::Listener, Kind::Routes] {
            let of = |there_are: &[&str], edition, named: &str| {
                with_clusters(there_are).naming(kind, "r", edition, &[named])
            };
            let cache = of(&["a", "b"], 1, "a").cache();
            let mut client = asking(&cache, form, Dialect::Proxyless, &["r"], &["r"]);
            of(&["a", "b"], 2, "b").publish(&cache, "2");
            settle_refusing(&mut client, kind);
            // Nothing goes out between them.
            of(&["a", "b"], 3, "b").publish(&cache, "3");
            of(&["a", "b"], 2, "b").publish(&cache, "4");
            settle_refusing(&mut client, kind);
            of(&["b"], 2, "b").publish(&cache, "5");
            settle_refusing(&mut client, kind);
            assert_eq!(clusters(&client), ["a", "b"], "{form:?} {kind}");
        }
    }
}

#[test]
fn of_what_was_refused_together_any_may_be_in_use() {
    for form in BOTH {
        for together in [true, false] {
            let of = |there_are: &[&str], edition, named: &[&str]| {
                let fake = with_clusters(there_are).with(Kind::Routes, "s", if together { edition } else { 1 });
                fake.naming(Kind::Routes, "r", edition, named)
            };
            let cache = of(&["a", "b"], 1, &["a"]).cache();
            let mut client = asking(&cache, form, Dialect::Proxyless, &[], &["r", "s"]);
            of(&["b"], 2, &["b"]).publish(&cache, "2");
            settle_refusing(&mut client, Kind::Routes);
            of(&["c"], 3, &["c"]).publish(&cache, "3");
            settle_refusing(&mut client, Kind::Routes);
            let kept: &[&str] = if together { &["a", "b", "c"] } else { &["a", "c"] };
            assert_eq!(clusters(&client), kept, "{form:?}");
        }
    }
}

#[test]
fn with_more_versions_than_are_told_apart_anything_may_be_in_use() {
    for changes in [2, 10] {
        let of = |clusters: &[&str], edition: u32| {
            let named = edition.to_string();
            with_clusters(clusters).with(Kind::Routes, "s", edition).naming(Kind::Routes, "r", edition, &[&named])
        };
        let cache = of(&["a", "b"], 1).cache();
        let mut client = asking(&cache, Form::Delta, Dialect::Proxyless, &[], &["r", "s"]);
        for edition in 2..2 + changes {
            of(&["a", "b"], edition).publish(&cache, &edition.to_string());
            settle_refusing(&mut client, Kind::Routes);
        }
        of(&["a"], 20).publish(&cache, "20");
        settle_refusing(&mut client, Kind::Routes);
        assert_eq!(clusters(&client).len(), if changes > 4 { 2 } else { 1 });
    }
}

#[test]
fn an_envoy_that_refuses_a_listener_for_good_keeps_no_cluster_for_that() {
    for form in BOTH {
        for came_back in [false, true] {
            let of = |there_are: &[&str], edition, named: &[&str]| {
                let fake = with_clusters(there_are).with(Kind::Listener, "l", edition);
                there_are.iter().fold(fake, |fake, name| fake.with(Kind::Endpoints, name, 1)).naming(
                    Kind::Routes,
                    "r",
                    edition,
                    named,
                )
            };
            let cache = of(&["a", "b"], 1, &["a", "b"]).cache();
            let mut client = asking(&cache, form, Dialect::Envoy, &[], &[]);
            came_back_with(&mut client, Kind::Listener, "l", came_back);
            came_back_with(&mut client, Kind::Routes, "r", false);
            client.ask(Kind::Endpoints, &["a", "b"]);
            settle_refusing(&mut client, Kind::Listener);
            of(&["a"], 2, &["a"]).publish(&cache, "2");
            settle_refusing(&mut client, Kind::Listener);
            assert_eq!(client.status(Kind::Listener).refused, ["l"], "{form:?}");
            assert_eq!(clusters(&client), ["a"], "{form:?} {came_back}");
            assert_eq!(client.status(Kind::Cluster).due + client.status(Kind::Endpoints).due, 0, "{form:?}");
        }
    }
}

/// Asks for something that the client has from an earlier stream, if it `came_back`, in a version that nobody knows.
fn came_back_with(client: &mut Client, kind: Kind, name: &str, came_back: bool) {
    if !came_back {
        return client.ask(kind, &[name]);
    }
    if client.session.form() == Form::State {
        return resumed::first_request(client, kind, &[name], "7");
    }
    came_back_as(client, kind, name, "7");
}

/// The same with delta, in this version.
fn came_back_as(client: &mut Client, kind: Kind, name: &str, version: &str) {
    client.names[kind.index()] = vec![name.to_owned()];
    let request = DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: vec![name.to_owned()],
        initial_resource_versions: [(name.to_owned(), version.to_owned())].into(),
        ..DeltaDiscoveryRequest::default()
    };
    client.session.delta_request(request).unwrap();
}

#[test]
fn what_a_client_has_from_an_earlier_stream_and_goes_on_with_may_name_anything() {
    for form in BOTH {
        for (kind, came_back) in [(Kind::Listener, true), (Kind::Routes, true), (Kind::Listener, false)] {
            let of = |there_are: &[&str], edition| with_clusters(there_are).naming(kind, "r", edition, &["a"]);
            let cache = of(&["a", "b"], 1).cache();
            let mut client = asking(&cache, form, Dialect::Proxyless, &[], &[]);
            came_back_with(&mut client, kind, "r", came_back);
            settle_refusing(&mut client, kind);
            of(&["a"], 2).publish(&cache, "2");
            settle_refusing(&mut client, kind);
            let kept: &[&str] = if came_back { &["a", "b"] } else { &["a"] };
            assert_eq!(clusters(&client), kept, "{form:?} {kind}");
            // Once it accepts one, that is known.
            of(&["a"], 3).publish(&cache, "3");
            client.settle();
            assert_eq!(clusters(&client), ["a"], "{form:?} {kind}");
        }
    }
}

#[test]
fn who_comes_back_and_does_not_say_what_it_refused_may_go_on_with_anything_there() {
    for form in BOTH {
        for kind in [Kind::Listener, Kind::Routes] {
            // Before what it refuses is sent, after, or not at all.
            for claimed in [Some(true), Some(false), None] {
                let of = |there_are: &[&str], edition| with_clusters(there_are).naming(kind, "r", edition, &["a"]);
                let cache = of(&["a", "b"], 1).cache();
                let scope = NodeScope { dialect: Dialect::Proxyless, ..NodeScope::default() };
                let mut client = Client::of(scope, &cache, form, false, Limits::default());
                client.ask(Kind::Cluster, &["a", "b"]);
                client.settle();
                for early in [true, false] {
                    if claimed == Some(early) {
                        came_back_with(&mut client, Kind::Endpoints, "a", true);
                    }
                    if early {
                        client.ask(kind, &["r"]);
                    }
                    settle_refusing(&mut client, kind);
                }
                of(&["a"], 2).publish(&cache, "2");
                settle_refusing(&mut client, kind);
                let kept: &[&str] = if claimed.is_some() { &["a", "b"] } else { &["a"] };
                assert_eq!(clusters(&client), kept, "{form:?} {kind} {claimed:?}");
                // Once it accepts one, that is known.
                of(&["a"], 3).publish(&cache, "3");
                client.settle();
                assert_eq!(clusters(&client), ["a"], "{form:?} {kind} {claimed:?}");
            }
        }
    }
}

#[test]
fn of_what_a_client_did_not_ask_for_when_it_came_back_it_has_nothing() {
    for (came_back, at_first) in [(true, true), (true, false), (false, true)] {
        let of = |there_are: &[&str], edition| with_clusters(there_are).naming(Kind::Routes, "r", edition, &["a"]);
        let cache = of(&["a", "b"], 1).cache();
        let mut client = asking(&cache, Form::State, Dialect::Proxyless, &[], &[]);
        let names: &[&str] = if at_first { &["r", "nowhere"] } else { &["r"] };
        resumed::first_request(&mut client, Kind::Routes, names, if came_back { "7" } else { "" });
        client.settle();
        client.ask(Kind::Routes, &["r", "nowhere"]);
        client.settle();
        of(&["a"], 2).publish(&cache, "2");
        settle_refusing(&mut client, Kind::Routes);
        let kept: &[&str] = if came_back && at_first { &["a", "b"] } else { &["a"] };
        assert_eq!(clusters(&client), kept, "{came_back} {at_first}");
    }
}

#[test]
fn what_a_client_has_from_an_earlier_stream_names_what_it_named_if_its_version_is_known() {
    for is_known in [true, false] {
        let of = |there_are: &[&str], edition| with_clusters(there_are).naming(Kind::Routes, "r", edition, &["a"]);
        let cache = of(&["a", "b"], 1).cache();
        let mut before = asking(&cache, Form::Delta, Dialect::Proxyless, &[], &["r"]);
        let version = before.status(Kind::Routes).resources.unwrap().remove(0).version;
        drop(before.next());
        let mut client = asking(&cache, Form::Delta, Dialect::Proxyless, &[], &[]);
        came_back_as(&mut client, Kind::Routes, "r", if is_known { &version } else { "7" });
        settle_refusing(&mut client, Kind::Routes);
        of(&["a"], 2).publish(&cache, "2");
        settle_refusing(&mut client, Kind::Routes);
        let kept: &[&str] = if is_known { &["a"] } else { &["a", "b"] };
        assert_eq!(clusters(&client), kept);
    }
}

#[test]
fn routes_that_are_gone_keep_what_they_named_while_a_client_that_refuses_something_asks_for_them() {
    for form in BOTH {
        let of = |there_are: &[&str], edition| with_clusters(there_are).with(Kind::Listener, "l", edition);
        let cache = of(&["a", "b"], 1).naming(Kind::Routes, "r", 1, &["b"]).cache();
        let mut client = asking(&cache, form, Dialect::Proxyless, &["l"], &["r"]);
        of(&["a"], 2).publish(&cache, "2");
        settle_refusing(&mut client, Kind::Listener);
        assert_eq!(clusters(&client), ["a", "b"], "{form:?}: the older listener may need its routes");
        client.ask(Kind::Routes, &[]);
        settle_refusing(&mut client, Kind::Listener);
        assert_eq!(clusters(&client), ["a"], "{form:?}");
    }
}

#[test]
fn a_listener_that_went_in_a_refused_list_keeps_what_it_names() {
    for accepted in [false, true] {
        let all = with_clusters(&["a", "b"]).naming(Kind::Listener, "l", 1, &["b"]).with(Kind::Listener, "m", 1);
        let cache = all.clone().with(Kind::Listener, "n", 1).cache();
        let mut client = asking(&cache, Form::State, Dialect::Proxyless, &["*"], &[]);
        let fewer = all.without(Kind::Listener, "l").with(Kind::Listener, "m", 2).with(Kind::Listener, "n", 1);
        fewer.clone().publish(&cache, "2");
        settle_refusing(&mut client, Kind::Listener);
        if accepted {
            fewer.clone().with(Kind::Listener, "m", 3).publish(&cache, "3");
            client.settle();
            fewer.clone().with(Kind::Listener, "m", 4).publish(&cache, "4");
            settle_refusing(&mut client, Kind::Listener);
        }
        fewer.without(Kind::Cluster, "b").with(Kind::Listener, "m", 5).publish(&cache, "5");
        settle_refusing(&mut client, Kind::Listener);
        let kept: &[&str] = if accepted { &["a"] } else { &["a", "b"] };
        assert_eq!(clusters(&client), kept);
    }
}

#[test]
fn what_was_too_large_to_send_keeps_what_the_version_before_it_names() {
    for form in BOTH {
        for is_sent in [false, true] {
            let of = |there_are: &[&str], edition, named: &[&str]| {
                with_clusters(there_are).naming(Kind::Routes, "r", edition, named)
            };
            let cache = of(&["a", "b", "c"], 1, &["a", "b"]).cache();
            let mut client = asking(&cache, form, Dialect::Proxyless, &[], &["r"]);
            if !is_sent {
                client.session.limits.largest_response = 150;
            }
            of(&["a"], 2, &["a"; 9]).publish(&cache, "2");
            client.settle();
            assert_eq!(client.status(Kind::Routes).unsent.is_some(), !is_sent, "{form:?}");
            let kept: &[&str] = if is_sent { &["a"] } else { &["a", "b"] };
            assert_eq!(clusters(&client), kept, "{form:?}");
        }
    }
}

#[test]
fn what_was_too_large_keeps_nothing_once_it_is_again_as_it_was_sent_or_is_gone() {
    for form in BOTH {
        for kind in [Kind::Listener, Kind::Routes] {
            let of = |there_are: &[&str], named: [usize; 2]| {
                let edition = |named| if named > 1 { 2 } else { 1 };
                let fake = with_clusters(there_are).naming(kind, "r", edition(named[0]), &vec!["a"; named[0]]);
                fake.naming(kind, "s", edition(named[1]), &vec!["a"; named[1]])
            };
            let cache = of(&["a", "b"], [1, 1]).cache();
            let mut client = asking(&cache, form, Dialect::Proxyless, &["r", "s"], &["r", "s"]);
            let is_unsent = |client: &Client| client.status(kind).unsent.is_some();
            client.session.limits.largest_response = 400;
            of(&["a", "b"], [30, 30]).publish(&cache, "2");
            client.settle();
            assert!(is_unsent(&client), "{form:?} {kind}");
            of(&["a", "b"], [30, 1]).publish(&cache, "3");
            client.settle();
            assert!(is_unsent(&client), "{form:?} {kind}: one of two is still too large");
            of(&["a", "b"], [1, 1]).publish(&cache, "4");
            client.settle();
            assert!(!is_unsent(&client), "{form:?} {kind}");
            of(&["a"], [1, 1]).publish(&cache, "5");
            client.settle();
            assert_eq!(clusters(&client), ["a"], "{form:?} {kind}");
        }
    }
}

#[test]
fn what_was_too_large_from_the_first_keeps_nothing_once_it_is_gone() {
    for form in BOTH {
        for kind in [Kind::Listener, Kind::Routes] {
            let cache = with_clusters(&["a", "b"]).naming(kind, "r", 1, &["a"; 30]).cache();
            let mut client = asking(&cache, form, Dialect::Proxyless, &[], &[]);
            client.session.limits.largest_response = 400;
            client.ask(kind, &["r"]);
            client.settle();
            assert!(client.status(kind).unsent.is_some(), "{form:?} {kind}");
            with_clusters(&["a", "b"]).publish(&cache, "2");
            client.settle();
            assert_eq!(client.status(kind).unsent, None, "{form:?} {kind}");
        }
    }
}

#[test]
fn what_was_too_large_keeps_nothing_once_no_wildcard_covers_it() {
    for form in BOTH {
        let of = |there_are: &[&str]| {
            let all = with_clusters(there_are).naming(Kind::Routes, "r", 1, &["a"; 30]);
            all.naming(Kind::Routes, "s", 1, &["a"])
        };
        let cache = of(&["a", "b"]).cache();
        let mut client = asking(&cache, form, Dialect::Proxyless, &[], &[]);
        client.session.limits.largest_response = 400;
        client.ask(Kind::Routes, &["*"]);
        client.settle();
        assert!(client.status(Kind::Routes).unsent.is_some(), "{form:?}");
        client.ask(Kind::Routes, &["s"]);
        client.settle();
        assert_eq!(client.status(Kind::Routes).unsent, None, "{form:?}");
        of(&["a"]).publish(&cache, "2");
        client.settle();
        assert_eq!(clusters(&client), ["a"], "{form:?}");
        // Control: whoever asks for it is told.
        client.ask(Kind::Routes, &["r", "s"]);
        client.settle();
        assert!(client.status(Kind::Routes).unsent.is_some(), "{form:?}");
    }
}
