//! The labelled cohort list: a stand-in with the signature of the reader that is to come.

use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result};

/// What a subject is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Its gradients move the weights.
    Train,
    /// Chooses among checkpoints and settings.
    Validation,
    /// Looked at once, at the end.
    Test,
}

impl Split {
    /// `train`, `validation` or `test`.
    pub fn name(self) -> &'static str {
        ["train", "validation", "test"][self as usize]
    }
}

/// A row of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Line in the list; the header is on line 1.
    pub row: usize,
    /// Who it is about: rows of one value are one person.
    pub subject: String,
    /// The scan's path.
    pub scan: PathBuf,
    /// The report's path; none: the scan alone.
    pub report: Option<PathBuf>,
    /// Index into the model's labels.
    pub label: usize,
    /// What the list uses it for; none: not decided.
    pub split: Option<Split>,
}

/// Reads a labelled list.
///
/// # Errors
/// `list.invalid`, naming the line.
pub fn read(path: &Path, labels: &[String]) -> Result<Vec<Subject>> {
    let invalid = |message: String| Error::new(Code::LIST_INVALID, message).at(path);
    let mut reader =
        csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(|e| invalid(e.to_string()))?;
    let header = reader.headers().map_err(|e| invalid(e.to_string()))?.clone();
    let column = |name: &str| header.iter().position(|h| h == name);
    let folder = path.parent().unwrap_or(Path::new(""));
    let row = |(i, record): (usize, csv::Result<csv::StringRecord>)| {
        let record = record.map_err(|e| invalid(e.to_string()))?;
        let cell = |name: &str| column(name).and_then(|c| record.get(c)).filter(|c| !c.is_empty());
        let need = |name: &str| cell(name).ok_or_else(|| invalid(format!("line {}: no `{name}`", i + 2)));
        let label = need("label")?;
        let known = labels.iter().position(|l| l == label);
        let split = [Split::Train, Split::Validation, Split::Test];
        Ok(Subject {
            row: i + 2,
            subject: cell("subject").unwrap_or(need("scan")?).to_owned(),
            scan: folder.join(need("scan")?),
            report: cell("report").map(|report| folder.join(report)),
            label: known.ok_or_else(|| invalid(format!("line {}: unknown label `{label}`", i + 2)))?,
            split: cell("split").and_then(|name| split.into_iter().find(|s| s.name() == name)),
        })
    };
    reader.records().enumerate().map(row).collect()
}
