//! How a run went: which stages ran where, how much memory was planned and used, how long each step took.
//!
//! Plain data, serialized as the field `run` of a result.

use std::time::Instant;

use serde::Serialize;
use serde::ser::SerializeMap;

use super::memory_plan::Mode;
use crate::error::{Warning, WarningCode};
use crate::runtime::{LibraryFile, Placement, SelectedDevice};

/// How a run really went.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Run {
    /// The device that was chosen, and why.
    pub chosen: Option<SelectedDevice>,
    /// The files of ONNX Runtime that were loaded, and whether they are pinned builds: the library first.
    pub libraries: Vec<LibraryFile>,
    /// Each graph that memory was planned for.
    pub stages: Vec<StageRun>,
    /// The features that were in the cache and not computed: `vision`, `text`.
    pub from_cache: Vec<&'static str>,
    /// Memory of the process.
    pub memory_bytes: Memory,
    /// Memory of the GPU, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_memory_bytes: Option<GpuMemory>,
    /// How the large weights were verified: `hashed` in this process, `unchanged since hashed`, or, where laid-out
    /// copies of the cache were used, `unchanged since laid out`.
    pub weights: &'static str,
    /// Milliseconds from opening the bundle to the first run of a graph; none where none was run.
    #[serde(serialize_with = "rounded")]
    pub started_ms: Option<f64>,
    /// Milliseconds by the clock, since the bundle was opened or the last answer was given.
    #[serde(serialize_with = "rounded")]
    pub wall_ms: Option<f64>,
}

/// To microseconds.
fn rounded<S: serde::Serializer>(ms: &Option<f64>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    ms.map(|ms| (ms * 1e3).round() / 1e3).serialize(serializer)
}

/// How a graph was run.
#[derive(Clone, Debug, Serialize)]
pub struct StageRun {
    /// The graph.
    pub part: String,
    /// The provider that it is loaded for.
    pub provider: &'static str,
    /// How it was kept.
    pub mode: Mode,
    /// In how many groups of blocks, each loaded and released.
    pub groups: usize,
    /// Bytes of host memory that were planned for it while it runs: its weights, activations and what ONNX Runtime
    /// needs besides. 0 where a GPU computes.
    pub planned_bytes: u64,
    /// Whether its weights came laid out from the cache.
    pub prepacked: bool,
    /// Which provider computed which nodes, where it was asked for and the graph was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
}

/// Resident memory of the process, in bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Memory {
    /// What was allowed, where a limit was named.
    pub limit: Option<u64>,
    /// What the run could take, and what limits that: `--max-memory`, the machine, a control group or a `ulimit`.
    pub available: u64,
    /// See [`Self::available`].
    pub limited_by: &'static str,
    /// The peak that was planned.
    pub planned: u64,
    /// What of it is in use whatever is run: the process as it was when the plan was made, and scans.
    pub in_use: u64,
    /// The peak so far, where the system tells it.
    pub peak: Option<u64>,
}

impl Memory {
    /// The warning that more was used than was allowed: what a graph does itself can be known only afterwards.
    pub fn exceeded(&self) -> Option<Warning> {
        exceeded(self.limit?, self.peak?, Some(self.planned))
    }
}

/// `memory_exceeded`, if a peak is above a limit; bytes.
pub(crate) fn exceeded(limit: u64, peak: u64, planned: Option<u64>) -> Option<Warning> {
    let mb = |bytes: u64| bytes.div_ceil(1_000_000);
    let planned = planned.map_or(String::new(), |planned| format!(", planned were {} MB", mb(planned)));
    let (taken, allowed) = (mb(peak), limit / 1_000_000);
    let message = format!("the process took {taken} MB at its peak, --max-memory allows {allowed} MB{planned}");
    (peak > limit).then(|| Warning::new(WarningCode::MEMORY_EXCEEDED, message))
}

/// Memory of a GPU, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct GpuMemory {
    /// What was free before anything was loaded.
    pub free: u64,
    /// The peak that was planned.
    pub planned: u64,
}

/// Milliseconds by stage, in the order in which stages first ran. Where stages run at once, on a GPU, their sum is more
/// than the clock shows ([`Run::wall_ms`]).
#[derive(Clone, Debug, Default)]
pub struct Timing(Vec<(String, f64)>);

impl Timing {
    /// Adds to a stage.
    pub fn add(&mut self, stage: &str, milliseconds: f64) {
        match self.0.iter_mut().find(|(name, _)| name == stage) {
            Some((_, total)) => *total += milliseconds,
            None => self.0.push((stage.to_owned(), milliseconds)),
        }
    }

    /// Adds all of another's stages.
    pub fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(stage, ms)| self.add(stage, *ms));
    }

    /// Stages with their milliseconds.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(stage, ms)| (stage.as_str(), *ms))
    }

    /// Milliseconds in all.
    pub fn total(&self) -> f64 {
        self.0.iter().map(|(_, ms)| ms).sum()
    }
}

/// Milliseconds of wall time that have passed.
pub(crate) fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

impl Serialize for Timing {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (stage, ms) in self.0.iter().map(|(s, ms)| (s.as_str(), *ms)).chain([("total", self.total())]) {
            map.serialize_entry(stage, &((ms * 1e3).round() / 1e3))?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timing_sums_by_stage_in_order() {
        let mut timing = Timing::default();
        timing.add("b", 1.5);
        timing.add("a", 1.0);
        timing.add("b", 0.5);
        assert_eq!(serde_json::to_string(&timing).unwrap(), r#"{"b":2.0,"a":1.0,"total":3.0}"#);
    }
}
