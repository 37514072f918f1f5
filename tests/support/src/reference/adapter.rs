//! The CNN bottleneck with a residual block, both readings (model.md, "Adapter"; arXiv 2501.16282).

use super::math::{add, map, mean_var, relu};
use super::{AdapterConfig, Array, Weights, get};

/// PyTorch's default eps of BatchNorm and GroupNorm.
const EPS: f64 = 1e-5;
/// Groups of `adapter.norm = "group"`.
const GROUPS: usize = 8;

/// x `[B, D_in, H, W]` → `[B, D_out, H, W]`.
///
/// A 2-D convolution is the 3-D one on volumes of depth 1, so both kinds share one convolution:
/// 2-D sees x as `[B, C=D_in, 1, H, W]`, 3-D as `[B, C=1, D_in, H, W]`.
pub fn forward(cfg: &AdapterConfig, w: &Weights, x: &Array) -> Array {
    let [b, d, h, wd] = x.shape[..] else { panic!("volume {:?}", x.shape) };
    assert_eq!(d, cfg.d_in);
    let three_d = match cfg.kind.as_str() {
        "bottleneck2d" => false,
        "bottleneck3d" => true,
        k => panic!("adapter.kind {k}"),
    };
    let (x, stride) = if three_d {
        (x.clone().reshape(&[b, 1, d, h, wd]), cfg.d_in / cfg.d_out)
    } else {
        (x.clone().reshape(&[b, d, 1, h, wd]), 1)
    };
    let conv = |x: &Array, name: &str, stride| {
        let bias = format!("{name}.bias");
        assert_eq!(w.contains_key(&bias), cfg.norm == "none" || name == "adapter.out", "{bias}");
        conv3d(x, &as_3d(get(w, &format!("{name}.weight"))), w.get(&bias), stride)
    };
    let norm = |x: Array, name: &str| norm(&cfg.norm, w, name, x);

    let y = map(&norm(conv(&x, "adapter.reduce.conv", stride), "adapter.reduce.norm"), relu);
    let z = map(&norm(conv(&y, "adapter.residual.conv1", 1), "adapter.residual.norm1"), relu);
    let z = norm(conv(&z, "adapter.residual.conv2", 1), "adapter.residual.norm2");
    let out = map(&add(&y, &z), relu);
    let out = if three_d { conv(&out, "adapter.out", 1) } else { out };
    out.reshape(&[b, cfg.d_out, h, wd])
}

/// A weight `[O, I, kh, kw]` as `[O, I, 1, kh, kw]`; a 3-D weight as it is.
fn as_3d(w: &Array) -> Array {
    match w.shape[..] {
        [o, i, kh, kw] => w.clone().reshape(&[o, i, 1, kh, kw]),
        _ => w.clone(),
    }
}

/// x `[B, I, D, H, W]`, weight `[O, I, kd, kh, kw]` (odd sizes, padding k/2 each), bias `[O]`, stride over D alone
/// → `[B, O, D/stride, H, W]`. A cross-correlation, as in every framework: the kernel is not flipped.
fn conv3d(x: &Array, weight: &Array, bias: Option<&Array>, stride: usize) -> Array {
    let [b, ci, d, h, w] = x.shape[..] else { panic!("{:?}", x.shape) };
    let [co, ci2, kd, kh, kw] = weight.shape[..] else { panic!("{:?}", weight.shape) };
    assert_eq!(ci, ci2);
    let od = (d + 2 * (kd / 2) - kd) / stride + 1;
    let mut out = Array::zeros(&[b, co, od, h, w]);
    // the input index of a tap, or None in the zero padding
    let tap = |o: usize, k: usize, half: usize, n: usize| (o + k).checked_sub(half).filter(|&i| i < n);
    for bo in 0..b * co {
        let (bi, o) = (bo / co, bo % co);
        for z in 0..od {
            for y in 0..h {
                let at = ((bo * od + z) * h + y) * w;
                let row = &mut out.data[at..at + w];
                row.fill(bias.map_or(0.0, |b| b.data[o]));
                for t in 0..ci * kd * kh {
                    let (c, dz, dy) = (t / (kd * kh), t / kh % kd, t % kh);
                    let Some(iz) = tap(z * stride, dz, kd / 2, d) else { continue };
                    let Some(iy) = tap(y, dy, kh / 2, h) else { continue };
                    let from = (((bi * ci + c) * d + iz) * h + iy) * w;
                    for (dx, k) in weight.row(o * ci * kd * kh + t).iter().enumerate() {
                        for (xo, out) in row.iter_mut().enumerate() {
                            if let Some(ix) = tap(xo, dx, kw / 2, w) {
                                *out += k * x.data[from + ix];
                            }
                        }
                    }
                }
            }
        }
    }
    out
}

/// The norm `name` over x `[B, C, D, H, W]`; each has weight and bias `[C]`.
fn norm(kind: &str, w: &Weights, name: &str, mut x: Array) -> Array {
    let (b, c) = (x.shape[0], x.shape[1]);
    let n = x.data.len() / (b * c);
    let p = |leaf: &str| get(w, &format!("{name}.{leaf}"));
    match kind {
        "none" => {}
        // per channel, with the stored statistics
        "batch" => {
            for bc in 0..b * c {
                let k = bc % c;
                let s = p("weight").data[k] / (p("running_var").data[k] + EPS).sqrt();
                let (mean, bias) = (p("running_mean").data[k], p("bias").data[k]);
                x.data[bc * n..][..n].iter_mut().for_each(|v| *v = (*v - mean) * s + bias);
            }
        }
        // per sample and group of adjacent channels, with their own (biased) statistics
        "group" => {
            assert_eq!(c % GROUPS, 0);
            let m = c / GROUPS * n;
            for (g, group) in x.data.chunks_mut(m).enumerate() {
                let (mean, var) = mean_var(group);
                for (i, v) in group.iter_mut().enumerate() {
                    let k = g % GROUPS * (c / GROUPS) + i / n;
                    *v = (*v - mean) / (var + EPS).sqrt() * p("weight").data[k] + p("bias").data[k];
                }
            }
        }
        k => panic!("adapter.norm {k}"),
    }
    x
}
