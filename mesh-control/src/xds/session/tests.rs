//! The protocol rules of one stream, with resources written down by the test.

use envoy_types::pb::google::rpc::Status;

use super::super::fake::{Fake, names};
use super::*;

fn session(fake: &Fake) -> Session {
    Session::new(NodeScope::default(), Limits::default(), fake.publish("1"))
}

fn ask(kind: Kind, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DiscoveryRequest::default()
    }
}

/// The answer to `response` with these names subscribed.
fn ack(response: &DiscoveryResponse, names: &[&str]) -> DiscoveryRequest {
    let kind = Kind::from_type_url(&response.type_url).unwrap();
    let (version_info, response_nonce) = (response.version_info.clone(), response.nonce.clone());
    DiscoveryRequest { version_info, response_nonce, ..ask(kind, names) }
}

fn nack(response: &DiscoveryResponse, names: &[&str], message: &str) -> DiscoveryRequest {
    let error = Status { code: 3, message: message.to_owned(), details: Vec::new() };
    DiscoveryRequest { error_detail: Some(error), version_info: String::new(), ..ack(response, names) }
}

fn answered(session: &mut Session, request: DiscoveryRequest) -> DiscoveryResponse {
    session.request(request).unwrap().response.expect("an answer")
}

fn unanswered(session: &mut Session, request: DiscoveryRequest) {
    assert_eq!(session.request(request).unwrap().response, None);
}

fn status(session: &Session, kind: Kind) -> TypeStatus {
    session.status().into_iter().find(|status| status.type_url == kind.type_url()).unwrap()
}

#[test]
fn full_state_types_answer_with_everything_subscribed_and_the_others_with_what_is_new() {
    let mut fake = Fake::default();
    for kind in Kind::ALL {
        fake = fake.with(kind, "a", 1).with(kind, "b", 1);
    }
    for kind in Kind::ALL {
        let mut session = session(&fake);
        let first = answered(&mut session, ask(kind, &["a"]));
        assert_eq!((names(&first), first.version_info.as_str()), (vec!["a".to_owned()], "1"));
        unanswered(&mut session, ack(&first, &["a"]));
        let second = answered(&mut session, ack(&first, &["a", "b"]));
        assert_eq!(names(&second), if kind.is_full_state() { vec!["a", "b"] } else { vec!["b"] }, "{kind:?}");
        assert_ne!(first.nonce, second.nonce);
    }
}

#[test]
fn absence_is_an_answer_in_full_state_types_only() {
    let fake = Fake::default();
    let mut session = session(&fake);
    for kind in [Kind::Listener, Kind::Cluster] {
        let response = answered(&mut session, ask(kind, &["nobody:1"]));
        assert!(response.resources.is_empty());
        assert_eq!(status(&session, kind).missing, ["nobody:1"]);
    }
    for kind in [Kind::Routes, Kind::Endpoints] {
        unanswered(&mut session, ask(kind, &["nobody"]));
        // Once it exists it is sent.
        let pushed = session.publish(Fake::default().with(kind, "nobody", 1).publish("2"));
        assert_eq!(pushed.iter().map(names).collect::<Vec<_>>(), [["nobody"]]);
        session.publish(fake.publish("3"));
    }
}

#[test]
fn a_wildcard_names_nothing() {
    let fake = Fake::default().with(Kind::Listener, "a", 1).with(Kind::Cluster, "a", 1);
    for asked in [&[][..], &["*"]] {
        let mut session = session(&fake);
        for kind in [Kind::Listener, Kind::Cluster] {
            assert!(answered(&mut session, ask(kind, asked)).resources.is_empty());
        }
    }
}

#[test]
fn types_that_are_not_served_are_not_answered() {
    let mut session = session(&Fake::default());
    let secret = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    unanswered(&mut session, DiscoveryRequest { type_url: secret.to_owned(), ..DiscoveryRequest::default() });
    assert!(session.status().is_empty());
}

#[test]
fn a_request_with_a_stale_nonce_is_ignored() {
    let fake = Fake::default().with(Kind::Cluster, "a", 1).with(Kind::Cluster, "b", 1);
    let mut session = session(&fake);
    let first = answered(&mut session, ask(Kind::Cluster, &["a"]));
    let second = session.publish(fake.clone().with(Kind::Cluster, "a", 2).publish("2")).remove(0);
    // Sent before the client saw the second response.
    unanswered(&mut session, ack(&first, &["a", "b"]));
    assert_eq!(status(&session, Kind::Cluster).version_acked, "");
    let third = answered(&mut session, ack(&second, &["a", "b"]));
    assert_eq!(names(&third), ["a", "b"]);
    assert_eq!(status(&session, Kind::Cluster).version_acked, "2");
}

#[test]
fn a_nack_is_recorded_and_not_sent_again_until_the_resource_changes() {
    let fake = Fake::default().with(Kind::Routes, "a", 1);
    let mut session = session(&fake);
    let first = answered(&mut session, ask(Kind::Routes, &["a"]));
    let outcome = session.request(nack(&first, &["a"], "virtual_hosts[0]: bad\nregex")).unwrap();
    assert_eq!((outcome.response, outcome.nacked.as_deref()), (None, Some("virtual_hosts[0]: bad regex")));
    let recorded = status(&session, Kind::Routes).nack.unwrap();
    assert_eq!((recorded.version.as_str(), recorded.nonce), ("1", first.nonce.clone()));
    // Said again it is the same event.
    assert_eq!(session.request(nack(&first, &["a"], "again")).unwrap().nacked, None);

    assert_eq!(session.publish(fake.publish("2")), [], "unchanged, so not sent");
    let pushed = session.publish(fake.with(Kind::Routes, "a", 2).publish("3")).remove(0);
    assert!(status(&session, Kind::Routes).nack.is_some(), "until the client accepts something");
    unanswered(&mut session, ack(&pushed, &["a"]));
    let accepted = status(&session, Kind::Routes);
    assert_eq!((accepted.nack, accepted.version_acked.as_str()), (None, "3"));
}

#[test]
fn a_push_holds_changes_only_in_make_before_break_order() {
    let mut before = Fake::default();
    for kind in Kind::ALL {
        before = before.with(kind, "a", 1).with(kind, "b", 1);
    }
    let mut session = session(&before);
    for kind in Kind::ALL {
        answered(&mut session, ask(kind, &["a", "b"]));
    }
    assert_eq!(session.publish(before.publish("2")), [], "the same configuration");
    let mut after = before;
    for kind in Kind::ALL {
        after = after.with(kind, "b", 2);
    }
    let pushed: Vec<_> =
        session.publish(after.publish("3")).into_iter().map(|r| (r.type_url.clone(), names(&r))).collect();
    let expected: [(Kind, &[&str]); 4] = [
        (Kind::Cluster, &["a", "b"]),
        (Kind::Endpoints, &["b"]),
        (Kind::Listener, &["a", "b"]),
        (Kind::Routes, &["b"]),
    ];
    assert_eq!(
        pushed,
        expected.map(|(kind, n)| (kind.type_url().to_owned(), n.iter().map(|n| (*n).to_owned()).collect()))
    );
}

#[test]
fn a_vanished_cluster_goes_after_the_routes_that_named_it() {
    let before =
        Fake::default().with(Kind::Cluster, "v1", 1).with(Kind::Cluster, "v2", 1).with(Kind::Routes, "reviews", 1);
    let mut session = session(&before);
    answered(&mut session, ask(Kind::Cluster, &["v1", "v2"]));
    answered(&mut session, ask(Kind::Routes, &["reviews"]));
    let after = before.without(Kind::Cluster, "v2").with(Kind::Cluster, "v1", 2).with(Kind::Routes, "reviews", 2);
    let pushed: Vec<_> = session.publish(after.publish("2")).iter().map(names).collect();
    assert_eq!(pushed, [vec!["v1", "v2"], vec!["reviews"], vec!["v1"]]);
    assert_eq!(session.publish(after.publish("3")), [], "said once");
}

#[test]
fn a_vanished_listener_is_absent_from_the_next_response() {
    let before = Fake::default().with(Kind::Listener, "a", 1).with(Kind::Listener, "b", 1);
    let mut session = session(&before);
    answered(&mut session, ask(Kind::Listener, &["a", "b"]));
    let pushed = session.publish(before.without(Kind::Listener, "a").publish("2"));
    assert_eq!(pushed.iter().map(names).collect::<Vec<_>>(), [["b"]]);
}

#[test]
fn what_was_dropped_and_is_asked_for_again_is_sent_again() {
    for kind in Kind::ALL {
        let mut session = session(&Fake::default().with(kind, "a", 1));
        let first = answered(&mut session, ask(kind, &["a"]));
        unanswered(&mut session, ack(&first, &[]));
        assert_eq!(status(&session, kind).sent, 0);
        assert_eq!(names(&answered(&mut session, ack(&first, &["a"]))), ["a"], "{kind:?}");
    }
}

#[test]
fn too_many_names_end_the_stream() {
    let limits = Limits { names: 2, ..Limits::default() };
    let mut session = Session::new(NodeScope::default(), limits, Fake::default().publish("1"));
    assert!(session.request(ask(Kind::Endpoints, &["a", "b"])).is_ok());
    assert!(session.request(ask(Kind::Endpoints, &["a", "b", "c"])).is_err());
}

#[test]
fn streams_of_one_scope_share_what_is_encoded() {
    let published = Fake::default().with(Kind::Cluster, "a", 1).publish("1");
    let scope = |namespace: &str| Arc::new(NodeScope { namespace: namespace.to_owned(), ..NodeScope::default() });
    let get = |scope: &Arc<NodeScope>| published.view(scope).get(Kind::Cluster, "a").unwrap();
    assert!(Arc::ptr_eq(&get(&scope("default")), &get(&scope("default"))));
    assert!(!Arc::ptr_eq(&get(&scope("default")), &get(&scope("other"))));
}
