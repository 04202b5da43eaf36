//! Compares models by tasks.

use std::path::Path;

use super::super::Error;
use super::super::tasks::{self, Identity, Kept, QuestionResult, RunOptions, Task};
use super::texts::loading;
use super::{Comparison, ComparisonOptions};
use crate::engine::{Loglikelihoods, SessionOptions};
use crate::llama::Model;
use crate::report::results::TaskScores;
use crate::weights::{Observer, Stage};

/// A model's answers to each task.
type Answers = Vec<Vec<QuestionResult>>;

/// Opens all tasks, and creates the folder for answers.
pub(super) fn open(options: &ComparisonOptions) -> Result<Vec<Task>, Error> {
    let mut opened: Vec<Task> = Vec::new();
    for path in &options.tasks {
        let task = Task::open(path, &options.task_options)?;
        if opened.iter().any(|other| other.about.name == task.about.name) {
            return Err(Error::SameTask(task.about.name));
        }
        opened.push(task);
    }
    if let Some(folder) = options.task_results.as_ref().filter(|_| !opened.is_empty()) {
        std::fs::create_dir_all(folder).map_err(|source| Error::Folder { path: folder.clone(), source })?;
    }
    Ok(opened)
}

impl Comparison {
    /// Lets all candidates answer the tasks, and the reference if it is a model, one model after the other.
    pub(super) fn answer_tasks(&mut self, observer: &dyn Observer) -> Result<(), Error> {
        if self.left().is_empty() {
            return Ok(());
        }
        let tasks = std::mem::take(&mut self.tasks);
        let result = self.answer(&tasks, observer);
        self.tasks = tasks;
        result
    }

    fn answer(&mut self, tasks: &[Task], observer: &dyn Observer) -> Result<(), Error> {
        let confidence = self.files.options().confidence;
        let score = |task: &Task, results: &[QuestionResult], reference: Option<&[QuestionResult]>| -> TaskScores {
            tasks::score(task.format.scores, results, reference, confidence)
        };
        let results = self.files.results_mut();
        results.tasks = tasks.iter().map(|task| task.about.clone()).collect();
        results.candidates.iter_mut().for_each(|candidate| candidate.tasks = vec![None; tasks.len()]);
        let mut reference: Option<Answers> = None;
        if self.trace.is_none() {
            let (path, name) = (self.options.files.reference.clone(), self.results().reference.file.name.clone());
            let answers = self.answers_of(&path, &name, tasks, observer)?;
            self.files.results_mut().reference.tasks =
                tasks.iter().zip(&answers).map(|(task, results)| Some(score(task, results, None))).collect();
            reference = Some(answers);
        }
        for i in self.left() {
            if self.results().interrupted {
                break;
            }
            let (path, name) = (self.files.candidates()[i].clone(), self.results().candidates[i].file.name.clone());
            let answers = match self.answers_of(&path, &name, tasks, observer) {
                Ok(answers) => answers,
                Err(error @ Error::LoadingStopped) => return Err(error),
                Err(error) => {
                    self.files.fail(i, error.to_string(), observer);
                    continue;
                }
            };
            let scores = tasks.iter().enumerate().map(|(t, task)| {
                let of_reference = reference.as_ref().and_then(|reference| reference.get(t)).map(Vec::as_slice);
                answers.get(t).map(|results| score(task, results, of_reference))
            });
            self.files.results_mut().candidates[i].tasks = scores.collect();
            self.save(observer)?;
        }
        Ok(())
    }

    /// Lets a model answer all tasks.
    fn answers_of(
        &mut self,
        path: &Path,
        name: &str,
        tasks: &[Task],
        observer: &dyn Observer,
    ) -> Result<Answers, Error> {
        let settings = &self.options.models;
        let session = SessionOptions { n_ctx: self.options.task_context, ..settings.session.clone() };
        observer.begin(&Stage::Loading { name });
        let model = settings.load(path, &Loglikelihoods::options(&session), 0).map_err(loading)?;
        self.note_layout(path, &model);
        let options = RunOptions { session, together: None };
        let mut answers = Vec::new();
        for task in tasks {
            let (mut kept, done) = self.keep(task, &model, name, &options.session, observer)?;
            observer.begin(&Stage::Answering { name, task: &task.about.name, questions: task.questions.len() as u64 });
            observer.advance(done.len() as u64);
            let ran = tasks::run(task, &model, &options, &done, |result| {
                observer.advance(1);
                kept.as_mut().map_or(Ok(()), |kept| kept.add(result))
            });
            let ran = ran.map_err(|source| Error::Answers { task: task.about.name.clone(), source: source.into() })?;
            answers.push(ran.results);
            if ran.interrupted {
                self.files.results_mut().interrupted = true;
                break;
            }
        }
        observer.end();
        Ok(answers)
    }

    /// Returns the file of a model's answers to a task, if answers are saved, and the answers that it already has.
    fn keep(
        &self,
        task: &Task,
        model: &Model,
        name: &str,
        session: &SessionOptions,
        observer: &dyn Observer,
    ) -> Result<(Option<Kept>, Vec<QuestionResult>), Error> {
        let Some(folder) = &self.options.task_results else { return Ok((None, Vec::new())) };
        let n_ctx = session.n_ctx_for(model.n_ctx_train());
        let settings = format!("{}, context {n_ctx}", self.options.models.identity());
        let identity = Identity::new(task, name, &model.fingerprint()?, &settings);
        let file_name: String = format!("{name}-{}.jsonl", task.about.name).replace(['/', '\\'], "_");
        let (kept, done, note) = Kept::open(&folder.join(file_name), &identity)?;
        note.iter().for_each(|note| observer.note(note));
        Ok((Some(kept), done))
    }
}
