//! What was decided for one trunk: a scheme for each linear layer, block by block.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::limits::{error_left, ladder, next_rung};
use crate::bundle::{BlockRecord, LayerRecord, Target};
use crate::calibrate::ChannelStats;
use crate::error::{Error, Result};
use crate::export::numeric_format::NumericFormat;
use crate::graph::{Graph, ValueId};
use crate::model::Part;
use crate::passes::quantize::{Plan, Scheme, quantize, smooth};
use crate::passes::{Scores, decompose_attention, to_fp16};
use crate::tensor::DType;

/// How a trunk is quantized.
pub(super) struct QuantPlan {
    pub form: NumericFormat,
    /// Element type of token embeddings, where it is not float32.
    pub tables: Option<DType>,
    /// Nodes whose weights do not fit fp16.
    pub unfit: BTreeSet<String>,
    /// Non-zero weights that fp16 rounds to 0.
    pub flushed: u64,
    /// The blocks, by the index of a block's first node.
    pub blocks: BTreeMap<usize, BlockPlan>,
}

/// How one block is quantized.
#[derive(Clone, Default)]
pub(super) struct BlockPlan {
    /// The rung of the ladder that the search started from.
    pub start: usize,
    /// Whether errors were measured, on calibration inputs.
    pub measured: bool,
    /// By layer.
    pub schemes: BTreeMap<String, Scheme>,
    /// How much an error in each input's weights matters, by layer: `[k]`.
    pub importance: BTreeMap<String, Arc<[f32]>>,
    /// The largest magnitude of a layer's activation.
    pub max_abs: BTreeMap<String, f32>,
    /// Names of activations that are smoothed, with their factors.
    pub smoothed: Vec<(String, Vec<f32>)>,
    /// Nodes that stay in float32 in an fp16 graph.
    pub keep: BTreeSet<String>,
    pub layers: Vec<LayerRecord>,
    /// How many times as long a layer takes as under its first scheme.
    pub slowdowns: BTreeMap<String, f64>,
    pub record: Option<BlockRecord>,
    pub statistics: BTreeMap<String, ChannelStats>,
}

/// The rung of the ladder from which the layers of a block start, by block, for blocks that were too sensitive on the
/// first.
pub(super) type StartRungs = BTreeMap<String, usize>;

impl QuantPlan {
    /// The quantized graph.
    ///
    /// # Errors
    /// `graph.invalid`.
    pub fn apply(&self, graph: &Graph) -> Result<Graph> {
        self.apply_blocks(graph, self.blocks.values())
    }

    /// The graph (the whole trunk or one block of it) with these blocks quantized.
    ///
    /// # Errors
    /// `graph.invalid`.
    pub fn apply_blocks<'a>(
        &self,
        graph: &Graph,
        blocks: impl Iterator<Item = &'a BlockPlan> + Clone,
    ) -> Result<Graph> {
        let uses_fp16 = self.form.uses_fp16();
        let mut graph = graph.clone();
        for (name, factors) in blocks.clone().flat_map(|b| &b.smoothed) {
            let id = graph.values.iter().position(|v| v.name == *name).map(ValueId);
            let id = id.ok_or_else(|| Error::internal(format!("the smoothed activation `{name}` is in no block")))?;
            smooth(&mut graph, id, factors)?;
        }
        let plan = Plan {
            schemes: blocks.clone().flat_map(|b| b.schemes.clone()).collect(),
            importance: blocks.clone().flat_map(|b| b.importance.clone()).collect(),
            max_abs: blocks.clone().flat_map(|b| b.max_abs.clone()).collect(),
            tables: self.tables,
            whole_activations: uses_fp16,
        };
        let graph = quantize(&graph, &plan)?;
        if !uses_fp16 {
            return Ok(graph);
        }
        let keep = blocks.flat_map(|b| &b.keep).chain(&self.unfit).cloned().collect();
        let graph = to_fp16(&graph, &keep)?;
        match self.form.target {
            Target::TensorRt => decompose_attention(&graph, Scores::Whole),
            _ => Ok(graph),
        }
    }

    /// One record per layer, in the order of the graph.
    pub fn layers(&self) -> impl Iterator<Item = &LayerRecord> {
        self.blocks.values().flat_map(|b| &b.layers)
    }

    /// One record per block.
    pub fn records(&self) -> impl Iterator<Item = &BlockRecord> {
        self.blocks.values().filter_map(|b| b.record.as_ref())
    }

    /// How many times as long layers take that are not as they were tried first.
    pub fn slowdowns(&self) -> impl Iterator<Item = (String, f64)> {
        self.blocks.values().flat_map(|b| b.slowdowns.clone())
    }

    /// The channel statistics that were gathered.
    pub fn statistics(&self) -> impl Iterator<Item = (String, ChannelStats)> {
        self.blocks.values().flat_map(|b| b.statistics.clone())
    }

    /// Chooses the blocks that must start higher on the ladder for the squared error of `part` to shrink `shortfall`
    /// times, those with the largest errors first; false when none can.
    pub fn escalate(&self, part: Part, shortfall: f64, starts: &mut StartRungs) -> bool {
        let ladder = ladder(self.form, part);
        let mut blocks: Vec<(f64, &str)> = self.records().map(|b| (b.error * b.error, b.block.as_str())).collect();
        blocks.sort_by(|a, b| b.0.total_cmp(&a.0));
        let total: f64 = blocks.iter().map(|(e, _)| e).sum();
        let (mut left, mut escalated) = (total, false);
        for (error, block) in blocks {
            if escalated && left <= total / shortfall {
                break;
            }
            let rung = starts.get(block).copied().unwrap_or(0).max(self.lowest_rung(ladder, block));
            if let Some(higher) = next_rung(ladder, rung) {
                starts.insert(block.to_owned(), higher);
                left -= error * (1.0 - error_left(ladder[rung], ladder[higher]));
                escalated = true;
            }
        }
        escalated
    }

    /// The lowest rung among the schemes of the block's layers.
    fn lowest_rung(&self, ladder: &[Scheme], block: &str) -> usize {
        let same = |a: &Scheme, b: &Scheme| std::mem::discriminant(a) == std::mem::discriminant(b);
        let rung = |scheme: &Scheme| match scheme {
            Scheme::Blocks { .. } => ladder.iter().position(|s| s == scheme),
            _ => ladder.iter().position(|s| same(s, scheme)),
        };
        let named = |b: &&BlockPlan| b.record.as_ref().is_some_and(|r| r.block == block);
        self.blocks.values().filter(named).flat_map(|b| b.schemes.values()).filter_map(rung).min().unwrap_or(0)
    }
}
