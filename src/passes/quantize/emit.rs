//! Schemes as operators.
//!
//! int8 with per-token scales; the first two lines once per activation, the last one per layer:
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
//! int8 with one static scale per tensor, for TensorRT: symmetric quantize-dequantize pairs in standard operators,
//! which TensorRT fuses into an integer product:
//!
//! ```text
//! y = MatMul(DequantizeLinear(QuantizeLinear(x, s, 0), s, 0), DequantizeLinear(W, w_scale, 0, axis 1))
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use super::weights::{Scales, in_blocks, per_channel};
use super::{Plan, Scheme};
use crate::error::{Code, Error, Result};
use crate::graph::{Builder, Graph, Node, Op, Rewrite, ValueId};
use crate::passes::Linear;
use crate::tensor::{DType, LazyTensor};

/// An activation that is quantized per token: uint8 values, and the scale of each token.
#[derive(Clone, Copy)]
struct PerToken {
    bytes: ValueId,
    scale: ValueId,
    zero: ValueId,
}

/// Keeps the scale of a token of zeros from dividing by zero.
const LEAST_SCALE: f32 = 1e-30;

/// `MatMulNBits` with 8-bit activations: the only level whose kernels are fast.
const ACCURACY_LEVEL: i64 = 4;

/// Emits the layers of one graph. Layers that read the same activation share its quantized form.
pub(super) struct Emitter<'a> {
    /// The new graph.
    pub new: Rewrite<'a>,
    graph: &'a Graph,
    plan: &'a Plan,
    /// Activations quantized per token, by their zero point.
    per_token: BTreeMap<(ValueId, u8), PerToken>,
    /// Activations behind a quantize-dequantize pair, by the bits of their scale.
    per_tensor: BTreeMap<(ValueId, u32), ValueId>,
}

impl<'a> Emitter<'a> {
    pub(super) fn new(graph: &'a Graph, plan: &'a Plan) -> Self {
        let new = Rewrite::new(graph);
        Self { new, graph, plan, per_token: BTreeMap::new(), per_tensor: BTreeMap::new() }
    }

    /// The layer's result under `scheme`.
    pub(super) fn linear(&mut self, linear: &Linear, scheme: Scheme) -> Result<ValueId> {
        let Some(weight) = &self.graph.value(linear.weight).init else { return self.new.value(linear.output) };
        match scheme {
            Scheme::Int8 { zero_point } => self.dynamic_int8(linear, weight, zero_point),
            Scheme::Blocks { bits, block } => self.blocks(linear, weight, bits, block),
            Scheme::Fp16Weight => self.fp16_weight(linear, weight),
            Scheme::Int8Tensor => self.static_int8(linear, weight),
            Scheme::Fp32 | Scheme::Fp16 | Scheme::Int8Static => {
                let (x, w) = (self.new.value(linear.input)?, self.new.value(linear.weight)?);
                self.new.builder.scope(&linear.name, |g| g.matmul(x, w))
            }
        }
    }

    /// An integer product; the activation is quantized per token at run time.
    fn dynamic_int8(&mut self, linear: &Linear, weight: &LazyTensor, zero_point: u8) -> Result<ValueId> {
        let (x, name) = (self.new.value(linear.input)?, linear.name.as_str());
        let input = match self.per_token.get(&(linear.input, zero_point)) {
            Some(done) => *done,
            None => {
                let made = quantize_per_token(&mut self.new.builder, x, &format!("{name}.input"), zero_point)?;
                self.per_token.insert((linear.input, zero_point), made);
                made
            }
        };
        let [w, scale] = self.int8_weight(name, weight, Scales::Fp32);
        self.new.builder.scope(name, |g| {
            let one = g.scalar(1.0);
            let operands = [input.bytes, w, one, scale, input.zero].map(Some);
            let y = g.node(Op::microsoft("MatMulIntegerToFloat"), &operands)?;
            g.mul(y, input.scale)
        })
    }

    /// Weights in blocks.
    fn blocks(&mut self, linear: &Linear, weight: &LazyTensor, bits: u8, block: u16) -> Result<ValueId> {
        let (x, name) = (self.new.value(linear.input)?, linear.name.as_str());
        let op = Op::microsoft("MatMulNBits")
            .int("K", linear.k as i64)
            .int("N", linear.n as i64)
            .int("bits", bits.into())
            .int("block_size", block.into())
            .int("accuracy_level", if self.plan.whole_activations { 0 } else { ACCURACY_LEVEL });
        let tensors = in_blocks(&weight.transposed(), bits, block.into(), self.plan.importance.get(name));
        let mut operands = vec![Some(x)];
        for (tensor, kind) in tensors.into_iter().zip(["blocks", "scale", "zero"]) {
            operands.push(Some(self.new.builder.weight(&format!("{name}.weight.{kind}"), tensor)));
        }
        self.new.builder.scope(name, |g| g.node(op, &operands))
    }

    /// A float16 weight, cast to float32 when the graph is loaded.
    fn fp16_weight(&mut self, linear: &Linear, weight: &LazyTensor) -> Result<ValueId> {
        let (x, name) = (self.new.value(linear.input)?, linear.name.as_str());
        let w = weight.cast(DType::F16).checked_finite(name);
        let w = self.new.builder.weight(&format!("{name}.weight.fp16"), w);
        self.new.builder.scope(name, |g| {
            let w = g.cast(w, DType::F32)?;
            g.matmul(x, w)
        })
    }

    /// Quantize-dequantize pairs around activation and weight, all scales static.
    fn static_int8(&mut self, linear: &Linear, weight: &LazyTensor) -> Result<ValueId> {
        let (x, name) = (self.new.value(linear.input)?, linear.name.as_str());
        let max_abs = self.plan.max_abs.get(name).copied();
        let max_abs = max_abs.ok_or_else(|| {
            Error::new(Code::GRAPH_INVALID, format!("the layer `{name}` has no range for its activations"))
        })?;
        let scale = Scales::Fp16.of(max_abs);
        let input = match self.per_tensor.get(&(linear.input, scale.to_bits())) {
            Some(done) => *done,
            None => {
                let made = quantize_dequantize(&mut self.new.builder, x, &format!("{name}.input"), scale)?;
                self.per_tensor.insert((linear.input, scale.to_bits()), made);
                made
            }
        };
        let [w, scale] = self.int8_weight(name, weight, Scales::Fp16);
        let zero = LazyTensor::new(DType::I8, vec![linear.n], Arc::new(vec![0; linear.n]));
        let zero = self.new.builder.weight(&format!("{name}.weight.zero_point"), zero);
        self.new.builder.scope(name, |g| {
            let op = Op::new("DequantizeLinear").int("axis", 1);
            let w = g.node(op, &[Some(w), Some(scale), Some(zero)])?;
            g.matmul(input, w)
        })
    }

    /// The weight `[k, n]` as int8, and its scales `[n]`.
    fn int8_weight(&mut self, name: &str, weight: &LazyTensor, kind: Scales) -> [ValueId; 2] {
        let [w, scale] = per_channel(&weight.transposed(), kind);
        let w = self.new.builder.weight(&format!("{name}.weight.int8"), w);
        [w, self.new.builder.weight(&format!("{name}.weight.scale"), scale)]
    }
}

/// Quantizes `x` token by token.
fn quantize_per_token(g: &mut Builder, x: ValueId, name: &str, zero_point: u8) -> Result<PerToken> {
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
        Ok(PerToken { bytes, scale, zero })
    })
}

/// `x` rounded to multiples of `scale`, as a quantize-dequantize pair.
fn quantize_dequantize(g: &mut Builder, x: ValueId, name: &str, scale: f32) -> Result<ValueId> {
    let scale = g.weight(&format!("{name}.scale"), LazyTensor::from_f32(&[], &[scale]));
    let zero = LazyTensor::new(DType::I8, vec![], Arc::new(vec![0]));
    let zero = g.weight(&format!("{name}.zero_point"), zero);
    g.scope(name, |g| {
        let bytes = g.node(Op::new("QuantizeLinear"), &[Some(x), Some(scale), Some(zero)])?;
        g.node(Op::new("DequantizeLinear"), &[Some(bytes), Some(scale), Some(zero)])
    })
}

/// A lookup in a table of another element type; the looked-up rows are cast back.
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
