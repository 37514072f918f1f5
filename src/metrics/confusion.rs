//! Counts of truth against answer, and the figures that follow from counts alone.

use serde::Serialize;

use super::Answer;

/// How often each class was taken for each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Confusion {
    /// `counts[t][p]`: subjects of class `t` that were called `p`.
    pub counts: Vec<Vec<u64>>,
}

/// Figures of one class against the others. Where a quotient has no denominator it is 0 (as scikit-learn's
/// `zero_division=0`), and `undefined` names it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassScores {
    /// Subjects of the class.
    pub support: u64,
    /// Of those called so, the share that is. Undefined where none is called so.
    pub precision: f64,
    /// Of those that are, the share called so (sensitivity). Undefined where none is.
    pub recall: f64,
    /// 2·TP / (2·TP + FP + FN). Undefined where the class neither occurs nor is called.
    pub f1: f64,
    /// Which of `precision`, `recall` and `f1` stand at 0 for want of a denominator.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub undefined: Vec<&'static str>,
}

/// A quotient; 0 over nothing.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl Confusion {
    /// The counts of answers whose classes are all below `classes`; others are not counted.
    pub fn of(answers: &[&Answer], classes: usize) -> Self {
        let mut counts = vec![vec![0; classes]; classes];
        for answer in answers {
            if let Some(count) = counts.get_mut(answer.truth).and_then(|row| row.get_mut(answer.predicted)) {
                *count += 1;
            }
        }
        Self { counts }
    }

    /// Answers in all.
    pub fn total(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    /// Subjects of a class.
    fn occurs(&self, class: usize) -> u64 {
        self.counts[class].iter().sum()
    }

    /// Subjects that were called so.
    fn called(&self, class: usize) -> u64 {
        self.counts.iter().map(|row| row[class]).sum()
    }

    /// Share of right answers; 0 of none.
    pub fn accuracy(&self) -> f64 {
        share((0..self.counts.len()).map(|c| self.counts[c][c]).sum(), self.total())
    }

    /// Mean recall of the classes that occur (as scikit-learn's `balanced_accuracy_score`); 0 where none does.
    pub fn balanced_accuracy(&self) -> f64 {
        let occurring: Vec<usize> = (0..self.counts.len()).filter(|c| self.occurs(*c) > 0).collect();
        let sum: f64 = occurring.iter().map(|c| share(self.counts[*c][*c], self.occurs(*c))).sum();
        if occurring.is_empty() { 0.0 } else { sum / occurring.len() as f64 }
    }

    /// Mean F1 of all classes, those that never occur with 0.
    pub fn macro_f1(&self) -> f64 {
        let classes = self.classes();
        classes.iter().map(|c| c.f1).sum::<f64>() / classes.len().max(1) as f64
    }

    /// Figures of each class.
    pub fn classes(&self) -> Vec<ClassScores> {
        let scores = |class: usize| {
            let (right, occurs, called) = (self.counts[class][class], self.occurs(class), self.called(class));
            let denominators = [("precision", called), ("recall", occurs), ("f1", occurs + called)];
            ClassScores {
                support: occurs,
                precision: share(right, called),
                recall: share(right, occurs),
                f1: share(2 * right, occurs + called),
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
    fn what_has_no_denominator_is_named() {
        let answers = [Answer::new(0, vec![1.0, 0.0, 0.0]), Answer::new(1, vec![1.0, 0.0, 0.0])];
        let confusion = Confusion::of(&answers.iter().collect::<Vec<_>>(), 3);
        let undefined: Vec<Vec<&str>> = confusion.classes().into_iter().map(|c| c.undefined).collect();
        assert_eq!(undefined, [vec![], vec!["precision"], vec!["precision", "recall", "f1"]]);
        assert_eq!(confusion.counts, [[1, 0, 0], [1, 0, 0], [0, 0, 0]]);
    }
}
