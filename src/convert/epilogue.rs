//! Work on all tensors of a result after they are encoded and before it gets its name.
//!
//! An [`Epilogue`] may change the bytes of the partial files. It changes them only when it knows all changes: a run that
//! is stopped before has the tensors as they were encoded, and the next one begins the epilogue anew. If a run is killed
//! while changes are written, the journal's hashes tell which tensors are not as they were encoded, and the next run encodes
//! them again.

use std::fmt;
use std::sync::atomic::AtomicBool;

use super::Error;
use super::output::Outputs;
use crate::gguf::{Layout, Metadata, TensorInfo};

/// Work on all tensors of a result before it gets its name.
pub trait Epilogue: fmt::Debug + Send + Sync {
    /// Returns everything that the result depends on, as text, which the result records.
    fn identity(&self) -> String;

    /// Does the work on the threads of the current rayon pool.
    ///
    /// # Errors
    /// If a file cannot be read or written, `cancel` was set ([`Error::Cancelled`]), or with [`Error::Epilogue`] if the work
    /// itself fails.
    fn run(&self, written: &Written<'_>, cancel: &AtomicBool) -> Result<(), Error>;
}

/// The tensors of a result that has no name yet.
pub struct Written<'a> {
    pub(super) metadata: &'a Metadata,
    pub(super) layout: &'a Layout,
    pub(super) outputs: &'a Outputs,
}

impl Written<'_> {
    /// Returns the metadata, in which only the hashes of the source may still change.
    pub fn metadata(&self) -> &Metadata {
        self.metadata
    }

    /// Returns the tensors.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.layout.tensors()
    }

    /// Fills `bytes` with those of tensor number `tensor` from `offset` on.
    ///
    /// # Errors
    /// If the system cannot read, or the tensor ends before.
    pub fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        let (part, begin) = self.place(tensor, offset, bytes.len())?;
        self.outputs.read_at(part, bytes, begin)
    }

    /// Replaces the bytes of tensor number `tensor` from `offset` on.
    ///
    /// # Errors
    /// If the system cannot write, or the tensor ends before.
    pub fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let (part, begin) = self
            .place(tensor, offset, bytes.len())
            .map_err(|error| Error::Epilogue { reason: format!("tensor {tensor}: {error}") })?;
        self.outputs.write_at(part, bytes, begin)
    }

    /// Returns the file and the offset in it.
    fn place(&self, tensor: usize, offset: u64, n_bytes: usize) -> std::io::Result<(usize, u64)> {
        let tensor_bytes = self.layout.tensors()[tensor].n_bytes().unwrap_or(0);
        let end = offset.checked_add(n_bytes as u64);
        if end.is_none_or(|end| end > tensor_bytes) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let (part, begin) = self.layout.place(tensor);
        Ok((part, begin + offset))
    }
}
