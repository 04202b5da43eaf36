//! `tokenizer.model`: a sentencepiece model, which is a Protocol Buffers message.
//!
//! Schema: <https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto>. Only the fields that
//! nibble needs are declared; others are skipped.

use std::path::Path;

use prost::Message;

use super::draft::{Draft, Piece};
use super::{Error, MAX_PIECES, PieceType, VocabKind, pieces, read_file};

/// The largest known file has 5 MB. A decoded message can take twenty times its size in memory, so the limit is low.
const MAX_FILE_BYTES: u64 = 32 << 20;

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<PieceProto>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct PieceProto {
    // Declared as bytes, so that the error can name a piece that is not UTF-8.
    #[prost(bytes = "vec", optional, tag = "1")]
    piece: Option<Vec<u8>>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3", default = "1")]
    ty: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3", default = "1")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "41", default = "1")]
    bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42", default = "2")]
    eos_id: Option<i32>,
    #[prost(int32, optional, tag = "43", default = "-1")]
    pad_id: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3", default = "true")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5", default = "true")]
    escape_whitespaces: Option<bool>,
}

/// Reads a model file.
pub(super) fn read(path: &Path) -> Result<Draft, Error> {
    parse(path, &read_file(path, MAX_FILE_BYTES)?)
}

/// Parses a model file; `path` is for messages.
fn parse(path: &Path, bytes: &[u8]) -> Result<Draft, Error> {
    let model = ModelProto::decode(bytes)
        .map_err(|error| Error::NotSentencepiece { path: path.to_path_buf(), why: error.to_string() })?;
    let trainer = model.trainer.unwrap_or_default();
    let normalizer = model.normalizer.unwrap_or_default();
    if model.pieces.is_empty() {
        return Err(Error::NotSentencepiece { path: path.to_path_buf(), why: "it has no pieces".to_string() });
    }
    if model.pieces.len() > MAX_PIECES {
        return Err(Error::TooManyPieces { found: model.pieces.len() as u64 });
    }
    let unsupported = |what: &str| Error::Unsupported { path: path.to_path_buf(), what: what.to_string() };
    let kind = match trainer.model_type() {
        1 => VocabKind::Unigram,
        2 => VocabKind::Sentencepiece,
        3 => return Err(unsupported("this is a word model")),
        4 => return Err(unsupported("this is a character model")),
        other => return Err(unsupported(&format!("this is a model of the unknown type {other}"))),
    };
    if !normalizer.escape_whitespaces() {
        return Err(unsupported("it does not replace spaces by '▁'"));
    }
    if trainer.treat_whitespace_as_suffix() {
        return Err(unsupported("it attaches spaces to the word before them"));
    }
    let n_pieces = model.pieces.len();
    let pieces = pieces(path, model.pieces)?;
    if !trainer.byte_fallback()
        && let Some(id) = pieces.iter().position(|piece| piece.ty == PieceType::Byte)
    {
        let why = "is a byte, but the model has no byte fallback".to_string();
        return Err(Error::BadPiece { path: path.to_path_buf(), id: id as u64, why });
    }
    // -1 means none.
    let id = |id: i32| u64::try_from(id).ok().filter(|&id| id < n_pieces as u64);
    Ok(Draft {
        kind,
        pre: "default",
        pieces,
        typed: true,
        merges: None,
        whole_words: None,
        own_merges: None,
        space_prefix: Some(normalizer.add_dummy_prefix()),
        prefix_once: false,
        prefix_unless_space: false,
        prefix_after: Vec::new(),
        prefix_normalizes: false,
        escape_normalizes: false,
        flags: Vec::new(),
        normalized: Vec::new(),
        remove_extra_whitespaces: Some(normalizer.remove_extra_whitespaces()),
        bos: id(trainer.bos_id()),
        eos: id(trainer.eos_id()),
        padding: id(trainer.pad_id()),
        charsmap: normalizer.precompiled_charsmap.unwrap_or_default(),
        added: Vec::new(),
        add_bos: None,
        add_eos: None,
    })
}

fn pieces(path: &Path, protos: Vec<PieceProto>) -> Result<Vec<Piece>, Error> {
    let mut found = Vec::with_capacity(protos.len());
    let mut unknown = None;
    for (id, proto) in protos.into_iter().enumerate() {
        let bad = |why: String| Error::BadPiece { path: path.to_path_buf(), id: id as u64, why };
        let (number, score) = (proto.ty(), proto.score());
        let text = String::from_utf8(proto.piece.unwrap_or_default()).map_err(|_| bad("is not UTF-8".to_string()))?;
        let ty = PieceType::from_number(number).ok_or_else(|| bad(format!("has the unknown type {number}")))?;
        if text.is_empty() {
            return Err(bad("is empty".to_string()));
        }
        if score.is_nan() {
            return Err(bad("has a score that is not a number".to_string()));
        }
        if ty == PieceType::Byte && pieces::byte_of(&text).is_none() {
            return Err(bad(format!("'{text}' is a byte, but is not spelled like one (<0x0A>)")));
        }
        if ty == PieceType::Unknown
            && let Some(first) = unknown.replace(id)
        {
            return Err(bad(format!("is the unknown piece, but so is piece {first}")));
        }
        found.push(Piece { text, score, ty });
    }
    if unknown.is_none() {
        let why = "it has no unknown piece".to_string();
        return Err(Error::NotSentencepiece { path: path.to_path_buf(), why });
    }
    Ok(found)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bytes of a model with these pieces, with byte fallback if it has byte pieces.
    pub fn model(pieces: &[(&str, f32, PieceType)]) -> Vec<u8> {
        proto(pieces).encode_to_vec()
    }

    fn proto(pieces: &[(&str, f32, PieceType)]) -> ModelProto {
        let piece = |&(text, score, ty): &(&str, f32, PieceType)| PieceProto {
            piece: Some(text.as_bytes().to_vec()),
            score: Some(score),
            ty: Some(ty as i32),
        };
        ModelProto {
            pieces: pieces.iter().map(piece).collect(),
            trainer: Some(TrainerSpec {
                model_type: Some(2),
                byte_fallback: Some(pieces.iter().any(|piece| piece.2 == PieceType::Byte)),
                ..TrainerSpec::default()
            }),
            normalizer: Some(NormalizerSpec { add_dummy_prefix: Some(false), ..NormalizerSpec::default() }),
        }
    }

    const UNKNOWN: (&str, f32, PieceType) = ("<unk>", 0.0, PieceType::Unknown);

    fn read(bytes: &[u8]) -> Result<Draft, Error> {
        parse(Path::new("tokenizer.model"), bytes)
    }

    /// The error for a model that `change` has broken.
    fn broken(change: impl FnOnce(&mut ModelProto)) -> String {
        let mut model = proto(&[UNKNOWN, ("a", -1.0, PieceType::Normal)]);
        assert!(read(&model.encode_to_vec()).is_ok());
        change(&mut model);
        read(&model.encode_to_vec()).unwrap_err().to_string()
    }

    #[test]
    fn fields_that_are_left_out_have_the_defaults_of_the_schema() {
        let mut model = proto(&[UNKNOWN, ("a", -1.0, PieceType::Normal), ("b", -2.0, PieceType::Normal)]);
        model.pieces[1].ty = None;
        model.normalizer = None;
        model.trainer = None;
        let draft = read(&model.encode_to_vec()).unwrap();
        assert_eq!(draft.kind, VocabKind::Unigram);
        assert_eq!(draft.pieces[1].ty, PieceType::Normal);
        assert_eq!((draft.space_prefix, draft.remove_extra_whitespaces), (Some(true), Some(true)));
        assert_eq!((draft.bos, draft.eos, draft.padding), (Some(1), Some(2), None));
    }

    #[test]
    fn refuses_pieces_that_make_no_sense() {
        assert!(broken(|m| m.pieces[1].piece = Some(vec![0xff])).contains("piece 1 is not UTF-8"));
        assert!(broken(|m| m.pieces[1].piece = None).contains("piece 1 is empty"));
        assert!(broken(|m| m.pieces[1].score = Some(f32::NAN)).contains("not a number"));
        assert!(broken(|m| m.pieces[1].ty = Some(77)).contains("unknown type 77"));
        assert!(broken(|m| m.pieces[1].ty = Some(6)).contains("not spelled like one"));
        assert!(broken(|m| m.pieces[1].ty = Some(2)).contains("so is piece 0"));
        assert!(broken(|m| m.pieces[0].ty = Some(1)).contains("it has no unknown piece"));
        assert!(broken(|m| m.pieces.clear()).contains("no pieces"));
        let byte = broken(|m| (m.pieces[1].piece, m.pieces[1].ty) = (Some(b"<0x41>".to_vec()), Some(6)));
        assert!(byte.contains("no byte fallback"), "{byte}");
    }

    #[test]
    fn refuses_models_that_gguf_cannot_say() {
        let trainer = |change: fn(&mut TrainerSpec)| broken(|m| change(m.trainer.as_mut().unwrap()));
        assert!(trainer(|t| t.model_type = Some(3)).contains("word model"));
        assert!(trainer(|t| t.model_type = Some(4)).contains("character model"));
        assert!(trainer(|t| t.model_type = Some(-9)).contains("unknown type -9"));
        assert!(trainer(|t| t.treat_whitespace_as_suffix = Some(true)).contains("word before"));
        let escape = broken(|m| m.normalizer.as_mut().unwrap().escape_whitespaces = Some(false));
        assert!(escape.contains("does not replace spaces"), "{escape}");
    }

    #[test]
    fn a_truncated_model_is_an_error_or_a_smaller_model() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/yi-nano/tokenizer.model");
        let whole = std::fs::read(path).unwrap();
        let n_pieces = read(&whole).unwrap().pieces.len();
        assert_eq!(n_pieces, 6400);
        for len in (0..whole.len()).step_by(997) {
            if let Ok(draft) = read(&whole[..len]) {
                assert!(draft.pieces.len() <= n_pieces);
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            mut bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0x0a), Just(0x80), Just(0xff)], 0..200),
            at in any::<prop::sample::Index>(),
        ) {
            let _ = read(&bytes);
            let mut model = model(&[UNKNOWN, ("ab", -1.0, PieceType::Normal), ("<0x0A>", 0.0, PieceType::Byte)]);
            let at = at.index(model.len());
            model.splice(at..(at + 1), bytes.drain(..bytes.len().min(3)));
            let _ = read(&model);
        }
    }
}
