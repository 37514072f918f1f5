//! Which rows are measured.

use std::collections::BTreeSet;

use serde::Serialize;

use super::RowResult;
use crate::error::{Code, Error, Result};
use crate::train::cohort::{Split, Subject};

/// Which rows to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Those of a split.
    Of(Split),
    /// All of them.
    All,
}

impl Choice {
    /// `train`, `validation`, `test` or `all`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Of(split) => split.name(),
            Self::All => "all",
        }
    }

    /// The choice of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        let splits = [Split::Train, Split::Validation, Split::Test].map(Self::Of);
        splits.into_iter().chain([Self::All]).find(|choice| choice.name() == name)
    }

    fn holds(self, split: Option<Split>) -> bool {
        self == Self::All || split.map(Self::Of) == Some(self)
    }
}

/// Which rows were measured.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// The split: `train`, `validation`, `test` or `all`.
    pub name: &'static str,
    /// Why that one: `asked for`, `the list has it`, or `the list has no test split`.
    pub why: &'static str,
    /// Rows of the split.
    pub rows: usize,
    /// Rows that were answered: the figures are theirs.
    pub answered: usize,
    /// People that these are about.
    pub subjects: usize,
    /// Of the answered rows, those without a report: the image-only classifier answered.
    pub without_report: usize,
}

/// A choice that was made.
pub(super) struct Chosen {
    pub choice: Choice,
    why: &'static str,
    fit: bool,
}

/// Decides what is measured.
pub(super) fn choose(subjects: &[Subject], asked: Option<Choice>, fit: bool) -> Result<Chosen> {
    let has = |choice: Choice| subjects.iter().any(|s| choice.holds(s.split));
    let test = Choice::Of(Split::Test);
    let (choice, why) = match asked {
        Some(choice) => (choice, "asked for"),
        None if has(test) => (test, "the list has it"),
        None => (Choice::All, "the list has no test split"),
    };
    if !has(choice) {
        let message = format!("the list has no row of the split `{}`: name it in the column `split`", choice.name());
        return Err(Error::new(Code::LIST_INVALID, message));
    }
    if fit && !has(Choice::Of(Split::Validation)) {
        let message = "there is no validation split to fit a temperature on: name it in the column `split`";
        return Err(Error::new(Code::LIST_INVALID, message));
    }
    if fit && choice.holds(Some(Split::Validation)) {
        let message = format!(
            "the split `{}` ({why}) holds the validation rows that the temperature is fitted on, and figures of them would \
             flatter: measure `test` or `train`",
            choice.name()
        );
        return Err(Error::new(Code::CONFIG_VALUE, message));
    }
    Ok(Chosen { choice, why, fit })
}

impl Chosen {
    /// The rows that must be answered, in the list's order.
    pub fn needed<'s>(&self, subjects: &'s [Subject]) -> Vec<&'s Subject> {
        let fitted_on = |s: &Subject| self.fit && s.split == Some(Split::Validation);
        subjects.iter().filter(|s| self.measures(s.split) || fitted_on(s)).collect()
    }

    /// Whether rows of that split are measured.
    pub fn measures(&self, split: Option<Split>) -> bool {
        self.choice.holds(split)
    }

    pub fn measured(&self, subjects: &[Subject], answered: &[RowResult]) -> Measured {
        Measured {
            name: self.choice.name(),
            why: self.why,
            rows: subjects.iter().filter(|s| self.measures(s.split)).count(),
            answered: answered.len(),
            subjects: answered.iter().map(|row| &row.subject).collect::<BTreeSet<_>>().len(),
            without_report: answered.iter().filter(|row| row.report.is_none()).count(),
        }
    }
}
