//! SMI TrafficSplit: shares of a service's traffic for other services of its namespace.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::check::Check;
use super::kinds::Kind;
use super::values::{Loose, is_label, quantity};

/// A TrafficSplit.
#[derive(Clone, Debug)]
pub(crate) struct TrafficSplit {
    /// Short name of the service that clients dial.
    pub(crate) root: String,
    /// `(short service name, weight)`, in listed order.
    pub(crate) backends: Vec<(String, u32)>,
}

#[derive(Deserialize)]
pub(crate) struct TrafficSplitSpec {
    #[serde(default)]
    service: String,
    #[serde(default)]
    backends: Vec<BackendSpec>,
    #[serde(default)]
    matches: Vec<IgnoredAny>,
}

#[derive(Deserialize)]
struct BackendSpec {
    #[serde(default)]
    service: String,
    weight: Option<Loose>,
}

impl Kind for TrafficSplit {
    const GROUP: &'static str = "split.smi-spec.io";
    const KIND: &'static str = "TrafficSplit";
    const VERSIONS: &'static [&'static str] = &["v1alpha4", "v1alpha3", "v1alpha2", "v1alpha1"];
    type Spec = TrafficSplitSpec;

    fn validate(spec: TrafficSplitSpec, check: &mut Check<'_>) -> Self {
        let root = service(&spec.service, check, "spec.service");
        let mut backends: Vec<(String, u32)> = Vec::new();
        for (i, backend) in spec.backends.iter().enumerate() {
            let path = format!("spec.backends[{i}]");
            let name = service(&backend.service, check, &format!("{path}.service"));
            if backends.iter().any(|(other, _)| *other == name) {
                check.error(&format!("{path}.service"), format!("{name:?} is listed twice"));
            }
            let weight = backend.weight.as_ref().map_or("0", |weight| weight.0.as_str());
            let Some(weight) = check.take(&format!("{path}.weight"), quantity(weight)) else { continue };
            backends.push((name, weight));
        }
        let total: u64 = backends.iter().map(|(_, weight)| u64::from(*weight)).sum();
        if spec.backends.is_empty() {
            check.error("spec.backends", "at least one backend is needed");
        } else if total == 0 || total > u64::from(u32::MAX) {
            check.error("spec.backends", "the weights must sum to more than 0, and to less than 429496");
        }
        if !spec.matches.is_empty() {
            check.unenforced("spec.matches", "the split holds for every request, not only those that match");
        }
        Self { root, backends }
    }
}

/// A service of the split's own namespace; its full name is shortened.
fn service(name: &str, check: &mut Check<'_>, path: &str) -> String {
    let mut parts = name.split('.');
    let short = parts.next().unwrap_or_default();
    let own = check.document().namespace.clone();
    if !is_label(short) {
        check.error(path, format!("{name:?} is not a service name"));
    } else if parts.next().is_some_and(|namespace| namespace != own) {
        check.error(path, format!("{name:?} is not in namespace {own:?}; a split stays within its namespace"));
    }
    short.to_owned()
}
