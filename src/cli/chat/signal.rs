//! Ctrl-C stops an answer, not the chat.
//!
//! At the prompt, the line editor reads the key itself and there is no signal. SIGTERM ends the program as usual: there
//! is nothing to finish.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::Context;

use super::super::interrupt::EXIT_CODE;
use super::echo;

/// A handler for Ctrl-C.
#[derive(Clone, Debug)]
pub struct Interrupt {
    flag: Arc<AtomicBool>,
    presses: Arc<AtomicU32>,
    busy: Arc<AtomicBool>,
    /// Whether the program ignores Ctrl-C when there is nothing to stop.
    stays: bool,
}

impl Interrupt {
    /// Installs the handler. When there is nothing to stop, Ctrl-C ends the program unless it `stays`, which is for a
    /// person at a terminal.
    ///
    /// # Errors
    /// If the system does not accept a handler.
    pub fn listen(stays: bool) -> anyhow::Result<Self> {
        let this = Self { flag: Arc::default(), presses: Arc::default(), busy: Arc::default(), stays };
        let heard = this.clone();
        on_interrupt(move || heard.pressed()).context("cannot listen for Ctrl-C")?;
        Ok(this)
    }

    /// The flag that Ctrl-C sets while something can be stopped.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.flag.clone()
    }

    /// Returns whether the flag is set.
    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Clears the flag and marks the start of something that can be stopped. Until the guard is dropped, typed keys are
    /// not echoed: they would show up inside the answer.
    pub fn busy(&self) -> Busy<'_> {
        self.flag.store(false, Ordering::Relaxed);
        self.presses.store(0, Ordering::Relaxed);
        self.busy.store(true, Ordering::Relaxed);
        echo::off();
        Busy(self)
    }

    fn pressed(&self) {
        if !self.busy.load(Ordering::Relaxed) {
            if !self.stays {
                std::process::exit(EXIT_CODE.into());
            }
            return;
        }
        self.flag.store(true, Ordering::Relaxed);
        // People press the key again when nothing happens at once, and the program must end even if it hangs.
        match self.presses.fetch_add(1, Ordering::Relaxed) {
            0 => {}
            1 => eprintln!("\n(stopping; press Ctrl-C once more to quit nibble)"),
            _ => {
                echo::on();
                std::process::exit(EXIT_CODE.into());
            }
        }
    }
}

/// While it lives, something can be stopped.
#[derive(Debug)]
pub struct Busy<'a>(&'a Interrupt);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Relaxed);
        self.0.flag.store(false, Ordering::Relaxed);
        echo::on();
    }
}

#[cfg(unix)]
fn on_interrupt(act: impl Fn() + Send + 'static) -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT])?;
    std::thread::Builder::new().name("ctrl-c".to_string()).spawn(move || signals.forever().for_each(|_| act()))?;
    Ok(())
}

#[cfg(not(unix))]
fn on_interrupt(act: impl Fn() + Send + 'static) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(act)
}
