//! Oracles: missing ones fail in a sentence, skipped ones are named, and tests ask for them in one place.

use std::collections::BTreeSet;

use support::oracle::{Oracle, names};

use super::source::{read, report, rust_files};

#[test]
fn a_missing_oracle_fails_unless_it_is_skipped() {
    let none = BTreeSet::new();
    for oracle in Oracle::ALL {
        assert_eq!(oracle.judge(Some(7), &none), Ok(Some(7)));
        let sentence = oracle.judge(None::<()>, &none).unwrap_err();
        assert!(sentence.contains("`make test`") && sentence.contains(&format!("BA_SKIP={}", oracle.name())));
        assert!(
            !sentence.contains(['\n', '.']) || oracle.name() != "python" || sentence.contains(".txt"),
            "{sentence}"
        );
        // Skipped is skipped, also where it is there.
        let skipped = names(oracle.name());
        assert_eq!((oracle.judge(Some(7), &skipped), oracle.judge(None::<u8>, &skipped)), (Ok(None), Ok(None)));
    }
}

#[test]
fn names_in_the_list_are_checked() {
    names(&std::env::var("BA_SKIP").unwrap_or_default());
    assert_eq!(names(" trt,,torch "), ["torch", "trt"].map(str::to_owned).into());
    let unknown = std::panic::catch_unwind(|| names("trt,pyhton")).unwrap_err();
    let words = unknown.downcast_ref::<String>().unwrap();
    assert!(words.contains("`pyhton`") && Oracle::ALL.iter().all(|oracle| words.contains(oracle.name())), "{words}");
}

/// Who asks the environment for an interpreter could go on without one.
#[test]
fn tests_ask_for_oracles_in_one_place() {
    let variables = ["PYTHON", "ORT119_PYTHON", "TRT_PYTHON", "TORCH_PYTHON", "SHARED"];
    let variables = variables.map(|name| format!("\"BA_{name}\""));
    let others = rust_files("tests").into_iter().filter(|file| file != "tests/support/src/oracle.rs");
    let asks = |file: &String| variables.iter().any(|name| read(file).contains(name));
    report(&others.filter(asks).map(|file| format!("{file} asks for an oracle itself")).collect::<Vec<_>>());
}
