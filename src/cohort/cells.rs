//! Cells of a list: what stands for nothing, numbers, paths, and how a cell is shown.

use std::path::{Path, PathBuf};

use crate::error::{Code, Error};

/// How tables spell that there is nothing: BIDS (`n/a`), pandas and NumPy, R, SQL, Excel. In lower case.
const PLACEHOLDERS: [&str; 9] = ["n/a", "na", "nan", "none", "null", "nil", "#n/a", "<na>", "nat"];

/// Rows that a message names, and reasons.
const SHOWN: usize = 5;

/// Space, also such as a spreadsheet leaves unseen.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || "\u{feff}\u{200b}\u{2060}".contains(c)
}

/// Whether a cell spells that there is nothing, such as `n/a` or `NaN`. A file of that name is `./n/a`.
pub(super) fn is_placeholder(cell: &str) -> bool {
    cell.len() <= 4 && PLACEHOLDERS.contains(&cell.to_ascii_lowercase().as_str())
}

/// The number of a volume, from 0. pandas writes integers of a column with gaps as `2.0`.
pub(super) fn volume(cell: &str) -> Result<usize, String> {
    let whole = match cell.split_once('.') {
        Some((whole, zeros)) if !zeros.is_empty() && zeros.bytes().all(|b| b == b'0') => whole,
        _ => cell,
    };
    let digits = whole.bytes().all(|b| b.is_ascii_digit());
    let number = if digits { whole.parse().ok() } else { None };
    number.ok_or_else(|| {
        let hint = "the volume of a 4-D scan; rename the column if it holds something else";
        format!("the volume is `{}`; expected a number from 0, or nothing: {hint}", brief(cell))
    })
}

/// The path that a list in `folder` names. A list written on Windows has `\` between folders: where only the name with
/// `/` exists, that is meant.
pub(super) fn resolve(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    if cfg!(windows) || !name.contains('\\') || path.exists() {
        return path;
    }
    let other = folder.join(name.replace('\\', "/"));
    if other.exists() { other } else { path }
}

/// The error of a file that a list named; of one that is missing and has `\` in its name it says why that may be.
pub fn explain(e: Error) -> Error {
    let missing = [Code::NIFTI_NOT_FOUND, Code::REPORT_NOT_FOUND].contains(&e.code());
    match e.path().filter(|path| missing && !cfg!(windows) && path.to_string_lossy().contains('\\')) {
        Some(path) => {
            let message =
                format!("{}; its name has `\\`, which separates folders on Windows alone: write /", e.message());
            Error::new(e.code(), message).at(path)
        }
        None => e,
    }
}

/// The beginning of a cell, for a message.
pub(super) fn brief(text: &str) -> String {
    let start: String = text.chars().take(60).collect();
    if start.len() < text.len() { format!("{start}…") } else { start }
}

/// Bad rows in one line: equal reasons once, with the first lines of each.
pub(super) fn bad_rows(rows: &[(u64, String)]) -> String {
    let mut reasons: Vec<(&str, Vec<u64>)> = Vec::new();
    for (line, reason) in rows {
        match reasons.iter().position(|(known, _)| known == reason) {
            Some(i) => reasons[i].1.push(*line),
            // Beyond these, rows are counted only.
            None if reasons.len() < SHOWN => reasons.push((reason, vec![*line])),
            None => {}
        }
    }
    let mut named = 0;
    let mut parts = Vec::new();
    for (reason, lines) in reasons {
        named += lines.len();
        let shown: Vec<String> = lines.iter().take(SHOWN).map(u64::to_string).collect();
        let more = lines.len() - shown.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let word = if lines.len() > 1 { "lines" } else { "line" };
        parts.push(format!("{word} {}{more}: {reason}", shown.join(", ")));
    }
    if named < rows.len() {
        parts.push(format!("and {} rows more", rows.len() - named));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_for_nothing() {
        for cell in ["n/a", "N/A", "NA", "NaN", "nan", "None", "NULL", "<NA>", "#N/A"] {
            assert!(is_placeholder(cell), "{cell}");
        }
        for cell in ["./n/a", "a", "nan.txt", "0", "-", "nadia", "no"] {
            assert!(!is_placeholder(cell), "{cell}");
        }
    }

    #[test]
    fn volumes_count_from_0() {
        assert_eq!(["0", "7", "12.0", "3.00"].map(|cell| volume(cell).unwrap()), [0, 7, 12, 3]);
        for cell in ["-1", "1.5", "a", "1.", ".0", "+1", "1e3", "99999999999999999999999", "1,0"] {
            assert!(volume(cell).unwrap_err().contains("expected a number from 0"), "{cell}");
        }
    }

    #[test]
    fn bad_rows_are_one_line() {
        let row = |line: u64, reason: &str| (line, reason.to_owned());
        assert_eq!(bad_rows(&[row(3, "names no scan")]), "line 3: names no scan");
        let rows = [row(2, "a"), row(4, "b"), row(5, "a")];
        assert_eq!(bad_rows(&rows), "lines 2, 5: a; line 4: b");
        let rows: Vec<_> = (2..20).map(|line| row(line, "a")).collect();
        assert_eq!(bad_rows(&rows), "lines 2, 3, 4, 5, 6 and 13 more: a");
        let rows: Vec<_> = (2..20).map(|line| row(line, &format!("r{line}"))).collect();
        assert!(bad_rows(&rows).ends_with("line 6: r6; and 13 rows more"), "{}", bad_rows(&rows));
    }

    #[cfg(unix)]
    #[test]
    fn backslashes_are_followed_where_only_that_exists() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/a.nii"), "").unwrap();
        assert_eq!(resolve(dir.path(), "d\\a.nii"), dir.path().join("d/a.nii"));
        assert_eq!(resolve(dir.path(), "d\\b.nii"), dir.path().join("d\\b.nii"));
        std::fs::write(dir.path().join("d\\a.nii"), "").unwrap();
        assert_eq!(resolve(dir.path(), "d\\a.nii"), dir.path().join("d\\a.nii"));
        let e = explain(Error::new(Code::NIFTI_NOT_FOUND, "no such file").at(dir.path().join("d\\b.nii")));
        assert!(e.code() == Code::NIFTI_NOT_FOUND && e.message().contains("write /"), "{e}");
    }
}
