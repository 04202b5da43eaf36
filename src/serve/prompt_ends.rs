//! Whether prompts of a template end with the beginning of the model's reasoning.
//!
//! Some templates write `<think>` themselves, some only with certain arguments. What they do is not in their text, so
//! one small conversation is rendered for each template and arguments.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value, json};

use super::answer::Markers;
use super::app::{App, Chosen};
use super::error::ApiError;
use super::protocol::{Answer, Chat, Prompt, Task};

/// The most answers to remember; the arguments come from requests.
const MOST: usize = 1000;

/// What is known of templates: by fingerprint of the model and arguments.
#[derive(Default)]
pub struct PromptEnds(Mutex<HashMap<(String, String), bool>>);

/// Returns whether prompts with these arguments end within reasoning.
///
/// # Errors
/// If the model does not answer.
pub async fn reasons(
    app: &App,
    model: &Chosen,
    markers: Markers,
    arguments: &Map<String, Value>,
) -> Result<bool, ApiError> {
    let key = (format!("{}/{}", model.name, model.info.fingerprint), Value::from(arguments.clone()).to_string());
    let lock = || app.prompt_ends.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = lock().get(&key) {
        return Ok(*known);
    }
    let messages = vec![json!({"role": "user", "content": "Hi"})];
    let chat = Chat { messages, arguments: arguments.clone(), ..Chat::default() };
    let text = match app.ask(&model.name, Task::Render { prompt: Prompt::Chat(Box::new(chat)) }).await {
        Ok(Answer::Text(text)) => text,
        Ok(_) => return Err(super::app::unexpected()),
        // The template refuses this conversation. What it says to that of the request is what matters.
        Err(error) if error.status == 400 => return Ok(false),
        Err(error) => return Err(error),
    };
    let reasons = text.trim_end().ends_with(markers.open);
    let mut known = lock();
    if known.len() >= MOST {
        known.clear();
    }
    known.insert(key, reasons);
    Ok(reasons)
}
