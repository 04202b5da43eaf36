//! A text in the making, one token per step. It computes nothing that takes long and waits for nobody.
//!
//! ```text
//!               ┌────────────── Evaluate: read text()[known..] and up to `most_guesses` guesses of what follows
//! step(logits) ─┼────────────── Accepted: the token was guessed, and the logits of what follows are here already
//!               ├────────────── Flush: the text has ended, and the next step gives out what was held back
//!               └────────────── Finished
//!
//! piece()   the token of the last step, and the text that is certain by now
//! ```
//!
//! Whoever drives a generation evaluates what it asks for and calls [`Generation::step`] with the logits, until it is
//! finished. [`super::generate`] drives one in a session of its own. Several generations share a context when their
//! evaluations go into one batch: see [`super::evaluate_together`].
//!
//! A step looks at one row of logits: the last row of the prompt at first, then the row of the token that was just written,
//! or, where guesses were read with that token, the row of the last guess that was right.

use std::fmt;
use std::sync::Arc;

use super::speculate::{Draft, Guess, take_or_redraw};
use super::{Error, LogitRows};
use crate::chat::{StopText, Utf8Stream};
use crate::constrain::Constraint;
use crate::sample::Sampler;
use crate::vocab::Tokenizer;

/// When to stop, other than at the model's own end tokens.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// Tokens to write at most; `None` goes on until an end token or until the context is full.
    pub max_tokens: Option<usize>,
    /// Texts that end it. They are not part of the result.
    pub stop: Vec<String>,
    /// Go on after end tokens: for measuring speed.
    pub ignore_end: bool,
    /// Return the log-probability of each token, and of this many of the most likely tokens in its place.
    pub logprobs: Option<usize>,
}

/// Why a text ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model wrote an end token.
    End {
        /// The token.
        token: u32,
    },
    /// A stop text came up.
    Stop {
        /// The stop text.
        text: String,
    },
    /// The text satisfies its grammar, and nothing can be added.
    Complete,
    /// It has as many tokens as were asked for.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// The receiver of the text wants no more.
    Dropped,
    /// The session's flag was set.
    Cancelled,
}

impl Finish {
    /// Returns one word, as OpenAI's API has it: `stop` or `length`; where that API has none, `cancelled`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::End { .. } | Self::Stop { .. } | Self::Complete => "stop",
            Self::MaxTokens | Self::ContextFull => "length",
            Self::Dropped | Self::Cancelled => "cancelled",
        }
    }
}

/// What one step wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// The token; `None` at the very end, for text that was held back until then.
    pub token: Option<u32>,
    /// The text that is now certain: whole characters, perhaps none, perhaps from earlier tokens.
    pub text: &'a str,
}

/// Log-probabilities before any sampling: natural logarithms.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// That of the token.
    pub logprob: f64,
    /// The most likely tokens and theirs, in order.
    pub top: Vec<(u32, f64)>,
}

/// What decides on the next token.
#[derive(Debug)]
pub struct Writer<'a> {
    /// Draws it.
    pub sampler: &'a mut Sampler,
    /// Guesses several tokens ahead, for the model to read at once. It changes the speed and nothing of the text.
    pub draft: Option<&'a mut Draft>,
    /// Holds the text to a grammar, from its first token on.
    pub constraint: Option<&'a mut Constraint>,
}

impl<'a> Writer<'a> {
    /// Returns a writer with a sampler alone.
    pub fn new(sampler: &'a mut Sampler) -> Self {
        Self { sampler, draft: None, constraint: None }
    }
}

/// What to do before the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the sequence hold [`Generation::text`], and pass the logits of its last token to the next step.
    Evaluate {
        /// Tokens at the beginning of the text that the sequence is known to hold. What it holds beyond them is to be
        /// removed, but for what it has in common with the text.
        known: usize,
        /// Guesses of what follows that may be read with it, at most, with the logits of each. [`Writer::draft`] knows them
        /// in the next step.
        most_guesses: usize,
    },
    /// The token was guessed, and the sequence has read it with its guess: the next step takes the same logits.
    Accepted,
    /// The text has ended: the next step gives out text that was held back, and looks at no logits.
    Flush,
    /// The text has ended.
    Finished,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The prompt has not been read.
    Start,
    /// The next step decides on a token.
    Writing,
    /// Text that was held back is still to be given out.
    Ending,
    Finished,
}

/// A text in the making.
pub struct Generation {
    tokenizer: Arc<dyn Tokenizer>,
    options: GenerateOptions,
    n_ctx: usize,
    // The prompt, and what was written.
    text: Vec<u32>,
    n_prompt: usize,
    // Tokens of the text that have been read.
    n_read: usize,
    // The row of logits that decides on the next token: above 0 where the tokens since the last evaluation were guessed.
    row: usize,
    state: State,
    finish: Finish,
    utf8: Utf8Stream,
    stop: StopText,
    written: String,
    logprobs: Vec<TokenLogprobs>,
    // What the last step wrote.
    token: Option<u32>,
    piece: String,
    has_piece: bool,
    // Buffers.
    decoded: String,
    distribution: Vec<(u32, f64)>,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("state", &self.state)
            .field("n_prompt", &self.n_prompt)
            .field("n_text", &self.text.len())
            .finish_non_exhaustive()
    }
}

impl Generation {
    /// Begins a text that continues `prompt`, in a context of `n_ctx` tokens. The sampler begins a text, too.
    pub fn new(
        tokenizer: Arc<dyn Tokenizer>,
        prompt: &[u32],
        n_ctx: usize,
        options: &GenerateOptions,
        sampler: &mut Sampler,
    ) -> Self {
        sampler.begin(prompt);
        Self {
            tokenizer,
            options: options.clone(),
            n_ctx,
            text: prompt.to_vec(),
            n_prompt: prompt.len(),
            n_read: 0,
            row: 0,
            state: State::Start,
            finish: Finish::MaxTokens,
            utf8: Utf8Stream::default(),
            stop: StopText::new(options.stop.iter().cloned()),
            written: String::new(),
            logprobs: Vec::new(),
            token: None,
            piece: String::new(),
            has_piece: false,
            decoded: String::new(),
            distribution: Vec::new(),
        }
    }

    /// Returns the prompt and what was written.
    pub fn text(&self) -> &[u32] {
        &self.text
    }

    /// Returns the tokens that were written, without an end token.
    pub fn tokens(&self) -> &[u32] {
        &self.text[self.n_prompt..]
    }

    /// Returns how many of the written tokens have been read: the last one mostly has not.
    pub fn n_evaluated(&self) -> usize {
        self.n_read.saturating_sub(self.n_prompt)
    }

    /// Returns what the last step wrote; `None` if it wrote nothing.
    pub fn piece(&self) -> Option<Step<'_>> {
        self.has_piece.then_some(Step { token: self.token, text: &self.piece })
    }

    /// Returns why the text ended, once it has.
    pub fn finish(&self) -> Option<&Finish> {
        (self.state == State::Finished).then_some(&self.finish)
    }

    /// Takes one step. `logits` are the rows of the evaluation that the last step asked for; the first step looks at none.
    ///
    /// # Errors
    /// If there are no such logits or they are broken, every token is ruled out, or what the grammar allows cannot be
    /// worked out. The generation is then of no further use.
    pub fn step(&mut self, writer: &mut Writer<'_>, logits: LogitRows<'_>) -> Result<Action, Error> {
        self.has_piece = false;
        match self.state {
            State::Start => {
                self.state = State::Writing;
                Ok(Action::Evaluate { known: 0, most_guesses: 0 })
            }
            State::Writing => self.write(writer, logits),
            State::Ending => Ok(self.give_out_the_rest()),
            State::Finished => Ok(Action::Finished),
        }
    }

    /// Ends the text because the receiver of its pieces wants no more. What was held back stays so.
    pub fn abandon(&mut self) {
        self.end(Finish::Dropped, State::Finished);
    }

    /// Ends the text because an evaluation was cancelled. The next step gives out the text that was held back.
    pub fn cancel(&mut self) {
        self.end(Finish::Cancelled, State::Ending);
    }

    fn end(&mut self, finish: Finish, state: State) {
        self.finish = finish;
        self.state = state;
    }

    /// Decides on a token, and on what comes next.
    fn write(&mut self, writer: &mut Writer<'_>, logits: LogitRows<'_>) -> Result<Action, Error> {
        // The logits are here, so that all of the text was read.
        self.n_read = self.text.len();
        if self.has_enough() {
            return Ok(self.ended(Finish::MaxTokens));
        }
        let Some((token, was_guessed)) = self.choose(writer, logits)? else {
            return Ok(self.ended(Finish::Complete));
        };
        if self.tokenizer.is_end(token) && !self.options.ignore_end {
            return Ok(self.ended(Finish::End { token }));
        }
        if let Some(n) = self.options.logprobs {
            let mut top = Vec::new();
            let logprob = writer.sampler.logprobs(logits.row(self.row)?, token, n, &mut top)?;
            self.logprobs.push(TokenLogprobs { logprob, top });
        }
        self.text.push(token);
        writer.sampler.accept(token);
        if let Some(constraint) = &mut writer.constraint {
            // What may come next is worked out while the model evaluates the token.
            constraint.accept(token)?;
        }

        self.decoded.clear();
        self.piece.clear();
        self.utf8.push(self.tokenizer.bytes(token), &mut self.decoded);
        let stopped = self.stop.push(&self.decoded, &mut self.piece).map(str::to_string);
        self.written.push_str(&self.piece);
        (self.token, self.has_piece) = (Some(token), true);

        let room = self.n_ctx.saturating_sub(self.n_read);
        if let Some(text) = stopped {
            self.end(Finish::Stop { text }, State::Finished);
            return Ok(Action::Finished);
        }
        if writer.constraint.as_ref().is_some_and(|constraint| constraint.is_finished()) {
            return Ok(self.ended(Finish::Complete));
        }
        if self.has_enough() {
            return Ok(self.ended(Finish::MaxTokens));
        }
        if room == 0 {
            return Ok(self.ended(Finish::ContextFull));
        }
        if was_guessed {
            self.row += 1;
            return Ok(Action::Accepted);
        }
        self.row = 0;
        let left = self.options.max_tokens.map_or(usize::MAX, |most| most - self.tokens().len());
        Ok(Action::Evaluate { known: self.n_read, most_guesses: left.min(room) - 1 })
    }

    /// Chooses the next token. Returns it, and whether it was guessed; `None` if the text satisfies its grammar and
    /// nothing can be added.
    fn choose(&mut self, writer: &mut Writer<'_>, logits: LogitRows<'_>) -> Result<Option<(u32, bool)>, Error> {
        let Writer { sampler, draft, constraint } = writer;
        let allowed = match constraint {
            Some(constraint) => {
                constraint.mask()?;
                if constraint.is_finished() {
                    return Ok(None);
                }
                Some(constraint.mask()?)
            }
            None => None,
        };
        let guess = draft.as_deref().and_then(|draft| draft.guess(self.row));
        let logits = logits.row(self.row)?;
        let token = match guess {
            Some(Guess { token, drawn_from: Some(drawn_from) }) => {
                sampler.distribution(logits, allowed, &mut self.distribution)?;
                take_or_redraw(token, &self.distribution, drawn_from, || sampler.unit())
            }
            // A guess that could have been no other is right where it is what would be drawn without it.
            _ => sampler.sample(logits, allowed)?,
        };
        Ok(Some((token, guess.is_some_and(|guess| guess.token == token))))
    }

    fn has_enough(&self) -> bool {
        self.options.max_tokens.is_some_and(|most| self.tokens().len() >= most)
    }

    /// Ends the text. Where nothing is to be given out any more, it is finished; else the next step gives that out.
    fn ended(&mut self, finish: Finish) -> Action {
        self.end(finish, State::Ending);
        if self.has_piece { Action::Flush } else { self.give_out_the_rest() }
    }

    /// Gives out the text that was held back because a character or a stop text might have been completed.
    fn give_out_the_rest(&mut self) -> Action {
        self.state = State::Finished;
        self.decoded.clear();
        self.piece.clear();
        self.utf8.finish(&mut self.decoded);
        // A lone U+FFFD may complete a stop text; the text is over either way.
        let _ = self.stop.push(&self.decoded, &mut self.piece);
        self.stop.finish(&mut self.piece);
        if !self.piece.is_empty() {
            self.written.push_str(&self.piece);
            (self.token, self.has_piece) = (None, true);
        }
        Action::Finished
    }

    /// Returns the parts of the result: the tokens, their log-probabilities, the text, and why it ended.
    pub fn into_parts(self) -> (Vec<u32>, Vec<TokenLogprobs>, String, Finish) {
        let mut tokens = self.text;
        tokens.drain(..self.n_prompt);
        (tokens, self.logprobs, self.written, self.finish)
    }
}
