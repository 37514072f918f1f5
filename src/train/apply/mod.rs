//! `ba-train apply`: from trained weights to a new version of a bundle.
//!
//! ```text
//! checkpoint ─ adapter, heads ─ quantized as the bundle is ─ compared with fp32 ┐
//! bundle ──── verified ──── vision transformer, language model, tokenizer ──────┴─ a new version
//! ```
//!
//! Shapes and the order of labels are the bundle's. The two new graphs are built, quantized and compared as in an
//! export; an error above its limit, or weights that cannot be used, leave the bundle as it is. The new bundle becomes
//! a version next to the old one (see [`Versions`]), then replaces it in one step; [`roll_back`] restores an older one,
//! byte for byte.
//!
//! Results that were measured with the old weights are dropped: the manifest of the new version is built field by
//! field.
//!
//! ```no_run
//! use brain_adapter::progress::Silent;
//! use brain_adapter::train::apply::{self, Plan};
//!
//! let plan = Plan {
//!     bundle: "onnx".into(),
//!     checkpoint: "training/run/best".into(),
//!     selection: Default::default(),
//!     calibration: None,
//!     adapter_fp32: false,
//!     save_adapter: None,
//!     library: None,
//!     threads: None,
//! };
//! println!("version {}", apply::run(&plan, &mut Silent)?.version);
//! # Ok::<(), brain_adapter::Error>(())
//! ```

mod manifest;
mod state_dict;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

pub use state_dict::{is_ours as is_state_dict, save as save_state_dict};

use crate::bundle::{Bundle, Manifest, SourceRecord, Staging, Version, Versions};
use crate::checkpoint::{Checkpoint, Selection, maker_metadata};
use crate::error::{Code, Error, Result};
use crate::execute::{Expected, Options, Pipeline, Timing};
use crate::export::{self, Bundled, CalibrationInput, Fallback, PartSummary, Retrained, calibration_folder};
use crate::files::path_as_text;
use crate::model::{self, Part, Trained};
use crate::progress::Progress;
use crate::runtime::Device;

/// The settings of `ba-train apply`.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The bundle's folder.
    pub bundle: PathBuf,
    /// The trained weights: a file or folder that [`Checkpoint::open`] reads, under PyTorch's names.
    pub checkpoint: PathBuf,
    /// Which of its tensors are meant, where it has several sets.
    pub selection: Selection,
    /// A folder of scans and reports: calibrates a quantized adapter, and compares both parts with float32.
    pub calibration: Option<PathBuf>,
    /// Whether an adapter that is int8 in the bundle may become float32 if there is no scan to calibrate it on.
    pub adapter_fp32: bool,
    /// Also save the trained tensors there, as safetensors for PyTorch.
    pub save_adapter: Option<PathBuf>,
    /// Path of the ONNX Runtime library; by default it is searched for.
    pub library: Option<PathBuf>,
    /// Threads within an operator; by default one a core.
    pub threads: Option<usize>,
}

/// The result of [`run`].
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The bundle's folder.
    #[serde(serialize_with = "path_as_text")]
    pub bundle: PathBuf,
    /// Number of the new version.
    pub version: u32,
    /// Number of the version that it was made from, which is kept.
    pub parent: u32,
    /// SHA-256 of the new `bundle.json`.
    pub sha256: String,
    /// The two new parts: adapter and heads.
    pub parts: Vec<PartSummary>,
    /// Maximum change of a probability by the quantization of the two parts, if it was measured.
    pub probabilities: Option<f64>,
    /// The parts that have another number format than in the bundle, with the limit that was missed and the cost.
    pub fallbacks: Vec<Fallback>,
    /// The files of the checkpoint.
    pub sources: Vec<SourceRecord>,
    /// Names of the files that both versions share.
    pub shared: Vec<String>,
    /// Wall time, in seconds.
    pub seconds: f64,
}

/// Makes a new version of a bundle from trained weights. On an error the bundle in use stays as it is.
///
/// # Errors
/// `bundle.*` when the bundle is damaged, changed by another program, or replaced in the meantime; `checkpoint.*` when
/// the weights do not fit or cannot be used; `config.contradiction` when they were trained for other labels;
/// `calibration.input`, `verify.mismatch`, `quantize.error`; `runtime.*` when something is compared; `io`, `disk.full`.
pub fn run(plan: &Plan, progress: &mut dyn Progress) -> Result<Summary> {
    let started = Instant::now();
    progress.step("reading the bundle and the checkpoint", None);
    let old = Arc::new(Bundle::open_quickly(&plan.bundle)?);
    let checkpoint = Checkpoint::open_with(&plan.checkpoint, &plan.selection)?;
    let trained = trained(&old, &checkpoint)?;
    trained.warnings.iter().for_each(|warning| progress.warn(warning));
    let folder = plan.calibration.as_deref().map(calibration_folder).transpose()?.unwrap_or_default();
    folder.warning().iter().for_each(|warning| progress.warn(warning));
    let inputs = folder.inputs;
    let versions = Versions::lock(&plan.bundle)?;
    let parent = in_use(&versions, &old)?;
    let number = versions.all()?.iter().map(|v| v.number).max().unwrap_or(parent).saturating_add(1);
    let staging = versions.stage(number)?;
    let retrained = retrain(plan, &old, &trained, &inputs, &staging, progress)?;
    let sources = export::sources_of(checkpoint.files())?;
    let shared = share(&old, &staging)?;
    let (parts, probabilities) = (retrained.parts.clone(), retrained.probabilities);
    let fallbacks = retrained.fallbacks.clone();
    let manifest = manifest::next(&old, retrained, &trained, &sources, number);
    if let Some(path) = &plan.save_adapter {
        save_state_dict(path, &checkpoint, &old.manifest.config, maker_metadata())?;
    }
    progress.step("installing the new version", None);
    in_use(&versions, &old)?;
    old.unchanged()?;
    checkpoint.unchanged()?;
    let number = install(&versions, staging, &manifest, number)?;
    let all = versions.all()?;
    let sha256 = all.iter().find(|v| v.number == number).and_then(Version::sha256).unwrap_or_default().to_owned();
    Ok(Summary {
        bundle: plan.bundle.clone(),
        version: number,
        parent,
        sha256,
        parts,
        probabilities,
        fallbacks,
        sources,
        shared,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Restores an older version of the bundle: version `to`, by default the one that the bundle in use was made from. The
/// bundle that was in use is kept as a version. Returns the restored number.
///
/// # Errors
/// `bundle.version` when there is no such version; `bundle.*` when it is damaged or another program changes the bundle;
/// `io`, `disk.full`.
pub fn roll_back(bundle: &Path, to: Option<u32>, progress: &mut dyn Progress) -> Result<u32> {
    // Fails without a bundle or versions: there is nothing to lock.
    Versions::list(bundle)?;
    let versions = Versions::lock(bundle)?;
    let number = match to {
        Some(number) => number,
        None => previous(bundle, &versions.all()?)?,
    };
    progress.step("verifying the version", None);
    versions.verify(number)?;
    progress.step("installing the version", None);
    versions.keep()?;
    versions.use_version(number)?;
    Ok(number)
}

/// The version that the one in use was made from.
fn previous(bundle: &Path, all: &[Version]) -> Result<u32> {
    let none = |message: String| Error::new(Code::BUNDLE_VERSION, message).at(bundle);
    let numbers: Vec<String> = all.iter().map(|v| v.number.to_string()).collect();
    let choose = format!("choose a version with --to N (there are {})", numbers.join(", "));
    let Some(current) = all.iter().find(|v| v.in_use) else {
        return Err(none(format!("there is no bundle in use: {choose}")));
    };
    let (manifest, _) = current.content.as_ref().map_err(|e| none(format!("{e}: {choose}")))?;
    let Some(record) = &manifest.version else {
        return Err(none(format!("the bundle in use was exported and has no version before it: {choose}")));
    };
    let parent = all.iter().find(|v| v.sha256() == Some(&record.parent_sha256));
    parent.map(|v| v.number).ok_or_else(|| none(format!("the version before the one in use is not here: {choose}")))
}

/// The trained tensors under the bundle's names, with its shapes.
fn trained(bundle: &Bundle, checkpoint: &Checkpoint) -> Result<Trained> {
    let manifest = &bundle.manifest;
    let here = |e: Error| e.at(checkpoint.path());
    if let Some(labels) = checkpoint.metadata().get(state_dict::LABELS) {
        let ours = state_dict::labels(&manifest.config);
        if *labels != ours {
            let message = format!("the weights were trained for the labels {labels}, the bundle has {ours}");
            return Err(here(Error::new(Code::CONFIG_CONTRADICTION, message)));
        }
    }
    let trained = model::trained(&manifest.config, checkpoint)?;
    if manifest.image_head && !trained.image_head {
        let message = "there is no `image_classifier.*`, which the bundle needs for scans without a report: to do \
                       without, export the model again";
        return Err(here(Error::new(Code::CHECKPOINT_TENSORS, message)));
    }
    // Also tensors that no graph reads, such as `logit_scale`: a checkpoint with a NaN is broken.
    for (name, tensor) in trained.checkpoint.iter().filter(|(name, t)| model::is_trained(name) && t.dtype().is_float())
    {
        tensor.checked_finite(name).stream(&mut |_| Ok(())).map_err(here)?;
    }
    Ok(trained)
}

/// Builds the two new parts and verifies the whole bundle.
fn retrain(
    plan: &Plan,
    old: &Arc<Bundle>,
    trained: &Trained,
    inputs: &[CalibrationInput],
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<Retrained> {
    let task = Bundled {
        bundle: old,
        trained,
        checkpoint: &plan.checkpoint,
        inputs,
        adapter_fp32: plan.adapter_fp32,
        library: plan.library.as_deref(),
        threads: plan.threads,
        staging,
    };
    let scans = inputs.iter().filter(|i| i.scan.is_some()).count();
    if scans == 0 {
        progress.step("verifying the bundle", None);
        Bundle::open(&plan.bundle)?;
        let nothing = |_: Part, _: &[(&str, &_)], _: &[&str]| {
            Err(Error::new(Code::CALIBRATION_INPUT, "there is no calibration scan: add one to the folder"))
        };
        return export::retrained(&task, &mut { nothing }, progress);
    }
    let reports = inputs.iter().filter(|i| i.scan.is_some() && i.report.is_some()).count();
    let options = Options {
        device: Device::Cpu,
        threads: plan.threads,
        library: plan.library.clone(),
        expected: Expected { scans, reports },
        ..Options::default()
    };
    let pipeline = Pipeline::over(Arc::clone(old), &options)?;
    let mut run = |part: Part, feed: &[(&str, &_)], outputs: &[&str]| {
        let mut timing = Timing::default();
        let tensors = pipeline.run(part, feed, outputs, &mut timing)?;
        pipeline.verify(&[part], &mut timing)?;
        Ok(tensors)
    };
    let retrained = export::retrained(&task, &mut run, progress)?;
    progress.step("verifying the bundle", None);
    pipeline.verify_all()?;
    Ok(retrained)
}

/// Links the files that stay the same into the new version; returns their names.
fn share(old: &Bundle, staging: &Staging) -> Result<Vec<String>> {
    let names = old.manifest.files.iter().map(|f| f.name.clone());
    let shared: Vec<String> = names.filter(|name| !export::is_remade(name)).collect();
    shared.iter().try_for_each(|name| staging.take_over(&old.dir, name))?;
    Ok(shared)
}

/// The number of the version in use, which must be the bundle that was opened.
fn in_use(versions: &Versions, bundle: &Bundle) -> Result<u32> {
    let all = versions.all()?;
    let current = all.iter().find(|v| v.in_use && v.sha256() == Some(&bundle.sha256));
    current.map(|v| v.number).ok_or_else(|| {
        let message = "the bundle was replaced in the meantime: run this again";
        Error::new(Code::BUNDLE_REPLACED, message).at(&bundle.dir)
    })
}

/// Keeps the old version, adds the new one and puts it into use; returns its number.
fn install(versions: &Versions, staging: Staging, manifest: &Manifest, number: u32) -> Result<u32> {
    versions.keep()?;
    let number = match versions.find(manifest)? {
        // An interrupted run installed it and did not put it into use.
        Some(number) => number,
        None => {
            staging.install(manifest)?;
            number
        }
    };
    versions.use_version(number)?;
    Ok(number)
}
