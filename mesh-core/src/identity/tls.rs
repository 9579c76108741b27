//! From an [`Identity`] to rustls configurations, one for each direction.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ServerConfig};

use super::{Identity, PeerRefused, SpiffeClientVerifier, SpiffeServerVerifier, TrustBundles, peer_spiffe_id};
use crate::policy::StringMatcher;

/// A certificate and key that cannot serve as an identity.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidIdentity {
    /// The chain is empty.
    #[error("the certificate chain is empty")]
    NoCertificate,
    /// The leaf is not a workload certificate.
    #[error("our own certificate: {0}")]
    Leaf(#[from] PeerRefused),
    /// Key and certificate do not belong together, or TLS refuses them.
    #[error("our own certificate: {0}")]
    Tls(#[from] rustls::Error),
    /// Its dates cannot be read.
    #[error("our own certificate: its validity cannot be read")]
    Dates,
}

pub(super) fn identity_from(
    certified: CertifiedKey,
    bundles: TrustBundles,
    generation: u64,
) -> Result<Identity, InvalidIdentity> {
    let leaf = certified.cert.first().ok_or(InvalidIdentity::NoCertificate)?;
    let id = peer_spiffe_id(leaf)?;
    match certified.keys_match() {
        // Unknown: the key's provider cannot show its public half, so TLS itself will tell.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(e) => return Err(e.into()),
    }
    let (not_before, not_after) = validity(leaf).ok_or(InvalidIdentity::Dates)?;
    Ok(Identity { id, certified: Arc::new(certified), bundles, not_before, not_after, generation })
}

/// Start and end of a certificate's validity, seconds since the Unix epoch.
pub(super) fn validity(leaf: &CertificateDer<'_>) -> Option<(u64, u64)> {
    let (_, cert) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let validity = cert.validity();
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).ok();
    Some((seconds(validity.not_before)?, seconds(validity.not_after)?))
}

/// The date by `clock`. One that cannot tell is after everything: what ends has ended.
pub fn date(clock: &dyn TimeProvider) -> UnixTime {
    clock.current_time().unwrap_or_else(|| UnixTime::since_unix_epoch(Duration::MAX))
}

/// The TLS side of a connection to a mesh peer: our certificate, their SPIFFE ID among `expected`
/// (empty = any peer of our bundles). `alpn` lists protocols in order of preference. Peers are judged by the system's clock,
/// unless `time_provider` is set; so they are by those below.
///
/// # Errors
/// The provider supports no protocol version that rustls knows.
pub fn client_config(
    identity: &Identity,
    expected: &[StringMatcher],
    alpn: &[&[u8]],
    provider: &Arc<CryptoProvider>,
) -> Result<ClientConfig, InvalidIdentity> {
    let verifier = SpiffeServerVerifier::new(identity.bundles.clone(), expected.to_vec(), provider.clone());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified.clone())));
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    // A resumed session would skip the check of the certificate, which may have expired since.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The same without a certificate of ours: the peer proves who it is, we do not.
///
/// # Errors
/// The provider supports no protocol version that rustls knows.
pub fn anonymous_config(
    bundles: TrustBundles,
    expected: &[StringMatcher],
    alpn: &[&[u8]],
    provider: &Arc<CryptoProvider>,
) -> Result<ClientConfig, InvalidIdentity> {
    let verifier = SpiffeServerVerifier::new(bundles, expected.to_vec(), provider.clone());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The TLS side of an accepted connection: our certificate; the client must show a valid mesh
/// certificate, or with `mandatory` false none at all.
///
/// # Errors
/// The provider supports no protocol version that rustls knows.
pub fn server_config(
    identity: &Identity,
    mandatory: bool,
    alpn: &[&[u8]],
    provider: &Arc<CryptoProvider>,
) -> Result<ServerConfig, InvalidIdentity> {
    let verifier = SpiffeClientVerifier::new(identity.bundles.clone(), mandatory, provider.clone());
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified.clone())));
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    // As on the client: every connection is checked anew.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
