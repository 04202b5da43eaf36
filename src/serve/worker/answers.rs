//! The tokens in which the model wrote its answers, found by their texts.
//!
//! A client sends the answers back as text with its next message. A text can be spelled in many ways, and only in the
//! model's own does the prompt begin with what was read before.

use std::collections::{HashMap, VecDeque};

use crate::chat::Written;

/// The most answers.
const MOST: usize = 4096;
/// The most tokens of all of them together.
const MOST_TOKENS: usize = 1 << 21;

/// The last answers.
#[derive(Debug, Default)]
pub(super) struct Answers {
    by_text: HashMap<String, Written>,
    /// From the oldest to the newest.
    order: VecDeque<String>,
    n_tokens: usize,
}

impl Answers {
    /// Adds an answer, and drops the oldest ones if there are too many.
    pub fn add(&mut self, text: String, written: Written) {
        if text.is_empty() || written.tokens.len() > MOST_TOKENS {
            return;
        }
        self.n_tokens += written.tokens.len();
        match self.by_text.insert(text.clone(), written) {
            Some(old) => self.n_tokens -= old.tokens.len(),
            None => self.order.push_back(text),
        }
        while (self.order.len() > MOST || self.n_tokens > MOST_TOKENS)
            && let Some(oldest) = self.order.pop_front()
        {
            let old = self.by_text.remove(&oldest);
            self.n_tokens -= old.map_or(0, |old| old.tokens.len());
        }
    }

    /// Returns the tokens of an answer.
    pub fn get(&self, text: &str) -> Option<Written> {
        self.by_text.get(text).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(n: usize) -> Written {
        Written { after: String::new(), tokens: vec![7; n] }
    }

    #[test]
    fn the_oldest_answers_are_dropped() {
        let mut answers = Answers::default();
        for i in 0..MOST + 3 {
            answers.add(i.to_string(), written(1));
        }
        assert_eq!(answers.get("2"), None);
        assert_eq!(answers.get("3"), Some(written(1)));
        assert_eq!((answers.by_text.len(), answers.order.len(), answers.n_tokens), (MOST, MOST, MOST));
        answers.add("3".to_string(), written(2));
        assert_eq!((answers.get("3"), answers.n_tokens), (Some(written(2)), MOST + 1));
        answers.add("long".to_string(), written(MOST_TOKENS));
        assert_eq!((answers.by_text.len(), answers.n_tokens), (1, MOST_TOKENS));
        answers.add("longer".to_string(), written(MOST_TOKENS + 1));
        assert_eq!((answers.get("longer"), answers.n_tokens), (None, MOST_TOKENS));
    }
}
