//! A graph's file, cut at its blocks, so that it can be run in less memory than its weights take.
//!
//! [`SegmentedModel::read`] takes `NAME.onnx` as this crate writes it. Its *segments* are the nodes of one transformer
//! block each (`layers.N.*`, `blocks.N.*`), and what stands between. Consecutive segments make a graph of their own
//! ([`SegmentedModel::extract`]): what flows in and out keeps its name, and large weights stay where they are in the
//! data file. For planning, each segment has the bytes of its weights, and [`SegmentedModel::live_bytes`] counts the
//! activations that are alive at once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use prost::Message;

use super::proto::{DimensionProto, EXTERNAL, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use super::read::{decode, graph_bytes};
use crate::error::{Code, Error, Result};
use crate::graph::{Dim, Segment, Tail, segments};
use crate::tensor::DType;

/// A part of a graph that can be run on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its block's name (`layers.3`), or `GRAPH.rest` for what is no block.
    pub name: String,
    /// Bytes of its weights in the data file and in the graph's own.
    pub weights: u64,
    /// Bytes that its fp16 weights take once they are widened to float32, as the CPU provider does at loading; and
    /// integers for TensorRT, which it dequantizes (at most: some at a time).
    pub widened: u64,
    /// Bytes of the largest of its weights in blocks with fp16 scales as float32: the CPU provider dequantizes one at a
    /// time, when it is needed.
    pub dequantized: u64,
    /// Bytes of its weights that are integers of 8 bits, not in blocks.
    pub integers: u64,
    /// Whether it has weights in blocks (`MatMulNBits`), which are slow unless they are repacked at loading.
    pub blocked: bool,
}

/// A graph that can be run segment by segment.
pub struct SegmentedModel {
    model: ModelProto,
    nodes: Vec<Range<usize>>,
    segments: Vec<SegmentInfo>,
    /// Index of each weight among the initializers.
    weights: HashMap<String, usize>,
    /// Types of everything else that is declared.
    values: HashMap<String, ValueInfoProto>,
    /// Index of the last node that reads a value; `usize::MAX` for outputs.
    last_read: HashMap<String, usize>,
}

/// Some segments as a graph of their own.
pub struct Extracted {
    /// The ONNX model; its data file is that of the whole.
    pub bytes: Vec<u8>,
    /// Names of its inputs.
    pub inputs: Vec<String>,
    /// Names of its outputs.
    pub outputs: Vec<String>,
}

impl SegmentedModel {
    /// Reads the graph at `path`.
    ///
    /// A graph with more in it than this crate writes is one segment: cut, it might compute something else.
    ///
    /// # Errors
    /// `onnx.invalid` when the file is no ONNX model.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_bytes(&graph_bytes(path)?).map_err(|e| e.at(path))
    }

    /// As [`Self::read`], of the file's bytes.
    ///
    /// # Errors
    /// `onnx.invalid`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let invalid = |message: &str| Error::new(Code::ONNX_INVALID, message.to_owned());
        let model = decode(bytes)?;
        // Fields that our messages lack were skipped, and would be missing in an extracted graph.
        let complete =
            model.encoded_len() == bytes.len() && model.functions.is_empty() && model.training_info.is_empty();
        let graph = model.graph.as_ref().ok_or_else(|| invalid("the model has no graph"))?;
        let nested = |n: &NodeProto| n.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty());
        let ours = complete && graph.sparse_initializer.is_empty() && !graph.node.iter().any(nested);
        let weights: HashMap<String, usize> =
            graph.initializer.iter().enumerate().map(|(i, t)| (t.name().to_owned(), i)).collect();
        let declared = graph.value_info.iter().chain(&graph.input).chain(&graph.output);
        let values = declared.map(|v| (v.name.clone().unwrap_or_default(), v.clone())).collect();
        let names = graph.node.iter().map(|n| n.name.as_deref().unwrap_or_default());
        let whole = Segment { name: graph.name.clone().unwrap_or_default(), nodes: 0..graph.node.len() };
        let mut cut = if ours { segments(&whole.name, names, Tail::WithLastBlock) } else { Vec::new() };
        if cut.is_empty() {
            cut.push(whole);
        }
        let segments = cut.iter().map(|segment| describe(graph, segment, &weights)).collect::<Result<_>>()?;
        let nodes = cut.into_iter().map(|segment| segment.nodes).collect();
        let outputs = graph.output.iter().filter_map(|v| Some((v.name.clone()?, usize::MAX)));
        let read = graph.node.iter().enumerate().flat_map(|(i, n)| n.input.iter().map(move |name| (name, i)));
        let read = read.filter(|(name, _)| !name.is_empty()).map(|(name, i)| (name.clone(), i));
        let last_read = read.chain(outputs).collect();
        Ok(Self { nodes, segments, weights, values, last_read, model })
    }

    /// The segments, in the order in which they run.
    pub fn segments(&self) -> &[SegmentInfo] {
        &self.segments
    }

    /// Names of the whole graph's outputs.
    pub fn outputs(&self) -> Vec<&str> {
        self.graph().output.iter().filter_map(|v| v.name.as_deref()).collect()
    }

    /// Names of the whole graph's inputs.
    pub fn inputs(&self) -> Vec<&str> {
        self.graph().input.iter().filter_map(|v| v.name.as_deref()).collect()
    }

    /// The declared shape of an input, an output or a value inside; none where its type is not declared. Names other
    /// than those of [`Dim::SYMBOLS`] are [`Dim::Any`].
    pub fn shape(&self, name: &str) -> Option<Vec<Dim>> {
        let tensor = self.values.get(name)?.r#type.as_ref()?.tensor_type.as_ref()?;
        Some(tensor.shape.as_ref()?.dim.iter().map(dim).collect())
    }

    /// These segments as a graph of their own.
    ///
    /// # Errors
    /// `onnx.invalid` when a value that flows in or out is not declared.
    pub fn extract(&self, segments: Range<usize>) -> Result<Extracted> {
        let (graph, range) = (self.graph(), self.range(segments));
        let nodes = &graph.node[range.clone()];
        let made: HashSet<&str> = nodes.iter().flat_map(|n| &n.output).map(String::as_str).collect();
        let (mut initializers, mut inputs, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        for name in operands(nodes).filter(|name| !made.contains(name)) {
            if !seen.insert(name) {
                continue;
            }
            match self.weights.get(name) {
                Some(&index) => initializers.push(graph.initializer[index].clone()),
                None => inputs.push(self.declared(name)?),
            }
        }
        let leaving = nodes.iter().flat_map(|n| &n.output).filter(|name| self.is_read_after(name, range.end));
        let outputs = leaving.map(|name| self.declared(name)).collect::<Result<Vec<_>>>()?;
        let leaves: HashSet<&str> = outputs.iter().filter_map(|v| v.name.as_deref()).collect();
        let inner = nodes.iter().flat_map(|n| &n.output).filter(|name| !leaves.contains(name.as_str()));
        let value_info = inner.filter_map(|name| self.values.get(name).cloned()).collect();
        let names = |all: &[ValueInfoProto]| all.iter().filter_map(|v| v.name.clone()).collect();
        let (input_names, output_names) = (names(&inputs), names(&outputs));
        let part = GraphProto {
            node: nodes.to_vec(),
            name: graph.name.clone(),
            initializer: initializers,
            input: inputs,
            output: outputs,
            value_info,
            ..GraphProto::default()
        };
        let model = ModelProto {
            ir_version: self.model.ir_version,
            producer_name: self.model.producer_name.clone(),
            producer_version: self.model.producer_version.clone(),
            graph: Some(part),
            opset_import: self.model.opset_import.clone(),
            ..ModelProto::default()
        };
        let bytes = model.encode_to_vec();
        Ok(Extracted { bytes, inputs: input_names, outputs: output_names })
    }

    /// The maximum of bytes of inputs and results that are alive at once while these segments run, where the named
    /// dimensions have these sizes. A value lives from the node that makes it to the last that reads it; what leaves
    /// the segments lives to their end.
    ///
    /// Nothing is taken off for results that are written over their operands, and nothing added for what operators
    /// need inside. Dimensions that are neither known nor named count as 1.
    pub fn live_bytes(&self, segments: Range<usize>, sizes: &BTreeMap<&str, u64>) -> u64 {
        let (graph, range) = (self.graph(), self.range(segments));
        let nodes = &graph.node[range.clone()];
        let mut last: HashMap<&str, usize> = HashMap::new();
        for (i, node) in nodes.iter().enumerate() {
            for name in node.input.iter().chain(&node.output).map(String::as_str) {
                last.insert(name, if self.is_read_after(name, range.end) { usize::MAX } else { i });
            }
        }
        let size = |name: &str| self.values.get(name).map_or(0, |value| bytes_of(value, sizes));
        let made: HashSet<&str> = nodes.iter().flat_map(|n| &n.output).map(String::as_str).collect();
        let entering: HashSet<&str> = operands(nodes).filter(|n| !made.contains(n)).collect();
        let total = |sizes: &mut dyn Iterator<Item = u64>| sizes.fold(0, u64::saturating_add);
        let mut alive = total(&mut entering.iter().map(|name| size(name)));
        let mut most = alive;
        for (i, node) in nodes.iter().enumerate() {
            alive = alive.saturating_add(total(&mut node.output.iter().map(|name| size(name))));
            most = most.max(alive);
            let ended: HashSet<&str> =
                node.input.iter().chain(&node.output).map(String::as_str).filter(|n| last[n] == i).collect();
            // What enters is the caller's, and stays.
            alive = alive.saturating_sub(total(&mut ended.iter().filter(|n| !entering.contains(*n)).map(|n| size(n))));
        }
        most
    }

    /// As [`Self::live_bytes`] without what enters, summed over the powers of two that results lie between, each at its
    /// own maximum. An allocator that gives freed memory to results of like size alone takes that much; ONNX Runtime's
    /// comes close, since a small result in the middle of a large one's place keeps it from being used again.
    pub fn allocated_bytes(&self, segments: Range<usize>, sizes: &BTreeMap<&str, u64>) -> u64 {
        let (graph, range) = (self.graph(), self.range(segments));
        let nodes = &graph.node[range.clone()];
        let read: HashSet<&str> = operands(&graph.node[range.end..]).chain(self.outputs()).collect();
        let mut last: HashMap<&str, usize> = HashMap::new();
        for (i, node) in nodes.iter().enumerate() {
            for name in node.input.iter().chain(&node.output).map(String::as_str) {
                last.insert(name, if read.contains(name) { usize::MAX } else { i });
            }
        }
        let made: HashSet<&str> = nodes.iter().flat_map(|n| &n.output).map(String::as_str).collect();
        let size = |name: &str| self.values.get(name).map_or(0, |value| bytes_of(value, sizes));
        // Of each power of two: bytes alive, and their maximum.
        let mut classes: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for (i, node) in nodes.iter().enumerate() {
            for bytes in node.output.iter().map(|name| size(name)) {
                let (alive, most) = classes.entry(bytes.checked_ilog2().unwrap_or(0)).or_default();
                *alive = alive.saturating_add(bytes);
                *most = (*most).max(*alive);
            }
            let ended: HashSet<&str> = node.input.iter().chain(&node.output).map(String::as_str).collect();
            for bytes in ended.into_iter().filter(|n| last[n] == i && made.contains(n)).map(size) {
                let (alive, _) = classes.entry(bytes.checked_ilog2().unwrap_or(0)).or_default();
                *alive = alive.saturating_sub(bytes);
            }
        }
        classes.values().map(|(_, most)| *most).fold(0, u64::saturating_add)
    }

    /// Bytes of what these segments read and do not make, weights apart, and of their results that are read elsewhere.
    pub fn boundary_bytes(&self, segments: Range<usize>, sizes: &BTreeMap<&str, u64>) -> [u64; 2] {
        let (graph, range) = (self.graph(), self.range(segments));
        let nodes = &graph.node[range.clone()];
        let made: HashSet<&str> = nodes.iter().flat_map(|n| &n.output).map(String::as_str).collect();
        let read: HashSet<&str> = operands(&graph.node[range.end..]).chain(self.outputs()).collect();
        let size = |name: &&str| self.values.get(*name).map_or(0, |value| bytes_of(value, sizes));
        let entering: HashSet<&str> = operands(nodes).filter(|n| !made.contains(n)).collect();
        let entering = entering.iter().filter(|name| !self.weights.contains_key(**name)).map(size);
        let leaving = made.iter().filter(|name| read.contains(**name)).map(size);
        [entering.fold(0, u64::saturating_add), leaving.fold(0, u64::saturating_add)]
    }

    fn graph(&self) -> &GraphProto {
        self.model.graph.as_ref().expect("checked when it was read")
    }

    fn range(&self, segments: Range<usize>) -> Range<usize> {
        match segments.is_empty() {
            true => 0..0,
            false => self.nodes[segments.start].start..self.nodes[segments.end - 1].end,
        }
    }

    /// Whether a node from this index on reads the value, or it is an output.
    fn is_read_after(&self, name: &str, node: usize) -> bool {
        self.last_read.get(name).is_some_and(|last| *last >= node)
    }

    fn declared(&self, name: &str) -> Result<ValueInfoProto> {
        self.values.get(name).cloned().ok_or_else(|| {
            Error::new(Code::ONNX_INVALID, format!("`{name}` flows between blocks and has no declared type"))
        })
    }
}

/// The names that nodes read.
fn operands(nodes: &[NodeProto]) -> impl Iterator<Item = &str> {
    nodes.iter().flat_map(|n| &n.input).map(String::as_str).filter(|name| !name.is_empty())
}

fn describe(graph: &GraphProto, segment: &Segment, weights: &HashMap<String, usize>) -> Result<SegmentInfo> {
    let nodes = &graph.node[segment.nodes.clone()];
    let (mut bytes, mut widened, mut at_once, mut integers) = (0u64, 0u64, 0u64, 0u64);
    let mut seen = HashSet::new();
    for node in nodes {
        let weight =
            |i: usize| node.input.get(i).and_then(|name| weights.get(name)).map(|&index| &graph.initializer[index]);
        match node.op_type.as_deref() {
            Some("MatMulNBits") => at_once = at_once.max(dequantized(node, &weight)?),
            _ => widened = widened.saturating_add(dequantized(node, &weight)?),
        }
        for name in node.input.iter().filter(|name| seen.insert(name.as_str())) {
            let Some(&index) = weights.get(name) else { continue };
            let tensor = &graph.initializer[index];
            let length = weight_bytes(tensor)?;
            bytes = bytes.saturating_add(length);
            if node.op_type.as_deref() != Some("MatMulNBits") && matches!(dtype(tensor), Some(DType::I8 | DType::U8)) {
                integers = integers.saturating_add(length);
            }
            // A table that is looked up is widened behind the lookup, not as a whole.
            if node.op_type.as_deref() != Some("Gather") && matches!(dtype(tensor), Some(DType::F16 | DType::BF16)) {
                widened = widened.saturating_add(length.saturating_mul(2));
            }
        }
    }
    let blocked = nodes.iter().any(|n| n.op_type.as_deref() == Some("MatMulNBits"));
    Ok(SegmentInfo { name: segment.name.clone(), weights: bytes, widened, dequantized: at_once, integers, blocked })
}

fn dtype(tensor: &TensorProto) -> Option<DType> {
    tensor.data_type.and_then(DType::from_onnx)
}

/// The bytes that a node's integers for a GPU take as float32; 0 for other nodes.
fn dequantized<'a>(node: &NodeProto, weight: &dyn Fn(usize) -> Option<&'a TensorProto>) -> Result<u64> {
    let bits = node.attribute.iter().find(|a| a.name.as_deref() == Some("bits")).and_then(|a| a.i);
    let (integers, scales, bits) = match node.op_type.as_deref() {
        Some("MatMulNBits") => (weight(1), weight(2), bits.filter(|b| *b > 0).unwrap_or(4)),
        Some("DequantizeLinear") => (weight(0), weight(1), 8),
        _ => return Ok(0),
    };
    match (integers, scales) {
        (Some(integers), Some(scales)) if dtype(scales) == Some(DType::F16) => {
            Ok(weight_bytes(integers)?.saturating_mul(32) / bits.unsigned_abs())
        }
        _ => Ok(0),
    }
}

/// The bytes of a weight, wherever they lie.
fn weight_bytes(tensor: &TensorProto) -> Result<u64> {
    let held = tensor.raw_data.as_ref().map_or(0, Vec::len) as u64;
    if tensor.data_location != Some(EXTERNAL) {
        return Ok(held);
    }
    let length = tensor.external_data.iter().rev().find(|e| e.key.as_deref() == Some("length"));
    length.and_then(|e| e.value().parse().ok()).ok_or_else(|| {
        Error::new(Code::ONNX_INVALID, format!("weight `{}` does not say how many bytes it has", tensor.name()))
    })
}

/// A dimension as the file declares it.
fn dim(proto: &DimensionProto) -> Dim {
    let number = proto.dim_value.and_then(|n| usize::try_from(n).ok()).map(Dim::Known);
    number.or_else(|| Dim::symbol(proto.dim_param.as_deref()?)).unwrap_or(Dim::Any)
}

/// Bytes of a value whose named dimensions have these sizes; 0 where its type is not declared.
fn bytes_of(value: &ValueInfoProto, sizes: &BTreeMap<&str, u64>) -> u64 {
    let Some(tensor) = value.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()) else { return 0 };
    let element = tensor.elem_type.and_then(DType::from_onnx).map_or(1, DType::size);
    let size = |proto: &DimensionProto| match dim(proto) {
        Dim::Known(n) => u64::try_from(n).unwrap_or(u64::MAX),
        Dim::Symbol(name) => sizes.get(name).copied().unwrap_or(1),
        Dim::Any => 1,
    };
    let dims = tensor.shape.iter().flat_map(|s| &s.dim).map(size);
    dims.fold(element as u64, u64::saturating_mul)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, input: &str, output: &str) -> NodeProto {
        NodeProto {
            name: Some(name.into()),
            op_type: Some("Relu".into()),
            input: vec![input.into()],
            output: vec![output.into()],
            ..NodeProto::default()
        }
    }

    #[test]
    fn graphs_of_others_are_not_cut() {
        assert!(SegmentedModel::from_bytes(b"\xff\xff").is_err());
        let nodes = vec![node("layers.0.Relu", "x", "y"), node("layers.1.Relu", "y", "z")];
        let graph = GraphProto { node: nodes, ..GraphProto::default() };
        let mut bytes = ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec();
        assert_eq!(SegmentedModel::from_bytes(&bytes).unwrap().segments().len(), 2);
        // Field 6, doc_string, is none of ours.
        bytes.extend([0x32, 1, b'x']);
        assert_eq!(SegmentedModel::from_bytes(&bytes).unwrap().segments().len(), 1);
        let empty = ModelProto { graph: Some(GraphProto::default()), ..ModelProto::default() };
        assert_eq!(SegmentedModel::from_bytes(&empty.encode_to_vec()).unwrap().segments().len(), 1);
    }

    /// What enters is the caller's.
    #[test]
    fn what_enters_a_group_stays() {
        use crate::graph::{Builder, Dim};
        let mut g = Builder::new("chain");
        let mut x = g.input("x", DType::F32, &[Dim::Known(1000)]);
        for _ in 0..3 {
            x = g.unary("Relu", x).unwrap();
        }
        g.output("y", x).unwrap();
        let model = SegmentedModel::from_bytes(&crate::onnx::without_data(&g.finish().unwrap()).unwrap()).unwrap();
        assert_eq!(model.live_bytes(0..model.segments().len(), &BTreeMap::new()), 3 * 4000);
    }
}
