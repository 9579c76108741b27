//! Server: a port of some pods that is guarded.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::check::Check;
use super::super::kinds::Kind;
use super::super::values::{Loose, port};
use super::values::{LabelSelector, LabelSelectorSpec};
use crate::source::Document;
use crate::source::decode::Ignored;

/// A Server.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) pods: LabelSelector,
    pub(crate) port: ServerPort,
    pub(crate) access: AccessPolicy,
    /// Made in place of one that cannot be read: nobody is let in, whatever authorizations say.
    pub(crate) closed: bool,
}

/// Which port it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ServerPort {
    Number(u16),
    /// The container port of that name.
    Name(String),
    /// Not readable.
    Any,
}

/// Who may call where no authorization says so, and what Linkerd calls it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessPolicy {
    /// Nobody: `deny`. A Server's default.
    Deny,
    /// Everybody, and what an authorization would have denied is recorded: `audit`.
    Audit,
    /// Everybody: `all-unauthenticated`. Linkerd's default where there is no Server.
    #[default]
    AllUnauthenticated,
    /// Every identity of the mesh: `all-authenticated`.
    AllAuthenticated,
    /// Everybody inside of the cluster's networks: `cluster-unauthenticated`.
    ClusterUnauthenticated,
    /// Every identity inside of the cluster's networks: `cluster-authenticated`.
    ClusterAuthenticated,
}

/// The annotation of a namespace or a pod that says what holds where there is no Server.
pub(crate) const DEFAULT_POLICY: &str = "config.linkerd.io/default-inbound-policy";

impl AccessPolicy {
    const ALL: [(&'static str, Self); 6] = [
        ("deny", Self::Deny),
        ("audit", Self::Audit),
        ("all-unauthenticated", Self::AllUnauthenticated),
        ("all-authenticated", Self::AllAuthenticated),
        ("cluster-unauthenticated", Self::ClusterUnauthenticated),
        ("cluster-authenticated", Self::ClusterAuthenticated),
    ];

    /// Reads Linkerd's name.
    ///
    /// # Errors
    /// There is no such policy.
    pub fn read(name: &str) -> Result<Self, String> {
        let known = Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, policy)| *policy);
        known.ok_or_else(|| {
            let all: Vec<&str> = Self::ALL.iter().map(|(name, _)| *name).collect();
            format!("{name:?} is not one of {}", all.join(", "))
        })
    }

    /// What the annotation of an object says; `None` = nothing. One that cannot be read lets nobody in.
    pub(crate) fn of_annotation(annotations: &BTreeMap<String, String>) -> Option<Self> {
        annotations.get(DEFAULT_POLICY).map(|name| Self::read(name).unwrap_or(Self::Deny))
    }

    /// Reports an annotation that cannot be read.
    pub(crate) fn check_annotation(check: &mut Check<'_>) {
        let name = check.document().annotations.get(DEFAULT_POLICY).cloned();
        if let Some(Err(why)) = name.as_deref().map(Self::read) {
            let path = format!("metadata.annotations.{DEFAULT_POLICY}");
            check.warn(&path, format!("{why}; until it is corrected nobody is let in where it holds"));
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServerSpec {
    pod_selector: Option<LabelSelectorSpec>,
    external_workload_selector: Option<IgnoredAny>,
    port: Option<Loose>,
    proxy_protocol: Option<String>,
    access_policy: Option<String>,
}

impl Kind for Server {
    const GROUP: &'static str = "policy.linkerd.io";
    const KIND: &'static str = "Server";
    const VERSIONS: &'static [&'static str] = &["v1beta3", "v1beta2", "v1beta1", "v1alpha1"];
    type Spec = ServerSpec;

    /// A misspelt selector would guard other pods.
    fn strict(_: &Ignored) -> Option<&'static str> {
        Some("without it other pods or ports might be guarded")
    }

    fn validate(spec: ServerSpec, check: &mut Check<'_>) -> Self {
        let access = spec.access_policy.as_deref().map_or(Ok(AccessPolicy::Deny), AccessPolicy::read);
        let access = check.take("spec.accessPolicy", access).unwrap_or(AccessPolicy::Deny);
        match (&spec.pod_selector, &spec.external_workload_selector) {
            (Some(_), None) => {}
            (None, Some(_)) => check.error("spec.externalWorkloadSelector", "external workloads are not supported"),
            _ => check.error("spec.podSelector", "one of podSelector and externalWorkloadSelector is needed"),
        }
        let pods = spec.pod_selector.map(|spec| LabelSelector::read(spec, check, "spec.podSelector"));
        let number = match &spec.port {
            None => Err("a port is needed, a number or the name of a container port".to_owned()),
            Some(Loose(text)) => match text.parse::<i64>() {
                Ok(number) => port(number).map(ServerPort::Number),
                Err(_) if text.is_empty() => Err("an empty name".to_owned()),
                Err(_) => Ok(ServerPort::Name(text.clone())),
            },
        };
        let port = check.take("spec.port", number).unwrap_or(ServerPort::Any);
        match spec.proxy_protocol.as_deref().unwrap_or("unknown") {
            // Whether a port takes requests or raw connections is the application's to say; both are authorized.
            "unknown" | "HTTP/1" | "HTTP/2" | "gRPC" | "opaque" | "TLS" => {}
            other => check.error("spec.proxyProtocol", format!("{other:?} is not a protocol of Linkerd's")),
        }
        Self { pods: pods.unwrap_or_default(), port, access, closed: false }
    }

    /// A port that somebody wanted guarded is closed until it is known how.
    fn stand_in(read: Option<Self>, _: &Document) -> Option<(Self, &'static str)> {
        let (pods, port) =
            read.map_or((LabelSelector::default(), ServerPort::Any), |server| (server.pods, server.port));
        let closed = Self { pods, port, access: AccessPolicy::Deny, closed: true };
        Some((closed, "until it is corrected every request is denied where this object holds"))
    }
}
