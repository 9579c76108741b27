//! The mark of certificates that began with a join token: given for one, or renewed from one that was.
//!
//! Where the tokens of service accounts are reviewed, a certificate by itself is no proof, for it would outlive its pod.
//! Who joined with a join token has no pod and no other token: those certificates say so themselves, so that it
//! is known after a restart, and to every control plane that signs with this authority.

use rcgen::CustomExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Of the arc in which everybody may take numbers (ITU-T X.667). Not critical: other verifiers pass it over.
const MARK: [u64; 3] = [2, 25, 0x006d_6573_685f_6a6f];
/// NULL: it says all by being there.
const NULL: [u8; 2] = [5, 0];

/// The mark, for a certificate to be signed.
pub(super) fn mark() -> CustomExtension {
    CustomExtension::from_oid_content(&MARK, NULL.to_vec())
}

/// Whether a certificate that was verified has it.
pub(crate) fn is_marked(leaf: &[u8]) -> bool {
    let mark = MARK.map(|arc| arc.to_string()).join(".");
    let read = X509Certificate::from_der(leaf).ok();
    read.is_some_and(|(_, leaf)| leaf.extensions().iter().any(|extension| extension.oid.to_id_string() == mark))
}
