//! The SPIFFE rules of [`super::svid`] as verifiers of rustls, one for each direction, with who is expected.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use smallvec::SmallVec;
use webpki::EndEntityCert;

use super::svid::{in_words, verify_svid};
use super::{PeerRefused, TrustBundles, Usage, ways};
use crate::id::SpiffeId;
use crate::matcher::TextCondition;
use crate::policy::StringMatcher;

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

/// A view of a certificate, to put a chain together without copying it.
fn borrowed<'c>(der: &'c CertificateDer<'_>) -> CertificateDer<'c> {
    CertificateDer::from(&**der)
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
        usage: Usage,
    ) -> Result<SpiffeId, PeerRefused> {
        let chain: SmallVec<[_; 4]> = std::iter::once(leaf).chain(intermediates).map(borrowed).collect();
        verify_svid(&chain, &self.bundles, self.provider.signature_verification_algorithms.all, now, usage)
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

    /// By the name in the certificate or, for a trust domain that is an alias, by the name it stands for.
    fn expects(&self, id: &SpiffeId) -> bool {
        let named = |id: &SpiffeId| self.conditions.iter().any(|c| c.holds(id.as_str().as_bytes()));
        self.conditions.is_empty() || named(id) || self.rules.bundles.aliased(id).is_some_and(|id| named(&id))
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
        let id = self.rules.verify(end_entity, intermediates, now, Usage::Server)?;
        if !self.expects(&id) {
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
        self.rules.verify(end_entity, intermediates, now, Usage::Client)?;
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

/// Another verifier, of servers that are known by other names than SPIFFE IDs, which is asked only of chains that can be put
/// together in few ways: rustls' own goes them all, for whoever shows them.
#[derive(Debug)]
pub struct BoundedVerifier(Arc<dyn ServerCertVerifier>);

impl BoundedVerifier {
    /// Asks `verifier`, as long as that is cheap.
    pub fn new(verifier: Arc<dyn ServerCertVerifier>) -> Self {
        Self(verifier)
    }
}

impl ServerCertVerifier for BoundedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // One that cannot be read has no way, and the verifier says so.
        if let Ok(leaf) = EndEntityCert::try_from(end_entity)
            && let Err(refused) = ways::check(&leaf, intermediates)
        {
            return Err(PeerRefused::Path(in_words(&refused)).into());
        }
        self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.0.requires_raw_public_keys()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        self.0.root_hint_subjects()
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
