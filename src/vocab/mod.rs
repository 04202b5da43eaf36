//! Tokenizers: from Hugging Face files to GGUF metadata, and from text to token ids.
