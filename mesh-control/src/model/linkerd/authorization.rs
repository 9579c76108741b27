//! Who may call: AuthorizationPolicy with the authentications it demands, and the older ServerAuthorization.

use mesh_core::policy::Principal;
use serde::Deserialize;

use super::super::check::Check;
use super::super::kinds::Kind;
use super::super::reference::RefSpec;
use super::values::{
    LabelSelector, LabelSelectorSpec, NetworkSpec, account_of, accounts_of, all_of_principals, identity, networks,
};
use crate::source::decode::Ignored;

const GROUP: &str = "policy.linkerd.io";
const LOST: &str = "without it more callers might be let in";

/// A ServerAuthorization.
#[derive(Clone, Debug)]
pub(crate) struct ServerAuthorization {
    pub(crate) server: ServerRef,
    pub(crate) client: Principal,
}

/// Which Servers of the namespace.
#[derive(Clone, Debug)]
pub(crate) enum ServerRef {
    Name(String),
    Labels(LabelSelector),
}

/// A MeshTLSAuthentication: some identities.
#[derive(Clone, Debug)]
pub(crate) struct MeshTlsAuthentication(pub(crate) Principal);

/// A NetworkAuthentication: some networks.
#[derive(Clone, Debug)]
pub(crate) struct NetworkAuthentication(pub(crate) Principal);

/// Linkerd's AuthorizationPolicy.
#[derive(Clone, Debug)]
pub(crate) struct LinkerdAuthorization {
    pub(crate) target: Target,
    /// All must hold; none = everybody.
    pub(crate) required: Vec<Authentication>,
}

/// Which kind of route; of each kind names are their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteKind {
    /// `policy.linkerd.io`.
    Linkerd,
    /// HTTPRoute of the Gateway API.
    Http,
    /// GRPCRoute of the Gateway API.
    Grpc,
}

/// What it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Server(String),
    Route(RouteKind, String),
    /// Every Server of its own namespace.
    Namespace,
    /// Nothing: what is written cannot be read.
    Elsewhere,
}

/// What it demands: namespace and name of an object, or a service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Authentication {
    MeshTls(String, String),
    Network(String, String),
    Account(Principal),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServerAuthorizationSpec {
    server: Option<ServerRefSpec>,
    client: Option<ClientSpec>,
}

#[derive(Deserialize)]
struct ServerRefSpec {
    name: Option<String>,
    selector: Option<LabelSelectorSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientSpec {
    networks: Option<Vec<NetworkSpec>>,
    #[serde(default)]
    unauthenticated: bool,
    #[serde(rename = "meshTLS")]
    mesh_tls: Option<MeshTlsSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MeshTlsSpec {
    #[serde(default, rename = "unauthenticatedTLS")]
    unauthenticated_tls: bool,
    #[serde(default)]
    identities: Vec<String>,
    #[serde(default)]
    service_accounts: Vec<AccountSpec>,
}

#[derive(Deserialize)]
struct AccountSpec {
    #[serde(default)]
    name: String,
    namespace: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct IdentitiesSpec {
    #[serde(default)]
    identities: Vec<String>,
    #[serde(default)]
    identity_refs: Vec<RefSpec>,
}

#[derive(Deserialize)]
pub(crate) struct NetworksSpec {
    #[serde(default)]
    networks: Vec<NetworkSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AuthorizationSpec {
    target_ref: Option<RefSpec>,
    required_authentication_refs: Option<Vec<RefSpec>>,
}

impl Kind for ServerAuthorization {
    const GROUP: &'static str = GROUP;
    const KIND: &'static str = "ServerAuthorization";
    const VERSIONS: &'static [&'static str] = &["v1beta1", "v1alpha1"];
    type Spec = ServerAuthorizationSpec;

    fn strict(_: &Ignored) -> Option<&'static str> {
        Some(LOST)
    }

    fn validate(spec: ServerAuthorizationSpec, check: &mut Check<'_>) -> Self {
        let server = match spec.server {
            Some(ServerRefSpec { name: Some(name), selector: None }) => Some(ServerRef::Name(name)),
            Some(ServerRefSpec { name: None, selector: Some(spec) }) => {
                Some(ServerRef::Labels(LabelSelector::read(spec, check, "spec.server.selector")))
            }
            _ => {
                check.error("spec.server", "one of name and selector is needed");
                None
            }
        };
        let client = match &spec.client {
            Some(client) => of_client(client, check),
            None => {
                check.error("spec.client", "it is needed: who may call");
                Principal::Or(Vec::new())
            }
        };
        Self { server: server.unwrap_or_else(|| ServerRef::Name(String::new())), client }
    }
}

fn of_client(spec: &ClientSpec, check: &mut Check<'_>) -> Principal {
    let mut all = Vec::new();
    if let Some(nets) = &spec.networks {
        all.push(networks(nets, check, "spec.client.networks"));
    }
    match (&spec.mesh_tls, spec.unauthenticated) {
        (None, true) => {}
        (Some(tls), false) => all.push(of_mesh_tls(tls, check)),
        (Some(_), true) => check.error("spec.client.unauthenticated", "it excludes meshTLS"),
        (None, false) => check.error("spec.client", "one of unauthenticated and meshTLS is needed"),
    }
    all_of_principals(all)
}

fn of_mesh_tls(spec: &MeshTlsSpec, check: &mut Check<'_>) -> Principal {
    const AT: &str = "spec.client.meshTLS";
    let own = check.document().namespace.clone();
    if spec.unauthenticated_tls {
        check.unenforced(&format!("{AT}.unauthenticatedTLS"), "callers without an identity are not let in");
        return Principal::Authenticated(None);
    }
    let mut any = identities(&spec.identities, check, &format!("{AT}.identities"));
    for (i, account) in spec.service_accounts.iter().enumerate() {
        if account.name.is_empty() {
            check.error(&format!("{AT}.serviceAccounts[{i}].name"), "the name of a service account is needed");
        }
        any.push(account_of(account.namespace.as_deref().unwrap_or(&own), &account.name));
    }
    if any.is_empty() {
        check.error(AT, "one of identities, serviceAccounts and unauthenticatedTLS is needed");
    }
    Principal::Or(any)
}

fn identities(texts: &[String], check: &mut Check<'_>, at: &str) -> Vec<Principal> {
    let read = texts.iter().enumerate().map(|(i, text)| check.take(&format!("{at}[{i}]"), identity(text)));
    read.collect::<Vec<_>>().into_iter().flatten().collect()
}

impl Kind for MeshTlsAuthentication {
    const GROUP: &'static str = GROUP;
    const KIND: &'static str = "MeshTLSAuthentication";
    const VERSIONS: &'static [&'static str] = &["v1alpha1"];
    type Spec = IdentitiesSpec;

    fn strict(_: &Ignored) -> Option<&'static str> {
        Some(LOST)
    }

    fn validate(spec: IdentitiesSpec, check: &mut Check<'_>) -> Self {
        let own = check.document().namespace.clone();
        let mut any = identities(&spec.identities, check, "spec.identities");
        for (i, one) in spec.identity_refs.iter().enumerate() {
            let namespace = one.namespace.as_deref().unwrap_or(&own);
            match one.of() {
                ("core", "ServiceAccount") if !one.name.is_empty() => any.push(account_of(namespace, &one.name)),
                ("core", "Namespace") => any.push(accounts_of(if one.name.is_empty() { &own } else { &one.name })),
                _ => check.error(&format!("spec.identityRefs[{i}]"), "a ServiceAccount or a Namespace is needed"),
            }
        }
        if any.is_empty() {
            check.error("spec", "at least one of identities and identityRefs is needed");
        }
        Self(Principal::Or(any))
    }
}

impl Kind for NetworkAuthentication {
    const GROUP: &'static str = GROUP;
    const KIND: &'static str = "NetworkAuthentication";
    const VERSIONS: &'static [&'static str] = &["v1alpha1"];
    type Spec = NetworksSpec;

    fn strict(_: &Ignored) -> Option<&'static str> {
        Some(LOST)
    }

    fn validate(spec: NetworksSpec, check: &mut Check<'_>) -> Self {
        if spec.networks.is_empty() {
            check.error("spec.networks", "at least one is needed");
        }
        Self(networks(&spec.networks, check, "spec.networks"))
    }
}

impl Kind for LinkerdAuthorization {
    const GROUP: &'static str = GROUP;
    const KIND: &'static str = "AuthorizationPolicy";
    const VERSIONS: &'static [&'static str] = &["v1alpha1"];
    type Spec = AuthorizationSpec;

    fn strict(_: &Ignored) -> Option<&'static str> {
        Some(LOST)
    }

    fn validate(spec: AuthorizationSpec, check: &mut Check<'_>) -> Self {
        let target = spec.target_ref.as_ref().map(|target| read_target(target, check));
        if target.is_none() {
            check.error("spec.targetRef", "it is needed: a Server, an HTTPRoute or the policy's own Namespace");
        }
        if spec.required_authentication_refs.is_none() {
            let message = "it is needed; an empty list lets everybody in";
            check.error("spec.requiredAuthenticationRefs", message);
        }
        let mut required = Vec::new();
        for (i, one) in spec.required_authentication_refs.iter().flatten().enumerate() {
            let at = format!("spec.requiredAuthenticationRefs[{i}]");
            let namespace = one.namespace.clone().unwrap_or_else(|| check.document().namespace.clone());
            let authentication = match one.of() {
                (GROUP, "MeshTLSAuthentication") => Authentication::MeshTls(namespace, one.name.clone()),
                (GROUP, "NetworkAuthentication") => Authentication::Network(namespace, one.name.clone()),
                ("core", "ServiceAccount") => Authentication::Account(account_of(&namespace, &one.name)),
                _ => {
                    let message = "a MeshTLSAuthentication, a NetworkAuthentication or a ServiceAccount is needed";
                    check.error(&at, message);
                    continue;
                }
            };
            let network = |one: &Authentication| matches!(one, Authentication::Network(..));
            if required.iter().any(|other| network(other) == network(&authentication)) {
                check.error(&at, "only one of them may name identities, and only one networks");
            }
            required.push(authentication);
        }
        Self { target: target.unwrap_or(Target::Elsewhere), required }
    }
}

fn read_target(target: &RefSpec, check: &mut Check<'_>) -> Target {
    let own = check.document().namespace.clone();
    if target.namespace.as_ref().is_some_and(|namespace| *namespace != own) {
        check.error("spec.targetRef.namespace", "a policy is for objects of its own namespace");
    }
    match target.of() {
        (GROUP, "Server") => Target::Server(target.name.clone()),
        (GROUP, "HTTPRoute") => Target::Route(RouteKind::Linkerd, target.name.clone()),
        ("core", "Namespace") => {
            if target.name != own {
                check.error("spec.targetRef.name", "a policy is for its own namespace");
            }
            Target::Namespace
        }
        ("gateway.networking.k8s.io", "HTTPRoute") => Target::Route(RouteKind::Http, target.name.clone()),
        ("gateway.networking.k8s.io", "GRPCRoute") => Target::Route(RouteKind::Grpc, target.name.clone()),
        _ => {
            check
                .error("spec.targetRef", "a Server, an HTTPRoute, a GRPCRoute or the policy's own Namespace is needed");
            Target::Elsewhere
        }
    }
}
