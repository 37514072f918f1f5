//! The passes of reduced precision by themselves, with ONNX Runtime as the judge of what their graphs mean.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use brain_adapter::calibrate::{Feed, Inputs, Role, Runner, Walk};
use brain_adapter::config::{LlamaConfig, TextPool};
use brain_adapter::graph::{Graph, Segment, Tail};
use brain_adapter::model::{self, Attention, Stages, Weights};
use brain_adapter::onnx;
use brain_adapter::passes::quantize::{Plan, Scheme, quantize, smooth, smoothing_factors};
use brain_adapter::passes::{
    exceeds_fp16, fold_batch_norm, fp16_nodes, linears, quantizable, quantize_convolutions, rounding, to_fp16,
};
use brain_adapter::progress::Silent;
use brain_adapter::runtime::{Session, SessionOptions};
use brain_adapter::tensor::{DType, LazyTensor, Tensor};
use support::common;
use support::reference::{
    self,
    generate::{Case, case_around, random_case},
    weights::Random,
};

/// Whether this CPU's kernels of uint8 × int8 overflow: x86 without VNNI. ONNX Runtime goes round them in an
/// optimization.
fn products_overflow() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        !(std::arch::is_x86_feature_detected!("avx512vnni") || std::arch::is_x86_feature_detected!("avxvnni"))
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Runs a graph as it is written, operator by operator, unless the CPU's products of integers are wrong; all outputs by
/// name.
pub fn run(graph: &Graph, feed: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let dir = tempfile::tempdir().unwrap();
    onnx::write(graph, dir.path(), "g", &mut |_| {}).unwrap();
    let integers = graph.nodes.iter().any(|n| n.op.kind.contains("Integer"));
    let options = SessionOptions { optimize: integers && products_overflow(), ..SessionOptions::default() };
    let mut session = Session::open(common::runtime(), &dir.path().join("g.onnx"), &options)
        .unwrap_or_else(|e| panic!("{e}\n{graph}"));
    let inputs: Vec<String> = session.inputs();
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|n| (n.as_str(), &feed[n])).collect();
    let names = session.outputs();
    let outputs: Vec<&str> = names.iter().map(String::as_str).collect();
    let results = session.run(&inputs, &outputs).unwrap();
    names.into_iter().zip(results).collect()
}

pub fn normal(rng: &mut Random, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.normal() as f32).collect()
}

fn llama(case: &Case) -> (LlamaConfig, Graph) {
    let config = LlamaConfig::from_hf(&case.llama_config).unwrap();
    let weights: Weights = case
        .llama
        .iter()
        .map(|(n, a)| (n.trim_start_matches("model.").to_owned(), LazyTensor::from_f32(&a.shape, &a.to_f32())))
        .collect();
    let graph = model::llama::build(&config, TextPool::Mean, &weights, Stages::Output).unwrap();
    (config, graph)
}

fn vit(case: &Case) -> Graph {
    let config = serde_json::from_value(case.config.clone()).unwrap();
    let weights: Weights =
        case.vit.iter().map(|(n, a)| (n.clone(), LazyTensor::from_f32(&a.shape, &a.to_f32()))).collect();
    model::vit::build(&config, &weights, Attention::Fused, Stages::Output).unwrap()
}

fn adapter(case: &Case) -> Graph {
    let config = serde_json::from_value(case.config.clone()).unwrap();
    let weights: Weights =
        case.heads.iter().map(|(n, a)| (n.clone(), LazyTensor::from_f32(&a.shape, &a.to_f32()))).collect();
    fold_batch_norm(model::adapter::build(&config, &weights).unwrap()).unwrap().0
}

fn feed(case: &Case, graph: &Graph) -> BTreeMap<String, Tensor> {
    let ints = |rows: &[Vec<i64>]| Tensor::i64(&[rows.len(), rows[0].len()], rows.concat()).unwrap();
    let rng = &mut Random::new(9);
    let mut feed = BTreeMap::from([
        ("volume".to_owned(), Tensor::f32(&case.inputs.volume.shape, case.inputs.volume.to_f32()).unwrap()),
        ("input_ids".to_owned(), ints(&case.inputs.input_ids)),
        ("attention_mask".to_owned(), ints(&case.inputs.attention_mask)),
    ]);
    let image = &graph.value(graph.inputs[0]).ty.shape;
    let image: Vec<usize> = image.iter().map(|d| d.known().unwrap_or(2)).collect();
    let values = normal(rng, image.iter().product());
    feed.insert("adapter".to_owned(), Tensor::f32(&image, values).unwrap());
    feed
}

#[test]
fn smoothing_changes_no_bit() {
    let l = reference::LlamaConfig {
        vocab: 512,
        hidden: 64,
        mlp: 96,
        layers: 2,
        heads: 8,
        kv_heads: 2,
        head_dim: 8,
        eps: 1e-5,
        theta: 1e4,
    };
    let case = case_around(4, &l);
    let rng = &mut Random::new(5);
    for (graph, expected_sites) in [(llama(&case).1, 4 * 2), (vit(&case), 3 * 2 - 1)] {
        let feed = feed(&case, &graph);
        let before = run(&graph, &feed);
        let mut smoothed = graph.clone();
        let (mut seen, mut sites) = (BTreeSet::new(), 0);
        for linear in linears(&graph, 0..graph.nodes.len()) {
            if !seen.insert(linear.input) {
                continue;
            }
            let wanted: Vec<f32> = (0..linear.k).map(|_| (4.0 * rng.normal()).exp() as f32).collect();
            let Some(factors) = smoothing_factors(&smoothed, linear.input, &wanted) else { continue };
            assert!(factors.iter().all(|f| f.log2().fract() == 0.0), "factors are powers of two");
            assert!(factors.iter().any(|f| *f != 1.0));
            smooth(&mut smoothed, linear.input, &factors).unwrap();
            sites += 1;
        }
        // The last block of a ViT slices its first norm's result for the CLS token, so that nothing can be folded
        // there.
        assert_eq!(sites, expected_sites, "{graph}");
        assert_eq!(run(&smoothed, &feed), before, "{}", graph.name);
    }
}

#[test]
fn blocks_run_one_after_the_other_as_the_whole_does() {
    for case in [1, 2, 6, 11].map(random_case) {
        for graph in [llama(&case).1, vit(&case), adapter(&case)] {
            let mut values = feed(&case, &graph);
            let whole = run(&graph, &values);
            for segment in graph.segments(Tail::Separate) {
                let block = graph.extract(segment.nodes).unwrap();
                let made = run(&block, &values);
                values.extend(made);
            }
            for (name, expected) in whole {
                assert_eq!(values[&name], expected, "seed {} {name}", case.seed);
            }
        }
    }
}

/// A large graph is evaluated from its own staged weights, a block at a time: the same numbers as from the whole.
#[test]
fn blocks_run_over_the_weights_of_the_whole() {
    let l = reference::LlamaConfig {
        vocab: 512,
        hidden: 256,
        mlp: 300,
        layers: 2,
        heads: 8,
        kv_heads: 4,
        head_dim: 32,
        eps: 1e-5,
        theta: 1e4,
    };
    let case = case_around(8, &l);
    let (_, graph) = llama(&case);
    let all = linears(&graph, 0..graph.nodes.len());
    for scheme in [Scheme::INT8, Scheme::Blocks { bits: 4, block: 64 }, Scheme::Fp16] {
        let schemes = all.iter().map(|l| (l.name.clone(), scheme)).collect();
        let plan = Plan { schemes, tables: Some(DType::F16), ..Plan::default() };
        let reduced =
            if scheme == Scheme::Fp16 { to_fp16(&graph, &BTreeSet::new()) } else { quantize(&graph, &plan) }.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (_, layout) = onnx::write_with_layout(&reduced, dir.path(), "text", &mut |_| {}).unwrap();
        assert!(layout.offsets.len() > 14, "{layout:?}");
        let before = std::fs::read_dir(dir.path()).unwrap().count();
        let runner = Runner { runtime: common::runtime(), threads: None, scratch: dir.path(), layout: Some(&layout) };
        let feeds = feed(&case, &graph);
        let input: Feed = feeds.into_iter().map(|(n, t)| (n, Arc::new(t))).collect();
        let none = |_: &Segment| false;
        let mut inputs = Inputs::new(vec![(input.clone(), Role::HeldOut)], 0);
        let walk = Walk { graph: &reduced, runner: &runner, visits: &none, ranges: false };
        let blocks = walk.run(&mut inputs, &mut Silent, &mut |_, _| panic!("nothing is to be visited"));
        let blocks = blocks.unwrap().unwrap().remove(0);
        let options = SessionOptions::default();
        let mut session = Session::open(common::runtime(), &dir.path().join("text.onnx"), &options).unwrap();
        let ids = [("input_ids", &*input["input_ids"]), ("attention_mask", &*input["attention_mask"])];
        let whole = session.run(&ids, &["text"]).unwrap().remove(0);
        common::assert_close("text", blocks["text"].as_f32().unwrap(), whole.as_f32().unwrap(), 2e-3);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before, "temporary files are left");
    }
}

#[test]
fn half_precision_keeps_what_needs_the_range() {
    let case = random_case(6);
    let (_, graph) = llama(&case);
    let halves = fp16_nodes(&graph, &BTreeSet::new());
    let kinds = |half: bool| -> BTreeSet<&str> {
        graph.nodes.iter().filter(|n| halves.contains(&n.name) == half).map(|n| n.op.kind).collect()
    };
    assert!(kinds(true).contains("MatMul") && kinds(true).contains("Sigmoid"));
    for kind in ["Softmax", "ReduceMean", "Sqrt", "Div", "ReduceSum"] {
        assert!(!kinds(true).contains(kind), "{kind} is computed in half precision");
    }
    assert!(!halves.iter().any(|n| n.starts_with("pool.")), "pooling sums over tokens: {halves:?}");
    // The residual stream: sums of two activations. Blocks do with them what the whole does.
    for graph in [&graph, &vit(&case)] {
        let whole = to_fp16(graph, &BTreeSet::new()).unwrap();
        let sums = |g: &Graph| -> BTreeMap<String, DType> {
            let computed = |id: &Option<_>| id.is_some_and(|id| g.value(id).init.is_none());
            let sums = g.nodes.iter().filter(|n| n.op.kind == "Add" && n.inputs.iter().all(computed));
            sums.map(|n| (n.name.clone(), g.value(n.outputs[0]).ty.dtype)).collect()
        };
        let all = sums(&whole);
        assert!(all.len() >= 2 && all.values().all(|t| *t == DType::F32), "{all:?}");
        // The reduced graph falls into the same blocks, and only float32 flows between them.
        let names = |g: &Graph| g.segments(Tail::Separate).into_iter().map(|s| s.name).collect::<Vec<_>>();
        assert_eq!(names(&whole), names(graph));
        for segment in whole.segments(Tail::Separate) {
            let block = whole.extract(segment.nodes).unwrap();
            for &id in block.inputs.iter().chain(&block.outputs) {
                assert_ne!(block.value(id).ty.dtype, DType::F16, "{} flows between blocks", block.value(id).name);
            }
        }
        for segment in graph.segments(Tail::Separate) {
            let block = to_fp16(&graph.extract(segment.nodes).unwrap(), &BTreeSet::new()).unwrap();
            sums(&block).iter().for_each(|(name, dtype)| assert_eq!(all[name], *dtype, "{name}"));
        }
    }
    let reduced = to_fp16(&graph, &BTreeSet::new()).unwrap();
    let weights = reduced.initializers().into_iter().filter_map(|id| reduced.value(id).init.as_ref());
    let wide = weights.filter(|t| t.dtype() == DType::F32 && t.shape().len() == 2).count();
    // The frequencies of the rotary embedding are computed with in float32.
    assert_eq!(wide, 1);
    // A node that was seen beyond the range stays, and so do its neighbours that would read or make the value.
    let product = graph.nodes.iter().rfind(|n| n.op.kind == "Mul" && halves.contains(&n.name)).unwrap();
    let value = graph.value(product.outputs[0]).name.clone();
    for range in [(0.0, 40_000.0), (-1e9, 0.0), (0.0, f32::INFINITY), (f32::MIN, f32::MAX)] {
        let keep = exceeds_fp16(&graph, &BTreeMap::from([(value.clone(), range)]));
        assert!(keep.contains(&product.name) && keep.len() >= 2, "{range:?}: {keep:?}");
        assert!(!fp16_nodes(&graph, &keep).contains(&product.name));
    }
    assert!(exceeds_fp16(&graph, &BTreeMap::from([(value, (-30_000.0, 30_000.0))])).is_empty());
}

#[test]
fn what_half_precision_loses_is_counted() {
    let t = LazyTensor::from_f32(&[6], &[1.0, 1e-9, -2e-8, 0.0, 70_000.0, 6e-8]);
    let lost = rounding(&t).unwrap();
    assert_eq!((lost.flushed, lost.overflowed), (2, 1));
    let exact = LazyTensor::from_f32(&[2], &[1.5, 1e-9]).cast(DType::F16).cast(DType::F32);
    assert_eq!(rounding(&exact).unwrap(), Default::default());
}

#[test]
fn convolutions_over_bytes_stay_close() {
    let (mut quantized, mut others) = (0, 0);
    for case in (0..24).map(random_case) {
        let graph = adapter(&case);
        let kind = case.config["adapter"]["kind"].as_str().unwrap_or("bottleneck2d");
        let norm = case.config["adapter"]["norm"].as_str().unwrap_or("batch");
        assert_eq!(quantizable(&graph), kind == "bottleneck2d" && norm != "group", "{kind} {norm}");
        let feed = feed(&case, &graph);
        // Every value as an output, for its range.
        let mut all = graph.clone();
        all.outputs = graph.nodes.iter().flat_map(|n| n.outputs.clone()).collect();
        let values = run(&all, &feed);
        let mut ranges: BTreeMap<String, (f32, f32)> = values
            .iter()
            .map(|(n, t)| {
                let ends = t.as_f32().unwrap().iter().fold((0f32, 0f32), |(l, h), v| (l.min(*v), h.max(*v)));
                (n.clone(), ends)
            })
            .collect();
        assert!(quantize_convolutions(&graph, &ranges).unwrap().is_none(), "the input's range is missing");
        ranges.insert("volume".to_owned(), (0.0, 1.0));
        let Some(reduced) = quantize_convolutions(&graph, &ranges).unwrap() else {
            others += 1;
            continue;
        };
        quantized += 1;
        let (found, expected) = (run(&reduced, &feed), &values["adapter"]);
        let (found, expected) = (found["adapter"].as_f32().unwrap(), expected.as_f32().unwrap());
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let far = norm(&mut found.iter().zip(expected).map(|(f, e)| f - e)) / norm(&mut expected.iter().copied());
        assert!(far < 0.03, "seed {}: relative error {far}", case.seed);
    }
    assert!(quantized >= 4 && others >= 4, "{quantized} and {others}");
}
