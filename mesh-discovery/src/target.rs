//! Destinations that need no control plane: the target says itself where it is ([`Scheme`]), by DNS or as a
//! list of addresses. Refuses to know who resolves names: a cluster that is found by DNS says so in its policy.

use std::num::NonZeroU32;
use std::sync::Arc;

use mesh_core::id::{ClusterName, Locality, Scheme, Target};
use mesh_core::policy::{
    Address, Cluster, DestinationState, Discovery, Endpoint, Endpoints, LocalityEndpoints, OriginatedTls, RetryOn,
    RetryPolicy, Snapshot, UpstreamTls,
};
use mesh_core::source::{DestinationSource, Watched};

/// Gives `dns:///` and `static:` targets by itself and asks another source for the rest; without one, the rest
/// is found by DNS too (gRPC's default scheme).
///
/// Every address is an endpoint; requests go to the one with the fewest in flight of two drawn at random. What
/// certainly reached no endpoint (connection failed, stream refused) is tried at up to two others. Port 443
/// means TLS with the system's roots; other ports are plaintext.
#[derive(Clone)]
pub struct TargetSource {
    mesh: Option<Arc<dyn DestinationSource>>,
}

impl TargetSource {
    /// A source for a process without a control plane.
    pub fn alone() -> Self {
        Self { mesh: None }
    }

    /// A source beside another one, which is asked for targets without a scheme.
    pub fn beside(mesh: Arc<dyn DestinationSource>) -> Self {
        Self { mesh: Some(mesh) }
    }
}

impl DestinationSource for TargetSource {
    fn destination(&self, target: &Target) -> Watched<DestinationState> {
        match &self.mesh {
            Some(mesh) if target.scheme() == Scheme::Mesh => mesh.destination(target),
            _ => Watched::fixed(DestinationState::Ready(Arc::new(snapshot(target)))),
        }
    }
}

impl std::fmt::Debug for TargetSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TargetSource").field("alone", &self.mesh.is_none()).finish_non_exhaustive()
    }
}

fn snapshot(target: &Target) -> Snapshot {
    let mut cluster = Cluster::new(ClusterName::new(target.as_str()));
    cluster.discovery = discovery(target);
    if target.port() == 443 {
        cluster.tls = UpstreamTls::Simple(OriginatedTls {
            sni: None,
            auto_host_sni: false,
            subject_alt_names: Vec::new(),
            ca_file: None,
            insecure_skip_verify: false,
        });
    }
    let on = RetryOn { connect_failure: true, refused_stream: true, ..RetryOn::default() };
    Snapshot::of_one_cluster(target.as_str(), cluster, Some(RetryPolicy::new(2, on)))
}

fn discovery(target: &Target) -> Discovery {
    let endpoints: Vec<Endpoint> = match target.scheme() {
        Scheme::Static => target.addresses().map(|address| Endpoint::new(Address::Socket(address))).collect(),
        // Port 0 stands for SRV records, as the name says that begins with an underscore.
        Scheme::Dns | Scheme::Mesh => {
            vec![Endpoint::new(Address::Name { host: target.dns_name().into(), port: target.port() })]
        }
    };
    let group = LocalityEndpoints { locality: Locality::default(), priority: 0, weight: NonZeroU32::MIN, endpoints };
    let all = Endpoints { cluster: target.to_string(), localities: vec![group], ..Endpoints::default() };
    match target.scheme() {
        Scheme::Static => Discovery::Static(Arc::new(all)),
        Scheme::Dns | Scheme::Mesh => Discovery::StrictDns(Arc::new(all)),
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::policy::ClusterState;
    use mesh_testkit::{FixedSource, policy};

    use super::*;

    /// How a target's endpoints are found.
    fn found(source: &TargetSource, target: &str) -> Option<Discovery> {
        let state = source.destination(&target.parse().unwrap()).load_full();
        let DestinationState::Ready(snapshot) = &*state else { return None };
        let ClusterState::Ready { cluster, .. } = snapshot.clusters.values().next()? else { return None };
        Some(cluster.discovery.clone())
    }

    fn listed(discovery: Option<Discovery>) -> Vec<String> {
        match discovery {
            Some(Discovery::Static(all) | Discovery::StrictDns(all)) => {
                all.iter().map(|e| e.address.to_string()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_target_says_where_it_is() {
        let alone = TargetSource::alone();
        assert_eq!(listed(found(&alone, "static:10.0.0.1:80,[::1]:81")), ["10.0.0.1:80", "[::1]:81"]);
        assert_eq!(listed(found(&alone, "dns:///greeter:50051")), ["greeter:50051"]);
        assert_eq!(listed(found(&alone, "dns:///_grpc._tcp.greeter")), ["_grpc._tcp.greeter:0"]);
        assert_eq!(listed(found(&alone, "greeter:50051")), ["greeter:50051"]);
        // Names that are complete are looked for in no search domain.
        assert_eq!(listed(found(&alone, "dns:///db.test.:5432")), ["db.test.:5432"]);
        assert_eq!(listed(found(&alone, "dns:///_grpc._tcp.db.test.")), ["_grpc._tcp.db.test.:0"]);
        assert_eq!(listed(found(&alone, "db.test.:5432")), ["db.test.:5432"]);
    }

    #[test]
    fn beside_a_mesh_only_targets_with_a_scheme_are_ours() {
        let mesh = FixedSource::of("greeter:50051", policy::snapshot_to(&[]));
        let both = TargetSource::beside(mesh.clone());
        assert_eq!(found(&both, "greeter:50051"), Some(Discovery::Eds { service_name: None }));
        assert_eq!(listed(found(&both, "dns:///greeter:50051")), ["greeter:50051"]);
        assert_eq!(listed(found(&both, "static:127.0.0.1:80")), ["127.0.0.1:80"]);
        assert!(mesh.was_asked("greeter:50051"));
    }
}
