//! Shows the events of a turn: a progress bar while the model reads, then the text on the screen.

use std::ops::ControlFlow;

use super::super::progress::Patient;
use super::super::repeats::{self, Repeats};
use super::screen::Screen;
use crate::engine::{Event, EventSink};

/// A screen during one turn.
pub struct View<'a> {
    screen: &'a mut Screen,
    wrap: bool,
    // Shown only if reading takes long.
    bar: Option<Patient>,
    repeats: Repeats,
    /// What the answer repeats, if it does.
    repeated: Option<String>,
}

impl<'a> View<'a> {
    /// A view that breaks lines between words if `wrap`.
    pub fn new(screen: &'a mut Screen, wrap: bool) -> Self {
        Self { screen, wrap, bar: None, repeats: Repeats::default(), repeated: None }
    }
}

impl EventSink for View<'_> {
    fn event(&mut self, event: Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Begin => self.screen.begin(self.wrap),
            Event::Reading { done, total } if done < total => {
                self.bar.get_or_insert_with(|| Patient::new("reading", total as u64)).at(done as u64);
            }
            Event::Reading { .. } => self.bar = None,
            Event::Text(text) => {
                self.repeated = self.repeats.push(text).or(self.repeated.take());
                return self.screen.text(text);
            }
            // Said once, after the answer.
            Event::Forgot { .. } => {}
            Event::End => {
                self.bar = None;
                self.screen.end();
                // Not in the middle of the answer: Ctrl-C ends that.
                if let Some(repeated) = self.repeated.take() {
                    self.screen.note(&repeats::sentence(&repeated));
                }
            }
        }
        ControlFlow::Continue(())
    }
}
