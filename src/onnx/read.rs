//! Reads back from an ONNX file which other files it refers to, and which operators it has.

#![cfg_attr(not(test), deny(clippy::as_conversions))]

use std::collections::BTreeSet;
use std::path::Path;

use prost::Message;

use super::fields;
use super::proto::{AttributeProto, EXTERNAL, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto};
use crate::error::{Code, Error, Result};
use crate::graph::is_for_bundles;

/// Maximum size of a graph file, in bytes: graphs without their weights are far smaller.
const MAX_GRAPH_BYTES: u64 = 64 << 20;

/// Maximum number of fields in a graph file: each takes memory when it is decoded.
const MAX_FIELDS: usize = 1 << 22;

/// The `location`s of all external data in the file, in subgraphs, functions and sparse tensors too, as written there.
///
/// # Errors
/// `onnx.invalid` when the file is no ONNX model, or when external data has no location.
pub fn external_files(path: &Path) -> Result<BTreeSet<String>> {
    external_files_in(&graph_bytes(path)?).map_err(|e| e.at(path))
}

/// The bytes of a graph's file.
pub(super) fn graph_bytes(path: &Path) -> Result<Vec<u8>> {
    let length = std::fs::metadata(path).map_err(|e| Error::io(path, "cannot open the file", e))?.len();
    check_graph_size(length).map_err(|e| e.at(path))?;
    std::fs::read(path).map_err(|e| Error::io(path, "cannot read the file", e))
}

/// Refuses a graph's file of so many bytes where that is too much.
///
/// # Errors
/// `onnx.invalid`.
pub fn check_graph_size(bytes: u64) -> Result<()> {
    if bytes <= MAX_GRAPH_BYTES {
        return Ok(());
    }
    let message = format!("the graph file holds {bytes} bytes, expected at most {MAX_GRAPH_BYTES}");
    Err(Error::new(Code::ONNX_INVALID, message))
}

/// As [`external_files`], of the file's bytes.
///
/// # Errors
/// `onnx.invalid`.
pub fn external_files_in(bytes: &[u8]) -> Result<BTreeSet<String>> {
    files_of(&decode(bytes)?)
}

/// Checks that a graph's file has operators that a bundle's graphs may have and no others, nor functions or graphs
/// within operators; returns the `location`s of its external data, after `check` has seen each.
///
/// # Errors
/// Those of `check`; `graph.unknown_op`; `onnx.invalid` as [`external_files`].
pub fn bundle_graph_in(bytes: &[u8], check: impl Fn(&str) -> Result<()>) -> Result<BTreeSet<String>> {
    let model = decode(bytes)?;
    let files = files_of(&model)?;
    files.iter().try_for_each(|file| check(file))?;
    check_operators(&model)?;
    Ok(files)
}

/// The model in a file of bounded size in memory.
pub(super) fn decode(bytes: &[u8]) -> Result<ModelProto> {
    let invalid = |message: String| Error::new(Code::ONNX_INVALID, message);
    match fields::count(bytes) {
        Some(0..=MAX_FIELDS) => {}
        Some(count) => {
            return Err(invalid(format!("the graph file holds {count} fields, expected at most {MAX_FIELDS}")));
        }
        None => return Err(invalid("not an ONNX model: its fields do not end where they should".into())),
    }
    ModelProto::decode(bytes).map_err(|e| invalid(format!("not an ONNX model: {e}")))
}

fn check_operators(model: &ModelProto) -> Result<()> {
    let refuse = |what: String| {
        let message = format!("{what}, which no exported graph has: do not use this bundle, or export it again");
        Err(Error::new(Code::GRAPH_UNKNOWN_OP, message))
    };
    if !model.functions.is_empty() || !model.training_info.is_empty() {
        return refuse("the graph's file defines functions or training steps".into());
    }
    for node in model.graph.iter().flat_map(|graph| &graph.node) {
        let (domain, kind) = (node.domain(), node.op_type());
        if !is_for_bundles(domain, kind) {
            let (domain, kind) = (domain.escape_debug(), kind.escape_debug());
            return refuse(format!("the graph has the operator `{kind:.60}` of the domain `{domain:.60}`"));
        }
        if runs_graphs(node) {
            return refuse(format!("the graph has an operator `{kind}` that runs a graph of its own"));
        }
    }
    Ok(())
}

fn runs_graphs(node: &NodeProto) -> bool {
    node.attribute.iter().any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty())
}

fn files_of(model: &ModelProto) -> Result<BTreeSet<String>> {
    let invalid = |message: String| Error::new(Code::ONNX_INVALID, message);
    let mut found = BTreeSet::new();
    for tensor in model_tensors(model).into_iter().filter(|t| t.data_location == Some(EXTERNAL)) {
        // All of them: of several, ONNX Runtime takes the last.
        let entries = tensor.external_data.iter().filter(|e| e.key.as_deref() == Some("location"));
        let locations: Vec<String> = entries.map(|e| e.value().to_owned()).collect();
        if locations.is_empty() {
            return Err(invalid(format!("weight `{}` has no location", tensor.name())));
        }
        found.extend(locations);
    }
    Ok(found)
}

/// Every tensor of a model, wherever the format lets one stand.
fn model_tensors(model: &ModelProto) -> Vec<&TensorProto> {
    let mut all: Vec<&TensorProto> = model.graph.iter().flat_map(tensors).collect();
    for training in &model.training_info {
        all.extend(training.initialization.iter().chain(&training.algorithm).flat_map(tensors));
    }
    for function in &model.functions {
        all.extend(function.node.iter().flat_map(|n| &n.attribute).flat_map(attribute_tensors));
        all.extend(function.attribute_proto.iter().flat_map(attribute_tensors));
    }
    all
}

/// Every tensor of a graph. The depth of subgraphs is bounded by the decoder's own limit.
fn tensors(graph: &GraphProto) -> Vec<&TensorProto> {
    let mut all: Vec<&TensorProto> = graph.initializer.iter().collect();
    all.extend(graph.sparse_initializer.iter().flat_map(sparse_tensors));
    all.extend(graph.node.iter().flat_map(|n| &n.attribute).flat_map(attribute_tensors));
    all
}

fn attribute_tensors(attribute: &AttributeProto) -> Vec<&TensorProto> {
    let mut all: Vec<&TensorProto> = attribute.t.iter().chain(&attribute.tensors).collect();
    all.extend(attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors).flat_map(sparse_tensors));
    all.extend(attribute.g.iter().chain(&attribute.graphs).flat_map(tensors));
    all
}

fn sparse_tensors(sparse: &SparseTensorProto) -> impl Iterator<Item = &TensorProto> {
    sparse.values.iter().chain(&sparse.indices)
}
