//! Columns of text. A cell ends with a tab; a column is as wide as its widest cell among consecutive lines
//! that have it.

const WIDTH_MIN: usize = 10;
const PADDING: usize = 3;

/// Replaces tabs with the spaces that make columns. Every line comes back ended by a line feed, and without
/// spaces before it.
pub fn align(text: &str) -> String {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    let mut widths: Vec<Vec<usize>> = lines.iter().map(|cells| vec![0; cells.len() - 1]).collect();
    let columns = widths.iter().map(Vec::len).max().unwrap_or(0);
    for column in 0..columns {
        let mut line = 0;
        while line < lines.len() {
            let end = (line..lines.len()).find(|at| widths[*at].len() <= column).unwrap_or(lines.len());
            let cells = lines[line..end].iter().map(|cells| cells[column].chars().count() + PADDING);
            let width = cells.max().unwrap_or(0).max(WIDTH_MIN);
            for widths in &mut widths[line..end] {
                widths[column] = width;
            }
            line = end + 1;
        }
    }
    let mut out = String::new();
    for (cells, widths) in lines.iter().zip(&widths) {
        for (index, cell) in cells.iter().enumerate() {
            out.push_str(cell);
            if let Some(width) = widths.get(index) {
                out.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
            }
        }
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::align;
    use expect_test::expect;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        expect![[r"
            ID        NAME                  X
            1         long-enough-to-push   y
            222       é                     z
        "]]
        .assert_eq(&align("ID\tNAME\tX\n1\tlong-enough-to-push\ty\n222\té\tz\n"));
    }

    #[test]
    fn a_line_without_a_column_ends_it() {
        expect![[r"
            a         1
            plain
            much longer cell   2
        "]]
        .assert_eq(&align("a\t1\nplain\nmuch longer cell\t2"));
    }
}
