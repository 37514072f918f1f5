//! The trained heads: projections, classifiers, image-text similarity.
//!
//! `vision` f32 `[batch, vision.hidden]` and `text` f32 `[batch, text.hidden]` → `v`, `t` f32
//! `[batch, projection.dim]`; `logits` f32 `[batch, labels]` over `concat(v, t)`; `similarity` f32 `[batch]`, the
//! cosine of `v` and `t`; `image_logits` f32 `[batch, labels]` over `v` alone where the checkpoint has that
//! classifier. `v` and `image_logits` do not depend on `text`.

use super::{Part, Weights, keys};
use crate::config::Config;
use crate::error::Result;
use crate::graph::{Builder, Dim, Graph, ValueId};
use crate::tensor::DType;

/// Keeps a zero vector's length from dividing by zero: PyTorch's `F.normalize` uses the same bound.
const MIN_NORM: f32 = 1e-12;

/// The heads' graph, inputs and outputs as in the module's doc.
///
/// # Errors
/// `checkpoint.tensors` when a weight is missing or misshapen.
pub fn build(config: &Config, weights: &Weights) -> Result<Graph> {
    let mut g = Builder::new(Part::Heads.as_str());
    let batch = Dim::BATCH;
    let vision = g.input(Part::Vision.as_str(), DType::F32, &[batch, Dim::Known(config.vision.hidden)]);
    let text = g.input(Part::Text.as_str(), DType::F32, &[batch, Dim::Known(config.text.hidden)]);
    let (d, classes) = (config.projection.dim, config.labels.0.len());
    let v = linear(&mut g, weights, vision, "vision_projection", [d, config.vision.hidden])?;
    let t = linear(&mut g, weights, text, "text_projection", [d, config.text.hidden])?;
    let both = g.concat(&[v, t], 1)?;
    let logits = linear(&mut g, weights, both, "classifier", [classes, 2 * d])?;
    let similarity = cosine(&mut g, v, t)?;
    g.output("v", v)?;
    g.output("t", t)?;
    g.output("logits", logits)?;
    g.output("similarity", similarity)?;
    if keys::image_classifier(config).iter().all(|(name, _)| weights.contains(name)) {
        let logits = linear(&mut g, weights, v, "image_classifier", [classes, d])?;
        g.output("image_logits", logits)?;
    }
    g.finish()
}

pub(super) fn linear(g: &mut Builder, weights: &Weights, x: ValueId, name: &str, shape: [usize; 2]) -> Result<ValueId> {
    let w = g.weight(&format!("{name}.weight"), weights.get(&format!("{name}.weight"), &shape)?);
    let b = g.weight(&format!("{name}.bias"), weights.get(&format!("{name}.bias"), &shape[..1])?);
    g.scope(name, |g| g.gemm(x, w, Some(b)))
}

/// Row by row, `a·b / (|a| |b|)`.
fn cosine(g: &mut Builder, a: ValueId, b: ValueId) -> Result<ValueId> {
    g.scope("similarity", |g| {
        let product = g.mul(a, b)?;
        let dot = g.reduce_sum(product, &[1], false)?;
        let (a, b) = (length(g, a, false)?, length(g, b, false)?);
        let length = g.mul(a, b)?;
        g.div(dot, length)
    })
}

/// Row by row, `x / |x|`.
pub(super) fn normalized(g: &mut Builder, x: ValueId) -> Result<ValueId> {
    let length = length(g, x, true)?;
    g.div(x, length)
}

fn length(g: &mut Builder, x: ValueId, keep: bool) -> Result<ValueId> {
    let square = g.mul(x, x)?;
    let sum = g.reduce_sum(square, &[1], keep)?;
    let length = g.unary("Sqrt", sum)?;
    let least = g.scalar(MIN_NORM);
    g.binary("Max", length, least)
}
