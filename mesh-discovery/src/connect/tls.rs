//! The TLS side of a connection to a control plane.

use std::path::Path;
use std::sync::Arc;

use mesh_core::id::{SpiffeId, TrustDomain};
use mesh_core::identity::{BoundedVerifier, Identity, TrustBundle, peer_spiffe_id, private_key};
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::bootstrap::TlsCredentials;
use crate::secret::{Reading, read_now, tell_exposed};

/// What was good last of the files of channel credentials: a file that breaks later changes nothing.
#[derive(Default)]
pub(super) struct Files {
    last_good: Mutex<Option<Material>>,
    reading: Reading<Material>,
}

#[derive(Clone)]
struct Material {
    roots: Arc<RootCertStore>,
    certified: Option<Arc<CertifiedKey>>,
}

impl Files {
    /// Roots from the file or the system; our certificate from the files, else from the identity if it is `shown`. The
    /// server is verified against the name it was dialled by, and against its SPIFFE ID if that is known. An identity vouches, with its own roots, for a server
    /// whose root is in a file: after a change of roots that file may still hold the old one. By its revocation lists a server
    /// that was taken back is refused. One of whom they do not speak is not, nor do they end: newer ones come from that server.
    pub(super) async fn client_config(
        &self,
        files: &TlsCredentials,
        identity: Option<&Identity>,
        shown: bool,
        crypto: &Arc<CryptoProvider>,
    ) -> Result<ClientConfig, String> {
        let Material { mut roots, certified } = self.material(files, crypto).await?;
        let own = identity.and_then(|identity| identity.bundles().get(&identity.id().trust_domain()));
        if let Some(own) = own.filter(|_| files.ca_certificate_file.is_some()) {
            Arc::make_mut(&mut roots).roots.extend_from_slice(own.anchors());
        }
        let lists = own.map(TrustBundle::revocation_lists).unwrap_or_default();
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, crypto.clone())
            .with_crls(lists.iter().cloned().map(CertificateRevocationListDer::from))
            .allow_unknown_revocation_status()
            .build()
            .map_err(|e| e.to_string())?;
        let verifier = Arc::new(BoundedVerifier::new(verifier));
        let builder = ClientConfig::builder_with_provider(crypto.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(match &files.server_id {
                Some(id) => {
                    let aliases = files.server_id_aliases.clone();
                    Arc::new(Pinned { by_name: verifier, id: id.clone(), aliases })
                }
                None => verifier,
            });
        let certified = certified.or_else(|| identity.filter(|_| shown).map(|identity| identity.certified().clone()));
        let mut config = match certified {
            Some(certified) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    async fn material(&self, files: &TlsCredentials, crypto: &Arc<CryptoProvider>) -> Result<Material, String> {
        let (of, with) = (files.clone(), crypto.clone());
        let read = self.reading.of(move || Material::read(&of, &with)).await;
        let mut last_good = self.last_good.lock();
        match read {
            Ok(material) => {
                *last_good = Some(material.clone());
                Ok(material)
            }
            Err(error) => match &*last_good {
                Some(material) => {
                    tracing::warn!(%error, "credentials for the control plane: those read last stay in use");
                    Ok(material.clone())
                }
                None => Err(format!("its credentials: {error}")),
            },
        }
    }
}

/// The control plane's own certificate and nobody else's: under a root of the mesh every workload has a good one, and
/// which names an operator's authority puts beside the SPIFFE ID is not ours to know.
#[derive(Debug)]
struct Pinned {
    by_name: Arc<BoundedVerifier>,
    id: SpiffeId,
    aliases: Vec<TrustDomain>,
}

impl Pinned {
    fn is(&self, id: &SpiffeId) -> bool {
        *id == self.id || (id.path() == self.id.path() && self.aliases.contains(&id.trust_domain()))
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.by_name.verify_server_cert(leaf, intermediates, name, ocsp, now)?;
        let wrong = |got: String| {
            rustls::Error::General(format!("the certificate is not the control plane's ({}): {got}", self.id))
        };
        match peer_spiffe_id(leaf) {
            Ok(id) if self.is(&id) => Ok(verified),
            Ok(id) => Err(wrong(format!("it is of {id}"))),
            Err(error) => Err(wrong(error.to_string())),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_name.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_name.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_name.supported_verify_schemes()
    }
}

impl Material {
    fn read(files: &TlsCredentials, crypto: &CryptoProvider) -> Result<Self, String> {
        let roots = Arc::new(root_store(files.ca_certificate_file.as_deref())?);
        let certified = match &files.identity {
            Some((chain, key)) => Some(Arc::new(certified_from(chain, key, crypto)?)),
            None => None,
        };
        Ok(Self { roots, certified })
    }
}

/// Every certificate of a PEM file; at least one.
pub(crate) fn read_certificates(path: impl AsRef<Path>) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.as_ref().display();
    let (pem, _) = read_now(&path).map_err(|e| format!("certificates in {shown}: {e}"))?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|e| format!("certificates in {shown}: {e}"))?;
    if found.is_empty() { Err(format!("{shown} holds no certificate")) } else { Ok(found) }
}

fn root_store(file: Option<&str>) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    match file {
        Some(path) => {
            for root in read_certificates(path)? {
                store.add(root).map_err(|e| format!("a root in {path}: {e}"))?;
            }
        }
        None => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if store.is_empty() {
        Err("the system has no trusted roots; name a ca_certificate_file".to_owned())
    } else {
        Ok(store)
    }
}

fn certified_from(chain: &str, key: &str, crypto: &CryptoProvider) -> Result<CertifiedKey, String> {
    let certificates = read_certificates(chain)?;
    let (pem, exposed) = read_now(key).map_err(|e| format!("private key {key}: {e}"))?;
    tell_exposed(key, exposed);
    let key = private_key(&pem).map_err(|e| format!("private key {key}: {e}"))?;
    CertifiedKey::from_der(certificates, key, crypto).map_err(|e| format!("{chain}: {e}"))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use mesh_testkit::memory::{certified, copies};

    use super::*;

    #[test]
    fn of_a_key_that_was_read_nothing_is_left() {
        let files = certified();
        let (held, _) = read_now(&files.key).unwrap();
        assert!(copies(&files.text) >= 1, "the control: it is held");
        drop(held);
        drop(certified_from(&files.certificate, &files.key, &mesh_testkit::crypto()).unwrap());
        assert_eq!((copies(&files.number), copies(&files.text)), (0, 0));
    }
}
