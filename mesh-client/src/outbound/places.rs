//! Where the tries of a request go: to which endpoint of its cluster the next one, by its session, its retry policy and what
//! came of those before.
//!
//! Refuses to know connections, and whether there is a next one.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::balance::Pick;
use mesh_core::policy::{Address, RetryPolicy};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::attempt::Progress;
use super::session::Session;
use crate::cluster::{Cluster, Members};
use crate::env::Env;
use crate::router::Retries;

/// Endpoints with unwanted metadata passed over in one pick (Istio `host_selection_retry_max_attempts`).
const MAX_AVOIDED: usize = 5;

/// What decides where the tries of a request go.
pub(crate) struct Places<'t> {
    pub(crate) env: &'t Arc<Env>,
    pub(crate) cluster: &'t Arc<Cluster>,
    pub(crate) members: Arc<Members>,
    pub(crate) retries: Option<&'t Retries>,
    pub(crate) session: &'t Session<'t>,
    pub(crate) hash: Option<u64>,
}

/// Where one retry would go.
pub(crate) struct Foreseen {
    /// Index of the member.
    pub(crate) index: usize,
    /// Whether a try before it was there.
    pub(crate) repeated: bool,
    /// Those among which it would be picked.
    pub(crate) among: Vec<usize>,
}

impl Places<'_> {
    fn policy(&self) -> Option<&RetryPolicy> {
        self.retries.map(|retries| &retries.policy)
    }

    /// The member of the next try; `full` can take no further request.
    pub(super) fn pick(&self, progress: &Progress, tried: &[usize], now: Duration, full: &[usize]) -> Option<usize> {
        if let Some(address) = self.session.address() {
            let is_out = |index: usize| tried.contains(&index) || full.contains(&index) || self.is_away(index);
            match self.pinned(address) {
                // A retry goes elsewhere, unless the session must not; so does what could not be connected to (gRFC A55).
                Some(index) if self.session.is_strict() || !is_out(index) => return Some(index),
                None if self.session.is_strict() => return None,
                _ => {}
            }
        }
        let tried = if tried.is_empty() { tried } else { self.avoided(progress) };
        let away_from = self.left(progress);
        let both: SmallVec<[usize; 8]>;
        let pick = Pick {
            now,
            tried: if full.is_empty() {
                tried
            } else {
                both = tried.iter().chain(full).copied().collect();
                &both
            },
            hash: self.hash,
            away_from,
        };
        match self.policy().filter(|policy| !policy.avoid_metadata.is_empty() && progress.retried > 0) {
            Some(policy) => self.pick_without(policy, progress, full, &pick),
            None => {
                let index = self.pick_there(progress, full, &pick)?;
                // All of its priority were tried: rather another one than once more who cannot be connected to.
                let exhausted = away_from.is_empty() && progress.unreached.contains(&index);
                let other = || self.pick_one(&Pick { away_from: &[index], ..pick });
                Some(if exhausted { other().unwrap_or(index) } else { index })
            }
        }
    }

    /// Where another try does not go while there are others.
    pub(super) fn avoided<'p>(&self, progress: &'p Progress) -> &'p [usize] {
        let avoid = self.policy().is_none_or(|policy| policy.avoid_previous_hosts);
        if avoid { &progress.tried } else { &progress.unreached }
    }

    /// Whose priorities another try leaves: those of where it was, and not of who is full.
    fn left<'p>(&self, progress: &'p Progress) -> &'p [usize] {
        let leave = progress.silent || self.policy().is_some_and(|policy| policy.next_locality);
        if leave { &progress.tried } else { &[] }
    }

    /// Whether there is a place to go but those that were tried; see [`ReadySet::has_elsewhere`](mesh_core::balance::ReadySet).
    pub(super) fn has_elsewhere(&self, progress: &Progress, waited: Duration) -> bool {
        let now = self.env.since_epoch(Instant::now());
        let pick = Pick { now, tried: &progress.tried, hash: self.hash, away_from: &progress.tried };
        self.members.ready.has_elsewhere(&pick, waited)
    }

    /// Where the session is pinned to, if it may be asked.
    fn pinned(&self, address: &Address) -> Option<usize> {
        self.members.ready.pinned(address, &self.cluster.policy().override_host).map(|(index, _)| index)
    }

    /// The session's endpoint, away, if a try goes to the one at `index` in its place.
    pub(super) fn missed(&self, index: usize) -> Option<usize> {
        let address = self.session.address()?;
        let is_own = self.members.ready.policy(index).1.address == *address;
        let missed = if is_own { None } else { self.pinned(address) };
        missed.filter(|missed| self.is_away(*missed))
    }

    fn is_away(&self, index: usize) -> bool {
        self.members.ready.load(index).is_some_and(|load| load.is_away())
    }

    /// A pick that would rather have one that was tried and is there than one that is away: no request finds out whether that is
    /// back.
    fn pick_there(&self, progress: &Progress, full: &[usize], pick: &Pick<'_>) -> Option<usize> {
        let index = self.pick_one(pick)?;
        if pick.tried.is_empty() || !self.is_away(index) {
            return Some(index);
        }
        let out: SmallVec<[usize; 8]> = progress.unreached.iter().chain(full).copied().collect();
        let again = self.pick_one(&Pick { tried: &out, ..*pick })?;
        Some(if self.is_away(again) || out.contains(&again) { index } else { again })
    }

    fn pick_one(&self, pick: &Pick<'_>) -> Option<usize> {
        self.members.ready.pick(pick, &mut |below| self.env.draw(below)).map(|(index, _)| index)
    }

    /// A pick that passes over endpoints with the metadata that retries avoid, while there are others.
    fn pick_without(
        &self,
        policy: &RetryPolicy,
        progress: &Progress,
        full: &[usize],
        pick: &Pick<'_>,
    ) -> Option<usize> {
        let mut passed: SmallVec<[usize; 8]> = pick.tried.into();
        let first = self.pick_there(progress, full, pick)?;
        let mut index = first;
        for _ in 0..MAX_AVOIDED {
            if !self.is_unwanted(policy, index) {
                return Some(index);
            }
            passed.push(index);
            index = self.pick_one(&Pick { tried: &passed, ..*pick })?;
            if passed.contains(&index) {
                break;
            }
        }
        Some(first)
    }

    fn is_unwanted(&self, policy: &RetryPolicy, index: usize) -> bool {
        let lb = &self.members.ready.candidates().policy(index).1.metadata.lb;
        let mut sets = policy.avoid_metadata.iter();
        sets.any(|labels| labels.iter().all(|(key, value)| lb.get(key) == Some(value)))
    }

    /// Where so many retries would go one after the other, were the try at `first` and each of them connected to and then of no
    /// use: for people who ask. Each is a pick like any other.
    pub(crate) fn foresee(&self, first: usize, retries: u32) -> Vec<Foreseen> {
        let now = self.env.since_epoch(Instant::now());
        let mut progress = Progress::default();
        progress.tried.push(first);
        let mut places = Vec::new();
        while progress.retried < retries {
            progress.retried += 1;
            let Some(index) = self.pick(&progress, &progress.tried, now, &[]) else { break };
            let mut among = if self.session.is_strict() { Vec::new() } else { self.choices(&progress, now) };
            // A session's, or one that a pick gave up looking for another of.
            if !among.contains(&index) {
                among.push(index);
            }
            places.push(Foreseen { index, repeated: progress.tried.contains(&index), among });
            progress.tried.push(index);
        }
        places
    }

    /// Among whom a retry's endpoint is picked.
    fn choices(&self, progress: &Progress, now: Duration) -> Vec<usize> {
        let pick = Pick { now, tried: self.avoided(progress), hash: self.hash, away_from: self.left(progress) };
        let mut choices = self.members.ready.choices(&pick);
        if choices.iter().all(|index| self.is_away(*index)) {
            let mut there = self.members.ready.choices(&Pick { tried: &progress.unreached, ..pick });
            there.retain(|index| !self.is_away(*index));
            choices = if there.is_empty() { choices } else { there };
        }
        if let Some(policy) = self.policy() {
            let unwanted = choices.iter().filter(|index| self.is_unwanted(policy, **index)).count();
            // With more of them than that a pick may give up and take one.
            if unwanted < MAX_AVOIDED.min(choices.len()) {
                choices.retain(|index| !self.is_unwanted(policy, *index));
            }
        }
        choices
    }
}
