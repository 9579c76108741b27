//! Revocation lists that come in place of others: those of before stay where the new ones are of no use, for with lists that
//! have ended, or are of somebody else, everybody is refused.

use mesh_core::identity::{InvalidBundle, TrustBundle};
use rustls::pki_types::CertificateDer;

/// `roots` with `lists`, if they can be used, else with those of `before`. Where there are none before, there is nothing
/// better: lists that have ended then keep everybody out, which is what somebody meant who has some.
///
/// # Errors
/// They cannot be read, and there were none before.
pub(super) fn newer(
    roots: TrustBundle,
    lists: Vec<Vec<u8>>,
    before: &[Vec<u8>],
    own: &[CertificateDer<'_>],
    now: u64,
) -> Result<TrustBundle, InvalidBundle> {
    let same = lists == before;
    let newer = roots.clone().with_revocation_lists(lists);
    if before.is_empty() || same {
        return newer;
    }
    match newer.and_then(|newer| newer.check_revocation_lists(own, now).map(|()| newer)) {
        Ok(newer) => Ok(newer),
        Err(error) => {
            tracing::error!(%error, "revocation lists: the last good ones stay in use");
            roots.with_revocation_lists(before.to_vec())
        }
    }
}
