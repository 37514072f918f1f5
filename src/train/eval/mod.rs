//! How good is a bundle? The work of `ba-train eval`.
//!
//! ```text
//! cohort ─ rows of the split ─ Predictor ─ logits ─ softmax(· / T) ─ figures, intervals, confusion, pictures
//!        └ validation rows ──────────────── logits ─ fit T ─┘ (with --fit-temperature, and then into the bundle)
//! ```
//!
//! What is measured is never what a temperature was fitted on. A row that cannot be answered is told and left out; the
//! figures say how many. Rows of one subject are drawn together when intervals are made.

mod figures;
mod fitting;
mod rows;
mod splits;

use std::path::PathBuf;

use serde::Serialize;

pub use figures::Intervals;
pub use fitting::Fitted;
pub use rows::{Failure, RowResult};
pub use splits::{Choice, Measured};

use super::cohort;
use crate::bundle::{Bundle, Temperature};
use crate::error::{Code, Error, Result};
use crate::infer::{BundleIdentity, Options};
use crate::metrics::{Answer, Confusion, Layout, Reliability, Scores, tsne};
use crate::progress::Progress;

/// Most subjects in a picture of the embedding: exact t-SNE takes the square of their number, and more dots hide each other.
const MOST_POINTS: usize = 2000;

/// What to measure, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The labelled list: CSV with `scan`, `label`, and perhaps `report` and `split`.
    pub data: PathBuf,
    /// The bundle.
    pub bundle: PathBuf,
    /// Which rows; by default `test` where the list has it, else all.
    pub split: Option<Choice>,
    /// Whether temperatures are fitted on the validation split and put into the bundle.
    pub fit_temperature: bool,
    /// Whether reports are left out, so that the image-only classifier answers every row: what the mode `mri` trained.
    pub image_only: bool,
    /// Draws of the bootstrap; 0: no intervals.
    pub draws: u32,
    /// Of the bootstrap and of the embedding.
    pub seed: u64,
    /// Whether the fused embedding is laid out on a plane.
    pub embedding: bool,
    /// How to run the bundle. What is expected is counted here, and tensors are not kept.
    pub options: Options,
}

impl Plan {
    /// The plan that the command has without flags.
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

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// The list.
    pub data: String,
    /// Which rows were measured, and how many.
    pub split: Measured,
    /// The bundle that answered, before a temperature was put into it.
    pub bundle: BundleIdentity,
    /// The device that computed.
    pub device: String,
    /// Class names, in the order of all lists.
    pub labels: Vec<String>,
    /// What logits were divided by.
    pub temperature: Temperature,
    /// What was fitted now, where that was asked for.
    pub fitted: Option<Fitted>,
    /// The figures.
    pub scores: Scores,
    /// Their 95 % intervals.
    pub intervals: Intervals,
    /// Rows: the true class; columns: the answer.
    pub confusion: Confusion,
    /// How reliable probabilities are without a temperature, where there is one.
    pub uncalibrated: Option<Reliability>,
    /// The answers, in the order of the list.
    pub rows: Vec<RowResult>,
    /// Rows that could not be answered, those of the validation split too where a temperature was fitted.
    pub failures: Vec<Failure>,
    /// The fused embedding on a plane, where it was asked for.
    #[serde(skip)]
    pub embedding: Option<Embedding>,
}

/// Fused embeddings on a plane.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// The points.
    pub layout: Layout,
    /// The true class of each.
    pub classes: Vec<usize>,
}

/// Measures a bundle on a cohort.
///
/// # Errors
/// `list.invalid` for a list that cannot be read, has no such split, or of which no row of a split could be answered;
/// `config.value` when the split that is measured holds what a temperature is to be fitted on; those of opening and
/// verifying the bundle, and of writing it. What is wrong with single rows is in [`Evaluation::failures`].
pub fn run(plan: &Plan, progress: &mut dyn Progress) -> Result<Evaluation> {
    let labels = Bundle::open_quickly(&plan.bundle)?.manifest.labels;
    let mut subjects = cohort::read(&plan.data, &labels)?;
    if plan.image_only {
        subjects.iter_mut().for_each(|subject| subject.report = None);
    }
    let chosen = splits::choose(&subjects, plan.split, plan.fit_temperature).map_err(|e| e.at(&plan.data))?;
    let answers = rows::answer(plan, &chosen.needed(&subjects), &labels, progress)?;
    let (measured, held_out): (Vec<_>, Vec<_>) = answers.rows.into_iter().partition(|row| chosen.measures(row.split));
    if measured.is_empty() {
        return Err(none_answered(chosen.choice.name(), answers.failures.len()).at(&plan.data));
    }
    let (mut temperature, mut fitted) = (answers.temperature, None);
    if plan.fit_temperature {
        if held_out.is_empty() {
            return Err(none_answered("validation", answers.failures.len()).at(&plan.data));
        }
        let fits = fitting::fit(&held_out);
        fits.warnings.iter().for_each(|warning| progress.warn(warning));
        temperature = fits.temperature(temperature);
        fitted = Some(fits.install(&plan.bundle, &answers.bundle.sha256, temperature)?);
    }
    progress.step("computing figures and intervals", None);
    let at =
        |row: &RowResult, t: Temperature| Answer::at(row.truth, &row.logits, t.of(row.report.is_some()).unwrap_or(1.0));
    let now: Vec<Answer> = measured.iter().map(|row| at(row, temperature)).collect();
    let raw: Vec<Answer> = measured.iter().map(|row| at(row, Temperature::default())).collect();
    let embedding = plan.embedding.then(|| embed(&measured, plan.seed));
    let by_subject = figures::by_subject(&measured, &now);
    Ok(Evaluation {
        data: plan.data.display().to_string(),
        split: chosen.measured(&subjects, &measured),
        bundle: answers.bundle,
        device: answers.device,
        temperature,
        fitted,
        scores: Scores::of(&now, labels.len()),
        intervals: Intervals::of(&by_subject, labels.len(), plan.draws, plan.seed),
        confusion: Confusion::of(&now.iter().collect::<Vec<_>>(), labels.len()),
        uncalibrated: (!temperature.is_none()).then(|| Reliability::of(&raw.iter().collect::<Vec<_>>())),
        rows: measured.into_iter().zip(now).map(|(row, answer)| row.with(answer.probabilities, &labels)).collect(),
        failures: answers.failures,
        labels,
        embedding,
    })
}

fn none_answered(split: &str, failed: usize) -> Error {
    let message =
        format!("no row of the split `{split}` could be answered ({failed} rows failed): see the lines above");
    Error::new(Code::LIST_INVALID, message)
}

/// Lays out what the classifier saw of the rows: those with a report, or, where none has one, all. Of many, evenly spaced ones.
fn embed(rows: &[RowResult], seed: u64) -> Embedding {
    let with_report = rows.iter().any(|row| row.report.is_some());
    let rows: Vec<&RowResult> = rows.iter().filter(|row| row.report.is_some() == with_report).collect();
    let step = rows.len().div_ceil(MOST_POINTS).max(1);
    let (fused, classes) = rows.iter().step_by(step).map(|row| (row.fused.clone(), row.truth)).unzip();
    let fused: Vec<Vec<f32>> = fused;
    Embedding { layout: tsne(&fused, seed), classes }
}
