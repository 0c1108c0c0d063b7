//! Tables as the commands print them.

use comfy_table::{CellAlignment, Table};

/// Rows under a head, indented by so many spaces; from the column `numbers` on, to the right.
#[must_use]
pub fn table(head: &[&str], rows: Vec<Vec<String>>, indent: u16, numbers: usize) -> String {
    let mut table = Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_header(head.to_vec())
        .add_rows(rows);
    for (position, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if position == 0 { indent } else { 2 }, 0));
        if position >= numbers {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{}\n", table.trim_fmt())
}

/// What others have written (a certificate, a token), without what would do something to a terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
