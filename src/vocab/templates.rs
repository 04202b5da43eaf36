//! The chat template among several.
//!
//! A folder may have one template or several named ones, of which the one called `default` is used:
//!
//! | where | |
//! |---|---|
//! | `chat_template` in `tokenizer_config.json` | a template, a list of `{"name", "template"}`, or an object of templates by name |
//! | `additional_chat_templates/NAME.jinja` | beside `chat_template.jinja`, as transformers 5 saves them |

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use super::{TokenizerFiles, read_file};

/// No template is longer.
const MAX_BYTES: u64 = 4 << 20;

/// Returns the chat template: the one that was found already, or that called `default` among named ones. Warns where there
/// are templates and none of them is chosen.
pub(super) fn choose<'a>(files: &TokenizerFiles<'a>, warnings: &mut Vec<String>) -> Option<Cow<'a, str>> {
    if let Some(template) = files.chat_template {
        return Some(Cow::Borrowed(template));
    }
    let mut named = named(files);
    if let Some(template) = named.remove("default") {
        return Some(Cow::Owned(template));
    }
    if named.len() == 1 {
        return named.into_values().next().map(Cow::Owned);
    }
    if !named.is_empty() {
        let names: Vec<String> = named.keys().take(8).map(|name| format!("'{name}'")).collect();
        warnings.push(format!(
            "the model has {} chat templates ({}) and none that is called 'default', so the file gets none; save the right \
             one as chat_template.jinja in the folder and convert it again",
            named.len(),
            names.join(", ")
        ));
    }
    None
}

/// The named templates.
fn named(files: &TokenizerFiles<'_>) -> BTreeMap<String, String> {
    let mut named = BTreeMap::new();
    let folder = files.dir.join("additional_chat_templates");
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_string();
        if path.extension().is_some_and(|extension| extension == "jinja")
            && let Ok(bytes) = read_file(&path, MAX_BYTES)
            && let Ok(text) = String::from_utf8(bytes)
        {
            named.insert(name, text);
        }
    }
    match files.tokenizer_config.and_then(|config| config.get("chat_template")) {
        Some(Value::Object(templates)) => {
            let texts = templates.iter().filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_string())));
            named.extend(texts);
        }
        Some(Value::Array(list)) => {
            let text = |entry: &Value, key: &str| Some(entry.get(key)?.as_str()?.to_string());
            named.extend(list.iter().filter_map(|entry| Some((text(entry, "name")?, text(entry, "template")?))));
        }
        _ => {}
    }
    named
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chosen(config: Value, files: &[&str]) -> (Option<String>, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("additional_chat_templates");
        std::fs::create_dir(&folder).unwrap();
        for name in files {
            std::fs::write(folder.join(name), format!("from {name}")).unwrap();
        }
        let config = serde_json::from_value(config).unwrap();
        let files = TokenizerFiles {
            dir: dir.path().to_path_buf(),
            tokenizer_config: Some(&config),
            ..TokenizerFiles::default()
        };
        let mut warnings = Vec::new();
        (choose(&files, &mut warnings).map(Cow::into_owned), warnings)
    }

    #[test]
    fn the_template_that_is_called_default_is_used() {
        let template = |config: Value, files: &[&str]| chosen(config, files).0;
        assert_eq!(template(json!({"chat_template": {"default": "a", "tool_use": "b"}}), &[]).as_deref(), Some("a"));
        assert_eq!(
            template(json!({"chat_template": [{"name": "rag", "template": "only"}]}), &[]).as_deref(),
            Some("only")
        );
        assert_eq!(template(json!({}), &["default.jinja", "rag.jinja"]).as_deref(), Some("from default.jinja"));
        assert_eq!(template(json!({}), &["notes.txt"]), None);
    }

    #[test]
    fn templates_of_which_none_is_chosen_are_named() {
        let (template, warnings) = chosen(json!({"chat_template": {"tool_use": "b"}}), &["rag.jinja"]);
        assert_eq!(template, None);
        assert!(warnings[0].contains("2 chat templates ('rag', 'tool_use')"), "{warnings:?}");
        assert!(chosen(json!({}), &[]).1.is_empty());
    }
}
