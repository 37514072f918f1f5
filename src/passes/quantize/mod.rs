//! Linear layers with integer weights.
//!
//! A [`Plan`] assigns each linear layer a [`Scheme`]; [`quantize`] builds the graph that computes so; [`smooth`] moves
//! outlier channels of an activation into the weights first. Who decides (statistics, measured errors) lies elsewhere:
//! nothing here runs a model. The scheme is kept apart from the operators that emit it (`emit.rs`): the same blocks of
//! integers serve CPU and CUDA, the same symmetric integers (one scale per output) the CPU's integer product and
//! TensorRT's quantize-dequantize pairs.
//!
//! Attention, norms and softmax stay in float: 8-bit attention was measured to gain nothing that stays accurate.

mod blocks;
mod emit;
mod rounding;
mod scheme;
mod smooth;
mod weights;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use scheme::Scheme;
pub use smooth::{smooth, smoothing_factors};
pub(super) use weights::{Scales, per_channel};

use crate::error::Result;
use crate::graph::{Graph, Rewrite};
use crate::tensor::DType;

/// How each linear layer of a graph is to compute.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The scheme of each layer by its name; a layer without one stays as it is.
    pub schemes: BTreeMap<String, Scheme>,
    /// How much an error in the weights of each input matters, by layer, where it is known: `[k]`.
    pub importance: BTreeMap<String, Arc<[f32]>>,
    /// The largest magnitude of the activation of a layer with [`Scheme::Int8Tensor`], by layer.
    pub max_abs: BTreeMap<String, f32>,
    /// Element type of tables that are gathered from (token embeddings).
    pub tables: Option<DType>,
    /// Whether products with block-quantized weights read activations as they are: the form of GPUs. A CPU's fast
    /// kernels quantize them to 8 bits first.
    pub whole_activations: bool,
}

/// A new graph with the linear layers of `graph` as the plan assigns them.
///
/// Layers with [`Scheme::Fp16`] are left to [`super::to_fp16`].
///
/// # Errors
/// `graph.invalid` when a scheme does not fit its layer: a mistake of the plan.
pub fn quantize(graph: &Graph, plan: &Plan) -> Result<Graph> {
    let linears = super::linears(graph, 0..graph.nodes.len());
    let mut emitter = emit::Emitter::new(graph, plan);
    for (i, node) in graph.nodes.iter().enumerate() {
        if let Some(dtype) = plan.tables.filter(|_| is_table(graph, node)) {
            emit::table(&mut emitter.new, graph, node, dtype)?;
            continue;
        }
        let linear = linears.iter().find(|l| l.node == i);
        let scheme = linear.and_then(|l| Some((l, *plan.schemes.get(&l.name)?)));
        match scheme {
            None | Some((_, Scheme::Fp32 | Scheme::Fp16 | Scheme::Int8Static)) => emitter.new.copy(node)?,
            Some((linear, scheme)) => {
                let y = emitter.linear(linear, scheme)?;
                emitter.new.replace(node, y);
            }
        }
    }
    emitter.new.finish()
}

/// A lookup in a table that is stored as float16; the looked-up rows are cast back.
pub(super) fn fp16_table(new: &mut Rewrite<'_>, graph: &Graph, node: &crate::graph::Node) -> Result<()> {
    emit::table(new, graph, node, DType::F16)
}

/// Whether the node gathers rows of a constant matrix of floats.
pub(super) fn is_table(graph: &Graph, node: &crate::graph::Node) -> bool {
    let table = node.inputs.first().copied().flatten().and_then(|id| graph.value(id).init.as_ref());
    node.op.kind == "Gather" && table.is_some_and(|t| t.shape().len() == 2 && t.dtype().is_float())
}
