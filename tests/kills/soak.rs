//! Hours in one process: memory, file descriptors and threads stay what they are. Short by default; `BA_SOAK=long` runs
//! 3,000 rows and 500 openings.

use std::fs;
use std::path::Path;

use brain_adapter::infer::{Options, Predictor};
use support::commands::{fixture, scan, tiny_bundle};
use support::process::alone;

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    resident_kib: u64,
    descriptors: usize,
    threads: u64,
}

fn held() -> Held {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().count();
    Held { resident_kib: number("VmRSS:"), descriptors, threads: number("Threads:") }
}

/// Runs `step` so many times and compares what is held after a tenth of them with the end.
fn flat(what: &str, times: usize, room_kib: u64, mut step: impl FnMut(usize)) {
    let warm = (times / 10).max(5);
    (0..warm).for_each(&mut step);
    let before = held();
    (warm..times).for_each(&mut step);
    let after = held();
    println!("{what}, {times} times: {before:?}, then {after:?}");
    assert_eq!(before.descriptors, after.descriptors, "{what}");
    assert_eq!(before.threads, after.threads, "{what}");
    let grown = after.resident_kib.saturating_sub(before.resident_kib);
    assert!(grown <= room_kib, "{what}: {grown} KiB more after {} rounds", times - warm);
}

fn open() -> Predictor {
    Predictor::open(tiny_bundle(), Options { threads: Some(1), ..Options::default() }).unwrap()
}

/// A scan and a report of their own each time, a bad one among them.
fn row(predictor: &Predictor, i: usize, folder: &Path) {
    let scans = [scan(), fixture("tiny-gqa-bf16-sharded/scan.nii.gz"), folder.join("none.nii.gz")];
    let text = format!("Memory complaints for {} months. MMSE {}.", i, i % 31);
    let report = predictor.encode_report(&text).unwrap();
    let outcome = predictor.reader().read(&scans[i % 3]).and_then(|scan| predictor.predict(scan, Some(&report)));
    assert_eq!(outcome.is_ok(), i % 3 != 2, "{i}");
}

#[test]
fn rows_and_openings() {
    alone(module_path!(), "rows_and_openings", || {
        let long = std::env::var("BA_SOAK").is_ok_and(|v| v == "long");
        let (rows, openings) = if long { (3000, 500) } else { (150, 25) };
        let folder = tempfile::tempdir().unwrap();
        let predictor = open();
        flat("rows", rows, 4 << 10, |i| row(&predictor, i, folder.path()));
        drop(predictor);
        flat("openings", openings, 8 << 10, |i| row(&open(), 3 * i, folder.path()));
    });
}
