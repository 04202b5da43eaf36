//! Speculation: several tokens are guessed cheaply, and the model reads them in one evaluation.
//!
//! ```text
//! text so far ──► draft x1 x2 x3 ──► one evaluation of the last token, x1, x2, x3: four rows of logits
//!                                    row 0 decides on x1, row 1 on x2, ...: up to the first that is not taken
//! ```
//!
//! What comes out is what would have come out without: the same tokens where the most likely one is always taken, the
//! same distribution where tokens are drawn, and the same tokens even there where the draft is looked up in the text,
//! because the sampler then draws as it would have. On most machines reading a few tokens at once takes little more time
//! than reading one, since either way all weights have to come from memory.
//!
//! What takes the place of a token that is not taken: [`choose`]. How many are drafted: [`draft_length`]. Drafts from the text
//! itself: [`ngram`].

mod choose;
mod draft_length;
mod ngram;

use std::time::Instant;

use crate::base::math::exp;
use crate::base::random::Random;
use crate::llama::{Error, Logits, Model, Session, SessionOptions};
use crate::sample::Sampler;
use crate::vocab::{same_ends, same_vocabulary};

use draft_length::{Costs, DraftLength};
use ngram::Ngrams;

pub use choose::take_or_redraw;

/// What reading one more token in an evaluation costs, as a share of reading one, until that is measured: about what it
/// is on a CPU.
const ASSUMED_READ: f64 = 0.25;

/// How many tokens to draft.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DraftOptions {
    /// Tokens to draft at a time at most.
    pub max: usize,
    /// Drafts shorter than this are not used. Where it equals `max`, so many are drafted every time; otherwise as many
    /// as have paid so far.
    pub min: usize,
    /// A draft model stops drafting where its most likely token is less likely than this.
    pub p_min: f32,
}

impl Default for DraftOptions {
    fn default() -> Self {
        Self { max: 16, min: 0, p_min: 0.0 }
    }
}

impl DraftOptions {
    /// The most tokens that can be drafted at a time.
    pub const MOST: usize = 64;

    /// Refuses numbers that make no sense.
    ///
    /// # Errors
    /// [`Error::Option`] and [`Error::Share`].
    pub fn check(&self) -> Result<(), Error> {
        let option = |name, value: usize, wanted| Error::Option { name, value: value as u64, wanted };
        if !(1..=Self::MOST).contains(&self.max) {
            return Err(option("--draft-max", self.max, format!("from 1 to {}", Self::MOST)));
        }
        if self.min > self.max {
            return Err(option("--draft-min", self.min, format!("at most the {} of --draft-max", self.max)));
        }
        if !(0.0..=1.0).contains(&self.p_min) {
            return Err(Error::Share { name: "--draft-p-min", value: self.p_min, wanted: "from 0 to 1" });
        }
        Ok(())
    }

    /// Rows of logits that a session needs for such drafts: one for each drafted token, and one for what follows.
    pub fn rows(&self) -> u32 {
        u32::try_from(self.max).unwrap_or(u32::MAX).saturating_add(1)
    }
}

/// What came of drafting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speculation {
    /// Tokens that were drafted and read.
    pub drafted: usize,
    /// Those of them that became part of the text.
    pub accepted: usize,
    /// Evaluations of the model, after that of the prompt.
    pub evaluations: usize,
}

impl std::ops::AddAssign for Speculation {
    fn add_assign(&mut self, other: Self) {
        self.drafted += other.drafted;
        self.accepted += other.accepted;
        self.evaluations += other.evaluations;
    }
}

impl Speculation {
    /// The share of the drafted tokens that was taken; 0 where none was drafted.
    pub fn acceptance(&self) -> f64 {
        if self.drafted == 0 { 0.0 } else { self.accepted as f64 / self.drafted as f64 }
    }

    /// Tokens read an evaluation that became part of the text: 1 where drafting gained nothing.
    pub fn tokens_per_evaluation(&self) -> f64 {
        if self.evaluations == 0 { 0.0 } else { 1.0 + self.accepted as f64 / self.evaluations as f64 }
    }
}

/// Guesses how a text goes on. It lives across texts: what it knows of one is used again for the next, as far as the
/// next begins with the same tokens.
#[derive(Debug)]
pub struct Draft {
    source: Source,
    draft_length: DraftLength,
    max: usize,
    p_min: f32,
    // The text so far: prompt and what was written.
    text: Vec<u32>,
    // What is guessed to follow it.
    tokens: Vec<u32>,
    // What each guess was drawn from, sorted by token; None where it could have been no other.
    drawn_from: Vec<Option<Vec<(u32, f64)>>>,
    kind: usize,
    // Of the current guesses, those that were taken.
    taken: usize,
    // The target's memory cannot be cut after all.
    given_up: bool,
    // Whether time may decide on the length of drafts: not where the length decides on which random number is whose.
    timed: bool,
    seed: Option<u64>,
    random: Random,
    stats: Speculation,
    spare: Vec<(u32, f64)>,
}

/// A guess for one token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guess<'a> {
    /// The token.
    pub token: u32,
    /// What it was drawn from, sorted by token; `None` where it could have been no other.
    pub drawn_from: Option<&'a [(u32, f64)]>,
}

#[derive(Debug)]
enum Source {
    Ngram(Ngrams),
    Model(Box<Drafter>),
}

#[derive(Debug)]
struct Drafter {
    session: Session,
    // Tokens at the beginning of the text that the session is known to have read.
    known: usize,
}

impl Draft {
    /// Looks the continuation up in the text itself.
    ///
    /// # Errors
    /// Where an option is out of range.
    pub fn ngram(options: DraftOptions) -> Result<Self, Error> {
        options.check()?;
        let costs = Costs { draft: 0.0, read: ASSUMED_READ };
        Ok(Self::new(Source::Ngram(Ngrams::default()), options, costs))
    }

    /// Asks a smaller model of the same vocabulary. `session` is how the target's session was made; the draft's gets as
    /// much context.
    ///
    /// # Errors
    /// Where an option is out of range, the vocabularies differ, the draft model's memory cannot be cut, or there is no
    /// room for its session.
    pub fn model(
        target: &Model,
        draft: &Model,
        session: &SessionOptions,
        options: DraftOptions,
    ) -> Result<Self, Error> {
        options.check()?;
        let refused = |reason: String| Error::Draft { path: draft.path().to_path_buf(), reason };
        let (here, there) = (target.codec(), draft.codec());
        same_vocabulary(here, there).and_then(|()| same_ends(here, there)).map_err(refused)?;
        if !draft.can_be_cut() {
            return Err(refused(NO_CUT.to_string()));
        }
        let session = Session::new(draft, &Self::session_options(target, session))?;
        let weights = |model: &Model| model.shape().weight_bytes.max(1) as f64;
        let costs = Costs { draft: (weights(draft) / weights(target)).min(1.0), read: ASSUMED_READ };
        Ok(Self::new(Source::Model(Box::new(Drafter { session, known: 0 })), options, costs))
    }

    /// How the session of a draft model is made, where the target's is made by `session`.
    pub fn session_options(target: &Model, session: &SessionOptions) -> SessionOptions {
        SessionOptions { n_ctx: Some(session.n_ctx_for(target.n_ctx_train())), rows: 1, ..session.clone() }
    }

    fn new(source: Source, options: DraftOptions, costs: Costs) -> Self {
        Self {
            timed: matches!(source, Source::Ngram(_)),
            source,
            draft_length: DraftLength::new(options.min, options.max, costs),
            max: options.max,
            p_min: options.p_min,
            text: Vec::new(),
            tokens: Vec::new(),
            drawn_from: Vec::new(),
            kind: 0,
            taken: 0,
            given_up: false,
            seed: None,
            random: Random::new(0),
            stats: Speculation::default(),
            spare: Vec::new(),
        }
    }

    /// A text begins with `prompt`, written by `sampler` in `session`.
    pub(super) fn begin(&mut self, prompt: &[u32], sampler: &Sampler, session: &Session) -> Result<(), Error> {
        if !session.model().can_be_cut() {
            let path = session.model().path().to_path_buf();
            return Err(Error::Draft { path, reason: NO_CUT.to_string() });
        }
        let same = self.text.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        match &mut self.source {
            Source::Ngram(ngrams) => ngrams.truncate(&self.text, same),
            Source::Model(drafter) => {
                drafter.known = drafter.known.min(same);
                self.timed = sampler.is_greedy();
            }
        }
        self.text.truncate(same);
        self.text.extend_from_slice(&prompt[same..]);
        self.clear();
        self.stats = Speculation::default();
        // One seed is to give one text, and the sampler's own numbers must have no part in the guesses.
        if self.seed != Some(sampler.seed()) {
            self.seed = Some(sampler.seed());
            self.random = Random::new(sampler.seed() ^ 0x6472_6166_7464_7261);
        }
        Ok(())
    }

    /// Has a draft model read the text so far, which is the prompt.
    pub(super) fn read(&mut self) -> Result<(), Error> {
        match &mut self.source {
            Source::Model(drafter) if self.text.len() <= drafter.session.n_ctx() as usize => {
                drafter.session.go_on(&self.text, drafter.known)?;
                drafter.known = self.text.len();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The guess for the token that row `row` of the logits decides on, and what it was drawn from.
    pub(super) fn guess(&self, row: usize) -> Option<Guess<'_>> {
        Some(Guess { token: *self.tokens.get(row)?, drawn_from: self.drawn_from.get(row)?.as_deref() })
    }

    /// The text goes on with `token`.
    pub(super) fn push(&mut self, token: u32) {
        self.text.push(token);
    }

    /// The text so far.
    pub(super) fn text(&self) -> &[u32] {
        &self.text
    }

    /// The guess of the token that was just decided on was right.
    pub(super) fn taken(&mut self) {
        self.taken += 1;
        self.stats.accepted += 1;
    }

    /// The guesses are decided on: what follows the first that was not taken means nothing. `ended`: the text ended
    /// before one was not taken.
    pub(super) fn decided(&mut self, ended: bool) {
        if !self.tokens.is_empty() {
            self.draft_length.learn(self.kind, self.tokens.len(), self.taken, ended);
        }
        self.clear();
    }

    fn clear(&mut self) {
        self.tokens.clear();
        self.drawn_from.clear();
        self.taken = 0;
    }

    /// No more guesses for this text.
    pub(super) fn give_up(&mut self) {
        self.given_up = true;
        self.clear();
    }

    /// Guesses how the text goes on, by at most `most` tokens, and gives the guesses.
    ///
    /// # Errors
    /// Where the draft model fails, or is interrupted.
    pub(super) fn propose(&mut self, most: usize, sampler: &Sampler) -> Result<&[u32], Error> {
        self.clear();
        // The first evaluation is timed as it is, without any guesses.
        if self.given_up || most == 0 || self.draft_length.knows_nothing() {
            return Ok(&[]);
        }
        match &mut self.source {
            Source::Ngram(ngrams) => {
                ngrams.extend(&self.text);
                let Some(found) = ngrams.find(&self.text) else { return Ok(&[]) };
                self.kind = match found.length {
                    0..5 => 0,
                    5..8 => 1,
                    8..16 => 2,
                    _ => 3,
                };
                let n = self.draft_length.length(self.kind, most);
                found.copy(&self.text, n, &mut self.tokens);
                self.drawn_from.resize(self.tokens.len(), None);
            }
            Source::Model(drafter) => {
                // The last token that is read is the one before the last that is guessed.
                let room = (drafter.session.n_ctx() as usize + 1).saturating_sub(self.text.len());
                let n = self.draft_length.length(self.kind, most.min(room));
                if n > 0 {
                    let begun = Instant::now();
                    // After a pause there is more to read first, which is not what drafting costs.
                    let is_near = drafter.known + n + 2 >= self.text.len();
                    self.ask(n, sampler)?;
                    if self.timed && is_near {
                        self.draft_length.drafted(self.tokens.len(), begun.elapsed());
                    }
                }
            }
        }
        self.stats.drafted += self.tokens.len();
        Ok(&self.tokens)
    }

    /// Has the draft model write `n` tokens, by a sampler that is as far as the target's.
    fn ask(&mut self, n: usize, sampler: &Sampler) -> Result<(), Error> {
        let Source::Model(drafter) = &mut self.source else { return Ok(()) };
        let session = &mut drafter.session;
        session.go_on(&self.text, drafter.known)?;
        drafter.known = self.text.len();
        let model = session.model().clone();
        let mut sampler = sampler.clone();
        for i in 0..n {
            let logits = session.logits(0)?;
            // Not whether the token that is drawn is likely: to drop a guess for what it is would skew what comes out.
            if self.p_min > 0.0 && highest_probability(logits) < f64::from(self.p_min) {
                break;
            }
            sampler.distribution(logits, None, &mut self.spare)?;
            let token = choose::draw(self.spare.iter().copied(), self.random.unit());
            self.tokens.push(token);
            self.drawn_from.push((self.spare.len() > 1).then(|| {
                let mut sorted = self.spare.clone();
                sorted.sort_unstable_by_key(|(id, _)| *id);
                sorted
            }));
            if i + 1 < n {
                if model.codec().is_end(token) {
                    break;
                }
                sampler.accept(token);
                session.eval(&[token], Logits::Last)?;
            }
        }
        // Too short to be worth a larger evaluation.
        if self.tokens.len() < self.draft_length.min() {
            self.tokens.clear();
            self.drawn_from.clear();
        }
        Ok(())
    }

    /// An evaluation of a token and `drafted` guesses took since `begun`.
    pub(super) fn evaluated(&mut self, drafted: usize, begun: Instant) {
        self.stats.evaluations += 1;
        if self.timed || self.draft_length.knows_nothing() {
            self.draft_length.evaluated(drafted, begun.elapsed());
        }
    }

    /// What came of drafting in the current text.
    pub(super) fn stats(&self) -> Speculation {
        self.stats
    }

    /// Tokens drafted at a time at most.
    pub fn max(&self) -> usize {
        self.max
    }
}

const NO_CUT: &str = "it cannot take back tokens that turn out wrong, as recurrent and hybrid models cannot";

/// The probability of the most likely token.
fn highest_probability(logits: &[f32]) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|l| exp((f64::from(*l) - f64::from(highest)).min(0.0))).sum();
    1.0 / total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_cannot_be_are_refused() {
        let refused = |options: DraftOptions| options.check().unwrap_err().to_string();
        let base = DraftOptions::default();
        assert!(base.check().is_ok());
        assert!(refused(DraftOptions { max: 0, ..base }).contains("--draft-max is 0; it has to be from 1 to 64"));
        assert!(refused(DraftOptions { max: 65, ..base }).contains("--draft-max is 65"));
        assert!(refused(DraftOptions { min: 17, ..base }).contains("--draft-min is 17; it has to be at most the 16"));
        assert!(refused(DraftOptions { p_min: 1.5, ..base }).contains("--draft-p-min is 1.5"));
        assert!(refused(DraftOptions { p_min: f32::NAN, ..base }).contains("--draft-p-min"));
        assert_eq!(base.rows(), 17);
    }

    #[test]
    fn the_highest_probability_is_that_of_a_softmax() {
        assert!((highest_probability(&[1.0, 1.0, f32::NEG_INFINITY]) - 0.5).abs() < 1e-12);
        assert!((highest_probability(&[3.0, 1.0]) - 1.0 / (1.0 + (-2f64).exp())).abs() < 1e-12);
    }
}
