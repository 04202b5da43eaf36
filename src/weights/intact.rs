//! Reads a model file once, to hash it and to check its blocks.
//!
//! ```text
//! part 1                  part 2              the parts of a split model are hashed as one file
//! ├───────┬───────┬───────┼───────┬────┤
//!  span 0  span 1  span 2 ...                 each thread takes the next: read ─► hash ─► are the blocks that begin
//!                                             in it finite?
//! ```
//!
//! A file larger than the memory comes from the disk each time it is read, so that hash and check share one reading.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use blake3::hazmat::ChainingValue;

use crate::base::display::printable;
use crate::base::mmap::Mapping;
use crate::base::threads::{on_all_threads, room};
use crate::gguf::{Gguf, TensorInfo};
use crate::pass::{READ_BYTES, SPAN_BYTES, SPANS_AHEAD, SpanHasher, hash_of_file};
use crate::quant::{self, Format};

/// What to find out about a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Its hash.
    pub hash: bool,
    /// Whether all scales, and all weights of plain types, are finite.
    pub blocks: bool,
}

impl Wanted {
    /// Returns whether the file has to be read at all.
    pub fn any(self) -> bool {
        self.hash || self.blocks
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The BLAKE3 hash in hexadecimal, if it was wanted. The parts of a split model are hashed as one file.
    pub blake3: Option<String>,
    /// A sentence about the first tensor with a scale or a weight that is NaN or infinite; `None` if there is none, or if
    /// the blocks were not to be checked.
    pub not_finite: Option<String>,
}

/// Reads all of a file on the threads of the current rayon pool, in memory of about 4 MiB per thread. `advance` is called
/// from every thread with the number of bytes that it has read since its last call.
///
/// # Errors
/// [`io::ErrorKind::Interrupted`] if `cancel` was set; otherwise, what the system says.
pub fn read(gguf: &Gguf, wanted: Wanted, advance: &(dyn Fn(u64) + Sync), cancel: &AtomicBool) -> io::Result<Found> {
    read_with(gguf, wanted, &|part, bytes, offset| part.read_at(bytes, offset), advance, cancel)
}

/// Fills the bytes from an offset of a part.
type ReadAt<'a> = &'a (dyn Fn(&Mapping, &mut [u8], u64) -> io::Result<()> + Sync);

/// Like [`read`], with what reads the file.
fn read_with(
    gguf: &Gguf,
    wanted: Wanted,
    read_at: ReadAt<'_>,
    advance: &(dyn Fn(u64) + Sync),
    cancel: &AtomicBool,
) -> io::Result<Found> {
    if !wanted.any() {
        return Ok(Found::default());
    }
    let parts = Parts::of(gguf);
    let mut tensors = if wanted.blocks { parts.tensors(gguf) } else { Vec::new() };
    tensors.sort_by_key(|tensor| tensor.begin);
    let n_spans = parts.n_bytes.div_ceil(SPAN_BYTES).max(1);
    let values = Mutex::new(vec![ChainingValue::default(); n_spans as usize]);
    // The first by its place in the file, whichever thread finds its own first.
    let first: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let span = |i: u64| i * SPAN_BYTES..parts.n_bytes.min((i + 1) * SPAN_BYTES);
    let ahead = SPANS_AHEAD as u64 + rayon::current_num_threads() as u64;
    (0..ahead.min(n_spans)).for_each(|i| parts.will_read(span(i)));

    on_all_threads(n_spans as usize, |number, buffer: &mut Vec<u8>| {
        if cancel.load(Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::Interrupted));
        }
        let i = number as u64;
        if i + ahead < n_spans {
            parts.will_read(span(i + ahead));
        }
        let bytes = span(i);
        let here = blocks_in(&tensors, &bytes);
        // The last block that begins here may end in the next span.
        let end = here.iter().map(|(tensor, blocks)| tensor.begin + blocks.end * tensor.block_bytes()).max();
        let end = end.unwrap_or(0).max(bytes.end);
        let read = room(buffer, (end - bytes.start) as usize);
        let (own, rest) = read.split_at_mut((bytes.end - bytes.start) as usize);
        let mut hasher = SpanHasher::new(bytes.start, SPAN_BYTES, parts.n_bytes);
        for (piece, offset) in own.chunks_mut(READ_BYTES).zip((bytes.start..).step_by(READ_BYTES)) {
            parts.read_at(read_at, piece, offset)?;
            if wanted.hash {
                hasher.update(piece);
            }
        }
        parts.read_at(read_at, rest, bytes.end)?;
        if wanted.hash {
            values.lock().unwrap_or_else(PoisonError::into_inner)[number] = hasher.finish();
        }
        for (tensor, blocks) in here {
            let begin = tensor.begin + blocks.start * tensor.block_bytes();
            let length = (blocks.end - blocks.start) * tensor.block_bytes();
            let found = tensor.format.not_finite(&read[(begin - bytes.start) as usize..][..length as usize]);
            let Some(found) = found else { continue };
            let at = begin + found.first * tensor.block_bytes();
            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
            if first.as_ref().is_none_or(|(before, _)| at < *before) {
                *first = Some((at, sentence(tensor.info, blocks.start + found.first)));
            }
        }
        advance(bytes.end - bytes.start);
        Ok(())
    })?;
    if cancel.load(Ordering::Relaxed) {
        return Err(io::ErrorKind::Interrupted.into());
    }
    let values = values.into_inner().unwrap_or_else(PoisonError::into_inner);
    let first = first.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Found {
        blake3: wanted.hash.then(|| hash_of_file(&values).to_hex().to_string()),
        not_finite: first.map(|(_, sentence)| sentence),
    })
}

fn sentence(info: &TensorInfo, block: u64) -> String {
    let (row, column) = info.position_of(block);
    format!(
        "tensor '{}' has a NaN or an infinity in its block at row {row}, column {column} (rows and columns count from 0): \
         the file is damaged, and its numbers would mean nothing",
        printable(&info.name)
    )
}

/// The parts of a model as one stretch of bytes.
struct Parts<'a> {
    /// Each part, and where it begins.
    parts: Vec<(&'a Mapping, u64)>,
    n_bytes: u64,
}

/// A tensor of a type whose blocks can be checked.
struct Tensor<'a> {
    info: &'a TensorInfo,
    format: &'static Format,
    /// Where it begins in [`Parts`].
    begin: u64,
    n_blocks: u64,
}

impl Tensor<'_> {
    fn block_bytes(&self) -> u64 {
        self.format.ty.block_bytes() as u64
    }
}

impl<'a> Parts<'a> {
    fn of(gguf: &'a Gguf) -> Self {
        let mut n_bytes = 0;
        let place = |part: &'a Mapping| {
            let begin = n_bytes;
            n_bytes += part.bytes().len() as u64;
            (part, begin)
        };
        let parts = gguf.mappings().map(place).collect();
        Self { parts, n_bytes }
    }

    fn tensors(&self, gguf: &'a Gguf) -> Vec<Tensor<'a>> {
        let tensor = |(i, info): (usize, &'a TensorInfo)| {
            let (part, range) = gguf.location(i);
            let (_, begin) = self.parts.iter().find(|(other, _)| std::ptr::eq(*other, part))?;
            let format = quant::format(info.ty)?;
            let n_blocks = (range.len() / info.ty.block_bytes()) as u64;
            Some(Tensor { info, format, begin: begin + range.start as u64, n_blocks })
        };
        gguf.tensors().iter().enumerate().filter_map(tensor).collect()
    }

    /// Returns the parts that hold the bytes of `range`, and which of their own bytes those are.
    fn within(&self, range: Range<u64>) -> impl Iterator<Item = (&'a Mapping, Range<u64>)> {
        self.parts.iter().filter_map(move |(part, begin)| {
            let end = begin + part.bytes().len() as u64;
            let (from, to) = (range.start.max(*begin), range.end.min(end));
            (from < to).then(|| (*part, from - begin..to - begin))
        })
    }

    fn will_read(&self, range: Range<u64>) {
        self.within(range).for_each(|(part, own)| part.will_read(own.start as usize..own.end as usize));
    }

    fn read_at(&self, read_at: ReadAt<'_>, mut bytes: &mut [u8], offset: u64) -> io::Result<()> {
        for (part, own) in self.within(offset..offset + bytes.len() as u64) {
            let (now, later) = bytes.split_at_mut((own.end - own.start) as usize);
            read_at(part, now, own.start)?;
            bytes = later;
        }
        Ok(())
    }
}

/// Returns the tensors that have blocks which begin in `span`, and those blocks. `tensors` are in the order of the file.
fn blocks_in<'t, 'a>(tensors: &'t [Tensor<'a>], span: &Range<u64>) -> Vec<(&'t Tensor<'a>, Range<u64>)> {
    let from = tensors.partition_point(|tensor| tensor.begin + tensor.n_blocks * tensor.block_bytes() <= span.start);
    let blocks = |tensor: &'t Tensor<'a>| {
        let number = |at: u64| at.saturating_sub(tensor.begin).div_ceil(tensor.block_bytes()).min(tensor.n_blocks);
        let blocks = number(span.start)..number(span.end);
        (!blocks.is_empty()).then_some((tensor, blocks))
    };
    tensors[from..].iter().take_while(|tensor| tensor.begin < span.end).filter_map(blocks).collect()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::gguf::{Layout, Metadata, TensorType};

    const BLOCK: usize = 34;

    /// Writes a model of Q8_0 in files of at most `most` bytes, whose blocks of 34 bytes lie across the ends of spans.
    /// `edit` may change the tensors' bytes. Returns the first file.
    fn model(dir: &Path, most: Option<u64>, edit: impl Fn(usize, &mut Vec<u8>)) -> PathBuf {
        let info =
            |name: &str, rows| TensorInfo { name: name.to_string(), dims: vec![4096, rows], ty: TensorType::Q8_0 };
        let tensors = vec![info("a.weight", 500), info("b.weight", 1300), info("c.weight", 7)];
        let layout = Layout::new(&Metadata::new(), tensors, 32, most).unwrap();
        let name = |i: usize| match layout.parts().len() {
            1 => "x.gguf".to_string(),
            n => format!("x-{:05}-of-{n:05}.gguf", i + 1),
        };
        for (i, part) in layout.parts().iter().enumerate() {
            let name = name(i);
            let data = |tensor: usize| {
                let n = layout.tensors()[tensor].n_bytes().unwrap() as usize;
                let mut bytes: Vec<u8> = (0..n).map(|i| (i * 7 / 5 + tensor) as u8 & 0x3F).collect();
                edit(tensor, &mut bytes);
                bytes
            };
            let mut file = std::fs::File::create(dir.join(&name)).unwrap();
            layout.write_part(i, &mut file, data).unwrap();
            assert_eq!(file.metadata().unwrap().len(), part.total_bytes);
        }
        dir.join(name(0))
    }

    /// What is found, the bytes that were read and those that were reported.
    fn counted(gguf: &Gguf, wanted: Wanted) -> (Found, u64, u64) {
        let (read, reported) = (AtomicU64::new(0), AtomicU64::new(0));
        let read_at = |part: &Mapping, bytes: &mut [u8], offset: u64| {
            read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            part.read_at(bytes, offset)
        };
        let advance = |n: u64| {
            reported.fetch_add(n, Ordering::Relaxed);
        };
        let found = read_with(gguf, wanted, &read_at, &advance, &AtomicBool::new(false)).unwrap();
        (found, read.into_inner(), reported.into_inner())
    }

    const BOTH: Wanted = Wanted { hash: true, blocks: true };

    #[test]
    fn every_byte_is_read_once_for_hash_and_check_together() {
        for most in [None, Some(5 << 20)] {
            let dir = tempfile::tempdir().unwrap();
            let gguf = Gguf::open(&model(dir.path(), most, |_, _| {})).unwrap();
            assert_eq!(gguf.paths().len() > 1, most.is_some());
            let bytes: Vec<u8> = gguf.paths().flat_map(|path| std::fs::read(path).unwrap()).collect();
            let (found, read, reported) = counted(&gguf, BOTH);
            assert_eq!(found.blake3.unwrap(), blake3::hash(&bytes).to_hex().to_string());
            assert_eq!(found.not_finite, None);
            assert_eq!(reported, bytes.len() as u64);
            // A block that begins in a span and ends in the next is read to its end.
            let spans = reported.div_ceil(SPAN_BYTES);
            assert!((reported..reported + spans * BLOCK as u64).contains(&read), "{read} of {reported}");
            let only = |wanted| counted(&gguf, wanted).0;
            assert_eq!(only(Wanted { hash: false, blocks: true }), Found::default());
            assert!(only(Wanted { hash: true, blocks: false }).blake3.is_some());
            assert_eq!(counted(&gguf, Wanted::default()), (Found::default(), 0, 0));
        }
    }

    #[test]
    fn the_first_number_that_is_not_finite_is_found_wherever_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let gguf = Gguf::open(&model(dir.path(), None, |_, _| {})).unwrap();
        let begin = gguf.location(1).1.start as u64;
        // The block of 'b.weight' that lies across the end of the first span, and one in the middle of each span.
        let across = (SPAN_BYTES - begin) / BLOCK as u64;
        assert!(!(SPAN_BYTES - begin).is_multiple_of(BLOCK as u64));
        drop(gguf);
        for block in [0, 1, across, across + 1, 60_000, 128 * 1300 - 1] {
            let nan = |tensor: usize, bytes: &mut Vec<u8>| {
                let blocks = if tensor == 1 { vec![block, 128 * 1300 - 1] } else { vec![] };
                blocks.iter().for_each(|i| bytes[*i as usize * BLOCK..][..2].copy_from_slice(&[0x00, 0x7E]));
            };
            let gguf = Gguf::open(&model(dir.path(), None, nan)).unwrap();
            let (row, column) = (block / 128, block % 128 * 32);
            let wanted =
                format!("tensor 'b.weight' has a NaN or an infinity in its block at row {row}, column {column} (");
            let (found, ..) = counted(&gguf, BOTH);
            assert!(found.not_finite.as_ref().unwrap().starts_with(&wanted), "{found:?}, wanted {wanted}");
        }
    }

    #[test]
    fn stops_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let gguf = Gguf::open(&model(dir.path(), None, |_, _| {})).unwrap();
        let error = read(&gguf, BOTH, &|_| {}, &AtomicBool::new(true)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }
}
