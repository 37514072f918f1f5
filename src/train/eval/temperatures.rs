//! Temperatures: fitted on the validation split, stored in the bundle.

use std::path::Path;

use serde::Serialize;

use super::RowResult;
use crate::bundle::{Temperature, set_temperature};
use crate::error::{Result, Warning, WarningCode};
use crate::metrics::temperature::{self, Fit};

/// With fewer rows a temperature is reported as uncertain. A convention.
const FEW: usize = 30;

/// The fitted temperatures, and the bundle that has them.
#[derive(Clone, Debug, Serialize)]
pub struct Fitted {
    /// For scans with a report; none where the validation split has none.
    pub report: Option<Fit>,
    /// For scans without a report; none where the validation split has none.
    pub image: Option<Fit>,
    /// SHA-256 of the bundle with these temperatures in it.
    pub bundle_sha256: String,
    /// Warnings that there were few rows to fit on.
    pub warnings: Vec<Warning>,
}

/// Fits a temperature to each of the two classifiers: with and without reports.
pub(super) fn fit(rows: &[RowResult]) -> Fitted {
    let of = |with_report: bool| {
        let rows = rows.iter().filter(|row| row.report.is_some() == with_report);
        let held_out: Vec<(usize, &[f32])> = rows.map(|row| (row.truth, row.logits.as_slice())).collect();
        (!held_out.is_empty()).then(|| temperature::fit(&held_out))
    };
    let (report, image) = (of(true), of(false));
    let warnings = [few(&report, "with"), few(&image, "without")].into_iter().flatten().collect();
    Fitted { report, image, bundle_sha256: String::new(), warnings }
}

/// A warning if there were few rows to fit on.
fn few(fit: &Option<Fit>, with: &str) -> Option<Warning> {
    let rows = fit.as_ref().map(|f| f.answers).filter(|rows| *rows < FEW)?;
    let message = format!(
        "the temperature for scans {with} a report is fitted on {rows} validation rows: with fewer than {FEW} it is \
         uncertain"
    );
    Some(Warning::new(WarningCode::VALIDATION_FEW, message))
}

impl Fitted {
    /// The new temperatures of the bundle: one that was not fitted keeps its `old` value.
    pub(super) fn temperature(&self, old: Temperature) -> Temperature {
        let new = |fit: &Option<Fit>, old: Option<f64>| fit.as_ref().map(|f| f.temperature).or(old);
        Temperature { report: new(&self.report, old.report), image: new(&self.image, old.image) }
    }

    /// Stores `temperature` in the bundle, whose SHA-256 must be `expected`.
    pub(super) fn install(self, bundle: &Path, expected: &str, temperature: Temperature) -> Result<Self> {
        Ok(Self { bundle_sha256: set_temperature(bundle, expected, temperature)?, ..self })
    }
}
