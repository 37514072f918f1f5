//! A graph as text: a line for the signature, then a line a node.

use std::fmt;

use super::{Graph, Node, ValueId};

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let typed = |ids: &[ValueId]| {
            let all: Vec<String> =
                ids.iter().map(|&id| format!("{}: {}", self.value(id).name, self.value(id).ty)).collect();
            all.join(", ")
        };
        writeln!(f, "graph {}({}) -> ({})", self.name, typed(&self.inputs), typed(&self.outputs))?;
        for node in &self.nodes {
            writeln!(f, "  {} = {}", typed(&node.outputs), self.call(node))?;
        }
        Ok(())
    }
}

impl Graph {
    /// `MatMul(x, weight<float32[4, 4]>) {axis = 1}`; weights show their type, short constants their values.
    fn call(&self, node: &Node) -> String {
        let operands: Vec<String> = node.inputs.iter().map(|id| self.operand(*id)).collect();
        let attributes: Vec<String> = node.op.attributes.iter().map(|(n, v)| format!("{n} = {v}")).collect();
        let dot = if node.op.domain.name().is_empty() { "" } else { "." };
        let call = format!("{}{dot}{}({})", node.op.domain.name(), node.op.kind, operands.join(", "));
        if attributes.is_empty() { call } else { format!("{call} {{{}}}", attributes.join(", ")) }
    }

    fn operand(&self, id: Option<ValueId>) -> String {
        let Some(id) = id else { return "_".to_owned() };
        let value = self.value(id);
        match (&value.init, self.constant_i64(id)) {
            (None, _) => value.name.clone(),
            (Some(_), Some(ints)) if ints.len() <= 8 => format!("{ints:?}"),
            (Some(_), _) => format!("{}<{}>", value.name, value.ty),
        }
    }
}
