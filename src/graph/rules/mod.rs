//! Type rules: the types that an operator gives its results. One row an operator in [`RULES`].
//!
//! Rules follow the ONNX operator specification (opset 20) and, for `com.microsoft`, ONNX Runtime's contrib
//! operator documentation, restricted to the forms that this crate writes.

mod arithmetic;
mod quantized;
mod shapes;
mod subgraphs;
mod training;

use super::op::{Domain, Op};
use super::types::ValueType;
use super::{Graph, ValueId};

/// One line that says what does not fit.
type Answer<T> = Result<T, String>;

/// What a rule sees: the operator and its operands' types and constant values.
struct Call<'a> {
    graph: &'a Graph,
    op: &'a Op,
    inputs: &'a [Option<ValueId>],
    outputs: usize,
}

/// What an operator makes of its operands.
enum Infer {
    /// One result.
    One(fn(&Call<'_>) -> Answer<ValueType>),
    /// Results, as many as there are.
    All(fn(&Call<'_>) -> Answer<Vec<ValueType>>),
}

/// One row of the table.
struct Rule {
    domain: Domain,
    kind: &'static str,
    /// Maximum of operands of the forms that are written here: the rule would ignore one more, a runtime would not.
    operands: usize,
    infer: Infer,
}

/// A row of a standard operator with one result.
const fn rule(kind: &'static str, operands: usize, infer: fn(&Call<'_>) -> Answer<ValueType>) -> Rule {
    Rule { domain: Domain::Onnx, kind, operands, infer: Infer::One(infer) }
}

/// A row of a standard operator with several results.
const fn rules(kind: &'static str, operands: usize, infer: fn(&Call<'_>) -> Answer<Vec<ValueType>>) -> Rule {
    Rule { domain: Domain::Onnx, kind, operands, infer: Infer::All(infer) }
}

/// A row of one of ONNX Runtime's operators.
const fn contrib(kind: &'static str, operands: usize, infer: Infer) -> Rule {
    Rule { domain: Domain::Microsoft, kind, operands, infer }
}

/// Any number of operands.
const VARIADIC: usize = usize::MAX;

/// Every operator that a graph may have: a new one is a row here and a function in one of the modules.
const RULES: &[Rule] = &[
    rule("Relu", 1, |c| c.same_float()),
    rule("Gelu", 1, |c| c.same_float()),
    rule("Sigmoid", 1, |c| c.same_float()),
    rule("Sqrt", 1, |c| c.same_float()),
    rule("Abs", 1, |c| c.same_float()),
    rule("Reciprocal", 1, |c| c.same_float()),
    rule("Cos", 1, |c| c.same_float()),
    rule("Sin", 1, |c| c.same_float()),
    rule("Exp", 1, |c| c.same_float()),
    rule("Log", 1, |c| c.same_float()),
    rule("Erf", 1, |c| c.same_float()),
    rule("Neg", 1, |c| c.same_float()),
    rule("Softmax", 1, |c| c.same_float()),
    rule("LogSoftmax", 1, |c| c.same_float()),
    rule("Identity", 1, |c| c.same()),
    rule("Add", 2, |c| c.arithmetic()),
    rule("Sub", 2, |c| c.arithmetic()),
    rule("Mul", 2, |c| c.arithmetic()),
    rule("Div", 2, |c| c.arithmetic()),
    rule("Pow", 2, |c| c.arithmetic()),
    rule("Max", 2, |c| c.arithmetic()),
    rule("Min", 2, |c| c.arithmetic()),
    rule("Equal", 2, |c| c.comparison()),
    rule("Greater", 2, |c| c.comparison()),
    rule("GreaterOrEqual", 2, |c| c.comparison()),
    rule("Less", 2, |c| c.comparison()),
    rule("And", 2, |c| c.logical()),
    rule("Where", 3, |c| c.select()),
    rule("Cast", 1, |c| c.cast()),
    rule("MatMul", 2, |c| c.matmul()),
    rule("Gemm", 3, |c| c.gemm()),
    rule("Conv", 3, |c| c.conv()),
    rule("ConvTranspose", 2, |c| c.conv_transpose()),
    rule("BatchNormalization", 5, |c| c.batch_norm()),
    rule("InstanceNormalization", 3, |c| c.instance_norm()),
    rule("LayerNormalization", 3, |c| c.layer_norm()),
    rule("ReduceMean", 2, |c| c.reduce()),
    rule("ReduceSum", 2, |c| c.reduce()),
    rule("ReduceMax", 2, |c| c.reduce()),
    rule("ReduceMin", 2, |c| c.reduce()),
    rule("Reshape", 2, |c| c.reshape()),
    rule("Transpose", 1, |c| c.transpose()),
    rule("Concat", VARIADIC, |c| c.concat()),
    rules("Split", 2, |c| c.split()),
    rule("Slice", 5, |c| c.slice()),
    rule("Pad", 3, |c| c.pad()),
    rule("Unsqueeze", 2, |c| c.unsqueeze()),
    rule("Squeeze", 2, |c| c.squeeze()),
    rule("Shape", 1, |c| c.shape_of()),
    rule("Size", 1, |c| c.size()),
    rule("Range", 3, |c| c.range()),
    rule("Expand", 2, |c| c.expand()),
    rule("Gather", 2, |c| c.gather()),
    rules("Scan", VARIADIC, |c| c.scan()),
    rule("QuantizeLinear", 3, |c| c.quantize_linear()),
    rule("DequantizeLinear", 3, |c| c.dequantize_linear()),
    rule("MatMulInteger", 3, |c| c.matmul_integer()),
    contrib("MatMulIntegerToFloat", 5, Infer::One(|c| c.matmul_integer_to_float())),
    contrib("MatMulNBits", 4, Infer::One(|c| c.matmul_nbits())),
    contrib("MultiHeadAttention", 3, Infer::One(|c| c.attention())),
    contrib("InPlaceAccumulatorV2", 3, Infer::All(|c| c.accumulate())),
];

/// Operators that only graphs for training have: one runs a graph of its own, the other keeps a buffer between runs.
const TRAINING: [&str; 2] = ["Scan", "InPlaceAccumulatorV2"];

/// Whether a bundle's graphs may have the operator: those of [`RULES`], which are all that is ever written, except
/// those for training.
pub(crate) fn is_for_bundles(domain: &str, kind: &str) -> bool {
    !TRAINING.contains(&kind) && RULES.iter().any(|rule| rule.domain.name() == domain && rule.kind == kind)
}

/// The types of a node's results.
pub(super) fn infer(graph: &Graph, op: &Op, inputs: &[Option<ValueId>], outputs: usize) -> Answer<Vec<ValueType>> {
    let rule = RULES.iter().find(|rule| (rule.domain, rule.kind) == (op.domain, op.kind));
    let no_rule = || format!("no type rule for operator `{}` of domain `{}`", op.kind, op.domain.name());
    let rule = rule.ok_or_else(no_rule)?;
    if inputs.len() > rule.operands {
        return Err(format!("{} operands, at most {} are known", inputs.len(), rule.operands));
    }
    let call = Call { graph, op, inputs, outputs };
    let types = match rule.infer {
        Infer::One(infer) => vec![infer(&call)?],
        Infer::All(infer) => infer(&call)?,
    };
    if types.len() == outputs { Ok(types) } else { Err(format!("makes {} results, not {outputs}", types.len())) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_has_one_row() {
        for (i, row) in RULES.iter().enumerate() {
            assert!(!RULES[..i].iter().any(|r| (r.domain, r.kind) == (row.domain, row.kind)), "{} twice", row.kind);
        }
    }

    #[test]
    fn bundles_have_the_operators_of_the_table_except_those_for_training() {
        assert!(TRAINING.iter().all(|kind| RULES.iter().any(|row| row.kind == *kind)));
        assert!(is_for_bundles("", "MatMul") && is_for_bundles("com.microsoft", "MatMulNBits"));
        for (domain, kind) in [("", "Scan"), ("", "If"), ("", "Loop"), ("com.microsoft", "InPlaceAccumulatorV2")] {
            assert!(!is_for_bundles(domain, kind), "{kind}");
        }
        // The name alone says nothing.
        assert!(!is_for_bundles("com.microsoft", "MatMul") && !is_for_bundles("", "MatMulNBits"));
        assert!(!is_for_bundles("com.microsoft", "EPContext") && !is_for_bundles("ai.onnx", "MatMul"));
    }
}
