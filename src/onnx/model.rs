//! A graph as an ONNX model: its message with versions, and with the functions that its operators need.

use super::proto::{ModelProto, OperatorSetIdProto, TensorProto};
use super::{IR_VERSION, OPSET, encode, functions};
use crate::error::Result;
use crate::graph::{Domain, Graph};

/// The model message of `graph` with these weights.
///
/// # Errors
/// When a constant of an operator's body cannot be read.
pub(super) fn of(graph: &Graph, initializer: Vec<TensorProto>) -> Result<ModelProto> {
    Ok(ModelProto {
        ir_version: Some(IR_VERSION),
        producer_name: Some(env!("CARGO_PKG_NAME").into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        graph: Some(encode::graph(graph, initializer)?),
        opset_import: opsets(graph),
        functions: functions::of(graph),
        ..Default::default()
    })
}

/// The standard operators' version, and that of each other domain that the graph uses.
fn opsets(graph: &Graph) -> Vec<OperatorSetIdProto> {
    let domains: std::collections::BTreeSet<Domain> = graph.nodes.iter().map(|n| n.op.domain).collect();
    let others = domains.into_iter().filter(|d| *d != Domain::Onnx).map(|d| (d.name(), 1));
    let entry =
        |(domain, version): (&str, i64)| OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) };
    std::iter::once(("", OPSET)).chain(others).map(entry).collect()
}
