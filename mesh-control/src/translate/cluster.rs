//! One cluster: a host's port, or a subset of it, with the client's DestinationRule.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use mesh_core::id::{ClusterName, SpiffeId};
use mesh_core::policy::{
    Address, Balancer, CircuitBreakers, Cluster, ClusterTelemetry, ConnectionOptions, Discovery, Endpoint, Endpoints,
    InboundTls, LoadReport, LocalityBalancing, LocalityEndpoints, MeshTls, OriginatedTls, PerMillion, StringMatch,
    StringMatcher, UpstreamProtocol, UpstreamTls,
};

use super::catalog::{Host, HostPort, Lookup};
use super::instances::Instance;
use super::{NodeScope, World, endpoints, inbound, names, own_names, routes};
use crate::model::{ClientTls, ConnectionPool, PortPolicy, PortProtocol, Subset, TlsNames};

/// The cluster of that name.
pub(super) fn cluster(world: &World, scope: &NodeScope, name: &str) -> Option<Cluster> {
    let parts = names::parse(name)?;
    if parts.passthrough {
        let open = world.options.allow_any && world.catalog.get(scope, parts.host).is_none();
        return open.then(|| passthrough(name, parts.host, parts.port));
    }
    let host = world.catalog.get(scope, parts.host)?;
    let port = host.port(parts.port).filter(|port| port.protocol != PortProtocol::Udp)?;
    let rules = world.rules.find(scope, &host.name, &host.namespace);
    let subset = match parts.subset {
        "" => None,
        wanted => Some(rules.subset(wanted)?),
    };
    let policy = rules.policy(parts.port, subset);

    let mut cluster = Cluster::new(ClusterName::new(name));
    cluster.discovery = discovery(name, host, port, subset, scope, &policy);
    apply(&mut cluster, &policy);
    if matches!(cluster.balancer, Balancer::Passthrough) {
        cluster.discovery = Discovery::OriginalDestination;
    }
    // A ring goes by them with gRPC's clients and ours whatever is said, and has to with an Envoy.
    let on_a_ring = matches!(cluster.balancer.leaf(), Balancer::RingHash { .. });
    cluster.locality.weighted = on_a_ring || endpoints::distribution(scope, &policy).is_some();
    // Linkerd's rule: a profile switches the annotations of its service off.
    let profiled = routes::profile(world, &scope.namespace, &host.name, &host.namespace).is_some();
    cluster.accrual = host.accrual.clone().filter(|_| !profiled);
    cluster.tls = tls(world, host, port, &parts, &policy);
    cluster.connection.protocol = protocol(port, &cluster.tls, policy.pool.as_ref());
    cluster.load_report = world.options.load_reports.then(LoadReport::default);
    cluster.telemetry = ClusterTelemetry {
        service: host.name.clone(),
        service_name: host.short.clone(),
        service_namespace: host.namespace.clone(),
    };
    Some(cluster)
}

/// What a traffic policy says by itself, whatever the host.
pub(super) fn apply(cluster: &mut Cluster, policy: &PortPolicy) {
    if let Some(lb) = &policy.load_balancer {
        if let Some(balancer) = &lb.balancer {
            cluster.balancer = balancer.clone();
        }
        cluster.slow_start = lb.slow_start.clone();
    }
    // Istio turns panic off unless minHealthPercent says otherwise.
    let panic = policy.outlier.as_ref().map_or(PerMillion::NONE, |(_, panic)| *panic);
    cluster.locality = LocalityBalancing { panic_threshold: Some(panic), ..LocalityBalancing::default() };
    cluster.outlier = policy.outlier.as_ref().map(|(outlier, _)| outlier.clone());
    cluster.breaker = breaker(policy);
    if let Some(pool) = &policy.pool {
        connection(&mut cluster.connection, pool);
    }
}

/// The cluster of a host that nothing defines: resolve it and connect. Port 443 gets TLS with the
/// server's name checked; there is no port on which plaintext HTTP would be right and that is 443.
fn passthrough(name: &str, host: &str, port: u16) -> Cluster {
    let mut cluster = Cluster::new(ClusterName::new(name));
    let address = match host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>() {
        Ok(ip) => Address::Socket((ip, port).into()),
        Err(_) => Address::Name { host: host.into(), port },
    };
    let endpoints = Endpoints {
        cluster: name.to_owned(),
        localities: vec![LocalityEndpoints {
            locality: mesh_core::id::Locality::default(),
            priority: 0,
            weight: std::num::NonZeroU32::MIN,
            endpoints: vec![Endpoint::new(address)],
        }],
        ..Endpoints::default()
    };
    cluster.discovery = Discovery::StrictDns(Arc::new(endpoints));
    if port == 443 {
        cluster.tls = UpstreamTls::Simple(originated(None, host, &[]));
        cluster.connection.protocol = UpstreamProtocol::Alpn;
    }
    cluster.telemetry = ClusterTelemetry {
        service: host.to_owned(),
        service_name: "PassthroughCluster".into(),
        service_namespace: String::new(),
    };
    cluster
}

fn discovery(
    name: &str,
    host: &Host,
    port: &HostPort,
    subset: Option<&Subset>,
    scope: &NodeScope,
    policy: &PortPolicy,
) -> Discovery {
    let inline = || Arc::new(endpoints::of_port(name, port, subset, scope, policy));
    match host.resolution {
        Lookup::Known => Discovery::Eds { service_name: None },
        Lookup::Dialled => Discovery::OriginalDestination,
        Lookup::Dns => Discovery::StrictDns(inline()),
        Lookup::DnsRoundRobin => Discovery::LogicalDns(inline()),
    }
}

fn tls(world: &World, host: &Host, port: &HostPort, parts: &names::Parts<'_>, policy: &PortPolicy) -> UpstreamTls {
    let mesh = |sni: Option<String>, names: &[String], all: bool| MeshTls {
        peer_ids: if names.is_empty() { peer_ids(world, host, port, all) } else { exact(names) },
        sni: sni.or_else(|| Some(format!("outbound_.{}_.{}_.{}", parts.port, parts.subset, host.name))),
        ..MeshTls::default()
    };
    match &policy.tls {
        Some(ClientTls::Disable) => UpstreamTls::Disable,
        Some(ClientTls::Simple(names)) => {
            UpstreamTls::Simple(originated(Some(names), &host.name, &host.subject_alt_names))
        }
        Some(ClientTls::Mutual(names, certificate)) => {
            let tls = originated(Some(names), &host.name, &host.subject_alt_names);
            UpstreamTls::Mutual(tls, certificate.clone())
        }
        Some(ClientTls::Istio { sni, subject_alt_names }) => {
            let names = if subject_alt_names.is_empty() { &host.subject_alt_names } else { subject_alt_names };
            UpstreamTls::Mesh(mesh(sni.clone(), names, true))
        }
        None => {
            let inside = !host.external && host.resolution != Lookup::Dialled && world.options.auto_mtls;
            let in_mesh = inside && port.instances.iter().any(|instance| instance.metadata.mesh_tls);
            match port.protocol {
                // On such a port the caller begins TLS, and the caller is us.
                PortProtocol::Https | PortProtocol::Tls if !in_mesh => {
                    UpstreamTls::Simple(originated(None, &host.name, &host.subject_alt_names))
                }
                _ if inside && refuses_plaintext(world, port) => {
                    UpstreamTls::Mesh(mesh(None, &host.subject_alt_names, true))
                }
                _ if inside => UpstreamTls::Auto(mesh(None, &host.subject_alt_names, false)),
                _ => UpstreamTls::Disable,
            }
        }
    }
}

/// Whether every endpoint of the port demands mutual TLS. Then clients need not tell one from the other, which
/// stock gRPC cannot; istiod infers the same.
fn refuses_plaintext(world: &World, port: &HostPort) -> bool {
    // Endpoints of one workload are many and alike.
    let mut seen = HashSet::new();
    !port.instances.is_empty()
        && port.instances.iter().all(|instance| {
            let Address::Socket(address) = &instance.address else { return false };
            let Instance { namespace, labels, .. } = instance;
            let strict = || {
                let mode = inbound::mode(&world.model, &world.options, namespace, labels, address.port());
                mode == InboundTls::Strict
            };
            instance.metadata.mesh_tls && (!seen.insert((namespace, labels, address.port())) || strict())
        })
}

fn originated(names: Option<&TlsNames>, host: &str, entry_names: &[String]) -> OriginatedTls {
    // Under a wildcard only the dialled host can be meant.
    let own = (!host.starts_with('*')).then(|| host.to_owned());
    let said = names.map_or(&[][..], |names| &names.subject_alt_names);
    OriginatedTls {
        sni: names.and_then(|names| names.sni.clone()).or(own),
        auto_host_sni: false,
        subject_alt_names: exact(if said.is_empty() { entry_names } else { said }),
        ca_file: names.and_then(|names| names.ca_file.clone()),
        insecure_skip_verify: names.is_some_and(|names| names.insecure_skip_verify),
    }
}

fn exact(names: &[String]) -> Vec<StringMatcher> {
    names.iter().map(StringMatcher::exact).collect()
}

/// Who may answer, by each name of the trust domain: the service accounts behind the port, of `all` endpoints or of those that
/// accept mesh mTLS. Where an account is not known, any of the endpoint's namespace, or of the host's where that is not known
/// either; never any peer of the mesh, which an empty list would be.
fn peer_ids(world: &World, host: &Host, port: &HostPort, all: bool) -> Vec<StringMatcher> {
    let mut accounts = BTreeSet::new();
    let mut namespaces = BTreeSet::new();
    for instance in port.instances.iter().filter(|instance| all || instance.metadata.mesh_tls) {
        let Instance { namespace, account, .. } = instance;
        let namespace = if namespace.is_empty() { host.namespace.as_str() } else { namespace };
        let fits =
            |account: &&str| SpiffeId::for_service_account(&world.options.trust_domain, namespace, account).is_ok();
        match account.as_deref().filter(fits) {
            Some(account) => _ = accounts.insert((namespace, account)),
            None => _ = namespaces.insert(namespace),
        }
    }
    if accounts.is_empty() && namespaces.is_empty() {
        namespaces.insert(&host.namespace);
    }
    let of = |domain: &String| {
        let exact = accounts
            .iter()
            .map(|(namespace, account)| StringMatcher::exact(format!("spiffe://{domain}/ns/{namespace}/sa/{account}")));
        let whole = namespaces.iter().map(|namespace| StringMatcher {
            pattern: StringMatch::Prefix(format!("spiffe://{domain}/ns/{namespace}/sa/")),
            ignore_case: false,
        });
        exact.chain(whole).collect::<Vec<_>>()
    };
    own_names(&world.model, &world.options).iter().flat_map(of).collect()
}

fn protocol(port: &HostPort, tls: &UpstreamTls, pool: Option<&ConnectionPool>) -> UpstreamProtocol {
    let negotiated = matches!(port.protocol, PortProtocol::Https | PortProtocol::Tls)
        && matches!(tls, UpstreamTls::Simple(_) | UpstreamTls::Mutual(..));
    let upgraded = pool.is_some_and(|pool| pool.http2);
    match (port.protocol.is_http2() || upgraded, negotiated) {
        (true, _) => UpstreamProtocol::Http2,
        (false, true) => UpstreamProtocol::Alpn,
        (false, false) => UpstreamProtocol::Http1,
    }
}

fn connection(options: &mut ConnectionOptions, pool: &ConnectionPool) {
    options.connect_timeout = pool.connect_timeout.unwrap_or(options.connect_timeout);
    match pool.idle_timeout {
        Some(timeout) if timeout.is_zero() => options.idle_timeout = None,
        Some(timeout) => options.idle_timeout = Some(timeout),
        None => {}
    }
    options.max_age = pool.max_age.filter(|age| !age.is_zero());
    options.max_requests_per_connection = pool.max_requests_per_connection;
    options.max_concurrent_streams = pool.max_concurrent_streams;
    options.http2_keepalive = pool.http2_keepalive.clone();
    options.tcp_keepalive = pool.tcp_keepalive.clone();
}

fn breaker(policy: &PortPolicy) -> CircuitBreakers {
    let pool = policy.pool.as_ref();
    CircuitBreakers {
        max_connections: pool.and_then(|pool| pool.max_connections),
        max_pending: pool.and_then(|pool| pool.max_pending),
        max_requests: pool.and_then(|pool| pool.max_requests),
        max_retries: pool.and_then(|pool| pool.max_retries),
        retry_budget: policy.retry_budget.clone(),
        max_connections_per_host: None,
    }
}
