//! Trained weights into a bundle: the work of `ba-train apply`.
//!
//! ```text
//! checkpoint ─ shapes by the bundle's configuration ─ adapter, heads ─ reduced as the bundle is ─ judged ┐
//! bundle ──── verified ──── vision transformer, language model, tokenizer: the same files ───────────────┴─ a new version
//! ```
//!
//! Shapes and the order of labels are the bundle's. The two new graphs are made, reduced and judged as an export does it; a
//! limit that is missed, or weights that cannot be used, leave the bundle as it is. The new bundle becomes a version beside the
//! old one ([`Versions`] says how and where), then goes into use in one step; [`roll_back`] brings an older one back, byte for
//! byte.
//!
//! What was measured or derived with the old weights does not go on: the manifest of the new version is built field by field.

mod manifest;
mod state_dict;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

pub use state_dict::save as save_state_dict;

use crate::bundle::{Bundle, Manifest, SourceRecord, Staging, Version, Versions};
use crate::checkpoint::Checkpoint;
use crate::error::{Code, Error, Result};
use crate::execute::{Expected, Options, Pipeline, Timing};
use crate::export::{self, Bundled, CalibrationInput, PartSummary, Retrained, calibration_inputs};
use crate::model::{self, Part, Trained};
use crate::progress::Progress;
use crate::runtime::Device;

/// What goes into which bundle, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The bundle's folder.
    pub bundle: PathBuf,
    /// The trained weights: a file or folder that [`Checkpoint::open`] reads, under PyTorch's names.
    pub checkpoint: PathBuf,
    /// A folder of scans and reports, to calibrate a reduced adapter on and to compare both parts with float32.
    pub calibration: Option<PathBuf>,
    /// Whether the adapter of a bundle that has it in int8 may be float32 where there is no scan to calibrate it on.
    pub single_adapter: bool,
    /// Where the trained tensors go as safetensors for PyTorch.
    pub save_adapter: Option<PathBuf>,
    /// ONNX Runtime's library, where it is not to be searched for.
    pub library: Option<PathBuf>,
    /// Threads to compute with; by default one a core.
    pub threads: Option<usize>,
}

/// What was made.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The bundle's folder.
    #[serde(serialize_with = "as_text")]
    pub bundle: PathBuf,
    /// The new version's number.
    pub version: u32,
    /// The version that it was made from, which is kept.
    pub parent: u32,
    /// SHA-256 of the new `bundle.json`.
    pub sha256: String,
    /// Adapter and heads.
    pub parts: Vec<PartSummary>,
    /// Largest difference of a probability that the two parts' reduced precision makes, where it was measured.
    pub probabilities: Option<f64>,
    /// The checkpoint's files.
    pub sources: Vec<SourceRecord>,
    /// Names of the files that the versions share.
    pub shared: Vec<String>,
    /// Seconds in all.
    pub seconds: f64,
}

fn as_text<S: serde::Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// Puts trained weights into a bundle. On any error the bundle in use stays as it is.
///
/// # Errors
/// `bundle.*` when the bundle is damaged, in use by another change, or replaced meanwhile; `checkpoint.*` when the weights do not
/// fit or cannot be used; `config.contradiction` when they were trained for other labels; `calibration.input`,
/// `verify.mismatch`, `quantize.error`; `runtime.*` when something is compared; `io`, `disk.full`.
pub fn run(plan: &Plan, progress: &mut dyn Progress) -> Result<Summary> {
    let started = Instant::now();
    progress.step("reading the bundle and the checkpoint", None);
    let old = Arc::new(Bundle::open_quickly(&plan.bundle)?);
    let checkpoint = Checkpoint::open(&plan.checkpoint)?;
    let trained = trained(&old, &checkpoint)?;
    let inputs = plan.calibration.as_deref().map(calibration_inputs).transpose()?.unwrap_or_default();
    let versions = Versions::lock(&plan.bundle)?;
    let parent = in_use(&versions, &old)?;
    let number = versions.all()?.iter().map(|v| v.number).max().unwrap_or(parent).saturating_add(1);
    let staging = versions.stage(number)?;
    let made = make(plan, &old, &trained, &inputs, &staging, progress)?;
    let sources = export::sources_of(checkpoint.files())?;
    let shared = share(&old, &staging)?;
    let summary_parts = made.parts.clone();
    let probabilities = made.probabilities;
    let manifest = manifest::next(&old, made, &trained, &sources, number);
    if let Some(path) = &plan.save_adapter {
        save_state_dict(path, &checkpoint, &old.manifest.config)?;
    }
    progress.step("installing the new version", None);
    in_use(&versions, &old)?;
    let number = install(&versions, staging, &manifest, number)?;
    let all = versions.all()?;
    let sha256 = all.iter().find(|v| v.number == number).and_then(Version::sha256).unwrap_or_default().to_owned();
    Ok(Summary {
        bundle: plan.bundle.clone(),
        version: number,
        parent,
        sha256,
        parts: summary_parts,
        probabilities,
        sources,
        shared,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Brings an older version of the bundle back: the one that the bundle in use was made from, or the one of that number. What was
/// in use is kept.
///
/// # Errors
/// `bundle.version` when there is no such version; `bundle.*` when it is damaged or the bundle is changed by somebody else; `io`,
/// `disk.full`.
pub fn roll_back(bundle: &Path, to: Option<u32>, progress: &mut dyn Progress) -> Result<u32> {
    // Without a bundle or a store there is nothing to lock.
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

/// The trained tensors, as the bundle wants them.
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
        let message = "there is no `image_classifier.*`, by which the bundle answers scans without a report: export the \
                       model anew to do without";
        return Err(here(Error::new(Code::CHECKPOINT_TENSORS, message)));
    }
    // Also those that no graph reads, such as `logit_scale`: a checkpoint that holds a NaN is a broken one.
    for (name, tensor) in checkpoint.iter().filter(|(name, t)| model::is_trained(name) && t.dtype().is_float()) {
        tensor.checked_finite(name).stream(&mut |_| Ok(())).map_err(here)?;
    }
    Ok(trained)
}

/// Makes the two graphs; meanwhile or afterwards the whole bundle is verified.
fn make(
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
        single_adapter: plan.single_adapter,
        library: plan.library.as_deref(),
        threads: plan.threads,
        staging,
    };
    let scans = inputs.iter().filter(|i| i.scan.is_some()).count();
    if scans == 0 {
        progress.step("verifying the bundle", None);
        Bundle::open(&plan.bundle)?;
        let nothing = |_: Part, _: &[(&str, &_)], _: &[&str]| {
            Err(Error::new(Code::CALIBRATION_INPUT, "without a scan no graph of the bundle is run"))
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
    let made = export::retrained(&task, &mut run, progress)?;
    progress.step("verifying the bundle", None);
    pipeline.verify_all()?;
    Ok(made)
}

/// Takes the files over that stay; gives their names.
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
        let message = "the bundle was replaced meanwhile: run this again";
        Error::new(Code::BUNDLE_REPLACED, message).at(&bundle.dir)
    })
}

/// Keeps the old version, adds the new one and puts it into use; gives its number.
fn install(versions: &Versions, staging: Staging, manifest: &Manifest, number: u32) -> Result<u32> {
    versions.keep()?;
    let number = match versions.find(manifest)? {
        // An interrupted run put it there, and not into use.
        Some(number) => number,
        None => {
            staging.install(manifest)?;
            number
        }
    };
    versions.use_version(number)?;
    Ok(number)
}
