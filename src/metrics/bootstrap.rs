//! How sure a figure is: percentile intervals of the stratified bootstrap.
//!
//! Subjects are drawn with replacement within their true class (as pROC does for areas under a curve: Robin et al. 2011),
//! so that each draw has as many of each class as the cohort. A case-control cohort was put together that way, and every
//! figure that the cohort has exists in every draw. The interval then says how much the figure would vary with other
//! subjects of the same classes, not with another mix of classes. The ends are percentiles (Efron 1981), interpolated
//! linearly between draws.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use super::Answer;

/// Share of draws within an interval.
const LEVEL: f64 = 0.95;

/// A 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Intervals of what `figures` makes of answers: a list of always the same length, none for figures that do not exist. Each of
/// `draws` draws has its own stream of ChaCha8 under `seed`. A figure that does not exist in every draw has no interval; nor
/// has any without draws.
pub fn bootstrap(
    answers: &[Answer],
    draws: u32,
    seed: u64,
    figures: impl Fn(&[&Answer]) -> Vec<Option<f64>> + Sync,
) -> Vec<Option<Interval>> {
    let count = figures(&answers.iter().collect::<Vec<_>>()).len();
    let classes = answers.iter().map(|a| a.truth + 1).max().unwrap_or(0);
    let strata: Vec<Vec<&Answer>> =
        (0..classes).map(|class| answers.iter().filter(|a| a.truth == class).collect()).collect();
    let draw = |i: u32| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(u64::from(i));
        let drawn: Vec<&Answer> = strata
            .iter()
            .flat_map(|of| of.iter().map(|_| of[rng.random_range(0..of.len())]).collect::<Vec<_>>())
            .collect();
        figures(&drawn)
    };
    let all: Vec<Vec<Option<f64>>> = (0..draws).into_par_iter().map(draw).collect();
    let interval = |figure: usize| {
        let mut values: Vec<f64> = all.iter().map(|draw| draw.get(figure).copied().flatten()).collect::<Option<_>>()?;
        values.sort_unstable_by(f64::total_cmp);
        let tail = (1.0 - LEVEL) / 2.0;
        Some(Interval { low: quantile(&values, tail)?, high: quantile(&values, 1.0 - tail)? })
    };
    (0..count).map(interval).collect()
}

/// The quantile of sorted values, interpolated linearly (numpy's default; Hyndman and Fan's type 7); none of none.
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
        let answers: Vec<Answer> = (0..20).map(|i| Answer::new(i % 3, vec![i as f64, 5.0, 9.0])).collect();
        let of_class = |class: usize| answers.iter().filter(|a| a.truth == class).count();
        let figures = |drawn: &[&Answer]| {
            let mix = (0..3).all(|c| drawn.iter().filter(|a| a.truth == c).count() == of_class(c));
            vec![Some(f64::from(u8::from(mix))), drawn.iter().map(|a| Some(a.probabilities[0])).sum(), None]
        };
        let [one, again, other] = [7, 7, 8].map(|seed| bootstrap(&answers, 200, seed, figures));
        assert_eq!(one[0], Some(Interval { low: 1.0, high: 1.0 }));
        assert!(one == again && one[1] != other[1] && one[2].is_none());
        assert_eq!(bootstrap(&answers, 0, 7, figures), [None; 3]);
        assert_eq!(bootstrap(&[], 5, 7, |_| vec![None]), [None]);
    }
}
