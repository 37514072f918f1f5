//! Labelled lists for training and evaluation: scans, reports, labels, and which split each row belongs to.
//!
//! A table with a header ([`super::csv`]): `scan` and `label`; optionally `report` (empty or `n/a`: the scan alone),
//! `split` (`train`, `validation` or `val`, `test`; empty or `n/a`: unassigned), `volume` (of a 4-D scan, from 0),
//! `series` (of DICOM; must be empty so far), and `subject` or `participant_id`. Other columns are ignored, the order
//! is free. Paths are relative to the list.
//!
//! **A bad row refuses the list**, unlike in lists for prediction: a row that is left out changes what is learned and
//! measured, and the numbers would not say so. The error names all bad rows at once.
//!
//! **One person, one split.** Two scans of a person resemble each other more than two people of a class do. A model
//! that meets in validation or test a person it was trained on seems better than it is, and that harms the patients it
//! is later used on. So rows of one subject never part: a list that puts a subject, or a scan, into two splits is
//! refused; a row without a split gets the split of its subject; and [`assign_splits`](super::assign_splits) moves
//! whole subjects. The subject of a row is the cell of its column, else the BIDS entity `sub-…` in the scan's path,
//! else the person that a known study's file name has, else the scan itself. All spellings of a person are one
//! ([`super::person`]); [`subject_warnings`](super::subject_warnings) says which were, and how many scans name nobody.

use std::path::{Component, Path, PathBuf};

use csv::StringRecord;

use super::cells::{bad_rows, brief, is_placeholder, resolve, volume};
use super::csv::{list_bytes, parse_rows};
use super::header::Header;
use super::list::no_series;
use super::people::{self, Row};
use super::person::{bids_entity, of_cell, of_path};
use super::split::Split;
use crate::error::{Code, Error, Result};

/// A row of a labelled list: one scan, perhaps with its report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Line in the list; the header is on line 1.
    pub line: usize,
    /// The person: all rows with one value are one person. Without `sub-`; of several spellings the first in order,
    /// without session; the scan as it is listed where nothing names the person.
    pub subject: String,
    /// The person as this row spells it, without `sub-`; none where nothing names the person.
    pub spelled: Option<String>,
    /// The scan's path.
    pub scan: PathBuf,
    /// The volume of a 4-D scan, from 0; none where the list gives none.
    pub volume: Option<usize>,
    /// The report's path; none: the scan alone.
    pub report: Option<PathBuf>,
    /// Index into the model's labels.
    pub label: usize,
    /// The split; none: the list assigns none.
    pub split: Option<Split>,
}

/// Reads a labelled list; `labels` are the model's, in its order. Scans and reports are not opened: a missing file is
/// an error only when it is read.
///
/// ```
/// use brain_adapter::cohort::{assign_splits, read_labelled};
///
/// let folder = tempfile::tempdir()?;
/// let list = folder.path().join("cohort.csv");
/// std::fs::write(&list, "scan,label\nsub-01_T1w.nii.gz,CN\nsub-02_T1w.nii.gz,AD\n")?;
/// let labels = ["CN", "MCI", "AD"].map(String::from);
/// let mut cases = read_labelled(&list, &labels)?;
/// assert_eq!((cases[1].subject.as_str(), cases[1].label), ("02", 2));
///
/// assign_splits(&mut cases, [0.8, 0.2, 0.0], 0)?;
/// assert!(cases.iter().all(|case| case.split.is_some()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// `list.invalid`, naming the line: no such column, a cell that is missing or unknown, a subject or a scan in two
/// splits, a scan with two labels or of two subjects.
pub fn read_labelled(path: &Path, labels: &[String]) -> Result<Vec<Case>> {
    // One file by two names, or by a link, is one scan.
    let file = |scan: &Path| scan.canonicalize().unwrap_or_else(|_| same_name(scan));
    parse(&list_bytes(path)?, path, labels, &Names { resolve, file })
}

/// As [`read_labelled`], of the file's bytes; `path` is for messages and for the folder that rows are relative to. No
/// file is looked at: names that differ are files that differ, and `\` is a part of a name.
///
/// # Errors
/// `list.invalid`.
pub fn parse_labelled(bytes: &[u8], path: &Path, labels: &[String]) -> Result<Vec<Case>> {
    parse(bytes, path, labels, &Names { resolve: |folder, name| folder.join(name), file: same_name })
}

/// How the names in a list become files: by what the file system has, or by the names alone.
struct Names {
    /// The path that a name in a list in this folder means.
    resolve: fn(&Path, &str) -> PathBuf,
    /// What is equal for two paths of one file.
    file: fn(&Path) -> PathBuf,
}

/// A path without `.` parts and doubled separators.
fn same_name(path: &Path) -> PathBuf {
    path.components().collect()
}

fn parse(bytes: &[u8], path: &Path, labels: &[String], names: &Names) -> Result<Vec<Case>> {
    let invalid = |message: String| Error::new(Code::LIST_INVALID, message).at(path);
    let folder = path.parent().unwrap_or(Path::new(""));
    let (_, parsed) =
        parse_rows(bytes, path, Columns::find, |columns, record| columns.row(record, folder, labels, names))?;
    let (mut rows, mut bad) = (Vec::new(), Vec::new());
    for (line, row) in parsed {
        match row {
            Ok(row) => rows.push(Row { line: usize::try_from(line).unwrap_or(usize::MAX), ..row }),
            Err(what) => bad.push((line, what)),
        }
    }
    if !bad.is_empty() {
        return Err(invalid(bad_rows(&bad)));
    }
    if rows.is_empty() {
        return Err(invalid("the list has a header and no rows: there is nothing to learn from".to_owned()));
    }
    people::of_one_scan(&mut rows).map_err(invalid)?;
    people::one_split_each(&mut rows).map_err(invalid)?;
    let subjects = people::subjects(&rows);
    Ok(rows.into_iter().zip(subjects).map(|(row, subject)| case(row, subject)).collect())
}

fn case(row: Row, subject: String) -> Case {
    let Row { line, spelled, scan, volume, report, label, split, .. } = row;
    Case { line, subject, spelled, scan, volume, report, label, split }
}

/// The columns of the list: each field is a column's index.
struct Columns {
    scan: usize,
    label: usize,
    report: Option<usize>,
    split: Option<usize>,
    subject: Option<usize>,
    volume: Option<usize>,
    series: Option<usize>,
}

impl Columns {
    fn find(header: &Header) -> Result<Self, String> {
        let column = |name: &str| header.find(name);
        let subject = column("subject")?.or(column("participant_id")?);
        let (report, split) = (column("report")?, column("split")?);
        let (scan, label) = (header.needed("scan")?, header.needed("label")?);
        Ok(Self { scan, label, report, split, subject, volume: column("volume")?, series: column("series")? })
    }

    /// The row of `record`, without its line.
    fn row(&self, record: &StringRecord, folder: &Path, labels: &[String], names: &Names) -> Result<Row, String> {
        let cell = |column: Option<usize>| column.and_then(|i| record.get(i)).filter(|text| !text.is_empty());
        let some = |column: Option<usize>| cell(column).filter(|text| !is_placeholder(text));
        let scan = some(Some(self.scan)).ok_or("names no scan")?;
        let label = label(cell(Some(self.label)), labels)?;
        let split = match some(self.split) {
            None => None,
            Some(name) => Some(Split::from_name(name).ok_or_else(|| {
                format!("the split is `{}`; expected train, validation, test or nothing", brief(name))
            })?),
        };
        no_series(some(self.series))?;
        let listed: PathBuf = Path::new(scan).components().filter(|part| *part != Component::CurDir).collect();
        let listed = listed.to_string_lossy().into_owned();
        let named = cell(self.subject);
        if let Some(name) = named.filter(|name| is_placeholder(name)) {
            return Err(format!(
                "the subject is `{name}`, but n/a and the like name nobody: give the person, or leave the cell empty if \
                 the scan's name has it"
            ));
        }
        let bare = |name: &str| name.strip_prefix("sub-").filter(|n| !n.is_empty()).unwrap_or(name).to_owned();
        let in_words = named.or_else(|| bids_entity(scan));
        let person = in_words.map(of_cell).or_else(|| of_path(scan));
        let path = (names.resolve)(folder, scan);
        Ok(Row {
            line: 0,
            spelled: in_words.map(bare).or_else(|| person.as_ref().map(|p| p.id.clone())),
            person,
            name: in_words.map_or(listed.clone(), bare),
            listed,
            file: (names.file)(&path),
            scan: path,
            volume: some(self.volume).map(volume).transpose()?,
            report: some(self.report).map(|report| (names.resolve)(folder, report)),
            label,
            split,
        })
    }
}

/// The index of a label.
fn label(given: Option<&str>, labels: &[String]) -> Result<usize, String> {
    let given = given.ok_or("has no label")?;
    labels.iter().position(|l| l == given).ok_or_else(|| match is_placeholder(given) {
        true => "has no label".to_owned(),
        false => format!("the label is `{}`; the model's labels are {}", brief(given), labels.join(", ")),
    })
}

#[cfg(test)]
#[path = "labelled_tests.rs"]
mod tests;
