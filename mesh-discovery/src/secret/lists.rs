//! Revocation lists: those of before stay where the ones that come in their place are of no use, for with lists that have ended,
//! or are of somebody else, everybody is refused, and by older ones those are let in who were taken back since. And who has to be
//! told that none came.

use mesh_core::identity::{InvalidBundle, LifeLeft, ListLife, TrustBundle, newest_lists};
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm};

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
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    now: u64,
) -> Result<TrustBundle, InvalidBundle> {
    let same = lists == before;
    let newest = newest_lists(lists.clone(), before, now);
    if newest != lists {
        tracing::error!("revocation lists: one is older than the one in use, which stays until it ends");
    }
    let lists = newest;
    let newer = roots.clone().with_revocation_lists(lists);
    if before.is_empty() || same {
        return newer;
    }
    match newer.and_then(|newer| newer.check_revocation_lists(own, algorithms, now).map(|()| newer)) {
        Ok(newer) => Ok(newer),
        Err(error) => {
            tracing::error!(%error, "revocation lists: the last good ones stay in use");
            roots.with_revocation_lists(before.to_vec())
        }
    }
}

/// Tells that a list has passed a mark of its life.
pub(super) fn tell(list: &ListLife, mark: LifeLeft) {
    let (issuer, ends, percent) = (&list.issuer, list.ends, mark.percent());
    match mark {
        LifeLeft::Ample => {}
        LifeLeft::Half => {
            tracing::info!(%issuer, ends, "a revocation list has half of its life left and none has followed it yet")
        }
        LifeLeft::Quarter => tracing::warn!(
            %issuer,
            ends,
            "a revocation list has {percent} percent of its life left and none has followed it: have its issuer sign the next one"
        ),
        LifeLeft::Tenth => tracing::error!(
            %issuer,
            ends,
            "a revocation list has {percent} percent of its life left and none has followed it: when it ends, whoever its issuer \
             signed is refused"
        ),
        LifeLeft::Nothing => tracing::error!(
            %issuer,
            ends,
            "a revocation list has ended: whoever its issuer signed is refused until that one signs another, or the list is \
             taken out where it comes from (the control plane's ca-crl.pem, the SPIFFE agent, the file that the bootstrap names)"
        ),
    }
}
