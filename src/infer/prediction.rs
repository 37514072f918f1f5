//! What a prediction says, and its JSON form.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::ser::SerializeMap;

use super::memory::Mode;
use crate::bundle::{Bundle, Precision};
use crate::error::{Code, Error, Result, Warning};
use crate::metrics::{largest, softmax};
use crate::runtime::{Chosen, Placement};
use crate::tensor::Tensor;

/// The answer for one scan.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    /// The scan's file.
    #[serde(serialize_with = "as_text")]
    pub scan: PathBuf,
    /// The report's file, where there was one; set by the caller.
    #[serde(serialize_with = "as_text_if_any")]
    pub report: Option<PathBuf>,
    /// The most probable class.
    pub label: String,
    /// Softmax of the logits over the temperature, a class each, in the bundle's order.
    #[serde(serialize_with = "as_map")]
    pub probabilities: Vec<(String, f64)>,
    /// What the classifier gave.
    pub logits: Vec<f32>,
    /// What the logits were divided by; none where the bundle was not calibrated for such an answer: then it is 1.
    pub temperature: Option<f64>,
    /// Cosine of image and report in the space of the projections; none without a report.
    pub similarity: Option<f32>,
    /// What the reader should know.
    pub warnings: Vec<Warning>,
    /// Milliseconds a stage.
    pub timing_ms: Timing,
    /// The device that really computed.
    pub device: String,
    /// The bundle that answered.
    pub bundle: BundleIdentity,
    /// How the run really went.
    pub run: Run,
    /// What the classifier saw, float32: image and report in the space of the projections, `concat(v, t)`; without a report
    /// `v` alone.
    #[serde(skip)]
    pub fused: Vec<f32>,
    /// Every stage's tensor, where they were asked for.
    #[serde(skip)]
    pub tensors: Vec<(String, Tensor)>,
}

/// How a run really went.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Run {
    /// The device that was chosen, and why.
    pub chosen: Option<Chosen>,
    /// Each graph that memory was planned for.
    pub stages: Vec<StageRun>,
    /// The features that were in the cache and not computed: `vision`, `text`.
    pub from_cache: Vec<&'static str>,
    /// Memory of the process.
    pub memory_bytes: Memory,
    /// Memory of the GPU, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_memory_bytes: Option<GpuMemory>,
    /// How the large weights were verified: `hashed` in this process, `unchanged since hashed`, or, where laid-out copies of
    /// the cache were used, `unchanged since laid out`.
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
    /// The peak that was planned.
    pub planned: u64,
    /// The peak so far, where the system tells it.
    pub peak: Option<u64>,
}

/// Memory of a GPU, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct GpuMemory {
    /// What was free before anything was loaded.
    pub free: u64,
    /// The peak that was planned.
    pub planned: u64,
}

/// Which bundle answered.
#[derive(Clone, Debug, Serialize)]
pub struct BundleIdentity {
    /// SHA-256 of its `bundle.json`.
    pub sha256: String,
    /// Its number format; those of the parts where they differ.
    pub precision: String,
    /// Version of the tool that made it.
    pub version: String,
}

impl BundleIdentity {
    /// The identity of `bundle`.
    pub fn of(bundle: &Bundle) -> Self {
        let parts = &bundle.manifest.parts;
        let all: Vec<Precision> = parts.values().map(|p| p.precision).collect();
        let precision = match all.split_first() {
            Some((first, rest)) if rest.iter().all(|p| p == first) => first.to_string(),
            _ => parts.iter().map(|(name, p)| format!("{name}={}", p.precision)).collect::<Vec<_>>().join(","),
        };
        Self { sha256: bundle.sha256.clone(), precision, version: bundle.manifest.tool.version.clone() }
    }
}

/// Milliseconds by stage, in the order in which stages first ran. Where stages run at once, on a GPU, their sum is more than the clock
/// shows ([`Run::wall_ms`]).
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

impl Serialize for Timing {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (stage, ms) in self.0.iter().map(|(s, ms)| (s.as_str(), *ms)).chain([("total", self.total())]) {
            map.serialize_entry(stage, &((ms * 1e3).round() / 1e3))?;
        }
        map.end()
    }
}

/// A path as JSON holds it: a name that is no Unicode is shown, not refused.
fn as_text<S: serde::Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

fn as_text_if_any<S: serde::Serializer>(path: &Option<PathBuf>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    match path {
        Some(path) => as_text(path, serializer),
        None => serializer.serialize_none(),
    }
}

fn as_map<S: serde::Serializer>(pairs: &[(String, f64)], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(pairs.len()))?;
    for (label, probability) in pairs {
        map.serialize_entry(label, probability)?;
    }
    map.end()
}

impl Prediction {
    /// The prediction that the heads' outputs make.
    pub(super) fn new(
        bundle: &Bundle,
        device: &str,
        scan: PathBuf,
        heads: &[(String, Tensor)],
        with_report: bool,
    ) -> Result<Self> {
        let wrong = |message: String| Error::new(Code::RUNTIME_RUN, message).at(&bundle.dir);
        let values = |name: &str| heads.iter().find(|(n, _)| n == name).and_then(|(_, t)| t.as_f32());
        let name = if with_report { "logits" } else { "image_logits" };
        let labels = &bundle.manifest.labels;
        let logits = values(name).filter(|l| l.len() == labels.len());
        let logits = logits.ok_or_else(|| wrong(format!("the heads give no `{name}` of {} classes", labels.len())))?;
        let similarity = values("similarity").and_then(|s| s.first()).copied();
        // An overflow on the way would end here: no label is better than a random one.
        if let Some(bad) = logits.iter().chain(&similarity).find(|v| !v.is_finite()) {
            return Err(wrong(format!("the model's answer for {} is {bad}: no label can be given", scan.display())));
        }
        let temperature = bundle.manifest.temperature.of(with_report);
        let probabilities = softmax(logits, temperature.unwrap_or(1.0));
        let probabilities: Vec<(String, f64)> = labels.iter().cloned().zip(probabilities).collect();
        // By the logits: far apart and over a small temperature, two probabilities may both be 0.
        let label = labels.get(largest(logits)).ok_or_else(|| wrong("the bundle has no labels".into()))?.clone();
        let fused = ["v", "t"].into_iter().filter(|name| with_report || *name == "v");
        let fused = fused.filter_map(values).flatten().copied().collect();
        Ok(Self {
            scan,
            report: None,
            label,
            probabilities,
            logits: logits.to_vec(),
            temperature,
            similarity,
            warnings: Vec::new(),
            timing_ms: Timing::default(),
            device: device.to_owned(),
            bundle: BundleIdentity::of(bundle),
            run: Run::default(),
            fused,
            tensors: Vec::new(),
        })
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
