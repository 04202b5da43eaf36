//! What happens to a tensor's rows on the way from the checkpoint to the file.

/// What becomes of a tensor on the way. Columns are never touched, so a row can be converted without its neighbours.
///
/// A row runs along the fastest dimension; of a vector (a bias), each element is a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// Rows stay where they are.
    Copy,
    /// Within each head, the two halves of its rows are interleaved.
    ///
    /// Rotary embedding turns pairs of channels. Hugging Face pairs channel *j* with *j + d/2* of a head of *d*
    /// channels, GGUF's `llama` pairs *2j* with *2j + 1* (as Meta's own weights do). So the rows of Q and K move:
    ///
    /// ```text
    /// checkpoint   a0 a1 a2 a3 b0 b1 b2 b3      one head, d = 8
    /// GGUF         a0 b0 a1 b1 a2 b2 a3 b3
    /// ```
    ///
    /// In numpy: `w.reshape(n_heads, 2, d / 2, -1).swapaxes(1, 2).reshape(w.shape)`. Source: `LlamaModel.permute` of
    /// llama.cpp's converter.
    PermuteRows {
        /// Heads that the rows divide into: the KV heads for K.
        n_heads: u32,
    },
}

impl Transform {
    /// The row of the checkpoint's tensor that becomes row `out_row` of the `n_rows` in the file.
    ///
    /// A bijection of `0..n_rows` where `n_rows` is a multiple of `2 * n_heads`, which [`describe`](super::describe)
    /// has checked. The rows of a head come from two runs of consecutive rows, so a reader that goes through the file
    /// in order reads the checkpoint nearly in order.
    pub fn source_row(self, out_row: u64, n_rows: u64) -> u64 {
        match self {
            Self::Copy => out_row,
            Self::PermuteRows { n_heads } => {
                debug_assert!(out_row < n_rows && n_heads > 0 && n_rows.is_multiple_of(2 * u64::from(n_heads)));
                let head_dim = n_rows / u64::from(n_heads);
                let (head, channel) = (out_row / head_dim, out_row % head_dim);
                head * head_dim + channel % 2 * (head_dim / 2) + channel / 2
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row numbers after `arange(n_rows).reshape(n_heads, 2, d / 2).swapaxes(1, 2).reshape(-1)`, with strides.
    fn reshape_and_swap(n_heads: u64, n_rows: u64) -> Vec<u64> {
        let half = n_rows / n_heads / 2;
        let (shape, strides) = ([n_heads, half, 2], [2 * half, 1, half]);
        let mut rows = Vec::new();
        for i in 0..shape[0] {
            for j in 0..shape[1] {
                for k in 0..shape[2] {
                    rows.push(i * strides[0] + j * strides[1] + k * strides[2]);
                }
            }
        }
        rows
    }

    #[test]
    fn permutes_as_reshape_and_swapaxes_do() {
        for (n_heads, n_rows) in [(1, 2), (1, 8), (4, 256), (2, 128), (56, 7168), (8, 1024), (3, 18)] {
            let transform = Transform::PermuteRows { n_heads: n_heads as u32 };
            let rows: Vec<u64> = (0..n_rows).map(|row| transform.source_row(row, n_rows)).collect();
            assert_eq!(rows, reshape_and_swap(n_heads, n_rows), "{n_heads} heads, {n_rows} rows");
        }
        let one_head = Transform::PermuteRows { n_heads: 1 };
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(|row| one_head.source_row(row, 8)), [0, 4, 1, 5, 2, 6, 3, 7]);
    }

    #[test]
    fn every_row_is_read_exactly_once() {
        for (transform, n_rows) in [
            (Transform::Copy, 100),
            (Transform::PermuteRows { n_heads: 56 }, 7168),
            (Transform::PermuteRows { n_heads: 8 }, 1024),
            (Transform::PermuteRows { n_heads: 5 }, 30),
        ] {
            let mut rows: Vec<u64> = (0..n_rows).map(|row| transform.source_row(row, n_rows)).collect();
            rows.sort_unstable();
            assert!(rows.into_iter().eq(0..n_rows), "{transform:?}");
        }
    }
}
