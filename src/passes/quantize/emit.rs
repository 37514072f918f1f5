//! Schemes as operators.
//!
//! int8 with one scale a token, once an activation and then once a layer:
//!
//! ```text
//! s = max(max(x) / (255 - zero), -min(x) / zero, tiny)
//! q = QuantizeLinear(x · (1 / s), 1, zero)      uint8
//! y = MatMulIntegerToFloat(q, W, 1, w_scale, zero) · s
//! ```
//!
//! The activation must be uint8: on x86 int8 × int8 has no fast kernel and runs 11 to 15 times slower. The product in
//! standard operators, `Cast(MatMulInteger(q, W, zero)) · w_scale`, gives the same numbers and was measured to take 2 %
//! (LLaMA) to 4 % (ViT) longer: ONNX Runtime fuses it only where one scale serves all tokens.
//!
//! int8 with one scale for all tokens, as TensorRT wants it: symmetric, in standard operators, which it makes a product of
//! bytes of by itself:
//!
//! ```text
//! y = MatMul(DequantizeLinear(QuantizeLinear(x, s, 0), s, 0), DequantizeLinear(W, w_scale, 0, axis 1))
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::linears::Linear;
use super::weights::{Scales, in_blocks, per_channel};
use super::{Plan, Scheme};
use crate::error::{Code, Error, Result};
use crate::graph::{Builder, Graph, Node, Op, Rewrite, ValueId};
use crate::tensor::{DType, LazyTensor};

/// An activation as bytes, and the scale of each token.
#[derive(Clone, Copy)]
pub(super) struct Integers {
    bytes: ValueId,
    scale: ValueId,
    zero: ValueId,
}

/// What layers that read the same activation share: its integers, and its rounded values by the bits of their scale.
#[derive(Default)]
pub(super) struct Shared {
    integers: BTreeMap<(ValueId, u8), Integers>,
    rounded: BTreeMap<(ValueId, u32), ValueId>,
}

/// Keeps the scale of a token of zeros from dividing by zero.
const LEAST_SCALE: f32 = 1e-30;

/// `MatMulNBits` with 8-bit activations: the only level whose kernels are fast.
const ACCURACY_LEVEL: i64 = 4;

/// The layer's result under `scheme`.
pub(super) fn linear(
    new: &mut Rewrite<'_>,
    graph: &Graph,
    linear: &Linear,
    scheme: Scheme,
    plan: &Plan,
    shared: &mut Shared,
) -> Result<ValueId> {
    let x = new.value(linear.input)?;
    let name = linear.name.as_str();
    let Some(weight) = &graph.value(linear.weight).init else { return new.value(linear.output) };
    match scheme {
        Scheme::Int8 { zero_point } => {
            let input = match shared.integers.get(&(linear.input, zero_point)) {
                Some(done) => *done,
                None => {
                    let made = activation(&mut new.builder, x, &format!("{name}.input"), zero_point)?;
                    shared.integers.insert((linear.input, zero_point), made);
                    made
                }
            };
            let [w, scale] = per_channel(&weight.transposed(), Scales::Single);
            let w = new.builder.weight(&format!("{name}.weight.int8"), w);
            let scale = new.builder.weight(&format!("{name}.weight.scale"), scale);
            new.builder.scope(name, |g| {
                let one = g.scalar(1.0);
                let operands = [input.bytes, w, one, scale, input.zero].map(Some);
                let y = g.node(Op::microsoft("MatMulIntegerToFloat"), &operands)?;
                g.mul(y, input.scale)
            })
        }
        Scheme::Blocks { bits, block } => {
            let op = Op::microsoft("MatMulNBits")
                .int("K", linear.k as i64)
                .int("N", linear.n as i64)
                .int("bits", bits.into())
                .int("block_size", block.into())
                .int("accuracy_level", if plan.whole_activations { 0 } else { ACCURACY_LEVEL });
            let tensors = in_blocks(&weight.transposed(), bits, block.into(), plan.importance.get(name));
            let mut operands = vec![Some(x)];
            for (tensor, part) in tensors.into_iter().zip(["blocks", "scale", "zero"]) {
                operands.push(Some(new.builder.weight(&format!("{name}.weight.{part}"), tensor)));
            }
            new.builder.scope(name, |g| g.node(op, &operands))
        }
        Scheme::Fp16Weight => {
            let w = new.builder.weight(&format!("{name}.weight.fp16"), weight.cast(DType::F16).checked_finite(name));
            new.builder.scope(name, |g| {
                let w = g.cast(w, DType::F32)?;
                g.matmul(x, w)
            })
        }
        Scheme::Int8Tensor => {
            let largest = plan.ranges.get(name).copied();
            let largest = largest.ok_or_else(|| {
                Error::new(Code::GRAPH_INVALID, format!("the layer `{name}` has no range for its activations"))
            })?;
            let scale = Scales::Half.of(largest);
            let input = match shared.rounded.get(&(linear.input, scale.to_bits())) {
                Some(done) => *done,
                None => {
                    let made = rounded(&mut new.builder, x, &format!("{name}.input"), scale)?;
                    shared.rounded.insert((linear.input, scale.to_bits()), made);
                    made
                }
            };
            let [w, scale] = per_channel(&weight.transposed(), Scales::Half);
            let w = new.builder.weight(&format!("{name}.weight.int8"), w);
            let scale = new.builder.weight(&format!("{name}.weight.scale"), scale);
            let zero = LazyTensor::new(DType::I8, vec![linear.n], Arc::new(vec![0; linear.n]));
            let zero = new.builder.weight(&format!("{name}.weight.zero_point"), zero);
            new.builder.scope(name, |g| {
                let op = Op::new("DequantizeLinear").int("axis", 1);
                let w = g.node(op, &[Some(w), Some(scale), Some(zero)])?;
                g.matmul(input, w)
            })
        }
        Scheme::Fp32 | Scheme::Fp16 | Scheme::Int8Static => {
            let w = new.value(linear.weight)?;
            new.builder.scope(name, |g| g.matmul(x, w))
        }
    }
}

/// Quantizes `x` token by token.
fn activation(g: &mut Builder, x: ValueId, name: &str, zero_point: u8) -> Result<Integers> {
    let zero = LazyTensor::new(DType::U8, vec![], Arc::new(vec![zero_point]));
    let zero = g.weight(&format!("{name}.zero_point"), zero);
    g.scope(name, |g| {
        // Both ends of the range must fit: 255 - zero levels above 0, zero levels below. Two reductions are faster than
        // one over absolute values, which would be written out first.
        let (high, low) = (g.reduce("ReduceMax", x, &[-1])?, g.reduce("ReduceMin", x, &[-1])?);
        let above = g.scalar(1.0 / (255.0 - f32::from(zero_point)));
        let below = g.scalar(-1.0 / f32::from(zero_point));
        let (high, low) = (g.mul(high, above)?, g.mul(low, below)?);
        let scale = g.binary("Max", high, low)?;
        let least = g.scalar(LEAST_SCALE);
        let scale = g.binary("Max", scale, least)?;
        let inverse = g.unary("Reciprocal", scale)?;
        let scaled = g.mul(x, inverse)?;
        let one = g.scalar(1.0);
        let bytes = g.node(Op::new("QuantizeLinear"), &[Some(scaled), Some(one), Some(zero)])?;
        Ok(Integers { bytes, scale, zero })
    })
}

/// `x` rounded to multiples of `scale`: the pair of operators that says so.
fn rounded(g: &mut Builder, x: ValueId, name: &str, scale: f32) -> Result<ValueId> {
    let scale = g.weight(&format!("{name}.scale"), LazyTensor::from_f32(&[], &[scale]));
    let zero = LazyTensor::new(DType::I8, vec![], Arc::new(vec![0]));
    let zero = g.weight(&format!("{name}.zero_point"), zero);
    g.scope(name, |g| {
        let bytes = g.node(Op::new("QuantizeLinear"), &[Some(x), Some(scale), Some(zero)])?;
        g.node(Op::new("DequantizeLinear"), &[Some(bytes), Some(scale), Some(zero)])
    })
}

/// A lookup in a table of another element type, widened behind it.
pub(super) fn table(new: &mut Rewrite<'_>, graph: &Graph, node: &Node, dtype: DType) -> Result<()> {
    let table = node.inputs[0].filter(|&id| graph.value(id).ty.dtype != dtype);
    let Some(id) = table else { return new.copy(node) };
    if let Some(init) = &graph.value(id).init {
        new.substitute(id, init.cast(dtype).checked_finite(&graph.value(id).name));
    }
    let (table, indices) = (new.value(id)?, new.operand(node, 1)?);
    let wide = graph.value(node.outputs[0]).ty.dtype;
    let rows = new.builder.scope("embed_tokens", |g| {
        let rows = g.gather(table, indices)?;
        g.cast(rows, wide)
    })?;
    new.replace(node, rows);
    Ok(())
}
