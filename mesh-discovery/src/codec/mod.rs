//! Policy ⇄ xDS v3 protobuf, in both directions; pure.
//!
//! ```text
//! encode_*: policy → resource, for our control plane and for tests
//! decode_*: resource → policy + what of it is not enforced, or every problem with its field path
//! ```
//!
//! Laws, kept as property tests: `decode(encode(p)) == p` for every policy in normal form (below), and
//! no bytes make a decoder panic. What xDS has no field for travels in typed metadata under
//! [`METADATA_KEY`](crate::proto::policy::METADATA_KEY).
//!
//! The validation is gRPC's where gRPC has the feature (gRFC A27, A28, A29, A31, A32, A33, A36, A37, A39,
//! A41, A42, A44, A48, A50, A52, A58, A62, A81, A103, A106) and Envoy's where it has not. A resource is refused as a
//! whole: the caller keeps the last good one.
//!
//! **Normal form** is what decoding produces. Some values have a twin that means the same, and the
//! encoder writes that: a zero timeout is none; an empty rewrite, SNI or host name is none; CORS
//! `max_age` and TCP keep-alive count whole seconds; a back-off is at least 1 ms; an `u32::MAX` limit is
//! none; a fault without delay and abort in a listener is none; an authorization set is never empty.
//!
//! What `encode_*` makes is for gRPC clients and this library; [`envoy`] makes the form that an Envoy takes.
//!
//! Equal policies may encode to different bytes, because protobuf maps have no order. Compare policies.
//!
//! Refuses to know: sockets, subscriptions, versions.

// xDS deprecates fields years before servers stop sending them, and some clients read only the older.
#![allow(deprecated)]

mod admission;
mod audit;
mod authorization;
mod authorizer;
mod balancer;
mod closed;
mod cluster;
mod common;
mod composite;
mod concurrency;
mod connection;
mod cors;
mod custom_balancer;
mod endpoint;
pub mod envoy;
mod extension;
mod fault;
mod filter;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod header;
mod health_check;
mod inbound;
mod inbound_route;
mod jwt;
mod listener;
mod locality;
mod matcher;
mod matcher_tree;
mod outlier;
pub(crate) mod parts;
mod plain;
mod rate_limit;
mod report;
mod retry;
mod route;
mod route_action;
mod route_extra;
mod session;
mod subset;
mod tcp;
mod tls;
mod typed_struct;
mod weighting;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{
    Cluster, EndpointMetadata, Endpoints, InboundListener, InvalidPolicy, Listener, RouteConfiguration, Unenforced,
    unenforced,
};
use prost::Message;

use self::report::{At, Report};

pub use crate::bootstrap::name;

/// Type URL of `envoy.config.listener.v3.Listener`.
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Type URL of `envoy.config.route.v3.RouteConfiguration`.
pub const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// Type URL of `envoy.config.cluster.v3.Cluster`.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Type URL of `envoy.config.endpoint.v3.ClusterLoadAssignment`.
pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// Type URL of the wrapper that delta xDS and TTLs use.
pub(crate) const RESOURCE: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// Bytes of the name of a resource: it is repeated with whatever is said of it.
const MAX_NAME: usize = 16 << 10;

/// Unenforced fields listed of one resource.
const MAX_UNENFORCED: usize = 1024;

/// A resource as it came: its type and its bytes. A packed `Any` is one.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    /// Its type URL.
    pub type_url: &'a str,
    /// The message.
    pub bytes: &'a [u8],
}

impl<'a> From<&'a Any> for Packed<'a> {
    fn from(any: &'a Any) -> Self {
        Self { type_url: &any.type_url, bytes: &any.value }
    }
}

/// A decoded resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded<T> {
    /// The policy.
    pub value: T,
    /// What was accepted and is not enforced: fields that have no place in the policy, then what
    /// [`unenforced`] says of the policy; at most 1024, of which the last may stand for all that are not listed.
    pub unenforced: Vec<Unenforced>,
    /// Certificate provider instances that it names; whether they exist is the bootstrap's to say (gRFC A29).
    pub providers: Vec<ProviderInstance>,
}

/// A certificate provider instance and the field that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderInstance {
    /// Path of the field.
    pub field: String,
    /// Name of the instance.
    pub name: String,
    /// What it has to give.
    pub part: ProviderPart,
}

/// What a resource wants of a certificate provider instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProviderPart {
    /// A certificate to show.
    Certificate,
    /// Roots to trust.
    Roots,
}

/// A listener of either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnyListener {
    /// With an `api_listener`: a destination of the client side.
    Outbound(Listener),
    /// With filter chains: an address of the server side.
    Inbound(InboundListener),
}

/// A refused resource: which, and everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct DecodeError {
    /// Kind and name, such as `cluster outbound|9080||reviews.default.svc.cluster.local`.
    pub resource: String,
    /// Every problem found, with its field path; at most 64 and a note on the rest.
    pub problems: Vec<InvalidPolicy>,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is refused", self.resource)?;
        if self.problems.is_empty() { Ok(()) } else { write!(f, ": {}", self.problems()) }
    }
}

impl DecodeError {
    /// What is wrong, without what of.
    pub(crate) fn problems(&self) -> String {
        let text = |problem: &InvalidPolicy| match problem.field.is_empty() {
            true => problem.reason.clone(),
            false => problem.to_string(),
        };
        self.problems.iter().map(text).collect::<Vec<_>>().join("; ")
    }
}

/// Encodes a client side listener.
pub fn encode_listener(listener: &Listener) -> Any {
    extension::pack(LISTENER, &self::listener::encode(listener))
}

/// Encodes a server side listener.
pub fn encode_inbound(listener: &InboundListener) -> Any {
    extension::pack(LISTENER, &inbound::encode(listener))
}

/// Encodes a route configuration.
pub fn encode_routes(routes: &RouteConfiguration) -> Any {
    extension::pack(ROUTES, &route::encode(routes))
}

/// Encodes a cluster.
pub fn encode_cluster(cluster: &Cluster) -> Any {
    extension::pack(CLUSTER, &self::cluster::encode(cluster))
}

/// Encodes a load assignment.
pub fn encode_endpoints(endpoints: &Endpoints) -> Any {
    extension::pack(ENDPOINTS, &endpoint::encode(endpoints))
}

/// Decodes a listener of either side.
///
/// # Errors
/// The bytes are not a Listener, or rows L1-L5, S3, S9 or V2 of gRPC's rules refuse it: the error holds
/// every problem.
pub fn decode_listener<'a>(resource: impl Into<Packed<'a>>) -> Result<Decoded<AnyListener>, DecodeError> {
    decode(
        LISTENER,
        "listener",
        resource.into(),
        |l: &listener::Proto| &l.name,
        |proto, at, report| {
            if proto.api_listener.is_some() {
                listener::decode(proto, at, report).map(AnyListener::Outbound)
            } else {
                inbound::decode(proto, None, at, report).map(AnyListener::Inbound)
            }
        },
        |listener| match listener {
            AnyListener::Outbound(listener) => unenforced(listener),
            AnyListener::Inbound(listener) => unenforced(listener),
        },
    )
}

/// Decodes a server's listener together with the routes that it names ([`InboundRoutes::Named`]): as if it had them in
/// itself (gRFC A36). Both have been decoded alone before.
///
/// # Errors
/// What the routes change does not fit the listener; their fields are below its `rds`.
///
/// [`InboundRoutes::Named`]: mesh_core::policy::InboundRoutes::Named
pub(crate) fn join(listener: &[u8], routes: &[u8]) -> Result<Decoded<InboundListener>, DecodeError> {
    decode(
        LISTENER,
        "listener",
        Packed { type_url: LISTENER, bytes: listener },
        |l: &listener::Proto| &l.name,
        |proto, at, report| match route::Proto::decode(routes) {
            Ok(routes) => inbound::decode(proto, Some(&routes), at, report),
            Err(e) => {
                report.problem(at, format!("its routes are no protobuf message of their type: {e}"));
                None
            }
        },
        unenforced,
    )
}

/// Decodes a route configuration.
///
/// # Errors
/// The bytes are not a RouteConfiguration or a field of it cannot be obeyed: the error holds every
/// problem.
pub fn decode_routes<'a>(resource: impl Into<Packed<'a>>) -> Result<Decoded<RouteConfiguration>, DecodeError> {
    decode(ROUTES, "routes", resource.into(), |r: &route::Proto| &r.name, route::decode, unenforced)
}

/// Decodes a cluster.
///
/// # Errors
/// The bytes are not a Cluster or a field of it cannot be obeyed: the error holds every problem.
pub fn decode_cluster<'a>(resource: impl Into<Packed<'a>>) -> Result<Decoded<Cluster>, DecodeError> {
    decode_cluster_for(resource.into(), &Arc::default())
}

/// The same for an application that has load-balancing policies of these names.
pub(crate) fn decode_cluster_for(
    resource: Packed<'_>,
    balancers: &Arc<BTreeSet<String>>,
) -> Result<Decoded<Cluster>, DecodeError> {
    let fields = |proto: &cluster::Proto, at: &At<'_>, report: &mut Report| {
        report.with_balancers(balancers);
        cluster::decode(proto, at, report)
    };
    decode(CLUSTER, "cluster", resource, |c: &cluster::Proto| &c.name, fields, unenforced)
}

/// Decodes a load assignment.
///
/// # Errors
/// The bytes are not a ClusterLoadAssignment or a field of it cannot be obeyed: the error holds every
/// problem.
pub fn decode_endpoints<'a>(resource: impl Into<Packed<'a>>) -> Result<Decoded<Endpoints>, DecodeError> {
    decode_endpoints_sharing(resource.into(), &Arc::default())
}

/// The same; `nothing` are the empty facts, which many thousand assignments may share.
pub(crate) fn decode_endpoints_sharing(
    resource: Packed<'_>,
    nothing: &Arc<EndpointMetadata>,
) -> Result<Decoded<Endpoints>, DecodeError> {
    if resource.type_url == ENDPOINTS
        && parts::check(resource.bytes).is_ok()
        && let Some(value) = plain::read(resource.bytes, nothing)
    {
        return Ok(Decoded { value, unenforced: Vec::new(), providers: Vec::new() });
    }
    decode_all_endpoints(resource)
}

/// The same by the decoder that knows everything.
fn decode_all_endpoints(resource: Packed<'_>) -> Result<Decoded<Endpoints>, DecodeError> {
    decode(ENDPOINTS, "endpoints", resource, |e: &endpoint::Proto| &e.cluster_name, endpoint::decode, unenforced)
}

/// The name a resource of one of the four types calls itself; `None` for other types, broken bytes and
/// empty names. Reads nothing but the name.
pub fn resource_name<'a>(type_url: &str, resource: impl Into<Packed<'a>>) -> Option<String> {
    // `name`, or `cluster_name`, is field 1 of all four types.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    let resource = resource.into();
    if ![LISTENER, ROUTES, CLUSTER, ENDPOINTS].contains(&type_url) || resource.type_url != type_url {
        return None;
    }
    let name = Named::decode(resource.bytes).ok()?.name;
    (!name.is_empty()).then_some(name)
}

/// The way every resource goes: type, bytes, fields.
fn decode<P: Message + Default, T>(
    type_url: &str,
    kind: &'static str,
    resource: Packed<'_>,
    name: impl Fn(&P) -> &String,
    fields: impl FnOnce(&P, &At<'_>, &mut Report) -> Option<T>,
    not_enforced: impl FnOnce(&T) -> Vec<Unenforced>,
) -> Result<Decoded<T>, DecodeError> {
    let refuse = |reason: String| {
        let resource = resource_name(resource.type_url, resource).unwrap_or_default();
        Err(DecodeError {
            resource: format!("{kind} {}", report::named(&resource)),
            problems: vec![InvalidPolicy::new("", reason)],
        })
    };
    if resource.type_url != type_url {
        return refuse(format!("the type is {:?}, {type_url:?} was expected", resource.type_url));
    }
    if let Err(reason) = parts::check(resource.bytes) {
        return refuse(reason);
    }
    let proto = match P::decode(resource.bytes) {
        Ok(proto) => proto,
        Err(e) => return refuse(format!("not a protobuf message of its type: {e}")),
    };
    let mut report = Report::new(kind, name(&proto));
    common::check_name(name(&proto), &At::ROOT, &mut report);
    let value = fields(&proto, &At::ROOT, &mut report);
    let mut decoded = report.finish(value)?;
    let all = &mut decoded.unenforced;
    all.extend(not_enforced(&decoded.value));
    if all.len() > MAX_UNENFORCED {
        let unlisted = all.drain(MAX_UNENFORCED - 1..).map(|line| line.fields).sum();
        let resource = all[0].resource.clone();
        all.push(Unenforced::more(resource, unlisted));
    }
    Ok(decoded)
}
