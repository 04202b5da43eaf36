//! Tables for the terminal: plain columns, no frames, cut to the terminal's width where there is one.
//!
//! Words wrap, numbers do not. Widths are those of the terminal's cells, so that Chinese lines up. Symbols whose width
//! depends on the terminal's language, such as U+00D7 or U+2026, are avoided wherever something follows them.

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use unicode_width::UnicodeWidthStr;

/// Which way a column's cells lean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table with these column headings.
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

/// Names on the left, what they stand for on the right, without headings.
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

/// The table as lines without trailing spaces, ending in a line break.
pub fn render(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
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
        let mut table = sample();
        table.set_width(100);
        let wanted = "Tensor                                Type      Size\n\
                      token_embd.weight                     Q4_K   1.00 MB\n\
                      零一万物 的 一个 很长的 名字 在 这里  F32   12.25 kB\n";
        assert_eq!(render(&table), wanted);
    }

    #[test]
    fn narrow_terminals_break_words_and_not_numbers() {
        for width in [30, 40, 50, 60] {
            let mut table = sample();
            table.set_width(width);
            let text = render(&table);
            assert!(text.lines().all(|line| line.width() <= width.into()), "{width}:\n{text}");
            assert!(text.contains("12.25 kB") && text.contains("Q4_K"), "{width}:\n{text}");
        }
    }

    #[test]
    fn pairs_wrap_beside_their_names() {
        let mut table = pairs([("Name", "Yi".into()), ("Architecture", "llama with a few words more".into())]);
        table.set_width(30);
        let wanted = "Name          Yi\n\
                      Architecture  llama with a few\n\
                      \u{20}             words more\n";
        assert_eq!(render(&table), wanted);
    }
}
