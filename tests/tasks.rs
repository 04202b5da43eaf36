//! Tasks on the tiny Yi: many texts at once against one at a time, runs that go on where they were, real files.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::Instant;

use nibble::chat::{self, Origin, Prompt};
use nibble::engine::{Branch, Error, Loglikelihoods, Session, SessionOptions};
use nibble::evaluate::tasks::{Ask, Identity, Kept, QuestionResult, RunOptions, Task, TaskOptions, run, score};
use nibble::llama::{self, Model, ModelOptions};

use crate::support;

fn yi_nano() -> Model {
    static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tasks-yi-nano.gguf");
        support::convert(&support::yi_nano(), &file, &["-q", "F32", "--force"])
    });
    Model::load(&FILE, ModelOptions::default()).unwrap()
}

fn tokens(text: &str, model: &Model) -> Vec<u32> {
    let mut prompt = Prompt::default();
    prompt.push(text, Origin::Message);
    chat::encode(&prompt, model.tokenizer()).unwrap()
}

/// The plain way: each text alone, every probability by its definition.
fn alone(model: &Model, branch: &Branch) -> f64 {
    let options = SessionOptions { rows: 1, n_ctx: Some(512), ..support::exact() };
    let mut session = Session::new(model, &options).unwrap();
    let mut sum = 0.0;
    let read = &branch.tokens[..branch.tokens.len() - 1];
    let each = |index: usize, logits: &[f32]| {
        let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        sum += f64::from(logits[branch.tokens[index + 1] as usize]) - total.ln();
    };
    session.eval_each(read, branch.from - 1, each).unwrap();
    sum
}

/// Texts as tasks have them: examples before all, questions, answers of one token and more, one answer that begins
/// another, the same answer twice, and one text that shares nothing.
fn texts(model: &Model) -> Vec<Branch> {
    let examples = "Question: What is red?\nAnswer: A rose.\n\nQuestion: What is blue?\nAnswer: The sky.\n\n";
    let mut branches = Vec::new();
    for question in ["What is green?", "What does the old man with the little dog want?", "宋江是谁？"] {
        let context = format!("{examples}Question: {question}\nAnswer:");
        let from = tokens(&context, model).len();
        for answer in [" A", " A tree", " A tree and a very long river in the south", " 梁山泊的头领", " A tree"]
        {
            branches.push(Branch { tokens: tokens(&format!("{context}{answer}"), model), from });
        }
    }
    branches.push(Branch { tokens: tokens("Once upon a time there was a girl.", model), from: 1 });
    // The whole text is scored of one that begins as the others.
    branches.push(Branch { tokens: branches[0].tokens.clone(), from: 1 });
    branches.push(branches[1].clone());
    branches
}

#[test]
fn many_texts_at_once_are_as_likely_as_each_alone_however_they_are_batched() {
    let model = yi_nano();
    let branches = texts(&model);
    let wanted: Vec<f64> = branches.iter().map(|branch| alone(&model, branch)).collect();
    let mut evaluated = Vec::new();
    for (n_ctx, n_batch, rows, together) in
        [(512, 512, 128, 64), (256, 7, 7, 64), (256, 64, 3, 3), (4096, 512, 1, 5), (512, 100, 100, 1), (256, 1, 1, 64)]
    {
        let options = SessionOptions { n_ctx: Some(n_ctx), n_batch, rows, ..support::exact() };
        let mut context = Loglikelihoods::with_sequences(&model, &options, together).unwrap();
        for _ in 0..2 {
            let mut got = Vec::new();
            let each = |index: usize, sum: f64| {
                assert_eq!(index, got.len());
                got.push(sum);
                ControlFlow::Continue(())
            };
            context.log_likelihoods(&branches, each).unwrap();
            assert_eq!(got.len(), wanted.len());
            for (index, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
                assert!((got - wanted).abs() < 1e-4, "{n_ctx} {n_batch} {together}: text {index}: {got}, {wanted}");
            }
        }
        evaluated.push(context.evaluated() / 2);
    }
    let all: u64 = branches.iter().map(|branch| branch.tokens.len() as u64 - 1).sum();
    assert!(evaluated[0] * 3 < all, "shared beginnings are read once: {} of {all}", evaluated[0]);
}

#[test]
fn what_llama_cpp_would_end_the_process_over_is_refused() {
    let model = yi_nano();
    let options = SessionOptions { n_ctx: Some(256), ..support::exact() };
    let mut context = Loglikelihoods::new(&model, &options).unwrap();
    let mut ask = |tokens: Vec<u32>, from: usize| {
        context.log_likelihoods(&[Branch { tokens, from }], |_, _| ControlFlow::Continue(()))
    };
    assert!(matches!(ask(vec![6400, 1], 1), Err(Error::Llama(llama::Error::Token { token: 6400, .. }))));
    assert!(matches!(ask(vec![5, 5], 0), Err(Error::Llama(llama::Error::NoTokens))));
    assert!(matches!(ask(vec![5, 5], 2), Err(Error::Llama(llama::Error::NoTokens))));
    assert!(matches!(ask(Vec::new(), 1), Err(Error::Llama(llama::Error::NoTokens))));
    assert!(matches!(ask(vec![5; 258], 1), Err(Error::Llama(llama::Error::ContextFull { wanted: 257, .. }))));
    ask(vec![5; 257], 1).unwrap();
    options.cancel.store(true, Ordering::Relaxed);
    assert!(matches!(ask(vec![5; 3], 1), Err(Error::Cancelled)));
    options.cancel.store(false, Ordering::Relaxed);
    ask(vec![5; 3], 1).unwrap();
}

const QUIZ: &str = r#"{"sentence": "The cup missed the box as the _ was big.", "option1": "cup", "option2": "box", "answer": "2"}
{"sentence": "Tom gave Ann a ball because _ asked for it.", "option1": "Tom", "option2": "Ann", "answer": "2"}
{"sentence": "The girl sang to the cat until the _ slept well.", "option1": "girl", "option2": "cat", "answer": "2"}
{"sentence": "The king sent the boy home, for the _ was tired of him.", "option1": "king", "option2": "boy", "answer": "1"}
"#;

fn quiz(shots: u32) -> Task {
    let dir = support::folder();
    let path = dir.path().join("quiz.jsonl");
    std::fs::write(&path, QUIZ).unwrap();
    Task::open(&path, &TaskOptions { shots: Some(shots), ..TaskOptions::default() }).unwrap()
}

fn exact() -> RunOptions {
    RunOptions { session: SessionOptions { n_ctx: Some(512), ..support::exact() }, together: None }
}

#[test]
fn a_task_is_scored_as_by_hand_and_goes_on_where_it_was_interrupted() {
    let model = yi_nano();
    let task = quiz(1);
    let whole = run(&task, &model, &exact(), &[], |_| Ok(())).unwrap();
    assert!(!whole.interrupted);
    assert_eq!(whole.results.iter().map(|r| r.index).collect::<Vec<_>>(), [1, 2, 3]);
    for (result, question) in whole.results.iter().zip(&task.questions) {
        let Ask::Choose(choices) = &question.ask else { panic!() };
        let by_hand: Vec<f64> = choices
            .iter()
            .map(|choice| {
                let context = format!("{}{}", task.prefix, choice.context);
                let from = tokens(&context, &model).len();
                alone(&model, &Branch { tokens: tokens(&format!("{context} {}", choice.text), &model), from })
            })
            .collect();
        let chosen = usize::from(by_hand[1] > by_hand[0]);
        assert_eq!((result.chosen, result.right), (Some(chosen), choices[chosen].right));
        for (got, wanted) in result.log_likelihoods.iter().zip(&by_hand) {
            assert!((got - wanted).abs() < 1e-4, "{got} {wanted}");
        }
    }
    let right = whole.results.iter().filter(|result| result.right).count();
    assert_eq!(score(task.format.scores, &whole.results, None, 0.95).scores[0].1.value, right as f64 / 3.0);

    // The flag is set after the first result, and a file keeps what was there.
    let dir = support::folder();
    let path = dir.path().join("kept.jsonl");
    let identity = Identity::new(&task, "nano", &model.fingerprint().unwrap(), "exact");
    let (mut kept, ..) = Kept::open(&path, &identity).unwrap();
    let mut one = exact();
    one.together = Some(1);
    let cancel = one.session.cancel.clone();
    let stopped = run(&task, &model, &one, &[], |result| {
        cancel.store(true, Ordering::Relaxed);
        kept.add(result)
    });
    let stopped = stopped.unwrap();
    assert!(stopped.interrupted);
    assert_eq!(stopped.results.len(), 1);
    drop(kept);
    let (_, done, note) = Kept::open(&path, &identity).unwrap();
    assert_eq!((&done, note), (&stopped.results, None));
    let mut asked = Vec::new();
    let rest = run(&task, &model, &exact(), &done, |result| {
        asked.push(result.index);
        Ok(())
    });
    assert_eq!(asked, [2, 3]);
    let same = |a: &QuestionResult, b: &QuestionResult| a.index == b.index && a.chosen == b.chosen;
    assert!(rest.unwrap().results.iter().zip(&whole.results).all(|(a, b)| same(a, b)));
    let full = run(&task, &model, &exact(), &[], |_| Err(io::Error::other("disk full")));
    assert!(full.unwrap_err().to_string().contains("cannot keep a result: disk full"));
}

#[test]
fn questions_longer_than_the_context_lose_their_beginning() {
    let model = yi_nano();
    let dir = support::folder();
    let path = dir.path().join("long.jsonl");
    std::fs::write(&path, QUIZ.replace("The cup", &format!("{} The cup", "Once upon a time. ".repeat(200)))).unwrap();
    let task = Task::open(&path, &TaskOptions { shots: Some(0), ..TaskOptions::default() }).unwrap();
    let mut options = exact();
    options.session.n_ctx = Some(256);
    let ran = run(&task, &model, &options, &[], |_| Ok(())).unwrap();
    assert_eq!(ran.results.iter().map(|r| r.shortened).collect::<Vec<_>>(), [true, false, false, false]);
    let long = QUIZ.replace("was big.", &"was big. ".repeat(300));
    std::fs::write(&path, long).unwrap();
    let task = Task::open(&path, &TaskOptions { shots: Some(0), ..TaskOptions::default() }).unwrap();
    let error = run(&task, &model, &options, &[], |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("long.jsonl, line 1: an answer has"), "{error}");
}

#[test]
fn answers_are_written_where_a_task_asks_for_that() {
    let model = yi_nano();
    let dir = support::folder();
    let path = dir.path().join("sums.jsonl");
    std::fs::write(&path, "{\"question\": \"Ann has 2 cups. How many?\", \"answer\": \"She has 2.\\n#### 2\"}\n")
        .unwrap();
    let task = Task::open(&path, &TaskOptions { shots: Some(0), ..TaskOptions::default() }).unwrap();
    let first = run(&task, &model, &exact(), &[], |_| Ok(())).unwrap();
    let again = run(&task, &model, &exact(), &[], |_| Ok(())).unwrap();
    assert!(first.results[0].text.as_ref().is_some_and(|text| !text.is_empty()));
    assert_eq!(first.results, again.results);
}

#[test]
fn real_questions_of_the_gaokao_are_read_and_answered() {
    let path = support::data("agieval/gaokao-history.jsonl");
    let task = Task::open(&path, &TaskOptions { limit: Some(4), ..TaskOptions::default() }).unwrap();
    assert_eq!((task.format.name, task.questions.len()), ("agieval", 4));
    let ran = run(&task, &yi_nano(), &exact(), &[], |_| Ok(())).unwrap();
    assert_eq!(ran.results.len(), 4);
}

#[test]
#[ignore = "a measurement; needs the tasks in ../shared/data"]
fn measure_tasks() {
    let model = yi_nano();
    for name in ["hellaswag_val_first400.txt", "agieval/gaokao-history.jsonl", "agieval/lsat-lr.jsonl"] {
        let path = support::shared(&format!("tasks/{name}"));
        let task = Task::open(&path, &TaskOptions::default()).unwrap();
        let mut seconds = Vec::new();
        for together in [None, Some(1)] {
            let options = RunOptions { session: SessionOptions::default(), together };
            let start = Instant::now();
            let ran = run(&task, &model, &options, &[], |_| Ok(())).unwrap();
            seconds.push(start.elapsed().as_secs_f64());
            let scores = score(task.format.scores, &ran.results, None, 0.95).scores;
            println!(
                "{name} {together:?}: {} tokens, {:.1} s, {scores:?}",
                ran.evaluated_tokens,
                seconds.last().unwrap()
            );
        }
        println!("{name}: {:.2} times as fast", seconds[1] / seconds[0]);
    }
}
