//! How much memory a run will take, and in how many groups of blocks each graph is therefore run.
//!
//! Everything is planned before anything is loaded. Resident memory counts: weights, whether mapped from a file or
//! prepacked, activations, the scan, and what the process uses already. A graph that does not fit as a whole is cut
//! into groups of consecutive blocks ([`SegmentedModel`]), each loaded, run and released, with the same result bit for
//! bit. What does not fit at all is `memory.limit`. [`super::gpu_plan`] does the same for a GPU.
//!
//! Bytes throughout.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Serialize;

use super::host_memory::LimitedBy;
use crate::error::{Code, Error, Result};
use crate::model::Part;
use crate::onnx::SegmentedModel;

/// What a session takes besides weights and activations, most of it once a process: ONNX Runtime's code and tables as
/// they are first used, threads, the graph. Measured 11 to 15 MB.
const SESSION: u64 = 16 << 20;

/// Memory that ONNX Runtime takes for activations, in percent of [`SegmentedModel::allocated_bytes`]: operators need
/// scratch memory besides. Measured 109 to 112 beyond what a run of 8 tokens takes (`examples/memory_plans.rs`).
const ALLOCATED_PERCENT: u64 = 120;

/// Graphs with no more bytes of weights than this are prepacked even for a single run: measured, prepacking takes 0.07
/// s for the int8 vision transformer (98 MB) and saves 0.15 s of the run; in fp32 (350 MB) 0.2 s, and saves nothing.
const SMALL: u64 = 128 << 20;

/// How loaded graphs are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// For occasional use: large weights stay in their mapped files, and each graph is released after its run.
    OneShot,
    /// For many inputs: weights are prepacked once, which makes runs faster, and graphs stay loaded.
    Resident,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::OneShot => "one-shot",
            Self::Resident => "resident",
        })
    }
}

/// Consecutive blocks of a graph that are loaded together as one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// The segments of the graph ([`SegmentedModel::segments`]).
    pub segments: Range<usize>,
    /// Whether ONNX Runtime prepacks the weights when it loads them.
    pub prepack: bool,
}

/// A graph that the plan is made for.
pub(crate) struct PlannedPart<'a> {
    pub part: Part,
    pub model: &'a SegmentedModel,
    /// The preferred mode.
    pub mode: Mode,
    /// The maximum size of each named dimension.
    pub dimensions: BTreeMap<&'static str, u64>,
}

/// How one graph is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub mode: Mode,
    /// Run one after the other; one group is the whole graph.
    pub groups: Vec<Group>,
    /// Bytes while it runs: weights, activations and what a session needs besides.
    pub bytes: u64,
}

/// The memory that a run may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryBudget {
    /// Maximum resident memory of the whole process.
    pub limit: u64,
    /// What sets the limit.
    pub limited_by: LimitedBy,
    /// What is in use whatever is run: the process as it is, and scans.
    pub in_use: u64,
}

impl MemoryBudget {
    /// Whether the caller set the limit; else it is what the machine has left.
    pub fn is_explicit(&self) -> bool {
        self.limited_by == LimitedBy::Request
    }
}

/// Plans all parts; gives a plan each and the expected peak.
///
/// Where not all can stay resident, the language model goes first, then the others, unless `fixed` says that the modes
/// were explicit for.
///
/// # Errors
/// `memory.limit`, naming the part, what it needs at least and what there is.
pub(crate) fn plan(parts: &[PlannedPart<'_>], budget: &MemoryBudget, fixed_modes: bool) -> Result<(Vec<Planned>, u64)> {
    let mut last = Err(Error::internal("no graph was given to be planned"));
    for modes in mode_candidates(parts, fixed_modes) {
        last = plan_with(parts, &modes, budget);
        if last.is_ok() {
            break;
        }
    }
    last
}

/// The modes to try, in order.
pub(crate) fn mode_candidates(parts: &[PlannedPart<'_>], fixed_modes: bool) -> Vec<Vec<Mode>> {
    let wanted: Vec<Mode> = parts.iter().map(|p| p.mode).collect();
    let without_text = parts.iter().map(|p| if p.part == Part::Text { Mode::OneShot } else { p.mode }).collect();
    let mut candidates = vec![wanted];
    if !fixed_modes {
        candidates.extend([without_text, vec![Mode::OneShot; parts.len()]]);
    }
    candidates
}

/// The expected peak when the image's graphs are loaded while the language model runs; none where memory does not allow
/// it.
pub(crate) fn peak_when_preloading(
    parts: &[PlannedPart<'_>],
    planned: &[Planned],
    peak: u64,
    budget: &MemoryBudget,
) -> Option<u64> {
    // What stays resident is part of the peak already.
    let preloaded = parts.iter().zip(planned).filter(|(part, p)| part.part != Part::Text && p.mode == Mode::OneShot);
    let bytes = preloaded.map(|(part, p)| match p.groups.as_slice() {
        [one] => weights(part.model, one.segments.clone(), one.prepack),
        _ => 0,
    });
    let peak = bytes.fold(peak, u64::saturating_add);
    (peak <= budget.limit).then_some(peak)
}

/// The plan for the given modes.
fn plan_with(parts: &[PlannedPart<'_>], modes: &[Mode], budget: &MemoryBudget) -> Result<(Vec<Planned>, u64)> {
    let whole = |p: &PlannedPart<'_>| 0..p.model.segments().len();
    let stays = |(p, mode): (&PlannedPart<'_>, &Mode)| {
        if *mode == Mode::Resident { weights(p.model, whole(p), true) } else { 0 }
    };
    let resident: u64 = parts.iter().zip(modes).map(stays).sum();
    let in_use = budget.in_use.saturating_add(resident);
    let (mut planned, mut peak) = (Vec::new(), in_use);
    for (part, &mode) in parts.iter().zip(modes) {
        let groups = match mode {
            Mode::Resident => vec![Group { segments: whole(part), prepack: true }],
            Mode::OneShot => fewest_groups(part, budget.limit.saturating_sub(in_use)),
        };
        let mut bytes = 0;
        for group in &groups {
            let live = activations(part, group.segments.clone());
            let weights = weights(part.model, group.segments.clone(), group.prepack);
            let running = live.saturating_add(SESSION);
            bytes = bytes.max(weights.saturating_add(running));
            let loaded = if mode == Mode::Resident { 0 } else { weights };
            let need = in_use.saturating_add(loaded).saturating_add(running);
            if need > budget.limit {
                return Err(over_budget(part.part.as_str(), need, budget));
            }
            peak = peak.max(need);
        }
        planned.push(Planned { mode, groups, bytes });
    }
    Ok((planned, peak))
}

/// The fewest groups that each fit into `budget`; a segment that does not fit alone stands alone.
fn fewest_groups(part: &PlannedPart<'_>, budget: u64) -> Vec<Group> {
    let segments = part.model.segments();
    let need = |range: Range<usize>, prepack| {
        let live = activations(part, range.clone());
        weights(part.model, range, prepack).saturating_add(live).saturating_add(SESSION)
    };
    // Of the whole graph, not of a group: the result must not depend on the groups.
    let small = segments.iter().map(|s| s.weights).fold(0, u64::saturating_add) <= SMALL;
    let alike = |prepack: bool| segments.iter().all(|s| (small || s.blocked) == prepack);
    for prepack in [false, true] {
        // The common case, without trying every group.
        if alike(prepack) && need(0..segments.len(), prepack) <= budget {
            return vec![Group { segments: 0..segments.len(), prepack }];
        }
    }
    let mut groups: Vec<Group> = Vec::new();
    for (i, segment) in segments.iter().enumerate() {
        // Block-quantized weights are slow unless prepacked; others need no prepacking for a run or two.
        let prepack = small || segment.blocked;
        let fits =
            groups.last().is_some_and(|g| g.prepack == prepack && need(g.segments.start..i + 1, g.prepack) <= budget);
        match groups.last_mut() {
            Some(group) if fits => group.segments.end = i + 1,
            _ => groups.push(Group { segments: i..i + 1, prepack }),
        }
    }
    groups
}

/// Memory of activations while these segments run: what ONNX Runtime allocates, what enters, and the copy of what
/// leaves. The adapter's input is the scan, which is counted for the run as a whole.
fn activations(part: &PlannedPart<'_>, range: Range<usize>) -> u64 {
    let allocated = part.model.allocated_bytes(range.clone(), &part.dimensions).saturating_mul(ALLOCATED_PERCENT) / 100;
    let [entering, leaving] = part.model.boundary_bytes(range, &part.dimensions);
    let entering = if part.part == Part::Adapter { 0 } else { entering };
    allocated.saturating_add(entering).saturating_add(leaving)
}

/// Memory of these segments' weights when they are loaded.
fn weights(model: &SegmentedModel, range: Range<usize>, prepack: bool) -> u64 {
    let segments = &model.segments()[range];
    let bytes: u64 = segments.iter().map(|s| s.weights.saturating_add(s.widened)).fold(0, u64::saturating_add);
    // While a weight is prepacked, original and copy exist together; block-quantized weights grow. Of small integer
    // weights the allocator does not give the originals' memory back: measured twice their bytes.
    let more = if !prepack {
        0
    } else if segments.iter().any(|s| s.blocked) {
        bytes / 2
    } else {
        let integers = segments.iter().map(|s| s.integers).fold(0, u64::saturating_add);
        segments.iter().map(|s| s.weights).max().unwrap_or(0).max(integers)
    };
    // Two of them: the memory of the one before is not back when the next is made.
    let at_once = segments.iter().map(|s| s.dequantized).max().unwrap_or(0).saturating_mul(2);
    bytes.saturating_add(more).saturating_add(at_once)
}

/// What a graph whose weights are read takes besides, while it is loaded: its file, and of the largest segment the copy
/// that ONNX Runtime makes on the way. Measured (`memory_plans --read-weights`, two of 7B's
/// layers in fp32 and int8): plans are 1.1 to 1.5 times the peak with it, 0.6 to 0.9 times without.
pub(crate) fn bytes_while_read(model: &SegmentedModel) -> u64 {
    let weights = || model.segments().iter().map(|segment| segment.weights);
    weights().fold(0, u64::saturating_add).saturating_add(weights().max().unwrap_or(0))
}

/// `memory.limit`: `what` needs more than there is.
pub(crate) fn over_budget(what: &str, need: u64, budget: &MemoryBudget) -> Error {
    let (need, available) = (need.div_ceil(1_000_000), budget.limit / 1_000_000);
    let remedy = budget.limited_by.remedy();
    let limited_by = budget.limited_by;
    let message = format!("`{what}` needs {need} MB at least, {available} MB available ({limited_by}): {remedy}");
    Error::new(Code::MEMORY_LIMIT, message)
}

#[cfg(test)]
#[path = "memory_plan_tests.rs"]
mod tests;
