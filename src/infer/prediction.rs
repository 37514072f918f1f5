//! What a prediction says, and its JSON form.

use std::path::PathBuf;

use serde::Serialize;
use serde::ser::SerializeMap as _;

use crate::bundle::{Bundle, Precision};
use crate::error::{Code, Error, Result, Warning};
use crate::execute::{Run, Timing};
use crate::files::path_as_text;
use crate::metrics::{argmax, softmax};
use crate::tensor::Tensor;
use crate::volume::Quality;

/// The answer for one scan.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    /// The scan's file.
    #[serde(serialize_with = "path_as_text")]
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
    /// Figures of the scan, from which its quality warnings were decided; none where its features were cached without.
    pub quality: Option<Quality>,
    /// Milliseconds a stage.
    pub timing_ms: Timing,
    /// The device that really computed.
    pub device: String,
    /// The bundle that answered.
    pub bundle: BundleIdentity,
    /// How the run really went.
    pub run: Run,
    /// What the classifier saw, float32: image and report in the space of the projections, `concat(v, t)`; without a
    /// report `v` alone.
    #[serde(skip)]
    pub fused: Vec<f32>,
    /// Every stage's tensor, where they were asked for.
    #[serde(skip)]
    pub tensors: Vec<(String, Tensor)>,
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

fn as_text_if_any<S: serde::Serializer>(path: &Option<PathBuf>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    match path {
        Some(path) => path_as_text(path, serializer),
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
        let values = |name: &str| heads.iter().find(|(n, _)| n == name).and_then(|(_, t)| t.as_f32());
        let name = if with_report { "logits" } else { "image_logits" };
        let labels = &bundle.manifest.labels;
        let logits = values(name).filter(|l| l.len() == labels.len());
        let logits =
            logits.ok_or_else(|| Error::internal(format!("heads: no `{name}` of {} classes", labels.len())))?;
        let similarity = values("similarity").and_then(|s| s.first()).copied();
        // An overflow on the way would end here: no label is better than a random one.
        if let Some(bad) = logits.iter().chain(&similarity).find(|v| !v.is_finite()) {
            let message = format!("the model's output for {} is {bad}: no label can be given", scan.display());
            return Err(Error::new(Code::RUNTIME_RUN, message).at(&bundle.dir));
        }
        let temperature = bundle.manifest.temperature.of(with_report);
        let probabilities = softmax(logits, temperature.unwrap_or(1.0));
        let probabilities: Vec<(String, f64)> = labels.iter().cloned().zip(probabilities).collect();
        // By the logits: far apart and over a small temperature, two probabilities may both be 0.
        let label = labels.get(argmax(logits)).ok_or_else(|| Error::internal("heads: no labels"))?.clone();
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
            quality: None,
            timing_ms: Timing::default(),
            device: device.to_owned(),
            bundle: BundleIdentity::of(bundle),
            run: Run::default(),
            fused,
            tensors: Vec::new(),
        })
    }
}
