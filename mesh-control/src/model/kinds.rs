//! Which kinds are known, and what happens to the others.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::check::Check;
use super::{Model, Object, Store};
use crate::finding::{Finding, Severity};
use crate::source::{Document, Manifests};
use mesh_core::suggest::nearest;

use crate::source::decode::{Ignored, Why, decode};
use crate::source::node::{Node, Value};

/// A kind of object: its names, its spec and its validation.
pub(crate) trait Kind: Sized {
    /// API group; empty = core.
    const GROUP: &'static str;
    /// Kind.
    const KIND: &'static str;
    /// API versions accepted, newest first.
    const VERSIONS: &'static [&'static str];
    /// The member that holds the spec; empty = the spec's fields stand beside `metadata`.
    const ROOT: &'static str = "spec";
    /// The object as written.
    type Spec: DeserializeOwned;

    /// Whether a document of the kind is one that is read; the others count as of no kind of the mesh's.
    fn claims(_document: &Document) -> bool {
        true
    }

    /// What is to be said of it if it stays in force in the place of a version that is not valid.
    fn as_last_good(&self) -> Option<&'static str> {
        None
    }

    /// Why what is ignored must be an error: what the object would do without it.
    fn strict(_ignored: &Ignored) -> Option<&'static str> {
        None
    }

    /// Checks a spec. Anything wrong goes to `check`; after an error the result is not used.
    fn validate(spec: Self::Spec, check: &mut Check<'_>) -> Self;

    /// What stands in for an object that is not valid and has no last good version, with what that
    /// means; security kinds fail closed. `read` is what could be made of its document.
    fn stand_in(_read: Option<Self>, _document: &Document) -> Option<(Self, &'static str)> {
        None
    }
}

/// What comes of a condition that is lost.
pub(crate) const LOST_CONDITION: &str = "without this condition the rule would take more";

/// Kinds that are known and do nothing here, with what that means.
const IGNORED: &[(&str, &str, Severity, &str)] = &[
    ("policy.linkerd.io", "EgressNetwork", Severity::Error, NOT_ENFORCED),
    ("access.smi-spec.io", "TrafficTarget", Severity::Error, NOT_ENFORCED),
    ("networking.istio.io", "Sidecar", Severity::Warning, NO_EFFECT),
    ("networking.istio.io", "EnvoyFilter", Severity::Warning, NO_EFFECT),
    ("networking.istio.io", "ProxyConfig", Severity::Warning, NO_EFFECT),
    ("networking.istio.io", "WorkloadGroup", Severity::Warning, NO_EFFECT),
    ("telemetry.istio.io", "Telemetry", Severity::Warning, NO_EFFECT),
    ("extensions.istio.io", "WasmPlugin", Severity::Warning, NO_EFFECT),
    ("extensions.istio.io", "TrafficExtension", Severity::Warning, NO_EFFECT),
    ("workload.linkerd.io", "ExternalWorkload", Severity::Warning, NO_EFFECT),
    ("multicluster.linkerd.io", "Link", Severity::Warning, NO_EFFECT),
    ("specs.smi-spec.io", "HTTPRouteGroup", Severity::Warning, NO_EFFECT),
    ("specs.smi-spec.io", "TCPRoute", Severity::Warning, NO_EFFECT),
    ("specs.smi-spec.io", "UDPRoute", Severity::Warning, NO_EFFECT),
    ("gateway.networking.k8s.io", "HTTPRoute", Severity::Warning, NO_EFFECT),
    ("gateway.networking.k8s.io", "GRPCRoute", Severity::Warning, NO_EFFECT),
    ("gateway.networking.k8s.io", "Gateway", Severity::Warning, NO_EFFECT),
    ("gateway.networking.k8s.io", "ReferenceGrant", Severity::Warning, NO_EFFECT),
    ("gateway.networking.k8s.io", "BackendTLSPolicy", Severity::Warning, NO_EFFECT),
    ("gateway.networking.k8s.io", "TLSRoute", Severity::Warning, NO_EFFECT),
    ("gateway.networking.k8s.io", "TCPRoute", Severity::Warning, NO_EFFECT),
    ("", "ConfigMap", Severity::Info, NOT_MESH),
    ("", "Secret", Severity::Info, NOT_MESH),
];
/// Groups whose objects refuse requests: one that nobody reads is no trifle.
const GUARDING: [&str; 2] = ["security.istio.io", "policy.linkerd.io"];
const NOT_ENFORCED: &str = "not enforced by this version; requests it should refuse are NOT refused: \
     remove the object, or enforce it by other means";
/// What filters of Envoy that refuse requests have in their names and types. Wasm and Go are not among them: what those do is not
/// to be seen here, and most count.
const GUARDS: [&str; 10] =
    ["rbac", "ext_authz", "jwt_authn", ".lua", "oauth2", "basic_auth", "api_key_auth", "ratelimit", "ext_proc", "csrf"];
const NO_EFFECT: &str = "this kind has no effect in this version";
const NOT_MESH: &str = "not mesh configuration; ignored";

macro_rules! kinds {
    ($($field:ident),* $(,)?) => {
        /// Adds one document to the model.
        pub(crate) fn add(model: &mut Model, document: &Arc<Document>, manifests: &Manifests, previous: Option<&Model>) {
            $( if is_kind(&model.$field, document) {
                let last = add_as(document, previous.map(|p| &p.$field), &mut model.$field, &mut model.findings);
                return in_place_of(document, last, model);
            } )*
            let kept = previous.and_then(|previous| {
                $( if let Some(last) = keep(document, manifests, &previous.$field, &mut model.$field) {
                    return Some((names(|model| &model.$field).1, last));
                } )*
                None
            });
            let (kept, last) = kept.unzip();
            in_place_of(document, last, model);
            add_unknown(model, document, kept);
        }

        fn known() -> impl Iterator<Item = (&'static str, &'static str)> {
            let own = [$( names(|model| &model.$field) ),*];
            own.into_iter().chain(IGNORED.iter().map(|(group, kind, ..)| (*group, *kind)))
        }
    };
}

kinds! {
    namespaces, service_accounts, services, endpoint_slices, pods, deployments, stateful_sets, daemon_sets,
    virtual_services, destination_rules, gateways, service_entries, workload_entries, service_profiles, traffic_splits, peer_authentications,
    authorization_policies, request_authentications, mesh_configs, linkerd_servers, linkerd_server_authorizations,
    linkerd_authorizations, linkerd_mesh_tls, linkerd_networks, linkerd_routes, gateway_http_routes,
    gateway_grpc_routes, linkerd_rate_limits,
}

fn names<T: Kind>(_: fn(&Model) -> &Store<T>) -> (&'static str, &'static str) {
    (T::GROUP, T::KIND)
}

fn is_kind<T: Kind>(_: &Store<T>, document: &Document) -> bool {
    T::GROUP == document.group && T::KIND == document.kind && T::claims(document)
}

/// Notes which version is in force while a document is not valid, if there is one.
fn in_place_of(document: &Document, last: Option<Arc<Document>>, model: &mut Model) {
    if let Some(last) = last {
        model.stale.entry(document.file.clone()).or_default().push(last);
    }
}

/// Keeps the object that a document was before its kind or group was misspelt; gives it if there is one.
fn keep<T: Kind>(
    document: &Document,
    manifests: &Manifests,
    previous: &Store<T>,
    store: &mut Store<T>,
) -> Option<Arc<Document>> {
    let key = (document.namespace.clone(), document.name.clone());
    let last = previous.get(&key).filter(|last| last.document.file == document.file)?;
    let is_slip = nearest(&document.kind, [T::KIND]).is_some() || document.kind == T::KIND;
    let ignored = IGNORED.iter().any(|(group, kind, ..)| *group == document.group && *kind == document.kind);
    let object = last.document.key();
    if !is_slip || ignored || manifests.documents.iter().any(|other| other.key() == object) {
        return None;
    }
    store.insert(key, last.clone());
    Some(last.document.clone())
}

fn add_unknown(model: &mut Model, document: &Document, kept: Option<&str>) {
    let ignored = IGNORED.iter().find(|(group, kind, ..)| *group == document.group && *kind == document.kind);
    model.findings.push(match (ignored, lets_in(document)) {
        (Some(_), Some((field, message))) => document.finding(Severity::Error, field, message),
        (Some((_, _, severity, message)), None) => document.finding(*severity, "", *message),
        (None, _) => {
            let mut message = format!("unknown kind {} in group {:?}; ignored", document.kind, document.group);
            let kinds = known().map(|(_, kind)| kind);
            let mut guards = GUARDING.contains(&document.group.as_str());
            if let Some((group, kind)) = known().find(|(_, kind)| *kind == document.kind) {
                message.push_str(&format!("; {kind} is known in group {group:?}"));
                guards |= GUARDING.contains(&group);
            } else if let Some(kind) = nearest(&document.kind, kinds) {
                message.push_str(&format!("; did you mean {kind}?"));
            }
            if guards && kept.is_none() {
                message.push_str("; what it should refuse is NOT refused");
            }
            let severity = if guards || kept.is_some() { Severity::Error } else { Severity::Warning };
            if let Some(kind) = kept {
                message.push_str(&format!("; the last good {kind} of this name stays in force"));
            }
            document.finding(severity, "kind", message)
        }
    });
}

/// Where an object of a kind that has no effect would refuse requests, and what is to be said of it.
fn lets_in(document: &Document) -> Option<(&'static str, &'static str)> {
    let spec = document.node.get("spec")?;
    match (document.group.as_str(), document.kind.as_str()) {
        ("networking.istio.io", "EnvoyFilter") => {
            let patches = spec.get("configPatches").map(Node::items).unwrap_or_default();
            let mut patches = patches.iter().filter_map(|of| of.get("patch"));
            // What a patch is beside, or takes away, refuses nothing by it.
            let adds = |patch: &Node| patch.get("operation").and_then(Node::text) != Some("REMOVE");
            let guards = patches.any(|patch| adds(patch) && patch.get("value").is_some_and(has_guard));
            guards.then_some(("spec.configPatches", NOT_ENFORCED))
        }
        ("extensions.istio.io", "WasmPlugin" | "TrafficExtension") => {
            let phase = spec.get("phase").and_then(Node::text);
            phase.filter(|phase| ["AUTHN", "AUTHZ"].contains(phase)).map(|_| ("spec.phase", NOT_ENFORCED))
        }
        _ => None,
    }
}

/// Whether somewhere in it a filter of Envoy is named that refuses requests.
fn has_guard(node: &Node) -> bool {
    match &node.value {
        Value::Text(text) => {
            let name = text.rsplit('/').next().unwrap_or_default();
            name.starts_with("envoy.") && GUARDS.iter().any(|guard| name.contains(guard))
        }
        Value::List(items) => items.iter().any(has_guard),
        Value::Map(entries) => entries.iter().any(|(_, node)| has_guard(node)),
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::UInt(_) | Value::Float(_) => false,
    }
}

/// Adds a document of a kind; gives what stays in force because it is not valid.
fn add_as<T: Kind>(
    document: &Arc<Document>,
    previous: Option<&Store<T>>,
    store: &mut Store<T>,
    findings: &mut Vec<Finding>,
) -> Option<Arc<Document>> {
    let key = (document.namespace.clone(), document.name.clone());
    let last = previous.and_then(|store| store.get(&key)).filter(|last| !last.stand_in);
    if let Some(same) = last.filter(|last| Arc::ptr_eq(&last.document, document)) {
        // One changed file does not make the others be judged again.
        findings.extend_from_slice(&same.findings);
        store.insert(key, same.clone());
        return None;
    }
    let object = |spec: T, findings: &[Finding], stand_in: bool| {
        Some(Arc::new(Object { document: document.clone(), spec, stand_in, findings: findings.to_vec() }))
    };
    let mut check = Check::new(document);
    let spec = read::<T>(document, &mut check);
    let valid = !check.findings.iter().any(|finding| finding.severity == Severity::Error);
    let (object, effect) = match (spec, last) {
        (Some(spec), _) if valid => (object(spec, &check.findings, false), ""),
        (_, Some(last)) => (Some(last.clone()), last.spec.as_last_good().unwrap_or(LAST_GOOD)),
        (spec, None) => match T::stand_in(spec, document) {
            Some((spec, effect)) => (object(spec, &[], true), effect),
            None => (None, ""),
        },
    };
    let errors = check.findings.iter_mut().filter(|finding| finding.severity == Severity::Error);
    for finding in errors.filter(|_| !effect.is_empty()) {
        finding.message.push_str("; ");
        finding.message.push_str(effect);
    }
    findings.append(&mut check.findings);
    store.extend(object.map(|object| (key, object)));
    last.filter(|_| !valid).map(|last| last.document.clone())
}

const LAST_GOOD: &str = "the last good version of this object stays in force";

fn read<T: Kind>(document: &Document, check: &mut Check<'_>) -> Option<T> {
    if !T::VERSIONS.contains(&document.version.as_str()) {
        check.error("apiVersion", format!("version {:?} is not known; use {}", document.version, T::VERSIONS[0]));
        return None;
    }
    let empty = Node { line: document.line, value: Value::Map(Vec::new()) };
    let stripped;
    let node = if T::ROOT.is_empty() {
        stripped = without_envelope(&document.node);
        &stripped
    } else {
        unknown_beside_spec::<T>(document, check);
        document.node.get(T::ROOT).unwrap_or(&empty)
    };
    match decode::<T::Spec>(node, T::ROOT) {
        Ok((spec, ignored)) => {
            ignored.iter().for_each(|ignored| report::<T>(ignored, check));
            if check.errors() == 0 {
                return Some(T::validate(spec, check));
            }
            // What else is wrong of such an object may be wrong for that; what it is for can still be read.
            Some(T::validate(spec, &mut Check::new(document)))
        }
        Err(error) => {
            check.error(&error.path, error.message);
            None
        }
    }
}

const ENVELOPE: [&str; 4] = ["apiVersion", "kind", "metadata", "status"];

fn without_envelope(node: &Node) -> Node {
    let Value::Map(entries) = &node.value else { return node.clone() };
    let rest = entries.iter().filter(|(name, _)| !ENVELOPE.contains(&name.as_str())).cloned().collect();
    Node { line: node.line, value: Value::Map(rest) }
}

fn unknown_beside_spec<T: Kind>(document: &Document, check: &mut Check<'_>) {
    let Value::Map(entries) = &document.node.value else { return };
    for (name, _) in entries.iter().filter(|(name, _)| name != T::ROOT && !ENVELOPE.contains(&name.as_str())) {
        let known = nearest(name, ENVELOPE.into_iter().chain([T::ROOT]));
        report::<T>(&Ignored { path: name.clone(), why: Why::Unknown(known) }, check);
    }
}

fn report<T: Kind>(ignored: &Ignored, check: &mut Check<'_>) {
    let Ignored { path, why } = ignored;
    match T::strict(ignored) {
        Some(effect) => check.error(path, format!("{why}: {effect}")),
        None => check.warn(path, format!("ignored: {why}")),
    }
}
