//! Tests of people: all spellings of one have one key, and two have two.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn key(cell: &str) -> String {
    of_cell(cell).key
}

/// Names of one person a line.
const SAME: &[&[&str]] = &[
    &["007", "7", "7.0", "7,0", "sub-007", "sub-7", "SUB-07", "sub007", "sub_007", "Subject 7", "'007", "=\"007\""],
    &["sub-007_ses-M00", "sub-007_ses-M12", "007_ses-1", "sub-007_ses-1_run-2", "7_visit2", "7-session-03", "7"],
    &["sub-AB12_ses-M00.long.sub-AB12", "ab12", "AB-12", "ab_012", "AB 12"],
    &["adni007", "ADNI007", "ADNI_007", "Adni-7"],
    &[
        "ADNI_002_S_0295_MR_MPRAGE_br_raw_20060418",
        "002_S_0295",
        "002-s-0295",
        "sub-ADNI002S0295",
        "ADNI002S0295_ses-M06",
        "ADNI_002_S_0295",
    ],
    &["168_S_10001", "sub-ADNI168S10001_ses-M000"],
    &["OAS1_0001_MR1", "OAS1_0001_MR2", "OAS1_0001", "sub-OASIS10001", "oas1_0001"],
    &["OAS30001_MR_d0129", "OAS30001", "sub-OAS30001_ses-d0129", "OAS30001_ClinicalData_d0339"],
    &["AIBL_102_MR_MPRAGE_ADNI_confirmed_Br_20061220_S1_I2", "AIBL_102", "AIBL102", "sub-AIBL102_ses-M18"],
    &["IXI002-Guys-0828-T1", "IXI002", "ixi002"],
    &["miriad_188_AD_M_01_MR_1", "miriad_188_AD_M_02_MR_1", "miriad_188"],
    &["NACC123456", "mri_NACC123456_v2", "nacc123456"],
    &["0", "00", "0.0"],
];

#[test]
fn spellings_of_a_person_have_one_key_and_people_differ() {
    let mut keys: BTreeMap<String, usize> = BTreeMap::new();
    for (person, names) in SAME.iter().enumerate() {
        for name in *names {
            // The second row ends with the first person.
            let person = if person == 1 { 0 } else { person };
            assert_eq!(*keys.entry(key(name)).or_insert(person), person, "{name}: {}", key(name));
        }
    }
    assert_eq!(keys.len(), SAME.len() - 1, "{keys:?}");
}

#[test]
fn people_are_not_merged() {
    let different = [
        "1",
        "10",
        "11",
        "1-11",
        "11-1",
        "S1",
        "S10",
        "1a",
        "1b",
        "a1",
        "b1",
        "00a1",
        "0a01",
        "7.5",
        "1.000",
        "A-B",
        "AB",
        "003_S_1000",
        "011_S_1000",
        "003_S_1001",
        "OAS1_0002",
        "OAS2_0002",
        "OAS30002",
        "OAS40002",
        "AIBL_1",
        "sub-x_1",
        "sub-x_2",
        "\u{1f600}",
        "\u{1f60e}",
        "session1",
        "1e5",
        "100000",
        "A_M1",
        "A_M2",
        "12345678",
        "2012_S_12345",
    ];
    let keys: BTreeMap<String, &str> = different.iter().map(|name| (key(name), *name)).collect();
    assert_eq!(keys.len(), different.len(), "{keys:?}");
}

#[test]
fn paths_name_people_by_known_schemes() {
    let known = [
        ("d/sub-01_ses-2_T1w.nii", "sub-1"),
        ("sub-ADNI002S0295/ses-M00/anat/x.nii", "002_S_0295"),
        ("ADNI/002_S_0295/MPRAGE/2006-04-18/I1/scan.nii", "002_S_0295"),
        ("ADNI_137_S_1002_MR_MPRAGE_20100101_S4.nii.gz", "137_S_1002"),
        ("OAS30001_MR_d0129/anat1/T1w.nii.gz", "OAS30001"),
        ("disc1/OAS1_0001_MR1/RAW/OAS1_0001_MR1_mpr-1_anon.hdr", "OAS1_0001"),
        ("AIBL_102_MR_MPRAGE_Br_20061220_S22_I333.nii", "AIBL102"),
        ("STUDY_A12_MR_T1_Raw_20100101_S22_I333.nii", "study_a12"),
        ("1234567_20252_2_0.nii.gz", "1234567"),
    ];
    for (path, cell) in known {
        assert_eq!(of_path(path).map(|person| person.key), Some(key(cell)), "{path}");
    }
    for path in [
        "a.nii",
        "scan_007.nii",
        "sub-/x.nii",
        "nosub-1.nii",
        "A_MR_B.nii",
        "IXI.nii",
        "12345_20252_2_0.nii",
        "x003_S_1000.nii",
    ] {
        assert_eq!(of_path(path), None, "{path}");
    }
}

/// Spellings of a person, whose name is letters and a number.
fn variants(letters: &str, number: u32) -> Vec<String> {
    let mut names = vec![
        format!("{letters}{number}"),
        format!("{}{number:05}", letters.to_uppercase()),
        format!("sub-{letters}{number:03}"),
        format!("sub-{letters}{number}_ses-M06"),
        format!(" {letters}{number} ").trim().to_owned(),
    ];
    match letters.is_empty() {
        true => names.extend([format!("{number}.0"), format!("{number:04}.0"), format!("sub{number}")]),
        false => names.extend([format!("{letters}-{number}"), format!("{letters}_{number:04}")]),
    }
    names
}

proptest! {
    #[test]
    fn variants_merge(letters in "[a-z]{0,4}", number in 0u32..100_000) {
        // Prefixes with a meaning of their own are in the tables above.
        prop_assume!(!["sub", "oas", "ses"].contains(&letters.as_str()));
        let keys: std::collections::BTreeSet<String> = variants(&letters, number).iter().map(|name| key(name)).collect();
        prop_assert_eq!(keys.len(), 1, "{:?}", keys);
    }

    #[test]
    fn other_numbers_and_letters_stay_apart(a in ("[a-z]{1,4}", 0u32..10_000), b in ("[a-z]{1,4}", 0u32..10_000)) {
        let name = |(letters, number): &(String, u32)| format!("{letters}{number}");
        prop_assume!(![&a.0, &b.0].iter().any(|letters| letters.starts_with("sub") || letters.starts_with("oas")));
        prop_assert_eq!(a == b, key(&name(&a)) == key(&name(&b)), "{:?} {:?}", a, b);
    }

    #[test]
    fn hashes_of_one_length_stay_apart(a in "[0-9a-f]{8}", b in "[0-9a-f]{8}") {
        prop_assert_eq!(a == b, key(&a) == key(&b));
    }

    /// A name's `id` is the same person; no name panics.
    #[test]
    fn an_id_is_its_person(name in "(sub-|ADNI|OAS|AIBL_|_ses-|[0-9]{1,3}|_S_|_MR_|\\.|[a-zé ]|-|\\PC){0,8}") {
        let person = of_cell(&name);
        prop_assert_eq!(of_cell(&person.id).key, person.key, "{:?}", person.id);
        if let Some(person) = of_path(&name) {
            prop_assert_eq!(of_cell(&person.id).key, person.key, "{:?}", person.id);
        }
    }
}
