//! Findings about authorization that need several objects: who is referred to and does not exist. Nothing of this opens
//! anything; what is missing lets nobody in, or holds for nobody.

use mesh_core::jwt::KeySet;
use mesh_core::policy::AuthorizationAction;

use super::authorization::provider;
use super::{World, linkerd};
use crate::finding::{Finding, Severity};
use crate::jwks::Known;
use crate::model::{
    Authentication, KeySource, Model, Object, Pod, RequestAuthentication, RouteKind, Selection, Server, ServerPort,
    Target, TokenKeys,
};

pub(super) fn findings(world: &World, findings: &mut Vec<Finding>) {
    istio(world, findings);
    authorizations(world, findings);
    servers(world, findings);
    rate_limits(world, findings);
}

fn istio(world: &World, findings: &mut Vec<Finding>) {
    let (model, options) = (&world.model, &world.options);
    for policy in model.authorization_policies.values() {
        if let AuthorizationAction::Custom(named) = &policy.spec.action
            && provider(model, options, &named.name).is_none()
        {
            let message = format!(
                "no authorizer {:?} among the extensionProviders of the ConfigMap {}/istio that can be asked: what the \
                 rules match is denied, except by applications that bring an authorizer of this name",
                named.name, options.root_namespace
            );
            findings.push(policy.finding(Severity::Warning, "spec.provider.name", message));
        }
        targets(model, policy, &policy.spec.selection, findings);
    }
    for policy in model.request_authentications.values() {
        targets(model, policy, &policy.spec.selection, findings);
        keys(world, policy, findings);
    }
}

/// Services that a policy is for and that are not there.
fn targets<T>(model: &Model, policy: &Object<T>, selection: &Selection, findings: &mut Vec<Finding>) {
    for name in selection.services.iter().flatten() {
        if !model.services.contains_key(&(policy.namespace().to_owned(), name.clone())) {
            let message = format!("no Service {name:?} in the namespace: the policy holds for nobody by this");
            findings.push(policy.finding(Severity::Error, "spec.targetRefs", message).with_code("IST0101"));
        }
    }
}

/// Keys of issuers that could not be fetched, and of those that were what is never used.
fn keys(world: &World, policy: &Object<RequestAuthentication>, findings: &mut Vec<Finding>) {
    for (i, rule) in policy.spec.rules.iter().enumerate() {
        let TokenKeys::From(source) = &rule.keys else { continue };
        let Some(Known { document, failure, .. }) = world.keys.get(source) else { continue };
        let field = match source {
            KeySource::Uri(_) => "jwksUri",
            KeySource::Issuer(_) => "issuer",
        };
        let field = format!("spec.jwtRules[{i}].{field}");
        let fetched = document.as_ref().and_then(|document| KeySet::parse(document).ok());
        if let Some(beyond_reach) = fetched.and_then(|keys| keys.beyond_reach()) {
            findings.push(policy.finding(Severity::Warning, &field, format!("of its keys {beyond_reach}")));
        }
        let Some(failure) = failure else { continue };
        let effect = match document {
            Some(_) => "the keys that were fetched last stay in force for a while",
            None => "until they can be, every token of this issuer is refused",
        };
        let message = format!("its keys cannot be fetched: {failure}; {effect}");
        findings.push(policy.finding(Severity::Error, &field, message));
    }
}

/// What Linkerd's policies refer to.
fn authorizations(world: &World, findings: &mut Vec<Finding>) {
    let model = &world.model;
    for policy in model.linkerd_authorizations.values() {
        let namespace = || policy.namespace().to_owned();
        let missing = match &policy.spec.target {
            Target::Server(name) if !model.linkerd_servers.contains_key(&(namespace(), name.clone())) => {
                Some(format!("Server {name:?}"))
            }
            Target::Route(kind, name) => {
                let key = (namespace(), name.clone());
                let (known, what) = match kind {
                    RouteKind::Linkerd => (model.linkerd_routes.contains_key(&key), "HTTPRoute"),
                    RouteKind::Http => (model.gateway_http_routes.contains_key(&key), "HTTPRoute at a Server"),
                    RouteKind::Grpc => (model.gateway_grpc_routes.contains_key(&key), "GRPCRoute at a Server"),
                };
                (!known).then(|| format!("{what} {name:?}"))
            }
            _ => None,
        };
        if let Some(missing) = missing {
            let message = format!("no {missing} in the namespace: it lets nobody in");
            findings.push(policy.finding(Severity::Warning, "spec.targetRef", message));
        }
        for (i, required) in policy.spec.required.iter().enumerate() {
            let missing = match required {
                Authentication::MeshTls(namespace, name) => {
                    let known = model.linkerd_mesh_tls.contains_key(&(namespace.clone(), name.clone()));
                    (!known).then(|| format!("MeshTLSAuthentication {namespace}/{name}"))
                }
                Authentication::Network(namespace, name) => {
                    let known = model.linkerd_networks.contains_key(&(namespace.clone(), name.clone()));
                    (!known).then(|| format!("NetworkAuthentication {namespace}/{name}"))
                }
                Authentication::Account(_) => None,
            };
            if let Some(missing) = missing {
                let path = format!("spec.requiredAuthenticationRefs[{i}]");
                findings.push(policy.finding(
                    Severity::Error,
                    &path,
                    format!("no {missing}: the policy lets nobody in"),
                ));
            }
        }
    }
}

/// Policies that limit a Server that is not there, or that another one limits already.
fn rate_limits(world: &World, findings: &mut Vec<Finding>) {
    let model = &world.model;
    for policy in model.linkerd_rate_limits.values() {
        let key = (policy.namespace().to_owned(), policy.spec.server.clone());
        let message = match model.linkerd_servers.get(&key) {
            None => format!("no Server {:?} in the namespace: nothing is limited by it", policy.spec.server),
            Some(server) => {
                let first = linkerd::rate_limits(model, server).min_by_key(|other| other.seniority());
                match first.filter(|first| first.name() != policy.name()) {
                    None => continue,
                    Some(first) => {
                        format!(
                            "HTTPLocalRateLimitPolicy {} limits the Server already: this one has no effect",
                            first.name()
                        )
                    }
                }
            }
        };
        findings.push(policy.finding(Severity::Error, "spec.targetRef", message));
    }
}

/// A Server's port by a name that no pod explains.
fn named_port(model: &Model, server: &Object<Server>) -> Option<String> {
    let ServerPort::Name(name) = &server.spec.port else { return None };
    let mut pods = model.pods.values().filter(|pod| pod.namespace() == server.namespace());
    let explains = |pod: &Object<Pod>| {
        server.spec.pods.picks(&pod.document.labels) && pod.spec.ports.iter().any(|(known, _)| known == name)
    };
    (!pods.any(|pod| explains(pod))).then(|| {
        format!(
            "no Pod that it selects has a container port {name:?}: of workloads without a Pod it may be any port, so it \
             guards all of theirs, beside what guards those without it; write the number"
        )
    })
}

/// Servers of the same selector and port: Linkerd refuses the second.
fn servers(world: &World, findings: &mut Vec<Finding>) {
    let mut all: Vec<_> = world.model.linkerd_servers.values().collect();
    all.sort_by_key(|server| server.seniority());
    for (i, server) in all.iter().enumerate() {
        if let Some(message) = named_port(&world.model, server) {
            findings.push(server.finding(Severity::Warning, "spec.port", message));
        }
        let same = all[..i].iter().find(|other| {
            other.namespace() == server.namespace()
                && (&other.spec.pods, &other.spec.port) == (&server.spec.pods, &server.spec.port)
        });
        if let Some(other) = same {
            let message =
                format!("Server {} guards the same port of the same pods: this one has no effect", other.name());
            findings.push(server.finding(Severity::Error, "spec", message));
        }
    }
}
