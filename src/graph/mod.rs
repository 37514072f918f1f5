//! A small typed ONNX intermediate representation.
//!
//! Layer 2. A [`Graph`] is a list of nodes in topological order over values that all carry a dtype and a shape.
//! Dimensions are numbers or names (`batch`, `tokens`). Weights are [`LazyTensor`]s, so a graph of a 7-billion
//! parameter model is a few hundred kilobytes. Only the [`Builder`] and the passes make graphs, and both end in
//! [`Graph::verify`], which recomputes every type from the rules in `rules/`. A [`Rewrite`] makes a graph from another.
//!
//! `println!("{graph}")` prints a graph as one readable line a node.
//!
//! ```
//! use brain_adapter::graph::{Builder, Dim};
//! use brain_adapter::tensor::DType;
//!
//! let mut g = Builder::new("double");
//! let x = g.input("x", DType::F32, &[Dim::Symbol("batch"), Dim::Known(2)]);
//! let two = g.scalar(2.0);
//! let y = g.mul(x, two)?;
//! g.output("y", y)?;
//! assert_eq!(g.finish()?.nodes.len(), 1);
//! # Ok::<(), brain_adapter::Error>(())
//! ```

mod blocks;
mod builder;
mod compose;
mod op;
mod ops;
mod print;
mod rewrite;
mod rules;
mod types;
mod verify;

pub(crate) use blocks::segments;
pub use blocks::{Segment, Tail};
pub use builder::Builder;
pub use op::{Attribute, Body, Domain, Op};
pub use rewrite::Rewrite;
pub(crate) use rules::is_for_bundles;
pub use types::{Dim, ValueType};

use crate::tensor::LazyTensor;

/// Index of a value in [`Graph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) usize);

/// A tensor in a graph: an input, a weight, or a node's output.
#[derive(Clone, Debug)]
pub struct Value {
    /// Unique name; for a weight its PyTorch state-dict key (with a suffix where its layout was changed).
    pub name: String,
    /// Element type and shape.
    pub ty: ValueType,
    /// The weight's or constant's values; none for inputs and node outputs.
    pub init: Option<LazyTensor>,
}

/// An operator with its operands and results.
#[derive(Clone, Debug)]
pub struct Node {
    /// Unique name, made of the scopes it was built in: `blocks.3.attn.MatMul`.
    pub name: String,
    /// Operator and attributes.
    pub op: Op,
    /// Operands; `None` where an optional one is left out.
    pub inputs: Vec<Option<ValueId>>,
    /// Results, in the operator's order; each is made by this node alone.
    pub outputs: Vec<ValueId>,
}

/// A computation from named inputs to named outputs.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Name of the whole: `adapter`, `vision`, `text`, `heads`.
    pub name: String,
    /// What a caller feeds, in order.
    pub inputs: Vec<ValueId>,
    /// What a caller gets, in order.
    pub outputs: Vec<ValueId>,
    /// Every value, in the order of their making.
    pub values: Vec<Value>,
    /// Every node, in topological order.
    pub nodes: Vec<Node>,
}

impl Graph {
    /// The value behind an id of this graph.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }

    /// The weights and constants that some node reads, in the order of their first use.
    pub fn initializers(&self) -> Vec<ValueId> {
        let mut seen = vec![false; self.values.len()];
        let used = self.nodes.iter().flat_map(|n| n.inputs.iter().flatten());
        used.filter(|id| self.value(**id).init.is_some() && !std::mem::replace(&mut seen[id.0], true))
            .copied()
            .collect()
    }

    /// Number of weight elements that the graph reads.
    pub fn parameters(&self) -> u64 {
        let floats = self.initializers().into_iter().filter_map(|id| self.value(id).init.as_ref());
        floats.filter(|t| t.dtype().is_float()).map(|t| t.len() as u64).sum()
    }

    /// Index of the node that makes `value`, if a node does.
    pub fn producer(&self, value: ValueId) -> Option<usize> {
        self.nodes.iter().position(|n| n.outputs.contains(&value))
    }

    /// How many nodes read `value`, counting an output of the graph as one more.
    pub fn uses(&self, value: ValueId) -> usize {
        let by_nodes = self.nodes.iter().flat_map(|n| n.inputs.iter().flatten()).filter(|&&id| id == value).count();
        by_nodes + self.outputs.iter().filter(|&&id| id == value).count()
    }
}
