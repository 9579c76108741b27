//! What a control plane is told of what it said wrong, and what the log is.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};

use super::super::ads::Known;
use super::super::kind::Kind;
use super::super::message::{Cause, ResourceError, Response, StreamError, Variant};
use super::machine::{BOTH, Machine, listener, response};

/// Counts in the log, and the reasons that are given there.
#[derive(Clone, Default)]
struct Log {
    refusals: Arc<AtomicUsize>,
    strange: Arc<AtomicUsize>,
    reasons: Arc<Mutex<Vec<String>>>,
}

/// The reason of an event.
struct Reason<'a>(&'a mut Vec<String>);

impl Visit for Reason<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "reason" {
            self.0.push(format!("{value:?}"));
        }
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }
    fn event(&self, event: &tracing::Event<'_>) {
        // Only a refusal has an error, and only what was not asked for the type's address.
        let has = |name| usize::from(event.fields().any(|field| field.name() == name));
        self.refusals.fetch_add(has("error"), Ordering::Relaxed);
        self.strange.fetch_add(has("type_url"), Ordering::Relaxed);
        event.record(&mut Reason(&mut self.reasons.lock()));
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn r06_the_same_refused_bytes_are_answered_every_time_and_logged_once() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let mut ads = Machine::of(Variant::Delta);
    ads.subscribe(&["a", "b"].map(listener));
    ads.opened();
    ads.request();
    for round in 0..100 {
        // What is good in between does not make the refusal news.
        ads.respond(Kind::Listener, &format!("good{round}"), &["b=1"]);
        assert_eq!(ads.request().error, None);
        ads.respond(Kind::Listener, &format!("bad{round}"), &["a=bad"]);
        assert_eq!(ads.request().error.as_deref(), Some("a: field: bad"));
    }
    assert_eq!(log.refusals.load(Ordering::Relaxed), 1);
    assert_eq!(ads.ads.sessions()[0].nacks, 100);
    ads.respond(Kind::Listener, "other", &["b=bad"]);
    assert_eq!(log.refusals.load(Ordering::Relaxed), 2, "control: other bytes are news");
}

#[test]
fn x4_a_nack_that_is_cut_names_all_before_it_says_why() {
    let refused = |names: &[String]| {
        let mut ads = Machine::of(Variant::Delta);
        names.iter().for_each(|name| ads.subscribe(&[listener(name)]));
        ads.opened();
        ads.request();
        let all: Vec<String> = names.iter().map(|name| format!("{name}=bad")).collect();
        ads.respond(Kind::Listener, "v1", &all.iter().map(String::as_str).collect::<Vec<_>>());
        ads.request().error.unwrap()
    };
    let names: Vec<String> = (1000..2000).map(|number| number.to_string()).collect();
    let error = refused(&names);
    assert!(
        error.starts_with(&format!("1000 are refused: {}; the first reasons: 1000: field: bad; ", names.join(", ")))
    );
    assert!(error.ends_with('…') && error.len() < 16 << 10, "{}", error.len());

    // One reason alone fills it: the other is named all the same.
    let error = refused(&["x".repeat(10 << 10), "y".to_owned()]);
    assert!(error.contains("x, y; the first reasons: xxx") && error.len() < 20 << 10);

    // Names are bounded too, and what is left of them counted: 102 bytes each.
    let long: Vec<String> = names.iter().map(|name| format!("{name}{}", "n".repeat(96))).collect();
    let error = refused(&long);
    assert!(error.contains(" and 679 more; the first reasons") && error.len() < 48 << 10, "{error}");
}

#[test]
fn what_was_not_asked_for_and_what_cannot_be_given_fill_no_log() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let mut ads = Machine::of(Variant::Delta);
    ads.subscribe(&[listener("a")]);
    ads.opened();
    ads.request();
    let minute = Duration::from_secs(60);
    for (wait, told) in [(Duration::ZERO, 1), (minute / 2, 1), (minute / 2, 2)] {
        ads.pass(wait);
        for _ in 0..100 {
            ads.respond(Kind::Cluster, "n", &["x=1"]);
        }
        assert_eq!(log.strange.load(Ordering::Relaxed), told);
    }
    let message = "é".repeat(10_000);
    let error = ResourceError { name: "a".to_owned(), cause: Cause::NotFound, message };
    ads.take(0, Response { errors: vec![error], ..response(Kind::Listener, "v1", &[]) });
    assert_eq!(ads.missing(&listener("a")).map(str::len), Some(2048));
}

#[test]
fn x5_who_comes_late_gets_the_last_good_one_and_hears_why_it_is_the_last_a57_a88() {
    for variant in BOTH {
        let log = Log::default();
        let _guard = tracing::subscriber::set_default(log.clone());
        let mut ads = Machine::of(variant);
        let late = |ads: &mut Machine, by| {
            log.reasons.lock().clear();
            let value = |known: Known<'_, String>| match known {
                Known::Value(value, _) => value.clone(),
                other => panic!("{other:?}"),
            };
            let (_, known) = ads.ads.want(by, Kind::Listener, "a");
            let said = (value(known), log.reasons.lock().clone());
            // It is told once, however often it looks.
            ads.ads.want(by, Kind::Listener, "a");
            assert_eq!(log.reasons.lock().len(), said.1.len());
            said
        };
        ads.subscribe(&[listener("a")]);
        ads.opened();
        ads.request();
        ads.respond(Kind::Listener, "v1", &["a=1"]);
        assert_eq!(late(&mut ads, 2), ("1".to_owned(), vec![]), "the control: nothing is wrong");
        ads.respond(Kind::Listener, "v2", &["a=bad"]);
        assert_eq!(late(&mut ads, 3), ("1".to_owned(), vec![r#""a: field: bad""#.to_owned()]), "a NACK");
        ads.respond(Kind::Listener, "v3", &["a=3"]);
        assert_eq!(late(&mut ads, 4), ("3".to_owned(), vec![]), "it is good again");
        // A stream that had answered may end; one that does not come is a failure.
        ads.close(Some(StreamError::new("broken")));
        assert_eq!(late(&mut ads, 5), ("3".to_owned(), vec![]));
        ads.close(Some(StreamError::new("nobody there")));
        assert_eq!(late(&mut ads, 6), ("3".to_owned(), vec![r#""nobody there""#.to_owned()]), "an outage");
        // Nobody wanted it in between.
        (1..=6).for_each(|by| ads.ads.release(by, &listener("a")));
        assert_eq!(late(&mut ads, 7), ("3".to_owned(), vec![]), "it is the same outage");
        ads.opened();
        ads.drain(0);
        ads.respond(Kind::Listener, "v4", &["a=4"]);
        assert_eq!(late(&mut ads, 8), ("4".to_owned(), vec![]), "it is back");
    }
}

#[test]
fn x5_thousands_that_come_late_are_told_of_once_for_each_reason() {
    for variant in BOTH {
        let log = Log::default();
        let _guard = tracing::subscriber::set_default(log.clone());
        let mut ads = Machine::of(variant);
        let names: Vec<String> = (1000..1100).map(|number| number.to_string()).collect();
        let of = |value: &str| names.iter().map(|name| format!("{name}={value}")).collect::<Vec<_>>();
        let all = |ads: &mut Machine, mark: &str, value: &str| {
            ads.respond(Kind::Listener, mark, &of(value).iter().map(String::as_str).collect::<Vec<_>>());
        };
        ads.subscribe(&names.iter().map(|name| listener(name)).collect::<Vec<_>>());
        ads.opened();
        ads.request();
        all(&mut ads, "v1", "1");
        let mut reader = 1;
        let mut told = |ads: &mut Machine| {
            log.reasons.lock().clear();
            for name in names.iter().flat_map(|name| [name; 20]) {
                reader += 1;
                ads.ads.want(reader, Kind::Listener, name);
            }
            log.reasons.lock().len()
        };
        assert_eq!(told(&mut ads), 0, "the control: nothing is wrong");
        all(&mut ads, "v2", "bad");
        assert_eq!((told(&mut ads), told(&mut ads)), (100, 0), "each is refused");
        all(&mut ads, "v3", "bad again");
        assert_eq!(told(&mut ads), 0, "other bytes, and the same reason");
        all(&mut ads, "v4", "4");
        all(&mut ads, "v5", "bad");
        assert_eq!(told(&mut ads), 100, "refused anew");
        all(&mut ads, "v6", "6");
        for _ in 0..2 {
            ads.close(Some(StreamError::new("broken")));
            ads.close(Some(StreamError::new("nobody there")));
            assert_eq!(told(&mut ads), 1, "an outage");
            ads.close(Some(StreamError::new("nobody there yet")));
            assert_eq!(told(&mut ads), 0, "it goes on");
            ads.opened();
            ads.drain(0);
            all(&mut ads, "v6", "6");
            assert_eq!(told(&mut ads), 0, "it is over");
        }
    }
}
