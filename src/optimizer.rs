//! AdamW as a graph, and as the file that other runtimes train with: both are made of one formula.
//!
//! Layer 4. Inputs: `learning_rate` f32 `[1]`, `step` i64 `[1]` (the first step is 1), and for each parameter `p`, in
//! order, `p`, `p_grad`, `p.m`, `p.v` → `p.out`, `p.m.out`, `p.v.out`, all f32 of the parameter's shape; with clipping
//! also `grad_norm` f32 `[]`, the norm of all gradients before it. The formula is that of `torch.optim.AdamW`
//! (Loshchilov and Hutter 2019):
//!
//! ```text
//! m' = β₁m + (1-β₁)g    v' = β₂v + (1-β₂)g²
//! p' = p(1 - lr·λ) - lr/(1-β₁ᵗ) · m' / (√v'/√(1-β₂ᵗ) + ε)
//! ```
//!
//! What depends on the step alone is computed in float64, as PyTorch does: `1 - 0.999ᵗ` in float32 is off by 1e-5 of
//! itself in the first step. Gradients are clipped as `torch.nn.utils.clip_grad_norm_` clips them: `g · min(1,
//! c/(‖g‖+1e-6))`.
//!
//! ```
//! use brain_adapter::config::AdamW;
//! use brain_adapter::optimizer::{Parameter, adamw};
//!
//! let weight = Parameter { name: "classifier.weight".into(), shape: vec![3, 64] };
//! let graph = adamw(&[weight], &AdamW::default())?;
//! assert_eq!(graph.outputs.len(), 3);
//! # Ok::<(), brain_adapter::Error>(())
//! ```

use std::path::Path;
use std::sync::Arc;

use crate::config::AdamW;
use crate::error::{Code, Error, Result};
use crate::graph::{Attribute, Builder, Dim, Graph, Op, ValueId};
use crate::tensor::{DType, LazyTensor};

/// What PyTorch adds to the norm that it clips by.
const CLIP_EPS: f32 = 1e-6;

/// A tensor that is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its PyTorch state-dict key.
    pub name: String,
    /// Its shape, `[]` for a scalar such as `logit_scale`.
    pub shape: Vec<usize>,
}

/// Whether weight decay applies: to weights of layers, not to biases, norms and `logit_scale`. Those are the tensors of
/// rank 0 and 1, and what is called a bias.
pub fn decays(name: &str, shape: &[usize]) -> bool {
    shape.len() > 1 && !name.ends_with("bias")
}

/// The graph `optimizer` of one step for these parameters.
///
/// # Errors
/// `config.value` when a constant is impossible; `graph.invalid` when there is no parameter, or when two values would
/// have one name.
pub fn adamw(parameters: &[Parameter], options: &AdamW) -> Result<Graph> {
    let slots = parameters.iter().map(|p| Slot {
        shape: p.shape.iter().map(|&n| Dim::Known(n)).collect(),
        decays: options.weight_decay > 0.0 && decays(&p.name, &p.shape),
        inputs: ["", "_grad", ".m", ".v"].map(|suffix| format!("{}{suffix}", p.name)),
        outputs: ["", ".m", ".v"].map(|suffix| format!("{}{suffix}.out", p.name)),
    });
    step_graph(&slots.collect::<Vec<_>>(), options)
}

/// `optimizer_model.onnx`, for Microsoft's training runtime (onnxruntime-training 1.19.2) and any other: one step of
/// AdamW over sequences of as many float32 tensors as there are `parameters`, whose shapes and order are the caller's.
/// Inputs: `learning_rate` f32 `[1]`, `step` i64 `[1]` (the first is 1), `params`, `gradients`, `first_order_moments`,
/// `second_order_moments`. Outputs: `updated_flag` bool `[1]`, always true, and the sequences `params.out`,
/// `first_order_moments.out`, `second_order_moments.out`; Microsoft's runtime updates the tensors themselves and reads
/// none of these.
///
/// The formula is `torch.optim.AdamW`'s (`adam_mode` 0), with one weight decay for every parameter.
///
/// # Errors
/// `config.value` when a constant is impossible, and when gradients are to be clipped, for which the runtime has no
/// place; `graph.invalid` when there is no parameter.
pub fn optimizer_model(parameters: usize, options: &AdamW) -> Result<Vec<u8>> {
    if let Some(clip) = options.clip {
        let message = format!("AdamW's clip is {clip}, expected none: Microsoft's training runtime does not clip");
        return Err(Error::new(Code::CONFIG_VALUE, message));
    }
    crate::onnx::optimizer_model(&over_sequences(parameters, options)?, options)
}

/// Writes [`optimizer_model`] to `path`, whole or not at all.
///
/// # Errors
/// As [`optimizer_model`]; `io` and `disk.full`.
pub fn write_optimizer_model(path: &Path, parameters: usize, options: &AdamW) -> Result<()> {
    crate::files::replace(path, &optimizer_model(parameters, options)?)
}

/// The step for tensors whose shapes are known to the run alone, which all decay: a function's body, which has no
/// shapes.
fn over_sequences(parameters: usize, options: &AdamW) -> Result<Graph> {
    let slots = (0..parameters).map(|i| Slot {
        shape: Vec::new(),
        decays: true,
        inputs: ["p", "g", "m", "v"].map(|name| format!("{name}{i}")),
        outputs: ["next_p", "next_m", "next_v"].map(|name| format!("{name}{i}")),
    });
    step_graph(&slots.collect::<Vec<_>>(), options)
}

/// A parameter's place in the graph.
struct Slot {
    shape: Vec<Dim>,
    decays: bool,
    /// Names of the parameter, its gradient, its first and second moment.
    inputs: [String; 4],
    /// Names of the next parameter and its next moments.
    outputs: [String; 3],
}

fn step_graph(slots: &[Slot], options: &AdamW) -> Result<Graph> {
    options.validate()?;
    if slots.is_empty() {
        return Err(Error::new(Code::GRAPH_INVALID, "an optimizer of no parameter"));
    }
    let mut g = Builder::new("optimizer");
    let learning_rate = g.input("learning_rate", DType::F32, &[Dim::Known(1)]);
    let step = g.input("step", DType::I64, &[Dim::Known(1)]);
    let mut inputs: Vec<[ValueId; 4]> = Vec::with_capacity(slots.len());
    for slot in slots {
        let mut input = |i: usize| g.unique_input(&slot.inputs[i], DType::F32, &slot.shape);
        inputs.push([input(0)?, input(1)?, input(2)?, input(3)?]);
    }
    let gradients: Vec<ValueId> = inputs.iter().map(|[_, gradient, ..]| *gradient).collect();
    let clipped = options.clip.map(|limit| g.scope("clip", |g| clip(g, &gradients, limit))).transpose()?;
    let shared = g.scope("step", |g| shared(g, learning_rate, step, options))?;
    let factor = clipped.map(|(_, factor)| factor);
    for (i, (slot, inputs)) in slots.iter().zip(inputs).enumerate() {
        let next = g.scope(&slot.inputs[0], |g| update(g, inputs, &shared, factor, slot.decays, i))?;
        for (value, name) in next.into_iter().zip(&slot.outputs) {
            g.output(name, value)?;
        }
    }
    if let Some((norm, _)) = clipped {
        g.output("grad_norm", norm)?;
    }
    g.finish()
}

/// The norm of all gradients together, and what they are to be multiplied by.
fn clip(g: &mut Builder, gradients: &[ValueId], limit: f64) -> Result<(ValueId, ValueId)> {
    let mut squares = Vec::with_capacity(gradients.len());
    for &gradient in gradients {
        let square = g.mul(gradient, gradient)?;
        let axes: Vec<i64> = (0..).take(g.ty(gradient).shape.len()).collect();
        // To ONNX, a reduction over no axes is one over all: there are none of a scalar.
        let sum = if axes.is_empty() { square } else { g.reduce_sum(square, &axes, false)? };
        squares.push(g.reshape(sum, &[1])?);
    }
    let all = g.concat(&squares, 0)?;
    let sum = g.reduce_sum(all, &[0], false)?;
    let norm = g.unary("Sqrt", sum)?;
    let (eps, limit) = (g.scalar(CLIP_EPS), g.scalar(limit as f32));
    let bounded = g.add(norm, eps)?;
    // c / max(n, c) is min(1, c / n), and exactly 1 where nothing is clipped.
    let bounded = g.binary("Max", bounded, limit)?;
    let factor = g.div(limit, bounded)?;
    Ok((norm, factor))
}

/// What all parameters share in a step: values of rank 0, f32.
struct Shared {
    /// β₁ and β₂.
    keep1: ValueId,
    keep2: ValueId,
    /// 1-β₁ and 1-β₂.
    add1: ValueId,
    add2: ValueId,
    eps: ValueId,
    /// `1 - lr·λ`.
    keep: ValueId,
    /// `lr / (1 - β₁ᵗ)`.
    size: ValueId,
    /// `√(1 - β₂ᵗ)`.
    correction: ValueId,
}

/// Adds a node whose result has this name.
fn named(g: &mut Builder, op: Op, inputs: &[ValueId], name: &str) -> Result<ValueId> {
    let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
    let value = g.node(op, &inputs)?;
    g.rename(value, name);
    Ok(value)
}

/// Names and the order of nodes are those of the function in `optimizer_model.onnx`.
fn shared(g: &mut Builder, learning_rate: ValueId, step: ValueId, options: &AdamW) -> Result<Shared> {
    let [beta1, beta2] = options.betas;
    let mut double = |name: &str, value: f64| {
        g.weight(name, LazyTensor::new(DType::F64, Vec::new(), Arc::new(value.to_le_bytes().to_vec())))
    };
    let (one, b1, b2) = (double("one", 1.0), double("beta1", beta1), double("beta2", beta2));
    let decay = double("decay", options.weight_decay);
    let mut single = |name: &str, value: f64| g.weight(name, LazyTensor::from_f32(&[], &[value as f32]));
    let (keep1, keep2) = (single("keep1", beta1), single("keep2", beta2));
    let (add1, add2) = (single("add1", 1.0 - beta1), single("add2", 1.0 - beta2));
    let eps = single("eps", options.eps);
    // Rank 0: a parameter of rank 0 times `[1]` would become `[1]`.
    let rate = named(g, Op::new("Squeeze"), &[learning_rate], "rate.scalar")?;
    let rate = cast(g, rate, DType::F64, "rate")?;
    let t = named(g, Op::new("Squeeze"), &[step], "t.scalar")?;
    let t = cast(g, t, DType::F64, "t")?;
    let mut op = |kind, inputs: &[ValueId], name: &str| named(g, Op::new(kind), inputs, name);
    let (power1, power2) = (op("Pow", &[b1, t], "power1")?, op("Pow", &[b2, t], "power2")?);
    let (rest1, rest2) = (op("Sub", &[one, power1], "rest1")?, op("Sub", &[one, power2], "rest2")?);
    let corrected = op("Div", &[rate, rest1], "corrected_rate")?;
    let root = op("Sqrt", &[rest2], "root_correction")?;
    let lost = op("Mul", &[rate, decay], "lost")?;
    let left = op("Sub", &[one, lost], "left")?;
    let size = cast(g, corrected, DType::F32, "size")?;
    let correction = cast(g, root, DType::F32, "correction")?;
    let keep = cast(g, left, DType::F32, "keep")?;
    Ok(Shared { keep1, keep2, add1, add2, eps, keep, size, correction })
}

fn cast(g: &mut Builder, x: ValueId, to: DType, name: &str) -> Result<ValueId> {
    named(g, Op::new("Cast").with("to", Attribute::Type(to)), &[x], name)
}

/// The next parameter and its next moments; names are those of the parameter with this index.
fn update(
    g: &mut Builder,
    [p, gradient, m, v]: [ValueId; 4],
    shared: &Shared,
    clip: Option<ValueId>,
    decays: bool,
    index: usize,
) -> Result<[ValueId; 3]> {
    let mut op = |kind, inputs: &[ValueId], name: &str| named(g, Op::new(kind), inputs, &format!("{name}{index}"));
    let gradient = clip.map_or(Ok(gradient), |factor| op("Mul", &[gradient, factor], "clipped"))?;
    let (kept, added) = (op("Mul", &[m, shared.keep1], "kept_m")?, op("Mul", &[gradient, shared.add1], "added_m")?);
    let first = op("Add", &[kept, added], "next_m")?;
    let square = op("Mul", &[gradient, gradient], "square")?;
    let (kept, added) = (op("Mul", &[v, shared.keep2], "kept_v")?, op("Mul", &[square, shared.add2], "added_v")?);
    let second = op("Add", &[kept, added], "next_v")?;

    let root = op("Sqrt", &[second], "root")?;
    let corrected = op("Div", &[root, shared.correction], "corrected")?;
    let denominator = op("Add", &[corrected, shared.eps], "denominator")?;
    let direction = op("Div", &[first, denominator], "direction")?;
    let change = op("Mul", &[direction, shared.size], "change")?;
    let kept = if decays { op("Mul", &[p, shared.keep], "kept_p")? } else { p };
    Ok([op("Sub", &[kept, change], "next_p")?, first, second])
}
