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
//! on every CPU; none of them fuses a product with a sum.
//!
//! One generic body serves every level of vector instructions. It is written over [`Lanes`], marked
//! `#[inline(always)]`, and compiled inside a function for each [`Level`] that has its instructions enabled
//! ([`Level::run`]).
//!
//! | level      | vector               | compiled for                    | chosen when                |
//! |------------|----------------------|---------------------------------|----------------------------|
//! | `avx512`   | 2 × 16 lanes         | x86-64 with AVX-512 F, BW, DQ, VL | the CPU says so at run time |
//! | `avx2`     | 2 × 8 lanes          | x86-64 with AVX2                | the CPU says so at run time |
//! | `neon`     | 2 × 4 lanes          | 64-bit ARM                      | always there               |
//! | `plain`    | 8 lanes in an array  | any CPU; the compiler's choice  | nothing else is there      |
//! | `scalar`   | none                 | any CPU                         | never: it is the definition |
//!
//! Two vectors are processed at a time, because each addition to a sum has to wait for the previous one. The second
//! vector uses that time.

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
    /// x86-64 with AVX2.
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
            Self::Avx2 => is_x86_feature_detected!("avx2"),
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
            // SAFETY: the CPU has AVX2.
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
#[target_feature(enable = "avx2")]
unsafe fn run_avx2(body: impl Body) {
    // SAFETY: the caller has made sure of AVX2.
    body.run(pair::Pair(unsafe { avx2::Avx2::new() }));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn run_avx512(body: impl Body) {
    // SAFETY: the caller has made sure of AVX-512.
    body.run(pair::Pair(unsafe { avx512::Avx512::new() }));
}
