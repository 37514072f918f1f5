//! Metrics against scikit-learn, SciPy and NumPy (`tests/data/metrics/make_metrics.py`).

use std::path::Path;

use brain_adapter::metrics::temperature::{Outcome, fit};
use brain_adapter::metrics::{Confusion, LabelledPrediction, Scores, bootstrap};
use serde_json::Value;

/// Sums in another order: a few bits of f64.
const ROUNDING: f64 = 1e-12;

fn cases(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/metrics").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn answers(case: &Value) -> Vec<LabelledPrediction> {
    let (truth, probabilities): (Vec<usize>, Vec<Vec<f64>>) = (read(&case["truth"]), read(&case["probabilities"]));
    truth.into_iter().zip(probabilities).map(|(t, p)| LabelledPrediction::new(t, p)).collect()
}

#[track_caller]
fn close(found: f64, expected: &Value, tolerance: f64, what: &str) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() <= tolerance, "{what}: {found}, expected {expected}");
}

#[test]
fn scores_are_scikit_learns() {
    let cases = cases("scores.json");
    assert!(cases.len() >= 10);
    let (mut absent, mut undefined) = (0, 0);
    for case in &cases {
        let classes: usize = read(&case["classes"]);
        let answers = answers(case);
        let confusion = Confusion::of(&answers.iter().collect::<Vec<_>>(), classes);
        assert_eq!(confusion.counts, read::<Vec<Vec<u64>>>(&case["confusion"]));
        let scores = Scores::of(&answers, classes);
        let reliability = &scores.reliability;
        for (name, found) in [
            ("accuracy", scores.accuracy),
            ("balanced_accuracy", scores.balanced_accuracy),
            ("macro_f1", scores.macro_f1),
            ("ece", reliability.ece),
            ("nll", reliability.nll),
            ("brier", reliability.brier),
        ] {
            close(found, &case[name], ROUNDING, name);
        }
        for (c, class) in scores.classes.iter().enumerate() {
            assert_eq!(class.support, read::<u64>(&case["support"][c]));
            close(class.precision, &case["precision"][c], ROUNDING, "precision");
            close(class.recall, &case["recall"][c], ROUNDING, "recall");
            close(class.f1, &case["f1"][c], ROUNDING, "f1");
            undefined += class.undefined.len();
            match scores.auc[c] {
                Some(auc) => close(auc, &case["auc"][c], ROUNDING, "auc"),
                None => {
                    absent += 1;
                    assert!(case["auc"][c].is_null());
                }
            }
        }
        assert_eq!(reliability.bins.iter().map(|b| b.answers).sum::<u64>(), answers.len() as u64);
    }
    assert!(absent > 0 && undefined > 0, "the cases hold absent classes");
}

#[test]
fn temperatures_are_scipys_minima() {
    for case in cases("temperature.json") {
        let (truth, logits): (Vec<usize>, Vec<Vec<f32>>) = (read(&case["truth"]), read(&case["logits"]));
        let pairs: Vec<(usize, &[f32])> = truth.iter().copied().zip(logits.iter().map(Vec::as_slice)).collect();
        let found = fit(&pairs);
        assert_eq!(found.outcome, Outcome::Minimum);
        // SciPy finds the minimum by values, which are flat there: to the root of their precision.
        let expected = case["temperature"].as_f64().unwrap();
        assert!((found.temperature / expected - 1.0).abs() < 1e-6, "{found:?}, expected {expected}");
        close(found.nll_before, &case["nll_before"], 1e-12, "before");
        close(found.nll_after, &case["nll_after"], 1e-12, "after");
        let at = |t: f64| -> Vec<LabelledPrediction> {
            pairs.iter().map(|(truth, z)| LabelledPrediction::from_logits(*truth, z, t)).collect()
        };
        let (before, after) = (at(1.0), at(found.temperature));
        assert!(before.iter().zip(&after).all(|(a, b)| a.predicted == b.predicted));
        let classes = logits[0].len();
        let [before, after] = [before, after].map(|a| Scores::of(&a, classes).reliability);
        close(before.ece, &case["ece_before"], 1e-12, "ECE before");
        close(after.ece, &case["ece_after"], 1e-6, "ECE after");
        close(after.brier, &case["brier_after"], 1e-6, "Brier after");
    }
}

/// Accuracy against the exact distribution of draws (a quotient of whole numbers: off by one subject at most), the
/// others against 20,000 draws of NumPy.
#[test]
fn intervals_are_those_of_the_distribution() {
    for case in cases("bootstrap.json") {
        let classes: usize = read(&case["classes"]);
        let answers = answers(&case);
        let subjects: Vec<Vec<LabelledPrediction>> = answers.iter().map(|a| vec![a.clone()]).collect();
        let found = bootstrap(&subjects, 10_000, 5, |drawn| {
            let scores = Scores::of_refs(drawn, classes);
            vec![Some(scores.accuracy), scores.auc[0], Some(scores.reliability.ece)]
        });
        let one = 1.0 / answers.len() as f64 + 1e-9;
        for (i, (name, tolerance)) in [("accuracy", one), ("auc_0", 0.005), ("ece", 0.005)].into_iter().enumerate() {
            let interval = found[i].unwrap();
            close(interval.low, &case[name][0], tolerance, name);
            close(interval.high, &case[name][1], tolerance, name);
        }
    }
}
