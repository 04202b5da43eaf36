//! Lets a model answer the questions of a task.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;

use super::{Ask, Choice, Format, Outcome, Question, QuestionResult, Scored, Task, gsm8k};
use crate::chat::{self, Origin, Prompt};
use crate::engine;
use crate::engine::{Branch, Finish, GenerateOptions, Loglikelihoods, Session, SessionOptions, Writer};
use crate::llama::Model;
use crate::sample::{Params, Sampler};
use crate::vocab::Tokenizer;

/// How to run a task.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// How to create a context: its size, and the flag that cancels the run.
    pub session: SessionOptions,
    /// The most texts to read at a time; `None` for as many as fit.
    pub together: Option<u32>,
}

/// The outcome of a run.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// All results, including earlier ones, in the order of the questions.
    pub results: Vec<QuestionResult>,
    /// Whether the run was interrupted, so that questions are left.
    pub interrupted: bool,
    /// Number of tokens that the model read to compare texts. A shared beginning counts once.
    pub evaluated_tokens: u64,
}

/// Why a model cannot run a task.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The model could not be run.
    #[error(transparent)]
    Model(#[from] engine::Error),
    /// A result could not be saved.
    #[error("cannot keep a result: {0}")]
    Keep(#[source] io::Error),
    /// An answer alone is longer than the context.
    #[error("{}, line {line}: an answer has {n_tokens} tokens, more than the context of {n_ctx} holds", path.display())]
    TooLong {
        /// The task's file.
        path: PathBuf,
        /// Where the question begins.
        line: u64,
        /// Tokens of the answer.
        n_tokens: usize,
        /// Number of tokens that fit in the context.
        n_ctx: usize,
    },
}

/// Number of questions that are tokenized at a time.
const BUNCH: usize = 64;

/// Asks a model the questions of a task, except for those whose results are in `done`. Passes each result to `each` as
/// soon as it is known.
///
/// If a question and the text before it do not fit in the context, the beginning is left out, as in
/// lm-evaluation-harness. The result says so.
///
/// # Errors
/// If the model cannot be run, an answer alone does not fit in the context, or `each` fails. An interruption is not an
/// error.
pub fn run(
    task: &Task,
    model: &Model,
    options: &RunOptions,
    done: &[QuestionResult],
    mut each: impl FnMut(&QuestionResult) -> io::Result<()>,
) -> Result<Ran, RunError> {
    let mut results: HashMap<u64, QuestionResult> = done.iter().map(|result| (result.index, result.clone())).collect();
    let is_done = |question: &Question| results.get(&question.index).is_some_and(|r| r.fits(task.format, question));
    let (kept, left): (Vec<&Question>, Vec<&Question>) = task.questions.iter().partition(|question| is_done(question));
    let mut new = Vec::new();
    let mut take = |result: QuestionResult| {
        each(&result).map_err(RunError::Keep)?;
        new.push(result);
        Ok(())
    };
    let (to_write, to_choose): (Vec<&Question>, Vec<&Question>) =
        left.into_iter().partition(|question| matches!(question.ask, Ask::Write { .. }));
    let mut evaluated_tokens = 0;
    let mut ended = Ok(());
    if !to_choose.is_empty() {
        let mut branches = match options.together {
            Some(most) => Loglikelihoods::with_sequences(model, &options.session, most)?,
            None => Loglikelihoods::new(model, &options.session)?,
        };
        ended = to_choose.chunks(BUNCH).try_for_each(|bunch| choose(task, bunch, &mut branches, &mut take));
        evaluated_tokens = branches.evaluated();
    }
    if !to_write.is_empty() && ended.is_ok() {
        let mut session = Session::new(model, &options.session)?;
        ended = to_write.iter().try_for_each(|question| write(task, question, &mut session, &mut take));
    }
    let interrupted = match ended {
        Ok(()) => false,
        Err(RunError::Model(engine::Error::Cancelled)) => true,
        Err(error) => return Err(error),
    };
    let kept: Vec<QuestionResult> = kept.iter().filter_map(|question| results.remove(&question.index)).collect();
    let mut results = kept;
    results.append(&mut new);
    results.sort_by_key(|result| result.index);
    Ok(Ran { results, interrupted, evaluated_tokens })
}

/// Asks some questions that have choices.
fn choose(
    task: &Task,
    questions: &[&Question],
    branches: &mut Loglikelihoods,
    take: &mut dyn FnMut(QuestionResult) -> Result<(), RunError>,
) -> Result<(), RunError> {
    let model = branches.model().clone();
    let n_ctx = branches.n_ctx() as usize;
    let mut texts = Vec::new();
    let mut shortened = Vec::new();
    for question in questions {
        let Ask::Choose(choices) = &question.ask else { continue };
        let first = texts.len();
        encode(&task.prefix, choices, task.format, model.tokenizer(), &mut texts)?;
        let mut is_shortened = false;
        for branch in &mut texts[first..] {
            is_shortened |= shorten(branch, n_ctx, model.tokenizer()).map_err(|n_tokens| RunError::TooLong {
                path: PathBuf::from(&task.about.path),
                line: question.line,
                n_tokens,
                n_ctx,
            })?;
        }
        shortened.push(is_shortened);
    }
    // Likelihoods arrive per text; results leave per question.
    let mut waiting = questions.iter().zip(shortened);
    let (mut log_likelihoods, mut n_tokens) = (Vec::new(), Vec::new());
    let mut current = waiting.next();
    let mut failed = None;
    let texts = texts;
    branches.log_likelihoods(&texts, |index, log_likelihood| {
        let Some((question, is_shortened)) = current else { return ControlFlow::Break(()) };
        log_likelihoods.push(log_likelihood);
        n_tokens.push(texts[index].tokens.len() - texts[index].from);
        let Ask::Choose(choices) = &question.ask else { return ControlFlow::Break(()) };
        if log_likelihoods.len() < choices.len() {
            return ControlFlow::Continue(());
        }
        let outcome = Outcome::Likelihoods {
            log_likelihoods: std::mem::take(&mut log_likelihoods),
            n_tokens: std::mem::take(&mut n_tokens),
        };
        let result = QuestionResult::new(task.format, question, outcome);
        current = waiting.next();
        match take(QuestionResult { shortened: is_shortened, ..result }) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(()), Err)
}

/// Tokenizes the texts of a question's choices.
fn encode(
    prefix: &str,
    choices: &[Choice],
    format: &Format,
    tokenizer: &dyn Tokenizer,
    texts: &mut Vec<Branch>,
) -> Result<(), engine::Error> {
    let first = texts.len();
    let mut known: Option<(&str, usize)> = None;
    for choice in choices {
        let context = format!("{prefix}{}", choice.context);
        let tokens = encode_text(&format!("{context} {}", choice.text), tokenizer)?;
        let from = match (format.scored, known) {
            // Set below.
            (Scored::Difference, _) => 0,
            (Scored::Choice, Some((same, from))) if same == choice.context => from,
            (Scored::Choice, _) => encode_text(context.trim_end(), tokenizer)?.len(),
        };
        known = Some((&choice.context, from));
        texts.push(Branch { tokens, from });
    }
    let texts = &mut texts[first..];
    if format.scored == Scored::Difference {
        let from = in_common(texts);
        texts.iter_mut().for_each(|branch| branch.from = from);
    }
    for branch in texts {
        // A tokenizer may merge the beginning of the choice with the context, but at least one token has to come before
        // it.
        branch.from = branch.from.min(branch.tokens.len().saturating_sub(1)).max(1);
    }
    Ok(())
}

/// Tokenizes text. No token is a control token, except for the one that begins every text if the model needs one.
fn encode_text(text: &str, tokenizer: &dyn Tokenizer) -> Result<Vec<u32>, engine::Error> {
    let mut prompt = Prompt::default();
    prompt.push(text, Origin::Message);
    Ok(chat::encode(&prompt, tokenizer)?)
}

/// Returns the number of tokens that all texts have in common at their beginning.
fn in_common(texts: &[Branch]) -> usize {
    let Some((first, rest)) = texts.split_first() else { return 0 };
    let same = |other: &Branch| first.tokens.iter().zip(&other.tokens).take_while(|(a, b)| a == b).count();
    rest.iter().map(same).min().unwrap_or(0)
}

/// Removes the beginning of a text that is longer than the context, except for the token that begins every text.
/// Returns whether it removed anything.
///
/// # Errors
/// If the part to score does not fit: its number of tokens.
fn shorten(branch: &mut Branch, n_ctx: usize, tokenizer: &dyn Tokenizer) -> Result<bool, usize> {
    // The last token is not read.
    let most = n_ctx + 1;
    if branch.tokens.len() <= most {
        return Ok(false);
    }
    let begin = usize::from(tokenizer.begins_with().is_some_and(|bos| branch.tokens.first() == Some(&bos)));
    let surplus = branch.tokens.len() - most;
    // One token before the scored part has to stay.
    if begin + surplus >= branch.from {
        return Err(branch.tokens.len() - branch.from);
    }
    branch.tokens.drain(begin..begin + surplus);
    branch.from -= surplus;
    Ok(true)
}

/// Lets the model write the answer to a question.
fn write(
    task: &Task,
    question: &Question,
    session: &mut Session,
    take: &mut dyn FnMut(QuestionResult) -> Result<(), RunError>,
) -> Result<(), RunError> {
    let Ask::Write { prompt, .. } = &question.ask else { return Ok(()) };
    let model = session.model().clone();
    let mut tokens = encode_text(&format!("{}{prompt}", task.prefix), model.tokenizer())?;
    let n_ctx = session.n_ctx() as usize;
    let room = n_ctx.saturating_sub(gsm8k::MAX_TOKENS).max(n_ctx / 2).max(1);
    let shortened = tokens.len() > room;
    if shortened {
        let begin = usize::from(model.tokenizer().begins_with().is_some());
        let surplus = (tokens.len() - room).min(tokens.len() - begin - 1);
        tokens.drain(begin..begin + surplus);
    }
    let mut sampler = Sampler::new(&Params::greedy()).map_err(engine::Error::from)?;
    let options = GenerateOptions {
        max_tokens: Some(gsm8k::MAX_TOKENS),
        stop: gsm8k::STOP.map(str::to_string).to_vec(),
        ..GenerateOptions::default()
    };
    let writer = Writer::new(&mut sampler);
    let written = engine::generate(session, writer, &tokens, &options, |_| ControlFlow::Continue(()))?;
    if written.finish == Finish::Cancelled {
        return Err(engine::Error::Cancelled.into());
    }
    let result = QuestionResult::new(task.format, question, Outcome::Written(written.text));
    take(QuestionResult { shortened, ..result })
}
