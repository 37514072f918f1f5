//! Confidence intervals of the metrics.

use std::collections::BTreeMap;

use serde::Serialize;

use super::RowResult;
use crate::metrics::{Interval, LabelledPrediction, Scores, bootstrap};

/// 95 % intervals of the metrics in [`Scores`], under the same names: percentiles of the bootstrap over subjects,
/// stratified by class ([`bootstrap`]). None where a metric is not defined in every draw. The calibration error of a
/// draw tends to be larger than that of the whole, so its interval may lie above the metric.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Intervals {
    /// Number of draws.
    pub draws: u32,
    /// Seed of the draws.
    pub seed: u64,
    /// Fraction of correct predictions.
    pub accuracy: Option<Interval>,
    /// Mean recall.
    pub balanced_accuracy: Option<Interval>,
    /// Mean F1.
    pub macro_f1: Option<Interval>,
    /// Mean area under the ROC curves.
    pub macro_auc: Option<Interval>,
    /// Expected calibration error.
    pub ece: Option<Interval>,
    /// Negative log-likelihood.
    pub nll: Option<Interval>,
    /// Brier score.
    pub brier: Option<Interval>,
    /// Area under the ROC curve of each class.
    pub auc: Vec<Option<Interval>>,
    /// Precision of each class.
    pub precision: Vec<Option<Interval>>,
    /// Recall of each class.
    pub recall: Vec<Option<Interval>>,
    /// F1 of each class.
    pub f1: Vec<Option<Interval>>,
}

/// Number of metrics in [`flat`] that are not of a class.
const OVERALL: usize = 7;

/// All metrics in one list: the overall ones, then four of each class.
fn flat(s: &Scores) -> Vec<Option<f64>> {
    let r = &s.reliability;
    let overall = [s.accuracy, s.balanced_accuracy, s.macro_f1, r.ece, r.nll, r.brier].map(Some);
    let of_classes =
        s.classes.iter().zip(&s.auc).flat_map(|(c, auc)| [*auc, Some(c.precision), Some(c.recall), Some(c.f1)]);
    overall.into_iter().chain([s.macro_auc]).chain(of_classes).collect()
}

impl Intervals {
    /// The intervals over `subjects`, which hold the predictions of each.
    pub(super) fn of(subjects: &[Vec<LabelledPrediction>], classes: usize, draws: u32, seed: u64) -> Self {
        let all = bootstrap(subjects, draws, seed, |drawn| flat(&Scores::of_refs(drawn, classes)));
        let at = |i: usize| all.get(i).copied().flatten();
        let of_class = |i: usize| (0..classes).map(|class| at(OVERALL + 4 * class + i)).collect();
        Self {
            draws,
            seed,
            accuracy: at(0),
            balanced_accuracy: at(1),
            macro_f1: at(2),
            ece: at(3),
            nll: at(4),
            brier: at(5),
            macro_auc: at(6),
            auc: of_class(0),
            precision: of_class(1),
            recall: of_class(2),
            f1: of_class(3),
        }
    }
}

/// The predictions grouped by subject, in the order of the subjects' first rows.
pub(super) fn by_subject(rows: &[RowResult], predictions: &[LabelledPrediction]) -> Vec<Vec<LabelledPrediction>> {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut subjects: Vec<Vec<LabelledPrediction>> = Vec::new();
    for (row, prediction) in rows.iter().zip(predictions) {
        let place = *places.entry(&row.subject).or_insert(subjects.len());
        if place == subjects.len() {
            subjects.push(Vec::new());
        }
        subjects[place].push(prediction.clone());
    }
    subjects
}
