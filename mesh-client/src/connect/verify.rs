//! Verifiers for TLS that is not the mesh's: by the names policy lists, or, where policy says so in
//! as many words, none.

use std::fmt;
use std::sync::Arc;

use mesh_core::identity::{TrustBundle, Usage, verify_path};
use mesh_core::policy::StringMatcher;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use webpki::EndEntityCert;

/// The certificate carries none of the names that policy expects.
#[derive(Debug, thiserror::Error)]
#[error("the certificate is for {got}; the policy expects {expected}")]
pub(super) struct NamesRefused {
    pub(super) expected: String,
    pub(super) got: String,
}

/// A valid chain, and one of the expected names instead of the server name (Istio `subjectAltNames`); if none is
/// expected, a valid chain is enough (gRFC A29).
pub(super) struct NamesVerifier {
    roots: Roots,
    expected: Vec<StringMatcher>,
    provider: Arc<CryptoProvider>,
}

/// Whose signature makes a chain valid.
pub(super) enum Roots {
    Read(RootCertStore),
    /// With revocation lists, if it has some.
    Given(TrustBundle),
}

impl NamesVerifier {
    pub(super) fn new(roots: Roots, expected: Vec<StringMatcher>, provider: Arc<CryptoProvider>) -> Self {
        Self { roots, expected, provider }
    }
}

impl ServerCertVerifier for NamesVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        match &self.roots {
            Roots::Read(roots) => {
                let parsed = ParsedCertificate::try_from(end_entity)?;
                verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
            }
            Roots::Given(bundle) => verify_path(end_entity, intermediates, bundle, algorithms, now, Usage::Server)
                .map_err(|refused| Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refused)))))?,
        }
        if self.expected.is_empty() {
            return Ok(ServerCertVerified::assertion());
        }
        let leaf = EndEntityCert::try_from(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let names: Vec<&str> = leaf.valid_dns_names().chain(leaf.valid_uri_names()).collect();
        if names.iter().any(|name| self.expected.iter().any(|matcher| matcher.matches(name))) {
            return Ok(ServerCertVerified::assertion());
        }
        let expected = format!("{:?}", self.expected.iter().map(|m| &m.pattern).collect::<Vec<_>>());
        // They are the peer's words, and go where its words may not make lines of their own.
        let got = names.iter().map(|name| name.escape_debug().to_string()).collect::<Vec<_>>().join(", ");
        let refused = NamesRefused { expected, got };
        Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refused)))))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Takes any certificate whose key the peer holds: Istio's `insecureSkipVerify`.
pub(super) struct NoVerifier(pub(super) Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerifier {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for NamesVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamesVerifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl fmt::Debug for NoVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoVerifier")
    }
}
