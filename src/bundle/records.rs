//! The records of `bundle.json`: plain data, one struct per JSON object.

use serde::{Deserialize, Serialize};

use crate::config::VolumeConfig;
use crate::tensor::Comparison;
use crate::text::ReportProfile;

/// The program that wrote a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Name of the package.
    pub name: String,
    /// Version of the package.
    pub version: String,
}

impl Tool {
    /// This program and its version.
    pub fn this() -> Self {
        Self { name: env!("CARGO_PKG_NAME").into(), version: env!("CARGO_PKG_VERSION").into() }
    }
}

/// Number format of a graph's weights and arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32 weights and arithmetic.
    Fp32,
    /// float16 weights and matrix products.
    Fp16,
    /// 8-bit integers in the linear layers.
    Int8,
    /// 4-bit integers in the language model's linear layers, 8 bits elsewhere.
    Int4,
}

impl Precision {
    /// The name that files and commands use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How a scan becomes the input `volume`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocessing {
    /// Anatomical directions of the conformed axes i, j, k.
    pub orientation: String,
    /// Edge length of the cubic volume in voxels.
    pub size: usize,
    /// Edge length of a voxel in millimetres.
    pub voxel_mm: f64,
    /// How values between voxels are interpolated.
    pub interpolation: String,
    /// Value of voxels outside the scan.
    pub outside: f32,
    /// Percentiles that intensities are clipped to.
    pub clip: Option<[f64; 2]>,
    /// How intensities are scaled.
    pub scaling: String,
    /// Axes of the input, slowest first.
    pub axes: String,
}

impl Preprocessing {
    /// The preprocessing of a configuration.
    pub fn of(config: &VolumeConfig) -> Self {
        Self {
            orientation: "RAS".into(),
            size: config.size,
            voxel_mm: config.voxel_mm,
            interpolation: "trilinear".into(),
            outside: 0.0,
            clip: config.clip,
            scaling: "min-max to [0, 1] over the conformed volume".into(),
            axes: "volume[d, h, w] = ras[i = w, j = h, k = d]".into(),
        }
    }
}

/// How a report becomes `input_ids`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerRecord {
    /// The tokenizer's file name in the bundle.
    pub file: String,
    /// Token ID of the beginning of sequence (BOS), which precedes every report.
    pub bos: u32,
    /// Maximum number of tokens of a report, BOS included.
    pub max_tokens: usize,
    /// What the calibration reports are like, so that other reports can be warned of. The field is absent in bundles
    /// that were exported without them; here, since older programs skip what they do not know of this record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reports: Option<ReportProfile>,
}

/// One part's graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartRecord {
    /// The graph's file name in the bundle.
    pub file: String,
    /// File name of the same graph in operators that TensorRT supports, with the same data file; none if one file
    /// serves all providers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensorrt: Option<String>,
    /// Number format of its weights and arithmetic.
    pub precision: Precision,
    /// Number of weights.
    pub parameters: u64,
    /// Total size of its files in bytes.
    pub bytes: u64,
    /// How close its results are to those of the fp32 graph.
    pub parity: Parity,
}

/// A graph compared with fp32 on calibration inputs: an fp32 graph with its plain form (nothing folded or fused, run
/// operator by operator), a quantized one with the fp32 graph, on held-out inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parity {
    /// It was compared.
    Checked {
        /// Number of inputs.
        inputs: usize,
        /// The largest errors and the smallest cosine over these inputs.
        worst: Comparison,
    },
    /// It was not compared, for this reason.
    NotChecked(String),
}

/// A bundle made from a parent bundle by replacing adapter and heads with newly trained ones. Vision transformer and
/// language model, and their records in the manifest, are the parent's: vision's parity and errors were measured with
/// the parent's adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionRecord {
    /// Its number among the versions, from 2; 1 is the exported bundle.
    pub number: u32,
    /// SHA-256 of the parent's `bundle.json`.
    pub parent_sha256: String,
    /// Maximum change of a probability from quantizing adapter and heads, on held-out inputs, with the bundle's own
    /// vision transformer and language model on both sides; none if it was not measured.
    pub probabilities: Option<f64>,
}

/// A file of the bundle, as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// File name, without folders.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// A file that the bundle was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// What it provided: `adapter`, `vision`, `text`, `config`, `tokenizer`.
    pub role: String,
    /// File name, without folders.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

impl PartRecord {
    /// File names of its graphs: the one that every bundle has, and the one for TensorRT.
    pub fn graphs(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.file).chain(&self.tensorrt)
    }
}
