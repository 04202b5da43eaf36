//! Blocks whose codes stay and whose d and dmin change: what tuning them for a loss needs.
//!
//! With the factors f and t of its sub-blocks and the levels q of its codes, a block has the weights
//!
//! ```text
//!  w = d · f · q − dmin · t          ∂L/∂d = Σ ∂L/∂w · f · q          ∂L/∂dmin = − Σ ∂L/∂w · t
//! ```

use super::{Levels, Step};
use crate::quant::{Format, Half};

/// The stored scales d and dmin of a block. dmin is 0 in formats without mins, and not stored there.
pub type Halves = [Half; 2];

impl Format {
    /// Returns how many numbers scale a block: none, d, or d and dmin.
    pub fn n_halves(&self) -> usize {
        self.grid.as_ref().map_or(0, |grid| 1 + usize::from(grid.has_min()))
    }

    /// Returns the scales of each of `blocks`; `None` if the format has none.
    ///
    /// # Panics
    /// If `blocks` is not whole blocks.
    pub fn halves(&self, blocks: &[u8]) -> Option<Vec<Halves>> {
        let grid = self.grid.as_ref()?;
        assert_eq!(blocks.len() % grid.bytes, 0);
        let of = |block| {
            let scales = (grid.scales)(block);
            [scales.d, scales.dmin]
        };
        Some(blocks.chunks_exact(grid.bytes).map(of).collect())
    }

    /// Replaces the scales of a block. Its factors and codes stay as they are. A format without scales ignores it.
    ///
    /// # Panics
    /// If `block` has another length.
    pub fn set_halves(&self, block: &mut [u8], [d, dmin]: Halves) {
        let Some(grid) = &self.grid else { return };
        let scales = (grid.scales)(block);
        (grid.set_scales)(&super::Scales { d, dmin, ..scales }, block);
    }

    /// Adds to `sums` the gradients of d and dmin of each of `blocks`, where `gradients` are those of its weights. A format
    /// without scales ignores it.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn add_halves_gradients(&self, blocks: &[u8], gradients: &[f32], sums: &mut [[f64; 2]]) {
        let Some(grid) = &self.grid else { return };
        assert_eq!(blocks.len(), sums.len() * grid.bytes);
        assert_eq!(gradients.len(), sums.len() * grid.len);
        let mut codes = vec![0; grid.len];
        let blocks = blocks.chunks_exact(grid.bytes).zip(gradients.chunks_exact(grid.len));
        for ((block, gradients), [of_d, of_dmin]) in blocks.zip(sums) {
            let scales = (grid.read)(block, &mut codes);
            let pieces = codes.chunks_exact(grid.sub_block).zip(gradients.chunks_exact(grid.sub_block));
            for ((codes, gradients), (factor, min_factor)) in pieces.zip(scales.factors.iter().zip(&scales.min_factors))
            {
                let (mut along, mut all) = (0.0, 0.0);
                for (code, gradient) in codes.iter().zip(gradients) {
                    along += f64::from(grid.levels.level(*code)) * f64::from(*gradient);
                    all += f64::from(*gradient);
                }
                *of_d += f64::from(*factor) * along;
                *of_dmin -= f64::from(*min_factor) * all;
            }
        }
    }
}

impl Levels {
    /// The level that `code` stands for.
    fn level(self, code: u8) -> f32 {
        self.value(Step::symmetric(1.0), code)
    }
}

#[cfg(test)]
mod tests {
    use crate::quant::samples::Random;
    use crate::quant::{FORMATS, Half};

    fn blocks(format: &crate::quant::Format, n: usize) -> Vec<u8> {
        let mut random = Random::new(11);
        let row: Vec<f32> = (0..n * format.ty.block_len()).map(|_| random.normal() + 0.1).collect();
        let importance = vec![1.0; row.len()];
        let mut blocks = vec![0; n * format.ty.block_bytes()];
        format.quantize_rows(&row, row.len(), Some(&importance), &mut blocks);
        blocks
    }

    #[test]
    fn scales_that_are_set_again_leave_every_block_as_it_was() {
        for format in FORMATS {
            let blocks = blocks(format, 5);
            let halves = format.halves(&blocks);
            assert_eq!(halves.is_some(), format.n_halves() > 0, "{}", format.ty);
            for (block, halves) in blocks.chunks(format.ty.block_bytes()).zip(halves.into_iter().flatten()) {
                let mut again = block.to_vec();
                format.set_halves(&mut again, halves);
                assert_eq!(again, block, "{}", format.ty);
            }
        }
    }

    #[test]
    fn weights_are_linear_in_the_scales_and_gradients_are_their_slopes() {
        let mut random = Random::new(12);
        for format in FORMATS.iter().filter(|format| format.n_halves() > 0) {
            let (len, bytes) = (format.ty.block_len(), format.ty.block_bytes());
            let blocks = blocks(format, 3);
            let gradients: Vec<f32> = (0..3 * len).map(|_| random.normal()).collect();
            let mut found = vec![[1.0; 2]; 3];
            format.add_halves_gradients(&blocks, &gradients, &mut found);
            for (index, block) in blocks.chunks(bytes).enumerate() {
                // The loss is linear in the weights, and these in the scales: one difference is the slope.
                let loss = |halves: [f32; 2]| {
                    let mut block = block.to_vec();
                    format.set_halves(&mut block, halves.map(Half::new));
                    let mut weights = vec![0.0; len];
                    format.dequantize(&block, &mut weights);
                    let terms = weights.iter().zip(&gradients[index * len..]);
                    terms.map(|(w, g)| f64::from(*w) * f64::from(*g)).sum::<f64>()
                };
                let of_d = loss([2.0, 0.0]) - loss([1.0, 0.0]);
                let of_dmin = if format.n_halves() == 2 { loss([1.0, 1.0]) - loss([1.0, 0.0]) } else { 0.0 };
                for (found, wanted) in found[index].iter().zip([of_d, of_dmin]) {
                    let error = (found - 1.0 - wanted).abs();
                    assert!(error < 1e-3 * (1.0 + wanted.abs()), "{}: {found}, {wanted}", format.ty);
                }
            }
        }
    }
}
