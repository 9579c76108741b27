//! The endpoints of one cluster as their owner knows them: who is ejected and until when, what checks said, who has a
//! penalty. One [`Standing`] each follows from it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::accrual::{AccrualState, penalty};
use super::check::{CheckOutcome, Checked, below, first_check};
use super::rates::{below_the_mean, beyond_the_share};
use super::vitals::Counts;
use super::{Reason, Standing, Tally};
use crate::balance::Draw;
use crate::policy::{Cluster, OutlierDetection, PerMillion};

/// The endpoints of one cluster, by `K`.
#[derive(Debug)]
pub struct Roster<K> {
    policy: Arc<Cluster>,
    entries: HashMap<K, Entry, RandomState>,
    ejected: usize,
}

/// What the owner says of an endpoint when it takes it in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The control plane lets it be used.
    pub usable: bool,
    /// It is checked.
    pub checked: bool,
    /// It is outside of what this client uses, and has requests of sessions alone. It is judged for itself: what it does and whether
    /// it is out count for nothing where endpoints are compared or counted.
    pub outside: bool,
}

#[derive(Debug)]
struct Entry {
    member: Member,
    ejection: Option<Ejection>,
    // Ejections counted against it: the next one lasts as many times longer.
    ejections: u32,
    // One for each of the policy's checks, or none if it is not checked.
    checks: SmallVec<[Checked; 1]>,
    penalty: Penalty,
}

#[derive(Clone, Copy, Debug)]
struct Ejection {
    reason: Reason,
    until: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Penalty {
    // In a row.
    times: u32,
    until: Option<Duration>,
}

/// What happened to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was ejected, for this time at least.
    Ejected(Reason, Duration),
    /// It is an outlier and was not ejected: policy enforces a share only, and it was not in it.
    NotEnforced(Reason),
    /// It is an outlier and was not ejected: as many as allowed are.
    Overflow(Reason),
    /// Its ejection is over.
    Returned,
    /// Its health check failed.
    CheckFailed,
    /// It passed its health check again, or for the first time.
    CheckPassed,
    /// Too many failures in a row: out for this time, and then on probation.
    Penalized(Duration),
    /// It passed its probation.
    Recovered,
}

impl<K: Clone + Eq + Hash> Roster<K> {
    /// The roster of a cluster without endpoints.
    pub fn new(policy: Arc<Cluster>) -> Self {
        Self { policy, entries: HashMap::default(), ejected: 0 }
    }

    /// Takes over who is in the cluster now; of those that stay nothing is forgotten. Gives who is new.
    pub fn sync(&mut self, members: impl IntoIterator<Item = (K, Member)>) -> Vec<K> {
        let mut old = std::mem::take(&mut self.entries);
        let mut new = Vec::new();
        let checks = self.policy.health_checks.len();
        for (key, member) in members {
            let mut entry = old.remove(&key).unwrap_or_else(|| {
                new.push(key.clone());
                Entry::new(member)
            });
            entry.member = member;
            entry.checks.resize(if member.checked { checks } else { 0 }, Checked::default());
            self.entries.insert(key, entry);
        }
        self.ejected = self.entries.values().filter(|entry| entry.ejection.is_some() && !entry.member.outside).count();
        new
    }

    /// Takes in one more, unless it is there.
    pub fn join(&mut self, key: &K, member: Member) {
        if !self.entries.contains_key(key) {
            self.entries.insert(key.clone(), Entry::new(member));
        }
    }

    /// What follows for the endpoint; good if it is not known.
    pub fn standing(&self, key: &K) -> Standing {
        self.entries.get(key).map_or(Standing::Good, Entry::standing)
    }

    /// Everybody, with what follows.
    pub fn standings(&self) -> impl Iterator<Item = (&K, Standing)> {
        self.entries.iter().map(|(key, entry)| (key, entry.standing()))
    }

    /// How many are ejected.
    pub fn ejected(&self) -> usize {
        self.ejected
    }

    /// Whether it is in the cluster.
    pub fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// An endpoint reached a limit of failures in a row.
    pub fn limit_reached(&mut self, key: &K, reason: Reason, now: Duration, draw: &mut Draw<'_>) -> Option<Change> {
        let policy = self.policy.clone();
        self.eject(key, reason, policy.outlier.as_ref()?, now, draw)
    }

    /// The interval is over: whose time is up returns, and who failed too much since the last one is ejected.
    pub fn sweep(&mut self, tallies: &[(K, Tally)], now: Duration, draw: &mut Draw<'_>) -> Vec<(K, Change)> {
        let policy = self.policy.clone();
        let Some(policy) = &policy.outlier else { return Vec::new() };
        let mut changes = Vec::new();
        for (key, entry) in &mut self.entries {
            match &entry.ejection {
                Some(ejection) if ejection.until <= now => {
                    entry.ejection = None;
                    self.ejected -= entry.counted();
                    changes.push((key.clone(), Change::Returned));
                }
                Some(_) => {}
                // An interval without an ejection: the next one is shorter again.
                None => entry.ejections = entry.ejections.saturating_sub(1),
            }
        }
        let judged: Vec<_> = tallies
            .iter()
            .filter(|(key, _)| self.entries.get(key).is_some_and(|e| e.ejection.is_none() && !e.member.outside))
            .collect();
        let answers: Vec<Counts> = judged.iter().map(|(_, tally)| tally.answers).collect();
        let connections: Vec<Counts> = judged.iter().map(|(_, tally)| tally.connections).collect();
        for (reason, places) in outliers(policy, &answers, &connections) {
            for place in places {
                let key = &judged[place].0;
                changes.extend(self.eject(key, reason, policy, now, draw).map(|change| (key.clone(), change)));
            }
        }
        changes
    }

    /// A health check came to its end. `check` is its place in the policy.
    pub fn checked(&mut self, key: &K, check: usize, outcome: CheckOutcome) -> SmallVec<[Change; 2]> {
        let mut changes = SmallVec::new();
        let policy = &self.policy;
        let entry = self.entries.get_mut(key);
        let Some((entry, rule)) = entry.zip(policy.health_checks.get(check)) else { return changes };
        let (failed, unchecked) = (entry.has_failed(), entry.is_unchecked());
        let Some(checked) = entry.checks.get_mut(check) else { return changes };
        checked.note(outcome, rule);
        match (failed, entry.has_failed()) {
            (false, true) => changes.push(Change::CheckFailed),
            (true, false) => changes.push(Change::CheckPassed),
            (false, false) if unchecked && !entry.is_unchecked() => changes.push(Change::CheckPassed),
            _ => {}
        }
        let well = outcome == CheckOutcome::Passed && !entry.has_failed() && !entry.is_unchecked();
        let ends = policy.outlier.as_ref().is_some_and(|outlier| outlier.health_check_unejects);
        if well && ends && entry.ejection.take().is_some() {
            self.ejected -= entry.counted();
            changes.push(Change::Returned);
        }
        changes
    }

    /// How long to wait before the next check of an endpoint; `traffic`: the cluster has had requests. `None` = it
    /// is not checked.
    pub fn pace(&self, key: &K, check: usize, traffic: bool, draw: &mut Draw<'_>) -> Option<Duration> {
        let (entry, policy) = self.entries.get(key).zip(self.policy.health_checks.get(check))?;
        let checked = entry.checks.get(check)?;
        Some(if checked.is_unchecked() { first_check(policy, draw) } else { checked.pace(policy, traffic, draw) })
    }

    /// The breaker of an endpoint is in this state.
    pub fn accrued(&mut self, key: &K, state: AccrualState, now: Duration, draw: &mut Draw<'_>) -> Option<Change> {
        let (policy, entry) = (self.policy.accrual.as_ref()?, self.entries.get_mut(key)?);
        let Penalty { times, until } = &mut entry.penalty;
        match state {
            AccrualState::Open if until.is_none() => {
                let time = penalty(policy, *times, draw);
                *until = Some(now.saturating_add(time));
                *times = times.saturating_add(1);
                Some(Change::Penalized(time))
            }
            AccrualState::Closed if *times > 0 => {
                entry.penalty = Penalty::default();
                Some(Change::Recovered)
            }
            _ => None,
        }
    }

    /// Whose penalty is over: let one request through to each ([`Accrual::begin_probation`](super::Accrual)).
    pub fn begin_probations(&mut self, now: Duration) -> Vec<K> {
        let mut due = Vec::new();
        for (key, entry) in &mut self.entries {
            if entry.penalty.until.is_some_and(|until| until <= now) {
                entry.penalty.until = None;
                due.push(key.clone());
            }
        }
        due
    }

    /// When the next penalty is over.
    pub fn next_probation(&self) -> Option<Duration> {
        self.entries.values().filter_map(|entry| entry.penalty.until).min()
    }

    fn eject(
        &mut self,
        key: &K,
        reason: Reason,
        policy: &OutlierDetection,
        now: Duration,
        draw: &mut Draw<'_>,
    ) -> Option<Change> {
        if self.entries.get(key)?.ejection.is_some() {
            return None;
        }
        let counted = self.entries.get(key)?.counted();
        if !self.has_room(key, counted, policy) {
            return Some(Change::Overflow(reason));
        }
        if !enforced(policy, reason).hit(draw(PerMillion::ALL.get().into()) as u32) {
            return Some(Change::NotEnforced(reason));
        }
        let entry = self.entries.get_mut(key)?;
        // Longer each time, up to the first time that lasts as long as any may.
        let times = entry.ejections.saturating_add(1);
        let time = policy.base_ejection.saturating_mul(times);
        // The first is never cut short (gRFC A50).
        let longest = policy.max_ejection.max(policy.base_ejection);
        if time < longest.saturating_add(policy.base_ejection) {
            entry.ejections = times;
        }
        let jitter = policy.max_ejection_jitter.saturating_add(Duration::from_nanos(1));
        let time = time.min(longest).saturating_add(below(jitter, draw));
        entry.ejection = Some(Ejection { reason, until: now.saturating_add(time) });
        self.ejected += counted;
        Some(Change::Ejected(reason, time))
    }

    /// Whether one more may be ejected: within the share, or the first one if others are left to serve. With a share of 0 none may
    /// (gRFC A50: an ejection needs less than the share before it). One outside takes nothing from those that serve.
    fn has_room(&self, key: &K, counted: usize, policy: &OutlierDetection) -> bool {
        if counted == 0 {
            return policy.max_ejected.get() > 0;
        }
        let all = self.entries.values().map(|entry| entry.counted() as u64).sum::<u64>();
        let after = self.ejected as u64 + 1;
        let within = after * u64::from(PerMillion::ALL.get()) <= all * u64::from(policy.max_ejected.get());
        let others = || self.entries.iter().any(|(other, entry)| other != key && entry.serves());
        let is_first = self.ejected == 0 && policy.max_ejected.get() > 0;
        within || is_first && others()
    }
}

impl Entry {
    fn new(member: Member) -> Self {
        Self { member, ejection: None, ejections: 0, checks: SmallVec::new(), penalty: Penalty::default() }
    }

    /// What it is where endpoints are counted.
    fn counted(&self) -> usize {
        usize::from(!self.member.outside)
    }

    /// The gravest counts: a failed check is seen, an outlier is inferred.
    fn standing(&self) -> Standing {
        match &self.ejection {
            _ if self.has_failed() => Standing::FailedCheck,
            Some(ejection) => Standing::Ejected(ejection.reason),
            None if self.penalty.until.is_some() => Standing::Penalty,
            None if self.is_unchecked() => Standing::Unchecked,
            None => Standing::Good,
        }
    }

    fn serves(&self) -> bool {
        self.member.usable && self.standing().is_admitted()
    }

    fn has_failed(&self) -> bool {
        self.checks.iter().any(Checked::is_unhealthy)
    }

    fn is_unchecked(&self) -> bool {
        self.checks.iter().any(Checked::is_unchecked)
    }
}

/// Who fails too much, by each rule of the policy.
fn outliers(policy: &OutlierDetection, answers: &[Counts], connections: &[Counts]) -> Vec<(Reason, Vec<usize>)> {
    let mut found = Vec::new();
    for (counts, by_rate, by_share) in [
        (answers, Reason::SuccessRate, Reason::FailurePercentage),
        (connections, Reason::LocalOriginSuccessRate, Reason::LocalOriginFailurePercentage),
    ] {
        found.extend(policy.success_rate.as_ref().map(|rule| (by_rate, below_the_mean(counts, rule))));
        found.extend(policy.failure_percentage.as_ref().map(|rule| (by_share, beyond_the_share(counts, rule))));
    }
    found
}

/// The share of outliers that are really ejected.
fn enforced(policy: &OutlierDetection, reason: Reason) -> PerMillion {
    let none = PerMillion::NONE;
    let (rate, share) = (policy.success_rate.as_ref(), policy.failure_percentage.as_ref());
    match reason {
        Reason::Consecutive5xx => policy.enforcing.server_error,
        Reason::ConsecutiveGatewayFailure => policy.enforcing.gateway,
        Reason::ConsecutiveLocalOriginFailure => policy.enforcing.local_origin,
        Reason::SuccessRate => rate.map_or(none, |rule| rule.enforcing),
        Reason::LocalOriginSuccessRate => rate.map_or(none, |rule| rule.enforcing_local_origin),
        Reason::FailurePercentage => share.map_or(none, |rule| rule.enforcing),
        Reason::LocalOriginFailurePercentage => share.map_or(none, |rule| rule.enforcing_local_origin),
    }
}
