//! PeerAuthentication: what a server's port asks of its callers' transport.

use std::collections::BTreeMap;

use mesh_core::policy::InboundTls;
use serde::Deserialize;

use super::check::Check;
use super::destination_rule::SelectorSpec;
use super::kinds::Kind;
use super::values::port;
use crate::source::Document;
use crate::source::decode::Ignored;

/// A PeerAuthentication.
#[derive(Clone, Debug)]
pub(crate) struct PeerAuthentication {
    /// Labels of the workloads meant; `None` = the whole scope.
    pub(crate) selector: Option<BTreeMap<String, String>>,
    pub(crate) mode: MtlsMode,
    /// By workload port.
    pub(crate) ports: BTreeMap<u16, MtlsMode>,
}

/// A mode; UNSET takes the next scope's.
pub(crate) type MtlsMode = Option<InboundTls>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PeerAuthenticationSpec {
    selector: Option<SelectorSpec>,
    mtls: Option<MtlsSpec>,
    port_level_mtls: Option<BTreeMap<String, MtlsSpec>>,
}

#[derive(Deserialize)]
struct MtlsSpec {
    mode: Option<String>,
}

impl Kind for PeerAuthentication {
    const GROUP: &'static str = "security.istio.io";
    const KIND: &'static str = "PeerAuthentication";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1"];
    type Spec = PeerAuthenticationSpec;

    /// A mode under a misspelt name is none, and what it closed would be open.
    fn strict(_: &Ignored) -> Option<&'static str> {
        Some("without it a port may be open that should not be")
    }

    fn validate(spec: PeerAuthenticationSpec, check: &mut Check<'_>) -> Self {
        let selector = spec.selector.map(|s| if s.match_labels.is_empty() { s.labels } else { s.match_labels });
        let selector = selector.filter(|labels| !labels.is_empty());
        let mode = spec.mtls.as_ref().and_then(|mtls| mode(mtls, check, "spec.mtls.mode"));
        let mut ports = BTreeMap::new();
        if let Some(levels) = &spec.port_level_mtls {
            if selector.is_none() {
                check.error("spec.portLevelMtls", "ports need a selector that names the workloads");
            }
            if levels.is_empty() {
                check.error("spec.portLevelMtls", "an empty list of ports; remove it");
            }
            for (text, mtls) in levels {
                let path = format!("spec.portLevelMtls.{text}");
                let number = text.parse::<i64>().map_err(|_| format!("{text:?} is not a port")).and_then(port);
                let Some(number) = check.take(&path, number) else { continue };
                ports.insert(number, self::mode(mtls, check, &format!("{path}.mode")));
            }
        }
        Self { selector, mode, ports }
    }

    /// A misspelt mode must not open a port: until it is corrected the strictest one holds, for the
    /// workloads selected, or for the whole scope if they cannot be read.
    fn stand_in(read: Option<Self>, _: &Document) -> Option<(Self, &'static str)> {
        let selector = read.and_then(|read| read.selector);
        let strict = Self { selector, mode: Some(InboundTls::Strict), ports: BTreeMap::new() };
        Some((strict, "until it is corrected mutual TLS is required (STRICT) where this object holds"))
    }
}

fn mode(spec: &MtlsSpec, check: &mut Check<'_>, path: &str) -> MtlsMode {
    match spec.mode.as_deref().unwrap_or("UNSET") {
        "UNSET" => None,
        "DISABLE" => Some(InboundTls::Disable),
        "PERMISSIVE" => Some(InboundTls::Permissive),
        "STRICT" => Some(InboundTls::Strict),
        other => {
            check.error(path, format!("{other:?} is not one of UNSET, DISABLE, PERMISSIVE, STRICT"));
            None
        }
    }
}
