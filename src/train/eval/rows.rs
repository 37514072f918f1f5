//! The predictions of a bundle for a cohort: one a row, or why there is none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::Plan;
use crate::bundle::Temperature;
use crate::cohort::{Case, Split, explain};
use crate::error::{Code, Error, Result, Warning, WarningCode, WarningTally};
use crate::infer::results::error_json;
use crate::infer::{BundleIdentity, Expected, Options, PendingScan, Prediction, Predictor, read_ahead};
use crate::progress::Progress;
use crate::text::read_report;

/// A row and its prediction.
#[derive(Clone, Debug, Serialize)]
pub struct RowResult {
    /// Line in the list.
    pub row: usize,
    /// The person.
    pub subject: String,
    /// The scan's path.
    pub scan: String,
    /// The volume of a 4-D scan, where the list names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<usize>,
    /// The report's path; without one the image-only classifier predicts.
    pub report: Option<String>,
    /// The split.
    #[serde(serialize_with = "split_name")]
    pub split: Option<Split>,
    /// The true class, from 0.
    #[serde(skip)]
    pub truth: usize,
    /// Name of the true class.
    pub true_label: String,
    /// Name of the predicted class.
    pub label: String,
    /// softmax(logits / temperature), by class.
    pub probabilities: serde_json::Map<String, Value>,
    /// The classifier's output, one a class.
    pub logits: Vec<f32>,
    /// Cosine similarity of image and report; none without a report.
    pub similarity: Option<f32>,
    /// Warnings about scan and report.
    pub warnings: Vec<Warning>,
    /// The classifier's input ([`Prediction::fused`]).
    #[serde(skip)]
    pub fused: Vec<f32>,
}

/// A row without a prediction.
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
    fn new(case: &Case, labels: &[String], prediction: Prediction) -> Self {
        let text = |path: &PathBuf| path.display().to_string();
        Self {
            row: case.line,
            subject: case.subject.clone(),
            scan: text(&case.scan),
            volume: case.volume,
            report: case.report.as_ref().map(text),
            split: case.split,
            truth: case.label,
            true_label: labels.get(case.label).cloned().unwrap_or_default(),
            label: prediction.label,
            probabilities: serde_json::Map::new(),
            logits: prediction.logits,
            similarity: prediction.similarity,
            warnings: prediction.warnings,
            fused: prediction.fused,
        }
    }

    /// The row with its probabilities, one for each of `labels`.
    pub(super) fn with_probabilities(mut self, probabilities: Vec<f64>, labels: &[String]) -> Self {
        self.probabilities = labels.iter().cloned().zip(probabilities.into_iter().map(Value::from)).collect();
        self
    }
}

/// All predictions of a bundle.
pub(super) struct Predictions {
    pub rows: Vec<RowResult>,
    pub failures: Vec<Failure>,
    pub bundle: BundleIdentity,
    /// The temperature in the bundle.
    pub temperature: Temperature,
    pub device: String,
}

/// Predicts the rows in their order; scans are read ahead. A row that fails is reported and the others continue, unless
/// the bundle itself is damaged.
pub(super) fn predict(
    plan: &Plan,
    cases: &[&Case],
    labels: &[String],
    progress: &mut dyn Progress,
) -> Result<Predictions> {
    let reports: BTreeSet<&Path> = cases.iter().filter_map(|case| case.report.as_deref()).collect();
    let expected = Expected { scans: cases.len(), reports: reports.len() };
    let options = Options { expected, keep_tensors: false, voxels: false, ..plan.options.clone() };
    let predictor = Predictor::open(&plan.bundle, options)?;
    predictor.chosen().describe(false).iter().for_each(|line| progress.line(line));
    let manifest = &predictor.bundle().manifest;
    if manifest.labels != labels {
        return Err(Error::new(Code::BUNDLE_MANIFEST, "the bundle was replaced in the meantime").at(&plan.bundle));
    }
    let (bundle, temperature) = (BundleIdentity::of(predictor.bundle()), manifest.temperature);
    let (reader, in_background) = (predictor.reader(), predictor.reads_in_background());
    if cases.first().is_some_and(|first| !reader.of_volume(first.volume).is_cached(&first.scan)) {
        predictor.preload()?;
    }
    let (mut rows, mut failures, mut tally) = (Vec::new(), Vec::new(), WarningTally::default());
    let mut next = cases.iter().enumerate();
    let scans = cases.iter().map(|case| (case.scan.as_path(), case.volume));
    read_ahead(&reader, scans, in_background, &mut |reading| {
        let Some((i, case)) = next.next() else { return Ok(()) };
        progress.item("predicting", i, cases.len());
        match predict_row(&predictor, case, reading) {
            Ok(prediction) => {
                let of_row = |w: &&Warning| w.code != WarningCode::MEMORY_EXCEEDED;
                prediction.warnings.iter().filter(|w| !of_row(w)).for_each(|warning| progress.warn(warning));
                let warnings: Vec<Warning> = prediction.warnings.iter().filter(of_row).cloned().collect();
                tally.add(&case.scan, &warnings);
                rows.push(RowResult::new(case, labels, prediction));
            }
            Err(e) if [Code::BUNDLE_CHECKSUM, Code::THREADS_UNAVAILABLE].contains(&e.code()) => return Err(e),
            Err(e) => {
                let e = explain(e);
                progress.line(&format!("line {}: error[{}]: {e}", case.line, e.code()));
                let scan = case.scan.display().to_string();
                failures.push(Failure { row: case.line, scan, error: error_json(&e) });
            }
        }
        Ok(())
    })?;
    tally.warnings("rows").iter().for_each(|warning| progress.warn(warning));
    let fallbacks = predictor.placements().filter_map(|(part, placement)| placement.describe(part.as_str(), false));
    fallbacks.for_each(|line| progress.line(&line));
    Ok(Predictions { rows, failures, bundle, temperature, device: predictor.device().to_owned() })
}

/// Predicts one row; its report is encoded while its scan is read.
fn predict_row(predictor: &Predictor, case: &Case, reading: PendingScan<'_>) -> Result<Prediction> {
    match &case.report {
        Some(path) => predictor.predict_with_report(&read_report(path)?, &mut None, || reading.finish()),
        None => {
            predictor.require_image_head()?;
            predictor.predict(reading.finish()?, None)
        }
    }
}
