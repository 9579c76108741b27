//! Revocation lists that come in place of others are judged by the algorithms by which peers are.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateRevocationListDer, UnixTime};

use super::rows::{list, verify};
use super::*;

fn check(bundle: &TrustBundle, own: &[CertificateDer<'_>], now: u64) -> Result<(), InvalidBundle> {
    bundle.check_revocation_lists(own, provider().signature_verification_algorithms.all, now)
}

fn listed(root: &CertificateDer<'static>, lists: Vec<Vec<u8>>) -> TrustBundle {
    TrustBundle::new([root.clone()]).unwrap().with_revocation_lists(lists).unwrap()
}

#[test]
fn s68_a_list_of_every_algorithm_that_peers_may_be_signed_by_can_follow_another() {
    let now = UnixTime::now();
    for kind in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ECDSA_P521_SHA256,
        &rcgen::PKCS_ECDSA_P521_SHA512,
        &rcgen::PKCS_ED25519,
    ] {
        let root = Root::of(KeyPair::generate_for(kind).unwrap());
        let own = root.issue(&leaf(&[REVIEWS])).cert;
        let bundle = listed(&root.der, vec![list(&root, &[], now.as_secs())]);
        let domain = TrustDomain::new("cluster.local").unwrap();
        let bundles = TrustBundles::single(domain, bundle.clone());
        assert!(verify(&own, &bundles, now).is_ok(), "{kind:?}: peers are let in by it");
        for own in [&own[..], &[]] {
            assert_eq!(check(&bundle, own, now.as_secs()), Ok(()), "{kind:?}");
            let ended = check(&bundle, own, now.as_secs() + 1_800).unwrap_err().to_string();
            assert!(ended.contains("rcgen self signed cert ended at"), "{ended}");
        }
        // Under the same name by another key.
        let other = Root::of(KeyPair::generate_for(kind).unwrap());
        let foreign = listed(&root.der, vec![list(&other, &[], now.as_secs())]);
        assert!(check(&foreign, &own, now.as_secs()).unwrap_err().to_string().contains("is not signed with"));
    }
}

/// A root on P-256 and its list, both ecdsa-with-SHA512, as `openssl ca -gencrl -md sha512` makes them.
const P256_SHA512: &[u8] = b"\
-----BEGIN CERTIFICATE-----
MIIBkTCCATegAwIBAgIUEGFxXuibp6aiko811WMx9spYSjUwCgYIKoZIzj0EAwQw
FTETMBEGA1UEAwwKcHJpbWUyNTZ2MTAgFw0yNjExMjgxODQ4NTZaGA8yMDgxMDgz
MTE4NDg1NlowFTETMBEGA1UEAwwKcHJpbWUyNTZ2MTBZMBMGByqGSM49AgEGCCqG
SM49AwEHA0IABHIW0baXlgT0xnTMd+QqucWZFXdbUm9CBh24Lm+vaBt1dRWxhpiX
7+7aZsECYtR+i47jOI/xvLCUC1buDRGdycajYzBhMB0GA1UdDgQWBBSIyPivux6e
J/nYbwjsQ4tHsNzzAjAfBgNVHSMEGDAWgBSIyPivux6eJ/nYbwjsQ4tHsNzzAjAP
BgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwIBBjAKBggqhkjOPQQDBANIADBF
AiEA6c96KHpho/gqvqLhYzEwgaQGCYeFm7C8KRmaN0qwwyoCICyaGg6N7EZgrPDl
wY1b7wYhRdp/sdfg5AXYX4khoa9a
-----END CERTIFICATE-----
-----BEGIN X509 CRL-----
MIHQMHcCAQEwCgYIKoZIzj0EAwQwFTETMBEGA1UEAwwKcHJpbWUyNTZ2MRcNMjYx
MTI4MTg0ODU2WhgPMjA4MTA4MzExODQ4NTZaoC8wLTAfBgNVHSMEGDAWgBSIyPiv
ux6eJ/nYbwjsQ4tHsNzzAjAKBgNVHRQEAwIBATAKBggqhkjOPQQDBANJADBGAiEA
0FT7z1j9fJW0iEqYvtCHma9D26RsfUgpdt9FC+9zTCACIQCoKGe2XH3cwteaWXq2
miuDFCRLs6kfTkOayML5TqmEFQ==
-----END X509 CRL-----
";

#[test]
fn s68_a_list_whose_hash_is_longer_than_its_key_can_follow_another() {
    let root = CertificateDer::from_pem_slice(P256_SHA512).unwrap();
    let list = CertificateRevocationListDer::from_pem_slice(P256_SHA512).unwrap();
    let bundle = listed(&root, vec![list.to_vec()]);
    let end = 3_523_891_736;
    assert_eq!(check(&bundle, &[], end - 1), Ok(()));
    assert!(check(&bundle, &[], end).unwrap_err().to_string().contains(&format!("CN=prime256v1 ended at {end}")));
    let narrow: Vec<_> = provider().signature_verification_algorithms.all.iter().copied().take(2).collect();
    let untaken = bundle.check_revocation_lists(&[], &narrow, 0).unwrap_err().to_string();
    assert!(untaken.contains("by an algorithm that is not taken here"), "what the provider does not have: {untaken}");
}

#[test]
fn bundles_are_equal_in_whatever_order() {
    let at = UnixTime::now().as_secs();
    let (one, other) = (Root::new(), Root::new());
    let lists = [list(&one, &[], at), list(&other, &[], at)];
    let bundle = |roots: &[&Root], lists: &[&Vec<u8>]| {
        let bundle = TrustBundle::new(roots.iter().map(|root| root.der.clone())).unwrap();
        bundle.with_revocation_lists(lists.iter().map(|list| (*list).clone()).collect()).unwrap()
    };
    let all = bundle(&[&one, &other], &[&lists[0], &lists[1]]);
    assert_eq!(all, bundle(&[&other, &one], &[&lists[1], &lists[0]]));
    for less in [
        bundle(&[&one, &one], &[&lists[0], &lists[1]]),
        bundle(&[&one, &other], &[&lists[0]]),
        bundle(&[&one, &other], &[]),
    ] {
        assert_ne!(all, less, "the control");
        assert_ne!(less, all, "the control");
    }
}

#[test]
fn what_is_no_signed_thing_is_signed_by_nobody() {
    let algorithms = provider().signature_verification_algorithms.all;
    let root = CertificateDer::from_pem_slice(P256_SHA512).unwrap();
    let key = webpki::anchor_from_trusted_cert(&root).unwrap().subject_public_key_info.to_vec();
    let length = u8::try_from(key.len()).unwrap();
    let key = [&[0x30, length][..], &key].concat();
    assert!(is_signed_with(&root, &key, algorithms), "the control");
    for cut in 0..root.len() {
        assert!(!is_signed_with(&root[..cut], &key, algorithms));
    }
    for cut in 0..key.len() {
        assert!(!is_signed_with(&root, &key[..cut], algorithms));
    }
    for at in 0..root.len() {
        let mut changed = root.to_vec();
        changed[at] ^= 1;
        assert!(!is_signed_with(&changed, &key, algorithms), "byte {at}");
    }
}
