//! The block that Q4_1 and Q5_1 share: 32 weights x ≈ d·q + m, q from 0 to max. As in [`symmetric`](super::symmetric),
//! scales are computed with one block per lane, and codes with one weight per lane.

// The derive of `Pod` repeats the bound of the type in a where clause.
#![allow(clippy::multiple_bound_locations)]

use super::pack::Codes;
use super::{Twin, limited};
use crate::gguf::TensorType;
use crate::lanes::Lanes;
use crate::quant::block::{array_of, dequantize_blocks, quantize_blocks, row_mean_square};
use crate::quant::rounding::{Levels, Rescale, Scales, Step};
use crate::quant::rows::{MeanSquares, Rows};
use crate::quant::search::affine::{self as search, Affine, AffineBatch, AffineSearch};
use crate::quant::search::batch::SmallBatch;
use crate::quant::search::numbers::{
    divide_or_zero, divide_or_zero_lanes, halves, importance_weights, importance_weights_lanes, smallest_and_largest,
    smallest_and_largest_lanes, stored, truncate_lanes, truncate_to_byte,
};
use crate::quant::{Block, Half, ImportanceUse, Scaled};

/// 32 weights.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, packed)]
pub struct Affine32<Q: Codes<32>> {
    /// The scale d.
    pub d: Half,
    /// The offset m.
    pub m: Half,
    /// The codes q.
    pub qs: Q,
}

impl<Q: Codes<32>> Affine32<Q> {
    /// The largest code.
    const MAX: i32 = (1 << Q::BITS) - 1;

    /// Returns d, m and the codes.
    fn search(x: &[f32; 32], importance: Option<&[f32; 32]>, mean_square: f32) -> (f32, f32, [u8; 32]) {
        match importance {
            None => {
                let (smallest, largest) = smallest_and_largest(x);
                let d = (largest - smallest) / Self::MAX as f32;
                let inverse = divide_or_zero(1.0, d);
                let codes = x.map(|x| truncate_to_byte((x - smallest) * inverse + 0.5));
                (d, smallest, limited(&codes, Self::MAX as i8))
            }
            Some(importance) => {
                let mut codes = [0; 32];
                let weights = importance_weights(importance, mean_square, x);
                let fit = search::fit(AffineSearch::weighted(Self::MAX), x, &weights, &mut codes);
                (fit.scale, -fit.min, codes)
            }
        }
    }
}

impl<Q: Codes<32>> Block for Affine32<Q>
where
    Self: Twin,
{
    const TYPE: TensorType = <Self as Twin>::TYPE;
    const LEN: usize = 32;
    const IMPORTANCE: ImportanceUse = ImportanceUse::Used;
    const LIMIT: f32 = <Self as Twin>::LIMIT;
    const LIMIT_WITH_IMPORTANCE: f32 = <Self as Twin>::LIMIT_WITH_IMPORTANCE;

    fn quantize_row(src: &[f32], importance: Option<&[f32]>, dst: &mut [Self]) {
        let mean_square = row_mean_square(src, importance);
        quantize_blocks::<32, Self>(src, importance, dst, |x, importance| {
            let (d, m, codes) = Self::search(x, importance, mean_square);
            Self { d: Half::new(d), m: Half::new(m), qs: Q::pack(&codes) }
        });
    }

    #[inline(always)]
    fn quantize_rows<L: Lanes>(l: L, rows: Rows, dst: &mut [Self]) {
        quantize_rows(
            l,
            Self::MAX,
            rows,
            #[inline(always)]
            |index: usize, [d, m]: [Half; 2], codes: &[u8; 32]| dst[index] = Self { d, m, qs: Q::pack(codes) },
        );
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        dequantize_blocks::<32, Self>(src, dst, |block| {
            let (d, m, qs) = (block.d.value(), block.m.value(), block.qs);
            qs.unpack().map(|q| f32::from(q) * d + m)
        });
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.m.is_finite()
    }
}

impl<Q: Codes<32>> Scaled for Affine32<Q>
where
    Self: Twin,
{
    const SUB_BLOCK: usize = 32;
    const LEVELS: Levels = Levels::whole(0, Self::MAX);
    type Steps = [Step; 1];

    fn fit(x: &[f32], importance: Option<&[f32]>, mean_square: f32) -> Self {
        let (d, m, codes) = Self::search(array_of(x), importance.map(array_of), mean_square);
        Self { d: Half::new(d), m: Half::new(m), qs: Q::pack(&codes) }
    }

    fn steps(&self) -> [Step; 1] {
        [Step { scale: self.d.value(), min: -self.m.value() }]
    }

    fn set_codes(&mut self, codes: &[u8]) {
        self.qs = Q::pack(array_of(codes));
    }
}

impl<Q: Codes<32>> Rescale for Affine32<Q>
where
    Self: Twin,
{
    const FACTORS: [i16; 2] = [1, 1];
    // m is added, and a min is taken away.
    const MIN_FACTORS: [i16; 2] = [-1, -1];

    fn scales(&self) -> Scales {
        Scales { dmin: self.m, min_factors: [-1; 16], ..Scales::of_one(self.d) }
    }

    fn set_scales(&mut self, scales: &Scales) {
        (self.d, self.m) = (scales.d, scales.dmin);
    }

    fn codes(&self, codes: &mut [u8]) {
        let qs = self.qs;
        codes.copy_from_slice(&qs.unpack());
    }
}

/// Quantizes rows by lanes. `put` gets the number, d and m, and q of each block.
#[inline(always)]
fn quantize_rows<L: Lanes>(l: L, max: i32, rows: Rows, put: impl FnMut(usize, [Half; 2], &[u8; 32])) {
    match rows.importance {
        None => plain_rows(l, max, rows, put),
        Some(_) => searched_rows(l, max, rows, put),
    }
}

/// Without importance, the codes span the weights from the smallest to the largest. `put` gets the number, d and m, and
/// q of each block.
#[inline(always)]
fn plain_rows<L: Lanes>(l: L, max: i32, rows: Rows, mut put: impl FnMut(usize, [Half; 2], &[u8; 32])) {
    for batch in SmallBatch::of(l, rows) {
        let (smallest, largest) = smallest_and_largest_lanes(&batch.columns(l, 0));
        let d = (largest - smallest) / l.splat(max as f32);
        let inverses = stored(l, divide_or_zero_lanes(l, l.splat(1.0), d));
        let offsets = stored(l, smallest);
        let (d, m) = (halves(l, d), halves(l, smallest));
        for (b, x) in batch.blocks.iter().enumerate() {
            let (inverse, offset, half) = (l.splat(inverses[b]), l.splat(offsets[b]), l.splat(0.5));
            let codes = truncate_lanes(
                l,
                x,
                #[inline(always)]
                |x| (x - offset) * inverse + half,
            );
            // Only Q4_1 is defined with this limit. In Q5_1 it has no effect, because no code is above 31.
            put(batch.first + b, [d[b], m[b]], &limited(&codes, max as i8));
        }
    }
}

/// With importance, d and m ≤ 0 are searched.
#[inline(always)]
fn searched_rows<L: Lanes>(l: L, max: i32, rows: Rows, mut put: impl FnMut(usize, [Half; 2], &[u8; 32])) {
    let options = AffineSearch::weighted(max);
    let mean_squares = MeanSquares::of(l, rows);
    for batch in SmallBatch::of(l, rows) {
        let Some(importance) = batch.importance(l, 0) else { return };
        let mean_squares = mean_squares.of_blocks(l, batch.first);
        let x = batch.columns(l, 0);
        let (weights, _) = importance_weights_lanes(l, &x, &importance, l.load(&mean_squares));
        let mut found = AffineBatch::<1>::new();
        found.search(l, 0, options, &x, &weights);
        for (b, x) in batch.blocks.iter().enumerate() {
            let mut codes = [0; 32];
            let affine = match batch.block_importance(b) {
                Some(importance) if found.odd[b] != [0.0] => {
                    search::fit(options, x, &importance_weights(importance, mean_squares[b], x), &mut codes)
                }
                _ => {
                    codes = found.codes(options, b, 0, x);
                    Affine { scale: found.scales[b][0], min: found.mins[b][0] }
                }
            };
            put(batch.first + b, [Half::new(affine.scale), Half::new(-affine.min)], &codes);
        }
    }
}
