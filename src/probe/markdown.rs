//! Tables of Markdown, as GitHub reads them.

/// A table. What would end a cell or a row is written so that it does not.
pub fn table<'a, R: AsRef<[String]> + 'a>(
    headings: &[impl AsRef<str>],
    rows: impl IntoIterator<Item = &'a R>,
) -> String {
    let headings: Vec<String> = headings.iter().map(|cell| cell.as_ref().to_string()).collect();
    let mut text = line(&headings);
    text += &format!("|{}\n", "---|".repeat(headings.len()));
    rows.into_iter().for_each(|row| text += &line(row.as_ref()));
    text
}

fn line(cells: &[String]) -> String {
    let cells: Vec<String> =
        cells.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect();
    format!("| {} |\n", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_stay_in_their_place() {
        let rows = [vec!["a | b".to_string(), "two\nlines".to_string()]];
        assert_eq!(table(&["x", "y"], &rows), "| x | y |\n|---|---|\n| a \\| b | two lines |\n");
    }
}
