//! The temperatures of a bundle: what its logits are divided by before they become probabilities.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::manifest::{MANIFEST, Manifest};
use super::{Versions, verify};
use crate::error::{Code, Error, Result};
use crate::files::replace;
use crate::metrics::temperature::RANGE;

/// Temperatures (Guo et al. 2017): probabilities are softmax(logits / T). They change no label, and belong to the
/// classifiers that they were fitted to: with other ones they are to be dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Temperature {
    /// For scans with a report; 1 where there is none.
    pub report: Option<f64>,
    /// For scans without a report; 1 where there is none.
    pub image: Option<f64>,
}

impl Temperature {
    /// The one for an answer with or without a report, where it was fitted.
    pub fn of(&self, with_report: bool) -> Option<f64> {
        if with_report { self.report } else { self.image }
    }

    /// Whether none was fitted.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Says what is wrong with them.
    pub(super) fn check(&self, image_head: bool) -> std::result::Result<(), String> {
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

/// Puts temperatures into the `bundle.json` of the bundle in `dir`, which is replaced whole; gives its new SHA-256. The bundle
/// must still be the one with the hash `expected`. Versions of it that are kept ([`Versions`]) stay as they are.
///
/// # Errors
/// `bundle.manifest` when a temperature is out of range or the bundle is another one by now; `bundle.busy` when somebody else
/// is changing it; `io` or `disk.full`. The old one then stays.
pub fn set_temperature(dir: &Path, expected: &str, temperature: Temperature) -> Result<String> {
    let _lock = Versions::lock(dir)?;
    let path = dir.join(MANIFEST);
    let invalid = |message: String| Error::new(Code::BUNDLE_MANIFEST, message).at(&path);
    let (manifest, found) = verify::manifest(&path)?;
    if found != expected {
        return Err(invalid("the bundle was replaced meanwhile, and the temperature is not its: fit it again".into()));
    }
    temperature.check(manifest.image_head).map_err(invalid)?;
    let manifest = Manifest { temperature, ..manifest };
    let json = manifest.to_bytes().map_err(|e| e.at(&path))?;
    replace(&path, &json)?;
    verify::manifest(&path).map(|(_, sha256)| sha256)
}
