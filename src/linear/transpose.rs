//! Transposing, several numbers at a time.

use crate::lanes::{Body, Lanes, Level};

/// Transposes `lines` lines of `len` numbers: `to[i · to_stride + j]` becomes `from[j · stride + i]`, for j below `lines` and
/// i below `len`.
///
/// # Panics
/// If `from` or `to` is too short.
pub fn transpose(
    level: Level,
    (from, stride): (&[f32], usize),
    (lines, len): (usize, usize),
    (to, to_stride): (&mut [f32], usize),
) {
    if lines == 0 || len == 0 {
        return;
    }
    assert!(from.len() >= (lines - 1) * stride + len && to.len() >= (len - 1) * to_stride + lines);
    level.run(Transpose { from, stride, lines, len, to, to_stride });
}

/// [`transpose`], for [`Level::run`].
struct Transpose<'a> {
    from: &'a [f32],
    stride: usize,
    lines: usize,
    len: usize,
    to: &'a mut [f32],
    to_stride: usize,
}

impl Body for Transpose<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { from, stride, lines, len, to, to_stride } = self;
        let (whole_lines, whole_len) = (lines / L::LEN * L::LEN, len / 4 * 4);
        // By tiles, so that what is written stays in a cache.
        for start in (0..whole_len).step_by(64) {
            for line in (0..whole_lines).step_by(L::LEN) {
                for i in (start..whole_len.min(start + 64)).step_by(4) {
                    let four = l.transpose(
                        #[inline(always)]
                        |lane| from[(line + lane) * stride + i..].first_chunk().expect("four numbers are left"),
                    );
                    for (k, numbers) in four.into_iter().enumerate() {
                        l.store(numbers, &mut to[(i + k) * to_stride + line..]);
                    }
                }
            }
        }
        for line in 0..lines {
            let rest = if line < whole_lines { whole_len } else { 0 };
            for i in rest..len {
                to[i * to_stride + line] = from[line * stride + i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_transposes_every_size() {
        for (lines, len) in [(0, 3), (1, 1), (3, 5), (8, 4), (32, 128), (33, 66), (70, 131)] {
            let (stride, to_stride) = (len + 2, lines + 1);
            let from: Vec<f32> = (0..lines * stride).map(|x| x as f32).collect();
            for level in Level::available().filter(|&level| level != Level::Scalar) {
                let mut to = vec![-1.0; len * to_stride];
                transpose(level, (&from, stride), (lines, len), (&mut to, to_stride));
                for i in 0..len {
                    for j in 0..to_stride {
                        let wanted = if j < lines { from[j * stride + i] } else { -1.0 };
                        assert_eq!(to[i * to_stride + j], wanted, "{level:?}, {lines} lines of {len}: {i} {j}");
                    }
                }
            }
        }
    }
}
