//! What holds for every format, without ggml at hand.

// A list of one range of bytes is meant.
#![allow(clippy::single_range_in_vec_init)]

use super::rounding::Levels;
use super::samples::{
    Matrix, Random, adversarial_rows, importances, portable_rows, random_blocks, sparse_importance, yi_nano,
};
use super::{FORMATS, Format, ImportanceUse, Scaled, SomeBlocks, format};
use crate::gguf::TensorType;
use proptest::prelude::*;
use std::ops::Range;

fn quantize(format: &Format, weights: &[f32], row_len: usize, importance: Option<&[f32]>) -> Vec<u8> {
    let mut bytes = vec![0xee; weights.len() / format.ty.block_len() * format.ty.block_bytes()];
    format.quantize_rows(weights, row_len, importance, &mut bytes);
    bytes
}

fn dequantize(format: &Format, bytes: &[u8]) -> Vec<f32> {
    let mut weights = vec![f32::NAN; bytes.len() / format.ty.block_bytes() * format.ty.block_len()];
    format.dequantize(bytes, &mut weights);
    weights
}

/// One row there and back.
fn round_trip(format: &Format, weights: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    dequantize(format, &quantize(format, weights, weights.len(), importance))
}

/// Σ w (x − y)² / Σ w x².
fn loss(x: &[f32], y: &[f32], weight: impl Fn(usize) -> f32) -> f64 {
    let sum =
        |term: &dyn Fn(usize) -> f32| (0..x.len()).map(|i| f64::from(weight(i)) * f64::from(term(i)).powi(2)).sum();
    let (lost, all): (f64, f64) = (sum(&|i| x[i] - y[i]), sum(&|i| x[i]));
    lost / all
}

/// What a format may lose, and the bytes it makes.
struct Expected {
    ty: TensorType,
    /// The bytes of a block that hold its scales.
    scales: &'static [Range<usize>],
    /// Whether its codes follow from the scales as stored, so that each is that of the nearest level. Other formats round
    /// with scales that are not stored yet, or keep the codes of the search.
    codes_are_nearest: bool,
    /// No weight is off by more than this part of the largest magnitude in its block.
    ///
    /// For F16, BF16 and Q8_0 it is half a step and what the scale loses as a half. Searches give up the ends of the range
    /// for what lies between, and sub-blocks have coarse scales: for the others it is the most that 60,000 rows lost, and
    /// a quarter.
    worst: f32,
    /// Of normal weights no more is lost than this part of their energy: what was measured, and a twentieth.
    normal: f64,
    /// FNV-1a of the bytes of the portable rows, without and with importance: as ggml's on x86-64, on any machine.
    digests: [u64; 2],
}

const EXPECTED: &[Expected] = &[
    Expected {
        ty: TensorType::F32,
        scales: &[],
        codes_are_nearest: false,
        worst: 0.0,
        normal: 0.0,
        digests: [0x4300_50f5_744c_5f60, 0x4300_50f5_744c_5f60],
    },
    Expected {
        ty: TensorType::F16,
        scales: &[],
        codes_are_nearest: false,
        worst: 4.89e-4,
        normal: 4.48e-8,
        digests: [0x3bd1_d264_ad6f_90c6, 0x3bd1_d264_ad6f_90c6],
    },
    Expected {
        ty: TensorType::BF16,
        scales: &[],
        codes_are_nearest: false,
        worst: 3.91e-3,
        normal: 2.86e-6,
        digests: [0xd18a_5ce1_de0f_4e22, 0xd18a_5ce1_de0f_4e22],
    },
    Expected {
        ty: TensorType::Q8_0,
        scales: &[0..2],
        codes_are_nearest: false,
        worst: 4.43e-3,
        normal: 2.94e-5,
        digests: [0x30ea_26f9_be18_5fea, 0x30ea_26f9_be18_5fea],
    },
    Expected {
        ty: TensorType::Q6_K,
        scales: &[192..210],
        codes_are_nearest: true,
        worst: 4.2e-2,
        normal: 3.24e-4,
        digests: [0x5de4_3080_5082_0658, 0xa4f7_d88e_00b2_a6a4],
    },
    Expected {
        ty: TensorType::Q5_1,
        scales: &[0..4],
        codes_are_nearest: false,
        worst: 7.1e-2,
        normal: 1.49e-3,
        digests: [0xf89b_0621_0e99_a104, 0x993d_cbd2_32bf_01e3],
    },
    Expected {
        ty: TensorType::Q5_0,
        scales: &[0..2],
        codes_are_nearest: false,
        worst: 8.1e-2,
        normal: 1.86e-3,
        digests: [0x4833_5d51_28c5_78b7, 0xb56f_6047_fadf_7cbb],
    },
    Expected {
        ty: TensorType::Q5_K,
        scales: &[0..16],
        codes_are_nearest: true,
        worst: 8.7e-2,
        normal: 1.35e-3,
        digests: [0xd288_d4ff_827c_459f, 0xbc83_ffae_b7eb_a7c8],
    },
    Expected {
        ty: TensorType::Q4_1,
        scales: &[0..4],
        codes_are_nearest: false,
        worst: 1.4e-1,
        normal: 6.34e-3,
        digests: [0xf24e_bf38_48de_157f, 0x194d_e286_8cb3_7075],
    },
    Expected {
        ty: TensorType::Q4_0,
        scales: &[0..2],
        codes_are_nearest: false,
        worst: 1.9e-1,
        normal: 7.6e-3,
        digests: [0x3bc2_ef55_c545_9bc0, 0xfedc_475c_903b_7995],
    },
    Expected {
        ty: TensorType::Q4_K,
        scales: &[0..16],
        codes_are_nearest: true,
        worst: 1.6e-1,
        normal: 5.27e-3,
        digests: [0xcdc4_9275_fb55_a76f, 0x3dd4_5c3f_70fb_b578],
    },
    Expected {
        ty: TensorType::IQ4_NL,
        scales: &[0..2],
        codes_are_nearest: false,
        worst: 2.0e-1,
        normal: 6.0e-3,
        digests: [0x1354_b300_0dc6_4bd5, 0x7333_9825_cb64_66c6],
    },
    Expected {
        ty: TensorType::IQ4_XS,
        scales: &[0..8],
        codes_are_nearest: false,
        worst: 2.1e-1,
        normal: 6.09e-3,
        digests: [0xe4b9_89c4_f35b_f238, 0x6fe6_dafc_6132_f073],
    },
    Expected {
        ty: TensorType::Q3_K,
        scales: &[96..110],
        codes_are_nearest: true,
        worst: 3.5e-1,
        normal: 2.35e-2,
        digests: [0x8e6b_fafc_fbc9_14c8, 0x1109_7310_e283_6615],
    },
    Expected {
        ty: TensorType::Q2_K,
        scales: &[0..16, 80..84],
        codes_are_nearest: true,
        worst: 6.1e-1,
        normal: 9.2e-2,
        digests: [0x5dda_fd70_27a2_7ef9, 0x2c3e_3ff8_e344_b700],
    },
];

/// Each format with what is expected of it.
fn formats() -> impl Iterator<Item = (&'static Format, &'static Expected)> {
    assert_eq!(FORMATS.len(), EXPECTED.len());
    FORMATS.iter().map(|format| (format, EXPECTED.iter().find(|expected| expected.ty == format.ty).unwrap()))
}

#[test]
fn every_format_has_its_own_line_and_the_largest_comes_first() {
    for entry in FORMATS {
        assert_eq!(format(entry.ty).unwrap().ty, entry.ty);
        assert_eq!(FORMATS.iter().filter(|other| other.ty == entry.ty).count(), 1);
    }
    assert!(FORMATS.is_sorted_by(|a, b| a.ty.bits_per_weight() >= b.ty.bits_per_weight()));
    assert!(format(TensorType::IQ2_XXS).is_none());
}

#[test]
fn the_bytes_are_the_same_on_every_machine() {
    let fnv = |bytes: Vec<u8>| {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
    };
    let (Matrix { weights, row_len, .. }, importance) = portable_rows();
    let digest = |format, importance| fnv(quantize(format, &weights, row_len, importance));
    for (format, expected) in formats() {
        let found = [digest(format, None), digest(format, Some(&importance))];
        assert_eq!(found, expected.digests, "{}: found {found:#018x?}", format.ty);
    }
}

#[test]
fn normal_weights_lose_no_more_than_they_should() {
    let mut random = Random::new(8);
    let weights: Vec<f32> = (0..64 * 1024).map(|_| random.normal() * 0.02).collect();
    for (format, expected) in formats() {
        let loss = loss(&weights, &round_trip(format, &weights, None), |_| 1.0);
        assert!(loss <= expected.normal, "{} lost {loss:e}", format.ty);
        // Nor does it lose much less: else the limit is not one.
        assert!(loss >= expected.normal * 0.9, "{} lost only {loss:e}", format.ty);
    }
}

#[test]
fn a_trained_models_weights_lose_little_more_than_normal_ones() {
    let matrices = yi_nano();
    let layer = || matrices.iter().filter(|matrix| matrix.name.contains("layers.2."));
    assert_eq!(layer().count(), 7);
    for Matrix { name, weights, .. } in layer() {
        for (format, expected) in formats() {
            let loss = loss(weights, &round_trip(format, weights, None), |_| 1.0);
            assert!(
                loss <= 1.5 * expected.normal,
                "{} lost {loss:e} of {name}, normal is {:e}",
                format.ty,
                expected.normal
            );
        }
    }
}

#[test]
fn importance_saves_what_is_important() {
    let (Matrix { weights, row_len, .. }, importance) = portable_rows();
    for format in FORMATS {
        let plain = quantize(format, &weights, row_len, None);
        let weighted = quantize(format, &weights, row_len, Some(&importance));
        match format.importance {
            ImportanceUse::Ignored => assert_eq!(plain, weighted, "{}", format.ty),
            ImportanceUse::Used | ImportanceUse::Required => {
                let lost = |bytes: &[u8]| loss(&weights, &dequantize(format, bytes), |i| importance[i % row_len]);
                let (plain, weighted) = (lost(&plain), lost(&weighted));
                assert!(weighted < 0.98 * plain, "{}: {weighted:e} with, {plain:e} without", format.ty);
            }
        }
    }
}

/// Rounding to nearest beside the format's own bytes.
#[derive(Default)]
struct Rounded {
    blocks: usize,
    /// Blocks of other bytes.
    differing: usize,
    weights: usize,
    /// Weights of other values.
    moved: usize,
}

/// Compares [`Format::round_to_nearest`] with [`Format::quantize_rows`]: the scales are the same bytes, and no weight is
/// further from its value than in the format's own bytes.
fn compare_rounding(
    (format, expected): (&Format, &Expected),
    matrix: &Matrix,
    importance: Option<&[f32]>,
    rounded: &mut Rounded,
) {
    let Matrix { name, row_len, weights } = matrix;
    let (block_len, block_bytes) = (format.ty.block_len(), format.ty.block_bytes());
    let own = quantize(format, weights, *row_len, importance);
    let mut nearest = vec![0xee; own.len()];
    assert!(format.round_to_nearest(weights, *row_len, importance, &mut nearest));
    let (own_values, nearest_values) = (dequantize(format, &own), dequantize(format, &nearest));
    for (index, (own, nearest)) in own.chunks(block_bytes).zip(nearest.chunks(block_bytes)).enumerate() {
        let at = index * block_len..(index + 1) * block_len;
        rounded.blocks += 1;
        rounded.weights += block_len;
        if own == nearest {
            continue;
        }
        rounded.differing += 1;
        for range in expected.scales {
            assert_eq!(
                own[range.clone()],
                nearest[range.clone()],
                "{}, {name}: the scales of block {index}",
                format.ty
            );
        }
        let (x, own, nearest) = (&weights[at.clone()], &own_values[at.clone()], &nearest_values[at]);
        // Where a scale has overflowed, nothing is nearest.
        if own.iter().chain(nearest).any(|value| !value.is_finite()) {
            continue;
        }
        let largest = x.iter().chain(own).chain(nearest).fold(0f32, |largest, x| largest.max(x.abs()));
        for ((x, own), nearest) in x.iter().zip(own).zip(nearest) {
            rounded.moved += usize::from(own != nearest);
            assert!(
                (x - nearest).abs() <= (x - own).abs() + 1e-6 * largest,
                "{}, {name}, block {index}: {x} became {nearest}, and {own} in the format's own bytes",
                format.ty,
            );
        }
    }
}

/// The formats of scales and codes.
fn scaled() -> impl Iterator<Item = (&'static Format, &'static Expected)> {
    formats().filter(|(format, _)| format.ty.block_len() > 1)
}

#[test]
fn the_own_bytes_of_formats_are_fitted_scales_and_codes_rounded_to_them() {
    let (portable, importance) = portable_rows();
    let mut matrices = yi_nano();
    matrices.retain(|matrix| matrix.name.contains("layers.1.") || matrix.name.contains("layers.3."));
    for format in scaled() {
        for weighted in [false, true] {
            let mut rounded = Rounded::default();
            compare_rounding(format, &portable, weighted.then_some(&importance), &mut rounded);
            for matrix in &matrices {
                let mut random = Random::new(12);
                let importance: Vec<f32> = (0..matrix.row_len).map(|_| random.unit() + 0.01).collect();
                compare_rounding(format, matrix, weighted.then_some(&importance), &mut rounded);
            }
            let Rounded { blocks, differing, weights, moved } = rounded;
            let (ty, moved_share) = (format.0.ty, moved as f64 / weights as f64);
            println!(
                "{ty}, importance {weighted}: {differing} of {blocks} blocks differ, {moved} of {weights} weights"
            );
            if format.1.codes_are_nearest {
                // Other bytes are codes of sub-blocks whose scale is 0: all have one value.
                assert_eq!(moved, 0, "{ty}");
                assert!(differing * 20 < blocks, "{ty}: {differing} of {blocks}");
            } else {
                assert!(moved_share < 0.02, "{ty}: {moved_share}");
            }
        }
    }
}

#[test]
fn rounding_to_nearest_loses_no_more_on_any_row() {
    for format in scaled() {
        let mut rounded = Rounded::default();
        for row in adversarial_rows(512) {
            compare_rounding(format, &row, None, &mut rounded);
            for (_, importance) in importances(512) {
                compare_rounding(format, &row, Some(&importance), &mut rounded);
            }
        }
        for seed in 0..48 {
            let (matrix, importance) = sparse_importance(seed);
            compare_rounding(format, &matrix, Some(&importance), &mut rounded);
        }
    }
}

#[test]
fn the_floats_have_no_scales_to_round_to() {
    for format in FORMATS.iter().filter(|format| format.ty.block_len() == 1) {
        let mut bytes = vec![0xee; 4 * format.ty.block_bytes()];
        assert!(!format.round_to_nearest(&[1.0; 4], 4, None, &mut bytes), "{}", format.ty);
        assert!(bytes.iter().all(|byte| *byte == 0xee));
    }
}

/// Checks that every code of a format stands for the weight that is read back. [`FORMATS`] keeps one for each format.
pub fn check_values<B: Scaled>() {
    let blocks = random_blocks(B::TYPE, 512, 14);
    let mut random = Random::new(15);
    for block in bytemuck::cast_slice::<u8, B>(&blocks) {
        let mut block = *block;
        let n_levels = match B::LEVELS {
            Levels::Whole(whole) => (whole.largest - whole.smallest + 1) as u32,
            Levels::Table => 16,
        };
        let codes: Vec<u8> = (0..B::LEN).map(|_| (random.bits() % n_levels) as u8).collect();
        block.set_codes(&codes);
        let mut weights = vec![0.0; B::LEN];
        B::dequantize_row(&[block], &mut weights);
        let steps = block.steps();
        for (i, weight) in weights.iter().enumerate() {
            let step = steps.as_ref()[i / B::SUB_BLOCK];
            let value = B::LEVELS.value(step, codes[i]);
            assert!(value.to_bits() == weight.to_bits() || value.is_nan() && weight.is_nan(), "{}", B::TYPE);
            // And the code is the nearest to it: itself, where levels are apart.
            let again = B::LEVELS.value(step, B::LEVELS.round(step, *weight));
            let apart = step.scale.abs() > 1e-5 * step.min.abs() && step.scale.is_finite() && step.min.is_finite();
            assert!(!apart || again.to_bits() == weight.to_bits(), "{}: {weight} became {again}", B::TYPE);
        }
    }
}

#[test]
fn every_code_stands_for_the_weight_that_is_read_back() {
    for format in FORMATS {
        assert_eq!(format.check_values.is_some(), format.ty.block_len() > 1, "{}", format.ty);
        if let Some(check) = format.check_values {
            check();
        }
    }
}

#[test]
fn weights_below_the_limit_of_a_format_stay_finite() {
    let row_len = 512;
    let mut random = Random::new(13);
    let mut rows: Vec<Vec<f32>> = vec![
        vec![1.0; row_len],
        vec![-1.0; row_len],
        (0..row_len).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect(),
        (0..row_len).map(|i| if i % 32 == 9 { -1.0 } else { 0.0 }).collect(),
        (0..row_len).map(|i| i as f32 / row_len as f32 * 2.0 - 1.0).collect(),
    ];
    for power in [1, 3, 7] {
        rows.extend((0..40).map(|_| (0..row_len).map(|_| (random.unit() * 2.0 - 1.0).powi(power)).collect()));
    }
    let up_to = |limit: f32, row: &[f32]| -> Vec<f32> {
        let largest = row.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let limit = if limit.is_finite() { limit.next_down() } else { f32::MAX };
        row.iter().map(|x| (f64::from(*x) / f64::from(largest) * f64::from(limit)) as f32).collect()
    };
    for format in FORMATS {
        let fits = |weights: &[f32], importance: Option<&[f32]>| {
            format.not_finite(&quantize(format, weights, weights.len(), importance)).is_none()
        };
        for row in &rows {
            assert!(fits(&up_to(format.limit(false), row), None), "{}", format.ty);
        }
        if !format.importance.is_any() {
            assert_eq!(format.limit(true), format.limit(false), "{}", format.ty);
            continue;
        }
        for seed in 0..96 {
            let (matrix, importance) = sparse_importance(seed);
            let weights = up_to(format.limit(true), &matrix.weights);
            assert!(fits(&weights, Some(&importance)), "{}, seed {seed}", format.ty);
            for (name, importance) in importances(row_len) {
                let row = &rows[seed % rows.len()];
                // Sums with these overflow whatever the weights.
                if !name.contains("huge") {
                    assert!(fits(&up_to(format.limit(true), row), Some(&importance)), "{}, {name}", format.ty);
                }
            }
        }
    }
    // These limits are exact: the weight itself does not fit.
    for ty in
        [TensorType::F16, TensorType::BF16, TensorType::Q8_0, TensorType::Q5_1, TensorType::Q4_1, TensorType::Q4_0]
    {
        let format = format(ty).unwrap();
        let bytes = quantize(format, &[-format.limit(false); 32], 32, None);
        assert!(format.not_finite(&bytes).is_some(), "{ty}");
    }
}

#[test]
fn nothing_panics_on_numbers_that_are_none() {
    let row_len = 512;
    let mut random = Random::new(9);
    let mut rows: Vec<Vec<f32>> = adversarial_rows(row_len).into_iter().map(|row| row.weights).collect();
    for bits in [0, 0x7f80_0000, 0xff80_0000] {
        rows.push((0..row_len).map(|_| f32::from_bits(random.bits() | bits)).collect());
    }
    for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        rows.push(vec![x; row_len]);
        rows.push((0..row_len).map(|i| if i % 50 == 7 { x } else { random.normal() }).collect());
    }
    let mut importances = importances(row_len);
    importances.push(("any bits", (0..row_len).map(|_| f32::from_bits(random.bits())).collect()));
    importances.push(("NaN", vec![f32::NAN; row_len]));
    for format in FORMATS {
        for row in &rows {
            round_trip(format, row, None);
            for (_, importance) in &importances {
                round_trip(format, row, Some(importance));
            }
        }
        dequantize(format, &random_blocks(format.ty, 4096, 10));
    }
}

#[test]
fn a_block_is_finite_where_all_its_weights_are() {
    for format in FORMATS {
        let (block_len, block_bytes) = (format.ty.block_len(), format.ty.block_bytes());
        let bytes = random_blocks(format.ty, 4096, 11);
        let weights = dequantize(format, &bytes);
        let mut n = 0;
        let mut first = None;
        for (i, (block, weights)) in bytes.chunks(block_bytes).zip(weights.chunks(block_len)).enumerate() {
            let found = format.not_finite(block);
            assert_eq!(found.is_none(), weights.iter().all(|x| x.is_finite()), "{}: block {i}", format.ty);
            if found.is_some() {
                n += 1;
                first = first.or(Some(i as u64));
            }
        }
        let wanted = first.map(|first| SomeBlocks { n, first });
        assert_eq!(format.not_finite(&bytes), wanted, "{}", format.ty);
        assert!((1..4096 / 4).contains(&n), "{}: {n}", format.ty);
    }
}

#[test]
fn every_scale_of_every_format_is_looked_at() {
    let ones = [1.0; 256];
    for format in FORMATS {
        let block_bytes = format.ty.block_bytes();
        let block = quantize(format, &ones[..format.ty.block_len()], format.ty.block_len(), None);
        assert_eq!(format.not_finite(&block), None, "{}", format.ty);
        // Wherever a NaN makes a weight NaN, it is in a scale, and seen.
        let mut n_scales = 0;
        for at in 0..block_bytes.saturating_sub(1) {
            let mut broken = block.clone();
            broken[at..at + 2].copy_from_slice(&[0xff, 0xff]);
            if dequantize(format, &broken).iter().any(|x| x.is_nan()) {
                n_scales += 1;
                assert_eq!(format.not_finite(&broken), Some(SomeBlocks { n: 1, first: 0 }), "{}: {at}", format.ty);
            }
        }
        assert!(n_scales > 0, "{}", format.ty);
    }
}

#[test]
#[should_panic]
fn refuses_a_row_that_blocks_do_not_divide() {
    let format = format(TensorType::Q4_0).unwrap();
    format.quantize_rows(&[0.0; 48], 48, None, &mut [0; 27]);
}

#[test]
#[should_panic]
fn refuses_importance_of_another_length() {
    let format = format(TensorType::Q4_0).unwrap();
    format.quantize_rows(&[0.0; 64], 32, Some(&[1.0; 64]), &mut [0; 36]);
}

/// Half of the smallest subnormal half: what F16 loses of the smallest weights.
const HALF_OF_THE_LEAST_F16: f32 = 1.0 / (1 << 25) as f32;

/// A row of 512 weights: uniform, or with ever heavier tails; magnitudes from 16 to 1024, where scales are normal halves
/// whatever the format.
fn rows() -> impl Strategy<Value = Vec<f32>> {
    let tails = prop_oneof![Just(1), Just(3), Just(7)];
    (prop::collection::vec(-1f32..1.0, 512), tails, 4..11).prop_map(|(mut row, power, exponent)| {
        row.iter_mut().for_each(|x| *x = x.powi(power) * 2f32.powi(exponent));
        row
    })
}

fn importance() -> impl Strategy<Value = Option<Vec<f32>>> {
    prop::option::of(prop::collection::vec(0f32..1.0, 512))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_weight_is_off_by_more_than_its_format_allows(row in rows(), weighted: bool) {
        let ones = [1.0; 512];
        for (format, expected) in formats() {
            let back = round_trip(format, &row, weighted.then_some(&ones));
            let block_len = format.ty.block_len();
            for (block, back) in row.chunks(block_len).zip(back.chunks(block_len)) {
                let largest = block.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                for (x, y) in block.iter().zip(back) {
                    let off = (x - y).abs();
                    prop_assert!(
                        off <= expected.worst * largest + HALF_OF_THE_LEAST_F16,
                        "{}: {x} became {y}; the largest is {largest}, so {} of it", format.ty, off / largest
                    );
                }
            }
        }
    }

    #[test]
    fn twice_the_weights_come_back_as_twice_the_weights(row in rows(), importance in importance(), exponent in -3..4) {
        let factor = 2f32.powi(exponent);
        let larger: Vec<f32> = row.iter().map(|x| x * factor).collect();
        // F16 and BF16 have subnormals.
        for format in FORMATS.iter().filter(|format| format.ty.block_len() > 1) {
            let back = round_trip(format, &row, importance.as_deref());
            let wanted: Vec<f32> = back.iter().map(|x| x * factor).collect();
            prop_assert_eq!(round_trip(format, &larger, importance.as_deref()), wanted, "{}", format.ty);
        }
    }

    // Not much more than twice: the searches multiply three sums, which then leave single precision.
    #[test]
    fn twice_the_importance_is_the_same_importance(row in rows(), importance in importance(), exponent in -20..4) {
        let Some(importance) = importance else { return Ok(()) };
        let larger: Vec<f32> = importance.iter().map(|x| x * 2f32.powi(exponent)).collect();
        for format in FORMATS {
            let bytes = quantize(format, &row, 512, Some(&importance));
            prop_assert_eq!(quantize(format, &row, 512, Some(&larger)), bytes, "{}", format.ty);
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_rows_beside_it(
        first in rows(), second in rows(), importance in importance()
    ) {
        let both = [&first[..], &second].concat();
        for format in FORMATS {
            let row = |row| quantize(format, row, 512, importance.as_deref());
            prop_assert_eq!(
                quantize(format, &both, 512, importance.as_deref()), [row(&first), row(&second)].concat(), "{}", format.ty
            );
        }
    }
}
