//! The public key of a signing request: all that is taken from one.

use aws_lc_rs::digest;
use rcgen::{PublicKeyData, SignatureAlgorithm, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::material::is_signed_with;

/// A request with one key and a few names is well below.
const MAX_CSR: usize = 16 * 1024;
const MIN_RSA_BITS: usize = 2048;

/// A public key whose owner has proved to hold the private half.
#[derive(Clone, Debug)]
pub struct RequestedKey(SubjectPublicKeyInfo);

/// Why a signing request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CsrRefused {
    /// Too long to be one.
    #[error("the signing request has {0} bytes; at most {MAX_CSR} are read")]
    TooLong(usize),
    /// Not a PKCS #10 request in PEM.
    #[error("the signing request cannot be read: it must be PKCS #10 in PEM")]
    Unreadable,
    /// Whoever made it does not hold the key.
    #[error("the signing request's signature does not fit its public key")]
    Signature,
    /// Not a key we sign for.
    #[error(
        "the signing request's key is not accepted: use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 bits or more"
    )]
    Key,
}

impl RequestedKey {
    /// Takes the key of a PEM signing request. Names and extensions in it are not looked at.
    ///
    /// # Errors
    /// It is too long, not a request, not signed with its own key, or the key is of a kind or strength
    /// that is not accepted.
    pub fn from_csr_pem(pem: &str) -> Result<Self, CsrRefused> {
        if pem.len() > MAX_CSR {
            return Err(CsrRefused::TooLong(pem.len()));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| CsrRefused::Unreadable)?;
        let (rest, csr) = X509CertificationRequest::from_der(&der).map_err(|_| CsrRefused::Unreadable)?;
        if !rest.is_empty() {
            return Err(CsrRefused::Unreadable);
        }
        let info = &csr.certification_request_info.subject_pki;
        if let PublicKey::RSA(rsa) = info.parsed().map_err(|_| CsrRefused::Key)?
            && rsa.key_size() < MIN_RSA_BITS
        {
            return Err(CsrRefused::Key);
        }
        let key = SubjectPublicKeyInfo::from_der(info.raw).map_err(|_| CsrRefused::Key)?;
        if !accepted(key.algorithm()) {
            return Err(CsrRefused::Key);
        }
        if !is_signed_with(&der, info) {
            return Err(CsrRefused::Signature);
        }
        Ok(Self(key))
    }

    /// SHA-256 of the public key as a certificate has it (SubjectPublicKeyInfo).
    pub(super) fn fingerprint(&self) -> [u8; digest::SHA256_OUTPUT_LEN] {
        let digest = digest::digest(&digest::SHA256, &self.0.subject_public_key_info());
        digest.as_ref().try_into().expect("SHA-256 has this length")
    }
}

/// For RSA the hash is the signer's matter; as a key all three are the same.
fn accepted(algorithm: &SignatureAlgorithm) -> bool {
    [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
        &rcgen::PKCS_RSA_SHA384,
        &rcgen::PKCS_RSA_SHA512,
    ]
    .contains(&algorithm)
}

impl PublicKeyData for RequestedKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}
