//! Guessing ahead: the text is the one that would have been written without.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};

use nibble::chat::{self, Message, Prompt, Template};
use nibble::engine;
use nibble::engine::{
    Draft, DraftOptions, Error, Finish, GenerateOptions, Generated, Logits, Session, SessionOptions, Writer,
};
use nibble::llama::{FlashAttention, KvType, Model, ModelOptions};
use nibble::sample::{Params, Sampler, Temperature};

use crate::support;

fn converted(recipe: &str) -> Model {
    let file = path(recipe);
    support::convert(&support::yi_nano(), &file, &["-q", recipe, "--force"]);
    Model::load(&file, ModelOptions::default()).unwrap()
}

fn path(recipe: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("speculation-yi-nano-{recipe}.gguf"))
}

/// `yi-nano` in 32-bit floats, which writes.
static MODEL: LazyLock<Model> = LazyLock::new(|| converted("F32"));
/// A good draft, and a poor one.
static Q4_0: LazyLock<Model> = LazyLock::new(|| converted("Q4_0"));
static Q2_K: LazyLock<Model> = LazyLock::new(|| converted("Q2_K"));

/// As exact as llama.cpp gets, so that a token read in company has the logits that it has alone, nearly to the last bit.
fn exact() -> SessionOptions {
    SessionOptions {
        kv_types: KvType::F32.into(),
        flash_attention: FlashAttention::Off,
        threads: Some(1),
        rows: 17,
        ..SessionOptions::default()
    }
}

#[derive(Clone, Copy, Debug)]
enum By {
    Ngram,
    Q4,
    Q2K,
    /// The model itself: as greedy as it is, every guess is right.
    Itself,
}

fn draft(by: By, options: DraftOptions) -> Draft {
    let model: &Model = match by {
        By::Ngram => return Draft::ngram(options).unwrap(),
        By::Q4 => &Q4_0,
        By::Q2K => &Q2_K,
        By::Itself => &MODEL,
    };
    Draft::model(&MODEL, model, &exact(), options).unwrap()
}

fn every_time(n: usize) -> DraftOptions {
    DraftOptions { max: n, min: n, p_min: 0.0 }
}

fn up_to(n: usize) -> DraftOptions {
    DraftOptions { max: n, min: 0, p_min: 0.0 }
}

fn encode(text: &str) -> Vec<u32> {
    chat::encode(&Prompt::plain(text), MODEL.tokenizer()).unwrap()
}

fn ask(text: &str) -> Vec<u32> {
    let template = Template::from_metadata(MODEL.metadata()).unwrap();
    let prompt = template.render(&[Message::new("user", text)], true, MODEL.tokenizer().markers()).unwrap();
    chat::encode(&prompt, MODEL.tokenizer()).unwrap()
}

fn prompts() -> Vec<Vec<u32>> {
    let repeated = "The cat sat on the mat. The dog sat on the mat. The cat sat on the mat. The dog sat";
    vec![
        encode("Once upon a time, there was a little"),
        encode("话说宋江"),
        encode("ROMEO:\n"),
        encode(repeated),
        ask("Tell me a story."),
        encode("1 2 3 4 5 6 1 2 3 4 5 6 1 2 3 4"),
    ]
}

fn go_on(_: engine::Step<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn write(
    prompt: &[u32],
    params: &Params,
    options: &GenerateOptions,
    session: &mut Session,
    draft: Option<&mut Draft>,
) -> Generated {
    let mut sampler = Sampler::new(params).unwrap();
    let writer = Writer { draft, ..Writer::new(&mut sampler) };
    engine::generate(session, writer, prompt, options, go_on).unwrap()
}

/// Fails unless both wrote the same; but for a tie, which the last bit of a sum may decide either way. Gives whether
/// there was none.
fn same_text(prompt: &[u32], plain: &Generated, guessed: &Generated, told: &str) -> bool {
    if plain.tokens == guessed.tokens {
        assert_eq!((&plain.finish, &plain.text), (&guessed.finish, &guessed.text), "{told}");
        return true;
    }
    let same = plain.tokens.iter().zip(&guessed.tokens).take_while(|(a, b)| a == b).count();
    let mut session = Session::new(&MODEL, &exact()).unwrap();
    session.eval(&[prompt, &plain.tokens[..same]].concat(), Logits::Last).unwrap();
    let logits = session.logits(0).unwrap();
    let of = |written: &Generated| logits[written.tokens[same] as usize];
    let gap = (of(plain) - of(guessed)).abs();
    assert!(gap < 1e-3, "{told}: {:?} and {:?}, whose logits differ by {gap}", plain.tokens, guessed.tokens);
    eprintln!("{told}: a tie at token {same}, logits {gap} apart");
    false
}

#[test]
fn the_most_likely_text_stays_the_same() {
    let (mut same, mut all) = (0, 0);
    for prompt in prompts() {
        for most in [1, 3, 60] {
            let options = GenerateOptions { max_tokens: Some(most), ignore_end: true, ..Default::default() };
            let mut session = Session::new(&MODEL, &exact()).unwrap();
            let plain = write(&prompt, &Params::greedy(), &options, &mut session, None);
            assert_eq!(plain.speculation, None);
            for by in [By::Ngram, By::Q4, By::Q2K] {
                for drafts in [every_time(1), every_time(5), up_to(16), DraftOptions { p_min: 0.4, ..up_to(8) }] {
                    let mut draft = draft(by, drafts);
                    let guessed = write(&prompt, &Params::greedy(), &options, &mut session, Some(&mut draft));
                    let told = format!("{by:?} {drafts:?} {most} tokens after {prompt:?}");
                    same += usize::from(same_text(&prompt, &plain, &guessed, &told));
                    all += 1;
                    assert_eq!(session.tokens(), [&prompt, &guessed.tokens[..most - 1]].concat(), "{told}");
                    let stats = guessed.speculation.unwrap();
                    assert!(stats.accepted <= stats.drafted, "{told}");
                    assert_eq!(stats.accepted + stats.evaluations, most - 1, "{told}");
                }
            }
        }
    }
    assert!(same * 50 >= all * 49, "{} of {all} texts had ties", all - same);
}

#[test]
fn good_guesses_save_evaluations() {
    let prompt = encode("Once upon a time, there was a little");
    let options = GenerateOptions { max_tokens: Some(100), ignore_end: true, ..Default::default() };
    let mut session = Session::new(&MODEL, &exact()).unwrap();
    let guessed = write(&prompt, &Params::greedy(), &options, &mut session, Some(&mut draft(By::Q4, every_time(4))));
    let stats = guessed.speculation.unwrap();
    assert!(stats.tokens_per_evaluation() > 2.0 && stats.acceptance() > 0.3, "{stats:?}");
    let guessed =
        write(&prompt, &Params::greedy(), &options, &mut session, Some(&mut draft(By::Itself, every_time(9))));
    let stats = guessed.speculation.unwrap();
    // 99 tokens read, 10 at a time, and what is left one by one.
    assert!(stats.evaluations <= 19 && stats.acceptance() > 0.99, "{stats:?}");
    // A text that repeats itself is guessed from itself.
    let prompt = encode(&"The cat sat on the mat. ".repeat(8));
    let guessed = write(&prompt, &Params::greedy(), &options, &mut session, Some(&mut draft(By::Ngram, every_time(6))));
    let stats = guessed.speculation.unwrap();
    assert!(stats.tokens_per_evaluation() > 1.5, "{stats:?}");
}

#[test]
fn a_seed_gives_the_same_text_where_guesses_come_from_the_text() {
    let options = GenerateOptions { max_tokens: Some(80), ..Default::default() };
    let mut accepted = 0;
    for prompt in prompts() {
        for seed in 0..3 {
            let params = Params { temperature: Temperature::fixed(0.7), seed: Some(seed), ..Params::default() };
            let mut session = Session::new(&MODEL, &exact()).unwrap();
            let plain = write(&prompt, &params, &options, &mut session, None);
            let mut draft = draft(By::Ngram, every_time(4));
            let guessed = write(&prompt, &params, &options, &mut session, Some(&mut draft));
            assert_eq!((plain.tokens, plain.finish), (guessed.tokens, guessed.finish), "seed {seed}");
            accepted += guessed.speculation.unwrap().accepted;
        }
    }
    assert!(accepted > 15, "{accepted} guesses were right");
}

#[test]
fn a_seed_gives_one_text_with_a_draft_model() {
    let prompt = encode("Once upon a time");
    let options = GenerateOptions { max_tokens: Some(60), ..Default::default() };
    let params = Params { seed: Some(11), ..Params::default() };
    let text = || {
        let mut session = Session::new(&MODEL, &exact()).unwrap();
        write(&prompt, &params, &options, &mut session, Some(&mut draft(By::Q2K, up_to(8)))).tokens
    };
    assert_eq!(text(), text());
}

/// The joint distribution of the first three tokens that `model` draws, by their ids.
fn joint(model: &Model, prompt: &[u32], params: &Params) -> Vec<([u32; 3], f64)> {
    let mut session = Session::new(model, &exact()).unwrap();
    let mut sampler = Sampler::new(params).unwrap();
    let mut next = |text: &[u32]| {
        sampler.begin(text);
        session.prefill(text).unwrap();
        let mut out = Vec::new();
        sampler.distribution(session.logits(0).unwrap(), None, &mut out).unwrap();
        out
    };
    let mut joint = Vec::new();
    for (a, p_a) in next(prompt) {
        for (b, p_b) in next(&[prompt, &[a]].concat()) {
            for (c, p_c) in next(&[prompt, &[a, b]].concat()) {
                joint.push(([a, b, c], p_a * p_b * p_c));
            }
        }
    }
    joint
}

/// Pearson's statistic of counts against the distribution they should come from, and the 99.99th percentile of
/// chi-squared. Rare outcomes are put together.
fn chi_squared(counts: impl Fn(&[u32; 3]) -> f64, wanted: &[([u32; 3], f64)], n: f64) -> (f64, f64) {
    let (mut cells, mut rest) = (Vec::new(), (0.0, 0.0));
    for (tokens, p) in wanted {
        if n * p >= 5.0 {
            cells.push((counts(tokens), n * p));
        } else {
            rest = (rest.0 + counts(tokens), rest.1 + n * p);
        }
    }
    if rest.1 > 1.0 {
        cells.push(rest);
    }
    let statistic = cells.iter().map(|(count, wanted)| (count - wanted).powi(2) / wanted).sum();
    let df = (cells.len() - 1) as f64;
    (statistic, df * (1.0 - 2.0 / (9.0 * df) + 3.719 * (2.0 / (9.0 * df)).sqrt()).powi(3))
}

#[test]
fn texts_that_are_drawn_keep_their_distribution() {
    const TEXTS: u32 = 1500;
    // It has been said before, so that there is something to look up.
    let prompt = encode(
        "Once there was a little girl. Once there was a boy. Once there was a big dog. Once there was a man. Once there was a",
    );
    let params = Params { temperature: Temperature::fixed(1.5), top_k: 5, top_p: 1.0, min_p: 0.0, ..Params::default() };
    let wanted = joint(&MODEL, &prompt, &params);
    let theirs = joint(&Q2_K, &prompt, &params);
    // The draft's own distribution is so different that it would be noticed.
    let of = |tokens: &[u32; 3]| theirs.iter().find(|(t, _)| t == tokens).map_or(0.0, |(_, p)| p * f64::from(TEXTS));
    let (statistic, limit) = chi_squared(of, &wanted, TEXTS.into());
    eprintln!("the draft alone: chi-squared {statistic:.1}, limit {limit:.1}");
    assert!(statistic > 2.0 * limit, "the draft is too good to tell");

    // One more, so that two can be guessed after the first.
    let options = GenerateOptions { max_tokens: Some(4), ignore_end: true, ..Default::default() };
    let mut session = Session::new(&MODEL, &exact()).unwrap();
    for by in [By::Q2K, By::Ngram] {
        let mut draft = draft(by, every_time(2));
        let mut sampler = Sampler::new(&Params { seed: Some(77), ..params.clone() }).unwrap();
        let mut counts = std::collections::HashMap::<[u32; 3], f64>::new();
        let mut drafted = 0;
        for _ in 0..TEXTS {
            let writer = Writer { draft: Some(&mut draft), ..Writer::new(&mut sampler) };
            let written = engine::generate(&mut session, writer, &prompt, &options, go_on).unwrap();
            *counts.entry(written.tokens[..3].try_into().unwrap()).or_default() += 1.0;
            drafted += written.speculation.unwrap().drafted;
        }
        let known: f64 = wanted.iter().filter_map(|(tokens, _)| counts.get(tokens)).sum();
        assert_eq!(known, f64::from(TEXTS), "{by:?}: a text that cannot be drawn");
        let (statistic, limit) = chi_squared(|t| counts.get(t).copied().unwrap_or(0.0), &wanted, TEXTS.into());
        assert!(statistic < limit, "{by:?}: chi-squared {statistic:.1}, limit {limit:.1}");
        assert!(drafted > TEXTS as usize / 8, "{by:?}: {drafted} tokens were guessed");
    }
}

/// Whatever ends a text, ends it at the same token, and leaves the same context.
#[test]
fn a_text_ends_where_it_would_have_ended() {
    let end = |written: &Generated| matches!(written.finish, Finish::End { .. });
    let (mut ends, mut stops, mut full) = (0, 0, 0);
    for (prompt, ends_itself) in
        [(ask("Tell me a story."), true), (encode("Once upon a time, there was a little"), false)]
    {
        for seed in 0..4 {
            let params = Params { temperature: Temperature::fixed(0.4), seed: Some(seed), ..Params::default() };
            let all = GenerateOptions { max_tokens: Some(if ends_itself { 400 } else { 40 }), ..Default::default() };
            let plain = write(&prompt, &params, &all, &mut Session::new(&MODEL, &exact()).unwrap(), None);
            let words: Vec<&str> = plain.text.split_whitespace().collect();
            let mut cases = vec![(all.clone(), 512, None)];
            for k in [3, 6, 11] {
                // A stop text across two words, a limit, a full context, a receiver that has enough, an interrupt.
                let stop = words[k..k + 2].join(" ");
                cases.push((GenerateOptions { stop: vec!["xyz".into(), stop], ..all.clone() }, 512, None));
                cases.push((GenerateOptions { max_tokens: Some(k), ..all.clone() }, 512, None));
                cases.push((all.clone(), prompt.len() as u32 + k as u32, None));
                cases.push((all.clone(), 512, Some((k, true))));
                cases.push((all.clone(), 512, Some((k, false))));
            }
            for (options, n_ctx, end_at) in cases {
                let run = |draft: Option<&mut Draft>| {
                    let session = SessionOptions { n_ctx: Some(n_ctx), cancel: Arc::default(), ..exact() };
                    let cancel = session.cancel.clone();
                    let mut session = Session::new(&MODEL, &session).unwrap();
                    let mut sampler = Sampler::new(&params).unwrap();
                    let (mut steps, mut text) = (0, String::new());
                    let writer = Writer { draft, ..Writer::new(&mut sampler) };
                    let written = engine::generate(&mut session, writer, &prompt, &options, |step| {
                        steps += usize::from(step.token.is_some());
                        text.push_str(step.text);
                        match end_at {
                            Some((k, true)) if steps == k => ControlFlow::Break(()),
                            Some((k, false)) if steps == k => {
                                cancel.store(true, Ordering::Relaxed);
                                ControlFlow::Continue(())
                            }
                            _ => ControlFlow::Continue(()),
                        }
                    });
                    let written = written.unwrap();
                    assert_eq!(text, written.text);
                    (written.tokens, written.text, written.finish, written.evaluated_tokens, session.tokens().to_vec())
                };
                let plain = run(None);
                match &plain.2 {
                    Finish::End { .. } => ends += 1,
                    Finish::Stop { .. } => stops += 1,
                    Finish::ContextFull => full += 1,
                    _ => {}
                }
                let guessed = run(Some(&mut draft(By::Ngram, every_time(5))));
                assert_eq!(plain, guessed, "seed {seed} {options:?} {n_ctx} {end_at:?}");
            }
            if ends_itself {
                assert!(end(&plain), "{:?}", plain.finish);
            }
        }
    }
    assert!(ends >= 4 && stops >= 12 && full >= 12, "{ends} {stops} {full}");
}

/// The same with a draft that is always right, so that the end always lies inside what was guessed.
#[test]
fn an_end_inside_of_what_was_guessed_is_an_end() {
    let greedy = Params::greedy();
    let mut ended = 0;
    for prompt in [ask("Tell me a story."), ask("Say hello."), ask("What is a cat?")] {
        let all = GenerateOptions { max_tokens: Some(300), ..Default::default() };
        let mut session = Session::new(&MODEL, &exact()).unwrap();
        let plain = write(&prompt, &greedy, &all, &mut session, None);
        let words: Vec<&str> = plain.text.split_whitespace().collect();
        let stop = |k: usize| GenerateOptions { stop: vec![words[k..k + 2].join(" ")], ..all.clone() };
        for options in [all.clone(), stop(1), stop(2), stop(4)] {
            session.truncate(0);
            let plain = write(&prompt, &greedy, &options, &mut session, None);
            let left = session.tokens().to_vec();
            for drafts in [every_time(8), up_to(16)] {
                session.truncate(0);
                let guessed = write(&prompt, &greedy, &options, &mut session, Some(&mut draft(By::Itself, drafts)));
                if same_text(&prompt, &plain, &guessed, "itself") {
                    assert_eq!(session.tokens(), left);
                    ended += usize::from(matches!(guessed.finish, Finish::End { .. }));
                }
            }
        }
    }
    assert!(ended >= 2, "{ended} texts ended of themselves");
}

#[test]
fn a_draft_serves_one_text_after_another() {
    let options = GenerateOptions { max_tokens: Some(30), ..Default::default() };
    let texts = [
        encode("Once upon a time, there was a little girl"),
        encode("Once upon a time, there was a king who had a son"),
        encode("Once upon a time"),
        ask("Tell me a story."),
        encode("Once upon a time"),
    ];
    for by in [By::Ngram, By::Q4] {
        let mut session = Session::new(&MODEL, &exact()).unwrap();
        let mut kept = draft(by, up_to(8));
        let mut prompt = Vec::new();
        for (i, text) in texts.iter().chain(&texts).enumerate() {
            // Every other one goes on where the last one ended, as a conversation does.
            if i % 2 == 0 {
                prompt = text.clone();
            } else {
                prompt.extend_from_slice(text);
            }
            let mut fresh = Session::new(&MODEL, &exact()).unwrap();
            let plain = write(&prompt, &Params::greedy(), &options, &mut fresh, None);
            let guessed = write(&prompt, &Params::greedy(), &options, &mut session, Some(&mut kept));
            same_text(&prompt, &plain, &guessed, &format!("{by:?}, text {i}"));
            prompt.extend_from_slice(&guessed.tokens);
        }
    }
}

#[test]
fn a_session_with_few_rows_reads_few_guesses() {
    let prompt = encode(&"The cat sat on the mat. ".repeat(8));
    let options = GenerateOptions { max_tokens: Some(30), ignore_end: true, ..Default::default() };
    for rows in [1, 2, 3] {
        let mut session = Session::new(&MODEL, &SessionOptions { rows, ..exact() }).unwrap();
        let plain = write(&prompt, &Params::greedy(), &options, &mut session, None);
        let guessed = write(&prompt, &Params::greedy(), &options, &mut session, Some(&mut draft(By::Ngram, up_to(9))));
        same_text(&prompt, &plain, &guessed, &format!("{rows} rows"));
        assert!(guessed.speculation.unwrap().tokens_per_evaluation() <= f64::from(rows));
    }
}

#[test]
fn a_draft_of_another_vocabulary_is_refused() {
    let refused = |from: &[u8], to: &[u8]| {
        let path = {
            LazyLock::force(&MODEL);
            path("F32")
        };
        let mut bytes = std::fs::read(path).unwrap();
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let other = Model::load(file.path(), ModelOptions::default()).unwrap();
        let error = Draft::model(&MODEL, &other, &exact(), DraftOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Draft { .. }), "{error}");
        error.to_string()
    };
    let told = refused(b"<|im_sep|>", b"<|im_sap|>");
    support::has(&told, &["in its vocabulary token 8 is '<|im_sap|>', in the model's '<|im_sep|>'"]);
    // The id of the end token, 4 bytes after the key and the type.
    let key = b"tokenizer.ggml.eos_token_id\x04\0\0\0";
    let with = |id: u8| [&key[..], &[id, 0, 0, 0]].concat();
    let ends = MODEL.metadata().u64("tokenizer.ggml.eos_token_id").unwrap() as u8;
    let told = refused(&with(ends), &with(300u32 as u8));
    support::has(&told, &["in its vocabulary token", "end token"]);
}

/// A Mamba of one layer, with `yi-nano`'s vocabulary and numbers that mean nothing: what it has read is one state, from
/// which no token can be taken back.
fn recurrent() -> tempfile::NamedTempFile {
    use nibble::gguf::{Layout, TensorInfo, TensorType};
    let (embd, inner, state, conv, rank) = (64u64, 128u64, 16u64, 4u64, 4u64);
    let mut metadata = MODEL.metadata().clone();
    metadata.set("general.architecture", "mamba");
    for (key, value) in [("context_length", 512u64), ("embedding_length", embd), ("block_count", 1)] {
        metadata.set(format!("mamba.{key}"), value as u32);
    }
    for (key, value) in [("conv_kernel", conv), ("inner_size", inner), ("state_size", state), ("time_step_rank", rank)]
    {
        metadata.set(format!("mamba.ssm.{key}"), value as u32);
    }
    for (key, value) in [("feed_forward_length", 0u32), ("attention.head_count", 0)] {
        metadata.set(format!("mamba.{key}"), value);
    }
    metadata.set("mamba.attention.layer_norm_rms_epsilon", 1e-5f32);
    let tensors: Vec<TensorInfo> = [
        ("token_embd.weight", vec![embd, u64::from(MODEL.n_vocab())]),
        ("output_norm.weight", vec![embd]),
        ("blk.0.attn_norm.weight", vec![embd]),
        ("blk.0.ssm_in.weight", vec![embd, 2 * inner]),
        ("blk.0.ssm_conv1d.weight", vec![conv, inner]),
        ("blk.0.ssm_conv1d.bias", vec![inner]),
        ("blk.0.ssm_x.weight", vec![inner, rank + 2 * state]),
        ("blk.0.ssm_dt.weight", vec![rank, inner]),
        ("blk.0.ssm_dt.bias", vec![inner]),
        ("blk.0.ssm_a", vec![state, inner]),
        ("blk.0.ssm_d", vec![inner]),
        ("blk.0.ssm_out.weight", vec![inner, embd]),
    ]
    .map(|(name, dims)| TensorInfo { name: name.to_string(), dims, ty: TensorType::F32 })
    .to_vec();
    let layout = Layout::new(&metadata, tensors.clone(), 32, None).unwrap();
    let mut random = nibble::base::random::Random::new(2);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let numbers = |i: usize| {
        let n = tensors[i].n_elements().unwrap();
        (0..n).flat_map(|_| (-random.unit() as f32).to_le_bytes()).collect::<Vec<u8>>()
    };
    layout.write_part(0, file.as_file_mut(), numbers).unwrap();
    file
}

#[test]
fn a_model_that_cannot_take_tokens_back_is_neither_guessed_for_nor_guesses() {
    let file = recurrent();
    let model = Model::load(file.path(), ModelOptions::default()).unwrap();
    assert!(!model.can_truncate() && MODEL.can_truncate());
    let error = Draft::model(&MODEL, &model, &exact(), DraftOptions::default()).unwrap_err().to_string();
    support::has(&error, &["cannot take back tokens"]);
    let prompt = encode("Once upon a time");
    let options = GenerateOptions { max_tokens: Some(12), ignore_end: true, ..Default::default() };
    let mut session = Session::new(&model, &exact()).unwrap();
    let plain = write(&prompt, &Params::greedy(), &options, &mut session, None);
    assert_eq!(plain.tokens.len(), 12);
    let mut sampler = Sampler::new(&Params::greedy()).unwrap();
    let mut draft = Draft::ngram(DraftOptions::default()).unwrap();
    let writer = Writer { draft: Some(&mut draft), ..Writer::new(&mut sampler) };
    let error = engine::generate(&mut session, writer, &prompt, &options, go_on).unwrap_err().to_string();
    support::has(&error, &["nothing can be drafted for this model", "cannot take back tokens"]);
    // A prompt that goes another way is read from the beginning, and gives what it gave.
    write(&encode("ROMEO:"), &Params::greedy(), &options, &mut session, None);
    assert_eq!(write(&prompt, &Params::greedy(), &options, &mut session, None).tokens, plain.tokens);

    let cache = support::folder();
    let cache = cache.path().join("cache");
    let run = ["run", file.path().to_str().unwrap(), "-p", "Once", "-n", "3", "--greedy"];
    let out = support::nibble(run.iter().copied().chain(["--prompt-cache", cache.to_str().unwrap()]));
    support::stdout(&out);
    support::has(&String::from_utf8_lossy(&out.stderr), &["warning: the prompt cache", "state cannot be saved"]);
    assert!(!cache.exists());
    support::has(&support::error(&support::nibble(run.iter().copied().chain(["--draft", "ngram"]))), &["--draft"]);
}

#[test]
fn run_says_what_came_of_guessing() {
    LazyLock::force(&MODEL);
    LazyLock::force(&Q4_0);
    let (model, small) = (path("F32"), path("Q4_0"));
    let (model, small) = (model.to_str().unwrap(), small.to_str().unwrap());
    let prompt = "Once upon a time, there was a little";
    let arguments = ["run", model, "-p", prompt, "--greedy", "-n", "60", "--kv-type", "f32", "-t", "1"];
    let plain = support::stdout(&support::nibble(arguments));
    for by in ["ngram", small] {
        let out = support::nibble(arguments.iter().copied().chain(["--draft", by]));
        assert_eq!(support::stdout(&out), plain, "{by}");
        support::has(&String::from_utf8_lossy(&out.stderr), &["drafted:   "]);
        let out = support::nibble(arguments.iter().copied().chain([
            "--draft",
            by,
            "--draft-min",
            "3",
            "--draft-max",
            "3",
            "--json",
        ]));
        let json: serde_json::Value = serde_json::from_str(&support::stdout(&out)).unwrap();
        let stats = &json["speculation"];
        assert!(stats["accepted_tokens"].as_u64() <= stats["drafted_tokens"].as_u64(), "{stats}");
        assert!(stats["evaluations"].as_u64().unwrap() > 0 && stats["tokens_per_evaluation"].as_f64().unwrap() >= 1.0);
    }
    let vocabulary = support::nibble(["run", model, "-p", "x", "--draft", "/nowhere.gguf"]);
    support::has(&support::error(&vocabulary), &["/nowhere.gguf"]);
    let told = support::error(&support::nibble(["run", model, "-p", "x", "--draft", "ngram", "--draft-max", "0"]));
    support::has(&told, &["the most tokens to draft cannot be 0; it has to be from 1 to 64; set it with --draft-max"]);
}
