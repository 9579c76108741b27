//! Parsed names: the floor of the crate. Everything here is a checked string with a meaning.
//!
//! Refuses to know where a name came from.

mod spiffe;
mod target;

pub use self::spiffe::{InvalidSpiffeId, SpiffeId, TrustDomain};
pub use self::target::{InvalidTarget, Scheme, Target};

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// Name of an xDS cluster (Gateway API "backend"), such as
/// `outbound|9080|v1|reviews.default.svc.cluster.local`.
///
/// The four-part form is Istio's and shows up in `istioctl` and Kiali; other control planes may use
/// any text, so nothing but emptiness is refused.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ClusterName(Arc<str>);

impl ClusterName {
    /// Takes any text as a cluster name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// Istio's name for an outbound cluster: `outbound|<port>|<subset>|<fqdn>`; an empty subset
    /// stands for the whole service.
    pub fn outbound(port: u16, subset: &str, fqdn: &str) -> Self {
        Self(format!("outbound|{port}|{subset}|{fqdn}").into())
    }

    /// The parts `(port, subset, fqdn)` of an Istio style outbound name; `None` for other names.
    pub fn outbound_parts(&self) -> Option<(u16, &str, &str)> {
        let mut parts = self.0.split('|');
        if parts.next()? != "outbound" {
            return None;
        }
        let port = parts.next()?.parse().ok()?;
        let subset = parts.next()?;
        let fqdn = parts.next()?;
        parts.next().is_none().then_some((port, subset, fqdn))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl From<&str> for ClusterName {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

/// Where an endpoint or a process runs (`envoy.config.core.v3.Locality`). Empty parts are unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Locality {
    /// Region, such as `eu-west-1`.
    pub region: String,
    /// Zone, such as `eu-west-1a`.
    pub zone: String,
    /// Sub-zone, free text.
    pub sub_zone: String,
}

impl Locality {
    /// Reads Istio's `region/zone/subzone` form; missing parts stay empty.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        Self {
            region: parts.next().unwrap_or_default(),
            zone: parts.next().unwrap_or_default(),
            sub_zone: parts.next().unwrap_or_default(),
        }
    }
}

/// Who a process is in the words of telemetry and of policy selectors: taken from the environment of
/// the process or from endpoint metadata, never from a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Workload {
    /// Workload name (a Deployment's, say). Default: the canonical service name.
    pub name: String,
    /// Kubernetes namespace. Default `default`.
    pub namespace: String,
    /// `service.istio.io/canonical-name`, else label `app`.
    pub canonical_name: String,
    /// `service.istio.io/canonical-revision`, else label `version`, else `latest`.
    pub canonical_revision: String,
    /// Cluster id; default `Kubernetes`, as Istio writes it.
    pub cluster: String,
    /// All labels of the workload.
    pub labels: std::collections::BTreeMap<String, String>,
}
