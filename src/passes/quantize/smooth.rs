//! Moves the magnitude of outlier channels of an activation into weights, offline and exactly (SmoothQuant).
//!
//! Where `y = x W` and channel `j` of `x` is large for every token, a per-token scale leaves little precision for the
//! other channels. `x_j / s_j` and `s_j W_j` give the same `y` (Xiao et al. 2023), and the division costs nothing at
//! run time where it can be folded into the operator before `x`: the gain of a norm, the value rows of attention, the
//! up-projection of a gated MLP. Factors are powers of two, so that nothing is rounded.

use std::sync::Arc;

use crate::error::{Code, Error, Result};
use crate::graph::{Graph, Node, ValueId};
use crate::passes::{Linear, linears};

/// Where the factors of an activation can go.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Site {
    /// Vectors that multiply (or shift) the activation element by element.
    Vectors(Vec<ValueId>),
    /// A weight `[k, n]` whose columns are the channels of the activation; heads that share key and value heads repeat
    /// them.
    Columns { weight: ValueId, sharing: Sharing },
}

/// Channel `(head, copy, element)` of the activation is column `(head, element)` of the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sharing {
    copies: usize,
    width: usize,
}

/// Smallest and largest exponent of a factor: beyond, float16 would overflow or underflow.
const EXPONENTS: std::ops::RangeInclusive<f32> = -10.0..=10.0;

/// The factors `[k]` that smoothing can use in place of `wanted` `[k]` at the activation `input`: rounded to powers of
/// two, and equal where channels share a column of the weight before them. `None` where they cannot be folded into the
/// operator before `input`, or something other than linear layers reads it: then the activation cannot be smoothed.
pub fn smoothing_factors(graph: &Graph, input: ValueId, wanted: &[f32]) -> Option<Vec<f32>> {
    let site = site(graph, input)?;
    let mut logs: Vec<f32> = wanted.iter().map(|f| f.max(f32::MIN_POSITIVE).log2()).collect();
    if let Site::Columns { sharing: Sharing { copies, width }, .. } = site {
        for head in logs.chunks_mut(copies * width) {
            for element in 0..width {
                let mean = (0..copies).map(|c| head[c * width + element]).sum::<f32>() / copies as f32;
                (0..copies).for_each(|c| head[c * width + element] = mean);
            }
        }
    }
    Some(logs.into_iter().map(|l| l.round().clamp(*EXPONENTS.start(), *EXPONENTS.end()).exp2()).collect())
}

/// Divides the channels of the activation `input` by `factors` `[k]` and multiplies the rows of every weight `[k, n]`
/// that reads it, in place: the weights' tensors in `graph` become lazily scaled ones, its nodes stay as they are.
///
/// # Errors
/// `graph.invalid` when the factors cannot be folded (see [`smoothing_factors`]).
pub fn smooth(graph: &mut Graph, input: ValueId, factors: &[f32]) -> Result<()> {
    let Some(site) = site(graph, input) else {
        let name = &graph.value(input).name;
        return Err(Error::new(
            Code::GRAPH_INVALID,
            format!("the factors of `{name}` cannot be folded into the operator before it"),
        ));
    };
    let inverse: Vec<f32> = factors.iter().map(|f| 1.0 / f).collect();
    let readers: Vec<ValueId> = readers(graph, input).into_iter().flatten().map(|l| l.weight).collect();
    let factors: Arc<[f32]> = factors.into();
    for weight in readers {
        scale(graph, weight, &factors, true);
    }
    match site {
        Site::Vectors(vectors) => {
            let inverse: Arc<[f32]> = inverse.into();
            vectors.into_iter().for_each(|v| scale(graph, v, &inverse, true));
        }
        Site::Columns { weight, sharing: Sharing { copies, width } } => {
            let own = inverse.chunks(copies * width).flat_map(|head| head[..width].iter().copied());
            let own: Arc<[f32]> = own.collect();
            scale(graph, weight, &own, false);
        }
    }
    graph.verify()
}

fn scale(graph: &mut Graph, weight: ValueId, factors: &Arc<[f32]>, rows: bool) {
    let init = &mut graph.values[weight.0].init;
    *init = init.take().map(|t| if rows { t.scaled_rows(factors) } else { t.scaled_columns(factors) });
}

/// The linear layers that read `input`; `None` when something else reads it too.
fn readers(graph: &Graph, input: ValueId) -> Option<Vec<Linear>> {
    let all: Vec<Linear> = linears(graph, 0..graph.nodes.len()).into_iter().filter(|l| l.input == input).collect();
    // A weight that others read too cannot be scaled for one of them.
    (graph.uses(input) == all.len() && all.iter().all(|l| graph.uses(l.weight) == 1)).then_some(all)
}

fn site(graph: &Graph, input: ValueId) -> Option<Site> {
    readers(graph, input)?;
    let node = made_by(graph, input)?;
    let vector = |id: ValueId| graph.value(id).init.as_ref().is_some_and(|t| t.shape().len() == 1);
    let operand = |i: usize| node.inputs.get(i).copied().flatten();
    match node.op.kind {
        "LayerNormalization" => {
            let vectors = [operand(1)?, operand(2)?];
            vectors.iter().all(|&v| vector(v) && graph.uses(v) == 1).then(|| Site::Vectors(vectors.to_vec()))
        }
        "Mul" => {
            let (a, b) = (operand(0)?, operand(1)?);
            if let Some(gain) = [a, b].into_iter().find(|&v| vector(v) && graph.uses(v) == 1) {
                return Some(Site::Vectors(vec![gain]));
            }
            // A gated MLP: the factor that a linear layer makes, not the gate (which is read twice).
            [b, a].into_iter().find_map(|v| columns(graph, v, Sharing { copies: 1, width: 1 }))
        }
        "MultiHeadAttention" => columns(graph, operand(2)?, Sharing { copies: 1, width: 1 }),
        "Reshape" => attention(graph, node),
        _ => None,
    }
}

/// The site in the weight of the linear layer that makes `value`, when nothing else reads either.
fn columns(graph: &Graph, value: ValueId, sharing: Sharing) -> Option<Site> {
    let node = made_by(graph, value)?;
    let weight = node.inputs.get(1).copied().flatten()?;
    let constant = graph.value(weight).init.as_ref().is_some_and(|t| t.shape().len() == 2);
    let alone = graph.uses(value) == 1 && graph.uses(weight) == 1;
    (node.op.kind == "MatMul" && constant && alone).then_some(Site::Columns { weight, sharing })
}

/// Attention as `model::llama` writes it: heads are joined behind `weights · values`, the values split before it.
fn attention(graph: &Graph, join: &Node) -> Option<Site> {
    let operand = |node: &Node, i: usize| node.inputs.get(i).copied().flatten();
    let step = |id: ValueId, kind: &str| made_by(graph, id).filter(|n| n.op.kind == kind && graph.uses(id) == 1);
    let transposed = step(operand(join, 0)?, "Transpose").filter(|n| n.op.get_ints("perm") == [0, 3, 1, 2, 4])?;
    let product = step(operand(transposed, 0)?, "MatMul")?;
    // `[batch, kv_heads, copies, tokens, head_dim]`.
    let copies = graph.value(product.outputs[0]).ty.shape.get(2)?.known()?;
    let values = step(operand(product, 1)?, "Transpose").filter(|n| n.op.get_ints("perm") == [0, 2, 3, 1, 4])?;
    let split = step(operand(values, 0)?, "Reshape")?;
    let width = graph.value(split.outputs[0]).ty.shape.last()?.known()?;
    columns(graph, operand(split, 0)?, Sharing { copies, width })
}

fn made_by(graph: &Graph, value: ValueId) -> Option<&Node> {
    graph.producer(value).map(|i| &graph.nodes[i])
}
