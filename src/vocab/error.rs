use std::io;
use std::path::PathBuf;

/// Why a vocabulary cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder has no tokenizer.
    #[error(
        "no tokenizer in {}: found neither tokenizer.model nor tokenizer.json; download one of them from the model's \
         repository",
        dir.display()
    )]
    NoTokenizer {
        /// The model's folder.
        dir: PathBuf,
    },
    /// The folder has a tokenizer in files of another kind.
    #[error(
        "{} has no tokenizer.json and no tokenizer.model, but {}{}, from which nibble cannot make a vocabulary: download \
         tokenizer.json from the model's repository, or save one with AutoTokenizer.from_pretrained(FOLDER)\
         .save_pretrained(FOLDER) in Python",
        dir.display(),
        found.join(", "),
        class.as_ref().map(|class| format!(" for the class '{class}'")).unwrap_or_default()
    )]
    OtherTokenizer {
        /// The model's folder.
        dir: PathBuf,
        /// The files that are there.
        found: Vec<&'static str>,
        /// The tokenizer's class, if a file names it.
        class: Option<String>,
    },
    /// The folder does not have the tokenizer file that was chosen.
    #[error("{} has no {}", dir.display(), file.name())]
    NoSuchTokenizer {
        /// The model's folder.
        dir: PathBuf,
        /// The file.
        file: super::TokenizerFile,
    },
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is too large for a tokenizer.
    #[error("{} has {n_bytes} bytes; a tokenizer has at most {limit}. Is it another file of that name?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        n_bytes: u64,
        /// The largest size accepted, in bytes.
        limit: u64,
    },
    /// `tokenizer.model` is not a sentencepiece model.
    #[error("{} is not a sentencepiece model: {why}; download it again, or add a tokenizer.json", path.display())]
    NotSentencepiece {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A piece of a tokenizer file is not valid.
    #[error("{}: piece {id} {why}; download the file again", path.display())]
    BadPiece {
        /// The file.
        path: PathBuf,
        /// The piece's id.
        id: u64,
        /// What is wrong.
        why: String,
    },
    /// The tokenizer does something that GGUF cannot express.
    #[error("{}: {what}, which a GGUF file cannot express", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it does.
        what: String,
    },
    /// The pre-tokenizer is not one of those whose name in llama.cpp nibble knows.
    #[error(
        "{}: unknown pre-tokenizer: {found}; splitting text in a wrong way would silently make the model worse, so the \
         tokenizer is refused",
        path.display()
    )]
    UnknownPreTokenizer {
        /// The file.
        path: PathBuf,
        /// The pre-tokenizer, as it is in the file.
        found: String,
    },
    /// A file is not JSON, or has another structure.
    #[error("{} is not a tokenizer in JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A value in one of the JSON files has the wrong type.
    #[error("{file}: {place} is {found}, but should be {wanted}")]
    BadValue {
        /// The file's name.
        file: &'static str,
        /// Where in the file the value is.
        place: String,
        /// The value.
        found: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// The embedding has fewer rows than the tokenizer has pieces of text.
    #[error(
        "the model's embedding has {rows} rows, but its tokenizer has {pieces} pieces, and piece {id}, '{piece}', is \
         ordinary text: this is the tokenizer of another model"
    )]
    TooFewRows {
        /// Rows of the embedding.
        rows: u64,
        /// Pieces of the tokenizer.
        pieces: u64,
        /// The first piece of text without a row.
        id: u64,
        /// That piece.
        piece: String,
    },
    /// The vocabulary has too many pieces.
    #[error("the vocabulary has {found} pieces; at most {} are accepted", super::pieces::MAX_PIECES)]
    TooManyPieces {
        /// The number of pieces.
        found: u64,
    },
    /// A piece occurs twice.
    #[error("piece '{piece}' occurs twice in the vocabulary, as {first} and {second}, which llama.cpp cannot load")]
    Duplicate {
        /// The piece.
        piece: String,
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
    },
    /// A key of a GGUF file is missing or wrong.
    #[error("the GGUF file's '{key}' is missing or wrong: it should be {wanted}; convert the model again")]
    Metadata {
        /// The key.
        key: &'static str,
        /// What it should hold.
        wanted: String,
    },
    /// The kind of vocabulary is unknown.
    #[error("the GGUF file's vocabulary is of the unknown kind '{found}'; nibble supports llama, gpt2 and t5")]
    UnknownKind {
        /// The kind.
        found: String,
    },
    /// A byte piece is not spelled like one.
    #[error("piece {id}, '{piece}', is marked as a byte but not spelled like one (<0x0A>); convert the model again")]
    BadByte {
        /// Its id.
        id: u32,
        /// Its text.
        piece: String,
    },
    /// A piece is too long for merging.
    #[error("piece {id} has {n_bytes} bytes; a piece of text can have at most {limit}")]
    LongPiece {
        /// Its id.
        id: u32,
        /// Its size in bytes.
        n_bytes: usize,
        /// The most accepted, in bytes.
        limit: usize,
    },
    /// The pieces that are searched for in every text are too long in total.
    #[error("the user-defined and control pieces have more than {limit} bytes in total, which no real vocabulary has")]
    LongPieces {
        /// The most accepted, in bytes.
        limit: usize,
    },
    /// The vocabulary cannot encode text that no piece spells.
    #[error("the vocabulary has neither an unknown piece nor all 256 byte pieces, so some text cannot be encoded")]
    NoFallback,
    /// The replacement table is not valid.
    #[error("the GGUF file's 'tokenizer.ggml.precompiled_charsmap' is not valid: {why}; convert the model again")]
    CharsMap {
        /// What is wrong.
        why: &'static str,
    },
    /// nibble does not know how a byte-level vocabulary splits text.
    #[error("nibble does not know the pre-tokenizer '{pre}', and uses llama.cpp's tokenizer")]
    NoSplit {
        /// Its name, as in `tokenizer.ggml.pre`.
        pre: String,
    },
    /// nibble's own tokenizer does not support this kind.
    #[error("nibble has no tokenizer of its own for '{kind}' vocabularies, and uses llama.cpp's")]
    NoEncoder {
        /// The kind, as in `tokenizer.ggml.model`.
        kind: &'static str,
    },
}
