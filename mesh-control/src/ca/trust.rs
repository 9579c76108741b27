//! The roots to trust, the revocation lists and the federated trust domains, as a stream: a workload learns of a change when
//! it happens and not with its next certificate. Who has no certificate is told once: a member whose own root is gone has
//! none that is good here.

use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest;
use futures_util::stream;
use mesh_core::drain::DrainWatch;
use mesh_core::identity::TrustBundles;
use mesh_core::source::Watched;
use mesh_discovery::proto::trust::{TrustBundle, TrustBundleService, TrustBundleServiceServer, WatchTrustBundle};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::{CertificateAuthority, Changes, Federation};
use crate::runtime::{Caller, Peer, Place, Shares, holder};
use crate::xds::{Charge, Limits, NodeEntry, Nodes};

/// The service of trust bundles.
pub(crate) struct TrustService {
    pub(crate) authority: Arc<CertificateAuthority>,
    pub(crate) federation: Arc<Federation>,
    pub(crate) drain: DrainWatch,
    pub(crate) strangers: Strangers,
    /// Streams of members, and what each has not taken yet.
    pub(crate) streams: Arc<Nodes>,
    pub(crate) limits: Limits,
}

/// Places of those without a certificate, each of whom is told once: what they are told is held until they take it.
pub(crate) struct Strangers {
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
    authority: Arc<CertificateAuthority>,
    federation: Arc<Federation>,
    changes: (Changes, Watched<TrustBundles>),
    /// A digest: a thousand members are not to hold a thousand copies.
    sent: Option<digest::Digest>,
    drain: DrainWatch,
    watcher: Watcher,
    /// What was sent and is not taken yet, for as long as that lasts: who reads slowly has it held here.
    untaken: Option<Charge>,
    bytes_of_one: usize,
}

#[allow(dead_code, reason = "places are held for their drop")]
enum Watcher {
    Member(NodeEntry),
    /// Who has no certificate: it ends with the first answer.
    Stranger(OwnedSemaphorePermit, Place<IpAddr>),
}

impl TrustService {
    pub(crate) fn into_server(self) -> TrustBundleServiceServer<Self> {
        TrustBundleServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl TrustBundleService for TrustService {
    async fn watch(&self, request: Request<WatchTrustBundle>) -> Result<Response<BoxStream<TrustBundle>>, Status> {
        let peer = Peer::of(request.extensions())?;
        // Roots and lists are no secret, and whose root is gone has no certificate to ask with.
        let watcher = match peer.caller {
            Caller::Anonymous => self.strangers.enter(peer.address.ip())?,
            _ => Watcher::Member(self.streams.enter(&peer, &self.limits)?),
        };
        let (authority, federation, drain) = (self.authority.clone(), self.federation.clone(), self.drain.clone());
        let changes = (authority.changes(), federation.watch());
        let (sent, untaken, bytes_of_one) = (None, None, self.limits.bytes_of_one);
        let watching = Watching { authority, federation, changes, sent, drain, watcher, untaken, bytes_of_one };
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
            let now = TrustBundle { federated: self.federation.told(), ..self.authority.watched_bundle() };
            let encoded = now.encode_to_vec();
            let digest = digest::digest(&digest::SHA256, &encoded);
            if self.sent.as_ref().is_none_or(|sent| sent.as_ref() != digest.as_ref()) {
                if let Err(full) = self.charge(encoded.len()) {
                    return Some((Err(full), None));
                }
                self.sent = Some(digest);
                return Some((Ok(now), Some(self)));
            }
            drop((now, encoded));
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
    use crate::ca::CertificateLife;
    use crate::clock::Clock;

    struct World {
        service: TrustService,
        _trigger: drain::DrainTrigger,
        _home: tempfile::TempDir,
    }

    type Told = Pin<Box<dyn Stream<Item = Result<TrustBundle, Status>> + Send>>;

    impl World {
        fn new(limits: Limits) -> Self {
            let home = tempfile::tempdir().unwrap();
            let domain = TrustDomain::new("cluster.local").unwrap();
            let life = CertificateLife::default();
            let authority = CertificateAuthority::open(home.path(), domain, life, Clock::system()).unwrap();
            let (trigger, drain) = drain::channel();
            let (authority, streams, strangers) = (Arc::new(authority), Arc::default(), Strangers::new(2, 1));
            let federation = Arc::new(Federation::open(authority.clone(), Vec::new));
            let service = TrustService { authority, federation, drain, strangers, streams, limits };
            Self { service, _trigger: trigger, _home: home }
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
    async fn what_processes_of_one_identity_do_not_take_is_bounded() {
        let bytes = World::new(Limits::default()).service.authority.watched_bundle().encoded_len();
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
