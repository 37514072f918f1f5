//! Labelled lists for training and evaluation: scans, reports, labels, and which split each row belongs to.
//!
//! CSV with a header: `scan` and `label`; optionally `report` (empty: the scan alone), `split` (`train`, `validation`
//! or `val`, `test`; empty: unassigned) and `subject` or `participant_id`. Other columns are ignored, the order is
//! free. Paths are relative to the list.
//!
//! **One person, one split.** Two scans of a person resemble each other more than two people of a class do. A model
//! that meets in validation or test a person it was trained on seems better than it is, and that harms the patients it
//! is later used on. So rows of one subject never part: a list that puts a subject, or a scan, into two splits is
//! refused; a row without a split gets the split of its subject; and [`assign_splits`] moves whole subjects. The
//! subject of a row is the cell of its column, else the BIDS entity `sub-…` in the scan's path, else the scan itself:
//! two files of one person without either count as two people, which only the list's author can know better.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use csv::StringRecord;
use sha2::{Digest, Sha256};

use super::csv::{list_bytes, parse_rows};
use crate::error::{Code, Error, Result};

/// What a subject is used for.
///
/// ```
/// use brain_adapter::cohort::Split;
///
/// assert_eq!(Split::from_name("val"), Some(Split::Validation));
/// assert_eq!(Split::Test.name(), "test");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Split {
    /// Its gradients update the parameters.
    Train,
    /// Selects the best epoch, fits temperatures.
    Validation,
    /// Evaluated once, at the end.
    Test,
}

impl Split {
    /// All splits, in the order of the fractions of [`assign_splits`].
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// `train`, `validation` or `test`.
    pub fn name(self) -> &'static str {
        ["train", "validation", "test"][self as usize]
    }

    /// Reads a name, in upper or lower case; `val` is `validation`.
    pub fn from_name(name: &str) -> Option<Self> {
        let known = |split: &Self| name.eq_ignore_ascii_case(split.name());
        Self::ALL.into_iter().find(known).or(name.eq_ignore_ascii_case("val").then_some(Self::Validation))
    }
}

/// A row of a labelled list: one scan, perhaps with its report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Line in the list; the header is on line 1.
    pub line: usize,
    /// The person: all rows with one value are one person. Without `sub-`; the scan as it is listed where the list
    /// names no person.
    pub subject: String,
    /// The scan's path.
    pub scan: PathBuf,
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
    parse_labelled(&list_bytes(path)?, path, labels)
}

/// As [`read_labelled`], of the file's bytes; `path` is for messages and for the folder that rows are relative to.
///
/// # Errors
/// `list.invalid`.
pub fn parse_labelled(bytes: &[u8], path: &Path, labels: &[String]) -> Result<Vec<Case>> {
    let invalid = |message: String| Error::new(Code::LIST_INVALID, message).at(path);
    let folder = path.parent().unwrap_or(Path::new(""));
    let rows = parse_rows(bytes, path, Header::find, |header, record| header.row(record, folder, labels))?;
    let numbered = |(line, row)| Row { line: usize::try_from(line).unwrap_or(usize::MAX), ..row };
    let mut rows: Vec<Row> = rows.into_iter().map(numbered).collect();
    if rows.is_empty() {
        return Err(invalid("the list has a header and no rows: there is nothing to learn from".to_owned()));
    }
    name_subjects(&mut rows).map_err(invalid)?;
    one_split_each(&mut rows).map_err(invalid)?;
    Ok(rows.into_iter().map(Row::case).collect())
}

/// Assigns a split to the subjects that have none: `fractions` of them, class by class, go to training, validation and
/// test (a stratified split). All rows of a subject go together.
///
/// Each class is sorted by the SHA-256 of seed and subject, then divided by the fractions (largest remainder; where
/// there are enough subjects, no split with a positive fraction stays empty). So the result depends on seed, names and
/// labels: not on the order of rows, the folder, or the machine. A subject whose rows differ in label counts for the
/// last of them in the model's order.
///
/// # Errors
/// `config.value` for fractions that are negative, not finite or do not add up to 1.
pub fn assign_splits(cases: &mut [Case], fractions: [f64; 3], seed: u64) -> Result<()> {
    let sum: f64 = fractions.iter().sum();
    if !fractions.iter().all(|f| (0.0..=1.0).contains(f)) || (sum - 1.0).abs() > 1e-6 {
        let message =
            format!("cannot split by the fractions {fractions:?}: expected three from 0 to 1 that add up to 1");
        return Err(Error::new(Code::CONFIG_VALUE, message));
    }
    let mut persons: BTreeMap<&str, (usize, Option<Split>)> = BTreeMap::new();
    for row in &*cases {
        let person = persons.entry(&row.subject).or_insert((row.label, row.split));
        *person = (person.0.max(row.label), person.1.or(row.split));
    }
    let mut classes: BTreeMap<usize, Vec<(Vec<u8>, &str)>> = BTreeMap::new();
    for (name, (label, _)) in persons.iter().filter(|(_, (_, split))| split.is_none()) {
        let hash = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name.as_bytes()).finalize();
        classes.entry(*label).or_default().push((hash.to_vec(), name));
    }
    let mut assigned = BTreeMap::new();
    for persons in classes.values_mut() {
        persons.sort_unstable();
        let counts = apportion(persons.len(), fractions);
        let splits = Split::ALL.into_iter().zip(counts).flat_map(|(split, count)| std::iter::repeat_n(split, count));
        assigned.extend(persons.iter().map(|(_, name)| (*name).to_owned()).zip(splits));
    }
    let known: BTreeMap<_, _> = persons.into_iter().filter_map(|(name, (_, s))| Some((name.to_owned(), s?))).collect();
    assigned.extend(known);
    for row in cases {
        row.split = row.split.or_else(|| assigned.get(&row.subject).copied());
    }
    Ok(())
}

/// `total` in three whole numbers by `fractions` (largest remainder); where `total` allows it, none of a positive
/// fraction is 0.
fn apportion(total: usize, fractions: [f64; 3]) -> [usize; 3] {
    let exact = fractions.map(|f| f * total as f64);
    // 0.2 of 5 is a hair above or below 1: neither may decide.
    let mut counts = exact.map(|x| (x + 1e-9).floor() as usize);
    let mut order = [0, 1, 2];
    order.sort_by(|a, b| (exact[*b] - counts[*b] as f64).total_cmp(&(exact[*a] - counts[*a] as f64)));
    let remaining = total.saturating_sub(counts.iter().sum());
    order.into_iter().filter(|i| fractions[*i] > 0.0).cycle().take(remaining).for_each(|i| counts[i] += 1);
    if total >= fractions.iter().filter(|f| **f > 0.0).count() {
        while let Some(empty) = (0..3).find(|i| fractions[*i] > 0.0 && counts[*i] == 0) {
            let fullest =
                if counts[0] >= counts[1].max(counts[2]) { 0 } else { 1 + usize::from(counts[2] > counts[1]) };
            counts[fullest] -= 1;
            counts[empty] += 1;
        }
    }
    counts
}

/// The columns of the list: each field is a column's index.
struct Header {
    scan: usize,
    label: usize,
    report: Option<usize>,
    split: Option<usize>,
    subject: Option<usize>,
}

/// A row whose subject is not final yet.
struct Row {
    line: usize,
    named: Option<String>,
    /// The scan as it is listed, without `.` parts.
    listed: String,
    scan: PathBuf,
    report: Option<PathBuf>,
    label: usize,
    split: Option<Split>,
}

impl Header {
    fn find(header: &StringRecord) -> Result<Self, String> {
        let names: Vec<&str> = header.iter().map(|h| h.trim_start_matches('\u{feff}')).collect();
        let column = |name: &str| match names.iter().filter(|n| **n == name).count() {
            0 => Ok(None),
            1 => Ok(names.iter().position(|n| *n == name)),
            n => Err(format!("the header has {n} columns `{name}`: keep one")),
        };
        let needed = |name: &str| {
            let shown = brief(&names.join(", "));
            let hint =
                if names.len() == 1 && shown.contains([';', '\t']) { " (columns are separated by commas)" } else { "" };
            column(name)?.ok_or_else(|| format!("the header has no column `{name}`; it has {shown}{hint}"))
        };
        let subject = column("subject")?.or(column("participant_id")?);
        let (report, split) = (column("report")?, column("split")?);
        Ok(Self { scan: needed("scan")?, label: needed("label")?, report, split, subject })
    }

    /// The row of `record`, without its line.
    fn row(&self, record: &StringRecord, folder: &Path, labels: &[String]) -> Result<Row, String> {
        let cell = |column: Option<usize>| column.and_then(|i| record.get(i)).filter(|text| !text.is_empty());
        let scan = cell(Some(self.scan)).ok_or("names no scan")?;
        let given = cell(Some(self.label)).ok_or("has no label")?;
        let label = labels
            .iter()
            .position(|l| l == given)
            .ok_or_else(|| format!("the label is `{}`; the model's labels are {}", brief(given), labels.join(", ")))?;
        let split = match cell(self.split) {
            None => None,
            Some(name) => Some(Split::from_name(name).ok_or_else(|| {
                format!("the split is `{}`; expected train, validation, test or nothing", brief(name))
            })?),
        };
        let named = cell(self.subject).or_else(|| bids_subject(scan));
        let bare = |name: &str| name.strip_prefix("sub-").filter(|n| !n.is_empty()).unwrap_or(name).to_owned();
        let listed: PathBuf = Path::new(scan).components().filter(|part| *part != Component::CurDir).collect();
        Ok(Row {
            line: 0,
            named: named.map(bare),
            listed: listed.to_string_lossy().into_owned(),
            scan: folder.join(scan),
            report: cell(self.report).map(|report| folder.join(report)),
            label,
            split,
        })
    }
}

impl Row {
    fn case(self) -> Case {
        let Self { line, named, listed, scan, report, label, split } = self;
        Case { line, subject: named.unwrap_or(listed), scan, report, label, split }
    }
}

/// The value of the first BIDS entity `sub-` in a path: of a folder, or at the start of the file's name.
fn bids_subject(scan: &str) -> Option<&str> {
    let entity = |part: &str| {
        let name = part.strip_prefix("sub-").map(|n| n.len()).filter(|n| *n > 0)?;
        Some(name + "sub-".len())
    };
    scan.split(['/', '\\']).find_map(|part| {
        // sub-01_T1w.nii.gz, sub-01.nii.gz: an entity's value is letters and digits.
        entity(part).map(|all| part[..all].split(['_', '.']).next().unwrap_or(part)).filter(|p| p.len() > "sub-".len())
    })
}

/// Gives rows of one scan one subject; they must agree on the subject, the label and the split.
fn name_subjects(rows: &mut [Row]) -> Result<(), String> {
    let mut scans: BTreeMap<PathBuf, Vec<usize>> = BTreeMap::new();
    for (i, row) in rows.iter().enumerate() {
        // One file by two names, or by a link, is one scan.
        let file = row.scan.canonicalize().unwrap_or_else(|_| row.scan.components().collect());
        scans.entry(file).or_default().push(i);
    }
    for same in scans.into_values().filter(|same| same.len() > 1) {
        let first = &rows[same[0]];
        for other in same.iter().map(|i| &rows[*i]) {
            let lines = format!("lines {} and {} name one scan, {}", first.line, other.line, brief(&other.listed));
            if other.label != first.label {
                return Err(format!("{lines}, with two labels: correct one"));
            }
            if other.split.zip(first.split).is_some_and(|(a, b)| a != b) {
                return Err(format!("{lines}, in two splits: a model must not be tested on what it learned"));
            }
        }
        let mut names = same.iter().filter_map(|i| rows[*i].named.clone());
        let name = names.next();
        if let Some(other) = names.find(|n| name.as_ref() != Some(n)) {
            let [a, b] = [name.as_deref().unwrap_or_default(), &other].map(brief);
            return Err(format!("line {}: its scan is listed for two subjects, {a} and {b}", first.line));
        }
        let name = name.or_else(|| same.iter().map(|i| rows[*i].listed.clone()).min());
        same.iter().for_each(|i| rows[*i].named.clone_from(&name));
    }
    Ok(())
}

/// Gives rows of one subject its split; two splits are refused.
fn one_split_each(rows: &mut [Row]) -> Result<(), String> {
    let who = |row: &Row| row.named.clone().unwrap_or_else(|| row.listed.clone());
    let mut known: BTreeMap<String, (Split, usize)> = BTreeMap::new();
    for row in &*rows {
        let Some(split) = row.split else { continue };
        let (other, line) = *known.entry(who(row)).or_insert((split, row.line));
        if other != split {
            let (subject, here, there) = (brief(&who(row)), split.name(), other.name());
            let place = format!("line {}: subject {subject} is in {here}, on line {line} in {there}", row.line);
            return Err(format!("{place}: keep a person's rows in one split, or results look better than they are"));
        }
    }
    rows.iter_mut().for_each(|row| row.split = known.get(&who(row)).map(|(split, _)| *split));
    Ok(())
}

/// The beginning of a cell, for a message.
fn brief(text: &str) -> String {
    let start: String = text.chars().take(60).collect();
    if start.len() < text.len() { format!("{start}…") } else { start }
}

#[cfg(test)]
#[path = "labelled_tests.rs"]
mod tests;
