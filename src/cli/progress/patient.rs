//! The progress of work that usually takes a moment, such as loading a model or reading a prompt.

use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How long work takes before a bar is drawn.
const PATIENCE: Duration = Duration::from_millis(500);

/// The progress of work that usually takes a moment. Nothing is drawn until it has taken longer.
pub struct Patient {
    bar: ProgressBar,
    /// Wakes the thread that waits to draw the bar; it goes with the sender.
    done: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Patient {
    /// Returns the progress of `what`, in `steps` steps.
    pub fn new(what: &'static str, steps: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::hidden());
        if !std::io::stderr().is_terminal() {
            return Self { bar, done: None };
        }
        let style = ProgressStyle::with_template("{msg} {percent:>3}% {wide_bar}")
            .expect("the template is a constant that parses");
        bar.set_style(style);
        bar.set_message(what);
        let (sender, receiver) = std::sync::mpsc::channel();
        let waiting = bar.clone();
        let thread = std::thread::spawn(move || {
            if receiver.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                waiting.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
                waiting.enable_steady_tick(Duration::from_millis(200));
            }
        });
        Self { bar, done: Some((sender, thread)) }
    }

    /// So many steps are done.
    pub fn at(&self, steps: u64) {
        self.bar.set_position(steps);
    }
}

impl Drop for Patient {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.done.take() {
            drop(sender);
            // It draws nothing after this.
            let _ = thread.join();
        }
        self.bar.finish_and_clear();
    }
}
