//! What a path is that leads to no file: a folder of other scans, or a link to nowhere.
//!
//! In: the path. Out: the error, which says what to give instead. Folders are walked within bounds, for a whole disk
//! may have been given: a few levels, entries and files, of which only the first bytes are read. Links are not
//! followed.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::{SCAN_ENDINGS, sniff};
use crate::error::{Code, Error};
use crate::tensor::number::to_u64;

/// Levels below the folder: DICOM exports have patient, study, series, and often one more.
const LEVELS: usize = 4;
/// Entries that are looked at.
const ENTRIES: usize = 2048;
/// Files whose first bytes are read.
const FILES: usize = 64;

/// What was found in a folder.
#[derive(Default)]
struct Found {
    dicom: bool,
    bruker: bool,
    /// A scan that can be given, relative to the folder.
    scan: Option<PathBuf>,
    entries: usize,
    files: usize,
}

/// The error for a folder in place of a scan.
pub(super) fn folder(path: &Path) -> Error {
    let mut found = Found::default();
    let mut level = vec![path.to_owned()];
    for _ in 0..=LEVELS {
        level = level.iter().flat_map(|folder| found.look_into(folder)).collect();
    }
    let scan = found.scan.and_then(|scan| scan.strip_prefix(path).map(Path::to_owned).ok());
    let (code, text) = match (found.dicom, found.bruker, scan) {
        (_, _, Some(scan)) => {
            let dicom = if found.dicom { " of DICOM files and others" } else { "" };
            let text =
                format!("a folder{dicom}, expected a scan file: give one that is in it, such as {}", scan.display());
            (Code::NIFTI_NOT_A_FILE, text)
        }
        (true, ..) => {
            let text = "a folder of DICOM files, expected NIfTI: convert the series first, for example with dcm2niix";
            (Code::NIFTI_NOT_NIFTI, text.to_owned())
        }
        (_, true, _) => (Code::NIFTI_NOT_NIFTI, format!("a folder, expected NIfTI; it is {}", sniff::BRUKER)),
        _ => (Code::NIFTI_NOT_A_FILE, "a folder, expected a scan file (.nii or .nii.gz)".to_owned()),
    };
    Error::new(code, text).at(path)
}

impl Found {
    /// Looks at the entries of a folder, in the order of their names, and returns those that are folders.
    fn look_into(&mut self, folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut entries: Vec<_> = entries.take(ENTRIES.saturating_sub(self.entries)).collect();
        self.entries += entries.len();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        let mut folders = Vec::new();
        for entry in entries {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => self.look_at(&entry.path()),
                _ => {}
            }
        }
        folders
    }

    fn look_at(&mut self, file: &Path) {
        let name = file.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        let readable = SCAN_ENDINGS.iter().any(|end| name.ends_with(end));
        if readable && self.scan.is_none() {
            self.scan = Some(file.to_owned());
        }
        self.bruker |= ["2dseq", "acqp", "visu_pars"].contains(&name.as_str());
        if readable || self.dicom || self.files >= FILES {
            return;
        }
        self.files += 1;
        let mut start = Vec::new();
        let read = File::open(file).and_then(|f| f.take(to_u64(sniff::MORE)).read_to_end(&mut start));
        self.dicom = read.is_ok() && sniff::is_dicom(&start);
    }
}

/// The error for a path without metadata: nothing there, a link that leads nowhere or in a circle, or no permission.
pub(super) fn no_metadata(path: &Path, e: std::io::Error) -> Error {
    let target = std::fs::read_link(path).ok();
    match (e.kind(), target) {
        (ErrorKind::PermissionDenied, _) => Error::io(path, "cannot open the scan", e),
        (_, Some(target)) if target.components().any(|c| c.as_os_str() == "annex") => {
            let text = format!("{}, a link whose target is missing", sniff::ANNEX);
            Error::new(Code::NIFTI_NOT_FOUND, text).at(path)
        }
        (_, Some(_)) => Error::new(Code::NIFTI_NOT_FOUND, format!("the link leads to no file: {e}")).at(path),
        (ErrorKind::NotFound | ErrorKind::NotADirectory, None) => {
            Error::new(Code::NIFTI_NOT_FOUND, "no such file: check the path").at(path)
        }
        _ => Error::io(path, "cannot open the scan", e),
    }
}
