//! The language model's own configuration: Hugging Face's `config.json` or Meta's `params.json`.

use serde_json::Value;

use super::limits::{MAX_HEADS, MAX_LAYERS, MAX_MLP, MAX_WIDTH};
use crate::error::{Code, Error, Result};

/// Maximum number of rows of the embedding table: four times the largest published.
const MAX_VOCAB: usize = 1 << 20;
/// Maximum width of one head.
const MAX_HEAD_DIM: usize = 4096;
/// Maximum number of positions.
const MAX_POSITIONS: usize = 1 << 24;

/// Sizes and constants of a LLaMA checkpoint.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LlamaConfig {
    /// Rows of the embedding table.
    pub vocab: usize,
    /// Width of a hidden state.
    pub hidden: usize,
    /// Width of the MLP's inner layer.
    pub mlp: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// RMSNorm's epsilon.
    pub rms_eps: f64,
    /// Base of the rotary embedding's wavelengths.
    pub rope_theta: f64,
    /// Number of positions that the model was trained for, where its configuration says so; absent from bundles made
    /// before it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_positions: Option<usize>,
}

impl LlamaConfig {
    /// Reads Hugging Face's `config.json` (transformers 4 and 5).
    ///
    /// # Errors
    /// `config.syntax` or `config.value`, naming the field.
    pub fn from_hf(json: &Value) -> Result<Self> {
        let activation = json.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
        if activation != "silu" {
            return Err(Error::new(Code::CONFIG_VALUE, format!("hidden_act is \"{activation}\", expected \"silu\"")));
        }
        for field in ["attention_bias", "mlp_bias"] {
            if json.get(field).and_then(Value::as_bool) == Some(true) {
                return Err(Error::new(Code::CONFIG_VALUE, format!("{field} is true: LLaMA 2 has no such biases")));
            }
        }
        let rope = rope_parameters(json)?;
        let heads = size(json, "num_attention_heads", MAX_HEADS)?;
        let hidden = size(json, "hidden_size", MAX_WIDTH)?;
        let config = Self {
            vocab: size(json, "vocab_size", MAX_VOCAB)?,
            hidden,
            mlp: size(json, "intermediate_size", MAX_MLP)?,
            layers: size(json, "num_hidden_layers", MAX_LAYERS)?,
            heads,
            kv_heads: optional_size(json, "num_key_value_heads", MAX_HEADS)?.unwrap_or(heads),
            head_dim: match optional_size(json, "head_dim", MAX_HEAD_DIM)? {
                Some(dim) => dim,
                None => divide("hidden_size", hidden, heads)?,
            },
            rms_eps: number(json, "rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta: rope.unwrap_or(1e4),
            max_positions: optional_size(json, "max_position_embeddings", MAX_POSITIONS)?,
        };
        config.validate()?;
        Ok(config)
    }

    /// Reads Meta's `params.json`; the MLP's width and the vocabulary come from the shapes of the weights.
    ///
    /// # Errors
    /// `config.syntax` or `config.value`, naming the field.
    pub fn from_meta(params: &Value, mlp: usize, vocab: usize) -> Result<Self> {
        if params.get("use_scaled_rope").and_then(Value::as_bool) == Some(true) {
            return Err(Error::new(Code::CONFIG_VALUE, "use_scaled_rope is true: LLaMA 2 has plain rotary embeddings"));
        }
        let (hidden, heads) = (size(params, "dim", MAX_WIDTH)?, size(params, "n_heads", MAX_HEADS)?);
        let config = Self {
            vocab,
            hidden,
            mlp,
            layers: size(params, "n_layers", MAX_LAYERS)?,
            heads,
            kv_heads: optional_size(params, "n_kv_heads", MAX_HEADS)?.unwrap_or(heads),
            head_dim: divide("dim", hidden, heads)?,
            rms_eps: number(params, "norm_eps")?.unwrap_or(1e-5),
            rope_theta: number(params, "rope_theta")?.unwrap_or(1e4),
            max_positions: None,
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks that a report of `max_tokens` tokens has no more than the model was trained to tell apart: rotary
    /// embeddings are computed for any position, and mean nothing beyond those.
    ///
    /// # Errors
    /// `config.value`.
    pub fn check_tokens(&self, max_tokens: usize) -> Result<()> {
        match self.max_positions.filter(|positions| max_tokens > *positions) {
            Some(positions) => {
                let message = format!(
                    "text.max_tokens is {max_tokens}, and the language model has {positions} positions \
                     (max_position_embeddings): write {positions} or less"
                );
                Err(Error::new(Code::CONFIG_VALUE, message))
            }
            None => Ok(()),
        }
    }

    /// Checks that every size can be built.
    ///
    /// # Errors
    /// `config.value`, naming the field and what it holds.
    pub fn validate(&self) -> Result<()> {
        let fail = |message: String| Err(Error::new(Code::CONFIG_VALUE, message));
        let sizes = [
            ("vocabulary", self.vocab, MAX_VOCAB),
            ("hidden size", self.hidden, MAX_WIDTH),
            ("MLP's width", self.mlp, MAX_MLP),
            ("number of layers", self.layers, MAX_LAYERS),
            ("number of heads", self.heads, MAX_HEADS),
            ("number of key-value heads", self.kv_heads, MAX_HEADS),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
        ];
        if let Some((what, size, max)) = sizes.into_iter().find(|(_, size, max)| !(1..=*max).contains(size)) {
            return fail(format!("the language model's {what} is {size}, expected 1 to {max}"));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return fail(format!("{} query heads cannot share {} key-value heads evenly", self.heads, self.kv_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return fail(format!("head_dim is {}: rotary embeddings need an even width", self.head_dim));
        }
        if !(self.rms_eps.is_finite() && self.rms_eps > 0.0 && self.rms_eps < 1.0) {
            return fail(format!("RMSNorm's epsilon is {}, expected 0 to 1", self.rms_eps));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 1.0) {
            return fail(format!("rope_theta is {}, expected more than 1", self.rope_theta));
        }
        Ok(())
    }
}

/// The rotary base from `rope_parameters` (transformers 5) or `rope_theta` (4). Scaled kinds are refused.
fn rope_parameters(json: &Value) -> Result<Option<f64>> {
    for field in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = json.get(field).filter(|v| !v.is_null()) else { continue };
        let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str).unwrap_or("default");
        if kind != "default" {
            let message =
                format!("{field} has type \"{kind}\", expected \"default\": LLaMA 2 has plain rotary embeddings");
            return Err(Error::new(Code::CONFIG_VALUE, message));
        }
    }
    let nested = match json.get("rope_parameters") {
        Some(rope) => number(rope, "rope_theta")?,
        None => None,
    };
    let flat = number(json, "rope_theta")?;
    match (flat, nested) {
        (Some(a), Some(b)) if a != b => {
            let message = format!("rope_theta is {a} and rope_parameters.rope_theta {b}: they must agree");
            Err(Error::new(Code::CONFIG_CONTRADICTION, message))
        }
        (flat, nested) => Ok(flat.or(nested)),
    }
}

fn divide(what: &str, hidden: usize, heads: usize) -> Result<usize> {
    if !hidden.is_multiple_of(heads) {
        return Err(Error::new(Code::CONFIG_VALUE, format!("{what} {hidden} is not a multiple of {heads} heads")));
    }
    Ok(hidden / heads)
}

fn optional_size(json: &Value, field: &str, max: usize) -> Result<Option<usize>> {
    let Some(found) = json.get(field).filter(|v| !v.is_null()) else { return Ok(None) };
    match found.as_u64().and_then(|n| usize::try_from(n).ok()) {
        Some(n) if (1..=max).contains(&n) => Ok(Some(n)),
        _ => {
            Err(Error::new(Code::CONFIG_VALUE, format!("{field} is {found}, expected a whole number from 1 to {max}")))
        }
    }
}

fn size(json: &Value, field: &str, max: usize) -> Result<usize> {
    let found = optional_size(json, field, max)?;
    found.ok_or_else(|| Error::new(Code::CONFIG_SYNTAX, format!("the field {field} is missing")))
}

fn number(json: &Value, field: &str) -> Result<Option<f64>> {
    let Some(found) = json.get(field).filter(|v| !v.is_null()) else { return Ok(None) };
    match found.as_f64() {
        Some(n) => Ok(Some(n)),
        None => Err(Error::new(Code::CONFIG_SYNTAX, format!("{field} is {found}, expected a number"))),
    }
}
