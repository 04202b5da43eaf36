//! What is known of matrices that were not rounded yet.

use std::collections::HashMap;
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
    /// Of the gradients, if there are any.
    pub outputs: Option<Moments>,
}

/// The same, prepared for rounding.
pub struct Prepared {
    /// Of what enters.
    pub inputs: Arc<SecondMoments>,
    /// Of the gradients.
    pub outputs: Option<OutputMoments>,
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

    /// Prepares what is known by `name`, which `uses` matrices ask for: the last one takes it. `None` if nothing is known.
    ///
    /// # Errors
    /// If the sums are not finite.
    pub fn take(&mut self, place: usize, name: &str, uses: usize) -> Result<Option<Prepared>, MomentsError> {
        let Some((_, entries)) = self.places.iter_mut().find(|(known, _)| *known == place) else { return Ok(None) };
        let Some(entry) = entries.remove(name) else { return Ok(None) };
        let (inputs, outputs, left) = match entry {
            Entry::Summed(Sums { inputs, outputs }) => {
                let outputs = outputs.map(|sums| OutputMoments::new(sums.estimate(), sums.columns())).transpose()?;
                let inputs = SecondMoments::new(inputs.estimate(), inputs.columns())?;
                (Arc::new(inputs), outputs, uses.saturating_sub(1))
            }
            Entry::Shared(inputs, left) => (inputs, None, left - 1),
        };
        if left > 0 {
            entries.insert(name.to_string(), Entry::Shared(inputs.clone(), left));
        }
        Ok(Some(Prepared { inputs, outputs }))
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        match self {
            Self::Summed(sums) => sums.inputs.bytes() + sums.outputs.as_ref().map_or(0, Moments::bytes),
            Self::Shared(moments, _) => 6 * moments.columns() * moments.columns(),
        }
    }
}
