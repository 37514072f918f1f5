//! What `bundle.json` says of reduced precision: which layer got which scheme, and how close it comes to float32.

use serde::{Deserialize, Serialize};

use crate::passes::quantize::Scheme;

/// How a bundle's weights and arithmetic were reduced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    /// Largest relative error that a layer's result was allowed.
    pub max_error: f64,
    /// What it was calibrated and judged on.
    pub calibration: Calibration,
    /// Every layer, in the order in which they run.
    pub layers: Vec<LayerRecord>,
    /// Every block of a transformer.
    pub blocks: Vec<BlockRecord>,
    /// Largest difference of a probability from float32, from scan and report, and from the scan alone where the model can,
    /// to classes, on the held-out inputs; none where it was not measured, or with an older adapter.
    pub probabilities: Option<f64>,
    /// Weights other than 0 that half precision made 0.
    pub flushed: u64,
}

/// The inputs of calibration, as numbers: no input is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Scans that gave statistics.
    pub scans: usize,
    /// Reports that gave statistics.
    pub reports: usize,
    /// Scans that the result was judged on.
    pub held_out_scans: usize,
    /// Reports that the result was judged on.
    pub held_out_reports: usize,
    /// The bundle's file of statistics; none when there were no inputs, and every scheme is data-free, or when a newly trained
    /// adapter made them stale.
    pub statistics: Option<String>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRecord {
    /// The graph.
    pub part: String,
    /// The layer's name in the state dict.
    pub layer: String,
    /// Number of weights.
    pub parameters: u64,
    /// Bytes of the weight with its scales.
    pub bytes: u64,
    /// How it computes.
    pub scheme: Scheme,
    /// Whether the size of single activation columns was moved into weights.
    pub smoothed: bool,
    /// Relative error of its result on held-out tokens; none when it was not measured.
    pub error: Option<f64>,
    /// The least cosine of a token.
    pub cosine: Option<f64>,
    /// What was tried first, where the layer was treated: it missed the limit, its error was suspicious, or its block was
    /// raised with the whole part.
    pub first: Option<FirstTry>,
}

/// The scheme that a treated layer was tried with first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirstTry {
    /// The scheme.
    pub scheme: Scheme,
    /// Its relative error, where it was measured.
    pub error: Option<f64>,
    /// Bytes of the weight under it.
    pub bytes: u64,
}

/// One block: what all of its layers together do to the values that leave it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockRecord {
    /// The graph.
    pub part: String,
    /// The block, such as `layers.3`.
    pub block: String,
    /// Relative error of the values that leave it, when those that enter are float32's.
    pub error: f64,
    /// The least cosine of a token.
    pub cosine: f64,
    /// Relative error of what the block adds to the residual stream alone, where it has one.
    pub update_error: Option<f64>,
}
