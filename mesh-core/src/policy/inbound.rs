//! The receiving side: transport security of a port, who may call, limits
//! (`envoy.config.listener.v3.Listener` of a server, gRFC A36; Istio PeerAuthentication and
//! AuthorizationPolicy).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use super::composite::judge_alike;
use super::{
    AuthorizerProvider, Domain, HeaderMatcher, HttpFilter, Instances, JwtAuthentication, PathMatch, RouteMatch,
    StringMatcher,
};

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
    /// Limits that come before tokens are verified and policies asked, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<HttpFilter>,
    /// Demands on tokens, all of which must be met.
    pub jwt: Vec<JwtAuthentication>,
    /// Authorization policies: CUSTOM, then DENY, then ALLOW, as Istio orders them.
    pub authorization: Vec<AuthorizationPolicy>,
    /// The other HTTP filters, in order; the application is implied as the last.
    pub filters: Vec<HttpFilter>,
    /// Which requests are served. Where it is not all alike, each route has its own of the four above, and raw connections,
    /// which have no route, are refused.
    #[serde(skip_serializing_if = "InboundRoutes::are_all")]
    pub routes: InboundRoutes,
    /// Limits.
    pub limits: InboundLimits,
    /// How many proxies that are trusted stand before the workload and add to `x-forwarded-for` (Istio
    /// `gatewayTopology.numTrustedProxies`, Envoy `xff_num_trusted_hops`): the original client is what the first of them says,
    /// that many places from the end, or the peer where there are fewer. Default 0: what a header says of it counts against the
    /// caller only.
    #[serde(skip_serializing_if = "is_zero")]
    pub trusted_proxies: u32,
}

// As serde calls it.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl InboundListener {
    /// A listener that lets everybody in whom `tls` lets in.
    pub fn new(name: impl Into<String>, address: SocketAddr, tls: InboundTls) -> Self {
        Self {
            name: name.into(),
            address,
            tls,
            instances: Instances::default(),
            before: Vec::new(),
            jwt: Vec::new(),
            authorization: Vec::new(),
            filters: Vec::new(),
            routes: InboundRoutes::All,
            limits: InboundLimits::default(),
            trusted_proxies: 0,
        }
    }

    /// Whether the composite filters that look at callers are the same.
    pub(crate) fn chooses_alike(&self, other: &Self) -> bool {
        judge_alike(&self.before, &other.before) && judge_alike(&self.filters, &other.filters)
    }

    /// How long the first of its keys hold when nothing is heard of the control plane that fetched them
    /// ([`JwtKeys::Fetched`](super::JwtKeys::Fetched)). None = it fetched none.
    pub fn keys_max_age(&self) -> Option<Duration> {
        let routes = self.routes.iter().filter_map(|route| route.serves.as_deref());
        let jwt = self.jwt.iter().chain(routes.flat_map(|guards| &guards.jwt));
        jwt.filter_map(JwtAuthentication::keys_max_age).min()
    }

    /// This listener after that time: tokens of issuers whose keys were fetched do not hold. Guards that routes share they
    /// share still.
    #[must_use]
    pub fn outdated(&self) -> Self {
        let jwt = |jwt: &[JwtAuthentication]| jwt.iter().map(JwtAuthentication::outdated).collect();
        let mut known: HashMap<*const Guards, Arc<Guards>> = HashMap::new();
        let mut guards = |guards: &Arc<Guards>| {
            let outdated = || Arc::new(Guards { jwt: jwt(&guards.jwt), ..(**guards).clone() });
            known.entry(Arc::as_ptr(guards)).or_insert_with(outdated).clone()
        };
        let routes = match &self.routes {
            InboundRoutes::Listed(hosts) => {
                let mut hosts = hosts.to_vec();
                for route in hosts.iter_mut().flat_map(|host| &mut host.routes) {
                    route.serves = route.serves.as_ref().map(&mut guards);
                }
                InboundRoutes::Listed(hosts.into())
            }
            other => other.clone(),
        };
        Self { jwt: jwt(&self.jwt), routes, ..self.clone() }
    }
}

/// Which requests a server takes (gRFC A36). One that no route serves is answered with 404, and gRPC's UNAVAILABLE.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InboundRoutes {
    /// All, alike.
    #[default]
    All,
    /// Those that the route configuration of this name says; none, until it is there.
    Named(String),
    /// Those whose route serves: the first that matches in the virtual host of their authority.
    Listed(Arc<[InboundHost]>),
}

impl InboundRoutes {
    /// Whether requests need no route.
    pub fn are_all(&self) -> bool {
        matches!(self, Self::All)
    }

    /// Whether each request has a route in both or in neither, and guards that decide alike: limits and the keys of token
    /// issuers do not count, nor do names.
    pub(crate) fn decide_alike(&self, other: &Self) -> bool {
        let (Self::Listed(one), Self::Listed(other)) = (self, other) else { return self == other };
        // Many routes have the same guards.
        let mut compared = HashMap::new();
        let mut guards = |one: &Option<Arc<Guards>>, other: &Option<Arc<Guards>>| match (one, other) {
            (Some(one), Some(other)) => *compared
                .entry((Arc::as_ptr(one), Arc::as_ptr(other)))
                .or_insert_with(|| Arc::ptr_eq(one, other) || one.decide_alike(other)),
            (one, other) => one.is_none() && other.is_none(),
        };
        let mut routes = |one: &InboundRoute, other: &InboundRoute| {
            one.matcher == other.matcher && guards(&one.serves, &other.serves)
        };
        let hosts = |one: &InboundHost, other: &InboundHost| {
            one.domains == other.domains && alike(&one.routes, &other.routes, &mut routes)
        };
        alike(one, other, hosts)
    }

    /// Every route, in the order of the virtual hosts.
    pub fn iter(&self) -> impl Iterator<Item = &InboundRoute> {
        let hosts: &[InboundHost] = match self {
            Self::All | Self::Named(_) => &[],
            Self::Listed(hosts) => hosts,
        };
        hosts.iter().flat_map(|host| &host.routes)
    }
}

fn alike<T>(one: &[T], other: &[T], mut are: impl FnMut(&T, &T) -> bool) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| are(one, other))
}

/// A virtual host of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct InboundHost {
    /// Name, for people.
    pub name: String,
    /// Which authorities it takes.
    pub domains: Vec<Domain>,
    /// Its routes; the first that matches counts.
    pub routes: Vec<InboundRoute>,
}

/// A route of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct InboundRoute {
    /// Name, for people; may be empty.
    pub name: String,
    /// Which requests it takes. Conditions that only a client can know (port, labels and namespace of the source) keep
    /// it from serving.
    pub matcher: RouteMatch,
    /// What guards its requests. None = it serves none: its action is another one than `non_forwarding_action`.
    pub serves: Option<Arc<Guards>>,
}

/// What stands between a request and the application, as in [`InboundListener`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Guards {
    /// Limits that come before all others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<HttpFilter>,
    /// Demands on tokens.
    pub jwt: Vec<JwtAuthentication>,
    /// Authorization policies.
    pub authorization: Vec<AuthorizationPolicy>,
    /// The other HTTP filters.
    pub filters: Vec<HttpFilter>,
}

impl Guards {
    fn decide_alike(&self, other: &Self) -> bool {
        self.authorization == other.authorization
            && JwtAuthentication::demand_alike(&self.jwt, &other.jwt)
            && judge_alike(&self.before, &other.before)
            && judge_alike(&self.filters, &other.filters)
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
    /// What becomes of headers with an underscore in their name.
    #[serde(skip_serializing_if = "Underscores::are_allowed")]
    pub underscores: Underscores,
}

/// What becomes of a request's headers with an underscore in their name, and of its trailers (Envoy
/// `headers_with_underscores_action`). To what reads headers as CGI does, `x_role` is `x-role`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Underscores {
    /// They are passed on.
    #[default]
    Allow,
    /// The request is refused (400); a trailer is taken away.
    Reject,
    /// They are taken away, before anybody decides.
    Drop,
}

impl Underscores {
    // As serde calls it.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn are_allowed(&self) -> bool {
        *self == Self::Allow
    }
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
    /// The TLS server name, which is a host's: case counts for nothing. A regex sees it in small letters.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{JwtKeys, JwtProvider};

    #[test]
    fn without_keys_that_were_fetched_routes_share_the_guards_that_they_shared() {
        let (jwks, max_age) = (String::new(), Duration::from_secs(60));
        let provider = |keys| JwtProvider::new("i", keys);
        let fetched = provider(JwtKeys::Fetched { jwks, max_age });
        let jwt =
            |provider: &JwtProvider| vec![JwtAuthentication::optional("jwt", [("p".to_owned(), provider.clone())])];
        let guards = |provider: &JwtProvider| Arc::new(Guards { jwt: jwt(provider), ..Guards::default() });
        let (one, other) = (guards(&fetched), guards(&provider(JwtKeys::Inline(String::new()))));
        let route = |serves: &Arc<Guards>| InboundRoute {
            name: String::new(),
            matcher: RouteMatch::any(),
            serves: Some(serves.clone()),
        };
        let routes = vec![route(&one), route(&other), route(&one)];
        let host = InboundHost { name: String::new(), domains: Vec::new(), routes };
        let listener = InboundListener {
            routes: InboundRoutes::Listed([host].into()),
            ..InboundListener::new("l", "127.0.0.1:1".parse().unwrap(), InboundTls::Strict)
        };
        assert_eq!(listener.keys_max_age(), Some(max_age));
        let outdated = listener.outdated();
        assert_eq!(outdated.keys_max_age(), None);
        let serves: Vec<_> = outdated.routes.iter().filter_map(|route| route.serves.as_ref()).collect();
        assert!(Arc::ptr_eq(serves[0], serves[2]));
        assert_eq!((&serves[0].jwt, &serves[1].jwt), (&jwt(&provider(JwtKeys::Outdated { max_age })), &other.jwt));
    }
}
