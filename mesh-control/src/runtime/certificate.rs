//! The control plane's own certificate, issued by its own authority and renewed at half its life.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_core::id::SpiffeId;
use mesh_core::identity::{Identity, InvalidIdentity, TrustBundles, server_config};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use zeroize::Zeroizing;

use crate::ca::{CertificateAuthority, Changes, IssueError};

/// The TLS side of the control plane's port; connections take the configuration that is current when
/// they begin.
pub(crate) struct ServerCertificate {
    authority: Arc<CertificateAuthority>,
    id: SpiffeId,
    names: Vec<String>,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<ServerConfig>,
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
        let (config, life) = issue(&authority, &id, &names, &provider)?;
        Ok((Self { authority, id, names, provider, current: ArcSwap::new(config) }, life))
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Tells when the authority has other keys or roots.
    pub(crate) fn changes(&self) -> Changes {
        self.authority.changes()
    }

    /// Issues the next certificate; gives its life.
    pub(crate) fn renew(&self) -> Result<Duration, CertificateError> {
        let (config, life) = issue(&self.authority, &self.id, &self.names, &self.provider)?;
        self.current.store(config);
        Ok(life)
    }
}

fn issue(
    authority: &CertificateAuthority,
    id: &SpiffeId,
    names: &[String],
    provider: &Arc<CryptoProvider>,
) -> Result<(Arc<ServerConfig>, Duration), CertificateError> {
    let (identity, life) = identity(authority, id, names, provider, 0)?;
    // Optional: the first certificate is asked for without one. Each service demands what it needs.
    let config = server_config(&identity, false, &[b"h2"], provider)?;
    Ok((Arc::new(config), life))
}

/// Key, certificate and roots for somebody in this process, and how long they last.
pub(super) fn identity(
    authority: &CertificateAuthority,
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
    let bundles = TrustBundles::single(authority.trust_domain().clone(), authority.bundle());
    let chain = std::iter::once(issued.leaf).chain(issued.intermediates).collect();
    Ok((Identity::new(CertifiedKey::new(chain, signer), bundles, generation)?, issued.life))
}
