//! What is tuned: for each block of a matrix its stored scales, and the weights of the norms.
//!
//! ```text
//!  block   d = d₀ (1 + a)        dmin = dmin₀ (1 + a + b / 4)            norm   w = w₀ (1 + a)
//! ```
//!
//! a stretches a block, b moves it: as a change of a moves dmin along, the two hardly depend on one another. A min is a few
//! times as large as a weight, which the 4 makes up for. Changes are relative, so that one rate suits all of them.
//! They have single precision; d and dmin are computed with as they are stored, rounded to 16 bits.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use rayon::prelude::*;

use crate::convert::Written;
use crate::gguf::{Metadata, TensorInfo, TensorType};
use crate::linear::{View, add_product};
use crate::quant::rounding::Halves;
use crate::quant::{self, Format, Half};
use crate::transformer::{Error, Seen, Weights};

/// The part of a change b that dmin gets.
pub(super) const SHARE: f32 = 0.25;

/// Rows whose gradients are computed at a time.
const ROWS_AT_ONCE: usize = 1024;

/// Rows that a thread reads at a time.
const ROWS_A_READ: usize = 16;

/// The largest half.
const MOST: f32 = 65504.0;

const EMBEDDING: &str = "token_embd.weight";

/// A quantized model as it was encoded.
pub trait Draft: Sync {
    /// Its metadata.
    fn metadata(&self) -> &Metadata;

    /// Its tensors.
    fn tensors(&self) -> &[TensorInfo];

    /// Fills `bytes` with those of tensor number `tensor` from `offset` on.
    ///
    /// # Errors
    /// If they cannot be read.
    fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
}

impl Draft for Written<'_> {
    fn metadata(&self) -> &Metadata {
        self.metadata()
    }

    fn tensors(&self) -> &[TensorInfo] {
        self.tensors()
    }

    fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read(tensor, offset, bytes)
    }
}

/// A tensor of the draft.
struct Tensor {
    name: String,
    format: &'static Format,
    columns: usize,
    rows: usize,
    /// Numbers that are tuned: for each block of `block` weights so many.
    of_block: usize,
    block: usize,
}

impl Tensor {
    fn new(info: &TensorInfo) -> Option<Self> {
        let format = quant::format(info.ty)?;
        let (columns, rows) = (usize::try_from(info.row_len()).ok()?, usize::try_from(info.n_rows()?).ok()?);
        let is_norm = info.ty == TensorType::F32 && info.dims.len() == 1 && info.name.ends_with("_norm.weight");
        let of_block = if is_norm { 1 } else { format.n_halves() };
        let block = info.ty.block_len();
        // A product with a vector is of a norm or a bias.
        let of_block = if !is_norm && info.dims.len() != 2 { 0 } else { of_block };
        Some(Self { name: info.name.clone(), format, columns, rows, of_block, block })
    }

    fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.columns)
    }

    /// Numbers that are tuned in a row.
    fn of_row(&self) -> usize {
        self.columns / self.block * self.of_block
    }

    fn is_norm(&self) -> bool {
        self.format.n_halves() == 0
    }

    /// Changes the scales of rows, or the weights of a norm.
    fn change(&self, changes: &[f32], bytes: &mut [u8]) {
        if self.of_block == 0 {
            return;
        }
        if self.is_norm() {
            for (bytes, change) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(changes) {
                *bytes = (f32::from_le_bytes(*bytes) * (1.0 + change)).to_le_bytes();
            }
            return;
        }
        let all = self.format.halves(bytes).unwrap_or_default();
        let blocks = bytes.chunks_exact_mut(self.format.ty.block_bytes()).zip(all);
        for ((block, halves), changes) in blocks.zip(changes.chunks_exact(self.of_block)) {
            if changes.iter().any(|change| *change != 0.0) {
                self.format.set_halves(block, changed(halves, changes));
            }
        }
    }

    /// Turns the gradients of d and dmin into those of the changes.
    fn add_chained(&self, blocks: &[u8], sums: &[[f64; 2]], gradients: &mut [f32]) {
        let halves = self.format.halves(blocks).unwrap_or_default();
        for ((halves, sums), gradients) in halves.iter().zip(sums).zip(gradients.chunks_exact_mut(self.of_block)) {
            let [d, dmin] = halves.map(|half| f64::from(half.value()));
            gradients[0] += (d * sums[0] + dmin * sums[1]) as f32;
            if let Some(of_min) = gradients.get_mut(1) {
                *of_min += (f64::from(SHARE) * dmin * sums[1]) as f32;
            }
        }
    }
}

/// The scales of a block after `changes`, which are finite.
fn changed([d, dmin]: Halves, changes: &[f32]) -> Halves {
    let times = |half: Half, change: f32| Half::new((half.value() * (1.0 + change)).clamp(-MOST, MOST));
    let shift = changes.get(1).map_or(0.0, |shift| SHARE * shift);
    [times(d, changes[0]), times(dmin, changes[0] + shift)]
}

/// Which numbers of a draft are tuned.
pub struct Layout<'a> {
    draft: &'a dyn Draft,
    tensors: Vec<Option<Tensor>>,
    by_name: HashMap<&'a str, usize>,
}

/// A number for each one that is tuned, by tensor.
pub type Numbers = Vec<Vec<f32>>;

impl<'a> Layout<'a> {
    pub fn new(draft: &'a dyn Draft) -> Self {
        let tensors = draft.tensors().iter().map(Tensor::new).collect();
        let by_name = draft.tensors().iter().enumerate().map(|(index, info)| (info.name.as_str(), index)).collect();
        Self { draft, tensors, by_name }
    }

    /// Returns zeros.
    pub fn zeros(&self) -> Numbers {
        let of = |tensor: &Option<Tensor>| tensor.as_ref().map_or(0, |tensor| tensor.rows * tensor.of_row());
        self.tensors.iter().map(|tensor| vec![0.0; of(tensor)]).collect()
    }

    /// Returns whether tensor number `tensor` is a norm.
    pub fn is_norm(&self, tensor: usize) -> bool {
        self.tensors[tensor].as_ref().is_some_and(Tensor::is_norm)
    }

    fn tuned(&self, name: &str) -> Option<(usize, &Tensor)> {
        let index = *self.by_name.get(name)?;
        let tensor = self.tensors[index].as_ref().filter(|tensor| tensor.of_block > 0)?;
        Some((index, tensor))
    }

    fn read(&self, index: usize, tensor: &Tensor, rows: Range<usize>) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; rows.len() * tensor.row_bytes()];
        let unread = |source: io::Error| Error::Read { tensor: tensor.name.clone(), source: Box::new(source) };
        self.draft.read(index, (rows.start * tensor.row_bytes()) as u64, &mut bytes).map_err(unread)?;
        Ok(bytes)
    }

    /// Adds the gradients with respect to the changes of the tensor `name`, from what is seen of it.
    ///
    /// # Errors
    /// If its blocks cannot be read.
    pub fn add(&self, name: &str, seen: &Seen<'_>, gradients: &mut Numbers) -> Result<(), Error> {
        let Some((index, tensor)) = self.tuned(name) else { return Ok(()) };
        let gradients = &mut gradients[index];
        let columns = tensor.columns;
        if tensor.is_norm() {
            let bytes = self.read(index, tensor, 0..1)?;
            let mut sums = vec![0.0f64; columns];
            for (inputs, of_outputs) in seen.inputs.chunks_exact(columns).zip(seen.gradients.chunks_exact(columns)) {
                for ((sum, x), g) in sums.iter_mut().zip(inputs).zip(of_outputs) {
                    *sum += f64::from(*x) * f64::from(*g);
                }
            }
            for ((gradient, sum), weight) in gradients.iter_mut().zip(sums).zip(bytes.as_chunks::<4>().0) {
                *gradient += (sum * f64::from(f32::from_le_bytes(*weight))) as f32;
            }
            return Ok(());
        }
        let blocks = columns / tensor.block;
        let mut of_weights = Vec::new();
        for start in (0..tensor.rows).step_by(ROWS_AT_ONCE) {
            let rows = start..tensor.rows.min(start + ROWS_AT_ONCE);
            of_weights.clear();
            of_weights.resize(rows.len() * columns, 0.0);
            let of_outputs = View::strided(&seen.gradients[start..], seen.n_tokens, rows.len(), tensor.rows);
            add_product(of_outputs.transposed(), View::new(seen.inputs, columns), &mut of_weights);
            let of_rows = &mut gradients[start * tensor.of_row()..rows.end * tensor.of_row()];
            let parts = of_rows.par_chunks_mut(ROWS_A_READ * tensor.of_row());
            parts.zip(of_weights.par_chunks(ROWS_A_READ * columns)).enumerate().try_for_each(
                |(part, (gradients, of_weights))| {
                    let first = start + part * ROWS_A_READ;
                    let n_rows = of_weights.len() / columns;
                    let bytes = self.read(index, tensor, first..first + n_rows)?;
                    let mut sums = vec![[0.0; 2]; n_rows * blocks];
                    tensor.format.add_halves_gradients(&bytes, of_weights, &mut sums);
                    tensor.add_chained(&bytes, &sums, gradients);
                    Ok(())
                },
            )?;
        }
        Ok(())
    }

    /// Adds the gradients with respect to the changes of the embedding, where `gradients` are those of what enters the first
    /// layer.
    ///
    /// # Errors
    /// If its blocks cannot be read.
    pub fn add_embedding(&self, tokens: &[u32], of_hidden: &[f32], gradients: &mut Numbers) -> Result<(), Error> {
        let Some((index, tensor)) = self.tuned(EMBEDDING) else { return Ok(()) };
        for (&token, of_weights) in tokens.iter().zip(of_hidden.chunks_exact(tensor.columns)) {
            let row = token as usize;
            let bytes = self.read(index, tensor, row..row + 1)?;
            let mut sums = vec![[0.0; 2]; tensor.columns / tensor.block];
            tensor.format.add_halves_gradients(&bytes, of_weights, &mut sums);
            let n = tensor.of_row();
            tensor.add_chained(&bytes, &sums, &mut gradients[index][row * n..][..n]);
        }
        Ok(())
    }

    /// Calls `write` with the bytes of each row that `changes` change: the tensor's number, the row's offset in it, and the
    /// bytes.
    ///
    /// # Errors
    /// If blocks cannot be read, or that of `write`.
    pub fn write<E: From<Error>>(
        &self,
        changes: &Numbers,
        mut write: impl FnMut(usize, u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for (index, (tensor, changes)) in self.tensors.iter().zip(changes).enumerate() {
            let Some(tensor) = tensor.as_ref().filter(|tensor| tensor.of_block > 0) else { continue };
            for (part, changes) in changes.chunks(ROWS_AT_ONCE * tensor.of_row()).enumerate() {
                let first = part * ROWS_AT_ONCE;
                let n_rows = changes.len() / tensor.of_row();
                let mut bytes = self.read(index, tensor, first..first + n_rows)?;
                let rows =
                    bytes.par_chunks_exact_mut(tensor.row_bytes()).zip(changes.par_chunks_exact(tensor.of_row()));
                rows.for_each(|(bytes, changes)| tensor.change(changes, bytes));
                write(index, (first * tensor.row_bytes()) as u64, &bytes)?;
            }
        }
        Ok(())
    }
}

/// The weights of a draft after changes.
pub struct Changed<'a> {
    pub layout: &'a Layout<'a>,
    pub changes: &'a Numbers,
}

impl Weights for Changed<'_> {
    fn names(&self) -> Vec<&str> {
        self.layout.draft.tensors().iter().map(|tensor| tensor.name.as_str()).collect()
    }

    fn dims(&self, name: &str) -> Option<[usize; 2]> {
        let tensor = &self.layout.draft.tensors()[*self.layout.by_name.get(name)?];
        Some([usize::try_from(tensor.row_len()).ok()?, usize::try_from(tensor.n_rows()?).ok()?])
    }

    fn rows(&self, name: &str, rows: Range<usize>, weights: &mut Vec<f32>) -> Result<(), Error> {
        let index = self.layout.by_name.get(name).ok_or_else(|| Error::Missing { tensor: name.to_string() })?;
        let unread = || {
            let reason = format!("its type is {}", self.layout.draft.tensors()[*index].ty);
            Error::Read { tensor: name.to_string(), source: reason.into() }
        };
        let tensor = self.layout.tensors[*index].as_ref().ok_or_else(unread)?;
        let mut bytes = self.layout.read(*index, tensor, rows.clone())?;
        let n = tensor.of_row();
        tensor.change(&self.changes[*index][rows.start * n..rows.end * n], &mut bytes);
        weights.resize(rows.len() * tensor.columns, 0.0);
        tensor.format.dequantize(&bytes, weights);
        Ok(())
    }
}
