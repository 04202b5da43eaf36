//! A backend without models, for tests of the server and of its clients: it recites what it is told to.
//!
//! Characters are tokens, and so are the markers of ChatML. The last message of the user says what the answer is:
//!
//! | message                  | answer                                                                       |
//! |--------------------------|------------------------------------------------------------------------------|
//! | `say TEXT`               | the text                                                                     |
//! | `slow TEXT`              | the text, a character every 50 ms                                            |
//! | `call NAME ARGUMENTS`    | a call, as the template writes calls; more lines make more calls             |
//! | `fail KIND`              | a failure of this kind: `invalid`, `busy`, `internal`, `died`, ...           |
//! | `break KIND`             | a failure in the middle of the answer                                        |
//! | anything else            | `You said: ` and the message                                                 |
//!
//! If a JSON schema or a call is demanded, the answer is the smallest one that satisfies it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::mpsc::{self, UnboundedSender};

use super::answer::Style;
use super::backend::{Answers, Backend, Later, Model, State};
use super::protocol::{
    Answer, Chat, Constraint, Failure, FailureKind, Finish, Generate, ModelInfo, Part, Prompt, Slot, Status, Task,
    TokenPiece, Usage,
};

/// Markers that are tokens.
const MARKERS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];
/// The number of the first marker: no character has it.
const FIRST_MARKER: u32 = 0x11_0000;

/// A template of ChatML with tools as Hermes writes them.
pub const TEMPLATE: &str = "{% if tools %}<tool_call>{% endif %}{% for message in messages %}<|im_start|>\
    {{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The backend.
pub struct Fake {
    shared: Arc<Shared>,
}

struct Shared {
    models: Mutex<Vec<Model>>,
    /// What it was asked to do.
    tasks: Mutex<Vec<Task>>,
    cancelled: AtomicU64,
    running: AtomicU64,
    most_running: u64,
}

impl Default for Fake {
    fn default() -> Self {
        Self::new(TEMPLATE)
    }
}

impl Fake {
    /// One model, `fake`, with this template.
    pub fn new(template: &str) -> Self {
        let info = ModelInfo {
            path: "/models/fake.gguf".to_string(),
            name: "Fake".to_string(),
            architecture: "llama".to_string(),
            recipe: "Q4_K_M".to_string(),
            n_weights: 1000,
            n_bytes: 600,
            n_vocab: u64::from(FIRST_MARKER) + 2,
            n_embd: 4,
            n_ctx: 8192,
            n_ctx_sequence: 4096,
            n_ctx_train: 4096,
            n_parallel: 4,
            template: template.to_string(),
            has_template: true,
            end_tokens: vec![marker(1)],
            end_pieces: vec!["<|im_end|>".to_string()],
            fills_in: true,
            fingerprint: "0123456789abcdef".to_string(),
            system: "none".to_string(),
            ..ModelInfo::default()
        };
        Self::with_info(info, 64)
    }

    /// One model, `fake`, which is this, and works on so many requests; more are refused.
    pub fn with_info(info: ModelInfo, most_running: u64) -> Self {
        let model = Model {
            name: "fake".to_string(),
            aliases: vec!["alias".to_string()],
            created: 1_700_000_000,
            state: State::Ready(Arc::new(info)),
            restarts: 0,
        };
        let shared = Shared {
            models: Mutex::new(vec![model]),
            tasks: Mutex::default(),
            cancelled: AtomicU64::new(0),
            running: AtomicU64::new(0),
            most_running,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Adds a model in this state.
    pub fn add(&self, name: &str, state: State) {
        let model = Model { name: name.to_string(), aliases: Vec::new(), created: 0, state, restarts: 3 };
        self.models_mut().push(model);
    }

    /// Sets the state of the first model.
    pub fn set_state(&self, state: State) {
        if let Some(first) = self.models_mut().first_mut() {
            first.state = state;
        }
    }

    fn models_mut(&self) -> std::sync::MutexGuard<'_, Vec<Model>> {
        self.shared.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it was asked to do, in order.
    pub fn tasks(&self) -> Vec<Task> {
        self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last text that it was asked to write.
    pub fn last_generate(&self) -> Option<Generate> {
        self.tasks().into_iter().rev().find_map(|task| match task {
            Task::Generate(generate) => Some(*generate),
            _ => None,
        })
    }

    /// How many tasks nobody waited for until they ended.
    pub fn n_cancelled(&self) -> u64 {
        self.shared.cancelled.load(Ordering::SeqCst)
    }

    /// How many tasks it works on.
    pub fn n_running(&self) -> u64 {
        self.shared.running.load(Ordering::SeqCst)
    }
}

impl Backend for Fake {
    fn models(&self) -> Vec<Model> {
        self.models_mut().clone()
    }

    fn has_one_model(&self) -> bool {
        self.models_mut().len() == 1
    }

    fn info<'a>(&'a self, model: &'a str) -> Later<'a, Result<Arc<ModelInfo>, Failure>> {
        Box::pin(async move {
            let state = self.models().into_iter().find(|known| known.name == model).map(|known| known.state);
            match state {
                Some(State::Ready(info)) => Ok(info),
                Some(State::Loading { progress }) => {
                    let percent = (progress * 100.0).round();
                    let message =
                        format!("the model '{model}' is being loaded ({percent}%); try again in a few seconds");
                    Err(Failure { kind: FailureKind::Unavailable, message })
                }
                state => {
                    let name = state.map_or("not there", |state| state.name());
                    let message = format!("the model '{model}' is {name}");
                    Err(Failure { kind: FailureKind::Unavailable, message })
                }
            }
        })
    }

    fn submit<'a>(&'a self, model: &'a str, task: Task) -> Later<'a, Result<Answers, Failure>> {
        Box::pin(async move {
            let info = self.info(model).await?;
            let shared = self.shared.clone();
            shared.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task.clone());
            if matches!(task, Task::Generate(_)) && self.n_running() >= shared.most_running {
                let message = format!("{} requests wait already; try again later", shared.most_running);
                return Err(Failure { kind: FailureKind::Busy { retry_after: 3 }, message });
            }
            let (to, from) = mpsc::unbounded_channel();
            shared.running.fetch_add(1, Ordering::SeqCst);
            let engine = shared.clone();
            let working = tokio::spawn(async move {
                let last = match work(&info, task, &to).await {
                    Ok(last) => last,
                    Err(failure) => Answer::Failed(failure),
                };
                engine.running.fetch_sub(1, Ordering::SeqCst);
                let _ = to.send(last);
            });
            let cancel = move || {
                if !working.is_finished() {
                    working.abort();
                    shared.running.fetch_sub(1, Ordering::SeqCst);
                }
                shared.cancelled.fetch_add(1, Ordering::SeqCst);
            };
            Ok(Answers::new(from, cancel))
        })
    }
}

async fn work(info: &ModelInfo, task: Task, to: &UnboundedSender<Answer>) -> Result<Answer, Failure> {
    match task {
        Task::Generate(generate) => write(info, *generate, to).await,
        Task::Encode { prompt, with_bytes } => {
            let (tokens, _) = encode(info, prompt)?;
            let bytes =
                if with_bytes { tokens.iter().map(|id| spelled(*id).into_bytes()).collect() } else { Vec::new() };
            Ok(Answer::Tokens { tokens, bytes })
        }
        Task::Decode { tokens } => {
            let unknown = tokens.iter().find(|id| spelled(**id).is_empty());
            match unknown {
                Some(id) => Err(invalid(format!("there is no token {id}"))),
                None => Ok(Answer::Text(tokens.into_iter().map(spelled).collect())),
            }
        }
        Task::Render { prompt } => {
            let (tokens, _) = encode(&ModelInfo { n_ctx_sequence: u64::MAX, ..info.clone() }, prompt)?;
            Ok(Answer::Text(tokens.into_iter().map(spelled).collect()))
        }
        Task::Embed { prompts } => {
            let encoded: Result<Vec<_>, Failure> =
                prompts.into_iter().map(|prompt| Ok(encode(info, prompt)?.0)).collect();
            let encoded = encoded?;
            let vectors = encoded.iter().map(|tokens| {
                let length = tokens.len() as f32;
                let norm = (length * length + 1.0).sqrt();
                vec![length / norm, 1.0 / norm, 0.0, 0.0]
            });
            let tokens = encoded.iter().map(|tokens| tokens.len() as u64).collect();
            Ok(Answer::Embeddings { vectors: vectors.collect(), tokens })
        }
        Task::Status => {
            let slots = (0..4).map(|id| Slot { id, ..Slot::default() }).collect();
            Ok(Answer::Status(Box::new(Status { slots, read_tokens: 7, reading_seconds: 2.0, ..Status::default() })))
        }
    }
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure { kind: FailureKind::Invalid, message: message.into() }
}

fn spelled(id: u32) -> String {
    let marker = id.checked_sub(FIRST_MARKER).and_then(|i| MARKERS.get(i as usize));
    marker.map_or_else(|| char::from_u32(id).map(String::from).unwrap_or_default(), |marker| (*marker).to_string())
}

fn marker(i: u32) -> u32 {
    FIRST_MARKER + i
}

fn plain(text: &str) -> Vec<u32> {
    text.chars().map(u32::from).collect()
}

fn with_markers(mut text: &str) -> Vec<u32> {
    let mut tokens = Vec::new();
    while let Some(c) = text.chars().next() {
        match MARKERS.iter().zip(0..).find(|(spelling, _)| text.starts_with(**spelling)) {
            Some((spelling, i)) => {
                tokens.push(marker(i));
                text = &text[spelling.len()..];
            }
            None => {
                tokens.push(c.into());
                text = &text[c.len_utf8()..];
            }
        }
    }
    tokens
}

/// Returns the tokens of a prompt, and how many turns were left out.
fn encode(info: &ModelInfo, prompt: Prompt) -> Result<(Vec<u32>, u64), Failure> {
    let check = |tokens: Vec<u32>| match tokens.len() as u64 {
        n if n < info.n_ctx_sequence => Ok(tokens),
        n => {
            let kind = FailureKind::TooLong { tokens: n, n_ctx: info.n_ctx_sequence };
            Err(Failure { kind, message: "the prompt is too long".to_string() })
        }
    };
    match prompt {
        Prompt::Parts { parts, .. } => {
            let of = |part| match part {
                Part::Text { text, special: true } => with_markers(&text),
                Part::Text { text, .. } => plain(&text),
                Part::Tokens(tokens) => tokens,
            };
            Ok((check(parts.into_iter().flat_map(of).collect())?, 0))
        }
        Prompt::Infill(gap) => Ok((check(plain(&format!("{}{}{}", gap.suffix, gap.prefix, gap.begun)))?, 0)),
        Prompt::Chat(mut chat) => {
            let mut forgotten = 0;
            loop {
                match check(encode_chat(info, &chat)) {
                    Err(_) if chat.may_forget && chat.messages.len() > 1 => {
                        let at = usize::from(chat.messages[0]["role"] == "system" && chat.messages.len() > 2);
                        chat.messages.remove(at);
                        forgotten += 1;
                    }
                    tokens => return Ok((tokens?, forgotten)),
                }
            }
        }
    }
}

fn encode_chat(info: &ModelInfo, chat: &Chat) -> Vec<u32> {
    let mut tokens = Vec::new();
    let n = chat.messages.len();
    for tool in &chat.tools {
        tokens.extend(plain(&tool.to_string()));
    }
    for (i, message) in chat.messages.iter().enumerate() {
        tokens.push(marker(0));
        let text = |name: &str| message[name].as_str().unwrap_or_default().to_string();
        tokens.extend(plain(&format!("{}\n{}", text("role"), text("content"))));
        if !message["tool_calls"].is_null() {
            tokens.extend(plain(&message["tool_calls"].to_string()));
        }
        if !(chat.continues && i + 1 == n) {
            tokens.push(marker(1));
            tokens.extend(plain("\n"));
        }
    }
    if !chat.continues {
        tokens.push(marker(0));
        tokens.extend(plain("assistant\n"));
        if info.template.contains("'<think>'") && chat.arguments.get("enable_thinking") != Some(&Value::Bool(false)) {
            tokens.extend(plain("<think>\n"));
        }
    }
    tokens.extend(plain(&chat.begun));
    tokens
}

/// What it recites.
#[derive(Default)]
struct Script {
    text: String,
    fails: Option<FailureKind>,
    breaks: Option<FailureKind>,
    delay: Duration,
}

fn failure_kind(name: &str) -> FailureKind {
    match name {
        "too_long" => FailureKind::TooLong { tokens: 9000, n_ctx: 4096 },
        "unsupported" => FailureKind::Unsupported,
        "busy" => FailureKind::Busy { retry_after: 7 },
        "cancelled" => FailureKind::Cancelled,
        "timeout" => FailureKind::Timeout,
        "internal" => FailureKind::Internal,
        "died" => FailureKind::Died,
        "unavailable" => FailureKind::Unavailable,
        _ => FailureKind::Invalid,
    }
}

fn script(info: &ModelInfo, generate: &Generate) -> Script {
    let (said, tools) = match &generate.prompt {
        Prompt::Chat(chat) => {
            let last = chat.messages.iter().rev().find(|message| message["role"] == "user");
            let said = last.and_then(|message| message["content"].as_str()).unwrap_or_default();
            (said.to_string(), chat.tools.clone())
        }
        Prompt::Parts { parts, .. } => {
            let of = |part: &Part| match part {
                Part::Text { text, .. } => text.clone(),
                Part::Tokens(tokens) => tokens.iter().map(|id| spelled(*id)).collect(),
            };
            (parts.iter().map(of).collect(), Vec::new())
        }
        Prompt::Infill(gap) => (gap.prefix.clone(), Vec::new()),
    };
    let style = Style::of_template(&info.template);
    let thinks = info.template.contains("'<think>'")
        && matches!(&generate.prompt, Prompt::Chat(chat) if !chat.continues
            && chat.arguments.get("enable_thinking") != Some(&Value::Bool(false)));
    let thought = if thinks { "Hm.\n</think>\n\n" } else { "" };
    match &generate.constraint {
        Some(Constraint::JsonObject) => return Script { text: "{\"ok\": true}".to_string(), ..Script::default() },
        Some(Constraint::JsonSchema(schema)) => {
            return Script { text: instance(schema, schema).to_string(), ..Script::default() };
        }
        Some(Constraint::Lark(lark)) => {
            let start = lark.lines().next().unwrap_or_default();
            if let Some(schema) = lark.lines().find_map(|line| line.strip_prefix("answer: %json ")) {
                let schema = serde_json::from_str(schema).unwrap_or_default();
                return Script { text: format!("{thought}{}", instance(&schema, &schema)), ..Script::default() };
            }
            if !start.contains("FREE") {
                let function = &tools.first().unwrap_or(&Value::Null)["function"];
                let arguments = instance(&function["parameters"], &function["parameters"]);
                let name = function["name"].as_str().unwrap_or("unknown");
                return Script {
                    text: format!("{thought}{}", written(style, &[(name, &arguments.to_string())])),
                    ..Script::default()
                };
            }
        }
        _ => {}
    }
    let (word, rest) = said.split_once(' ').unwrap_or((said.as_str(), ""));
    let said_back = |text: &str| format!("{thought}{text}");
    match word {
        "say" => Script { text: said_back(rest), ..Script::default() },
        "slow" => Script { text: said_back(rest), delay: Duration::from_millis(50), ..Script::default() },
        "fail" => Script { fails: Some(failure_kind(rest)), ..Script::default() },
        "break" => {
            Script { text: "Half of an answer".to_string(), breaks: Some(failure_kind(rest)), ..Script::default() }
        }
        "call" => {
            let lines = said.lines().filter_map(|line| line.strip_prefix("call ")?.split_once(' '));
            let calls: Vec<(&str, &str)> = lines.collect();
            Script { text: said_back(&written(style, &calls)), ..Script::default() }
        }
        _ => Script { text: said_back(&format!("You said: {said}")), ..Script::default() },
    }
}

/// Calls, as models with such templates write them.
fn written(style: Style, calls: &[(&str, &str)]) -> String {
    let json =
        |key: &str, (name, arguments): &(&str, &str)| format!("{{\"name\": \"{name}\", \"{key}\": {arguments}}}");
    match style {
        Style::Llama => calls.iter().map(|call| json("parameters", call)).collect::<Vec<_>>().join("; "),
        Style::Mistral { named: false } => {
            format!("[TOOL_CALLS][{}]", calls.iter().map(|call| json("arguments", call)).collect::<Vec<_>>().join(", "))
        }
        Style::Mistral { named: true } => {
            calls.iter().map(|(name, arguments)| format!("[TOOL_CALLS]{name}[ARGS]{arguments}")).collect()
        }
        Style::Xml => {
            let of = |(name, arguments): &(&str, &str)| {
                let map: Map<String, Value> = serde_json::from_str(arguments).unwrap_or_default();
                let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
                let parameters =
                    map.iter().map(|(key, value)| format!("<parameter={key}>\n{}\n</parameter>\n", text(value)));
                format!("<tool_call>\n<function={name}>\n{}</function>\n</tool_call>", parameters.collect::<String>())
            };
            calls.iter().map(of).collect::<Vec<_>>().join("\n")
        }
        Style::Hermes => {
            let of = |call| format!("<tool_call>\n{}\n</tool_call>", json("arguments", call));
            calls.iter().map(of).collect::<Vec<_>>().join("\n")
        }
    }
}

/// The smallest value of a schema.
fn instance(schema: &Value, root: &Value) -> Value {
    if let Some(path) = schema["$ref"].as_str().and_then(|path| path.strip_prefix('#')) {
        return root.pointer(path).map_or(Value::Null, |schema| instance(schema, root));
    }
    if !schema["const"].is_null() {
        return schema["const"].clone();
    }
    for list in ["enum", "anyOf", "oneOf"] {
        if let Some(first) = schema[list].get(0) {
            return if list == "enum" { first.clone() } else { instance(first, root) };
        }
    }
    let kind = schema["type"].as_str().or(schema["type"][0].as_str());
    match kind {
        Some("string") => json!("text"),
        Some("integer") => json!(1),
        Some("number") => json!(1.5),
        Some("boolean") => json!(true),
        Some("null") => Value::Null,
        Some("array") => json!([instance(&schema["items"], root)]),
        _ => {
            let properties = schema["properties"].as_object().into_iter().flatten();
            properties.map(|(name, property)| (name.clone(), instance(property, root))).collect::<Map<_, _>>().into()
        }
    }
}

async fn write(info: &ModelInfo, generate: Generate, to: &UnboundedSender<Answer>) -> Result<Answer, Failure> {
    let script = script(info, &generate);
    if let Some(kind) = script.fails {
        return Err(Failure { kind, message: "it was told to fail".to_string() });
    }
    if let Some(Constraint::Gbnf(text)) = &generate.constraint
        && !text.contains("::=")
    {
        return Err(invalid("the grammar: there is no rule"));
    }
    let (prompt, forgotten_turns) = encode(info, generate.prompt.clone())?;
    let prompt_tokens = prompt.len() as u64;
    // Who has gone needs no answers.
    let send = |answer| {
        let _ = to.send(answer);
    };
    let text = generate.shows_prompt.then(|| prompt.iter().copied().map(spelled).collect());
    send(Answer::Prepared { prompt_tokens, forgotten_turns, text });
    let cached_tokens = if generate.cache && generate.scores.is_none() { prompt_tokens / 2 } else { 0 };
    for index in 0..generate.n {
        let miss = "the prompts differ from token 5 on".to_string();
        send(Answer::Started { index, cached_tokens, found_in: "context".to_string(), miss });
        if generate.progress {
            send(Answer::Reading { index, done: cached_tokens, total: prompt_tokens });
            send(Answer::Reading { index, done: prompt_tokens, total: prompt_tokens });
        }
        if let Some(n_likely) = generate.scores.filter(|_| index == 0) {
            let scored = |(at, id): (usize, &u32)| TokenPiece {
                id: *id,
                bytes: spelled(*id).into_bytes(),
                logprob: (at > 0).then_some(-0.25),
                top: (0..n_likely).filter(|_| at > 0).map(|i| (i, vec![b'a'], -0.5 - f64::from(i))).collect(),
            };
            send(Answer::Scored { tokens: prompt.iter().enumerate().map(scored).collect() });
        }
        let mut text = script.text.clone();
        if index > 0 {
            text.push_str(&format!(" ({index})"));
        }
        let stop = generate.stop.iter().filter_map(|stop| Some((text.find(stop.as_str())?, stop.clone()))).min();
        let mut finish = Finish::End;
        if let Some((at, word)) = stop {
            text.truncate(at);
            finish = Finish::Stop(word);
        }
        let room = info.n_ctx_sequence.saturating_sub(prompt_tokens);
        let n_chars = text.chars().count() as u64;
        let most = generate.max_tokens.unwrap_or(u64::MAX);
        if n_chars > most.min(room) {
            finish = if most <= room { Finish::MaxTokens } else { Finish::ContextFull };
        }
        let mut written_tokens = 0;
        for c in text.chars().take(usize::try_from(most.min(room)).unwrap_or(usize::MAX)) {
            if written_tokens == 3
                && let Some(kind) = script.breaks
            {
                return Err(Failure { kind, message: "it was told to break off".to_string() });
            }
            if !script.delay.is_zero() {
                tokio::time::sleep(script.delay).await;
            }
            let top = (0..generate.logprobs.unwrap_or(0))
                .map(|i| (u32::from(c) + i, c.to_string().into_bytes(), -0.5 - f64::from(i)));
            let token = TokenPiece {
                id: c.into(),
                bytes: c.to_string().into_bytes(),
                logprob: generate.logprobs.map(|_| -0.5),
                top: top.collect(),
            };
            send(Answer::Piece { index, text: c.to_string(), tokens: vec![token] });
            written_tokens += 1;
        }
        let seed = generate.sampling.iter().find(|(name, _)| name == "seed").and_then(|(_, seed)| seed.parse().ok());
        let usage = Usage {
            prompt_tokens,
            cached_tokens,
            written_tokens,
            reading_ms: 10.0,
            writing_ms: 20.0,
            seed: seed.unwrap_or(42),
            ..Usage::default()
        };
        send(Answer::Finished { index, finish, usage });
    }
    Ok(Answer::Done)
}
