//! JSON Web Tokens that a server demands (`envoy.extensions.filters.http.jwt_authn.v3`, Istio
//! RequestAuthentication).

use std::collections::BTreeMap;
use std::time::Duration;

use http::HeaderName;
use serde::Serialize;

use super::{RouteMatch, StringMatcher, is_reserved_header};
use crate::id::ClusterName;

/// One JWT filter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct JwtAuthentication {
    /// Instance name of the filter.
    pub name: String,
    /// Who issues tokens, by the name that requirements use.
    pub providers: BTreeMap<String, JwtProvider>,
    /// What is demanded of which requests; the first rule that matches decides, and a request that
    /// matches none needs no token. One without a path (CONNECT, `OPTIONS *`) has to meet the demands of all.
    pub rules: Vec<JwtRule>,
    /// CORS preflights need no token. Default false.
    pub bypass_cors_preflight: bool,
}

impl JwtAuthentication {
    /// A filter that demands a token of one of these providers, by name, of every request.
    pub fn required(name: impl Into<String>, providers: impl IntoIterator<Item = (String, JwtProvider)>) -> Self {
        let mut filter = Self::optional(name, providers);
        let provider = |name: &String| JwtRequirement::Provider { name: name.clone(), audiences: Vec::new() };
        let one = JwtRequirement::Any(filter.providers.keys().map(provider).collect());
        // A second token has to hold as well.
        let demand = JwtRequirement::All(vec![JwtRequirement::AllowMissing, one]);
        filter.rules = vec![JwtRule { matcher: RouteMatch::any(), requirement: Some(demand) }];
        filter
    }

    /// A filter that lets requests without a token pass, and of those with tokens the ones whose tokens all hold (Istio
    /// RequestAuthentication). Who must have one is said by authorization policies.
    pub fn optional(name: impl Into<String>, providers: impl IntoIterator<Item = (String, JwtProvider)>) -> Self {
        Self {
            name: name.into(),
            providers: providers.into_iter().collect(),
            rules: vec![JwtRule { matcher: RouteMatch::any(), requirement: Some(JwtRequirement::AllowMissing) }],
            bypass_cors_preflight: false,
        }
    }

    /// How long the first of its keys hold when nothing is heard of the control plane that fetched them. None = it fetched
    /// none.
    pub fn keys_max_age(&self) -> Option<Duration> {
        let limits = self.providers.values().filter_map(|provider| match provider.keys {
            JwtKeys::Fetched { max_age, .. } => Some(max_age),
            _ => None,
        });
        limits.min()
    }

    /// This filter after that time: of keys that were fetched there are none.
    pub(super) fn outdated(&self) -> Self {
        let mut outdated = self.clone();
        for provider in outdated.providers.values_mut() {
            if let JwtKeys::Fetched { max_age, .. } = provider.keys {
                provider.keys = JwtKeys::Outdated { max_age };
            }
        }
        outdated
    }

    /// Whether two lists of filters ask the same of requests, with whichever keys: those change from time to time, and say
    /// nothing of who was let in before.
    pub(crate) fn demand_alike(one: &[Self], other: &[Self]) -> bool {
        one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.demands() == other.demands())
    }

    fn demands(&self) -> impl PartialEq + use<'_> {
        let Self { name, providers, rules, bypass_cors_preflight } = self;
        let providers: Vec<_> = providers.iter().map(|(name, provider)| (name, provider.demands())).collect();
        (name, providers, rules, bypass_cors_preflight)
    }

    /// Whether there are requests that must have a token. Nothing that is not HTTP can have one.
    pub fn demands_token(&self) -> bool {
        self.rules.iter().filter_map(|rule| rule.requirement.as_ref()).any(|demand| !demand.allows_none())
    }
}

impl JwtRequirement {
    fn allows_none(&self) -> bool {
        match self {
            Self::Provider { .. } => false,
            Self::Any(list) => list.iter().any(Self::allows_none),
            Self::All(list) => list.iter().all(Self::allows_none),
            Self::AllowMissing | Self::AllowMissingOrFailed => true,
        }
    }
}

/// What is demanded of some requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct JwtRule {
    /// Which requests. Conditions on the dialled port and on the caller's workload have no meaning here.
    pub matcher: RouteMatch,
    /// What is demanded. None = nothing.
    pub requirement: Option<JwtRequirement>,
}

/// A demand on the tokens of a request. Providers named exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JwtRequirement {
    /// A valid token of this provider.
    Provider {
        /// Name of the provider.
        name: String,
        /// Audiences instead of the provider's; empty = the provider's.
        audiences: Vec<String>,
    },
    /// One holds.
    Any(Vec<JwtRequirement>),
    /// All hold.
    All(Vec<JwtRequirement>),
    /// No token, or a valid one of any provider that is mentioned beside this, else of any.
    AllowMissing,
    /// Any token or none; a valid one is understood.
    AllowMissingOrFailed,
}

/// Who issues tokens, and how they are checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct JwtProvider {
    /// `iss`; empty = any.
    pub issuer: String,
    /// `aud` must be one of these; empty = any.
    pub audiences: Vec<String>,
    /// `sub` must match. None = any.
    pub subjects: Option<StringMatcher>,
    /// Tokens without `exp` are refused. Default false.
    pub require_expiration: bool,
    /// Longest time between `iat` and `exp`. None = unlimited.
    pub max_lifetime: Option<Duration>,
    /// Keys.
    pub keys: JwtKeys,
    /// Leave the token in the request. Default false: it is taken out.
    pub forward: bool,
    /// Headers with tokens. Empty, like the next two: `authorization` after `Bearer `, and the query
    /// parameter `access_token`.
    pub from_headers: Vec<JwtHeader>,
    /// Query parameters with tokens.
    pub from_params: Vec<String>,
    /// Cookies with tokens.
    pub from_cookies: Vec<String>,
    /// Header that tells the application the payload, base64url. None = not told.
    #[serde(serialize_with = "opt_as_text")]
    pub payload_header: Option<HeaderName>,
    /// Pad that base64. Default false.
    pub pad_payload_header: bool,
    /// Headers that tell the application single claims.
    pub claim_headers: Vec<JwtClaimHeader>,
    /// Key under which conditions on metadata find the payload; empty = it is not kept.
    pub payload_in_metadata: String,
    /// Claims that are kept as the list of their words, such as `scope` (RFC 8693, 4.2).
    pub space_delimited: Vec<String>,
    /// Allowance for clocks that differ. Default 60 s.
    pub clock_skew: Duration,
}

impl JwtProvider {
    /// A provider whose tokens are looked for where Envoy does and are taken out of the request; all else is the default.
    pub fn new(issuer: impl Into<String>, keys: JwtKeys) -> Self {
        Self {
            issuer: issuer.into(),
            audiences: Vec::new(),
            subjects: None,
            require_expiration: false,
            max_lifetime: None,
            keys,
            forward: false,
            from_headers: Vec::new(),
            from_params: Vec::new(),
            from_cookies: Vec::new(),
            payload_header: None,
            pad_payload_header: false,
            claim_headers: Vec::new(),
            payload_in_metadata: String::new(),
            space_delimited: Vec::new(),
            clock_skew: Duration::from_secs(60),
        }
    }

    /// All but the keys.
    fn demands(&self) -> impl PartialEq + use<'_> {
        let Self {
            issuer,
            audiences,
            subjects,
            require_expiration,
            max_lifetime,
            keys: _,
            forward,
            from_headers,
            from_params,
            from_cookies,
            payload_header,
            pad_payload_header,
            claim_headers,
            payload_in_metadata,
            space_delimited,
            clock_skew,
        } = self;
        let token = (issuer, audiences, subjects, require_expiration, max_lifetime, clock_skew);
        let places = (forward, from_headers, from_params, from_cookies);
        let told = (payload_header, pad_payload_header, claim_headers, payload_in_metadata, space_delimited);
        (token, places, told)
    }

    /// Whether the application can be told something in this header: none that the mesh keeps ([`is_reserved_header`]).
    pub fn may_tell_in(name: &HeaderName) -> bool {
        !is_reserved_header(name)
    }
}

/// Keys that tokens are signed with.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JwtKeys {
    /// A JWKS document.
    Inline(String),
    /// A JWKS document that the control plane fetched: it holds as long as the control plane is heard of, and so long after.
    Fetched {
        /// The document.
        jwks: String,
        /// How long it holds when nothing is heard of the control plane.
        max_age: Duration,
    },
    /// What [`Fetched`](Self::Fetched) becomes then: no token holds.
    Outdated {
        /// For how long nothing has been heard, at least.
        max_age: Duration,
    },
    /// A JWKS document behind a URL.
    Remote {
        /// The URL.
        uri: String,
        /// Cluster to ask; empty = the URL's host.
        cluster: ClusterName,
        /// Time for an answer.
        timeout: Duration,
        /// How long an answer holds. Default 600 s.
        cache: Duration,
    },
}

/// A header with a token.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct JwtHeader {
    /// Its name.
    #[serde(serialize_with = "as_text")]
    pub name: HeaderName,
    /// What stands before the token, such as `Bearer `; may be empty.
    pub prefix: String,
}

/// A header that tells one claim.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct JwtClaimHeader {
    /// The header.
    #[serde(serialize_with = "as_text")]
    pub name: HeaderName,
    /// The claim; dots lead into objects.
    pub claim: String,
}

fn as_text<S: serde::Serializer>(name: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}

fn opt_as_text<S: serde::Serializer>(name: &Option<HeaderName>, serializer: S) -> Result<S::Ok, S::Error> {
    match name {
        Some(name) => serializer.serialize_some(name.as_str()),
        None => serializer.serialize_none(),
    }
}
