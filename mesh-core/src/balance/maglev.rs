//! Consistent hashing by Maglev's table (Envoy `MAGLEV`; Eisenbud et al., NSDI 2016).

use twox_hash::XxHash64;

use super::weights::Excluded;
use super::{Candidates, Draw, Pick, Picker};

/// A table whose slots are dealt out to the candidates by weight, each following a permutation of its
/// own; a request's hash names a slot. Weights are kept more exactly than on a ring, at the price of
/// a few more moved keys when a candidate comes or goes.
///
/// A request without a hash goes to a random slot.
#[derive(Debug)]
pub struct Maglev {
    table: Box<[u32]>,
    len: usize,
}

/// Where a candidate's permutation is, and when its next turn is due.
struct Turn {
    slot: usize,
    skip: usize,
    weight: u64,
    due: u64,
}

const FREE: u32 = u32::MAX;

impl Maglev {
    /// A table of `table_size` slots, which is brought up to the next prime: permutations need one.
    pub fn new(candidates: &Candidates, table_size: u64) -> Self {
        let len = candidates.len();
        if len == 0 {
            return Self { table: Box::default(), len };
        }
        let size = (table_size.max(2)..).find(|n| is_prime(*n)).expect("there is no largest prime") as usize;
        let heaviest = candidates.iter().map(|c| u64::from(c.weight.get())).max().unwrap_or(1);
        let mut turns: Vec<Turn> = (0..len)
            .map(|index| {
                let key = candidates.hash_key(index);
                let slot = (XxHash64::oneshot(0, key.as_bytes()) % size as u64) as usize;
                let skip = (XxHash64::oneshot(1, key.as_bytes()) % (size as u64 - 1)) as usize + 1;
                Turn { slot, skip, weight: u64::from(candidates[index].weight.get()), due: 0 }
            })
            .collect();
        let mut table = vec![FREE; size];
        let mut left = size;
        for round in 1_u64.. {
            for (index, turn) in turns.iter_mut().enumerate() {
                // One of a third of the largest weight has its turn in every third round.
                if round * turn.weight < turn.due {
                    continue;
                }
                turn.due += heaviest;
                while table[turn.slot] != FREE {
                    turn.slot = (turn.slot + turn.skip) % size;
                }
                table[turn.slot] = index as u32;
                left -= 1;
                if left == 0 {
                    return Self { table: table.into(), len };
                }
            }
        }
        unreachable!("the heaviest takes a slot in every round")
    }

    #[cfg(test)]
    pub(super) fn slots(&self, index: usize) -> usize {
        self.table.iter().filter(|other| **other as usize == index).count()
    }
}

fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

impl Picker for Maglev {
    fn pick(&self, pick: &Pick<'_>, draw: &mut Draw<'_>) -> Option<usize> {
        let size = self.table.len() as u64;
        if size == 0 {
            return None;
        }
        let start = (pick.hash.unwrap_or_else(|| draw(size)) % size) as usize;
        let excluded = Excluded::new(pick.tried, self.len);
        let onwards = self.table[start..].iter().chain(&self.table[..start]);
        let found = onwards.map(|index| *index as usize).find(|index| !excluded.contains(*index));
        // A table smaller than the set leaves some without a slot.
        found.or_else(|| (0..self.len).find(|index| !excluded.contains(*index)))
    }

    fn may_ramp(&self) -> bool {
        false
    }
}
