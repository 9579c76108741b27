//! The meeting point of protocol and policy: what the bytes of a resource decode to.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{
    AuthorityRewrite, Cluster, Discovery, EndpointMetadata, Endpoints, InboundListener, Listener, RouteAction,
    RouteConfiguration, RouteSource, Unenforced, UpstreamTls,
};
use serde::Serialize;

use super::ads::Codec;
use super::client::XdsConfig;
use super::kind::Kind;
use super::message::Body;
use super::name;
use crate::bootstrap::{CertificateProvider, ServerFeatures};
use crate::codec::{self, AnyListener, ProviderPart};

/// The instance that is the process's own identity.
const DEFAULT_PROVIDER: &str = "default";

/// A decoded resource. Its value is behind an `Arc`, so that snapshots share what did not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Value {
    /// A dialled destination.
    Listener(Arc<Listener>),
    /// A listening address, as it came.
    #[serde(rename = "inbound")]
    Listening(Arc<AsSent<InboundListener>>),
    /// A listening address with the routes that came on their own.
    Inbound(Arc<InboundListener>),
    /// Routes.
    Routes(Arc<RouteConfiguration>),
    /// Routes of which one serves: a listening address may be waiting for them.
    #[serde(rename = "routes")]
    Serving(Arc<AsSent<RouteConfiguration>>),
    /// A cluster.
    Cluster(Arc<Cluster>),
    /// A cluster's endpoints.
    Endpoints(Arc<Endpoints>),
}

/// What makes a listening address, and its bytes: what it says where its routes come on their own is known when both are there,
/// and our own encoding is longer than some others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct AsSent<T> {
    /// What it is by itself.
    pub(crate) policy: Arc<T>,
    #[serde(skip)]
    pub(crate) bytes: Bytes,
}

impl<T> AsSent<T> {
    fn of(policy: T, body: &Body) -> Arc<Self> {
        // Bytes of its own: it is not to keep the whole response that it came in.
        Arc::new(Self { policy: Arc::new(policy), bytes: Bytes::copy_from_slice(&body.bytes) })
    }
}

/// A value and what of it this version does not enforce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) value: Value,
    pub(crate) unenforced: Arc<[Unenforced]>,
}

/// The codec of Envoy's v3 resources.
#[derive(Debug, Default)]
pub(crate) struct PolicyCodec {
    /// Certificate provider instances that there are, and whether each has a certificate and roots; none if the
    /// bootstrap says nothing of them.
    providers: Option<BTreeMap<String, (bool, bool)>>,
    /// Facts of endpoints of which there are none.
    nothing: Arc<EndpointMetadata>,
    /// Load-balancing policies of the application's own.
    balancers: Arc<BTreeSet<String>>,
}

impl PolicyCodec {
    /// The codec for a process with this configuration.
    pub(super) fn of(config: &XdsConfig) -> Self {
        let declared = &config.bootstrap.certificate_providers;
        let own = config.default_provider.then(|| (DEFAULT_PROVIDER.to_owned(), (true, true)));
        let instances = declared.iter().map(|(name, CertificateProvider::FileWatcher(files))| {
            // What ours lacks is said where it is read.
            let own = name == DEFAULT_PROVIDER;
            (name.clone(), (own || files.identity.is_some(), own || files.has_roots()))
        });
        let providers = (!declared.is_empty()).then(|| instances.chain(own).collect());
        Self { providers, nothing: Arc::default(), balancers: config.balancers.clone().into() }
    }

    /// A resource that names a provider which does not exist (gRFC A29), or has not what is asked of it, is refused: it
    /// could not be done, and another identity in its place would prove us to be somebody else.
    fn has_all<T>(&self, kind: Kind, name: &str, decoded: codec::Decoded<T>) -> Result<codec::Decoded<T>, String> {
        let refused = |named: &codec::ProviderInstance| {
            let why = self.lacks(named)?;
            Some(format!("{kind} {name} is refused: {}: {why}", named.field))
        };
        match decoded.providers.iter().find_map(refused) {
            None => Ok(decoded),
            Some(refused) => Err(refused),
        }
    }

    /// Why a provider instance cannot be used.
    fn lacks(&self, named: &codec::ProviderInstance) -> Option<String> {
        let instance = named.name.as_str();
        let Some(declared) = &self.providers else {
            return (instance != DEFAULT_PROVIDER).then(|| {
                format!("the bootstrap declares no certificate provider instances (gRFC A29), so none is {instance:?}")
            });
        };
        let lacks = |what| Some(format!("the certificate provider instance {instance:?} has no {what}"));
        match (declared.get(instance), named.part) {
            (Some((false, _)), ProviderPart::Certificate) => lacks("certificate"),
            (Some((_, false)), ProviderPart::Roots) => lacks("roots"),
            (Some(_), _) => None,
            (None, _) => {
                let declared = declared.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                Some(format!(
                    "the bootstrap declares no certificate provider instance {instance:?} (gRFC A29); it declares {declared}"
                ))
            }
        }
    }
}

impl Codec for PolicyCodec {
    type Value = Resource;

    fn name<'a>(&self, _: Kind, body: &'a Body) -> Option<Cow<'a, str>> {
        name::peek(&body.bytes)
    }

    fn is_empty(&self, resource: &Resource) -> bool {
        matches!(&resource.value, Value::Endpoints(endpoints) if endpoints.iter().next().is_none())
    }

    fn decode(&self, kind: Kind, name: &str, body: &Body, from: ServerFeatures) -> Result<Resource, String> {
        match kind {
            Kind::Listener => {
                let decoded = codec::decode_listener(body).map_err(|e| e.to_string())?;
                let mut decoded = self.has_all(kind, name, decoded)?;
                let value = match decoded.value {
                    AnyListener::Outbound(mut listener) => {
                        if let RouteSource::Inline(routes) = &mut listener.routes {
                            let resource = format_args!("{kind} {name}");
                            distrust(from, Arc::make_mut(routes), resource, &mut decoded.unenforced);
                        }
                        Value::Listener(Arc::new(listener))
                    }
                    AnyListener::Inbound(listener) => Value::Listening(AsSent::of(listener, body)),
                };
                Ok(Resource { value, unenforced: shared(decoded.unenforced) })
            }
            Kind::Routes => {
                let mut decoded = codec::decode_routes(body).map_err(|e| e.to_string())?;
                distrust(from, &mut decoded.value, format_args!("routes {name}"), &mut decoded.unenforced);
                let value = match serves(&decoded.value) {
                    true => Value::Serving(AsSent::of(decoded.value, body)),
                    false => Value::Routes(Arc::new(decoded.value)),
                };
                Ok(Resource { value, unenforced: shared(decoded.unenforced) })
            }
            Kind::Cluster => {
                let mut decoded = codec::decode_cluster_for(body.into(), &self.balancers).map_err(|e| e.to_string())?;
                names_its_endpoints(name, &decoded.value)?;
                expects_somebody(&decoded.value, &mut decoded.unenforced);
                knows_ttls(&decoded.value, &mut decoded.unenforced);
                Ok(resource(self.has_all(kind, name, decoded)?, Value::Cluster))
            }
            Kind::Endpoints => {
                let decoded = codec::decode_endpoints_sharing(body.into(), &self.nothing);
                Ok(resource(decoded.map_err(|e| e.to_string())?, Value::Endpoints))
            }
        }
    }
}

/// Only a control plane that the bootstrap trusts may have the authority rewritten to what an endpoint calls
/// itself (gRFC A81); from another one the rewrite is passed over and reported.
fn distrust(
    from: ServerFeatures,
    routes: &mut RouteConfiguration,
    resource: fmt::Arguments<'_>,
    unenforced: &mut Vec<Unenforced>,
) {
    if from.trusted_xds_server {
        return;
    }
    for (h, host) in routes.virtual_hosts.iter_mut().enumerate() {
        for (r, route) in host.routes.iter_mut().enumerate() {
            let RouteAction::Forward(forward) = &mut route.action else { continue };
            if !matches!(forward.rewrite.authority, Some(AuthorityRewrite::Endpoint)) {
                continue;
            }
            forward.rewrite.authority = None;
            unenforced.push(Unenforced::new(
                resource.to_string(),
                format!("virtual_hosts[{h}].routes[{r}].route.auto_host_rewrite"),
                "the authority stays: the bootstrap gives the control plane no trusted_xds_server (gRFC A81)",
            ));
        }
    }
}

/// A cluster that names no peer lets every workload of the mesh be its server. gRFC A29 lets that pass, so it is not
/// refused; but nobody should have to find out by being spoofed.
fn expects_somebody(cluster: &Cluster, unenforced: &mut Vec<Unenforced>) {
    if let UpstreamTls::Mesh(mesh) = &cluster.tls
        && mesh.peer_ids.is_empty()
    {
        unenforced.push(Unenforced::new(
            format!("cluster {}", cluster.name),
            "transport_socket.common_tls_context.validation_context.match_typed_subject_alt_names",
            "none is given, so any workload of the mesh is taken for the server",
        ));
    }
}

/// The operating system's resolver tells no TTL, so what a cluster says of them is obeyed only with another one.
fn knows_ttls(cluster: &Cluster, unenforced: &mut Vec<Unenforced>) {
    let by_name = matches!(cluster.discovery, Discovery::StrictDns(_) | Discovery::LogicalDns(_));
    if !cfg!(feature = "dns") && by_name && cluster.dns.respect_ttl {
        unenforced.push(Unenforced::new(
            format!("cluster {}", cluster.name),
            "respect_dns_ttl",
            "the refresh rate counts: the operating system tells no TTL, and the feature `dns` is off; a resolver of the \
             application's own may know them",
        ));
    }
}

/// The name of a cluster is not the name of its endpoints where names say their type (gRFC A47).
fn names_its_endpoints(name: &str, cluster: &Cluster) -> Result<(), String> {
    match &cluster.discovery {
        Discovery::Eds { service_name: None } if name.starts_with("xdstp:") => Err(format!(
            "cluster {name} is refused: eds_cluster_config.service_name: it must be set where the cluster has an xdstp: name"
        )),
        _ => Ok(()),
    }
}

/// Whether a listening address serves by one of them.
pub(super) fn serves(routes: &RouteConfiguration) -> bool {
    let mut routes = routes.virtual_hosts.iter().flat_map(|host| &host.routes);
    routes.any(|route| matches!(route.action, RouteAction::NonForwarding))
}

/// The resource that a value decodes from.
pub(super) fn encode(value: &Value) -> Any {
    match value {
        Value::Listener(listener) => codec::encode_listener(listener),
        Value::Inbound(listener) => codec::encode_inbound(listener),
        Value::Listening(sent) => Any { type_url: codec::LISTENER.to_owned(), value: sent.bytes.to_vec() },
        Value::Routes(routes) => codec::encode_routes(routes),
        Value::Serving(sent) => Any { type_url: codec::ROUTES.to_owned(), value: sent.bytes.to_vec() },
        Value::Cluster(cluster) => codec::encode_cluster(cluster),
        Value::Endpoints(endpoints) => codec::encode_endpoints(endpoints),
    }
}

fn resource<T>(decoded: codec::Decoded<T>, value: impl FnOnce(Arc<T>) -> Value) -> Resource {
    Resource { value: value(Arc::new(decoded.value)), unenforced: shared(decoded.unenforced) }
}

/// Nothing, as it mostly is, is one for all.
fn shared(unenforced: Vec<Unenforced>) -> Arc<[Unenforced]> {
    if unenforced.is_empty() { Arc::default() } else { unenforced.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Our own encoding may be longer, in another order, or of what a client knows of it.
    #[test]
    fn what_makes_a_listening_address_is_given_back_as_it_came() {
        use mesh_core::policy::{HeaderPolicy, InboundTls, Route, RouteMatch, VirtualHost};
        let listener = InboundListener::new("l", "127.0.0.1:80".parse().unwrap(), InboundTls::Strict);
        let host = |action| VirtualHost {
            name: "h".to_owned(),
            domains: vec![mesh_core::policy::Domain::new("*").unwrap()],
            routes: vec![Route::new(RouteMatch::any(), action)],
            headers: HeaderPolicy::default(),
            retry: None,
        };
        let routes = |action| RouteConfiguration {
            name: "r".to_owned(),
            virtual_hosts: vec![host(action)],
            headers: HeaderPolicy::default(),
            retry_budget: None,
        };
        let answer = RouteAction::DirectResponse(mesh_core::policy::DirectResponse { status: 200, body: Vec::new() });
        for (kind, mut any, is_kept) in [
            (Kind::Listener, codec::encode_inbound(&listener), true),
            (Kind::Routes, codec::encode_routes(&routes(RouteAction::NonForwarding)), true),
            // The control: of a client's routes the policy alone is held.
            (Kind::Routes, codec::encode_routes(&routes(answer)), false),
        ] {
            // A field that nobody knows.
            any.value.extend([0xfa, 0x7f, 0x00]);
            let body = Body::new(&any.type_url, any.value.clone());
            let read = PolicyCodec::default().decode(kind, "", &body, ServerFeatures::default()).unwrap();
            assert_eq!(encode(&read.value) == any, is_kept, "{kind}");
        }
    }

    #[test]
    fn ttls_are_obeyed_where_the_resolver_knows_them_and_reported_elsewhere() {
        let mut cluster = Cluster::new("a".into());
        cluster.dns.respect_ttl = true;
        let mut said = Vec::new();
        knows_ttls(&cluster, &mut said);
        assert_eq!(said, [], "the control: nothing of it is looked up");
        cluster.discovery = Discovery::StrictDns(Default::default());
        knows_ttls(&cluster, &mut said);
        let fields: Vec<_> = said.iter().map(|line| line.field.as_str()).collect();
        assert_eq!(fields, if cfg!(feature = "dns") { &[][..] } else { &["respect_dns_ttl"] });
    }
}
