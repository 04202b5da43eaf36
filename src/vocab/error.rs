use std::io;
use std::path::PathBuf;

/// Why a vocabulary could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no tokenizer to convert.
    #[error(
        "no tokenizer in {}: found neither tokenizer.model nor tokenizer.json; download one of them from where the \
         model came from",
        dir.display()
    )]
    NoTokenizer {
        /// The model's folder.
        dir: PathBuf,
    },
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is larger than any tokenizer.
    #[error("{} has {n_bytes} bytes, more than any tokenizer (at most {limit}); is it another file by that name?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        n_bytes: u64,
        /// What is accepted.
        limit: u64,
    },
    /// A file is not what its name says.
    #[error("{} is not a sentencepiece model: {why}; download it again, or put a tokenizer.json beside it", path.display())]
    NotSentencepiece {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A piece of a tokenizer file makes no sense.
    #[error("{}: piece {id} {why}; download the file again", path.display())]
    BadPiece {
        /// The file.
        path: PathBuf,
        /// The piece's id.
        id: u64,
        /// What is wrong.
        why: String,
    },
    /// The tokenizer does something that GGUF cannot say.
    #[error("{}: {what}, which a GGUF file cannot say", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it does.
        what: String,
    },
    /// A pre-tokenizer that llama.cpp does not have under any name nibble knows.
    #[error(
        "{}: this way of splitting text is none that nibble knows: {found}; a wrong one would make the model worse \
         without a word, so it is refused",
        path.display()
    )]
    UnknownPreTokenizer {
        /// The file.
        path: PathBuf,
        /// The pre-tokenizer, as the file has it.
        found: String,
    },
    /// A file is not JSON, or not of the expected shape.
    #[error("{} is not the JSON of a tokenizer", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A value in one of the JSON files is of the wrong kind.
    #[error("{file}: {place} is {found}, but should be {wanted}")]
    BadValue {
        /// The file's name.
        file: &'static str,
        /// The value's place in it.
        place: String,
        /// What is there.
        found: String,
        /// What should be.
        wanted: &'static str,
    },
    /// The embedding has fewer rows than the tokenizer has pieces of text.
    #[error(
        "the model's embedding has {rows} rows, but its tokenizer has {pieces} pieces, and piece {id}, '{piece}', is \
         ordinary text: the tokenizer belongs to another model"
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
    /// More pieces than any vocabulary has.
    #[error("a vocabulary of {found} pieces; at most {} are accepted", super::pieces::MAX_PIECES)]
    TooManyPieces {
        /// How many there are.
        found: u64,
    },
    /// A piece occurs twice.
    #[error(
        "piece '{piece}' occurs twice in the vocabulary, with the ids {first} and {second}; llama.cpp cannot load that"
    )]
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
    /// A kind of vocabulary that nibble does not know.
    #[error("the GGUF file's vocabulary is of the kind '{found}'; nibble knows llama, gpt2 and t5")]
    UnknownKind {
        /// The kind.
        found: String,
    },
    /// A byte piece that is not spelled like one.
    #[error("piece {id}, '{piece}', is marked as a byte but not spelled like one (<0x0A>); convert the model again")]
    BadByte {
        /// Its id.
        id: u32,
        /// Its text.
        piece: String,
    },
    /// A piece is too long to be found by merging.
    #[error("piece {id} has {n_bytes} bytes; pieces of text have at most {limit}")]
    LongPiece {
        /// Its id.
        id: u32,
        /// Its size.
        n_bytes: usize,
        /// What is accepted.
        limit: usize,
    },
    /// The pieces that are looked for in every text are too much text themselves.
    #[error("the pieces to be found in text have more than {limit} bytes together, more than any vocabulary")]
    LongPieces {
        /// What is accepted.
        limit: usize,
    },
    /// The vocabulary has nothing for text that no piece spells.
    #[error("the vocabulary has neither an unknown piece nor all 256 byte pieces, so that not every text has tokens")]
    NoFallback,
    /// The table of replacements is broken.
    #[error("the GGUF file's 'tokenizer.ggml.precompiled_charsmap' is broken: {why}; convert the model again")]
    CharsMap {
        /// What is wrong.
        why: &'static str,
    },
    /// nibble's own tokenizer does not do this kind.
    #[error("nibble has no tokenizer of its own for '{kind}' vocabularies; llama.cpp's is used for them")]
    NoEncoder {
        /// The kind, as in `tokenizer.ggml.model`.
        kind: &'static str,
    },
}
