//! Turns the terminal's echo off and on. It is off while the model writes, because typed keys would show up inside the
//! answer. The keys are not lost: the next prompt reads them.

#[cfg(unix)]
mod unix {
    use std::sync::Mutex;

    use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

    /// The terminal's settings before the echo was turned off; `None` while it is on.
    static WAS: Mutex<Option<Termios>> = Mutex::new(None);

    pub fn off() {
        let stdin = std::io::stdin();
        let (Ok(mut was), Ok(before)) = (WAS.lock(), tcgetattr(&stdin)) else { return };
        if was.is_none() {
            let mut hidden = before.clone();
            hidden.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL);
            if tcsetattr(&stdin, OptionalActions::Now, &hidden).is_ok() {
                *was = Some(before);
            }
        }
    }

    pub fn on() {
        let Ok(mut was) = WAS.lock() else { return };
        if let Some(before) = was.take() {
            // If the terminal has been closed, there is nothing to restore.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
        }
    }
}

/// Turns the echo off, if there is a terminal.
pub fn off() {
    #[cfg(unix)]
    unix::off();
}

/// Turns the echo on again.
pub fn on() {
    #[cfg(unix)]
    unix::on();
}
