//! Random weights that hide nothing: every tensor away from 0 and 1, activations of order 1, and every value exactly
//! storable in the type it is written in. The rules are the fixtures' own (`randomize` in their `reference.py`).

use rand::{Rng as _, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::Dtype;

use super::files::round_to;
use super::{AdapterConfig, Array, LlamaConfig, VitConfig, Weights};

/// A seeded source of random choices; the same seed gives the same values on every machine.
pub struct Random(ChaCha8Rng);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A whole number in `lo..=hi`.
    pub fn int(&mut self, lo: usize, hi: usize) -> usize {
        lo + (self.0.next_u64() % (hi - lo + 1) as u64) as usize
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// One of the choices.
    pub fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.int(0, choices.len() - 1)].clone()
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        self.0.random::<f64>()
    }

    /// Standard normal (Box–Muller).
    pub fn normal(&mut self) -> f64 {
        let r = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        r * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// The value rule for a tensor by its name; `dtype` is what it will be stored as.
fn tensor(rng: &mut Random, name: &str, shape: &[usize], dtype: Dtype) -> Array {
    let n: usize = shape.iter().product();
    let fan = shape.iter().skip(1).product::<usize>().max(1) as f64;
    let mut value = || match name {
        _ if name.ends_with("num_batches_tracked") => rng.int(50, 499) as f64,
        _ if name.ends_with("running_var") => 0.4 + 1.2 * rng.unit(),
        _ if name.ends_with("running_mean") => 0.3 * rng.normal(),
        "logit_scale" => 2.3 + 0.1 * rng.unit(),
        _ if name.contains("norm") && name.ends_with("weight") => 1.0 + 0.3 * rng.normal(),
        _ if name.ends_with("bias") => 0.2 * rng.normal(),
        _ if name.contains("position_embeddings") || name.contains("cls_token") => 0.5 * rng.normal(),
        _ if name.contains("embed_tokens") => rng.normal(),
        _ => rng.normal() / fan.sqrt(),
    };
    Array::new(shape, (0..n).map(|_| round_to(dtype, value())).collect())
}

/// Fills tensors one after another.
fn fill(rng: &mut Random, dtype: Dtype, shapes: Vec<(String, Vec<usize>)>) -> Weights {
    shapes
        .into_iter()
        .map(|(n, s)| {
            let a = tensor(rng, &n, &s, dtype);
            (n, a)
        })
        .collect()
}

/// Everything trainable: adapter, projections (E = `text_hidden`, P = `projection`), classifiers, logit_scale.
pub fn heads(
    rng: &mut Random,
    cfg: &AdapterConfig,
    vision_hidden: usize,
    text_hidden: usize,
    projection: usize,
    image_classifier: bool,
) -> Weights {
    let three_d = cfg.kind == "bottleneck3d";
    let (c, first, spatial) = if three_d { (cfg.width, 1, vec![3, 3, 3]) } else { (cfg.d_out, cfg.d_in, vec![3, 3]) };
    let kernel = |o: usize, i: usize, k: &[usize]| [&[o, i], k].concat();
    let reduce: &[usize] = if three_d { &spatial } else { &[1, 1] };
    let mut out = Vec::new();
    for (conv, norm, shape) in [
        ("reduce.conv", "reduce.norm", kernel(c, first, reduce)),
        ("residual.conv1", "residual.norm1", kernel(c, c, &spatial)),
        ("residual.conv2", "residual.norm2", kernel(c, c, &spatial)),
    ] {
        out.push((format!("adapter.{conv}.weight"), shape));
        let leaves: &[&str] = match cfg.norm.as_str() {
            "batch" => &["weight", "bias", "running_mean", "running_var"],
            "group" => &["weight", "bias"],
            _ => &[],
        };
        out.extend(leaves.iter().map(|l| (format!("adapter.{norm}.{l}"), vec![c])));
        match cfg.norm.as_str() {
            "batch" => out.push((format!("adapter.{norm}.num_batches_tracked"), vec![])),
            "none" => out.push((format!("adapter.{conv}.bias"), vec![c])),
            _ => {}
        }
    }
    let mut linear = |name: &str, o: usize, i: &[usize]| {
        out.push((format!("{name}.weight"), [&[o], i].concat()));
        out.push((format!("{name}.bias"), vec![o]));
    };
    if three_d {
        linear("adapter.out", 1, &[c, 1, 1, 1]);
    }
    linear("vision_projection", projection, &[vision_hidden]);
    linear("text_projection", projection, &[text_hidden]);
    linear("classifier", 3, &[2 * projection]);
    if image_classifier {
        linear("image_classifier", 3, &[projection]);
    }
    out.push(("logit_scale".into(), vec![]));
    fill(rng, Dtype::F32, out)
}

/// The ViT, without a prefix.
pub fn vit(rng: &mut Random, cfg: &VitConfig) -> Weights {
    let (c, m) = (cfg.hidden, cfg.mlp);
    let grid: usize = (0..3).map(|a| cfg.img[a] / cfg.patch[a]).product();
    let embedding = "patch_embedding.patch_embeddings.1";
    let mut out = vec![
        (format!("{embedding}.weight"), vec![c, cfg.patch.iter().product()]),
        (format!("{embedding}.bias"), vec![c]),
        ("patch_embedding.position_embeddings".into(), vec![1, grid, c]),
        ("cls_token".into(), vec![1, 1, c]),
        ("norm.weight".into(), vec![c]),
        ("norm.bias".into(), vec![c]),
    ];
    for n in 0..cfg.layers {
        for (leaf, shape) in [
            ("norm1.weight", vec![c]),
            ("norm1.bias", vec![c]),
            ("attn.qkv.weight", vec![3 * c, c]),
            ("attn.out_proj.weight", vec![c, c]),
            ("attn.out_proj.bias", vec![c]),
            ("norm2.weight", vec![c]),
            ("norm2.bias", vec![c]),
            ("mlp.linear1.weight", vec![m, c]),
            ("mlp.linear1.bias", vec![m]),
            ("mlp.linear2.weight", vec![c, m]),
            ("mlp.linear2.bias", vec![c]),
        ] {
            out.push((format!("blocks.{n}.{leaf}"), shape));
        }
    }
    fill(rng, Dtype::F32, out)
}

/// LLaMA under HF's names with `model.`, every value storable in `dtype`.
pub fn llama(rng: &mut Random, cfg: &LlamaConfig, dtype: Dtype) -> Weights {
    let (e, q, kv) = (cfg.hidden, cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim);
    let mut out = vec![("model.embed_tokens.weight".into(), vec![cfg.vocab, e]), ("model.norm.weight".into(), vec![e])];
    for n in 0..cfg.layers {
        for (leaf, shape) in [
            ("input_layernorm", vec![e]),
            ("self_attn.q_proj", vec![q, e]),
            ("self_attn.k_proj", vec![kv, e]),
            ("self_attn.v_proj", vec![kv, e]),
            ("self_attn.o_proj", vec![e, q]),
            ("post_attention_layernorm", vec![e]),
            ("mlp.gate_proj", vec![cfg.mlp, e]),
            ("mlp.up_proj", vec![cfg.mlp, e]),
            ("mlp.down_proj", vec![e, cfg.mlp]),
        ] {
            out.push((format!("model.layers.{n}.{leaf}.weight"), shape));
        }
    }
    fill(rng, dtype, out)
}
