//! Drawing an index in proportion to its weight.

use smallvec::SmallVec;

use super::{Candidate, Draw};

#[derive(Debug)]
pub(super) enum Weights {
    /// All alike: any index is as good as another.
    Equal(usize),
    /// Running sums.
    Sums(Box<[u64]>),
}

impl Weights {
    pub(super) fn new(candidates: &[Candidate]) -> Self {
        if candidates.windows(2).all(|pair| pair[0].weight == pair[1].weight) {
            return Self::Equal(candidates.len());
        }
        let mut sum = 0;
        let sums = candidates.iter().map(|candidate| {
            sum += u64::from(candidate.weight.get());
            sum
        });
        Self::Sums(sums.collect())
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Equal(len) => *len,
            Self::Sums(sums) => sums.len(),
        }
    }

    /// Draws an index that is not excluded; `None` if there is none.
    pub(super) fn draw(&self, excluded: &Excluded, draw: &mut Draw<'_>) -> Option<usize> {
        let left = self.total() - excluded.0.iter().map(|i| self.weight(*i)).sum::<u64>();
        if left == 0 {
            return None;
        }
        // The draw falls on the line of weights with the excluded stretches cut out: each stretch that
        // begins at or before the point pushes it on by its own length.
        let mut point = draw(left);
        for index in &excluded.0 {
            if point < self.start(*index) {
                break;
            }
            point += self.weight(*index);
        }
        Some(self.at(point))
    }

    fn total(&self) -> u64 {
        match self {
            Self::Equal(len) => *len as u64,
            Self::Sums(sums) => sums.last().copied().unwrap_or(0),
        }
    }

    fn start(&self, index: usize) -> u64 {
        match self {
            Self::Equal(_) => index as u64,
            Self::Sums(sums) => index.checked_sub(1).map_or(0, |before| sums[before]),
        }
    }

    fn weight(&self, index: usize) -> u64 {
        match self {
            Self::Equal(_) => 1,
            Self::Sums(sums) => sums[index] - self.start(index),
        }
    }

    /// The index whose stretch of the line holds `point`.
    fn at(&self, point: u64) -> usize {
        match self {
            Self::Equal(_) => point as usize,
            Self::Sums(sums) => sums.partition_point(|sum| *sum <= point),
        }
    }
}

/// Indices not to be chosen: in order, each once, all within the set.
pub(super) struct Excluded(SmallVec<[usize; 8]>);

impl Excluded {
    /// Those of `tried` that are in a set of `len`; none if that would leave nothing to choose.
    pub(super) fn new(tried: &[usize], len: usize) -> Self {
        let mut indices: SmallVec<[usize; 8]> = tried.iter().copied().filter(|i| *i < len).collect();
        indices.sort_unstable();
        indices.dedup();
        if indices.len() == len {
            indices.clear();
        }
        Self(indices)
    }

    pub(super) fn insert(&mut self, index: usize) {
        if let Err(at) = self.0.binary_search(&index) {
            self.0.insert(at, index);
        }
    }

    pub(super) fn contains(&self, index: usize) -> bool {
        self.0.binary_search(&index).is_ok()
    }
}
