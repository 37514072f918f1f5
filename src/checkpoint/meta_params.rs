//! Sizes of Meta's LLaMA layout, from `params.json`.

use crate::error::{Code, Error, Result};

/// Meta's `params.json`. The MLP's size is not in it (take `w1`'s rows); `vocab_size` is often -1 (take the rows of
/// `tok_embeddings`).
#[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct MetaParams {
    /// Hidden size.
    pub dim: usize,
    /// Transformer blocks.
    pub n_layers: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Key and value heads; absent when they are as many as attention heads.
    #[serde(default)]
    pub n_kv_heads: Option<usize>,
    /// Epsilon of the RMS norms.
    #[serde(default)]
    pub norm_eps: Option<f64>,
    /// Words; -1 when the tokenizer decides.
    #[serde(default)]
    pub vocab_size: Option<i64>,
    /// Base of the rotary embedding's frequencies.
    #[serde(default)]
    pub rope_theta: Option<f64>,
    /// LLaMA 3.1's scaling of these frequencies.
    #[serde(default)]
    pub use_scaled_rope: bool,
    /// Every other field: whoever reads the configuration reads or refuses it.
    #[serde(flatten)]
    pub others: serde_json::Map<String, serde_json::Value>,
}

impl MetaParams {
    pub(super) fn kv_heads(&self) -> usize {
        self.n_kv_heads.unwrap_or(self.n_heads)
    }

    pub(super) fn check(&self) -> Result<()> {
        let heads = (self.n_heads, self.kv_heads());
        let whole = |n: usize, of: usize| of != 0 && n.is_multiple_of(of);
        if self.dim == 0 || !whole(self.dim, self.n_heads) || !whole(self.n_heads, self.kv_heads()) {
            return Err(Error::new(
                Code::CHECKPOINT_CORRUPT,
                format!("dim {}, heads and KV heads {heads:?} do not divide each other", self.dim),
            ));
        }
        if !(self.dim / self.n_heads).is_multiple_of(2) {
            return Err(Error::new(
                Code::CHECKPOINT_CORRUPT,
                format!("dim {} over {} heads is odd", self.dim, self.n_heads),
            ));
        }
        Ok(())
    }
}
