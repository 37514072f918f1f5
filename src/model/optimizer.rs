//! AdamW as a graph: the parameters, their gradients and moments in, the next parameters and moments out.
//!
//! `learning_rate` f32 `[1]`, `step` i64 `[1]` (the first step is 1), and for each parameter `p`, in order, `p`, `p_grad`,
//! `p.m`, `p.v` → `p.out`, `p.m.out`, `p.v.out`, all f32 of the parameter's shape; with clipping also `grad_norm` f32 `[]`,
//! the norm of all gradients before it. The formula is that of `torch.optim.AdamW` (Loshchilov and Hutter 2019):
//!
//! ```text
//! m' = β₁m + (1-β₁)g    v' = β₂v + (1-β₂)g²
//! p' = p(1 - lr·λ) - lr/(1-β₁ᵗ) · m' / (√v'/√(1-β₂ᵗ) + ε)
//! ```
//!
//! What depends on the step alone is computed in float64, as PyTorch does: `1 - 0.999ᵗ` in float32 is off by 1e-5 of itself
//! in the first step. Gradients are clipped as `torch.nn.utils.clip_grad_norm_` clips them: `g · min(1, c/(‖g‖+1e-6))`.

use std::sync::Arc;

use crate::config::AdamW;
use crate::error::{Code, Error, Result};
use crate::graph::{Builder, Dim, Graph, ValueId};
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

/// What all parameters share in a step: values of rank 0, but for the type their element type f32.
struct Shared {
    beta1: ValueId,
    beta2: ValueId,
    rest1: ValueId,
    rest2: ValueId,
    eps: ValueId,
    /// `1 - lr·λ`.
    keep: ValueId,
    /// `lr / (1 - β₁ᵗ)`.
    rate: ValueId,
    /// `√(1 - β₂ᵗ)`.
    correction: ValueId,
    /// What gradients are multiplied by.
    clip: Option<ValueId>,
}

/// The graph `optimizer` of one step for these parameters.
///
/// # Errors
/// `config.value` when a constant is impossible; `graph.invalid` when there is no parameter, or when two values would have
/// one name.
pub fn adamw(parameters: &[Parameter], options: &AdamW) -> Result<Graph> {
    options.validate()?;
    let mut g = Builder::new("optimizer");
    let learning_rate = g.input("learning_rate", DType::F32, &[Dim::Known(1)]);
    let step = g.input("step", DType::I64, &[Dim::Known(1)]);
    let inputs: Vec<[ValueId; 4]> = parameters.iter().map(|p| inputs(&mut g, p)).collect::<Result<_>>()?;
    let gradients: Vec<ValueId> = inputs.iter().map(|[_, gradient, ..]| *gradient).collect();
    let norm = options.clip.map(|most| g.scope("clip", |g| clip(g, &gradients, most))).transpose()?;
    let shared = g.scope("step", |g| shared(g, learning_rate, step, options, norm.map(|(_, factor)| factor)))?;
    for (parameter, inputs) in parameters.iter().zip(inputs) {
        let decays = options.weight_decay > 0.0 && decays(&parameter.name, &parameter.shape);
        let next = g.scope(&parameter.name, |g| update(g, inputs, &shared, decays))?;
        for (value, suffix) in next.into_iter().zip(["", ".m", ".v"]) {
            g.output(&format!("{}{suffix}.out", parameter.name), value)?;
        }
    }
    if let Some((norm, _)) = norm {
        g.output("grad_norm", norm)?;
    }
    if parameters.is_empty() {
        return Err(Error::new(Code::GRAPH_INVALID, "an optimizer of no parameter"));
    }
    g.finish()
}

/// The parameter, its gradient, its moments.
fn inputs(g: &mut Builder, parameter: &Parameter) -> Result<[ValueId; 4]> {
    let shape: Vec<Dim> = parameter.shape.iter().map(|&n| Dim::Known(n)).collect();
    let mut ids = Vec::with_capacity(4);
    for suffix in ["", "_grad", ".m", ".v"] {
        let name = format!("{}{suffix}", parameter.name);
        let id = g.input(&name, DType::F32, &shape);
        if g.name(id) != name {
            return Err(Error::new(Code::GRAPH_INVALID, format!("two inputs of the optimizer are named `{name}`")));
        }
        ids.push(id);
    }
    Ok([ids[0], ids[1], ids[2], ids[3]])
}

/// The norm of all gradients together, and what they are to be multiplied by.
fn clip(g: &mut Builder, gradients: &[ValueId], most: f64) -> Result<(ValueId, ValueId)> {
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
    let (eps, most) = (g.scalar(CLIP_EPS), g.scalar(most as f32));
    let bounded = g.add(norm, eps)?;
    // c / max(n, c) is min(1, c / n), and exactly 1 where nothing is clipped.
    let bounded = g.binary("Max", bounded, most)?;
    let factor = g.div(most, bounded)?;
    Ok((norm, factor))
}

fn shared(
    g: &mut Builder,
    learning_rate: ValueId,
    step: ValueId,
    options: &AdamW,
    clip: Option<ValueId>,
) -> Result<Shared> {
    let [beta1, beta2] = options.betas;
    // Rank 0: a scalar parameter times `[1]` would become `[1]`.
    let rate = g.squeeze(learning_rate, &[0])?;
    let rate = g.cast(rate, DType::F64)?;
    let t = g.squeeze(step, &[0])?;
    let t = g.cast(t, DType::F64)?;
    let (one, decay) = (double(g, 1.0), double(g, options.weight_decay));
    let [correction1, correction2] = [beta1, beta2].map(|beta| {
        let beta = double(g, beta);
        let power = g.binary("Pow", beta, t)?;
        g.sub(one, power)
    });
    let corrected = g.div(rate, correction1?)?;
    let correction = g.unary("Sqrt", correction2?)?;
    let lost = g.mul(rate, decay)?;
    let keep = g.sub(one, lost)?;
    Ok(Shared {
        beta1: g.scalar(beta1 as f32),
        beta2: g.scalar(beta2 as f32),
        rest1: g.scalar((1.0 - beta1) as f32),
        rest2: g.scalar((1.0 - beta2) as f32),
        eps: g.scalar(options.eps as f32),
        keep: g.cast(keep, DType::F32)?,
        rate: g.cast(corrected, DType::F32)?,
        correction: g.cast(correction, DType::F32)?,
        clip,
    })
}

/// A float64 constant of rank 0.
fn double(g: &mut Builder, value: f64) -> ValueId {
    let tensor = LazyTensor::new(DType::F64, Vec::new(), Arc::new(value.to_le_bytes().to_vec()));
    g.weight(&format!("const.float64.{value:?}"), tensor)
}

/// The next parameter and its next moments.
fn update(g: &mut Builder, inputs: [ValueId; 4], shared: &Shared, decays: bool) -> Result<[ValueId; 3]> {
    let [parameter, gradient, first, second] = inputs;
    let gradient = match shared.clip {
        Some(factor) => g.mul(gradient, factor)?,
        None => gradient,
    };
    let (kept, added) = (g.mul(first, shared.beta1)?, g.mul(gradient, shared.rest1)?);
    let first = g.add(kept, added)?;
    let square = g.mul(gradient, gradient)?;
    let (kept, added) = (g.mul(second, shared.beta2)?, g.mul(square, shared.rest2)?);
    let second = g.add(kept, added)?;

    let root = g.unary("Sqrt", second)?;
    let root = g.div(root, shared.correction)?;
    let denominator = g.add(root, shared.eps)?;
    let direction = g.div(first, denominator)?;
    let change = g.mul(direction, shared.rate)?;
    let kept = if decays { g.mul(parameter, shared.keep)? } else { parameter };
    Ok([g.sub(kept, change)?, first, second])
}
