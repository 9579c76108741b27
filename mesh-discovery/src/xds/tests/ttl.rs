//! Resources that end by themselves.

use std::time::Duration;

use mesh_core::policy::DestinationState;
use mesh_core::source::DestinationSource;
use mesh_testkit::clock;
use tokio::time::Instant;

use super::super::ads::{Known, Standing};
use super::super::kind::{Key, Kind};
use super::super::message::{Resource, Response, StreamError, Variant};
use super::client::{client_of, listener as encoded, serve_all, snapshot, target};
use super::machine::{BOTH, Machine, TIMEOUT, initial, listener, response};
use super::version;
use crate::bootstrap::ServerFeatures;

const TTL: Duration = Duration::from_secs(5);
const ALMOST: Duration = Duration::from_secs(4);

/// Listeners of which the first lives so long.
fn given(mark: &str, listeners: &[&str], ttl: Option<Duration>) -> Response {
    let mut given = response(Kind::Listener, mark, listeners);
    given.resources[0].ttl = ttl;
    given
}

/// `name` is as it was, and lives so much longer.
fn renewed(mark: &str, name: &str, ttl: Option<Duration>) -> Response {
    let alive = Resource { name: name.to_owned(), ttl, ..Resource::default() };
    Response { resources: vec![alive], ..response(Kind::Listener, mark, &[]) }
}

/// `a` is deleted.
fn without_a(mark: &str, variant: Variant) -> Response {
    match variant {
        Variant::StateOfTheWorld => response(Kind::Listener, mark, &["b=1"]),
        Variant::Delta => Response { removed: vec!["a".into()], ..response(Kind::Listener, mark, &[]) },
    }
}

fn started(variant: Variant, strict: bool) -> Machine {
    let features = ServerFeatures { fail_on_data_errors: strict, ..ServerFeatures::default() };
    let mut ads = Machine::new(Some(variant), features, 1);
    ads.subscribe(&["a", "b"].map(listener));
    ads.opened();
    ads.request();
    ads
}

fn standings(ads: &Machine) -> [Standing; 2] {
    ["a", "b"].map(|name| ads.entry(&listener(name)).standing)
}

const BOTH_ACKED: [Standing; 2] = [Standing::Acked; 2];
const ENDED: [Standing; 2] = [Standing::DoesNotExist, Standing::Acked];

#[test]
fn what_is_not_renewed_is_out_of_use_whatever_becomes_of_what_is_removed() {
    for (variant, strict) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let mut ads = started(variant, strict);
        ads.take(0, given("1", &["a=1", "b=1"], Some(TTL)));
        ads.pass(ALMOST);
        assert_eq!(standings(&ads), BOTH_ACKED);
        let seen = ads.pass(TTL - ALMOST);
        assert_eq!((standings(&ads), ads.value(&listener("b"))), (ENDED, Some("1")), "{variant:?}");
        assert_eq!(seen, [listener("a")], "{variant:?} {strict}");
        assert!(matches!(ads.known(&listener("a")), Known::Missing(reason, _) if reason.contains("time to live")));
        ads.take(0, response(Kind::Listener, "2", &["a=1", "b=1"]));
        assert_eq!((standings(&ads), ads.value(&listener("a"))), (BOTH_ACKED, Some("1")), "it is back");
        ads.pass(100 * TTL);
        assert_eq!(standings(&ads), BOTH_ACKED, "control: without a time to live it stays");
        assert_eq!(ads.ads.next_deadline(), None);

        // What was deleted before its end, and stayed, stays no longer than that.
        for (ttl, left) in [(Some(TTL), None), (None, (!strict).then_some("1"))] {
            let mut ads = started(variant, strict);
            ads.take(0, given("1", &["a=1", "b=1"], ttl));
            ads.take(0, without_a("2", variant));
            assert_eq!((standings(&ads), ads.value(&listener("a"))), (ENDED, (!strict).then_some("1")));
            ads.pass(TTL);
            assert_eq!((standings(&ads), ads.value(&listener("a"))), (ENDED, left), "{variant:?} {strict} {ttl:?}");
        }
    }
}

#[test]
fn it_is_renewed_by_a_sign_of_life_and_by_itself_and_not_by_what_is_refused() {
    for variant in BOTH {
        let mut ads = started(variant, false);
        ads.take(0, given("1", &["a=1", "b=1"], Some(TTL)));
        for (mark, again) in [
            ("2", renewed("2", "a", Some(TTL))),
            ("3", given("3", &["a=1", "b=1"], Some(TTL))),
            ("4", given("4", &["a=2", "b=1"], Some(TTL))),
        ] {
            ads.pass(ALMOST);
            ads.take(0, again);
            assert_eq!(standings(&ads), BOTH_ACKED, "{mark} {variant:?}: a renewal deletes nothing else");
        }
        ads.pass(ALMOST);
        ads.take(0, given("5", &["a=bad", "b=1"], Some(TTL)));
        assert_eq!(standings(&ads), [Standing::Nacked, Standing::Acked]);
        ads.pass(TTL - ALMOST);
        assert_eq!((standings(&ads), ads.value(&listener("a"))), (ENDED, None), "{variant:?}");

        ads.take(0, given("6", &["a=3", "b=1"], Some(TTL)));
        ads.take(0, renewed("7", "a", None));
        ads.pass(100 * TTL);
        assert_eq!(standings(&ads), BOTH_ACKED, "renewed without end");
    }
}

#[test]
fn it_ends_without_a_connection_and_is_forgotten_with_the_last_wish() {
    for variant in BOTH {
        let mut ads = started(variant, false);
        ads.take(0, given("1", &["a=1", "b=1"], Some(TTL)));
        ads.closed();
        ads.pass(TTL);
        assert_eq!(standings(&ads), ENDED, "{variant:?}");

        let mut ads = started(variant, false);
        ads.take(0, given("1", &["a=1", "b=1"], Some(TTL)));
        ads.drain(0);
        let key = Key::new(Kind::Listener, "a");
        assert!(ads.ads.ends(&key) && ads.ads.next_deadline().is_some());
        ads.unsubscribe(&[listener("a")]);
        ads.drain(0);
        assert!(!ads.ads.ends(&key) && ads.ads.next_deadline().is_none());
    }
}

#[test]
fn what_ended_while_nobody_was_there_is_asked_for_anew() {
    for (variant, ends) in BOTH.into_iter().flat_map(|variant| [(variant, true), (variant, false)]) {
        let mut ads = started(variant, false);
        ads.take(0, given("1", &["a=1", "b=1"], ends.then_some(TTL)));
        ads.drain(0);
        ads.closed();
        ads.pass(TTL);
        ads.opened();
        let first = ads.request();
        // The control: of what goes on, the version is told.
        match variant {
            Variant::StateOfTheWorld => assert_eq!(version(&first), if ends { "" } else { "1" }),
            Variant::Delta => assert_eq!(initial(&first).iter().any(|(name, _)| *name == "a"), !ends),
        }
        ads.take(0, given("1", &["a=1", "b=1"], Some(TTL)));
        assert_eq!(standings(&ads), BOTH_ACKED);
    }
}

#[test]
fn it_ends_also_while_another_control_plane_is_asked_for_it() {
    for (variant, ttl) in BOTH.into_iter().flat_map(|variant| [(variant, Some(TTL)), (variant, None)]) {
        let begin = || {
            let mut ads = Machine::new(Some(variant), ServerFeatures::default(), 2);
            ads.subscribe(&[listener("a")]);
            ads.opened();
            ads.request();
            ads.take(0, given("1", &["a=1"], ttl));
            ads.closed();
            ads.subscribe(&[listener("b")]);
            ads.close(Some(StreamError::new("refused")));
            ads.ads.opened(1, ads.now);
            ads.drain(1);
            ads.take(1, response(Kind::Listener, "1", &["b=1"]));
            assert_eq!(
                (ads.value(&listener("a")), ads.entry(&listener("a")).standing),
                (Some("1"), Standing::Requested)
            );
            let told = ads.pass(TTL);
            // The control: one without a time to live.
            assert_eq!(
                (told, ads.value(&listener("a"))),
                match ttl {
                    Some(_) => (vec![listener("a")], None),
                    None => (vec![], Some("1")),
                }
            );
            ads
        };
        let mut ads = begin();
        ads.pass(TIMEOUT - TTL);
        assert_eq!(ads.entry(&listener("a")).standing, Standing::DoesNotExist, "{variant:?}");
        assert_eq!(ads.entry(&listener("a")).good.is_some(), ttl.is_none());
        let mut ads = begin();
        ads.take(1, response(Kind::Listener, "2", &["a=2", "b=1"]));
        ads.pass(100 * TTL);
        assert_eq!(ads.value(&listener("a")), Some("2"), "that is its to say");
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_ends_at_its_listeners_time() {
    for (variant, renews) in BOTH.into_iter().flat_map(|variant| [(variant, false), (variant, true)]) {
        let (client, mut server) = client_of(|config| config.variant = Some(variant));
        let mut state = client.destination(&target());
        let mut stream = server.accept().await;
        serve_all(&mut stream, "1").await;
        snapshot(&mut state).await;
        clock::pass(1000 * TTL).await;
        assert!(matches!(&**state.load(), DestinationState::Ready(_)), "control: one without a time to live stays");

        let begin = Instant::now();
        let mut listener = super::response(Kind::Listener, "2", "l2", vec![encoded()]);
        listener.resources[0].ttl = Some(TTL);
        stream.send(listener);
        stream.expect(Kind::Listener, &["a:80"]).await;
        if renews {
            clock::pass(ALMOST).await;
            stream.send(renewed("2", "a:80", Some(TTL)));
            stream.expect(Kind::Listener, &["a:80"]).await;
        }
        let ended = state.wait_for(|state| matches!(state, DestinationState::Failed(_)));
        tokio::time::timeout(100 * TTL, ended).await.expect("it ends");
        let lived = begin.elapsed().as_secs();
        assert_eq!(lived, if renews { 9 } else { 5 }, "{variant:?}");
    }
}
