//! The metrics of an epoch.

use serde::{Deserialize, Serialize};

use crate::metrics::Scores;

/// A line of `history.jsonl`. It holds no time: an interrupted and resumed training has the same history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochRecord {
    /// Number of the epoch, from 1.
    pub epoch: u32,
    /// Steps of the optimizer so far.
    pub steps: i64,
    /// The learning rate of the last step.
    pub learning_rate: f32,
    /// Mean loss over the training cases in nats, each case with the parameters at its own step.
    pub train_loss: f64,
    /// Mean loss over the validation cases in nats, in evaluation mode (running statistics).
    pub validation_loss: f64,
    /// Accuracy on the validation cases, 0 to 1.
    pub accuracy: f64,
    /// Macro-F1 on the validation cases, 0 to 1.
    pub macro_f1: f64,
    /// Whether this macro-F1 is the best so far.
    pub best: bool,
}

/// What the validation of an epoch gives.
pub(super) struct Validation {
    /// Mean loss over the validation cases in nats.
    pub loss: f64,
    /// The metrics.
    pub scores: Scores,
    /// The fused embedding of each case: v and, with reports, t.
    pub embeddings: Vec<Vec<f32>>,
}
