//! In reduced precision: decided again, written, judged, and made more exact where a limit is missed.

use std::path::Path;
use std::sync::Arc;

use super::{Bundled, Features, Retrained};
use crate::bundle::{FileRecord, Parity, Precision};
use crate::calibrate::{Role, Runner};
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::export::PartSummary;
use crate::export::gate::{Gate, Verdict, compare, one};
use crate::export::numeric_format::NumericFormat;
use crate::export::quantize::adapter::{self, Adapter};
use crate::export::quantize::limits::Limits;
use crate::export::quantize::references::{References, ReportReference, ScanReference};
use crate::export::quantize::{ADAPTER, HEADS, VISION};
use crate::export::stage::Format;
use crate::graph::Graph;
use crate::model::{PARTS, Part};
use crate::passes::{to_fp16, unfit_for_fp16};
use crate::progress::Progress;
use crate::runtime::Runtime;

impl Bundled<'_> {
    /// In reduced precision: decided again, written, judged, and made more exact where a limit is missed.
    pub(super) fn reduced(
        &self,
        graphs: &[Graph; 2],
        form: NumericFormat,
        features: &mut Features<'_>,
        progress: &mut dyn Progress,
    ) -> Result<Retrained> {
        let manifest = &self.bundle.manifest;
        let max_error = manifest.quantization.as_ref().map(|q| q.max_error);
        let limits = |part: usize| Limits::of_part(form, PARTS[part], max_error);
        let runner = self.runner()?;
        let (mut adapter, scans) = self.decided(&graphs[0], form, max_error, runner.as_ref(), progress)?;
        let mut references = References { scans, reports: Vec::new() };
        if runner.is_some() {
            progress.step("the bundle's own results on held-out inputs", None);
            self.see(&mut references, features)?;
        }
        let mut single_heads = !form.halves();
        let mut verdict = Verdict::default();
        loop {
            let (parts, files) = self.write_both(graphs, &adapter, single_heads, progress)?;
            if let Some(runner) = runner {
                progress.step("comparing with fp32 on held-out inputs", None);
                self.judge(&graphs[1], &references, runner, features, &mut verdict)?;
            }
            let failing = verdict.failing(&limits);
            if failing.is_empty() {
                return self.finished(adapter, parts, files, &verdict, progress);
            }
            self.forget(&files)?;
            if failing.iter().any(|(part, _)| *part != HEADS) && adapter.precision != Precision::Fp32 {
                adapter = adapter.raised(&graphs[0]);
            } else if !single_heads {
                single_heads = true;
            } else {
                return Err(verdict.error(&limits).unwrap_or_else(|| missed(self.checkpoint)));
            }
        }
    }

    /// What float32 graphs are run with, where there is a scan to run them on.
    fn runner(&self) -> Result<Option<Runner<'_>>> {
        if self.inputs.iter().all(|i| i.scan.is_none()) {
            return Ok(None);
        }
        let runtime = Runtime::load(self.library)?;
        Ok(Some(Runner { runtime, threads: self.threads, scratch: self.staging.path(), placed: None }))
    }

    /// Writes both parts as they were decided on.
    fn write_both(
        &self,
        graphs: &[Graph; 2],
        adapter: &Adapter,
        single_heads: bool,
        progress: &mut dyn Progress,
    ) -> Result<(Vec<PartSummary>, Vec<FileRecord>)> {
        let [_, heads] = graphs;
        let (heads, heads_precision) = match single_heads {
            true => (heads.clone(), Precision::Fp32),
            false => (to_fp16(heads, &unfit_for_fp16(heads)?.0)?, Precision::Fp16),
        };
        let (mut parts, mut files) = (Vec::new(), Vec::new());
        let decided = [(&adapter.graph, adapter.precision, ADAPTER), (&heads, heads_precision, HEADS)];
        for ((graph, precision, part), single) in decided.into_iter().zip(graphs) {
            let format = Format { precision, parameters: single.parameters() };
            let (summary, written) = self.writes(graph, part, format, progress)?;
            parts.push(summary);
            files.extend(written);
        }
        Ok((parts, files))
    }

    /// The adapter in the bundle's precision, and what float32 gives on the scans.
    fn decided(
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
        if manifest.part(Part::Adapter).precision == Precision::Int8 && !self.single_adapter {
            let message = "the bundle's adapter is int8, and there is no scan to calibrate the new one on: give scans with \
                           --calibration, or leave the new adapter in fp32 with --adapter-fp32";
            return Err(Error::new(Code::CALIBRATION_INPUT, message).at(&self.bundle.dir));
        }
        Ok((adapter::data_free(graph, form)?, Vec::new()))
    }

    /// The vision transformer on what the float32 adapter gave, and the language model on the reports that belong to these
    /// scans.
    fn see(&self, references: &mut References, features: &mut Features<'_>) -> Result<()> {
        for scan in references.scans.iter_mut().filter(|s| s.role.judges()) {
            scan.vision = Arc::new(one(features(Part::Vision, &[("adapter", &scan.adapter)], &["vision"])?));
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
            let vision = one(features(Part::Vision, &[("adapter", map)], &["vision"])?);
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
        for summary in &parts {
            let (old, new) = (self.bundle.manifest.parts[&summary.part].precision, summary.record.precision);
            if old != new {
                let message = format!("the bundle's `{}` was {old}; the new one is {new}", summary.part);
                progress.warn(&Warning::new(WarningCode::PART_PRECISION, message));
            }
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
}

/// Both parts are float32 already, and a limit is still missed.
fn missed(checkpoint: &Path) -> Error {
    Error::new(Code::QUANTIZE_ERROR, "adapter and heads miss the limits of the bundle's precision").at(checkpoint)
}
