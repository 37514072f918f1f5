//! What this crate writes, in the eyes of the `onnx` package: valid, of the shapes that it declares, with the right
//! weights. Needs a Python with `onnx`, named by `BA_PYTHON` (`make test` does).

use std::collections::BTreeMap;
use std::path::Path;

use brain_adapter::bundle::sha256_of;
use brain_adapter::config::{Config, LlamaConfig};
use brain_adapter::graph::{Domain, Graph};
use brain_adapter::model::{self, Attention, Stages, Weights};
use brain_adapter::onnx::{ALIGNMENT, EXTERNAL_BYTES};
use brain_adapter::passes::quantize::{self, Scheme};
use brain_adapter::passes::{self, fold_batch_norm};
use brain_adapter::tensor::{DType, LazyTensor};
use serde_json::Value;
use support::reference::{self, Array, generate::random_case};
use support::{oracle, rules};

/// Writes the graphs, and has Python check them; none where Python is skipped.
fn check(graphs: &BTreeMap<String, Graph>) -> Option<Value> {
    let dir = tempfile::tempdir().unwrap();
    for (name, graph) in graphs {
        brain_adapter::onnx::write(graph, dir.path(), name, &mut |_| {}).unwrap();
    }
    let report = oracle::run_python("the onnx package's checker", "tests/scripts/onnx_check.py", [dir.path()])?;
    let report: Value = serde_json::from_slice(&report).unwrap();
    for (name, graph) in graphs {
        let row = &report[format!("{name}.onnx")];
        assert!(row["error"].is_null(), "{name}: {}\n{graph}", row["error"]);
        assert_eq!(row["wrong"], serde_json::json!([]), "{name}\n{graph}");
        weights_agree(name, graph, &row["weights"], dir.path());
    }
    Some(report)
}

/// Every weight is where alignment wants it, and holds the source's bytes.
fn weights_agree(name: &str, graph: &Graph, found: &Value, dir: &Path) {
    let ids = graph.initializers();
    assert_eq!(found.as_object().unwrap().len(), ids.len(), "{name}");
    let mut end = 0;
    for id in ids {
        let value = graph.value(id);
        let (tensor, row) = (value.init.as_ref().unwrap(), &found[&value.name]);
        let bytes = tensor.bytes().unwrap();
        let scratch = dir.join("scratch");
        std::fs::write(&scratch, &bytes).unwrap();
        assert_eq!(row["sha256"], sha256_of(&scratch).unwrap(), "{name} {}", value.name);
        assert_eq!(row["shape"], serde_json::json!(tensor.shape()), "{name} {}", value.name);
        match row["offset"].as_u64() {
            None => assert!(bytes.len() < EXTERNAL_BYTES, "{name} {}", value.name),
            Some(offset) => {
                assert_eq!((offset % ALIGNMENT, row["length"].as_u64()), (0, Some(bytes.len() as u64)));
                assert!(bytes.len() >= EXTERNAL_BYTES && offset >= end, "{name} {} overlaps", value.name);
                end = offset + bytes.len() as u64;
            }
        }
    }
    let data = dir.join(format!("{name}.onnx.data"));
    assert_eq!(data.metadata().map_or(0, |m| m.len()), end, "{name}: bytes behind the last weight");
}

fn weights(tensors: &reference::Weights, prefix: &str) -> Weights {
    let lazy = |a: &Array| LazyTensor::from_f32(&a.shape, &a.to_f32());
    tensors.iter().map(|(n, a)| (n.strip_prefix(prefix).unwrap_or(n).to_owned(), lazy(a))).collect()
}

#[test]
fn graphs_of_every_kind() {
    let mut graphs = BTreeMap::new();
    let mut kinds = std::collections::BTreeSet::new();
    for case in (0..40).map(random_case) {
        let config: Config = serde_json::from_value(case.config.clone()).unwrap();
        let kind = format!("{:?}-{:?}", config.adapter.kind, config.adapter.norm);
        let seed = case.seed;
        if !kinds.insert(kind.clone()) && seed > 8 {
            continue;
        }
        let adapter = model::adapter::build(&config, &weights(&case.heads, "")).unwrap();
        graphs.insert(format!("{seed}-{kind}-folded"), fold_batch_norm(adapter.clone()).unwrap().0);
        graphs.insert(format!("{seed}-{kind}"), adapter);
        let vit = weights(&case.vit, "");
        for form in [Attention::Fused, Attention::Decomposed] {
            for stages in [Stages::Output, Stages::All] {
                let graph = model::vit::build(&config, &vit, form, stages).unwrap();
                graphs.insert(format!("{seed}-vision-{form:?}-{stages:?}"), graph);
            }
        }
        let llama = LlamaConfig::from_hf(&case.llama_config).unwrap();
        let text = weights(&case.llama, "model.");
        let graph = model::llama::build(&llama, config.text.pool, &text, Stages::All).unwrap();
        graphs.insert(format!("{seed}-text-{}-of-{}", llama.kv_heads, llama.heads), graph);
        graphs.insert(format!("{seed}-heads"), model::heads::build(&config, &weights(&case.heads, "")).unwrap());
    }
    assert_eq!(kinds.len(), 6, "{kinds:?}");
    let Some(report) = check(&graphs) else { return };
    for (name, graph) in &graphs {
        // Behind ONNX Runtime's own operators nothing can be inferred; of the others, nearly all.
        if graph.nodes.iter().all(|n| n.op.domain == Domain::Onnx) {
            let row = &report[format!("{name}.onnx")];
            assert_eq!(row["compared"], row["declared"], "{name}");
        }
    }
    let external = report.as_object().unwrap().values().flat_map(|r| r["weights"].as_object().unwrap().values());
    assert!(external.filter(|w| !w["offset"].is_null()).count() > 10, "hardly any weight was external");
}

/// Graphs in reduced precision, with weights of every kind of integer.
#[test]
fn reduced_graphs() {
    let mut graphs = BTreeMap::new();
    for case in [0, 1, 4, 6].map(random_case) {
        let seed = case.seed;
        let config: Config = serde_json::from_value(case.config.clone()).unwrap();
        let llama = LlamaConfig::from_hf(&case.llama_config).unwrap();
        let text = model::llama::build(&llama, config.text.pool, &weights(&case.llama, "model."), Stages::Output);
        let vision = model::vit::build(&config, &weights(&case.vit, ""), Attention::Fused, Stages::Output);
        let adapter = model::adapter::build(&config, &weights(&case.heads, "")).and_then(fold_batch_norm);
        let adapter = adapter.unwrap().0;
        let made = adapter.nodes.iter().flat_map(|n| &n.outputs).chain(&adapter.inputs);
        let ranges = made.map(|&id| (adapter.value(id).name.clone(), (-1.5, 2.5))).collect();
        if let Some(graph) = passes::quantize_convolutions(&adapter, &ranges).unwrap() {
            graphs.insert(format!("{seed}-adapter-int8"), graph);
        }
        graphs.insert(format!("{seed}-adapter-fp16"), passes::to_fp16(&adapter, &Default::default()).unwrap());
        for graph in [text.unwrap(), vision.unwrap()] {
            let half = passes::to_fp16(&graph, &Default::default()).unwrap();
            graphs.insert(format!("{seed}-{}-fp16", graph.name), half);
            let layers = passes::linears(&graph, 0..graph.nodes.len());
            let blocks = |bits| Scheme::Blocks { bits, block: 32 };
            for scheme in [
                Scheme::INT8,
                Scheme::Int8 { zero_point: 24 },
                Scheme::Int8Tensor,
                blocks(8),
                blocks(4),
                Scheme::Fp16Weight,
            ] {
                let schemes = layers.iter().map(|l| (l.name.clone(), scheme)).collect();
                let max_abs = layers.iter().map(|l| (l.name.clone(), 3.0)).collect();
                let plan = quantize::Plan { schemes, max_abs, tables: Some(DType::F16), ..Default::default() };
                let name = format!("{seed}-{}-{}", graph.name, scheme.to_string().replace([' ', '/'], "-"));
                let reduced = quantize::quantize(&graph, &plan).unwrap();
                if matches!(scheme, Scheme::Int8Tensor | Scheme::Blocks { .. }) {
                    // As GPUs get it.
                    let half = passes::to_fp16(&reduced, &Default::default()).unwrap();
                    let half = passes::decompose_attention(&half, passes::Scores::Whole).unwrap();
                    graphs.insert(format!("{name}-half"), half);
                }
                graphs.insert(name, reduced);
            }
        }
    }
    assert!(graphs.len() >= 50);
    check(&graphs);
}

/// Each form that a type rule accepts is one that ONNX accepts, with the same result.
#[test]
fn type_rules_agree_with_onnx() {
    let accepted = rules::rows().into_iter().filter(|(_, _, expected)| *expected != "!");
    let graph = |(i, (op, operands, _)): (usize, _)| {
        let op: brain_adapter::graph::Op = op;
        (format!("{i:03}-{}", op.kind), rules::graph(op, operands, 1).unwrap())
    };
    let graphs: BTreeMap<String, Graph> = accepted.enumerate().map(graph).collect();
    assert!(graphs.len() > 25);
    check(&graphs);
}
