//! Blocks: ranges of dependent tokens, which are resampled as a unit.

use std::ops::Range;

/// A slice with at least this many windows is not cut further.
const ENOUGH_WINDOWS: usize = 24;

/// The fewest tokens in a part of a window: as many as in a whole window of the default size.
const FEWEST_TOKENS: usize = 255;

/// The fewest blocks for an interval. With 6, the intervals of mean KLD have a simulated coverage of 94%.
const FEWEST_BLOCKS: usize = 6;

/// Blocks: ranges of tokens, each within one window and one slice.
///
/// Neighbouring tokens are alike, and so are the tokens of a window, because a difficult text stays difficult for a
/// while. Windows are assumed to be independent, and a block is a window. Only windows of 510 or more scored tokens are
/// cut, and only if a slice has fewer than 24: into parts of 255 tokens or more, the default size of a whole window,
/// until there are 24 blocks or no more can be made. Shorter parts do harm: with 8 windows of 255 tokens, each cut into
/// three, the simulated coverage of a difference's interval was 90%, and with whole windows 96% (a twentieth of the
/// variance was between windows).
#[derive(Clone, Debug)]
pub struct Blocks {
    /// The tokens of each block, stratum by stratum.
    ranges: Vec<Range<usize>>,
    /// The slice of each block.
    slices: Vec<usize>,
    /// The blocks of each stratum: those of a slice, or of several slices with one block each.
    strata: Vec<Range<usize>>,
    /// Number of tokens of all windows, including those outside of these blocks.
    n_tokens: usize,
}

impl Blocks {
    /// Cuts windows into blocks. A window is given by its slice and its number of scored tokens. Tokens are counted
    /// from 0 over all windows, in this order.
    ///
    /// Each slice is a stratum: a resample has as many blocks of each slice as there are. Slices with one block are
    /// merged.
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

    /// Makes one block of each range, however long it is.
    pub(super) fn of_parts(mut parts: Vec<(usize, Range<usize>)>, n_tokens: usize) -> Self {
        parts.retain(|(_, range)| !range.is_empty());
        // The sort is stable: within a slice, blocks stay in the text's order.
        parts.sort_by_key(|(slice, _)| *slice);
        let (slices, ranges): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let mut blocks = Self { ranges, slices, strata: Vec::new(), n_tokens };
        blocks.make_strata();
        blocks
    }

    /// Returns the blocks of one slice. Columns still have the values of all slices; those of other slices are ignored.
    pub fn only(&self, slice: usize) -> Self {
        let parts = self.slices.iter().copied().zip(self.ranges.iter().cloned());
        Self::of_parts(parts.filter(|part| part.0 == slice).collect(), self.n_tokens)
    }

    /// Returns the number of blocks.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Returns whether there are no blocks.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Returns the number of tokens in these blocks.
    pub fn n_tokens(&self) -> usize {
        self.ranges.iter().map(Range::len).sum()
    }

    /// Returns the length of a column: one value for each token of all windows passed to [`Blocks::of_windows`].
    pub fn column_len(&self) -> usize {
        self.n_tokens
    }

    /// Returns the tokens of each block, slice by slice.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// The blocks of each stratum.
    pub(super) fn strata(&self) -> &[Range<usize>] {
        &self.strata
    }

    /// Returns the number of blocks minus the number of strata.
    pub(super) fn degrees_of_freedom(&self) -> usize {
        self.ranges.len() - self.strata.len()
    }

    /// Returns whether there are enough blocks for an interval.
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
        // A single block does not show how its slice varies, so it is merged with the next slice, or at the end with
        // the previous one.
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
