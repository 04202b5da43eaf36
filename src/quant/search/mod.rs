//! The searches for scales that the formats share. Each algorithm has one file, with its scalar code, its code by
//! lanes, and the table for the results of the lanes.
//!
//! A sub-block of weights x is stored as small whole numbers q and one or two real numbers. Given q, the best real numbers
//! follow from least squares with weights w:
//!
//! ```text
//! x ≈ d·q        minimise Σ w (x − d·q)²        d = Σwxq / Σwq²      what is left: Σwx² − (Σwxq)² / Σwq²
//! x ≈ d·q + m    minimise Σ w (x − d·q − m)²    D = Σw Σwq² − (Σwq)²
//!                                               d = (Σw Σwxq − Σwx Σwq) / D
//!                                               m = (Σwq² Σwx − Σwq Σwxq) / D
//! ```
//!
//! Given d (and m), the best q follow by rounding. What remains is a search over starting scales, and each module here is
//! one such search. In all of them the sums run in the order of the weights and the operations are grouped as written,
//! because the bytes depend on both.
//!
//! The code by lanes does the same operations in the same order, with one sub-block per lane. If a vector operation
//! cannot reproduce the scalar code, the lane is reported as *odd*, and the scalar code quantizes the block. This
//! happens if a quotient leaves the range of [`nearest`](numbers::nearest), which then does not return the nearest
//! whole number: for weights near the ends of single precision, or ranges that shrink to almost nothing.
//!
//! This is the cost of the searches, in vector operations per weight. A CPU's limit is the number of vector operations
//! per second, times its lanes.
//!
//! | search        | a trial                                         | trials         | in all       |
//! |---------------|-------------------------------------------------|----------------|--------------|
//! | [`affine`]    | 5 for the code, 6 for the sums, 6 for the error | 21, 16, 16; 37 | 392, 307, 302; 669 (Q4_K, Q5_K, Q2_K; with importance) |
//! | [`symmetric`] | 4 for the code, 5 for the sums                  | 19             | 190          |
//! | [`codebook`]  | 7 for the value, 5 for the sums                 | 17             | 220          |
//! | [`moves`]     | 13 to start, 10 for a look at all codes, 18 for a move and the look after it | see there | 40, if one of five sub-blocks moves |
//!
//! [`affine`], [`symmetric`] and [`codebook`] wait only for the last addition to a sum. [`moves`] gathers sub-blocks,
//! moves codes and looks again: it has less arithmetic than the others, but more waiting and copying.
//!
//! Source: `make_qx_quants`, `make_q3_quants`, `make_qkx2_quants`, `make_qkx3_quants` and `make_qp_quants` in ggml's
//! `ggml-quants.c`.

pub mod affine;
pub mod batch;
pub mod codebook;
pub mod moves;
pub mod numbers;
pub mod positive;
pub mod symmetric;

#[cfg(test)]
mod tests {
    use super::affine::{self, Affine, AffineSearch};
    use super::numbers::{extreme, nearest, truncate_to_byte};
    use super::{moves, positive, symmetric};
    use crate::quant::samples::Random;
    use std::array;

    /// Σ w (x − d·q − m)² in double precision.
    fn squared_error(x: &[f32], weights: &[f32], q: impl Fn(usize) -> f64, d: f32, m: f32) -> f64 {
        let square = |i: usize| {
            let difference = f64::from(x[i]) - f64::from(d) * q(i) - f64::from(m);
            f64::from(weights[i]) * difference * difference
        };
        (0..x.len()).map(square).sum()
    }

    #[test]
    fn nearest_rounds_ties_to_even_and_never_panics() {
        for (x, wanted) in
            [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (0.49999997, 0), (4_194_303.0, 4_194_303)]
        {
            assert_eq!(nearest(x), wanted, "{x}");
        }
        assert_eq!(nearest(f32::INFINITY), -0x0040_0000);
        for x in [f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN] {
            assert!((-0x0040_0000..=0x003f_ffff).contains(&nearest(x)));
        }
    }

    #[test]
    fn truncation_drops_the_fraction_and_makes_nothing_of_infinity() {
        for (x, wanted) in
            [(0.9, 0), (15.99, 15), (255.5, 255), (256.0, 0), (-1.5, 255), (f32::INFINITY, 0), (f32::NAN, 0), (4e9, 0)]
        {
            assert_eq!(truncate_to_byte(x), wanted, "{x}");
        }
    }

    #[test]
    fn the_symmetric_search_is_never_worse_than_its_start() {
        let mut random = Random::new(1);
        for _ in 0..2000 {
            let x: [f32; 16] = array::from_fn(|_| random.normal());
            let weights: [f32; 16] = array::from_fn(|_| random.unit());
            let mut codes = [0; 16];
            let d = symmetric::fit(&x, &weights, 8, &mut codes);
            let found = squared_error(&x, &weights, |i| f64::from(codes[i]) - 8.0, d, 0.0);
            let start = -extreme(&x) / 8.0;
            let plain = |i: usize| f64::from((x[i] / start).round().clamp(-8.0, 7.0));
            assert!(found <= squared_error(&x, &weights, plain, start, 0.0) * 1.0001);
        }
    }

    #[test]
    fn the_affine_search_is_never_worse_than_smallest_to_largest() {
        let mut random = Random::new(2);
        for _ in 0..2000 {
            let x: [f32; 32] = array::from_fn(|_| random.normal() + 0.5);
            let weights: [f32; 32] = array::from_fn(|_| random.unit());
            let mut codes = [0; 32];
            let Affine { scale, min } = affine::fit(AffineSearch::weighted(15), &x, &weights, &mut codes);
            assert!(min >= 0.0);
            let found = squared_error(&x, &weights, |i| f64::from(codes[i]), scale, -min);
            let low = x.iter().fold(0.0f32, |a, &b| a.min(b));
            let step = (x.iter().fold(f32::MIN, |a, &b| a.max(b)) - low) / 15.0;
            let plain = |i: usize| f64::from(((x[i] - low) / step).round());
            assert!(found <= squared_error(&x, &weights, plain, step, low) * 1.0001);
        }
    }

    #[test]
    fn the_searches_find_codes_that_fit_exactly() {
        let mut codes = [0; 16];
        let whole: [f32; 16] = array::from_fn(|i| i as f32);
        let even = [1.0; 16];

        let d = symmetric::fit(&whole.map(|q| (q - 8.0) * 0.5), &even, 8, &mut codes);
        assert_eq!((d, codes.map(f32::from)), (0.5, whole));

        let d = positive::fit(&whole.map(|q| q * 0.25), &even, 15, &mut codes);
        assert_eq!((d, codes.map(f32::from)), (0.25, whole));

        let three_bits: [f32; 16] = array::from_fn(|i| (i % 8) as f32);
        let d = moves::fit(&three_bits.map(|q| (q - 4.0) * 0.5), 4, &mut codes);
        assert_eq!((d, codes.map(f32::from)), (0.5, three_bits));

        let affine = affine::fit(AffineSearch::weighted(15), &whole.map(|q| q * 0.5 - 3.0), &even, &mut codes);
        assert_eq!((affine, codes.map(f32::from)), (Affine { scale: 0.5, min: 3.0 }, whole));
    }
}
