//! `tcp_proxy` in the `default_filter_chain` of a client side listener ⇄ [`TcpForward`]: where raw connections go.
//!
//! gRPC's clients look at the `api_listener` beside it and at nothing else (gRFC A27), so a control plane can send
//! the same listener to all. What a proxy does with connections once they stand is the application's own here, but for
//! closing silent ones, and is reported.

use std::num::NonZeroU32;

use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, filter::ConfigType};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy,
    tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight},
};
use envoy_types::pb::envoy::r#type::v3::{
    HashPolicy,
    hash_policy::{PolicySpecifier, SourceIp},
};
use mesh_core::policy::{TcpForward, TcpShare};

use super::common;
use super::extension::{self, url};
use super::report::{At, Report, consider};

/// Usual instance name of the filter.
const TCP_PROXY: &str = "envoy.filters.network.tcp_proxy";
/// All of one caller to one endpoint.
const BY_SOURCE: HashPolicy = HashPolicy { policy_specifier: Some(PolicySpecifier::SourceIp(SourceIp {})) };

/// `name` is the listener's, for statistics: Envoy demands one.
pub(super) fn encode(name: &str, forward: &TcpForward) -> FilterChain {
    let specifier = match forward.clusters() {
        [only] if only.weight == NonZeroU32::MIN && only.metadata_match.is_empty() => {
            ClusterSpecifier::Cluster(only.name.to_string())
        }
        several => {
            ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: several.iter().map(encode_share).collect() })
        }
    };
    let proxy = TcpProxy {
        stat_prefix: name.to_owned(),
        max_connect_attempts: common::uint32(forward.max_connect_attempts.get()),
        idle_timeout: (forward.idle_timeout != Some(TcpForward::IDLE_TIMEOUT))
            .then(|| common::duration(forward.idle_timeout.unwrap_or_default())),
        cluster_specifier: Some(specifier),
        hash_policy: Vec::from_iter(forward.by_source.then_some(BY_SOURCE)),
        metadata_match: extension::lb_metadata(&forward.metadata_match),
        ..Default::default()
    };
    let config = ConfigType::TypedConfig(extension::pack(url::TCP_PROXY, &proxy));
    FilterChain {
        filters: vec![Filter { name: TCP_PROXY.to_owned(), config_type: Some(config) }],
        ..Default::default()
    }
}

fn encode_share(share: &TcpShare) -> ClusterWeight {
    ClusterWeight {
        name: share.name.to_string(),
        weight: share.weight.get(),
        metadata_match: extension::lb_metadata(&share.metadata_match),
    }
}

/// Decodes the chain; `None` without a problem if there is none, or none that says where connections go.
pub(super) fn decode(chain: Option<&FilterChain>, at: &At<'_>, report: &mut Report) -> Option<TcpForward> {
    let chain = chain?;
    consider!(
        chain,
        at,
        report,
        FilterChain {
            read: [filters],
            // Of connections of callers, and the caller is the application itself.
            idle: [
                filter_chain_match,
                use_proxy_proto,
                metadata,
                transport_socket,
                transport_socket_connect_timeout,
                name,
            ],
        }
    );
    let (last, before) = chain.filters.split_last()?;
    for index in 0..before.len() {
        report.unenforced(&at.item("filters", index), "network filters are not run");
    }
    let at = at.item("filters", before.len());
    let config = match &last.config_type {
        Some(ConfigType::TypedConfig(config)) if extension::type_of(config) == url::TCP_PROXY => config,
        _ => {
            report.unenforced(&at, "it is not tcp_proxy: raw connections go where a GET of / goes");
            return None;
        }
    };
    let at = at.field("typed_config");
    let proxy: TcpProxy = extension::unpack(config, &at, report)?;
    note_unenforced(&proxy, &at, report);
    let shares = match proxy.cluster_specifier.as_ref() {
        Some(ClusterSpecifier::Cluster(name)) => {
            check_name(name, &at.field("cluster"), report);
            vec![TcpShare::new(name.as_str().into(), NonZeroU32::MIN)]
        }
        Some(ClusterSpecifier::WeightedClusters(split)) => {
            let at = at.field("weighted_clusters");
            let entries = split.clusters.iter().enumerate();
            entries.filter_map(|(i, entry)| decode_share(entry, &at.item("clusters", i), report)).collect()
        }
        None => {
            report.problem(&at, "cluster or weighted_clusters is required");
            return None;
        }
    };
    let attempts = proxy.max_connect_attempts.as_ref().map_or(1, |attempts| attempts.value);
    let Some(max_connect_attempts) = NonZeroU32::new(attempts) else {
        report.problem(&at.field("max_connect_attempts"), "at least one attempt is needed");
        return None;
    };
    let mut forward = report.checked(&at.field("weighted_clusters"), TcpForward::split(shares))?;
    forward.max_connect_attempts = max_connect_attempts;
    if proxy.idle_timeout.is_some() {
        forward.idle_timeout = common::nonzero_duration(proxy.idle_timeout.as_ref(), &at, "idle_timeout", report);
    }
    forward.by_source = decode_hash(&proxy.hash_policy, &at.field("hash_policy"), report);
    forward.metadata_match = extension::read_lb_metadata(proxy.metadata_match.as_ref());
    Some(forward)
}

/// Whether connections are kept together by where they come from.
fn decode_hash(policies: &[HashPolicy], at: &At<'_>, report: &mut Report) -> bool {
    let [policy] = policies else {
        if policies.len() > 1 {
            report.problem(at, format!("{} policies; at most 1 may be given", policies.len()));
        }
        return false;
    };
    match &policy.policy_specifier {
        Some(PolicySpecifier::SourceIp(_)) => true,
        Some(PolicySpecifier::FilterState(_)) | None => {
            report.unenforced(at, "no filter leaves a state to hash: a connection goes to any endpoint");
            false
        }
    }
}

fn decode_share(proto: &ClusterWeight, at: &At<'_>, report: &mut Report) -> Option<TcpShare> {
    consider!(proto, at, report, ClusterWeight { read: [name, weight, metadata_match], idle: [] });
    check_name(&proto.name, &at.field("name"), report);
    let weight = NonZeroU32::new(proto.weight);
    if weight.is_none() {
        report.problem(&at.field("weight"), "at least 1 is needed");
    }
    let metadata_match = extension::read_lb_metadata(proto.metadata_match.as_ref());
    Some(TcpShare { name: proto.name.as_str().into(), weight: weight?, metadata_match })
}

fn check_name(name: &str, at: &At<'_>, report: &mut Report) {
    if name.is_empty() {
        report.problem(at, "the name of a cluster is required");
    }
}

fn note_unenforced(proxy: &TcpProxy, at: &At<'_>, report: &mut Report) {
    consider!(proxy, at, report, TcpProxy {
        read: [cluster_specifier, max_connect_attempts, idle_timeout, hash_policy, metadata_match],
        // Statistics and logs; and what is between a proxy and its caller.
        idle: [
            stat_prefix, access_log, access_log_flush_interval, flush_access_log_on_connected, access_log_options,
            downstream_idle_timeout, upstream_connect_mode, max_early_data_bytes, check_drain_close,
        ],
        on_demand => "clusters are asked for with the listener",
        upstream_idle_timeout => "idle_timeout says when a silent connection is closed",
        backoff_options => "the next endpoint is tried at once",
        tunneling_config => "connections go directly to the endpoint",
        max_downstream_connection_duration => "a connection stays until the application closes it",
        max_downstream_connection_duration_jitter_percentage => "a connection stays until the application closes it",
        proxy_protocol_tlvs => "no PROXY header is sent",
        proxy_protocol_tlv_merge_policy => "no PROXY header is sent",
    });
}
