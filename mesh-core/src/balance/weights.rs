//! Drawing an index in proportion to its weight, in the same time whatever the number of candidates
//! (Walker's alias method).

use smallvec::SmallVec;

use super::{Candidate, Draw};

/// The table of an alias draw; empty if all weigh the same.
#[derive(Debug)]
pub(super) struct Weights(Box<[Alias]>);

/// One column: what falls below `keep` is the column's own, the rest another's.
#[derive(Clone, Copy, Debug)]
struct Alias {
    keep: u32,
    other: u32,
}

/// Draws that may fall on excluded candidates before all weights are added up.
const HOPES: usize = 4;

impl Weights {
    pub(super) fn new(candidates: &[Candidate]) -> Self {
        if candidates.windows(2).all(|pair| pair[0].weight == pair[1].weight) {
            return Self(Box::default());
        }
        let sum: f64 = candidates.iter().map(|c| f64::from(c.weight.get())).sum();
        let scale = candidates.len() as f64 / sum;
        let mut left: Vec<f64> = candidates.iter().map(|c| f64::from(c.weight.get()) * scale).collect();
        let (mut poor, mut rich): (Vec<usize>, Vec<usize>) = (0..left.len()).partition(|i| left[*i] < 1.0);
        let mut table = vec![Alias { keep: u32::MAX, other: 0 }; left.len()];
        // Each column below average is filled up from one above.
        while let (Some(small), Some(&large)) = (poor.pop(), rich.last()) {
            table[small] = Alias { keep: (left[small] * f64::from(u32::MAX)) as u32, other: large as u32 };
            left[large] -= 1.0 - left[small];
            if left[large] < 1.0 {
                rich.pop();
                poor.push(large);
            }
        }
        // What remains is full but for rounding.
        for index in poor.into_iter().chain(rich) {
            table[index] = Alias { keep: u32::MAX, other: index as u32 };
        }
        Self(table.into())
    }

    /// Draws an index that is not excluded; `None` if there is none.
    pub(super) fn draw(&self, candidates: &[Candidate], out: &Excluded<'_>, draw: &mut Draw<'_>) -> Option<usize> {
        if candidates.is_empty() {
            return None;
        }
        for _ in 0..HOPES {
            let index = self.any(candidates.len(), draw);
            if !out.contains(index) {
                return Some(index);
            }
        }
        let allowed = || candidates.iter().enumerate().filter(|(index, _)| !out.contains(*index));
        let total: u64 = allowed().map(|(_, c)| u64::from(c.weight.get())).sum();
        let mut point = if total == 0 { return None } else { draw(total) };
        for (index, candidate) in allowed() {
            match point.checked_sub(u64::from(candidate.weight.get())) {
                Some(rest) => point = rest,
                None => return Some(index),
            }
        }
        None
    }

    /// Whether all weigh the same.
    #[inline]
    pub(super) fn are_equal(&self) -> bool {
        self.0.is_empty()
    }

    /// Two different indices in one draw, if all weigh the same and there are two.
    #[inline]
    pub(super) fn pair(&self, len: usize, draw: &mut Draw<'_>) -> Option<(usize, usize)> {
        if !self.are_equal() || len < 2 {
            return None;
        }
        let point = draw((len as u64) << 32);
        // The lower half says how far the second is from the first.
        let (first, apart) =
            ((point >> 32) as usize, 1 + ((u64::from(point as u32) * (len as u64 - 1)) >> 32) as usize);
        let second = first + apart;
        Some((first, if second < len { second } else { second - len }))
    }

    fn any(&self, len: usize, draw: &mut Draw<'_>) -> usize {
        if self.are_equal() {
            return draw(len as u64) as usize;
        }
        // One draw for the column and the place in it.
        let point = draw((len as u64) << 32);
        let (column, place) = ((point >> 32) as usize, point as u32);
        let alias = self.0[column];
        if place <= alias.keep { column } else { alias.other as usize }
    }
}

/// Indices not to be chosen.
pub(super) struct Excluded<'a> {
    tried: &'a [usize],
    own: SmallVec<[usize; 8]>,
}

impl<'a> Excluded<'a> {
    /// Those of `tried`; none if that would leave nothing to choose.
    pub(super) fn new(tried: &'a [usize], len: usize) -> Self {
        let all = tried.len() >= len && (0..len).all(|index| tried.contains(&index));
        Self { tried: if all { &[] } else { tried }, own: SmallVec::new() }
    }

    pub(super) fn insert(&mut self, index: usize) {
        self.own.push(index);
    }

    pub(super) fn contains(&self, index: usize) -> bool {
        self.tried.contains(&index) || self.own.contains(&index)
    }
}
