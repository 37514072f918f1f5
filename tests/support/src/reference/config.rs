//! What the two config files say (model.md, "config.json" and "Text").

use serde_json::Value;

/// `adapter.*`.
#[derive(Clone, Debug)]
pub struct AdapterConfig {
    /// "bottleneck2d" or "bottleneck3d".
    pub kind: String,
    /// "batch", "group" or "none".
    pub norm: String,
    /// Slices in; `volume.size`.
    pub d_in: usize,
    /// Slices out; the ViT's depth.
    pub d_out: usize,
    /// Channels of the 3-D kind.
    pub width: usize,
}

/// `vision.*`.
#[derive(Clone, Debug)]
pub struct VitConfig {
    /// The size the position embeddings are for.
    pub img: [usize; 3],
    /// p1, p2, p3.
    pub patch: [usize; 3],
    /// Token width.
    pub hidden: usize,
    /// MLP width.
    pub mlp: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Attention heads; each has hidden / heads channels.
    pub heads: usize,
    /// "cls" or "mean".
    pub pool: String,
}

/// A LLaMA checkpoint's own `config.json`.
#[derive(Clone, Debug)]
pub struct LlamaConfig {
    /// Rows of the embedding.
    pub vocab: usize,
    /// Token width.
    pub hidden: usize,
    /// MLP width.
    pub mlp: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels of one head; even.
    pub head_dim: usize,
    /// RMSNorm's eps.
    pub eps: f64,
    /// Base of the rotary frequencies.
    pub theta: f64,
}

/// A whole number at a JSON pointer, or its default.
fn number(v: &Value, pointer: &str, default: usize) -> usize {
    v.pointer(pointer).filter(|x| !x.is_null()).map_or(default, |x| x.as_u64().unwrap() as usize)
}

/// A string at a JSON pointer, or its default.
fn text(v: &Value, pointer: &str, default: &str) -> String {
    v.pointer(pointer).map_or(default, |x| x.as_str().unwrap()).to_owned()
}

/// Three whole numbers at a JSON pointer, or their default.
fn triple(v: &Value, pointer: &str, default: [usize; 3]) -> [usize; 3] {
    v.pointer(pointer).map_or(default, |_| std::array::from_fn(|i| number(v, &format!("{pointer}/{i}"), 0)))
}

/// `text.pool`: "mean" or "last".
pub fn text_pool(config: &Value) -> String {
    text(config, "/text/pool", "mean")
}

impl AdapterConfig {
    /// From the model's config.json; an absent field takes the default of model.md.
    pub fn from_json(v: &Value) -> Self {
        Self {
            kind: text(v, "/adapter/kind", "bottleneck2d"),
            norm: text(v, "/adapter/norm", "batch"),
            d_in: number(v, "/adapter/in", 256),
            d_out: number(v, "/adapter/out", 64),
            width: number(v, "/adapter/width", 8),
        }
    }
}

impl VitConfig {
    /// From the model's config.json; an absent field takes the default of model.md.
    pub fn from_json(v: &Value) -> Self {
        Self {
            img: triple(v, "/vision/img", [32, 256, 256]),
            patch: triple(v, "/vision/patch", [4, 16, 16]),
            hidden: number(v, "/vision/hidden", 768),
            mlp: number(v, "/vision/mlp", 3072),
            layers: number(v, "/vision/layers", 12),
            heads: number(v, "/vision/heads", 12),
            pool: text(v, "/vision/pool", "cls"),
        }
    }
}

impl LlamaConfig {
    /// From an HF config.json, in the style of transformers 4 (`rope_theta`) or 5 (`rope_parameters.rope_theta`).
    pub fn from_json(v: &Value) -> Self {
        let (hidden, heads) = (number(v, "/hidden_size", 0), number(v, "/num_attention_heads", 0));
        let theta = v.get("rope_theta").or_else(|| v.pointer("/rope_parameters/rope_theta"));
        Self {
            vocab: number(v, "/vocab_size", 0),
            hidden,
            mlp: number(v, "/intermediate_size", 0),
            layers: number(v, "/num_hidden_layers", 0),
            heads,
            kv_heads: number(v, "/num_key_value_heads", heads),
            head_dim: number(v, "/head_dim", hidden / heads),
            eps: v["rms_norm_eps"].as_f64().unwrap(),
            theta: theta.map_or(1e4, |t| t.as_f64().unwrap()),
        }
    }
}
