//! Turns of a conversation through the library, without a terminal, on the tiny Yi that comes with the tests.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};

use nibble::chat::{Conversation, Template};
use nibble::constrain::{Constraint, Grammar, Tokens};
use nibble::engine::{Assistant, Event, Session, SessionOptions, TurnEnd, TurnError, TurnOptions};
use nibble::llama::{Model, ModelOptions};
use nibble::sample::Params;

use crate::support;

/// `yi-nano`, converted once.
fn yi_nano() -> &'static Path {
    static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("turn-yi-nano.gguf");
        support::convert(&support::yi_nano(), &file, &["-q", "F16", "--force"])
    });
    &FILE
}

/// A `yi-nano` that never ends a text, converted once.
fn endless() -> &'static Path {
    static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("turn-endless");
        // What an earlier run left would be in the way.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        crate::chat::endless(&folder)
    });
    &FILE
}

fn assistant(file: &Path, options: TurnOptions) -> Assistant {
    let session = SessionOptions { n_ctx: Some(512), n_batch: 64, threads: Some(1), ..SessionOptions::default() };
    let model = Model::load(file, ModelOptions::default()).unwrap();
    let template = Template::from_metadata(model.metadata()).unwrap();
    Assistant::new(Session::new(&model, &session).unwrap(), template, options).unwrap()
}

fn greedy(max_tokens: usize) -> TurnOptions {
    TurnOptions { params: Params::greedy(), max_tokens: Some(max_tokens), stop: Vec::new() }
}

/// Always the same text, with more variety than greedy decoding has.
fn seeded(max_tokens: usize) -> TurnOptions {
    TurnOptions { params: Params { seed: Some(1), ..Params::default() }, ..greedy(max_tokens) }
}

fn asked(text: &str) -> Conversation {
    let mut conversation = Conversation::default();
    conversation.ask(text);
    conversation
}

fn ignore(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn the_events_of_a_turn_tell_how_far_reading_is_and_the_whole_answer() {
    let mut assistant = assistant(yi_nano(), greedy(12));
    let mut conversation = asked(&"Once upon a time there was a king. ".repeat(24));
    let expected = assistant.prompt_tokens(&conversation).unwrap();
    let (mut events, mut text) = (Vec::new(), String::new());
    let answer = assistant
        .answer(&mut conversation, &mut |event: Event<'_>| {
            match event {
                Event::Text(piece) => text.push_str(piece),
                Event::Reading { done, total } => events.push(format!("{done}/{total}")),
                other => events.push(format!("{other:?}")),
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(matches!(answer.end, TurnEnd::MaxTokens), "{:?}", answer.end);
    assert_eq!(conversation.last_answer(), Some(text.as_str()));
    assert!(expected > 128, "several batches");
    let steps = (0..expected).step_by(64).chain([expected]).map(|done| format!("{done}/{expected}"));
    let wanted: Vec<String> = ["Begin".to_string()].into_iter().chain(steps).chain(["End".to_string()]).collect();
    assert_eq!(events, wanted);
    let stats = answer.stats;
    assert_eq!((stats.reused_tokens, stats.read_tokens, stats.written_tokens), (0, expected, 12));

    // The next turn reads only what is new.
    let held = assistant.session().tokens().len();
    conversation.ask("And then?");
    let answer = assistant.answer(&mut conversation, &mut ignore).unwrap();
    assert_eq!(answer.stats.reused_tokens, held);
}

#[test]
fn a_sink_can_stop_a_turn_at_any_event() {
    let before = asked("Tell me a story.");
    for stop_at in ["Begin", "Reading { done: 0"] {
        let mut conversation = before.clone();
        let error = assistant(yi_nano(), greedy(5))
            .answer(&mut conversation, &mut |event: Event<'_>| {
                if format!("{event:?}").starts_with(stop_at) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
            .unwrap_err();
        assert!(matches!(error, TurnError::Cancelled), "{stop_at}: {error}");
        assert_eq!(conversation, before);
    }
    let mut conversation = before.clone();
    let mut text = String::new();
    let answer = assistant(yi_nano(), greedy(50))
        .answer(&mut conversation, &mut |event: Event<'_>| match event {
            Event::Text(piece) => {
                text.push_str(piece);
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        })
        .unwrap();
    assert!(matches!(answer.end, TurnEnd::Dropped), "{:?}", answer.end);
    assert!(answer.stats.written_tokens < 10 && !text.is_empty());
    assert_eq!(conversation.last_answer(), Some(text.as_str()));
}

#[test]
fn a_cancelled_turn_leaves_the_conversation_as_it_was() {
    let mut assistant = assistant(yi_nano(), greedy(5));
    let mut conversation = asked("Tell me a story.");
    assistant.answer(&mut conversation, &mut ignore).unwrap();
    let before = conversation.clone();
    let cancel = assistant.session().cancel().clone();
    cancel.store(true, Ordering::Relaxed);
    assert!(matches!(assistant.continue_answer(&mut conversation, &mut ignore), Err(TurnError::Cancelled)));
    assert_eq!(conversation, before, "the answer that was to be continued is still there");
    conversation.ask("Another one.");
    let before = conversation.clone();
    assert!(matches!(assistant.answer(&mut conversation, &mut ignore), Err(TurnError::Cancelled)));
    assert_eq!(conversation, before);
    cancel.store(false, Ordering::Relaxed);
    assert!(assistant.answer(&mut conversation, &mut ignore).is_ok());
    let mut unanswered = asked("Hi.");
    assert!(matches!(assistant.continue_answer(&mut unanswered, &mut ignore), Err(TurnError::NoAnswer)));
    assert_eq!(unanswered, asked("Hi."));
}

#[test]
fn an_answer_continues_as_if_it_had_never_been_cut() {
    let mut whole = asked("Tell me a story.");
    assistant(yi_nano(), greedy(24)).answer(&mut whole, &mut ignore).unwrap();
    let mut pieces = asked("Tell me a story.");
    let mut assistant = assistant(yi_nano(), greedy(8));
    assistant.answer(&mut pieces, &mut ignore).unwrap();
    for _ in 0..2 {
        assistant.continue_answer(&mut pieces, &mut ignore).unwrap();
    }
    assert_eq!(pieces, whole);
}

#[test]
fn a_prompt_that_cannot_fit_is_refused_with_its_size() {
    let mut assistant = assistant(yi_nano(), greedy(100));
    let mut conversation = asked(&"Once upon a time. ".repeat(200));
    let size = assistant.prompt_tokens(&conversation).unwrap();
    match assistant.answer(&mut conversation, &mut ignore) {
        Err(TurnError::TooLong { tokens, n_ctx: 512, least: 16 }) => assert_eq!(tokens, size),
        other => panic!("{other:?}"),
    }
    assert!(conversation.last_answer().is_none());
}

#[test]
fn an_answer_outlasts_the_context_while_there_is_something_to_forget() {
    let mut assistant = assistant(endless(), seeded(100));
    let mut conversation = Conversation::default();
    for question in ["One.", "Two.", "Three."] {
        conversation.ask(question);
        assistant.answer(&mut conversation, &mut ignore).unwrap();
    }
    assistant.set_options(seeded(400)).unwrap();
    conversation.ask("Four.");
    let (mut forgotten, mut text) = (0, String::new());
    let answer = assistant
        .answer(&mut conversation, &mut |event: Event<'_>| {
            match event {
                Event::Forgot { turns } => forgotten += turns,
                Event::Text(piece) => text.push_str(piece),
                _ => {}
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(matches!(answer.end, TurnEnd::MaxTokens), "{:?}", answer.end);
    assert_eq!(answer.stats.written_tokens, 400);
    assert!(forgotten > 0);
    assert_eq!((answer.forgotten_turns, conversation.n_forgotten()), (forgotten, forgotten));
    assert_eq!(conversation.n_turns(), 4, "what is forgotten is kept");
    assert_eq!(conversation.last_answer(), Some(text.as_str()));

    // With nothing left to forget, the answer ends with the context.
    conversation.clear();
    conversation.ask("Five.");
    assistant.set_options(TurnOptions { max_tokens: None, ..seeded(1) }).unwrap();
    let answer = assistant.answer(&mut conversation, &mut ignore).unwrap();
    assert!(matches!(answer.end, TurnEnd::ContextFull), "{:?}", answer.end);
    assert_eq!(answer.forgotten_turns, 0);
}

#[test]
fn a_stop_text_is_found_across_a_context_that_fills_up() {
    // Two turns: the answer to the second outlasts the context, and the first turn is forgotten on the way.
    let written = |stop: Option<&str>| {
        let mut assistant = assistant(endless(), seeded(150));
        let mut conversation = asked("One.");
        assistant.answer(&mut conversation, &mut ignore).unwrap();
        conversation.ask("Two.");
        assistant
            .set_options(TurnOptions { stop: stop.iter().map(|s| s.to_string()).collect(), ..seeded(450) })
            .unwrap();
        let (mut text, mut filled_at) = (String::new(), None);
        let answer = assistant
            .answer(&mut conversation, &mut |event: Event<'_>| {
                match event {
                    Event::Forgot { .. } => filled_at = Some(text.len()),
                    Event::Text(piece) => text.push_str(piece),
                    _ => {}
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(conversation.last_answer(), Some(text.as_str()));
        (text, filled_at, answer)
    };
    let (text, filled_at, answer) = written(None);
    let filled_at = filled_at.expect("the context fills up");
    assert!(matches!(answer.end, TurnEnd::MaxTokens), "{:?}", answer.end);
    // The shortest text around that point that has not come up before.
    let boundary = |at: usize| text.is_char_boundary(at);
    let (start, end) = (1..)
        .map(|reach| (filled_at - reach * 4, filled_at + reach * 4))
        .map(|(start, end)| {
            ((0..=start).rev().find(|at| boundary(*at)).unwrap(), (end..).find(|at| boundary(*at)).unwrap())
        })
        .find(|&(start, end)| text.find(&text[start..end]) == Some(start))
        .unwrap();
    let (stopped, filled_again, answer) = written(Some(&text[start..end]));
    assert!(matches!(answer.end, TurnEnd::Complete), "{:?}", answer.end);
    assert_eq!(stopped, text[..start]);
    assert!(filled_again.is_some(), "it stopped after the context had filled up");
}

#[test]
fn every_answer_begins_its_grammar_anew_and_a_continued_one_goes_on_in_it() {
    let grammar = Grammar::regex("[a-z]{6}\\.").unwrap();
    let assistant = assistant(yi_nano(), seeded(2));
    let tokens = Arc::new(Tokens::new(assistant.model().tokenizer()).unwrap());
    let constraint = Constraint::new(&grammar, &tokens).unwrap();
    let mut assistant = assistant.with_constraint(Some(constraint));
    let mut conversation = Conversation::default();
    for question in ["Who is it?", "And who else?"] {
        conversation.ask(question);
        let mut answer = assistant.answer(&mut conversation, &mut ignore).unwrap();
        let mut continued = 0;
        while !answer.is_complete {
            assert!(matches!(answer.end, TurnEnd::MaxTokens), "{:?}", answer.end);
            answer = assistant.continue_answer(&mut conversation, &mut ignore).unwrap();
            continued += 1;
            assert!(continued < 10);
        }
        let text = conversation.last_answer().unwrap();
        assert!(continued > 0 && text.len() == 7 && text.ends_with('.'), "{text:?}");
        assert!(text[..6].bytes().all(|byte| byte.is_ascii_lowercase()), "{text:?}");
    }
}
