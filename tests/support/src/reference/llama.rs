//! LLaMA 2's hidden states as HF's `LlamaModel` gives them (model.md, "Text").

use super::math::{add, dot, linear, map, rms_norm, silu, softmax};
use super::{Array, LlamaConfig, Weights, get};

/// Hidden states after the final norm, `[B, T, hidden]`; rows of padding are 0.
///
/// ids and mask are `[B][T]`, right-padded: mask is 1 on a sample's tokens and 0 behind them. Names have HF's `model.`.
pub fn forward(cfg: &LlamaConfig, w: &Weights, ids: &[Vec<i64>], mask: &[Vec<i64>]) -> Array {
    Array::stack(&ids.iter().zip(mask).map(|(i, m)| one(cfg, w, i, m)).collect::<Vec<_>>())
}

/// One sample: `[T, hidden]`.
fn one(cfg: &LlamaConfig, w: &Weights, ids: &[i64], mask: &[i64]) -> Array {
    let embed = get(w, "model.embed_tokens.weight");
    assert_eq!(embed.shape, [cfg.vocab, cfg.hidden]);
    let data = ids.iter().flat_map(|&i| embed.row(usize::try_from(i).unwrap()).iter().copied()).collect();
    let mut x = Array::new(&[ids.len(), cfg.hidden], data);
    for n in 0..cfg.layers {
        x = layer(cfg, w, n, &x, mask);
    }
    let mut x = rms_norm(&x, get(w, "model.norm.weight"), cfg.eps);
    for (row, &m) in x.data.chunks_mut(cfg.hidden).zip(mask) {
        row.iter_mut().for_each(|v| *v *= m as f64);
    }
    x
}

/// What layer `n`'s MLP reads (after its norm), `[T, hidden]`.
pub fn mlp_input(cfg: &LlamaConfig, w: &Weights, ids: &[i64], n: usize) -> Array {
    let embed = get(w, "model.embed_tokens.weight");
    let data = ids.iter().flat_map(|&i| embed.row(usize::try_from(i).unwrap()).iter().copied()).collect();
    let (mut x, mask) = (Array::new(&[ids.len(), cfg.hidden], data), vec![1; ids.len()]);
    for i in 0..n {
        x = layer(cfg, w, i, &x, &mask);
    }
    let x = attend(cfg, w, n, &x, &mask);
    rms_norm(&x, get(w, &format!("model.layers.{n}.post_attention_layernorm.weight")), cfg.eps)
}

/// The first half of decoder layer `n`: x with its attention added.
fn attend(cfg: &LlamaConfig, w: &Weights, n: usize, x: &Array, mask: &[i64]) -> Array {
    let p = |leaf: &str| get(w, &format!("model.layers.{n}.{leaf}.weight"));
    let h = rms_norm(x, p("input_layernorm"), cfg.eps);
    let mut q = linear(&h, p("self_attn.q_proj"), None);
    let mut k = linear(&h, p("self_attn.k_proj"), None);
    let v = linear(&h, p("self_attn.v_proj"), None);
    rotate(cfg, &mut q);
    rotate(cfg, &mut k);
    add(x, &linear(&attention(cfg, &q, &k, &v, mask), p("self_attn.o_proj"), None))
}

/// Decoder layer `n` on x `[T, hidden]`.
fn layer(cfg: &LlamaConfig, w: &Weights, n: usize, x: &Array, mask: &[i64]) -> Array {
    let p = |leaf: &str| get(w, &format!("model.layers.{n}.{leaf}.weight"));
    let x = attend(cfg, w, n, x, mask);
    let h = rms_norm(&x, p("post_attention_layernorm"), cfg.eps);
    let gate = map(&linear(&h, p("mlp.gate_proj"), None), silu);
    let up = linear(&h, p("mlp.up_proj"), None);
    assert_eq!(up.shape[1], cfg.mlp);
    let inner = Array::new(&up.shape, gate.data.iter().zip(&up.data).map(|(a, b)| a * b).collect());
    add(&x, &linear(&inner, p("mlp.down_proj"), None))
}

/// Rotary embedding in place on `[T, heads·head_dim]`, HF's half-split form: in each head, channel i is paired with
/// channel i + head_dim/2 and the pair is turned by position · theta^(−2i/head_dim). Positions count from 0.
fn rotate(cfg: &LlamaConfig, x: &mut Array) {
    let (d, half) = (cfg.head_dim, cfg.head_dim / 2);
    let heads = x.shape[1] / d;
    for (r, head) in x.data.chunks_mut(d).enumerate() {
        let position = r / heads;
        for i in 0..half {
            let angle = position as f64 * cfg.theta.powf(-2.0 * i as f64 / d as f64);
            let (a, b) = (head[i], head[i + half]);
            head[i] = a * angle.cos() - b * angle.sin();
            head[i + half] = b * angle.cos() + a * angle.sin();
        }
    }
}

/// Causal attention that never looks at padding: q `[T, heads·d]`, k and v `[T, kv_heads·d]` → `[T, heads·d]`.
/// Query head h reads KV head h / (heads / kv_heads) (HF's `repeat_kv`).
fn attention(cfg: &LlamaConfig, q: &Array, k: &Array, v: &Array, mask: &[i64]) -> Array {
    let (d, tokens) = (cfg.head_dim, mask.len());
    assert_eq!((q.shape[1], k.shape[1]), (cfg.heads * d, cfg.kv_heads * d));
    let mut out = Array::zeros(&[tokens, cfg.heads * d]);
    for head in 0..cfg.heads {
        let kv = head / (cfg.heads / cfg.kv_heads);
        for i in 0..tokens {
            let score = |j: usize| dot(&q.row(i)[head * d..][..d], &k.row(j)[kv * d..][..d]) / (d as f64).sqrt();
            let mut a: Vec<f64> = (0..=i).map(|j| if mask[j] == 1 { score(j) } else { f64::NEG_INFINITY }).collect();
            softmax(&mut a);
            for (j, a) in a.iter().enumerate() {
                for c in 0..d {
                    out.data[(i * cfg.heads + head) * d + c] += a * v.row(j)[kv * d + c];
                }
            }
        }
    }
    out
}

/// hidden `[B, T, E]` → `[B, E]`: "mean" over each sample's tokens, or its "last" token.
pub fn pool(kind: &str, hidden: &Array, mask: &[Vec<i64>]) -> Array {
    let (t, e) = (hidden.shape[1], hidden.shape[2]);
    let mut out = Vec::new();
    for (b, m) in mask.iter().enumerate() {
        let n = m.iter().filter(|&&x| x == 1).count();
        assert!(n > 0 && m[..n].iter().all(|&x| x == 1), "right padding");
        let rows = match kind {
            "mean" => 0..n,
            "last" => n - 1..n,
            k => panic!("text.pool {k}"),
        };
        let count = rows.len() as f64;
        out.extend((0..e).map(|c| rows.clone().map(|r| hidden.row(b * t + r)[c]).sum::<f64>() / count));
    }
    Array::new(&[mask.len(), e], out)
}
