//! The image side of a micro-batch: volumes, or vision features that were computed once.

use std::collections::BTreeMap;

use super::scans::{ScanName, Scans};
use crate::cohort::Case;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::tensor::Tensor;
use crate::train::tensors::stack;

/// Where the images of a micro-batch come from.
pub(super) enum ImageSource {
    /// Vision features f32 `[1, vision.hidden]` by the scan: the adapter is frozen.
    Features(BTreeMap<ScanName, Tensor>),
    /// The scans: the adapter is trained.
    Scans(Scans),
}

/// The images of a micro-batch: volumes f32 `[batch, D, H, W]`, or features f32 `[batch, vision.hidden]`.
pub(super) type ImageBatch = Tensor;

impl ImageSource {
    /// The images of `cases`, in their order.
    pub fn batch(&self, cases: &[&Case]) -> Result<ImageBatch> {
        match self {
            Self::Scans(scans) => scans.batch(&cases.iter().map(|c| (c.scan.as_path(), c.volume)).collect::<Vec<_>>()),
            Self::Features(features) => {
                let missing = || Error::internal("a scan has no vision features");
                let rows = cases.iter().map(|c| features.get(&(c.scan.clone(), c.volume)).cloned().ok_or_else(missing));
                stack(&rows.collect::<Result<Vec<_>>>()?)
            }
        }
    }

    /// Reports the warnings of scans that were read since the last call, one a class. Those of features were reported
    /// when the features were computed.
    pub fn report_warnings(&self, progress: &mut dyn Progress) {
        if let Self::Scans(scans) = self {
            scans.take_warnings().iter().for_each(|warning| progress.warn(warning));
        }
    }
}
