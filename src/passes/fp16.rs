//! fp16 where it is safe.
//!
//! Products (linear layers, convolutions, attention) and what lies between them compute in float16; what sums over many
//! elements or needs the range stays in float32: the residual stream, norms, softmax, reductions, pooling. So the
//! largest values of a language model, which flow along the residual stream, are never rounded to 11 bits nor cut at
//! 65504. Nodes that exceeded that in calibration, or whose weights do, are kept in float32 by name.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use half::f16;

use crate::error::Result;
use crate::graph::{Graph, Node, Rewrite, Tail, ValueId};
use crate::tensor::{DType, LazyTensor};

/// Maximum magnitude of a value in calibration for its node to compute in float16: half of float16's range, since other
/// inputs will be larger.
pub const FP16_RANGE: f32 = 32752.0;

/// What rounding to float16 does to a weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rounded {
    /// Values other than 0 that become 0.
    pub flushed: u64,
    /// Values that become infinite.
    pub overflowed: u64,
}

/// Counts what rounding to float16 loses; nothing is read when the weight was float16 all along.
///
/// # Errors
/// When the weight cannot be read.
pub fn rounding(weight: &LazyTensor) -> Result<Rounded> {
    let mut found = Rounded::default();
    if weight.comes_from(DType::F16) {
        return Ok(found);
    }
    weight.cast(DType::F32).stream(&mut |chunk| {
        for bytes in chunk.as_chunks::<4>().0 {
            let value = f32::from_le_bytes(*bytes);
            let rounded = f16::from_f32(value);
            found.flushed += u64::from(value != 0.0 && rounded.to_f32() == 0.0);
            found.overflowed += u64::from(rounded.is_infinite());
        }
        Ok(())
    })?;
    Ok(found)
}

/// Nodes that would compute in float16 and read a weight that does not fit it, and how many weights would become 0 in
/// all.
///
/// # Errors
/// When a weight cannot be read.
pub fn unfit_for_fp16(graph: &Graph) -> Result<(BTreeSet<String>, u64)> {
    let fp16 = choose(graph, &BTreeSet::new());
    let (mut unfit, mut flushed) = (BTreeSet::new(), 0);
    for (node, fp16) in graph.nodes.iter().zip(fp16) {
        if !fp16 && !super::quantize::is_table(graph, node) {
            continue;
        }
        for id in node.inputs.iter().flatten() {
            let Some(weight) = graph.value(*id).init.as_ref().filter(|t| t.dtype().is_float()) else { continue };
            let lost = rounding(weight)?;
            flushed += lost.flushed;
            if lost.overflowed > 0 {
                unfit.insert(node.name.clone());
            }
        }
    }
    Ok((unfit, flushed))
}

/// The names of the nodes that would compute in float16.
pub fn fp16_nodes(graph: &Graph, keep: &BTreeSet<String>) -> BTreeSet<String> {
    let fp16 = choose(graph, keep);
    graph.nodes.iter().zip(fp16).filter(|(_, fp16)| *fp16).map(|(n, _)| n.name.clone()).collect()
}

/// Nodes with an operand or a result beyond [`FP16_RANGE`], by the minimum and maximum of each value (`ranges`, by
/// name).
pub fn exceeds_fp16(graph: &Graph, ranges: &BTreeMap<String, (f32, f32)>) -> BTreeSet<String> {
    let beyond = |id: &ValueId| {
        let range = ranges.get(&graph.value(*id).name);
        range.is_some_and(|(low, high)| !(low.abs() <= FP16_RANGE && high.abs() <= FP16_RANGE))
    };
    let touched = |n: &&Node| n.inputs.iter().flatten().chain(&n.outputs).any(beyond);
    graph.nodes.iter().filter(touched).map(|n| n.name.clone()).collect()
}

/// The graph in fp16, but for the nodes in `keep`. Inputs and outputs stay float32; weights of float16 nodes
/// and looked-up tables are stored as float16.
///
/// # Errors
/// `graph.invalid`.
pub fn to_fp16(graph: &Graph, keep: &BTreeSet<String>) -> Result<Graph> {
    let fp16 = choose(graph, keep);
    let mut pass = Pass { graph, new: Rewrite::new(graph), casts: HashMap::new(), scope: String::new() };
    let starts: BTreeSet<usize> = graph.segments(Tail::Separate).into_iter().map(|s| s.nodes.start).collect();
    for (i, (node, fp16)) in graph.nodes.iter().zip(fp16).enumerate() {
        if starts.contains(&i) {
            // A block is a graph of its own still: it casts for itself.
            pass.casts.clear();
        }
        if fp16 {
            pass.node(node, DType::F16)?;
        } else if super::quantize::is_table(graph, node) && !keep.contains(&node.name) {
            super::quantize::fp16_table(&mut pass.new, graph, node)?;
        } else {
            pass.node(node, DType::F32)?;
        }
    }
    pass.scope = "output".to_owned();
    for &id in &graph.outputs {
        let single = pass.operand(id, DType::F32)?;
        pass.new.set(id, single);
    }
    pass.new.finish()
}

/// Whether each node computes in float16.
fn choose(graph: &Graph, keep: &BTreeSet<String>) -> Vec<bool> {
    let scores = attention_scores(graph);
    let mut made: HashSet<ValueId> = HashSet::new();
    graph
        .nodes
        .iter()
        .map(|node| {
            let fp16 = !keep.contains(&node.name) && wants_fp16(graph, node, &made, &scores);
            if fp16 {
                made.extend(&node.outputs);
            }
            fp16
        })
        .collect()
}

/// Nodes that multiply activations for or by a softmax.
fn attention_scores(graph: &Graph) -> HashSet<ValueId> {
    let softmaxes = graph.nodes.iter().filter(|n| n.op.kind == "Softmax");
    let mut found = HashSet::new();
    for softmax in softmaxes {
        found.extend(&softmax.outputs);
        let mut behind = softmax.inputs[0];
        // Past the mask that is added.
        while let Some(node) = behind.and_then(|id| graph.producer(id)).map(|i| &graph.nodes[i]) {
            found.extend(&node.outputs);
            behind = if node.op.kind == "Add" { node.inputs[0] } else { None };
        }
    }
    found
}

fn wants_fp16(graph: &Graph, node: &Node, made: &HashSet<ValueId>, scores: &HashSet<ValueId>) -> bool {
    let constant = |id: &ValueId| graph.value(*id).init.is_some();
    let float = |id: &&ValueId| graph.value(**id).ty.dtype.is_float();
    let computed: Vec<ValueId> =
        node.inputs.iter().flatten().filter(float).filter(|id| !constant(id)).copied().collect();
    let all_fp16 = !computed.is_empty() && computed.iter().all(|id| made.contains(id));
    match node.op.kind {
        "Conv" | "Gemm" | "MultiHeadAttention" | "MatMulNBits" | "DequantizeLinear" => true,
        "MatMul" => {
            let integers =
                |id: &ValueId| graph.producer(*id).is_some_and(|i| graph.nodes[i].op.kind == "DequantizeLinear");
            let weight = node.inputs[1].as_ref().is_some_and(|id| constant(id) || integers(id));
            let attends = node.outputs.iter().chain(node.inputs[0].as_ref()).any(|id| scores.contains(id));
            weight || attends
        }
        // A bias; a sum of two activations is the residual stream.
        "Add" => {
            let vector = |id: &ValueId| graph.value(*id).ty.shape.len() == 1;
            all_fp16 && node.inputs.iter().flatten().any(|id| constant(id) && vector(id))
        }
        "Gelu" | "Sigmoid" | "Relu" | "Mul" | "QuantizeLinear" => all_fp16,
        "Reshape" | "Transpose" | "Split" | "Concat" | "Slice" | "Squeeze" | "Unsqueeze" | "Pad" => all_fp16,
        _ => false,
    }
}

struct Pass<'a> {
    graph: &'a Graph,
    new: Rewrite<'a>,
    /// Values of this block in the element type that they were not made in.
    casts: HashMap<(ValueId, DType), ValueId>,
    /// Name of the node at hand, which its casts get: they belong to its block.
    scope: String,
}

impl Pass<'_> {
    /// The value in that type; operands that are no floats as they are.
    fn operand(&mut self, old: ValueId, dtype: DType) -> Result<ValueId> {
        let value = self.graph.value(old);
        if !value.ty.dtype.is_float() {
            return self.new.value(old);
        }
        if let Some(&cast) = self.casts.get(&(old, dtype)) {
            return Ok(cast);
        }
        let id = match &value.init {
            Some(init) if dtype != value.ty.dtype => {
                let name = format!("{}.{}", value.name, if dtype == DType::F16 { "fp16" } else { "fp32" });
                self.new.builder.weight(&name, init.cast(dtype).checked_finite(&value.name))
            }
            _ => {
                let now = self.new.value(old)?;
                if self.new.builder.ty(now).dtype == dtype {
                    return Ok(now);
                }
                let scope = self.scope.clone();
                self.new.builder.scope(&scope, |g| g.cast(now, dtype))?
            }
        };
        self.casts.insert((old, dtype), id);
        Ok(id)
    }

    fn node(&mut self, node: &Node, dtype: DType) -> Result<()> {
        self.scope.clone_from(&node.name);
        let inputs = node.inputs.iter().map(|id| id.map(|id| self.operand(id, dtype)).transpose());
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        self.new.copy_with(node, &inputs)
    }
}
