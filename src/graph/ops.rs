//! The builder's shorthand: one method an operator, in the field's usual names.

use super::op::Attribute;
use super::{Builder, Op, ValueId};
use crate::error::Result;
use crate::tensor::{DType, LazyTensor};

/// Each method adds one node; all fail with `graph.invalid` when the operands do not fit.
#[allow(missing_docs, reason = "the methods are ONNX's operators of the same name")]
impl Builder {
    pub fn add(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.node(Op::new("Add"), &[Some(a), Some(b)])
    }

    pub fn sub(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.node(Op::new("Sub"), &[Some(a), Some(b)])
    }

    pub fn mul(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.node(Op::new("Mul"), &[Some(a), Some(b)])
    }

    pub fn div(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.node(Op::new("Div"), &[Some(a), Some(b)])
    }

    /// An operator of one operand and no attributes.
    pub fn unary(&mut self, kind: &'static str, x: ValueId) -> Result<ValueId> {
        self.node(Op::new(kind), &[Some(x)])
    }

    /// An operator of two operands and no attributes.
    pub fn binary(&mut self, kind: &'static str, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.node(Op::new(kind), &[Some(a), Some(b)])
    }

    pub fn select(&mut self, condition: ValueId, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.node(Op::new("Where"), &[Some(condition), Some(a), Some(b)])
    }

    pub fn cast(&mut self, x: ValueId, to: DType) -> Result<ValueId> {
        self.node(Op::new("Cast").with("to", Attribute::Type(to)), &[Some(x)])
    }

    pub fn matmul(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.node(Op::new("MatMul"), &[Some(a), Some(b)])
    }

    /// `x Wᵀ (+ b)` for a matrix `x [M, K]` and PyTorch's `weight [N, K]`.
    pub fn gemm(&mut self, x: ValueId, weight: ValueId, bias: Option<ValueId>) -> Result<ValueId> {
        let mut inputs = vec![Some(x), Some(weight)];
        inputs.extend(bias.map(Some));
        self.node(Op::new("Gemm").int("transB", 1), &inputs)
    }

    /// `x Wᵀ (+ b)` over the last axis of `x [.., K]`, for PyTorch's `weight [N, K]`, which is stored transposed.
    pub fn linear(
        &mut self,
        x: ValueId,
        name: &str,
        weight: &LazyTensor,
        bias: Option<&LazyTensor>,
    ) -> Result<ValueId> {
        let w = self.weight(&format!("{name}.weight.T"), weight.transposed());
        let y = self.matmul(x, w)?;
        match bias {
            Some(bias) => {
                let b = self.weight(&format!("{name}.bias"), bias.clone());
                self.add(y, b)
            }
            None => Ok(y),
        }
    }

    pub fn softmax(&mut self, x: ValueId) -> Result<ValueId> {
        self.node(Op::new("Softmax").int("axis", -1), &[Some(x)])
    }

    pub fn layer_norm(&mut self, x: ValueId, weight: ValueId, bias: ValueId, eps: f32) -> Result<ValueId> {
        let op = Op::new("LayerNormalization").int("axis", -1).float("epsilon", eps);
        self.node(op, &[Some(x), Some(weight), Some(bias)])
    }

    pub fn reshape(&mut self, x: ValueId, shape: &[i64]) -> Result<ValueId> {
        let shape = self.ints(shape);
        self.node(Op::new("Reshape"), &[Some(x), Some(shape)])
    }

    pub fn transpose(&mut self, x: ValueId, perm: &[i64]) -> Result<ValueId> {
        self.node(Op::new("Transpose").ints("perm", perm), &[Some(x)])
    }

    pub fn concat(&mut self, parts: &[ValueId], axis: i64) -> Result<ValueId> {
        let inputs: Vec<Option<ValueId>> = parts.iter().map(|&p| Some(p)).collect();
        self.node(Op::new("Concat").int("axis", axis), &inputs)
    }

    pub fn split(&mut self, x: ValueId, sizes: &[i64], axis: i64) -> Result<Vec<ValueId>> {
        let n = sizes.len();
        let sizes = self.ints(sizes);
        self.node_multi(Op::new("Split").int("axis", axis), &[Some(x), Some(sizes)], n)
    }

    /// Elements `start..end` along one axis.
    pub fn slice(&mut self, x: ValueId, axis: i64, start: i64, end: i64) -> Result<ValueId> {
        let (start, end, axis) = (self.ints(&[start]), self.ints(&[end]), self.ints(&[axis]));
        self.node(Op::new("Slice"), &[Some(x), Some(start), Some(end), Some(axis)])
    }

    /// Zeros around `x`: as many as in `pads` before each axis, then after each axis.
    pub fn pad(&mut self, x: ValueId, pads: &[i64]) -> Result<ValueId> {
        let pads = self.ints(pads);
        self.node(Op::new("Pad"), &[Some(x), Some(pads)])
    }

    pub fn unsqueeze(&mut self, x: ValueId, axes: &[i64]) -> Result<ValueId> {
        let axes = self.ints(axes);
        self.node(Op::new("Unsqueeze"), &[Some(x), Some(axes)])
    }

    pub fn squeeze(&mut self, x: ValueId, axes: &[i64]) -> Result<ValueId> {
        let axes = self.ints(axes);
        self.node(Op::new("Squeeze"), &[Some(x), Some(axes)])
    }

    pub fn gather(&mut self, table: ValueId, indices: ValueId) -> Result<ValueId> {
        self.node(Op::new("Gather").int("axis", 0), &[Some(table), Some(indices)])
    }

    pub fn reduce_mean(&mut self, x: ValueId, axes: &[i64], keep: bool) -> Result<ValueId> {
        self.reduction("ReduceMean", x, axes, keep)
    }

    pub fn reduce_sum(&mut self, x: ValueId, axes: &[i64], keep: bool) -> Result<ValueId> {
        self.reduction("ReduceSum", x, axes, keep)
    }

    /// A reduction that keeps the reduced axes, with size 1.
    pub fn reduce(&mut self, kind: &'static str, x: ValueId, axes: &[i64]) -> Result<ValueId> {
        self.reduction(kind, x, axes, true)
    }

    /// `com.microsoft.InPlaceAccumulatorV2` over float values of one shape and `reset`, bool `[1]`: gives a flag, bool
    /// `[1]`, that means nothing, and `buffer + gradient`, or `gradient` alone where `reset` is true. Microsoft's
    /// training runtime writes the sum into the buffer itself; elsewhere it is the second result. Both must be outputs
    /// of the graph there.
    pub fn accumulate(&mut self, buffer: ValueId, gradient: ValueId, reset: ValueId) -> Result<[ValueId; 2]> {
        let op = Op::microsoft("InPlaceAccumulatorV2");
        let results = self.node_multi(op, &[Some(buffer), Some(gradient), Some(reset)], 2)?;
        Ok([results[0], results[1]])
    }

    fn reduction(&mut self, kind: &'static str, x: ValueId, axes: &[i64], keep: bool) -> Result<ValueId> {
        let axes = self.ints(axes);
        self.node(Op::new(kind).int("keepdims", keep.into()), &[Some(x), Some(axes)])
    }
}
