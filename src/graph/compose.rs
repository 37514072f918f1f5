//! Graphs made of graphs: one put into another, and a part cut out.

use std::collections::HashSet;

use super::{Builder, Graph, Node, Rewrite, ValueId};
use crate::error::{Code, Error, Result};

impl Builder {
    /// The nodes so far, in order.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.graph.nodes
    }

    /// The node that makes `value`, if a node does.
    pub(crate) fn producer(&self, value: ValueId) -> Option<&Node> {
        self.graph.nodes.iter().rev().find(|n| n.outputs.contains(&value))
    }

    /// Whether `value` is an output already.
    pub(crate) fn is_output(&self, value: ValueId) -> bool {
        self.graph.outputs.contains(&value)
    }

    /// The values of a constant int64 vector; see [`Graph::constant_i64`].
    pub(crate) fn constant_i64(&self, value: ValueId) -> Option<Vec<i64>> {
        self.graph.constant_i64(value)
    }

    /// The value of that name, if there is one.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.graph.find(name)
    }

    /// Adds a whole graph, with these values as its inputs; gives its results in the order of its outputs. Names that
    /// are taken are made unique.
    ///
    /// # Errors
    /// `graph.invalid` when the values do not fit the graph.
    pub fn inline(&mut self, graph: &Graph, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let fail = |message: String| Error::new(Code::GRAPH_INVALID, format!("graph `{}`: {message}", graph.name));
        if inputs.len() != graph.inputs.len() {
            return Err(fail(format!("takes {} inputs, not {}", graph.inputs.len(), inputs.len())));
        }
        let mut new = vec![None; graph.values.len()];
        for (&inner, &outer) in graph.inputs.iter().zip(inputs) {
            let (wanted, given) = (&graph.value(inner).ty, self.ty(outer));
            if wanted.unify(given).is_none() {
                return Err(fail(format!("input `{}` is {wanted}, not {given}", graph.value(inner).name)));
            }
            new[inner.0] = Some(outer);
        }
        for id in graph.initializers() {
            let value = graph.value(id);
            let Some(init) = &value.init else { continue };
            new[id.0] = Some(self.weight(&value.name, init.clone()));
        }
        for node in &graph.nodes {
            let operands: Vec<Option<ValueId>> = node.inputs.iter().map(|id| id.and_then(|id| new[id.0])).collect();
            let name = self.scoped(&node.name);
            let outputs = self.node_named(&name, node.op.clone(), &operands, node.outputs.len())?;
            for (&old, id) in node.outputs.iter().zip(outputs) {
                let shape = graph.value(old).ty.shape.clone();
                self.declare(id, &shape)?;
                new[old.0] = Some(id);
            }
        }
        graph.outputs.iter().map(|id| new[id.0].ok_or_else(|| fail("an output is never made".into()))).collect()
    }
}

impl Graph {
    /// The value of that name, if there is one.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.values.iter().position(|v| v.name == name).map(ValueId)
    }

    /// What leads from `inputs` to `outputs`, as a graph of its own: those of `inputs` that are read become its inputs,
    /// in that order, under their names.
    ///
    /// # Errors
    /// `graph.invalid` when an output does not follow from these inputs and weights alone, or is one of them.
    pub fn between(&self, inputs: &[ValueId], outputs: &[ValueId]) -> Result<Self> {
        let given: HashSet<ValueId> = inputs.iter().copied().collect();
        let mut needed: HashSet<ValueId> = outputs.iter().copied().collect();
        let mut kept = vec![false; self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate().rev() {
            kept[i] = node.outputs.iter().any(|id| needed.contains(id) && !given.contains(id));
            if kept[i] {
                needed.extend(node.inputs.iter().flatten());
            }
        }
        let read: Vec<ValueId> = inputs.iter().copied().filter(|id| needed.contains(id)).collect();
        let mut rewrite = Rewrite::with_inputs(self, &read);
        for (node, _) in self.nodes.iter().zip(kept).filter(|(_, kept)| *kept) {
            rewrite.copy(node)?;
            // A node may make what is given together with what is not.
            for id in node.outputs.iter().filter(|id| given.contains(id)) {
                let input = rewrite.builder.find(&self.value(*id).name);
                input.into_iter().for_each(|input| rewrite.set(*id, input));
            }
        }
        rewrite.finish_with(outputs)
    }
}
