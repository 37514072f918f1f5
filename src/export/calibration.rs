//! The inputs on which a bundle is compared with the plain graphs: `calibration/`.
//!
//! A folder of scans (`NAME.nii`, `NAME.nii.gz`, `NAME.nii.zst`, `NAME.hdr`, `NAME.mgz`, `NAME.mgh`) and reports
//! (`NAME.txt`). A scan and a report of one name belong together; either may stand alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::volume::SCAN_ENDINGS;

/// Maximum number of inputs; the first in the order of their names are used.
pub const MAX_CALIBRATION_INPUTS: usize = 32;

/// Maximum number of scans among them: one takes many times as long as a report.
pub const MAX_CALIBRATION_SCANS: usize = 8;

/// A scan, a report, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CalibrationInput {
    /// Name without extension.
    pub name: String,
    /// The scan.
    pub scan: Option<PathBuf>,
    /// The report.
    pub report: Option<PathBuf>,
}

/// The inputs in `folder`, by name; none when there is no such folder. `README` files are not inputs.
///
/// # Errors
/// `io` when the folder cannot be read.
pub fn calibration_inputs(folder: &Path) -> Result<Vec<CalibrationInput>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(folder, "cannot read the calibration folder", e)),
    };
    let mut inputs: BTreeMap<String, CalibrationInput> = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(folder, "cannot read the calibration folder", e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let scan = SCAN_ENDINGS.iter().find_map(|end| name.strip_suffix(end));
        let report = name.strip_suffix(".txt").filter(|stem| !stem.starts_with("README"));
        let Some(stem) = scan.or(report) else { continue };
        let input = inputs.entry(stem.to_owned()).or_default();
        input.name = stem.to_owned();
        if scan.is_some() {
            input.scan = Some(entry.path());
        } else {
            input.report = Some(entry.path());
        }
    }
    let mut inputs: Vec<CalibrationInput> = inputs.into_values().take(MAX_CALIBRATION_INPUTS).collect();
    inputs.iter_mut().filter(|i| i.scan.is_some()).skip(MAX_CALIBRATION_SCANS).for_each(|i| i.scan = None);
    inputs.retain(|i| i.scan.is_some() || i.report.is_some());
    Ok(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scans_of_every_format_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            "a.nii.gz",
            "a.txt",
            "b.hdr",
            "b.img",
            "c.mgz",
            "d.mgh",
            "e.mgh.gz",
            "e.txt",
            "f.png",
            "g.nii.zst",
            "README.txt",
        ];
        for file in files {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        let inputs = calibration_inputs(folder.path()).unwrap();
        let found: Vec<_> = inputs.iter().map(|i| (i.name.as_str(), i.scan.is_some(), i.report.is_some())).collect();
        let scan = |name| (name, true, false);
        assert_eq!(found, [("a", true, true), scan("b"), scan("c"), scan("d"), ("e", true, true), scan("g")]);
    }
}
