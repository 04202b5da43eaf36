//! Decides how many tokens to draft.
//!
//! ```text
//! a      share of drafted tokens that are accepted     n drafted tokens yield       a + a^2 + ... + a^n  tokens more
//! c(n)   cost of an evaluation with n drafted tokens   and all tokens cost          c(n)
//! ```
//!
//! The n with the most tokens for their cost is drafted. If no n is better than no draft, drafting pauses, and is tried again
//! after a while.

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
/// Number of tokens to draft in a trial: four rows are the fewest for which kernels change.
const TRIAL: usize = 3;

/// Decides how many tokens to draft, and learns from how many are accepted.
#[derive(Clone, Debug)]
pub(crate) struct DraftLength {
    min: usize,
    max: usize,
    kinds: [Kind; KINDS],
}

/// What a draft is weighed against.
#[derive(Clone, Copy)]
pub(crate) struct Weighing<'a> {
    /// Tokens that the evaluation writes without the draft, those of other texts included.
    pub tokens: f64,
    /// What the evaluation costs with so many drafted tokens more, in any unit.
    pub cost: &'a dyn Fn(usize) -> f64,
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
    /// Creates a `DraftLength` for drafts of `min` to `max` tokens, or none.
    pub fn new(min: usize, max: usize) -> Self {
        let kind = Kind { taken: PRIOR.0, tried: PRIOR.1, pause: None, next_pause: PAUSE.0 };
        Self { min, max, kinds: [kind; KINDS] }
    }

    /// Returns the fewest tokens that make a draft.
    pub fn min(&self) -> usize {
        self.min
    }

    /// Returns whether only one length was asked for.
    pub fn is_fixed(&self) -> bool {
        self.min == self.max
    }

    /// Returns how many tokens are probably accepted of `n` that are drafted.
    pub fn expected(&self, kind: usize, n: usize) -> f64 {
        let share = self.share(kind);
        (1..=n).fold((0.0, 1.0), |(sum, power), _| (sum + power * share, power * share)).0
    }

    fn share(&self, kind: usize) -> f64 {
        self.kinds[kind].taken / self.kinds[kind].tried
    }

    /// Returns how many tokens to draft now, at most `most`.
    pub fn length(&mut self, kind: usize, most: usize, weighing: Weighing<'_>) -> usize {
        let most = most.min(self.max);
        if most == 0 || most < self.min {
            return 0;
        }
        if self.is_fixed() {
            return self.max;
        }
        let best = best(self.share(kind), most, weighing);
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

    /// Records that the first `taken` of `drafted` tokens were accepted. `ended` says that the text ended before the
    /// next one was decided on.
    pub fn learn(&mut self, kind: usize, drafted: usize, taken: usize, ended: bool) {
        let tried = if ended { taken } else { drafted.min(taken + 1) };
        let kind = &mut self.kinds[kind];
        let old = |count: f64, prior: f64| prior + (count - prior) * MEMORY;
        kind.taken = old(kind.taken, PRIOR.0) + taken as f64;
        kind.tried = old(kind.tried, PRIOR.1) + tried as f64;
    }
}

/// Returns the number of drafted tokens with the most tokens for their cost.
fn best(share: f64, most: usize, Weighing { tokens, cost }: Weighing<'_>) -> usize {
    // A smaller gain would be noise.
    let (mut best, mut best_rate) = (0, 1.02 * tokens / cost(0));
    let (mut tokens, mut power) = (tokens, 1.0);
    for n in 1..=most {
        power *= share;
        tokens += power;
        let rate = tokens / cost(n);
        if rate > best_rate {
            (best, best_rate) = (n, rate);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Weighing<'_> = Weighing { tokens: 1.0, cost: &|n| 1.0 + 0.2 * n as f64 };
    const DEAR: Weighing<'_> = Weighing { tokens: 1.0, cost: &|n| 1.0 + n as f64 };

    #[test]
    fn what_is_taken_is_drafted_more_of() {
        let mut draft_length = DraftLength::new(0, 16);
        let at_first = draft_length.length(0, 16, CHEAP);
        assert!((1..8).contains(&at_first), "{at_first}");
        for _ in 0..30 {
            let n = draft_length.length(0, 16, CHEAP);
            draft_length.learn(0, n, n, false);
        }
        assert!(draft_length.length(0, 16, CHEAP) >= 12);
        assert_eq!(draft_length.length(0, 3, CHEAP), 3);
        assert_eq!(draft_length.length(0, 0, CHEAP), 0);
        // The other kinds have learnt nothing of that.
        assert_eq!(draft_length.length(1, 16, CHEAP), at_first);
    }

    #[test]
    fn what_is_never_taken_is_drafted_ever_less() {
        let mut draft_length = DraftLength::new(0, 16);
        let (mut drafted, mut trials) = (0, 0);
        for _ in 0..2000 {
            let n = draft_length.length(0, 16, CHEAP);
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
            n = draft_length.length(0, 16, CHEAP);
            draft_length.learn(0, n, n, false);
        }
        assert!(n >= 12, "{n}");
    }

    #[test]
    fn what_costs_as_much_as_it_gives_is_not_drafted() {
        let mut draft_length = DraftLength::new(0, 16);
        draft_length.learn(0, 4, 4, false);
        assert_eq!(draft_length.length(0, 16, DEAR), 0);
    }

    #[test]
    fn lengths_follow_the_kernels() {
        // As measured of a small model: two and three rows cost much, and eight hardly more than four.
        let cost = |n: usize| [1.0, 1.9, 2.2, 2.3, 2.6, 2.65, 2.7, 2.8, 3.4][n.min(8)];
        let alone = Weighing { tokens: 1.0, cost: &cost };
        let mut draft_length = DraftLength::new(0, 8);
        for _ in 0..30 {
            draft_length.learn(0, 4, 4, false);
            draft_length.learn(1, 4, 1, false);
        }
        assert_eq!(draft_length.length(0, 8, alone), 7);
        assert_eq!(draft_length.length(1, 8, alone), 0);
        // Beside two other texts, the fourth row costs next to nothing.
        let beside = Weighing { tokens: 3.0, cost: &|n| cost(2 + n) };
        assert_eq!(draft_length.length(1, 8, beside), 1);
        assert!((draft_length.expected(1, 2) - (0.51 + 0.51 * 0.51)).abs() < 0.02);
    }

    #[test]
    fn one_length_is_kept_to() {
        let mut draft_length = DraftLength::new(5, 5);
        for _ in 0..50 {
            assert_eq!(draft_length.length(0, 9, DEAR), 5);
            assert_eq!(draft_length.length(0, 4, DEAR), 0);
            draft_length.learn(0, 5, 0, false);
        }
        let mut draft_length = DraftLength::new(3, 16);
        assert_eq!(draft_length.length(0, 16, Weighing { tokens: 1.0, cost: &|n| 1.0 + 0.45 * n as f64 }), 3);
        assert_eq!(draft_length.length(0, 2, CHEAP), 0);
    }
}
