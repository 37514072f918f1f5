//! Whether the disk has room for what an export will write: asked before anything long begins, and again when the size is
//! known exactly.

use std::path::Path;

use super::stage::weight_bytes;
use crate::bundle::Precision;
use crate::error::Result;
use crate::files::check_room;
use crate::graph::Graph;
use crate::passes::linears;

/// Refuses what would not fit beside what lies on the disk already.
///
/// # Errors
/// `disk.full`; `io` when the file system does not say.
pub(super) fn check(folder: &Path, need: u64) -> Result<()> {
    check_room(folder, need, "the bundle")
}

/// What a bundle of these graphs takes.
pub(super) fn of_bundle(graphs: &[Graph; 4]) -> u64 {
    // Padding, small weights and the tokenizer take a little more.
    graphs.iter().map(weight_bytes).sum::<u64>() / 100 * 101 + (16 << 20)
}

/// What a bundle of these float32 graphs takes in that precision at least: known before any weight is looked at.
pub(super) fn at_least(graphs: &[Graph; 4], precision: Precision) -> u64 {
    graphs.iter().map(|graph| least(graph, precision)).sum()
}

fn least(graph: &Graph, precision: Precision) -> u64 {
    let halves = weight_bytes(graph) / 2;
    let linear: u64 = linears(graph, 0..graph.nodes.len()).iter().map(|l| 2 * (l.k * l.n) as u64).sum();
    match precision {
        Precision::Fp32 => weight_bytes(graph),
        Precision::Fp16 => halves,
        // Tables and norms take two bytes a weight or more; linear layers one, or half of one.
        Precision::Int8 => halves.saturating_sub(linear / 2),
        Precision::Int4 => halves.saturating_sub(linear / 4 * 3),
    }
}
