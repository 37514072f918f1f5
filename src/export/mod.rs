//! PyTorch checkpoints → a bundle: the work of `ba-export`.
//!
//! Layer 6. [`Plan`] says what to export from where to where; [`run`] does it and gives a [`Summary`]. Weights stream
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
#[cfg(feature = "runtime")]
mod parity;
#[cfg(feature = "runtime")]
mod quantize;
#[cfg(feature = "runtime")]
mod reduced;
#[cfg(feature = "runtime")]
mod retrained;
mod sources;
mod stage;
mod tokenizer;
#[cfg(feature = "runtime")]
mod verify;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;

pub use calibration::{CalibrationInput, MAX_CALIBRATION_INPUTS, MAX_CALIBRATION_SCANS, calibration_inputs};
#[cfg(feature = "runtime")]
pub(crate) use retrained::{Bundled, Retrained, is_remade, retrained, sources_of};
pub use sources::Sources;

use numeric_format::NumericFormat;

use crate::bundle::{
    FORMAT, Manifest, PartRecord, Precision, Preprocessing, Quantization, SourceRecord, Staging, Target, Temperature,
    Tool,
};
use crate::error::{Code, Error, Result};
use crate::model::Models;
use crate::progress::Progress;
use crate::tensor::Comparison;

/// What every manifest says of its use.
pub(crate) const INTENDED_USE: &str = "Research use only. Not a medical device; not for diagnosis or treatment.";

/// What to export, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The checkpoints.
    pub sources: Sources,
    /// Where the bundle goes.
    pub output: PathBuf,
    /// Number format of the graphs.
    pub precision: Precision,
    /// For which device integer weights are made; floats have forms for all devices, whatever it is.
    pub target: Target,
    /// A folder of scans and reports on which a reduced bundle is calibrated, and any bundle compared with fp32.
    pub calibration: Option<PathBuf>,
    /// Statistics of an earlier export (its `calibration.safetensors`), to be used instead of gathering them.
    pub statistics: Option<PathBuf>,
    /// Largest relative error of a layer of a reduced bundle; each precision has its own default.
    pub max_error: Option<f64>,
    /// Stage outputs recorded in PyTorch that the bundle must reproduce.
    pub verify: Option<PathBuf>,
    /// Whether to install into a folder that holds other files.
    pub force: bool,
    /// ONNX Runtime's library, where it is not to be searched for.
    pub library: Option<PathBuf>,
    /// Threads of the checks; by default one a core.
    pub threads: Option<usize>,
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
        }
    }
}

/// What was exported.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The bundle's folder.
    #[serde(serialize_with = "as_text")]
    pub output: PathBuf,
    /// For which device integer weights were made.
    pub target: Target,
    /// One row a graph, in the order in which they run.
    pub parts: Vec<PartSummary>,
    /// What was reduced, where anything was.
    pub quantization: Option<Quantization>,
    /// How many times as long layers take that were treated, by name: measured on the held-out tokens.
    pub slowdowns: BTreeMap<String, f64>,
    /// The comparison with recorded PyTorch outputs, where it was asked for.
    pub verified: Vec<StageCheck>,
    /// The checkpoint files that were read.
    pub sources: Vec<SourceRecord>,
    /// Tensors of the checkpoints that no graph uses.
    pub skipped: Vec<String>,
    /// Seconds in all.
    pub seconds: f64,
}

/// A path as JSON holds it: a name that is no Unicode is shown, not refused.
fn as_text<S: serde::Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// One graph of the bundle.
#[derive(Clone, Debug, Serialize)]
pub struct PartSummary {
    /// Its name.
    pub part: String,
    /// What the manifest records.
    #[serde(flatten)]
    pub record: PartRecord,
    /// Seconds that writing it took.
    pub seconds: f64,
}

/// What a stage must keep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageLimit {
    /// At most this `max_rel`: float32.
    Relative(f64),
    /// At least this cosine: reduced precision, where single elements may differ.
    Cosine(f64),
}

/// One stage against its recorded output.
#[derive(Clone, Debug, Serialize)]
pub struct StageCheck {
    /// The stage.
    pub stage: String,
    /// How far it is from the record.
    pub comparison: Comparison,
    /// What it must keep to pass.
    pub limit: StageLimit,
    /// Whether it passes.
    pub passed: bool,
}

/// Exports. On any error nothing is installed and an old bundle stays as it was.
///
/// # Errors
/// Those of the checkpoints, `config.*`, `tokenizer.*`, `disk.full`, `output.exists`, `verify.mismatch`, `quantize.error`,
/// `calibration.input`, `device.precision` when the target has no form of the precision, and `runtime.*` when a check needs ONNX Runtime.
pub fn run(plan: &Plan, progress: &mut dyn Progress) -> Result<Summary> {
    let started = Instant::now();
    let form = NumericFormat::of(plan.precision, plan.target);
    if form.precision == Precision::Int4 && form.target == Target::TensorRt {
        let message =
            "TensorRT takes no 4-bit weights in a form that is written here: export int8 for it, or int4 for cuda";
        return Err(Error::new(Code::DEVICE_PRECISION, message));
    }
    progress.step("reading checkpoints", None);
    let loaded = plan.sources.load()?;
    let models = Models::find(&loaded.config, &loaded.llama, &loaded.adapter, &loaded.vision, &loaded.text)?;
    let graphs = stage::build(&loaded, &models)?;
    let staging = Staging::new(&plan.output, plan.force)?;
    // Found out after an hour of calibration, a full disk would cost the hour.
    disk_space::check(staging.path(), disk_space::at_least(&graphs, plan.precision))?;
    // The sources are hashed while the graphs are made: both need the bytes from the disk.
    let stop = AtomicBool::new(false);
    let (made, sources) = std::thread::scope(|scope| {
        let hashing = scope.spawn(|| stage::source_records(loaded.files(), &stop));
        let made = make(plan, &loaded, &models, &graphs, &staging, progress);
        stop.store(made.is_err(), Ordering::Relaxed);
        (made, hashing.join())
    });
    let (made, sources) = (made?, stage::joined(sources)?);
    let mut files = made.files;
    let tokenizer = tokenizer::install(&loaded, staging.path(), &mut files)?;
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
        parts: made.parts.iter().map(|p| (p.part.clone(), p.record.clone())).collect::<BTreeMap<_, _>>(),
        quantization: made.quantization.clone(),
        target: form.target,
        files,
        sources: sources.clone(),
        skipped: models.skipped.clone(),
        version: None,
        temperature: Temperature::default(),
    };
    progress.step("installing the bundle", None);
    staging.install(&manifest)?;
    Ok(Summary {
        output: plan.output.clone(),
        target: form.target,
        parts: made.parts,
        quantization: made.quantization,
        slowdowns: made.slowdowns,
        verified,
        sources,
        skipped: models.skipped,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Writes and judges the graphs.
#[cfg(feature = "runtime")]
fn make(
    plan: &Plan,
    loaded: &sources::Loaded,
    models: &Models,
    graphs: &[crate::graph::Graph; 4],
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<stage::Made> {
    let inputs = plan.calibration.as_deref().map(calibration_inputs).transpose()?.unwrap_or_default();
    if plan.precision != Precision::Fp32 {
        return reduced::make(plan, loaded, graphs, &inputs, staging, progress);
    }
    let mut made = stage::write(
        graphs,
        [Precision::Fp32; 4],
        graphs.each_ref().map(|g| g.parameters()),
        loaded,
        staging,
        progress,
    )?;
    if !inputs.is_empty() {
        progress.step("comparing with the plain fp32 graphs", None);
        parity::check(plan, loaded, models, staging, &inputs, &mut made.parts)?;
    }
    Ok(made)
}

/// Without ONNX Runtime nothing can be compared: the parts say so, and nothing is reduced that could not be judged.
#[cfg(not(feature = "runtime"))]
fn make(
    plan: &Plan,
    loaded: &sources::Loaded,
    _: &Models,
    graphs: &[crate::graph::Graph; 4],
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<stage::Made> {
    use crate::bundle::Parity;
    if plan.precision != Precision::Fp32 {
        let message = "this build has no ONNX Runtime to judge a reduced model with: it exports fp32 only";
        return Err(Error::new(Code::RUNTIME_MISSING, message));
    }
    let mut made = stage::write(
        graphs,
        [Precision::Fp32; 4],
        graphs.each_ref().map(|g| g.parameters()),
        loaded,
        staging,
        progress,
    )?;
    for part in &mut made.parts {
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
