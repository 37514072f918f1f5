//! The two commands, as they are built, on the demo checkpoint and the demo scan, against what PyTorch recorded.

use std::path::Path;
use std::process::{Command, Output};

use brain_adapter::checkpoint::Checkpoint;
use serde_json::Value;
use support::common;

/// End to end, scan to logits. The record was computed from the volume in half precision, so this is above rounding.
const TOLERANCE: f32 = 1e-3;

fn demo(path: &str) -> String {
    support::package("examples/demo").join(path).to_str().unwrap().to_owned()
}

/// Runs a command of this package and gives what it said; its exit code must be `code`.
fn run(program: &str, args: &[&str], code: i32) -> Output {
    let out = Command::new(program).args(args).env_remove("BA_MODEL").output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{program} {args:?}\n{stderr}");
    out
}

fn json(out: &Output) -> Value {
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stdout)))
}

fn export(bundle: &Path, more: &[&str], code: i32) -> Output {
    let (model, calibration) = (demo("checkpoint"), demo("calibration"));
    let mut args = vec!["--model", &model, "--calibration", &calibration, "-o", bundle.to_str().unwrap()];
    args.extend(more);
    run(env!("CARGO_BIN_EXE_ba-export"), &args, code)
}

fn recorded(stage: &str) -> Vec<f32> {
    Checkpoint::open(demo("checkpoint/expected.safetensors")).unwrap().get(stage).unwrap().to_f32().unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

#[test]
fn export_verify_infer() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    let expected = demo("checkpoint/expected.safetensors");
    let summary = json(&export(&bundle, &["--verify", &expected, "--json"], 0));
    let stages: Vec<&str> =
        summary["verified"].as_array().unwrap().iter().map(|s| s["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["adapter", "vision", "text", "v", "t", "logits", "image_logits"]);
    assert!(summary["verified"].as_array().unwrap().iter().all(|s| s["passed"] == true));
    for part in summary["parts"].as_array().unwrap() {
        let inputs = if part["part"] == "text" { 7 } else { 4 };
        assert_eq!(part["parity"]["checked"]["inputs"], inputs, "{part}");
    }

    let (scan, report, bundle) = (demo("mni152_t1.nii.gz"), demo("report.txt"), bundle.to_str().unwrap());
    let tensors = dir.path().join("tensors.safetensors");
    let infer = env!("CARGO_BIN_EXE_ba-infer");
    let with = ["--report", &report, "--bundle", bundle, "--json", "--save-tensors", tensors.to_str().unwrap()];
    let answer = json(&run(infer, &[&[scan.as_str()], &with[..]].concat(), 0));
    common::assert_close("logits", &floats(&answer["logits"]), &recorded("logits"), TOLERANCE);
    assert_eq!(answer["label"], "CN");
    assert_eq!((answer["report"].as_str(), answer["device"].as_str()), (Some(report.as_str()), Some("cpu")));
    let sum: f64 = answer["probabilities"].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-9);

    // Every stage on the way, the volume included: conform against nibabel's.
    let saved = Checkpoint::open(&tensors).unwrap();
    for stage in ["volume", "adapter", "vision", "text", "v", "t", "logits"] {
        let found = saved.get(stage).unwrap_or_else(|| panic!("{stage} was not saved")).to_f32().unwrap();
        common::assert_close(stage, &found, &recorded(stage), TOLERANCE);
    }
    let record = Checkpoint::open(&expected).unwrap();
    let ids = |file: &Checkpoint| file.get("input_ids").unwrap().bytes().unwrap().into_owned();
    assert_eq!(ids(&saved), ids(&record));

    let alone = json(&run(infer, &[scan.as_str(), "--bundle", bundle, "--json"], 0));
    common::assert_close("image_logits", &floats(&alone["logits"]), &recorded("image_logits"), TOLERANCE);
    assert_eq!(
        (alone["label"].as_str(), &alone["report"], &alone["similarity"]),
        (Some("AD"), &Value::Null, &Value::Null)
    );
}

#[test]
fn same_export_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let manifests = ["a", "b"].map(|name| {
        let bundle = dir.path().join(name);
        export(&bundle, &["--quiet"], 0);
        std::fs::read_to_string(bundle.join("bundle.json")).unwrap()
    });
    assert_eq!(manifests[0], manifests[1]);
}

#[test]
fn a_record_of_another_model_stops_the_export() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    let other = dir.path().join("other.safetensors");
    let record = Checkpoint::open(demo("checkpoint/expected.safetensors")).unwrap();
    let mut logits = record.get("logits").unwrap().to_f32().unwrap();
    logits[1] += 0.01;
    let tensors = record.iter().map(|(name, tensor)| match name {
        "logits" => (name.to_owned(), brain_adapter::tensor::LazyTensor::from_f32(&[1, 3], &logits)),
        _ => (name.to_owned(), tensor.clone()),
    });
    brain_adapter::checkpoint::write_safetensors(&other, tensors, &Default::default()).unwrap();
    let out = export(&bundle, &["--verify", other.to_str().unwrap(), "--json"], 1);
    assert_eq!(json(&out)["error"]["code"], "verify.mismatch");
    assert!(!bundle.exists(), "nothing may be installed");
}

#[test]
fn wrong_usage_and_missing_things() {
    let infer = env!("CARGO_BIN_EXE_ba-infer");
    let out = run(infer, &["scan.nii.gz", "--bundle", &demo("no-such-bundle"), "--json"], 1);
    assert_eq!(json(&out)["error"]["code"], "bundle.not_found");
    run(infer, &[], 2);
    run(env!("CARGO_BIN_EXE_ba-export"), &["--quantize", "int3"], 2);
}
