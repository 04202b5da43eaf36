//! The measures of `nibble compare` that run models: texts and tasks.

use std::path::PathBuf;

use crate::base::display::printable;
use crate::cli::machine::EngineArgs;
use crate::evaluate::tasks::{self, Task, TaskOptions};
use crate::evaluate::texts::{Cut, TextFile};
use crate::evaluate::{Comparison, ComparisonOptions};
use crate::llama;
use crate::weights::FileOptions;

/// Options for comparing by texts and tasks.
#[derive(Debug, clap::Args)]
#[command(mut_arg("window", |arg| {
    arg.help("Tokens in a window, of which the second half is scored [default: 512; with a trace, its own]")
}))]
pub struct MeasureArgs {
    /// A text to compare on, with a name for the results, as in --text en=wiki.txt --text zh=novel.txt; can be given
    /// several times
    #[arg(long, value_name = "NAME=FILE", help_heading = "Measures")]
    text: Vec<TextFile>,

    #[command(flatten)]
    windows: WindowArgs,

    #[command(flatten)]
    bootstrap: BootstrapArgs,

    #[command(flatten)]
    engine: EngineArgs,

    /// Show llama.cpp's log
    #[arg(short, long, help_heading = "Output")]
    verbose: bool,

    #[command(flatten)]
    tasks: TaskArgs,
}

/// How texts are cut.
#[derive(Clone, Debug, clap::Args)]
pub struct WindowArgs {
    /// Tokens in a window, of which the second half is scored [default: 512]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(i64::from(Cut::SMALLEST)..=1 << 20),
          help_heading = "Measures")]
    window: Option<u32>,

    /// Read at most this many windows of each text
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Measures")]
    windows: Option<u32>,
}

impl WindowArgs {
    /// How texts are cut.
    pub fn cut(&self) -> Cut {
        self.window.map_or(Cut::USUAL, |window| Cut { window })
    }

    /// Returns the most windows of each text to read.
    pub fn most(&self) -> Option<usize> {
        self.windows.map(|n| n as usize)
    }
}

/// How intervals are computed.
#[derive(Clone, Debug, clap::Args)]
pub struct BootstrapArgs {
    /// Number of bootstrap resamples: more make the ends of the intervals more precise
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(100..=100_000),
          help_heading = "Measures")]
    pub resamples: u32,

    /// Seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Measures")]
    pub seed: u64,
}

/// Which tasks, and how.
#[derive(Clone, Debug, clap::Args)]
struct TaskArgs {
    /// A task: a file of questions in the form in which it is published; --task-format lists the formats
    #[arg(long, value_name = "FILE", help_heading = "Tasks")]
    task: Vec<PathBuf>,

    #[arg(long, value_name = "NAME", requires = "task", help_heading = "Tasks", help = format_help())]
    task_format: Option<String>,

    #[arg(long, value_name = "N", requires = "task", help_heading = "Tasks", help = shots_help())]
    shots: Option<u32>,

    /// The file that examples come from [default: the file of examples beside the task, as in mmlu/dev; otherwise the
    /// first questions of the task, which are then not asked]
    #[arg(long, value_name = "FILE", requires = "task", help_heading = "Tasks")]
    task_shots: Option<PathBuf>,

    /// Ask only the first questions of each task
    #[arg(long, value_name = "N", requires = "task", help_heading = "Tasks")]
    limit: Option<u64>,

    /// Save answers in this folder as they come, and reuse those that are already there
    #[arg(long, value_name = "FOLDER", requires = "task", help_heading = "Tasks")]
    task_results: Option<PathBuf>,

    /// The most tokens for a question together with its examples [default: what the model was trained on, up to 4096]
    #[arg(long, value_name = "N", requires = "task", help_heading = "Tasks")]
    ctx: Option<u32>,
}

/// The help of `--task-format`, with all formats.
fn format_help() -> String {
    format!("The format of all tasks, if it is not recognized: {}", tasks::names().join(", "))
}

/// The help of `--shots`, with the formats that have examples by default.
fn shots_help() -> String {
    let mut usual: Vec<(u32, Vec<&str>)> = Vec::new();
    for format in tasks::FORMATS.iter().filter(|format| format.usual_shots > 0) {
        match usual.iter_mut().find(|(shots, _)| *shots == format.usual_shots) {
            Some((_, names)) => names.push(format.name),
            None => usual.push((format.usual_shots, vec![format.name])),
        }
    }
    let usual: Vec<String> = usual.iter().map(|(shots, names)| format!("{shots} for {}", names.join(", "))).collect();
    format!("Number of answered examples before each question [default: {}; else 0]", usual.join("; "))
}

impl MeasureArgs {
    /// Prepares the comparison, and prints notes on the tasks.
    ///
    /// # Errors
    /// If [`Comparison::prepare`] fails.
    pub fn prepare(&self, files: FileOptions) -> anyhow::Result<Comparison> {
        llama::set_verbose(self.verbose);
        let tasks = &self.tasks;
        let comparison = Comparison::prepare(ComparisonOptions {
            files,
            texts: self.text.clone(),
            window: self.windows.window,
            most_windows: self.windows.most(),
            resamples: self.bootstrap.resamples,
            seed: self.bootstrap.seed,
            tasks: tasks.task.clone(),
            task_options: TaskOptions {
                format: tasks.task_format.clone(),
                shots: tasks.shots,
                shots_from: tasks.task_shots.clone(),
                limit: tasks.limit,
            },
            task_results: tasks.task_results.clone(),
            task_context: tasks.ctx,
            models: self.engine.settings(),
        })?;
        comparison.tasks().iter().for_each(|task| say(task, tasks.task_format.is_some()));
        Ok(comparison)
    }

    /// Returns whether llama.cpp's log is shown.
    pub fn is_loud(&self) -> bool {
        self.verbose
    }
}

/// Prints how a task is read, what was left out of it, and where its examples come from.
fn say(task: &Task, is_named: bool) {
    if !is_named {
        let (name, format) = (printable(&task.about.name), task.format);
        eprintln!("nibble: {name}: read as {}, {}; --task-format reads it as another", format.name, format.about);
    }
    task.notes.iter().for_each(|note| eprintln!("nibble: {}", printable(note)));
    if let Some(file) = &task.shots_from {
        let shots = task.about.shots;
        eprintln!("nibble: {}: {shots} examples from {}", printable(&task.about.name), file.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_format() {
        let help = format_help();
        assert!(tasks::FORMATS.iter().all(|format| help.contains(format.name)), "{help}");
        assert!(shots_help().contains("5 for ceval, cmmlu, mmlu, gsm8k; else 0"), "{}", shots_help());
    }
}
