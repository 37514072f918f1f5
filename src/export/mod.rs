//! PyTorch checkpoints → a bundle: the work of `ba-export`.
//!
//! Layer 6. [`Plan`] describes the export; [`run`] does it and returns a [`Summary`]. Weights stream
//! from the checkpoints to the bundle; the bundle appears whole or not at all.
//!
//! ```no_run
//! use brain_adapter::export::{self, Plan, Sources};
//! use brain_adapter::progress::Silent;
//!
//! let plan = Plan::new(Sources::in_folder("checkpoints".as_ref())?, "onnx");
//! let summary = export::run(&plan, &mut Silent)?;
//! println!("{} parts in {}", summary.parts.len(), summary.output.display());
//! # Ok::<(), brain_adapter::Error>(())
//! ```

mod calibration;
mod disk_space;
#[cfg(feature = "runtime")]
mod gate;
#[cfg(feature = "runtime")]
mod inputs;
mod numeric_format;
mod origin;
#[cfg(feature = "runtime")]
mod parity;
#[cfg(feature = "runtime")]
mod quantize;
#[cfg(feature = "runtime")]
mod raised;
#[cfg(feature = "runtime")]
mod reduced;
#[cfg(feature = "runtime")]
mod retrained;
mod sources;
mod special_tokens;
mod stage;
mod text_model;
mod tokenizer;
#[cfg(feature = "runtime")]
mod verify;
mod vision_config;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;

pub use calibration::{
    CalibrationFolder, CalibrationInput, MAX_CALIBRATION_INPUTS, MAX_CALIBRATION_SCANS, calibration_folder,
    calibration_inputs,
};
#[cfg(feature = "runtime")]
pub use raised::Raised;
#[cfg(feature = "runtime")]
pub use retrained::Fallback;
#[cfg(feature = "runtime")]
pub(crate) use retrained::{Bundled, Retrained, is_remade, retrained, sources_of};
pub use sources::Sources;

use numeric_format::NumericFormat;
use origin::Origin;

use crate::bundle::{
    FORMAT, FileRecord, INTENDED_USE, Manifest, PartRecord, Precision, Preprocessing, Quantization, SourceRecord,
    Staging, Target, Temperature, TokenizerRecord, Tool,
};
use crate::checkpoint::SourceFile;
use crate::error::{Code, Error, Result};
use crate::files::path_as_text;
use crate::graph::Graph;
use crate::model::{Models, Part, PartMap};
use crate::progress::Progress;
use crate::tensor::Comparison;
use crate::threads;

/// What to export, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The checkpoints.
    pub sources: Sources,
    /// Where the bundle goes.
    pub output: PathBuf,
    /// Number format of the graphs.
    pub precision: Precision,
    /// The device that integer weights are made for; floats run on every device.
    pub target: Target,
    /// A folder of scans and reports on which a quantized bundle is calibrated and every bundle is compared with fp32.
    pub calibration: Option<PathBuf>,
    /// Statistics of an earlier export (its `calibration.safetensors`), to be used instead of gathering them.
    pub statistics: Option<PathBuf>,
    /// Maximum relative error of a layer of a quantized bundle; each precision has its own default.
    pub max_error: Option<f64>,
    /// Stage outputs recorded in PyTorch that the bundle must reproduce.
    pub verify: Option<PathBuf>,
    /// Whether to install into a folder that holds other files.
    pub force: bool,
    /// ONNX Runtime's library, where it is not to be searched for.
    pub library: Option<PathBuf>,
    /// Threads of the checks; by default one per core.
    pub threads: Option<usize>,
    /// Resident memory, in bytes, that the export should stay below: the warning `memory_exceeded` says that it did
    /// not.
    pub max_memory: Option<u64>,
}

impl Plan {
    /// An fp32 export of `sources` to `output`, without checks.
    pub fn new(sources: Sources, output: impl Into<PathBuf>) -> Self {
        Self {
            sources,
            output: output.into(),
            precision: Precision::Fp32,
            target: Target::Cpu,
            calibration: None,
            statistics: None,
            max_error: None,
            verify: None,
            force: false,
            library: None,
            threads: None,
            max_memory: None,
        }
    }
}

/// What was exported.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The bundle's folder.
    #[serde(serialize_with = "path_as_text")]
    pub output: PathBuf,
    /// The device that integer weights were made for.
    pub target: Target,
    /// One row per graph, in the order in which they run.
    pub parts: Vec<PartSummary>,
    /// How the graphs were quantized, unless they are fp32.
    pub quantization: Option<Quantization>,
    /// The layers that have a more precise scheme than was tried first, why, and what they cost; none if all kept it.
    #[cfg(feature = "runtime")]
    pub raised: Option<Raised>,
    /// The process's peak of resident memory in bytes, where the system says.
    pub peak_memory_bytes: Option<u64>,
    /// How many times as long layers take that were smoothed or escalated, by name: measured on held-out tokens.
    pub slowdowns: BTreeMap<String, f64>,
    /// The comparison with recorded PyTorch outputs, where it was asked for.
    pub verified: Vec<StageCheck>,
    /// How many calibration inputs were used.
    pub calibration: CalibrationUse,
    /// The checkpoint files that were read.
    pub sources: Vec<SourceRecord>,
    /// Tensors of the checkpoints that no graph uses.
    pub skipped: Vec<String>,
    /// Seconds in all.
    pub seconds: f64,
}

/// Numbers of inputs that a calibration folder gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CalibrationUse {
    /// Scans.
    pub scans: usize,
    /// Reports.
    pub reports: usize,
}

/// One graph of the bundle.
#[derive(Clone, Debug, Serialize)]
pub struct PartSummary {
    /// Which part of the model it is.
    pub part: Part,
    /// Its record in the manifest.
    #[serde(flatten)]
    pub record: PartRecord,
    /// Seconds that writing it took.
    pub seconds: f64,
}

/// How close a stage must be to its recorded output.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageLimit {
    /// At most this `max_rel`: float32.
    Relative(f64),
    /// At least this cosine: quantized graphs, whose single elements may differ.
    Cosine(f64),
}

/// One stage against its recorded output.
#[derive(Clone, Debug, Serialize)]
pub struct StageCheck {
    /// The stage.
    pub stage: String,
    /// Its difference from the record.
    pub comparison: Comparison,
    /// How close it must be to pass.
    pub limit: StageLimit,
    /// Whether it passes.
    pub passed: bool,
}

/// Exports. On any error nothing is installed and an old bundle stays as it was.
///
/// # Errors
/// Those of the checkpoints (`checkpoint.changed` when one was written to meanwhile), `config.*`, `tokenizer.*`,
/// `disk.full`, `output.exists`, `verify.mismatch`, `quantize.error`, `calibration.input`, `device.precision` when the
/// precision is not available for the target, and `runtime.*` when a check needs ONNX Runtime.
pub fn run(plan: &Plan, progress: &mut dyn Progress) -> Result<Summary> {
    let mut watched = Vec::new();
    let outcome = export(plan, &mut watched, progress);
    // What was read half old and half new can fail in any way: the change is the reason.
    outcome.or_else(|e| unchanged(&watched).and(Err(e)))
}

fn unchanged(watched: &[SourceFile]) -> Result<()> {
    watched.iter().try_for_each(SourceFile::unchanged)
}

/// The export. `watched` receives the files that must not change until it is over.
fn export(plan: &Plan, watched: &mut Vec<SourceFile>, progress: &mut dyn Progress) -> Result<Summary> {
    let started = Instant::now();
    let form = form(plan)?;
    progress.step("reading checkpoints", None);
    let loaded = plan.sources.load()?;
    *watched = loaded.watched();
    let models = models(&loaded, progress)?;
    let folder = calibration_of(plan, progress)?;
    let graphs = stage::build(&loaded, &models)?;
    let staging = Staging::new(&plan.output, plan.force)?;
    // A full disk is better found now than after an hour of calibration.
    disk_space::check(staging.path(), disk_space::at_least(graphs.values(), plan.precision))?;
    let job =
        Job { plan, loaded: &loaded, models: &models, graphs: &graphs, inputs: &folder.inputs, staging: &staging };
    let (made, sources) = make_and_hash(&job, progress)?;
    let mut files = made.files;
    let tokenizer = tokenizer(&loaded, &folder, &staging, &mut files)?;
    let verified = verify(plan, &staging, progress)?;
    let manifest = Manifest {
        format: FORMAT,
        tool: Tool::this(),
        intended_use: INTENDED_USE.into(),
        labels: loaded.config.labels.0.clone(),
        preprocessing: Preprocessing::of(&loaded.config.volume),
        config: loaded.config,
        text_model: loaded.llama,
        tokenizer,
        image_head: models.image_head,
        parts: made.parts.iter().map(|(part, p)| (part.to_string(), p.record.clone())).collect::<BTreeMap<_, _>>(),
        quantization: made.quantization.clone(),
        target: form.target,
        files,
        sources: sources.clone(),
        skipped: models.skipped.clone(),
        version: None,
        temperature: Temperature::default(),
    };
    progress.step("installing the bundle", None);
    unchanged(watched)?;
    staging.install(&manifest)?;
    Ok(Summary {
        #[cfg(feature = "runtime")]
        raised: made.quantization.as_ref().and_then(|q| raised::raised(q, form, plan.max_error, &made.slowdowns)),
        peak_memory_bytes: peak_memory(plan, progress),
        output: plan.output.clone(),
        target: form.target,
        parts: made.parts.into_iter().map(|(_, summary)| summary).collect(),
        quantization: made.quantization,
        slowdowns: made.slowdowns,
        verified,
        sources,
        calibration: CalibrationUse { scans: folder.scans(), reports: folder.reports() },
        skipped: models.skipped,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Writes the tokenizer.
fn tokenizer(
    loaded: &sources::Loaded,
    folder: &CalibrationFolder,
    staging: &Staging,
    files: &mut Vec<FileRecord>,
) -> Result<TokenizerRecord> {
    let max_tokens = loaded.config.text.max_tokens;
    tokenizer::install(&loaded.tokenizer, max_tokens, &folder.inputs, staging.path(), files)
}

/// The calibration inputs. Tells what is not used.
fn calibration_of(plan: &Plan, progress: &mut dyn Progress) -> Result<CalibrationFolder> {
    let folder = plan.calibration.as_deref().map(calibration_folder).transpose()?.unwrap_or_default();
    folder.warning().iter().for_each(|warning| progress.warn(warning));
    Ok(folder)
}

/// Writes the graphs, and hashes the sources meanwhile: both need the bytes from the disk.
fn make_and_hash(job: &Job<'_>, progress: &mut dyn Progress) -> Result<(stage::Made, Vec<SourceRecord>)> {
    let stop = AtomicBool::new(false);
    let (made, sources) = std::thread::scope(|scope| {
        let hashing = threads::spawn_scoped(scope, "hash", || stage::source_records(job.loaded.files(), &stop))?;
        let origin = Origin::new(hashing);
        let made = make(job, &origin, progress);
        stop.store(made.is_err(), Ordering::Relaxed);
        Ok((made, origin.into_records()))
    })?;
    Ok((made?, sources?))
}

/// The weights of all parts. Tells what to know of where they come from.
fn models(loaded: &sources::Loaded, progress: &mut dyn Progress) -> Result<Models> {
    let models = Models::find(&loaded.config, &loaded.llama, &loaded.adapter, &loaded.vision, &loaded.text)?;
    loaded.warnings.iter().chain(&models.warnings).for_each(|warning| progress.warn(warning));
    Ok(models)
}

/// The largest resident memory of the process, in bytes; a warning where that is more than the plan allows.
#[cfg(feature = "runtime")]
fn peak_memory(plan: &Plan, progress: &mut dyn Progress) -> Option<u64> {
    plan.max_memory.and_then(crate::execute::exceeded).iter().for_each(|warning| progress.warn(warning));
    crate::execute::peak_memory()
}

#[cfg(not(feature = "runtime"))]
fn peak_memory(_: &Plan, _: &mut dyn Progress) -> Option<u64> {
    None
}

fn form(plan: &Plan) -> Result<NumericFormat> {
    let form = NumericFormat::of(plan.precision, plan.target);
    if form.precision == Precision::Int4 && form.target == Target::TensorRt {
        let message = "int4 is not available for TensorRT: export int8 for it, or int4 for cuda";
        return Err(Error::new(Code::DEVICE_PRECISION, message));
    }
    Ok(form)
}

/// Every graph in float32.
fn fp32(graphs: &PartMap<Graph>) -> PartMap<stage::Format> {
    PartMap::from_fn(|part| stage::Format { precision: Precision::Fp32, parameters: graphs[part].parameters() })
}

/// What the graphs of a bundle are made of.
#[cfg_attr(not(feature = "runtime"), allow(dead_code, reason = "without ONNX Runtime nothing is compared"))]
struct Job<'a> {
    plan: &'a Plan,
    loaded: &'a sources::Loaded,
    models: &'a Models,
    graphs: &'a PartMap<Graph>,
    inputs: &'a [CalibrationInput],
    staging: &'a Staging,
}

/// Writes the graphs and compares them with fp32.
#[cfg(feature = "runtime")]
fn make(job: &Job<'_>, origin: &Origin<'_>, progress: &mut dyn Progress) -> Result<stage::Made> {
    let Job { plan, loaded, models, graphs, inputs, staging } = *job;
    if plan.precision != Precision::Fp32 {
        return reduced::make(plan, loaded, graphs, inputs, staging, origin, progress);
    }
    let mut made = stage::write(graphs, fp32(graphs), loaded, staging, progress)?;
    if !inputs.is_empty() {
        progress.step("comparing with the plain fp32 graphs", None);
        parity::check(plan, loaded, models, staging, inputs, &mut made.parts, progress)?;
    }
    Ok(made)
}

/// Without ONNX Runtime nothing can be compared: the records say so, and nothing is quantized.
#[cfg(not(feature = "runtime"))]
fn make(job: &Job<'_>, _: &Origin<'_>, progress: &mut dyn Progress) -> Result<stage::Made> {
    use crate::bundle::Parity;
    let Job { plan, loaded, graphs, staging, .. } = *job;
    if plan.precision != Precision::Fp32 {
        let message = "this build has no ONNX Runtime to check a quantized model with: it exports fp32 only";
        return Err(Error::new(Code::RUNTIME_MISSING, message));
    }
    let mut made = stage::write(graphs, fp32(graphs), loaded, staging, progress)?;
    for (_, part) in made.parts.iter_mut() {
        part.record.parity = Parity::NotChecked("exported by a build without ONNX Runtime".into());
    }
    Ok(made)
}

/// Compares the staged graphs with recorded outputs, where the plan asks for it.
#[cfg(feature = "runtime")]
fn verify(plan: &Plan, staging: &Staging, progress: &mut dyn Progress) -> Result<Vec<StageCheck>> {
    let Some(record) = &plan.verify else { return Ok(Vec::new()) };
    progress.step("comparing with the recorded PyTorch outputs", None);
    verify::check(plan, record, staging, progress)
}

/// Without ONNX Runtime a check that was asked for is an error.
#[cfg(not(feature = "runtime"))]
fn verify(plan: &Plan, _: &Staging, _: &mut dyn Progress) -> Result<Vec<StageCheck>> {
    match &plan.verify {
        Some(_) => Err(Error::new(Code::RUNTIME_MISSING, "this build has no ONNX Runtime to verify with")),
        None => Ok(Vec::new()),
    }
}
