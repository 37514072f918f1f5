//! `ba-train eval`: the metrics of a bundle on a cohort.
//!
//! ```text
//! cohort ─ rows of the split ─ Predictor ─ logits ─ softmax(· / T) ─ metrics, intervals, confusion matrix, pictures
//!        └ validation rows ──────────────── logits ─ fit T ─┘ (with --fit-temperature; T is then stored in the bundle)
//! ```
//!
//! A temperature is never fitted on rows that are evaluated. A row without a prediction is reported and left out; the
//! result counts them. The bootstrap draws whole subjects.
//!
//! ```no_run
//! use brain_adapter::progress::Silent;
//! use brain_adapter::train::eval::{self, Plan};
//!
//! let evaluation = eval::run(&Plan::new("cohort.csv", "onnx"), &mut Silent)?;
//! let scores = &evaluation.scores;
//! println!("macro-F1 {:.3}, {:?}", scores.macro_f1, evaluation.intervals.macro_f1);
//! # Ok::<(), brain_adapter::Error>(())
//! ```

mod intervals;
mod rows;
mod splits;
mod temperatures;

use std::path::PathBuf;

use serde::Serialize;

pub use intervals::Intervals;
pub use rows::{Failure, RowResult};
pub use splits::{EvalSplit, EvaluatedRows};
pub use temperatures::{Decided, Fitted};

use crate::bundle::{Bundle, Temperature};
use crate::cohort::{read_labelled, subject_warnings};
use crate::error::{Code, Error, Result};
use crate::infer::{BundleIdentity, Options};
use crate::metrics::{Confusion, LabelledPrediction, Layout, Reliability, Scores, tsne};
use crate::progress::Progress;

/// Maximum number of points in an embedding: exact t-SNE takes the square of their number, and more dots hide each
/// other.
const MAX_POINTS: usize = 2000;

/// The settings of `ba-train eval`.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The labelled list: CSV with `scan`, `label`, and perhaps `report` and `split`.
    pub data: PathBuf,
    /// The bundle.
    pub bundle: PathBuf,
    /// Which rows to evaluate; by default `test` if the list has it, else all.
    pub split: Option<EvalSplit>,
    /// Whether temperatures are fitted on the validation split and stored in the bundle.
    pub fit_temperature: bool,
    /// Whether reports are left out, so that the image-only classifier, which the mode `mri` trains, predicts every
    /// row.
    pub image_only: bool,
    /// Number of draws of the bootstrap; 0: no intervals.
    pub draws: u32,
    /// Seed of the bootstrap and of the embedding.
    pub seed: u64,
    /// Whether to embed the fused features in the plane (t-SNE).
    pub embedding: bool,
    /// How to run the bundle. [`run`] sets the expected numbers of scans and reports, and keeps no tensors.
    pub options: Options,
}

impl Plan {
    /// The defaults of the command.
    pub fn new(data: impl Into<PathBuf>, bundle: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            bundle: bundle.into(),
            split: None,
            fit_temperature: false,
            image_only: false,
            draws: 1000,
            seed: 0,
            embedding: false,
            options: Options::default(),
        }
    }
}

/// The result of [`run`].
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// Path of the list.
    pub data: String,
    /// Which rows were evaluated, and how many.
    pub split: EvaluatedRows,
    /// The evaluated bundle, before a fitted temperature was stored in it.
    pub bundle: BundleIdentity,
    /// The device that was used.
    pub device: String,
    /// Class names, in the order of all lists by class.
    pub labels: Vec<String>,
    /// The temperature that logits were divided by.
    pub temperature: Temperature,
    /// The temperatures fitted now, if that was asked for.
    pub fitted: Option<Fitted>,
    /// The metrics.
    pub scores: Scores,
    /// The metrics' 95 % intervals.
    pub intervals: Intervals,
    /// The confusion matrix. Rows: true class; columns: prediction.
    pub confusion: Confusion,
    /// The calibration without a temperature, if there is one.
    pub uncalibrated: Option<Reliability>,
    /// The predictions, in the order of the list.
    pub rows: Vec<RowResult>,
    /// Rows without a prediction, including validation rows when a temperature was fitted.
    pub failures: Vec<Failure>,
    /// The fused features in the plane, if asked for.
    #[serde(skip)]
    pub embedding: Option<Embedding>,
}

/// The fused features of rows in the plane.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// The points.
    pub layout: Layout,
    /// The true class of each.
    pub classes: Vec<usize>,
}

/// Evaluates a bundle on a cohort.
///
/// # Errors
/// `list.invalid` for a list that cannot be read, has no such split, or no row of a split with a prediction;
/// `temperature.few` when it has too few rows to fit one on;
/// `config.value` when the evaluated split contains the rows that a temperature is fitted on; those of opening,
/// verifying and writing the bundle. Errors of single rows are in [`Evaluation::failures`].
pub fn run(plan: &Plan, progress: &mut dyn Progress) -> Result<Evaluation> {
    let labels = Bundle::open_quickly(&plan.bundle)?.manifest.labels;
    let mut cases = read_labelled(&plan.data, &labels)?;
    if plan.image_only {
        cases.iter_mut().for_each(|case| case.report = None);
    }
    let selection = splits::select(&cases, plan.split, plan.fit_temperature).map_err(|e| e.at(&plan.data))?;
    if plan.fit_temperature {
        temperatures::check(&cases, labels.len()).map_err(|e| e.at(&plan.data))?;
    }
    subject_warnings(&cases).iter().for_each(|warning| progress.warn(warning));
    let predictions = rows::predict(plan, &selection.needed(&cases), &labels, progress)?;
    let (evaluated, held_out): (Vec<_>, Vec<_>) =
        predictions.rows.into_iter().partition(|row| selection.evaluates(row.split));
    if evaluated.is_empty() {
        return Err(no_predictions(selection.split.name(), predictions.failures.len()).at(&plan.data));
    }
    let (mut temperature, mut fitted) = (predictions.temperature, None);
    if plan.fit_temperature {
        if held_out.is_empty() {
            return Err(no_predictions("validation", predictions.failures.len()).at(&plan.data));
        }
        let fits = temperatures::fit(&held_out, labels.len(), temperature).map_err(|e| e.at(&plan.data))?;
        fits.warnings.iter().for_each(|warning| progress.warn(warning));
        temperature = fits.temperature(temperature);
        fitted = Some(fits.install(&plan.bundle, &predictions.bundle.sha256, temperature)?);
    }
    progress.step("computing metrics and intervals", None);
    let at = |row: &RowResult, t: Temperature| {
        LabelledPrediction::from_logits(row.truth, &row.logits, t.of(row.report.is_some()).unwrap_or(1.0))
    };
    let now: Vec<LabelledPrediction> = evaluated.iter().map(|row| at(row, temperature)).collect();
    let raw: Vec<LabelledPrediction> = evaluated.iter().map(|row| at(row, Temperature::default())).collect();
    let embedding = plan.embedding.then(|| embed(&evaluated, plan.seed));
    let by_subject = intervals::by_subject(&evaluated, &now);
    Ok(Evaluation {
        data: plan.data.display().to_string(),
        split: selection.summary(&cases, &evaluated),
        bundle: predictions.bundle,
        device: predictions.device,
        temperature,
        fitted,
        scores: Scores::of(&now, labels.len()),
        intervals: Intervals::of(&by_subject, labels.len(), plan.draws, plan.seed),
        confusion: Confusion::of(&now.iter().collect::<Vec<_>>(), labels.len()),
        uncalibrated: (!temperature.is_none()).then(|| Reliability::of(&raw.iter().collect::<Vec<_>>())),
        rows: evaluated.into_iter().zip(now).map(|(row, p)| row.with_probabilities(p.probabilities, &labels)).collect(),
        failures: predictions.failures,
        labels,
        embedding,
    })
}

fn no_predictions(split: &str, failed: usize) -> Error {
    let message = format!("no row of the split `{split}` has a prediction ({failed} rows failed): see the lines above");
    Error::new(Code::LIST_INVALID, message)
}

/// Embeds the fused features of the rows with a report, or of all if none has one. Of many, evenly spaced ones.
fn embed(rows: &[RowResult], seed: u64) -> Embedding {
    let with_report = rows.iter().any(|row| row.report.is_some());
    let rows: Vec<&RowResult> = rows.iter().filter(|row| row.report.is_some() == with_report).collect();
    let step = rows.len().div_ceil(MAX_POINTS).max(1);
    let (fused, classes) = rows.iter().step_by(step).map(|row| (row.fused.clone(), row.truth)).unzip();
    let fused: Vec<Vec<f32>> = fused;
    Embedding { layout: tsne(&fused, seed), classes }
}
