//! Whether the caller of an open connection may stay: its certificate was verified when it came, and certificates end, are
//! revoked, and lose their roots.
//!
//! ```text
//! nine tenths of its life, or an hour ─▶ it is asked to come anew, with the certificate it has by then
//! its end, other lists                ─▶ it is cut, if it is not good any more
//! its root is gone                    ─▶ the same, after it was told which roots there are now
//! ```
//!
//! Refuses to know what is served.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::{PeerRefused, Usage, root_name, root_of, verify_svid};
use mesh_core::telemetry::{CountedPeer, PeersByRoot, Reporter};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::time::{Instant, sleep};

use super::certificate::own_bundles;
use crate::ca::{CertificateAuthority, not_after};

/// Longest life of a connection; each ends up to a tenth earlier, so that they do not come back together.
const AGE: Duration = Duration::from_secs(3600);
/// The wall clock is looked at again after this time: it may have been set.
const NAP: Duration = Duration::from_secs(60);

/// Why a connection is to end.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    /// It is old. What is under way may end.
    #[error("it is old")]
    Aged,
    /// It has had no stream for long.
    #[error("it has had no stream for long")]
    Idle,
    /// Whoever is there is not trusted any more.
    #[error(transparent)]
    Refused(PeerRefused),
    /// Its root is trusted no more. It is to hear of that on the streams that it has.
    #[error("its root is trusted no more: {0}")]
    RootGone(PeerRefused),
    /// Its certificate has ended.
    #[error("its certificate has ended")]
    Expired,
}

/// A caller with a certificate.
pub(super) struct Standing {
    chain: Vec<CertificateDer<'static>>,
    authority: Arc<CertificateAuthority>,
    provider: Arc<CryptoProvider>,
    /// The root that vouched for it when it came.
    root: Option<String>,
    _counted: Option<CountedPeer>,
}

impl Standing {
    /// Of somebody whose chain was verified just now; counted among the `peers` of its root until the connection ends.
    pub(super) fn new(
        chain: &[CertificateDer<'_>],
        authority: Arc<CertificateAuthority>,
        provider: Arc<CryptoProvider>,
        peers: &PeersByRoot,
    ) -> Self {
        let bundles = own_bundles(&authority);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(authority.now()));
        let root = root_of(chain, &bundles, provider.signature_verification_algorithms.all, now, Usage::Client);
        let _counted = root.map(|root| peers.count(Reporter::Destination, root));
        let (root, chain) = (root.map(str::to_owned), chain.iter().map(|one| one.clone().into_owned()).collect());
        Self { chain, authority, provider, root, _counted }
    }

    /// Waits until the connection is to end.
    pub(super) async fn end(self) -> End {
        let mut changes = self.authority.changes();
        // The handshake may have gone by what was in force a moment before.
        if let Err(refused) = self.verify() {
            return self.why(refused);
        }
        // One whose end cannot be read has none left.
        let ends = self.chain.first().and_then(|leaf| not_after(leaf).ok()).unwrap_or_default();
        let left = |now: u64| Duration::from_secs(ends.saturating_sub(now));
        let age = (left(self.authority.now()) * 9 / 10).min(AGE);
        let aged = Instant::now() + age.mul_f64(1.0 - fastrand::f64() / 10.0);
        loop {
            let left = left(self.authority.now());
            if left.is_zero() {
                return End::Expired;
            }
            let nap = left.min(NAP).min(aged.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = changes.changed() => {
                    if let Err(refused) = self.verify() {
                        return self.why(refused);
                    }
                }
                () = sleep(nap) => {
                    if Instant::now() >= aged {
                        return End::Aged;
                    }
                }
            }
        }
    }

    fn why(&self, refused: PeerRefused) -> End {
        let bundle = self.authority.bundle();
        match &self.root {
            Some(root) if bundle.roots().iter().all(|one| root_name(one) != *root) => End::RootGone(refused),
            _ => End::Refused(refused),
        }
    }

    fn verify(&self) -> Result<(), PeerRefused> {
        let bundles = own_bundles(&self.authority);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(self.authority.now()));
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_svid(&self.chain, &bundles, algorithms, now, Usage::Client).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::UNIX_EPOCH;

    use mesh_core::id::TrustDomain;

    use super::*;
    use crate::Clock;
    use crate::ca::CertificateLife;
    use crate::runtime::certificate;

    /// How long somebody with a certificate of so many seconds stays, and why no longer, if the clock is set ahead by
    /// `ahead` seconds meanwhile.
    async fn stays(life: u64, ahead: u64) -> (u64, End) {
        let home = tempfile::tempdir().unwrap();
        let (begin, set) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let ahead_by = set.clone();
        let clock = Clock::new(move || {
            let ahead = Duration::from_secs(ahead_by.load(Ordering::Relaxed));
            UNIX_EPOCH + Duration::from_secs(1_800_000_000) + begin.elapsed() + ahead
        });
        let life = CertificateLife::at_most(Duration::from_secs(life));
        let domain = TrustDomain::new("cluster.local").unwrap();
        let authority = Arc::new(CertificateAuthority::open(home.path(), domain, life, clock).unwrap());
        let id = "spiffe://cluster.local/ns/default/sa/a".parse().unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let (identity, _) =
            certificate::identity(&authority, certificate::own_bundles(&authority), &id, &[], &provider, 0).unwrap();
        let standing = Standing::new(&identity.certified().cert, authority, provider, &PeersByRoot::default());
        let end = async {
            let end = standing.end().await;
            (begin.elapsed().as_secs(), end)
        };
        let later = async {
            mesh_testkit::clock::pass(Duration::from_secs(1)).await;
            set.store(ahead, Ordering::Relaxed);
        };
        tokio::join!(end, later).0
    }

    #[tokio::test(start_paused = true)]
    async fn s87_a_caller_comes_anew_before_its_certificate_ends_and_is_cut_when_it_has() {
        let (after, end) = stays(1_000, 0).await;
        assert!((809..=901).contains(&after) && matches!(end, End::Aged), "{after} s: {end:?}");
        let (after, end) = stays(24 * 3_600, 0).await;
        assert!((3_239..=3_601).contains(&after) && matches!(end, End::Aged), "{after} s: {end:?}");
        // A clock that is set ahead is the way to be there when it ends.
        let (after, end) = stays(1_000, 1_000).await;
        assert!(after <= 61 && matches!(end, End::Expired), "{after} s: {end:?}");
    }
}
