//! Entry points for the fuzzer and for the replay of its corpora; not a part of the interface.
//!
//! No bytes make a reader panic, and what is accepted is what a plain reader, which shares no line with the one that is
//! used, takes for it.

mod plain;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::UnixTime;

use super::{TrustBundle, TrustBundles, Usage, certificates_of_der, peer_spiffe_id, verify_svid};
use crate::id::{SpiffeId, TrustDomain};

/// The moment at which the corpora are judged.
const NOW: u64 = 1_800_000_000;

/// Reads a SPIFFE ID.
///
/// # Panics
/// The plain reader says otherwise.
pub fn spiffe_id(text: &str) {
    let read = text.parse::<SpiffeId>().ok();
    let domain = read.as_ref().map(SpiffeId::trust_domain);
    let parts = read.as_ref().zip(domain.as_ref()).map(|(id, domain)| (domain.as_str(), id.path()));
    assert_eq!(parts, plain::spiffe_id(text), "{text:?}");
    assert!(read.is_none_or(|id| id.as_str() == text));
}

/// Verifies a chain (DER after DER, the leaf first) by each of its certificates as the root.
///
/// # Panics
/// Somebody is let in whom the plain reader does not take for that workload.
pub fn svid(der: &[u8]) {
    whose(der);
}

/// The workload that is let in by the last one as the root; what the others say is held to the same.
fn whose(der: &[u8]) -> Option<SpiffeId> {
    let chain = certificates_of_der(der).ok()?;
    let said = plain::certificate(&chain[0]);
    let named = said.as_ref().and_then(|said| said.workload(NOW));
    let domain = named.and_then(plain::spiffe_id).and_then(|(domain, _)| TrustDomain::new(domain).ok());
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW));
    let mut found = None;
    for (at, root) in chain.iter().enumerate() {
        let Ok(bundle) = TrustBundle::new([root.clone()]) else { continue };
        let own = domain.clone().map(|domain| TrustBundles::single(domain, bundle.clone()));
        for bundles in own.into_iter().chain([TrustBundles::of_any_domain(bundle)]) {
            for usage in [Usage::Client, Usage::Server] {
                let Ok(verified) = verify_svid(&chain, &bundles, algorithms, now, usage) else { continue };
                assert_eq!(Some(verified.as_str()), named, "{said:?}");
                assert!(verify_svid(&chain, &TrustBundles::default(), algorithms, now, usage).is_err());
                found = found.or((at + 1 == chain.len()).then_some(verified));
            }
        }
    }
    found
}

/// Reads roots, as DER after DER and as PEM.
///
/// # Panics
/// A root is lost, or another one is read, than the plain reader finds.
pub fn bundle(bytes: &[u8]) {
    roots(bytes);
}

/// How many roots there are.
fn roots(bytes: &[u8]) -> Option<usize> {
    let of_der = certificates_of_der(bytes).ok().and_then(|certificates| {
        assert!(certificates.iter().flat_map(|der| der.iter()).eq(bytes));
        TrustBundle::new(certificates).ok()
    });
    let of_pem = TrustBundle::from_pem(bytes).ok();
    if let Some(bundle) = &of_pem {
        let read: Vec<_> = bundle.roots().iter().map(|root| root.to_vec()).collect();
        assert_eq!(Some(read), plain::pem(bytes));
        assert_eq!(TrustBundle::new(bundle.roots().to_vec()).as_ref(), Ok(bundle));
    }
    let bundle = of_der.or(of_pem)?;
    assert!(bundle.roots().iter().all(|root| plain::is_sequence(root)), "a root is no certificate");
    Some(bundle.roots().len())
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
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW));
    if verify_svid(&chain, &TrustBundles::single(domain, told), algorithms, now, Usage::Client).is_ok() {
        let signed = [&include_bytes!("../../corpus/crl/none")[..], include_bytes!("../../corpus/crl/two")];
        assert!(signed.contains(&bytes), "a list of nobody's says that a certificate is good");
    }
}

#[cfg(test)]
mod tests;
