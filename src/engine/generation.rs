//! A text that is being generated, one token per step. A step does no long computation and never blocks.
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
//! The driver of a generation evaluates the tokens that it asks for and calls [`Generation::step`] with the logits,
//! until it is finished. [`super::generate`] drives one generation in a session of its own. Several generations can
//! share a context if their evaluations go into one batch: see [`super::evaluate_together`].
//!
//! A step uses one row of logits: at first the last row of the prompt, then the row of the token that was just written.
//! If guesses were read with that token, it is the row of the last guess that was right.

use std::fmt;
use std::sync::Arc;

use super::speculate::{Draft, Guess, take_or_redraw};
use super::{Error, LogitRows};
use crate::base::math::ln;
use crate::chat::{StopText, Utf8Stream};
use crate::constrain::Constraint;
use crate::sample::Sampler;
use crate::vocab::Tokenizer;

/// When to stop, other than at the model's own end tokens.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// The most tokens to write; `None` for no limit other than an end token or a full context.
    pub max_tokens: Option<usize>,
    /// Texts that end it. They are not part of the result.
    pub stop: Vec<String>,
    /// Continue after end tokens, for measuring speed.
    pub ignore_end: bool,
    /// Return the log-probability of each token, and of this many of the most likely tokens in its place.
    pub logprobs: Option<usize>,
    /// With [`GenerateOptions::logprobs`], return those of the distribution that tokens are drawn from, and not the model's
    /// own.
    pub after_sampling: bool,
    /// Control tokens add their spelling to the text, except for those that end it.
    pub special: bool,
}

/// Returns the bytes that a token adds to a text: with `special`, control tokens add their spelling, except for those that
/// end a text.
pub fn token_bytes(tokenizer: &dyn Tokenizer, id: u32, special: bool) -> &[u8] {
    let bytes = tokenizer.bytes(id);
    if special && bytes.is_empty() && !tokenizer.is_end(id) { tokenizer.piece(id).as_bytes() } else { bytes }
}

/// Why a text ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model wrote an end token.
    End {
        /// The token.
        token: u32,
    },
    /// A stop text occurred.
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
    /// The receiver of the text stopped it.
    Dropped,
    /// The session's flag was set.
    Cancelled,
}

impl Finish {
    /// Returns one word, as in OpenAI's API: `stop` or `length`; or `cancelled`, for which that API has no word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::End { .. } | Self::Stop { .. } | Self::Complete => "stop",
            Self::MaxTokens | Self::ContextFull => "length",
            Self::Dropped | Self::Cancelled => "cancelled",
        }
    }
}

/// The output of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// The token; `None` at the end, for text that was held back until then.
    pub token: Option<u32>,
    /// The text that is now certain: whole characters, perhaps none, perhaps from earlier tokens.
    pub text: &'a str,
}

/// Log-probabilities before any sampling, unless [`GenerateOptions::after_sampling`] is set: natural logarithms.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token's log-probability.
    pub logprob: f64,
    /// The most likely tokens and their log-probabilities, in order.
    pub top: Vec<(u32, f64)>,
}

/// The parts that decide on the next token.
#[derive(Debug)]
pub struct Writer<'a> {
    /// Samples the token.
    pub sampler: &'a mut Sampler,
    /// Guesses several tokens ahead, which the model then reads at once. This changes the speed, but not the text.
    pub draft: Option<&'a mut Draft>,
    /// Constrains the text to a grammar, from its first token on.
    pub constraint: Option<&'a mut Constraint>,
}

impl<'a> Writer<'a> {
    /// Returns a writer with only a sampler.
    pub fn new(sampler: &'a mut Sampler) -> Self {
        Self { sampler, draft: None, constraint: None }
    }
}

/// What to do before the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the sequence hold [`Generation::text`], and pass the logits of its last token to the next step.
    Evaluate {
        /// Number of tokens at the beginning of the text that the sequence is known to hold. Anything beyond them has
        /// to be removed, except for what is the same as in the text.
        known: usize,
        /// The most guesses of the following tokens that may be read too, with the logits of each. [`Writer::draft`]
        /// has to know them in the next step.
        most_guesses: usize,
    },
    /// The token was guessed, and the sequence has already read it: the next step uses the same logits.
    Accepted,
    /// The text has ended. The next step returns the text that was held back, and uses no logits.
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
    /// Text that was held back still has to be returned.
    Ending,
    Finished,
}

/// A text that is being generated.
pub struct Generation {
    tokenizer: Arc<dyn Tokenizer>,
    options: GenerateOptions,
    n_ctx: usize,
    // The prompt and the written tokens.
    text: Vec<u32>,
    n_prompt: usize,
    // Tokens of the text that have been read.
    n_read: usize,
    // The row of logits that decides on the next token: above 0 if the tokens since the last evaluation were guessed.
    row: usize,
    state: State,
    finish: Finish,
    utf8: Utf8Stream,
    stop: StopText,
    written: String,
    logprobs: Vec<TokenLogprobs>,
    // The output of the last step.
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
    /// Begins a text that continues `prompt`, in a context of `n_ctx` tokens. Also calls the sampler's `begin`.
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

    /// Returns the prompt and the written tokens.
    pub fn text(&self) -> &[u32] {
        &self.text
    }

    /// Returns the tokens that were written, without an end token.
    pub fn tokens(&self) -> &[u32] {
        &self.text[self.n_prompt..]
    }

    /// Returns the text that was given out until now.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// Returns how many of the written tokens have been evaluated: usually all but the last one.
    pub fn n_evaluated(&self) -> usize {
        self.n_read.saturating_sub(self.n_prompt)
    }

    /// Returns the log-probabilities of the written tokens, if they were asked for.
    pub fn logprobs(&self) -> &[TokenLogprobs] {
        &self.logprobs
    }

    /// Returns the output of the last step; `None` if there is none.
    pub fn piece(&self) -> Option<Step<'_>> {
        self.has_piece.then_some(Step { token: self.token, text: &self.piece })
    }

    /// Returns why the text ended, once it has.
    pub fn finish(&self) -> Option<&Finish> {
        (self.state == State::Finished).then_some(&self.finish)
    }

    /// Takes one step. `logits` are the rows of the evaluation that the last step asked for; the first step uses none.
    ///
    /// # Errors
    /// If there are no such logits or they are broken, every token is ruled out, or the tokens that the grammar allows
    /// cannot be computed. The generation cannot be used any more then.
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

    /// Ends the text because the receiver stopped it. Text that was held back is dropped.
    pub fn abandon(&mut self) {
        self.end(Finish::Dropped, State::Finished);
    }

    /// Ends the text because an evaluation was cancelled. The next step returns the text that was held back.
    pub fn cancel(&mut self) {
        self.end(Finish::Cancelled, State::Ending);
    }

    fn end(&mut self, finish: Finish, state: State) {
        self.finish = finish;
        self.state = state;
    }

    /// Decides on a token, and on what comes next.
    fn write(&mut self, writer: &mut Writer<'_>, logits: LogitRows<'_>) -> Result<Action, Error> {
        // The logits are available, so the whole text has been read.
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
        match self.options.logprobs {
            Some(n) if self.options.after_sampling => {
                self.logprobs.push(of_distribution(&mut self.distribution, token, n));
            }
            Some(n) => {
                let mut top = Vec::new();
                let logprob = writer.sampler.logprobs(logits.row(self.row)?, token, n, &mut top)?;
                self.logprobs.push(TokenLogprobs { logprob, top });
            }
            None => {}
        }
        self.text.push(token);
        writer.sampler.accept(token);
        if let Some(constraint) = &mut writer.constraint {
            // The tokens that may come next are computed while the model evaluates this one.
            constraint.accept(token)?;
        }

        self.decoded.clear();
        self.piece.clear();
        let bytes = token_bytes(&*self.tokenizer, token, self.options.special);
        self.utf8.push(bytes, &mut self.decoded);
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

    /// Chooses the next token. Returns it and whether it was guessed; `None` if the text satisfies its grammar and
    /// cannot continue.
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
            // A guess without a distribution is right if it is the token that would be drawn without it.
            _ if self.options.logprobs.is_some() && self.options.after_sampling => {
                sampler.sample_from(logits, allowed, &mut self.distribution)?
            }
            _ => sampler.sample(logits, allowed)?,
        };
        Ok(Some((token, guess.is_some_and(|guess| guess.token == token))))
    }

    fn has_enough(&self) -> bool {
        self.options.max_tokens.is_some_and(|most| self.tokens().len() >= most)
    }

    /// Ends the text. If no text was held back, it is finished; otherwise the next step returns that text.
    fn ended(&mut self, finish: Finish) -> Action {
        self.end(finish, State::Ending);
        if self.has_piece { Action::Flush } else { self.give_out_the_rest() }
    }

    /// Returns the text that was held back because it could have become a character or a stop text.
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

/// Returns the log-probabilities of a token of a distribution, and of its `n` most likely tokens. Leaves only these in it.
fn of_distribution(distribution: &mut Vec<(u32, f64)>, token: u32, n: usize) -> TokenLogprobs {
    let p = distribution.iter().find(|(id, _)| *id == token).map_or(0.0, |(_, p)| *p);
    let likelier = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if n < distribution.len() {
        distribution.select_nth_unstable_by(n, likelier);
        distribution.truncate(n);
    }
    distribution.sort_unstable_by(likelier);
    TokenLogprobs { logprob: ln(p), top: distribution.iter().map(|(id, p)| (*id, ln(*p))).collect() }
}
