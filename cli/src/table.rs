//! Tables for people: columns as wide as their widest cell.

/// Cells of a row.
pub(crate) fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// Prints rows.
pub(crate) fn print(rows: &[Vec<String>]) {
    for line in lines(rows) {
        say!("{line}");
    }
}

/// Rows as lines. What would move the cursor of a terminal is escaped: cells hold what others wrote.
pub(crate) fn lines(rows: &[Vec<String>]) -> Vec<String> {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths);
            let cells: Vec<String> = cells.map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect()
}

/// A text without control characters.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() { plain.extend(char.escape_default()) } else { plain.push(char) }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [row(&["A", "LONG", "C"]), row(&["abc", "d"])];
        assert_eq!(lines(&rows), ["A    LONG  C", "abc  d"]);
        assert_eq!(lines(&[row(&["a\u{1b}[2Jb\n"])]), ["a\\u{1b}[2Jb\\n"]);
    }
}
