//! Join tokens: how a process without a certificate proves who it may become.
//!
//! A token says namespace, service account and end of validity, and is signed with a key that only this
//! state directory holds, so minting needs no server. It works once: its use is recorded as a file that
//! only one taker can create, which holds across restarts and between processes.
//!
//! ```text
//! base64url({"ns":…,"sa":…,"exp":…,"nonce":…}) "." base64url(HMAC-SHA256 of the first part)
//! ```
//!
//! Refuses to know certificates. A token is never logged.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use mesh_core::id::{SpiffeId, TrustDomain};
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::state_dir::{StateDir, StateError, private_file, sync_dir};

/// Longest life of a token.
pub const MAX_TOKEN_TTL: Duration = Duration::from_secs(600);
/// Longest text that is looked at.
const MAX_TOKEN: usize = 2048;
const KEY_FILE: &str = "join-token.key";
const KEY_LEN: usize = 32;
const SPENT: &str = "spent-tokens";

/// Mints join tokens and takes them, once each.
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
    /// Used before.
    #[error("the join token was used before; mint one for each process")]
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
    /// It is not ours or has expired.
    pub fn verify(&self, token: &str) -> Result<JoinClaims, TokenRefused> {
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
        if self.record(&claims).exists() { Err(TokenRefused::Spent) } else { Ok(claims) }
    }

    fn record(&self, claims: &JoinClaims) -> PathBuf {
        self.spent.join(format!("{}-{}", claims.exp, claims.nonce))
    }

    /// Uses a checked token up.
    ///
    /// # Errors
    /// It has expired since it was checked or was used before, or its use cannot be recorded.
    pub fn consume(&self, claims: &JoinClaims) -> Result<(), TokenRefused> {
        self.forget_expired();
        // Time has passed since it was checked.
        if claims.exp <= self.clock.unix_seconds() {
            return Err(TokenRefused::Expired);
        }
        match private_file().create_new(true).write(true).open(self.record(claims)) {
            // On disk before anything is given for the token, lest a crash forgets that it was.
            Ok(_) => sync_dir(&self.spent).map_err(TokenRefused::Record),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(TokenRefused::Spent),
            Err(e) => Err(TokenRefused::Record(e)),
        }
    }

    /// Checks a token and uses it up: of several callers with the same token one succeeds.
    ///
    /// # Errors
    /// It is not ours, has expired or was used before, or its use cannot be recorded.
    pub fn verify_and_consume(&self, token: &str) -> Result<JoinClaims, TokenRefused> {
        let claims = self.verify(token)?;
        self.consume(&claims)?;
        Ok(claims)
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
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::UNIX_EPOCH;

    use super::*;

    fn at(seconds: u64) -> (Arc<AtomicU64>, Clock) {
        let now = Arc::new(AtomicU64::new(seconds));
        let read = now.clone();
        (now, Clock::new(move || UNIX_EPOCH + Duration::from_secs(read.load(Ordering::SeqCst))))
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn s93_a_token_works_once_even_across_a_restart() {
        let home = tempfile::tempdir().unwrap();
        let (_, clock) = at(1_000);
        let tokens = JoinTokens::with_clock(home.path(), clock.clone()).unwrap();
        let token = tokens.mint("default", "reviews", MINUTE).unwrap();
        let claims = tokens.verify_and_consume(&token).unwrap();
        assert_eq!((claims.namespace(), claims.service_account()), ("default", "reviews"));
        assert!(matches!(tokens.verify_and_consume(&token), Err(TokenRefused::Spent)));
        let restarted = JoinTokens::with_clock(home.path(), clock).unwrap();
        assert!(matches!(restarted.verify_and_consume(&token), Err(TokenRefused::Spent)));
    }

    #[test]
    fn s93_of_many_takers_at_once_one_succeeds() {
        let home = tempfile::tempdir().unwrap();
        let tokens = JoinTokens::with_clock(home.path(), at(1_000).1).unwrap();
        let token = tokens.mint("default", "reviews", MINUTE).unwrap();
        let taken: usize = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..8).map(|_| scope.spawn(|| tokens.verify_and_consume(&token).is_ok())).collect();
            takers.into_iter().map(|taker| usize::from(taker.join().unwrap())).sum()
        });
        assert_eq!(taken, 1);
    }

    #[test]
    fn s87_expired_forged_and_foreign_tokens_are_refused() {
        let (home, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (now, clock) = at(1_000);
        let tokens = JoinTokens::with_clock(home.path(), clock.clone()).unwrap();
        let token = tokens.mint("default", "reviews", MINUTE).unwrap();

        let foreign = JoinTokens::with_clock(elsewhere.path(), clock).unwrap();
        assert!(matches!(foreign.verify(&token), Err(TokenRefused::NotOurs)));

        let (payload, tag) = token.split_once('.').unwrap();
        let claims = String::from_utf8(BASE64URL.decode(payload).unwrap()).unwrap();
        let forged = BASE64URL.encode(claims.replace("reviews", "admin"));
        for bad in [format!("{forged}.{tag}"), format!("{payload}."), payload.to_owned(), String::new(), "a.b.c".into()]
        {
            assert!(matches!(tokens.verify(&bad), Err(TokenRefused::NotOurs)), "{bad}");
        }

        assert!(tokens.verify(&token).is_ok());
        now.store(1_060, Ordering::SeqCst);
        assert!(matches!(tokens.verify(&token), Err(TokenRefused::Expired)));
    }

    #[test]
    fn s93_a_token_is_not_taken_at_its_last_second_by_somebody_who_checked_it_before() {
        let home = tempfile::tempdir().unwrap();
        let (now, clock) = at(1_000);
        let tokens = JoinTokens::with_clock(home.path(), clock).unwrap();
        let token = tokens.mint("default", "reviews", MINUTE).unwrap();
        let (first, second) = (tokens.verify(&token).unwrap(), tokens.verify(&token).unwrap());
        tokens.consume(&first).unwrap();
        now.store(1_060, Ordering::SeqCst);
        assert!(matches!(tokens.consume(&second), Err(TokenRefused::Expired)));
        // Nor if the clock is set back afterwards, which makes the token good again.
        tokens.forget_expired();
        now.store(1_059, Ordering::SeqCst);
        assert!(matches!(tokens.verify(&token), Err(TokenRefused::Spent)));
        assert!(matches!(tokens.consume(&second), Err(TokenRefused::Spent)));
    }

    #[test]
    fn life_is_cut_to_ten_minutes_and_records_are_dropped_after_it() {
        let home = tempfile::tempdir().unwrap();
        let (now, clock) = at(1_000);
        let tokens = JoinTokens::with_clock(home.path(), clock).unwrap();
        let token = tokens.mint("default", "reviews", Duration::from_secs(86_400)).unwrap();
        tokens.verify_and_consume(&token).unwrap();
        assert_eq!(fs::read_dir(&tokens.spent).unwrap().count(), 1);
        now.store(1_600, Ordering::SeqCst);
        assert!(matches!(tokens.verify(&token), Err(TokenRefused::Expired)));
        now.store(2_199, Ordering::SeqCst);
        tokens.forget_expired();
        assert_eq!(fs::read_dir(&tokens.spent).unwrap().count(), 1);
        now.store(2_200, Ordering::SeqCst);
        tokens.forget_expired();
        assert_eq!(fs::read_dir(&tokens.spent).unwrap().count(), 0);
    }

    #[test]
    fn names_that_make_no_identity_are_not_minted() {
        let home = tempfile::tempdir().unwrap();
        let tokens = JoinTokens::with_clock(home.path(), at(1_000).1).unwrap();
        for (namespace, account) in [("", "a"), ("a/b", "c"), ("a", ".."), ("a", "b c")] {
            assert!(tokens.mint(namespace, account, MINUTE).is_err(), "{namespace:?} {account:?}");
        }
    }
}
