//! The training and validation cases of a cohort.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Plan;
use crate::cohort::{Case, Split, assign_splits, read_labelled, subject_warnings};
use crate::config::Config;
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::model::Mode;
use crate::progress::Progress;
use crate::tensor::hex;

/// Fractions of training, validation and test for rows without a split.
const FRACTIONS: [f64; 3] = [0.8, 0.2, 0.0];

/// The cases of a training. Those of the test split are not read.
pub(super) struct Cases {
    /// Their gradients update the parameters.
    pub train: Vec<Case>,
    /// Select the best epoch.
    pub validation: Vec<Case>,
    /// What is to be known of their people.
    pub warnings: Vec<Warning>,
    /// The folder of the list: its paths are relative to it.
    folder: PathBuf,
}

impl Cases {
    /// All cases, training first.
    pub fn all(&self) -> impl Iterator<Item = &Case> {
        self.train.iter().chain(&self.validation)
    }

    /// The weight of each class, `n / (classes · n_class)`, over the training cases.
    pub fn weights(&self, classes: usize) -> Vec<f32> {
        let count = |class: usize| self.train.iter().filter(|c| c.label == class).count();
        (0..classes).map(|class| (self.train.len() as f64 / (classes * count(class)) as f64) as f32).collect()
    }

    /// SHA-256 of all cases with split, label, subject, scan and report. It does not depend on the place or the name of
    /// the list.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for case in self.all() {
            let listed = |path: &PathBuf| path.strip_prefix(&self.folder).unwrap_or(path).to_owned();
            let line = (
                case.split.map(Split::name),
                case.label,
                &case.subject,
                listed(&case.scan),
                case.report.as_ref().map(listed),
            );
            hash.update(format!("{line:?}\n").as_bytes());
            if let Some(volume) = case.volume {
                hash.update(format!("volume {volume}\n").as_bytes());
            }
        }
        hex(&hash.finalize())
    }
}

/// Reads the list and assigns a split to rows without one.
pub(super) fn read(plan: &Plan, config: &Config, mode: Mode, progress: &mut dyn Progress) -> Result<Cases> {
    let fail = |message: String| Err(Error::new(Code::TRAINING_DATA, message).at(&plan.data));
    let mut all = read_labelled(&plan.data, &config.labels.0)?;
    let warnings = subject_warnings(&all);
    let unassigned = all.iter().filter(|c| c.split.is_none()).count();
    if unassigned > 0 {
        assign_splits(&mut all, FRACTIONS, plan.seed)?;
        let message = format!(
            "{unassigned} rows have no split: four fifths train, one fifth validates, by the seed {}",
            plan.seed
        );
        progress.warn(&Warning::new(WarningCode::SPLIT_MADE, message));
    }
    if mode.reads_reports()
        && let Some(case) = all.iter().find(|c| c.report.is_none() && c.split != Some(Split::Test))
    {
        let message = format!(
            "line {}: there is no report, which the mode {} needs; leave the row out, or use mri",
            case.line,
            mode.name()
        );
        return fail(message);
    }
    let of = |split: Split| all.iter().filter(|c| c.split == Some(split)).cloned().collect::<Vec<_>>();
    let folder = plan.data.parent().unwrap_or(Path::new("")).to_owned();
    let cases = Cases { train: of(Split::Train), validation: of(Split::Validation), warnings, folder };
    for (class, label) in config.labels.0.iter().enumerate() {
        if !cases.train.iter().any(|c| c.label == class) {
            return fail(format!("no training case has the label {label}: the model cannot learn it"));
        }
    }
    if cases.validation.is_empty() {
        return fail(
            "there are no validation cases, which select the best epoch: give some rows the split `validation`".into(),
        );
    }
    Ok(cases)
}
