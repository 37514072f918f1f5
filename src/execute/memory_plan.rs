//! How much memory a run will take, and in how many groups of blocks each graph is therefore run.
//!
//! Everything is planned before anything is loaded. What counts is resident memory: weights, whether they lie in a mapped
//! file or were laid out anew, activations, the scan, and what the process has already. A graph that does not fit as a
//! whole is cut into groups of consecutive blocks ([`SegmentedModel`]), each loaded, run and released, with the same
//! result bit for bit. What does not fit at all is `memory.limit`.
//!
//! Bytes throughout.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Serialize;

use crate::error::{Code, Error, Result};
use crate::model::Part;
use crate::onnx::SegmentedModel;

/// What ONNX Runtime itself takes for a loaded graph, and what planning leaves to chance.
const SLACK: u64 = 48 << 20;

/// How many times the live activations its allocator takes, in percent: it grows in powers of two, and operators need room
/// inside. Measured 130 (adapter) to 230 (language model of 7B's geometry, 512 tokens; 64 to 1024 tokens: 180 to 200).
const ALLOCATED_PERCENT: u64 = 250;

/// Graphs with no more bytes of weights than this are laid out anew also for a single run: measured, it takes 0.07 s for the
/// int8 vision transformer (98 MB) and saves 0.15 s of the run; in fp32 (350 MB) 0.2 s, and saves nothing.
const SMALL: u64 = 128 << 20;

/// How loaded graphs are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// For a few inputs a process: large weights stay in their mapped files, and each graph is released when it has run.
    OneShot,
    /// For many: weights are laid out anew once, which makes runs faster, and graphs stay loaded.
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

/// Blocks that are loaded together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Which segments of the graph.
    pub segments: Range<usize>,
    /// Whether weights are laid out anew at loading.
    pub prepack: bool,
}

/// One graph that will be run.
pub(crate) struct PlannedPart<'a> {
    pub name: Part,
    pub model: &'a SegmentedModel,
    /// What would suit it.
    pub mode: Mode,
    /// Extents of its named dimensions, at most.
    pub extents: BTreeMap<&'static str, u64>,
}

/// How one graph is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub mode: Mode,
    pub groups: Vec<Group>,
}

/// The room that there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryBudget {
    /// Most resident memory of the whole process.
    pub limit: u64,
    /// Whether a user named it; else it is what the machine has left.
    pub explicit: bool,
    /// What is taken whatever is run: the process as it is, and scans.
    pub in_use: u64,
}

/// Plans all parts; gives a plan each and the expected peak.
///
/// Where not all can stay resident, the language model goes first, then the others, unless `fixed` says that the modes
/// were explicit for.
///
/// # Errors
/// `memory.limit`, naming the part, what it needs at least and what there is.
pub(crate) fn plan(parts: &[PlannedPart<'_>], room: &MemoryBudget, fixed: bool) -> Result<(Vec<Planned>, u64)> {
    let mut last = Err(Error::new(Code::MEMORY_LIMIT, "nothing is to be run"));
    for modes in attempts(parts, fixed) {
        last = attempt(parts, &modes, room);
        if last.is_ok() {
            break;
        }
    }
    last
}

/// The modes to try, in order.
pub(crate) fn attempts(parts: &[PlannedPart<'_>], fixed: bool) -> Vec<Vec<Mode>> {
    let wanted: Vec<Mode> = parts.iter().map(|p| p.mode).collect();
    let without_text = parts.iter().map(|p| if p.name == Part::Text { Mode::OneShot } else { p.mode }).collect();
    let mut attempts = vec![wanted];
    if !fixed {
        attempts.extend([without_text, vec![Mode::OneShot; parts.len()]]);
    }
    attempts
}

/// The peak when the graphs that the image goes through are loaded while the language model runs, where there is room for
/// that.
pub(crate) fn ahead(parts: &[PlannedPart<'_>], planned: &[Planned], peak: u64, room: &MemoryBudget) -> Option<u64> {
    // What stays resident is part of the peak already.
    let loaded = parts.iter().zip(planned).filter(|(part, p)| part.name != Part::Text && p.mode == Mode::OneShot);
    let bytes = loaded.map(|(part, p)| match p.groups.as_slice() {
        [one] => weights(part.model, one.segments.clone(), one.prepack),
        _ => 0,
    });
    let peak = bytes.fold(peak, u64::saturating_add);
    (peak <= room.limit).then_some(peak)
}

/// Plans under these modes.
fn attempt(parts: &[PlannedPart<'_>], modes: &[Mode], room: &MemoryBudget) -> Result<(Vec<Planned>, u64)> {
    let whole = |p: &PlannedPart<'_>| 0..p.model.segments().len();
    let stays = |(p, mode): (&PlannedPart<'_>, &Mode)| {
        if *mode == Mode::Resident { weights(p.model, whole(p), true) } else { 0 }
    };
    let resident: u64 = parts.iter().zip(modes).map(stays).sum();
    let taken = room.in_use.saturating_add(resident);
    let (mut planned, mut peak) = (Vec::new(), taken);
    for (part, &mode) in parts.iter().zip(modes) {
        let groups = match mode {
            Mode::Resident => vec![Group { segments: whole(part), prepack: true }],
            Mode::OneShot => groups(part, room.limit.saturating_sub(taken)),
        };
        for group in &groups {
            let live = activations(part, group.segments.clone());
            let weights = match mode {
                Mode::Resident => 0,
                Mode::OneShot => weights(part.model, group.segments.clone(), group.prepack),
            };
            let need = taken.saturating_add(weights).saturating_add(live).saturating_add(SLACK);
            if need > room.limit {
                return Err(too_much(part.name.as_str(), need, room));
            }
            peak = peak.max(need);
        }
        planned.push(Planned { mode, groups });
    }
    Ok((planned, peak))
}

/// The fewest groups that each fit into `budget`; a segment that does not fit alone stands alone.
fn groups(part: &PlannedPart<'_>, budget: u64) -> Vec<Group> {
    let segments = part.model.segments();
    let need = |range: Range<usize>, prepack| {
        let live = activations(part, range.clone());
        weights(part.model, range, prepack).saturating_add(live).saturating_add(SLACK)
    };
    // Of the whole graph, not of a group: the result shall not depend on the groups.
    let small = segments.iter().map(|s| s.weights).fold(0, u64::saturating_add) <= SMALL;
    let alike = |prepack: bool| segments.iter().all(|s| (small || s.blocked) == prepack);
    for prepack in [false, true] {
        // What most runs need, without looking at every beginning.
        if alike(prepack) && need(0..segments.len(), prepack) <= budget {
            return vec![Group { segments: 0..segments.len(), prepack }];
        }
    }
    let mut groups: Vec<Group> = Vec::new();
    for (i, segment) in segments.iter().enumerate() {
        // Weights in blocks are slow unless they are laid out anew; others need not be for a run or two.
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

/// What activations take while these segments run.
pub(crate) fn activations(part: &PlannedPart<'_>, range: Range<usize>) -> u64 {
    part.model.live_bytes(range, &part.extents).saturating_mul(ALLOCATED_PERCENT) / 100
}

/// What the weights of these segments take when they are loaded.
fn weights(model: &SegmentedModel, range: Range<usize>, prepack: bool) -> u64 {
    let segments = &model.segments()[range];
    let bytes: u64 = segments.iter().map(|s| s.weights.saturating_add(s.widened)).fold(0, u64::saturating_add);
    // Originals and what is made of them are there together for a moment, a weight at a time; blocks of integers grow.
    let more = if !prepack {
        0
    } else if segments.iter().any(|s| s.blocked) {
        bytes / 2
    } else {
        segments.iter().map(|s| s.weights).max().unwrap_or(0)
    };
    bytes.saturating_add(more)
}

pub(crate) fn too_much(part: &str, need: u64, room: &MemoryBudget) -> Error {
    let mb = |bytes: u64| bytes.div_ceil(1_000_000);
    let (need, limit) = (mb(need), room.limit / 1_000_000);
    let message = if room.explicit {
        format!(
            "running the graph `{part}` takes {need} MB at least, and {limit} MB are allowed: allow more with --max-memory"
        )
    } else {
        format!(
            "running the graph `{part}` takes {need} MB at least, and {limit} MB can be had on this machine: free some memory"
        )
    };
    Error::new(Code::MEMORY_LIMIT, message)
}

/// Resident memory of this process; 0 where the system does not say.
pub(crate) fn resident() -> u64 {
    status("VmRSS:").unwrap_or(0)
}

/// The most that was resident since the process began, where the system says.
pub(crate) fn peak() -> Option<u64> {
    status("VmHWM:")
}

/// What more can be had without pushing others out: of the machine, of the process's control group, and of the process's own
/// limits (`ulimit -v`, `ulimit -d`; ONNX Runtime maps weights privately and writable, which counts for both). Where the
/// system does not say it is taken for boundless.
pub(crate) fn available() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| kilobytes(&text, "MemAvailable:"));
    let own =
        [("Max address space", "VmSize:"), ("Max data size", "VmData:")].map(|(limit, used)| own_room(limit, used));
    [machine, group_room()].into_iter().chain(own).flatten().min().unwrap_or(u64::MAX)
}

/// What is left of one of the process's limits.
fn own_room(limit: &str, used: &str) -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix(limit))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(status(used)?))
}

/// What is left of the control group's limit (version 2), counting file pages that can be dropped as free.
fn group_room() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let name = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let folder = std::path::Path::new("/sys/fs/cgroup").join(name.trim_start_matches('/'));
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let (limit, used) = (number("memory.max")?, number("memory.current")?);
    let stat = read("memory.stat")?;
    let droppable = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok());
    Some(limit.saturating_sub(used.saturating_sub(droppable.unwrap_or(0))))
}

fn status(field: &str) -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/self/status").ok()?, field)
}

/// `NAME   123 kB` in bytes.
fn kilobytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
