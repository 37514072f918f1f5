//! Temperature scaling: calibration with a single number (Guo et al. 2017, section 4.2).
//!
//! Probabilities become softmax(logits / T). No label changes, since T > 0 keeps the order of logits. T minimises the
//! negative log-likelihood of held-out predictions, which in β = 1/T is convex: its derivative, the mean over
//! predictions of E_β\[z\] − z_truth, increases. So its only root is found by bisection, in ln β, between the limits of
//! [`RANGE`]: nothing depends on a starting point or a step size.

use serde::Serialize;

use super::{LabelledPrediction, Reliability, argmax, softmax};

/// Temperatures that are fitted, and that a bundle may hold. A model that needs one outside cannot be calibrated this
/// way.
pub const RANGE: std::ops::RangeInclusive<f64> = 0.05..=20.0;

/// Bisections of the range of ln β, which is 6 wide: to below the precision of f64.
const BISECTIONS: u32 = 60;

/// The result of [`fit`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fit {
    /// The temperature T.
    pub temperature: f64,
    /// How the temperature was found.
    pub outcome: Outcome,
    /// Number of predictions that it was fitted on.
    pub answers: usize,
    /// Their negative log-likelihood at T = 1, in nats.
    pub nll_before: f64,
    /// Their negative log-likelihood at T, in nats.
    pub nll_after: f64,
}

/// How a temperature was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is a minimum within the range.
    Minimum,
    /// The likelihood still grows at the range's lower end: logits hardly differ, and nearly all predictions are
    /// correct.
    LowerEnd,
    /// The likelihood still grows at the range's upper end: predictions are hardly better than chance.
    UpperEnd,
    /// Every prediction is correct, and the likelihood grows without bound as T falls to 0. That says more about the
    /// small number of predictions than about the model: T stays 1.
    AllRight,
    /// There was no prediction: T stays 1.
    NoAnswers,
}

/// Fits T to held-out predictions: true classes from 0, and logits (one a class, finite).
///
/// ```
/// use brain_adapter::metrics::temperature::{Outcome, fit};
///
/// // Overconfident: a probability of 0.95 where half of the predictions are correct.
/// let found = fit(&[(0, &[3.0, 0.0]), (1, &[3.0, 0.0]), (0, &[3.0, 1.0])]);
/// assert!(found.outcome == Outcome::Minimum && found.temperature > 1.0 && found.nll_after < found.nll_before);
/// ```
pub fn fit(held_out: &[(usize, &[f32])]) -> Fit {
    let nll = |temperature: f64| {
        let at = |(truth, z): &(usize, &[f32])| LabelledPrediction::from_logits(*truth, z, temperature);
        let all: Vec<LabelledPrediction> = held_out.iter().map(at).collect();
        Reliability::of(&all.iter().collect::<Vec<_>>()).nll
    };
    let (low, high) = (RANGE.start().ln(), RANGE.end().ln());
    let (temperature, outcome) = if held_out.is_empty() {
        (1.0, Outcome::NoAnswers)
    } else if held_out.iter().all(|(truth, z)| argmax(z) == *truth) {
        (1.0, Outcome::AllRight)
    } else if derivative(held_out, (-low).exp()) < 0.0 {
        (*RANGE.start(), Outcome::LowerEnd)
    } else if derivative(held_out, (-high).exp()) > 0.0 {
        (*RANGE.end(), Outcome::UpperEnd)
    } else {
        let (mut low, mut high) = (low, high);
        for _ in 0..BISECTIONS {
            let middle = low + (high - low) / 2.0;
            // The derivative is positive: β is too large, T too small.
            *(if derivative(held_out, (-middle).exp()) > 0.0 { &mut low } else { &mut high }) = middle;
        }
        ((low + (high - low) / 2.0).exp(), Outcome::Minimum)
    };
    Fit { temperature, outcome, answers: held_out.len(), nll_before: nll(1.0), nll_after: nll(temperature) }
}

/// d/dβ of the negative log-likelihood, summed over predictions.
fn derivative(held_out: &[(usize, &[f32])], beta: f64) -> f64 {
    let one = |(truth, logits): &(usize, &[f32])| {
        let probabilities = softmax(logits, 1.0 / beta);
        let expected: f64 = probabilities.iter().zip(*logits).map(|(p, z)| p * f64::from(*z)).sum();
        expected - logits.get(*truth).copied().map_or(0.0, f64::from)
    };
    held_out.iter().map(one).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn degenerate_cases_have_their_own_outcomes() {
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
