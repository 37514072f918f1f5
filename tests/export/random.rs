//! Random models, written as they are met in the wild, exported, and run: every stage against the reference.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use brain_adapter::Code;
use brain_adapter::bundle::{Bundle, Parity};
use brain_adapter::export::{self, Plan, Sources};
use brain_adapter::progress::Silent;
use brain_adapter::runtime::{Session, SessionOptions};
use brain_adapter::tensor::Tensor;
use safetensors::tensor::Dtype;
use support::commands::{self, command, finish, snapshot};
use support::common;
use support::package;
use support::reference::{
    Array, files,
    generate::{Case, random_case},
    write::{Written, write_case},
};

const CASES: u64 = 44;
const TOLERANCE: f32 = 1e-4;

fn written(case: &Case, folder: &Path) -> Written {
    fs::create_dir_all(folder).unwrap();
    write_case(case, folder, Some(&package("tests/data/tokenizer/tokenizer.json")))
}

fn float(array: &Array) -> Tensor {
    Tensor::f32(&array.shape, array.to_f32()).unwrap()
}

fn ints(rows: &[Vec<i64>]) -> Tensor {
    Tensor::i64(&[rows.len(), rows[0].len()], rows.concat()).unwrap()
}

/// Runs the bundle from the inputs to the logits, each stage on the computed one before.
fn run_bundle(bundle: &Bundle, case: &Case) -> BTreeMap<String, Tensor> {
    let inputs = &case.inputs;
    let mut values: BTreeMap<String, Tensor> = BTreeMap::new();
    values.insert("volume".into(), float(&inputs.volume));
    values.insert("input_ids".into(), ints(&inputs.input_ids));
    values.insert("attention_mask".into(), ints(&inputs.attention_mask));
    for (part, feeds) in [
        ("adapter", &["volume"] as &[&str]),
        ("vision", &["adapter"]),
        ("text", &["input_ids", "attention_mask"]),
        ("heads", &["vision", "text"]),
    ] {
        let options = SessionOptions { threads: Some(1), ..SessionOptions::default() };
        let path = bundle.file(&bundle.manifest.parts[part].file).unwrap();
        let mut session = Session::open(common::runtime(), &path, &options).unwrap();
        let outputs = session.outputs();
        let names: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|n| (*n, &values[*n])).collect();
        let found = session.run(&feeds, &names).unwrap();
        values.extend(outputs.into_iter().zip(found));
    }
    values
}

fn compare(case: &Case, found: &BTreeMap<String, Tensor>) {
    let expected = case.forward();
    let mut stages = vec!["adapter", "vision", "text", "v", "t", "logits"];
    stages.extend(expected.contains_key("image_logits").then_some("image_logits"));
    assert_eq!(found.contains_key("image_logits"), expected.contains_key("image_logits"));
    for stage in stages {
        let what = format!("seed {} {stage}", case.seed);
        assert_eq!(found[stage].shape(), expected[stage].shape, "{what}");
        common::assert_close(&what, found[stage].as_f32().unwrap(), &expected[stage].to_f32(), TOLERANCE);
    }
}

/// Names that the model does not use: those of the writer, as they stand below the model's prefix, and our own.
fn unused(case: &Case, written: &Written) -> BTreeSet<String> {
    let layout = &case.layout;
    let vision = written.vision_unused.iter().map(|n| n.strip_prefix(layout.vision_prefix).unwrap_or(n));
    let text_prefix = if layout.llama_prefix { "model." } else { "" };
    let text = written.llama_unused.iter().map(|n| n.strip_prefix(text_prefix).unwrap_or(n));
    let own = case.heads.keys().filter(|n| n.ends_with("num_batches_tracked") || *n == "logit_scale");
    vision.chain(text).chain(own.map(String::as_str)).map(str::to_owned).collect()
}

/// What stands next to the model's prefix is skipped under the name that it has in the file.
fn skipped_names(names: &[String]) -> BTreeSet<String> {
    names.iter().cloned().collect()
}

#[test]
fn every_stage_of_random_models() {
    for case in (0..CASES).map(random_case) {
        let dir = tempfile::tempdir().unwrap();
        let written = written(&case, &dir.path().join("model"));
        let target = dir.path().join("onnx");
        let plan = Plan::new(Sources::in_folder(&dir.path().join("model")).unwrap(), &target);
        let summary =
            export::run(&plan, &mut Silent).unwrap_or_else(|e| panic!("seed {}: {}: {e}", case.seed, e.code()));
        let bundle = Bundle::open(&target).unwrap();
        compare(&case, &run_bundle(&bundle, &case));
        assert_eq!(summary.skipped, bundle.manifest.skipped);
        let (found, expected) = (skipped_names(&summary.skipped), unused(&case, &written));
        assert_eq!(found, expected, "seed {} ({:?})", case.seed, case.layout);
        let parameters: u64 = summary.parts.iter().map(|p| p.record.parameters).sum();
        assert!(parameters > 0 && summary.parts.len() == 4);
    }
}

/// The recorded stages of a case, as PyTorch would have written them.
fn record(case: &Case, path: &Path, tamper: Option<&str>) {
    let mut stages = case.forward();
    if let Some(stage) = tamper {
        let stage = stages.get_mut(stage).unwrap();
        let scale = stage.data.iter().fold(0f64, |m, x| m.max(x.abs()));
        stage.data[0] += scale * 3e-4;
    }
    let mut tensors: Vec<(String, Dtype, Array)> = stages.into_iter().map(|(n, a)| (n, Dtype::F32, a)).collect();
    let whole = |rows: &[Vec<i64>]| {
        Array::new(&[rows.len(), rows[0].len()], rows.concat().into_iter().map(|x| x as f64).collect())
    };
    tensors.push(("volume".into(), Dtype::F32, case.inputs.volume.clone()));
    tensors.push(("input_ids".into(), Dtype::I64, whole(&case.inputs.input_ids)));
    tensors.push(("attention_mask".into(), Dtype::I64, whole(&case.inputs.attention_mask)));
    files::write_safetensors(path, tensors.iter().map(|(n, d, a)| (n.clone(), *d, a)));
}

#[test]
fn verified_by_the_command() {
    for seed in 100..106 {
        let case = random_case(seed);
        let dir = tempfile::tempdir().unwrap();
        written(&case, &dir.path().join("model"));
        let (good, bad, target) =
            (dir.path().join("good.safetensors"), dir.path().join("bad"), dir.path().join("onnx"));
        record(&case, &good, None);
        let run = |record: &Path| {
            let mut command = command("ba-export");
            command.arg("--model").arg(dir.path().join("model")).arg("-o").arg(&target).arg("--verify").arg(record);
            finish(command.arg("--json"))
        };
        let stage = ["adapter", "vision", "text", "v", "t", "logits"][(seed % 6) as usize];
        record(&case, &bad, Some(stage));
        // Nothing is there before, and nothing after.
        let refused = run(&bad).fails("verify.mismatch").naming(&["bad", stage]);
        assert!(refused.stderr.contains("FAILED"), "{refused:#?}");
        assert!(!target.exists() && !commands::names(dir.path()).iter().any(|n| n.contains("partial")));
        let done = run(&good).ok();
        let checks = done.json()["verified"].as_array().unwrap().clone();
        assert!(checks.len() >= 6 && checks.iter().all(|c| c["passed"] == true), "{done:#?}");
        compare(&case, &run_bundle(&Bundle::open(&target).unwrap(), &case));
        let before = snapshot(&target);
        run(&bad).fails("verify.mismatch");
        assert_eq!(snapshot(&target), before);
    }
}

#[test]
fn records_that_cannot_be_used() {
    let case = random_case(7);
    let dir = tempfile::tempdir().unwrap();
    written(&case, &dir.path().join("model"));
    let path = dir.path().join("record.safetensors");
    let verify = |tensors: Vec<(&str, Dtype, Array)>| {
        files::write_safetensors(&path, tensors.iter().map(|(n, d, a)| ((*n).to_owned(), *d, a)));
        let mut plan = Plan::new(Sources::in_folder(&dir.path().join("model")).unwrap(), dir.path().join("onnx"));
        plan.verify = Some(path.clone());
        export::run(&plan, &mut Silent).map(|s| s.verified.len()).map_err(|e| (e.code(), e.to_string()))
    };
    let stages = case.forward();
    let volume = || ("volume", Dtype::F32, case.inputs.volume.clone());
    let nan = |name: &str| {
        let mut array = stages[name].clone();
        array.data[0] = f64::NAN;
        array
    };
    let code = |result: Result<usize, (Code, String)>| result.unwrap_err().0;
    assert_eq!(code(verify(vec![])), Code::VERIFY_INPUT);
    assert_eq!(code(verify(vec![volume()])), Code::VERIFY_INPUT);
    assert_eq!(code(verify(vec![("adapter", Dtype::F32, stages["adapter"].clone())])), Code::VERIFY_INPUT);
    let short = Array::new(&[1, 2], vec![0.0; 2]);
    assert_eq!(code(verify(vec![volume(), ("adapter", Dtype::F32, short.clone())])), Code::VERIFY_MISMATCH);
    assert_eq!(code(verify(vec![("volume", Dtype::F32, short)])), Code::VERIFY_INPUT);
    assert_eq!(code(verify(vec![volume(), ("adapter", Dtype::F32, nan("adapter"))])), Code::VERIFY_MISMATCH);
    assert_eq!(verify(vec![volume(), ("adapter", Dtype::F32, stages["adapter"].clone())]), Ok(1));
    // A stage in the middle, from a recorded one, in another float type.
    let vision = ("vision", Dtype::F64, stages["vision"].clone());
    assert_eq!(verify(vec![("adapter", Dtype::F64, stages["adapter"].clone()), vision]), Ok(1));
}

#[test]
fn parity_on_calibration_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let calibration = dir.path().join("calibration");
    fs::create_dir(&calibration).unwrap();
    fs::copy(commands::scan(), calibration.join("a.nii.gz")).unwrap();
    fs::write(calibration.join("a.txt"), "Hippocampal atrophy, MTA grade 2.").unwrap();
    fs::write(calibration.join("b.txt"), "Normal study.").unwrap();
    fs::write(calibration.join("README.txt"), "not an input").unwrap();
    fs::write(calibration.join("notes.pdf"), "not an input").unwrap();
    for seed in 200..212 {
        let case = random_case(seed);
        let model = dir.path().join(format!("model{seed}"));
        written(&case, &model);
        let mut plan = Plan::new(Sources::in_folder(&model).unwrap(), dir.path().join(format!("onnx{seed}")));
        plan.calibration = Some(calibration.clone());
        let summary = match export::run(&plan, &mut Silent) {
            Ok(summary) => summary,
            // A grid so coarse that the whole brain is a few equal voxels is no fault of the export.
            Err(e) if e.code() == Code::CALIBRATION_INPUT => panic!("seed {seed}: {e}"),
            Err(e) => panic!("seed {seed}: {}: {e}", e.code()),
        };
        let inputs: Vec<usize> = summary
            .parts
            .iter()
            .map(|part| match &part.record.parity {
                Parity::Checked { inputs, worst } => {
                    assert!(worst.max_rel < 1e-4 && worst.cosine > 0.999_99, "seed {seed} {part:?}");
                    *inputs
                }
                Parity::NotChecked(why) => panic!("seed {seed} {}: {why}", part.part),
            })
            .collect();
        assert_eq!(inputs, [1, 1, 2, 1]);
        let bundle = Bundle::open(&plan.output).unwrap();
        assert!(bundle.manifest.parts.values().all(|p| matches!(p.parity, Parity::Checked { .. })));
        assert!(!commands::names(&plan.output).iter().any(|n| n.starts_with("ba-plain")));
    }
}
