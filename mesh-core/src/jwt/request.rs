//! A JWT filter compiled: what it demands of a request, and what it makes of one that has it.
//!
//! ```text
//! first rule that matches ─► demand ─► tokens at the places of its providers ─► each holds, or a refusal
//! ```
//!
//! Stricter than Envoy where a second reader might take another token than the one that was checked: a place with
//! several values, one of them a token, refuses the request.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use serde_json::Value;
use smallvec::SmallVec;

use super::place::{self, Found, Place};
use super::{Claims, KeySet, Refusal, Token, issuer_of, verify};
use crate::matcher::{Conditions, RequestView, remove_header, unescaped};
use crate::policy::{JwtAuthentication, JwtKeys, JwtProvider, JwtRequirement, RouteMatch};

/// A [`JwtAuthentication`] ready to check requests.
#[derive(Debug)]
pub struct Authenticator {
    name: Box<str>,
    providers: Box<[Provider]>,
    leaves: Vec<Leaf>,
    rules: Box<[Rule]>,
    bypass_cors_preflight: bool,
    /// Headers that are this filter's to set: nobody else's word is left in them.
    outputs: Box<[HeaderName]>,
    /// Headers in which tokens stand, but for `authorization`, which is a secret everywhere.
    secrets: Box<[HeaderName]>,
}

#[derive(Debug)]
struct Provider {
    name: Arc<str>,
    key: Arc<str>,
    policy: JwtProvider,
    /// Without keys no token holds.
    keys: Result<KeySet, Box<str>>,
    places: Box<[Place]>,
}

/// A token of one provider, for somebody.
#[derive(Debug, PartialEq, Eq)]
struct Leaf {
    provider: usize,
    /// Instead of the provider's; empty = the provider's.
    audiences: Box<[String]>,
}

#[derive(Debug)]
struct Rule {
    conditions: Conditions,
    demand: Option<Demand>,
}

#[derive(Debug)]
enum Demand {
    Token(usize),
    Any(Box<[Demand]>),
    All(Box<[Demand]>),
    /// Every token that stands at the places of these is one of theirs, if there are any.
    Optional(Box<[usize]>),
    /// The same; what is none of theirs is passed over.
    Ignored(Box<[usize]>),
}

/// A request that may pass: what its tokens say, and what is to change.
#[derive(Debug, Default)]
pub struct Passed {
    tokens: Vec<Token>,
    set: Vec<(HeaderName, HeaderValue)>,
    taken_out: Vec<Place>,
}

impl Authenticator {
    /// Compiles a filter. A provider whose keys cannot be used is one of whose tokens none holds
    /// ([`unusable`](Self::unusable)).
    pub fn new(policy: &JwtAuthentication) -> Self {
        let providers: Box<[Provider]> = policy.providers.iter().map(|(name, of)| Provider::new(name, of)).collect();
        let mut leaves = Vec::new();
        let mut compile = Compile { policy, leaves: &mut leaves };
        let rules = policy.rules.iter().map(|rule| Rule {
            conditions: conditions(&rule.matcher),
            demand: rule.requirement.as_ref().map(|demand| compile.demand(demand, &[])),
        });
        let rules = rules.collect();
        let outputs = policy.providers.values().flat_map(|provider| {
            provider.claim_headers.iter().map(|header| &header.name).chain(&provider.payload_header).cloned()
        });
        let secrets = providers.iter().flat_map(|provider| provider.places.iter()).filter_map(|place| match place {
            Place::Header { name, .. } if *name != header::AUTHORIZATION => Some(name.clone()),
            Place::Header { .. } | Place::Parameter(_) | Place::Cookie(_) => None,
        });
        let secrets = secrets.collect();
        Self {
            name: policy.name.as_str().into(),
            providers,
            secrets,
            leaves,
            rules,
            bypass_cors_preflight: policy.bypass_cors_preflight,
            outputs: outputs.collect(),
        }
    }

    /// The filter's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The headers that tell the application of tokens: nobody else may set them.
    pub fn outputs(&self) -> &[HeaderName] {
        &self.outputs
    }

    /// The providers of whose tokens none holds, and why their keys cannot be used.
    pub fn unusable(&self) -> impl Iterator<Item = (&str, &str)> {
        self.providers.iter().filter_map(|provider| Some((&*provider.name, &**provider.keys.as_ref().err()?)))
    }

    /// The providers some of whose keys no token is ever tried with, and why.
    pub fn beyond_reach(&self) -> impl Iterator<Item = (&str, String)> {
        self.providers
            .iter()
            .filter_map(|provider| Some((&*provider.name, provider.keys.as_ref().ok()?.beyond_reach()?)))
    }

    /// Judges a request whose target is settled. `now` is the time since the Unix epoch.
    ///
    /// # Errors
    /// It has not the tokens that are demanded of it. The words of several demands that fail are those of the one that
    /// came furthest.
    pub fn judge(&self, request: &RequestView<'_>, now: Duration) -> Result<Passed, Refusal> {
        if self.bypass_cors_preflight && is_preflight(request) {
            return Ok(Passed::default());
        }
        // One without a path (CONNECT, `OPTIONS *`) is every rule's: a rule for paths is no way out. Nor is a header that
        // can be read in two ways: such a request is of each rule that may be its first.
        let has_path = request.path_and_query.starts_with('/');
        let mut rules = SmallVec::<[&Rule; 2]>::new();
        for rule in &self.rules {
            let (every, some) = if has_path { rule.conditions.readings(request) } else { (false, true) };
            if some {
                rules.push(rule);
            }
            if every {
                break;
            }
        }
        if rules.iter().all(|rule| rule.demand.is_none()) {
            return Ok(Passed::default());
        }
        let found = (0..self.providers.len()).map(|_| None).collect();
        let mut check = Check { of: self, request, now, found, tried: Vec::new(), held: Vec::new() };
        let mut held = Vec::new();
        for demand in rules.iter().filter_map(|rule| rule.demand.as_ref()) {
            held.extend(check.demand(demand)?);
        }
        Ok(check.passed(held))
    }

    /// Applies what was judged to the request: tokens are taken out where their provider does not forward them, and
    /// the headers that are this filter's to set say what the tokens say, or are gone. Headers that hold a token, or all
    /// that one says, are marked as sensitive: nothing prints them, and HPACK keeps them out of its table.
    ///
    /// # Errors
    /// What is left of the path after a token is no path.
    pub fn apply<B>(&self, passed: Passed, request: &mut Request<B>) -> Result<Vec<Token>, Refusal> {
        if !passed.taken_out.is_empty() {
            let path = request.uri().path_and_query().map_or("", PathAndQuery::as_str);
            if let Some(path) = place::without_parameters(path, &passed.taken_out) {
                let mut parts = request.uri().clone().into_parts();
                parts.path_and_query = Some(path.try_into().map_err(|_| Refusal::Form)?);
                *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Refusal::Form)?;
            }
            place::remove(request.headers_mut(), &passed.taken_out);
        }
        let headers: &mut HeaderMap = request.headers_mut();
        place::hide(headers, &self.secrets);
        for name in &self.outputs {
            remove_header(headers, name);
        }
        for (name, value) in passed.set {
            headers.append(name, value);
        }
        Ok(passed.tokens)
    }
}

impl Provider {
    fn new(name: &str, policy: &JwtProvider) -> Self {
        let keys = match &policy.keys {
            JwtKeys::Inline(text) | JwtKeys::Fetched { jwks: text, .. } => {
                KeySet::parse(text).map_err(|error| error.to_string().into())
            }
            JwtKeys::Outdated { max_age } => Err(format!(
                "its keys were fetched by the control plane, which has not been heard of for {max_age:?}: they are used \
                 again once it is"
            )
            .into()),
            JwtKeys::Remote { uri, .. } => {
                Err(format!("its keys are behind {uri}, and a server fetches none: the control plane has to send them")
                    .into())
            }
        };
        Self {
            name: name.into(),
            key: policy.payload_in_metadata.as_str().into(),
            policy: policy.clone(),
            keys,
            places: Place::of(policy),
        }
    }

    fn verify(&self, audiences: &[String], token: &str, now: Duration) -> Result<Claims, Refusal> {
        match &self.keys {
            Ok(keys) => verify(&self.policy, keys, audiences, token, now),
            Err(_) => match issuer_of(token)? {
                other if !self.policy.issuer.is_empty() && other.as_ref() != Some(&self.policy.issuer) => {
                    Err(Refusal::Issuer)
                }
                _ if matches!(self.policy.keys, JwtKeys::Outdated { .. }) => Err(Refusal::OldKeys),
                _ => Err(Refusal::NoKeys),
            },
        }
    }

    /// The headers that tell the application of a token. What it says is printed as little as the token itself.
    fn tell(&self, token: &str, claims: &Claims, set: &mut Vec<(HeaderName, HeaderValue)>) {
        let mut tell = |name: &HeaderName, text: String| {
            // Bytes that no header may have are no way to put another one in.
            let Ok(mut value) = HeaderValue::try_from(text) else { return };
            value.set_sensitive(true);
            set.push((name.clone(), value));
        };
        if let Some(name) = &self.policy.payload_header {
            let payload = token.split('.').nth(1).unwrap_or_default();
            let padding = if self.policy.pad_payload_header { (4 - payload.len() % 4) % 4 } else { 0 };
            tell(name, format!("{payload}{}", &"==="[..padding]));
        }
        for header in &self.policy.claim_headers {
            if let Some(text) = claims.named(&header.claim).and_then(as_header) {
                tell(&header.name, text);
            }
        }
    }
}

/// A claim as Envoy writes it into a header: what has parts as JSON in base64.
fn as_header(claim: &Value) -> Option<String> {
    match claim {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(claim.to_string()),
        Value::Array(_) | Value::Object(_) => Some(STANDARD.encode(claim.to_string())),
    }
}

/// Requests come with their path in normal form; a rule may come without.
fn conditions(matcher: &RouteMatch) -> Conditions {
    Conditions::new(&RouteMatch { path: unescaped(&matcher.path), ..matcher.clone() })
}

/// As Fetch defines it.
fn is_preflight(request: &RequestView<'_>) -> bool {
    let has = |name| request.headers.get(name).is_some_and(|value: &HeaderValue| !value.is_empty());
    request.method == Method::OPTIONS && has(header::ORIGIN) && has(header::ACCESS_CONTROL_REQUEST_METHOD)
}

struct Compile<'a> {
    policy: &'a JwtAuthentication,
    leaves: &'a mut Vec<Leaf>,
}

impl Compile<'_> {
    fn demand(&mut self, demand: &JwtRequirement, beside: &[usize]) -> Demand {
        match demand {
            JwtRequirement::Provider { name, audiences } => match self.leaf(name, audiences) {
                Some(leaf) => Demand::Token(leaf),
                // Nobody's token: one of none.
                None => Demand::Any(Box::default()),
            },
            JwtRequirement::All(list) => Demand::All(list.iter().map(|inner| self.demand(inner, &[])).collect()),
            JwtRequirement::Any(list) => self.any(list),
            JwtRequirement::AllowMissing => Demand::Optional(self.or_all(beside)),
            JwtRequirement::AllowMissingOrFailed => Demand::Ignored(self.or_all(beside)),
        }
    }

    /// What lets a request without a token pass comes last, and is about the providers beside it. Where there is nothing
    /// else than these, it is all that is asked: Envoy would let a good token pass and overlook a bad one elsewhere.
    fn any(&mut self, list: &[JwtRequirement]) -> Demand {
        let lenient = |demand: &&JwtRequirement| {
            matches!(demand, JwtRequirement::AllowMissing | JwtRequirement::AllowMissingOrFailed)
        };
        let mut beside = Vec::new();
        for demand in list {
            self.mentioned(demand, &mut beside);
        }
        let mut any: Vec<Demand> =
            list.iter().filter(|demand| !lenient(demand)).map(|inner| self.demand(inner, &[])).collect();
        // The most lenient is all that they say together.
        let last = list.iter().filter(lenient).max_by_key(|demand| **demand == JwtRequirement::AllowMissingOrFailed);
        match last.map(|demand| self.demand(demand, &beside)) {
            Some(optional @ Demand::Optional(_)) if any.iter().all(|demand| matches!(demand, Demand::Token(_))) => {
                optional
            }
            last => {
                any.extend(last);
                Demand::Any(any.into())
            }
        }
    }

    fn mentioned(&mut self, demand: &JwtRequirement, leaves: &mut Vec<usize>) {
        match demand {
            JwtRequirement::Provider { name, audiences } => leaves.extend(self.leaf(name, audiences)),
            JwtRequirement::Any(list) | JwtRequirement::All(list) => {
                for inner in list {
                    self.mentioned(inner, leaves);
                }
            }
            JwtRequirement::AllowMissing | JwtRequirement::AllowMissingOrFailed => {}
        }
    }

    fn or_all(&mut self, beside: &[usize]) -> Box<[usize]> {
        if beside.is_empty() {
            let policy = self.policy;
            return policy.providers.keys().filter_map(|name| self.leaf(name, &[])).collect();
        }
        beside.into()
    }

    fn leaf(&mut self, name: &str, audiences: &[String]) -> Option<usize> {
        let provider = self.policy.providers.keys().position(|known| known == name)?;
        let leaf = Leaf { provider, audiences: audiences.into() };
        let known = self.leaves.iter().position(|known| *known == leaf);
        Some(known.unwrap_or_else(|| {
            self.leaves.push(leaf);
            self.leaves.len() - 1
        }))
    }
}

type Tokens<'c, 'r> = Rc<[Found<'c, 'r>]>;

/// One request being judged. Each place is looked at once, and each token checked once for each demand on it.
struct Check<'c, 'r> {
    of: &'c Authenticator,
    request: &'c RequestView<'r>,
    now: Duration,
    /// By provider.
    found: Vec<Option<Result<Tokens<'c, 'r>, Refusal>>>,
    tried: Vec<Tried<'r>>,
    held: Vec<Held>,
}

struct Tried<'r> {
    leaf: usize,
    token: Cow<'r, str>,
    /// Place among those that hold.
    outcome: Result<usize, Refusal>,
}

/// A token that holds.
struct Held {
    provider: usize,
    token: String,
    claims: Claims,
}

impl<'c, 'r> Check<'c, 'r> {
    fn demand(&mut self, demand: &Demand) -> Result<Vec<usize>, Refusal> {
        match demand {
            Demand::Token(leaf) => {
                let found = self.find(self.of.leaves[*leaf].provider)?;
                if found.is_empty() {
                    return Err(Refusal::Missing);
                }
                found.iter().map(|found| self.verify(*leaf, &found.token)).collect()
            }
            Demand::Any(list) => {
                let mut why = Refusal::Missing;
                for inner in list {
                    match self.demand(inner) {
                        Ok(held) => return Ok(held),
                        Err(other) => why = further(why, other),
                    }
                }
                Err(why)
            }
            Demand::All(list) => {
                let mut held = Vec::new();
                for inner in list {
                    held.extend(self.demand(inner)?);
                }
                Ok(held)
            }
            Demand::Optional(of) => match self.each(of) {
                (held, None) => Ok(held),
                (_, Some(why)) => Err(why),
            },
            Demand::Ignored(of) => Ok(self.each(of).0),
        }
    }

    /// The tokens at the places of these that hold, and why one does not.
    fn each(&mut self, of: &[usize]) -> (Vec<usize>, Option<Refusal>) {
        let (mut held, mut failed) = (Vec::new(), None);
        for leaf in of {
            match self.find(self.of.leaves[*leaf].provider) {
                Err(why) => failed = failed.or(Some(why)),
                Ok(found) => {
                    for found in found.iter() {
                        match self.one_of(of, found) {
                            Ok(token) => held.push(token),
                            Err(why) => failed = failed.or(Some(why)),
                        }
                    }
                }
            }
        }
        (held, failed)
    }

    /// A token is one of these providers', and stands where that provider's do.
    fn one_of(&mut self, of: &[usize], found: &Found<'c, 'r>) -> Result<usize, Refusal> {
        let mut why = Refusal::Issuer;
        for leaf in of {
            let theirs = &self.of.providers[self.of.leaves[*leaf].provider].places;
            if theirs.contains(found.place) {
                match self.verify(*leaf, &found.token) {
                    Ok(token) => return Ok(token),
                    Err(other) => why = further(why, other),
                }
            }
        }
        Err(why)
    }

    fn find(&mut self, provider: usize) -> Result<Tokens<'c, 'r>, Refusal> {
        if let Some(found) = &self.found[provider] {
            return found.clone();
        }
        let places = &self.of.providers[provider].places;
        let found = places.iter().filter_map(|place| match place.find(self.request) {
            Ok(token) => token.map(|token| Ok(Found { place, token })),
            Err(why) => Some(Err(why)),
        });
        let found: Result<Tokens<'c, 'r>, Refusal> = found.collect();
        self.found[provider] = Some(found.clone());
        found
    }

    #[expect(clippy::ptr_arg, reason = "its copy is kept, which need not be one of the text")]
    fn verify(&mut self, leaf: usize, token: &Cow<'r, str>) -> Result<usize, Refusal> {
        if let Some(tried) = self.tried.iter().find(|tried| tried.leaf == leaf && tried.token == *token) {
            return tried.outcome;
        }
        let Leaf { provider, audiences } = &self.of.leaves[leaf];
        let outcome = self.of.providers[*provider].verify(audiences, token, self.now).map(|claims| {
            self.held.push(Held { provider: *provider, token: token.as_ref().to_owned(), claims });
            self.held.len() - 1
        });
        self.tried.push(Tried { leaf, token: token.clone(), outcome });
        outcome
    }

    /// What these tokens make of the request.
    fn passed(self, mut of: Vec<usize>) -> Passed {
        let mut passed = Passed::default();
        let mut seen = Vec::new();
        of.retain(|held| {
            let first = !seen.contains(held);
            seen.push(*held);
            first
        });
        let mut held: Vec<Option<Held>> = self.held.into_iter().map(Some).collect();
        for token in of {
            let Some(Held { provider, token, claims }) = held.get_mut(token).and_then(Option::take) else { continue };
            let by = &self.of.providers[provider];
            by.tell(&token, &claims, &mut passed.set);
            if let (false, Some(Ok(found))) = (by.policy.forward, &self.found[provider]) {
                passed.taken_out.extend(found.iter().map(|found| found.place.clone()));
            }
            let token = Token::new(&by.name, &by.key, Arc::new(claims));
            passed.tokens.push(token.split(&by.policy.space_delimited));
        }
        passed
    }
}

/// The words of two demands of which neither is met: those about a token that somebody might have meant.
fn further(one: Refusal, other: Refusal) -> Refusal {
    let rank = |why| match why {
        Refusal::Missing => 0,
        Refusal::Issuer => 1,
        _ => 2,
    };
    if rank(other) > rank(one) { other } else { one }
}
