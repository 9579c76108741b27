//! Certificates in files, for peers that take them from there: a stock Envoy or gRPC process.
//!
//! ```text
//! key.pem cert.pem root.pem      for everybody
//! default.yaml ROOTCA.yaml       the same as secrets of an Envoy
//! ```

use std::path::Path;
use std::time::Duration;

use mesh_core::id::SpiffeId;
use serde::Serialize;
use zeroize::Zeroizing;

use super::key::Key;
use super::{CertificateAuthority, IssueError};
use crate::state_dir::{StateDir, StateError};

/// Type of Envoy's secrets.
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

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
    /// a directory, which is made (mode 0700) where missing, with `default.yaml` and `ROOTCA.yaml` for an Envoy.
    /// Each file is replaced as a whole. The life is `wished`, kept within
    /// [`CertificateLife`](super::CertificateLife).
    ///
    /// # Errors
    /// `id` is of another trust domain, or a file cannot be written.
    pub fn issue_files(&self, id: &SpiffeId, wished: Option<Duration>, out: &Path) -> Result<(), FilesError> {
        let failed = |e: rcgen::Error| IssueError::Signing { id: id.clone(), reason: e.to_string() };
        let key = Key::generate().map_err(failed)?;
        let issued = self.sign(&key, id, Vec::new(), wished, false)?;
        // Peers have the roots: the chain ends below them.
        let (root, chain) = issued.chain_pem.split_last().expect("a chain ends with its roots");
        let (key, chain) = (key.to_pem(), &chain.concat());
        let directory = StateDir::open(out)?;
        directory.write("root.pem", root.as_bytes())?;
        directory.write("key.pem", key.as_bytes())?;
        directory.write("cert.pem", chain.as_bytes())?;
        let text = |inline_string| Text { inline_string };
        let own = Content::TlsCertificate { certificate_chain: text(chain), private_key: text(&key) };
        directory.write("ROOTCA.yaml", &secret("ROOTCA", Content::ValidationContext { trusted_ca: text(root) }))?;
        directory.write("default.yaml", &secret("default", own))?;
        Ok(())
    }
}

/// A file of Envoy's with one secret, in JSON, which is YAML too. It holds the texts themselves and no names of
/// files: key and certificate change together.
fn secret(name: &str, content: Content<'_>) -> Zeroizing<Vec<u8>> {
    // With room for all of it, each line's end as two: a buffer that grows leaves copies of the key behind.
    let room = match &content {
        Content::TlsCertificate { certificate_chain: Text { inline_string: chain }, private_key } => {
            chain.len() + private_key.inline_string.len()
        }
        Content::ValidationContext { trusted_ca } => trusted_ca.inline_string.len(),
    };
    let mut written = Zeroizing::new(Vec::with_capacity(2 * room + 1024));
    let resources = [Secret { kind: SECRET, name, content }];
    serde_json::to_writer(&mut *written, &Resources { resources }).expect("text is always JSON");
    written
}

#[derive(Serialize)]
struct Resources<'t> {
    resources: [Secret<'t>; 1],
}

#[derive(Serialize)]
struct Secret<'t> {
    #[serde(rename = "@type")]
    kind: &'static str,
    name: &'t str,
    #[serde(flatten)]
    content: Content<'t>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Content<'t> {
    TlsCertificate { certificate_chain: Text<'t>, private_key: Text<'t> },
    ValidationContext { trusted_ca: Text<'t> },
}

#[derive(Serialize)]
struct Text<'t> {
    inline_string: &'t str,
}

#[cfg(test)]
mod tests {
    use std::fs;

    use mesh_core::id::TrustDomain;
    use rcgen::KeyPair;
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
            let secret: serde_json::Value = serde_json::from_str(&read("default.yaml")).unwrap();
            let own = &secret["resources"][0]["tls_certificate"];
            assert_eq!(own["private_key"]["inline_string"], read("key.pem"));
            assert_eq!(own["certificate_chain"]["inline_string"], read("cert.pem"));
            assert_eq!(read("root.pem"), fs::read_to_string(authority.root_path()).unwrap());
        }
        let foreign: SpiffeId = "spiffe://elsewhere/ns/default/sa/edge".parse().unwrap();
        assert!(authority.issue_files(&foreign, None, &out).is_err());
    }
}
