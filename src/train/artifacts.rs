//! The training artifacts: the folder that `ba-train prepare` writes and `ba-train fit` reads.
//!
//! | file | content |
//! |---|---|
//! | `training_model.onnx`, `eval_model.onnx` | the whole model with loss (and gradients), for any ONNX Runtime |
//! | `optimizer_model.onnx` | AdamW over all trained parameters |
//! | `checkpoint` | every parameter of adapter and heads (FlatBuffers, `ODTC`) |
//! | `frozen.safetensors` | the frozen transformer's weights; the first two refer to it |
//! | `training.json` | the manifest, of this crate: what is trained and how, sizes and hashes of the other files |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::frozen_weights::FrozenWeights;
use super::graphs::parameters;
use super::monolith::Parameter;
use crate::bundle::{FileRecord, SourceRecord, Tool, sha256_of};
use crate::checkpoint::{Checkpoint, SourceFile, TrainingState};
use crate::config::{Config, read_small};
use crate::error::{Code, Error, Result};
use crate::model::Mode;
use crate::model::adapter::Statistics;
use crate::tensor::{DType, LazyTensor};

/// The manifest's file name.
pub const MANIFEST: &str = "training.json";
/// Version of the manifest's format; another one is refused.
pub const FORMAT: u32 = 1;
/// File name of the parameters.
pub const CHECKPOINT: &str = "checkpoint";
/// File name of the frozen weights.
pub const FROZEN: &str = "frozen.safetensors";

/// The files next to the manifest.
pub(super) const FILES: [&str; 5] =
    [CHECKPOINT, "eval_model.onnx", FROZEN, "optimizer_model.onnx", "training_model.onnx"];

/// `training.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The program that wrote it.
    pub tool: Tool,
    /// What the model may be used for.
    pub intended_use: String,
    /// Which parameters are trained, by which loss.
    pub mode: Mode,
    /// What batch norms normalise by in training.
    pub statistics: Statistics,
    /// The model's configuration.
    pub config: Config,
    /// Every file except the manifest.
    pub files: Vec<FileRecord>,
    /// The checkpoints that the artifacts were made from.
    pub sources: Vec<SourceRecord>,
    /// Tensors of the sources that the model does not use.
    pub skipped: Vec<String>,
}

impl Manifest {
    /// Reads and checks the text of `training.json`.
    ///
    /// # Errors
    /// `training.artifacts`, or the configuration's `config.*`.
    pub fn from_text(text: &str) -> Result<Self> {
        let invalid = |message: String| Error::new(Code::TRAINING_ARTIFACTS, message);
        let manifest: Self = serde_json::from_str(text)
            .map_err(|e| invalid(format!("cannot be read: {e}; run ba-train prepare again")))?;
        if manifest.format != FORMAT {
            let message = format!("has format {}, expected {FORMAT}: run ba-train prepare again", manifest.format);
            return Err(invalid(message));
        }
        manifest.config.validate()?;
        // These names and no others: nothing outside the folder is ever read, and nothing is read unchecked.
        let mut listed: Vec<&str> = manifest.files.iter().map(|record| record.name.as_str()).collect();
        listed.sort_unstable();
        if listed != FILES {
            let message = format!("lists {}, expected {}: run ba-train prepare again", list(&listed), list(&FILES));
            return Err(invalid(message));
        }
        Ok(manifest)
    }
}

/// Training artifacts whose files match their recorded hashes.
#[derive(Debug)]
pub struct Artifacts {
    /// The folder.
    pub dir: PathBuf,
    /// Its `training.json`.
    pub manifest: Manifest,
    /// SHA-256 of the manifest, which holds the hashes of all other files.
    pub sha256: String,
    /// The frozen weights' file, as it was before it was hashed.
    frozen: SourceFile,
}

impl Artifacts {
    /// Opens a folder and verifies the hash of every file.
    ///
    /// # Errors
    /// `training.artifacts` when there are none, or a file is missing or differs from its hash; `io`.
    pub fn open(dir: &Path) -> Result<Self> {
        let invalid = |message: String| Error::new(Code::TRAINING_ARTIFACTS, message);
        let path = dir.join(MANIFEST);
        if !path.is_file() {
            let message = format!("there are no training artifacts (no {MANIFEST}): make them with ba-train prepare");
            return Err(invalid(message).at(dir));
        }
        let manifest = Manifest::from_text(&read_small(&path)?).map_err(|e| e.at(&path))?;
        let missing = |_| invalid(format!("the file `{FROZEN}` is missing")).at(dir);
        let frozen = SourceFile::at(&dir.join(FROZEN)).map_err(missing)?;
        for record in &manifest.files {
            let file = dir.join(&record.name);
            if !file.is_file() {
                return Err(invalid(format!("the file `{}` is missing", record.name)).at(dir));
            }
            let found = sha256_of(&file)?;
            if found != record.sha256 {
                let message = format!("differs from what {MANIFEST} recorded: run ba-train prepare again");
                return Err(invalid(message).at(file));
            }
        }
        let sha256 = sha256_of(&path)?;
        Ok(Self { dir: dir.to_owned(), manifest, sha256, frozen })
    }

    /// The parameters as they were prepared. Every parameter that the mode's graphs read is there, in the configured
    /// shape.
    ///
    /// # Errors
    /// `checkpoint.*`; `training.artifacts` when one is missing or of another shape.
    pub fn state(&self) -> Result<TrainingState> {
        let path = self.dir.join(CHECKPOINT);
        let state = TrainingState::open(&path)?;
        for (name, shape) in parameters(&self.manifest.config, self.manifest.mode) {
            let side = if self.manifest.mode.trains(&name) { &state.trainable } else { &state.frozen };
            match side.get(&name) {
                Some(tensor) if tensor.shape() == shape && tensor.dtype() == DType::F32 => {}
                found => {
                    let found = found.map_or("nothing".into(), |t| format!("{} {:?}", t.dtype(), t.shape()));
                    let message = format!("`{name}`: found {found}, expected float32 {shape:?} for {MANIFEST}");
                    return Err(Error::new(Code::TRAINING_ARTIFACTS, message).at(path));
                }
            }
        }
        Ok(state)
    }

    /// The frozen weights, from their mapped file.
    ///
    /// # Errors
    /// `checkpoint.*`; `training.artifacts` when their number of blocks is not the configured one.
    pub fn frozen(&self) -> Result<FrozenWeights> {
        let checkpoint = Checkpoint::open(self.dir.join(FROZEN))?;
        let block = |name: &str| name.strip_prefix("blocks.")?.split('.').next()?.parse::<usize>().ok();
        let blocks = checkpoint.names().filter_map(block).max().map_or(0, |last| last.saturating_add(1));
        let layers = self.manifest.config.vision.layers;
        if blocks != layers {
            let message = format!("holds {blocks} blocks of the transformer, expected {layers} for {MANIFEST}");
            return Err(Error::new(Code::TRAINING_ARTIFACTS, message).at(checkpoint.path()));
        }
        // What is mapped must be what was hashed.
        self.frozen.unchanged()?;
        FrozenWeights::of(&checkpoint)
    }
}

/// The parameters of a training checkpoint in the order of the graphs' inputs: sorted by name.
pub fn parameters_of(state: &TrainingState) -> Vec<Parameter> {
    let of = |all: &BTreeMap<String, LazyTensor>, trained: bool| -> Vec<Parameter> {
        let parameter = |(name, t): (&String, &LazyTensor)| Parameter {
            name: name.clone(),
            dtype: t.dtype(),
            shape: t.shape().to_vec(),
            trained,
        };
        all.iter().map(parameter).collect()
    };
    let mut all = of(&state.trainable, true);
    all.extend(of(&state.frozen, false));
    all.sort_by(|a, b| a.name.cmp(&b.name));
    debug_assert!(all.iter().all(|p| p.dtype == DType::F32 || !p.trained), "only floats are trained");
    all
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{}`", name.escape_default())).collect::<Vec<_>>().join(", ")
}
