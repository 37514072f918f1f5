//! Cohorts: a list of scans and reports in, a line a scan out, resumable.
//!
//! The list is CSV with a header: `scan`, optionally `report`, and any other columns. Paths are relative to the list.
//! Results go to a JSON Lines file, one object a row; a row that failed has `error` instead of a label. Every line
//! is flushed as it is made: after an interruption the same call goes on with the rows that are missing or failed.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Prediction;
use crate::cohort::Row;
use crate::error::{Code, Error, Result};
use crate::files::replace;

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
