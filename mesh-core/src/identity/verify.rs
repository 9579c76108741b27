//! SPIFFE verification of a peer's certificate: parse the ID, pick the bundle of its trust domain,
//! validate the path with that bundle only, then the leaf rules, then the caller's policy.
//!
//! There is no fall-through to DNS names or to the subject.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::TrustBundles;
use crate::id::SpiffeId;
use crate::matcher::TextCondition;
use crate::policy::StringMatcher;

/// Why a peer's certificate was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerRefused {
    /// The certificate cannot be parsed.
    #[error("the peer's certificate cannot be read: {0}")]
    Unreadable(String),
    /// It does not carry exactly one URI name.
    #[error("the peer's certificate must carry exactly one URI name, a SPIFFE ID; it has {0}")]
    UriNames(usize),
    /// The one URI name is not a SPIFFE ID with a path.
    #[error("the peer's certificate: {0}")]
    NotSpiffe(#[from] crate::id::InvalidSpiffeId),
    /// We hold no bundle for its trust domain.
    #[error("the peer {0} is of a trust domain for which this process has no bundle")]
    UnknownDomain(SpiffeId),
    /// It does not chain to the bundle, has expired or may not be used this way.
    #[error("the certificate of {id} is not valid here: {reason}")]
    NotValid {
        /// Who it claims to be.
        id: SpiffeId,
        /// What path validation said.
        reason: String,
    },
    /// A valid peer, but not the one policy expects.
    #[error("the peer is {got}; the policy of this destination expects {expected}")]
    WrongId {
        /// Who it is.
        got: SpiffeId,
        /// What was expected.
        expected: String,
    },
}

impl PeerRefused {
    /// The refusal inside a TLS error, if that is what failed the handshake.
    pub fn of(error: &rustls::Error) -> Option<&Self> {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref(),
            _ => None,
        }
    }
}

impl From<PeerRefused> for rustls::Error {
    fn from(refused: PeerRefused) -> Self {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refused))))
    }
}

/// The SPIFFE ID of a leaf certificate: exactly one URI name, which must be one.
///
/// # Errors
/// The certificate cannot be read, has no or several URI names, or its name is not a SPIFFE ID.
pub fn peer_spiffe_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, PeerRefused> {
    spiffe_id_of(&parse(leaf)?)
}

fn parse<'c>(leaf: &'c CertificateDer<'_>) -> Result<X509Certificate<'c>, PeerRefused> {
    let (_, cert) = X509Certificate::from_der(leaf).map_err(|e| PeerRefused::Unreadable(e.to_string()))?;
    Ok(cert)
}

fn spiffe_id_of(cert: &X509Certificate<'_>) -> Result<SpiffeId, PeerRefused> {
    let unreadable = |e: X509Error| PeerRefused::Unreadable(e.to_string());
    let names = cert.subject_alternative_name().map_err(unreadable)?;
    let names = names.iter().flat_map(|san| &san.value.general_names);
    // A name that cannot be read counts as well: a second URI must not hide behind bad encoding.
    let mut uris = names.filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        GeneralName::Invalid(..) => Some(""),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri.parse()?),
        (None, _) => Err(PeerRefused::UriNames(0)),
        (Some(_), Some(_)) => Err(PeerRefused::UriNames(2 + uris.count())),
    }
}

/// Whether the key may sign certificates or revocation lists: a signing authority is no workload
/// (X509-SVID 4.3). That it is marked a CA is checked by path validation.
fn may_sign(cert: &X509Certificate<'_>) -> bool {
    match cert.key_usage() {
        Ok(usage) => usage.is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign()),
        Err(_) => true,
    }
}

/// What both directions share.
struct Rules {
    bundles: TrustBundles,
    provider: Arc<CryptoProvider>,
}

impl Rules {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<SpiffeId, PeerRefused> {
        let parsed = parse(leaf)?;
        let id = spiffe_id_of(&parsed)?;
        let Some(bundle) = self.bundles.get(&id.trust_domain()) else {
            return Err(PeerRefused::UnknownDomain(id));
        };
        if may_sign(&parsed) {
            return Err(PeerRefused::NotValid { id, reason: "its key may sign certificates".to_owned() });
        }
        // webpki refuses CA certificates as leaves and checks dates, extended key usage and constraints.
        let cert = EndEntityCert::try_from(leaf).map_err(|e| PeerRefused::Unreadable(e.to_string()))?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        match cert.verify_for_usage(algorithms, bundle.anchors(), intermediates, now, usage, None, None) {
            Ok(_) => Ok(id),
            Err(e) => Err(PeerRefused::NotValid { id, reason: e.to_string() }),
        }
    }

    fn tls12(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn tls13(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Verifies the server of an outgoing connection: valid in the bundle of its domain and one of the
/// expected IDs. The server name plays no part.
pub struct SpiffeServerVerifier {
    rules: Rules,
    expected: Vec<StringMatcher>,
    // The same, compiled once and not in every handshake.
    conditions: Vec<TextCondition>,
}

impl SpiffeServerVerifier {
    /// `expected` lists acceptable SPIFFE IDs, any of; empty accepts every peer of the bundles.
    pub fn new(bundles: TrustBundles, expected: Vec<StringMatcher>, provider: Arc<CryptoProvider>) -> Self {
        let conditions = expected.iter().map(TextCondition::new).collect();
        Self { rules: Rules { bundles, provider }, expected, conditions }
    }
}

impl ServerCertVerifier for SpiffeServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let id = self.rules.verify(end_entity, intermediates, now, KeyUsage::server_auth())?;
        if !self.conditions.is_empty() && !self.conditions.iter().any(|c| c.holds(id.as_str().as_bytes())) {
            let expected = format!("{:?}", self.expected.iter().map(|m| &m.pattern).collect::<Vec<_>>());
            return Err(PeerRefused::WrongId { got: id, expected }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.rules.tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.rules.tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.rules.schemes()
    }
}

/// Verifies the client of an incoming connection: valid in the bundle of its domain. What it may do is
/// authorization's question.
pub struct SpiffeClientVerifier {
    rules: Rules,
    mandatory: bool,
}

impl SpiffeClientVerifier {
    /// With `mandatory` false a client may stay anonymous (the control plane's own port needs that for
    /// the first certificate); one that shows a certificate must show a valid one.
    pub fn new(bundles: TrustBundles, mandatory: bool, provider: Arc<CryptoProvider>) -> Self {
        Self { rules: Rules { bundles, provider }, mandatory }
    }
}

impl ClientCertVerifier for SpiffeClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: every mesh client has one certificate, and the subjects would only be noise.
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.rules.verify(end_entity, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.rules.tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.rules.tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.rules.schemes()
    }
}

impl fmt::Debug for SpiffeServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpiffeServerVerifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl fmt::Debug for SpiffeClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpiffeClientVerifier").field("mandatory", &self.mandatory).finish_non_exhaustive()
    }
}
