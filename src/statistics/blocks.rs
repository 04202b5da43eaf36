//! Blocks: runs of tokens that depend on each other, and are drawn as one.

use std::ops::Range;

/// Windows that a slice needs before none of them is cut.
const ENOUGH_WINDOWS: usize = 24;

/// The fewest tokens of a part of a window: as many as a whole window of the usual size has.
const FEWEST_TOKENS: usize = 255;

/// The fewest blocks of an interval: with 6, those of mean KLD hold the true one 94 times in 100, as simulated.
const FEWEST_BLOCKS: usize = 6;

/// Blocks: ranges of tokens, each within one window and one slice.
///
/// Tokens next to each other are alike, and so are those of one window: what is hard about a text stays hard for a while.
/// Windows are taken to be independent, and the block is the window. Only windows of 510 scored tokens and more are cut,
/// and only where a slice has fewer than 24: into parts of 255 tokens or more, the size of a whole window by default, until
/// there are 24 blocks or no more can be made. To cut shorter does harm: 8 windows of 255 tokens cut into three gave
/// intervals that hold the true difference 90 times in 100 where whole windows gave 96, as simulated with a twentieth of
/// the variance between windows.
#[derive(Clone, Debug)]
pub struct Blocks {
    /// The tokens of each block, stratum by stratum.
    ranges: Vec<Range<usize>>,
    /// The slice of each block.
    slices: Vec<usize>,
    /// The blocks of each stratum: those of a slice, or of several slices with one block each.
    strata: Vec<Range<usize>>,
    /// Tokens of all windows, those outside of these blocks too.
    n_tokens: usize,
}

impl Blocks {
    /// Cuts windows into blocks. A window is given by its slice and the number of its scored tokens; tokens are counted over
    /// all windows, in this order, from 0.
    ///
    /// Each slice is a stratum: a resample has as many blocks of each as there are. Slices with one block are put together.
    pub fn of_windows(windows: &[(usize, usize)]) -> Self {
        let mut parts: Vec<(usize, Range<usize>)> = Vec::with_capacity(windows.len());
        let mut from = 0;
        for &(slice, n_scored) in windows {
            let n_windows = windows.iter().filter(|window| window.0 == slice && window.1 > 0).count();
            let wanted = ENOUGH_WINDOWS.div_ceil(n_windows.max(1));
            let n_parts = wanted.min(n_scored / FEWEST_TOKENS).max(1);
            let cut = |part: usize| from + n_scored * part / n_parts;
            parts.extend((0..n_parts).map(|part| (slice, cut(part)..cut(part + 1))));
            from += n_scored;
        }
        Self::of_parts(parts, from)
    }

    /// A block per window, however long: of what is in the ranges alone.
    pub(super) fn of_parts(mut parts: Vec<(usize, Range<usize>)>, n_tokens: usize) -> Self {
        parts.retain(|(_, range)| !range.is_empty());
        // A stable sort: in a slice, blocks stay in the text's order.
        parts.sort_by_key(|(slice, _)| *slice);
        let (slices, ranges): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let mut blocks = Self { ranges, slices, strata: Vec::new(), n_tokens };
        blocks.make_strata();
        blocks
    }

    /// The blocks of one slice. Values are given as for all: those of other slices are left out.
    pub fn only(&self, slice: usize) -> Self {
        let parts = self.slices.iter().copied().zip(self.ranges.iter().cloned());
        Self::of_parts(parts.filter(|part| part.0 == slice).collect(), self.n_tokens)
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Tokens of these blocks.
    pub fn n_tokens(&self) -> usize {
        self.ranges.iter().map(Range::len).sum()
    }

    /// How many values a column has: one for each token of every window that [`Blocks::of_windows`] was given.
    pub fn column_len(&self) -> usize {
        self.n_tokens
    }

    /// The tokens of each block, slice by slice.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// The blocks of each stratum.
    pub(super) fn strata(&self) -> &[Range<usize>] {
        &self.strata
    }

    /// Blocks less strata: what is left of their variance after each stratum's mean.
    pub(super) fn degrees_of_freedom(&self) -> usize {
        self.ranges.len() - self.strata.len()
    }

    /// Whether intervals can be trusted.
    pub(super) fn are_enough(&self) -> bool {
        self.len() >= FEWEST_BLOCKS
    }

    fn make_strata(&mut self) {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (block, slice) in self.slices.iter().enumerate() {
            match runs.last_mut() {
                Some(run) if self.slices[run.start] == *slice => run.end = block + 1,
                _ => runs.push(block..block + 1),
            }
        }
        // One block says nothing about how its slice varies: it stands with the next, or at the end with the one before.
        for run in runs {
            match self.strata.last_mut() {
                Some(last) if last.len() < 2 => last.end = run.end,
                _ => self.strata.push(run),
            }
        }
        if self.strata.len() > 1 && self.strata.last().is_some_and(|last| last.len() < 2) {
            self.strata.pop();
            if let Some(last) = self.strata.last_mut() {
                last.end = self.slices.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_a_block_and_a_slice_a_stratum() {
        let blocks = Blocks::of_windows(&[(0, 255), (1, 255), (0, 0), (0, 200), (1, 255)]);
        assert_eq!(blocks.ranges(), [0..255, 510..710, 255..510, 710..965]);
        assert_eq!(blocks.strata(), [0..2, 2..4]);
        assert_eq!((blocks.len(), blocks.n_tokens(), blocks.column_len()), (4, 965, 965));
        let only = blocks.only(1);
        assert_eq!(only.ranges(), [255..510, 710..965]);
        assert_eq!((only.strata().len(), only.n_tokens(), only.column_len()), (1, 510, 965));
        assert!(blocks.only(7).is_empty() && Blocks::of_windows(&[]).is_empty());
    }

    #[test]
    fn long_windows_are_cut_where_there_are_few() {
        let few = Blocks::of_windows(&[(0, 2047); 4]);
        assert_eq!(few.len(), 24);
        assert!(few.ranges().iter().all(|range| range.len() >= FEWEST_TOKENS));
        assert_eq!(few.n_tokens(), 4 * 2047);
        assert_eq!(Blocks::of_windows(&[(0, 509); 4]).len(), 4, "too short to cut");
        assert_eq!(Blocks::of_windows(&[(0, 1023); 4]).len(), 16);
        assert_eq!(Blocks::of_windows(&[(0, 2047); 24]).len(), 24, "enough");
    }

    #[test]
    fn slices_of_one_block_stand_with_others() {
        let strata = |windows: &[(usize, usize)]| -> Vec<(usize, usize)> {
            Blocks::of_windows(windows).strata().iter().map(|stratum| (stratum.start, stratum.end)).collect()
        };
        assert_eq!(strata(&[(0, 9), (1, 9), (2, 9), (2, 9)]), [(0, 2), (2, 4)]);
        assert_eq!(strata(&[(0, 9), (0, 9), (1, 9)]), [(0, 3)]);
        assert_eq!(strata(&[(0, 9), (1, 9), (1, 9)]), [(0, 3)]);
        assert_eq!(strata(&[(0, 9)]), [(0, 1)]);
    }
}
