//! Temperatures: fitted on the validation split, and stored in the bundle if they make new predictions more likely.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use super::RowResult;
use crate::bundle::{Temperature, set_temperature};
use crate::cohort::{Case, Split};
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::metrics::temperature::{self, Fit, Gain, MIN_OF_CLASS, MIN_PREDICTIONS, MIN_WRONG, Sample};

/// The fitted temperatures, and the bundle that has them.
#[derive(Clone, Debug, Serialize)]
pub struct Fitted {
    /// For scans with a report; none where the validation split has none, or too few.
    pub report: Option<Decided>,
    /// For scans without a report; none where the validation split has none, or too few.
    pub image: Option<Decided>,
    /// SHA-256 of the bundle with these temperatures in it.
    pub bundle_sha256: String,
    /// Warnings of temperatures that were not fitted, or not kept.
    pub warnings: Vec<Warning>,
}

/// A fitted temperature, and whether it is used.
#[derive(Clone, Debug, Serialize)]
pub struct Decided {
    /// The fit to all validation rows.
    #[serde(flatten)]
    pub fit: Fit,
    /// What fitting gains on rows that were not fitted on; none without rows.
    pub gain: Option<Gain>,
    /// Whether this temperature is stored; otherwise the bundle's old one stays.
    pub kept: bool,
}

/// Checks, before anything is run, that there are enough validation rows for one of the two classifiers.
pub(super) fn check(cases: &[Case], classes: usize) -> Result<()> {
    let validation = cases.iter().filter(|case| case.split == Some(Split::Validation));
    let (with, without): (Vec<_>, Vec<_>) = validation.partition(|case| case.report.is_some());
    let subjects = |cases: &[&Case]| -> Vec<(String, usize)> {
        cases.iter().map(|case| (case.subject.clone(), case.label)).collect()
    };
    let lacks = [with, without].map(|cases| lack(&subjects(&cases), classes));
    match lacks {
        [Some(with), Some(without)] => Err(too_few(if with.rows >= without.rows { &with } else { &without })),
        _ => Ok(()),
    }
}

/// Too few rows to fit a temperature on.
struct Lack {
    rows: usize,
    /// The fewest subjects of a class.
    of_class: usize,
}

impl Lack {
    fn describe(&self) -> String {
        let Self { rows, of_class } = self;
        format!(
            "{rows} validation rows and {of_class} subjects of the rarest class; it needs {MIN_PREDICTIONS} rows and \
             {MIN_OF_CLASS} subjects of each class: with fewer it may make calibration worse"
        )
    }
}

/// What is missing in rows of these subjects and true classes; none if there are enough.
fn lack(rows: &[(String, usize)], classes: usize) -> Option<Lack> {
    let of = |class: usize| rows.iter().filter(|row| row.1 == class).map(|row| &row.0).collect::<BTreeSet<_>>().len();
    let of_class = (0..classes).map(of).min().unwrap_or(0);
    (rows.len() < MIN_PREDICTIONS || of_class < MIN_OF_CLASS).then_some(Lack { rows: rows.len(), of_class })
}

/// `temperature.few`.
fn too_few(lack: &Lack) -> Error {
    let message = format!(
        "a temperature cannot be fitted on {}: add rows to the split `validation`, or evaluate without \
         --fit-temperature",
        lack.describe()
    );
    Error::new(Code::TEMPERATURE_FEW, message)
}

/// Fits a temperature to each of the two classifiers, with and without reports, and decides whether it replaces `old`.
///
/// # Errors
/// `temperature.few` when neither has enough rows: some of the cohort's have no prediction.
pub(super) fn fit(rows: &[RowResult], classes: usize, old: Temperature) -> Result<Fitted> {
    let (mut warnings, mut lacks) = (Vec::new(), Vec::new());
    let mut of = |with_report: bool| {
        let rows: Vec<&RowResult> = rows.iter().filter(|row| row.report.is_some() == with_report).collect();
        let with = if with_report { "with" } else { "without" };
        let found: Vec<(String, usize)> = rows.iter().map(|row| (row.subject.clone(), row.truth)).collect();
        if let Some(lack) = lack(&found, classes) {
            if !rows.is_empty() {
                let message =
                    format!("the temperature for scans {with} a report stays as it is: there are {}", lack.describe());
                warnings.push(Warning::new(WarningCode::VALIDATION_FEW, message));
            }
            lacks.push(lack);
            return None;
        }
        let decided = decide(&rows, old.of(with_report).unwrap_or(1.0));
        if !decided.kept {
            warnings.push(Warning::new(WarningCode::TEMPERATURE_LEFT, left(&decided, with)));
        }
        Some(decided)
    };
    let (report, image) = (of(true), of(false));
    match lacks.iter().max_by_key(|lack| lack.rows) {
        Some(lack) if report.is_none() && image.is_none() => Err(too_few(lack)),
        _ => Ok(Fitted { report, image, bundle_sha256: String::new(), warnings }),
    }
}

/// Fits a temperature to rows, and keeps it if rows that it is not fitted on gain by it over `before`.
fn decide(rows: &[&RowResult], before: f64) -> Decided {
    let mut subjects: BTreeMap<&str, Vec<Sample<'_>>> = BTreeMap::new();
    for row in rows {
        subjects.entry(&row.subject).or_default().push((row.truth, &row.logits));
    }
    let subjects: Vec<Vec<Sample<'_>>> = subjects.into_values().collect();
    let fit = temperature::fit(&subjects.iter().flatten().copied().collect::<Vec<_>>());
    let gain = temperature::cross_validated(&subjects, before);
    let kept = fit.outcome.is_fitted() && gain.as_ref().is_some_and(Gain::is_real);
    Decided { fit, gain, kept }
}

/// Why the old temperature stays.
fn left(decided: &Decided, with: &str) -> String {
    let over = decided.gain.as_ref().map_or(1.0, |gain| gain.over);
    let why = match &decided.gain {
        Some(gain) if gain.wrong < MIN_WRONG => {
            let wrong = gain.wrong;
            format!("{wrong} subjects are predicted wrongly, and {MIN_WRONG} at least decide a temperature")
        }
        Some(gain) => {
            let interval = gain.interval.map_or(String::new(), |i| format!(" [{:.3}, {:.3}]", i.low, i.high));
            format!(
                "{:.3} was fitted, and is not surely better on held-out rows: gain {:+.3}{interval} nats a row",
                decided.fit.temperature, gain.nats
            )
        }
        None => "there are no rows".to_owned(),
    };
    format!("the temperature for scans {with} a report stays {over:.3}: {why}")
}

impl Fitted {
    /// The new temperatures of the bundle: one that was not kept has its `old` value.
    pub(super) fn temperature(&self, old: Temperature) -> Temperature {
        let new = |decided: &Option<Decided>, old: Option<f64>| {
            decided.as_ref().filter(|d| d.kept).map(|d| d.fit.temperature).or(old)
        };
        Temperature { report: new(&self.report, old.report), image: new(&self.image, old.image) }
    }

    /// Stores `temperature` in the bundle, whose SHA-256 must be `expected`, if one was kept.
    pub(super) fn install(self, bundle: &Path, expected: &str, temperature: Temperature) -> Result<Self> {
        let kept = [&self.report, &self.image].into_iter().flatten().any(|decided| decided.kept);
        let bundle_sha256 = if kept { set_temperature(bundle, expected, temperature)? } else { expected.to_owned() };
        Ok(Self { bundle_sha256, ..self })
    }
}
