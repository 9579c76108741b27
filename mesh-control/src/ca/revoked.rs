//! The operator's revocation lists (`ca-crl.pem`): what of them can be put in force.
//!
//! With a list in force a peer of whom no list speaks is refused, so one that is of somebody else, or of no use to
//! verify with, would shut the mesh down. Such a file is refused here, where the last good one still is.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::material::parse;

/// Bytes of the file: a message to a member holds all of it.
const MOST: usize = 32 << 20;

/// Lists that speak of everything that the authority signs with.
#[derive(Default)]
pub(super) struct RevocationLists {
    /// DER.
    pub(super) lists: Vec<Vec<u8>>,
    /// When the first of them ends, seconds since the Unix epoch; nobody is let in by it after that.
    pub(super) end: Option<u64>,
}

impl RevocationLists {
    /// Reads the file; none = nobody was taken back. `issuers` is what signs and all that is above it, root included.
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
        if pem.len() > MOST {
            return Err(format!("it has {} bytes; at most {MOST} can be told to members", pem.len()));
        }
        let read = |der| match CertificateRevocationList::from_der(der) {
            Ok(([], list)) => Ok(list),
            Ok(_) => Err("a list is followed by other bytes".to_owned()),
            Err(e) => Err(format!("a list cannot be read: {e}")),
        };
        let lists = ders.iter().map(|der| read(der)).collect::<Result<Vec<_>, _>>()?;
        for issuer in issuers {
            let issuer = parse(issuer)?;
            // Peers take the first list of that name, so it has to hold.
            let list = lists.iter().find(|list| list.issuer() == issuer.subject());
            let list = list.ok_or_else(|| {
                format!("no list in it is of {}, so that all whom that one signed would be refused", issuer.subject())
            })?;
            list.verify_signature(issuer.public_key())
                .map_err(|_| format!("its list of {} is not signed with that one's key", issuer.subject()))?;
        }
        let end = |list: &CertificateRevocationList<'_>| u64::try_from(list.next_update()?.timestamp()).ok();
        let end = lists.iter().filter_map(end).min();
        drop(lists);
        Ok(Self { lists: ders, end })
    }
}
