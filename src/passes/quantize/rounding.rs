//! Rounding that the compiler can vectorise.

/// 1.5·2²³: numbers of this size have no bits for a fraction.
pub(super) const SHIFT: f32 = 12_582_912.0;

/// Rounds to the nearest integer, ties to even, for magnitudes below 2²²; unlike `round_ties_even` it needs no call on
/// CPUs without SSE 4.1, and is vectorised.
pub(super) fn round(x: f32) -> f32 {
    (x + SHIFT) - SHIFT
}

/// The largest magnitude. Sixteen maxima at a time, which the compiler can keep in vectors: their order does not
/// matter.
pub(super) fn max_abs(values: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (whole, rest) = values.as_chunks::<16>();
    for values in whole {
        for (lane, w) in lanes.iter_mut().zip(values) {
            let w = w.abs();
            *lane = if w > *lane { w } else { *lane };
        }
    }
    rest.iter().chain(&lanes).fold(0f32, |m, w| m.max(w.abs()))
}
