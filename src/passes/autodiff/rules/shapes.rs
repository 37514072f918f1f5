//! Operators that move elements.

use super::{Call, Gradients, axes_from_front, expanded, reshape_like};
use crate::error::Result;
use crate::graph::Dim;

/// The same elements in another shape (`Reshape`, `Squeeze`, `Unsqueeze`): dy in the operand's shape.
pub(super) fn reshape(c: &mut Call<'_>) -> Gradients {
    let (dy, x) = (c.dy()?, c.x(0)?);
    Ok(vec![Some(reshape_like(c.g, dy, x)?), None])
}

/// Axes in another order: dy in the order before.
pub(super) fn transpose(c: &mut Call<'_>) -> Gradients {
    let dy = c.dy()?;
    let perm = c.node.op.get_ints("perm");
    let mut back = vec![0; perm.len()];
    for (to, &from) in perm.iter().enumerate() {
        back[from as usize] = to as i64;
    }
    Ok(vec![Some(c.g.transpose(dy, &back)?)])
}

/// Parts one behind the other: to each its part of dy.
pub(super) fn concat(c: &mut Call<'_>) -> Gradients {
    let dy = c.dy()?;
    let axis = c.node.op.get_int("axis", 0);
    let at = axes_from_front(&[axis], c.shape(dy).len())[0] as usize;
    let mut sizes = Vec::new();
    for i in 0..c.node.inputs.len() {
        sizes.push(size(c, c.shape(c.x(i)?)[at])?);
    }
    if let [_] = sizes[..] {
        return Ok(vec![Some(dy)]);
    }
    Ok(c.g.split(dy, &sizes, axis)?.into_iter().map(Some).collect())
}

/// Parts of `x`: their gradients one behind the other, zeros where a part has none.
pub(super) fn split(c: &mut Call<'_>) -> Gradients {
    let mut parts = Vec::new();
    for (i, &part) in c.node.outputs.iter().enumerate() {
        parts.push(match c.given[i] {
            Some(gradient) => gradient,
            // Not a product with 0: a part may hold what is not finite.
            None => {
                let zero = c.g.scalar(0.0);
                expanded(c.g, zero, part)?
            }
        });
    }
    Ok(vec![Some(c.g.concat(&parts, c.node.op.get_int("axis", 0))?), None])
}

/// A part of `x`: dy with zeros where the rest was.
pub(super) fn slice(c: &mut Call<'_>) -> Gradients {
    let (dy, x) = (c.dy()?, c.x(0)?);
    let (starts, ends, axes) = (c.ints(1)?, c.ints(2)?, c.ints(3)?);
    if c.node.inputs.len() > 4 && c.ints(4)?.iter().any(|&step| step != 1) {
        return Err(c.unfit("steps other than 1"));
    }
    let shape = c.shape(x);
    let mut pads = vec![0; 2 * shape.len()];
    for (i, axis) in axes_from_front(&axes, shape.len()).into_iter().enumerate() {
        let (axis, n) = (axis as usize, size(c, shape[axis as usize])?);
        let clamp = |v: i64| (if v < 0 { v.saturating_add(n) } else { v }).clamp(0, n);
        pads[axis] = clamp(starts[i]);
        pads[axis + shape.len()] = n - clamp(ends[i]).max(clamp(starts[i]));
    }
    let padded = c.g.pad(dy, &pads)?;
    Ok(vec![Some(padded), None, None, None, None])
}

/// Zeros around `x`: dy without the border.
pub(super) fn pad(c: &mut Call<'_>) -> Gradients {
    let (mut inner, x, pads) = (c.dy()?, c.x(0)?, c.ints(1)?);
    if c.node.inputs.len() > 2 {
        return Err(c.unfit("only zeros are padded here"));
    }
    let shape = c.shape(x);
    for axis in 0..shape.len() {
        let (before, after) = (pads[axis], pads[axis + shape.len()]);
        if before != 0 || after != 0 {
            let n = size(c, shape[axis])?;
            inner = c.g.slice(inner, axis as i64, before, before + n)?;
        }
    }
    Ok(vec![Some(inner), None])
}

/// Repeated elements: dy, which the walk sums.
pub(super) fn expand(c: &mut Call<'_>) -> Gradients {
    Ok(vec![Some(c.dy()?), None])
}

fn size(c: &Call<'_>, dim: Dim) -> Result<i64> {
    dim.known().map(|n| n as i64).ok_or_else(|| c.unfit(&format!("the dimension {dim} has no number")))
}
