//! Lines of a results file: what is read of them again, and a reader that holds one at a time.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Code, Error, Result};

/// Longest line that is read, in bytes. Ours have a few kilobytes; names in a list are bounded.
const MAX_LINE: u64 = 4 << 20;

/// How every line of ours begins.
const START: &[u8] = b"{\"scan\":";

/// What identifies a row within its list: scan, report and volume as the list names them.
pub(super) type Names = (String, Option<String>, Option<usize>);

/// What is read of a line; other fields are skipped.
#[derive(Debug, Deserialize)]
pub(super) struct Line {
    scan: String,
    report: Option<String>,
    /// The volume of a 4-D scan, where the list names one.
    volume: Option<usize>,
    /// The other columns of the list: names and cells.
    #[serde(default)]
    pub columns: serde_json::Map<String, serde_json::Value>,
    pub label: Option<String>,
    pub key: Option<String>,
    /// Canonical path of the list that named the scan; none in files of version 0.1.0, and outside lists.
    pub list: Option<String>,
    bundle: Option<OfBundle>,
    error: Option<OfError>,
}

#[derive(Debug, Deserialize)]
struct OfBundle {
    sha256: String,
}

#[derive(Debug, Deserialize)]
struct OfError {
    code: String,
}

impl Line {
    /// A line of ours: an answer with its bundle, or an error with a code that we know.
    fn parse(bytes: &[u8]) -> Option<Self> {
        // A struct may come as an array in JSON too; ours never does.
        let line: Self = bytes.starts_with(b"{").then(|| serde_json::from_slice(bytes).ok())??;
        let known = |error: &OfError| Code::is_known(&error.code);
        let answer = line.label.is_some() && line.bundle.is_some();
        (answer || line.error.as_ref().is_some_and(known)).then_some(line)
    }

    /// Scan, report and volume as the list names them.
    pub fn names(&self) -> Names {
        (self.scan.clone(), self.report.clone(), self.volume)
    }

    /// SHA-256 of the bundle that answered.
    pub fn bundle(&self) -> Option<&str> {
        self.bundle.as_ref().map(|bundle| bundle.sha256.as_str())
    }
}

/// The complete lines of a results file, one after the other.
pub(super) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    buffer: Vec<u8>,
    /// Number of the line in `buffer`, from 1.
    number: u64,
    /// Where the line in `buffer` begins.
    start: u64,
}

/// A line and where it stands.
pub(super) struct Found<'a> {
    pub line: Line,
    /// With its line break.
    pub bytes: &'a [u8],
    /// Offset in the file.
    pub start: u64,
}

impl Lines {
    /// Opens the file.
    ///
    /// # Errors
    /// `io`.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, "cannot open the results", e))?;
        Ok(Self { path: path.to_owned(), reader: BufReader::new(file), buffer: Vec::new(), number: 0, start: 0 })
    }

    /// The next line. An unfinished one at the end, of a run that was interrupted, is left out.
    ///
    /// # Errors
    /// `output.exists` for a line that is not ours; `io`.
    pub fn next(&mut self) -> Result<Option<Found<'_>>> {
        self.start += self.buffer.len() as u64;
        self.buffer.clear();
        self.number += 1;
        let read = (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut self.buffer);
        read.map_err(|e| Error::io(&self.path, "cannot read the results", e))?;
        let bytes = self.buffer.as_slice();
        let line = Line::parse(bytes);
        if !bytes.ends_with(b"\n") {
            let length = bytes.len().min(START.len());
            let cut =
                serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_err() && bytes[..length] == START[..length];
            let too_long = bytes.len() as u64 == MAX_LINE;
            return if !too_long && (line.is_some() || cut) { Ok(None) } else { Err(self.foreign()) };
        }
        match line {
            Some(line) => Ok(Some(Found { line, bytes: &self.buffer, start: self.start })),
            None => Err(self.foreign()),
        }
    }

    /// The line that begins at an offset which [`Self::next`] gave.
    ///
    /// # Errors
    /// `io`; `output.exists` when another line stands there by now.
    pub fn at(&mut self, start: u64) -> Result<Option<Found<'_>>> {
        let sought = self.reader.seek(SeekFrom::Start(start));
        sought.map_err(|e| Error::io(&self.path, "cannot read the results", e))?;
        self.buffer.clear();
        self.start = start;
        self.next()
    }

    fn foreign(&self) -> Error {
        let message = format!(
            "the output exists, and line {} is no result of this program: choose another name, or replace it with \
             --force",
            self.number
        );
        Error::new(Code::OUTPUT_EXISTS, message).at(&self.path)
    }
}

/// Whether a file holds nothing but results of this program (JSON Lines). An empty one does: a run that was killed
/// before its first result leaves it.
///
/// # Errors
/// `io`.
pub fn is_results(path: &Path) -> Result<bool> {
    let mut lines = Lines::open(path)?;
    loop {
        match lines.next() {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(true),
            Err(e) if e.code() == Code::OUTPUT_EXISTS => return Ok(false),
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_known_by_their_shape() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.jsonl");
        let answer = "{\"scan\":\"a\",\"report\":null,\"label\":\"CN\",\"bundle\":{\"sha256\":\"b\"}}\n";
        let error = "{\"scan\":\"a\",\"error\":{\"code\":\"nifti.empty\",\"message\":\"m\",\"path\":null}}\n";
        let half = &answer[..40];
        let ours =
            [String::new(), answer.into(), error.into(), format!("{answer}{error}{half}"), half.into(), "{".into()];
        for text in ours {
            std::fs::write(&path, &text).unwrap();
            assert!(is_results(&path).unwrap(), "{text}");
        }
        let long = format!("{{\"scan\":\"{}", "a".repeat(5 << 20));
        let foreign = [
            "{\"subject\":1,\"mmse\":27}\n",
            "{\"scan\":\"a\",\"mmse\":27}",
            "{\"scan\":\"a\",\"label\":\"CN\"}\n",
            "{\"scan\":\"a\",\"error\":{\"code\":\"mine\"}}\n",
            "[\"a\",null,\"CN\",null,null,[\"b\"]]\n",
            "scan,label\n",
            "\n",
            "notes without an end",
            "{\"scan\":7,\"label\":\"CN\",\"bundle\":{\"sha256\":\"b\"}}\n",
            &format!("{answer}my own note\n"),
            &format!("{answer}my own note"),
            &long,
            &format!("{long}\"}}\n"),
        ];
        for text in foreign {
            std::fs::write(&path, text).unwrap();
            assert!(!is_results(&path).unwrap(), "{}", &text[..text.len().min(80)]);
        }
    }
}
