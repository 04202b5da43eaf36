//! What is left to choose from.

use std::cmp::Ordering;

use super::{Error, Random, exp};

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// Its logit, as the model gave it.
    pub logit: f32,
}

/// Most likely first; ties go to the lower id. There are no NaNs here, and the two zeros are equal.
fn order(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// The tokens still in the running: at first all of a borrowed slice of logits, once a stage has narrowed them a list.
///
/// ```text
/// logits  [f32; vocabulary]  borrowed ── narrow ──►  kept  [Candidate; a few]
///                                                    [0..sorted) in order, the rest less likely
/// ```
#[derive(Debug)]
pub struct Candidates<'a> {
    logits: &'a [f32],
    // None while every token is in the running.
    kept: Option<&'a mut Vec<Candidate>>,
    spare: Option<&'a mut Vec<Candidate>>,
    most_likely: Candidate,
    temperature: f64,
}

impl<'a> Candidates<'a> {
    /// All tokens of `logits`; those at minus infinity are ruled out. `buffer` is used again from token to token.
    ///
    /// # Errors
    /// Where a logit is NaN or plus infinity, or all are minus infinity.
    pub fn new(logits: &'a [f32], buffer: &'a mut Vec<Candidate>) -> Result<Self, Error> {
        if logits.is_empty() {
            return Err(Error::Empty);
        }
        if let Some(token) = logits.iter().position(|&l| l.is_nan() || l == f32::INFINITY) {
            return Err(Error::NotFinite { token, value: logits[token] });
        }
        let mut most_likely = Candidate { id: 0, logit: f32::NEG_INFINITY };
        for (id, &logit) in (0u32..).zip(logits) {
            if logit > most_likely.logit {
                most_likely = Candidate { id, logit };
            }
        }
        if most_likely.logit == f32::NEG_INFINITY {
            return Err(Error::AllRuledOut);
        }
        buffer.clear();
        Ok(Self { logits, kept: None, spare: Some(buffer), most_likely, temperature: 1.0 })
    }

    /// The token with the highest logit; the lowest id among equals. No stage ever rules it out.
    pub fn most_likely(&self) -> u32 {
        self.most_likely.id
    }

    /// Keeps the `k` most likely, in order.
    pub fn top_k(&mut self, k: usize) {
        let k = k.max(1);
        match &mut self.kept {
            Some(kept) => {
                kept.sort_unstable_by(order);
                kept.truncate(k);
            }
            None => {
                let Some(kept) = self.spare.take() else { return };
                highest(self.logits, k, kept);
                kept.sort_unstable_by(order);
                self.kept = Some(kept);
            }
        }
    }

    /// Keeps the most likely until their probabilities add up to `p`, in order.
    pub fn top_p(&mut self, p: f64) {
        let top = f64::from(self.most_likely.logit);
        let t = self.temperature;
        let weight = |c: &Candidate| exp((f64::from(c.logit) - top) / t);
        if self.kept.is_none() {
            self.keep_all();
        }
        let Some(kept) = &mut self.kept else { return };
        let wanted = p * kept.iter().map(weight).sum::<f64>();
        // Probability mass sits in few tokens: sort as many as are looked at, four times more whenever they run out.
        let mut sorted = 0;
        let mut sum = 0.0;
        let mut step = 64;
        while sorted < kept.len() {
            let end = (sorted + step).min(kept.len());
            if end < kept.len() {
                kept[sorted..].select_nth_unstable_by(end - sorted, order);
            }
            kept[sorted..end].sort_unstable_by(order);
            for at in sorted..end {
                sum += weight(&kept[at]);
                if sum >= wanted {
                    kept.truncate(at + 1);
                    return;
                }
            }
            sorted = end;
            step *= 4;
        }
    }

    /// Keeps those whose probability is at least `p` times the highest.
    pub fn min_p(&mut self, p: f64) {
        let top = f64::from(self.most_likely.logit);
        let t = self.temperature;
        if self.kept.is_none() {
            self.keep_all();
        }
        let Some(kept) = &mut self.kept else { return };
        kept.retain(|c| exp((f64::from(c.logit) - top) / t) >= p);
    }

    /// Divides the logits by `temperature`, which must be above 0.
    pub fn temperature(&mut self, temperature: f64) {
        self.temperature *= temperature;
    }

    /// Draws one token by its probability: the first at which the running sum passes a random share of the total.
    pub fn draw(self, random: &mut Random) -> u32 {
        let share = random.unit();
        let weight = self.weights();
        let total: f64 = self.each().map(&weight).sum();
        let mut left = share * total;
        for c in self.each() {
            left -= weight(c);
            if left < 0.0 {
                return c.id;
            }
        }
        // Rounding may leave a crumb when the share is close to 1.
        self.most_likely.id
    }

    /// Ids and probabilities of what is left. They add up to 1.
    pub fn probabilities(&self) -> Vec<(u32, f64)> {
        let weight = self.weights();
        let total: f64 = self.each().map(&weight).sum();
        self.each().map(|c| (c.id, weight(c) / total)).collect()
    }

    fn weights(&self) -> impl Fn(Candidate) -> f64 + use<> {
        let (top, t) = (f64::from(self.most_likely.logit), self.temperature);
        move |c| exp((f64::from(c.logit) - top) / t)
    }

    fn each(&self) -> impl Iterator<Item = Candidate> + '_ {
        let kept = self.kept.as_deref().map(|kept| kept.iter().copied());
        let all = if self.kept.is_some() { &[] } else { self.logits };
        kept.into_iter().flatten().chain(possible(all))
    }

    fn keep_all(&mut self) {
        if let Some(kept) = self.spare.take() {
            kept.extend(possible(self.logits));
            self.kept = Some(kept);
        }
    }
}

fn possible(logits: &[f32]) -> impl Iterator<Item = Candidate> + '_ {
    (0u32..).zip(logits).filter(|(_, l)| **l > f32::NEG_INFINITY).map(|(id, &logit)| Candidate { id, logit })
}

/// Collects the `k` highest of `logits` in `kept`, in no order, in one pass over the logits.
///
/// What cannot be among them is turned away by one comparison with the lowest of the best so far; that bar rises each
/// time the buffer, a few times larger than `k`, has filled and been cut down to `k` again.
fn highest(logits: &[f32], k: usize, kept: &mut Vec<Candidate>) {
    if k >= logits.len() {
        kept.extend(possible(logits));
        return;
    }
    let room = k.saturating_mul(4).clamp(256, logits.len().max(256));
    let mut bar = f32::NEG_INFINITY;
    for (id, &logit) in (0u32..).zip(logits) {
        // An equal logit with a higher id loses the tie: turned away.
        if logit > bar {
            kept.push(Candidate { id, logit });
            if kept.len() == room && k < room {
                kept.select_nth_unstable_by(k - 1, order);
                kept.truncate(k);
                bar = kept[k - 1].logit;
            }
        }
    }
    if k < kept.len() {
        kept.select_nth_unstable_by(k - 1, order);
        kept.truncate(k);
    }
}
