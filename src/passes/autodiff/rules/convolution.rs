//! Convolutions over any number of axes, without groups and dilations.

use super::{Call, Gradients};
use crate::error::Result;
use crate::graph::{Builder, Op, ValueId};

/// A convolution's sizes along its spatial axes.
struct Window {
    kernel: Vec<i64>,
    strides: Vec<i64>,
    before: Vec<i64>,
    after: Vec<i64>,
    /// Of the operand, and of the result.
    from: Vec<i64>,
    to: Vec<i64>,
}

/// `x` `[N, C, ..]` with `w` `[O, C, ..]` and a bias `[O]`. dw is a product of dy and a shifted `x` for each tap of the kernel; dx a
/// convolution of dy with the flipped kernel; db sums dy.
pub(super) fn conv(c: &mut Call<'_>) -> Gradients {
    let (dy, x, w) = (c.dy()?, c.x(0)?, c.x(1)?);
    let window = window(c)?;
    let dx = c.want(0, |g| input_gradient(g, dy, w, &window))?;
    let dw = c.want(1, |g| weight_gradient(g, dy, x, w, &window))?;
    let mut all = vec![dx, dw];
    if c.node.inputs.len() > 2 {
        let axes: Vec<i64> = std::iter::once(0).chain(2..2 + window.kernel.len() as i64).collect();
        all.push(c.want(2, |g| g.reduce_sum(dy, &axes, false))?);
    }
    Ok(all)
}

fn window(c: &Call<'_>) -> Result<Window> {
    let spatial = |id: ValueId| -> Result<Vec<i64>> {
        let extents = c.shape(id)[2..].iter().map(|d| d.known().map(|n| n as i64)).collect::<Option<_>>();
        extents.ok_or_else(|| c.unfit("an extent has no number"))
    };
    let kernel = spatial(c.x(1)?)?;
    let n = kernel.len();
    let or = |name: &str, default: i64, from: usize| {
        let given = c.node.op.get_ints(name);
        if given.is_empty() { vec![default; n] } else { given[from..from + n].to_vec() }
    };
    let (from, to) = (spatial(c.x(0)?)?, spatial(c.y())?);
    Ok(Window { strides: or("strides", 1, 0), before: or("pads", 0, 0), after: or("pads", 0, n), kernel, from, to })
}

/// With stride 1 a convolution with the kernel flipped and its channels exchanged, which ONNX Runtime runs several times as fast
/// as the `ConvTranspose` that other strides need.
fn input_gradient(g: &mut Builder, dy: ValueId, w: ValueId, window: &Window) -> Result<ValueId> {
    let n = window.kernel.len();
    if window.strides.iter().any(|&s| s != 1) {
        // What the strides left over at the end.
        let rest = (0..n).map(|i| {
            let reached = (window.to[i] - 1) * window.strides[i] + window.kernel[i];
            window.from[i] + window.before[i] + window.after[i] - reached
        });
        let op = Op::new("ConvTranspose")
            .ints("kernel_shape", &window.kernel)
            .ints("strides", &window.strides)
            .ints("pads", &[window.before.clone(), window.after.clone()].concat())
            .ints("output_padding", &rest.collect::<Vec<_>>());
        return g.node(op, &[Some(dy), Some(w)]);
    }
    let shape: Vec<i64> = g.ty(w).shape.iter().map(|d| d.known().map_or(-1, |n| n as i64)).collect();
    let taps: i64 = window.kernel.iter().product();
    let flat = g.reshape(w, &[shape[0], shape[1], taps])?;
    let backwards: Vec<i64> = (0..taps).rev().collect();
    let backwards = g.weight("const.taps", crate::tensor::LazyTensor::from_i64(&[taps as usize], &backwards));
    let flipped = g.node(Op::new("Gather").int("axis", 2), &[Some(flat), Some(backwards)])?;
    let exchanged = g.transpose(flipped, &[1, 0, 2])?;
    let kernel = g.reshape(exchanged, &[&[shape[1], shape[0]], window.kernel.as_slice()].concat())?;
    let pads = |pads: &[i64]| (0..n).map(|i| window.kernel[i] - 1 - pads[i]).collect::<Vec<_>>();
    let op = Op::new("Conv")
        .ints("kernel_shape", &window.kernel)
        .ints("pads", &[pads(&window.before), pads(&window.after)].concat())
        .ints("strides", &vec![1; n]);
    g.node(op, &[Some(dy), Some(kernel)])
}

/// `[O, C, ..]`: for each tap of the kernel Σ dy xᵀ, over what of `x` the tap meets.
fn weight_gradient(g: &mut Builder, dy: ValueId, x: ValueId, w: ValueId, window: &Window) -> Result<ValueId> {
    let shape: Vec<i64> = g.ty(w).shape.iter().map(|d| d.known().map_or(-1, |n| n as i64)).collect();
    let dy = flat(g, dy, shape[0], &window.to)?;
    let padded = window.before.iter().chain(&window.after).any(|&p| p != 0);
    let x = if padded { g.pad(x, &[&[0, 0], window.before.as_slice(), &[0, 0], &window.after].concat())? } else { x };
    let mut taps = Vec::new();
    for tap in taps_of(&window.kernel) {
        let met = met_by(g, x, &tap, window)?;
        let met = flat(g, met, shape[1], &window.to)?;
        let met = g.transpose(met, &[0, 2, 1])?;
        let products = g.matmul(dy, met)?;
        let sum = g.reduce_sum(products, &[0], false)?;
        taps.push(g.unsqueeze(sum, &[2])?);
    }
    let all = if let [one] = taps[..] { one } else { g.concat(&taps, 2)? };
    g.reshape(all, &shape)
}

/// `[N, channels, ..]` → `[N, channels, P]`.
fn flat(g: &mut Builder, x: ValueId, channels: i64, spatial: &[i64]) -> Result<ValueId> {
    g.reshape(x, &[0, channels, spatial.iter().product()])
}

/// The elements of the padded operand that one tap multiplies.
fn met_by(g: &mut Builder, x: ValueId, tap: &[i64], window: &Window) -> Result<ValueId> {
    let n = tap.len();
    let sizes: Vec<i64> = (0..n).map(|i| window.from[i] + window.before[i] + window.after[i]).collect();
    let end = |i: usize| tap[i] + (window.to[i] - 1) * window.strides[i] + 1;
    let cut: Vec<usize> = (0..n).filter(|&i| tap[i] != 0 || end(i) != sizes[i] || window.strides[i] != 1).collect();
    if cut.is_empty() {
        return Ok(x);
    }
    let operands = [
        cut.iter().map(|&i| tap[i]).collect::<Vec<_>>(),
        cut.iter().map(|&i| end(i)).collect(),
        cut.iter().map(|&i| i as i64 + 2).collect(),
        cut.iter().map(|&i| window.strides[i]).collect(),
    ];
    let mut inputs = vec![Some(x)];
    inputs.extend(operands.iter().map(|v| Some(g.ints(v))));
    g.node(Op::new("Slice"), &inputs)
}

/// Every index into the kernel, in row-major order.
fn taps_of(kernel: &[i64]) -> Vec<Vec<i64>> {
    let mut all = vec![vec![]];
    for &n in kernel {
        all = all.iter().flat_map(|tap| (0..n).map(move |i| [tap.as_slice(), &[i]].concat())).collect();
    }
    all
}
