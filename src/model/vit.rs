//! M3D-CLIP's 3-D vision transformer (MONAI's `ViT` with a perceptron patch embedding).
//!
//! `adapter` f32 `[batch, D, H, W]` → `vision` f32 `[batch, hidden]`. Patches are laid out `(p1 p2 p3)`, tokens
//! `(h w d)` in the order of the input's three spatial axes; the CLS token is put in front after position
//! embeddings were added to the patches. Blocks are pre-norm (Dosovitskiy et al. 2021), GELU is the exact one.
//!
//! With CLS pooling the last block computes the CLS row alone: its keys and values need all tokens, the rest of
//! the block does not.

use super::attention::multi_head;
use super::{Attention, Part, Stages, Weights};
use crate::config::{Config, VisionPool};
use crate::error::Result;
use crate::graph::{Builder, Dim, Graph, ValueId};
use crate::tensor::{DType, LazyTensor};

/// MONAI's (and PyTorch's) default epsilon of LayerNorm.
const LAYER_NORM_EPS: f32 = 1e-5;

/// The vision transformer's graph.
///
/// # Errors
/// `checkpoint.tensors` when a weight is missing or misshapen, or what reading the position embeddings gives.
pub fn build(config: &Config, weights: &Weights, form: Attention, stages: Stages) -> Result<Graph> {
    let vit = Vit { config, weights, form };
    let mut g = Builder::new(Part::Vision.as_str());
    let [d, h, w] = config.run_size().map(Dim::Known);
    let image = g.input(Part::Adapter.as_str(), DType::F32, &[Dim::BATCH, d, h, w]);
    let mut tokens = g.scope("patch_embedding", |g| vit.embed(g, image))?;
    let patches = config.run_grid().iter().product::<usize>() as i64;
    let mut taps = Vec::new();
    if stages == Stages::All {
        taps.push(("vision_patch_tokens", g.slice(tokens, 1, 1, patches + 1)?));
    }
    for n in 0..config.vision.layers {
        let cls_only =
            n + 1 == config.vision.layers && config.vision.pool == VisionPool::Cls && stages == Stages::Output;
        tokens = g.scope(&format!("blocks.{n}"), |g| vit.block(g, tokens, n, cls_only))?;
        if stages == Stages::All && n == 0 && config.vision.layers > 1 {
            taps.push(("vision_block0", tokens));
        }
    }
    let tokens = vit.layer_norm(&mut g, tokens, "norm")?;
    if stages == Stages::All {
        taps.push(("vision_tokens", tokens));
    }
    let pooled = match config.vision.pool {
        VisionPool::Cls => {
            let cls = g.slice(tokens, 1, 0, 1)?;
            g.squeeze(cls, &[1])?
        }
        VisionPool::Mean => {
            let rest = g.slice(tokens, 1, 1, patches + 1)?;
            g.reduce_mean(rest, &[1], false)?
        }
    };
    g.output(Part::Vision.as_str(), pooled)?;
    taps.into_iter().try_for_each(|(name, id)| g.output(name, id))?;
    g.finish()
}

struct Vit<'a> {
    config: &'a Config,
    weights: &'a Weights,
    form: Attention,
}

impl Vit<'_> {
    /// `[batch, D, H, W]` → `[batch, 1 + patches, hidden]`.
    fn embed(&self, g: &mut Builder, image: ValueId) -> Result<ValueId> {
        let v = &self.config.vision;
        let (grid, patch) = (self.config.run_grid(), v.patch);
        let split: Vec<i64> = (0..3).flat_map(|i| [grid[i] as i64, patch[i] as i64]).collect();
        let x = g.reshape(image, &[vec![0], split].concat())?;
        let x = g.transpose(x, &[0, 1, 3, 5, 2, 4, 6])?;
        let (count, width) = (grid.iter().product::<usize>(), patch.iter().product::<usize>());
        let x = g.reshape(x, &[0, count as i64, width as i64])?;
        let name = "patch_embedding.patch_embeddings.1";
        let weight = self.weights.get(&format!("{name}.weight"), &[v.hidden, width])?;
        let bias = self.weights.get(&format!("{name}.bias"), &[v.hidden])?;
        let x = g.linear(x, name, &weight, Some(&bias))?;
        // One row of zeros in front of the patches, then the CLS token and the positions are added at once: the
        // same numbers as concatenating an expanded CLS token, without any computation on shapes.
        let x = g.pad(x, &[0, 1, 0, 0, 0, 0])?;
        let rows = g.weight("patch_embedding.cls_and_positions", self.cls_and_positions()?);
        g.add(x, rows)
    }

    /// `[1, 1 + patches, hidden]`: the CLS token, then the position embeddings at the size of running.
    fn cls_and_positions(&self) -> Result<LazyTensor> {
        let hidden = self.config.vision.hidden;
        let (from, to) = (self.config.trained_grid(), self.config.run_grid());
        let stored = [1, from.iter().product(), hidden];
        let positions = self.weights.get("patch_embedding.position_embeddings", &stored)?.to_f32()?;
        let mut rows = self.weights.get("cls_token", &[1, 1, hidden])?.to_f32()?;
        rows.extend(resize_trilinear(&positions, from, to, hidden));
        Ok(LazyTensor::from_f32(&[1, rows.len() / hidden, hidden], &rows))
    }

    /// One pre-norm transformer block; with `cls_only` the result is `[batch, 1, hidden]`.
    fn block(&self, g: &mut Builder, x: ValueId, n: usize, cls_only: bool) -> Result<ValueId> {
        let v = &self.config.vision;
        let name = format!("blocks.{n}");
        let normal = self.layer_norm(g, x, &format!("{name}.norm1"))?;
        let (queries, x) = if cls_only { (g.slice(normal, 1, 0, 1)?, g.slice(x, 1, 0, 1)?) } else { (normal, x) };
        let mixed = g.scope("attn", |g| {
            // Rows of the joint weight: queries, keys, values, each (heads, head_dim).
            let qkv = self.weights.get(&format!("{name}.attn.qkv.weight"), &[3 * v.hidden, v.hidden])?;
            let part = |i: usize| qkv.rows(i * v.hidden..(i + 1) * v.hidden);
            let q = g.linear(queries, &format!("{name}.attn.qkv.q"), &part(0), None)?;
            let k = g.linear(normal, &format!("{name}.attn.qkv.k"), &part(1), None)?;
            let v_ = g.linear(normal, &format!("{name}.attn.qkv.v"), &part(2), None)?;
            let context = multi_head(g, self.form, [q, k, v_], v.heads, v.hidden / v.heads)?;
            self.linear(g, context, &format!("{name}.attn.out_proj"), [v.hidden, v.hidden])
        })?;
        let x = g.add(x, mixed)?;
        let normal = self.layer_norm(g, x, &format!("{name}.norm2"))?;
        let update = g.scope("mlp", |g| {
            let inner = self.linear(g, normal, &format!("{name}.mlp.linear1"), [v.mlp, v.hidden])?;
            let inner = g.unary("Gelu", inner)?;
            self.linear(g, inner, &format!("{name}.mlp.linear2"), [v.hidden, v.mlp])
        })?;
        g.add(x, update)
    }

    fn linear(&self, g: &mut Builder, x: ValueId, name: &str, shape: [usize; 2]) -> Result<ValueId> {
        let weight = self.weights.get(&format!("{name}.weight"), &shape)?;
        let bias = self.weights.get(&format!("{name}.bias"), &shape[..1])?;
        g.linear(x, name, &weight, Some(&bias))
    }

    fn layer_norm(&self, g: &mut Builder, x: ValueId, name: &str) -> Result<ValueId> {
        let [weight, bias] = ["weight", "bias"].map(|part| {
            let key = format!("{name}.{part}");
            Ok(g.weight(&key, self.weights.get(&key, &[self.config.vision.hidden])?))
        });
        g.layer_norm(x, weight?, bias?, LAYER_NORM_EPS)
    }
}

/// Trilinear interpolation of `[from0, from1, from2, width]` to `[to0, to1, to2, width]`, as
/// `torch.nn.functional.interpolate(mode="trilinear", align_corners=False)`, one axis after the other.
fn resize_trilinear(values: &[f32], from: [usize; 3], to: [usize; 3], width: usize) -> Vec<f32> {
    let mut sizes = [from[0], from[1], from[2], width];
    let mut values = values.to_vec();
    for axis in 0..3 {
        if sizes[axis] != to[axis] {
            values = resize_axis(&values, &sizes, axis, to[axis]);
            sizes[axis] = to[axis];
        }
    }
    values
}

fn resize_axis(values: &[f32], sizes: &[usize; 4], axis: usize, to: usize) -> Vec<f32> {
    let (n, inner) = (sizes[axis], sizes[axis + 1..].iter().product::<usize>());
    let outer: usize = sizes[..axis].iter().product();
    let mut out = Vec::with_capacity(outer * to * inner);
    for o in 0..outer {
        let row = |i: usize| &values[(o * n + i) * inner..][..inner];
        for j in 0..to {
            // The centre of output cell j in input coordinates, held inside the first and last centres.
            let at = ((j as f64 + 0.5) * n as f64 / to as f64 - 0.5).max(0.0);
            let low = (at as usize).min(n - 1);
            let t = (at - low as f64) as f32;
            let high = row((low + 1).min(n - 1));
            out.extend(row(low).iter().zip(high).map(|(a, b)| a * (1.0 - t) + b * t));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpolation_matches_torch() {
        // torch.nn.functional.interpolate(torch.tensor([[[1., 2., 4.]]]), size=6, mode="linear")
        let up = resize_axis(&[1.0, 2.0, 4.0], &[1, 1, 3, 1], 2, 6);
        let expected = [1.0, 1.25, 1.75, 2.5, 3.5, 4.0];
        assert!(up.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{up:?}");
        // … size=2: no low-pass filter when shrinking
        let down = resize_axis(&[1.0, 2.0, 4.0], &[1, 1, 3, 1], 2, 2);
        assert!(down.iter().zip([1.25, 3.5]).all(|(a, b)| (a - b).abs() < 1e-6), "{down:?}");
    }
}
