//! A graph as ONNX messages. Weights come in as ready messages: where their bytes lie is not decided here.

use super::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, attribute_type,
};
use super::{IR_VERSION, OPSET};
use crate::graph::{Attribute, Dim, Domain, Graph, Node, Value, ValueId};
use crate::tensor::DType;

/// ONNX's number of an element type.
pub(super) fn data_type(dtype: DType) -> i32 {
    match dtype {
        DType::F32 => 1,
        DType::U8 => 2,
        DType::I8 => 3,
        DType::U16 => 4,
        DType::I16 => 5,
        DType::I32 => 6,
        DType::I64 => 7,
        DType::Bool => 9,
        DType::F16 => 10,
        DType::F64 => 11,
        DType::U32 => 12,
        DType::U64 => 13,
        DType::BF16 => 16,
    }
}

/// The model message of `graph` with these weights.
pub(super) fn model(graph: &Graph, initializer: Vec<TensorProto>) -> ModelProto {
    let info = |ids: &[ValueId]| ids.iter().map(|&id| value_info(graph.value(id))).collect();
    let inner: Vec<ValueId> = graph.nodes.iter().flat_map(|n| &n.outputs).copied().collect();
    let inner: Vec<ValueId> = inner.into_iter().filter(|id| !graph.outputs.contains(id)).collect();
    ModelProto {
        ir_version: Some(IR_VERSION),
        producer_name: Some(env!("CARGO_PKG_NAME").into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        graph: Some(GraphProto {
            node: graph.nodes.iter().map(|n| node(graph, n)).collect(),
            name: Some(graph.name.clone()),
            initializer,
            input: info(&graph.inputs),
            output: info(&graph.outputs),
            value_info: info(&inner),
            ..Default::default()
        }),
        opset_import: opsets(graph),
        ..Default::default()
    }
}

/// The standard operators' version, and that of each other domain that the graph uses.
fn opsets(graph: &Graph) -> Vec<OperatorSetIdProto> {
    let domains: std::collections::BTreeSet<Domain> = graph.nodes.iter().map(|n| n.op.domain).collect();
    let others = domains.into_iter().filter(|d| *d != Domain::Onnx).map(|d| (d.name(), 1));
    let entry =
        |(domain, version): (&str, i64)| OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) };
    std::iter::once(("", OPSET)).chain(others).map(entry).collect()
}

fn node(graph: &Graph, node: &Node) -> NodeProto {
    let name = |id: &Option<ValueId>| id.map_or(String::new(), |id| graph.value(id).name.clone());
    NodeProto {
        input: node.inputs.iter().map(name).collect(),
        output: node.outputs.iter().map(|&id| graph.value(id).name.clone()).collect(),
        name: Some(node.name.clone()),
        op_type: Some(node.op.kind.into()),
        attribute: node.op.attributes.iter().map(|(n, v)| attribute(n, v)).collect(),
        domain: Some(node.op.domain.name().into()).filter(|d: &String| !d.is_empty()),
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
            proto.i = Some(data_type(*dtype).into());
            attribute_type::INT
        }
        Attribute::Text(s) => {
            proto.s = Some(s.as_bytes().to_vec());
            attribute_type::STRING
        }
    });
    proto
}

fn value_info(value: &Value) -> ValueInfoProto {
    let dim = |d: &Dim| match d {
        Dim::Known(n) => DimensionProto { dim_value: Some(*n as i64), dim_param: None },
        Dim::Symbol(name) => DimensionProto { dim_value: None, dim_param: Some((*name).into()) },
        Dim::Any => DimensionProto::default(),
    };
    let shape = TensorShapeProto { dim: value.ty.shape.iter().map(dim).collect() };
    let tensor_type = TensorTypeProto { elem_type: Some(data_type(value.ty.dtype)), shape: Some(shape) };
    ValueInfoProto { name: Some(value.name.clone()), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}
