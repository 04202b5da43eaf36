//! The scheduler's thread: makes one evaluation after the other, and answers.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::prepare::{Begun, Prepared};
use super::{Incoming, Shared};
use crate::engine::scheduler::{End, Event, Progress, Scheduler, TaskError, TextUsage};
use crate::engine::{self, Embedder, Embedding, SessionOptions, TokenLogprobs, token_bytes};
use crate::llama::{Context, Model};
use crate::serve::protocol::{Answer, Failure, FailureKind, Finish, FromEngine, Slot, Status, TokenPiece, Usage};
use crate::vocab::Tokenizer;

/// For so long there must be nothing to do until prefixes are written to the disk.
const QUIET: Duration = Duration::from_secs(1);

/// How often the status is told while texts are written.
const STATUS: Duration = Duration::from_millis(50);

/// What is known of a task beside what the scheduler knows.
struct Info {
    special: bool,
    answer: Option<Begun>,
}

/// Embeddings of one task.
struct EmbedJob {
    id: u64,
    prompts: VecDeque<Embedding>,
    vectors: Vec<Vec<f32>>,
    tokens: Vec<u64>,
}

/// What embeddings took.
#[derive(Default)]
struct Embedded {
    tokens: u64,
    time: Duration,
    evaluations: u64,
    /// The most tokens of one text.
    most_tokens: u64,
}

/// The loop of the scheduler's thread.
pub(super) struct Loop {
    scheduler: Scheduler<Context>,
    embedder: Embedder,
    jobs: VecDeque<EmbedJob>,
    most_embedded: u32,
    embedded: Embedded,
    told: Instant,
    answers: Answers,
}

/// Turns what the scheduler says into answers.
struct Answers {
    shared: Arc<Shared>,
    tasks: HashMap<u64, Info>,
    /// What a step has said so far. It is sent at once, so that the server is woken once.
    said: Vec<FromEngine>,
}

impl Loop {
    pub fn new(scheduler: Scheduler<Context>, model: &Model, session: &SessionOptions, shared: Arc<Shared>) -> Self {
        let most_embedded = scheduler.decoder().n_ctx_sequence();
        let embedder = Embedder::new(model, session, most_embedded);
        let answers = Answers { shared, tasks: HashMap::new(), said: Vec::new() };
        let (jobs, embedded) = (VecDeque::new(), Embedded::default());
        Self { scheduler, embedder, jobs, most_embedded, embedded, told: Instant::now(), answers }
    }

    /// Works until it is told to end.
    pub fn run(mut self, inbox: &Receiver<Incoming>) {
        let mut progress = Progress::Idle;
        let mut quiet = false;
        loop {
            while let Ok(incoming) = inbox.try_recv() {
                if !self.take(incoming) {
                    return self.scheduler.close();
                }
                progress = Progress::Busy;
            }
            if progress == Progress::Busy || !self.jobs.is_empty() {
                quiet = false;
                let answers = &mut self.answers;
                progress = self.scheduler.step(&mut |id, event| answers.event(id, event));
                // Before the answers: who has the last one may ask at once what was done.
                if progress != Progress::Busy || self.told.elapsed() >= STATUS {
                    self.tell_status();
                }
                self.answers.send();
                if let Some((id, answer)) = self.embed() {
                    self.tell_status();
                    self.answers.shared.answer(id, answer);
                }
                continue;
            }
            // Nothing can be done until something comes.
            let now = Instant::now();
            let deadline = self.scheduler.next_deadline().map(|deadline| deadline.saturating_duration_since(now));
            let incoming = match deadline.or((!quiet).then_some(QUIET)) {
                Some(time) => inbox.recv_timeout(time),
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match incoming {
                Ok(incoming) => match self.take(incoming) {
                    true => progress = Progress::Busy,
                    false => return self.scheduler.close(),
                },
                Err(RecvTimeoutError::Timeout) if deadline.is_some() => progress = Progress::Busy,
                Err(RecvTimeoutError::Timeout) => {
                    quiet = !self.scheduler.tidy();
                    if let Some(trouble) = self.scheduler.take_trouble() {
                        eprintln!("nibble engine: a prefix could not be written: {trouble}");
                    }
                    self.tell_status();
                }
                Err(RecvTimeoutError::Disconnected) => return self.scheduler.close(),
            }
        }
    }

    /// Takes a message. Returns whether to go on.
    fn take(&mut self, incoming: Incoming) -> bool {
        let answers = &mut self.answers;
        match incoming {
            Incoming::End => return false,
            Incoming::Wake => {}
            Incoming::Cancel(id) => {
                if let Some(at) = self.jobs.iter().position(|job| job.id == id) {
                    self.jobs.remove(at);
                    answers.shared.answer(id, Answer::Failed(failure(&TaskError::Cancelled)));
                }
                self.scheduler.cancel(id, &mut |id, event| answers.event(id, event));
                answers.send();
            }
            Incoming::Generate(id, prepared) => {
                let Prepared { request, forgotten_turns, special, answer, text } = *prepared;
                let prompt_tokens = request.prompt.len() as u64;
                match self.scheduler.submit(request) {
                    Ok(()) => {
                        answers.tasks.insert(id, Info { special, answer });
                        let forgotten_turns = forgotten_turns as u64;
                        answers.shared.answer(id, Answer::Prepared { prompt_tokens, forgotten_turns, text });
                    }
                    Err(error) => answers.shared.answer(id, Answer::Failed(failure(&error))),
                }
            }
            Incoming::Embed(id, prompts) => {
                let n_ctx = self.most_embedded;
                match prompts.iter().map(Vec::len).find(|n| *n > n_ctx as usize || *n == 0) {
                    Some(0) => {
                        let message = "there are no tokens to compute an embedding of".to_string();
                        let kind = FailureKind::Invalid;
                        answers.shared.answer(id, Answer::Failed(Failure { kind, message }));
                    }
                    Some(n) => {
                        let kind = FailureKind::TooLong { tokens: n as u64, n_ctx: n_ctx.into() };
                        let message = format!("a text has {n} tokens, but the context holds {n_ctx}");
                        answers.shared.answer(id, Answer::Failed(Failure { kind, message }));
                    }
                    None => {
                        let tokens = prompts.iter().map(|tokens| tokens.len() as u64).collect();
                        let prompts = prompts.into_iter().map(Embedding::new).collect();
                        self.jobs.push_back(EmbedJob { id, prompts, vectors: Vec::new(), tokens });
                    }
                }
            }
        }
        true
    }

    /// Reads a piece for the first of the embeddings. Returns the answer if its task has ended.
    fn embed(&mut self) -> Option<(u64, Answer)> {
        let job = self.jobs.front_mut()?;
        if let Some(embedding) = job.prompts.front_mut() {
            let (begun, before) = (Instant::now(), embedding.n_read());
            let result = self.embedder.advance(embedding);
            self.embedded.tokens += embedding.n_read().saturating_sub(before) as u64;
            self.embedded.time += begun.elapsed();
            self.embedded.evaluations += 1;
            self.embedded.most_tokens = self.embedded.most_tokens.max(embedding.n_read() as u64);
            match result {
                Ok(false) => return None,
                Ok(true) => {
                    job.vectors.push(embedding.normalized());
                    job.prompts.pop_front();
                }
                Err(error) => {
                    let id = job.id;
                    self.jobs.pop_front();
                    return Some((id, Answer::Failed(failure(&error.into()))));
                }
            }
        }
        if !job.prompts.is_empty() {
            return None;
        }
        let EmbedJob { id, vectors, tokens, .. } = self.jobs.pop_front()?;
        Some((id, Answer::Embeddings { vectors, tokens }))
    }

    /// Tells what is being done.
    pub fn tell_status(&mut self) {
        self.told = Instant::now();
        let slot = |(id, slot): (u32, engine::scheduler::SlotStatus)| Slot {
            id,
            task: slot.task,
            prompt_tokens: slot.prompt_tokens as u64,
            read_tokens: slot.read_tokens as u64,
            written_tokens: slot.written_tokens as u64,
            held_tokens: slot.held_tokens as u64,
        };
        let (counts, embedded) = (self.scheduler.counts(), &self.embedded);
        let (prefix_bytes, prefix_disk_bytes) = self.scheduler.prefix_bytes();
        let status = Status {
            slots: (0..).zip(self.scheduler.slots()).map(slot).collect(),
            waiting: self.scheduler.n_waiting() as u64,
            read_tokens: counts.read_tokens + embedded.tokens,
            reading_seconds: (counts.reading + embedded.time).as_secs_f64(),
            cached_tokens: counts.cached_tokens,
            written_tokens: counts.written_tokens,
            writing_seconds: counts.writing.as_secs_f64(),
            evaluations: counts.evaluations + embedded.evaluations,
            evaluated_sequences: counts.evaluated_sequences + embedded.evaluations,
            guessed_tokens: counts.guessed_tokens,
            accepted_guesses: counts.accepted_guesses,
            guesses: counts.guesses,
            held_tokens: self.scheduler.n_held() as u64,
            most_tokens: counts.most_tokens.max(embedded.most_tokens),
            prefix_bytes,
            prefix_disk_bytes,
        };
        *self.answers.shared.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

impl Answers {
    fn event(&mut self, id: u64, event: Event<'_>) {
        let tokenizer = self.shared.preparer.tokenizer();
        let answer = match event {
            Event::Started { index, cached, found, miss } => {
                Answer::Started { index, cached_tokens: cached as u64, found_in: found.word().to_string(), miss }
            }
            Event::Reading { index, done, total } => Answer::Reading { index, done: done as u64, total: total as u64 },
            Event::Scored { tokens, logprobs, .. } => {
                let special = self.tasks.get(&id).is_some_and(|info| info.special);
                let piece = |(token, logprobs): (&u32, &Option<TokenLogprobs>)| {
                    token_piece(tokenizer, *token, special, logprobs.as_ref())
                };
                Answer::Scored { tokens: tokens.iter().zip(&logprobs).map(piece).collect() }
            }
            Event::Piece { index, step, logprobs } => {
                let special = self.tasks.get(&id).is_some_and(|info| info.special);
                let token = step.token.map(|token| token_piece(tokenizer, token, special, logprobs));
                Answer::Piece { index, text: step.text.to_string(), tokens: Vec::from_iter(token) }
            }
            Event::Finished { index, end, tokens, text, usage: took } => {
                if let Some(Info { answer: Some(begun), .. }) = self.tasks.get(&id) {
                    self.shared.preparer.answered(begun.clone(), text, tokens);
                }
                Answer::Finished { index, finish: finish(end), usage: usage(&took) }
            }
            Event::Done => {
                self.tasks.remove(&id);
                Answer::Done
            }
            Event::Failed(error) => {
                self.tasks.remove(&id);
                Answer::Failed(failure(&error))
            }
        };
        self.said.push(FromEngine::To { id, answer });
    }

    /// Sends what was said.
    fn send(&mut self) {
        if !self.said.is_empty() {
            // If the writer is gone, so is the server.
            let _ = self.shared.out.send(std::mem::take(&mut self.said));
        }
    }
}

fn token_piece(tokenizer: &dyn Tokenizer, id: u32, special: bool, logprobs: Option<&TokenLogprobs>) -> TokenPiece {
    // JSON has no infinity.
    let finite = |logprob: f64| logprob.max(f64::MIN);
    let spelled = |id: u32| token_bytes(tokenizer, id, true).to_vec();
    let top = logprobs.map(|l| l.top.iter().map(|(id, logprob)| (*id, spelled(*id), finite(*logprob))).collect());
    TokenPiece {
        id,
        bytes: token_bytes(tokenizer, id, special).to_vec(),
        logprob: logprobs.map(|logprobs| finite(logprobs.logprob)),
        top: top.unwrap_or_default(),
    }
}

fn finish(end: End) -> Finish {
    match end {
        End::Timeout => Finish::Timeout,
        End::Finish(finish) => match finish {
            engine::Finish::End { .. } | engine::Finish::Complete => Finish::End,
            engine::Finish::Stop { text } => Finish::Stop(text),
            engine::Finish::MaxTokens => Finish::MaxTokens,
            engine::Finish::ContextFull => Finish::ContextFull,
            engine::Finish::Dropped | engine::Finish::Cancelled => Finish::Cancelled,
        },
    }
}

fn usage(took: &TextUsage) -> Usage {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Usage {
        prompt_tokens: took.prompt_tokens as u64,
        cached_tokens: took.cached_tokens as u64,
        written_tokens: took.written_tokens as u64,
        accepted_guesses: took.guessed.accepted as u64,
        guesses: took.guessed.drafted as u64,
        waiting_ms: ms(took.waiting),
        reading_ms: ms(took.reading),
        writing_ms: ms(took.writing),
        seed: took.seed,
    }
}

fn failure(error: &TaskError) -> Failure {
    use crate::llama::Error as Llama;
    let kind = match error {
        TaskError::Busy { retry_after, .. } => FailureKind::Busy { retry_after: *retry_after },
        TaskError::TooLong { tokens, n_ctx, .. } => {
            FailureKind::TooLong { tokens: *tokens as u64, n_ctx: *n_ctx as u64 }
        }
        TaskError::Cancelled => FailureKind::Cancelled,
        TaskError::Timeout => FailureKind::Timeout,
        TaskError::Engine(engine::Error::Llama(Llama::NoTokens | Llama::Token { .. })) => FailureKind::Invalid,
        TaskError::Engine(engine::Error::Sample(crate::sample::Error::AllRuledOut)) => FailureKind::Invalid,
        TaskError::Engine(_) => FailureKind::Internal,
    };
    Failure { kind, message: error.to_string() }
}
