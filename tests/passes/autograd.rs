//! Losses and gradients against PyTorch's autograd in float64, on small random models: every kind of adapter and norm,
//! vision transformers of one to three blocks with both poolings, all modes, batches of one to three; and the loss
//! alone around the clamp of its scale and with weights of classes. `tests/data/fixtures/autograd/record.py` made the
//! recorded values.

use std::collections::{BTreeMap, BTreeSet};

use brain_adapter::config::Config;
use brain_adapter::model::adapter::Statistics;
use brain_adapter::model::{Attention, Mode, Stages, Weights, loss, vit};
use brain_adapter::passes::{autodiff, weights_to_inputs};
use brain_adapter::runtime::{Session, SessionOptions};
use brain_adapter::tensor::{LazyTensor, Tensor};
use brain_adapter::train::{Activations, Batch, FrozenWeights, GraphOptions, Parameters, StagedModel, TrainingGraphs};
use serde_json::Value;
use support::common::runtime;
use support::package;
use support::training::{self, norm_error};

/// Largest relative error in norm of a gradient, and relative error of a loss.
const LIMIT: f64 = 1e-5;

fn cases(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(package("tests/data/fixtures/autograd").join(file)).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["cases"].as_array().unwrap().clone()
}

fn part(file: &str, case: &Value, name: &str) -> BTreeMap<String, Tensor> {
    let prefix = format!("{}/{name}/", case["name"].as_str().unwrap());
    let all = training::lazy(&format!("autograd/{file}.safetensors"), &prefix).into_iter();
    let read = |t: LazyTensor| Tensor::f32(t.shape(), t.to_f32().unwrap()).unwrap();
    all.filter(|(name, _)| name != "labels").map(|(name, t)| (name, read(t))).collect()
}

fn labels(file: &str, case: &Value) -> Tensor {
    let prefix = format!("{}/in/labels", case["name"].as_str().unwrap());
    let bytes = training::lazy(&format!("autograd/{file}.safetensors"), &prefix)[""].bytes().unwrap().into_owned();
    let values: Vec<i64> = bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    Tensor::i64(&[values.len()], values).unwrap()
}

fn lazy_weights(tensors: &BTreeMap<String, Tensor>) -> Weights {
    let lazy = |t: &Tensor| LazyTensor::from_f32(t.shape(), t.as_f32().unwrap());
    tensors.iter().map(|(name, t)| (name.clone(), lazy(t))).collect()
}

fn mode(case: &Value) -> Mode {
    serde_json::from_value(case["mode"].clone()).unwrap()
}

/// Holds gradients against recorded ones: the same names, each close. Gives the largest error.
fn compare(what: &str, found: &BTreeMap<String, Tensor>, expected: &BTreeMap<String, Tensor>, limit: f64) -> f64 {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    let mut worst = 0f64;
    for (name, expected) in expected {
        let largest = expected.as_f32().unwrap().iter().fold(0f32, |m, v| m.max(v.abs()));
        let error = norm_error(&found[name], expected);
        // A gradient that cancels out in float64 is rounding in float32: its absolute error counts.
        let error = if largest > 0.0 && largest < 1e-7 { error * f64::from(largest) } else { error };
        assert!(error <= limit, "{what} {name}: {error:.1e}");
        worst = worst.max(error);
    }
    worst
}

fn close(what: &str, found: f32, case: &Value) {
    let expected = case["loss"].as_f64().unwrap();
    let error = (f64::from(found) - expected).abs();
    assert!(error <= LIMIT * expected.abs().max(0.1), "{what}: loss {found}, expected {expected}");
}

fn model(case: &Value, activations: Activations) -> f64 {
    let what = format!("{} {} {activations:?}", case["name"], case["config"]["adapter"]);
    let config: Config = serde_json::from_value(case["config"].clone()).unwrap();
    config.validate().unwrap();
    let (mode, frozen) = (mode(case), part("models", case, "vit"));
    let graph = vit::build(&config, &lazy_weights(&frozen), Attention::Fused, Stages::Output).unwrap();
    let frozen = FrozenWeights::new(weights_to_inputs(&graph, &|name| !name.starts_with("const.")).unwrap().1).unwrap();
    let statistics: Statistics = serde_json::from_value(case["statistics"].clone()).unwrap();
    let options = GraphOptions { mode, statistics, activations, class_weights: None };
    let graphs = TrainingGraphs::new(&config, &options, &|name| mode.trains(name)).unwrap();
    let session = SessionOptions { threads: Some(1), ..SessionOptions::default() };
    let mut model = StagedModel::new(runtime(), session, &graphs, frozen);
    let parameters: Parameters = part("models", case, "heads");
    let mut feed = part("models", case, "in");
    let batch =
        Batch { volumes: feed.remove("volume").unwrap(), text: feed.remove("text"), labels: labels("models", case) };
    let step = model.forward_backward(&parameters, &batch, 1.0).unwrap();
    close(&what, step.heads.loss, case);
    compare(&what, &step.running_stats, &part("models", case, "moved"), 1e-6);
    compare(&what, &step.gradients, &part("models", case, "grad"), LIMIT)
}

#[test]
fn whole_models_are_those_of_pytorch() {
    let cases = cases("models.json");
    let mut seen = BTreeSet::new();
    for case in &cases {
        let config = &case["config"];
        let of = |a: &str, b: &str| config[a][b].to_string();
        seen.insert(format!("{} {} {}", of("adapter", "kind"), of("adapter", "norm"), case["statistics"]));
        seen.insert(format!("{} {}", of("vision", "pool"), of("vision", "layers")));
        seen.insert(case["mode"].to_string());
        for activations in [Activations::Recompute, Activations::Save] {
            println!("{} {activations:?}: {:.1e}", case["name"], model(case, activations));
        }
    }
    // Kinds and norms, poolings and depths, modes.
    assert_eq!(seen.len(), 2 * 4 + 2 * 3 + 3, "{seen:?}");
}

/// The loss by itself, and its gradient with respect to every input.
fn loss_alone(case: &Value) -> f64 {
    let (mode, sizes) = (mode(case), &case["sizes"]);
    let size = |i: usize| sizes[i].as_u64().unwrap() as usize;
    let mut config = Config::default();
    (config.vision.hidden, config.text.hidden, config.projection.dim) = (size(0), size(1), size(2));
    config.labels.0 = (0..size(3)).map(|i| format!("class {i}")).collect();
    config.train.contrastive_weight = 0.7;
    let class_weights: Option<Vec<f32>> = serde_json::from_value(case["class_weights"].clone()).unwrap();
    let weights = part("losses", case, "heads");
    let graph = loss::build(&config, &lazy_weights(&weights), mode, class_weights.as_deref()).unwrap();
    let free = |name: &str| !name.starts_with("const.") && name != "class_weights";
    let graph = weights_to_inputs(&graph, &free).unwrap().0;
    let expected = part("losses", case, "grad");
    let wrt: Vec<&str> = expected.keys().map(String::as_str).collect();
    let graph = autodiff::joint(&graph, &["loss"], &wrt).unwrap();
    let bytes = brain_adapter::onnx::to_bytes(&graph).unwrap();
    let options = SessionOptions { threads: Some(1), ..SessionOptions::default() };
    let mut session = Session::open_bytes(runtime(), &bytes, "loss", &options).unwrap();
    let (labels, one) = (labels("losses", case), Tensor::f32(&[], vec![1.0]).unwrap());
    let given = part("losses", case, "in");
    let mut feed: Vec<(&str, &Tensor)> = weights.iter().chain(&given).map(|(n, t)| (n.as_str(), t)).collect();
    feed.extend([("labels", &labels), ("d.loss", &one)]);
    let names: Vec<String> = std::iter::once("loss".to_owned()).chain(wrt.iter().map(|n| format!("d.{n}"))).collect();
    let outputs: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut found = session.run(&feed, &outputs).unwrap().into_iter();
    let what = format!("{case}");
    close(&what, found.next().unwrap().as_f32().unwrap()[0], case);
    let found: BTreeMap<String, Tensor> = wrt.iter().map(|n| (*n).to_owned()).zip(found).collect();
    if let (Some(scale), Some(expected)) = (found.get("logit_scale"), expected.get("logit_scale")) {
        // At the clamp and above it not small, but nothing.
        let clamped = weights["logit_scale"].as_f32().unwrap()[0] >= 100f32.ln();
        assert!(!clamped || (scale.as_f32() == Some(&[0.0]) && expected.as_f32() == Some(&[0.0])), "{what}");
    }
    compare(&what, &found, &expected, LIMIT)
}

#[test]
fn losses_are_those_of_pytorch() {
    let cases = cases("losses.json");
    let errors = cases.iter().map(loss_alone);
    println!("{} losses: {:.1e}", cases.len(), errors.fold(0f64, f64::max));
    let batches: BTreeSet<_> = cases.iter().map(|c| c["sizes"][4].as_u64().unwrap()).collect();
    assert!(batches.contains(&1) && cases.iter().any(|c| !c["class_weights"].is_null()));
}
