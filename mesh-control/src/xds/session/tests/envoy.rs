//! What an Envoy needs beyond the protocol's letter.

use super::*;

fn client(cache: &Arc<Cache>, form: Form, dialect: Dialect) -> Client {
    let scope = NodeScope { dialect, ..NodeScope::default() };
    Client::of(scope, cache, form, false, Limits::default())
}

fn fake(edition: u32) -> Fake {
    Fake::default().with(Kind::Cluster, "a", edition).with(Kind::Cluster, "b", 1).with(Kind::Endpoints, "a", 1).with(
        Kind::Endpoints,
        "b",
        1,
    )
}

#[test]
fn the_endpoints_of_a_changed_cluster_are_sent_again() {
    for form in BOTH {
        let cache = fake(1).cache();
        let mut envoy = client(&cache, form, Dialect::Envoy);
        let mut proxyless = client(&cache, form, Dialect::Proxyless);
        for client in [&mut envoy, &mut proxyless] {
            client.ask(Kind::Cluster, &[]);
            client.ask(Kind::Endpoints, &["a", "b"]);
            client.settle();
        }
        fake(2).publish(&cache, "2");
        let whole: &[&str] = if form == Form::State { &["a", "b"] } else { &["a"] };
        let clusters = row(Kind::Cluster, whole, &[]);
        assert_eq!(envoy.settle(), [clusters.clone(), row(Kind::Endpoints, &["a"], &[])], "{form:?}");
        assert_eq!(proxyless.settle(), [clusters], "{form:?}");
        fake(2).publish(&cache, "3");
        assert_eq!(envoy.settle(), [], "once");
    }
}

#[test]
fn the_endpoints_of_a_changed_cluster_of_an_authority_are_sent_again() {
    let cluster = "xdstp://east/envoy.config.cluster.v3.Cluster/a";
    let endpoints = "xdstp://east/envoy.config.endpoint.v3.ClusterLoadAssignment/a";
    let fake = |edition| Fake::default().with(Kind::Cluster, cluster, edition).with(Kind::Endpoints, endpoints, 1);
    for form in BOTH {
        let cache = fake(1).cache();
        let mut envoy = client(&cache, form, Dialect::Envoy);
        envoy.ask(Kind::Cluster, &[cluster]);
        envoy.ask(Kind::Endpoints, &[endpoints]);
        envoy.settle();
        fake(2).publish(&cache, "2");
        let both = [row(Kind::Cluster, &[cluster], &[]), row(Kind::Endpoints, &[endpoints], &[])];
        assert_eq!(envoy.settle(), both, "{form:?}");
    }
}

#[test]
fn endpoints_known_from_an_earlier_stream_are_sent_again() {
    // How many are sent on a second stream to a client that says what it has.
    let sent_again = |dialect| {
        let cache = fake(1).cache();
        let mut first = client(&cache, Form::Delta, dialect);
        first.ask(Kind::Endpoints, &["a"]);
        let Some(Response::Delta(sent)) = first.session.next() else { panic!("nothing was sent") };
        let mut second = client(&cache, Form::Delta, dialect);
        let request = DeltaDiscoveryRequest {
            type_url: sent.type_url,
            resource_names_subscribe: vec!["a".to_owned()],
            initial_resource_versions: [("a".to_owned(), sent.resources[0].version.clone())].into(),
            ..DeltaDiscoveryRequest::default()
        };
        second.session.delta_request(request).unwrap();
        second.settle().len()
    };
    assert_eq!([sent_again(Dialect::Envoy), sent_again(Dialect::Proxyless)], [1, 0]);
}
