//! Progress bars: the only place that draws them. They go to stderr, and only where that is a terminal.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::units;
use crate::convert::Observer;

/// The progress of a conversion: share done, rate, time left, bytes read and written.
pub struct Conversion {
    bar: ProgressBar,
    written: AtomicU64,
}

impl Conversion {
    /// A bar for so many bytes of source; one that draws nothing when `quiet` or when stderr is not a terminal.
    pub fn new(source_bytes: u64, quiet: bool) -> Self {
        Self { bar: bar(source_bytes, quiet), written: AtomicU64::new(0) }
    }

    /// Takes the bar off the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// A bar for so many bytes; one that draws nothing when `quiet` or when stderr is not a terminal.
fn bar(n_bytes: u64, quiet: bool) -> ProgressBar {
    let target = if quiet || !std::io::stderr().is_terminal() {
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

/// The progress of a verification: share done, rate, time left, bytes checked.
pub struct Verification {
    bar: ProgressBar,
}

impl Verification {
    /// A bar that draws nothing when `quiet` or when stderr is not a terminal.
    pub fn new(quiet: bool) -> Self {
        Self { bar: bar(0, quiet) }
    }

    /// So many more bytes have been checked, of so many.
    pub fn advance(&self, bytes: u64, of: u64) {
        self.bar.set_length(of);
        self.bar.inc(bytes);
        if !self.bar.is_hidden() {
            self.bar.set_message(format!("{} checked", units::bytes(self.bar.position())));
        }
    }

    /// Takes the bar off the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Conversion {
    fn advance(&self, read_bytes: u64, written_bytes: u64) {
        let written = self.written.fetch_add(written_bytes, Ordering::Relaxed) + written_bytes;
        self.bar.inc(read_bytes);
        if !self.bar.is_hidden() {
            self.bar.set_message(format!("{} -> {}", units::bytes(self.bar.position()), units::bytes(written)));
        }
    }
}
