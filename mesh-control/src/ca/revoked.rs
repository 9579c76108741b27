//! The operator's revocation lists (`ca-crl.pem`): what of them can be put in force.
//!
//! With a list in force a peer of whom no list speaks is refused, so one that is of somebody else, or of no use to
//! verify with, would shut the mesh down. Such a file is refused here, where the last good one still is.

use std::time::Duration;

use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, SerialNumber, date_time_ymd};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::BACK_DATE;
use super::key::Key;
use super::material::{is_signed_with, parse};

/// Lists that tell of everything that is trusted.
#[derive(Default)]
pub(super) struct RevocationLists {
    /// DER.
    pub(super) lists: Vec<Vec<u8>>,
    /// When the first of those that are needed ends, seconds since the Unix epoch; nobody is let in by it after that.
    pub(super) end: Option<u64>,
}

impl RevocationLists {
    /// Reads the file; none = nobody was taken back. A list of each of `issuers` has to be there: what signs, all that is above it,
    /// and the roots that are trusted beside.
    pub(super) fn read(pem: Option<&[u8]>, issuers: &[CertificateDer<'_>]) -> Result<Self, String> {
        let Some(pem) = pem else { return Ok(Self::default()) };
        let ders: Vec<_> = CertificateRevocationListDer::pem_slice_iter(pem)
            .map(|list| list.map(|list| list.to_vec()))
            .collect::<Result<_, _>>()
            .map_err(|e| format!("it is not PEM: {e}"))?;
        // Without a list everybody is good: a file that was cut short must not mean that.
        if ders.is_empty() {
            return Err("it holds no revocation list; remove it if there is none".to_owned());
        }
        let read = |der| match CertificateRevocationList::from_der(der) {
            Ok(([], list)) => Ok(list),
            Ok(_) => Err("a list is followed by other bytes".to_owned()),
            Err(e) => Err(format!("a list cannot be read: {e}")),
        };
        let lists = ders.iter().map(|der| read(der)).collect::<Result<Vec<_>, _>>()?;
        let mut end = None;
        for issuer in issuers {
            let issuer = parse(issuer)?;
            // Peers take the first list of that name, so it has to hold.
            let list = lists.iter().zip(&ders).find(|(list, _)| list.issuer() == issuer.subject());
            let (list, der) = list.ok_or_else(|| {
                format!("no list in it is of {}, so that all whom that one signed would be refused", issuer.subject())
            })?;
            if !is_signed_with(der, issuer.public_key()) {
                return Err(format!("its list of {} is not signed with that one's key", issuer.subject()));
            }
            let ends = list.next_update().and_then(|time| u64::try_from(time.timestamp()).ok());
            end = end.into_iter().chain(ends).min();
        }
        drop(lists);
        Ok(Self { lists: ders, end })
    }
}

/// A list (PEM) of nobody, of a root that is new: where there are lists, what a root without one signs is refused.
pub(super) fn empty_list(root: &str, key: Key, now: u64, end: u64) -> Result<String, rcgen::Error> {
    let at = |seconds: u64| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    let list = CertificateRevocationListParams {
        this_update: at(now.saturating_sub(BACK_DATE.as_secs())),
        next_update: at(end),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(&Issuer::from_ca_cert_pem(root, key)?)?.pem()
}
