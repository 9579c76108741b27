//! Clusters whose endpoints are DNS names (R32 of the failure scenarios): the resolver is a stand-in, and where
//! time matters it stands still.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use mesh_client::{Client, ClusterDump, Io};
use mesh_core::error::{Code, Fault};
use mesh_core::policy::{
    Address, CircuitBreakers, Cluster, Discovery, DnsFamily, DnsOptions, Endpoint, LocalityEndpoints, RouteMatch,
    Snapshot,
};
use mesh_core::source::{Family, Resolve, ResolveError, Resolving};
use mesh_testkit::clock::pass;
use mesh_testkit::{Behaviour, EchoServer, FakeResolver, FixedSource, TestCa, crypto, policy};
use parking_lot::Mutex;

use super::{TARGET, cluster, fetch, forward_with, get, read, server_of, snapshot_with};

const HOST: &str = "reviews.example.com";
const SECOND: Duration = Duration::from_secs(1);

fn name(port: u16) -> Endpoint {
    Endpoint::new(Address::Name { host: HOST.into(), port })
}

fn strict(endpoints: Vec<Endpoint>) -> Snapshot {
    let names = policy::endpoints(&"test".into(), endpoints);
    let discovery = Discovery::StrictDns(names.into());
    snapshot_with(forward_with(None), Cluster { discovery, ..cluster("test") }, &[])
}

fn logical(port: u16) -> Snapshot {
    let names = policy::endpoints(&"test".into(), vec![name(port)]);
    let discovery = Discovery::LogicalDns(names.into());
    snapshot_with(forward_with(None), Cluster { discovery, ..cluster("test") }, &[])
}

fn client(snapshot: Snapshot, resolver: &Arc<FakeResolver>) -> Client {
    Client::builder(FixedSource::of(TARGET, snapshot)).resolver(resolver.clone()).build()
}

fn dump(client: &Client) -> ClusterDump {
    client.dump().destinations[0].clusters[0].clone()
}

fn addresses(client: &Client) -> Vec<String> {
    dump(client).endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
}

/// Subscribes without sending anything and waits for the first look.
async fn subscribed(snapshot: Snapshot, resolver: &Arc<FakeResolver>) -> Client {
    let client = client(snapshot, resolver);
    let request = http::Request::get(format!("http://{TARGET}/")).body(()).unwrap();
    client.explain(&request);
    resolver.wait_for_asked(1).await;
    pass(Duration::from_millis(1)).await;
    client
}

#[tokio::test(start_paused = true)]
async fn every_address_of_a_name_is_an_endpoint_and_a_change_is_seen_after_the_ttl() {
    let resolver = FakeResolver::new();
    resolver.set(HOST, &["10.0.0.2", "10.0.0.1"], Some(20 * SECOND));
    let client = subscribed(strict(vec![name(80)]), &resolver).await;
    assert_eq!(addresses(&client), ["10.0.0.1:80", "10.0.0.2:80"]);

    resolver.set(HOST, &["10.0.0.3", "10.0.0.1"], Some(20 * SECOND));
    pass(19 * SECOND).await;
    assert_eq!((resolver.asked(), addresses(&client).len()), (1, 2), "the TTL is not over");
    assert_eq!(addresses(&client), ["10.0.0.1:80", "10.0.0.2:80"]);
    pass(SECOND).await;
    assert_eq!((resolver.asked(), addresses(&client)), (2, vec!["10.0.0.1:80".into(), "10.0.0.3:80".into()]));
}

/// As an address that discovery says is gone: of a name whose answers take turns each leaves some out.
#[tokio::test]
async fn what_is_under_way_to_an_address_that_an_answer_leaves_out_has_the_drain_limit() {
    for (limit, remains) in [(None, false), (Some(Duration::MAX), true)] {
        let server = EchoServer::start("v1").await;
        let port = server.address().port();
        let resolver = FakeResolver::new();
        resolver.set(HOST, &["127.0.0.1"], Some(20 * SECOND));
        let builder = Client::builder(FixedSource::of(TARGET, strict(vec![name(port)]))).resolver(resolver.clone());
        let client = if let Some(limit) = limit { builder.drain_limit(limit) } else { builder }.build();
        server.behave(Behaviour::Stall);
        let mut answer = std::pin::pin!(read(client.send(get("/")).await.unwrap()));
        assert!(futures_util::poll!(&mut answer).is_pending());
        resolver.set(HOST, &["127.0.0.2"], Some(20 * SECOND));
        tokio::time::pause();
        pass(21 * SECOND).await;
        assert_eq!(addresses(&client), [format!("127.0.0.2:{port}")]);
        pass(28 * SECOND).await;
        assert!(futures_util::poll!(&mut answer).is_pending(), "it is not over");
        pass(3 * SECOND).await;
        assert_eq!(futures_util::poll!(&mut answer).is_pending(), remains, "{limit:?}");
        tokio::time::resume();
    }
}

#[tokio::test(start_paused = true)]
async fn a_ttl_of_zero_is_looked_up_every_five_seconds() {
    let resolver = FakeResolver::new();
    resolver.set(HOST, &["10.0.0.1"], Some(Duration::ZERO));
    let _client = subscribed(strict(vec![name(80)]), &resolver).await;
    pass(60 * SECOND).await;
    assert_eq!(resolver.asked(), 13);

    // Control: the floor is what keeps it from being asked without end.
    let resolver = FakeResolver::new();
    resolver.set(HOST, &["10.0.0.1"], Some(Duration::ZERO));
    let source = FixedSource::of(TARGET, strict(vec![name(80)]));
    let client = Client::builder(source).resolver(resolver.clone()).dns_min_refresh(SECOND / 10).build();
    client.explain(&http::Request::get(format!("http://{TARGET}/")).body(()).unwrap());
    pass(60 * SECOND).await;
    assert!(resolver.asked() > 500, "{}", resolver.asked());
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_the_last_good_addresses_stay_and_the_failure_is_told() {
    for failure in [
        Some(Err(ResolveError::NotFound)),
        Some(Err(ResolveError::NoRecords)),
        Some(Err(ResolveError::Failed("SERVFAIL".into()))),
        Some(Err(ResolveError::Timeout)),
        // Emptied, as by a name server that restarts.
        Some(Ok(())),
        // Nobody answers.
        None,
    ] {
        let resolver = FakeResolver::new();
        resolver.set(HOST, &["10.0.0.1", "10.0.0.2"], Some(5 * SECOND));
        let client = subscribed(strict(vec![name(80)]), &resolver).await;
        match &failure {
            Some(Ok(())) => resolver.set(HOST, &[], None),
            Some(Err(error)) => resolver.fail(HOST, error.clone()),
            None => resolver.hang(HOST),
        }
        pass(60 * SECOND).await;
        assert_eq!(addresses(&client), ["10.0.0.1:80", "10.0.0.2:80"], "{failure:?}");
        assert!(dump(&client).dns_failures[0].starts_with(HOST), "{failure:?}: {:?}", dump(&client).dns_failures);
        assert!(resolver.asked() <= 40, "backs off: {} in a minute", resolver.asked());

        resolver.set(HOST, &["10.0.0.9"], None);
        pass(if failure.is_none() { 15 * SECOND } else { 5 * SECOND }).await;
        assert_eq!(addresses(&client), ["10.0.0.9:80"], "{failure:?}");
        assert_eq!(dump(&client).dns_failures, [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_appears_is_seen_within_five_seconds_and_until_then_requests_say_why() {
    let resolver = FakeResolver::new();
    let client = client(strict(vec![name(80)]), &resolver);
    for wait in [0, 3, 60] {
        pass(wait * SECOND).await;
        let error = fetch(&client, "/").await.unwrap_err();
        assert_eq!(error.code(), Code::NAME_UNRESOLVED);
        assert!(error.to_string().contains(&format!("{HOST}: no such name")), "{error}");
    }
    resolver.set(HOST, &["10.0.0.1"], None);
    pass(5 * SECOND).await;
    assert_eq!(addresses(&client), ["10.0.0.1:80"]);
}

#[tokio::test(start_paused = true)]
async fn another_order_is_no_change() {
    let resolver = FakeResolver::new();
    let client = subscribed(strict(vec![name(80)]), &resolver).await;
    resolver.set(HOST, &["10.0.0.1", "10.0.0.2", "10.0.0.3"], None);
    pass(5 * SECOND).await;
    let before = addresses(&client);
    resolver.set(HOST, &["10.0.0.3", "10.0.0.1", "10.0.0.2"], None);
    pass(60 * SECOND).await;
    assert_eq!(addresses(&client), before);
}

#[tokio::test(start_paused = true)]
async fn one_name_that_fails_takes_nothing_from_the_others() {
    let resolver = FakeResolver::new();
    resolver.set(HOST, &["10.0.0.1"], Some(5 * SECOND));
    resolver.set("other.example.com", &["10.0.1.1", "10.0.1.2"], Some(5 * SECOND));
    let other = Endpoint::new(Address::Name { host: "other.example.com".into(), port: 80 });
    let client = subscribed(strict(vec![name(80), other]), &resolver).await;
    assert_eq!(addresses(&client).len(), 3);
    resolver.fail(HOST, ResolveError::NotFound);
    resolver.set("other.example.com", &["10.0.1.2"], Some(5 * SECOND));
    pass(6 * SECOND).await;
    assert_eq!(addresses(&client), ["10.0.0.1:80", "10.0.1.2:80"], "one keeps what it had, the other is up to date");
}

#[tokio::test(start_paused = true)]
async fn one_name_that_is_not_answered_holds_up_none_of_the_others() {
    let resolver = FakeResolver::new();
    resolver.hang(HOST);
    resolver.set("other.example.com", &["10.0.1.1"], Some(5 * SECOND));
    let other = Endpoint::new(Address::Name { host: "other.example.com".into(), port: 80 });
    let client = subscribed(strict(vec![name(80), other]), &resolver).await;
    pass(2 * SECOND).await;
    assert_eq!(addresses(&client), ["10.0.1.1:80"], "the first look");
    // It is asked again once its time is over.
    resolver.set(HOST, &["10.0.0.1"], Some(5 * SECOND));
    pass(15 * SECOND).await;
    assert_eq!(addresses(&client), ["10.0.0.1:80", "10.0.1.1:80"]);
    resolver.hang(HOST);
    resolver.set("other.example.com", &["10.0.1.2"], Some(5 * SECOND));
    pass(7 * SECOND).await;
    assert_eq!(addresses(&client), ["10.0.0.1:80", "10.0.1.2:80"], "what it had stays, the other is up to date");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_records_are_a_thousand_endpoints() {
    let all: Vec<String> = (0..1000).map(|i| format!("10.0.{}.{}", i / 250, i % 250)).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let resolver = FakeResolver::new();
    resolver.set(HOST, &all, None);
    let client = subscribed(strict(vec![name(80)]), &resolver).await;
    assert_eq!(addresses(&client).len(), 1000);
}

#[tokio::test(start_paused = true)]
async fn srv_records_give_ports_weights_and_priorities() {
    let resolver = FakeResolver::new();
    resolver.set_services("_grpc._tcp.a", &[(10, 3, "one.a", 1), (10, 0, "two.a", 2), (20, 1, "spare.a", 3)], None);
    resolver.set("one.a", &["10.0.0.1"], None);
    resolver.set("two.a", &["10.0.0.2"], None);
    resolver.set("spare.a", &["10.0.0.3"], None);
    let srv = Endpoint::new(Address::Name { host: "_grpc._tcp.a".into(), port: 0 });
    let client = subscribed(strict(vec![srv]), &resolver).await;
    let seen: Vec<_> = dump(&client)
        .endpoints
        .iter()
        .map(|endpoint| (endpoint.address.to_string(), endpoint.priority, endpoint.weight, endpoint.usable))
        .collect();
    // The third waits for the others to fail.
    let want = [("10.0.0.1:1", 0, 3, true), ("10.0.0.2:2", 0, 1, true), ("10.0.0.3:3", 1, 1, true)];
    assert_eq!(seen, want.map(|(address, priority, weight, usable)| (address.to_owned(), priority, weight, usable)));
}

#[tokio::test(start_paused = true)]
async fn what_srv_records_say_of_their_order_is_within_their_priority() {
    let resolver = FakeResolver::new();
    resolver.set_services("_grpc._tcp.a", &[(10, 1, "one.a", 1), (20, 1, "spare.a", 2)], None);
    resolver.set("one.a", &["10.0.0.1"], None);
    resolver.set("spare.a", &["10.0.0.2"], None);
    let at = |address: &str| Endpoint::new(Address::Socket(address.parse().unwrap()));
    let srv = || Endpoint::new(Address::Name { host: "_grpc._tcp.a".into(), port: 0 });
    let priorities_of = async |priority: u32, first: Endpoint, second: Endpoint| {
        let mut names = policy::endpoints(&"test".into(), vec![first]);
        names.localities.push(LocalityEndpoints { priority, endpoints: vec![second], ..names.localities[0].clone() });
        let discovery = Discovery::StrictDns(names.into());
        let snapshot = snapshot_with(forward_with(None), Cluster { discovery, ..cluster("test") }, &[]);
        let client = subscribed(snapshot, &resolver).await;
        dump(&client).endpoints.iter().map(|endpoint| endpoint.priority).collect::<Vec<_>>()
    };
    assert_eq!(priorities_of(1, srv(), at("10.0.0.9:9")).await, [0, 1, 2], "the failover comes after both");
    assert_eq!(priorities_of(1, at("10.0.0.9:9"), srv()).await, [0, 1, 2]);
    assert_eq!(priorities_of(0, srv(), at("10.0.0.9:9")).await, [0, 1, 0], "two of one priority begin alike");
    assert_eq!(priorities_of(1, at("10.0.0.8:8"), at("10.0.0.9:9")).await, [0, 1], "the control: without records");
}

/// Lets time pass between requests; during one the clock runs, for sockets know no other.
async fn later(time: Duration) {
    tokio::time::pause();
    pass(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn connections_that_fail_ask_again_at_most_once_in_five_seconds() {
    let server = EchoServer::start("new").await;
    let port = server.address().port();
    let resolver = FakeResolver::new();
    // An address of loopback at which nobody listens: it refuses at once.
    resolver.set(HOST, &["127.0.0.2"], Some(3600 * SECOND));
    let client = client(strict(vec![name(port)]), &resolver);
    for _ in 0..20 {
        assert_eq!(fetch(&client, "/").await.unwrap_err().code(), Code::CONNECT_FAILED);
    }
    resolver.set(HOST, &["127.0.0.1"], Some(3600 * SECOND));
    later(SECOND).await;
    assert_eq!(resolver.asked(), 1, "not sooner than 5 s after the last time");
    later(4 * SECOND).await;
    assert_eq!(resolver.asked(), 2, "long before the TTL is over");
    assert_eq!(server_of(&fetch(&client, "/").await.unwrap()), "new");
    // Control: without failures it is not asked again.
    later(600 * SECOND).await;
    assert_eq!(resolver.asked(), 2);
}

/// On a paused clock: takes a time.
async fn passed(time: Duration) {
    let _ = tokio::time::timeout(time, std::future::pending::<()>()).await;
}

/// A resolver that takes two seconds.
#[derive(Debug)]
struct Slow(Arc<FakeResolver>);

impl Resolve for Slow {
    fn addresses<'r>(&'r self, host: &'r str) -> Resolving<'r, IpAddr> {
        Box::pin(async move {
            passed(2 * SECOND).await;
            self.0.addresses(host).await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_fails_soon_after_a_slow_look_up_asks_again_as_well() {
    for snapshot in [strict(vec![name(80)]), logical(80)] {
        let resolver = FakeResolver::new();
        resolver.set(HOST, &["10.0.0.1"], Some(3600 * SECOND));
        let client = Client::builder(FixedSource::of(TARGET, snapshot))
            .resolver(Arc::new(Slow(resolver.clone())))
            .connector(|_: Address| async move {
                passed(SECOND).await;
                Err::<Box<dyn Io>, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
            })
            .build();
        assert_eq!(fetch(&client, "/").await.unwrap_err().code(), Code::CONNECT_FAILED);
        assert_eq!(resolver.asked(), 1);
        pass(10 * SECOND).await;
        assert_eq!(resolver.asked(), 2, "once it is five seconds old");
        // Control: without failures it is not asked again.
        pass(600 * SECOND).await;
        assert_eq!(resolver.asked(), 2);
    }
}

#[tokio::test]
async fn a_peer_that_is_somebody_else_is_a_reason_to_ask_again() {
    let ca = TestCa::new();
    let server = EchoServer::start_mtls("impostor", &ca.identity("default", "impostor")).await;
    let reviews = "spiffe://cluster.local/ns/default/sa/reviews";
    for (peers, code, asked) in [(&[reviews][..], Some(Code::WRONG_PEER_IDENTITY), 2), (&[][..], None, 1)] {
        let resolver = FakeResolver::new();
        resolver.set(HOST, &["127.0.0.1"], Some(3600 * SECOND));
        let names = policy::endpoints(&"test".into(), vec![name(server.address().port())]);
        let secure = Cluster { discovery: Discovery::StrictDns(names.into()), ..policy::mtls_cluster("test", peers) };
        let client = Client::builder(FixedSource::of(TARGET, snapshot_with(forward_with(None), secure, &[])))
            .resolver(resolver.clone())
            .crypto(crypto())
            .identity(ca.watched("default", "web"))
            .build();
        assert_eq!(fetch(&client, "/").await.err().map(|error| error.code()), code);
        later(6 * SECOND).await;
        assert_eq!(resolver.asked(), asked, "{code:?}");
    }
}

#[tokio::test]
async fn a_logical_name_is_one_endpoint_and_new_connections_use_its_newest_address() {
    let server = EchoServer::start("one").await;
    let port = server.address().port();
    let resolver = FakeResolver::new();
    resolver.set(HOST, &["127.0.0.1"], Some(20 * SECOND));
    let client = client(logical(port), &resolver);
    assert_eq!(fetch(&client, "/").await.unwrap().status(), StatusCode::OK);
    assert_eq!(addresses(&client), [format!("{HOST}:{port}")]);

    // The connection that is there stays, whatever the name stands for now.
    resolver.set(HOST, &["127.0.0.9"], Some(20 * SECOND));
    later(30 * SECOND).await;
    assert_eq!(fetch(&client, "/").await.unwrap().status(), StatusCode::OK);
    assert_eq!((server.connections(), resolver.asked()), (1, 2));

    // A new one goes where the name says; nobody listens there.
    server.script([Behaviour::CloseConnection]);
    assert_eq!(fetch(&client, "/").await.unwrap_err().code(), Code::CONNECT_FAILED);
    resolver.set(HOST, &["127.0.0.1"], Some(20 * SECOND));
    later(30 * SECOND).await;
    assert_eq!(fetch(&client, "/").await.unwrap().status(), StatusCode::OK);

    // And when the name cannot be looked up, where it said last.
    resolver.fail(HOST, ResolveError::NotFound);
    later(30 * SECOND).await;
    server.script([Behaviour::CloseConnection]);
    assert_eq!(fetch(&client, "/").await.unwrap().status(), StatusCode::OK);
    assert_eq!(server.connections(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_logical_name_is_looked_up_in_the_background_and_its_last_good_address_stays() {
    let resolver = FakeResolver::new();
    resolver.set(HOST, &["127.0.0.1"], Some(20 * SECOND));
    let client = subscribed(logical(80), &resolver).await;
    pass(19 * SECOND).await;
    assert_eq!(resolver.asked(), 1, "the TTL is not over");
    pass(42 * SECOND).await;
    assert_eq!(resolver.asked(), 4, "at every end of the TTL, without a request");
    resolver.fail(HOST, ResolveError::NotFound);
    pass(60 * SECOND).await;
    assert!(resolver.asked() > 10, "again after a failure, with a back-off: {}", resolver.asked());
    assert!(dump(&client).dns_failures[0].starts_with(HOST), "{:?}", dump(&client).dns_failures);
    resolver.set(HOST, &["127.0.0.1"], Some(20 * SECOND));
    pass(5 * SECOND).await;
    assert_eq!(dump(&client).dns_failures, [""; 0]);
    // It ends with its cluster.
    drop(client);
    let asked = resolver.asked();
    pass(600 * SECOND).await;
    assert_eq!(resolver.asked(), asked);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_says_how_often_its_names_are_looked_up_and_which_families_it_uses() {
    for (family, want) in [
        (DnsFamily::All, vec!["10.0.0.1:80", "[fd00::1]:80"]),
        (DnsFamily::V4Only, vec!["10.0.0.1:80"]),
        (DnsFamily::V6Only, vec!["[fd00::1]:80"]),
        // Two ways to one server.
        (DnsFamily::Auto, vec!["[fd00::1]:80"]),
    ] {
        let resolver = FakeResolver::new();
        resolver.set(HOST, &["fd00::1", "10.0.0.1"], Some(20 * SECOND));
        let discovery = Discovery::StrictDns(policy::endpoints(&"test".into(), vec![name(80)]).into());
        let dns = DnsOptions { family, refresh: Some(60 * SECOND), ..DnsOptions::default() };
        let cluster = Cluster { discovery, dns, ..cluster("test") };
        let client = subscribed(snapshot_with(forward_with(None), cluster, &[]), &resolver).await;
        assert_eq!(addresses(&client), want, "{family:?}");
        pass(59 * SECOND).await;
        assert_eq!(resolver.asked(), 1);
        pass(SECOND).await;
        assert_eq!(resolver.asked(), 2);
    }
}

/// Both families at a name; nobody listens at the IPv6 one.
#[tokio::test]
async fn a_broken_family_is_fallen_back_from() {
    let server = EchoServer::start("v4").await;
    let port = server.address().port();
    let resolver = FakeResolver::new();
    resolver.set(HOST, &["::1", "127.0.0.1"], None);
    for snapshot in [strict(vec![name(port)]), logical(port)] {
        let client = client(snapshot, &resolver);
        for _ in 0..4 {
            let request = http::Request::get(format!("http://{TARGET}/")).body(String::new()).unwrap();
            let response = read(client.send(request).await.unwrap()).await.unwrap();
            assert_eq!(server_of(&response), "v4");
        }
    }
    // Control: an endpoint that has the broken family alone fails.
    resolver.set(HOST, &["::1"], None);
    let client = client(strict(vec![name(port)]), &resolver);
    assert_eq!(fetch(&client, "/").await.unwrap_err().code(), Code::CONNECT_FAILED);
}

/// As where the server is slow for one family, or a host moves in one: the other one, which names the endpoint, is as it was.
#[tokio::test(start_paused = true)]
async fn an_address_to_fall_back_on_follows_its_name_where_the_other_family_stays() {
    let slow = Some((Family::V4, ResolveError::Timeout));
    for (first, lacks) in [(&["fd00::1"][..], slow), (&["fd00::1", "10.0.0.1"], None)] {
        let (resolver, dialled) = (FakeResolver::new(), Arc::new(Mutex::new(BTreeSet::new())));
        resolver.set_lacking(HOST, first, Some(20 * SECOND), lacks);
        let connector = {
            let dialled = dialled.clone();
            move |address: Address| {
                dialled.lock().insert(address.to_string());
                async { Err::<Box<dyn Io>, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)) }
            }
        };
        let source = FixedSource::of(TARGET, strict(vec![name(80)]));
        let client = Client::builder(source).resolver(resolver.clone()).connector(connector).build();
        let dials = async || {
            dialled.lock().clear();
            assert_eq!(fetch(&client, "/").await.unwrap_err().code(), Code::CONNECT_FAILED);
            Vec::from_iter(dialled.lock().clone())
        };
        let had = || first.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 80).to_string());
        let mut before: Vec<_> = had().collect();
        before.sort_unstable();
        assert_eq!(dials().await, before);
        resolver.set(HOST, &["fd00::1", "10.0.0.2"], Some(20 * SECOND));
        pass(31 * SECOND).await;
        assert_eq!(addresses(&client), ["[fd00::1]:80"]);
        assert_eq!(dials().await, ["10.0.0.2:80", "[fd00::1]:80"]);
        // Control: one that is gone is not dialled for ever.
        resolver.set(HOST, &["fd00::1"], Some(20 * SECOND));
        pass(31 * SECOND).await;
        assert_eq!(dials().await, ["[fd00::1]:80"]);
    }
}

#[tokio::test]
async fn additional_addresses_belong_to_one_endpoint() {
    let server = EchoServer::start("second").await;
    let port = server.address().port();
    let dead = Address::Socket(format!("127.0.0.2:{port}").parse().unwrap());
    let additional = Box::new([Address::Socket(server.address())]);
    let endpoint = Endpoint { additional_addresses: additional, ..Endpoint::new(dead.clone()) };
    let (client, source) = super::client_of(policy::snapshot_of(cluster("test"), [endpoint]));
    assert_eq!(server_of(&fetch(&client, "/").await.unwrap()), "second");
    assert_eq!(addresses(&client).len(), 1);
    // Control: without them there is nothing at the first address.
    source.set_snapshot(TARGET, policy::snapshot_of(cluster("test"), [Endpoint::new(dead)]));
    let failed = || async { fetch(&client, "/").await.err().map(|error| error.code()) };
    while failed().await != Some(Code::CONNECT_FAILED) {}
}

/// A cluster that finds its endpoints like this, by itself or as the part of an aggregate; once more with another limit,
/// and a mark by which it is known to be in force.
fn versions(discovery: [&Discovery; 2], aggregate: bool) -> [Snapshot; 2] {
    let version = |discovery: &Discovery, most: Option<u32>| {
        let breaker = CircuitBreakers { max_requests: most, ..CircuitBreakers::default() };
        let leaf = cluster(if aggregate { "leaf" } else { "test" });
        let leaf = Cluster { discovery: discovery.clone(), breaker, ..leaf };
        let whole = Cluster { discovery: Discovery::Aggregate(vec!["leaf".into()]), ..cluster("test") };
        let others = [aggregate.then_some(whole), most.map(|_| cluster("mark"))];
        let clusters = others.into_iter().flatten().chain([leaf]).map(|cluster| (cluster, Vec::new()));
        policy::snapshot(policy::routes([policy::forward(RouteMatch::any(), forward_with(None))]), clusters)
    };
    [version(discovery[0], None), version(discovery[1], Some(9))]
}

/// Until the second of two versions is in force.
async fn is_marked(client: &Client) {
    while !client.dump().destinations[0].clusters.iter().any(|cluster| cluster.name.as_str() == "mark") {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn other_policy_for_a_cluster_of_names_cuts_no_stream_to_what_is_there_still() {
    const OTHER: &str = "other.example.com";
    let server = EchoServer::start("one").await;
    let names = |hosts: &[&str]| {
        let port = server.address().port();
        let named = |host: &&str| Endpoint::new(Address::Name { host: (*host).into(), port });
        Arc::new(policy::endpoints(&"test".into(), hosts.iter().map(named).collect()))
    };
    let strict = |hosts: &[&str]| Discovery::StrictDns(names(hosts));
    let logical = |hosts: &[&str]| Discovery::LogicalDns(names(hosts));
    for (before, after, aggregate, remains) in [
        (strict(&[HOST]), strict(&[HOST]), false, true),
        (logical(&[HOST]), logical(&[HOST]), false, true),
        (strict(&[HOST]), strict(&[HOST]), true, true),
        (logical(&[HOST]), logical(&[HOST]), true, true),
        // It has to be looked up first.
        (strict(&[HOST]), strict(&[HOST, OTHER]), false, true),
        // Nobody can tell.
        (strict(&[HOST]), strict(&["unknown.example.com"]), false, true),
        (strict(&[HOST]), logical(&[HOST]), false, true),
        (logical(&[HOST]), strict(&[HOST]), false, true),
        // Controls: it is there no more.
        (strict(&[HOST]), strict(&[OTHER]), false, false),
        (strict(&[HOST]), strict(&[OTHER]), true, false),
        (logical(&[HOST]), logical(&[OTHER]), false, false),
    ] {
        let resolver = FakeResolver::new();
        resolver.set(HOST, &["127.0.0.1"], Some(3600 * SECOND));
        resolver.set(OTHER, &["127.0.0.9"], Some(3600 * SECOND));
        let [first, second] = versions([&before, &after], aggregate);
        let source = FixedSource::of(TARGET, first);
        let client = Client::builder(source.clone()).resolver(resolver).build();
        server.script([Behaviour::Stall]);
        let mut answer = std::pin::pin!(read(client.send(get("/")).await.unwrap()));
        source.set_snapshot(TARGET, second);
        is_marked(&client).await;
        later(29 * SECOND).await;
        assert!(futures_util::poll!(&mut answer).is_pending(), "{before:?} {after:?}");
        later(2 * SECOND).await;
        assert_eq!(futures_util::poll!(&mut answer).is_pending(), remains, "{before:?} {after:?} {aggregate}");
    }
}

#[tokio::test]
async fn other_policy_while_names_cannot_be_looked_up_leaves_the_addresses_that_were_known() {
    let server = EchoServer::start("one").await;
    let names = Arc::new(policy::endpoints(&"test".into(), vec![name(server.address().port())]));
    for discovery in [Discovery::StrictDns(names.clone()), Discovery::LogicalDns(names)] {
        for aggregate in [false, true] {
            let resolver = FakeResolver::new();
            resolver.set(HOST, &["127.0.0.1"], Some(5 * SECOND));
            let [first, second] = versions([&discovery; 2], aggregate);
            let source = FixedSource::of(TARGET, first);
            let client = Client::builder(source.clone()).resolver(resolver.clone()).build();
            fetch(&client, "/").await.unwrap();
            resolver.fail(HOST, ResolveError::NotFound);
            later(6 * SECOND).await;
            source.set_snapshot(TARGET, second);
            is_marked(&client).await;
            assert_eq!(server_of(&fetch(&client, "/").await.unwrap()), "one", "{discovery:?} {aggregate}");
            let made =
                client.dump().destinations[0].clusters.iter().map(|cluster| cluster.dns_failures.len()).sum::<usize>();
            assert_eq!(made, 1, "control: nobody could tell it anew");
        }
    }
    // Control: one that has not been there before knows nothing.
    let resolver = FakeResolver::new();
    resolver.fail(HOST, ResolveError::NotFound);
    let client = client(strict(vec![name(server.address().port())]), &resolver);
    assert_eq!(fetch(&client, "/").await.unwrap_err().code(), Code::NAME_UNRESOLVED);
}

#[tokio::test(start_paused = true)]
async fn other_policy_for_a_cluster_of_names_waits_for_no_resolver() {
    let strict = Discovery::StrictDns(policy::endpoints(&"test".into(), vec![name(80)]).into());
    let other = Endpoint::new(Address::Name { host: "other.example.com".into(), port: 80 });
    let more = Discovery::StrictDns(policy::endpoints(&"test".into(), vec![name(80), other]).into());
    // The control: what has other names is to be looked up first.
    for (after, known) in [(&strict, &["10.0.0.1:80"][..]), (&more, &[])] {
        let resolver = FakeResolver::new();
        resolver.set(HOST, &["10.0.0.1"], Some(5 * SECOND));
        resolver.hang("other.example.com");
        let [first, second] = versions([&strict, after], false);
        let source = FixedSource::of(TARGET, first);
        let client = Client::builder(source.clone()).resolver(resolver.clone()).build();
        client.explain(&http::Request::get(format!("http://{TARGET}/")).body(()).unwrap());
        resolver.wait_for_asked(1).await;
        resolver.hang(HOST);
        pass(6 * SECOND).await;
        source.set_snapshot(TARGET, second);
        is_marked(&client).await;
        let dump = client.dump();
        let test = dump.destinations[0].clusters.iter().find(|cluster| cluster.name.as_str() == "test").unwrap();
        let seen: Vec<_> = test.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
        assert_eq!(seen, known);
    }
}
