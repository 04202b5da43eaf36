//! Every format at every level of vector instructions against ggml, in one run: millions of weights per second.
//!
//! ```text
//! cargo bench --bench quantize                       all formats, one thread
//! cargo bench --bench quantize -- q4_k q6_k          those
//! cargo bench --bench quantize -- --threads 8        so many threads at once (0: one a core)
//! cargo bench --bench quantize -- --importance       only with importance; --plain only without
//! cargo bench --bench quantize -- --level avx2       only that level: under a profiler, with --rounds 1000
//! ```
//!
//! All take turns, and the best of several rounds counts, so that what else the machine does hits all alike. Built as this
//! repository is, the compiler may use all that this CPU has also where a level does not ask for it; with `RUSTFLAGS=`
//! before the command every level has only its own instructions, as on a CPU that has no others.

use llama_cpp_sys_2 as ggml;
use nibble::gguf::TensorType;
use nibble::lanes::Level;
use nibble::quant::{FORMATS, Format, ImportanceUse};
use std::hint::black_box;
use std::time::{Duration, Instant};

const ROW_LEN: usize = 4096;
const ROWS: usize = 32;

fn main() {
    let arguments = Arguments::parse();
    let weights = weights(ROWS * ROW_LEN);
    let importance: Vec<f32> = weights.iter().take(ROW_LEN).map(|x| 1.0 + 1000.0 * x * x).collect();
    let is_wanted = |level: &Level| arguments.level.as_ref().is_none_or(|name| level.name() == name);
    let levels: Vec<Level> = Level::available().filter(is_wanted).collect();

    println!("millions of weights a second, threads: {}", arguments.threads);
    print!("{:22} {:>9}", "", "ggml");
    levels.iter().for_each(|level| print!(" {:>9}", level.name()));
    println!("   ggml = 1");
    for format in FORMATS {
        let ty = format.ty;
        if !arguments.formats.is_empty() && !arguments.formats.iter().any(|name| ty.name().eq_ignore_ascii_case(name)) {
            continue;
        }
        if arguments.plain {
            bench(format, &levels, &weights, None, &arguments);
        }
        if arguments.importance && format.importance == ImportanceUse::Used {
            bench(format, &levels, &weights, Some(&importance), &arguments);
        }
        if arguments.plain && arguments.threads == 1 {
            bench_dequantize(format, &weights, arguments.rounds);
        }
    }
}

struct Arguments {
    formats: Vec<String>,
    threads: usize,
    plain: bool,
    importance: bool,
    level: Option<String>,
    rounds: usize,
}

impl Arguments {
    fn parse() -> Self {
        let mut arguments =
            Self { formats: Vec::new(), threads: 1, plain: true, importance: true, level: None, rounds: 9 };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                // cargo bench passes it.
                "--bench" => {}
                "--plain" => arguments.importance = false,
                "--importance" => arguments.plain = false,
                "--level" => arguments.level = words.next(),
                "--rounds" => {
                    arguments.rounds = words.next().and_then(|n| n.parse().ok()).expect("--rounds wants a number")
                }
                "--threads" => {
                    let number = words.next().and_then(|n| n.parse().ok()).expect("--threads wants a number");
                    arguments.threads = if number == 0 { num_cpus::get_physical() } else { number };
                }
                name => arguments.formats.push(name.to_string()),
            }
        }
        arguments
    }
}

/// One line: ggml's speed, each level's, and how many times ggml's each is.
fn bench(format: &Format, levels: &[Level], weights: &[f32], importance: Option<&[f32]>, arguments: &Arguments) {
    let ty = format.ty;
    let threads = arguments.threads;
    let mut buffers: Vec<Buffer> =
        (0..threads).map(|_| Buffer::new(weights.len() / ty.block_len() * ty.block_bytes())).collect();
    let mut least = vec![Duration::MAX; 1 + levels.len()];
    for _ in 0..arguments.rounds {
        // Once is enough where only a level is looked at.
        if arguments.level.is_none() || least[0] == Duration::MAX {
            least[0] = least[0].min(time(&mut buffers, |buffer| ggml_quantize(ty, weights, importance, buffer)));
        }
        for (least, &level) in least[1..].iter_mut().zip(levels) {
            *least = (*least).min(time(&mut buffers, |buffer| {
                format.quantize_rows_at(level, weights, ROW_LEN, importance, buffer.slice());
            }));
        }
    }
    print_line(&format!("{ty}{}", if importance.is_some() { ", importance" } else { "" }), &least, threads);
}

fn bench_dequantize(format: &Format, weights: &[f32], rounds: usize) {
    let ty = format.ty;
    let mut buffer = [Buffer::new(weights.len() / ty.block_len() * ty.block_bytes())];
    format.quantize_rows(weights, ROW_LEN, None, buffer[0].slice());
    let mut back = vec![0.0; weights.len()];
    let mut least = [Duration::MAX; 2];
    for _ in 0..rounds {
        least[0] = least[0].min(time_one(|| ggml_dequantize(ty, black_box(&buffer[0]), &mut back)));
        least[1] = least[1].min(time_one(|| format.dequantize(black_box(&mut buffer[0]).slice(), &mut back)));
    }
    print_line(&format!("{ty}, dequantize"), &least, 1);
}

fn print_line(name: &str, least: &[Duration], threads: usize) {
    let speed = |time: &Duration| (threads * ROWS * ROW_LEN) as f64 / time.as_secs_f64() / 1e6;
    print!("{name:22}");
    least.iter().for_each(|time| print!(" {:>9.1}", speed(time)));
    print!("  ");
    least[1..].iter().for_each(|time| print!(" {:.2}x", speed(time) / speed(&least[0])));
    println!();
}

fn time_one(run: impl FnOnce()) -> Duration {
    let start = Instant::now();
    run();
    start.elapsed()
}

/// The time until all threads, one a buffer, are done.
fn time(buffers: &mut [Buffer], run: impl Fn(&mut Buffer) + Sync) -> Duration {
    if let [buffer] = buffers {
        return time_one(|| run(black_box(buffer)));
    }
    // Starting a thread takes as long as quantizing a little, so each does its part several times.
    const TIMES: u32 = 16;
    let all = time_one(|| {
        std::thread::scope(|scope| {
            for buffer in buffers {
                scope.spawn(|| (0..TIMES).for_each(|_| run(black_box(buffer))));
            }
        });
    });
    all / TIMES
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
