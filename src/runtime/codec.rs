//! llama.cpp's tokenizer as a [`TextCodec`].

use std::borrow::Cow;
use std::sync::Arc;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;

use crate::chat::{CodecError, Markers, Place, TextCodec, TokenKind};
use crate::gguf::{Array, Metadata, Value};

/// Longer texts are refused: llama.cpp counts bytes and tokens in an `i32`, and panics or worse beyond.
const MAX_BYTES: usize = 256 << 20;

/// The tokenizer of a loaded model.
pub(super) struct LlamaCodec {
    model: Arc<LlamaModel>,
    pieces: Vec<String>,
    kinds: Vec<TokenKind>,
    n_tokens: u32,
    ends: Vec<u32>,
    bos: Option<u32>,
    space_prefix: bool,
    markers: Markers,
}

impl LlamaCodec {
    pub(super) fn new(model: Arc<LlamaModel>, metadata: &Metadata) -> Self {
        let vocab = model.vocab();
        let n_tokens = u32::try_from(vocab.n_tokens()).unwrap_or(0);
        let array = |key| metadata.get(key).and_then(Value::as_array);
        let pieces = match array("tokenizer.ggml.tokens") {
            Some(Array::String(pieces)) => pieces.clone(),
            _ => Vec::new(),
        };
        let kinds: Vec<TokenKind> = match array("tokenizer.ggml.token_type") {
            Some(Array::I32(kinds)) => kinds.iter().map(|k| TokenKind::from_number((*k).into())).collect(),
            Some(Array::U32(kinds)) => kinds.iter().map(|k| TokenKind::from_number((*k).into())).collect(),
            _ => Vec::new(),
        };
        let ends: Vec<u32> = (0..n_tokens).filter(|&id| vocab.is_eog(token(id))).collect();
        let is_sentencepiece = metadata.str("tokenizer.ggml.model") == Some("llama");
        let bos = metadata.u64("tokenizer.ggml.bos_token_id").and_then(|id| u32::try_from(id).ok());
        let space_prefix = metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(is_sentencepiece);
        let kind = |id: u32| kinds.get(id as usize).copied().unwrap_or(TokenKind::Normal);
        let listed = pieces.iter().zip(0..n_tokens).map(|(piece, id)| (id, piece.as_str(), kind(id)));
        let markers = Markers::new(listed, |id| ends.binary_search(&id).is_ok());
        let bos = bos.filter(|id| vocab.should_add_bos() && *id < n_tokens);
        Self { pieces, kinds, n_tokens, ends, bos, space_prefix, markers, model }
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, CodecError> {
        // Never with llama.cpp's own beginning and end tokens: it asserts that they exist.
        let tokens = self.model.vocab().tokenize(text.as_bytes(), false, false);
        tokens
            .into_iter()
            .map(|token| u32::try_from(token.0).ok().filter(|id| *id < self.n_tokens))
            .collect::<Option<_>>()
            .ok_or_else(|| CodecError::Unable("it gives tokens that are not in its vocabulary".to_string()))
    }
}

/// Ids come from `0..n_tokens`, which began as an `i32`.
fn token(id: u32) -> LlamaToken {
    LlamaToken(i32::try_from(id).unwrap_or(i32::MAX))
}

impl TextCodec for LlamaCodec {
    fn n_tokens(&self) -> usize {
        self.n_tokens as usize
    }

    fn encode(&self, text: &str, place: Place) -> Result<Vec<u32>, CodecError> {
        if text.len() > MAX_BYTES {
            return Err(CodecError::TooLong { bytes: text.len(), limit: MAX_BYTES });
        }
        if self.pieces.is_empty() {
            return Err(CodecError::Unable("the file has no vocabulary".to_string()));
        }
        if text.is_empty() {
            return Ok(Vec::new());
        }
        if place == Place::Start || !self.space_prefix {
            return self.tokenize(text);
        }
        // llama.cpp puts a space before whatever it is given. After a line break, which no piece joins with what
        // follows, that space is before the break; take both away again.
        let before = self.tokenize("\n")?;
        let mut ids = self.tokenize(&format!("\n{text}"))?;
        if !ids.starts_with(&before) {
            return self.tokenize(text);
        }
        ids.drain(..before.len());
        Ok(ids)
    }

    fn bytes(&self, id: u32) -> Vec<u8> {
        if id >= self.n_tokens {
            return Vec::new();
        }
        self.model.vocab().token_to_piece(token(id), false, None)
    }

    fn piece(&self, id: u32) -> Cow<'_, str> {
        self.pieces.get(id as usize).map_or(Cow::Borrowed(""), |piece| Cow::Borrowed(piece.as_str()))
    }

    fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Normal)
    }

    fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    fn begins_with(&self) -> Option<u32> {
        self.bos
    }

    fn markers(&self) -> &Markers {
        &self.markers
    }
}
