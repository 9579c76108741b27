//! Tokens: what the JWT filters of a listener make of a request before authorization looks at it.
//!
//! ```text
//! request ─ each filter: judge ─► 401, or its changes (tokens taken out, headers set) ─► claims for authorization and
//!                                                                                         for the application
//! ```

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Request};
use rustls::time_provider::TimeProvider;

use mesh_core::error::Code;
use mesh_core::identity::{PeerIdentity, date};
use mesh_core::jwt::{Authenticator, Refusal, Tokens};
use mesh_core::policy::JwtAuthentication;
use mesh_core::telemetry::{DecisionLabels, Decisions};

use super::gate::{Closed, authority, view};
use crate::body::with_trailers;

/// The JWT filters of a listener.
pub(super) struct Filters {
    each: Box<[Filter]>,
    /// What they tell the application in, which the trailers of a request must not add to.
    outputs: Arc<[HeaderName]>,
    /// What a request without a token has.
    none: Arc<Tokens>,
}

struct Filter {
    authenticator: Authenticator,
    allowed: Arc<AtomicU64>,
    denied: Arc<AtomicU64>,
}

/// The answer to a request whose tokens do not hold (RFC 6750, 3).
#[derive(Debug)]
pub(super) struct Challenge {
    pub(super) why: Refusal,
    realm: String,
}

impl Filters {
    pub(super) fn new(policies: &[JwtAuthentication], decisions: &Decisions) -> Self {
        let each = policies.iter().map(|policy| {
            let authenticator = Authenticator::new(policy);
            for (provider, why) in authenticator.unusable() {
                tracing::warn!(filter = policy.name, provider, why, "no token of this provider will hold");
            }
            for (provider, why) in authenticator.beyond_reach() {
                tracing::warn!(filter = policy.name, provider, why, "some tokens of this provider will not hold");
            }
            let counter = |decision| {
                let policy = format!("jwt[{}]", policy.name);
                decisions.counter(DecisionLabels { policy, action: "jwt", decision, dry_run: false })
            };
            Filter { authenticator, allowed: counter("allowed"), denied: counter("denied") }
        });
        let each: Box<[Filter]> = each.collect();
        let outputs = each.iter().flat_map(|filter| filter.authenticator.outputs()).cloned().collect();
        Self { each, outputs, none: Arc::default() }
    }

    /// Judges the tokens of a request and applies what each filter makes of it. `tokens` = those that hold; it is not
    /// touched where nobody looks for any.
    pub(super) fn admit<B: Send + 'static>(
        &self,
        request: &mut Request<B>,
        peer: Option<&PeerIdentity>,
        tokens: &mut Option<Arc<Tokens>>,
        clock: &dyn TimeProvider,
    ) -> Result<(), Closed> {
        if self.each.is_empty() {
            return Ok(());
        }
        let now = Duration::from_secs(date(clock).as_secs());
        let mut held = Tokens::default();
        for Filter { authenticator, allowed, denied } in &self.each {
            let passed = authenticator.judge(&view(request), now);
            match passed.and_then(|passed| authenticator.apply(passed, request)) {
                Ok(tokens) if tokens.is_empty() => {}
                Ok(tokens) => {
                    allowed.fetch_add(1, Ordering::Relaxed);
                    held.extend(tokens);
                }
                Err(why) => {
                    denied.fetch_add(1, Ordering::Relaxed);
                    return Err(refused(authenticator.name(), why, request, peer));
                }
            }
        }
        if !self.outputs.is_empty()
            && let Some(body) = with_trailers(request)
        {
            body.withhold(self.outputs.clone());
        }
        *tokens = Some(match tokens.take() {
            None if held.is_empty() => self.none.clone(),
            None => Arc::new(held),
            // Those that filters before these found.
            Some(before) if held.is_empty() => before,
            Some(before) => {
                let mut all = Arc::unwrap_or_clone(before);
                all.extend(held.iter().cloned());
                Arc::new(all)
            }
        });
        Ok(())
    }
}

#[cold]
fn refused<B>(filter: &str, why: Refusal, request: &Request<B>, peer: Option<&PeerIdentity>) -> Closed {
    tracing::info!(
        target: "mesh::audit",
        decision = "denied",
        code = %Code::TOKEN_REFUSED,
        filter,
        why = %why,
        principal = peer.and_then(|peer| peer.spiffe_id.as_ref()).map(tracing::field::display),
        peer = peer.map(|peer| tracing::field::display(peer.address)),
        method = %request.method(),
        path = request.uri().path(),
        "JWT: access denied"
    );
    let details = format!("jwt_authn_access_denied{{{}}}", why.to_string().replace(' ', "_"));
    let challenge = Challenge { why, realm: realm(request) };
    Closed { code: Code::TOKEN_REFUSED, details: details.into(), challenge: Some(Box::new(challenge)) }
}

/// The address that was asked for, as Envoy names it; without its query, which may hold a token.
fn realm<B>(request: &Request<B>) -> String {
    const MOST: usize = 256;
    let uri = request.uri();
    let mut realm = String::new();
    let scheme = uri.scheme_str().unwrap_or("http");
    let _ = write!(realm, "{scheme}://{}{}", authority(request), uri.path());
    // It stands in quotes.
    realm.retain(|c| c.is_ascii_graphic() && c != '"' && c != '\\');
    realm.truncate(MOST);
    realm
}

impl Challenge {
    /// `WWW-Authenticate`.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let error = if self.why == Refusal::Missing { "" } else { ", error=\"invalid_token\"" };
        HeaderValue::try_from(format!("Bearer realm=\"{}\"{error}", self.realm)).ok()
    }
}
