//! Certificates in files, for peers that take them from there: a stock Envoy or gRPC process.

use std::path::Path;
use std::time::Duration;

use mesh_core::id::SpiffeId;
use rcgen::KeyPair;

use super::{CertificateAuthority, IssueError};
use crate::state_dir::{StateDir, StateError};

/// Why the files are not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// The certificate could not be signed.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] StateError),
}

impl CertificateAuthority {
    /// Makes a key (ECDSA P-256) and a certificate for `id` and writes `key.pem`, `cert.pem` and `root.pem` into
    /// a directory, which is made (mode 0700) where missing. Each file is replaced as a whole, the key
    /// first. The life is `wished`, kept within [`CertificateLife`](super::CertificateLife).
    ///
    /// # Errors
    /// `id` is of another trust domain, or a file cannot be written.
    pub fn issue_files(&self, id: &SpiffeId, wished: Option<Duration>, out: &Path) -> Result<(), FilesError> {
        let failed = |e: rcgen::Error| IssueError::Signing { id: id.clone(), reason: e.to_string() };
        let key = KeyPair::generate().map_err(failed)?;
        let issued = self.sign(&key, id, Vec::new(), wished)?;
        let directory = StateDir::open(out)?;
        directory.write("root.pem", self.root_pem.as_bytes())?;
        directory.write("key.pem", key.serialize_pem().as_bytes())?;
        // The root alone signs, and peers have it: the leaf is the whole chain.
        directory.write("cert.pem", issued.chain_pem[0].as_bytes())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use mesh_core::id::TrustDomain;
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::super::CertificateLife;
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn key_and_certificate_of_the_files_belong_together_and_name_the_identity() {
        let home = tempfile::tempdir().unwrap();
        let (state, out) = (home.path().join("state"), home.path().join("a/certs"));
        let domain = TrustDomain::new("cluster.local").unwrap();
        let authority =
            CertificateAuthority::open(&state, domain, CertificateLife::default(), Clock::system()).unwrap();
        let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/edge".parse().unwrap();
        // The second time replaces the first.
        for _ in 0..2 {
            authority.issue_files(&id, None, &out).unwrap();
            let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
            let leaf = CertificateDer::from_pem_slice(read("cert.pem").as_bytes()).unwrap();
            let key = KeyPair::from_pem(&read("key.pem")).unwrap();
            let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
            assert_eq!(parsed.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&key));
            assert_eq!(mesh_core::identity::peer_spiffe_id(&leaf).unwrap(), id);
            assert_eq!(read("root.pem"), fs::read_to_string(authority.root_path()).unwrap());
        }
        let foreign: SpiffeId = "spiffe://elsewhere/ns/default/sa/edge".parse().unwrap();
        assert!(authority.issue_files(&foreign, None, &out).is_err());
    }
}
