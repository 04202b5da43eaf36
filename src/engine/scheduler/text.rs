//! What is asked of a scheduler, and what it says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::disk::FileId;
use crate::constrain::Constraint;
use crate::engine::{Action, Draft, Error, Finish, GenerateOptions, Generation, LogitRows, Speculation};
use crate::engine::{Step, TokenLogprobs, Writer};
use crate::sample::Sampler;

/// The number of a task, which its owner chooses.
pub type TaskId = u64;

/// Texts to write after one prompt.
#[derive(Debug)]
pub struct Request {
    /// Its number. No unfinished task has the same.
    pub task: TaskId,
    /// The tokens of the prompt.
    pub prompt: Arc<[u32]>,
    /// What decides on the tokens of each text.
    pub writers: Vec<TextWriter>,
    /// When the texts stop.
    pub options: GenerateOptions,
    /// Whether what was read for others may be used, and this for others.
    pub cache: bool,
    /// Whether [`Event::Reading`] is wanted.
    pub progress: bool,
    /// Whether [`Event::Scored`] is wanted, and how many likely tokens it tells in the place of each. The prompt is then read
    /// from its first token on, whatever is known of it.
    pub scores: Option<usize>,
    /// When it was asked for.
    pub arrived: Instant,
    /// When it ends, with what was written by then.
    pub deadline: Option<Instant>,
}

/// What decides on the tokens of one text.
#[derive(Debug)]
pub struct TextWriter {
    /// Samples them.
    pub sampler: Sampler,
    /// Constrains the text, from its first token on.
    pub constraint: Option<Constraint>,
}

/// Why a task failed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// Too many wait.
    #[error("{waiting} requests are waiting already, and no more may; try again in {retry_after} s")]
    Busy {
        /// Tasks that wait.
        waiting: usize,
        /// Seconds after which one of them has probably ended.
        retry_after: u64,
    },
    /// The prompt does not fit.
    #[error(
        "the prompt has {tokens} tokens, but the context holds {n_ctx}, of which {least} are reserved for the answer"
    )]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that a sequence holds.
        n_ctx: usize,
        /// The fewest tokens that there must be room for.
        least: usize,
    },
    /// It was cancelled before it began.
    #[error("cancelled before it began")]
    Cancelled,
    /// Its time was over before it began.
    #[error("its time was over before it began")]
    Timeout,
    /// The model failed.
    #[error(transparent)]
    Engine(#[from] Error),
}

/// Where the beginning of a prompt was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nowhere.
    Nowhere,
    /// In a sequence of the context.
    Context,
    /// In memory.
    Memory,
    /// On the disk.
    Disk,
}

impl Found {
    /// Returns a word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nowhere => "none",
            Self::Context => "context",
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }
}

/// Why a text ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As any text ends.
    Finish(Finish),
    /// Its time is over.
    Timeout,
}

/// What a text took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextUsage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of it that were not read again.
    pub cached_tokens: usize,
    /// Tokens that were written.
    pub written_tokens: usize,
    /// How long it waited for its turn.
    pub waiting: Duration,
    /// From then until the prompt was read.
    pub reading: Duration,
    /// From then until it ended.
    pub writing: Duration,
    /// The seed it was sampled with.
    pub seed: u64,
    /// What was guessed of it.
    pub guessed: Speculation,
}

/// What a scheduler says of a task. Texts have numbers from 0.
#[derive(Debug)]
pub enum Event<'a> {
    /// A text has a sequence of the context.
    Started {
        /// The text.
        index: u32,
        /// Tokens of the prompt that need not be read again.
        cached: usize,
        /// Where they were.
        found: Found,
        /// Why not more of them; empty if there are no more.
        miss: String,
    },
    /// The prompt is being read.
    Reading {
        /// The text.
        index: u32,
        /// Tokens that were read, and those that need not be.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// Tokens of the prompt have been read: its first ones, or those that follow what the last such event had. Only text 0 says
    /// so.
    Scored {
        /// The text.
        index: u32,
        /// The tokens.
        tokens: &'a [u32],
        /// The log-probabilities of each, after all tokens before it; `None` for the first token of the prompt.
        logprobs: Vec<Option<TokenLogprobs>>,
    },
    /// A text goes on.
    Piece {
        /// The text.
        index: u32,
        /// The token and the characters.
        step: Step<'a>,
        /// The log-probabilities of the token, if they were asked for.
        logprobs: Option<&'a TokenLogprobs>,
    },
    /// A text has ended. One that never began ends without [`Event::Started`].
    Finished {
        /// The text.
        index: u32,
        /// Why.
        end: End,
        /// What was written.
        tokens: &'a [u32],
        /// The same as text.
        text: &'a str,
        /// What it took.
        usage: TextUsage,
    },
    /// All texts have ended.
    Done,
    /// The task failed, and all of its texts with it.
    Failed(TaskError),
}

/// A text that waits or is being written.
#[derive(Debug)]
pub(super) struct Text {
    pub task: TaskId,
    pub index: u32,
    /// Texts get sequences in this order.
    pub order: u64,
    pub generation: Generation,
    pub writer: TextWriter,
    /// Guesses what follows, if anything does.
    pub draft: Option<Draft>,
    /// The most guesses that the next evaluation may have.
    pub most_guesses: usize,
    pub n_prompt: usize,
    pub cache: bool,
    pub progress: bool,
    /// How many likely tokens are told in the place of each of the prompt's, if its log-probabilities are.
    pub scores: Option<usize>,
    /// Tokens of the prompt whose log-probabilities were told.
    pub n_scored: usize,
    pub has_logprobs: bool,
    /// The most tokens that it can have.
    pub most: usize,
    pub cached: usize,
    pub arrived: Instant,
    /// When it got a sequence for the first time.
    pub started: Option<Instant>,
    /// When its prompt was read.
    pub read: Option<Instant>,
    /// The file that is being read for it.
    pub loading: Option<FileId>,
    /// Why a file is of no use for it.
    pub unusable: Option<String>,
}

impl Text {
    /// Takes a step of the generation.
    pub fn step(&mut self, logits: LogitRows<'_>) -> Result<Action, Error> {
        let TextWriter { sampler, constraint } = &mut self.writer;
        let mut writer = Writer { draft: self.draft.as_mut(), constraint: constraint.as_mut(), sampler };
        let action = self.generation.step(&mut writer, logits)?;
        let token = self.generation.piece().and_then(|piece| piece.token);
        match (action, &mut self.draft, token) {
            (Action::Accepted, Some(draft), Some(token)) => {
                draft.push(token);
                draft.taken();
            }
            (Action::Evaluate { most_guesses, .. }, Some(draft), Some(token)) => {
                draft.push(token);
                draft.decided(false);
                self.most_guesses = most_guesses;
            }
            (Action::Flush | Action::Finished, Some(draft), _) => draft.decided(true),
            _ => {}
        }
        Ok(action)
    }

    /// Returns how many tokens of what its sequence holds are its own: the others are guesses that were wrong.
    pub fn n_own(&self) -> usize {
        self.n_prompt + self.generation.n_evaluated()
    }

    /// Returns the tokens that the model has to read before the next token.
    pub fn tokens(&self) -> &[u32] {
        self.generation.text()
    }

    /// Returns whether its prompt was read.
    pub fn is_writing(&self) -> bool {
        self.read.is_some()
    }

    /// Returns whether logits are wanted of each token that is read after so many.
    pub fn is_scored_at(&self, held: usize) -> bool {
        self.scores.is_some() && held < self.n_prompt && self.n_scored < self.n_prompt
    }

    /// Returns the event of the logits of `n` tokens after the first `held` ones; `None` if it was told before.
    pub fn scored(&mut self, held: usize, n: usize, logits: LogitRows<'_>) -> Result<Option<Event<'_>>, Error> {
        let Some(n_likely) = self.scores else { return Ok(None) };
        let prompt = &self.generation.text()[..self.n_prompt];
        // The logits of each token are about the one after it.
        let end = (held + n + 1).min(self.n_prompt);
        let begin = self.n_scored.min(end);
        let mut logprobs = Vec::with_capacity(end - begin);
        for (at, &token) in (begin..).zip(&prompt[begin..end]) {
            let Some(row) = at.checked_sub(held + 1) else {
                logprobs.push(None);
                continue;
            };
            let mut top = Vec::new();
            let logprob = self.writer.sampler.logprobs(logits.row(row)?, token, n_likely, &mut top)?;
            logprobs.push(Some(TokenLogprobs { logprob, top }));
        }
        self.n_scored = end;
        let event = Event::Scored { index: self.index, tokens: &prompt[begin..end], logprobs };
        Ok((begin < end).then_some(event))
    }

    /// Returns what it took until now.
    pub fn usage(&self) -> TextUsage {
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        let read = self.read.unwrap_or(now);
        TextUsage {
            prompt_tokens: self.n_prompt,
            cached_tokens: self.cached,
            written_tokens: self.generation.tokens().len(),
            waiting: started - self.arrived.min(started),
            reading: read - started,
            writing: now - read,
            seed: self.writer.sampler.seed(),
            guessed: self.draft.as_ref().map(Draft::stats).unwrap_or_default(),
        }
    }

    /// Returns the event of its last step; `None` if that had no output.
    pub fn piece(&self) -> Option<Event<'_>> {
        let step = self.generation.piece()?;
        let logprobs = self.generation.logprobs().last().filter(|_| self.has_logprobs && step.token.is_some());
        Some(Event::Piece { index: self.index, step, logprobs })
    }

    /// Returns the event of its end.
    pub fn finished(&self, end: End) -> Event<'_> {
        let tokens = self.generation.tokens();
        Event::Finished { index: self.index, end, tokens, text: self.generation.written(), usage: self.usage() }
    }
}
