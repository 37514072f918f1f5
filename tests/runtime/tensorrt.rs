//! What TensorRT for RTX makes of the graphs: ahead-of-time builds, which need no GPU, for compute capabilities 8.6,
//! 8.9 and 12.0. Needs a Python with `tensorrt_rtx_bindings`: `make trt`, or the one that `BA_TRT_PYTHON` names.
//! Nothing is run: what the engines compute is not tested here.

#![cfg(unix)]

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use brain_adapter::bundle::{Bundle, Precision, Target};
use brain_adapter::onnx::SegmentedModel;
use serde_json::Value;
use support::{forms, oracle};

/// Builds engines of these files, in one process; a row a file.
fn build(python: &Path, files: &[PathBuf], options: &[&str]) -> Vec<Value> {
    let script = support::package("tests/scripts/tensorrt_build.py");
    let done = Command::new(python).arg(script).args(options).args(files).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{:?}: {said}", done.status);
    let rows: Vec<Value> =
        done.stdout.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    assert_eq!(rows.len(), files.len(), "{said}");
    rows
}

/// Fails unless every engine of the row was built; gives how many.
fn built(what: &str, row: &Value) -> usize {
    let builds = row["builds"].as_object().unwrap();
    for (capability, build) in builds {
        let clean = build["errors"] == serde_json::json!([]) && build["parse_errors"] == serde_json::json!([]);
        let whole = build["parsed"] == true && build["bytes"].as_u64().is_some_and(|n| n > 0);
        assert!(clean && whole, "{what}, {capability}: {build}");
    }
    builds.len()
}

/// Every form that suits TensorRT by its manifest builds; for each capability those of one model, for one those of all.
#[test]
fn every_form_builds() {
    let Some(python) = oracle::trt("engines built by TensorRT for RTX") else { return };
    let forms = [(Precision::Fp32, Target::Cpu), (Precision::Fp16, Target::Cpu), (Precision::Int8, Target::TensorRt)];
    for (i, fixture) in forms::FIXTURES.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        forms::write(dir.path(), fixture);
        let mut files = Vec::new();
        for (precision, target) in forms {
            let bundle = forms::export(dir.path(), precision, target);
            files.extend(forms::graphs(&bundle, "tensorrt-rtx").into_iter().map(|(_, path)| path));
        }
        assert!(files.iter().filter(|f| f.ends_with("vision.tensorrt.onnx")).count() == 2);
        let one = ["--capability", "8.9"];
        let rows = build(&python, &files, if i == 0 { &[] } else { &one });
        let engines: usize = files.iter().zip(&rows).map(|(file, row)| built(&file.display().to_string(), row)).sum();
        assert_eq!(engines, files.len() * if i == 0 { 3 } else { 1 });
    }
}

/// What does not suit TensorRT by its manifest is refused there: the check above can fail.
#[test]
fn forms_of_other_devices_are_refused() {
    let Some(python) = oracle::trt("engines built by TensorRT for RTX") else { return };
    let dir = tempfile::tempdir().unwrap();
    forms::write(dir.path(), forms::FIXTURES[0]);
    for target in [Target::Cpu, Target::Cuda] {
        let bundle = forms::export(dir.path(), Precision::Int8, target);
        assert!(bundle.manifest.suits("tensorrt-rtx").is_err());
        for (part, path) in
            forms::graphs(&bundle, "cpu").into_iter().filter(|(part, _)| matches!(*part, "vision" | "text"))
        {
            let row = &build(&python, &[path], &["--capability", "8.9"])[0]["builds"]["8.9"];
            let why = row["parse_errors"].as_array().unwrap();
            eprintln!("{part} for {target}: {}", why.first().and_then(Value::as_str).unwrap_or_default());
            assert!(row["bytes"].is_null() && !why.is_empty(), "{part} for {target}: {row}");
        }
    }
}

/// Blocks of a graph as graphs of their own, next to its data file in a scratch folder.
fn extract(graph: &Path, data: &str, groups: &[Range<usize>], scratch: &Path) -> Vec<PathBuf> {
    let model = SegmentedModel::read(graph).unwrap();
    let from = graph.with_file_name(data);
    if from.exists() {
        fs::hard_link(&from, scratch.join(data)).or_else(|_| fs::copy(&from, scratch.join(data)).map(drop)).unwrap();
    }
    let stem = graph.file_stem().unwrap().to_string_lossy();
    let write = |group: &Range<usize>| {
        let path = scratch.join(format!("{stem}.{}-{}.onnx", group.start, group.end));
        fs::write(&path, model.extract(group.clone()).unwrap().bytes).unwrap();
        path
    };
    groups.iter().map(write).collect()
}

/// Consecutive segments whose weights take at most `most` bytes together.
fn groups(model: &SegmentedModel, most: u64) -> Vec<Range<usize>> {
    let mut all: Vec<(Range<usize>, u64)> = Vec::new();
    for (i, segment) in model.segments().iter().enumerate() {
        match all.last_mut() {
            Some((group, bytes)) if *bytes + segment.weights <= most => {
                (group.end, *bytes) = (i + 1, *bytes + segment.weights);
            }
            _ => all.push((i..i + 1, segment.weights)),
        }
    }
    all.into_iter().map(|(group, _)| group).collect()
}

/// Groups of blocks, as a language model beyond TensorRT's 2 GB is cut into.
#[test]
fn groups_of_blocks_build() {
    let Some(python) = oracle::trt("engines built by TensorRT for RTX") else { return };
    let dir = tempfile::tempdir().unwrap();
    forms::write(dir.path(), forms::FIXTURES[1]);
    for (precision, target) in
        [(Precision::Fp32, Target::Cpu), (Precision::Fp16, Target::Cpu), (Precision::Int8, Target::TensorRt)]
    {
        let bundle = forms::export(dir.path(), precision, target);
        for part in ["text", "vision"] {
            let file = bundle.manifest.graph(part.parse().unwrap(), "tensorrt-rtx").unwrap();
            let model = SegmentedModel::read(&bundle.file(file).unwrap()).unwrap();
            // One block each, and once all of them in two halves.
            let n = model.segments().len();
            assert!(n >= 3, "{part}: {n} segments");
            let cuts: Vec<Range<usize>> = (0..n).map(|i| i..i + 1).chain([0..n / 2, n / 2..n]).collect();
            let scratch = tempfile::tempdir().unwrap();
            let files = extract(&bundle.file(file).unwrap(), &format!("{part}.onnx.data"), &cuts, scratch.path());
            for (cut, row) in cuts.iter().zip(build(&python, &files, &["--capability", "8.9"])) {
                built(&format!("{precision} {part} {cut:?}"), &row);
            }
        }
    }
}

/// Bytes of weights that a group of blocks may have.
const MOST: u64 = 1_900_000_000;

/// A bundle of full size, named by `BA_TRT_BUNDLE`: each part, or the first, a middle and the last of its groups of
/// blocks (all of them with `BA_TRT_ALL=1`), in a process each. Prints what docs/gpu.md records.
#[test]
#[ignore = "needs a full-size bundle, named by BA_TRT_BUNDLE"]
fn a_bundle_of_full_size_builds() {
    let python = oracle::trt("engines of a full-size bundle").expect("the oracle of this test");
    let folder = std::env::var_os("BA_TRT_BUNDLE").expect("BA_TRT_BUNDLE names a bundle");
    let bundle = Bundle::open_quickly(Path::new(&folder)).unwrap();
    for (part, path) in forms::graphs(&bundle, "tensorrt-rtx") {
        let model = SegmentedModel::read(&path).unwrap();
        let all = groups(&model, MOST);
        let chosen: Vec<Range<usize>> = if std::env::var_os("BA_TRT_ALL").is_some() || all.len() < 4 {
            all.clone()
        } else {
            [0, all.len() / 2, all.len() - 1].map(|i| all[i].clone()).into()
        };
        // External data must lie next to the graph, and on the same disk for a second name.
        let scratch = tempfile::Builder::new().prefix(".trt-").tempdir_in(&bundle.dir).unwrap();
        let files = extract(&path, &format!("{part}.onnx.data"), &chosen, scratch.path());
        for (group, file) in chosen.iter().zip(&files) {
            let weights: u64 = model.segments()[group.clone()].iter().map(|s| s.weights).sum();
            let started = Instant::now();
            let row = &build(&python, std::slice::from_ref(file), &[])[0];
            eprintln!(
                "{part} {group:?} ({} of {} groups): {} MB of weights, peak {} MB, {:.0} s",
                chosen.len(),
                all.len(),
                weights / 1_000_000,
                row["peak_kib"].as_u64().unwrap() * 1024 / 1_000_000,
                started.elapsed().as_secs_f64()
            );
            for (capability, build) in row["builds"].as_object().unwrap() {
                let engine = build["bytes"].as_u64().unwrap_or(0) / 1_000_000;
                eprintln!("  {capability}: {} layers, {} s, engine {engine} MB", build["layers"], build["seconds"]);
            }
            built(part, row);
        }
    }
}
