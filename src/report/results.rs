//! The results of a comparison, as data that the table, the report, JSON and CSV show.
//!
//! All shares and probabilities are from 0 to 1, and logarithms are natural, as llama-perplexity's are before it prints
//! percents. Numbers that may be infinite are serialized as [`base::json_float`](crate::base::json_float) says.

use serde::{Deserialize, Serialize};

use crate::base::json_float;
pub use crate::statistics::{Estimate, Histogram, Stretch, Verdict};

/// A comparison.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Results {
    /// nibble's version.
    pub version: String,
    /// The words of the command.
    pub command: Vec<String>,
    /// Whether it was stopped before its end, so that some texts or candidates are missing.
    pub interrupted: bool,
    /// How it was measured.
    pub settings: Settings,
    /// What candidates are compared with.
    pub reference: Reference,
    /// The named texts, in the order given.
    pub slices: Vec<Slice>,
    /// The tasks, in the order given.
    pub tasks: Vec<Task>,
    /// The candidates, smallest file first.
    pub candidates: Vec<Candidate>,
    /// All pairs of measured candidates.
    pub pairs: Vec<Pair>,
}

/// How a comparison was made.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Settings {
    /// Tokens in a window.
    pub window: u32,
    /// Tokens of a window before the first scored one, which the model reads as context.
    pub context: u32,
    /// Confidence level of the intervals: 0.95.
    pub confidence: f64,
    /// Number of bootstrap resamples.
    pub resamples: u32,
    /// Seed of the bootstrap.
    pub seed: u64,
    /// Number of threads on which the models ran; 0 if no model ran.
    pub threads: u32,
    /// Type of the KV cache.
    pub kv_type: String,
}

/// A file of the comparison.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct File {
    /// What it is called: its file name without the ending.
    pub name: String,
    /// Its path, as given.
    pub path: String,
    /// Size of all its parts, in bytes.
    pub bytes: u64,
    /// BLAKE3 of its bytes, hexadecimal; `None` if it was not computed.
    pub blake3: Option<String>,
    /// Its main quantization: `Q4_K_M`, `BF16`; `None` if the file does not say.
    pub quantization: Option<String>,
    /// Bits per weight over all tensors; `None` for a trace.
    pub bits_per_weight: Option<f64>,
    /// Name of the importance that it was made with; `None` if there was none, or the file does not say.
    pub importance: Option<String>,
    /// Whether weights were copied into the second layout for CPUs, which adds numbers in another order; `None` if the model
    /// was not run.
    pub second_layout: Option<bool>,
}

/// What candidates are compared with.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Reference {
    /// The model or the trace.
    pub file: File,
    /// For a trace, how many of the most likely tokens it keeps at each position; `None` for a model.
    pub trace_k: Option<u32>,
    /// Its perplexity over all texts; `None` if no text was read.
    pub perplexity: Option<Estimate>,
    /// Its perplexity over each text, in the order of [`Results::slices`].
    pub slices: Vec<Option<Estimate>>,
    /// Its scores for each task, in the order of [`Results::tasks`]; empty for a trace.
    pub tasks: Vec<Option<TaskScores>>,
}

/// A named text.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Slice {
    /// Its name.
    pub name: String,
    /// The file.
    pub path: String,
    /// BLAKE3 of the text, hexadecimal.
    pub blake3: String,
    /// Number of its tokens.
    pub tokens: u64,
    /// Number of windows that were read.
    pub windows: u64,
    /// Tokens that were scored.
    pub scored: u64,
}

/// A file that is compared with the reference.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Candidate {
    /// The file.
    pub file: File,
    /// Why it has no scores, or not all of them; `None` if there was no failure.
    pub failure: Option<String>,
    /// Scores over all texts, where every scored token counts the same; `None` if nothing was scored.
    pub overall: Option<Scores>,
    /// Scores over each text, in the order of [`Results::slices`].
    pub slices: Vec<Option<Scores>>,
    /// Whether no smaller candidate has as low a KLD.
    pub on_front: bool,
    /// Mean KLD along the window: from the first scored token to the last.
    pub positions: Vec<Stretch>,
    /// The distribution of KLD.
    pub histogram: Option<Histogram>,
    /// The tokens with the largest KLD, in descending order.
    pub changed: Vec<Change>,
    /// How its weights differ from the source's; `None` if this was not asked for.
    pub weights: Option<WeightErrors>,
    /// How it did at each task, as [`Results::tasks`].
    pub tasks: Vec<Option<TaskScores>>,
}

/// How a candidate's predictions differ from the reference's over a text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Tokens that were scored.
    pub tokens: u64,
    /// Its perplexity.
    pub perplexity: Estimate,
    /// Its perplexity divided by the reference's.
    pub perplexity_ratio: Estimate,
    /// Mean KLD from the reference's distribution, in nats per token.
    pub kld: Estimate,
    /// The median of KLD.
    pub kld_median: Estimate,
    /// The 90% quantile of KLD.
    pub kld_90: Estimate,
    /// The 99% quantile of KLD.
    pub kld_99: Estimate,
    /// The 99.9% quantile of KLD.
    pub kld_999: Estimate,
    /// The largest KLD.
    pub kld_max: Estimate,
    /// Root of the mean square of the change in the right token's probability.
    pub rms_dp: Estimate,
    /// Share of tokens for which both have the same most likely token: 1 minus the share of flips.
    pub same_top: Estimate,
    /// Share of the reference's five most likely tokens that are among the candidate's five.
    pub top5_overlap: Estimate,
}

/// A token at which the candidate's prediction differs from the reference's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Index of the text in [`Results::slices`].
    pub slice: usize,
    /// Index of the token in the text, from 0.
    pub token: u64,
    /// The text before it, a line or two.
    pub before: String,
    /// The token that the text has there.
    pub right: Guess,
    /// The text after it, a few words.
    pub after: String,
    /// The reference's three most likely tokens, in descending order.
    pub reference: Vec<Guess>,
    /// The candidate's three most likely tokens, in descending order.
    pub candidate: Vec<Guess>,
    /// KLD of the two.
    #[serde(serialize_with = "json_float::number")]
    pub kld: f64,
}

/// A token with its probabilities.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Guess {
    /// The token's text; bytes that are not text are shown as `\xE4`.
    pub text: String,
    /// Its probability according to the reference; `None` if a trace does not say.
    #[serde(serialize_with = "json_float::optional")]
    pub reference: Option<f64>,
    /// Its probability according to the candidate.
    #[serde(serialize_with = "json_float::number")]
    pub candidate: f64,
}

/// A pair of candidates. Differences are those of `a` minus `b`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// Index of the first in [`Results::candidates`].
    pub a: usize,
    /// Index of the second.
    pub b: usize,
    /// Mean KLD.
    pub kld: Estimate,
    /// Logarithm of the perplexity.
    pub log_perplexity: Estimate,
    /// Share of tokens with the same top as the reference.
    pub same_top: Estimate,
    /// Which is nearer to the reference, by mean KLD.
    pub verdict: Verdict,
}

/// How a candidate's weights differ from the source's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WeightErrors {
    /// Error over all matrices, where every weight counts the same; `None` if no matrix could be compared.
    pub overall: Option<WeightError>,
    /// Errors of the matrices by role, in the order of the first matrix of each role in the file.
    pub roles: Vec<RoleError>,
    /// Errors of all tensors in the file's order, including those that are the same as in the source.
    pub tensors: Vec<TensorError>,
    /// What could not be compared, one sentence each.
    pub skipped: Vec<String>,
}

/// How some weights differ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightError {
    /// Root of the mean square of the difference.
    #[serde(serialize_with = "json_float::number")]
    pub rmse: f64,
    /// Root of the sum of squared differences over the sum of squared weights.
    #[serde(serialize_with = "json_float::number")]
    pub relative: f64,
    /// Cosine of the angle between the two.
    #[serde(serialize_with = "json_float::number")]
    pub cosine: f64,
    /// Like `relative`, with each column weighted by its importance; `None` without importance.
    #[serde(serialize_with = "json_float::optional")]
    pub weighted: Option<f64>,
}

/// How the matrices of a role differ, where every weight counts the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoleError {
    /// The role, as recipes name it: `attention_q`, `ffn_down`.
    pub role: String,
    /// Number of matrices.
    pub tensors: u64,
    /// Number of their weights.
    pub weights: u64,
    /// How they differ.
    pub error: WeightError,
}

/// How a tensor differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorError {
    /// Its GGUF name.
    pub name: String,
    /// Its layer; `None` if it is not in a layer.
    pub layer: Option<u32>,
    /// Its role, as recipes name it: `attention_q`, `ffn_down`.
    pub role: String,
    /// Its type in the candidate: `Q4_K`.
    pub ty: String,
    /// Number of its weights.
    pub weights: u64,
    /// How it differs.
    pub error: WeightError,
    /// The row with the largest relative error, leaving out rows of zeros, which have none; 0 for a vector.
    pub worst_row: u64,
    /// The relative error of that row.
    #[serde(serialize_with = "json_float::number")]
    pub worst_row_relative: f64,
}

/// A task.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Task {
    /// What it is called: its file name without the ending.
    pub name: String,
    /// The file.
    pub path: String,
    /// BLAKE3 of the file, hexadecimal.
    pub blake3: String,
    /// Its format: `hellaswag`, `mmlu`.
    pub format: String,
    /// Number of its questions.
    pub questions: u64,
    /// Number of answered examples before each question.
    pub shots: u32,
    /// Name of the main score in [`TaskScores::scores`].
    pub main: String,
}

/// A model's scores for a task.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TaskScores {
    /// Number of questions that it was asked.
    pub questions: u64,
    /// Scores such as `accuracy`, `accuracy_normalised` and `mc2`, in the task's order.
    pub scores: Vec<(String, Estimate)>,
    /// Comparison with the reference by the main score; `None` for the reference itself, or without one.
    pub against_reference: Option<Flips>,
}

/// Numbers of questions that one of two models answers right and the other wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Flips {
    /// Right in the reference, wrong in the candidate.
    pub lost: u64,
    /// Wrong in the reference, right in the candidate.
    pub won: u64,
    /// The p-value of McNemar's exact test: the probability of a split at least this uneven by chance alone.
    #[serde(serialize_with = "json_float::number")]
    pub p_value: f64,
}
