//! Every language model of the allow-list against transformers' own class: recorded hidden states, and live ones of
//! other sizes and weights. Weights are made from a seed by the same formula on both sides
//! (`tests/scripts/language_models.py`).

use brain_adapter::config::{LlamaConfig, TextPool};
use brain_adapter::model::{self, Stages, Weights, keys};
use brain_adapter::runtime::{Session, SessionOptions};
use brain_adapter::tensor::Tensor;
use serde_json::Value;
use support::formula::formula_weight;
use support::{common, oracle, package};

/// Largest difference, relative to the largest value.
const TOLERANCE: f32 = 1e-4;

fn ints(rows: &Value) -> Tensor {
    let rows: Vec<Vec<i64>> = serde_json::from_value(rows.clone()).unwrap();
    Tensor::i64(&[rows.len(), rows[0].len()], rows.concat()).unwrap()
}

fn run(llama: &LlamaConfig, weights: &Weights, pool: TextPool, case: &Value) -> Vec<f32> {
    let graph = model::llama::build(llama, pool, weights, Stages::Output).unwrap();
    let dir = tempfile::tempdir().unwrap();
    brain_adapter::onnx::write(&graph, dir.path(), "graph", &mut |_| {}).unwrap();
    let options = SessionOptions { threads: Some(1), ..SessionOptions::default() };
    let mut session = Session::open(common::runtime(), &dir.path().join("graph.onnx"), &options).unwrap();
    let (ids, mask) = (ints(&case["ids"]), ints(&case["mask"]));
    let found = session.run(&[("input_ids", &ids), ("attention_mask", &mask)], &["text"]).unwrap();
    found[0].as_f32().unwrap().to_vec()
}

/// Holds all cases of a record; their number.
fn compare(record: &[u8], seed: u64) -> usize {
    let cases: Vec<Value> = serde_json::from_slice(record).unwrap();
    for case in &cases {
        let name = format!("{} of seed {seed}", case["name"]);
        let llama = LlamaConfig::from_hf(&case["config"]).unwrap_or_else(|e| panic!("{name}: {e}"));
        // What a bundle keeps of it is all of it.
        let kept = serde_json::to_string(&llama).unwrap();
        assert_eq!(serde_json::from_str::<LlamaConfig>(&kept).unwrap(), llama, "{name}");
        let keys = keys::text(&llama);
        assert_eq!(keys.len() as u64, case["tensors"].as_u64().unwrap(), "{name}: tensors");
        let weights: Weights =
            keys.iter().map(|(key, shape)| (key.clone(), formula_weight(key, shape, seed))).collect();
        for (pool, field) in [(TextPool::Mean, "mean"), (TextPool::Last, "last")] {
            let expected: Vec<f32> = serde_json::from_value(case[field].clone()).unwrap();
            let found = run(&llama, &weights, pool, case);
            common::assert_close(&format!("{name}, {field}"), &found, &expected, TOLERANCE);
        }
    }
    cases.len()
}

#[test]
fn recorded_hidden_states_are_those_of_transformers() {
    let record = std::fs::read(package("tests/data/language-models/1.json")).unwrap();
    assert_eq!(compare(&record, 1), 27);
}

#[test]
fn live_hidden_states_are_those_of_transformers() {
    for seed in 2..5 {
        let Some(python) = oracle::torch("hidden states by transformers") else { return };
        let script = package("tests/scripts/language_models.py");
        let done = std::process::Command::new(python).arg(script).arg(seed.to_string()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(compare(&done.stdout, seed), 27);
    }
}
