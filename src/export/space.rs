//! Whether the disk has room for what an export will write: asked before anything long begins, and again when the size is
//! known exactly.

use std::path::Path;

use super::stage::weight_bytes;
use crate::bundle::Precision;
use crate::error::{Code, Error, Result};
use crate::graph::Graph;
use crate::passes::linears;

/// Refuses what would not fit beside what lies on the disk already.
///
/// # Errors
/// `disk.full`; `io` when the file system does not say.
pub(super) fn check(folder: &Path, need: u64) -> Result<()> {
    match free(folder)? {
        Some(free) if need > free => {
            let message = format!("the bundle needs {need} bytes and {free} are free: free some, or choose another -o");
            Err(Error::new(Code::DISK_FULL, message).at(folder))
        }
        _ => Ok(()),
    }
}

/// Free bytes for the user at hand; nothing where that cannot be asked.
#[cfg(unix)]
fn free(folder: &Path) -> Result<Option<u64>> {
    let stat = rustix::fs::statvfs(folder).map_err(|e| Error::io(folder, "cannot ask for the free space", e.into()))?;
    Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize)))
}

#[cfg(not(unix))]
fn free(_: &Path) -> Result<Option<u64>> {
    Ok(None)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        check(folder, 0).unwrap();
        if cfg!(unix) {
            let error = check(folder, u64::MAX).unwrap_err();
            assert_eq!(error.code(), Code::DISK_FULL);
        }
    }
}
