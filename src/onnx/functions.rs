//! Model-local functions for the two operators that only Microsoft's training runtime has.
//!
//! Flows in: a graph, or AdamW's constants. Flows out: ONNX functions of standard operators. That runtime
//! (onnxruntime-training 1.19.2) finds its own kernels and ignores the functions; any other inlines them.
//!
//! A function bakes its constants. It still declares the node's attributes, without which the node would be refused, and a
//! node must ask for all of its results.

use super::OPSET;
use super::proto::{AttributeProto, FunctionProto, NodeProto, OperatorSetIdProto, TensorProto, attribute_type};
use crate::config::AdamW;
use crate::graph::{Domain, Graph};
use crate::tensor::DType;

/// Adds a gradient to the buffer that holds the sum of several.
const ACCUMULATOR: &str = "InPlaceAccumulatorV2";

/// AdamW over sequences of tensors.
pub(super) const OPTIMIZER: &str = "AdamWOptimizer";

/// What it takes and gives, in the order that the runtime checks. All but the first two are sequences.
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
    f.float("zero", 0.0);
    f.node("Where", &["reset", "zero", "buffer"], "kept_or_none");
    f.node("Shape", &["buffer"], "shape");
    f.node("Reshape", &["kept_or_none", "shape"], "kept");
    f.node("Add", &["kept", "gradient"], "sum");
    f.node("Not", &["reset"], "no_reset");
    f.node("Or", &["reset", "no_reset"], "flag");
    f.finish(ACCUMULATOR, &["buffer", "gradient", "reset"], &["flag", "sum"], &[])
}

/// AdamW over sequences, a tensor after the other. What depends on the step alone is computed in float64, as in PyTorch.
pub(super) fn adamw(parameters: usize, options: &AdamW, attributes: &[AttributeProto]) -> FunctionProto {
    let mut f = Body(Vec::new());
    let [beta1, beta2] = options.betas;
    for (name, value) in [("one", 1.0), ("beta1", beta1), ("beta2", beta2), ("decay", options.weight_decay)] {
        f.double(name, value);
    }
    let singles =
        [("keep1", beta1), ("keep2", beta2), ("add1", 1.0 - beta1), ("add2", 1.0 - beta2), ("eps", options.eps)];
    singles.into_iter().for_each(|(name, value)| f.float(name, value));
    // Rank 0: a parameter of rank 0 times `[1]` would become `[1]`.
    for (input, scalar) in [("learning_rate", "rate"), ("step", "t")] {
        let single = format!("{scalar}.scalar");
        f.node("Squeeze", &[input], &single);
        f.cast(&single, DType::F64, scalar);
    }
    f.node("Pow", &["beta1", "t"], "power1");
    f.node("Pow", &["beta2", "t"], "power2");
    f.node("Sub", &["one", "power1"], "rest1");
    f.node("Sub", &["one", "power2"], "rest2");
    f.node("Div", &["rate", "rest1"], "corrected_rate");
    f.node("Sqrt", &["rest2"], "root_correction");
    f.node("Mul", &["rate", "decay"], "lost");
    f.node("Sub", &["one", "lost"], "left");
    for (double, single) in [("corrected_rate", "size"), ("root_correction", "correction"), ("left", "keep")] {
        f.cast(double, DType::F32, single);
    }
    for index in 0..parameters {
        update(&mut f, index);
    }
    for (list, of) in
        [("params.out", "next_p"), ("first_order_moments.out", "next_m"), ("second_order_moments.out", "next_v")]
    {
        let parts: Vec<String> = (0..parameters).map(|i| format!("{of}{i}")).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        f.node("SequenceConstruct", &parts, list);
    }
    f.node("Equal", &["step", "step"], "updated_flag");
    f.finish(OPTIMIZER, &OPTIMIZER_INPUTS, &OPTIMIZER_OUTPUTS, attributes)
}

/// The next parameter and moments of that index.
fn update(f: &mut Body, index: usize) {
    let at = |name: &str| format!("{name}{index}");
    f.constant(&at("index"), DType::I64, (index as i64).to_le_bytes().to_vec());
    let mut node = |kind: &str, inputs: [&str; 2], output: &str| {
        let output = at(output);
        let inputs = if kind == "Sqrt" { &inputs[..1] } else { &inputs[..] };
        f.node(kind, inputs, &output);
        output
    };
    let [_, _, lists @ ..] = OPTIMIZER_INPUTS;
    let names = ["p", "g", "m", "v"];
    let [p, g, m, v] = [0, 1, 2, 3].map(|i| node("SequenceAt", [lists[i], &at("index")], names[i]));
    let (kept, added) = (node("Mul", [&m, "keep1"], "kept_m"), node("Mul", [&g, "add1"], "added_m"));
    let first = node("Add", [&kept, &added], "next_m");
    let square = node("Mul", [&g, &g], "square");
    let (kept, added) = (node("Mul", [&v, "keep2"], "kept_v"), node("Mul", [&square, "add2"], "added_v"));
    let second = node("Add", [&kept, &added], "next_v");
    let root = node("Sqrt", [&second, ""], "root");
    let root = node("Div", [&root, "correction"], "corrected");
    let denominator = node("Add", [&root, "eps"], "denominator");
    let direction = node("Div", [&first, &denominator], "direction");
    let change = node("Mul", [&direction, "size"], "change");
    let kept = node("Mul", [&p, "keep"], "kept_p");
    node("Sub", [&kept, &change], "next_p");
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

    fn float(&mut self, output: &str, value: f64) {
        self.constant(output, DType::F32, (value as f32).to_le_bytes().to_vec());
    }

    fn double(&mut self, output: &str, value: f64) {
        self.constant(output, DType::F64, value.to_le_bytes().to_vec());
    }

    fn cast(&mut self, input: &str, to: DType, output: &str) {
        let to = int("to", to.onnx().into());
        self.0.push(NodeProto { attribute: vec![to], ..node("Cast", &[input], &[output]) });
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
