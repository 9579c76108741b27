//! Listeners and route tables: which family of rules decides for a host, and its domains.

mod delegate;
mod istio;
mod linkerd;
mod port;
mod tcp;

pub(super) use self::istio::made_by;
pub(super) use self::linkerd::profile;

use mesh_core::id::ClusterName;
use mesh_core::policy::{
    Domain, FAULT_FILTER, Forward, HeaderPolicy, HttpFilter, HttpFilterKind, Listener, RetryBudget, RetryPolicy, Route,
    RouteAction, RouteConfiguration, RouteMatch, RouteSource, VirtualHost,
};

use super::catalog::{Host, HostPort};
use super::{NodeScope, World, names};

/// A host seen from a client, on one port.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) world: &'a World,
    pub(super) scope: &'a NodeScope,
    /// Full name; below a wildcard the name dialled.
    pub(super) host: &'a str,
    pub(super) port: u16,
    /// `None` for a host that only a VirtualService speaks of.
    pub(super) known: Option<&'a Host>,
}

/// The routes of a virtual host, and what stands around them.
pub(super) struct Table {
    pub(super) routes: Vec<Route>,
    pub(super) retry: Option<RetryPolicy>,
    pub(super) budget: Option<RetryBudget>,
}

/// The listener of `host:port` as dialled.
pub(super) fn listener(world: &World, scope: &NodeScope, name: &str) -> Option<Listener> {
    let (host, port) = names::dialled(name)?;
    let place = |host, known| Place { world, scope, host, port, known };
    let (routes, tcp) = match world.catalog.resolve(scope, &host, &world.options) {
        Some((full, found)) => {
            let routes = usable(found, port).then(|| names::outbound(port, "", &full))?;
            (routes, tcp::forward(&place(&full, Some(&**found)), &host))
        }
        None if world.virtual_services.find(scope, &host).is_some() => {
            (names::outbound(port, "", &host), tcp::forward(&place(&host, None), &host))
        }
        None => (undefined(world, scope, &host).then(|| names::passthrough(port, &host))?, None),
    };
    Some(Listener {
        // Always there, as with istiod, so that a fault can come and go by routes alone.
        filters: vec![HttpFilter { name: FAULT_FILTER.to_owned(), kind: HttpFilterKind::Fault(None) }],
        tcp,
        ..Listener::new(name, RouteSource::Named(routes))
    })
}

/// Why there is no listener of that name.
pub(super) fn why_missing(world: &World, scope: &NodeScope, name: &str) -> String {
    let Some((host, port)) = names::dialled(name) else {
        return format!("{name:?} is not a destination; dial host:port");
    };
    let namespace = &scope.namespace;
    match world.catalog.resolve(scope, &host, &world.options) {
        Some((full, found)) => {
            let ports: Vec<String> = found.ports.iter().map(|port| port.number.to_string()).collect();
            format!("{full} has no port {port} for requests; it has {}", ports.join(", "))
        }
        None if world.catalog.exists(&names::complete(&host, namespace, &world.options)) => {
            format!("{host} is not exported to namespace {namespace}; change its exportTo")
        }
        None => format!(
            "no Service, ServiceEntry or running process {host:?} is known in namespace {namespace}; check the name, \
             dial name.namespace for another namespace, or add a manifest"
        ),
    }
}

/// Whether a host that nothing defines may be called: it is not the name of something in the cluster.
fn undefined(world: &World, scope: &NodeScope, host: &str) -> bool {
    let local = names::is_cluster_local(host, &world.options) && host != "localhost";
    let hidden = world.catalog.exists(host) && world.catalog.get(scope, host).is_none();
    let in_namespace = names::kubernetes_form(host, &world.options)
        .is_some_and(|(name, namespace)| !name.contains('.') && knows_namespace(world, namespace));
    world.options.allow_any && !local && !hidden && !in_namespace
}

fn knows_namespace(world: &World, namespace: &str) -> bool {
    world.model.namespaces.contains_key(&(String::new(), namespace.to_owned()))
        || world
            .model
            .services
            .range((namespace.to_owned(), String::new())..)
            .next()
            .is_some_and(|(key, _)| key.0 == namespace)
}

fn usable(host: &Host, port: u16) -> bool {
    host.port(port).is_some_and(|port| port.protocol != crate::model::PortProtocol::Udp)
}

/// The route configuration of that name.
pub(super) fn configuration(world: &World, scope: &NodeScope, name: &str) -> Option<RouteConfiguration> {
    if let Some(number) = port::of_proxy(scope, name) {
        return Some(port::configuration(world, scope, number));
    }
    let parts = names::parse(name).filter(|parts| parts.subset.is_empty())?;
    let (host, port) = (parts.host, parts.port);
    if parts.passthrough {
        let open = world.catalog.get(scope, host).is_none() && undefined(world, scope, host);
        let cluster = ClusterName::new(names::passthrough(port, host));
        let table = Table {
            routes: vec![forward_all("passthrough", Forward::to(cluster))],
            retry: Some(RetryPolicy::istio_default()),
            budget: None,
        };
        return open.then(|| finish(name, vec![host.to_owned()], port, table));
    }
    let known = world.catalog.get(scope, host).map(|host| &**host);
    let place = Place { world, scope, host, port, known };
    if known.is_some_and(|known| !usable(known, port)) {
        return None;
    }
    let table = match known {
        Some(known) => table(&place, known)?,
        None => istio::table(&place).or_else(|| only_raw(&place))?,
    };
    Some(finish(name, domains(&place), port, table))
}

/// Which family decides: a VirtualService before Linkerd's and SMI's kinds, and plain forwarding if
/// there is none.
fn table(place: &Place<'_>, known: &Host) -> Option<Table> {
    let http = known.port(place.port).is_some_and(|port: &HostPort| port.protocol.is_http());
    let ruled = http.then(|| istio::table(place).or_else(|| linkerd::table(place, known))).flatten();
    if ruled.is_some() {
        return ruled;
    }
    let cluster = ClusterName::outbound(place.port, "", &known.name);
    let mut forward = Forward::to(cluster);
    if istio::add_hash(place, &mut forward, &[(known.name.as_str(), place.port, "")]) {
        forward = istio::keeping_the_endpoint(forward);
    }
    Some(Table {
        routes: vec![forward_all("default", forward)],
        retry: Some(RetryPolicy::istio_default()),
        budget: None,
    })
}

/// The table of a host that only a VirtualService speaks of, and of raw connections alone: no request has a route.
fn only_raw(place: &Place<'_>) -> Option<Table> {
    tcp::forward(place, place.host).map(|_| Table { routes: Vec::new(), retry: None, budget: None })
}

fn forward_all(name: &str, forward: Forward) -> Route {
    let action = RouteAction::Forward(Box::new(forward));
    Route { name: name.to_owned(), ..Route::new(RouteMatch::any(), action) }
}

fn finish(name: &str, hosts: Vec<String>, port: u16, table: Table) -> RouteConfiguration {
    let domains = hosts.iter().flat_map(|host| with_port(host, port));
    let (host, budget) = virtual_host(domains, port, table);
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![host],
        headers: HeaderPolicy::default(),
        retry_budget: budget,
    }
}

/// A host as a client may write it, without the port and with it.
fn with_port(host: &str, port: u16) -> [String; 2] {
    [host.to_owned(), format!("{host}:{port}")]
}

fn virtual_host(texts: impl Iterator<Item = String>, port: u16, table: Table) -> (VirtualHost, Option<RetryBudget>) {
    let mut domains = Vec::new();
    for text in texts {
        // Hosts were checked when they were read; a wildcard stands at the beginning only.
        domains.extend(Domain::new(&text).ok().filter(|domain| !domains.contains(domain)));
    }
    let first = domains.first().map(Domain::as_str).unwrap_or_default();
    let host = VirtualHost {
        name: format!("{}:{port}", first.trim_end_matches(&format!(":{port}"))),
        domains,
        routes: table.routes,
        headers: HeaderPolicy::default(),
        retry: table.retry,
    };
    (host, table.budget)
}

/// Every form in which a client may name the host.
fn domains(place: &Place<'_>) -> Vec<String> {
    let Some(known) = place.known.filter(|known| known.kubernetes && known.name == place.host) else {
        return vec![place.host.to_owned()];
    };
    let (name, namespace) = (&known.short, &known.namespace);
    let mut forms = vec![
        known.name.clone(),
        format!("{}.", known.name),
        format!("{name}.{namespace}.svc"),
        format!("{name}.{namespace}"),
    ];
    if *namespace == place.scope.namespace {
        forms.push(name.clone());
    }
    forms.extend(known.cluster_ips.iter().map(|ip| match ip {
        std::net::IpAddr::V4(ip) => ip.to_string(),
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
    }));
    if known.headless {
        let pods: Vec<String> = forms[..4].iter().map(|form| format!("*.{form}")).collect();
        forms.extend(pods);
    }
    forms
}
