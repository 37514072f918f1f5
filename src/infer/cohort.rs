//! Cohorts: a list of scans and reports in, a line a scan out, resumable.
//!
//! The list is CSV with a header: `scan`, optionally `report`, and any other columns. Paths are relative to the list.
//! Results go to a JSON Lines file, one object a row; a row that failed has `error` instead of a label. Every line
//! is flushed as it is made: after an interruption the same call goes on with the rows that are missing or failed.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use csv::StringRecord;
use serde_json::Value;

use super::Prediction;
use crate::error::{Code, Error, Result};
use crate::files::replace;

/// Largest list that is read, in bytes.
const MAX_LIST_BYTES: u64 = 256 << 20;

/// A row of a cohort list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Line in the list, from 1.
    pub line: u64,
    /// The scan as the list names it.
    pub scan: String,
    /// The report as the list names it; none where the field is empty.
    pub report: Option<String>,
    folder: PathBuf,
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

    /// What tells rows apart in the results.
    fn key(&self) -> (String, Option<String>) {
        (self.scan.clone(), self.report.clone())
    }
}

/// Reads a list: CSV with a header, spaces about cells trimmed. `columns` finds the cells in the header, `row` takes them
/// out of a record; what they refuse becomes an error with the line. Rows come with their line, from 1.
///
/// # Errors
/// `list.invalid`: no file, too large a file, no text, a row of another length than the header, and what is refused.
pub(crate) fn read_rows<C, R>(
    path: &Path,
    columns: impl FnOnce(&StringRecord) -> Result<C, String>,
    row: impl Fn(&C, &StringRecord) -> Result<R, String>,
) -> Result<Vec<(u64, R)>> {
    let invalid = |message: String| Error::new(Code::LIST_INVALID, message).at(path);
    let meta = std::fs::metadata(path).map_err(|e| invalid(format!("cannot find the list: {e}")))?;
    if !meta.is_file() || meta.len() > MAX_LIST_BYTES {
        return Err(invalid(format!("expected a file of at most {MAX_LIST_BYTES} bytes")));
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_LIST_BYTES).read_to_end(&mut bytes));
    read.map_err(|e| invalid(format!("cannot read the list: {e}")))?;
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes.as_slice());
    let mut lines = Lines { bytes: &bytes, at: 0, line: 1 };
    let header = reader.headers().map_err(|e| invalid(refused(&e, &mut lines)))?.clone();
    let columns = columns(&header).map_err(invalid)?;
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| invalid(refused(&e, &mut lines)))?;
        let line = lines.of(record.position());
        rows.push((line, row(&columns, &record).map_err(|what| invalid(format!("line {line}: {what}")))?));
    }
    Ok(rows)
}

/// Counts lines. The CSV reader's own count lags where lines end in CR LF, or are empty.
struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
    line: u64,
}

impl Lines<'_> {
    /// The line of a record that is not before the last one.
    fn of(&mut self, position: Option<&csv::Position>) -> u64 {
        let start = position.and_then(|p| usize::try_from(p.byte()).ok()).unwrap_or(self.at);
        let rest = self.bytes.get(start..).unwrap_or_default();
        let end = start + rest.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        let passed = self.bytes.get(self.at..end).unwrap_or_default();
        self.line += passed.iter().map(|b| u64::from(*b == b'\n')).sum::<u64>();
        self.at = self.at.max(end);
        self.line
    }
}

/// The CSV reader's refusal, with the line as a person counts it.
fn refused(e: &csv::Error, lines: &mut Lines<'_>) -> String {
    match e.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = lines.of(pos.as_ref());
            format!("line {line}: has {len} cells and the header {expected_len}: is a comma or a quote missing?")
        }
        csv::ErrorKind::Utf8 { pos, .. } => format!("line {}: is not UTF-8 text", lines.of(pos.as_ref())),
        _ => e.to_string(),
    }
}

/// Reads a cohort list.
///
/// # Errors
/// `list.invalid`, naming the line.
pub fn read_list(path: &Path) -> Result<Vec<Row>> {
    let columns = |header: &StringRecord| {
        let column = |name: &str| header.iter().position(|h| h.trim_start_matches('\u{feff}') == name);
        let scan = column("scan").ok_or_else(|| {
            format!("the header has no column `scan`; it has {}", header.iter().collect::<Vec<_>>().join(", "))
        })?;
        Ok((scan, column("report")))
    };
    let rows = read_rows(path, columns, |(scan, report), record| {
        let cell = |i: usize| record.get(i).filter(|cell| !cell.is_empty()).map(str::to_owned);
        Ok((cell(*scan).ok_or("names no scan")?, report.and_then(cell)))
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let row = |(line, (scan, report))| Row { line, scan, report, folder: folder.to_path_buf() };
    Ok(rows.into_iter().map(row).collect())
}

/// A results file that grows line by line.
pub struct Results {
    path: PathBuf,
    file: File,
    done: HashSet<(String, Option<String>)>,
}

impl Results {
    /// Opens `path`, or makes it. Rows that it holds with a label are done; failed rows and an unfinished last line
    /// are dropped, to be tried again. `bundle` is the SHA-256 of the bundle that goes on.
    ///
    /// # Errors
    /// `list.invalid` when the file holds something else, or results of another bundle; `io` when it cannot be read
    /// or written.
    pub fn open(path: &Path, bundle: &str) -> Result<Self> {
        let mut done = HashSet::new();
        let mut kept = Vec::new();
        if path.exists() {
            let file = File::open(path).map_err(|e| Error::io(path, "cannot open the results", e))?;
            let mut reader = BufReader::new(file);
            let mut line = String::new();
            while reader.read_line(&mut line).map_err(|e| Error::io(path, "cannot read the results", e))? > 0 {
                if let Some(key) = line.ends_with('\n').then(|| finished(path, &line, bundle)).transpose()?.flatten() {
                    done.insert(key);
                    kept.extend(line.as_bytes());
                }
                line.clear();
            }
        }
        replace(path, &kept)?;
        let failed = |e: std::io::Error| Error::io(path, "cannot write the results", e);
        let file = File::options().append(true).open(path).map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), file, done })
    }

    /// Whether a row has its result already.
    pub fn has(&self, row: &Row) -> bool {
        self.done.contains(&row.key())
    }

    /// Adds a row's result.
    ///
    /// # Errors
    /// `io` or `disk.full`.
    pub fn add(&mut self, row: &Row, outcome: &Result<Prediction>) -> Result<()> {
        let line = format!("{}\n", line(row, outcome));
        let failed = |e| Error::io(&self.path, "cannot write the results", e);
        self.file.write_all(line.as_bytes()).and_then(|()| self.file.flush()).map_err(failed)
    }
}

/// One line of results: the prediction under the names of the list, or the error.
pub fn line(row: &Row, outcome: &Result<Prediction>) -> Value {
    let mut value = match outcome {
        Ok(prediction) => serde_json::to_value(prediction).unwrap_or_default(),
        Err(e) => serde_json::json!({"scan": null, "report": null, "error": error_json(e)}),
    };
    value["scan"] = row.scan.clone().into();
    value["report"] = row.report.clone().into();
    value
}

/// The results of `rows`, in the list's order, as CSV: `scan, report, label`, a probability a class, `similarity`,
/// `warnings`, `error`. A row without a result is left out.
///
/// # Errors
/// `io` when the file cannot be read, `list.invalid` when a line is not ours.
pub fn to_csv(results: &Path, rows: &[Row], labels: &[String]) -> Result<Vec<u8>> {
    let text = std::fs::read_to_string(results).map_err(|e| Error::io(results, "cannot read the results", e))?;
    let invalid = |e: &dyn std::fmt::Display| Error::new(Code::LIST_INVALID, e.to_string()).at(results);
    let mut lines = HashMap::new();
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).map_err(|e| invalid(&e))?;
        let name = |field: &str| value[field].as_str().map(str::to_owned);
        lines.insert((name("scan").unwrap_or_default(), name("report")), value);
    }
    let mut writer = csv::Writer::from_writer(Vec::new());
    let classes = labels.iter().map(|label| format!("p_{label}"));
    let names = ["scan", "report", "label"].map(str::to_owned).into_iter().chain(classes);
    let names = names.chain(["similarity", "warnings", "error"].map(str::to_owned));
    writer.write_record(names).map_err(|e| invalid(&e))?;
    for value in rows.iter().filter_map(|row| lines.get(&row.key())) {
        writer.write_record(csv_record(value, labels)).map_err(|e| invalid(&e))?;
    }
    writer.into_inner().map_err(|e| invalid(&e))
}

/// The fields of one line of results.
fn csv_record(value: &Value, labels: &[String]) -> Vec<String> {
    let text = |v: &Value| v.as_str().map_or_else(String::new, str::to_owned);
    let number = |v: &Value| v.as_f64().map_or_else(String::new, |n| n.to_string());
    let warnings = value["warnings"].as_array().into_iter().flatten().map(|w| text(&w["code"]));
    let mut record = ["scan", "report", "label"].map(|name| text(&value[name])).to_vec();
    record.extend(labels.iter().map(|label| number(&value["probabilities"][label])));
    record.push(number(&value["similarity"]));
    record.push(warnings.collect::<Vec<_>>().join(" "));
    record.push(text(&value["error"]["code"]));
    record
}

/// `{"code", "message", "path"}`.
pub fn error_json(e: &Error) -> Value {
    let path = e.path().map(|p| p.display().to_string());
    serde_json::json!({"code": e.code().as_str(), "message": e.message(), "path": path})
}

/// The key of a row with a label; none of a failed one.
fn finished(path: &Path, line: &str, bundle: &str) -> Result<Option<(String, Option<String>)>> {
    let value: Value = serde_json::from_str(line).map_err(|e| {
        Error::new(Code::LIST_INVALID, format!("the output exists and holds other things: {e}")).at(path)
    })?;
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    // One table, one model: results of two are not to be mixed.
    if text("label").is_some() && value["bundle"]["sha256"] != bundle {
        let message = "the output exists and holds results of another bundle: choose another -o";
        return Err(Error::new(Code::LIST_INVALID, message).at(path));
    }
    Ok(text("label").and_then(|_| text("scan")).map(|scan| (scan, text("report"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_with_paths_beside_them() {
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

    #[test]
    fn results_go_on_after_an_interruption() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let row = |scan: &str| Row { line: 0, scan: scan.into(), report: None, folder: PathBuf::new() };
        let text = "{\"scan\":\"a\",\"report\":null,\"label\":\"CN\",\"bundle\":{\"sha256\":\"b\"}}\n{\"scan\":\"b\",\"error\":{}}\n{\"scan\":\"c\",\"la";
        std::fs::write(&path, text).unwrap();
        let mut results = Results::open(&path, "b").unwrap();
        assert!(results.has(&row("a")) && !results.has(&row("b")) && !results.has(&row("c")));
        let error = Err(Error::new(Code::NIFTI_EMPTY, "no bytes").at("b"));
        results.add(&row("b"), &error).unwrap();
        let written = std::fs::read_to_string(&path).unwrap();
        assert_eq!(written.lines().count(), 2);
        assert_eq!(Results::open(&path, "c").err().unwrap().code(), Code::LIST_INVALID);
        assert!(written.contains("nifti.empty") && written.starts_with("{\"scan\":\"a\""));
        std::fs::write(&path, "scan,label\n").unwrap();
        assert_eq!(Results::open(&path, "b").err().unwrap().code(), Code::LIST_INVALID);
    }
}
