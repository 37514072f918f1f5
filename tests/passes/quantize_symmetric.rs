//! int8 around 0 with one scale an activation, and attention in standard operators: what TensorRT is given, held
//! against the arithmetic that it stands for.

use std::collections::BTreeMap;

use brain_adapter::graph::{Builder, Dim, Graph, Op};
use brain_adapter::passes::quantize::{Plan, Scheme, quantize};
use brain_adapter::passes::{Scores, decompose_attention, to_fp16};
use brain_adapter::runtime::{Session, SessionOptions};
use brain_adapter::tensor::{DType, LazyTensor, Tensor, cosine};
use half::f16;
use support::common;
use support::reference::weights::Random;

fn run(graph: &Graph, feed: &[(&str, &Tensor)]) -> Vec<Vec<f32>> {
    let dir = tempfile::tempdir().unwrap();
    brain_adapter::onnx::write(graph, dir.path(), "graph", &mut |_| {}).unwrap();
    let path = dir.path().join("graph.onnx");
    let mut session = Session::open(common::runtime(), &path, &SessionOptions::default()).unwrap();
    let names: Vec<String> = session.outputs();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    session.run(feed, &names).unwrap().iter().map(|t| t.as_f32().unwrap().to_vec()).collect()
}

fn normal(rng: &mut Random, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// Two layers that read `x [rows, k]`, with weights `[n, k]`.
fn two(k: usize, weights: [&[f32]; 2]) -> Graph {
    let mut g = Builder::new("two");
    let x = g.input("x", DType::F32, &[Dim::Symbol("rows"), Dim::Known(k)]);
    for (name, weight) in ["a", "b"].into_iter().zip(weights) {
        let y = g.linear(x, name, &LazyTensor::from_f32(&[weight.len() / k, k], weight), None).unwrap();
        g.output(&format!("y_{name}"), y).unwrap();
    }
    g.finish().unwrap()
}

/// The scale of values up to `largest`, as float16 has it: at least its smallest normal number.
fn scale(largest: f32) -> f64 {
    f64::from(f16::from_f32(largest / 127.0).max(f16::from_f32(6.103_515_6e-5)).to_f32())
}

/// `x` on the grid of a scale, cut at 127 steps; ties go to even.
fn rounded(x: f32, scale: f64, least: f64) -> f64 {
    (f64::from(x) / scale).round_ties_even().clamp(least, 127.0) * scale
}

#[test]
fn pairs_mean_products_of_rounded_values() {
    let rng = &mut Random::new(5);
    for (k, n, range) in [(1, 1, 1.0f32), (7, 3, 2.5), (64, 16, 4.0), (96, 40, 0.25), (33, 5, 900.0)] {
        let (a, mut b) = (normal(rng, k * n), normal(rng, k * n));
        // A row of zeros and one below what float16 scales resolve.
        b[..k].fill(0.0);
        if n > 1 {
            b[k..2 * k].iter_mut().for_each(|w| *w *= 1e-4);
        }
        let graph = two(k, [&a, &b]);
        let schemes = BTreeMap::from(["a", "b"].map(|name| (name.to_owned(), Scheme::Int8Tensor)));
        let max_abs = BTreeMap::from(["a", "b"].map(|name| (name.to_owned(), range)));
        let reduced = quantize(&graph, &Plan { schemes, max_abs, ..Plan::default() }).unwrap();
        let count = |kind: &str| reduced.nodes.iter().filter(|n| n.op.kind == kind).count();
        // What both read is rounded once.
        assert_eq!((count("QuantizeLinear"), count("DequantizeLinear")), (1, 3));
        // Some of the values lie beyond the range that was seen: they are cut.
        let rows = 5;
        let x: Vec<f32> = normal(rng, rows * k).into_iter().map(|v| v * range / 2.0).collect();
        let found = run(&reduced, &[("x", &Tensor::f32(&[rows, k], x.clone()).unwrap())]);
        for (found, weight) in found.iter().zip([&a, &b]) {
            for (row, x) in x.chunks(k).enumerate() {
                for (i, w) in weight.chunks(k).enumerate() {
                    let s = scale(w.iter().fold(0f32, |m, v| m.max(v.abs())));
                    // Products at the edge of a step may fall to either side: single precision divides by the scale.
                    let term = |(x, w): (&f32, &f32)| rounded(*x, scale(range), -128.0) * rounded(*w, s, -127.0);
                    let (expected, size) =
                        x.iter().zip(w).map(term).fold((0.0, 0.0), |(e, m): (f64, f64), t| (e + t, m + t.abs()));
                    let far = (f64::from(found[row * n + i]) - expected).abs();
                    assert!(far <= 1e-5 * size + 1e-9, "[{n}, {k}] row {row} output {i}: {far} of {expected}");
                }
            }
        }
    }
}

/// In half precision integers stay integers, and what is dequantized is float16.
#[test]
fn pairs_in_half_precision() {
    let rng = &mut Random::new(6);
    let (k, n) = (64, 24);
    let weights = [normal(rng, k * n), normal(rng, k * n)];
    let graph = two(k, [&weights[0], &weights[1]]);
    let plan = Plan {
        schemes: BTreeMap::from([
            ("a".to_owned(), Scheme::Int8Tensor),
            ("b".to_owned(), Scheme::Blocks { bits: 8, block: 32 }),
        ]),
        max_abs: BTreeMap::from([("a".to_owned(), 4.0)]),
        whole_activations: true,
        ..Plan::default()
    };
    let single = quantize(&graph, &plan).unwrap();
    let reduced = to_fp16(&single, &Default::default()).unwrap();
    for node in &reduced.nodes {
        let made = reduced.value(node.outputs[0]).ty.dtype;
        let expected = match node.op.kind {
            "DequantizeLinear" | "MatMul" | "MatMulNBits" => DType::F16,
            "QuantizeLinear" => DType::I8,
            "Cast" => continue,
            other => panic!("{other}"),
        };
        assert_eq!(made, expected, "{}", node.name);
    }
    let x = Tensor::f32(&[9, k], normal(rng, 9 * k)).unwrap();
    for (found, expected) in run(&reduced, &[("x", &x)]).iter().zip(run(&single, &[("x", &x)])) {
        let close = cosine(found.iter().copied(), expected.iter().copied());
        assert!(close > 0.999_999, "{close}");
    }
}

fn attention(dtype: DType, heads: usize, width: usize, [queries, keys]: [usize; 2]) -> Graph {
    let mut g = Builder::new("attention");
    let mut input =
        |name: &str, rows: usize| g.input(name, DType::F32, &[Dim::BATCH, Dim::Known(rows), Dim::Known(width)]);
    let inputs = [input("q", queries), input("k", keys), input("v", keys)];
    let inputs = inputs.map(|id| if dtype == DType::F32 { id } else { g.cast(id, dtype).unwrap() });
    let op = Op::microsoft("MultiHeadAttention").int("num_heads", heads as i64);
    let y = g.node(op, &inputs.map(Some)).unwrap();
    let y = if dtype == DType::F32 { y } else { g.cast(y, DType::F32).unwrap() };
    g.output("y", y).unwrap();
    g.finish().unwrap()
}

/// ONNX Runtime's own operator is the definition of attention.
#[test]
fn attention_in_standard_operators() {
    let rng = &mut Random::new(7);
    struct Shape {
        heads: usize,
        width: usize,
        queries: usize,
        keys: usize,
    }
    let shapes = [
        Shape { heads: 2, width: 16, queries: 5, keys: 5 },
        Shape { heads: 4, width: 32, queries: 1, keys: 9 },
        Shape { heads: 3, width: 24, queries: 17, keys: 17 },
        Shape { heads: 12, width: 768, queries: 33, keys: 33 },
    ];
    for Shape { heads, width, queries, keys } in shapes {
        let rows = [queries, keys];
        let tensor =
            |rng: &mut Random, rows: usize| Tensor::f32(&[2, rows, width], normal(rng, 2 * rows * width)).unwrap();
        let [q, k, v] = [rows[0], rows[1], rows[1]].map(|n| tensor(rng, n));
        let feed = [("q", &q), ("k", &k), ("v", &v)];
        let expected = run(&attention(DType::F32, heads, width, rows), &feed).remove(0);
        for (dtype, most) in [(DType::F32, 2e-6), (DType::F16, 4e-3)] {
            let fused = attention(dtype, heads, width, rows);
            for held in [Scores::Whole, Scores::Rows(4), Scores::Rows(512)] {
                let plain = decompose_attention(&fused, held).unwrap();
                let softmaxes: Vec<_> = plain.nodes.iter().filter(|n| n.op.kind == "Softmax").collect();
                let slices = if held == Scores::Rows(4) { rows[0].div_ceil(4) } else { 1 };
                assert_eq!(softmaxes.len(), slices, "{held:?}");
                assert!(softmaxes.iter().all(|n| plain.value(n.outputs[0]).ty.dtype == DType::F32));
                common::assert_close(
                    &format!("{heads} heads of {rows:?}, {dtype} {held:?}"),
                    &run(&plain, &feed)[0],
                    &expected,
                    most,
                );
            }
        }
    }
}

/// Scores far beyond what an exponential in float16 could take, and within what a float16 product can give.
#[test]
fn large_scores_stay_finite() {
    let (width, rows) = (64, 6);
    let values = |size: f32| (0..rows * width).map(|i| size * ((i * 7 % 13) as f32 - 6.0)).collect();
    let [q, k, v] = [20.0, 20.0, 1.0].map(|size| Tensor::f32(&[1, rows, width], values(size)).unwrap());
    let feed = [("q", &q), ("k", &k), ("v", &v)];
    let largest =
        q.as_f32().unwrap().chunks(width).map(|row| row.iter().map(|v| v * v / 8.0).sum::<f32>()).fold(0.0, f32::max);
    assert!((3e4..6.5e4).contains(&largest), "{largest}");
    let expected = run(&attention(DType::F32, 1, width, [rows; 2]), &feed).remove(0);
    let plain = decompose_attention(&attention(DType::F16, 1, width, [rows; 2]), Scores::Whole).unwrap();
    let found = run(&plain, &feed).remove(0);
    assert!(found.iter().all(|v| v.is_finite()));
    common::assert_close("scores of tens of thousands", &found, &expected, 0.01);
}

/// Layers that read one activation share its integers only where these mean the same.
#[test]
fn what_is_rounded_otherwise_is_not_shared() {
    let rng = &mut Random::new(8);
    let (k, n, rows) = (64, 8, 5);
    let (a, b) = (normal(rng, k * n), normal(rng, k * n));
    let graph = two(k, [&a, &b]);
    let x = Tensor::f32(&[rows, k], normal(rng, rows * k)).unwrap();
    let reduced = |schemes: [Scheme; 2], ranges: [f32; 2]| {
        let named = |i: usize| ["a", "b"][i].to_owned();
        let schemes = (0..2).map(|i| (named(i), schemes[i])).collect();
        let max_abs = (0..2).map(|i| (named(i), ranges[i])).collect();
        run(&quantize(&graph, &Plan { schemes, max_abs, ..Plan::default() }).unwrap(), &[("x", &x)])
    };
    let int8 = [128, 40].map(|zero_point| Scheme::Int8 { zero_point });
    for (schemes, ranges) in [(int8, [4.0; 2]), ([Scheme::Int8Tensor; 2], [4.0, 1.5])] {
        let both = reduced(schemes, ranges);
        let [first, second] = [0, 1].map(|i| reduced([schemes[i]; 2], [ranges[i]; 2]));
        // A graph of other nodes may sum in another order, which is far below a step of the integers.
        common::assert_close("the first layer", &both[0], &first[0], 1e-5);
        common::assert_close("the second layer", &both[1], &second[1], 1e-5);
        let apart = first[1].iter().zip(&second[1]).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(apart > 1e-2, "{schemes:?}: {apart}");
    }
}
