//! The tokenizer of a loaded model: nibble's own for sentencepiece vocabularies and for byte-level ones whose way of
//! splitting text it knows, llama.cpp's for the others.

use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::Error;
use super::load::Handle;
use crate::gguf::Metadata;
use crate::vocab::{self, ByteLevelBpe, SentencepieceBpe};
use crate::vocab::{Markers, PieceType, Pieces, Place, TokenizeError, Tokenizer, VocabKind};

/// Longer texts are refused: llama.cpp counts bytes and tokens in an `i32`.
const MAX_BYTES: usize = 256 << 20;

/// The tokenizer of a model.
pub(super) struct ModelTokenizer {
    encoder: Encoder,
    markers: Markers,
    space_prefix: bool,
}

enum Encoder {
    Own(Box<SentencepieceBpe>),
    ByteLevel(Box<ByteLevelBpe>),
    // llama.cpp only encodes. What tokens print and mean is read from the pieces, as for the other kinds.
    Llama(Arc<Handle>, Box<Pieces>),
}

impl ModelTokenizer {
    /// Makes the tokenizer that `metadata` describes. `pieces` are those of `metadata`.
    ///
    /// # Errors
    /// If the vocabulary is not one that text can be encoded with.
    pub fn new(pieces: Pieces, model: Arc<Handle>, metadata: &Metadata) -> Result<Self, Error> {
        let encoder = match pieces.kind() {
            VocabKind::Sentencepiece => Encoder::Own(Box::new(SentencepieceBpe::from_metadata(metadata)?)),
            VocabKind::ByteLevel => match ByteLevelBpe::from_metadata(metadata) {
                Ok(own) => Encoder::ByteLevel(Box::new(own)),
                // Splits text in a way that nibble does not know, or lacks what only nibble's tokenizer needs.
                Err(_) => Encoder::Llama(model, Box::new(pieces)),
            },
            VocabKind::Unigram => Encoder::Llama(model, Box::new(pieces)),
        };
        let mut tokenizer = Self { encoder, markers: Markers::default(), space_prefix: false };
        let pieces = tokenizer.pieces();
        let ids = 0..u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        let listed = ids.filter_map(|id| Some((id, pieces.text(id)?, pieces.piece_type(id)?)));
        let markers = Markers::new(listed, |id| pieces.is_end(id)).with_flags(vocab::flags(metadata));
        let space_prefix = pieces.kind() != VocabKind::ByteLevel;
        tokenizer.space_prefix = metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(space_prefix);
        tokenizer.markers = markers;
        Ok(tokenizer)
    }

    fn pieces(&self) -> &Pieces {
        match &self.encoder {
            Encoder::Own(tokenizer) => tokenizer.pieces(),
            Encoder::ByteLevel(tokenizer) => tokenizer.pieces(),
            Encoder::Llama(_, pieces) => pieces,
        }
    }

    /// Encodes text at the start of a text.
    fn encode_start(&self, text: &str) -> Result<Vec<u32>, TokenizeError> {
        let model = match &self.encoder {
            Encoder::Own(tokenizer) => return Ok(tokenizer.encode(text)),
            Encoder::ByteLevel(tokenizer) => return Ok(tokenizer.encode(text)),
            Encoder::Llama(model, _) => model,
        };
        let unable = |why: &str| TokenizeError::Unable(why.to_string());
        let n_tokens = self.pieces().len();
        tokenize(model, text)
            .ok_or_else(|| unable("it returns more tokens than can be counted"))?
            .into_iter()
            .map(|token| u32::try_from(token).ok().filter(|id| (*id as usize) < n_tokens))
            .collect::<Option<_>>()
            .ok_or_else(|| unable("it returns tokens that are not in its vocabulary"))
    }
}

/// Encodes a text of at most [`MAX_BYTES`] with llama.cpp; `None` if the tokens cannot be counted.
fn tokenize(model: &Handle, text: &str) -> Option<Vec<sys::llama_token>> {
    let n_bytes = i32::try_from(text.len()).ok()?;
    let mut tokens = vec![0; (text.len() / 2).max(8)];
    loop {
        let room = i32::try_from(tokens.len()).ok()?;
        // SAFETY: the vocabulary is that of a live model, and there is room for as many tokens as is said. Not with
        // llama.cpp's own first and last tokens, which it asserts to exist. Returns the negative of the number of tokens
        // where there is too little room, and the smallest number where that overflows.
        let n = unsafe {
            let text = text.as_ptr().cast();
            sys::llama_tokenize(model.vocab(), text, n_bytes, tokens.as_mut_ptr(), room, false, false)
        };
        match usize::try_from(n) {
            Ok(n) => {
                tokens.truncate(n);
                return Some(tokens);
            }
            Err(_) => tokens.resize(usize::try_from(n.checked_neg()?).ok()?, 0),
        }
    }
}

impl Tokenizer for ModelTokenizer {
    fn n_tokens(&self) -> usize {
        self.pieces().len()
    }

    fn encode(&self, text: &str, place: Place) -> Result<Vec<u32>, TokenizeError> {
        if text.len() > MAX_BYTES {
            return Err(TokenizeError::TooLong { bytes: text.len(), limit: MAX_BYTES });
        }
        if text.is_empty() {
            return Ok(Vec::new());
        }
        match (place, &self.encoder) {
            (Place::AfterMarker, Encoder::Own(tokenizer)) => return Ok(tokenizer.encode_after_marker(text)),
            (Place::Start | Place::AfterMarker, _) => return self.encode_start(text),
            (Place::Inside, _) if !self.space_prefix => return self.encode_start(text),
            (Place::Inside, _) => {}
        }
        // A space goes before whatever is encoded. With a line break in front, which no piece joins with what follows,
        // that space comes before the break; both are taken away again.
        let before = self.encode_start("\n")?;
        let mut ids = self.encode_start(&format!("\n{text}"))?;
        if !ids.starts_with(&before) {
            return self.encode_start(text);
        }
        ids.drain(..before.len());
        Ok(ids)
    }

    fn bytes(&self, id: u32) -> &[u8] {
        self.pieces().bytes(id)
    }

    fn piece(&self, id: u32) -> &str {
        self.pieces().text(id).unwrap_or_default()
    }

    fn kind(&self, id: u32) -> PieceType {
        self.pieces().piece_type(id).unwrap_or(PieceType::Unused)
    }

    fn is_end(&self, id: u32) -> bool {
        self.pieces().is_end(id)
    }

    fn begins_with(&self) -> Option<u32> {
        self.pieces().bos().filter(|_| self.pieces().add_bos())
    }

    fn markers(&self) -> &Markers {
        &self.markers
    }
}
