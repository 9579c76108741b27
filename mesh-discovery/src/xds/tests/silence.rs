//! What the silence of a control plane says, and when it counts as away.

use std::time::Duration;

use super::super::ads::{Known, Retry, Standing};
use super::super::kind::Kind;
use super::super::message::StreamError;
use super::machine::{BOTH, Machine, TIMEOUT, listener, response};
use crate::bootstrap::ServerFeatures;

#[test]
fn a_stream_on_which_nothing_is_owed_is_good_after_a_while_and_one_that_owes_is_not() {
    for (variant, owes) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let mut ads = Machine::of(variant);
        ads.subscribe(&[listener("a")]);
        ads.opened();
        ads.request();
        ads.respond(Kind::Listener, "v1", &["a=1"]);
        ads.request();
        assert_eq!(ads.close(Some(StreamError::new("restart"))), Retry::Soon, "it had answered");
        assert_eq!(ads.close(Some(StreamError::new("refused"))), Retry::Later);
        if owes {
            ads.subscribe(&[listener("b")]);
        }
        ads.opened();
        ads.request();
        ads.pass(TIMEOUT - Duration::from_millis(1));
        let vouched = |ads: &Machine| {
            let session = &ads.ads.sessions()[0];
            (session.last_error.is_none(), session.unconfirmed_since.is_none())
        };
        assert_eq!(vouched(&ads), (false, false), "too early to tell");
        ads.pass(Duration::from_millis(1));
        assert_eq!(vouched(&ads), (!owes, !owes));
        ads.pass(10 * TIMEOUT);
        assert_eq!(vouched(&ads), (!owes, !owes), "what did not come in time is no sign of health");
        assert_eq!(ads.close(None), if owes { Retry::Later } else { Retry::Soon });
    }
}

#[test]
fn after_a_quiet_return_a_new_name_is_on_its_way() {
    let second = Duration::from_secs(1);
    for (variant, time) in
        BOTH.into_iter().flat_map(|variant| [None, Some(second), Some(TIMEOUT)].map(|t| (variant, t)))
    {
        let mut ads = Machine::of(variant);
        ads.subscribe(&[listener("a")]);
        ads.opened();
        ads.request();
        ads.respond(Kind::Listener, "v1", &["a=1"]);
        ads.request();
        ads.closed();
        ads.subscribe(&[listener("early")]);
        ads.close(Some(StreamError::new("refused")));
        let is_lost = |ads: &Machine, name| match ads.known(&listener(name)) {
            Known::Pending => false,
            Known::Lost(reason, _) => reason.contains("refused"),
            other => panic!("{other:?}"),
        };
        assert!(is_lost(&ads, "early"));
        ads.unsubscribe(&[listener("early")]);
        if let Some(time) = time {
            ads.opened();
            ads.request();
            ads.pass(time);
        }
        ads.subscribe(&[listener("b")]);
        // The control run: without a new stream, that none could be had is what counts.
        assert_eq!(is_lost(&ads, "b"), time.is_none(), "{variant:?} {time:?}");
        if time.is_none() {
            ads.opened();
            assert!(!is_lost(&ads, "b"), "it has taken a stream");
            ads.close(Some(StreamError::new("refused")));
            assert!(is_lost(&ads, "b"), "and lost it before an answer");
            ads.opened();
        }
        // The answer is owed all the same.
        ads.request();
        ads.pass(TIMEOUT);
        assert_eq!(ads.entry(&listener("b")).standing, Standing::DoesNotExist);
    }
}

#[test]
fn a_control_plane_that_is_back_and_says_nothing_is_away_when_its_time_is_over() {
    for (variant, answers) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let mut ads = Machine::of(variant);
        ads.subscribe(&[listener("a"), listener("b")]);
        ads.close(Some(StreamError::new("refused")));
        let lost = |ads: &Machine| matches!(ads.known(&listener("late")), Known::Lost(..));
        ads.opened();
        ads.drain(0);
        if answers {
            // The control.
            ads.respond(Kind::Listener, "v1", &["a=1", "b=1"]);
        }
        ads.subscribe(&[listener("late")]);
        assert!(!lost(&ads));
        ads.pass(TIMEOUT - Duration::from_millis(1));
        assert!(!lost(&ads));
        ads.pass(Duration::from_millis(1));
        assert_eq!(lost(&ads), !answers, "{variant:?}");
        ads.subscribe(&[listener("later")]);
        let later = matches!(ads.known(&listener("later")), Known::Lost(..));
        assert_eq!(later, !answers, "{variant:?}");
    }
}

#[test]
fn what_is_asked_for_just_before_silence_is_understood_has_its_time() {
    for variant in BOTH {
        let mut ads = Machine::new(Some(variant), ServerFeatures::default(), 2);
        ads.subscribe(&[listener("a")]);
        ads.opened();
        ads.drain(0);
        ads.respond(Kind::Listener, "v1", &["a=1"]);
        ads.closed();
        ads.close(Some(StreamError::new("refused")));
        ads.opened();
        ads.drain(0);
        ads.pass(TIMEOUT - Duration::from_millis(1));
        ads.subscribe(&[listener("b")]);
        ads.drain(0);
        ads.pass(TIMEOUT - Duration::from_millis(1));
        assert!(ads.known(&listener("b")) == Known::Pending && !ads.ads.wants(1), "{variant:?}");
        // The control: its own time.
        ads.pass(Duration::from_millis(1));
        assert!(ads.ads.wants(1), "{variant:?}");
    }
}

#[test]
fn x9_what_takes_streams_and_ends_them_without_an_answer_is_not_there() {
    for (variant, speaks) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let mut ads = Machine::of(variant);
        ads.subscribe(&[listener("a"), listener("b")]);
        ads.opened();
        ads.drain(0);
        if speaks {
            // The control.
            ads.respond(Kind::Listener, "v1", &["a=1"]);
        }
        ads.close(Some(StreamError::new("no upstream")));
        ads.close(Some(StreamError::new("refused")));
        let lost = |ads: &Machine| matches!(ads.known(&listener("b")), Known::Lost(..));
        assert!(lost(&ads));
        ads.opened();
        assert_eq!(lost(&ads), !speaks, "{variant:?}");
        ads.drain(0);
        ads.respond(Kind::Listener, "v1", &["a=1"]);
        assert!(!lost(&ads));
    }
}

#[test]
fn what_is_known_of_silence_alone_is_no_more_than_what_is_wanted() {
    for variant in BOTH {
        let mut ads = Machine::of(variant);
        ads.subscribe(&[listener("a")]);
        ads.opened();
        ads.drain(0);
        ads.respond(Kind::Listener, "v1", &["a=1"]);
        ads.pass(Duration::from_secs(1));
        for number in 0..20 {
            let unknown = listener(&format!("unknown-{number}"));
            ads.subscribe(std::slice::from_ref(&unknown));
            ads.drain(0);
            ads.pass(TIMEOUT);
            assert!(ads.missing(&unknown).is_some());
            assert_eq!(ads.ads.sessions()[0].silences(), 1, "{number}");
            ads.unsubscribe(&[unknown]);
            ads.drain(0);
            assert_eq!(ads.ads.sessions()[0].silences(), 0, "{number}");
        }
    }
}

#[test]
fn why_a_control_plane_is_away_is_known_after_an_attempt_that_nobody_waited_for() {
    let key = listener("xdstp://other/envoy.config.listener.v3.Listener/a");
    for (variant, well) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let mut ads = Machine::apart(variant);
        ads.subscribe(std::slice::from_ref(&key));
        ads.ads.closed(1, Some(StreamError::new("refused")), ads.now);
        assert!(matches!(ads.known(&key), Known::Lost(..)));
        if well {
            // The control: it has answered since.
            ads.ads.opened(1, ads.now);
            ads.drain(1);
            ads.take(1, response(Kind::Routes, "v1", &[]));
        }
        ads.unsubscribe(std::slice::from_ref(&key));
        ads.ads.released(1);
        // It is dialled, and that is given up with this wish.
        ads.subscribe(std::slice::from_ref(&key));
        ads.unsubscribe(std::slice::from_ref(&key));
        ads.ads.released(1);
        ads.subscribe(std::slice::from_ref(&key));
        ads.ads.still_away(1, ads.now);
        let reason = match ads.known(&key) {
            Known::Lost(reason, _) => Some(reason),
            _ => None,
        };
        assert_eq!(reason.is_some_and(|reason| reason.contains("refused")), !well, "{variant:?}");
    }
}

#[test]
fn a_quiet_stream_that_ends_in_order_is_no_reason_to_give_the_next_one_no_time() {
    let broken = || Some(StreamError::new("broken"));
    let second = Duration::from_secs(1);
    let all = [(None, false, second), (broken(), false, second), (None, true, second), (None, true, TIMEOUT)];
    for (variant, (error, owes, lasts)) in BOTH.into_iter().flat_map(|variant| all.clone().map(|it| (variant, it))) {
        let mut ads = Machine::of(variant);
        ads.subscribe(&[listener("a")]);
        ads.opened();
        ads.drain(0);
        ads.respond(Kind::Listener, "v1", &["a=1"]);
        ads.drain(0);
        assert_eq!(ads.close(broken()), Retry::Soon);
        if owes {
            ads.subscribe(&[listener("b")]);
        }
        // It is the greatest age of a connection, say, that comes before the end of the probation, or after all that was owed
        // has been given up.
        ads.opened();
        ads.drain(0);
        ads.pass(lasts);
        assert_eq!(ads.close(error.clone()), Retry::Later);
        ads.opened();
        ads.drain(0);
        ads.subscribe(&[listener("late")]);
        let is_lost = |ads: &Machine| matches!(ads.known(&listener("late")), Known::Lost(..));
        assert_eq!(is_lost(&ads), error.is_some() || owes, "{variant:?} {error:?} {owes} {lasts:?}");
        // It has no more time than any.
        ads.drain(0);
        ads.pass(TIMEOUT);
        assert!(is_lost(&ads) || ads.missing(&listener("late")).is_some());
    }
}
