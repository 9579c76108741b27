//! The handle that hands out destinations and listening addresses.

use std::any::Any;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use mesh_core::id::Target;
use mesh_core::policy::{DestinationState, InboundState};
use mesh_core::source::{DestinationSource, InboundSource, Publisher, Watched};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::ads::Ads;
use super::node;
use super::report::{Report, Status};
use super::resource::PolicyCodec;
use super::transport::Transport;
use super::worker::{self, Command};
use crate::bootstrap::Bootstrap;
use crate::cascade::{Root, SubscriptionId};
use crate::connect::AbortOnDrop;

/// What the client needs to know beside its transport.
#[derive(Clone, Debug)]
pub struct XdsConfig {
    /// Who we are and what resources are called.
    pub bootstrap: Bootstrap,
    /// How long a resource may stay away, once asked for on an open stream, before it counts as not
    /// existing. Default 15 s (gRFC A57).
    pub resource_timeout: Duration,
}

impl XdsConfig {
    /// The defaults with this bootstrap.
    pub fn new(bootstrap: Bootstrap) -> Self {
        Self { bootstrap, resource_timeout: Duration::from_secs(15) }
    }
}

/// An xDS client with one ADS stream to one control plane, whatever the number of destinations.
///
/// What was once good stays in use through refused updates, outages and deletions. Dropping the client
/// stops its task; values already handed out stay readable.
pub struct XdsClient {
    bootstrap: Bootstrap,
    destinations: Arc<Subscriptions<Target, DestinationState>>,
    addresses: Arc<Subscriptions<SocketAddr, InboundState>>,
    report: Arc<Report>,
    ready: watch::Receiver<bool>,
    _worker: AbortOnDrop,
}

impl XdsClient {
    /// Starts the client's task on `runtime`; it connects at once.
    pub fn spawn(config: XdsConfig, transport: impl Transport, runtime: &Handle) -> Self {
        let XdsConfig { bootstrap, resource_timeout } = config;
        let report = Arc::<Report>::default();
        report.change_status(|status| status.server = transport.server());
        let ads = Ads::new(PolicyCodec, node::to_wire(&bootstrap.node), resource_timeout);
        let (commands, received) = mpsc::unbounded_channel();
        let (announce, ready) = watch::channel(false);
        let worker = worker::spawn(ads, transport, received, report.clone(), announce, runtime);
        let ids = Arc::new(Mutex::new(0));
        Self {
            bootstrap,
            destinations: Subscriptions::new(commands.clone(), ids.clone()),
            addresses: Subscriptions::new(commands, ids),
            report,
            ready,
            _worker: worker,
        }
    }

    /// Resolves once a stream to the control plane has been open.
    pub fn ready(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut ready = self.ready.clone();
        async move {
            if ready.wait_for(|open| *open).await.is_err() {
                // The client is gone: nothing will ever be ready.
                std::future::pending::<()>().await;
            }
        }
    }

    /// How the client stands with its control plane.
    pub fn status(&self) -> Status {
        self.report.status()
    }

    /// Everything the client holds: `status`, and `resources` with type, name, version, state
    /// (`requested`, `acked`, `nacked`, `does_not_exist`), error, decoded value and what of it is not
    /// enforced.
    pub fn config_dump(&self) -> serde_json::Value {
        self.report.dump()
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

/// A subscription: alive as long as its guard is, which only its readers hold.
struct Live<K: Eq + Hash, T> {
    guard: Weak<Guard<K, T>>,
    state: Watched<T>,
}

/// The live subscriptions of one sort: readers of the same key share one.
struct Subscriptions<K: Eq + Hash, T> {
    live: Mutex<HashMap<K, Live<K, T>>>,
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
