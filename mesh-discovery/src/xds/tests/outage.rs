//! What is let go of while no control plane speaks is there for whoever wants it again.

use super::super::kind::{Key, Kind};
use super::super::message::{Body, StreamError, Variant};
use super::super::saved::{Record, Saved};
use super::machine::{BOTH, Machine, TIMEOUT, listener, response};

/// More than are kept, if each use counted.
const USES: usize = 1100;

/// A machine that holds `a`, and `others` besides.
fn holding(variant: Variant, others: usize) -> Machine {
    let names: Vec<String> = (0..others).map(|n| format!("b{n}")).chain(["a".to_owned()]).collect();
    let mut ads = Machine::of(variant);
    ads.subscribe(&names.iter().map(|name| listener(name)).collect::<Vec<_>>());
    ads.opened();
    ads.drain(0);
    let texts: Vec<String> = names.iter().map(|name| format!("{name}=1")).collect();
    ads.respond(Kind::Listener, "v1", &texts.iter().map(String::as_str).collect::<Vec<_>>());
    ads.drain(0);
    ads
}

/// Wants it, lets it go, and has everything said that there is to say; gives its value.
fn use_once(ads: &mut Machine, name: &str) -> Option<String> {
    ads.subscribe(&[listener(name)]);
    let value = ads.value(&listener(name)).map(str::to_owned);
    ads.unsubscribe(&[listener(name)]);
    ads.drain(0);
    value
}

#[test]
fn r09_what_is_used_now_and_then_in_an_outage_is_lost_by_no_number_of_uses() {
    for variant in BOTH {
        let mut ads = holding(variant, 1);
        ads.close(Some(StreamError::new("it went away")));
        ads.unsubscribe(&["a", "b0"].map(listener));
        for _ in 0..USES {
            assert_eq!(use_once(&mut ads, "a").as_deref(), Some("1"));
        }
        assert_eq!(use_once(&mut ads, "b0").as_deref(), Some("1"), "it was let go of once");
        assert_eq!(ads.ads.unwanted(), 2);

        // The control: of too many, those that were used last stay.
        let mut ads = holding(variant, USES);
        ads.close(Some(StreamError::new("it went away")));
        for n in 0..USES {
            ads.unsubscribe(&[listener(&format!("b{n}"))]);
        }
        assert_eq!((use_once(&mut ads, "b0"), use_once(&mut ads, "b1099").as_deref()), (None, Some("1")));
        assert_eq!(ads.ads.unwanted(), 1024);
    }
}

#[test]
fn r09_streams_that_open_and_end_in_an_outage_empty_nothing() {
    for variant in BOTH {
        let mut ads = holding(variant, 1);
        ads.close(Some(StreamError::new("it went away")));
        for _ in 0..3 {
            assert_eq!(use_once(&mut ads, "a").as_deref(), Some("1"));
            ads.opened();
            ads.drain(0);
            ads.close(Some(StreamError::new("no control plane behind this socket")));
        }
        assert_eq!(use_once(&mut ads, "a").as_deref(), Some("1"));

        // The control: one that speaks is asked again, and what nobody wants then is forgotten.
        ads.opened();
        ads.drain(0);
        ads.respond(Kind::Listener, "v2", &["b0=2"]);
        assert_eq!(ads.ads.unwanted(), 0);
        assert_eq!(use_once(&mut ads, "a"), None);
    }
}

#[test]
fn r09_what_is_let_go_of_while_a_control_plane_is_mute_is_kept() {
    for variant in BOTH {
        let mut ads = holding(variant, 1);
        ads.close(Some(StreamError::new("it hangs")));
        ads.opened();
        ads.drain(0);
        for _ in 0..3 {
            // Asked for, and its end told, on the stream that nothing comes on.
            assert_eq!(use_once(&mut ads, "a").as_deref(), Some("1"));
        }
        ads.respond(Kind::Listener, "v2", &["b0=2"]);
        assert_eq!(ads.ads.unwanted(), 0, "the control: it speaks");
    }
}

#[test]
fn what_nobody_wants_any_more_is_forgotten_where_silence_is_right() {
    let mut ads = holding(Variant::Delta, 0);
    ads.close(None);
    ads.unsubscribe(&[listener("a")]);
    assert_eq!(ads.ads.unwanted(), 1);
    ads.opened();
    ads.drain(0);
    assert_eq!(ads.ads.unwanted(), 1);
    ads.pass(TIMEOUT);
    assert_eq!(ads.ads.unwanted(), 0);
}

#[test]
fn what_is_left_of_an_earlier_run_is_looked_through_no_more_than_there_is_news_of_it() {
    let other = "xdstp://other/envoy.config.listener.v3.Listener/b";
    let mut ads = Machine::apart(Variant::Delta);
    let until = Some(ads.now + 1000 * TIMEOUT);
    let record = |body: &str| Record {
        giver: 0,
        version: "v0".into(),
        body: Body::new(Kind::Listener.type_url(), body.as_bytes().to_vec()),
        confirmed: 0,
        since: None,
        until,
    };
    let saved = [(listener("a"), record("a=0")), (listener(other), record(&format!("{other}=0")))];
    ads.ads.restore(Saved::from(saved));
    ads.subscribe(&["a", "c"].map(listener));
    ads.opened();
    ads.drain(0);
    assert_eq!(ads.value(&listener("a")), Some("0"));
    ads.respond(Kind::Listener, "v1", &["c=1"]);
    assert_eq!(ads.ads.saved().count(), 2, "there is no word of it yet");
    ads.respond(Kind::Listener, "v2", &["a=1"]);
    assert_eq!(ads.ads.saved().count(), 1, "what nobody has been asked for may be of use yet");
    for n in 0..3 {
        ads.respond(Kind::Listener, "v3", &[&format!("a={n}")]);
        assert!(!ads.ads.looks_through_saved());
    }
    // The control: its own control plane comes to speak.
    ads.subscribe(&[listener(&other.replace("/b", "/d"))]);
    ads.ads.opened(1, ads.now);
    ads.drain(1);
    ads.take(1, response(Kind::Listener, "w1", &[&format!("{}=1", other.replace("/b", "/d"))]));
    assert!(!ads.ads.is_restored());
}

#[test]
fn what_is_refused_for_what_it_brings_about_gives_its_place_on_disk_back() {
    for (variant, refused) in BOTH.into_iter().flat_map(|variant| [(variant, true), (variant, false)]) {
        let mut ads = Machine::of(variant);
        ads.ads.restore([record_of(listener("a"), 1, 0), record_of(listener("b"), 1, 0)].into());
        ads.subscribe(&[listener("a"), listener("b")]);
        ads.opened();
        ads.drain(0);
        ads.ads.response(0, response(Kind::Listener, "v1", &["a=1"]), ads.now);
        if refused {
            assert!(ads.ads.refuse(&listener("a"), "what rests on it cannot be made"));
        }
        ads.ads.conclude();
        // What rests on it stays in use.
        let value = ads.entry(&listener("a")).value().map(String::as_str);
        assert_eq!(value, Some(if refused { "0" } else { "1" }));
        let kept = ads.ads.saved().any(|(key, _)| *key == listener("a"));
        assert_eq!(kept, refused, "{variant:?}: what is in use, the next run is to have");
    }
}

/// What an earlier run was given by this control plane, and when it heard of that last.
fn record_of(key: Key, giver: u64, confirmed: u64) -> (Key, Record) {
    let body = Body::new(key.kind.type_url(), format!("{}=0", key.name).into_bytes());
    let record = Record { giver, version: "v0".into(), body, confirmed, since: None, until: None };
    (key, record)
}

#[test]
fn r05_of_what_earlier_runs_were_given_by_two_control_planes_that_serves_whose_was_heard_of_last() {
    let other = "xdstp://other/envoy.config.listener.v3.Listener/c";
    for two in [true, false] {
        let mut ads = Machine::of(Variant::Delta);
        let of_a = if two { 1 } else { 2 };
        let all = [("a", of_a, 5), ("b", 2, 9), (other, 1, 1)];
        let record = |(name, giver, confirmed)| record_of(listener(name), giver, confirmed);
        ads.ads.restore(all.map(record).into());
        assert_eq!(ads.ads.saved().count(), 3, "for the next run all of it is there");
        ads.subscribe(&["a", "b", other].map(listener));
        let has = |name| ads.value(&listener(name)).is_some();
        assert_eq!([has("a"), has("b"), has(other)], [!two, true, true], "authorities stand for themselves");
    }
}

#[test]
fn what_is_kept_for_the_next_run_goes_when_a_control_plane_that_is_asked_for_it_speaks() {
    for (variant, given_up) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let mut ads = Machine::of(variant);
        ads.ads.restore([record_of(listener("a"), 1, 0), record_of(listener("b"), 1, 0)].into());
        ads.subscribe(&[listener("a")]);
        ads.opened();
        ads.drain(0);
        ads.respond(Kind::Listener, "v1", &["a=1"]);
        ads.drain(0);
        let is_kept = |ads: &Machine| ads.ads.saved().any(|(key, _)| *key == listener("b"));
        assert!(!ads.ads.is_restored() && is_kept(&ads), "{variant:?}");
        // In an outage somebody wants it, whom nobody answers.
        ads.close(Some(StreamError::new("broken")));
        ads.subscribe(&[listener("b")]);
        assert!(ads.value(&listener("b")).is_none() && is_kept(&ads), "{variant:?}");
        if given_up {
            ads.unsubscribe(&[listener("b")]);
        }
        ads.opened();
        ads.drain(0);
        assert!(is_kept(&ads), "{variant:?}: it has said nothing yet");
        ads.respond(Kind::Listener, "v2", &["a=1"]);
        assert_eq!(is_kept(&ads), given_up, "{variant:?}");
        // The control: from now on the word of the control plane counts at once.
        ads.subscribe(&[listener("b")]);
        assert!(!is_kept(&ads), "{variant:?}");
    }
}
