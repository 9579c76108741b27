//! Who holds what, for how long, and who may not.

use futures_util::FutureExt;

use super::super::tests::registration;
use super::*;

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const GRACE: Duration = Duration::from_secs(10);

fn registry() -> (Registry, Watched<Registrations>, Instant) {
    bounded(Bounds::default())
}

fn bounded(bounds: Bounds) -> (Registry, Watched<Registrations>, Instant) {
    let now = Instant::now();
    let registry = Registry::bounded(Vec::new(), GRACE, now, bounds);
    let watched = registry.watch();
    (registry, watched, now)
}

/// A stream of the service account `reviews`.
fn stream(registry: &Registry, now: Instant) -> u64 {
    registry.stream("default", "reviews", HERE, now).unwrap()
}

fn of(account: &str, port: u16) -> Registration {
    Registration { service_account: account.into(), ..registration(port) }
}

fn ports(watched: &Watched<Registrations>) -> Vec<u16> {
    let mut ports: Vec<_> = watched.load().values().map(|r| r.address.port()).collect();
    ports.sort_unstable();
    ports
}

#[test]
fn an_endpoint_is_there_until_it_is_withdrawn() {
    let (registry, watched, now) = registry();
    let (first, second) = (stream(&registry, now), stream(&registry, now));
    registry.announce(first, registration(1), now).unwrap();
    registry.announce(second, registration(2), now).unwrap();
    assert_eq!(ports(&watched), [1, 2]);
    registry.withdraw(first);
    assert_eq!(ports(&watched), [2]);
    assert_eq!(registry.expire(now + 100 * GRACE), None);
    assert_eq!(ports(&watched), [2]);
}

#[test]
fn a_lost_stream_keeps_its_endpoint_for_the_grace_period() {
    let (registry, watched, now) = registry();
    let stream = stream(&registry, now);
    registry.announce(stream, registration(1), now).unwrap();
    registry.lose(stream, now);
    assert_eq!(registry.expire(now + GRACE - Duration::from_millis(1)), Some(now + GRACE));
    assert_eq!(ports(&watched), [1]);
    assert_eq!(registry.expire(now + GRACE), None);
    assert_eq!(ports(&watched), [0_u16; 0]);
}

#[tokio::test]
async fn announcing_again_within_grace_changes_nothing_for_anybody() {
    let (registry, mut watched, now) = registry();
    let (before, after) = (stream(&registry, now), stream(&registry, now));
    registry.announce(before, registration(1), now).unwrap();
    watched.changed().await;
    registry.lose(before, now);
    registry.announce(after, registration(1), now).unwrap();
    // A late end of the old stream, and its withdrawal, are no longer about this endpoint.
    registry.lose(before, now);
    registry.withdraw(before);
    assert_eq!(registry.expire(now + 100 * GRACE), None);
    assert_eq!(ports(&watched), [1]);
    assert_eq!(watched.changed().now_or_never(), None, "nothing was published");
    registry.withdraw(after);
    assert_eq!(watched.changed().now_or_never(), Some(()), "the control");
}

#[tokio::test]
async fn a_process_that_is_still_held_may_come_back_on_another_stream() {
    let (registry, mut watched, now) = registry();
    let (hung, fresh) = (stream(&registry, now), stream(&registry, now));
    registry.announce(hung, registration(1), now).unwrap();
    watched.changed().await;
    registry.announce(fresh, registration(1), now).unwrap();
    registry.withdraw(hung);
    registry.lose(hung, now);
    assert_eq!((registry.expire(now + 100 * GRACE), ports(&watched)), (None, vec![1]));
    assert_eq!(watched.changed().now_or_never(), None);
}

#[test]
fn a_stream_holds_the_endpoint_it_announced_last() {
    let (registry, watched, now) = registry();
    let stream = stream(&registry, now);
    registry.announce(stream, registration(1), now).unwrap();
    registry.announce(stream, registration(2), now).unwrap();
    assert_eq!(ports(&watched), [2]);
    registry.withdraw(stream);
    assert!(ports(&watched).is_empty());
}

#[test]
fn an_endpoint_is_its_identitys_alone_until_it_is_gone() {
    let (registry, watched, now) = registry();
    let owner = stream(&registry, now);
    let thief = registry.stream("default", "thief", HERE, now).unwrap();
    registry.announce(owner, registration(1), now).unwrap();
    let taken = registry.announce(thief, of("thief", 1), now).unwrap_err();
    assert!(matches!(&taken, NotAnnounced::Taken { holder, .. } if holder.contains(" reviews of ")), "{taken}");
    registry.withdraw(thief);
    registry.lose(owner, now);
    assert!(registry.announce(thief, of("thief", 1), now).is_err(), "its process may come back");
    assert_eq!(ports(&watched), [1]);
    assert_eq!(watched.load().values().next().unwrap().service_account, "reviews");
    // The control: nobody has it any more. And another address of the service was free all the time.
    registry.expire(now + GRACE);
    assert_eq!(registry.announce(thief, of("thief", 1), now), Ok(()));
    assert_eq!(registry.announce(registry.stream("default", "other", HERE, now).unwrap(), of("other", 2), now), Ok(()));
    assert_eq!(ports(&watched), [1, 2]);
}

#[test]
fn what_was_known_before_a_restart_waits_to_be_announced_again() {
    let now = Instant::now();
    let registry = Registry::new(vec![registration(1), registration(2)], GRACE, now);
    let watched = registry.watch();
    assert_eq!(ports(&watched), [1, 2]);
    registry.announce(stream(&registry, now), registration(1), now).unwrap();
    // Longer than the back-off of a process that could not connect for a while.
    assert_eq!(registry.expire(now + Duration::from_secs(35)), Some(now + RESTART * GRACE));
    assert_eq!(ports(&watched), [1, 2]);
    assert_eq!(registry.expire(now + RESTART * GRACE), None);
    assert_eq!(ports(&watched), [1]);
}

#[test]
fn one_identity_cannot_fill_the_table() {
    let (registry, watched, now) =
        bounded(Bounds { endpoints: 3, endpoints_of_one: 2, streams_of_one: 3, ..Bounds::default() });
    let streams: Vec<_> = (0..3).map(|_| stream(&registry, now)).collect();
    let refused = registry.stream("default", "reviews", HERE, now).unwrap_err();
    assert_eq!(
        refused,
        NotAnnounced::TooManyStreams { owner: spoken(&("default".into(), "reviews".into())), limit: 3 }
    );
    registry.announce(streams[0], registration(1), now).unwrap();
    registry.announce(streams[1], registration(2), now).unwrap();
    let refused = registry.announce(streams[2], registration(3), now).unwrap_err();
    assert!(matches!(refused, NotAnnounced::TooMany { limit: 2, .. }), "{refused}");
    // Others still can, until the table is full.
    let other = registry.stream("default", "other", HERE, now).unwrap();
    registry.announce(other, of("other", 3), now).unwrap();
    let third = registry.stream("default", "third", HERE, now).unwrap();
    assert_eq!(registry.announce(third, of("third", 4), now), Err(NotAnnounced::Full { limit: 3 }));
    // What it holds may be replaced, and what it gives up is free again.
    registry.announce(streams[0], registration(5), now).unwrap();
    assert_eq!(ports(&watched), [2, 3, 5]);
    registry.withdraw(streams[0]);
    registry.lose(streams[0], now);
    registry.announce(streams[2], registration(6), now).unwrap();
    assert!(registry.stream("default", "reviews", HERE, now).is_ok());
}

#[test]
fn the_bytes_of_endpoints_are_bounded_in_total_and_for_each_identity() {
    let size = registration(1).text_len();
    let bounds = Bounds { bytes: 3 * size, bytes_of_one: 2 * size, ..Bounds::default() };
    let (registry, watched, now) = bounded(bounds);
    let streams: Vec<_> = (0..3).map(|_| stream(&registry, now)).collect();
    registry.announce(streams[0], registration(1), now).unwrap();
    registry.announce(streams[1], registration(2), now).unwrap();
    let refused = registry.announce(streams[2], registration(3), now).unwrap_err();
    assert!(matches!(refused, NotAnnounced::TooManyBytes { .. }), "{refused}");
    // Nor by making one larger that it has; another in its place, or a smaller one, is no more.
    let labelled = |port, text: &str| Registration { workload: text.into(), ..registration(port) };
    assert!(registry.announce(streams[0], labelled(1, "reviews-v1-x"), now).is_err());
    registry.announce(streams[0], registration(4), now).unwrap();
    registry.announce(streams[0], labelled(4, "r"), now).unwrap();
    assert_eq!(ports(&watched), [2, 4]);
    // Others still can, until the table is full, and what is withdrawn is free again.
    let other = registry.stream("default", "other", HERE, now).unwrap();
    registry.announce(other, of("other", 5), now).unwrap();
    let third = registry.stream("default", "third", HERE, now).unwrap();
    let refused = registry.announce(third, of("third", 6), now).unwrap_err();
    assert!(matches!(refused, NotAnnounced::FullOfBytes { .. }), "{refused}");
    registry.withdraw(streams[0]);
    registry.announce(third, of("third", 6), now).unwrap();
    registry.withdraw(streams[1]);
    registry.announce(streams[2], registration(3), now).unwrap();
}

#[test]
fn an_identity_changes_things_at_a_rate_and_a_return_is_no_change() {
    let (registry, _, now) = bounded(Bounds { changes: (2, 1), ..Bounds::default() });
    let stream = stream(&registry, now);
    registry.announce(stream, registration(1), now).unwrap();
    registry.announce(stream, registration(2), now).unwrap();
    let refused = registry.announce(stream, registration(1), now).unwrap_err();
    assert!(matches!(refused, NotAnnounced::TooFast { rate: 1, .. }), "{refused}");
    registry.lose(stream, now);
    let again = self::stream(&registry, now);
    assert_eq!(registry.announce(again, registration(2), now), Ok(()), "a herd that comes back is not held up");
    let other = registry.stream("default", "other", HERE, now).unwrap();
    assert_eq!(registry.announce(other, of("other", 1), now), Ok(()), "nor are others");
    assert_eq!(registry.announce(again, registration(3), now + Duration::from_secs(1)), Ok(()), "the control");
}

#[test]
fn an_endpoint_that_passes_to_another_account_counts_for_that_one() {
    let bounds = Bounds { endpoints_of_one: 1, ..Bounds::default() };
    let (registry, watched, now) = bounded(bounds);
    registry.hold(vec![of("reviews", 1)], now);
    registry.hold(vec![of("ratings", 1)], now);
    // The one it was of has room again, and the one it is of has none.
    registry.announce(stream(&registry, now), of("reviews", 2), now).unwrap();
    let ratings = registry.stream("default", "ratings", HERE, now).unwrap();
    let refused = registry.announce(ratings, of("ratings", 3), now).unwrap_err();
    assert!(matches!(refused, NotAnnounced::TooMany { limit: 1, .. }), "{refused}");
    registry.let_go(&[of("ratings", 1)]);
    assert_eq!(ports(&watched), [2]);
    registry.announce(ratings, of("ratings", 3), now).unwrap();
}

#[test]
fn an_address_is_not_announced_by_two_accounts_unless_the_second_speaks_from_there() {
    let (registry, watched, now) = registry();
    let address = |text: &str, of: Registration| Registration { address: text.parse().unwrap(), ..of };
    let other = |account: &str, from: &str| registry.stream("default", account, from.parse().unwrap(), now).unwrap();
    let as_service = |of: Registration| Registration { service: "zzz".into(), ..of };
    let own = address("10.0.0.5:80", registration(80));
    registry.announce(other("reviews", "10.0.0.9"), own.clone(), now).unwrap();

    let squat = address("10.0.0.5:80", as_service(of("evil", 80)));
    let refused = registry.announce(other("evil", "10.0.0.66"), squat.clone(), now).unwrap_err();
    assert!(matches!(&refused, NotAnnounced::Taken { holder, .. } if holder.contains("reviews of namespace default")));
    let elsewhere = Registration { namespace: "zoo".into(), ..squat.clone() };
    let zoo = registry.stream("zoo", "evil", "10.0.0.66".parse().unwrap(), now).unwrap();
    assert!(registry.announce(zoo, elsewhere, now).is_err(), "nor from another namespace");
    assert_eq!(watched.load().len(), 1);

    // Another service of the same account there, another port, and who is at that address, whatever the form of it.
    assert_eq!(registry.announce(other("reviews", "10.0.0.9"), as_service(own), now), Ok(()));
    let beside = address("10.0.0.5:81", squat.clone());
    assert_eq!(registry.announce(other("evil", "10.0.0.66"), beside, now), Ok(()));
    let there = Registration { service: "there".into(), ..squat.clone() };
    assert_eq!(
        registry.announce(
            other("late", "::ffff:10.0.0.5"),
            Registration { service_account: "late".into(), ..there },
            now
        ),
        Ok(())
    );
    // Once it is gone it is anybody's.
    let gone: Vec<_> = watched.load().values().filter(|r| r.address.port() == 80).map(|r| (**r).clone()).collect();
    registry.let_go(&gone);
    assert_eq!(registry.announce(other("evil", "10.0.0.66"), squat, now), Ok(()));
}
