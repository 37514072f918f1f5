//! The recorded PyTorch models through both commands: scan and report in, every stage as recorded out; and hostile
//! adapters, which leave nothing behind.

#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};

use brain_adapter::checkpoint::Checkpoint;
use brain_adapter::tensor::LazyTensor;
use serde_json::Value;
use support::commands::{
    self, ba_export, ba_infer, command, finish, fixture, names, save, tensors, tiny_model, write_model,
};
use support::package;
use support::{common, oracle};

const TOLERANCE: f32 = 1e-4;

/// Exports with `--verify`, then infers the first recorded item, and compares every stage: those of the image only
/// where the scan is the one that was recorded.
fn check(model: &[&str], expected: &Path, scan: &Path, report: &str) {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("onnx");
    let mut export = command("ba-export");
    export.args(model).arg("--verify").arg(expected).arg("-o").arg(&bundle).arg("--json");
    let summary = finish(&mut export).ok().json();
    let verified = summary["verified"].as_array().unwrap();
    assert!(verified.len() >= 6 && verified.iter().all(|c| c["passed"] == true), "{summary:#}");
    let (text, saved) = (dir.path().join("r.txt"), dir.path().join("t.safetensors"));
    fs::write(&text, report).unwrap();
    let done = ba_infer(&[&scan, &"--report", &text, &"--bundle", &bundle, &"--json", &"--save-tensors", &saved]).ok();
    let (found, recorded) = (Checkpoint::open(&saved).unwrap(), Checkpoint::open(expected).unwrap());
    let own_scan = !expected.to_string_lossy().contains("bottleneck3d");
    let image: &[&str] = if own_scan { &["volume", "adapter", "vision", "v", "logits", "image_logits"] } else { &[] };
    for stage in ["text", "t"].iter().chain(image) {
        let (found, recorded) = (values(&found, stage), values(&recorded, stage));
        common::assert_close(stage, &found, &recorded[..found.len()], TOLERANCE);
    }
    // Behind the report's own tokens, the record has padding.
    let (ids, mask) = (values(&found, "input_ids"), values(&recorded, "attention_mask"));
    let width = recorded.get("attention_mask").unwrap().shape()[1];
    assert_eq!(ids.len(), mask[..width].iter().filter(|m| **m == 1.0).count());
    assert_eq!(ids, values(&recorded, "input_ids")[..ids.len()]);
    assert_softmax(&done.json());
}

fn values(file: &Checkpoint, name: &str) -> Vec<f32> {
    file.get(name).unwrap_or_else(|| panic!("no {name}")).to_f32().unwrap()
}

fn assert_softmax(json: &Value) {
    let logits: Vec<f64> = json["logits"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    let sum: f64 = logits.iter().map(|l| l.exp()).sum();
    let mut best = ("", 0.0);
    for (label, logit) in ["CN", "MCI", "AD"].into_iter().zip(&logits) {
        let (found, expected) = (json["probabilities"][label].as_f64().unwrap(), logit.exp() / sum);
        assert!((found - expected).abs() < 1e-6, "{json:#}");
        best = if expected > best.1 { (label, expected) } else { best };
    }
    assert_eq!(json["label"], best.0);
    assert_eq!((json["device"].as_str(), json["probabilities"].as_object().unwrap().len()), (Some("cpu"), 3));
}

fn reports(folder: &Path) -> String {
    let reports: Vec<String> = serde_json::from_slice(&fs::read(folder.join("reports.json")).unwrap()).unwrap();
    reports[0].clone()
}

#[test]
fn committed_models() {
    let rows = [
        ("tiny", "tiny", "tiny"),
        ("tiny-gqa-bf16-sharded", "tiny-gqa-bf16-sharded", "tiny-gqa-bf16-sharded"),
        ("tiny-bottleneck3d", "tiny", "tiny"),
    ];
    for (name, towers, scan) in rows {
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path(), name, towers);
        let model = dir.path().to_str().unwrap();
        let scan = fixture(scan).join("scan.nii.gz");
        check(&["--model", model], &fixture(name).join("expected.safetensors"), &scan, &reports(&fixture(name)));
    }
}

/// The real layouts, as PyTorch and others wrote them.
#[test]
fn shared_models() {
    let Some(shared) = oracle::shared("fixtures") else { return };
    let at = |name: &str| shared.join(name).to_str().unwrap().to_owned();
    let (tiny, gqa, other) = (at("tiny"), at("tiny-gqa-bf16-sharded"), at("tiny-bottleneck3d"));
    let scan = shared.join("tiny/scan.nii.gz");
    let run = |model: &[&str], name: &str, scan: &Path| {
        check(model, &shared.join(name).join("expected.safetensors"), scan, &reports(&shared.join(name)));
    };
    run(&["--model", &tiny], "tiny", &scan);
    run(&["--model", &gqa], "tiny-gqa-bf16-sharded", &shared.join("tiny-gqa-bf16-sharded/scan.nii.gz"));
    let (m3d, llama) = (format!("{tiny}/m3d"), format!("{tiny}/llama"));
    run(&["--model", &other, "--vision", &m3d, "--text", &llama], "tiny-bottleneck3d", &scan);
    run(&["--model", &tiny, "--text", &at("tiny-meta-layout")], "tiny", &scan);
    let file = format!("{tiny}/m3d/pretrained_ViT.bin");
    let config = format!("{tiny}/config.json");
    run(
        &[
            "--model",
            &other,
            "--config",
            &config,
            "--adapter",
            &format!("{tiny}/adapter.pt"),
            "--vision",
            &file,
            "--text",
            &llama,
        ],
        "tiny",
        &scan,
    );
}

/// The same adapter in every dress that PyTorch has given it.
#[test]
fn adapters_in_other_layouts() {
    let folder = package("tests/data/checkpoint/legacy-pickle");
    let files = [
        "adapter_legacy.pt",
        "adapter_views.pt",
        "adapter_views_legacy.pt",
        "checkpoint_dp.pt",
        "checkpoint_dp_legacy.pt",
        "expected.safetensors",
    ];
    let (model, mut manifests) = (tiny_model().to_str().unwrap(), Vec::new());
    for file in files {
        let adapter = folder.join(file);
        let expected = fixture("tiny/expected.safetensors");
        check(
            &["--model", model, "--adapter", adapter.to_str().unwrap()],
            &expected,
            &fixture("tiny/scan.nii.gz"),
            &reports(&fixture("tiny")),
        );
        let dir = tempfile::tempdir().unwrap();
        ba_export(&[&"--model", &model, &"--adapter", &adapter, &"-o", &dir.path().join("onnx")]).ok();
        let manifest = commands::manifest(&dir.path().join("onnx"));
        manifests.push(manifest["files"].clone());
    }
    assert!(manifests.iter().all(|m| *m == manifests[0]), "the layouts give different graphs");
}

/// Exports `adapter` in an empty folder; the error has `code` and these words, and nothing is left there.
fn refused(adapter: &Path, code: &str, words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let mut export = command("ba-export");
    export.arg("--model").arg(tiny_model()).arg("--adapter").arg(adapter).arg("-o").arg("onnx");
    let done = finish(export.current_dir(dir.path()));
    let file = adapter.file_name().unwrap().to_str().unwrap();
    done.fails_with_one_line(code).naming(&[file]).naming(words);
    assert!(names(dir.path()).is_empty(), "{file} left {:?}", names(dir.path()));
    for place in [dir.path(), adapter.parent().unwrap(), Path::new(".")] {
        assert!(!place.join("PWNED").exists(), "{file} ran its code");
    }
}

#[test]
fn hostile_adapters() {
    let folder = package("tests/data/checkpoint/hostile");
    let rows: &[(&str, &str, &[&str])] = &[
        ("evil_reduce.pt", "checkpoint.unsafe-pickle", &["posix.system"]),
        ("evil_reduce_legacy.pt", "checkpoint.unsafe-pickle", &["posix.system"]),
        ("evil_bare_pickle.bin", "checkpoint.unsafe-pickle", &["eval"]),
        ("truncated.pt", "checkpoint.truncated", &[]),
        ("empty.pt", "checkpoint.", &[]),
        ("not_a_checkpoint.pt", "checkpoint.format", &["HTML"]),
        ("lfs_pointer.bin", "checkpoint.format", &["LFS"]),
        ("short_storage.pt", "checkpoint.", &[]),
        ("missing_storage.pt", "checkpoint.", &[]),
        ("offset_past_end.pt", "checkpoint.corrupt", &[]),
        ("overlap.safetensors", "checkpoint.corrupt", &[]),
        ("hole.safetensors", "checkpoint.corrupt", &[]),
        ("out_of_range.safetensors", "checkpoint.", &[]),
        ("reversed_offsets.safetensors", "checkpoint.corrupt", &[]),
        ("size_mismatch.safetensors", "checkpoint.corrupt", &[]),
        ("shape_overflow.safetensors", "checkpoint.corrupt", &[]),
        ("header_2e60.safetensors", "checkpoint.", &[]),
        ("unknown_dtype.safetensors", "checkpoint.", &[]),
        ("tiny_file.safetensors", "checkpoint.", &[]),
    ];
    assert_eq!(rows.len(), fs::read_dir(&folder).unwrap().count(), "a file has no row, or a row no file");
    for (file, code, words) in rows {
        refused_by_class(&folder.join(file), code, words);
    }
}

/// As [`refused`]; a code that ends in a dot stands for its whole class.
fn refused_by_class(adapter: &Path, code: &str, words: &[&str]) {
    if !code.ends_with('.') {
        return refused(adapter, code, words);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut export = command("ba-export");
    export.arg("--model").arg(tiny_model()).arg("--adapter").arg(adapter).arg("-o").arg(dir.path().join("onnx"));
    let done = finish(&mut export);
    let line = done.stderr.strip_prefix("error[").unwrap_or_else(|| panic!("{done:#?}"));
    assert!(line.starts_with(code), "{done:#?}");
    let code = line.split(']').next().unwrap();
    refused(adapter, code, words);
}

/// The trained tensors by name.
type Heads = Vec<(String, LazyTensor)>;

/// The tiny adapter with one tensor changed, in a new file.
fn with(dir: &Path, file: &str, change: impl FnOnce(&mut Heads)) -> PathBuf {
    let mut heads = tensors("tiny", "heads/");
    change(&mut heads);
    save(&dir.join(file), heads);
    dir.join(file)
}

fn put(heads: &mut [(String, LazyTensor)], name: &str, index: usize, value: f32) {
    let (_, tensor) = heads.iter_mut().find(|(n, _)| n == name).unwrap();
    let mut values = tensor.to_f32().unwrap();
    values[index] = value;
    *tensor = LazyTensor::from_f32(tensor.shape(), &values);
}

#[test]
fn adapters_with_wrong_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let (conv, var) = ("adapter.residual.conv1.weight", "adapter.residual.norm1.running_var");
    let make = |file: &str, change: &dyn Fn(&mut Heads)| with(dir.path(), file, change);
    let missing = make("missing.safetensors", &|h| h.retain(|(n, _)| n != conv));
    refused(&missing, "checkpoint.tensors", &[conv, "[8, 8, 3, 3]"]);
    let shape = make("shape.safetensors", &|h| {
        h.iter_mut().find(|(n, _)| n == conv).unwrap().1 = LazyTensor::from_f32(&[8, 8, 1, 1], &[0.5; 64]);
    });
    refused(&shape, "checkpoint.tensors", &[conv, "[8, 8, 1, 1]", "[8, 8, 3, 3]"]);
    let unknown = make("unknown.safetensors", &|h| {
        h.push(("adapter.residual.conv3.weight".into(), LazyTensor::from_f32(&[1], &[1.0])));
    });
    refused(&unknown, "checkpoint.tensors", &["adapter.residual.conv3.weight"]);
    for (name, value) in [("nan", f32::NAN), ("inf", f32::INFINITY), ("minf", f32::NEG_INFINITY)] {
        // Folded into a convolution, kept as it is, and in a head.
        for (tensor, index, place) in [
            (conv, 10, "[0, 1, 0, 1]"),
            (var, 3, "[3]"),
            ("adapter.reduce.norm.bias", 1, "[1]"),
            ("classifier.weight", 81, "[1, 1]"),
            ("image_classifier.bias", 2, "[2]"),
        ] {
            let file = make(&format!("{name}.safetensors"), &|h| put(h, tensor, index, value));
            refused(&file, "checkpoint.nonfinite", &[tensor, place]);
        }
        let scale = make(&format!("{name}-scale.safetensors"), &|h| put(h, "logit_scale", 0, value));
        refused(&scale, "checkpoint.nonfinite", &["logit_scale"]);
    }
    let negative = make("negative.safetensors", &|h| put(h, var, 2, -0.5));
    refused(&negative, "checkpoint.value", &["-0.5", var]);
}

/// The same faults as PyTorch saves them.
#[test]
fn shared_adapters_with_wrong_tensors() {
    let Some(shared) = oracle::shared("fixtures/hostile") else { return };
    let rows: &[(&str, &str, &[&str])] = &[
        ("missing_tensor.pt", "checkpoint.tensors", &["missing"]),
        ("wrong_shape.pt", "checkpoint.tensors", &["expected"]),
        ("unknown_tensor.pt", "checkpoint.tensors", &["adapter.residual.conv3.weight"]),
        ("nan_weight.pt", "checkpoint.nonfinite", &["NaN at ["]),
        ("inf_weight.pt", "checkpoint.nonfinite", &["`classifier.weight`", "inf at ["]),
        ("negative_variance.pt", "checkpoint.value", &["running_var"]),
    ];
    for (file, code, words) in rows {
        refused(&shared.join(file), code, words);
    }
    let dir = tempfile::tempdir().unwrap();
    ba_export(&[&"--model", &tiny_model(), &"--adapter", &shared.join("good.pt"), &"-o", &dir.path().join("onnx")])
        .ok();
}
