//! Which rows are evaluated.

use std::collections::BTreeSet;

use serde::Serialize;

use super::RowResult;
use crate::cohort::{Case, Split};
use crate::error::{Code, Error, Result};

/// Which rows to evaluate.
///
/// ```
/// use brain_adapter::cohort::Split;
/// use brain_adapter::train::eval::EvalSplit;
///
/// assert_eq!(EvalSplit::from_name("test"), Some(EvalSplit::Only(Split::Test)));
/// assert_eq!(EvalSplit::All.name(), "all");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvalSplit {
    /// The rows of one split.
    Only(Split),
    /// All rows.
    All,
}

impl EvalSplit {
    /// `train`, `validation`, `test` or `all`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Only(split) => split.name(),
            Self::All => "all",
        }
    }

    /// Parses a name, in lower case.
    pub fn from_name(name: &str) -> Option<Self> {
        let splits = Split::ALL.map(Self::Only);
        splits.into_iter().chain([Self::All]).find(|split| split.name() == name)
    }

    fn contains(self, split: Option<Split>) -> bool {
        self == Self::All || split.map(Self::Only) == Some(self)
    }
}

/// Which rows were evaluated.
#[derive(Clone, Debug, Serialize)]
pub struct EvaluatedRows {
    /// The split: `train`, `validation`, `test` or `all`.
    pub name: &'static str,
    /// The reason for that split: `asked for`, `the list has it`, or `the list has no test split`.
    pub why: &'static str,
    /// Number of rows of the split.
    pub rows: usize,
    /// Number of rows with a prediction: the metrics are theirs.
    pub answered: usize,
    /// Number of subjects of these rows.
    pub subjects: usize,
    /// Number of these rows without a report, which the image-only classifier predicts.
    pub without_report: usize,
}

/// The rows of an evaluation.
pub(super) struct Selection {
    pub split: EvalSplit,
    why: &'static str,
    /// Whether the validation rows are needed too, to fit temperatures on.
    fit_temperature: bool,
}

/// Selects the rows to evaluate: of the split that was asked for, else of the test split, else all.
pub(super) fn select(cases: &[Case], asked: Option<EvalSplit>, fit_temperature: bool) -> Result<Selection> {
    let has = |split: EvalSplit| cases.iter().any(|case| split.contains(case.split));
    let (test, validation) = (EvalSplit::Only(Split::Test), EvalSplit::Only(Split::Validation));
    let (split, why) = match asked {
        Some(split) => (split, "asked for"),
        None if has(test) => (test, "the list has it"),
        None => (EvalSplit::All, "the list has no test split"),
    };
    if !has(split) {
        let message = format!("the list has no row of the split `{}`: name it in the column `split`", split.name());
        return Err(Error::new(Code::LIST_INVALID, message));
    }
    if fit_temperature && !has(validation) {
        let message = "there is no validation split to fit a temperature on: name it in the column `split`";
        return Err(Error::new(Code::LIST_INVALID, message));
    }
    if fit_temperature && split.contains(Some(Split::Validation)) {
        let message = format!(
            "the split `{}` ({why}) contains the validation rows that the temperature is fitted on, and metrics of \
             them would be too good: evaluate `test` or `train`",
            split.name()
        );
        return Err(Error::new(Code::CONFIG_VALUE, message));
    }
    Ok(Selection { split, why, fit_temperature })
}

impl Selection {
    /// The rows that need a prediction, in the list's order.
    pub fn needed<'c>(&self, cases: &'c [Case]) -> Vec<&'c Case> {
        let fitted_on = |case: &Case| self.fit_temperature && case.split == Some(Split::Validation);
        cases.iter().filter(|case| self.evaluates(case.split) || fitted_on(case)).collect()
    }

    /// Whether rows of that split are evaluated.
    pub fn evaluates(&self, split: Option<Split>) -> bool {
        self.split.contains(split)
    }

    /// The summary of the selection, with the rows that have a prediction.
    pub fn summary(&self, cases: &[Case], answered: &[RowResult]) -> EvaluatedRows {
        EvaluatedRows {
            name: self.split.name(),
            why: self.why,
            rows: cases.iter().filter(|case| self.evaluates(case.split)).count(),
            answered: answered.len(),
            subjects: answered.iter().map(|row| &row.subject).collect::<BTreeSet<_>>().len(),
            without_report: answered.iter().filter(|row| row.report.is_none()).count(),
        }
    }
}
