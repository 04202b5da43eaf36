//! Assembles results from per-token measures.

use super::measure::{Changed, Columns, Likely};
use super::texts::{Cut, TokenizedText};
use crate::base::math::exp;
use crate::report::results::{Candidate, Change, Guess, Pair, Results, Scores, Slice};
use crate::statistics::{self, Blocks, Bootstrap, Stretches};
use crate::vocab::Tokenizer;

/// Number of tokens shown before a change.
const BEFORE: usize = 40;
/// Number of tokens shown after a change.
const AFTER: usize = 12;

/// The blocks of the texts that were read, with their bootstrap resamples, for all texts together and for each.
pub struct Statistics {
    overall: Bootstrap,
    slices: Vec<Option<Bootstrap>>,
    stretches: Stretches,
}

/// Number of ranges of the window for which KLD is shown.
const STRETCHES: usize = 16;

impl Statistics {
    /// Resamples windows, each given by its text and its number of scored tokens. The settings of `results` have the
    /// confidence level and the number of resamples.
    pub fn new(windows: &[(usize, usize)], results: &Results) -> Self {
        let settings = &results.settings;
        let (resamples, seed, confidence) = (settings.resamples, settings.seed, settings.confidence);
        let blocks = Blocks::of_windows(windows);
        let bootstrap = |blocks| Bootstrap::new(blocks, resamples, seed, confidence);
        let slices = (0..results.slices.len()).map(|slice| {
            let only = blocks.only(slice);
            (!only.is_empty()).then(|| bootstrap(only))
        });
        let slices = slices.collect();
        let stretches = Stretches::new(windows, settings.context, STRETCHES, resamples, seed, confidence);
        Self { overall: bootstrap(blocks), slices, stretches }
    }
}

/// Fills in the results of the candidates in `measured`, each with its index among those of `results`.
///
/// `windows` are the windows that were read, each with its text and its number of scored tokens. `reference_nll` is the
/// reference's negative log-likelihood of each scored token. The front and the pairs depend on all candidates, so this
/// is called again when more have been measured.
pub fn fill(results: &mut Results, windows: &[(usize, usize)], reference_nll: &[f64], measured: &[(usize, &Columns)]) {
    for (i, slice) in results.slices.iter_mut().enumerate() {
        let of_slice = windows.iter().filter(|(text, _)| *text == i);
        slice.windows = of_slice.clone().count() as u64;
        slice.scored = of_slice.map(|(_, scored)| *scored as u64).sum();
    }
    if windows.is_empty() {
        return;
    }
    let statistics = Statistics::new(windows, results);
    let perplexity = |bootstrap: &Bootstrap| bootstrap.of_means(&[reference_nll], |means| exp(means[0]));
    results.reference.perplexity = Some(perplexity(&statistics.overall));
    results.reference.slices = statistics.slices.iter().map(|slice| slice.as_ref().map(perplexity)).collect();
    let scored: Vec<_> = measured.iter().filter(|(_, columns)| !columns.kld.is_empty()).collect();
    for (place, columns) in &scored {
        let candidate = &mut results.candidates[*place];
        candidate.overall = Some(scores(&statistics.overall, columns, reference_nll));
        let of_slice =
            |slice: &Option<Bootstrap>| slice.as_ref().map(|bootstrap| scores(bootstrap, columns, reference_nll));
        candidate.slices = statistics.slices.iter().map(of_slice).collect();
        candidate.histogram = Some(statistics::histogram(&columns.kld));
        candidate.positions = statistics.stretches.of(&columns.kld);
    }
    mark_front(&mut results.candidates);
    results.pairs.clear();
    for (i, (a, of_a)) in scored.iter().enumerate() {
        for (b, of_b) in &scored[i + 1..] {
            results.pairs.push(pair((*a, *of_a), (*b, *of_b), &statistics.overall));
        }
    }
}

/// Returns the tokens that changed most, with the text around them.
pub fn changes(
    changed: &[Changed],
    windows: &[(usize, usize)],
    texts: &[TokenizedText],
    cut: Cut,
    tokenizer: &dyn Tokenizer,
) -> Vec<Change> {
    let passages = Passages { texts, cut, tokenizer, windows };
    changed.iter().filter_map(|change| passages.of(change)).collect()
}

/// Records in `results` which texts are read, and how.
pub fn describe_texts(results: &mut Results, texts: &[TokenizedText], cut: Cut) {
    results.settings.window = cut.window;
    results.settings.context = cut.context() as u32 + 1;
    let slice = |text: &TokenizedText| Slice {
        name: text.name.clone(),
        path: text.path.display().to_string(),
        blake3: text.blake3.clone(),
        tokens: text.n_tokens,
        ..Slice::default()
    };
    results.slices = texts.iter().map(slice).collect();
    for candidate in &mut results.candidates {
        candidate.slices = vec![None; texts.len()];
    }
    results.reference.slices = vec![None; texts.len()];
}

fn scores(bootstrap: &Bootstrap, columns: &Columns, reference_nll: &[f64]) -> Scores {
    let Columns { kld, nll, dp, same_top, top5 } = columns;
    let squares: Vec<f64> = dp.iter().map(|dp| dp * dp).collect();
    let quantiles = bootstrap.quantiles(kld, &[0.5, 0.9, 0.99, 0.999]);
    Scores {
        tokens: bootstrap.blocks().n_tokens() as u64,
        perplexity: bootstrap.of_means(&[nll], |means| exp(means[0])),
        perplexity_ratio: bootstrap.of_means(&[nll, reference_nll], |means| exp(means[0] - means[1])),
        kld: bootstrap.mean(kld),
        kld_median: quantiles[0],
        kld_90: quantiles[1],
        kld_99: quantiles[2],
        kld_999: quantiles[3],
        kld_max: bootstrap.maximum(kld),
        rms_dp: bootstrap.of_means(&[&squares], |means| means[0].sqrt()),
        same_top: bootstrap.mean(same_top),
        top5_overlap: bootstrap.mean(top5),
    }
}

fn pair(a: (usize, &Columns), b: (usize, &Columns), bootstrap: &Bootstrap) -> Pair {
    let kld = bootstrap.difference(&a.1.kld, &b.1.kld);
    Pair {
        a: a.0,
        b: b.0,
        kld,
        log_perplexity: bootstrap.difference(&a.1.nll, &b.1.nll),
        same_top: bootstrap.difference(&a.1.same_top, &b.1.same_top),
        verdict: statistics::verdict(&kld),
    }
}

/// Marks the candidates on the front, for which no other one is at most as large and better. Sizes are compared in
/// thousandths of the smallest file, so that a few bytes of metadata do not make a file larger.
fn mark_front(candidates: &mut [Candidate]) {
    let measured: Vec<usize> = (0..candidates.len()).filter(|i| candidates[*i].overall.is_some()).collect();
    let smallest = measured.iter().map(|i| candidates[*i].file.bytes).min().unwrap_or(0);
    let unit = (smallest / 1000).max(1);
    let sizes: Vec<u64> = measured.iter().map(|i| (candidates[*i].file.bytes + unit / 2) / unit).collect();
    let klds: Vec<f64> =
        measured.iter().filter_map(|i| candidates[*i].overall.as_ref().map(|scores| scores.kld.value)).collect();
    for (i, on_front) in measured.into_iter().zip(statistics::front(&sizes, &klds)) {
        candidates[i].on_front = on_front;
    }
}

/// Finds the passages of changes in the texts.
struct Passages<'a> {
    texts: &'a [TokenizedText],
    cut: Cut,
    tokenizer: &'a dyn Tokenizer,
    windows: &'a [(usize, usize)],
}

impl Passages<'_> {
    /// Returns a change with the text around it.
    fn of(&self, change: &Changed) -> Option<Change> {
        let (slice, _) = *self.windows.get(change.window)?;
        let first = self.windows.iter().position(|(text, _)| *text == slice)?;
        let text = self.texts.get(slice)?;
        let window = (change.window - first) * self.cut.window as usize;
        let token = window + self.cut.context() + 1 + change.row;
        let around = |from: usize, to: usize| passage(self.tokenizer, text.tokens.get(from..to).unwrap_or_default());
        let ends = (window + self.cut.window as usize).min(text.tokens.len());
        let guess = |likely: &Likely| Guess {
            text: token_text(self.tokenizer, likely.id),
            reference: likely.reference,
            candidate: likely.candidate,
        };
        Some(Change {
            slice,
            token: token as u64,
            before: around(token.saturating_sub(BEFORE).max(window), token),
            right: guess(&change.right),
            after: around(token + 1, (token + 1 + AFTER).min(ends)),
            reference: change.reference.iter().map(guess).collect(),
            candidate: change.candidate.iter().map(guess).collect(),
            kld: change.kld,
        })
    }
}

/// Returns the text of some tokens, without the characters that are cut at either end.
fn passage(tokenizer: &dyn Tokenizer, tokens: &[u32]) -> String {
    let bytes: Vec<u8> = tokens.iter().flat_map(|id| tokenizer.bytes(*id)).copied().collect();
    let is_middle = |byte: &u8| byte & 0b1100_0000 == 0b1000_0000;
    let begins = bytes.iter().position(|byte| !is_middle(byte)).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[begins..]).trim_end_matches(char::REPLACEMENT_CHARACTER).to_string()
}

/// Returns the text of one token: bytes that are not text by themselves as `\xE4`, control tokens as the vocabulary writes
/// them.
fn token_text(tokenizer: &dyn Tokenizer, id: u32) -> String {
    let bytes = tokenizer.bytes(id);
    match std::str::from_utf8(bytes) {
        Ok("") => tokenizer.piece(id).to_string(),
        Ok(text) => text.to_string(),
        Err(_) => bytes.iter().map(|byte| format!("\\x{byte:02X}")).collect(),
    }
}
