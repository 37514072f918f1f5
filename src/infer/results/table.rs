//! Results as CSV: `scan, report, label`, a probability a class, `similarity`, `warnings`, `error`, and then the other
//! columns of the list, in its order, and of other lists. One that has a name of ours has `list_` before it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use serde_json::Value;

use super::line::{Found, Line, Lines, Names};
use super::store::{Results, is_others};
use crate::cohort::Row;
use crate::error::{Error, Result};
use crate::files::Pending;

/// The columns before and after the classes'.
const BEFORE: [&str; 3] = ["scan", "report", "label"];
const AFTER: [&str; 3] = ["similarity", "warnings", "error"];
/// Before a class, in the name of its column.
const CLASS: &str = "p_";
/// Before the name of a list's column that is one of ours.
const LIST: &str = "list_";

/// Longest header of a table that is recognized, in bytes.
const MAX_HEADER: u64 = 1 << 20;

impl Results {
    /// Writes the table: first the rows of other lists, as they come, with scan and report as paths from those lists'
    /// folders; then `rows`, in the list's order, as the list names them. A row without a line is left out.
    ///
    /// # Errors
    /// `io`, `disk.full`; `output.exists` when other things were written into the results.
    pub fn write_csv(&self, path: &Path, rows: &[Row], labels: &[String]) -> Result<()> {
        let pending = Pending::next_to(path, "")?;
        let own: HashSet<Names> = rows.iter().map(Row::names).collect();
        let of_others =
            |line: &Line| is_others(line, &self.list) || (line.list.is_none() && !own.contains(&line.names()));
        let mut columns: Vec<String> = rows.first().into_iter().flat_map(Row::others).map(|(n, _)| n.into()).collect();
        let mut known: HashSet<String> = columns.iter().cloned().collect();
        let mut lines = Lines::open(&self.path)?;
        while let Some(Found { line, .. }) = lines.next()? {
            if of_others(&line) {
                columns
                    .extend(line.columns.into_iter().map(|(name, _)| name).filter(|name| known.insert(name.clone())));
            }
        }
        let mut table = Table { out: csv::Writer::from_writer(pending.file()), path, labels, columns: &columns };
        table.header()?;
        let mut lines = Lines::open(&self.path)?;
        while let Some(Found { line, bytes, .. }) = lines.next()? {
            if of_others(&line) {
                let folder = line.list.as_deref().and_then(|list| Path::new(list).parent());
                table.row(bytes, folder, None)?;
            }
        }
        let places = self.own_lines(rows)?;
        for row in rows {
            let Some(place) = places.get(&row.names()) else { continue };
            if let Some(Found { bytes, .. }) = lines.at(*place)? {
                table.row(bytes, None, Some(row))?;
            }
        }
        table.finish()?;
        pending.put()
    }
}

struct Table<'a, W: Write> {
    out: csv::Writer<W>,
    path: &'a Path,
    labels: &'a [String],
    /// The lists' columns.
    columns: &'a [String],
}

impl<W: Write> Table<'_, W> {
    fn header(&mut self) -> Result<()> {
        let classes = self.labels.iter().map(|label| format!("{CLASS}{label}"));
        let mut names: Vec<String> =
            BEFORE.map(str::to_owned).into_iter().chain(classes).chain(AFTER.map(str::to_owned)).collect();
        let mut taken: HashSet<String> = names.iter().cloned().collect();
        for column in self.columns {
            let mut name = column.clone();
            while name.starts_with(CLASS) || !taken.insert(name.clone()) {
                name.insert_str(0, LIST);
            }
            names.push(inert(name));
        }
        self.out.write_record(names).map_err(|e| failed(self.path, e))
    }

    /// A line of results as a row; its names are relative to `folder`, where that is not the list's own, and the other
    /// columns are those that `of` has, else those of the line.
    fn row(&mut self, line: &[u8], folder: Option<&Path>, of: Option<&Row>) -> Result<()> {
        let value: Value = serde_json::from_slice(line)
            .map_err(|e| Error::internal(format!("a line of results was read before, and now: {e}")))?;
        let mut record = record(&value, folder, self.labels);
        let now: HashMap<&str, &str> = of.into_iter().flat_map(Row::others).collect();
        record.extend(self.columns.iter().map(|name| {
            let cell = match of {
                Some(_) => now.get(name.as_str()).copied(),
                None => value["columns"][name.as_str()].as_str(),
            };
            let cell = cell.unwrap_or_default().to_owned();
            if is_number(&cell) { cell } else { inert(cell) }
        }));
        self.out.write_record(record).map_err(|e| failed(self.path, e))
    }

    fn finish(mut self) -> Result<()> {
        self.out.flush().map_err(|e| Error::io(self.path, "cannot write the table", e))
    }
}

fn failed(path: &Path, e: csv::Error) -> Error {
    match e.into_kind() {
        csv::ErrorKind::Io(e) => Error::io(path, "cannot write the table", e),
        other => Error::internal(format!("a row of the table: {other:?}")).at(path),
    }
}

/// The fields of one line of results.
fn record(value: &Value, folder: Option<&Path>, labels: &[String]) -> Vec<String> {
    let text = |v: &Value| v.as_str().map_or_else(String::new, str::to_owned);
    let number = |v: &Value| v.as_f64().map_or_else(String::new, |n| n.to_string());
    let path = |v: &Value| match (folder, v.as_str()) {
        (Some(folder), Some(name)) => folder.join(name).display().to_string(),
        _ => text(v),
    };
    let warnings = value["warnings"].as_array().into_iter().flatten().map(|w| text(&w["code"]));
    let mut record = [path(&value["scan"]), path(&value["report"]), text(&value["label"])].map(inert).to_vec();
    record.extend(labels.iter().map(|label| number(&value["probabilities"][label])));
    record.push(number(&value["similarity"]));
    record.push(inert(warnings.collect::<Vec<_>>().join(" ")));
    record.push(inert(text(&value["error"]["code"])));
    record
}

/// A cell of text that a spreadsheet shows and does not run: what would begin a formula follows an apostrophe.
fn inert(cell: String) -> String {
    let begins = |c: char| "=+-@\t\r\n\u{ff1d}\u{ff0b}\u{ff0d}\u{ff20}".contains(c);
    if cell.trim_start_matches(' ').starts_with(begins) { format!("'{cell}") } else { cell }
}

/// Whether a cell is a number with a sign, which a spreadsheet does not run either.
fn is_number(cell: &str) -> bool {
    cell.starts_with(['+', '-']) && cell.ends_with(|c: char| c.is_ascii_digit()) && cell.parse::<f64>().is_ok()
}

/// Whether a file begins as a table of [`Results::write_csv`], of whatever classes, and its further columns are such as
/// it would have: of `columns`, those of a list, or of the lines next to it. A table to which somebody added a column
/// of notes is theirs.
///
/// # Errors
/// `io`.
pub fn is_table(path: &Path, columns: &[String]) -> Result<bool> {
    let failed = |e| Error::io(path, "cannot read the output", e);
    let start = File::open(path).map_err(failed)?.take(MAX_HEADER);
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(start);
    let Some(Ok(header)) = reader.records().next() else { return Ok(false) };
    let cells: Vec<&str> = header.iter().collect();
    let Some(rest) = cells.strip_prefix(&BEFORE) else { return Ok(false) };
    let classes = rest.iter().take_while(|name| name.starts_with(CLASS)).count();
    let Some(further) = rest.get(classes..).and_then(|rest| rest.strip_prefix(&AFTER)) else { return Ok(false) };
    if classes == 0 || further.is_empty() {
        return Ok(classes > 0);
    }
    // However often the name has `list_` before it.
    let bare = |name: &str| inert(name.to_owned()).trim_start_matches('\'').replace(LIST, "");
    let mut known: BTreeSet<String> = columns.iter().map(|name| bare(name)).collect();
    let lines = path.with_extension("jsonl");
    if lines.is_file() {
        let mut lines = Lines::open(&lines)?;
        // What follows a line that is not ours tells nothing; it is refused where results are opened.
        while let Ok(Some(Found { line, .. })) = lines.next() {
            known.extend(line.columns.keys().map(|name| bare(name)));
        }
    }
    Ok(further.iter().all(|name| known.contains(&bare(name))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_text_are_no_formulas_and_numbers_stay_numbers() {
        let hostile = ["=cmd|'/C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "\u{ff1d}1"];
        for cell in hostile {
            assert_eq!(inert(cell.to_owned()), format!("'{cell}"));
        }
        for cell in ["", "sub-01.nii.gz", "a=b", "./-x.nii", "MCI", "1.5"] {
            assert_eq!(inert(cell.to_owned()), cell);
        }
        let line = serde_json::json!({"scan": "=1", "report": "-r.txt", "label": "@a", "similarity": -0.25,
            "probabilities": {"@a": 1e-7}, "warnings": [{"code": "fov_cut"}]});
        let cells = record(&line, None, &["@a".to_owned()]);
        assert_eq!(cells, ["'=1", "'-r.txt", "'@a", "0.0000001", "-0.25", "fov_cut", ""]);
        for (cell, number) in
            [("-1.5", true), ("+3", true), ("-2e-3", true), ("-2+3", false), ("-inf", false), ("-", false)]
        {
            assert_eq!(is_number(cell), number, "{cell}");
        }
        let folder = Path::new("/data/a");
        assert_eq!(record(&line, Some(folder), &[])[..2], ["/data/a/=1", "/data/a/-r.txt"]);
    }

    #[test]
    fn tables_are_known_by_their_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.csv");
        let columns = ["age", "=x"].map(str::to_owned);
        let line =
            serde_json::json!({"scan": "a", "label": "CN", "bundle": {"sha256": "b"}, "columns": {"of_lines": ""}});
        std::fs::write(dir.path().join("t.jsonl"), format!("{line}\n")).unwrap();
        for (text, ours) in [
            ("scan,report,label,p_CN,p_AD,similarity,warnings,error\n", true),
            ("scan,report,label,p_CN,similarity,warnings,error\na,b,CN,1,,,\n", true),
            ("scan,report,label,\"p_a,b\",similarity,warnings,error", true),
            ("scan,report,label,similarity,warnings,error\n", false),
            ("scan,report,label,p_CN,similarity,warnings,error,note\n", false),
            ("scan,report,label,p_CN,similarity,warnings,error,list_age,'=x\n", true),
            ("scan,report,label,p_CN,similarity,warnings,error,age,of_lines\n", true),
            ("scan,report,label,p_CN,similarity,warnings,error,age,note\n", false),
            ("scan,report,label,age,similarity,warnings,error\n", false),
            ("scan,report\n", false),
            ("", false),
            ("\u{0}\u{1}", false),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(is_table(&path, &columns).unwrap(), ours, "{text}");
        }
        std::fs::write(&path, b"\xff\xfe,\n").unwrap();
        assert!(!is_table(&path, &columns).unwrap());
    }
}
