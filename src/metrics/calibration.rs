//! Whether probabilities are frequencies.

use serde::Serialize;

use super::Answer;

/// Bins of confidence, as Guo et al. 2017 ("On Calibration of Modern Neural Networks", ICML) have them.
pub const BINS: usize = 15;

/// Least probability that enters a logarithm: 2⁻⁵², the step of f64 at 1, where scikit-learn's `log_loss` clips too.
const LEAST: f64 = f64::EPSILON;

/// How answers' confidence (the probability of the class given) compares with how often they are right.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reliability {
    /// Expected calibration error (Guo et al. 2017): Σ bins, share of answers · |accuracy − mean confidence|.
    pub ece: f64,
    /// Mean −ln of the probability of the true class, in nats.
    pub nll: f64,
    /// Brier score: mean over answers of Σ classes (probability − truth)², from 0 to 2 (Brier 1950; not halved).
    pub brier: f64,
    /// [`BINS`] bins of equal width from 0 to 1.
    pub bins: Vec<Bin>,
}

/// Answers with a confidence in `(low, high]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// Least confidence, exclusive.
    pub low: f64,
    /// Largest confidence, inclusive.
    pub high: f64,
    /// Number of answers.
    pub answers: u64,
    /// Their mean confidence; 0 of none.
    pub confidence: f64,
    /// Share of them that is right; 0 of none.
    pub accuracy: f64,
}

impl Reliability {
    /// The figures of `answers`; all 0 of none.
    pub fn of(answers: &[&Answer]) -> Self {
        let edge = |i: usize| i as f64 / BINS as f64;
        let mut sums = [(0u64, 0.0, 0u64); BINS];
        let (mut nll, mut brier) = (0.0, 0.0);
        for answer in answers {
            let probability = |class: usize| answer.probabilities.get(class).copied().unwrap_or(0.0);
            let confidence = probability(answer.predicted);
            let bin = (1..BINS).find(|i| confidence <= edge(*i)).map_or(BINS - 1, |i| i - 1);
            let (count, total, right) = &mut sums[bin];
            *count += 1;
            *total += confidence;
            *right += u64::from(answer.predicted == answer.truth);
            nll -= probability(answer.truth).max(LEAST).ln();
            let squares = answer.probabilities.iter().enumerate();
            brier += squares.map(|(c, p)| (p - f64::from(u8::from(c == answer.truth))).powi(2)).sum::<f64>();
        }
        let n = answers.len().max(1) as f64;
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
        let answers = [0.2, 0.2 + 1e-12, 1.0, 0.0].map(|p| Answer { truth: 0, predicted: 0, probabilities: vec![p] });
        let reliability = Reliability::of(&answers.iter().collect::<Vec<_>>());
        let counts: Vec<u64> = reliability.bins.iter().map(|b| b.answers).collect();
        assert_eq!((counts[0], counts[2], counts[3], counts[14], counts.iter().sum()), (1, 1, 1, 1, 4u64));
        assert!(reliability.nll.is_finite());
    }
}
