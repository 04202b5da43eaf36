//! Running models: the only user of llama.cpp.
