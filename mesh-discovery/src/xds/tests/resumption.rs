//! The protocol over several streams: what a new one is told of what is held, and who answers for it after a
//! fallback and a return.

use std::time::Duration;

use tokio::time::Instant;

use super::super::ads::{Ads, Known, Retry, SAVED, Standing};
use super::super::kind::{Key, Kind};
use super::super::message::{Body, Cause, ResourceError, Response, StreamError, Variant};
use super::super::saved::{Record, Saved};
use super::machine::{BOTH, Machine, TIMEOUT, initial, listener, response, strict};
use super::{asked, version};
use crate::bootstrap::ServerFeatures;

/// Two control planes, of which the first gave these; then its stream ended.
fn left(variant: Variant, features: ServerFeatures, resources: &[&str]) -> Machine {
    let mut ads = Machine::new(Some(variant), features, 2);
    let name = |text: &&str| listener(text.split_once('=').unwrap().0);
    ads.subscribe(&resources.iter().map(name).collect::<Vec<_>>());
    ads.opened();
    ads.request();
    ads.respond(Kind::Listener, "v1", resources);
    ads.request();
    ads.closed();
    ads
}

/// The same, and `b`, which is wanted since, is asked of the second, for the first cannot be reached.
fn fallen_back(variant: Variant, features: ServerFeatures, resources: &[&str]) -> Machine {
    let mut ads = left(variant, features, resources);
    ads.subscribe(&[listener("b")]);
    ads.close(Some(StreamError::new("refused")));
    ads.ads.opened(1, ads.now);
    ads.drain(1);
    ads
}

/// Two control planes. The first gave `a`, then it was away and the second gave `a` and `b`; now the first has said
/// something again, and nothing of either.
fn returned(variant: Variant, features: ServerFeatures) -> Machine {
    let mut ads = fallen_back(variant, features, &["a=1", "other=1"]);
    ads.take(1, response(Kind::Listener, "w1", &["a=2", "b=2"]));
    assert_eq!((ads.value(&listener("a")), ads.value(&listener("b"))), (Some("2"), Some("2")));

    ads.opened();
    let first = ads.request();
    assert_eq!(asked(&first), ["a", "b", "other"]);
    match variant {
        Variant::StateOfTheWorld => assert_eq!(version(&first), ""),
        Variant::Delta => assert!(initial(&first).is_empty(), "whoever was away has to say everything again"),
    }
    ads.respond(Kind::Listener, "v1", &["other=1"]);
    ads.ads.released(1);
    ads
}

#[test]
fn a71_what_only_the_fallback_had_is_deleted_in_time_when_the_better_one_is_back() {
    for (variant, features) in BOTH.into_iter().flat_map(|variant| [(variant, strict()), (variant, Default::default())])
    {
        let mut ads = returned(variant, features);
        assert_eq!(ads.value(&listener("other")), Some("1"));
        assert_eq!(ads.value(&listener("b")), Some("2"), "it may be on its way");
        ads.drain(0);
        assert!(ads.pass(TIMEOUT - Duration::from_millis(1)).is_empty());
        let mut told = ads.pass(Duration::from_millis(1));
        told.sort();
        assert_eq!(told, [listener("a"), listener("b")]);
        let entry = ads.entry(&listener("b"));
        assert_eq!(entry.standing, Standing::DoesNotExist);
        assert!(entry.failure.as_ref().unwrap().reason.contains("within 15s"));
        // The last good stays for those who have it, as after any deletion, unless errors are to cost it.
        assert_eq!(entry.good.is_some(), !features.fail_on_data_errors);
        assert_eq!(matches!(ads.known(&listener("b")), Known::Lost(..)), !features.fail_on_data_errors);

        // The control run: what it does give is in use for good.
        let mut ads = returned(variant, features);
        ads.respond(Kind::Listener, "v2", &["other=1", "b=3", "a=1"]);
        assert!(ads.pass(10 * TIMEOUT).is_empty());
        assert_eq!(ads.value(&listener("b")), Some("3"));
    }
}

#[test]
fn a71_what_only_the_fallback_had_is_deleted_also_if_the_better_one_was_silent_first() {
    for (variant, features) in BOTH.into_iter().flat_map(|variant| [(variant, strict()), (variant, Default::default())])
    {
        let mut ads = returned(variant, features);
        ads.respond(Kind::Listener, "v2", &["other=1", "a=1"]);
        ads.closed();
        ads.opened();
        ads.drain(0);
        assert_eq!(ads.pass(TIMEOUT).last(), Some(&listener("b")));
        assert!(ads.entry(&listener("b")).good.is_some(), "silence ends nothing");
        ads.pass(Duration::from_secs(1));
        ads.respond(Kind::Listener, "v3", &["other=1", "a=1"]);
        ads.pass(TIMEOUT - Duration::from_millis(1));
        assert!(ads.entry(&listener("b")).good.is_some(), "it may be on its way");
        ads.pass(Duration::from_millis(1));
        // The control: where data errors cost nothing, it stays.
        assert_eq!(ads.entry(&listener("b")).good.is_some(), !features.fail_on_data_errors, "{variant:?}");
        assert_eq!(ads.entry(&listener("b")).standing, Standing::DoesNotExist);
    }
}

#[test]
fn a71_the_better_ones_word_that_there_is_none_counts_at_once() {
    for (variant, features) in BOTH.into_iter().flat_map(|variant| [(variant, strict()), (variant, Default::default())])
    {
        let mut answer = response(Kind::Listener, "v2", &["other=1"]);
        match variant {
            Variant::Delta => answer.removed = vec!["b".to_owned()],
            Variant::StateOfTheWorld => {
                let message = "none".to_owned();
                answer.errors = vec![ResourceError { name: "b".to_owned(), cause: Cause::NotFound, message }];
            }
        }
        let mut ads = returned(variant, features);
        assert_eq!(ads.take(0, answer.clone()), [listener("b")]);
        assert_eq!(ads.missing(&listener("b")).is_some(), features.fail_on_data_errors);
        assert_eq!(matches!(ads.known(&listener("b")), Known::Lost(..)), !features.fail_on_data_errors);
    }
}

#[test]
fn a71_a_fallback_that_does_not_know_it_ends_nothing() {
    for variant in BOTH {
        let mut ads = fallen_back(variant, ServerFeatures::default(), &["a=1"]);
        ads.take(1, response(Kind::Listener, "w1", &["b=2"]));
        ads.drain(1);
        ads.pass(10 * TIMEOUT);
        assert_eq!(ads.entry(&listener("a")).good.as_ref().unwrap().value, "1", "the better one's outlives it");
        assert!(matches!(ads.known(&listener("a")), Known::Lost(..)), "and nothing new is built on it");
    }
}

#[test]
fn a71_a88_what_a_fallback_does_not_list_in_time_is_deleted_where_data_errors_count() {
    for (variant, features) in BOTH.into_iter().flat_map(|variant| [(variant, strict()), (variant, Default::default())])
    {
        let kept = |answer: Option<&[&str]>| {
            let mut ads = fallen_back(variant, features, &["a=1"]);
            match answer {
                Some(resources) => _ = ads.take(1, response(Kind::Listener, "w1", resources)),
                None => _ = ads.take(1, response(Kind::Routes, "w1", &[])),
            }
            ads.drain(1);
            ads.pass(TIMEOUT - Duration::from_millis(1));
            assert!(ads.entry(&listener("a")).good.is_some(), "it may be on its way");
            ads.pass(Duration::from_millis(1));
            ads.entry(&listener("a")).good.is_some()
        };
        let lists = variant == Variant::StateOfTheWorld;
        assert_eq!(kept(Some(&["b=2"])), !(lists && features.fail_on_data_errors), "{variant:?} {features:?}");
        assert!(kept(None), "the control: of another type alone it has spoken");
    }
}

#[test]
fn a71_a88_a_list_says_nothing_of_what_was_asked_for_after_it() {
    let of_other = |name: &str| listener(&format!("xdstp://other/envoy.config.listener.v3.Listener/{name}"));
    let (x, y) = (of_other("x"), of_other("y"));
    for variant in BOTH {
        let kept = |again: bool| {
            let mut ads = Machine::new(Some(variant), strict(), 2);
            ads.subscribe(&[listener("a"), x.clone()]);
            ads.opened();
            ads.drain(0);
            ads.respond(Kind::Listener, "v1", &["a=1", &format!("{}=1", x.name)]);
            ads.drain(0);
            ads.closed();
            // The fallback is asked for what has no authority, which lacks something, and lists that.
            ads.subscribe(&[listener("b")]);
            ads.close(Some(StreamError::new("refused")));
            ads.ads.opened(1, ads.now);
            assert_eq!(ads.drain(1).iter().flat_map(asked).collect::<Vec<_>>(), ["a", "b"]);
            let list = || response(Kind::Listener, "w1", &["a=1", "b=1"]);
            ads.take(1, list());
            ads.drain(1);
            ads.pass(Duration::from_secs(1));
            // Then for the other authority, too.
            ads.subscribe(std::slice::from_ref(&y));
            ads.drain(1);
            ads.pass(Duration::from_secs(1));
            ads.take(1, if again { list() } else { response(Kind::Routes, "w1", &[]) });
            ads.pass(TIMEOUT);
            assert_eq!(ads.entry(&x).standing, Standing::DoesNotExist);
            ads.entry(&x).good.is_some()
        };
        assert!(kept(false), "{variant:?}");
        // The control: where it lists all there is, and has done so since.
        assert_eq!(kept(true), variant == Variant::Delta);
    }
}

#[test]
fn a71_a_better_one_that_would_rather_be_slow_than_wrong_ends_nothing_by_silence() {
    let features = ServerFeatures { resource_timer_is_transient_error: true, ..Default::default() };
    let mut ads = returned(Variant::Delta, features);
    ads.drain(0);
    ads.pass(10 * TIMEOUT);
    assert_eq!(ads.entry(&listener("b")).standing, Standing::TimedOut);
    assert!(ads.entry(&listener("b")).good.is_some());
}

#[test]
fn a71_a_wish_renewed_while_two_control_planes_are_in_use_is_not_lost_on_the_one_that_had_been_asked() {
    for variant in BOTH {
        let mut ads = Machine::new(Some(variant), ServerFeatures::default(), 2);
        ads.subscribe(&[listener("a")]);
        ads.close(Some(StreamError::new("refused")));
        ads.ads.opened(1, ads.now);
        // The better one is back and was asked, the other one was not.
        ads.opened();
        ads.drain(0);
        ads.unsubscribe(&[listener("a")]);
        ads.respond(Kind::Listener, "v1", &["a=1"]);
        ads.subscribe(&[listener("a")]);
        assert_eq!(ads.value(&listener("a")), Some("1"), "{variant:?}");
        // Once it has heard of the end, nothing is left of it.
        ads.unsubscribe(&[listener("a")]);
        ads.drain(0);
        ads.subscribe(&[listener("a")]);
        assert_eq!(ads.known(&listener("a")), Known::Pending);
        assert_eq!(asked(&ads.request()), ["a"]);
    }
}

#[test]
fn a57_what_a_fallback_that_stayed_connected_is_asked_for_again_is_waited_for_no_longer_than_any() {
    for variant in BOTH {
        let of_other = "xdstp://other/envoy.config.route.v3.RouteConfiguration/x";
        let [a, x] = ["a", of_other].map(|name| Key::new(Kind::Routes, name));
        let mut ads = Machine::new(Some(variant), ServerFeatures::default(), 2);
        let mut topology = Machine::topology(Some(variant), ServerFeatures::default(), 2);
        topology.authorities[1].ordered = vec![1];
        ads.ads = Ads::new(ads.codec.clone(), topology, ads.now);
        ads.subscribe(&[a.clone(), x.clone()]);
        ads.close(Some(StreamError::new("refused")));
        ads.ads.opened(1, ads.now);
        ads.drain(1);
        ads.take(1, response(Kind::Routes, "w1", &[&format!("{of_other}=1")]));
        ads.drain(1);
        // The better one is back, of which the other one hears nothing before that is over.
        ads.opened();
        ads.drain(0);
        ads.respond(Kind::Routes, "v1", &[]);
        ads.close(Some(StreamError::new("broken")));
        ads.close(Some(StreamError::new("refused")));
        assert!(ads.drain(1).is_empty(), "{variant:?}: it has been asked");
        assert!(ads.pass(TIMEOUT - Duration::from_millis(1)).is_empty());
        assert_eq!(ads.pass(Duration::from_millis(1)), std::slice::from_ref(&a), "{variant:?}");
        assert!(ads.missing(&a).is_some_and(|reason| reason.contains("within 15s")));
        assert_eq!(ads.value(&x), Some("1"), "the control: what has come");
    }
}

#[test]
fn a71_a_stream_that_was_told_of_versions_is_opened_anew_when_another_ones_word_counts() {
    for variant in BOTH {
        let mut ads = left(variant, ServerFeatures::default(), &["a=1"]);
        ads.close(Some(StreamError::new("refused")));
        ads.opened();
        ads.request();
        assert!(ads.ads.take_given_up().is_empty(), "everything is there");
        ads.subscribe(&[listener("b")]);
        ads.drain(0);
        ads.pass(TIMEOUT - Duration::from_millis(1));
        assert!(ads.ads.take_given_up().is_empty() && !ads.ads.wants(1), "it is there, and has its time to answer");
        ads.pass(Duration::from_millis(1));
        assert_eq!(ads.ads.take_given_up(), [0], "it believes that we hold a");
        assert!(ads.is_silent());
        ads.opened();
        match (variant, ads.request()) {
            (Variant::StateOfTheWorld, first) => assert_eq!(version(&first), ""),
            (Variant::Delta, first) => assert!(initial(&first).is_empty()),
        }
    }
}

/// The first of two control planes gave `a`; on its new stream, which was told so, it has nothing to say. Then `b` is
/// asked for.
fn resumed(patience: Duration) -> Machine {
    let mut ads = left(Variant::Delta, ServerFeatures::default(), &["a=1"]);
    ads.opened();
    assert_eq!(initial(&ads.request()), [("a", "v1")]);
    ads.pass(patience);
    ads.subscribe(&[listener("b")]);
    ads.drain(0);
    ads
}

#[test]
fn a71_a_control_plane_that_is_rightly_silent_is_reachable_whatever_it_does_not_have() {
    let mut ads = resumed(TIMEOUT);
    assert_eq!(ads.pass(TIMEOUT), [listener("b")]);
    assert!(ads.missing(&listener("b")).is_some(), "there is none");
    assert!(ads.ads.sessions()[0].failing.is_none() && !ads.ads.wants(1) && ads.ads.take_given_up().is_empty());

    // The control run: of one that owed an answer from the start, silence is a failure.
    let mut ads = resumed(Duration::ZERO);
    ads.pass(TIMEOUT);
    assert!(ads.ads.sessions()[0].failing.is_some() && ads.ads.wants(1));
}

#[test]
fn a71_a_better_one_that_is_back_is_asked_whatever_became_of_the_worse_one() {
    for (variant, patience) in
        BOTH.into_iter().flat_map(|variant| [Duration::ZERO, TIMEOUT].map(|time| (variant, time)))
    {
        let mut ads = Machine::new(Some(variant), ServerFeatures::default(), 2);
        ads.close(Some(StreamError::new("refused")));
        ads.ads.closed(1, Some(StreamError::new("refused")), ads.now);
        assert!(ads.ads.wants(1), "whoever starts wants to be ready");
        // The control.
        ads.subscribe(&[listener("early")]);
        assert!(matches!(ads.known(&listener("early")), Known::Lost(..)));
        ads.unsubscribe(&[listener("early")]);
        ads.opened();
        ads.pass(patience);
        assert_eq!(ads.ads.wants(1), patience.is_zero(), "once its silence is understood");
        ads.subscribe(&[listener("a")]);
        assert_eq!(ads.known(&listener("a")), Known::Pending, "{variant:?} {patience:?}");
        ads.drain(0);
        ads.respond(Kind::Listener, "v1", &["a=1"]);
        assert_eq!(ads.value(&listener("a")), Some("1"));
    }
}

#[test]
fn a71_the_silence_of_one_that_has_been_asked_nothing_says_nothing_of_it() {
    for (variant, answers) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let mut ads = Machine::new(Some(variant), ServerFeatures::default(), 2);
        ads.opened();
        ads.pass(10 * TIMEOUT);
        assert!(!ads.ads.wants(1) && ads.ads.sessions()[0].unconfirmed_since.is_none(), "nothing was owed");
        ads.subscribe(&[listener("a")]);
        ads.drain(0);
        assert!(ads.ads.sessions()[0].unconfirmed_since.is_some() && !ads.ads.is_confirmed());
        if answers {
            // The control: it is there, and does not have it.
            ads.respond(Kind::Routes, "v1", &[]);
        }
        ads.pass(TIMEOUT);
        assert_eq!((ads.ads.wants(1), ads.missing(&listener("a")).is_some()), (!answers, answers), "{variant:?}");
    }
}

#[test]
fn what_an_earlier_run_held_is_not_given_up_for_one_that_has_never_spoken() {
    let key = Key::new(Kind::Routes, "a");
    for (variant, speaks) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let mut ads = Machine::of(variant);
        ads.ads.restore(saved(&["a=0"], ads.now + 100 * TIMEOUT));
        ads.opened();
        if speaks {
            // The control.
            ads.subscribe(&[listener("b")]);
            ads.drain(0);
            ads.respond(Kind::Listener, "v1", &["b=1"]);
        }
        ads.pass(10 * TIMEOUT);
        ads.subscribe(std::slice::from_ref(&key));
        assert_eq!(ads.value(&key), (!speaks).then_some("0"), "{variant:?}");
        ads.drain(0);
        ads.pass(10 * TIMEOUT);
        assert_eq!((ads.ads.saved_in_use(), ads.ads.is_restored()), (usize::from(!speaks), !speaks), "{variant:?}");
        assert_eq!(ads.ads.is_confirmed_in_part(), speaks, "what is on disk is not written anew");
    }
}

#[test]
fn r10_what_rests_on_silence_alone_is_void_when_the_connection_breaks() {
    let broken = || Some(StreamError::new("keep-alive timed out"));
    for variant in BOTH {
        // One that answered, then hung; and one that was rightly silent, then was asked for more.
        let answered = || {
            let mut ads = Machine::new(Some(variant), ServerFeatures::default(), 2);
            ads.subscribe(&[listener("a")]);
            ads.opened();
            ads.request();
            ads.respond(Kind::Listener, "v1", &["a=1"]);
            ads.pass(Duration::from_secs(1));
            ads.subscribe(&[listener("b")]);
            ads.drain(0);
            ads
        };
        let begin: [&dyn Fn() -> Machine; 2] = [&answered, &|| resumed(TIMEOUT)];
        for begin in begin {
            let mut ads = begin();
            assert_eq!(ads.pass(TIMEOUT), [listener("b")]);
            assert!(ads.missing(&listener("b")).is_some(), "for all that is known");
            assert_eq!(ads.close(broken()), Retry::Soon);
            assert_eq!(ads.ads.take_changed(), [listener("b")]);
            assert_eq!(ads.known(&listener("b")), Known::Pending);
            ads.close(Some(StreamError::new("refused")));
            assert!(ads.ads.wants(1), "the next one is asked");

            // The control runs: it ended in order; it has spoken since.
            let mut ads = begin();
            ads.pass(TIMEOUT);
            ads.close(None);
            assert!(ads.missing(&listener("b")).is_some());
            ads.close(Some(StreamError::new("refused")));
            assert!(!ads.ads.wants(1));
            let mut ads = begin();
            ads.pass(TIMEOUT);
            ads.respond(Kind::Listener, "v2", &["a=1"]);
            ads.close(broken());
            assert!(ads.missing(&listener("b")).is_some());
        }
    }
}

#[test]
fn x9_a_better_one_that_is_asked_from_scratch_and_says_nothing_is_not_well() {
    for (variant, answers) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let mut ads = fallen_back(variant, ServerFeatures::default(), &["a=1"]);
        ads.take(1, response(Kind::Listener, "w1", &["a=2", "b=2"]));
        ads.opened();
        ads.drain(0);
        if answers {
            // The control run.
            ads.respond(Kind::Listener, "v2", &["a=1", "b=1"]);
        }
        ads.pass(10 * TIMEOUT);
        assert_eq!(ads.ads.sessions()[0].failing.is_some(), !answers);
        assert_eq!(ads.close(None), if answers { Retry::Soon } else { Retry::Later });
    }
}

#[test]
fn a57_what_a_silent_control_plane_owes_times_out_where_no_other_is_needed() {
    for variant in BOTH {
        let mut ads = returned(variant, ServerFeatures::default());
        ads.respond(Kind::Listener, "v2", &["other=1", "a=1"]);
        ads.closed();
        ads.opened();
        ads.drain(0);
        assert_eq!(ads.pass(TIMEOUT).last(), Some(&listener("b")));
        assert_eq!(ads.entry(&listener("b")).standing, Standing::DoesNotExist);
        // The next name is asked for here before anybody else is.
        ads.subscribe(&[listener("c")]);
        assert!(!ads.is_silent() && !ads.ads.wants(1));
        // The control run: then it is needed.
        ads.drain(0);
        ads.pass(TIMEOUT);
        assert!(ads.ads.wants(1));
    }
}

#[test]
fn a71_what_nobody_wants_is_forgotten_whoever_is_asked_meanwhile() {
    let a = [listener("a")];
    for variant in BOTH {
        // Its end was to be told to the first, which is given up.
        let mut ads = left(variant, ServerFeatures::default(), &["a=1"]);
        ads.opened();
        ads.drain(0);
        ads.subscribe(&[listener("b")]);
        ads.drain(0);
        ads.unsubscribe(&a);
        assert_eq!(ads.ads.unwanted(), 1, "it is to be told first");
        ads.pass(TIMEOUT);
        assert_eq!(ads.ads.take_given_up(), [0]);
        assert_eq!(ads.ads.unwanted(), 1, "the second has yet to speak");
        ads.ads.opened(1, ads.now);
        ads.drain(1);
        ads.take(1, response(Kind::Listener, "w1", &["b=2"]));
        assert_eq!(ads.ads.unwanted(), 0);

        // It was to be told to the second, and the first is back, which was asked for it or was not.
        for (asked, heard) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut ads = fallen_back(variant, ServerFeatures::default(), &["a=1"]);
            ads.take(1, response(Kind::Listener, "w1", &["a=2", "b=2"]));
            ads.drain(1);
            if asked {
                ads.opened();
                ads.drain(0);
            }
            ads.unsubscribe(&a);
            if !asked {
                ads.opened();
                ads.request();
            }
            ads.respond(Kind::Listener, "v2", &["b=3"]);
            match heard {
                true => _ = ads.drain(1),
                false => _ = ads.ads.released(1),
            }
            assert_eq!(ads.ads.unwanted(), usize::from(asked), "{asked} {heard}");
            ads.drain(0);
            assert_eq!(ads.ads.unwanted(), 0, "{asked} {heard}");
            assert_eq!(ads.value(&listener("b")), Some("3"));
        }
    }
}

#[test]
fn a71_the_last_wish_of_an_authority_is_forgotten_when_its_fallback_has_heard_of_its_end() {
    let name = "xdstp://other/envoy.config.listener.v3.Listener/a";
    for (variant, renewed) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let mut ads = Machine::new(Some(variant), ServerFeatures::default(), 2);
        ads.subscribe(&[listener(name)]);
        ads.close(Some(StreamError::new("refused")));
        ads.ads.opened(1, ads.now);
        ads.drain(1);
        ads.take(1, response(Kind::Listener, "w1", &[&format!("{name}=1")]));
        ads.drain(1);
        ads.unsubscribe(&[listener(name)]);
        if renewed {
            ads.subscribe(&[listener(name)]);
            assert_eq!(ads.value(&listener(name)), Some("1"), "it has not heard of the end");
            ads.unsubscribe(&[listener(name)]);
        }
        assert_eq!(ads.ads.unwanted(), 1);
        ads.drain(1);
        assert_eq!(ads.ads.unwanted(), 0);
    }
}

/// Routes of an earlier run.
fn saved(texts: &[&str], until: Instant) -> Saved {
    saved_of(Kind::Routes, texts, until)
}

fn saved_of(kind: Kind, texts: &[&str], until: Instant) -> Saved {
    let record = |text: &&str| {
        let body = Body::new(kind.type_url(), text.as_bytes().to_vec());
        let record = Record { giver: 0, version: "v0".into(), body, confirmed: 0, since: None, until: Some(until) };
        (Key::new(kind, &text[..1]), record)
    };
    texts.iter().map(record).collect()
}

#[test]
fn what_an_earlier_run_held_serves_each_name_until_it_is_answered() {
    for variant in BOTH {
        let key = |name| Key::new(Kind::Routes, name);
        let mut ads = Machine::of(variant);
        let too_old = ads.now + 10 * TIMEOUT;
        ads.ads.restore(saved(&["a=0", "b=0", "c=0", "d=0"], too_old));
        ads.subscribe(&[key("a"), key("b")]);
        ads.opened();
        ads.drain(0);
        ads.respond(Kind::Routes, "v1", &["a=1"]);
        assert_eq!((ads.value(&key("a")), ads.value(&key("b"))), (Some("1"), Some("0")), "nobody has spoken of b");
        // A wish of today for what was known yesterday: the control plane is there to be asked.
        ads.subscribe(&[key("c")]);
        assert_eq!(ads.known(&key("c")), Known::Pending);
        ads.drain(0);
        ads.unsubscribe(&[key("c")]);
        ads.drain(0);
        // The control run: while it is not, yesterday's serves.
        ads.closed();
        ads.subscribe(&[key("c")]);
        assert_eq!(ads.value(&key("c")), Some("0"));
        assert_eq!(ads.ads.next_deadline(), Some(too_old));
        ads.opened();
        ads.drain(0);
        ads.respond(Kind::Routes, "v1", &["a=1", "c=1"]);

        // What has been answered does not come back, given or not.
        ads.pass(TIMEOUT);
        assert!(ads.missing(&key("b")).is_some());
        for name in ["a", "b"] {
            ads.unsubscribe(&[key(name)]);
            ads.drain(0);
            ads.subscribe(&[key(name)]);
            assert_eq!(ads.known(&key(name)), Known::Pending, "{name}");
        }
        // All has been answered: nothing of it is kept, not even for an outage.
        assert!(!ads.ads.is_restored());
        ads.closed();
        assert_eq!(ads.ads.next_deadline(), None);
        ads.subscribe(&[key("d")]);
        assert_eq!(ads.known(&key("d")), Known::Pending);
        assert_eq!(ads.ads.saved_in_use(), 0);
        assert!(ads.ads.entries().all(|(.., entry)| entry.giver() != Some(SAVED)));
    }
}

#[test]
fn what_an_earlier_run_held_is_over_once_a_control_plane_gives_or_denies_it_and_not_by_a_mistake() {
    let key = |name| Key::new(Kind::Routes, name);
    let given = |text| response(Kind::Routes, "v1", &[text]);
    let error = |cause| {
        let error = ResourceError { name: "a".to_owned(), cause, message: String::new() };
        Response { errors: vec![error], ..response(Kind::Routes, "v1", &[]) }
    };
    for variant in BOTH {
        for (said, is_over) in [
            (given("a=1"), true),
            (given("a=0"), true),
            (error(Cause::NotFound), true),
            (error(Cause::Denied), true),
            (given("a=bad"), false),
            (error(Cause::Other), false),
        ] {
            let mut ads = Machine::of(variant);
            ads.ads.restore(saved(&["a=0", "b=0"], ads.now + 100 * TIMEOUT));
            ads.subscribe(&[key("a"), key("b")]);
            ads.opened();
            ads.drain(0);
            ads.take(0, said.clone());
            let is_kept = |name| ads.ads.saved().any(|(saved, _)| *saved == key(name));
            assert_eq!((is_kept("a"), is_kept("b")), (!is_over, true), "{variant:?} {said:?}");
            assert_eq!(ads.ads.saved_in_use(), if is_over { 1 } else { 2 }, "{variant:?} {said:?}");
        }
    }
}

#[test]
fn what_an_earlier_run_held_serves_nobody_once_it_is_too_old() {
    let key = Key::new(Kind::Routes, "a");
    for (age, value) in [(TIMEOUT, Some("0")), (10 * TIMEOUT, None)] {
        let mut ads = Machine::of(Variant::Delta);
        let too_old = ads.now + 10 * TIMEOUT;
        let mut old = saved(&["a=0"], too_old);
        old.extend(saved(&["b=0"], too_old + 10 * TIMEOUT));
        ads.ads.restore(old);
        ads.pass(age);
        ads.subscribe(std::slice::from_ref(&key));
        assert_eq!(ads.value(&key), value);
        let other = Key::new(Kind::Routes, "b");
        ads.subscribe(std::slice::from_ref(&other));
        assert_eq!(ads.value(&other), Some("0"), "control: each by its own age");
    }
}

#[test]
fn a88_what_an_earlier_run_held_ends_by_a_list_without_it_where_silence_ends_nothing() {
    let slow = ServerFeatures { resource_timer_is_transient_error: true, ..Default::default() };
    for (variant, kind) in BOTH.into_iter().flat_map(|variant| [(variant, Kind::Listener), (variant, Kind::Routes)]) {
        let mut ads = Machine::new(Some(variant), slow, 1);
        ads.ads.restore(saved_of(kind, &["a=0"], ads.now + 100 * TIMEOUT));
        let [a, b] = ["a", "b"].map(|name| Key::new(kind, name));
        ads.subscribe(&[a.clone(), b]);
        ads.opened();
        ads.drain(0);
        ads.respond(kind, "v1", &["b=1"]);
        ads.drain(0);
        ads.pass(2 * TIMEOUT - Duration::from_millis(1));
        assert_eq!(ads.value(&a), Some("0"), "it may be on its way");
        ads.pass(Duration::from_millis(1));
        assert_eq!(ads.entry(&a).standing, Standing::TimedOut);
        // The controls: with delta, and of routes, nobody lists what there is.
        let listed = variant == Variant::StateOfTheWorld && kind == Kind::Listener;
        assert_eq!(ads.entry(&a).good.is_none(), listed, "{variant:?} {kind}");
        assert_eq!(ads.ads.saved_in_use(), usize::from(!listed));
        // It is late and not missing, for this control plane would have said so.
        assert!(matches!(ads.known(&a), Known::Lost(..)));
    }
}

#[test]
fn what_an_earlier_run_held_ends_if_a_control_plane_that_was_silent_speaks_and_does_not_give_it() {
    let key = |name| Key::new(Kind::Routes, name);
    // It answers late, or only on its next stream.
    for (variant, ended) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let begin = || {
            let mut ads = Machine::of(variant);
            ads.ads.restore(saved(&["a=0", "b=0"], ads.now + 100 * TIMEOUT));
            ads.subscribe(&[key("a"), key("b")]);
            ads.opened();
            ads.drain(0);
            ads.pass(TIMEOUT);
            assert_eq!(ads.ads.saved_in_use(), 2, "silence ends nothing");
            ads.pass(TIMEOUT / 3);
            if ended {
                ads.closed();
                ads.opened();
                ads.drain(0);
            }
            ads
        };
        let mut ads = begin();
        ads.respond(Kind::Routes, "v1", &["b=1"]);
        assert_eq!((ads.value(&key("a")), ads.value(&key("b"))), (Some("0"), Some("1")), "it may be on its way");
        ads.pass(TIMEOUT - Duration::from_millis(1));
        assert_eq!(ads.ads.saved_in_use(), 1);
        assert_eq!(ads.pass(Duration::from_millis(1)), [key("a")]);
        assert!(ads.missing(&key("a")).is_some(), "{variant:?} {ended}");
        assert!(ads.ads.saved_in_use() == 0 && !ads.ads.is_restored());

        // The control: it goes on saying nothing.
        let mut ads = begin();
        ads.pass(10 * TIMEOUT);
        assert_eq!(ads.ads.saved_in_use(), 2);
    }
}
