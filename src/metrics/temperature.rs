//! Temperature scaling: calibration with a single number (Guo et al. 2017, section 4.2).
//!
//! Probabilities become softmax(logits / T). No label changes, since T > 0 keeps the order of logits. T minimises the
//! negative log-likelihood of held-out predictions, which in β = 1/T is convex: its derivative, the mean over
//! predictions of E_β\[z\] − z_truth, increases. So its only root is found by bisection, in ln β, between the limits of
//! [`RANGE`]: nothing depends on a starting point or a step size.

use serde::Serialize;

use super::bootstrap::bootstrap_of;
use super::{Interval, LabelledPrediction, Reliability, argmax, softmax};

/// Temperatures that are fitted, and that a bundle may hold. A model that needs one outside cannot be calibrated this
/// way.
pub const RANGE: std::ops::RangeInclusive<f64> = 0.05..=20.0;

/// Bisections of the range of ln β, which is 6 wide: to below the precision of f64.
const BISECTIONS: u32 = 60;

/// Fewest predictions that a temperature is fitted on. Simulated with true temperatures of 0.5 to 4, classifiers of 55
/// to 95 % accuracy, one or two scans a subject: a temperature that is always kept makes the likelihood of new
/// predictions worse by up to 0.15 nats on average with 12 predictions, 0.05 with 50. With the decision of
/// [`Gain::is_real`] it is better by 0.03 on average with 50, and worse by 0.003 at most in the worst setting;
/// with 12 it is hardly ever kept (`simulated_temperatures_do_no_harm` in `tests/train/metrics.rs` repeats this).
pub const MIN_PREDICTIONS: usize = 50;

/// Fewest subjects with a wrong prediction: right ones alone fit any small T, so few wrong ones decide it by luck.
/// Without this rule the same simulation gets worse by up to 0.04 nats with 50 predictions, 0.11 with 12.
pub const MIN_WRONG: usize = 5;

/// Fewest subjects of each class among them: each of the [`FOLDS`] then has one.
pub const MIN_OF_CLASS: usize = FOLDS;

/// Parts of the cross-validation.
pub const FOLDS: usize = 5;

/// Draws of the bootstrap, and their seed.
const DRAWS: (u32, u64) = (1000, 0);

/// A prediction to fit on: the true class from 0, and the logits, one a class, finite.
pub type Sample<'a> = (usize, &'a [f32]);

/// What fitting a temperature gains on predictions that it was not fitted on ([`cross_validated`]).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gain {
    /// The temperature that it is compared with.
    pub over: f64,
    /// Nats of log-likelihood that a prediction gains on average; below 0: fitting makes new predictions worse.
    pub nats: f64,
    /// Its 95 % interval: bootstrap over subjects.
    pub interval: Option<Interval>,
    /// Number of folds.
    pub folds: usize,
    /// Number of subjects.
    pub subjects: usize,
    /// Number of them with a wrong prediction.
    pub wrong: usize,
}

impl Gain {
    /// Whether the whole interval lies above 0, and enough predictions are wrong ([`MIN_WRONG`]): a temperature is kept
    /// only then.
    pub fn is_real(&self) -> bool {
        self.wrong >= MIN_WRONG && self.interval.is_some_and(|interval| interval.low > 0.0)
    }
}

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

impl Outcome {
    /// Whether predictions decided it; otherwise there is nothing to decide by, and the old temperature should stay.
    pub fn is_fitted(self) -> bool {
        !matches!(self, Self::AllRight | Self::NoAnswers)
    }
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

/// What a fitted temperature gains over `before` on predictions that it was not fitted on: each of [`FOLDS`] folds is
/// judged at the temperature of the others. Subjects, with all their predictions, stay in one fold; folds have alike
/// numbers of each class. None without predictions.
///
/// ```
/// use brain_adapter::metrics::temperature::cross_validated;
///
/// // Overconfident in the same way everywhere: one of five is wrong at a probability of 0.98.
/// let subjects: Vec<_> = (0..50).map(|i| vec![(usize::from(i % 5 == i / 5 % 5), &[4.0, 0.0][..])]).collect();
/// assert!(cross_validated(&subjects, 1.0).is_some_and(|gain| gain.is_real()));
/// ```
pub fn cross_validated(subjects: &[Vec<Sample<'_>>], before: f64) -> Option<Gain> {
    let folds = folds(subjects);
    let mut gains: Vec<Vec<(usize, f64)>> = vec![Vec::new(); subjects.len()];
    for fold in 0..FOLDS {
        let others =
            subjects.iter().zip(&folds).filter(|(_, f)| **f != fold).flat_map(|(rows, _)| rows.iter().copied());
        let others = fit(&others.collect::<Vec<_>>());
        let temperature = if others.outcome.is_fitted() { others.temperature } else { before };
        for (i, rows) in subjects.iter().enumerate().filter(|(i, _)| folds[*i] == fold) {
            gains[i] = rows.iter().map(|row| (row.0, nll(row, before) - nll(row, temperature))).collect();
        }
    }
    let rows = gains.iter().map(Vec::len).sum::<usize>();
    let mean = |rows: &[&(usize, f64)]| rows.iter().map(|(_, gain)| gain).sum::<f64>() / rows.len() as f64;
    let nats = (rows > 0).then(|| mean(&gains.iter().flatten().collect::<Vec<_>>()))?;
    let interval = bootstrap_of(&gains, |row| row.0, DRAWS.0, DRAWS.1, |drawn| vec![Some(mean(drawn))]);
    let interval = interval.into_iter().next().flatten();
    let is_wrong = |rows: &&Vec<Sample<'_>>| rows.iter().any(|(truth, logits)| argmax(logits) != *truth);
    let wrong = subjects.iter().filter(is_wrong).count();
    Some(Gain { over: before, nats, interval, folds: FOLDS, subjects: subjects.len(), wrong })
}

/// The fold of each subject: those of a class, the largest of a subject's true ones, are dealt out in turn.
fn folds(subjects: &[Vec<Sample<'_>>]) -> Vec<usize> {
    let class = |rows: &[Sample<'_>]| rows.iter().map(|row| row.0).max();
    let mut order: Vec<usize> = (0..subjects.len()).collect();
    order.sort_by_key(|i| class(&subjects[*i]));
    let mut folds = vec![0; subjects.len()];
    order.into_iter().enumerate().for_each(|(place, subject)| folds[subject] = place % FOLDS);
    folds
}

/// Negative log-likelihood of one prediction at a temperature, in nats.
fn nll(row: &Sample<'_>, temperature: f64) -> f64 {
    let prediction = LabelledPrediction::from_logits(row.0, row.1, temperature);
    Reliability::of(&[&prediction]).nll
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
