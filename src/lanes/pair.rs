//! Two vectors side by side, as one of twice the lanes.

use super::{Floats, Lanes, Mask, Stairs};
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Not, Sub};

/// The lanes of two `L`.
#[derive(Clone, Copy)]
pub struct Pair<L>(pub L);

/// Two vectors or two masks: the lanes of the second follow those of the first.
#[derive(Clone, Copy)]
pub struct Both<T>(T, T);

impl<L: Lanes> Lanes for Pair<L> {
    const LEN: usize = 2 * L::LEN;
    const REGISTERS: usize = L::REGISTERS / 2;
    type Floats = Both<L::Floats>;
    type Mask = Both<L::Mask>;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Floats {
        let x = self.0.splat(x);
        Both(x, x)
    }

    #[inline(always)]
    fn spread<const N: usize>(self, x: &[f32]) -> Self::Floats {
        const { assert!(L::LEN <= N) };
        Both(self.0.splat(x[0]), self.0.splat(x[L::LEN / N]))
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> Self::Floats {
        Both(self.0.load(x), self.0.load(&x[L::LEN..]))
    }

    #[inline(always)]
    fn store(self, floats: Self::Floats, x: &mut [f32]) {
        self.0.store(floats.0, x);
        self.0.store(floats.1, &mut x[L::LEN..]);
    }

    #[inline(always)]
    fn store_bytes(self, floats: Self::Floats, x: &mut [u8]) {
        self.0.store_bytes(floats.0, x);
        self.0.store_bytes(floats.1, &mut x[L::LEN..]);
    }

    #[inline(always)]
    fn truncate(self, floats: Self::Floats, x: &mut [i32]) {
        self.0.truncate(floats.0, x);
        self.0.truncate(floats.1, &mut x[L::LEN..]);
    }

    #[inline(always)]
    fn stairs(self, stairs: &Stairs, floats: Self::Floats) -> Self::Floats {
        Both(self.0.stairs(stairs, floats.0), self.0.stairs(stairs, floats.1))
    }

    #[inline(always)]
    fn transpose<'a>(self, row: impl Fn(usize) -> &'a [f32; 4]) -> [Self::Floats; 4] {
        let [a, b, c, d] = self.0.transpose(
            #[inline(always)]
            |lane| row(lane),
        );
        let [e, f, g, h] = self.0.transpose(
            #[inline(always)]
            |lane| row(L::LEN + lane),
        );
        [Both(a, e), Both(b, f), Both(c, g), Both(d, h)]
    }
}

macro_rules! lanewise {
    ($($trait:ident $method:ident)*) => {$(
        impl<T: $trait<Output = T>> $trait for Both<T> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Self(self.0.$method(other.0), self.1.$method(other.1))
            }
        }
    )*};
}

lanewise! { Add add Sub sub Mul mul Div div BitAnd bitand BitOr bitor }

impl<T: Not<Output = T>> Not for Both<T> {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        Self(!self.0, !self.1)
    }
}

impl<F: Floats> Floats for Both<F> {
    type Mask = Both<F::Mask>;

    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.abs(), self.1.abs())
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(self.0.sqrt(), self.1.sqrt())
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        Self(self.0.mul_add(factor.0, term.0), self.1.mul_add(factor.1, term.1))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0), self.1.min(other.1))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0), self.1.max(other.1))
    }
    #[inline(always)]
    fn round(self) -> Self {
        Self(self.0.round(), self.1.round())
    }
    #[inline(always)]
    fn gt(self, other: Self) -> Self::Mask {
        Both(self.0.gt(other.0), self.1.gt(other.1))
    }
    #[inline(always)]
    fn ge(self, other: Self) -> Self::Mask {
        Both(self.0.ge(other.0), self.1.ge(other.1))
    }
    #[inline(always)]
    fn ne(self, other: Self) -> Self::Mask {
        Both(self.0.ne(other.0), self.1.ne(other.1))
    }
    #[inline(always)]
    fn not_lt(self, other: Self) -> Self::Mask {
        Both(self.0.not_lt(other.0), self.1.not_lt(other.1))
    }
    #[inline(always)]
    fn or_else(self, mask: Self::Mask, other: Self) -> Self {
        Self(self.0.or_else(mask.0, other.0), self.1.or_else(mask.1, other.1))
    }
}

impl<M: Mask> Mask for Both<M> {
    const LEN: usize = 2 * M::LEN;

    #[inline(always)]
    fn any(self) -> bool {
        (self.0 | self.1).any()
    }
    #[inline(always)]
    fn bits(self) -> u64 {
        self.0.bits() | self.1.bits() << M::LEN
    }
}
