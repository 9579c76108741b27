//! The control plane's own certificate, issued by its own authority and renewed at half its life.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_core::id::SpiffeId;
use mesh_core::identity::{Identity, InvalidIdentity, TrustBundles, server_config};
use mesh_core::telemetry::{
    CERTIFICATE_EXPIRY, PEERS_BY_ROOT, PeersByRoot, RENEWAL_FAILED_AT, RENEWAL_FAILURES, Renewals,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::standing::Standing;
use crate::ca::{CertificateAuthority, Changes, IssueError};

/// The TLS side of the control plane's port; connections take the configuration that is current when
/// they begin.
pub(crate) struct ServerCertificate {
    authority: Arc<CertificateAuthority>,
    id: SpiffeId,
    names: Vec<String>,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<Current>,
    renewals: Renewals,
    peers: PeersByRoot,
}

/// What is shown now.
struct Current {
    config: Arc<ServerConfig>,
    identity: Identity,
}

/// Why the control plane has no certificate for itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// No key could be made.
    #[error("the control plane's own key: {0}")]
    Key(String),
    /// The authority refused.
    #[error("the control plane's own certificate: {0}")]
    Issue(#[from] IssueError),
    /// TLS refuses key or certificate.
    #[error(transparent)]
    Tls(#[from] InvalidIdentity),
}

impl ServerCertificate {
    /// Issues the first certificate. `names` are DNS names and IP addresses beside the SPIFFE ID.
    pub(crate) fn new(
        authority: Arc<CertificateAuthority>,
        id: SpiffeId,
        names: Vec<String>,
        provider: Arc<CryptoProvider>,
    ) -> Result<(Self, Duration), CertificateError> {
        let (current, life) = issue(&authority, &id, &names, &provider)?;
        let (current, renewals) = (ArcSwap::from_pointee(current), Renewals::default());
        Ok((Self { authority, id, names, provider, current, renewals, peers: PeersByRoot::default() }, life))
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.current.load().config.clone()
    }

    /// Who a caller is by the present name of the trust domain.
    pub(super) fn present(&self, id: SpiffeId) -> SpiffeId {
        own_bundles(&self.authority).aliased(&id).unwrap_or(id)
    }

    /// Whether a caller that showed `chain` may stay.
    pub(super) fn standing_of(&self, chain: &[CertificateDer<'_>]) -> Standing {
        Standing::new(chain, self.authority.clone(), self.provider.clone(), &self.peers)
    }

    /// What signs it.
    pub(super) fn authority(&self) -> &CertificateAuthority {
        &self.authority
    }

    /// Tells when the authority has other keys or roots.
    pub(crate) fn changes(&self) -> Changes {
        self.authority.changes()
    }

    /// Issues the next certificate; gives its life.
    pub(crate) fn renew(&self) -> Result<Duration, CertificateError> {
        let issued = issue(&self.authority, &self.id, &self.names, &self.provider);
        let (current, life) = issued.inspect_err(|_| self.renewals.failed(self.authority.now()))?;
        self.current.store(Arc::new(current));
        Ok(life)
    }

    /// As Prometheus text: when it ends, what signed it and the first of the roots, and how often it could not be renewed.
    pub(crate) fn metrics(&self, out: &mut String) {
        let (current, renewals) = (self.current.load(), &self.renewals);
        let Current { identity, .. } = &**current;
        let ends = [
            ("leaf", Some(identity.not_after())),
            ("issuer", identity.issuer_not_after()),
            ("root", identity.bundles().not_after()),
            ("revocation_list", identity.bundles().lists_end()),
        ];
        let help =
            "When the control plane's certificate ends, what signed it, or the first of the roots or revocation lists.";
        // Writing to a string cannot fail.
        let _ = write!(out, "# HELP {CERTIFICATE_EXPIRY} {help}\n# TYPE {CERTIFICATE_EXPIRY} gauge\n");
        for (of, end) in ends {
            let _ = end.map(|end| writeln!(out, "{CERTIFICATE_EXPIRY}{{of=\"{of}\"}} {end}"));
        }
        let _ = write!(
            out,
            "# HELP {RENEWAL_FAILURES} Attempts at its certificate that failed.\n# TYPE {RENEWAL_FAILURES} counter\n\
             {RENEWAL_FAILURES} {}\n",
            renewals.failures()
        );
        if let Some(last) = renewals.last_failure() {
            let _ = write!(
                out,
                "# HELP {RENEWAL_FAILED_AT} When the last of them was.\n# TYPE {RENEWAL_FAILED_AT} gauge\n\
                 {RENEWAL_FAILED_AT} {last}\n"
            );
        }
        let help = "Open connections of members by the root that vouches for them.";
        let _ = write!(out, "# HELP {PEERS_BY_ROOT} {help}\n# TYPE {PEERS_BY_ROOT} gauge\n");
        for (reporter, root, open) in self.peers.all() {
            let reporter = reporter.as_str();
            let _ = writeln!(out, "{PEERS_BY_ROOT}{{reporter=\"{reporter}\",root=\"{root}\"}} {open}");
        }
    }
}

fn issue(
    authority: &CertificateAuthority,
    id: &SpiffeId,
    names: &[String],
    provider: &Arc<CryptoProvider>,
) -> Result<(Current, Duration), CertificateError> {
    // Federated peers are nobody here.
    let own = own_bundles(authority);
    let (identity, life) = identity(authority, own, id, names, provider, 0)?;
    // Optional: the first certificate is asked for without one. Each service demands what it needs.
    let mut config = server_config(&identity, false, &[b"h2"], provider)?;
    config.time_provider = Arc::new(authority.clock().clone());
    Ok((Current { config: Arc::new(config), identity }, life))
}

/// Our own trust domain and its roots, which vouch for its former names too.
pub(super) fn own_bundles(authority: &CertificateAuthority) -> TrustBundles {
    let domain = authority.trust_domain();
    let mut own = TrustBundles::single(domain.clone(), authority.bundle());
    authority.former_domains().iter().for_each(|former| own.alias(former.clone(), domain.clone()));
    own
}

/// Key and certificate for somebody in this process who trusts `bundles`, and how long they last.
pub(super) fn identity(
    authority: &CertificateAuthority,
    bundles: TrustBundles,
    id: &SpiffeId,
    names: &[String],
    provider: &Arc<CryptoProvider>,
    generation: u64,
) -> Result<(Identity, Duration), CertificateError> {
    // What signs is TLS' own copy.
    let key = Zeroizing::new(rcgen::KeyPair::generate().map_err(|e| CertificateError::Key(e.to_string()))?);
    let issued = authority.issue_server(&key, id, names)?;
    let der = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| CertificateError::Key(e.to_owned()))?;
    let signer = provider.key_provider.load_private_key(der).map_err(|e| CertificateError::Key(e.to_string()))?;
    let chain = std::iter::once(issued.leaf).chain(issued.intermediates).collect();
    Ok((Identity::new(CertifiedKey::new(chain, signer), bundles, generation)?, issued.life))
}
