//! One cluster at run time: its endpoints with their connections and loads, the picker over them, and
//! the limits that fail fast.
//!
//! A cluster lives as long as its policy value stays equal; endpoint updates are applied to it as
//! differences. Refuses to know routes.

mod admission;
mod away;
mod breakers;
mod endpoint;
mod fail_fast;
mod health;
mod orca;
mod outside;
mod part;
mod report;
mod worker;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::mem::discriminant;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use mesh_core::balance::{Left, Load, ReadySet, subset};
use mesh_core::health::Standing;
use mesh_core::id::Target;
use mesh_core::policy::{self, Address, Balancer, ClusterTelemetry, Discovery, Endpoints, LocalityEndpoints};
use mesh_core::telemetry::load::{ClusterLoad, Issued};
use mesh_core::telemetry::{RequestLabels, RequestSeries};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) use self::admission::{Admission, Permit, Retrying};
pub use self::breakers::{BreakerState, Breakers, InFlight};
pub(crate) use self::endpoint::{Attempt, Endpoint};
use self::orca::{Ear, Listening};
use self::part::Parts;
pub(crate) use self::part::{Backend, Labels};
use self::report::Reported;
use crate::connect::worker::{Drain, Owned, Wake};
use crate::connect::{Dialer, Rest};
use crate::env::Env;
use crate::error::Cause;

/// One cluster of a destination.
pub(crate) struct Cluster {
    policy: Arc<policy::Cluster>,
    dialer: Arc<Dialer>,
    members: ArcSwap<Members>,
    // Held while all endpoints and then those of the parts are replaced, or a part is added: one at a time, and no
    // request waits for it. Taken before the other.
    parts: Mutex<Parts>,
    // Held while all endpoints are replaced, and while one is made by the first request to it.
    changing: Mutex<()>,
    // Of endpoints that nobody sends to, while anything is under way there.
    rests: Mutex<Vec<Rest>>,
    admission: Admission,
    labels: RequestLabels,
    series: Arc<RequestSeries>,
    // For the control plane, if it wants to hear of it.
    load: Option<Arc<ClusterLoad>>,
    // If endpoints come from DNS: how far the first look at the names is.
    look: Option<watch::Sender<Look>>,
    // Who looks names up, on the runtime of the destination's owner. Held while all who look after it are begun anew.
    dns: Mutex<Option<Owned<()>>>,
    // Wakes the owner of the endpoints' health, if policy asks for one.
    wake: Option<Arc<Wake>>,
    // The same of those who look after that.
    health: Mutex<Option<health::Owned>>,
    // If anybody goes by what endpoints say of their load.
    listening: Option<Arc<Listening>>,
    asking: ArcSwapOption<Owned<()>>,
    // To endpoints that are away, while requests go elsewhere for them.
    dials: away::Dials,
}

/// The endpoints of a cluster at one moment.
///
/// What policy says of them is shared with the snapshot; connections, load and metrics of an endpoint are
/// made by the first request to it, so that the many endpoints which never see one cost next to nothing.
pub(crate) struct Members {
    source: Arc<Endpoints>,
    pub(crate) ready: ReadySet<Cell>,
    reported: Option<Arc<Reported>>,
}

/// Indices of endpoints by address.
type Known<'m> = HashMap<&'m Address, usize, foldhash::fast::RandomState>;

/// An endpoint, once there was a request to it.
pub(crate) type Cell = OnceLock<Arc<Endpoint>>;

/// How far the first look at the names of a cluster is; requests wait for its end before the first pick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Not at its end: that of this number.
    UnderWay(u32),
    /// At its end, whatever came of it.
    Over,
    /// Its runtime has ended before.
    BrokenOff(u32),
}

impl Look {
    fn is_under_way(self) -> bool {
        matches!(self, Self::UnderWay(_))
    }
}

impl Cluster {
    /// Builds a cluster; `endpoints` are those of discovery, unused by clusters that find their own. What DNS has said
    /// to `before`, which it takes the place of, is known to it as well: a change of policy is no reason to wait for DNS,
    /// or to be without endpoints while that fails.
    pub(crate) fn new(
        policy: Arc<policy::Cluster>,
        endpoints: Arc<Endpoints>,
        target: &Target,
        env: &Arc<Env>,
        before: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        let admission = Admission::new(&policy, env);
        let dialer =
            Dialer::new(&policy, target.host(), env, admission.connections(), before.map(|before| &*before.dialer));
        let ClusterTelemetry { service, service_name, service_namespace } = policy.telemetry.clone();
        let service = if service.is_empty() { target.host().to_owned() } else { service };
        let labels = env.labels(service, service_name, service_namespace);
        let looked_up = before.and_then(|before| before.looked_up(&policy));
        let endpoints = match &policy.discovery {
            Discovery::Static(own) | Discovery::LogicalDns(own) => own.clone(),
            Discovery::OriginalDestination => Arc::new(dialled(target)),
            // Otherwise DNS answers come later.
            Discovery::StrictDns(_) => looked_up.clone().unwrap_or_default(),
            Discovery::Aggregate(_) => Arc::default(),
            Discovery::Eds { .. } if policy.balancer == Balancer::Passthrough => Arc::new(dialled(target)),
            Discovery::Eds { .. } => endpoints,
        };
        let load = report::load(&policy, env);
        let cluster = Arc::new(Self {
            dialer: Arc::new(dialer),
            members: ArcSwap::from_pointee(Members::empty(&policy)),
            parts: Mutex::default(),
            changing: Mutex::default(),
            rests: Mutex::default(),
            admission,
            series: env.metrics.series(&labels),
            labels,
            listening: Listening::new(&policy, load.is_some(), env.picker_for(&policy.balancer).is_some()),
            asking: ArcSwapOption::empty(),
            dials: away::Dials::default(),
            load,
            look: matches!(policy.discovery, Discovery::StrictDns(_)).then(|| {
                let look = if looked_up.is_some() { Look::Over } else { Look::UnderWay(0) };
                watch::Sender::new(look)
            }),
            dns: Mutex::default(),
            wake: health::is_watched(&policy).then(Arc::default),
            health: Mutex::default(),
            policy,
        });
        cluster.apply(endpoints, env);
        // One without endpoints has nothing to give up.
        let before = before.filter(|before| looked_up.is_none() && before.is_resolved()).cloned();
        *cluster.dns.lock() = worker::start(&cluster, env, before);
        *cluster.health.lock() = health::start(&cluster, env, None);
        cluster
    }

    /// Begins anew on the caller's runtime what looks after the endpoints: where it ran it has ended, or stands still.
    /// What was known of them stays known.
    pub(crate) fn resume(self: &Arc<Self>, env: &Arc<Env>) {
        // One at a time: the task that is replaced would break off the look of the one that goes on.
        let mut dns = self.dns.lock();
        self.turn_look(|look| match look {
            Look::UnderWay(number) | Look::BrokenOff(number) => Some(Look::UnderWay(number.wrapping_add(1))),
            Look::Over => None,
        });
        drop(std::mem::replace(&mut *dns, worker::start(self, env, None)));
        let mut health = self.health.lock();
        let former = health.take();
        *health = health::start(self, env, former);
        drop(health);
        // Begun by the next request.
        self.asking.store(None);
        self.dials.stop();
    }

    /// What the policy says.
    pub(crate) fn policy(&self) -> &Arc<policy::Cluster> {
        &self.policy
    }

    /// The endpoints now; a request keeps them for all its tries.
    pub(crate) fn members(&self) -> Arc<Members> {
        self.members.load_full()
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

    /// Labels of what goes to one of the members, or to none of them.
    pub(crate) fn labels(&self, endpoint: Option<(&Members, usize)>) -> RequestLabels {
        match endpoint {
            Some((members, index)) => endpoint::labels(members.ready.policy(index).1, self),
            None => self.labels.clone(),
        }
    }

    /// Why there is no endpoint to send to.
    pub(crate) fn no_endpoint(&self, members: &Members) -> Cause {
        let cluster = self.policy.name.clone();
        if members.ready.known() == 0
            && let failures = self.dns_failures()
            && !failures.is_empty()
        {
            return Cause::Unresolved { cluster, reason: failures.join("; ").into() };
        }
        let all = self.members.load().ready.known();
        if members.ready.known() == 0 && all > 0 && self.policy.subsets.is_some() {
            return Cause::NoSubset { cluster, known: all };
        }
        let (known, candidates) = (members.ready.known(), members.ready.candidates());
        let load = |index: usize| candidates[index].load();
        let out = (0..known).filter(|index| load(*index).is_some_and(|load| !load.standing().is_admitted())).count();
        Cause::NoEndpoint { cluster, known, usable: members.ready.len(), out }
    }

    /// Waits for the first DNS answer, if endpoints come from DNS. Whether it had to.
    pub(crate) async fn resolved(&self) -> bool {
        if let Some(look) = &self.look
            && look.borrow().is_under_way()
        {
            // Where it broke off nothing will come: on with what there is.
            let _ = look.subscribe().wait_for(|look| !look.is_under_way()).await;
            return true;
        }
        false
    }

    /// Whether its names are being looked up for the first time.
    fn is_looked_up_first(&self) -> bool {
        self.look.as_ref().is_some_and(|look| look.borrow().is_under_way())
    }

    /// The first look at its names is at another point than before, if `turn` gives one.
    fn turn_look(&self, turn: impl Fn(Look) -> Option<Look>) {
        let turn = |look: &mut Look| match turn(*look) {
            Some(next) => {
                *look = next;
                true
            }
            None => false,
        };
        self.look.iter().for_each(|look| _ = look.send_if_modified(turn));
    }

    /// Whether its names, if it has any, were looked up.
    fn is_resolved(&self) -> bool {
        self.look.as_ref().is_none_or(|look| *look.borrow() == Look::Over)
    }

    /// What its names stood for last, if `next` has the same.
    fn looked_up(&self, next: &policy::Cluster) -> Option<Arc<Endpoints>> {
        let same = self.policy.discovery == next.discovery && self.policy.dns.family == next.dns.family;
        let known = same && matches!(next.discovery, Discovery::StrictDns(_)) && self.is_resolved();
        known.then(|| self.members.load().source.clone())
    }

    /// The names of this cluster whose last look-up failed, and why.
    pub(crate) fn dns_failures(&self) -> Vec<String> {
        self.dialer.names().failures()
    }

    /// Takes discovery's endpoints, if this cluster uses them and they changed.
    pub(crate) fn update(&self, endpoints: &Arc<Endpoints>, env: &Env) {
        let from_discovery =
            matches!(self.policy.discovery, Discovery::Eds { .. }) && self.policy.balancer != Balancer::Passthrough;
        if from_discovery && !Arc::ptr_eq(&self.members.load().source, endpoints) {
            self.apply(endpoints.clone(), env);
        }
    }

    /// The endpoint that a pick gave.
    pub(crate) fn endpoint(&self, members: &Members, index: usize, env: &Env) -> Arc<Endpoint> {
        match members.ready.endpoint(index).get() {
            Some(endpoint) => endpoint.clone(),
            None => {
                let endpoint = self.open(members, index, env);
                self.listening.iter().for_each(|listening| listening.changed());
                endpoint
            }
        }
    }

    /// A request goes to the endpoint of this index; gives what hears its answer's word on load, if that is wanted.
    pub(crate) fn listen(self: &Arc<Self>, members: &Arc<Members>, index: usize, env: &Arc<Env>) -> Option<Ear> {
        let listening = self.listening.as_ref()?;
        if listening.asks() && self.asking.load().as_ref().is_none_or(|task| task.is_finished()) {
            self.ask(env);
        }
        listening.request(members, index)
    }

    /// Begins to ask endpoints for their load. By the first request, on its runtime: the connections that are made to
    /// ask are those of requests as well. Once more when that runtime has ended, for the task ended with it.
    #[cold]
    fn ask(self: &Arc<Self>, env: &Arc<Env>) {
        let _changing = self.changing.lock();
        if self.asking.load().as_ref().is_none_or(|task| task.is_finished()) {
            self.asking.store(orca::start(self, env).map(Arc::new));
        }
    }

    /// Makes an endpoint for its first request.
    #[cold]
    fn open(&self, members: &Members, index: usize, env: &Env) -> Arc<Endpoint> {
        let _changing = self.changing.lock();
        let current = self.members.load();
        let make = |members: &Members, index: usize| {
            let load = members.ready.candidate(index).load_or_new().clone();
            let made = || Arc::new(Endpoint::new(members.ready.policy(index).1, load, self, env));
            members.ready.endpoint(index).get_or_init(made).clone()
        };
        if std::ptr::eq(members, &raw const **current) {
            return make(members, index);
        }
        // The request began before an update. An endpoint that is still there must not be made twice.
        let (_, policy) = members.ready.policy(index);
        // What this client leaves to others now stays for sessions alone.
        let is_outside = members.ready.is_outside(index);
        let find = if is_outside { ReadySet::find_anywhere } else { ReadySet::find };
        let now = find(&current.ready, &policy.address);
        let now = now.filter(|now| is_still(current.ready.policy(*now).1, policy));
        let Some(now) = now else {
            let gone = make(members, index);
            // No connection outlives the request.
            self.part_with([&gone], Vec::new(), env.limits.drain);
            return gone;
        };
        let endpoint = make(&current, now);
        members.ready.candidate(index).share_load(endpoint.load());
        members.ready.endpoint(index).get_or_init(|| endpoint).clone()
    }

    /// Replaces the endpoints: known ones stay as they are, missing ones drain.
    fn apply(&self, endpoints: Arc<Endpoints>, env: &Env) {
        let parts = self.parts.lock();
        self.replace(endpoints, env, parts);
        self.wake.iter().for_each(|wake| wake.wake());
        self.listening.iter().for_each(|listening| listening.changed());
    }

    /// Builds the set of the same endpoints anew, for their health has changed.
    fn refresh(&self, env: &Env) {
        let parts = self.parts.lock();
        self.replace(self.members.load().source.clone(), env, parts);
    }

    fn replace(&self, endpoints: Arc<Endpoints>, env: &Env, mut parts: MutexGuard<'_, Parts>) {
        let changing = self.changing.lock();
        let subset = subset(&endpoints, &self.policy, env.number);
        let reported = self.load.as_ref();
        let reported = reported.map(|load| Arc::new(Reported::new(load, &subset.localities, &endpoints.drops)));
        let now = env.since_epoch(Instant::now());
        let old = self.members.load_full();
        let (mut known, mut outside) = (old.known(), outside::Kept::of(&old));
        let ramps = self.policy.slow_start.is_some() && old.ready.known() > 0;
        let ready = ReadySet::build(
            subset.clone(),
            self.policy.clone(),
            env.picker_for(&self.policy.balancer),
            now,
            &mut |below| env.draw(below),
            |endpoint| {
                // The same address with other facts (TLS, workload) needs other connections.
                let before = known.get(&endpoint.address).copied();
                let before = before.filter(|b| is_still(old.ready.candidates().policy(*b).1, endpoint));
                let (cell, load) = match before {
                    Some(index) => {
                        known.remove(&endpoint.address);
                        let load = old.ready.candidates()[index].load().cloned();
                        (old.ready.endpoints()[index].clone(), load)
                    }
                    None => {
                        let (cell, load) = outside.take(endpoint).unwrap_or_default();
                        (cell, if health::is_checked(&self.policy, endpoint) { Some(unchecked(load)) } else { load })
                    }
                };
                let was_usable = before.is_some_and(|b| old.ready.candidates().policy(b).1.health.is_usable());
                // One that is not usable yet is asked in a panic, and is to take its whole share of that.
                let begins = ramps && endpoint.health.is_usable() && !was_usable;
                let load = if begins { Some(ramping(load, now)) } else { load };
                (cell, load)
            },
        );
        let around = outside.around(&endpoints, &subset, &old);
        // Who is out or away is so for sessions as well when its place is another client's from now on.
        for index in around.iter().flat_map(|_| known.values().copied()) {
            let (policy, load) = (old.ready.candidates().policy(index).1, old.ready.candidates()[index].load());
            let load = load.filter(|load| load.standing() != Standing::Good || load.is_away());
            if let (Some(around), Some(load)) = (&around, load) {
                around.keep(&policy.address, Some(load), Cell::new(), |endpoint| is_still(policy, endpoint));
            }
        }
        let ready = ready.following(&old.ready).with_outside(around, Left::All);
        let members = Arc::new(Members { source: endpoints, ready, reported });
        self.members.store(members.clone());
        drop(changing);
        parts.follow(self, &members, &subset, env);
        drop(parts);
        // After the new set is in place, so that no new request finds a closed pool.
        let removed = known.into_values().filter_map(|index| old.ready.endpoints()[index].get());
        self.part_with(removed.chain(outside.left()), Vec::new(), env.limits.drain);
    }

    /// Closes endpoints that are not asked any more. What is under way at one whose address is in the set, with other facts or
    /// by other policy, goes on like other `rests`; when the address goes, it has `limit`, unless it comes back within that.
    fn part_with<'e>(&self, closed: impl IntoIterator<Item = &'e Arc<Endpoint>>, rests: Vec<Rest>, limit: Drain) {
        let mut all = self.rests.lock();
        all.extend(rests);
        for endpoint in closed {
            endpoint.pool().close();
            all.push(Rest::of(endpoint.pool()));
        }
        if all.is_empty() {
            return;
        }
        // Looked at with the lock: whoever replaces this set comes here afterwards.
        let members = self.members();
        let still = members.addresses();
        all.retain(|rest| {
            if still.contains(&rest.address) {
                rest.stay();
            } else {
                rest.end_within(limit, &self.policy.name);
            }
            !rest.is_over()
        });
    }

    /// The endpoint at `address` has said what its load is: everybody who picks it hears it. Parts that are being built
    /// anew do not, nor do they wait for one another: new ones begin without answers anyway.
    fn reported(&self, address: &Address, now: Duration) {
        let members = self.members();
        members.reported(address, now);
        if let Some(parts) = self.parts.try_lock() {
            parts.reported(address, &members, now);
        }
    }

    /// Nobody sends to it any more. Its idle connections close now; requests in flight hold their endpoint and end in
    /// peace.
    pub(crate) fn retire(&self) {
        self.members.load().in_use().for_each(|endpoint| endpoint.pool().close());
    }

    /// The same where it is gone: they end within `limit`, unless who has what is left of them sees it again.
    pub(crate) fn leave(&self, limit: Drain) -> Vec<Rest> {
        self.retire();
        let mut rests = std::mem::take(&mut *self.rests.lock());
        rests.extend(self.members().in_use().map(|endpoint| Rest::of(endpoint.pool())));
        rests.iter().for_each(|rest| rest.end_within(limit, &self.policy.name));
        rests
    }

    /// It is there again after it was gone, and this was left.
    pub(crate) fn return_to(&self, rests: Vec<Rest>, limit: Drain) {
        self.part_with([], rests, limit);
    }

    /// It is retired, for `next` has its place: `limit` is for the endpoints that are known to be gone. Nothing is known
    /// where they are found in another way than before, or not yet.
    pub(crate) fn give_way(&self, next: &Self, limit: Drain) {
        let comparable = discriminant(&self.policy.discovery) == discriminant(&next.policy.discovery);
        if !comparable || !next.is_resolved() || !next.dns_failures().is_empty() {
            return self.retire();
        }
        let rests = std::mem::take(&mut *self.rests.lock());
        next.part_with(self.members().in_use(), rests, limit);
    }

    /// Closes connections that were idle or alive for too long.
    pub(crate) fn reap(&self, now: Instant, env: &Env) {
        for endpoint in self.members.load().in_use() {
            endpoint.pool().reap(now, env.since_epoch(now));
        }
    }
}

/// Whether an update says the same of an address: its connections stay good.
fn is_still(before: &policy::Endpoint, now: &policy::Endpoint) -> bool {
    before.metadata == now.metadata && before.additional_addresses == now.additional_addresses
}

/// The load of an endpoint whose first check is still to come.
fn unchecked(load: Option<Arc<Load>>) -> Arc<Load> {
    let load = load.unwrap_or_default();
    if load.standing() == Standing::Good {
        load.set_standing(Standing::Unchecked);
    }
    load
}

/// A load whose endpoint is new, or healthy again.
fn ramping(load: Option<Arc<Load>>, now: Duration) -> Arc<Load> {
    let load = load.unwrap_or_default();
    load.ramp_from(now);
    load
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Nothing is under way.
        self.members.load().in_use().for_each(|endpoint| endpoint.pool().close());
    }
}

impl Members {
    fn empty(policy: &Arc<policy::Cluster>) -> Self {
        let source = Arc::<Endpoints>::default();
        let (now, mut draw) = (Duration::ZERO, |_| 0);
        let ready = ReadySet::build(source.clone(), policy.clone(), None, now, &mut draw, |_| {
            unreachable!("there are no endpoints")
        });
        Self { source, ready, reported: None }
    }

    /// The endpoints as policy has them.
    pub(crate) fn source(&self) -> &Arc<Endpoints> {
        &self.source
    }

    /// The endpoints that had a request.
    pub(crate) fn in_use(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.inside().chain(self.outside())
    }

    /// Those of them that are in the set.
    fn inside(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.ready.endpoints().iter().filter_map(Cell::get)
    }

    /// Those that are outside of it.
    fn outside(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        let kept = self.ready.outside().into_iter().flat_map(|outside| outside.kept());
        kept.filter_map(|(_, _, cell)| cell.get())
    }

    /// Where endpoints are, for the next set and for reports: made anew each time, so that nothing is held of it.
    pub(crate) fn known(&self) -> Known<'_> {
        let all = 0..self.ready.known();
        all.map(|index| (&self.ready.candidates().policy(index).1.address, index)).collect()
    }

    /// Where all endpoints are, those as well that this client leaves to others.
    fn addresses(&self) -> HashSet<&Address> {
        self.source.iter().map(|endpoint| &endpoint.address).collect()
    }

    /// The endpoint at `address`, if it is one of these, has said what its load is.
    fn reported(&self, address: &Address, now: Duration) {
        if let Some(index) = self.ready.find(address) {
            self.ready.reported(index, now);
        }
    }

    /// Fails the share of requests that the control plane wants dropped (EDS `drop_overloads`).
    pub(crate) fn check_drops(&self, cluster: &Cluster, env: &Env) -> Result<(), Cause> {
        match self.source.drops.iter().enumerate().find(|(_, drop)| drop.share.hit(env.draw_million())) {
            None => Ok(()),
            Some((index, drop)) => {
                self.reported.iter().for_each(|reported| reported.dropped(index));
                let (cluster, category) = (cluster.policy.name.clone(), drop.category.as_str().into());
                Err(Cause::Dropped { cluster, category, share: drop.share })
            }
        }
    }

    /// Counts a try at the endpoint of this index, for the control plane.
    pub(crate) fn issue(&self, index: usize) -> Option<Issued> {
        self.reported.as_ref().map(|reported| reported.issue(self.ready.locality(index)))
    }
}

/// The one endpoint of a cluster that dials what the application dialled.
fn dialled(target: &Target) -> Endpoints {
    let address = match target.as_str().parse() {
        Ok(socket) => Address::Socket(socket),
        Err(_) => Address::Name { host: target.dns_name().into(), port: target.port() },
    };
    let group = LocalityEndpoints {
        locality: Default::default(),
        priority: 0,
        weight: std::num::NonZeroU32::MIN,
        endpoints: vec![policy::Endpoint::new(address)],
    };
    Endpoints { cluster: target.to_string(), localities: vec![group], ..Endpoints::default() }
}
