//! Type rules: what an operator makes of its operands. One row an operator in [`infer`]'s table.
//!
//! Rules follow the ONNX operator specification (opset 20) and, for `com.microsoft`, ONNX Runtime's contrib
//! operator documentation, restricted to the forms that this crate writes.

use super::op::{Attribute, Domain, Op};
use super::types::{Dim, ValueType, broadcast, show_dims};
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
        (Domain::Onnx, "Relu" | "Gelu" | "Sigmoid" | "Sqrt" | "Reciprocal" | "Cos" | "Sin" | "Softmax") => {
            one(call.float(0).cloned())
        }
        (Domain::Onnx, "Add" | "Sub" | "Mul" | "Div" | "Max") => one(call.elementwise(None)),
        (Domain::Onnx, "And") => one(call.both_bool().and_then(|()| call.elementwise(Some(DType::Bool)))),
        (Domain::Onnx, "GreaterOrEqual" | "Equal") => one(call.elementwise(Some(DType::Bool))),
        (Domain::Onnx, "Where") => one(call.select()),
        (Domain::Onnx, "Cast") => one(call.cast()),
        (Domain::Onnx, "MatMul") => one(call.matmul()),
        (Domain::Onnx, "Gemm") => one(call.gemm()),
        (Domain::Onnx, "Conv") => one(call.conv()),
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
        (Domain::Onnx, "Gather") => one(call.gather()),
        (Domain::Onnx, "ReduceMean" | "ReduceSum") => one(call.reduce()),
        (Domain::Microsoft, "MultiHeadAttention") => one(call.attention()),
        (domain, kind) => Err(format!("no type rule for operator `{kind}` of domain `{}`", domain.name())),
    }?;
    if types.len() == outputs { Ok(types) } else { Err(format!("makes {} results, not {outputs}", types.len())) }
}

/// Most operands of the forms that are written here: one more would be ignored by the rule, not by a runtime.
fn most_operands(op: &Op) -> usize {
    match op.kind {
        "Relu" | "Gelu" | "Sigmoid" | "Sqrt" | "Reciprocal" | "Cos" | "Sin" | "Softmax" => 1,
        "Cast" | "Transpose" | "Shape" => 1,
        "Where" | "Gemm" | "Conv" | "InstanceNormalization" | "LayerNormalization" | "Range" => 3,
        "MultiHeadAttention" | "Pad" => 3,
        "Slice" => 4,
        "BatchNormalization" => 5,
        "Concat" => usize::MAX,
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

    fn both_bool(&self) -> Answer<()> {
        let (a, b) = (self.ty(0)?, self.ty(1)?);
        if a.dtype == DType::Bool && b.dtype == DType::Bool { Ok(()) } else { Err(format!("operands are {a} and {b}")) }
    }

    fn elementwise(&self, result: Option<DType>) -> Answer<ValueType> {
        let (a, b) = (self.ty(0)?, self.ty(1)?);
        if a.dtype != b.dtype {
            return Err(format!("operands are {a} and {b}"));
        }
        let shape = broadcast(&a.shape, &b.shape).ok_or_else(|| format!("cannot broadcast {a} and {b}"))?;
        Ok(ValueType::new(result.unwrap_or(a.dtype), shape))
    }

    fn select(&self) -> Answer<ValueType> {
        let (condition, a, b) = (self.ty(0)?, self.ty(1)?, self.ty(2)?);
        if condition.dtype != DType::Bool || a.dtype != b.dtype {
            return Err(format!("operands are {condition}, {a} and {b}"));
        }
        let both = broadcast(&a.shape, &b.shape).and_then(|s| broadcast(&s, &condition.shape));
        Ok(ValueType::new(a.dtype, both.ok_or_else(|| format!("cannot broadcast {condition}, {a} and {b}"))?))
    }

    fn cast(&self) -> Answer<ValueType> {
        match self.op.get("to") {
            Some(Attribute::Type(to)) => Ok(ValueType::new(*to, self.ty(0)?.shape.clone())),
            _ => Err("Cast has no type to cast to".to_owned()),
        }
    }

    fn matmul(&self) -> Answer<ValueType> {
        let (a, b) = (self.float(0)?, self.float(1)?);
        let fail = || format!("cannot multiply {a} by {b}");
        let ([batch_a @ .., m, k], [batch_b @ .., k2, n]) = (a.shape.as_slice(), b.shape.as_slice()) else {
            return Err(fail());
        };
        if a.dtype != b.dtype || k.unify(*k2).is_none() {
            return Err(fail());
        }
        let mut shape = broadcast(batch_a, batch_b).ok_or_else(fail)?;
        shape.extend([*m, *n]);
        Ok(ValueType::new(a.dtype, shape))
    }

    fn gemm(&self) -> Answer<ValueType> {
        let (a, b) = (self.float(0)?, self.float(1)?);
        let ([m, k], [n, k2]) = (a.shape.as_slice(), b.shape.as_slice()) else {
            return Err(format!("Gemm multiplies matrices, not {a} by {b}"));
        };
        if self.op.get_int("transB", 0) != 1 || self.op.get_int("transA", 0) != 0 || k.unify(*k2).is_none() {
            return Err(format!("Gemm(transB = 1) cannot multiply {a} by {b}"));
        }
        let bias = ValueType::new(a.dtype, [*n]);
        if a.dtype != b.dtype || (self.inputs.len() > 2 && *self.ty(2)? != bias) {
            return Err(format!("{b} and its bias, which should be {bias}, do not fit {a}"));
        }
        Ok(ValueType::new(a.dtype, [*m, *n]))
    }

    fn conv(&self) -> Answer<ValueType> {
        let (x, w) = (self.float(0)?, self.float(1)?);
        let rank = x.shape.len();
        let fits = rank >= 3 && w.shape.len() == rank && w.dtype == x.dtype;
        if !fits || x.shape[1].unify(w.shape[1]).is_none() {
            return Err(format!("cannot convolve {x} with {w}"));
        }
        if self.inputs.len() > 2 && *self.ty(2)? != ValueType::new(x.dtype, [w.shape[0]]) {
            return Err(format!("bias {} does not fit {w}", self.ty(2)?));
        }
        // Only what is written here: other forms would need other sums.
        if self.op.get_int("group", 1) != 1 || self.op.get_ints("dilations").iter().any(|&d| d != 1) {
            return Err("grouped and dilated convolutions have no rule".to_owned());
        }
        let (pads, strides) = (self.op.get_ints("pads"), self.op.get_ints("strides"));
        let mut shape = vec![x.shape[0], w.shape[0]];
        for i in 0..rank - 2 {
            let at = |v: &[i64], j: usize, default: i64| v.get(j).copied().unwrap_or(default);
            let padded = at(pads, i, 0) + at(pads, i + rank - 2, 0);
            let (Some(n), Some(k)) = (x.shape[i + 2].known(), w.shape[i + 2].known()) else {
                return Err(format!("convolution over an extent that is not known: {x}"));
            };
            let room = n as i64 + padded - k as i64;
            if room < 0 || at(strides, i, 1) < 1 {
                return Err(format!("kernel {w} does not fit into {x}"));
            }
            shape.push(Dim::Known((room / at(strides, i, 1) + 1) as usize));
        }
        Ok(ValueType::new(x.dtype, shape))
    }

    /// Normalisations whose operands 1.. are vectors of one number a channel (axis 1).
    fn per_channel(&self, operands: usize) -> Answer<ValueType> {
        let x = self.float(0)?;
        let Some(&channels) = x.shape.get(1) else { return Err(format!("{x} has no channels")) };
        for i in 1..operands {
            if *self.ty(i)? != ValueType::new(x.dtype, [channels]) {
                return Err(format!("operand {i} is {}, the channels those of {x}", self.ty(i)?));
            }
        }
        Ok(x.clone())
    }

    fn layer_norm(&self) -> Answer<ValueType> {
        let x = self.float(0)?;
        let Some(&last) = x.shape.last() else { return Err(format!("{x} has no last axis")) };
        let operands = 1..self.inputs.len().max(2);
        for i in operands {
            if self.op.get_int("axis", -1) != -1 || *self.ty(i)? != ValueType::new(x.dtype, [last]) {
                return Err(format!("cannot normalise {x} with {} over the last axis", self.ty(i)?));
            }
        }
        Ok(x.clone())
    }

    /// `Reshape`: 0 copies an extent, one -1 takes what is left.
    fn reshape(&self) -> Answer<ValueType> {
        let (x, target) = (self.ty(0)?, self.ints(1)?);
        let mut shape = Vec::with_capacity(target.len());
        for (i, &t) in target.iter().enumerate() {
            shape.push(match t {
                0 => *x.shape.get(i).ok_or_else(|| format!("{x} has no axis {i} to copy"))?,
                -1 => Dim::Any,
                n => Dim::Known(usize::try_from(n).map_err(|_| format!("extent {n} in {target:?}"))?),
            });
        }
        // Copied names cancel; what is left must be numbers, and as many elements on both sides.
        let copied: Vec<usize> = (0..target.len()).filter(|&i| target[i] == 0).collect();
        let rest = |dims: &[Dim]| -> Option<usize> {
            let others = dims.iter().enumerate().filter(|(i, _)| !copied.contains(i));
            others.map(|(_, d)| d.known()).try_fold(1usize, |n, d| n.checked_mul(d?))
        };
        let have = rest(&x.shape).ok_or_else(|| format!("cannot reshape {x} to {target:?}"))?;
        let unknown = target.iter().position(|&t| t == -1);
        let want = shape.iter().enumerate().filter(|(i, _)| Some(*i) != unknown && !copied.contains(i));
        let want = want.filter_map(|(_, d)| d.known()).try_fold(1usize, usize::checked_mul);
        let want = want.ok_or_else(|| format!("cannot reshape {x} to {target:?}"))?;
        match unknown {
            Some(_) if target.iter().filter(|&&t| t == -1).count() > 1 => {
                return Err(format!("more than one -1 in {target:?}"));
            }
            Some(i) if want > 0 && have % want == 0 => shape[i] = Dim::Known(have / want),
            None if have == want => {}
            _ => return Err(format!("cannot reshape {x} to {target:?}")),
        }
        Ok(ValueType::new(x.dtype, shape))
    }

    fn transpose(&self) -> Answer<ValueType> {
        let (x, perm) = (self.ty(0)?, self.op.get_ints("perm"));
        let mut sorted = perm.to_vec();
        sorted.sort_unstable();
        if sorted != (0..x.shape.len() as i64).collect::<Vec<_>>() {
            return Err(format!("{perm:?} does not permute the axes of {x}"));
        }
        Ok(ValueType::new(x.dtype, perm.iter().map(|&p| x.shape[p as usize]).collect::<Vec<_>>()))
    }

    fn concat(&self) -> Answer<ValueType> {
        let first = self.ty(0)?;
        let axis = self.axis(self.op.get_int("axis", 0), first.shape.len())?;
        let (mut shape, mut extent) = (first.shape.clone(), 0usize);
        for i in 0..self.inputs.len() {
            let part = self.ty(i)?;
            let fits = part.dtype == first.dtype && part.shape.len() == shape.len();
            if !fits || (0..shape.len()).any(|a| a != axis && part.shape[a].unify(shape[a]).is_none()) {
                return Err(format!("cannot join {part} to {first} along axis {axis}"));
            }
            extent +=
                part.shape[axis].known().ok_or_else(|| format!("extent of axis {axis} of {part} is not known"))?;
        }
        shape[axis] = Dim::Known(extent);
        Ok(ValueType::new(first.dtype, shape))
    }

    fn split(&self) -> Answer<Vec<ValueType>> {
        let (x, sizes) = (self.ty(0)?, self.ints(1)?);
        let axis = self.axis(self.op.get_int("axis", 0), x.shape.len())?;
        let total = sizes.iter().try_fold(0i64, |n, &s| n.checked_add(s)).filter(|_| sizes.iter().all(|&s| s >= 0));
        if sizes.len() != self.outputs || total.is_none() || x.shape[axis].known().map(|n| n as i64) != total {
            return Err(format!("cannot split {x} into {sizes:?} along axis {axis}"));
        }
        let part = |&size: &i64| {
            let mut shape = x.shape.clone();
            shape[axis] = Dim::Known(size as usize);
            ValueType::new(x.dtype, shape)
        };
        Ok(sizes.iter().map(part).collect())
    }

    /// `Slice` with constant bounds and steps of 1.
    fn slice(&self) -> Answer<ValueType> {
        let (x, starts, ends, axes) = (self.ty(0)?, self.ints(1)?, self.ints(2)?, self.ints(3)?);
        let mut shape = x.shape.clone();
        if starts.len() != ends.len() || starts.len() != axes.len() {
            return Err(format!("slice of axes {axes:?} from {starts:?} to {ends:?}"));
        }
        for ((&start, &end), &axis) in starts.iter().zip(&ends).zip(&axes) {
            let axis = self.axis(axis, shape.len())?;
            let Some(n) = shape[axis].known() else { return Err(format!("axis {axis} of {x} is not known")) };
            let clamp = |v: i64| (if v < 0 { v + n as i64 } else { v }).clamp(0, n as i64);
            shape[axis] = Dim::Known((clamp(end) - clamp(start)).max(0) as usize);
        }
        Ok(ValueType::new(x.dtype, shape))
    }

    fn pad(&self) -> Answer<ValueType> {
        let (x, pads) = (self.float(0)?, self.ints(1)?);
        let rank = x.shape.len();
        if pads.len() != 2 * rank || pads.iter().any(|&p| p < 0) {
            return Err(format!("pads {pads:?} do not fit {x}"));
        }
        let grow = |i: usize| match (pads[i] + pads[i + rank], x.shape[i]) {
            (0, dim) => Ok(dim),
            (n, Dim::Known(k)) => Ok(Dim::Known(k + n as usize)),
            (_, dim) => Err(format!("cannot pad the extent {dim}")),
        };
        Ok(ValueType::new(x.dtype, (0..rank).map(grow).collect::<Answer<Vec<_>>>()?))
    }

    fn unsqueeze(&self) -> Answer<ValueType> {
        let (x, axes) = (self.ty(0)?, self.ints(1)?);
        let mut shape = x.shape.clone();
        // Axes are those of the result; put in from the first to the last.
        let rank = shape.len() + axes.len();
        let mut axes = axes.iter().map(|&axis| self.axis(axis, rank)).collect::<Answer<Vec<_>>>()?;
        axes.sort_unstable();
        if axes.windows(2).any(|w| w[0] == w[1]) {
            return Err(format!("an axis of {axes:?} comes twice"));
        }
        axes.into_iter().for_each(|axis| shape.insert(axis, Dim::Known(1)));
        Ok(ValueType::new(x.dtype, shape))
    }

    fn squeeze(&self) -> Answer<ValueType> {
        let (x, axes) = (self.ty(0)?, self.ints(1)?);
        let mut shape = x.shape.clone();
        let mut axes = axes.iter().map(|&axis| self.axis(axis, shape.len())).collect::<Answer<Vec<_>>>()?;
        axes.sort_unstable();
        axes.dedup();
        for axis in axes.into_iter().rev() {
            if shape.remove(axis).unify(Dim::Known(1)).is_none() {
                return Err(format!("axis {axis} of {x} is not 1"));
            }
        }
        Ok(ValueType::new(x.dtype, shape))
    }

    fn shape_of(&self) -> Answer<ValueType> {
        let rank = self.ty(0)?.shape.len() as i64;
        let (start, end) = (self.op.get_int("start", 0), self.op.get_int("end", rank));
        if !(0 <= start && start <= end && end <= rank) {
            return Err(format!("axes {start} to {end} of a rank {rank} value"));
        }
        Ok(ValueType::new(DType::I64, [Dim::Known((end - start) as usize)]))
    }

    /// `Gather` along axis 0.
    fn gather(&self) -> Answer<ValueType> {
        let (table, indices) = (self.ty(0)?, self.ty(1)?);
        if indices.dtype != DType::I64 || table.shape.is_empty() || self.op.get_int("axis", 0) != 0 {
            return Err(format!("cannot gather {indices} from {table}"));
        }
        let shape: Vec<Dim> = indices.shape.iter().chain(&table.shape[1..]).copied().collect();
        Ok(ValueType::new(table.dtype, shape))
    }

    fn reduce(&self) -> Answer<ValueType> {
        let (x, axes) = (self.ty(0)?, self.ints(1)?);
        let keep = self.op.get_int("keepdims", 1) == 1;
        let axes = axes.iter().map(|&a| self.axis(a, x.shape.len())).collect::<Answer<Vec<_>>>()?;
        // To ONNX, no axes are all axes.
        if axes.is_empty() {
            return Err("a reduction over no axes".to_owned());
        }
        let kept = x.shape.iter().enumerate().filter_map(|(i, &dim)| match (axes.contains(&i), keep) {
            (false, _) => Some(dim),
            (true, true) => Some(Dim::Known(1)),
            (true, false) => None,
        });
        Ok(ValueType::new(x.dtype, kept.collect::<Vec<_>>()))
    }

    /// `com.microsoft.MultiHeadAttention` over query `[B, S, H]`, key and value `[B, L, H]`.
    fn attention(&self) -> Answer<ValueType> {
        let (q, k, v) = (self.float(0)?, self.float(1)?, self.float(2)?);
        let heads = self.op.get_int("num_heads", 0);
        let width = q.shape.last().and_then(|d| d.known()).unwrap_or(0) as i64;
        let ranks = q.shape.len() == 3 && k.shape.len() == 3 && q.dtype == k.dtype;
        if !ranks
            || q.shape[0].unify(k.shape[0]).is_none()
            || k != v
            || k.shape.last() != q.shape.last()
            || heads < 1
            || width % heads != 0
        {
            let types = [q, k, v].map(|t| show_dims(&t.shape)).join(", ");
            return Err(format!("attention with {heads} heads over {types}"));
        }
        Ok(q.clone())
    }
}
