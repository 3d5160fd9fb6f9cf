//! Tables for people: columns as wide as their widest cell, two spaces between them.

use crate::escape;

/// A table being filled row by row. Cells are escaped when they are added.
#[derive(Debug)]
pub(crate) struct Table {
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings; a heading that begins with `>` aligns its column right.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let names = headings.iter().map(|h| h.trim_start_matches('>').to_owned()).collect();
        Self { right: headings.iter().map(|h| h.starts_with('>')).collect(), rows: vec![names] }
    }

    /// Adds a row; it must have a cell for each heading.
    pub(crate) fn row<const N: usize>(&mut self, cells: [&str; N]) {
        debug_assert_eq!(N, self.right.len());
        self.rows.push(cells.iter().map(|c| escape::text(c)).collect());
    }

    /// The lines of the table, without trailing spaces.
    pub(crate) fn lines(&self) -> Vec<String> {
        let width = |i: usize| self.rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).zip(&self.right).map(|((cell, w), right)| {
                let pad = " ".repeat(w - cell.chars().count());
                if *right { pad + cell } else { cell.clone() + &pad }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(d);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_cells_are_escaped() {
        let mut t = Table::new(&["name", ">bytes"]);
        t.row(["a", "7"]);
        t.row(["b\u{1b}c", "1,234"]);
        assert_eq!(t.lines(), ["name      bytes", "a             7", "b\\u{1b}c  1,234"]);
        assert_eq!([0, 12, 123, 1234, 1_234_567].map(number), ["0", "12", "123", "1,234", "1,234,567"]);
    }
}
