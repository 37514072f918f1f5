//! What the integration tests share: fixtures, model folders and bundles, the commands as child processes, NIfTI files,
//! an independent reference of the model, machines with GPUs that are not there.

#![allow(clippy::unwrap_used)]

pub mod commands;
pub mod common;
pub mod devices;
pub mod drafts;
pub mod fitting;
pub mod forms;
pub mod formula;
pub mod large;
pub mod mgh_writer;
pub mod nifti_corpus;
pub mod nifti_writer;
pub mod oracle;
pub mod ort_training;
pub mod phantom;
pub mod process;
pub mod reduced;
pub mod reference;
pub mod rules;
#[cfg(target_os = "linux")]
pub mod stopped;
pub mod trained;
pub mod training;

use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes a line to stderr past the test harness, which would swallow it.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A path in the package that is tested.
pub fn package(path: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("tests/support of the package");
    root.join(path)
}

/// The folder of the profile in Cargo's target folder: the programs lie in it, the tests in its `deps`.
fn profile() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    test.ancestors().nth(2).expect("a test program lies in `deps`").to_path_buf()
}

/// A new folder in Cargo's target folder, for what is made once in a program and never dropped.
pub fn lasting() -> tempfile::TempDir {
    let folder = profile().join("tmp");
    std::fs::create_dir_all(&folder).unwrap();
    tempfile::tempdir_in(folder).unwrap()
}

/// The path of one of the package's programs, which Cargo builds before the tests.
pub fn program(name: &str) -> PathBuf {
    profile().join(name).with_extension(std::env::consts::EXE_EXTENSION)
}
