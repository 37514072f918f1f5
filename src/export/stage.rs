//! Building the graphs and writing them into the staged bundle.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::sources::Loaded;
use super::{PartSummary, disk_space};
use crate::bundle::{FileRecord, Parity, PartRecord, Precision, Quantization, SourceRecord, Staging};
use crate::error::{Code, Error, Result};
use crate::graph::{Domain, Graph};
use crate::model::{self, Attention, Models, PARTS, Stages};
use crate::onnx::DataLayout;
use crate::passes::{Scores, decompose_attention, fold_batch_norm};
use crate::progress::Progress;
use crate::tensor::hex;

/// The graphs as they lie in the staged bundle.
pub(super) struct Made {
    /// A row a graph, in the order of [`PARTS`].
    pub parts: Vec<PartSummary>,
    /// Where the large weights of each lie.
    #[cfg_attr(not(feature = "runtime"), allow(dead_code, reason = "only what is run is looked at again"))]
    pub placed: Vec<DataLayout>,
    /// Their files.
    pub files: Vec<FileRecord>,
    /// What was reduced.
    pub quantization: Option<Quantization>,
    /// How many times as long treated layers take.
    pub slowdowns: BTreeMap<String, f64>,
}

/// The four float32 graphs as they are deployed, in the order of [`PARTS`].
pub(super) fn build(loaded: &Loaded, models: &Models) -> Result<[Graph; 4]> {
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
fn check_finite(loaded: &Loaded) -> Result<()> {
    if let Some(scale) = loaded.adapter.get("logit_scale") {
        scale.checked_finite("logit_scale").to_f32().map_err(|e| e.at(loaded.adapter.path()))?;
    }
    Ok(())
}

/// Bytes of all weights of a graph.
pub(super) fn weight_bytes(graph: &Graph) -> u64 {
    let tensors = graph.initializers().into_iter().filter_map(|id| graph.value(id).init.as_ref());
    tensors.map(|t| t.byte_len() as u64).sum()
}

/// Writes all graphs.
pub(super) fn write(
    graphs: &[Graph; 4],
    precisions: [Precision; 4],
    parameters: [u64; 4],
    loaded: &Loaded,
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<Made> {
    disk_space::check(staging.path(), disk_space::of_bundle(graphs))?;
    progress.step("writing the bundle", Some(graphs.iter().map(weight_bytes).sum()));
    let (mut parts, mut placed, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for (i, (graph, part)) in graphs.iter().zip(PARTS).enumerate() {
        let format = Format { precision: precisions[i], parameters: parameters[i] };
        let (summary, written, weights) =
            write_part(graph, part, format, loaded.checkpoint_of(part), staging, progress)?;
        parts.push(summary);
        placed.push(weights);
        files.extend(written);
    }
    Ok(Made { parts, placed, files, quantization: None, slowdowns: BTreeMap::new() })
}

/// What is said of a graph beside its files.
pub(super) struct Format {
    pub precision: Precision,
    /// Number of weights, before any were packed.
    pub parameters: u64,
}

/// Writes one graph, whose weights come from `checkpoint`.
pub(super) fn write_part(
    graph: &Graph,
    part: &str,
    format: Format,
    checkpoint: &Path,
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<(PartSummary, Vec<FileRecord>, DataLayout)> {
    let started = Instant::now();
    let written = crate::onnx::write_with_layout(graph, staging.path(), part, &mut |bytes| progress.advance(bytes));
    // A weight that cannot be used is found as it streams: its checkpoint is to be named.
    let (mut written, placed) = written.map_err(|e| e.at(checkpoint))?;
    let companion = companion(graph, format.precision)?;
    let companion = companion
        .map(|graph| crate::onnx::write_companion(&graph, staging.path(), &format!("{part}.tensorrt"), &placed));
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
    let summary = PartSummary { part: part.into(), record, seconds: started.elapsed().as_secs_f64() };
    let files = written.into_iter().map(|w| FileRecord { name: w.name, bytes: w.bytes, sha256: w.sha256 });
    Ok((summary, files.collect(), placed))
}

/// The graph for TensorRT, where it has operators that only ONNX Runtime has. Integers are made for one kind of device.
fn companion(graph: &Graph, precision: Precision) -> Result<Option<Graph>> {
    let floats = matches!(precision, Precision::Fp32 | Precision::Fp16);
    let own = graph.nodes.iter().any(|n| n.op.domain == Domain::Microsoft);
    (floats && own).then(|| decompose_attention(graph, Scores::Whole)).transpose()
}

/// Checkpoint files by what they give, with their hashes; nothing more is read once `stop` is set, for an export that failed
/// should say so at once.
pub(super) fn source_records(files: Vec<(&'static str, PathBuf)>, stop: &AtomicBool) -> Result<Vec<SourceRecord>> {
    let mut records: Vec<SourceRecord> = Vec::new();
    for (role, path) in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let failed = |e| Error::io(&path, "cannot read the file", e);
        let mut file = std::fs::File::open(&path).map_err(failed)?;
        let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
        while !stop.load(Ordering::Relaxed) {
            match file.read(&mut buffer).map_err(failed)? {
                0 => break,
                n => {
                    hash.update(&buffer[..n]);
                    bytes += n as u64;
                }
            }
        }
        records.push(SourceRecord { role: role.into(), name, bytes, sha256: hex(&hash.finalize()) });
    }
    Ok(records)
}

/// What a thread gave; its panic as an error.
pub(super) fn joined<T>(outcome: std::thread::Result<Result<T>>) -> Result<T> {
    outcome.unwrap_or_else(|_| Err(Error::new(Code::IO, "hashing the checkpoints failed")))
}
