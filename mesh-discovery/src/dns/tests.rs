//! Against a name server on loopback, over UDP and TCP.

use std::net::SocketAddr;

use futures_util::poll;
use hickory_resolver::system_conf::parse_resolv_conf;
use mesh_testkit::{DnsFault, DnsServer};
use tokio::net::UdpSocket;

use super::*;

fn quick(server: &DnsServer) -> DnsResolverBuilder {
    DnsResolver::builder().server(server.address()).timeout(Duration::from_millis(200)).attempts(1)
}

fn texts(found: &Resolved<IpAddr>) -> Vec<String> {
    found.records.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn both_families_are_found_ipv6_first_with_their_ttl() {
    let server = DnsServer::start().await;
    server.set("a.test", &["10.0.0.1", "fd00::1"], 40);
    let resolver = quick(&server).build().unwrap();
    let found = resolver.addresses("a.test").await.unwrap();
    assert_eq!(texts(&found), ["fd00::1", "10.0.0.1"]);
    let ttl = found.ttl.unwrap();
    assert!(ttl > Duration::from_secs(30) && ttl <= Duration::from_secs(40), "{ttl:?}");

    // Kept: nobody is asked again.
    let asked = server.queries();
    resolver.addresses("a.test").await.unwrap();
    assert_eq!(server.queries(), asked);
}

#[tokio::test]
async fn what_is_forgotten_is_asked_for_anew_and_nothing_else() {
    let server = DnsServer::start().await;
    let resolver = quick(&server).search("default.svc").build().unwrap();
    let put = |ip: &str, port: u16| {
        server.set("a.default.svc", &[ip], 3600);
        server.set("b.default.svc", &[ip], 3600);
        server.set_services("_grpc._tcp.a.test", &[(0, 0, "a.test", port)], 3600);
    };
    let known = async || {
        let (a, b) = (resolver.addresses("a").await.unwrap(), resolver.addresses("b").await.unwrap());
        let services = resolver.services("_grpc._tcp.a.test").await.unwrap();
        (texts(&a), texts(&b), services.records[0].port)
    };
    let (old, new) = (vec!["10.0.0.1".to_owned()], vec!["10.0.0.2".to_owned()]);
    put("10.0.0.1", 1);
    assert_eq!(known().await, (old.clone(), old.clone(), 1));
    put("10.0.0.2", 2);
    // Control: it is kept for its TTL.
    assert_eq!(known().await, (old.clone(), old.clone(), 1));
    resolver.forget("a");
    resolver.forget("_grpc._tcp.a.test");
    resolver.forget("not a name");
    assert_eq!(known().await, (new, old, 2));
}

#[tokio::test]
async fn a_ttl_of_zero_is_asked_for_each_time() {
    let server = DnsServer::start().await;
    server.set("a.test", &["10.0.0.1"], 0);
    let resolver = quick(&server).build().unwrap();
    assert_eq!(resolver.addresses("a.test").await.unwrap().ttl, Some(Duration::ZERO));
    server.set("a.test", &["10.0.0.2"], 0);
    assert_eq!(texts(&resolver.addresses("a.test").await.unwrap()), ["10.0.0.2"]);
}

#[tokio::test]
async fn each_failure_is_told_apart() {
    let server = DnsServer::start().await;
    server.set("empty.test", &[], 60);
    server.break_name("broken.test", DnsFault::ServerFailure);
    server.break_name("silent.test", DnsFault::Silence);
    let resolver = quick(&server).build().unwrap();
    assert_eq!(resolver.addresses("no.test").await, Err(ResolveError::NotFound));
    assert_eq!(resolver.addresses("empty.test").await, Err(ResolveError::NoRecords));
    assert_eq!(resolver.addresses("silent.test").await, Err(ResolveError::Timeout));
    let broken = resolver.addresses("broken.test").await;
    assert!(matches!(&broken, Err(ResolveError::Failed(text)) if text.contains("Server Failure")), "{broken:?}");
    assert!(resolver.addresses("not a name").await.is_err());
}

/// A name server or something on the way that ignores queries for one family: nothing would be found before its time is over.
#[tokio::test]
async fn a_family_that_is_not_answered_does_not_hold_up_the_other() {
    let server = DnsServer::start().await;
    let resolver = DnsResolver::builder().server(server.address()).timeout(Duration::from_secs(3600)).build().unwrap();
    for (silent, want) in [(Family::V6, "10.0.0.1"), (Family::V4, "fd00::1")] {
        server.set("a.test", &["fd00::1", "10.0.0.1"], 60);
        server.break_family("a.test", silent, DnsFault::Silence);
        resolver.forget("a.test");
        let found = resolver.addresses("a.test").await.unwrap();
        assert_eq!((texts(&found), found.lacks), (vec![want.to_owned()], Some((silent, ResolveError::Timeout))));
        // It is asked for anew where the other one is kept, and nobody waits for the first time's answer any more.
        later(LATE).await;
        while !resolver.late.are_over() {
            tokio::task::yield_now().await;
        }
        server.set("a.test", &["fd00::1", "10.0.0.1"], 60);
        let found = resolver.addresses("a.test").await.unwrap();
        assert_eq!((texts(&found).len(), found.lacks), (2, None));
    }
}

/// Lets time pass between look-ups; during one the clock runs, for sockets know no other.
async fn later(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_family_that_fails_is_told_apart_from_one_without_records() {
    let server = DnsServer::start().await;
    server.set("a.test", &["fd00::1", "10.0.0.1"], 60);
    server.break_family("a.test", Family::V4, DnsFault::ServerFailure);
    server.set("one.test", &["fd00::1"], 60);
    server.set("careless.test", &["fd00::1", "10.0.0.1"], 60);
    server.break_family("careless.test", Family::V4, DnsFault::NotFound);
    let resolver = quick(&server).build().unwrap();
    for (name, is_lacking) in [("a.test", true), ("one.test", false), ("careless.test", false)] {
        let found = resolver.addresses(name).await.unwrap();
        assert_eq!(texts(&found), ["fd00::1"], "{name}");
        let failed = |lacks: &(Family, ResolveError)| matches!(lacks, (Family::V4, ResolveError::Failed(_)));
        assert_eq!(
            (found.lacks.is_some(), found.lacks.is_none_or(|lacks| failed(&lacks))),
            (is_lacking, true),
            "{name}"
        );
    }
    // There may be some.
    server.set("none.test", &[], 60);
    server.break_family("none.test", Family::V6, DnsFault::ServerFailure);
    assert!(matches!(resolver.addresses("none.test").await, Err(ResolveError::Failed(_))));
}

#[tokio::test]
async fn a_query_that_nobody_answers_is_put_as_often_as_it_is_said() {
    let server = DnsServer::start().await;
    server.break_name("silent.test", DnsFault::Silence);
    // Too short for it to be sent a second time within one.
    let with = || DnsResolver::builder().server(server.address()).timeout(Duration::from_millis(50));
    let mut before = 0;
    for (resolver, times) in [(with(), 2), (with().attempts(1), 1), (with().attempts(3), 3)] {
        assert_eq!(resolver.build().unwrap().addresses("silent.test").await, Err(ResolveError::Timeout));
        // For each family.
        server.wait_for_queries(before + 2 * times).await;
        assert_eq!(server.queries(), before + 2 * times, "{times}");
        before = server.queries();
    }
}

#[tokio::test]
async fn no_such_name_is_kept_for_a_moment_whatever_the_zone_says() {
    let server = DnsServer::start().await;
    let held = quick(&server).negative_ttl(Duration::from_secs(600)).build().unwrap();
    let brief = quick(&server).negative_ttl(Duration::ZERO).build().unwrap();
    for resolver in [&held, &brief] {
        assert_eq!(resolver.addresses("late.test").await, Err(ResolveError::NotFound));
    }
    server.set("late.test", &["10.0.0.1"], 60);
    assert_eq!(held.addresses("late.test").await, Err(ResolveError::NotFound), "negative caching");
    // Control, and what the default of a second comes to: the zone's hour does not count.
    assert_eq!(texts(&brief.addresses("late.test").await.unwrap()), ["10.0.0.1"]);
}

#[tokio::test]
async fn a_thousand_records_come_over_tcp() {
    let server = DnsServer::start().await;
    let all: Vec<String> = (0..1000).map(|i| format!("10.0.{}.{}", i / 250, i % 250)).collect();
    server.set("many.test", &all.iter().map(String::as_str).collect::<Vec<_>>(), 60);
    let resolver = DnsResolver::builder().server(server.address()).build().unwrap();
    assert_eq!(resolver.addresses("many.test").await.unwrap().records.len(), 1000);
    assert_eq!(server.queries_over_tcp(), 1);
}

#[tokio::test]
async fn srv_records_name_hosts_and_ports() {
    let server = DnsServer::start().await;
    server.set_services("_grpc._tcp.a.test", &[(1, 5, "one.a.test", 80), (2, 0, "two.a.test", 81)], 30);
    let found = quick(&server).build().unwrap().services("_grpc._tcp.a.test").await.unwrap();
    let service = |priority, weight, host: &str, port| Service { priority, weight, host: host.into(), port };
    assert_eq!(found.records, [service(1, 5, "one.a.test.", 80), service(2, 0, "two.a.test.", 81)]);
    assert!(found.ttl.is_some_and(|ttl| ttl <= Duration::from_secs(30)));
    server.set_services("_none._tcp.a.test", &[(0, 0, "", 0)], 30);
    let none = quick(&server).build().unwrap();
    assert_eq!(none.services("_none._tcp.a.test").await, Err(ResolveError::NoRecords));
}

#[tokio::test]
async fn short_names_are_searched_and_dots_decide_where_first() {
    let server = DnsServer::start().await;
    server.set("a.default.svc", &["10.0.0.1"], 60);
    server.set("a.b.default.svc", &["10.0.0.2"], 60);
    server.set("a.b", &["10.0.0.3"], 60);
    let searching = |ndots| quick(&server).search("default.svc").ndots(ndots).build().unwrap();
    for (ndots, name, want) in
        [(1, "a", "10.0.0.1"), (1, "a.b", "10.0.0.3"), (5, "a.b", "10.0.0.2"), (5, "a.b.", "10.0.0.3")]
    {
        assert_eq!(texts(&searching(ndots).addresses(name).await.unwrap()), [want], "{name} with ndots {ndots}");
    }
    // The families of one name are those of one host.
    server.set("a", &["fd00::1"], 60);
    assert_eq!(texts(&searching(1).addresses("a").await.unwrap()), ["10.0.0.1"]);
    assert_eq!(texts(&searching(1).addresses("a.").await.unwrap()), ["fd00::1"]);
    server.break_name("a", DnsFault::NotFound);
    // Control: nothing is searched by itself.
    assert_eq!(quick(&server).build().unwrap().addresses("a").await, Err(ResolveError::NotFound));
    assert!(quick(&server).search("not a domain..").build().is_err());
}

/// resolv.conf(5): the last of `domain` and `search` counts, and the domain of the host's own name where there is neither.
#[test]
fn names_are_searched_where_the_system_says_and_nowhere_else() {
    let texts = |domains: Vec<Name>| domains.iter().map(Name::to_ascii).collect::<Vec<_>>();
    let builder = DnsResolver::builder();
    for (file, want) in [
        ("domain a.test\nsearch b.test c.test\n", &["b.test", "c.test"][..]),
        ("search b.test c.test\ndomain a.test\n", &["a.test"]),
        ("search b.test\n", &["b.test"]),
        ("domain a.test\n", &["a.test"]),
    ] {
        let (config, _) = parse_resolv_conf(format!("nameserver 127.0.0.1\n{file}")).unwrap();
        let (domain, search, _) = config.into_parts();
        let own = builder.clone().search("own.test").domains(domain.clone(), search.clone()).unwrap();
        assert_eq!(texts(own), ["own.test"], "{file}");
        assert_eq!(texts(builder.domains(domain, search).unwrap()), want, "{file}");
    }
    // As of a host that is called one.host.test.
    let host = || Some(Name::from_ascii("host.test").unwrap());
    let said = vec![Name::from_ascii("b.test").unwrap()];
    assert_eq!(texts(builder.domains(host(), said).unwrap()), ["b.test"]);
    assert_eq!(texts(builder.domains(host(), Vec::new()).unwrap()), ["host.test"]);
    assert_eq!(texts(builder.clone().search("own.test").domains(host(), Vec::new()).unwrap()), ["own.test"]);
}

/// The wildcard of a later domain answers for every name, and with somebody else's address.
#[tokio::test]
async fn a_name_that_cannot_be_looked_up_for_now_is_looked_for_nowhere_else() {
    let server = DnsServer::start().await;
    server.set("db.test.elsewhere.test", &["10.6.6.6"], 60);
    let resolver = quick(&server).search("default.svc").search("elsewhere.test").ndots(5).build().unwrap();
    let found = async || {
        resolver.forget("db.test.default.svc");
        resolver.addresses("db.test").await
    };
    // The control: where there is no such name, or none with addresses, it is the next one.
    assert_eq!(texts(&found().await.unwrap()), ["10.6.6.6"]);
    server.set("db.test.default.svc", &[], 0);
    assert_eq!(texts(&found().await.unwrap()), ["10.6.6.6"]);
    server.break_name("db.test.default.svc", DnsFault::Silence);
    assert_eq!(found().await, Err(ResolveError::Timeout));
    server.break_name("db.test.default.svc", DnsFault::ServerFailure);
    assert!(matches!(found().await, Err(ResolveError::Failed(_))));

    // Services as addresses; that there is decidedly none is an answer.
    server.set_services("_grpc._tcp.db.elsewhere.test", &[(0, 0, "else.test", 80)], 60);
    let found = async || {
        resolver.forget("_grpc._tcp.db.default.svc");
        resolver.services("_grpc._tcp.db").await
    };
    assert_eq!(&*found().await.unwrap().records[0].host, "else.test.");
    server.set_services("_grpc._tcp.db.default.svc", &[(0, 0, "", 0)], 60);
    assert_eq!(found().await, Err(ResolveError::NoRecords));
    server.break_name("_grpc._tcp.db.default.svc", DnsFault::Silence);
    assert_eq!(found().await, Err(ResolveError::Timeout));
    server.break_name("_grpc._tcp.db.default.svc", DnsFault::ServerFailure);
    assert!(matches!(found().await, Err(ResolveError::Failed(_))));
}

/// As getaddrinfo does for AF_INET: a name without the family that is wanted is not it, whatever it has of the other one.
#[tokio::test]
async fn whoever_wants_one_family_has_that_one_asked_for_and_searched_for() {
    let server = DnsServer::start().await;
    server.set("db.test.first.test", &["fd00::1"], 60);
    server.set("db.test.second.test", &["fd00::2", "10.0.0.2"], 60);
    let resolver = || quick(&server).search("first.test").search("second.test").ndots(5).build().unwrap();
    for (family, want, queries) in [(Family::V4, "10.0.0.2", 2), (Family::V6, "fd00::1", 1)] {
        let before = server.queries();
        let found = resolver().addresses_of("db.test", family).await.unwrap();
        assert_eq!((texts(&found), found.lacks), (vec![want.to_owned()], None), "{family}");
        assert_eq!(server.queries() - before, queries, "{family}");
    }
    // The control: of whoever takes both, the first name that has one is it.
    assert_eq!(texts(&resolver().addresses("db.test").await.unwrap()), ["fd00::1"]);
    // What becomes of the other family is nothing to it.
    server.set("slow.test", &["fd00::1", "10.0.0.1"], 60);
    server.break_family("slow.test", Family::V6, DnsFault::Silence);
    assert_eq!(texts(&resolver().addresses_of("slow.test.", Family::V4).await.unwrap()), ["10.0.0.1"]);
    let none = resolver().addresses_of("db.test.first.test.", Family::V4).await;
    assert_eq!(none, Err(ResolveError::NoRecords));
}

/// An alias is answered with what it stands for, or alone; what is kept of either is kept for the name that was asked for.
#[tokio::test]
async fn what_an_alias_stands_for_is_forgotten_with_it() {
    let server = DnsServer::start().await;
    server.set_alias("whole.test", "middle.test", 3600);
    server.set_bare_alias("split.test", "middle.test", 3600);
    server.set_bare_alias("twice.test", "split.test", 3600);
    server.set_alias("middle.test", "end.test", 3600);
    let resolver = quick(&server).build().unwrap();
    let known = async |name: &str| texts(&resolver.addresses(name).await.unwrap());
    server.set("end.test", &["10.0.0.1"], 3600);
    for name in ["end.test", "split.test", "whole.test", "twice.test"] {
        assert_eq!(known(name).await, ["10.0.0.1"], "{name}");
    }
    server.set("end.test", &["10.0.0.2"], 3600);
    for name in ["whole.test", "split.test", "twice.test"] {
        // Control: it is kept for its TTL.
        assert_eq!(known(name).await, ["10.0.0.1"], "{name}");
        resolver.forget(name);
        assert_eq!(known(name).await, ["10.0.0.2"], "{name}");
    }
    assert_eq!(known("end.test").await, ["10.0.0.1"], "nobody has forgotten that one");
}

#[tokio::test]
async fn an_alias_holds_for_the_shortest_time_on_the_way_and_fails_as_its_end_does() {
    let server = DnsServer::start().await;
    server.set("end.test", &["10.0.0.1"], 3600);
    server.set("brief.test", &["10.0.0.1"], 0);
    server.set_alias("nowhere.test", "no.test", 3600);
    let resolver = quick(&server).build().unwrap();
    for (alias, end, alias_ttl) in [("a.test", "end.test", 0), ("b.test", "brief.test", 3600)] {
        let bare = format!("bare.{alias}");
        server.set_alias(alias, end, alias_ttl);
        server.set_bare_alias(&bare, end, alias_ttl);
        for name in [alias, &bare] {
            assert_eq!(resolver.addresses(name).await.unwrap().ttl, Some(Duration::ZERO), "{name}");
        }
    }
    assert_eq!(resolver.addresses("nowhere.test").await, Err(ResolveError::NotFound));
}

#[tokio::test]
async fn what_the_hosts_file_has_is_asked_of_nobody() {
    let server = DnsServer::start().await;
    for name in ["db.test", "db", "db.default.svc", "db.test.default.svc"] {
        server.set(name, &["fd00::9", "10.0.0.9"], 60);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hosts");
    std::fs::write(&path, "10.0.0.1 db db.test\nfd00::1 six.test\n10.0.0.2 both.test\nfd00::2 both.test\n").unwrap();
    let resolver = quick(&server).search("default.svc").ndots(5).hosts_file(path).build().unwrap();
    let found = [
        // One family beside two in DNS; short and dotted names beside those of a search domain.
        ("db.test", vec!["10.0.0.1"]),
        ("db", vec!["10.0.0.1"]),
        ("DB.test", vec!["10.0.0.1"]),
        ("db.test.", vec!["10.0.0.1"]),
        ("six.test", vec!["fd00::1"]),
        ("both.test", vec!["fd00::2", "10.0.0.2"]),
    ];
    for (name, want) in found {
        let found = resolver.addresses(name).await.unwrap();
        assert_eq!(texts(&found), want, "{name}");
        assert_eq!(found.lacks, None, "{name}");
        assert!(found.ttl.is_some_and(|ttl| ttl <= Duration::from_secs(5)), "{name}: {:?}", found.ttl);
    }
    // Whoever wants one family gets it from there if the file has it.
    assert_eq!(texts(&resolver.addresses_of("both.test", Family::V4).await.unwrap()), ["10.0.0.2"]);
    assert_eq!(texts(&resolver.addresses_of("six.test", Family::V6).await.unwrap()), ["fd00::1"]);
    assert_eq!(server.queries(), 0);
    server.set("six.test", &["fd00::9", "10.0.0.9"], 60);
    let found = resolver.addresses_of("six.test", Family::V4).await.unwrap();
    assert!(texts(&found).contains(&"10.0.0.9".to_owned()), "{found:?}");
    // Control: what it does not have is asked for.
    assert_eq!(texts(&resolver.addresses("db.default.svc").await.unwrap()), ["fd00::9", "10.0.0.9"]);
    let without = quick(&server).search("default.svc").hosts_file(folder.path().join("none")).build().unwrap();
    assert_eq!(texts(&without.addresses("db").await.unwrap()), ["fd00::9", "10.0.0.9"]);
}

#[tokio::test]
async fn look_ups_at_once_are_bounded() {
    let server = DnsServer::start().await;
    server.break_name("silent.test", DnsFault::Silence);
    server.set("a.test", &["10.0.0.1"], 60);
    let resolver = |most| quick(&server).timeout(Duration::from_secs(2)).concurrency(most).build().unwrap();
    for (most, overtakes) in [(1, false), (2, true)] {
        let resolver = resolver(most);
        let before = server.queries();
        let stuck = resolver.addresses("silent.test");
        let other = async {
            server.wait_for_queries(before + 2).await;
            resolver.addresses("a.test").await
        };
        tokio::pin!(stuck, other);
        tokio::select! {
            biased;
            found = &mut other => assert!(found.is_ok() && overtakes, "{found:?}"),
            late = &mut stuck => assert!(late == Err(ResolveError::Timeout) && !overtakes),
        }
    }
}

/// As glibc, Go and c-ares do: the first one knows best, and is asked alone unless it is in trouble.
#[tokio::test]
async fn name_servers_are_asked_in_their_order_and_the_next_one_where_one_is_in_trouble() {
    let (first, second, third) = (DnsServer::start().await, DnsServer::start().await, DnsServer::start().await);
    let all = || quick(&first).server(second.address()).server(third.address()).search("else.test").ndots(5);
    let resolver = all().build().unwrap();
    // Nobody else's NXDOMAIN is heard, and nobody else's address where the first says that there is none.
    for i in 0..20 {
        first.set(&format!("host{i}.test"), &["10.0.0.1"], 60);
        assert_eq!(texts(&resolver.addresses(&format!("host{i}.test.")).await.unwrap()), ["10.0.0.1"]);
    }
    second.set("second.test", &["10.0.0.2"], 60);
    second.set("empty.test", &["10.0.0.2"], 60);
    first.set("empty.test", &[], 60);
    assert_eq!(resolver.addresses("second.test.").await, Err(ResolveError::NotFound));
    assert_eq!(resolver.addresses("empty.test.").await, Err(ResolveError::NoRecords));
    assert_eq!((second.queries(), third.queries()), (0, 0));

    let (refused, unable) = (DnsFault::Refused, DnsFault::NotImplemented);
    for fault in [DnsFault::ServerFailure, refused, unable, DnsFault::Referral, DnsFault::Silence] {
        let name = |of: &str| format!("{of}.{fault:?}.test").to_lowercase();
        [&first, &second].iter().for_each(|server| server.break_name(&name("third"), fault));
        third.set(&name("third"), &["10.0.0.3"], 60);
        first.break_name(&name("second"), fault);
        second.set(&name("second"), &["10.0.0.2"], 60);
        third.set(&name("second"), &["10.0.0.3"], 60);
        first.break_name(&name("none"), fault);
        third.set(&name("none"), &["10.0.0.3"], 60);
        let known = async |of: &str| resolver.addresses(&format!("{}.", name(of))).await;
        assert_eq!(texts(&known("second").await.unwrap()), ["10.0.0.2"], "{fault:?}");
        assert_eq!(texts(&known("third").await.unwrap()), ["10.0.0.3"], "{fault:?}");
        // What the second one says is an answer like any other.
        assert_eq!(known("none").await, Err(ResolveError::NotFound), "{fault:?}");

        // Where all are in trouble there may be such a name: it is looked for nowhere else.
        [&first, &second, &third].iter().for_each(|server| server.break_name(&name("all"), fault));
        first.set(&format!("{}.else.test", name("all")), &["10.6.6.6"], 60);
        let failed = quick(&first).server(second.address()).server(third.address());
        let failed = failed.search("else.test").build().unwrap().addresses(&name("all")).await;
        let is_failure = matches!(failed, Err(ResolveError::Timeout | ResolveError::Failed(_)));
        assert!(is_failure, "{fault:?}: {failed:?}");
    }
}

/// They are no names of hosts, and those of many: of compose files, of SRV records, of entries in the hosts file.
#[tokio::test]
async fn names_may_have_underscores_anywhere() {
    let server = DnsServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hosts");
    std::fs::write(&path, "10.0.0.9 own_host\n").unwrap();
    let resolver = quick(&server).search("net_1").hosts_file(path).build().unwrap();
    server.set_services("_grpc._tcp.my_app.test", &[(0, 0, "node_1.test", 80)], 60);
    for (name, want) in [("node_1.test", "10.0.0.1"), ("my_db.net_1", "10.0.0.2"), ("xn--bcher-kva.test", "10.0.0.3")] {
        server.set(name, &[want], 3600);
    }
    let services = resolver.services("_grpc._tcp.my_app.test").await.unwrap();
    let host = services.records[0].host.clone();
    for (name, want) in [
        (&*host, "10.0.0.1"),
        ("my_db", "10.0.0.2"),
        ("My_DB", "10.0.0.2"),
        ("own_host", "10.0.0.9"),
        ("b\u{fc}cher.test", "10.0.0.3"),
    ] {
        assert_eq!(texts(&resolver.addresses(name).await.unwrap()), [want], "{name}");
    }
    server.set("my_db.net_1", &["10.0.0.4"], 3600);
    resolver.forget("my_db");
    assert_eq!(texts(&resolver.addresses("my_db").await.unwrap()), ["10.0.0.4"]);
    // What has no form over DNS is refused, and is told why.
    let refused = resolver.addresses("b\u{fc}cher_x.test").await;
    assert!(matches!(&refused, Err(ResolveError::Failed(text)) if text.contains("b\u{fc}cher_x")), "{refused:?}");
}

#[tokio::test]
async fn what_is_kept_waits_for_no_place() {
    let server = DnsServer::start().await;
    server.break_name("silent.test", DnsFault::Silence);
    server.set("a.test", &["10.0.0.1"], 60);
    server.set_services("_grpc._tcp.a.test", &[(0, 0, "a.test", 80)], 60);
    let resolver = quick(&server).timeout(Duration::from_secs(3600)).concurrency(1).build().unwrap();
    let known = async || {
        let services = resolver.services("_grpc._tcp.a.test").await.unwrap();
        (texts(&resolver.addresses("a.test").await.unwrap()), services.records.len())
    };
    known().await;
    let before = server.queries();
    let kept = async {
        server.wait_for_queries(before + 2).await;
        known().await
    };
    tokio::select! {
        kept = kept => assert_eq!(kept, (vec!["10.0.0.1".to_owned()], 1)),
        _ = resolver.addresses("silent.test") => panic!("it is silent"),
    }
}

/// A name server that is away.
async fn away() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// A look-up that is given up after a second, which one server has met with silence.
async fn meets_silence(resolver: &DnsResolver, name: &str, server: &UdpSocket) {
    let look_up = resolver.addresses(name);
    tokio::select! {
        _ = look_up => panic!("it is silent"),
        () = async {
            // One for each family.
            for _ in 0..2 {
                let query = timeout(Duration::from_secs(20), server.recv_from(&mut [0; 512])).await;
                query.expect("it is asked").unwrap();
            }
            later(Duration::from_secs(1)).await;
        } => {}
    }
}

/// Where names are searched each of them would cost the whole time of each that is away, at every look-up.
#[tokio::test]
async fn name_servers_that_are_away_are_waited_for_once_in_a_while() {
    let ((first, at_first), (second, at_second)) = (away().await, away().await);
    let third = DnsServer::start().await;
    third.set("db.other", &["10.0.0.1"], 60);
    third.set("else.other", &["10.0.0.3"], 60);
    let resolver = DnsResolver::builder().server(at_first).server(at_second).server(third.address());
    let resolver = resolver.timeout(Duration::from_secs(3600)).ndots(5);
    let resolver = ["one.test", "two.test", "three.test"].into_iter().fold(resolver, DnsResolverBuilder::search);
    let resolver = resolver.build().unwrap();
    let known = async |name| timeout(Duration::from_secs(20), resolver.addresses(name)).await;
    meets_silence(&resolver, "db.other", &first).await;
    meets_silence(&resolver, "db.other", &second).await;
    assert_eq!(texts(&known("db.other").await.expect("nobody waits").unwrap()), ["10.0.0.1"]);
    // Later it is found out whether it is there again, by one.
    later(Duration::from_secs(30)).await;
    while second.try_recv(&mut [0; 512]).is_ok() {}
    tokio::select! {
        _ = resolver.addresses("db.") => panic!("they are silent"),
        () = async {
            // One family finds out about the first, and the other about the second.
            let query = timeout(Duration::from_secs(20), second.recv_from(&mut [0; 512])).await;
            query.expect("it is asked").unwrap();
            assert_eq!(texts(&known("else.other.").await.expect("nobody waits").unwrap()), ["10.0.0.3"]);
        } => {}
    }
    // The control: where there is nobody else to be asked it has its time.
    let (only, at) = away().await;
    let resolver = DnsResolver::builder().server(at).timeout(Duration::from_secs(3600)).build().unwrap();
    for _ in 0..2 {
        meets_silence(&resolver, "db", &only).await;
    }
    let waits = resolver.addresses("db");
    tokio::pin!(waits);
    // As often as it is asked.
    for _ in 0..3 {
        assert!(poll!(&mut waits).is_pending());
        later(Duration::from_secs(1)).await;
    }
    assert!(poll!(&mut waits).is_pending());
}

#[tokio::test]
async fn times_of_any_length_are_taken() {
    let server = DnsServer::start().await;
    let resolver = DnsResolver::builder().server(server.address()).timeout(Duration::MAX).attempts(usize::MAX);
    let resolver = resolver.negative_ttl(Duration::MAX).build().unwrap();
    for _ in 0..2 {
        assert_eq!(resolver.addresses("no.test").await, Err(ResolveError::NotFound));
    }
    assert_eq!(server.queries(), 2);
    // Nor is none at all no time to answer in, and as many at once as there can be no reason to panic.
    server.set("a.test", &["10.0.0.1"], 60);
    let resolver = DnsResolver::builder().server(server.address()).timeout(Duration::ZERO).concurrency(usize::MAX);
    drop(resolver.build().unwrap().addresses("a.test").await);
    let (folder, port) = (tempfile::tempdir().unwrap(), server.address().port());
    let path = folder.path().join("resolv.conf");
    std::fs::write(&path, "nameserver 127.0.0.1\noptions timeout:0\n").unwrap();
    let mut builder = DnsResolver::builder();
    builder.resolv_conf = (path, port);
    assert_eq!(texts(&builder.build().unwrap().addresses("a.test").await.unwrap()), ["10.0.0.1"]);
}

/// RFC 8305, section 3: nobody waits for it, and the next look has it.
#[tokio::test]
async fn a_family_that_comes_late_is_there_at_the_next_look() {
    let server = DnsServer::start().await;
    let resolver = DnsResolver::builder().server(server.address()).build().unwrap();
    server.set("a.test", &["fd00::1", "10.0.0.1"], 60);
    server.break_family("a.test", Family::V6, DnsFault::Silence);
    let found = resolver.addresses("a.test").await.unwrap();
    assert_eq!(found.lacks, Some((Family::V6, ResolveError::Timeout)));
    // It is asked for once more by itself, and answered then.
    server.set("a.test", &["fd00::1", "10.0.0.1"], 60);
    server.wait_for_queries(3).await;
    while !is_kept(&resolver, "a.test", RecordType::AAAA) {
        tokio::task::yield_now().await;
    }
    let found = resolver.addresses("a.test").await.unwrap();
    assert_eq!((texts(&found), found.lacks), (vec!["fd00::1".to_owned(), "10.0.0.1".to_owned()], None));
    assert_eq!(server.queries(), 3);
}

fn is_kept(resolver: &DnsResolver, name: &str, kind: RecordType) -> bool {
    resolver.system.known().cache.holding(&Name::from_ascii(format!("{name}.")).unwrap(), kind).is_some()
}

/// What such a name stands for nobody can say; that there is none is not said.
#[tokio::test]
async fn aliases_without_an_end_are_a_failure_and_nothing_to_be_looked_for_elsewhere() {
    let server = DnsServer::start().await;
    for name in ["itself", "round", "long", "end", "nothing"] {
        server.set(&format!("{name}.second.test"), &["10.6.6.6"], 60);
    }
    server.set_bare_alias("itself.first.test", "itself.first.test", 60);
    server.set_bare_alias("round.first.test", "back.first.test", 60);
    server.set_bare_alias("back.first.test", "round.first.test", 60);
    server.set_bare_alias("long.first.test", "long0.first.test", 60);
    for i in 0..20 {
        server.set_bare_alias(&format!("long{i}.first.test"), &format!("long{}.first.test", i + 1), 60);
    }
    server.set("long20.first.test", &["10.0.0.1"], 60);
    let resolver = quick(&server).search("first.test").search("second.test").ndots(5).build().unwrap();
    for name in ["itself", "round", "long"] {
        let found = resolver.addresses(name).await;
        assert!(matches!(&found, Err(ResolveError::Failed(text)) if text.contains("aliases")), "{name}: {found:?}");
    }
    // Nor is one round that is known for one family alone (RFC 4074): there is none of the other.
    server.set_alias("half.first.test", "whole.test", 60);
    server.break_family("half.first.test", Family::V6, DnsFault::Nothing);
    server.set("whole.test", &["10.0.0.1"], 60);
    let found = resolver.addresses("half").await.unwrap();
    assert_eq!((texts(&found), found.lacks), (vec!["10.0.0.1".to_owned()], None));
    // Control: an alias of what has no addresses has none.
    server.set_bare_alias("end.first.test", "empty.test", 60);
    server.set("empty.test", &[], 60);
    server.set_bare_alias("nothing.first.test", "nothing.test", 60);
    server.break_name("nothing.test", DnsFault::Nothing);
    for name in ["end", "nothing"] {
        assert_eq!(texts(&resolver.addresses(name).await.unwrap()), ["10.6.6.6"], "{name}");
    }
}

/// As glibc and Go do: DHCP and VPNs change it.
#[tokio::test]
async fn what_the_systems_file_says_is_asked_once_it_changes() {
    let server = DnsServer::start().await;
    for (name, ip) in [("db.one.test", "10.0.0.1"), ("db.two.test", "10.0.0.2"), ("kept.test", "10.0.0.3")] {
        server.set(name, &[ip], 3600);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resolv.conf");
    std::fs::write(&path, "nameserver 127.0.0.1\nsearch one.test\n").unwrap();
    let mut builder = DnsResolver::builder().hosts_file(folder.path().join("none"));
    builder.resolv_conf = (path.clone(), server.address().port());
    let resolver = builder.build().unwrap();
    let known = async |name| texts(&resolver.addresses(name).await.unwrap()).remove(0);
    assert_eq!((known("db").await, known("kept.test").await), ("10.0.0.1".to_owned(), "10.0.0.3".to_owned()));
    server.set("kept.test", &["10.0.0.4"], 3600);

    // What is none, as while it is written, and none at all.
    for content in [Some(""), Some("search two.test\n"), None] {
        match content {
            Some(content) => std::fs::write(&path, content).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        resolver.system.look().await;
        assert_eq!((known("db").await, known("kept.test").await), ("10.0.0.1".to_owned(), "10.0.0.3".to_owned()));
    }
    std::fs::write(&path, "nameserver 127.0.0.1\nsearch two.test\n").unwrap();
    // Control: it is not looked at each time.
    assert_eq!(known("db").await, "10.0.0.1");
    later(file::LOOKED_AT_EVERY).await;
    while known("db").await != "10.0.0.2" {
        tokio::task::yield_now().await;
    }
    assert_eq!(known("kept.test").await, "10.0.0.4", "another server may say something else");
    // The same once more says nothing new: DHCP writes it at each renewal.
    server.set("kept.test", &["10.0.0.5"], 3600);
    for (content, want) in [("search two.test\n", "10.0.0.4"), ("search one.test\n", "10.0.0.5")] {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, format!("nameserver 127.0.0.1\n{content}")).unwrap();
        resolver.system.look().await;
        assert_eq!(known("kept.test").await, want);
    }
}
