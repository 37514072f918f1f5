//! The frozen language model with the semantics of Hugging Face's classes (`LlamaModel` and its kin), and pooling.
//!
//! `input_ids`, `attention_mask` i64 `[batch, tokens]` (padding on the right, mask 1 for tokens) → `text` f32
//! `[batch, hidden]`. RMSNorm (Zhang and Sennrich 2019), rotary embeddings in the half-split layout (Su et al.
//! 2021), SwiGLU (Shazeer 2020), grouped key-value heads (Ainslie et al. 2023). Standard operators only: at 512
//! tokens the scores are small next to the linear layers. What differs from LLaMA 2 is in [`crate::config::Variant`];
//! where nothing does, nothing of it is in the graph.

mod attention;
mod positions;

use attention::Place;
use positions::{Masks, Rotary, masks, pooling, positions, rotary};

use super::{Part, Stages, Weights};
use crate::config::{Activation, LlamaConfig, TextPool};
use crate::error::Result;
use crate::graph::{Builder, Dim, Graph, ValueId};
use crate::tensor::DType;

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
    let mut x = g.scope("embed_tokens", |g| {
        let x = g.gather(table, ids)?;
        scaled(g, x, config.variant.embedding_scale)
    })?;
    let positions = positions(&mut g, ids)?;
    let rope = g.scope("rotary", |g| rotary(g, config, positions))?;
    let masks = g.scope("mask", |g| masks(g, config, positions, mask))?;
    for n in 0..config.layers {
        x = g.scope(&format!("layers.{n}"), |g| model.layer(g, x, n, &rope, &masks))?;
    }
    let hidden = g.scope("norm", |g| rms_norm(g, &model, x, "norm", config.hidden))?;
    let pooled = g.scope("pool", |g| pooling(g, hidden, mask, positions, pool))?;
    g.output(Part::Text.as_str(), pooled)?;
    if stages == Stages::All {
        g.output("text_hidden", hidden)?;
    }
    g.finish()
}

struct Llama<'a> {
    c: &'a LlamaConfig,
    weights: &'a Weights,
}

impl Llama<'_> {
    fn layer(&self, g: &mut Builder, x: ValueId, n: usize, rope: &Rotary, masks: &Masks) -> Result<ValueId> {
        let (name, scale, width) = (format!("layers.{n}"), self.c.variant.residual_scale, self.c.hidden);
        let norm =
            |g: &mut Builder, x, norm: &str| g.scope(norm, |g| rms_norm(g, self, x, &format!("{name}.{norm}"), width));
        let normal = norm(g, x, "input_layernorm")?;
        let place = Place::of(self, n, rope, masks);
        let mixed = g.scope("self_attn", |g| attention::attention(g, self, normal, &place))?;
        let mixed = scaled(g, mixed, scale)?;
        let x = g.add(x, mixed)?;
        let normal = norm(g, x, "post_attention_layernorm")?;
        let update = g.scope("mlp", |g| self.mlp(g, normal, &format!("{name}.mlp")))?;
        let update = scaled(g, update, scale)?;
        g.add(x, update)
    }

    fn mlp(&self, g: &mut Builder, x: ValueId, name: &str) -> Result<ValueId> {
        let (v, wide, narrow) = (&self.c.variant, [self.c.mlp, self.c.hidden], [self.c.hidden, self.c.mlp]);
        let inner = if v.ungated {
            let up = self.linear(g, x, &format!("{name}.up_proj"), wide, v.mlp_bias)?;
            activated(g, up, v.activation)?
        } else {
            let gate = self.linear(g, x, &format!("{name}.gate_proj"), wide, v.mlp_bias)?;
            let up = self.linear(g, x, &format!("{name}.up_proj"), wide, v.mlp_bias)?;
            let gate = activated(g, gate, v.activation)?;
            g.mul(gate, up)?
        };
        self.linear(g, inner, &format!("{name}.down_proj"), narrow, v.mlp_bias)
    }

    fn linear(&self, g: &mut Builder, x: ValueId, name: &str, shape: [usize; 2], bias: bool) -> Result<ValueId> {
        let weight = self.weights.get(&format!("{name}.weight"), &shape)?;
        let bias = bias.then(|| self.weights.get(&format!("{name}.bias"), &shape[..1])).transpose()?;
        g.linear(x, name, &weight, bias.as_ref())
    }

    /// The projection of queries or keys of so many heads. Where rotary pairs are interleaved, its rows are reordered:
    /// queries and keys alike, so that their products stay what they are.
    fn rotated_linear(&self, g: &mut Builder, x: ValueId, name: &str, heads: usize) -> Result<ValueId> {
        let (dim, v) = (self.c.head_dim, &self.c.variant);
        let rows = heads * dim;
        if !v.interleaved {
            return self.linear(g, x, name, [rows, self.c.hidden], v.qkv_bias);
        }
        // Row `i` of the first half of a head is that of channel `2i`, of the second half of channel `2i + 1`.
        let order = || (0..rows).map(|row| row / dim * dim + row % dim % (dim / 2) * 2 + row % dim / (dim / 2));
        let weight = self.weights.get(&format!("{name}.weight"), &[rows, self.c.hidden])?.rows(order());
        let bias = v.qkv_bias.then(|| self.weights.get(&format!("{name}.bias"), &[rows])).transpose()?;
        g.linear(x, name, &weight, bias.map(|bias| bias.rows(order())).as_ref())
    }
}

/// `x · scale`, where there is one.
fn scaled(g: &mut Builder, x: ValueId, scale: Option<f64>) -> Result<ValueId> {
    let Some(scale) = scale else { return Ok(x) };
    let scale = g.scalar(scale as f32);
    g.mul(x, scale)
}

fn activated(g: &mut Builder, x: ValueId, activation: Activation) -> Result<ValueId> {
    match activation {
        Activation::Silu => {
            let sigmoid = g.unary("Sigmoid", x)?;
            g.mul(x, sigmoid)
        }
        Activation::Gelu => g.unary("Gelu", x),
        Activation::Relu => g.unary("Relu", x),
        Activation::Relu2 => {
            let positive = g.unary("Relu", x)?;
            g.mul(positive, positive)
        }
    }
}

/// `x / √(mean(x²) + eps) · weight` over the last axis.
fn rms_norm(g: &mut Builder, model: &Llama<'_>, x: ValueId, name: &str, width: usize) -> Result<ValueId> {
    let key = format!("{name}.weight");
    let weight = g.weight(&key, model.weights.get(&key, &[width])?);
    // `Pow`, not `Mul`: the form that ONNX Runtime makes one operator of.
    let two = g.scalar(2.0);
    let square = g.binary("Pow", x, two)?;
    let mean = g.reduce_mean(square, &[-1], true)?;
    let eps = g.scalar(model.c.rms_eps as f32);
    let mean = g.add(mean, eps)?;
    let root = g.unary("Sqrt", mean)?;
    let normal = g.div(x, root)?;
    g.mul(normal, weight)
}
