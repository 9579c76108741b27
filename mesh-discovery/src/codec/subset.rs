//! Subsets of a cluster's endpoints by their metadata (Envoy `lb_subset_config`).

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    LbSubsetConfig as Proto,
    lb_subset_config::{LbSubsetFallbackPolicy, LbSubsetSelector},
};
use envoy_types::pb::google::protobuf::Struct;
use mesh_core::policy::{SubsetFallback, Subsets};

use super::extension;
use super::report::{At, Report, consider};

pub(super) fn encode(subsets: &Subsets) -> Proto {
    let (fallback, default) = match &subsets.fallback {
        SubsetFallback::Fail => (LbSubsetFallbackPolicy::NoFallback, None),
        SubsetFallback::Any => (LbSubsetFallbackPolicy::AnyEndpoint, None),
        SubsetFallback::Default(labels) => {
            (LbSubsetFallbackPolicy::DefaultSubset, Some(Struct { fields: extension::labels(labels) }))
        }
    };
    let selectors = subsets.selectors.iter();
    Proto {
        fallback_policy: fallback.into(),
        default_subset: default,
        subset_selectors: selectors.map(|keys| LbSubsetSelector { keys: keys.clone(), ..Default::default() }).collect(),
        ..Default::default()
    }
}

pub(super) fn decode(proto: &Proto, at: &At<'_>, report: &mut Report) -> Subsets {
    consider!(proto, at, report, Proto {
        read: [fallback_policy, default_subset, subset_selectors],
        idle: [],
        locality_weight_aware => "localities are used by weight and priority, whatever the subset",
        scale_locality_weight => "a locality keeps its weight, however few of its endpoints are in a subset",
        panic_mode_any => "in panic the endpoints of the subset are used, and no others",
        list_as_any => "a list in an endpoint's metadata is no label",
        metadata_fallback_policy => "a route names one subset",
    });
    let fallback = match LbSubsetFallbackPolicy::try_from(proto.fallback_policy) {
        Ok(LbSubsetFallbackPolicy::NoFallback) => SubsetFallback::Fail,
        Ok(LbSubsetFallbackPolicy::AnyEndpoint) => SubsetFallback::Any,
        Ok(LbSubsetFallbackPolicy::DefaultSubset) => {
            let labels: BTreeMap<_, _> = proto.default_subset.as_ref().map(extension::read_labels).unwrap_or_default();
            SubsetFallback::Default(labels)
        }
        Err(_) => {
            report.problem(&at.field("fallback_policy"), format!("{} is not known", proto.fallback_policy));
            SubsetFallback::Fail
        }
    };
    let selectors = proto.subset_selectors.iter().enumerate();
    let selectors = selectors.map(|(i, s)| read_selector(s, &at.item("subset_selectors", i), report)).collect();
    Subsets { fallback, selectors }
}

fn read_selector(proto: &LbSubsetSelector, at: &At<'_>, report: &mut Report) -> Vec<String> {
    consider!(proto, at, report, LbSubsetSelector {
        read: [keys],
        // A hint that a subset has one endpoint, to look it up faster.
        idle: [single_host_per_subset],
        fallback_policy => "all selectors fall back alike",
        fallback_keys_subset => "all selectors fall back alike",
    });
    if proto.keys.is_empty() {
        report.problem(&at.field("keys"), "at least one key is required");
    }
    let mut keys = proto.keys.clone();
    keys.sort_unstable();
    keys.dedup();
    keys
}
