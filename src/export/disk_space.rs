//! Whether the disk has space for what an export will write: checked before anything long begins, and again when the
//! size is known exactly.

use std::path::Path;

use crate::bundle::Precision;
use crate::error::Result;
use crate::files::check_room;
use crate::graph::Graph;
use crate::passes::linears;

/// Bytes of all weights of a graph.
pub(super) fn weight_bytes(graph: &Graph) -> u64 {
    let tensors = graph.initializers().into_iter().filter_map(|id| graph.value(id).init.as_ref());
    tensors.map(|t| t.byte_len() as u64).sum()
}

/// Refuses a bundle that would not fit into the free space.
///
/// # Errors
/// `disk.full`; `io` when the file system does not report its free space.
pub(super) fn check(folder: &Path, need: u64) -> Result<()> {
    check_room(folder, need, "the bundle")
}

/// Bytes of a bundle of these graphs.
pub(super) fn of_bundle<'a>(graphs: impl Iterator<Item = &'a Graph>) -> u64 {
    // Padding, small weights and the tokenizer take a little more.
    graphs.map(weight_bytes).sum::<u64>() / 100 * 101 + (16 << 20)
}

/// Minimum bytes of a bundle of these float32 graphs in that precision: known before any weight is read.
pub(super) fn at_least<'a>(graphs: impl Iterator<Item = &'a Graph>, precision: Precision) -> u64 {
    graphs.map(|graph| least(graph, precision)).sum()
}

fn least(graph: &Graph, precision: Precision) -> u64 {
    let fp16 = weight_bytes(graph) / 2;
    let linear: u64 = linears(graph, 0..graph.nodes.len()).iter().map(|l| 2 * (l.k * l.n) as u64).sum();
    match precision {
        Precision::Fp32 => weight_bytes(graph),
        Precision::Fp16 => fp16,
        // Tables and norms take two bytes per weight or more; linear layers one, or half of one.
        Precision::Int8 => fp16.saturating_sub(linear / 2),
        Precision::Int4 => fp16.saturating_sub(linear / 4 * 3),
    }
}
