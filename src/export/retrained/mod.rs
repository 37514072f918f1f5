//! A newly trained adapter and heads in the precision of a bundle whose other graphs stay as they are.
//!
//! These two parts are quantized by the rules of an export and on the same kind of inputs: the adapter from new ranges,
//! the heads from their weights. Then they are compared with fp32: each by itself, and both by the probabilities at the
//! end. There is no float32 form of vision transformer and language model here: both sides use the bundle's own, so the
//! difference is what these two parts add.
//!
//! In float32 both parts are exactly what an export of the same weights writes, bit for bit; so are the heads in every
//! precision, and the adapter where the calibration inputs are the same.

mod fp32;
mod reduced;

use std::path::Path;
use std::sync::Arc;

use super::disk_space::weight_bytes;
use super::numeric_format::NumericFormat;
use super::reduced::{ERRORS_PLOT, STATISTICS, listed};
use super::stage::{self, Format};
use super::{CalibrationInput, PartSummary, inputs};
use crate::bundle::{Bundle, FileRecord, Precision, Quantization, SourceRecord, Staging};
use crate::calibrate::{Feed, Statistics};
use crate::checkpoint::SourceFile;
use crate::error::{Error, Result, Warning, WarningCode};
use crate::files::check_free_space;
use crate::graph::Graph;
use crate::model::{self, Part, Trained};
use crate::passes::fold_batch_norm;
use crate::plot;
use crate::progress::Progress;
use crate::tensor::Tensor;
use crate::text::Tokenizer;

/// Runs a graph of the bundle on these inputs; returns the outputs of these names.
pub(crate) type Features<'a> = dyn FnMut(Part, &[(&str, &Tensor)], &[&str]) -> Result<Vec<Tensor>> + 'a;

/// A bundle, and the trained weights that go into it.
pub(crate) struct Bundled<'a> {
    /// The bundle, opened quickly or not.
    pub bundle: &'a Bundle,
    /// The trained weights.
    pub trained: &'a Trained,
    /// Where they come from.
    pub checkpoint: &'a Path,
    /// The inputs to calibrate on and to compare with fp32 on.
    pub inputs: &'a [CalibrationInput],
    /// Whether an adapter that cannot be calibrated may stay in float32.
    pub adapter_fp32: bool,
    /// ONNX Runtime's library, where it is not to be searched for.
    pub library: Option<&'a Path>,
    /// Threads within an operator; by default one per core.
    pub threads: Option<usize>,
    /// Where both parts are written to.
    pub staging: &'a Staging,
}

/// A part that got another number format than the bundle's, since its limit was missed.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Fallback {
    /// The part.
    pub part: Part,
    /// The bundle's number format.
    pub from: Precision,
    /// The new one.
    pub to: Precision,
    /// The limit that was missed, with the value found and the one allowed; none if the part was not tried in the
    /// bundle's number format.
    pub missed: Option<String>,
    /// Bytes of the part's graph and weights now.
    pub bytes: u64,
    /// Bytes of the bundle's.
    pub bytes_before: u64,
}

impl Fallback {
    /// The change in one line: which limit was missed, and what that costs.
    pub fn describe(&self) -> String {
        let Self { part, from, to, bytes, bytes_before, .. } = self;
        let times = *bytes as f64 / (*bytes_before).max(1) as f64;
        let why =
            self.missed.as_ref().map_or(String::new(), |missed| format!(": as {from} it missed a limit: {missed}"));
        format!(
            "the bundle's `{part}` was {from}; the new one is {to}{why}; it takes {times:.1}× the bytes ({bytes} for \
             {bytes_before}), which each run reads"
        )
    }
}

/// What was made.
pub(crate) struct Retrained {
    /// Adapter and heads.
    pub parts: Vec<PartSummary>,
    /// Their files, and the reports on the quantization.
    pub files: Vec<FileRecord>,
    /// The updated record of the quantization, unless the bundle is fp32.
    pub quantization: Option<Quantization>,
    /// The largest difference of a probability, where it was measured.
    pub probabilities: Option<f64>,
    /// Parts with another number format than the bundle's.
    pub fallbacks: Vec<Fallback>,
}

/// Hashes of the files of a checkpoint of adapter and heads.
pub(crate) fn sources_of(files: &[SourceFile]) -> Result<Vec<SourceRecord>> {
    let files = files.iter().map(|f| (Part::Adapter.as_str(), f.path.clone())).collect();
    stage::source_records(files, &std::sync::atomic::AtomicBool::new(false))
}

/// Whether a file of the bundle is written again; all others stay.
pub(crate) fn is_remade(name: &str) -> bool {
    let own = [Part::Adapter, Part::Heads].iter().any(|part| name.starts_with(&format!("{part}.onnx")));
    own || [STATISTICS, ERRORS_PLOT].contains(&name)
}

/// Builds adapter and heads, writes them into the staged bundle and compares them with fp32.
///
/// # Errors
/// `checkpoint.*` for weights that cannot be used; `calibration.input` where the adapter is to be calibrated and there
/// is nothing to do it on; `verify.mismatch`, `quantize.error` when a limit is missed; those of reading, running and
/// writing.
pub(crate) fn retrained(
    task: &Bundled<'_>,
    features: &mut Features<'_>,
    progress: &mut dyn Progress,
) -> Result<Retrained> {
    let (config, weights) = (&task.bundle.manifest.config, &task.trained.weights);
    let from_checkpoint = |e: Error| e.at(task.checkpoint);
    let (adapter, _) = model::adapter::build(config, weights).and_then(fold_batch_norm).map_err(from_checkpoint)?;
    let heads = model::heads::build(config, weights).map_err(from_checkpoint)?;
    let graphs = Fp32Graphs { adapter, heads };
    let need = 2 * (weight_bytes(&graphs.adapter) + weight_bytes(&graphs.heads));
    check_free_space(task.staging.path(), need, "the new version")?;
    if task.inputs.is_empty() {
        let message = "no calibration inputs: the accuracy of adapter and heads is NOT checked against fp32";
        progress.warn(&Warning::new(WarningCode::CALIBRATION_NONE, message));
    }
    let form = task.form();
    let mut made = match form.precision {
        Precision::Fp32 => task.fp32(&graphs, features, progress)?,
        _ => task.reduced(&graphs, form, features, progress)?,
    };
    if let Some(record) = &mut made.quantization {
        task.write_reports(record, &mut made.files)?;
    }
    Ok(made)
}

/// The float32 graphs of the two trained parts.
struct Fp32Graphs {
    adapter: Graph,
    heads: Graph,
}

impl Bundled<'_> {
    /// The form that the bundle was exported in: its precision is that of the language model, since other parts may be
    /// more exact.
    fn form(&self) -> NumericFormat {
        NumericFormat::of(self.precision(Part::Text), self.bundle.manifest.target)
    }

    /// The precision of a part of the bundle.
    fn precision(&self, part: Part) -> Precision {
        self.bundle.manifest.parts[part.as_str()].precision
    }

    /// Writes one graph into the staged bundle.
    fn write(
        &self,
        graph: &Graph,
        part: Part,
        format: Format,
        progress: &mut dyn Progress,
    ) -> Result<(PartSummary, Vec<FileRecord>)> {
        progress.step(&format!("writing {part}"), Some(weight_bytes(graph)));
        let written = stage::write_part(graph, part, format, self.checkpoint, self.staging, progress);
        written.map(|(summary, files, _)| (summary, files))
    }

    /// A report's tokens, and the result of the bundle's language model on them.
    fn text(&self, report: &Path, features: &mut Features<'_>) -> Result<(Feed, Tensor)> {
        let record = &self.bundle.manifest.tokenizer;
        let tokenizer = Tokenizer::load(&self.bundle.file(&record.file)?, record.bos)?;
        let [ids, mask] = inputs::report(record.max_tokens, &tokenizer, report)?;
        let text =
            super::gate::only(features(Part::Text, &[("input_ids", &ids), ("attention_mask", &mask)], &["text"])?);
        let tokens = [("input_ids", ids), ("attention_mask", mask)];
        Ok((tokens.map(|(n, t)| (n.to_owned(), Arc::new(t))).into(), text))
    }

    /// Writes the plot of errors and the statistics. Those of the vision transformer were gathered on results of
    /// another adapter and are removed; those of the language model stay.
    fn write_reports(&self, record: &mut Quantization, files: &mut Vec<FileRecord>) -> Result<()> {
        let was_listed = self.bundle.manifest.files.iter().any(|f| f.name == STATISTICS);
        if record.calibration.statistics.take().is_some_and(|name| name == STATISTICS) && was_listed {
            let mut statistics = Statistics::load(&self.bundle.file(STATISTICS)?)?;
            statistics.activations.retain(|activation, _| activation.starts_with(&format!("{}/", Part::Text)));
            statistics.scans = 0;
            if !statistics.activations.is_empty() {
                let path = self.staging.path().join(STATISTICS);
                statistics.save(&path)?;
                files.push(listed(&path, STATISTICS)?);
                record.calibration.statistics = Some(STATISTICS.to_owned());
            }
        }
        if let Some(plot) = plot::layer_errors(record) {
            let path = self.staging.path().join(ERRORS_PLOT);
            std::fs::write(&path, plot).map_err(|e| Error::io(&path, "cannot write", e))?;
            files.push(listed(&path, ERRORS_PLOT)?);
        }
        Ok(())
    }
}
