//! A graph as ONNX messages. Weights come in as ready messages: where their bytes lie is not decided here.

use super::proto::{
    AttributeProto, DimensionProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto, attribute_type,
};
use crate::error::Result;
use crate::graph::{Attribute, Dim, Graph, Node, ValueId, ValueType};
use crate::tensor::LazyTensor;

/// The message of a graph with these weights.
///
/// # Errors
/// When a constant of an operator's body cannot be read.
pub(super) fn graph(graph: &Graph, initializer: Vec<TensorProto>) -> Result<GraphProto> {
    Scope { graph, prefix: String::new() }.message(initializer)
}

/// The message of one node of a graph.
///
/// # Errors
/// As [`graph`].
pub(super) fn node(graph: &Graph, node: &Node) -> Result<NodeProto> {
    Scope { graph, prefix: String::new() }.node(node)
}

/// A graph, and what stands in front of the names in it: those of a body must differ from all around it.
struct Scope<'a> {
    graph: &'a Graph,
    prefix: String,
}

impl Scope<'_> {
    fn message(&self, initializer: Vec<TensorProto>) -> Result<GraphProto> {
        let graph = self.graph;
        let info = |ids: &[ValueId]| ids.iter().map(|&id| self.value_info(id)).collect();
        let inner: Vec<ValueId> = graph.nodes.iter().flat_map(|n| &n.outputs).copied().collect();
        let inner: Vec<ValueId> = inner.into_iter().filter(|id| !graph.outputs.contains(id)).collect();
        Ok(GraphProto {
            node: graph.nodes.iter().map(|n| self.node(n)).collect::<Result<_>>()?,
            name: Some(graph.name.clone()),
            initializer,
            input: info(&graph.inputs),
            output: info(&graph.outputs),
            value_info: info(&inner),
            ..Default::default()
        })
    }

    fn name(&self, id: ValueId) -> String {
        format!("{}{}", self.prefix, self.graph.value(id).name)
    }

    fn node(&self, node: &Node) -> Result<NodeProto> {
        let attribute = |(name, value): &(&'static str, Attribute)| match value {
            Attribute::Graph(body) => {
                let body = Scope { graph: body.graph(), prefix: format!("{}{}/", self.prefix, node.name) };
                let r#type = Some(attribute_type::GRAPH);
                let g = Some(body.message(body.constants()?)?);
                Ok(AttributeProto { name: Some((*name).into()), g, r#type, ..Default::default() })
            }
            value => Ok(attribute(name, value)),
        };
        Ok(NodeProto {
            input: node.inputs.iter().map(|id| id.map_or(String::new(), |id| self.name(id))).collect(),
            output: node.outputs.iter().map(|&id| self.name(id)).collect(),
            name: Some(format!("{}{}", self.prefix, node.name)),
            op_type: Some(node.op.kind.into()),
            attribute: node.op.attributes.iter().map(attribute).collect::<Result<_>>()?,
            domain: Some(node.op.domain.name().into()).filter(|d: &String| !d.is_empty()),
        })
    }

    /// The constants of a body, which are small.
    fn constants(&self) -> Result<Vec<TensorProto>> {
        let message = |id: ValueId| {
            let tensor = self.graph.value(id).init.as_ref()?;
            Some(tensor.bytes().map(|bytes| tensor_message(self.name(id), tensor, bytes.into_owned())))
        };
        self.graph.initializers().into_iter().filter_map(message).collect()
    }

    fn value_info(&self, id: ValueId) -> ValueInfoProto {
        value_info(self.name(id), &self.graph.value(id).ty)
    }
}

/// A tensor whose bytes stand in the graph's file.
pub(super) fn tensor_message(name: String, tensor: &LazyTensor, bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        dims: tensor.shape().iter().map(|&d| d as i64).collect(),
        data_type: Some(tensor.dtype().onnx()),
        name: Some(name),
        raw_data: Some(bytes),
        ..Default::default()
    }
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let mut proto = AttributeProto { name: Some(name.into()), ..Default::default() };
    proto.r#type = Some(match value {
        Attribute::Int(i) => {
            proto.i = Some(*i);
            attribute_type::INT
        }
        Attribute::Float(f) => {
            proto.f = Some(*f);
            attribute_type::FLOAT
        }
        Attribute::Ints(v) => {
            proto.ints = v.clone();
            attribute_type::INTS
        }
        Attribute::Type(dtype) => {
            proto.i = Some(dtype.onnx().into());
            attribute_type::INT
        }
        Attribute::Text(s) => {
            proto.s = Some(s.as_bytes().to_vec());
            attribute_type::STRING
        }
        // Written with the names around it in mind.
        Attribute::Graph(_) => attribute_type::GRAPH,
    });
    proto
}

fn value_info(name: String, ty: &ValueType) -> ValueInfoProto {
    let dim = |d: &Dim| match d {
        Dim::Known(n) => DimensionProto { dim_value: Some(*n as i64), dim_param: None },
        Dim::Symbol(name) => DimensionProto { dim_value: None, dim_param: Some((*name).into()) },
        Dim::Any => DimensionProto::default(),
    };
    let shape = TensorShapeProto { dim: ty.shape.iter().map(dim).collect() };
    let tensor_type = TensorTypeProto { elem_type: Some(ty.dtype.onnx()), shape: Some(shape) };
    ValueInfoProto {
        name: Some(name),
        r#type: Some(TypeProto { tensor_type: Some(tensor_type), ..Default::default() }),
    }
}
