//! Random valid models with inputs, for property tests; the same seed gives the same case everywhere.

use std::collections::BTreeMap;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::math::mean_var;
use super::weights::{self, Random};
use super::{AdapterConfig, Array, LlamaConfig, VitConfig, Weights, adapter, forward_all};

/// What the model is given; B samples.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// `[B, S, S, S]` in model order (D, H, W), in [0, 1], exact in `f32`.
    pub volume: Array,
    /// `[B][T]`, BOS (1) first; behind a sample's tokens any ids at all.
    pub input_ids: Vec<Vec<i64>>,
    /// `[B][T]`: 1 on a sample's tokens, 0 behind them (right padding).
    pub attention_mask: Vec<Vec<i64>>,
}

/// How [`super::write::write_case`] lays the checkpoints out (model.md: prefixes and keys met in the wild).
#[derive(Clone, Debug)]
pub struct Layout {
    /// "", "vision_encoder." or "model.vision_tower.vision_tower.".
    pub vision_prefix: &'static str,
    /// Keys that belong to M3D's other parts stand next to the ViT's (never without a prefix).
    pub vision_foreign: bool,
    /// `blocks.N.norm_cross_attn.*` as MONAI ≥ 1.4 saves it.
    pub vision_norm_cross_attn: bool,
    /// HF's `model.` before LLaMA's names; without it the file is a bare `LlamaModel`.
    pub llama_prefix: bool,
    /// An `lm_head.weight` (only with the prefix).
    pub llama_lm_head: bool,
    /// `rotary_emb.inv_freq` in every layer.
    pub llama_inv_freq: bool,
    /// Number of LLaMA files; above 1 with an index.
    pub llama_shards: usize,
    /// What LLaMA is stored as: F32, F16 or BF16.
    pub llama_dtype: Dtype,
}

/// A random model.
#[derive(Clone, Debug)]
pub struct Case {
    /// Where it came from.
    pub seed: u64,
    /// The model's config.json; fields at their default may be absent.
    pub config: Value,
    /// LLaMA's config.json, in the style of transformers 4 or 5.
    pub llama_config: Value,
    /// Adapter, projections, classifiers and logit_scale: `adapter.safetensors`.
    pub heads: Weights,
    /// The ViT, names without a prefix.
    pub vit: Weights,
    /// LLaMA, HF names with `model.`.
    pub llama: Weights,
    /// How to write it.
    pub layout: Layout,
    /// What to run it on.
    pub inputs: Inputs,
}

impl Case {
    /// Every stage by name; see [`forward_all`].
    pub fn forward(&self) -> BTreeMap<String, Array> {
        forward_all(&self.config, &self.llama_config, &self.heads, &self.vit, &self.llama, &self.inputs)
    }
}

/// A random case; sizes are such that [`Case::forward`] takes some tens of milliseconds.
pub fn random_case(seed: u64) -> Case {
    let rng = &mut Random::new(seed);
    let size = rng.pick(&[6, 8, 9, 10, 12, 15, 16, 18, 20, 24]);
    let acfg = adapter_config(rng, size);
    let vcfg = vit_config(rng, &acfg);
    let lcfg = llama_config(rng);
    let projection = rng.int(3, 48);
    let image_classifier = rng.chance(0.7);
    let layout = layout(rng);
    let text_pool = rng.pick(&["mean", "last"]);
    let inputs = inputs(rng, size, lcfg.vocab);
    // redrawn until the adapter's ReLUs let the volume through: a constant would hide all before it
    let heads = loop {
        let w = weights::heads(rng, &acfg, vcfg.hidden, lcfg.hidden, projection, image_classifier);
        let (_, variance) = mean_var(&adapter::forward(&acfg, &w, &inputs.volume.head(1)).data);
        if variance > 0.01 {
            break w;
        }
    };
    Case {
        seed,
        config: config_json(rng, size, &acfg, &vcfg, lcfg.hidden, text_pool, projection),
        llama_config: llama_json(rng, &lcfg, layout.llama_dtype),
        heads,
        vit: weights::vit(rng, &vcfg),
        llama: weights::llama(rng, &lcfg, layout.llama_dtype),
        layout,
        inputs,
    }
}

/// A small model around a language model of that size, in the plainest layout; the language model is stored as fp16.
pub fn case_around(seed: u64, l: &LlamaConfig) -> Case {
    let rng = &mut Random::new(seed);
    let a = AdapterConfig { kind: "bottleneck2d".into(), norm: "batch".into(), d_in: 16, d_out: 8, width: 8 };
    let (img, patch) = ([8, 16, 16], [4, 4, 4]);
    let v = VitConfig { img, patch, hidden: 64, mlp: 128, layers: 2, heads: 4, pool: "cls".into() };
    let layout = Layout {
        vision_prefix: "",
        vision_foreign: false,
        vision_norm_cross_attn: false,
        llama_prefix: true,
        llama_lm_head: false,
        llama_inv_freq: false,
        llama_shards: 1,
        llama_dtype: Dtype::F16,
    };
    Case {
        seed,
        config: config_json(rng, 16, &a, &v, l.hidden, "mean", 32),
        llama_config: llama_json(rng, l, Dtype::F16),
        heads: weights::heads(rng, &a, v.hidden, l.hidden, 32, true),
        vit: weights::vit(rng, &v),
        llama: weights::llama(rng, l, Dtype::F16),
        layout,
        inputs: inputs(rng, 16, l.vocab),
    }
}

/// The whole numbers that divide n.
fn divisors(n: usize) -> Vec<usize> {
    (1..=n).filter(|&d| n.is_multiple_of(d)).collect()
}

/// Group norm needs channels in eights; the 3-D kind a depth that divides the size, and little work.
fn adapter_config(rng: &mut Random, size: usize) -> AdapterConfig {
    let norm = rng.pick(&["batch", "group", "none"]);
    let mut width = 8;
    let (kind, d_out) = if rng.chance(0.5) {
        ("bottleneck2d", if norm == "group" { rng.pick(&[8, 16]) } else { rng.int(1, 12) })
    } else {
        width = if norm == "group" { 8 } else { rng.pick(&[1, 2, 3, 5, 8]) };
        let depths: Vec<usize> =
            divisors(size).into_iter().filter(|d| d * size * size * width * width <= 80_000).collect();
        ("bottleneck3d", rng.pick(&depths))
    };
    AdapterConfig { kind: kind.into(), norm: norm.into(), d_in: size, d_out, width }
}

/// A patch with sides as different as they come, at most 64 patches; and an `img` that makes the position embeddings
/// be resampled up, down, in depth alone (as M3D's are) or not at all.
fn vit_config(rng: &mut Random, a: &AdapterConfig) -> VitConfig {
    let run = [a.d_out, a.d_in, a.d_in];
    let mut best = (0, run);
    for _ in 0..40 {
        let p: [usize; 3] = std::array::from_fn(|i| rng.pick(&divisors(run[i])));
        let grid: [usize; 3] = std::array::from_fn(|i| run[i] / p[i]);
        let patches: usize = grid.iter().product();
        if !(2..=64).contains(&patches) || p.iter().product::<usize>() > 1000 {
            continue;
        }
        let differ = |v: [usize; 3]| usize::from(v[0] != v[1]) + usize::from(v[1] != v[2]) + usize::from(v[0] != v[2]);
        let score = 1 + differ(p) + usize::from(differ(grid) > 1) + usize::from(grid.iter().all(|&g| g > 1));
        if score > best.0 {
            best = (score, p);
        }
    }
    let patch = best.1;
    let grid: [usize; 3] = std::array::from_fn(|i| run[i] / patch[i]);
    let resampled = rng.pick(&[[false; 3], [true, false, false], [true; 3]]);
    let img = std::array::from_fn(|i| patch[i] * if resampled[i] { rng.int(1, 6) } else { grid[i] });
    let heads = rng.int(1, 4);
    let hidden = heads * rng.int(8_usize.div_ceil(heads), 40 / heads);
    let (mlp, layers) = (rng.int(5, 90), rng.int(1, 3));
    VitConfig { img, patch, hidden, mlp, layers, heads, pool: rng.pick(&["cls", "mean"]).into() }
}

/// Equal heads, grouped heads (2 or 4 queries to one KV head) and multi-query attention.
fn llama_config(rng: &mut Random) -> LlamaConfig {
    let ratio = rng.pick(&[1, 1, 2, 4]);
    let kv_heads = rng.int(1, if ratio == 4 { 2 } else { 3 });
    let heads = kv_heads * ratio;
    let head_dim = 2 * rng.int(2, 8);
    // hidden is heads × head_dim, or else still a multiple of the heads, as HF requires
    let hidden = if rng.chance(0.6) { heads * head_dim } else { heads * rng.int(8_usize.div_ceil(heads), 12) };
    LlamaConfig {
        vocab: rng.pick(&[512, 512, 515, 544]),
        hidden,
        mlp: rng.int(5, 90),
        layers: rng.int(1, 3),
        heads,
        kv_heads,
        head_dim,
        // The second is large enough to show in the output: activations are of order 1.
        eps: rng.pick(&[1e-5, 0.05]),
        theta: rng.pick(&[1e4, 1e4, 5e4, 5e5]),
    }
}

/// One of the layouts met in the wild.
fn layout(rng: &mut Random) -> Layout {
    let vision_prefix = rng.pick(&["", "vision_encoder.", "model.vision_tower.vision_tower."]);
    let llama_prefix = rng.chance(0.7);
    Layout {
        vision_prefix,
        vision_foreign: !vision_prefix.is_empty() && rng.chance(0.8),
        vision_norm_cross_attn: rng.chance(0.4),
        llama_prefix,
        llama_lm_head: llama_prefix && rng.chance(0.7),
        llama_inv_freq: rng.chance(0.3),
        llama_shards: rng.pick(&[1, 1, 2, 3]),
        llama_dtype: rng.pick(&[Dtype::F32, Dtype::F16, Dtype::BF16]),
    }
}

/// config.json; each field that equals its default is left out now and then.
fn config_json(
    rng: &mut Random,
    size: usize,
    a: &AdapterConfig,
    v: &VitConfig,
    text_hidden: usize,
    text_pool: &str,
    projection: usize,
) -> Value {
    let mut c = json!({
        "volume": { "size": size, "voxel_mm": 256.0 / size as f64, "clip": null },
        "adapter": { "kind": a.kind, "norm": a.norm, "in": a.d_in, "out": a.d_out, "width": a.width },
        "vision": { "img": v.img, "patch": v.patch, "hidden": v.hidden, "mlp": v.mlp, "layers": v.layers,
                    "heads": v.heads, "pool": v.pool },
        "text": { "hidden": text_hidden, "pool": text_pool, "max_tokens": 512 },
        "projection": { "dim": projection },
        "labels": ["CN", "MCI", "AD"],
        "train": { "contrastive_weight": 1.0 }
    });
    let defaults = [
        ("volume", "clip", json!(null)),
        ("adapter", "kind", json!("bottleneck2d")),
        ("adapter", "norm", json!("batch")),
        ("adapter", "width", json!(8)),
        ("vision", "pool", json!("cls")),
        ("text", "pool", json!("mean")),
        ("text", "max_tokens", json!(512)),
    ];
    for (section, field, default) in defaults {
        if c[section][field] == default && rng.chance(0.3) {
            c[section].as_object_mut().unwrap().shift_remove(field);
        }
    }
    for section in ["labels", "train"] {
        if rng.chance(0.2) {
            c.as_object_mut().unwrap().shift_remove(section);
        }
    }
    c
}

/// LLaMA's config.json in one of two styles: transformers 4 (`rope_theta`, absent at 1e4 in the oldest files,
/// `torch_dtype`) or 5 (`rope_parameters`, `dtype`). `head_dim` is given where it must be and sometimes where not.
fn llama_json(rng: &mut Random, l: &LlamaConfig, dtype: Dtype) -> Value {
    let mut c = json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": l.hidden, "initializer_range": 0.02, "intermediate_size": l.mlp,
        "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": l.heads,
        "num_hidden_layers": l.layers, "num_key_value_heads": l.kv_heads, "pretraining_tp": 1,
        "rms_norm_eps": l.eps, "tie_word_embeddings": false, "use_cache": true, "vocab_size": l.vocab,
    });
    let m = c.as_object_mut().unwrap();
    let dtype = match dtype {
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        _ => "float32",
    };
    let mut put = |k: &str, v: Value| m.insert(k.to_owned(), v);
    if l.head_dim * l.heads != l.hidden || rng.chance(0.3) {
        put("head_dim", json!(l.head_dim));
    }
    if rng.chance(0.5) {
        put("torch_dtype", json!(dtype));
        put("rope_scaling", json!(null));
        put("transformers_version", json!("4.31.0"));
        if l.theta != 1e4 || rng.chance(0.6) {
            put("rope_theta", json!(l.theta));
        }
    } else {
        put("dtype", json!(dtype));
        put("rope_parameters", json!({ "rope_theta": l.theta, "rope_type": "default" }));
        put("transformers_version", json!("5.0.0"));
    }
    if l.kv_heads == l.heads && rng.chance(0.3) {
        m.shift_remove("num_key_value_heads");
    }
    c
}

/// 1 to 3 samples, texts of 1 to 40 tokens, sometimes with padding behind the longest too.
fn inputs(rng: &mut Random, size: usize, vocab: usize) -> Inputs {
    let b = rng.int(1, 3);
    let n = b * size * size * size;
    let volume = (0..n).map(|_| f64::from(rng.unit() as f32)).collect();
    let longest = rng.pick(&[1, 2, 8, 24, 40]);
    let lengths: Vec<usize> = (0..b).map(|_| rng.int(1, longest)).collect();
    let t = lengths.iter().max().unwrap() + if rng.chance(0.2) { 3 } else { 0 };
    let pad = rng.chance(0.5).then_some(0);
    let mut ids = Vec::new();
    for &n in &lengths {
        let mut row: Vec<i64> = (0..t).map(|_| rng.int(3, vocab - 1) as i64).collect();
        row[0] = 1;
        row[n..].iter_mut().for_each(|v| *v = pad.unwrap_or(*v));
        ids.push(row);
    }
    let mask = lengths.iter().map(|&n| (0..t).map(|i| i64::from(i < n)).collect()).collect();
    Inputs { volume: Array::new(&[b, size, size, size], volume), input_ids: ids, attention_mask: mask }
}
