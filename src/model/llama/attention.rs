//! Self-attention of one layer.

use super::positions::{Masks, Rotary};
use super::{Llama, rms_norm};
use crate::error::Result;
use crate::graph::{Builder, ValueId};

/// Where a layer's weights are, and which of the model's masks and rotary embeddings it has.
pub(super) struct Place<'a> {
    /// `layers.N.self_attn`.
    pub name: String,
    pub rope: Option<&'a Rotary>,
    pub mask: ValueId,
}

impl<'a> Place<'a> {
    /// That of layer `n`.
    pub fn of(model: &Llama<'_>, n: usize, rope: &'a Rotary, masks: &Masks) -> Self {
        let variant = &model.c.variant;
        let mask = if variant.has_window(n) { masks.window } else { masks.full };
        Self {
            name: format!("layers.{n}.self_attn"),
            rope: variant.has_rope(n).then_some(rope),
            mask: mask.expect("masks are made for every layer"),
        }
    }
}

/// Query heads that share a key-value head lie on an axis of their own, over which the products broadcast:
/// `[batch, kv_heads, group, tokens, head_dim]`.
pub(super) fn attention(g: &mut Builder, model: &Llama<'_>, x: ValueId, place: &Place<'_>) -> Result<ValueId> {
    let (c, name) = (model.c, &place.name);
    let (heads, kv, dim) = (c.heads, c.kv_heads, c.head_dim);
    let group = heads / kv;
    let v = &c.variant;
    let q = model.rotated_linear(g, x, &format!("{name}.q_proj"), heads)?;
    let k = model.rotated_linear(g, x, &format!("{name}.k_proj"), kv)?;
    let value = model.linear(g, x, &format!("{name}.v_proj"), [kv * dim, c.hidden], v.qkv_bias)?;
    let split = |n: usize| [0, 0, kv as i64, n as i64, dim as i64];
    let q = g.reshape(q, &split(group))?;
    let q = g.transpose(q, &[0, 2, 3, 1, 4])?;
    let q = norm(g, model, q, &format!("{name}.q_norm"))?;
    let q = rotate(g, dim, q, place.rope)?;
    let scale = v.attention_scale.map_or_else(|| (dim as f32).sqrt().recip(), |scale| scale as f32);
    let scale = g.scalar(scale);
    let q = g.mul(q, scale)?;
    let k = g.reshape(k, &split(1))?;
    let k = g.transpose(k, &[0, 2, 3, 1, 4])?;
    let k = norm(g, model, k, &format!("{name}.k_norm"))?;
    let k = rotate(g, dim, k, place.rope)?;
    let k = g.transpose(k, &[0, 1, 2, 4, 3])?;
    let value = g.reshape(value, &split(1))?;
    let value = g.transpose(value, &[0, 2, 3, 1, 4])?;
    let scores = g.matmul(q, k)?;
    let bias = g.unsqueeze(place.mask, &[1])?;
    let scores = g.add(scores, bias)?;
    let weights = g.softmax(scores)?;
    let context = g.matmul(weights, value)?;
    let context = g.transpose(context, &[0, 3, 1, 2, 4])?;
    let context = g.reshape(context, &[0, 0, (heads * dim) as i64])?;
    model.linear(g, context, &format!("{name}.o_proj"), [c.hidden, heads * dim], v.out_bias)
}

/// The norm over each head, where the model has one.
fn norm(g: &mut Builder, model: &Llama<'_>, x: ValueId, name: &str) -> Result<ValueId> {
    if !model.c.variant.qk_norm {
        return Ok(x);
    }
    let last = name.rsplit('.').next().unwrap_or(name).to_owned();
    g.scope(&last, |g| rms_norm(g, model, x, name, model.c.head_dim))
}

/// Rotary embedding of `[.., tokens, head_dim]`: the two halves of a head are the parts of complex numbers.
fn rotate(g: &mut Builder, dim: usize, x: ValueId, rope: Option<&Rotary>) -> Result<ValueId> {
    let Some(rope) = rope else { return Ok(x) };
    let half = (dim / 2) as i64;
    let halves = g.split(x, &[half, half], -1)?;
    let (re, im) = (halves[0], halves[1]);
    let (a, b) = (g.mul(re, rope.cos)?, g.mul(im, rope.sin)?);
    let (c, d) = (g.mul(im, rope.cos)?, g.mul(re, rope.sin)?);
    let (re, im) = (g.sub(a, b)?, g.add(c, d)?);
    g.concat(&[re, im], -1)
}
