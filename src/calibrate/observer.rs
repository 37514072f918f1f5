//! A block with further outputs: the activations that its linear layers read, and the ranges of its values.

use std::sync::Arc;

use ndarray::ArrayD;

use super::{ChannelStats, Feed, LoadedGraph, Ranges, Role, Sample};
use crate::error::{Error, Result};
use crate::graph::{Graph, Rewrite, ValueId};
use crate::passes::Linear;
use crate::tensor::{DType, Tensor};

/// The linear layers that read one activation.
pub struct LinearGroup {
    /// The activation, a value of the whole graph.
    pub input: ValueId,
    /// The layers, in the order of the graph.
    pub linears: Vec<Linear>,
    /// Channel statistics of the activation, over all tokens of the inputs that calibrate.
    pub stats: ChannelStats,
    /// Some tokens of the inputs that calibrate.
    pub calibrating: Sample,
    /// Some tokens of the inputs that are held out.
    pub held_out: Sample,
}

/// A value whose range is observed, and the outputs that hold its minimum and maximum.
struct RangeOutputs {
    value: String,
    ends: [String; 2],
}

/// Runs a block and accumulates what its linear layers read and compute.
pub(super) struct Observer {
    /// The block with further outputs.
    graph: Graph,
    /// Names of the block's own outputs.
    outputs: Vec<String>,
    /// Names of the observed values, group by group: the activation, then the result of each layer that reads it.
    taps: Vec<String>,
    ranges: Vec<RangeOutputs>,
    groups: Vec<LinearGroup>,
    /// How many inputs calibrate.
    calibrating: usize,
    /// How many inputs are held out.
    held_out: usize,
    observed: Ranges,
}

impl Observer {
    /// An observer of `block`, whose linear layers by activation are `groups`; both activations and layers are those of
    /// the `whole` graph.
    pub fn new(
        whole: &Graph,
        block: &Graph,
        groups: Vec<(ValueId, Vec<Linear>)>,
        roles: &[Role],
        find_ranges: bool,
    ) -> Result<Self> {
        let name = |id: ValueId| whole.value(id).name.clone();
        let taps: Vec<String> = groups
            .iter()
            .flat_map(|(input, linears)| std::iter::once(name(*input)).chain(linears.iter().map(|l| name(l.output))))
            .collect();
        let mut rewrite = Rewrite::new(block);
        block.nodes.iter().try_for_each(|node| rewrite.copy(node))?;
        let mut outputs = block.outputs.clone();
        let computed = || block.nodes.iter().flat_map(|n| &n.outputs).copied();
        for id in computed().filter(|id| taps.contains(&block.value(*id).name)) {
            if !outputs.contains(&id) {
                outputs.push(id);
            }
        }
        let ranges = if find_ranges { add_ranges(&mut rewrite, block, computed())? } else { Vec::new() };
        Ok(Self {
            graph: rewrite.finish_with(&outputs)?,
            outputs: block.outputs.iter().map(|&id| block.value(id).name.clone()).collect(),
            taps,
            ranges,
            groups: groups.into_iter().map(|(input, linears)| unobserved(input, linears)).collect(),
            calibrating: roles.iter().filter(|r| r.calibrates()).count(),
            held_out: roles.iter().filter(|r| r.evaluates()).count(),
            observed: Ranges::new(),
        })
    }

    /// The graph to run.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Runs one input; returns the block's own outputs.
    pub fn run(&mut self, loaded: &mut LoadedGraph, feed: &Feed, role: Role) -> Result<Feed> {
        let tapped = self.taps.iter().filter(|t| !feed.contains_key(*t) && !self.outputs.contains(t));
        let ends = self.ranges.iter().flat_map(|r| &r.ends);
        let names: Vec<&str> = self.outputs.iter().chain(tapped).chain(ends).map(String::as_str).collect();
        let results = loaded.run(feed, &names)?;
        let mut results: Feed = names.iter().map(|n| (*n).to_owned()).zip(results.into_iter().map(Arc::new)).collect();
        self.widen_ranges(&results);
        let mut taps = self.taps.iter();
        for group in &mut self.groups {
            let next = |_| values(taps.next().and_then(|t| results.get(t).or_else(|| feed.get(t))).map(Arc::as_ref));
            let tensors = (0..=group.linears.len()).map(next).collect::<Result<Vec<_>>>()?;
            if role.calibrates() {
                group.stats.add(tensors[0]);
                group.calibrating.add(&tensors, self.calibrating);
            }
            if role.evaluates() {
                group.held_out.add(&tensors, self.held_out);
            }
        }
        results.retain(|name, _| self.outputs.contains(name));
        Ok(results)
    }

    fn widen_ranges(&mut self, results: &Feed) {
        for RangeOutputs { value, ends } in &self.ranges {
            let end = |name: &String| results.get(name).and_then(|t| t.as_f32()?.first().copied()).unwrap_or(f32::NAN);
            let [low, high] = [&ends[0], &ends[1]].map(end);
            let known = self.observed.entry(value.clone()).or_insert((0.0, 0.0));
            // A maximum would drop a NaN: it makes the range as wide as can be.
            let undefined = low.is_nan() || high.is_nan();
            *known = if undefined { (f32::MIN, f32::MAX) } else { (known.0.min(low), known.1.max(high)) };
        }
    }

    /// What was observed.
    pub fn finish(self) -> (Vec<LinearGroup>, Ranges) {
        (self.groups, self.observed)
    }
}

/// Outputs for the least and the largest element of each float32 value among `computed`.
fn add_ranges(
    rewrite: &mut Rewrite<'_>,
    block: &Graph,
    computed: impl Iterator<Item = ValueId>,
) -> Result<Vec<RangeOutputs>> {
    let mut ranges = Vec::new();
    for id in computed {
        let (value, ty) = (block.value(id).name.clone(), &block.value(id).ty);
        if ty.dtype != DType::F32 || ty.shape.is_empty() {
            continue;
        }
        let axes: Vec<i64> = (0..ty.shape.len() as i64).collect();
        let new = rewrite.value(id)?;
        let ends = [format!("least of {value}"), format!("largest of {value}")];
        for (kind, name) in ["ReduceMin", "ReduceMax"].into_iter().zip(&ends) {
            let end = rewrite.builder.reduce(kind, new, &axes)?;
            rewrite.builder.output(name, end)?;
        }
        ranges.push(RangeOutputs { value, ends });
    }
    Ok(ranges)
}

/// A group without tokens yet.
fn unobserved(input: ValueId, linears: Vec<Linear>) -> LinearGroup {
    let k = linears[0].k;
    let sample = || Sample::new(k, &linears);
    LinearGroup { input, stats: ChannelStats::new(k), calibrating: sample(), held_out: sample(), linears }
}

/// The tensor's float32 values.
fn values(tensor: Option<&Tensor>) -> Result<&ArrayD<f32>> {
    match tensor {
        Some(Tensor::F32(values)) => Ok(values),
        _ => Err(Error::internal("a linear layer's activation is not a float32 tensor")),
    }
}
