//! Messages between the server and the process that runs a model.
//!
//! ```text
//!  server                                                  nibble engine
//!         ── Do { id, task } ──────────────────────────►
//!         ◄────────────────────────── Answer { id, .. } ──   any number, the last one for which `is_last`
//!         ── Cancel { id } ────────────────────────────►     a last answer still comes
//! ```
//!
//! A frame is its length in bytes (u32, little-endian) and that many bytes of JSON. Frames go through the standard input
//! and output of the engine. It first says [`FromEngine::Loading`] any number of times, then [`FromEngine::Ready`] or
//! [`FromEngine::Failed`]. When its input ends, it exits.
//!
//! Both sides are one version of nibble, so there is no version in it.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Frames that are longer are refused: no prompt and no answer is.
pub const MOST_BYTES: usize = 256 << 20;

/// To the engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToEngine {
    /// Do something, and answer with this number, which no unfinished task has.
    Do {
        /// The number.
        id: u64,
        /// What to do.
        task: Task,
    },
    /// Stop. The last answer says whether that came in time.
    Cancel {
        /// The number of the task.
        id: u64,
    },
}

/// What an engine can do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Write texts. Answers: [`Answer::Prepared`], for each text [`Answer::Started`], [`Answer::Scored`],
    /// [`Answer::Reading`], [`Answer::Piece`] and [`Answer::Finished`], then [`Answer::Done`].
    Generate(Box<Generate>),
    /// Encode. Answer: [`Answer::Tokens`].
    Encode {
        /// What.
        prompt: Prompt,
        /// Whether to answer with the bytes of each token, too.
        with_bytes: bool,
    },
    /// Decode. Answer: [`Answer::Text`].
    Decode {
        /// The tokens.
        tokens: Vec<u32>,
    },
    /// Apply the chat template, or return the text of another prompt. Answer: [`Answer::Text`].
    Render {
        /// What.
        prompt: Prompt,
    },
    /// Compute embeddings. Answer: [`Answer::Embeddings`].
    Embed {
        /// Of these.
        prompts: Vec<Prompt>,
    },
    /// Say what is being done. Answer: [`Answer::Status`].
    Status,
}

/// What a model reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// Texts and tokens, one after the other.
    Parts {
        /// They.
        parts: Vec<Part>,
        /// Whether the token that begins every text comes first, if the model has one.
        begin: bool,
    },
    /// A conversation in the model's template. Text of messages never becomes a control token.
    Chat(Box<Chat>),
    /// A gap in a text.
    Infill(Box<Infill>),
}

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// A text.
    Text {
        /// It.
        text: String,
        /// Whether control tokens are recognized where they are spelled.
        special: bool,
    },
    /// Tokens.
    Tokens(Vec<u32>),
}

/// A conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Chat {
    /// Messages in OpenAI's form: `role`, `content`, `name`, `tool_calls`, `tool_call_id`, `reasoning_content`. Contents are
    /// texts or lists of parts `{"type": "text", "text": ...}`.
    pub messages: Vec<Value>,
    /// Tools in OpenAI's form: `{"type": "function", "function": {...}}`.
    pub tools: Vec<Value>,
    /// More that the template reads, such as `enable_thinking`.
    pub arguments: Map<String, Value>,
    /// Whether the last message, an assistant's, is continued instead of answered.
    pub continues: bool,
    /// What the answer begins with, after the template: text that the model did not write, but is taken to have written.
    pub begun: String,
    /// Whether the prompt ends before the header of an answer.
    pub without_reply: bool,
    /// Whether the oldest turns are left out if the context is too small for all. [`Answer::Prepared`] says how many.
    pub may_forget: bool,
}

/// A gap in a text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Infill {
    /// Before the gap.
    pub prefix: String,
    /// After it.
    pub suffix: String,
    /// Other files: names and texts.
    pub files: Vec<(String, String)>,
    /// How the text in the gap begins.
    pub begun: String,
}

/// Texts to write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generate {
    /// What they continue.
    pub prompt: Prompt,
    /// How many.
    pub n: u32,
    /// The most tokens of each; `None` for what the context holds.
    pub max_tokens: Option<u64>,
    /// Texts that end them, and are not part of them.
    pub stop: Vec<String>,
    /// Whether end tokens are ruled out.
    pub ignore_end: bool,
    /// Whether the texts of control tokens are part of the text, such as `<tool_call>` where that is one. End tokens never
    /// are.
    pub special: bool,
    /// Log-probabilities of the tokens, and of this many likely ones in the place of each.
    pub logprobs: Option<u32>,
    /// Whether these are the probabilities after all samplers, and not those before.
    pub after_sampling: bool,
    /// Parameters by the names that `nibble::sample::Params::set` knows, and values in its form, `seed` among them. Text
    /// number `i` has the seed plus `i`.
    pub sampling: Vec<(String, String)>,
    /// What is added to the logits of tokens. Those of a text are the tokens that it encodes to.
    pub biases: Vec<(BiasOf, f32)>,
    /// What the texts have to be.
    pub constraint: Option<Constraint>,
    /// Whether what was read for others may be used, and this for others.
    pub cache: bool,
    /// Milliseconds from when the engine hears of it until it ends, with what was written by then.
    pub timeout_ms: Option<u64>,
    /// Whether [`Answer::Reading`] is wanted.
    pub progress: bool,
    /// Whether [`Answer::Prepared`] has the text of the prompt.
    pub shows_prompt: bool,
    /// Whether [`Answer::Scored`] is wanted, with so many likely tokens in the place of each of the prompt's.
    pub scores: Option<u32>,
}

/// Of what a bias is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BiasOf {
    /// A token.
    Token(u32),
    /// The tokens of a text.
    Text(String),
}

/// What a text has to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON of this schema.
    JsonSchema(Value),
    /// What the expression matches.
    Regex(String),
    /// A grammar of llama.cpp's.
    Gbnf(String),
    /// A grammar of llguidance's, a dialect of Lark's.
    Lark(String),
}

/// From the engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromEngine {
    /// So much of the model is loaded, from 0 to 1.
    Loading(f32),
    /// The model is loaded.
    Ready(Box<ModelInfo>),
    /// It cannot be. The engine exits.
    Failed {
        /// Why not.
        reason: String,
    },
    /// About a task.
    To {
        /// Its number.
        id: u64,
        /// What.
        answer: Answer,
    },
}

/// About a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The prompt is encoded, and waits for its turn.
    Prepared {
        /// Its tokens.
        prompt_tokens: u64,
        /// Turns that were left out, the oldest: see [`Chat::may_forget`].
        forgotten_turns: u64,
        /// What the tokens spell, control tokens among them, if that was asked for.
        text: Option<String>,
    },
    /// A text has a sequence of the context.
    Started {
        /// Number of the text, from 0.
        index: u32,
        /// Tokens of the prompt that need not be read again.
        cached_tokens: u64,
        /// Where they were: `context`, `memory` or `disk`; `none`.
        found_in: String,
        /// Why not more of them, in words for the log.
        miss: String,
    },
    /// The prompt is being read.
    Reading {
        /// Number of the text.
        index: u32,
        /// Tokens that were read, those from the cache among them.
        done: u64,
        /// Tokens of the prompt.
        total: u64,
    },
    /// Tokens of the prompt, with their log-probabilities: its first ones, or those after what the last such answer had.
    Scored {
        /// They. The first of the prompt has no log-probability.
        tokens: Vec<TokenPiece>,
    },
    /// A text goes on.
    Piece {
        /// Number of the text.
        index: u32,
        /// Characters that are certain now: whole ones, perhaps none.
        text: String,
        /// The tokens since the last piece; their bytes need not be those of `text` yet.
        tokens: Vec<TokenPiece>,
    },
    /// A text has ended.
    Finished {
        /// Number of the text.
        index: u32,
        /// Why.
        finish: Finish,
        /// How much was read and written, and how long it took.
        usage: Usage,
    },
    /// All texts have ended.
    Done,
    /// Tokens of a prompt.
    Tokens {
        /// They.
        tokens: Vec<u32>,
        /// The bytes of each, if they were asked for.
        bytes: Vec<Vec<u8>>,
    },
    /// A text.
    Text(String),
    /// Embeddings, normalized to length 1.
    Embeddings {
        /// For each prompt its numbers.
        vectors: Vec<Vec<f32>>,
        /// For each prompt its tokens.
        tokens: Vec<u64>,
    },
    /// What is being done.
    Status(Box<Status>),
    /// It failed, and nothing more comes.
    Failed(Failure),
}

impl Answer {
    /// Whether no more answers come.
    pub fn is_last(&self) -> bool {
        match self {
            Self::Prepared { .. } | Self::Started { .. } | Self::Reading { .. } | Self::Piece { .. } => false,
            Self::Scored { .. } | Self::Finished { .. } => false,
            Self::Done | Self::Tokens { .. } | Self::Text(_) | Self::Embeddings { .. } => true,
            Self::Status(_) | Self::Failed(_) => true,
        }
    }
}

/// A token that was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenPiece {
    /// The token.
    pub id: u32,
    /// What it adds to the text: perhaps part of a character. Control tokens add their spelling if that was asked for.
    #[serde(with = "text_or_bytes")]
    pub bytes: Vec<u8>,
    /// The natural logarithm of its probability, if that was asked for: before any sampling, unless
    /// [`Generate::after_sampling`] says otherwise.
    pub logprob: Option<f64>,
    /// The most likely tokens in its place, in order: id, bytes, log-probability.
    pub top: Vec<(u32, Vec<u8>, f64)>,
}

/// Bytes, as a text where they are one: that is shorter than a list of numbers.
mod text_or_bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Either<'a> {
        Text(std::borrow::Cow<'a, str>),
        Bytes(std::borrow::Cow<'a, [u8]>),
    }

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Either::Text(text.into()).serialize(to),
            Err(_) => Either::Bytes(bytes.into()).serialize(to),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        Ok(match Either::deserialize(from)? {
            Either::Text(text) => text.into_owned().into_bytes(),
            Either::Bytes(bytes) => bytes.into_owned(),
        })
    }
}

/// Why a text ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended it, or it satisfies its constraint and cannot go on.
    End,
    /// At this stop text.
    Stop(String),
    /// It has as many tokens as were asked for.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// Its time is over.
    Timeout,
    /// It was cancelled.
    Cancelled,
}

/// What a text took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of it that were not read again.
    pub cached_tokens: u64,
    /// Tokens that were written, an end token not among them.
    pub written_tokens: u64,
    /// Tokens of them that were guessed, and right.
    pub accepted_guesses: u64,
    /// Tokens that were guessed.
    pub guesses: u64,
    /// Milliseconds that it waited for its turn.
    pub waiting_ms: f64,
    /// Milliseconds from then until the prompt was read.
    pub reading_ms: f64,
    /// Milliseconds from then until it ended.
    pub writing_ms: f64,
    /// The seed it was sampled with.
    pub seed: u64,
}

/// Why a task failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Its kind.
    pub kind: FailureKind,
    /// What is wrong, and what to change.
    pub message: String,
}

/// The kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The request is wrong.
    Invalid,
    /// The prompt does not fit the context.
    TooLong {
        /// Tokens of the prompt.
        tokens: u64,
        /// Tokens that the context holds.
        n_ctx: u64,
    },
    /// The model cannot do that.
    Unsupported,
    /// Too many wait already.
    Busy {
        /// Seconds after which trying again makes sense.
        retry_after: u64,
    },
    /// It was cancelled before it began.
    Cancelled,
    /// Its time was over before it began.
    Timeout,
    /// The engine is at fault.
    Internal,
    /// The engine ended in the middle of it. Only the server says so.
    Died,
    /// The model is being loaded, or cannot be. Only the server says so.
    Unavailable,
}

/// What a model is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Its file.
    pub path: String,
    /// Its name, as the file says; empty if it does not.
    pub name: String,
    /// `llama`, ...
    pub architecture: String,
    /// The recipe that it was made with, such as `Q4_K_M`; empty if it is not known.
    pub recipe: String,
    /// Weights.
    pub n_weights: u64,
    /// Bytes of all tensors.
    pub n_bytes: u64,
    /// Tokens of the vocabulary.
    pub n_vocab: u64,
    /// Numbers of an embedding.
    pub n_embd: u64,
    /// Tokens that the context holds, those of all sequences together.
    pub n_ctx: u64,
    /// Tokens that one sequence can hold.
    pub n_ctx_sequence: u64,
    /// Tokens of the texts that it was trained on; 0 if the file does not say.
    pub n_ctx_train: u64,
    /// Sequences that are written at the same time.
    pub n_parallel: u64,
    /// Its chat template, in Jinja; that of ChatML if it has none.
    pub template: String,
    /// Whether the template is its own.
    pub has_template: bool,
    /// The text of the token that begins texts; empty if there is none.
    pub begin_piece: String,
    /// The tokens that end texts.
    pub end_tokens: Vec<u32>,
    /// Their texts.
    pub end_pieces: Vec<String>,
    /// Whether it can fill in gaps.
    pub fills_in: bool,
    /// What it is, by its file and all settings that change what is computed: prefixes of other models never match.
    pub fingerprint: String,
    /// llama.cpp's word on what it computes with.
    pub system: String,
}

/// What an engine is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Each sequence of the context.
    pub slots: Vec<Slot>,
    /// Tasks that wait for one.
    pub waiting: u64,
    /// Tokens that were read since the start, without those from the cache.
    pub read_tokens: u64,
    /// Seconds in which tokens were read.
    pub reading_seconds: f64,
    /// Tokens of prompts that were found in the cache.
    pub cached_tokens: u64,
    /// Tokens that were written.
    pub written_tokens: u64,
    /// Seconds in which tokens were written.
    pub writing_seconds: f64,
    /// Evaluations.
    pub evaluations: u64,
    /// Sequences in all evaluations together.
    pub evaluated_sequences: u64,
    /// Tokens that were guessed, and evaluated with others.
    pub guessed_tokens: u64,
    /// Tokens of them that were right.
    pub accepted_guesses: u64,
    /// How often tokens of a text were guessed.
    pub guesses: u64,
    /// Tokens that the context holds of all sequences.
    pub held_tokens: u64,
    /// The most tokens that one text has had.
    pub most_tokens: u64,
    /// Bytes of prefixes in memory.
    pub prefix_bytes: u64,
    /// Bytes of prefixes on the disk.
    pub prefix_disk_bytes: u64,
}

/// A sequence.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// Its number.
    pub id: u32,
    /// The task that it works on.
    pub task: Option<u64>,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of it that were read.
    pub read_tokens: u64,
    /// Tokens that were written.
    pub written_tokens: u64,
    /// Tokens that it holds.
    pub held_tokens: u64,
}

/// Writes a frame. Does not flush.
///
/// # Errors
/// If it cannot be written, or is longer than [`MOST_BYTES`].
pub fn write(to: &mut (impl Write + ?Sized), message: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let n = u32::try_from(bytes.len()).ok().filter(|n| *n as usize <= MOST_BYTES);
    let n = n.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a message is too long for one frame"))?;
    to.write_all(&n.to_le_bytes())?;
    to.write_all(&bytes)
}

/// Reads a frame; `None` at the end.
///
/// # Errors
/// If it cannot be read, ends early, is longer than [`MOST_BYTES`], or is no such message.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    let mut filled = 0;
    while filled < length.len() {
        match from.read(&mut length[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let n = u32::from_le_bytes(length) as usize;
    if n > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
    }
    let mut bytes = vec![0; n];
    from.read_exact(&mut bytes)?;
    Ok(Some(serde_json::from_slice(&bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_went() {
        let messages = [
            ToEngine::Cancel { id: 3 },
            ToEngine::Do { id: u64::MAX, task: Task::Decode { tokens: vec![1, 2] } },
            ToEngine::Do { id: 0, task: Task::Status },
        ];
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| write(&mut bytes, message).unwrap());
        let mut from = bytes.as_slice();
        for message in &messages {
            assert_eq!(read::<ToEngine>(&mut from).unwrap().as_ref(), Some(message));
        }
        assert_eq!(read::<ToEngine>(&mut from).unwrap(), None);
        // Cut off in the middle.
        for end in [1, 3, 5, bytes.len() - 1] {
            let mut from = &bytes[..end];
            let result = std::iter::from_fn(|| read::<ToEngine>(&mut from).transpose()).last().unwrap();
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
        let mut long = (MOST_BYTES as u32 + 1).to_le_bytes().to_vec();
        long.extend([0; 8]);
        assert_eq!(read::<ToEngine>(&mut long.as_slice()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
