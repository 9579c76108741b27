//! Roots that end soon. No verification refuses anybody for it, so nothing else would tell until what they signed is
//! renewed no more.

use super::{TrustBundle, TrustBundles, tls};

/// A root is near its end in its last 30 days, or in the last tenth of a shorter life.
const NEAR: u64 = 30 * 86_400;

/// Says of each root that ends soon once.
#[derive(Debug, Default)]
pub struct EndingRoots {
    said: Vec<u64>,
}

impl EndingRoots {
    /// The end (seconds since the Unix epoch) of the first root that is near it at `now` and that was not told of before.
    pub fn look(&mut self, bundles: &TrustBundles, now: u64) -> Option<u64> {
        let bundles = bundles.iter().map(|(_, bundle)| bundle).chain(bundles.any());
        let ends = bundles.flat_map(TrustBundle::roots).filter_map(tls::validity);
        let near = ends.filter(|(begin, end)| end.saturating_sub(now) <= NEAR.min(end.saturating_sub(*begin) / 10));
        let new = near.map(|(_, end)| end).filter(|end| !self.said.contains(end)).min()?;
        self.said.push(new);
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::sign::CertifiedKey;

    use super::*;
    use crate::id::TrustDomain;
    use crate::identity::{Identity, tests};

    const DAY: u64 = 86_400;
    const BEGIN: u64 = 20_000 * DAY;

    fn authority(days: u64) -> (CertificateParams, KeyPair) {
        let mut params = CertificateParams::default();
        let at = |seconds| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
        (params.not_before, params.not_after) = (at(BEGIN), at(BEGIN + days * DAY));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params, KeyPair::generate().unwrap())
    }

    fn root(days: u64) -> CertificateDer<'static> {
        let (params, key) = authority(days);
        params.self_signed(&key).unwrap().der().clone()
    }

    fn trusting(roots: &[&CertificateDer<'static>]) -> TrustBundles {
        let bundle = TrustBundle::new(roots.iter().copied().cloned()).unwrap();
        TrustBundles::single(TrustDomain::new("cluster.local").unwrap(), bundle)
    }

    #[test]
    fn of_each_root_that_ends_soon_it_is_told_once() {
        let (long, short) = (root(3_650), root(100));
        let mut ending = EndingRoots::default();
        let both = trusting(&[&long, &short]);
        let at = |days: u64| BEGIN + days * DAY;
        for (day, told) in [
            (0, None),
            (89, None),
            // A tenth of a hundred days.
            (90, Some(at(100))),
            (91, None),
            (3_619, None),
            (3_620, Some(at(3_650))),
            (3_621, None),
            (4_000, None),
        ] {
            assert_eq!(ending.look(&both, at(day)), told, "day {day}");
        }
        // The control: who has told nothing yet does.
        assert_eq!(EndingRoots::default().look(&trusting(&[&long]), at(3_621)), Some(at(3_650)));
        assert_eq!(EndingRoots::default().look(&trusting(&[&root(7_300)]), at(3_621)), None);
    }

    #[test]
    fn the_end_of_what_signed_a_certificate_is_known() {
        let (params, key) = authority(100);
        let intermediate = params.self_signed(&key).unwrap().der().clone();
        let own = KeyPair::generate().unwrap();
        let leaf = tests::leaf(&[tests::REVIEWS]).signed_by(&own, &Issuer::new(params, key)).unwrap();
        let identity = |chain: Vec<CertificateDer<'static>>| {
            let key = PrivateKeyDer::Pkcs8(own.serialize_der().into());
            let certified = CertifiedKey::from_der(chain, key, &tests::provider()).unwrap();
            Identity::new(certified, TrustBundles::default(), 1).unwrap()
        };
        let whole = identity(vec![leaf.der().clone(), intermediate]);
        assert_eq!(whole.issuer_not_after(), Some(BEGIN + 100 * DAY));
        assert_eq!(identity(vec![leaf.der().clone()]).issuer_not_after(), None, "a root signed it");
    }
}
