//! Verifiers for TLS that is not the mesh's: by the names policy lists, or, where policy says so in
//! as many words, none.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::identity::{TrustBundle, Usage, verify_path};
use mesh_core::policy::{StringMatch, StringMatcher};
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
        if self.expected.iter().any(|matcher| carries(&leaf, matcher)) {
            return Ok(ServerCertVerified::assertion());
        }
        let names: Vec<&str> = leaf.valid_dns_names().chain(leaf.valid_uri_names()).collect();
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

/// Whether a certificate has a name that policy expects. One that is given as a whole is compared as what it is: a DNS name by
/// the rules for those, an address as an address, a URI letter by letter; anything else is looked for in the text of DNS names and
/// URIs, in which `*` is no more than a character (gRFC A29, as gRPC and Envoy do).
fn carries(leaf: &EndEntityCert<'_>, matcher: &StringMatcher) -> bool {
    let mut uris = leaf.valid_uri_names();
    let mut dns = leaf.valid_dns_names();
    let StringMatch::Exact(expected) = &matcher.pattern else {
        return dns.chain(uris).any(|name| matcher.matches(name));
    };
    match expected.parse::<IpAddr>() {
        Ok(address) => leaf.verify_is_valid_for_subject_name(&ServerName::from(address)).is_ok(),
        Err(_) => dns.any(|name| is_for(name, expected)) || uris.any(|name| matcher.matches(name)),
    }
}

/// Whether a certificate's DNS name is for this host. Case and a dot at the end are nothing; `*` stands for one label, which is the
/// leftmost, and never for a part of one.
fn is_for(name: &str, host: &str) -> bool {
    let [name, host] = [name, host].map(|name| name.strip_suffix('.').unwrap_or(name));
    let (of, host) = match name.strip_prefix("*.") {
        Some(parent) => match host.split_once('.') {
            Some((label, of)) if !label.is_empty() => (parent, of),
            _ => return false,
        },
        None => (name, host),
    };
    !of.is_empty() && !of.starts_with('.') && !of.contains('*') && of.eq_ignore_ascii_case(host)
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

#[cfg(test)]
mod tests {
    use mesh_core::policy::Pattern;
    use mesh_testkit::{CertificateSpec, TestCa};

    use super::*;

    #[test]
    fn a_dns_name_is_compared_as_grpc_does() {
        for (name, host, want) in [
            ("a.test", "a.test", true),
            ("A.Test", "a.tesT", true),
            ("a.test.", "a.test", true),
            ("a.test", "a.test.", true),
            ("*.test", "a.test", true),
            ("*.A.test.", "b.a.Test", true),
            ("*.a.test", "*.a.test", true),
            ("*.a.test", "c.b.a.test", false),
            ("*.a.test", "a.test", false),
            ("*.a.test", ".a.test", false),
            ("*.a.test", "b.c.test", false),
            ("a*.test", "ab.test", false),
            ("*a.test", "ba.test", false),
            ("b.*.test", "b.a.test", false),
            ("*.*.test", "b.a.test", false),
            ("*.*.test", "b.*.test", false),
            ("*", "a", false),
            ("*.", "a.", false),
            ("*", "*", false),
            (".a.test", ".a.test", false),
            ("", "", false),
            ("a.test", "b.test", false),
            ("a.test", "*.test", false),
        ] {
            assert_eq!(is_for(name, host), want, "{name:?} for {host:?}");
        }
    }

    #[test]
    fn what_is_expected_is_found_by_what_it_is() {
        let spec = CertificateSpec {
            dns: vec!["One.test".into(), "*.two.test".into()],
            uris: vec!["spiffe://Cluster.local/ns/a/sa/b".into()],
            ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            ..CertificateSpec::default()
        };
        let certified = TestCa::new().certified(&spec);
        let leaf = EndEntityCert::try_from(&certified.cert[0]).unwrap();
        let exact = |text: &str| StringMatch::Exact(text.into());
        let pattern = |text: &str| StringMatch::Regex(Pattern::new(text).unwrap());
        for (expected, ignore_case, want) in [
            (exact("one.test"), false, true),
            (exact("x.two.test"), false, true),
            (exact("X.Two.Test."), false, true),
            (exact("x.y.two.test"), false, false),
            (exact("two.test"), false, false),
            (exact("10.0.0.1"), false, true),
            (exact("fd00:0::1"), false, true),
            (exact("10.0.0.2"), false, false),
            (exact("spiffe://Cluster.local/ns/a/sa/b"), false, true),
            (exact("spiffe://cluster.local/ns/a/sa/b"), false, false),
            (exact("spiffe://cluster.local/ns/a/sa/b"), true, true),
            (exact(""), true, false),
            (StringMatch::Prefix("spiffe://Cluster.local/ns/a/".into()), false, true),
            (StringMatch::Prefix("one".into()), false, false),
            (StringMatch::Prefix("one".into()), true, true),
            (StringMatch::Suffix(".two.test".into()), false, true),
            (StringMatch::Contains("ne.t".into()), false, true),
            (pattern(r"\w+\.two\.test"), false, false),
            (pattern(r".\.two\.test"), false, true),
            (pattern(r"10\.0.*"), false, false),
        ] {
            let matcher = StringMatcher { pattern: expected, ignore_case };
            assert_eq!(carries(&leaf, &matcher), want, "{matcher:?}");
        }
    }
}
