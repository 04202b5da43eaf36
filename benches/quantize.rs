//! Every format against ggml in one run, one thread: millions of weights a second.
//!
//! ```text
//! cargo bench --bench quantize              all formats
//! cargo bench --bench quantize -- q4_k q6_k those
//! ```
//!
//! The best of several rounds counts, and the two take turns, so that what else the machine does hits both.

use llama_cpp_sys_2 as ggml;
use nibble::gguf::TensorType;
use nibble::quant::{FORMATS, Importance};
use std::hint::black_box;
use std::time::{Duration, Instant};

const ROW_LEN: usize = 4096;
const ROWS: usize = 32;
const ROUNDS: usize = 7;

fn main() {
    // cargo bench passes --bench.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let weights = weights(ROWS * ROW_LEN);
    let importance: Vec<f32> = weights.iter().take(ROW_LEN).map(|x| 1.0 + 1000.0 * x * x).collect();
    println!(
        "{:8} {:>25} {:>25} {:>25}",
        "M/s", "nibble  ggml  quantize", "nibble  ggml  importance", "nibble  ggml  dequantize"
    );
    for format in FORMATS {
        let ty = format.ty;
        if !wanted.is_empty() && !wanted.iter().any(|name| ty.name().eq_ignore_ascii_case(name)) {
            continue;
        }
        let mut bytes = Buffer::new(ROWS * ROW_LEN / ty.block_len() * ty.block_bytes());
        let mut line = format!("{ty:8}");
        for importance in [None, Some(&importance[..])] {
            if importance.is_some() && format.importance == Importance::Ignored {
                line += &format!(" {:>25}", "");
                continue;
            }
            let [ours, theirs] = best(
                &mut bytes,
                |bytes| format.quantize_rows(&weights, ROW_LEN, importance, bytes.slice()),
                |bytes| ggml_quantize(ty, &weights, importance, bytes),
            );
            line += &speeds(ours, theirs);
        }
        let mut back = vec![0.0; weights.len()];
        let mut again = back.clone();
        let [ours, theirs] = best(
            &mut bytes,
            |bytes| format.dequantize(bytes.slice(), &mut back),
            |bytes| ggml_dequantize(ty, bytes, &mut again),
        );
        line += &speeds(ours, theirs);
        println!("{line}");
        black_box((&back, &again));
    }
}

/// The least time of each over all rounds.
fn best(bytes: &mut Buffer, mut ours: impl FnMut(&mut Buffer), mut theirs: impl FnMut(&mut Buffer)) -> [Duration; 2] {
    let mut time = |run: &mut dyn FnMut(&mut Buffer)| {
        let start = Instant::now();
        run(black_box(bytes));
        start.elapsed()
    };
    (0..ROUNDS).fold([Duration::MAX; 2], |[a, b], _| [a.min(time(&mut ours)), b.min(time(&mut theirs))])
}

fn speeds(ours: Duration, theirs: Duration) -> String {
    let speed = |time: Duration| (ROWS * ROW_LEN) as f64 / time.as_secs_f64() / 1e6;
    format!(" {:>10.1} {:>7.1} {:>5.2}x", speed(ours), speed(theirs), speed(ours) / speed(theirs))
}

/// Bytes, aligned as ggml's blocks are.
struct Buffer {
    words: Vec<u64>,
    len: usize,
}

impl Buffer {
    fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(8)], len }
    }

    fn slice(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}

fn ggml_quantize(ty: TensorType, weights: &[f32], importance: Option<&[f32]>, bytes: &mut Buffer) {
    // SAFETY: ggml reads ROWS · ROW_LEN floats and ROW_LEN of importance, and writes the bytes of as many weights, for
    // which the buffer was made.
    unsafe {
        ggml::ggml_quantize_chunk(
            ty.id() as ggml::ggml_type,
            weights.as_ptr(),
            bytes.words.as_mut_ptr().cast(),
            0,
            ROWS as i64,
            ROW_LEN as i64,
            importance.map_or(std::ptr::null(), <[f32]>::as_ptr),
        );
    }
}

fn ggml_dequantize(ty: TensorType, bytes: &Buffer, weights: &mut [f32]) {
    // SAFETY: the table has an entry for every type's number, and lives as long as the process.
    let to_float = unsafe { (*ggml::ggml_get_type_traits(ty.id() as ggml::ggml_type)).to_float };
    match to_float {
        // SAFETY: the buffer holds the blocks of as many weights.
        Some(to_float) => unsafe { to_float(bytes.words.as_ptr().cast(), weights.as_mut_ptr(), weights.len() as i64) },
        // F32, for which ggml has no function.
        None => weights.copy_from_slice(&bytemuck::cast_slice(&bytes.words)[..weights.len()]),
    }
}

/// Close to normal, of the size that weights have.
fn weights(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..count).map(|_| ((0..12).map(|_| unit()).sum::<f32>() - 6.0) * 0.02).collect()
}
