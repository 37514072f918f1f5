//! Who is trained on, and who is validated on.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Plan;
use crate::config::Config;
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::model::Mode;
use crate::progress::Progress;
use crate::tensor::hex;
use crate::train::cohort::{self, Split, Subject};

/// Shares of training and validation where a list decides nothing.
const FRACTIONS: [f64; 3] = [0.8, 0.2, 0.0];

/// The cases of a training. Those of the test split are left alone.
pub(super) struct Cases {
    /// Their gradients move the parameters.
    pub train: Vec<Subject>,
    /// Choose the best epoch.
    pub validation: Vec<Subject>,
    /// Where the list lies, which its paths are relative to.
    folder: PathBuf,
}

impl Cases {
    /// All of them, training first.
    pub fn all(&self) -> impl Iterator<Item = &Subject> {
        self.train.iter().chain(&self.validation)
    }

    /// A weight a class, `n / (classes · n_class)`, over the training cases.
    pub fn weights(&self, classes: usize) -> Vec<f32> {
        let count = |class: usize| self.train.iter().filter(|s| s.label == class).count();
        (0..classes).map(|class| (self.train.len() as f64 / (classes * count(class)) as f64) as f32).collect()
    }

    /// A hash of who is where, with which label, scan and report. It is the same wherever the list lies and however it is named.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for s in self.all() {
            let listed = |path: &PathBuf| path.strip_prefix(&self.folder).unwrap_or(path).to_owned();
            let line = (s.split.map(Split::name), s.label, &s.subject, listed(&s.scan), s.report.as_ref().map(listed));
            hash.update(format!("{line:?}\n").as_bytes());
        }
        hex(&hash.finalize())
    }
}

/// Reads the list and decides on rows without a split.
pub(super) fn choose(plan: &Plan, config: &Config, mode: Mode, progress: &mut dyn Progress) -> Result<Cases> {
    let fail = |message: String| Err(Error::new(Code::TRAINING_DATA, message).at(&plan.data));
    let mut subjects = cohort::read(&plan.data, &config.labels.0)?;
    let undecided = subjects.iter().filter(|s| s.split.is_none()).count();
    if undecided > 0 {
        cohort::split(&mut subjects, FRACTIONS, plan.seed)?;
        let message =
            format!("{undecided} rows have no split: four fifths train, one validates, by the seed {}", plan.seed);
        progress.warn(&Warning::new(WarningCode::SPLIT_MADE, message));
    }
    if mode.reads_reports()
        && let Some(row) = subjects.iter().find(|s| s.report.is_none() && s.split != Some(Split::Test))
    {
        let message = format!(
            "line {}: there is no report, which the mode {} needs; leave the row out, or use mri",
            row.row,
            mode.name()
        );
        return fail(message);
    }
    let of = |split: Split| subjects.iter().filter(|s| s.split == Some(split)).cloned().collect::<Vec<_>>();
    let folder = plan.data.parent().unwrap_or(Path::new("")).to_owned();
    let cases = Cases { train: of(Split::Train), validation: of(Split::Validation), folder };
    for (class, label) in config.labels.0.iter().enumerate() {
        if !cases.train.iter().any(|s| s.label == class) {
            return fail(format!("no training case is {label}: nothing can be learned of it"));
        }
    }
    if cases.validation.is_empty() {
        return fail(
            "there are no validation cases, which choose the best epoch: give some the split `validation`".into(),
        );
    }
    Ok(cases)
}
