//! Join tokens: how a process without a certificate proves who it may become.
//!
//! A token says namespace, service account and end of validity, and is signed with a key that only this
//! state directory holds, so minting needs no server. It works for one key: its use is recorded as a file
//! that only one taker can create, which holds across restarts and between processes, and says which public key it was
//! used for. Whoever asks again with that key, since the answer was lost, is answered again.
//!
//! ```text
//! base64url({"ns":…,"sa":…,"exp":…,"nonce":…}) "." base64url(HMAC-SHA256 of the first part)
//! ```
//!
//! Refuses to know certificates. A token is never logged.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use mesh_core::id::{SpiffeId, TrustDomain};
use serde::{Deserialize, Serialize};

use super::RequestedKey;
use crate::clock::Clock;
use crate::state_dir::{StateDir, StateError, sync_dir, unique, write_first};

/// Longest life of a token.
pub const MAX_TOKEN_TTL: Duration = Duration::from_secs(600);
/// Longest text that is looked at.
const MAX_TOKEN: usize = 2048;
const KEY_FILE: &str = "join-token.key";
const KEY_LEN: usize = 32;
const SPENT: &str = "spent-tokens";

/// Mints join tokens and takes them, for one key each.
pub struct JoinTokens {
    key: hmac::Key,
    spent: PathBuf,
    clock: Clock,
}

/// What a token entitles to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinClaims {
    /// Kubernetes namespace.
    #[serde(rename = "ns")]
    namespace: String,
    /// Service account.
    #[serde(rename = "sa")]
    service_account: String,
    /// End of validity, seconds since the Unix epoch.
    exp: u64,
    /// 128 random bits, hexadecimal.
    nonce: String,
}

/// Whether a token was used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenUse {
    /// No.
    First,
    /// For the same key: the answer is given again.
    Again,
}

/// Why a token is refused. The token itself is never part of the text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenRefused {
    /// Not one of ours, or changed on the way.
    #[error("the join token was not issued by this control plane; mint one with its state directory")]
    NotOurs,
    /// Too late.
    #[error("the join token has expired; mint a new one (they live at most 10 minutes)")]
    Expired,
    /// Used before, for another key.
    #[error("the join token was used before, for another key; mint one for each start of a process")]
    Spent,
    /// Its use could not be recorded, so it is not taken.
    #[error("the join token's use cannot be recorded: {0}")]
    Record(#[source] io::Error),
}

/// Why no token can be minted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MintError {
    /// Namespace or service account would not make a SPIFFE ID.
    #[error("join token for {namespace}/{service_account}: {reason}")]
    Name {
        /// The namespace asked for.
        namespace: String,
        /// The service account asked for.
        service_account: String,
        /// Why not.
        reason: String,
    },
    /// The system has no randomness.
    #[error("join token: the system gives no random numbers")]
    Random,
}

impl JoinTokens {
    /// Opens the state directory; the signing key is made on first use.
    ///
    /// # Errors
    /// The directory cannot be used, or the key can be read by others.
    pub fn open(state_dir: &Path) -> Result<Self, StateError> {
        Self::with_clock(state_dir, Clock::system())
    }

    /// The same with another clock.
    ///
    /// # Errors
    /// See [`JoinTokens::open`].
    pub fn with_clock(state_dir: &Path, clock: Clock) -> Result<Self, StateError> {
        let dir = StateDir::open(state_dir)?;
        let key = match dir.read_secret(KEY_FILE)? {
            Some(key) => key,
            None => {
                let mut fresh = [0; KEY_LEN];
                SystemRandom::new().fill(&mut fresh).map_err(|_| StateError::Content {
                    path: dir.path(KEY_FILE),
                    reason: "the system gives no random numbers".to_owned(),
                })?;
                dir.write_once(KEY_FILE, &fresh)?
            }
        };
        if key.len() != KEY_LEN {
            let reason = format!("it must hold {KEY_LEN} bytes; remove it and a new one is made");
            return Err(StateError::Content { path: dir.path(KEY_FILE), reason });
        }
        let tokens = Self { key: hmac::Key::new(hmac::HMAC_SHA256, &key), spent: dir.directory(SPENT)?, clock };
        tokens.forget_expired();
        Ok(tokens)
    }

    /// Mints a token with which one process may ask for the certificate of `service_account` in
    /// `namespace`. It lives for `ttl`, cut to [`MAX_TOKEN_TTL`].
    ///
    /// # Errors
    /// A name does not fit into a SPIFFE ID, or there is no randomness.
    pub fn mint(&self, namespace: &str, service_account: &str, ttl: Duration) -> Result<String, MintError> {
        let unfit = |reason: String| MintError::Name {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            reason,
        };
        let any_domain = TrustDomain::new("any").expect("a literal trust domain");
        let id =
            SpiffeId::for_service_account(&any_domain, namespace, service_account).map_err(|e| unfit(e.to_string()))?;
        // A slash inside a name would shift the parts of the path.
        if id.kubernetes() != Some((namespace, service_account)) {
            return Err(unfit("a name may not hold a slash".to_owned()));
        }
        let mut nonce = [0_u8; 16];
        SystemRandom::new().fill(&mut nonce).map_err(|_| MintError::Random)?;
        let claims = JoinClaims {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            exp: self.clock.unix_seconds() + ttl.min(MAX_TOKEN_TTL).as_secs(),
            nonce: format!("{:032x}", u128::from_be_bytes(nonce)),
        };
        let claims = serde_json::to_vec(&claims).expect("strings and numbers are always JSON");
        let payload = BASE64URL.encode(claims);
        let tag = hmac::sign(&self.key, payload.as_bytes());
        Ok(format!("{payload}.{}", BASE64URL.encode(tag)))
    }

    /// Checks a token without using it up.
    ///
    /// # Errors
    /// It is not ours, has expired or was used before for another key than `key`.
    pub fn verify(&self, token: &str, key: &RequestedKey) -> Result<JoinClaims, TokenRefused> {
        if token.len() > MAX_TOKEN {
            return Err(TokenRefused::NotOurs);
        }
        let (payload, tag) = token.split_once('.').ok_or(TokenRefused::NotOurs)?;
        let tag = BASE64URL.decode(tag).map_err(|_| TokenRefused::NotOurs)?;
        // Constant time; nothing of the payload is read before it is known to be ours.
        hmac::verify(&self.key, payload.as_bytes(), &tag).map_err(|_| TokenRefused::NotOurs)?;
        let claims = BASE64URL.decode(payload).map_err(|_| TokenRefused::NotOurs)?;
        let claims: JoinClaims = serde_json::from_slice(&claims).map_err(|_| TokenRefused::NotOurs)?;
        if claims.exp <= self.clock.unix_seconds() {
            return Err(TokenRefused::Expired);
        }
        // Decided when it is used up. Looked at here so that one that was found on the way costs its owner nothing.
        let record = self.record(&claims);
        if record.exists() { same_user(&record, &user(key)).map(|()| claims) } else { Ok(claims) }
    }

    fn record(&self, claims: &JoinClaims) -> PathBuf {
        self.spent.join(format!("{}-{}", claims.exp, claims.nonce))
    }

    /// Uses a checked token up for `key`, for which alone it is good from now on.
    ///
    /// # Errors
    /// It has expired since it was checked or was used before for another key, or its use cannot be recorded.
    pub fn consume(&self, claims: &JoinClaims, key: &RequestedKey) -> Result<TokenUse, TokenRefused> {
        self.forget_expired();
        // Time has passed since it was checked.
        if claims.exp <= self.clock.unix_seconds() {
            return Err(TokenRefused::Expired);
        }
        let (record, user) = (self.record(claims), user(key));
        // Named as a record, so that what a crash leaves is removed with them.
        let beside = record.with_extension(unique());
        let used = match write_first(&record, &beside, user.as_bytes()) {
            Ok(()) => TokenUse::First,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                same_user(&record, &user).map(|()| TokenUse::Again)?
            }
            Err(e) => return Err(TokenRefused::Record(e)),
        };
        // On disk before anything is given for the token, lest a crash forgets that it was.
        sync_dir(&self.spent).map_err(TokenRefused::Record)?;
        Ok(used)
    }

    /// Checks a token and uses it up: of several callers with the same token and keys of their own one succeeds.
    ///
    /// # Errors
    /// It is not ours, has expired or was used before for another key, or its use cannot be recorded.
    pub fn verify_and_consume(&self, token: &str, key: &RequestedKey) -> Result<(JoinClaims, TokenUse), TokenRefused> {
        let claims = self.verify(token, key)?;
        let used = self.consume(&claims, key)?;
        Ok((claims, used))
    }

    /// Removes records of tokens that expired longer ago than any lives: expiry alone refuses those, though a clock be set
    /// back by as much.
    fn forget_expired(&self) {
        let now = self.clock.unix_seconds();
        let Ok(records) = fs::read_dir(&self.spent) else { return };
        for record in records.flatten() {
            let name = record.file_name();
            let exp = name.to_str().and_then(|name| name.split_once('-')?.0.parse::<u64>().ok());
            if exp.is_some_and(|exp| exp.saturating_add(MAX_TOKEN_TTL.as_secs()) <= now)
                && let Err(e) = fs::remove_file(record.path())
            {
                tracing::warn!(target: "mesh::ca", error = %e, "a spent token's record cannot be removed");
            }
        }
    }
}

/// What the record of a use says: for which public key.
fn user(key: &RequestedKey) -> String {
    let mut text = "spki-sha256 ".to_owned();
    for byte in key.fingerprint() {
        write!(text, "{byte:02x}").expect("a string takes all");
    }
    text.push('\n');
    text
}

/// Whether a token that was used was used by `user`. Nobody is the user of a record that is empty, as before it said for
/// which key, or damaged.
fn same_user(record: &Path, user: &str) -> Result<(), TokenRefused> {
    let mut said = Vec::with_capacity(user.len() + 1);
    let file = fs::File::open(record).map_err(TokenRefused::Record)?;
    file.take(user.len() as u64 + 1).read_to_end(&mut said).map_err(TokenRefused::Record)?;
    if said == user.as_bytes() { Ok(()) } else { Err(TokenRefused::Spent) }
}

impl JoinClaims {
    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl std::fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinTokens").field("spent", &self.spent).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
