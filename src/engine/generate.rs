//! The loop that writes text.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::speculate::{Draft, Guess, Speculation, take_or_redraw};
use crate::chat::{StopText, Utf8Stream};
use crate::constrain::Constraint;
use crate::llama::{Error, Logits, Session};
use crate::sample::Sampler;

/// When to stop, other than at the model's own end tokens.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// Tokens to write at most; `None` goes on until an end token or until the context is full.
    pub max_tokens: Option<usize>,
    /// Texts that end it. They are not given out.
    pub stop: Vec<String>,
    /// Go on after end tokens: for measuring speed.
    pub ignore_end: bool,
    /// Tell the probability of each token that is written, and of this many of the most likely ones besides.
    pub logprobs: Option<usize>,
}

/// Why it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model wrote an end token.
    End {
        /// Which.
        token: u32,
    },
    /// One of the stop texts came up.
    Stop {
        /// Which.
        text: String,
    },
    /// The text keeps to its grammar in full, and nothing can be added.
    Complete,
    /// As many tokens as were asked for.
    MaxTokens,
    /// The context has no more room.
    ContextFull,
    /// The receiver of the text wants no more.
    Dropped,
    /// The session's flag was set.
    Cancelled,
}

impl Finish {
    /// One word, as OpenAI's API has it: `stop` or `length`; where that API has none, `cancelled`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::End { .. } | Self::Stop { .. } | Self::Complete => "stop",
            Self::MaxTokens | Self::ContextFull => "length",
            Self::Dropped | Self::Cancelled => "cancelled",
        }
    }
}

/// What one turn of the loop gave.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The token; `None` at the very end, for text that was held back until then.
    pub token: Option<u32>,
    /// The text that is now certain: whole characters, maybe none, maybe from earlier tokens.
    pub text: &'a str,
}

/// What the model itself thought of a token that was written: natural logarithms of probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token's.
    pub logprob: f64,
    /// The most likely tokens and theirs, in order.
    pub top: Vec<(u32, f64)>,
}

/// What was written, and how long it took.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The tokens, without the end token.
    pub tokens: Vec<u32>,
    /// For each of them what the model thought of it, where that was asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// The text that was given out.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens that the context held already.
    pub reused_tokens: usize,
    /// Time until the first logits.
    pub prompt_time: Duration,
    /// Time from there to the end.
    pub generate_time: Duration,
    /// Tokens that were written and read again in that time: the first one comes of the prompt's evaluation, and the
    /// last one is mostly not read.
    pub evaluated_tokens: usize,
    /// What came of drafting; `None` where nothing was to be drafted.
    pub speculation: Option<Speculation>,
}

impl Generated {
    /// Tokens of the prompt evaluated per second.
    pub fn prompt_rate(&self) -> f64 {
        rate(self.prompt_tokens.saturating_sub(self.reused_tokens), self.prompt_time)
    }

    /// Tokens per second once the prompt is read; 0 where there were too few to tell.
    pub fn generate_rate(&self) -> f64 {
        rate(self.evaluated_tokens, self.generate_time)
    }
}

fn rate(n: usize, time: Duration) -> f64 {
    if n == 0 { 0.0 } else { n as f64 / time.as_secs_f64().max(1e-9) }
}

/// What decides on the next token.
#[derive(Debug)]
pub struct Writer<'a> {
    /// Draws it.
    pub sampler: &'a mut Sampler,
    /// Guesses several tokens ahead, for the model to read at once. It changes the speed, and nothing of the text.
    pub draft: Option<&'a mut Draft>,
    /// Holds the text to a grammar, from its first token on.
    pub constraint: Option<&'a mut Constraint>,
}

impl<'a> Writer<'a> {
    /// A sampler alone.
    pub fn new(sampler: &'a mut Sampler) -> Self {
        Self { sampler, draft: None, constraint: None }
    }
}

/// Continues `prompt`, giving text to `on_step` as it becomes certain, until an end token, a stop text, a limit, or
/// until `on_step` breaks or the session's flag is set.
///
/// Afterwards the context holds the prompt and what was written, so that a prompt which goes on from there costs only
/// what is new.
///
/// # Errors
/// Where the prompt is empty or does not fit the context, llama.cpp fails, the logits are broken, or what
/// may come next by a grammar cannot be worked out.
pub fn generate(
    session: &mut Session,
    writer: Writer<'_>,
    prompt: &[u32],
    options: &GenerateOptions,
    mut on_step: impl FnMut(Step<'_>) -> ControlFlow<()>,
) -> Result<Generated, Error> {
    let Writer { sampler, mut draft, mut constraint } = writer;
    let model = session.model().clone();
    let codec = model.codec();
    let mut utf8 = Utf8Stream::default();
    let mut stop = StopText::new(options.stop.iter().cloned());
    let (mut decoded, mut text) = (String::new(), String::new());

    let start = Instant::now();
    let mut out = Generated {
        tokens: Vec::new(),
        logprobs: Vec::new(),
        text: String::new(),
        finish: Finish::MaxTokens,
        prompt_tokens: prompt.len(),
        reused_tokens: 0,
        prompt_time: Duration::ZERO,
        generate_time: Duration::ZERO,
        evaluated_tokens: 0,
        speculation: None,
    };
    sampler.begin(prompt);
    if let Some(draft) = &mut draft {
        draft.begin(prompt, sampler, session)?;
        out.speculation = Some(draft.stats());
    }
    let read = session.prefill(prompt).and_then(|reused| {
        out.reused_tokens = reused;
        draft.as_mut().map_or(Ok(()), |draft| draft.read())
    });
    match read {
        Ok(()) => {}
        Err(Error::Cancelled) => {
            out.prompt_time = start.elapsed();
            out.prompt_tokens = session.tokens().len();
            out.finish = Finish::Cancelled;
            return Ok(out);
        }
        Err(error) => return Err(error),
    }
    out.prompt_time = start.elapsed();

    let start = Instant::now();
    // The row of logits that decides on the next token: above 0 where the tokens since the last evaluation are those that
    // were guessed.
    let mut row = 0;
    let mut distribution = Vec::new();
    out.finish = loop {
        if options.max_tokens.is_some_and(|most| out.tokens.len() >= most) {
            break Finish::MaxTokens;
        }
        let allowed = match &mut constraint {
            Some(constraint) => {
                constraint.mask()?;
                if constraint.is_finished() {
                    break Finish::Complete;
                }
                Some(constraint.mask()?)
            }
            None => None,
        };
        let guess = draft.as_deref().and_then(|draft| draft.guess(row));
        let token = match guess {
            Some(Guess { token, drawn_from: Some(drawn_from) }) => {
                sampler.distribution(session.logits(row)?, allowed, &mut distribution)?;
                take_or_redraw(token, &distribution, drawn_from, || sampler.unit())
            }
            // A guess that could have been no other is right where it is what would be drawn without it.
            _ => sampler.sample(session.logits(row)?, allowed)?,
        };
        let guessed = guess.is_some_and(|guess| guess.token == token);
        if codec.is_end(token) && !options.ignore_end {
            break Finish::End { token };
        }
        if let Some(n) = options.logprobs {
            let mut top = Vec::new();
            let logprob = sampler.logprobs(session.logits(row)?, token, n, &mut top)?;
            out.logprobs.push(TokenLogprobs { logprob, top });
        }
        out.tokens.push(token);
        sampler.accept(token);
        if let Some(constraint) = &mut constraint {
            // What may come next is worked out while the model evaluates the token.
            constraint.accept(token)?;
        }

        decoded.clear();
        text.clear();
        utf8.push(codec.bytes(token), &mut decoded);
        let stopped = stop.push(&decoded, &mut text).map(str::to_string);
        out.text.push_str(&text);
        if on_step(Step { token: Some(token), text: &text }).is_break() {
            break Finish::Dropped;
        }
        if let Some(text) = stopped {
            break Finish::Stop { text };
        }
        if constraint.as_ref().is_some_and(|constraint| constraint.is_finished()) {
            break Finish::Complete;
        }
        if options.max_tokens.is_some_and(|most| out.tokens.len() >= most) {
            break Finish::MaxTokens;
        }
        let read = prompt.len() + out.evaluated_tokens;
        let room = (session.n_ctx() as usize).saturating_sub(read);
        if room == 0 {
            break Finish::ContextFull;
        }
        let read_on = match &mut draft {
            None => session.eval(&[token], Logits::Last),
            Some(draft) if guessed => {
                // It was read with its guess.
                draft.push(token);
                draft.taken();
                row += 1;
                if session.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
            }
            Some(draft) => {
                draft.push(token);
                draft.decided(false);
                row = 0;
                let left = options.max_tokens.map_or(usize::MAX, |most| most - out.tokens.len());
                read_ahead(session, draft, sampler, read, token, left.min(room) - 1)
            }
        };
        match read_on {
            Ok(()) => out.evaluated_tokens += 1,
            Err(Error::Cancelled) => break Finish::Cancelled,
            Err(error) => return Err(error),
        }
    };
    out.generate_time = start.elapsed();
    if let Some(draft) = draft {
        draft.decided(true);
        out.speculation = Some(draft.stats());
        // Guesses are no part of what was written.
        session.truncate(prompt.len() + out.evaluated_tokens);
    }

    if !matches!(out.finish, Finish::Stop { .. } | Finish::Dropped) {
        decoded.clear();
        text.clear();
        utf8.finish(&mut decoded);
        // A lone U+FFFD may complete a stop text; the stream is over either way.
        let _ = stop.push(&decoded, &mut text);
        stop.finish(&mut text);
        if !text.is_empty() {
            out.text.push_str(&text);
            if on_step(Step { token: None, text: &text }).is_break() {
                out.finish = Finish::Dropped;
            }
        }
    }
    Ok(out)
}

/// Reads `token`, which comes after the first `read` tokens of the context, and at most `most` guesses of what follows,
/// with the logits of each. What the context holds beyond the first `read` tokens were guesses, and wrong.
fn read_ahead(
    session: &mut Session,
    draft: &mut Draft,
    sampler: &Sampler,
    read: usize,
    token: u32,
    most: usize,
) -> Result<(), Error> {
    if session.truncate(read) < read {
        // The model's memory could not be cut after all, so that all of it is to be read again.
        draft.give_up();
        return session.prefill(draft.text()).map(drop);
    }
    let guesses = draft.propose(most.min(session.rows() - 1), sampler)?;
    let n = guesses.len();
    let begun = Instant::now();
    if n == 0 {
        session.eval(&[token], Logits::Last)?;
    } else {
        let batch: Vec<u32> = std::iter::once(token).chain(guesses.iter().copied()).collect();
        session.eval(&batch, Logits::All)?;
    }
    draft.evaluated(n, begun);
    Ok(())
}
