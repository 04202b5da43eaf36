//! Prints a comparison in the terminal.

use comfy_table::{Cell, CellAlignment, ContentArrangement};

use crate::base::units;
use crate::cli::table::{self, Align};
use crate::report::ranking::Ranking;
use crate::report::results::{Candidate, Estimate, Results, Scores, TaskScores};
use crate::report::wording;

/// Marks the candidates on the front.
const FRONT: &str = "*";

/// Returns the most columns for a name, in a terminal of this width.
fn name_width(width: usize) -> usize {
    (width / 3).clamp(12, 40)
}

/// Returns the candidates with their most important measures, in lines of at most `width` columns, and a summary in
/// sentences.
///
/// Narrow terminals get fewer columns instead of broken rows; the report has all columns.
pub fn table(results: &Results, width: usize) -> String {
    let ranking = Ranking::new(results);
    let mut parts = Vec::new();
    if !ranking.measured.is_empty() {
        parts.push(scores(results, &ranking, width) + &legend(results, &ranking, width));
        parts.extend(slices(results, &ranking, width));
    }
    parts.extend((0..results.tasks.len()).filter_map(|task| task_scores(results, &ranking, task, width)));
    let summary = ranking.summary();
    if !summary.is_empty() {
        parts.push(paragraphs(&summary, width));
    }
    let verdicts = ranking.verdicts();
    if !verdicts.is_empty() {
        parts.push(paragraphs(&verdicts, width));
    }
    let failures: Vec<String> = failures(results, &ranking);
    if !failures.is_empty() {
        parts.push(paragraphs(&failures, width));
    }
    parts.join("\n")
}

/// Returns the content of a cell for a candidate and its index.
type Cells<'a> = Box<dyn Fn(usize, &Candidate) -> Option<String> + 'a>;

/// A column: its heading and its cells. `None` is an empty cell.
struct Column<'a> {
    heading: String,
    align: Align,
    cell: Cells<'a>,
}

impl<'a> Column<'a> {
    fn new(heading: &str, align: Align, cell: impl Fn(usize, &Candidate) -> Option<String> + 'a) -> Self {
        Self { heading: heading.into(), align, cell: Box::new(cell) }
    }

    fn measure(heading: &str, show: fn(&Estimate) -> wording::Shown, measure: fn(&Scores) -> Estimate) -> Self {
        Self::new(heading, Align::Right, move |_, candidate| Some(show(&measure(candidate.overall.as_ref()?)).value))
    }

    /// The interval of the column before it. That column has the heading for both.
    fn interval(show: fn(&Estimate) -> wording::Shown, measure: fn(&Scores) -> Estimate) -> Self {
        Self::new("", Align::Left, move |_, candidate| show(&measure(candidate.overall.as_ref()?)).interval)
    }
}

/// Returns the table with as many columns as fit. The least important columns are dropped first.
fn scores(results: &Results, ranking: &Ranking, width: usize) -> String {
    // The importance of each column (the lowest is dropped first), and the column.
    let columns = || -> Vec<(u8, Column)> {
        vec![
            (
                9,
                Column::new("Candidate", Align::Left, |i, _| {
                    Some(wording::shortened(&ranking.labels[i], name_width(width)))
                }),
            ),
            (9, Column::new("", Align::Left, |_, candidate| candidate.on_front.then(|| FRONT.into()))),
            (9, Column::new("Size", Align::Right, |_, candidate| Some(units::bytes(candidate.file.bytes)))),
            (
                3,
                Column::new("Bits", Align::Right, |_, candidate| {
                    candidate.file.bits_per_weight.map(|bits| format!("{bits:.2}"))
                }),
            ),
            (9, Column::measure("KLD", wording::estimate, |scores| scores.kld)),
            (8, Column::interval(wording::estimate, |scores| scores.kld)),
            (4, Column::measure("99%", wording::estimate, |scores| scores.kld_99)),
            (7, Column::measure("Same top %", wording::percent, |scores| scores.same_top)),
            (2, Column::interval(wording::percent, |scores| scores.same_top)),
            (6, Column::measure("PPL ratio", wording::estimate, |scores| scores.perplexity_ratio)),
            (1, Column::interval(wording::estimate, |scores| scores.perplexity_ratio)),
        ]
    };
    let rows: Vec<usize> = (0..results.candidates.len()).collect();
    (1..=9)
        .map(|least| {
            let kept: Vec<Column> =
                columns().into_iter().filter(|(weight, _)| *weight >= least).map(|(_, c)| c).collect();
            (least, build(results, &rows, &kept))
        })
        .find(|(least, text)| *least == 9 || longest_line(text) <= width)
        .map(|(_, text)| text)
        .unwrap_or_default()
}

fn build(results: &Results, rows: &[usize], columns: &[Column]) -> String {
    let headings: Vec<(&str, Align)> = columns.iter().map(|column| (column.heading.as_str(), column.align)).collect();
    let mut table = table::new(&headings);
    // Its natural width shows whether it fits. With dynamic arrangement, it would be squeezed.
    table.set_content_arrangement(ContentArrangement::Disabled);
    for &i in rows {
        table.add_row(columns.iter().map(|column| {
            let cell = Cell::new((column.cell)(i, &results.candidates[i]).unwrap_or_default());
            match column.align {
                Align::Left => cell,
                Align::Right => cell.set_alignment(CellAlignment::Right),
            }
        }));
    }
    table::render(&table)
}

fn longest_line(text: &str) -> usize {
    use unicode_width::UnicodeWidthStr;
    text.lines().map(UnicodeWidthStr::width).max().unwrap_or(0)
}

fn legend(results: &Results, ranking: &Ranking, width: usize) -> String {
    let mut sentences = Vec::new();
    if !ranking.front().is_empty() {
        sentences.push(format!("{FRONT} a lower KLD than everything smaller."));
    }
    sentences.push("KLD: distance from the reference's predictions, in nats per token; 0 is the same.".into());
    let has_interval = |candidate: &Candidate| candidate.overall.is_some_and(|scores| scores.kld.interval.is_some());
    if !results.candidates.iter().any(has_interval) {
        sentences.push("Too few windows were read for intervals.".into());
    } else if results.settings.confidence > 0.0 {
        sentences.push(format!("Brackets: {:.0}% intervals.", results.settings.confidence * 100.0));
    }
    let prefix = wording::plain(wording::common_prefix(results));
    if !prefix.is_empty() {
        sentences.push(format!("Names are shown without {prefix}"));
    }
    paragraphs(&[sentences.join(" ")], width)
}

/// Returns the table of KLD by text; `None` if there is only one text.
fn slices(results: &Results, ranking: &Ranking, width: usize) -> Option<String> {
    if results.slices.len() < 2 {
        return None;
    }
    let mut columns =
        vec![Column::new("KLD", Align::Left, |i, _| Some(wording::shortened(&ranking.labels[i], name_width(width))))];
    for (index, slice) in results.slices.iter().enumerate() {
        let name = wording::shortened(&wording::plain(&slice.name), name_width(width));
        columns.push(Column::new(&name, Align::Right, move |_, candidate| {
            Some(wording::estimate(&candidate.slices.get(index)?.as_ref()?.kld).value)
        }));
        columns.push(Column::new("", Align::Left, move |_, candidate| {
            wording::estimate(&candidate.slices.get(index)?.as_ref()?.kld).interval
        }));
    }
    Some(narrowed(results, &ranking.measured, columns, width))
}

/// If the table is too wide, leaves out the intervals, and then columns from the right.
fn narrowed(results: &Results, rows: &[usize], mut columns: Vec<Column>, width: usize) -> String {
    let whole = build(results, rows, &columns);
    if longest_line(&whole) <= width {
        return whole;
    }
    columns.retain(|column| !column.heading.is_empty());
    let mut kept = build(results, rows, &columns);
    let mut left_out = 0;
    while longest_line(&kept) > width && columns.len() > 2 {
        columns.pop();
        left_out += 1;
        kept = build(results, rows, &columns);
    }
    if left_out > 0 {
        kept += &paragraphs(
            &[format!("There was no room for {}.", wording::counted(left_out, "column", "columns"))],
            width,
        );
    }
    kept
}

fn task_scores(results: &Results, ranking: &Ranking, task: usize, width: usize) -> Option<String> {
    let named = &results.tasks[task];
    let of = move |candidate: &'_ Candidate| candidate.tasks.get(task).cloned().flatten();
    let rows: Vec<usize> = (0..results.candidates.len()).filter(|&i| of(&results.candidates[i]).is_some()).collect();
    if rows.is_empty() {
        return None;
    }
    let main = move |candidate: &Candidate| {
        let scores = of(candidate)?.scores;
        scores.iter().find(|(name, _)| *name == named.main).or(scores.first()).map(|(_, estimate)| *estimate)
    };
    let name = wording::shortened(&wording::plain(&named.name), name_width(width));
    let columns = vec![
        Column::new(&name, Align::Left, |i, _| Some(wording::shortened(&ranking.labels[i], name_width(width)))),
        Column::new("Right %", Align::Right, move |_, candidate| Some(wording::percent(&main(candidate)?).value)),
        Column::new("", Align::Left, move |_, candidate| wording::percent(&main(candidate)?).interval),
        Column::new("Lost", Align::Right, move |_, candidate| Some(of(candidate)?.against_reference?.lost.to_string())),
        Column::new("Won", Align::Right, move |_, candidate| Some(of(candidate)?.against_reference?.won.to_string())),
        Column::new("By chance", Align::Right, move |_, candidate| {
            Some(wording::number(of(candidate)?.against_reference?.p_value))
        }),
    ];
    let mut lines = narrowed(results, &rows, columns, width);
    let reference = results.reference.tasks.get(task).and_then(Option::as_ref);
    let scores = |scores: &TaskScores| scores.scores.iter().find(|(name, _)| *name == named.main).map(|(_, e)| *e);
    if let Some((right, questions)) = reference.and_then(|of| Some((scores(of)?, of.questions))) {
        let right = wording::percent(&right).line();
        lines += &paragraphs(&[format!("The reference has {right} % of {questions} questions right.")], width);
    }
    Some(lines)
}

fn failures(results: &Results, ranking: &Ranking) -> Vec<String> {
    let failed = results.candidates.iter().enumerate().filter_map(|(i, candidate)| {
        Some(format!("{} failed: {}", ranking.labels[i], wording::plain(candidate.failure.as_ref()?)))
    });
    failed.collect()
}

/// A paragraph each, wrapped, whose second line is indented.
fn paragraphs(texts: &[String], width: usize) -> String {
    texts.iter().map(|text| table::wrapped(text.clone(), u16::try_from(width).unwrap_or(u16::MAX), 0)).collect()
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr;

    use super::*;
    use crate::report::sample;

    #[test]
    fn a_table_keeps_to_the_width_and_loses_no_candidate() {
        for (name, results) in sample::all() {
            for width in [60, 80, 120] {
                let text = table(&results, width);
                assert!(text.lines().all(|line| line.width() <= width), "{name} {width}:\n{text}");
                assert!(!text.contains(|c| c != '\n' && crate::base::display::is_unprintable(c)), "{name}");
                let measured = results.candidates.iter().any(|candidate| candidate.overall.is_some());
                for candidate in results.candidates.iter().filter(|_| measured) {
                    assert!(text.contains(&units::bytes(candidate.file.bytes)), "{name} {width}");
                }
            }
        }
    }

    #[test]
    fn wide_terminals_show_more_and_narrow_ones_what_counts() {
        let results = sample::results(8);
        let [narrow, usual, wide] = [60, 80, 120].map(|width| table(&results, width));
        for text in [&narrow, &usual, &wide] {
            assert!(text.starts_with("Candidate "));
            assert!(text.contains("  0.0154  [0.0149, 0.0158]"));
            assert!(text.contains("Q5_K_M beats Q5_0: KLD -0.0094 [-0.0098, -0.0090]"));
        }
        assert!(!narrow.contains("PPL ratio") && usual.contains("PPL ratio") && wide.contains("Bits"));
        // Every number of the widest table.
        for candidate in &results.candidates {
            let scores = candidate.overall.unwrap();
            let shown =
                [scores.kld, scores.kld_99, scores.perplexity_ratio].map(|estimate| wording::estimate(&estimate));
            for wording::Shown { value, .. } in shown.iter().chain([&wording::percent(&scores.same_top)]) {
                assert!(wide.contains(value.as_str()), "{value}");
            }
            for scores in candidate.slices.iter().flatten() {
                assert!(narrow.contains(&wording::estimate(&scores.kld).value));
            }
        }
    }

    #[test]
    fn chinese_names_line_up() {
        let mut results = sample::results(2);
        results.candidates[0].file.name = "零一万物-量化".into();
        let text = table(&results, 80);
        let columns: Vec<usize> = (text.lines().take(3))
            .map(|line| line.find("GB").or(line.find("Size")).map(|at| line[..at].width()).unwrap())
            .collect();
        assert_eq!(columns[1], columns[2], "{text}");
    }

    #[test]
    fn failures_are_told_where_nothing_was_measured() {
        let text = table(&sample::begun(), 80);
        assert!(text.contains("IQ2_M failed: models/a.gguf: it needs 40 GB, and 32 GB are there"), "{text}");
        assert_eq!(table(&Results::default(), 80), "No candidates were compared.\n");
    }

    #[test]
    #[ignore = "prints tables to look at"]
    fn prints_tables() {
        for (name, results) in sample::all() {
            for width in [60, 80, 120] {
                println!("=== {name} {width}\n{}", table(&results, width));
            }
        }
    }
}
