//! The receiving side: transport security of a port, who may call, limits
//! (`envoy.config.listener.v3.Listener` of a server, gRFC A36; Istio PeerAuthentication and
//! AuthorizationPolicy).

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use super::{AuthorizerProvider, HeaderMatcher, HttpFilter, Instances, JwtAuthentication, PathMatch, StringMatcher};

/// What one listening address is told to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct InboundListener {
    /// Resource name.
    pub name: String,
    /// The address it is for.
    pub address: SocketAddr,
    /// Transport security.
    pub tls: InboundTls,
    /// Whose certificate is shown and whose roots are trusted. Default: the process's own.
    #[serde(skip_serializing_if = "Instances::are_own")]
    pub instances: Instances,
    /// Demands on tokens, all of which must be met.
    pub jwt: Vec<JwtAuthentication>,
    /// Authorization policies: CUSTOM, then DENY, then ALLOW, as Istio orders them.
    pub authorization: Vec<AuthorizationPolicy>,
    /// The other HTTP filters, in order; the application is implied as the last.
    pub filters: Vec<HttpFilter>,
    /// Limits.
    pub limits: InboundLimits,
}

impl InboundListener {
    /// A listener that lets everybody in whom `tls` lets in.
    pub fn new(name: impl Into<String>, address: SocketAddr, tls: InboundTls) -> Self {
        Self {
            name: name.into(),
            address,
            tls,
            instances: Instances::default(),
            jwt: Vec::new(),
            authorization: Vec::new(),
            filters: Vec::new(),
            limits: InboundLimits::default(),
        }
    }
}

/// Transport security of a port (Istio PeerAuthentication `mtls.mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InboundTls {
    /// Mutual TLS only.
    Strict,
    /// Mutual TLS and plaintext, told apart by the first byte. Istio's default.
    Permissive,
    /// Plaintext only.
    Disable,
}

/// Limits of one listener. None = the server's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct InboundLimits {
    /// Connections open at once.
    pub max_connections: Option<u32>,
    /// Streams per HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// Age at which a connection is drained.
    pub max_connection_age: Option<Duration>,
}

/// One authorization policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct AuthorizationPolicy {
    /// `namespace/name`, for the decision's reason.
    pub name: String,
    /// What a match means.
    pub action: AuthorizationAction,
    /// Evaluate and report only.
    pub dry_run: bool,
    /// Rules, any of; an empty list matches nothing (and with ALLOW denies everything).
    pub rules: Vec<AuthorizationRule>,
    /// Which decisions go to the audit log (gRFC A59).
    pub audit: AuditCondition,
}

impl AuthorizationPolicy {
    /// A policy without rules, enforced and not audited.
    pub fn new(name: impl Into<String>, action: AuthorizationAction) -> Self {
        Self { name: name.into(), action, dry_run: false, rules: Vec::new(), audit: AuditCondition::None }
    }
}

/// Which decisions go to the audit log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditCondition {
    /// None.
    #[default]
    None,
    /// Denials.
    OnDeny,
    /// Permissions.
    OnAllow,
    /// All.
    Both,
}

/// What a match means.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthorizationAction {
    /// Allow.
    Allow,
    /// Deny.
    Deny,
    /// Record only.
    Audit,
    /// Ask an external authorizer.
    Custom(Box<AuthorizerProvider>),
    /// A request that no rule matches is answered with 404; what a rule matches goes on to the other policies
    /// (Linkerd: the routes of a Server).
    Route,
}

/// One rule: permissions any of, and principals any of (`envoy.config.rbac.v3.Policy`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct AuthorizationRule {
    /// Name, for the decision's reason.
    pub name: String,
    /// What may be done.
    pub permissions: Vec<Permission>,
    /// By whom.
    pub principals: Vec<Principal>,
}

/// What may be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// Anything.
    Any,
    /// All of.
    And(Vec<Permission>),
    /// One of.
    Or(Vec<Permission>),
    /// Anything but.
    Not(Box<Permission>),
    /// A request header.
    Header(HeaderMatcher),
    /// The normalised path.
    Path(PathMatch),
    /// The port that was reached.
    DestinationPort(u16),
    /// The port that was reached is one of these, both ends inclusive.
    DestinationPorts(u16, u16),
    /// The address that was reached.
    DestinationIp(IpNet),
    /// The TLS server name.
    ServerName(StringMatcher),
    /// What an earlier filter, such as JWT, found out.
    Metadata(MetadataMatch),
}

/// A condition on what an earlier filter found out of a request. gRPC has no such filters: there it
/// holds if it is inverted, and never else (gRFC A41).
///
/// Claims of a token are found as Envoy keeps them and Istio asks for them: `filter` is
/// [`JWT_AUTHN`](Self::JWT_AUTHN), the first key is the [`payload_in_metadata`](super::JwtProvider::payload_in_metadata)
/// of the provider that took the token, the keys after it lead into the payload. Manifests have
/// [`PAYLOAD`](Self::PAYLOAD) as that key for every issuer, so that a rule need not know which one it is;
/// a condition on `iss` tells. Istio's request principal `iss/sub` is a condition on each of the two.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct MetadataMatch {
    /// Name of the filter.
    pub filter: String,
    /// Keys that lead to the value.
    pub path: Vec<String>,
    /// What is asked of it.
    pub value: MetadataValue,
    /// Turn the result round.
    pub invert: bool,
}

impl MetadataMatch {
    /// The filter that checks tokens.
    pub const JWT_AUTHN: &'static str = "envoy.filters.http.jwt_authn";
    /// The key under which Istio has the payload of tokens.
    pub const PAYLOAD: &'static str = "payload";
}

/// What is asked of a metadata value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MetadataValue {
    /// It is there, or not.
    Present(bool),
    /// It is this truth value.
    Bool(bool),
    /// Its text.
    Text(StringMatcher),
    /// It is a list of which one text matches.
    AnyText(StringMatcher),
    /// One of these holds of it. A claim may be a text or a list of them.
    OneOf(Vec<MetadataValue>),
}

/// By whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Principal {
    /// Anyone.
    Any,
    /// All of.
    And(Vec<Principal>),
    /// One of.
    Or(Vec<Principal>),
    /// Anyone but.
    Not(Box<Principal>),
    /// A TLS peer whose URI SAN matches; `None` = any authenticated peer.
    Authenticated(Option<StringMatcher>),
    /// The peer's socket address.
    DirectRemoteIp(IpNet),
    /// The original client's address.
    RemoteIp(IpNet),
    /// A request header.
    Header(HeaderMatcher),
    /// The normalised path.
    Path(PathMatch),
    /// What an earlier filter, such as JWT, found out.
    Metadata(MetadataMatch),
}
