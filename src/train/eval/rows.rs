//! The cohort through the bundle: an answer a row, or why there is none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::Plan;
use crate::bundle::Temperature;
use crate::error::{Code, Error, Result, Warning};
use crate::infer::results::error_json;
use crate::infer::{BundleIdentity, Expected, Options, PendingScan, Prediction, Predictor, read_ahead};
use crate::progress::Progress;
use crate::text::read_report;
use crate::train::cohort::{Split, Subject};

/// A row and its answer.
#[derive(Clone, Debug, Serialize)]
pub struct RowResult {
    /// Line in the list.
    pub row: usize,
    /// Who it is about.
    pub subject: String,
    /// The scan's path.
    pub scan: String,
    /// The report's path; without one the image-only classifier answered.
    pub report: Option<String>,
    /// What the list uses it for.
    #[serde(serialize_with = "split_name")]
    pub split: Option<Split>,
    /// The true class, from 0.
    #[serde(skip)]
    pub truth: usize,
    /// Its name.
    pub true_label: String,
    /// What the bundle says.
    pub label: String,
    /// softmax(logits / temperature), a class each.
    pub probabilities: serde_json::Map<String, Value>,
    /// What the classifier gave.
    pub logits: Vec<f32>,
    /// Cosine of image and report; none without a report.
    pub similarity: Option<f32>,
    /// What the reader should know.
    pub warnings: Vec<Warning>,
    /// What the classifier saw ([`Prediction::fused`]).
    #[serde(skip)]
    pub fused: Vec<f32>,
}

/// A row without an answer.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// Line in the list.
    pub row: usize,
    /// The scan's path.
    pub scan: String,
    /// `{"code", "message", "path"}`.
    pub error: Value,
}

fn split_name<S: serde::Serializer>(split: &Option<Split>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    split.map(Split::name).serialize(serializer)
}

impl RowResult {
    fn new(subject: &Subject, labels: &[String], prediction: Prediction) -> Self {
        let text = |path: &PathBuf| path.display().to_string();
        Self {
            row: subject.row,
            subject: subject.subject.clone(),
            scan: text(&subject.scan),
            report: subject.report.as_ref().map(text),
            split: subject.split,
            truth: subject.label,
            true_label: labels.get(subject.label).cloned().unwrap_or_default(),
            label: prediction.label,
            probabilities: serde_json::Map::new(),
            logits: prediction.logits,
            similarity: prediction.similarity,
            warnings: prediction.warnings,
            fused: prediction.fused,
        }
    }

    /// The row with probabilities.
    pub(super) fn with(mut self, probabilities: Vec<f64>, labels: &[String]) -> Self {
        self.probabilities = labels.iter().cloned().zip(probabilities.into_iter().map(Value::from)).collect();
        self
    }
}

/// What the bundle said.
pub(super) struct Answers {
    pub rows: Vec<RowResult>,
    pub failures: Vec<Failure>,
    pub bundle: BundleIdentity,
    /// What the bundle has.
    pub temperature: Temperature,
    pub device: String,
}

/// Answers the rows in their order; scans are read ahead. A row that fails is told and the rest go on, unless it is the bundle
/// that is damaged.
pub(super) fn answer(
    plan: &Plan,
    subjects: &[&Subject],
    labels: &[String],
    progress: &mut dyn Progress,
) -> Result<Answers> {
    let reports: BTreeSet<&Path> = subjects.iter().filter_map(|s| s.report.as_deref()).collect();
    let expected = Expected { scans: subjects.len(), reports: reports.len() };
    let options = Options { expected, keep_tensors: false, voxels: false, ..plan.options.clone() };
    let predictor = Predictor::open(&plan.bundle, options)?;
    predictor.chosen().describe(false).iter().for_each(|line| progress.line(line));
    let manifest = &predictor.bundle().manifest;
    if manifest.labels != labels {
        return Err(Error::new(Code::BUNDLE_MANIFEST, "the bundle was replaced meanwhile").at(&plan.bundle));
    }
    let (bundle, temperature) = (BundleIdentity::of(predictor.bundle()), manifest.temperature);
    let (reader, in_background) = (predictor.reader(), predictor.reads_in_background());
    if subjects.first().is_some_and(|first| !reader.is_cached(&first.scan)) {
        predictor.preload()?;
    }
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    let mut next = subjects.iter().enumerate();
    read_ahead(&reader, subjects.iter().map(|s| s.scan.as_path()), in_background, &mut |reading| {
        let Some((i, subject)) = next.next() else { return Ok(()) };
        progress.item("answering", i, subjects.len());
        match one(&predictor, subject, reading) {
            Ok(prediction) => rows.push(RowResult::new(subject, labels, prediction)),
            Err(e) if e.code() == Code::BUNDLE_CHECKSUM => return Err(e),
            Err(e) => {
                progress.line(&format!("line {}: error[{}]: {e}", subject.row, e.code()));
                let scan = subject.scan.display().to_string();
                failures.push(Failure { row: subject.row, scan, error: error_json(&e) });
            }
        }
        Ok(())
    })?;
    let left = predictor.placements().filter_map(|(part, placement)| placement.describe(part.as_str(), false));
    left.for_each(|line| progress.line(&line));
    Ok(Answers { rows, failures, bundle, temperature, device: predictor.device().to_owned() })
}

/// One row: its report is read and encoded while its scan is read.
fn one(predictor: &Predictor, subject: &Subject, reading: PendingScan<'_>) -> Result<Prediction> {
    match &subject.report {
        Some(path) => predictor.predict_with_report(&read_report(path)?, &mut None, || reading.finish()),
        None => {
            predictor.require_image_head()?;
            predictor.predict(reading.finish()?, None)
        }
    }
}
