//! Lists for prediction: CSV with the column `scan`, optionally `report`, and any others; paths are relative to the
//! list.

use std::path::{Path, PathBuf};

use csv::StringRecord;

use super::csv::{list_bytes, parse_rows};
use crate::error::Result;

/// A row of a cohort list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Line in the list, from 1.
    pub line: u64,
    /// The scan as the list names it.
    pub scan: String,
    /// The report as the list names it; none where the field is empty.
    pub report: Option<String>,
    pub(crate) folder: PathBuf,
}

impl Row {
    /// The scan's path.
    pub fn scan_path(&self) -> PathBuf {
        self.folder.join(&self.scan)
    }

    /// The report's path.
    pub fn report_path(&self) -> Option<PathBuf> {
        self.report.as_ref().map(|r| self.folder.join(r))
    }

    /// The key that identifies the row in result files.
    #[cfg(feature = "runtime")]
    pub(crate) fn key(&self) -> (String, Option<String>) {
        (self.scan.clone(), self.report.clone())
    }
}

/// Reads a cohort list.
///
/// # Errors
/// `list.invalid`, naming the line.
pub fn read_list(path: &Path) -> Result<Vec<Row>> {
    parse_list(&list_bytes(path)?, path)
}

/// As [`read_list`], of the file's bytes; `path` is for messages and for the folder that rows are relative to.
///
/// # Errors
/// `list.invalid`, naming the line.
pub fn parse_list(bytes: &[u8], path: &Path) -> Result<Vec<Row>> {
    let columns = |header: &StringRecord| {
        let column = |name: &str| header.iter().position(|h| h.trim_start_matches('\u{feff}') == name);
        let scan = column("scan").ok_or_else(|| {
            format!("the header has no column `scan`; it has {}", header.iter().collect::<Vec<_>>().join(", "))
        })?;
        Ok((scan, column("report")))
    };
    let rows = parse_rows(bytes, path, columns, |(scan, report), record| {
        let cell = |i: usize| record.get(i).filter(|cell| !cell.is_empty()).map(str::to_owned);
        Ok((cell(*scan).ok_or("names no scan")?, report.and_then(cell)))
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let row = |(line, (scan, report))| Row { line, scan, report, folder: folder.to_path_buf() };
    Ok(rows.into_iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn paths_are_relative_to_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("cohort.csv");
        std::fs::write(&list, "\u{feff}id, scan ,report\n1,a.nii,r.txt\n2,\"b,1.nii\",\n").unwrap();
        let rows = read_list(&list).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].report_path().unwrap(), dir.path().join("r.txt"));
        assert_eq!((rows[1].scan.as_str(), rows[1].report.as_deref(), rows[1].line), ("b,1.nii", None, 3));
        // Lines are those that an editor shows: CR LF, empty lines, line breaks in cells.
        std::fs::write(&list, "scan,note\r\na,\r\n\r\nb,\"1\r\n2\"\r\nc,\r\n").unwrap();
        assert_eq!(read_list(&list).unwrap().iter().map(|r| r.line).collect::<Vec<_>>(), [2, 4, 6]);
        std::fs::write(&list, "scan,note\r\na,\r\nb\r\n").unwrap();
        assert!(read_list(&list).unwrap_err().message().contains("line 3: has 1 cells and the header 2"));
        std::fs::write(&list, "id,report\n1,r.txt\n").unwrap();
        assert_eq!(read_list(&list).unwrap_err().code(), Code::LIST_INVALID);
        std::fs::write(&list, "scan,report\n,r.txt\n").unwrap();
        assert!(read_list(&list).unwrap_err().message().contains("line 2"));
    }
}
