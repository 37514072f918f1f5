//! The confusion matrix, and the metrics that follow from its counts.

use serde::Serialize;

use super::LabelledPrediction;

/// The confusion matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Confusion {
    /// `counts[t][p]`: number of subjects of class `t` with the prediction `p`.
    pub counts: Vec<Vec<u64>>,
}

/// Metrics of one class against the others. A metric whose denominator is 0 is 0 (as scikit-learn's `zero_division=0`),
/// and `undefined` names it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassScores {
    /// Number of subjects of the class.
    pub support: u64,
    /// TP / (TP + FP). Undefined where the class is never predicted.
    pub precision: f64,
    /// TP / (TP + FN), the sensitivity. Undefined where the class does not occur.
    pub recall: f64,
    /// 2·TP / (2·TP + FP + FN). Undefined where the class neither occurs nor is predicted.
    pub f1: f64,
    /// Which of `precision`, `recall` and `f1` are undefined, and so 0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub undefined: Vec<&'static str>,
}

/// A quotient; 0 where the denominator is 0.
fn ratio(numerator: u64, denominator: u64) -> f64 {
    if denominator == 0 { 0.0 } else { numerator as f64 / denominator as f64 }
}

impl Confusion {
    /// The counts of predictions whose classes are both below `classes`; others are not counted.
    pub fn of(predictions: &[&LabelledPrediction], classes: usize) -> Self {
        let mut counts = vec![vec![0; classes]; classes];
        for prediction in predictions {
            if let Some(count) = counts.get_mut(prediction.truth).and_then(|row| row.get_mut(prediction.predicted)) {
                *count += 1;
            }
        }
        Self { counts }
    }

    /// Number of predictions.
    pub fn total(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    /// Number of subjects of a class.
    fn occurs(&self, class: usize) -> u64 {
        self.counts[class].iter().sum()
    }

    /// Number of predictions of a class.
    fn predicted(&self, class: usize) -> u64 {
        self.counts.iter().map(|row| row[class]).sum()
    }

    /// Fraction of correct predictions; 0 without predictions.
    pub fn accuracy(&self) -> f64 {
        ratio((0..self.counts.len()).map(|c| self.counts[c][c]).sum(), self.total())
    }

    /// Mean recall of the classes that occur (as scikit-learn's `balanced_accuracy_score`); 0 where none does.
    pub fn balanced_accuracy(&self) -> f64 {
        let occurring: Vec<usize> = (0..self.counts.len()).filter(|c| self.occurs(*c) > 0).collect();
        let sum: f64 = occurring.iter().map(|c| ratio(self.counts[*c][*c], self.occurs(*c))).sum();
        if occurring.is_empty() { 0.0 } else { sum / occurring.len() as f64 }
    }

    /// Mean F1 of all classes, those that never occur with 0.
    pub fn macro_f1(&self) -> f64 {
        let classes = self.classes();
        classes.iter().map(|c| c.f1).sum::<f64>() / classes.len().max(1) as f64
    }

    /// Metrics of each class.
    pub fn classes(&self) -> Vec<ClassScores> {
        let scores = |class: usize| {
            let (correct, occurs, predicted) = (self.counts[class][class], self.occurs(class), self.predicted(class));
            let denominators = [("precision", predicted), ("recall", occurs), ("f1", occurs + predicted)];
            ClassScores {
                support: occurs,
                precision: ratio(correct, predicted),
                recall: ratio(correct, occurs),
                f1: ratio(2 * correct, occurs + predicted),
                undefined: denominators.into_iter().filter(|(_, n)| *n == 0).map(|(name, _)| name).collect(),
            }
        };
        (0..self.counts.len()).map(scores).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undefined_metrics_are_named() {
        let predictions =
            [LabelledPrediction::new(0, vec![1.0, 0.0, 0.0]), LabelledPrediction::new(1, vec![1.0, 0.0, 0.0])];
        let confusion = Confusion::of(&predictions.iter().collect::<Vec<_>>(), 3);
        let undefined: Vec<Vec<&str>> = confusion.classes().into_iter().map(|c| c.undefined).collect();
        assert_eq!(undefined, [vec![], vec!["precision"], vec!["precision", "recall", "f1"]]);
        assert_eq!(confusion.counts, [[1, 0, 0], [1, 0, 0], [0, 0, 0]]);
    }
}
