//! The frozen language model: LLaMA 2 with the semantics of Hugging Face's `LlamaModel`, and pooling.
//!
//! `input_ids`, `attention_mask` i64 `[batch, tokens]` (padding on the right, mask 1 for tokens) → `text` f32
//! `[batch, hidden]`. RMSNorm (Zhang and Sennrich 2019), rotary embeddings in the half-split layout (Su et al.
//! 2021), SwiGLU (Shazeer 2020), grouped key-value heads (Ainslie et al. 2023). Standard operators only: at 512
//! tokens the scores are small next to the linear layers.

use super::{Part, Stages, Weights};
use crate::config::{LlamaConfig, TextPool};
use crate::error::Result;
use crate::graph::{Builder, Dim, Graph, Op, ValueId};
use crate::tensor::{DType, LazyTensor};

/// What a masked score becomes: the least float32, as Hugging Face's eager attention adds.
const MASKED: f32 = f32::MIN;

/// The language model's graph.
///
/// # Errors
/// `checkpoint.tensors` when a weight is missing or misshapen.
pub fn build(config: &LlamaConfig, pool: TextPool, weights: &Weights, stages: Stages) -> Result<Graph> {
    let model = Llama { c: config, weights };
    let mut g = Builder::new(Part::Text.as_str());
    let (batch, tokens) = (Dim::BATCH, Dim::TOKENS);
    let ids = g.input("input_ids", DType::I64, &[batch, tokens]);
    let mask = g.input("attention_mask", DType::I64, &[batch, tokens]);
    let table = g.weight("embed_tokens.weight", weights.get("embed_tokens.weight", &[config.vocab, config.hidden])?);
    let mut x = g.scope("embed_tokens", |g| g.gather(table, ids))?;
    let positions = positions(&mut g, ids)?;
    let rope = g.scope("rotary", |g| model.rotary(g, positions))?;
    let bias = g.scope("mask", |g| causal_mask(g, positions, mask))?;
    for n in 0..config.layers {
        x = g.scope(&format!("layers.{n}"), |g| model.layer(g, x, n, &rope, bias))?;
    }
    let hidden = g.scope("norm", |g| model.rms_norm(g, x, "norm"))?;
    let pooled = g.scope("pool", |g| pooling(g, hidden, mask, positions, pool))?;
    g.output(Part::Text.as_str(), pooled)?;
    if stages == Stages::All {
        g.output("text_hidden", hidden)?;
    }
    g.finish()
}

/// `0, 1, …, tokens - 1`.
fn positions(g: &mut Builder, ids: ValueId) -> Result<ValueId> {
    g.scope("positions", |g| {
        let length = g.node(Op::new("Shape").int("start", 1).int("end", 2), &[Some(ids)])?;
        let length = g.squeeze(length, &[0])?;
        let zero = g.weight("const.zero", LazyTensor::from_i64(&[], &[0]));
        let one = g.weight("const.one", LazyTensor::from_i64(&[], &[1]));
        let range = g.node(Op::new("Range"), &[Some(zero), Some(length), Some(one)])?;
        g.declare(range, &[Dim::TOKENS])
    })
}

/// `[batch, 1, tokens, tokens]`: 0 where a query may see a key, else [`MASKED`]. A query sees itself and what
/// stands before it, and never padding.
fn causal_mask(g: &mut Builder, positions: ValueId, mask: ValueId) -> Result<ValueId> {
    let query = g.unsqueeze(positions, &[1])?;
    let causal = g.binary("GreaterOrEqual", query, positions)?;
    let keys = g.cast(mask, DType::Bool)?;
    let keys = g.unsqueeze(keys, &[1, 2])?;
    let seen = g.binary("And", keys, causal)?;
    let (zero, masked) = (g.scalar(0.0), g.scalar(MASKED));
    g.select(seen, zero, masked)
}

/// `[batch, hidden]`: the mean over tokens, or the last token, as a product with weights over the tokens.
fn pooling(g: &mut Builder, hidden: ValueId, mask: ValueId, positions: ValueId, pool: TextPool) -> Result<ValueId> {
    let count = g.reduce_sum(mask, &[1], true)?;
    let weights = match pool {
        TextPool::Mean => {
            let (mask, count) = (g.cast(mask, DType::F32)?, g.cast(count, DType::F32)?);
            g.div(mask, count)?
        }
        TextPool::Last => {
            let one = g.ints(&[1]);
            let last = g.sub(count, one)?;
            let is_last = g.binary("Equal", positions, last)?;
            g.cast(is_last, DType::F32)?
        }
    };
    let weights = g.unsqueeze(weights, &[1])?;
    let pooled = g.matmul(weights, hidden)?;
    g.squeeze(pooled, &[1])
}

struct Llama<'a> {
    c: &'a LlamaConfig,
    weights: &'a Weights,
}

/// Cosines and sines of the rotary angles, `[tokens, head_dim / 2]` each.
struct Rotary {
    cos: ValueId,
    sin: ValueId,
}

impl Llama<'_> {
    fn rotary(&self, g: &mut Builder, positions: ValueId) -> Result<Rotary> {
        let (half, dim) = (self.c.head_dim / 2, self.c.head_dim as f64);
        let frequencies: Vec<f32> = (0..half).map(|i| self.c.rope_theta.powf(-2.0 * i as f64 / dim) as f32).collect();
        let frequencies = g.weight("rotary.inv_freq", LazyTensor::from_f32(&[1, half], &frequencies));
        let positions = g.cast(positions, DType::F32)?;
        let positions = g.unsqueeze(positions, &[1])?;
        let angles = g.mul(positions, frequencies)?;
        Ok(Rotary { cos: g.unary("Cos", angles)?, sin: g.unary("Sin", angles)? })
    }

    fn layer(&self, g: &mut Builder, x: ValueId, n: usize, rope: &Rotary, bias: ValueId) -> Result<ValueId> {
        let name = format!("layers.{n}");
        let normal = g.scope("input_layernorm", |g| self.rms_norm(g, x, &format!("{name}.input_layernorm")))?;
        let mixed = g.scope("self_attn", |g| self.attention(g, normal, &format!("{name}.self_attn"), rope, bias))?;
        let x = g.add(x, mixed)?;
        let norm = "post_attention_layernorm";
        let normal = g.scope(norm, |g| self.rms_norm(g, x, &format!("{name}.{norm}")))?;
        let update = g.scope("mlp", |g| {
            let gate = self.linear(g, normal, &format!("{name}.mlp.gate_proj"), [self.c.mlp, self.c.hidden])?;
            let up = self.linear(g, normal, &format!("{name}.mlp.up_proj"), [self.c.mlp, self.c.hidden])?;
            let sigmoid = g.unary("Sigmoid", gate)?;
            let gate = g.mul(gate, sigmoid)?;
            let inner = g.mul(gate, up)?;
            self.linear(g, inner, &format!("{name}.mlp.down_proj"), [self.c.hidden, self.c.mlp])
        })?;
        g.add(x, update)
    }

    /// Causal self-attention. Query heads that share a key-value head lie on an axis of their own, over which
    /// the products broadcast: `[batch, kv_heads, group, tokens, head_dim]`.
    fn attention(&self, g: &mut Builder, x: ValueId, name: &str, rope: &Rotary, bias: ValueId) -> Result<ValueId> {
        let (heads, kv, dim) = (self.c.heads, self.c.kv_heads, self.c.head_dim);
        let group = heads / kv;
        let q = self.linear(g, x, &format!("{name}.q_proj"), [heads * dim, self.c.hidden])?;
        let k = self.linear(g, x, &format!("{name}.k_proj"), [kv * dim, self.c.hidden])?;
        let v = self.linear(g, x, &format!("{name}.v_proj"), [kv * dim, self.c.hidden])?;
        let split = |n: usize| [0, 0, kv as i64, n as i64, dim as i64];
        let q = g.reshape(q, &split(group))?;
        let q = g.transpose(q, &[0, 2, 3, 1, 4])?;
        let q = self.rotate(g, q, rope)?;
        let scale = g.scalar((dim as f32).sqrt().recip());
        let q = g.mul(q, scale)?;
        let k = g.reshape(k, &split(1))?;
        let k = g.transpose(k, &[0, 2, 3, 1, 4])?;
        let k = self.rotate(g, k, rope)?;
        let k = g.transpose(k, &[0, 1, 2, 4, 3])?;
        let v = g.reshape(v, &split(1))?;
        let v = g.transpose(v, &[0, 2, 3, 1, 4])?;
        let scores = g.matmul(q, k)?;
        let bias = g.unsqueeze(bias, &[1])?;
        let scores = g.add(scores, bias)?;
        let weights = g.softmax(scores)?;
        let context = g.matmul(weights, v)?;
        let context = g.transpose(context, &[0, 3, 1, 2, 4])?;
        let context = g.reshape(context, &[0, 0, (heads * dim) as i64])?;
        self.linear(g, context, &format!("{name}.o_proj"), [self.c.hidden, heads * dim])
    }

    /// Rotary embedding of `[.., tokens, head_dim]`: the two halves of a head are the parts of complex numbers.
    fn rotate(&self, g: &mut Builder, x: ValueId, rope: &Rotary) -> Result<ValueId> {
        let half = (self.c.head_dim / 2) as i64;
        let halves = g.split(x, &[half, half], -1)?;
        let (re, im) = (halves[0], halves[1]);
        let (a, b) = (g.mul(re, rope.cos)?, g.mul(im, rope.sin)?);
        let (c, d) = (g.mul(im, rope.cos)?, g.mul(re, rope.sin)?);
        let (re, im) = (g.sub(a, b)?, g.add(c, d)?);
        g.concat(&[re, im], -1)
    }

    /// `x / √(mean(x²) + eps) · weight` over the last axis.
    fn rms_norm(&self, g: &mut Builder, x: ValueId, name: &str) -> Result<ValueId> {
        let key = format!("{name}.weight");
        let weight = g.weight(&key, self.weights.get(&key, &[self.c.hidden])?);
        // `Pow`, not `Mul`: the form that ONNX Runtime makes one operator of.
        let two = g.scalar(2.0);
        let square = g.binary("Pow", x, two)?;
        let mean = g.reduce_mean(square, &[-1], true)?;
        let eps = g.scalar(self.c.rms_eps as f32);
        let mean = g.add(mean, eps)?;
        let root = g.unary("Sqrt", mean)?;
        let normal = g.div(x, root)?;
        g.mul(normal, weight)
    }

    fn linear(&self, g: &mut Builder, x: ValueId, name: &str, shape: [usize; 2]) -> Result<ValueId> {
        let weight = self.weights.get(&format!("{name}.weight"), &shape)?;
        g.linear(x, name, &weight, None)
    }
}
