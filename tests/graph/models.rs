//! The four graphs in ONNX Runtime against the independent reference, on random configurations, stage by stage.

use brain_adapter::config::{Config, LlamaConfig, TextPool};
use brain_adapter::graph::Graph;
use brain_adapter::model::{self, Attention, Stages, Weights};
use brain_adapter::passes::fold_batch_norm;
use brain_adapter::runtime::{Session, SessionOptions};
use brain_adapter::tensor::{LazyTensor, Tensor};
use support::common;
use support::reference::{
    self, Array,
    generate::{Case, random_case},
};

/// Largest difference allowed, relative to the largest magnitude of the stage: what float32 arithmetic leaves.
const TOLERANCE: f32 = 1e-4;
const CASES: u64 = 60;

fn weights(tensors: &reference::Weights, prefix: &str) -> Weights {
    let lazy = |a: &Array| LazyTensor::from_f32(&a.shape, &a.to_f32());
    tensors.iter().map(|(n, a)| (n.strip_prefix(prefix).unwrap_or(n).to_owned(), lazy(a))).collect()
}

fn config(case: &Case) -> Config {
    let config: Config = serde_json::from_value(case.config.clone()).unwrap();
    config.validate().unwrap();
    config
}

fn run(graph: &Graph, inputs: &[(&str, &Tensor)], outputs: &[&str]) -> Vec<Tensor> {
    let dir = tempfile::tempdir().unwrap();
    brain_adapter::onnx::write(graph, dir.path(), "graph", &mut |_| {}).unwrap();
    let path = dir.path().join("graph.onnx");
    let options = SessionOptions { threads: Some(1), ..SessionOptions::default() };
    Session::open(common::runtime(), &path, &options).unwrap().run(inputs, outputs).unwrap()
}

fn compare(case: &Case, stage: &str, found: &Tensor, expected: &Array) {
    assert_eq!(found.shape(), expected.shape, "seed {} {stage}", case.seed);
    common::assert_close(
        &format!("seed {} {stage}", case.seed),
        found.as_f32().unwrap(),
        &expected.to_f32(),
        TOLERANCE,
    );
}

fn float(array: &Array) -> Tensor {
    Tensor::f32(&array.shape, array.to_f32()).unwrap()
}

fn ints(rows: &[Vec<i64>]) -> Tensor {
    Tensor::i64(&[rows.len(), rows[0].len()], rows.concat()).unwrap()
}

#[test]
fn adapter_and_its_folded_form() {
    for case in (0..CASES).map(random_case) {
        let expected = case.forward();
        let graph = model::adapter::build(&config(&case), &weights(&case.heads, "")).unwrap();
        let norms = graph.nodes.iter().filter(|n| n.op.kind == "BatchNormalization").count();
        let (folded, count) = fold_batch_norm(graph.clone()).unwrap();
        assert_eq!(count, norms);
        assert!(folded.nodes.iter().all(|n| n.op.kind != "BatchNormalization"));
        for graph in [graph, folded] {
            let found = run(&graph, &[("volume", &float(&case.inputs.volume))], &["adapter"]);
            compare(&case, "adapter", &found[0], &expected["adapter"]);
        }
    }
}

#[test]
fn vision_in_both_attention_forms() {
    for case in (0..CASES).map(random_case) {
        let expected = case.forward();
        let (config, weights) = (config(&case), weights(&case.vit, ""));
        let input = float(&expected["adapter"]);
        for form in [Attention::Fused, Attention::Decomposed] {
            let graph = model::vit::build(&config, &weights, form, Stages::Output).unwrap();
            let found = run(&graph, &[("adapter", &input)], &["vision"]);
            compare(&case, "vision", &found[0], &expected["vision"]);
        }
        let graph = model::vit::build(&config, &weights, Attention::Fused, Stages::All).unwrap();
        let mut stages = vec!["vision", "vision_patch_tokens", "vision_tokens"];
        stages.extend((config.vision.layers > 1).then_some("vision_block0"));
        for (stage, found) in stages.iter().zip(run(&graph, &[("adapter", &input)], &stages)) {
            compare(&case, stage, &found, &expected[*stage]);
        }
    }
}

#[test]
fn text_with_padding_and_every_head_layout() {
    for case in (0..CASES).map(random_case) {
        let expected = case.forward();
        let llama = LlamaConfig::from_hf(&case.llama_config).unwrap();
        let weights = weights(&case.llama, "model.");
        let (ids, mask) = (ints(&case.inputs.input_ids), ints(&case.inputs.attention_mask));
        let graph = model::llama::build(&llama, config(&case).text.pool, &weights, Stages::All).unwrap();
        let found = run(&graph, &[("input_ids", &ids), ("attention_mask", &mask)], &["text", "text_hidden"]);
        compare(&case, "text", &found[0], &expected["text"]);
        // Rows of padding mean nothing: compare those of tokens.
        let mut hidden = found[1].clone();
        let Tensor::F32(rows) = &mut hidden else { panic!("float32") };
        for (b, row) in case.inputs.attention_mask.iter().enumerate() {
            for (t, _) in row.iter().enumerate().filter(|(_, m)| **m == 0) {
                rows.slice_mut(ndarray::s![b, t, ..]).fill(0.0);
            }
        }
        compare(&case, "text_hidden", &hidden, &expected["text_hidden"]);
    }
}

#[test]
fn heads_and_similarity() {
    for case in (0..CASES).map(random_case) {
        let expected = case.forward();
        let graph = model::heads::build(&config(&case), &weights(&case.heads, "")).unwrap();
        let mut stages = vec!["v", "t", "logits"];
        stages.extend(expected.contains_key("image_logits").then_some("image_logits"));
        let inputs = [("vision", &float(&expected["vision"])), ("text", &float(&expected["text"]))];
        for (stage, found) in stages.iter().zip(run(&graph, &inputs, &stages)) {
            compare(&case, stage, &found, &expected[*stage]);
        }
        let (v, t) = (&expected["v"], &expected["t"]);
        let similarity: Vec<f32> = (0..v.shape[0])
            .map(|b| {
                let (v, t) = (v.at(b), t.at(b));
                let dot = |x: &Array, y: &Array| x.data.iter().zip(&y.data).map(|(a, b)| a * b).sum::<f64>();
                (dot(&v, &t) / (dot(&v, &v) * dot(&t, &t)).sqrt()) as f32
            })
            .collect();
        let found = run(&graph, &inputs, &["similarity"]);
        common::assert_close(
            &format!("seed {} similarity", case.seed),
            found[0].as_f32().unwrap(),
            &similarity,
            TOLERANCE,
        );
    }
}

#[test]
fn onnx_runtime_logs_no_warning() {
    brain_adapter::runtime::take_log();
    let case = random_case(3);
    let config = config(&case);
    let graph = model::vit::build(&config, &weights(&case.vit, ""), Attention::Fused, Stages::Output).unwrap();
    let expected = case.forward();
    run(&graph, &[("adapter", &float(&expected["adapter"]))], &["vision"]);
    let llama = LlamaConfig::from_hf(&case.llama_config).unwrap();
    let graph = model::llama::build(&llama, TextPool::Last, &weights(&case.llama, "model."), Stages::Output).unwrap();
    let (ids, mask) = (ints(&case.inputs.input_ids), ints(&case.inputs.attention_mask));
    run(&graph, &[("input_ids", &ids), ("attention_mask", &mask)], &["text"]);
    let log = brain_adapter::runtime::take_log();
    assert!(log.is_empty(), "{log:#?}");
}
