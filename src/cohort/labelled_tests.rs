//! Tests of labelled lists: what is read, what is refused, how it is split.

use super::*;

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
        (b"scan;label\na.nii;CN\n", "separated by commas"),
        (b"scan,label,scan\na,CN,b\n", "2 columns `scan`"),
        (b"scan,label\n", "no rows"),
        (b"scan,label\na.nii,CN\n,AD\n", "line 3: names no scan"),
        (b"scan,label\na.nii,\n", "line 2: has no label"),
        (b"scan,label\na.nii,cn\n", "line 2: the label is `cn`; the model's labels are CN, MCI, AD"),
        (b"scan,label,split\na.nii,CN,dev\n", "line 2: the split is `dev`"),
        (b"scan,label\na.nii,CN,more\n", "line 2: has 3 cells and the header 2"),
        (b"scan,label\na\xff.nii,CN\n", "line 2: is not UTF-8"),
        (b"scan,label\n\"a.nii,CN\nb.nii,AD\n", "line 2: has 1 cells"),
        (b"PK\x03\x04\x00\x00\n\x00\x01", "no column"),
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

/// `n` subjects of `visits` scans each, the class by `label(i)`.
fn cohort(n: usize, visits: usize, label: impl Fn(usize) -> usize) -> Vec<Case> {
    let row = |i: usize, v: usize| Case {
        line: i,
        subject: format!("s{i}"),
        scan: format!("s{i}_{v}.nii").into(),
        report: None,
        label: label(i),
        split: None,
    };
    (0..n).flat_map(|i| (0..visits).map(move |v| (i, v))).map(|(i, v)| row(i, v)).collect()
}

fn count(subjects: &[Case], label: usize) -> [usize; 3] {
    Split::ALL.map(|split| subjects.iter().filter(|s| s.label == label && s.split == Some(split)).count())
}

#[test]
fn splits_are_stratified() {
    // 50, 30 and 20 of a class
    let mut subjects = cohort(100, 1, |i| if i % 10 < 5 { 0 } else { 1 + usize::from(i % 10 > 7) });
    assign_splits(&mut subjects, [0.6, 0.2, 0.2], 1).unwrap();
    assert_eq!([0, 1, 2].map(|l| count(&subjects, l)), [[30, 10, 10], [18, 6, 6], [12, 4, 4]]);
    let mut few = cohort(5, 1, |i| usize::from(i >= 3));
    assign_splits(&mut few, [0.9, 0.1, 0.0], 1).unwrap();
    assert_eq!([0, 1].map(|l| count(&few, l)), [[2, 1, 0], [1, 1, 0]]);
    let mut one = cohort(1, 1, |_| 2);
    assign_splits(&mut one, [0.8, 0.2, 0.0], 1).unwrap();
    assert_eq!(count(&one, 2), [1, 0, 0]);
}

#[test]
fn counts_add_up_for_all_sizes() {
    for fractions in [[0.8, 0.2, 0.0], [0.6, 0.2, 0.2], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.34, 0.33, 0.33]] {
        for total in 0..200 {
            let counts = apportion(total, fractions);
            assert_eq!(counts.iter().sum::<usize>(), total);
            for (count, fraction) in counts.into_iter().zip(fractions) {
                assert!((count as f64 - fraction * total as f64).abs() <= 1.0 + 1e-6, "{total} {counts:?}");
                assert!(fraction > 0.0 || count == 0);
                assert!(fraction == 0.0 || count > 0 || total < 3, "{total} {counts:?}");
            }
        }
    }
}

#[test]
fn splits_follow_seed_and_content_alone() {
    let by_scan = |mut subjects: Vec<Case>, seed| {
        assign_splits(&mut subjects, [0.7, 0.3, 0.0], seed).unwrap();
        subjects.into_iter().map(|s| (s.scan, s.split)).collect::<BTreeMap<_, _>>()
    };
    let subjects = cohort(40, 3, |i| i % 3);
    let mut shuffled: Vec<_> = subjects.iter().rev().cloned().collect();
    shuffled.rotate_left(17);
    let expected = by_scan(subjects.clone(), 7);
    assert_eq!(by_scan(shuffled, 7), expected);
    assert_ne!(by_scan(subjects.clone(), 8), expected);
    // All visits of a subject together.
    for visits in expected.iter().collect::<Vec<_>>().chunks(3) {
        assert!(visits.iter().all(|(_, split)| **split == *visits[0].1 && split.is_some()), "{visits:?}");
    }
}

#[test]
fn assigned_splits_stay() {
    let mut subjects = cohort(30, 2, |i| i % 3);
    subjects[0].split = Some(Split::Test);
    subjects[58].split = Some(Split::Train);
    let before = subjects.clone();
    assign_splits(&mut subjects, [0.5, 0.5, 0.0], 3).unwrap();
    assert_eq!([0, 1, 58, 59].map(|i| subjects[i].split.unwrap().name()), ["test", "test", "train", "train"]);
    assert!(subjects.iter().filter(|s| s.split == Some(Split::Test)).all(|s| s.subject == before[0].subject));
}

#[test]
fn a_subject_that_changes_class_stays_whole() {
    let mut subjects = cohort(20, 2, |_| 0);
    (0..40).step_by(2).for_each(|i| subjects[i].label = 1);
    assign_splits(&mut subjects, [0.5, 0.5, 0.0], 3).unwrap();
    assert!(subjects.chunks(2).all(|pair| pair[0].split == pair[1].split));
    assert_eq!(count(&subjects, 1), [10, 10, 0]);
}

#[test]
fn impossible_fractions_are_refused() {
    for fractions in [[0.5, 0.5, 0.5], [-0.5, 1.0, 0.5], [f64::NAN, 0.5, 0.5], [0.0, 0.0, 0.0], [2.0, -1.0, 0.0]] {
        let e = assign_splits(&mut cohort(3, 1, |_| 0), fractions, 0).unwrap_err();
        assert_eq!(e.code(), Code::CONFIG_VALUE, "{fractions:?}");
    }
}
