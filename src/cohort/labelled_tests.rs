//! Tests of labelled lists: what is read, what is refused, how it is split.

use super::*;
use crate::cohort::subject_warnings;
use crate::error::Warning;

fn labels() -> Vec<String> {
    ["CN", "MCI", "AD"].map(str::to_owned).to_vec()
}

/// Reads `text` as a list.
fn list(text: impl AsRef<[u8]>) -> Result<Vec<Case>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cohort.csv");
    std::fs::write(&path, text).unwrap();
    let mut subjects = read_labelled(&path, &labels())?;
    for subject in &mut subjects {
        subject.scan = subject.scan.strip_prefix(dir.path()).unwrap().to_owned();
        subject.report = subject.report.take().map(|r| r.strip_prefix(dir.path()).unwrap().to_owned());
    }
    Ok(subjects)
}

#[test]
fn rows_are_read_whatever_the_order_of_columns() {
    let text = "\u{feff}label, split ,age,scan,report\r\nMCI,val,71,a.nii,r.txt\r\nCN,,\"7\n1\",\"b,1.nii\",\r\nAD,TEST,,c.nii,\r\n";
    let subjects = list(text).unwrap();
    assert_eq!(subjects.len(), 3);
    let [a, b, c] = subjects.as_slice() else { panic!() };
    assert_eq!((a.line, a.label, a.split), (2, 1, Some(Split::Validation)));
    assert_eq!((a.scan.to_str(), a.report.as_deref()), (Some("a.nii"), Some(Path::new("r.txt"))));
    assert_eq!((b.line, b.label, b.split, b.report.as_deref()), (3, 0, None, None));
    assert_eq!((b.subject.as_str(), b.scan.to_str()), ("b,1.nii", Some("b,1.nii")));
    assert_eq!((c.line, c.label, c.split), (5, 2, Some(Split::Test)));
}

#[test]
fn the_subject_comes_from_the_column_or_the_path() {
    let of = |text: &str| list(text).unwrap().into_iter().map(|s| s.subject).collect::<Vec<_>>();
    assert_eq!(of("subject,scan,label\nsub-7,a.nii,CN\n7,b.nii,CN\n,sub-9/anat/sub-9_T1w.nii,CN\n"), ["7", "7", "9"]);
    assert_eq!(of("participant_id,scan,label\nsub-7,x/sub-8_T1w.nii,CN\n"), ["7"]);
    assert_eq!(
        of("scan,label\nd/sub-01_ses-2_T1w.nii,CN\nsub-02.nii.gz,CN\n./s.nii,CN\nsub-/x.nii,CN\nnosub-1.nii,AD\n"),
        ["01", "02", "s.nii", "sub-/x.nii", "nosub-1.nii"]
    );
}

#[test]
fn what_cannot_be_a_list_is_refused_in_one_line() {
    let long = format!("scan,label\na.nii,{}\n", "x".repeat(100_000));
    let cases: Vec<(&[u8], &str)> = vec![
        (b"", "no column `scan`"),
        (b"scan,report\na.nii,r.txt\n", "no column `label`; it has scan, report"),
        (b"scan label\na.nii;CN\n", "no column `scan`; it has scan label (cells are separated by"),
        (b"scan,label\na.nii,CN\n,AD\nb.nii,X\n,CN\n", "lines 3, 5: names no scan; line 4: the label is `X`"),
        (b"scan,label,scan\na,CN,b\n", "2 columns `scan`"),
        (b"scan,label\n", "no rows"),
        (b"scan,label\na.nii,CN\n,AD\n", "line 3: names no scan"),
        (b"scan,label\na.nii,\n", "line 2: has no label"),
        (b"scan,label\na.nii,cn\n", "line 2: the label is `cn`; the model's labels are CN, MCI, AD"),
        (b"scan,label,split\na.nii,CN,dev\n", "line 2: the split is `dev`"),
        (b"scan,label\na.nii,CN,more\n", "line 2: has 3 cells and the header 2"),
        (b"scan,label\na\xff.nii,CN\n", "line 2: is not UTF-8"),
        (b"scan,label\n\"a.nii,CN\nb.nii,AD\n", "line 2: a quote is opened and never closed"),
        (b"PK\x03\x04\x00\x00\n\x00\x01", "workbook"),
        (long.as_bytes(), "line 2: the label is `xxx"),
    ];
    for (bytes, expected) in cases {
        let what = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]);
        let e = list(bytes).unwrap_err();
        let text = e.to_string();
        assert_eq!(e.code(), Code::LIST_INVALID, "{what:?}");
        assert!(text.contains(expected) && text.contains("cohort.csv"), "{what:?}: {text}");
        assert!(text.lines().count() == 1 && text.len() < 500, "{what:?}: {text}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(read_labelled(dir.path(), &labels()).unwrap_err().code(), Code::LIST_INVALID);
    assert_eq!(read_labelled(&dir.path().join("none.csv"), &labels()).unwrap_err().code(), Code::LIST_INVALID);
}

#[test]
fn leaks_are_refused() {
    let cases = [
        (
            "subject,scan,label,split\n1,a.nii,CN,train\n2,b.nii,CN,test\nsub-1,c.nii,CN,val\n",
            "line 4: subject 1 is in",
        ),
        ("scan,label,split\nsub-1/a.nii,CN,train\nsub-1/b.nii,CN,test\n", "subject 1 is in test, on line 2 in train"),
        ("scan,label,split\na.nii,CN,train\n./a.nii,CN,test\n", "lines 2 and 3 name one scan, a.nii, in two splits"),
        (
            "scan,label,split\na.nii,CN,\na.nii,CN,train\na.nii,CN,test\n",
            "subject a.nii is in test, on line 3 in train",
        ),
        ("scan,label\na.nii,CN\na.nii,AD\n", "with two labels"),
        ("subject,scan,label\n1,a.nii,CN\n2,a.nii,CN\n", "two subjects, 1 and 2"),
    ];
    for (text, expected) in cases {
        let e = list(text).unwrap_err();
        assert_eq!(e.code(), Code::LIST_INVALID, "{text}");
        assert!(e.message().contains(expected), "{text}: {e}");
    }
}

#[cfg(unix)]
#[test]
fn a_link_to_a_scan_is_that_scan() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.nii"), "").unwrap();
    std::os::unix::fs::symlink("a.nii", dir.path().join("b.nii")).unwrap();
    let path = dir.path().join("cohort.csv");
    std::fs::write(&path, "scan,label,split\na.nii,CN,train\nb.nii,CN,test\n").unwrap();
    assert!(read_labelled(&path, &labels()).unwrap_err().message().contains("in two splits"));
    std::fs::write(&path, "scan,label,split\nb.nii,CN,\na.nii,CN,train\n").unwrap();
    let subjects = read_labelled(&path, &labels()).unwrap();
    assert!(subjects.iter().all(|s| s.subject == "a.nii" && s.split == Some(Split::Train)));
}

#[test]
fn a_row_without_a_split_goes_with_its_subject() {
    let subjects = list("subject,scan,label,split\n1,a,CN,\n1,b,CN,test\n2,c,CN,\n").unwrap();
    assert_eq!(subjects.iter().map(|s| s.split).collect::<Vec<_>>(), [Some(Split::Test), Some(Split::Test), None]);
}

/// The warnings of a list, and its subjects.
fn people(text: &str) -> (Vec<Warning>, Vec<String>) {
    let cases = list(text).unwrap();
    (subject_warnings(&cases), cases.into_iter().map(|case| case.subject).collect())
}

#[test]
fn one_person_in_two_splits_is_refused_however_spelled() {
    for (a, b) in [
        ("007", "7"),
        ("7", "7.0"),
        ("sub-012", "12.0"),
        ("adni007", "ADNI007"),
        ("sub-07_ses-M00", "sub-07_ses-M12"),
        ("OAS30017_MR_d0129", "OAS30017"),
        ("ADNI_011_S_0021_MR_MPRAGE", "011_S_0021"),
    ] {
        let text = format!("scan,label,split,subject\na.nii,CN,train,{a}\nb.nii,CN,val,{b}\nc.nii,AD,val,other\n");
        let e = list(text).unwrap_err();
        assert!(e.code() == Code::LIST_INVALID, "{e}");
        for part in ["line 3", "line 2", "two people", a.trim_start_matches("sub-"), b.trim_start_matches("sub-")] {
            assert!(e.message().contains(part), "{part}: {e}");
        }
    }
    let names = "scan,label,split\nADNI_003_S_1000_MR_x_S0.nii,CN,train\nd/ADNI_003_S_1000_MR_y_S1.nii,CN,test\n";
    let e = list(names).unwrap_err();
    assert!(e.message().starts_with("line 3: subject 003_S_1000 is in test, on line 2 in train: "), "{e}");
}

#[test]
fn people_stay_together_and_the_reader_is_told() {
    let (warnings, subjects) = people("subject,scan,label\n007,a,CN\n7.0,b,CN\nsub-7,c,CN\nS1,d,AD\nS10,e,AD\n");
    assert_eq!(subjects, ["007", "007", "007", "S1", "S10"]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].code.as_str() == "subject_alike" && warnings[0].message.contains("007 = 7 = 7.0 (from line 2)")
    );
    // One spelling, one name: as it is written.
    let (warnings, subjects) = people("subject,scan,label\nsub-07_ses-1,a,CN\nsub-07_ses-1,b,CN\n08,c,AD\n");
    assert!(warnings.is_empty() && subjects == ["07_ses-1", "07_ses-1", "08"], "{warnings:?} {subjects:?}");
    let (_, subjects) = people("subject,scan,label\nsub-07_ses-1,a,CN\nsub-07_ses-2,b,CN\n");
    assert_eq!(subjects, ["07"; 2]);
    // Rows of one person by cell and by name; a split passes on.
    let cases = list("subject,scan,label,split\n7,a,CN,test\n,sub-07/b,CN,\n").unwrap();
    assert!(cases.iter().all(|case| case.subject == "07" && case.split == Some(Split::Test)), "{cases:?}");
}

#[test]
fn scans_of_nobody_are_counted() {
    let (warnings, subjects) = people("scan,label\na.nii,CN\nb.nii,AD\n./a.nii,CN\n");
    assert_eq!(subjects, ["a.nii", "b.nii", "a.nii"]);
    assert!(warnings[0].code.as_str() == "subject_unknown", "{warnings:?}");
    assert!(warnings[0].message.starts_with("3 scans taken for 2 people, "), "{warnings:?}");
    let (warnings, _) = people("scan,label,participant_id\na.nii,CN,\nb.nii,AD,4\n");
    assert!(warnings[0].message.starts_with("1 scan of 2 taken for 1 person, "), "{warnings:?}");
    for known in ["sub-1/a.nii", "x/OAS1_0001_MR1_mpr.nii", "AIBL_102_MR_x_S1_I2.nii", "IXI002-Guys-0828-T1.nii"] {
        let (warnings, subjects) = people(&format!("scan,label\n{known},CN\n"));
        assert!(warnings.is_empty(), "{known}: {warnings:?} {subjects:?}");
    }
}

#[test]
fn a_column_that_parts_a_person_of_the_names_is_pointed_out() {
    let text = "scan,label,subject\nADNI_003_S_1000_MR_a.nii,CN,I1\nADNI_003_S_1000_MR_b.nii,CN,I2\n";
    let (warnings, subjects) = people(text);
    assert_eq!(subjects, ["I1", "I2"]);
    assert!(warnings.len() == 1 && warnings[0].message.contains("I1 on line 2 and I2 on line 3"), "{warnings:?}");
}

#[test]
fn nobody_is_called_na() {
    for cell in ["n/a", "NaN", "NULL", "None"] {
        let e = list(format!("scan,label,subject\na,CN,{cell}\nb,AD,{cell}\n")).unwrap_err();
        assert!(e.message().starts_with("lines 2, 3: the subject is `") && e.message().contains("n/a"), "{e}");
        let row = format!("scan,label,report,split,volume,series\na,CN,{cell},{cell},{cell},{cell}\n");
        let case = list(row).unwrap().remove(0);
        assert!(case.report.is_none() && case.split.is_none() && case.volume.is_none());
        assert!(list(format!("scan,label\n{cell},CN\n")).unwrap_err().message().contains("names no scan"));
        assert!(list(format!("scan,label\na,{cell}\n")).unwrap_err().message().contains("has no label"));
    }
    assert_eq!(list("scan;Label;Volume\na;CN;2.0\n").unwrap()[0].volume, Some(2));
    assert!(list("scan,label,series\na,CN,4\n").unwrap_err().message().contains("series of DICOM"));
}
