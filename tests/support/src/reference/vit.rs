//! M3D-CLIP's 3-D ViT (model.md, "Vision"; MONAI's `PatchEmbeddingBlock` and `TransformerBlock`).

use super::math::{add, dot, gelu, layer_norm, linear, map, softmax};
use super::{Array, VitConfig, Weights, get};

/// LayerNorm's eps.
const EPS: f64 = 1e-5;

/// The tower's stages; N patches, C = hidden.
pub struct VitStages {
    /// `[B, N, C]`: embedded patches plus position embeddings, without CLS.
    pub patch_tokens: Array,
    /// `[B, 1+N, C]`: after the first block.
    pub block0: Array,
    /// `[B, 1+N, C]`: after the final norm; row 0 is CLS.
    pub tokens: Array,
    /// `[B, C]`: by `vision.pool`.
    pub pooled: Array,
}

/// x `[B, D, H, W]`, the adapter's output; it may be of another size than `vision.img`.
pub fn forward(cfg: &VitConfig, w: &Weights, x: &Array) -> VitStages {
    let samples: Vec<VitStages> = (0..x.shape[0]).map(|b| one(cfg, w, &x.at(b))).collect();
    let stack = |f: fn(&VitStages) -> &Array| Array::stack(&samples.iter().map(|s| f(s).clone()).collect::<Vec<_>>());
    VitStages {
        patch_tokens: stack(|s| &s.patch_tokens),
        block0: stack(|s| &s.block0),
        tokens: stack(|s| &s.tokens),
        pooled: stack(|s| &s.pooled),
    }
}

/// One sample: x `[D, H, W]`; the stages lack the batch axis.
fn one(cfg: &VitConfig, w: &Weights, x: &Array) -> VitStages {
    let p = |name: &str| get(w, name);
    let patches = patch_vectors(x, cfg.patch);
    let embedding = "patch_embedding.patch_embeddings.1";
    let t = linear(&patches, p(&format!("{embedding}.weight")), Some(p(&format!("{embedding}.bias"))));
    let run: [usize; 3] = std::array::from_fn(|a| x.shape[a] / cfg.patch[a]);
    let patch_tokens = add(&t, &position_embeddings(cfg, w, run));

    // CLS goes in front only now, and so has no position embedding
    let mut data = p("cls_token").data.clone();
    data.extend(&patch_tokens.data);
    let mut t = Array::new(&[1 + patch_tokens.shape[0], cfg.hidden], data);
    let mut block0 = None;
    for n in 0..cfg.layers {
        t = block(cfg, w, n, &t);
        block0.get_or_insert_with(|| t.clone());
    }
    let tokens = layer_norm(&t, p("norm.weight"), p("norm.bias"), EPS);
    let pooled = match cfg.pool.as_str() {
        "cls" => tokens.row(0).to_vec(),
        "mean" => {
            let n = tokens.shape[0] - 1;
            (0..cfg.hidden).map(|c| (1..=n).map(|i| tokens.row(i)[c]).sum::<f64>() / n as f64).collect()
        }
        k => panic!("vision.pool {k}"),
    };
    VitStages { patch_tokens, block0: block0.unwrap(), tokens, pooled: Array::new(&[cfg.hidden], pooled) }
}

/// x `[D, H, W]` → `[N, p1·p2·p3]`: tokens in `(h w d)` order of the three axes, the first slowest; a patch's voxels
/// `(p1 p2 p3 c)` with one channel. MONAI: `b c (h p1) (w p2) (d p3) -> b (h w d) (p1 p2 p3 c)`.
fn patch_vectors(x: &Array, patch: [usize; 3]) -> Array {
    let [d, h, w] = x.shape[..] else { panic!("{:?}", x.shape) };
    let [p1, p2, p3] = patch;
    assert!(d % p1 == 0 && h % p2 == 0 && w % p3 == 0, "{:?} by {patch:?}", x.shape);
    let mut out = Vec::with_capacity(x.data.len());
    for (g1, g2, g3) in cells([d / p1, h / p2, w / p3]) {
        for (i1, i2, i3) in cells(patch) {
            out.push(x.data[((g1 * p1 + i1) * h + g2 * p2 + i2) * w + g3 * p3 + i3]);
        }
    }
    Array::new(&[d / p1 * (h / p2) * (w / p3), p1 * p2 * p3], out)
}

/// All index triples of a box, the last index fastest.
fn cells(n: [usize; 3]) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..n[0]).flat_map(move |a| (0..n[1]).flat_map(move |b| (0..n[2]).map(move |c| (a, b, c))))
}

/// `[N, C]` for the grid the tower runs at: the stored `[1, N₀, C]` of grid img/patch, resampled trilinearly with
/// `align_corners=False` when the grids differ (`torch.nn.functional.interpolate`, size given).
pub fn position_embeddings(cfg: &VitConfig, w: &Weights, run: [usize; 3]) -> Array {
    let stored: [usize; 3] = std::array::from_fn(|a| cfg.img[a] / cfg.patch[a]);
    let p = get(w, "patch_embedding.position_embeddings");
    let c = cfg.hidden;
    assert_eq!(p.shape, [1, stored.iter().product(), c], "position embeddings for grid {stored:?}");
    let mut out = Vec::new();
    for (a, b, d) in cells(run) {
        let at = [a, b, d];
        let s: [(usize, usize, f64); 3] = std::array::from_fn(|x| sample(at[x], stored[x], run[x]));
        let mut sum = vec![0.0; c];
        for (ca, cb, cd) in cells([2, 2, 2]) {
            let pick =
                |(lo, hi, f): (usize, usize, f64), upper: usize| if upper == 1 { (hi, f) } else { (lo, 1.0 - f) };
            let ((i, fi), (j, fj), (k, fk)) = (pick(s[0], ca), pick(s[1], cb), pick(s[2], cd));
            let row = p.row((i * stored[1] + j) * stored[2] + k);
            sum.iter_mut().zip(row).for_each(|(s, v)| *s += fi * fj * fk * v);
        }
        out.extend(sum);
    }
    Array::new(&[run.iter().product(), c], out)
}

/// Where output index `i` of `n_out` lies among `n_in` inputs: the two neighbours and the weight of the upper one.
/// Pixel centres correspond (`(i + ½)·n_in/n_out − ½`); beyond the outer centres the border value holds.
fn sample(i: usize, n_in: usize, n_out: usize) -> (usize, usize, f64) {
    let x = ((i as f64 + 0.5) * n_in as f64 / n_out as f64 - 0.5).max(0.0);
    let lo = (x.floor() as usize).min(n_in - 1);
    (lo, (lo + 1).min(n_in - 1), x - lo as f64)
}

/// Pre-norm block `n` on t `[T, C]`: `t += attn(norm1 t); t += mlp(norm2 t)`.
fn block(cfg: &VitConfig, w: &Weights, n: usize, t: &Array) -> Array {
    let p = |leaf: &str| get(w, &format!("blocks.{n}.{leaf}"));
    let a =
        attention(cfg, &linear(&layer_norm(t, p("norm1.weight"), p("norm1.bias"), EPS), p("attn.qkv.weight"), None));
    let t = add(t, &linear(&a, p("attn.out_proj.weight"), Some(p("attn.out_proj.bias"))));
    let u = layer_norm(&t, p("norm2.weight"), p("norm2.bias"), EPS);
    let u = map(&linear(&u, p("mlp.linear1.weight"), Some(p("mlp.linear1.bias"))), gelu);
    assert_eq!(u.shape[1], cfg.mlp);
    add(&t, &linear(&u, p("mlp.linear2.weight"), Some(p("mlp.linear2.bias"))))
}

/// Full softmax attention on qkv `[T, 3C]`; columns are q, k, v, each heads × C/heads. Gives `[T, C]`.
fn attention(cfg: &VitConfig, qkv: &Array) -> Array {
    let (tokens, c, hd) = (qkv.shape[0], cfg.hidden, cfg.hidden / cfg.heads);
    let mut out = Array::zeros(&[tokens, c]);
    let part = |i: usize, which: usize, head: usize| &qkv.row(i)[which * c + head * hd..][..hd];
    for head in 0..cfg.heads {
        for i in 0..tokens {
            let mut a: Vec<f64> =
                (0..tokens).map(|j| dot(part(i, 0, head), part(j, 1, head)) / (hd as f64).sqrt()).collect();
            softmax(&mut a);
            for (j, a) in a.iter().enumerate() {
                for (k, v) in part(j, 2, head).iter().enumerate() {
                    out.data[i * c + head * hd + k] += a * v;
                }
            }
        }
    }
    out
}
