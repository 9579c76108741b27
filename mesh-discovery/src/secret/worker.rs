//! The task that keeps a certificate valid.
#![allow(clippy::disallowed_methods, reason = "the one spawn of this module, and the default clock of its edge")]

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_core::identity::Identity;
use mesh_core::source::{Publisher, Watched, WatchedIdentity};
use tokio::runtime::Handle;

use super::issue::{CertificateAuthorityClient, CertificateRefused};
use super::{Clock, SecretConfig, schedule};
use crate::backoff::Backoff;
use crate::connect::{AbortOnDrop, Connector};

/// Waits between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Fetches and renews this process's identity on `runtime` until the last reader of the answer is
/// dropped. `connector` leads to the CA; it must not carry an identity of its own.
pub fn spawn(config: SecretConfig, connector: Connector, runtime: &Handle) -> WatchedIdentity {
    let (publisher, watched) = Watched::channel(None);
    let authority = CertificateAuthorityClient::new(connector, config.validity, config.trust_domain.clone());
    let task = runtime.spawn(run(config, authority, publisher));
    watched.with_guard(Arc::new(AbortOnDrop(task)))
}

pub(super) fn system_clock() -> Clock {
    Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

async fn run(config: SecretConfig, authority: CertificateAuthorityClient, publisher: Publisher<Option<Arc<Identity>>>) {
    let mut random = fastrand::Rng::new();
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut current: Option<Arc<Identity>> = None;
    loop {
        match next(&config, &authority, current.as_deref()).await {
            Ok(identity) => {
                backoff.reset();
                let renew_at = schedule::renew_at((config.clock)(), identity.not_after(), random.f64());
                tracing::info!(id = %identity.id(), not_after = identity.not_after(), renew_at, "new certificate");
                let identity = Arc::new(identity);
                current = Some(identity.clone());
                publisher.publish(Some(identity));
                while let Some(nap) = schedule::nap((config.clock)(), renew_at) {
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

/// The certificate of the moment proves its renewal; once it has ended, only a token can.
async fn next(
    config: &SecretConfig,
    authority: &CertificateAuthorityClient,
    current: Option<&Identity>,
) -> Result<Identity, CertificateRefused> {
    let now = (config.clock)();
    match current {
        Some(current) if now < current.not_after() => authority.renew(current, now).await,
        Some(ended) => {
            authority.issue(super::issue::Proof::Token(config.token.as_ref()), ended.generation() + 1, now).await
        }
        None => authority.first(config.token.as_ref(), now).await,
    }
}
