//! The block that Q4_0 and Q5_0 share: 32 weights x ≈ d·(q − half), q from 0 to 2·half − 1.
//!
//! By lanes, numbers of which a block has one (its scale, the result of a search) are computed with one block per lane.
//! The codes are then computed with one weight per lane, because they depend only on these numbers, and are then in the
//! right order.

// The derive of `Pod` repeats the bound of the type in a where clause.
#![allow(clippy::multiple_bound_locations)]

use super::pack::Codes;
use super::{Twin, limited};
use crate::gguf::TensorType;
use crate::lanes::Lanes;
use crate::quant::block::{array_of, dequantize_blocks, quantize_blocks, row_mean_square};
use crate::quant::rounding::{Levels, Rescale, Scales, Step};
use crate::quant::rows::{MeanSquares, Rows};
use crate::quant::search::batch::SmallBatch;
use crate::quant::search::numbers::{
    divide_or_zero, divide_or_zero_lanes, extreme, extreme_lanes, halves, importance_weights, importance_weights_lanes,
    stored, truncate_lanes, truncate_to_byte,
};
use crate::quant::search::symmetric as search;
use crate::quant::{Block, Half, ImportanceUse, Scaled};

/// 32 weights.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, packed)]
pub struct Symmetric<Q: Codes<32>> {
    /// The scale d.
    pub d: Half,
    /// The codes q.
    pub qs: Q,
}

impl<Q: Codes<32>> Symmetric<Q> {
    /// The code of 0.
    const HALF: i32 = 1 << (Q::BITS - 1);

    /// Returns d and the codes.
    fn search(x: &[f32; 32], importance: Option<&[f32; 32]>, mean_square: f32) -> (f32, [u8; 32]) {
        match importance {
            None => {
                let half = Self::HALF as f32;
                let d = extreme(x) / -half;
                let inverse = divide_or_zero(1.0, d);
                let codes = x.map(|x| truncate_to_byte(x * inverse + (half + 0.5)));
                (d, limited(&codes, (2 * Self::HALF - 1) as i8))
            }
            Some(importance) => {
                let mut codes = [0; 32];
                let weights = importance_weights(importance, mean_square, x);
                (search::fit(x, &weights, Self::HALF, &mut codes), codes)
            }
        }
    }
}

impl<Q: Codes<32>> Block for Symmetric<Q>
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
            let (d, codes) = Self::search(x, importance, mean_square);
            Self { d: Half::new(d), qs: Q::pack(&codes) }
        });
    }

    #[inline(always)]
    fn quantize_rows<L: Lanes>(l: L, rows: Rows, dst: &mut [Self]) {
        quantize_rows(
            l,
            Self::HALF,
            rows,
            #[inline(always)]
            |index: usize, d: Half, codes: &[u8; 32]| dst[index] = Self { d, qs: Q::pack(codes) },
        );
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        let half = Self::HALF as f32;
        dequantize_blocks::<32, Self>(src, dst, |block| {
            let (d, qs) = (block.d.value(), block.qs);
            qs.unpack().map(|q| (f32::from(q) - half) * d)
        });
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

impl<Q: Codes<32>> Scaled for Symmetric<Q>
where
    Self: Twin,
{
    const SUB_BLOCK: usize = 32;
    const LEVELS: Levels = Levels::whole(-Self::HALF, Self::HALF - 1);
    type Steps = [Step; 1];

    fn fit(x: &[f32], importance: Option<&[f32]>, mean_square: f32) -> Self {
        let (d, codes) = Self::search(array_of(x), importance.map(array_of), mean_square);
        Self { d: Half::new(d), qs: Q::pack(&codes) }
    }

    fn steps(&self) -> [Step; 1] {
        [Step::symmetric(self.d.value())]
    }

    fn set_codes(&mut self, codes: &[u8]) {
        self.qs = Q::pack(array_of(codes));
    }
}

impl<Q: Codes<32>> Rescale for Symmetric<Q>
where
    Self: Twin,
{
    const FACTORS: [i16; 2] = [1, 1];
    const MIN_FACTORS: [i16; 2] = [0, 0];

    fn scales(&self) -> Scales {
        Scales::of_one(self.d)
    }

    fn set_scales(&mut self, scales: &Scales) {
        self.d = scales.d;
    }

    fn codes(&self, codes: &mut [u8]) {
        let qs = self.qs;
        codes.copy_from_slice(&qs.unpack());
    }
}

/// Quantizes rows by lanes. `put` gets the number, d and q of each block.
#[inline(always)]
fn quantize_rows<L: Lanes>(l: L, half: i32, rows: Rows, put: impl FnMut(usize, Half, &[u8; 32])) {
    match rows.importance {
        None => plain_rows(l, half, rows, put),
        Some(_) => searched_rows(l, half, rows, put),
    }
}

/// Without importance, the weight of largest magnitude gets q = 0 and determines d. `put` gets the number, d and q of
/// each block.
#[inline(always)]
fn plain_rows<L: Lanes>(l: L, half: i32, rows: Rows, mut put: impl FnMut(usize, Half, &[u8; 32])) {
    let size = half as f32;
    for batch in SmallBatch::of(l, rows) {
        let d = extreme_lanes(l, &batch.columns(l, 0)) / l.splat(-size);
        let inverses = stored(l, divide_or_zero_lanes(l, l.splat(1.0), d));
        let d = halves(l, d);
        for (b, x) in batch.blocks.iter().enumerate() {
            let (inverse, middle) = (l.splat(inverses[b]), l.splat(size + 0.5));
            let codes = truncate_lanes(
                l,
                x,
                #[inline(always)]
                |x| x * inverse + middle,
            );
            put(batch.first + b, d[b], &limited(&codes, (2 * half - 1) as i8));
        }
    }
}

/// With importance, d is searched.
#[inline(always)]
fn searched_rows<L: Lanes>(l: L, half: i32, rows: Rows, mut put: impl FnMut(usize, Half, &[u8; 32])) {
    let mean_squares = MeanSquares::of(l, rows);
    for batch in SmallBatch::of(l, rows) {
        let Some(importance) = batch.importance(l, 0) else { return };
        let x = batch.columns(l, 0);
        let (weights, _) =
            importance_weights_lanes(l, &x, &importance, l.load(&mean_squares.of_blocks(l, batch.first)));
        let found = search::fit_lanes(l, half, &x, &weights);
        let (d, inverses) = (halves(l, found.scale), stored(l, found.inverse));
        for (b, x) in batch.blocks.iter().enumerate() {
            put(batch.first + b, d[b], &search::codes_of_lane(half, inverses[b], x));
        }
    }
}
