//! What one object names of others, and what of that is not there.

use std::fmt;

use super::{NodeScope, World, names};
use crate::model::{Destination, HttpAction, Object, ServiceProfile, TrafficSplit, VirtualService};

/// A reference that leads nowhere.
#[derive(Debug)]
pub(super) struct Dangling {
    /// The field that names it.
    pub(super) path: String,
    pub(super) missing: Missing,
}

impl Dangling {
    /// What it means for those who call.
    pub(super) fn effect(&self) -> &'static str {
        match &self.missing {
            Missing::Delegate(_) => "this route is skipped",
            _ if ["spec.tls[", "spec.tcp["].iter().any(|list| self.path.starts_with(list)) => {
                "connections sent there fail"
            }
            _ => "requests sent there get 503",
        }
    }
}

/// What is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// A host, with the name that was perhaps meant.
    Host { host: String, meant: Option<String> },
    /// A port of a host.
    Port { host: String, port: u16 },
    /// A subset of a host.
    Subset { host: String, subset: String },
    /// A delegate, with why it is none.
    Delegate(String),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { host, meant } => {
                write!(f, "no Service or ServiceEntry {host:?}")?;
                meant.iter().try_for_each(|full| write!(f, " (did you mean {full}?)"))
            }
            Self::Port { host, port } => write!(f, "{host} has no port {port}"),
            Self::Subset { host, subset } => write!(f, "no DestinationRule defines subset {subset:?} of {host}"),
            Self::Delegate(why) => f.write_str(why),
        }
    }
}

/// What a VirtualService names and that is not there: destinations, mirrors, delegates.
pub(super) fn of_virtual_service(world: &World, service: &Object<VirtualService>) -> Vec<Dangling> {
    let scope = NodeScope::namespace(service.namespace());
    let mut found = Vec::new();
    for (i, http) in service.spec.http.iter().enumerate() {
        let path = format!("spec.http[{i}]");
        match &http.action {
            HttpAction::Forward(list) => {
                for (j, entry) in list.iter().enumerate() {
                    let path = format!("{path}.route[{j}].destination");
                    found.extend(destination(world, &scope, &entry.destination, &path));
                }
            }
            HttpAction::Delegate { name, namespace } => {
                let missing = delegate(world, service, name, namespace);
                found.extend(missing.map(|missing| Dangling { path: format!("{path}.delegate"), missing }));
            }
            HttpAction::Redirect(..) | HttpAction::Direct(_) => {}
        }
        for mirrored in &http.mirrors {
            let path = format!("{path}.{}", mirrored.field);
            found.extend(destination(world, &scope, &mirrored.destination, &path));
        }
    }
    for (list, routes) in [("tls", &service.spec.tls), ("tcp", &service.spec.tcp)] {
        for (i, route) in routes.iter().enumerate() {
            for (j, entry) in route.destinations.iter().enumerate() {
                let path = format!("spec.{list}[{i}].route[{j}].destination");
                found.extend(destination(world, &scope, &entry.destination, &path));
            }
        }
    }
    found
}

/// Backends of a split that are not there.
pub(super) fn of_split(world: &World, split: &Object<TrafficSplit>) -> Vec<Dangling> {
    let backends = split.spec.backends.iter().enumerate().map(|(i, (backend, _))| {
        (format!("spec.backends[{i}].service"), names::fqdn(backend, split.namespace(), &world.options))
    });
    let gone = backends.filter(|(_, host)| !world.catalog.exists(host));
    gone.map(|(path, host)| Dangling { path, missing: Missing::Host { host, meant: None } }).collect()
}

/// Overrides of a profile that are not there.
pub(super) fn of_profile(world: &World, profile: &Object<ServiceProfile>) -> Vec<Dangling> {
    let overrides = profile.spec.overrides.iter();
    let gone = overrides.filter(|entry| !world.catalog.exists(&entry.host));
    gone.map(|entry| {
        let meant = full_name(world, &entry.host);
        let missing = Missing::Host { host: entry.host.clone(), meant };
        Dangling { path: format!("spec.dstOverrides[{}].authority", entry.index), missing }
    })
    .collect()
}

/// The full name of a service that a rule names by `name.namespace`, which a rule takes literally.
pub(super) fn full_name(world: &World, host: &str) -> Option<String> {
    if !host.contains('.') || world.catalog.exists(host) {
        return None;
    }
    let (name, namespace) = names::kubernetes_form(host, &world.options)?;
    let full = names::fqdn(name, namespace, &world.options);
    (full != host && world.catalog.exists(&full)).then_some(full)
}

fn destination(world: &World, scope: &NodeScope, destination: &Destination, path: &str) -> Vec<Dangling> {
    let dangling = |field: &str, missing| Dangling { path: format!("{path}.{field}"), missing };
    let host = names::complete(&destination.host, &scope.namespace, &world.options);
    let Some(known) = world.catalog.get(scope, &host) else {
        let meant = full_name(world, &host);
        return vec![dangling("host", Missing::Host { host, meant })];
    };
    let mut found = Vec::new();
    if let Some(port) = destination.port.filter(|port| known.port(*port).is_none()) {
        found.push(dangling("port.number", Missing::Port { host: host.clone(), port }));
    }
    let subset = &destination.subset;
    let rules = world.rules.find(scope, &known.name, &known.namespace);
    if !subset.is_empty() && rules.subset(subset).is_none() {
        found.push(dangling("subset", Missing::Subset { host, subset: subset.clone() }));
    }
    found
}

fn delegate(world: &World, service: &Object<VirtualService>, name: &str, namespace: &str) -> Option<Missing> {
    let target = world.model.virtual_services.get(&(namespace.to_owned(), name.to_owned()));
    Some(Missing::Delegate(match target {
        None => format!("no VirtualService {namespace}/{name}"),
        Some(target) if !target.spec.hosts.is_empty() => {
            format!("{namespace}/{name} has hosts, so it is no delegate")
        }
        Some(target) if !target.spec.export_to.visible_to(service.namespace()) => {
            format!("{namespace}/{name} is not exported to {}", service.namespace())
        }
        Some(_) => return None,
    }))
}
