//! Lists of `ba-train`: people in two splits however they are spelled, what is said of them, and volumes.

#![cfg(unix)]

use std::fs;

use serde_json::Value;
use support::commands::{Done, command, finish, tiny_bundle};
use support::fitting::{LABELS, Study, TRAIN, VALIDATION, rows, scan};

fn eval(study: &Study, args: &[&str]) -> Done {
    let mut command = command("ba-train");
    command.arg("eval").arg("--data").arg(&study.data).arg("--bundle").arg(tiny_bundle()).args(args);
    finish(&mut command)
}

/// The study's list with a column of subjects.
fn with_subjects(study: &Study, column: &str, subject: impl Fn(usize) -> String) {
    let rows = rows().into_iter().enumerate().map(|(i, row)| format!("{row},{}\n", subject(i)));
    fs::write(&study.data, format!("scan,report,label,split,{column}\n{}", rows.collect::<String>())).unwrap();
}

/// The codes of warnings about people.
fn codes(warnings: &Value) -> Vec<&str> {
    let all = warnings.as_array().unwrap().iter().map(|w| w["code"].as_str().unwrap());
    all.filter(|code| code.starts_with("subject_")).collect()
}

#[test]
fn people_in_two_splits_are_found_in_all_spellings() {
    let study = Study::new("tlp");
    let first = TRAIN.len();
    let spellings = [
        ("004", "4"),
        ("4", "4.0"),
        ("ida4", "IDA_004"),
        ("sub-4_ses-01", "sub-4_ses-02"),
        ("OAS30044_MR_d0001", "OAS30044"),
    ];
    for (train, validation) in spellings {
        let subject = |i| match i {
            0 => train.to_owned(),
            i if i == first => validation.to_owned(),
            i => format!("p{i}"),
        };
        with_subjects(&study, "participant_id", subject);
        for done in [study.fit("run", &["--epochs", "1"]), eval(&study, &["--split", "validation"])] {
            let lines = [format!("line {}: ", first + 2), "on line 2 in train".to_owned()];
            done.fails_with_one_line("list.invalid").naming(&[&lines[0], &lines[1], "same person"]);
        }
        assert!(!study.path("run").exists());
    }
    with_subjects(&study, "Subject", |_| "n/a".to_owned());
    study.fit("run", &["--epochs", "1"]).fails_with_one_line("list.invalid").naming(&["n/a", "lines 2, 3, 4"]);
}

#[test]
fn what_is_known_of_people_is_said() {
    let study = Study::new("tlp");
    let all = TRAIN.len() + VALIDATION.len();
    // The study's list names nobody.
    let done = eval(&study, &["--split", "all", "--bootstrap", "0", "--json"]).ok();
    assert_eq!(codes(&done.json()["warnings"]), ["subject_unknown"]);
    assert!(done.stderr.contains(&format!("{all} scans taken for {all} people")), "{done:#?}");
    // Two spellings, both of training, are one person of all metrics.
    with_subjects(&study, "subject", |i| {
        if i == 0 {
            "7".into()
        } else if i == 1 {
            "007".into()
        } else {
            format!("p{i}")
        }
    });
    let json = eval(&study, &["--split", "all", "--bootstrap", "0", "--json"]).ok().json();
    assert_eq!(codes(&json["warnings"]), ["subject_alike"]);
    assert_eq!(json["split"]["subjects"], all - 1);
    // Splits that are made keep them together.
    let text = fs::read_to_string(&study.data).unwrap().replace(",train,", ",,").replace(",validation,", ",n/a,");
    fs::write(&study.data, text).unwrap();
    let done = study.fit("made", &["--epochs", "1", "--frozen-adapter", "--json"]);
    if done.code == Some(0) {
        assert_eq!(codes(&done.json()["warnings"]), ["subject_alike"]);
    } else {
        done.fails("training.data");
    }
    with_subjects(&study, "subject", |i| format!("p{i}"));
    let json = eval(&study, &["--split", "all", "--bootstrap", "0", "--json"]).ok().json();
    assert!(codes(&json["warnings"]).is_empty());
}

/// Volumes of one file train and evaluate as files of their own do.
#[test]
fn volumes_are_scans_of_their_own() {
    let study = Study::new("tlp");
    with_subjects(&study, "subject", |i| format!("p{}", i / 2));
    let classes: Vec<usize> = TRAIN.iter().chain(&VALIDATION).copied().collect();
    let (mut apart, mut together) = (String::new(), String::new());
    for pair in (0..classes.len()).step_by(2) {
        let volumes: Vec<usize> = (pair..classes.len().min(pair + 2)).collect();
        let bytes: Vec<Vec<u8>> = volumes.iter().map(|i| scan(*i as u64, classes[*i]).bytes()).collect();
        let mut all = bytes[0].clone();
        all[40..42].copy_from_slice(&4i16.to_le_bytes());
        all[48..50].copy_from_slice(&(bytes.len() as i16).to_le_bytes());
        bytes[1..].iter().for_each(|scan| all.extend(&scan[352..]));
        fs::write(study.path(&format!("all{pair}.nii")), all).unwrap();
        // One file has one label and one split.
        let (label, split) = (LABELS[pair / 2 % 3], if pair < 8 { "train" } else { "validation" });
        for (volume, i) in volumes.into_iter().enumerate() {
            apart += &format!("s{i}.nii,r{}.txt,{label},{split},p{pair},\n", i % 5);
            together += &format!("all{pair}.nii,r{}.txt,{label},{split},p{pair},{volume}\n", i % 5);
        }
    }
    let args = ["--epochs", "1", "--frozen-adapter"];
    let mut histories = Vec::new();
    for (run, rows) in [("apart", &apart), ("together", &together)] {
        fs::write(&study.data, format!("scan,report,label,split,subject,volume\n{rows}")).unwrap();
        study.fit(run, &args).ok();
        study.fit(&format!("{run}-whole"), &args[..2]).ok();
        let history = |run: &str| fs::read_to_string(study.path(run).join("history.jsonl")).unwrap();
        histories.push((history(run), history(&format!("{run}-whole"))));
        let json = eval(&study, &["--split", "all", "--bootstrap", "0", "--json"]).ok().json();
        let logits: Vec<Value> = json["rows"].as_array().unwrap().iter().map(|row| row["logits"].clone()).collect();
        histories.push((Value::from(logits).to_string(), String::new()));
    }
    assert_eq!(histories[..2], histories[2..]);
}
