//! `ba-train prepare`: from checkpoints to training artifacts.
//!
//! ```text
//! config.json, adapter.*, m3d/ ─ weights ─┬ frozen.safetensors ◄───────────────┐ (large weights are stored once)
//!                                         ├ checkpoint                         │
//!                                         └ stages ─ Monolith ─ training_model, eval_model.onnx
//! ```
//!
//! The language model is not read: `fit` encodes reports with the bundle that the trained weights are meant for.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::artifacts::{CHECKPOINT, FILES, FORMAT, FROZEN, MANIFEST, Manifest, parameters_of};
use super::graphs::{Activations, GraphOptions, TrainingGraphs, is_weight};
use super::monolith::Monolith;
use crate::bundle::{FileRecord, INTENDED_USE, SourceRecord, Staged, Tool, sha256_of};
use crate::checkpoint::{Checkpoint, TrainingState, safetensors_offsets, write_safetensors};
use crate::config::{AdamW, Config, read_small};
use crate::error::{Code, Error, Result, Warning};
use crate::export::Sources;
use crate::files;
use crate::model::adapter::Statistics;
use crate::model::{self, Attention, Mode, Part, Stages, loss, vit};
use crate::onnx::{DataLayout, write_part_of};
use crate::optimizer::write_optimizer_model;
use crate::passes::weights_to_inputs;
use crate::progress::Progress;
use crate::tensor::LazyTensor;

/// The settings of `ba-train prepare`.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The checkpoints; `text` is not read.
    pub sources: Sources,
    /// Which parameters are trained, by which loss.
    pub mode: Mode,
    /// What batch norms normalise by in training.
    pub statistics: Statistics,
    /// The constants of `optimizer_model.onnx`.
    pub adamw: AdamW,
    /// Where the artifacts go.
    pub output: PathBuf,
    /// Whether the output may hold other files, which are kept.
    pub force: bool,
}

/// The result of [`run`].
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The folder of the artifacts.
    pub output: PathBuf,
    /// Which parameters are trained, by which loss.
    pub mode: Mode,
    /// What batch norms normalise by in training.
    pub statistics: Statistics,
    /// Number of trainable parameters (elements of tensors).
    pub trained: u64,
    /// Number of parameters of adapter and heads that stay frozen.
    pub fixed: u64,
    /// Number of parameters of the frozen vision transformer.
    pub frozen: u64,
    /// The files.
    pub files: Vec<FileRecord>,
    /// Tensors of the sources that the model does not use.
    pub skipped: Vec<String>,
}

/// Writes the artifacts; an existing folder of artifacts is replaced.
///
/// # Errors
/// `config.*`, `checkpoint.*`, `output.exists`, `io`, `disk.full`.
pub fn run(plan: &Plan, progress: &mut dyn Progress) -> Result<Summary> {
    let target = target(&plan.output)?;
    foreign_files(&target, plan.force)?;
    let config = Config::load(&plan.sources.config)?;
    plan.sources.check_positions(&config)?;
    let adapter = Checkpoint::open_with(&plan.sources.adapter, &plan.sources.selection)?;
    let vision = Checkpoint::open(&plan.sources.vision)?;
    let (state, skipped, warnings) = state(&config, plan.mode, &adapter)?;
    let found = model::vision(&config, &vision)?;
    let told = plan.sources.choices_in_use().chain(&warnings).chain(&found.warnings);
    told.for_each(|warning| progress.warn(warning));
    let skipped = BTreeSet::from_iter(skipped.into_iter().chain(found.skipped));
    let here = |e: Error| e.at(vision.path());
    let graph = vit::build(&config, &found.weights, Attention::Fused, Stages::Output).map_err(here)?;
    let frozen: BTreeMap<String, LazyTensor> = weights_to_inputs(&graph, &is_weight)?.1.into_iter().collect();
    let (parent, name) = target.parent().zip(target.file_name()).ok_or_else(|| {
        let message = "the output must be a folder with a name: choose another -o";
        Error::new(Code::OUTPUT_EXISTS, message).at(&plan.output)
    })?;
    let staged = Staged::new(parent, &name.to_string_lossy())?;
    files::check_free_space(staged.path(), bytes(&frozen), "the training artifacts")?;
    progress.step("writing the frozen weights", None);
    write_safetensors(staged.path().join(FROZEN), frozen.clone(), &BTreeMap::new()).map_err(here)?;
    state.write(staged.path().join(CHECKPOINT)).map_err(|e| e.at(adapter.path()))?;
    progress.step("writing the graphs", None);
    write_graphs(plan, &config, &state, &frozen, staged.path())?;
    progress.step("hashing", None);
    let manifest = Manifest {
        format: FORMAT,
        tool: Tool::this(),
        intended_use: INTENDED_USE.into(),
        mode: plan.mode,
        statistics: plan.statistics,
        config,
        files: file_records(staged.path())?,
        sources: source_records(plan, &adapter, &vision)?,
        skipped: Vec::from_iter(skipped),
    };
    let json = serde_json::to_vec_pretty(&manifest).map_err(Error::internal)?;
    files::replace(&staged.path().join(MANIFEST), &json)?;
    adapter.unchanged()?;
    vision.unchanged()?;
    // A training may have started in the old folder meanwhile.
    for name in foreign_files(&target, plan.force)? {
        let (from, to) = (target.join(&name), staged.path().join(&name));
        files::copy_regular(&from, &to).map_err(|e| Error::io(from, "cannot keep the file", e))?;
    }
    staged.install(&target)?;
    let count = |all: &BTreeMap<String, LazyTensor>| all.values().map(|t| t.len() as u64).sum();
    Ok(Summary {
        output: plan.output.clone(),
        mode: plan.mode,
        statistics: plan.statistics,
        trained: count(&state.trainable),
        fixed: count(&state.frozen),
        frozen: count(&frozen),
        files: manifest.files,
        skipped: manifest.skipped,
    })
}

/// How many bytes tensors have.
fn bytes(tensors: &BTreeMap<String, LazyTensor>) -> u64 {
    tensors.values().map(|t| t.byte_len() as u64).sum()
}

/// The absolute path of the output. A link to a folder stays a link: its target is replaced.
fn target(output: &Path) -> Result<PathBuf> {
    let target = if output.exists() { output.canonicalize() } else { std::path::absolute(output) };
    target.map_err(|e| Error::io(output, "cannot use the folder", e))
}

/// The initial parameters of adapter and heads. Tensors that the mode does not read are kept too: the result is a whole
/// checkpoint. Also returns the names of tensors that the model does not use, and what to know of the checkpoint.
fn state(config: &Config, mode: Mode, adapter: &Checkpoint) -> Result<(TrainingState, Vec<String>, Vec<Warning>)> {
    let mut found = model::trained(config, adapter)?;
    let mut state = TrainingState::default();
    let known = |name: &str| found.weights.contains(name) || name == "logit_scale" || name.ends_with(COUNT);
    for (name, tensor) in found.checkpoint.iter().filter(|(name, _)| model::is_trained(name) && known(name)) {
        let tensor = match name {
            name if name.ends_with(COUNT) => tensor.cast(crate::tensor::DType::I64).reshaped(&[]),
            "logit_scale" if tensor.len() == 1 => tensor.reshaped(&[]),
            _ => tensor.clone(),
        };
        let tensor =
            if name.ends_with(COUNT) { tensor } else { tensor.checked_finite(name).cast(crate::tensor::DType::F32) };
        let side = if mode.trains(name) { &mut state.trainable } else { &mut state.frozen };
        side.insert(name.to_owned(), tensor);
    }
    let missing = loss::parameters(config, mode).into_iter().map(|(name, _)| name);
    let missing: Vec<String> =
        missing.filter(|n| !state.trainable.contains_key(n) && !state.frozen.contains_key(n)).collect();
    if !missing.is_empty() {
        let message = format!("the mode {} needs {}, which the checkpoint lacks", mode.name(), missing.join(", "));
        return Err(Error::new(Code::CHECKPOINT_TENSORS, message).at(adapter.path()));
    }
    found.skipped.retain(|name| !state.frozen.contains_key(name) && !state.trainable.contains_key(name));
    Ok((state, found.skipped, found.warnings))
}

/// Suffix of the counter of a batch norm.
const COUNT: &str = ".num_batches_tracked";

fn write_graphs(
    plan: &Plan,
    config: &Config,
    state: &TrainingState,
    frozen: &BTreeMap<String, LazyTensor>,
    dir: &Path,
) -> Result<()> {
    let options = GraphOptions {
        mode: plan.mode,
        statistics: plan.statistics,
        activations: Activations::Recompute,
        class_weights: None,
    };
    let graphs = TrainingGraphs::new(config, &options, &|name| plan.mode.trains(name))?;
    let parameters = parameters_of(state);
    let monolith = Monolith { config, mode: plan.mode, graphs: &graphs, parameters: &parameters, frozen };
    let placed = DataLayout { file: FROZEN.into(), offsets: safetensors_offsets(&dir.join(FROZEN))? };
    write_part_of(&monolith.training()?, dir, "training_model", &placed)?;
    write_part_of(&monolith.evaluation()?, dir, "eval_model", &placed)?;
    // Microsoft's optimizer supports a single weight decay and no clipping; `fit` has a graph of its own.
    let plain = AdamW { weight_decay: 0.0, clip: None, ..plan.adamw };
    write_optimizer_model(&dir.join("optimizer_model.onnx"), state.trainable.len(), &plain)
}

fn file_records(dir: &Path) -> Result<Vec<FileRecord>> {
    let mut records = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, "cannot read the folder", e))? {
        let entry = entry.map_err(|e| Error::io(dir, "cannot read the folder", e))?;
        let bytes = entry.metadata().map_err(|e| Error::io(entry.path(), "cannot read the size of the file", e))?.len();
        let name = entry.file_name().to_string_lossy().into_owned();
        records.push(FileRecord { name, bytes, sha256: sha256_of(&entry.path())? });
    }
    records.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(records)
}

fn source_records(plan: &Plan, adapter: &Checkpoint, vision: &Checkpoint) -> Result<Vec<SourceRecord>> {
    let of =
        |role: &'static str, c: &Checkpoint| c.files().iter().map(move |f| (role, f.path.clone())).collect::<Vec<_>>();
    let mut all = vec![("config", plan.sources.config.clone())];
    all.extend(of(Part::Adapter.as_str(), adapter));
    all.extend(of(Part::Vision.as_str(), vision));
    let record = |(role, path): (&str, PathBuf)| {
        let bytes =
            std::fs::metadata(&path).map_err(|e| Error::io(&path, "cannot read the size of the file", e))?.len();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(SourceRecord { role: role.into(), name, bytes, sha256: sha256_of(&path)? })
    };
    all.into_iter().map(record).collect()
}

/// The files in a folder that are not training artifacts, which are kept with `force` and refused without. Folders and
/// links are refused.
fn foreign_files(target: &Path, force: bool) -> Result<Vec<OsString>> {
    let entries = match std::fs::read_dir(target) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(target, "cannot use the output folder", e)),
    };
    let ours = is_ours(&target.join(MANIFEST));
    let mut kept = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(target, "cannot read the folder", e))?;
        let name = entry.file_name();
        let known = FILES.iter().chain([&MANIFEST]).any(|known| name == *known);
        let file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if ours && known && file {
            continue;
        }
        if !file || !force || known {
            let keep = if file && !known { ", or keep it with --force" } else { "" };
            let name = name.to_string_lossy();
            let message = format!("the folder holds `{name}`, which ba-train did not write: choose another -o{keep}");
            return Err(Error::new(Code::OUTPUT_EXISTS, message).at(target));
        }
        kept.push(name);
    }
    Ok(kept)
}

/// Whether this program wrote the manifest, in any version.
fn is_ours(manifest: &Path) -> bool {
    #[derive(serde::Deserialize)]
    struct Any {
        tool: Tool,
    }
    let text = manifest.is_file().then(|| read_small(manifest).ok()).flatten();
    text.and_then(|text| serde_json::from_str::<Any>(&text).ok()).is_some_and(|any| any.tool.name == Tool::this().name)
}
