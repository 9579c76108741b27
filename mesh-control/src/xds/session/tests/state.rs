//! State of the world.

use super::*;

#[test]
fn full_state_types_answer_with_everything_subscribed_and_the_others_with_what_is_new() {
    let cache = all_kinds(&["a", "b"], 1).cache();
    for kind in Kind::ALL {
        let mut client = Client::new(&cache, Form::State);
        client.ask(kind, &["a"]);
        let first = client.next().unwrap();
        assert_eq!((first.resources.as_slice(), first.version.as_str()), (&["a".to_owned()][..], "1"));
        client.answer(kind, None);
        assert_eq!(client.next(), None);
        client.ask(kind, &["a", "b"]);
        let second = client.next().unwrap();
        assert_eq!(second.resources, if kind.is_full_state() { vec!["a", "b"] } else { vec!["b"] }, "{kind:?}");
        assert_ne!(first.nonce, second.nonce);
    }
}

#[test]
fn absence_is_an_answer_in_full_state_types_only() {
    let none = Fake::default();
    for kind in Kind::ALL {
        let cache = none.cache();
        let mut client = Client::new(&cache, Form::State);
        client.ask(kind, &["nobody:1"]);
        let answered = if kind.is_full_state() { vec![row(kind, &[], &[])] } else { vec![] };
        assert_eq!(client.settle(), answered);
        assert_eq!(client.status(kind).missing, ["nobody:1"]);
        assert_eq!(client.states(kind)[0].1, "missing");
        none.clone().with(kind, "nobody:1", 1).publish(&cache, "2");
        assert_eq!(client.settle(), [row(kind, &["nobody:1"], &[])], "once it exists it is sent");
    }
}

#[test]
fn what_is_missing_is_explained_to_clients_that_read_it() {
    let fake = Fake::default().with(Kind::Routes, "a", 1);
    let cache = fake.cache();
    for kind in [Kind::Listener, Kind::Endpoints] {
        let mut client = Client::with(&cache, Form::State, true, Limits::default());
        client.ask(kind, &["nobody"]);
        assert_eq!(client.next().unwrap().errors, ["nobody"]);
        client.answer(kind, None);
        assert_eq!(client.next(), None, "said once");
    }
    let mut client = Client::with(&cache, Form::State, true, Limits::default());
    client.ask(Kind::Routes, &["a"]);
    client.settle();
    fake.without(Kind::Routes, "a").publish(&cache, "2");
    assert_eq!(client.next().unwrap().errors, ["a"], "routes have no other way to vanish");
}

#[test]
fn a_request_that_crosses_the_first_response_does_not_answer_it() {
    let fake = Fake::default().with(Kind::Endpoints, "a", 1).with(Kind::Endpoints, "b", 1);
    let mut client = Client::new(&fake.cache(), Form::State);
    client.ask(Kind::Endpoints, &["a"]);
    let first = client.next().unwrap();
    client.nonce[Kind::Endpoints.index()].clear();
    client.ask(Kind::Endpoints, &["a", "b"]);
    assert_eq!(client.next(), None, "one at a time");
    client.nonce[Kind::Endpoints.index()] = first.nonce;
    assert!(client.answer(Kind::Endpoints, None).acked);
    assert_eq!(client.next().unwrap().resources, ["b"]);
}

#[test]
fn a_request_with_a_stale_nonce_is_ignored() {
    let fake = Fake::default().with(Kind::Cluster, "a", 1).with(Kind::Cluster, "b", 1);
    let cache = fake.cache();
    let mut client = Client::new(&cache, Form::State);
    client.ask(Kind::Cluster, &["a"]);
    client.settle();
    let stale = client.nonce[Kind::Cluster.index()].clone();
    fake.with(Kind::Cluster, "a", 2).publish(&cache, "2");
    let second = client.next().unwrap();
    // Sent before the client saw the second response.
    client.nonce[Kind::Cluster.index()] = stale;
    client.ask(Kind::Cluster, &["a", "b"]);
    assert_eq!(client.next(), None);
    assert_eq!(client.status(Kind::Cluster).version_acked, "1");
    let asked: Vec<_> = client.states(Kind::Cluster).into_iter().map(|(name, _)| name).collect();
    assert_eq!(asked, ["a"], "what it asks for neither");
    client.nonce[Kind::Cluster.index()] = second.nonce;
    client.ask(Kind::Cluster, &["a", "b"]);
    assert_eq!(client.next().unwrap().resources, ["a", "b"]);
    assert_eq!(client.status(Kind::Cluster).version_acked, "2");
}

/// Before anything has been said on a stream, what was said last on the one before is nothing that could be out of date.
#[test]
fn a_client_that_begins_a_stream_with_the_nonce_of_the_one_before_is_answered() {
    let fake = Fake::default().with(Kind::Cluster, "a", 1).with(Kind::Cluster, "b", 1);
    let cache = fake.cache();
    let mut client = Client::new(&cache, Form::State);
    for names in [&["a"][..], &["a", "b"]] {
        client.nonce[Kind::Cluster.index()] = "1".to_owned();
        client.ask(Kind::Cluster, names);
    }
    assert_eq!(client.next().unwrap().resources, ["a", "b"]);
    // The control: from now on it is.
    client.nonce[Kind::Cluster.index()] = "1".to_owned();
    assert!(!client.answer(Kind::Cluster, None).acked);
    assert_eq!(client.status(Kind::Cluster).version_acked, "");
}

#[test]
fn a_vanished_listener_is_absent_from_the_next_response() {
    let before = Fake::default().with(Kind::Listener, "a", 1).with(Kind::Listener, "b", 1);
    let cache = before.cache();
    let mut client = Client::new(&cache, Form::State);
    client.ask(Kind::Listener, &["a", "b"]);
    client.settle();
    before.without(Kind::Listener, "a").publish(&cache, "2");
    assert_eq!(client.settle(), [row(Kind::Listener, &["b"], &[])]);
}

#[test]
fn an_empty_list_is_a_wildcard_only_until_something_was_named() {
    let cache = all_kinds(&["a", "b"], 1).cache();
    let mut client = Client::new(&cache, Form::State);
    client.ask(Kind::Cluster, &[]);
    assert_eq!(client.settle(), [row(Kind::Cluster, &["a", "b"], &[])]);
    client.ask(Kind::Cluster, &["a"]);
    assert_eq!(client.settle(), [row(Kind::Cluster, &["a"], &[])]);
    assert!(!client.status(Kind::Cluster).wildcard);
    client.ask(Kind::Cluster, &[]);
    assert_eq!((client.settle(), client.status(Kind::Cluster).sent), (vec![], 0));
    // The other types have no wildcard in an empty list.
    client.ask(Kind::Endpoints, &[]);
    assert_eq!((client.settle(), client.status(Kind::Endpoints).wildcard), (vec![], false));
}
