//! The roots to trust, the revocation lists and the federated trust domains, as a stream: a workload learns of a change when
//! it happens and not with its next certificate. Who has no certificate is told once: a member whose own root is gone has
//! none that is good here. What is told is the same for everybody, and made once a change.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use aws_lc_rs::digest;
use futures_util::stream;
use mesh_core::drain::DrainWatch;
use mesh_core::identity::TrustBundles;
use mesh_core::source::Watched;
use mesh_discovery::proto::trust::{TrustBundle, TrustBundleService, TrustBundleServiceServer, WatchTrustBundle};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::material::Material;
use super::{CertificateAuthority, Changes, Federation};
use crate::runtime::{Caller, Peer, Place, Refusals, Shares, holder};
use crate::xds::{Charge, Limits, NodeEntry, Nodes};

/// The service of trust bundles.
pub(crate) struct TrustService {
    roots: Arc<Roots>,
    drain: DrainWatch,
    strangers: Strangers,
    /// Streams of members, and what each has not taken yet.
    streams: Arc<Nodes>,
    limits: Limits,
    refusals: Arc<Refusals>,
}

/// What there is to tell.
struct Roots {
    authority: Arc<CertificateAuthority>,
    federation: Arc<Federation>,
    last: Mutex<Option<Arc<Told>>>,
}

/// What is told at one time.
struct Told {
    /// What it was made of. Not held: a key that signs no more goes.
    of: (Weak<Material>, Weak<TrustBundles>),
    message: TrustBundle,
    /// Of the message, encoded.
    bytes: usize,
    digest: digest::Digest,
}

impl Roots {
    /// What is to be told now.
    fn now(&self) -> Arc<Told> {
        // Changes are rare, and who waits here waits for what it would make as well.
        let mut last = self.last.lock();
        let of = (Arc::downgrade(&self.authority.material.load_full()), Arc::downgrade(&self.federation.trusted()));
        if let Some(told) = last.as_ref().filter(|told| told.of.0.ptr_eq(&of.0) && told.of.1.ptr_eq(&of.1)) {
            return told.clone();
        }
        let message = TrustBundle { federated: self.federation.told(), ..self.authority.watched_bundle() };
        let encoded = message.encode_to_vec();
        let (bytes, digest) = (encoded.len(), digest::digest(&digest::SHA256, &encoded));
        last.insert(Arc::new(Told { of, message, bytes, digest })).clone()
    }
}

/// Places of those without a certificate, each of whom is told once: what they are told is held until they take it.
struct Strangers {
    all: Arc<Semaphore>,
    of_address: Shares<IpAddr>,
}

impl Strangers {
    /// So many in `all`, and so many of one address.
    fn new(all: usize, of_address: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), of_address: Shares::new(of_address) }
    }

    fn enter(&self, address: IpAddr) -> Result<Watcher, Status> {
        let full = || Status::resource_exhausted("many ask for the roots without a certificate; try again later");
        let own = self.of_address.enter(holder(address)).ok_or_else(full)?;
        Ok(Watcher::Stranger(self.all.clone().try_acquire_owned().map_err(|_| full())?, own))
    }
}

impl Default for Strangers {
    /// Of one address an eighth: who takes its answers slowly keeps no member out whose root is gone.
    fn default() -> Self {
        Self::new(64, 8)
    }
}

/// One who watches, and what was sent last.
struct Watching {
    roots: Arc<Roots>,
    changes: (Changes, Watched<TrustBundles>),
    /// A digest: a thousand members are not to hold a thousand copies.
    sent: Option<digest::Digest>,
    drain: DrainWatch,
    watcher: Watcher,
    /// What was sent and is not taken yet, for as long as that lasts: who reads slowly has it held here.
    untaken: Option<Charge>,
    bytes_of_one: usize,
    peer: Peer,
    refusals: Arc<Refusals>,
}

#[allow(dead_code, reason = "places are held for their drop")]
enum Watcher {
    Member(NodeEntry),
    /// Who has no certificate: it ends with the first answer.
    Stranger(OwnedSemaphorePermit, Place<IpAddr>),
}

impl TrustService {
    /// The streams of members count in `streams`.
    pub(crate) fn new(
        authority: Arc<CertificateAuthority>,
        federation: Arc<Federation>,
        streams: Arc<Nodes>,
        refusals: Arc<Refusals>,
        drain: DrainWatch,
    ) -> Self {
        let roots = Arc::new(Roots { authority, federation, last: Mutex::default() });
        Self { roots, drain, strangers: Strangers::default(), streams, limits: Limits::default(), refusals }
    }

    /// Roots and lists are no secret, and whose root is gone has no certificate to ask with.
    fn enter(&self, peer: &Peer) -> Result<Watcher, Status> {
        match peer.caller {
            Caller::Anonymous => self.strangers.enter(peer.address.ip()).inspect_err(|_| {
                self.streams.refused.fetch_add(1, Ordering::Relaxed);
            }),
            _ => Ok(Watcher::Member(self.streams.enter(peer, &self.limits)?)),
        }
    }

    pub(crate) fn into_server(self) -> TrustBundleServiceServer<Self> {
        TrustBundleServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl TrustBundleService for TrustService {
    async fn watch(&self, request: Request<WatchTrustBundle>) -> Result<Response<BoxStream<TrustBundle>>, Status> {
        let peer = Peer::of(request.extensions())?;
        let watcher = self.enter(&peer).inspect_err(|status| self.refusals.roots(&peer, status))?;
        let (roots, drain) = (self.roots.clone(), self.drain.clone());
        let changes = (roots.authority.changes(), roots.federation.watch());
        let (sent, untaken, bytes_of_one) = (None, None, self.limits.bytes_of_one);
        let refusals = self.refusals.clone();
        let watching = Watching { roots, changes, sent, drain, watcher, untaken, bytes_of_one, peer, refusals };
        Ok(Response::new(Box::pin(stream::unfold(Some(watching), |watching| async { watching?.next().await }))))
    }
}

impl Watching {
    /// Waits for what was not sent yet; `None` = the control plane stops, or all is said.
    async fn next(mut self) -> Option<(Result<TrustBundle, Status>, Option<Self>)> {
        // Asked for more: what was sent is taken.
        self.untaken = None;
        if matches!(self.watcher, Watcher::Stranger(..)) && self.sent.is_some() {
            return None;
        }
        loop {
            let now = self.roots.now();
            if self.sent.as_ref().is_none_or(|sent| sent.as_ref() != now.digest.as_ref()) {
                if let Err(full) = self.charge(now.bytes) {
                    self.refusals.roots(&self.peer, &full);
                    return Some((Err(full), None));
                }
                self.sent = Some(now.digest);
                return Some((Ok(now.message.clone()), Some(self)));
            }
            drop(now);
            tokio::select! {
                () = self.drain.drained() => return None,
                () = self.changes.0.changed() => {}
                () = self.changes.1.changed() => {}
            }
        }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Status> {
        let Watcher::Member(entry) = &self.watcher else { return Ok(()) };
        if entry.account.bytes().saturating_add(bytes) > self.bytes_of_one {
            let most = self.bytes_of_one;
            entry.nodes.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Status::resource_exhausted(format!(
                "processes of this identity have not taken {most} bytes of roots and revocation lists; try again later"
            )));
        }
        self.untaken = Some(Charge::new(&entry.account, bytes));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures_util::future::poll_immediate;
    use futures_util::{Stream, StreamExt};
    use mesh_core::drain;
    use mesh_core::id::TrustDomain;
    use tonic::Code;

    use super::*;
    use crate::ca::{CertificateLife, RootRotation};
    use crate::clock::Clock;
    use crate::test_log::Listening;

    struct World {
        service: TrustService,
        _trigger: drain::DrainTrigger,
        home: tempfile::TempDir,
    }

    type Told = Pin<Box<dyn Stream<Item = Result<TrustBundle, Status>> + Send>>;

    impl World {
        fn new(limits: Limits) -> Self {
            let home = tempfile::tempdir().unwrap();
            let domain = TrustDomain::new("cluster.local").unwrap();
            let life = CertificateLife::default();
            let authority = CertificateAuthority::open(home.path(), domain, life, Clock::system()).unwrap();
            let (trigger, drain) = drain::channel();
            let authority = Arc::new(authority);
            let federation = Arc::new(Federation::open(authority.clone(), Vec::new));
            let service = TrustService::new(authority, federation, Arc::default(), Arc::default(), drain);
            let service = TrustService { limits, strangers: Strangers::new(2, 1), ..service };
            Self { service, _trigger: trigger, home }
        }

        /// `None` = without a certificate.
        async fn watch(&self, account: Option<&str>) -> Result<Told, Code> {
            self.watch_from([192, 0, 2, 1], account).await
        }

        async fn watch_from(&self, address: [u8; 4], account: Option<&str>) -> Result<Told, Code> {
            let workload =
                |name| Caller::Workload(format!("spiffe://cluster.local/ns/default/sa/{name}").parse().unwrap());
            let caller = account.map_or(Caller::Anonymous, workload);
            let mut request = Request::new(WatchTrustBundle {});
            request.extensions_mut().insert(Peer { address: (address, 1).into(), caller, joined: false });
            self.service.watch(request).await.map(Response::into_inner).map_err(|refused| refused.code())
        }
    }

    async fn next(told: &mut Told) -> Result<(), Code> {
        told.next().await.unwrap().map(drop).map_err(|refused| refused.code())
    }

    #[tokio::test]
    async fn streams_of_roots_are_bounded_for_each_identity_and_in_all() {
        let world = World::new(Limits { streams: 3, streams_of_one: 2, ..Limits::default() });
        let (first, _second) = (world.watch(Some("a")).await.unwrap(), world.watch(Some("a")).await.unwrap());
        assert_eq!(world.watch(Some("a")).await.err(), Some(Code::ResourceExhausted));
        let _other = world.watch(Some("b")).await.unwrap();
        assert_eq!(world.watch(Some("c")).await.err(), Some(Code::ResourceExhausted), "of all");
        let _stranger = world.watch(None).await.unwrap();
        assert_eq!(world.watch(None).await.err(), Some(Code::ResourceExhausted), "strangers have places of their own");
        let elsewhere = world.watch_from([192, 0, 2, 2], None).await;
        assert!(elsewhere.is_ok(), "and an address keeps others from none of theirs");
        assert_eq!(
            world.watch_from([192, 0, 2, 3], None).await.err(),
            Some(Code::ResourceExhausted),
            "of all strangers"
        );
        drop(first);
        assert!(world.watch(Some("a")).await.is_ok(), "the control: there is room again");
    }

    #[tokio::test]
    async fn whoever_is_refused_roots_counts_and_the_log_is_told() {
        let log = Listening::begin();
        let bytes = World::new(Limits::default()).service.roots.now().bytes;
        let world = World::new(Limits { bytes_of_one: bytes, ..Limits::default() });
        let counted = || {
            let mut metrics = String::new();
            world.service.refusals.metrics(&mut metrics);
            let roots =
                metrics.lines().find_map(|line| line.strip_prefix("mesh_control_refusals_total{reason=\"roots\"} "));
            (world.service.streams.refused.load(Ordering::Relaxed), roots.unwrap().parse::<u64>().unwrap())
        };
        // A stranger, for whom there is no place.
        let _stranger = world.watch(None).await.unwrap();
        assert_eq!(counted(), (0, 0), "the control");
        assert!(world.watch(None).await.is_err());
        assert_eq!((counted(), log.lines(&["roots stream denied", "peer=anonymous"])), ((1, 1), 1), "{}", log.text());
        // A member that does not take what it is sent.
        let (mut slow, mut second) = (world.watch(Some("a")).await.unwrap(), world.watch(Some("a")).await.unwrap());
        assert_eq!((next(&mut slow).await, next(&mut second).await), (Ok(()), Err(Code::ResourceExhausted)));
        assert_eq!((counted(), log.lines(&["roots stream denied", "/sa/a"])), ((2, 2), 1), "{}", log.text());
    }

    #[tokio::test]
    async fn what_is_told_is_made_once_a_change() {
        let world = World::new(Limits::default());
        let roots = &world.service.roots;
        let first = roots.now();
        let (life, domain) = (CertificateLife::default(), roots.authority.trust_domain().clone());
        RootRotation::open(world.home.path(), domain, life, Clock::system()).unwrap().advance(false).unwrap();
        assert!(Arc::ptr_eq(&first, &roots.now()), "nobody has looked at the files");
        assert!(roots.authority.reload().unwrap());
        let next = roots.now();
        assert!(next.message.roots.len() > first.message.roots.len() && next.digest.as_ref() != first.digest.as_ref());
        assert!(Arc::ptr_eq(&next, &roots.now()));
        assert!(first.of.0.upgrade().is_none(), "a key of before is not kept for it");
    }

    #[tokio::test]
    async fn what_processes_of_one_identity_do_not_take_is_bounded() {
        let bytes = World::new(Limits::default()).service.roots.now().bytes;
        let world = World::new(Limits { bytes_of_one: bytes * 5 / 2, ..Limits::default() });
        let (mut slow, mut slower) = (world.watch(Some("a")).await.unwrap(), world.watch(Some("a")).await.unwrap());
        // Who does not ask for more has not taken what it was sent.
        assert_eq!((next(&mut slow).await, next(&mut slower).await), (Ok(()), Ok(())));
        let mut third = world.watch(Some("a")).await.unwrap();
        assert_eq!(next(&mut third).await, Err(Code::ResourceExhausted));
        assert!(third.next().await.is_none());
        assert_eq!(next(&mut world.watch(Some("b")).await.unwrap()).await, Ok(()), "others are told");
        assert!(poll_immediate(slow.next()).await.is_none(), "nothing is new, and what was sent is taken");
        assert_eq!(next(&mut world.watch(Some("a")).await.unwrap()).await, Ok(()), "the control");
    }
}
