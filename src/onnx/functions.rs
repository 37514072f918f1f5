//! Model-local functions for the two operators that only Microsoft's training runtime has.
//!
//! Flows in: a graph, or an optimizer's step as a graph. Flows out: ONNX functions of standard operators. That runtime
//! (onnxruntime-training 1.19.2) finds its own kernels and ignores the functions; any other inlines them.
//!
//! A function bakes its constants. It still declares the node's attributes, without which the node would be refused,
//! and a node must ask for all of its results.

use super::proto::{AttributeProto, FunctionProto, NodeProto, OperatorSetIdProto, TensorProto, attribute_type};
use super::{OPSET, encode};
use crate::error::{Code, Error, Result};
use crate::graph::{Domain, Graph, ValueId};
use crate::tensor::DType;

/// Adds a gradient to the buffer that holds the sum of several.
const ACCUMULATOR: &str = "InPlaceAccumulatorV2";

/// AdamW over sequences of tensors.
pub(super) const OPTIMIZER: &str = "AdamWOptimizer";

/// Its inputs and outputs, in the order that the runtime checks. All but the first two are sequences.
pub(super) const OPTIMIZER_INPUTS: [&str; 6] =
    ["learning_rate", "step", "params", "gradients", "first_order_moments", "second_order_moments"];
pub(super) const OPTIMIZER_OUTPUTS: [&str; 4] =
    ["updated_flag", "params.out", "first_order_moments.out", "second_order_moments.out"];

/// Functions for the operators of a graph that only Microsoft's training runtime has.
pub(super) fn of(graph: &Graph) -> Vec<FunctionProto> {
    let used = graph.nodes.iter().any(|n| n.op.domain == Domain::Microsoft && n.op.kind == ACCUMULATOR);
    used.then(accumulator).into_iter().collect()
}

/// `sum = (reset ? 0 : buffer) + gradient`, of the buffer's rank even where that is 0; `flag` is true.
fn accumulator() -> FunctionProto {
    let mut f = Body(Vec::new());
    f.constant("zero", DType::F32, 0f32.to_le_bytes().to_vec());
    f.node("Where", &["reset", "zero", "buffer"], "kept_or_none");
    f.node("Shape", &["buffer"], "shape");
    f.node("Reshape", &["kept_or_none", "shape"], "kept");
    f.node("Add", &["kept", "gradient"], "sum");
    f.node("Not", &["reset"], "no_reset");
    f.node("Or", &["reset", "no_reset"], "flag");
    f.finish(ACCUMULATOR, &["buffer", "gradient", "reset"], &["flag", "sum"], &[])
}

/// An optimizer's step over sequences, a tensor after the other. `step` is its graph: inputs are the learning rate, the
/// number of the step, then parameter, gradient and two moments of each tensor; results the next parameter and moments
/// of each.
///
/// # Errors
/// `graph.invalid` when the graph is another.
pub(super) fn optimizer(step: &Graph, attributes: &[AttributeProto]) -> Result<FunctionProto> {
    let (inputs, results) = (step.inputs.get(2..).unwrap_or_default(), &step.outputs);
    let (tensors, results) = (inputs.as_chunks::<4>(), results.as_chunks::<3>());
    if !tensors.1.is_empty() || !results.1.is_empty() || tensors.0.is_empty() || tensors.0.len() != results.0.len() {
        return Err(Error::new(Code::GRAPH_INVALID, format!("graph `{}` is no optimizer's step", step.name)));
    }
    let mut f = Body(Vec::new());
    let name = |id: ValueId| step.value(id).name.as_str();
    for (value, constant) in step.values.iter().filter_map(|value| Some((value, value.init.as_ref()?))) {
        f.constant(&value.name, constant.dtype(), constant.bytes()?.into_owned());
    }
    let mut sequences = tensors.0.iter().enumerate().peekable();
    for node in &step.nodes {
        // A tensor is taken out of its sequence where it is first read.
        let reads = |ids: &[ValueId]| node.inputs.iter().flatten().any(|id| ids.contains(id));
        while let Some((i, ids)) = sequences.next_if(|(_, ids)| reads(*ids)) {
            let index = format!("index{i}");
            f.constant(&index, DType::I64, (i as i64).to_le_bytes().to_vec());
            for (sequence, &id) in OPTIMIZER_INPUTS[2..].iter().zip(ids) {
                f.node("SequenceAt", &[sequence, &index], name(id));
            }
        }
        f.0.push(NodeProto { name: None, ..encode::node(step, node)? });
    }
    for (i, sequence) in OPTIMIZER_OUTPUTS[1..].iter().enumerate() {
        let parts: Vec<&str> = results.0.iter().map(|ids| name(ids[i])).collect();
        f.node("SequenceConstruct", &parts, sequence);
    }
    f.node("Equal", &["step", "step"], "updated_flag");
    Ok(f.finish(OPTIMIZER, &OPTIMIZER_INPUTS, &OPTIMIZER_OUTPUTS, attributes))
}

/// A function under way.
struct Body(Vec<NodeProto>);

impl Body {
    fn node(&mut self, kind: &str, inputs: &[&str], output: &str) {
        self.0.push(node(kind, inputs, &[output]));
    }

    fn constant(&mut self, output: &str, dtype: DType, bytes: Vec<u8>) {
        let t = Some(TensorProto { data_type: Some(dtype.onnx()), raw_data: Some(bytes), ..Default::default() });
        let (name, r#type) = (Some("value".to_owned()), Some(attribute_type::TENSOR));
        let value = AttributeProto { name, t, r#type, ..Default::default() };
        self.0.push(NodeProto { attribute: vec![value], ..node("Constant", &[], &[output]) });
    }

    fn finish(self, name: &str, inputs: &[&str], outputs: &[&str], attributes: &[AttributeProto]) -> FunctionProto {
        FunctionProto {
            name: Some(name.into()),
            input: owned(inputs),
            output: owned(outputs),
            attribute: attributes.iter().filter_map(|a| a.name.clone()).collect(),
            node: self.0,
            opset_import: vec![opset(Domain::Onnx, OPSET)],
            domain: Some(Domain::Microsoft.name().into()),
            ..Default::default()
        }
    }
}

pub(super) fn node(kind: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto { input: owned(inputs), output: owned(outputs), op_type: Some(kind.into()), ..Default::default() }
}

pub(super) fn int(name: &str, i: i64) -> AttributeProto {
    let (name, r#type) = (Some(name.to_owned()), Some(attribute_type::INT));
    AttributeProto { name, i: Some(i), r#type, ..Default::default() }
}

pub(super) fn opset(domain: Domain, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(domain.name().into()), version: Some(version) }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&n| n.to_owned()).collect()
}
