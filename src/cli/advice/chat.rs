//! What to type when something goes wrong with conversations and templates.

use std::error::Error;

use crate::chat;
#[cfg(feature = "llama")]
use crate::engine::TurnError;

/// Returns the flags or commands that help with `cause`, as words that follow "; ".
pub fn advice(cause: &(dyn Error + 'static)) -> Option<String> {
    #[cfg(feature = "llama")]
    if let Some(TurnError::TooLong { .. }) = cause.downcast_ref() {
        return Some("shorten the message, or start with a larger --ctx".to_string());
    }
    match cause.downcast_ref()? {
        chat::Error::NoTemplate => Some(
            "pass plain text without --chat, or a template: --chat-template FILE, or --chat-template chatml if the \
             model was trained on <|im_start|>"
                .to_string(),
        ),
        chat::Error::Argument(name) if name == "tools" => Some("give tools with --tools FILE".to_string()),
        chat::Error::Argument(_) => Some("leave it out of --template-args".to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_template_is_answered_with_the_flag_that_names_one() {
        let advice = advice(&chat::Error::NoTemplate).unwrap();
        assert!(advice.contains("--chat-template FILE"), "{advice}");
        assert!(!chat::Error::NoTemplate.to_string().contains("--"));
    }

    #[cfg(feature = "llama")]
    #[test]
    fn a_prompt_that_is_too_long_is_answered_with_a_larger_context() {
        let error = anyhow::Error::from(TurnError::TooLong { tokens: 700, n_ctx: 512, least: 16 });
        let said = crate::cli::message(&error);
        assert!(said.contains("the prompt has 700 tokens") && said.ends_with("a larger --ctx"), "{said}");
        assert!(!error.to_string().contains("--"));
    }
}
