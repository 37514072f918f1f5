//! What kind of table a list is: its encoding and its delimiter.
//!
//! In: the bytes of a file. Out: UTF-8 and the delimiter, by rules that depend on the first line alone:
//!
//! - **Encoding.** UTF-8 with or without a mark; UTF-16 of either order with a mark, or without one where every other
//!   byte at the start is mostly 0.
//! - **Delimiter.** A first line `sep=X`, which Excel reads, says that it is X. Otherwise it is the one of comma,
//!   semicolon, tab and `|` by which the header has a cell `scan`: every list needs that column, so that commas in
//!   numbers or in other columns' names decide nothing. A header that two of them can read is refused.

use std::borrow::Cow;

use csv::{ByteRecord, StringRecord};

use super::cells::is_space;
use super::header::Header;

/// The delimiters of lists that name none.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// How much of a file without a mark tells UTF-16, in bytes.
const PROBE: usize = 1024;

/// A table as it is to be parsed.
pub(super) struct Dialect<'a> {
    /// The text from the header on, or from empty lines before it.
    pub body: Cow<'a, [u8]>,
    pub delimiter: u8,
    /// The line that `body` begins on, from 1.
    pub line: u64,
}

impl<'a> Dialect<'a> {
    /// The dialect of a list; what is wrong where it has none.
    pub fn of(bytes: &'a [u8]) -> Result<Self, String> {
        let text = decode(bytes)?;
        match separator_line(&text)? {
            Some((delimiter, length)) => {
                let body = match text {
                    Cow::Borrowed(bytes) => Cow::Borrowed(bytes.get(length..).unwrap_or_default()),
                    Cow::Owned(bytes) => Cow::Owned(bytes.get(length..).unwrap_or_default().to_vec()),
                };
                Ok(Self { body, delimiter, line: 2 })
            }
            None => Ok(Self { delimiter: delimiter(&text)?, body: text, line: 1 }),
        }
    }

    /// The delimiter's name.
    pub fn name(&self) -> Cow<'static, str> {
        name(self.delimiter)
    }
}

fn name(delimiter: u8) -> Cow<'static, str> {
    match delimiter {
        b',' => "comma".into(),
        b';' => "semicolon".into(),
        b'\t' => "tab".into(),
        other => format!("`{}`", char::from(other)).into(),
    }
}

/// A reader of the records of a table, none of which is a header for it.
pub(super) fn reader(body: &[u8], delimiter: u8) -> csv::Reader<&[u8]> {
    csv::ReaderBuilder::new().delimiter(delimiter).has_headers(false).flexible(true).from_reader(body)
}

/// Whether all cells are empty.
pub(super) fn is_blank(record: &ByteRecord) -> bool {
    record.iter().all(|cell| String::from_utf8_lossy(cell).chars().all(is_space))
}

/// The text of a list in UTF-8, without a mark. What is left that is not UTF-8 is found row by row.
fn decode(bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    let other = |what: &str| Err(format!("is {what}: save the table as CSV (UTF-8) and name that file"));
    match bytes {
        [0xef, 0xbb, 0xbf, text @ ..] => Ok(Cow::Borrowed(text)),
        [0xff, 0xfe, text @ ..] => utf16(text, u16::from_le_bytes),
        [0xfe, 0xff, text @ ..] => utf16(text, u16::from_be_bytes),
        [b'P', b'K', 3, 4, ..] => other("a zip archive, such as the workbooks of Excel and LibreOffice"),
        [0xd0, 0xcf, 0x11, 0xe0, ..] => other("a workbook of an old Excel (.xls)"),
        [0x1f, 0x8b, ..] => other("compressed with gzip"),
        _ => {
            let start = bytes.get(..PROBE).unwrap_or(bytes).chunks_exact(2);
            let pairs = start.len();
            let zeros = |place: usize| start.clone().filter(|pair| pair.get(place) == Some(&0)).count();
            match [zeros(0), zeros(1)] {
                [0, odd] if odd > 0 && odd * 4 >= pairs => utf16(bytes, u16::from_le_bytes),
                [even, 0] if even > 0 && even * 4 >= pairs => utf16(bytes, u16::from_be_bytes),
                _ => Ok(Cow::Borrowed(bytes)),
            }
        }
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<Cow<'_, [u8]>, String> {
    let broken = || "looks like UTF-16 and is not valid: save the list as CSV (UTF-8)".to_owned();
    let pairs = bytes.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(broken());
    }
    let units = pairs.map(|pair| unit([pair[0], pair[1]]));
    let text = char::decode_utf16(units).collect::<Result<String, _>>().map_err(|_| broken())?;
    Ok(Cow::Owned(text.into_bytes()))
}

/// The delimiter that a first line `sep=X` names, and the length of that line with its end. A program that wrote the
/// line again as a row may have quoted it or filled it up with delimiters.
fn separator_line(text: &[u8]) -> Result<Option<(u8, usize)>, String> {
    let end = text.iter().position(|b| matches!(b, b'\r' | b'\n')).unwrap_or(text.len());
    let line: Vec<u8> = text.get(..end).unwrap_or_default().iter().copied().filter(|b| *b != b'"').collect();
    let (start, rest) = line.split_at(line.len().min(4));
    if !start.eq_ignore_ascii_case(b"sep=") {
        return Ok(None);
    }
    let wrong = || "the line `sep=` names no delimiter: expected one such as sep=; and the header after it".to_owned();
    let (delimiter, fill) = rest.split_first().ok_or_else(wrong)?;
    let fits = *delimiter == b'\t' || delimiter.is_ascii_punctuation();
    if !fits || !fill.iter().all(|b| b == delimiter || matches!(b, b',' | b';' | b' ')) {
        return Err(wrong());
    }
    let after = text.get(end..).unwrap_or_default();
    let breaks = if after.starts_with(b"\r\n") { 2 } else { after.len().min(1) };
    Ok(Some((*delimiter, end + breaks)))
}

/// The delimiter by which the header has a cell `scan`; where none has, the one that makes the most cells of it.
fn delimiter(text: &[u8]) -> Result<u8, String> {
    let headers = DELIMITERS.map(|delimiter| (delimiter, header(text, delimiter)));
    let fitting: Vec<u8> = headers.iter().filter(|(_, header)| header.has("scan")).map(|(d, _)| *d).collect();
    // Of equal ones the last is the largest.
    let most = headers.iter().rev().max_by_key(|(_, header)| header.len());
    match fitting.as_slice() {
        [one] => Ok(*one),
        [a, b, ..] if most.is_some_and(|(_, header)| header.len() > 1) => {
            let [a, b] = [a, b].map(|d| name(*d));
            Err(format!(
                "the header has a column `scan` both by {a} and by {b}: say which with a first line such as sep=; or \
                 put the names that hold the other into quotes"
            ))
        }
        _ => Ok(most.map_or(b',', |(delimiter, _)| *delimiter)),
    }
}

/// The header by a delimiter: the first record that is not blank.
fn header(text: &[u8], delimiter: u8) -> Header {
    let mut rest = text;
    let mut first = ByteRecord::new();
    while is_blank(&first) && !rest.is_empty() {
        first = ByteRecord::new();
        rest = first_record(rest, delimiter, &mut first);
    }
    Header::new(&StringRecord::from_byte_record_lossy(first))
}

/// Adds the cells of the first record to `record`, as [`reader`] reads it, and returns what follows it. A reader builds
/// tables before it reads a byte: for one line by four delimiters, more work than a list of a hundred rows.
fn first_record<'a>(text: &'a [u8], delimiter: u8, record: &mut ByteRecord) -> &'a [u8] {
    let begin = text.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(text.len());
    let mut bytes = text.get(begin..).unwrap_or_default();
    let mut cell = Vec::new();
    // A quote is one at the start of a cell alone; within quotes, two of them are one.
    let (mut start, mut quoted) = (true, false);
    while let Some((byte, rest)) = bytes.split_first() {
        bytes = rest;
        match byte {
            b'"' if start => quoted = true,
            b'"' if quoted && rest.first() == Some(&b'"') => {
                cell.push(b'"');
                bytes = rest.get(1..).unwrap_or_default();
            }
            b'"' if quoted => quoted = false,
            byte if quoted => cell.push(*byte),
            byte if *byte == delimiter => {
                record.push_field(&cell);
                cell.clear();
                start = true;
                continue;
            }
            b'\r' | b'\n' => break,
            byte => cell.push(*byte),
        }
        start = false;
    }
    if begin < text.len() {
        record.push_field(&cell);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same cells as the reader's, of every text of five such bytes.
    #[test]
    fn the_first_record_is_the_readers() {
        let alphabet = b"a,;\"\r\n ";
        let (mut text, mut tried) = ([0usize; 5], 0);
        loop {
            let bytes = text.map(|i| alphabet[i]);
            for delimiter in [b',', b';'] {
                let mut ours = ByteRecord::new();
                first_record(&bytes, delimiter, &mut ours);
                let theirs = reader(&bytes, delimiter).into_byte_records().next();
                let theirs = theirs.map(Result::unwrap).unwrap_or_default();
                assert_eq!(ours, theirs, "{:?}", String::from_utf8_lossy(&bytes));
            }
            tried += 1;
            let Some(place) = text.iter().position(|i| i + 1 < alphabet.len()) else { break };
            text[..place].fill(0);
            text[place] += 1;
        }
        assert_eq!(tried, alphabet.len().pow(5));
    }
}
