//! Type rules: what an operator makes of its operands. One row an operator in [`infer`]'s table.
//!
//! Rules follow the ONNX operator specification (opset 20) and, for `com.microsoft`, ONNX Runtime's contrib
//! operator documentation, restricted to the forms that this crate writes.

mod arithmetic;
mod quantized;
mod shapes;
mod subgraphs;
mod training;

use super::op::{Domain, Op};
use super::types::{Dim, ValueType};
use super::{Graph, ValueId};
use crate::tensor::DType;

/// One line that says what does not fit.
type Answer<T> = Result<T, String>;

/// What a rule sees: the operator and its operands' types and constant values.
struct Call<'a> {
    graph: &'a Graph,
    op: &'a Op,
    inputs: &'a [Option<ValueId>],
    outputs: usize,
}

/// The types of a node's results.
pub(super) fn infer(graph: &Graph, op: &Op, inputs: &[Option<ValueId>], outputs: usize) -> Answer<Vec<ValueType>> {
    let call = Call { graph, op, inputs, outputs };
    if inputs.len() > most_operands(op) {
        return Err(format!("{} operands, at most {} are known", inputs.len(), most_operands(op)));
    }
    let one = |ty: Answer<ValueType>| ty.map(|t| vec![t]);
    let types = match (op.domain, op.kind) {
        (Domain::Onnx, "Relu" | "Gelu" | "Sigmoid" | "Sqrt" | "Abs") => one(call.float(0).cloned()),
        (Domain::Onnx, "Reciprocal" | "Cos" | "Sin" | "Softmax" | "LogSoftmax") => one(call.float(0).cloned()),
        (Domain::Onnx, "Exp" | "Log" | "Erf" | "Neg") => one(call.float(0).cloned()),
        (Domain::Onnx, "Identity") => one(call.ty(0).cloned()),
        (Domain::Onnx, "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Max" | "Min") => one(call.elementwise(None)),
        (Domain::Onnx, "And") => one(call.both_bool().and_then(|()| call.elementwise(Some(DType::Bool)))),
        (Domain::Onnx, "GreaterOrEqual" | "Greater" | "Less" | "Equal") => one(call.elementwise(Some(DType::Bool))),
        (Domain::Onnx, "Where") => one(call.select()),
        (Domain::Onnx, "Cast") => one(call.cast()),
        (Domain::Onnx, "MatMul") => one(call.matmul()),
        (Domain::Onnx, "Gemm") => one(call.gemm()),
        (Domain::Onnx, "Conv") => one(call.conv()),
        (Domain::Onnx, "ConvTranspose") => one(call.conv_transpose()),
        (Domain::Onnx, "BatchNormalization") => one(call.per_channel(5)),
        (Domain::Onnx, "InstanceNormalization") => one(call.per_channel(3)),
        (Domain::Onnx, "LayerNormalization") => one(call.layer_norm()),
        (Domain::Onnx, "Reshape") => one(call.reshape()),
        (Domain::Onnx, "Transpose") => one(call.transpose()),
        (Domain::Onnx, "Concat") => one(call.concat()),
        (Domain::Onnx, "Split") => call.split(),
        (Domain::Onnx, "Slice") => one(call.slice()),
        (Domain::Onnx, "Pad") => one(call.pad()),
        (Domain::Onnx, "Unsqueeze") => one(call.unsqueeze()),
        (Domain::Onnx, "Squeeze") => one(call.squeeze()),
        (Domain::Onnx, "Shape") => one(call.shape_of()),
        (Domain::Onnx, "Range") => one(Ok(ValueType::new(call.ty(0)?.dtype, [Dim::Any]))),
        (Domain::Onnx, "Expand") => one(call.expand()),
        (Domain::Onnx, "Size") => one(Ok(ValueType::new(DType::I64, []))),
        (Domain::Onnx, "Scan") => call.scan(),
        (Domain::Onnx, "Gather") => one(call.gather()),
        (Domain::Onnx, "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin") => one(call.reduce()),
        (Domain::Onnx, "QuantizeLinear") => one(call.quantize_linear()),
        (Domain::Onnx, "DequantizeLinear") => one(call.dequantize_linear()),
        (Domain::Onnx, "MatMulInteger") => one(call.matmul_integer()),
        (Domain::Microsoft, "MatMulIntegerToFloat") => one(call.matmul_integer_to_float()),
        (Domain::Microsoft, "MatMulNBits") => one(call.matmul_nbits()),
        (Domain::Microsoft, "MultiHeadAttention") => one(call.attention()),
        (Domain::Microsoft, "InPlaceAccumulatorV2") => call.accumulate(),
        (domain, kind) => Err(format!("no type rule for operator `{kind}` of domain `{}`", domain.name())),
    }?;
    if types.len() == outputs { Ok(types) } else { Err(format!("makes {} results, not {outputs}", types.len())) }
}

/// Most operands of the forms that are written here: one more would be ignored by the rule, not by a runtime.
fn most_operands(op: &Op) -> usize {
    match op.kind {
        "Relu" | "Gelu" | "Sigmoid" | "Sqrt" | "Abs" | "Reciprocal" | "Cos" | "Sin" | "Softmax" => 1,
        "LogSoftmax" | "Exp" | "Log" | "Erf" | "Neg" => 1,
        "Cast" | "Transpose" | "Shape" | "Size" | "Identity" => 1,
        "Where" | "Gemm" | "Conv" | "InstanceNormalization" | "LayerNormalization" | "Range" => 3,
        "MultiHeadAttention" | "Pad" | "MatMulInteger" | "QuantizeLinear" | "DequantizeLinear" => 3,
        "MatMulNBits" => 4,
        "Slice" | "BatchNormalization" | "MatMulIntegerToFloat" => 5,
        "InPlaceAccumulatorV2" => 3,
        "Concat" | "Scan" => usize::MAX,
        _ => 2,
    }
}

impl Call<'_> {
    fn ty(&self, i: usize) -> Answer<&ValueType> {
        let id = self.inputs.get(i).copied().flatten().ok_or_else(|| format!("operand {i} is missing"))?;
        Ok(&self.graph.value(id).ty)
    }

    fn float(&self, i: usize) -> Answer<&ValueType> {
        let ty = self.ty(i)?;
        if ty.dtype.is_float() { Ok(ty) } else { Err(format!("operand {i} is {ty}, not a float")) }
    }

    /// The values of a constant int64 operand.
    fn ints(&self, i: usize) -> Answer<Vec<i64>> {
        let id = self.inputs.get(i).copied().flatten().ok_or_else(|| format!("operand {i} is missing"))?;
        self.graph.constant_i64(id).ok_or_else(|| format!("operand {i} is not a constant of integers"))
    }

    fn axis(&self, axis: i64, rank: usize) -> Answer<usize> {
        let shifted = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(shifted).ok().filter(|a| *a < rank).ok_or_else(|| format!("axis {axis} of a rank {rank} value"))
    }
}
