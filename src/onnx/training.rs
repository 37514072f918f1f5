//! `optimizer_model.onnx`, for Microsoft's training runtime (onnxruntime-training 1.19.2) and any other.
//!
//! Flows in: AdamW's constants. Flows out: a model of one `com.microsoft.AdamWOptimizer` node, which that runtime insists
//! on, with the function that other runtimes run in its place.

use std::path::Path;

use prost::Message;

use super::functions::{self, OPTIMIZER, OPTIMIZER_INPUTS, OPTIMIZER_OUTPUTS, int, opset};
use super::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, SequenceTypeProto, TensorShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto, attribute_type,
};
use super::{IR_VERSION, OPSET};
use crate::config::AdamW;
use crate::error::{Code, Error, Result};
use crate::graph::Domain;
use crate::tensor::DType;

/// `optimizer_model.onnx`: one step of AdamW over sequences of as many float32 tensors as there are `parameters`, whose
/// shapes and order are the caller's. Inputs: `learning_rate` f32 `[1]`, `step` i64 `[1]` (the first is 1), `params`,
/// `gradients`, `first_order_moments`, `second_order_moments`. Outputs: `updated_flag` bool `[1]`, always true, and the
/// sequences `params.out`, `first_order_moments.out`, `second_order_moments.out`; Microsoft's runtime updates the tensors
/// themselves and looks at none of these.
///
/// The formula is `torch.optim.AdamW`'s (`adam_mode` 0), with one weight decay for every parameter.
///
/// # Errors
/// `config.value` when a constant is impossible, and when gradients are to be clipped, for which the runtime has no place;
/// `graph.invalid` when there is no parameter.
pub fn optimizer_model(parameters: usize, options: &AdamW) -> Result<Vec<u8>> {
    options.validate()?;
    if let Some(clip) = options.clip {
        let message = format!("AdamW's clip is {clip}, expected none: Microsoft's training runtime does not clip");
        return Err(Error::new(Code::CONFIG_VALUE, message));
    }
    if parameters == 0 {
        return Err(Error::new(Code::GRAPH_INVALID, "an optimizer of no parameter"));
    }
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
    let function = functions::adamw(parameters, options, &node.attribute);
    let [rate, step, sequences @ ..] = OPTIMIZER_INPUTS;
    let [flag, updated @ ..] = OPTIMIZER_OUTPUTS;
    let model = ModelProto {
        ir_version: Some(IR_VERSION),
        producer_name: Some(env!("CARGO_PKG_NAME").into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        graph: Some(GraphProto {
            node: vec![node],
            name: Some("optimizer".into()),
            input: [tensor(rate, DType::F32), tensor(step, DType::I64)]
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

/// Writes [`optimizer_model`] to `path`, whole or not at all.
///
/// # Errors
/// As [`optimizer_model`]; `io` and `disk.full`.
pub fn write_optimizer_model(path: &Path, parameters: usize, options: &AdamW) -> Result<()> {
    crate::files::replace(path, &optimizer_model(parameters, options)?)
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
