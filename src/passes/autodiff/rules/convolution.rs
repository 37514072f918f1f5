//! Convolutions over any number of axes, without groups and dilations.

use std::ops::Range;

use super::{Call, Gradients, expanded};
use crate::error::Result;
use crate::graph::{Builder, Op, ValueId};

/// A convolution's sizes along its spatial axes.
struct Window {
    kernel: Vec<i64>,
    strides: Vec<i64>,
    pads_begin: Vec<i64>,
    pads_end: Vec<i64>,
    /// Of the operand's and the result's spatial axes.
    in_shape: Vec<i64>,
    out_shape: Vec<i64>,
}

/// `x` `[N, C, ..]` with `w` `[O, C, ..]` and a bias `[O]`. dw are products of dy and `x`, shifted by each tap of the
/// kernel; dx a convolution of dy with the flipped kernel; db sums dy.
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
        let sizes = c.shape(id)[2..].iter().map(|d| d.known().map(|n| n as i64)).collect::<Option<_>>();
        sizes.ok_or_else(|| c.unfit("a dimension has no number"))
    };
    let kernel = spatial(c.x(1)?)?;
    let n = kernel.len();
    let or = |name: &str, default: i64, from: usize| {
        let given = c.node.op.get_ints(name);
        if given.is_empty() { vec![default; n] } else { given[from..from + n].to_vec() }
    };
    let (strides, pads_begin, pads_end) = (or("strides", 1, 0), or("pads", 0, 0), or("pads", 0, n));
    let (in_shape, out_shape) = (spatial(c.x(0)?)?, spatial(c.y())?);
    Ok(Window { kernel, strides, pads_begin, pads_end, in_shape, out_shape })
}

/// With stride 1 a convolution with the kernel flipped and its channels exchanged, which ONNX Runtime runs faster
/// than the `ConvTranspose` that other strides need, and pads wider than the kernel.
fn input_gradient(g: &mut Builder, dy: ValueId, w: ValueId, window: &Window) -> Result<ValueId> {
    let n = window.kernel.len();
    let wide = |pads: &[i64]| pads.iter().zip(&window.kernel).any(|(pad, kernel)| pad >= kernel);
    if window.strides.iter().any(|&s| s != 1) || wide(&window.pads_begin) || wide(&window.pads_end) {
        // What the strides left over at the end.
        let rest = (0..n).map(|i| {
            let reached = (window.out_shape[i] - 1) * window.strides[i] + window.kernel[i];
            window.in_shape[i] + window.pads_begin[i] + window.pads_end[i] - reached
        });
        let op = Op::new("ConvTranspose")
            .ints("kernel_shape", &window.kernel)
            .ints("strides", &window.strides)
            .ints("pads", &[window.pads_begin.clone(), window.pads_end.clone()].concat())
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
        .ints("pads", &[pads(&window.pads_begin), pads(&window.pads_end)].concat())
        .ints("strides", &vec![1; n]);
    g.node(op, &[Some(dy), Some(kernel)])
}

/// `[O, C, ..]`. A kernel of one tap: Σ dy xᵀ. Others slab by slab along the first axis, so that the copies that this
/// takes stay small, and in the CPU's caches: a product of dy and `x`, each stacked in shifted copies, holds all taps.
/// Along the first axis dy is shifted where the stride allows it, along all others `x`: of 3³ taps 3 + 9 copies, not
/// 27.
fn weight_gradient(g: &mut Builder, dy: ValueId, x: ValueId, w: ValueId, window: &Window) -> Result<ValueId> {
    let shape: Vec<i64> = g.ty(w).shape.iter().map(|d| d.known().map_or(-1, |n| n as i64)).collect();
    let padded = window.pads_begin.iter().chain(&window.pads_end).any(|&p| p != 0);
    if window.kernel.iter().all(|&k| k == 1) && !padded {
        return one_tap(g, dy, x, &shape, window);
    }
    let slabs = Slabs::new(window, &shape);
    let mut parts = Vec::new();
    for rows in slabs.rows() {
        if let Some(part) = slabs.product(g, dy, x, rows)? {
            parts.push(g.unsqueeze(part, &[0])?);
        }
    }
    let all = match parts[..] {
        // No tap ever met an element.
        [] => {
            let zero = g.scalar(0.0);
            return expanded(g, zero, w);
        }
        [one] => one,
        _ => g.concat(&parts, 0)?,
    };
    let sum = g.reduce_sum(all, &[0], false)?;
    let taps = g.reshape(sum, &[slabs.shifts, shape[0], slabs.taps.len() as i64, shape[1]])?;
    let taps = g.transpose(taps, &[1, 3, 0, 2])?;
    g.reshape(taps, &shape)
}

/// Σ dy xᵀ over what the one tap meets.
fn one_tap(g: &mut Builder, dy: ValueId, x: ValueId, shape: &[i64], window: &Window) -> Result<ValueId> {
    let places: i64 = window.out_shape.iter().product();
    let dy = g.reshape(dy, &[0, shape[0], places])?;
    let met = pick(g, x, &window.in_shape, &vec![0; window.in_shape.len()], &window.out_shape, &window.strides)?;
    let met = g.reshape(met, &[0, shape[1], places])?;
    let met = g.transpose(met, &[0, 2, 1])?;
    let products = g.matmul(dy, met)?;
    let sum = g.reduce_sum(products, &[0], false)?;
    g.reshape(sum, shape)
}

/// Maximum number of elements of the stacked copies of a slab, if it has more than one row. Measured: with more rows at
/// once, copies leave the caches, and take memory.
const SLAB: i64 = 1 << 20;
/// Maximum number of slabs, so that graphs stay short.
const MAX_SLABS: i64 = 80;

/// How a kernel's taps are divided, and the first axis.
struct Slabs<'a> {
    window: &'a Window,
    channels: i64,
    out: i64,
    /// Taps along the first axis that dy is shifted by: all of them, or only one where the stride is not 1.
    shifts: i64,
    /// Taps that `x` is shifted by.
    taps: Vec<Vec<i64>>,
    /// Rows along the first axis: of the padded operand, or of the result where the stride is not 1.
    total: i64,
    step: i64,
}

impl<'a> Slabs<'a> {
    fn new(window: &'a Window, shape: &[i64]) -> Self {
        let mut kernel = window.kernel.clone();
        let (shifts, total) = match window.strides[0] {
            1 => (std::mem::replace(&mut kernel[0], 1), window.in_shape[0] + window.pads_begin[0] + window.pads_end[0]),
            _ => (1, window.out_shape[0]),
        };
        let taps = taps_of(&kernel);
        let row = taps.len() as i64 * shape[1] * window.out_shape[1..].iter().product::<i64>();
        let step = (SLAB / row.max(1)).max((total + MAX_SLABS - 1) / MAX_SLABS).max(1);
        Self { window, channels: shape[1], out: shape[0], shifts, taps, total, step }
    }

    fn rows(&self) -> impl Iterator<Item = Range<i64>> {
        let (total, step) = (self.total, self.step);
        (0..total).step_by(step as usize).map(move |start| start..(start + step).min(total))
    }

    /// `[shifts · O, taps · C]`: what these rows add; none where they meet nothing but padding.
    fn product(&self, g: &mut Builder, dy: ValueId, x: ValueId, rows: Range<i64>) -> Result<Option<ValueId>> {
        let (window, n) = (self.window, rows.end - rows.start);
        let stride = window.strides[0];
        let reach = window.kernel[0] / self.shifts;
        let start = rows.start * stride - window.pads_begin[0];
        let end = (rows.end - 1) * stride + reach - window.pads_begin[0];
        let Some(x) = slab(g, x, &window.in_shape, start..end, &window.pads_begin[1..], &window.pads_end[1..])? else {
            return Ok(None);
        };
        let none = vec![0; window.out_shape.len() - 1];
        let Some(dy) = slab(g, dy, &window.out_shape, rows.start + 1 - self.shifts..rows.end, &none, &none)? else {
            return Ok(None);
        };
        let sizes = [&[n], &window.out_shape[1..]].concat();
        let padded = (1..window.in_shape.len()).map(|i| window.in_shape[i] + window.pads_begin[i] + window.pads_end[i]);
        let have: Vec<i64> = std::iter::once(end - start).chain(padded).collect();
        let copies = self.taps.iter().map(|tap| pick(g, x, &have, tap, &sizes, &window.strides));
        let copies = copies.collect::<Result<Vec<_>>>()?;
        let x = stacked(g, &copies, self.channels)?;
        let have = [&[n + self.shifts - 1], &window.out_shape[1..]].concat();
        let shift = |k: i64| [&[self.shifts - 1 - k], none.as_slice()].concat();
        let ones = vec![1; sizes.len()];
        let copies = (0..self.shifts).map(|k| pick(g, dy, &have, &shift(k), &sizes, &ones));
        let copies = copies.collect::<Result<Vec<_>>>()?;
        let dy = stacked(g, &copies, self.out)?;
        g.node(Op::new("Gemm").int("transB", 1), &[Some(dy), Some(x)]).map(Some)
    }
}

/// `[N, channels, ..]` → `[channels, N, rows, ..]`, with zeros where `rows` reach over the first axis and around the
/// others; none where nothing else is left.
fn slab(
    g: &mut Builder,
    x: ValueId,
    sizes: &[i64],
    rows: Range<i64>,
    pads_begin: &[i64],
    pads_end: &[i64],
) -> Result<Option<ValueId>> {
    let inside = rows.start.max(0)..rows.end.min(sizes[0]);
    if inside.is_empty() {
        return Ok(None);
    }
    let part = if inside == (0..sizes[0]) { x } else { g.slice(x, 2, inside.start, inside.end)? };
    let perm: Vec<i64> = [1, 0].into_iter().chain(2..2 + sizes.len() as i64).collect();
    let part = g.transpose(part, &perm)?;
    let first = [inside.start - rows.start, rows.end - inside.end];
    let pads = [&[0, 0, first[0]], pads_begin, &[0, 0, first[1]], pads_end].concat();
    if pads.iter().all(|&p| p == 0) { Ok(Some(part)) } else { g.pad(part, &pads).map(Some) }
}

/// `[channels, N, ..]` several times → `[copies · channels, N · ..]`.
fn stacked(g: &mut Builder, copies: &[ValueId], channels: i64) -> Result<ValueId> {
    let all = if let [one] = copies { *one } else { g.concat(copies, 0)? };
    g.reshape(all, &[copies.len() as i64 * channels, -1])
}

/// Of the axes behind the first two, with sizes `have`: `sizes` elements from `starts` on, `strides` apart.
fn pick(g: &mut Builder, x: ValueId, have: &[i64], starts: &[i64], sizes: &[i64], strides: &[i64]) -> Result<ValueId> {
    let end = |i: usize| starts[i] + (sizes[i] - 1) * strides[i] + 1;
    let cut: Vec<usize> = (0..have.len())
        .filter(|&i| starts[i] != 0 || end(i) != have[i] || (strides[i] != 1 && sizes[i] != 1))
        .collect();
    if cut.is_empty() {
        return Ok(x);
    }
    let operands = [
        cut.iter().map(|&i| starts[i]).collect::<Vec<_>>(),
        cut.iter().map(|&i| end(i)).collect(),
        cut.iter().map(|&i| i as i64 + 2).collect(),
        cut.iter().map(|&i| strides[i]).collect(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_cover_all_rows_once() {
        for (sizes, stride) in
            [([5, 5, 5], 1), ([64, 256, 256], 1), ([256, 256, 256], 4), ([900, 700, 700], 1), ([1, 9, 9], 3)]
        {
            let to: Vec<i64> = [(sizes[0] - 1) / stride + 1, sizes[1], sizes[2]].to_vec();
            let (strides, ones) = (vec![stride, 1, 1], vec![1; 3]);
            let window = Window {
                kernel: vec![3; 3],
                strides,
                pads_begin: ones.clone(),
                pads_end: ones,
                in_shape: sizes.to_vec(),
                out_shape: to.clone(),
            };
            let slabs = Slabs::new(&window, &[8, 8, 3, 3, 3]);
            let rows: Vec<_> = slabs.rows().collect();
            assert!(rows.len() as i64 <= MAX_SLABS, "{sizes:?}: {}", rows.len());
            let all: Vec<i64> = rows.into_iter().flatten().collect();
            let total = if stride == 1 { sizes[0] + 2 } else { to[0] };
            assert_eq!(all, (0..total).collect::<Vec<_>>());
        }
    }
}
