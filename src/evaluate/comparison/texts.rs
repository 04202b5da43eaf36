//! Compares models by texts.

use super::super::diagnose::first_broken;
use super::super::measure::{self, Against, Columns, Measured, Measurement, ReadOptions};
use super::super::read::{Failure, session_for};
use super::super::texts::{self, Cut, TokenizedText};
use super::super::trace::Trace;
use super::super::{Error, assemble};
use super::Comparison;
use crate::engine;
use crate::gguf::Gguf;
use crate::llama::{Model, RopeOptions};
use crate::placement::Shape;
use crate::vocab::{same_vocabulary, vocabulary_hash};
use crate::weights::{FilesError, Observer, Stage};

impl Comparison {
    /// Reads the texts, or takes those of the trace, and checks that all candidates read the same tokens. Does nothing
    /// if only tasks or weights are compared.
    pub(super) fn prepare_texts(&mut self) -> Result<(), Error> {
        (self.texts, self.cut) = match &self.trace {
            Some(trace) => {
                self.check_traced_texts(trace)?;
                (trace.texts().to_vec(), trace.header().cut())
            }
            None if self.options.texts.is_empty() => return Ok(()),
            None => {
                let cut = self.options.window.map_or(Cut::USUAL, |window| Cut { window });
                let vocabulary = Model::load_vocabulary(&self.options.files.reference)?;
                check_window(&vocabulary, cut, &self.options.models.session.rope)?;
                let most = self.options.most_windows;
                (texts::read(&self.options.texts, cut, most, vocabulary.tokenizer())?, cut)
            }
        };
        self.describe_texts();
        self.check_vocabularies()
    }

    /// Checks that the texts and windows that were asked for are those of the trace.
    fn check_traced_texts(&self, trace: &Trace) -> Result<(), Error> {
        let traced = trace.header().window;
        if let Some(wanted) = self.options.window.filter(|window| *window != traced) {
            return Err(Error::OtherWindow { traced, wanted });
        }
        if self.options.most_windows.is_some() {
            return Err(Error::TraceIsWhole);
        }
        for file in &self.options.texts {
            let Some(traced) = trace.header().texts.iter().find(|text| text.name == file.name) else {
                let known = trace.header().texts.iter().map(|text| text.name.clone()).collect();
                return Err(Error::NotTraced { name: file.name.clone(), known });
            };
            if texts::hash(&file.path)? != traced.blake3 {
                return Err(Error::OtherText { path: file.path.clone(), name: file.name.clone() });
            }
        }
        Ok(())
    }

    /// Records a failure of the candidates whose vocabulary is not the reference's. One whose vocabulary cannot be read
    /// fails when it is loaded.
    fn check_vocabularies(&mut self) -> Result<(), Error> {
        let reference = match &self.trace {
            Some(_) => None,
            None => Some(Model::load_vocabulary(&self.options.files.reference)?),
        };
        for i in self.left() {
            let Ok(candidate) = Model::load_vocabulary(&self.files.candidates()[i]) else { continue };
            let same = match (&reference, &self.trace) {
                (Some(reference), _) => same_vocabulary(reference.tokenizer(), candidate.tokenizer()),
                (None, Some(trace)) if !has_vocabulary(trace, &candidate) => Err(OTHER_VOCABULARY.to_string()),
                _ => Ok(()),
            };
            if let Err(reason) = same {
                let failure = format!("it has another tokenizer than the reference: {reason}");
                self.files.results_mut().candidates[i].failure = Some(failure);
            }
        }
        Ok(self.files.check_any_is_left()?)
    }

    /// Measures all candidates on all texts.
    pub(super) fn read_texts(&mut self, observer: &dyn Observer) -> Result<(), Error> {
        match self.trace.take() {
            Some(trace) => {
                let result = self.read_beside_trace(&trace, observer);
                self.trace = Some(trace);
                result
            }
            None => self.read_beside_reference(observer),
        }
    }

    fn n_windows(&self) -> u64 {
        self.texts.iter().map(|text| self.cut.windows(text).len() as u64).sum()
    }

    /// Measures with all models in memory at once, one window after the other.
    fn read_beside_reference(&mut self, observer: &dyn Observer) -> Result<(), Error> {
        let read = ReadOptions { session: self.options.models.session.clone(), cut: self.cut };
        let shape = Shape::of(&Gguf::open(&self.options.files.reference)?);
        let of_models = session_for(&read.session, self.cut, u32::try_from(shape.n_vocab).unwrap_or(u32::MAX));

        observer.begin(&Stage::Loading { name: "the models" });
        let settings = self.options.models.clone();
        let reference = settings.load(&self.options.files.reference, &of_models, 0).map_err(loading)?;
        self.note_layout(&self.options.files.reference.clone(), &reference);
        let mut beside = engine::memory(&reference, &of_models);
        let (mut models, mut places) = (Vec::new(), Vec::new());
        for i in self.left() {
            let path = self.files.candidates()[i].clone();
            match settings.load(&path, &of_models, beside) {
                Ok(model) => {
                    self.note_layout(&path, &model);
                    beside = beside.saturating_add(engine::memory(&model, &of_models));
                    models.push(model);
                    places.push(i);
                }
                Err(error @ engine::Error::LoadCancelled) => return Err(loading(error)),
                Err(error @ engine::Error::Memory(_)) => {
                    let hint = "compared with a trace of the reference, only one model has to be in memory";
                    self.files.fail(i, format!("{error}; {hint}"), observer);
                }
                Err(error) => self.files.fail(i, error.to_string(), observer),
            }
        }
        if models.is_empty() {
            // Their failures have already been reported.
            return Err(FilesError::NoneLeft { failures: Vec::new() }.into());
        }
        let name = format!("{} models", models.len() + 1);
        observer.begin(&Stage::Reading { name: &name, windows: self.n_windows() });
        let models: Vec<&Model> = models.iter().collect();
        let measurement = measure::measure(Against::Model(&reference), &models, &self.texts, &read, steps_of(observer));
        observer.end();
        if let Some((window, failure)) = &measurement.failure {
            return Err(Error::Reference(diagnosed(failure, *window, &self.texts, &read, &reference)));
        }
        self.files.results_mut().interrupted |= measurement.interrupted;
        for ((measured, place), model) in measurement.candidates.iter().zip(&places).zip(&models) {
            if let Some((window, failure)) = &measured.failure {
                self.files.fail(*place, diagnosed(failure, *window, &self.texts, &read, model), observer);
            }
        }
        let columns: Vec<(usize, &Columns)> =
            places.iter().copied().zip(measurement.candidates.iter().map(|measured| &measured.columns)).collect();
        let results = self.files.results_mut();
        assemble::fill(results, &measurement.windows, &measurement.reference_nll, &columns);
        for (place, measured) in places.iter().zip(&measurement.candidates) {
            results.candidates[*place].changed = assemble::changes(
                &measured.changed,
                &measurement.windows,
                &self.texts,
                self.cut,
                reference.tokenizer(),
            );
        }
        Ok(())
    }

    /// Measures one candidate after the other, because the reference's predictions are known.
    fn read_beside_trace(&mut self, trace: &Trace, observer: &dyn Observer) -> Result<(), Error> {
        let read = ReadOptions { session: self.options.models.session.clone(), cut: self.cut };
        let of_models = session_for(&read.session, self.cut, trace.header().n_vocab);
        let mut known: Option<Measurement> = None;
        let mut all: Vec<(usize, Columns)> = Vec::new();
        for i in self.left() {
            let name = self.results().candidates[i].file.name.clone();
            observer.begin(&Stage::Loading { name: &name });
            let path = self.files.candidates()[i].clone();
            let model = match self.options.models.load(&path, &of_models, 0) {
                Ok(model) => model,
                Err(engine::Error::LoadCancelled) => {
                    self.files.results_mut().interrupted = true;
                    return Ok(());
                }
                Err(error) => {
                    self.files.fail(i, error.to_string(), observer);
                    continue;
                }
            };
            self.note_layout(&path, &model);
            observer.begin(&Stage::Reading { name: &name, windows: self.n_windows() });
            let mut measurement =
                measure::measure(Against::Trace(trace), &[&model], &self.texts, &read, steps_of(observer));
            observer.end();
            let measured = measurement.candidates.pop().unwrap_or_default();
            self.files.results_mut().interrupted |= measurement.interrupted;
            if let Some((window, failure)) = &measured.failure {
                self.files.fail(i, diagnosed(failure, *window, &self.texts, &read, &model), observer);
                continue;
            }
            // A candidate that has read less than the others is not compared with them.
            if measurement.interrupted && !all.is_empty() {
                return Ok(());
            }
            let Measured { columns, changed, .. } = measured;
            all.push((i, columns));
            let known = known.get_or_insert(measurement);
            let columns: Vec<(usize, &Columns)> = all.iter().map(|(i, columns)| (*i, columns)).collect();
            let results = self.files.results_mut();
            assemble::fill(results, &known.windows, &known.reference_nll, &columns);
            results.candidates[i].changed =
                assemble::changes(&changed, &known.windows, &self.texts, self.cut, model.tokenizer());
            self.save(observer)?;
            if self.results().interrupted {
                return Ok(());
            }
        }
        Ok(())
    }
}

const OTHER_VOCABULARY: &str = "the trace was made with a model of another vocabulary";

fn has_vocabulary(trace: &Trace, model: &Model) -> bool {
    vocabulary_hash(model.tokenizer()).to_hex().as_str() == trace.header().vocabulary
}

/// Converts an error from loading; an interruption has its own error.
pub(in crate::evaluate) fn loading(error: engine::Error) -> Error {
    match error {
        engine::Error::LoadCancelled => Error::LoadingStopped,
        error => error.into(),
    }
}

/// Converts the number of windows done into steps for an observer.
pub(in crate::evaluate) fn steps_of(observer: &dyn Observer) -> impl FnMut(usize) + '_ {
    let mut before = 0;
    move |done| {
        observer.advance((done - before) as u64);
        before = done;
    }
}

/// Checks that a model was trained on windows of this size, or that its positions are encoded for them. llama.cpp would read longer
/// ones too, but the results would be meaningless.
///
/// # Errors
/// If the window is longer.
pub fn check_window(model: &Model, cut: Cut, rope: &RopeOptions) -> Result<(), Error> {
    match model.n_ctx_train().map(|trained| rope.n_ctx(trained)) {
        Some(trained) if cut.window > trained => Err(Error::WindowBeyondTraining { window: cut.window, trained }),
        _ => Ok(()),
    }
}

/// Says where and why a model failed, and which of its tensors caused it, if that can be found.
pub(in crate::evaluate) fn diagnosed(
    failure: &Failure,
    window: usize,
    texts: &[TokenizedText],
    read: &ReadOptions,
    model: &Model,
) -> String {
    let said = describe_failure(failure, window, texts, read.cut);
    let Failure::Broken { .. } = failure else { return said };
    let tokens = texts.iter().flat_map(|text| read.cut.windows(text)).nth(window).map(|(tokens, _)| tokens);
    match tokens.and_then(|tokens| first_broken(model, tokens, read.cut, &read.session)) {
        Some(found) => format!("{said}; the first tensor with such numbers is {found}"),
        None => said,
    }
}

/// Says in which window of which text a model failed, and why.
pub fn describe_failure(failure: &Failure, window: usize, texts: &[TokenizedText], cut: Cut) -> String {
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
