//! What is done before a task is scheduled: templates, encoding, grammars. It runs beside the scheduler.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::answers::Answers;
use super::infill::FillIn;
use crate::chat::{self, CHATML, Conversation, Fit, Message, Template, Written};
use crate::constrain::{self, Constraint, Grammar, Tokens};
use crate::engine::GenerateOptions;
use crate::engine::scheduler::{Request, TextWriter};
use crate::llama::Model;
use crate::sample::{Params, Sampler};
use crate::serve::answer::MARKERS;
use crate::serve::protocol::Constraint as Constrained;
use crate::serve::protocol::{BiasOf, Chat, Failure, FailureKind, Generate, Infill, Part, Prompt};
use crate::vocab::{Place, TokenizeError, Tokenizer};

/// What all preparations share.
pub(super) struct Preparer {
    model: Model,
    tokenizer: Arc<dyn Tokenizer>,
    /// Tokens that a sequence holds.
    n_ctx: usize,
    fill_in: Option<FillIn>,
    /// The tokens that end texts.
    ends: Vec<u32>,
    /// Prepared when the first grammar comes: without the markers of calls and reasoning, and with them.
    tokens: [OnceLock<Result<Arc<Tokens>, constrain::Error>>; 2],
    answers: Mutex<Answers>,
}

/// The tokens of a prompt.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    pub tokens: Vec<u32>,
    pub forgotten_turns: usize,
    /// How an answer begins that will be looked up when it comes back.
    answer: Option<Begun>,
}

/// How an answer begins.
#[derive(Clone, Debug)]
pub(super) struct Begun {
    after: String,
    text: String,
    tokens: Vec<u32>,
}

/// A task that can be scheduled.
#[derive(Debug)]
pub(super) struct Prepared {
    pub request: Request,
    pub forgotten_turns: usize,
    pub special: bool,
    pub answer: Option<Begun>,
    /// What the prompt says, if that is wanted.
    pub text: Option<String>,
}

/// Why a task cannot be done: the request is wrong.
fn invalid(error: impl ToString) -> Failure {
    Failure { kind: FailureKind::Invalid, message: error.to_string() }
}

fn of_tokenizer(error: TokenizeError) -> Failure {
    match error {
        TokenizeError::Unable(_) => Failure { kind: FailureKind::Unsupported, message: error.to_string() },
        error => invalid(error),
    }
}

impl Preparer {
    pub fn new(model: &Model, n_ctx: usize) -> Self {
        let tokenizer = model.shared_tokenizer();
        let fill_in = FillIn::find(model.metadata(), &*tokenizer);
        let ends = (0..model.n_vocab()).filter(|id| tokenizer.is_end(*id)).collect();
        let (tokens, answers) = (Default::default(), Mutex::default());
        Self { model: model.clone(), tokenizer, n_ctx, fill_in, ends, tokens, answers }
    }

    pub fn tokenizer(&self) -> &dyn Tokenizer {
        &*self.tokenizer
    }

    pub fn fills_in(&self) -> bool {
        self.fill_in.is_some()
    }

    /// Returns the tokens that end texts.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Returns the source of the chat template, and whether it is the model's own.
    pub fn template_source(&self) -> (&str, bool) {
        let own = Template::source_in(self.model.metadata(), false);
        (own.unwrap_or(CHATML), own.is_some())
    }

    /// Prepares texts to write.
    pub fn generate(&self, id: u64, generate: Generate, arrived: Instant) -> Result<Prepared, Failure> {
        let max_tokens = generate.max_tokens.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let encoded = self.encode(&generate.prompt, max_tokens)?;
        let options = GenerateOptions {
            max_tokens,
            stop: generate.stop,
            ignore_end: generate.ignore_end,
            logprobs: generate.logprobs.map(|n| n as usize),
            after_sampling: generate.after_sampling,
            special: generate.special,
        };
        let mut params = Params::default();
        for (name, value) in &generate.sampling {
            params.set(name, value).map_err(invalid)?;
        }
        for (of, bias) in &generate.biases {
            match of {
                BiasOf::Token(token) => params.logit_bias.push((self.checked(*token)?, *bias)),
                BiasOf::Text(text) => {
                    let tokens = chat::encode_text(text, Place::Inside, &*self.tokenizer).map_err(of_tokenizer)?;
                    params.logit_bias.extend(tokens.into_iter().map(|token| (token, *bias)));
                }
            }
        }
        if generate.ignore_end {
            // As in llama.cpp, and on the command line: what follows an end token is seldom what is wanted.
            params.logit_bias.extend(self.ends.iter().map(|token| (*token, f32::NEG_INFINITY)));
        }
        let text = generate.shows_prompt.then(|| self.decode(&encoded.tokens));
        let grammar = generate.constraint.as_ref().map(grammar).transpose()?;
        let writer = |i: u32| {
            let seed = params.seed.map(|seed| seed.wrapping_add(i.into()));
            let params = Params { seed, ..params.clone() };
            let tokenizer = &*self.tokenizer;
            let sampler = Sampler::with_text(&params, tokenizer.n_tokens(), |id| tokenizer.bytes(id));
            let constraint = grammar.as_ref().map(|grammar| self.constraint(grammar, generate.special)).transpose()?;
            Ok(TextWriter { sampler: sampler.map_err(invalid)?, constraint })
        };
        let request = Request {
            task: id,
            prompt: encoded.tokens.into(),
            writers: (0..generate.n.max(1)).map(writer).collect::<Result<_, Failure>>()?,
            options,
            cache: generate.cache,
            progress: generate.progress,
            scores: generate.scores.map(|n| n as usize),
            arrived,
            deadline: generate.timeout_ms.and_then(|ms| arrived.checked_add(Duration::from_millis(ms))),
        };
        let (forgotten_turns, special) = (encoded.forgotten_turns, generate.special);
        Ok(Prepared { request, forgotten_turns, special, answer: encoded.answer, text })
    }

    fn constraint(&self, grammar: &Grammar, special: bool) -> Result<Constraint, Failure> {
        let markers = if special { &MARKERS[..] } else { &[] };
        let made = || Tokens::with_markers(&*self.tokenizer, markers).map(Arc::new);
        let tokens = self.tokens[usize::from(special)].get_or_init(made);
        let tokens = tokens.as_ref().map_err(of_grammar)?;
        Constraint::new(grammar, tokens).map_err(|error| of_grammar(&error))
    }

    fn checked(&self, token: u32) -> Result<u32, Failure> {
        let n = self.tokenizer.n_tokens();
        let error = || invalid(format!("token {token} is not in the vocabulary of {n} tokens"));
        (token as usize).lt(&n).then_some(token).ok_or_else(error)
    }

    /// Encodes a prompt. `max_tokens` are those of its answer.
    pub fn encode(&self, prompt: &Prompt, max_tokens: Option<usize>) -> Result<Encoded, Failure> {
        match prompt {
            Prompt::Parts { parts, begin } => {
                Ok(Encoded { tokens: self.encode_parts(parts, *begin)?, ..Encoded::default() })
            }
            Prompt::Chat(chat) => self.encode_chat(chat, max_tokens),
            Prompt::Infill(infill) => Ok(Encoded { tokens: self.encode_infill(infill)?, ..Encoded::default() }),
        }
    }

    fn encode_parts(&self, parts: &[Part], begin: bool) -> Result<Vec<u32>, Failure> {
        let tokenizer = &*self.tokenizer;
        let first = tokenizer.begins_with();
        let mut tokens = Vec::new();
        for part in parts {
            match part {
                Part::Tokens(given) => {
                    given.iter().try_for_each(|token| self.checked(*token).map(drop))?;
                    tokens.extend(given);
                }
                Part::Text { text, special: false } => {
                    let place = if tokens.is_empty() { Place::Start } else { Place::Inside };
                    tokens.extend(chat::encode_text(text, place, tokenizer).map_err(of_tokenizer)?);
                }
                Part::Text { text, special: true } => {
                    let prompt = chat::Prompt::with_control_tokens(text);
                    let encoded = chat::encode(&prompt, tokenizer).map_err(of_tokenizer)?;
                    // The encoder writes the first token of every text where the text does not spell it.
                    let spelled = first.is_some_and(|first| text.starts_with(tokenizer.piece(first)));
                    let added = usize::from(!spelled && first.is_some() && encoded.first() == first.as_ref());
                    tokens.extend(&encoded[added..]);
                }
            }
        }
        match first {
            Some(first) if begin && tokens.first() != Some(&first) => tokens.insert(0, first),
            _ => {}
        }
        Ok(tokens)
    }

    fn encode_infill(&self, infill: &Infill) -> Result<Vec<u32>, Failure> {
        let fill_in = self.fill_in.as_ref().ok_or_else(|| Failure {
            kind: FailureKind::Unsupported,
            message: "the model's vocabulary has no tokens for filling in gaps".to_string(),
        })?;
        fill_in.encode(infill, &*self.tokenizer).map_err(of_tokenizer)
    }

    fn encode_chat(&self, chat: &Chat, max_tokens: Option<usize>) -> Result<Encoded, Failure> {
        let tokenizer = &*self.tokenizer;
        let template = self.template(chat)?;
        let (conversation, mut begun) = self.conversation(chat)?;
        begun.text.push_str(&chat.begun);
        begun.tokens.extend(chat::encode_text(&chat.begun, Place::Inside, tokenizer).map_err(of_tokenizer)?);

        let encode = |without: usize| -> Result<(Vec<u32>, String), Failure> {
            let (messages, spoken) = conversation.read(without);
            let prompt = template.render(&messages, !chat.without_reply, tokenizer.markers()).map_err(invalid)?;
            let mut tokens = chat::encode_conversation(&prompt, &spoken, tokenizer).map_err(of_tokenizer)?;
            tokens.extend(&begun.tokens);
            Ok((tokens, chat::after_last_marker(&prompt, tokenizer)))
        };
        let mut forgotten_turns = 0;
        if chat.may_forget {
            let most = max_tokens.unwrap_or(self.n_ctx);
            let room = |part: usize| (self.n_ctx / part).max(1).min(most);
            let fit = conversation.fit(self.n_ctx, room(8), room(32), |without| Ok(encode(without)?.0.len()))?;
            if let Fit::Without(turns) = fit {
                forgotten_turns = turns;
            }
        }
        let (tokens, after) = encode(forgotten_turns)?;
        begun.after = after;
        Ok(Encoded { tokens, forgotten_turns, answer: Some(begun) })
    }

    /// Returns the conversation, and how its next answer begins: with the last message if that is continued.
    fn conversation(&self, chat: &Chat) -> Result<(Conversation, Begun), Failure> {
        let read = |(number, message): (usize, &Value)| {
            let message: Message = serde_json::from_value(message.clone())
                .map_err(|error| invalid(format!("message {number} cannot be read: {error}")))?;
            Ok(message)
        };
        let messages = (1..).zip(&chat.messages).map(read).collect::<Result<Vec<_>, Failure>>()?;
        if messages.is_empty() {
            return Err(invalid("there are no messages"));
        }
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut conversation = Conversation::of(messages, |text| answers.get(text));
        drop(answers);
        let mut begun = Begun { after: String::new(), text: String::new(), tokens: Vec::new() };
        if chat.continues {
            let last = conversation.pop_answer();
            let (text, written) =
                last.ok_or_else(|| invalid("the last message is not an assistant's, to be continued"))?;
            begun.tokens = match written {
                Some(written) => written.tokens,
                None => chat::encode_text(&text, Place::Inside, &*self.tokenizer).map_err(of_tokenizer)?,
            };
            begun.text = text;
        }
        Ok((conversation, begun))
    }

    fn template(&self, chat: &Chat) -> Result<Template, Failure> {
        let metadata = self.model.metadata();
        let source = Template::source_in(metadata, !chat.tools.is_empty()).unwrap_or(CHATML);
        let template = Template::with_metadata(source, metadata)
            .map_err(|error| Failure { kind: FailureKind::Unsupported, message: error.to_string() })?;
        let template = template.with_server_facts().with_tools(chat.tools.clone());
        template.with_arguments(chat.arguments.clone()).map_err(invalid)
    }

    /// Returns the text of a prompt.
    pub fn render(&self, prompt: &Prompt) -> Result<String, Failure> {
        let tokenizer = &*self.tokenizer;
        match prompt {
            Prompt::Chat(chat) => {
                let (conversation, begun) = self.conversation(chat)?;
                let messages = conversation.read(0).0;
                let prompt = self
                    .template(chat)?
                    .render(&messages, !chat.without_reply, tokenizer.markers())
                    .map_err(invalid)?;
                Ok(prompt.text() + &begun.text + &chat.begun)
            }
            Prompt::Parts { parts, .. } => {
                let text = |part: &Part| match part {
                    Part::Text { text, .. } => text.clone(),
                    Part::Tokens(tokens) => self.decode(tokens),
                };
                Ok(parts.iter().map(text).collect())
            }
            Prompt::Infill(infill) => Ok(self.decode(&self.encode_infill(infill)?)),
        }
    }

    /// Returns the bytes of a token. Control tokens have their spelling.
    pub fn bytes(&self, token: u32) -> &[u8] {
        let bytes = self.tokenizer.bytes(token);
        if bytes.is_empty() { self.tokenizer.piece(token).as_bytes() } else { bytes }
    }

    /// Returns the text of tokens.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| self.bytes(*token)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Remembers the tokens of an answer.
    pub fn answered(&self, begun: Begun, text: &str, tokens: &[u32]) {
        let text = begun.text + text;
        let tokens = [&begun.tokens, tokens].concat();
        // What a stop text cut off is spelled by other tokens.
        if crate::engine::spells(&tokens, &text, &*self.tokenizer) {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.add(text, Written { after: begun.after, tokens });
        }
    }
}

fn grammar(constraint: &Constrained) -> Result<Grammar, Failure> {
    let grammar = match constraint {
        Constrained::JsonObject => Grammar::json_object(),
        Constrained::JsonSchema(schema) => Grammar::json_schema(&schema.to_string()),
        Constrained::Regex(pattern) => Grammar::regex(pattern),
        Constrained::Gbnf(text) => Grammar::gbnf(text),
        Constrained::Lark(text) => Grammar::lark(text),
    };
    grammar.map_err(|error| of_grammar(&error))
}

fn of_grammar(error: &constrain::Error) -> Failure {
    let kind = match error {
        constrain::Error::Vocabulary(_) => FailureKind::Unsupported,
        constrain::Error::Failed { .. } => FailureKind::Internal,
        _ => FailureKind::Invalid,
    };
    Failure { kind, message: error.to_string() }
}
