//! A cohort small enough to be trained on in a second, and the commands that train on it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

use crate::commands::{Done, ba_train, command, finish, tiny_bundle, tiny_model};
use crate::nifti_writer::{Datatype, Scan};

pub const LABELS: [&str; 3] = ["CN", "MCI", "AD"];
const REPORTS: [&str; 5] = [
    "Memory complaints for two years. MMSE 24.",
    "A healthy volunteer of 71 years. MMSE 30.",
    "Severe atrophy of both hippocampi. MMSE 14.",
    "Word finding difficulties, slowly worse over three years.",
    "No complaints at all.",
];
/// Training cases, the classes uneven; and validation cases.
pub const TRAIN: [usize; 9] = [0, 1, 2, 0, 1, 0, 0, 1, 0];
pub const VALIDATION: [usize; 4] = [0, 1, 2, 1];

/// Artifacts and a cohort in one folder.
pub struct Study {
    pub dir: TempDir,
    pub artifacts: PathBuf,
    pub data: PathBuf,
}

impl Study {
    /// The tiny model's artifacts of a mode.
    pub fn new(mode: &str) -> Self {
        Self::of(tiny_model(), mode, &[])
    }

    /// A model's artifacts, prepared with more flags.
    pub fn of(model: &Path, mode: &str, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (artifacts, data) = (dir.path().join("training"), dir.path().join("cohort.csv"));
        prepare(model, mode, &artifacts, more).ok();
        write_cohort(dir.path());
        Self { dir, artifacts, data }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `ba-train fit` into the folder `run` of the study: small batches, one thread.
    pub fn command(&self, run: &str, args: &[&str]) -> Command {
        let mut command = command("ba-train");
        command.arg("fit").arg("--data").arg(&self.data).arg("--artifacts").arg(&self.artifacts);
        command.arg("--bundle").arg(tiny_bundle()).arg("-o").arg(self.path(run)).args(["--threads", "1"]);
        command.args(["--batch", "2", "--lr", "2e-3"]).args(args);
        command
    }

    pub fn fit(&self, run: &str, args: &[&str]) -> Done {
        finish(&mut self.command(run, args))
    }

    /// What a training ends with, for comparing.
    pub fn results(&self, run: &str) -> Vec<Vec<u8>> {
        let read = |name: &&str| fs::read(self.path(run).join(name)).unwrap_or_else(|e| panic!("{run}/{name}: {e}"));
        RESULTS.iter().map(read).collect()
    }
}

/// The files that the same training always ends with to the byte.
pub const RESULTS: [&str; 4] = ["last", "best", "adapter.safetensors", "history.jsonl"];

pub fn prepare(model: &Path, mode: &str, to: &Path, more: &[&str]) -> Done {
    let mut args: Vec<&dyn AsRef<OsStr>> = vec![&"prepare", &"--model", &model, &"--mode", &mode, &"-o", &to];
    args.extend(more.iter().map(|m| m as &dyn AsRef<OsStr>));
    ba_train(&args)
}

/// A blob on noise, larger and brighter from class to class.
pub fn scan(seed: u64, class: usize) -> Scan {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let (n, radius) = (20, 4.0 + 2.0 * class as f64);
    let inside = |i: usize| {
        let [x, y, z] = [i % n, i / n % n, i / (n * n)].map(|c| c as f64 - 9.5);
        x * x + y * y + z * z < radius * radius
    };
    let value = |i| rng.random_range(0.0..60.0) + if inside(i) { 80.0 + 30.0 * class as f64 } else { 0.0 };
    Scan {
        shape: [n; 3],
        affine: [[10.0, 0.0, 0.0, -95.0], [0.0, 10.0, 0.0, -95.0], [0.0, 0.0, 10.0, -95.0]],
        datatype: Datatype::I16,
        big: false,
        version: 1,
        scaling: (1.0, 0.0),
        values: (0..n.pow(3)).map(value).collect(),
    }
}

/// Rows of `cohort.csv`: `s0.nii` and so on, training first.
pub fn rows() -> Vec<String> {
    let splits = [vec!["train"; TRAIN.len()], vec!["validation"; VALIDATION.len()]].concat();
    let row = |(i, (class, split)): (usize, (&usize, &str))| {
        format!("s{i}.nii,r{}.txt,{},{split}", i % REPORTS.len(), LABELS[*class])
    };
    TRAIN.iter().chain(&VALIDATION).zip(splits).enumerate().map(row).collect()
}

pub fn write_rows(path: &Path, rows: &[String]) {
    fs::write(path, format!("scan,report,label,split\n{}\n", rows.join("\n"))).unwrap();
}

fn write_cohort(dir: &Path) {
    for (i, class) in TRAIN.iter().chain(&VALIDATION).enumerate() {
        fs::write(dir.join(format!("s{i}.nii")), scan(i as u64, *class).bytes()).unwrap();
    }
    for (i, text) in REPORTS.iter().enumerate() {
        fs::write(dir.join(format!("r{i}.txt")), text).unwrap();
    }
    write_rows(&dir.join("cohort.csv"), &rows());
}

/// Runs a command that can write no file of more than so many bytes: beyond, writing fails with an error and no signal.
pub fn limited(of: &Command, bytes: u64) -> Done {
    let script = format!("trap '' XFSZ; ulimit -f {} || exit 9; exec \"$@\"", bytes / 1024);
    let mut shell = Command::new("bash");
    shell.args(["-c", &script, "bash"]).arg(of.get_program()).args(of.get_args());
    shell.envs(of.get_envs().filter_map(|(name, value)| Some((name, value?))));
    finish(&mut shell)
}

/// Every tag of an SVG file is closed in its turn, attributes are quoted, and nothing bare stands in the text.
pub fn well_formed(name: &str, text: &str) {
    let (mut open, mut rest, mut elements) = (Vec::new(), text.trim(), 0);
    while let Some(at) = rest.find('<') {
        let between = &rest[..at];
        let entities = ["&amp;", "&lt;", "&gt;", "&quot;", "&apos;", "&#"];
        let sound = |i: usize| entities.iter().any(|e| between[i..].starts_with(e));
        assert!(between.match_indices('&').all(|(i, _)| sound(i)), "{name}: {between}");
        assert!(!open.is_empty() || between.trim().is_empty(), "{name}: `{between}` outside the root");
        let end = at + rest[at..].find('>').unwrap_or_else(|| panic!("{name}: a tag without an end"));
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if tag.starts_with('?') || tag.starts_with('!') {
            continue;
        }
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed.trim()), "{name}");
            continue;
        }
        elements += 1;
        assert_eq!(tag.matches('"').count() % 2, 0, "{name}: <{tag}>");
        if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().unwrap());
        }
    }
    assert!(open.is_empty() && rest.trim().is_empty() && elements > 5, "{name}: {open:?} {rest}");
}
