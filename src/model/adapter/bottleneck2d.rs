//! `bottleneck2d`: the slices are the channels of 2-D convolutions.

use super::{Layer, Statistics, residual};
use crate::config::Config;
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::model::Weights;

/// `[batch, in, H, W]` → `[batch, out, H, W]`.
pub(super) fn build(
    g: &mut Builder,
    config: &Config,
    weights: &Weights,
    statistics: Statistics,
    x: ValueId,
) -> Result<ValueId> {
    let (slices, c) = (config.adapter.slices_in, config.adapter.slices_out);
    let layer = Layer { weights, norm: config.adapter.norm, statistics, channels: c };
    let y = layer.build(g, x, "adapter.reduce.conv", "adapter.reduce.norm", &[c, slices, 1, 1], &[1, 1])?;
    let y = g.unary("Relu", y)?;
    residual(g, &layer, y, 2)
}
