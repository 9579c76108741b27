//! Whether the peers of open connections are still trusted: asked again whenever the roots change by which they are let in, as
//! the server asks of its callers. A connection whose peer is not takes no further request, and what is in flight over
//! it has [`LEAVE`] to end.
//!
//! Refuses to know what goes over a connection.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use mesh_core::identity::{PeerRefused, TrustBundles, Usage, root_of, verify_again, verify_path_again};
use mesh_core::source::Trusted;
use mesh_core::telemetry::{CountedPeer, PeersByRoot, Reporter};
use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::runtime::Handle;
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
    // `None` = the runtime of the request that connects first.
    runtime: Option<Handle>,
    open: Arc<Mutex<Vec<Weak<Vouched>>>>,
    watch: Watch,
    peers: Arc<PeersByRoot>,
}

/// The task that watches: as long as there is a connection to watch, or may be.
type Watch = Arc<OnceLock<Owned<()>>>;

/// What roots of nobody in particular vouch for; those of a trust domain always do for SPIFFE IDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vouching {
    /// SPIFFE IDs.
    Ids,
    /// Whatever certificate.
    Any,
}

/// The peer of one connection, and whether it is still trusted.
pub(crate) struct Vouched {
    chain: Box<[CertificateDer<'static>]>,
    by: Vouching,
    standing: AtomicU8,
    reader: AtomicWaker,
    _watch: Watch,
    _counted: Option<CountedPeer>,
}

impl Trust {
    /// `peers` = where connections are counted by root.
    pub(super) fn new(trusted: Trusted, by: Vouching, runtime: Option<Handle>, peers: Arc<PeersByRoot>) -> Self {
        Self { trusted, by, runtime, open: Arc::default(), watch: Arc::default(), peers }
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
        let root = root_of(chain, &bundles, algorithms, UnixTime::now(), Usage::Server);
        let _counted = root.map(|root| self.peers.count(Reporter::Source, root));
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let (standing, reader) = (AtomicU8::new(TRUSTED), AtomicWaker::new());
        let (by, _watch) = (self.by, self.watch.clone());
        let vouched = Arc::new(Vouched { chain, by, standing, reader, _watch, _counted });
        {
            let mut open = self.open.lock();
            // Those that have ended are forgotten when room is needed.
            if open.len() == open.capacity() {
                open.retain(|known| known.strong_count() > 0);
            }
            open.push(Arc::downgrade(&vouched));
        }
        self.watch.get_or_init(|| {
            let runtime = self.runtime.clone().unwrap_or_else(Handle::current);
            let (open, trusted) = (self.open.clone(), self.trusted.clone());
            worker::spawn(&runtime, watch(open, trusted, bundles.clone(), provider.clone()))
        });
        // After it can be seen by whoever watches: a change is seen there or here.
        if let Some(now) = self.trusted.load().filter(|now| *now != bundles) {
            vouched.verify(&now, provider)?;
        }
        Ok(vouched)
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

    fn verify(&self, bundles: &TrustBundles, provider: &CryptoProvider) -> Result<(), PeerRefused> {
        let (algorithms, now) = (provider.signature_verification_algorithms.all, UnixTime::now());
        match bundles.any().filter(|_| self.by == Vouching::Any) {
            Some(roots) => verify_path_again(&self.chain, roots, algorithms, now, Usage::Server),
            None => verify_again(&self.chain, bundles, algorithms, now, Usage::Server).map(drop),
        }
    }

    fn cut(&self) {
        self.standing.store(CUT, Ordering::Release);
        self.reader.wake();
    }
}

async fn watch(
    open: Arc<Mutex<Vec<Weak<Vouched>>>>,
    mut trusted: Trusted,
    mut by: TrustBundles,
    provider: Arc<CryptoProvider>,
) {
    let mut leaving: VecDeque<(Instant, Weak<Vouched>)> = VecDeque::new();
    loop {
        // Most changes are a certificate of ours that was renewed.
        if let Some(bundles) = trusted.load().filter(|now| *now != by) {
            by = bundles;
            let until = Instant::now() + LEAVE;
            let known: Vec<_> = open.lock().iter().filter_map(Weak::upgrade).collect();
            for vouched in known.iter().filter(|vouched| vouched.is_trusted()) {
                if let Err(refused) = vouched.verify(&by, &provider) {
                    tracing::info!(%refused, "a connection's peer is not trusted any more: it takes no further request");
                    vouched.standing.store(LEAVING, Ordering::Relaxed);
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
                gone.iter().for_each(|vouched| vouched.cut());
            }
        }
    }
}
