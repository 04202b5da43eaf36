//! Compares every level of vector instructions with the scalar code, bit for bit.
//!
//! `NIBBLE_ORACLE_SCALE=3600` makes the random parts 3600 times as long: more than 10 million blocks per format and
//! level, and ten minutes or more (`cargo test --release every_level_gives_the_scalar_bytes_for_random -- --nocapture`
//! shows how many blocks were compared; the filter `random_rows` alone would run the comparison with ggml at that
//! length too).

use super::samples::{self, Matrix, Random};
use super::{FORMATS, Format, ImportanceUse};
use crate::lanes::Level;
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Fails unless every level that this CPU has gives the scalar code's bytes; counts the blocks.
fn check(format: &Format, matrix: &Matrix, importance: Option<(&str, &[f32])>, blocks: &AtomicUsize) {
    let ty = format.ty;
    let values = importance.map(|(_, values)| values);
    let n_blocks = matrix.weights.len() / ty.block_len();
    let quantize = |level| {
        let mut bytes = vec![0; n_blocks * ty.block_bytes()];
        format.quantize_rows_at(level, &matrix.weights, matrix.row_len, values, &mut bytes);
        bytes
    };
    let wanted = quantize(Level::Scalar);
    for level in Level::available().filter(|&level| level != Level::Scalar) {
        let found = quantize(level);
        let pairs = || wanted.chunks(ty.block_bytes()).zip(found.chunks(ty.block_bytes()));
        if let Some(first) = pairs().position(|(wanted, found)| wanted != found) {
            let (wanted, found) = pairs().nth(first).unwrap();
            let differing = pairs().filter(|(wanted, found)| wanted != found).count();
            let (level, name) = (level.name(), importance.map_or("none", |(name, _)| name));
            let weights = &matrix.weights[first * ty.block_len()..][..ty.block_len()];
            panic!(
                "{ty}, {level}: {differing} of {n_blocks} blocks of '{}' differ, importance: {name}; block {first}:\n  \
                 scalar {wanted:?}\n  {level} {found:?}\n  weights {weights:?}",
                matrix.name,
            );
        }
        blocks.fetch_add(n_blocks, Ordering::Relaxed);
    }
}

/// Checks each format on each matrix, without importance and with each of what `importances` gives for its row length;
/// the formats that ignore it too.
fn check_all(what: &str, matrices: &[Matrix], importances: impl Fn(usize) -> Vec<(&'static str, Vec<f32>)> + Sync) {
    for format in FORMATS.iter().filter(|format| format.ty.block_len() > 1) {
        let blocks = AtomicUsize::new(0);
        // A long run counts blocks, and a row has eight times as many of the small ones.
        let step = if samples::scale() >= 8 { 256 / format.ty.block_len() } else { 1 };
        matrices.par_iter().step_by(step).for_each(|matrix| {
            if !matrix.row_len.is_multiple_of(format.ty.block_len()) {
                return;
            }
            check(format, matrix, None, &blocks);
            for (name, values) in importances(matrix.row_len) {
                check(format, matrix, Some((name, &values)), &blocks);
            }
        });
        println!("{what}: {:7} {:9} blocks, none differs", format.ty, blocks.into_inner());
    }
}

#[test]
fn every_level_gives_the_scalar_bytes_for_a_trained_model() {
    let (portable, _) = samples::portable_rows();
    let matrices: Vec<Matrix> = samples::yi_nano().into_iter().chain([portable]).collect();
    check_all("yi-nano", &matrices, |row_len| samples::importances(row_len).into_iter().take(1).collect());
}

#[test]
fn every_level_gives_the_scalar_bytes_for_adversarial_rows() {
    // Single rows, and all of them in one matrix, so that ordinary and extraordinary blocks share a vector.
    let mut rows = samples::adversarial_rows(512);
    let weights = rows.iter().flat_map(|row| row.weights.iter().copied()).collect();
    rows.push(Matrix { name: "all adversarial rows".to_string(), row_len: 512, weights });
    check_all("adversarial", &rows, samples::importances);
}

#[test]
fn every_level_gives_the_scalar_bytes_for_rows_of_any_length() {
    let mut random = Random::new(8);
    let mut matrices = Vec::new();
    for row_len in (32..=1024).step_by(32).chain([2048 + 32, 7168, 9 * 256, 33 * 256, 64 * 256 + 32]) {
        for n_rows in [1, 2, 3, 17] {
            let weights = (0..n_rows * row_len).map(|_| random.normal() * 0.05).collect();
            matrices.push(Matrix { name: format!("{n_rows} rows of {row_len}"), row_len, weights });
        }
    }
    check_all("lengths", &matrices, |row_len| samples::importances(row_len).into_iter().take(1).collect());
}

#[test]
fn every_level_gives_the_scalar_bytes_for_random_rows() {
    let importances = samples::importances(samples::RANDOM_ROW_LEN);
    let matrices = samples::random_matrices(8 * samples::scale());
    check_all("random", &matrices, |_| importances.clone());
}

#[test]
fn every_level_gives_the_scalar_bytes_under_sparse_importance() {
    let seeds = 0..48 * samples::scale();
    for format in FORMATS.iter().filter(|format| format.importance == ImportanceUse::Used) {
        let blocks = AtomicUsize::new(0);
        seeds.clone().into_par_iter().for_each(|seed| {
            let (matrix, importance) = samples::sparse_importance(seed);
            check(format, &matrix, Some(("sparse", &importance)), &blocks);
        });
        println!("sparse: {:7} {:9} blocks, none differs", format.ty, blocks.into_inner());
    }
}
