//! The block that Q4_K and Q5_K share: eight sub-blocks x ≈ d·s·q − dmin·t, whose scales s and mins t are 6-bit
//! numbers.

// The derive of `Pod` repeats the bound of the type in a where clause.
#![allow(clippy::multiple_bound_locations)]

use super::Twin;
use super::pack::{Codes, six_bit_pairs, unpack_six_bit_pairs};
use crate::gguf::TensorType;
use crate::lanes::{Floats, Lanes, MAX_LANES};
use crate::quant::block::{array_of, dequantize_blocks, quantize_blocks};
use crate::quant::rounding::{Levels, Rescale, Scales as Stored, Step, Whole};
use crate::quant::rows::Rows;
use crate::quant::search::affine::{self, Affine, AffineBatch, AffineSearch};
use crate::quant::search::batch::{self, Batch, Fitted};
use crate::quant::search::numbers::{
    importance_weights, importance_weights_lanes, nearest, sum_of_squares, sum_of_squares_lanes,
};
use crate::quant::search::positive;
use crate::quant::{Block, Half, ImportanceUse, Scaled};
use std::array;

/// 256 weights.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, packed)]
pub struct AffineK<Q: Codes<256>> {
    /// The scale d of the scales.
    pub d: Half,
    /// The scale of the mins.
    pub dmin: Half,
    /// Scales and mins of the sub-blocks: [`six_bit_pairs`].
    pub scales: [u8; 12],
    /// The codes q.
    pub qs: Q,
}

/// How a format searches.
pub trait Searched {
    /// How.
    const SEARCH: Search;
}

/// How a format searches.
#[derive(Clone, Copy)]
pub struct Search {
    /// The search in each sub-block without importance. With importance, it is [`AffineSearch::weighted`].
    pub plain: AffineSearch,
    /// Whether a searched 6-bit number above 63 (the byte of a negative one) is stored as 63, or as it is.
    pub capped: bool,
}

impl Search {
    #[inline(always)]
    const fn whole(self) -> Whole {
        Whole { smallest: 0, largest: self.plain.max }
    }
}

impl<Q: Codes<256>> Block for AffineK<Q>
where
    Self: Twin + Searched,
{
    const TYPE: TensorType = <Self as Twin>::TYPE;
    const LEN: usize = 256;
    const IMPORTANCE: ImportanceUse = ImportanceUse::Used;
    const LIMIT: f32 = <Self as Twin>::LIMIT;
    const LIMIT_WITH_IMPORTANCE: f32 = <Self as Twin>::LIMIT_WITH_IMPORTANCE;

    fn quantize_row(src: &[f32], importance: Option<&[f32]>, dst: &mut [Self]) {
        quantize_blocks::<256, Self>(src, importance, dst, |x, importance| {
            Self::new(quantize(Self::SEARCH, x, importance))
        });
    }

    #[inline(always)]
    fn quantize_rows<L: Lanes>(lanes: L, rows: Rows, dst: &mut [Self]) {
        quantize_rows(
            lanes,
            Self::SEARCH,
            rows,
            #[inline(always)]
            |i, fit| dst[i] = Self::new(fit),
        );
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        dequantize_blocks::<256, Self>(src, dst, |block| {
            let (scales, mins) = sub_block_scales(block.d, block.dmin, &block.scales);
            let qs = block.qs;
            let codes = qs.unpack();
            array::from_fn(|i| scales[i / 32] * f32::from(codes[i]) - mins[i / 32])
        });
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.dmin.is_finite()
    }
}

impl<Q: Codes<256>> AffineK<Q> {
    #[inline(always)]
    fn new(Fit { d, dmin, scales, codes }: Fit) -> Self {
        Self { d, dmin, scales, qs: Q::pack(&codes) }
    }
}

impl<Q: Codes<256>> Scaled for AffineK<Q>
where
    Self: Twin + Searched,
{
    const SUB_BLOCK: usize = 32;
    const LEVELS: Levels = Levels::Whole(Self::SEARCH.whole());
    type Steps = [Step; 8];

    fn fit(x: &[f32], importance: Option<&[f32]>, _: f32) -> Self {
        let (scales, _) = fit(Self::SEARCH, array_of(x), importance.map(array_of));
        Self::new(scales.block(|_, _| [0; 256]))
    }

    fn steps(&self) -> [Step; 8] {
        let (scales, mins) = sub_block_scales(self.d, self.dmin, &self.scales);
        array::from_fn(|j| Step { scale: scales[j], min: mins[j] })
    }

    fn set_codes(&mut self, codes: &[u8]) {
        self.qs = Q::pack(array_of(codes));
    }
}

impl<Q: Codes<256>> Rescale for AffineK<Q>
where
    Self: Twin + Searched,
{
    const FACTORS: [i16; 2] = [0, 63];
    const MIN_FACTORS: [i16; 2] = [0, 63];

    fn scales(&self) -> Stored {
        let (scales, mins) = unpack_six_bit_pairs(&self.scales);
        let mut stored = Stored { d: self.d, dmin: self.dmin, factors: [0; 16], min_factors: [0; 16] };
        for j in 0..8 {
            stored.factors[j] = scales[j].into();
            stored.min_factors[j] = mins[j].into();
        }
        stored
    }

    fn set_scales(&mut self, scales: &Stored) {
        (self.d, self.dmin) = (scales.d, scales.dmin);
        self.scales = six_bit_pairs(
            &array::from_fn(|j| scales.factors[j] as u8),
            &array::from_fn(|j| scales.min_factors[j] as u8),
        );
    }

    fn codes(&self, codes: &mut [u8]) {
        let qs = self.qs;
        codes.copy_from_slice(&qs.unpack());
    }
}

/// A block before its codes are packed.
struct Fit {
    d: Half,
    dmin: Half,
    scales: [u8; 12],
    codes: [u8; 256],
}

/// Quantizes the block `x` with codes from 0 to `search.plain.max`.
///
/// Without importance, the weights of the search in each sub-block are √(mean square of the sub-block) + |x|, and the
/// largest scale and the largest min get the largest 6-bit number. With importance, the scales and mins are themselves
/// fitted, weighted with the sums of their sub-blocks' weights. In both cases, the codes are rounded again at the end,
/// with the scales and mins as stored.
fn quantize(search: Search, x: &[f32; 256], importance: Option<&[f32; 256]>) -> Fit {
    let (scales, codes) = fit(search, x, importance);
    scales.block(|scales, mins| search.whole().codes(x, scales, mins, |j| codes[j]))
}

/// Returns the scales of the block `x`, and the codes with which the search of each sub-block ended.
fn fit(search: Search, x: &[f32; 256], importance: Option<&[f32; 256]>) -> (Scales, [[u8; 32]; 8]) {
    let mut codes = [[0; 32]; 8];
    let (sub_blocks, _) = x.as_chunks::<32>();
    let (mut scales, mut mins) = ([0.0; 8], [0.0; 8]);
    let packed = match importance {
        None => {
            for j in 0..8 {
                let x = &sub_blocks[j];
                let root_mean_square = (sum_of_squares(x) / 32.0).sqrt();
                let weights = x.map(|x| root_mean_square + x.abs());
                Affine { scale: scales[j], min: mins[j] } = affine::fit(search.plain, x, &weights, &mut codes[j]);
            }
            Scales::spread(&scales, &mins)
        }
        Some(importance) => {
            let (importance, _) = importance.as_chunks::<32>();
            let variance = 2.0 * sum_of_squares(x) / 256.0;
            let mut sums = [0.0; 8];
            for j in 0..8 {
                let x = &sub_blocks[j];
                let weights = importance_weights(&importance[j], variance, x);
                sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
                let search = AffineSearch::weighted(search.plain.max);
                Affine { scale: scales[j], min: mins[j] } = affine::fit(search, x, &weights, &mut codes[j]);
            }
            let (mut scale_codes, mut min_codes) = ([0; 8], [0; 8]);
            let d = positive::fit(&scales, &sums, 63, &mut scale_codes);
            let dmin = positive::fit(&mins, &sums, 63, &mut min_codes);
            Scales::fitted(search, d, dmin, scale_codes, min_codes)
        }
    };
    (packed, codes)
}

/// [`quantize`] of all blocks of some rows, several at once; `put` gets the number and the fit of each.
#[inline(always)]
fn quantize_rows<L: Lanes>(l: L, search: Search, rows: Rows, mut put: impl FnMut(usize, Fit)) {
    let sub_search = match rows.importance {
        None => search.plain,
        Some(_) => AffineSearch::weighted(search.plain.max),
    };
    for batch in Batch::<32>::of(l, rows) {
        let mut found = AffineBatch::<8>::new();
        let mut sums = [[0.0; 8]; MAX_LANES];
        let variances = batch.sums_of_squares(l).map(|sum| 2.0 * sum / 256.0);
        for at in batch.groups(l) {
            let x = batch.columns(l, at);
            let weights = match batch.importance(l, at) {
                None => {
                    let root_mean_square = (sum_of_squares_lanes(l, &x) / l.splat(32.0)).sqrt();
                    let mut weights = x;
                    for weight in &mut weights {
                        *weight = root_mean_square + weight.abs();
                    }
                    weights
                }
                Some(importance) => {
                    let (weights, sum) =
                        importance_weights_lanes(l, &x, &importance, batch.of_blocks(l, at, &variances));
                    batch::put(l, &mut sums, at, sum);
                    weights
                }
            };
            found.search(l, at, sub_search, &x, &weights);
        }
        // Not a map, because its closure may not be inlined, and then lacks the instructions of the level.
        let mut fitted = None;
        if rows.importance.is_some() {
            let odd = &mut found.odd;
            let scales = Fitted::positive(l, &found.scales, &sums, 63, odd);
            fitted = Some((scales, Fitted::positive(l, &found.mins, &sums, 63, odd)));
        }
        for (b, x) in batch.blocks.iter().enumerate() {
            if found.odd[b] != [0.0; 8] {
                put(batch.first + b, quantize(search, x, batch.block_importance(b)));
                continue;
            }
            let stored = match &fitted {
                None => Scales::spread(&found.scales[b], &found.mins[b]),
                Some((scales, mins)) => Scales::fitted(search, scales.d[b], mins.d[b], scales.codes[b], mins.codes[b]),
            };
            let fit = stored.block(
                #[inline(always)]
                |scales, mins| {
                    search
                        .whole()
                        .codes_lanes::<_, 32, 8>(l, x, scales, Some(mins), |j| found.codes(sub_search, b, j, x))
                },
            );
            put(batch.first + b, fit);
        }
    }
}

/// The scales and mins of a block, as stored.
struct Scales {
    d: Half,
    dmin: Half,
    packed: [u8; 12],
}

impl Scales {
    /// The largest scale and the largest min get the largest 6-bit number.
    #[inline(always)]
    fn spread(scales: &[f32; 8], mins: &[f32; 8]) -> Self {
        let largest_scale = largest(scales);
        let largest_min = largest(mins);
        Self {
            d: Half::new(largest_scale / 63.0),
            dmin: Half::new(largest_min / 63.0),
            packed: six_bit_pairs(&six_bits(scales, largest_scale), &six_bits(mins, largest_min)),
        }
    }

    /// Creates scales from 6-bit numbers that were searched.
    #[inline(always)]
    fn fitted(search: Search, d: f32, dmin: f32, mut scales: [u8; 8], mut mins: [u8; 8]) -> Self {
        if search.capped {
            scales = scales.map(|s| s.min(63));
            mins = mins.map(|m| m.min(63));
        }
        Self { d: Half::new(d), dmin: Half::new(dmin), packed: six_bit_pairs(&scales, &mins) }
    }

    /// Returns the block with these scales, and with the codes that follow from d·s and dmin·t of each sub-block.
    #[inline(always)]
    fn block(self, codes: impl FnOnce(&[f32; 8], &[f32; 8]) -> [u8; 256]) -> Fit {
        let Self { d, dmin, packed } = self;
        let (scales, mins) = sub_block_scales(d, dmin, &packed);
        Fit { d, dmin, scales: packed, codes: codes(&scales, &mins) }
    }
}

/// d·s and dmin·t of each sub-block.
#[inline(always)]
fn sub_block_scales(d: Half, dmin: Half, packed: &[u8; 12]) -> ([f32; 8], [f32; 8]) {
    let (d, dmin) = (d.value(), dmin.value());
    let (scales, mins) = unpack_six_bit_pairs(packed);
    (scales.map(|s| d * f32::from(s)), mins.map(|t| dmin * f32::from(t)))
}

/// Returns the largest element, but at least 0.
fn largest(x: &[f32; 8]) -> f32 {
    x.iter().fold(0.0, |largest, &x| if x > largest { x } else { largest })
}

/// Returns `x` as 6-bit numbers, scaled so that `largest` is 63.
fn six_bits(x: &[f32; 8], largest: f32) -> [u8; 8] {
    let inverse = if largest > 0.0 { 63.0 / largest } else { 0.0 };
    x.map(|x| (nearest(inverse * x) as u8).min(63))
}
