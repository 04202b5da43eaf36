//! The talk between a conversation and a model: what is read, what is written, and what is forgotten in between.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::super::progress::Patient;
use super::screen::Screen;
use super::settings::Settings;
use crate::chat::{self, Conversation, Fit, StopText, Template, Utf8Stream, Written};
use crate::constrain::Constraint;
use crate::engine;
use crate::engine::{Draft, Finish, GenerateOptions, Session, Speculation, Writer};
use crate::llama::Model;
use crate::sample::Sampler;
use crate::vocab::{TokenizeError, Tokenizer};

/// A model that somebody talks to.
pub struct Talk {
    session: Session,
    template: Template,
    sampler: Sampler,
    aids: Aids,
    stop: Vec<String>,
    settings: Settings,
    /// What was said.
    pub conversation: Conversation,
    /// How the last answer went.
    pub last: Option<Turn>,
    /// How all of them went, together.
    pub total: Turn,
}

/// What has a say in the tokens, besides the model and the sampler.
#[derive(Debug, Default)]
pub struct Aids {
    /// Holds each answer to a grammar.
    pub constraint: Option<Constraint>,
    /// Guesses ahead.
    pub draft: Option<Draft>,
}

/// How an answer went.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// Tokens of the prompt that the context held already.
    pub reused: usize,
    /// Tokens of the prompt that had to be read.
    pub read: usize,
    /// How long that took.
    pub read_time: Duration,
    /// Tokens that were written.
    pub written: usize,
    /// Those of them that were read again in the time it took.
    pub evaluated: usize,
    /// How long it took.
    pub write_time: Duration,
    /// What came of guessing ahead.
    pub speculation: Speculation,
}

impl Turn {
    fn add(&mut self, other: &Self) {
        self.reused += other.reused;
        self.read += other.read;
        self.read_time += other.read_time;
        self.written += other.written;
        self.evaluated += other.evaluated;
        self.write_time += other.write_time;
        self.speculation += other.speculation;
    }
}

/// How an answer ended.
#[derive(Debug)]
pub enum Ended {
    /// By itself.
    Itself,
    /// By Ctrl-C.
    Stopped,
    /// With as many tokens as were asked for.
    Limit,
    /// The context is full, and there is nothing to forget but this turn.
    Full,
    /// Nobody reads it.
    Unread,
    /// Something failed. What was written until then stays.
    Failed(engine::Error),
}

/// An answer that is in the conversation now.
#[derive(Debug)]
pub struct Answered {
    /// How it ended.
    pub ended: Ended,
    /// Turns that were forgotten for it.
    pub forgotten: usize,
    /// Whether it says nothing.
    pub is_empty: bool,
    /// Whether it is all that its grammar asks for; true where there is none.
    pub is_whole: bool,
}

/// Why there is no answer. The conversation is as it was.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// It was stopped before it began.
    #[error("stopped")]
    Stopped,
    /// The message does not fit.
    #[error(
        "this makes a prompt of {tokens} tokens, and the context holds {n_ctx}, {least} of them kept for the answer; \
         shorten it, or start with a larger --ctx"
    )]
    TooLong {
        /// Tokens of the prompt, without any earlier turn.
        tokens: usize,
        /// Tokens the context holds.
        n_ctx: usize,
        /// Tokens that the shortest answer gets.
        least: usize,
    },
    /// The template cannot put it to the model.
    #[error(transparent)]
    Template(#[from] chat::Error),
    /// The model failed.
    #[error(transparent)]
    Runtime(#[from] engine::Error),
}

impl From<TokenizeError> for Unanswered {
    fn from(error: TokenizeError) -> Self {
        Self::Runtime(error.into())
    }
}

/// An answer in the making.
#[derive(Default)]
struct Reply {
    text: String,
    tokens: Vec<u32>,
    /// Characters and stop texts may reach across a context that filled up in between.
    utf8: Utf8Stream,
    stop: StopText,
}

impl Reply {
    fn new(stop: &[String]) -> Self {
        Self { stop: StopText::new(stop.iter().cloned()), ..Self::default() }
    }

    /// Takes a token; shows what is certain. Gives whether a stop text came up, and whether it is read.
    fn push(&mut self, token: u32, codec: &dyn Tokenizer, screen: &mut Screen) -> (bool, ControlFlow<()>) {
        let (mut decoded, mut text) = (String::new(), String::new());
        self.tokens.push(token);
        self.utf8.push(codec.bytes(token), &mut decoded);
        let stopped = self.stop.push(&decoded, &mut text).is_some();
        self.text.push_str(&text);
        (stopped, screen.text(&text))
    }

    /// Shows what was held back. Where the answer was cut short, half a character at its end goes.
    fn finish(&mut self, was_cut: bool, codec: &dyn Tokenizer, screen: &mut Screen) {
        let (mut decoded, mut text) = (String::new(), String::new());
        if was_cut {
            drop_half_character(&mut self.tokens, |id| codec.bytes(id));
        } else {
            self.utf8.finish(&mut decoded);
        }
        let _ = self.stop.push(&decoded, &mut text);
        self.stop.finish(&mut text);
        self.text.push_str(&text);
        // Whether it is read is asked at the end.
        let _ = screen.text(&text);
    }
}

/// Takes away the tokens at the end that begin a character and do not end it.
fn drop_half_character<'a>(tokens: &mut Vec<u32>, bytes: impl Fn(u32) -> &'a [u8]) {
    let text: Vec<u8> = tokens.iter().flat_map(|id| bytes(*id)).copied().collect();
    let mut half = match text.utf8_chunks().last().map(|chunk| chunk.invalid()) {
        // Bytes that cannot begin a character are no half of one.
        Some(invalid) if std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none()) => invalid.len(),
        _ => 0,
    };
    while half > 0
        && let Some(last) = tokens.last().map(|id| bytes(*id).len())
        && last <= half
    {
        tokens.pop();
        half -= last;
    }
}

impl Talk {
    /// A model and nothing said.
    pub fn new(
        session: Session,
        template: Template,
        settings: Settings,
        aids: Aids,
        stop: Vec<String>,
    ) -> Result<Self, engine::Error> {
        let sampler = sampler(&settings, session.model().tokenizer())?;
        let (conversation, total) = (Conversation::default(), Turn::default());
        Ok(Self { session, template, sampler, aids, stop, settings, conversation, last: None, total })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        self.session.model()
    }

    /// The context.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Whether something guesses ahead.
    pub fn has_draft(&self) -> bool {
        self.aids.draft.is_some()
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes a setting.
    ///
    /// # Errors
    /// A sentence, where it cannot have that value.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let mut settings = self.settings.clone();
        settings.set(name, value)?;
        // The random numbers go on where they are, unless they are asked to begin anew.
        if settings.params != self.settings.params || settings.params.seed.is_some() {
            self.sampler = sampler(&settings, self.model().tokenizer()).map_err(|e| e.to_string())?;
        }
        self.settings = settings;
        Ok(())
    }

    /// The prompt for an answer, without so many of the oldest turns: its tokens, and what they say after the last
    /// marker.
    fn prompt(&self, conversation: &Conversation, without: usize) -> Result<(Vec<u32>, String), Unanswered> {
        let codec = self.model().tokenizer();
        let (messages, spoken) = conversation.read(without);
        let prompt = self.template.render(&messages, true, codec.markers())?;
        let tokens = chat::encode_conversation(&prompt, &spoken, codec)?;
        Ok((tokens, chat::after_last_marker(&prompt, codec)))
    }

    /// Whether the template takes such a conversation. Gives the tokens of what was said.
    ///
    /// # Errors
    /// Where it does not.
    pub fn check(&self, conversation: &Conversation) -> Result<usize, Unanswered> {
        if conversation.messages().is_empty() {
            return Ok(0);
        }
        let mut asked = conversation.clone();
        if asked.n_turns() == 0 || asked.last_answer().is_some() {
            // Many templates want somebody to answer.
            asked.ask("?");
        }
        Ok(self.prompt(&asked, 0)?.0.len())
    }

    /// Tokens that an answer should have room for, and those it has to have room for.
    fn rooms(&self) -> (usize, usize) {
        let n_ctx = self.session.n_ctx() as usize;
        let most = self.settings.max_tokens.unwrap_or(n_ctx);
        ((n_ctx / 8).min(most).max(1), (n_ctx / 32).min(most).max(1))
    }

    /// Has the model answer what was said last.
    ///
    /// # Errors
    /// Where there is no answer; the conversation is as it was.
    pub fn answer(&mut self, screen: &mut Screen) -> Result<Answered, Unanswered> {
        self.write(Reply::new(&self.stop), screen)
    }

    /// Has the model go on with its last answer; `None` where the last message is no answer.
    ///
    /// # Errors
    /// Where it does not go on; the conversation is as it was, without its last answer.
    pub fn go_on(&mut self, screen: &mut Screen) -> Option<Result<Answered, Unanswered>> {
        let (text, written) = self.conversation.pop_answer()?;
        let tokens = match written {
            Some(written) => Ok(written.tokens),
            None => chat::encode_inside(&text, self.model().tokenizer()),
        };
        Some(match tokens {
            Ok(tokens) => self.write(Reply { text, tokens, ..Reply::new(&self.stop) }, screen),
            Err(error) => Err(error.into()),
        })
    }

    fn write(&mut self, mut reply: Reply, screen: &mut Screen) -> Result<Answered, Unanswered> {
        let n_ctx = self.session.n_ctx() as usize;
        let (room, least) = self.rooms();
        let begun = reply.tokens.len();
        let size = |without| Ok::<_, Unanswered>(self.prompt(&self.conversation, without)?.0.len() + begun);
        let mut forgotten = match self.conversation.fit(n_ctx, room, least, size)? {
            Fit::Whole => 0,
            Fit::Without(n) => n,
            Fit::TooLong(tokens) => return Err(Unanswered::TooLong { tokens, n_ctx, least }),
        };
        if let Some(constraint) = &mut self.aids.constraint {
            constraint.restart().map_err(engine::Error::from)?;
            for token in &reply.tokens {
                constraint.accept(*token).map_err(engine::Error::from)?;
            }
        }
        let mut turn = Turn::default();
        screen.begin(self.settings.wrap);
        let (ended, after) = loop {
            let (mut prompt, after) = self.prompt(&self.conversation, forgotten)?;
            prompt.extend(&reply.tokens);
            let most = self.settings.max_tokens.map(|most| (begun + most).saturating_sub(reply.tokens.len()));
            match self.run(&prompt, most, &mut reply, &mut turn, screen) {
                Ok(Ended::Full) => match self.more_room(forgotten, reply.tokens.len())? {
                    Some(more) => forgotten += more,
                    None => break (Ended::Full, after),
                },
                Ok(ended) => break (ended, after),
                Err(error) if reply.tokens.len() == begun => return Err(error.into()),
                Err(error) => break (Ended::Failed(error), after),
            }
        };
        if matches!(ended, Ended::Stopped) && reply.tokens.len() == begun {
            return Err(Unanswered::Stopped);
        }
        reply.finish(!matches!(ended, Ended::Itself), self.session.model().tokenizer(), screen);
        screen.end();

        turn.written = reply.tokens.len().saturating_sub(begun);
        self.total.add(&turn);
        self.last = Some(turn);
        self.conversation.forget(forgotten);
        let is_empty = reply.text.trim().is_empty();
        let written = spells(&reply.tokens, &reply.text, self.model().tokenizer());
        self.conversation.answer(reply.text, written.then_some(Written { after, tokens: reply.tokens }));
        let is_whole = self.aids.constraint.as_mut().is_none_or(Constraint::is_complete);
        Ok(Answered { ended, forgotten, is_empty, is_whole })
    }

    /// Turns to forget where the context is full and an answer of so many tokens is not done; `None` where that would not
    /// help.
    fn more_room(&self, forgotten: usize, n_written: usize) -> Result<Option<usize>, Unanswered> {
        let n_ctx = self.session.n_ctx() as usize;
        let mut conversation = self.conversation.clone();
        conversation.forget(forgotten);
        let size = |without| Ok::<_, Unanswered>(self.prompt(&conversation, without)?.0.len() + n_written);
        // Less than an eighth would be used up at once, and everything read again for it.
        match conversation.fit(n_ctx, n_ctx / 8, n_ctx / 8, size)? {
            Fit::Without(n) => Ok(Some(n)),
            Fit::Whole | Fit::TooLong(_) => Ok(None),
        }
    }

    /// Reads a prompt and writes on from it, `most` tokens, or until the context is full.
    fn run(
        &mut self,
        prompt: &[u32],
        most: Option<usize>,
        reply: &mut Reply,
        turn: &mut Turn,
        screen: &mut Screen,
    ) -> Result<Ended, engine::Error> {
        let start = Instant::now();
        let mut progress = None;
        let held = match self.read(prompt, &mut progress) {
            Ok(held) => held,
            Err(engine::Error::Cancelled) => return Ok(Ended::Stopped),
            Err(error) => return Err(error),
        };
        let read_time = start.elapsed();

        let model = self.session.model().clone();
        let options = GenerateOptions { max_tokens: most, ..GenerateOptions::default() };
        let (mut stopped, mut unread) = (false, false);
        let Aids { constraint, draft } = &mut self.aids;
        let writer = Writer { sampler: &mut self.sampler, constraint: constraint.as_mut(), draft: draft.as_mut() };
        let done = engine::generate(&mut self.session, writer, prompt, &options, |step| {
            progress = None;
            let Some(token) = step.token else { return ControlFlow::Continue(()) };
            let (stop, flow) = reply.push(token, model.tokenizer(), screen);
            (stopped, unread) = (stop, flow.is_break());
            if stop { ControlFlow::Break(()) } else { flow }
        })?;
        drop(progress);
        turn.reused += held;
        turn.read += prompt.len() - held;
        turn.read_time += read_time + done.prompt_time;
        turn.evaluated += done.evaluated_tokens;
        turn.write_time += done.generate_time;
        turn.speculation += done.speculation.unwrap_or_default();
        Ok(match done.finish {
            _ if unread => Ended::Unread,
            _ if stopped => Ended::Itself,
            Finish::End { .. } | Finish::Stop { .. } | Finish::Complete => Ended::Itself,
            Finish::MaxTokens => Ended::Limit,
            Finish::ContextFull => Ended::Full,
            Finish::Dropped | Finish::Cancelled => Ended::Stopped,
        })
    }

    /// Reads all of a prompt but its last batch, which is left to the writing, and shows how far it is where that takes
    /// long. Gives the tokens that the context held already.
    fn read(&mut self, prompt: &[u32], progress: &mut Option<Patient>) -> Result<usize, engine::Error> {
        let held = self.session.tokens().iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let held = held.min(prompt.len().saturating_sub(1));
        let n_batch = self.session.n_batch().max(1);
        let bar = progress.insert(Patient::new("reading", (prompt.len() - held) as u64));
        let mut end = held + n_batch;
        while end < prompt.len() {
            self.session.prefill(&prompt[..end])?;
            bar.at((end - held) as u64);
            end += n_batch;
        }
        Ok(held)
    }
}

fn sampler(settings: &Settings, codec: &dyn Tokenizer) -> Result<Sampler, crate::sample::Error> {
    Sampler::with_text(&settings.params, codec.n_tokens(), |id| codec.bytes(id))
}

/// Whether tokens spell a text exactly, and no control token is among them: then they can stand for it.
fn spells(tokens: &[u32], text: &str, codec: &dyn Tokenizer) -> bool {
    let bytes = tokens.iter().flat_map(|id| codec.bytes(*id));
    bytes.eq(text.as_bytes()) && !tokens.iter().any(|id| codec.markers().contains(*id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_character_goes_and_a_whole_one_stays() {
        const PIECES: [&[u8]; 6] = [b"a", "\u{8bdd}".as_bytes(), &[0xe8], &[0xaf], &[0xff], b"b\xe8\xaf"];
        let cut = |tokens: &[u32]| {
            let mut tokens = tokens.to_vec();
            drop_half_character(&mut tokens, |id| PIECES[id as usize]);
            tokens
        };
        assert_eq!(cut(&[0, 1]), [0, 1]);
        assert_eq!(cut(&[0, 2]), [0]);
        assert_eq!(cut(&[1, 2, 3]), [1]);
        assert_eq!(cut(&[0, 4]), [0, 4], "no half of anything");
        assert_eq!(cut(&[0, 5]), [0, 5], "the token has a whole character too");
        assert!(cut(&[2]).is_empty());
        assert!(cut(&[]).is_empty());
    }
}
