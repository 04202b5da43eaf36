//! Tables for the terminal: plain columns, no frames, cut to the terminal's width where there is one.
//!
//! Words wrap. Numbers and the names in the first column do not: where they leave too little room for the rest, a row takes
//! two lines. Widths are in the terminal's cells, so that Chinese lines up. Symbols whose width depends on the terminal's
//! language, such as U+00D7 or U+2026, are avoided wherever something follows them.

use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use unicode_width::UnicodeWidthStr;

/// How a column's cells are aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Returns an empty table with these column headings.
pub fn new(columns: &[(&str, Align)]) -> Table {
    let mut table = plain();
    table.set_header(columns.iter().map(|(heading, _)| *heading));
    let last = columns.len().saturating_sub(1);
    for (index, (column, (heading, align))) in table.column_iter_mut().zip(columns).enumerate() {
        let gap = if index < last { 2 } else { 0 };
        column.set_padding((0, gap));
        match align {
            Align::Left => {
                column.set_cell_alignment(CellAlignment::Left);
                // A heading does not break either. Constraints count the padding.
                let width = u16::try_from(heading.width()).unwrap_or(u16::MAX).saturating_add(gap);
                column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width)));
            }
            Align::Right => {
                column.set_cell_alignment(CellAlignment::Right);
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
    }
    table
}

/// Returns a table without headings: names on the left, their values on the right.
pub fn pairs<'a>(rows: impl IntoIterator<Item = (&'a str, String)>) -> Table {
    let mut table = plain();
    for (name, value) in rows {
        table.add_row([name, &value]);
    }
    if let Some(column) = table.column_mut(0) {
        column.set_padding((0, 2)).set_constraint(ColumnConstraint::ContentWidth);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_padding((0, 0));
    }
    table
}

/// Formats the table as lines without trailing spaces, ending in a line break.
pub fn render(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Formats the table as lines of at most `width` columns, as far as its numbers allow.
///
/// A table with headings that does not fit is stacked: each row becomes a line with its name, and the other cells indented
/// below it.
pub fn fit(mut table: Table, width: u16) -> String {
    if table.header().is_none() || fits(&table, width) {
        if let Some(names) = table.column_mut(0) {
            names.set_constraint(ColumnConstraint::ContentWidth);
        }
        table.set_width(width);
        return render(&table);
    }
    let mut lines = String::new();
    for row in table.row_iter() {
        let mut cells = row.cell_iter().map(Cell::content);
        let name = cells.next().unwrap_or_default();
        let rest: Vec<_> = cells.filter(|cell| !cell.is_empty()).collect();
        lines.push_str(&wrapped(name, width, 0));
        lines.push_str(&wrapped(rest.join("  "), width, STACK_INDENT));
    }
    lines
}

/// Returns whether a table with headings can be read in `width` columns, so that [`fit`] does not stack it.
pub fn fits(table: &Table, width: u16) -> bool {
    least_width(table) <= usize::from(width)
}

/// How far the second line of a stacked row is indented.
const STACK_INDENT: u16 = 2;

/// Returns the fewest columns in which the table can be read: names and numbers whole, words in 16 columns.
fn least_width(table: &Table) -> usize {
    const WORDS: u16 = 16;
    let mut width = 0;
    for (index, (column, content)) in table.column_iter().zip(table.column_max_content_widths()).enumerate() {
        let whole = index == 0 || column.constraint() == Some(&ColumnConstraint::ContentWidth);
        width += usize::from(if whole { content } else { content.min(WORDS) }) + usize::from(column.padding_width());
    }
    width
}

/// Wraps `text` into lines of at most `width` columns, of which the first `indent` are empty.
pub fn wrapped(text: String, width: u16, indent: u16) -> String {
    let mut table = plain();
    table.set_width(width).add_row([text]);
    if let Some(column) = table.column_mut(0) {
        column.set_padding((indent, 0));
    }
    render(&table)
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = new(&[("Tensor", Align::Left), ("Type", Align::Left), ("Size", Align::Right)]);
        table.add_row(["token_embd.weight", "Q4_K", "1.00 MB"]);
        table.add_row(["零一万物 的 一个 很长的 名字 在 这里", "F32", "12.25 kB"]);
        table
    }

    #[test]
    fn columns_line_up_in_terminal_cells() {
        let wanted = "Tensor                                Type      Size\n\
                      token_embd.weight                     Q4_K   1.00 MB\n\
                      零一万物 的 一个 很长的 名字 在 这里  F32   12.25 kB\n";
        assert_eq!(fit(sample(), 100), wanted);
        assert_eq!(fit(sample(), 52), wanted);
    }

    #[test]
    fn rows_take_two_lines_where_one_is_too_short() {
        let wanted = "token_embd.weight\n  Q4_K  1.00 MB\n零一万物 的 一个 很长的\n名字 在 这里\n  F32  12.25 kB\n";
        assert_eq!(fit(sample(), 25), wanted);
        for width in 20..80 {
            let text = fit(sample(), width);
            assert!(text.lines().all(|line| line.width() <= width.into()), "{width}:\n{text}");
            assert!(text.contains("12.25 kB") && text.contains("Q4_K"), "{width}:\n{text}");
        }
    }

    #[test]
    fn words_wrap_beside_names() {
        let mut table = new(&[("Key", Align::Left), ("Value", Align::Left)]);
        table.add_row(["general.description", "a few words and then some more of them"]);
        let wanted = "Key                  Value\n\
                      general.description  a few words and\n\
                      \u{20}                    then some more of\n\
                      \u{20}                    them\n";
        assert_eq!(fit(table, 38), wanted);
    }

    #[test]
    fn pairs_wrap_beside_their_names() {
        let table = pairs([("Name", "Yi".into()), ("Architecture", "llama with a few words more".into())]);
        let wanted = "Name          Yi\n\
                      Architecture  llama with a few\n\
                      \u{20}             words more\n";
        assert_eq!(fit(table, 30), wanted);
    }
}
