//! Chat: templates, transcripts, stop rules.
