//! Whether the terminal shows what is typed. While the model writes it should not: the keys would stand in the answer.
//! They are not lost, but wait for the next prompt.

#[cfg(unix)]
mod unix {
    use std::sync::Mutex;

    use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

    /// How the terminal was; none while it is so.
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
            // Where the terminal has gone there is nothing to restore.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
        }
    }
}

/// Hides what is typed, where there is a terminal.
pub fn off() {
    #[cfg(unix)]
    unix::off();
}

/// Shows it again.
pub fn on() {
    #[cfg(unix)]
    unix::on();
}
