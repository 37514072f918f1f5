//! Figures of merit of a classifier: pure numbers, from answers to figures.
//!
//! Layer 1. An [`Answer`] is a subject with its true class and what a model said. [`Scores`] counts and ranks answers,
//! [`Reliability`] asks whether probabilities are frequencies, [`temperature`] makes them so, [`bootstrap`] says how sure a
//! figure is, and [`tsne`] lays points of many dimensions out on a plane. Everything is deterministic: the same answers and
//! seed give the same bits, whatever the number of threads.
//!
//! ```
//! use brain_adapter::metrics::{Answer, Scores};
//!
//! let answer = |truth, p: [f64; 2]| Answer::new(truth, p.to_vec());
//! let answers = [answer(0, [0.9, 0.1]), answer(1, [0.6, 0.4]), answer(1, [0.2, 0.8])];
//! let scores = Scores::of(&answers, 2);
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

/// A subject: what is true, and what a model said.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The true class, from 0.
    pub truth: usize,
    /// The class that the model gave.
    pub predicted: usize,
    /// Probabilities, a class each; they sum to 1.
    pub probabilities: Vec<f64>,
}

impl Answer {
    /// An answer whose class is the most probable one.
    pub fn new(truth: usize, probabilities: Vec<f64>) -> Self {
        Self { truth, predicted: argmax(&probabilities), probabilities }
    }

    /// The answer that logits give at a temperature: probabilities softmax(logits / T), and the class of the largest logit.
    pub fn at(truth: usize, logits: &[f32], temperature: f64) -> Self {
        Self { truth, predicted: argmax(logits), probabilities: softmax(logits, temperature) }
    }
}

/// The place of the largest value, the first of equal ones (as `numpy.argmax`); 0 of none.
pub fn argmax<T: PartialOrd>(values: &[T]) -> usize {
    (1..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

/// softmax(logits / T), in f64. Logits are finite, T is above 0.
pub fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let exps: Vec<f64> = logits.iter().map(|l| ((f64::from(*l) - largest) / temperature).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|e| e / sum).collect()
}

/// The figures of a set of answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Number of answers.
    pub answers: usize,
    /// Share of right answers; 0 of none.
    pub accuracy: f64,
    /// Mean recall of the classes that occur.
    pub balanced_accuracy: f64,
    /// Mean F1 of all classes. As scikit-learn's `f1_score(labels=all, average="macro", zero_division=0)`: a class that neither
    /// occurs nor is predicted counts with 0.
    pub macro_f1: f64,
    /// Figures of each class.
    pub classes: Vec<ClassScores>,
    /// Area under the ROC curve of each class against the others, by its probability; none where the class does not occur,
    /// or nothing else does.
    pub auc: Vec<Option<f64>>,
    /// Mean of the areas that there are.
    pub macro_auc: Option<f64>,
    /// Whether probabilities are frequencies.
    #[serde(flatten)]
    pub reliability: Reliability,
}

impl Scores {
    /// The figures of `answers` in a problem of so many classes.
    pub fn of(answers: &[Answer], classes: usize) -> Self {
        Self::of_refs(&answers.iter().collect::<Vec<_>>(), classes)
    }

    /// The same of answers that lie elsewhere, some perhaps drawn more than once.
    pub fn of_refs(answers: &[&Answer], classes: usize) -> Self {
        let confusion = Confusion::of(answers, classes);
        let auc: Vec<Option<f64>> = (0..classes).map(|class| auc(answers, class)).collect();
        let known: Vec<f64> = auc.iter().copied().flatten().collect();
        Self {
            answers: answers.len(),
            accuracy: confusion.accuracy(),
            balanced_accuracy: confusion.balanced_accuracy(),
            macro_f1: confusion.macro_f1(),
            classes: confusion.classes(),
            macro_auc: (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64),
            auc,
            reliability: Reliability::of(answers),
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

    #[test]
    fn no_answers_give_no_figures() {
        let scores = Scores::of(&[], 3);
        assert_eq!((scores.accuracy, scores.macro_f1, scores.macro_auc), (0.0, 0.0, None));
        assert_eq!((scores.auc, scores.reliability.ece), (vec![None; 3], 0.0));
    }
}
