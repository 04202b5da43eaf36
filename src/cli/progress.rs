//! Progress bars. No other module draws any. They go to stderr, and only if that is a terminal.

#[cfg(feature = "llama")]
mod models;
#[cfg(feature = "llama")]
mod patient;
#[cfg(feature = "llama")]
mod whole;

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::base::display::printable;
use crate::base::units;
use crate::convert::{Changed, Event, Observer};

#[cfg(feature = "llama")]
pub use self::{
    models::{Bench, Calibration},
    patient::Patient,
    whole::Whole,
};

/// The progress of a conversion: share done, rate, time left, bytes read and written.
pub struct Conversion {
    bar: ProgressBar,
    written: AtomicU64,
    quiet: bool,
}

impl Conversion {
    /// Returns a bar for `source_bytes`. It draws nothing if `hidden` or if stderr is not a terminal. What an earlier run
    /// left is said in words, unless `quiet`.
    pub fn new(source_bytes: u64, hidden: bool, quiet: bool) -> Self {
        Self { bar: bar(source_bytes, hidden), written: AtomicU64::new(0), quiet }
    }

    /// Removes the bar from the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Returns a function that shows what is done while no bytes are. Rates and times of bytes then say nothing, and are left
    /// out.
    #[cfg(feature = "llama")]
    pub fn showing(&self) -> impl Fn(&dyn std::fmt::Display) + Send + Sync + 'static {
        let bar = self.bar.clone();
        let style = ProgressStyle::with_template("{elapsed} {wide_bar} {msg}");
        bar.set_style(style.expect("the template is a constant that parses"));
        move |doing| {
            if !bar.is_hidden() {
                bar.set_message(printable(&doing.to_string()).into_owned());
            }
        }
    }

    /// Returns what turns the bar into one of steps, for work after the last byte.
    #[cfg(feature = "llama")]
    pub fn steps(&self) -> Steps {
        Steps { bar: self.bar.clone() }
    }

    /// Prints a line above the bar.
    fn say(&self, line: &str) {
        if !self.quiet {
            self.bar.suspend(|| eprintln!("nibble: {}", printable(line)));
        }
    }
}

impl Observer for Conversion {
    fn event(&self, event: Event) {
        match event {
            Event::StartingOver(Changed::Asked) => self.say("starting over, as requested with --restart"),
            Event::StartingOver(changed) => self.say(&format!("starting over: {changed}")),
            Event::Checking => self.bar.set_message("checking what the last run left"),
            Event::Resuming { read_bytes, written_bytes, percent, lost_bytes } => {
                let lost = match lost_bytes {
                    0 => String::new(),
                    n => format!(" ({} were damaged or lost, and are made again)", units::bytes(n)),
                };
                self.say(&format!("resuming: {percent}% was done already{lost}"));
                self.written.store(written_bytes, Ordering::Relaxed);
                self.bar.set_message("");
                self.bar.set_position(read_bytes);
                // The time left is that of work, not of what was there.
                self.bar.reset_eta();
            }
        }
    }

    fn advance(&self, read_bytes: u64, written_bytes: u64) {
        let written = self.written.fetch_add(written_bytes, Ordering::Relaxed) + written_bytes;
        self.bar.inc(read_bytes);
        if !self.bar.is_hidden() {
            self.bar.set_message(format!("{} -> {}", units::bytes(self.bar.position()), units::bytes(written)));
        }
    }
}

/// Returns a bar for `n_bytes`. It draws nothing if `hidden` or if stderr is not a terminal.
fn bar(n_bytes: u64, hidden: bool) -> ProgressBar {
    let target = if hidden || !std::io::stderr().is_terminal() {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr_with_hz(10)
    };
    let bar = ProgressBar::with_draw_target(Some(n_bytes), target);
    let style = ProgressStyle::with_template("{percent:>3}% {wide_bar} {decimal_bytes_per_sec}, {eta} left  {msg}")
        .expect("the template is a constant that parses");
    bar.set_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// The progress of work that reads files, such as a verification: share done, rate, time left, bytes read.
pub struct Reading {
    bar: ProgressBar,
    done: &'static str,
}

impl Reading {
    /// Returns a bar that draws nothing if `hidden` or if stderr is not a terminal. `done` says what becomes of the bytes,
    /// for example `checked`.
    pub fn new(hidden: bool, done: &'static str) -> Self {
        // The work says how much there is to do as soon as it begins.
        Self { bar: bar(1, hidden), done }
    }

    /// Adds `bytes` that are done, out of `of`.
    pub fn advance(&self, bytes: u64, of: u64) {
        self.bar.set_length(of);
        self.bar.inc(bytes);
        if !self.bar.is_hidden() {
            self.bar.set_message(format!("{} {}", units::bytes(self.bar.position()), self.done));
        }
    }

    /// Removes the bar from the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// The progress of work in steps: share done, time left, current step.
pub struct Steps {
    bar: ProgressBar,
}

impl Steps {
    /// Returns a bar of `n` steps. It draws nothing if `hidden` or if stderr is not a terminal.
    pub fn new(n: u64, hidden: bool) -> Self {
        let steps = Self { bar: bar(n, hidden) };
        steps.begin(n);
        steps
    }

    /// Begins `n` steps.
    pub fn begin(&self, n: u64) {
        let style = ProgressStyle::with_template("{percent:>3}% {wide_bar} {eta} left  {msg}");
        self.bar.set_style(style.expect("the template is a constant that parses"));
        self.bar.set_length(n);
        self.bar.set_position(0);
        self.bar.reset_eta();
    }

    /// Shows the current step.
    pub fn say(&self, message: &str) {
        self.bar.set_message(printable(message).into_owned());
    }

    /// Sets how many steps are done, out of `of`.
    #[cfg(feature = "llama")]
    pub fn at(&self, done: u64, of: u64) {
        self.bar.set_length(of);
        self.bar.set_position(done);
    }

    /// Adds steps that are done.
    pub fn advance(&self, steps: u64) {
        self.bar.inc(steps);
    }

    /// Removes the bar from the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
