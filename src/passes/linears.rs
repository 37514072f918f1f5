//! Finds the linear layers of a graph, and the segments that it can be run in.

use std::ops::Range;

use crate::graph::{Graph, ValueId};

/// A product of activations `[.., k]` and a constant weight `[k, n]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linear {
    /// The layer's name in the state dict, such as `layers.3.mlp.up_proj`.
    pub name: String,
    /// Index of its `MatMul` in the graph's nodes.
    pub node: usize,
    /// Its activations.
    pub input: ValueId,
    /// Its weight.
    pub weight: ValueId,
    /// Its result, before a bias.
    pub output: ValueId,
    /// Inputs.
    pub k: usize,
    /// Outputs.
    pub n: usize,
}

/// The ending that [`crate::graph::Builder::linear`] gives the name of a transposed weight.
const TRANSPOSED: &str = ".weight.T";

/// The linear layers of the nodes in `range`, in their order: every `MatMul` by a constant matrix of floats.
pub fn linears(graph: &Graph, range: Range<usize>) -> Vec<Linear> {
    let linear = |node: usize| {
        let n = &graph.nodes[node];
        let (input, weight) = (n.inputs.first().copied()??, n.inputs.get(1).copied()??);
        let value = graph.value(weight);
        let init = value.init.as_ref().filter(|t| t.dtype().is_float())?;
        let &[k, out] = init.shape() else { return None };
        let computed = graph.value(input).init.is_none();
        let name = value.name.strip_suffix(TRANSPOSED).unwrap_or(&value.name).to_owned();
        (n.op.kind == "MatMul" && computed).then(|| Linear {
            name,
            node,
            input,
            weight,
            output: n.outputs[0],
            k,
            n: out,
        })
    };
    range.filter_map(linear).collect()
}

/// A part of a graph that is run on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its block's name (`layers.3`), or what it is otherwise.
    pub name: String,
    /// Its nodes.
    pub nodes: Range<usize>,
}

/// Cuts a graph at its blocks: nodes named `layers.N.*` or `blocks.N.*` are a segment each, and so is what stands before
/// and behind them. A graph without blocks is one segment.
pub fn segments(graph: &Graph) -> Vec<Segment> {
    let block = |name: &str| {
        let mut parts = name.split('.');
        let (kind, number) = (parts.next()?, parts.next()?);
        let numbered = matches!(kind, "layers" | "blocks") && number.chars().all(|c| c.is_ascii_digit());
        numbered.then(|| format!("{kind}.{number}"))
    };
    let mut all: Vec<Segment> = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        let name = block(&node.name).unwrap_or_else(|| format!("{}.rest", graph.name));
        match all.last_mut() {
            Some(last) if last.name == name => last.nodes.end = i + 1,
            _ => all.push(Segment { name, nodes: i..i + 1 }),
        }
    }
    all
}
