//! `--list -o` and `--cache`: killed, alone and two at once.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::commands::{command, finish, fixture, names, scan, tiny_bundle};
use tempfile::TempDir;

use super::harness::{Target, kill};

const ROWS: usize = 10;

/// A cohort of rows that all have another report, every other one another scan.
fn cohort() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(scan(), dir.path().join("a.nii.gz")).unwrap();
    fs::copy(fixture("tiny-gqa-bf16-sharded/scan.nii.gz"), dir.path().join("b.nii.gz")).unwrap();
    let mut list = "scan,report\n".to_owned();
    for i in 0..ROWS {
        fs::write(dir.path().join(format!("r{i}.txt")), format!("Memory complaints, MMSE {}.", 30 - i)).unwrap();
        list += &format!("{}.nii.gz,r{i}.txt\n", ["a", "b"][i % 2]);
    }
    fs::write(dir.path().join("list.csv"), list).unwrap();
    dir
}

fn infer(dir: &Path, args: &[&str]) -> Command {
    let mut command = command("ba-infer");
    command.arg("--list").arg(dir.join("list.csv")).arg("--bundle").arg(tiny_bundle()).args(["-q", "--threads", "1"]);
    command.args(args).current_dir(dir);
    command
}

/// Logits by scan and report; of whole lines alone.
fn logits(text: &str) -> BTreeMap<(String, String), String> {
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let entry = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let name = |key: &str| value[key].as_str().unwrap().to_owned();
        ((name("scan"), name("report")), value["logits"].to_string())
    };
    lines.map(entry).collect()
}

fn expected(dir: &Path) -> BTreeMap<(String, String), String> {
    let found = logits(&finish(&mut infer(dir, &["--json"])).ok().stdout);
    assert_eq!(found.len(), ROWS);
    found
}

fn lists(output: &str, processes: usize, seed: u64) {
    let dir = cohort();
    let expected = expected(dir.path());
    let lines: PathBuf = dir.path().join(output).with_extension("jsonl");
    let mut next = || {
        // A run that was complete would have nothing left to do.
        if logits(&fs::read_to_string(&lines).unwrap_or_default()).len() == ROWS {
            let _ = fs::remove_file(&lines);
        }
        infer(dir.path(), &["-o", output])
    };
    let mut check = || {
        for (row, found) in logits(&fs::read_to_string(&lines).unwrap_or_default()) {
            assert_eq!(found, expected[&row], "{row:?}");
        }
    };
    kill(&mut Target { command: &mut next, check: &mut check, processes, ends: &[0, 1][..processes] }, seed);
    finish(&mut infer(dir.path(), &["-o", output])).ok();
    assert_eq!(logits(&fs::read_to_string(&lines).unwrap()), expected);
    if output.ends_with(".csv") {
        assert_eq!(fs::read_to_string(dir.path().join(output)).unwrap().lines().count(), ROWS + 1);
    }
    let left = names(dir.path()).into_iter().filter(|n| n.contains(".writing-")).count();
    assert_eq!(left, 0, "{:?}", names(dir.path()));
}

#[test]
fn a_list() {
    lists("out.jsonl", 1, 11);
}

#[test]
fn two_runs_of_one_list() {
    lists("out.csv", 2, 12);
}

fn caches(processes: usize, seed: u64) {
    let dir = cohort();
    let expected = expected(dir.path());
    let cache = dir.path().join("cache");
    let mut turn = 0;
    let mut next = || {
        turn += 1;
        // From nothing every fourth time: otherwise all is there and nothing is written.
        if turn % 4 == 0 && processes == 1 {
            let _ = fs::remove_dir_all(&cache);
        }
        infer(dir.path(), &["--json", "--cache", "cache"])
    };
    let mut check = || {
        let found = finish(&mut infer(dir.path(), &["--json", "--cache", "cache"])).ok();
        assert_eq!(logits(&found.stdout), expected);
        // The records are taken away one by one, so that later runs write again.
        if let Some(entry) = fs::read_dir(cache.join("features")).unwrap().next() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    };
    kill(&mut Target { command: &mut next, check: &mut check, processes, ends: &[0] }, seed);
    let left: Vec<String> = names(&cache.join("features")).into_iter().filter(|n| n.starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_cache() {
    caches(1, 13);
}

#[test]
fn two_runs_of_one_cache() {
    caches(2, 14);
}
