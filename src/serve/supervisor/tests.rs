//! Engines that are tasks of the test.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::serve::protocol;

/// What an engine of a test does with a task.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    /// Answers with how often engines were started.
    Answer,
    /// Answers only when it is cancelled.
    Wait,
    /// Ends.
    End,
}

/// Starts engines that do with each text what its name says. Some of the first ones do not even load.
pub struct Fake {
    started: AtomicUsize,
    /// How many of the first ones do not load.
    broken: usize,
    heard: Arc<Mutex<Vec<ToEngine>>>,
}

impl Fake {
    pub fn new(broken: usize) -> Arc<Self> {
        Arc::new(Self { started: AtomicUsize::new(0), broken, heard: Arc::default() })
    }

    fn started(&self) -> usize {
        self.started.load(Ordering::SeqCst)
    }
}

struct FakeProcess {
    ended: Option<oneshot::Receiver<String>>,
    work: tokio::task::JoinHandle<()>,
}

impl Process for FakeProcess {
    fn ended(&mut self) -> Boxed<'_, String> {
        Box::pin(async {
            match self.ended.as_mut() {
                Some(ended) => ended.await.unwrap_or_else(|_| "was ended by signal 9".to_string()),
                None => unreachable!(),
            }
        })
    }

    fn kill(&mut self) {
        self.work.abort();
    }
}

impl Drop for FakeProcess {
    fn drop(&mut self) {
        self.work.abort();
    }
}

impl Launch for Fake {
    fn launch(&self) -> std::io::Result<Launched> {
        let number = self.started.fetch_add(1, Ordering::SeqCst) + 1;
        let (input, theirs) = tokio::io::duplex(1 << 16);
        let (output, ours) = tokio::io::duplex(1 << 16);
        let (tell, ended) = oneshot::channel();
        let (loads, heard) = (number > self.broken, self.heard.clone());
        let work = tokio::spawn(async move {
            let how = work(theirs, ours, number, loads, heard).await;
            let _ = tell.send(how);
        });
        let process = Box::new(FakeProcess { ended: Some(ended), work });
        Ok(Launched { input: Box::new(input), output: Box::new(output), process })
    }
}

async fn say(to: &mut DuplexStream, message: FromEngine) {
    let mut bytes = Vec::new();
    protocol::write(&mut bytes, &message).unwrap();
    let _ = to.write_all(&bytes).await;
}

async fn work(
    mut from: DuplexStream,
    mut to: DuplexStream,
    number: usize,
    loads: bool,
    heard: Arc<Mutex<Vec<ToEngine>>>,
) -> String {
    say(&mut to, FromEngine::Loading(0.5)).await;
    if !loads {
        say(&mut to, FromEngine::Failed { reason: "no memory".to_string() }).await;
        return "ended with exit status 1".to_string();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    say(&mut to, FromEngine::Ready(Box::default())).await;
    loop {
        let mut length = [0; 4];
        if from.read_exact(&mut length).await.is_err() {
            return "ended".to_string();
        }
        let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
        from.read_exact(&mut bytes).await.unwrap();
        let message: ToEngine = serde_json::from_slice(&bytes).unwrap();
        heard.lock().unwrap().push(message.clone());
        match message {
            ToEngine::Cancel { id } => {
                say(&mut to, FromEngine::To { id, answer: failed(FailureKind::Cancelled, "stopped") }).await;
            }
            ToEngine::Do { id, task: Task::Decode { tokens } } => match tokens.as_slice() {
                [0] => say(&mut to, FromEngine::To { id, answer: Answer::Text(number.to_string()) }).await,
                [1] => {}
                _ => return "was ended by signal 6".to_string(),
            },
            ToEngine::Do { id, .. } => {
                say(&mut to, FromEngine::To { id, answer: Answer::Status(Box::default()) }).await;
            }
        }
    }
}

fn ask(engine: &Engine, does: Does) -> Answers {
    engine.submit(Task::Decode { tokens: vec![does as u32] })
}

async fn answer(mut answers: Answers) -> Answer {
    let answer = answers.next().await.unwrap();
    assert_eq!(answers.next().await, None);
    answer
}

fn text(answer: Answer) -> String {
    let Answer::Text(text) = answer else { panic!("{answer:?}") };
    text
}

fn failure(answer: Answer) -> Failure {
    let Answer::Failed(failure) = answer else { panic!("{answer:?}") };
    failure
}

#[tokio::test(start_paused = true)]
async fn an_engine_starts_with_the_first_task_and_ends_when_idle() {
    let fake = Fake::new(0);
    let idle = Some(Duration::from_secs(60));
    let engine = Engine::new(fake.clone(), Limits { idle, ..Limits::default() });
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!((fake.started(), engine.state().borrow().clone()), (0, State::Unloaded));
    let answers = ask(&engine, Does::Answer);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(*engine.state().borrow(), State::Loading(0.5));
    assert_eq!(text(answer(answers).await), "1");
    assert!(matches!(*engine.state().borrow(), State::Ready(_)));
    // A task that takes longer keeps it.
    let long = ask(&engine, Does::Wait);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(matches!(*engine.state().borrow(), State::Ready(_)));
    drop(long);
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert!(matches!(*engine.state().borrow(), State::Ready(_)));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(*engine.state().borrow(), State::Unloaded);
    assert_eq!(text(answer(ask(&engine, Does::Answer)).await), "2");
}

#[tokio::test(start_paused = true)]
async fn what_a_client_drops_is_cancelled() {
    let fake = Fake::new(0);
    let engine = Engine::new(fake.clone(), Limits::default());
    let (_first, second) = (ask(&engine, Does::Wait), ask(&engine, Does::Wait));
    assert_eq!(text(answer(ask(&engine, Does::Answer)).await), "1");
    drop(second);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fake.heard.lock().unwrap().last(), Some(&ToEngine::Cancel { id: 1 }));
    // One that has ended needs no cancelling.
    let n = fake.heard.lock().unwrap().len();
    drop(ask(&engine, Does::Answer).next().await);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fake.heard.lock().unwrap().len(), n + 1);
}

#[tokio::test(start_paused = true)]
async fn an_end_costs_the_tasks_in_it_an_error_and_others_a_wait() {
    let fake = Fake::new(0);
    let engine = Engine::new(fake.clone(), Limits::default());
    for round in 1..=20 {
        let hit: Vec<Answers> = (0..16).map(|_| ask(&engine, Does::Wait)).collect();
        assert_eq!(text(answer(ask(&engine, Does::Answer)).await), round.to_string());
        let fatal = ask(&engine, Does::End);
        for answers in hit.into_iter().chain([fatal]) {
            let failure = failure(answer(answers).await);
            assert_eq!(failure.kind, FailureKind::Died);
            assert_eq!(failure.message, "the engine was ended by signal 6; the request can be sent again");
        }
        // It is started again without being asked.
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(matches!(*engine.state().borrow(), State::Loading(_)), "{:?}", engine.state().borrow());
        assert_eq!((fake.started(), engine.restarts()), (round + 1, round as u64));
    }
}

#[tokio::test(start_paused = true)]
async fn what_ends_again_and_again_is_left_alone_for_a_while() {
    let fake = Fake::new(7);
    let engine = Engine::new(fake.clone(), Limits::default());
    let begun = Instant::now();
    let said = failure(answer(ask(&engine, Does::Answer)).await);
    assert_eq!(said.kind, FailureKind::Unavailable);
    assert_eq!(
        said.message,
        "the model cannot be used: the engine could not load the model: no memory, 5 times in a row; it is tried again \
         after 60 seconds"
    );
    // Pauses of 0, 1, 2 and 4 seconds.
    assert_eq!((fake.started(), begun.elapsed().as_secs()), (5, 7));
    let state = engine.state().borrow().clone();
    assert!(matches!(state, State::Broken { ends: 5, is_loop: true, .. }), "{state:?}");
    // Nothing is tried meanwhile, and the answer comes at once.
    let asked = Instant::now();
    assert_eq!(failure(answer(ask(&engine, Does::Answer)).await).kind, FailureKind::Unavailable);
    assert_eq!((fake.started(), asked.elapsed().as_secs()), (5, 0));
    for tries in [6, 7] {
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(failure(answer(ask(&engine, Does::Answer)).await).kind, FailureKind::Unavailable);
        assert_eq!(fake.started(), tries);
    }
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(text(answer(ask(&engine, Does::Answer)).await), "8");
    // What works has no past.
    assert_eq!(failure(answer(ask(&engine, Does::End)).await).kind, FailureKind::Died);
    assert_eq!(text(answer(ask(&engine, Does::Answer)).await), "9");
}

#[tokio::test(start_paused = true)]
async fn only_so_many_wait_for_a_model_to_load() {
    let engine = Engine::new(Fake::new(0), Limits { waiting: 3, ..Limits::default() });
    let mut all: Vec<Answers> = (0..5).map(|_| ask(&engine, Does::Answer)).collect();
    for answers in all.split_off(3) {
        assert_eq!(failure(answer(answers).await).kind, FailureKind::Busy { retry_after: 5 });
    }
    for answers in all {
        assert_eq!(text(answer(answers).await), "1");
    }
}

#[tokio::test(start_paused = true)]
async fn unloading_waits_for_the_tasks() {
    let fake = Fake::new(0);
    let engine = Engine::new(fake.clone(), Limits::default());
    let long = ask(&engine, Does::Wait);
    assert_eq!(text(answer(ask(&engine, Does::Answer)).await), "1");
    let (other, begun) = (engine.clone(), Instant::now());
    let unloaded = tokio::spawn(async move { other.unload().await });
    tokio::time::sleep(Duration::from_secs(5)).await;
    drop(long);
    unloaded.await.unwrap();
    assert_eq!((begun.elapsed().as_secs(), engine.state().borrow().clone()), (5, State::Unloaded));
    engine.unload().await;
    engine.load();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(matches!(*engine.state().borrow(), State::Ready(_)));
    // All handles gone: so is the engine.
    let heard = Arc::downgrade(&fake.heard);
    let state = engine.state();
    drop(engine);
    drop(fake);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(state.has_changed().is_err() && heard.upgrade().is_none());
}
