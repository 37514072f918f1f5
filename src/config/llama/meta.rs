//! Meta's `params.json`, of LLaMA 1 to 3 and of Mistral.

use serde_json::Value;

use super::super::limits::{MAX_HEADS, MAX_LAYERS, MAX_WIDTH};
use super::fields;
use super::json::{flag, number, optional_size, size};
use super::kinds::Kind;
use super::size::{LlamaConfig, MAX_HEAD_DIM};
use super::variant::{RopeScaling, Variant, Window};
use crate::error::{Code, Error, Result};

/// Hidden size, layers, and the factor of the scaled frequencies of the models that Meta published: `params.json` of
/// LLaMA 3.1 to 3.3 does not say it. From transformers' conversion script (`convert_llama_weights_to_hf.py`).
const SCALED: [(usize, usize, f64); 5] =
    [(2048, 16, 32.0), (3072, 28, 32.0), (4096, 32, 8.0), (8192, 80, 8.0), (16_384, 126, 8.0)];

/// Maximum width of a window in tokens.
const MAX_WINDOW: usize = 1 << 24;

/// Fields that are read here, or that the shapes of the weights and the tokenizer say too.
const READ: [&str; 7] = [
    "ffn_dim_multiplier",
    "norm_eps",
    "use_scaled_rope",
    "rope_scaling_factor",
    "rope_theta",
    "sliding_window",
    "max_position_embeddings",
];

impl LlamaConfig {
    /// Reads Meta's `params.json`; the MLP's width and the vocabulary come from the shapes of the weights.
    ///
    /// # Errors
    /// `config.syntax`, `config.value` or `config.unsupported`, naming the field.
    pub fn from_meta(params: &Value, mlp: usize, vocab: usize) -> Result<Self> {
        let (hidden, heads) = (size(params, "dim", MAX_WIDTH, None)?, size(params, "n_heads", MAX_HEADS, None)?);
        if !hidden.is_multiple_of(heads) {
            let message = format!("dim {hidden} is not a multiple of {heads} heads");
            return Err(Error::new(Code::CONFIG_VALUE, message));
        }
        let head_dim = hidden / heads;
        if let Some(other) = optional_size(params, "head_dim", MAX_HEAD_DIM)?.filter(|dim| *dim != head_dim) {
            let message = format!("head_dim is {other}: of Meta's layout, dim / n_heads ({head_dim}) is read");
            return Err(Error::new(Code::CONFIG_UNSUPPORTED, message));
        }
        if let Some(fields) = params.as_object() {
            let others = fields.iter().filter(|(name, _)| !READ.contains(&name.as_str()));
            let others = others.map(|(name, value)| (name.clone(), value.clone())).collect();
            fields::check(&others, Kind::named("llama").expect("the first row"), None)?;
        }
        let layers = size(params, "n_layers", MAX_LAYERS, None)?;
        let window = optional_size(params, "sliding_window", MAX_WINDOW)?;
        let window = window.map(|tokens| Window { tokens, layers: (0..layers).collect() });
        let rope_scaling = scaling(params, hidden, layers)?;
        let config = Self {
            vocab,
            hidden,
            mlp,
            layers,
            heads,
            kv_heads: optional_size(params, "n_kv_heads", MAX_HEADS)?.unwrap_or(heads),
            head_dim,
            rms_eps: number(params, "norm_eps")?.unwrap_or(1e-5),
            rope_theta: number(params, "rope_theta")?.unwrap_or(1e4),
            max_positions: None,
            variant: Variant { window, rope_scaling, ..Variant::PLAIN },
        };
        config.validate()?;
        Ok(config)
    }
}

/// LLaMA 3.1's scaling, where it is asked for.
fn scaling(params: &Value, hidden: usize, layers: usize) -> Result<Option<RopeScaling>> {
    if !flag(params, "use_scaled_rope")?.unwrap_or(false) {
        return Ok(None);
    }
    let published = SCALED.iter().find(|(dim, n, _)| (*dim, *n) == (hidden, layers)).map(|(.., factor)| *factor);
    let Some(factor) = number(params, "rope_scaling_factor")?.or(published) else {
        let message = format!(
            "use_scaled_rope is true, and neither rope_scaling_factor nor the sizes (dim {hidden}, n_layers {layers}: no \
             model of Meta's) say by how much: write rope_scaling_factor, 8 for LLaMA 3.1 and 3.3, 32 for 3.2"
        );
        return Err(Error::new(Code::CONFIG_UNSUPPORTED, message));
    };
    Ok(Some(RopeScaling { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original: 8192 }))
}
