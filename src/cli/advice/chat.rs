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
    #[cfg(feature = "llama")]
    if let Some(advice) = of_command(cause) {
        return Some(advice);
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

/// Returns what to type instead of a command that `nibble chat` refused.
#[cfg(feature = "llama")]
fn of_command(cause: &(dyn Error + 'static)) -> Option<String> {
    use crate::base::suggest::question;
    use crate::cli::chat::{command, files, settings};

    if let Some(error) = cause.downcast_ref() {
        return match error {
            command::Error::Unknown { near, .. } => {
                let near: Vec<String> = near.iter().map(|name| format!("/{name}")).collect();
                let question = question(&near).unwrap_or_else(|| "/help lists the commands.".to_string());
                Some(format!("{question} To begin a message with a slash, type two."))
            }
            command::Error::NoArguments(_) => None,
            command::Error::NoFile(command) => Some(format!("type /{command} FILE")),
            command::Error::NoValue(_) => {
                Some("type one after the name, or /set alone to list the settings".to_string())
            }
        };
    }
    if let Some(settings::Error::Unknown { near, .. }) = cause.downcast_ref() {
        let near: Vec<String> = near.iter().map(|name| (*name).to_string()).collect();
        return Some(question(&near).unwrap_or_else(|| "/set lists them".to_string()));
    }
    match cause.downcast_ref()? {
        files::Error::Exists(path) => Some(format!("/save! {} overwrites it", path.display())),
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
    fn a_refused_command_is_answered_with_what_to_type() {
        use crate::cli::chat::{command, files, settings::Settings};
        use crate::cli::message;
        for (line, wanted) in [
            ("/hlep", "there is no command /hlep; did you mean /help? To begin a message with a slash, type two."),
            (
                "/usr/bin/env",
                "there is no command /usr/bin/env; /help lists the commands. To begin a message with a \
                              slash, type two.",
            ),
            ("/undo 3", "/undo takes no arguments"),
            ("/load", "/load needs the name of a file; type /load FILE"),
            (
                "/set temperature",
                "/set temperature needs a value; type one after the name, or /set alone to list the settings",
            ),
        ] {
            assert_eq!(message(&command::parse(line).unwrap_err().into()), wanted);
        }
        for (name, wanted) in [
            ("temprature", "there is no setting 'temprature'; did you mean temperature?"),
            ("colour", "there is no setting 'colour'; /set lists them"),
            ("stats", "stats cannot be 'x'; it has to be 'on' or 'off'"),
        ] {
            assert_eq!(message(&Settings::default().set(name, "x").unwrap_err().into()), wanted);
        }
        let exists = files::Error::Exists("a.json".into());
        assert_eq!(message(&exists.into()), "a.json exists; /save! a.json overwrites it");
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
