//! A report's bytes → its text, or an error that names what was given instead of a report.
//!
//! In: the bytes of a file, a pipe or standard input, at most [`MAX_REPORT_BYTES`]. Out: a `String` with LF line ends,
//! which is what is tokenized, and what the keys of caches and results are hashes of: the same text has the same answer
//! and the same cache entry, whichever program saved it. In this order:
//!
//! 1. *Files* (`binary`): PDF, Word, a scan, an archive … are named (`report.format`), whatever their size.
//! 2. *Decoding* (`encoding`): UTF-8 and UTF-16 with or without a byte order mark. Anything else, and NUL bytes, are
//!    `report.encoding`; an encoding is never guessed where another reading of the bytes makes sense.
//! 3. *Normalization* (`normalize`): CR LF, CR and NEL become LF; marks and zero-width characters without a meaning
//!    go. All else is as it is: composed and decomposed letters, spaces, emoji.
//! 4. *Markup* (`markup`): RTF, HTML, XML, HL7, JSON are named too, for control words would be read as findings.
//!    HTML is converted (`html`) where [`ReportFormat`] asks for it.
//! 5. What is left must be a text: placeholders for a missing report (`nan`, `n/a`, `-`) are `report.empty`.
//!
//! Whether a text is what the model knows is not decided here: [`super::ReportProfile`] warns.

mod binary;
mod encoding;
mod html;
mod markup;
mod normalize;

use std::io::Read;
use std::path::Path;

use crate::error::{Code, Error, Result};
use crate::tensor::number::to_u64;

/// Largest report that is read, in bytes. A long discharge letter has 50 kB.
pub const MAX_REPORT_BYTES: u64 = 1 << 20;

/// How reports are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReportFormat {
    /// Plain text; markup is refused.
    #[default]
    Text,
    /// HTML, which is converted to plain text; anything else is refused.
    Html,
}

impl std::str::FromStr for ReportFormat {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "text" => Ok(Self::Text),
            "html" => Ok(Self::Html),
            "rtf" => Err("RTF is not converted: save the report as plain text, for example with \
                          `libreoffice --headless --convert-to txt:Text FILE.rtf`"
                .into()),
            other => Err(format!("unknown format `{other}`: expected text or html")),
        }
    }
}

/// Reads the report in a file of plain text.
///
/// # Errors
/// `report.not_found`, `report.too_large`, `report.format`, `report.encoding`, `report.empty`.
pub fn read_report(path: &Path) -> Result<String> {
    read_report_as(path, ReportFormat::Text)
}

/// As [`read_report`], of a file in this format.
///
/// # Errors
/// As [`read_report`].
pub fn read_report_as(path: &Path, format: ReportFormat) -> Result<String> {
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::new(Code::REPORT_NOT_FOUND, "no such report").at(path),
        _ => Error::io(path, "cannot open the report", e),
    })?;
    // A pipe by name would be opened and waited for; a folder cannot be read.
    if !meta.is_file() {
        return Err(Error::new(Code::REPORT_NOT_FOUND, "the report is not a file").at(path));
    }
    open_and_read(path, format)
}

/// As [`read_report_as`], for a path on the command line: `-` is standard input, and what the shell opened for this
/// process (`--report <(zcat report.txt.gz)`, which is `/dev/fd/63`) may be a pipe.
///
/// # Errors
/// As [`read_report`].
pub fn read_report_argument(path: &Path, format: ReportFormat) -> Result<String> {
    if path == Path::new("-") {
        return read(std::io::stdin().lock(), path, format);
    }
    match is_descriptor(path) {
        true => open_and_read(path, format),
        false => read_report_as(path, format),
    }
}

/// Whether a path names a file that this process has open already: to open it again never waits for a writer.
fn is_descriptor(path: &Path) -> bool {
    let folders = ["/dev/fd", "/proc/self/fd"];
    path == Path::new("/dev/stdin")
        || path.parent().is_some_and(|folder| folders.iter().any(|f| folder == Path::new(f)))
}

fn open_and_read(path: &Path, format: ReportFormat) -> Result<String> {
    let file = std::fs::File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::new(Code::REPORT_NOT_FOUND, "no such report").at(path),
        _ => Error::io(path, "cannot open the report", e),
    })?;
    read(file, path, format)
}

fn read(reader: impl Read, path: &Path, format: ReportFormat) -> Result<String> {
    let mut bytes = Vec::new();
    let mut limited = reader.take(MAX_REPORT_BYTES + 1);
    limited.read_to_end(&mut bytes).map_err(|e| Error::io(path, "cannot read the report", e))?;
    decode_report_as(&bytes, format).map_err(|e| e.at(path))
}

/// A report's text from the bytes of plain text.
///
/// # Errors
/// `report.too_large`, `report.format`, `report.encoding`, `report.empty`.
pub fn decode_report(bytes: &[u8]) -> Result<String> {
    decode_report_as(bytes, ReportFormat::Text)
}

/// As [`decode_report`], of bytes in this format. Of bytes that are too many, only the beginning matters.
///
/// # Errors
/// As [`decode_report`].
pub fn decode_report_as(bytes: &[u8], format: ReportFormat) -> Result<String> {
    if let Some(found) = binary::recognize(bytes) {
        return Err(refused(found));
    }
    if to_u64(bytes.len()) > MAX_REPORT_BYTES {
        let head = String::from_utf8_lossy(bytes.get(..4096).unwrap_or(bytes));
        let message = format!("the report holds more than {MAX_REPORT_BYTES} bytes: is it a report?");
        let too_large = Error::new(Code::REPORT_TOO_LARGE, message);
        return Err(markup::recognize(&head).map_or(too_large, refused));
    }
    // HTML in Latin-1 is HTML first.
    let text = encoding::decode(bytes).map_err(|e| {
        let text = normalize::normalize(&String::from_utf8_lossy(bytes));
        markup::recognize(&text).map_or(e, refused)
    })?;
    let text = plain(normalize::normalize(&text), format)?;
    normalize::check_text(&text)?;
    Ok(text)
}

/// The plain text of a normalized text in this format.
fn plain(text: String, format: ReportFormat) -> Result<String> {
    // What begins with a mark is a file all the same.
    let recognize = |text: &str| binary::recognize(text.as_bytes()).or_else(|| markup::recognize(text));
    match (format, recognize(&text)) {
        (ReportFormat::Text, None) => Ok(text),
        (ReportFormat::Html, Some(found)) if found == markup::HTML => {
            let text = normalize::normalize(&html::convert(&text)?);
            // What the converter leaves as it is, such as tags in `<pre>`.
            recognize(&text).map_or(Ok(text), |left| Err(refused(left)))
        }
        (ReportFormat::Html, None) => {
            let message = "the report is not HTML: leave `--report-format html` out for plain text";
            Err(Error::new(Code::REPORT_FORMAT, message))
        }
        (_, Some(found)) => Err(refused(found)),
    }
}

/// Something that is not a report's plain text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    /// What it is.
    what: &'static str,
    /// How to get a report from it.
    remedy: &'static str,
}

fn refused(Found { what, remedy }: Found) -> Error {
    Error::new(Code::REPORT_FORMAT, format!("the report is {what}, expected plain text: {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_what_the_shell_opened() {
        for path in ["/dev/fd/63", "/proc/self/fd/3", "/dev/stdin"] {
            assert!(is_descriptor(Path::new(path)), "{path}");
        }
        for path in ["/dev/null", "fd/63", "/dev/fd", "/proc/1/fd/3", "/dev/fd/../tty"] {
            assert!(!is_descriptor(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn what_is_too_large_is_named_first() {
        let large = |head: &[u8]| [head, &vec![b'a'; (1 << 20) + 1]].concat();
        for (head, code, word) in [
            (&b""[..], Code::REPORT_TOO_LARGE, "1048576"),
            (b"%PDF-1.4", Code::REPORT_FORMAT, "PDF"),
            (b"<!DOCTYPE html>", Code::REPORT_FORMAT, "HTML"),
            (b"{\\rtf1", Code::REPORT_FORMAT, "RTF"),
        ] {
            let error = decode_report(&large(head)).unwrap_err();
            assert!(error.code() == code && error.message().contains(word), "{error}");
        }
    }
}
