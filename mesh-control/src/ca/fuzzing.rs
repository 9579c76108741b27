//! Entry point for the fuzzer and for the replay of its corpus; not a part of the interface.

use std::path::Path;

use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer, X509Certificate};

use mesh_core::id::TrustDomain;

use super::{CertificateAuthority, CertificateLife, RequestedKey};
use crate::clock::Clock;

/// An authority with a new key, in a folder that is its own.
///
/// # Panics
/// The folder cannot be used.
pub fn authority(home: &Path) -> CertificateAuthority {
    let domain = TrustDomain::new("cluster.local").expect("a trust domain");
    CertificateAuthority::open(home, domain, CertificateLife::default(), Clock::system()).expect("a new authority")
}

/// Reads text as a signing request and signs what is accepted; whether it was.
///
/// # Panics
/// The certificate is not for the key of the request, or says more of its owner than who that is.
pub fn csr(authority: &CertificateAuthority, text: &str) -> bool {
    let Ok(key) = RequestedKey::from_csr_pem(text) else { return false };
    let id = format!("spiffe://{}/ns/default/sa/reviews", authority.trust_domain()).parse().expect("an ID");
    let issued = authority.issue(&key, &id, None).expect("an accepted key is signed for");
    let (_, leaf) = X509Certificate::from_der(&issued.leaf).expect("a certificate");
    let request = CertificateSigningRequestDer::from_pem_slice(text.as_bytes()).expect("it was read before");
    let (_, request) = X509CertificationRequest::from_der(&request).expect("it was read before");
    assert_eq!(leaf.public_key().raw, request.certification_request_info.subject_pki.raw);
    assert_eq!(mesh_core::identity::peer_spiffe_id(&issued.leaf), Ok(id));
    let names = leaf.subject_alternative_name().expect("it can be read").expect("it is there");
    assert!(names.value.general_names.len() == 1 && leaf.subject().iter().count() == 0);
    true
}
