//! Microsoft's own training runtime (onnxruntime-training 1.19.2), driven by `train.py`: for every test that has a folder of
//! training artifacts.

#![allow(dead_code, clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Python that has it: `BA_ORT119_PYTHON`, or that of `make ort119`. Says so where there is none.
pub fn python() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named = std::env::var_os("BA_ORT119_PYTHON").filter(|p| !p.is_empty()).map(PathBuf::from);
    let made = folder.join(".venv-ort119/ready").exists().then(|| folder.join(".venv-ort119/bin/python"));
    let found = named.or(made);
    if found.is_none() {
        eprintln!(
            "there is no .venv-ort119 (make ort119) and BA_ORT119_PYTHON is not set: the comparison with Microsoft's training runtime did not run"
        );
    }
    found
}

/// Trains the artifacts in a folder and writes the result to `out`; gives what the script prints. `feeds` has an array of
/// batches for each of the user's inputs, `options` are those of `train.py`.
pub fn run(python: &Path, artifacts: &Path, feeds: &Path, out: &Path, options: &[(&str, &Path)]) -> Vec<u8> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ort_training/train.py");
    let mut command = Command::new(python);
    command.arg(script).args([artifacts, feeds, out]);
    for (name, value) in options {
        command.arg(format!("--{name}")).arg(value);
    }
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

/// As [`run`]; gives the largest difference to each array of `expected`.
pub fn train(
    python: &Path,
    artifacts: &Path,
    feeds: &Path,
    expected: &Path,
    options: &[(&str, &Path)],
) -> BTreeMap<String, f64> {
    let scratch = tempfile::tempdir().unwrap();
    let options = [options, &[("expect", expected)]].concat();
    let report = run(python, artifacts, feeds, &scratch.path().join("out.npz"), &options);
    let found: BTreeMap<String, Option<f64>> = serde_json::from_slice(&report).unwrap();
    assert!(!found.is_empty());
    let number = |(name, d): (String, Option<f64>)| {
        let d = d.unwrap_or_else(|| panic!("`{name}` is missing, of another shape or not finite"));
        (name, d)
    };
    found.into_iter().map(number).collect()
}

/// Fails where a difference exceeds `most`.
pub fn assert_within(what: &str, differences: &BTreeMap<String, f64>, most: f64) {
    let far: Vec<_> = differences.iter().filter(|(_, d)| **d > most).collect();
    assert!(far.is_empty(), "{what}: further than {most} away: {far:?}");
}
