//! Quality warnings through `ba-infer`: in JSON, CSV and the cache, and refused by `--strict-quality`.

#![cfg(unix)]

use std::fs;
use std::path::Path;

use serde_json::Value;
use support::commands::{Done, command, finish, tiny_bundle};
use support::nifti_writer::{Datatype, Scan};
use support::phantom::{Cut, Frame, Head, Random};

/// A healthy head `good.nii`, and the same with one voxel a hundred times as bright, `hot.nii`; a report and a list.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(7);
    let head = Head { radii: [74.0, 92.0, 85.0], cut: Cut::Whole, bias: 0.1, noise: 0.02, phase: 1.0 };
    let axes = ([0, 1, 2], [true, false, false]);
    let frame = Frame::around(head.radii, [0.0, 0.0, 8.0], axes, ([5.0; 3], 4.0), [0.0; 3]);
    let values = frame.scan(|p| head.signal(p, &mut random));
    let (shape, affine, scaling) = (frame.shape, frame.affine(), (1.0, 0.0));
    let good = Scan { shape, affine, datatype: Datatype::F32, big: false, version: 1, scaling, values };
    fs::write(dir.path().join("good.nii"), good.bytes()).unwrap();
    let mut hot = good;
    let middle = hot.values.len() / 2;
    hot.values[middle] = 9e4;
    fs::write(dir.path().join("hot.nii"), hot.bytes()).unwrap();
    fs::write(dir.path().join("r.txt"), "Memory complaints.").unwrap();
    fs::write(dir.path().join("list.csv"), "scan,report\ngood.nii,r.txt\nhot.nii,r.txt\n").unwrap();
    dir
}

fn run(dir: &Path, args: &[&str]) -> Done {
    finish(command("ba-infer").arg("--bundle").arg(tiny_bundle()).args(args).current_dir(dir))
}

fn codes(result: &Value) -> Vec<&str> {
    result["warnings"].as_array().unwrap().iter().map(|w| w["code"].as_str().unwrap()).collect()
}

#[test]
fn figures_always_and_refusal_on_demand() {
    let dir = folder();
    let one = |scan: &str, args: &[&str]| {
        run(dir.path(), &[&[scan, "--report", "r.txt", "--json", "--cache", "cache"], args].concat())
    };
    let strict = ["--strict-quality"];
    let good = one("good.nii", &[]).ok().json();
    assert_eq!((codes(&good), good["quality"]["extent_mm"][0].as_f64()), (vec![], Some(160.0)), "{good}");
    let hot = one("hot.nii", &[]).ok().json();
    assert_eq!(codes(&hot), ["intensity_range"]);
    assert_eq!(hot["quality"]["max"], 9e4);
    assert!(hot["warnings"][0]["message"].as_str().unwrap().contains("volume.clip"), "{hot}");

    // Twice: both are in the cache, and nothing is different.
    for (scan, first) in [("good.nii", &good), ("hot.nii", &hot)] {
        let again = one(scan, &[]).ok().json();
        assert_eq!(again["run"]["from_cache"], serde_json::json!(["vision", "text"]), "{again}");
        for same in ["label", "logits", "warnings", "quality"] {
            assert_eq!(again[same], first[same], "{scan} {same}");
        }
    }
    assert_eq!(one("good.nii", &strict).ok().json()["logits"], good["logits"]);
    // From the cache and from the file: refused just the same.
    for args in [&["hot.nii", "--report", "r.txt", "--cache", "cache"][..], &["hot.nii", "--report", "r.txt"]] {
        let done = run(dir.path(), &[args, &["--json"], &strict[..]].concat());
        let error = done.json()["error"].clone();
        assert_eq!(
            (done.code, error["code"].as_str(), error["path"].as_str()),
            (Some(1), Some("intensity_range"), Some("hot.nii"))
        );
        assert!(error["message"].as_str().unwrap().contains("--strict-quality"), "{error}");
        assert!(done.stderr.contains("error[intensity_range]: hot.nii: "), "{done:#?}");
    }
}

#[test]
fn rows_are_refused_one_by_one() {
    let dir = folder();
    let rows = |file: &str| -> Vec<Value> {
        let text = fs::read_to_string(dir.path().join(file)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    run(dir.path(), &["--list", "list.csv", "-o", "out.csv"]).ok();
    let table = fs::read_to_string(dir.path().join("out.csv")).unwrap();
    assert!(table.lines().nth(2).unwrap().ends_with(",intensity_range,"), "{table}");
    assert!(rows("out.jsonl").iter().all(|row| row["quality"]["sampled_voxels"].as_u64() > Some(0)));

    // An answer that was given without the option is not one with it; the refusal stands in its place.
    let done = run(dir.path(), &["--list", "list.csv", "-o", "out.csv", "--strict-quality"]).fails("list.partial");
    assert!(done.stderr.contains("line 3: error[intensity_range]"), "{done:#?}");
    let table = fs::read_to_string(dir.path().join("out.csv")).unwrap();
    let [good, hot] = [1, 2].map(|row| table.lines().nth(row).unwrap());
    assert!(
        good.ends_with(",,") && hot.ends_with(",,intensity_range") && hot.starts_with("hot.nii,r.txt,,"),
        "{table}"
    );
    // The file is one of ours still: the same call answers nothing twice, the plain one answers the refused row.
    let done = run(dir.path(), &["--list", "list.csv", "-o", "out.csv", "--strict-quality"]).fails("list.partial");
    assert!(done.stderr.contains("skipped 1 row with a result"), "{done:#?}");
    run(dir.path(), &["--list", "list.csv", "-o", "out.csv"]).ok();
}
