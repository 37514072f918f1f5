//! A case: a small graph, its operands, and what our gradient graph makes of them in ONNX Runtime.

use brain_adapter::Result;
use brain_adapter::graph::{Builder, Dim, Graph, Op, ValueId};
use brain_adapter::passes::autodiff::{differentiate, gradient_of, joint};
use brain_adapter::runtime::{Session, SessionOptions};
use brain_adapter::tensor::{DType, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::common::runtime;

/// The number behind the symbol `batch`.
const BATCH: usize = 3;

/// From operands to results.
pub type Build = Box<dyn Fn(&mut Builder, &[ValueId]) -> Result<Vec<ValueId>>>;

/// Name, operands and graph. Operands are `KIND:EXTENTS` with `n` for the symbol `batch`: `f` has values in (-1.5,
/// 1.5), `p` in (0.5, 2), `w` in (-12, 12); `c` is as `f` and `q` as `p`, but not differentiated.
pub struct Row {
    pub name: String,
    operands: String,
    build: Build,
}

pub fn row(
    name: impl Into<String>,
    operands: impl Into<String>,
    build: impl Fn(&mut Builder, &[ValueId]) -> Result<Vec<ValueId>> + 'static,
) -> Row {
    Row { name: name.into(), operands: operands.into(), build: Box::new(build) }
}

/// One operator over all operands, and constants of integers behind them.
pub fn one(op: Op, constants: &'static [&'static [i64]]) -> impl Fn(&mut Builder, &[ValueId]) -> Result<Vec<ValueId>> {
    move |g, x| {
        let constants: Vec<ValueId> = constants.iter().map(|c| g.ints(c)).collect();
        let inputs: Vec<Option<ValueId>> = x.iter().chain(&constants).map(|&id| Some(id)).collect();
        Ok(vec![g.node(op.clone(), &inputs)?])
    }
}

/// A row as a graph with values for all its inputs.
pub struct Case {
    pub name: String,
    pub graph: Graph,
    pub joint: Graph,
    /// Operands by name, and the gradients of the results.
    pub feed: Vec<(String, Tensor)>,
    pub of: Vec<String>,
    pub wrt: Vec<String>,
}

fn numbers(rng: &mut ChaCha8Rng, shape: &[usize], low: f32, high: f32) -> Tensor {
    let n = shape.iter().product();
    Tensor::f32(shape, (0..n).map(|_| rng.random_range(low..high)).collect()).unwrap()
}

fn sizes(shape: &[Dim]) -> Vec<usize> {
    let size = |dim: &Dim| match dim {
        Dim::Known(n) => *n,
        Dim::Symbol(_) => BATCH,
        // Of the one case that has such a result: the batch with the axis of 3 behind it.
        Dim::Any => 3 * BATCH,
    };
    shape.iter().map(size).collect()
}

impl Case {
    pub fn new(row: &Row, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut g = Builder::new("case");
        let (mut ids, mut feed, mut wrt) = (Vec::new(), Vec::new(), Vec::new());
        for (i, operand) in row.operands.split_whitespace().enumerate() {
            let (kind, dims) = operand.split_once(':').unwrap();
            let dims = dims.split(',').filter(|d| !d.is_empty());
            let dims: Vec<Dim> =
                dims.map(|d| if d == "n" { Dim::BATCH } else { Dim::Known(d.parse().unwrap()) }).collect();
            let name = format!("x{i}");
            ids.push(g.input(&name, DType::F32, &dims));
            let (low, high) = match kind {
                "f" | "c" => (-1.5, 1.5),
                "p" | "q" => (0.5, 2.0),
                "w" => (-12.0, 12.0),
                other => panic!("{other}"),
            };
            if matches!(kind, "f" | "p" | "w") {
                wrt.push(name.clone());
            }
            feed.push((name, numbers(&mut rng, &sizes(&dims), low, high)));
        }
        let results = (row.build)(&mut g, &ids).unwrap_or_else(|e| panic!("{}: {e}", row.name));
        let of: Vec<String> = (0..results.len()).map(|i| format!("y{i}")).collect();
        for (name, &id) in of.iter().zip(&results) {
            g.output(name, id).unwrap();
            feed.push((gradient_of(name), numbers(&mut rng, &sizes(&g.ty(id).shape), -1.0, 1.0)));
        }
        let graph = g.finish().unwrap();
        let joint = joint(&graph, &strs(&of), &strs(&wrt)).unwrap_or_else(|e| panic!("{}: {e}\n{graph}", row.name));
        Self { name: row.name.clone(), graph, joint, feed, of, wrt }
    }

    /// The results, then the gradients, by the joint graph.
    pub fn run(&self) -> Vec<Tensor> {
        let d_wrt: Vec<String> = self.wrt.iter().map(|name| gradient_of(name)).collect();
        let outputs: Vec<&str> = self.of.iter().chain(&d_wrt).map(String::as_str).collect();
        run(&self.name, &self.joint, &self.feed, &outputs)
    }

    /// The gradients by way of the two graphs, with everything saved or nothing.
    pub fn run_cut(&self, save: bool) -> Vec<Tensor> {
        let cut = differentiate(&self.graph, &strs(&self.of), &strs(&self.wrt), &|_| save).unwrap();
        let names: Vec<&str> = cut.forward.outputs.iter().map(|&id| cut.forward.value(id).name.as_str()).collect();
        let there = run(&self.name, &cut.forward, &self.feed, &names);
        let mut feed = self.feed.clone();
        feed.extend(names.iter().map(|n| (*n).to_owned()).zip(there));
        let d_wrt: Vec<String> = self.wrt.iter().map(|name| gradient_of(name)).collect();
        run(&self.name, &cut.backward, &feed, &strs(&d_wrt))
    }
}

pub fn strs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// Runs a graph on those of the named tensors that are its inputs.
pub fn run(what: &str, graph: &Graph, feed: &[(String, Tensor)], outputs: &[&str]) -> Vec<Tensor> {
    let bytes = brain_adapter::onnx::to_bytes(graph).unwrap();
    let options = SessionOptions { threads: Some(1), ..SessionOptions::default() };
    let session = Session::open_bytes(runtime(), &bytes, what, &options);
    let mut session = session.unwrap_or_else(|e| panic!("{what}: {e}\n{graph}"));
    let takes: Vec<&str> = graph.inputs.iter().map(|&id| graph.value(id).name.as_str()).collect();
    let feed: Vec<(&str, &Tensor)> =
        feed.iter().map(|(n, t)| (n.as_str(), t)).filter(|(n, _)| takes.contains(n)).collect();
    session.run(&feed, outputs).unwrap_or_else(|e| panic!("{what}: {e}\n{graph}"))
}

/// ‖found − expected‖ / ‖expected‖; absolute where that is 0.
pub fn norm_error(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let difference = found.iter().zip(expected).map(|(&f, e)| (f64::from(f) - e).powi(2)).sum::<f64>().sqrt();
    let norm = expected.iter().map(|e| e * e).sum::<f64>().sqrt();
    if norm < 1e-9 { difference } else { difference / norm }
}
