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
