//! The progress of work that runs models.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::bar;
use crate::base::display::printable;

/// The progress of a benchmark: what is being measured, and the time so far.
pub struct Bench {
    bar: ProgressBar,
}

impl Bench {
    /// Returns a line that is not drawn if `hidden` or if stderr is not a terminal.
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

    /// Shows what is being done. No thread redraws the line: that would take time from what is measured.
    pub fn say(&self, message: String) {
        self.bar.set_message(message);
        self.bar.tick();
    }

    /// Calls `print` while the line is off the screen.
    pub fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Removes the line from the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// The progress of a calibration: windows read, and the time left.
pub struct Calibration {
    bar: ProgressBar,
}

impl Calibration {
    /// Returns a bar that draws nothing if `hidden` or if stderr is not a terminal.
    pub fn new(hidden: bool) -> Self {
        let bar = bar(1, hidden);
        let style = ProgressStyle::with_template("{percent:>3}% {wide_bar} {pos} of {len} windows, {eta} left");
        bar.set_style(style.expect("the template is a constant that parses"));
        Self { bar }
    }

    /// Sets how many windows are done, out of `all`.
    pub fn at(&self, done: u64, all: u64) {
        if self.bar.length() != Some(all) {
            self.bar.set_length(all);
            self.bar.set_position(done);
            // The time left is that of work, not of what an earlier run has done.
            self.bar.reset_eta();
        }
        self.bar.set_position(done);
    }

    /// Prints a line above the bar.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("nibble: {}", printable(line)));
    }

    /// Removes the bar from the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
