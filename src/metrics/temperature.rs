//! Temperature scaling: one number that makes probabilities honest (Guo et al. 2017, section 4.2).
//!
//! Probabilities become softmax(logits / T). No label changes, since T > 0 keeps the order of logits. T minimises the
//! negative log-likelihood of held-out answers, which in β = 1/T is convex: its slope, the mean over answers of
//! E_β\[z\] − z_truth, only grows. So the one root of the slope is found by halving, in ln β, between the limits of
//! [`RANGE`]: nothing depends on a starting point or a step.

use serde::Serialize;

use super::{Answer, Reliability, argmax, softmax};

/// Temperatures that are fitted, and that a bundle may hold. Beyond them a model is not to be repaired by a temperature.
pub const RANGE: std::ops::RangeInclusive<f64> = 0.05..=20.0;

/// Halvings of the range of ln β, which is 6 wide: to below the precision of f64.
const HALVINGS: u32 = 60;

/// What a fit gave.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fit {
    /// T.
    pub temperature: f64,
    /// What kind of a minimum it is.
    pub outcome: Outcome,
    /// Answers that it was fitted on.
    pub answers: usize,
    /// Their negative log-likelihood at T = 1, in nats.
    pub nll_before: f64,
    /// The same at T.
    pub nll_after: f64,
}

/// What kind of a minimum a temperature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A minimum within the range.
    Minimum,
    /// The likelihood still grows at the range's lower end: logits hardly differ, and nearly all answers are right.
    LowerEnd,
    /// The likelihood still grows at the range's upper end: the logits say hardly more than chance.
    UpperEnd,
    /// Every answer is right, and the likelihood grows without end as T falls to 0. That says more of how few answers there
    /// are than of the model: T stays 1.
    AllRight,
    /// There was no answer: T stays 1.
    NoAnswers,
}

/// Fits T on answers that were used for nothing else: their true classes, and logits (a class each, finite).
pub fn fit(answers: &[(usize, &[f32])]) -> Fit {
    let nll = |temperature: f64| {
        let all: Vec<Answer> = answers.iter().map(|(truth, z)| Answer::at(*truth, z, temperature)).collect();
        Reliability::of(&all.iter().collect::<Vec<_>>()).nll
    };
    let (low, high) = (RANGE.start().ln(), RANGE.end().ln());
    let (temperature, outcome) = if answers.is_empty() {
        (1.0, Outcome::NoAnswers)
    } else if answers.iter().all(|(truth, z)| argmax(z) == *truth) {
        (1.0, Outcome::AllRight)
    } else if slope(answers, (-low).exp()) < 0.0 {
        (*RANGE.start(), Outcome::LowerEnd)
    } else if slope(answers, (-high).exp()) > 0.0 {
        (*RANGE.end(), Outcome::UpperEnd)
    } else {
        let (mut low, mut high) = (low, high);
        for _ in 0..HALVINGS {
            let middle = low + (high - low) / 2.0;
            // A slope above 0: β is too large, T too small.
            *(if slope(answers, (-middle).exp()) > 0.0 { &mut low } else { &mut high }) = middle;
        }
        ((low + (high - low) / 2.0).exp(), Outcome::Minimum)
    };
    Fit { temperature, outcome, answers: answers.len(), nll_before: nll(1.0), nll_after: nll(temperature) }
}

/// d/dβ of the negative log-likelihood, summed over answers.
fn slope(answers: &[(usize, &[f32])], beta: f64) -> f64 {
    let one = |(truth, logits): &(usize, &[f32])| {
        let probabilities = softmax(logits, 1.0 / beta);
        let expected: f64 = probabilities.iter().zip(*logits).map(|(p, z)| p * f64::from(*z)).sum();
        expected - logits.get(*truth).copied().map_or(0.0, f64::from)
    };
    answers.iter().map(one).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told() {
        let right = [(0, [3.0f32, 1.0]), (1, [0.0, 2.0])];
        let wrong = [(1, [3.0f32, 1.0]), (0, [0.0, 2.0])];
        let refs =
            |rows: &'static [(usize, [f32; 2])]| rows.iter().map(|(t, z)| (*t, z.as_slice())).collect::<Vec<_>>();
        let nearly: &'static [(usize, [f32; 2])] = &[(0, [0.01, 0.0]), (1, [0.0, 0.01]), (1, [1e-6, 0.0])];
        let cases = [
            (refs(right.to_vec().leak()), 1.0, Outcome::AllRight),
            (refs(wrong.to_vec().leak()), 20.0, Outcome::UpperEnd),
            (refs(nearly), 0.05, Outcome::LowerEnd),
            (Vec::new(), 1.0, Outcome::NoAnswers),
        ];
        for (answers, temperature, outcome) in cases {
            let fit = fit(&answers);
            assert_eq!((fit.temperature, fit.outcome), (temperature, outcome));
            assert!(fit.nll_after <= fit.nll_before && fit.nll_after.is_finite());
        }
    }
}
