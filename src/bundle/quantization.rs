//! The record of quantization in `bundle.json`: the scheme of each layer, and its error against float32.

use serde::{Deserialize, Serialize};

use crate::passes::quantize::Scheme;

/// How a bundle's weights and arithmetic were quantized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    /// Maximum allowed relative error of a layer's result.
    pub max_error: f64,
    /// The calibration and held-out inputs.
    pub calibration: Calibration,
    /// Every quantized layer, in the order in which they run.
    pub layers: Vec<LayerRecord>,
    /// Every block of the transformers.
    pub blocks: Vec<BlockRecord>,
    /// Maximum change of a probability against float32 on the held-out inputs, with scan and report, and with the scan
    /// alone if the model has an image-only classifier; none if it was not measured, or only with an older adapter.
    pub probabilities: Option<f64>,
    /// Number of non-zero weights that underflowed to 0 in fp16.
    pub flushed: u64,
}

/// Numbers of calibration inputs; no input is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Scans whose statistics were used.
    pub scans: usize,
    /// Reports whose statistics were used.
    pub reports: usize,
    /// Held-out scans that the result was compared on.
    pub held_out_scans: usize,
    /// Held-out reports that the result was compared on.
    pub held_out_reports: usize,
    /// The bundle's file of statistics; none if there were no inputs (every scheme is then data-free), or if a newly
    /// trained adapter made them stale.
    pub statistics: Option<String>,
}

/// One linear or convolution layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRecord {
    /// Name of the part.
    pub part: String,
    /// The layer's name in the state dict.
    pub layer: String,
    /// Number of weights.
    pub parameters: u64,
    /// Size of the weight with its scales, in bytes.
    pub bytes: u64,
    /// Its quantization scheme.
    pub scheme: Scheme,
    /// Whether the scale of outlier activation channels was moved into the weights (SmoothQuant).
    pub smoothed: bool,
    /// Relative error of its result on held-out tokens; none if it was not measured.
    pub error: Option<f64>,
    /// Smallest cosine over the tokens.
    pub cosine: Option<f64>,
    /// The scheme that was tried first, if the layer was escalated: it missed the limit, its error was suspicious, or
    /// its block was escalated with the whole part.
    pub first: Option<FirstTry>,
}

/// The scheme that an escalated layer was tried with first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirstTry {
    /// The first scheme.
    pub scheme: Scheme,
    /// Its relative error, if it was measured.
    pub error: Option<f64>,
    /// Size of the weight under it, in bytes.
    pub bytes: u64,
}

/// One transformer block: the combined effect of its layers on its output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockRecord {
    /// Name of the part.
    pub part: String,
    /// Name of the block, such as `layers.3`.
    pub block: String,
    /// Relative error of its output for float32 inputs.
    pub error: f64,
    /// Smallest cosine over the tokens.
    pub cosine: f64,
    /// Relative error of what the block adds to the residual stream, if it has one.
    pub update_error: Option<f64>,
}
