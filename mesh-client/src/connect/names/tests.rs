use futures_util::future::join_all;
use mesh_testkit::FakeResolver;
use mesh_testkit::clock::pass;

use super::*;

const HOST: &str = "a.example.com";
const SECOND: Duration = Duration::from_secs(1);

/// Names whose back-off is always the longest.
fn names(resolver: &Arc<FakeResolver>) -> Names {
    Names::new(resolver.clone(), Arc::new(|below| below - 1), 5 * SECOND)
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
    let unknown = Names::new(resolver.clone(), Arc::new(|below| below - 1), 5 * SECOND);
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
