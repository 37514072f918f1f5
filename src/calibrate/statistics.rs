//! Channel statistics of activations, in a file that can be inspected, reused and compared.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::ArrayD;

use crate::checkpoint::{Checkpoint, write_safetensors};
use crate::error::{Code, Error, Result};
use crate::tensor::LazyTensor;

/// Zero points that an int8 activation may get; 128 treats both signs alike.
pub const ZERO_POINTS: [u8; 7] = [128, 96, 64, 40, 24, 12, 6];

/// Channel statistics of one activation `[tokens, k]`.
///
/// Each token has the same weight, whatever its norm: else a BOS token hundreds of times as large as the others would
/// dominate.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelStats {
    /// Largest magnitude of each channel, `[k]`.
    pub max_abs: Vec<f32>,
    /// For each channel the sum over tokens of `x_j² / mean_k(x_k²)`, `[k]`: how large it is for a typical token.
    pub moment: Vec<f64>,
    /// For each of [`ZERO_POINTS`] the sum over tokens of the squared step of an 8-bit scale, in units of the token's
    /// mean square.
    pub steps: [f64; ZERO_POINTS.len()],
    /// Number of tokens.
    pub tokens: u64,
}

impl ChannelStats {
    pub(super) fn new(k: usize) -> Self {
        Self { max_abs: vec![0.0; k], moment: vec![0.0; k], steps: [0.0; ZERO_POINTS.len()], tokens: 0 }
    }

    /// Adds the tokens of `[.., k]`.
    pub(super) fn add(&mut self, tensor: &ArrayD<f32>) {
        let k = self.max_abs.len();
        let values = tensor.as_standard_layout();
        let Some(values) = values.as_slice() else { return };
        for token in values.chunks_exact(k) {
            let square = token.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / k as f64;
            self.tokens += 1;
            for (max_abs, v) in self.max_abs.iter_mut().zip(token) {
                *max_abs = max_abs.max(v.abs());
            }
            if square > 0.0 && square.is_finite() {
                for (moment, &v) in self.moment.iter_mut().zip(token) {
                    *moment += f64::from(v) * f64::from(v) / square;
                }
                let (low, high) = token.iter().fold((0f32, 0f32), |(l, h), &v| (l.min(v), h.max(v)));
                for (sum, zero) in self.steps.iter_mut().zip(ZERO_POINTS) {
                    let (above, below) = (255.0 - f64::from(zero), f64::from(zero));
                    *sum += (f64::from(high) / above).max(f64::from(-low) / below).powi(2) / square;
                }
            }
        }
    }

    /// How much an error in each channel's weights matters, `[k]`: [`Self::moment`] as a mean over the tokens, float32.
    pub fn importance(&self) -> Vec<f32> {
        self.moment.iter().map(|m| (m / self.tokens.max(1) as f64) as f32).collect()
    }

    /// The zero point with the smallest quantization steps; 128 unless another is clearly better.
    pub fn zero_point(&self) -> u8 {
        /// Ratio of squared steps below which a zero point that suits only activations like these is worthwhile.
        const CLEARLY: f64 = 0.7;
        let best = (0..ZERO_POINTS.len()).min_by(|&a, &b| self.steps[a].total_cmp(&self.steps[b])).unwrap_or(0);
        if self.steps[best] < CLEARLY * self.steps[0] { ZERO_POINTS[best] } else { 128 }
    }
}

/// Statistics of all activations that linear layers read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// By part and the name of the first layer that reads the activation: `text/layers.0.mlp.gate_proj`.
    pub activations: BTreeMap<String, ChannelStats>,
    /// Number of scans that they were computed from.
    pub scans: usize,
    /// Number of reports that they were computed from.
    pub reports: usize,
    /// By part, the SHA-256 of what they were computed with: weights and configuration. Empty in files of versions that
    /// did not record it.
    pub models: BTreeMap<String, String>,
}

impl Statistics {
    /// Writes the file: safetensors with `NAME.largest`, `NAME.moment` (float32 `[k]`), `NAME.steps` and `NAME.tokens`,
    /// and in its metadata `PART.model_sha256`.
    /// It contains no name of an input.
    ///
    /// # Errors
    /// `io` or `disk.full`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let vector = |values: Vec<f32>| LazyTensor::from_f32(&[values.len()], &values);
        let tensors = self.activations.iter().flat_map(|(name, c)| {
            let steps = c.steps.iter().map(|s| (s / c.tokens.max(1) as f64) as f32).collect();
            [
                (format!("{name}.largest"), vector(c.max_abs.clone())),
                (format!("{name}.moment"), vector(c.importance())),
                (format!("{name}.steps"), vector(steps)),
                (format!("{name}.tokens"), LazyTensor::from_i64(&[1], &[c.tokens as i64])),
            ]
        });
        let facts =
            [("format", FORMAT.to_owned()), ("scans", self.scans.to_string()), ("reports", self.reports.to_string())];
        let models = self.models.iter().map(|(part, sha256)| (format!("{part}{MODEL}"), sha256.clone()));
        let facts = facts.into_iter().map(|(k, v)| (k.to_owned(), v)).chain(models).collect();
        write_safetensors(path, tensors.collect::<Vec<_>>(), &facts).map(drop)
    }

    /// Reads a file that [`Self::save`] wrote.
    ///
    /// # Errors
    /// `calibration.input` when the file is something else, or holds impossible numbers.
    pub fn load(path: &Path) -> Result<Self> {
        Self::from_checkpoint(&Checkpoint::open(path)?)
    }

    /// The statistics in an opened file.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_checkpoint(file: &Checkpoint) -> Result<Self> {
        let path = file.path();
        let wrong = |what: String| Error::new(Code::CALIBRATION_INPUT, what).at(path);
        let metadata = file.metadata();
        let fact = |name: &str| metadata.get(name).map(String::as_str);
        if fact("format") != Some(FORMAT) {
            return Err(wrong("the file holds no calibration statistics of this version".into()));
        }
        let count = |name: &str| fact(name).and_then(|n| n.parse().ok()).unwrap_or(0);
        let models =
            metadata.iter().filter_map(|(key, value)| Some((key.strip_suffix(MODEL)?.to_owned(), value.clone())));
        let (models, activations) = (models.collect(), BTreeMap::new());
        let mut all = Self { activations, scans: count("scans"), reports: count("reports"), models };
        let names: Vec<String> = file.names().filter_map(|n| n.strip_suffix(".largest")).map(str::to_owned).collect();
        for name in names {
            let vector = |part: &str| {
                let full = format!("{name}.{part}");
                let tensor = file.get(&full).ok_or_else(|| wrong(format!("`{full}` is missing")))?;
                let values = tensor.to_f32().map_err(|e| e.at(path))?;
                match values.iter().find(|v| !v.is_finite() || **v < 0.0) {
                    Some(bad) => Err(wrong(format!("`{full}` holds {bad}"))),
                    None => Ok(values),
                }
            };
            let (max_abs, moment, steps, tokens) =
                (vector("largest")?, vector("moment")?, vector("steps")?, vector("tokens")?);
            let tokens = tokens.first().map_or(0, |t| *t as u64);
            let steps: Result<[f32; ZERO_POINTS.len()], _> = steps.try_into();
            let (Ok(steps), true) = (steps, max_abs.len() == moment.len() && tokens > 0) else {
                return Err(wrong(format!("the tensors of `{name}` do not fit each other")));
            };
            let sum = |mean: f32| f64::from(mean) * tokens as f64;
            let stats =
                ChannelStats { max_abs, moment: moment.into_iter().map(sum).collect(), steps: steps.map(sum), tokens };
            all.activations.insert(name, stats);
        }
        Ok(all)
    }
}

/// The value of the file's metadata key `format`.
const FORMAT: &str = "brain-adapter calibration 1";

/// The end of the metadata keys of [`Statistics::models`].
const MODEL: &str = ".model_sha256";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_zero_point_must_be_clearly_better() {
        let with = |second: f64| {
            let mut stats = ChannelStats::new(1);
            stats.steps = [2.0; ZERO_POINTS.len()];
            (stats.steps[0], stats.steps[1]) = (1.0, second);
            stats.zero_point()
        };
        assert_eq!([0.5, 0.69, 0.71, 1.0, 1.5].map(with), [96, 96, 128, 128, 128]);
    }
}
