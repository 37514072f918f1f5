//! `--target` as it is typed, and what `ba-train apply` makes of bundles for GPUs.

#![cfg(unix)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use brain_adapter::bundle::{Bundle, Precision, Target};
use brain_adapter::export::{self, Plan, Sources};
use brain_adapter::progress::Silent;
use support::commands::{ba_export, ba_infer, ba_train, manifest, snapshot, tiny_model};
use support::package;
use support::trained::Study;

#[test]
fn the_flag_is_said_and_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let demo = |path: &str| package("examples/demo").join(path);
    let (model, calibration) = (demo("checkpoint"), demo("calibration"));
    let answer = |bundle: &PathBuf| {
        let (scan, report) = (demo("mni152_t1.nii.gz"), demo("report.txt"));
        let done =
            ba_infer(&[&scan, &"--report", &report, &"--bundle", bundle, &"--json", &"--device", &"cpu"]).ok().json();
        let all = done["probabilities"].as_object().unwrap().values();
        all.map(|p| p.as_f64().unwrap()).collect::<Vec<f64>>()
    };
    let single = dir.path().join("single");
    ba_export(&[&"--model", &model, &"-o", &single, &"--calibration", &calibration]).ok();
    let expected = answer(&single);
    for (precision, target, most) in [("int8", "cuda", 0.01), ("int8", "tensorrt", 0.01), ("int4", "cuda", 0.05)] {
        let bundle = dir.path().join(format!("{precision}-{target}"));
        let args: [&dyn AsRef<std::ffi::OsStr>; 10] = [
            &"--model",
            &model,
            &"--quantize",
            &precision,
            &"--target",
            &target,
            &"--calibration",
            &calibration,
            &"-o",
            &bundle,
        ];
        let done = ba_export(&args).ok();
        assert!(done.stdout.contains(&format!("made for {target}")), "{done:#?}");
        assert_eq!(manifest(&bundle)["target"], target);
        let far = answer(&bundle).iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(far <= most, "{precision} for {target}: a probability differs by {far}");
    }
}

/// Floats serve all devices: the same bytes whatever is asked for.
#[test]
fn floats_have_one_form() {
    let dir = tempfile::tempdir().unwrap();
    for precision in ["none", "fp16"] {
        let made = ["cpu", "cuda", "tensorrt"].map(|target| {
            let bundle = dir.path().join(format!("{precision}-{target}"));
            ba_export(&[&"--model", &tiny_model(), &"--quantize", &precision, &"--target", &target, &"-o", &bundle])
                .ok();
            snapshot(&bundle)
        });
        assert!(made[0] == made[1] && made[0] == made[2], "{precision}");
    }
}

#[test]
fn wrong_usage() {
    let refused = |args: &[&str]| {
        let args: Vec<&dyn AsRef<std::ffi::OsStr>> = args.iter().map(|a| a as &dyn AsRef<std::ffi::OsStr>).collect();
        let done = ba_export(&args);
        assert_eq!(done.code, Some(2), "{done:#?}");
        done.stderr
    };
    assert!(refused(&["--quantize", "int4", "--target", "tensorrt"]).contains("--quantize int8"));
    assert!(refused(&["--quantize", "int8", "--target", "rocm"]).contains("tensorrt"));
    // Without inputs, or with an empty folder of them, no activation has a range.
    let dir = tempfile::tempdir().unwrap();
    let (empty, bundle) = (dir.path().join("empty"), dir.path().join("onnx"));
    fs::create_dir(&empty).unwrap();
    let done = ba_export(&[
        &"--model",
        &tiny_model(),
        &"--quantize",
        &"int8",
        &"--target",
        &"tensorrt",
        &"--calibration",
        &empty,
        &"-o",
        &bundle,
    ]);
    done.fails("calibration.input").naming(&["--calibration", "--statistics"]);
    assert!(!bundle.exists());
}

/// A newly trained adapter and heads go into a bundle in its own form; what it is good for stays.
#[test]
fn a_trained_adapter_takes_the_form_of_its_bundle() {
    for (precision, target, providers) in [
        (Precision::Fp32, Target::Cpu, ["cuda", "tensorrt"]),
        (Precision::Fp16, Target::Cpu, ["cuda", "tensorrt"]),
        (Precision::Int8, Target::Cuda, ["cuda", "cpu"]),
        (Precision::Int8, Target::TensorRt, ["tensorrt-rtx", "cpu"]),
    ] {
        let study = Study::new("tiny", "tiny");
        let exported = |model: &PathBuf, to: &str| {
            let calibration = Some(study.calibration.clone());
            let new = Plan::new(Sources::in_folder(model).unwrap(), study.dir.path().join(to));
            let plan = Plan { precision, target, calibration, ..new };
            export::run(&plan, &mut Silent).unwrap();
            plan.output
        };
        let (bundle, fresh) = (exported(&study.model, "onnx"), exported(&study.next, "fresh"));
        let before = snapshot(&bundle);
        let second = bundle.join("vision.tensorrt.onnx");
        let inode = second.exists().then(|| fs::metadata(&second).unwrap().ino());
        assert_eq!(inode.is_some(), target == Target::Cpu);
        study.apply(&bundle, &[]).ok();
        let new = Bundle::open(&bundle).unwrap();
        assert_eq!(new.manifest.target, target);
        for provider in providers {
            new.manifest.suits(provider).unwrap();
        }
        assert_eq!(
            inode,
            second.exists().then(|| fs::metadata(&second).unwrap().ino()),
            "{precision}: a copy, or none"
        );
        for part in ["adapter.onnx", "heads.onnx"] {
            assert!(
                fs::read(bundle.join(part)).unwrap() == fs::read(fresh.join(part)).unwrap(),
                "{precision} for {target}: {part}"
            );
        }
        let half = precision != Precision::Fp32;
        for part in ["adapter", "heads"] {
            assert_eq!(new.manifest.parts[part].precision, if half { Precision::Fp16 } else { Precision::Fp32 });
        }
        ba_train(&[&"apply", &"--rollback", &"--bundle", &bundle]).ok();
        assert_eq!(snapshot(&bundle), before);
    }
}
