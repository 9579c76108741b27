//! [`View`]: on what of a node's scope a cluster or its endpoints depend. Nodes with the same view are told the same.
//!
//! Refuses to know what they are told.

use mesh_core::id::Locality;

use super::{NodeScope, World, names, routes};
use crate::model::PortPolicy;

/// With fewer endpoints to look for the view takes as long as to make what is asked for.
const LARGE: usize = 64;

/// Comparable within one world, of whose parts it has the addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct View {
    host: usize,
    policy: usize,
    subset: usize,
    profiled: bool,
    /// Where the node is, if that decides, and its values of the labels that do.
    place: Option<(Locality, Vec<Option<String>>)>,
}

impl World {
    /// The view that a node of `scope` has of a large cluster or its endpoints. `None` = it is small, or nothing is known of it.
    pub(crate) fn view(&self, scope: &NodeScope, name: &str) -> Option<View> {
        let parts = names::parse(name).filter(|parts| !parts.passthrough)?;
        let host = self.catalog.get(scope, parts.host)?;
        host.port(parts.port).filter(|port| port.instances.len() >= LARGE)?;
        let rules = self.rules.find(scope, &host.name, &host.namespace);
        let subset = match parts.subset {
            "" => None,
            wanted => Some(rules.subset(wanted)?),
        };
        Some(View {
            host: std::ptr::from_ref(&**host).addr(),
            policy: rules.whole().map_or(0, |policy| std::ptr::from_ref(policy).addr()),
            subset: subset.map_or(0, |subset| std::ptr::from_ref(subset).addr()),
            profiled: routes::profile(self, &scope.namespace, &host.name, &host.namespace).is_some(),
            place: place(scope, &rules.policy(parts.port, subset)),
        })
    }
}

/// What of a node's place decides about the tiers and the shares of localities.
fn place(scope: &NodeScope, policy: &PortPolicy) -> Option<(Locality, Vec<Option<String>>)> {
    let setting = policy.load_balancer.as_ref().map(|lb| &lb.locality);
    let distributes = setting.is_some_and(|setting| !setting.distribute.is_empty());
    let value = |(label, _): &(String, Option<String>)| scope.labels.get(label).cloned();
    let labels = || setting.map_or_else(Vec::new, |setting| setting.failover_priority.iter().map(value).collect());
    (distributes || policy.outlier.is_some()).then(|| (scope.locality.clone(), labels()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;
    use crate::registry::Registration;

    const RULE: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: r, namespace: NAMESPACE }
spec: { host: reviews.default.svc.cluster.local, trafficPolicy: { POLICY } }
";
    const FAILOVER: &str = "outlierDetection: { consecutive5xxErrors: 5 }, \
        loadBalancer: { localityLbSetting: { failoverPriority: [team, topology.kubernetes.io/zone] } }";
    const DISTRIBUTE: &str =
        "loadBalancer: { localityLbSetting: { distribute: [{ from: r/a/*, to: { r/b/*: 100 } }] } }";
    const OUTLIER: &str = "outlierDetection: { consecutive5xxErrors: 5 }";
    const POOL: &str = "connectionPool: { http: { http2MaxRequests: 5 } }";
    const PROFILE: &str = "
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: { name: reviews.default.svc.cluster.local, namespace: one }
spec: { routes: [] }
";

    fn scopes() -> Vec<NodeScope> {
        let mut all = Vec::new();
        for namespace in ["one", "other", "default"] {
            for zone in ["", "a", "b"] {
                for team in ["red", "blue"] {
                    let region = if zone.is_empty() { "" } else { "r" };
                    let locality = Locality { region: region.to_owned(), zone: zone.to_owned(), ..Locality::default() };
                    let labels = [("team".to_owned(), team.to_owned())].into();
                    all.push(NodeScope { labels, locality, ..NodeScope::namespace(namespace) });
                }
            }
        }
        all
    }

    #[test]
    fn who_has_the_same_view_is_told_the_same_and_who_is_told_something_else_has_another() {
        let member = |n: u8| Registration {
            address: ([10, 0, 0, n], 80).into(),
            labels: [("team".to_owned(), if n.is_multiple_of(2) { "red" } else { "blue" }.to_owned())].into(),
            locality: Locality {
                region: "r".to_owned(),
                zone: if n.is_multiple_of(3) { "a" } else { "b" }.to_owned(),
                ..Locality::default()
            },
            service: "reviews".to_owned(),
            ..crate::registry::tests::registration(1)
        };
        let members: Vec<_> = (0..100).map(member).collect();
        let rule = |policy: &str| ["one", "default"].map(|at| RULE.replace("NAMESPACE", at).replace("POLICY", policy));
        let mut shared = 0;
        for (policy, views) in [("", 1), (FAILOVER, 0), (DISTRIBUTE, 0), (OUTLIER, 0), (POOL, 0), (PROFILE, 2)] {
            let texts = if policy == PROFILE { vec![PROFILE.to_owned()] } else { Vec::from(rule(policy)) };
            let texts = match policy {
                "" => Vec::new(),
                // For its own namespace alone.
                POOL => texts[..1].to_vec(),
                _ => texts,
            };
            let world = World::build(&Model::from_texts([("m.yaml", texts.join("---").as_str())]), &members);
            let envoy = NodeScope { dialect: crate::translate::Dialect::Envoy, ..NodeScope::namespace("one") };
            let name = world.proxy_clusters(&envoy).remove(0);
            let scopes = scopes();
            let told = |scope: &NodeScope| (world.cluster(scope, &name), world.endpoints(scope, &name));
            let seen: std::collections::HashSet<_> =
                scopes.iter().map(|scope| world.view(scope, &name).expect("it is large")).collect();
            assert!(views == 0 || seen.len() == views, "{policy}: {seen:?}");
            for (a, b) in scopes.iter().flat_map(|a| scopes.iter().map(move |b| (a, b))) {
                let same = world.view(a, &name) == world.view(b, &name);
                shared += usize::from(same && a != b);
                assert!(!same || told(a) == told(b), "{policy}: {a:?} {b:?}");
            }
        }
        assert!(shared > 0);
    }
}
