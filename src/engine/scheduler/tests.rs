//! The rules of the scheduler, on a model whose texts are known beforehand.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::engine::fake::{Fake, encode};
use crate::engine::{
    Decoder, GenerateOptions, Logits, Session, Share, Speculation, TokenLogprobs, Writer, evaluate_together, generate,
};
use crate::sample::{Params, Sampler};

/// The next letter depends on everything before it.
fn letter(read: &[u32]) -> u32 {
    let sum = read.iter().fold(7u32, |sum, token| sum.wrapping_mul(31).wrapping_add(*token));
    97 + (sum >> 7) % 26
}

/// A text that soon repeats itself, but for every 13th letter.
fn refrain(read: &[u32]) -> u32 {
    match (read.len() % 13, read.last()) {
        (1.., Some(last)) => 97 + (last * 5 + 7) % 26,
        _ => letter(read),
    }
}

type Rule = fn(&[u32]) -> u32;

fn fake(n_sequences: usize, n_ctx: u32) -> Fake {
    fake_by(letter, n_sequences, n_ctx)
}

fn fake_by(rule: Rule, n_sequences: usize, n_ctx: u32) -> Fake {
    Fake { n_ctx, ..Fake::new(rule) }.with_sequences(n_sequences)
}

fn options() -> SchedulerOptions {
    let rules = SchedulerOptions { pause: Duration::ZERO, draft: None, ..SchedulerOptions::default() };
    SchedulerOptions { piece: 4, least_kept: 4, prefix_bytes: 1 << 20, ..rules }
}

fn request(task: TaskId, prompt: &str, max_tokens: usize) -> Request {
    Request {
        task,
        prompt: encode(prompt).into(),
        writers: vec![writer()],
        options: GenerateOptions { max_tokens: Some(max_tokens), ..GenerateOptions::default() },
        cache: true,
        progress: false,
        scores: None,
        arrived: Instant::now(),
        deadline: None,
    }
}

fn writer() -> TextWriter {
    TextWriter { sampler: Sampler::new(&Params::greedy()).unwrap(), constraint: None }
}

/// What `generate` makes of the same request, alone.
fn alone(prompt: &str, max_tokens: usize) -> String {
    alone_by(letter, prompt, max_tokens)
}

fn alone_by(rule: Rule, prompt: &str, max_tokens: usize) -> String {
    let mut session = Session::of(fake_by(rule, 1, 4096), &crate::engine::SessionOptions::default());
    let mut sampler = Sampler::new(&Params::greedy()).unwrap();
    let options = GenerateOptions { max_tokens: Some(max_tokens), ..GenerateOptions::default() };
    let go_on = |_: crate::engine::Step<'_>| std::ops::ControlFlow::Continue(());
    generate(&mut session, Writer::new(&mut sampler), &encode(prompt), &options, go_on).unwrap().text
}

/// What was said of a text.
#[derive(Debug, Default)]
struct Said {
    text: String,
    n_tokens: usize,
    started: Vec<(usize, Found, String)>,
    read: Vec<usize>,
    scored: Vec<(u32, Option<TokenLogprobs>)>,
    end: Option<End>,
    usage: TextUsage,
}

/// A scheduler, and all that it has said.
struct Run {
    scheduler: Scheduler<Fake>,
    said: BTreeMap<(TaskId, u32), Said>,
    done: Vec<TaskId>,
    failed: BTreeMap<TaskId, String>,
}

impl Run {
    fn new(fake: Fake, options: SchedulerOptions) -> Self {
        Self::of(Scheduler::new(fake, options))
    }

    fn of(scheduler: Scheduler<Fake>) -> Self {
        Self { scheduler, said: BTreeMap::new(), done: Vec::new(), failed: BTreeMap::new() }
    }

    fn act(&mut self, act: impl FnOnce(&mut Scheduler<Fake>, &mut EventSink<'_>)) {
        let Self { scheduler, said, done, failed } = self;
        act(scheduler, &mut |task, event| match event {
            Event::Started { index, cached, found, miss } => {
                said.entry((task, index)).or_default().started.push((cached, found, miss));
            }
            Event::Reading { index, done, .. } => said.entry((task, index)).or_default().read.push(done),
            Event::Scored { index, tokens, logprobs } => {
                let said = said.entry((task, index)).or_default();
                assert!(tokens.len() == logprobs.len() && said.text.is_empty());
                said.scored.extend(tokens.iter().copied().zip(logprobs));
            }
            Event::Piece { index, step, .. } => {
                let said = said.entry((task, index)).or_default();
                said.text.push_str(step.text);
                said.n_tokens += usize::from(step.token.is_some());
            }
            Event::Finished { index, end, tokens, text, usage } => {
                let said = said.entry((task, index)).or_default();
                assert_eq!((text, tokens.len()), (said.text.as_str(), said.n_tokens));
                assert_eq!(said.end.replace(end), None, "a text ends once");
                said.usage = usage;
            }
            Event::Done => done.push(task),
            Event::Failed(error) => assert_eq!(failed.insert(task, error.to_string()), None),
        });
    }

    fn submit(&mut self, request: Request) {
        self.scheduler.submit(request).unwrap();
    }

    fn step(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        self.act(|scheduler, sink| progress = scheduler.step(sink));
        assert_eq!(self.scheduler.cells.n_used(), self.scheduler.decoder.n_held(), "the cells are counted right");
        for (slot, held) in self.scheduler.slots.iter().zip(&self.scheduler.decoder.sequences) {
            assert_eq!(slot.sequence.tokens(), held);
            if let Some(text) = &slot.text {
                assert!(text.tokens().starts_with(held), "no guess is left that was wrong");
            }
        }
        if progress == Progress::Waiting {
            // Nothing but a file wakes it.
            let mut files = self.scheduler.queue.iter().filter_map(|text| text.loading);
            assert!(
                files.any(|file| self.scheduler.files.contains_key(&file)),
                "texts wait, and no sequence is in use"
            );
        }
        progress
    }

    fn steps(&mut self, n: u64) {
        for _ in 0..n {
            self.step();
        }
    }

    fn finish(&mut self) {
        for _ in 0..100_000 {
            match self.step() {
                Progress::Busy => {}
                Progress::Waiting => std::thread::sleep(Duration::from_millis(1)),
                Progress::Idle => {
                    assert!(self.scheduler.tasks.is_empty() && self.scheduler.queue.is_empty());
                    assert!(self.scheduler.files.is_empty());
                    return;
                }
            }
        }
        panic!("it does not come to an end: {:?}", self.scheduler.slots());
    }

    /// Does one request to its end. Returns how many tokens were read, and what was said.
    fn whole(&mut self, request: Request) -> (usize, &Said) {
        let (task, before) = (request.task, self.scheduler.decoder.n_evaluated());
        self.submit(request);
        self.finish();
        let said = &self.said[&(task, 0)];
        // The last token is not read.
        let read = self.scheduler.decoder.n_evaluated() - before - said.n_tokens.saturating_sub(1);
        (read, said)
    }
}

fn numbered(n: usize, what: &str) -> String {
    (0..n).map(|i| format!("{what}{i} ")).collect()
}

#[test]
fn texts_are_what_they_are_alone() {
    let mut run = Run::new(fake(4, 4096), options());
    let prompts: Vec<String> = (3..20).map(|n| numbered(n, "the king ")).collect();
    for (task, prompt) in (0..).zip(&prompts) {
        run.submit(request(task, prompt, 30));
    }
    run.finish();
    for (task, prompt) in (0..).zip(&prompts) {
        assert_eq!(run.said[&(task, 0)].text, alone(prompt, 30), "{prompt}");
    }
    assert_eq!(run.done.len(), prompts.len());
}

#[test]
fn nobody_stalls_while_a_long_prompt_is_read() {
    let mut run = Run::new(fake(4, 4096), options());
    run.submit(request(1, "abc", 200));
    run.submit(request(2, "xyz", 200));
    run.step();
    run.submit(request(3, &"long ".repeat(40), 5));
    let before = run.scheduler.decoder.evaluated.len();
    while run.said.get(&(3, 0)).is_none_or(|said| said.n_tokens == 0) {
        run.step();
    }
    let evaluated = &run.scheduler.decoder.evaluated[before..];
    assert_eq!(evaluated.len(), 200 / 4);
    for sequences in evaluated {
        let of = |slot: i32| sequences.iter().filter(|sequence| **sequence == slot).count();
        assert_eq!((of(0), of(1), of(2)), (1, 1, 4), "a token of each that writes, and a piece of the prompt");
    }
}

#[test]
fn a_fast_model_reads_whole_batches_while_texts_are_written() {
    let mut run = Run::new(fake(2, 4096), SchedulerOptions { pause: Duration::from_millis(100), ..options() });
    run.submit(request(1, &"abcdefgh".repeat(2), 100));
    run.step();
    run.submit(request(2, &"z".repeat(30), 1));
    run.steps(2);
    assert_eq!(
        run.scheduler.decoder.evaluations,
        [16, 16, 16],
        "15 of the prompt beside the next token of the other text"
    );
}

#[test]
fn log_probabilities_of_a_prompt_are_those_of_each_of_its_tokens() {
    let prompt = numbered(11, "the king ");
    let tokens = encode(&prompt);
    let mut wanted = vec![None];
    let (mut model, mut sequence, mut batch) = (fake(1, 4096), Sequence::new(0), Batch::with_capacity(1));
    for pair in tokens.windows(2) {
        let share = Share { sequence: &mut sequence, tokens: &pair[..1], logits: Logits::Last };
        evaluate_together(&mut model, &mut batch, &mut [share]).unwrap();
        let logits: Vec<f64> = model.logits(0).unwrap().iter().map(|logit| f64::from(*logit)).collect();
        let total = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        wanted.push(Some((logits[pair[1] as usize] - total, logits.iter().fold(f64::MIN, |a, b| a.max(*b)) - total)));
    }

    let apart = SchedulerOptions { deterministic: true, ..options() };
    for (model, options) in [
        (fake(4, 4096), options()),
        (Fake { n_rows: 4, ..fake(4, 4096) }, options()),
        // Its texts give way to one another.
        (fake(4, 160), options()),
        (Fake { shares: false, ..fake(4, 160) }, options()),
        (Fake { shares: false, ..fake(4, 160) }, apart),
    ] {
        let mut run = Run::new(model, options);
        run.submit(request(1, "abc", 60));
        run.submit(request(2, &prompt, 20));
        run.steps(2);
        let writers = || (0..2).map(|_| writer()).collect();
        run.submit(Request { scores: Some(2), writers: writers(), ..request(3, &prompt, 5) });
        run.submit(Request { scores: Some(0), ..request(4, "x", 0) });
        run.finish();
        assert!(run.failed.is_empty());
        let said = &run.said[&(3, 0)];
        assert_eq!(said.started[0].0, 0, "what is known is read again");
        assert_eq!(said.scored.iter().map(|(token, _)| *token).collect::<Vec<_>>(), tokens);
        for (at, ((_, found), wanted)) in said.scored.iter().zip(&wanted).enumerate() {
            assert_eq!(found.is_some(), wanted.is_some(), "{at}");
            let (Some(found), Some((logprob, most))) = (found, wanted) else { continue };
            assert!((found.logprob - logprob).abs() < 1e-6, "{at}");
            assert!(found.top.len() == 2 && (found.top[0].1 - most).abs() < 1e-6 && found.top[1].1 <= found.top[0].1);
        }
        assert!(run.said[&(1, 0)].scored.is_empty() && run.said[&(3, 1)].scored.is_empty());
        assert_eq!((&said.text, &run.said[&(3, 1)].text), (&alone(&prompt, 5), &alone(&prompt, 5)));
        let one = &run.said[&(4, 0)];
        assert_eq!((&one.scored[..], one.text.as_str()), (&[(120, None)][..], ""));
    }
}

#[test]
fn a_prompt_is_read_in_whole_batches_while_nobody_writes() {
    let mut run = Run::new(fake(4, 4096), options());
    run.submit(Request { progress: true, ..request(1, &"a".repeat(50), 1) });
    run.finish();
    assert_eq!(run.scheduler.decoder.evaluations, [16, 16, 16, 2]);
    assert_eq!(run.said[&(1, 0)].read, [16, 32, 48, 50]);
}

#[test]
fn a_slow_model_reads_smaller_pieces_while_texts_are_written() {
    let model = Fake { token_time: Duration::from_millis(25), ..fake(2, 4096) };
    let mut run = Run::new(model, SchedulerOptions { piece: 16, ..options() });
    run.submit(request(1, "abcdefghijklmnop", 100));
    run.step();
    run.submit(request(2, &"z".repeat(60), 1));
    run.steps(2);
    let [16, many, few] = run.scheduler.decoder.evaluations[..] else { panic!("three evaluations") };
    // 300 ms are for 12 tokens, one of them may be less; sleeping takes longer than it should.
    assert!((9..=13).contains(&many) && (9..=13).contains(&few), "{many}, {few}");
}

#[test]
fn a_prompt_that_is_read_soon_is_read_whole_while_texts_are_written() {
    let model = Fake { token_time: Duration::from_millis(2), n_batch: 256, n_rows: 256, ..fake(2, 4096) };
    let mut run = Run::new(model, SchedulerOptions { piece: 16, pause: Duration::from_millis(400), ..options() });
    run.submit(request(1, &"abcdefgh".repeat(4), 100));
    run.step();
    run.submit(request(2, &"z".repeat(100), 1));
    run.step();
    run.submit(request(3, &"y".repeat(400), 1));
    run.steps(2);
    let evaluations = &run.scheduler.decoder.evaluations;
    let [32, 101, many, more] = evaluations[..] else { panic!("{evaluations:?}") };
    // Half of the time is for 100 tokens, or fewer, in whole tiles with the next token of the other text.
    assert!([many, more].iter().all(|n| (48..=112).contains(n) && n % 16 == 0), "{many}, {more}");
}

/// Drafts of one length, whatever evaluations cost.
fn guessing(n: usize) -> SchedulerOptions {
    SchedulerOptions { draft: Some(DraftOptions { max: n, min: n, p_min: 0.0 }), ..options() }
}

#[test]
fn guesses_save_evaluations_and_change_nothing() {
    let mut run = Run::new(fake_by(refrain, 3, 4096), guessing(4));
    let prompts = ["the king", "of France", "is bald"];
    for (task, prompt) in (0..).zip(prompts) {
        run.submit(request(task, prompt, 120));
    }
    run.finish();
    let counts = run.scheduler.counts().clone();
    for (task, prompt) in (0..).zip(prompts) {
        let said = &run.said[&(task, 0)];
        assert_eq!(said.text, alone_by(refrain, prompt, 120));
        let guessed = said.usage.guessed;
        assert!(guessed.accepted > 40 && guessed.accepted < guessed.drafted, "{guessed:?}");
    }
    assert!(counts.evaluations < 80, "{counts:?}");
    let sum = |of: fn(&Speculation) -> usize| (0..3).map(|task| of(&run.said[&(task, 0)].usage.guessed) as u64).sum();
    let (drafted, accepted): (u64, u64) = (sum(|guessed| guessed.drafted), sum(|guessed| guessed.accepted));
    assert_eq!((counts.guessed_tokens, counts.accepted_guesses, counts.written_tokens), (drafted, accepted, 360));
    // What is held of them begins another text.
    let prompt = format!("of France{}", alone_by(refrain, "of France", 100));
    let (read, said) = run.whole(request(9, &prompt, 1));
    assert!(read == 1 && said.started[0].0 == prompt.len() - 1, "{read}, {said:?}");
}

#[test]
fn nothing_is_guessed_where_that_would_cost_more() {
    // Every row takes as long as the first.
    let model = Fake { token_time: Duration::from_millis(1), ..fake_by(refrain, 1, 4096) };
    let mut run = Run::new(model, SchedulerOptions { draft: Some(DraftOptions::default()), ..options() });
    run.submit(request(1, "the king", 200));
    run.finish();
    let counts = run.scheduler.counts();
    assert!(counts.guesses > 0 && counts.guessed_tokens < 60, "it is tried from time to time: {counts:?}");
    // A memory that cannot be cut back has no room for guesses, and a deterministic text does not depend on them.
    let whole = Fake { can_truncate: false, ..fake_by(refrain, 1, 4096) };
    let apart = Fake { shares: false, ..fake_by(refrain, 1, 4096) };
    for (model, deterministic) in [(whole, false), (apart, true)] {
        let mut run = Run::new(model, SchedulerOptions { deterministic, ..guessing(4) });
        let text = run.whole(request(1, "the king", 60)).1.text.clone();
        assert_eq!((text, run.scheduler.counts().guesses), (alone_by(refrain, "the king", 60), 0));
    }
}

#[test]
fn guesses_take_no_room_from_texts() {
    let model = Fake { n_rows: 3, ..fake_by(refrain, 2, 60) };
    let mut run = Run::new(model, guessing(4));
    run.submit(request(1, "the king", 40));
    run.submit(request(2, "of France", 40));
    run.finish();
    for (task, prompt) in [(1, "the king"), (2, "of France")] {
        assert_eq!(run.said[&(task, 0)].text, alone_by(refrain, prompt, 40));
    }
    assert!(run.failed.is_empty());
    // With so few rows there is none for guesses.
    assert_eq!(run.scheduler.counts().guesses, 0);
    let model = fake_by(refrain, 2, 60);
    let mut run = Run::new(model, guessing(4));
    run.submit(request(1, "the king", 50));
    run.finish();
    assert_eq!(run.said[&(1, 0)].text, alone_by(refrain, "the king", 50));
    assert!(run.scheduler.counts().accepted_guesses > 10);
}

#[test]
fn prompts_are_read_in_turn() {
    let mut run = Run::new(fake(4, 4096), options());
    for (task, first) in (1..).zip(["a", "b", "c"]) {
        run.submit(Request { progress: true, ..request(task, &first.repeat(48), 1) });
    }
    run.finish();
    let of_turns: Vec<i32> = run.scheduler.decoder.evaluated.iter().map(|sequences| sequences[0]).collect();
    assert_eq!(of_turns, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    // A short one does not wait for the long ones.
    let mut run = Run::new(fake(4, 4096), options());
    run.submit(request(1, &"a".repeat(500), 1));
    run.step();
    run.submit(request(2, "bcdef", 1));
    run.step();
    run.step();
    assert_eq!(run.done, [2]);
}

#[test]
fn what_comes_first_is_served_first() {
    let mut run = Run::new(fake(1, 4096), options());
    for task in 1..6 {
        run.submit(request(task, &numbered(task as usize, "x"), 3));
    }
    run.finish();
    assert_eq!(run.done, [1, 2, 3, 4, 5]);
}

#[test]
fn the_queue_is_bounded() {
    let mut run = Run::new(fake(1, 4096), SchedulerOptions { queue: 2, ..options() });
    run.submit(request(1, "a", 3));
    run.step();
    run.submit(request(2, "b", 3));
    run.submit(request(3, "c", 3));
    let refused = run.scheduler.submit(request(4, "d", 3)).unwrap_err();
    assert!(matches!(refused, TaskError::Busy { waiting: 2, retry_after: 1.. }), "{refused}");
    run.finish();
    assert_eq!(run.done, [1, 2, 3]);
    run.submit(request(4, "d", 3));
    // Without any room to wait, what can begin at once is not refused.
    let mut run = Run::new(fake(1, 4096), SchedulerOptions { queue: 0, ..options() });
    run.submit(request(1, "a", 3));
    assert!(run.scheduler.submit(request(2, "b", 3)).is_err());
    run.step();
    assert!(run.scheduler.submit(request(2, "b", 3)).is_err());
}

#[test]
fn what_does_not_fit_is_refused_with_both_numbers() {
    let mut run = Run::new(fake(4, 64), options());
    let refused = run.scheduler.submit(request(1, &"a".repeat(63), 100)).unwrap_err();
    assert!(matches!(refused, TaskError::TooLong { tokens: 63, n_ctx: 64, least: 2 }), "{refused}");
    run.submit(request(1, &"a".repeat(63), 1));
    let refused = run.scheduler.submit(request(2, "", 1)).unwrap_err();
    assert!(matches!(refused, TaskError::Engine(Error::Llama(llama::Error::NoTokens))), "{refused}");
    let odd = Request { prompt: vec![1, 5000].into(), ..request(2, "", 1) };
    let refused = run.scheduler.submit(odd).unwrap_err();
    assert!(matches!(refused, TaskError::Engine(Error::Llama(llama::Error::Token { token: 5000, .. }))), "{refused}");
    run.finish();
    assert_eq!(run.done, [1]);
}

#[test]
fn a_text_alone_fills_the_context() {
    let mut run = Run::new(fake(4, 64), options());
    run.submit(request(1, "abc", 1000));
    run.finish();
    let said = &run.said[&(1, 0)];
    assert_eq!(said.end, Some(End::Finish(Finish::ContextFull)));
    // The last token need not be read.
    assert_eq!(said.n_tokens, 64 - 3 + 1);
    assert_eq!(said.text, alone("abc", 62));
}

#[test]
fn a_cancelled_task_ends_within_one_token() {
    let mut run = Run::new(fake(2, 4096), options());
    for task in 1..4 {
        run.submit(request(task, &numbered(3, "t"), 100));
    }
    run.steps(20);
    let written = run.said[&(1, 0)].n_tokens;
    assert!(written > 3);
    run.act(|scheduler, sink| scheduler.cancel(1, sink));
    assert_eq!(run.said[&(1, 0)].end, Some(End::Finish(Finish::Cancelled)));
    assert_eq!((run.said[&(1, 0)].n_tokens, run.done.as_slice()), (written, &[1][..]));
    // Its sequence is free for the next.
    run.step();
    assert_eq!(run.scheduler.slots().iter().map(|slot| slot.task).collect::<Vec<_>>(), [Some(3), Some(2)]);
    // One that has not begun fails, and an unknown one is nothing.
    run.submit(request(4, "d", 3));
    run.act(|scheduler, sink| scheduler.cancel(4, sink));
    run.act(|scheduler, sink| scheduler.cancel(99, sink));
    assert_eq!(run.failed[&4], "cancelled before it began");
    run.finish();
    assert_eq!(run.done.len(), 3);
    assert_eq!(run.said[&(2, 0)].text, alone(&numbered(3, "t"), 100));
}

#[test]
fn an_evaluation_that_nobody_needs_any_more_is_interrupted() {
    let flag = Arc::new(AtomicBool::new(false));
    let model = Fake { cancel: flag.clone(), token_time: Duration::from_millis(2), ..fake(2, 4096) };
    let interrupt = Interrupt::new(flag.clone());
    let mut run = Run::of(Scheduler::new(model, options()).with_interrupt(interrupt.clone()));
    run.submit(request(1, &"a".repeat(100), 3));
    run.submit(request(2, &"b".repeat(20), 3));
    interrupt.cancel(1);
    assert!(!flag.load(Ordering::Relaxed), "nothing is evaluated now");
    interrupt.begin(vec![1]);
    interrupt.cancel(2);
    assert!(!flag.load(Ordering::Relaxed), "its prompt is not in it");
    interrupt.cancel(1);
    assert!(flag.load(Ordering::Relaxed));
    // The evaluation fails, and nothing has changed.
    run.step();
    assert!(!flag.load(Ordering::Relaxed) && run.scheduler.decoder.evaluations.is_empty());
    run.act(|scheduler, sink| scheduler.cancel(1, sink));
    run.finish();
    assert_eq!(run.said[&(2, 0)].text, alone(&"b".repeat(20), 3));
}

#[test]
fn a_task_ends_when_its_time_is_over() {
    let mut run = Run::new(fake(1, 4096), options());
    let soon = Instant::now() + Duration::from_millis(30);
    run.submit(Request { deadline: Some(soon), ..request(1, "abc", 1000) });
    run.submit(Request { deadline: Some(soon), ..request(2, "xyz", 1000) });
    let late = Request { deadline: Some(Instant::now()), ..request(3, "late", 5) };
    assert!(matches!(run.scheduler.submit(late), Err(TaskError::Timeout)));
    assert_eq!(run.scheduler.next_deadline(), Some(soon));
    run.steps(5);
    std::thread::sleep(soon.saturating_duration_since(Instant::now()));
    run.finish();
    let said = &run.said[&(1, 0)];
    assert_eq!((said.end.clone(), said.n_tokens), (Some(End::Timeout), 5));
    assert_eq!((said.usage.written_tokens, said.usage.prompt_tokens), (5, 3));
    assert_eq!(run.failed[&2], "its time was over before it began");
}

#[test]
fn a_prefix_of_many_is_read_once() {
    let system = numbered(60, "rule ");
    let mut run = Run::new(fake(4, 4096), options());
    let prompts: Vec<String> = (0..50).map(|i| format!("{system}question {i}?")).collect();
    for (task, prompt) in (0..).zip(&prompts) {
        run.submit(request(task, prompt, 6));
    }
    run.finish();
    let written: usize = run.said.values().map(|said| said.n_tokens - 1).sum();
    let read = run.scheduler.decoder.n_evaluated() - written;
    let rest: usize = prompts.iter().map(|prompt| prompt.len() - system.len()).sum();
    assert!(read <= system.len() + rest, "{read} tokens were read, {} and {rest} need be", system.len());
    assert_eq!(run.scheduler.counts.read_tokens as usize, read);
    for (task, prompt) in (0..).zip(&prompts) {
        assert_eq!(run.said[&(task, 0)].text, alone(prompt, 6));
        let [(cached, found, _)] = run.said[&(task, 0)].started[..] else { panic!("a text starts once") };
        assert!(task == 0 || (cached >= system.len() && found == Found::Context), "{task}: {cached} in {found:?}");
    }
    assert_eq!(run.said[&(0, 0)].started[0].2, "nothing was read before that begins like it");
}

#[test]
fn a_request_may_want_nothing_of_others() {
    let prompt = numbered(20, "secret ");
    let mut run = Run::new(fake(2, 4096), options());
    let private = |task| Request { cache: false, ..request(task, &prompt, 3) };
    assert_eq!(run.whole(private(1)).0, prompt.len());
    assert_eq!(run.scheduler.n_held(), 0, "nothing of it stays");
    assert_eq!(run.whole(request(2, &prompt, 3)).0, prompt.len());
    let (read, said) = run.whole(private(3));
    assert_eq!((read, said.started[0].2.as_str()), (prompt.len(), "the request asks for it"));
    assert_eq!(run.whole(request(4, &prompt, 3)).0, 1);
    // Nor may others copy it while it runs.
    run.submit(Request { cache: false, ..request(5, "another one, quite long", 50) });
    run.steps(5);
    let before = run.scheduler.decoder.n_evaluated();
    run.submit(request(6, "another one, quite long", 1));
    run.finish();
    assert_eq!(run.scheduler.decoder.n_evaluated() - before, 23 + 46, "read by both");
}

#[test]
fn several_texts_of_a_prompt_read_it_once() {
    for can_truncate in [true, false] {
        let prompt = numbered(20, "once ");
        let model = Fake { can_truncate, ..fake(4, 4096) };
        let mut run = Run::new(model, options());
        run.submit(Request { writers: (0..3).map(|_| writer()).collect(), ..request(1, &prompt, 8) });
        run.finish();
        let n = run.scheduler.decoder.n_evaluated();
        let parts = &run.scheduler.decoder.evaluated;
        assert_eq!(n, prompt.len() + 3 * 7, "the last token is not read: {parts:?}");
        for index in 0..3 {
            assert_eq!(run.said[&(1, index)].text, alone(&prompt, 8));
        }
        assert_eq!(run.done, [1]);
        assert_eq!(run.said[&(1, 2)].started[0].0, prompt.len());
    }
    // More texts than sequences.
    let prompt = numbered(20, "once ");
    let mut run = Run::new(fake(2, 4096), options());
    run.submit(Request { writers: (0..5).map(|_| writer()).collect(), ..request(1, &prompt, 8) });
    run.finish();
    let extra = run.scheduler.decoder.n_evaluated() - prompt.len() - 5 * 7;
    assert!(extra <= 3, "{extra}: the last token for each of the later ones");
    assert!((0..5).all(|index| run.said[&(1, index)].text == alone(&prompt, 8)));
    // One that is cancelled in the middle.
    run.submit(Request { writers: (0..5).map(|_| writer()).collect(), ..request(2, &prompt, 8) });
    run.steps(3);
    run.act(|scheduler, sink| scheduler.cancel(2, sink));
    assert!((0..5).all(|index| run.said[&(2, index)].end == Some(End::Finish(Finish::Cancelled))));
    assert_eq!(run.done, [1, 2]);
    run.finish();
}

#[test]
fn two_agents_on_one_sequence_do_not_evict_each_other() {
    let mut run = Run::new(fake(1, 4096), options());
    let mut agents = [numbered(50, "code "), numbered(60, "prose ")];
    let mut task = 0;
    for turn in 0..5 {
        for agent in &mut agents {
            task += 1;
            let (read, said) = run.whole(request(task, agent, 10));
            let new = if turn == 0 { agent.len() } else { "\nnext: x\n".len() + 1 };
            assert_eq!(read, new, "turn {turn}: the last token that was written, and what is new");
            assert_eq!(said.text, alone(agent, 10));
            if turn > 0 {
                assert_eq!(said.started[0].1, Found::Memory, "turn {turn}");
                assert_eq!(
                    said.started[0].2,
                    "nothing else was read before that begins with the same ".to_string()
                        + &format!("{} tokens and goes on like it", said.started[0].0)
                );
            }
            *agent = format!("{agent}{}\nnext: x\n", said.text);
        }
    }
    // Without memory for it, they do, and it is said why.
    let mut run = Run::new(fake(1, 4096), SchedulerOptions { prefix_bytes: 0, ..options() });
    let (a, b) = (numbered(50, "code "), numbered(60, "prose "));
    run.whole(request(1, &a, 10));
    run.whole(request(2, &b, 10));
    let (read, said) = run.whole(request(3, &a, 10));
    assert_eq!(read, a.len());
    let wanted = format!("{} tokens of it were read before, but there was no room to keep them", a.len());
    assert_eq!(said.started[0].2, wanted);
}

#[test]
fn the_end_of_an_idle_text_is_kept_when_only_its_beginning_is_needed() {
    let system = numbered(10, "system ");
    let (a, b) = (format!("{system}{}", numbered(40, "alpha ")), format!("{system}{}", numbered(40, "beta ")));
    for n_sequences in [1, 2] {
        let mut run = Run::new(fake(n_sequences, 4096), options());
        run.whole(request(1, &a, 5));
        let (read, said) = run.whole(request(2, &b, 5));
        assert_eq!((read, said.started[0].1), (b.len() - system.len(), Found::Context));
        assert_eq!(run.whole(request(3, &a, 5)).0, 1, "with {n_sequences} sequences");
        assert_eq!(run.whole(request(4, &b, 5)).0, 1, "with {n_sequences} sequences");
    }
}

#[test]
fn the_youngest_gives_way_when_the_memory_is_full() {
    for prefix_bytes in [1 << 20, 0] {
        let mut run = Run::new(fake(4, 128), SchedulerOptions { prefix_bytes, ..options() });
        let prompts = ["one ", "two ", "three ", "four "].map(|word| word.repeat(3));
        for (task, prompt) in (0..).zip(&prompts) {
            run.submit(request(task, prompt, 70));
        }
        run.finish();
        assert!(run.scheduler.counts.preempted > 0);
        for (task, prompt) in (0..).zip(&prompts) {
            let said = &run.said[&(task, 0)];
            assert_eq!(said.end, Some(End::Finish(Finish::MaxTokens)), "{task}");
            assert_eq!((said.text.as_str(), said.started.len()), (alone(prompt, 70).as_str(), 1), "{task}");
        }
        assert_eq!(run.done[0], 0, "the oldest goes on");
        let needed: usize = prompts.iter().map(|prompt| prompt.len() + 69).sum();
        let read = run.scheduler.decoder.n_evaluated();
        assert!(if prefix_bytes > 0 { read <= needed + 20 } else { read > needed + 20 }, "{read} of {needed}");
    }
}

#[test]
fn an_evaluation_that_fails_fails_its_tasks_and_no_others() {
    for can_truncate in [true, false] {
        let mut run = Run::new(Fake { can_truncate, ..fake(2, 4096) }, options());
        run.submit(request(1, "abc", 20));
        run.submit(request(2, "xyz", 20));
        run.submit(request(3, "def", 20));
        run.steps(5);
        run.scheduler.decoder.failures = 1;
        run.finish();
        assert_eq!(run.failed.keys().copied().collect::<Vec<_>>(), [1, 2]);
        assert!(run.failed.values().all(|error| error.contains("it was asked to fail")), "{:?}", run.failed);
        assert_eq!(run.said[&(3, 0)].text, alone("def", 20));
        assert_eq!(run.whole(request(4, "abc", 20)).1.text, alone("abc", 20));
    }
}

#[test]
fn a_memory_that_cannot_be_truncated_is_used_as_a_whole() {
    let model = Fake { can_truncate: false, ..fake(2, 4096) };
    let mut run = Run::new(model, options());
    let prompt = numbered(20, "state ");
    let (_, said) = run.whole(request(1, &prompt, 6));
    let longer = format!("{prompt}{} and on", said.text);
    assert_eq!(run.whole(request(2, &longer, 6)).0, " and on".len() + 1);
    // The beginning alone is of no use.
    let (read, said) = run.whole(request(3, &prompt, 6));
    assert_eq!(read, prompt.len());
    assert!(said.started[0].2.ends_with("but this model's memory cannot be cut back to them"), "{:?}", said.started);
    assert_eq!(said.text, alone(&prompt, 6));
}

fn with_folder(path: &Path, most_bytes: u64, identity: &str) -> Run {
    let folder = PrefixFolder { path: path.to_path_buf(), most_bytes, identity: identity.to_string() };
    let scheduler = Scheduler::new(fake(1, 4096), options());
    Run::of(scheduler.with_folder(folder, Box::new(|| ())).unwrap())
}

fn files(path: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(path).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn prefixes_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("prefixes");
    let (a, b) = (numbered(50, "code "), numbered(60, "prose "));
    let mut run = with_folder(&folder, 1 << 20, "{\"model\": 1}");
    run.whole(request(1, &a, 10));
    run.whole(request(2, &b, 10));
    run.scheduler.close();
    assert_eq!(files(&folder).len(), 2);
    assert_eq!(run.scheduler.prefix_bytes().1, files(&folder).iter().map(|f| f.metadata().unwrap().len()).sum::<u64>());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o077, 0, "what people wrote is private");
    }
    drop(run);

    let mut run = with_folder(&folder, 1 << 20, "{\"model\": 1}");
    for (task, prompt) in [(1, &a), (2, &b)] {
        let (read, said) = run.whole(request(task, prompt, 10));
        assert_eq!((read, said.started[0].1), (1, Found::Disk), "{:?}", said.started);
        assert_eq!(said.text, alone(prompt, 10));
    }
    // What is there already is not written again.
    let modified = |path: &Path| path.metadata().unwrap().modified().unwrap();
    let before: Vec<_> = files(&folder).iter().map(|path| modified(path)).collect();
    run.scheduler.close();
    assert_eq!(files(&folder).iter().map(|path| modified(path)).collect::<Vec<_>>(), before);
    // What goes on is written anew, and its beginning is not needed any more.
    let longer = a.clone() + &alone(&a, 10) + &numbered(30, "more ");
    run.whole(request(3, &longer, 10));
    run.scheduler.close();
    assert_eq!(files(&folder).len(), 2);
    drop(run);
    let mut run = with_folder(&folder, 1 << 20, "{\"model\": 1}");
    assert_eq!(run.whole(request(1, &longer, 10)).0, 1);
}

#[test]
fn files_that_are_damaged_or_of_others_are_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let a = numbered(50, "code ");
    let mut run = with_folder(dir.path(), 1 << 20, "{\"model\": 1}");
    run.whole(request(1, &a, 10));
    run.scheduler.close();
    drop(run);
    let [file] = &files(dir.path())[..] else { panic!("one file") };
    let whole = std::fs::read(file).unwrap();

    let mut run = with_folder(dir.path(), 1 << 20, "{\"model\": 2}");
    let (read, said) = run.whole(request(1, &a, 10));
    assert_eq!((read, said.started[0].2.as_str()), (a.len(), "nothing was read before that begins like it"));
    assert!(file.exists(), "it is another model's");
    drop(run);

    // Every byte counts: those at the beginning, of the tokens, of the state, and of the hash.
    for at in [9, 30, 60, whole.len() / 2, whole.len() - 40, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        std::fs::write(file, &bytes).unwrap();
        let mut run = with_folder(dir.path(), 1 << 20, "{\"model\": 1}");
        let (read, said) = run.whole(request(1, &a, 10));
        assert!(read >= a.len() - 4, "byte {at}: {read}");
        assert_eq!(said.text, alone(&a, 10), "byte {at}");
        if at > 1000 {
            assert_eq!(said.started[0].2, "a file on the disk has more of it, but it is damaged", "byte {at}");
            assert!(!file.exists(), "byte {at}");
        }
        std::fs::remove_file(file).ok();
    }
    for length in [0, 5, 27, 100, whole.len() - 1] {
        std::fs::write(file, &whole[..length]).unwrap();
        let mut run = with_folder(dir.path(), 1 << 20, "{\"model\": 1}");
        assert_eq!(run.whole(request(1, &a, 10)).0, a.len(), "{length} bytes");
    }
    // Whole again, it serves.
    std::fs::write(file, &whole).unwrap();
    let mut run = with_folder(dir.path(), 1 << 20, "{\"model\": 1}");
    assert_eq!(run.whole(request(1, &a, 10)).0, 1);
    // And when it goes while somebody waits for it, the text is read.
    drop(run);
    let mut run = with_folder(dir.path(), 1 << 20, "{\"model\": 1}");
    std::fs::remove_file(file).unwrap();
    let (read, said) = run.whole(request(1, &a, 10));
    assert_eq!((read, said.started[0].2.as_str()), (a.len(), "a file on the disk has more of it, but it is gone"));
}

#[test]
fn a_folder_keeps_to_its_size_and_the_oldest_files_go() {
    let dir = tempfile::tempdir().unwrap();
    let prompts: Vec<String> = (0..6).map(|i| numbered(40, &format!("{i} text "))).collect();
    // Each takes about 5 kB.
    let mut run = with_folder(dir.path(), 20_000, "{}");
    for (task, prompt) in (0..).zip(&prompts) {
        run.whole(request(task, prompt, 2));
        run.scheduler.close();
        let n_bytes: u64 = files(dir.path()).iter().map(|file| file.metadata().unwrap().len()).sum();
        assert!(n_bytes <= 20_000 && n_bytes == run.scheduler.prefix_bytes().1, "{n_bytes}");
    }
    let n_files = files(dir.path()).len();
    assert!((2..6).contains(&n_files), "{n_files}");
    drop(run);
    let mut run = with_folder(dir.path(), 20_000, "{}");
    assert_eq!(run.whole(request(9, &prompts[5], 2)).0, 1, "the last one is there");
    assert_eq!(run.whole(request(10, &prompts[0], 2)).0, prompts[0].len(), "the first one is not");
    // Another model with less room removes them, too.
    drop(run);
    drop(with_folder(dir.path(), 6_000, "{\"other\": 1}"));
    assert!(files(dir.path()).len() <= 1);
}

/// A model that computes other things in other circumstances, and a scheduler that does not let it.
fn deterministic(n_sequences: usize, can_truncate: bool) -> Run {
    let model = Fake { is_fickle: true, shares: false, can_truncate, ..fake(n_sequences, 512) };
    Run::new(model, SchedulerOptions { deterministic: true, ..options() })
}

#[test]
fn a_deterministic_text_does_not_depend_on_others_or_on_what_was_read() {
    let system = numbered(9, "rule ");
    let prompts: Vec<String> = (0..12).map(|i| format!("{system}{}", numbered(i, "q"))).collect();
    let wanted: Vec<String> =
        prompts.iter().map(|prompt| deterministic(1, true).whole(request(1, prompt, 20)).1.text.clone()).collect();
    // The model is as fickle as it should be.
    let mut run = Run::new(Fake { is_fickle: true, ..fake(4, 4096) }, options());
    (0..).zip(&prompts).for_each(|(task, prompt)| run.submit(request(task, prompt, 20)));
    run.finish();
    assert!((0..).zip(&wanted).filter(|(task, text)| run.said[&(*task, 0)].text != **text).count() > 6);

    for can_truncate in [true, false] {
        let mut run = deterministic(4, can_truncate);
        for round in 0..3 {
            for (task, prompt) in (0..).zip(&prompts) {
                run.submit(request(100 * round + task, prompt, 20));
                run.steps(task);
            }
            run.finish();
            for (task, text) in (0..).zip(&wanted) {
                assert_eq!(run.said[&(100 * round + task, 0)].text, *text, "round {round}, text {task}");
            }
        }
        let cached: usize = run.said.values().map(|said| said.usage.cached_tokens).sum();
        assert!(cached > 0 || !can_truncate, "prefixes are used all the same");
        assert!(run.scheduler.decoder.evaluated.iter().all(|sequences| sequences.iter().all(|s| *s == sequences[0])));
    }
    // Nor on what is written at the same time by the same request.
    let mut run = deterministic(3, true);
    run.submit(Request { writers: (0..5).map(|_| writer()).collect(), ..request(1, &prompts[7], 20) });
    run.finish();
    assert!((0..5).all(|index| run.said[&(1, index)].text == wanted[7]));
}

/// A request of a random run.
#[derive(Clone, Debug)]
struct Asked {
    /// Which of a few beginnings it has, how much of it, and what follows.
    beginning: usize,
    taken: usize,
    rest: String,
    max_tokens: usize,
    n: usize,
    cache: bool,
    /// Steps before it comes, and after which it is cancelled.
    steps: usize,
    cancelled: Option<usize>,
}

fn asked() -> impl Strategy<Value = Asked> {
    let cancelled = prop::option::weighted(0.15, 0..30usize);
    (0..3usize, 0..60usize, "[a-e]{1,12}", 0..25usize, 1..4usize, prop::bool::weighted(0.9), 0..8usize, cancelled)
        .prop_map(|(beginning, taken, rest, max_tokens, n, cache, steps, cancelled)| Asked {
            beginning,
            taken,
            rest,
            max_tokens,
            n,
            cache,
            steps,
            cancelled,
        })
}

impl Asked {
    fn prompt(&self) -> String {
        let beginning = ["the quick brown fox ", "a lazy dog sleeps ", "the quiet stream "][self.beginning].repeat(3);
        format!("{}{}", &beginning[..self.taken.min(beginning.len())], self.rest)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn whatever_comes_when_each_text_is_as_alone(
        all in prop::collection::vec(asked(), 1..12),
        n_sequences in 1..5usize,
        n_ctx in 100..400u32,
        prefix_bytes in prop_oneof![Just(0), 500..8000u64],
        piece in 1..9usize,
        guesses in prop::option::of(1..6usize),
        can_truncate in prop::bool::weighted(0.75),
        is_deterministic in prop::bool::weighted(0.3),
    ) {
        let rule = if guesses.is_some() { refrain } else { letter };
        let model = Fake {
            can_truncate,
            shares: !is_deterministic,
            is_fickle: is_deterministic,
            ..fake_by(rule, n_sequences, n_ctx)
        };
        let draft = guesses.map(|n| DraftOptions { max: n, min: n, p_min: 0.0 });
        let options = SchedulerOptions { deterministic: is_deterministic, prefix_bytes, piece, draft, ..options() };
        let mut run = Run::new(model, options.clone());
        let mut due: Vec<(usize, TaskId)> = Vec::new();
        for (task, asked) in (0..).zip(&all) {
            let writers = (0..asked.n).map(|_| writer()).collect();
            run.submit(Request { writers, cache: asked.cache, ..request(task, &asked.prompt(), asked.max_tokens) });
            due.extend(asked.cancelled.map(|steps| (steps, task)));
            for _ in 0..asked.steps {
                run.step();
                for (steps, task) in &mut due {
                    if *steps == 0 {
                        run.act(|scheduler, sink| scheduler.cancel(*task, sink));
                    }
                    *steps = steps.wrapping_sub(1);
                }
            }
        }
        run.finish();
        for (task, asked) in (0..).zip(&all) {
            let prompt = asked.prompt();
            let wanted = match is_deterministic {
                false => alone_by(rule, &prompt, asked.max_tokens),
                true => {
                    let model = Fake { is_fickle: true, shares: false, can_truncate, ..fake_by(rule, 1, n_ctx) };
                    let mut run = Run::new(model, options.clone());
                    run.whole(request(1, &prompt, asked.max_tokens)).1.text.clone()
                }
            };
            if run.failed.contains_key(&task) {
                prop_assert!(asked.cancelled.is_some());
                continue;
            }
            prop_assert!(run.done.contains(&task));
            for index in 0..asked.n as u32 {
                let said = &run.said[&(task, index)];
                match said.end.as_ref().unwrap() {
                    End::Finish(Finish::MaxTokens) => prop_assert_eq!(&said.text, &wanted),
                    End::Finish(Finish::Cancelled) => {
                        prop_assert!(asked.cancelled.is_some() && wanted.starts_with(&said.text));
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
        prop_assert!(run.scheduler.memory.n_bytes() <= prefix_bytes);
    }
}
