//! Finds the linear layers of a graph.

use std::ops::Range;

use crate::graph::{Graph, ValueId};

/// A product of activations `[.., k]` and a constant weight `[k, n]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linear {
    /// The layer's name in the state dict, such as `layers.3.mlp.up_proj`.
    pub name: String,
    /// Index of its `MatMul` in the graph's nodes.
    pub node: usize,
    /// Its activations `[.., k]`.
    pub input: ValueId,
    /// Its weight `[k, n]`: the transpose of PyTorch's.
    pub weight: ValueId,
    /// Its result, before a bias.
    pub output: ValueId,
    /// Number of input features.
    pub k: usize,
    /// Number of output features.
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
