//! `ba-export --quantize` as it is typed: what it prints, what it leaves behind, and how it fails.

#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};

use brain_adapter::bundle::Bundle;
use brain_adapter::calibrate::Statistics;
use brain_adapter::checkpoint::{Checkpoint, write_safetensors};
use brain_adapter::tensor::LazyTensor;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use support::commands::{ba_export, ba_infer, names, snapshot, tiny_model};
use support::package;

fn demo(path: &str) -> PathBuf {
    package("examples/demo").join(path)
}

/// Exports the demo's model; gives the summary.
fn export(precision: &str, bundle: &Path, more: &[&str]) -> Value {
    let (model, calibration, bundle) = (demo("checkpoint"), demo("calibration"), bundle.to_path_buf());
    let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> =
        vec![&"--quantize", &precision, &"--model", &model, &"--calibration", &calibration, &"-o", &bundle, &"--json"];
    args.extend(more.iter().map(|m| m as &dyn AsRef<std::ffi::OsStr>));
    ba_export(&args).ok().json()
}

#[test]
fn each_precision_is_smaller_and_answers_as_fp32_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut sizes = Vec::new();
    let mut fp32 = Vec::new();
    for (precision, most) in [("none", 0.0), ("fp16", 0.002), ("int8", 0.01), ("int4", 0.05)] {
        let bundle = dir.path().join(precision);
        let summary = export(precision, &bundle, &[]);
        let text = summary["parts"].as_array().unwrap().iter().find(|p| p["part"] == "text").unwrap();
        sizes.push(text["bytes"].as_f64().unwrap());
        let answer =
            ba_infer(&[&demo("mni152_t1.nii.gz"), &"--report", &demo("report.txt"), &"--bundle", &bundle, &"--json"]);
        let answer = answer.ok().json();
        let found: Vec<f64> =
            answer["probabilities"].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).collect();
        if precision == "none" {
            assert_eq!(answer["bundle"]["precision"], "fp32");
            fp32 = found;
            continue;
        }
        assert!(answer["bundle"]["precision"].as_str().unwrap().contains(precision), "{answer:#}");
        let far = found.iter().zip(&fp32).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(far <= most, "{precision}: a probability differs by {far}");
        assert!(summary["quantization"]["probabilities"].as_f64().unwrap() <= most, "{precision}");
        for part in summary["parts"].as_array().unwrap() {
            assert!(part["parity"]["checked"]["inputs"].as_u64().unwrap() >= 2, "{precision}: {part}");
        }
    }
    // The demo's layers are so small that scales and graphs weigh something.
    assert!(sizes.windows(2).all(|w| w[1] < w[0]), "{sizes:?}");
    assert!(sizes[1] < 0.55 * sizes[0] && sizes[2] < 0.4 * sizes[0], "{sizes:?}");
}

#[test]
fn a_bundle_says_what_was_done_to_each_layer() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    let summary = export("int8", &bundle, &[]);
    let manifest: Value = serde_json::from_slice(&fs::read(bundle.join("bundle.json")).unwrap()).unwrap();
    let record = &manifest["quantization"];
    assert_eq!(record, &summary["quantization"]);
    // 1 adapter, 1 + 3 · 6 of the ViT, 3 · 7 of the language model.
    let layers = record["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 1 + 19 + 21);
    for layer in layers {
        let error = layer["error"].as_f64().unwrap();
        assert!(error <= record["max_error"].as_f64().unwrap(), "{layer}");
        assert!(layer["scheme"]["scheme"].is_string() && layer["cosine"].as_f64().unwrap() > 0.99, "{layer}");
    }
    assert_eq!(layers[0]["scheme"]["scheme"], "int8_static");
    // Behind GELU hardly anything is negative: more levels are given to the rest.
    let gelu = layers.iter().find(|l| l["layer"] == "blocks.0.mlp.linear2").unwrap();
    assert!(gelu["scheme"]["zero_point"].as_u64().unwrap() < 64, "{gelu}");
    assert_eq!(record["blocks"].as_array().unwrap().iter().filter(|b| b["part"] == "text").count(), 3);
    assert_eq!(record["calibration"]["statistics"], "calibration.safetensors");
    let calibration = &record["calibration"];
    assert_eq!([&calibration["scans"], &calibration["held_out_scans"]], [2, 2]);
    // No file name of a patient's scan in what is handed on.
    let text = fs::read_to_string(bundle.join("bundle.json")).unwrap();
    assert!(!text.contains("another_contrast"), "an input is named");

    let statistics = Checkpoint::open(bundle.join("calibration.safetensors")).unwrap();
    let moments = statistics.get("text/layers.0.self_attn.q_proj.moment").unwrap();
    assert_eq!(moments.shape(), [128]);
    let mean = moments.to_f32().unwrap().iter().sum::<f32>() / 128.0;
    assert!((mean - 1.0).abs() < 1e-3, "moments are relative to the token's own size: {mean}");
    let picture = fs::read_to_string(bundle.join("errors.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
    assert_eq!(picture.matches("<title>").count(), layers.len());
}

/// Layers of a bundle as `part/name`, as the text lists them.
fn manifest_layers(bundle: &Path) -> Vec<String> {
    let manifest = Bundle::open(bundle).unwrap().manifest;
    manifest.quantization.unwrap().layers.iter().map(|l| format!("{}/{} ", l.part, l.layer)).collect()
}

#[test]
fn text_lists_the_layers_and_json_has_them_too() {
    let dir = tempfile::tempdir().unwrap();
    let (model, calibration, bundle) = (demo("checkpoint"), demo("calibration"), dir.path().join("b"));
    let args: [&dyn AsRef<std::ffi::OsStr>; 8] =
        [&"--quantize", &"int8", &"--model", &model, &"--calibration", &calibration, &"-o", &bundle];
    let text = ba_export(&[&args[..], &[&"-v"]].concat()).ok().stdout;
    for words in ["text/layers.2.mlp.down_proj", "int8 static", "held out: 2 scans", "errors.svg"] {
        assert!(text.contains(words), "`{words}` is missing:\n{text}");
    }
    let layers = manifest_layers(&bundle);
    let listed = |text: &str| layers.iter().filter(|name| text.lines().any(|line| line.starts_with(*name))).count();
    assert_eq!(listed(&text), layers.len(), "-v lists every layer:\n{text}");
    // Without -v: the counts and the five of largest error.
    let text = ba_export(&args).ok().stdout;
    assert_eq!(listed(&text), 5, "{text}");
    for words in
        ["int8 static", "the 5 of largest error", "-v lists all layers", "next: ba-infer scan.nii.gz --bundle "]
    {
        assert!(text.contains(words), "`{words}` is missing:\n{text}");
    }
}

#[test]
fn a_record_of_pytorch_is_held_against_a_reduced_bundle_too() {
    let dir = tempfile::tempdir().unwrap();
    let expected = demo("checkpoint/expected.safetensors");
    let summary = export("int8", &dir.path().join("good"), &["--verify", expected.to_str().unwrap()]);
    let stages = summary["verified"].as_array().unwrap();
    assert!(stages.len() == 7 && stages.iter().all(|s| s["passed"] == true && s["limit"]["cosine"].is_f64()));
    // Another model's text, and a value that no comparison may lose.
    for (stage, change) in [("text", 0.1f32), ("v", f32::NAN)] {
        let record = Checkpoint::open(&expected).unwrap();
        let tensors = record.iter().map(|(name, tensor)| {
            let mut values = tensor.to_f32().unwrap();
            if name == stage {
                values.iter_mut().step_by(2).for_each(|v| *v += change);
                return (name.to_owned(), LazyTensor::from_f32(tensor.shape(), &values));
            }
            (name.to_owned(), tensor.clone())
        });
        let other = dir.path().join("other.safetensors");
        write_safetensors(&other, tensors, &Default::default()).unwrap();
        let (model, calibration, bundle) = (demo("checkpoint"), demo("calibration"), dir.path().join("bad"));
        let done = ba_export(&[
            &"--quantize",
            &"int8",
            &"--model",
            &model,
            &"--calibration",
            &calibration,
            &"--verify",
            &other,
            &"-o",
            &bundle,
        ]);
        done.fails("verify.mismatch").naming(&[stage]);
        assert!(!bundle.exists());
    }
}

#[test]
fn statistics_are_reused() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let first = export("int8", &one, &[]);
    let statistics = one.join("calibration.safetensors");
    let second = export("int8", &two, &["--statistics", statistics.to_str().unwrap()]);
    let schemes = |summary: &Value| -> Vec<Value> {
        let layers = summary["quantization"]["layers"].as_array().unwrap();
        layers.iter().map(|l| l["scheme"].clone()).collect()
    };
    assert_eq!(schemes(&first), schemes(&second));
    // The file is copied unchanged, and names what it was made from.
    assert_eq!(fs::read(&statistics).unwrap(), fs::read(two.join("calibration.safetensors")).unwrap());
    assert_eq!(second["quantization"]["calibration"]["scans"], first["quantization"]["calibration"]["scans"]);
}

#[test]
fn bad_statistics_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good");
    export("int8", &good, &[]);
    let statistics = good.join("calibration.safetensors");
    let (calibration, bundle) = (demo("calibration"), dir.path().join("bundle"));
    let run = |model: &Path, file: &Path| {
        ba_export(&[
            &"--quantize",
            &"int8",
            &"--model",
            &model,
            &"--calibration",
            &calibration,
            &"--statistics",
            &file,
            &"-o",
            &bundle,
            &"-q",
        ])
    };
    // Another model's.
    run(tiny_model(), &statistics).fails("calibration.input").naming(&["another model's"]);
    // Nor without an input that would show it.
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for precision in ["int8", "int4"] {
        let done = ba_export(&[
            &"--quantize",
            &precision,
            &"--model",
            &tiny_model(),
            &"--calibration",
            &empty,
            &"--statistics",
            &statistics,
            &"-o",
            &bundle,
        ]);
        done.fails("calibration.input").naming(&["another model's"]);
    }
    let weights = demo("checkpoint/llama/model-00001-of-00002.safetensors");
    run(&demo("checkpoint"), &weights).fails("calibration.input").naming(&["no calibration statistics"]);
    let cut = dir.path().join("cut.safetensors");
    let bytes = fs::read(&statistics).unwrap();
    fs::write(&cut, &bytes[..bytes.len() - 100]).unwrap();
    run(&demo("checkpoint"), &cut).fails("checkpoint.truncated");
    run(&demo("checkpoint"), &dir.path().join("none")).fails("checkpoint.not_found");
    assert!(!bundle.exists());
}

/// Damaged statistics load or fail; none panics, and none that loads holds an impossible number.
#[test]
fn damaged_statistics() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    export("int8", &bundle, &[]);
    let original = fs::read(bundle.join("calibration.safetensors")).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let path = dir.path().join("damaged.safetensors");
    let (mut loaded, mut refused) = (0, 0);
    for round in 0..600 {
        let mut bytes = original.clone();
        // The header first, then the numbers.
        let reach = if round % 2 == 0 { 3000.min(bytes.len()) } else { bytes.len() };
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..reach);
            bytes[at] = rng.random();
        }
        fs::write(&path, &bytes).unwrap();
        match Statistics::load(&path) {
            Ok(statistics) => {
                loaded += 1;
                for columns in statistics.activations.values() {
                    assert!(columns.importance().iter().all(|i| i.is_finite() && *i >= 0.0));
                    assert!(columns.tokens > 0 && columns.zero_point() > 0);
                }
            }
            Err(e) => {
                refused += 1;
                assert!(
                    ["calibration.input", "checkpoint.corrupt", "checkpoint.truncated", "checkpoint.format"]
                        .contains(&e.code().as_str()),
                    "{}: {e}",
                    e.code()
                );
            }
        }
    }
    assert!(loaded > 20 && refused > 100, "{loaded} loaded, {refused} refused");
}

#[test]
fn what_cannot_be_met_leaves_the_old_bundle_alone() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    export("int8", &bundle, &[]);
    let before = snapshot(&bundle);
    let (model, calibration) = (demo("checkpoint"), demo("calibration"));
    let run = |precision: &str, error: &str| {
        ba_export(&[
            &"--quantize",
            &precision,
            &"--model",
            &model,
            &"--calibration",
            &calibration,
            &"--max-error",
            &error,
            &"-o",
            &bundle,
        ])
    };
    for bad in ["0", "-1", "nan", "2", "many"] {
        let done = run("int8", bad);
        assert_eq!(done.code, Some(2), "--max-error {bad}: {done:#?}");
    }
    assert_eq!(snapshot(&bundle), before);
    // Options that would do nothing are wrong usage.
    for useless in [["--max-error", "0.1"], ["--statistics", "calibration.safetensors"]] {
        assert_eq!(ba_export(&[&useless[0], &useless[1]]).code, Some(2), "{useless:?}");
    }
    // A limit that only exact layers meet: everything climbs to the top of the ladder, and the summary reports it.
    let strict = dir.path().join("strict");
    let summary = export("int8", &strict, &["--max-error", "1e-4"]);
    let layers = summary["quantization"]["layers"].as_array().unwrap();
    assert!(layers.iter().all(|l| l["error"].as_f64().unwrap() <= 1e-4));
    let climbed = layers.iter().filter(|l| l["first"]["error"].as_f64().is_some_and(|e| e > 1e-4)).count();
    assert!(climbed > 30, "{climbed} of {} layers", layers.len());
    assert_eq!(names(dir.path()), ["bundle", "strict"]);
}

#[test]
fn without_inputs_it_is_said_that_nothing_was_compared() {
    let dir = tempfile::tempdir().unwrap();
    let (model, empty) = (demo("checkpoint"), dir.path().join("empty"));
    fs::create_dir(&empty).unwrap();
    for precision in ["fp16", "int8", "int4"] {
        let bundle = dir.path().join(precision);
        let args: [&dyn AsRef<std::ffi::OsStr>; 9] =
            [&"--quantize", &precision, &"--model", &model, &"--calibration", &empty, &"-o", &bundle, &"--json"];
        let done = ba_export(&args).ok();
        assert!(done.stderr.contains("warning[calibration_none]"), "{done:#?}");
        let summary = done.json();
        let warnings = summary["warnings"].as_array().unwrap();
        let warning = warnings.iter().find(|w| w["code"] == "calibration_none");
        assert!(warning.is_some_and(|w| w["message"].is_string()), "{summary:#}");
        assert!(summary["parts"][1]["parity"]["not_checked"].is_string(), "{summary:#}");
        let record = &summary["quantization"];
        assert!(record["layers"].as_array().unwrap().iter().all(|l| l["error"].is_null()));
        assert!(record["calibration"]["statistics"].is_null() && !bundle.join("errors.svg").exists());
        let scan = demo("mni152_t1.nii.gz");
        ba_infer(&[&scan, &"--report", &demo("report.txt"), &"--bundle", &bundle]).ok();
    }
}

#[test]
fn scans_alone_are_judged_by_the_image_only_classifier() {
    let dir = tempfile::tempdir().unwrap();
    let scans = dir.path().join("scans");
    fs::create_dir(&scans).unwrap();
    for name in ["another_contrast.nii.gz", "bias_field.nii.gz", "noise.nii.gz", "mni152_t1_5mm.nii.gz"] {
        fs::copy(demo("calibration").join(name), scans.join(name)).unwrap();
    }
    let model = demo("checkpoint");
    for precision in ["fp16", "int8"] {
        let bundle = dir.path().join(precision);
        let args: [&dyn AsRef<std::ffi::OsStr>; 9] =
            [&"--quantize", &precision, &"--model", &model, &"--calibration", &scans, &"-o", &bundle, &"--json"];
        let summary = ba_export(&args).ok().json();
        let probabilities = summary["quantization"]["probabilities"].as_f64().unwrap();
        assert!(probabilities > 0.0 && probabilities <= 0.01, "{precision}: {probabilities}");
        let inputs = |part: usize| summary["parts"][part]["parity"]["checked"]["inputs"].clone();
        assert_eq!([inputs(0), inputs(1), inputs(3)], [2, 2, 2], "{precision}");
        assert!(summary["parts"][2]["parity"]["not_checked"].is_string(), "no report reached the text");
    }
    // Statistics that lack the language model's are gathered for it.
    let statistics = dir.path().join("int8/calibration.safetensors");
    let both = dir.path().join("both");
    let summary = export("int8", &both, &["--statistics", statistics.to_str().unwrap()]);
    let calibration = &summary["quantization"]["calibration"];
    assert_eq!([&calibration["scans"], &calibration["reports"]], [2, 4]);
}

#[test]
fn too_few_inputs_are_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let calibration = dir.path().join("few");
    fs::create_dir(&calibration).unwrap();
    fs::copy(demo("report.txt"), calibration.join("one.txt")).unwrap();
    let (model, bundle) = (demo("checkpoint"), dir.path().join("b"));
    let done =
        ba_export(&[&"--quantize", &"int8", &"--model", &model, &"--calibration", &calibration, &"-o", &bundle]).ok();
    assert!(done.stderr.contains("warning[calibration_few]"), "{done:#?}");
    // What no input reaches is not said to have been compared.
    assert!(done.stdout.contains("not checked: vision"), "{done:#?}");
}
