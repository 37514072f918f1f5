//! The verifier: what every graph must keep, whoever made it.

use std::collections::HashSet;

use super::{Graph, Node, ValueId, ValueType, rules};
use crate::error::{Code, Error, Result};

impl Graph {
    /// Checks that names are unique, that every value is made once and before its use, that weights have the
    /// declared type, and that every node's result types follow from its operands.
    ///
    /// # Errors
    /// `graph.invalid`, naming the graph and the node or value.
    pub fn verify(&self) -> Result<()> {
        self.verify_ids()?;
        self.verify_names()?;
        let mut made: HashSet<ValueId> = self.inputs.iter().copied().collect();
        if made.len() != self.inputs.len() {
            return self.fail("an input is listed twice");
        }
        for (i, value) in self.values.iter().enumerate() {
            let Some(init) = &value.init else { continue };
            if ValueType::known(init.dtype(), init.shape()) != value.ty {
                return self.fail(&format!("weight `{}` is declared {} but holds {init:?}", value.name, value.ty));
            }
            made.insert(ValueId(i));
        }
        for node in &self.nodes {
            for id in node.inputs.iter().flatten() {
                if !made.contains(id) {
                    return self.fail(&format!(
                        "node `{}` reads `{}` before it is made",
                        node.name,
                        self.value(*id).name
                    ));
                }
            }
            self.verify_types(node)?;
            for id in &node.outputs {
                if !made.insert(*id) {
                    return self.fail(&format!("value `{}` is made twice", self.value(*id).name));
                }
            }
        }
        match self.outputs.iter().find(|id| !made.contains(id)) {
            Some(id) => self.fail(&format!("output `{}` is never made", self.value(*id).name)),
            None => Ok(()),
        }
    }

    /// Ids are of this graph, inputs hold no values, and no output is given twice.
    fn verify_ids(&self) -> Result<()> {
        let operands = self.nodes.iter().flat_map(|n| n.inputs.iter().flatten().chain(&n.outputs));
        if let Some(id) = operands.chain(&self.inputs).chain(&self.outputs).find(|id| id.0 >= self.values.len()) {
            return self.fail(&format!("there is no value {}: it is another graph's", id.0));
        }
        if let Some(id) = self.inputs.iter().find(|id| self.value(**id).init.is_some()) {
            return self.fail(&format!("input `{}` is a weight", self.value(*id).name));
        }
        let mut seen = HashSet::new();
        match self.outputs.iter().find(|id| !seen.insert(**id)) {
            Some(id) => self.fail(&format!("output `{}` is listed twice", self.value(*id).name)),
            None => Ok(()),
        }
    }

    fn verify_names(&self) -> Result<()> {
        let mut seen = HashSet::new();
        for name in self.values.iter().map(|v| &v.name) {
            if name.is_empty() || !seen.insert(name) {
                return self.fail(&format!("value name `{name}` is empty or used twice"));
            }
        }
        let mut seen = HashSet::new();
        match self.nodes.iter().find(|n| !seen.insert(&n.name)) {
            Some(node) => self.fail(&format!("node name `{}` is used twice", node.name)),
            None => Ok(()),
        }
    }

    fn verify_types(&self, node: &Node) -> Result<()> {
        let inferred = rules::infer(self, &node.op, &node.inputs, node.outputs.len())
            .map_err(|e| Error::new(Code::GRAPH_INVALID, format!("node `{}` of `{}`: {e}", node.name, self.name)))?;
        for (id, ty) in node.outputs.iter().zip(inferred) {
            let declared = &self.value(*id).ty;
            // The declared type may be more precise than the rule's answer, never different.
            if declared.unify(&ty).as_ref() != Some(declared) {
                let name = &self.value(*id).name;
                return self.fail(&format!("`{name}` is declared {declared} but node `{}` makes {ty}", node.name));
            }
        }
        Ok(())
    }

    fn fail(&self, message: &str) -> Result<()> {
        Err(Error::new(Code::GRAPH_INVALID, format!("graph `{}`: {message}", self.name)))
    }

    /// The values of a constant int64 scalar or vector; `None` for anything else.
    pub fn constant_i64(&self, id: ValueId) -> Option<Vec<i64>> {
        let init = self.value(id).init.as_ref()?;
        if init.dtype() != crate::tensor::DType::I64 || init.shape().len() > 1 || init.len() > 64 {
            return None;
        }
        let bytes = init.bytes().ok()?;
        Some(bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect())
    }
}
