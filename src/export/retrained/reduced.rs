//! In reduced precision: quantize, write, compare with fp32, and make a part more exact where it misses its limit.

use std::path::Path;
use std::sync::Arc;

use super::{Bundled, Fallback, Features, Fp32Graphs, Retrained};
use crate::bundle::{FileRecord, Parity, Precision};
use crate::calibrate::{Role, Runner};
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::export::PartSummary;
use crate::export::gate::{Gate, Verdict, compare, only};
use crate::export::numeric_format::NumericFormat;
use crate::export::quantize::adapter::{self, Adapter};
use crate::export::quantize::limits::Limits;
use crate::export::quantize::references::{References, ReportReference, ScanReference};
use crate::export::stage::Format;
use crate::graph::Graph;
use crate::model::{Part, PartMap};
use crate::passes::{to_fp16, unfit_for_fp16};
use crate::progress::Progress;
use crate::runtime::Runtime;

impl Bundled<'_> {
    /// Quantizes and writes both graphs, again and more exact until they meet the limits.
    pub(super) fn reduced(
        &self,
        graphs: &Fp32Graphs,
        form: NumericFormat,
        features: &mut Features<'_>,
        progress: &mut dyn Progress,
    ) -> Result<Retrained> {
        let manifest = &self.bundle.manifest;
        let max_error = manifest.quantization.as_ref().map(|q| q.max_error);
        let limits = Limits::of_parts(form, max_error);
        let runner = self.runner()?;
        let (mut adapter, scans) =
            self.quantized_adapter(&graphs.adapter, form, max_error, runner.as_ref(), progress)?;
        let mut references = References { scans, reports: Vec::new() };
        if runner.is_some() {
            progress.step("the bundle's own results on held-out inputs", None);
            self.run_trunks(&mut references, features)?;
        }
        let (mut fp32_heads, mut heads_missed) = (!form.uses_fp16(), None);
        let mut verdict = Verdict::default();
        loop {
            let (parts, files) = self.write_both(graphs, &adapter, fp32_heads, progress)?;
            if let Some(runner) = runner {
                progress.step("comparing with fp32 on held-out inputs", None);
                self.compare(&graphs.heads, &references, runner, features, &mut verdict)?;
            }
            let failing = verdict.failing(&limits);
            if failing.is_empty() {
                let missed = PartMap::from_fn(|part| match part {
                    Part::Adapter => adapter.missed.clone(),
                    Part::Heads => heads_missed.clone(),
                    _ => None,
                });
                return self.finished(adapter, (parts, missed), files, &verdict, progress);
            }
            self.remove(&files)?;
            if failing.iter().any(|(part, _)| *part != Part::Heads) && adapter.precision != Precision::Fp32 {
                adapter = adapter.to_fp32(&graphs.adapter, verdict.missed(&limits));
            } else if !fp32_heads {
                (fp32_heads, heads_missed) = (true, verdict.missed(&limits));
            } else {
                return Err(verdict.error(&limits).unwrap_or_else(|| missed(self.checkpoint)));
            }
        }
    }

    /// The runner of float32 graphs, where there is a scan to run them on.
    fn runner(&self) -> Result<Option<Runner<'_>>> {
        if self.inputs.iter().all(|i| i.scan.is_none()) {
            return Ok(None);
        }
        let runtime = Runtime::load(self.library)?;
        Ok(Some(Runner { runtime, threads: self.threads, scratch: self.staging.path(), layout: None }))
    }

    /// Writes both parts.
    fn write_both(
        &self,
        graphs: &Fp32Graphs,
        adapter: &Adapter,
        fp32_heads: bool,
        progress: &mut dyn Progress,
    ) -> Result<(Vec<PartSummary>, Vec<FileRecord>)> {
        let (heads, heads_precision) = match fp32_heads {
            true => (graphs.heads.clone(), Precision::Fp32),
            false => (to_fp16(&graphs.heads, &unfit_for_fp16(&graphs.heads)?.0)?, Precision::Fp16),
        };
        let (mut parts, mut files) = (Vec::new(), Vec::new());
        let quantized = [
            (Part::Adapter, &adapter.graph, adapter.precision, &graphs.adapter),
            (Part::Heads, &heads, heads_precision, &graphs.heads),
        ];
        for (part, graph, precision, fp32) in quantized {
            let format = Format { precision, parameters: fp32.parameters() };
            let (summary, written) = self.write(graph, part, format, progress)?;
            parts.push(summary);
            files.extend(written);
        }
        Ok((parts, files))
    }

    /// The adapter in the bundle's precision, and the float32 results on the scans.
    fn quantized_adapter(
        &self,
        graph: &Graph,
        form: NumericFormat,
        max_error: Option<f64>,
        runner: Option<&Runner<'_>>,
        progress: &mut dyn Progress,
    ) -> Result<(Adapter, Vec<ScanReference>)> {
        let manifest = &self.bundle.manifest;
        if let Some(runner) = runner {
            let limits = (form, max_error);
            let (scans, adapter) =
                adapter::calibrated(graph, &manifest.config.volume, limits, self.inputs, runner, progress)?;
            if let Some(adapter) = adapter {
                return Ok((adapter, scans));
            }
        }
        if self.precision(Part::Adapter) == Precision::Int8 && !self.adapter_fp32 {
            let message = "the bundle's adapter is int8, and there is no scan to calibrate the new one on: give scans with \
                           --calibration, or leave the new adapter in fp32 with --adapter-fp32";
            return Err(Error::new(Code::CALIBRATION_INPUT, message).at(&self.bundle.dir));
        }
        Ok((adapter::data_free(graph, form)?, Vec::new()))
    }

    /// Runs the bundle's vision transformer on the results of the float32 adapter, and its language model on the
    /// reports that belong to these scans.
    fn run_trunks(&self, references: &mut References, features: &mut Features<'_>) -> Result<()> {
        for scan in references.scans.iter_mut().filter(|s| s.role.evaluates()) {
            scan.vision = Arc::new(only(features(Part::Vision, &[("adapter", &scan.adapter)], &["vision"])?));
            let input = self.inputs.iter().find(|i| i.name == scan.name);
            let Some(path) = input.and_then(|i| i.report.as_deref()) else { continue };
            let (tokens, text) = self.text(path, features)?;
            let (name, text) = (scan.name.clone(), Arc::new(text));
            references.reports.push(ReportReference { name, role: Role::HeldOut, tokens, text });
        }
        Ok(())
    }

    /// Compares both parts and the probabilities with float32.
    fn compare(
        &self,
        heads: &Graph,
        references: &References,
        runner: Runner<'_>,
        features: &mut Features<'_>,
        verdict: &mut Verdict,
    ) -> Result<()> {
        let config = &self.bundle.manifest.config;
        let gate = Gate { config, staging: self.staging, references, runner, heads, text: None };
        gate.check_adapter(verdict)?;
        (verdict.chain, verdict.visions) = (None, Vec::new());
        for (i, map) in &verdict.maps {
            let vision = only(features(Part::Vision, &[("adapter", map)], &["vision"])?);
            let comparison = compare(Part::Vision, &vision, &references.scans[*i].vision)?;
            verdict.chain = Some(verdict.chain.map_or(comparison, |c| c.worst(&comparison)));
            verdict.visions.push((*i, vision));
        }
        let texts = references.reports.iter().enumerate();
        verdict.texts = texts.map(|(i, r)| (i, r.text.as_ref().clone())).collect();
        gate.check_heads(verdict)
    }

    /// Removes files that will be written again.
    fn remove(&self, files: &[FileRecord]) -> Result<()> {
        files.iter().map(|f| self.staging.path().join(&f.name)).try_for_each(|path| {
            std::fs::remove_file(&path).map_err(|e| Error::io(&path, "cannot remove the old file", e))
        })
    }

    /// The result, once all limits are met.
    fn finished(
        &self,
        adapter: Adapter,
        (mut parts, missed): (Vec<PartSummary>, PartMap<Option<String>>),
        files: Vec<FileRecord>,
        verdict: &Verdict,
        progress: &mut dyn Progress,
    ) -> Result<Retrained> {
        for summary in &mut parts {
            summary.record.parity = match &verdict.parts[summary.part] {
                Some((inputs, worst)) => Parity::Checked { inputs: *inputs, worst: *worst },
                None if self.inputs.is_empty() => continue,
                None => Parity::NotChecked("no calibration input reaches this part".into()),
            };
        }
        let fallback = |summary: &PartSummary| Fallback {
            part: summary.part,
            from: self.precision(summary.part),
            to: summary.record.precision,
            missed: missed[summary.part].clone(),
            bytes: summary.record.bytes,
            bytes_before: self.bundle.manifest.part(summary.part).bytes,
        };
        let fallbacks: Vec<Fallback> = parts.iter().map(fallback).filter(|f| f.from != f.to).collect();
        fallbacks.iter().for_each(|f| progress.warn(&Warning::new(WarningCode::PART_PRECISION, f.describe())));
        let quantization = self.bundle.manifest.quantization.clone().map(|mut record| {
            record.layers.retain(|layer| layer.part != Part::Adapter.as_str());
            record.layers.insert(0, adapter.record);
            // The probabilities of the whole bundle were measured with other weights.
            record.probabilities = None;
            record
        });
        Ok(Retrained { parts, files, quantization, probabilities: verdict.probabilities, fallbacks })
    }
}

/// Both parts are float32 already, and a limit is still missed.
fn missed(checkpoint: &Path) -> Error {
    Error::new(Code::QUANTIZE_ERROR, "adapter and heads miss the limits of the bundle's precision").at(checkpoint)
}
