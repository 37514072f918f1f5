//! Tests of splits: stratified, by seed and content alone, people whole.

use super::*;

/// `n` subjects of `visits` scans each, the class by `label(i)`.
fn cohort(n: usize, visits: usize, label: impl Fn(usize) -> usize) -> Vec<Case> {
    let row = |i: usize, v: usize| Case {
        line: i,
        subject: format!("s{i}"),
        spelled: Some(format!("s{i}")),
        volume: None,
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
