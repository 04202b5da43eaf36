//! ARC, easy and challenge: questions about school science, as AI2 publishes them (<https://allenai.org/data/arc>), and
//! as Hugging Face exports them.
//!
//! ```text
//! {"question": {"stem": "What melts?", "choices": [{"text": "ice", "label": "A"}, ...]}, "answerKey": "A"}
//! {"question": "What melts?", "choices": {"text": ["ice", ...], "label": ["A", ...]}, "answerKey": "A"}
//!
//! Question: What melts?
//! Answer:                 the choices are ' ' and a text
//! ```

use serde_json::Value;

use super::source::{Object, Source, texts};
use super::{Error, Format, Parsed, Question, Score, Scored};

pub(super) static FORMAT: Format = Format {
    name: "arc",
    about: "ARC easy or challenge, of AI2 or Hugging Face (JSON lines)",
    usual_shots: 0,
    scores: &[Score::AccuracyNormalised, Score::Accuracy],
    scored: Scored::Choice,
    looks_right: |source| {
        source.first_object().is_some_and(|first| first.contains_key("answerKey") && first.contains_key("question"))
    },
    parse,
};

fn parse(source: &Source<'_>) -> Result<Parsed, Error> {
    let mut questions = Vec::new();
    for object in source.objects()? {
        let (stem, choices) = stem_and_choices(&object)
            .ok_or_else(|| object.fails("there is no 'question' with its 'choices', each with 'text' and 'label'"))?;
        let key = object.text_or_number("answerKey").ok_or_else(|| object.fails("there is no 'answerKey'"))?;
        let right = choices
            .iter()
            .position(|(label, _)| *label == key)
            .ok_or_else(|| object.fails(format!("'answerKey' is {key}, but no choice has that label")))?;
        let context = format!("Question: {stem}\nAnswer:");
        questions.push(Question::pick(object.line, &context, choices.iter().map(|(_, text)| *text), &[right]));
    }
    Ok(Parsed { questions, ..Parsed::default() })
}

/// Returns the question, and the labels and texts of its choices.
fn stem_and_choices<'a>(object: &'a Object<'_>) -> Option<(&'a str, Vec<(&'a str, &'a str)>)> {
    match object.get("question")? {
        Value::String(stem) => {
            let choices = object.get("choices")?;
            let (labels, texts) = (texts(choices.get("label")?)?, texts(choices.get("text")?)?);
            (labels.len() == texts.len()).then(|| (stem.as_str(), labels.into_iter().zip(texts).collect()))
        }
        question => {
            let stem = question.get("stem")?.as_str()?;
            let choices = question.get("choices")?.as_array()?.iter();
            let pair = |choice: &'a Value| Some((choice.get("label")?.as_str()?, choice.get("text")?.as_str()?));
            Some((stem, choices.map(pair).collect::<Option<_>>()?))
        }
    }
}
