//! Findings about authorization that need several objects: who is referred to and does not exist. Nothing of this opens
//! anything; what is missing lets nobody in, or holds for nobody.

use mesh_core::policy::AuthorizationAction;

use super::World;
use super::authorization::provider;
use crate::finding::{Finding, Severity};
use crate::model::{Authentication, Target};

pub(super) fn findings(world: &World, findings: &mut Vec<Finding>) {
    istio(world, findings);
    authorizations(world, findings);
    servers(world, findings);
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
        for name in policy.spec.services.iter().flatten() {
            if !model.services.contains_key(&(policy.namespace().to_owned(), name.clone())) {
                let message = format!("no Service {name:?} in the namespace: the policy holds for nobody by this");
                findings.push(policy.finding(Severity::Error, "spec.targetRefs", message).with_code("IST0101"));
            }
        }
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
            Target::Route(name) if !model.linkerd_routes.contains_key(&(namespace(), name.clone())) => {
                Some(format!("HTTPRoute {name:?}"))
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

/// Servers of the same selector and port: Linkerd refuses the second.
fn servers(world: &World, findings: &mut Vec<Finding>) {
    let mut all: Vec<_> = world.model.linkerd_servers.values().collect();
    all.sort_by_key(|server| server.seniority());
    for (i, server) in all.iter().enumerate() {
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
