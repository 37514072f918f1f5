//! A newly trained adapter and heads in the precision of a bundle whose other graphs stay as they are.
//!
//! What an export decides for these two parts is decided again, by the same rules and on the same kind of inputs: the adapter's
//! number format from new ranges, the heads' from the weights. Then they are judged: each by itself against float32, and both
//! by the probabilities at the end. There is no float32 form of vision transformer and language model here: the bundle's own
//! stand on both sides, so what is measured is what these two parts add.
//!
//! In float32 both parts are exactly what an export of the same weights writes, bit for bit; so are the heads in every
//! precision, and the adapter where the calibration inputs are the same.

mod fp32;
mod reduced;

use std::path::Path;
use std::sync::Arc;

use super::numeric_format::NumericFormat;
use super::quantize::{ADAPTER, HEADS};
use super::reduced::{PICTURE, STATISTICS, listed};
use super::stage::{self, Format};
use super::{CalibrationInput, PartSummary, inputs};
use crate::bundle::{Bundle, FileRecord, Precision, Quantization, SourceRecord, Staging};
use crate::calibrate::{Feed, Statistics};
use crate::checkpoint::SourceFile;
use crate::error::{Error, Result, Warning, WarningCode};
use crate::files::check_room;
use crate::graph::Graph;
use crate::model::{self, PARTS, Part, Trained};
use crate::passes::fold_batch_norm;
use crate::plot;
use crate::progress::Progress;
use crate::tensor::Tensor;
use crate::text::Tokenizer;

/// Runs a graph of the bundle: its name, inputs, and the outputs that are wanted.
pub(crate) type Features<'a> = dyn FnMut(Part, &[(&str, &Tensor)], &[&str]) -> Result<Vec<Tensor>> + 'a;

/// What is to be done: a bundle, and the weights that go into it.
pub(crate) struct Bundled<'a> {
    /// The bundle, opened quickly or not.
    pub bundle: &'a Bundle,
    /// The trained weights.
    pub trained: &'a Trained,
    /// Where they come from.
    pub checkpoint: &'a Path,
    /// What to calibrate and compare on.
    pub inputs: &'a [CalibrationInput],
    /// Whether an adapter that cannot be calibrated may stay in float32.
    pub single_adapter: bool,
    /// ONNX Runtime's library, where it is not to be searched for.
    pub library: Option<&'a Path>,
    /// Threads within an operator; by default one a core.
    pub threads: Option<usize>,
    /// Where both parts are written to.
    pub staging: &'a Staging,
}

/// What was made.
pub(crate) struct Retrained {
    /// Adapter and heads.
    pub parts: Vec<PartSummary>,
    /// Their files, those of what is told of the reduction included.
    pub files: Vec<FileRecord>,
    /// What was reduced, brought up to date.
    pub quantization: Option<Quantization>,
    /// The largest difference of a probability, where it was measured.
    pub probabilities: Option<f64>,
}

/// Hashes of the files of a checkpoint of adapter and heads.
pub(crate) fn sources_of(files: &[SourceFile]) -> Result<Vec<SourceRecord>> {
    let files = files.iter().map(|f| ("adapter", f.path.clone())).collect();
    stage::source_records(files, &std::sync::atomic::AtomicBool::new(false))
}

/// The bundle's files that are written anew; all others stay.
pub(crate) fn is_remade(name: &str) -> bool {
    let own = [PARTS[ADAPTER], PARTS[HEADS]].iter().any(|part| name.starts_with(&format!("{part}.onnx")));
    own || [STATISTICS, PICTURE].contains(&name)
}

/// Makes adapter and heads, judges them and writes them into the staged bundle.
///
/// # Errors
/// `checkpoint.*` for weights that cannot be used; `calibration.input` where the adapter is to be calibrated and there is nothing
/// to do it on; `verify.mismatch`, `quantize.error` when a limit is missed; those of reading, running and writing.
pub(crate) fn retrained(
    task: &Bundled<'_>,
    features: &mut Features<'_>,
    progress: &mut dyn Progress,
) -> Result<Retrained> {
    let (config, weights) = (&task.bundle.manifest.config, &task.trained.weights);
    let from_checkpoint = |e: Error| e.at(task.checkpoint);
    let (folded, _) = model::adapter::build(config, weights).and_then(fold_batch_norm).map_err(from_checkpoint)?;
    let heads = model::heads::build(config, weights).map_err(from_checkpoint)?;
    let graphs = [folded, heads];
    check_room(task.staging.path(), 2 * graphs.iter().map(stage::weight_bytes).sum::<u64>(), "the new version")?;
    if task.inputs.is_empty() {
        let message = "no calibration inputs: adapter and heads are not compared with fp32";
        progress.warn(&Warning::new(WarningCode::CALIBRATION_NONE, message));
    }
    let form = task.form();
    let mut made = match form.precision {
        Precision::Fp32 => task.single(&graphs, features, progress)?,
        _ => task.reduced(&graphs, form, features, progress)?,
    };
    if let Some(record) = &mut made.quantization {
        task.told(record, &mut made.files)?;
    }
    Ok(made)
}

impl Bundled<'_> {
    /// The form that the bundle was exported in: its precision is that of the language model, for the others may have more exact
    /// ones.
    fn form(&self) -> NumericFormat {
        NumericFormat::of(self.bundle.manifest.parts["text"].precision, self.bundle.manifest.target)
    }

    fn writes(
        &self,
        graph: &Graph,
        part: usize,
        format: Format,
        progress: &mut dyn Progress,
    ) -> Result<(PartSummary, Vec<FileRecord>)> {
        progress.step(&format!("writing {}", PARTS[part]), Some(stage::weight_bytes(graph)));
        let written = stage::write_part(graph, PARTS[part], format, self.checkpoint, self.staging, progress);
        written.map(|(summary, files, _)| (summary, files))
    }

    /// A report's tokens, and what the bundle's language model makes of them.
    fn text(&self, report: &Path, features: &mut Features<'_>) -> Result<(Feed, Tensor)> {
        let record = &self.bundle.manifest.tokenizer;
        let tokenizer = Tokenizer::load(&self.bundle.file(&record.file), record.bos)?;
        let [ids, mask] = inputs::report(record.max_tokens, &tokenizer, report)?;
        let text =
            super::gate::one(features(Part::Text, &[("input_ids", &ids), ("attention_mask", &mask)], &["text"])?);
        let tokens = [("input_ids", ids), ("attention_mask", mask)];
        Ok((tokens.map(|(n, t)| (n.to_owned(), Arc::new(t))).into(), text))
    }

    /// What a reduced bundle tells beside its graphs: the picture of errors, and statistics. Those of the vision transformer were
    /// gathered behind another adapter and go; those of the language model stay.
    fn told(&self, record: &mut Quantization, files: &mut Vec<FileRecord>) -> Result<()> {
        let listed_there = self.bundle.manifest.files.iter().any(|f| f.name == STATISTICS);
        if record.calibration.statistics.take().is_some_and(|name| name == STATISTICS) && listed_there {
            let mut statistics = Statistics::load(&self.bundle.file(STATISTICS))?;
            statistics.activations.retain(|activation, _| activation.starts_with("text/"));
            statistics.scans = 0;
            if !statistics.activations.is_empty() {
                let path = self.staging.path().join(STATISTICS);
                statistics.save(&path)?;
                files.push(listed(&path, STATISTICS)?);
                record.calibration.statistics = Some(STATISTICS.to_owned());
            }
        }
        if let Some(picture) = plot::layer_errors(record) {
            let path = self.staging.path().join(PICTURE);
            std::fs::write(&path, picture).map_err(|e| Error::io(&path, "cannot write", e))?;
            files.push(listed(&path, PICTURE)?);
        }
        Ok(())
    }
}
