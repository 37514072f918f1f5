//! Linear layers with integer weights.
//!
//! A [`Plan`] says for each linear layer which [`Scheme`] it gets; [`quantize`] makes the graph that computes so. Who
//! decides (statistics, measured errors) lies elsewhere: nothing here runs a model. The scheme is kept apart from the
//! operators that emit it (`emit.rs`): the same blocks of integers serve CPU and CUDA, the same symmetric integers (a scale an
//! output) the CPU's product of bytes and TensorRT's pairs.
//!
//! Attention, norms and softmax stay in float: 8-bit attention was measured to gain nothing that stays accurate.

mod blocks;
mod emit;
mod scheme;
mod weights;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use scheme::Scheme;
pub(super) use weights::{Scales, per_channel};

use crate::error::Result;
use crate::graph::{Graph, Rewrite};
use crate::tensor::DType;

/// What becomes of each linear layer of a graph.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The scheme of each layer by its name; a layer without one stays as it is.
    pub schemes: BTreeMap<String, Scheme>,
    /// How much an error in the weights of each input matters, by layer, where it is known: one number an input.
    pub importance: BTreeMap<String, Arc<[f32]>>,
    /// The largest magnitude of what a layer with [`Scheme::Int8Tensor`] reads, by layer.
    pub ranges: BTreeMap<String, f32>,
    /// Element type of tables that are gathered from (token embeddings).
    pub tables: Option<DType>,
    /// Whether products with weights in blocks read activations as they are: the form of GPUs. A CPU's fast kernels round them
    /// to 8 bits first.
    pub whole_activations: bool,
}

/// The graph with its linear layers as the plan says.
///
/// Layers with [`Scheme::Fp16`] are left to [`super::half`].
///
/// # Errors
/// `graph.invalid` when a scheme does not fit its layer: a mistake of the plan.
pub fn quantize(graph: &Graph, plan: &Plan) -> Result<Graph> {
    let linears = super::linears(graph, 0..graph.nodes.len());
    let mut new = Rewrite::new(graph);
    let mut shared = emit::Shared::default();
    for (i, node) in graph.nodes.iter().enumerate() {
        if let Some(dtype) = plan.tables.filter(|_| is_table(graph, node)) {
            emit::table(&mut new, graph, node, dtype)?;
            continue;
        }
        let linear = linears.iter().find(|l| l.node == i);
        let scheme = linear.and_then(|l| Some((l, *plan.schemes.get(&l.name)?)));
        match scheme {
            None | Some((_, Scheme::Fp32 | Scheme::Fp16 | Scheme::Int8Static)) => new.copy(node)?,
            Some((linear, scheme)) => {
                let y = emit::linear(&mut new, graph, linear, scheme, plan, &mut shared)?;
                new.replace(node, y);
            }
        }
    }
    new.finish()
}

/// A lookup in a table that is stored as float16, widened behind it.
pub(super) fn half_table(new: &mut Rewrite<'_>, graph: &Graph, node: &crate::graph::Node) -> Result<()> {
    emit::table(new, graph, node, DType::F16)
}

/// Whether the node looks rows of a constant matrix up.
pub(super) fn is_table(graph: &Graph, node: &crate::graph::Node) -> bool {
    let table = node.inputs.first().copied().flatten().and_then(|id| graph.value(id).init.as_ref());
    node.op.kind == "Gather" && table.is_some_and(|t| t.shape().len() == 2 && t.dtype().is_float())
}
