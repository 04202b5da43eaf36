//! Measures how fast a model runs here, and how fast it could run.
//!
//! ```text
//! for each number of threads
//!     memory   sum over a large buffer                               bytes that this machine reads a second
//!     read     a prompt of n tokens, into an empty context           bound by arithmetic
//!     write    n tokens, one after the other, after a context of d   bound by memory: each reads all weights
//!                 ├─ draw from the model's logits   timed by itself
//!                 └─ evaluate the token             timed by itself
//! ```
//!
//! Each test begins with a short run that is not counted, which loads weights from the disk and wakes threads. The
//! result is the median, the lowest and the highest of the counted runs, because other programs would distort a mean.

mod bandwidth;
mod cost;
mod pace;

use std::time::{Duration, Instant};

use crate::engine::{Error, Logits, Session, SessionOptions};
use crate::llama::Model;
use crate::sample::{Params, Sampler};
use crate::vocab::Place;

pub use bandwidth::{Bandwidth, buffer_bytes, measure};
pub use cost::Cost;
pub use pace::{PaceError, PaceOptions, pace};

/// A test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Reading a prompt into an empty context.
    Read {
        /// Tokens of the prompt.
        n_tokens: u32,
    },
    /// Writing.
    Write {
        /// Tokens to write.
        n_tokens: u32,
        /// Tokens in the context before the first.
        depth: u32,
    },
}

impl Test {
    /// Returns how many tokens are timed.
    pub fn n_tokens(self) -> u32 {
        match self {
            Self::Read { n_tokens } | Self::Write { n_tokens, .. } => n_tokens,
        }
    }

    /// Returns how many tokens of context it takes. Writing needs at least one token to continue.
    pub fn needs(self) -> u32 {
        match self {
            Self::Read { n_tokens } => n_tokens,
            Self::Write { n_tokens, depth } => n_tokens.saturating_add(depth.max(1)),
        }
    }
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Numbers of threads, each measured on its own.
    pub threads: Vec<u32>,
    /// The tests, in order.
    pub tests: Vec<Test>,
    /// Counted runs of each.
    pub repeat: u32,
    /// How long to measure memory with each number of threads, and with a buffer of how many bytes; `None` to leave it out.
    pub memory: Option<(Duration, u64)>,
    /// How to make sessions; its number of threads is ignored.
    pub session: SessionOptions,
}

/// One counted run of a test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// Time to evaluate the tokens.
    pub seconds: f64,
    /// Time to draw them; 0 for a prompt.
    pub sampling_seconds: f64,
}

/// All counted runs of a test.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The test.
    pub test: Test,
    /// Threads.
    pub threads: u32,
    /// At least one.
    pub runs: Vec<Run>,
}

impl Outcome {
    /// Returns the tokens per second of each run, counting only evaluation.
    pub fn rates(&self) -> Vec<f64> {
        self.runs.iter().map(|run| f64::from(self.test.n_tokens()) / run.seconds.max(1e-9)).collect()
    }

    /// Returns the spread of [`Self::rates`].
    pub fn rate(&self) -> Spread {
        Spread::of(&self.rates()).unwrap_or_default()
    }

    /// Returns the seconds of drawing a token: the median of the runs. `None` for a prompt.
    pub fn sampling(&self) -> Option<f64> {
        let Test::Write { n_tokens, .. } = self.test else { return None };
        let seconds: Vec<_> = self.runs.iter().map(|run| run.sampling_seconds / f64::from(n_tokens.max(1))).collect();
        Spread::of(&seconds).map(|spread| spread.median)
    }
}

/// A summary of repeated measurements.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// The median: the mean of the two values in the middle if their number is even.
    pub median: f64,
    /// The lowest.
    pub lowest: f64,
    /// The highest.
    pub highest: f64,
    /// The mean.
    pub mean: f64,
    /// The sample standard deviation (divided by n - 1); 0 for a single value.
    pub deviation: f64,
}

impl Spread {
    /// Summarizes `values`; `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (lowest, highest) = (*sorted.first()?, *sorted.last()?);
        let n = sorted.len();
        let median = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0;
        let mean = sorted.iter().sum::<f64>() / n as f64;
        let squares: f64 = sorted.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = if n > 1 { (squares / (n - 1) as f64).sqrt() } else { 0.0 };
        Some(Self { median, lowest, highest, mean, deviation })
    }
}

/// The measurements.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Memory, for each number of threads.
    pub memory: Vec<Bandwidth>,
    /// The tests, in the order they ran.
    pub outcomes: Vec<Outcome>,
    /// Whether it was interrupted before all was measured.
    pub interrupted: bool,
}

/// Progress.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Measuring memory begins.
    Memory {
        /// Threads.
        threads: u32,
    },
    /// Run number `run` of a test begins; number 0 is not counted.
    Run {
        /// The test.
        test: Test,
        /// Threads.
        threads: u32,
        /// The run.
        run: u32,
        /// Tokens per second of the run before.
        rate: Option<f64>,
    },
    /// A test is done, or was interrupted.
    Done(&'a Outcome),
}

/// Runs `plan`. Setting the flag in `plan.session.cancel` ends it, and the report has what was measured until then.
///
/// # Errors
/// If a test does not fit the context, llama.cpp fails, or the logits are broken.
pub fn run(model: &Model, plan: &Plan, mut on_event: impl FnMut(Event<'_>)) -> Result<Report, Error> {
    let mut report = Report::default();
    match measure_all(model, plan, &mut report, &mut on_event) {
        Ok(()) => {}
        Err(Error::Cancelled) => report.interrupted = true,
        Err(error) => return Err(error),
    }
    Ok(report)
}

fn measure_all(
    model: &Model,
    plan: &Plan,
    report: &mut Report,
    on_event: &mut impl FnMut(Event<'_>),
) -> Result<(), Error> {
    let cancel = &plan.session.cancel;
    let longest = plan.tests.iter().map(|test| test.needs()).max().unwrap_or(1);
    let tokens = text(model, longest as usize)?;
    for &threads in &plan.threads {
        let options = SessionOptions { threads: Some(threads), ..plan.session.clone() };
        // Before the session: it needs memory too.
        if let Some((time, bytes)) = plan.memory {
            on_event(Event::Memory { threads });
            report.memory.extend(measure(threads, bytes, time, cancel));
            if cancel.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
        }
        let mut session = Session::new(model, &options)?;
        for &test in &plan.tests {
            let mut outcome = Outcome { test, threads, runs: Vec::new() };
            let result = repeat(&mut session, &tokens, plan.repeat, &mut outcome, on_event);
            if !outcome.runs.is_empty() {
                on_event(Event::Done(&outcome));
                report.outcomes.push(outcome);
            }
            result?;
        }
    }
    Ok(())
}

/// Number of tokens in the runs that are not counted, for a prompt and for writing: enough to warm up every part of the
/// machine, and few enough not to take long.
const WARM_UP: (usize, usize) = (64, 4);

fn repeat(
    session: &mut Session,
    tokens: &[u32],
    n_runs: u32,
    outcome: &mut Outcome,
    on_event: &mut impl FnMut(Event<'_>),
) -> Result<(), Error> {
    let (test, threads) = (outcome.test, outcome.threads);
    let mut rate = None;
    for run in 0..=n_runs {
        on_event(Event::Run { test, threads, run, rate });
        let n_tokens = test.n_tokens() as usize;
        let found = match test {
            Test::Read { .. } => read(session, &tokens[..if run == 0 { n_tokens.min(WARM_UP.0) } else { n_tokens }])?,
            Test::Write { depth, .. } => {
                let context = &tokens[..depth.max(1) as usize];
                write(session, context, if run == 0 { n_tokens.min(WARM_UP.1) } else { n_tokens })?
            }
        };
        if run > 0 {
            rate = Some(n_tokens as f64 / found.seconds.max(1e-9));
            outcome.runs.push(found);
        }
    }
    Ok(())
}

/// Reads `prompt` into an empty context.
fn read(session: &mut Session, prompt: &[u32]) -> Result<Run, Error> {
    session.truncate(0);
    let start = Instant::now();
    session.eval(prompt, Logits::Last)?;
    Ok(Run { seconds: start.elapsed().as_secs_f64(), sampling_seconds: 0.0 })
}

/// Writes `n_tokens` after `context`, with the default sampler and a fixed seed, so that each run writes the same text.
/// Continues after end tokens.
fn write(session: &mut Session, context: &[u32], n_tokens: usize) -> Result<Run, Error> {
    session.prefill(context)?;
    let mut sampler = Sampler::new(&Params { seed: Some(1), ..Params::default() })?;
    sampler.begin(context);
    let (mut sampling, mut evaluation) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..n_tokens {
        let start = Instant::now();
        let token = sampler.sample(session.logits(0)?, None)?;
        sampler.accept(token);
        let drawn = Instant::now();
        session.eval(&[token], Logits::Last)?;
        evaluation += drawn.elapsed();
        sampling += drawn - start;
    }
    Ok(Run { seconds: evaluation.as_secs_f64(), sampling_seconds: sampling.as_secs_f64() })
}

/// A text in both of Yi's languages: logits after real text are like those of real use.
const TEXT: &str = "The river rises in the hills above the town and takes two days to reach the sea. In spring, when the \
    snow melts, it carries branches, fence posts and once a whole wooden bridge past the market square. 河水从城外的山里流出来，\
    两天以后才到海边。春天雪化的时候，它带着树枝和木头流过集市，有一次还冲走了一座木桥。老人们说，从前的水比现在更大。 The old men \
    say that it used to be stronger. 孩子们不相信，他们只知道夏天可以在石头上走到对岸，不会把鞋子弄湿。 ";

/// Returns the first `n` tokens of the text, repeated.
fn text(model: &Model, n: usize) -> Result<Vec<u32>, Error> {
    let mut tokens = model.tokenizer().encode(TEXT, Place::Start)?;
    if tokens.is_empty() {
        tokens.push(0);
    }
    Ok(tokens.into_iter().cycle().take(n).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_what_a_statistics_book_says() {
        assert_eq!(Spread::of(&[]), None);
        let one = Spread::of(&[3.0]).unwrap();
        assert_eq!((one.median, one.lowest, one.highest, one.mean, one.deviation), (3.0, 3.0, 3.0, 3.0, 0.0));
        let four = Spread::of(&[4.0, 1.0, 2.0, 9.0]).unwrap();
        assert_eq!((four.median, four.lowest, four.highest, four.mean), (3.0, 1.0, 9.0, 4.0));
        // Squares of 0, 3, 2 and 5 over 3.
        assert!((four.deviation - (38.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(Spread::of(&[5.0, 1.0, 2.0]).unwrap().median, 2.0);
    }

    #[test]
    fn rates_are_of_evaluation_and_sampling_is_apart() {
        let run = |seconds, sampling_seconds| Run { seconds, sampling_seconds };
        let test = Test::Write { n_tokens: 10, depth: 0 };
        let outcome = Outcome { test, threads: 2, runs: vec![run(1.0, 0.1), run(2.0, 0.3), run(4.0, 0.2)] };
        assert_eq!(outcome.rates(), [10.0, 5.0, 2.5]);
        assert_eq!((outcome.rate().median, outcome.rate().lowest), (5.0, 2.5));
        assert!((outcome.sampling().unwrap() - 0.02).abs() < 1e-12);
        let read = Outcome { test: Test::Read { n_tokens: 10 }, ..outcome };
        assert_eq!(read.sampling(), None);
        assert_eq!((test.needs(), read.test.needs()), (11, 10));
        assert_eq!(Test::Write { n_tokens: 10, depth: 5 }.needs(), 15);
    }
}
