//! One cluster at run time: its endpoints with their connections and loads, the picker over them, and
//! the limits that fail fast.
//!
//! A cluster lives as long as its policy value stays equal; endpoint updates are applied to it as
//! differences. Refuses to know routes.

mod admission;
mod endpoint;
mod worker;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use mesh_core::balance::ReadySet;
use mesh_core::id::Target;
use mesh_core::policy::{self, Address, Balancer, ClusterTelemetry, Discovery, Endpoints, LocalityEndpoints};
use mesh_core::telemetry::{RequestLabels, RequestSeries};
use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) use self::admission::{Admission, Permit};
pub(crate) use self::endpoint::Endpoint;
use crate::connect::Dialer;
use crate::connect::worker::Owned;
use crate::env::Env;
use crate::error::Cause;

/// One cluster of a destination.
pub(crate) struct Cluster {
    policy: Arc<policy::Cluster>,
    dialer: Arc<Dialer>,
    members: ArcSwap<Members>,
    admission: Admission,
    labels: RequestLabels,
    series: Arc<RequestSeries>,
    dns: OnceLock<Dns>,
}

/// The endpoints of a cluster at one moment.
pub(crate) struct Members {
    source: Arc<Endpoints>,
    pub(crate) ready: ReadySet<Arc<Endpoint>>,
    // Usable or not: what keeps its connections over an update.
    all: Vec<Arc<Endpoint>>,
}

struct Dns {
    resolved: watch::Receiver<bool>,
    _task: Owned<()>,
}

impl Cluster {
    /// Builds a cluster; `endpoints` are those of discovery, unused by clusters that find their own.
    pub(crate) fn new(
        policy: Arc<policy::Cluster>,
        endpoints: Arc<Endpoints>,
        target: &Target,
        env: &Arc<Env>,
    ) -> Arc<Self> {
        let dialer = Dialer::new(
            policy.connection.clone(),
            policy.tls.clone(),
            target.host(),
            env.identity.clone(),
            env.crypto.clone(),
        );
        let ClusterTelemetry { service, service_name, service_namespace } = policy.telemetry.clone();
        let service = if service.is_empty() { target.host().to_owned() } else { service };
        let labels = env.labels(service, service_name, service_namespace);
        let endpoints = match &policy.discovery {
            Discovery::Static(own) | Discovery::LogicalDns(own) => own.clone(),
            Discovery::OriginalDestination => Arc::new(dialled(target)),
            // DNS answers come later; aggregates have no endpoints of their own.
            Discovery::StrictDns(_) | Discovery::Aggregate(_) => Arc::default(),
            Discovery::Eds { .. } if policy.balancer == Balancer::Passthrough => Arc::new(dialled(target)),
            Discovery::Eds { .. } => endpoints,
        };
        let cluster = Arc::new(Self {
            dialer: Arc::new(dialer),
            members: ArcSwap::from_pointee(Members::empty(&policy)),
            admission: Admission::new(policy.breaker.clone()),
            series: env.metrics.series(&labels),
            labels,
            dns: OnceLock::new(),
            policy,
        });
        cluster.apply(endpoints, env);
        if let Discovery::StrictDns(names) = &cluster.policy.discovery {
            let (resolved, task) = worker::resolve(names.clone(), Arc::downgrade(&cluster), env.clone());
            // Set once, here: nobody else has the cluster yet.
            let _ = cluster.dns.set(Dns { resolved, _task: task });
        }
        cluster
    }

    /// What the policy says.
    pub(crate) fn policy(&self) -> &Arc<policy::Cluster> {
        &self.policy
    }

    /// The endpoints now; a request keeps them for all its tries.
    pub(crate) fn members(&self) -> Arc<Members> {
        self.members.load_full()
    }

    /// Whether any endpoint may be used.
    pub(crate) fn is_usable(&self) -> bool {
        !self.members.load().ready.is_empty()
    }

    pub(crate) fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Connections open to all endpoints.
    pub(crate) fn open_connections(&self) -> u32 {
        self.dialer.open()
    }

    /// Counts requests that reached no endpoint.
    pub(crate) fn series(&self) -> &Arc<RequestSeries> {
        &self.series
    }

    /// Waits for the first DNS answer, if endpoints come from DNS.
    pub(crate) async fn resolved(&self) {
        if let Some(dns) = self.dns.get()
            && !*dns.resolved.borrow()
        {
            // An error means the task is gone and nothing will come: go on with what there is.
            let _ = dns.resolved.clone().wait_for(|resolved| *resolved).await;
        }
    }

    /// Takes discovery's endpoints, if this cluster uses them and they changed.
    pub(crate) fn update(&self, endpoints: &Arc<Endpoints>, env: &Env) {
        let from_discovery =
            matches!(self.policy.discovery, Discovery::Eds { .. }) && self.policy.balancer != Balancer::Passthrough;
        if from_discovery && !Arc::ptr_eq(&self.members.load().source, endpoints) {
            self.apply(endpoints.clone(), env);
        }
    }

    /// Replaces the endpoints: known ones stay as they are, missing ones drain.
    fn apply(&self, endpoints: Arc<Endpoints>, env: &Env) {
        let old = self.members.load_full();
        let mut known: HashMap<&Address, &Arc<Endpoint>, foldhash::fast::RandomState> =
            old.all.iter().map(|endpoint| (endpoint.address(), endpoint)).collect();
        let mut kept: HashMap<Address, Arc<Endpoint>, foldhash::fast::RandomState> = HashMap::default();
        for endpoint in endpoints.iter() {
            let reusable = known.get(&endpoint.address).filter(|known| known.is_still(endpoint)).is_some();
            let endpoint = match known.remove(&endpoint.address) {
                Some(known) if reusable => known.clone(),
                other => {
                    // The same address with other facts (TLS, workload) needs other connections.
                    if let Some(outdated) = other {
                        outdated.pool().close();
                    }
                    if kept.contains_key(&endpoint.address) {
                        continue;
                    }
                    Arc::new(Endpoint::new(endpoint, self, env))
                }
            };
            kept.insert(endpoint.address().clone(), endpoint);
        }
        let ready = ReadySet::build(
            &endpoints,
            &self.policy.balancer,
            &self.policy.locality,
            &mut |below| env.draw(below),
            |_, endpoint| {
                let kept = &kept[&endpoint.address];
                (kept.clone(), kept.load().clone())
            },
        );
        let removed: Vec<Arc<Endpoint>> = known.into_values().cloned().collect();
        let all = kept.into_values().collect();
        self.members.store(Arc::new(Members { source: endpoints, ready, all }));
        // After the new set is in place, so that no new request finds a closed pool.
        for endpoint in removed {
            endpoint.pool().close();
        }
    }

    /// Closes connections that were idle or alive for too long.
    pub(crate) fn reap(&self, now: Instant) {
        for endpoint in &self.members.load().all {
            endpoint.pool().reap(now);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Requests in flight hold their endpoint and end in peace; idle connections close now.
        for endpoint in &self.members.load().all {
            endpoint.pool().close();
        }
    }
}

impl Members {
    fn empty(policy: &policy::Cluster) -> Self {
        let source = Arc::<Endpoints>::default();
        let ready = ReadySet::build(&source, &policy.balancer, &policy.locality, &mut |_| 0, |_, _| {
            unreachable!("there are no endpoints")
        });
        Self { source, ready, all: Vec::new() }
    }

    /// The endpoints as policy has them.
    pub(crate) fn source(&self) -> &Arc<Endpoints> {
        &self.source
    }

    /// What we keep for an address.
    pub(crate) fn find(&self, address: &Address) -> Option<&Arc<Endpoint>> {
        self.all.iter().find(|endpoint| endpoint.address() == address)
    }

    /// Fails the share of requests that the control plane wants dropped (EDS `drop_overloads`).
    pub(crate) fn check_drops(&self, cluster: &Cluster, env: &Env) -> Result<(), Cause> {
        match self.source.drops.iter().find(|drop| drop.share.hit(env.draw_million())) {
            None => Ok(()),
            Some(drop) => Err(Cause::Breaker {
                cluster: cluster.policy.name.clone(),
                limit: "drop_overload share, in a million,",
                allowed: drop.share.get(),
            }),
        }
    }
}

/// The one endpoint of a cluster that dials what the application dialled.
fn dialled(target: &Target) -> Endpoints {
    let address = match target.as_str().parse() {
        Ok(socket) => Address::Socket(socket),
        Err(_) => Address::Name { host: target.host().into(), port: target.port() },
    };
    let group = LocalityEndpoints {
        locality: Default::default(),
        priority: 0,
        weight: std::num::NonZeroU32::MIN,
        endpoints: vec![policy::Endpoint::new(address)],
    };
    Endpoints { cluster: target.to_string(), localities: vec![group], ..Endpoints::default() }
}
