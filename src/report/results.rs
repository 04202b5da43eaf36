//! What a comparison found, as data: what the table, the report, JSON and CSV show.
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
    /// The command, a word each.
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
    /// Every two candidates that were both measured.
    pub pairs: Vec<Pair>,
}

/// How a comparison was made.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Settings {
    /// Tokens in a window.
    pub window: u32,
    /// Tokens of a window before the first that is scored: what the model reads as context.
    pub context: u32,
    /// Confidence level of the intervals: 0.95.
    pub confidence: f64,
    /// How often the bootstrap drew.
    pub resamples: u32,
    /// The bootstrap's seed.
    pub seed: u64,
    /// Threads the models ran on; 0 where none ran.
    pub threads: u32,
    /// Type of the KV cache.
    pub kv_type: String,
}

/// A file that took part.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct File {
    /// What it is called: its file name without the ending.
    pub name: String,
    /// Its path, as given.
    pub path: String,
    /// Its size, of all parts.
    pub bytes: u64,
    /// BLAKE3 of its bytes, hexadecimal; `None` if it was not computed.
    pub blake3: Option<String>,
    /// What it holds most of: `Q4_K_M`, `BF16`; `None` if it does not say.
    pub quantization: Option<String>,
    /// Bits a weight over all tensors; `None` of a trace.
    pub bits_per_weight: Option<f64>,
    /// The importance it was made with, by name; `None` without, or where it does not say.
    pub importance: Option<String>,
}

/// What candidates are compared with.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Reference {
    /// The model or the trace.
    pub file: File,
    /// Of a trace: how many tokens a position has of its own. `None` of a model.
    pub trace_k: Option<u32>,
    /// Its perplexity over all texts; `None` if none was read.
    pub perplexity: Option<Estimate>,
    /// Its perplexity over each text, as [`Results::slices`].
    pub slices: Vec<Option<Estimate>>,
    /// How it did at each task, as [`Results::tasks`]; empty of a trace.
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
    /// Tokens in it.
    pub tokens: u64,
    /// Windows that were read.
    pub windows: u64,
    /// Tokens that were scored.
    pub scored: u64,
}

/// A file that is compared with the reference.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Candidate {
    /// The file.
    pub file: File,
    /// Why it has no scores, or not all; `None` if all went well.
    pub failure: Option<String>,
    /// Over all texts: every scored token counts the same. `None` if nothing was scored.
    pub overall: Option<Scores>,
    /// Over each text, as [`Results::slices`].
    pub slices: Vec<Option<Scores>>,
    /// Whether no smaller candidate has as low a KLD.
    pub on_front: bool,
    /// Mean KLD along the window: from the first scored token to the last.
    pub positions: Vec<Stretch>,
    /// How KLD is distributed.
    pub histogram: Option<Histogram>,
    /// The tokens that changed most, the most changed first.
    pub changed: Vec<Change>,
    /// How its weights differ; `None` if that was not asked for.
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
    /// Its perplexity over the reference's.
    pub perplexity_ratio: Estimate,
    /// Mean KLD: nats per token by which its distribution is off the reference's.
    pub kld: Estimate,
    /// The KLD that half of the tokens stay below.
    pub kld_median: Estimate,
    /// That 90 in 100 stay below.
    pub kld_90: Estimate,
    /// That 99 in 100 stay below.
    pub kld_99: Estimate,
    /// That 999 in 1000 stay below.
    pub kld_999: Estimate,
    /// The largest KLD.
    pub kld_max: Estimate,
    /// Root of the mean square of the change in the right token's probability.
    pub rms_dp: Estimate,
    /// Share of tokens where both have the same most likely token: 1 less the flips.
    pub same_top: Estimate,
    /// Share of the reference's five most likely tokens that are among the candidate's five.
    pub top5_overlap: Estimate,
}

/// A token at which the candidate expects something else than the reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Which text, by its place in [`Results::slices`].
    pub slice: usize,
    /// Which token of the text, counted from 0.
    pub token: u64,
    /// The text before it, a line or two.
    pub before: String,
    /// The token that the text has there.
    pub right: Guess,
    /// The text after it, a few words.
    pub after: String,
    /// What the reference expects, the most likely first: three.
    pub reference: Vec<Guess>,
    /// What the candidate expects, the most likely first: three.
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
    /// How likely the reference finds it; `None` if a trace does not say.
    #[serde(serialize_with = "json_float::optional")]
    pub reference: Option<f64>,
    /// How likely the candidate finds it.
    #[serde(serialize_with = "json_float::number")]
    pub candidate: f64,
}

/// Two candidates: what is `a`'s less what is `b`'s.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// The first, by its place in [`Results::candidates`].
    pub a: usize,
    /// The second.
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
    /// Over all matrices, every weight counting the same; `None` if none could be compared.
    pub overall: Option<WeightError>,
    /// The matrices by what they do, in the order in which the file has the first of each.
    pub roles: Vec<RoleError>,
    /// Tensor by tensor, in the file's order; those kept as they are in the source are there too.
    pub tensors: Vec<TensorError>,
    /// What could not be compared, a sentence each.
    pub skipped: Vec<String>,
}

/// How some weights differ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightError {
    /// Root of the mean square of the difference.
    #[serde(serialize_with = "json_float::number")]
    pub rmse: f64,
    /// Root of the sum of squared differences over that of squared weights.
    #[serde(serialize_with = "json_float::number")]
    pub relative: f64,
    /// Cosine of the angle between the two.
    #[serde(serialize_with = "json_float::number")]
    pub cosine: f64,
    /// As `relative`, each column counting by its importance; `None` without importance.
    #[serde(serialize_with = "json_float::optional")]
    pub weighted: Option<f64>,
}

/// How the matrices of a role differ, every weight counting the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoleError {
    /// What they do, as recipes call it: `attention_q`, `ffn_down`.
    pub role: String,
    /// How many there are.
    pub tensors: u64,
    /// Their weights.
    pub weights: u64,
    /// How they differ.
    pub error: WeightError,
}

/// How a tensor differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorError {
    /// Its GGUF name.
    pub name: String,
    /// Its layer; `None` of those outside of layers.
    pub layer: Option<u32>,
    /// What it does, as recipes call it: `attention_q`, `ffn_down`.
    pub role: String,
    /// Its type in the candidate: `Q4_K`.
    pub ty: String,
    /// Its weights.
    pub weights: u64,
    /// How it differs.
    pub error: WeightError,
    /// The row that differs most, in terms of `relative`, which a row of zeros has none of. Of a vector, 0.
    pub worst_row: u64,
    /// How that row differs.
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
    /// Questions in it.
    pub questions: u64,
    /// Examples with their answers before each question.
    pub shots: u32,
    /// The score that counts first, by its name in [`TaskScores::scores`].
    pub main: String,
}

/// How a model did at a task.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TaskScores {
    /// Questions it was asked.
    pub questions: u64,
    /// `accuracy`, `accuracy_normalised`, `mc2`: in the task's order.
    pub scores: Vec<(String, Estimate)>,
    /// By the main score; `None` of the reference, or without one.
    pub against_reference: Option<Flips>,
}

/// Questions that one of two models has right and the other wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Flips {
    /// Right in the reference, wrong in the candidate.
    pub lost: u64,
    /// Wrong in the reference, right in the candidate.
    pub won: u64,
    /// How likely chance alone parts them this unevenly, by McNemar's exact test.
    #[serde(serialize_with = "json_float::number")]
    pub p_value: f64,
}
