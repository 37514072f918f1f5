//! Normalisations. `x̂` is the normalised operand, `σ⁻¹` one over its standard deviation.

use super::{Call, Gradients};
use crate::error::Result;
use crate::graph::{Builder, ValueId};

/// Batch normalisation by stored statistics, `x̂ w + b`: dy w σ⁻¹, Σ dy x̂, Σ dy, with sums over all axes but the
/// channels'. The statistics themselves are not differentiated.
pub(super) fn batch(c: &mut Call<'_>) -> Gradients {
    let (dy, x, w, mean, var) = (c.dy()?, c.x(0)?, c.x(1)?, c.x(3)?, c.x(4)?);
    if c.wanted[3] || c.wanted[4] {
        return Err(c.unfit("its statistics have no gradient here"));
    }
    let eps = c.float("epsilon")?;
    let rank = c.shape(x).len();
    let inverse = inverse_deviation(c.g, var, eps)?;
    let dx = c.want(0, |g| {
        let factor = g.mul(inverse, w)?;
        let factor = per_channel(g, factor, rank)?;
        g.mul(dy, factor)
    })?;
    let dw = c.want(1, |g| {
        let (mean, inverse) = (per_channel(g, mean, rank)?, per_channel(g, inverse, rank)?);
        let centred = g.sub(x, mean)?;
        let normal = g.mul(centred, inverse)?;
        let product = g.mul(dy, normal)?;
        sum_channels(g, product, rank)
    })?;
    Ok(vec![dx, dw, c.want(2, |g| sum_channels(g, dy, rank))?, None, None])
}

/// Instance normalisation over all axes behind the channels'.
pub(super) fn instance(c: &mut Call<'_>) -> Gradients {
    let (dy, x, w) = (c.dy()?, c.x(0)?, c.x(1)?);
    let (eps, rank) = (c.float("epsilon")?, c.shape(x).len());
    let axes: Vec<i64> = (2..rank as i64).collect();
    let (normal, inverse) = normalized(c.g, x, &axes, eps)?;
    let w = per_channel(c.g, w, rank)?;
    let dx = c.want(0, |g| through(g, [dy, w, normal, inverse], &axes))?;
    let dw = c.want(1, |g| {
        let product = g.mul(dy, normal)?;
        sum_channels(g, product, rank)
    })?;
    Ok(vec![dx, dw, c.want(2, |g| sum_channels(g, dy, rank))?])
}

/// Layer normalisation over the last axis (Ba et al. 2016): dw and db are summed by the walk.
pub(super) fn layer(c: &mut Call<'_>) -> Gradients {
    let (dy, x, w) = (c.dy()?, c.x(0)?, c.x(1)?);
    let eps = c.float("epsilon")?;
    let (normal, inverse) = normalized(c.g, x, &[-1], eps)?;
    let dx = c.want(0, |g| through(g, [dy, w, normal, inverse], &[-1]))?;
    let dw = c.want(1, |g| g.mul(dy, normal))?;
    Ok(vec![dx, dw, Some(dy)])
}

/// With g = dy w: σ⁻¹ (g − mean g − x̂ mean(g x̂)), means over `axes`.
fn through(g: &mut Builder, [dy, w, normal, inverse]: [ValueId; 4], axes: &[i64]) -> Result<ValueId> {
    let scaled = g.mul(dy, w)?;
    let mean = g.reduce_mean(scaled, axes, true)?;
    let product = g.mul(scaled, normal)?;
    let along = g.reduce_mean(product, axes, true)?;
    let centred = g.sub(scaled, mean)?;
    let parallel = g.mul(normal, along)?;
    let rest = g.sub(centred, parallel)?;
    g.mul(rest, inverse)
}

/// `x̂` and `σ⁻¹` over `axes`.
fn normalized(g: &mut Builder, x: ValueId, axes: &[i64], eps: f32) -> Result<(ValueId, ValueId)> {
    let mean = g.reduce_mean(x, axes, true)?;
    let centred = g.sub(x, mean)?;
    let square = g.mul(centred, centred)?;
    let var = g.reduce_mean(square, axes, true)?;
    let inverse = inverse_deviation(g, var, eps)?;
    Ok((g.mul(centred, inverse)?, inverse))
}

fn inverse_deviation(g: &mut Builder, var: ValueId, eps: f32) -> Result<ValueId> {
    let eps = g.scalar(eps);
    let sum = g.add(var, eps)?;
    let deviation = g.unary("Sqrt", sum)?;
    g.unary("Reciprocal", deviation)
}

/// `[C]` → `[C, 1, ..]`, to be broadcast over `[N, C, ..]` of that rank.
fn per_channel(g: &mut Builder, vector: ValueId, rank: usize) -> Result<ValueId> {
    let axes: Vec<i64> = (1..rank as i64 - 1).collect();
    g.unsqueeze(vector, &axes)
}

/// `[N, C, ..]` → `[C]`.
fn sum_channels(g: &mut Builder, x: ValueId, rank: usize) -> Result<ValueId> {
    let axes: Vec<i64> = std::iter::once(0).chain(2..rank as i64).collect();
    g.reduce_sum(x, &axes, false)
}
