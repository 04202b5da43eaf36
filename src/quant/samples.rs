//! Weights and importance for the tests: random, adversarial, and those of a trained model.

use crate::checkpoint::DType;
use crate::gguf::TensorType;

/// A generator of numbers that are the same on every machine: splitmix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 32 random bits.
    pub fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) >> 32) as u32
    }

    /// Uniform in 0..1.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 24) as f32
    }

    /// Close to normal, with mean 0 and variance 1: a sum of 12 uniform numbers, and so without any function that differs
    /// between machines.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }

    /// Any finite number, all exponents equally likely.
    pub fn finite(&mut self) -> f32 {
        loop {
            let x = f32::from_bits(self.bits());
            if x.is_finite() {
                return x;
            }
        }
    }
}

/// A matrix of weights, in rows of `row_len`.
pub struct Matrix {
    pub name: String,
    pub row_len: usize,
    pub weights: Vec<f32>,
}

/// Rows on which searches for scales go wrong, if anywhere: `row_len` weights each.
pub fn adversarial_rows(row_len: usize) -> Vec<Matrix> {
    let mut random = Random::new(5);
    let mut rows = Vec::new();
    let mut row = |name: &str, weight: &mut dyn FnMut(usize) -> f32| {
        rows.push(Matrix { name: name.to_string(), row_len, weights: (0..row_len).map(weight).collect() });
    };
    let sign = |i: usize| if i.is_multiple_of(2) { 1.0 } else { -1.0 };

    row("zeros", &mut |_| 0.0);
    row("negative zeros", &mut |_| -0.0);
    row("ones", &mut |_| 1.0);
    row("a negative constant", &mut |_| -0.37);
    row("alternating", &mut |i| 0.73 * sign(i));
    row("equal magnitudes", &mut |_| if random.bits() & 1 == 0 { 0.11 } else { -0.11 });
    row("a rising ramp", &mut |i| i as f32 / row_len as f32);
    row("a falling ramp through zero", &mut |i| 0.5 - i as f32 / row_len as f32);
    row("half steps", &mut |i| (i % 33) as f32 * 0.5 - 8.0);
    row("few values", &mut |i| [-1.0, -0.5, 0.0, 0.25][i * 7 % 4]);
    row("all positive", &mut |_| 1.0 + random.unit());
    row("all negative", &mut |_| -1.0 - random.unit());
    row("nearly constant", &mut |_| 1.0 + f32::EPSILON * (random.bits() % 4) as f32);
    row("nearly constant, negative", &mut |_| -1.0 - f32::EPSILON * (random.bits() % 4) as f32);
    row("one non-zero", &mut |i| if i == 77 { -0.5 } else { 0.0 });
    row("one non-zero a sub-block", &mut |i| if i % 16 == 5 { 0.01 * sign(i / 16) } else { 0.0 });
    row("one outlier", &mut |i| if i == 100 { 1000.0 } else { random.normal() });
    row("one outlier a sub-block", &mut |i| if i % 32 == 9 { 50.0 * sign(i / 32) } else { random.normal() });
    row("a zero sub-block between others", &mut |i| if i / 32 % 2 == 0 { 0.0 } else { random.normal() });
    row("sub-blocks of very different size", &mut |i| random.normal() * 0.25f32.powi((i / 16 % 16) as i32));
    row("tiny and huge", &mut |i| random.normal() * if i % 3 == 0 { 1e30 } else { 1e-30 });
    row("tiny and one", &mut |i| if i % 5 == 0 { 1.0 } else { 1e-18 * random.normal() });

    // Around the limits: of single precision, of half precision, of what the searches take for zero.
    for magnitude in [
        f32::from_bits(1),
        1e-44,
        1e-41,
        f32::MIN_POSITIVE,
        1e-36,
        1e-30,
        9e-16,
        1.1e-15,
        1e-13,
        1e-9,
        6e-8,
        1e-6,
        3e-5,
        1e-3,
        65504.0,
        262_144.0,
        524_160.0,
        1_048_320.0,
        2_031_120.0,
        1e7,
        8.4e6,
        1e9,
        1e12,
        1e18,
        1e19,
        3e25,
        1e30,
        f32::MAX / 8.0,
    ] {
        row(&format!("normal times {magnitude:e}"), &mut |_| random.normal() * magnitude);
        row(&format!("plus and minus {magnitude:e}"), &mut |i| magnitude * sign(i));
        row(&format!("one {magnitude:e}"), &mut |i| if i == 40 { -magnitude } else { 0.0 });
        row(&format!("ramp to {magnitude:e}"), &mut |i| magnitude * ((i % 256) as f32 / 256.0));
    }
    row("the largest", &mut |i| f32::MAX * sign(i));
    row("all the largest", &mut |_| f32::MAX);
    row("all the smallest", &mut |_| f32::MIN);
    row("subnormals", &mut |i| f32::from_bits(random.bits() & 0x007f_ffff) * sign(i));
    row("few subnormals", &mut |i| f32::from_bits(random.bits() & 7) * sign(i));
    for _ in 0..8 {
        row("any finite numbers", &mut |_| random.finite());
    }
    assert!(
        rows.iter().flat_map(|row| &row.weights).all(|x| x.is_finite()),
        "a row that no quantizer is asked to take"
    );
    rows
}

/// How much longer than usual the random parts of tests are to be.
pub fn scale() -> usize {
    std::env::var("NIBBLE_ORACLE_SCALE").map_or(1, |scale| scale.parse().expect("NIBBLE_ORACLE_SCALE is a number"))
}

/// Heavy tails: Laplace with variance 2.
pub fn laplace(random: &mut Random) -> f32 {
    let magnitude = -(1.0 - random.unit()).ln();
    if random.bits() & 1 == 0 { magnitude } else { -magnitude }
}

/// Weights in a row of [`random_matrices`].
pub const RANDOM_ROW_LEN: usize = 2048;

/// `n_rows` rows of each of four distributions, a few to a matrix.
pub fn random_matrices(n_rows: usize) -> Vec<Matrix> {
    const ROWS: usize = 4;
    type Draw = fn(&mut Random) -> f32;
    let distributions: [(&str, Draw); 4] = [
        ("normal", |random| random.normal() * 0.02),
        ("laplace", |random| laplace(random) * 0.02),
        ("uniform", |random| random.unit() - 0.5),
        ("any finite numbers", Random::finite),
    ];
    let mut matrices = Vec::new();
    for (seed, (name, draw)) in distributions.into_iter().enumerate() {
        let mut random = Random::new(seed as u64);
        for first in (0..n_rows).step_by(ROWS) {
            let n_rows = ROWS.min(n_rows - first);
            let weights = (0..n_rows * RANDOM_ROW_LEN).map(|_| draw(&mut random)).collect();
            matrices.push(Matrix { name: format!("{name}, rows from {first}"), row_len: RANDOM_ROW_LEN, weights });
        }
    }
    matrices
}

/// A row, and importance that is zero for most of it.
///
/// Where few weights count, a sub-block's best scale may be negative and its best range empty, but for rounding errors:
/// that is where the searches' least used branches are.
pub fn sparse_importance(seed: usize) -> (Matrix, Vec<f32>) {
    let row_len = 2048;
    let mut random = Random::new(seed as u64);
    let every = [2, 8, 32][seed % 3];
    let importance: Vec<f32> = (0..row_len)
        .map(|_| if random.bits().is_multiple_of(every) { 2f32.powi((random.bits() % 40) as i32 - 20) } else { 0.0 })
        .collect();
    // How far a sub-block's weights lie from one another: as far as from zero, or a few units in the last place.
    let spread = [1.0, 1e-3, 8.0 * f32::EPSILON, 2.0 * f32::EPSILON][seed / 3 % 4];
    // Or only those that count lie together, and above all others.
    let only_important = seed / 12 % 2 == 1;
    let all_negative = seed / 24 % 2 == 1;
    let mut base = 0.0;
    let weight = |i: usize| {
        if i.is_multiple_of(16) {
            base = if all_negative { -random.unit() } else { random.normal() };
        }
        let below = if only_important && importance[i] == 0.0 { random.unit() } else { 0.0 };
        base + base * spread * random.normal() - below
    };
    let weights = (0..row_len).map(weight).collect();
    (Matrix { name: format!("seed {seed}"), row_len, weights }, importance)
}

/// Importance for rows of `row_len`, by name: ordinary, and at the limits.
pub fn importances(row_len: usize) -> Vec<(&'static str, Vec<f32>)> {
    let mut random = Random::new(6);
    let mut all: Vec<(&str, Vec<f32>)> = Vec::new();
    let mut add = |name, value: &mut dyn FnMut(usize) -> f32| {
        all.push((name, (0..row_len).map(value).collect()));
    };
    add("random", &mut |_| random.normal() * random.normal() * 0.1 + 0.7);
    add("ones", &mut |_| 1.0);
    add("heavy tails", &mut |_| random.normal().powi(6));
    add("zeros in part", &mut |_| if random.bits() & 3 == 0 { random.unit() } else { 0.0 });
    add("zeros but for one", &mut |i| if i == 40 { 1.0 } else { 0.0 });
    add("zeros but for one a sub-block", &mut |i| if i % 16 == 3 { 1.0 } else { 0.0 });
    add("zeros", &mut |_| 0.0);
    add("one huge", &mut |i| if i == 17 { 1e30 } else { 1.0 });
    add("huge", &mut |_| 1e30 * random.unit());
    add("tiny", &mut |_| 1e-38 * random.unit());
    for (_, values) in &mut all {
        values.iter_mut().for_each(|value| *value = value.abs());
    }
    all
}

/// Rows that are the same on every machine, with an outlier now and then, and importance for them.
pub fn portable_rows() -> (Matrix, Vec<f32>) {
    let mut random = Random::new(7);
    let row_len = 1024;
    let weight = |i: usize| random.normal() * if i.is_multiple_of(97) { 0.5 } else { 0.03 };
    let weights = (0..16 * row_len).map(weight).collect();
    let importance = (0..row_len).map(|_| random.unit() * random.unit()).collect();
    (Matrix { name: "portable rows".to_string(), row_len, weights }, importance)
}

/// The weight matrices of the trained model in `tests/data/yi-nano`.
pub fn yi_nano() -> Vec<Matrix> {
    let checkpoint = crate::checkpoint::testing::yi_nano();
    let mut matrices = Vec::new();
    for tensor in checkpoint.tensors() {
        let &[_, row_len] = tensor.shape.as_slice() else { continue };
        assert_eq!(tensor.dtype, DType::BF16);
        let (source, _) = checkpoint.data(tensor).as_chunks::<2>();
        let mut weights = vec![0.0; source.len()];
        super::float::bf16s_to_f32s(source, &mut weights);
        matrices.push(Matrix { name: tensor.name.clone(), row_len: row_len as usize, weights });
    }
    assert!(matrices.len() > 20, "a four-layer model has more matrices");
    matrices
}

/// Blocks of random bytes: every code, and scales of every kind, infinite ones and NaN among them.
pub fn random_blocks(ty: TensorType, count: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..count * ty.block_bytes()).map(|_| random.bits() as u8).collect()
}
