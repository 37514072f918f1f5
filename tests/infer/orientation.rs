//! `--orientation`: what it changes, from the command line through the cache to the results of a list.

use std::fs;
use std::path::Path;

use support::commands::{Done, command, finish, tiny_bundle};
use support::nifti_writer::{Datatype, Scan};

/// An Analyze 7.5 pair of 3 mm voxels, brighter towards the end of each axis.
fn analyze(folder: &Path) {
    let shape = [50, 56, 53];
    let value = |i: usize| {
        let (x, y, z) = (i % 50, i / 50 % 56, i / 2800);
        (x * x * 3 + y * 40 + z * z + i * 31 % 97) as f64
    };
    let values = (0..shape.iter().product()).map(value).collect();
    let affine = [[0.0; 4]; 3];
    let scan = Scan { shape, affine, datatype: Datatype::I16, big: true, version: 1, scaling: (0.0, 0.0), values };
    let mut header = scan.bytes();
    fs::write(folder.join("a.img"), header.split_off(352)).unwrap();
    for axis in 0..3 {
        header[80 + 4 * axis..84 + 4 * axis].copy_from_slice(&3f32.to_be_bytes());
    }
    header[108..112].fill(0);
    header[254..348].fill(0);
    fs::write(folder.join("a.hdr"), &header[..348]).unwrap();
}

fn infer(folder: &Path, args: &[&str]) -> Done {
    let mut infer = command("ba-infer");
    finish(infer.current_dir(folder).args(args).arg("--bundle").arg(tiny_bundle()).arg("-q"))
}

#[test]
fn answers_and_cached_features_depend_on_it() {
    let dir = tempfile::tempdir().unwrap();
    analyze(dir.path());
    for half in ["a.hdr", "a.img"] {
        infer(dir.path(), &[half]).fails_with_one_line("nifti.not_nifti").naming(&["Analyze", "--orientation"]);
    }
    let run = |scan: &str, codes: &str| {
        infer(dir.path(), &[scan, "--orientation", codes, "--json", "--cache", "cache"]).ok().json()
    };
    let first = run("a.hdr", "LAS");
    let other = run("a.hdr", "RAS");
    assert_ne!(first["logits"], other["logits"]);
    // Either half, and the same features.
    let again = run("a.img", "las");
    assert_eq!(first["logits"], again["logits"]);
    let cached = |done: &serde_json::Value| done["run"]["from_cache"].as_array().map_or(0, Vec::len);
    assert_eq!((cached(&first), cached(&other)), (0, 0));
    assert!(cached(&again) > 0, "{again}");
}

#[test]
fn it_holds_for_a_list_and_its_results() {
    let dir = tempfile::tempdir().unwrap();
    analyze(dir.path());
    let own = support::commands::scan();
    fs::write(dir.path().join("l.csv"), format!("scan\na.img\n{}\n", own.display())).unwrap();
    let run = |codes: &str| infer(dir.path(), &["--list", "l.csv", "-o", "r.jsonl", "--orientation", codes]);
    let logits = |line: usize| {
        let lines = fs::read_to_string(dir.path().join("r.jsonl")).unwrap();
        let rows: Vec<serde_json::Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let row = rows.into_iter().find(|row| (row["scan"] == "a.img") == (line == 0)).unwrap();
        (row["logits"].clone(), row["error"]["code"].clone())
    };
    // The fixture holds an orientation of its own: with another one its row fails, and the rest go on.
    let done = run("PIR");
    assert_eq!(done.code, Some(1), "{done:#?}");
    let first = logits(0).0;
    assert!(first.is_array());
    assert_eq!(logits(1).1, "nifti.orientation");
    // Another orientation is another answer, not a row that is done.
    run("AIR");
    assert_ne!(logits(0).0, first);
}
