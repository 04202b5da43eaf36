//! Shows the progress of a comparison: a bar, sentences, and files that are written after each candidate.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Outputs;
use crate::base::display::printable;
use crate::cli::progress::Steps;
use crate::report::results::Results;
use crate::weights::{Observer, Stage};

/// Draws a bar for each stage, and writes the results so far.
pub struct Watch {
    bar: Mutex<Option<Steps>>,
    outputs: Mutex<Option<Outputs>>,
    hidden: bool,
    quiet: bool,
}

impl Watch {
    /// Creates a watch that writes `outputs`. It draws no bar if `hidden`, and prints no warnings if `quiet`.
    pub fn new(outputs: Option<Outputs>, hidden: bool, quiet: bool) -> Self {
        Self { bar: Mutex::new(None), outputs: Mutex::new(outputs), hidden, quiet }
    }

    /// Removes the bar from the screen.
    pub fn clear(&self) {
        if let Some(bar) = lock(&self.bar).take() {
            bar.clear();
        }
    }

    /// Writes the files that were asked for.
    ///
    /// # Errors
    /// If one cannot be written.
    pub fn save(&self, results: &Results) -> anyhow::Result<()> {
        lock(&self.outputs).as_mut().map_or(Ok(()), |outputs| outputs.write(results))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Observer for Watch {
    fn begin(&self, stage: &Stage<'_>) {
        self.clear();
        let bar = Steps::new(stage.steps(), self.hidden);
        bar.say(&stage.to_string());
        *lock(&self.bar) = Some(bar);
    }

    fn advance(&self, steps: u64) {
        if let Some(bar) = lock(&self.bar).as_ref() {
            bar.advance(steps);
        }
    }

    fn end(&self) {
        self.clear();
    }

    fn failed(&self, name: &str, failure: &str) {
        say_failure(name, failure);
    }

    fn warning(&self, warning: &str) {
        if !self.quiet {
            eprintln!("nibble: warning: {}", printable(warning));
        }
    }

    fn note(&self, note: &str) {
        eprintln!("nibble: {}", printable(note));
    }

    fn measured(&self, results: &Results) -> io::Result<()> {
        self.save(results).map_err(|error| io::Error::other(format!("{error:#}")))
    }
}

/// Says that a candidate cannot be compared.
pub fn say_failure(name: &str, failure: &str) {
    eprintln!("nibble: {}: {}", printable(name), printable(failure));
}
