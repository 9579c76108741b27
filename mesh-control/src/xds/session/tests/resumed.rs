//! What a client has from an earlier stream that vanished while it was away.

use super::*;

/// The first requests of a client that had the clusters `a` and `b`, and what it is sent after each.
fn comes_back(cache: &Arc<Cache>, dialect: Dialect, version: &str) -> (Client, Vec<Kind>) {
    let scope = NodeScope { dialect, ..NodeScope::default() };
    let mut client = Client::of(scope, cache, Form::State, false, Limits::default());
    let clusters: &[&str] = if dialect == Dialect::Envoy { &[] } else { &["a", "b"] };
    let mut sent = Vec::new();
    for (kind, names) in Kind::ALL.into_iter().zip([clusters, &["a", "b"], &["r"], &["r"]]) {
        first_request(&mut client, kind, names, version);
        sent.extend(std::iter::from_fn(|| client.next()).map(|seen| seen.kind));
    }
    (client, sent)
}

fn first_request(client: &mut Client, kind: Kind, names: &[&str], version: &str) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    client.names[kind.index()].clone_from(&names);
    let request = DiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names: names,
        version_info: version.to_owned(),
        ..DiscoveryRequest::default()
    };
    client.session.state_request(request).unwrap();
}

/// Another run of the control plane, without `b`.
fn without_b() -> Arc<Cache> {
    let fake = Fake::default().with(Kind::Cluster, "a", 1).with(Kind::Endpoints, "a", 1);
    fake.with(Kind::Listener, "r", 1).with(Kind::Routes, "r", 2).cache()
}

#[test]
fn a_client_that_comes_back_loses_a_cluster_after_the_routes_that_named_it() {
    for dialect in [Dialect::Envoy, Dialect::Proxyless] {
        let (mut client, sent) = comes_back(&without_b(), dialect, "7");
        assert_eq!(sent, [Kind::Endpoints, Kind::Listener, Kind::Routes], "{dialect:?}");
        for kind in [Kind::Endpoints, Kind::Listener] {
            client.answer(kind, None);
            assert_eq!(client.next(), None, "{dialect:?}: its routes name `b`");
        }
        client.answer(Kind::Routes, None);
        assert_eq!(client.settle()[0], row(Kind::Cluster, &["a"], &[]), "{dialect:?}");
        // The control: a client that has nothing gets its clusters before what refers to them.
        assert_eq!(comes_back(&without_b(), dialect, "").1[0], Kind::Cluster, "{dialect:?}");
    }
}

#[test]
fn a_client_that_comes_back_keeps_a_cluster_while_it_refuses_the_routes_without_it() {
    for dialect in [Dialect::Envoy, Dialect::Proxyless] {
        let (mut client, _) = comes_back(&without_b(), dialect, "7");
        for kind in [Kind::Endpoints, Kind::Listener] {
            client.answer(kind, None);
        }
        client.answer(Kind::Routes, Some("no"));
        assert_eq!(client.next(), None, "{dialect:?}");
        // It is kept from news of its clusters no longer than that.
        assert_eq!(client.session.late_at(client.now), Some(client.now + PATIENCE), "{dialect:?}");
        client.now += PATIENCE;
        assert_eq!(client.next().unwrap().resources, ["a"], "{dialect:?}");
    }
}

#[test]
fn a_client_that_comes_back_and_has_lost_nothing_gets_its_clusters_first() {
    for dialect in [Dialect::Envoy, Dialect::Proxyless] {
        let (_, sent) = comes_back(&all_kinds(&["a", "b", "r"], 1).cache(), dialect, "7");
        let at = |kind| sent.iter().position(|sent| *sent == kind);
        assert!(at(Kind::Cluster).is_some_and(|clusters| Some(clusters) < at(Kind::Listener).or(Some(9))), "{sent:?}");
    }
}

#[test]
fn an_envoy_that_had_no_clusters_gets_them_when_its_listeners_are_accepted() {
    let cache = all_kinds(&["a"], 1).cache();
    let scope = NodeScope { dialect: Dialect::Envoy, ..NodeScope::default() };
    let mut client = Client::of(scope, &cache, Form::State, false, Limits::default());
    first_request(&mut client, Kind::Cluster, &[], "7");
    assert_eq!(client.next(), None, "it may say next of which it has endpoints");
    first_request(&mut client, Kind::Listener, &[], "7");
    assert_eq!(client.settle(), [Kind::Listener, Kind::Cluster].map(|kind| row(kind, &["a"], &[])));
}
