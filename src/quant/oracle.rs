//! Compares every format's scalar code with ggml, bit for bit, in one process. (`levels` compares all other code with
//! the scalar code.)
//!
//! `NIBBLE_ORACLE_SCALE=20` makes the random parts twenty times as long; `--nocapture` shows how many blocks were compared.

use super::samples::{
    Matrix, RANDOM_ROW_LEN, Random, adversarial_rows, importances, laplace, portable_rows, random_blocks,
    random_matrices, scale, sparse_importance, yi_nano,
};
use super::{FORMATS, Format, float};
use crate::gguf::TensorType;
use crate::lanes::Level;
use llama_cpp_sys_2 as ggml;
use rayon::prelude::*;
use std::ffi::CStr;
use std::fmt::Write;

/// ggml's bytes for rows of `row_len` weights.
fn ggml_quantize(ty: TensorType, src: &[f32], row_len: usize, importance: Option<&[f32]>) -> Vec<u8> {
    let rows = src.len() / row_len;
    let bytes = rows * row_len / ty.block_len() * ty.block_bytes();
    // Whole words, for ggml's blocks are aligned to two bytes, floats to four.
    let mut words = vec![0u64; bytes.div_ceil(8)];
    assert!(src.len() == rows * row_len && importance.is_none_or(|i| i.len() == row_len));
    // SAFETY: ggml reads rows · row_len floats, and one importance a column where the pointer is not null, and writes as
    // many bytes as it returns, which `words` has room for.
    let written = unsafe {
        ggml::ggml_quantize_chunk(
            ty.id() as ggml::ggml_type,
            src.as_ptr(),
            words.as_mut_ptr().cast(),
            0,
            rows as i64,
            row_len as i64,
            importance.map_or(std::ptr::null(), <[f32]>::as_ptr),
        )
    };
    assert_eq!(written, bytes);
    bytemuck::cast_slice(&words)[..bytes].to_vec()
}

/// ggml's weights for whole blocks.
fn ggml_dequantize(ty: TensorType, src: &[u8]) -> Vec<f32> {
    let blocks = src.len() / ty.block_bytes();
    let mut dst = vec![0.0; blocks * ty.block_len()];
    if ty == TensorType::F32 {
        // ggml has no function for what is a copy.
        return src.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    }
    let mut words = vec![0u64; src.len().div_ceil(8)];
    bytemuck::cast_slice_mut(&mut words)[..src.len()].copy_from_slice(src);
    // SAFETY: the table has an entry for every type's number, and lives as long as the process.
    let to_float = unsafe { (*ggml::ggml_get_type_traits(ty.id() as ggml::ggml_type)).to_float }.unwrap();
    // SAFETY: `words` holds the blocks, `dst` has room for their weights.
    unsafe { to_float(words.as_ptr().cast(), dst.as_mut_ptr(), dst.len() as i64) };
    dst
}

/// What comparing came to: how much was compared, and what was not equal.
#[derive(Default)]
struct Tally {
    blocks: usize,
    weights: usize,
    differing: usize,
    /// Most differing bytes (or weights) in a block, and what there is to say about that block.
    worst: (usize, String),
}

impl Tally {
    /// Compares a format's blocks, given as what is in them.
    fn compare<T: PartialEq + std::fmt::Debug>(&mut self, ours: &[T], theirs: &[T], block: usize, name: &str) {
        assert_eq!(ours.len(), theirs.len(), "{name}");
        self.blocks += ours.len() / block;
        if ours == theirs {
            return;
        }
        for (index, (ours, theirs)) in ours.chunks(block).zip(theirs.chunks(block)).enumerate() {
            let differences = ours.iter().zip(theirs).filter(|(a, b)| a != b).count();
            self.differing += (differences > 0) as usize;
            if differences > self.worst.0 {
                let text = format!("{name}, block {index}\n  nibble {ours:?}\n  ggml   {theirs:?}");
                self.worst = (differences, text);
            }
        }
    }

    fn add(mut self, other: Self) -> Self {
        self.blocks += other.blocks;
        self.weights += other.weights;
        self.differing += other.differing;
        if other.worst.0 > self.worst.0 {
            self.worst = other.worst;
        }
        self
    }
}

/// Prints a line per format and fails if any block differs.
fn report(what: &str, tallies: Vec<(TensorType, Tally)>) {
    let mut failures = String::new();
    let (mut blocks, mut weights) = (0, 0);
    for (ty, tally) in tallies {
        println!("{what}: {ty:7} {:9} blocks, {} differ", tally.blocks, tally.differing);
        // F32, F16 and BF16 have no blocks to speak of.
        blocks += if ty.block_len() > 1 { tally.blocks } else { 0 };
        weights += tally.weights;
        if tally.differing > 0 {
            let (differences, text) = tally.worst;
            writeln!(
                failures,
                "{ty}: {} of {} blocks differ; the worst, in {differences} places: {text}",
                tally.differing, tally.blocks
            )
            .unwrap();
        }
    }
    println!("{what}: {blocks} blocks of 32 or 256 weights, {weights} weights in all");
    assert!(failures.is_empty(), "{what}:\n{failures}");
}

/// Compares the bytes of `format` for `matrix`.
fn quantization(format: &Format, matrix: &Matrix, importance: Option<(&str, &[f32])>) -> Tally {
    let ty = format.ty;
    let values = importance.map(|(_, values)| values);
    let theirs = ggml_quantize(ty, &matrix.weights, matrix.row_len, values);
    let mut ours = vec![0; theirs.len()];
    format.quantize_rows_at(Level::Scalar, &matrix.weights, matrix.row_len, values, &mut ours);
    let name = format!("{}, importance: {}", matrix.name, importance.map_or("none", |(name, _)| name));
    let mut tally = Tally { weights: matrix.weights.len(), ..Tally::default() };
    tally.compare(&ours, &theirs, ty.block_bytes(), &name);
    tally
}

/// Runs `compare` for each format, in parallel, and reports.
fn each_format(what: &str, compare: impl Fn(&Format) -> Tally + Sync) {
    report(what, FORMATS.par_iter().map(|format| (format.ty, compare(format))).collect());
}

#[test]
fn quantizes_a_trained_model_as_ggml_does() {
    let mut matrices = yi_nano();
    let (portable, importance) = portable_rows();
    matrices.push(portable);
    each_format("yi-nano", |format| {
        let both = |matrix: &Matrix| {
            let mut random = Random::new(matrix.weights.len() as u64);
            let importance: Vec<f32> = match matrix.name.as_str() {
                "portable rows" => importance.clone(),
                _ => (0..matrix.row_len).map(|_| laplace(&mut random).powi(2)).collect(),
            };
            let plain = quantization(format, matrix, None);
            plain.add(quantization(format, matrix, Some(("random", &importance))))
        };
        matrices.par_iter().map(both).reduce(Tally::default, Tally::add)
    });
}

#[test]
fn quantizes_adversarial_rows_as_ggml_does() {
    let row_len = 512;
    let rows = adversarial_rows(row_len);
    let importances = importances(row_len);
    each_format("adversarial", |format| {
        let mut total = Tally::default();
        for row in &rows {
            total = total.add(quantization(format, row, None));
            for (name, values) in &importances {
                total = total.add(quantization(format, row, Some((name, values))));
            }
        }
        total
    });
}

#[test]
fn quantizes_random_rows_as_ggml_does() {
    let importances = importances(RANDOM_ROW_LEN);
    let matrices = random_matrices(32 * scale());
    each_format("random", |format| {
        let both = |(index, matrix): (usize, &Matrix)| {
            let (name, values) = &importances[index % importances.len()];
            quantization(format, matrix, None).add(quantization(format, matrix, Some((name, values))))
        };
        matrices.par_iter().enumerate().map(both).reduce(Tally::default, Tally::add)
    });
}

#[test]
fn quantizes_under_sparse_importance_as_ggml_does() {
    each_format("sparse", |format| {
        let of_seed = |seed: usize| {
            let (matrix, importance) = sparse_importance(seed);
            quantization(format, &matrix, None).add(quantization(format, &matrix, Some(("sparse", &importance))))
        };
        (0..288 * scale()).into_par_iter().map(of_seed).reduce(Tally::default, Tally::add)
    });
}

#[test]
fn dequantizes_any_bytes_as_ggml_does() {
    // A NaN is a NaN: its sign and payload are no part of a weight.
    let bits = |x: &[f32]| -> Vec<u32> { x.iter().map(|x| if x.is_nan() { f32::NAN } else { *x }.to_bits()).collect() };
    each_format("dequantization", |format| {
        let ty = format.ty;
        let mut total = Tally::default();
        let mut check = |blocks: &[u8], name: &str| {
            let mut ours = vec![0.0; blocks.len() / ty.block_bytes() * ty.block_len()];
            format.dequantize(blocks, &mut ours);
            total.weights += ours.len();
            total.compare(&bits(&ours), &bits(&ggml_dequantize(ty, blocks)), ty.block_len(), name);
        };
        for seed in 0..scale() as u64 {
            // As many weights of each.
            check(&random_blocks(ty, 2_000_000 / ty.block_len(), seed), "random bytes");
        }
        check(&vec![0xff; ty.block_bytes()], "all ones");
        for matrix in adversarial_rows(512).iter().chain([&portable_rows().0]) {
            let mut blocks = vec![0; matrix.weights.len() / ty.block_len() * ty.block_bytes()];
            format.quantize_rows(&matrix.weights, matrix.row_len, None, &mut blocks);
            check(&blocks, &matrix.name);
        }
        total
    });
}

#[test]
fn sixteen_bit_floats_are_ggmls() {
    for bits in 0..=u16::MAX {
        // SAFETY: functions of numbers.
        let (half, brain) =
            unsafe { (ggml::ggml_fp16_to_fp32(bits), ggml::ggml_bf16_to_fp32(ggml::ggml_bf16_t { bits })) };
        assert_eq!(float::f16_to_f32(bits).to_bits(), half.to_bits(), "{bits:#06x}");
        assert_eq!(float::bf16_to_f32(bits).to_bits(), brain.to_bits(), "{bits:#06x}");
    }
    let mut random = Random::new(19);
    for step in 0..1_000_000 * scale() as u32 {
        // Random bits, and all neighbourhoods of the numbers that 16 bits can hold.
        let low = random.bits();
        let x = f32::from_bits(if step % 2 == 0 { low } else { (low & !0x1fff).wrapping_add(low % 3).wrapping_sub(1) });
        // SAFETY: functions of numbers.
        let (half, brain) = unsafe { (ggml::ggml_fp32_to_fp16(x), ggml::ggml_fp32_to_bf16(x).bits) };
        assert_eq!(float::f32_to_f16(x), half, "{x:e} ({:#010x})", x.to_bits());
        assert_eq!(float::f32_to_bf16(x), brain, "{x:e} ({:#010x})", x.to_bits());
    }
}

#[test]
fn the_table_of_types_is_ggmls() {
    for &ty in TensorType::ALL {
        let id = ty.id() as ggml::ggml_type;
        // SAFETY: the number is one that ggml gives out; the name is a constant of the process.
        let (block_len, block_bytes, name) =
            unsafe { (ggml::ggml_blck_size(id), ggml::ggml_type_size(id), CStr::from_ptr(ggml::ggml_type_name(id))) };
        assert_eq!((ty.block_len(), ty.block_bytes()), (block_len as usize, block_bytes), "{ty}");
        assert!(ty.name().eq_ignore_ascii_case(name.to_str().unwrap()), "{ty} is ggml's {name:?}");
    }
    // And none is missing: beyond those, ggml's table has only numbers without a size.
    for id in (0..ggml::GGML_TYPE_COUNT as u64).filter(|&id| TensorType::from_id(id as u32).is_none()) {
        // SAFETY: the number is below the table's length.
        assert_eq!(unsafe { ggml::ggml_type_size(id as ggml::ggml_type) }, 0, "type {id} is missing");
    }
}
