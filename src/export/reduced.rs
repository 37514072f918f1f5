//! Quantized exports: decide, write, compare with fp32, and decide again where a part misses its limit.

use std::collections::BTreeSet;
use std::path::Path;

use super::disk_space::weight_bytes;
use super::gate::{Gate, Verdict};
use super::numeric_format::NumericFormat;
use super::origin::Origin;
use super::quantize::Quantizer;
use super::quantize::limits::Limits;
use super::sources::Loaded;
use super::stage::{self, Format, Made};
use super::{CalibrationInput, Plan};
use crate::bundle::{FileRecord, Parity, Staging, sha256_of};
use crate::calibrate::{Runner, Statistics};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::model::{Part, PartMap};
use crate::plot;
use crate::progress::Progress;
use crate::runtime::Runtime;

/// How often parts that miss their limits are made more exact.
const ATTEMPTS: u32 = 6;

/// The file of statistics in a bundle: the input of `--statistics`.
pub(super) const STATISTICS: &str = "calibration.safetensors";

/// The plot of the layers' errors in a bundle.
pub(super) const ERRORS_PLOT: &str = "errors.svg";

/// Writes the quantized graphs.
///
/// # Errors
/// `quantize.error` when the limits cannot be met; those of reading, running and writing.
pub(super) fn make(
    plan: &Plan,
    loaded: &Loaded,
    graphs: &PartMap<Graph>,
    inputs: &[CalibrationInput],
    staging: &Staging,
    origin: &Origin<'_>,
    progress: &mut dyn Progress,
) -> Result<Made> {
    if let Some(path) = &plan.statistics {
        origin.check(loaded, &Statistics::load(path)?).map_err(|e| e.at(path))?;
    }
    let runner = match inputs {
        [] => None,
        _ => Some(Runner {
            runtime: Runtime::load(plan.library.as_deref())?,
            threads: plan.threads,
            scratch: staging.path(),
            layout: None,
        }),
    };
    let quantizer = Quantizer::start(plan, loaded, graphs, inputs, runner, progress)?;
    let mut export = ReducedExport::write(plan, loaded, graphs, staging, quantizer, progress)?;
    let mut probabilities = None;
    if let Some(runner) = runner {
        let verdict = export.meet_limits(runner, progress)?;
        probabilities = verdict.probabilities;
        for (part, summary) in export.made.parts.iter_mut() {
            summary.record.parity = match &verdict.parts[part] {
                Some((inputs, worst)) => Parity::Checked { inputs: *inputs, worst: *worst },
                None => Parity::NotChecked("no calibration input reaches this part".into()),
            };
        }
    }
    export.write_reports(probabilities, origin)?;
    Ok(export.made)
}

/// A quantized export whose graphs lie in the staged bundle.
struct ReducedExport<'a> {
    plan: &'a Plan,
    loaded: &'a Loaded,
    /// The float32 graphs.
    graphs: &'a PartMap<Graph>,
    staging: &'a Staging,
    quantizer: Quantizer<'a>,
    /// The graphs in the staged bundle.
    staged: PartMap<Graph>,
    made: Made,
}

impl<'a> ReducedExport<'a> {
    /// Writes all graphs as the quantizer decided.
    fn write(
        plan: &'a Plan,
        loaded: &'a Loaded,
        graphs: &'a PartMap<Graph>,
        staging: &'a Staging,
        quantizer: Quantizer<'a>,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let staged = quantizer.graphs()?;
        let precisions = quantizer.precisions();
        let formats =
            PartMap::from_fn(|part| Format { precision: precisions[part], parameters: graphs[part].parameters() });
        let made = stage::write(&staged, formats, loaded, staging, progress)?;
        Ok(Self { plan, loaded, graphs, staging, quantizer, staged, made })
    }

    /// Compares the staged graphs with fp32 on held-out inputs, and writes parts again, more exact, until all limits
    /// are met.
    ///
    /// # Errors
    /// `quantize.error` when a limit is missed and no attempt is left, or nothing that could be made more exact.
    fn meet_limits(&mut self, runner: Runner<'_>, progress: &mut dyn Progress) -> Result<Verdict> {
        let form = NumericFormat::of(self.plan.precision, self.plan.target);
        let limits = Limits::of_parts(form, self.plan.max_error);
        let (mut verdict, mut written) = (Verdict::default(), BTreeSet::from(Part::ALL));
        let mut attempt = 0;
        loop {
            progress.step("comparing with fp32 on held-out inputs", None);
            let gate = Gate {
                config: &self.loaded.config,
                staging: self.staging,
                references: &self.quantizer.references,
                runner,
                heads: &self.graphs[Part::Heads],
                text: Some((&self.staged[Part::Text], &self.made.layouts[Part::Text])),
            };
            gate.check(&mut verdict, &written)?;
            written.clear();
            if attempt < ATTEMPTS {
                written = self.escalate(&verdict.failing(&limits), attempt, progress)?;
            }
            if written.is_empty() {
                return verdict.error(&limits).map_or(Ok(verdict), Err);
            }
            self.write_again(&written, progress)?;
            attempt += 1;
        }
    }

    /// Decides again about failing parts, given how many times the distance of each must shrink; returns those that
    /// change.
    fn escalate(
        &mut self,
        failing: &[(Part, f64)],
        attempt: u32,
        progress: &mut dyn Progress,
    ) -> Result<BTreeSet<Part>> {
        let mut changed = BTreeSet::new();
        // Where earlier attempts did not reach the limit, more is demanded.
        let demand = 1.0 + 0.25 * f64::from(attempt);
        for &(part, shortfall) in failing {
            if self.quantizer.escalate(part, shortfall * demand) {
                // The old files go at once: the walk's temporary files need their space on the disk.
                self.remove_staged(part)?;
                self.quantizer.search_again(part, progress)?;
                changed.insert(part);
            }
        }
        Ok(changed)
    }

    /// Removes the files of a part.
    fn remove_staged(&mut self, part: Part) -> Result<()> {
        let prefix = format!("{part}.");
        let old = |f: &FileRecord| f.name.starts_with(&prefix);
        for file in self.made.files.iter().filter(|f| old(f)) {
            let path = self.staging.path().join(&file.name);
            std::fs::remove_file(&path).map_err(|e| Error::io(&path, "cannot remove the old file", e))?;
        }
        self.made.files.retain(|f| !old(f));
        Ok(())
    }

    /// Writes these parts as the quantizer now decides.
    fn write_again(&mut self, parts: &BTreeSet<Part>, progress: &mut dyn Progress) -> Result<()> {
        self.staged = self.quantizer.graphs()?;
        let precisions = self.quantizer.precisions();
        for &part in parts {
            let (graph, checkpoint) = (&self.staged[part], self.loaded.checkpoint_of(part));
            let format = Format { precision: precisions[part], parameters: self.graphs[part].parameters() };
            progress.step(&format!("writing {part}"), Some(weight_bytes(graph)));
            let (summary, files, layout) = stage::write_part(graph, part, format, checkpoint, self.staging, progress)?;
            self.made.files.extend(files);
            self.made.layouts[part] = layout;
            self.made.parts[part] = summary;
        }
        Ok(())
    }

    /// Writes the statistics and the plot of errors, and fills in the record.
    fn write_reports(&mut self, probabilities: Option<f64>, origin: &Origin<'_>) -> Result<()> {
        let mut statistics = None;
        if let Some(mut gathered) = self.quantizer.statistics() {
            gathered.models = origin.models(self.loaded)?;
            let path = self.staging.path().join(STATISTICS);
            gathered.save(&path)?;
            self.made.files.push(listed(&path, STATISTICS)?);
            statistics = Some(STATISTICS.to_owned());
        }
        let record = self.quantizer.record(statistics, probabilities);
        if let Some(plot) = plot::layer_errors(&record) {
            let path = self.staging.path().join(ERRORS_PLOT);
            std::fs::write(&path, plot).map_err(|e| Error::io(&path, "cannot write", e))?;
            self.made.files.push(listed(&path, ERRORS_PLOT)?);
        }
        self.made.quantization = Some(record);
        self.made.slowdowns = self.quantizer.slowdowns();
        Ok(())
    }
}

/// The manifest's record of a file.
pub(super) fn listed(path: &Path, name: &str) -> Result<FileRecord> {
    let bytes = std::fs::metadata(path).map_err(|e| Error::io(path, "cannot read the file's size", e))?.len();
    Ok(FileRecord { name: name.into(), bytes, sha256: sha256_of(path)? })
}
