//! The handle that hands out destinations and listening addresses.

use std::any::Any;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use foldhash::fast::RandomState;
use mesh_core::id::{ClusterName, Target};
use mesh_core::policy::{DestinationState, InboundState};
use mesh_core::source::{DestinationSource, InboundSource, Publisher, Watched};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::ads::{Ads, ServerId, Topology};
use super::kind::{Key, Kind};
use super::lane::Lane;
use super::message::Variant;
use super::report::{self, Epoch, Row, Status};
use super::resource::PolicyCodec;
use super::saved::{self, Account, SnapshotConfig};
use super::transport::Transport;
use super::worker::{self, Command, State};
use crate::bootstrap::name::normalise;
use crate::bootstrap::{Bootstrap, Node, XdsServer};
use crate::cascade::{Cascade, Root, SubscriptionId};
use crate::connect::AbortOnDrop;

/// What the client needs to know beside its transport.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct XdsConfig {
    /// Who we are, whom to ask and what resources are called.
    pub bootstrap: Bootstrap,
    /// How long a resource may stay away, once asked for on an open stream, before it counts as not
    /// existing. Default 15 s (gRFC A57).
    pub resource_timeout: Duration,
    /// The same for control planes with the feature `resource_timer_is_transient_error`: then they count as
    /// slow. Default 30 s (gRFC A88).
    pub transient_resource_timeout: Duration,
    /// Variant of the protocol. Default none: delta, and the state of the world with a control plane that
    /// answers `UNIMPLEMENTED`; a connection ten minutes later or more tries delta again.
    pub variant: Option<Variant>,
    /// Keeps the last good configuration on disk, for a start while no control plane can be reached. Default
    /// none.
    pub snapshot: Option<SnapshotConfig>,
    /// Whether the certificate provider instance `default` exists without the bootstrap declaring it, as an
    /// identity issued for a join token. Resources that name an instance which does not exist are refused (gRFC
    /// A29), unless the bootstrap declares none at all. Default false.
    pub default_provider: bool,
    /// Names of the load-balancing policies that the application has beside ours: a cluster that names one of these, by a
    /// `TypedStruct`, gets [`Balancer::Custom`](mesh_core::policy::Balancer::Custom), and any other is passed over (gRFC A52).
    /// Default none.
    pub balancers: BTreeSet<String>,
}

impl XdsConfig {
    /// The defaults with this bootstrap.
    pub fn new(bootstrap: Bootstrap) -> Self {
        Self {
            bootstrap,
            resource_timeout: Duration::from_secs(15),
            transient_resource_timeout: Duration::from_secs(30),
            variant: None,
            snapshot: None,
            default_provider: false,
            balancers: BTreeSet::new(),
        }
    }
}

/// An xDS client with one ADS stream a control plane, whatever the number of destinations.
///
/// What was once good stays in use through refused updates, outages and deletions. While the preferred
/// control plane cannot be reached and something is missing, the next one is asked (gRFC A71); what only that one had counts
/// as deleted when the preferred one is back and does not give it within the resource timeout. Dropping the client stops its
/// task; values already handed out stay readable.
pub struct XdsClient {
    bootstrap: Bootstrap,
    /// Distinct control planes, by [`ServerId`].
    servers: Vec<XdsServer>,
    epoch: Epoch,
    destinations: Arc<Subscriptions<Target, DestinationState>>,
    addresses: Arc<Subscriptions<SocketAddr, InboundState>>,
    state: Arc<Mutex<State>>,
    ready: watch::Receiver<bool>,
    _worker: AbortOnDrop,
}

impl XdsClient {
    /// Starts the client's task on `runtime`; it connects at once. `transport` is called once for every
    /// distinct control plane of the bootstrap.
    pub fn spawn<T: Transport>(config: XdsConfig, transport: impl Fn(&XdsServer) -> T, runtime: &Handle) -> Self {
        let (topology, servers) = Topology::of(&config);
        let lanes = servers.iter().map(|server| Lane::new(Box::new(transport(server)))).collect();
        let now = Instant::now();
        let mut ads = Ads::new(PolicyCodec::of(&config), topology, now);
        let owner = saved::owner(&config.bootstrap);
        let snapshot = config.snapshot.map(|snapshot| {
            let (account, saved) = Account::open(snapshot, &config.bootstrap, now);
            saved.into_iter().for_each(|saved| ads.restore(saved));
            account
        });
        let (commands, received) = mpsc::unbounded_channel();
        // What an earlier run knew is enough to begin with.
        let (announce, ready) = watch::channel(ads.is_restored());
        let delay = snapshot.as_ref().map(|account| account.config.delay);
        let state = Arc::new(Mutex::new(State { ads, cascade: Cascade::of(&config.bootstrap.node.id), snapshot }));
        let saver = delay.map(|delay| (owner, delay));
        let worker = worker::spawn(state.clone(), lanes, received, announce, saver, runtime);
        let ids = Arc::new(Mutex::new(0));
        Self {
            bootstrap: config.bootstrap,
            servers,
            epoch: Epoch::new(now),
            destinations: Subscriptions::new(commands.clone(), ids.clone()),
            addresses: Subscriptions::new(commands, ids),
            state,
            ready,
            _worker: worker,
        }
    }

    /// Resolves once a stream to a control plane is open, or at once if a snapshot of the last good configuration serves
    /// meanwhile. Over HTTP/2 it is open once the control plane has sent its preface, and may be refused after that: many gRPC
    /// servers send the head of a stream with its first response, so nobody waits for it. What is asked for on the stream may
    /// still be on its way: a control plane that has not been asked for anything says nothing.
    pub fn ready(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut ready = self.ready.clone();
        async move {
            if ready.wait_for(|open| *open).await.is_err() {
                // The client is gone: nothing will ever be ready.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Writes to the snapshot on disk what has changed since it was last written, if there is one and a control plane vouches
    /// for it; returns when that is over, at once if there is nothing to do. For the end of a process: changes of the last
    /// [`delay`](SnapshotConfig::delay) are lost otherwise.
    ///
    /// # Errors
    /// It cannot be written; the text says why. What it holds is older then.
    pub async fn save(&self) -> Result<(), String> {
        let (done, over) = oneshot::channel();
        let is_asked = self.destinations.commands.send(Command::Save(done)).is_ok();
        // Only errors are sent: where all is well it is dropped.
        if is_asked && let Ok(error) = over.await { Err(error) } else { Ok(()) }
    }

    /// How the client stands with its control planes.
    pub fn status(&self) -> Status {
        report::status(&self.state.lock(), Instant::now())
    }

    /// How many fields of the resources in use are accepted and not enforced, by type of resource. The fields
    /// themselves are in [`config_dump`](Self::config_dump).
    pub fn unenforced(&self) -> [(&'static str, usize); 4] {
        report::unenforced(&self.state.lock())
    }

    /// How many resources are in each state: type, state, number. States are gRPC's (gRFC A78, A88): `requested`,
    /// `acked`, `nacked`, `does_not_exist`, `received_error`, `timeout`, and `…_but_cached` where the last good one is in
    /// use all the same.
    pub fn standings(&self) -> Vec<(&'static str, &'static str, usize)> {
        report::standings(&self.state.lock().ads)
    }

    /// Everything the client holds: `status`, and `resources` with type, name, version, state
    /// (`requested`, `acked`, `nacked`, `does_not_exist`, `received_error`, `timed_out`), error (`reason`,
    /// refused `version`), decoded value, when it came (Unix seconds) and what of it is not enforced: of a server's listener
    /// that names its routes, together with these. Where the two do not fit, each is good by itself and `acked`, and the
    /// listener has an `error`: what was in force before stays. The [`status_service`](super::status_service) tells the same in
    /// Envoy's messages.
    pub fn config_dump(&self) -> serde_json::Value {
        let (status, rows) = (self.status(), self.rows());
        serde_json::json!({ "status": status, "resources": rows })
    }

    /// Every resource.
    pub(super) fn rows(&self) -> Vec<Row> {
        report::rows(&self.state.lock(), Instant::now(), self.epoch)
    }

    /// Who we are.
    pub(crate) fn node(&self) -> &Node {
        &self.bootstrap.node
    }

    /// Distinct control planes, by [`ServerId`].
    pub(crate) fn servers(&self) -> &[XdsServer] {
        &self.servers
    }

    /// Tells whose clusters are.
    pub(crate) fn givers(&self) -> Givers {
        let state = self.state.clone();
        Arc::new(move |names| {
            let state = state.lock();
            let key = |name: &ClusterName| Key::new(Kind::Cluster, &*normalise(name.as_str()));
            names.iter().map(|name| state.ads.entry(&key(name))?.giver()).collect()
        })
    }
}

impl DestinationSource for XdsClient {
    fn destination(&self, target: &Target) -> Watched<DestinationState> {
        self.destinations.watch(target, DestinationState::Pending, |publisher| Root::Destination {
            target: target.clone(),
            listener: self.bootstrap.listener_name(target),
            publisher,
        })
    }
}

impl InboundSource for XdsClient {
    fn inbound(&self, address: SocketAddr) -> Watched<InboundState> {
        self.addresses.watch(&address, InboundState::Pending, |publisher| Root::Inbound {
            listener: self.bootstrap.inbound_name(address),
            publisher,
        })
    }
}

/// For each cluster the control plane whose word is in use; none if no control plane's is.
pub(crate) type Givers = Arc<dyn Fn(&[ClusterName]) -> Vec<Option<ServerId>> + Send + Sync>;

/// A subscription: alive as long as its guard is, which only its readers hold.
struct Live<K: Eq + Hash, T> {
    guard: Weak<Guard<K, T>>,
    state: Watched<T>,
}

/// The live subscriptions of one sort: readers of the same key share one.
struct Subscriptions<K: Eq + Hash, T> {
    live: Mutex<HashMap<K, Live<K, T>, RandomState>>,
    commands: mpsc::UnboundedSender<Command>,
    ids: Arc<Mutex<SubscriptionId>>,
}

impl<K, T> Subscriptions<K, T>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    T: Send + Sync + 'static,
{
    fn new(commands: mpsc::UnboundedSender<Command>, ids: Arc<Mutex<SubscriptionId>>) -> Arc<Self> {
        Arc::new(Self { live: Mutex::default(), commands, ids })
    }

    fn watch(self: &Arc<Self>, key: &K, initial: T, root: impl FnOnce(Publisher<T>) -> Root) -> Watched<T> {
        let mut live = self.live.lock();
        if let Some(Live { guard, state }) = live.get(key)
            && let Some(guard) = guard.upgrade()
        {
            return state.clone().with_guard(guard);
        }
        let id = {
            let mut last = self.ids.lock();
            *last += 1;
            *last
        };
        let (publisher, watched) = Watched::channel(initial);
        let guard = Arc::new(Guard { id, key: key.clone(), owner: self.clone() });
        live.insert(key.clone(), Live { guard: Arc::downgrade(&guard), state: watched.clone() });
        // A worker that is gone leaves its readers with what they have.
        let _ = self.commands.send(Command::Subscribe(id, root(publisher)));
        watched.with_guard(guard as Arc<dyn Any + Send + Sync>)
    }
}

/// Ends a subscription with its last reader.
struct Guard<K: Eq + Hash, T> {
    id: SubscriptionId,
    key: K,
    owner: Arc<Subscriptions<K, T>>,
}

impl<K: Eq + Hash, T> Drop for Guard<K, T> {
    fn drop(&mut self) {
        let mut live = self.owner.live.lock();
        // A new subscription may have taken the place since the last reader went.
        if live.get(&self.key).is_some_and(|live| live.guard.strong_count() == 0) {
            live.remove(&self.key);
        }
        let _ = self.owner.commands.send(Command::Unsubscribe(self.id));
    }
}
