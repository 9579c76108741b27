//! The receiving side: transport security of a port, who may call, limits
//! (`envoy.config.listener.v3.Listener` of a server, gRFC A36; Istio PeerAuthentication and
//! AuthorizationPolicy).

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use super::{HeaderMatcher, PathMatch, StringMatcher};

/// What one listening address is told to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct InboundListener {
    /// Resource name.
    pub name: String,
    /// The address it is for.
    pub address: SocketAddr,
    /// Transport security.
    pub tls: InboundTls,
    /// Authorization policies: CUSTOM, then DENY, then ALLOW, as Istio orders them.
    pub authorization: Vec<AuthorizationPolicy>,
    /// Limits.
    pub limits: InboundLimits,
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
    /// Ask the named external authorizer.
    Custom(String),
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
    /// The address that was reached.
    DestinationIp(IpNet),
    /// The TLS server name.
    ServerName(StringMatcher),
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
}
