//! Lists for prediction: a table with the column `scan`, optionally `report`, `volume` and `series`, and any others;
//! paths are relative to the list.
//!
//! A bad row does not end the work: it is in [`List::bad`], and the others are read. A list without any good row is an
//! error. `n/a` and its like ([`super::cells`]) are nothing, whether or not a file has that name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use csv::StringRecord;

use super::cells::{bad_rows, brief, is_placeholder, resolve, volume};
use super::csv::{list_bytes, parse_rows};
use super::header::Header;
use crate::error::{Code, Error, Result};

/// Longest name of a scan or report, in bytes: more than any system's paths have, and little enough that a line of
/// results which quotes it several times stays short.
const MAX_NAME: usize = 32 << 10;
/// Most bytes of the other columns' names and cells in a row, for the same reason.
const MAX_OTHERS: usize = 256 << 10;

/// A list: its rows in their order, and what is wrong with others.
#[derive(Debug)]
pub struct List {
    /// The rows that can be read.
    pub rows: Vec<Row>,
    /// The others.
    pub bad: Vec<BadRow>,
    /// Names of the columns that the rows have besides scan and report, all different.
    pub columns: Arc<[String]>,
    /// What a reader of the results should know: rows whose report is `n/a`, a column that may be the reports'.
    pub notes: Vec<String>,
}

/// A row that cannot be read.
#[derive(Debug)]
pub struct BadRow {
    /// Line in the list, from 1.
    pub line: u64,
    /// `list.invalid`, naming list and line.
    pub error: Error,
}

/// A row of a cohort list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Line in the list, from 1.
    pub line: u64,
    /// The scan as the list names it.
    pub scan: String,
    /// The report as the list names it; none where the field is empty.
    pub report: Option<String>,
    /// The volume of a 4-D scan, from 0; none where the list gives none.
    pub volume: Option<usize>,
    /// The cells of [`List::columns`], as the list has them.
    pub others: Vec<String>,
    pub(crate) columns: Arc<[String]>,
    pub(crate) folder: PathBuf,
}

impl Row {
    /// The scan's path.
    pub fn scan_path(&self) -> PathBuf {
        resolve(&self.folder, &self.scan)
    }

    /// The report's path.
    pub fn report_path(&self) -> Option<PathBuf> {
        self.report.as_ref().map(|r| resolve(&self.folder, r))
    }

    /// The columns besides scan and report: names and cells.
    pub fn others(&self) -> impl Iterator<Item = (&str, &str)> {
        self.columns.iter().map(String::as_str).zip(self.others.iter().map(String::as_str))
    }

    /// Scan, report and volume as the list names them.
    #[cfg(feature = "runtime")]
    pub(crate) fn names(&self) -> (String, Option<String>, Option<usize>) {
        (self.scan.clone(), self.report.clone(), self.volume)
    }
}

/// Reads a cohort list.
///
/// # Errors
/// `list.invalid`: no list, or none of its rows can be read.
pub fn read_list(path: &Path) -> Result<List> {
    parse_list(&list_bytes(path)?, path)
}

/// As [`read_list`], of the file's bytes; `path` is for messages and for the folder that rows are relative to.
///
/// # Errors
/// `list.invalid`: no list, or none of its rows can be read.
pub fn parse_list(bytes: &[u8], path: &Path) -> Result<List> {
    let invalid = |message: String| Error::new(Code::LIST_INVALID, message).at(path);
    let folder = path.parent().unwrap_or(Path::new(""));
    let (columns, parsed) = parse_rows(bytes, path, Columns::find, |columns, record| columns.row(record, folder))?;
    let (mut rows, mut bad, mut placeholders) = (Vec::new(), Vec::new(), Vec::new());
    for (line, parsed) in parsed {
        match parsed {
            Ok((row, placeholder)) => {
                rows.push(Row { line, ..row });
                placeholders.extend(placeholder.then_some(line));
            }
            Err(what) => bad.push((line, what)),
        }
    }
    if rows.is_empty() && !bad.is_empty() {
        return Err(invalid(bad_rows(&bad)));
    }
    let names = name_others(&columns, &mut rows);
    let notes = notes(&columns, &placeholders);
    let error = |(line, what): (u64, String)| BadRow { line, error: invalid(format!("line {line}: {what}")) };
    Ok(List { rows, bad: bad.into_iter().map(error).collect(), columns: names, notes })
}

/// A value in the column `series` cannot be followed yet.
pub(super) fn no_series(cell: Option<&str>) -> Result<(), String> {
    let refused = |series| {
        format!(
            "the series is `{}`, and series of DICOM are not read yet: convert it to NIfTI, name that as the scan, and \
             leave the cell empty, or rename the column if it holds something else",
            brief(series)
        )
    };
    cell.map_or(Ok(()), |series| Err(refused(series)))
}

/// The columns of the list: each field is a column's index.
struct Columns {
    scan: usize,
    report: Option<usize>,
    volume: Option<usize>,
    series: Option<usize>,
    /// With their names, and whether the header has these.
    others: Vec<(usize, String, bool)>,
    /// Bytes of these names.
    name_bytes: usize,
}

impl Columns {
    fn find(header: &Header) -> Result<Self, String> {
        let column = |name: &str| header.find(name);
        let (scan, report) = (header.needed("scan")?, column("report")?);
        let others = header.others(&[Some(scan), report]);
        let name_bytes = others.iter().map(|(_, name, _)| name.len()).sum();
        Ok(Self { scan, report, volume: column("volume")?, series: column("series")?, others, name_bytes })
    }

    /// The row of `record`, without its line and the other columns' names; and whether its report is a placeholder.
    fn row(&self, record: &StringRecord, folder: &Path) -> Result<(Row, bool), String> {
        let cell = |column: Option<usize>| column.and_then(|i| record.get(i)).filter(|text| !text.is_empty());
        let some = |column: Option<usize>| cell(column).filter(|text| !is_placeholder(text));
        let scan = some(Some(self.scan)).ok_or("names no scan")?.to_owned();
        let report = some(self.report).map(str::to_owned);
        let placeholder = report.is_none() && cell(self.report).is_some();
        let long = scan.len().max(report.as_ref().map_or(0, String::len));
        if long > MAX_NAME {
            return Err(format!("a name of {long} bytes, expected at most {MAX_NAME}"));
        }
        no_series(some(self.series))?;
        let volume = some(self.volume).map(volume).transpose()?;
        // Cells that are missing at the end are those of columns without a name: they are added where one is used.
        let others: Vec<String> = self.others.iter().map_while(|(i, ..)| record.get(*i).map(str::to_owned)).collect();
        let bytes = self.name_bytes + others.iter().map(String::len).sum::<usize>();
        if bytes > MAX_OTHERS {
            return Err(format!("its other columns have {bytes} bytes, expected at most {MAX_OTHERS}"));
        }
        Ok((Row { scan, report, volume, others, folder: folder.to_owned(), ..Row::default() }, placeholder))
    }
}

/// Gives rows the names of their other columns. Those without a name of their own that are empty throughout go.
fn name_others(columns: &Columns, rows: &mut [Row]) -> Arc<[String]> {
    let mut keep: Vec<bool> = columns.others.iter().map(|(.., named)| *named).collect();
    for row in &*rows {
        row.others.iter().zip(&mut keep).for_each(|(cell, keep)| *keep |= !cell.is_empty());
    }
    let names = columns.others.iter().zip(&keep).filter(|(_, keep)| **keep).map(|((_, name, _), _)| name.clone());
    let names: Arc<[String]> = names.collect();
    for row in rows {
        let mut kept = keep.iter();
        row.others.retain(|_| kept.next().copied().unwrap_or_default());
        row.others.resize(names.len(), String::new());
        row.columns = Arc::clone(&names);
    }
    names
}

fn notes(columns: &Columns, placeholders: &[u64]) -> Vec<String> {
    let mut notes = Vec::new();
    if let [first, more @ ..] = placeholders {
        let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        notes.push(format!("line {first}{more}: the report is n/a or the like: the scan alone is classified"));
    }
    let like = |name: &&String| name.to_lowercase().contains("report");
    let candidate = columns.others.iter().map(|(_, name, _)| name).find(like);
    if let (None, Some(name)) = (columns.report, candidate) {
        let message = "no column is named `report`: scans alone are classified. If the reports are in";
        notes.push(format!("{message} `{}`, name it `report`", brief(name)));
    }
    notes
}

#[cfg(test)]
#[path = "list_tests.rs"]
mod tests;
