//! Graphs made from graphs: node by node, with some of them replaced.

use super::{Builder, Graph, Node, ValueId};
use crate::error::{Code, Error, Result};
use crate::tensor::LazyTensor;

/// Builds a new graph from an old one. Nodes come in the old order; each is copied, replaced or left out, and weights
/// that no new node reads do not come along.
///
/// ```
/// use brain_adapter::graph::{Builder, Dim, Rewrite};
/// use brain_adapter::tensor::DType;
///
/// let mut g = Builder::new("g");
/// let x = g.input("x", DType::F32, &[Dim::Known(2)]);
/// let y = g.unary("Sigmoid", x)?;
/// g.output("y", y)?;
/// let old = g.finish()?;
///
/// let mut new = Rewrite::new(&old);
/// for node in &old.nodes {
///     let x = new.operand(node, 0)?;
///     let replacement = new.builder.unary("Relu", x)?;
///     new.replace(node, replacement);
/// }
/// assert!(new.finish()?.to_string().contains("y: float32[2] = Relu(x)"));
/// # Ok::<(), brain_adapter::Error>(())
/// ```
pub struct Rewrite<'a> {
    old: &'a Graph,
    /// Adds the new nodes.
    pub builder: Builder,
    /// The new value for each old one.
    new: Vec<Option<ValueId>>,
}

impl<'a> Rewrite<'a> {
    /// A new graph with the old one's name and inputs.
    pub fn new(old: &'a Graph) -> Self {
        Self::with_inputs(old, &old.inputs)
    }

    /// A new graph whose inputs are these values of the old one, under their names.
    pub fn with_inputs(old: &'a Graph, inputs: &[ValueId]) -> Self {
        let mut rewrite = Self { old, builder: Builder::new(&old.name), new: vec![None; old.values.len()] };
        for &id in inputs {
            let value = old.value(id);
            let (dtype, shape) = (value.ty.dtype, value.ty.shape.clone());
            rewrite.new[id.0] = Some(rewrite.builder.input(&value.name, dtype, &shape));
        }
        rewrite
    }

    /// What the old value has become; weights are taken over at their first use.
    ///
    /// # Errors
    /// `graph.invalid` when the node that makes it was left out.
    pub fn value(&mut self, old: ValueId) -> Result<ValueId> {
        if let Some(id) = self.new[old.0] {
            return Ok(id);
        }
        let value = self.old.value(old);
        let Some(init) = &value.init else {
            let message = format!("graph `{}`: `{}` was left out and is read", self.old.name, value.name);
            return Err(Error::new(Code::GRAPH_INVALID, message));
        };
        let id = self.builder.weight(&value.name, init.clone());
        self.new[old.0] = Some(id);
        Ok(id)
    }

    /// What operand `index` of the node has become.
    ///
    /// # Errors
    /// `graph.invalid` when there is no such operand.
    pub fn operand(&mut self, node: &Node, index: usize) -> Result<ValueId> {
        match node.inputs.get(index).copied().flatten() {
            Some(old) => self.value(old),
            None => Err(Error::new(Code::GRAPH_INVALID, format!("node `{}` has no operand {index}", node.name))),
        }
    }

    /// Takes another tensor in place of a weight, under its name.
    pub fn substitute(&mut self, old: ValueId, tensor: LazyTensor) {
        self.new[old.0] = Some(self.builder.weight(&self.old.value(old).name, tensor));
    }

    /// Copies a node, with its name and those of its results.
    ///
    /// # Errors
    /// `graph.invalid` when an operand was left out or does not fit any more.
    pub fn copy(&mut self, node: &Node) -> Result<()> {
        let inputs = node.inputs.iter().map(|id| id.map(|id| self.value(id)).transpose());
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        self.copy_with(node, &inputs)
    }

    /// Copies a node, with its name, over these new operands.
    ///
    /// # Errors
    /// `graph.invalid` when an operand does not fit.
    pub fn copy_with(&mut self, node: &Node, inputs: &[Option<ValueId>]) -> Result<()> {
        let outputs = self.builder.node_named(&node.name, node.op.clone(), inputs, node.outputs.len())?;
        for (&old, id) in node.outputs.iter().zip(outputs) {
            let (declared, found) = (&self.old.value(old).ty, self.builder.ty(id));
            // A rule may know less than was declared (`Range`); another element type is the rewriter's wish.
            if declared.dtype == found.dtype {
                let shape = declared.shape.clone();
                self.builder.declare(id, &shape)?;
            }
            self.builder.rename(id, &self.old.value(old).name);
            self.new[old.0] = Some(id);
        }
        Ok(())
    }

    /// Lets a new value stand for the only result of a node.
    pub fn replace(&mut self, node: &Node, new: ValueId) {
        self.set(node.outputs[0], new);
    }

    /// Lets a new value stand for an old one.
    pub fn set(&mut self, old: ValueId, new: ValueId) {
        self.new[old.0] = Some(new);
    }

    /// The finished graph, with the old one's outputs.
    ///
    /// # Errors
    /// `graph.invalid`.
    pub fn finish(self) -> Result<Graph> {
        let outputs = &self.old.outputs;
        self.finish_with(outputs)
    }

    /// The finished graph, with these values of the old one as outputs, in that order.
    ///
    /// # Errors
    /// `graph.invalid`.
    pub fn finish_with(mut self, outputs: &[ValueId]) -> Result<Graph> {
        for &id in outputs {
            let new = self.value(id)?;
            let name = &self.old.value(id).name;
            // A copy of the node that made the old value may have its name, where the new one is made behind it.
            self.builder.vacate(name, new);
            self.builder.output(name, new)?;
        }
        self.builder.finish()
    }
}

impl Graph {
    /// The part of the graph that nodes `range` are, as a graph of its own: what they read from outside becomes inputs
    /// and what is read outside becomes outputs, under the same names.
    ///
    /// # Errors
    /// `graph.invalid` when the graph is not a valid one.
    pub fn extract(&self, range: std::ops::Range<usize>) -> Result<Self> {
        let nodes = &self.nodes[range.clone()];
        let made: std::collections::HashSet<ValueId> = nodes.iter().flat_map(|n| &n.outputs).copied().collect();
        let mut inputs: Vec<ValueId> = Vec::new();
        for &id in nodes.iter().flat_map(|n| n.inputs.iter().flatten()) {
            if self.value(id).init.is_none() && !made.contains(&id) && !inputs.contains(&id) {
                inputs.push(id);
            }
        }
        let later = self.nodes[range.end..].iter().flat_map(|n| n.inputs.iter().flatten());
        let read: std::collections::HashSet<ValueId> = later.chain(&self.outputs).copied().collect();
        let outputs: Vec<ValueId> =
            nodes.iter().flat_map(|n| &n.outputs).filter(|id| read.contains(id)).copied().collect();
        let mut rewrite = Rewrite::with_inputs(self, &inputs);
        nodes.iter().try_for_each(|node| rewrite.copy(node))?;
        rewrite.finish_with(&outputs)
    }
}
