//! Loads the metadata in llama.cpp, for tests: it must load, have the same end tokens, and return the same ids wherever
//! llama.cpp's tokenizer does what sentencepiece does.

use std::ffi::CString;
use std::fs::File;

use llama_cpp_sys_2 as llama;

use super::Pieces;
use crate::gguf::{DEFAULT_ALIGNMENT, Layout, Metadata};

/// A vocabulary loaded by llama.cpp.
pub(super) struct Vocabulary {
    model: *mut llama::llama_model,
}

impl Vocabulary {
    /// Writes the metadata to a file without tensors and loads it.
    pub fn load(metadata: &Metadata) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vocabulary.gguf");
        let mut keys = Metadata::new();
        keys.set("general.architecture", "llama");
        keys.extend(metadata.iter().map(|(key, value)| (key.to_string(), value.clone())));
        let layout = Layout::new(&keys, Vec::new(), DEFAULT_ALIGNMENT, None).unwrap();
        layout.write_part(0, &mut File::create(&path).unwrap(), |_| [0u8; 0]).unwrap();
        let path = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the path is a C string that outlives the call, the parameters are llama.cpp's own.
        let model = unsafe {
            let mut parameters = llama::llama_model_default_params();
            parameters.vocab_only = true;
            llama::llama_model_load_from_file(path.as_ptr(), parameters)
        };
        assert!(!model.is_null(), "llama.cpp refused the vocabulary");
        Self { model }
    }

    fn vocab(&self) -> *const llama::llama_vocab {
        // SAFETY: the model is loaded, and lives as long as self.
        unsafe { llama::llama_model_get_vocab(self.model) }
    }

    /// Returns whether llama.cpp ends generation at this token.
    pub fn is_end(&self, id: u32) -> bool {
        // SAFETY: the vocabulary is alive; llama.cpp takes any id here.
        unsafe { llama::llama_vocab_is_eog(self.vocab(), id as i32) }
    }

    /// Encodes a text; recognizes control pieces if `special`.
    pub fn encode(&self, text: &str, special: bool) -> Vec<u32> {
        let mut ids = vec![0i32; text.len() + 8];
        // SAFETY: both buffers are alive and as long as said; the vocabulary is alive.
        let n = unsafe {
            llama::llama_tokenize(
                self.vocab(),
                text.as_ptr().cast(),
                text.len() as i32,
                ids.as_mut_ptr(),
                ids.len() as i32,
                false,
                special,
            )
        };
        ids[..usize::try_from(n).unwrap()].iter().map(|&id| id as u32).collect()
    }

    /// The bytes that a token prints; none for control pieces.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        let mut buffer = vec![0u8; 4096];
        // SAFETY: the buffer is alive and as long as said; the id is of this vocabulary, as the callers see to.
        let n = unsafe {
            llama::llama_token_to_piece(
                self.vocab(),
                id as i32,
                buffer.as_mut_ptr().cast(),
                buffer.len() as i32,
                0,
                false,
            )
        };
        buffer.truncate(usize::try_from(n).unwrap());
        buffer
    }
}

impl Drop for Vocabulary {
    fn drop(&mut self) {
        // SAFETY: loaded once, freed once.
        unsafe { llama::llama_model_free(self.model) }
    }
}

/// Asserts that every piece prints the same bytes as in llama.cpp.
///
/// llama.cpp treats pieces with the texts of end tokens as control pieces whatever their type, and does not replace `▁`
/// in user-defined pieces.
pub(super) fn assert_same_print(metadata: &Metadata) {
    let (pieces, theirs) = (Pieces::from_metadata(metadata).unwrap(), Vocabulary::load(metadata));
    let mut n = 0;
    for id in 0..pieces.len() as u32 {
        if pieces.piece_type(id) == Some(super::PieceType::Unknown) || theirs.is_end(id) {
            continue;
        }
        let mut bytes = theirs.bytes(id);
        if pieces.piece_type(id) == Some(super::PieceType::UserDefined) {
            bytes = String::from_utf8(bytes).unwrap().replace('▁', " ").into_bytes();
        }
        assert_eq!(pieces.bytes(id), bytes, "piece {id}, {:?}", pieces.text(id));
        n += 1;
    }
    assert!(n + 10 > pieces.len(), "only {n} were compared");
}
