//! How much of a GPU's memory a run will take, and in how many groups of blocks each graph is therefore run.
//!
//! As [`super::memory_plan`] for the processor, with what differs on a card: weights are as they are stored (half precision is computed
//! with as it is, and nothing is laid out anew), each session keeps its activations as long as it is loaded, and what CUDA
//! itself needs comes off first. Providers that make engines take no graph of 2 GB or more, whatever memory there is: ONNX
//! Runtime hands each over as one protobuf message.
//!
//! The shares below are reasoned, not measured: this was written without a GPU at hand.
//!
//! Bytes throughout.

use std::ops::Range;

use super::memory_plan::{Group, MemoryBudget, Mode, Planned, PlannedPart, activations, attempts, too_much};
use crate::error::{Code, Error, Result};
use crate::model::Part;

/// What the process takes on the card whatever it runs: the CUDA context with its kernels' code (300 to 500 MB on cards since
/// Ampere), cuBLAS and cuDNN with their workspaces, and room for other programs' windows.
const CONTEXT: u64 = 1 << 30;

/// What a session takes beside weights and activations: its own library handles and their workspaces (cuBLAS asks for 32 MB on
/// Hopper, less elsewhere).
const SESSION: u64 = 64 << 20;

/// Weights of a graph that an engine is made of: less than protobuf's 2 GB, with room for everything else in the message.
const ENGINE_WEIGHTS: u64 = 1_900_000_000;

/// How many times a group's weights lie in the process's memory while its engine is made: the model, the message that is handed
/// over, the engine before it is on the card.
const ENGINE_COPIES: u64 = 3;

/// How much an engine takes for activations, in percent of what is alive at once: its memory is laid out when it is made, and it
/// fuses what would be largest. (CUDA's arena is the processor's: what was measured there holds.)
const ENGINE_PERCENT: u64 = 125;

/// A GPU that a run is planned for.
#[derive(Clone, Debug)]
pub(crate) struct GpuBudget {
    /// Its name, for messages.
    pub name: String,
    /// Bytes that are free on it before anything is loaded.
    pub free: u64,
    /// Whether the provider makes engines.
    pub engines: bool,
}

/// A plan for a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GpuPlan {
    /// How each part is run.
    pub planned: Vec<Planned>,
    /// The expected peak on the card.
    pub peak: u64,
    /// The expected peak of the process's own memory.
    pub host: u64,
    /// Whether there is room for the language model and the image's graphs to be loaded and run at once.
    pub together: bool,
}

/// What loaded graphs take.
#[derive(Clone, Copy, Default)]
struct Footprint {
    /// All that stays.
    resident: u64,
    /// What the language model takes beyond that while it is loaded and run.
    text: u64,
    /// The same of the other graphs, which may be loaded ahead, all of them.
    image: u64,
}

/// Plans all parts; modes give way as on the processor.
///
/// # Errors
/// `device.memory`, naming the part, what is needed and what is free; `memory.limit` when the process's own memory does not
/// do; `runtime.model` when a block is too large to make an engine of.
pub(crate) fn plan(parts: &[PlannedPart<'_>], card: &GpuBudget, room: &MemoryBudget, fixed: bool) -> Result<GpuPlan> {
    let mut last = Err(Error::new(Code::DEVICE_MEMORY, "nothing is to be run"));
    for modes in attempts(parts, fixed) {
        last = attempt(parts, &modes, card, room);
        if last.is_ok() {
            break;
        }
    }
    last
}

fn attempt(parts: &[PlannedPart<'_>], modes: &[Mode], card: &GpuBudget, room: &MemoryBudget) -> Result<GpuPlan> {
    let budget = card.free.saturating_sub(CONTEXT);
    let most = largest_group(card, room);
    let mut taken = Footprint::default();
    let mut planned: Vec<Option<Planned>> = vec![None; parts.len()];
    // What stays is there when the others run.
    for stays in [true, false] {
        for (i, (part, &mode)) in parts.iter().zip(modes).enumerate() {
            if (mode == Mode::Resident) != stays {
                continue;
            }
            let left = if stays { u64::MAX } else { budget.saturating_sub(taken.resident) };
            let groups = cut(part, most, left, card.engines);
            groups.iter().try_for_each(|group| fits_a_group(part, group, most, card, room))?;
            let passing = passing(part, &groups, stays, card.engines);
            if stays {
                let loaded = groups.iter().map(|group| loaded(part, group, card.engines));
                taken.resident = loaded.fold(taken.resident, u64::saturating_add);
            }
            match part.name {
                Part::Text => taken.text = passing,
                _ => taken.image = taken.image.saturating_add(passing),
            }
            let need = taken.resident.saturating_add(passing);
            if need > budget {
                return Err(no_room(&format!("the graph `{}`", part.name), need.saturating_add(CONTEXT), card));
            }
            let group = |segments| Group { segments, prepack: false };
            planned[i] = Some(Planned { mode, groups: groups.into_iter().map(group).collect() });
        }
    }
    let planned: Vec<Planned> = planned.into_iter().flatten().collect();
    let hosts: Vec<u64> = parts.iter().zip(&planned).map(|(part, p)| on_host(part, p, card)).collect();
    let host = room.in_use.saturating_add(hosts.iter().copied().max().unwrap_or(0));
    // Read at once, all are loaded at once.
    let all_hosts = hosts.iter().copied().fold(room.in_use, u64::saturating_add);
    if host > room.limit {
        return Err(too_much("on the GPU", host, room));
    }
    let one = taken.resident.saturating_add(taken.text.max(taken.image));
    let both = taken.resident.saturating_add(taken.text).saturating_add(taken.image);
    if one > budget {
        return Err(no_room("the graphs of the image", one.saturating_add(CONTEXT), card));
    }
    let together = both <= budget && all_hosts <= room.limit;
    let host = if together { all_hosts } else { host };
    Ok(GpuPlan { planned, peak: if together { both } else { one }.saturating_add(CONTEXT), host, together })
}

/// The most that a part takes beyond what stays loaded: a group at a time, with what the one before still holds for its results
/// (a released session's arena lives as long as they do); making an engine has the weights there twice.
fn passing(part: &PlannedPart<'_>, groups: &[Range<usize>], stays: bool, engines: bool) -> u64 {
    let (mut most, mut before) = (0, 0u64);
    for group in groups {
        let building = if engines { weights(part, group) } else { 0 };
        let own = if stays { 0 } else { loaded(part, group, engines).saturating_add(before) };
        most = own.saturating_add(building).max(most);
        before = live(part, group, engines);
    }
    most
}

/// Most bytes of weights in a group.
fn largest_group(card: &GpuBudget, room: &MemoryBudget) -> u64 {
    match card.engines {
        true => ENGINE_WEIGHTS.min(room.limit.saturating_sub(room.in_use) / ENGINE_COPIES),
        false => u64::MAX,
    }
}

/// The fewest groups of consecutive segments with at most `most` bytes of weights that each fit into `left`. A segment that does
/// not stands alone.
fn cut(part: &PlannedPart<'_>, most: u64, left: u64, engines: bool) -> Vec<Range<usize>> {
    let all = 0..part.model.segments().len();
    let takes = |range: &Range<usize>| {
        loaded(part, range, engines).saturating_add(if engines { weights(part, range) } else { 0 })
    };
    if weights(part, &all) <= most && takes(&all) <= left {
        return vec![all];
    }
    // What the group before holds is there too.
    let left = left.saturating_sub(live(part, &all, engines));
    let fits = |range: &Range<usize>| weights(part, range) <= most && takes(range) <= left;
    let mut groups: Vec<Range<usize>> = Vec::new();
    for i in 0..part.model.segments().len() {
        match groups.last_mut() {
            Some(last) if fits(&(last.start..i + 1)) => last.end = i + 1,
            _ => groups.push(i..i + 1),
        }
    }
    groups
}

/// A block of more weights than a group may have cannot be cut further.
fn fits_a_group(
    part: &PlannedPart<'_>,
    range: &Range<usize>,
    most: u64,
    card: &GpuBudget,
    room: &MemoryBudget,
) -> Result<()> {
    let bytes = weights(part, range);
    if bytes <= most {
        return Ok(());
    }
    if card.engines && bytes > ENGINE_WEIGHTS {
        let message = format!(
            "block `{}` of the graph `{}` has {} MB of weights, and TensorRT takes {} MB at most: use --device cuda",
            part.model.segments()[range.start].name,
            part.name,
            bytes / 1_000_000,
            ENGINE_WEIGHTS / 1_000_000
        );
        return Err(Error::new(Code::RUNTIME_MODEL, message));
    }
    Err(too_much(part.name.as_str(), room.in_use.saturating_add(bytes.saturating_mul(ENGINE_COPIES)), room))
}

/// What a group takes on the card as long as it is loaded.
fn loaded(part: &PlannedPart<'_>, range: &Range<usize>, engines: bool) -> u64 {
    weights(part, range).saturating_add(live(part, range, engines)).saturating_add(SESSION)
}

/// What activations take.
fn live(part: &PlannedPart<'_>, range: &Range<usize>, engines: bool) -> u64 {
    match engines {
        true => part.model.live_bytes(range.clone(), &part.extents).saturating_mul(ENGINE_PERCENT) / 100,
        false => activations(part, range.clone()),
    }
}

/// Weights as they are stored, and a thirty-second for what each is rounded up to.
fn weights(part: &PlannedPart<'_>, range: &Range<usize>) -> u64 {
    let bytes = part.model.segments()[range.clone()].iter().map(|s| s.weights).fold(0, u64::saturating_add);
    bytes.saturating_add(bytes / 32)
}

/// What loading takes of the process's own memory: weights pass through it one after the other, each mapped and let go again, in
/// a block at most; for engines whole groups lie there.
fn on_host(part: &PlannedPart<'_>, planned: &Planned, card: &GpuBudget) -> u64 {
    let most = match card.engines {
        true => planned.groups.iter().map(|g| weights(part, &g.segments).saturating_mul(ENGINE_COPIES)).max(),
        false => part.model.segments().iter().map(|s| s.weights).max(),
    };
    most.unwrap_or(0)
}

fn no_room(what: &str, need: u64, card: &GpuBudget) -> Error {
    let (need, free) = (need.div_ceil(1_000_000), card.free / 1_000_000);
    let message = format!(
        "running {what} takes {need} MB of the GPU's memory at least, and {free} MB are free on the {}: close what \
         uses the GPU, or use --device cpu",
        card.name
    );
    Error::new(Code::DEVICE_MEMORY, message)
}

#[cfg(test)]
#[path = "gpu_plan_tests.rs"]
mod tests;
