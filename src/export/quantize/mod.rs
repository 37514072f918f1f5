//! Reduced precision: from float32 graphs and calibration inputs to graphs that stay close to them.
//!
//! [`Reducer::start`] walks the float32 graphs, decides layer by layer and keeps what float32 gave; [`Reducer::raise`] makes a
//! part more exact that misses its limit as a whole. Without inputs only what needs none is used: one int8 scale a token,
//! taken as the token comes, and weights rounded by themselves.

pub(super) mod adapter;
mod group;
pub(super) mod limits;
mod part;
pub(super) mod references;
mod trial;

use std::collections::BTreeMap;

use limits::Limits;
use part::{Choice, Decider, Starts};
use references::{References, ReportReference, ScanReference};

use super::numeric_format::NumericFormat;
use super::sources::Loaded;
use super::{CalibrationInput, Plan, disk_space};
use crate::bundle::{Calibration, LayerRecord, Precision, Quantization, Target};
use crate::calibrate::{Feed, Inputs, Role, Runner, Statistics};
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::graph::{Graph, Segment, Tail};
use crate::passes::{to_fp16, unfit_for_fp16};
use crate::progress::Progress;

/// Fewer tokens of reports than this, or fewer scans than [`FEW_SCANS`], are too few to trust a range.
const FEW_TOKENS: u64 = 512;
/// See [`FEW_TOKENS`].
const FEW_SCANS: usize = 4;

/// How much of what flows into blocks is kept in memory between walks over vision and text, in bytes. For 900 tokens of
/// reports that is every eighth of LLaMA2-7B's blocks: a walk to one that was raised runs seven others before it at most.
const KEPT_BYTES: [usize; 2] = [32 << 20, 64 << 20];

/// Index of each part among the graphs.
pub(super) const ADAPTER: usize = 0;
pub(super) const VISION: usize = 1;
pub(super) const TEXT: usize = 2;
pub(super) const HEADS: usize = 3;

/// Decides, and decides again.
pub(super) struct Reducer<'a> {
    plan: &'a Plan,
    loaded: &'a Loaded,
    graphs: &'a [Graph; 4],
    runner: Option<Runner<'a>>,
    statistics: Option<Statistics>,
    adapter: adapter::Adapter,
    /// Whether the heads stay in float32.
    single_heads: bool,
    /// For vision and text.
    choices: [Choice; 2],
    starts: [Starts; 2],
    /// What they are walked with.
    inputs: [Option<Inputs>; 2],
    /// What float32 gave.
    pub references: References,
}

impl<'a> Reducer<'a> {
    /// Decides for all parts, from what the calibration inputs show.
    ///
    /// # Errors
    /// `quantize.error`, `calibration.input`, those of the runtime and of reading weights.
    pub fn start(
        plan: &'a Plan,
        loaded: &'a Loaded,
        graphs: &'a [Graph; 4],
        all: &[CalibrationInput],
        runner: Option<Runner<'a>>,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let statistics = plan.statistics.as_deref().map(Statistics::load).transpose()?;
        let decider = Decider::new(plan, statistics.as_ref());
        let form = NumericFormat::of(plan.precision, plan.target);
        if form.target == Target::TensorRt {
            let there = [all.iter().any(|i| i.scan.is_some()), all.iter().any(|i| i.report.is_some())];
            let missing =
                [VISION, TEXT].into_iter().zip(there).find(|(part, there)| !there && !decider.is_given(&graphs[*part]));
            missing.map_or(Ok(()), |(part, _)| Err(no_ranges(part)))?;
        }
        let choices = [decider.data_free(&graphs[VISION])?, decider.data_free(&graphs[TEXT])?];
        let adapter = adapter::data_free(&graphs[ADAPTER], form)?;
        let mut reducer = Self {
            plan,
            loaded,
            graphs,
            runner,
            statistics,
            adapter,
            single_heads: !form.halves(),
            choices,
            starts: [Starts::new(), Starts::new()],
            inputs: [None, None],
            references: References::default(),
        };
        if let Some(runner) = reducer.runner {
            // Found out after an hour of calibration, a full disk would cost the hour.
            let block = graphs.iter().map(largest_block).max().unwrap_or(0);
            disk_space::check(runner.scratch, disk_space::of_bundle(&reducer.graphs()?).saturating_add(block))?;
            reducer.adapter(all, &runner, progress)?;
            let reports = references::reports(loaded, all)?.into_iter();
            let reports =
                reports.map(|(name, tokens, role)| ReportReference { name, role, tokens, text: references::empty() });
            reducer.references.reports = reports.collect();
            reducer.part(VISION, &runner, progress)?;
            reducer.part(TEXT, &runner, progress)?;
        }
        reducer.warn(progress);
        Ok(reducer)
    }

    fn form(&self) -> NumericFormat {
        NumericFormat::of(self.plan.precision, self.plan.target)
    }

    /// Runs the adapter on each scan and decides about it.
    fn adapter(&mut self, all: &[CalibrationInput], runner: &Runner<'_>, progress: &mut dyn Progress) -> Result<()> {
        let limits = (self.form(), self.plan.max_error);
        let volume = &self.loaded.config.volume;
        let (scans, adapter) = adapter::calibrated(&self.graphs[ADAPTER], volume, limits, all, runner, progress)?;
        self.references.scans = scans;
        if let Some(adapter) = adapter {
            self.adapter = adapter;
        }
        Ok(())
    }

    /// Walks vision or text and decides about it.
    fn part(&mut self, part: usize, runner: &Runner<'_>, progress: &mut dyn Progress) -> Result<()> {
        let decider = Decider::new(self.plan, self.statistics.as_ref());
        let mut inputs = self.inputs[part - VISION].take().unwrap_or_else(|| self.inputs_of(part, &decider));
        if inputs.is_empty() {
            return Ok(());
        }
        let (before, starts) = (&self.choices[part - VISION], &self.starts[part - VISION]);
        let (choice, outputs) =
            decider.calibrated(&self.graphs[part], &mut inputs, starts, before, runner, progress)?;
        self.choices[part - VISION] = choice;
        self.inputs[part - VISION] = Some(inputs);
        for (i, mut output) in outputs.into_iter().flatten().enumerate() {
            let result = output.remove(crate::model::PARTS[part]);
            let result = result.ok_or_else(|| Error::new(Code::RUNTIME_RUN, "a part gave no result"))?;
            if part == VISION {
                self.references.scans[i].vision = result;
            } else {
                self.references.reports[i].text = result;
            }
        }
        Ok(())
    }

    /// What vision or text is walked with.
    fn inputs_of(&self, part: usize, decider: &Decider<'_>) -> Inputs {
        // Inputs whose statistics are not needed all judge.
        let role = |role: Role| if decider.is_given(&self.graphs[part]) { Role::HeldOut } else { role };
        let scan = |s: &ScanReference| (Feed::from([("adapter".to_owned(), s.adapter.clone())]), role(s.role));
        let report = |r: &ReportReference| (r.tokens.clone(), role(r.role));
        let inputs = match part {
            VISION => self.references.scans.iter().map(scan).collect(),
            _ => self.references.reports.iter().map(report).collect(),
        };
        Inputs::new(inputs, KEPT_BYTES[part - VISION])
    }

    /// Asks for a part to be more exact, whose distance from float32 must shrink `shortfall` times; false when nothing is left
    /// that could be made more exact. [`Self::decide_again`] does it.
    pub fn raise(&mut self, part: usize, shortfall: f64) -> bool {
        match part {
            _ if self.runner.is_none() => return false,
            ADAPTER if self.adapter.precision != Precision::Fp32 => {
                self.adapter = self.adapter.raised(&self.graphs[ADAPTER]);
            }
            HEADS if !self.single_heads => self.single_heads = true,
            VISION | TEXT => {
                let i = part - VISION;
                return self.choices[i].raise(crate::model::PARTS[part], shortfall, &mut self.starts[i]);
            }
            _ => return false,
        }
        true
    }

    /// Decides anew about a part that was raised.
    ///
    /// # Errors
    /// Those of [`Self::start`].
    pub fn decide_again(&mut self, part: usize, progress: &mut dyn Progress) -> Result<()> {
        match (part, self.runner) {
            (VISION | TEXT, Some(runner)) => self.part(part, &runner, progress),
            _ => Ok(()),
        }
    }

    /// The graphs as decided.
    ///
    /// # Errors
    /// `graph.invalid`.
    pub fn graphs(&self) -> Result<[Graph; 4]> {
        let heads = if self.single_heads {
            self.graphs[HEADS].clone()
        } else {
            to_fp16(&self.graphs[HEADS], &unfit_for_fp16(&self.graphs[HEADS])?.0)?
        };
        let [vision, text] = &self.choices;
        Ok([self.adapter.graph.clone(), vision.apply(&self.graphs[VISION])?, text.apply(&self.graphs[TEXT])?, heads])
    }

    /// The number format of each part.
    pub fn precisions(&self) -> [Precision; 4] {
        let heads = if self.single_heads { Precision::Fp32 } else { Precision::Fp16 };
        let vision = if self.plan.precision == Precision::Int4 { Precision::Int8 } else { self.plan.precision };
        [self.adapter.precision, vision, self.plan.precision, heads]
    }

    /// How many times as long treated layers take as they would untreated, by name.
    pub fn slowdowns(&self) -> BTreeMap<String, f64> {
        self.choices.iter().flat_map(Choice::slowdowns).collect()
    }

    /// The statistics to keep in the bundle: those that were gathered, or those that were given.
    pub fn statistics(&self) -> Option<Statistics> {
        let decider = Decider::new(self.plan, self.statistics.as_ref());
        let of_part = |name: &str| self.graphs.iter().find(|g| name.starts_with(&format!("{}/", g.name)));
        let mut given = self.statistics.clone().unwrap_or_default();
        given.activations.retain(|name, _| of_part(name).is_some_and(|graph| decider.is_given(graph)));
        let mut activations: BTreeMap<_, _> = self.choices.iter().flat_map(Choice::statistics).collect();
        let (scans, reports) = self.counts();
        activations.extend(given.activations);
        (!activations.is_empty()).then_some(Statistics { activations, scans, reports })
    }

    /// How many scans and reports gave the statistics.
    fn counts(&self) -> (usize, usize) {
        let decider = Decider::new(self.plan, self.statistics.as_ref());
        let (scans, reports) = self.references.count(Role::calibrates);
        let given = |part: usize| self.statistics.as_ref().filter(|_| decider.is_given(&self.graphs[part]));
        (given(VISION).map_or(scans, |s| s.scans), given(TEXT).map_or(reports, |s| s.reports))
    }

    /// What the manifest says; `statistics` is the file that they lie in.
    pub fn record(&self, statistics: Option<String>, probabilities: Option<f64>) -> Quantization {
        let (scans, reports) = self.counts();
        let (held_out_scans, held_out_reports) = self.references.count(Role::judges);
        let layers: Vec<LayerRecord> = std::iter::once(&self.adapter.record)
            .chain(self.choices.iter().flat_map(Choice::layers))
            .cloned()
            .collect();
        Quantization {
            max_error: Limits::of(self.plan.precision, self.plan.max_error).layer,
            calibration: Calibration { scans, reports, held_out_scans, held_out_reports, statistics },
            layers,
            blocks: self.choices.iter().flat_map(Choice::records).cloned().collect(),
            probabilities,
            flushed: self.choices.iter().map(|c| c.flushed).sum(),
        }
    }

    /// Says what is missing or lost.
    fn warn(&self, progress: &mut dyn Progress) {
        let flushed: u64 = self.choices.iter().map(|c| c.flushed).sum();
        if flushed > 0 {
            let message = format!("{flushed} weights other than 0 are too small for half precision and become 0");
            progress.warn(&Warning::new(WarningCode::WEIGHTS_FLUSHED, message));
        }
        let Some(_) = self.runner else {
            let message = "no calibration inputs: what needs to know activations is left out (the adapter stays in fp32 \
                           unless it is exported in fp16), and nothing is compared with fp32";
            return progress.warn(&Warning::new(WarningCode::CALIBRATION_NONE, message));
        };
        let (scans, reports) = (self.references.scans.len(), self.references.reports.len());
        let tokens = self.references.reports.iter().filter_map(|r| Some(r.tokens.get("input_ids")?.shape()[1] as u64));
        let tokens: u64 = tokens.sum();
        if scans < FEW_SCANS || tokens < FEW_TOKENS {
            let message = format!(
                "calibrated and judged on {scans} scans and {reports} reports ({tokens} tokens): little to trust. \
                 {FEW_SCANS} scans and {FEW_TOKENS} tokens of reports are a beginning{}",
                match self.plan.target {
                    Target::TensorRt => ". TensorRT's scales are fixed: reports unlike these are read less exactly",
                    _ => "",
                }
            );
            progress.warn(&Warning::new(WarningCode::CALIBRATION_FEW, message));
        }
    }
}

/// Static scales, and nothing to take them from.
fn no_ranges(part: usize) -> Error {
    let what = if part == VISION { "scan" } else { "report" };
    let message = format!(
        "int8 for TensorRT needs to know how large activations get, and there is no {what} to find it out on: give some with \
         --calibration, or an earlier export's --statistics"
    );
    Error::new(Code::CALIBRATION_INPUT, message)
}

/// Bytes of the largest block's weights: what is written for a moment while it is calibrated.
fn largest_block(graph: &Graph) -> u64 {
    let bytes = |s: Segment| graph.extract(s.nodes).map_or(0, |block| super::stage::weight_bytes(&block));
    graph.segments(Tail::Separate).into_iter().map(bytes).max().unwrap_or(0)
}
