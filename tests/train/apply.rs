//! `ba-train apply`: a trained adapter and heads into a bundle answer as a fresh export of the same weights does, the
//! old bundle comes back byte for byte, and what cannot be applied changes nothing.

#![cfg(unix)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use brain_adapter::bundle::Bundle;
use brain_adapter::calibrate::Statistics;
use brain_adapter::tensor::LazyTensor;
use support::commands::{self, Done, ba_export, ba_infer, ba_train, fixture, manifest, names, scan, snapshot};
use support::oracle;
use support::trained::{self, Study, changed, dtypes_and_shapes};

const KEPT: [&str; 2] = ["vision.onnx", "text.onnx"];

/// The answer of `ba-infer` for the recorded scan, with and without a report where the bundle can.
fn answer(bundle: &Path, report: &Path) -> Vec<f64> {
    let done = ba_infer(&[&scan(), &"--report", &report, &"--bundle", &bundle, &"--json"]).ok().json();
    let logits = done["logits"].as_array().unwrap().iter();
    logits.chain([&done["similarity"]]).map(|v| v.as_f64().unwrap()).collect()
}

fn far(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// fp32 and fp16: the same bytes as a fresh export, so the same answers to the bit. int8 and int4: a fresh export
/// decides the vision transformer again behind the new adapter, so only adapter and heads are the same bytes.
#[test]
fn answers_are_those_of_a_fresh_export() {
    for (precision, same) in [("none", true), ("fp16", true), ("int8", false), ("int4", false)] {
        let study = Study::new("tiny", "tiny");
        let (old, fresh) =
            (study.export(precision, "onnx", &study.model), study.export(precision, "fresh", &study.next));
        let before = snapshot(&old);
        let inodes = KEPT.map(|name| fs::metadata(old.join(name)).unwrap().ino());
        let was = answer(&old, &study.report);
        let summary = study.apply(&old, &[]).ok().json();
        assert_eq!((&summary["version"], &summary["parent"]), (&2.into(), &1.into()), "{precision}");
        Bundle::open(&old).unwrap();
        for part in ["adapter.onnx", "heads.onnx"] {
            assert!(fs::read(old.join(part)).unwrap() == fs::read(fresh.join(part)).unwrap(), "{precision}: {part}");
        }
        assert_eq!(KEPT.map(|name| fs::metadata(old.join(name)).unwrap().ino()), inodes, "{precision}");
        let (found, expected) = (answer(&old, &study.report), answer(&fresh, &study.report));
        assert!(far(&was, &expected) > 0.05, "{precision}: the weights are hardly changed");
        assert!(far(&found, &expected) <= if same { 0.0 } else { 0.02 }, "{precision}: {found:?} {expected:?}");
        let (new, of_fresh) = (manifest(&old), manifest(&fresh));
        for part in ["adapter", "heads"] {
            let (found, expected) = (&new["parts"][part], &of_fresh["parts"][part]);
            assert!(found["parity"]["checked"]["inputs"].as_u64().unwrap() >= 1, "{precision} {part}: {found}");
            for field in ["precision", "parameters", "bytes"] {
                assert_eq!(found[field], expected[field], "{precision} {part}");
            }
        }
        if precision != "none" {
            assert_eq!(new["quantization"]["layers"][0], of_fresh["quantization"]["layers"][0], "{precision}");
            assert!(new["version"]["probabilities"].as_f64().unwrap() <= 0.05);
            assert!(new["quantization"]["probabilities"].is_null());
        }
        assert_eq!(new["sources"][1]["name"], "trained.safetensors");
        assert_eq!(new["sources"].as_array().unwrap().len(), of_fresh["sources"].as_array().unwrap().len());

        ba_train(&[&"apply", &"--rollback", &"--bundle", &old]).ok();
        assert_eq!(snapshot(&old), before, "{precision}");
        ba_train(&[&"apply", &"--to", &"2", &"--bundle", &old]).ok();
        assert_eq!(answer(&old, &study.report), found);
    }
}

/// Statistics of what flows through the vision transformer were gathered behind the old adapter.
#[test]
fn statistics_of_the_old_adapter_go() {
    let study = Study::new("tiny", "tiny");
    let bundle = study.export("int8", "onnx", &study.model);
    let load = || Statistics::load(&bundle.join("calibration.safetensors")).unwrap();
    let before = load();
    study.apply(&bundle, &[]).ok();
    let after = load();
    let text = |s: &Statistics| s.activations.iter().filter(|(n, _)| n.starts_with("text/")).count();
    assert!(before.activations.len() > text(&before) && text(&before) > 0);
    assert_eq!((after.activations.len(), text(&after), after.scans), (text(&before), text(&before), 0));
    assert_eq!(after.reports, before.reports);
    for (name, stats) in &after.activations {
        assert_eq!(stats.max_abs, before.activations[name].max_abs, "{name}");
    }
    // What stayed is of use: a fresh export reads the language model's from there.
    let (model, to) = (study.next.clone(), study.dir.path().join("again"));
    let statistics = bundle.join("calibration.safetensors");
    let (calibration, args) = (study.calibration.clone(), "--statistics");
    ba_export(&[
        &"--model",
        &model,
        &"--quantize",
        &"int8",
        &"--calibration",
        &calibration,
        &"-o",
        &to,
        &args,
        &statistics,
    ])
    .ok();
}

#[test]
fn an_int8_adapter_is_not_left_in_fp32_unasked() {
    let study = Study::new("tiny", "tiny");
    let bundle = study.export("int8", "onnx", &study.model);
    assert_eq!(manifest(&bundle)["parts"]["adapter"]["precision"], "int8");
    let before = snapshot(&bundle);
    let nothing = study.dir.path().join("nothing");
    fs::create_dir(&nothing).unwrap();
    let without = |more: &[&str]| {
        let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"apply", &"--checkpoint", &study.trained];
        args.extend([&"--bundle" as &dyn AsRef<std::ffi::OsStr>, &bundle, &"--calibration", &nothing]);
        args.extend(more.iter().map(|m| m as &dyn AsRef<std::ffi::OsStr>));
        ba_train(&args)
    };
    without(&[]).fails("calibration.input").naming(&["--calibration", "--adapter-fp32"]);
    assert_eq!(snapshot(&bundle), before);
    let done = without(&["--adapter-fp32"]).ok();
    assert!(done.stderr.contains("part_precision") && done.stderr.contains("calibration_none"), "{done:?}");
    let parts = &manifest(&bundle)["parts"];
    assert_eq!(parts["adapter"]["precision"], "fp32");
    assert!(parts["adapter"]["parity"]["not_checked"].is_string());
    // fp16 needs no activation: as an export without inputs.
    let half = study.export("fp16", "half", &study.model);
    ba_train(&[&"apply", &"--checkpoint", &study.trained, &"--bundle", &half, &"--calibration", &nothing]).ok();
    assert_eq!(manifest(&half)["parts"]["adapter"]["precision"], "fp16");
}

/// An int8 adapter that misses the limit is fp32, as in an export; that is reported, and what was tried is recorded.
#[test]
fn an_adapter_beyond_the_limit_is_more_exact() {
    let study = Study::new("tiny", "tiny");
    let bundle = study.export("int8", "onnx", &study.model);
    let mut strict = manifest(&bundle);
    strict["quantization"]["max_error"] = 1e-4.into();
    commands::write_manifest(&bundle, &strict);
    let done = study.apply(&bundle, &[]).ok();
    assert!(done.stderr.contains("warning[part_precision]"), "{done:?}");
    let json = done.json();
    let codes: Vec<&str> = json["warnings"].as_array().unwrap().iter().filter_map(|w| w["code"].as_str()).collect();
    assert_eq!(codes, ["fov_cut", "part_precision"], "{done:?}");
    // Which limit was missed, by how much, and what that costs.
    let fallback = &json["fallbacks"][0];
    let [part, from, to] = ["part", "from", "to"].map(|name| fallback[name].as_str().unwrap());
    assert_eq!((part, from, to, json["fallbacks"].as_array().unwrap().len()), ("adapter", "int8", "fp32", 1));
    assert!(fallback["missed"].as_str().unwrap().contains("allowed are 1.0e-4"), "{fallback}");
    let bytes = |of: &serde_json::Value| of["parts"]["adapter"]["bytes"].clone();
    assert_eq!((&fallback["bytes"], &fallback["bytes_before"]), (&bytes(&manifest(&bundle)), &bytes(&strict)));
    let message = json["warnings"][1]["message"].as_str().unwrap();
    assert!(message.contains("as int8 it missed a limit: a relative error of") && message.contains("× the bytes"));
    let new = manifest(&bundle);
    let row = &new["quantization"]["layers"][0];
    assert_eq!((&new["parts"]["adapter"]["precision"], &row["scheme"]["scheme"]), (&"fp32".into(), &"fp32".into()));
    assert!(row["first"]["error"].as_f64().unwrap() > 1e-4, "{row}");
    assert_eq!(
        new["quantization"]["layers"].as_array().unwrap()[1..],
        strict["quantization"]["layers"].as_array().unwrap()[1..]
    );
    let single = study.export("none", "single", &study.next);
    assert!(fs::read(bundle.join("adapter.onnx")).unwrap() == fs::read(single.join("adapter.onnx")).unwrap());
}

fn applied(study: &Study, bundle: &Path, checkpoint: &Path) -> Done {
    let calibration = &study.calibration;
    ba_train(&[&"apply", &"--checkpoint", &checkpoint, &"--bundle", &bundle, &"--calibration", calibration])
}

#[test]
fn what_cannot_be_applied_changes_nothing() {
    let study = Study::new("tiny", "tiny");
    let bundle = study.export("none", "onnx", &study.model);
    let before = snapshot(&bundle);
    let path = study.dir.path().join("bad.safetensors");
    type Change = fn(&mut Vec<(String, LazyTensor)>);
    let cases: [(&str, Change, &[&str]); 6] = [
        ("checkpoint.nonfinite", |t| trained::poison(t, "classifier.weight"), &["classifier.weight"]),
        ("checkpoint.nonfinite", |t| trained::poison(t, "logit_scale"), &["logit_scale"]),
        ("checkpoint.nonfinite", |t| trained::poison(t, "adapter.residual.norm1.running_var"), &["running_var"]),
        ("checkpoint.tensors", |t| t.retain(|(n, _)| n != "text_projection.bias"), &["text_projection.bias"]),
        ("checkpoint.tensors", |t| t.retain(|(n, _)| !n.starts_with("image_")), &["image_classifier"]),
        (
            "checkpoint.tensors",
            |t| {
                t.iter_mut()
                    .filter(|(n, _)| n == "classifier.bias")
                    .for_each(|(_, t)| *t = LazyTensor::from_f32(&[5], &[0.; 5]))
            },
            &["classifier.bias", "[5]", "[3]"],
        ),
    ];
    for (code, change, words) in cases {
        let mut tensors = changed("tiny", 1);
        change(&mut tensors);
        commands::save(&path, tensors);
        applied(&study, &bundle, &path).fails(code).naming(words).naming(&["bad.safetensors"]);
        assert_eq!(snapshot(&bundle), before, "{words:?}");
    }
    // Another configuration's weights; labels in another order; no checkpoint; no scan.
    applied(&study, &bundle, &study.other()).fails("checkpoint.tensors");
    let labels = [("labels".to_owned(), r#"["AD","CN","MCI"]"#.to_owned())].into();
    brain_adapter::checkpoint::write_safetensors(&path, changed("tiny", 1), &labels).unwrap();
    applied(&study, &bundle, &path).fails("config.contradiction").naming(&["MCI"]);
    applied(&study, &bundle, &study.dir.path().join("none.pt")).fails("checkpoint.not_found");
    fs::write(study.calibration.join("zzz.nii"), "no scan").unwrap();
    applied(&study, &bundle, &study.trained).fails("calibration.input").naming(&["zzz.nii"]);
    fs::remove_file(study.calibration.join("zzz.nii")).unwrap();
    assert_eq!(snapshot(&bundle), before);
    let left = names(&study.dir.path().join("onnx.versions"));
    assert!(left.iter().all(|name| name == ".lock"), "{left:?}");
    // Damage: of a file that is read again, and of one that would only be copied.
    for file in ["adapter.onnx", "text.onnx", "tokenizer.json"] {
        let good = fs::read(bundle.join(file)).unwrap();
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        fs::write(bundle.join(file), bad).unwrap();
        applied(&study, &bundle, &study.trained).fails("bundle.checksum").naming(&[file]);
        fs::write(bundle.join(file), good).unwrap();
    }
    applied(&study, &study.dir.path().join("nowhere"), &study.trained).fails("bundle.not_found");
    assert_eq!(snapshot(&bundle), before);
}

/// Keys, types and shapes are those of PyTorch's own state dict, whatever the checkpoint's form.
#[test]
fn tensors_for_pytorch_are_those_of_the_module() {
    for (name, towers) in
        [("tiny", "tiny"), ("tiny-bottleneck3d", "tiny"), ("tiny-gqa-bf16-sharded", "tiny-gqa-bf16-sharded")]
    {
        let study = Study::new(name, towers);
        let bundle = study.export("none", "onnx", &study.model);
        let saved = study.dir.path().join("adapter.safetensors");
        study.apply(&bundle, &["--save-adapter", saved.to_str().unwrap()]).ok();
        assert_eq!(dtypes_and_shapes(&saved), dtypes_and_shapes(&study.trained), "{name}");
        // It is replaced as ours; the weights of somebody else are not.
        study.apply(&bundle, &["--save-adapter", saved.to_str().unwrap()]).ok();
        let theirs = study.dir.path().join("theirs.safetensors");
        std::fs::copy(&study.trained, &theirs).unwrap();
        study.apply(&bundle, &["--save-adapter", theirs.to_str().unwrap()]).fails_with_one_line("output.exists");
        assert_eq!(std::fs::read(&theirs).unwrap(), std::fs::read(&study.trained).unwrap());
        // And applied again it is the same model.
        let answers = answer(&bundle, &study.report);
        applied(&study, &bundle, &saved).ok();
        assert_eq!(answer(&bundle, &study.report), answers);
    }
    // The state dict that PyTorch itself saved.
    let study = Study::new("tiny", "tiny");
    if let Some(original) = oracle::shared("fixtures/tiny/adapter.pt") {
        let (bundle, saved) = (study.export("none", "onnx", &study.next), study.dir.path().join("adapter.safetensors"));
        ba_train(&[&"apply", &"--checkpoint", &original, &"--bundle", &bundle, &"--save-adapter", &saved]).ok();
        assert_eq!(dtypes_and_shapes(&saved), dtypes_and_shapes(&original));
    }
    // A checkpoint that knows floats alone, as training runtimes have them.
    let study = Study::new("tiny", "tiny");
    let bundle = study.export("none", "onnx", &study.model);
    let (floats, saved) = (study.dir.path().join("floats.safetensors"), study.dir.path().join("adapter.safetensors"));
    let mut tensors = changed("tiny", 1);
    tensors.retain(|(name, _)| !name.ends_with("norm1.num_batches_tracked"));
    let counts = tensors.iter_mut().filter(|(name, _)| name.ends_with("num_batches_tracked"));
    counts.for_each(|(_, t)| *t = LazyTensor::from_f32(&[1], &[17.0]));
    commands::save(&floats, tensors);
    ba_train(&[&"apply", &"--checkpoint", &floats, &"--bundle", &bundle, &"--save-adapter", &saved]).ok();
    assert_eq!(dtypes_and_shapes(&saved), dtypes_and_shapes(&study.trained));
}

/// PyTorch itself, where it is: the file loads into the module strictly.
#[test]
fn pytorch_loads_what_is_saved() {
    let Some(python) = oracle::torch("saved tensors loaded by PyTorch") else { return };
    let study = Study::new("tiny", "tiny");
    let bundle = study.export("none", "onnx", &study.model);
    let saved = study.dir.path().join("adapter.safetensors");
    study.apply(&bundle, &["--save-adapter", saved.to_str().unwrap()]).ok();
    let script = support::package("tests/scripts/load_adapter.py");
    let run = std::process::Command::new(python)
        .arg(script)
        .arg(&saved)
        .arg(&study.trained)
        .arg(fixture("tiny/config.json"))
        .output();
    let run = run.unwrap();
    assert!(run.status.success(), "{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
}

/// A model whose adapter int8 does not fit: fp32 as in an export, and said so.
#[test]
fn the_three_dimensional_adapter_stays_in_fp32() {
    let study = Study::new("tiny-bottleneck3d", "tiny");
    let bundle = study.export("int8", "onnx", &study.model);
    let fresh = study.export("int8", "fresh", &study.next);
    study.apply(&bundle, &[]).ok();
    let layers = [&bundle, &fresh].map(|b| manifest(b)["quantization"]["layers"][0].clone());
    assert_eq!(layers[0], layers[1]);
    assert!(fs::read(bundle.join("adapter.onnx")).unwrap() == fs::read(fresh.join("adapter.onnx")).unwrap());
}
