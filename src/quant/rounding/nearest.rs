//! Rounding to nearest: each weight gets the level nearest to it, given the scales as stored.
//!
//! These are ggml's bytes, but for four things:
//!
//! - **Codes of a scale that was not stored yet.** Without importance the formats of 32 weights, and IQ4_XS always, round
//!   with the scale as it was found, in single precision, and store it as a half afterwards. A weight close to the middle
//!   between two levels may then get the other one.
//! - **Codes of the search.** With importance Q4_0, Q5_0, Q4_1 and Q5_1 keep the codes that the scale was fitted to.
//! - **Codes without meaning.** Where the stored scale of a sub-block is 0, every code stands for the same weight. ggml
//!   keeps the codes of the search there, and this rounding takes the code of the level nearest to 0.
//! - **Codes of weights that are far outside the range.** From 2^22 scales on ggml's rounding gives some number, and this
//!   one the end of the range.
//!
//! The bytes of the scales are always ggml's, and no weight is further from its value here than in ggml's bytes. A test
//! holds every format to that.

use crate::quant::block::{Scaled, row_mean_square};
use crate::quant::rows::Rows;

/// Quantizes rows: fits the scales of each block, rounds its weights, packs the codes.
pub fn quantize_rows<B: Scaled>(rows: Rows, dst: &mut [B]) {
    let Rows { weights, row_len, importance } = rows;
    let mut codes = vec![0; B::LEN];
    for (row, dst) in weights.chunks_exact(row_len).zip(dst.chunks_exact_mut(row_len / B::LEN)) {
        let mean_square = row_mean_square(row, importance);
        for (index, (x, block)) in row.chunks_exact(B::LEN).zip(dst).enumerate() {
            let importance = importance.map(|importance| &importance[index * B::LEN..][..B::LEN]);
            *block = B::fit(x, importance, mean_square);
            let steps = block.steps();
            let sub_blocks = x.chunks_exact(B::SUB_BLOCK).zip(codes.chunks_exact_mut(B::SUB_BLOCK));
            for ((x, codes), step) in sub_blocks.zip(steps.as_ref()) {
                for (x, code) in x.iter().zip(codes) {
                    *code = B::LEVELS.round(*step, *x);
                }
            }
            block.set_codes(&codes);
        }
    }
}
