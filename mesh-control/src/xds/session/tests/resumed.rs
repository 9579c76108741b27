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

pub(super) fn first_request(client: &mut Client, kind: Kind, names: &[&str], version: &str) {
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

/// One run of the control plane, in which `c` came and `b` vanished.
fn with_c_for_b() -> Arc<Cache> {
    let before = all_kinds(&["a", "b"], 1).with(Kind::Listener, "r", 1).with(Kind::Routes, "r", 1);
    let cache = before.cache();
    let after = before.without(Kind::Cluster, "b").without(Kind::Endpoints, "b").with(Kind::Routes, "r", 2);
    after.with(Kind::Cluster, "c", 1).with(Kind::Endpoints, "c", 1).publish(&cache, "2");
    cache
}

#[test]
fn a_client_that_comes_back_gets_a_new_cluster_before_its_routes_and_loses_an_old_one_after() {
    for dialect in [Dialect::Envoy, Dialect::Proxyless] {
        let cache = with_c_for_b();
        let is_envoy = dialect == Dialect::Envoy;
        let scope = NodeScope { dialect, ..NodeScope::default() };
        let mut client = Client::of(scope, &cache, Form::State, false, Limits::default());
        let clusters: &[&str] = if is_envoy { &[] } else { &["a", "b", "c"] };
        for (kind, names) in Kind::ALL.into_iter().zip([clusters, &["a", "b"], &["r"], &["r"]]) {
            first_request(&mut client, kind, names, "1");
        }
        let first = client.next().unwrap();
        assert_eq!((first.kind, &first.resources[..]), (Kind::Cluster, &["a", "b", "c"].map(String::from)[..]));
        // Those of what is gone, too: a cluster that is made anew needs them.
        assert_eq!(client.next().unwrap().resources, ["a", "b"], "{dialect:?}");
        client.answer(Kind::Endpoints, None);
        client.ask(Kind::Endpoints, &["a", "b", "c"]);
        assert_eq!(client.next().unwrap().resources, ["c"], "{dialect:?}");
        client.answer(Kind::Endpoints, None);
        client.answer(Kind::Cluster, None);
        let sent: Vec<_> = std::iter::from_fn(|| client.next()).map(|seen| seen.kind).collect();
        assert_eq!(sent, [Kind::Listener, Kind::Routes], "{dialect:?}: routes name `b`");
        client.answer(Kind::Listener, None);
        assert_eq!(client.next(), None, "{dialect:?}: as before");
        client.answer(Kind::Routes, None);
        assert_eq!(client.settle(), [row(Kind::Cluster, &["a", "c"], &[])], "{dialect:?}");
        // Nothing of it is kept for longer.
        assert!(Kind::ALL.iter().all(|kind| client.session.seat.brought_back(*kind).is_empty()));
    }
}

#[test]
fn a_cluster_that_vanished_and_came_again_while_its_client_was_away_stays() {
    let cache = with_c_for_b();
    let (mut client, sent) = comes_back(&cache, Dialect::Envoy, "1");
    assert_eq!(sent[..2], [Kind::Cluster, Kind::Endpoints]);
    let again = all_kinds(&["a", "b"], 1).with(Kind::Listener, "r", 1).with(Kind::Routes, "r", 2);
    again.publish(&cache, "3");
    client.answer(Kind::Endpoints, None);
    client.answer(Kind::Cluster, None);
    let settled = client.settle();
    let last = settled.iter().rfind(|(kind, ..)| *kind == Kind::Cluster);
    assert_eq!(last, Some(&row(Kind::Cluster, &["a", "b"], &[])), "{settled:?}");
}

#[test]
fn a_name_that_never_was_holds_up_nobody_who_comes_back() {
    let returns = |version: &str| {
        let cache = all_kinds(&["a"], 1).cache();
        let mut client = Client::of(NodeScope::default(), &cache, Form::State, false, Limits::default());
        first_request(&mut client, Kind::Cluster, &["a", "nobody"], version);
        client.next().map(|seen| seen.resources)
    };
    assert_eq!(returns("1"), Some(vec!["a".to_owned()]));
    // The control: what there was in another run is not known, nor what no revision is.
    assert_eq!([returns("run/1"), returns("0"), returns("nonsense")], [None, None, None]);
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
