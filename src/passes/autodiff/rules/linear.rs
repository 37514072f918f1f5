//! Products of matrices.

use super::{Call, Gradients};
use crate::error::Result;
use crate::graph::{Builder, Op, ValueId};

/// `a b` over the last two axes: dy bᵀ, aᵀ dy.
pub(super) fn matmul(c: &mut Call<'_>) -> Gradients {
    let (dy, a, b) = (c.dy()?, c.x(0)?, c.x(1)?);
    let da = c.want(0, |g| {
        let b = transposed(g, b)?;
        g.matmul(dy, b)
    })?;
    let db = c.want(1, |g| {
        let a = transposed(g, a)?;
        g.matmul(a, dy)
    })?;
    Ok(vec![da, db])
}

/// `x` with its last two axes exchanged; where `x` is such an exchange itself, what it was made of.
pub(super) fn transposed(g: &mut Builder, x: ValueId) -> Result<ValueId> {
    let rank = g.ty(x).shape.len() as i64;
    let perm: Vec<i64> = (0..rank - 2).chain([rank - 1, rank - 2]).collect();
    let made = g.producer(x).filter(|n| n.op.kind == "Transpose" && n.op.get_ints("perm") == perm);
    match made.and_then(|n| n.inputs[0]) {
        Some(source) => Ok(source),
        None => g.transpose(x, &perm),
    }
}

/// `A B + bias`, where A and B are operands or their transposes: dA = dy Bᵀ, dB = Aᵀ dy, and what is transposed gets
/// its gradient transposed.
pub(super) fn gemm(c: &mut Call<'_>) -> Gradients {
    let (dy, a, b) = (c.dy()?, c.x(0)?, c.x(1)?);
    let (ta, tb) = (c.node.op.get_int("transA", 0) == 1, c.node.op.get_int("transB", 0) == 1);
    let da = c.want(0, |g| if ta { product(g, (b, tb), (dy, true)) } else { product(g, (dy, false), (b, !tb)) })?;
    let db = c.want(1, |g| if tb { product(g, (dy, true), (a, ta)) } else { product(g, (a, !ta), (dy, false)) })?;
    let mut all = vec![da, db];
    if c.node.inputs.len() > 2 {
        all.push(c.want(2, |g| g.reduce_sum(dy, &[0], false))?);
    }
    Ok(all)
}

/// A product of two matrices, each as it is or transposed.
fn product(g: &mut Builder, (a, ta): (ValueId, bool), (b, tb): (ValueId, bool)) -> Result<ValueId> {
    let op = Op::new("Gemm").int("transA", ta.into()).int("transB", tb.into());
    g.node(op, &[Some(a), Some(b)])
}
