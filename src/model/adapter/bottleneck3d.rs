//! `bottleneck3d`: the slices are a depth, which a strided 3-D convolution reduces.

use super::{Layer, Statistics, residual};
use crate::config::Config;
use crate::error::Result;
use crate::graph::{Builder, Op, ValueId};
use crate::model::Weights;

/// `[batch, in, H, W]` → `[batch, out, H, W]`, by way of `[batch, width, out, H, W]`.
pub(super) fn build(
    g: &mut Builder,
    config: &Config,
    weights: &Weights,
    statistics: Statistics,
    x: ValueId,
) -> Result<ValueId> {
    let a = &config.adapter;
    let layer = Layer { weights, norm: a.norm, statistics, channels: a.width };
    let x = g.unsqueeze(x, &[1])?;
    let stride = (a.slices_in / a.slices_out) as i64;
    let shape = [a.width, 1, 3, 3, 3];
    let y = layer.build(g, x, "adapter.reduce.conv", "adapter.reduce.norm", &shape, &[stride, 1, 1])?;
    let y = g.unary("Relu", y)?;
    let y = residual(g, &layer, y, 3)?;
    let w = g.weight("adapter.out.weight", weights.get("adapter.out.weight", &[1, a.width, 1, 1, 1])?);
    let b = g.weight("adapter.out.bias", weights.get("adapter.out.bias", &[1])?);
    let conv = Op::new("Conv").ints("kernel_shape", &[1; 3]).ints("pads", &[0; 6]).ints("strides", &[1; 3]);
    let y = g.scope("adapter.out", |g| g.node(conv, &[Some(y), Some(w), Some(b)]))?;
    g.squeeze(y, &[1])
}
