//! The model card: the YAML at the head of a folder's README.md.
//!
//! Specification: <https://huggingface.co/docs/hub/model-cards#model-card-metadata>

use serde_json::{Map, Value};

/// What a model card says about a model. Everything is optional, and nothing is needed to convert.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelCard {
    /// The licence's identifier, such as `apache-2.0`, or `other`.
    pub license: Option<String>,
    /// The licence's name, if the identifier is `other`.
    pub license_name: Option<String>,
    /// Where the licence can be read: an address, or a file of the folder.
    pub license_link: Option<String>,
    /// The models this one was made from, such as `01-ai/Yi-34B`.
    pub base_model: Vec<String>,
    /// Languages, as ISO 639 codes.
    pub language: Vec<String>,
    /// Free words.
    pub tags: Vec<String>,
    /// Data sets it was trained on.
    pub datasets: Vec<String>,
    /// The model's name, if it differs from the folder's.
    pub model_name: Option<String>,
    /// The task, such as `text-generation`.
    pub pipeline_tag: Option<String>,
}

/// Parses the card at the head of `readme`; `Ok(None)` if there is none.
///
/// # Errors
/// If it is not YAML. The error is the parser's message, in one line.
pub(super) fn parse(readme: &str) -> Result<Option<ModelCard>, String> {
    let Some(yaml) = front_matter(readme) else { return Ok(None) };
    // `no` is Norwegian here.
    let options = serde_saphyr::options! { strict_booleans: true };
    let map: Option<Map<String, Value>> = serde_saphyr::from_str_with_options(yaml, options).map_err(|e| {
        let message = e.to_string();
        super::error::shown(message.lines().next().unwrap_or_default())
    })?;
    let map = map.unwrap_or_default();
    let text = |key: &str| map.get(key).and_then(scalar);
    let list = |key: &str| match map.get(key) {
        Some(Value::Array(items)) => items.iter().filter_map(scalar).collect(),
        other => other.and_then(scalar).into_iter().collect::<Vec<_>>(),
    };
    Ok(Some(ModelCard {
        license: text("license"),
        license_name: text("license_name"),
        license_link: text("license_link"),
        base_model: list("base_model"),
        language: list("language"),
        tags: list("tags"),
        datasets: list("datasets"),
        model_name: text("model_name"),
        pipeline_tag: text("pipeline_tag"),
    }))
}

/// The text between a first line `---` and the next such line.
fn front_matter(readme: &str) -> Option<&str> {
    let readme = readme.strip_prefix('\u{feff}').unwrap_or(readme);
    let body = readme.strip_prefix("---\n").or_else(|| readme.strip_prefix("---\r\n"))?;
    let mut at = 0;
    for line in body.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return body.get(..at);
        }
        at += line.len();
    }
    None
}

/// A scalar as text: a tag `2024` is the word, whatever YAML takes it for.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(yes) => Some(yes.to_string()),
        _ => None,
    }
    .filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| w.to_string()).collect()
    }

    #[test]
    fn reads_what_converters_carry_over() {
        let card = parse(
            "\u{feff}---\r\nlicense: other\r\nlicense_name: yi-license\r\nlicense_link: LICENSE\r\nbase_model: 01-ai/Yi-34B\r\n\
             language: [en, no, zh]\r\ntags:\r\n- yi\r\n- 2024\r\nmodel-index:\r\n- name: x\r\n  results: []\r\n\
             widget: {example_title: 'a'}\r\npipeline_tag: text-generation\r\n---\r\n# Yi\r\n---\r\n",
        )
        .unwrap()
        .unwrap();
        assert_eq!(
            card,
            ModelCard {
                license: Some("other".into()),
                license_name: Some("yi-license".into()),
                license_link: Some("LICENSE".into()),
                base_model: words(&["01-ai/Yi-34B"]),
                language: words(&["en", "no", "zh"]),
                tags: words(&["yi", "2024"]),
                pipeline_tag: Some("text-generation".into()),
                ..ModelCard::default()
            }
        );
    }

    #[test]
    fn a_list_and_a_single_word_are_read_alike() {
        let list = parse("---\nbase_model:\n- a/b\n- c/d\nlicense: {id: mit}\n---\n").unwrap().unwrap();
        assert_eq!(list.base_model, words(&["a/b", "c/d"]));
        assert_eq!(list.license, None);
    }

    #[test]
    fn a_readme_without_a_card_has_none() {
        for readme in ["", "# Yi", "---\nlicense: mit\n", "text\n---\nlicense: mit\n---\n"] {
            assert_eq!(parse(readme), Ok(None), "{readme:?}");
        }
        assert_eq!(parse("---\n---\n"), Ok(Some(ModelCard::default())));
    }

    #[test]
    fn broken_yaml_is_one_line_of_complaint() {
        let complaint = parse("---\nlicense: [mit\ntags: : :\n---\n").unwrap_err();
        assert!(!complaint.is_empty() && !complaint.contains('\n'), "{complaint}");
    }

    #[test]
    fn aliases_cannot_blow_up() {
        let mut yaml = "---\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_string();
        for i in 1..12 {
            let alias = format!("*a{}", i - 1);
            yaml += &format!("a{i}: &a{i} [{}]\n", [alias.as_str(); 10].join(", "));
        }
        yaml += "---\n";
        assert!(parse(&yaml).is_err());
    }
}
