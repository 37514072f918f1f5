//! The area under the ROC curve.

use super::LabelledPrediction;

/// Area under the ROC curve of `class` against all others, ranked by its probability: the probability that a subject of
/// the class gets a higher one than another subject, ties counting half (Mann and Whitney's U over the number of pairs:
/// Hanley and McNeil 1982). None where only the class, or only others occur.
pub fn auc(predictions: &[&LabelledPrediction], class: usize) -> Option<f64> {
    let mut ranked: Vec<(f64, bool)> =
        predictions.iter().map(|p| (p.probabilities.get(class).copied().unwrap_or(0.0), p.truth == class)).collect();
    ranked.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    // Twice U, in integers, so that half ties are exact.
    let (mut below, mut twice) = (0u64, 0u64);
    for tied in ranked.chunk_by(|a, b| a.0 == b.0) {
        let of_class = tied.iter().filter(|(_, is)| *is).count() as u64;
        let others = tied.len() as u64 - of_class;
        twice += of_class * (2 * below + others);
        below += others;
    }
    let pairs = below * (ranked.len() as u64 - below);
    (pairs > 0).then(|| twice as f64 / (2 * pairs) as f64)
}
