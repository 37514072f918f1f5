//! The inputs on which a bundle is compared with the plain graphs: `calibration/`.
//!
//! In: a folder, and those below it, such as a BIDS tree. Out: its scans (`NAME.nii`, `NAME.nii.gz`, `NAME.nii.zst`,
//! `NAME.hdr`, `NAME.mgz`, `NAME.mgh`) and reports (`NAME.txt`), endings in any case, by folder and name; and what was
//! not used, with the reason. A scan and a report of one name in one folder belong together; either may stand alone.
//!
//! What operating systems, shares and data sets leave behind ([`is_litter`]) is passed over in silence. Links to files
//! are followed (DataLad's scans are links), links to folders are not, so that no walk goes round in circles.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, Warning, WarningCode};
use crate::volume::SCAN_ENDINGS;

/// Maximum number of inputs; the first in the order of their folders and names are used.
pub const MAX_CALIBRATION_INPUTS: usize = 32;

/// Maximum number of scans among them: one takes many times as long as a report.
pub const MAX_CALIBRATION_SCANS: usize = 8;

/// Folders below each other, and files in all, that are looked at.
const MAX_DEPTH: usize = 8;
const MAX_FILES: usize = 100_000;

/// Names that a warning has.
const SHOWN: usize = 3;

/// First words of the names of files about a data set or a program; none is a report.
const DOCUMENTS: [&str; 12] = [
    "readme",
    "license",
    "licence",
    "copying",
    "notice",
    "changes",
    "changelog",
    "authors",
    "citation",
    "contributing",
    "requirements",
    "dataset_description",
];
/// Endings of tables, settings and programs next to scans.
const SIDE_FILES: [&str; 16] =
    ["json", "tsv", "bval", "bvec", "md", "rst", "ini", "db", "log", "lnk", "py", "sh", "m", "yml", "yaml", "toml"];
/// BIDS: folders of other data than anatomical scans below a participant's, and folders of what is no raw data.
const OTHER_DATA: [&str; 14] =
    ["func", "dwi", "fmap", "perf", "pet", "eeg", "meg", "ieeg", "beh", "nirs", "micr", "motion", "mrs", "emg"];
const NO_RAW_DATA: [&str; 4] = ["derivatives", "sourcedata", "code", "stimuli"];

/// A scan, a report, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CalibrationInput {
    /// Name without extension; in subfolders with the folder.
    pub name: String,
    /// The scan.
    pub scan: Option<PathBuf>,
    /// The report.
    pub report: Option<PathBuf>,
}

/// What a calibration folder holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CalibrationFolder {
    /// The inputs that are used, in their order.
    pub inputs: Vec<CalibrationInput>,
    /// What is not used, by the reason: names relative to the folder.
    pub unused: BTreeMap<&'static str, Vec<String>>,
}

impl CalibrationFolder {
    /// Number of scans that are used.
    pub fn scans(&self) -> usize {
        self.inputs.iter().filter(|input| input.scan.is_some()).count()
    }

    /// Number of reports that are used.
    pub fn reports(&self) -> usize {
        self.inputs.iter().filter(|input| input.report.is_some()).count()
    }

    /// The warning of what is not used: one, with all reasons.
    pub fn warning(&self) -> Option<Warning> {
        let reason = |(why, names): (&&str, &Vec<String>)| {
            let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
            let more = if names.len() > SHOWN { ", …" } else { "" };
            format!("{} {why} ({shown}{more})", names.len())
        };
        let reasons: Vec<String> = self.unused.iter().map(reason).collect();
        let (scans, reports) = (self.scans(), self.reports());
        let message = format!(
            "the calibration folder gives {scans} scans and {reports} reports; not used are {}",
            reasons.join("; ")
        );
        (!reasons.is_empty()).then(|| Warning::new(WarningCode::CALIBRATION_UNUSED, message))
    }
}

/// The inputs in `folder`, by name; none when there is no such folder.
///
/// # Errors
/// `io` when the folder cannot be read.
pub fn calibration_inputs(folder: &Path) -> Result<Vec<CalibrationInput>> {
    calibration_folder(folder).map(|found| found.inputs)
}

/// The inputs in `folder`, and what is not used; nothing when there is no such folder.
///
/// # Errors
/// `io` when the folder, or one below, cannot be read.
pub fn calibration_folder(folder: &Path) -> Result<CalibrationFolder> {
    let mut walk = Walk { root: folder, inputs: BTreeMap::new(), unused: BTreeMap::new(), files: 0 };
    if std::fs::metadata(folder).is_ok_and(|meta| meta.is_dir()) || folder.symlink_metadata().is_ok() {
        walk.folder(folder, 0)?;
    }
    let Walk { inputs, mut unused, .. } = walk;
    let mut inputs: Vec<CalibrationInput> = inputs.into_values().collect();
    let more = inputs.split_off(inputs.len().min(MAX_CALIBRATION_INPUTS));
    let mut cut = |names: Vec<String>, why| if names.is_empty() { None } else { unused.insert(why, names) };
    cut(more.into_iter().map(|input| input.name).collect(), "beyond the first 32 inputs");
    let scans = inputs.iter_mut().filter(|input| input.scan.is_some()).skip(MAX_CALIBRATION_SCANS);
    let scans = scans.map(|input| {
        input.scan = None;
        input.name.clone()
    });
    cut(scans.collect(), "scans beyond the first 8");
    inputs.retain(|i| i.scan.is_some() || i.report.is_some());
    Ok(CalibrationFolder { inputs, unused })
}

/// What a file is by its name.
enum Kind<'a> {
    /// With its name without the ending.
    Scan(&'a str),
    Report(&'a str),
    /// The other half of a `.hdr`.
    Image,
    Litter,
    Hidden,
    Other,
}

fn kind(name: &str) -> Kind<'_> {
    let stem = |end: &str| {
        let (stem, ending) = name.split_at_checked(name.len().checked_sub(end.len())?)?;
        (!stem.is_empty() && ending.eq_ignore_ascii_case(end)).then_some(stem)
    };
    let scan = SCAN_ENDINGS.iter().find_map(|end| stem(end));
    if is_litter(name) {
        return Kind::Litter;
    }
    match (scan, stem(".txt")) {
        (None, None) if stem(".img").or(stem(".img.gz")).is_some() => Kind::Image,
        (None, None) if name.starts_with('.') => Kind::Litter,
        (None, None) => Kind::Other,
        _ if name.starts_with('.') => Kind::Hidden,
        (Some(stem), _) => Kind::Scan(stem),
        (None, Some(stem)) => Kind::Report(stem),
    }
}

/// Whether a file is one that nobody meant as an input: what macOS (`._scan.nii.gz`, `.DS_Store`) and Windows
/// (`Thumbs.db`) leave, and texts about a data set (`README.txt`, `LICENSE`, `requirements.txt`), tables and settings.
fn is_litter(name: &str) -> bool {
    let lower = name.to_lowercase();
    let begins =
        |word: &&str| lower.strip_prefix(*word).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()));
    let ending = lower.rsplit_once('.').map_or("", |(_, end)| end);
    name.starts_with("._") || DOCUMENTS.iter().any(begins) || SIDE_FILES.contains(&ending)
}

/// Whether a name ends in capitals: `.GZ`.
fn is_shouted(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    ending.bytes().any(|b| b.is_ascii_uppercase()) && ending == ending.to_ascii_uppercase()
}

/// A walk through the folders.
struct Walk<'a> {
    root: &'a Path,
    /// By folder and name.
    inputs: BTreeMap<(PathBuf, String), CalibrationInput>,
    unused: BTreeMap<&'static str, Vec<String>>,
    files: usize,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path, depth: usize) -> Result<()> {
        let failed = |e| Error::io(folder, "cannot read the calibration folder", e);
        let entries =
            std::fs::read_dir(folder).map_err(failed)?.collect::<std::io::Result<Vec<_>>>().map_err(failed)?;
        let mut names: Vec<String> = entries.iter().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        for name in &names {
            self.files += 1;
            let path = folder.join(name);
            if self.files > MAX_FILES {
                self.leave(&path, "and what follows, beyond the first 100,000 files");
                return Ok(());
            }
            let Ok(meta) = std::fs::metadata(&path) else {
                self.named(name, &path, "links that lead to no file");
                continue;
            };
            if meta.is_dir() {
                self.below(&path, name, depth)?;
            } else if meta.is_file() {
                self.file(folder, name, &names);
            } else {
                self.named(name, &path, "no regular files");
            }
        }
        Ok(())
    }

    /// Looks into a folder below, where that is a place of scans.
    fn below(&mut self, path: &Path, name: &str, depth: usize) -> Result<()> {
        let parts = path.strip_prefix(self.root).unwrap_or(path).iter().map(|part| part.to_string_lossy());
        let participant = parts.into_iter().any(|part| part.starts_with("sub-"));
        if name.starts_with('.') {
            return Ok(());
        }
        if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) {
            self.leave(path, "links to folders");
        } else if depth == MAX_DEPTH {
            self.leave(path, "folders more than 8 deep");
        } else if (depth == 0 && NO_RAW_DATA.contains(&name)) || (participant && OTHER_DATA.contains(&name)) {
            self.leave(path, "folders of other data than raw anatomical scans");
        } else {
            self.folder(path, depth + 1)?;
        }
        Ok(())
    }

    /// Adds a file to the inputs, or to what is not used; `names` are all of its folder.
    fn file(&mut self, folder: &Path, name: &str, names: &[String]) {
        let path = folder.join(name);
        let (stem, is_scan) = match kind(name) {
            Kind::Scan(stem) => (stem, true),
            Kind::Report(stem) => (stem, false),
            Kind::Litter => return,
            Kind::Image => {
                let header = |n: &String| matches!(kind(n), Kind::Scan(_)) && n.to_lowercase().contains(".hdr");
                if !names.iter().any(header) {
                    self.leave(&path, ".img files without their .hdr");
                }
                return;
            }
            Kind::Hidden => return self.leave(&path, "hidden files"),
            Kind::Other => return self.leave(&path, "files that are neither scans nor .txt reports by their endings"),
        };
        let place = folder.strip_prefix(self.root).unwrap_or(folder);
        let key = (place.to_owned(), stem.to_owned());
        let same = |other: &&(PathBuf, String)| other.0 == key.0 && other.1.eq_ignore_ascii_case(stem);
        // Windows writes a name in any case: by an ending in capitals it belongs to the other one in the folder.
        let twin = self.inputs.iter().find(|(other, input)| {
            let (free, there) = match is_scan {
                true => (input.scan.is_none(), &input.report),
                false => (input.report.is_none(), &input.scan),
            };
            same(other) && free && (is_shouted(&path) || there.as_ref().is_some_and(|path| is_shouted(path)))
        });
        let exact = self.inputs.contains_key(&key);
        let key = twin.filter(|_| !exact).map_or(key, |(other, _)| other.clone());
        let input = self.inputs.entry(key).or_default();
        input.name = place.join(stem).to_string_lossy().into_owned();
        let slot = if is_scan { &mut input.scan } else { &mut input.report };
        if slot.is_some() {
            return self.leave(&path, "scans of a name that another scan has");
        }
        *slot = Some(path);
    }

    /// Notes a path that would have been an input by its name.
    fn named(&mut self, name: &str, path: &Path, why: &'static str) {
        if !matches!(kind(name), Kind::Litter) {
            self.leave(path, why);
        }
    }

    fn leave(&mut self, path: &Path, why: &'static str) {
        let shown = path.strip_prefix(self.root).unwrap_or(path).to_string_lossy().into_owned();
        self.unused.entry(why).or_default().push(shown);
    }
}

#[cfg(test)]
#[path = "calibration_tests.rs"]
mod tests;
