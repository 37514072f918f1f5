//! How much of a GPU's memory a run will take, and in how many groups of blocks each graph is therefore run.
//!
//! As [`super::memory_plan`] for the CPU, with these differences: weights take what they take on disk (fp16 is computed
//! as stored, nothing is prepacked), each session keeps its activations as long as it is loaded, and CUDA's own needs
//! are subtracted first. Providers that build engines accept no graph of 2 GB or more, whatever memory there is: ONNX
//! Runtime passes each graph to them as one protobuf message.
//!
//! The shares below are reasoned, not measured: this was written without a GPU at hand.
//!
//! Bytes throughout.

use std::ops::Range;

use super::memory_plan::{Group, MemoryBudget, Mode, Planned, PlannedPart, mode_candidates, over_budget};
use crate::error::{Code, Error, Result};
use crate::model::Part;

/// GPU memory of the process whatever it runs: the CUDA context with its kernels' code (300 to 500 MB on GPUs since
/// Ampere), cuBLAS and cuDNN with their workspaces, and a reserve for other programs' windows.
const CONTEXT: u64 = 1 << 30;

/// GPU memory of a session besides weights and activations: library handles and their workspaces (cuBLAS allocates 32
/// MB on Hopper, less elsewhere).
const SESSION: u64 = 64 << 20;

/// Maximum bytes of weights in a graph that an engine is built from: below protobuf's 2 GB, with a reserve for the rest
/// of the message.
const ENGINE_WEIGHTS: u64 = 1_900_000_000;

/// Copies of a group's weights in host memory while its engine is built: the model, the protobuf message, and the
/// engine before its upload.
const ENGINE_COPIES: u64 = 3;

/// Memory that an engine takes for activations, in percent of the live activations: TensorRT plans it at build time and
/// fuses the largest ones.
const ENGINE_PERCENT: u64 = 125;

/// The same of CUDA's arena, which is the one of the CPU provider: there up to 230 were measured.
const ARENA_PERCENT: u64 = 250;

/// A GPU that a run is planned for.
#[derive(Clone, Debug)]
pub(crate) struct GpuBudget {
    /// The GPU's name, for messages.
    pub name: String,
    /// Bytes that are free on the GPU before anything is loaded.
    pub free: u64,
    /// Whether the provider builds engines.
    pub engines: bool,
}

/// A plan for a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GpuPlan {
    /// How each part is run.
    pub planned: Vec<Planned>,
    /// The expected peak on the GPU.
    pub peak: u64,
    /// The expected peak of host memory.
    pub host: u64,
    /// Whether memory allows the language model and the image's graphs to be loaded and run concurrently.
    pub concurrent: bool,
}

/// GPU memory of loaded graphs.
#[derive(Clone, Copy, Default)]
struct Footprint {
    /// All graphs that stay loaded.
    resident: u64,
    /// The language model's additional peak while it is loaded and run.
    text: u64,
    /// The same of the other graphs together, all of which may be preloaded.
    image: u64,
}

/// Plans all parts; modes are relaxed in the same order as on the CPU.
///
/// # Errors
/// `device.memory`, naming the part, what is needed and what is free; `memory.limit` when host memory does not suffice;
/// `runtime.model` when a block is too large to build an engine from.
pub(crate) fn plan(
    parts: &[PlannedPart<'_>],
    gpu: &GpuBudget,
    host: &MemoryBudget,
    fixed_modes: bool,
) -> Result<GpuPlan> {
    let mut last = Err(Error::internal("no graph was given to be planned"));
    for modes in mode_candidates(parts, fixed_modes) {
        last = plan_with(parts, &modes, gpu, host);
        if last.is_ok() {
            break;
        }
    }
    last
}

fn plan_with(parts: &[PlannedPart<'_>], modes: &[Mode], gpu: &GpuBudget, host: &MemoryBudget) -> Result<GpuPlan> {
    let (planned, footprint) = groups_and_footprint(parts, modes, gpu, host)?;
    let budget = gpu.free.saturating_sub(CONTEXT);
    let host_needs: Vec<u64> = parts.iter().zip(&planned).map(|(part, p)| host_while_loading(part, p, gpu)).collect();
    let host_peak = host.in_use.saturating_add(host_needs.iter().copied().max().unwrap_or(0));
    // When graphs are loaded concurrently, these needs add up.
    let host_concurrent = host_needs.iter().copied().fold(host.in_use, u64::saturating_add);
    if host_peak > host.limit {
        return Err(over_budget("loading onto the GPU", host_peak, host));
    }
    let peak = footprint.resident.saturating_add(footprint.text.max(footprint.image));
    let concurrent_peak = footprint.resident.saturating_add(footprint.text).saturating_add(footprint.image);
    if peak > budget {
        return Err(over_gpu_budget("the graphs of the image", peak.saturating_add(CONTEXT), gpu));
    }
    let concurrent = concurrent_peak <= budget && host_concurrent <= host.limit;
    let (peak, host) = if concurrent { (concurrent_peak, host_concurrent) } else { (peak, host_peak) };
    Ok(GpuPlan { planned, peak: peak.saturating_add(CONTEXT), host, concurrent })
}

/// The groups of each part under these modes, and what they take together.
fn groups_and_footprint(
    parts: &[PlannedPart<'_>],
    modes: &[Mode],
    gpu: &GpuBudget,
    host: &MemoryBudget,
) -> Result<(Vec<Planned>, Footprint)> {
    let budget = gpu.free.saturating_sub(CONTEXT);
    let max_weights = max_group_weights(gpu, host);
    let mut footprint = Footprint::default();
    let mut planned: Vec<Option<Planned>> = vec![None; parts.len()];
    // Resident graphs first: they take memory while the others run.
    for resident in [true, false] {
        for (i, (part, &mode)) in parts.iter().zip(modes).enumerate() {
            if (mode == Mode::Resident) != resident {
                continue;
            }
            let left = if resident { u64::MAX } else { budget.saturating_sub(footprint.resident) };
            let groups = cut(part, max_weights, left, gpu.engines);
            groups.iter().try_for_each(|group| check_group(part, group, max_weights, gpu, host))?;
            let transient = transient_peak(part, &groups, resident, gpu.engines);
            if resident {
                let loaded = groups.iter().map(|group| loaded(part, group, gpu.engines));
                footprint.resident = loaded.fold(footprint.resident, u64::saturating_add);
            }
            match part.part {
                Part::Text => footprint.text = transient,
                _ => footprint.image = footprint.image.saturating_add(transient),
            }
            let need = footprint.resident.saturating_add(transient);
            if need > budget {
                return Err(over_gpu_budget(&format!("`{}`", part.part), need.saturating_add(CONTEXT), gpu));
            }
            let group = |segments| Group { segments, prepack: false };
            planned[i] = Some(Planned { mode, groups: groups.into_iter().map(group).collect(), bytes: 0 });
        }
    }
    Ok((planned.into_iter().flatten().collect(), footprint))
}

/// A part's additional peak beyond resident graphs: one group at a time, plus what the previous group's results still
/// hold (a released session's arena lives as long as they do); building an engine has the weights there twice.
fn transient_peak(part: &PlannedPart<'_>, groups: &[Range<usize>], resident: bool, engines: bool) -> u64 {
    let (mut peak, mut previous) = (0, 0u64);
    for group in groups {
        let building = if engines { weights(part, group) } else { 0 };
        let own = if resident { 0 } else { loaded(part, group, engines).saturating_add(previous) };
        peak = own.saturating_add(building).max(peak);
        previous = live(part, group, engines);
    }
    peak
}

/// Maximum bytes of weights in a group.
fn max_group_weights(gpu: &GpuBudget, host: &MemoryBudget) -> u64 {
    match gpu.engines {
        true => ENGINE_WEIGHTS.min(host.limit.saturating_sub(host.in_use) / ENGINE_COPIES),
        false => u64::MAX,
    }
}

/// The fewest groups of consecutive segments that each have at most `max_weights` bytes of weights and fit into `left`.
/// A segment that does not fit is a group of its own.
fn cut(part: &PlannedPart<'_>, max_weights: u64, left: u64, engines: bool) -> Vec<Range<usize>> {
    let all = 0..part.model.segments().len();
    let need = |range: &Range<usize>| {
        loaded(part, range, engines).saturating_add(if engines { weights(part, range) } else { 0 })
    };
    if weights(part, &all) <= max_weights && need(&all) <= left {
        return vec![all];
    }
    // The previous group's activations are still there.
    let left = left.saturating_sub(live(part, &all, engines));
    let fits = |range: &Range<usize>| weights(part, range) <= max_weights && need(range) <= left;
    let mut groups: Vec<Range<usize>> = Vec::new();
    for i in 0..part.model.segments().len() {
        match groups.last_mut() {
            Some(last) if fits(&(last.start..i + 1)) => last.end = i + 1,
            _ => groups.push(i..i + 1),
        }
    }
    groups
}

/// Refuses a block with more weights than a group may have: blocks are not cut.
fn check_group(
    part: &PlannedPart<'_>,
    range: &Range<usize>,
    max_weights: u64,
    gpu: &GpuBudget,
    host: &MemoryBudget,
) -> Result<()> {
    let bytes = weights(part, range);
    if bytes <= max_weights {
        return Ok(());
    }
    if gpu.engines && bytes > ENGINE_WEIGHTS {
        let message = format!(
            "block `{}` of the graph `{}` has {} MB of weights, TensorRT accepts at most {} MB: use --device cuda",
            part.model.segments()[range.start].name,
            part.part,
            bytes / 1_000_000,
            ENGINE_WEIGHTS / 1_000_000
        );
        return Err(Error::new(Code::RUNTIME_MODEL, message));
    }
    Err(over_budget(part.part.as_str(), host.in_use.saturating_add(bytes.saturating_mul(ENGINE_COPIES)), host))
}

/// GPU memory of a group while it is loaded.
fn loaded(part: &PlannedPart<'_>, range: &Range<usize>, engines: bool) -> u64 {
    weights(part, range).saturating_add(live(part, range, engines)).saturating_add(SESSION)
}

/// GPU memory of activations.
fn live(part: &PlannedPart<'_>, range: &Range<usize>, engines: bool) -> u64 {
    match engines {
        true => part.model.live_bytes(range.clone(), &part.dimensions).saturating_mul(ENGINE_PERCENT) / 100,
        false => part.model.live_bytes(range.clone(), &part.dimensions).saturating_mul(ARENA_PERCENT) / 100,
    }
}

/// Weights as stored, and one thirty-second for allocation rounding.
fn weights(part: &PlannedPart<'_>, range: &Range<usize>) -> u64 {
    let bytes = part.model.segments()[range.clone()].iter().map(|s| s.weights).fold(0, u64::saturating_add);
    bytes.saturating_add(bytes / 32)
}

/// Host memory while loading: weights pass through one after the other, each mapped and released, one block at most; to
/// build engines, a whole group at once.
fn host_while_loading(part: &PlannedPart<'_>, planned: &Planned, gpu: &GpuBudget) -> u64 {
    let bytes = match gpu.engines {
        true => planned.groups.iter().map(|g| weights(part, &g.segments).saturating_mul(ENGINE_COPIES)).max(),
        false => part.model.segments().iter().map(|s| s.weights).max(),
    };
    bytes.unwrap_or(0)
}

fn over_gpu_budget(what: &str, need: u64, gpu: &GpuBudget) -> Error {
    let (need, free) = (need.div_ceil(1_000_000), gpu.free / 1_000_000);
    let message = format!(
        "{what} needs {need} MB of GPU memory at least, {free} MB are free on the {}: close other programs on the GPU, \
         or use --device cpu",
        gpu.name
    );
    Error::new(Code::DEVICE_MEMORY, message)
}

#[cfg(test)]
#[path = "gpu_plan_tests.rs"]
mod tests;
