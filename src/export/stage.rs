//! Building the graphs and writing them into the staged bundle.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::PartSummary;
use super::disk_space::{self, weight_bytes};
use super::sources::Loaded;
use crate::bundle::{FileRecord, Parity, PartRecord, Precision, Quantization, SourceRecord, Staging, hash_file};
use crate::error::{Error, Result};
use crate::graph::{Domain, Graph};
use crate::model::{self, Attention, Models, Part, PartMap, Stages};
use crate::onnx::DataLayout;
use crate::passes::{Scores, decompose_attention, fold_batch_norm};
use crate::progress::Progress;

/// The graphs as they lie in the staged bundle.
pub(super) struct Made {
    /// A row for each graph.
    pub parts: PartMap<PartSummary>,
    /// Where the large weights of each lie.
    #[cfg_attr(not(feature = "runtime"), allow(dead_code, reason = "read only where the graphs are run again"))]
    pub layouts: PartMap<DataLayout>,
    /// Their files.
    pub files: Vec<FileRecord>,
    /// How the graphs were quantized.
    pub quantization: Option<Quantization>,
    /// How many times as long layers take that are not as they were tried first.
    pub slowdowns: BTreeMap<String, f64>,
}

/// The four float32 graphs as they are deployed.
pub(super) fn build(loaded: &Loaded, models: &Models) -> Result<PartMap<Graph>> {
    let config = &loaded.config;
    // Errors name the checkpoint that the weights came from.
    let graphs = PartMap::try_from_fn(|part| {
        let graph = match part {
            Part::Adapter => {
                model::adapter::build(config, &models.trained).and_then(fold_batch_norm).map(|(graph, _)| graph)
            }
            Part::Vision => model::vit::build(config, &models.vision, Attention::Fused, Stages::Output),
            Part::Text => model::llama::build(&loaded.llama, config.text.pool, &models.text, Stages::Output),
            Part::Heads => model::heads::build(config, &models.trained),
        };
        graph.map_err(|e| e.at(loaded.checkpoint_of(part)))
    })?;
    // `logit_scale` and the like are not written, but a checkpoint that holds a NaN is a broken one.
    check_finite(loaded, models)?;
    Ok(graphs)
}

/// The trained tensors that no graph reads must be finite too.
fn check_finite(loaded: &Loaded, models: &Models) -> Result<()> {
    if let Some(scale) = &models.logit_scale {
        scale.checked_finite("logit_scale").to_f32().map_err(|e| e.at(loaded.adapter.path()))?;
    }
    Ok(())
}

/// Writes all graphs.
pub(super) fn write(
    graphs: &PartMap<Graph>,
    formats: PartMap<Format>,
    loaded: &Loaded,
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<Made> {
    disk_space::check(staging.path(), disk_space::of_bundle(graphs.values()))?;
    progress.step("writing the bundle", Some(graphs.values().map(weight_bytes).sum()));
    let mut files = Vec::new();
    let mut layouts = PartMap::default();
    let parts = PartMap::try_from_fn(|part| {
        let checkpoint = loaded.checkpoint_of(part);
        let (summary, written, weights) =
            write_part(&graphs[part], part, formats[part], checkpoint, staging, progress)?;
        layouts[part] = weights;
        files.extend(written);
        Ok::<_, Error>(summary)
    })?;
    Ok(Made { parts, layouts, files, quantization: None, slowdowns: BTreeMap::new() })
}

/// What the manifest records of a graph besides its files.
#[derive(Clone, Copy)]
pub(super) struct Format {
    pub precision: Precision,
    /// Number of weights, before any were packed.
    pub parameters: u64,
}

/// Writes one graph, whose weights come from `checkpoint`.
pub(super) fn write_part(
    graph: &Graph,
    part: Part,
    format: Format,
    checkpoint: &Path,
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<(PartSummary, Vec<FileRecord>, DataLayout)> {
    let started = Instant::now();
    let written =
        crate::onnx::write_with_layout(graph, staging.path(), part.as_str(), &mut |bytes| progress.advance(bytes));
    // An unusable weight is found as it streams: the error names its checkpoint.
    let (mut written, layout) = written.map_err(|e| e.at(checkpoint))?;
    let companion = companion(graph, format.precision)?;
    let companion = companion
        .map(|graph| crate::onnx::write_companion(&graph, staging.path(), &format!("{part}.tensorrt"), &layout));
    let companion = companion.transpose()?;
    written.extend(companion.clone());
    let record = PartRecord {
        file: written[0].name.clone(),
        tensorrt: companion.map(|file| file.name),
        precision: format.precision,
        parameters: format.parameters,
        bytes: written.iter().map(|w| w.bytes).sum(),
        parity: Parity::NotChecked("no calibration inputs".into()),
    };
    let summary = PartSummary { part, record, seconds: started.elapsed().as_secs_f64() };
    let files = written.into_iter().map(|w| FileRecord { name: w.name, bytes: w.bytes, sha256: w.sha256 });
    Ok((summary, files.collect(), layout))
}

/// The graph for TensorRT, where it has operators that only ONNX Runtime has; `None` for integers, which suit one
/// device only.
fn companion(graph: &Graph, precision: Precision) -> Result<Option<Graph>> {
    let floats = matches!(precision, Precision::Fp32 | Precision::Fp16);
    let own = graph.nodes.iter().any(|n| n.op.domain == Domain::Microsoft);
    (floats && own).then(|| decompose_attention(graph, Scores::Whole)).transpose()
}

/// The records of checkpoint files by their roles, with their hashes. Nothing more is read once `stop` is set: an
/// export that failed should report it at once.
pub(super) fn source_records(files: Vec<(&'static str, PathBuf)>, stop: &AtomicBool) -> Result<Vec<SourceRecord>> {
    let mut records: Vec<SourceRecord> = Vec::new();
    for (role, path) in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (bytes, sha256) = hash_file(&path, stop)?;
        records.push(SourceRecord { role: role.into(), name, bytes, sha256 });
    }
    Ok(records)
}

/// The result of a thread; its panic as an error.
pub(super) fn joined<T>(outcome: std::thread::Result<Result<T>>) -> Result<T> {
    outcome.unwrap_or_else(|_| Err(Error::internal("the thread that hashes the checkpoints panicked")))
}
