//! The macro-F1 of each mode, and the differences between modes.
//!
//! The metric of a mode is the mean over its trainings (cohorts × seeds) of the macro-F1 on the test split. Its
//! interval, and that of a difference, is the percentile bootstrap over subjects ([`bootstrap`]), stratified by cohort
//! and class: a draw has the same subjects in all trainings, so that what makes a subject hard for both modes cancels
//! out of their difference. It says how much the metrics would vary with other subjects of the same population; seeds
//! are not drawn, the table shows their spread.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use brain_adapter::metrics::{Confusion, Interval, LabelledPrediction, bootstrap};
use serde::Serialize;

use super::MODES;
use super::trial::Outcome;

/// Seed of the bootstrap.
const SEED: u64 = 0;
/// The differences that are estimated: `a − b`, indices into [`MODES`].
const PAIRS: [(usize, usize); 2] = [(1, 0), (1, 2)];

/// A metric with its interval.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub name: String,
    pub value: f64,
    /// 95 %; none without draws.
    pub interval: Option<Interval>,
}

/// All estimates.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    pub draws: u32,
    /// Macro-F1 of each of [`MODES`].
    pub modes: Vec<Estimate>,
    /// Differences of macro-F1.
    pub differences: Vec<Estimate>,
}

/// The predictions of all trainings for each subject.
pub struct Trials {
    classes: usize,
    cohorts: usize,
    seeds: usize,
    /// The predictions for each subject in the order seed, mode. The truth is `cohort · classes + class`: the stratum
    /// of the bootstrap.
    subjects: Vec<Vec<LabelledPrediction>>,
}

impl Trials {
    /// The trials of `outcomes`, which must be in the order cohort, seed, mode.
    ///
    /// # Errors
    /// When trainings of one cohort were not tested on the same subjects.
    pub fn of(outcomes: &[Outcome], cohorts: usize, seeds: usize) -> Result<Self> {
        let classes = outcomes.first().map_or(0, |o| o.labels.len());
        let mut subjects = Vec::new();
        for (cohort, group) in outcomes.chunks(seeds * MODES.len()).enumerate() {
            let mut predictions: BTreeMap<&str, Vec<LabelledPrediction>> = BTreeMap::new();
            for row in group.iter().flat_map(|outcome| &outcome.answers) {
                let (truth, predicted) = (cohort * classes + row.truth, row.predicted);
                let prediction = LabelledPrediction { truth, predicted, probabilities: Vec::new() };
                predictions.entry(&row.subject).or_default().push(prediction);
            }
            let complete = predictions.values().all(|p| p.len() == seeds * MODES.len());
            ensure!(complete, "cohort {}: each training must predict each subject of the test split once", cohort + 1);
            subjects.extend(predictions.into_values());
        }
        Ok(Self { classes, cohorts, seeds, subjects })
    }

    /// Mean macro-F1 of each mode over the predictions of drawn subjects, subject by subject.
    fn macro_f1(&self, drawn: &[&LabelledPrediction]) -> Vec<f64> {
        let runs = self.seeds * MODES.len();
        let empty = Confusion { counts: vec![vec![0; self.classes]; self.classes] };
        let mut confusions = vec![empty; self.cohorts * runs];
        for subject in drawn.chunks(runs) {
            for (run, prediction) in subject.iter().enumerate() {
                let (cohort, class) = (prediction.truth / self.classes, prediction.truth % self.classes);
                confusions[cohort * runs + run].counts[class][prediction.predicted] += 1;
            }
        }
        let of_mode = |mode: usize| confusions.iter().skip(mode).step_by(MODES.len()).map(Confusion::macro_f1);
        (0..MODES.len()).map(|mode| of_mode(mode).sum::<f64>() / (self.cohorts * self.seeds) as f64).collect()
    }
}

impl Findings {
    /// The estimates over all trainings, with intervals of `draws` draws.
    pub fn of(trials: &Trials, draws: u32) -> Self {
        let metrics = |drawn: &[&LabelledPrediction]| {
            let modes = trials.macro_f1(drawn);
            let differences: Vec<f64> = PAIRS.iter().map(|(a, b)| modes[*a] - modes[*b]).collect();
            modes.into_iter().chain(differences).map(Some).collect::<Vec<_>>()
        };
        let values = metrics(&trials.subjects.iter().flatten().collect::<Vec<_>>());
        let intervals = bootstrap(&trials.subjects, draws, SEED, metrics);
        let names = MODES.iter().map(|m| m.name().to_owned());
        let names = names.chain(PAIRS.iter().map(|(a, b)| format!("{} - {}", MODES[*a].name(), MODES[*b].name())));
        let all = names.zip(values.into_iter().flatten()).zip(intervals);
        let mut modes: Vec<Estimate> =
            all.map(|((name, value), interval)| Estimate { name, value, interval }).collect();
        let differences = modes.split_off(MODES.len());
        Self { draws, modes, differences }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::TestRow;
    use super::*;

    /// Outcomes in the order cohort, seed, mode. The class of a subject is its number mod 3; `predicted(cohort, seed,
    /// mode, subject)` is the predicted one.
    fn trials(
        cohorts: usize,
        seeds: usize,
        subjects: usize,
        predicted: impl Fn(usize, usize, usize, usize) -> usize,
    ) -> Trials {
        let mut outcomes = Vec::new();
        for (cohort, seed) in (0..cohorts).flat_map(|c| (0..seeds).map(move |s| (c, s))) {
            for (mode, name) in MODES.into_iter().enumerate() {
                let row = |i: usize| TestRow {
                    subject: format!("s{i:03}"),
                    truth: i % 3,
                    predicted: predicted(cohort, seed, mode, i),
                };
                outcomes.push(Outcome {
                    cohort,
                    seed: seed as u64,
                    mode: name,
                    settings: String::new(),
                    cases: [0; 3],
                    best_epoch: 1,
                    validation_macro_f1: 0.0,
                    macro_f1: 0.0,
                    accuracy: 0.0,
                    macro_auc: None,
                    labels: ["CN", "MCI", "AD"].map(String::from).to_vec(),
                    answers: (0..subjects).map(row).collect(),
                    seconds: 0.0,
                });
            }
        }
        Trials::of(&outcomes, cohorts, seeds).unwrap()
    }

    #[test]
    fn a_metric_is_the_mean_over_cohorts_and_seeds() {
        // Training (0, 0) of mode 0 predicts class 0 for everything: F1 ½ of class 0, 0 of the others. All others are
        // right.
        let all = trials(2, 2, 9, |c, s, m, i| if (c, s, m) == (0, 0, 0) { 0 } else { i % 3 });
        let findings = Findings::of(&all, 50);
        let values: Vec<f64> = findings.modes.iter().map(|e| e.value).collect();
        assert!((values[0] - (0.5 / 3.0 + 3.0) / 4.0).abs() < 1e-12, "{values:?}");
        assert_eq!(values[1..], [1.0, 1.0]);
        assert_eq!(findings.differences[0].name, "tlp - fpm");
        assert!((findings.differences[0].value - (1.0 - values[0])).abs() < 1e-12);
        assert_eq!(findings.differences[1].interval, Some(Interval { low: 0.0, high: 0.0 }));
    }

    /// Both modes fail on the same subjects except for a few: each metric is uncertain, and their difference is not.
    #[test]
    fn draws_are_paired() {
        let wrong = |i: usize| (i % 3 + 1) % 3;
        let all = trials(1, 1, 90, |_, _, mode, i| match mode {
            0 if i % 10 == 0 || i < 3 => wrong(i),
            1 if i % 10 == 0 => wrong(i),
            _ => i % 3,
        });
        let findings = Findings::of(&all, 1000);
        let width = |e: &Estimate| e.interval.map(|i| i.high - i.low).unwrap();
        assert!(width(&findings.differences[0]) < 0.5 * width(&findings.modes[0]), "{findings:?}");
        let interval = findings.differences[0].interval.unwrap();
        assert!(interval.low >= 0.0 && interval.high > 0.0);
    }

    /// A known case: where errors are equal in all classes, macro-F1 is about the accuracy.
    #[test]
    fn an_interval_is_the_binomials() {
        // 300 subjects, 100 a class; 20 of each class are predicted as the next. The accuracy of a draw is
        // Binomial(300, 0.8) / 300:
        // scipy.stats.norm.interval(0.95, 0.8, sqrt(0.8 * 0.2 / 300)) is 0.7547 to 0.8453.
        let all = trials(1, 1, 300, |_, _, _, i| if i % 15 < 3 { (i + 1) % 3 } else { i % 3 });
        let findings = Findings::of(&all, 4000);
        let interval = findings.modes[0].interval.unwrap();
        assert!((findings.modes[0].value - 0.8).abs() < 1e-12);
        assert!((interval.low - 0.7547).abs() < 0.005 && (interval.high - 0.8453).abs() < 0.005, "{interval:?}");
    }

    #[test]
    fn other_subjects_are_refused() {
        let mut outcomes = Vec::new();
        for (mode, subject) in MODES.into_iter().zip(["a", "a", "b"]) {
            let answers = vec![TestRow { subject: subject.into(), truth: 0, predicted: 0 }];
            let json = serde_json::json!({"cohort": 0, "seed": 1, "mode": mode, "settings": "", "cases": [1, 1, 1],
                "best_epoch": 1, "validation_macro_f1": 0.0, "macro_f1": 0.0, "accuracy": 0.0, "macro_auc": null,
                "labels": ["CN", "MCI", "AD"], "answers": answers, "seconds": 0.0});
            outcomes.push(serde_json::from_value::<Outcome>(json).unwrap());
        }
        assert!(Trials::of(&outcomes, 1, 1).is_err());
    }
}
