//! JSON Web Tokens: whether one is a provider's and holds now, and what it says (RFC 7519, RFC 8725; Envoy's
//! `jwt_authn`, Istio's RequestAuthentication).
//!
//! Only signed tokens of three parts are read. What is not understood refuses the token: an algorithm without a
//! public key (`none`, `HS*`), critical extensions, encryption, tokens inside tokens.
//!
//! ```text
//! request ─ places of the providers' tokens ─► tokens ─ verify ─► claims ─ demands of the rule ─► Passed, or Refusal
//! ```
//!
//! Pure: the time is an argument, keys come as a document. Refuses to know where keys come from.

mod claims;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod keys;
mod place;
mod request;
mod tokens;
mod verified;

#[cfg(test)]
mod tests;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

pub use self::claims::Claims;
use self::keys::{Algorithm, Verdict};
pub use self::keys::{InvalidKeySet, KeySet};
pub use self::request::{Authenticator, Passed};
pub use self::tokens::{Token, Tokens};
use crate::policy::JwtProvider;

/// Most bytes of a token.
const MOST_BYTES: usize = 16 << 10;

/// Why a token is refused; the words are those that Envoy's users know from its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is none, and one is demanded.
    #[error("Jwt is missing")]
    Missing,
    /// One place has several: who reads it later might take another than the one that was checked.
    #[error("Jwt is given more than once")]
    Several,
    /// Over 16 KiB.
    #[error("Jwt is too long")]
    TooLong,
    /// Not three parts, not base64url without padding, or not JSON objects.
    #[error("Jwt is not in the form of Header.Payload.Signature")]
    Form,
    /// `alg` is not one of those that are checked.
    #[error("Jwt header [alg] is not supported")]
    Algorithm,
    /// `crit`, `enc`, or a token inside the token.
    #[error("Jwt header asks for what is not supported")]
    Header,
    /// `iss` is not the provider's.
    #[error("Jwt issuer is not configured")]
    Issuer,
    /// `sub` is not one of the provider's.
    #[error("Jwt subject is not allowed")]
    Subject,
    /// `aud` has none that is asked for.
    #[error("Audiences in Jwt are not allowed")]
    Audience,
    /// `exp` has passed.
    #[error("Jwt is expired")]
    Expired,
    /// `nbf` or `iat` is still to come.
    #[error("Jwt not yet valid")]
    NotYet,
    /// `exp` is demanded and missing, too far from `iat`, or a time is no number.
    #[error("Jwt lifetime is not allowed")]
    Lifetime,
    /// The provider has no keys that can be used.
    #[error("Jwks is not available")]
    NoKeys,
    /// The control plane fetched the provider's keys and has not been heard of for longer than they hold without it.
    #[error("Jwks is out of date")]
    OldKeys,
    /// No key of the issuer has the token's `kid`. Newer keys might.
    #[error("Jwks doesn't have key to match kid or alg from Jwt")]
    NoKey,
    /// No key of the issuer made the signature.
    #[error("Jwt verification fails")]
    Signature,
}

/// A member that comes twice is an error: two readers might take different ones.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<serde_json::Value>,
    cty: Option<serde_json::Value>,
    crit: Option<serde_json::Value>,
    enc: Option<serde_json::Value>,
}

/// The issuer that a token names, unchecked: it chooses the provider and means nothing else.
///
/// # Errors
/// It has not the form of a token.
pub fn issuer_of(token: &str) -> Result<Option<String>, Refusal> {
    let [_, payload, _] = parts(token)?;
    Ok(decode_payload(payload)?.issuer().map(str::to_owned))
}

/// Checks a token against a provider and its keys; `now` is the time since the Unix epoch. `audiences` are asked
/// for instead of the provider's unless they are empty.
///
/// # Errors
/// The first thing that is wrong with it. What costs most, the signature, comes last, and once for each token while
/// `keys` remember it (2,048 tokens).
pub fn verify(
    provider: &JwtProvider,
    keys: &KeySet,
    audiences: &[String],
    token: &str,
    now: Duration,
) -> Result<Claims, Refusal> {
    let [head, payload, _] = parts(token)?;
    let header: Header = serde_json::from_slice(&base64url(head)?).map_err(|_| Refusal::Form)?;
    let algorithm = Algorithm::parse(&header.alg).ok_or(Refusal::Algorithm)?;
    if header.crit.is_some() || header.enc.is_some() || header.cty.is_some() {
        return Err(Refusal::Header);
    }
    if header.typ.is_some_and(|typ| !typ.is_string()) {
        return Err(Refusal::Form);
    }
    let claims = decode_payload(payload)?;
    if !provider.issuer.is_empty() && claims.issuer() != Some(&provider.issuer) {
        return Err(Refusal::Issuer);
    }
    if let Some(subjects) = &provider.subjects
        && !claims.subject().is_some_and(|subject| subjects.matches(subject))
    {
        return Err(Refusal::Subject);
    }
    times(provider, &claims, now.as_secs_f64())?;
    let wanted = if audiences.is_empty() { &provider.audiences } else { audiences };
    if !wanted.is_empty() && !claims.audiences().any(|has| wanted.iter().any(|want| want == has)) {
        return Err(Refusal::Audience);
    }
    match keys.verify_token(header.kid.as_deref(), algorithm, token)? {
        Verdict::Good => Ok(claims),
        Verdict::Bad => Err(Refusal::Signature),
        Verdict::NoKey => Err(Refusal::NoKey),
    }
}

fn times(provider: &JwtProvider, claims: &Claims, now: f64) -> Result<(), Refusal> {
    let skew = provider.clock_skew.as_secs_f64();
    let (expires, from, issued) = (claims.time("exp")?, claims.time("nbf")?, claims.time("iat")?);
    if [from, issued].into_iter().flatten().any(|start| start > now + skew) {
        return Err(Refusal::NotYet);
    }
    match expires {
        Some(end) if now > end + skew => return Err(Refusal::Expired),
        None if provider.require_expiration => return Err(Refusal::Lifetime),
        _ => {}
    }
    if let Some(most) = provider.max_lifetime {
        let span = expires.zip(issued.or(from)).map(|(end, start)| end - start);
        if span.is_none_or(|span| span > most.as_secs_f64()) {
            return Err(Refusal::Lifetime);
        }
    }
    Ok(())
}

fn parts(token: &str) -> Result<[&str; 3], Refusal> {
    if token.len() > MOST_BYTES {
        return Err(Refusal::TooLong);
    }
    let mut parts = token.split('.');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(head), Some(payload), Some(signature), None) => Ok([head, payload, signature]),
        _ => Err(Refusal::Form),
    }
}

fn base64url(text: &str) -> Result<Vec<u8>, Refusal> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| Refusal::Form)
}

fn decode_payload(payload: &str) -> Result<Claims, Refusal> {
    Claims::parse(&base64url(payload)?).ok_or(Refusal::Form)
}
