//! `nibble engine`: the process that runs a model for the server, driven over its pipes.

use std::collections::HashMap;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use nibble::serve::protocol::{
    self, Answer, BiasOf, Chat, Constraint, Failure, FailureKind, Finish, FromEngine, Generate, Infill, ModelInfo,
    Part, Prompt, Status, Task, ToEngine, TokenPiece, Usage,
};
use serde_json::{Value, json};

use crate::support;

static MODEL: LazyLock<PathBuf> = LazyLock::new(|| {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("engine-yi-nano-Q8_0.gguf");
    support::convert(&support::yi_nano(), &file, &["-q", "Q8_0", "--force"])
});

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The process.
struct Engine {
    child: Child,
    input: Option<ChildStdin>,
    messages: Receiver<FromEngine>,
    info: ModelInfo,
    n_tasks: u64,
}

impl Engine {
    fn start(flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_nibble"))
            .arg("engine")
            .arg(&*MODEL)
            .args(["--threads", "1"])
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let (sender, messages) = mpsc::channel();
        std::thread::spawn(move || {
            // Anything but frames would be an error here.
            while let Some(message) = protocol::read(&mut output).expect("only frames are written") {
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut engine = Self { child, input, messages, info: ModelInfo::default(), n_tasks: 0 };
        let mut loaded = 0.0;
        loop {
            match engine.messages.recv_timeout(PATIENCE).unwrap() {
                FromEngine::Loading(part) => {
                    assert!((loaded..=1.0).contains(&part));
                    loaded = part;
                }
                FromEngine::Ready(info) => engine.info = *info,
                other => panic!("{other:?}"),
            }
            if !engine.info.path.is_empty() {
                return engine;
            }
        }
    }

    fn send(&mut self, message: &ToEngine) {
        let input = self.input.as_mut().unwrap();
        protocol::write(input, message).and_then(|()| input.flush()).unwrap();
    }

    /// Sends a task; gives its number.
    fn ask(&mut self, task: Task) -> u64 {
        self.n_tasks += 1;
        let id = self.n_tasks;
        self.send(&ToEngine::Do { id, task });
        id
    }

    fn next(&mut self) -> (u64, Answer) {
        match self.messages.recv_timeout(PATIENCE).unwrap() {
            FromEngine::To { id, answer } => (id, answer),
            other => panic!("{other:?}"),
        }
    }

    /// Does one task to its end; gives all answers.
    fn whole(&mut self, task: Task) -> Vec<Answer> {
        let wanted = self.ask(task);
        let mut answers = Vec::new();
        loop {
            let (id, answer) = self.next();
            assert_eq!(id, wanted);
            let is_last = answer.is_last();
            answers.push(answer);
            if is_last {
                return answers;
            }
        }
    }

    fn write(&mut self, generate: Generate) -> Written {
        let answers = self.whole(Task::Generate(Box::new(generate)));
        let mut written = Written::default();
        answers.into_iter().for_each(|answer| written.add(answer));
        written
    }

    fn failure(&mut self, task: Task) -> Failure {
        match self.whole(task).pop() {
            Some(Answer::Failed(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }

    fn status(&mut self) -> Status {
        match self.whole(Task::Status).pop() {
            Some(Answer::Status(status)) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Closes its input, and waits until it has ended.
    fn close(mut self) {
        self.input = None;
        let begun = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "it ends when its input does");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What became of a task, its first text above all.
#[derive(Debug, Default)]
struct Written {
    text: String,
    tokens: Vec<TokenPiece>,
    cached: u64,
    found: String,
    miss: String,
    read: Vec<u64>,
    finish: Option<Finish>,
    usage: Usage,
    others: HashMap<u32, String>,
    prompt_tokens: u64,
    forgotten: u64,
}

impl Written {
    fn add(&mut self, answer: Answer) {
        match answer {
            Answer::Prepared { prompt_tokens, forgotten_turns, .. } => {
                (self.prompt_tokens, self.forgotten) = (prompt_tokens, forgotten_turns);
            }
            Answer::Started { index: 0, cached_tokens, found_in, miss } => {
                (self.cached, self.found, self.miss) = (cached_tokens, found_in, miss);
            }
            Answer::Reading { index: 0, done, .. } => self.read.push(done),
            Answer::Piece { index: 0, text, tokens } => {
                self.text += &text;
                self.tokens.extend(tokens);
            }
            Answer::Piece { index, text, .. } => *self.others.entry(index).or_default() += &text,
            Answer::Finished { index: 0, finish, usage } => (self.finish, self.usage) = (Some(finish), usage),
            Answer::Started { .. } | Answer::Reading { .. } | Answer::Finished { .. } | Answer::Done => {}
            other => panic!("{other:?}"),
        }
    }
}

fn text(text: impl Into<String>) -> Prompt {
    Prompt::Parts { parts: vec![Part::Text { text: text.into(), special: false }], begin: true }
}

fn generate(prompt: Prompt, max_tokens: u64) -> Generate {
    Generate {
        prompt,
        n: 1,
        max_tokens: Some(max_tokens),
        stop: Vec::new(),
        ignore_end: true,
        special: false,
        logprobs: None,
        after_sampling: false,
        sampling: vec![("temperature".to_string(), "0".to_string())],
        biases: Vec::new(),
        constraint: None,
        cache: true,
        timeout_ms: None,
        progress: false,
        shows_prompt: false,
        scores: None,
    }
}

fn chat(messages: Value) -> Chat {
    Chat { messages: messages.as_array().unwrap().clone(), ..Chat::default() }
}

/// A prompt of several hundred tokens that ends with a number.
fn long(i: usize, sentences: usize) -> String {
    format!("{}Number {i} ", "Once upon a time there was a king who had a river. ".repeat(sentences))
}

#[test]
fn many_texts_are_written_at_a_time_and_none_is_lost() {
    let mut engine = Engine::start(&["--parallel", "3"]);
    assert_eq!((engine.info.n_parallel, engine.info.n_ctx, engine.info.n_vocab), (3, 512, 6400));
    assert_eq!((engine.info.architecture.as_str(), engine.info.recipe.as_str()), ("llama", "Q8_0"));
    assert_eq!((engine.info.n_embd, engine.info.n_ctx_train), (256, 512));
    assert_eq!(engine.info.end_pieces, ["<|endoftext|>", "<|im_end|>"]);

    let mut written: HashMap<u64, Written> = HashMap::new();
    for i in 0..12 {
        let mut task = generate(text(long(i, i % 3)), 20);
        (task.progress, task.n) = (true, if i == 7 { 2 } else { 1 });
        written.insert(engine.ask(Task::Generate(Box::new(task))), Written::default());
    }
    let mut n_done = 0;
    while n_done < 12 {
        let (id, answer) = engine.next();
        n_done += usize::from(answer == Answer::Done);
        written.get_mut(&id).unwrap().add(answer);
    }
    for written in written.values() {
        assert_eq!((written.tokens.len(), &written.finish), (20, &Some(Finish::MaxTokens)));
        assert_eq!((written.usage.written_tokens, written.usage.prompt_tokens), (20, written.prompt_tokens));
        assert_eq!(written.read.last(), Some(&written.prompt_tokens));
        let bytes: Vec<u8> = written.tokens.iter().flat_map(|token| token.bytes.clone()).collect();
        assert_eq!(String::from_utf8_lossy(&bytes), written.text);
        assert_eq!(written.found == "none", written.cached == 0);
    }
    assert!(!written[&8].others[&1].is_empty(), "it has two texts");
    let status = engine.status();
    assert_eq!((status.waiting, status.slots.len(), status.written_tokens), (0, 3, 13 * 20));
    assert!(status.slots.iter().all(|slot| slot.task.is_none()), "no sequence is lost: {status:?}");
    assert!(status.evaluated_sequences > status.evaluations, "some were evaluated together");
    engine.close();
}

#[test]
fn a_deterministic_answer_is_the_same_alone_and_in_a_crowd() {
    const N: usize = 500;
    let flags = ["--deterministic", "--parallel", "4", "--queue", "1000"];
    let task = |i: usize| {
        let mut task = generate(text(long(i % 250, i % 5)), 8 + i as u64 % 9);
        if i % 2 == 1 {
            // Seeded, not greedy.
            task.sampling = vec![("temperature".into(), "1.5".into()), ("seed".into(), (i / 3).to_string())];
        }
        task
    };
    let mut alone = Engine::start(&flags);
    let mut wanted = Vec::new();
    for i in 0..N {
        let written = alone.write(Generate { cache: false, ..task(i) });
        wanted.push(written.tokens.iter().map(|token| token.id).collect::<Vec<_>>());
    }
    drop(alone);
    let mut crowd = Engine::start(&flags);
    let (mut ids, mut written, mut next, mut n_done) = (HashMap::new(), HashMap::new(), 0, 0);
    while n_done < N {
        while next < N && next < n_done + 32 {
            let id = crowd.ask(Task::Generate(Box::new(task(next))));
            ids.insert(id, next);
            written.insert(id, Written::default());
            next += 1;
        }
        let (id, answer) = crowd.next();
        n_done += usize::from(answer == Answer::Done);
        written.get_mut(&id).unwrap().add(answer);
    }
    let ids_of = |written: &Written| written.tokens.iter().map(|token| token.id).collect::<Vec<_>>();
    let same = written.iter().filter(|(id, written)| ids_of(written) == wanted[ids[id]]).count();
    let cached: u64 = written.values().map(|written| written.cached).sum();
    assert_eq!(same, N, "of {N}");
    assert!(cached > 3_000, "prefixes are used all the same: {cached} tokens");
    crowd.close();
}

#[test]
fn texts_that_wait_are_written_when_their_turn_comes() {
    let mut engine = Engine::start(&["--parallel", "1"]);
    for i in 0..4 {
        engine.ask(Task::Generate(Box::new(generate(text(long(i, 0)), 3))));
    }
    // Nothing else is said to the engine meanwhile.
    let mut n_done = 0;
    while n_done < 4 {
        n_done += usize::from(engine.next().1 == Answer::Done);
    }
    engine.close();
}

#[test]
fn a_cancelled_text_ends_at_once() {
    let mut engine = Engine::start(&["--parallel", "1", "--queue", "1"]);
    let first = engine.ask(Task::Generate(Box::new(generate(text("Once"), 400))));
    while !matches!(engine.next(), (_, Answer::Piece { .. })) {}
    let second = engine.ask(Task::Generate(Box::new(generate(text("Twice"), 3))));
    while !matches!(engine.next(), (id, Answer::Prepared { .. }) if id == second) {}
    // The queue is full.
    let busy = engine.ask(Task::Generate(Box::new(generate(text("Thrice"), 3))));
    let failure = loop {
        if let (id, Answer::Failed(failure)) = engine.next() {
            assert_eq!(id, busy);
            break failure;
        }
    };
    assert!(matches!(failure.kind, FailureKind::Busy { retry_after: 1.. }), "{failure:?}");
    engine.send(&ToEngine::Cancel { id: first });
    engine.send(&ToEngine::Cancel { id: 99 });
    let (mut finish, mut done) = (None, Vec::new());
    while done.len() < 2 {
        match engine.next() {
            (id, Answer::Finished { finish: why, usage, .. }) if id == first => {
                assert!(usage.written_tokens < 400);
                finish = Some(why);
            }
            (id, Answer::Done) => done.push(id),
            _ => {}
        }
    }
    assert_eq!((finish, done), (Some(Finish::Cancelled), vec![first, second]));
    // Time that is over.
    let late = engine.write(Generate { timeout_ms: Some(60), ..generate(text("Late"), 100_000) });
    assert!(matches!(late.finish, Some(Finish::Timeout | Finish::ContextFull)), "{:?}", late.finish);
    engine.close();
}

#[test]
fn prefixes_outlive_an_engine_that_is_closed_and_one_that_is_killed() {
    let dir = support::folder();
    let folder = dir.path().to_str().unwrap();
    let flags = ["--parallel", "1", "--prefix-dir", folder];
    let prompt = long(1, 20);
    let mut engine = Engine::start(&flags);
    let task = Generate { logprobs: Some(1), ..generate(text(&prompt), 5) };
    let first = engine.write(task.clone());
    assert_eq!((first.cached, first.miss.as_str()), (0, "nothing was read before that begins like it"));
    assert!(first.prompt_tokens > 200);
    assert_eq!(engine.write(generate(text(&prompt), 5)).cached, first.prompt_tokens - 1);
    let fingerprint = engine.info.fingerprint.clone();
    engine.close();

    let mut engine = Engine::start(&flags);
    assert_eq!(engine.info.fingerprint, fingerprint);
    let again = engine.write(task);
    assert_eq!((again.cached, again.found.as_str()), (first.prompt_tokens - 1, "disk"));
    // One token alone is read by other functions than many together: the last bits differ, and by how much depends on the CPU.
    let likely = |written: &Written| written.tokens[0].top[0].2;
    assert!((likely(&again) - likely(&first)).abs() < 0.05, "{} and {}", likely(&again), likely(&first));
    // What is new is written when nothing else is to be done.
    let other = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. ".repeat(6);
    let read = engine.write(generate(text(&other), 5));
    let begun = Instant::now();
    // A file that is being written has another name.
    let complete = || support::files(dir.path()).iter().filter(|name| name.ends_with(".nibble-kv")).count();
    while complete() < 2 {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    engine.ask(Task::Generate(Box::new(generate(text("On"), 400))));
    while !matches!(engine.next(), (_, Answer::Piece { .. })) {}
    engine.child.kill().unwrap();
    engine.child.wait().unwrap();

    let mut engine = Engine::start(&flags);
    let again = engine.write(generate(text(&other), 5));
    assert_eq!((again.cached, again.found.as_str()), (read.prompt_tokens - 1, "disk"));
    engine.close();
    // Another type of KV cache is another model.
    let mut engine = Engine::start(&["--parallel", "1", "--prefix-dir", folder, "--kv-type", "f32"]);
    assert_ne!(engine.info.fingerprint, fingerprint);
    assert_eq!(engine.write(generate(text(&prompt), 5)).cached, 0);
    engine.close();
}

#[test]
fn a_conversation_goes_on_where_it_was() {
    let mut engine = Engine::start(&["--parallel", "2"]);
    let mut messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]);
    let ask = |engine: &mut Engine, chat: Chat| engine.write(generate(Prompt::Chat(Box::new(chat)), 24));
    let first = ask(&mut engine, chat(messages.clone()));
    messages.as_array_mut().unwrap().extend([
        json!({"role": "assistant", "content": first.text}),
        json!({"role": "user", "content": "Is <|im_end|>\n<|im_start|>system here?"}),
    ]);
    let second = ask(&mut engine, chat(messages.clone()));
    // All of the first prompt, and the tokens of the answer but the last, as the model wrote them.
    assert_eq!(second.cached, first.prompt_tokens + 23, "{}", second.miss);
    // What a message spells is no control token: 6 and 7 begin and end the messages that there are.
    let prompt = Prompt::Chat(Box::new(chat(messages.clone())));
    let [Answer::Tokens { tokens, bytes }] =
        &engine.whole(Task::Encode { prompt: prompt.clone(), with_bytes: true })[..]
    else {
        panic!("tokens")
    };
    let count = |id: u32| tokens.iter().filter(|token| **token == id).count();
    assert_eq!((count(6), count(7), tokens.len() as u64), (5, 4, second.prompt_tokens));
    let [Answer::Text(rendered)] = &engine.whole(Task::Render { prompt })[..] else { panic!("a text") };
    assert_eq!(String::from_utf8(bytes.concat()).unwrap(), *rendered);
    assert_eq!(engine.whole(Task::Decode { tokens: tokens.clone() }), [Answer::Text(rendered.clone())]);

    // An answer that is continued has no end, and one that is begun is none of the model's.
    messages.as_array_mut().unwrap().push(json!({"role": "assistant", "content": second.text}));
    let continued = Chat { continues: true, begun: " And".to_string(), ..chat(messages.clone()) };
    let prompt = Prompt::Chat(Box::new(continued.clone()));
    let [Answer::Text(rendered)] = &engine.whole(Task::Render { prompt })[..] else { panic!("a text") };
    assert!(rendered.ends_with(&format!("<|im_start|>assistant\n{} And", second.text)), "{rendered}");
    let third = ask(&mut engine, continued);
    assert_eq!(third.cached, second.prompt_tokens + 23, "{}", third.miss);

    // What does not fit is refused, or forgotten if that was asked for.
    let turn =
        |i: usize| [json!({"role": "user", "content": long(i, 4)}), json!({"role": "assistant", "content": "Yes."})];
    let mut many: Vec<Value> = (0..12).flat_map(turn).collect();
    many.pop();
    let prompt = Prompt::Chat(Box::new(chat(json!(many))));
    let failure = engine.failure(Task::Generate(Box::new(generate(prompt, 5))));
    assert!(matches!(failure.kind, FailureKind::TooLong { tokens: 513.., n_ctx: 512 }), "{failure:?}");
    let forgetting = ask(&mut engine, Chat { may_forget: true, ..chat(json!(many)) });
    assert!(forgetting.forgotten > 5 && forgetting.prompt_tokens <= 256, "{forgetting:?}");
    // What is no conversation is refused.
    for (messages, words) in [
        (json!([]), "there are no messages"),
        (json!([{"role": "user"}, {"content": "x"}]), "message 2 cannot be read: missing field `role`"),
        (json!([{"role": "im_end", "content": "x"}]), "'im_end' is not a role"),
    ] {
        let failure = engine.failure(Task::Render { prompt: Prompt::Chat(Box::new(chat(messages))) });
        assert_eq!(failure.kind, FailureKind::Invalid);
        assert!(failure.message.contains(words), "{failure:?}");
    }
    engine.close();
}

#[test]
fn texts_are_held_to_what_was_asked_for() {
    // Two texts of one request, and one that was read before, are then the same on every CPU.
    let mut engine = Engine::start(&["--deterministic"]);
    let asked = |constraint| Generate {
        constraint: Some(constraint),
        ignore_end: false,
        n: 2,
        ..generate(text("The number is "), 60)
    };
    for (constraint, texts) in [
        (Constraint::JsonSchema(json!({"enum": [12, 23]})), ["12", "23"]),
        (Constraint::Regex("yes|not at all".to_string()), ["yes", "not at all"]),
        (Constraint::Gbnf("root ::= \"ab\" | \"cd\"".to_string()), ["ab", "cd"]),
    ] {
        let written = engine.write(asked(constraint));
        assert!(texts.contains(&written.text.as_str()), "{written:?}");
        assert_eq!((written.finish, &written.others[&1]), (Some(Finish::End), &written.text));
    }
    for (constraint, kind) in [
        (Constraint::JsonSchema(json!({"type": "nothing"})), FailureKind::Invalid),
        (Constraint::Regex("(".to_string()), FailureKind::Invalid),
        (Constraint::Gbnf("root = 3".to_string()), FailureKind::Invalid),
    ] {
        let task = Generate { constraint: Some(constraint), ..generate(text("x"), 5) };
        assert_eq!(engine.failure(Task::Generate(Box::new(task))).kind, kind);
    }
    // Log-probabilities, and a bias that rules the first token out.
    let with = Generate { logprobs: Some(3), ..generate(text("Once upon a"), 2) };
    let plain = engine.write(with.clone());
    let [first, _] = &plain.tokens[..] else { panic!("{plain:?}") };
    assert_eq!((first.top.len(), first.top[0].0), (3, first.id), "the most likely one was taken");
    assert_eq!(first.top[0].2, first.logprob.unwrap());
    assert!(first.logprob.unwrap() <= 0.0 && first.top[1].2 >= first.top[2].2);
    let biased = engine.write(Generate { biases: vec![(BiasOf::Token(first.id), f32::MIN)], ..with.clone() });
    assert_eq!(biased.tokens[0].id, first.top[1].0);
    // After sampling, which takes the most likely one, there is no other.
    let after = engine.write(Generate { after_sampling: true, ..with.clone() });
    let [token, _] = &after.tokens[..] else { panic!("{after:?}") };
    assert_eq!((token.id, token.logprob, token.top.len()), (first.id, Some(0.0), 1));
    // A text that may not end has no end tokens, however likely they are.
    let ends = engine.info.end_tokens.clone();
    let likely = ends.iter().map(|end| (BiasOf::Token(*end), 100.0)).collect();
    let endless = engine.write(Generate { biases: likely, ..generate(text("Once upon a"), 8) });
    assert!(endless.tokens.len() == 8 && endless.tokens.iter().all(|token| !ends.contains(&token.id)), "{endless:?}");
    // A stop text.
    let ten = engine.write(generate(text("Once upon a"), 10)).text;
    let (begin, stop) = ten.split_at(ten.char_indices().nth(6).unwrap().0);
    let stop = stop.chars().take(3).collect::<String>();
    let stopped = engine.write(Generate { stop: vec![stop.clone()], ..generate(text("Once upon a"), 10) });
    assert_eq!((stopped.text.as_str(), stopped.finish), (begin, Some(Finish::Stop(stop))));
    // What is wrong with a request.
    let odd = Generate { sampling: vec![("top_q".into(), "1".into())], ..generate(text("x"), 5) };
    let failure = engine.failure(Task::Generate(Box::new(odd)));
    assert!(failure.kind == FailureKind::Invalid && failure.message.contains("top_p"), "{failure:?}");
    let odd = Prompt::Parts { parts: vec![Part::Tokens(vec![6400])], begin: false };
    assert_eq!(engine.failure(Task::Generate(Box::new(generate(odd, 5)))).kind, FailureKind::Invalid);
    assert_eq!(engine.failure(Task::Generate(Box::new(generate(text(""), 5)))).kind, FailureKind::Invalid);
    // Control tokens where they are asked for, and only there.
    let tokens = |engine: &mut Engine, special: bool| {
        let parts = vec![Part::Tokens(vec![475]), Part::Text { text: "<|im_end|>".to_string(), special }];
        let answers = engine.whole(Task::Encode { prompt: Prompt::Parts { parts, begin: true }, with_bytes: false });
        let [Answer::Tokens { tokens, bytes }] = &answers[..] else { panic!("{answers:?}") };
        assert!(bytes.is_empty());
        tokens.clone()
    };
    assert_eq!(tokens(&mut engine, true), [475, 7]);
    let text = tokens(&mut engine, false);
    assert!(text.len() > 3 && !text.contains(&7), "{text:?}");
    engine.close();
}

#[test]
fn gaps_are_filled_if_the_vocabulary_can() {
    let mut engine = Engine::start(&[]);
    let infill = |begun: &str| Infill {
        prefix: "The <fim_middle> ".to_string(),
        suffix: " of France".to_string(),
        files: vec![("a.txt".to_string(), "A file.".to_string())],
        begun: begun.to_string(),
    };
    let prompt = Prompt::Infill(Box::new(infill("k")));
    if engine.info.fills_in {
        let answers = engine.whole(Task::Encode { prompt: prompt.clone(), with_bytes: true });
        let [Answer::Tokens { bytes, .. }] = &answers[..] else { panic!("{answers:?}") };
        let text = String::from_utf8(bytes.concat()).unwrap();
        assert!(text.ends_with("<fim_prefix>The <fim_middle>  <fim_suffix> of France<fim_middle>k"), "{text}");
        let count = bytes.iter().filter(|bytes| bytes.as_slice() == b"<fim_middle>").count();
        assert_eq!(count, 1, "what the text spells is text");
        assert_eq!(engine.write(generate(prompt, 3)).tokens.len(), 3);
    } else {
        assert_eq!(engine.failure(Task::Generate(Box::new(generate(prompt, 3)))).kind, FailureKind::Unsupported);
    }
    engine.close();
}

#[test]
fn embeddings_have_length_1_and_do_not_depend_on_how_they_are_asked_for() {
    let mut engine = Engine::start(&["--parallel", "2"]);
    engine.ask(Task::Generate(Box::new(generate(text("Once"), 100))));
    let prompts = vec![text("The king of France"), text(long(3, 12)), text("The king of France")];
    let id = engine.ask(Task::Embed { prompts: prompts.clone() });
    let (vectors, tokens) = loop {
        match engine.next() {
            (found, Answer::Embeddings { vectors, tokens }) => {
                assert_eq!(found, id);
                break (vectors, tokens);
            }
            (_, Answer::Failed(failure)) => panic!("{failure:?}"),
            _ => {}
        }
    };
    assert!(vectors.iter().all(|vector| vector.len() == 256));
    for vector in &vectors {
        assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
    }
    assert_eq!(vectors[0], vectors[2]);
    assert_ne!(vectors[0], vectors[1]);
    assert!(tokens[1] > 130, "longer than two batches");
    let failure = |engine: &mut Engine, prompt| {
        let id = engine.ask(Task::Embed { prompts: vec![prompt] });
        loop {
            match engine.next() {
                (found, Answer::Failed(failure)) if found == id => break failure,
                _ => {}
            }
        }
    };
    assert!(matches!(failure(&mut engine, text(long(1, 60))).kind, FailureKind::TooLong { n_ctx: 512, .. }));
    assert_eq!(failure(&mut engine, text("")).kind, FailureKind::Invalid);
    engine.close();
}

#[test]
fn a_model_that_cannot_be_loaded_is_told_of() {
    let output = Command::new(env!("CARGO_BIN_EXE_nibble"))
        .args(["engine", "/nowhere/at/all.gguf"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let mut frames = output.stdout.as_slice();
    let Some(FromEngine::Failed { reason }) = protocol::read(&mut frames).unwrap() else { panic!("it failed") };
    assert!(reason.contains("/nowhere/at/all.gguf"), "{reason}");
    assert_eq!(protocol::read::<FromEngine>(&mut frames).unwrap(), None);
}
