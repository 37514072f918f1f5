//! Sizes and constants of a language model, and their bounds.

use super::super::limits::{MAX_HEADS, MAX_LAYERS, MAX_MLP, MAX_WIDTH};
use super::variant::Variant;
use crate::error::{Code, Error, Result};

/// Maximum number of rows of the embedding table: four times the largest published.
pub(super) const MAX_VOCAB: usize = 1 << 20;
/// Maximum width of one head.
pub(super) const MAX_HEAD_DIM: usize = 4096;
/// Maximum number of positions.
pub(super) const MAX_POSITIONS: usize = 1 << 24;

/// Sizes and constants of a language model: LLaMA 2, and what differs from it.
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
    /// What is computed otherwise than in LLaMA 2; absent where nothing is.
    #[serde(default, skip_serializing_if = "Variant::is_plain")]
    pub variant: Variant,
}

impl LlamaConfig {
    /// The same model for reports of at most `max_tokens` tokens: a window that none of them outgrows is no window.
    #[must_use]
    pub fn for_tokens(mut self, max_tokens: usize) -> Self {
        self.variant.window = self.variant.window.filter(|window| window.tokens < max_tokens);
        self
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
        self.variant.validate(self.layers)
    }
}
