//! Operators that act on each element, or on pairs of elements.

use std::f32::consts::{FRAC_1_SQRT_2, PI};

use super::{Call, Gradients, reshape_like};
use crate::error::Result;
use crate::graph::{Attribute, Body, Builder, Dim, Op, ValueId};
use crate::tensor::DType;

/// Maximum number of elements of a piece of a large array: some arrays of that size fit a core's second-level cache.
const PIECE: usize = 1 << 16;

/// `a + b`: dy, dy.
pub(super) fn add(c: &mut Call<'_>) -> Gradients {
    let dy = c.dy()?;
    Ok(vec![Some(dy), Some(dy)])
}

/// `a − b`: dy, −dy.
pub(super) fn sub(c: &mut Call<'_>) -> Gradients {
    let dy = c.dy()?;
    Ok(vec![Some(dy), c.want(1, |g| g.unary("Neg", dy))?])
}

/// `a b`: dy b, dy a.
pub(super) fn mul(c: &mut Call<'_>) -> Gradients {
    let (dy, a, b) = (c.dy()?, c.x(0)?, c.x(1)?);
    Ok(vec![c.want(0, |g| g.mul(dy, b))?, c.want(1, |g| g.mul(dy, a))?])
}

/// `a / b`: dy / b, −dy y / b.
pub(super) fn div(c: &mut Call<'_>) -> Gradients {
    let (dy, y, b) = (c.dy()?, c.y(), c.x(1)?);
    let db = c.want(1, |g| {
        let product = g.mul(dy, y)?;
        let quotient = g.div(product, b)?;
        g.unary("Neg", quotient)
    })?;
    Ok(vec![c.want(0, |g| g.div(dy, b))?, db])
}

/// `max(a, b)`: dy where the operand is the larger.
pub(super) fn max(c: &mut Call<'_>) -> Gradients {
    chosen(c, "Greater")
}

/// `min(a, b)`: dy where the operand is the smaller.
pub(super) fn min(c: &mut Call<'_>) -> Gradients {
    chosen(c, "Less")
}

/// Where both are equal, of all that are as steep as one side or the other, the gradient of least norm: nothing to an
/// operand whose bound is fixed, half to each of two that are differentiated. PyTorch has had `clamp`, `maximum` and
/// `minimum` so since its pull request 191142 (2.15; in 2.13 `clamp` still gave the operand everything).
fn chosen(c: &mut Call<'_>, wins: &'static str) -> Gradients {
    let (dy, operands) = (c.dy()?, [c.x(0)?, c.x(1)?]);
    let shared = c.wanted[0] && c.wanted[1];
    let mut side = |i: usize| {
        c.want(i, |g| {
            let zero = g.scalar(0.0);
            let won = g.binary(wins, operands[i], operands[1 - i])?;
            let dx = g.select(won, dy, zero)?;
            if !shared {
                return Ok(dx);
            }
            let half = g.scalar(0.5);
            let half = g.mul(dy, half)?;
            let tie = g.binary("Equal", operands[0], operands[1])?;
            g.select(tie, half, dx)
        })
    };
    Ok(vec![side(0)?, side(1)?])
}

/// `−x`: −dy.
pub(super) fn neg(c: &mut Call<'_>) -> Gradients {
    let dy = c.dy()?;
    Ok(vec![Some(c.g.unary("Neg", dy)?)])
}

/// `√x`: dy / 2y.
pub(super) fn sqrt(c: &mut Call<'_>) -> Gradients {
    let (dy, y) = (c.dy()?, c.y());
    let double = c.g.add(y, y)?;
    Ok(vec![Some(c.g.div(dy, double)?)])
}

/// `eˣ`: dy y.
pub(super) fn exp(c: &mut Call<'_>) -> Gradients {
    let (dy, y) = (c.dy()?, c.y());
    Ok(vec![Some(c.g.mul(dy, y)?)])
}

/// `ln x`: dy / x.
pub(super) fn log(c: &mut Call<'_>) -> Gradients {
    let (dy, x) = (c.dy()?, c.x(0)?);
    Ok(vec![Some(c.g.div(dy, x)?)])
}

/// `max(x, 0)`: dy where y > 0.
pub(super) fn relu(c: &mut Call<'_>) -> Gradients {
    let (dy, y) = (c.dy()?, c.y());
    let zero = c.g.scalar(0.0);
    let positive = c.g.binary("Greater", y, zero)?;
    Ok(vec![Some(c.g.select(positive, dy, zero)?)])
}

/// `x Φ(x)` with the normal distribution Φ (Hendrycks and Gimpel 2016): dy (Φ(x) + x φ(x)). With u = x/√2 that is `dy/2
/// · (1 + erf u + 2/√π · u e^(−u²))`. Large arrays go piece by piece, each through all eleven operators while it is in
/// a core's cache: measured, a transformer block's whole backward pass takes a tenth less time.
pub(super) fn gelu(c: &mut Call<'_>) -> Gradients {
    let (dy, x) = (c.dy()?, c.x(0)?);
    let sizes: Option<Vec<usize>> =
        c.shape(x).iter().filter(|d| !matches!(d, Dim::Symbol(_))).map(|d| d.known()).collect();
    let piece = sizes.and_then(|s| piece(s.iter().product()));
    let Some(piece) = piece else { return Ok(vec![Some(gelu_slope(c.g, dy, x)?)]) };
    let pieces = [dy, x].map(|id| c.g.reshape(id, &[-1, piece as i64]));
    let [d_pieces, x_pieces] = pieces;
    let mut body = Builder::new("gelu");
    let inputs = ["dy", "x"].map(|name| body.input(name, DType::F32, &[Dim::Known(piece)]));
    let dx = gelu_slope(&mut body, inputs[0], inputs[1])?;
    body.output("dx", dx)?;
    let op = Op::new("Scan").with("body", Attribute::Graph(Body::new(body.finish()?))).int("num_scan_inputs", 2);
    let joined = c.g.node(op, &[Some(d_pieces?), Some(x_pieces?)])?;
    Ok(vec![Some(reshape_like(c.g, joined, x)?)])
}

/// The largest divisor of `n` that [`PIECE`] holds, for arrays that are large enough to be cut.
fn piece(n: usize) -> Option<usize> {
    let divisors = (1..=PIECE).rev().filter(|d| n.is_multiple_of(*d));
    (n >= 8 * PIECE).then(|| divisors.take(1).find(|d| *d >= PIECE / 8)).flatten()
}

fn gelu_slope(g: &mut Builder, dy: ValueId, x: ValueId) -> Result<ValueId> {
    let [scale, factor, one, half] = [FRAC_1_SQRT_2, 2.0 / PI.sqrt(), 1.0, 0.5].map(|k| g.scalar(k));
    let u = g.mul(x, scale)?;
    let erf = g.unary("Erf", u)?;
    let square = g.mul(u, u)?;
    let minus = g.unary("Neg", square)?;
    let bell = g.unary("Exp", minus)?;
    let slope = g.mul(u, bell)?;
    let slope = g.mul(slope, factor)?;
    let sum = g.add(erf, slope)?;
    let sum = g.add(sum, one)?;
    let scaled = g.mul(sum, half)?;
    g.mul(dy, scaled)
}

/// `x`: dy.
pub(super) fn identity(c: &mut Call<'_>) -> Gradients {
    Ok(vec![Some(c.dy()?)])
}
