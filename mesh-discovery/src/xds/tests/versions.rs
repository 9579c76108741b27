//! Which versions a new stream tells of what is held.

use std::time::Duration;

use super::super::ads::{Retry, Standing};
use super::super::kind::{Key, Kind};
use super::super::message::{Ask, Body, Request, Resource, Response, StreamError, Variant};
use super::machine::{BOTH, Machine, TIMEOUT, initial, listener, response, strict};
use super::version;
use crate::bootstrap::ServerFeatures;

#[test]
fn x2_a_new_stream_asks_anew_for_what_the_last_one_complained_about() {
    for variant in BOTH {
        let deleted = |mark: &str| match variant {
            Variant::StateOfTheWorld => response(Kind::Listener, mark, &["b=1"]),
            Variant::Delta => Response { removed: vec!["a".to_owned()], ..response(Kind::Listener, mark, &[]) },
        };
        for complaint in [response(Kind::Listener, "v2", &["a=bad", "b=1"]), deleted("v2")] {
            let mut ads = Machine::of(variant);
            ads.subscribe(&[listener("a"), listener("b")]);
            ads.opened();
            ads.request();
            ads.respond(Kind::Listener, "v1", &["a=1", "b=1"]);
            ads.request();
            ads.take(0, complaint);
            ads.drain(0);
            assert!(ads.entry(&listener("a")).failure.is_some());

            // The control plane goes back to what it said before: as far as it knows, that is what we hold.
            ads.closed();
            ads.opened();
            let first = ads.request();
            match variant {
                Variant::StateOfTheWorld => assert_eq!(version(&first), "", "everything is asked for anew"),
                Variant::Delta => assert!(initial(&first).iter().all(|(name, _)| *name != "a"), "{first:?}"),
            }
            assert!(ads.respond(Kind::Listener, "v1", &["a=1", "b=1"]).is_empty(), "nobody sees a difference");
            assert_eq!(ads.entry(&listener("a")).standing, Standing::Acked);
            assert!(ads.entry(&listener("a")).failure.is_none());

            // The control run: without a complaint the versions are told.
            ads.request();
            ads.closed();
            ads.opened();
            let first = ads.request();
            match variant {
                Variant::StateOfTheWorld => assert_eq!(version(&first), "v1"),
                Variant::Delta => assert_eq!(initial(&first), [("a", "v1"), ("b", "v1")]),
            }
        }
    }
}

#[test]
fn x2_a_complaint_about_one_type_costs_no_other_its_version() {
    let mut ads = Machine::of(Variant::StateOfTheWorld);
    let routes = Key::new(Kind::Routes, "r");
    ads.subscribe(&[listener("a"), routes.clone()]);
    ads.opened();
    ads.drain(0);
    ads.respond(Kind::Listener, "v1", &["a=bad"]);
    ads.respond(Kind::Routes, "v1", &["r=1"]);
    ads.drain(0);
    ads.closed();
    ads.opened();
    let requests = ads.drain(0);
    assert_eq!(requests.iter().map(version).collect::<Vec<_>>(), ["", "v1"]);
}

#[test]
fn x2_a_new_stream_asks_anew_where_a_name_has_not_been_answered_by_the_last_one() {
    // Wanted since, or asked for in vain; the control is one that is held, and one of another type.
    let wanted = [(listener("b"), false), (listener("b"), true), (Key::new(Kind::Routes, "r"), false)];
    for (late, asked_before) in wanted {
        let mut ads = Machine::of(Variant::StateOfTheWorld);
        ads.subscribe(&[listener("a")]);
        ads.opened();
        ads.drain(0);
        ads.respond(Kind::Listener, "v1", &["a=1"]);
        ads.drain(0);
        let held = |ads: &mut Machine| {
            ads.closed();
            ads.opened();
            version(&ads.request()).to_owned()
        };
        assert_eq!(held(&mut ads), "v1");
        if asked_before {
            ads.subscribe(std::slice::from_ref(&late));
            ads.drain(0);
            ads.respond(Kind::Routes, "v1", &[]);
        }
        ads.closed();
        ads.subscribe(std::slice::from_ref(&late));
        assert_eq!(held(&mut ads), if late.kind == Kind::Listener { "" } else { "v1" }, "{late:?} {asked_before}");
    }
}

/// One that was given `a` and `b` in the state of the world.
fn holding() -> Machine {
    let mut ads = Machine::new(Some(Variant::StateOfTheWorld), strict(), 1);
    ads.subscribe(&[listener("a"), listener("b")]);
    ads.opened();
    ads.drain(0);
    ads.respond(Kind::Listener, "v1", &["a=1", "b=1"]);
    ads.drain(0);
    ads
}

/// What the next stream tells of listeners and routes.
fn told_next(ads: &mut Machine) -> Vec<String> {
    ads.drain(0);
    ads.closed();
    ads.opened();
    ads.drain(0).iter().map(|request| version(request).to_owned()).collect()
}

#[test]
fn x2_of_a_list_that_was_refused_the_version_before_says_nothing_to_the_next_stream() {
    for refused in [true, false] {
        let mut ads = holding();
        // `a` is deleted, which counts; what is wrong is nobody's.
        let mut without = response(Kind::Listener, "v2", &["b=1", "nobody=1"]);
        if refused {
            without.resources[1].body = Some(Body::new("type.googleapis.com/other", b"nobody=1".to_vec()));
        }
        ads.take(0, without);
        assert!(ads.missing(&listener("a")).is_some());
        assert_eq!(told_next(&mut ads), [if refused { "" } else { "v2" }]);
    }
    for again in [false, true] {
        let mut ads = holding();
        ads.respond(Kind::Listener, "v2", &["a=1", "without a name"]);
        assert_eq!(ads.value(&listener("b")), Some("1"), "it may have been that");
        // A sign of life mends nothing; a list does.
        let alive = Resource { name: "a".to_owned(), ..Resource::default() };
        ads.take(0, Response { resources: vec![alive], ..response(Kind::Listener, "v2", &[]) });
        if again {
            ads.respond(Kind::Listener, "v3", &["a=1"]);
            assert!(ads.missing(&listener("b")).is_some());
        }
        assert_eq!(told_next(&mut ads), [if again { "v3" } else { "" }]);
    }
}

#[test]
fn x2_what_is_of_another_type_is_there_all_the_same() {
    for foreign in [true, false] {
        let mut ads = holding();
        let mut odd = response(Kind::Listener, "v2", if foreign { &["a=1", "b=1"] } else { &["a=1"] });
        if foreign {
            odd.resources[1].body = Some(Body::new("type.googleapis.com/other", b"b=1".to_vec()));
        }
        ads.take(0, odd);
        // The control: what is left out.
        assert_eq!(ads.value(&listener("b")).is_some(), foreign);
    }
}

#[test]
fn x2_what_did_not_come_in_time_is_not_claimed_as_held() {
    let [r, late] = ["r", "late"].map(|name| Key::new(Kind::Routes, name));
    for comes in [false, true] {
        let mut ads = Machine::of(Variant::StateOfTheWorld);
        ads.subscribe(&[listener("a"), r.clone()]);
        ads.opened();
        ads.drain(0);
        ads.respond(Kind::Listener, "v1", &["a=1"]);
        ads.respond(Kind::Routes, "v1", &["r=1"]);
        ads.drain(0);
        ads.subscribe(std::slice::from_ref(&late));
        ads.drain(0);
        if comes {
            // The control.
            ads.respond(Kind::Routes, "v1", &["late=1"]);
        }
        ads.pass(TIMEOUT - Duration::from_secs(1));
        ads.respond(Kind::Listener, "v1", &["a=1"]);
        ads.pass(Duration::from_secs(1));
        assert_eq!(ads.missing(&late).is_some(), !comes);
        assert_eq!(told_next(&mut ads), ["v1", if comes { "v1" } else { "" }]);
    }
}

#[test]
fn a_server_without_delta_is_asked_for_it_again_after_a_while() {
    let mut ads = Machine::new(None, ServerFeatures::default(), 1);
    ads.subscribe(&[listener("a")]);
    let open = |ads: &mut Machine| {
        let variant = ads.ads.variant(0, ads.now);
        ads.opened();
        (variant, ads.request())
    };
    assert_eq!(open(&mut ads).0, Variant::Delta);
    assert_eq!(ads.close(Some(StreamError::unsupported("no delta"))), Retry::AtOnce);
    // Not at once: a connection that breaks all the time does not ask twice every time.
    for time in [0, 599] {
        ads.now += Duration::from_secs(time);
        let (variant, _) = open(&mut ads);
        assert_eq!(variant, Variant::StateOfTheWorld);
        ads.respond(Kind::Listener, "v1", &["a=1"]);
        assert_eq!(ads.close(None), Retry::Soon);
    }
    ads.now += Duration::from_secs(1);
    let (variant, first) = open(&mut ads);
    assert_eq!(variant, Variant::Delta);
    assert!(matches!(&first.ask, Ask::Changes { initial_versions, .. } if initial_versions.is_empty()), "{first:?}");

    // It still has none: the state of the world at once, and where that had been left.
    assert_eq!(ads.close(Some(StreamError::unsupported("no delta"))), Retry::AtOnce);
    let (variant, first) = open(&mut ads);
    assert_eq!((variant, version(&first)), (Variant::StateOfTheWorld, "v1"));
    assert_eq!(ads.value(&listener("a")), Some("1"), "that is no failure");
    assert_eq!(ads.close(None), Retry::Later);

    // The control: it has delta now, and the versions of either mean nothing in the other.
    ads.now += Duration::from_secs(600);
    let (variant, first) = open(&mut ads);
    assert!(variant == Variant::Delta && initial(&first).is_empty(), "{first:?}");
    ads.respond(Kind::Listener, "d1", &["a=1"]);
    ads.close(None);
    assert_eq!(initial(&open(&mut ads).1), [("a", "d1")]);
    ads.close(Some(StreamError::unsupported("no delta")));
    let (variant, first) = open(&mut ads);
    assert_eq!((variant, version(&first)), (Variant::StateOfTheWorld, ""));
}

#[test]
fn x2_what_had_no_name_is_not_claimed_as_held_whatever_came_after_it() {
    for unreadable in [true, false] {
        let mut ads = Machine::of(Variant::StateOfTheWorld);
        ads.subscribe(&["r", "s"].map(|name| Key::new(Kind::Routes, name)));
        ads.opened();
        ads.drain(0);
        ads.respond(Kind::Routes, "v1", &["r=1", "s=1"]);
        ads.respond(Kind::Routes, "v2", if unreadable { &["without a name"] } else { &["r=2"] });
        ads.respond(Kind::Routes, "v3", &["s=3"]);
        assert_eq!(told_next(&mut ads), [if unreadable { "" } else { "v3" }]);
    }
}

#[test]
fn a_control_plane_that_was_asked_for_everything_is_not_rightly_silent() {
    for refused in [true, false] {
        let mut ads = holding();
        let list: &[&str] = if refused { &["a=1", "b=1", "without a name"] } else { &["a=1", "b=1"] };
        ads.respond(Kind::Listener, "v2", list);
        assert_eq!(told_next(&mut ads), [if refused { "" } else { "v2" }]);
        ads.pass(TIMEOUT);
        // The control: of what is held in its latest version nothing need be said.
        assert_eq!(ads.ads.sessions()[0].unconfirmed_since.is_some(), refused);
    }
}

#[test]
fn x2_a_version_of_one_variant_is_not_claimed_in_the_other_after_a_stream_that_was_answered_in_part() {
    for all in [false, true] {
        let mut ads = Machine::new(None, ServerFeatures::default(), 1);
        ads.subscribe(&[listener("a"), listener("b"), Key::new(Kind::Routes, "r")]);
        let open = |ads: &mut Machine| {
            let variant = ads.ads.variant(0, ads.now);
            ads.opened();
            (variant, ads.drain(0))
        };
        let answer = |ads: &mut Machine, version: &str, all: bool| {
            ads.respond(Kind::Listener, version, if all { &["a=1", "b=1"] } else { &["a=1"] });
            if all {
                ads.respond(Kind::Routes, version, &["r=1"]);
            }
            ads.drain(0);
        };
        open(&mut ads);
        ads.close(Some(StreamError::unsupported("no delta")));
        assert_eq!(open(&mut ads).0, Variant::StateOfTheWorld);
        answer(&mut ads, "w1", true);
        ads.close(None);

        // It has delta now, and answers for `a` alone.
        ads.now += Duration::from_secs(600);
        let (variant, asked) = open(&mut ads);
        assert!(variant == Variant::Delta && asked.iter().all(|request| initial(request).is_empty()), "{asked:?}");
        answer(&mut ads, "d1", all);
        ads.close(None);
        let (variant, asked) = open(&mut ads);
        let claimed: Vec<_> = asked.iter().flat_map(initial).collect();
        // The control: what came in this variant is.
        let (one, every) = ([("a", "d1")], [("a", "d1"), ("b", "d1"), ("r", "d1")]);
        assert_eq!((variant, &claimed[..]), (Variant::Delta, if all { &every[..] } else { &one[..] }));

        // And back.
        ads.close(Some(StreamError::unsupported("no delta")));
        for versions in [["", ""], if all { ["w2", "w2"] } else { ["", ""] }] {
            let (variant, asked) = open(&mut ads);
            assert_eq!(variant, Variant::StateOfTheWorld);
            assert_eq!(asked.iter().map(version).collect::<Vec<_>>(), versions);
            answer(&mut ads, "w2", all);
            ads.close(None);
        }
    }
}

#[test]
fn x2_what_was_given_with_delta_is_not_claimed_by_the_version_of_an_answer_in_part() {
    for all in [false, true] {
        let mut ads = Machine::new(None, ServerFeatures::default(), 1);
        ads.subscribe(&["r", "s"].map(|name| Key::new(Kind::Routes, name)));
        let open = |ads: &mut Machine| {
            let variant = ads.ads.variant(0, ads.now);
            ads.opened();
            (variant, version_of_world(&ads.request()))
        };
        assert_eq!(open(&mut ads).0, Variant::Delta);
        ads.respond(Kind::Routes, "d1", &["r=1", "s=1"]);
        ads.close(None);
        open(&mut ads);
        ads.close(Some(StreamError::unsupported("no delta")));
        assert_eq!(open(&mut ads), (Variant::StateOfTheWorld, Some(String::new())));
        ads.respond(Kind::Routes, "w1", if all { &["r=1", "s=1"] } else { &["r=1"] });
        ads.close(None);
        // The control: what came in this variant is.
        assert_eq!(open(&mut ads).1.as_deref(), Some(if all { "w1" } else { "" }));
    }
}

/// The version that a request of the state of the world tells.
fn version_of_world(request: &Request) -> Option<String> {
    match &request.ask {
        Ask::World { version, .. } => Some(version.to_string()),
        Ask::Changes { .. } => None,
    }
}
