//! The task of a cluster whose endpoints are asked for their load: one stream for each of them (gRFC A58, out of band),
//! or probes to some of them, as many as requests call for (Prequal). Owned by its cluster.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use foldhash::fast::RandomState;
use futures_util::future::{AbortHandle, Aborted, BoxFuture, abortable};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use mesh_core::policy::{self, Address, ConnectionOptions, UpstreamProtocol};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::probe::{Heard, Probed, probe};
use super::stream::listen;
use super::{Heed, Listening, MUTE};
use crate::cluster::{Cluster, Endpoint};
use crate::connect::worker::{Owned, spawn};
use crate::connect::{Needs, Pool, Want};
use crate::env::Env;

/// Probes of one cluster under way at once.
const MOST_PROBES: usize = 64;

/// Starts the task on the caller's runtime, if the policy asks for one.
pub(in crate::cluster) fn start(cluster: &Arc<Cluster>, env: &Arc<Env>) -> Option<Owned<()>> {
    let listening = cluster.listening.as_ref()?.clone();
    let (cluster, env) = (Arc::downgrade(cluster), env.clone());
    let (runtime, wake) = (Handle::current(), listening.wake.listen());
    match &listening.heed {
        Heed::Weights(settings) if settings.out_of_band => {
            let settings = settings.clone();
            let streams = Streams { cluster, env, settings, open: FuturesUnordered::new(), known: HashMap::default() };
            Some(spawn(&runtime, streams.run(wake)))
        }
        Heed::Load(settings) => {
            let settings = settings.clone();
            let (under_way, busy, mute) = (FuturesUnordered::new(), HashSet::default(), HashMap::default());
            Some(spawn(&runtime, Probes { cluster, env, settings, under_way, busy, mute }.run(listening, wake)))
        }
        Heed::Weights(_) | Heed::Nothing => None,
    }
}

/// The streams of all endpoints that had a request and may be picked: nobody goes by the weight of others.
struct Streams {
    cluster: Weak<Cluster>,
    env: Arc<Env>,
    settings: policy::WeightedRoundRobin,
    open: FuturesUnordered<BoxFuture<'static, Result<(), Aborted>>>,
    known: HashMap<Address, (Arc<Endpoint>, AbortHandle), RandomState>,
}

impl Streams {
    async fn run(mut self, wake: Arc<Notify>) {
        loop {
            if !self.sync() {
                return;
            }
            let changed = wake.notified();
            tokio::pin!(changed);
            loop {
                tokio::select! {
                    () = &mut changed => break,
                    // Its endpoint is gone.
                    Some(_) = self.open.next(), if !self.open.is_empty() => {}
                }
            }
        }
    }

    /// Listens to who is new, and no longer to who is gone. False: there is no cluster any more.
    fn sync(&mut self) -> bool {
        let Some(cluster) = self.cluster.upgrade() else { return false };
        let members = cluster.members();
        let now: HashMap<&Address, &Arc<Endpoint>, RandomState> =
            members.inside().map(|endpoint| (endpoint.address(), endpoint)).collect();
        self.known.retain(|address, (endpoint, stream)| {
            let stays = now.get(address).is_some_and(|now| Arc::ptr_eq(now, endpoint));
            if !stays {
                stream.abort();
            }
            stays
        });
        for (address, endpoint) in now {
            if !self.known.contains_key(address) {
                let own = own_connections(&cluster, endpoint);
                let stream = listen(endpoint.clone(), own, self.settings.clone(), self.env.clone());
                let (stream, handle) = abortable(stream);
                self.open.push(stream.boxed());
                self.known.insert(address.clone(), (endpoint.clone(), handle));
            }
        }
        true
    }
}

/// Where requests go over HTTP/1.1, the stream needs connections of its own, which are counted apart. Whether the endpoint
/// has begun anew is seen by those of requests.
fn own_connections(cluster: &Cluster, endpoint: &Endpoint) -> Option<Pool> {
    let (dialer, peer) = (&cluster.dialer, endpoint.pool().peer());
    (dialer.want(Needs::Nothing, peer) == Want::Http1).then(|| {
        let options = ConnectionOptions { protocol: UpstreamProtocol::Http2, ..dialer.options().clone() };
        Pool::new(Arc::new(dialer.with(options)), peer.clone(), Arc::default())
    })
}

/// Probes as requests call for them.
struct Probes {
    cluster: Weak<Cluster>,
    env: Arc<Env>,
    settings: policy::Prequal,
    under_way: FuturesUnordered<BoxFuture<'static, Probed>>,
    // Asked now.
    busy: HashSet<Address, RandomState>,
    // Those that know no probes, and until when they are not asked.
    mute: HashMap<Address, Instant, RandomState>,
}

impl Probes {
    async fn run(mut self, listening: Arc<Listening>, wake: Arc<Notify>) {
        loop {
            tokio::select! {
                () = wake.notified() => {
                    let Some(cluster) = self.cluster.upgrade() else { return };
                    for _ in 0..listening.take_owed().min(MOST_PROBES as u64) {
                        self.begin(&cluster);
                    }
                }
                Some(probed) = self.under_way.next(), if !self.under_way.is_empty() => {
                    let Some(cluster) = self.cluster.upgrade() else { return };
                    self.take(&cluster, probed);
                }
            }
        }
    }

    /// Asks an endpoint, unless it is being asked.
    fn begin(&mut self, cluster: &Cluster) {
        let members = cluster.members();
        let Some(index) = members.ready.probe_target(&mut |below| self.env.draw(below)) else { return };
        let address = &members.ready.candidates().policy(index).1.address;
        if self.under_way.len() >= MOST_PROBES || self.busy.contains(address) {
            return;
        }
        let endpoint = cluster.endpoint(&members, index, &self.env);
        if self.mute.get(address).is_some_and(|until| Instant::now() < *until) {
            self.tell(cluster, &endpoint, None);
            return;
        }
        self.busy.insert(address.clone());
        self.under_way.push(probe(endpoint, cluster.admission.room(false), self.settings.max_age).boxed());
    }

    fn take(&mut self, cluster: &Cluster, probed: Probed) {
        self.busy.remove(probed.address());
        match &probed.heard {
            Heard::Report(report) => {
                self.mute.remove(probed.address());
                self.tell(cluster, &probed.endpoint, report.in_flight.map(|in_flight| (in_flight, report.latency)));
            }
            Heard::Nothing => {
                let now = Instant::now();
                self.mute.retain(|_, until| now < *until);
                self.mute.insert(probed.address().clone(), now + MUTE);
                self.tell(cluster, &probed.endpoint, None);
            }
            Heard::Silence => {}
        }
    }

    /// Gives an answer to the pickers of the cluster and its parts. For an endpoint that knows no probes our own measure
    /// is the answer.
    fn tell(&self, cluster: &Cluster, endpoint: &Endpoint, said: Option<(u32, Option<Duration>)>) {
        let now = self.env.since_epoch(Instant::now());
        let load = endpoint.load();
        let (in_flight, latency) = said.unwrap_or_else(|| (load.in_flight(), None));
        load.report_load(in_flight, latency, 0, now);
        cluster.reported(endpoint.address(), now);
    }
}
