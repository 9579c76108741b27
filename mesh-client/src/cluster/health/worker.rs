//! The task that owns the health of one cluster's endpoints: takes limits that requests reached, sweeps at each
//! interval, checks endpoints, and builds the set anew when somebody's standing changes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Weak};
use std::time::Duration;

use foldhash::fast::RandomState;
use futures_util::future::{AbortHandle, Aborted, BoxFuture, abortable};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use mesh_core::health::{Change, CheckOutcome, Member, Roster, Standing, Tally};
use mesh_core::policy::{self, Address, Endpoints};
use mesh_core::telemetry::HealthSeries;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, sleep_until};

use super::probe::{Patient, Prober};
use super::{Watch, is_checked, is_watched};
use crate::cluster::{Cluster, Members, is_still};
use crate::connect::worker::{self, spawn};
use crate::env::Env;

/// The task, and what it knows: it stays when the task is begun anew.
pub(in crate::cluster) struct Owned {
    roster: Arc<Mutex<Roster<Address>>>,
    _task: worker::Owned<()>,
}

/// Starts the owner on the caller's runtime, if the policy asks for one; it knows what `former` knew.
pub(in crate::cluster) fn start(cluster: &Arc<Cluster>, env: &Arc<Env>, former: Option<Owned>) -> Option<Owned> {
    let policy = cluster.policy();
    let wake = cluster.wake.as_ref().filter(|_| is_watched(policy))?.listen();
    let probers = policy.health_checks.iter().map(|check| Arc::new(Prober::new(check, policy, &cluster.dialer)));
    let roster = former.map(|former| former.roster);
    let roster = roster.unwrap_or_else(|| Arc::new(Mutex::new(Roster::new(policy.clone()))));
    let owner = Owner {
        roster: roster.clone(),
        probers: probers.collect(),
        series: env.metrics.health(&policy.name),
        policy: policy.clone(),
        cluster: Arc::downgrade(cluster),
        env: env.clone(),
        seen: None,
        checks: FuturesUnordered::new(),
        running: HashMap::default(),
        shown: 0,
    };
    Some(Owned { roster, _task: spawn(&Handle::current(), owner.run(wake)) })
}

struct Owner {
    policy: Arc<policy::Cluster>,
    cluster: Weak<Cluster>,
    env: Arc<Env>,
    // Locked while it decides; nobody else does but who takes its place.
    roster: Arc<Mutex<Roster<Address>>>,
    // The endpoints that the roster knows.
    seen: Option<Arc<Endpoints>>,
    probers: Box<[Arc<Prober>]>,
    checks: FuturesUnordered<BoxFuture<'static, Result<Check, Aborted>>>,
    // By endpoint and place in the policy.
    running: HashMap<(Address, usize), AbortHandle, RandomState>,
    series: Arc<HealthSeries>,
    // Ejected endpoints shown by the gauge.
    shown: usize,
}

/// A check that came to its end.
struct Check {
    address: Address,
    place: usize,
    patient: Patient,
    outcome: Option<CheckOutcome>,
    why: String,
}

impl Owner {
    async fn run(mut self, wake: Arc<Notify>) {
        let mut sweeps = self.policy.outlier.as_ref().map(|outlier| every(outlier.interval));
        let (mut woken, mut changed) = (true, Vec::new());
        loop {
            {
                let Some(cluster) = self.cluster.upgrade() else { return };
                if woken {
                    self.look(&cluster, &mut changed);
                }
                self.settle(&cluster, &mut changed);
            }
            let penalties = self.policy.accrual.is_some();
            let probation = if penalties { self.roster.lock().next_probation() } else { None };
            woken = false;
            tokio::select! {
                () = wake.notified() => woken = true,
                () = until(probation.and_then(|at| self.env.epoch.checked_add(at))) => woken = true,
                () = tick(&mut sweeps) => self.sweep(&mut changed),
                Some(check) = self.checks.next(), if !self.checks.is_empty() => {
                    self.take(check, &mut changed);
                    // Those that ended at the same time need no set of their own each.
                    while let Some(Some(check)) = self.checks.next().now_or_never() {
                        self.take(check, &mut changed);
                    }
                }
            }
        }
    }

    /// Takes over new endpoints, and what requests have seen of the known ones.
    fn look(&mut self, cluster: &Cluster, changed: &mut Vec<Address>) {
        let members = cluster.members();
        if self.seen.as_ref().is_none_or(|seen| !Arc::ptr_eq(seen, members.source())) {
            self.sync(&members);
            changed.extend(self.roster.lock().standings().map(|(address, _)| address.clone()));
        }
        let now = self.env.since_epoch(Instant::now());
        let env = self.env.clone();
        for (address, member) in outside(&members) {
            self.roster.lock().join(address, member);
        }
        for (address, watch) in watches(&members) {
            for reason in watch.vitals.take_limits() {
                let change = self.roster.lock().limit_reached(address, reason, now, &mut |below| env.draw(below));
                self.note(address, change, "", changed);
            }
            let state = watch.accrual.state();
            let change = self.roster.lock().accrued(address, state, now, &mut |below| env.draw(below));
            self.note(address, change, "", changed);
        }
        for address in self.roster.lock().begin_probations(now) {
            if let Some(watch) = watch_at(&members, &address) {
                watch.accrual.begin_probation();
            }
            changed.push(address);
        }
    }

    fn sync(&mut self, members: &Members) {
        let all = || (0..members.ready.known()).map(|index| members.ready.candidates().policy(index).1);
        let member = |endpoint: &policy::Endpoint| Member {
            usable: endpoint.health.is_usable(),
            checked: is_checked(&self.policy, endpoint),
            outside: false,
        };
        let inside = all().map(|endpoint| (endpoint.address.clone(), member(endpoint)));
        let outside = outside(members).map(|(address, member)| (address.clone(), member));
        self.roster.lock().sync(inside.chain(outside));
        self.running.retain(|(address, place), check| {
            let stays = self.roster.lock().pace(address, *place, true, &mut |_| 0).is_some();
            if !stays {
                check.abort();
            }
            stays
        });
        let seen = self.seen.replace(members.source().clone());
        if self.probers.is_empty() {
            return;
        }
        let seen: HashMap<_, _, RandomState> =
            seen.iter().flat_map(|seen| seen.iter()).map(|endpoint| (&endpoint.address, endpoint)).collect();
        let policy = self.policy.clone();
        for endpoint in all().filter(|endpoint| is_checked(&policy, endpoint)) {
            let same = seen.get(&endpoint.address).is_some_and(|before| is_still(before, endpoint));
            for place in 0..self.probers.len() {
                if !same || !self.running.contains_key(&(endpoint.address.clone(), place)) {
                    let patient = self.probers[place].patient(endpoint);
                    self.begin(endpoint.address.clone(), place, patient);
                }
            }
        }
    }

    /// Schedules the next check of an endpoint.
    fn begin(&mut self, address: Address, place: usize, mut patient: Patient) {
        let traffic = self.has_traffic();
        let env = &self.env;
        let Some(wait) = self.roster.lock().pace(&address, place, traffic, &mut |below| env.draw(below)) else {
            return;
        };
        let prober = self.probers[place].clone();
        let key = (address.clone(), place);
        let (check, handle) = abortable(async move {
            sleep(wait).await;
            let (outcome, why) = prober.check(&mut patient).await;
            Check { address, place, patient, outcome, why }
        });
        self.checks.push(check.boxed());
        match self.running.entry(key) {
            Entry::Occupied(mut old) => old.insert(handle).abort(),
            Entry::Vacant(none) => _ = none.insert(handle),
        }
    }

    /// Whether the cluster has had requests.
    fn has_traffic(&self) -> bool {
        self.cluster.upgrade().is_some_and(|cluster| cluster.members().in_use().next().is_some())
    }

    fn take(&mut self, check: Result<Check, Aborted>, changed: &mut Vec<Address>) {
        // Its endpoint is gone.
        let Ok(Check { address, place, patient, outcome, why }) = check else { return };
        match outcome {
            Some(outcome) => {
                self.series.checked(outcome == CheckOutcome::Passed);
                for change in self.roster.lock().checked(&address, place, outcome) {
                    self.note(&address, Some(change), &why, changed);
                }
            }
            // That says nothing of the endpoint.
            None => {
                let cluster = self.policy.name.as_str();
                tracing::warn!(cluster, endpoint = %address, reason = why, "health check could not be made");
            }
        }
        self.begin(address, place, patient);
    }

    fn sweep(&mut self, changed: &mut Vec<Address>) {
        let Some(cluster) = self.cluster.upgrade() else { return };
        let members = cluster.members();
        let tallies: Vec<(Address, Tally)> =
            watches(&members).map(|(address, watch)| (address.clone(), watch.vitals.take_tally())).collect();
        let now = self.env.since_epoch(Instant::now());
        let env = self.env.clone();
        for (address, change) in self.roster.lock().sweep(&tallies, now, &mut |below| env.draw(below)) {
            self.note(&address, Some(change), "", changed);
        }
    }

    /// Counts a change and tells of it.
    fn note(&self, address: &Address, change: Option<Change>, why: &str, changed: &mut Vec<Address>) {
        let Some(change) = change else { return };
        let cluster = self.policy.name.as_str();
        self.series.changed(change);
        match change {
            Change::Ejected(reason, time) => {
                let reason = reason.as_str();
                tracing::warn!(cluster, endpoint = %address, reason, ?time, "endpoint ejected");
            }
            Change::NotEnforced(reason) => {
                let reason = reason.as_str();
                tracing::debug!(cluster, endpoint = %address, reason, "outlier not ejected: not in the enforced share");
            }
            Change::Overflow(reason) => {
                let reason = reason.as_str();
                // Not louder: while many fail, that is said at every limit that each of them reaches.
                tracing::debug!(cluster, endpoint = %address, reason, "outlier not ejected: as many as allowed are");
            }
            Change::Returned => tracing::info!(cluster, endpoint = %address, "ejected endpoint returned"),
            Change::CheckFailed => {
                tracing::warn!(cluster, endpoint = %address, reason = why, "endpoint failed its health check");
            }
            Change::CheckPassed => tracing::info!(cluster, endpoint = %address, "endpoint passed its health check"),
            Change::Penalized(time) => {
                tracing::warn!(cluster, endpoint = %address, ?time, "endpoint out after failures in a row");
            }
            Change::Recovered => tracing::info!(cluster, endpoint = %address, "endpoint passed its probation"),
        }
        if !matches!(change, Change::NotEnforced(_) | Change::Overflow(_)) {
            changed.push(address.clone());
        }
    }

    /// Puts the standings of changed endpoints down, and builds the set anew if that changes who may be picked.
    fn settle(&mut self, cluster: &Cluster, changed: &mut Vec<Address>) {
        let members = cluster.members();
        let now = self.env.since_epoch(Instant::now());
        let mut rebuild = false;
        for address in changed.drain(..) {
            let Some(index) = members.ready.find_kept(&address) else { continue };
            let candidate = members.ready.candidate(index);
            let before = candidate.load().map_or(Standing::Good, |load| load.standing());
            let standing = self.roster.lock().standing(&address);
            if before == standing {
                continue;
            }
            let load = candidate.load_or_new();
            load.set_standing(standing);
            if standing.is_admitted() && !before.is_admitted() {
                if let Some(watch) = watch_at(&members, &address) {
                    watch.vitals.reset();
                }
                if self.policy.slow_start.is_some() {
                    load.ramp_from(now);
                }
            }
            // Nobody picks what is outside.
            rebuild |= !members.ready.is_outside(index);
        }
        let ejected = self.roster.lock().ejected();
        self.series.ejected(self.shown, ejected);
        self.shown = ejected;
        if rebuild {
            cluster.refresh(&self.env);
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.series.ejected(self.shown, 0);
    }
}

/// The endpoints outside that had requests. No check is made of them, as of others nobody picks.
fn outside(members: &Members) -> impl Iterator<Item = (&Address, Member)> {
    let member = Member { usable: false, checked: false, outside: true };
    let kept = members.ready.outside().into_iter().flat_map(|outside| outside.kept());
    kept.map(move |(endpoint, ..)| (&endpoint.address, member))
}

/// The endpoints that had requests and are watched.
fn watches(members: &Members) -> impl Iterator<Item = (&Address, &Watch)> {
    members.in_use().filter_map(|endpoint| Some((endpoint.address(), endpoint.watch()?)))
}

fn watch_at<'m>(members: &'m Members, address: &Address) -> Option<&'m Watch> {
    members.ready.endpoint(members.ready.find_kept(address)?).get()?.watch()
}

fn every(period: Duration) -> Interval {
    // A period of 0 is no period.
    let period = period.max(Duration::from_millis(1));
    let first = Instant::now().checked_add(period).unwrap_or_else(Instant::now);
    let mut sweeps = interval_at(first, period);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    sweeps
}

async fn tick(sweeps: &mut Option<Interval>) {
    match sweeps {
        Some(sweeps) => _ = sweeps.tick().await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
