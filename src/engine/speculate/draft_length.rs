//! Decides how many tokens to draft.
//!
//! ```text
//! a   share of drafted tokens that are accepted     n drafted tokens yield       1 + a + a^2 + ... + a^n  tokens
//! d   cost of drafting a token                      and cost                     1 + n (d + v)
//! v   cost of one more token in an evaluation       both costs as shares of an evaluation of one token
//! ```
//!
//! The n with the best ratio is drafted. If no n is better than no draft, drafting pauses, and is tried again after a
//! while.

use std::time::Duration;

/// Number of kinds of drafts that are counted separately. Drafts from the text differ in how many tokens before them
/// match.
pub(super) const KINDS: usize = 4;

/// Initial counts: tokens accepted, and tokens tried.
const PRIOR: (f64, f64) = (1.2, 2.0);
/// The factor by which counts decay with each evaluation.
const MEMORY: f64 = 0.9;
/// Number of tokens to write before drafting is tried again: the first time, and at most.
const PAUSE: (usize, usize) = (16, 256);
/// Initial counts of a trial.
const DOUBT: (f64, f64) = (0.3, 1.0);
/// Number of tokens to draft in a trial.
const TRIAL: usize = 2;

/// Costs as shares of an evaluation of one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Costs {
    /// Drafting a token.
    pub draft: f64,
    /// One more token in an evaluation.
    pub read: f64,
}

/// Decides how many tokens to draft, and learns from how many are accepted.
#[derive(Clone, Debug)]
pub(super) struct DraftLength {
    min: usize,
    max: usize,
    costs: Costs,
    // Seconds that an evaluation of one token takes; None until one was timed.
    one: Option<f64>,
    kinds: [Kind; KINDS],
}

#[derive(Clone, Copy, Debug)]
struct Kind {
    taken: f64,
    tried: f64,
    // Tokens yet to be written before the next trial; None while drafting pays.
    pause: Option<usize>,
    next_pause: usize,
}

impl DraftLength {
    /// Creates a `DraftLength` for drafts of `min` to `max` tokens, or none. `costs` are used until they are measured.
    pub fn new(min: usize, max: usize, costs: Costs) -> Self {
        let kind = Kind { taken: PRIOR.0, tried: PRIOR.1, pause: None, next_pause: PAUSE.0 };
        Self { min, max, costs, one: None, kinds: [kind; KINDS] }
    }

    /// Returns the fewest tokens that make a draft.
    pub fn min(&self) -> usize {
        self.min
    }

    /// Returns how many tokens to draft now, at most `most`.
    pub fn length(&mut self, kind: usize, most: usize) -> usize {
        let most = most.min(self.max);
        if most == 0 || most < self.min {
            return 0;
        }
        // Only one length was asked for.
        if self.min == self.max {
            return self.max;
        }
        let best = self.best(self.kinds[kind].taken / self.kinds[kind].tried, most);
        let kind = &mut self.kinds[kind];
        match (best, &mut kind.pause) {
            (0, None) => {
                kind.pause = Some(kind.next_pause);
                kind.next_pause = (kind.next_pause * 2).min(PAUSE.1);
                0
            }
            (0, Some(0)) => {
                kind.pause = None;
                (kind.taken, kind.tried) = DOUBT;
                TRIAL.clamp(self.min, most)
            }
            (0, Some(left)) => {
                *left -= 1;
                0
            }
            (best, _) => {
                (kind.pause, kind.next_pause) = (None, PAUSE.0);
                best.max(self.min)
            }
        }
    }

    fn best(&self, share: f64, most: usize) -> usize {
        let each = self.costs.draft + self.costs.read;
        // A smaller gain would be noise.
        let (mut best, mut best_rate) = (0, 1.02);
        let (mut tokens, mut power) = (1.0, 1.0);
        for n in 1..=most {
            power *= share;
            tokens += power;
            let rate = tokens / (1.0 + n as f64 * each);
            if rate > best_rate {
                (best, best_rate) = (n, rate);
            }
        }
        best
    }

    /// Records that the first `taken` of `drafted` tokens were accepted. `ended` says that the text ended before the
    /// next one was decided on.
    pub fn learn(&mut self, kind: usize, drafted: usize, taken: usize, ended: bool) {
        let tried = if ended { taken } else { drafted.min(taken + 1) };
        let kind = &mut self.kinds[kind];
        let old = |count: f64, prior: f64| prior + (count - prior) * MEMORY;
        kind.taken = old(kind.taken, PRIOR.0) + taken as f64;
        kind.tried = old(kind.tried, PRIOR.1) + tried as f64;
    }

    /// Records how long an evaluation of one token and `drafted` more took.
    pub fn evaluated(&mut self, drafted: usize, time: Duration) {
        let time = time.as_secs_f64();
        match (drafted, &mut self.one) {
            (0, None) => self.one = Some(time),
            (0, Some(one)) => *one += (time - *one) * 0.2,
            (drafted, Some(one)) if *one > 0.0 => {
                // A short load on the machine must not end drafting.
                let read = ((time / *one - 1.0) / drafted as f64).clamp(0.0, 1.5);
                self.costs.read += (read - self.costs.read) * 0.2;
            }
            _ => {}
        }
    }

    /// Records how long drafting `drafted` tokens took.
    pub fn drafted(&mut self, drafted: usize, time: Duration) {
        if let Some(one) = self.one.filter(|one| *one > 0.0 && drafted > 0) {
            let draft = (time.as_secs_f64() / one / drafted as f64).clamp(0.0, 2.0);
            self.costs.draft += (draft - self.costs.draft) * 0.2;
        }
    }

    /// Returns whether an evaluation of one token has to be timed first.
    pub fn knows_nothing(&self) -> bool {
        self.one.is_none() && self.min != self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Costs = Costs { draft: 0.1, read: 0.1 };

    #[test]
    fn what_is_taken_is_drafted_more_of() {
        let mut draft_length = DraftLength::new(0, 16, CHEAP);
        let at_first = draft_length.length(0, 16);
        assert!((1..8).contains(&at_first), "{at_first}");
        for _ in 0..30 {
            let n = draft_length.length(0, 16);
            draft_length.learn(0, n, n, false);
        }
        assert!(draft_length.length(0, 16) >= 12);
        assert_eq!(draft_length.length(0, 3), 3);
        assert_eq!(draft_length.length(0, 0), 0);
        // The other kinds have learnt nothing of that.
        assert_eq!(draft_length.length(1, 16), at_first);
    }

    #[test]
    fn what_is_never_taken_is_drafted_ever_less() {
        let mut draft_length = DraftLength::new(0, 16, CHEAP);
        let (mut drafted, mut trials) = (0, 0);
        for _ in 0..2000 {
            let n = draft_length.length(0, 16);
            if n > 0 {
                draft_length.learn(0, n, 0, false);
                drafted += n;
                trials += 1;
            }
        }
        assert!(drafted < 60 && trials > 8, "{drafted} tokens in {trials} trials");
        // It comes back when that changes.
        let mut n = 0;
        for _ in 0..2000 {
            n = draft_length.length(0, 16);
            draft_length.learn(0, n, n, false);
        }
        assert!(n >= 12, "{n}");
    }

    #[test]
    fn what_costs_as_much_as_it_gives_is_not_drafted() {
        let mut draft_length = DraftLength::new(0, 16, Costs { draft: 0.0, read: 1.0 });
        draft_length.learn(0, 4, 4, false);
        assert_eq!(draft_length.length(0, 16), 0);
    }

    #[test]
    fn costs_are_measured() {
        let mut draft_length = DraftLength::new(0, 16, CHEAP);
        assert!(draft_length.knows_nothing());
        let ms = Duration::from_millis;
        for _ in 0..60 {
            draft_length.evaluated(0, ms(100));
            draft_length.evaluated(4, ms(260));
            draft_length.drafted(4, ms(80));
        }
        assert!(
            (draft_length.costs.read - 0.4).abs() < 0.01 && (draft_length.costs.draft - 0.2).abs() < 0.01,
            "{:?}",
            draft_length.costs
        );
        assert!(!draft_length.knows_nothing());
    }

    #[test]
    fn one_length_is_kept_to() {
        let mut draft_length = DraftLength::new(5, 5, Costs { draft: 9.0, read: 9.0 });
        for _ in 0..50 {
            assert_eq!(draft_length.length(0, 9), 5);
            assert_eq!(draft_length.length(0, 4), 0);
            draft_length.learn(0, 5, 0, false);
        }
        let mut draft_length = DraftLength::new(3, 16, Costs { draft: 0.2, read: 0.25 });
        assert_eq!(draft_length.length(0, 16), 3);
        assert_eq!(draft_length.length(0, 2), 0);
    }
}
