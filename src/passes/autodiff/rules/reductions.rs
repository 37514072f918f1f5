//! Operators that sum along axes.

use super::{Call, Gradients, axes_from_front, expanded};
use crate::error::Result;
use crate::graph::{Builder, Dim, ValueId};
use crate::tensor::DType;

/// `softmax(x)` along the last axis: y (dy − Σ dy y).
pub(super) fn softmax(c: &mut Call<'_>) -> Gradients {
    let (dy, y) = (c.dy()?, c.y());
    last_axis(c)?;
    let product = c.g.mul(dy, y)?;
    let sum = c.g.reduce_sum(product, &[-1], true)?;
    let centred = c.g.sub(dy, sum)?;
    Ok(vec![Some(c.g.mul(y, centred)?)])
}

/// `log softmax(x)` along the last axis: dy − eʸ Σ dy.
pub(super) fn log_softmax(c: &mut Call<'_>) -> Gradients {
    let (dy, y) = (c.dy()?, c.y());
    last_axis(c)?;
    let sum = c.g.reduce_sum(dy, &[-1], true)?;
    let probabilities = c.g.unary("Exp", y)?;
    let product = c.g.mul(probabilities, sum)?;
    Ok(vec![Some(c.g.sub(dy, product)?)])
}

fn last_axis(c: &Call<'_>) -> Result<()> {
    let last = c.shape(c.y()).len() as i64 - 1;
    match c.node.op.get_int("axis", -1) {
        -1 => Ok(()),
        axis if axis == last => Ok(()),
        axis => Err(c.unfit(&format!("axis {axis} is not the last"))),
    }
}

/// `Σ x` along axes: dy, repeated along them.
pub(super) fn reduce_sum(c: &mut Call<'_>) -> Gradients {
    let dx = repeated(c)?;
    Ok(vec![Some(dx), None])
}

/// The mean of `x` along axes: dy over the number of elements, repeated along them.
pub(super) fn reduce_mean(c: &mut Call<'_>) -> Gradients {
    let (x, y) = (c.x(0)?, c.y());
    let dx = repeated(c)?;
    let count = count(c.g, x, y, &c.ints(1)?)?;
    Ok(vec![Some(c.g.div(dx, count)?), None])
}

/// The result's gradient in the operand's shape.
fn repeated(c: &mut Call<'_>) -> Result<ValueId> {
    let (mut dy, x, axes) = (c.dy()?, c.x(0)?, c.ints(1)?);
    let shape = c.shape(x);
    if c.node.op.get_int("keepdims", 1) == 0 {
        dy = c.g.unsqueeze(dy, &axes_from_front(&axes, shape.len()))?;
    }
    expanded(c.g, dy, x)
}

/// How many elements of `x` are summed into one of `y`, as a float32 scalar.
fn count(g: &mut Builder, x: ValueId, y: ValueId, axes: &[i64]) -> Result<ValueId> {
    let shape = g.ty(x).shape.clone();
    let axes = axes_from_front(axes, shape.len());
    let sizes: Option<Vec<usize>> = axes.iter().map(|&a| shape.get(a as usize).copied().and_then(Dim::known)).collect();
    if let Some(sizes) = sizes {
        return Ok(g.scalar(sizes.iter().product::<usize>() as f32));
    }
    let sizes = [x, y].map(|id| {
        let size = g.unary("Size", id)?;
        g.cast(size, DType::F32)
    });
    let [all, kept] = sizes;
    g.div(all?, kept?)
}
