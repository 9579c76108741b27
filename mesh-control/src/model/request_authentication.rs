//! Istio's RequestAuthentication: whose tokens a workload takes, and where it finds them. A request without a token
//! passes; whether one is needed is an AuthorizationPolicy's to say.

use std::collections::BTreeSet;
use std::time::Duration;

use http::{HeaderName, Uri};
use mesh_core::policy::{JwtClaimHeader, JwtHeader, JwtKeys, JwtProvider, MetadataMatch};
use serde::{Deserialize, Serialize};

use super::check::Check;
use super::destination_rule::SelectorSpec;
use super::key_set::PublicKeys;
use super::kinds::Kind;
use super::reference::RefSpec;
use super::selection::Selection;
use super::values::duration;
use crate::jwks::LONGEST;
use crate::source::Document;
use crate::source::decode::Ignored;

/// A RequestAuthentication.
#[derive(Clone, Debug)]
pub(crate) struct RequestAuthentication {
    pub(crate) selection: Selection,
    pub(crate) rules: Vec<TokenRule>,
}

/// Whose tokens are taken.
#[derive(Clone, Debug)]
pub(crate) struct TokenRule {
    pub(crate) keys: TokenKeys,
    /// Time for fetching the keys, no more than the one who fetches grants.
    pub(crate) timeout: Duration,
    /// Without keys.
    provider: JwtProvider,
}

/// Where the keys of an issuer are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenKeys {
    /// In the manifest, as a JSON Web Key Set.
    Inline(String),
    /// Behind a URL.
    From(KeySource),
    /// Nowhere: none of the issuer's tokens is good.
    Nowhere,
}

/// What keys are fetched by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KeySource {
    /// The URL of a JSON Web Key Set.
    Uri(String),
    /// An issuer whose OpenID configuration tells that URL (OpenID Connect Discovery 1.0, 4).
    Issuer(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RequestAuthenticationSpec {
    selector: Option<SelectorSpec>,
    target_ref: Option<RefSpec>,
    #[serde(default)]
    target_refs: Vec<RefSpec>,
    #[serde(default)]
    jwt_rules: Vec<RuleSpec>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RuleSpec {
    issuer: String,
    audiences: Vec<String>,
    #[serde(alias = "jwks_uri")]
    jwks_uri: String,
    jwks: String,
    from_headers: Vec<HeaderSpec>,
    from_params: Vec<String>,
    from_cookies: Vec<String>,
    output_payload_to_header: String,
    output_claim_to_headers: Vec<ClaimSpec>,
    forward_original_token: bool,
    timeout: Option<String>,
    space_delimited_claims: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HeaderSpec {
    name: String,
    prefix: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ClaimSpec {
    header: String,
    claim: String,
}

/// Time for fetching keys when nothing is said.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Claims that are lists of words whatever a rule says (RFC 8693, 4.2, and as Istio has it).
const SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

impl Kind for RequestAuthentication {
    const GROUP: &'static str = "security.istio.io";
    const KIND: &'static str = "RequestAuthentication";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1"];
    type Spec = RequestAuthenticationSpec;

    fn strict(_ignored: &Ignored) -> Option<&'static str> {
        Some("without it the rule would take other tokens")
    }

    fn validate(spec: RequestAuthenticationSpec, check: &mut Check<'_>) -> Self {
        let selection = Selection::read(spec.selector, spec.target_ref.as_ref(), &spec.target_refs, check);
        if spec.jwt_rules.is_empty() {
            check.warn("spec.jwtRules", "without rules the object has no effect");
        }
        let rules = spec.jwt_rules.iter().enumerate();
        let rules = rules.map(|(i, spec)| rule(spec, check, &format!("spec.jwtRules[{i}]"))).collect();
        Self { selection, rules }
    }

    /// A slip of the pen must not let bad tokens through: until it is corrected every token is bad, for the workloads
    /// selected, or for the whole scope if they cannot be read.
    fn stand_in(read: Option<Self>, _: &Document) -> Option<(Self, &'static str)> {
        let mut stand_in = read.unwrap_or(Self { selection: Selection::default(), rules: Vec::new() });
        stand_in.rules.push(rule_of(&RuleSpec::default()));
        for rule in &mut stand_in.rules {
            rule.keys = TokenKeys::Nowhere;
        }
        Some((stand_in, "until it is corrected every token is refused where this object holds"))
    }
}

impl TokenRule {
    /// The rule as a server is told it, with the keys of the issuer.
    pub(crate) fn provider(&self, keys: JwtKeys) -> JwtProvider {
        JwtProvider { keys, ..self.provider.clone() }
    }

    /// Who issues the tokens; empty = anybody.
    pub(crate) fn issuer(&self) -> &str {
        &self.provider.issuer
    }
}

impl KeySource {
    /// Where is asked first.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Uri(url) => url.clone(),
            Self::Issuer(issuer) => format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/')),
        }
    }
}

fn rule(spec: &RuleSpec, check: &mut Check<'_>, at: &str) -> TokenRule {
    let mut rule = rule_of(spec);
    let found = keys(spec, check, at);
    rule.keys = check.take(at, found).unwrap_or(TokenKeys::Nowhere);
    let lists = [
        ("audiences", &spec.audiences),
        ("fromParams", &spec.from_params),
        ("fromCookies", &spec.from_cookies),
        ("spaceDelimitedClaims", &spec.space_delimited_claims),
    ];
    for (name, list) in lists {
        for (i, _) in list.iter().enumerate().filter(|(_, text)| text.is_empty()) {
            check.error(&format!("{at}.{name}[{i}]"), "an empty text");
        }
    }
    for (i, header) in spec.from_headers.iter().enumerate() {
        let name = check.take(&format!("{at}.fromHeaders[{i}].name"), header_name(&header.name));
        rule.provider.from_headers.extend(name.map(|name| JwtHeader { name, prefix: header.prefix.clone() }));
    }
    if !spec.output_payload_to_header.is_empty() {
        let name = told_name(&spec.output_payload_to_header);
        rule.provider.payload_header = check.take(&format!("{at}.outputPayloadToHeader"), name);
    }
    for (i, tell) in spec.output_claim_to_headers.iter().enumerate() {
        let at = format!("{at}.outputClaimToHeaders[{i}]");
        if tell.claim.is_empty() {
            check.error(&format!("{at}.claim"), "the name of a claim is needed");
        }
        let name = check.take(&format!("{at}.header"), told_name(&tell.header));
        rule.provider.claim_headers.extend(name.map(|name| JwtClaimHeader { name, claim: tell.claim.clone() }));
    }
    if let Some(text) = &spec.timeout {
        let timeout = duration(text).and_then(|time| match time.is_zero() {
            true => Err("it leaves no time to fetch keys".to_owned()),
            false => Ok(time),
        });
        rule.timeout = check.take(&format!("{at}.timeout"), timeout).unwrap_or(TIMEOUT);
        if rule.timeout > LONGEST {
            let why =
                format!("keys are fetched within {LONGEST:?} or not at all, so that one source holds up no others");
            check.warn(&format!("{at}.timeout"), why);
            rule.timeout = LONGEST;
        }
    }
    rule
}

/// What needs no check.
fn rule_of(spec: &RuleSpec) -> TokenRule {
    let words = SPACE_DELIMITED.iter().map(ToString::to_string);
    let space_delimited: BTreeSet<String> = words.chain(spec.space_delimited_claims.iter().cloned()).collect();
    let provider = JwtProvider {
        audiences: spec.audiences.clone(),
        forward: spec.forward_original_token,
        from_params: spec.from_params.clone(),
        from_cookies: spec.from_cookies.clone(),
        payload_in_metadata: MetadataMatch::PAYLOAD.to_owned(),
        space_delimited: space_delimited.into_iter().collect(),
        ..JwtProvider::new(spec.issuer.clone(), JwtKeys::Inline(String::new()))
    };
    TokenRule { keys: TokenKeys::Nowhere, timeout: TIMEOUT, provider }
}

fn keys(spec: &RuleSpec, check: &mut Check<'_>, at: &str) -> Result<TokenKeys, String> {
    match (spec.jwks.as_str(), spec.jwks_uri.as_str(), spec.issuer.as_str()) {
        ("", "", "") => Err("an issuer or a jwksUri is needed".to_owned()),
        ("", "", issuer) => {
            url(issuer).map_err(|why| {
                format!("neither jwks nor jwksUri says what the keys are, and the issuer cannot be asked: {why}")
            })?;
            Ok(TokenKeys::From(KeySource::Issuer(issuer.to_owned())))
        }
        ("", uri, _) => {
            url(uri).map_err(|why| format!("jwksUri: {why}"))?;
            Ok(TokenKeys::From(KeySource::Uri(uri.to_owned())))
        }
        (_, "", "") => Err("keys that are written down need the issuer whose they are".to_owned()),
        (text, "", _) => {
            let keys = PublicKeys::read(text).map_err(|why| format!("jwks: {why}"))?;
            if keys.had_private {
                let message = "it holds private keys, with which anybody who reads the manifest can make tokens; servers \
                               are given the public ones alone";
                check.warn(&format!("{at}.jwks"), message);
            }
            if let Some(beyond_reach) = keys.beyond_reach {
                check.warn(&format!("{at}.jwks"), beyond_reach);
            }
            Ok(TokenKeys::Inline(keys.text))
        }
        (_, _, _) => Err("jwks and jwksUri exclude each other".to_owned()),
    }
}

/// Checks a URL that keys may be fetched by. Whether they may be by this one, in plaintext or from that network, is
/// decided when it is dialled.
fn url(text: &str) -> Result<(), String> {
    let url: Uri = text.parse().map_err(|error| format!("{text:?} is not a URL: {error}"))?;
    if !matches!(url.scheme_str(), Some("https" | "http")) {
        return Err(format!("{text:?} does not begin with https://"));
    }
    match url.authority() {
        Some(authority) if authority.as_str().contains('@') => {
            Err("names and passwords have no place in a URL of keys".to_owned())
        }
        Some(authority) if !authority.host().is_empty() => Ok(()),
        _ => Err(format!("{text:?} names no host")),
    }
}

fn header_name(text: &str) -> Result<HeaderName, String> {
    HeaderName::try_from(text).map_err(|_| format!("{text:?} is not a header name"))
}

/// The name of a header that tells the application something.
fn told_name(text: &str) -> Result<HeaderName, String> {
    header_name(text).and_then(|name| match JwtProvider::may_tell_in(&name) {
        true => Ok(name),
        false => Err(format!(
            "{text:?} frames requests, says where they go or who sent them: what a token says cannot stand there; take \
             another header"
        )),
    })
}
