//! The tokenizer of a loaded model: nibble's own for sentencepiece vocabularies, llama.cpp's for the others.

use std::sync::Arc;

use llama_cpp_2::model::LlamaModel;

use super::Error;
use crate::gguf::Metadata;
use crate::vocab::{Markers, Place, TokenizeError, Tokenizer};
use crate::vocab::{PieceType, Pieces, SentencepieceBpe, VocabKind};

/// Longer texts are refused: llama.cpp counts bytes and tokens in an `i32`, and panics or worse beyond.
const MAX_BYTES: usize = 256 << 20;

/// The tokenizer of a model.
pub(super) struct Codec {
    encoder: Encoder,
    markers: Markers,
    space_prefix: bool,
}

enum Encoder {
    Own(Box<SentencepieceBpe>),
    // Small beside the model, and the same for all vocabularies: what tokens print and mean is never llama.cpp's say.
    Llama(Arc<LlamaModel>, Box<Pieces>),
}

impl Codec {
    /// The tokenizer that `metadata` describes. `pieces` are those of `metadata`.
    ///
    /// # Errors
    /// Where the vocabulary is not one that text can be encoded with.
    pub(crate) fn new(pieces: Pieces, llama: Arc<LlamaModel>, metadata: &Metadata) -> Result<Self, Error> {
        let encoder = match pieces.kind() {
            VocabKind::Sentencepiece => Encoder::Own(Box::new(SentencepieceBpe::from_metadata(metadata)?)),
            VocabKind::Unigram | VocabKind::ByteLevel => Encoder::Llama(llama, Box::new(pieces)),
        };
        let mut codec = Self { encoder, markers: Markers::default(), space_prefix: false };
        let pieces = codec.pieces();
        let ids = 0..u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        let listed = ids.filter_map(|id| Some((id, pieces.text(id)?, pieces.piece_type(id)?)));
        let markers = Markers::new(listed, |id| pieces.is_end(id));
        let space_prefix = pieces.kind() != VocabKind::ByteLevel;
        codec.space_prefix = metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(space_prefix);
        codec.markers = markers;
        Ok(codec)
    }

    fn pieces(&self) -> &Pieces {
        match &self.encoder {
            Encoder::Own(tokenizer) => tokenizer.pieces(),
            Encoder::Llama(_, pieces) => pieces,
        }
    }

    /// Encodes text that begins a text.
    fn encode_start(&self, text: &str) -> Result<Vec<u32>, TokenizeError> {
        let model = match &self.encoder {
            Encoder::Own(tokenizer) => return Ok(tokenizer.encode(text)),
            Encoder::Llama(model, _) => model,
        };
        // Never with llama.cpp's own beginning and end tokens: it asserts that they exist.
        let tokens = model.vocab().tokenize(text.as_bytes(), false, false);
        tokens
            .into_iter()
            .map(|token| u32::try_from(token.0).ok().filter(|id| (*id as usize) < self.pieces().len()))
            .collect::<Option<_>>()
            .ok_or_else(|| TokenizeError::Unable("it gives tokens that are not in its vocabulary".to_string()))
    }
}

impl Tokenizer for Codec {
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
