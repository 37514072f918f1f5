//! The builder: values and nodes are added in order, and every node is typed as it is added.

use std::collections::HashMap;

use super::{Graph, Node, Op, Value, ValueId, ValueType, rules};
use crate::error::{Code, Error, Result};
use crate::tensor::{DType, LazyTensor};

/// Builds one [`Graph`].
///
/// ```
/// use brain_adapter::graph::{Builder, Dim, Op};
/// use brain_adapter::tensor::{DType, LazyTensor};
///
/// let mut g = Builder::new("double");
/// let x = g.input("x", DType::F32, &[Dim::BATCH, Dim::Known(2)]);
/// let two = g.scalar(2.0);
/// let y = g.mul(x, two)?;
/// g.output("y", y)?;
/// let graph = g.finish()?;
/// assert!(graph.to_string().contains("y: float32[batch, 2] = Mul(x, "));
/// # Ok::<(), brain_adapter::Error>(())
/// ```
pub struct Builder {
    pub(super) graph: Graph,
    scopes: Vec<String>,
    names: HashMap<String, usize>,
    scalars: HashMap<u32, ValueId>,
    vectors: HashMap<Vec<i64>, ValueId>,
}

impl Builder {
    /// An empty graph of that name.
    pub fn new(name: &str) -> Self {
        let graph = Graph { name: name.into(), inputs: vec![], outputs: vec![], values: vec![], nodes: vec![] };
        Self { graph, scopes: vec![], names: HashMap::new(), scalars: HashMap::new(), vectors: HashMap::new() }
    }

    /// The type of a value.
    pub fn ty(&self, id: ValueId) -> &ValueType {
        &self.graph.value(id).ty
    }

    /// The name of a value.
    pub fn name(&self, id: ValueId) -> &str {
        &self.graph.value(id).name
    }

    /// A new input of the graph; its name is made unique when it is taken.
    pub fn input(&mut self, name: &str, dtype: DType, shape: &[super::Dim]) -> ValueId {
        let id = self.push_value(name.to_owned(), ValueType::new(dtype, shape), None);
        self.graph.inputs.push(id);
        id
    }

    /// A new input of the graph whose name must be free.
    ///
    /// # Errors
    /// `graph.invalid` when a value has that name.
    pub fn unique_input(&mut self, name: &str, dtype: DType, shape: &[super::Dim]) -> Result<ValueId> {
        if self.names.contains_key(name) {
            let message = format!("graph `{}`: there are two values `{name}`", self.graph.name);
            return Err(Error::new(Code::GRAPH_INVALID, message));
        }
        Ok(self.input(name, dtype, shape))
    }

    /// A weight under its own name (made unique when it is taken).
    pub fn weight(&mut self, name: &str, tensor: LazyTensor) -> ValueId {
        let ty = ValueType::known(tensor.dtype(), tensor.shape());
        self.push_value(name.to_owned(), ty, Some(tensor))
    }

    /// A float32 constant of rank 0; equal ones are made once.
    pub fn scalar(&mut self, value: f32) -> ValueId {
        if let Some(&id) = self.scalars.get(&value.to_bits()) {
            return id;
        }
        let id = self.weight(&format!("const.{value:?}"), LazyTensor::from_f32(&[], &[value]));
        self.scalars.insert(value.to_bits(), id);
        id
    }

    /// An int64 constant of rank 1 (axes, shapes, bounds); equal ones are made once.
    pub fn ints(&mut self, values: &[i64]) -> ValueId {
        if let Some(&id) = self.vectors.get(values) {
            return id;
        }
        let parts: Vec<String> = values.iter().map(i64::to_string).collect();
        let id = self.weight(&format!("const.[{}]", parts.join(",")), LazyTensor::from_i64(&[values.len()], values));
        self.vectors.insert(values.to_vec(), id);
        id
    }

    /// Builds with `name` in front of the names of all nodes made inside.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn scope<T>(&mut self, name: &str, build: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.scopes.push(name.to_owned());
        let built = build(self);
        self.scopes.pop();
        built
    }

    /// Adds a node with one result.
    ///
    /// # Errors
    /// `graph.invalid` when the operands do not fit the operator, naming the node.
    pub fn node(&mut self, op: Op, inputs: &[Option<ValueId>]) -> Result<ValueId> {
        Ok(self.node_multi(op, inputs, 1)?[0])
    }

    /// Adds a node with `outputs` results.
    ///
    /// # Errors
    /// `graph.invalid` when the operands do not fit the operator, naming the node.
    pub fn node_multi(&mut self, op: Op, inputs: &[Option<ValueId>], outputs: usize) -> Result<Vec<ValueId>> {
        let name = self.scoped(op.kind);
        self.node_named(&name, op, inputs, outputs)
    }

    /// Adds a node under a name of its own (made unique when it is taken).
    pub(super) fn node_named(
        &mut self,
        name: &str,
        op: Op,
        inputs: &[Option<ValueId>],
        outputs: usize,
    ) -> Result<Vec<ValueId>> {
        let name = self.unique(name.to_owned());
        let types = rules::infer(&self.graph, &op, inputs, outputs)
            .map_err(|e| Error::new(Code::GRAPH_INVALID, format!("node `{name}` of `{}`: {e}", self.graph.name)))?;
        let ids: Vec<ValueId> = types.into_iter().map(|ty| self.push_value(format!("{name}:out"), ty, None)).collect();
        self.graph.nodes.push(Node { name, op, inputs: inputs.to_vec(), outputs: ids.clone() });
        Ok(ids)
    }

    /// States the shape of a value where the rules cannot know it (the result of `Range`, say).
    ///
    /// # Errors
    /// `graph.invalid` when the rule's answer contradicts `shape`.
    pub fn declare(&mut self, id: ValueId, shape: &[super::Dim]) -> Result<ValueId> {
        let inferred = self.ty(id).clone();
        let declared = ValueType::new(inferred.dtype, shape);
        match inferred.unify(&declared) {
            Some(ty) => self.graph.values[id.0].ty = ty,
            None => {
                let message = format!("`{}` is {inferred}, not {declared}", self.graph.value(id).name);
                return Err(Error::new(Code::GRAPH_INVALID, message));
            }
        }
        Ok(id)
    }

    /// Makes `id` an output of the graph under that name.
    ///
    /// # Errors
    /// `graph.invalid` when the name is taken, or when the value is an input, a weight or an output already.
    pub fn output(&mut self, name: &str, id: ValueId) -> Result<()> {
        let made_here = self.graph.producer(id).is_some() && !self.graph.outputs.contains(&id);
        let has_name = self.graph.value(id).name == name;
        if made_here && has_name {
            self.graph.outputs.push(id);
            return Ok(());
        }
        if self.names.contains_key(name) || !made_here {
            let message = format!("`{}` cannot become output `{name}`", self.graph.value(id).name);
            return Err(Error::new(Code::GRAPH_INVALID, message));
        }
        let name = self.unique(name.to_owned());
        self.graph.values[id.0].name = name;
        self.graph.outputs.push(id);
        Ok(())
    }

    /// Gives a node's result another name, where that is free.
    pub(crate) fn rename(&mut self, id: ValueId, name: &str) {
        if !self.names.contains_key(name) {
            let old = std::mem::replace(&mut self.graph.values[id.0].name, name.to_owned());
            self.names.remove(&old);
            self.names.insert(name.to_owned(), 0);
        }
    }

    /// Frees a name that a node's result has, for another value to become an output under it.
    pub(super) fn vacate(&mut self, name: &str, for_value: ValueId) {
        let holder = self.graph.values.iter().position(|v| v.name == name).map(ValueId);
        let Some(holder) = holder.filter(|&id| id != for_value && self.graph.producer(id).is_some()) else { return };
        let other = self.unique(name.to_owned());
        self.graph.values[holder.0].name = other;
        self.names.remove(name);
    }

    /// The finished, verified graph.
    ///
    /// # Errors
    /// `graph.invalid`, see [`Graph::verify`].
    pub fn finish(self) -> Result<Graph> {
        self.graph.verify()?;
        Ok(self.graph)
    }

    fn push_value(&mut self, name: String, ty: ValueType, init: Option<LazyTensor>) -> ValueId {
        let name = self.unique(name);
        self.graph.values.push(Value { name, ty, init });
        ValueId(self.graph.values.len() - 1)
    }

    pub(super) fn scoped(&self, name: &str) -> String {
        self.scopes.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join(".")
    }

    /// `name`, or `name.1`, `name.2`, … when it is taken.
    fn unique(&mut self, name: String) -> String {
        let mut candidate = name.clone();
        while self.names.contains_key(&candidate) {
            let count = self.names.entry(name.clone()).or_default();
            *count += 1;
            candidate = format!("{name}.{count}");
        }
        self.names.insert(candidate.clone(), 0);
        candidate
    }
}
