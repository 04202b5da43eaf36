//! Hugging Face folders: tensors over several files, configuration, tokenizer files, model card.
