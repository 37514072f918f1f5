//! Metrics of a classifier: pure functions of labels and predicted probabilities.
//!
//! Layer 1. A [`LabelledPrediction`] is a model's prediction with the true class. [`Scores`] are accuracy, F1, AUC and
//! the like, [`Reliability`] measures calibration, [`temperature`] improves it, [`bootstrap`] gives confidence
//! intervals, and [`tsne`] embeds high-dimensional points in the plane. Everything is deterministic: the same
//! predictions and seed give the same bits, on any number of threads.
//!
//! ```
//! use brain_adapter::metrics::{LabelledPrediction, Scores};
//!
//! let prediction = |truth, p: [f64; 2]| LabelledPrediction::new(truth, p.to_vec());
//! let predictions = [prediction(0, [0.9, 0.1]), prediction(1, [0.6, 0.4]), prediction(1, [0.2, 0.8])];
//! let scores = Scores::of(&predictions, 2);
//! assert_eq!((scores.accuracy, scores.auc[1]), (2.0 / 3.0, Some(1.0)));
//! ```

mod auc;
mod bootstrap;
mod calibration;
mod confusion;
pub mod temperature;
mod tsne;

use serde::Serialize;

pub use auc::auc;
pub use bootstrap::{Interval, bootstrap};
pub use calibration::{BINS, Bin, Reliability};
pub use confusion::{ClassScores, Confusion};
pub use tsne::{Layout, tsne};

/// A model's prediction with the true class.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledPrediction {
    /// The true class, from 0.
    pub truth: usize,
    /// The predicted class.
    pub predicted: usize,
    /// The probability of each class; they sum to 1.
    pub probabilities: Vec<f64>,
}

impl LabelledPrediction {
    /// A prediction of the most probable class.
    pub fn new(truth: usize, probabilities: Vec<f64>) -> Self {
        Self { truth, predicted: argmax(&probabilities), probabilities }
    }

    /// The prediction of logits at a temperature: probabilities softmax(logits / T), and the class of the largest
    /// logit.
    pub fn from_logits(truth: usize, logits: &[f32], temperature: f64) -> Self {
        Self { truth, predicted: argmax(logits), probabilities: softmax(logits, temperature) }
    }
}

/// Index of the largest value, the first of equal ones (as `numpy.argmax`); 0 for no values.
pub fn argmax<T: PartialOrd>(values: &[T]) -> usize {
    (1..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

/// softmax(logits / T), in f64. Logits must be finite and T above 0.
pub fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let exps: Vec<f64> = logits.iter().map(|l| ((f64::from(*l) - largest) / temperature).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|e| e / sum).collect()
}

/// The metrics of a set of predictions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Number of predictions.
    pub answers: usize,
    /// Fraction of correct predictions; 0 without predictions.
    pub accuracy: f64,
    /// Mean recall of the classes that occur.
    pub balanced_accuracy: f64,
    /// Mean F1 of all classes. As scikit-learn's `f1_score(labels=all, average="macro", zero_division=0)`: a class that
    /// neither occurs nor is predicted counts with 0.
    pub macro_f1: f64,
    /// Metrics of each class.
    pub classes: Vec<ClassScores>,
    /// Area under the ROC curve of each class against the others, by its probability; none where the class does not
    /// occur, or nothing else does.
    pub auc: Vec<Option<f64>>,
    /// Mean of the areas that are defined.
    pub macro_auc: Option<f64>,
    /// Calibration: how well probabilities match frequencies.
    #[serde(flatten)]
    pub reliability: Reliability,
}

impl Scores {
    /// The metrics of `predictions` among so many classes.
    pub fn of(predictions: &[LabelledPrediction], classes: usize) -> Self {
        Self::of_refs(&predictions.iter().collect::<Vec<_>>(), classes)
    }

    /// As [`Self::of`], for references; a bootstrap sample has some predictions more than once.
    pub fn of_refs(predictions: &[&LabelledPrediction], classes: usize) -> Self {
        let confusion = Confusion::of(predictions, classes);
        let auc: Vec<Option<f64>> = (0..classes).map(|class| auc(predictions, class)).collect();
        let defined: Vec<f64> = auc.iter().copied().flatten().collect();
        Self {
            answers: predictions.len(),
            accuracy: confusion.accuracy(),
            balanced_accuracy: confusion.balanced_accuracy(),
            macro_f1: confusion.macro_f1(),
            classes: confusion.classes(),
            macro_auc: (!defined.is_empty()).then(|| defined.iter().sum::<f64>() / defined.len() as f64),
            auc,
            reliability: Reliability::of(predictions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_of_large_logits() {
        let p = softmax(&[1000.0, 1001.0, -1000.0], 1.0);
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!((p[1] / p[0] - std::f64::consts::E).abs() < 1e-9 && p[2] == 0.0);
        let p = softmax(&[3.0, 1.0], 2.0);
        assert!((p[0] / p[1] - std::f64::consts::E).abs() < 1e-12);
    }

    #[test]
    fn ties_go_to_the_first() {
        assert_eq!([argmax(&[1, 3, 3]), argmax(&[2, 2]), argmax::<i32>(&[])], [1, 0, 0]);
    }

    /// A class that does not occur has no AUC, and takes no part in the mean.
    #[test]
    fn the_mean_auc_is_that_of_the_classes_that_occur() {
        let prediction = |truth, p: [f64; 3]| LabelledPrediction { truth, predicted: 0, probabilities: p.to_vec() };
        let predictions = [
            prediction(0, [0.9, 0.1, 0.0]),
            prediction(0, [0.3, 0.7, 0.0]),
            prediction(1, [0.4, 0.6, 0.0]),
            prediction(1, [0.2, 0.8, 0.0]),
        ];
        let scores = Scores::of(&predictions, 3);
        assert_eq!((scores.auc.clone(), scores.macro_auc), (vec![Some(0.75), Some(0.75), None], Some(0.75)));
    }

    #[test]
    fn no_predictions_give_empty_metrics() {
        let scores = Scores::of(&[], 3);
        assert_eq!((scores.accuracy, scores.macro_f1, scores.macro_auc), (0.0, 0.0, None));
        assert_eq!((scores.auc, scores.reliability.ece), (vec![None; 3], 0.0));
    }
}
