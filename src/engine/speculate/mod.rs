//! Speculation: several tokens are drafted cheaply, and the model verifies them in one evaluation.
//!
//! ```text
//! text so far ──► draft x1 x2 x3 ──► one evaluation of the last token, x1, x2, x3: four rows of logits
//!                                    row 0 decides on x1, row 1 on x2, ...: up to the first that is not taken
//! ```
//!
//! Speculation does not change the result. If the most likely token is always taken, the tokens are the same. If tokens
//! are sampled, the distribution is the same; with drafts from the text itself, even the tokens are the same, because
//! the sampler draws as it would without a draft. On most machines, evaluating a few tokens at once takes little more
//! time than evaluating one, because in both cases all weights have to be read from memory.
//!
//! [`choose`] replaces a token that is not accepted. [`draft_length`] decides how many are drafted, by what [`row_costs`] has
//! measured. [`ngram`] drafts from the text itself.

mod choose;
mod draft_length;
mod ngram;
mod row_costs;

use std::time::{Duration, Instant};

use super::error::{DraftError, DraftSetting};
use super::{Decoder, Error, Logits, Session, SessionOptions};
use crate::base::math::exp;
use crate::base::random::Random;
use crate::llama::{Context, Model};
use crate::sample::Sampler;
use crate::vocab::{same_ends, same_vocabulary};

use ngram::Ngrams;

pub use choose::take_or_redraw;
pub(super) use draft_length::{DraftLength, Weighing};
pub(super) use row_costs::RowCosts;

/// How many tokens to draft.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DraftOptions {
    /// The most tokens to draft at a time.
    pub max: usize,
    /// Shorter drafts are not used. If this equals `max`, that many tokens are drafted every time; otherwise the number
    /// depends on how drafts have paid off so far.
    pub min: usize,
    /// A draft model stops when its most likely token is less likely than this.
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

    /// Refuses numbers out of range.
    ///
    /// # Errors
    /// [`Error::DraftSetting`] if a number is out of range.
    pub fn check(&self) -> Result<(), Error> {
        let refused = |setting, value: f64, wanted| Err(Error::DraftSetting { setting, value, wanted });
        if !(1..=Self::MOST).contains(&self.max) {
            return refused(DraftSetting::Max, self.max as f64, format!("from 1 to {}", Self::MOST));
        }
        if self.min > self.max {
            let wanted = format!("at most {}, the most tokens to draft", self.max);
            return refused(DraftSetting::Min, self.min as f64, wanted);
        }
        if !(0.0..=1.0).contains(&self.p_min) {
            return refused(DraftSetting::MinProbability, self.p_min.into(), "from 0 to 1".to_string());
        }
        Ok(())
    }

    /// Returns how many rows of logits a session needs for such drafts: one for each drafted token, and one for what
    /// follows.
    pub fn rows(&self) -> u32 {
        u32::try_from(self.max).unwrap_or(u32::MAX).saturating_add(1)
    }
}

/// Statistics of drafting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speculation {
    /// Tokens that were drafted and evaluated.
    pub drafted: usize,
    /// Drafted tokens that became part of the text.
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
    /// Returns the share of the drafted tokens that was accepted; 0 if none was drafted.
    pub fn acceptance(&self) -> f64 {
        if self.drafted == 0 { 0.0 } else { self.accepted as f64 / self.drafted as f64 }
    }

    /// Returns the number of tokens per evaluation: 1 if drafting gained nothing.
    pub fn tokens_per_evaluation(&self) -> f64 {
        if self.evaluations == 0 { 0.0 } else { 1.0 + self.accepted as f64 / self.evaluations as f64 }
    }
}

/// Guesses how a text continues. It is kept from text to text: what it knows about one is reused for the next, as far
/// as that begins with the same tokens.
#[derive(Debug)]
pub struct Draft {
    source: Source,
    draft_length: DraftLength,
    row_costs: RowCosts,
    // What drafting a token costs, as a share of an evaluation of one token.
    draft_cost: f64,
    max: usize,
    p_min: f32,
    // The text so far: the prompt and the written tokens.
    text: Vec<u32>,
    // The guesses of what follows it.
    tokens: Vec<u32>,
    // The distribution that each guess was drawn from, sorted by token; None if the guess was not drawn at random.
    drawn_from: Vec<Option<Vec<(u32, f64)>>>,
    kind: usize,
    // Number of the current guesses that were accepted.
    taken: usize,
    // The target's memory could not be truncated after all.
    given_up: bool,
    // Whether measured times may decide on the length of drafts. They may not if that length determines which random
    // number is used for which token, because the same seed has to produce the same text.
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
    /// The distribution that it was drawn from, sorted by token; `None` if it was not drawn at random.
    pub drawn_from: Option<&'a [(u32, f64)]>,
}

#[derive(Debug)]
enum Source {
    Ngram(Ngrams),
    Model(Box<Drafter>),
}

#[derive(Debug)]
struct Drafter {
    session: Session<Box<dyn Decoder + Send>>,
    // Number of tokens at the beginning of the text that the session is known to have read.
    known: usize,
}

impl Draft {
    /// Returns a draft that looks the continuation up in the text itself.
    ///
    /// # Errors
    /// If an option is out of range.
    pub fn ngram(options: DraftOptions) -> Result<Self, Error> {
        options.check()?;
        Ok(Self::new(Source::Ngram(Ngrams::default()), options, 0.0))
    }

    /// Returns a draft that uses a smaller model with the same vocabulary. `session` has the options of the target's
    /// session; the draft model's session gets a context of the same size.
    ///
    /// # Errors
    /// If an option is out of range, the vocabularies differ, the draft model's memory cannot be truncated, or there is
    /// no memory for its session.
    pub fn model(
        target: &Model,
        draft: &Model,
        session: &SessionOptions,
        options: DraftOptions,
    ) -> Result<Self, Error> {
        options.check()?;
        let (here, there) = (target.tokenizer(), draft.tokenizer());
        let path = || draft.path().to_path_buf();
        same_vocabulary(here, there)
            .and_then(|()| same_ends(here, there))
            .map_err(|reason| DraftError::Vocabulary { path: path(), reason })?;
        if !draft.can_truncate() {
            return Err(DraftError::CannotTruncate(path()).into());
        }
        let session = Self::session_options(target, session);
        let context = Context::new(draft, &session.context(draft.n_ctx_train(), 1), None)?;
        let bytes = |model: &Model| model.tensor_bytes().max(1) as f64;
        let cost = (bytes(draft) / bytes(target)).min(1.0);
        Ok(Self::with_decoder(Box::new(context), &session, cost, options))
    }

    /// Uses a model for which drafting a token costs `cost`, as a share of an evaluation of the target.
    pub(super) fn with_decoder(
        decoder: Box<dyn Decoder + Send>,
        session: &SessionOptions,
        cost: f64,
        options: DraftOptions,
    ) -> Self {
        let drafter = Drafter { session: Session::of(decoder, session), known: 0 };
        Self::new(Source::Model(Box::new(drafter)), options, cost)
    }

    /// Returns the options for the session of a draft model, given those of the target's session.
    pub fn session_options(target: &Model, session: &SessionOptions) -> SessionOptions {
        SessionOptions { n_ctx: Some(session.n_ctx_for(target.n_ctx_train())), rows: 1, ..session.clone() }
    }

    fn new(source: Source, options: DraftOptions, draft_cost: f64) -> Self {
        Self {
            timed: matches!(source, Source::Ngram(_)),
            source,
            draft_length: DraftLength::new(options.min, options.max),
            row_costs: RowCosts::default(),
            draft_cost,
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

    /// Begins a text with `prompt`, sampled by `sampler`. `can_truncate` says whether the target's memory can be
    /// truncated.
    pub(super) fn begin(&mut self, prompt: &[u32], sampler: &Sampler, can_truncate: bool) -> Result<(), Error> {
        if !can_truncate {
            return Err(DraftError::TargetCannotTruncate.into());
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
        // The same seed has to produce the same text, and guesses must be independent of the sampler's own random
        // numbers.
        if self.seed != Some(sampler.seed()) {
            self.seed = Some(sampler.seed());
            self.random = Random::new(sampler.seed() ^ 0x6472_6166_7464_7261);
        }
        Ok(())
    }

    /// Lets the draft model, if there is one, read the text so far, which is the prompt.
    pub(super) fn read(&mut self) -> Result<(), Error> {
        match &mut self.source {
            Source::Model(drafter) if self.text.len() <= drafter.session.n_ctx() as usize => {
                drafter.session.extend(&self.text, drafter.known)?;
                drafter.known = self.text.len();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Returns the guess for the token that row `row` of the logits decides on.
    pub(super) fn guess(&self, row: usize) -> Option<Guess<'_>> {
        Some(Guess { token: *self.tokens.get(row)?, drawn_from: self.drawn_from.get(row)?.as_deref() })
    }

    /// Adds `token` to the text.
    pub(super) fn push(&mut self, token: u32) {
        self.text.push(token);
    }

    /// Records that the guess for the last token was right.
    pub(super) fn taken(&mut self) {
        self.taken += 1;
        self.stats.accepted += 1;
    }

    /// Records that the guesses have been decided on; those after the first wrong one are ignored. `ended` says that
    /// the text ended before one was wrong.
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

    /// Stops guessing for the rest of this text.
    pub(super) fn give_up(&mut self) {
        self.given_up = true;
        self.clear();
    }

    /// Guesses at most `most` tokens of what follows the text. Returns the guesses.
    ///
    /// # Errors
    /// If the draft model fails, or is interrupted.
    pub(super) fn propose(&mut self, most: usize, sampler: &Sampler) -> Result<&[u32], Error> {
        self.clear();
        // The first evaluation is timed without guesses.
        if self.given_up || most == 0 || self.must_be_timed() {
            return Ok(&[]);
        }
        let row_costs = std::mem::take(&mut self.row_costs);
        let each = self.draft_cost;
        let cost = |n: usize| row_costs.of(1 + n) + n as f64 * each;
        let weighing = Weighing { tokens: 1.0, cost: &cost };
        let proposed = match &self.source {
            Source::Ngram(_) => {
                self.look_up(most, weighing);
                Ok(())
            }
            Source::Model(drafter) => {
                // The draft model reads all guesses except the last one.
                let room = (drafter.session.n_ctx() as usize + 1).saturating_sub(self.text.len());
                // After a pause, the draft model first has to catch up, which is not part of the cost of drafting.
                let known = drafter.known;
                match self.draft_length.length(self.kind, most.min(room), weighing) {
                    0 => Ok(()),
                    n => {
                        let begun = Instant::now();
                        let asked = self.ask(n, sampler);
                        if self.timed && known + n + 2 >= self.text.len() {
                            self.learn_draft_cost(row_costs.one(), begun.elapsed());
                        }
                        asked
                    }
                }
            }
        };
        self.row_costs = row_costs;
        proposed?;
        self.stats.drafted += self.tokens.len();
        Ok(&self.tokens)
    }

    /// Guesses at most `most` tokens of what follows the text, by looking them up in it. They are in an evaluation with other
    /// texts. Returns how many there are, and how many of them are probably right.
    pub(super) fn propose_beside(&mut self, most: usize, weighing: Weighing<'_>) -> (usize, f64) {
        self.clear();
        if most > 0 && !self.given_up {
            self.look_up(most, weighing);
        }
        self.stats.drafted += self.tokens.len();
        (self.tokens.len(), self.draft_length.expected(self.kind, self.tokens.len()))
    }

    /// Returns what was learnt of how many guesses are right.
    pub(super) fn experience(&self) -> &DraftLength {
        &self.draft_length
    }

    /// Begins with what was learnt of another text.
    pub(super) fn learn_from(&mut self, experience: &DraftLength) {
        self.draft_length = experience.clone();
    }

    /// Drops guesses that were not decided on, because they were not evaluated.
    pub(super) fn withdraw(&mut self) {
        self.stats.drafted -= self.tokens.len();
        self.clear();
    }

    /// Returns the guesses.
    pub(super) fn guesses(&self) -> &[u32] {
        &self.tokens
    }

    fn look_up(&mut self, most: usize, weighing: Weighing<'_>) {
        let Source::Ngram(ngrams) = &mut self.source else { return };
        ngrams.extend(&self.text);
        let Some(found) = ngrams.find(&self.text) else { return };
        self.kind = match found.length {
            0..5 => 0,
            5..8 => 1,
            8..16 => 2,
            _ => 3,
        };
        let n = self.draft_length.length(self.kind, most, weighing);
        found.copy(&self.text, n, &mut self.tokens);
        self.drawn_from.resize(self.tokens.len(), None);
    }

    /// Records how long drafting the guesses took, if an evaluation of one token takes `one` seconds.
    fn learn_draft_cost(&mut self, one: Option<f64>, time: Duration) {
        if let Some(one) = one.filter(|one| *one > 0.0 && !self.tokens.is_empty()) {
            let cost = (time.as_secs_f64() / one / self.tokens.len() as f64).clamp(0.0, 2.0);
            self.draft_cost += (cost - self.draft_cost) * 0.2;
        }
    }

    /// Returns whether an evaluation of one token has to be timed first.
    fn must_be_timed(&self) -> bool {
        self.row_costs.knows_nothing() && !self.draft_length.is_fixed()
    }

    /// Lets the draft model write `n` tokens, with a copy of the target's sampler.
    fn ask(&mut self, n: usize, sampler: &Sampler) -> Result<(), Error> {
        let Source::Model(drafter) = &mut self.source else { return Ok(()) };
        let session = &mut drafter.session;
        session.extend(&self.text, drafter.known)?;
        drafter.known = self.text.len();
        let tokenizer = session.decoder().tokenizer();
        let mut sampler = sampler.clone();
        for i in 0..n {
            let logits = session.logits(0)?;
            // The most likely token decides, not the one that is drawn: dropping guesses depending on the drawn token
            // would bias the distribution of the result.
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
                if tokenizer.is_end(token) {
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

    /// Records that an evaluation of a token and `drafted` guesses, which began at `begun`, is done.
    pub(super) fn evaluated(&mut self, drafted: usize, begun: Instant) {
        self.stats.evaluations += 1;
        if self.timed || self.must_be_timed() {
            self.row_costs.learn(1 + drafted, begun.elapsed());
        }
    }

    /// Returns the statistics of drafting for the current text.
    pub(super) fn stats(&self) -> Speculation {
        self.stats
    }

    /// Returns the most tokens that are drafted at a time.
    pub fn max(&self) -> usize {
        self.max
    }
}

/// Returns the probability of the most likely token.
fn highest_probability(logits: &[f32]) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|l| exp((f64::from(*l) - f64::from(highest)).min(0.0))).sum();
    1.0 / total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_out_of_range_are_refused() {
        let refused = |options: DraftOptions| options.check().unwrap_err().to_string();
        let base = DraftOptions::default();
        assert!(base.check().is_ok());
        let max = refused(DraftOptions { max: 0, ..base });
        assert_eq!(max, "the most tokens to draft cannot be 0; it has to be from 1 to 64");
        assert!(refused(DraftOptions { max: 65, ..base }).contains("cannot be 65"));
        let min = refused(DraftOptions { min: 17, ..base });
        assert_eq!(min, "the fewest tokens to draft cannot be 17; it has to be at most 16, the most tokens to draft");
        assert!(refused(DraftOptions { p_min: 1.5, ..base }).contains("lowest probability to draft cannot be 1.5"));
        assert!(
            refused(DraftOptions { p_min: f32::NAN, ..base }).contains("lowest probability to draft cannot be NaN")
        );
        assert_eq!(base.rows(), 17);
    }

    #[test]
    fn the_highest_probability_is_that_of_a_softmax() {
        assert!((highest_probability(&[1.0, 1.0, f32::NEG_INFINITY]) - 0.5).abs() < 1e-12);
        assert!((highest_probability(&[3.0, 1.0]) - 1.0 / (1.0 + (-2f64).exp())).abs() < 1e-12);
    }
}
