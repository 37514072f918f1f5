//! What a language model computes otherwise than LLaMA 2.

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};

/// Maximum width of a window and of what scaled rotary embeddings were trained for, in tokens.
const MAX_TOKENS: usize = 1 << 24;
/// Largest factor, and the inverse of the smallest: beyond, float32 loses hidden states.
const MAX_SCALE: f64 = 1e6;

/// The function between the MLP's two layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// `x · sigmoid(x)`.
    #[default]
    Silu,
    /// `x · Φ(x)`, exact.
    Gelu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    Relu2,
}

/// A sliding window: a token sees those nearby alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Causal: how many tokens a token sees, itself included. Bidirectional: how far it sees to either side.
    pub tokens: usize,
    /// The layers that have it, in ascending order.
    pub layers: Vec<usize>,
}

/// Rotary frequencies as LLaMA 3.1 scales them: long wavelengths are multiplied by `factor`, short ones kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeScaling {
    /// What the longest wavelengths are multiplied by.
    pub factor: f64,
    /// Wavelengths above `original / low_freq_factor` tokens are multiplied.
    pub low_freq_factor: f64,
    /// Wavelengths below `original / high_freq_factor` tokens are kept.
    pub high_freq_factor: f64,
    /// Tokens that the model was first trained for.
    pub original: usize,
}

/// What a language model computes otherwise than LLaMA 2; [`Variant::PLAIN`] differs in nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Variant {
    /// Whether a token sees those behind it too.
    #[serde(skip_serializing_if = "is_false")]
    pub bidirectional: bool,
    /// The sliding window, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Layers without rotary embeddings, in ascending order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nope_layers: Vec<usize>,
    /// Whether a rotary pair are channels `2i, 2i + 1` of a head, rather than `i, i + head_dim/2`.
    #[serde(skip_serializing_if = "is_false")]
    pub interleaved: bool,
    /// Scaled rotary frequencies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// What scores are multiplied by, in place of `1 / √head_dim`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_scale: Option<f64>,
    /// What embeddings are multiplied by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_scale: Option<f64>,
    /// What attention and MLP are multiplied by before they are added to the residual stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub residual_scale: Option<f64>,
    /// Whether the projections of queries, keys and values have biases.
    #[serde(skip_serializing_if = "is_false")]
    pub qkv_bias: bool,
    /// Whether attention's output projection has a bias.
    #[serde(skip_serializing_if = "is_false")]
    pub out_bias: bool,
    /// Whether the MLP's layers have biases.
    #[serde(skip_serializing_if = "is_false")]
    pub mlp_bias: bool,
    /// Whether queries and keys are normalized, each head for itself, before they are rotated.
    #[serde(skip_serializing_if = "is_false")]
    pub qk_norm: bool,
    /// The MLP's activation.
    #[serde(skip_serializing_if = "is_silu")]
    pub activation: Activation,
    /// Whether the MLP has no gate: `down(act(up(x)))`.
    #[serde(skip_serializing_if = "is_false")]
    pub ungated: bool,
}

impl Variant {
    /// LLaMA 2 itself.
    pub const PLAIN: Self = Self {
        bidirectional: false,
        window: None,
        nope_layers: Vec::new(),
        interleaved: false,
        rope_scaling: None,
        attention_scale: None,
        embedding_scale: None,
        residual_scale: None,
        qkv_bias: false,
        out_bias: false,
        mlp_bias: false,
        qk_norm: false,
        activation: Activation::Silu,
        ungated: false,
    };

    /// Whether nothing differs from LLaMA 2.
    pub fn is_plain(&self) -> bool {
        *self == Self::PLAIN
    }

    /// Whether layer `n` sees a window alone.
    pub fn has_window(&self, n: usize) -> bool {
        self.window.as_ref().is_some_and(|window| window.layers.binary_search(&n).is_ok())
    }

    /// Whether layer `n` has rotary embeddings.
    pub fn has_rope(&self, n: usize) -> bool {
        self.nope_layers.binary_search(&n).is_err()
    }

    /// Checks all of it, for a model of that many layers.
    ///
    /// # Errors
    /// `config.value`, naming what is out of bounds.
    pub(super) fn validate(&self, layers: usize) -> Result<()> {
        let fail = |message: String| Err(Error::new(Code::CONFIG_VALUE, message));
        if let Some(window) = &self.window {
            if !(1..=MAX_TOKENS).contains(&window.tokens) {
                return fail(format!("the sliding window is {} tokens, expected 1 to {MAX_TOKENS}", window.tokens));
            }
            check_layers("a sliding window", &window.layers, layers)?;
        }
        check_layers("no rotary embeddings", &self.nope_layers, layers)?;
        let scales = [
            ("attention's scale", self.attention_scale),
            ("the embeddings' scale", self.embedding_scale),
            ("the residual stream's scale", self.residual_scale),
        ];
        for (what, scale) in scales {
            if let Some(scale) = scale.filter(|s| !(1.0 / MAX_SCALE..=MAX_SCALE).contains(s)) {
                return fail(format!("{what} is {scale}, expected {} to {MAX_SCALE}", 1.0 / MAX_SCALE));
            }
        }
        self.rope_scaling.as_ref().map_or(Ok(()), RopeScaling::validate)
    }
}

impl Default for Variant {
    fn default() -> Self {
        Self::PLAIN
    }
}

impl RopeScaling {
    fn validate(&self) -> Result<()> {
        let Self { factor, low_freq_factor: low, high_freq_factor: high, original } = self;
        let bounded = |x: &f64| (1.0 / MAX_SCALE..=MAX_SCALE).contains(x);
        if bounded(factor) && bounded(low) && bounded(high) && low < high && (1..=MAX_TOKENS).contains(original) {
            return Ok(());
        }
        let message = format!(
            "scaled rotary embeddings have factor {factor}, low_freq_factor {low}, high_freq_factor {high} and \
             original_max_position_embeddings {original}: expected positive numbers, and low below high"
        );
        Err(Error::new(Code::CONFIG_VALUE, message))
    }
}

/// Checks a list of layers: ascending, each once, and there.
fn check_layers(what: &str, list: &[usize], layers: usize) -> Result<()> {
    let ascending = list.windows(2).all(|pair| pair[0] < pair[1]);
    if ascending && list.last().is_none_or(|last| *last < layers) {
        return Ok(());
    }
    let message = format!("the layers with {what} are not ascending numbers below {layers}");
    Err(Error::new(Code::CONFIG_VALUE, message))
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn is_silu(activation: &Activation) -> bool {
    *activation == Activation::Silu
}
