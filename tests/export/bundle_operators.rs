//! A bundle's graphs have the operators that are written here and no others: nothing that loops, branches, or runs what
//! a file names.

use std::fs;

use brain_adapter::Code;
use brain_adapter::bundle::Bundle;
use brain_adapter::onnx::{bundle_graph_in, external_files_in};
use support::commands::{reseal, tiny_bundle, tiny_copy};

/// A protobuf field that holds a message or a text.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let (key, length) = (usize::from(number) << 3 | 2, content.len());
    let varint = |n: usize| if n < 128 { vec![n as u8] } else { vec![n as u8 | 0x80, (n >> 7) as u8] };
    [varint(key), varint(length), content.to_vec()].concat()
}

/// What a file gets behind its end: a second graph, which every reader adds to the first, with this node.
fn node(kind: &str, domain: &str, attribute: &[u8]) -> Vec<u8> {
    let node = [field(2, b"made"), field(4, kind.as_bytes()), field(7, domain.as_bytes()), attribute.to_vec()];
    field(7, &field(1, &node.concat()))
}

#[test]
fn a_graph_with_a_foreign_operator_is_refused() {
    let subgraph = field(5, &[field(1, b"then_branch"), field(6, &field(1, &field(4, b"Relu")))].concat());
    let subgraphs = field(5, &[field(1, b"bodies"), field(11, &field(1, &field(4, b"Relu")))].concat());
    let rows: [(&str, Vec<u8>, &str); 11] = [
        ("a loop", node("Loop", "", &subgraph), "Loop"),
        ("a branch", node("If", "", &[]), "If"),
        ("a scan", node("Scan", "", &subgraph), "Scan"),
        ("a compiled blob", node("EPContext", "com.microsoft", &[]), "EPContext"),
        ("code from a library", node("PyOp", "ai.onnx.contrib", &[]), "PyOp"),
        ("a known name elsewhere", node("MatMul", "com.example", &[]), "com.example"),
        ("a buffer that stays", node("InPlaceAccumulatorV2", "com.microsoft", &[]), "InPlaceAccumulatorV2"),
        ("no name", node("", "", &[]), "``"),
        ("a graph inside a known one", node("Relu", "", &subgraph), "Relu"),
        ("graphs inside a known one", node("Relu", "", &subgraphs), "Relu"),
        ("a function", field(25, &[field(1, b"Relu"), field(10, b"")].concat()), "functions"),
    ];
    for name in ["adapter.onnx", "heads.onnx", "text.onnx", "vision.onnx"] {
        let good = fs::read(tiny_bundle().join(name)).unwrap();
        assert_eq!(bundle_graph_in(&good).unwrap(), external_files_in(&good).unwrap());
        for (what, addition, word) in &rows {
            let error = bundle_graph_in(&[good.clone(), addition.clone()].concat()).expect_err(what);
            assert_eq!(error.code(), Code::GRAPH_UNKNOWN_OP, "{name}, {what}: {error}");
            assert!(error.message().contains(word) && !error.message().contains('\n'), "{what}: {error}");
        }
        // One of ours more is fine here: whether it makes sense, ONNX Runtime says.
        bundle_graph_in(&[good, node("Relu", "", &[])].concat()).unwrap();
    }
}

#[test]
fn a_bundle_with_a_foreign_operator_does_not_open() {
    let dir = tiny_copy();
    let path = dir.path().join("heads.onnx");
    let good = fs::read(&path).unwrap();
    fs::write(&path, [good, node("Loop\n\u{1b}[2J", "", &[])].concat()).unwrap();
    reseal(dir.path());
    let error = Bundle::open(dir.path()).unwrap_err();
    assert_eq!(error.code(), Code::GRAPH_UNKNOWN_OP, "{error}");
    assert!(error.to_string().contains("heads.onnx") && !error.to_string().contains(['\n', '\u{1b}']), "{error}");
}

/// Two bytes in a file, two hundred in memory: counted before they are decoded.
#[test]
fn a_small_file_of_many_nodes_is_refused() {
    let nodes = field(1, &[]).repeat(5 << 20);
    let length = nodes.len();
    let varint = [length, length >> 7, length >> 14, length >> 21].map(|n| (n & 0x7f) as u8);
    let key = [0x3a, varint[0] | 0x80, varint[1] | 0x80, varint[2] | 0x80, varint[3]];
    let error = external_files_in(&[key.as_slice(), &nodes].concat()).unwrap_err();
    assert!(error.code() == Code::ONNX_INVALID && error.message().contains("fields"), "{error}");
}
