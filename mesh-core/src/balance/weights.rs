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

    /// Draws an index; those of `tried` only when nothing else is left.
    pub(super) fn draw(&self, tried: &[usize], draw: &mut Draw<'_>) -> Option<usize> {
        if self.len() == 0 {
            return None;
        }
        if tried.is_empty() {
            return Some(self.at(draw(self.total())));
        }
        let excluded = Excluded::new(tried, self.len());
        let left = self.total() - excluded.0.iter().map(|i| self.weight(*i)).sum::<u64>();
        if left == 0 {
            return Some(self.at(draw(self.total())));
        }
        // The draw falls on the line of weights with the excluded stretches cut out: each stretch that
        // begins at or before the point pushes it on by its own length.
        let mut point = draw(left);
        for index in &excluded.0 {
            let start = self.start(*index);
            if point < start {
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
    pub(super) fn new(tried: &[usize], len: usize) -> Self {
        let mut indices: SmallVec<[usize; 8]> = tried.iter().copied().filter(|i| *i < len).collect();
        indices.sort_unstable();
        indices.dedup();
        Self(indices)
    }

    pub(super) fn contains(&self, index: usize) -> bool {
        self.0.binary_search(&index).is_ok()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
