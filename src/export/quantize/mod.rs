//! Quantization: from float32 graphs and calibration inputs to smaller graphs that stay close to them.
//!
//! [`Quantizer::start`] walks the float32 graphs, searches a scheme for each layer and keeps the float32 results;
//! [`Quantizer::escalate`] makes a part more exact that misses its limit as a whole. Without inputs only what needs
//! none is used: dynamic int8 activations, and weights rounded without knowing activations.

pub(super) mod adapter;
mod group;
pub(super) mod limits;
mod plan;
pub(super) mod references;
mod search;
mod trial;

use std::collections::BTreeMap;
use std::sync::Arc;

use limits::Limits;
use plan::{QuantPlan, StartRungs};
use references::{References, ReportReference, ScanReference};
use search::Searcher;

use super::numeric_format::NumericFormat;
use super::sources::Loaded;
use super::{CalibrationInput, Plan, disk_space};
use crate::bundle::{Calibration, LayerRecord, Precision, Quantization, Target};
use crate::calibrate::{Feed, Inputs, Role, Runner, Statistics};
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::graph::{Graph, Segment, Tail};
use crate::model::{Part, PartMap};
use crate::passes::{to_fp16, unfit_for_fp16};
use crate::progress::Progress;

/// Fewer tokens of reports than this, or fewer scans than [`FEW_SCANS`], are too few to trust a range.
const FEW_TOKENS: u64 = 512;
/// See [`FEW_TOKENS`].
const FEW_SCANS: usize = 4;

/// Maximum bytes of values between blocks that are kept in memory between walks over the vision transformer.
const KEPT_VISION_BYTES: usize = 32 << 20;
/// The same for the language model. For 900 tokens of reports that is every eighth of LLaMA2-7B's blocks: a walk to one
/// that was escalated runs seven others before it at most.
const KEPT_TEXT_BYTES: usize = 64 << 20;

/// Decides how each part is quantized, and decides again where a limit is missed.
pub(super) struct Quantizer<'a> {
    plan: &'a Plan,
    loaded: &'a Loaded,
    graphs: &'a PartMap<Graph>,
    runner: Option<Runner<'a>>,
    statistics: Option<Arc<Statistics>>,
    adapter: adapter::Adapter,
    /// Vision and text.
    trunks: BTreeMap<Part, Trunk<'a>>,
    /// Whether the heads stay in float32.
    fp32_heads: bool,
    /// The float32 results.
    pub references: References,
}

/// The state of vision or text.
struct Trunk<'a> {
    searcher: Searcher<'a>,
    plan: QuantPlan,
    starts: StartRungs,
    /// The inputs of its walks, once there was one.
    inputs: Option<Inputs>,
}

impl<'a> Quantizer<'a> {
    /// Decides for all parts, from what the calibration inputs show.
    ///
    /// # Errors
    /// `quantize.error`, `calibration.input`, those of the runtime and of reading weights.
    pub fn start(
        plan: &'a Plan,
        loaded: &'a Loaded,
        graphs: &'a PartMap<Graph>,
        all: &[CalibrationInput],
        runner: Option<Runner<'a>>,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let statistics = plan.statistics.as_deref().map(Statistics::load).transpose()?.map(Arc::new);
        let form = NumericFormat::of(plan.precision, plan.target);
        let mut trunks = BTreeMap::new();
        for part in Part::TRUNKS {
            let searcher = Searcher::new(part, &graphs[part], plan, statistics.clone());
            let has_inputs =
                all.iter().any(|i| if part == Part::Vision { i.scan.is_some() } else { i.report.is_some() });
            if form.target == Target::TensorRt && !has_inputs && searcher.given_statistics().is_none() {
                return Err(no_ranges(part));
            }
            trunks.insert(part, searcher);
        }
        let trunk = |(part, searcher): (Part, Searcher<'a>)| {
            let plan = searcher.data_free()?;
            Ok((part, Trunk { searcher, plan, starts: StartRungs::new(), inputs: None }))
        };
        let mut quantizer = Self {
            plan,
            loaded,
            graphs,
            runner,
            statistics,
            trunks: trunks.into_iter().map(trunk).collect::<Result<_>>()?,
            adapter: adapter::data_free(&graphs[Part::Adapter], form)?,
            fp32_heads: !form.uses_fp16(),
            references: References::default(),
        };
        if let Some(runner) = quantizer.runner {
            // A full disk is better found now than after an hour of calibration.
            let block = graphs.values().map(largest_block).max().unwrap_or(0);
            let bundle = disk_space::of_bundle(quantizer.graphs()?.values());
            disk_space::check(runner.scratch, bundle.saturating_add(block))?;
            quantizer.calibrate_adapter(all, &runner, progress)?;
            let reports = references::reports(loaded, all)?.into_iter();
            let reports =
                reports.map(|(name, tokens, role)| ReportReference { name, role, tokens, text: references::empty() });
            quantizer.references.reports = reports.collect();
            for part in Part::TRUNKS {
                quantizer.search(part, &runner, progress)?;
            }
        }
        quantizer.warn(progress);
        Ok(quantizer)
    }

    /// Runs the adapter on each scan and decides about it.
    fn calibrate_adapter(
        &mut self,
        all: &[CalibrationInput],
        runner: &Runner<'_>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let limits = (NumericFormat::of(self.plan.precision, self.plan.target), self.plan.max_error);
        let volume = &self.loaded.config.volume;
        let graph = &self.graphs[Part::Adapter];
        let (scans, adapter) = adapter::calibrated(graph, volume, limits, all, runner, progress)?;
        self.references.scans = scans;
        if let Some(adapter) = adapter {
            self.adapter = adapter;
        }
        Ok(())
    }

    /// Walks a trunk over its inputs and searches the schemes of its layers; does nothing without inputs.
    fn search(&mut self, part: Part, runner: &Runner<'_>, progress: &mut dyn Progress) -> Result<()> {
        let Some(trunk) = self.trunks.get_mut(&part) else { return Ok(()) };
        let mut inputs = match trunk.inputs.take() {
            Some(inputs) => inputs,
            None => inputs_of(part, &trunk.searcher, &self.references),
        };
        if inputs.is_empty() {
            return Ok(());
        }
        let (plan, outputs) = trunk.searcher.search(&mut inputs, &trunk.starts, &trunk.plan, runner, progress)?;
        (trunk.plan, trunk.inputs) = (plan, Some(inputs));
        for (i, mut output) in outputs.into_iter().flatten().enumerate() {
            let result = output.remove(part.as_str());
            let result = result.ok_or_else(|| Error::internal(format!("{part}: output missing")))?;
            match part {
                Part::Vision => self.references.scans[i].vision = result,
                _ => self.references.reports[i].text = result,
            }
        }
        Ok(())
    }

    /// Asks for a part to be more exact, whose distance from float32 must shrink `shortfall` times; false when nothing
    /// is left that could be made more exact. For a trunk [`Self::search_again`] is to follow.
    pub fn escalate(&mut self, part: Part, shortfall: f64) -> bool {
        if self.runner.is_none() {
            return false;
        }
        match part {
            Part::Adapter => {
                let can = self.adapter.precision != Precision::Fp32;
                if can {
                    self.adapter = self.adapter.to_fp32(&self.graphs[part], None);
                }
                can
            }
            Part::Heads => !std::mem::replace(&mut self.fp32_heads, true),
            Part::Vision | Part::Text => {
                let trunk = self.trunks.get_mut(&part);
                trunk.is_some_and(|trunk| trunk.plan.escalate(part, shortfall, &mut trunk.starts))
            }
        }
    }

    /// Searches the blocks again that were escalated.
    ///
    /// # Errors
    /// Those of [`Self::start`].
    pub fn search_again(&mut self, part: Part, progress: &mut dyn Progress) -> Result<()> {
        match self.runner {
            Some(runner) => self.search(part, &runner, progress),
            None => Ok(()),
        }
    }

    /// The quantized graphs.
    ///
    /// # Errors
    /// `graph.invalid`.
    pub fn graphs(&self) -> Result<PartMap<Graph>> {
        PartMap::try_from_fn(|part| {
            let graph = &self.graphs[part];
            match part {
                Part::Adapter => Ok(self.adapter.graph.clone()),
                Part::Vision | Part::Text => self.trunks[&part].plan.apply(graph),
                Part::Heads if self.fp32_heads => Ok(graph.clone()),
                Part::Heads => to_fp16(graph, &unfit_for_fp16(graph)?.0),
            }
        })
    }

    /// The number format of each part.
    pub fn precisions(&self) -> PartMap<Precision> {
        PartMap::from_fn(|part| match part {
            Part::Adapter => self.adapter.precision,
            Part::Vision if self.plan.precision == Precision::Int4 => Precision::Int8,
            Part::Vision | Part::Text => self.plan.precision,
            Part::Heads if self.fp32_heads => Precision::Fp32,
            Part::Heads => Precision::Fp16,
        })
    }

    /// How many times as long layers take that are not as they were tried first, by name.
    pub fn slowdowns(&self) -> BTreeMap<String, f64> {
        self.plans().flat_map(QuantPlan::slowdowns).collect()
    }

    fn plans(&self) -> impl Iterator<Item = &QuantPlan> {
        self.trunks.values().map(|trunk| &trunk.plan)
    }

    /// The statistics to keep in the bundle: those that were gathered, or those that were given.
    pub fn statistics(&self) -> Option<Statistics> {
        let mut given = self.statistics.as_deref().cloned().unwrap_or_default();
        given.activations.retain(|name, _| {
            let owner = self.trunks.values().map(|trunk| &trunk.searcher).find(|searcher| searcher.owns(name));
            owner.is_some_and(|searcher| searcher.given_statistics().is_some())
        });
        let mut activations: BTreeMap<_, _> = self.plans().flat_map(QuantPlan::statistics).collect();
        let (scans, reports) = self.counts();
        activations.extend(given.activations);
        (!activations.is_empty()).then_some(Statistics { activations, scans, reports, models: BTreeMap::new() })
    }

    /// The number of scans and of reports that the statistics are from.
    fn counts(&self) -> (usize, usize) {
        let (scans, reports) = self.references.count(Role::calibrates);
        let given = |part: Part| self.trunks[&part].searcher.given_statistics();
        (given(Part::Vision).map_or(scans, |s| s.scans), given(Part::Text).map_or(reports, |s| s.reports))
    }

    /// The manifest's record; `statistics` is the name of the file of statistics.
    pub fn record(&self, statistics: Option<String>, probabilities: Option<f64>) -> Quantization {
        let (scans, reports) = self.counts();
        let (held_out_scans, held_out_reports) = self.references.count(Role::evaluates);
        let layers: Vec<LayerRecord> =
            std::iter::once(&self.adapter.record).chain(self.plans().flat_map(QuantPlan::layers)).cloned().collect();
        Quantization {
            max_error: Limits::of(self.plan.precision, self.plan.max_error).layer,
            calibration: Calibration { scans, reports, held_out_scans, held_out_reports, statistics },
            layers,
            blocks: self.plans().flat_map(QuantPlan::records).cloned().collect(),
            probabilities,
            flushed: self.plans().map(|plan| plan.flushed).sum(),
        }
    }

    /// Warns of missing inputs and of lost weights.
    fn warn(&self, progress: &mut dyn Progress) {
        let flushed: u64 = self.plans().map(|plan| plan.flushed).sum();
        if flushed > 0 {
            let weights = if flushed == 1 { "weight" } else { "weights" };
            let message = format!("{flushed} non-zero {weights} underflowed to 0 in fp16");
            progress.warn(&Warning::new(WarningCode::WEIGHTS_FLUSHED, message));
        }
        if self.runner.is_none() {
            let message = "no calibration inputs: static quantization is off (the adapter stays in fp32 unless exported in \
                           fp16) and accuracy is NOT checked against fp32";
            return progress.warn(&Warning::new(WarningCode::CALIBRATION_NONE, message));
        }
        let (scans, reports) = (self.references.scans.len(), self.references.reports.len());
        let tokens = self.references.reports.iter().filter_map(|r| Some(r.tokens.get("input_ids")?.shape()[1] as u64));
        let tokens: u64 = tokens.sum();
        if scans < FEW_SCANS || tokens < FEW_TOKENS {
            let message = format!(
                "few calibration inputs: {scans} scans and {reports} reports ({tokens} tokens) in the calibration folder, for \
                 statistics and held-out errors together; recommended are at least {FEW_SCANS} scans and {FEW_TOKENS} tokens of reports{}",
                match self.plan.target {
                    Target::TensorRt => ". TensorRT's scales are static: reports unlike these lose accuracy",
                    _ => "",
                }
            );
            progress.warn(&Warning::new(WarningCode::CALIBRATION_FEW, message));
        }
    }
}

/// The inputs of walks over a trunk: the float32 adapter's results, or the reports' tokens.
fn inputs_of(part: Part, searcher: &Searcher<'_>, references: &References) -> Inputs {
    // Inputs whose statistics are not needed are all held out.
    let role = |role: Role| if searcher.given_statistics().is_some() { Role::HeldOut } else { role };
    let scan = |s: &ScanReference| (Feed::from([("adapter".to_owned(), s.adapter.clone())]), role(s.role));
    let report = |r: &ReportReference| (r.tokens.clone(), role(r.role));
    match part {
        Part::Vision => Inputs::new(references.scans.iter().map(scan).collect(), KEPT_VISION_BYTES),
        _ => Inputs::new(references.reports.iter().map(report).collect(), KEPT_TEXT_BYTES),
    }
}

/// Static scales are wanted, and there is nothing to derive them from.
fn no_ranges(part: Part) -> Error {
    let what = if part == Part::Vision { "scan" } else { "report" };
    let message = format!(
        "int8 for TensorRT needs the range of activations, and there is no {what} to measure it on: give some with \
         --calibration, or an earlier export's --statistics"
    );
    Error::new(Code::CALIBRATION_INPUT, message)
}

/// Bytes of the largest block's weights: what is written temporarily while it is calibrated.
fn largest_block(graph: &Graph) -> u64 {
    let bytes = |s: Segment| graph.extract(s.nodes).map_or(0, |block| disk_space::weight_bytes(&block));
    graph.segments(Tail::Separate).into_iter().map(bytes).max().unwrap_or(0)
}
