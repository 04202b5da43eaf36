//! `nibble compare --weights`: tables of the weights' errors.

use std::io::Write;

use unicode_width::UnicodeWidthStr;

use crate::base::display::printable;
use crate::cli::out::Out;
use crate::cli::table::{self, Align};
use crate::report::results::{TensorError, WeightErrors};

/// The most tensors that are shown for a candidate, the worst first. With several candidates, fewer are shown for each.
const MOST_TENSORS: usize = 10;

/// The most sentences about what was not compared that are shown for a candidate.
const MOST_SKIPPED: usize = 5;

/// Below this cosine, weights have so little in common that one cannot be a quantization of the other.
const UNRELATED: f64 = 0.5;

/// A candidate's weight errors, with its name.
pub struct Measured<'a> {
    /// Its name, in the form in which it is shown.
    pub name: String,
    /// How its weights differ.
    pub weights: &'a WeightErrors,
}

/// Prints a line per candidate, its roles, its worst tensors, and what was not compared.
pub fn print(out: &mut Out, measured: &[Measured]) -> anyhow::Result<()> {
    if measured.is_empty() {
        return Ok(());
    }
    let weighted = measured.iter().any(|m| m.weights.overall.is_some_and(|error| error.weighted.is_some()));
    print_files(out, measured, weighted)?;
    print_roles(out, measured)?;
    print_tensors(out, measured)?;
    print_skipped(out, measured)?;
    for m in measured.iter().filter(|m| m.weights.overall.is_some_and(|error| error.cosine < UNRELATED)) {
        let name = printable(&m.name);
        writeln!(out)?;
        out.paragraph(&format!(
            "{name} has little in common with the source. Is it another model, or another training of it?"
        ))?;
    }
    writeln!(out)?;
    out.paragraph(
        "Relative: how far the weights are off, as a part of their size. RMSE: the same in their own unit. Cosine: 1 \
         where they are the same.",
    )?;
    if weighted {
        out.paragraph("Weighted: as relative, each column counting by its importance.")?;
    }
    Ok(())
}

fn print_files(out: &mut Out, measured: &[Measured], weighted: bool) -> anyhow::Result<()> {
    let mut columns = vec!["Relative"];
    columns.extend(weighted.then_some("Weighted"));
    columns.extend(["RMSE", "Cosine"]);
    let cells = |m: &Measured| {
        let Some(error) = m.weights.overall else { return vec![NOTHING.to_string(); columns.len()] };
        let mut cells = vec![percent(error.relative)];
        cells.extend(weighted.then(|| error.weighted.map_or(NOTHING.to_string(), percent)));
        cells.extend([decimals(error.rmse), cosine(error.cosine)]);
        cells
    };
    let lines = measured.iter().map(|m| (printable(&m.name).into_owned(), cells(m))).collect();
    numbers(out, "File", &columns, lines)
}

/// Relative error by role: a line per role, a column per candidate.
fn print_roles(out: &mut Out, measured: &[Measured]) -> anyhow::Result<()> {
    let mut roles: Vec<&str> = vec![];
    for role in measured.iter().flat_map(|m| &m.weights.roles) {
        if !roles.contains(&role.role.as_str()) {
            roles.push(&role.role);
        }
    }
    if roles.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nRelative error by role\n")?;
    let names = match measured {
        [_] => vec!["Relative".to_string()],
        _ => without_common_beginning(measured.iter().map(|m| printable(&m.name).into_owned()).collect()),
    };
    let cell = |m: &Measured, role: &str| {
        let found = m.weights.roles.iter().find(|found| found.role == role);
        found.map_or(NOTHING.to_string(), |found| percent(found.error.relative))
    };
    // As many candidates side by side as there is room for.
    let widest = roles.iter().map(|role| role.width()).max().unwrap_or(0);
    let room = out.width().map_or(usize::MAX, usize::from).saturating_sub(widest);
    let mut first = 0;
    while first < measured.len() {
        let mut used = 0;
        let more = names[first..].iter().take_while(|name| {
            used += 2 + name.width().max(LONGEST_PERCENT);
            used <= room
        });
        let last = first + more.count().max(1);
        if first > 0 {
            writeln!(out)?;
        }
        let columns: Vec<_> = names[first..last].iter().map(String::as_str).collect();
        let cells = |role: &str| measured[first..last].iter().map(|m| cell(m, role)).collect();
        numbers(out, "Role", &columns, roles.iter().map(|role| (role.to_string(), cells(role))).collect())?;
        first = last;
    }
    Ok(())
}

/// The tensors that differ most, the worst first.
fn print_tensors(out: &mut Out, measured: &[Measured]) -> anyhow::Result<()> {
    let most = (MOST_TENSORS / measured.len()).max(1);
    for m in measured {
        let mut tensors: Vec<_> = m.weights.tensors.iter().filter(|tensor| tensor.error.relative > 0.0).collect();
        // Equals stay in the order of the file.
        tensors.sort_by(|a, b| b.error.relative.total_cmp(&a.error.relative));
        let line = |tensor: &TensorError| {
            let relative = [tensor.error.relative, tensor.worst_row_relative].map(percent);
            let [relative, of_row] = relative;
            let cells = vec![tensor.ty.clone(), relative, tensor.worst_row.to_string(), of_row];
            (printable(&tensor.name).into_owned(), cells)
        };
        let lines: Vec<_> = tensors.into_iter().take(most).map(line).collect();
        if lines.is_empty() {
            continue;
        }
        let words = if lines.len() == 1 { "Worst tensor" } else { "Worst tensors" };
        writeln!(out)?;
        out.paragraph(&format!("{words} of {}", printable(&m.name)))?;
        writeln!(out)?;
        numbers(out, "Tensor", &["Type", "Relative", "Worst row", "Its error"], lines)?;
    }
    Ok(())
}

/// What was not compared, and why.
fn print_skipped(out: &mut Out, measured: &[Measured]) -> anyhow::Result<()> {
    for m in measured.iter().filter(|m| !m.weights.skipped.is_empty()) {
        writeln!(out)?;
        out.paragraph(&format!("Not compared in {}", printable(&m.name)))?;
        writeln!(out)?;
        for sentence in m.weights.skipped.iter().take(MOST_SKIPPED) {
            out.paragraph(&printable(sentence))?;
        }
        let rest = m.weights.skipped.len().saturating_sub(MOST_SKIPPED);
        if rest > 0 {
            out.paragraph(&format!("and {rest} more, which --json FILE lists"))?;
        }
    }
    Ok(())
}

/// The text of a cell without a number.
const NOTHING: &str = "-";

/// Prints a table of numbers with a line for each name. If that is too wide, prints a list of numbers for each name.
fn numbers(out: &mut Out, names: &str, columns: &[&str], lines: Vec<(String, Vec<String>)>) -> anyhow::Result<()> {
    let mut headings = vec![(names, Align::Left)];
    headings.extend(columns.iter().map(|column| (*column, Align::Right)));
    let mut table = table::new(&headings);
    for (name, cells) in &lines {
        table.add_row(std::iter::once(name).chain(cells));
    }
    if out.width().is_none_or(|width| table::fits(&table, width)) {
        return Ok(out.table(table)?);
    }
    for (name, cells) in lines {
        out.paragraph(&name)?;
        out.table(table::pairs(columns.iter().copied().zip(cells)))?;
    }
    Ok(())
}

/// Returns the names without their common beginning, up to a separator: `Q4_K_M` for `Yi-6B-Q4_K_M` beside
/// `Yi-6B-Q8_0`.
fn without_common_beginning(names: Vec<String>) -> Vec<String> {
    let Some(first) = names.first() else { return names };
    let is_common = |end: &usize| names.iter().all(|name| name.len() > *end && name.starts_with(&first[..*end]));
    let ends = first.char_indices().filter(|(_, c)| matches!(c, '-' | '.' | ' ')).map(|(at, c)| at + c.len_utf8());
    let end = ends.take_while(is_common).last().unwrap_or(0);
    names.iter().map(|name| name[end..].to_string()).collect()
}

/// The columns that [`percent`] takes at most, of errors below 10000%.
const LONGEST_PERCENT: usize = 8;

/// Formats a relative error in percent, with three significant digits if possible: `7.42%`, `0.0153%`.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        0.0 => "0%".to_string(),
        _ if percent < 0.0001 => "<0.0001%".to_string(),
        _ if percent < 0.01 => format!("{percent:.4}%"),
        _ if percent < 0.1 => format!("{percent:.3}%"),
        _ if percent < 10.0 => format!("{percent:.2}%"),
        _ if percent < 1000.0 => format!("{percent:.1}%"),
        _ if percent < 1e6 => format!("{percent:.0}%"),
        _ => format!("{percent:.1e}%"),
    }
}

/// Formats a number in the weights' unit, with three significant digits.
fn decimals(value: f64) -> String {
    match value {
        0.0 => "0".to_string(),
        _ if !(1e-4..1e4).contains(&value) => format!("{value:.2e}"),
        _ if value < 1e-3 => format!("{value:.6}"),
        _ if value < 1e-2 => format!("{value:.5}"),
        _ => format!("{value:.4}"),
    }
}

/// Formats a cosine. A cosine that is not exactly 1 must not look as if it were.
fn cosine(cosine: f64) -> String {
    if cosine == 1.0 { "1".to_string() } else { format!("{:.6}", cosine.min(0.999_999)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::results::{RoleError, WeightError};

    fn error(relative: f64, weighted: Option<f64>) -> WeightError {
        WeightError { rmse: relative / 50.0, relative, cosine: 1.0 - relative * relative / 2.0, weighted }
    }

    fn weights(weighted: Option<f64>) -> WeightErrors {
        let tensor = |name: &str, ty: &str, relative: f64| TensorError {
            name: name.to_string(),
            layer: None,
            role: "ffn_down".to_string(),
            ty: ty.to_string(),
            weights: 1 << 20,
            error: error(relative, weighted),
            worst_row: 1234,
            worst_row_relative: relative * 1.5,
        };
        let role = |role: &str, relative| RoleError {
            role: role.to_string(),
            tensors: 4,
            weights: 1 << 22,
            error: error(relative, weighted),
        };
        WeightErrors {
            overall: Some(error(0.0742, weighted)),
            roles: vec![role("token_embedding", 0.081), role("ffn_down", 0.0712)],
            tensors: vec![
                tensor("blk.0.attn_norm.weight", "F32", 0.0),
                tensor("blk.0.ffn_down.weight", "Q6_K", 0.0214),
                tensor("blk.13.ffn_down.weight", "Q4_K", 0.0823),
            ],
            skipped: (0..7).map(|i| format!("tensor 'x{i}' is not in the source")).collect(),
        }
    }

    fn printed(names: &[&str], width: Option<u16>, weighted: Option<f64>) -> String {
        let weights = weights(weighted);
        let measured: Vec<_> =
            names.iter().map(|name| Measured { name: name.to_string(), weights: &weights }).collect();
        let mut text = vec![];
        print(&mut Out::new(&mut text, width), &measured).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn the_worst_tensor_comes_first_and_what_has_no_error_not_at_all() {
        let text = printed(&["Yi-6B-Q4_K_M"], Some(80), None);
        let wanted = "\
File          Relative     RMSE    Cosine
Yi-6B-Q4_K_M     7.42%  0.00148  0.997247

Relative error by role

Role             Relative
token_embedding     8.10%
ffn_down            7.12%

Worst tensors of Yi-6B-Q4_K_M

Tensor                  Type  Relative  Worst row  Its error
blk.13.ffn_down.weight  Q4_K     8.23%       1234      12.3%
blk.0.ffn_down.weight   Q6_K     2.14%       1234      3.21%

Not compared in Yi-6B-Q4_K_M

tensor 'x0' is not in the source
tensor 'x1' is not in the source
tensor 'x2' is not in the source
tensor 'x3' is not in the source
tensor 'x4' is not in the source
and 2 more, which --json FILE lists

Relative: how far the weights are off, as a part of their size. RMSE: the same
in their own unit. Cosine: 1 where they are the same.
";
        assert_eq!(text, wanted, "{text}");
        assert!(printed(&["a"], Some(80), Some(0.05)).contains("Weighted"));
    }

    #[test]
    fn every_line_fits_and_every_number_is_there_however_narrow() {
        let many: Vec<String> = (0..19).map(|i| format!("零一万物-34B-Q{i}_K")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        for names in [&["零一万物-Q4_K_M"][..], &["Yi-34B-Chat-Q4_K_M", "Yi-34B-Chat-Q5_K_M", "other"], &many] {
            for width in [30, 40, 60, 80, 120] {
                let text = printed(names, Some(width), Some(0.05));
                assert!(text.lines().all(|line| line.width() <= width.into()), "{width}:\n{text}");
                for word in ["7.42%", "0.00148", "8.10%", "7.12%", "8.23%", "12.3%", "ffn_down", "RMSE"] {
                    assert!(text.contains(word), "{word} at {width}:\n{text}");
                }
            }
        }
    }

    #[test]
    fn weights_of_another_model_are_called_so() {
        let mut other = weights(None);
        other.overall = Some(WeightError { rmse: 1.0, relative: 1.4, cosine: 0.01, weighted: None });
        let mut text = vec![];
        print(&mut Out::new(&mut text, Some(200)), &[Measured { name: "x".to_string(), weights: &other }]).unwrap();
        assert!(String::from_utf8(text).unwrap().contains("x has little in common with the source."));
    }

    #[test]
    fn names_lose_what_they_share() {
        let short = |names: &[&str]| without_common_beginning(names.iter().map(|n| n.to_string()).collect());
        assert_eq!(short(&["Yi-6B-Q4_K_M", "Yi-6B-Q8_0"]), ["Q4_K_M", "Q8_0"]);
        assert_eq!(short(&["零-一", "零-二"]), ["一", "二"]);
        assert_eq!(short(&["a-", "a-"]), ["a-", "a-"]);
        assert_eq!(short(&["Yi", "Yi-6B"]), ["Yi", "Yi-6B"]);
        assert_eq!(short(&[]), [""; 0]);
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        let percents = [(0.0, "0%"), (1e-9, "<0.0001%"), (0.0742, "7.42%"), (0.000153, "0.015%"), (1.42, "142.0%")];
        for (share, wanted) in percents {
            assert_eq!(percent(share), wanted);
        }
        assert_eq!([0.0, 0.00148, 1.5e-7, 0.02].map(decimals), ["0", "0.00148", "1.50e-7", "0.0200"]);
        assert_eq!([1.0, 0.999_999_9, 0.25, -1.0].map(cosine), ["1", "0.999999", "0.250000", "-1.000000"]);
    }
}
