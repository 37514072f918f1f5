//! The CSV reader of all cohort lists: a header, one record a row, errors with the line that an editor shows.
//!
//! In: the bytes of a file, in one of the dialects that [`super::dialect`] tells. Out: each row, or what is wrong with
//! it. Lines end in LF, CR LF or CR. Rows without any content are none (spreadsheets leave rows of commas), cells
//! beyond the header must be empty, and only cells of columns without a name may be missing.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use csv::{ByteRecord, StringRecord};

use super::dialect::{Dialect, is_blank, reader};
use super::header::Header;
use crate::error::{Code, Error, Result};

/// Maximum size of a list, in bytes.
const MAX_LIST_BYTES: u64 = 256 << 20;

/// A row or what is wrong with it, and its line, from 1.
pub(super) type Parsed<R> = (u64, Result<R, String>);

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

/// Parses a list, spaces around cells trimmed. `columns` finds the columns in the header, `row` parses a record that
/// has all cells of the header. Returns what `columns` found, and the rows in their order.
///
/// # Errors
/// `list.invalid`: no text, an ambiguous header, a message of `columns`, a quote that is never closed.
pub(super) fn parse_rows<C, R>(
    bytes: &[u8],
    path: &Path,
    columns: impl FnOnce(&Header) -> Result<C, String>,
    row: impl Fn(&C, &StringRecord) -> Result<R, String>,
) -> Result<(C, Vec<Parsed<R>>)> {
    let invalid = |message: String| Error::new(Code::LIST_INVALID, message).at(path);
    let dialect = Dialect::of(bytes).map_err(invalid)?;
    let mut lines = Lines::new(&dialect);
    let mut records = reader(&dialect.body, dialect.delimiter).into_byte_records();
    let failed = |e: csv::Error| invalid(e.to_string());
    let mut header = ByteRecord::new();
    while is_blank(&header) {
        // A list without anything has a header without names.
        let Some(record) = records.next() else { break };
        header = record.map_err(failed)?;
    }
    let header = text(header).map_err(|what| invalid(format!("line {}: {what}", lines.line)))?;
    let header = Header::new(&header);
    let columns = columns(&header).map_err(invalid)?;
    let mut rows: Vec<Parsed<R>> = Vec::new();
    let mut last = 0;
    for record in records {
        let record = record.map_err(failed)?;
        let line = lines.of(record.position());
        last = lines.at;
        if is_blank(&record) {
            continue;
        }
        let parsed = text(record).and_then(|record| {
            check_length(&record, &header, &dialect)?;
            row(&columns, &record)
        });
        rows.push((line, parsed));
    }
    if let Some((line, parsed)) = rows.last()
        && is_open(dialect.body.get(last..).unwrap_or_default(), parsed.is_err())
    {
        let message = "a quote is opened and never closed, so that all that follows is one cell: close or remove it";
        return Err(invalid(format!("line {line}: {message}")));
    }
    Ok((columns, rows))
}

/// A record as text, its cells trimmed.
fn text(record: ByteRecord) -> Result<StringRecord, String> {
    let mut record = StringRecord::from_byte_record(record)
        .map_err(|_| "is not UTF-8 text: save the list as UTF-8 (\"CSV UTF-8\" in Excel)".to_owned())?;
    record.trim();
    Ok(record)
}

/// Checks that a row has the header's cells; empty ones may follow, and those of columns without a name may be missing.
fn check_length(record: &StringRecord, header: &Header, dialect: &Dialect<'_>) -> Result<(), String> {
    let (cells, expected) = (record.len(), header.len());
    let counts = format!("has {cells} cells and the header {expected}");
    if cells < expected && !header.is_padding(cells) {
        return Err(format!("{counts}: is a {} or a quote missing?", dialect.name()));
    }
    if record.iter().skip(expected).any(|cell| !cell.is_empty()) {
        return Err(format!("{counts}: is a {} too many, or is a quote missing around a cell?", dialect.name()));
    }
    Ok(())
}

/// Whether the last record ends within quotes, for it took in other lines, or it is none (`bad`).
fn is_open(record: &[u8], bad: bool) -> bool {
    let record = record.trim_ascii_end();
    let lines = record.iter().any(|b| matches!(b, b'\r' | b'\n'));
    (bad || lines) && record.iter().filter(|b| **b == b'"').count() % 2 == 1
}

/// Counts lines. The CSV parser's own count lags where lines end in CR LF, or are empty.
struct Lines<'a> {
    bytes: &'a [u8],
    /// What ends a line: LF, but in a file without any, CR.
    end: u8,
    at: usize,
    line: u64,
}

impl<'a> Lines<'a> {
    fn new(dialect: &'a Dialect<'_>) -> Self {
        let end = if dialect.body.contains(&b'\n') { b'\n' } else { b'\r' };
        Self { bytes: &dialect.body, end, at: 0, line: dialect.line }
    }

    /// The line of a record; records must be asked for in their order.
    fn of(&mut self, position: Option<&csv::Position>) -> u64 {
        let start = position.and_then(|p| usize::try_from(p.byte()).ok()).unwrap_or(self.at);
        let rest = self.bytes.get(start..).unwrap_or_default();
        let end = start + rest.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        let passed = self.bytes.get(self.at..end).unwrap_or_default();
        self.line += passed.iter().map(|b| u64::from(*b == self.end)).sum::<u64>();
        self.at = self.at.max(end);
        self.line
    }
}
