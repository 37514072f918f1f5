//! Attention in standard operators.

use crate::error::{Code, Error, Result};
use crate::graph::{Builder, Graph, Node, Rewrite, ValueId};
use crate::tensor::{DType, LazyTensor};

/// How many rows of queries have their scores held at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// All of them: for a runtime that makes one kernel of products and softmax, such as TensorRT, and stores no
    /// scores. Slices would hide that pattern from it.
    Whole,
    /// So many: for one that runs operator by operator.
    Rows(usize),
}

/// The graph with every `com.microsoft.MultiHeadAttention` written as products and softmax: for runtimes without that
/// operator. Products are of the operator's own element type; the softmax is of float32, whose range an exponential
/// needs.
///
/// # Errors
/// `graph.invalid` when the number of queries, or their width, has no number.
pub fn decompose_attention(graph: &Graph, held: Scores) -> Result<Graph> {
    let mut new = Rewrite::new(graph);
    for node in &graph.nodes {
        if node.op.kind != "MultiHeadAttention" {
            new.copy(node)?;
            continue;
        }
        let operands = [new.operand(node, 0)?, new.operand(node, 1)?, new.operand(node, 2)?];
        let context = new.builder.scope(&node.name, |g| attention(g, node, operands, held))?;
        new.replace(node, context);
    }
    new.finish()
}

/// `softmax(q kᵀ/√d) v` a head, `[batch, S, heads · d]`.
fn attention(g: &mut Builder, node: &Node, [q, k, v]: [ValueId; 3], held: Scores) -> Result<ValueId> {
    let heads = node.op.get_int("num_heads", 1);
    let shape = g.ty(q).shape.clone();
    let (Some(rows), Some(width)) = (shape[1].known(), shape[2].known()) else {
        let message = format!("node `{}`: attention over {}", node.name, g.ty(q));
        return Err(Error::new(Code::GRAPH_INVALID, message));
    };
    let dtype = g.ty(q).dtype;
    let held = if let Scores::Rows(n) = held { n } else { rows };
    let split = [0, 0, heads, width as i64 / heads];
    let scale = ((width as i64 / heads) as f32).sqrt().recip();
    let scale = match dtype {
        DType::F32 => g.scalar(scale),
        other => g.weight(&format!("const.{scale}.{other}"), LazyTensor::from_f32(&[], &[scale]).cast(other)),
    };
    // Before the product, which so stays as small as what the softmax reads.
    let q = g.mul(q, scale)?;
    let mut by_head = |x: ValueId, perm: &[i64]| {
        let x = g.reshape(x, &split)?;
        g.transpose(x, perm)
    };
    let (q, k, v) = (by_head(q, &[0, 2, 1, 3])?, by_head(k, &[0, 2, 3, 1])?, by_head(v, &[0, 2, 1, 3])?);
    let mut parts = Vec::new();
    for start in (0..rows).step_by(held.max(1)) {
        let end = (start + held).min(rows);
        let part = if rows > held { g.slice(q, 2, start as i64, end as i64)? } else { q };
        let scores = g.matmul(part, k)?;
        let weights = match dtype {
            DType::F32 => g.softmax(scores)?,
            other => {
                let scores = g.cast(scores, DType::F32)?;
                let weights = g.softmax(scores)?;
                g.cast(weights, other)?
            }
        };
        parts.push(g.matmul(weights, v)?);
    }
    let context = if let [one] = parts[..] { one } else { g.concat(&parts, 2)? };
    let context = g.transpose(context, &[0, 2, 1, 3])?;
    g.reshape(context, &[0, 0, width as i64])
}
