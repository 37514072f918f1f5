//! Folds batch normalisations into the convolutions before them.
//!
//! `γ (conv(x) + b - μ) / √(σ² + ε) + β` is a convolution again, with weight `W·s` and bias `(b - μ)·s + β`, where
//! `s = γ / √(σ² + ε)` a channel (Jacob et al. 2018, section 3.2). Computed in f64, stored as f32.

use crate::error::{Code, Error, Result};
use crate::graph::{Attribute, Graph, Node, Value, ValueId, ValueType};
use crate::tensor::{DType, LazyTensor};

/// The graph with every `Conv` → `BatchNormalization` made one `Conv`, and how many there were. A norm whose
/// input is anything else, or is read by others too, stays.
///
/// # Errors
/// When the weights cannot be read, or `checkpoint.value` when a variance is too small to divide by.
pub fn fold_batch_norm(mut graph: Graph) -> Result<(Graph, usize)> {
    let mut folded = 0;
    let mut i = 0;
    while i < graph.nodes.len() {
        match foldable(&graph, &graph.nodes[i]) {
            Some(conv) => {
                fold(&mut graph, conv, i)?;
                folded += 1;
            }
            None => i += 1,
        }
    }
    graph.verify()?;
    Ok((graph, folded))
}

/// Index of the convolution that `norm` can be folded into.
fn foldable(graph: &Graph, norm: &Node) -> Option<usize> {
    if norm.op.kind != "BatchNormalization" || norm.op.get_int("training_mode", 0) != 0 {
        return None;
    }
    let x = norm.inputs[0]?;
    let conv = graph.producer(x)?;
    let constant = |id: &Option<ValueId>| id.is_some_and(|id| graph.value(id).init.is_some());
    let constants = graph.nodes[conv].inputs[1..].iter().chain(&norm.inputs[1..]).all(constant);
    (graph.nodes[conv].op.kind == "Conv" && graph.uses(x) == 1 && constants).then_some(conv)
}

/// Makes convolution `conv` do what it and the norm `norm` did, and drops the norm.
fn fold(graph: &mut Graph, conv: usize, norm: usize) -> Result<()> {
    let norm = graph.nodes.remove(norm);
    let vector = |graph: &Graph, id: Option<ValueId>| match id.and_then(|id| graph.value(id).init.as_ref()) {
        Some(tensor) => tensor.to_f32(),
        None => Err(Error::internal(format!("node `{}` lacks a constant operand", norm.name))),
    };
    let [gamma, beta, mean, var] = [1, 2, 3, 4].map(|i| vector(graph, norm.inputs[i]));
    let (gamma, beta, mean, var) = (gamma?, beta?, mean?, var?);
    let eps = match norm.op.get("epsilon") {
        Some(Attribute::Float(eps)) => f64::from(*eps),
        _ => 1e-5,
    };
    let inputs = graph.nodes[conv].inputs.clone();
    let mut weight = vector(graph, inputs[1])?;
    let mut bias = match inputs.get(2) {
        Some(id) => vector(graph, *id)?,
        None => vec![0.0; gamma.len()],
    };
    let per_channel = weight.len() / gamma.len();
    for c in 0..gamma.len() {
        let s = f64::from(gamma[c]) / (f64::from(var[c]) + eps).sqrt();
        for w in &mut weight[c * per_channel..(c + 1) * per_channel] {
            *w = (f64::from(*w) * s) as f32;
        }
        bias[c] = ((f64::from(bias[c]) - f64::from(mean[c])) * s + f64::from(beta[c])) as f32;
    }
    if let Some(bad) = weight.iter().chain(&bias).find(|v| !v.is_finite()) {
        let message = format!("folding `{}` gives the weight {bad}: its statistics are impossible", norm.name);
        return Err(Error::new(Code::CHECKPOINT_VALUE, message));
    }
    let weight = replacement(graph, inputs[1], &weight);
    let bias =
        push(graph, format!("{}.folded_bias", graph.nodes[conv].name), LazyTensor::from_f32(&[bias.len()], &bias));
    graph.nodes[conv].inputs = vec![inputs[0], Some(weight), Some(bias)];
    graph.nodes[conv].outputs = norm.outputs;
    Ok(())
}

/// A new weight of the shape of `old`, under its name with `.folded`.
fn replacement(graph: &mut Graph, old: Option<ValueId>, values: &[f32]) -> ValueId {
    let old = graph.value(old.expect("a convolution has a weight"));
    let shape = old.init.as_ref().map(|t| t.shape().to_vec()).unwrap_or_default();
    push(graph, format!("{}.folded", old.name), LazyTensor::from_f32(&shape, values))
}

/// Adds a weight; its name gets a number when it is taken (two convolutions may share a weight).
fn push(graph: &mut Graph, name: String, tensor: LazyTensor) -> ValueId {
    let taken = |name: &str| graph.values.iter().any(|v| v.name == name);
    let numbered = (1..).map(|n| format!("{name}.{n}"));
    let name = std::iter::once(name.clone()).chain(numbered).find(|n| !taken(n)).expect("numbers do not end");
    let ty = ValueType::known(DType::F32, tensor.shape());
    graph.values.push(Value { name, ty, init: Some(tensor) });
    ValueId(graph.values.len() - 1)
}
