//! An identity out of files: the certificate provider `file_watcher` (gRFC A29), with SPIFFE trust bundle
//! maps (A87).
//!
//! Certificate with key, and roots with revocation lists, are read and kept apart: a file that cannot be used leaves the
//! last good content of its part in force and does not hold up the other part; nor does one that is not read to its end.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use mesh_core::id::TrustDomain;
use mesh_core::identity::{Identity, TrustBundle, TrustBundles, exposure, newest_lists, peer_spiffe_id, private_key};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use super::{Reading, bundle_map};
use crate::bootstrap::FileWatcher;

/// Larger files are not what they should be.
const MAX_FILE: u64 = 4 << 20;

/// The files of one instance and what was good of them last.
pub(super) struct Files {
    watcher: FileWatcher,
    crypto: Arc<CryptoProvider>,
    certified: Part<Certified>,
    roots: Part<Roots>,
    /// Why the parts, each of them good, are not good together. Complained of at each look, until one of them changes.
    apart: Option<FileRefused>,
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

/// Content of two files, or of one, and what others than its owner could do to a key among them.
type Content = ([Zeroizing<Vec<u8>>; 2], Option<&'static str>);

/// Content of one or two files, parsed when it changes.
struct Part<T> {
    reading: Reading<Result<Content, FileRefused>>,
    // Of what was read last. Not the content: one of the files is a key.
    digest: Option<u64>,
    hasher: RandomState,
    value: Option<T>,
}

type Certified = Arc<CertifiedKey>;

/// Whom to trust.
struct Roots {
    of: RootsOf,
    /// Revocation lists of the trust domain of our own certificate; of roots without one, for whomever they signed.
    lists: Vec<Vec<u8>>,
}

enum RootsOf {
    /// The trust domain of our own certificate; without one, of nobody in particular.
    Own(TrustBundle),
    /// Each domain.
    Map(TrustBundles),
}

impl Files {
    pub(super) fn new(watcher: FileWatcher, crypto: Arc<CryptoProvider>) -> Self {
        let (certified, roots) = (Part::empty(), Part::empty());
        Self { watcher, crypto, certified, roots, apart: None, generation: 0 }
    }

    /// Reads the files again.
    pub(super) async fn refresh(&mut self, now: u64) -> Refreshed {
        let looks = [self.refresh_certified(now).await, self.refresh_roots(now).await];
        let changed = looks.contains(&Ok(true));
        let mut refused: Vec<_> = looks.into_iter().filter_map(Result::err).collect();
        let (mut identity, mut roots) = (None, None);
        if changed {
            let joined = if self.watcher.identity.is_some() {
                self.identity().map(|joined| identity = joined)
            } else {
                self.roots_alone().map(|alone| roots = alone)
            };
            self.apart = joined.err();
        }
        refused.extend(self.apart.clone());
        Refreshed { identity, roots, refused }
    }

    async fn refresh_certified(&mut self, now: u64) -> Result<bool, FileRefused> {
        let Some((chain, key)) = &self.watcher.identity else { return Ok(false) };
        let files = (chain.clone(), key.clone());
        let read = move || {
            let (chain, key) = &files;
            let (private, exposed) = read(key)?;
            Ok(([read(chain)?.0, private], exposed))
        };
        let (read, exposed) = self.certified.read(&[chain, key], read).await?;
        self.certified.take(&read, |[leaf, private], _| {
            tell_exposed(key, exposed);
            let certificates = certificates(chain, leaf)?;
            let private = private_key(private).map_err(|e| refuse(key, e))?;
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

    async fn refresh_roots(&mut self, now: u64) -> Result<bool, FileRefused> {
        let FileWatcher { ca_certificate_file, spiffe_trust_bundle_map_file: map, .. } = &self.watcher;
        let Some(file) = map.as_ref().or(ca_certificate_file.as_ref()) else { return Ok(false) };
        let revoked = self.watcher.certificate_revocation_list_file.as_deref();
        let files = (file.clone(), revoked.map(str::to_owned));
        let read = move || {
            let (file, revoked) = &files;
            let lists = revoked.as_deref().map(read).transpose()?.unwrap_or_default();
            Ok(([read(file)?.0, lists.0], None))
        };
        let named: Vec<&str> = std::iter::once(&**file).chain(revoked).collect();
        let (read, _) = self.roots.read(&named, read).await?;
        let own = self.certified.value.as_ref().map(|certified| &*certified.cert).unwrap_or_default();
        let algorithms = self.crypto.signature_verification_algorithms.all;
        self.roots.take(&read, |[roots, lists], before| {
            let before = before.map_or(&[][..], |before| &before.lists);
            let lists = match revoked {
                Some(revoked) => revocation_lists(revoked, lists)?,
                None => Vec::new(),
            };
            // Not taken for what is in force either: once that has ended, the next look finds these.
            if let (Some(revoked), true) = (revoked, newest_lists(lists.clone(), before, now) != lists) {
                return Err(refuse(revoked, "a list in it is older than the one in use, which stays until it ends"));
            }
            let of = if map.is_some() {
                RootsOf::Map(bundle_map::read(roots).map_err(|e| refuse(file, e))?)
            } else {
                RootsOf::Own(TrustBundle::new(certificates(file, roots)?).map_err(|e| refuse(file, e))?)
            };
            // Read here once: what cannot be used must not replace what can.
            let own_domain = own.first().and_then(|leaf| peer_spiffe_id(leaf).ok()).map(|id| id.trust_domain());
            let (any, ours) = match &of {
                RootsOf::Own(bundle) => (Some(bundle), true),
                RootsOf::Map(bundles) => match own_domain.and_then(|domain| bundles.get(&domain)) {
                    Some(bundle) => (Some(bundle), true),
                    None => (bundles.iter().next().map(|(_, bundle)| bundle), false),
                },
            };
            if let (Some(revoked), Some(bundle)) = (revoked, any) {
                let bundle = bundle.clone().with_revocation_lists(lists.clone()).map_err(|e| refuse(revoked, e))?;
                // At the start there is nothing better than lists that have ended, and nobody is let in by them.
                match bundle.check_revocation_lists(own, algorithms, now).map_err(|e| refuse(revoked, e)) {
                    Err(error) if ours && !before.is_empty() => return Err(error),
                    Err(error) if ours => tracing::error!(%error, "peers are refused until there are others"),
                    _ => {}
                }
            }
            Ok(Roots { of, lists })
        })
    }

    /// Certificate and roots joined; `None` while one is missing. Without roots in the configuration nobody is trusted:
    /// policy has to name the instance that says whom.
    fn identity(&mut self) -> Result<Option<Identity>, FileRefused> {
        let Some(certified) = &self.certified.value else { return Ok(None) };
        let roots = self.roots.value.as_ref();
        if roots.is_none() && self.watcher.has_roots() {
            return Ok(None);
        }
        let file = self.watcher.identity.as_ref().map_or("", |(chain, _)| chain);
        let generation = self.generation;
        self.generation += 1;
        let joined = |bundles| Identity::new((**certified).clone(), bundles, generation).map_err(|e| refuse(file, e));
        let alone = joined(TrustBundles::default())?;
        let Some(roots) = roots else { return Ok(Some(alone)) };
        let bundles = roots.bundles(Some(alone.id().trust_domain())).map_err(|e| refuse(file, e))?;
        joined(bundles).map(Some)
    }

    /// The roots of an instance that has no certificate.
    fn roots_alone(&self) -> Result<Option<TrustBundles>, FileRefused> {
        let file = self.watcher.certificate_revocation_list_file.as_deref().unwrap_or_default();
        let bundles = self.roots.value.as_ref().map(|roots| roots.bundles(None));
        bundles.transpose().map_err(|reason| refuse(file, reason))
    }
}

impl Roots {
    /// As an identity of `own` trusts them, or without a certificate beside them.
    ///
    /// # Errors
    /// Nobody would be asked about by the lists.
    fn bundles(&self, own: Option<TrustDomain>) -> Result<TrustBundles, String> {
        let listed = |bundle: &TrustBundle| match &*self.lists {
            [] => Ok(bundle.clone()),
            lists => bundle.clone().with_revocation_lists(lists.to_vec()).map_err(|e| e.to_string()),
        };
        Ok(match (&self.of, own) {
            (RootsOf::Own(bundle), Some(own)) => TrustBundles::single(own, listed(bundle)?),
            (RootsOf::Own(bundle), None) => TrustBundles::of_any_domain(listed(bundle)?),
            (RootsOf::Map(bundles), _) if self.lists.is_empty() => bundles.clone(),
            (RootsOf::Map(_), None) => {
                let why = "revocation lists beside a bundle map are of the domain of a certificate, and there is none";
                return Err(why.to_owned());
            }
            (RootsOf::Map(bundles), Some(own)) => {
                let Some(bundle) = bundles.get(&own) else {
                    return Err(format!("there are revocation lists for {own}, of which the bundle map has no roots"));
                };
                let (bundle, mut bundles) = (listed(bundle)?, bundles.clone());
                bundles.insert(own, bundle);
                bundles
            }
        })
    }
}

impl<T> Part<T> {
    fn empty() -> Self {
        Self { reading: Reading::default(), digest: None, hasher: RandomState::new(), value: None }
    }

    /// The content now; `files` are its files.
    async fn read(
        &self,
        files: &[&str],
        read: impl FnOnce() -> Result<Content, FileRefused> + Send + 'static,
    ) -> Result<Content, FileRefused> {
        self.reading.of(move || Ok(read())).await.map_err(|late| refuse(&files.join(", "), late))?
    }

    /// Whether there is a new value. A bad one leaves the old.
    fn take(
        &mut self,
        read: &[Zeroizing<Vec<u8>>; 2],
        parse: impl FnOnce(&[Zeroizing<Vec<u8>>; 2], Option<&T>) -> Result<T, FileRefused>,
    ) -> Result<bool, FileRefused> {
        let digest = Some(self.hasher.hash_one(read.each_ref().map(|content| content.as_slice())));
        if digest == self.digest {
            return Ok(false);
        }
        self.value = Some(parse(read, self.value.as_ref())?);
        self.digest = digest;
        Ok(true)
    }
}

/// Its content, and what others than its owner could do to a key in it.
fn read(file: &str) -> Result<(Zeroizing<Vec<u8>>, Option<&'static str>), FileRefused> {
    read_now(file).map_err(|e| refuse(file, format!("it cannot be read: {e}")))
}

/// Not refused: so are the files that Kubernetes projects, unless `defaultMode` says otherwise.
pub(crate) fn tell_exposed(file: &str, exposed: Option<&'static str>) {
    if let Some(exposed) = exposed {
        tracing::warn!(file, "{exposed}");
    }
}

/// A whole file, and what others than its owner could do to a key in it; the content is wiped when it is dropped. Not by tokio's
/// files, which have buffers of their own that nobody wipes.
pub(crate) fn read_now(file: impl AsRef<Path>) -> io::Result<(Zeroizing<Vec<u8>>, Option<&'static str>)> {
    let opened = std::fs::File::open(&file)?;
    let metadata = opened.metadata()?;
    let room = usize::try_from(metadata.len().min(MAX_FILE)).unwrap_or_default();
    // With room for all of it, and for the look at its end: a buffer that grows leaves copies behind.
    let mut content = Zeroizing::new(Vec::with_capacity(room + 64));
    opened.take(MAX_FILE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE {
        return Err(io::Error::other("it is larger than 4 MiB"));
    }
    Ok((content, exposed(file.as_ref(), &metadata)))
}

/// What others could do to a private key in this file.
#[cfg(unix)]
fn exposed(file: &Path, metadata: &std::fs::Metadata) -> Option<&'static str> {
    use std::os::unix::fs::PermissionsExt;
    let mode = metadata.permissions().mode();
    let folder = file.parent().map(|folder| match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    });
    // What cannot be asked is not said to be open.
    let folder = folder.and_then(|folder| std::fs::metadata(folder).ok()).map_or(0, |of| of.permissions().mode());
    exposure(mode, folder)
}

#[cfg(not(unix))]
fn exposed(_: &Path, _: &std::fs::Metadata) -> Option<&'static str> {
    None
}

fn certificates(file: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileRefused> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| refuse(file, e))?;
    if found.is_empty() { Err(refuse(file, "it holds no certificate")) } else { Ok(found) }
}

/// Revocation lists as DER.
fn revocation_lists(file: &str, pem: &[u8]) -> Result<Vec<Vec<u8>>, FileRefused> {
    let found = CertificateRevocationListDer::pem_slice_iter(pem).map(|list| list.map(|list| list.to_vec()));
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|e| refuse(file, e))?;
    if found.is_empty() { Err(refuse(file, "it holds no revocation list")) } else { Ok(found) }
}

fn refuse(file: &str, reason: impl ToString) -> FileRefused {
    FileRefused { file: file.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests;
