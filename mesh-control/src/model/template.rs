//! Deployment, StatefulSet, DaemonSet: of each the template of its pods, which says of them what a Pod would. The rest of
//! them is not the mesh's.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::check::Check;
use super::kinds::Kind;
use super::linkerd::{AccessPolicy, DEFAULT_POLICY};
use super::mesh_config::trusted_proxies;

/// What a template says of its pods.
#[derive(Clone, Debug, Default)]
pub(crate) struct Template {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// How many trusted proxies they say are before its pods.
    pub(crate) trusted_proxies: Option<u32>,
}

/// A Deployment.
#[derive(Clone, Debug)]
pub(crate) struct Deployment(pub(crate) Template);

/// A StatefulSet.
#[derive(Clone, Debug)]
pub(crate) struct StatefulSet(pub(crate) Template);

/// A DaemonSet.
#[derive(Clone, Debug)]
pub(crate) struct DaemonSet(pub(crate) Template);

#[derive(Deserialize)]
pub(crate) struct OwnerSpec {
    template: Option<TemplateSpec>,
    #[serde(flatten)]
    _other: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
struct TemplateSpec {
    #[serde(default)]
    metadata: MetadataSpec,
    #[serde(flatten)]
    _other: BTreeMap<String, IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct MetadataSpec {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    #[serde(flatten)]
    _other: BTreeMap<String, IgnoredAny>,
}

impl Template {
    fn read(spec: OwnerSpec, check: &mut Check<'_>) -> Self {
        let Some(TemplateSpec { metadata, .. }) = spec.template else { return Self::default() };
        let MetadataSpec { labels, annotations, .. } = metadata;
        if let Some(Err(why)) = annotations.get(DEFAULT_POLICY).map(|name| AccessPolicy::read(name)) {
            let path = format!("spec.template.metadata.annotations.{DEFAULT_POLICY}");
            check.warn(&path, format!("{why}; until it is corrected nobody is let in where it holds"));
        }
        let trusted_proxies = trusted_proxies(&annotations, "spec.template.metadata.annotations", check);
        Self { labels, annotations, trusted_proxies }
    }
}

macro_rules! owners {
    ($($name:ident),*) => { $(
        impl Kind for $name {
            const GROUP: &'static str = "apps";
            const KIND: &'static str = stringify!($name);
            const VERSIONS: &'static [&'static str] = &["v1"];
            type Spec = OwnerSpec;

            fn validate(spec: OwnerSpec, check: &mut Check<'_>) -> Self {
                Self(Template::read(spec, check))
            }
        }
    )* };
}

owners!(Deployment, StatefulSet, DaemonSet);
