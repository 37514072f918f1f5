//! `ba-train prepare`, and folders of artifacts that are not what it wrote.

#![cfg(unix)]

use std::fs;
use std::path::Path;

use brain_adapter::bundle::sha256_of;
use brain_adapter::checkpoint::{Checkpoint, TrainingState};
use brain_adapter::tensor::LazyTensor;
use brain_adapter::train::artifacts::Artifacts;
use serde_json::{Value, json};
use support::commands::{self, names, save, snapshot, tensors, tiny_model, write_model};
use support::fitting::{self, Study, prepare};

const FILES: [&str; 6] = [
    "checkpoint",
    "eval_model.onnx",
    "frozen.safetensors",
    "optimizer_model.onnx",
    "training.json",
    "training_model.onnx",
];

#[test]
fn the_same_artifacts_again() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    let summary = prepare(tiny_model(), "tlp", &one, &["--json"]).ok().json();
    assert_eq!(summary["warnings"], json!([]));
    assert_eq!(summary["mode"], "tlp");
    assert_eq!(names(&one), FILES);
    prepare(tiny_model(), "tlp", &two, &[]).ok();
    assert_eq!(snapshot(&one), snapshot(&two));
    // Old artifacts, of another mode too, are replaced; nothing is left next to them.
    prepare(tiny_model(), "mri", &two, &["--norm-statistics", "running"]).ok();
    let artifacts = Artifacts::open(&two).unwrap();
    assert_eq!(artifacts.manifest.mode.name(), "mri");
    assert_eq!(names(dir.path()), ["one", "two"]);
    // What is trained and what is not are together what the checkpoint held, bit for bit.
    let state = TrainingState::open(one.join("checkpoint")).unwrap();
    let source = Checkpoint::open(tiny_model().join("adapter.safetensors")).unwrap();
    assert_eq!(state.trainable.len() + state.frozen.len(), source.iter().count());
    for (name, tensor) in state.trainable.iter().chain(&state.frozen) {
        assert_eq!(tensor.bytes().unwrap(), source.get(name).unwrap().bytes().unwrap(), "{name}");
    }
}

#[test]
fn what_is_not_ours_stays() {
    let dir = tempfile::tempdir().unwrap();
    let foreign: [(&str, &[(&str, &str)]); 4] = [
        ("notes", &[("notes.txt", "mine")]),
        ("other", &[("training.json", "{\"epochs\": 3}")]),
        ("empty", &[("training.json", "")]),
        ("checkpoint", &[("checkpoint", "mine")]),
    ];
    for (name, files) in foreign {
        let folder = dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        files.iter().for_each(|(file, text)| fs::write(folder.join(file), text).unwrap());
        let before = snapshot(&folder);
        prepare(tiny_model(), "tlp", &folder, &[]).fails_with_one_line("output.exists").naming(&[files[0].0]);
        assert_eq!(snapshot(&folder), before);
    }
    let ours = dir.path().join("ours");
    prepare(tiny_model(), "tlp", &ours, &[]).ok();
    // A training in it is worth more than new artifacts.
    fs::create_dir(ours.join("run")).unwrap();
    prepare(tiny_model(), "tlp", &ours, &[]).fails_with_one_line("output.exists").naming(&["run"]);
    assert_eq!(names(&ours).len(), 7);
    fs::write(dir.path().join("file"), "").unwrap();
    prepare(tiny_model(), "tlp", &dir.path().join("file"), &[]).fails_with_one_line("io");
    prepare(tiny_model(), "tlp", &dir.path().join("file/below"), &[]).fails_with_one_line("io");
    prepare(tiny_model(), "tlp", Path::new("/"), &[]).fails_with_one_line("output.exists");
    // What a killed one left, under this name, goes.
    let left = dir.path().join(".new.partial-ba-0123456789");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("frozen.safetensors"), "half").unwrap();
    prepare(tiny_model(), "tlp", &dir.path().join("new"), &[]).ok();
    assert!(!left.exists());
}

type Tensors = Vec<(String, LazyTensor)>;

#[test]
fn checkpoints_that_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let (model, output) = (dir.path().join("model"), dir.path().join("training"));
    write_model(&model, "tiny", "tiny");
    let heads = |change: &dyn Fn(&mut Tensors)| {
        let mut all = tensors("tiny", "heads/");
        change(&mut all);
        save(&model.join("adapter.safetensors"), all);
    };
    heads(&|all| all.retain(|(name, _)| !name.starts_with("image_classifier.")));
    prepare(&model, "mri", &output, &[]).fails_with_one_line("checkpoint.tensors").naming(&["image_classifier.weight"]);
    prepare(&model, "tlp", &output, &[]).ok();
    fs::remove_dir_all(&output).unwrap();
    heads(&|all| all.retain(|(name, _)| name != "logit_scale"));
    prepare(&model, "tlp", &output, &[]).fails_with_one_line("checkpoint.tensors").naming(&["logit_scale"]);
    prepare(&model, "mri", &output, &[]).ok();
    fs::remove_dir_all(&output).unwrap();
    for (name, value, word) in
        [("classifier.weight", f32::NAN, "classifier.weight"), ("logit_scale", f32::INFINITY, "logit_scale")]
    {
        heads(&|all| {
            let (_, tensor) = all.iter_mut().find(|(n, _)| n == name).unwrap();
            let mut values = tensor.to_f32().unwrap();
            values[0] = value;
            *tensor = LazyTensor::from_f32(tensor.shape(), &values);
        });
        let done = prepare(&model, "tlp", &output, &[]).naming(&[word]);
        assert_eq!(done.code, Some(1), "{done:#?}");
    }
    assert_eq!(names(dir.path()), ["model"]);
}

/// A manifest that a hostile person wrote, and files that are not those that it lists.
#[test]
fn damaged_artifacts_are_refused() {
    let study = Study::new("tlp");
    let manifest = study.artifacts.join("training.json");
    let whole = fs::read(&manifest).unwrap();
    let fit = || study.fit("run", &["--epochs", "1"]);
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut json: Value = serde_json::from_slice(&whole).unwrap();
        change(&mut json);
        fs::write(&manifest, json.to_string()).unwrap();
    };
    let refused = |change: &dyn Fn(&mut Value), words: &[&str]| {
        changed(change);
        fit().fails_with_one_line("training.artifacts").naming(words);
    };
    let hostile_config = |change: &dyn Fn(&mut Value)| {
        changed(&|m| change(&mut m["config"]));
        let done = fit();
        assert_eq!(done.code, Some(1), "{done:#?}");
        assert!(!done.stderr.contains("panicked") && done.stderr.lines().count() == 1, "{done:#?}");
    };
    refused(&|m| m["format"] = json!(2), &["format 2"]);
    refused(&|m| m["surprise"] = json!(1), &["surprise"]);
    refused(&|m| m["mode"] = json!("all"), &["training.json"]);
    refused(&|m| m["format"] = json!(1e300), &["training.json"]);
    for name in ["../checkpoint", "/etc/hostname", "..", ".", "", "a/b", "checkpoint\u{0}", "x\u{1b}[2J"] {
        refused(&|m| m["files"][0]["name"] = json!(name), &["training.json", "lists"]);
    }
    refused(&|m| m["files"] = json!([]), &["lists"]);
    refused(&|m| drop(m["files"].as_array_mut().unwrap().remove(2)), &["lists"]);
    refused(
        &|m| m["files"][1]["sha256"] = json!("00"),
        &["eval_model.onnx", "differs from what training.json recorded"],
    );
    refused(&|m| m["config"]["projection"]["dim"] = json!(41), &["found", "expected"]);
    refused(&|m| m["mode"] = json!("fpm"), &["checkpoint"]);
    hostile_config(&|c| c["volume"]["size"] = json!(u64::MAX));
    hostile_config(&|c| c["volume"]["size"] = json!(1u64 << 31));
    hostile_config(&|c| c["vision"]["layers"] = json!(4_000_000_000u64));
    hostile_config(&|c| c["vision"]["layers"] = json!(60_000));
    hostile_config(&|c| c["vision"]["hidden"] = json!(0));
    hostile_config(&|c| c["labels"] = json!([]));
    for text in ["", "[]", "{", "\u{feff}{}", &"[".repeat(100_000)] {
        fs::write(&manifest, text).unwrap();
        fit().fails_with_one_line("training.artifacts").naming(&["training.json"]);
    }
    fs::remove_file(&manifest).unwrap();
    fit().fails_with_one_line("training.artifacts").naming(&["ba-train prepare"]);
    fs::write(&manifest, &whole).unwrap();
    damaged_and_missing_files_are_refused(&study);
    assert!(!study.path("run").exists());
    fit().ok();
}

/// Each file that the manifest lists, with one bit changed and then gone.
fn damaged_and_missing_files_are_refused(study: &Study) {
    let fit = || study.fit("run", &["--epochs", "1"]);
    for name in FILES.iter().filter(|n| **n != "training.json") {
        let path = study.artifacts.join(name);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        fs::write(&path, &bad).unwrap();
        fit().fails_with_one_line("training.artifacts").naming(&[name]);
        fs::remove_file(&path).unwrap();
        fit().fails_with_one_line("training.artifacts").naming(&[name]);
        fs::write(&path, good).unwrap();
    }
}

/// A checkpoint that was put there on purpose, with its hash: another shape is refused before anything runs.
#[test]
fn a_checkpoint_of_another_model_is_refused() {
    let study = Study::new("mri");
    let path = study.artifacts.join("checkpoint");
    let mut state = TrainingState::open(&path).unwrap();
    let name = state.trainable.keys().next().unwrap().clone();
    state.trainable.insert(name.clone(), LazyTensor::from_f32(&[3], &[0.0; 3]));
    state.write(&path).unwrap();
    let manifest = study.artifacts.join("training.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    json["files"][0]["sha256"] = json!(sha256_of(&path).unwrap());
    fs::write(&manifest, json.to_string()).unwrap();
    study.fit("run", &["--epochs", "1"]).fails_with_one_line("training.artifacts").naming(&[&name, "[3]"]);
}

/// A limit on the size of files stands for a full disk: old artifacts stay, new ones do not appear in part.
#[test]
fn a_full_disk_leaves_old_artifacts_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    prepare(tiny_model(), "tlp", &old, &[]).ok();
    let before = snapshot(&old);
    let size = |name: &str| fs::metadata(old.join(name)).unwrap().len();
    for bytes in FILES.map(size).iter().map(|n| n / 2).filter(|n| *n >= 1024) {
        for target in [&old, &new] {
            let mut command = commands::command("ba-train");
            command.arg("prepare").arg("--model").arg(tiny_model()).args(["--mode", "mri", "-o"]).arg(target);
            fitting::limited(&command, bytes).fails("io");
        }
        assert_eq!(snapshot(&old), before);
        assert_eq!(names(dir.path()), ["old"]);
    }
}
