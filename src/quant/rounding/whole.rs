//! Even levels: whole numbers, one apart.

use super::Step;
use crate::lanes::{Floats, Lanes, Mask};
use crate::quant::search::numbers::{BEYOND_NEAREST, nearest};

/// The whole numbers from `smallest` to `largest`. The code of a level is that level less `smallest`.
#[derive(Clone, Copy, Debug)]
pub struct Whole {
    /// The level of code 0.
    pub smallest: i32,
    /// The level of the largest code.
    pub largest: i32,
}

impl Whole {
    /// The code of the level nearest to (x + min) / scale.
    ///
    /// Where the scale is 0 all codes have one value; it is then the code of the level nearest to 0.
    #[inline]
    pub fn round(self, step: Step, x: f32) -> u8 {
        let quotient = if step.scale != 0.0 { (x + step.min) / step.scale } else { 0.0 };
        // Within the range in which `nearest` rounds.
        self.code(quotient.max(self.smallest as f32).min(self.largest as f32))
    }

    /// The level of a code.
    #[inline]
    pub fn level(self, code: u8) -> f32 {
        f32::from(code) + self.smallest as f32
    }

    /// [`Self::round`] of a block of `PER` sub-blocks of `N` weights; but where a sub-block's scale is 0, the codes with
    /// which its search ended, from `searched`. ggml defines the bytes so.
    pub fn codes<const N: usize, const PER: usize>(
        self,
        x: &[f32; 256],
        scales: &[f32; PER],
        mins: &[f32; PER],
        searched: impl Fn(usize) -> [u8; N],
    ) -> [u8; 256] {
        let mut codes = [0; 256];
        let (sub_blocks, _) = x.as_chunks::<N>();
        let (sub_codes, _) = codes.as_chunks_mut::<N>();
        for j in 0..PER {
            sub_codes[j] = match scales[j] != 0.0 {
                true => sub_blocks[j].map(|x| self.code((x + mins[j]) / scales[j])),
                false => searched(j),
            };
        }
        codes
    }

    #[inline(always)]
    fn code(self, quotient: f32) -> u8 {
        (nearest(quotient).clamp(self.smallest, self.largest) - self.smallest) as u8
    }

    /// [`Self::codes`], a weight a lane.
    #[inline(always)]
    pub fn codes_lanes<L: Lanes, const N: usize, const PER: usize>(
        self,
        l: L,
        x: &[f32; 256],
        scales: &[f32; PER],
        mins: Option<&[f32; PER]>,
        searched: impl Fn(usize) -> [u8; N],
    ) -> [u8; 256] {
        let (smallest, largest) = (l.splat(self.smallest as f32), l.splat(self.largest as f32));
        let mut odd = false;
        let mut divisors = [0.0; PER];
        for j in 0..PER {
            // What a scale of zero gives is not used.
            divisors[j] = if scales[j] == 0.0 { 1.0 } else { scales[j] };
            let is_finite = divisors[j].abs() < f32::INFINITY && mins.is_none_or(|mins| mins[j].abs() < f32::INFINITY);
            odd |= !is_finite;
        }
        let mut farthest = l.splat(0.0);
        let mut codes = [0; 256];
        for at in (0..256).step_by(L::LEN) {
            let mut numerator = l.load(&x[at..]);
            if let Some(mins) = mins {
                numerator = numerator + l.spread::<N>(&mins[at / N..]);
            }
            let quotient = numerator / l.spread::<N>(&divisors[at / N..]);
            farthest = quotient.abs().max(farthest);
            l.store_bytes(quotient.round().max(smallest).min(largest) - smallest, &mut codes[at..]);
        }
        if odd | farthest.not_lt(l.splat(BEYOND_NEAREST)).any() {
            return self.codes(x, scales, mins.unwrap_or(&[0.0; PER]), searched);
        }
        let (sub_codes, _) = codes.as_chunks_mut::<N>();
        for j in 0..PER {
            if scales[j] == 0.0 {
                sub_codes[j] = searched(j);
            }
        }
        codes
    }
}
