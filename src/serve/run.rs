//! From what a request wants to a task of an engine, and from its answers to steps: the same for all APIs.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;

use serde_json::{Map, Value, json};

use super::answer::grammar::{Allowed, of_calls, of_json};
use super::answer::{Event, Markers, Parser, Style, Tool, described, reasoning_of, rewritten};
use super::app::{App, Chosen, ended, unexpected};
use super::backend::Answers;
use super::error::ApiError;
use super::log::Record;
use super::prompt_ends;
use super::protocol::{
    Answer, BiasOf, Chat, Constraint, Failure, FailureKind, Finish, Generate, ModelInfo, Prompt, Task, TokenPiece,
    Usage,
};

/// How texts are written, whatever they are about.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// How many.
    pub n: u32,
    /// The most tokens of each.
    pub max_tokens: Option<u64>,
    /// What ends them.
    pub stop: Vec<String>,
    /// Whether end tokens are ruled out.
    pub ignore_end: bool,
    /// Whether log-probabilities are wanted, and of how many other tokens.
    pub logprobs: Option<u32>,
    /// Whether they are to be those after all samplers.
    pub after_sampling: bool,
    /// How tokens are chosen.
    pub sampling: Vec<(String, String)>,
    /// What is added to logits.
    pub biases: Vec<(BiasOf, f32)>,
    /// What the texts have to be.
    pub constraint: Option<Constraint>,
    /// Whether the cache is not to be used.
    pub no_cache: bool,
    /// Milliseconds until they end.
    pub timeout_ms: Option<u64>,
    /// Whether the reading of the prompt is reported.
    pub progress: bool,
    /// Whether the text of the prompt is wanted.
    pub shows_prompt: bool,
    /// Whether log-probabilities of the prompt's tokens are wanted, and of how many other tokens.
    pub scores: Option<u32>,
}

/// Which tools may be called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// Any, or none.
    #[default]
    Auto,
    /// None.
    None,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// A conversation to go on with.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// The messages, in OpenAI's form.
    pub messages: Vec<Value>,
    /// The tools.
    pub tools: Vec<Tool>,
    /// Which of them may be called.
    pub choice: Choice,
    /// Whether several calls in one answer are unwanted.
    pub one_call: bool,
    /// What the template reads besides.
    pub arguments: Map<String, Value>,
    /// Whether the last message is continued.
    pub continues: bool,
    /// Whether the prompt ends before an answer begins.
    pub without_reply: bool,
    /// Whether the oldest turns may be left out.
    pub may_forget: bool,
}

/// What comes next of an answer.
#[derive(Clone, Debug)]
pub enum Step {
    /// A text has its place in the context.
    Started {
        /// Number of the text.
        index: u32,
        /// Tokens of the prompt that need not be read.
        cached_tokens: u64,
    },
    /// The prompt is being read: first what need not be, and then more each time. Only if that was wanted.
    Reading {
        /// Number of the text.
        index: u32,
        /// Tokens that were read.
        done: u64,
        /// All tokens of the prompt.
        total: u64,
    },
    /// A text goes on.
    Piece {
        /// Number of the text.
        index: u32,
        /// What it says.
        events: Vec<Event>,
        /// Its tokens.
        tokens: Vec<TokenPiece>,
    },
    /// A text has ended.
    Finished {
        /// Number of the text.
        index: u32,
        /// Why.
        finish: Finish,
        /// What it took.
        usage: Usage,
    },
}

/// An answer that is being written. Dropping it cancels it.
pub struct Run {
    /// The model.
    pub model: Chosen,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Turns that were left out of the prompt.
    pub forgotten_turns: u64,
    /// The text of the prompt, if that was wanted.
    pub prompt: Option<String>,
    /// The tokens of the prompt with their log-probabilities, if these were asked for. All are there before the first piece
    /// of a text.
    pub scored: Vec<TokenPiece>,
    answers: Answers,
    parsers: Vec<Parser>,
    /// For each text how much of the prompt was reported to be read; empty if that is not wanted.
    reported: Vec<Option<u64>>,
    ready: VecDeque<Step>,
    ending: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    record: Record,
}

impl App {
    /// Has a conversation answered. Returns once it is certain that there will be an answer: the prompt fits, and the
    /// queue had room.
    ///
    /// # Errors
    /// If there will be none.
    pub async fn converse(
        &self,
        model: Chosen,
        talk: Conversation,
        manner: Manner,
        record: &Record,
    ) -> Result<Run, ApiError> {
        let template = Template::of(&model.info);
        let reasons = match template.reasoning {
            Some(markers) if !talk.continues => prompt_ends::reasons(self, &model, markers, &talk.arguments).await?,
            Some(markers) => is_within_reasoning(&talk.messages, markers),
            None => false,
        };
        let tools = allowed_tools(&talk)?;
        let style = (!tools.is_empty()).then_some(template.style);
        let parser = Parser::new(style, &tools, template.reasoning, reasons);
        let special = style.is_some() || template.reasoning.is_some();
        let formed = self.constraint(&template, reasons, &tools, &talk, manner.constraint.clone(), record).await?;
        let chat = template.chat(talk, &tools);
        let prompt = Prompt::Chat(Box::new(chat));
        let generate = Generate { constraint: formed, special, ..self.generate(prompt, &manner) };
        self.start(model, generate, parser, record).await
    }

    /// Returns a conversation as the model's template takes it.
    ///
    /// # Errors
    /// If it asks for a tool that there is not.
    pub fn chat_of(&self, model: &Chosen, talk: Conversation) -> Result<Chat, ApiError> {
        let tools = allowed_tools(&talk)?;
        Ok(Template::of(&model.info).chat(talk, &tools))
    }

    /// Counts the tokens of a conversation's prompt.
    ///
    /// # Errors
    /// If there is no such model, or the prompt cannot be encoded.
    pub async fn count_tokens(
        &self,
        model: Option<&str>,
        talk: Conversation,
        record: &Record,
    ) -> Result<u64, ApiError> {
        let model = self.choose(model, record).await?;
        let prompt = Prompt::Chat(Box::new(self.chat_of(&model, talk)?));
        match self.ask(&model.name, Task::Encode { prompt, with_bytes: false }).await? {
            Answer::Tokens { tokens, .. } => Ok(tokens.len() as u64),
            _ => Err(unexpected()),
        }
    }

    /// What the answer has to be.
    async fn constraint(
        &self,
        template: &Template,
        reasons: bool,
        tools: &[Tool],
        talk: &Conversation,
        given: Option<Constraint>,
        record: &Record,
    ) -> Result<Option<Constraint>, ApiError> {
        let reasoning = template.reasoning.map(|markers| (markers, reasons));
        let required = matches!(talk.choice, Choice::Required | Choice::Named(_));
        if given.is_some() && required {
            return Err(ApiError::field(
                "tool_choice",
                "requires a call, and the answer has to have another form, too",
            ));
        }
        let schemas = self.schemas.clone();
        let schema = match (given, reasoning) {
            // Reasoning comes before the form.
            (Some(Constraint::JsonObject), Some(reasoning)) => Some((json!({"type": "object"}), reasoning)),
            (Some(Constraint::JsonSchema(schema)), Some(reasoning)) => Some((schema, reasoning)),
            (Some(given), _) => return Ok(Some(given)),
            (None, _) => None,
        };
        if let Some((schema, (markers, begun))) = schema {
            let schema = blocking(move || schemas.enforceable(&schema)).await?.map_err(ApiError::invalid)?;
            return Ok(Some(Constraint::Lark(of_json(&schema, markers, begun))));
        }
        if tools.is_empty() {
            return Ok(None);
        }
        let allowed = Allowed { required, parallel: !talk.one_call && !matches!(talk.choice, Choice::Named(_)) };
        let (style, tools) = (template.style, tools.to_vec());
        let (lark, not_enforced) = blocking(move || {
            let mut not_enforced = Vec::new();
            let mut enforceable = |tool: &Tool, schema: &Value| match schemas.enforceable(schema) {
                Ok(schema) => Ok(Some(schema)),
                Err(why) if tool.strict => {
                    let message = format!("has the tool '{}' with a schema that cannot be enforced: {why}", tool.name);
                    Err(ApiError::field("tools", message))
                }
                // A tool that nobody called strict is served all the same.
                Err(why) => {
                    not_enforced.push((tool.name.clone(), why));
                    Ok(None)
                }
            };
            of_calls(style, &tools, allowed, reasoning, &mut enforceable).map(|lark| (lark, not_enforced))
        })
        .await??;
        for (tool, why) in not_enforced {
            record.note("schema_not_enforced", [("tool", tool.into()), ("why", why.into())]);
        }
        Ok(Some(Constraint::Lark(lark)))
    }

    /// Has texts written after a prompt that is no conversation.
    ///
    /// # Errors
    /// If there will be none.
    pub async fn complete(
        &self,
        model: Chosen,
        prompt: Prompt,
        manner: Manner,
        special: bool,
        record: &Record,
    ) -> Result<Run, ApiError> {
        let generate = Generate { special, ..self.generate(prompt, &manner) };
        self.start(model, generate, Parser::new(None, &[], None, false), record).await
    }

    fn generate(&self, prompt: Prompt, manner: &Manner) -> Generate {
        let limit = self.options.request_timeout.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        let timeout_ms = [limit, manner.timeout_ms].into_iter().flatten().min();
        Generate {
            prompt,
            n: manner.n.max(1),
            max_tokens: manner.max_tokens,
            stop: manner.stop.clone(),
            ignore_end: manner.ignore_end,
            special: false,
            logprobs: manner.logprobs,
            after_sampling: manner.after_sampling,
            sampling: manner.sampling.clone(),
            biases: manner.biases.clone(),
            constraint: manner.constraint.clone(),
            cache: !manner.no_cache,
            timeout_ms,
            progress: manner.progress,
            shows_prompt: manner.shows_prompt,
            scores: manner.scores,
        }
    }

    async fn start(&self, model: Chosen, generate: Generate, parser: Parser, record: &Record) -> Result<Run, ApiError> {
        let parsers = vec![parser; generate.n as usize];
        let reported = if generate.progress { vec![None; generate.n as usize] } else { Vec::new() };
        let mut answers = self.submit(&model.name, Task::Generate(Box::new(generate))).await?;
        let mut ending = self.ending.clone();
        let first = tokio::select! {
            first = answers.next() => first,
            _ = ending.wait_for(|ending| *ending) => return Err(ended()),
        };
        match first {
            Some(Answer::Prepared { prompt_tokens, forgotten_turns, text: prompt }) => {
                record.add("prompt_tokens", prompt_tokens);
                if forgotten_turns > 0 {
                    record.set("forgotten_turns", forgotten_turns);
                }
                let ending = Box::pin(async move {
                    let _ = ending.wait_for(|ending| *ending).await;
                });
                let (ready, record) = (VecDeque::new(), record.clone());
                Ok(Run {
                    model,
                    prompt_tokens,
                    forgotten_turns,
                    prompt,
                    scored: Vec::new(),
                    answers,
                    parsers,
                    reported,
                    ready,
                    ending,
                    record,
                })
            }
            Some(Answer::Failed(failure)) => Err(failure.into()),
            _ => Err(unexpected()),
        }
    }
}

impl Run {
    /// Waits for the next step; `None` after the last one. Nothing comes after an error.
    pub async fn next(&mut self) -> Option<Result<Step, ApiError>> {
        loop {
            if let Some(step) = self.ready.pop_front() {
                return Some(Ok(step));
            }
            let answer = tokio::select! {
                answer = self.answers.next() => answer?,
                () = &mut self.ending => return Some(Err(ended())),
            };
            if let Err(error) = self.take(answer) {
                error.log(&self.record);
                return Some(Err(error));
            }
        }
    }

    fn take(&mut self, answer: Answer) -> Result<(), ApiError> {
        match answer {
            Answer::Started { index, cached_tokens, found_in, miss } => {
                self.record.add("cached_tokens", cached_tokens);
                if !miss.is_empty() {
                    let facts = [
                        ("text", Value::from(index)),
                        ("prompt_tokens", self.prompt_tokens.into()),
                        ("cached_tokens", cached_tokens.into()),
                        ("found_in", found_in.into()),
                        ("why", miss.into()),
                    ];
                    self.record.note("prefix_miss", facts);
                }
                self.ready.push_back(Step::Started { index, cached_tokens });
                self.report(index, cached_tokens, self.prompt_tokens);
            }
            Answer::Scored { tokens } => self.scored.extend(tokens),
            Answer::Reading { index, done, total } => self.report(index, done, total),
            Answer::Piece { index, text, tokens } => {
                let events = self.parser(index)?.feed(&text);
                if !events.is_empty() || !tokens.is_empty() {
                    self.ready.push_back(Step::Piece { index, events, tokens });
                }
            }
            Answer::Finished { finish: Finish::Cancelled, .. } => {
                let message = "the answer was cancelled: the process of the model ends".to_string();
                return Err(Failure { kind: FailureKind::Cancelled, message }.into());
            }
            Answer::Finished { index, finish, usage } => {
                let events = self.parser(index)?.finish();
                if !events.is_empty() {
                    self.ready.push_back(Step::Piece { index, events, tokens: Vec::new() });
                }
                self.record.add("written_tokens", usage.written_tokens);
                self.record.set("finish", ended_by(&finish));
                self.record.set("waiting_ms", rounded(usage.waiting_ms));
                self.record.set("reading_ms", rounded(usage.reading_ms));
                self.record.set("writing_ms", rounded(usage.writing_ms));
                self.ready.push_back(Step::Finished { index, finish, usage });
            }
            Answer::Done => {}
            Answer::Failed(failure) => return Err(failure.into()),
            _ => return Err(unexpected()),
        }
        Ok(())
    }

    /// Reports how much of the prompt is read, if it is more than was reported.
    fn report(&mut self, index: u32, done: u64, total: u64) {
        let Some(reported) = self.reported.get_mut(index as usize) else { return };
        if reported.is_none_or(|reported| done > reported) {
            *reported = Some(done);
            self.ready.push_back(Step::Reading { index, done, total });
        }
    }

    fn parser(&mut self, index: u32) -> Result<&mut Parser, ApiError> {
        self.parsers.get_mut(index as usize).ok_or_else(unexpected)
    }
}

/// To a tenth.
fn rounded(milliseconds: f64) -> f64 {
    (milliseconds * 10.0).round() / 10.0
}

/// Does what takes long, without keeping others waiting.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| unexpected())
}

/// Why a text ended, on the wire.
pub fn ended_by(finish: &Finish) -> &'static str {
    match finish {
        Finish::End => "end",
        Finish::Stop(_) => "stop",
        Finish::MaxTokens => "max_tokens",
        Finish::ContextFull => "context_full",
        Finish::Timeout => "timeout",
        Finish::Cancelled => "cancelled",
    }
}

/// What a chat template says about its model.
struct Template {
    style: Style,
    reasoning: Option<Markers>,
    knows_tools: bool,
    knows_developers: bool,
}

impl Template {
    fn of(info: &ModelInfo) -> Self {
        let text = &info.template;
        Self {
            style: Style::of_template(text),
            reasoning: reasoning_of(text),
            knows_tools: text.contains("tools"),
            knows_developers: text.contains("developer"),
        }
    }

    fn chat(&self, talk: Conversation, tools: &[Tool]) -> Chat {
        let mut messages = talk.messages;
        if !self.knows_developers {
            let developers = messages.iter_mut().filter(|message| message["role"] == "developer");
            developers.for_each(|message| message["role"] = "system".into());
        }
        let mut messages = joined_instructions(messages);
        let mut values: Vec<Value> = tools.iter().map(Tool::to_value).collect();
        if !self.knows_tools {
            let instructions = (!tools.is_empty()).then(|| described(tools));
            messages = rewritten(messages, instructions.as_deref());
            values.clear();
        }
        let Conversation { arguments, continues, without_reply, may_forget, .. } = talk;
        Chat { messages, tools: values, arguments, continues, begun: String::new(), without_reply, may_forget }
    }
}

/// Joins system messages at the beginning: templates take one.
fn joined_instructions(messages: Vec<Value>) -> Vec<Value> {
    let mut joined: Vec<Value> = Vec::new();
    for message in messages {
        match joined.as_mut_slice() {
            [first]
                if first["role"] == message["role"]
                    && matches!(first["role"].as_str(), Some("system" | "developer")) =>
            {
                if let (Some(text), Some(more)) = (first["content"].as_str(), message["content"].as_str()) {
                    first["content"] = format!("{text}\n\n{more}").into();
                    continue;
                }
                joined.push(message);
            }
            _ => joined.push(message),
        }
    }
    joined
}

/// The tools that the model hears of.
fn allowed_tools(talk: &Conversation) -> Result<Vec<Tool>, ApiError> {
    match &talk.choice {
        Choice::None => Ok(Vec::new()),
        Choice::Required if talk.tools.is_empty() => {
            Err(ApiError::field("tool_choice", "requires a call, and there are no tools to call"))
        }
        Choice::Auto | Choice::Required => Ok(talk.tools.clone()),
        Choice::Named(name) => {
            let tool = talk.tools.iter().find(|tool| tool.name == *name).cloned();
            let shown: String = name.chars().take(100).collect();
            let missing =
                || ApiError::field("tool_choice", format!("names the tool '{shown}', which is not in 'tools'"));
            tool.map(|tool| vec![tool]).ok_or_else(missing)
        }
    }
}

/// Whether the last message ends in the middle of reasoning.
fn is_within_reasoning(messages: &[Value], markers: Markers) -> bool {
    let text = messages.last().and_then(|message| message["content"].as_str()).unwrap_or_default();
    text.rfind(markers.open).is_some_and(|at| !text[at..].contains(markers.close))
}
