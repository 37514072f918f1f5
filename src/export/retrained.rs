//! A newly trained adapter and heads in the precision of a bundle whose other graphs stay as they are.
//!
//! What an export decides for these two parts is decided again, by the same rules and on the same kind of inputs: the adapter's
//! number format from new ranges, the heads' from the weights. Then they are judged: each by itself against float32, and both
//! by the probabilities at the end. There is no float32 form of vision transformer and language model here: the bundle's own
//! stand on both sides, so what is measured is what these two parts add.
//!
//! In float32 both parts are exactly what an export of the same weights writes, bit for bit; so are the heads in every
//! precision, and the adapter where the calibration inputs are the same.

use std::path::Path;
use std::sync::Arc;

use super::gate::{Gate, Verdict, compare, one};
use super::parity::{Checker, feeds};
use super::quantize::adapter::{self, Adapter};
use super::quantize::limits::Limits;
use super::quantize::references::{References, ReportReference};
use super::quantize::{ADAPTER, HEADS, VISION};
use super::stage::{self, Format};
use super::{CalibrationInput, PartSummary, inputs, picture, reduced};
use crate::bundle::{Bundle, FileRecord, Parity, Precision, Quantization, SourceRecord, Staging};
use crate::calibrate::{Feed, Role, Runner, Statistics};
use crate::error::{Code, Error, Result, Warning};
use crate::files::check_room;
use crate::graph::Graph;
use crate::model::{self, PARTS, Trained};
use crate::passes::{fold_batch_norm, half, unfit_for_half};
use crate::progress::Progress;
use crate::runtime::Runtime;
use crate::tensor::Tensor;
use crate::text::Tokenizer;

/// Runs a graph of the bundle: its name, inputs, and the outputs that are wanted.
pub(crate) type Features<'a> = dyn FnMut(&'static str, &[(&str, &Tensor)], &[&str]) -> Result<Vec<Tensor>> + 'a;

/// The bundle, and what goes into it.
pub(crate) struct Bundled<'a> {
    pub bundle: &'a Bundle,
    pub trained: &'a Trained,
    /// Where the trained weights come from.
    pub checkpoint: &'a Path,
    pub inputs: &'a [CalibrationInput],
    /// Whether an adapter that cannot be calibrated may stay in float32.
    pub single_adapter: bool,
    pub library: Option<&'a Path>,
    pub threads: Option<usize>,
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
pub(crate) fn sources_of(files: &[crate::checkpoint::SourceFile]) -> Result<Vec<SourceRecord>> {
    let files = files.iter().map(|f| ("adapter", f.path.clone())).collect();
    stage::source_records(files, &std::sync::atomic::AtomicBool::new(false))
}

/// The bundle's files that are written anew; all others stay.
pub(crate) fn is_remade(name: &str) -> bool {
    let own = [PARTS[ADAPTER], PARTS[HEADS]].iter().any(|part| name.starts_with(&format!("{part}.onnx")));
    own || [reduced::STATISTICS, reduced::PICTURE].contains(&name)
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
        progress.warn(&Warning::new("calibration_none", message));
    }
    let precision = task.precision();
    let mut made = match precision {
        Precision::Fp32 => task.single(&graphs, features, progress)?,
        _ => task.reduced(&graphs, precision, features, progress)?,
    };
    if let Some(record) = &mut made.quantization {
        task.told(record, &mut made.files)?;
    }
    Ok(made)
}

impl Bundled<'_> {
    /// The precision that the bundle was exported in: that of the language model, for the others may have more exact ones.
    fn precision(&self) -> Precision {
        self.bundle.manifest.parts["text"].precision
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

    /// In float32: against the plain forms of both graphs.
    fn single(
        &self,
        graphs: &[Graph; 2],
        features: &mut Features<'_>,
        progress: &mut dyn Progress,
    ) -> Result<Retrained> {
        let (mut parts, mut files) = (Vec::new(), Vec::new());
        for (graph, part) in graphs.iter().zip([ADAPTER, HEADS]) {
            let format = Format { precision: Precision::Fp32, parameters: graph.parameters() };
            let (summary, written) = self.writes(graph, part, format, progress)?;
            parts.push(summary);
            files.extend(written);
        }
        if !self.inputs.is_empty() {
            progress.step("comparing with the plain fp32 graphs", None);
            let (config, weights) = (&self.bundle.manifest.config, &self.trained.weights);
            let runtime = Runtime::load(self.library)?;
            let checker = Checker { threads: self.threads, staging: self.staging, runtime };
            let scans: Vec<_> = self.inputs.iter().filter_map(|i| Some((i, i.scan.as_deref()?))).collect();
            let read = |(_, path): &(_, &Path)| Ok(vec![("volume", inputs::scan(&config.volume, path)?)]);
            let volumes = scans.iter().map(read).collect::<Result<_>>()?;
            let plain = model::adapter::build(config, weights)?;
            let [maps] = checker.part(&mut parts[0], &plain, volumes, ["adapter"])?;
            let mut both = Vec::new();
            for ((input, _), map) in scans.iter().zip(feeds("adapter", maps)) {
                let Some(report) = &input.report else { continue };
                let map: Vec<(&str, &Tensor)> = map.iter().map(|(n, t)| (*n, t)).collect();
                let vision = one(features(PARTS[VISION], &map, &["vision"])?);
                both.push(vec![("vision", vision), ("text", self.text(report, features)?.1)]);
            }
            checker.part(
                &mut parts[1],
                &model::heads::build(config, weights)?,
                both,
                ["v", "t", "logits", "similarity"],
            )?;
        }
        Ok(Retrained { parts, files, quantization: None, probabilities: None })
    }

    /// A report's tokens, and what the bundle's language model makes of them.
    fn text(&self, report: &Path, features: &mut Features<'_>) -> Result<(Feed, Tensor)> {
        let record = &self.bundle.manifest.tokenizer;
        let tokenizer = Tokenizer::load(&self.bundle.file(&record.file), record.bos)?;
        let [ids, mask] = inputs::report(record.max_tokens, &tokenizer, report)?;
        let text = one(features("text", &[("input_ids", &ids), ("attention_mask", &mask)], &["text"])?);
        let tokens = [("input_ids", ids), ("attention_mask", mask)];
        Ok((tokens.map(|(n, t)| (n.to_owned(), Arc::new(t))).into(), text))
    }

    /// In reduced precision: decided again, written, judged, and made more exact where a limit is missed.
    fn reduced(
        &self,
        graphs: &[Graph; 2],
        precision: Precision,
        features: &mut Features<'_>,
        progress: &mut dyn Progress,
    ) -> Result<Retrained> {
        let manifest = &self.bundle.manifest;
        let max_error = manifest.quantization.as_ref().map(|q| q.max_error);
        let limits = |part: usize| Limits::of_part(precision, PARTS[part], max_error);
        let scans = self.inputs.iter().any(|i| i.scan.is_some());
        let runner = match scans {
            true => Some(Runner {
                runtime: Runtime::load(self.library)?,
                threads: self.threads,
                scratch: self.staging.path(),
                placed: None,
            }),
            false => None,
        };
        let (mut chosen, references) = self.decided(&graphs[0], precision, max_error, runner.as_ref(), progress)?;
        let mut references = References { scans: references, reports: Vec::new() };
        let mut single_heads = precision != Precision::Fp16;
        let mut verdict = Verdict::default();
        for attempt in 0.. {
            let heads =
                if single_heads { graphs[1].clone() } else { half(&graphs[1], &unfit_for_half(&graphs[1])?.0)? };
            let heads_precision = if single_heads { Precision::Fp32 } else { Precision::Fp16 };
            let formats = [chosen.precision, heads_precision].into_iter().zip(graphs);
            let formats = formats.map(|(precision, g)| Format { precision, parameters: g.parameters() });
            let (mut parts, mut files) = (Vec::new(), Vec::new());
            for ((graph, part), format) in [(&chosen.graph, ADAPTER), (&heads, HEADS)].into_iter().zip(formats) {
                let (summary, written) = self.writes(graph, part, format, progress)?;
                parts.push(summary);
                files.extend(written);
            }
            if let Some(runner) = runner {
                if attempt == 0 {
                    progress.step("the bundle's own results on held-out inputs", None);
                    self.see(&mut references, features)?;
                }
                progress.step("comparing with fp32 on held-out inputs", None);
                self.judge(&graphs[1], &references, runner, features, &mut verdict)?;
                let failing = verdict.failing(&limits);
                if !failing.is_empty() {
                    self.forget(&files)?;
                    if failing.iter().any(|(part, _)| *part != HEADS) && chosen.precision != Precision::Fp32 {
                        chosen = chosen.raised(&graphs[0]);
                    } else if !single_heads {
                        single_heads = true;
                    } else {
                        return Err(verdict.error(&limits).unwrap_or_else(|| missed(self.checkpoint)));
                    }
                    continue;
                }
            }
            return self.finished(chosen, parts, files, &verdict, progress);
        }
        unreachable!("each round ends the loop, or one of two parts is made more exact")
    }

    /// The adapter in the bundle's precision, and what float32 gives on the scans.
    fn decided(
        &self,
        graph: &Graph,
        precision: Precision,
        max_error: Option<f64>,
        runner: Option<&Runner<'_>>,
        progress: &mut dyn Progress,
    ) -> Result<(Adapter, Vec<super::quantize::references::ScanReference>)> {
        let manifest = &self.bundle.manifest;
        if let Some(runner) = runner {
            let limits = (precision, max_error);
            let (scans, adapter) =
                adapter::calibrated(graph, &manifest.config.volume, limits, self.inputs, runner, progress)?;
            if let Some(adapter) = adapter {
                return Ok((adapter, scans));
            }
        }
        if manifest.parts["adapter"].precision == Precision::Int8 && !self.single_adapter {
            let message = "the bundle's adapter is int8, and there is no scan to calibrate the new one on: give scans with \
                           --calibration, or leave the new adapter in fp32 with --adapter-fp32";
            return Err(Error::new(Code::CALIBRATION_INPUT, message).at(&self.bundle.dir));
        }
        Ok((adapter::data_free(graph, precision)?, Vec::new()))
    }

    /// The vision transformer on what the float32 adapter gave, and the language model on the reports that belong to these
    /// scans.
    fn see(&self, references: &mut References, features: &mut Features<'_>) -> Result<()> {
        for scan in references.scans.iter_mut().filter(|s| s.role.judges()) {
            scan.vision = Arc::new(one(features(PARTS[VISION], &[("adapter", &scan.adapter)], &["vision"])?));
            let input = self.inputs.iter().find(|i| i.name == scan.name);
            let Some(path) = input.and_then(|i| i.report.as_deref()) else { continue };
            let (tokens, text) = self.text(path, features)?;
            let (name, text) = (scan.name.clone(), Arc::new(text));
            references.reports.push(ReportReference { name, role: Role::HeldOut, tokens, text });
        }
        Ok(())
    }

    /// Both parts against float32, and the probabilities.
    fn judge(
        &self,
        heads: &Graph,
        references: &References,
        runner: Runner<'_>,
        features: &mut Features<'_>,
        verdict: &mut Verdict,
    ) -> Result<()> {
        let config = &self.bundle.manifest.config;
        let gate = Gate { config, staging: self.staging, references, runner, heads, text: None };
        gate.judge_adapter(verdict)?;
        (verdict.chain, verdict.visions) = (None, Vec::new());
        for (i, map) in &verdict.maps {
            let vision = one(features(PARTS[VISION], &[("adapter", map)], &["vision"])?);
            let comparison = compare(VISION, &vision, &references.scans[*i].vision)?;
            verdict.chain = Some(verdict.chain.map_or(comparison, |c| c.worst(&comparison)));
            verdict.visions.push((*i, vision));
        }
        let texts = references.reports.iter().enumerate();
        verdict.texts = texts.map(|(i, r)| (i, r.text.as_ref().clone())).collect();
        gate.judge_heads(verdict)
    }

    /// Removes files that will be written anew.
    fn forget(&self, files: &[FileRecord]) -> Result<()> {
        files.iter().map(|f| self.staging.path().join(&f.name)).try_for_each(|path| {
            std::fs::remove_file(&path).map_err(|e| Error::io(&path, "cannot remove the old file", e))
        })
    }

    /// The records, once all limits are met.
    fn finished(
        &self,
        chosen: Adapter,
        mut parts: Vec<PartSummary>,
        files: Vec<FileRecord>,
        verdict: &Verdict,
        progress: &mut dyn Progress,
    ) -> Result<Retrained> {
        for (summary, part) in parts.iter_mut().zip([ADAPTER, HEADS]) {
            summary.record.parity = match &verdict.parts[part] {
                Some((inputs, worst)) => Parity::Checked { inputs: *inputs, worst: *worst },
                None if self.inputs.is_empty() => continue,
                None => Parity::NotChecked("no calibration input reaches this part".into()),
            };
        }
        let old = self.bundle.manifest.parts["adapter"].precision;
        if old != chosen.precision && chosen.precision == Precision::Fp32 {
            let message = format!("the bundle's adapter was {old}; the new one is fp32");
            progress.warn(&Warning::new("adapter_precision", message));
        }
        let quantization = self.bundle.manifest.quantization.clone().map(|mut record| {
            record.layers.retain(|layer| layer.part != PARTS[ADAPTER]);
            record.layers.insert(0, chosen.record);
            // What was measured of the whole was measured with other weights.
            record.probabilities = None;
            record
        });
        Ok(Retrained { parts, files, quantization, probabilities: verdict.probabilities })
    }

    /// What a reduced bundle tells beside its graphs: the picture of errors, and statistics. Those of the vision transformer were
    /// gathered behind another adapter and go; those of the language model stay.
    fn told(&self, record: &mut Quantization, files: &mut Vec<FileRecord>) -> Result<()> {
        if let Some(name) = record.calibration.statistics.take() {
            let mut statistics = Statistics::load(&self.bundle.file(&name))?;
            statistics.activations.retain(|activation, _| activation.starts_with("text/"));
            statistics.scans = 0;
            if !statistics.activations.is_empty() {
                let path = self.staging.path().join(reduced::STATISTICS);
                statistics.save(&path)?;
                files.push(reduced::listed(&path, reduced::STATISTICS)?);
                record.calibration.statistics = Some(reduced::STATISTICS.to_owned());
            }
        }
        if let Some(picture) = picture::errors(record) {
            let path = self.staging.path().join(reduced::PICTURE);
            std::fs::write(&path, picture).map_err(|e| Error::io(&path, "cannot write", e))?;
            files.push(reduced::listed(&path, reduced::PICTURE)?);
        }
        Ok(())
    }
}

/// Both parts are float32 already, and a limit is still missed.
fn missed(checkpoint: &Path) -> Error {
    Error::new(Code::QUANTIZE_ERROR, "adapter and heads miss the limits of the bundle's precision").at(checkpoint)
}
