//! Reads back from an ONNX file which other files it refers to.

use std::collections::BTreeSet;
use std::path::Path;

use prost::Message;

use super::proto::{EXTERNAL, GraphProto, ModelProto, TensorProto};
use crate::error::{Code, Error, Result};

/// Largest graph file that is read: graphs without their weights are far smaller.
const MAX_GRAPH_BYTES: u64 = 1 << 30;

/// The `location`s of all external data in the file, in subgraphs too, as written there.
///
/// # Errors
/// `onnx.invalid` when the file is no ONNX model, or when external data has no location.
pub fn external_files(path: &Path) -> Result<BTreeSet<String>> {
    let invalid = |message: String| Error::new(Code::ONNX_INVALID, message).at(path);
    let length = std::fs::metadata(path).map_err(|e| Error::io(path, "cannot look at the file", e))?.len();
    if length > MAX_GRAPH_BYTES {
        return Err(invalid(format!("the graph file holds {length} bytes, expected at most {MAX_GRAPH_BYTES}")));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot read the file", e))?;
    let model = ModelProto::decode(bytes.as_slice()).map_err(|e| invalid(format!("not an ONNX model: {e}")))?;
    let mut found = BTreeSet::new();
    for tensor in model.graph.iter().flat_map(tensors).filter(|t| t.data_location == Some(EXTERNAL)) {
        let location = tensor.external_data.iter().find(|e| e.key.as_deref() == Some("location"));
        match location.and_then(|e| e.value.clone()) {
            Some(location) => found.insert(location),
            None => return Err(invalid(format!("weight `{}` has no location", tensor.name()))),
        };
    }
    Ok(found)
}

/// Every tensor of a graph. The depth of subgraphs is bounded by the decoder's own limit.
fn tensors(graph: &GraphProto) -> Vec<&TensorProto> {
    let mut all: Vec<&TensorProto> = graph.initializer.iter().collect();
    for attribute in graph.node.iter().flat_map(|n| &n.attribute) {
        all.extend(attribute.t.iter().chain(&attribute.tensors));
        all.extend(attribute.g.iter().chain(&attribute.graphs).flat_map(tensors));
    }
    all
}
