//! Temperatures in a bundle: they change probabilities and nothing else, and hostile ones are refused.

#![cfg(unix)]

use std::fs;
use std::path::Path;

use brain_adapter::Code;
use brain_adapter::bundle::{Bundle, Temperature, Versions, set_temperature};
use brain_adapter::metrics::softmax;
use serde_json::{Value, json};
use support::commands::{self, Done, ba_infer, manifest, report, scan, tiny_bundle, tiny_copy, write_manifest};

fn infer(bundle: &Path, report: Option<&Path>, more: &[&str]) -> Done {
    let (scan, bundle) = (scan(), bundle.to_str().unwrap());
    let mut args = vec![scan.to_str().unwrap(), "--bundle", bundle];
    if let Some(report) = report {
        args.extend(["--report", report.to_str().unwrap()]);
    }
    args.extend(more);
    let args: Vec<&dyn AsRef<std::ffi::OsStr>> = args.iter().map(|a| a as _).collect();
    ba_infer(&args).ok()
}

fn floats(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .map(|a| a.iter().map(|v| v.as_f64().unwrap()).collect())
        .unwrap_or_else(|| value.as_object().unwrap().values().map(|v| v.as_f64().unwrap()).collect())
}

#[test]
fn probabilities_change_and_labels_do_not() {
    let (dir, cache) = (tiny_copy(), tempfile::tempdir().unwrap());
    let report = report(cache.path());
    let cached = ["--json", "--cache", cache.path().to_str().unwrap()];
    for report in [Some(report.as_path()), None] {
        fs::copy(tiny_bundle().join("bundle.json"), dir.path().join("bundle.json")).unwrap();
        let before = infer(dir.path(), report, &cached).json();
        assert!(before["temperature"].is_null());
        for t in [0.05, 0.7, 3.5, 20.0] {
            let bundle = Bundle::open(dir.path()).unwrap();
            let both = Temperature { report: Some(t), image: Some(t) };
            let sha256 = set_temperature(dir.path(), &bundle.sha256, both).unwrap();
            let after = infer(dir.path(), report, &cached).json();
            assert_eq!((&after["label"], &after["logits"]), (&before["label"], &before["logits"]));
            assert_eq!((after["temperature"].as_f64(), after["bundle"]["sha256"].as_str()), (Some(t), Some(&*sha256)));
            // Features do not depend on it: they are found again.
            assert_eq!(after["run"]["from_cache"][0], "vision");
            let logits: Vec<f32> = floats(&after["logits"]).iter().map(|v| *v as f32).collect();
            let expected = softmax(&logits, t);
            let found = floats(&after["probabilities"]);
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?} {expected:?}");
            assert_ne!(found, floats(&before["probabilities"]));
        }
    }
    assert!(infer(dir.path(), None, &[]).stdout.contains("\ntemperature 20.000: "));
}

#[test]
fn a_manifest_comes_back_and_one_without_is_as_it_was() {
    let dir = tiny_copy();
    let path = dir.path().join("bundle.json");
    let old = fs::read(&path).unwrap();
    assert!(manifest(dir.path()).get("temperature").is_none());
    let bundle = Bundle::open(dir.path()).unwrap();
    assert_eq!((bundle.manifest.to_bytes().unwrap(), &bundle.sha256), (old.clone(), &bundle.model_sha256));
    let third = Temperature { report: Some(1.0 / 0.3), image: None };
    let sha256 = set_temperature(dir.path(), &bundle.sha256, third).unwrap();
    let again = Bundle::open(dir.path()).unwrap();
    assert_eq!(
        (again.manifest.temperature, &again.sha256, &again.model_sha256),
        (third, &sha256, &bundle.model_sha256)
    );
    assert_ne!(sha256, bundle.sha256);
    // Nothing else changed, no digit of any number.
    let mut left = manifest(dir.path());
    left.as_object_mut().unwrap().shift_remove("temperature");
    assert_eq!(serde_json::to_vec_pretty(&left).unwrap(), old);
    // Of another bundle by now: refused, and left alone.
    let error = set_temperature(dir.path(), &bundle.sha256, Temperature::default()).unwrap_err();
    assert_eq!(error.code(), Code::BUNDLE_MANIFEST);
    set_temperature(dir.path(), &sha256, Temperature::default()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), old);
}

/// A version that is kept shares its files with the bundle in use: it must not change with it.
#[test]
fn versions_that_are_kept_stay_and_nobody_else_is_at_it() {
    let (parent, tiny) = (tempfile::tempdir().unwrap(), tiny_bundle());
    let dir = parent.path().join("onnx");
    fs::create_dir(&dir).unwrap();
    commands::copy_files(tiny, &dir);
    let old = Bundle::open(&dir).unwrap().sha256;
    let two = Temperature { report: Some(2.0), image: None };
    let versions = Versions::lock(&dir).unwrap();
    assert_eq!(set_temperature(&dir, &old, two).unwrap_err().code(), Code::BUNDLE_BUSY);
    let number = versions.keep().unwrap().unwrap();
    drop(versions);
    let new = set_temperature(&dir, &old, two).unwrap();
    let all = Versions::list(&dir).unwrap();
    assert_eq!(
        all.iter().map(|v| (v.sha256().unwrap(), v.in_use)).collect::<Vec<_>>(),
        [(&*old, false), (&*new, true)]
    );
    Versions::lock(&dir).unwrap().use_version(number).unwrap();
    assert_eq!(Bundle::open(&dir).unwrap().sha256, old);
}

#[test]
fn hostile_temperatures_are_refused() {
    let dir = tiny_copy();
    let good = manifest(dir.path());
    let hostile = [
        json!({"report": 0.0}),
        json!({"report": -1.0}),
        json!({"image": 1e308}),
        json!({"image": 1e-300}),
        json!({"report": 20.1}),
        json!({"report": "1"}),
        json!({"report": [1.0]}),
        json!({"other": 1.0}),
        json!(1.5),
        json!(null),
    ];
    for temperature in hostile {
        let mut bad = good.clone();
        bad["temperature"] = temperature.clone();
        write_manifest(dir.path(), &bad);
        let error = Bundle::open(dir.path()).unwrap_err();
        assert_eq!(error.code(), Code::BUNDLE_MANIFEST, "{temperature}");
    }
    for literal in ["NaN", "1e999", "-Infinity"] {
        let text = serde_json::to_string_pretty(&good).unwrap();
        let text = format!("{},\"temperature\":{{\"report\":{literal}}}}}", text.trim_end().trim_end_matches('}'));
        fs::write(dir.path().join("bundle.json"), text).unwrap();
        assert_eq!(Bundle::open(dir.path()).unwrap_err().code(), Code::BUNDLE_MANIFEST, "{literal}");
    }
    write_manifest(dir.path(), &good);
    let sha256 = Bundle::open(dir.path()).unwrap().sha256;
    for t in [f64::NAN, f64::INFINITY, 0.0, -2.0, 1e9] {
        let bad = Temperature { report: None, image: Some(t) };
        assert_eq!(set_temperature(dir.path(), &sha256, bad).unwrap_err().code(), Code::BUNDLE_MANIFEST);
    }
    assert_eq!(manifest(dir.path()), good);
}
