//! One turn of a conversation: the model answers the last message, or continues its last answer.
//!
//! ```text
//! Conversation ──► fit: which turns does the context hold? ──► Template ──► tokens
//!      ▲                    ▲                                                 │
//!      │                    └── full: forget the oldest turns ─┐              ▼
//!      └────────── answer ◄── text up to a stop text ◄─────── generate ◄── prefill
//!                                      │                                      │
//!                                      ▼                                      ▼
//!                    EventSink:      Text                                  Reading
//! ```
//!
//! An [`Assistant`] owns the parts that answer: the context, the template, the sampler, and optionally a grammar and a
//! draft. The [`Conversation`] stays with the caller, who may keep several. While an answer is written, events are sent
//! to an [`EventSink`], which can also stop the turn. Nothing here prints.
//!
//! An answer may be longer than the room in the context. When the context fills up, the oldest turns are forgotten, the
//! rest is read again, and the answer continues. Characters and stop texts that span that point are handled correctly.

use std::ops::{AddAssign, ControlFlow};
use std::time::{Duration, Instant};

use super::{Draft, Error, Finish, GenerateOptions, Session, Speculation, Writer, generate};
use crate::chat::{self, Conversation, Fit, StopText, Template, Utf8Stream, Written};
use crate::constrain::Constraint;
use crate::llama::Model;
use crate::sample::{self, Params, Sampler};
use crate::vocab::{Place, TokenizeError, Tokenizer};

/// How answers are written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TurnOptions {
    /// How tokens are sampled.
    pub params: Params,
    /// The most tokens to write in one turn; `None` writes until the model ends the answer.
    pub max_tokens: Option<usize>,
    /// Texts that end an answer. They are not part of it.
    pub stop: Vec<String>,
}

/// An event during a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The prompt fits the context, and an answer begins.
    Begin,
    /// The model has read `done` of the `total` tokens of the prompt that its context did not hold yet. Sent with 0
    /// before the first batch and with `total` when the first token is drawn. Starts over when the context has filled
    /// up.
    Reading {
        /// Tokens read.
        done: usize,
        /// Tokens to read.
        total: usize,
    },
    /// The context was too small: the model no longer reads this many more of the oldest turns.
    Forgot {
        /// The number of turns.
        turns: usize,
    },
    /// The answer continues with this text, which is never empty.
    Text(&'a str),
    /// The answer is finished and in the conversation. Not sent when a turn fails.
    End,
}

/// Receives the events of a turn.
///
/// Any closure that takes an [`Event`] implements this.
pub trait EventSink {
    /// Receives an event. `Break` stops the turn: what was written so far is kept. If nothing was written, the turn
    /// ends with [`TurnError::Cancelled`].
    fn event(&mut self, event: Event<'_>) -> ControlFlow<()>;
}

impl<F: FnMut(Event<'_>) -> ControlFlow<()>> EventSink for F {
    fn event(&mut self, event: Event<'_>) -> ControlFlow<()> {
        self(event)
    }
}

/// How many tokens a turn read and wrote, and how long that took.
#[derive(Clone, Debug, Default)]
pub struct TurnStats {
    /// Tokens of the prompt that the context already held.
    pub reused_tokens: usize,
    /// Tokens of the prompt that were read.
    pub read_tokens: usize,
    /// The time that reading them took.
    pub read_time: Duration,
    /// Tokens written.
    pub written_tokens: usize,
    /// Written tokens that the model evaluated within `write_time`.
    pub evaluated_tokens: usize,
    /// The time that writing took.
    pub write_time: Duration,
    /// How well drafting did.
    pub speculation: Speculation,
}

impl AddAssign<&Self> for TurnStats {
    fn add_assign(&mut self, other: &Self) {
        self.reused_tokens += other.reused_tokens;
        self.read_tokens += other.read_tokens;
        self.read_time += other.read_time;
        self.written_tokens += other.written_tokens;
        self.evaluated_tokens += other.evaluated_tokens;
        self.write_time += other.write_time;
        self.speculation += other.speculation;
    }
}

/// How an answer ended.
#[derive(Debug)]
pub enum TurnEnd {
    /// The model ended it, a stop text occurred, or the grammar is complete.
    Complete,
    /// The session's cancel flag was set.
    Cancelled,
    /// It has as many tokens as [`TurnOptions::max_tokens`] allows.
    MaxTokens,
    /// The context is full, and there is no earlier turn left to forget.
    ContextFull,
    /// The event sink stopped it.
    Dropped,
    /// The model failed. What was written until then is kept.
    Failed(Error),
}

/// An answer, which is in the conversation by now.
#[derive(Debug)]
pub struct Answer {
    /// How it ended.
    pub end: TurnEnd,
    /// The number of turns that were forgotten to make room for it.
    pub forgotten_turns: usize,
    /// Whether it has only white space.
    pub is_empty: bool,
    /// Whether it satisfies its grammar in full; true without a grammar.
    pub is_complete: bool,
    /// Its token counts and times.
    pub stats: TurnStats,
}

/// Why there is no answer. The conversation is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// The turn was stopped before the answer began.
    #[error("stopped")]
    Cancelled,
    /// There is no answer to continue.
    #[error("there is no answer to continue")]
    NoAnswer,
    /// The last turn alone is too long for the context.
    #[error(
        "the prompt has {tokens} tokens, but the context holds {n_ctx}, of which {least} are reserved for the answer"
    )]
    TooLong {
        /// Tokens of the prompt without any earlier turn.
        tokens: usize,
        /// Tokens that the context holds.
        n_ctx: usize,
        /// The fewest tokens that an answer must have room for.
        least: usize,
    },
    /// The template cannot render the conversation.
    #[error("{0}")]
    Template(#[from] chat::Error),
    /// The text cannot be encoded, or the model failed.
    #[error("{0}")]
    Model(#[from] Error),
}

impl From<TokenizeError> for TurnError {
    fn from(error: TokenizeError) -> Self {
        Self::Model(error.into())
    }
}

/// The model's side of conversations: answers them one turn at a time, in one context.
#[derive(Debug)]
pub struct Assistant {
    session: Session,
    template: Template,
    sampler: Sampler,
    constraint: Option<Constraint>,
    draft: Option<Draft>,
    options: TurnOptions,
}

impl Assistant {
    /// Creates an assistant that answers in `session`, with prompts in the format of `template`.
    ///
    /// # Errors
    /// If a sampling parameter is out of range.
    pub fn new(session: Session, template: Template, options: TurnOptions) -> Result<Self, sample::Error> {
        let sampler = sampler(&options.params, session.model().tokenizer())?;
        Ok(Self { session, template, sampler, constraint: None, draft: None, options })
    }

    /// Constrains every answer to a grammar.
    pub fn with_constraint(mut self, constraint: Option<Constraint>) -> Self {
        self.constraint = constraint;
        self
    }

    /// Drafts tokens ahead. This changes the speed, but not the text.
    pub fn with_draft(mut self, draft: Option<Draft>) -> Self {
        self.draft = draft;
        self
    }

    /// The model.
    pub fn model(&self) -> &Model {
        self.session.model()
    }

    /// The context.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Returns the template of its prompts.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// Returns whether tokens are drafted ahead.
    pub fn has_draft(&self) -> bool {
        self.draft.is_some()
    }

    /// How answers are written.
    pub fn options(&self) -> &TurnOptions {
        &self.options
    }

    /// Changes how answers are written.
    ///
    /// The random stream continues, unless the parameters differ or name a seed. Then it starts from the seed.
    ///
    /// # Errors
    /// If a sampling parameter is out of range. The options are unchanged then.
    pub fn set_options(&mut self, options: TurnOptions) -> Result<(), sample::Error> {
        if options.params != self.options.params || options.params.seed.is_some() {
            self.sampler = sampler(&options.params, self.tokenizer())?;
        }
        self.options = options;
        Ok(())
    }

    fn tokenizer(&self) -> &dyn Tokenizer {
        self.session.model().tokenizer()
    }

    /// Returns the number of tokens of `conversation` as a prompt.
    ///
    /// # Errors
    /// If the template refuses the conversation, or it cannot be encoded.
    pub fn prompt_tokens(&self, conversation: &Conversation) -> Result<usize, TurnError> {
        if conversation.messages().is_empty() {
            return Ok(0);
        }
        let mut asked = conversation.clone();
        if asked.n_turns() == 0 || asked.last_answer().is_some() {
            // Many templates refuse a conversation without a question.
            asked.ask("?");
        }
        Ok(self.prompt(&asked, 0)?.0.len())
    }

    /// Answers the last message of `conversation`, and adds the answer to it.
    ///
    /// # Errors
    /// If there is no answer. The conversation is unchanged then.
    pub fn answer(&mut self, conversation: &mut Conversation, sink: &mut dyn EventSink) -> Result<Answer, TurnError> {
        self.write(conversation, Reply::new(&self.options.stop), sink)
    }

    /// Continues the answer that `conversation` ends with.
    ///
    /// # Errors
    /// If the last message is not an answer, or nothing could be added to it. The conversation is unchanged then.
    pub fn continue_answer(
        &mut self,
        conversation: &mut Conversation,
        sink: &mut dyn EventSink,
    ) -> Result<Answer, TurnError> {
        let Some((text, written)) = conversation.pop_answer() else { return Err(TurnError::NoAnswer) };
        let tokens = match &written {
            Some(written) => Ok(written.tokens.clone()),
            None => chat::encode_text(&text, Place::Inside, self.tokenizer()),
        };
        let answer = tokens.map_err(TurnError::from).and_then(|tokens| {
            let reply = Reply { text: text.clone(), tokens, ..Reply::new(&self.options.stop) };
            self.write(conversation, reply, sink)
        });
        if answer.is_err() {
            conversation.answer(text, written);
        }
        answer
    }

    /// Returns the prompt for an answer, without the oldest `without` turns: its tokens, and its text after the last
    /// marker.
    fn prompt(&self, conversation: &Conversation, without: usize) -> Result<(Vec<u32>, String), TurnError> {
        let tokenizer = self.tokenizer();
        let (messages, spoken) = conversation.read(without);
        let prompt = self.template.render(&messages, true, tokenizer.markers())?;
        let tokens = chat::encode_conversation(&prompt, &spoken, tokenizer)?;
        Ok((tokens, chat::after_last_marker(&prompt, tokenizer)))
    }

    /// Returns how many tokens an answer should have room for, and how many it must have room for.
    fn room(&self) -> (usize, usize) {
        let n_ctx = self.session.n_ctx() as usize;
        let most = self.options.max_tokens.unwrap_or(n_ctx);
        ((n_ctx / 8).min(most).max(1), (n_ctx / 32).min(most).max(1))
    }

    /// Writes an answer that begins with `reply`.
    fn write(
        &mut self,
        conversation: &mut Conversation,
        mut reply: Reply,
        sink: &mut dyn EventSink,
    ) -> Result<Answer, TurnError> {
        let n_ctx = self.session.n_ctx() as usize;
        let (room, least) = self.room();
        let begun = reply.tokens.len();
        let size = |without| Ok::<_, TurnError>(self.prompt(conversation, without)?.0.len() + begun);
        let mut forgotten = match conversation.fit(n_ctx, room, least, size)? {
            Fit::Whole => 0,
            Fit::Without(turns) => turns,
            Fit::TooLong(tokens) => return Err(TurnError::TooLong { tokens, n_ctx, least }),
        };
        if let Some(constraint) = &mut self.constraint {
            constraint.restart().map_err(Error::from)?;
            for token in &reply.tokens {
                constraint.accept(*token).map_err(Error::from)?;
            }
        }
        let mut stats = TurnStats::default();
        let mut flow = sink.event(Event::Begin);
        if forgotten > 0 && flow.is_continue() {
            flow = sink.event(Event::Forgot { turns: forgotten });
        }
        let (end, after) = loop {
            let (mut prompt, after) = self.prompt(conversation, forgotten)?;
            if flow.is_break() {
                break (TurnEnd::Dropped, after);
            }
            prompt.extend(&reply.tokens);
            let most = self.options.max_tokens.map(|most| (begun + most).saturating_sub(reply.tokens.len()));
            match self.run(&prompt, most, &mut reply, &mut stats, sink) {
                Ok(TurnEnd::ContextFull) => match self.make_room(conversation, forgotten, reply.tokens.len())? {
                    Some(turns) => {
                        forgotten += turns;
                        flow = sink.event(Event::Forgot { turns });
                    }
                    None => break (TurnEnd::ContextFull, after),
                },
                Ok(end) => break (end, after),
                Err(error) if reply.tokens.len() == begun => return Err(error.into()),
                Err(error) => break (TurnEnd::Failed(error), after),
            }
        };
        if matches!(end, TurnEnd::Cancelled | TurnEnd::Dropped) && reply.tokens.len() == begun {
            return Err(TurnError::Cancelled);
        }
        reply.finish(!matches!(end, TurnEnd::Complete), self.session.model().tokenizer(), sink);
        // The turn is over, whether or not anybody still listens.
        let _ = sink.event(Event::End);

        stats.written_tokens = reply.tokens.len().saturating_sub(begun);
        conversation.forget(forgotten);
        let is_empty = reply.text.trim().is_empty();
        let written = spells(&reply.tokens, &reply.text, self.tokenizer());
        conversation.answer(reply.text, written.then_some(Written { after, tokens: reply.tokens }));
        let is_complete = self.constraint.as_mut().is_none_or(Constraint::is_complete);
        Ok(Answer { end, forgotten_turns: forgotten, is_empty, is_complete, stats })
    }

    /// Returns how many more turns to forget when the context is full and an answer of `n_written` tokens is
    /// unfinished; `None` when forgetting would not help.
    fn make_room(
        &self,
        conversation: &Conversation,
        forgotten: usize,
        n_written: usize,
    ) -> Result<Option<usize>, TurnError> {
        let n_ctx = self.session.n_ctx() as usize;
        let mut conversation = conversation.clone();
        conversation.forget(forgotten);
        let size = |without| Ok::<_, TurnError>(self.prompt(&conversation, without)?.0.len() + n_written);
        // Less than an eighth of the context would be used up immediately, at the cost of reading everything again.
        match conversation.fit(n_ctx, n_ctx / 8, n_ctx / 8, size)? {
            Fit::Without(turns) => Ok(Some(turns)),
            Fit::Whole | Fit::TooLong(_) => Ok(None),
        }
    }

    /// Reads a prompt and writes at most `most` tokens after it, or until the context is full.
    fn run(
        &mut self,
        prompt: &[u32],
        most: Option<usize>,
        reply: &mut Reply,
        stats: &mut TurnStats,
        sink: &mut dyn EventSink,
    ) -> Result<TurnEnd, Error> {
        let start = Instant::now();
        let reused = match self.read(prompt, sink) {
            Ok(Some(reused)) => reused,
            Ok(None) => return Ok(TurnEnd::Dropped),
            Err(Error::Cancelled) => return Ok(TurnEnd::Cancelled),
            Err(error) => return Err(error),
        };
        let read_time = start.elapsed();

        let total = prompt.len() - reused;
        let model = self.session.model().clone();
        let options = GenerateOptions { max_tokens: most, ..GenerateOptions::default() };
        let (mut is_first, mut stopped, mut dropped) = (true, false, false);
        let writer =
            Writer { sampler: &mut self.sampler, constraint: self.constraint.as_mut(), draft: self.draft.as_mut() };
        let done = generate(&mut self.session, writer, prompt, &options, |step| {
            let read = match std::mem::take(&mut is_first) {
                true => sink.event(Event::Reading { done: total, total }),
                false => ControlFlow::Continue(()),
            };
            let Some(token) = step.token else { return ControlFlow::Continue(()) };
            let (stop, flow) = reply.push(token, model.tokenizer(), sink);
            (stopped, dropped) = (stop, flow.is_break() || read.is_break());
            if stopped || dropped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if is_first && done.finish != Finish::Cancelled {
            // The answer ended without a token. It is over in any case.
            let _ = sink.event(Event::Reading { done: total, total });
        }
        stats.reused_tokens += reused;
        stats.read_tokens += total;
        stats.read_time += read_time + done.prompt_time;
        stats.evaluated_tokens += done.evaluated_tokens;
        stats.write_time += done.generate_time;
        stats.speculation += done.speculation.unwrap_or_default();
        Ok(match done.finish {
            _ if dropped => TurnEnd::Dropped,
            _ if stopped => TurnEnd::Complete,
            Finish::End { .. } | Finish::Stop { .. } | Finish::Complete => TurnEnd::Complete,
            Finish::MaxTokens => TurnEnd::MaxTokens,
            Finish::ContextFull => TurnEnd::ContextFull,
            Finish::Dropped | Finish::Cancelled => TurnEnd::Cancelled,
        })
    }

    /// Reads a prompt except for its last batch, which [`generate`] reads, and reports progress. Returns the number of
    /// tokens that the context already held; `None` if the sink stopped the turn.
    fn read(&mut self, prompt: &[u32], sink: &mut dyn EventSink) -> Result<Option<usize>, Error> {
        let held = self.session.tokens().iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let held = held.min(prompt.len().saturating_sub(1));
        let n_batch = self.session.n_batch().max(1);
        let total = prompt.len() - held;
        if sink.event(Event::Reading { done: 0, total }).is_break() {
            return Ok(None);
        }
        let mut end = held + n_batch;
        while end < prompt.len() {
            self.session.prefill(&prompt[..end])?;
            if sink.event(Event::Reading { done: end - held, total }).is_break() {
                return Ok(None);
            }
            end += n_batch;
        }
        Ok(Some(held))
    }
}

/// An answer that is being written.
#[derive(Default)]
struct Reply {
    text: String,
    tokens: Vec<u32>,
    // Both persist when the context fills up, because a character or a stop text may begin before and end after that.
    utf8: Utf8Stream,
    stop: StopText,
}

impl Reply {
    fn new(stop: &[String]) -> Self {
        Self { stop: StopText::new(stop.iter().cloned()), ..Self::default() }
    }

    /// Adds a token, and sends the text that is certain. Returns whether a stop text occurred, and the sink's answer.
    fn push(&mut self, token: u32, tokenizer: &dyn Tokenizer, sink: &mut dyn EventSink) -> (bool, ControlFlow<()>) {
        let (mut decoded, mut text) = (String::new(), String::new());
        self.tokens.push(token);
        self.utf8.push(tokenizer.bytes(token), &mut decoded);
        let stopped = self.stop.push(&decoded, &mut text).is_some();
        (stopped, self.send(&text, sink))
    }

    /// Sends the text that was held back. If the answer was cut short, removes the tokens of an unfinished character at
    /// its end.
    fn finish(&mut self, was_cut: bool, tokenizer: &dyn Tokenizer, sink: &mut dyn EventSink) {
        let (mut decoded, mut text) = (String::new(), String::new());
        if was_cut {
            drop_partial_character(&mut self.tokens, |id| tokenizer.bytes(id));
        } else {
            self.utf8.finish(&mut decoded);
        }
        let _ = self.stop.push(&decoded, &mut text);
        self.stop.finish(&mut text);
        // The turn is over, whether or not anybody still listens.
        let _ = self.send(&text, sink);
    }

    fn send(&mut self, text: &str, sink: &mut dyn EventSink) -> ControlFlow<()> {
        if text.is_empty() {
            return ControlFlow::Continue(());
        }
        self.text.push_str(text);
        sink.event(Event::Text(text))
    }
}

/// Removes the tokens at the end that begin a character without finishing it.
fn drop_partial_character<'a>(tokens: &mut Vec<u32>, bytes: impl Fn(u32) -> &'a [u8]) {
    let text: Vec<u8> = tokens.iter().flat_map(|id| bytes(*id)).copied().collect();
    let mut partial = match text.utf8_chunks().last().map(|chunk| chunk.invalid()) {
        // Bytes that cannot begin a character are not a partial one.
        Some(invalid) if std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none()) => invalid.len(),
        _ => 0,
    };
    while partial > 0
        && let Some(last) = tokens.last().map(|id| bytes(*id).len())
        && last <= partial
    {
        tokens.pop();
        partial -= last;
    }
}

fn sampler(params: &Params, tokenizer: &dyn Tokenizer) -> Result<Sampler, sample::Error> {
    Sampler::with_text(params, tokenizer.n_tokens(), |id| tokenizer.bytes(id))
}

/// Returns whether tokens spell a text exactly and none of them is a control token: then they can stand for the text in
/// a prompt.
pub fn spells(tokens: &[u32], text: &str, tokenizer: &dyn Tokenizer) -> bool {
    let bytes = tokens.iter().flat_map(|id| tokenizer.bytes(*id));
    bytes.eq(text.as_bytes()) && !tokens.iter().any(|id| tokenizer.markers().contains(*id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::tokenizer::tests::{CHARACTERS, Toy};

    #[test]
    fn a_partial_character_is_removed_and_a_whole_one_stays() {
        const PIECES: [&[u8]; 6] = [b"a", "\u{8bdd}".as_bytes(), &[0xe8], &[0xaf], &[0xff], b"b\xe8\xaf"];
        let cut = |tokens: &[u32]| {
            let mut tokens = tokens.to_vec();
            drop_partial_character(&mut tokens, |id| PIECES[id as usize]);
            tokens
        };
        assert_eq!(cut(&[0, 1]), [0, 1]);
        assert_eq!(cut(&[0, 2]), [0]);
        assert_eq!(cut(&[1, 2, 3]), [1]);
        assert_eq!(cut(&[0, 4]), [0, 4], "part of no character");
        assert_eq!(cut(&[0, 5]), [0, 5], "the token has a whole character too");
        assert!(cut(&[2]).is_empty());
        assert!(cut(&[]).is_empty());
    }

    /// What a reply with stop texts makes of characters, one token each.
    fn replied(characters: &str, stop: &[&str], was_cut: bool) -> (Reply, Vec<String>, bool) {
        let (toy, mut sent) = (Toy::new(), Vec::new());
        let stop: Vec<String> = stop.iter().map(|text| text.to_string()).collect();
        let mut reply = Reply::new(&stop);
        let mut sink = |event: Event<'_>| {
            match event {
                Event::Text(text) => sent.push(text.to_string()),
                other => panic!("{other:?}"),
            }
            ControlFlow::Continue(())
        };
        let stopped = characters.chars().any(|c| reply.push(CHARACTERS + u32::from(c), &toy, &mut sink).0);
        reply.finish(was_cut, &toy, &mut sink);
        (reply, sent, stopped)
    }

    #[test]
    fn a_stop_text_is_held_back_until_it_is_certain() {
        let (reply, sent, stopped) = replied("a,bUser:c", &["User:"], false);
        assert_eq!((reply.text.as_str(), stopped), ("a,b", true));
        assert_eq!(sent, ["a", ",", "b"]);
        let (reply, sent, stopped) = replied("a Use", &["User:"], true);
        assert_eq!((reply.text.as_str(), stopped), ("a Use", false));
        assert_eq!(sent.concat(), "a Use");
        assert!(sent.iter().all(|text| !text.is_empty()));
    }

    #[test]
    fn tokens_stand_for_a_text_that_they_spell() {
        let toy = Toy::new();
        let letters = |text: &str| text.chars().map(|c| CHARACTERS + u32::from(c)).collect::<Vec<_>>();
        assert!(spells(&letters("ab"), "ab", &toy));
        assert!(!spells(&letters("abc"), "ab", &toy), "a stop text was cut off");
        let im_end = [letters("a"), vec![7]].concat();
        assert!(!spells(&im_end, "a<|im_end|>", &toy), "a control token");
    }
}
