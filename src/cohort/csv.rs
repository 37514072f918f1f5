//! The CSV reader of all cohort lists: a header, one record a row, errors with the line that an editor shows.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use csv::StringRecord;

use crate::error::{Code, Error, Result};

/// Maximum size of a list, in bytes.
const MAX_LIST_BYTES: u64 = 256 << 20;

/// The bytes of a list.
///
/// # Errors
/// `list.invalid`: no file, or too large a file.
pub(super) fn list_bytes(path: &Path) -> Result<Vec<u8>> {
    let invalid = |message: String| Error::new(Code::LIST_INVALID, message).at(path);
    let meta = std::fs::metadata(path).map_err(|e| invalid(format!("cannot find the list: {e}")))?;
    if !meta.is_file() || meta.len() > MAX_LIST_BYTES {
        return Err(invalid(format!("expected a file of at most {MAX_LIST_BYTES} bytes")));
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_LIST_BYTES).read_to_end(&mut bytes));
    read.map_err(|e| invalid(format!("cannot read the list: {e}")))?;
    Ok(bytes)
}

/// Parses a list: CSV with a header, spaces around cells trimmed. `columns` finds the columns in the header, `row`
/// parses a record; a message that either returns becomes an error with the line. Each row comes with its line, from 1.
///
/// # Errors
/// `list.invalid`: not UTF-8, a row of another length than the header, or a message of `columns` or `row`.
pub(super) fn parse_rows<C, R>(
    bytes: &[u8],
    path: &Path,
    columns: impl FnOnce(&StringRecord) -> Result<C, String>,
    row: impl Fn(&C, &StringRecord) -> Result<R, String>,
) -> Result<Vec<(u64, R)>> {
    let invalid = |message: String| Error::new(Code::LIST_INVALID, message).at(path);
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes);
    let mut lines = Lines { bytes, at: 0, line: 1 };
    let header = reader.headers().map_err(|e| invalid(describe(&e, &mut lines)))?.clone();
    let columns = columns(&header).map_err(invalid)?;
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| invalid(describe(&e, &mut lines)))?;
        let line = lines.of(record.position());
        rows.push((line, row(&columns, &record).map_err(|what| invalid(format!("line {line}: {what}")))?));
    }
    Ok(rows)
}

/// Counts lines. The CSV parser's own count lags where lines end in CR LF, or are empty.
struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
    line: u64,
}

impl Lines<'_> {
    /// The line of a record; records must be asked for in their order.
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

/// The message of a CSV error, with the line that an editor shows.
fn describe(e: &csv::Error, lines: &mut Lines<'_>) -> String {
    match e.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = lines.of(pos.as_ref());
            format!("line {line}: has {len} cells and the header {expected_len}: is a comma or a quote missing?")
        }
        csv::ErrorKind::Utf8 { pos, .. } => format!("line {}: is not UTF-8 text", lines.of(pos.as_ref())),
        _ => e.to_string(),
    }
}
