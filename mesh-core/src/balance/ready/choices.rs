//! Among whom a pick is made: for people, not for the request path.

use std::collections::BTreeSet;

use super::{Pool, ReadySet, has_other};
use crate::balance::Pick;

impl<E> ReadySet<E> {
    /// The indices that a [`pick`](Self::pick) like this could give now, in order. Of balancers that hash or have an order it
    /// is one of them by that; here are all that it is one of.
    pub fn choices(&self, pick: &Pick<'_>) -> Vec<usize> {
        let mut choices = BTreeSet::new();
        for pool in self.pools_for(pick) {
            let mut own = Vec::new();
            if self.is_left(pool.priority, pick) {
                own = self.beside(pool, |index| self.is_elsewhere(index, pick));
            }
            if own.is_empty() {
                own = self.choices_of(pool, pick);
            }
            if let Some(next) = self.next_priority(pool, pick).filter(|_| self.spills(&own)) {
                choices.extend(self.beside(next, |index| self.is_good(index, pick)));
            }
            choices.extend(own);
        }
        choices.into_iter().collect()
    }

    /// The pools one of which such a pick is made in.
    fn pools_for(&self, pick: &Pick<'_>) -> Vec<&Pool> {
        let others = |pool: &Pool| self.pools[pool.beside.clone()].iter().filter(|pool| has_other(pool, pick));
        if !pick.away_from.is_empty()
            && let Some(other) = self.other_priority(pick)
        {
            return others(other).collect();
        }
        let Some((first, last)) = self.pools.first().zip(self.pools.last()) else { return Vec::new() };
        if first.until == last.until {
            return vec![first];
        }
        let mut before = 0;
        let served = self.pools.iter().filter(|pool| pool.until > std::mem::replace(&mut before, pool.until));
        let all = served.flat_map(|pool| {
            let passes = pick.tried.is_empty() || has_other(pool, pick);
            let others: Vec<&Pool> = if passes { Vec::new() } else { others(pool).collect() };
            if others.is_empty() { vec![pool] } else { others }
        });
        all.collect()
    }

    /// Those of a pool that a pick may give, and where none of it can be reached those that it gives instead.
    fn choices_of(&self, pool: &Pool, pick: &Pick<'_>) -> Vec<usize> {
        if self.is_left_alone(pool.priority)
            && let Some(there) = self.instead(pool, |index| self.is_there(index, pick))
        {
            return there;
        }
        let good: Vec<usize> = pool.range.clone().filter(|index| self.is_good(*index, pick)).collect();
        if !good.is_empty() {
            return good;
        }
        let untried: Vec<usize> = pool.range.clone().filter(|index| !pick.tried.contains(index)).collect();
        let mut last = if untried.is_empty() { pool.range.clone().collect() } else { untried };
        let is_reachable = |index: &usize| !self.is_unreachable(*index, pick.now);
        if !last.iter().all(is_reachable)
            && let Some(others) = self.instead(pool, |index| self.is_good(index, pick))
        {
            last.retain(is_reachable);
            last.extend(others);
        }
        last
    }

    /// Those of other pools that `may_be`, of the first that has any.
    fn instead(&self, pool: &Pool, may_be: impl Fn(usize) -> bool) -> Option<Vec<usize>> {
        let each = self.pools.iter().enumerate().filter(|(place, other)| *place == other.beside.start);
        let others = std::iter::once(pool).chain(each.map(|(_, other)| other));
        others.map(|other| self.beside(other, &may_be)).find(|others| !others.is_empty())
    }

    /// Whether a request for which one of these was picked may go on to the next priority for what they have in flight.
    fn spills(&self, own: &[usize]) -> bool {
        let busiest = own.iter().map(|index| self.candidates[*index].in_flight()).max();
        self.spill.as_ref().zip(busiest).is_some_and(|(spill, busiest)| spill.may_go_on(busiest))
    }

    /// Those that `may_be`, of the localities that `pool` is beside.
    fn beside(&self, pool: &Pool, may_be: impl Fn(usize) -> bool) -> Vec<usize> {
        let all = self.pools[pool.beside.clone()].iter().flat_map(|pool| pool.range.clone());
        all.filter(|index| may_be(*index)).collect()
    }
}
