//! What is known of matrices that were not rounded yet.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::calibration::Moments;
use crate::quant::rounding::{MomentsError, OutputMoments, SecondMoments};

/// Memory that second moments may take before those of the oldest places are dropped. A layer of Yi-34B takes 3.5 GiB,
/// but its matrices are asked for one after the other. Small models are not stored in that order, so all is kept of them.
const MOST_BYTES: usize = 2 << 30;

/// Second moments of what enters a matrix, and of the gradients of what leaves it.
pub struct Sums {
    /// Of what enters.
    pub inputs: Moments,
    /// Of the gradients, if there are any: those of [`blocks`] of rows, each by itself.
    pub outputs: Vec<Moments>,
}

/// Rows of a matrix whose gradients are taken to depend on one another, at most.
///
/// All 20,480 rows of a matrix of Yi-34B together would take three times as many multiplications by these moments, and 1.7 GB.
/// In `yi-nano`, eighths of 768 rows leave 1.1 % more than all rows together do, and thirds 0.6 %.
pub const MOST_ROWS: usize = 8192;

/// Divides rows into equal blocks of at most so many.
pub fn blocks(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let each = rows.div_ceil(rows.div_ceil(most).max(1)).next_multiple_of(32);
    (0..rows).step_by(each.max(1)).map(move |first| first..rows.min(first + each))
}

/// The same, prepared for rounding.
pub struct Prepared {
    /// Of what enters.
    pub inputs: Arc<SecondMoments>,
    /// Of the gradients, as in [`Sums`].
    pub outputs: Vec<OutputMoments>,
}

/// What is added to the mean squares of gradients, as a part of their mean over all rows.
///
/// A row without any gradient would otherwise be free to make up for all others, and get errors that are larger than its
/// weights, of which no gradient can tell what they do. In SmolLM2 that ruins attention: of all roundings of its queries, KLD is
/// 0.0037 for the inputs alone, 2.7 two-sided, and 0.0015 two-sided with this (Q4_0, 1,024 tokens).
pub const OUTPUT_DAMPING: f64 = 0.1;

/// Returns the second moments of gradients as they are rounded for: an estimate, damped by [`OUTPUT_DAMPING`]. Row by row;
/// only the lower triangle means anything.
pub fn damped(sums: &Moments) -> Vec<f32> {
    let (mut values, n) = (sums.estimate(), sums.columns());
    let mean = (0..n).map(|i| f64::from(values[i * n + i])).sum::<f64>() / n.max(1) as f64;
    values.iter_mut().step_by(n + 1).for_each(|value| *value += (OUTPUT_DAMPING * mean) as f32);
    values
}

enum Entry {
    Summed(Sums),
    /// Shared by matrices with the same input, so many of which have not asked yet.
    Shared(Arc<SecondMoments>, usize),
}

/// Second moments by place, and by the name of the tensor or of its input.
#[derive(Default)]
pub struct Known {
    /// In the order in which they became known.
    places: Vec<(usize, HashMap<String, Entry>)>,
}

impl Known {
    /// Returns whether anything was ever known, and not dropped since, of a place.
    pub fn has(&self, place: usize) -> bool {
        self.places.iter().any(|(known, _)| *known == place)
    }

    /// Adds what is known of a place. Drops the oldest if all takes too much memory, but not the one before it: in the files of
    /// a checkpoint, a layer may begin before another ends.
    pub fn add(&mut self, place: usize, sums: HashMap<String, Sums>) {
        self.places.retain(|(known, _)| *known != place);
        self.places.push((place, sums.into_iter().map(|(name, sums)| (name, Entry::Summed(sums))).collect()));
        let bytes = |(_, entries): &(usize, HashMap<String, Entry>)| entries.values().map(Entry::bytes).sum::<usize>();
        while self.places.len() > 2 && self.places.iter().map(bytes).sum::<usize>() > MOST_BYTES {
            self.places.remove(0);
        }
    }

    /// Takes what was summed up of a place and not asked for.
    pub fn take_place(&mut self, place: usize) -> HashMap<String, Sums> {
        let Some(at) = self.places.iter().position(|(known, _)| *known == place) else { return HashMap::new() };
        let (_, entries) = self.places.remove(at);
        let summed = |(name, entry)| match entry {
            Entry::Summed(sums) => Some((name, sums)),
            Entry::Shared(..) => None,
        };
        entries.into_iter().filter_map(summed).collect()
    }

    /// Prepares what is known by `name`, which `uses` matrices ask for: the last one takes it. `None` if nothing is known.
    ///
    /// # Errors
    /// If the sums are not finite.
    pub fn take(&mut self, place: usize, name: &str, uses: usize) -> Result<Option<Prepared>, MomentsError> {
        let Some((_, entries)) = self.places.iter_mut().find(|(known, _)| *known == place) else { return Ok(None) };
        let Some(entry) = entries.remove(name) else { return Ok(None) };
        let (inputs, outputs, left) = match entry {
            Entry::Summed(Sums { inputs, outputs }) => {
                let of_block = |sums: Moments| OutputMoments::new(damped(&sums), sums.columns());
                let outputs = outputs.into_iter().map(of_block).collect::<Result<_, _>>()?;
                let inputs = SecondMoments::new(inputs.estimate(), inputs.columns())?;
                (Arc::new(inputs), outputs, uses.saturating_sub(1))
            }
            Entry::Shared(inputs, left) => (inputs, Vec::new(), left - 1),
        };
        if left > 0 {
            entries.insert(name.to_string(), Entry::Shared(inputs.clone(), left));
        }
        Ok(Some(Prepared { inputs, outputs }))
    }
}

#[cfg(test)]
impl Known {
    /// What was summed up and not asked for.
    pub fn sums(&self, place: usize, name: &str) -> Option<&Sums> {
        let (_, entries) = self.places.iter().find(|(known, _)| *known == place)?;
        match entries.get(name)? {
            Entry::Summed(sums) => Some(sums),
            Entry::Shared(..) => None,
        }
    }

    /// Places of which anything is known.
    pub fn places(&self) -> Vec<usize> {
        self.places.iter().map(|(place, _)| *place).collect()
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        match self {
            Self::Summed(sums) => sums.inputs.bytes() + sums.outputs.iter().map(Moments::bytes).sum::<usize>(),
            Self::Shared(moments, _) => 6 * moments.columns() * moments.columns(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(columns: usize) -> Sums {
        let mut inputs = Moments::new(columns);
        inputs.add(&vec![1.0; columns]);
        Sums { inputs, outputs: Vec::new() }
    }

    #[test]
    fn the_last_one_that_asks_takes_it() {
        let mut known = Known::default();
        known.add(3, [("a", 40), ("b", 8)].map(|(name, n)| (name.to_string(), sums(n))).into());
        let first = known.take(3, "a", 2).unwrap().unwrap();
        let second = known.take(3, "a", 2).unwrap().unwrap();
        assert!(Arc::ptr_eq(&first.inputs, &second.inputs) && first.inputs.columns() == 40);
        assert!(known.take(3, "a", 2).unwrap().is_none() && known.take(3, "c", 1).unwrap().is_none());
        assert!(known.take(4, "a", 1).unwrap().is_none());
        assert!(known.has(3) && !known.has(4));
        assert_eq!(known.take(3, "b", 1).unwrap().unwrap().inputs.columns(), 8);
    }

    #[test]
    fn rows_are_divided_into_equal_blocks() {
        let of = |rows, most| blocks(rows, most).collect::<Vec<_>>();
        assert_eq!(of(768, 8192), vec![0..768; 1]);
        assert_eq!(of(20_480, 8192), [0..6848, 6848..13_696, 13_696..20_480]);
        assert_eq!(of(70, 40), [0..64, 64..70]);
        assert!(of(0, 40).is_empty());
    }

    #[test]
    fn no_row_is_free_to_make_up_for_the_others() {
        let mut gradients = Moments::new(3);
        gradients.add(&[3.0, 0.0, 0.0]);
        let values = damped(&gradients);
        assert!([9.3, 0.3, 0.3].iter().zip([0, 4, 8]).all(|(wanted, at)| (values[at] - wanted).abs() < 1e-6_f32));
    }

    #[test]
    fn the_oldest_are_dropped_where_memory_is_short() {
        let mut known = Known::default();
        // 0.8 GB each, of which nothing is touched.
        for place in 0..4 {
            known.add(place, [("a".to_string(), Sums { inputs: Moments::new(20_000), outputs: Vec::new() })].into());
        }
        assert_eq!(known.places(), [2, 3]);
        for place in 4..9 {
            known.add(place, [("a".to_string(), sums(8))].into());
        }
        assert_eq!(known.places(), [2, 3, 4, 5, 6, 7, 8]);
    }
}
