//! Computes the BLAKE3 of a file from spans that are hashed separately, in any order and by any thread.
//!
//! ```text
//!                 root                    BLAKE3 is a tree over chunks of 1 KiB in which the left side of every node
//!            ┌─────┴─────┐                is the largest power of two that leaves something for the right. A span of
//!         ┌──┴──┐     ┌──┴──┐             a power of two, at a multiple of itself, is therefore a node of that tree:
//!       span0 span1 span2 span3           its chaining value can be made alone, and the rest is merging.
//! ```
//!
//! Specification: <https://github.com/BLAKE3-team/BLAKE3-specs/blob/master/blake3.pdf>, section 2.1 and 5.1.

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// Hashes one span of a file, in pieces of any size, so that each piece can be hashed while it is still in the core's
/// cache.
pub struct SpanHasher {
    hasher: Hasher,
    is_whole_file: bool,
}

impl SpanHasher {
    /// Creates a hasher for the span that begins at `offset`, a multiple of `span_bytes` (a power of two), in a file of
    /// `file_bytes` bytes.
    pub fn new(offset: u64, span_bytes: u64, file_bytes: u64) -> Self {
        debug_assert!(span_bytes.is_power_of_two() && span_bytes >= 1024 && offset.is_multiple_of(span_bytes));
        let mut hasher = Hasher::new();
        hasher.set_input_offset(offset);
        Self { hasher, is_whole_file: file_bytes <= span_bytes }
    }

    /// Adds the span's next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// Returns the span's contribution to the file's hash: its chaining value, or the hash itself if the file has no
    /// other span.
    pub fn finish(&self) -> ChainingValue {
        if self.is_whole_file { *self.hasher.finalize().as_bytes() } else { self.hasher.finalize_non_root() }
    }
}

/// Returns the hash of a file whose spans have these values, as `b3sum` prints it. Every file has a span, even an empty
/// file.
///
/// # Panics
/// If `spans` is empty.
pub fn of_file(spans: &[ChainingValue]) -> blake3::Hash {
    match spans {
        [whole] => blake3::Hash::from_bytes(*whole),
        _ => {
            let (left, right) = halves(spans);
            merge_subtrees_root(&node(left), &node(right), Mode::Hash)
        }
    }
}

fn node(spans: &[ChainingValue]) -> ChainingValue {
    match spans {
        [leaf] => *leaf,
        _ => {
            let (left, right) = halves(spans);
            merge_subtrees_non_root(&node(left), &node(right), Mode::Hash)
        }
    }
}

/// Splits spans as the tree does: the left side is the largest power of two that leaves something for the right.
fn halves(spans: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    assert!(spans.len() > 1, "{} spans have no halves", spans.len());
    spans.split_at(spans.len().next_power_of_two() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_give_the_hash_of_the_whole_file() {
        const SPAN: u64 = 4096;
        let bytes: Vec<u8> = (0..40 * SPAN).map(|i| (i * i / 7 + i) as u8).collect();
        for whole in [0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 39] {
            for more in [0, 1, 5, 1023, 1024, 1025, SPAN - 1] {
                let file = &bytes[..(whole * SPAN + more) as usize];
                let n_spans = file.len().div_ceil(SPAN as usize).max(1);
                let span = |i: usize| {
                    let at = i * SPAN as usize;
                    let mut hasher = SpanHasher::new(at as u64, SPAN, file.len() as u64);
                    file[at..file.len().min(at + SPAN as usize)].chunks(1500).for_each(|bytes| hasher.update(bytes));
                    hasher.finish()
                };
                let spans: Vec<_> = (0..n_spans).map(span).collect();
                assert_eq!(of_file(&spans), blake3::hash(file), "{} bytes", file.len());
            }
        }
    }

    #[test]
    fn a_hash_is_the_one_that_b3sum_prints() {
        // From the test vectors of the BLAKE3 team: no bytes, and one zero byte.
        let of = |bytes: &[u8]| {
            let mut hasher = SpanHasher::new(0, 1024, bytes.len() as u64);
            hasher.update(bytes);
            of_file(&[hasher.finish()]).to_hex().to_string()
        };
        assert_eq!(of(b""), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
        assert_eq!(of(&[0]), "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213");
    }
}
