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
        let (highest, all_below_infinity) = scan(logits);
        if !all_below_infinity {
            let token = logits.iter().position(|l| !is_below_infinity(*l)).unwrap_or(0);
            return Err(Error::NotFinite { token, value: logits[token] });
        }
        if highest == f32::NEG_INFINITY {
            return Err(Error::AllRuledOut);
        }
        let id = logits.iter().position(|l| *l == highest).unwrap_or(0);
        let most_likely = Candidate { id: id as u32, logit: highest };
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
        // Sorting all would be most of the work, and nearly all of it for nothing. So first a coarse look: how much
        // weight lies within each quarter of a unit below the highest logit? That tells how far down to sort.
        const BINS: usize = 256;
        let weight = self.weights();
        let (top, t) = (f64::from(self.most_likely.logit), self.temperature);
        // As a cast saturates, the last bin takes all that is far below.
        let bin = move |c: Candidate| ((4.0 * (top - f64::from(c.logit)) / t) as usize).min(BINS - 1);
        let mut bins = [0.0; BINS];
        self.each().for_each(|c| bins[bin(c)] += weight(c));
        let wanted = p * bins.iter().sum::<f64>();
        let mut sum = 0.0;
        let last = bins.iter().position(|share| {
            sum += share;
            sum >= wanted
        });
        let last = last.unwrap_or(BINS - 1);
        self.narrow(|c| bin(c) <= last);

        let Some(kept) = &mut self.kept else { return };
        kept.sort_unstable_by(order);
        let mut sum = 0.0;
        let end = kept.iter().position(|c| {
            sum += weight(*c);
            sum >= wanted
        });
        // Sums in two orders differ in their last bits: it may all be needed.
        kept.truncate(end.map_or(kept.len(), |end| end + 1));
    }

    /// Keeps those whose probability is at least `p` times the highest.
    pub fn min_p(&mut self, p: f64) {
        let weight = self.weights();
        self.narrow(|c| weight(c) >= p);
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

    fn narrow(&mut self, keep: impl Fn(Candidate) -> bool) {
        match &mut self.kept {
            Some(kept) => kept.retain(|c| keep(*c)),
            None => {
                let Some(kept) = self.spare.take() else { return };
                kept.extend(possible(self.logits).filter(|c| keep(*c)));
                self.kept = Some(kept);
            }
        }
    }
}

/// Logits looked at together, in a shape that compilers turn into vector instructions.
const LANES: usize = 16;

fn is_below_infinity(logit: f32) -> bool {
    // False for NaN too.
    logit < f32::INFINITY
}

/// The highest of `logits`, and whether all are numbers below infinity. Without that, the first means nothing.
fn scan(logits: &[f32]) -> (f32, bool) {
    let mut highest = [f32::NEG_INFINITY; LANES];
    let mut fine = [true; LANES];
    let mut look = |chunk: &[f32]| {
        for ((highest, fine), &logit) in highest.iter_mut().zip(&mut fine).zip(chunk) {
            *highest = if logit > *highest { logit } else { *highest };
            *fine &= is_below_infinity(logit);
        }
    };
    let chunks = logits.chunks_exact(LANES);
    look(chunks.remainder());
    chunks.for_each(&mut look);
    (highest.into_iter().fold(f32::NEG_INFINITY, f32::max), fine.into_iter().all(|fine| fine))
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
    for (first, chunk) in (0u32..).step_by(LANES).zip(logits.chunks(LANES)) {
        // An equal logit with a higher id loses the tie: turned away. Most chunks are, as a whole.
        if !chunk.iter().fold(false, |any, l| any | (*l > bar)) {
            continue;
        }
        for (id, &logit) in (first..).zip(chunk).filter(|(_, l)| **l > bar) {
            kept.push(Candidate { id, logit });
        }
        if kept.len() + LANES > room && k < kept.len() {
            kept.select_nth_unstable_by(k - 1, order);
            kept.truncate(k);
            bar = kept[k - 1].logit;
        }
    }
    if k < kept.len() {
        kept.select_nth_unstable_by(k - 1, order);
        kept.truncate(k);
    }
}
