//! Reports where scans belong: `ba-infer scan.nii.gz report.txt` would answer from the image alone and then fail on the
//! report.

use std::io::Read;
use std::path::Path;

use crate::text::decode_report;

/// Endings of documents; no scan has them.
const DOCUMENTS: &[&str] = &[
    "txt", "text", "rtf", "doc", "docx", "odt", "pdf", "html", "htm", "md", "docm", "dotx", "pages", "tex", "eml",
    "msg",
];

/// Endings of scans, and of texts that belong to scans: what such a file is, the scan's reader says better.
const OTHERS: &[&str] = &[
    "nii", "gz", "hdr", "img", "mgh", "mgz", "head", "brik", "par", "rec", "mha", "mhd", "nrrd", "nhdr", "gii", "mnc",
    "dcm", "ima", "dicom", "bz2", "zst", "z", "xz", "tar", "tgz", "zip", "xml", "json", "csv", "tsv", "v", "bvec",
    "bval", "fdf",
];

/// How much of a file is read to see whether it is a report.
const HEAD: u64 = 4096;

/// Refuses a report among the scans, and shows the right call.
pub(super) fn check(scans: &[impl AsRef<Path>], report: Option<&Path>) -> Result<(), String> {
    let scans: Vec<&Path> = scans.iter().map(AsRef::as_ref).collect();
    let (reports, images): (Vec<&Path>, Vec<&Path>) = scans.iter().partition(|path| is_report(path));
    let Some(first) = reports.first() else { return Ok(()) };
    let shown = crate::cli::text::escaped(&first.display().to_string());
    Err(match (reports.len(), images.as_slice(), report) {
        (1, [scan], None) => {
            let scan = crate::cli::text::escaped(&scan.display().to_string());
            format!("`{shown}` is a report, not a scan: ba-infer {scan} --report {shown}")
        }
        (_, _, Some(_)) => format!("`{shown}` is a report, not a scan; was it swapped with that of --report?"),
        (1, [], None) => format!("`{shown}` is a report, and there is no scan: ba-infer SCAN --report {shown}"),
        _ => format!("`{shown}` is a report, not a scan: for several scans with their reports, use --list FILE.csv"),
    })
}

/// Whether a file is a report by its ending, or by holding text where its ending says nothing.
fn is_report(path: &Path) -> bool {
    let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let has = |list: &[&str]| list.contains(&ending.as_str());
    if has(OTHERS) || path.is_dir() {
        return false;
    }
    // A pipe would be opened and waited for.
    if !path.is_file() {
        return has(DOCUMENTS) && !path.exists();
    }
    let mut head = Vec::new();
    let opened = std::fs::File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head));
    if opened.is_err() {
        return has(DOCUMENTS);
    }
    match decode_report(without_partial_character(&head)) {
        Ok(_) => true,
        // A scan that was named so is for the scan's reader.
        Err(e) => has(DOCUMENTS) && !e.message().contains("scan"),
    }
}

/// The bytes without a UTF-8 character at their end of which only the beginning was read.
fn without_partial_character(bytes: &[u8]) -> &[u8] {
    match std::str::from_utf8(bytes) {
        Err(e) if e.error_len().is_none() => &bytes[..e.valid_up_to()],
        _ => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_by_position_are_shown_the_right_call() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let scan = file("t1.nii.gz", b"\x1f\x8b");
        let mut nifti = 348u32.to_le_bytes().to_vec();
        nifti.resize(352, 0);
        let rows = [
            (file("r.txt", b"MRI: normal"), true),
            (file("r.PDF", b"%PDF-1.4"), true),
            (file("r.docx", b"PK\x03\x04"), true),
            (file("latin.txt", b"Gr\xf6\xdfe normal"), true),
            (file("empty.txt", b""), true),
            (file("report", "MRI: Größe normal ".repeat(400).as_bytes()), true),
            (file("befund.asc", b"M\0R\0I\0"), true),
            (dir.path().join("none.txt"), true),
            (dir.path().join("none"), false),
            (file("IM0001", &[0; 300]), false),
            (file("scan.txt", &nifti), false),
            (file("a.nii", b"no scan"), false),
            (file("anat+orig.HEAD", b"type = string-attribute"), false),
            (file("t1.par", b"# === DATA DESCRIPTION FILE"), false),
            (dir.path().to_path_buf(), false),
        ];
        for (path, is_one) in rows {
            for scans in [[&scan, &path], [&path, &scan]] {
                let refused = check(&scans, None);
                assert_eq!(refused.is_err(), is_one, "{path:?}");
                let Err(message) = refused else { continue };
                let call = format!("ba-infer {} --report {}", scan.display(), path.display());
                assert!(message.contains(&call), "{message}");
            }
        }
    }
}
