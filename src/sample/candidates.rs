//! The candidates: the tokens that may still be chosen.

use super::Error;
use super::marks::Marks;
use super::scan::{Field, mask_len};
use crate::base::math::{ROUGH_HIGH, ROUGH_LOW, exp, exp_roughly, ln};

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// Its logit: the model's, or the one that penalties and biases changed.
    pub logit: f32,
}

impl Candidate {
    /// Returns a number that is lower the more likely the token is; ties go to the lower id.
    pub fn rank(self) -> u64 {
        // Adding 0 makes the two zeros equal. Then the bits of floats, inverted for negative ones, are in the order of
        // the numbers.
        let bits = (self.logit + 0.0).to_bits();
        let turned = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        u64::from(!turned) << 32 | u64::from(self.id)
    }
}

/// Memory that is reused for every token.
#[derive(Debug, Default)]
pub struct Buffers {
    mask: Vec<u32>,
    // Tokens whose logits differ from the model's: a bit for each token, the list of their ids, and their logits by id.
    is_changed: Vec<u32>,
    changed: Vec<u32>,
    values: Vec<f32>,
    /// The highest logit of each block, once scanned.
    pub tops: Vec<f32>,
    sums: Vec<f64>,
    /// The candidates, if [`Candidates::is_list`] is true.
    pub list: Vec<Candidate>,
    /// Scratch memory for a stage.
    pub spare: Vec<Candidate>,
    ranks: Vec<u64>,
}

/// A copy of a sampler starts with empty buffers.
impl Clone for Buffers {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// Lists up to this length are sorted if their order matters. Of longer lists, only the part that matters is sorted.
pub const SORTED_AT_MOST: usize = 1024;

/// The tokens that can still be chosen. At first they are all tokens of a borrowed slice of logits; once a stage has
/// narrowed them, they are a list.
///
/// ```text
/// logits  [f32; vocabulary]  borrowed ─┐
/// mask    [u32; vocabulary / 32]       ├── narrow ──►  list  [Candidate; a few]
/// changed [f32; a few]                ─┘
/// ```
///
/// If nothing is ruled out or changed, there is no mask, and nothing is copied. A temperature is only remembered: all
/// weights are e^((logit - top) / temperature), where `top` is the highest logit, so the weight of the most likely
/// token is 1.
#[derive(Debug)]
pub struct Candidates<'a> {
    logits: &'a [f32],
    /// The list, and other memory.
    pub buffers: &'a mut Buffers,
    /// Whether the candidates are those of the list.
    pub is_list: bool,
    /// Whether some tokens are ruled out or changed.
    pub is_masked: bool,
    /// Whether `tops` and `top` are up to date. A stage that removes the most likely token has to clear this.
    pub is_scanned: bool,
    /// The highest logit, once scanned.
    pub top: f32,
    /// The temperature by which logits are still to be divided.
    pub temperature: f64,
    /// The number of candidates, including those with logits of minus infinity, which llama.cpp keeps in its lists.
    pub n: usize,
}

impl<'a> Candidates<'a> {
    /// Creates candidates from all tokens of `logits` whose bit is set in `allowed`. Those at minus infinity are ruled
    /// out.
    ///
    /// # Errors
    /// If `logits` is empty.
    pub fn new(logits: &'a [f32], allowed: Option<&[u32]>, buffers: &'a mut Buffers) -> Result<Self, Error> {
        if logits.is_empty() {
            return Err(Error::Empty);
        }
        for id in buffers.changed.drain(..) {
            buffers.is_changed[id as usize / 32] = 0;
        }
        let n = logits.len();
        let mut new = Self {
            logits,
            buffers,
            is_list: false,
            is_masked: false,
            is_scanned: false,
            top: f32::NEG_INFINITY,
            temperature: 1.0,
            n,
        };
        if let Some(allowed) = allowed {
            new.mask(allowed);
        }
        Ok(new)
    }

    /// Returns how many tokens the model has.
    pub fn n_vocabulary(&self) -> usize {
        self.logits.len()
    }

    fn mask(&mut self, words: &[u32]) {
        let n = self.logits.len();
        let mask = &mut self.buffers.mask;
        mask.clear();
        mask.extend_from_slice(&words[..words.len().min(n.div_ceil(32))]);
        mask.resize(mask_len(n), 0);
        if !n.is_multiple_of(32) {
            mask[n / 32] &= (1 << (n % 32)) - 1;
        }
        self.is_masked = true;
    }

    pub fn field(&self) -> Field<'_> {
        Field { logits: self.logits, mask: self.is_masked.then_some(&self.buffers.mask[..]) }
    }

    /// Returns the tokens whose logits were changed and that are not ruled out. Ignores the list.
    pub fn changed(&self) -> impl Iterator<Item = Candidate> + '_ {
        let Buffers { changed, values, .. } = &*self.buffers;
        changed.iter().map(|&id| Candidate { id, logit: values[id as usize] }).filter(|c| c.logit > f32::NEG_INFINITY)
    }

    /// Finds the highest logit, unless it is known.
    ///
    /// # Errors
    /// If a logit is NaN or plus infinity, or nothing is left.
    pub fn scan(&mut self) -> Result<(), Error> {
        if !self.is_scanned {
            self.top = if self.is_list {
                self.buffers.list.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max)
            } else {
                let mut tops = std::mem::take(&mut self.buffers.tops);
                let top = self.field().tops(&mut tops);
                self.buffers.tops = tops;
                self.changed().map(|c| c.logit).fold(top?, f32::max)
            };
            self.is_scanned = true;
        }
        if self.top == f32::NEG_INFINITY { Err(Error::AllRuledOut) } else { Ok(()) }
    }

    /// Returns the token with the highest logit; among equals, the one with the lowest id.
    pub fn most_likely(&mut self) -> Result<u32, Error> {
        self.scan()?;
        let top = self.top;
        let best = if self.is_list {
            self.buffers.list.iter().filter(|c| c.logit == top).map(|c| c.id).min()
        } else {
            let changed = self.changed().filter(|c| c.logit == top).map(|c| c.id);
            changed.chain(self.field().first_at(&self.buffers.tops, top)).min()
        };
        best.ok_or(Error::AllRuledOut)
    }

    /// Changes the logits of marked candidates. `change` gets the mark and the logit.
    ///
    /// # Errors
    /// If such a logit is NaN or plus infinity.
    pub fn change(&mut self, marks: &Marks, change: impl Fn(u32, f32) -> f32) -> Result<(), Error> {
        let t = self.temperature;
        // Stages see logits that earlier temperatures have divided. Overflow is clamped to finite numbers: only a bias
        // of minus infinity rules a token out.
        let clamp = |logit: f32| logit.clamp(f32::MIN, f32::MAX);
        let new = |mark, logit: f32| {
            if t == 1.0 {
                return change(mark, logit).min(f32::MAX);
            }
            let changed = change(mark, clamp((f64::from(logit) / t) as f32));
            if changed == f32::NEG_INFINITY { changed } else { clamp((f64::from(changed) * t) as f32) }
        };
        if self.is_list {
            for c in &mut self.buffers.list {
                if let Some(mark) = marks.get(c.id) {
                    c.logit = new(mark, c.logit);
                }
            }
            self.buffers.list.retain(|c| c.logit > f32::NEG_INFINITY);
        } else {
            for &id in marks.ids() {
                let Some(logit) = self.logit(id)? else { continue };
                self.set(id, new(marks.get(id).unwrap_or(0), logit));
            }
        }
        self.is_scanned = false;
        Ok(())
    }

    /// Returns the logit of a token; `None` if the token is ruled out. There must be no list yet.
    fn logit(&self, id: u32) -> Result<Option<f32>, Error> {
        let token = id as usize;
        let Some(&logit) = self.logits.get(token) else { return Ok(None) };
        let bit = |words: &[u32]| words.get(token / 32).is_some_and(|word| word >> (token % 32) & 1 == 1);
        let value = if bit(&self.buffers.is_changed) {
            self.buffers.values[token]
        } else if self.is_masked && !bit(&self.buffers.mask) {
            return Ok(None);
        } else {
            logit
        };
        if value.is_nan() || value == f32::INFINITY {
            return Err(Error::NotFinite { token, value });
        }
        Ok(Some(value).filter(|value| *value > f32::NEG_INFINITY))
    }

    /// Sets the logit of a candidate. There must be no list yet.
    pub fn set(&mut self, id: u32, logit: f32) {
        if !self.is_masked {
            // All ones.
            let n = self.logits.len();
            let mut mask = std::mem::take(&mut self.buffers.mask);
            mask.clear();
            mask.resize(mask_len(n), 0);
            mask[..n / 32].fill(u32::MAX);
            if !n.is_multiple_of(32) {
                mask[n / 32] = (1 << (n % 32)) - 1;
            }
            self.buffers.mask = mask;
            self.is_masked = true;
        }
        let n = self.logits.len();
        let Buffers { mask, is_changed, changed, values, .. } = &mut *self.buffers;
        if values.len() < n {
            values.resize(n, 0.0);
        }
        if is_changed.len() < mask.len() {
            is_changed.resize(mask.len(), 0);
        }
        let (word, bit) = (id as usize / 32, 1 << (id % 32));
        if is_changed[word] & bit == 0 {
            is_changed[word] |= bit;
            mask[word] &= !bit;
            changed.push(id);
        }
        values[id as usize] = logit;
        self.is_scanned = false;
    }

    /// Keeps the `k` most likely, and at least one.
    ///
    /// # Errors
    /// If a logit is NaN or plus infinity, or nothing is left.
    pub fn keep_most_likely(&mut self, k: usize) -> Result<(), Error> {
        let k = k.max(1);
        self.scan()?;
        if !self.is_list {
            let bar = self.bar_of(k);
            self.list_from(bar);
        }
        self.cut(k);
        self.n = self.n.min(k);
        Ok(())
    }

    /// Returns a logit that at least `k` tokens reach, and few more. For a small `k`, only the highest logits of blocks
    /// are looked at.
    pub fn bar_of(&self, k: usize) -> f32 {
        if k >= self.logits.len() {
            return f32::MIN;
        }
        let tops = &self.buffers.tops;
        if k <= tops.len() / 2 {
            bar_of(k, self.top, |bar| tops.iter().map(|top| u32::from(*top >= bar)).sum())
        } else {
            bar_of(k, self.top, |bar| self.field().count(tops, bar))
        }
    }

    /// Lists the tokens whose logit is at least `bar`, in the order of their ids, with changed ones last.
    pub fn list_from(&mut self, bar: f32) {
        let mut list = std::mem::take(&mut self.buffers.list);
        list.clear();
        self.collect(bar, &mut list);
        self.buffers.list = list;
        self.is_list = true;
    }

    pub fn collect(&self, bar: f32, list: &mut Vec<Candidate>) {
        self.field().collect(&self.buffers.tops, bar, list);
        list.extend(self.changed().filter(|c| c.logit >= bar));
    }

    /// Keeps the `k` most likely of the list.
    fn cut(&mut self, k: usize) {
        let Buffers { list, ranks, .. } = &mut *self.buffers;
        if list.len() <= k {
            return;
        }
        if list.len() <= SORTED_AT_MOST {
            list.sort_unstable_by_key(|c| c.rank());
            list.truncate(k);
        } else {
            ranks.clear();
            ranks.extend(list.iter().map(|c| c.rank()));
            let last = *ranks.select_nth_unstable(k - 1).1;
            list.retain(|c| c.rank() <= last);
        }
    }

    /// Divides the logits by `temperature`, which must be above 0.
    pub fn divide(&mut self, temperature: f64) {
        self.temperature *= temperature;
    }

    /// Keeps only the most likely token.
    pub fn only_most_likely(&mut self) -> Result<(), Error> {
        let id = self.most_likely()?;
        self.buffers.list.clear();
        self.buffers.list.push(Candidate { id, logit: self.top });
        self.is_list = true;
        Ok(())
    }

    /// Draws a token: the first one at which the running sum of weights exceeds `share` of the total, in the order in
    /// which the candidates are stored.
    pub fn draw(&mut self, share: f64) -> Result<u32, Error> {
        self.scan()?;
        let weight = self.weight();
        let mut left = share * self.total();
        let list: &[Candidate] = if self.is_list { &self.buffers.list } else { &[] };
        let mut last = None;
        if !self.is_list {
            // First the block, by the sums that make up the total; then the token in it.
            let (top, scale) = (self.top, self.scale());
            for (index, sum) in self.buffers.sums.iter().enumerate() {
                if left >= *sum {
                    left -= sum;
                    continue;
                }
                let mut found = None;
                self.field().weights(index, top, scale, |id, weight| {
                    left -= weight;
                    // If rounding leaves a remainder, the last token takes it.
                    found = Some(id);
                    left >= 0.0
                });
                if found.is_some() {
                    return found.ok_or(Error::AllRuledOut);
                }
            }
        }
        let mut pass = |id: u32, weight: f64| {
            if weight > 0.0 {
                left -= weight;
                last = Some(id);
            }
            left < 0.0
        };
        let (top, t) = (f64::from(self.top), self.temperature);
        for chunk in list.chunks(CHUNK) {
            if let Some((c, _)) = chunk.iter().zip(weigh(chunk, top, t)).find(|(c, weight)| pass(c.id, *weight)) {
                return Ok(c.id);
            }
        }
        if !self.is_list
            && let Some(c) = self.changed().find(|c| pass(c.id, weight(c.logit)))
        {
            return Ok(c.id);
        }
        // Rounding may leave a remainder if the share is close to 1.
        match last {
            Some(id) => Ok(id),
            None => self.most_likely(),
        }
    }

    /// Appends the ids and probabilities of all candidates to `out`. The probabilities add up to 1.
    pub fn probabilities(&mut self, out: &mut Vec<(u32, f64)>) -> Result<(), Error> {
        self.scan()?;
        let from = out.len();
        let weight = self.weight();
        if self.is_list {
            out.extend(self.buffers.list.iter().map(|c| (c.id, weight(c.logit))));
        } else {
            for index in 0..self.buffers.tops.len() {
                self.field().weights(index, self.top, self.scale(), |id, weight| {
                    out.push((id, weight));
                    true
                });
            }
            out.extend(self.changed().map(|c| (c.id, weight(c.logit))));
        }
        let total: f64 = out[from..].iter().map(|(_, weight)| weight).sum();
        out[from..].iter_mut().for_each(|(_, weight)| *weight /= total);
        out.retain(|(_, p)| *p > 0.0);
        Ok(())
    }

    /// Returns the natural logarithm of the probability of `token`, and sets `out` to those of the `n` most likely
    /// tokens, in order. All tokens must still be candidates.
    pub fn logprobs(&mut self, token: u32, n: usize, out: &mut Vec<(u32, f64)>) -> Result<f64, Error> {
        self.scan()?;
        let (top, log_total) = (f64::from(self.top), ln(self.total()));
        let logprob = |logit: f32| f64::from(logit) - top - log_total;
        let of_token = self.logits.get(token as usize).map_or(f64::NEG_INFINITY, |logit| logprob(*logit));
        out.clear();
        if n > 0 {
            self.keep_most_likely(n)?;
            self.buffers.list.sort_unstable_by_key(|c| c.rank());
            out.extend(self.buffers.list.iter().map(|c| (c.id, logprob(c.logit))));
        }
        Ok(of_token)
    }

    /// Returns a function from a logit to its weight.
    pub fn weight(&self) -> impl Fn(f32) -> f64 + Copy + use<> {
        let (top, t) = (f64::from(self.top), self.temperature);
        move |logit| exp((f64::from(logit) - top) / t)
    }

    /// Returns the factor for differences of logits in passes over all of them.
    fn scale(&self) -> f32 {
        // Infinity times a difference of 0 would be NaN.
        ((1.0 / self.temperature) as f32).min(f32::MAX)
    }

    /// Returns the logit `depth` temperatures below the highest.
    pub fn below_top(&self, depth: f64) -> f32 {
        (f64::from(self.top) - depth * self.temperature) as f32
    }

    /// Returns the logit whose weight is `weight`.
    pub fn at_weight(&self, weight: f64) -> f32 {
        if self.temperature == 1.0 {
            // Bit for bit what llama.cpp computes.
            self.top + ln(weight) as f32
        } else {
            (f64::from(self.top) + ln(weight) * self.temperature) as f32
        }
    }

    /// Returns the weight of all candidates.
    pub fn total(&mut self) -> f64 {
        if !self.is_list {
            return self.total_of_field();
        }
        let (top, t) = (f64::from(self.top), self.temperature);
        let mut sums = [0.0; CHUNK];
        for chunk in self.buffers.list.chunks(CHUNK) {
            for (sum, weight) in sums.iter_mut().zip(weigh(chunk, top, t)) {
                *sum += weight;
            }
        }
        sums.iter().sum()
    }

    /// Returns the weight of all tokens that were candidates before there was a list.
    pub fn total_of_field(&mut self) -> f64 {
        let mut sums = std::mem::take(&mut self.buffers.sums);
        self.field().weigh(&self.buffers.tops, self.top, self.scale(), &mut sums);
        self.buffers.sums = sums;
        let weight = self.weight();
        self.buffers.sums.iter().sum::<f64>() + self.changed().map(|c| weight(c.logit)).sum::<f64>()
    }

    /// Returns bounds of [`Candidates::total_of_field`], given that the tokens at `bar` and above weigh `sum`.
    pub fn bounds_of_total(&self, sum: f64, bar: f32) -> (f64, f64) {
        let (top, scale) = (self.top, self.scale());
        // Without the tokens in the list.
        let all = self.field().weigh_roughly(&self.buffers.tops, top, scale);
        let of_model =
            self.buffers.list.iter().take(self.buffers.list.len() - self.changed().filter(|c| c.logit >= bar).count());
        let counted = of_model.map(|c| f64::from(exp_roughly((c.logit - top) * scale))).sum::<f64>();
        let rough = (all - counted).max(0.0);
        let weight = self.weight();
        let more = self.changed().filter(|c| c.logit < bar).map(|c| weight(c.logit)).sum::<f64>();
        // The most by which 32-bit weights and sums may be off.
        const ROUNDING: f64 = 4e-6;
        let low = sum + more + rough / ROUGH_HIGH;
        let high = sum + more + rough / ROUGH_LOW;
        (low * (1.0 - ROUNDING), high * (1.0 + ROUNDING))
    }

    /// Returns the weight of all candidates, and the weighted mean of (logit - top) / temperature, which is 0 or less.
    pub fn total_and_mean(&mut self) -> (f64, f64) {
        let (top, t) = (f64::from(self.top), self.temperature);
        let list: &[Candidate] = if self.is_list { &self.buffers.list } else { &[] };
        let (mut total, mut products) = match self.is_list {
            true => (0.0, 0.0),
            false => self.field().weigh_with_exponents(&self.buffers.tops, self.top, self.scale()),
        };
        for c in list.iter().copied().chain(self.changed().filter(|_| !self.is_list)) {
            let x = (f64::from(c.logit) - top) / t;
            let weight = exp(x);
            total += weight;
            // 0 times infinity would be NaN.
            products += if weight > 0.0 { weight * x } else { 0.0 };
        }
        (total, products / total)
    }

    /// Lists all candidates.
    pub fn list(&mut self) -> Result<(), Error> {
        self.scan()?;
        if !self.is_list {
            self.list_from(f32::MIN);
        }
        Ok(())
    }
}

/// Returns a number that at least `k` of the numbers counted by `count` reach, and if possible not many more. The
/// highest number is `top`.
///
/// It counts at bars that it narrows down by bisection: passes of vector instructions are faster than sorting.
fn bar_of(k: usize, top: f32, count: impl Fn(f32) -> u32) -> f32 {
    // At `low` there are enough, and at `high` too few.
    let (mut low, mut high) = (f32::MIN, top);
    let mut depth = 4.0;
    for _ in 0..16 {
        let bar = if low > f32::MIN { low + (high - low) * 0.5 } else { top - depth };
        let n = count(bar) as usize;
        if n < k {
            high = bar;
            depth *= 2.0;
            continue;
        }
        low = bar;
        if n <= k + k / 4 {
            break;
        }
    }
    low
}

/// Number of candidates that are weighed together, so that compilers use vector instructions.
pub const CHUNK: usize = 8;

/// Returns the weights of up to 8 candidates, and 0 past the last one.
#[inline(always)]
pub fn weigh(chunk: &[Candidate], top: f64, temperature: f64) -> [f64; CHUNK] {
    let mut weights = [f64::NEG_INFINITY; CHUNK];
    for (x, c) in weights.iter_mut().zip(chunk) {
        *x = (f64::from(c.logit) - top) / temperature;
    }
    for x in &mut weights {
        *x = exp(*x);
    }
    weights
}

/// Keeps the candidates of lowest rank until `is_enough` returns true for their weight and number. Keeps all if it
/// never does.
///
/// Sorting a long list would be most of the work, and nearly all of it wasted. So a first pass adds up the weight
/// within each of 512 steps of `score`, which must rise with the rank. Only the step in which the weight becomes enough
/// is sorted. The kept candidates stay in their order.
pub fn keep_best(
    list: &mut Vec<Candidate>,
    spare: &mut Vec<Candidate>,
    score: impl Fn(Candidate) -> f64,
    rank: impl Fn(Candidate) -> u128,
    weights: impl Fn(&[Candidate]) -> [f64; CHUNK],
    is_enough: impl Fn(f64, usize) -> bool,
) {
    let weight = |c: &Candidate| weights(std::slice::from_ref(c))[0];
    if list.len() <= SORTED_AT_MOST {
        list.sort_unstable_by_key(|c| rank(*c));
        let (mut sum, mut n) = (0.0, 0);
        let end = list.iter().position(|c| {
            sum += weight(c);
            n += 1;
            is_enough(sum, n)
        });
        list.truncate(end.map_or(list.len(), |end| end + 1));
        return;
    }
    const STEPS: usize = 512;
    let most = list.iter().map(|c| score(*c)).fold(0.0, f64::max);
    let width = if most > 0.0 && most < f64::INFINITY { STEPS as f64 / most } else { 0.0 };
    let step = |c: Candidate| ((score(c) * width) as usize).min(STEPS - 1);
    let (mut sums, mut counts) = ([0.0; STEPS], [0usize; STEPS]);
    for chunk in list.chunks(CHUNK) {
        for (c, weight) in chunk.iter().zip(weights(chunk)) {
            let step = step(*c);
            sums[step] += weight;
            counts[step] += 1;
        }
    }
    let (mut sum, mut n) = (0.0, 0);
    let Some(last) = (0..STEPS).find(|i| {
        let is_last = is_enough(sum + sums[*i], n + counts[*i]);
        if !is_last {
            sum += sums[*i];
            n += counts[*i];
        }
        is_last
    }) else {
        return;
    };
    spare.clear();
    spare.extend(list.iter().filter(|c| step(**c) == last));
    spare.sort_unstable_by_key(|c| rank(*c));
    let end = spare.iter().position(|c| {
        sum += weight(c);
        n += 1;
        is_enough(sum, n)
    });
    // Sums in two orders differ in their last bits, so all may be needed.
    let Some(boundary) = end.or(spare.len().checked_sub(1)).map(|end| rank(spare[end])) else { return };
    list.retain(|c| step(*c) < last || (step(*c) == last && rank(*c) <= boundary));
}
