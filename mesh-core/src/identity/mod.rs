//! Who we are and whom we trust: the SPIFFE rules of `security` in one place, used by both sides.
//!
//! Refuses to know where certificates come from and does no I/O. The crypto provider of TLS is
//! always an argument; rustls' process default is never touched. Tokens are verified, and roots named, by aws-lc-rs itself.

mod bundle;
mod ending;
#[cfg(feature = "axum")]
mod extract;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod key;
mod listed;
mod signed;
mod svid;
mod tls;
mod verify;
mod ways;

#[cfg(test)]
mod tests;

pub use self::bundle::{InvalidBundle, TrustBundle, TrustBundles, root_name};
pub use self::ending::{EndingLeaf, EndingLists, EndingRoots, LifeLeft, ListLife, newest_lists};
#[cfg(feature = "axum")]
pub use self::extract::NoPeerIdentity;
pub use self::key::{exposure, private_key};
pub use self::signed::is_signed_with;
pub use self::svid::{
    MAX_INTERMEDIATES, PeerRefused, Usage, certificates_of_der, peer_spiffe_id, root_of, verify_again, verify_path,
    verify_path_again, verify_svid,
};
pub use self::tls::{InvalidIdentity, anonymous_config, client_config, date, server_config};
pub use self::verify::{BoundedVerifier, SpiffeClientVerifier, SpiffeServerVerifier};

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::sign::CertifiedKey;

use crate::id::SpiffeId;

/// This process's certificate, key and trust bundles: one consistent set, swapped as a whole.
/// The key is never printed.
pub struct Identity {
    id: SpiffeId,
    certified: Arc<CertifiedKey>,
    bundles: TrustBundles,
    not_before: u64,
    not_after: u64,
    generation: u64,
}

impl Identity {
    /// Joins a checked certificate and key with the bundles to trust. `generation` must grow with every
    /// renewal: caches of TLS configurations are keyed by it.
    ///
    /// # Errors
    /// The leaf has no usable SPIFFE ID, or the key does not belong to the certificate.
    pub fn new(certified: CertifiedKey, bundles: TrustBundles, generation: u64) -> Result<Self, InvalidIdentity> {
        tls::identity_from(certified, bundles, generation)
    }

    /// Our SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Chain and key as rustls uses them.
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// Whom we trust, by trust domain.
    pub fn bundles(&self) -> &TrustBundles {
        &self.bundles
    }

    /// The same certificate and key with other bundles to trust, as the next generation.
    #[must_use]
    pub fn trusting(&self, bundles: TrustBundles) -> Self {
        let Self { ref id, ref certified, not_before, not_after, generation, .. } = *self;
        let (id, certified) = (id.clone(), certified.clone());
        Self { id, certified, bundles, not_before, not_after, generation: generation + 1 }
    }

    /// Start of validity, seconds since the Unix epoch.
    pub fn not_before(&self) -> u64 {
        self.not_before
    }

    /// End of validity, seconds since the Unix epoch.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// End of the first certificate that ends of those between ours and its root, seconds since the Unix epoch; `None` if
    /// a root signed ours.
    pub fn issuer_not_after(&self) -> Option<u64> {
        let issuers = self.certified.cert.iter().skip(1);
        issuers.filter_map(|issuer| tls::validity(issuer)).map(|(_, end)| end).min()
    }

    /// Counts renewals.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("not_after", &self.not_after)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// The other end of an inbound connection; [`context::caller`](crate::context::caller) is that of the request being
/// served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The verified SPIFFE ID; `None` on a plaintext connection.
    pub spiffe_id: Option<SpiffeId>,
    /// The socket address.
    pub address: SocketAddr,
}
