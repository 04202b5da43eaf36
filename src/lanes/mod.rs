//! Lanes: several blocks at once, one in each lane of a vector register.
//!
//! ```text
//!                 lane 0      lane 1      lane 2    ...
//!  vector 0       x[0] of     x[0] of     x[0] of        the blocks, transposed: vector i holds weight i of each
//!  vector 1       x[1] block  x[1] block  x[1] block
//!    ...            0           1           2
//! ```
//!
//! Each lane runs the scalar algorithm: the same operations in the same order, with masks instead of branches. So the
//! bytes are the same by construction for every width. The operations are those of IEEE 754, which have the same result
//! on every CPU. Only [`Floats::mul_add`] fuses a product with a sum, and no quantizer uses it.
//!
//! One generic body serves every level of vector instructions. It is written over [`Lanes`], marked
//! `#[inline(always)]`, and compiled inside a function for each [`Level`] that has its instructions enabled
//! (`Level::run`).
//!
//! | level      | vector               | compiled for                    | chosen when                |
//! |------------|----------------------|---------------------------------|----------------------------|
//! | `avx512`   | 2 × 16 lanes         | x86-64 with AVX-512 F, BW, DQ, VL | the CPU says so at run time |
//! | `avx2`     | 2 × 8 lanes          | x86-64 with AVX2 and FMA        | the CPU says so at run time |
//! | `neon`     | 2 × 4 lanes          | 64-bit ARM                      | always there               |
//! | `plain`    | 8 lanes in an array  | any CPU; the compiler's choice  | nothing else is there      |
//! | `scalar`   | none                 | any CPU                         | never: it is the definition |
//!
//! Two vectors are processed at a time, because each addition to a sum has to wait for the previous one. The second
//! vector uses that time.

// An index often runs over several arrays at once.
#![allow(clippy::needless_range_loop)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pair;
mod plain;
mod stairs;

pub use stairs::Stairs;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Not, Sub};

/// A vector of floats, one for each lane.
///
/// Values are created only by a [`Lanes`], so if there is one, the CPU has the instructions.
pub trait Floats: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> {
    /// A boolean for each lane.
    type Mask: Mask;

    /// Without their signs.
    fn abs(self) -> Self;
    /// Square roots.
    fn sqrt(self) -> Self;
    /// `self · factor + term`, rounded once: IEEE 754's fusedMultiplyAdd, the same bits at every level (but for those of a
    /// NaN). For products of matrices; the bytes of the formats are defined by products that are rounded before they are
    /// added.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// `self` where it is smaller than `other`, else `other`: so also where either is NaN, and of two zeros.
    fn min(self, other: Self) -> Self;
    /// `self` where it is larger than `other`, else `other`: so also where either is NaN, and of two zeros.
    fn max(self, other: Self) -> Self;
    /// The nearest whole numbers, ties to even, for magnitudes below 2^22. (Zero may have either sign.)
    fn round(self) -> Self;
    /// Where `self` is larger. Not where either is NaN.
    fn gt(self, other: Self) -> Self::Mask;
    /// Where `self` is at least as large. Not where either is NaN.
    fn ge(self, other: Self) -> Self::Mask;
    /// Where `self` is not smaller; also where either is NaN.
    fn not_lt(self, other: Self) -> Self::Mask;
    /// Where the two are not equal; also where either is NaN.
    fn ne(self, other: Self) -> Self::Mask;
    /// Where `self` is smaller. Not where either is NaN.
    #[inline(always)]
    fn lt(self, other: Self) -> Self::Mask {
        other.gt(self)
    }
    /// `self` where `mask` is set, else `other`.
    fn or_else(self, mask: Self::Mask, other: Self) -> Self;
}

/// A boolean for each lane.
pub trait Mask: Copy + BitAnd<Output = Self> + BitOr<Output = Self> + Not<Output = Self> {
    /// Number of lanes.
    const LEN: usize;

    /// Returns whether any lane is set.
    #[inline(always)]
    fn any(self) -> bool {
        self.bits() != 0
    }
    /// A bit per lane, that of the first lane the lowest.
    fn bits(self) -> u64;
}

/// A set of vector instructions. A value of it proves that the CPU has them.
pub trait Lanes: Copy {
    /// Number of lanes; at most [`MAX_LANES`].
    const LEN: usize;
    /// Vectors of [`Self::LEN`] lanes that the CPU's registers hold.
    const REGISTERS: usize;
    /// A float per lane.
    type Floats: Floats<Mask = Self::Mask>;
    /// A bit per lane.
    type Mask: Mask;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::Floats;
    /// Each of `x` in `N` consecutive lanes, as many of `x` as it takes. `N` is at least half of the lanes.
    #[inline(always)]
    fn spread<const N: usize>(self, x: &[f32]) -> Self::Floats {
        const { assert!(Self::LEN <= N) };
        self.splat(x[0])
    }
    /// Loads the first [`Self::LEN`] of `x`, which is at least that long.
    fn load(self, x: &[f32]) -> Self::Floats;
    /// Writes the lanes to the first [`Self::LEN`] places of `x`, which is at least that long.
    fn store(self, floats: Self::Floats, x: &mut [f32]);
    /// Writes the lanes, whole numbers from 0 to 255, to the first [`Self::LEN`] places of `x`, which is at least that long.
    fn store_bytes(self, floats: Self::Floats, x: &mut [u8]);
    /// Writes the lanes without their fractions to the first [`Self::LEN`] places of `x`, which is at least that long. The
    /// low 8 bits are those of the number's two's complement; they are 0 for infinities, NaN, and from 2^31 on.
    fn truncate(self, floats: Self::Floats, x: &mut [i32]);
    /// The values of a step function. A lane beyond the function's bound gets an arbitrary value.
    #[inline(always)]
    fn stairs(self, stairs: &Stairs, floats: Self::Floats) -> Self::Floats {
        let mut value = self.splat(stairs.values[0]);
        for i in 0..15 {
            value = self.splat(stairs.values[i + 1]).or_else(floats.ge(self.splat(stairs.steps[i])), value);
        }
        value
    }
    /// Transposes: lane l of vector i becomes element i of `row(l)`.
    fn transpose<'a>(self, row: impl Fn(usize) -> &'a [f32; 4]) -> [Self::Floats; 4];

    /// Transposes: lane l of vector i becomes element i of `row(l)`. `N` is a multiple of 4.
    #[inline(always)]
    fn columns<'a, const N: usize>(self, row: impl Fn(usize) -> &'a [f32; N]) -> [Self::Floats; N] {
        let mut columns = [self.splat(0.0); N];
        self.columns_into(row, &mut columns);
        columns
    }

    /// [`Self::columns`], written to `columns`.
    #[inline(always)]
    fn columns_into<'a, const N: usize>(self, row: impl Fn(usize) -> &'a [f32; N], columns: &mut [Self::Floats; N]) {
        const { assert!(N.is_multiple_of(4)) };
        for at in (0..N).step_by(4) {
            let four = self.transpose(
                #[inline(always)]
                |lane| row(lane)[at..].first_chunk().expect("four columns are left"),
            );
            columns[at..at + 4].copy_from_slice(&four);
        }
    }

    /// [`Self::columns`] of the first [`Self::LEN`] of `rows`, which has as many.
    #[inline(always)]
    fn columns_of<const N: usize>(self, rows: &[[f32; N]]) -> [Self::Floats; N] {
        // Rows that lie one after the other need one address.
        let rows = &rows[..Self::LEN];
        self.columns(
            #[inline(always)]
            |lane| &rows[lane],
        )
    }
}

/// The most lanes that any level has.
pub const MAX_LANES: usize = 32;

/// How much of a CPU the quantizers use. The bytes are the same at every level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// One weight at a time: the definition of the bytes.
    Scalar,
    /// Lanes in arrays, for any CPU.
    Plain,
    /// 64-bit ARM.
    Neon,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
}

/// Work that is written for any lanes.
pub trait Body {
    /// Does the work. To be marked `#[inline(always)]`, so that it is compiled with the instructions of its level.
    fn run<L: Lanes>(self, lanes: L);
}

impl Level {
    /// Every level, the slowest first.
    pub const ALL: [Self; 5] = [Self::Scalar, Self::Plain, Self::Neon, Self::Avx2, Self::Avx512];

    /// Returns the fastest level that this CPU has.
    pub fn best() -> Self {
        *Self::ALL.iter().rev().find(|level| level.is_available()).expect("the scalar level is always there")
    }

    /// Returns the levels that this CPU has, the slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|level| level.is_available())
    }

    /// Returns whether this CPU has this level.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar | Self::Plain => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                // Those of the compiled function, so that a CPU without one of them never gets there.
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    /// Its name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Plain => "plain",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Does the work with the lanes of this level.
    ///
    /// # Panics
    /// When the CPU does not have the level, and for the scalar level, which has no lanes.
    pub(crate) fn run(self, body: impl Body) {
        assert!(self.is_available(), "this CPU has no {}", self.name());
        match self {
            Self::Scalar => panic!("the scalar level has no lanes"),
            Self::Plain => body.run(plain::Plain),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => body.run(pair::Pair(neon::Neon)),
            // SAFETY: the CPU has AVX2 and FMA.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { run_avx2(body) },
            // SAFETY: the CPU has these parts of AVX-512.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { run_avx512(body) },
            #[allow(unreachable_patterns)]
            _ => unreachable!("not available on this kind of CPU"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2(body: impl Body) {
    // SAFETY: the caller has made sure of AVX2 and FMA.
    body.run(pair::Pair(unsafe { avx2::Avx2::new() }));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn run_avx512(body: impl Body) {
    // SAFETY: the caller has made sure of AVX-512.
    body.run(pair::Pair(unsafe { avx512::Avx512::new() }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::Random;

    struct MulAdd<'a> {
        of: &'a [[f32; 3]],
        results: &'a mut Vec<f32>,
    }

    impl Body for MulAdd<'_> {
        #[inline(always)]
        fn run<L: Lanes>(self, l: L) {
            for of in self.of.chunks(L::LEN) {
                let mut numbers = [[0.0; MAX_LANES]; 3];
                for (lane, of) in of.iter().enumerate() {
                    (0..3).for_each(|i| numbers[i][lane] = of[i]);
                }
                let [a, b, c] = numbers.map(|numbers| l.load(&numbers));
                l.store(a.mul_add(b, c), &mut numbers[0]);
                self.results.extend(&numbers[0][..of.len()]);
            }
        }
    }

    fn power(exponent: i32) -> f32 {
        2f64.powi(exponent) as f32
    }

    /// Where the sum lies between two floats, at a half, just beside a half, below the smallest, beyond the largest.
    fn difficult() -> Vec<[f32; 3]> {
        let tiny = f32::from_bits(1);
        let special = [
            0.0,
            tiny,
            f32::from_bits(0x007f_ffff),
            f32::MIN_POSITIVE,
            f32::EPSILON,
            0.5,
            1.0,
            1.0 + f32::EPSILON,
            1.0 - f32::EPSILON / 2.0,
            3.0,
            16_777_215.0,
            f32::MAX,
            f32::MAX / 2.0,
            f32::INFINITY,
            f32::NAN,
        ];
        let special: Vec<f32> = special.into_iter().flat_map(|x| [x, -x]).collect();
        let mut all = Vec::new();
        for a in &special {
            for b in &special {
                all.extend(special.iter().map(|c| [*a, *b, *c]));
            }
        }
        // 2^46 + 1 = 8392705 · 8384513. With the power of two below it, this is just above half of a float's last bit, by less
        // than double precision has: of normal floats, and of those below the smallest normal one.
        let just_above = [8_392_705.0 / 8_388_608.0, 8_384_513.0 / 8_388_608.0];
        for exponent in [-149, -140, -126, -100, -24, 0, 60, 100] {
            for shift in 0..80 {
                let (scale, sum) = (power(exponent / 2 - shift / 2), power(exponent - exponent / 2));
                let other = sum * power(shift / 2 - shift);
                for sign in [1.0, -1.0] {
                    for term in [1.0, 1.0 + f32::EPSILON, 1.0 - f32::EPSILON / 2.0, 1.5] {
                        let term = sign * term * power(exponent);
                        all.push([just_above[0] * scale, just_above[1] * other, term]);
                        all.push([just_above[0] * scale, other, term]);
                        all.push([scale, other, term]);
                    }
                }
            }
        }
        let mut random = Random::new(7);
        let bits = |random: &mut Random| (random.unit() * 4_294_967_296.0) as u32;
        for _ in 0..100_000 {
            let [a, b, c] = std::array::from_fn(|_| f32::from_bits(bits(&mut random)));
            // Any, and those where product and term are close.
            all.push([a, b, c]);
            let near = f32::from_bits((a * b).to_bits() ^ (bits(&mut random) >> 8 >> (bits(&mut random) % 24)));
            all.push([a, b, near]);
            all.push([a, b, -near]);
        }
        all
    }

    #[test]
    fn products_with_a_sum_are_rounded_once_at_every_level() {
        let all = difficult();
        let same = |found: f32, wanted: f32| found.to_bits() == wanted.to_bits() || found.is_nan() && wanted.is_nan();
        for level in Level::available().filter(|&level| level != Level::Scalar) {
            let mut results = Vec::new();
            level.run(MulAdd { of: &all, results: &mut results });
            assert_eq!(results.len(), all.len());
            for ([a, b, c], found) in all.iter().zip(results) {
                let wanted = a.mul_add(*b, *c);
                assert!(same(found, wanted), "{level:?}: {a:e} · {b:e} + {c:e} is {wanted:e}, not {found:e}");
            }
        }
        for [a, b, c] in all {
            let (found, wanted) = (plain::mul_add(a, b, c), a.mul_add(b, c));
            assert!(same(found, wanted), "{a:e} · {b:e} + {c:e} is {wanted:e}, not {found:e}");
        }
    }

    #[test]
    fn a_sum_is_rounded_once_where_double_precision_would_round_it_to_a_tie() {
        // 2^-130 + 2^-150 (1 + 2^-46): above half of the last bit, which is worth 2^-149.
        let (a, b) = (8_392_705.0f32 * power(-98), 8_384_513.0f32 * power(-98));
        let found = plain::mul_add(a, b, power(-130));
        assert_eq!(found, power(-130) + f32::from_bits(1));
        // 1 + 2^-24 (1 + 2^-46), where the last bit is worth 2^-23.
        let (a, b) = (8_392_705.0f32 * power(-35), 8_384_513.0f32 * power(-35));
        assert_eq!(plain::mul_add(a, b, 1.0), 1.0 + f32::EPSILON);
        assert_eq!(plain::mul_add(-a, b, -1.0), -1.0 - f32::EPSILON);
    }
}
