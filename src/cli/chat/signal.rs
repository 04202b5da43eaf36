//! Ctrl-C: stops an answer, and not the chat.
//!
//! At the prompt the line editor reads the key itself, and no signal comes. Requests to terminate end the program as
//! they do any other: there is nothing to finish.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::Context;

use super::super::interrupt::EXIT_CODE;
use super::echo;

/// Listens for Ctrl-C.
#[derive(Clone, Debug)]
pub struct Interrupt {
    flag: Arc<AtomicBool>,
    presses: Arc<AtomicU32>,
    busy: Arc<AtomicBool>,
    /// Whether the program outlives a Ctrl-C when there is nothing to stop.
    stays: bool,
}

impl Interrupt {
    /// Begins to listen. With a person at a terminal the program `stays` when there is nothing to stop.
    ///
    /// # Errors
    /// When the system lets no handler be set.
    pub fn listen(stays: bool) -> anyhow::Result<Self> {
        let this = Self { flag: Arc::default(), presses: Arc::default(), busy: Arc::default(), stays };
        let heard = this.clone();
        on_interrupt(move || heard.pressed()).context("cannot listen for Ctrl-C")?;
        Ok(this)
    }

    /// The flag that Ctrl-C sets while there is something to stop.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.flag.clone()
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Until the guard goes there is something to stop, and what is typed is not shown: it would stand in the answer.
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
        // People press it more than once when nothing happens at once; and it has to end somehow where nothing does.
        match self.presses.fetch_add(1, Ordering::Relaxed) {
            0 => {}
            1 => eprintln!("\n(stopping; once more ends nibble)"),
            _ => {
                echo::on();
                std::process::exit(EXIT_CODE.into());
            }
        }
    }
}

/// There is something to stop.
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
