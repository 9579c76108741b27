//! Raw connections in a client side listener: how it looks on the wire, what is refused, what is reported.

use std::num::NonZeroU32;

use envoy_types::pb::envoy::config::listener::v3::{Filter, Listener as Proto, filter::ConfigType};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy,
    tcp_proxy::{ClusterSpecifier, TunnelingConfig, WeightedCluster, weighted_cluster::ClusterWeight},
};
use envoy_types::pb::envoy::r#type::v3::{
    HashPolicy as HashProto,
    hash_policy::{FilterState, PolicySpecifier, SourceIp},
};
use envoy_types::pb::google::protobuf::{Any, Duration};
use mesh_core::policy::*;
use prost::Message;

use super::conformance::{Says, says};
use super::refusals::{changed, number};
use crate::codec::{self, AnyListener};

const CONFIG: &str = "default_filter_chain.filters[0].typed_config";

fn at(field: &str) -> String {
    format!("{CONFIG}.{field}")
}

fn listener(tcp: Option<TcpForward>) -> Listener {
    Listener { tcp, ..Listener::new("mysql.default:3306", RouteSource::Named("routes".into())) }
}

fn split(weights: &[(&str, u32)]) -> TcpForward {
    let share =
        |(name, weight): &(&str, u32)| TcpShare::new((*name).into(), NonZeroU32::new(*weight).expect("at least 1"));
    TcpForward::split(weights.iter().map(share).collect()).expect("small weights")
}

/// Our own encoding after `change` of the chain's only filter.
fn with_proxy(change: impl FnOnce(&mut TcpProxy)) -> Any {
    changed::<Proto>(codec::encode_listener(&listener(Some(TcpForward::to("c".into())))), |proto| {
        let filter = &mut proto.default_filter_chain.as_mut().expect("our own encoding").filters[0];
        let Some(ConfigType::TypedConfig(any)) = filter.config_type.take() else { panic!("our own encoding") };
        filter.config_type = Some(ConfigType::TypedConfig(changed(any, change)));
    })
}

fn proxy_of(listener: &Listener) -> TcpProxy {
    let proto = Proto::decode(codec::encode_listener(listener).value.as_slice()).expect("our own encoding");
    assert!(proto.api_listener.is_some() && proto.address.is_none(), "for gRPC it stays a client's listener");
    let chain = proto.default_filter_chain.expect("a chain");
    let [Filter { name, config_type: Some(ConfigType::TypedConfig(config)) }] = &chain.filters[..] else {
        panic!("{chain:?}")
    };
    assert_eq!(name, "envoy.filters.network.tcp_proxy");
    assert_eq!(config.type_url, "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy");
    TcpProxy::decode(config.value.as_slice()).expect("a TcpProxy")
}

#[test]
fn raw_connections_are_a_tcp_proxy_beside_the_api_listener() {
    let mut one = TcpForward::to("outbound|3306||mysql".into());
    one.max_connect_attempts = NonZeroU32::new(3).expect("3");
    let proxy = TcpProxy {
        stat_prefix: "mysql.default:3306".into(),
        cluster_specifier: Some(ClusterSpecifier::Cluster("outbound|3306||mysql".into())),
        max_connect_attempts: number(3),
        ..Default::default()
    };
    assert_eq!(proxy_of(&listener(Some(one))), proxy);

    let entry = |name: &str, weight| ClusterWeight { name: name.into(), weight, metadata_match: None };
    let clusters = vec![entry("v1", 80), entry("v2", 20)];
    let specifier = ClusterSpecifier::WeightedClusters(WeightedCluster { clusters });
    assert_eq!(proxy_of(&listener(Some(split(&[("v1", 80), ("v2", 20)])))).cluster_specifier, Some(specifier));

    let none = Proto::decode(codec::encode_listener(&listener(None)).value.as_slice()).expect("our own encoding");
    assert_eq!(none.default_filter_chain, None);
}

#[test]
fn what_envoy_leaves_out_has_its_default() {
    let decoded = codec::decode_listener(&with_proxy(|p| p.max_connect_attempts = None)).expect("accepted");
    assert_eq!(decoded.value, AnyListener::Outbound(listener(Some(TcpForward::to("c".into())))));
    assert_eq!(decoded.unenforced, []);
}

#[test]
fn a_tcp_proxy_that_leads_nowhere_is_refused() {
    let refused = |case: &str, change: &dyn Fn(&mut TcpProxy), field: &str| {
        says(case, codec::decode_listener(&with_proxy(change)), &Says::Refused(&[field]));
    };
    let weighted = |entries: &[(&str, u32)]| {
        let entry = |(name, weight): &(&str, u32)| ClusterWeight {
            name: (*name).into(),
            weight: *weight,
            metadata_match: None,
        };
        Some(ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: entries.iter().map(entry).collect() }))
    };
    refused("no cluster", &|p| p.cluster_specifier = None, CONFIG);
    refused("no name", &|p| p.cluster_specifier = Some(ClusterSpecifier::Cluster(String::new())), &at("cluster"));
    refused("nothing to draw from", &|p| p.cluster_specifier = weighted(&[]), &at("weighted_clusters"));
    let sum = &|p: &mut TcpProxy| p.cluster_specifier = weighted(&[("a", u32::MAX), ("b", 1)]);
    refused("too large a sum", sum, &at("weighted_clusters"));
    let name = at("weighted_clusters.clusters[1].name");
    refused("an entry without a name", &|p| p.cluster_specifier = weighted(&[("a", 1), ("", 1)]), &name);
    let weight = at("weighted_clusters.clusters[1].weight");
    refused("an entry without a weight", &|p| p.cluster_specifier = weighted(&[("a", 1), ("b", 0)]), &weight);
    refused("no attempt", &|p| p.max_connect_attempts = number(0), &at("max_connect_attempts"));

    let broken = changed::<Proto>(with_proxy(|_| {}), |proto| {
        let filter = &mut proto.default_filter_chain.as_mut().expect("a chain").filters[0];
        let Some(ConfigType::TypedConfig(any)) = &mut filter.config_type else { panic!("our own encoding") };
        any.value = vec![0xff];
    });
    says("not a TcpProxy", codec::decode_listener(&broken), &Says::Refused(&[CONFIG]));
}

#[test]
fn a_silent_connection_has_envoys_hour_or_what_policy_says() {
    let idle = |seconds: Option<i64>| {
        let resource = with_proxy(|p| p.idle_timeout = seconds.map(|seconds| Duration { seconds, nanos: 0 }));
        match codec::decode_listener(&resource).unwrap().value {
            AnyListener::Outbound(Listener { tcp: Some(tcp), .. }) => tcp.idle_timeout.map(|time| time.as_secs()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!([None, Some(60), Some(0)].map(idle), [Some(3600), Some(60), None]);
}

#[test]
fn connections_are_kept_together_by_their_source_and_by_nothing_else() {
    let policy = |specifier| HashProto { policy_specifier: Some(specifier) };
    let by_source = || policy(PolicySpecifier::SourceIp(SourceIp {}));
    let by_state = || policy(PolicySpecifier::FilterState(FilterState { key: "k".into() }));
    let decoded = |policies: Vec<HashProto>| codec::decode_listener(&with_proxy(|p| p.hash_policy = policies));
    for (policies, want) in [(vec![], false), (vec![by_source()], true), (vec![by_state()], false)] {
        let AnyListener::Outbound(Listener { tcp: Some(tcp), .. }) = decoded(policies).unwrap().value else { panic!() };
        assert_eq!(tcp.by_source, want);
        assert_eq!(proxy_of(&listener(Some(tcp))).hash_policy, Vec::from_iter(want.then(by_source)));
    }
    says("a filter's state", decoded(vec![by_state()]), &Says::Reported(&[&at("hash_policy")]));
    says("two of them", decoded(vec![by_source(), by_source()]), &Says::Refused(&[&at("hash_policy")]));
}

#[test]
fn what_is_not_done_with_a_connection_is_reported() {
    let resource = with_proxy(|p| {
        p.upstream_idle_timeout = Some(Duration { seconds: 3600, nanos: 0 });
        p.tunneling_config = Some(TunnelingConfig::default());
    });
    let fields = [at("upstream_idle_timeout"), at("tunneling_config")];
    says("a proxy's own", codec::decode_listener(&resource), &Says::Reported(&fields.each_ref().map(|f| &**f)));

    let mongo = || Filter { name: "envoy.filters.network.mongo_proxy".into(), config_type: None };
    let with_filters = |change: &dyn Fn(&mut Vec<Filter>)| {
        changed::<Proto>(with_proxy(|_| {}), |proto| {
            change(&mut proto.default_filter_chain.as_mut().expect("a chain").filters);
        })
    };
    let before = with_filters(&|filters| filters.insert(0, mongo()));
    says("a filter before", codec::decode_listener(&before), &Says::Reported(&["default_filter_chain.filters[0]"]));
    let other = codec::decode_listener(&with_filters(&|filters| *filters = vec![mongo()]));
    assert!(matches!(&other, Ok(decoded) if decoded.value == AnyListener::Outbound(listener(None))), "{other:?}");
    says("another filter", other, &Says::Reported(&["default_filter_chain.filters[0]"]));
    let empty = codec::decode_listener(&with_filters(&Vec::clear));
    assert!(matches!(&empty, Ok(decoded) if decoded.value == AnyListener::Outbound(listener(None))), "{empty:?}");
}
