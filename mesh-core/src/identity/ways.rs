//! How many ways a chain could be put together. Path building goes by names and goes every way there is, so that ten
//! certificates of one name, of which none leads to a root, cost it two hundred thousand steps, and whoever shows them has
//! proved nothing yet. Refuses to know what makes a certificate good.

use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use smallvec::SmallVec;
use webpki::EndEntityCert;

/// Steps from a certificate to one that may have signed it, on all ways together. Four certificates of one name make 64, five
/// 325; of names of their own they make one each. Each step looks at all certificates, so there are no more than this either.
const MAX_STEPS: usize = 100;
/// So few cannot make more.
const FEW: usize = 4;

/// Refuses a chain that path building would have to take more than [`MAX_STEPS`] on: as it does by itself, after 200,000.
pub(super) fn check(leaf: &EndEntityCert<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), webpki::Error> {
    if intermediates.len() <= FEW {
        return Ok(());
    }
    if intermediates.len() > MAX_STEPS {
        return Err(webpki::Error::MaximumPathBuildCallsExceeded);
    }
    // What cannot be read is passed over there, too.
    let read = intermediates.iter().filter_map(|der| EndEntityCert::try_from(der).ok());
    let read: Vec<_> = read.map(|cert| (cert.subject_public_key_info(), cert)).collect();
    let all: Vec<_> =
        read.iter().map(|(key, cert)| Above { subject: cert.subject(), issuer: cert.issuer(), key }).collect();
    let mut left = MAX_STEPS;
    match goes_on(leaf.issuer(), &all, &mut SmallVec::new(), &mut left) {
        true => Ok(()),
        false => Err(webpki::Error::MaximumPathBuildCallsExceeded),
    }
}

/// A certificate that is not the leaf.
struct Above<'c> {
    subject: &'c [u8],
    issuer: &'c [u8],
    key: &'c SubjectPublicKeyInfoDer<'static>,
}

impl Above<'_> {
    /// The same authority, which stands on a way once (RFC 4158, 5.2).
    fn is(&self, other: &Self) -> bool {
        self.subject == other.subject && self.key == other.key
    }
}

/// Goes every way on from a certificate that `issuer` signed; whether the steps were enough.
fn goes_on<'c>(issuer: &[u8], all: &'c [Above<'c>], way: &mut SmallVec<[&'c Above<'c>; 8]>, left: &mut usize) -> bool {
    for next in all.iter().filter(|next| next.subject == issuer) {
        if way.iter().any(|held| held.is(next)) {
            continue;
        }
        let Some(fewer) = left.checked_sub(1) else { return false };
        *left = fewer;
        way.push(next);
        if !goes_on(next.issuer, all, way, left) {
            return false;
        }
        way.pop();
    }
    true
}
