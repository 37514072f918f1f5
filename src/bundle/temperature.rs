//! The temperatures of a bundle, by which logits are divided before the softmax.

use serde::{Deserialize, Serialize};

use crate::metrics::temperature::RANGE;

/// Temperatures (Guo et al. 2017): probabilities are softmax(logits / T). They change no label, and are only valid for
/// the classifiers that they were fitted to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Temperature {
    /// For scans with a report; 1 if none was fitted.
    pub report: Option<f64>,
    /// For scans without a report; 1 if none was fitted.
    pub image: Option<f64>,
}

impl Temperature {
    /// The temperature for scans with or without a report, if it was fitted.
    pub fn of(&self, with_report: bool) -> Option<f64> {
        if with_report { self.report } else { self.image }
    }

    /// Whether none was fitted.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the range, and that an image-only temperature has its classifier.
    ///
    /// # Errors
    /// What is wrong, in one line.
    pub(super) fn check(&self, image_head: bool) -> Result<(), String> {
        for (name, value) in [("report", self.report), ("image", self.image)] {
            if let Some(t) = value.filter(|t| !RANGE.contains(t)) {
                let (low, high) = (RANGE.start(), RANGE.end());
                return Err(format!("temperature.{name} is {t}, expected {low} to {high}: fit it again"));
            }
        }
        if self.image.is_some() && !image_head {
            return Err("temperature.image is there, and the bundle has no image-only classifier".into());
        }
        Ok(())
    }
}
