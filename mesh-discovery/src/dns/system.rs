//! The name servers of the system: `resolv.conf`, which is read again where it changes, as glibc and Go do. Look-ups go by what
//! is known until then.
//!
//! Refuses to know who asks them.

use std::hash::{DefaultHasher, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use super::builder::{DnsResolverBuilder, InvalidDnsConfig, refused};
use super::file::SystemFile;
use super::upstream::Upstream;
use super::worker::Tasks;

/// What a resolver asks.
pub(super) struct System {
    now: ArcSwap<Upstream>,
    /// None: it is asked for as long as the resolver lives.
    said_by: Option<Source>,
}

struct Source {
    path: PathBuf,
    file: SystemFile<(u64, Result<Upstream, InvalidDnsConfig>)>,
    settings: DnsResolverBuilder,
    /// A hash of the content that is in force: DHCP writes the same at each renewal.
    in_force: AtomicU64,
}

impl System {
    /// Nothing else than this.
    pub(super) fn fixed(upstream: Upstream) -> Self {
        Self { now: ArcSwap::from_pointee(upstream), said_by: None }
    }

    /// What the file says, beside the settings.
    ///
    /// # Errors
    /// It cannot be read, or names no server.
    pub(super) fn read(path: PathBuf, settings: DnsResolverBuilder) -> Result<Self, InvalidDnsConfig> {
        let (file, content) = SystemFile::open(path.clone());
        let content = content.map_err(|error| refused(&path, error))?;
        let upstream = settings.upstream_of(&content, &path)?;
        let in_force = hash(&content).into();
        Ok(Self { now: ArcSwap::from_pointee(upstream), said_by: Some(Source { path, file, settings, in_force }) })
    }

    /// What is known; whether the file is another one is looked at beside that, as one of `looks`.
    pub(super) fn now(self: &Arc<Self>, looks: &Tasks) -> Arc<Upstream> {
        if self.said_by.as_ref().is_some_and(|source| source.file.is_due()) {
            let system = self.clone();
            looks.go_on(async move { system.look().await });
        }
        self.known()
    }

    /// What is known.
    pub(super) fn known(&self) -> Arc<Upstream> {
        self.now.load_full()
    }

    /// Reads the file again if it is another one than before.
    pub(super) async fn look(&self) {
        let Some(Source { path, file, settings, in_force }) = &self.said_by else { return };
        let parse = {
            let (settings, path) = (settings.clone(), path.clone());
            move |content: &[u8]| (hash(content), settings.upstream_of(content, &path))
        };
        match file.changed(parse).await {
            None => {}
            Some(Some((hash, Ok(_)))) if hash == in_force.load(Ordering::Relaxed) => {}
            Some(Some((hash, Ok(upstream)))) => {
                in_force.store(hash, Ordering::Relaxed);
                tracing::info!(target: "mesh::dns", file = %path.display(), "it changed: what it says now is asked");
                self.now.store(Arc::new(upstream));
            }
            Some(Some((_, Err(error)))) => {
                tracing::warn!(target: "mesh::dns", %error, "what it said before is asked still");
            }
            Some(None) => {
                tracing::warn!(target: "mesh::dns", file = %path.display(), "it is gone: what it said is asked still");
            }
        }
    }
}

fn hash(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    hasher.finish()
}
