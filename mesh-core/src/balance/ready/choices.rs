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

    /// Those of a pool that a pick may give, and where all of it are away those that it gives instead.
    fn choices_of(&self, pool: &Pool, pick: &Pick<'_>) -> Vec<usize> {
        let own =
            |may_be: &dyn Fn(usize) -> bool| pool.range.clone().filter(|index| may_be(*index)).collect::<Vec<_>>();
        let good = own(&|index| self.is_good(index, pick));
        if !good.is_empty() {
            return good;
        }
        let untried = own(&|index| !pick.tried.contains(&index));
        let last = if untried.is_empty() { own(&|_| true) } else { untried };
        let (away, mut choices): (Vec<usize>, Vec<usize>) = last.into_iter().partition(|index| self.is_away_at(*index));
        if away.is_empty() {
            return choices;
        }
        if let Some(others) = self.instead(pool, |index| self.is_good(index, pick)) {
            choices.extend(others);
            return choices;
        }
        let (due, rest): (Vec<usize>, Vec<usize>) = away.into_iter().partition(|index| self.is_due(*index, pick));
        choices.extend(due);
        if !rest.is_empty() {
            choices.extend(self.instead(pool, |index| self.is_due(index, pick)).unwrap_or(rest));
        }
        choices
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
