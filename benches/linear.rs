//! Products of matrices against what this CPU can do: billions of multiply-adds per second.
//!
//! ```text
//! cargo bench --no-default-features --bench linear                  everything but what takes gigabytes
//! cargo bench --no-default-features --bench linear -- product       what has this in its name
//! cargo bench --no-default-features --bench linear -- --rounds 20   the best of 20, instead of 5
//! cargo bench --no-default-features --bench linear -- --large       also the second moments of 20480 columns
//! ```
//!
//! The peak is that of independent multiply-adds in registers, and is measured before each round of every product, so that
//! what else the machine does hits all alike. The best round of each counts. `at peak` is their ratio.

use nibble::calibration::Moments;
use nibble::lanes::Level;
use nibble::linear::{Column, ROWS, View, add_product, add_products};
use nibble::quant::rounding::SecondMoments;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::hint::black_box;
use std::time::Instant;

fn main() {
    let bench = Bench::new();
    println!("level: {}, threads: {}", Level::best().name(), bench.all.current_num_threads());
    println!("{:44} {:>7} {:>9} {:>9} {:>8}", "", "threads", "10^9/s", "peak", "at peak");

    for (n, columns) in [(16, 16), (32, 32), (128, 96), (256, 256)] {
        bench.kernel(Level::best(), n, columns, columns);
    }
    if Level::best() != Level::Plain {
        bench.kernel(Level::Plain, 128, 96, 96);
    }
    // Rows as far apart as those of a large matrix.
    bench.kernel(Level::best(), 256, 256, 4096);
    for (m, k, n) in [
        (48, 64, 48),
        (64, 64, 64),
        (512, 128, 512),
        (512, 512, 128),
        (512, 7168, 1024),
        (512, 20480, 512),
        (1024, 512, 1024),
    ] {
        bench.product(m, k, n, Orientation { left: false, right: false });
        bench.product(m, k, n, Orientation { left: false, right: true });
        bench.product(m, k, n, Orientation { left: true, right: false });
    }
    bench.moments(4096);
    bench.moments(7168);
    if bench.large {
        bench.moments(20480);
    }
    bench.factor(1024);
    bench.factor(4096);
}

/// Which matrices lie in memory column by column.
struct Orientation {
    left: bool,
    right: bool,
}

struct Bench {
    names: Vec<String>,
    rounds: usize,
    large: bool,
    one: ThreadPool,
    all: ThreadPool,
}

impl Bench {
    fn new() -> Self {
        let pool = |threads| ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
        let mut bench = Self { names: Vec::new(), rounds: 5, large: false, one: pool(1), all: pool(0) };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                // cargo bench passes it.
                "--bench" => {}
                "--large" => bench.large = true,
                "--rounds" => {
                    bench.rounds = words.next().and_then(|n| n.parse().ok()).expect("--rounds wants a number");
                }
                name => bench.names.push(name.to_string()),
            }
        }
        bench
    }

    fn kernel(&self, level: Level, n: usize, columns: usize, stride: usize) {
        let left: Vec<Column> = numbers(n * ROWS).chunks_exact(ROWS).map(|x| x.try_into().expect("a column")).collect();
        let right = numbers((columns - 1) * stride + n);
        let mut out = vec![[0.0; ROWS]; columns];
        let name = format!("kernel {}: 32 x {n}, {n} x {columns}, stride {stride}", level.name());
        self.line(&name, (ROWS * n * columns) as f64, &[&self.one], || {
            add_products(level, black_box(&left), &right, stride, black_box(&mut out));
        });
    }

    fn product(&self, m: usize, k: usize, n: usize, turned: Orientation) {
        let (a, b) = (numbers(m * k), numbers(k * n));
        let a = if turned.left { View::new(&a, m).transposed() } else { View::new(&a, k) };
        let b = if turned.right { View::new(&b, k).transposed() } else { View::new(&b, n) };
        let mut c = vec![0.0; m * n];
        let mark = |is_turned| if is_turned { "ᵀ" } else { " " };
        let name = format!("product: {m} x {k}{}, {k} x {n}{}", mark(turned.left), mark(turned.right));
        self.line(&name, (m * k * n) as f64, &[&self.one, &self.all], || add_product(a, b, black_box(&mut c)));
    }

    fn moments(&self, columns: usize) {
        let tokens = 512;
        let inputs = numbers(tokens * columns);
        let mut moments = Moments::new(columns);
        let name = format!("moments: {tokens} tokens, {columns} columns");
        // The lower triangle.
        let products = (tokens * columns * (columns + 1) / 2) as f64;
        self.line(&name, products, &[&self.one, &self.all], || moments.add(black_box(&inputs)));
    }

    fn factor(&self, columns: usize) {
        // Diagonally dominant.
        let mut values = numbers(columns * columns);
        (0..columns).for_each(|j| values[j * columns + j] = columns as f32);
        let name = format!("factor: {columns} columns");
        self.line(&name, (columns as f64).powi(3) / 6.0, &[&self.one, &self.all], || {
            black_box(SecondMoments::new(values.clone(), columns).expect("they are moments"));
        });
    }

    fn line(&self, name: &str, products: f64, pools: &[&ThreadPool], mut run: impl FnMut() + Send) {
        if !self.names.is_empty() && !self.names.iter().any(|wanted| name.contains(wanted)) {
            return;
        }
        for (index, pool) in pools.iter().enumerate() {
            let threads = pool.current_num_threads();
            if index > 0 && threads == 1 {
                continue;
            }
            // At least some 100 million: a few milliseconds.
            let times = (1e8 / products).ceil() as usize;
            let (mut peak, mut speed) = (0.0f64, 0.0f64);
            for _ in 0..self.rounds {
                peak = peak.max(pool.broadcast(|_| peak_of_thread()).iter().sum());
                let start = Instant::now();
                pool.install(|| (0..times).for_each(|_| run()));
                speed = speed.max(products * times as f64 / start.elapsed().as_secs_f64());
            }
            println!("{name:44} {threads:>7} {:>9.1} {:>9.1} {:>7.0}%", speed / 1e9, peak / 1e9, speed / peak * 100.0);
        }
    }
}

/// The multiply-adds per second of independent ones in registers.
fn peak_of_thread() -> f64 {
    const TIMES: usize = 1 << 20;
    let start = Instant::now();
    let products = match Level::best() {
        // SAFETY: the level is there.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { multiply_add_avx512(TIMES) },
        // SAFETY: the level is there.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { multiply_add_avx2(TIMES) },
        _ => multiply_add(TIMES),
    };
    products as f64 / start.elapsed().as_secs_f64()
}

/// Vectors whose sums do not wait for one another: more than the latency of an instruction times the number that begin in a
/// cycle.
const SUMS: usize = 12;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_add_avx512(times: usize) -> usize {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps};
    let (factor, term) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(1.0)));
    let mut sums = [term; SUMS];
    for _ in 0..times {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, term);
        }
    }
    black_box(sums);
    times * SUMS * 16
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_add_avx2(times: usize) -> usize {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps};
    let (factor, term) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(1.0)));
    let mut sums = [term; SUMS];
    for _ in 0..times {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, term);
        }
    }
    black_box(sums);
    times * SUMS * 8
}

/// Fused where every CPU of the kind has the instruction, as [`Floats::mul_add`](nibble::lanes::Floats::mul_add) is.
fn multiply_add(times: usize) -> usize {
    const FUSES: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));
    let (factor, term) = (black_box(0.5f32), black_box(1.0f32));
    let mut sums = [[term; 4]; 2 * SUMS];
    for _ in 0..times {
        for sum in sums.as_flattened_mut() {
            *sum = if FUSES { sum.mul_add(factor, term) } else { *sum * factor + term };
        }
    }
    black_box(sums);
    times * 2 * SUMS * 4
}

fn numbers(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| unit()).collect()
}
