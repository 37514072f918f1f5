//! Tests of calibration folders: what is an input, what belongs together, what the warning names.

use super::*;

/// A folder with these files, one character long.
fn folder(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }
    folder
}

/// Names, whether there is a scan, whether there is a report.
fn rows(found: &CalibrationFolder) -> Vec<(&str, bool, bool)> {
    found.inputs.iter().map(|i| (i.name.as_str(), i.scan.is_some(), i.report.is_some())).collect()
}

fn told(found: &CalibrationFolder) -> String {
    found.warning().map_or(String::new(), |warning| warning.message)
}

#[test]
fn scans_of_every_format_are_found() {
    let files =
        ["a.nii.gz", "a.txt", "b.hdr", "b.img", "c.mgz", "d.mgh", "e.mgh.gz", "e.txt", "g.nii.zst", "README.txt"];
    let folder = folder(&files);
    let found = calibration_folder(folder.path()).unwrap();
    let scan = |name| (name, true, false);
    assert_eq!(rows(&found), [("a", true, true), scan("b"), scan("c"), scan("d"), ("e", true, true), scan("g")]);
    assert!(found.unused.is_empty(), "{found:?}");
    assert_eq!((found.scans(), found.reports()), (6, 2));
}

#[test]
fn litter_is_passed_over_in_silence() {
    let files = [
        "p.nii",
        "p.txt",
        "._p.nii",
        "._p.txt",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "README",
        "ReadMe-first.txt",
        "LICENSE.txt",
        "licence",
        "requirements.txt",
        "requirements-dev.txt",
        "dataset_description.json",
        "CHANGES",
        "participants.tsv",
        "p.json",
        ".git/x.nii",
        "CITATION.cff",
    ];
    let folder = folder(&files);
    let found = calibration_folder(folder.path()).unwrap();
    assert_eq!((rows(&found), told(&found)), (vec![("p", true, true)], String::new()));
    // Names that only begin like those are reports.
    let folder = self::folder(&["notices.txt", "readmission.txt", "changeset.txt"]);
    assert_eq!(calibration_inputs(folder.path()).unwrap().len(), 3);
}

#[test]
fn what_is_not_used_is_told() {
    let folder = folder(&["p.nii.gz", "p.mgz", "q.docx", "r.pdf", "s.dcm", "t.html", ".u.nii", "v.img", "w.txt"]);
    let found = calibration_folder(folder.path()).unwrap();
    assert_eq!(rows(&found), [("p", true, false), ("w", false, true)]);
    let message = told(&found);
    for part in
        ["1 scans and 1 reports", "4 files that are neither", "q.docx, r.pdf, s.dcm, …", "hidden", ".u.nii", "v.img"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(message.contains("another scan has (p.nii.gz)"), "{message}");
}

#[test]
fn folders_below_are_walked() {
    let files = [
        "sub-1/ses-2/anat/sub-1_T1w.NII.GZ",
        "sub-1/ses-2/anat/sub-1_T1w.txt",
        "sub-1/func/sub-1_bold.nii.gz",
        "sub-2/anat/sub-1_T1w.nii.gz",
        "derivatives/sub-1/anat/mask.nii.gz",
        "site/a.txt",
        "a.txt",
        "func/b.txt",
    ];
    let folder = folder(&files);
    let found = calibration_folder(folder.path()).unwrap();
    let expected = [
        ("a", false, true),
        ("func/b", false, true),
        ("site/a", false, true),
        ("sub-1/ses-2/anat/sub-1_T1w", true, true),
        ("sub-2/anat/sub-1_T1w", true, false),
    ];
    assert_eq!(rows(&found), expected);
    let message = told(&found);
    assert!(message.contains("derivatives") && message.contains("sub-1/func"), "{message}");
    let deep = format!("{}z.txt", "d/".repeat(MAX_DEPTH + 1));
    let folder = self::folder(&[&deep, "d/y.txt"]);
    let found = calibration_folder(folder.path()).unwrap();
    assert!(rows(&found) == [("d/y", false, true)] && told(&found).contains("8 deep"), "{found:?}");
}

#[cfg(unix)]
#[test]
fn links_are_followed_to_files_alone() {
    use std::os::unix::fs::symlink;
    let folder = folder(&["a.txt", "store/K1"]);
    let at = |name: &str| folder.path().join(name);
    symlink("store/K1", at("b.nii.gz")).unwrap();
    symlink("store/none", at("c.nii.gz")).unwrap();
    symlink(".", at("loop")).unwrap();
    let found = calibration_folder(folder.path()).unwrap();
    assert_eq!(rows(&found), [("a", false, true), ("b", true, false)]);
    let message = told(&found);
    assert!(message.contains("lead to no file (c.nii.gz)") && message.contains("links to folders (loop)"), "{message}");
    assert!(calibration_folder(&at("none")).unwrap().inputs.is_empty());
    symlink(at("none"), at("dangling")).unwrap();
    assert!(calibration_folder(&at("dangling")).is_err() && calibration_folder(&at("a.txt")).is_err());
}

#[test]
fn endings_in_capitals_belong_to_the_other_file() {
    let folder = folder(&["SCAN.NII.GZ", "scan.txt", "B.TXT", "b.mgz", "Alpha.nii", "alpha.txt"]);
    let found = calibration_folder(folder.path()).unwrap();
    assert_eq!((found.scans(), found.reports(), found.unused.len()), (3, 3, 0));
    // Where case alone tells files apart, they stay apart.
    let expected = [("Alpha", true, false), ("b", true, true), ("alpha", false, true), ("scan", true, true)];
    let mut rows = rows(&found);
    rows.sort_unstable();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(rows, expected);
}

#[test]
fn limits_are_told() {
    let scans: Vec<String> = (0..11).map(|i| format!("s{i:02}.nii")).collect();
    let reports: Vec<String> = (0..40).map(|i| format!("t{i:02}.txt")).collect();
    let files: Vec<&str> = scans.iter().chain(&reports).map(String::as_str).collect();
    let folder = folder(&files);
    let found = calibration_folder(folder.path()).unwrap();
    assert_eq!((found.scans(), found.reports()), (MAX_CALIBRATION_SCANS, MAX_CALIBRATION_INPUTS - 11));
    let message = told(&found);
    assert!(message.contains("3 scans beyond the first 8 (s08, s09, s10)"), "{message}");
    assert!(message.contains("19 beyond the first 32 inputs (t21, t22, t23, …)"), "{message}");
}
