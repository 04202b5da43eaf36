//! Tasks: published questions with known answers, of which a model's right answers are counted.
//!
//! ```text
//!  file ─► Format ─► questions ─┬─► prompts ─► log-likelihoods ─► marks ─► kept, line by line
//!          by content           │   run        of each choice     0 or 1        │
//!                examples ◄─────┘                                               └─► score ─► share right, flips
//! ```
//!
//! A format is one file here and one line in [`FORMATS`]. Recognition, command-line values, help and tests iterate over
//! that table. The exact prompts and the scoring are those of lm-evaluation-harness 0.4
//! (<https://github.com/EleutherAI/lm-evaluation-harness>), whose numbers are widely quoted. For llama-perplexity's own
//! HellaSwag file, they are those of llama-perplexity. Each format's file documents them.
//!
//! | score                 | a question's mark                                                                       |
//! |-----------------------|-----------------------------------------------------------------------------------------|
//! | `accuracy`            | 1 where the right choice has the highest log-likelihood, the sum over its tokens        |
//! | `accuracy_normalised` | 1 where it has the highest log-likelihood a character (Unicode scalar value); of        |
//! |                       | llama-perplexity's file: a token                                                        |
//! | `mc1`                 | as `accuracy`, among the best answer and all wrong ones                                 |
//! | `mc2`                 | the true answers' share of the probability of all answers                               |
//! | `exact_match`         | 1 where the last number that the model writes is the answer                             |
//! | `exact_match_strict`  | 1 where the number after `####` that the model writes is the answer                     |
//!
//! If choices are equally likely, the first one counts as chosen. The tokens of a choice are those that follow the
//! context's tokens in the tokenized whole text; spaces at the end of the context belong to the choice. The text of a
//! task never becomes control tokens.

mod agieval;
mod arc;
mod ceval;
mod cmmlu;
mod gsm8k;
mod hellaswag;
mod hellaswag_text;
mod kept;
mod letters;
mod marks;
mod mmlu;
mod run;
mod source;
mod subjects;
mod truthfulqa;
mod winogrande;

use std::io;
use std::path::{Path, PathBuf};

pub use self::kept::{Identity, Kept, KeptError};
pub use self::marks::{Outcome, QuestionResult, score};
pub use self::run::{Ran, RunError, RunOptions, run};
use self::source::{DELIMITERS, Source};
use crate::base::{ending, suggest};
use crate::report::results;

/// A file format in which tasks are published.
#[derive(Debug)]
pub struct Format {
    /// Its name, for users to choose it.
    pub name: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
    /// Default number of examples before each question: the one that most published numbers use.
    pub usual_shots: u32,
    /// What is counted. The first is the main score.
    pub scores: &'static [Score],
    /// The part of a choice that is scored.
    pub scored: Scored,
    looks_right: fn(&Source<'_>) -> bool,
    parse: fn(&Source<'_>) -> Result<Parsed, Error>,
}

/// All formats. A file gets the first format that it matches.
pub static FORMATS: &[&Format] = &[
    &hellaswag::FORMAT,
    &hellaswag_text::FORMAT,
    &arc::FORMAT,
    &truthfulqa::FORMAT,
    &winogrande::FORMAT,
    &ceval::FORMAT,
    &cmmlu::FORMAT,
    &mmlu::FORMAT,
    &agieval::FORMAT,
    &gsm8k::FORMAT,
];

/// The names of all formats.
pub fn names() -> Vec<&'static str> {
    FORMATS.iter().map(|format| format.name).collect()
}

/// Returns the format of this name.
///
/// # Errors
/// If there is none; the error suggests similar names.
pub fn format(name: &str) -> Result<&'static Format, Error> {
    FORMATS.iter().copied().find(|format| format.name == name).ok_or_else(|| {
        let close = suggest::suggest(name, names().into_iter());
        let close: Vec<String> = close.into_iter().map(str::to_string).collect();
        let all = || format!("there are {}", names().join(", "));
        Error::Format { name: name.to_string(), hint: suggest::question(&close).unwrap_or_else(all) }
    })
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// The most likely choice is right.
    Accuracy,
    /// The choice with the highest log-likelihood per unit of its length is right.
    AccuracyNormalised,
    /// The best answer is more likely than all wrong ones.
    Mc1,
    /// The true answers' share of the probability.
    Mc2,
    /// The last number in the written answer is right.
    ExactMatch,
    /// The number that the written answer marks as its result is right.
    ExactMatchStrict,
}

impl Score {
    /// Returns its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::AccuracyNormalised => "accuracy_normalised",
            Self::Mc1 => "mc1",
            Self::Mc2 => "mc2",
            Self::ExactMatch => "exact_match",
            Self::ExactMatchStrict => "exact_match_strict",
        }
    }

    /// Returns whether every mark is either 0 or 1.
    pub fn is_yes_or_no(self) -> bool {
        self != Self::Mc2
    }
}

/// Where the scoring of a choice begins, and the unit of its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scored {
    /// From its beginning; in characters.
    Choice,
    /// From the first token in which the choices of a question differ; in tokens.
    Difference,
}

/// A question.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Its index in the file, from 0.
    pub index: u64,
    /// The line of the file on which it begins, from 1.
    pub line: u64,
    /// What is asked.
    pub ask: Ask,
    /// The question with its answer, in the form in which it is an example before other questions.
    pub example: String,
}

/// What is asked of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// To choose the most likely of some texts.
    Choose(Vec<Choice>),
    /// To write an answer.
    Write {
        /// The prompt.
        prompt: String,
        /// The right result.
        answer: String,
    },
}

/// One of the texts to choose from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The text before it. In most formats, it is the same for all choices.
    pub context: String,
    /// The choice. A space separates it from the context.
    pub text: String,
    /// Whether it is a right choice.
    pub right: bool,
    /// Whether it can be chosen.
    pub competes: bool,
    /// Whether it is true, even if it cannot be chosen; `None` if the format does not say.
    pub is_true: Option<bool>,
}

impl Choice {
    /// Returns a choice that is either right or wrong.
    fn new(context: &str, text: impl Into<String>, right: bool) -> Self {
        Self { context: context.to_string(), text: text.into(), right, competes: true, is_true: Some(right) }
    }
}

impl Question {
    /// Returns a question with these choices, whose example has the first right one.
    fn choose(line: u64, choices: Vec<Choice>) -> Self {
        let right = choices.iter().find(|choice| choice.right);
        let example = right.map(|choice| format!("{} {}", choice.context, choice.text)).unwrap_or_default();
        Self { index: 0, line, ask: Ask::Choose(choices), example }
    }

    /// Returns a question whose choices all follow the same text.
    fn pick<T: Into<String>>(line: u64, context: &str, texts: impl IntoIterator<Item = T>, right: &[usize]) -> Self {
        let choices = texts.into_iter().enumerate().map(|(i, text)| Choice::new(context, text, right.contains(&i)));
        Self::choose(line, choices.collect())
    }
}

/// A parsed file.
#[derive(Debug, Default)]
struct Parsed {
    /// The text before the examples.
    heading: String,
    questions: Vec<Question>,
    /// Number of questions that cannot be scored.
    left_out: u64,
    /// Why they cannot.
    left_out_why: &'static str,
}

/// How to open a task.
#[derive(Clone, Debug, Default)]
pub struct TaskOptions {
    /// Name of its format; `None` recognizes the format by the file's content.
    pub format: Option<String>,
    /// Number of examples before each question; `None` for the format's default.
    pub shots: Option<u32>,
    /// The file that examples come from. With `None`, examples come from a file beside the task, or if there is none,
    /// from the task's own first questions, which are then not asked.
    pub shots_from: Option<PathBuf>,
    /// The most questions to ask, from the first on.
    pub limit: Option<u64>,
}

/// A task that is ready to be asked.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its description in results.
    pub about: results::Task,
    /// Its format.
    pub format: &'static Format,
    /// The questions to ask, in the file's order.
    pub questions: Vec<Question>,
    /// The text before each question: a heading and examples.
    pub prefix: String,
    /// The file that the examples come from, if there are examples.
    pub shots_from: Option<PathBuf>,
    /// Notes for the user, one sentence each.
    pub notes: Vec<String>,
}

/// Why a task cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is wrong as a whole.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A line is wrong.
    #[error("{}, line {line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
    /// A file of examples has too few.
    #[error("{}: it has {found} examples, but {wanted} are wanted", path.display())]
    Examples {
        /// The file.
        path: PathBuf,
        /// Examples in it.
        found: usize,
        /// Examples wanted before each question.
        wanted: u32,
    },
    /// A task has too few questions to take some of them as examples.
    #[error("{}: it has {found} questions, too few to take {wanted} of them as examples", path.display())]
    Questions {
        /// The file.
        path: PathBuf,
        /// Questions in it.
        found: usize,
        /// Examples wanted before each question.
        wanted: u32,
    },
    /// A file is in none of the formats of [`FORMATS`], as far as its content tells.
    #[error("{}: it is in none of the task formats {}", .0.display(), names().join(", "))]
    Unrecognized(PathBuf),
    /// A format that does not exist.
    #[error("there is no task format '{name}'; {hint}")]
    Format {
        /// What was asked for.
        name: String,
        /// What there is.
        hint: String,
    },
}

/// The longest file that is read. No published task is longer.
const MAX_BYTES: u64 = 256 << 20;

impl Task {
    /// Opens the task at `path`.
    ///
    /// # Errors
    /// If the task, or the file of its examples, cannot be read, is in no known format, or has a line that does not
    /// follow the format. Also if there are fewer examples or questions than are asked for.
    pub fn open(path: &Path, options: &TaskOptions) -> Result<Self, Error> {
        let named = options.format.as_deref().map(format).transpose()?;
        let bytes = read(path)?;
        let source = Source::new(path, &bytes)?;
        let (format, source) = match named {
            Some(format) => (format, as_written(format, &source)),
            None => recognise(&source)?,
        };
        let mut parsed = parse(format, &source)?;
        let n_questions = parsed.questions.len();
        let shots = options.shots.unwrap_or(format.usual_shots);

        let mut prefix = parsed.heading;
        let mut shots_from = None;
        if shots > 0 {
            let file = options.shots_from.clone().or_else(|| beside(path));
            let mut examples = match &file {
                Some(file) => parse(format, &as_written(format, &Source::new(file, &read(file)?)?))?.questions,
                None => parsed.questions.clone(),
            };
            let at = file.as_deref().unwrap_or(path);
            let n = usize::try_from(shots).unwrap_or(usize::MAX);
            if examples.len() < n || (file.is_none() && n_questions <= n) {
                let path = at.to_path_buf();
                return Err(match &file {
                    Some(_) => Error::Examples { path, found: examples.len(), wanted: shots },
                    None => Error::Questions { path, found: n_questions, wanted: shots },
                });
            }
            examples.truncate(n);
            examples.iter().for_each(|question| prefix.extend([question.example.as_str(), "\n\n"]));
            if file.is_none() {
                parsed.questions.drain(..n);
            }
            shots_from = Some(at.to_path_buf());
        }
        if let Some(limit) = options.limit {
            parsed.questions.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        let notation = source.notation().or(source.is_array().then_some("one JSON array"));
        let mut notes: Vec<String> =
            notation.map(|notation| format!("{}: read as {notation}", path.display())).into_iter().collect();
        if parsed.left_out > 0 {
            notes.push(format!(
                "{}: {} of its questions left out: {}",
                path.display(),
                parsed.left_out,
                parsed.left_out_why
            ));
        }
        let name = ending::stem(path);
        let about = results::Task {
            name,
            path: path.display().to_string(),
            blake3: blake3::hash(&bytes).to_hex().to_string(),
            format: format.name.to_string(),
            questions: parsed.questions.len() as u64,
            shots,
            main: format.scores[0].name().to_string(),
        };
        Ok(Self { about, format, questions: parsed.questions, prefix, shots_from, notes })
    }

    /// Returns a text that identifies everything but the model on which results depend.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in [&self.about.blake3, &self.about.format, &self.prefix] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { path: path.to_path_buf(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    let refused = |what: String| Error::File { path: path.to_path_buf(), what };
    if metadata.is_dir() {
        return Err(refused("it is a folder; give one of the files in it".to_string()));
    }
    if metadata.len() > MAX_BYTES {
        return Err(refused(format!("it has {} bytes, more than any task; is it a model?", metadata.len())));
    }
    std::fs::read(path).map_err(failed)
}

/// Recognizes the format of a file, and what stands between the fields of its CSV. Commas come first: with other
/// delimiters, a question may look like several fields.
fn recognise<'a>(source: &Source<'a>) -> Result<(&'static Format, Source<'a>), Error> {
    for delimiter in DELIMITERS {
        let source = source.with_delimiter(delimiter);
        if let Some(format) = FORMATS.iter().copied().find(|format| (format.looks_right)(&source)) {
            return Ok((format, source));
        }
    }
    Err(Error::Unrecognized(source.path().to_path_buf()))
}

/// Returns the text with the delimiter with which it looks like a file of this format, or else with commas.
fn as_written<'a>(format: &Format, source: &Source<'a>) -> Source<'a> {
    let mut written = DELIMITERS.into_iter().map(|delimiter| source.with_delimiter(delimiter));
    written.find(|source| (format.looks_right)(source)).unwrap_or_else(|| source.with_delimiter(DELIMITERS[0]))
}

fn parse(format: &Format, source: &Source<'_>) -> Result<Parsed, Error> {
    let mut parsed = (format.parse)(source)?;
    if parsed.questions.is_empty() {
        return Err(source.fails(match parsed.left_out {
            0 => format!("it has no questions in the format of {} ('{}')", format.about, format.name),
            _ => format!("none of its questions can be scored: {}", parsed.left_out_why),
        }));
    }
    for (index, question) in (0..).zip(&mut parsed.questions) {
        question.index = index;
        if let Ask::Choose(choices) = &question.ask
            && !(choices.iter().any(|c| c.right) && choices.iter().filter(|c| c.competes).count() > 1)
        {
            return Err(source.fails_at(question.line, "there are not two choices, one of them right".to_string()));
        }
    }
    Ok(parsed)
}

/// Endings of the names of question files, before the dot.
const PARTS: [&str; 4] = ["_test", "_val", "_validation", "_dev"];

/// Returns the file of examples that is published with a task: `dev/NAME_dev.csv` beside `test/NAME_test.csv` for MMLU,
/// likewise with `val` for C-Eval, `dev/NAME.csv` beside `test/NAME.csv` for CMMLU. It may also be in the same folder.
fn beside(path: &Path) -> Option<PathBuf> {
    let (stem, ending) = (path.file_stem()?.to_str()?, path.extension()?.to_str()?);
    let folder = crate::base::atomic_file::folder(path);
    let subject = PARTS.iter().find_map(|part| stem.strip_suffix(part)).unwrap_or(stem);
    let sibling = folder.parent().map(|above| {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        above.join("dev")
    });
    let sibling = if folder == Path::new(".") { Some(PathBuf::from("../dev")) } else { sibling };
    let mut places = vec![folder.join(format!("{subject}_dev.{ending}"))];
    if let Some(dev) = sibling {
        places.push(dev.join(format!("{subject}_dev.{ending}")));
        places.push(dev.join(format!("{subject}.{ending}")));
    }
    places.into_iter().find(|place| place.is_file() && !same_file(place, path))
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Returns the subject of a file from its name: `abstract_algebra` for `abstract_algebra_test.csv`.
fn subject(path: &Path) -> String {
    let stem = ending::stem(path);
    PARTS.iter().find_map(|part| stem.strip_suffix(part)).unwrap_or(&stem).to_string()
}

#[cfg(test)]
mod tests;
