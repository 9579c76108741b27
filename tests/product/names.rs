//! DNS clusters against a name server that misbehaves (R32 of the failure scenarios), with everything real
//! between the two but the shortest refresh time, which is 50 ms here in place of 5 s.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http_body_util::BodyExt;
use mesh::dns::DnsResolver;
use mesh_client::Client;
use mesh_core::id::Target;
use mesh_core::policy::{Cluster, ClusterState, DestinationState, DnsFamily, DnsOptions, Snapshot};
use mesh_core::source::DestinationSource;
use mesh_discovery::target::TargetSource;
use mesh_testkit::{DnsFault, DnsServer};
use tower::ServiceExt;

use crate::support::eventually;

/// Two servers at one port, `one` at 127.0.0.1 and `two` at 127.0.0.2. Gives the port.
async fn servers() -> u16 {
    let mut port = 0;
    for (ip, text) in [("127.0.0.1", "one"), ("127.0.0.2", "two")] {
        let listener = tokio::net::TcpListener::bind((ip, port)).await.unwrap();
        port = listener.local_addr().unwrap().port();
        let app = Router::new().fallback(get(move || async move { text }));
        tokio::spawn(axum::serve(listener, app).into_future());
    }
    port
}

fn client(dns: &DnsServer) -> Client {
    let resolver = DnsResolver::builder().server(dns.address()).timeout(Duration::from_millis(200)).attempts(1);
    Client::builder(Arc::new(TargetSource::alone()))
        .resolver(Arc::new(resolver.build().unwrap()))
        .dns_min_refresh(Duration::from_millis(50))
        .build()
}

async fn ask(client: &Client, name: &str, port: u16) -> Result<String, mesh_client::Error> {
    let request = http::Request::get(format!("http://{name}:{port}/")).body(String::new()).unwrap();
    let body = client.send(request).await?.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

async fn becomes(client: &Client, name: &str, port: u16, want: &str) {
    let what = format!("{name} is answered by {want}");
    eventually(&what, || async { ask(client, name, port).await.is_ok_and(|text| text == want).then_some(()) }).await;
}

#[tokio::test]
async fn a_name_server_in_trouble_harms_no_request_and_is_heard_when_it_is_well() {
    let (dns, port) = (DnsServer::start().await, servers().await);
    let client = client(&dns);
    for fault in [Some(DnsFault::NotFound), Some(DnsFault::ServerFailure), Some(DnsFault::Silence), None] {
        let name = format!("{fault:?}.test").replace(['(', ')'], "").to_lowercase();
        dns.set(&name, &["127.0.0.1"], 0);
        assert_eq!(ask(&client, &name, port).await.unwrap(), "one", "{name}");
        match fault {
            Some(fault) => dns.break_name(&name, fault),
            // Emptied.
            None => dns.set(&name, &[], 0),
        }
        eventually("the failure is noticed", || async {
            let held = client.dump().destinations;
            held.iter()
                .any(|one| one.clusters.iter().any(|c| c.dns_failures.iter().any(|f| f.starts_with(&name))))
                .then_some(())
        })
        .await;
        for _ in 0..20 {
            assert_eq!(ask(&client, &name, port).await.unwrap(), "one", "{name}");
        }
        dns.set(&name, &["127.0.0.2"], 0);
        becomes(&client, &name, port, "two").await;
    }
}

#[tokio::test]
async fn a_name_that_appears_is_used() {
    let (dns, port) = (DnsServer::start().await, servers().await);
    let client = client(&dns);
    let error = ask(&client, "late.test", port).await.unwrap_err();
    assert!(error.to_string().contains("late.test: no such name"), "{error}");
    dns.set("late.test", &["127.0.0.1"], 60);
    becomes(&client, "late.test", port, "one").await;
}

#[tokio::test]
async fn an_address_that_refuses_is_asked_about_again_whatever_its_ttl() {
    let (dns, port) = (DnsServer::start().await, servers().await);
    let client = client(&dns);
    // Nobody listens there.
    dns.set("moved.test", &["127.0.0.3"], 3600);
    ask(&client, "moved.test", port).await.unwrap_err();
    dns.set("moved.test", &["127.0.0.2"], 3600);
    becomes(&client, "moved.test", port, "two").await;
}

#[tokio::test]
async fn a_thousand_addresses_are_a_thousand_endpoints() {
    let dns = DnsServer::start().await;
    let client = client(&dns);
    let all: Vec<String> = (0..1000).map(|i| format!("127.1.{}.{}", i / 250, i % 250)).collect();
    dns.set("many.test", &all.iter().map(String::as_str).collect::<Vec<_>>(), 60);
    client.explain(&http::Request::get("http://many.test:80/").body(()).unwrap());
    eventually("all are there", || async {
        let held = client.dump().destinations;
        let endpoints = held.iter().flat_map(|one| &one.clusters).map(|cluster| cluster.endpoints.len()).sum::<usize>();
        (endpoints == 1000).then_some(())
    })
    .await;
    assert!(dns.queries_over_tcp() > 0, "too long for UDP");
}

#[tokio::test]
async fn a_family_at_which_nobody_listens_is_fallen_back_from() {
    let (dns, port) = (DnsServer::start().await, servers().await);
    let client = client(&dns);
    dns.set("both.test", &["::1", "127.0.0.1"], 60);
    for _ in 0..10 {
        assert_eq!(ask(&client, "both.test", port).await.unwrap(), "one");
    }
}

/// Targets with all their look-ups like this.
fn targets_with(dns: DnsOptions) -> Arc<dyn DestinationSource> {
    let targets = TargetSource::alone();
    Arc::new(move |target: &Target| {
        let state = targets.destination(target).load_full();
        let DestinationState::Ready(snapshot) = &*state else { panic!("{state:?}") };
        let Some(ClusterState::Ready { cluster, .. }) = snapshot.clusters.values().next() else { panic!("{state:?}") };
        let mut cluster = Cluster::clone(cluster);
        cluster.dns = dns.clone();
        DestinationState::Ready(Arc::new(Snapshot::of_one_cluster(target.as_str(), cluster, None)))
    })
}

/// As in a pod: every name with fewer than five dots is looked for in the cluster's domains first.
#[tokio::test]
async fn a_target_is_looked_up_as_it_is_written_and_with_its_aliases() {
    let (dns, port) = (DnsServer::start().await, servers().await);
    // The wildcard of a search domain, and one that has the name in one family alone.
    for name in ["db.test", "six.test"] {
        dns.set(&format!("{name}.wild.test"), &["127.0.0.1"], 3600);
    }
    dns.set("six.test.svc.test", &["::1"], 3600);
    dns.set("db.test", &["127.0.0.2"], 3600);
    dns.set("cut.test", &["127.0.0.2"], 3600);
    dns.break_name("cut.test.wild.test", DnsFault::ServerFailure);
    dns.set_services("_http._tcp.db.test", &[(0, 0, "db.test", port)], 3600);
    dns.set_services("_http._tcp.db.test.wild.test", &[(0, 0, "db.test.wild.test", port)], 3600);
    dns.set_alias("whole.test.wild.test", "db.test", 3600);
    dns.set_bare_alias("split.test.wild.test", "db.test", 3600);
    let resolver = || DnsResolver::builder().server(dns.address()).timeout(Duration::from_millis(200)).attempts(1);
    let resolver = || Arc::new(resolver().search("svc.test").search("wild.test").ndots(5).build().unwrap());
    let asked = async |target: String, family: DnsFamily| {
        let client =
            Client::builder(targets_with(DnsOptions { family, ..DnsOptions::default() })).resolver(resolver()).build();
        let channel = client.channel(&target).unwrap();
        let response = channel.oneshot(http::Request::new(tonic::body::Body::empty())).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    };
    for (target, family, want) in [
        ("dns:///db.test:PORT", DnsFamily::Auto, "one"),
        ("dns:///db.test.:PORT", DnsFamily::Auto, "two"),
        ("db.test.:PORT", DnsFamily::Auto, "two"),
        ("dns:///cut.test.:PORT", DnsFamily::Auto, "two"),
        ("dns:///_http._tcp.db.test", DnsFamily::Auto, "one"),
        ("dns:///_http._tcp.db.test.", DnsFamily::Auto, "two"),
        ("dns:///six.test:PORT", DnsFamily::V4Only, "one"),
        ("dns:///whole.test:PORT", DnsFamily::Auto, "two"),
        ("dns:///split.test:PORT", DnsFamily::V4Only, "two"),
    ] {
        assert_eq!(asked(target.replace("PORT", &port.to_string()), family).await, want, "{target}");
    }
}

#[tokio::test]
async fn what_an_alias_stood_for_is_asked_about_again_when_it_refuses() {
    let (dns, port) = (DnsServer::start().await, servers().await);
    dns.set_bare_alias("moved.test", "end.test", 3600);
    dns.set("end.test", &["127.0.0.3"], 3600);
    let client = client(&dns);
    // Nobody listens there.
    ask(&client, "moved.test", port).await.unwrap_err();
    dns.set("end.test", &["127.0.0.2"], 3600);
    becomes(&client, "moved.test", port, "two").await;
}

/// As Envoy does: how long an answer may be kept counts where policy says that it does.
#[tokio::test]
async fn a_name_with_a_refresh_rate_of_its_own_is_asked_for_each_time() {
    let (dns, port) = (DnsServer::start().await, servers().await);
    let client = |respect_ttl| {
        let dns_options = DnsOptions { refresh: Some(Duration::from_millis(20)), respect_ttl, ..DnsOptions::default() };
        let resolver = DnsResolver::builder().server(dns.address()).build().unwrap();
        Client::builder(targets_with(dns_options)).resolver(Arc::new(resolver)).build()
    };
    let (each_time, by_ttl) = (client(false), client(true));
    dns.set("moves.test", &["127.0.0.1"], 3600);
    for client in [&each_time, &by_ttl] {
        assert_eq!(ask(client, "moves.test", port).await.unwrap(), "one");
    }
    dns.set("moves.test", &["127.0.0.2"], 3600);
    becomes(&each_time, "moves.test", port, "two").await;
    // Control: its time is not over.
    assert_eq!(ask(&by_ttl, "moves.test", port).await.unwrap(), "one");
}
