//! A conversation: what was said, what the model still reads of it, and the file it is kept in.
//!
//! ```text
//! system  user assistant  user assistant  user assistant  user
//! └ head┘ └── turn 1 ───┘ └── turn 2 ───┘ └── turn 3 ───┘ └ turn 4, to be answered
//!         └──── forgotten: kept here ───┘ └── what the model reads, after the head ──
//! ```
//!
//! The file is JSON in the shape of OpenAI's API, so that other programs read it and theirs can be read:
//! `{"model": ..., "settings": {...}, "messages": [{"role": "user", "content": "..."}, ...]}`. Reading asks for the
//! messages alone, or for nothing but a list of them.

use serde_json::{Map, Value, json};

use super::prompt::Spoken;
use super::template::{Message, ROLES};

/// How the model wrote an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The prompt's text after its last marker.
    pub after: String,
    /// The tokens; they spell the answer exactly, and none of them is a marker.
    pub tokens: Vec<u32>,
}

/// What was said, in turns. A turn begins where the user speaks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    messages: Vec<Message>,
    /// One for each message; none for what the model has not written.
    written: Vec<Option<Written>>,
    /// Turns that the model no longer reads.
    forgotten: usize,
}

/// How a prompt goes into the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// As it is.
    Whole,
    /// Without so many more of the oldest turns.
    Without(usize),
    /// Not even without all earlier turns: it has so many tokens then.
    TooLong(usize),
}

/// Why a saved conversation could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// Not JSON.
    #[error("it is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON of another shape.
    #[error("it holds no messages; wanted is a list of them, or an object with a list called \"messages\"")]
    NoMessages,
    /// A message that is none.
    #[error("message {number} cannot be read: {reason}")]
    Message {
        /// Counted from 1.
        number: usize,
        /// What is wrong with it.
        reason: String,
    },
}

impl Conversation {
    /// What the model is told before everything else.
    pub fn system(&self) -> Option<&str> {
        self.messages.first().filter(|m| is_head(m)).map(|m| m.content.as_str())
    }

    /// Tells the model this before everything else, in place of what it was told; nothing where `None`.
    pub fn set_system(&mut self, text: Option<String>) {
        if self.system().is_some() {
            self.messages.remove(0);
            self.written.remove(0);
        }
        if let Some(text) = text {
            self.messages.insert(0, Message::new("system", text));
            self.written.insert(0, None);
        }
    }

    /// Everything that was said.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Turns, forgotten ones too.
    pub fn n_turns(&self) -> usize {
        self.starts().len()
    }

    /// Turns that the model no longer reads.
    pub fn n_forgotten(&self) -> usize {
        self.forgotten
    }

    /// The user says something: a new turn.
    pub fn ask(&mut self, text: impl Into<String>) {
        self.push(Message::new("user", text), None);
    }

    /// The model answers.
    pub fn answer(&mut self, text: impl Into<String>, written: Option<Written>) {
        self.push(Message::new("assistant", text), written);
    }

    fn push(&mut self, message: Message, written: Option<Written>) {
        self.messages.push(message);
        self.written.push(written);
    }

    /// The last thing that the user said.
    pub fn last_question(&self) -> Option<&str> {
        self.messages.iter().rev().find(|m| m.role == "user").map(|m| m.content.as_str())
    }

    /// The last message, where it is an answer.
    pub fn last_answer(&self) -> Option<&str> {
        self.messages.last().filter(|m| m.role == "assistant").map(|m| m.content.as_str())
    }

    /// Takes back what followed the last thing that the user said. Gives whether the user said anything.
    pub fn take_answer(&mut self) -> bool {
        let Some(last) = self.messages.iter().rposition(|m| m.role == "user") else { return false };
        self.cut(last + 1);
        true
    }

    /// Takes back the last message where it is an answer, and gives it.
    pub fn pop_answer(&mut self) -> Option<(String, Option<Written>)> {
        self.last_answer()?;
        let message = self.messages.pop()?;
        Some((message.content, self.written.pop()?))
    }

    /// Puts other words in the place of the last thing that the user said, and takes back what followed. Gives whether
    /// the user had said anything.
    pub fn edit(&mut self, text: impl Into<String>) -> bool {
        if !self.take_answer() {
            return false;
        }
        if let Some(last) = self.messages.last_mut() {
            last.content = text.into();
        }
        true
    }

    /// Takes the last turn back. Gives whether there was one.
    pub fn undo(&mut self) -> bool {
        let Some(start) = self.starts().pop() else { return false };
        self.cut(start);
        true
    }

    /// Takes all turns back. What the model is told before them stays.
    pub fn clear(&mut self) {
        self.cut(self.head());
    }

    fn cut(&mut self, n_messages: usize) {
        self.messages.truncate(n_messages);
        self.written.truncate(n_messages);
        if self.forgotten >= self.n_turns() {
            // Where everything that was still read has gone, there is room for what was not.
            self.forgotten = 0;
        }
    }

    /// The model no longer reads so many more of the oldest turns.
    pub fn forget(&mut self, n_turns: usize) {
        self.forgotten = (self.forgotten + n_turns).min(self.n_turns());
    }

    /// What the model reads, without so many more of the oldest turns, and how it wrote its own part of it.
    pub fn read(&self, without: usize) -> (Vec<Message>, Vec<Spoken<'_>>) {
        let starts = self.starts();
        let from = starts.get(self.forgotten + without).copied().unwrap_or(self.messages.len());
        let kept = (0..self.head()).chain(from..self.messages.len());
        let spoken = |i: usize| {
            let written = self.written[i].as_ref()?;
            Some(Spoken { after: &written.after, text: &self.messages[i].content, tokens: &written.tokens })
        };
        (kept.clone().map(|i| self.messages[i].clone()).collect(), kept.filter_map(spoken).collect())
    }

    /// How the prompt fits a context of `n_ctx` tokens, of which an answer is to have `room`, and `least` at the very
    /// least. `size` gives the tokens of the prompt without so many of the oldest turns.
    ///
    /// Where turns have to go, so many go that half of the context is free, if there are as many: what remains has to be
    /// read anew, which should not happen with every turn.
    ///
    /// # Errors
    /// Those of `size`.
    pub fn fit<E>(
        &self,
        n_ctx: usize,
        room: usize,
        least: usize,
        mut size: impl FnMut(usize) -> Result<usize, E>,
    ) -> Result<Fit, E> {
        if size(0)?.saturating_add(room) <= n_ctx {
            return Ok(Fit::Whole);
        }
        let most = self.n_turns().saturating_sub(self.forgotten + 1);
        let smallest = size(most)?;
        if smallest.saturating_add(least) > n_ctx {
            return Ok(Fit::TooLong(smallest));
        }
        if most == 0 {
            return Ok(Fit::Whole);
        }
        // The fewest that leave at most half; all but the last turn where even that is more.
        let (mut too_few, mut enough) = (0, most);
        while too_few + 1 < enough {
            let middle = too_few.midpoint(enough);
            if size(middle)? <= n_ctx / 2 {
                enough = middle;
            } else {
                too_few = middle;
            }
        }
        Ok(Fit::Without(enough))
    }

    /// Messages at the beginning that are not part of a turn.
    fn head(&self) -> usize {
        self.messages.iter().take_while(|m| is_head(m)).count()
    }

    /// Where turns begin. What the user says in several messages is one turn, and so is what comes before the user says
    /// anything.
    fn starts(&self) -> Vec<usize> {
        let head = self.head();
        let is_user = |i: usize| self.messages[i].role == "user";
        (head..self.messages.len()).filter(|&i| i == head || (is_user(i) && !is_user(i - 1))).collect()
    }

    /// The file's text. `settings` are for people to read.
    pub fn to_json(&self, model: &str, settings: Map<String, Value>) -> String {
        let value = json!({"model": model, "settings": settings, "messages": self.messages});
        format!("{value:#}\n")
    }

    /// Reads a file that [`Self::to_json`], or another program, has written.
    ///
    /// # Errors
    /// Where it is not JSON, has no messages, or one that is not text by somebody templates know.
    pub fn from_json(text: &str) -> Result<Self, SavedError> {
        // Some editors begin files with a byte order mark.
        let value = serde_json::from_str(text.strip_prefix('\u{feff}').unwrap_or(text))?;
        let messages = match value {
            Value::Array(messages) => messages,
            Value::Object(mut object) => match object.remove("messages") {
                Some(Value::Array(messages)) => messages,
                _ => return Err(SavedError::NoMessages),
            },
            _ => return Err(SavedError::NoMessages),
        };
        let mut conversation = Self::default();
        for (number, message) in (1..).zip(messages) {
            let wrong = |reason: String| SavedError::Message { number, reason };
            let message: Message = serde_json::from_value(message).map_err(|e| {
                // What serde says of content that is neither text nor a list of it helps nobody.
                let said = e.to_string();
                let untagged = said.contains("untagged enum");
                wrong(if untagged { "its content is not text".to_string() } else { said })
            })?;
            if !ROLES.contains(&message.role.as_str()) {
                return Err(wrong(format!("'{}' is not a role; roles are {}", message.role, ROLES.join(", "))));
            }
            conversation.push(message, None);
        }
        Ok(conversation)
    }
}

fn is_head(message: &Message) -> bool {
    matches!(message.role.as_str(), "system" | "developer")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A conversation of so many answered turns.
    fn turns(n: usize) -> Conversation {
        let mut conversation = Conversation::default();
        conversation.set_system(Some("Be brief.".to_string()));
        for i in 1..=n {
            conversation.ask(format!("question {i}"));
            conversation.answer(format!("answer {i}"), Some(Written { after: String::new(), tokens: vec![i as u32] }));
        }
        conversation
    }

    fn contents(messages: &[Message]) -> Vec<&str> {
        messages.iter().map(|m| m.content.as_str()).collect()
    }

    #[test]
    fn a_turn_can_be_taken_back_asked_again_and_edited() {
        let mut conversation = turns(2);
        assert!(conversation.undo());
        assert_eq!(contents(conversation.messages()), ["Be brief.", "question 1", "answer 1"]);
        assert!(conversation.edit("other"));
        assert_eq!(contents(conversation.messages()), ["Be brief.", "other"]);
        assert_eq!(conversation.last_answer(), None);
        conversation.answer("yes", None);
        assert_eq!(conversation.pop_answer(), Some(("yes".to_string(), None)));
        assert_eq!(conversation.pop_answer(), None);
        assert!(conversation.take_answer());
        assert_eq!(conversation.last_question(), Some("other"));
        assert!(conversation.undo());
        assert!(!conversation.undo() && !conversation.take_answer() && !conversation.edit("x"));
        assert_eq!(contents(conversation.messages()), ["Be brief."]);
    }

    #[test]
    fn what_the_model_is_told_first_outlives_the_turns() {
        let mut conversation = turns(2);
        conversation.clear();
        assert_eq!((conversation.n_turns(), conversation.system()), (0, Some("Be brief.")));
        conversation.set_system(Some("Be long.".to_string()));
        conversation.ask("a");
        conversation.set_system(None);
        assert_eq!(contents(conversation.messages()), ["a"]);
        conversation.set_system(Some("Hm.".to_string()));
        assert_eq!(contents(conversation.messages()), ["Hm.", "a"]);
    }

    #[test]
    fn what_is_forgotten_is_kept_and_not_read() {
        let mut conversation = turns(4);
        conversation.forget(2);
        let (messages, spoken) = conversation.read(0);
        assert_eq!(contents(&messages), ["Be brief.", "question 3", "answer 3", "question 4", "answer 4"]);
        assert_eq!(
            spoken.iter().map(|s| (s.text, s.tokens)).collect::<Vec<_>>(),
            [("answer 3", &[3][..]), ("answer 4", &[4][..])]
        );
        assert_eq!(contents(&conversation.read(1).0), ["Be brief.", "question 4", "answer 4"]);
        assert_eq!(conversation.messages().len(), 9);
        // Back beyond what was forgotten: it is read again.
        conversation.undo();
        assert_eq!(conversation.n_forgotten(), 2);
        conversation.undo();
        assert_eq!(conversation.n_forgotten(), 0);
        assert_eq!(contents(&conversation.read(0).0).len(), 5);
    }

    #[test]
    fn turns_go_from_the_oldest_until_half_of_the_context_is_free() {
        let mut conversation = turns(9);
        conversation.ask("question 10");
        let size = |each: usize| move |without: usize| Ok::<_, ()>(10 + each * (10 - without));
        assert_eq!(conversation.fit(1000, 100, 10, size(89)), Ok(Fit::Whole), "900 and 100");
        assert_eq!(conversation.fit(1000, 100, 10, size(90)), Ok(Fit::Without(5)), "10 + 5 * 90 is 460");
        assert_eq!(conversation.fit(1000, 100, 10, size(480)), Ok(Fit::Without(9)));
        assert_eq!(conversation.fit(1000, 100, 10, size(980)), Ok(Fit::Without(9)), "990 and 10");
        assert_eq!(conversation.fit(1000, 100, 10, size(981)), Ok(Fit::TooLong(991)));
        conversation.forget(6);
        assert_eq!(conversation.fit(1000, 100, 10, |without| Ok::<_, ()>(400 * (4 - without))), Ok(Fit::Without(3)));
        assert_eq!(conversation.fit(1000, 100, 10, |_| Err("no")), Err("no"));
        let mut alone = Conversation::default();
        alone.ask("x");
        assert_eq!(alone.fit(100, 50, 10, |_| Ok::<_, ()>(60)), Ok(Fit::Whole), "there is nothing to forget");
        assert_eq!(alone.fit(100, 50, 10, |_| Ok::<_, ()>(91)), Ok(Fit::TooLong(91)));
    }

    #[test]
    fn a_saved_conversation_reads_as_openai_writes_it() {
        let bare = r#"[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]"#;
        let whole = format!(r#"{{"model": "x", "temperature": 1, "messages": {bare}}}"#);
        for text in [bare, &whole, &format!("\u{feff}{whole}")] {
            assert_eq!(contents(Conversation::from_json(text).unwrap().messages()), ["a", "b"]);
        }
        let parts = r#"[{"role": "user", "content": [{"type": "text", "text": "a"}]}]"#;
        assert_eq!(contents(Conversation::from_json(parts).unwrap().messages()), ["a"]);
    }

    #[test]
    fn what_is_no_conversation_is_refused_with_the_reason() {
        for (text, wanted) in [
            ("", "it is not JSON"),
            ("{\"messages\": [", "it is not JSON"),
            ("3", "it holds no messages"),
            ("{}", "it holds no messages"),
            (r#"{"messages": 3}"#, "it holds no messages"),
            (r#"[{"role": "user", "content": "a"}, 7]"#, "message 2 cannot be read"),
            (r#"[{"content": "a"}]"#, "missing field `role`"),
            (r#"[{"role": "user", "content": 7}]"#, "its content is not text"),
            (r#"[{"role": "im_end", "content": ""}]"#, "'im_end' is not a role"),
            (r#"[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]"#, "message 1"),
        ] {
            let error = Conversation::from_json(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
        assert!(Conversation::from_json(&"[".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn what_is_saved_is_what_is_read(
            said in prop::collection::vec((0..3usize, "\\PC{0,6}|[\\x00-\\x1f\u{202e}\"\\\\]{0,4}"), 0..8),
        ) {
            let mut conversation = Conversation::default();
            for (who, text) in said {
                match who {
                    0 => conversation.ask(text),
                    1 => conversation.answer(text, None),
                    _ => conversation.set_system(Some(text)),
                }
            }
            let text = conversation.to_json("m\u{1b}.gguf", Map::new());
            prop_assert!(!text.contains('\u{1b}'), "JSON spells control characters out");
            prop_assert_eq!(Conversation::from_json(&text).unwrap(), conversation);
        }

        #[test]
        fn whatever_is_taken_back_no_turn_is_lost_or_read_twice(
            steps in prop::collection::vec((0..7usize, 0..4usize), 0..40),
        ) {
            let mut conversation = Conversation::default();
            for (step, n) in steps {
                match step {
                    0 => conversation.ask("q"),
                    1 => conversation.answer("a", Some(Written { after: String::new(), tokens: vec![1] })),
                    2 => drop(conversation.undo()),
                    3 => drop(conversation.edit("e")),
                    4 => conversation.forget(n),
                    5 => drop(conversation.take_answer()),
                    _ => conversation.set_system((n > 1).then(|| "s".to_string())),
                }
                prop_assert_eq!(conversation.messages.len(), conversation.written.len());
                prop_assert!(conversation.forgotten <= conversation.n_turns());
                let (messages, spoken) = conversation.read(n);
                prop_assert!(spoken.len() <= messages.len() && messages.len() <= conversation.messages.len());
                prop_assert!(conversation.messages.ends_with(&messages[conversation.head()..]));
            }
        }
    }
}
