//! Writes a trace of a model.
//!
//! ```text
//! TraceJob::prepare   open the model ─► tokenize the texts                  no weights read
//! TraceJob::execute   hash, sound blocks? ─► the model reads every window ─► the file      complete, or not there at all
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::Error;
use super::comparison::{check_window, describe_failure, loading, steps_of};
use super::measure::{self, ReadOptions};
use super::models::ModelSettings;
use super::read::session_for;
use super::texts::{self, Cut, TextFile, TokenizedText};
use super::trace::{Header, TracedModel, Writer};
use crate::gguf::Gguf;
use crate::llama::Model;
use crate::placement::Shape;
use crate::report::results::File;
use crate::vocab::vocabulary_hash;
use crate::weights::intact::{self, Found, Wanted};
use crate::weights::{Observer, Stage, file};

/// What to trace, and how.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    /// The model: a GGUF file, or any part of a split one.
    pub model: PathBuf,
    /// The texts to read.
    pub texts: Vec<TextFile>,
    /// How they are cut.
    pub cut: Cut,
    /// The most windows of each text to read.
    pub most_windows: Option<usize>,
    /// How many of the most likely tokens to keep at every position.
    pub k: u32,
    /// How many tokens to draw from all others at every position.
    pub drawn: u32,
    /// Whether to hash the model file, which means reading all of it.
    pub hash: bool,
    /// The trace file.
    pub output: PathBuf,
    /// Whether to replace an existing file.
    pub force: bool,
    /// How the model is run.
    pub models: ModelSettings,
}

/// A trace job that has been checked and is ready to execute.
pub struct TraceJob {
    options: TraceOptions,
    model: Gguf,
    file: File,
    texts: Vec<TokenizedText>,
}

/// What was written.
#[derive(Clone, Copy, Debug)]
pub struct TraceSummary {
    /// Tokens that were scored.
    pub scored: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes for each scored token.
    pub bytes_per_token: f64,
}

impl TraceJob {
    /// Opens the model and tokenizes the texts. Writes nothing.
    ///
    /// # Errors
    /// If the trace exists and must not be replaced, or the model or a text cannot be used.
    pub fn prepare(options: TraceOptions) -> Result<Self, Error> {
        if !options.force && options.output.symlink_metadata().is_ok() {
            return Err(Error::Exists(options.output));
        }
        let model = Gguf::open(&options.model)?;
        let vocabulary = Model::load_vocabulary(&options.model)?;
        check_window(&vocabulary, options.cut, &options.models.session.rope)?;
        let texts = texts::read(&options.texts, options.cut, options.most_windows, vocabulary.tokenizer())?;
        let file = file::describe(&options.model, &model);
        Ok(Self { options, model, file, texts })
    }

    /// Reads the texts with the model, and writes the trace.
    ///
    /// # Errors
    /// If the model fails, the trace cannot be written, or `cancel` was set.
    pub fn execute(self, observer: &dyn Observer, cancel: &Arc<AtomicBool>) -> Result<TraceSummary, Error> {
        let Self { mut options, model: gguf, file, texts } = self;
        options.models.session.cancel = cancel.clone();
        let blake3 = read(&gguf, &options, observer, cancel)?;
        let session = options.models.session.clone();
        let n_vocab = u32::try_from(Shape::of(&gguf).n_vocab).unwrap_or(u32::MAX);
        drop(gguf);

        observer.begin(&Stage::Loading { name: &file.name });
        let of_model = session_for(&session, options.cut, n_vocab);
        let model = options.models.load(&options.model, &of_model, 0).map_err(loading)?;
        let header = Header {
            nibble: env!("CARGO_PKG_VERSION").to_string(),
            model: TracedModel {
                name: file.name.clone(),
                bytes: file.bytes,
                blake3,
                quantization: file.quantization.clone(),
            },
            vocabulary: vocabulary_hash(model.tokenizer()).to_hex().to_string(),
            n_vocab: model.n_vocab(),
            window: options.cut.window,
            drawn: options.drawn,
            ..Header::default()
        };
        let failed = |source| Error::Write { path: options.output.clone(), source };
        let mut writer = Writer::create(&options.output, header, options.k, &texts).map_err(failed)?;
        let windows = texts.iter().map(|text| options.cut.windows(text).len() as u64).sum();
        observer.begin(&Stage::Reading { name: &file.name, windows });
        let read = ReadOptions { session, cut: options.cut };
        let read = measure::trace(&model, &texts, &read, &mut writer, steps_of(observer));
        observer.end();
        if let Some((window, failure)) = read.failures.into_iter().flatten().next() {
            let failure = describe_failure(&failure, window, &texts, options.cut);
            return Err(Error::Traced { path: options.model, failure });
        }
        if read.interrupted {
            return Err(Error::Stopped);
        }
        let scored = writer.rows();
        let bytes_per_token = writer.finish(options.force).map_err(failed)?;
        let bytes = options.output.metadata().map_or(0, |metadata| metadata.len());
        Ok(TraceSummary { scored, bytes, bytes_per_token })
    }
}

/// Reads the model once: returns its hash, if that was asked for, and checks that all its numbers are finite.
fn read(
    gguf: &Gguf,
    options: &TraceOptions,
    observer: &dyn Observer,
    cancel: &AtomicBool,
) -> Result<Option<String>, Error> {
    observer.begin(&Stage::Checking { bytes: gguf.file_bytes() });
    let wanted = Wanted { hash: options.hash, blocks: true };
    let found = intact::read(gguf, wanted, &|bytes| observer.advance(bytes), cancel);
    observer.end();
    let path = || options.model.clone();
    match found {
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Err(Error::Stopped),
        Err(source) => Err(Error::Read { path: path(), source }),
        Ok(Found { not_finite: Some(failure), .. }) => Err(Error::Traced { path: path(), failure }),
        Ok(Found { blake3, .. }) => Ok(blake3),
    }
}
