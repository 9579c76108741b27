//! The task that keeps a certificate valid.
#![allow(clippy::disallowed_methods, reason = "the one spawn of this module, and the default clock of its edge")]

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_core::identity::Identity;
use mesh_core::source::{Publisher, Watched, WatchedIdentity};
use tokio::runtime::Handle;

use super::issue::{CertificateAuthorityClient, CertificateRefused, Proof};
use super::{Clock, JoinToken, SecretConfig, schedule};
use crate::backoff::Backoff;
use crate::connect::{AbortOnDrop, Connector};

/// Waits between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Fetches and renews this process's identity on `runtime` until the last reader of the answer is
/// dropped. `connector` leads to the CA; it must not carry an identity of its own.
pub fn spawn(config: SecretConfig, connector: Connector, runtime: &Handle) -> WatchedIdentity {
    let client = CertificateAuthorityClient::new(connector, config.validity, config.trust_domain);
    spawn_with(Proved { client, token: config.token }, config.clock, runtime)
}

/// The same over any source of certificates.
pub(super) fn spawn_with(authority: impl Authority, clock: Clock, runtime: &Handle) -> WatchedIdentity {
    let (publisher, watched) = Watched::channel(None);
    let task = runtime.spawn(run(authority, clock, publisher));
    watched.with_guard(Arc::new(AbortOnDrop(task)))
}

pub(super) fn system_clock() -> Clock {
    Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Where the next certificate comes from.
pub(super) trait Authority: Send + Sync + 'static {
    /// The identity to follow `current`.
    fn next(
        &self,
        current: Option<&Identity>,
        now: u64,
    ) -> impl Future<Output = Result<Identity, CertificateRefused>> + Send;
}

/// The CA, with the proof that fits the moment.
struct Proved {
    client: CertificateAuthorityClient,
    token: Option<JoinToken>,
}

impl Authority for Proved {
    /// The certificate of the moment proves its renewal; once it has ended, only a token can.
    async fn next(&self, current: Option<&Identity>, now: u64) -> Result<Identity, CertificateRefused> {
        match current {
            Some(current) if now < current.not_after() => self.client.renew(current, now).await,
            Some(ended) => self.client.issue(Proof::Token(self.token.as_ref()), ended.generation() + 1, now).await,
            None => self.client.first(self.token.as_ref(), now).await,
        }
    }
}

async fn run(authority: impl Authority, clock: Clock, publisher: Publisher<Option<Arc<Identity>>>) {
    let mut random = fastrand::Rng::new();
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut current: Option<Arc<Identity>> = None;
    loop {
        match authority.next(current.as_deref(), clock()).await {
            Ok(identity) => {
                backoff.reset();
                let renew_at = schedule::renew_at(clock(), identity.not_after(), random.f64());
                tracing::info!(id = %identity.id(), not_after = identity.not_after(), renew_at, "new certificate");
                let identity = Arc::new(identity);
                current = Some(identity.clone());
                publisher.publish(Some(identity));
                while let Some(nap) = schedule::nap(clock(), renew_at) {
                    tokio::time::sleep(nap).await;
                }
            }
            Err(error) => {
                let wait = backoff.next(random.f64());
                tracing::warn!(%error, retry_in = ?wait, has_certificate = current.is_some(), "no new certificate");
                tokio::time::sleep(wait).await;
            }
        }
    }
}
