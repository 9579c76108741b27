//! The authority against the inputs of a hostile requester, and against its own state directory.

use std::os::unix::fs::PermissionsExt;
use std::time::UNIX_EPOCH;

use rcgen::PublicKeyData;
use rustls_pki_types::CertificateSigningRequestDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, oid_registry};

use super::*;

const NOW: u64 = 1_800_000_000;

fn authority(home: &Path, life: CertificateLife) -> Result<CertificateAuthority, StateError> {
    let clock = Clock::new(|| UNIX_EPOCH + Duration::from_secs(NOW));
    CertificateAuthority::open(home, TrustDomain::new("cluster.local").unwrap(), life, clock)
}

fn reviews() -> SpiffeId {
    "spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap()
}

fn csr(change: impl FnOnce(&mut CertificateParams)) -> (KeyPair, String) {
    csr_of(KeyPair::generate().unwrap(), change)
}

fn csr_of(key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> (KeyPair, String) {
    let mut params = CertificateParams::default();
    change(&mut params);
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, pem)
}

#[test]
fn of_a_request_only_the_public_key_is_used() {
    let home = tempfile::tempdir().unwrap();
    let ca = authority(home.path(), CertificateLife::default()).unwrap();
    let (key, pem) = csr(|params| {
        params.distinguished_name.push(DnType::CommonName, "admin");
        params.subject_alt_names = vec![
            SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap()),
            SanType::DnsName("api.example.com".try_into().unwrap()),
        ];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
    });
    let issued = ca.issue(&RequestedKey::from_csr_pem(&pem).unwrap(), &reviews(), None).unwrap();

    let (_, leaf) = X509Certificate::from_der(&issued.leaf).unwrap();
    assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf.get_extension_unique(&oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME).unwrap().unwrap();
    assert!(names.critical, "an empty subject demands it");
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names[..], [GeneralName::URI(reviews().as_str())]);
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(!constraints.value.ca);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 1, "digitalSignature alone");
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert_eq!(issued.chain_pem.len(), 2);
    assert_eq!(CertificateDer::from_pem_slice(issued.chain_pem[0].as_bytes()).unwrap(), issued.leaf);
    assert_eq!(CertificateDer::from_pem_slice(issued.chain_pem[1].as_bytes()).unwrap(), *ca.root());
    mesh_core::identity::peer_spiffe_id(&issued.leaf).unwrap();
}

#[test]
fn bad_requests_are_refused() {
    let refused = |pem: &str| RequestedKey::from_csr_pem(pem).unwrap_err();
    assert_eq!(refused(""), CsrRefused::Unreadable);
    assert_eq!(
        refused("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"),
        CsrRefused::Unreadable
    );
    assert!(matches!(refused(&"A".repeat(1 << 20)), CsrRefused::TooLong(_)));
    // Signed by somebody else than the owner of the key in it.
    let (_, good) = csr(|_| {});
    let mut der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
    let last = der.len() - 1;
    der[last] ^= 1;
    assert!(matches!(refused(&pem_of(&der)), CsrRefused::Signature | CsrRefused::Unreadable));
    assert!(RequestedKey::from_csr_pem(&good).is_ok(), "the control");
    let (_, odd) = csr_of(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap(), |_| {});
    assert_eq!(refused(&odd), CsrRefused::Key);
    assert_eq!(refused(RSA_1024), CsrRefused::Key);
}

#[test]
fn the_accepted_kinds_of_key_are_signed() {
    let home = tempfile::tempdir().unwrap();
    let ca = authority(home.path(), CertificateLife::default()).unwrap();
    for kind in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let (key, pem) = csr_of(KeyPair::generate_for(kind).unwrap(), |_| {});
        let issued = ca.issue(&RequestedKey::from_csr_pem(&pem).unwrap(), &reviews(), None).unwrap();
        let (_, leaf) = X509Certificate::from_der(&issued.leaf).unwrap();
        assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
    }
}

#[test]
fn life_is_kept_within_its_bounds_and_start_lies_back() {
    let home = tempfile::tempdir().unwrap();
    let (_, pem) = csr(|_| {});
    let key = RequestedKey::from_csr_pem(&pem).unwrap();
    let life = |life, wished: Option<u64>| {
        let ca = authority(home.path(), life).unwrap();
        let issued = ca.issue(&key, &reviews(), wished.map(Duration::from_secs)).unwrap();
        let (_, leaf) = X509Certificate::from_der(&issued.leaf).unwrap();
        let validity = leaf.validity();
        assert_eq!(validity.not_after.timestamp() as u64, issued.not_after);
        (NOW - validity.not_before.timestamp() as u64, issued.not_after - NOW)
    };
    let usual = CertificateLife::default();
    assert_eq!(life(usual, None), (300, 86_400));
    assert_eq!(life(usual, Some(10 * 365 * 86_400)), (300, 86_400));
    assert_eq!(life(usual, Some(u64::MAX)), (300, 86_400));
    assert_eq!(life(usual, Some(0)), (75, 300));
    assert_eq!(life(usual, Some(3_600)), (300, 3_600));
    assert_eq!(life(CertificateLife::at_most(Duration::from_secs(8)), None), (2, 8));
}

#[test]
fn serial_numbers_differ_even_for_one_key() {
    let home = tempfile::tempdir().unwrap();
    let ca = authority(home.path(), CertificateLife::default()).unwrap();
    let (_, pem) = csr(|_| {});
    let key = RequestedKey::from_csr_pem(&pem).unwrap();
    let serial = || {
        let issued = ca.issue(&key, &reviews(), None).unwrap();
        X509Certificate::from_der(&issued.leaf).unwrap().1.raw_serial().to_vec()
    };
    assert_ne!(serial(), serial());
}

#[test]
fn an_identity_of_another_trust_domain_is_not_signed() {
    let home = tempfile::tempdir().unwrap();
    let ca = authority(home.path(), CertificateLife::default()).unwrap();
    let (_, pem) = csr(|_| {});
    let foreign = "spiffe://other.example/ns/default/sa/reviews".parse().unwrap();
    let result = ca.issue(&RequestedKey::from_csr_pem(&pem).unwrap(), &foreign, None);
    assert!(matches!(result, Err(IssueError::ForeignDomain { .. })));
}

#[test]
fn the_root_survives_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let first = authority(home.path(), CertificateLife::default()).unwrap();
    let second = authority(home.path(), CertificateLife::default()).unwrap();
    assert_eq!(first.root(), second.root());
    let (_, root) = X509Certificate::from_der(first.root()).unwrap();
    let constraints = root.basic_constraints().unwrap().unwrap();
    assert_eq!((constraints.value.ca, constraints.value.path_len_constraint), (true, Some(0)));
    assert!(root.key_usage().unwrap().unwrap().value.key_cert_sign());
}

#[test]
fn a_state_directory_that_does_not_fit_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let usual = CertificateLife::default();
    authority(home.path(), usual).unwrap();

    let clock = Clock::new(|| UNIX_EPOCH + Duration::from_secs(NOW));
    let other = CertificateAuthority::open(home.path(), TrustDomain::new("other.example").unwrap(), usual, clock);
    assert!(matches!(other, Err(StateError::Content { .. })), "another trust domain");

    let key = home.path().join(KEY_FILE);
    let kept = std::fs::read(&key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(authority(home.path(), usual), Err(StateError::TooOpen { mode: 0o644, .. })));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(authority(home.path(), usual).is_ok(), "the control");

    std::fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(matches!(authority(home.path(), usual), Err(StateError::Content { .. })), "another key");
    std::fs::remove_file(&key).unwrap();
    assert!(matches!(authority(home.path(), usual), Err(StateError::Content { .. })), "no key");

    // The certificate alone can be made again: same name and key are the same trust anchor.
    std::fs::write(&key, kept).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::remove_file(home.path().join(ROOT_FILE)).unwrap();
    assert!(authority(home.path(), usual).is_ok());
}

fn pem_of(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", lines.join("\n"))
}

/// A request made with OpenSSL, for this library makes no keys so weak.
const RSA_1024: &str = "\
-----BEGIN CERTIFICATE REQUEST-----\n\
MIIBPzCBqQIBADAAMIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCdEB/z+e0R\n\
8PNnFC4+qkApE49AVchUp9DF1K9rfe9ed0aVU+gMxVD4Cg3/ElAg2tV3ULBSH6Ff\n\
gkGbvbv3vw8He5GfVZ1+dRXDJVNOrfd7+OEji8BHnHCDcavHM5gMeZl5LYQVJ5SD\n\
oa5j9IrKh+dXXoQiKgQvPFOSp/gQwuIp+QIDAQABoAAwDQYJKoZIhvcNAQELBQAD\n\
gYEAjOOAqQTO/LbT7nv9KmEAp87tzm7Lx0yGzkCkCxrd5/QJnRqK+fx73XxKTWPo\n\
VQ9VvdbnKbeyrfgaM8PHso6pVSUAEy3dFrI50aoxVpGtuzP8chBMa0bOiCdqVw9J\n\
BpI5R0okHGNVTH97mBAIzzAol3rkylbhi/7EfkBioLmxmHc=\n\
-----END CERTIFICATE REQUEST-----\n\
";
