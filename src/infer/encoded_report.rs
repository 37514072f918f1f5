//! A report as the language model encodes it.

use crate::error::Warning;
use crate::execute::Timing;
use crate::tensor::Tensor;

/// A report, encoded by the language model.
#[derive(Clone, Debug)]
pub struct EncodedReport {
    /// `text` f32 `[1, text.hidden]`.
    pub(super) text: Tensor,
    /// `input_ids` and `attention_mask`, where tensors are kept.
    pub(super) inputs: Option<[Tensor; 2]>,
    /// Number of tokens read.
    pub tokens: usize,
    pub(super) cached: bool,
    pub(super) warnings: Vec<Warning>,
    pub(super) timing: Timing,
}

impl EncodedReport {
    /// The language model's features: `text` f32 `[1, text.hidden]`.
    pub fn features(&self) -> &Tensor {
        &self.text
    }

    /// Warnings of the report, such as `report_truncated` or `report_language`.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}
