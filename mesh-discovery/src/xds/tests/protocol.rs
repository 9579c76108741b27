//! The protocol alone: what is said and when, and what becomes of what is heard.

use std::time::Duration;

use super::super::ads::{Ads, Known, Loss, Retry, Standing};
use super::super::kind::{Key, Kind};
use super::super::message::{Ask, Cause, Resource, ResourceError, Response, StreamError, Variant};
use super::machine::{BOTH, Machine, TIMEOUT, initial, listener, removed, response};
use super::{asked, version};
use crate::bootstrap::ServerFeatures;

/// A machine that has asked for two listeners and has them.
fn holding_both(variant: Variant) -> Machine {
    let mut ads = Machine::of(variant);
    ads.subscribe(&["a", "b"].map(listener));
    ads.opened();
    ads.request();
    ads.respond(Kind::Listener, "v1", &["a=1", "b=1"]);
    ads.request();
    ads
}

#[test]
fn an_ack_repeats_the_nonce_and_the_node_is_sent_once_a_stream() {
    for variant in BOTH {
        let mut ads = Machine::of(variant);
        ads.subscribe(&[listener("a")]);
        assert!(ads.is_silent(), "not connected");

        ads.opened();
        let first = ads.request();
        assert_eq!(first.node.as_ref().unwrap().id, "me");
        assert_eq!((first.nonce.as_str(), asked(&first)), ("", vec!["a"]));
        assert!(ads.is_silent());

        assert_eq!(ads.respond(Kind::Listener, "v1", &["a=1"]), [listener("a")]);
        let ack = ads.request();
        assert_eq!(ack.nonce, "v1");
        assert!(ack.node.is_none() && ack.error.is_none());
        if variant == Variant::StateOfTheWorld {
            assert_eq!((version(&first), version(&ack)), ("", "v1"));
        }
        assert_eq!(ads.value(&listener("a")), Some("1"));
        assert!(ads.is_silent());
    }
}

#[test]
fn a_nack_names_every_bad_resource_and_uses_the_good_ones() {
    for variant in BOTH {
        let mut ads = Machine::of(variant);
        ads.subscribe(&["a", "b", "c", "d"].map(listener));
        ads.opened();
        ads.request();
        ads.respond(Kind::Listener, "v1", &["a=1", "b=1"]);
        ads.request();

        let all = ["a=bad", "nameless", "b=2", "c=bad", "d=panic", "panic=1"];
        ads.respond(Kind::Listener, "v2", &all);
        let nack = ads.request();
        assert_eq!(nack.nonce, "v2");
        let error = nack.error.as_ref().unwrap();
        for part in ["a: field: bad", "c: field: bad", "resource 1: its name cannot be read", "panicked", "resource 5"]
        {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(ads.value(&listener("a")), Some("1"), "the last good stays");
        assert_eq!(ads.value(&listener("b")), Some("2"), "a good sibling is used");
        assert_eq!(ads.missing(&listener("c")), Some("c: field: bad"));
        assert_eq!((ads.entry(&listener("a")).standing, ads.held_version(&listener("a"))), (Standing::Nacked, "v1"));

        // A further request of the type carries no old complaint.
        ads.unsubscribe(&[listener("d")]);
        let next = ads.request();
        assert_eq!(next.error, None);
        match variant {
            Variant::StateOfTheWorld => {
                assert_eq!((version(&nack), version(&next)), ("v1", "v1"), "it goes on from the accepted version");
            }
            Variant::Delta => assert_eq!((next.nonce.as_str(), removed(&next)), ("", vec!["d"])),
        }
    }
}

#[test]
fn a_time_beyond_the_clock_is_none() {
    for transient in [false, true] {
        let features = ServerFeatures { resource_timer_is_transient_error: transient, ..Default::default() };
        let mut ads = Machine::new(Some(Variant::Delta), features, 1);
        let mut topology = Machine::topology(Some(Variant::Delta), features, 1);
        (topology.resource_timeout, topology.transient_timeout) = (Duration::MAX, Duration::MAX);
        ads.ads = Ads::new(ads.codec.clone(), topology, ads.now);
        ads.subscribe(&[listener("a")]);
        ads.opened();
        ads.request();
        assert_eq!(ads.ads.next_deadline(), None);
        assert!(ads.pass(1000 * TIMEOUT).is_empty());
    }
}

#[test]
fn a_wrapper_gives_the_name_and_a_wrong_type_is_named() {
    for variant in BOTH {
        let mut ads = Machine::of(variant);
        ads.subscribe(&["a", "b"].map(listener));
        ads.opened();
        ads.request();
        let mut answer = response(Kind::Listener, "v1", &["inner=1", "b=1"]);
        answer.resources[0].name = "a".to_owned();
        answer.resources[1].body.as_mut().unwrap().type_url = "other".into();
        ads.take(0, answer);
        assert_eq!(ads.value(&listener("a")), Some("1"));
        let error = ads.request().error.unwrap();
        assert!(error.contains("resource 1 (b)") && error.contains("\"other\""), "{error}");
    }
}

#[test]
fn s81_a_name_that_comes_twice_in_a_response_counts_once_and_is_told() {
    for variant in BOTH {
        let mut ads = Machine::of(variant);
        ads.subscribe(&["a", "b"].map(listener));
        ads.opened();
        ads.request();
        // By its own name, and by that of a wrapper around another one.
        for (mark, wrapped) in [("v1", false), ("v2", true)] {
            let (first, second) = if wrapped { ("a=3", "c=4") } else { ("a=1", "a=2") };
            let mut answer = response(Kind::Listener, mark, &[first, second, "b=1"]);
            if wrapped {
                answer.resources[1].name = "a".to_owned();
            }
            ads.take(0, answer);
            assert_eq!((ads.value(&listener("a")), ads.value(&listener("b"))), (Some(&first[2..]), Some("1")));
            let error = ads.request().error.unwrap();
            assert_eq!(error, "resource 1 (a): its name came before in this response");
        }
        // The control: once, and again in the next response.
        for (mark, resource) in [("v3", "a=5"), ("v4", "a=6")] {
            ads.respond(Kind::Listener, mark, &[resource, "b=1"]);
            assert_eq!((ads.request().error, ads.value(&listener("a"))), (None, Some(&resource[2..])));
        }
    }
}

#[test]
fn s81_a_resource_counts_for_the_name_that_it_was_sent_under_and_for_no_other() {
    for variant in BOTH {
        let mut ads = holding_both(variant);
        // Another one than was asked for, however like.
        for other in ["c=2", "A=2", "a =2", "a.=2", "xdstp://other/envoy.config.listener.v3.Listener/a=2"] {
            ads.respond(Kind::Listener, other, &[other, "a=1", "b=1"]);
            assert_eq!(ads.request().error, None, "{other}: nobody reads it");
            assert_eq!(ads.known(&listener(other.split_once('=').unwrap().0)), Known::Pending, "{other}");
            assert_eq!((ads.value(&listener("a")), ads.value(&listener("b"))), (Some("1"), Some("1")), "{other}");
        }
        // What says that it is `b` in a wrapper that says `a` is `a`, and no `b` at all.
        let mut answer = response(Kind::Listener, "v2", &["b=3", "b=1"]);
        answer.resources[0].name = "a".to_owned();
        ads.take(0, answer);
        assert_eq!((ads.value(&listener("a")), ads.value(&listener("b"))), (Some("3"), Some("1")));
        assert_eq!(ads.request().error, None);
        // The control: by its own name.
        ads.respond(Kind::Listener, "v3", &["a=3", "b=4"]);
        assert_eq!((ads.value(&listener("a")), ads.value(&listener("b"))), (Some("3"), Some("4")));
    }
}

/// Each authority has a control plane of its own: what one says of another's names counts for nothing.
#[test]
fn s81_a_name_of_another_authority_is_taken_from_its_own_control_plane_alone() {
    const OTHERS: &str = "xdstp://other/envoy.config.listener.v3.Listener/a";
    for variant in BOTH {
        let mut ads = Machine::apart(variant);
        let (own, others) = (listener("a"), listener(OTHERS));
        ads.subscribe(&[own.clone(), others.clone()]);
        for server in [0, 1] {
            ads.ads.opened(server, ads.now);
            ads.drain(server);
        }
        let said = |resource: &str| response(Kind::Listener, "v1", &[resource]);
        let theirs = format!("{OTHERS}=1");
        // In the other's place: given, taken away, and said to be an error.
        ads.take(0, said(&theirs));
        assert_eq!(ads.known(&others), Known::Pending);
        ads.take(1, said("a=1"));
        assert_eq!(ads.known(&own), Known::Pending);
        let mut wrapped = said("a=1");
        wrapped.resources[0].name = OTHERS.to_owned();
        ads.take(0, wrapped);
        assert_eq!(ads.known(&others), Known::Pending);
        // The control: each from its own.
        ads.take(1, said(&theirs));
        ads.take(0, said("a=2"));
        assert_eq!((ads.value(&own), ads.value(&others)), (Some("2"), Some("1")));
        let (own_name, removed) = (OTHERS.to_owned(), Response { removed: vec![OTHERS.to_owned()], ..said("a=2") });
        ads.take(0, removed);
        let error = ResourceError { name: own_name, message: "gone".into(), cause: Cause::NotFound };
        ads.take(0, Response { errors: vec![error], ..said("a=2") });
        assert_eq!((ads.value(&others), ads.entry(&others).standing), (Some("1"), Standing::Acked));
    }
}

#[test]
fn equal_bytes_are_not_decoded_again_and_wake_nobody() {
    for variant in BOTH {
        let mut ads = Machine::of(variant);
        ads.subscribe(&[listener("a")]);
        ads.opened();
        ads.request();
        for (mark, resource, decoded, standing, seen) in [
            ("v1", "a=1", 1, Standing::Acked, true),
            ("v2", "a=1", 1, Standing::Acked, false),
            ("v3", "a=bad", 2, Standing::Nacked, false),
            ("v4", "a=bad", 2, Standing::Nacked, false),
            ("v5", "a=1", 2, Standing::Acked, false),
            ("v6", "a=2", 3, Standing::Acked, true),
        ] {
            let changed = ads.respond(Kind::Listener, mark, &[resource]);
            assert_eq!(ads.codec.decoded.get(), decoded, "{mark}");
            assert_eq!(ads.entry(&listener("a")).standing, standing, "{mark}");
            assert_eq!(!changed.is_empty(), seen, "{mark}");
            assert_eq!(ads.request().error.is_some(), standing == Standing::Nacked);
        }
        assert_eq!(ads.ads.sessions()[0].nacks, 2);
    }
}

#[test]
fn the_last_unsubscription_reaches_the_server_but_an_empty_list_is_never_the_first_word() {
    for variant in BOTH {
        let mut ads = Machine::of(variant);
        ads.opened();
        ads.subscribe(&[listener("a")]);
        ads.unsubscribe(&[listener("a")]);
        assert!(ads.is_silent(), "an empty list as first word would mean everything");

        ads.subscribe(&[listener("b")]);
        assert_eq!(asked(&ads.request()), ["b"]);
        ads.unsubscribe(&[listener("b")]);
        let last = ads.request();
        assert!(asked(&last).is_empty());
        if variant == Variant::Delta {
            assert_eq!(removed(&last), ["b"]);
        }
        assert!(ads.ads.entry(&listener("b")).is_none());

        // A response that was under way is acknowledged without bringing anything back.
        ads.respond(Kind::Listener, "v1", &["b=1"]);
        assert_eq!(ads.request().nonce, "v1");
        assert_eq!(ads.known(&listener("b")), Known::Pending);
    }
}

#[test]
fn a_wish_renewed_before_the_control_plane_heard_of_its_end_keeps_the_value() {
    for variant in BOTH {
        let mut ads = Machine::of(variant);
        ads.subscribe(&[listener("a")]);
        ads.opened();
        ads.request();
        ads.respond(Kind::Listener, "v1", &["a=1"]);
        ads.request();

        ads.unsubscribe(&[listener("a")]);
        ads.subscribe(&[listener("a")]);
        assert!(ads.is_silent(), "nothing changed for the control plane");
        assert_eq!(ads.value(&listener("a")), Some("1"));

        // During an outage nobody need hear of it; what nobody wanted meanwhile goes once the control plane speaks.
        ads.closed();
        ads.unsubscribe(&[listener("a")]);
        ads.subscribe(&[listener("a")]);
        assert_eq!(ads.value(&listener("a")), Some("1"));
        ads.unsubscribe(&[listener("a")]);
        ads.opened();
        ads.subscribe(&[listener("a")]);
        assert_eq!(ads.value(&listener("a")), Some("1"));
        ads.unsubscribe(&[listener("a")]);
        ads.respond(Kind::Routes, "v2", &[]);
        ads.subscribe(&[listener("a")]);
        assert_eq!(ads.known(&listener("a")), Known::Pending);
    }
}

#[test]
fn what_is_said_of_a_resource_between_the_end_of_a_wish_and_its_renewal_is_not_lost() {
    for variant in BOTH {
        let a = listener("a");
        let started = |features| {
            let mut ads = Machine::new(Some(variant), features, 1);
            ads.subscribe(std::slice::from_ref(&a));
            ads.opened();
            ads.request();
            ads.respond(Kind::Listener, "v1", &["a=1"]);
            ads.request();
            // Not told yet, when the next response comes.
            ads.unsubscribe(std::slice::from_ref(&a));
            ads
        };
        let mut ads = started(ServerFeatures::default());
        ads.respond(Kind::Listener, "v2", &["a=2"]);
        ads.subscribe(std::slice::from_ref(&a));
        // It is acknowledged as a whole, so nobody says it again.
        assert_eq!(ads.request().nonce, "v2");
        assert!(ads.is_silent());
        assert_eq!(ads.value(&a), Some("2"), "{variant:?}: changed meanwhile");

        let mut ads = started(ServerFeatures::default());
        ads.respond(Kind::Listener, "v2", &["a=bad"]);
        ads.subscribe(std::slice::from_ref(&a));
        assert_eq!(ads.request().error.as_deref(), Some("a: field: bad"), "what is not good is not acknowledged");
        assert_eq!((ads.value(&a), ads.entry(&a).standing), (Some("1"), Standing::Nacked), "{variant:?}");

        let mut ads = started(ServerFeatures { fail_on_data_errors: true, ..ServerFeatures::default() });
        let gone = Response { removed: vec!["a".to_owned()], ..response(Kind::Listener, "v2", &[]) };
        // Of the state of the world, absence says it.
        ads.take(0, if variant == Variant::Delta { gone } else { response(Kind::Listener, "v2", &[]) });
        ads.subscribe(std::slice::from_ref(&a));
        assert_eq!(ads.missing(&a), Some("the control plane deleted it"), "{variant:?}: deleted meanwhile");
    }
}

#[test]
fn a57_a_wish_renewed_before_the_control_plane_heard_of_its_end_is_waited_for_no_longer_than_any() {
    for variant in BOTH {
        let mut ads = Machine::of(variant);
        ads.subscribe(&[listener("a")]);
        ads.opened();
        ads.request();
        ads.unsubscribe(&[listener("a")]);
        ads.subscribe(&[listener("a")]);
        assert!(ads.is_silent(), "nothing changed for the control plane");
        assert!(ads.pass(TIMEOUT - Duration::from_millis(1)).is_empty());
        assert_eq!(ads.pass(Duration::from_millis(1)), [listener("a")]);
        assert!(ads.missing(&listener("a")).unwrap().contains("within 15s"));
    }
}

#[test]
fn absence_deletes_listeners_and_clusters_only_and_the_last_good_stays() {
    for (kind, standing) in [
        (Kind::Listener, Standing::DoesNotExist),
        (Kind::Routes, Standing::Acked),
        (Kind::Cluster, Standing::DoesNotExist),
        (Kind::Endpoints, Standing::Acked),
    ] {
        let mut ads = Machine::of(Variant::StateOfTheWorld);
        let (key, never, late) = (Key::new(kind, "a"), Key::new(kind, "never"), Key::new(kind, "late"));
        ads.subscribe(&[key.clone(), never.clone()]);
        ads.opened();
        ads.request();
        ads.respond(kind, "v1", &["a=1"]);
        ads.subscribe(&[late]);
        assert!(ads.respond(kind, "v2", &[]).is_empty(), "nobody sees the deletion");
        assert_eq!(ads.entry(&key).standing, standing);
        assert_eq!(ads.value(&key), Some("1"));
        assert_eq!(ads.known(&never), Known::Pending, "it may be on its way");
        ads.respond(kind, "v3", &["a=3"]);
        assert_eq!(ads.value(&key), Some("3"), "it came back");
    }
}

#[test]
fn a_removed_resource_is_gone_at_once_and_a_last_good_one_stays() {
    for kind in Kind::ALL {
        let mut ads = Machine::of(Variant::Delta);
        let (key, never) = (Key::new(kind, "a"), Key::new(kind, "never"));
        ads.subscribe(&[key.clone(), never.clone()]);
        ads.opened();
        ads.request();
        ads.respond(kind, "v1", &["a=1"]);
        // Absence means nothing in delta.
        assert!(ads.respond(kind, "v2", &[]).is_empty());
        assert_eq!(ads.entry(&key).standing, Standing::Acked);

        let mut answer = response(kind, "v3", &[]);
        answer.removed = vec!["a".to_owned(), "never".to_owned(), "stranger".to_owned()];
        assert_eq!(ads.take(0, answer), std::slice::from_ref(&never));
        assert_eq!((ads.entry(&key).standing, ads.value(&key)), (Standing::DoesNotExist, Some("1")));
        assert!(ads.missing(&never).unwrap().contains("does not exist"));
    }
}

#[test]
fn data_errors_cost_the_last_good_one_only_where_the_server_says_so() {
    for (variant, strict) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let features = ServerFeatures { fail_on_data_errors: strict, ..Default::default() };
        let error = |cause| {
            let mut answer = response(Kind::Listener, "v2", &[]);
            answer.errors = vec![ResourceError { name: "a".to_owned(), cause, message: "why".to_owned() }];
            answer
        };
        let deleted = match variant {
            Variant::StateOfTheWorld => response(Kind::Listener, "v2", &[]),
            Variant::Delta => Response { removed: vec!["a".to_owned()], ..response(Kind::Listener, "v2", &[]) },
        };
        for (case, drops, standing) in [
            (response(Kind::Listener, "v2", &["a=bad"]), true, Standing::Nacked),
            (deleted, true, Standing::DoesNotExist),
            (error(Cause::NotFound), true, Standing::ReceivedError),
            (error(Cause::Denied), true, Standing::ReceivedError),
            (error(Cause::Other), false, Standing::ReceivedError),
        ] {
            let mut ads = Machine::new(Some(variant), features, 1);
            ads.subscribe(&[listener("a")]);
            ads.opened();
            ads.request();
            ads.respond(Kind::Listener, "v1", &["a=1"]);
            ads.take(0, case);
            assert_eq!(ads.entry(&listener("a")).standing, standing);
            assert_eq!(ads.value(&listener("a")).is_none(), strict && drops, "{variant:?} {strict} {standing:?}");
            // The same bytes as before are good again.
            ads.respond(Kind::Listener, "v3", &["a=1"]);
            assert_eq!(ads.value(&listener("a")), Some("1"));
        }
    }
}

#[test]
fn the_does_not_exist_timer_runs_only_while_connected_and_asked() {
    for variant in BOTH {
        let mut ads = Machine::of(variant);
        ads.subscribe(&["a", "cached"].map(listener));
        assert_eq!(ads.ads.next_deadline(), None, "not connected");
        ads.opened();
        assert!(ads.pass(2 * TIMEOUT).is_empty(), "not asked");
        assert_eq!(ads.ads.next_deadline(), None);
        ads.request();
        let begun = ads.now;
        assert_eq!(ads.ads.next_deadline(), Some(begun + TIMEOUT));

        ads.respond(Kind::Listener, "v1", &["cached=1"]);
        ads.request();
        ads.pass(Duration::from_secs(10));
        ads.closed();
        assert_eq!(ads.ads.next_deadline(), None, "no timer without a stream");

        ads.opened();
        ads.request();
        let again = ads.now;
        assert_eq!(ads.ads.next_deadline(), Some(again + TIMEOUT), "the whole time again on the new stream");
        assert!(ads.pass(TIMEOUT - Duration::from_millis(1)).is_empty());
        assert_eq!(ads.pass(Duration::from_millis(1)), [listener("a")], "what is cached never expires");
        assert!(ads.missing(&listener("a")).unwrap().contains("within 15s"));
        assert_eq!(ads.ads.next_deadline(), None);

        ads.respond(Kind::Listener, "v2", &["cached=1", "a=1"]);
        assert_eq!(ads.value(&listener("a")), Some("1"), "late is better than never");
    }
}

#[test]
fn where_the_server_reports_absence_a_late_resource_means_a_slow_server() {
    let features = ServerFeatures { resource_timer_is_transient_error: true, ..Default::default() };
    let mut ads = Machine::new(Some(Variant::Delta), features, 1);
    ads.subscribe(&[listener("a")]);
    ads.opened();
    ads.request();
    assert!(ads.pass(TIMEOUT).is_empty());
    assert_eq!(ads.pass(TIMEOUT), [listener("a")]);
    assert_eq!(ads.entry(&listener("a")).standing, Standing::TimedOut);
    assert!(matches!(ads.known(&listener("a")), Known::Lost(reason, Loss::Late(_)) if reason.contains("within 30s")));
}

#[test]
fn a_new_stream_asks_with_versions_and_without_old_nonces() {
    for variant in BOTH {
        let mut ads = Machine::of(variant);
        let gone = Key::new(Kind::Routes, "gone");
        ads.subscribe(&[listener("a"), listener("b"), gone.clone()]);
        ads.opened();
        ads.drain(0);
        ads.respond(Kind::Listener, "v1", &["a=1"]);
        ads.unsubscribe(&[gone]);
        ads.closed();
        assert!(ads.is_silent());
        assert_eq!(ads.value(&listener("a")), Some("1"));

        ads.opened();
        let first = ads.request();
        assert_eq!((first.nonce.as_str(), asked(&first)), ("", vec!["a", "b"]));
        assert!(first.node.is_some() && first.error.is_none());
        match variant {
            Variant::StateOfTheWorld => assert_eq!(version(&first), "", "one version cannot say that b is not held"),
            Variant::Delta => assert_eq!(initial(&first), [("a", "v1")], "of what is held, and no more"),
        }
        assert!(ads.is_silent(), "a type without names is not mentioned");
    }
}

#[test]
fn delta_says_only_what_changes_and_answers_every_response() {
    let mut ads = Machine::of(Variant::Delta);
    ads.subscribe(&["a", "b"].map(listener));
    ads.opened();
    ads.request();
    ads.respond(Kind::Listener, "n1", &["a=1"]);
    ads.respond(Kind::Listener, "n2", &["b=bad"]);
    ads.subscribe(&[listener("c")]);
    ads.unsubscribe(&[listener("a")]);

    let change = ads.request();
    assert_eq!((asked(&change), removed(&change)), (vec!["c"], vec!["a"]));
    assert!(change.nonce.is_empty() && change.error.is_none() && initial(&change).is_empty());
    let (first, second) = (ads.request(), ads.request());
    assert_eq!((first.nonce.as_str(), first.error), ("n1", None));
    assert_eq!((second.nonce.as_str(), second.error.is_some()), ("n2", true));
    assert!(ads.is_silent());
}

#[test]
fn versions_of_single_resources_and_signs_of_life_are_understood() {
    let mut ads = Machine::of(Variant::Delta);
    ads.subscribe(&[listener("a")]);
    ads.opened();
    ads.request();
    let mut answer = response(Kind::Listener, "system", &["a=1"]);
    answer.resources[0].version = "7".to_owned();
    ads.take(0, answer);
    assert_eq!(ads.held_version(&listener("a")), "7");

    let mut alive = response(Kind::Listener, "system", &[]);
    alive.resources = vec![Resource { name: "a".to_owned(), version: "7".to_owned(), ttl: None, body: None }];
    assert!(ads.take(0, alive).is_empty());
    assert_eq!((ads.entry(&listener("a")).standing, ads.value(&listener("a"))), (Standing::Acked, Some("1")));
}

#[test]
fn a_server_without_delta_is_asked_for_the_world_and_remembered() {
    let mut ads = Machine::new(None, ServerFeatures::default(), 1);
    ads.subscribe(&[listener("a")]);
    ads.opened();
    assert!(matches!(ads.request().ask, Ask::Changes { .. }));
    assert_eq!(ads.close(Some(StreamError::unsupported("no delta"))), Retry::AtOnce);
    assert_eq!(ads.known(&listener("a")), Known::Pending, "that is no failure");
    for _ in 0..2 {
        assert_eq!(ads.ads.sessions()[0].variant, Variant::StateOfTheWorld);
        ads.opened();
        assert!(matches!(ads.request().ask, Ask::World { .. }));
        assert_eq!(ads.close(Some(StreamError::unsupported("no discovery at all"))), Retry::Later);
    }

    // Control run: other failures, and a variant chosen by hand, change nothing.
    for (variant, error) in [(None, StreamError::new("broken")), (Some(Variant::Delta), StreamError::unsupported("no"))]
    {
        let mut ads = Machine::new(variant, ServerFeatures::default(), 1);
        ads.opened();
        assert_eq!(ads.close(Some(error)), Retry::Later);
        assert_eq!(ads.ads.sessions()[0].variant, Variant::Delta);
    }
}

#[test]
fn dependants_are_asked_for_before_the_answer_goes_out() {
    for variant in BOTH {
        let mut ads = Machine::of(variant);
        ads.subscribe(&[Key::new(Kind::Routes, "r")]);
        ads.opened();
        ads.request();
        ads.respond(Kind::Routes, "v1", &["r=1"]);
        ads.subscribe(&[Key::new(Kind::Cluster, "c")]);
        assert_eq!(ads.request().type_url, Kind::Cluster.type_url());
        assert_eq!(ads.request().type_url, Kind::Routes.type_url());
    }
}

#[test]
fn unrequested_names_and_types_are_tolerated() {
    for variant in BOTH {
        let mut ads = Machine::of(variant);
        ads.subscribe(&[listener("a")]);
        ads.opened();
        ads.request();
        ads.respond(Kind::Listener, "v1", &["stranger=bad", "a=1"]);
        assert_eq!(ads.request().error, None, "nobody reads the stranger, so nobody judges it");

        let mut unknown = response(Kind::Listener, "n2", &["a=2"]);
        unknown.type_url = "type.googleapis.com/unknown".to_owned();
        assert!(ads.take(0, unknown).is_empty());
        assert!(ads.respond(Kind::Cluster, "n3", &["a=2"]).is_empty(), "a type nobody asked for");
        assert!(ads.is_silent());
    }
}

#[test]
fn a47_a_name_of_an_unknown_authority_or_of_another_type_fails_at_once() {
    for (name, why) in [
        ("xdstp://elsewhere/envoy.config.listener.v3.Listener/a", "no authority"),
        ("xdstp://other/envoy.config.cluster.v3.Cluster/a", "type envoy.config.cluster.v3.Cluster"),
    ] {
        let mut ads = Machine::of(Variant::Delta);
        let key = listener(name);
        ads.subscribe(std::slice::from_ref(&key));
        assert!(ads.missing(&key).unwrap().contains(why));
        ads.opened();
        assert!(ads.is_silent());
        ads.unsubscribe(std::slice::from_ref(&key));
        assert!(ads.ads.entry(&key).is_none());
    }
    // The control.
    let mut ads = Machine::of(Variant::Delta);
    ads.subscribe(&[listener("xdstp://other/envoy.config.listener.v3.Listener/a")]);
    ads.opened();
    assert!(!ads.is_silent());
}

#[test]
fn the_cost_of_a_response_does_not_grow_with_what_is_held() {
    // Not a timing: the names listed in requests are what would grow.
    let mut ads = Machine::of(Variant::Delta);
    let keys: Vec<Key> = (0..1000).map(|n| Key::new(Kind::Endpoints, format!("e{n}"))).collect();
    ads.subscribe(&keys);
    ads.opened();
    assert_eq!(asked(&ads.request()).len(), 1000);
    let all: Vec<String> = (0..1000).map(|n| format!("e{n}=1")).collect();
    ads.respond(Kind::Endpoints, "n1", &all.iter().map(String::as_str).collect::<Vec<_>>());
    ads.request();
    assert_eq!(ads.respond(Kind::Endpoints, "n2", &["e7=2"]), [Key::new(Kind::Endpoints, "e7")]);
    let ack = ads.request();
    assert!(asked(&ack).is_empty() && initial(&ack).is_empty());
    assert_eq!(ads.codec.decoded.get(), 1001);
}

#[test]
fn r07_an_empty_resource_in_the_place_of_something_is_treated_like_a_deletion() {
    for (variant, strict) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let features = ServerFeatures { fail_on_data_errors: strict, ..ServerFeatures::default() };
        let mut ads = Machine::new(Some(variant), features, 1);
        let (key, never) = (Key::new(Kind::Endpoints, "a"), Key::new(Kind::Endpoints, "never"));
        ads.subscribe(&[key.clone(), never.clone()]);
        ads.opened();
        ads.request();
        ads.respond(Kind::Endpoints, "v1", &["a=1", "never="]);
        assert_eq!(ads.value(&never), Some(""), "there is nothing to keep");
        ads.request();
        for mark in ["v2", "v3"] {
            let changed = ads.respond(Kind::Endpoints, mark, &["a="]);
            let request = ads.request();
            assert_eq!((request.nonce.as_str(), request.error), (mark, None), "it is nothing to refuse");
            assert_eq!(changed.is_empty(), !(strict && mark == "v2"));
            let (value, standing) = if strict { ("", Standing::Acked) } else { ("1", Standing::DoesNotExist) };
            assert_eq!((ads.value(&key), ads.entry(&key).standing), (Some(value), standing));
        }
        let failure = ads.entry(&key).failure.as_ref();
        assert_eq!(failure.is_some_and(|failure| failure.reason.contains("sent it empty")), !strict);
        // The same again as before the accident, or something new: the alarm is over.
        for (mark, resource) in [("v4", "a=1"), ("v5", "a=2")] {
            ads.respond(Kind::Endpoints, mark, &[resource]);
            ads.request();
            assert_eq!((ads.value(&key), ads.entry(&key).standing), (resource.get(2..), Standing::Acked));
            assert!(ads.entry(&key).failure.is_none());
        }
    }
}

#[test]
fn r07_another_control_planes_empty_word_counts() {
    let mut ads = Machine::new(Some(Variant::Delta), ServerFeatures::default(), 2);
    let (key, reason) = (Key::new(Kind::Endpoints, "a"), Key::new(Kind::Endpoints, "b"));
    ads.subscribe(std::slice::from_ref(&key));
    ads.opened();
    ads.request();
    ads.respond(Kind::Endpoints, "v1", &["a=1"]);
    ads.closed();
    ads.subscribe(&[reason]);
    ads.close(Some(StreamError::new("refused")));
    ads.ads.opened(1, ads.now);
    ads.drain(1);
    ads.take(1, response(Kind::Endpoints, "v1", &["a="]));
    assert_eq!(ads.value(&key), Some(""), "what two control planes say is never joined");
}

#[test]
fn x4_a_panic_in_the_comparison_with_what_is_in_use_costs_that_resource() {
    for variant in BOTH {
        let mut ads = holding_both(variant);
        assert_eq!(ads.respond(Kind::Listener, "v2", &["a=odd", "b=2"]), [listener("b")]);
        let error = ads.request().error.unwrap();
        assert!(error.contains("comparison") && error.contains("panicked"), "{error}");
        assert_eq!((ads.value(&listener("a")), ads.value(&listener("b"))), (Some("1"), Some("2")));
        assert_eq!(ads.entry(&listener("a")).standing, Standing::Nacked);
    }
}
