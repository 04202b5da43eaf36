//! From logits to a token: pure functions of logits, parameters and a random stream.
