//! An identity out of files: the certificate provider `file_watcher` (gRFC A29), with SPIFFE trust bundle
//! maps (A87).
//!
//! Certificate with key, and roots, are read and kept apart: a file that cannot be used leaves the last good
//! content of its part in force and does not hold up the other part.

use std::sync::Arc;

use mesh_core::identity::{Identity, TrustBundle, TrustBundles};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::io::AsyncReadExt;

use super::bundle_map;
use crate::bootstrap::FileWatcher;

/// Larger files are not what they should be.
const MAX_FILE: u64 = 4 << 20;

/// The files of one instance and what was good of them last.
pub(super) struct Files {
    watcher: FileWatcher,
    crypto: Arc<CryptoProvider>,
    certified: Part<Certified>,
    roots: Part<Roots>,
    /// Of the next identity.
    generation: u64,
}

/// What one look at the files gave.
pub(super) struct Refreshed {
    /// A new identity, if certificate, key or roots changed and all of them are there that are configured.
    pub(super) identity: Option<Identity>,
    /// New roots, of an instance that has no certificate.
    pub(super) roots: Option<TrustBundles>,
    /// The files that cannot be used now.
    pub(super) refused: Vec<FileRefused>,
}

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {reason}")]
pub(super) struct FileRefused {
    file: String,
    reason: String,
}

/// Content of one or two files, parsed when it changes.
struct Part<T> {
    read: Vec<Vec<u8>>,
    value: Option<T>,
}

type Certified = Arc<CertifiedKey>;

/// Whom to trust.
enum Roots {
    /// Roots for the trust domain of our own certificate; without one, of nobody in particular.
    Own(TrustBundle),
    /// Roots by trust domain.
    Map(TrustBundles),
}

impl Files {
    pub(super) fn new(watcher: FileWatcher, crypto: Arc<CryptoProvider>) -> Self {
        let (certified, roots) = (Part::empty(), Part::empty());
        Self { watcher, crypto, certified, roots, generation: 0 }
    }

    /// Reads the files again.
    pub(super) async fn refresh(&mut self, now: u64) -> Refreshed {
        let looks = [self.refresh_certified(now).await, self.refresh_roots().await];
        let changed = looks.contains(&Ok(true));
        let mut refused: Vec<_> = looks.into_iter().filter_map(Result::err).collect();
        let alone = changed && self.watcher.identity.is_none();
        let roots = alone.then(|| self.roots.value.as_ref().map(Roots::bundles)).flatten();
        let identity = match changed.then(|| self.identity()).flatten() {
            Some(Ok(identity)) => Some(identity),
            Some(Err(problem)) => {
                refused.push(problem);
                None
            }
            None => None,
        };
        Refreshed { identity, roots, refused }
    }

    async fn refresh_certified(&mut self, now: u64) -> Result<bool, FileRefused> {
        let Some((chain, key)) = &self.watcher.identity else { return Ok(false) };
        let (private, readable_by_others) = read_noting_mode(key).await?;
        let read = vec![read(chain).await?, private];
        self.certified.take(read, |read| {
            if readable_by_others {
                // Not refused: so are the files that Kubernetes projects, unless `defaultMode` says otherwise.
                tracing::warn!(file = key, "the private key can be read by others than its owner: chmod 600");
            }
            let certificates = certificates(chain, &read[0])?;
            let private = PrivateKeyDer::from_pem_slice(&read[1]).map_err(|e| refuse(key, e))?;
            let certified =
                CertifiedKey::from_der(certificates, private, &self.crypto).map_err(|e| refuse(chain, e))?;
            // Everything that an identity must be is checked there; whom to trust is added later.
            let identity = Identity::new(certified, TrustBundles::default(), 0).map_err(|e| refuse(chain, e))?;
            if identity.not_after() <= now {
                return Err(refuse(chain, "the certificate has ended"));
            }
            Ok(identity.certified().clone())
        })
    }

    async fn refresh_roots(&mut self) -> Result<bool, FileRefused> {
        if let Some(file) = &self.watcher.spiffe_trust_bundle_map_file {
            let content = vec![read(file).await?];
            return self
                .roots
                .take(content, |read| bundle_map::read(&read[0]).map(Roots::Map).map_err(|e| refuse(file, e)));
        }
        let Some(file) = &self.watcher.ca_certificate_file else { return Ok(false) };
        let content = vec![read(file).await?];
        self.roots.take(content, |read| {
            let roots = certificates(file, &read[0])?;
            TrustBundle::new(roots).map(Roots::Own).map_err(|e| refuse(file, e))
        })
    }

    /// Certificate and roots joined; `None` while one is missing. Without roots in the configuration nobody is trusted:
    /// policy has to name the instance that says whom.
    fn identity(&mut self) -> Option<Result<Identity, FileRefused>> {
        let certified = self.certified.value.as_ref()?;
        let roots = self.roots.value.as_ref();
        if roots.is_none() && self.watcher.has_roots() {
            return None;
        }
        let file = self.watcher.identity.as_ref().map_or("", |(chain, _)| chain);
        let joined =
            |bundles| Identity::new((**certified).clone(), bundles, self.generation).map_err(|e| refuse(file, e));
        let identity = match roots {
            None => joined(TrustBundles::default()),
            Some(Roots::Map(bundles)) => joined(bundles.clone()),
            Some(Roots::Own(bundle)) => joined(TrustBundles::default())
                .and_then(|alone| joined(TrustBundles::single(alone.id().trust_domain(), bundle.clone()))),
        };
        self.generation += 1;
        Some(identity)
    }
}

impl Roots {
    /// Without a certificate beside them.
    fn bundles(&self) -> TrustBundles {
        match self {
            Self::Own(bundle) => TrustBundles::of_any_domain(bundle.clone()),
            Self::Map(bundles) => bundles.clone(),
        }
    }
}

impl<T> Part<T> {
    fn empty() -> Self {
        Self { read: Vec::new(), value: None }
    }

    /// Whether there is a new value. A bad one leaves the old.
    fn take(
        &mut self,
        read: Vec<Vec<u8>>,
        parse: impl FnOnce(&[Vec<u8>]) -> Result<T, FileRefused>,
    ) -> Result<bool, FileRefused> {
        if read == self.read {
            return Ok(false);
        }
        self.value = Some(parse(&read)?);
        self.read = read;
        Ok(true)
    }
}

async fn read(file: &str) -> Result<Vec<u8>, FileRefused> {
    read_noting_mode(file).await.map(|(content, _)| content)
}

/// Opens a file once; its content, and whether others than its owner can read it.
async fn read_noting_mode(file: &str) -> Result<(Vec<u8>, bool), FileRefused> {
    let failed = |e: std::io::Error| refuse(file, format!("it cannot be read: {e}"));
    let opened = tokio::fs::File::open(file).await.map_err(failed)?;
    let metadata = opened.metadata().await.map_err(failed)?;
    let mut content = Vec::new();
    opened.take(MAX_FILE + 1).read_to_end(&mut content).await.map_err(failed)?;
    if content.len() as u64 > MAX_FILE {
        return Err(refuse(file, "it is larger than 4 MiB"));
    }
    Ok((content, open_to_others(&metadata)))
}

#[cfg(unix)]
fn open_to_others(metadata: &std::fs::Metadata) -> bool {
    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o044 != 0
}

#[cfg(not(unix))]
fn open_to_others(_: &std::fs::Metadata) -> bool {
    false
}

fn certificates(file: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileRefused> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| refuse(file, e))?;
    if found.is_empty() { Err(refuse(file, "it holds no certificate")) } else { Ok(found) }
}

fn refuse(file: &str, reason: impl ToString) -> FileRefused {
    FileRefused { file: file.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests;
