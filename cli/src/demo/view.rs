//! How the demo looks.

/// Begins a part.
pub(super) fn title(what: &str, how: &str) {
    say!("\n{what}{}", if how.is_empty() { String::new() } else { format!("  ({how})") });
}

/// Prints a table, a little to the right.
pub(super) fn rows(rows: &[Vec<String>]) {
    for line in crate::table::lines(rows) {
        say!("  {line}");
    }
}

/// Cells of a row.
pub(super) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Microseconds as milliseconds.
pub(super) fn ms(us: u64) -> String {
    #[allow(clippy::cast_precision_loss)] // shown with two digits
    let ms = us as f64 / 1000.0;
    format!("{ms:.2} ms")
}
