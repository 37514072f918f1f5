//! Keys of answers: hashes of everything that an answer depends on.

use std::collections::HashMap;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::cohort::Row;
use crate::infer::scan::ScanReader;
use crate::tensor::hex;
use crate::text::{ReportFormat, read_report_as};

/// Goes into every key: another meaning of the lines needs another.
const FORMAT: &str = "brain-adapter answer 1";

/// What an answer depends on besides scan and report: the bundle, the device, the volume that is read of a 4-D scan,
/// and this program's version.
#[derive(Clone, Debug)]
pub struct AnswerContext {
    parts: Vec<String>,
    volume: Option<usize>,
}

impl AnswerContext {
    /// A context of these parts, in this order, and a volume.
    pub(in crate::infer) fn new(parts: impl IntoIterator<Item = String>, volume: Option<usize>) -> Self {
        Self { parts: parts.into_iter().collect(), volume }
    }

    /// The same for a row that names its volume; without one it stays as it is.
    #[must_use]
    pub fn of_volume(&self, volume: Option<usize>) -> Self {
        Self { parts: self.parts.clone(), volume: volume.or(self.volume) }
    }

    /// The key of an answer: SHA-256 in lower-case hexadecimal. `scan` is [`Scan::sha256`](crate::infer::Scan::sha256),
    /// `report` the report's text.
    pub fn key(&self, scan: &str, report: Option<&str>) -> String {
        let mut hash = Sha256::new();
        let report = report.map_or_else(|| "none".to_owned(), |text| hex(&Sha256::digest(text)));
        let (parts, volume) = (self.parts.iter().map(String::as_str), format!("volume {:?}", self.volume));
        for part in [FORMAT].into_iter().chain(parts).chain([&volume, scan, &report]) {
            // With its length: no two lists of parts run together.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hex(&hash.finalize())
    }
}

/// Keys of what the files of rows hold now. A scan that several rows name is hashed once.
pub struct CurrentKeys<'a> {
    reader: &'a ScanReader,
    context: &'a AnswerContext,
    format: ReportFormat,
    scans: HashMap<PathBuf, Option<String>>,
}

impl<'a> CurrentKeys<'a> {
    /// Keys in `context` of scans as `reader` reads them, and of reports in this format.
    pub fn new(reader: &'a ScanReader, context: &'a AnswerContext, format: ReportFormat) -> Self {
        Self { reader, context, format, scans: HashMap::new() }
    }

    /// The key of a row; none where a file cannot be read.
    pub fn of(&mut self, row: &Row) -> Option<String> {
        let report = row.report_path().map(|path| read_report_as(&path, self.format)).transpose().ok()?;
        let reader = self.reader;
        let scan = self.scans.entry(row.scan_path()).or_insert_with_key(|path| reader.sha256_of(path).ok());
        Some(self.context.of_volume(row.volume).key(scan.as_deref()?, report.as_deref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_depend_on_everything() {
        let context = |parts: &[&str]| AnswerContext::new(parts.iter().map(|p| (*p).to_owned()), None);
        let [a, b, c] = [&["ab", "c"][..], &["a", "bc"], &["abc"]].map(context);
        let keys = [
            a.key("s", None),
            a.key("s", Some("")),
            a.key("s", Some("none")),
            a.key("t", None),
            b.key("s", None),
            c.key("s", None),
            a.of_volume(Some(0)).key("s", None),
            a.of_volume(Some(1)).key("s", None),
        ];
        let distinct: std::collections::BTreeSet<&String> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert!(keys.iter().all(|key| key.len() == 64) && a.key("s", None) == keys[0]);
        assert!(a.of_volume(None).key("s", None) == keys[0]);
        assert!(a.of_volume(Some(1)).of_volume(None).key("s", None) == keys[7]);
    }
}
