//! Entry points for the fuzzer and for the replay of its corpora; not a part of the interface.
//!
//! No bytes make a reader panic, and what is accepted says what the bytes say.

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::UnixTime;

use super::{TrustBundle, TrustBundles, Usage, certificates_of_der, peer_spiffe_id, verify_svid};
use crate::id::SpiffeId;

/// Reads a SPIFFE ID.
pub fn spiffe_id(text: &str) {
    let Ok(id) = text.parse::<SpiffeId>() else { return };
    assert_eq!(id.as_str(), text);
    assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
    assert!(text.len() <= 2_048 && id.path().len() > 1 && text.is_ascii());
}

/// Verifies a chain (DER after DER, the leaf first) by each of its certificates as the root.
pub fn svid(der: &[u8]) {
    let Ok(chain) = certificates_of_der(der) else { return };
    let named = peer_spiffe_id(&chain[0]);
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    for root in &chain {
        let (Ok(id), Ok(bundle)) = (&named, TrustBundle::new([root.clone()])) else { continue };
        let bundles = TrustBundles::single(id.trust_domain(), bundle);
        for usage in [Usage::Client, Usage::Server] {
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
            if let Ok(verified) = verify_svid(&chain, &bundles, algorithms, now, usage) {
                assert_eq!(verified, *id);
                assert!(verify_svid(&chain, &TrustBundles::default(), algorithms, now, usage).is_err());
            }
        }
    }
}

/// Reads roots, as DER after DER and as PEM.
pub fn bundle(bytes: &[u8]) {
    if let Ok(certificates) = certificates_of_der(bytes) {
        assert!(certificates.iter().flat_map(|der| der.iter()).eq(bytes));
        let _ = TrustBundle::new(certificates);
    }
    if let Ok(bundle) = TrustBundle::from_pem(bytes) {
        assert_eq!(TrustBundle::new(bundle.roots().to_vec()), Ok(bundle));
    }
}

/// Reads a revocation list of the root that signed the corpus, and asks it about a certificate that the root signed.
///
/// # Panics
/// Bytes that nobody signed keep the certificate as good as it is without a list.
pub fn crl(bytes: &[u8]) {
    let root = TrustBundle::from_pem(include_bytes!("../../corpus/bundle/one.pem")).expect("a root of the corpus");
    let chain = certificates_of_der(include_bytes!("../../corpus/svid/good")).expect("a chain of the corpus");
    let Ok(told) = root.with_revocation_lists(vec![bytes.to_vec()]) else { return };
    let domain = peer_spiffe_id(&chain[0]).expect("it has a name").trust_domain();
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
    if verify_svid(&chain, &TrustBundles::single(domain, told), algorithms, now, Usage::Client).is_ok() {
        let signed = [&include_bytes!("../../corpus/crl/none")[..], include_bytes!("../../corpus/crl/two")];
        assert!(signed.contains(&bytes), "a list of nobody's says that a certificate is good");
    }
}

#[cfg(test)]
mod tests;
