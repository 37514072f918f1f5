//! `bundle.json`. It holds no time and no absolute path: the same export gives the same bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::quantization::Quantization;
use super::target::Target;
use super::temperature::Temperature;
use crate::config::{Config, LlamaConfig, VolumeConfig};
use crate::tensor::{Comparison, hex};

/// The manifest's file name.
pub const MANIFEST: &str = "bundle.json";

/// The intended use that every manifest records and every command prints.
pub const INTENDED_USE: &str = "Research use only. Not a medical device; not for diagnosis or treatment.";

/// Version of the manifest's format; another one is refused.
pub const FORMAT: u32 = 2;

/// What a bundle is, and everything needed to use it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Who wrote it.
    pub tool: Tool,
    /// What it may be used for.
    pub intended_use: String,
    /// The model's configuration.
    pub config: Config,
    /// The language model's own sizes.
    pub text_model: LlamaConfig,
    /// Class names in the order of `logits`.
    pub labels: Vec<String>,
    /// How a scan becomes the input `volume`.
    pub preprocessing: Preprocessing,
    /// How a report becomes `input_ids`.
    pub tokenizer: TokenizerRecord,
    /// Whether `heads.onnx` has the output `image_logits`, for scans without a report.
    pub image_head: bool,
    /// The graphs, by name.
    pub parts: BTreeMap<String, PartRecord>,
    /// How weights and arithmetic were reduced; none in a float32 bundle.
    pub quantization: Option<Quantization>,
    /// For which device integer weights were made; bundles for the CPU, and those of floats, do not have the field.
    #[serde(default, skip_serializing_if = "Target::is_cpu")]
    pub target: Target,
    /// Every file but this one.
    pub files: Vec<FileRecord>,
    /// The checkpoint files that it was made from.
    pub sources: Vec<SourceRecord>,
    /// Tensors of the sources that the model does not use.
    pub skipped: Vec<String>,
    /// Which version of a bundle it is; none where it was exported as it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<VersionRecord>,
    /// What logits are divided by; a bundle that was not calibrated does not have the field.
    #[serde(default, skip_serializing_if = "Temperature::is_none")]
    pub temperature: Temperature,
}

impl Manifest {
    /// A manifest from the text of `bundle.json`.
    ///
    /// # Errors
    /// `bundle.manifest`.
    pub fn from_bytes(bytes: &[u8]) -> crate::Result<Self> {
        super::verify::parse(bytes)
    }

    /// The text of `bundle.json`.
    ///
    /// # Errors
    /// `bundle.manifest` when a value has no form in JSON.
    pub fn to_bytes(&self) -> crate::Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map_err(|e| {
            let message = format!("cannot write the manifest: {e}");
            crate::Error::new(crate::Code::BUNDLE_MANIFEST, message).caused_by(e)
        })
    }

    /// SHA-256 of [`Self::to_bytes`] without the temperature: what the graphs compute depends on nothing else.
    ///
    /// # Errors
    /// As there.
    pub fn model_sha256(&self) -> crate::Result<String> {
        let model = Self { temperature: Temperature::default(), ..self.clone() };
        Ok(hex(&Sha256::digest(model.to_bytes()?)))
    }
}

/// A program and its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Tool {
    /// This program.
    pub fn this() -> Self {
        Self { name: env!("CARGO_PKG_NAME").into(), version: env!("CARGO_PKG_VERSION").into() }
    }
}

/// Number format of a graph's weights and arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32 throughout.
    Fp32,
    /// Weights in half precision, products too.
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
    /// Side of the cube in voxels.
    pub size: usize,
    /// Side of a voxel in millimetres.
    pub voxel_mm: f64,
    /// How values between voxels are found.
    pub interpolation: String,
    /// Value outside the scan.
    pub outside: f32,
    /// Percentiles that intensities are clipped to.
    pub clip: Option<[f64; 2]>,
    /// How intensities are scaled.
    pub scaling: String,
    /// Axes of the input, slowest first.
    pub axes: String,
}

impl Preprocessing {
    /// The preprocessing that `config` asks for.
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
    /// The tokenizer's file.
    pub file: String,
    /// The token in front of every report.
    pub bos: u32,
    /// Most tokens of a report, BOS included.
    pub max_tokens: usize,
}

/// One graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartRecord {
    /// The graph's file.
    pub file: String,
    /// File of the same graph in operators that TensorRT takes, over the same data file; none where one form serves all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensorrt: Option<String>,
    /// Its number format.
    pub precision: Precision,
    /// Number of weights.
    pub parameters: u64,
    /// Size of its files.
    pub bytes: u64,
    /// How far it is from the fp32 graph.
    pub parity: Parity,
}

/// A graph against fp32, on calibration inputs. An fp32 graph is held against its plain form (nothing folded or fused, run
/// operator by operator), a reduced one against the fp32 graph, on inputs that it was not calibrated with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parity {
    /// It was compared on so many inputs; the worst of them.
    Checked {
        /// Number of inputs.
        inputs: usize,
        /// The largest errors and the least cosine.
        worst: Comparison,
    },
    /// It was not compared, and why.
    NotChecked(String),
}

/// A bundle that was made from another by putting a newly trained adapter and heads into it. Vision transformer and language
/// model, and what the manifest says of them, are the other's: vision's parity and errors were measured behind its adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionRecord {
    /// Its number among the versions, from 2; 1 is what was exported.
    pub number: u32,
    /// SHA-256 of the `bundle.json` that it was made from.
    pub parent_sha256: String,
    /// Largest difference of a probability that reduced precision of adapter and heads makes on held-out inputs, with the
    /// bundle's own vision transformer and language model on both sides; none where it was not measured.
    pub probabilities: Option<f64>,
}

/// A file of the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its plain name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// A file that the bundle was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// What it gave: `adapter`, `vision`, `text`, `config`, `tokenizer`.
    pub role: String,
    /// Its name, without folders.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}
