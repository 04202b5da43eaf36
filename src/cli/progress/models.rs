//! Progress of what runs models.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Steps, bar};
use crate::base::display::printable;

impl Steps {
    /// Begins anew with so many steps.
    pub fn begin(&self, n: usize, message: &str) {
        self.bar.set_length(n as u64);
        self.bar.reset();
        self.say(message);
    }

    /// So many steps are done.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
    }
}

/// The progress of a benchmark: what is being measured, and the time so far.
pub struct Bench {
    bar: ProgressBar,
}

impl Bench {
    /// A line that is not drawn when `hidden` or when stderr is not a terminal.
    pub fn new(hidden: bool) -> Self {
        let target = if hidden || !std::io::stderr().is_terminal() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(10)
        };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}");
        bar.set_style(style.expect("the template is a constant that parses"));
        Self { bar }
    }

    /// Says what is being done. Nothing else draws the line: a thread that did would take time from what is measured.
    pub fn say(&self, message: String) {
        self.bar.set_message(message);
        self.bar.tick();
    }

    /// Does something with the line off the screen.
    pub fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Takes the line off the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// The progress of a calibration: windows read, and the time left.
pub struct Calibration {
    bar: ProgressBar,
}

impl Calibration {
    /// A bar that draws nothing when `hidden` or when stderr is not a terminal.
    pub fn new(hidden: bool) -> Self {
        let bar = bar(1, hidden);
        let style = ProgressStyle::with_template("{percent:>3}% {wide_bar} {pos} of {len} windows, {eta} left");
        bar.set_style(style.expect("the template is a constant that parses"));
        Self { bar }
    }

    /// So many windows of so many are done.
    pub fn at(&self, done: u64, all: u64) {
        if self.bar.length() != Some(all) {
            self.bar.set_length(all);
            self.bar.set_position(done);
            // The time left is that of work, not of what an earlier run has done.
            self.bar.reset_eta();
        }
        self.bar.set_position(done);
    }

    /// Says something in a line above the bar.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("nibble: {}", printable(line)));
    }

    /// Takes the bar off the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
