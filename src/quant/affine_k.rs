//! What Q4_K and Q5_K share: eight sub-blocks x ≈ d·s·q − dmin·t, whose scales s and mins t are 6-bit numbers.

use super::Half;
use super::pack::{six_bit_pairs, unpack_six_bit_pairs};
use super::search::{Affine, AffineSearch, fit_affine, fit_positive, importance_weights, nearest, sum_of_squares};
use std::array;

/// 256 weights but for the packing of their codes.
pub(super) struct Fit {
    pub d: Half,
    pub dmin: Half,
    pub scales: [u8; 12],
    pub codes: [u8; 256],
}

/// Fits the block `x` with codes from 0 to `plain.max`.
///
/// Without importance `plain` is the search in each sub-block, its weights √(mean square of the sub-block) + |x|, and the
/// largest scale and min get the largest 6-bit number. With it the search is [`AffineSearch::weighted`], and scales and
/// mins are in turn fitted with the sums of their sub-blocks' weights. Either way the codes are rounded anew at the end,
/// with the scales and mins as stored.
///
/// `capped` says whether a searched 6-bit number above 63 (the byte of a negative one) is stored as 63, or as it is.
#[inline(always)]
pub(super) fn fit(x: &[f32; 256], importance: Option<&[f32; 256]>, plain: AffineSearch, capped: bool) -> Fit {
    let mut codes = [0; 256];
    let (sub_blocks, _) = x.as_chunks::<32>();
    let (sub_codes, _) = codes.as_chunks_mut::<32>();
    let (mut scales, mut mins) = ([0.0; 8], [0.0; 8]);
    let (d, dmin, packed);
    match importance {
        None => {
            for j in 0..8 {
                let x = &sub_blocks[j];
                let root_mean_square = (sum_of_squares(x) / 32.0).sqrt();
                let weights = x.map(|x| root_mean_square + x.abs());
                Affine { scale: scales[j], min: mins[j] } = fit_affine(plain, x, &weights, &mut sub_codes[j]);
            }
            let largest_scale = largest(&scales);
            let largest_min = largest(&mins);
            d = Half::new(largest_scale / 63.0);
            dmin = Half::new(largest_min / 63.0);
            packed = six_bit_pairs(&six_bits(&scales, largest_scale), &six_bits(&mins, largest_min));
        }
        Some(importance) => {
            let (importance, _) = importance.as_chunks::<32>();
            let variance = 2.0 * sum_of_squares(x) / 256.0;
            let mut sums = [0.0; 8];
            for j in 0..8 {
                let x = &sub_blocks[j];
                let weights = importance_weights(&importance[j], variance, x);
                sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
                let search = AffineSearch::weighted(plain.max);
                Affine { scale: scales[j], min: mins[j] } = fit_affine(search, x, &weights, &mut sub_codes[j]);
            }
            let (mut scale_codes, mut min_codes) = ([0; 8], [0; 8]);
            d = Half::new(fit_positive(&scales, &sums, 63, &mut scale_codes));
            dmin = Half::new(fit_positive(&mins, &sums, 63, &mut min_codes));
            if capped {
                scale_codes = scale_codes.map(|s| s.min(63));
                min_codes = min_codes.map(|m| m.min(63));
            }
            packed = six_bit_pairs(&scale_codes, &min_codes);
        }
    }

    for (j, (scale, min)) in sub_block_scales(d, dmin, &packed).into_iter().enumerate() {
        // Else the codes stay as the search left them.
        if scale != 0.0 {
            sub_codes[j] = sub_blocks[j].map(|x| nearest((x + min) / scale).clamp(0, plain.max) as u8);
        }
    }
    Fit { d, dmin, scales: packed, codes }
}

/// (d·s, dmin·t) of each sub-block.
#[inline]
pub(super) fn sub_block_scales(d: Half, dmin: Half, packed: &[u8; 12]) -> [(f32, f32); 8] {
    let (d, dmin) = (d.value(), dmin.value());
    let (scales, mins) = unpack_six_bit_pairs(packed);
    array::from_fn(|j| (d * f32::from(scales[j]), dmin * f32::from(mins[j])))
}

/// The largest element, but at least 0.
fn largest(x: &[f32; 8]) -> f32 {
    x.iter().fold(0.0, |largest, &x| if x > largest { x } else { largest })
}

/// `x` as 6-bit numbers that give `largest` 63.
fn six_bits(x: &[f32; 8], largest: f32) -> [u8; 8] {
    let inverse = if largest > 0.0 { 63.0 / largest } else { 0.0 };
    x.map(|x| (nearest(inverse * x) as u8).min(63))
}
