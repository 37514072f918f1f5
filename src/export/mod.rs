//! PyTorch checkpoints → a bundle: the work of `ba-export`.
//!
//! Layer 5. [`Plan`] says what to export from where to where; [`run`] does it and gives a [`Summary`]. Weights stream
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
#[cfg(feature = "runtime")]
mod parity;
mod sources;
mod tokenizer;
#[cfg(feature = "runtime")]
mod verify;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

pub use calibration::{CalibrationInput, MAX_CALIBRATION_INPUTS, calibration_inputs};
pub use sources::Sources;

use crate::bundle::{
    FORMAT, FileRecord, Manifest, Parity, PartRecord, Precision, Preprocessing, SourceRecord, Staging, Tool, sha256_of,
};
use crate::error::{Code, Error, Result};
use crate::graph::Graph;
use crate::model::{self, Attention, Models, PARTS, Stages};
use crate::passes::fold_batch_norm;
use crate::progress::Progress;
use crate::tensor::Comparison;

/// What every manifest says of its use.
const INTENDED_USE: &str = "Research use only. Not a medical device; not for diagnosis or treatment.";

/// What to export, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The checkpoints.
    pub sources: Sources,
    /// Where the bundle goes.
    pub output: PathBuf,
    /// Number format of the graphs.
    pub precision: Precision,
    /// A folder of scans and reports on which the bundle is compared with the plain fp32 graphs.
    pub calibration: Option<PathBuf>,
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
            calibration: None,
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
    /// One row a graph, in the order in which they run.
    pub parts: Vec<PartSummary>,
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

/// One stage against its recorded output.
#[derive(Clone, Debug, Serialize)]
pub struct StageCheck {
    /// The stage.
    pub stage: String,
    /// How far it is from the record.
    pub comparison: Comparison,
    /// The largest `max_rel` that passes.
    pub tolerance: f64,
    /// Whether it passes.
    pub passed: bool,
}

/// Exports. On any error nothing is installed and an old bundle stays as it was.
///
/// # Errors
/// Those of the checkpoints, `config.*`, `tokenizer.*`, `disk.full`, `output.exists`, `verify.mismatch`, and
/// `runtime.*` when a check needs ONNX Runtime.
pub fn run(plan: &Plan, progress: &mut dyn Progress) -> Result<Summary> {
    let started = Instant::now();
    progress.step("reading checkpoints", None);
    let loaded = plan.sources.load()?;
    let models = Models::find(&loaded.config, &loaded.llama, &loaded.adapter, &loaded.vision, &loaded.text)?;
    let graphs = build(&loaded, &models)?;
    let staging = Staging::new(&plan.output, plan.force)?;
    check_space(&staging, &graphs)?;
    let bytes: u64 = graphs.iter().map(weight_bytes).sum();
    progress.step("writing the bundle", Some(bytes));
    // The sources are hashed on the other core while the graphs are written.
    let (written, hashed) = std::thread::scope(|scope| {
        let hashing = scope.spawn(|| source_records(&loaded));
        let written = write_parts(&graphs, &loaded, staging.path(), progress);
        let hashed = hashing.join().unwrap_or_else(|_| Err(Error::new(Code::IO, "hashing the checkpoints failed")));
        (written, hashed)
    });
    let (mut parts, mut files, sources) = {
        let (parts, files) = written?;
        (parts, files, hashed?)
    };
    let tokenizer = tokenizer::install(&loaded, staging.path(), &mut files)?;
    let verified = check(plan, &loaded, &models, &staging, &mut parts, progress)?;
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
        parts: parts.iter().map(|p| (p.part.clone(), p.record.clone())).collect::<BTreeMap<_, _>>(),
        files,
        sources: sources.clone(),
        skipped: models.skipped.clone(),
    };
    progress.step("installing the bundle", None);
    staging.install(&manifest)?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(Summary { output: plan.output.clone(), parts, verified, sources, skipped: models.skipped, seconds })
}

/// The four graphs as they are deployed, in the order of [`PARTS`].
fn build(loaded: &sources::Loaded, models: &Models) -> Result<[Graph; 4]> {
    let config = &loaded.config;
    // Errors name the checkpoint that the weights came from.
    let (adapter, _) = model::adapter::build(config, &models.trained)
        .and_then(fold_batch_norm)
        .map_err(|e| e.at(loaded.adapter.path()))?;
    let vision = model::vit::build(config, &models.vision, Attention::Fused, Stages::Output)
        .map_err(|e| e.at(loaded.vision.path()))?;
    let text = model::llama::build(&loaded.llama, config.text.pool, &models.text, Stages::Output)
        .map_err(|e| e.at(loaded.text.path()))?;
    let heads = model::heads::build(config, &models.trained).map_err(|e| e.at(loaded.adapter.path()))?;
    // `logit_scale` and the like are not written, but a checkpoint that holds a NaN is a broken one.
    check_finite(loaded)?;
    Ok([adapter, vision, text, heads])
}

/// The trained tensors that no graph reads must be finite too.
fn check_finite(loaded: &sources::Loaded) -> Result<()> {
    if let Some(scale) = loaded.adapter.get("logit_scale") {
        scale.checked_finite("logit_scale").to_f32().map_err(|e| e.at(loaded.adapter.path()))?;
    }
    Ok(())
}

fn weight_bytes(graph: &Graph) -> u64 {
    let tensors = graph.initializers().into_iter().filter_map(|id| graph.value(id).init.as_ref());
    tensors.map(|t| t.byte_len() as u64).sum()
}

/// Refuses at once what would not fit on the disk.
fn check_space(staging: &Staging, graphs: &[Graph]) -> Result<()> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(staging.path())
            .map_err(|e| Error::io(staging.path(), "cannot ask for the free space", e.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        // Padding, small weights and the tokenizer take a little more.
        let need = graphs.iter().map(weight_bytes).sum::<u64>() / 100 * 101 + (16 << 20);
        if need > free {
            let message = format!("the bundle needs {need} bytes and {free} are free: free some, or choose another -o");
            return Err(Error::new(Code::DISK_FULL, message).at(staging.path()));
        }
    }
    #[cfg(not(unix))]
    let _ = (staging, graphs);
    Ok(())
}

fn write_parts(
    graphs: &[Graph; 4],
    loaded: &sources::Loaded,
    folder: &Path,
    progress: &mut dyn Progress,
) -> Result<(Vec<PartSummary>, Vec<FileRecord>)> {
    let (mut parts, mut files) = (Vec::new(), Vec::new());
    let checkpoints = [&loaded.adapter, &loaded.vision, &loaded.text, &loaded.adapter];
    for ((graph, part), checkpoint) in graphs.iter().zip(PARTS).zip(checkpoints) {
        let started = Instant::now();
        let written = crate::onnx::write(graph, folder, part, &mut |bytes| progress.advance(bytes));
        // A weight that cannot be used is found as it streams: its checkpoint is to be named.
        let written = written.map_err(|e| e.at(checkpoint.path()))?;
        let record = PartRecord {
            file: written[0].name.clone(),
            precision: Precision::Fp32,
            parameters: graph.parameters(),
            bytes: written.iter().map(|w| w.bytes).sum(),
            parity: Parity::NotChecked("no calibration inputs".into()),
        };
        parts.push(PartSummary { part: part.into(), record, seconds: started.elapsed().as_secs_f64() });
        files.extend(written.into_iter().map(|w| FileRecord { name: w.name, bytes: w.bytes, sha256: w.sha256 }));
    }
    Ok((parts, files))
}

fn source_records(loaded: &sources::Loaded) -> Result<Vec<SourceRecord>> {
    let mut records: Vec<SourceRecord> = Vec::new();
    for (role, path) in loaded.files() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = std::fs::metadata(&path).map_err(|e| Error::io(&path, "cannot look at the file", e))?.len();
        records.push(SourceRecord { role: role.into(), name, bytes, sha256: sha256_of(&path)? });
    }
    Ok(records)
}

/// Compares the staged graphs with the plain ones and with recorded outputs, as the plan asks.
#[cfg(feature = "runtime")]
fn check(
    plan: &Plan,
    loaded: &sources::Loaded,
    models: &Models,
    staging: &Staging,
    parts: &mut [PartSummary],
    progress: &mut dyn Progress,
) -> Result<Vec<StageCheck>> {
    let inputs = match &plan.calibration {
        Some(folder) => calibration_inputs(folder)?,
        None => Vec::new(),
    };
    if !inputs.is_empty() {
        progress.step("comparing with the plain fp32 graphs", None);
        parity::check(plan, loaded, models, staging, &inputs, parts)?;
    }
    match &plan.verify {
        Some(record) => {
            progress.step("comparing with the recorded PyTorch outputs", None);
            verify::check(plan, record, staging, progress)
        }
        None => Ok(Vec::new()),
    }
}

/// Without ONNX Runtime nothing can be compared: the parts say so, and a check that was asked for is an error.
#[cfg(not(feature = "runtime"))]
fn check(
    plan: &Plan,
    _: &sources::Loaded,
    _: &Models,
    _: &Staging,
    parts: &mut [PartSummary],
    _: &mut dyn Progress,
) -> Result<Vec<StageCheck>> {
    for part in parts {
        part.record.parity = Parity::NotChecked("exported by a build without ONNX Runtime".into());
    }
    match &plan.verify {
        Some(_) => Err(Error::new(Code::RUNTIME_MISSING, "this build has no ONNX Runtime to verify with")),
        None => Ok(Vec::new()),
    }
}
