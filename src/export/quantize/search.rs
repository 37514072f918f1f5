//! The search for a scheme for each linear layer of one trunk, block by block.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ndarray::ArrayD;

use super::group::{GroupPlan, LadderRules, search_group};
use super::limits::{Limits, ladder};
use super::plan::{BlockPlan, QuantPlan, StartRungs};
use super::trial::{max_abs, smoothed_importance};
use crate::bundle::{BlockRecord, FirstTry, LayerRecord, Precision};
use crate::calibrate::{
    BlockVisit, ChannelStats, Feed, Fidelity, Inputs, LinearGroup, Runner, Statistics, Walk, fidelity_of,
};
use crate::error::{Code, Error, Result};
use crate::export::numeric_format::NumericFormat;
use crate::graph::{Graph, Segment, Tail, ValueId};
use crate::model::Part;
use crate::passes::quantize::Scheme;
use crate::passes::{Linear, Rounded, exceeds_fp16, linears, rounding, unfit_for_fp16};
use crate::progress::Progress;
use crate::tensor::{DType, Tensor};

/// Searches the schemes of one trunk.
pub(super) struct Searcher<'a> {
    part: Part,
    /// The float32 graph.
    graph: &'a Graph,
    form: NumericFormat,
    max_error: Option<f64>,
    /// Statistics of an earlier export, to be used instead of gathering them.
    statistics: Option<Arc<Statistics>>,
    /// All linear layers of the graph.
    linears: Vec<Linear>,
    /// The name of each activation's statistics: part and the first layer that reads it.
    names: BTreeMap<ValueId, String>,
}

impl<'a> Searcher<'a> {
    /// A search in the trunk `part`.
    pub fn new(part: Part, graph: &'a Graph, plan: &crate::export::Plan, statistics: Option<Arc<Statistics>>) -> Self {
        let linears = linears(graph, 0..graph.nodes.len());
        let mut names = BTreeMap::new();
        for linear in &linears {
            names.entry(linear.input).or_insert_with(|| format!("{part}/{}", linear.name));
        }
        let form = NumericFormat::of(plan.precision, plan.target);
        Self { part, graph, form, max_error: plan.max_error, statistics, linears, names }
    }

    /// Every layer gets the first scheme of its ladder; nothing is run.
    ///
    /// # Errors
    /// When weights cannot be read; `calibration.input` when given statistics do not fit.
    pub fn data_free(&self) -> Result<QuantPlan> {
        let mut plan = self.empty_plan()?;
        let scheme = ladder(self.form, self.part)[0];
        let mut block = BlockPlan::default();
        for linear in &self.linears {
            let kept = plan.unfit.contains(&self.graph.nodes[linear.node].name);
            let scheme = if kept { Scheme::Fp32 } else { scheme };
            block.schemes.insert(linear.name.clone(), scheme);
            let given = self.given(linear)?;
            if let Some(stats) = given {
                block.importance.insert(linear.name.clone(), stats.importance().into());
            }
            // Where no range is known the graph is never written: only its size is needed.
            block.max_abs.insert(linear.name.clone(), given.map_or(1.0, |stats| max_abs(&stats.max_abs, None)));
            block.layers.push(self.record(linear, scheme));
        }
        plan.blocks.insert(0, block);
        Ok(plan)
    }

    /// What is known before any layer: the type of tables, and weights that fp16 cannot hold.
    fn empty_plan(&self) -> Result<QuantPlan> {
        let (form, blocks) = (self.form, BTreeMap::new());
        if form.uses_fp16() {
            let (unfit, flushed) = unfit_for_fp16(self.graph)?;
            return Ok(QuantPlan { form, tables: None, unfit, flushed, blocks });
        }
        let (mut fits, mut flushed) = (true, 0);
        for node in self.graph.nodes.iter().filter(|n| n.op.kind == "Gather") {
            let table = node.inputs[0].and_then(|id| self.graph.value(id).init.as_ref());
            let lost = table.filter(|t| t.dtype().is_float()).map_or(Ok(Rounded::default()), rounding)?;
            flushed += lost.flushed;
            fits &= lost.overflowed == 0;
        }
        Ok(QuantPlan { form, tables: fits.then_some(DType::F16), unfit: BTreeSet::new(), flushed, blocks })
    }

    /// Whether the name is that of statistics of this trunk.
    pub fn owns(&self, statistics: &str) -> bool {
        statistics.strip_prefix(self.part.as_str()).is_some_and(|rest| rest.starts_with('/'))
    }

    /// The given statistics, where they cover this trunk: fp16 uses none, and an export without scans (or reports)
    /// gathered none for the trunk that reads them.
    pub fn given_statistics(&self) -> Option<&Statistics> {
        let usable = |s: &&Statistics| s.activations.keys().any(|name| self.owns(name));
        self.statistics.as_deref().filter(usable).filter(|_| self.form.precision != Precision::Fp16)
    }

    /// The given statistics of a layer's activation.
    fn given(&self, linear: &Linear) -> Result<Option<&ChannelStats>> {
        let Some(statistics) = self.given_statistics() else { return Ok(None) };
        let wrong =
            |what: String| Error::new(Code::CALIBRATION_INPUT, format!("the statistics are another model's: {what}"));
        let name = self.activation(linear);
        let found = statistics.activations.get(name).ok_or_else(|| wrong(format!("they lack `{name}`")))?;
        let (have, want) = (found.max_abs.len(), linear.k);
        if have != want {
            return Err(wrong(format!("`{name}` has {have} channels, expected {want}")));
        }
        Ok(Some(found))
    }

    /// The name of the statistics of the activation that a layer reads.
    fn activation(&self, linear: &Linear) -> &str {
        &self.names[&linear.input]
    }

    /// Walks the graph over the inputs and searches layer by layer. Returns the graph's float32 outputs too, where the
    /// walk came to its end. Blocks that start where they did in `before` keep their plan.
    ///
    /// # Errors
    /// `quantize.error` when a layer cannot meet its limit; those of the walk.
    pub fn search(
        &self,
        inputs: &mut Inputs,
        starts: &StartRungs,
        before: &QuantPlan,
        runner: &Runner<'_>,
        progress: &mut dyn Progress,
    ) -> Result<(QuantPlan, Option<Vec<Feed>>)> {
        let mut plan = QuantPlan {
            form: self.form,
            tables: before.tables,
            unfit: before.unfit.clone(),
            flushed: before.flushed,
            blocks: BTreeMap::new(),
        };
        let start = |segment: &Segment| starts.get(&segment.name).copied().unwrap_or(0);
        let known = |segment: &Segment| {
            before.blocks.get(&segment.nodes.start).filter(|b| b.start == start(segment) && b.measured)
        };
        for segment in self.graph.segments(Tail::Separate) {
            if let Some(block) = known(&segment) {
                plan.blocks.insert(segment.nodes.start, block.clone());
            }
        }
        let unknown = |segment: &Segment| known(segment).is_none();
        let walk = Walk { graph: self.graph, runner, visits: &unknown, ranges: self.form.uses_fp16() };
        let outputs = walk.run(inputs, progress, &mut |visit, _| {
            let block = self.block(&plan, &visit, start(visit.segment), runner)?;
            plan.blocks.insert(visit.segment.nodes.start, block);
            Ok(())
        })?;
        Ok((plan, outputs))
    }

    /// Searches the layers of one block.
    fn block(&self, plan: &QuantPlan, visit: &BlockVisit<'_>, start: usize, runner: &Runner<'_>) -> Result<BlockPlan> {
        let keep = exceeds_fp16(visit.block, &visit.ranges);
        let mut block = BlockPlan { start, measured: true, keep, ..BlockPlan::default() };
        let limit = Limits::of_part(self.form, self.part, self.max_error).layer;
        for group in &visit.groups {
            let first = &group.linears[0];
            let stats = self.given(first)?.unwrap_or(&group.stats);
            let kept = |l: &Linear| {
                let node = &self.graph.nodes[l.node].name;
                block.keep.contains(node) || plan.unfit.contains(node)
            };
            let top = group.linears.iter().map(kept).collect();
            let rules = LadderRules { ladder: ladder(self.form, self.part), start, limit, form: self.form, top };
            let found = search_group(self.graph, group, stats, &rules, runner)?;
            self.add(&mut block, group, stats, found);
            block.statistics.insert(self.activation(first).to_owned(), group.stats.clone());
        }
        if !visit.groups.is_empty() {
            let quantized = plan.apply_blocks(visit.block, std::iter::once(&block))?;
            block.record = Some(self.measure(visit, &quantized, runner)?);
        }
        Ok(block)
    }

    /// Adds a group's layers to its block.
    fn add(&self, block: &mut BlockPlan, group: &LinearGroup, stats: &ChannelStats, found: GroupPlan) {
        let importance: Arc<[f32]> = stats.importance().into();
        let max_abs = max_abs(&stats.max_abs, found.factors.as_deref());
        for (i, linear) in group.linears.iter().enumerate() {
            let (scheme, fidelity, (first, before)) = (found.schemes[i], found.fidelity[i], found.first[i]);
            if scheme == Scheme::Fp32 {
                block.keep.insert(self.graph.nodes[linear.node].name.clone());
            }
            block.schemes.insert(linear.name.clone(), scheme);
            let importance = smoothed_importance(&importance, found.factors.as_deref());
            block.importance.insert(linear.name.clone(), importance);
            block.max_abs.insert(linear.name.clone(), max_abs);
            let changed = first != scheme || found.factors.is_some();
            let bytes = first.bytes(linear.k, linear.n);
            block.layers.push(LayerRecord {
                smoothed: found.factors.is_some(),
                error: Some(fidelity.error),
                cosine: Some(fidelity.cosine),
                first: changed.then_some(FirstTry { scheme: first, error: Some(before.error), bytes }),
                ..self.record(linear, scheme)
            });
            if let Some(slowdown) = found.slowdown {
                block.slowdowns.insert(linear.name.clone(), slowdown);
            }
        }
        if let Some(factors) = found.factors {
            block.smoothed.push((self.graph.value(group.input).name.clone(), factors));
        }
    }

    /// The error of a whole quantized block, on the values that flow into it in float32.
    fn measure(&self, visit: &BlockVisit<'_>, quantized: &Graph, runner: &Runner<'_>) -> Result<BlockRecord> {
        let mut loaded = runner.open(quantized)?;
        let (mut stream, mut update) = (Fidelity::EXACT, None);
        for (inputs, outputs) in &visit.held_out {
            let floats: Vec<&str> =
                outputs.iter().filter(|(_, t)| t.dtype() == DType::F32).map(|(n, _)| n.as_str()).collect();
            for (name, found) in floats.iter().zip(loaded.run(inputs, &floats)?) {
                let (Tensor::F32(found), Tensor::F32(expected)) = (&found, outputs[*name].as_ref()) else { continue };
                let compare =
                    |found: &ArrayD<f32>, expected: &ArrayD<f32>| fidelity_of(found, expected).map_err(Error::internal);
                stream = stream.worst(&compare(found, expected)?);
                // What the block adds to the residual stream.
                if let Some(entered) = inputs.values().find_map(|t| residual(t.as_ref(), expected)) {
                    let added = compare(&(found - entered), &(expected - entered))?;
                    update = Some(update.unwrap_or(Fidelity::EXACT).worst(&added));
                }
            }
        }
        Ok(BlockRecord {
            part: self.part.to_string(),
            block: visit.segment.name.clone(),
            error: stream.error,
            cosine: stream.cosine,
            update_error: update.map(|u| u.error),
        })
    }

    /// The record of a layer whose error was not measured.
    fn record(&self, linear: &Linear, scheme: Scheme) -> LayerRecord {
        LayerRecord {
            part: self.part.to_string(),
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
}

/// The tensor as the residual stream that enters a block whose result is `expected`.
fn residual<'a>(tensor: &'a Tensor, expected: &ArrayD<f32>) -> Option<&'a ArrayD<f32>> {
    match tensor {
        Tensor::F32(values) if values.shape() == expected.shape() && values.ndim() == 3 => Some(values),
        _ => None,
    }
}
