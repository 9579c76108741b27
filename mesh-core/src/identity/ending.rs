//! Roots that end soon, and certificates and revocation lists that were not renewed. No verification refuses anybody before the
//! end, so nothing else would tell until then.

use x509_parser::num_bigint::BigUint;
use x509_parser::oid_registry::{OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_ISSUER_DISTRIBUTION_POINT};
use x509_parser::prelude::{ASN1Time, CertificateRevocationList, FromDer};

use super::{Identity, TrustBundle, TrustBundles, tls};

/// A root is near its end in its last 60 days, or in the last tenth of a life below 600 (`linkerd check` warns at 60, too).
const NEAR: u64 = 60 * 86_400;

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

/// How much of a certificate's life is left, by the marks at which somebody should hear that it was not renewed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LifeLeft {
    /// More than half.
    #[default]
    Ample,
    /// Half or less.
    Half,
    /// A quarter or less.
    Quarter,
    /// A tenth or less.
    Tenth,
    /// None: it has ended.
    Nothing,
}

impl LifeLeft {
    /// Every one, by falling life.
    pub const ALL: [Self; 5] = [Self::Ample, Self::Half, Self::Quarter, Self::Tenth, Self::Nothing];

    /// What is left at `now` of a life, all in seconds since the Unix epoch.
    pub fn of(not_before: u64, not_after: u64, now: u64) -> Self {
        let life = u128::from(not_after.saturating_sub(not_before).max(1));
        match u128::from(not_after.saturating_sub(now)) {
            0 => Self::Nothing,
            left if left * 10 <= life => Self::Tenth,
            left if left * 4 <= life => Self::Quarter,
            left if left * 2 <= life => Self::Half,
            _ => Self::Ample,
        }
    }

    /// The mark: so much is left at most, in percent.
    pub fn percent(self) -> u8 {
        match self {
            Self::Ample => 100,
            Self::Half => 50,
            Self::Quarter => 25,
            Self::Tenth => 10,
            Self::Nothing => 0,
        }
    }
}

/// Says at each mark of a certificate's life, once, that it was not renewed.
#[derive(Debug, Default)]
pub struct EndingLeaf {
    of: Option<(u64, u64)>,
    said: LifeLeft,
}

impl EndingLeaf {
    /// The mark that the certificate of `identity` has passed at `now` (seconds since the Unix epoch) since the last look;
    /// another certificate begins anew.
    pub fn look(&mut self, identity: &Identity, now: u64) -> Option<LifeLeft> {
        let life = (identity.not_before(), identity.not_after());
        if self.of.replace(life) != Some(life) {
            self.said = LifeLeft::Ample;
        }
        let left = LifeLeft::of(life.0, life.1, now);
        (left > self.said).then(|| {
            self.said = left;
            left
        })
    }

    /// The mark that it said last.
    pub fn said(&self) -> LifeLeft {
        self.said
    }
}

/// Of whom a revocation list tells, and its life in seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListLife {
    /// Who signed it, and the certificates of which it tells.
    pub issuer: Box<str>,
    /// `thisUpdate`.
    pub begins: u64,
    /// `nextUpdate`: after that, everybody of whom it tells is refused.
    pub ends: u64,
}

impl ListLife {
    pub(super) fn of(list: &[u8]) -> Option<Self> {
        let (_, list) = CertificateRevocationList::from_der(list).ok()?;
        let seconds = |time: ASN1Time| u64::try_from(time.timestamp()).ok();
        let (begins, ends) = (seconds(list.last_update())?, seconds(list.next_update()?)?);
        Some(Self { issuer: list.issuer().to_string().into(), begins, ends })
    }

    /// How much of it is left at `now`.
    pub fn left(&self, now: u64) -> LifeLeft {
        LifeLeft::of(self.begins, self.ends, now)
    }
}

/// `lists` (DER) with those of `before` in place of older ones, which would let in again whoever was taken back since. Of each
/// authority, key and scope (RFC 5280, 5.2.1 and 5.2.5) the first one counts, as it does to peers: that of `before` while it has
/// not ended at `now` (seconds since the Unix epoch), unless it says that it was signed later than that. Older is what is so by
/// `thisUpdate`, and not newer by its number. One that has ended is left as it is, for nobody takes it; one that does not name its
/// key (AuthorityKeyIdentifier) is compared with none.
pub fn newest_lists(mut lists: Vec<Vec<u8>>, before: &[Vec<u8>], now: u64) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    for known in before {
        let Some(of) = Issued::of(known).filter(|of| !seen.contains(&of.about)) else { continue };
        let holds = of.begins <= now.saturating_add(SKEW) && of.ends > now;
        let issued = lists.iter().map(|list| Issued::of(list)).enumerate();
        let first = issued.filter_map(|(at, list)| Some((at, list?))).find(|(_, list)| list.about == of.about);
        if let Some((at, list)) = first
            && holds
            && list.is_older_than(&of)
            && list.ends > now
        {
            lists[at].clone_from(known);
        }
        seen.push(of.about);
    }
    lists
}

/// By how much clocks of authorities may be fast.
const SKEW: u64 = 300;

/// When a list was signed, and about what.
struct Issued {
    about: (Vec<u8>, Vec<u8>, Option<Vec<u8>>),
    begins: u64,
    ends: u64,
    number: Option<BigUint>,
}

impl Issued {
    /// `None` if it cannot be read, never ends, or does not name its key.
    fn of(der: &[u8]) -> Option<Self> {
        let (_, list) = CertificateRevocationList::from_der(der).ok()?;
        let told = |oid| list.extensions().iter().find(|told| told.oid == oid).map(|told| told.value.to_vec());
        let seconds = |time: ASN1Time| u64::try_from(time.timestamp()).ok();
        let key = told(OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER)?;
        Some(Self {
            about: (list.issuer().as_raw().to_vec(), key, told(OID_X509_EXT_ISSUER_DISTRIBUTION_POINT)),
            begins: seconds(list.last_update())?,
            ends: seconds(list.next_update()?)?,
            number: list.crl_number().cloned(),
        })
    }

    fn is_older_than(&self, other: &Self) -> bool {
        match (&self.number, &other.number) {
            (Some(own), Some(others)) => (self.begins, own) < (other.begins, others) && own <= others,
            _ => self.begins < other.begins,
        }
    }
}

/// Says at each mark of a revocation list's life, once, that none has come in its place.
#[derive(Debug, Default)]
pub struct EndingLists {
    said: Vec<(ListLife, LifeLeft)>,
}

impl EndingLists {
    /// The lists in `trusted` that have passed a mark at `now` since the last look, with that mark.
    pub fn look<'t>(
        &mut self,
        trusted: impl IntoIterator<Item = &'t TrustBundles>,
        now: u64,
    ) -> Vec<(ListLife, LifeLeft)> {
        let (before, mut passed) = (std::mem::take(&mut self.said), Vec::new());
        for list in trusted.into_iter().flat_map(TrustBundles::list_lives) {
            if self.said.iter().any(|(known, _)| known == list) {
                continue;
            }
            let said = before.iter().find(|(known, _)| known == list).map_or(LifeLeft::Ample, |(_, said)| *said);
            let left = list.left(now).max(said);
            if left > said {
                passed.push((list.clone(), left));
            }
            self.said.push((list.clone(), left));
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
        SerialNumber, date_time_ymd,
    };
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
            (3_589, None),
            (3_590, Some(at(3_650))),
            (3_591, None),
            (4_000, None),
        ] {
            assert_eq!(ending.look(&both, at(day)), told, "day {day}");
        }
        // The control: who has told nothing yet does.
        assert_eq!(EndingRoots::default().look(&trusting(&[&long]), at(3_591)), Some(at(3_650)));
        assert_eq!(EndingRoots::default().look(&trusting(&[&root(7_300)]), at(3_591)), None);
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

    #[test]
    fn at_each_mark_of_a_revocation_lists_life_it_is_told_once() {
        let (params, key) = authority(3_650);
        let root = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(params, key);
        let at = |day: u64| date_time_ymd(1970, 1, 1) + Duration::from_secs(BEGIN + day * DAY);
        let list = |from: u64, to: u64| {
            let params = CertificateRevocationListParams {
                this_update: at(from),
                next_update: at(to),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: Vec::new(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            params.signed_by(&issuer).unwrap().der().to_vec()
        };
        let with = |lists: Vec<Vec<u8>>| {
            let bundle = TrustBundle::new([root.clone()]).unwrap().with_revocation_lists(lists).unwrap();
            TrustBundles::single(TrustDomain::new("cluster.local").unwrap(), bundle)
        };
        let (none, old, both) = (with(vec![]), with(vec![list(0, 100)]), with(vec![list(0, 100), list(80, 180)]));
        assert_eq!((none.lists_end(), old.lists_end()), (None, Some(BEGIN + 100 * DAY)));
        assert_eq!(both.lists_end(), old.lists_end());
        let mut ending = EndingLists::default();
        for (trusted, day, told) in [
            (&none, 99, vec![]),
            (&old, 49, vec![]),
            (&old, 50, vec![(100, LifeLeft::Half)]),
            (&old, 74, vec![]),
            // Nobody looked for long; the clock was set back.
            (&old, 91, vec![(100, LifeLeft::Tenth)]),
            (&old, 20, vec![]),
            (&both, 99, vec![]),
            (&both, 130, vec![(100, LifeLeft::Nothing), (180, LifeLeft::Half)]),
            (&both, 131, vec![]),
        ] {
            // The roots of two sources may have the same lists.
            let passed = ending.look([trusted, trusted], BEGIN + day * DAY);
            let passed: Vec<_> = passed.iter().map(|(list, left)| ((list.ends - BEGIN) / DAY, *left)).collect();
            assert_eq!(passed, told, "day {day}");
        }
        let (named, _) = &EndingLists::default().look([&old], BEGIN + 100 * DAY)[0];
        assert!(named.issuer.contains("CN="), "{}", named.issuer);
    }

    #[test]
    fn at_each_mark_of_a_life_that_is_not_renewed_it_is_told_once() {
        let (params, key) = authority(100);
        let issuer = Issuer::new(params, key);
        let of = |begin: u64, days: u64| {
            let own = KeyPair::generate().unwrap();
            let mut params = tests::leaf(&[tests::REVIEWS]);
            let at = |seconds| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
            (params.not_before, params.not_after) = (at(begin), at(begin + days * DAY));
            let chain = vec![params.signed_by(&own, &issuer).unwrap().der().clone()];
            let key = PrivateKeyDer::Pkcs8(own.serialize_der().into());
            let certified = CertifiedKey::from_der(chain, key, &tests::provider()).unwrap();
            Identity::new(certified, TrustBundles::default(), 1).unwrap()
        };
        let (old, new) = (of(BEGIN, 100), of(BEGIN + 80 * DAY, 100));
        let mut ending = EndingLeaf::default();
        for (identity, day, told) in [
            (&old, 0, None),
            (&old, 49, None),
            (&old, 50, Some(LifeLeft::Half)),
            (&old, 74, None),
            (&old, 75, Some(LifeLeft::Quarter)),
            // The control: one that is new.
            (&new, 90, None),
            (&new, 130, Some(LifeLeft::Half)),
            // Nobody looked for long, or what is read is old.
            (&new, 171, Some(LifeLeft::Tenth)),
            (&new, 179, None),
            (&new, 180, Some(LifeLeft::Nothing)),
            (&new, 400, None),
            (&old, 400, Some(LifeLeft::Nothing)),
        ] {
            assert_eq!(ending.look(identity, BEGIN + day * DAY), told, "day {day}");
        }
    }
}
