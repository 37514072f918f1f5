//! Decides for one graph of linear layers, block by block.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ndarray::ArrayD;

use super::group::{Chosen, Rules, choose};
use super::limits::{Limits, ladder, left as left_of, next_start};
use super::trial::{range, smoothed_importance};
use crate::bundle::{BlockRecord, FirstTry, LayerRecord, Precision, Target};
use crate::calibrate::{
    ChannelStats, Feed, Fidelity, Group, Inputs, Runner, Statistics, Visit, Wanted, fidelity_of, walk,
};
use crate::error::{Code, Error, Result};
use crate::export::numeric_format::NumericFormat;
use crate::graph::{Graph, Segment, Tail, ValueId};
use crate::passes::quantize::{Plan, Scheme, quantize};
use crate::passes::{
    Linear, Rounded, Scores, decompose_attention, exceeds_fp16, linears, rounding, smooth, to_fp16, unfit_for_fp16,
};
use crate::progress::Progress;
use crate::tensor::{DType, Tensor};

/// What was decided for one graph: what holds for all of it, and block by block, by the index of a block's first node.
#[derive(Default)]
pub(super) struct Choice {
    form: Option<NumericFormat>,
    /// Element type of looked-up tables.
    tables: Option<DType>,
    /// Nodes whose weights do not fit half precision.
    unfit: BTreeSet<String>,
    /// Weights that half precision made 0.
    pub flushed: u64,
    blocks: BTreeMap<usize, Block>,
}

/// What was decided for one block.
#[derive(Clone, Default)]
struct Block {
    /// Where its layers started on the ladder.
    start: usize,
    /// Whether it was decided by what inputs showed.
    judged: bool,
    schemes: BTreeMap<String, Scheme>,
    importance: BTreeMap<String, Arc<[f32]>>,
    /// The largest magnitude of what a layer reads.
    ranges: BTreeMap<String, f32>,
    /// Names of activations that are smoothed, with their factors.
    smoothed: Vec<(String, Vec<f32>)>,
    /// Nodes that stay in float32 in a half-precision graph.
    keep: BTreeSet<String>,
    layers: Vec<LayerRecord>,
    slowdowns: BTreeMap<String, f64>,
    record: Option<BlockRecord>,
    statistics: BTreeMap<String, ChannelStats>,
}

impl Choice {
    /// The graph (or a part of it) as it was decided.
    ///
    /// # Errors
    /// `graph.invalid`.
    pub fn apply(&self, graph: &Graph) -> Result<Graph> {
        self.apply_blocks(graph, self.blocks.values())
    }

    fn apply_blocks<'a>(&self, graph: &Graph, blocks: impl Iterator<Item = &'a Block> + Clone) -> Result<Graph> {
        let halves = self.form.is_some_and(NumericFormat::halves);
        let mut graph = graph.clone();
        for (name, factors) in blocks.clone().flat_map(|b| &b.smoothed) {
            let id = graph.values.iter().position(|v| v.name == *name).map(ValueId);
            let id = id.ok_or_else(|| Error::new(Code::GRAPH_INVALID, format!("there is no value `{name}`")))?;
            smooth(&mut graph, id, factors)?;
        }
        let plan = Plan {
            schemes: blocks.clone().flat_map(|b| b.schemes.clone()).collect(),
            importance: blocks.clone().flat_map(|b| b.importance.clone()).collect(),
            ranges: blocks.clone().flat_map(|b| b.ranges.clone()).collect(),
            tables: self.tables,
            whole_activations: halves,
        };
        let graph = quantize(&graph, &plan)?;
        if !halves {
            return Ok(graph);
        }
        let keep = blocks.flat_map(|b| &b.keep).chain(&self.unfit).cloned().collect();
        let graph = to_fp16(&graph, &keep)?;
        match self.form.map(|f| f.target) {
            Some(Target::TensorRt) => decompose_attention(&graph, Scores::Whole),
            _ => Ok(graph),
        }
    }

    /// A record a layer, in the order of the graph.
    pub fn layers(&self) -> impl Iterator<Item = &LayerRecord> {
        self.blocks.values().flat_map(|b| &b.layers)
    }

    /// A record a block.
    pub fn records(&self) -> impl Iterator<Item = &BlockRecord> {
        self.blocks.values().filter_map(|b| b.record.as_ref())
    }

    /// How many times as long treated layers take.
    pub fn slowdowns(&self) -> impl Iterator<Item = (String, f64)> {
        self.blocks.values().flat_map(|b| b.slowdowns.clone())
    }

    /// Statistics that were gathered.
    pub fn statistics(&self) -> impl Iterator<Item = (String, ChannelStats)> {
        self.blocks.values().flat_map(|b| b.statistics.clone())
    }
}

/// Where blocks start on the ladder that were found too sensitive.
pub(super) type Starts = BTreeMap<String, usize>;

/// What decides.
pub(super) struct Decider<'a> {
    pub form: NumericFormat,
    pub max_error: Option<f64>,
    /// Statistics of an earlier export, to be used instead of those gathered.
    pub statistics: Option<&'a Statistics>,
}

impl<'a> Decider<'a> {
    /// What decides by `plan`.
    pub fn new(plan: &crate::export::Plan, statistics: Option<&'a Statistics>) -> Self {
        Self { form: NumericFormat::of(plan.precision, plan.target), max_error: plan.max_error, statistics }
    }

    /// Every layer gets the first scheme of its ladder; nothing is run.
    ///
    /// # Errors
    /// When weights cannot be read; `calibration.input` when given statistics do not fit.
    pub fn data_free(&self, graph: &Graph) -> Result<Choice> {
        let mut choice = self.begin(graph)?;
        let scheme = ladder(self.form, &graph.name)[0];
        let mut block = Block::default();
        for linear in linears(graph, 0..graph.nodes.len()) {
            let kept = choice.unfit.contains(&graph.nodes[linear.node].name);
            let scheme = if kept { Scheme::Fp32 } else { scheme };
            block.schemes.insert(linear.name.clone(), scheme);
            let given = self.given(graph, &linear)?;
            if let Some(columns) = given {
                block.importance.insert(linear.name.clone(), columns.importance().into());
            }
            // Where nothing is known the graph is not written: its size alone is asked for.
            block.ranges.insert(linear.name.clone(), given.map_or(1.0, |columns| range(&columns.largest, None)));
            block.layers.push(record(graph, &linear, scheme));
        }
        choice.blocks.insert(0, block);
        Ok(choice)
    }

    /// What holds before anything was run: tables, and weights that half precision cannot hold.
    fn begin(&self, graph: &Graph) -> Result<Choice> {
        let mut choice = Choice { form: Some(self.form), ..Choice::default() };
        if self.form.halves() {
            (choice.unfit, choice.flushed) = unfit_for_fp16(graph)?;
            return Ok(choice);
        }
        let mut fits = true;
        for node in graph.nodes.iter().filter(|n| n.op.kind == "Gather") {
            let table = node.inputs[0].and_then(|id| graph.value(id).init.as_ref());
            let lost = table.filter(|t| t.dtype().is_float()).map_or(Ok(Rounded::default()), rounding)?;
            choice.flushed += lost.flushed;
            fits &= lost.overflowed == 0;
        }
        choice.tables = fits.then_some(DType::F16);
        Ok(choice)
    }

    /// Whether statistics for this graph were given: half precision uses none, and an export without scans (or reports)
    /// gathered none for the part that reads them.
    pub fn is_given(&self, graph: &Graph) -> bool {
        let prefix = format!("{}/", graph.name);
        let given = self.statistics.is_some_and(|s| s.activations.keys().any(|k| k.starts_with(&prefix)));
        given && self.form.precision != Precision::Fp16
    }

    /// The given statistics of the activation that a layer reads.
    fn given(&self, graph: &Graph, linear: &Linear) -> Result<Option<&ChannelStats>> {
        let Some(statistics) = self.statistics.filter(|_| self.is_given(graph)) else { return Ok(None) };
        let wrong =
            |what: String| Error::new(Code::CALIBRATION_INPUT, format!("the statistics are another model's: {what}"));
        let name = key(graph, linear);
        let found = statistics.activations.get(&name).ok_or_else(|| wrong(format!("they lack `{name}`")))?;
        let (have, want) = (found.largest.len(), linear.k);
        if have != want {
            return Err(wrong(format!("`{name}` has {have} columns, expected {want}")));
        }
        Ok(Some(found))
    }

    /// Walks the graph over the inputs and decides layer by layer; gives the graph's float32 outputs too, where it ran to its
    /// end. Blocks that start where they did in `before` keep what was decided there.
    ///
    /// # Errors
    /// `quantize.error` when a layer cannot meet its limit; those of the walk.
    pub fn calibrated(
        &self,
        graph: &Graph,
        inputs: &mut Inputs,
        starts: &Starts,
        before: &Choice,
        runner: &Runner<'_>,
        progress: &mut dyn Progress,
    ) -> Result<(Choice, Option<Vec<Feed>>)> {
        let mut choice = Choice {
            form: Some(self.form),
            tables: before.tables,
            unfit: before.unfit.clone(),
            flushed: before.flushed,
            blocks: BTreeMap::new(),
        };
        let start = |segment: &Segment| starts.get(&segment.name).copied().unwrap_or(0);
        let known = |segment: &Segment| {
            before.blocks.get(&segment.nodes.start).filter(|b| b.start == start(segment) && b.judged)
        };
        for segment in graph.segments(Tail::Separate) {
            if let Some(block) = known(&segment) {
                choice.blocks.insert(segment.nodes.start, block.clone());
            }
        }
        let unknown = |segment: &Segment| known(segment).is_none();
        let wanted = Wanted { ranges: self.form.halves(), blocks: &unknown };
        let outputs = walk(graph, inputs, &wanted, runner, progress, &mut |visit, _| {
            let block = self.block(&choice, &visit, start(visit.segment), runner)?;
            choice.blocks.insert(visit.segment.nodes.start, block);
            Ok(())
        })?;
        Ok((choice, outputs))
    }

    /// Decides for one block.
    fn block(&self, choice: &Choice, visit: &Visit<'_>, start: usize, runner: &Runner<'_>) -> Result<Block> {
        let graph = visit.graph;
        let keep = exceeds_fp16(visit.block, &visit.ranges);
        let mut block = Block { start, judged: true, keep, ..Block::default() };
        let limit = Limits::of_part(self.form, &graph.name, self.max_error).layer;
        for group in &visit.groups {
            let first = key(graph, &group.linears[0]);
            let columns = self.given(graph, &group.linears[0])?.unwrap_or(&group.columns);
            let kept = |l: &Linear| {
                let node = &graph.nodes[l.node].name;
                block.keep.contains(node) || choice.unfit.contains(node)
            };
            let last = group.linears.iter().map(kept).collect();
            let ladder = ladder(self.form, &graph.name);
            let rules = Rules { ladder, start, limit, form: self.form, last };
            let chosen = choose(graph, group, columns, &rules, runner)?;
            block.add(graph, group, columns, chosen);
            block.statistics.insert(first, group.columns.clone());
        }
        if !visit.groups.is_empty() {
            let staged = choice.apply_blocks(visit.block, std::iter::once(&block))?;
            block.record = Some(judge(visit, &staged, runner)?);
        }
        Ok(block)
    }
}

impl Block {
    fn add(&mut self, graph: &Graph, group: &Group, columns: &ChannelStats, chosen: Chosen) {
        let importance: Arc<[f32]> = columns.importance().into();
        let range = range(&columns.largest, chosen.factors.as_deref());
        for (i, linear) in group.linears.iter().enumerate() {
            let (scheme, found, (first, before)) = (chosen.schemes[i], chosen.found[i], chosen.first[i]);
            if scheme == Scheme::Fp32 {
                self.keep.insert(graph.nodes[linear.node].name.clone());
            }
            self.schemes.insert(linear.name.clone(), scheme);
            let matters = smoothed_importance(&importance, chosen.factors.as_deref());
            self.importance.insert(linear.name.clone(), matters);
            self.ranges.insert(linear.name.clone(), range);
            let treated = first != scheme || chosen.factors.is_some();
            let bytes = first.bytes(linear.k, linear.n);
            self.layers.push(LayerRecord {
                smoothed: chosen.factors.is_some(),
                error: Some(found.error),
                cosine: Some(found.cosine),
                first: treated.then_some(FirstTry { scheme: first, error: Some(before.error), bytes }),
                ..record(graph, linear, scheme)
            });
            if let Some(slowdown) = chosen.slowdown {
                self.slowdowns.insert(linear.name.clone(), slowdown);
            }
        }
        if let Some(factors) = chosen.factors {
            self.smoothed.push((graph.value(group.input).name.clone(), factors));
        }
    }
}

/// A whole block as decided, on the values that flow into it in float32.
fn judge(visit: &Visit<'_>, staged: &Graph, runner: &Runner<'_>) -> Result<BlockRecord> {
    let mut loaded = runner.open(staged)?;
    let (mut stream, mut update) = (Fidelity::EXACT, None);
    for (inputs, outputs) in &visit.held_out {
        let floats: Vec<&str> =
            outputs.iter().filter(|(_, t)| t.dtype() == DType::F32).map(|(n, _)| n.as_str()).collect();
        for (name, found) in floats.iter().zip(loaded.run(inputs, &floats)?) {
            let (Tensor::F32(found), Tensor::F32(expected)) = (&found, outputs[*name].as_ref()) else { continue };
            let compare = |found: &ArrayD<f32>, expected: &ArrayD<f32>| {
                fidelity_of(found, expected).map_err(|e| Error::new(Code::RUNTIME_RUN, e))
            };
            stream = stream.worst(&compare(found, expected)?);
            // What the block adds to the residual stream.
            if let Some(entered) = inputs.values().find_map(|t| residual(t.as_ref(), expected)) {
                let added = compare(&(found - entered), &(expected - entered))?;
                update = Some(update.unwrap_or(Fidelity::EXACT).worst(&added));
            }
        }
    }
    Ok(BlockRecord {
        part: visit.graph.name.clone(),
        block: visit.segment.name.clone(),
        error: stream.error,
        cosine: stream.cosine,
        update_error: update.map(|u| u.error),
    })
}

impl Choice {
    /// The blocks that must start higher for the part's error to shrink `shortfall` times; false when none can.
    pub fn raise(&self, part: &str, shortfall: f64, starts: &mut Starts) -> bool {
        let Some(ladder) = self.form.map(|form| ladder(form, part)) else { return false };
        let mut blocks: Vec<(f64, &str)> = self.records().map(|b| (b.error * b.error, b.block.as_str())).collect();
        blocks.sort_by(|a, b| b.0.total_cmp(&a.0));
        let total: f64 = blocks.iter().map(|(e, _)| e).sum();
        let (mut left, mut raised) = (total, false);
        for (error, block) in blocks {
            if raised && left <= total / shortfall {
                break;
            }
            let rung = starts.get(block).copied().unwrap_or(0).max(self.lowest(ladder, block));
            if let Some(higher) = next_start(ladder, rung) {
                starts.insert(block.to_owned(), higher);
                left -= error * (1.0 - left_of(ladder[rung], ladder[higher]));
                raised = true;
            }
        }
        raised
    }
}

impl Choice {
    /// The lowest rung that a layer of the block has come to.
    fn lowest(&self, ladder: &[Scheme], block: &str) -> usize {
        let same = |a: &Scheme, b: &Scheme| std::mem::discriminant(a) == std::mem::discriminant(b);
        let rung = |scheme: &Scheme| match scheme {
            Scheme::Blocks { .. } => ladder.iter().position(|s| s == scheme),
            _ => ladder.iter().position(|s| same(s, scheme)),
        };
        let named = |b: &&Block| b.record.as_ref().is_some_and(|r| r.block == block);
        self.blocks.values().filter(named).flat_map(|b| b.schemes.values()).filter_map(rung).min().unwrap_or(0)
    }
}

/// The tensor as the residual stream that enters a block whose result is `expected`.
fn residual<'a>(tensor: &'a Tensor, expected: &ArrayD<f32>) -> Option<&'a ArrayD<f32>> {
    match tensor {
        Tensor::F32(values) if values.shape() == expected.shape() && values.ndim() == 3 => Some(values),
        _ => None,
    }
}

/// The name under which an activation's statistics are kept: that of the first layer that reads it.
fn key(graph: &Graph, linear: &Linear) -> String {
    let all = linears(graph, 0..graph.nodes.len());
    let first = all.iter().find(|l| l.input == linear.input).unwrap_or(linear);
    format!("{}/{}", graph.name, first.name)
}

fn record(graph: &Graph, linear: &Linear, scheme: Scheme) -> LayerRecord {
    LayerRecord {
        part: graph.name.clone(),
        layer: linear.name.clone(),
        parameters: (linear.k * linear.n) as u64,
        bytes: scheme.bytes(linear.k, linear.n),
        scheme,
        smoothed: false,
        error: None,
        cosine: None,
        first: None,
    }
}
