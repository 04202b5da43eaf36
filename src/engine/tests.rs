//! Generation on a model whose texts are known beforehand.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::fake::{Bytes, END, Fake, encode};
use super::*;
use crate::constrain::{Constraint, Grammar, Tokens};
use crate::llama::{self, Batch};
use crate::sample::{Params, Sampler, Temperature};

fn session(fake: Fake) -> Session<Fake> {
    Session::of(fake, &SessionOptions::default())
}

fn at_most(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens: Some(max_tokens), ..GenerateOptions::default() }
}

fn stopping_at(stop: &str) -> GenerateOptions {
    GenerateOptions { stop: vec![stop.to_string()], ..GenerateOptions::default() }
}

/// Always the most likely token, and every step as it came.
fn write(session: &mut Session<Fake>, prompt: &str, options: &GenerateOptions) -> (Generated, Vec<String>) {
    let mut sampler = Sampler::new(&Params::greedy()).unwrap();
    let mut steps = Vec::new();
    let written = generate(session, Writer::new(&mut sampler), &encode(prompt), options, |step| {
        steps.push(step.text.to_string());
        ControlFlow::Continue(())
    });
    (written.unwrap(), steps)
}

#[test]
fn a_text_ends_with_the_models_end_token() {
    let mut session = session(Fake::reciting(&["The river rises."]));
    let (written, steps) = write(&mut session, "The", &GenerateOptions::default());
    assert_eq!(written.text, " river rises.");
    assert_eq!(written.tokens, encode(" river rises."));
    assert_eq!(written.finish, Finish::End { token: END });
    assert_eq!(steps.concat(), written.text);
    assert_eq!((written.prompt_tokens, written.reused_tokens, written.evaluated_tokens), (3, 0, 13));
    assert_eq!(session.tokens(), encode("The river rises."));
    // An end token is as good as any other where that is asked for.
    let (written, _) = write(&mut session, "The", &GenerateOptions { ignore_end: true, ..at_most(15) });
    assert_eq!((written.tokens.len(), written.finish), (15, Finish::MaxTokens));
    assert_eq!(written.tokens[13..], [END, END]);
}

#[test]
fn a_stop_text_ends_a_text_and_is_not_part_of_it() {
    let fake = Fake::reciting(&["one two three"]);
    let (written, steps) = write(&mut session(fake.clone()), "o", &stopping_at("o th"));
    assert_eq!(written.text, "ne tw");
    assert_eq!(written.finish, Finish::Stop { text: "o th".to_string() });
    // Nothing of a stop text shows before it is complete.
    assert_eq!(steps.concat(), "ne tw");
    assert_eq!(written.tokens, encode("ne two th"));
    // What might have become one comes out at the end.
    let (written, steps) = write(&mut session(fake), "o", &stopping_at("three!"));
    assert_eq!((written.text.as_str(), written.finish), ("ne two three", Finish::End { token: END }));
    assert_eq!(steps.last().unwrap(), "three");
}

#[test]
fn characters_come_out_whole() {
    let fake = Fake::reciting(&["a 河 b"]);
    let (written, steps) = write(&mut session(fake.clone()), "a", &GenerateOptions::default());
    assert_eq!(
        (written.text.as_str(), steps.as_slice()),
        (" 河 b", &[" ", "", "河", " ", "b"].map(str::to_string)[..])
    );
    // Half a character at the very end is shown as broken.
    let (written, steps) = write(&mut session(fake), "a", &at_most(2));
    assert_eq!(
        (written.text.as_str(), steps.as_slice()),
        (" \u{fffd}", &[" ", "", "\u{fffd}"].map(str::to_string)[..])
    );
}

#[test]
fn limits_end_a_text() {
    let fake = Fake::reciting(&["abcdefghijklmnop"]);
    for n in [0, 1, 3] {
        let (written, _) = write(&mut session(fake.clone()), "ab", &at_most(n));
        assert_eq!((written.text.as_str(), written.finish), (&"cdefgh"[..n], Finish::MaxTokens));
    }
    // The last token is written but not read, so that it needs no room.
    let (written, _) = write(&mut session(Fake { n_ctx: 8, ..fake.clone() }), "ab", &GenerateOptions::default());
    assert_eq!((written.text.as_str(), written.finish), ("cdefghi", Finish::ContextFull));
    let mut sampler = Sampler::new(&Params::greedy()).unwrap();
    let mut tiny = session(Fake { n_ctx: 8, ..fake });
    let mut refused = |prompt: &str| {
        let go_on = |_: Step<'_>| ControlFlow::Continue(());
        generate(&mut tiny, Writer::new(&mut sampler), &encode(prompt), &at_most(1), go_on).unwrap_err()
    };
    assert!(matches!(refused(""), Error::Llama(llama::Error::NoTokens)));
    assert!(matches!(refused("abcdefghi"), Error::Llama(llama::Error::ContextFull { wanted: 9, n_ctx: 8 })));
}

#[test]
fn prompts_longer_than_a_batch_are_read_in_parts() {
    let text = "the old men say that it used to be stronger";
    let mut session = session(Fake::reciting(&[text]));
    let (written, _) = write(&mut session, &text[..37], &GenerateOptions::default());
    assert_eq!(written.text, text[37..]);
    assert_eq!(session.decoder().evaluations[..4], [16, 16, 5, 1]);
}

#[test]
fn a_cancelled_text_keeps_what_it_has_and_can_be_continued() {
    let text = "the water was cold";
    let mut session = session(Fake { cancel_after: Some(5), ..Fake::reciting(&[text]) });
    let (written, _) = write(&mut session, "the", &GenerateOptions::default());
    assert_eq!((written.text.as_str(), written.finish), (" wate", Finish::Cancelled));
    assert_eq!(session.tokens(), encode("the wat"));
    let (written, _) = write(&mut session, "the", &GenerateOptions::default());
    assert_eq!((written.text.as_str(), written.finish.clone(), written.prompt_tokens), ("", Finish::Cancelled, 2));
    session.decoder().cancel.store(false, std::sync::atomic::Ordering::Relaxed);
    let (written, _) = write(&mut session, "the wate", &GenerateOptions::default());
    assert_eq!(written.text, text[8..]);
}

#[test]
fn a_receiver_that_wants_no_more_ends_a_text() {
    let mut session = session(Fake::reciting(&["abcdef"]));
    let mut sampler = Sampler::new(&Params::greedy()).unwrap();
    let mut n = 0;
    let written = generate(&mut session, Writer::new(&mut sampler), &encode("a"), &stopping_at("d"), |_| {
        n += 1;
        // The third token completes the stop text.
        if n == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let written = written.unwrap();
    assert_eq!((written.text.as_str(), written.finish, n), ("bc", Finish::Dropped, 3));
}

#[test]
fn the_beginning_of_a_prompt_is_not_read_again() {
    let mut session = session(Fake::reciting(&["abcdefgh"]));
    write(&mut session, "abc", &at_most(2));
    let before = session.decoder().evaluations.len();
    let (written, _) = write(&mut session, "abcdef", &at_most(1));
    assert_eq!((written.text.as_str(), written.reused_tokens), ("g", 4));
    assert_eq!(session.decoder().evaluations[before..], [2]);
    // The last token is read in any case, for its logits.
    let (written, _) = write(&mut session, "abcd", &at_most(1));
    assert_eq!((written.text.as_str(), written.reused_tokens), ("e", 3));
    // A memory that cannot be truncated is read anew.
    let mut session = self::session(Fake { can_truncate: false, ..Fake::reciting(&["abcdefgh"]) });
    write(&mut session, "abc", &at_most(3));
    let (written, _) = write(&mut session, "abcd", &at_most(2));
    assert_eq!((written.text.as_str(), written.reused_tokens), ("ef", 0));
}

#[test]
fn each_token_has_its_log_probabilities() {
    let options = GenerateOptions { logprobs: Some(2), ..GenerateOptions::default() };
    let (written, _) = write(&mut session(Fake::reciting(&["abcd"])), "a", &options);
    assert_eq!(written.logprobs.len(), written.tokens.len());
    for (token, logprobs) in written.tokens.iter().zip(&written.logprobs) {
        assert_eq!((logprobs.top.len(), logprobs.top[0]), (2, (*token, logprobs.logprob)));
        assert!(logprobs.logprob < 0.0 && logprobs.logprob > -0.1, "{logprobs:?}");
    }
}

#[test]
fn log_probabilities_after_sampling_are_those_that_tokens_are_drawn_with() {
    let fake = Fake::reciting(&["abcd"]);
    let before = GenerateOptions { logprobs: Some(3), ignore_end: true, ..at_most(9) };
    let after = GenerateOptions { after_sampling: true, ..before.clone() };
    let written = |params: &Params, options: &GenerateOptions| {
        let (mut session, mut sampler) = (session(fake.clone()), Sampler::new(params).unwrap());
        let go_on = |_: Step<'_>| ControlFlow::Continue(());
        generate(&mut session, Writer::new(&mut sampler), &encode("a"), options, go_on).unwrap()
    };
    let temperature = Temperature::fixed(9.0);
    let params = Params { top_k: 2, top_p: 1.0, min_p: 0.0, temperature, seed: Some(5), ..Params::default() };
    let told = written(&params, &after);
    assert_eq!(told.logprobs.len(), 9);
    for (token, logprobs) in told.tokens.iter().zip(&told.logprobs) {
        let [first, second] = logprobs.top[..] else { panic!("{logprobs:?}") };
        assert!(first.1 >= second.1 && (first.1.exp() + second.1.exp() - 1.0).abs() < 1e-9, "{logprobs:?}");
        assert!([first, second].contains(&(*token, logprobs.logprob)), "{logprobs:?}");
    }
    // The text is the same.
    assert_eq!(told.tokens, written(&params, &before).tokens);
    // Without a draw, nothing else could have been chosen.
    let greedy = written(&Params::greedy(), &after);
    for (token, logprobs) in greedy.tokens.iter().zip(&greedy.logprobs) {
        assert_eq!(*logprobs, TokenLogprobs { logprob: 0.0, top: vec![(*token, 0.0)] });
    }
    // As many as there are.
    let one = written(&params, &GenerateOptions { logprobs: Some(1), ..after });
    assert!(one.logprobs.iter().zip(&told.logprobs).all(|(one, told)| one.top == told.top[..1]));
}

#[test]
fn a_mask_decides_over_the_model() {
    let tokens = Arc::new(Tokens::new(&Bytes::new()).unwrap());
    // The model would write "bcd".
    let mut constraint = Constraint::new(&Grammar::regex("x(b|y)z?").unwrap(), &tokens).unwrap();
    let mut session = session(Fake::reciting(&["abcd"]));
    let mut sampler = Sampler::new(&Params::greedy()).unwrap();
    let writer = Writer { constraint: Some(&mut constraint), ..Writer::new(&mut sampler) };
    let written =
        generate(&mut session, writer, &encode("a"), &GenerateOptions::default(), |_| ControlFlow::Continue(()));
    let written = written.unwrap();
    assert!(["xb", "xy", "xbz", "xyz"].contains(&written.text.as_str()), "{}", written.text);
    assert!(matches!(written.finish, Finish::Complete | Finish::End { .. }), "{:?}", written.finish);
}

/// The text, how drafting went, and how many evaluations it took after that of the prompt.
fn drafted(fake: &Fake, mut draft: Draft, prompt: &str, options: &GenerateOptions) -> (Generated, usize) {
    let mut session = session(fake.clone());
    let mut sampler = Sampler::new(&Params::greedy()).unwrap();
    let writer = Writer { draft: Some(&mut draft), ..Writer::new(&mut sampler) };
    let mut held = String::new();
    let written = generate(&mut session, writer, &encode(prompt), options, |step| {
        held.push_str(step.text);
        ControlFlow::Continue(())
    });
    let written = written.unwrap();
    assert_eq!(held, written.text);
    // Guesses that were wrong are not left in memory.
    let whole = encode(prompt).into_iter().chain(written.tokens.iter().copied()).collect::<Vec<_>>();
    assert!(whole.starts_with(session.tokens()), "{:?}", session.tokens());
    (written, session.decoder().evaluations.len() - encode(prompt).len().div_ceil(fake.n_batch))
}

/// Four guesses each time.
const FOUR: DraftOptions = DraftOptions { max: 4, min: 4, p_min: 0.0 };

fn guessing_with(fake: Fake) -> Draft {
    Draft::with_decoder(Box::new(fake), &SessionOptions::default(), 0.1, FOUR)
}

#[test]
fn right_guesses_save_evaluations_and_wrong_ones_change_nothing() {
    let text = "the king of France said that the king of France said that the king of Spain said nothing";
    let fake = Fake::reciting(&[text]);
    for options in [GenerateOptions::default(), at_most(17), stopping_at("Spain")] {
        let (plain, _) = write(&mut session(fake.clone()), "the king", &options);
        let same = |written: &Generated| {
            assert_eq!((&written.text, &written.tokens, &written.finish), (&plain.text, &plain.tokens, &plain.finish));
        };
        let (by_ngram, n) = drafted(&fake, Draft::ngram(FOUR).unwrap(), "the king", &options);
        same(&by_ngram);
        let found = by_ngram.speculation.unwrap();
        assert!(found.accepted <= found.drafted && found.evaluations == n, "{found:?}");
        let (by_twin, n) = drafted(&fake, guessing_with(fake.clone()), "the king", &options);
        same(&by_twin);
        let found = by_twin.speculation.unwrap();
        // Where the text ends, the last guesses are not decided on.
        assert!(found.accepted + 4 >= found.drafted && n * 4 < plain.tokens.len() + 8, "{found:?} in {n} evaluations");
        let stranger = guessing_with(Fake::new(|_| u32::from('x')));
        let (by_stranger, n) = drafted(&fake, stranger, "the king", &options);
        same(&by_stranger);
        let found = by_stranger.speculation.unwrap();
        assert!(found.accepted == 0 && found.drafted > 0 && n == found.evaluations, "{found:?}");
    }
    // Guesses need no more room than there is.
    let small = Fake { n_ctx: 20, ..fake.clone() };
    let (plain, _) = write(&mut session(small.clone()), "the king", &GenerateOptions::default());
    let (guessed, _) = drafted(&small, guessing_with(fake), "the king", &GenerateOptions::default());
    assert_eq!((guessed.text, guessed.finish), (plain.text, Finish::ContextFull));
}

#[test]
fn nothing_is_drafted_for_a_memory_that_cannot_be_truncated() {
    let mut session = session(Fake { can_truncate: false, ..Fake::reciting(&["abc"]) });
    let mut sampler = Sampler::new(&Params::greedy()).unwrap();
    let mut draft = Draft::ngram(FOUR).unwrap();
    let writer = Writer { draft: Some(&mut draft), ..Writer::new(&mut sampler) };
    let result = generate(&mut session, writer, &encode("a"), &at_most(1), |_| ControlFlow::Continue(()));
    assert!(matches!(result, Err(Error::Draft(DraftError::TargetCannotTruncate))));
}

#[test]
fn generations_share_a_decoder_and_each_writes_what_it_writes_alone() {
    let fake = Fake::reciting(&["one river in the hills", "two days to the sea", "3"]);
    let prompts = ["one", "two days", "3"];
    let alone: Vec<String> = prompts
        .iter()
        .map(|prompt| write(&mut session(fake.clone()), prompt, &GenerateOptions::default()).0.text)
        .collect();

    let mut decoder = fake;
    let mut batch = Batch::default();
    let mut samplers = [(); 3].map(|()| Sampler::new(&Params::greedy()).unwrap());
    let mut sequences = [0, 1, 2].map(Sequence::new);
    let mut generations: Vec<Generation> = prompts
        .iter()
        .zip(&mut samplers)
        .map(|(prompt, sampler)| {
            Generation::new(decoder.tokenizer(), &encode(prompt), 64, &GenerateOptions::default(), sampler)
        })
        .collect();
    let mut rows = [0; 3];
    while generations.iter().any(|generation| generation.finish().is_none()) {
        let mut kept = [None; 3];
        let slots = generations.iter_mut().zip(&mut samplers).zip(&mut sequences);
        for (i, ((generation, sampler), sequence)) in slots.enumerate() {
            let action = generation.step(&mut Writer::new(sampler), LogitRows::new(&decoder, rows[i])).unwrap();
            if let Action::Evaluate { known, .. } = action {
                kept[i] = Some(sequence.keep_beginning(&mut decoder, generation.text(), known));
            }
        }
        let mut shares = Vec::new();
        let mut owners = Vec::new();
        for (i, sequence) in sequences.iter_mut().enumerate() {
            if let Some(kept) = kept[i] {
                shares.push(Share { sequence, tokens: &generations[i].text()[kept..], logits: Logits::Last });
                owners.push(i);
            }
        }
        if !shares.is_empty() {
            let first_rows = evaluate_together(&mut decoder, &mut batch, &mut shares).unwrap();
            owners.into_iter().zip(first_rows).for_each(|(owner, row)| rows[owner] = row);
        }
    }
    let together: Vec<String> = generations.into_iter().map(|generation| generation.into_parts().2).collect();
    assert_eq!(together, alone);
    // The prompts, and then a token of each that goes on.
    assert_eq!(decoder.evaluations[..3], [12, 2, 2]);
}
