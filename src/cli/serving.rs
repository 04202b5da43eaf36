//! Flags of processes that run a model for a server, and of the server that starts them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::convert::parse_room;
use super::machine::MachineArgs;
use crate::engine::scheduler::SchedulerOptions;
use crate::engine::{DraftOptions, SessionOptions};
use crate::serve::worker::WorkerOptions;

/// What guesses the tokens that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Guesses {
    /// The text itself.
    Ngram,
    /// Nothing.
    None,
}

/// How to run a model for several clients.
#[derive(Debug, clap::Args)]
pub(super) struct ServingArgs {
    #[command(flatten)]
    pub machine: MachineArgs,

    /// How many texts are written at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256),
          help_heading = "Serving")]
    parallel: u32,

    /// The most tokens of prompts that are read at a time. More take more memory, and fewer more time
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536),
          default_value_t = SessionOptions::default().n_batch, help_heading = "Serving")]
    batch_size: u32,

    /// The same as --batch-size, from llama-server's command lines. The smaller of the two counts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = "Serving")]
    ubatch_size: Option<u32>,

    /// The most requests that wait for their turn; more are refused
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Serving")]
    queue: usize,

    /// Memory for prompts that were read before and are not in the context any more, such as 4G; 0 for none
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_room, help_heading = "Serving")]
    prefix_cache: u64,

    /// For so many milliseconds, at most and about, texts that are being written wait while a prompt is read. Longer pauses
    /// serve all sooner, and shorter ones write more evenly
    #[arg(long, value_name = "MS", default_value_t = SchedulerOptions::default().pause.as_millis() as u64,
          value_parser = clap::value_parser!(u64).range(..=60_000), help_heading = "Serving")]
    pause: u64,

    /// Keep prompts that were read in this folder, for later runs of the same model
    #[arg(long, value_name = "DIR", help_heading = "Serving")]
    prefix_dir: Option<PathBuf>,

    /// The most that the files in --prefix-dir take; the oldest go first
    #[arg(long, value_name = "SIZE", default_value = "8G", value_parser = parse_room, requires = "prefix_dir",
          help_heading = "Serving")]
    prefix_dir_size: u64,

    /// Write faster by guessing what follows where the text has it already: the model checks several guesses at once. With
    /// --deterministic, nothing is guessed
    #[arg(long, value_name = "ngram|none", default_value = "ngram", help_heading = "Serving")]
    draft: Guesses,

    /// The most tokens to guess at a time; fewer are guessed when guesses turn out wrong
    #[arg(long, value_name = "N", default_value_t = DraftOptions::default().max as u64, help_heading = "Serving",
          value_parser = clap::value_parser!(u64).range(1..=DraftOptions::MOST as u64))]
    draft_max: u64,

    /// Answer a request in the same way whatever else is being done, and was done before. This is slower: texts are not
    /// computed together. Each of them has a context of its own, so that contexts take --parallel times the memory
    #[arg(long, help_heading = "Serving")]
    deterministic: bool,
}

impl ServingArgs {
    /// Returns how to run the model at `path`.
    pub fn options(&self, path: &Path) -> WorkerOptions {
        let session = self.machine.session(Arc::new(AtomicBool::new(false)));
        // An evaluation has the next token of each text that is being written.
        let n_batch = self.ubatch_size.unwrap_or(u32::MAX).min(self.batch_size).max(self.parallel);
        let rules = SchedulerOptions::default();
        WorkerOptions {
            path: path.to_path_buf(),
            session: SessionOptions { n_batch, ..session },
            parallel: self.parallel,
            scheduler: SchedulerOptions {
                queue: self.queue,
                // The pieces that there will be: they are part of what makes prefixes the same.
                piece: rules.piece.min(n_batch as usize),
                draft: (self.draft == Guesses::Ngram)
                    .then(|| DraftOptions { max: self.draft_max as usize, ..DraftOptions::default() }),
                pause: Duration::from_millis(self.pause),
                deterministic: self.deterministic,
                prefix_bytes: self.prefix_cache,
                ..rules
            },
            prefixes: self.prefix_dir.clone().map(|path| (path, self.prefix_dir_size)),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: ServingArgs,
    }

    fn options(line: &str) -> Result<WorkerOptions, clap::Error> {
        let words = std::iter::once("engine").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.args.options(Path::new("m.gguf")))
    }

    #[test]
    fn what_is_typed_is_what_is_done() {
        let default = options("").unwrap();
        assert_eq!((default.parallel, default.scheduler.queue, default.scheduler.prefix_bytes), (4, 64, 1_000_000_000));
        assert!(!default.scheduler.deterministic && default.prefixes.is_none());
        let given =
            "--parallel 2 --queue 9 --prefix-cache 0 --prefix-dir p --prefix-dir-size 3M --deterministic --ctx 99";
        let given = options(given).unwrap();
        assert_eq!((given.parallel, given.scheduler.queue, given.scheduler.prefix_bytes), (2, 9, 0));
        assert_eq!(given.prefixes, Some(("p".into(), 3_000_000)));
        assert_eq!((given.scheduler.deterministic, given.session.n_ctx), (true, Some(99)));
        assert_eq!(default.scheduler.draft, Some(DraftOptions::default()));
        let pause = |line: &str| options(line).unwrap().scheduler.pause.as_millis();
        assert_eq!((pause(""), pause("--pause 0"), pause("--pause 1500")), (600, 0, 1500));
        assert!(options("--pause 60001").is_err());
        assert_eq!(options("--draft none").unwrap().scheduler.draft, None);
        assert_eq!(options("--draft-max 5").unwrap().scheduler.draft.map(|draft| draft.max), Some(5));
        assert!(options("--draft other").is_err() && options("--draft-max 0").is_err());
        assert!(options("--parallel 0").is_err() && options("--prefix-dir-size 3M").is_err());
    }

    #[test]
    fn prompts_are_read_in_batches_of_the_size_that_is_wanted() {
        let sizes =
            |line: &str| options(line).map(|options| (options.session.n_batch, options.scheduler.piece)).unwrap();
        assert_eq!(sizes(""), (512, 64));
        assert_eq!((sizes("-b 2048"), sizes("--batch-size 32")), ((2048, 64), (32, 32)));
        assert_eq!((sizes("-b 2048 --ubatch-size 256"), sizes("--ubatch-size 1024")), ((256, 64), (512, 64)));
        // Texts that are written need a token each.
        assert_eq!(sizes("-b 1 --parallel 8"), (8, 8));
        assert!(options("-b 0").is_err() && options("-b 65537").is_err() && options("--ubatch-size 0").is_err());
    }
}
