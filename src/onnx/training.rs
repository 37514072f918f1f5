//! `optimizer_model.onnx`, for Microsoft's training runtime (onnxruntime-training 1.19.2) and any other.
//!
//! Flows in: AdamW's constants, and its step as a graph. Flows out: a model of one `com.microsoft.AdamWOptimizer` node,
//! which that runtime insists on, with the function that other runtimes run in its place.

use prost::Message;

use super::functions::{self, OPTIMIZER, OPTIMIZER_INPUTS, OPTIMIZER_OUTPUTS, int, opset};
use super::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, SequenceTypeProto, TensorShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto, attribute_type,
};
use super::{IR_VERSION, OPSET};
use crate::config::AdamW;
use crate::error::Result;
use crate::graph::{Domain, Graph};
use crate::tensor::DType;

/// The model of `step`, the graph of one step of AdamW with these constants, over sequences: see
/// [`crate::optimizer::optimizer_model`].
///
/// # Errors
/// `graph.invalid` when the graph is no optimizer's step.
pub(crate) fn optimizer_model(step: &Graph, options: &AdamW) -> Result<Vec<u8>> {
    let float = |name: &str, value: f64| {
        let (name, r#type) = (Some(name.to_owned()), Some(attribute_type::FLOAT));
        AttributeProto { name, f: Some(value as f32), r#type, ..Default::default() }
    };
    let [alpha, beta] = options.betas;
    let node = NodeProto {
        name: Some(OPTIMIZER.into()),
        domain: Some(Domain::Microsoft.name().into()),
        attribute: vec![
            float("alpha", alpha),
            float("beta", beta),
            float("epsilon", options.eps),
            float("weight_decay", options.weight_decay),
            int("correct_bias", 1),
            int("adam_mode", 0),
        ],
        ..functions::node(OPTIMIZER, &OPTIMIZER_INPUTS, &OPTIMIZER_OUTPUTS)
    };
    let function = functions::optimizer(step, &node.attribute)?;
    let [rate, number, sequences @ ..] = OPTIMIZER_INPUTS;
    let [flag, updated @ ..] = OPTIMIZER_OUTPUTS;
    let model = ModelProto {
        ir_version: Some(IR_VERSION),
        producer_name: Some(env!("CARGO_PKG_NAME").into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        graph: Some(GraphProto {
            node: vec![node],
            name: Some("optimizer".into()),
            input: [tensor(rate, DType::F32), tensor(number, DType::I64)]
                .into_iter()
                .chain(sequences.map(sequence))
                .collect(),
            output: [tensor(flag, DType::Bool)].into_iter().chain(updated.map(sequence)).collect(),
            ..Default::default()
        }),
        opset_import: vec![opset(Domain::Onnx, OPSET), opset(Domain::Microsoft, 1)],
        functions: vec![function],
        ..Default::default()
    };
    Ok(model.encode_to_vec())
}

/// A tensor `[1]`.
fn tensor(name: &str, dtype: DType) -> ValueInfoProto {
    let one = DimensionProto { dim_value: Some(1), dim_param: None };
    let shape = Some(TensorShapeProto { dim: vec![one] });
    let tensor_type = Some(TensorTypeProto { elem_type: Some(dtype.onnx()), shape });
    let r#type = Some(TypeProto { tensor_type, ..Default::default() });
    ValueInfoProto { name: Some(name.into()), r#type }
}

/// A sequence of float32 tensors of any shapes.
fn sequence(name: &str) -> ValueInfoProto {
    let tensor_type = Some(TensorTypeProto { elem_type: Some(DType::F32.onnx()), shape: None });
    let elem_type = Some(Box::new(TypeProto { tensor_type, ..Default::default() }));
    let sequence_type = Some(Box::new(SequenceTypeProto { elem_type }));
    let r#type = Some(TypeProto { sequence_type, ..Default::default() });
    ValueInfoProto { name: Some(name.into()), r#type }
}
