use futures_util::future::{join, join_all};
use futures_util::poll;
use mesh_testkit::FakeResolver;
use mesh_testkit::clock::pass;

use super::*;

const HOST: &str = "a.example.com";
const SECOND: Duration = Duration::from_secs(1);

/// Names whose back-off is always the longest.
fn names(resolver: &Arc<FakeResolver>) -> Names {
    names_with(resolver, DnsOptions::default())
}

fn names_with(resolver: &Arc<FakeResolver>, options: DnsOptions) -> Names {
    Names::new(resolver.clone(), Arc::new(|below| below - 1), 5 * SECOND, options)
}

fn texts(answer: &Answer<IpAddr>) -> Vec<String> {
    answer.records.iter().map(ToString::to_string).collect()
}

#[tokio::test(start_paused = true)]
async fn many_who_ask_at_once_make_one_look_up_and_share_its_failure() {
    let resolver = FakeResolver::new();
    let names = names(&resolver);
    let crowd = || async { join_all((0..100).map(|_| names.addresses(HOST, PATIENCE))).await };
    assert!(crowd().await.iter().all(|answer| answer.failure == Some(ResolveError::NotFound)));
    assert_eq!(resolver.asked(), 1);
    resolver.set(HOST, &["10.0.0.1"], None);
    assert_eq!(texts(&crowd().await[0]), [""; 0], "the failure holds for half a second");
    pass(SECOND / 2).await;
    assert!(crowd().await.iter().all(|answer| texts(answer) == ["10.0.0.1"]));
    assert_eq!(resolver.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_wait_after_a_failure_doubles_up_to_three_seconds_and_a_success_begins_anew() {
    let resolver = FakeResolver::new();
    let names = names(&resolver);
    let wait = || async {
        let answer = names.addresses(HOST, PATIENCE).await;
        let wait = answer.until - Instant::now();
        sleep_until(answer.until).await;
        wait.as_millis()
    };
    for want in [500, 1000, 2000, 3000, 3000, 3000] {
        assert_eq!(wait().await, want);
    }
    resolver.set(HOST, &["10.0.0.1"], Some(7 * SECOND));
    assert_eq!(wait().await, 7000);
    resolver.fail(HOST, ResolveError::Timeout);
    assert_eq!(wait().await, 500);
}

#[tokio::test(start_paused = true)]
async fn an_answer_holds_for_its_ttl_within_bounds() {
    let resolver = FakeResolver::new();
    for (ttl, holds) in [(Some(Duration::ZERO), 5), (Some(20 * SECOND), 20), (Some(Duration::MAX), 86_400), (None, 30)]
    {
        resolver.set(HOST, &["10.0.0.1"], ttl);
        let answer = names(&resolver).addresses(HOST, PATIENCE).await;
        assert_eq!((answer.until - Instant::now()).as_secs(), holds, "{ttl:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_does_not_wait_long_for_a_name_that_is_known() {
    let resolver = FakeResolver::new();
    resolver.set(HOST, &["10.0.0.1"], Some(SECOND));
    let names = names(&resolver);
    let address = [Address::Name { host: HOST.into(), port: 80 }];
    assert_eq!(names.sockets(address.iter()).await.unwrap()[0].to_string(), "10.0.0.1:80");
    resolver.hang(HOST);
    pass(10 * SECOND).await;
    let begun = Instant::now();
    assert_eq!(names.sockets(address.iter()).await.unwrap()[0].to_string(), "10.0.0.1:80");
    assert_eq!(begun.elapsed(), PATIENCE_OF_REQUESTS);
    // Control: of one that was never known there is nothing else to use.
    let unknown = self::names(&resolver);
    let begun = Instant::now();
    assert_eq!(unknown.sockets(address.iter()).await, Err(ResolveError::Timeout));
    assert_eq!(begun.elapsed(), PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn a_failed_connection_makes_an_answer_suspect_once_it_is_five_seconds_old() {
    let resolver = FakeResolver::new();
    resolver.set(HOST, &["10.0.0.1"], Some(3600 * SECOND));
    let names = names(&resolver);
    for _ in 0..49 {
        names.addresses(HOST, PATIENCE).await;
        pass(SECOND / 10).await;
        names.suspect();
    }
    assert_eq!(resolver.asked(), 1);
    pass(SECOND / 10).await;
    names.addresses(HOST, PATIENCE).await;
    assert_eq!(resolver.asked(), 2);
    // What failed before that look-up is no reason for another.
    pass(60 * SECOND).await;
    names.addresses(HOST, PATIENCE).await;
    assert_eq!(resolver.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn addresses_written_as_names_are_not_looked_up() {
    let resolver = FakeResolver::new();
    let names = names(&resolver);
    for (host, ip) in [("10.0.0.1", "10.0.0.1"), ("[::1]", "::1"), ("::1", "::1")] {
        assert_eq!(texts(&names.addresses(host, PATIENCE).await), [ip]);
    }
    assert_eq!(resolver.asked(), 0);
}

#[tokio::test(start_paused = true)]
async fn policy_says_how_long_an_answer_holds() {
    let resolver = FakeResolver::new();
    let refresh = |seconds: u32, respect_ttl, jitter: u32| DnsOptions {
        refresh: Some(seconds * SECOND),
        respect_ttl,
        jitter: jitter * SECOND,
        ..DnsOptions::default()
    };
    let ttl = Some(20 * SECOND);
    for (options, ttl, holds) in [
        (refresh(60, false, 0), ttl, 60),
        (refresh(1, false, 0), ttl, 1),
        (refresh(60, true, 0), ttl, 20),
        (refresh(60, true, 0), Some(SECOND), 5),
        (refresh(60, true, 0), None, 60),
        (refresh(60, false, 7), ttl, 67),
        // Control: without a word from policy it is the TTL.
        (DnsOptions::default(), ttl, 20),
        (DnsOptions { jitter: 7 * SECOND, ..DnsOptions::default() }, ttl, 27),
    ] {
        resolver.set(HOST, &["10.0.0.1"], ttl);
        let answer = names_with(&resolver, options.clone()).addresses(HOST, PATIENCE).await;
        assert_eq!((answer.until - Instant::now()).as_secs(), holds, "{options:?} {ttl:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn policy_says_when_to_look_again_after_a_failure() {
    let resolver = FakeResolver::new();
    let rate = DnsBackoff { base: 4 * SECOND, max: 10 * SECOND };
    let names = names_with(&resolver, DnsOptions { failure_refresh: Some(rate), ..DnsOptions::default() });
    for want in [4, 8, 10, 10] {
        let answer = names.addresses(HOST, PATIENCE).await;
        assert_eq!((answer.until - Instant::now()).as_secs(), want);
        sleep_until(answer.until).await;
    }
}

#[tokio::test(start_paused = true)]
async fn policy_cannot_ask_for_look_ups_without_a_pause() {
    let resolver = FakeResolver::new();
    let nano = Duration::from_nanos(1);
    let rate = DnsBackoff { base: nano, max: nano };
    let options = DnsOptions { refresh: Some(nano), failure_refresh: Some(rate), ..DnsOptions::default() };
    for found in [&[][..], &["10.0.0.1"]] {
        resolver.set(HOST, found, None);
        let answer = names_with(&resolver, options.clone()).addresses(HOST, PATIENCE).await;
        assert!(answer.until - Instant::now() >= Duration::from_millis(1), "{found:?}");
    }
}

/// A resolver in which one family hides the other, as in a file of hosts.
#[derive(Debug)]
struct Hiding;

impl Resolve for Hiding {
    fn addresses<'r>(&'r self, _host: &'r str) -> Resolving<'r, IpAddr> {
        self.addresses_of("", Family::V6)
    }

    fn addresses_of<'r>(&'r self, _host: &'r str, family: Family) -> Resolving<'r, IpAddr> {
        let ip = if family == Family::V4 { "10.0.0.1" } else { "::1" };
        let found = Resolved { records: vec![ip.parse().unwrap()], ttl: None, lacks: None };
        Box::pin(std::future::ready(Ok(found)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_resolver_is_told_that_one_family_alone_is_wanted() {
    for (family, want) in [(DnsFamily::V4Only, "10.0.0.1"), (DnsFamily::V6Only, "::1"), (DnsFamily::Auto, "::1")] {
        let options = DnsOptions { family, ..DnsOptions::default() };
        let names = Names::new(Arc::new(Hiding), Arc::new(|below| below - 1), 5 * SECOND, options);
        assert_eq!(texts(&names.addresses(HOST, PATIENCE).await), [want], "{family:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn policy_says_which_families_are_used() {
    let resolver = FakeResolver::new();
    let (both, v4, v6, none): (&[&str], &[&str], &[&str], &[&str]) =
        (&["::1", "10.0.0.1"], &["10.0.0.1"], &["::1"], &[]);
    for (family, of_both, of_v4, of_v6) in [
        (DnsFamily::Auto, both, v4, v6),
        (DnsFamily::All, both, v4, v6),
        (DnsFamily::V4Only, v4, v4, none),
        (DnsFamily::V6Only, v6, none, v6),
        (DnsFamily::V4Preferred, v4, v4, v6),
    ] {
        for (has, want) in [(both, of_both), (v4, of_v4), (v6, of_v6)] {
            resolver.set(HOST, has, None);
            let names = names_with(&resolver, DnsOptions { family, ..DnsOptions::default() });
            let answer = names.addresses(HOST, PATIENCE).await;
            assert_eq!(texts(&answer), want, "{family:?} of {has:?}");
            assert_eq!(answer.failure, want.is_empty().then_some(ResolveError::NoRecords));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_family_that_is_not_answered_keeps_its_last_good_addresses() {
    let resolver = FakeResolver::new();
    let names = names(&resolver);
    let after = async |family: Option<Family>| {
        resolver.set(HOST, &["fd00::1", "10.0.0.1"], Some(5 * SECOND));
        pass(3600 * SECOND).await;
        assert_eq!(names.addresses(HOST, PATIENCE).await.records.len(), 2);
        let left = if family == Some(Family::V6) { "10.0.0.2" } else { "fd00::2" };
        resolver.set_lacking(HOST, &[left], Some(3600 * SECOND), family.map(|family| (family, ResolveError::Timeout)));
        pass(5 * SECOND).await;
        let answer = names.addresses(HOST, PATIENCE).await;
        (texts(&answer), (answer.until - Instant::now()).as_secs(), names.failures())
    };
    let of = |ips: &[&str]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    let told = |text: &str| vec![format!("{HOST}: {text}: no DNS server answered in time")];
    assert_eq!(after(Some(Family::V4)).await, (of(&["fd00::2", "10.0.0.1"]), 30, told("IPv4")));
    assert_eq!(after(Some(Family::V6)).await, (of(&["10.0.0.2", "fd00::1"]), 30, told("IPv6")));
    // Control: to have none is an answer.
    assert_eq!(after(None).await, (of(&["fd00::2"]), 3600, vec![]));
}

#[tokio::test(start_paused = true)]
async fn what_policy_wants_and_was_not_answered_is_a_failure() {
    let resolver = FakeResolver::new();
    let names = names_with(&resolver, DnsOptions { family: DnsFamily::V4Only, ..DnsOptions::default() });
    resolver.set_lacking(HOST, &["fd00::1"], None, Some((Family::V4, ResolveError::Timeout)));
    assert_eq!(names.addresses(HOST, PATIENCE).await.failure, Some(ResolveError::Timeout));
}

#[tokio::test(start_paused = true)]
async fn a_request_does_not_wait_for_someone_who_has_more_patience() {
    let resolver = FakeResolver::new();
    resolver.set(HOST, &["10.0.0.1"], Some(SECOND));
    let names = names(&resolver);
    let address = [Address::Name { host: HOST.into(), port: 80 }];
    assert_eq!(names.sockets(address.iter()).await.unwrap().len(), 1);
    resolver.hang(HOST);
    pass(10 * SECOND).await;
    let begun = Instant::now();
    let request = async {
        assert_eq!(names.sockets(address.iter()).await.unwrap()[0].to_string(), "10.0.0.1:80");
        begun.elapsed()
    };
    let (_, waited) = tokio::join!(names.addresses(HOST, PATIENCE), request);
    assert_eq!((waited, begun.elapsed()), (PATIENCE_OF_REQUESTS, PATIENCE));
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_hangs_is_asked_once_for_all_who_wait() {
    let resolver = FakeResolver::new();
    resolver.hang(HOST);
    let names = names(&resolver);
    let mut looks = Box::pin(names.addresses(HOST, PATIENCE));
    assert!(poll!(&mut looks).is_pending());
    pass(Duration::from_millis(1)).await;
    // Whoever waits is the first to be woken at its end.
    let (waited, looked) = join(names.addresses(HOST, PATIENCE), looks).await;
    assert_eq!([waited.failure, looked.failure], [const { Some(ResolveError::Timeout) }; 2]);
    assert_eq!(resolver.asked(), 1);
}
