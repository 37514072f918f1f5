//! `config.json`: the model's sizes and choices, with a default for every field.
//!
//! Plain data in, plain data out (layer 2). The fields are those of the PyTorch side's `config.json`; an absent
//! field takes its default, an unknown one is an error that names it. [`Config::validate`] refuses sizes that
//! cannot be built; whether they fit a checkpoint is found out when its tensors are looked up.
//!
//! ```
//! use brain_adapter::config::Config;
//!
//! let json = r#"{"volume": {"size": 64, "voxel_mm": 4.0}, "adapter": {"in": 64}}"#;
//! let config: Config = serde_json::from_str(json).unwrap();
//! assert_eq!((config.volume.size, config.vision.layers), (64, 12)); // an absent field has its default
//! ```

mod adamw;
mod limits;
#[cfg(test)]
mod limits_tests;
mod llama;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use adamw::AdamW;
pub(crate) use llama::language_model;
pub use llama::{Activation, LlamaConfig, RopeScaling, Variant, Window};

use limits::{
    MAX_HEADS, MAX_LABEL_BYTES, MAX_LABELS, MAX_LAYERS, MAX_MLP, MAX_PATCHES, MAX_POSITIONS, MAX_SIDE, MAX_TOKENS,
    MAX_WIDTH,
};

use crate::error::{Code, Error, Result};

/// Maximum size of a configuration file, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// The content of `config.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The cube that every scan is conformed to.
    pub volume: VolumeConfig,
    /// The trainable CNN in front of the vision transformer.
    pub adapter: AdapterConfig,
    /// The frozen 3-D vision transformer.
    pub vision: VisionConfig,
    /// The frozen language model; its sizes come from its own configuration.
    pub text: TextConfig,
    /// The space in which image and text meet.
    pub projection: ProjectionConfig,
    /// Class names, in the order of the classifier's rows.
    pub labels: Labels,
    /// Training choices; carried along, not used for inference.
    pub train: TrainConfig,
}

/// The conformed cube that every scan becomes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VolumeConfig {
    /// Side of the cube in voxels.
    pub size: usize,
    /// Side of a voxel in millimetres.
    pub voxel_mm: f64,
    /// Percentiles `[low, high]` that intensities are clipped to before min-max, or none.
    pub clip: Option<[f64; 2]>,
}

impl Default for VolumeConfig {
    fn default() -> Self {
        Self { size: 256, voxel_mm: 1.0, clip: None }
    }
}

/// How the adapter reads the cube.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterKind {
    /// 2-D convolutions whose channels are the slices.
    Bottleneck2d,
    /// 3-D convolutions; the 64 is a depth.
    Bottleneck3d,
}

/// The normalisation behind each convolution of the adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// Batch normalisation with running statistics, eps 1e-5.
    Batch,
    /// Group normalisation with 8 groups, eps 1e-5.
    Group,
    /// None; the convolutions have a bias instead.
    None,
}

/// Number of groups of [`Norm::Group`].
pub const NORM_GROUPS: usize = 8;

/// The adapter's kind and sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterConfig {
    /// 2-D or 3-D convolutions.
    pub kind: AdapterKind,
    /// Normalisation behind each convolution.
    pub norm: Norm,
    /// Slices in; equals `volume.size`.
    #[serde(rename = "in")]
    pub slices_in: usize,
    /// Slices out: the depth that the vision transformer sees.
    #[serde(rename = "out")]
    pub slices_out: usize,
    /// Channels of the 3-D kind.
    pub width: usize,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self { kind: AdapterKind::Bottleneck2d, norm: Norm::Batch, slices_in: 256, slices_out: 64, width: 8 }
    }
}

/// How the vision transformer's tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VisionPool {
    /// The CLS token after the final norm.
    Cls,
    /// The mean of the patch tokens after the final norm.
    Mean,
}

/// The vision transformer's sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VisionConfig {
    /// Depth, height and width that it was pre-trained at; position embeddings are interpolated from there.
    pub img: [usize; 3],
    /// Depth, height and width of a patch.
    pub patch: [usize; 3],
    /// Width of a token.
    pub hidden: usize,
    /// Width of the MLP's inner layer.
    pub mlp: usize,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// How tokens become one vector.
    pub pool: VisionPool,
}

impl Default for VisionConfig {
    fn default() -> Self {
        let pool = VisionPool::Cls;
        Self { img: [32, 256, 256], patch: [4, 16, 16], hidden: 768, mlp: 3072, layers: 12, heads: 12, pool }
    }
}

/// How the language model's tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TextPool {
    /// The mean over the tokens that are not padding.
    Mean,
    /// The last token that is not padding.
    Last,
}

/// What is ours to choose about the language model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextConfig {
    /// Width of a hidden state; must agree with the checkpoint.
    pub hidden: usize,
    /// How tokens become one vector.
    pub pool: TextPool,
    /// Maximum number of tokens of a report, BOS included; the rest is cut with a warning.
    pub max_tokens: usize,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self { hidden: 4096, pool: TextPool::Mean, max_tokens: 512 }
    }
}

/// The space in which image and text meet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProjectionConfig {
    /// Its number of dimensions.
    pub dim: usize,
}

impl Default for ProjectionConfig {
    fn default() -> Self {
        Self { dim: 768 }
    }
}

/// Choices of a training that inference does not read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Weight of the contrastive part of the loss.
    pub contrastive_weight: f64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self { contrastive_weight: 1.0 }
    }
}

/// Class names in the order of the classifier's rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(pub Vec<String>);

impl Default for Labels {
    fn default() -> Self {
        Self(["CN", "MCI", "AD"].map(str::to_owned).to_vec())
    }
}

impl Config {
    /// Reads and validates a `config.json`.
    ///
    /// # Errors
    /// `config.syntax` when it is unreadable or names an unknown field, `config.value` when a size is impossible.
    pub fn load(path: &Path) -> Result<Self> {
        Self::from_text(&read_small(path)?).map_err(|e| e.at(path))
    }

    /// As [`Self::load`], of the file's text.
    ///
    /// # Errors
    /// `config.syntax` or `config.value`.
    pub fn from_text(text: &str) -> Result<Self> {
        let config: Self =
            serde_json::from_str(text).map_err(|e| Error::new(Code::CONFIG_SYNTAX, format!("{e}")).caused_by(e))?;
        config.validate()?;
        Ok(config)
    }

    /// Depth, height and width of what the vision transformer sees.
    pub fn run_size(&self) -> [usize; 3] {
        [self.adapter.slices_out, self.volume.size, self.volume.size]
    }

    /// Patches along depth, height and width when running.
    pub fn run_grid(&self) -> [usize; 3] {
        let size = self.run_size();
        std::array::from_fn(|i| size[i] / self.vision.patch[i])
    }

    /// Patches along depth, height and width at pre-training: the shape of the stored position embeddings.
    pub fn trained_grid(&self) -> [usize; 3] {
        std::array::from_fn(|i| self.vision.img[i] / self.vision.patch[i])
    }

    /// Checks that every size can be built.
    ///
    /// # Errors
    /// `config.value` or `config.contradiction`, naming the field and what it holds.
    pub fn validate(&self) -> Result<()> {
        self.validate_ranges()?;
        let (a, v) = (&self.adapter, &self.vision);
        if a.slices_in != self.volume.size {
            let message =
                format!("adapter.in is {} and volume.size {}: they must agree", a.slices_in, self.volume.size);
            return Err(Error::new(Code::CONFIG_CONTRADICTION, message));
        }
        if a.kind == AdapterKind::Bottleneck3d && a.slices_in % a.slices_out != 0 {
            return value(format!("adapter.out is {}, which does not divide adapter.in {}", a.slices_out, a.slices_in));
        }
        let channels = if a.kind == AdapterKind::Bottleneck2d { a.slices_out } else { a.width };
        if a.norm == Norm::Group && channels % NORM_GROUPS != 0 {
            return value(format!(
                "adapter.norm \"group\" needs channels in multiples of {NORM_GROUPS}, not {channels}"
            ));
        }
        if v.hidden % v.heads != 0 {
            return value(format!("vision.hidden {} is not a multiple of vision.heads {}", v.hidden, v.heads));
        }
        for (what, size) in [("vision.img", v.img), ("[adapter.out, volume.size, volume.size]", self.run_size())] {
            if (0..3).any(|i| size[i] % v.patch[i] != 0) {
                return value(format!("{what} {size:?} is not a multiple of vision.patch {:?}", v.patch));
            }
        }
        let patches = self.run_grid().iter().product::<usize>();
        if patches > MAX_PATCHES || patches * v.hidden > MAX_POSITIONS {
            return value(format!(
                "[adapter.out, volume.size, volume.size] {:?} are {patches} patches of vision.hidden {}, expected at \
                 most {MAX_PATCHES} patches and {MAX_POSITIONS} values",
                self.run_size(),
                v.hidden
            ));
        }
        Ok(())
    }

    fn validate_ranges(&self) -> Result<()> {
        let (a, v) = (&self.adapter, &self.vision);
        let sizes = [
            ("volume.size", self.volume.size, MAX_SIDE),
            ("adapter.in", a.slices_in, MAX_SIDE),
            ("adapter.out", a.slices_out, MAX_SIDE),
            ("adapter.width", a.width, MAX_SIDE),
            ("vision.hidden", v.hidden, MAX_WIDTH),
            ("vision.mlp", v.mlp, MAX_MLP),
            ("vision.layers", v.layers, MAX_LAYERS),
            ("vision.heads", v.heads, MAX_HEADS),
            ("text.hidden", self.text.hidden, MAX_WIDTH),
            ("text.max_tokens", self.text.max_tokens, MAX_TOKENS),
            ("projection.dim", self.projection.dim, MAX_WIDTH),
        ];
        let axes = v.img.iter().map(|&n| ("vision.img", n)).chain(v.patch.iter().map(|&n| ("vision.patch", n)));
        for (name, size, max) in sizes.into_iter().chain(axes.map(|(name, size)| (name, size, MAX_SIDE))) {
            if !(1..=max).contains(&size) {
                return value(format!("{name} is {size}, expected 1 to {max}"));
            }
        }
        if self.volume.size < 2 {
            return value(format!("volume.size is {}, expected 2 to {MAX_SIDE}", self.volume.size));
        }
        let mm = self.volume.voxel_mm;
        if !(0.01..=100.0).contains(&mm) {
            let metres = format!(" millimetres; a voxel of {mm} m is written {}", mm * 1e3);
            let hint = if (1e-5..0.01).contains(&mm) { metres } else { String::new() };
            return value(format!("volume.voxel_mm is {mm}, expected 0.01 to 100{hint}"));
        }
        self.volume.clip.map_or(Ok(()), validate_clip)?;
        let labels = &self.labels.0;
        if labels.len() > MAX_LABELS {
            return value(format!("labels are {} names, expected 2 to {MAX_LABELS}", labels.len()));
        }
        if let Some(long) = labels.iter().find(|label| label.len() > MAX_LABEL_BYTES) {
            return value(format!("a name in labels has {} bytes, expected at most {MAX_LABEL_BYTES}", long.len()));
        }
        // "AD" and "AD " would be two classes that nobody can tell apart.
        let distinct: std::collections::BTreeSet<_> = labels.iter().map(|label| label.trim()).collect();
        if labels.len() < 2 || distinct.len() != labels.len() || distinct.contains("") {
            return value(format!("labels are {labels:?}, expected two or more different names"));
        }
        Ok(())
    }
}

/// Percentiles in percent, in order. A clip that ends at the first percentile would leave no image: fractions are
/// meant.
fn validate_clip([low, high]: [f64; 2]) -> Result<()> {
    let ordered = 0.0 <= low && low < high && high <= 100.0;
    if ordered && high > 1.0 {
        return Ok(());
    }
    let remedy = if ordered {
        // Of 0.995 * 100, the figures that were written.
        let percent = |fraction: f64| (fraction * 1e8).round() / 1e6;
        format!("percentiles in percent: for these fractions write [{}, {}]", percent(low), percent(high))
    } else if 0.0 <= high && high < low && low <= 100.0 {
        format!("the lower percentile first: write [{high}, {low}]")
    } else {
        "percentiles in percent, 0 <= low < high <= 100".to_owned()
    };
    value(format!("volume.clip is [{low}, {high}], expected {remedy}"))
}

fn value<T>(message: String) -> Result<T> {
    Err(Error::new(Code::CONFIG_VALUE, message))
}

/// Reads a configuration file of bounded size: UTF-8, or what an editor of Windows makes of it.
pub(crate) fn read_small(path: &Path) -> Result<String> {
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::new(Code::CHECKPOINT_NOT_FOUND, "no such file").at(path),
        _ => Error::io(path, "cannot open the file", e),
    })?;
    if !meta.is_file() || meta.len() > MAX_CONFIG_BYTES {
        let message = format!("expected a JSON file of at most {MAX_CONFIG_BYTES} bytes");
        return Err(Error::new(Code::CONFIG_SYNTAX, message).at(path));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot read the file", e))?;
    crate::json::decode(bytes)
        .ok_or_else(|| Error::new(Code::CONFIG_SYNTAX, "the file is not UTF-8: save it as UTF-8").at(path))
}

#[cfg(test)]
mod tests;
