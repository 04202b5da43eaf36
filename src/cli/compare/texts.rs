//! Comparing by texts.

use anyhow::bail;

use super::{Args, Work};
use crate::cli::interrupt::Interrupted;
use crate::cli::machine::{EngineArgs, interruptible};
use crate::cli::progress;
use crate::engine::{self, SessionOptions};
use crate::evaluate::assemble;
use crate::evaluate::diagnose::first_broken;
use crate::evaluate::measure::{self, Against, Measured, Measurement, Options};
use crate::evaluate::read::{Failure, session_for};
use crate::evaluate::text::{self, Cut, Named, Text};
use crate::evaluate::trace::Trace;
use crate::gguf::Gguf;
use crate::llama;
use crate::llama::{KvType, Model};
use crate::placement::Shape;
use crate::report::results::Slice;
use crate::vocab::{same_vocabulary, vocabulary_hash};

/// Comparing by texts.
#[derive(Debug, clap::Args)]
pub struct TextArgs {
    /// A text to compare on; a name keeps texts apart in the results, as in --text en=wiki.txt --text zh=novel.txt
    #[arg(long, value_name = "NAME=FILE", help_heading = "Measures")]
    text: Vec<Named>,

    #[command(flatten)]
    windows: WindowArgs,

    /// How often the bootstrap draws: more makes the ends of intervals steadier
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(100..=100_000),
          help_heading = "Measures")]
    resamples: u32,

    /// The bootstrap's seed
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Measures")]
    seed: u64,

    #[command(flatten)]
    pub engine: EngineArgs,

    /// Show llama.cpp's log
    #[arg(short, long, help_heading = "Output")]
    pub verbose: bool,
}

impl TextArgs {
    /// Whether there are any.
    pub fn is_given(&self) -> bool {
        !self.text.is_empty()
    }

    /// Whether models are to be run.
    ///
    /// # Errors
    /// Where that is impossible with such a reference.
    pub(super) fn check(&self, args: &Args, is_trace: bool) -> anyhow::Result<bool> {
        llama::set_verbose(self.verbose);
        let runs = is_trace || self.is_given() || args.tasks.is_given();
        if runs && args.reference.is_dir() {
            let folder = args.reference.display();
            bail!("{folder} is a folder, which cannot be run; convert it first: nibble convert {folder} -q BF16");
        }
        Ok(runs)
    }
}

/// How texts are cut.
#[derive(Clone, Debug, clap::Args)]
pub struct WindowArgs {
    /// Tokens of a window; the second half of each is scored [default: 512, or what the trace has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(i64::from(Cut::SMALLEST)..=1 << 20),
          help_heading = "Measures")]
    window: Option<u32>,

    /// Read at most this many windows of each text
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Measures")]
    windows: Option<u32>,
}

impl WindowArgs {
    /// What llama-perplexity takes, too.
    const DEFAULT: u32 = 512;

    /// How texts are cut.
    pub fn cut(&self) -> Cut {
        Cut { window: self.window.unwrap_or(Self::DEFAULT) }
    }

    /// Windows of each text at most.
    pub fn most(&self) -> Option<usize> {
        self.windows.map(|n| n as usize)
    }
}

/// The texts to compare on, those of the trace where there is one; none where only tasks were asked for.
pub(super) fn read(work: &mut Work) -> anyhow::Result<Vec<Text>> {
    let args = &work.args.texts;
    let (texts, cut) = match &work.trace {
        Some(trace) => {
            check_texts(args, trace)?;
            (trace.texts().to_vec(), trace.header().cut())
        }
        None if !args.is_given() => return Ok(Vec::new()),
        None => {
            let cut = args.windows.cut();
            let vocabulary = Model::load_vocabulary(&work.args.reference)?;
            check_window(&vocabulary, cut)?;
            (text::read(&args.text, cut, args.windows.most(), vocabulary.tokenizer())?, cut)
        }
    };
    describe(work, cut, &texts);
    Ok(texts)
}

/// Measures all candidates on all texts.
pub(super) fn measure(work: &mut Work, texts: &[Text]) -> anyhow::Result<()> {
    let session = work.args.texts.engine.session(work.cancel.clone());
    match work.trace.take() {
        Some(trace) => {
            let result = against_trace(work, &trace, texts, session);
            work.trace = Some(trace);
            result
        }
        None => against_model(work, texts, session),
    }
}

/// All models in memory at once, one window after the other.
fn against_model(work: &mut Work, texts: &[Text], session: SessionOptions) -> anyhow::Result<()> {
    let cut = work.args.texts.windows.cut();
    let shape = Shape::of(&Gguf::open(&work.args.reference)?);
    let of_models = session_for(&session, cut, u32::try_from(shape.n_vocab).unwrap_or(u32::MAX));

    let bar = progress::Steps::new(1, work.args.is_silent());
    bar.say("loading");
    let reference = interruptible(work.args.texts.engine.load(&work.args.reference, &of_models, 0))?;
    let mut beside = engine::memory(&reference, &of_models);
    let (mut models, mut places) = (Vec::new(), Vec::new());
    for i in 0..work.paths.len() {
        if work.results.candidates[i].failure.is_some() {
            continue;
        }
        match work.args.texts.engine.load(&work.paths[i], &of_models, beside) {
            Ok(model) => match same_vocabulary(reference.tokenizer(), model.tokenizer()) {
                Ok(()) => {
                    beside = beside.saturating_add(engine::memory(&model, &of_models));
                    models.push(model);
                    places.push(i);
                }
                Err(reason) => work.fail(i, other_tokenizer(&reason)),
            },
            Err(engine::Error::LoadCancelled) => return Err(Interrupted("loading was interrupted".to_string()).into()),
            Err(error @ engine::Error::Memory(_)) => {
                work.fail(
                    i,
                    format!("{error}; with a trace of the reference (nibble trace) only one model is in memory"),
                );
            }
            Err(error) => work.fail(i, error.to_string()),
        }
    }
    if models.is_empty() {
        bail!("no candidate is left to compare");
    }
    let n_windows = texts.iter().map(|text| cut.windows(text).len()).sum();
    bar.begin(n_windows, &format!("{} models", models.len() + 1));
    let models: Vec<&Model> = models.iter().collect();
    let options = Options { session, cut };
    let measurement =
        measure::measure(Against::Model(&reference), &models, texts, &options, |done| bar.set(done as u64));
    bar.clear();
    if let Some((window, failure)) = &measurement.failure {
        bail!("the reference cannot be measured: {}", diagnosed(failure, *window, texts, &options, &reference));
    }
    work.results.interrupted |= measurement.interrupted;
    for ((measured, place), model) in measurement.candidates.iter().zip(&places).zip(&models) {
        if let Some((window, failure)) = &measured.failure {
            work.fail(*place, diagnosed(failure, *window, texts, &options, model));
        }
    }
    let measured: Vec<(usize, &Measured)> = places.iter().copied().zip(&measurement.candidates).collect();
    assemble::fill(&mut work.results, &measurement, &measured, texts, cut, reference.tokenizer());
    Ok(())
}

/// One candidate after the other: what the reference expects is known.
fn against_trace(work: &mut Work, trace: &Trace, texts: &[Text], session: SessionOptions) -> anyhow::Result<()> {
    let cut = trace.header().cut();
    let options = Options { session, cut };
    let of_models = session_for(&options.session, cut, trace.header().n_vocab);
    let n_windows: usize = texts.iter().map(|text| cut.windows(text).len()).sum();
    let mut known: Option<Measurement> = None;
    let mut all: Vec<(usize, Measured)> = Vec::new();
    for i in 0..work.paths.len() {
        if work.results.candidates[i].failure.is_some() {
            continue;
        }
        let name = work.results.candidates[i].file.name.clone();
        let bar = progress::Steps::new(1, work.args.is_silent());
        bar.say(&format!("loading {name}"));
        let model = match work.args.texts.engine.load(&work.paths[i], &of_models, 0) {
            Ok(model) => model,
            Err(engine::Error::LoadCancelled) => {
                work.results.interrupted = true;
                return Ok(());
            }
            Err(error) => {
                work.fail(i, error.to_string());
                continue;
            }
        };
        if vocabulary_hash(model.tokenizer()).to_hex().as_str() != trace.header().vocabulary {
            work.fail(i, other_tokenizer("the trace was made with a model of another vocabulary"));
            continue;
        }
        bar.begin(n_windows, &name);
        let mut measurement =
            measure::measure(Against::Trace(trace), &[&model], texts, &options, |done| bar.set(done as u64));
        bar.clear();
        let measured = measurement.candidates.pop().unwrap_or_default();
        work.results.interrupted |= measurement.interrupted;
        if let Some((window, failure)) = &measured.failure {
            work.fail(i, diagnosed(failure, *window, texts, &options, &model));
            continue;
        }
        // What has read less than the others is not compared with them.
        if measurement.interrupted && !all.is_empty() {
            return Ok(());
        }
        let known = known.get_or_insert(measurement);
        all.push((i, measured));
        let measured: Vec<(usize, &Measured)> = all.iter().map(|(i, measured)| (*i, measured)).collect();
        assemble::fill(&mut work.results, known, &measured, texts, cut, model.tokenizer());
        work.save()?;
        if work.results.interrupted {
            return Ok(());
        }
    }
    Ok(())
}

/// That what was typed is what the trace has.
fn check_texts(args: &TextArgs, trace: &Trace) -> anyhow::Result<()> {
    if args.windows.window.is_some_and(|window| window != trace.header().window) {
        bail!("the trace has windows of {} tokens; leave --window away", trace.header().window);
    }
    if args.windows.windows.is_some() {
        bail!("a trace is read from end to end; leave --windows away");
    }
    for named in &args.text {
        let Some(traced) = trace.header().texts.iter().find(|text| text.name == named.name) else {
            let names: Vec<&str> = trace.header().texts.iter().map(|text| text.name.as_str()).collect();
            bail!("the trace has no text called '{}'; it has {}", named.name, names.join(", "));
        };
        if !text::is_text(&named.path, &traced.blake3)? {
            bail!("{} is not the text '{}' that the trace was made of", named.path.display(), named.name);
        }
    }
    Ok(())
}

/// llama.cpp reads on past what a model was trained on, and what comes of it says nothing.
pub fn check_window(model: &Model, cut: Cut) -> anyhow::Result<()> {
    match model.n_ctx_train() {
        Some(trained) if cut.window > trained => {
            bail!("--window is {}, and the model was trained on {trained} tokens at a time", cut.window)
        }
        _ => Ok(()),
    }
}

/// Says in the results what is read, and how.
fn describe(work: &mut Work, cut: Cut, texts: &[Text]) {
    let session = work.args.texts.engine.session(work.cancel.clone());
    let settings = &mut work.results.settings;
    settings.resamples = work.args.texts.resamples;
    settings.seed = work.args.texts.seed;
    settings.window = cut.window;
    settings.context = cut.context() as u32 + 1;
    settings.threads = session.n_threads();
    settings.kv_type = match session.kv_type {
        KvType::F32 => "f32",
        KvType::F16 => "f16",
        KvType::Q8_0 => "q8_0",
    }
    .to_string();
    work.results.slices = texts
        .iter()
        .map(|text| Slice {
            name: text.name.clone(),
            path: text.path.display().to_string(),
            blake3: text.blake3.clone(),
            tokens: text.n_tokens,
            ..Slice::default()
        })
        .collect();
    for candidate in &mut work.results.candidates {
        candidate.slices = vec![None; texts.len()];
    }
    work.results.reference.slices = vec![None; texts.len()];
}

fn other_tokenizer(reason: &str) -> String {
    format!("it has another tokenizer than the reference: {reason}")
}

/// Where it failed, why, and what of the model is to blame where that can be found.
fn diagnosed(failure: &Failure, window: usize, texts: &[Text], options: &Options, model: &Model) -> String {
    let said = describe_failure(failure, window, texts, options.cut);
    let Failure::Broken { .. } = failure else { return said };
    let tokens = texts.iter().flat_map(|text| options.cut.windows(text)).nth(window).map(|(tokens, _)| tokens);
    match tokens.and_then(|tokens| first_broken(model, tokens, options.cut, &options.session)) {
        Some(found) => format!("{said}; the first to give them is {found}"),
        None => said,
    }
}

/// Where it failed, and why.
pub fn describe_failure(failure: &Failure, window: usize, texts: &[Text], cut: Cut) -> String {
    let mut before = 0;
    for text in texts {
        let n = cut.windows(text).len();
        if window < before + n {
            return format!("in window {} of {n} of '{}': {failure}", window - before + 1, text.name);
        }
        before += n;
    }
    failure.to_string()
}
