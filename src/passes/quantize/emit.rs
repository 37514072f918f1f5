//! Schemes as operators for ONNX Runtime's CPU provider.
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

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::linears::Linear;
use super::Scheme;
use super::weights::{in_blocks, per_channel};
use crate::error::Result;
use crate::graph::{Builder, Graph, Node, Op, Rewrite, ValueId};
use crate::tensor::{DType, LazyTensor};

/// An activation as bytes, and the scale of each token.
#[derive(Clone, Copy)]
pub(super) struct Integers {
    bytes: ValueId,
    scale: ValueId,
    zero: ValueId,
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
    importance: Option<&Arc<[f32]>>,
    integers: &mut BTreeMap<(ValueId, u8), Integers>,
) -> Result<ValueId> {
    let x = new.value(linear.input)?;
    let name = linear.name.as_str();
    let Some(weight) = &graph.value(linear.weight).init else { return new.value(linear.output) };
    match scheme {
        Scheme::Int8 { zero_point } => {
            let input = match integers.get(&(linear.input, zero_point)) {
                Some(done) => *done,
                None => {
                    let made = activation(&mut new.builder, x, &format!("{name}.input"), zero_point)?;
                    integers.insert((linear.input, zero_point), made);
                    made
                }
            };
            let [w, scale] = per_channel(&weight.transposed());
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
                .int("accuracy_level", ACCURACY_LEVEL);
            let tensors = in_blocks(&weight.transposed(), bits, block.into(), importance);
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
