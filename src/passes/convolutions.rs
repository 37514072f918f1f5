//! int8 convolutions: static scales, in the standard form of quantize-dequantize pairs.
//!
//! `conv(DQ(Q(x)), DQ(w)) → relu → Q → DQ`: ONNX Runtime fuses such a chain into integer convolutions (Jacob et al.
//! 2018), and TensorRT reads the same form. Weights have per-output-channel scales, activations one scale per tensor,
//! from the range seen in calibration.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::error::Result;
use crate::graph::{Graph, Node, Op, Rewrite, ValueId};
use crate::tensor::{DType, LazyTensor};

/// Scale and zero point of a uint8 activation.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Affine {
    scale: f32,
    zero: u8,
}

impl Affine {
    /// Covers `low..=high` and 0 with 256 levels.
    fn of((low, high): (f32, f32)) -> Option<Self> {
        let (low, high) = (low.min(0.0), high.max(0.0));
        // An activation that was always 0 has no range; any scale represents 0.
        let scale = if low == high { 1.0 } else { (high - low) / 255.0 };
        let usable = scale.is_normal() && (1.0 / scale).is_finite();
        usable.then(|| Self { scale, zero: (-low / scale).round().clamp(0.0, 255.0) as u8 })
    }
}

/// Whether the graph is a chain that [`quantize_convolutions`] can make int8: two-dimensional convolutions with
/// constant weights, ReLUs and sums, nothing else. Three-dimensional ones were measured to be five times slower in
/// int8.
pub fn quantizable(graph: &Graph) -> bool {
    let conv = |n: &Node| {
        let constant = n.inputs[1..].iter().flatten().all(|&id| graph.value(id).init.is_some());
        n.inputs.len() == 3 && constant && n.inputs[1].is_some_and(|w| graph.value(w).ty.shape.len() == 4)
    };
    graph.nodes.iter().any(|n| n.op.kind == "Conv")
        && graph.nodes.iter().all(|n| match n.op.kind {
            "Conv" => conv(n),
            "Relu" | "Add" => true,
            _ => false,
        })
}

/// A new graph with int8 convolutions. `ranges` holds the least and largest value of each activation by name, those of
/// the graph's inputs included. `None` when a range is missing or unusable, or a bias does not fit its scale.
///
/// # Errors
/// When weights cannot be read.
pub fn quantize_convolutions(graph: &Graph, ranges: &BTreeMap<String, (f32, f32)>) -> Result<Option<Graph>> {
    if !quantizable(graph) {
        return Ok(None);
    }
    let mut scales: HashMap<ValueId, Affine> = HashMap::new();
    let made = graph.nodes.iter().flat_map(|n| &n.outputs);
    for &id in graph.inputs.iter().chain(made).filter(|id| !before_relu(graph, **id)) {
        match ranges.get(&graph.value(id).name).copied().and_then(Affine::of) {
            Some(affine) => scales.insert(id, affine),
            None => return Ok(None),
        };
    }
    let mut new = Rewrite::new(graph);
    for &id in &graph.inputs {
        let x = new.value(id)?;
        let y = quantize_dequantize(&mut new, &graph.value(id).name, x, scales[&id])?;
        new.set(id, y);
    }
    for node in &graph.nodes {
        if node.op.kind == "Conv" {
            let Some(x) = node.inputs[0].and_then(|id| scales.get(&id)) else { return Ok(None) };
            if !convolution(&mut new, graph, node, x.scale)? {
                return Ok(None);
            }
        } else {
            new.copy(node)?;
        }
        let id = node.outputs[0];
        if let Some(&affine) = scales.get(&id) {
            let x = new.value(id)?;
            let name = node.name.clone();
            let y = quantize_dequantize(&mut new, &name, x, affine)?;
            new.set(id, y);
        }
    }
    Ok(Some(new.finish()?))
}

/// Whether only a ReLU reads the value: then the ReLU's result is quantized, which clips at 0 by itself.
fn before_relu(graph: &Graph, id: ValueId) -> bool {
    let mut readers = graph.nodes.iter().filter(|n| n.inputs.contains(&Some(id)));
    graph.uses(id) == 1 && readers.next().is_some_and(|n| n.op.kind == "Relu")
}

/// `DQ(Q(x))`.
fn quantize_dequantize(new: &mut Rewrite<'_>, name: &str, x: ValueId, affine: Affine) -> Result<ValueId> {
    let g = &mut new.builder;
    let scale = g.weight(&format!("{name}.scale"), LazyTensor::from_f32(&[], &[affine.scale]));
    let zero = LazyTensor::new(DType::U8, vec![], Arc::new(vec![affine.zero]));
    let zero = g.weight(&format!("{name}.zero_point"), zero);
    g.scope(name, |g| {
        let bytes = g.node(Op::new("QuantizeLinear"), &[Some(x), Some(scale), Some(zero)])?;
        g.node(Op::new("DequantizeLinear"), &[Some(bytes), Some(scale), Some(zero)])
    })
}

/// Adds the convolution with an int8 weight and an int32 bias; false when the bias does not fit.
fn convolution(new: &mut Rewrite<'_>, graph: &Graph, node: &Node, x_scale: f32) -> Result<bool> {
    let constant = |i: usize| node.inputs[i].and_then(|id| Some((id, graph.value(id).init.as_ref()?)));
    let (Some((weight_id, weight)), Some((bias_id, bias))) = (constant(1), constant(2)) else { return Ok(false) };
    let (shape, n) = (weight.shape().to_vec(), weight.shape()[0]);
    let matrix = weight.reshaped(&[n, weight.len() / n]);
    let [integers, scales] = super::quantize::per_channel(&matrix, super::quantize::Scales::Fp32);
    // As a linear layer's: [k, n]. A convolution's weight has the outputs first.
    let integers = integers.transposed().bytes()?.into_owned();
    let scales: Vec<f32> = scales.to_f32()?.into_iter().map(|s| if s > 0.0 { s } else { 1.0 }).collect();
    let bias_scales: Vec<f32> = scales.iter().map(|s| s * x_scale).collect();
    let mut bias_bytes = Vec::with_capacity(4 * n);
    for (b, scale) in bias.to_f32()?.into_iter().zip(&bias_scales) {
        let q = f64::from(b) / f64::from(*scale);
        if !q.is_finite() || q.abs() > f64::from(i32::MAX / 2) {
            return Ok(false);
        }
        bias_bytes.extend((q.round_ties_even() as i32).to_le_bytes());
    }
    let (weight_name, bias_name) = (graph.value(weight_id).name.clone(), graph.value(bias_id).name.clone());
    let x = new.operand(node, 0)?;
    let g = &mut new.builder;
    let mut dequantized = |name: &str, dtype: DType, shape: Vec<usize>, bytes: Vec<u8>, scales: &[f32]| {
        let zeros = vec![0u8; n * dtype.size()];
        let integers = g.weight(&format!("{name}.quantized"), LazyTensor::new(dtype, shape, Arc::new(bytes)));
        let scale = g.weight(&format!("{name}.scale"), LazyTensor::from_f32(&[n], scales));
        let zero = g.weight(&format!("{name}.zero_point"), LazyTensor::new(dtype, vec![n], Arc::new(zeros)));
        let op = Op::new("DequantizeLinear").int("axis", 0);
        g.scope(name, |g| g.node(op, &[Some(integers), Some(scale), Some(zero)]))
    };
    let weight = dequantized(&weight_name, DType::I8, shape, integers, &scales)?;
    let bias = dequantized(&bias_name, DType::I32, vec![n], bias_bytes, &bias_scales)?;
    new.copy_with(node, &[Some(x), Some(weight), Some(bias)])?;
    Ok(true)
}
