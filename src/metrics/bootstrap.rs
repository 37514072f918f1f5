//! Confidence intervals: percentiles of the stratified bootstrap.
//!
//! Subjects (with all their scans) are drawn with replacement within their true class (as pROC does for areas under a
//! curve: Robin et al. 2011), so that each draw has as many of each class as the cohort. A case-control cohort is
//! sampled that way too, and every metric that the cohort defines is defined in every draw. The interval then says how
//! much the metric would vary with other subjects of the same classes, not with another mix of classes. The ends are
//! percentiles (Efron 1981), interpolated linearly between draws.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use super::LabelledPrediction;

/// Fraction of draws within an interval.
const LEVEL: f64 = 0.95;

/// A 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The interval of each metric that `metrics` computes from predictions: a list of always the same length, none for
/// metrics that are not defined. `subjects` holds the predictions of each subject, whose class is the largest of their
/// true classes. Each of the `draws` has its own stream of ChaCha8 under `seed`. A metric that is not defined in every
/// draw has no interval; without draws none has.
///
/// ```
/// use brain_adapter::metrics::{LabelledPrediction, Scores, bootstrap};
///
/// let subject = |p: f64| vec![LabelledPrediction::new(0, vec![p, 1.0 - p])];
/// let subjects = [0.9, 0.8, 0.7, 0.4].map(subject);
/// let interval = bootstrap(&subjects, 1000, 0, |drawn| vec![Some(Scores::of_refs(drawn, 2).accuracy)])[0];
/// assert!(interval.is_some_and(|i| i.low <= 0.75 && i.high == 1.0));
/// ```
pub fn bootstrap(
    subjects: &[Vec<LabelledPrediction>],
    draws: u32,
    seed: u64,
    metrics: impl Fn(&[&LabelledPrediction]) -> Vec<Option<f64>> + Sync,
) -> Vec<Option<Interval>> {
    bootstrap_of(subjects, |prediction| prediction.truth, draws, seed, metrics)
}

/// As [`bootstrap`], of anything that has a true class.
pub(super) fn bootstrap_of<T: Sync>(
    subjects: &[Vec<T>],
    truth: impl Fn(&T) -> usize,
    draws: u32,
    seed: u64,
    metrics: impl Fn(&[&T]) -> Vec<Option<f64>> + Sync,
) -> Vec<Option<Interval>> {
    let count = metrics(&subjects.iter().flatten().collect::<Vec<_>>()).len();
    let mut strata: BTreeMap<usize, Vec<&[T]>> = BTreeMap::new();
    for rows in subjects {
        if let Some(class) = rows.iter().map(&truth).max() {
            strata.entry(class).or_default().push(rows);
        }
    }
    let draw = |i: u32| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(u64::from(i));
        let mut drawn: Vec<&T> = Vec::new();
        for of in strata.values() {
            (0..of.len()).for_each(|_| drawn.extend(of[rng.random_range(0..of.len())]));
        }
        metrics(&drawn)
    };
    let all: Vec<Vec<Option<f64>>> = (0..draws).into_par_iter().map(draw).collect();
    let interval = |metric: usize| {
        let mut values: Vec<f64> = all.iter().map(|draw| draw.get(metric).copied().flatten()).collect::<Option<_>>()?;
        values.sort_unstable_by(f64::total_cmp);
        let tail = (1.0 - LEVEL) / 2.0;
        Some(Interval { low: quantile(&values, tail)?, high: quantile(&values, 1.0 - tail)? })
    };
    (0..count).map(interval).collect()
}

/// The quantile of sorted values, interpolated linearly (numpy's default; Hyndman and Fan's type 7); none without
/// values.
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let at = q * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(below + (above - below) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_numpys() {
        // numpy.quantile([1, 2, 4, 8], [0.025, 0.5, 0.975])
        let sorted = [1.0, 2.0, 4.0, 8.0];
        for (q, expected) in [(0.025, 1.075), (0.5, 3.0), (0.975, 7.7), (0.0, 1.0), (1.0, 8.0)] {
            assert!((quantile(&sorted, q).unwrap() - expected).abs() < 1e-12);
        }
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn draws_keep_the_mix_of_classes_and_the_seed_decides() {
        let predictions: Vec<LabelledPrediction> =
            (0..20).map(|i| LabelledPrediction::new(i % 3, vec![i as f64, 5.0, 9.0])).collect();
        let subjects: Vec<Vec<LabelledPrediction>> = predictions.iter().map(|a| vec![a.clone()]).collect();
        let of_class = |class: usize| predictions.iter().filter(|a| a.truth == class).count();
        let metrics = |drawn: &[&LabelledPrediction]| {
            let mix = (0..3).all(|c| drawn.iter().filter(|a| a.truth == c).count() == of_class(c));
            vec![Some(f64::from(u8::from(mix))), drawn.iter().map(|a| Some(a.probabilities[0])).sum(), None]
        };
        let [one, again, other] = [7, 7, 8].map(|seed| bootstrap(&subjects, 200, seed, metrics));
        assert_eq!(one[0], Some(Interval { low: 1.0, high: 1.0 }));
        assert!(one == again && one[1] != other[1] && one[2].is_none());
        assert_eq!(bootstrap(&subjects, 0, 7, metrics), [None; 3]);
        assert_eq!(bootstrap(&[], 5, 7, |_| vec![None]), [None]);
    }

    /// Scans of one person repeat each other: they must not make an interval narrower.
    #[test]
    fn a_subject_is_drawn_with_all_scans() {
        let right = |i: usize| if i.is_multiple_of(3) { vec![0.0, 1.0] } else { vec![1.0, 0.0] };
        let one: Vec<Vec<LabelledPrediction>> = (0..30).map(|i| vec![LabelledPrediction::new(0, right(i))]).collect();
        let thrice: Vec<Vec<LabelledPrediction>> = one.iter().map(|a| vec![a[0].clone(); 3]).collect();
        let accuracy = |drawn: &[&LabelledPrediction]| {
            vec![Some(drawn.iter().filter(|a| a.predicted == a.truth).count() as f64 / drawn.len() as f64)]
        };
        assert_eq!(bootstrap(&one, 500, 1, accuracy), bootstrap(&thrice, 500, 1, accuracy));
    }

    /// A subject who got ill between two scans counts for the later class, wherever the other scans stand.
    #[test]
    fn subjects_of_several_classes_count_for_the_largest() {
        let scan = |truth| LabelledPrediction::new(truth, vec![1.0, 0.0]);
        let healthy = (0..5).map(|_| vec![scan(0)]);
        let subjects: Vec<Vec<LabelledPrediction>> =
            healthy.chain((0..10).map(|_| vec![scan(0), scan(1), scan(0)])).collect();
        let ill =
            |drawn: &[&LabelledPrediction]| vec![Some(drawn.iter().filter(|scan| scan.truth == 1).count() as f64)];
        assert_eq!(bootstrap(&subjects, 100, 3, ill), [Some(Interval { low: 10.0, high: 10.0 })]);
    }
}
