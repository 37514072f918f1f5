//! Where tokens stand: positions, the rotary embeddings made of them, masks, and pooling.

use crate::config::{LlamaConfig, RopeScaling, TextPool};
use crate::error::Result;
use crate::graph::{Builder, Dim, Op, ValueId};
use crate::tensor::{DType, LazyTensor};

/// What a masked score becomes: the least float32, as Hugging Face's eager attention adds.
const MASKED: f32 = f32::MIN;

/// Cosines and sines of the rotary angles, `[tokens, head_dim / 2]` each.
pub(super) struct Rotary {
    pub cos: ValueId,
    pub sin: ValueId,
}

/// What is added to scores, `[batch, 1, tokens, tokens]` (or `[batch, 1, 1, tokens]`): 0 where a query may see a key,
/// else [`MASKED`]. Each is made where a layer has it.
pub(super) struct Masks {
    pub full: Option<ValueId>,
    pub window: Option<ValueId>,
}

/// `0, 1, …, tokens - 1`.
pub(super) fn positions(g: &mut Builder, ids: ValueId) -> Result<ValueId> {
    g.scope("positions", |g| {
        let length = g.node(Op::new("Shape").int("start", 1).int("end", 2), &[Some(ids)])?;
        let length = g.squeeze(length, &[0])?;
        let zero = g.weight("const.zero", LazyTensor::from_i64(&[], &[0]));
        let one = g.weight("const.one", LazyTensor::from_i64(&[], &[1]));
        let range = g.node(Op::new("Range"), &[Some(zero), Some(length), Some(one)])?;
        g.declare(range, &[Dim::TOKENS])
    })
}

/// Cosines and sines of position times frequency.
pub(super) fn rotary(g: &mut Builder, c: &LlamaConfig, positions: ValueId) -> Result<Rotary> {
    let frequencies = frequencies(c);
    let frequencies = g.weight("rotary.inv_freq", LazyTensor::from_f32(&[1, c.head_dim / 2], &frequencies));
    let positions = g.cast(positions, DType::F32)?;
    let positions = g.unsqueeze(positions, &[1])?;
    let angles = g.mul(positions, frequencies)?;
    Ok(Rotary { cos: g.unary("Cos", angles)?, sin: g.unary("Sin", angles)? })
}

fn frequencies(c: &LlamaConfig) -> Vec<f32> {
    let dim = c.head_dim as f64;
    let plain = (0..c.head_dim / 2).map(|i| c.rope_theta.powf(-2.0 * i as f64 / dim));
    match &c.variant.rope_scaling {
        None => plain.map(|frequency| frequency as f32).collect(),
        Some(scaling) => plain.map(|frequency| scaled(frequency, scaling) as f32).collect(),
    }
}

/// LLaMA 3.1's frequency (transformers, `_compute_llama3_parameters`): of wavelengths between the two bounds, a mean of
/// the scaled and the plain one.
fn scaled(frequency: f64, s: &RopeScaling) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI / frequency;
    let original = s.original as f64;
    if wavelength < original / s.high_freq_factor {
        return frequency;
    }
    if wavelength > original / s.low_freq_factor {
        return frequency / s.factor;
    }
    let smooth = (original / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
    (1.0 - smooth) * frequency / s.factor + smooth * frequency
}

/// The masks that the layers need. A query sees itself and what stands before it (bidirectional: also what stands
/// behind), through a window only what is near, and never padding.
pub(super) fn masks(g: &mut Builder, c: &LlamaConfig, positions: ValueId, mask: ValueId) -> Result<Masks> {
    let windowed = (0..c.layers).filter(|n| c.variant.has_window(*n)).count();
    let mut masks = Masks { full: None, window: None };
    if windowed < c.layers {
        masks.full = Some(self::mask(g, c, positions, mask, None)?);
    }
    if let Some(window) = c.variant.window.as_ref().filter(|_| windowed > 0) {
        masks.window = Some(g.scope("window", |g| self::mask(g, c, positions, mask, Some(window.tokens)))?);
    }
    Ok(masks)
}

fn mask(g: &mut Builder, c: &LlamaConfig, positions: ValueId, mask: ValueId, window: Option<usize>) -> Result<ValueId> {
    let bidirectional = c.variant.bidirectional;
    let query = g.unsqueeze(positions, &[1])?;
    let mut near = Vec::new();
    if !bidirectional {
        near.push(g.binary("GreaterOrEqual", query, positions)?);
    }
    if let Some(tokens) = window {
        // Causal: `tokens` in all, the query included. Bidirectional: `tokens` to either side.
        let before = g.ints(&[tokens as i64 - i64::from(!bidirectional)]);
        let first = g.sub(query, before)?;
        near.push(g.binary("GreaterOrEqual", positions, first)?);
        if bidirectional {
            let last = g.add(query, before)?;
            near.push(g.binary("GreaterOrEqual", last, positions)?);
        }
    }
    let keys = g.cast(mask, DType::Bool)?;
    let mut seen = g.unsqueeze(keys, &[1, 2])?;
    for near in near {
        seen = g.binary("And", seen, near)?;
    }
    let (zero, masked) = (g.scalar(0.0), g.scalar(MASKED));
    g.select(seen, zero, masked)
}

/// `[batch, hidden]`: the mean over tokens, or the last token, as a product with weights over the tokens.
pub(super) fn pooling(
    g: &mut Builder,
    hidden: ValueId,
    mask: ValueId,
    positions: ValueId,
    pool: TextPool,
) -> Result<ValueId> {
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
