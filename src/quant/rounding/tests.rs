//! What holds for the roundings that know their inputs, for every format.

use std::sync::atomic::AtomicBool;

use super::factor::{DAMPING, MomentsError, SecondMoments};
use super::joint::Settings;
use super::piece::level_of;
use super::{OutputMoments, Sweeps, TwoSidedOutcome};
use crate::gguf::TensorType;
use crate::quant::samples::{Random, laplace, random_blocks};
use crate::quant::{FORMATS, Format};

fn scaled() -> impl Iterator<Item = &'static Format> {
    FORMATS.iter().filter(|format| format.grid.is_some())
}

/// Inputs of which each is close to the one before: an autoregressive process.
fn autoregressive(columns: usize, correlation: f32, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    let size: Vec<f32> = (0..columns).map(|_| 0.25 + random.unit() * random.unit() * 4.0).collect();
    let mut values = vec![0.0; columns * columns];
    for i in 0..columns {
        for j in 0..columns {
            values[i * columns + j] = size[i] * size[j] * correlation.powi(i.abs_diff(j) as i32);
        }
    }
    values
}

/// XᵀX of samples that mix `rank` sources, with some noise.
fn low_rank(columns: usize, rank: usize, noise: f32, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    let sources: Vec<f32> = (0..rank * columns).map(|_| random.normal()).collect();
    let mut values = vec![0.0; columns * columns];
    for source in sources.chunks_exact(columns) {
        for i in 0..columns {
            for j in 0..columns {
                values[i * columns + j] += source[i] * source[j] / rank as f32;
            }
        }
    }
    for i in 0..columns {
        values[i * columns + i] += noise * (0.5 + random.unit());
    }
    values
}

fn identity(columns: usize) -> Vec<f32> {
    let mut values = vec![0.0; columns * columns];
    values.iter_mut().step_by(columns + 1).for_each(|value| *value = 1.0);
    values
}

fn weights(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..rows * columns)
        .map(|_| if random.bits().is_multiple_of(4) { laplace(&mut random) } else { random.normal() } * 0.02)
        .collect()
}

fn moments(values: &[f32], columns: usize) -> SecondMoments {
    SecondMoments::new(values.to_vec(), columns).unwrap()
}

fn bytes_of(format: &Format, weights: &[f32]) -> Vec<u8> {
    vec![0xee; weights.len() / format.ty.block_len() * format.ty.block_bytes()]
}

fn dequantized(format: &Format, bytes: &[u8]) -> Vec<f32> {
    let mut weights = vec![f32::NAN; bytes.len() / format.ty.block_bytes() * format.ty.block_len()];
    format.dequantize(bytes, &mut weights);
    weights
}

/// e H eᵀ of each row, in double precision, from what is read back.
fn plain_objectives(format: &Format, weights: &[f32], values: &[f32], columns: usize, bytes: &[u8]) -> Vec<f64> {
    let back = dequantized(format, bytes);
    let errors: Vec<f64> = weights.iter().zip(&back).map(|(w, b)| f64::from(*w) - f64::from(*b)).collect();
    let of_row = |e: &[f64]| -> f64 {
        (0..columns)
            .map(|i| e[i] * values[i * columns..][..columns].iter().zip(e).map(|(h, e)| f64::from(*h) * e).sum::<f64>())
            .sum()
    };
    errors.chunks_exact(columns).map(of_row).collect()
}

fn plain_objective(format: &Format, weights: &[f32], values: &[f32], columns: usize, bytes: &[u8]) -> f64 {
    plain_objectives(format, weights, values, columns, bytes).iter().sum()
}

fn assert_close(a: f64, b: f64, tolerance: f64, what: &str) {
    assert!((a - b).abs() <= tolerance * a.abs().max(b.abs()), "{what}: {a} and {b}");
}

const COMPENSATED: Settings = Settings { nearest: false, rounds: 0 };

fn compensated(format: &Format, weights: &[f32], moments: &SecondMoments) -> Vec<u8> {
    let mut bytes = bytes_of(format, weights);
    format.round_for(weights, moments, COMPENSATED, &mut bytes).unwrap();
    bytes
}

fn nearest(format: &Format, weights: &[f32], moments: &SecondMoments) -> Vec<u8> {
    let mut bytes = bytes_of(format, weights);
    format.quantize_rows(weights, moments.columns(), Some(moments.importance()), &mut bytes);
    bytes
}

#[test]
fn scales_and_codes_that_are_read_and_written_are_the_same_bytes() {
    for format in scaled() {
        let grid = format.grid.as_ref().unwrap();
        let mut codes = vec![0; grid.len];
        let mut factors_at_ends = [0; 4];
        for block in random_blocks(format.ty, 512, 3).chunks_exact(grid.bytes) {
            let scales = (grid.read)(block, &mut codes);
            let mut written = vec![0; grid.bytes];
            (grid.write)(&scales, &codes, &mut written);
            assert_eq!(written, block, "{}", format.ty);
            let per_block = grid.len / grid.sub_block;
            for (range, factors, ends) in
                [(grid.factors, scales.factors, [0, 1]), (grid.min_factors, scales.min_factors, [2, 3])]
            {
                let factors = &factors[..per_block];
                assert!(factors.iter().all(|factor| (range[0]..=range[1]).contains(factor)), "{}", format.ty);
                factors_at_ends[ends[0]] += factors.iter().filter(|factor| **factor == range[0]).count();
                factors_at_ends[ends[1]] += factors.iter().filter(|factor| **factor == range[1]).count();
            }
            // They mean what is read back.
            for (i, value) in dequantized(format, block).iter().enumerate() {
                let scale = scales.d.value() * f32::from(scales.factors[i / grid.sub_block]);
                let min = scales.dmin.value() * f32::from(scales.min_factors[i / grid.sub_block]);
                // -128 is a byte that no code of Q8_0 stands for.
                let level = if grid.bytes == 34 && codes[i] == 255 { -128.0 } else { level_of(grid.levels, codes[i]) };
                let wanted = scale * level - min;
                assert!(wanted == *value || wanted.is_nan() && value.is_nan(), "{}: {wanted}, {value}", format.ty);
            }
        }
        assert!(factors_at_ends.iter().all(|n| *n > 0), "{}: not the whole range", format.ty);
    }
}

#[test]
fn without_correlation_compensated_rounding_is_not_worse_than_nearest() {
    let columns = 768;
    let weights = weights(40, columns, 1);
    let values = identity(columns);
    let moments = moments(&values, columns);
    for format in scaled() {
        let nearest = plain_objective(format, &weights, &values, columns, &nearest(format, &weights, &moments));
        let bytes = compensated(format, &weights, &moments);
        let found = plain_objective(format, &weights, &values, columns, &bytes);
        assert!(found <= nearest, "{}: {found}, nearest {nearest}", format.ty);
    }
}

#[test]
fn each_step_is_better_than_the_one_before_it_on_correlated_inputs() {
    let columns = 768;
    let weights = weights(40, columns, 2);
    for (name, values, at_most) in
        [("autoregressive", autoregressive(columns, 0.9, 4), 0.4), ("low rank", low_rank(columns, 96, 0.1, 5), 0.4)]
    {
        let moments = moments(&values, columns);
        for format in scaled() {
            let what = format!("{}, {name}", format.ty);
            let objective = |bytes: &[u8]| plain_objective(format, &weights, &values, columns, bytes);
            let mut bytes = nearest(format, &weights, &moments);
            let nearest = objective(&bytes);
            let [before, after] = format.refit_for(&weights, &moments, 8, &mut bytes).unwrap();
            assert_close(before.objective, nearest, 1e-4, &what);
            assert_close(after.objective, objective(&bytes), 1e-4, &what);
            assert!(after.objective < 0.5 * nearest, "{what}: refit {}, nearest {nearest}", after.objective);

            let settings = Settings { nearest: true, rounds: 8 };
            let outcome = format.round_for(&weights, &moments, settings, &mut bytes).unwrap();
            let refit = outcome.refit.unwrap().objective;
            assert_close(outcome.nearest.unwrap().objective, nearest, 1e-4, &what);
            assert_close(refit, objective(&bytes), 1e-4, &what);
            let compensated = outcome.compensated.objective;
            assert!(compensated < at_most * nearest, "{what}: compensated {compensated}, nearest {nearest}");
            assert!(refit < 0.95 * compensated, "{what}: refit {refit}, compensated {compensated}");
        }
    }
}

#[test]
fn a_refit_never_makes_a_row_worse_and_ends_where_no_single_code_helps() {
    let columns = 512;
    let weights = weights(33, columns, 6);
    let values = autoregressive(columns, 0.95, 7);
    let moments = moments(&values, columns);
    for format in scaled() {
        let grid = format.grid.as_ref().unwrap();
        let mut bytes = nearest(format, &weights, &moments);
        let mut before = plain_objectives(format, &weights, &values, columns, &bytes);
        for _ in 0..3 {
            format.refit_for(&weights, &moments, 1, &mut bytes).unwrap();
            let after = plain_objectives(format, &weights, &values, columns, &bytes);
            for (before, after) in before.iter().zip(&after) {
                assert!(*after <= before * (1.0 + 1e-6), "{}: {before} became {after}", format.ty);
            }
            before = after;
        }
        format.refit_for(&weights, &moments, 60, &mut bytes).unwrap();
        // Every other code of every weight of some rows, with brute force.
        let row_bytes = bytes.len() / 33;
        let n_codes = match grid.levels {
            super::Levels::Whole(whole) => (whole.largest - whole.smallest + 1) as usize,
            super::Levels::Table => 16,
        };
        let (mut better, mut gained) = (0, 0.0);
        for row in [0, 32] {
            let bytes = &bytes[row * row_bytes..][..row_bytes];
            let back = dequantized(format, bytes);
            let errors: Vec<f64> =
                (0..columns).map(|i| f64::from(weights[row * columns + i]) - f64::from(back[i])).collect();
            let mut codes = vec![0; grid.len];
            for (block, bytes) in bytes.chunks_exact(grid.bytes).enumerate() {
                let scales = (grid.read)(bytes, &mut codes);
                for (j, code) in codes.iter().enumerate() {
                    let i = block * grid.len + j;
                    let scale = f64::from(scales.d.value()) * f64::from(scales.factors[j / grid.sub_block]);
                    let row_of_h = &values[i * columns..][..columns];
                    let gradient: f64 = row_of_h.iter().zip(&errors).map(|(h, e)| f64::from(*h) * e).sum();
                    let mut gain = 0.0f64;
                    for other in 0..n_codes as u8 {
                        let change =
                            scale * (f64::from(level_of(grid.levels, *code)) - f64::from(level_of(grid.levels, other)));
                        gain = gain.max(-2.0 * change * gradient - change * change * f64::from(row_of_h[i]));
                    }
                    if gain > 0.0 {
                        better += 1;
                        gained += gain;
                    }
                }
            }
        }
        let all = before[0] + before[32];
        // A row stops where a round gains less than a thousandth.
        assert!(gained < 0.01 * all, "{}: {better} codes would gain {gained} of {all}", format.ty);
    }
}

#[test]
fn few_weights_get_nearly_the_best_of_all_codes() {
    // Four columns matter: all their codes can be tried.
    let columns = 256;
    let live = [3, 17, 40, 250];
    let part = autoregressive(4, 0.8, 9);
    let mut values = vec![0.0; columns * columns];
    values.iter_mut().step_by(columns + 1).for_each(|value| *value = 1e-7);
    for (i, row) in live.iter().enumerate() {
        for (j, column) in live.iter().enumerate() {
            values[row * columns + column] = part[4 * i + j];
        }
    }
    let weights = weights(20, columns, 10);
    let moments = moments(&values, columns);
    for format in scaled().filter(|format| format.ty.bits_per_weight() < 5.0) {
        let grid = format.grid.as_ref().unwrap();
        let mut bytes = bytes_of(format, &weights);
        format.round_for(&weights, &moments, Settings { nearest: false, rounds: 20 }, &mut bytes).unwrap();
        let found = plain_objective(format, &weights, &values, columns, &bytes);
        let mut best = 0.0;
        for (row, bytes) in bytes.chunks_exact(bytes.len() / 20).enumerate() {
            // All values that the scales allow for the live weights.
            let mut codes = vec![0; grid.len];
            let choices = live.map(|i| -> Vec<f64> {
                let scales = (grid.read)(&bytes[i / grid.len * grid.bytes..][..grid.bytes], &mut codes);
                let piece = i % grid.len / grid.sub_block;
                let scale = scales.d.value() * f32::from(scales.factors[piece]);
                let min = scales.dmin.value() * f32::from(scales.min_factors[piece]);
                let weight = f64::from(weights[row * columns + i]);
                let n =
                    if let super::Levels::Whole(whole) = grid.levels { whole.largest - whole.smallest + 1 } else { 16 };
                (0..n as u8).map(|code| weight - f64::from(scale * level_of(grid.levels, code) - min)).collect()
            });
            let mut least = f64::INFINITY;
            let n = choices[0].len();
            for all in 0..n.pow(4) {
                let e = [all % n, all / n % n, all / n / n % n, all / n / n / n];
                let e: [f64; 4] = std::array::from_fn(|i| choices[i][e[i]]);
                let sum = |i: usize| (0..4).map(|j| f64::from(part[4 * i + j]) * e[j]).sum::<f64>();
                least = least.min((0..4).map(|i| e[i] * sum(i)).sum());
            }
            best += least;
        }
        let nearest = plain_objective(format, &weights, &values, columns, &nearest(format, &weights, &moments));
        assert!(found <= 1.25 * best && found < nearest, "{}: {found}, best {best}, nearest {nearest}", format.ty);
    }
}

#[test]
fn moments_without_full_rank_or_without_inputs_still_round() {
    let columns = 512;
    let weights = weights(5, columns, 11);
    let mut dead = autoregressive(columns, 0.7, 12);
    for i in 0..columns {
        for j in 0..columns {
            if i % 7 == 0 || j % 7 == 0 || (64..128).contains(&i) || (64..128).contains(&j) {
                dead[i * columns + j] = 0.0;
            }
        }
    }
    let all = [
        ("rank 1", low_rank(columns, 1, 0.0, 13)),
        ("rank 3", low_rank(columns, 3, 0.0, 14)),
        ("zero", vec![0.0; columns * columns]),
        ("dead columns", dead.clone()),
        ("tiny", autoregressive(columns, 0.9, 15).iter().map(|x| x * 1e-30).collect()),
        ("huge", autoregressive(columns, 0.9, 15).iter().map(|x| x * 1e25).collect()),
    ];
    for (name, values) in &all {
        let moments = moments(values, columns);
        // Columns without input count as the least important one.
        let values = &(0..columns).flat_map(|j| moments.row(j).to_vec()).collect::<Vec<f32>>();
        for format in scaled() {
            let what = format!("{}, {name}", format.ty);
            let nearest = nearest(format, &weights, &moments);
            let mut bytes = bytes_of(format, &weights);
            let settings = Settings { nearest: true, rounds: 2 };
            let outcome = format.round_for(&weights, &moments, settings, &mut bytes).unwrap();
            assert!(format.not_finite(&bytes).is_none(), "{what}");
            let [at_nearest, refit] =
                [&nearest, &bytes].map(|bytes| plain_objective(format, &weights, values, columns, bytes));
            assert!(refit <= at_nearest, "{what}: {refit}, nearest {at_nearest}");
            assert!(outcome.compensated.objective.is_finite(), "{what}");
            // Weights that nothing sees stay close.
            let unseen = |bytes: &[u8]| -> f64 {
                let errors = weights.iter().zip(dequantized(format, bytes)).enumerate();
                let unseen = errors.filter(|(i, _)| dead[i % columns * (columns + 1)] == 0.0);
                unseen.map(|(_, (weight, back))| f64::from(weight - back).powi(2)).sum()
            };
            let (unseen, nearest) = (unseen(&bytes), unseen(&nearest));
            assert!(*name != "dead columns" || unseen <= 2.0 * nearest, "{what}: {unseen}, nearest {nearest}");
        }
    }
}

#[test]
fn weights_below_the_limit_of_a_format_stay_finite() {
    let columns = 512;
    let values = autoregressive(columns, 0.98, 26);
    let moments = moments(&values, columns);
    let mut random = Random::new(27);
    for format in scaled() {
        let limit = format.limit(true).next_down();
        // Weights that all push the same way hand the most on.
        let sign = |i: usize, period: usize| if (i / period).is_multiple_of(2) { 1.0 } else { -1.0 };
        let rows =
            [1, 3, 40, 256, 1024].map(|period| (0..columns).map(|i| limit * sign(i, period)).collect::<Vec<f32>>());
        let mut weights = rows.concat();
        weights.extend((0..20 * columns).map(|_| limit * (2.0 * random.unit() - 1.0)));
        let mut bytes = bytes_of(format, &weights);
        format.round_for(&weights, &moments, Settings { nearest: false, rounds: 2 }, &mut bytes).unwrap();
        assert!(format.not_finite(&bytes).is_none(), "{}", format.ty);
    }
}

#[test]
fn rows_of_any_number_of_blocks_and_any_number_of_rows() {
    for format in scaled() {
        for blocks in [1, 3, 9] {
            let columns = blocks * format.ty.block_len();
            let values = autoregressive(columns, 0.9, 16);
            let moments = moments(&values, columns);
            for rows in [0, 1, 31, 65] {
                let weights = weights(rows, columns, 17);
                let mut bytes = bytes_of(format, &weights);
                let outcome = format.round_for(&weights, &moments, Settings { nearest: true, rounds: 1 }, &mut bytes);
                let objective = plain_objective(format, &weights, &values, columns, &bytes);
                let found = outcome.unwrap().refit.map_or(0.0, |refit| refit.objective);
                assert_close(found, objective, 1e-4, &format!("{}, {blocks} blocks, {rows} rows", format.ty));
                assert_close(format.objective_for(&weights, &moments, &bytes), objective, 1e-4, "objective");
            }
        }
    }
}

#[test]
fn bytes_do_not_depend_on_threads_or_on_how_rows_are_passed() {
    // Two windows, and enough rows for each of two threads to get several groups.
    let columns = 512;
    let rows = 140;
    let weights = weights(rows, columns, 18);
    let values = low_rank(columns, 64, 0.2, 19);
    let settings = Settings { nearest: true, rounds: 1 };
    let some = [TensorType::Q4_0, TensorType::Q5_1, TensorType::Q4_K, TensorType::Q2_K, TensorType::IQ4_XS];
    for format in scaled().filter(|format| some.contains(&format.ty)) {
        let round = |n_threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| {
                let moments = moments(&values, columns);
                let mut bytes = bytes_of(format, &weights);
                let outcome = format.round_for(&weights, &moments, settings, &mut bytes).unwrap();
                (bytes, outcome.refit.unwrap().objective.to_bits(), outcome.compensated.objective.to_bits())
            })
        };
        let one = round(1);
        assert!(one == round(2) && one == round(3), "{}", format.ty);
        let moments = moments(&values, columns);
        // One row, then 40 at a time.
        let (first, others) = weights.split_at(columns);
        let mut bytes = Vec::new();
        for weights in std::iter::once(first).chain(others.chunks(40 * columns)) {
            let mut part = bytes_of(format, weights);
            format.round_for(weights, &moments, settings, &mut part).unwrap();
            bytes.extend(part);
        }
        assert!(bytes == one.0, "{}: rows in parts", format.ty);
    }
}

/// GPTQ as published: one column at a time, in double precision, with `upper` of [`upper_of_inverse`]. `step` gives scale and
/// min of a weight, and `round` the level for (w + min) / scale.
fn textbook_gptq(
    row: &[f32],
    upper: &[f64],
    step: impl Fn(usize) -> (f64, f64),
    mut round: impl FnMut(usize, f64) -> f64,
) {
    let columns = row.len();
    let mut w: Vec<f64> = row.iter().map(|w| f64::from(*w)).collect();
    for j in 0..columns {
        let (scale, min) = step(j);
        let level = round(j, if scale != 0.0 { (w[j] + min) / scale } else { 0.0 });
        let error = (w[j] - (scale * level - min)) / upper[j * columns + j];
        for i in j..columns {
            w[i] -= error * upper[j * columns + i];
        }
    }
}

/// U with UᵀU = (H + damping)⁻¹, by Gauss-Jordan and Cholesky.
fn upper_of_inverse(values: &[f32], n: usize, damping: f64) -> Vec<f64> {
    // Gauss-Jordan, without pivoting: the matrix is positive definite.
    let mut a: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
    a.iter_mut().step_by(n + 1).for_each(|value| *value += damping);
    let mut inverse = vec![0.0; n * n];
    inverse.iter_mut().step_by(n + 1).for_each(|value| *value = 1.0);
    for k in 0..n {
        let pivot = a[k * n + k];
        for x in [&mut a, &mut inverse] {
            x[k * n..][..n].iter_mut().for_each(|value| *value /= pivot);
        }
        for i in (0..n).filter(|i| *i != k) {
            let factor = a[i * n + k];
            for x in [&mut a, &mut inverse] {
                for j in 0..n {
                    x[i * n + j] -= factor * x[k * n + j];
                }
            }
        }
    }
    // inverse = UᵀU
    let mut upper = vec![0.0; n * n];
    for i in 0..n {
        let square = inverse[i * n + i] - (0..i).map(|k| upper[k * n + i] * upper[k * n + i]).sum::<f64>();
        upper[i * n + i] = square.sqrt();
        for j in i + 1..n {
            let sum: f64 = (0..i).map(|k| upper[k * n + i] * upper[k * n + j]).sum();
            upper[i * n + j] = (inverse[i * n + j] - sum) / upper[i * n + i];
        }
    }
    upper
}

#[test]
fn compensated_rounding_is_gptq_with_the_scales_that_it_found() {
    let columns = 512;
    let weights = weights(12, columns, 20);
    let values = autoregressive(columns, 0.9, 21);
    let moments = moments(&values, columns);
    let upper = upper_of_inverse(&values, columns, moments.damping());
    for format in scaled() {
        let grid = format.grid.as_ref().unwrap();
        let bytes = compensated(format, &weights, &moments);
        let (mut same, mut near_ties) = (0, 0);
        for (row, bytes) in weights.chunks_exact(columns).zip(bytes.chunks_exact(bytes.len() / 12)) {
            let (mut steps, mut levels) = (Vec::new(), Vec::new());
            let mut codes = vec![0; grid.len];
            for block in bytes.chunks_exact(grid.bytes) {
                let scales = (grid.read)(block, &mut codes);
                for (j, code) in codes.iter().enumerate() {
                    let scale = scales.d.value() * f32::from(scales.factors[j / grid.sub_block]);
                    let min = scales.dmin.value() * f32::from(scales.min_factors[j / grid.sub_block]);
                    steps.push((f64::from(scale), f64::from(min)));
                    levels.push(f64::from(level_of(grid.levels, *code)));
                }
            }
            let all: Vec<f64> = (0..=255).map(|code| f64::from(level_of(grid.levels, code))).collect();
            let n = if let super::Levels::Whole(whole) = grid.levels { whole.largest - whole.smallest + 1 } else { 16 };
            textbook_gptq(
                row,
                &upper,
                |j| steps[j],
                |j, quotient| {
                    let distance = |level: &f64| (level - quotient).abs();
                    let nearest = all[..n as usize].iter().copied().min_by(|a, b| distance(a).total_cmp(&distance(b)));
                    match nearest == Some(levels[j]) || steps[j].0 == 0.0 {
                        true => same += 1,
                        false => {
                            // Another code only where two are as near as single precision can tell.
                            let off = distance(&levels[j]) - distance(&nearest.unwrap());
                            assert!(off < 2e-3 * (1.0 + quotient.abs()), "{}: {quotient}, {}", format.ty, levels[j]);
                            near_ties += 1;
                        }
                    }
                    // From there on both go the same way.
                    levels[j]
                },
            );
        }
        assert!(near_ties * 200 < same, "{}: {near_ties} of {same}", format.ty);
    }
}

#[test]
fn the_factor_is_that_of_the_damped_moments() {
    for columns in [1, 2, 31, 256, 257, 300, 800] {
        let values = low_rank(columns, columns / 2 + 1, 0.01, columns as u64);
        let moments = moments(&values, columns);
        let factor = moments.factor();
        let n = |j: usize, k: usize| match k <= j {
            true => f64::from(factor.from(j, k).0[0]),
            false => 0.0,
        };
        let mut random = Random::new(22);
        for _ in 0..400 {
            let (i, k) = (random.bits() as usize % columns, random.bits() as usize % columns);
            let sum: f64 = (0..columns).map(|j| f64::from(factor.pivots[j]) * n(j, i) * n(j, k)).sum();
            let wanted = f64::from(values[i * columns + k]) + if i == k { moments.damping() } else { 0.0 };
            let size = (f64::from(values[i * columns + i]) * f64::from(values[k * columns + k])).sqrt();
            assert!((sum - wanted).abs() < 1e-5 * size, "{columns} columns, {i}, {k}: {sum}, not {wanted}");
        }
    }
}

#[test]
fn damping_grows_until_the_moments_are_positive_definite() {
    // Eigenvalues 3 and -1.
    let moments = moments(&[1.0, 2.0, 2.0, 1.0], 2);
    assert!(moments.damping() > 1.0 && moments.damping() < 8.0, "{}", moments.damping());
    let plain = SecondMoments::new(identity(4), 4).unwrap();
    assert_eq!(plain.damping(), DAMPING);
    let zero = SecondMoments::new(vec![0.0; 16], 4).unwrap();
    assert_eq!((zero.damping(), zero.importance()), (DAMPING, [1.0; 4].as_slice()));
    let dead = SecondMoments::new(vec![4.0, 0.0, 0.0, 0.0], 2).unwrap();
    assert_eq!(dead.importance(), [4.0, 4.0]);
}

#[test]
fn refuses_moments_that_are_none() {
    let error = |values: Vec<f32>, columns: usize| SecondMoments::new(values, columns).err();
    assert_eq!(error(vec![1.0; 3], 2), Some(MomentsError::Length { columns: 2, values: 3 }));
    assert_eq!(error(vec![], 0), Some(MomentsError::Length { columns: 0, values: 0 }));
    assert!(matches!(error(vec![1.0, 0.0, f32::NAN, 1.0], 2), Some(MomentsError::NotFinite { row: 1, column: 0, .. })));
    assert_eq!(error(vec![1.0, 0.0, 0.0, -1.0], 2), Some(MomentsError::Negative { column: 1, value: -1.0 }));
    // The upper triangle is not read.
    assert!(error(vec![1.0, f32::NAN, 0.5, 1.0], 2).is_none());
}

#[test]
fn formats_without_codes_are_left_alone() {
    let moments = moments(&identity(4), 4);
    for format in FORMATS.iter().filter(|format| format.grid.is_none()) {
        let mut bytes = bytes_of(format, &[1.0; 4]);
        let before = bytes.clone();
        assert!(format.round_for(&[1.0; 4], &moments, Settings::default(), &mut bytes).is_none());
        assert!(format.refit_for(&[1.0; 4], &moments, 1, &mut bytes).is_none());
        assert_eq!(bytes, before);
    }
}

/// A table of what each part achieves, and how long it takes. `NIBBLE_ROUNDING_COLUMNS` sets another number of columns.
#[test]
#[ignore = "prints a table"]
fn table_of_objectives() {
    let columns = std::env::var("NIBBLE_ROUNDING_COLUMNS").map_or(1024, |columns| columns.parse().unwrap());
    let only = std::env::var("NIBBLE_ROUNDING_FORMATS").unwrap_or_default();
    let rows = 512;
    let weights = weights(rows, columns, 23);
    for (name, values) in [
        ("autoregressive, 0.9", autoregressive(columns, 0.9, 24)),
        ("rank 128 of 1024, noise 0.1", low_rank(columns, columns / 8, 0.1, 25)),
    ] {
        let moments = moments(&values, columns);
        println!("{rows} rows of {columns} columns, {name}; second moments in {:.2} s", moments.seconds());
        println!("format   nearest  comp.    refit    nearest+refit   seconds: nearest  comp.  refit");
        for format in scaled().filter(|format| only.is_empty() || only.split(',').any(|ty| ty == format.ty.name())) {
            let mut bytes = nearest(format, &weights, &moments);
            let [_, refit_of_nearest] = format.refit_for(&weights, &moments, 8, &mut bytes).unwrap();
            let outcome =
                format.round_for(&weights, &moments, Settings { nearest: true, rounds: 8 }, &mut bytes).unwrap();
            let (nearest, refit) = (outcome.nearest.unwrap(), outcome.refit.unwrap());
            let part = |objective: f64| objective / nearest.objective;
            println!(
                "{:8} {:8.3e} {:.4}   {:.4}   {:.4}                   {:6.2} {:6.2} {:6.2}",
                format.ty.name(),
                nearest.objective,
                part(outcome.compensated.objective),
                part(refit.objective),
                part(refit_of_nearest.objective),
                nearest.seconds,
                outcome.compensated.seconds,
                refit.seconds
            );
        }
    }
}

/// tr(G E H Eᵀ) in double precision, from what is read back.
fn plain_two_sided(format: &Format, weights: &[f32], [h, g]: [&[f32]; 2], columns: usize, bytes: &[u8]) -> f64 {
    let back = dequantized(format, bytes);
    let errors: Vec<f64> = weights.iter().zip(&back).map(|(w, b)| f64::from(*w) - f64::from(*b)).collect();
    let rows = weights.len() / columns;
    let mut sum = 0.0;
    for i in 0..rows {
        let mixed: Vec<f64> = (0..columns)
            .map(|k| (0..rows).map(|j| f64::from(g[i * rows + j]) * errors[j * columns + k]).sum())
            .collect();
        for k in 0..columns {
            let product: f64 = h[k * columns..][..columns].iter().zip(&mixed).map(|(h, m)| f64::from(*h) * m).sum();
            sum += errors[i * columns + k] * product;
        }
    }
    sum
}

fn two_sided(
    format: &Format,
    weights: &[f32],
    inputs: &SecondMoments,
    outputs: &[f32],
    sweeps: usize,
) -> (Vec<u8>, TwoSidedOutcome) {
    let outputs = OutputMoments::new(outputs.to_vec(), weights.len() / inputs.columns()).unwrap();
    let settings = Settings { nearest: false, rounds: 2 };
    let mut bytes = bytes_of(format, weights);
    format.round_for(weights, inputs, settings, &mut bytes).unwrap();
    let outcome =
        format.refit_two_sided(weights, inputs, &outputs, Sweeps { sweeps, stop: &AtomicBool::new(false) }, &mut bytes);
    let outcome = outcome.unwrap();
    (bytes, outcome)
}

#[test]
fn a_two_sided_refit_lowers_what_it_says() {
    // 75 rows: groups of 25 rows, none of them full.
    for (format, rows) in scaled().zip([75, 32, 7, 96].into_iter().cycle()) {
        let columns = 512;
        let weights = weights(rows, columns, 5);
        let (h, g) = (autoregressive(columns, 0.8, 1), autoregressive(rows, 0.9, 2));
        let inputs = moments(&h, columns);
        let (bytes, outcome) = two_sided(format, &weights, &inputs, &g, 2);
        let after = plain_two_sided(format, &weights, [&h, &g], columns, &bytes);
        assert_close(outcome.after, after, 1e-4, &format.ty.to_string());
        let (start, untouched) = two_sided(format, &weights, &inputs, &g, 0);
        assert_eq!(untouched.gain, 0.0);
        let before = plain_two_sided(format, &weights, [&h, &g], columns, &start);
        assert_close(outcome.after + outcome.gain, before, 1e-4, &format.ty.to_string());
        assert!(after < 0.8 * before, "{}: {before} {after}", format.ty);
        let outputs = OutputMoments::new(g, rows).unwrap();
        let objective = format.objective_two_sided(&weights, &inputs, &outputs, &bytes);
        assert_close(objective, outcome.after, 1e-4, &format.ty.to_string());
    }
}

/// Rows that are refitted at the same time and depend on each other as much as rows can.
#[test]
fn rows_of_a_batch_do_not_undo_what_others_gain() {
    let format = crate::quant::format(TensorType::Q4_0).unwrap();
    let (rows, columns) = (64, 256);
    let (weights, h) = (weights(rows, columns, 6), low_rank(columns, 80, 0.1, 3));
    let inputs = moments(&h, columns);
    // All rows have nearly the same gradient, up to its sign.
    let sign = |i: usize| if i.is_multiple_of(3) { -1.0 } else { 1.0 };
    let g: Vec<f32> = (0..rows * rows)
        .map(|at| (at / rows, at % rows))
        .map(|(i, j)| if i == j { 1.0 } else { 0.999 * sign(i) * sign(j) })
        .collect();
    let mut last = f64::INFINITY;
    for sweeps in 0..4 {
        let (bytes, _) = two_sided(format, &weights, &inputs, &g, sweeps);
        let now = plain_two_sided(format, &weights, [&h, &g], columns, &bytes);
        assert!(now <= last, "{sweeps}: {last} {now}");
        last = now;
    }
    let (bytes, _) = two_sided(format, &weights, &inputs, &g, 0);
    assert!(last < 0.5 * plain_two_sided(format, &weights, [&h, &g], columns, &bytes));
}

#[test]
fn two_sided_bytes_do_not_depend_on_threads() {
    let format = crate::quant::format(TensorType::Q4_K).unwrap();
    let (rows, columns) = (600, 256);
    let weights = weights(rows, columns, 7);
    let inputs = moments(&autoregressive(columns, 0.7, 1), columns);
    let g = low_rank(rows, 100, 0.2, 2);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| two_sided(format, &weights, &inputs, &g, 1))
    };
    assert!(with(1) == with(2) && with(1) == with(3));
}

#[test]
fn moments_of_outputs_that_are_none_are_refused() {
    let of = |values: &[f32]| OutputMoments::new(values.to_vec(), 2).map(|_| ());
    assert_eq!(of(&[1.0; 3]), Err(MomentsError::Length { columns: 2, values: 3 }));
    assert_eq!(of(&[1.0, 0.0, 0.0, -1.0]), Err(MomentsError::Negative { column: 1, value: -1.0 }));
    assert!(of(&[1.0, 0.0, f32::NAN, 1.0]).is_err());
    // What lies above the diagonal is not read; a row without gradients is not free.
    assert!(of(&[1.0, f32::NAN, 0.0, 0.0]).is_ok());
}
