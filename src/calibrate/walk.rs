//! One graph, block by block, over all inputs.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::observer::{LinearGroup, Observer};
use super::{Feed, Inputs, Ranges, Runner};
use crate::error::Result;
use crate::graph::{Graph, Segment, Tail, ValueId};
use crate::passes::{Linear, linears};
use crate::progress::Progress;

/// One block with what was observed in it.
pub struct BlockVisit<'a> {
    /// The whole graph.
    pub graph: &'a Graph,
    /// The block's place in the whole graph.
    pub segment: &'a Segment,
    /// The block as a graph of its own.
    pub block: &'a Graph,
    /// Its linear layers, by the activation that they read.
    pub groups: Vec<LinearGroup>,
    /// For each held-out input, the block's inputs and its outputs.
    pub held_out: Vec<(Feed, Feed)>,
    /// Least and largest element of each of the block's float32 values, over all inputs; empty unless [`Walk::ranges`].
    pub ranges: Ranges,
}

/// A walk over the blocks of a graph.
pub struct Walk<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// What the blocks are run with.
    pub runner: &'a Runner<'a>,
    /// Which blocks are visited. Others are run only where later ones need their outputs. The walk ends behind the last
    /// visited block, or at the end of the graph when none is visited.
    pub visits: &'a dyn Fn(&Segment) -> bool,
    /// Whether the least and the largest element of every value of visited blocks are needed.
    pub ranges: bool,
}

impl Walk<'_> {
    /// Runs the blocks over all inputs and passes the visited ones to `visit`, in the order of the graph. Returns the
    /// graph's outputs for each input, or `None` when the walk ended before the graph did.
    ///
    /// Where `inputs` kept the values that flow into a block, the blocks before it are skipped if none of them is
    /// visited.
    ///
    /// # Errors
    /// Those of writing and running a block, and of `visit`.
    pub fn run(
        &self,
        inputs: &mut Inputs,
        progress: &mut dyn Progress,
        visit: &mut dyn FnMut(BlockVisit<'_>, &mut dyn Progress) -> Result<()>,
    ) -> Result<Option<Vec<Feed>>> {
        let graph = self.graph;
        let segments = graph.segments(Tail::Separate);
        let blocks = segments.iter().map(|s| graph.extract(s.nodes.clone())).collect::<Result<Vec<_>>>()?;
        let visited: Vec<bool> = segments.iter().map(self.visits).collect();
        let end = visited.iter().rposition(|v| *v).map_or(segments.len(), |last| last + 1);
        let roles = inputs.roles().to_vec();
        // `feeds` holds, for each input, the values that block `i` and later ones read. Blocks before `resumed` are
        // skipped: `feeds` is already what flows into block `resumed`.
        let mut feeds = inputs.kept_before(0).1.to_vec();
        let mut resumed = 0;
        for (i, (segment, block)) in segments.iter().zip(&blocks).enumerate().take(end) {
            if let Some(next) = (i..end).find(|&later| visited[later]) {
                let (kept, entering) = inputs.kept_before(next);
                if kept > i.max(resumed) {
                    (feeds, resumed) = (entering.to_vec(), kept);
                }
            }
            if i < resumed {
                continue;
            }
            inputs.keep(i, &feeds);
            progress.item(&format!("{}: {}", graph.name, segment.name), i, end);
            let groups = if visited[i] { by_activation(graph, segment) } else { Vec::new() };
            let mut observer = Observer::new(graph, block, groups, &roles, self.ranges && visited[i])?;
            let mut loaded = self.runner.open(observer.graph())?;
            let needed = needed_by(&blocks[i + 1..], graph);
            let mut held_out = Vec::new();
            for (feed, role) in feeds.iter_mut().zip(&roles) {
                let outputs = observer.run(&mut loaded, feed, *role)?;
                if visited[i] && role.evaluates() {
                    held_out.push((inputs_of(block, feed), outputs.clone()));
                }
                feed.extend(outputs);
                feed.retain(|name, _| needed.contains(name.as_str()));
            }
            // The visitor loads graphs of its own: this one must not take memory and disk meanwhile.
            drop(loaded);
            if visited[i] {
                let (groups, ranges) = observer.finish();
                visit(BlockVisit { graph, segment, block, groups, held_out, ranges }, progress)?;
            }
        }
        Ok((end == segments.len()).then_some(feeds))
    }
}

/// Names of the values that the `later` blocks read, and of the graph's outputs.
fn needed_by<'a>(later: &'a [Graph], graph: &'a Graph) -> BTreeSet<&'a str> {
    let read = later.iter().flat_map(|block| block.inputs.iter().map(|&id| block.value(id).name.as_str()));
    read.chain(graph.outputs.iter().map(|&id| graph.value(id).name.as_str())).collect()
}

/// Those values of `feed` that are inputs of the block.
fn inputs_of(block: &Graph, feed: &Feed) -> Feed {
    let inputs = block.inputs.iter().filter_map(|&id| feed.get_key_value(&block.value(id).name));
    inputs.map(|(name, tensor)| (name.clone(), Arc::clone(tensor))).collect()
}

/// The segment's linear layers by the activation that they read, in the order of the graph.
fn by_activation(graph: &Graph, segment: &Segment) -> Vec<(ValueId, Vec<Linear>)> {
    let mut groups: Vec<(ValueId, Vec<Linear>)> = Vec::new();
    for linear in linears(graph, segment.nodes.clone()) {
        match groups.iter_mut().find(|(input, _)| *input == linear.input) {
            Some((_, group)) => group.push(linear),
            None => groups.push((linear.input, vec![linear])),
        }
    }
    groups
}
