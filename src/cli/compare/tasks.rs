//! Comparing by tasks.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::{CONFIDENCE, Work};
use crate::base::display::printable;
use crate::cli::interrupt::Interrupted;
use crate::cli::progress;
use crate::engine::{self, Loglikelihoods, SessionOptions};
use crate::evaluate::tasks::{self, Identity, Kept, QuestionResult, RunOptions, Task, TaskOptions};
use crate::llama::Model;

/// Which tasks, and how.
#[derive(Clone, Debug, clap::Args)]
pub struct TaskArgs {
    /// An evaluation to answer, as it is published: HellaSwag, ARC, MMLU, TruthfulQA, WinoGrande, C-Eval, CMMLU, AGIEval
    /// (Gaokao), GSM8K
    #[arg(long, value_name = "FILE", help_heading = "Tasks")]
    task: Vec<PathBuf>,

    /// The format of all tasks, where it is not recognised
    #[arg(long, value_name = "NAME", requires = "task", help_heading = "Tasks")]
    task_format: Option<String>,

    /// Examples with their answers before each question [default: 5 for MMLU, C-Eval, CMMLU and GSM8K, else 0]
    #[arg(long, value_name = "N", requires = "task", help_heading = "Tasks")]
    shots: Option<u32>,

    /// Where examples come from [default: the file of examples beside the task, as in mmlu/dev; else the task's own first
    /// questions, which are then not asked]
    #[arg(long, value_name = "FILE", requires = "task", help_heading = "Tasks")]
    task_shots: Option<PathBuf>,

    /// Ask only the first questions of each task
    #[arg(long, value_name = "N", requires = "task", help_heading = "Tasks")]
    limit: Option<u64>,

    /// Keep the answers in this folder as they come, and go on from those that are there
    #[arg(long, value_name = "FOLDER", requires = "task", help_heading = "Tasks")]
    task_results: Option<PathBuf>,

    /// Tokens that a question and its examples may take together [default: what the model was trained on, up to 4096]
    #[arg(long, value_name = "N", requires = "task", help_heading = "Tasks")]
    ctx: Option<u32>,
}

impl TaskArgs {
    /// Whether there are any.
    pub fn is_given(&self) -> bool {
        !self.task.is_empty()
    }

    /// Opens all tasks, and says what there is to say of them.
    ///
    /// # Errors
    /// Where one cannot be opened, or two have one name.
    pub fn open(&self) -> anyhow::Result<Vec<Task>> {
        let options = TaskOptions {
            format: self.task_format.clone(),
            shots: self.shots,
            shots_from: self.task_shots.clone(),
            limit: self.limit,
        };
        let mut opened: Vec<Task> = Vec::new();
        for path in &self.task {
            let task = Task::open(path, &options)?;
            if opened.iter().any(|other| other.about.name == task.about.name) {
                bail!("two tasks are called '{}'; rename a file", task.about.name);
            }
            task.notes.iter().for_each(|note| eprintln!("nibble: {}", printable(note)));
            if let Some(file) = &task.shots_from {
                let shots = task.about.shots;
                eprintln!("nibble: {}: {shots} examples from {}", printable(&task.about.name), file.display());
            }
            opened.push(task);
        }
        if let Some(folder) = &self.task_results {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        Ok(opened)
    }
}

/// What a model answered to each task.
type Answers = Vec<Vec<QuestionResult>>;

/// Has the reference, where it is a model, and all candidates answer the tasks, one model after the other.
pub(super) fn measure(work: &mut Work, tasks: &[Task]) -> anyhow::Result<()> {
    let n_failed = work.results.candidates.iter().filter(|candidate| candidate.failure.is_some()).count();
    if n_failed == work.results.candidates.len() {
        return Ok(());
    }
    work.results.tasks = tasks.iter().map(|task| task.about.clone()).collect();
    work.results.candidates.iter_mut().for_each(|candidate| candidate.tasks = vec![None; tasks.len()]);
    let mut reference: Option<Answers> = None;
    if work.trace.is_none() {
        let (path, name) = (work.args.reference.clone(), work.results.reference.file.name.clone());
        let answers = answer(work, &path, &name, tasks)?;
        work.results.reference.tasks =
            tasks.iter().zip(&answers).map(|(task, results)| Some(score(task, results, None))).collect();
        reference = Some(answers);
    }
    for i in 0..work.paths.len() {
        if work.results.interrupted || work.results.candidates[i].failure.is_some() {
            continue;
        }
        let (path, name) = (work.paths[i].clone(), work.results.candidates[i].file.name.clone());
        let answers = match answer(work, &path, &name, tasks) {
            Ok(answers) => answers,
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                work.fail(i, format!("{error:#}"));
                continue;
            }
        };
        let scores = tasks.iter().enumerate().map(|(t, task)| {
            let of_reference = reference.as_ref().and_then(|reference| reference.get(t)).map(Vec::as_slice);
            answers.get(t).map(|results| score(task, results, of_reference))
        });
        work.results.candidates[i].tasks = scores.collect();
        work.save()?;
    }
    Ok(())
}

fn score(
    task: &Task,
    results: &[QuestionResult],
    reference: Option<&[QuestionResult]>,
) -> crate::report::results::TaskScores {
    tasks::score(task.format.scores, results, reference, CONFIDENCE)
}

/// Has a model answer all tasks.
fn answer(work: &mut Work, path: &Path, name: &str, tasks: &[Task]) -> anyhow::Result<Answers> {
    let args = &work.args.tasks;
    let session = SessionOptions { n_ctx: args.ctx, ..work.args.texts.engine.session(work.cancel.clone()) };
    let of_model = Loglikelihoods::options(&session);
    let bar = progress::Steps::new(1, work.args.is_silent());
    bar.say(&format!("loading {name}"));
    let model = match work.args.texts.engine.load(path, &of_model, 0) {
        Err(engine::Error::LoadCancelled) => return Err(Interrupted("loading was interrupted".to_string()).into()),
        model => model?,
    };
    let options = RunOptions { session, together: None };
    let mut answers = Vec::new();
    for task in tasks {
        bar.begin(task.questions.len(), &format!("{name}, {}", task.about.name));
        let (mut kept, done) = keep(args, task, &model, name, &options.session)?;
        bar.set(done.len() as u64);
        let ran = tasks::run(task, &model, &options, &done, |result| {
            bar.advance(1);
            kept.as_mut().map_or(Ok(()), |kept| kept.add(result))
        });
        let ran = ran.with_context(|| task.about.name.clone())?;
        answers.push(ran.results);
        if ran.interrupted {
            work.results.interrupted = true;
            break;
        }
    }
    bar.clear();
    Ok(answers)
}

/// The file of a model's answers to a task, where answers are kept, and those that are there.
fn keep(
    args: &TaskArgs,
    task: &Task,
    model: &Model,
    name: &str,
    session: &SessionOptions,
) -> anyhow::Result<(Option<Kept>, Vec<QuestionResult>)> {
    let Some(folder) = &args.task_results else { return Ok((None, Vec::new())) };
    let n_ctx = session.n_ctx_for(model.n_ctx_train());
    let settings =
        format!("KV cache {:?}, flash attention {:?}, context {n_ctx}", session.kv_type, session.flash_attention);
    let identity = Identity::new(task, name, &model.fingerprint()?, &settings);
    let file_name: String = format!("{name}-{}.jsonl", task.about.name).replace(['/', '\\'], "_");
    let (kept, done, note) = Kept::open(&folder.join(file_name), &identity)?;
    note.iter().for_each(|note| eprintln!("nibble: {}", printable(note)));
    Ok((Some(kept), done))
}
