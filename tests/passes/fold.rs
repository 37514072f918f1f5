//! The pass that folds batch norms: what it folds, what it must leave alone, and that values stay the same.

use brain_adapter::Code;
use brain_adapter::graph::{Attribute, Builder, Dim, Graph, Op, ValueId};
use brain_adapter::passes::fold_batch_norm;
use brain_adapter::runtime::{Session, SessionOptions};
use brain_adapter::tensor::{DType, LazyTensor, Tensor};
use support::common;

const CHANNELS: usize = 3;

fn vector(values: [f32; CHANNELS]) -> LazyTensor {
    LazyTensor::from_f32(&[CHANNELS], &values)
}

/// A graph with the input `x [batch, 2, 4, 4]`.
fn start() -> (Builder, ValueId) {
    let mut g = Builder::new("g");
    let x = g.input("x", DType::F32, &[Dim::BATCH, 2.into(), 4.into(), 4.into()]);
    (g, x)
}

fn weight(g: &mut Builder) -> ValueId {
    let values: Vec<f32> = (0..CHANNELS * 2 * 9).map(|i| (i as f32 * 0.7).sin()).collect();
    g.weight("w", LazyTensor::from_f32(&[CHANNELS, 2, 3, 3], &values))
}

fn conv(g: &mut Builder, x: ValueId, w: ValueId, bias: bool) -> ValueId {
    let mut inputs = vec![Some(x), Some(w)];
    if bias {
        inputs.push(Some(g.weight("b", vector([0.5, -1.0, 2.0]))));
    }
    g.node(Op::new("Conv").ints("kernel_shape", &[3, 3]).ints("pads", &[1; 4]).ints("strides", &[1, 1]), &inputs)
        .unwrap()
}

/// A norm with the epsilon, or with the operator's own default.
fn norm(g: &mut Builder, x: ValueId, variance: f32, epsilon: Option<f32>) -> ValueId {
    let mut inputs = vec![Some(x)];
    for values in [[1.5, -0.5, 0.0], [0.1, 0.2, 0.3], [-1.0, 0.5, 2.0], [variance, 2.0, 0.5]] {
        inputs.push(Some(g.weight("n", vector(values))));
    }
    let op = Op::new("BatchNormalization");
    g.node(epsilon.map_or(op.clone(), |e| op.float("epsilon", e)), &inputs).unwrap()
}

fn finish(mut g: Builder, outputs: &[ValueId]) -> Graph {
    for (i, id) in outputs.iter().enumerate() {
        g.output(&format!("y{i}"), *id).unwrap();
    }
    g.finish().unwrap()
}

fn run(graph: &Graph) -> Vec<Tensor> {
    let dir = tempfile::tempdir().unwrap();
    brain_adapter::onnx::write(graph, dir.path(), "g", &mut |_| {}).unwrap();
    let mut session = Session::open(common::runtime(), &dir.path().join("g.onnx"), &SessionOptions::default()).unwrap();
    let x = Tensor::f32(&[2, 2, 4, 4], (0..64).map(|i| (i as f32).cos()).collect()).unwrap();
    let names = session.outputs();
    session.run(&[("x", &x)], &names.iter().map(String::as_str).collect::<Vec<_>>()).unwrap()
}

/// Folds, checks how many, and that the values are the same.
fn folds(graph: Graph, expected: usize) -> Graph {
    let (folded, count) = fold_batch_norm(graph.clone()).unwrap();
    assert_eq!(count, expected, "{graph}{folded}");
    assert_eq!(folded.nodes.len(), graph.nodes.len() - expected);
    for (a, b) in run(&graph).iter().zip(run(&folded)) {
        common::assert_close("folded", b.as_f32().unwrap(), a.as_f32().unwrap(), 1e-5);
    }
    folded
}

#[test]
fn with_and_without_bias_and_with_any_epsilon() {
    for bias in [false, true] {
        for epsilon in [None, Some(1e-5), Some(0.3)] {
            let (mut g, x) = start();
            let w = weight(&mut g);
            let y = conv(&mut g, x, w, bias);
            let y = norm(&mut g, y, 1.0, epsilon);
            let folded = folds(finish(g, &[y]), 1);
            assert!(folded.nodes.iter().all(|n| n.op.kind == "Conv" && n.inputs.len() == 3));
            assert_eq!(fold_batch_norm(folded).unwrap().1, 0);
        }
    }
}

#[test]
fn two_convolutions_that_share_a_weight() {
    let (mut g, x) = start();
    let w = weight(&mut g);
    let (a, b) = (conv(&mut g, x, w, false), conv(&mut g, x, w, true));
    let (a, b) = (norm(&mut g, a, 1.0, None), norm(&mut g, b, 3.0, None));
    folds(finish(g, &[a, b]), 2);
}

#[test]
fn what_others_read_stays() {
    // Another node reads the convolution.
    let (mut g, x) = start();
    let w = weight(&mut g);
    let y = conv(&mut g, x, w, false);
    let n = norm(&mut g, y, 1.0, None);
    let sum = g.add(y, n).unwrap();
    folds(finish(g, &[sum]), 0);
    // The graph itself gives it out.
    let (mut g, x) = start();
    let w = weight(&mut g);
    let y = conv(&mut g, x, w, false);
    let n = norm(&mut g, y, 1.0, None);
    folds(finish(g, &[y, n]), 0);
    // Something stands between.
    let (mut g, x) = start();
    let w = weight(&mut g);
    let y = conv(&mut g, x, w, false);
    let y = g.unary("Relu", y).unwrap();
    let n = norm(&mut g, y, 1.0, None);
    folds(finish(g, &[n]), 0);
    // A norm of the input, and a norm of a norm: only the first has a convolution before it.
    let (mut g, x) = start();
    let w = weight(&mut g);
    let y = conv(&mut g, x, w, false);
    let n = norm(&mut g, y, 1.0, None);
    let n = norm(&mut g, n, 2.0, None);
    folds(finish(g, &[n]), 2);
}

#[test]
fn operands_that_are_no_constants_stay() {
    let (mut g, x) = start();
    let w = g.input("w", DType::F32, &[CHANNELS.into(), 2.into(), 3.into(), 3.into()]);
    let y = conv(&mut g, x, w, false);
    let n = norm(&mut g, y, 1.0, None);
    assert_eq!(fold_batch_norm(finish(g, &[n])).unwrap().1, 0);
    let (mut g, x) = start();
    let w = weight(&mut g);
    let y = conv(&mut g, x, w, false);
    let scale = g.input("scale", DType::F32, &[CHANNELS.into()]);
    let others = [0.1, 0.2, 0.3].map(|v| Some(g.weight("n", vector([v; CHANNELS]))));
    let inputs = [vec![Some(y), Some(scale)], others.to_vec()].concat();
    let n = g.node(Op::new("BatchNormalization"), &inputs).unwrap();
    assert_eq!(fold_batch_norm(finish(g, &[n])).unwrap().1, 0);
}

#[test]
fn a_norm_in_training_stays() {
    let (mut g, x) = start();
    let w = weight(&mut g);
    let y = conv(&mut g, x, w, false);
    let n = norm(&mut g, y, 1.0, None);
    let mut graph = finish(g, &[n]);
    graph.nodes[1].op.attributes.push(("training_mode", Attribute::Int(1)));
    let (kept, count) = fold_batch_norm(graph).unwrap();
    assert_eq!((count, kept.nodes.len()), (0, 2));
}

#[test]
fn impossible_statistics_are_refused() {
    for variance in [-1.0, f32::NAN, f32::NEG_INFINITY] {
        let (mut g, x) = start();
        let w = weight(&mut g);
        let y = conv(&mut g, x, w, false);
        let n = norm(&mut g, y, variance, None);
        let error = fold_batch_norm(finish(g, &[n])).unwrap_err();
        assert_eq!(error.code(), Code::CHECKPOINT_VALUE, "{error}");
        assert!(error.message().contains("BatchNormalization"), "{error}");
    }
}
