//! `nibble trace`

use crate::base::units;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use anyhow::{Context, bail};

use super::compare::WindowArgs;
use super::interrupt::{self, Interrupted};
use super::machine::{EngineArgs, interruptible};
use super::progress;
use crate::evaluate::file;
use crate::evaluate::measure::{self, Options};
use crate::evaluate::read::session_for;
use crate::evaluate::text::{self, Named};
use crate::evaluate::trace::{Header, TracedModel, Writer};
use crate::gguf::Gguf;
use crate::llama::Model;
use crate::placement::Shape;
use crate::report::results::File;
use crate::vocab::vocabulary_hash;

/// Write down what a model expects along texts, so that others can compare with it without running it
///
/// A trace has the most likely tokens at every position, some of the others, and the texts as tokens: about 300 bytes a
/// scored token, where all probabilities of Yi's vocabulary take 256,000. Whoever has it needs neither the model nor the
/// texts: `nibble compare FILE.trace CANDIDATE...`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nibble trace Yi-34B-BF16.gguf --text en=wiki.txt --text zh=novel.txt -o Yi-34B.trace
  nibble compare Yi-34B.trace Yi-34B-Q4_K_M.gguf Yi-34B-IQ4_XS.gguf")]
pub struct Args {
    /// The model: the one in 16 bits, or the best file there is
    model: PathBuf,

    /// A text to read; a name keeps texts apart, as in --text en=wiki.txt --text zh=novel.txt
    #[arg(long, value_name = "NAME=FILE", required = true)]
    text: Vec<Named>,

    /// The trace
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Replace the trace where it exists
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    windows: WindowArgs,

    /// The most likely tokens to keep at every position
    #[arg(long, value_name = "K", default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=65_536),
          help_heading = "Measures")]
    top: u32,

    /// Tokens to draw of all others at every position: they keep the mean KLD from coming out too small
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(0..=4096),
          help_heading = "Measures")]
    drawn: u32,

    /// Compute no hash of the model file, which takes reading all of it
    #[arg(long, help_heading = "Measures")]
    no_hash: bool,

    #[command(flatten)]
    engine: EngineArgs,

    /// Show llama.cpp's log
    #[arg(short, long)]
    verbose: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    crate::llama::set_verbose(args.verbose);
    if !args.force && args.output.symlink_metadata().is_ok() {
        bail!("{} exists already; --force replaces it", args.output.display());
    }
    let cancel = interrupt::listen()?;
    let stopped = || Interrupted("stopped; no trace was written".to_string());
    let gguf = Gguf::open(&args.model)?;
    let cut = args.windows.cut();
    let vocabulary = Model::load_vocabulary(&args.model)?;
    super::compare::check_window(&vocabulary, cut)?;
    let texts = text::read(&args.text, cut, args.windows.most(), vocabulary.tokenizer())?;
    let about = File::of_gguf(&args.model, &gguf);
    let bar = progress::Steps::new(about.bytes, args.verbose);
    bar.say("computing the model's hash");
    let hash = || {
        file::blake3(&gguf, |bytes| {
            bar.advance(bytes);
            !cancel.load(Ordering::Relaxed)
        })
    };
    let blake3 = match (!args.no_hash).then(hash).transpose() {
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Err(stopped().into()),
        hash => hash.with_context(|| format!("cannot read {}", args.model.display()))?,
    };
    let session = args.engine.session(cancel);
    let n_vocab = u32::try_from(Shape::of(&gguf).n_vocab).unwrap_or(u32::MAX);
    drop(gguf);
    let model = interruptible(args.engine.load(&args.model, &session_for(&session, cut, n_vocab), 0))?;
    let header = Header {
        nibble: env!("CARGO_PKG_VERSION").to_string(),
        model: TracedModel { name: about.name, bytes: about.bytes, blake3, quantization: about.quantization },
        vocabulary: vocabulary_hash(model.tokenizer()).to_hex().to_string(),
        n_vocab: model.n_vocab(),
        window: cut.window,
        drawn: args.drawn,
        ..Header::default()
    };
    let failed = || format!("{} could not be written", args.output.display());
    let mut writer = Writer::create(&args.output, header, args.top, &texts).with_context(failed)?;
    let n_windows = texts.iter().map(|text| cut.windows(text).len()).sum();
    bar.begin(n_windows, "windows");
    let options = Options { session, cut };
    let read = measure::trace(&model, &texts, &options, &mut writer, |done| bar.set(done as u64));
    bar.clear();
    if let Some((window, failure)) = read.failures.into_iter().flatten().next() {
        bail!("{}: {}", args.model.display(), super::compare::describe_failure(&failure, window, &texts, cut));
    }
    if read.interrupted {
        return Err(stopped().into());
    }
    let rows = writer.rows();
    let bytes_a_token = writer.finish(args.force).with_context(failed)?;
    let bytes = args.output.metadata().map_or(0, |metadata| metadata.len());
    eprintln!(
        "{}: {} scored tokens of {} text{}, {}, {bytes_a_token:.0} bytes a token",
        args.output.display(),
        units::count(rows),
        texts.len(),
        if texts.len() == 1 { "" } else { "s" },
        units::bytes(bytes),
    );
    Ok(())
}
