//! Rules of operators that compute.

use super::{Answer, Call};
use crate::graph::op::Attribute;
use crate::graph::types::{Dim, ValueType, broadcast, show_dims};
use crate::tensor::DType;

impl Call<'_> {
    /// The type of a float operand.
    pub(super) fn same_float(&self) -> Answer<ValueType> {
        self.float(0).cloned()
    }

    /// The type of the operand.
    pub(super) fn same(&self) -> Answer<ValueType> {
        self.ty(0).cloned()
    }

    /// Elementwise with broadcasting, of the operands' type.
    pub(super) fn arithmetic(&self) -> Answer<ValueType> {
        self.elementwise(None)
    }

    /// Elementwise with broadcasting, to bool.
    pub(super) fn comparison(&self) -> Answer<ValueType> {
        self.elementwise(Some(DType::Bool))
    }

    /// Elementwise with broadcasting, of bools.
    pub(super) fn logical(&self) -> Answer<ValueType> {
        let (a, b) = (self.ty(0)?, self.ty(1)?);
        match (a.dtype, b.dtype) {
            (DType::Bool, DType::Bool) => self.elementwise(None),
            _ => Err(format!("operands are {a} and {b}")),
        }
    }

    fn elementwise(&self, result: Option<DType>) -> Answer<ValueType> {
        let (a, b) = (self.ty(0)?, self.ty(1)?);
        if a.dtype != b.dtype {
            return Err(format!("operands are {a} and {b}"));
        }
        let shape = broadcast(&a.shape, &b.shape).ok_or_else(|| format!("cannot broadcast {a} and {b}"))?;
        Ok(ValueType::new(result.unwrap_or(a.dtype), shape))
    }

    pub(super) fn select(&self) -> Answer<ValueType> {
        let (condition, a, b) = (self.ty(0)?, self.ty(1)?, self.ty(2)?);
        if condition.dtype != DType::Bool || a.dtype != b.dtype {
            return Err(format!("operands are {condition}, {a} and {b}"));
        }
        let both = broadcast(&a.shape, &b.shape).and_then(|s| broadcast(&s, &condition.shape));
        Ok(ValueType::new(a.dtype, both.ok_or_else(|| format!("cannot broadcast {condition}, {a} and {b}"))?))
    }

    pub(super) fn cast(&self) -> Answer<ValueType> {
        match self.op.get("to") {
            Some(Attribute::Type(to)) => Ok(ValueType::new(*to, self.ty(0)?.shape.clone())),
            _ => Err("Cast has no type to cast to".to_owned()),
        }
    }

    pub(super) fn matmul(&self) -> Answer<ValueType> {
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

    pub(super) fn gemm(&self) -> Answer<ValueType> {
        let (a, b) = (self.float(0)?, self.float(1)?);
        let sides = |ty: &ValueType, transposed: &str| match (ty.shape.as_slice(), self.op.get_int(transposed, 0)) {
            ([rows, columns], 0) => Ok((*rows, *columns)),
            ([rows, columns], 1) => Ok((*columns, *rows)),
            _ => Err(format!("Gemm multiplies matrices, not {a} by {b}")),
        };
        let ((m, k), (k2, n)) = (sides(a, "transA")?, sides(b, "transB")?);
        if a.dtype != b.dtype || k.unify(k2).is_none() {
            return Err(format!("Gemm cannot multiply {a} by {b}"));
        }
        let bias = ValueType::new(a.dtype, [n]);
        if self.inputs.len() > 2 && *self.ty(2)? != bias {
            return Err(format!("a bias of Gemm is {}, expected {bias}", self.ty(2)?));
        }
        Ok(ValueType::new(a.dtype, [m, n]))
    }

    pub(super) fn conv(&self) -> Answer<ValueType> {
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
                return Err(format!("convolution over a dimension that is not known: {x}"));
            };
            let room = n as i64 + padded - k as i64;
            if room < 0 || at(strides, i, 1) < 1 {
                return Err(format!("kernel {w} does not fit into {x}"));
            }
            shape.push(Dim::Known((room / at(strides, i, 1) + 1) as usize));
        }
        Ok(ValueType::new(x.dtype, shape))
    }

    /// `ConvTranspose` of `x` `[N, O, ..]` with `w` `[O, C, ..]`, without groups and dilations.
    pub(super) fn conv_transpose(&self) -> Answer<ValueType> {
        let (x, w) = (self.float(0)?, self.float(1)?);
        let rank = x.shape.len();
        if rank < 3 || w.shape.len() != rank || w.dtype != x.dtype || x.shape[1].unify(w.shape[0]).is_none() {
            return Err(format!("cannot convolve {x} with {w}"));
        }
        let mut shape = vec![x.shape[0], w.shape[1]];
        for i in 0..rank - 2 {
            let at = |name: &str, j: usize, default: i64| self.op.get_ints(name).get(j).copied().unwrap_or(default);
            let (Some(n), Some(k)) = (x.shape[i + 2].known(), w.shape[i + 2].known()) else {
                return Err(format!("convolution over a dimension that is not known: {x}"));
            };
            let pads = at("pads", i, 0) + at("pads", i + rank - 2, 0);
            let size = (n as i64 - 1) * at("strides", i, 1) + k as i64 + at("output_padding", i, 0) - pads;
            shape.push(Dim::Known(usize::try_from(size).map_err(|_| format!("kernel {w} does not fit {x}"))?));
        }
        Ok(ValueType::new(x.dtype, shape))
    }

    pub(super) fn batch_norm(&self) -> Answer<ValueType> {
        self.per_channel(5)
    }

    pub(super) fn instance_norm(&self) -> Answer<ValueType> {
        self.per_channel(3)
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

    pub(super) fn layer_norm(&self) -> Answer<ValueType> {
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

    pub(super) fn reduce(&self) -> Answer<ValueType> {
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
    pub(super) fn attention(&self) -> Answer<ValueType> {
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
