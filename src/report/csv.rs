//! A comparison as a table for spreadsheets and scripts: CSV as in RFC 4180, in UTF-8.
//!
//! A candidate has a row over all texts (`part` is `all`) and one for each text (`part` is `text`). Every measure has
//! three columns: the number, and the ends of its interval (`kld`, `kld_low`, `kld_high`). Missing values are empty;
//! numbers that are not finite are `inf`, `-inf` and `NaN`. Task scores are in the rows over all texts, in the last
//! columns. Text that a spreadsheet would treat as a formula gets an apostrophe in front.

use std::borrow::Cow;

use crate::report::results::{Candidate, Estimate, Results, Scores, TaskScores};

/// A measure's name, and the function that reads it.
type Measure = (&'static str, fn(&Scores) -> Estimate);

/// The measures, in the order of their columns.
const MEASURES: [Measure; 11] = [
    ("kld", |scores| scores.kld),
    ("kld_median", |scores| scores.kld_median),
    ("kld_90", |scores| scores.kld_90),
    ("kld_99", |scores| scores.kld_99),
    ("kld_999", |scores| scores.kld_999),
    ("kld_max", |scores| scores.kld_max),
    ("perplexity", |scores| scores.perplexity),
    ("perplexity_ratio", |scores| scores.perplexity_ratio),
    ("same_top", |scores| scores.same_top),
    ("top5_overlap", |scores| scores.top5_overlap),
    ("rms_dp", |scores| scores.rms_dp),
];

const FACTS: [&str; 12] = [
    "candidate",
    "path",
    "quantization",
    "importance",
    "bytes",
    "bits_per_weight",
    "blake3",
    "on_front",
    "failure",
    "part",
    "text",
    "tokens",
];

/// Returns the table, whose first row has the headings.
pub fn csv(results: &Results) -> String {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    let tasks = task_columns(results);
    // Writing rows of equal length into memory cannot fail.
    let _ = writer.write_record(headings(&tasks));
    for candidate in &results.candidates {
        let _ = writer.write_record(row(candidate, None, candidate.overall.as_ref(), &tasks));
        for (index, slice) in results.slices.iter().enumerate() {
            if let Some(Some(scores)) = candidate.slices.get(index) {
                let _ = writer.write_record(row(candidate, Some(&slice.name), Some(scores), &tasks));
            }
        }
    }
    String::from_utf8(writer.into_inner().unwrap_or_default()).unwrap_or_default()
}

/// A column of task scores: the task's index and name, and the score's name.
struct TaskColumn<'a> {
    task: usize,
    task_name: &'a str,
    score: &'a str,
}

/// Returns the scores that any model has for each task.
fn task_columns(results: &Results) -> Vec<TaskColumn<'_>> {
    let mut columns: Vec<TaskColumn> = Vec::new();
    for (task, named) in results.tasks.iter().enumerate() {
        let models = results.candidates.iter().map(|candidate| &candidate.tasks).chain([&results.reference.tasks]);
        for scores in models.filter_map(|tasks| tasks.get(task)?.as_ref()) {
            for (score, _) in &scores.scores {
                if !columns.iter().any(|column| column.task == task && column.score == score) {
                    columns.push(TaskColumn { task, task_name: &named.name, score });
                }
            }
        }
    }
    columns
}

fn headings(tasks: &[TaskColumn]) -> Vec<String> {
    let mut headings: Vec<String> = FACTS.map(String::from).into();
    let scores = tasks.iter().map(|column| format!("{} {}", column.task_name, column.score));
    for name in MEASURES.iter().map(|(name, _)| (*name).to_owned()).chain(scores) {
        headings.extend([words(&name).into_owned(), format!("{}_low", words(&name)), format!("{}_high", words(&name))]);
    }
    headings
}

fn row(candidate: &Candidate, text: Option<&str>, scores: Option<&Scores>, tasks: &[TaskColumn]) -> Vec<String> {
    let file = &candidate.file;
    let mut row = vec![
        words(&file.name).into_owned(),
        words(&file.path).into_owned(),
        words(file.quantization.as_deref().unwrap_or_default()).into_owned(),
        words(file.importance.as_deref().unwrap_or_default()).into_owned(),
        file.bytes.to_string(),
        file.bits_per_weight.map(|bits| bits.to_string()).unwrap_or_default(),
        words(file.blake3.as_deref().unwrap_or_default()).into_owned(),
        candidate.on_front.to_string(),
        words(candidate.failure.as_deref().unwrap_or_default()).into_owned(),
        if text.is_none() { "all" } else { "text" }.to_owned(),
        words(text.unwrap_or_default()).into_owned(),
        scores.map(|scores| scores.tokens.to_string()).unwrap_or_default(),
    ];
    for (_, measure) in MEASURES {
        row.extend(cells(scores.map(measure)));
    }
    for column in tasks {
        let of_task = |tasks: &[Option<TaskScores>]| {
            let scores = &tasks.get(column.task)?.as_ref()?.scores;
            scores.iter().find(|(name, _)| name == column.score).map(|(_, estimate)| *estimate)
        };
        row.extend(cells(if text.is_none() { of_task(&candidate.tasks) } else { None }));
    }
    row
}

/// Returns the number and the ends of its interval.
fn cells(estimate: Option<Estimate>) -> [String; 3] {
    let Some(Estimate { value, interval }) = estimate else { return Default::default() };
    let [low, high] = interval.map(|ends| ends.map(|end| end.to_string())).unwrap_or_default();
    [value.to_string(), low, high]
}

/// Returns text in a form that a spreadsheet shows but does not evaluate.
fn words(text: &str) -> Cow<'_, str> {
    match text.chars().next() {
        Some('=' | '+' | '-' | '@' | '\t' | '\r') => Cow::Owned(format!("'{text}")),
        _ => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    /// Rows by the names of their columns.
    fn read(results: &Results) -> Vec<std::collections::HashMap<String, String>> {
        let text = csv(results);
        ::csv::Reader::from_reader(text.as_bytes()).deserialize().map(|row| row.unwrap()).collect()
    }

    #[test]
    fn a_candidate_has_a_row_for_all_texts_and_for_each() {
        let results = sample::results(8);
        let rows = read(&results);
        assert_eq!(rows.len(), 8 * 3);
        for (candidate, rows) in results.candidates.iter().zip(rows.chunks(3)) {
            assert!(rows.iter().all(|row| row["candidate"] == candidate.file.name));
            assert_eq!(rows.iter().map(|row| row["text"].as_str()).collect::<Vec<_>>(), ["", "en", "zh"]);
            let scores = [candidate.overall, candidate.slices[0], candidate.slices[1]];
            for (row, scores) in rows.iter().zip(scores.map(Option::unwrap)) {
                for (name, measure) in MEASURES {
                    let Estimate { value, interval } = measure(&scores);
                    assert_eq!(row[name].parse::<f64>().unwrap(), value);
                    let ends = [format!("{name}_low"), format!("{name}_high")].map(|end| row[&end].parse().ok());
                    assert_eq!(ends, interval.map_or([None; 2], |ends| ends.map(Some)), "{name}");
                }
            }
            let accuracy = candidate.tasks[0].as_ref().unwrap().scores[1].1.value;
            assert_eq!(rows[0]["hellaswag accuracy"].parse::<f64>().unwrap(), accuracy);
            assert_eq!(rows[1]["hellaswag accuracy"], "");
        }
    }

    #[test]
    fn a_failure_is_a_row_and_what_is_no_number_parses_as_such() {
        let rows = read(&sample::hostile());
        assert!(rows.iter().any(|row| row["failure"].starts_with("it is no GGUF") && row["kld"].is_empty()));
        assert!(rows.iter().any(|row| row["kld"].parse() == Ok(f64::INFINITY) && row["kld_low"].is_empty()));
        assert!(rows.iter().any(|row| row["kld_max"].parse().is_ok_and(f64::is_nan)));
        assert!(rows.iter().any(|row| row["candidate"] == sample::HOSTILE));
        assert_eq!(read(&Results::default()).len(), 0);
    }

    #[test]
    fn no_name_is_a_formula() {
        let mut results = sample::named(&["=cmd|' /C calc'!A0", "-1", "@x", "Q4_K_M"]);
        results.candidates[0].failure = Some("+1".into());
        let names: Vec<String> = read(&results).into_iter().map(|row| row["candidate"].clone()).collect();
        assert_eq!(names, ["'=cmd|' /C calc'!A0", "'-1", "'@x", "Q4_K_M"]);
        assert_eq!(read(&results)[0]["failure"], "'+1");
    }
}
