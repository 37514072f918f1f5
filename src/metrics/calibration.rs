//! Calibration: how well probabilities match frequencies.

use serde::Serialize;

use super::LabelledPrediction;

/// Number of bins of confidence, as in Guo et al. 2017 ("On Calibration of Modern Neural Networks", ICML).
pub const BINS: usize = 15;

/// Minimum probability in a logarithm: 2⁻⁵², the step of f64 at 1, where scikit-learn's `log_loss` clips too.
const MIN_PROBABILITY: f64 = f64::EPSILON;

/// How the confidence of predictions (the probability of the predicted class) compares with their accuracy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reliability {
    /// Expected calibration error (Guo et al. 2017): Σ over bins of the fraction of predictions · |accuracy − mean
    /// confidence|.
    pub ece: f64,
    /// Mean −ln of the probability of the true class, in nats.
    pub nll: f64,
    /// Brier score: mean over predictions of Σ classes (probability − truth)², from 0 to 2 (Brier 1950; not halved).
    pub brier: f64,
    /// [`BINS`] bins of equal width from 0 to 1.
    pub bins: Vec<Bin>,
}

/// Predictions with a confidence in `(low, high]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// Lower bound of the confidence, exclusive.
    pub low: f64,
    /// Upper bound of the confidence, inclusive.
    pub high: f64,
    /// Number of predictions.
    pub answers: u64,
    /// Their mean confidence; 0 in an empty bin.
    pub confidence: f64,
    /// Their accuracy; 0 in an empty bin.
    pub accuracy: f64,
}

impl Reliability {
    /// The calibration of `predictions`; all 0 without predictions.
    pub fn of(predictions: &[&LabelledPrediction]) -> Self {
        let edge = |i: usize| i as f64 / BINS as f64;
        let mut sums = [(0u64, 0.0, 0u64); BINS];
        let (mut nll, mut brier) = (0.0, 0.0);
        for prediction in predictions {
            let probability = |class: usize| prediction.probabilities.get(class).copied().unwrap_or(0.0);
            let confidence = probability(prediction.predicted);
            let bin = (1..BINS).find(|i| confidence <= edge(*i)).map_or(BINS - 1, |i| i - 1);
            let (count, total, right) = &mut sums[bin];
            *count += 1;
            *total += confidence;
            *right += u64::from(prediction.predicted == prediction.truth);
            nll -= probability(prediction.truth).max(MIN_PROBABILITY).ln();
            let squares = prediction.probabilities.iter().enumerate();
            brier += squares.map(|(c, p)| (p - f64::from(u8::from(c == prediction.truth))).powi(2)).sum::<f64>();
        }
        let n = predictions.len().max(1) as f64;
        let bins: Vec<Bin> = sums
            .iter()
            .enumerate()
            .map(|(i, (count, total, right))| Bin {
                low: edge(i),
                high: edge(i + 1),
                answers: *count,
                confidence: total / (*count).max(1) as f64,
                accuracy: *right as f64 / (*count).max(1) as f64,
            })
            .collect();
        let ece = bins.iter().map(|b| b.answers as f64 / n * (b.accuracy - b.confidence).abs()).sum();
        Self { ece, nll: nll / n, brier: brier / n, bins }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bin_holds_its_upper_edge() {
        let predictions =
            [0.2, 0.2 + 1e-12, 1.0, 0.0].map(|p| LabelledPrediction { truth: 0, predicted: 0, probabilities: vec![p] });
        let reliability = Reliability::of(&predictions.iter().collect::<Vec<_>>());
        let counts: Vec<u64> = reliability.bins.iter().map(|b| b.answers).collect();
        assert_eq!((counts[0], counts[2], counts[3], counts[14], counts.iter().sum()), (1, 1, 1, 1, 4u64));
        // Of a probability of 0 the logarithm is that of 2⁻⁵².
        let expected = -(2.0 * 0.2f64.ln() - 52.0 * std::f64::consts::LN_2) / 4.0;
        assert!((reliability.nll - expected).abs() < 1e-9, "{}", reliability.nll);
    }
}
