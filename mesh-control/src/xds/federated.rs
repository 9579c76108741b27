//! Names of the `xdstp` scheme (xRFC TP1, gRFC A47): `xdstp://authority/type/id` is the resource that is called `id`
//! otherwise, under that name, and what it refers to is of the same authority: a client that asks several control planes
//! must get the whole of a destination from one.
//!
//! Every authority is served, for which one is this control plane's is what bootstraps say; on one stream there are a few
//! (see [`Seat`](super::cache::Seat)). Every name is kept and encoded by itself, so that a resource has one spelling for
//! each authority and no context parameters: they would choose nothing, for what a node may see is decided by its
//! identity. Other names do not exist, as collections (`…/*`) do not. Refuses to know what resources say.

use std::borrow::Cow;
use std::sync::Arc;

use mesh_core::id::ClusterName;
use mesh_core::policy::{Discovery, RouteSource};
use mesh_discovery::codec::name::{XdstpName, is_xdstp};

use super::{Kind, Resource};

/// What a name of the scheme stands for; `None` for a plain name.
///
/// # Errors
/// It is malformed, of another type, has parameters or is spelled in another way than this: why.
pub(super) fn read(kind: Kind, name: &str) -> Option<Result<XdstpName, String>> {
    is_xdstp(name).then(|| {
        let parsed = name.parse::<XdstpName>().map_err(|error| error.to_string())?;
        if parsed.kind != type_of(kind) {
            return Err(format!("{name:?} is the name of a {}, and a {} was asked for", parsed.kind, type_of(kind)));
        }
        if !parsed.parameters.is_empty() {
            return Err("context parameters choose nothing here; ask for the name without them".to_owned());
        }
        let canonical = parsed.to_string();
        // A star is what gRPC in Go spells in a way of its own.
        if name != canonical && name != canonical.replace('*', "%2A") {
            return Err(format!("here it is spelled {canonical:?}"));
        }
        Ok(parsed)
    })
}

/// The name by which the world knows a resource. What is no name of anything is its own.
pub(super) fn plain(kind: Kind, name: &str) -> Cow<'_, str> {
    match read(kind, name) {
        Some(Ok(parsed)) => Cow::Owned(parsed.id),
        Some(Err(_)) | None => Cow::Borrowed(name),
    }
}

/// The name of a cluster's endpoints: what [`renamed`] has the cluster refer to.
pub(super) fn endpoints_of(cluster: &str) -> Cow<'_, str> {
    match read(Kind::Cluster, cluster) {
        Some(Ok(parsed)) => {
            let named = XdstpName { kind: type_of(Kind::Endpoints).to_owned(), ..parsed };
            Cow::Owned(named.to_string())
        }
        Some(Err(_)) | None => Cow::Borrowed(cluster),
    }
}

/// `resource` under the name that was asked for, in that very spelling.
pub(super) fn renamed(resource: Resource, asked: &str, parsed: &XdstpName) -> Resource {
    let refer = |kind: Kind, id: &str| {
        XdstpName { kind: type_of(kind).to_owned(), id: id.to_owned(), ..parsed.clone() }.to_string()
    };
    let cluster = |name: &ClusterName| ClusterName::new(refer(Kind::Cluster, name.as_str()));
    match resource {
        Resource::Cluster(mut policy) => {
            match &mut policy.discovery {
                Discovery::Eds { service_name } => {
                    let named = service_name.as_deref().unwrap_or(policy.name.as_str());
                    *service_name = Some(refer(Kind::Endpoints, named));
                }
                Discovery::Aggregate(children) => children.iter_mut().for_each(|child| *child = cluster(child)),
                Discovery::Static(_)
                | Discovery::StrictDns(_)
                | Discovery::LogicalDns(_)
                | Discovery::OriginalDestination => {}
            }
            policy.name = ClusterName::new(asked);
            Resource::Cluster(policy)
        }
        Resource::Endpoints(mut endpoints) => {
            asked.clone_into(&mut endpoints.cluster);
            Resource::Endpoints(endpoints)
        }
        Resource::Listener(mut listener) => {
            asked.clone_into(&mut listener.name);
            match &mut listener.routes {
                RouteSource::Named(name) => *name = refer(Kind::Routes, name),
                RouteSource::Inline(routes) => Arc::make_mut(routes).rename_clusters(&cluster),
            }
            listener.tcp.iter_mut().for_each(|forward| forward.rename_clusters(&cluster));
            Resource::Listener(listener)
        }
        Resource::Routes(mut routes) => {
            asked.clone_into(&mut routes.name);
            routes.rename_clusters(&cluster);
            Resource::Routes(routes)
        }
        Resource::Inbound(mut listener) => {
            asked.clone_into(&mut listener.name);
            Resource::Inbound(listener)
        }
        // Named by nobody: a proxy subscribes to everything.
        Resource::Proxy(listener) => Resource::Proxy(listener),
    }
}

fn type_of(kind: Kind) -> &'static str {
    let url = kind.type_url();
    url.rsplit_once('/').map_or(url, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use mesh_core::policy::{Cluster, ClusterChoice, Listener, RouteAction, RouteConfiguration, TcpForward};

    use super::*;
    use crate::model::Model;
    use crate::translate::{NodeScope, World};
    use crate::xds::{HOSTS, Resources, subject};

    const MANIFESTS: &str = "
apiVersion: v1
kind: Service
metadata: { name: reviews }
spec: { ports: [{ name: http, port: 9080 }] }
---
apiVersion: v1
kind: Service
metadata: { name: other }
spec: { ports: [{ name: http, port: 9080 }] }
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: reviews }
spec:
  hosts: [reviews]
  http:
  - mirror: { host: other }
    route: [{ destination: { host: reviews }, weight: 90 }, { destination: { host: other }, weight: 10 }]
";

    fn get(kind: Kind, name: &str) -> Option<Resource> {
        let world = World::build(&Model::from_texts([("m.yaml", MANIFESTS)]), &[]);
        Resources::resource(&world, &NodeScope::namespace("default"), kind, name)
    }

    fn listener(name: &str) -> Listener {
        match get(Kind::Listener, name) {
            Some(Resource::Listener(listener)) => listener,
            other => panic!("{name}: {other:?}"),
        }
    }

    fn routes(name: &str) -> RouteConfiguration {
        match get(Kind::Routes, name) {
            Some(Resource::Routes(routes)) => routes,
            other => panic!("{name}: {other:?}"),
        }
    }

    fn cluster(name: &str) -> Cluster {
        match get(Kind::Cluster, name) {
            Some(Resource::Cluster(cluster)) => *cluster,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn a47_all_of_a_destination_is_of_the_authority_that_was_asked() {
        let asked = "xdstp://east/envoy.config.listener.v3.Listener/reviews.default:9080";
        let listener = listener(asked);
        assert_eq!(listener.name, asked);
        let RouteSource::Named(name) = &listener.routes else { panic!("{listener:?}") };
        assert!(name.starts_with("xdstp://east/envoy.config.route.v3.RouteConfiguration/"), "{name}");
        let routes = routes(name);
        assert_eq!(&routes.name, name);
        let RouteAction::Forward(forward) = &routes.virtual_hosts[0].routes[0].action else { panic!("{routes:?}") };
        let ClusterChoice::Weighted(split) = &forward.to else { panic!("{forward:?}") };
        let names: Vec<_> =
            split.entries().iter().map(|entry| &entry.name).chain([&forward.mirrors[0].cluster]).collect();
        assert_eq!((split.total(), names.len()), (100, 3));
        for name in names {
            let prefix = "xdstp://east/envoy.config.cluster.v3.Cluster/outbound%7C9080%7C%7C";
            assert!(name.as_str().starts_with(prefix), "{name}");
            let cluster = cluster(name.as_str());
            let Discovery::Eds { service_name: Some(service) } = &cluster.discovery else { panic!("{cluster:?}") };
            assert!(service.starts_with("xdstp://east/envoy.config.endpoint.v3.ClusterLoadAssignment/"), "{service}");
            assert_eq!(*service, endpoints_of(name.as_str()));
            match get(Kind::Endpoints, service) {
                Some(Resource::Endpoints(endpoints)) => assert_eq!(&endpoints.cluster, service),
                other => panic!("{service}: {other:?}"),
            }
            // Whatever it is called, it is touched by what touches the host.
            let host = cluster.telemetry.service;
            assert_eq!(
                (&*subject(Kind::Cluster, name.as_str()), &*subject(Kind::Endpoints, service)),
                (&*host, &*host)
            );
        }
        assert_eq!(subject(Kind::Listener, asked), HOSTS);
    }

    #[test]
    fn a47_the_plain_name_gives_plain_references() {
        let listener = listener("reviews.default:9080");
        assert!(matches!(&listener.routes, RouteSource::Named(name) if !is_xdstp(name)), "{listener:?}");
    }

    #[test]
    fn a47_what_is_not_there_is_said_to_be_missing_with_the_reason() {
        let world = World::build(&Model::from_texts([("m.yaml", MANIFESTS)]), &[]);
        let scope = NodeScope::namespace("default");
        for (name, why) in [
            ("xdstp://east/envoy.config.listener.v3.Listener/nobody:1", "nobody"),
            (
                "xdstp://east/envoy.config.cluster.v3.Cluster/reviews.default:9080",
                "a envoy.config.listener.v3.Listener was",
            ),
            ("xdstp://east/envoy.config.listener.v3.Listener", "an id is needed"),
            ("xdstp://east/envoy.config.listener.v3.Listener/%ff", "percent-encoding"),
            // One entry for a resource, and not as many as there are ways to write its name.
            ("xdstp://east/envoy.config.listener.v3.Listener/reviews.default:9080?a=1", "without them"),
            ("xdstp://east/envoy.config.listener.v3.Listener/reviews.default%3A9080", "reviews.default:9080\""),
            ("xdstp://east/envoy.config.listener.v3.Listener/%72eviews.default:9080", "reviews.default:9080\""),
            ("xdstp://east/envoy.config.listener.v3.Listener/reviews.default:9080#x", "reviews.default:9080\""),
            ("xdstp://e%61st/envoy.config.listener.v3.Listener/reviews.default:9080", "spelled \"xdstp://east/"),
        ] {
            assert_eq!(Resources::resource(&world, &scope, Kind::Listener, name), None);
            let said = Resources::why_missing(&world, &scope, Kind::Listener, name);
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn a47_raw_connections_and_inline_routes_are_renamed_as_well() {
        let mut policy = Listener::new("a:1", RouteSource::Inline(Arc::new(routes_of("b"))));
        policy.tcp = Some(TcpForward::to(ClusterName::new("b")));
        let asked = "xdstp://east/envoy.config.listener.v3.Listener/a:1";
        let Resource::Listener(now) = renamed(Resource::Listener(policy), asked, &asked.parse().unwrap()) else {
            unreachable!("it was a listener")
        };
        let want = ClusterName::new("xdstp://east/envoy.config.cluster.v3.Cluster/b");
        assert_eq!(now.tcp.unwrap().clusters()[0].name, want);
        let RouteSource::Inline(routes) = now.routes else { panic!("they were inline") };
        let RouteAction::Forward(forward) = &routes.virtual_hosts[0].routes[0].action else { panic!("{routes:?}") };
        assert_eq!(forward.to, ClusterChoice::Cluster(want));
    }

    fn routes_of(cluster: &str) -> RouteConfiguration {
        let routes = mesh_core::policy::Snapshot::of_one_cluster("a:1", Cluster::new(cluster.into()), None).routes;
        RouteConfiguration::clone(&routes)
    }
}
