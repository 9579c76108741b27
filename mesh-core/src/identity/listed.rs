//! The signatures of revocation lists: path validation verifies that of a list for each certificate, and reads all of a long list
//! to do so, for whoever shows a certificate before proving that it is theirs. Here it is verified once: a list, its
//! key and its signature stay what they are. Refuses to know what a list says.

use std::sync::OnceLock;

use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};

use super::TrustBundle;

/// By what a list was found to be signed.
#[derive(Debug)]
pub(super) struct SignedBy {
    algorithms: [AlgorithmIdentifier; 2],
    key: Box<[u8]>,
    signature: Box<[u8]>,
}

/// An algorithm that remembers what it found of the lists of a bundle. Of anything else it remembers nothing.
#[derive(Debug)]
pub(super) struct Remembering<'b> {
    by: &'b dyn SignatureVerificationAlgorithm,
    bundle: &'b TrustBundle,
}

impl<'b> Remembering<'b> {
    pub(super) fn new(by: &'b dyn SignatureVerificationAlgorithm, bundle: &'b TrustBundle) -> Self {
        Self { by, bundle }
    }
}

impl SignatureVerificationAlgorithm for Remembering<'_> {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let found: Option<&OnceLock<SignedBy>> = self.bundle.signed_by(message);
        let algorithms = [self.by.public_key_alg_id(), self.by.signature_alg_id()];
        if let Some(by) = found.and_then(OnceLock::get)
            && by.algorithms == algorithms
            && *by.key == *key
            && *by.signature == *signature
        {
            return Ok(());
        }
        self.by.verify_signature(key, message, signature)?;
        if let Some(found) = found {
            // Two may come at once; both say the same.
            let _ = found.set(SignedBy { algorithms, key: key.into(), signature: signature.into() });
        }
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.by.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.by.signature_alg_id()
    }
}
