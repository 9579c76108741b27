//! Whether the peers of open connections are still trusted: asked again whenever the roots change by which they are let in, as
//! the server asks of its callers. A connection whose peer is not, or is somebody else by its name, takes no further request,
//! and what is in flight over it has [`LEAVE`] to end.
//!
//! Refuses to know what goes over a connection.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use mesh_core::id::SpiffeId;
use mesh_core::identity::{
    PeerRefused, TrustBundle, TrustBundles, Usage, date, peer_spiffe_id, root_of, verify_again, verify_path_again,
};
use mesh_core::source::Trusted;
use mesh_core::telemetry::{CountedPeer, PeersByRoot, Reporter};
use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;
use smallvec::SmallVec;
use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, sleep_until};

use super::worker::{self, Owned};

/// How long what is in flight goes on: as at a server whose caller is not trusted any more.
const LEAVE: Duration = Duration::from_secs(5);

const TRUSTED: u8 = 0;
const LEAVING: u8 = 1;
const CUT: u8 = 2;

/// The connections of one cluster whose peers are let in by the mesh's roots or those of a certificate provider.
pub(super) struct Trust {
    trusted: Trusted,
    /// What roots of nobody in particular vouch for.
    by: Vouching,
    runtime: Option<Handle>,
    // Few: one for each runtime that has a connection.
    watchers: Mutex<SmallVec<[Weak<Watcher>; 1]>>,
    peers: Arc<PeersByRoot>,
    clock: Arc<dyn TimeProvider>,
}

/// Who watches over connections, on one runtime, as long as there is one of them.
struct Watcher {
    runtime: Id,
    open: Arc<Open>,
    _task: Owned<()>,
}

/// What a watcher watches over; `None` once its task has ended, whyever.
struct Open(Mutex<Option<Vec<Weak<Vouched>>>>);

/// Held by the task of a watcher: whom nobody watches over takes no further request, and is cut at the latest with its runtime.
struct Watching {
    open: Arc<Open>,
    /// What becomes of those that are trusted when the task ends.
    after: u8,
}

/// What roots of nobody in particular vouch for; those of a trust domain always do for SPIFFE IDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vouching {
    /// SPIFFE IDs.
    Ids,
    /// Whatever certificate.
    Any,
}

impl Vouching {
    /// The roots that vouch for a certificate whatever it says, if there are such.
    fn roots(self, bundles: &TrustBundles) -> Option<&TrustBundle> {
        bundles.any().filter(|_| self == Self::Any)
    }
}

/// A peer under a former name of a trust domain is the one that policy knows under the present name.
fn present(id: SpiffeId, bundles: &TrustBundles) -> SpiffeId {
    bundles.aliased(&id).unwrap_or(id)
}

/// The peer of one connection, and whether it is still trusted.
pub(crate) struct Vouched {
    chain: Box<[CertificateDer<'static>]>,
    by: Vouching,
    /// Its SPIFFE ID under the present name of its trust domain, by which it was expected; none of a peer that roots for
    /// whatever certificate let in.
    name: Option<SpiffeId>,
    standing: AtomicU8,
    reader: AtomicWaker,
    _watcher: Arc<Watcher>,
    _counted: Option<CountedPeer>,
}

impl Trust {
    /// `runtime` = who watches over all connections as long as it is there; `None` or gone = each runtime watches over its own,
    /// for another might stand still or end while it goes on. `peers` = where connections are counted by root.
    pub(super) fn new(
        trusted: Trusted,
        by: Vouching,
        runtime: Option<Handle>,
        peers: Arc<PeersByRoot>,
        clock: Arc<dyn TimeProvider>,
    ) -> Self {
        Self { trusted, by, runtime, watchers: Mutex::default(), peers, clock }
    }

    /// Watches over a connection to a peer that showed `chain` and was let in by `bundles`.
    ///
    /// # Errors
    /// The bundles have changed since, and it is not trusted any more.
    pub(super) fn watch(
        &self,
        chain: &[CertificateDer<'_>],
        bundles: TrustBundles,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<Vouched>, PeerRefused> {
        let algorithms = provider.signature_verification_algorithms.all;
        let root = root_of(chain, &bundles, algorithms, date(&*self.clock), Usage::Server);
        let _counted = root.map(|root| self.peers.count(Reporter::Source, root));
        let id = chain.first().filter(|_| self.by.roots(&bundles).is_none()).map(peer_spiffe_id).transpose()?;
        let name = id.map(|id| present(id, &bundles));
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let (standing, reader) = (AtomicU8::new(TRUSTED), AtomicWaker::new());
        let (by, watcher) = (self.by, self.watcher(&bundles, provider));
        let vouched = Arc::new(Vouched { chain, by, name, standing, reader, _watcher: watcher.clone(), _counted });
        watcher.open.add(&vouched);
        // After it can be seen by whoever watches: a change is seen there or here.
        if let Some(now) = self.trusted.load().filter(|now| *now != bundles) {
            vouched.verify(&now, provider, date(&*self.clock))?;
        }
        Ok(vouched)
    }

    fn watcher(&self, bundles: &TrustBundles, provider: &Arc<CryptoProvider>) -> Arc<Watcher> {
        let mut watchers = self.watchers.lock();
        watchers.retain(|known| known.upgrade().is_some_and(|known| known.open.is_watched()));
        let mut of = |runtime: &Handle, after| {
            let known = watchers.iter().filter_map(Weak::upgrade).find(|known| known.runtime == runtime.id());
            known.unwrap_or_else(|| {
                let open = Arc::new(Open(Mutex::new(Some(Vec::new()))));
                let watching = Watching { open: open.clone(), after };
                let by = (provider.clone(), self.clock.clone());
                let work = watch(watching, self.trusted.clone(), bundles.clone(), by);
                let begun = Arc::new(Watcher { runtime: runtime.id(), open, _task: worker::spawn(runtime, work) });
                watchers.push(Arc::downgrade(&begun));
                begun
            })
        };
        // What is in flight goes on when the runtime for all ends: it does with the mesh, and the application's is still there.
        let common = self.runtime.as_ref().map(|runtime| of(runtime, LEAVING));
        common.filter(|common| common.open.is_watched()).unwrap_or_else(|| of(&Handle::current(), CUT))
    }
}

impl Open {
    fn is_watched(&self) -> bool {
        self.0.lock().is_some()
    }

    fn add(&self, vouched: &Arc<Vouched>) {
        let mut open = self.0.lock();
        let Some(open) = &mut *open else { return vouched.stand(CUT) };
        // Those that have ended are forgotten when room is needed.
        if open.len() == open.capacity() {
            open.retain(|known| known.strong_count() > 0);
        }
        open.push(Arc::downgrade(vouched));
    }

    fn connections(&self) -> Vec<Arc<Vouched>> {
        self.0.lock().iter().flatten().filter_map(Weak::upgrade).collect()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let open = self.open.0.lock().take();
        for vouched in open.iter().flatten().filter_map(Weak::upgrade) {
            let after = if vouched.is_trusted() { self.after } else { CUT };
            vouched.stand(after);
        }
    }
}

impl Vouched {
    /// Whether further requests may go over its connection.
    pub(crate) fn is_trusted(&self) -> bool {
        self.standing.load(Ordering::Relaxed) == TRUSTED
    }

    /// Whether its connection may still be used.
    ///
    /// # Errors
    /// It was cut.
    pub(super) fn check(&self) -> io::Result<()> {
        match self.standing.load(Ordering::Acquire) {
            CUT => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the peer is not trusted any more")),
            _ => Ok(()),
        }
    }

    /// Who waits for bytes hears of the end. Who waits to write does not: nothing passes then.
    pub(super) fn wait(&self, waker: &Waker) -> io::Result<()> {
        self.reader.register(waker);
        self.check()
    }

    fn verify(&self, bundles: &TrustBundles, provider: &CryptoProvider, now: UnixTime) -> Result<(), PeerRefused> {
        let algorithms = provider.signature_verification_algorithms.all;
        if let Some(roots) = self.by.roots(bundles) {
            return verify_path_again(&self.chain, roots, algorithms, now, Usage::Server);
        }
        let id = present(verify_again(&self.chain, bundles, algorithms, now, Usage::Server)?, bundles);
        // A name that a handshake went by while trust domains were renamed is the same peer's under the present one.
        match self.name.clone().map(|name| present(name, bundles)) {
            Some(name) if name != id => {
                Err(PeerRefused::NotValid { id, reason: format!("it was {name} when it was let in") })
            }
            _ => Ok(()),
        }
    }

    fn stand(&self, standing: u8) {
        self.standing.store(standing, Ordering::Release);
        if standing == CUT {
            self.reader.wake();
        }
    }
}

async fn watch(
    watching: Watching,
    mut trusted: Trusted,
    mut by: TrustBundles,
    (provider, clock): (Arc<CryptoProvider>, Arc<dyn TimeProvider>),
) {
    let mut leaving: VecDeque<(Instant, Weak<Vouched>)> = VecDeque::new();
    loop {
        // Most changes are a certificate of ours that was renewed.
        if let Some(bundles) = trusted.load().filter(|now| *now != by) {
            by = bundles;
            let until = Instant::now() + LEAVE;
            for vouched in watching.open.connections().iter().filter(|vouched| vouched.is_trusted()) {
                if let Err(refused) = vouched.verify(&by, &provider, date(&*clock)) {
                    tracing::info!(%refused, "a connection's peer is not trusted any more: it takes no further request");
                    vouched.stand(LEAVING);
                    leaving.push_back((until, Arc::downgrade(vouched)));
                }
                // There may be many, and others have work to do here.
                tokio::task::yield_now().await;
            }
        }
        let first = leaving.front().map(|(until, _)| *until);
        tokio::select! {
            () = trusted.changed() => {}
            () = sleep_until(first.unwrap_or_else(Instant::now)), if first.is_some() => {
                let gone = leaving.pop_front().and_then(|(_, vouched)| vouched.upgrade());
                gone.iter().for_each(|vouched| vouched.stand(CUT));
            }
        }
    }
}
