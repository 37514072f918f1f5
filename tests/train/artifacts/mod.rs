//! The folder that `ba-train prepare` writes, trained for three steps of two micro-batches: by stock ONNX Runtime from
//! `training_model.onnx` and `optimizer_model.onnx`, by Microsoft's training runtime, and by this crate's model. All
//! must give the same losses, gradients and parameters; and the onnx package must find the models sound.

mod plain;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use brain_adapter::bundle::sha256_of;
use brain_adapter::checkpoint::Checkpoint;
use brain_adapter::config::AdamW;
use brain_adapter::onnx::EXTERNAL_BYTES;
use brain_adapter::runtime::SessionOptions;
use brain_adapter::tensor::Tensor;
use brain_adapter::train::artifacts::Artifacts;
use brain_adapter::train::{
    Activations, Batch, GraphOptions, Moments, Optimizer, Parameters, StagedModel, TrainingGraphs, moments,
};
use plain::with_plain_sessions;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::commands::{self, ba_train, write_model};
use support::ort_training::{read_npz, run, write_npz};
use support::package;
use support::{common, oracle};

/// Small graphs: threads would only wait for each other.
const ONE_THREAD: SessionOptions = SessionOptions { threads: Some(1), ..SessionOptions::DEFAULT };
const STEPS: usize = 3;
const ACCUMULATE: usize = 2;
const BATCH: usize = 3;
const RATE: f32 = 1e-3;

/// Largest difference of a loss, and of a gradient to its own largest element.
const LOSS: f64 = 2e-6;
const GRADIENT: f64 = 2e-5;
/// Largest difference of a parameter.
///
/// AdamW divides a gradient by its own size, so that an element whose gradient is 0 but for rounding is moved by
/// rounding: in the first step by the learning rate in one direction or the other. Elements whose gradient was less
/// than [`SMALL`] of the largest of its tensor in some step are held to a tenth of a step, and may be few.
const PARAMETER: f64 = 1e-6;
const SMALL: f32 = 1e-5;
const UNSETTLED: f64 = 1e-4;
const FEW: f64 = 5e-3;

/// A model and how it is trained.
struct Case {
    model: &'static str,
    /// The fixture whose ViT and language model it has.
    towers: &'static str,
    mode: &'static str,
    statistics: &'static str,
}

const CASES: [Case; 5] = [
    Case { model: "tiny", towers: "tiny", mode: "tlp", statistics: "batch" },
    Case { model: "tiny", towers: "tiny", mode: "fpm", statistics: "running" },
    Case { model: "tiny", towers: "tiny", mode: "mri", statistics: "batch" },
    Case { model: "tiny-bottleneck3d", towers: "tiny", mode: "tlp", statistics: "batch" },
    Case { model: "tiny-gqa-bf16-sharded", towers: "tiny-gqa-bf16-sharded", mode: "tlp", statistics: "batch" },
];

/// What a training came to.
struct Trained {
    losses: Vec<f32>,
    eval_loss: f32,
    /// Of the first micro-batch.
    first: Parameters,
    parameters: Parameters,
    /// Of each step, both micro-batches together; empty where that is not known.
    steps: Vec<Parameters>,
}

fn feeds(artifacts: &Artifacts) -> BTreeMap<String, Tensor> {
    let config = &artifacts.manifest.config;
    let rng = &mut ChaCha8Rng::seed_from_u64(17);
    let n = STEPS * ACCUMULATE;
    let mut floats = |shape: &[usize], range: std::ops::Range<f32>| {
        let count = shape.iter().product();
        Tensor::f32(shape, (0..count).map(|_| rng.random_range(range.clone())).collect()).unwrap()
    };
    let (slices, side) = (config.adapter.slices_in, config.volume.size);
    let mut all = BTreeMap::from([("volume".to_owned(), floats(&[n, BATCH, slices, side, side], 0.0..1.0))]);
    if artifacts.manifest.mode.reads_reports() {
        all.insert("text".into(), floats(&[n, BATCH, config.text.hidden], -1.5..1.5));
    }
    let labels = (0..n * BATCH).map(|i| (i * 7 / 3 % 3) as i64).collect();
    all.insert("labels".into(), Tensor::i64(&[n, BATCH], labels).unwrap());
    all
}

/// One micro-batch of every input.
fn micro(feeds: &BTreeMap<String, Tensor>, at: usize) -> BTreeMap<String, Tensor> {
    let row = |tensor: &Tensor| match tensor {
        Tensor::F32(all) => Tensor::F32(all.index_axis(ndarray::Axis(0), at).to_owned()),
        Tensor::I64(all) => Tensor::I64(all.index_axis(ndarray::Axis(0), at).to_owned()),
    };
    feeds.iter().map(|(name, tensor)| (name.clone(), row(tensor))).collect()
}

fn largest(found: &Tensor, expected: &Tensor) -> [f64; 2] {
    assert_eq!(found.shape(), expected.shape());
    let (found, expected) = (found.as_f32().unwrap(), expected.as_f32().unwrap());
    let far = found.iter().zip(expected).map(|(f, e)| f64::from((f - e).abs()));
    assert!(found.iter().all(|x| x.is_finite()));
    [far.fold(0.0, f64::max), expected.iter().fold(0.0, |m, x| f64::from(x.abs()).max(m))]
}

/// Whether the gradient of that element was more than rounding in every step, or nothing at all (a ReLU that is off).
fn settled(steps: &[Parameters], name: &str, at: usize) -> bool {
    steps.iter().filter_map(|step| step.get(name)?.as_f32()).all(|g| {
        let most = g.iter().fold(0f32, |m, x| m.max(x.abs()));
        g[at] == 0.0 || g[at].abs() >= SMALL * most
    })
}

/// Holds one training against another.
fn compare(what: &str, found: &Trained, expected: &Trained) {
    let (mut loss, mut gradients, mut parameters, mut unsettled) = (0f64, 0f64, 0f64, 0f64);
    let losses = found.losses.iter().zip(&expected.losses);
    let losses = losses.chain([(&found.eval_loss, &expected.eval_loss)]);
    losses.for_each(|(f, e)| loss = loss.max(f64::from((f - e).abs())));
    assert_eq!(found.first.keys().collect::<Vec<_>>(), expected.first.keys().collect::<Vec<_>>());
    for (name, gradient) in &found.first {
        let [far, size] = largest(gradient, &expected.first[name]);
        gradients = gradients.max(far / size.max(1e-3));
    }
    let (mut few, mut all) = (0, 0);
    for (name, parameter) in &expected.parameters {
        assert!(largest(&found.parameters[name], parameter)[0].is_finite());
        let pairs = found.parameters[name].as_f32().unwrap().iter().zip(parameter.as_f32().unwrap());
        for (i, (f, e)) in pairs.enumerate() {
            let far = f64::from((f - e).abs());
            all += 1;
            let small = !settled(&expected.steps, name, i);
            few += i32::from(small);
            let worst = if small { &mut unsettled } else { &mut parameters };
            *worst = worst.max(far);
        }
    }
    println!(
        "{what}: losses {loss:.1e}, gradients {gradients:.1e}, parameters {parameters:.1e} \
         ({few} of {all} with small gradients: {unsettled:.1e})"
    );
    assert!(loss <= LOSS && gradients <= GRADIENT && parameters <= PARAMETER && unsettled <= UNSETTLED, "{what}");
    assert!(f64::from(few) <= FEW * f64::from(all), "{what}: {few} of {all}");
}

fn dense(artifacts: &Artifacts) -> BTreeMap<String, Tensor> {
    let state = artifacts.state().unwrap();
    let float = state.trainable.iter().chain(&state.frozen).filter(|(n, _)| !n.ends_with("num_batches_tracked"));
    float.map(|(n, t)| (n.clone(), Tensor::f32(t.shape(), t.to_f32().unwrap()).unwrap())).collect()
}

/// Three steps with the crate's model and flat optimizer.
fn with_the_staged_model(artifacts: &Artifacts, feeds: &BTreeMap<String, Tensor>) -> Trained {
    let m = &artifacts.manifest;
    let (mode, statistics) = (m.mode, m.statistics);
    let options = GraphOptions { mode, statistics, activations: Activations::Recompute, class_weights: None };
    let trained = |name: &str| m.mode.trains(name);
    let graphs = TrainingGraphs::new(&m.config, &options, &trained).unwrap();
    let mut model = StagedModel::new(common::runtime(), ONE_THREAD, &graphs, artifacts.frozen().unwrap());
    let mut parameters = dense(artifacts);
    let mut state: Moments = moments(&parameters, &trained);
    let adam = AdamW { weight_decay: 0.0, clip: None, ..AdamW::default() };
    let mut optimizer = Optimizer::new(common::runtime(), &ONE_THREAD, &adam, &state).unwrap();
    let batch = |at| {
        let mut one = micro(feeds, at);
        let mut take = |name: &str| one.remove(name);
        Batch { volumes: take("volume").unwrap(), text: take("text"), labels: take("labels").unwrap() }
    };
    let (mut losses, mut first, mut steps) = (Vec::new(), Parameters::new(), Vec::new());
    for step in 0..STEPS {
        let (mut sum, mut loss) = (Parameters::new(), 0.0);
        for j in 0..ACCUMULATE {
            let found = model.forward_backward(&parameters, &batch(step * ACCUMULATE + j), 1.0).unwrap();
            loss += found.heads.loss / ACCUMULATE as f32;
            for (name, gradient) in found.gradients {
                let before = sum.remove(&name);
                let both = match (before, &gradient) {
                    (Some(Tensor::F32(a)), Tensor::F32(b)) => Tensor::F32(a + b),
                    _ => gradient,
                };
                sum.insert(name, both);
            }
            if step + j == 0 {
                first.clone_from(&sum);
            }
        }
        losses.push(loss);
        optimizer.step(&mut parameters, &mut state, &sum, step as i64 + 1, RATE).unwrap();
        steps.push(sum);
    }
    let one = batch(0);
    let vision = model.features(&parameters, &one.volumes).unwrap();
    let outcome = model.evaluate_heads(&parameters, &vision, one.text.as_ref(), &one.labels).unwrap();
    Trained { losses, eval_loss: outcome.loss, first, parameters, steps }
}

fn script(python: &Path, name: &str, arguments: &[&Path]) -> Vec<u8> {
    let done = Command::new(python).arg(package("tests/scripts").join(name)).args(arguments).output().unwrap();
    assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

/// The same in Microsoft's runtime; none where there is none. Tensors have the shapes of `like`'s.
fn with_microsofts_runtime(folder: &Path, feeds: &BTreeMap<String, Tensor>, like: &Trained) -> Option<Trained> {
    let python = oracle::ort119("the artifacts trained by Microsoft's runtime")?;
    let [given, out] = ["feeds.npz", "out.npz"].map(|name| folder.join(name));
    write_npz(&given, feeds);
    let (rate, accumulate) = (RATE.to_string(), ACCUMULATE.to_string());
    run(&python, folder, &given, &out, &[("lr", Path::new(&rate)), ("accumulate", Path::new(&accumulate))]);
    let mut found = read_npz(&out);
    let mut all = |prefix: &str, like: &Parameters| -> Parameters {
        let mut take = |name: &String| found.remove(&format!("{prefix}{name}")).unwrap();
        like.iter().map(|(name, t)| (name.clone(), Tensor::f32(t.shape(), take(name)).unwrap())).collect()
    };
    let (first, parameters) = (all("grad0.", &like.first), all("param.", &like.parameters));
    let losses = found.remove("losses").unwrap();
    let eval_loss = found.remove("eval_loss").unwrap()[0];
    assert!(losses.len() == STEPS && found.is_empty(), "{:?}", found.keys());
    Some(Trained { losses, eval_loss, first, parameters, steps: Vec::new() })
}

/// The models are valid, and every large weight of theirs is the one in `frozen.safetensors`, which lies on the disk
/// once.
fn sound(python: &Path, folder: &Path, what: &str) {
    let apart = tempfile::tempdir().unwrap();
    for name in ["training_model.onnx", "eval_model.onnx", "frozen.safetensors"] {
        fs::copy(folder.join(name), apart.path().join(name)).unwrap();
    }
    let report = script(python, "onnx_check.py", &[apart.path()]);
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    let frozen = Checkpoint::open(folder.join("frozen.safetensors")).unwrap();
    let mut weights = 0;
    for name in ["training_model.onnx", "eval_model.onnx"] {
        let row = &report[name];
        assert!(row["error"].is_null() && row["wrong"] == serde_json::json!([]), "{what} {name}: {row}");
        for (weight, row) in row["weights"].as_object().unwrap() {
            // Small ones lie in the graphs, as in a bundle.
            assert_eq!(row["offset"].is_null(), row["bytes"].as_u64().unwrap() < EXTERNAL_BYTES as u64, "{weight}");
            if row["offset"].is_null() {
                continue;
            }
            let scratch = apart.path().join("scratch");
            let tensor = frozen.get(weight).unwrap_or_else(|| panic!("{what} {name} {weight}"));
            fs::write(&scratch, tensor.bytes().unwrap()).unwrap();
            assert_eq!(row["sha256"], sha256_of(&scratch).unwrap(), "{weight}");
            weights += 1;
        }
    }
    assert!(weights >= 10, "{what}: {weights}");
}

/// The Python that has the onnx package; none where it is skipped.
fn checker() -> Option<PathBuf> {
    oracle::python("the artifacts in plain sessions and the onnx package's checker")
}

#[test]
fn frozen_weights_lie_on_the_disk_once() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("training");
    ba_train(&[&"prepare", &"--model", &package("examples/demo/checkpoint"), &"-o", &folder]).ok();
    let size = |name: &str| fs::metadata(folder.join(name)).unwrap().len();
    let frozen = Checkpoint::open(folder.join("frozen.safetensors")).unwrap();
    let weights: u64 = frozen.iter().map(|(_, t)| t.byte_len() as u64).sum();
    assert!(size("frozen.safetensors") < weights + weights / 50);
    // The rest of this model, graphs, adapter and heads, is small next to them.
    let others = ["training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint", "training.json"];
    assert!(others.iter().map(|name| size(name)).sum::<u64>() < weights / 2);
    assert_eq!(commands::names(&folder).len(), 6);
    if let Some(python) = checker() {
        sound(&python, &folder, "demo");
    }
}

#[test]
fn artifacts_train_alike_everywhere() {
    let checker = checker();
    for Case { model: name, towers, mode, statistics } in CASES {
        let what = format!("{name} {mode} {statistics}");
        let dir = tempfile::tempdir().unwrap();
        let (model, folder) = (dir.path().join("model"), dir.path().join("training"));
        write_model(&model, name, towers);
        ba_train(&[
            &"prepare",
            &"--model",
            &model,
            &"--mode",
            &mode,
            &"--norm-statistics",
            &statistics,
            &"-o",
            &folder,
        ])
        .ok();
        let artifacts = Artifacts::open(&folder).unwrap();
        let feeds = feeds(&artifacts);
        let model = with_the_staged_model(&artifacts, &feeds);
        let before = dense(&artifacts);
        for (name, tensor) in &model.parameters {
            let moved = largest(tensor, &before[name])[0];
            assert_eq!(moved > 0.0, artifacts.manifest.mode.trains(name), "{what} {name}: {moved}");
        }
        let scratch = dir.path().join("scratch");
        fs::create_dir(&scratch).unwrap();
        commands::copy_files(&folder, &scratch);
        if let Some(theirs) = with_microsofts_runtime(&scratch, &feeds, &model) {
            compare(&format!("{what}, Microsoft"), &theirs, &model);
        }
        if let Some(python) = &checker {
            let plain = with_plain_sessions(python, &scratch, &artifacts, &feeds);
            compare(&format!("{what}, plain sessions"), &plain, &model);
            sound(python, &folder, &what);
        }
    }
}
