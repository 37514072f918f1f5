//! Scaled dot-product attention (Vaswani et al. 2017), in two written forms.

use super::Attention;
use crate::error::Result;
use crate::graph::{Builder, Op, ValueId};

/// `softmax(q kᵀ / √head_dim) v` a head, heads joined again.
///
/// `q` `[batch, S, hidden]`, `k` and `v` `[batch, L, hidden]` → `[batch, S, hidden]`; the last axis is
/// (heads, head_dim).
pub(super) fn multi_head(
    g: &mut Builder,
    form: Attention,
    [q, k, v]: [ValueId; 3],
    heads: usize,
    head_dim: usize,
) -> Result<ValueId> {
    match form {
        Attention::Fused => {
            let op = Op::microsoft("MultiHeadAttention").int("num_heads", heads as i64);
            g.node(op, &[Some(q), Some(k), Some(v)])
        }
        Attention::Decomposed => {
            let split = [0, 0, heads as i64, head_dim as i64];
            let q = g.reshape(q, &split)?;
            let q = g.transpose(q, &[0, 2, 1, 3])?;
            let scale = g.scalar((head_dim as f32).sqrt().recip());
            let q = g.mul(q, scale)?;
            let k = g.reshape(k, &split)?;
            let k = g.transpose(k, &[0, 2, 3, 1])?;
            let v = g.reshape(v, &split)?;
            let v = g.transpose(v, &[0, 2, 1, 3])?;
            let scores = g.matmul(q, k)?;
            let weights = g.softmax(scores)?;
            let context = g.matmul(weights, v)?;
            let context = g.transpose(context, &[0, 2, 1, 3])?;
            g.reshape(context, &[0, 0, (heads * head_dim) as i64])
        }
    }
}
