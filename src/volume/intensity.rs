//! Percentiles and min–max normalisation of a conformed volume.
//!
//! In: finite f32 values, un-normalised. Out: the same values in `0..=1`, in place. Percentiles are those of
//! `numpy.percentile` (linear interpolation), found by two counting passes instead of a sort or a copy.

use crate::error::{Code, Error, Result};
use crate::tensor::number::{to_f32, to_f64, to_usize, truncate};

/// Maps an f32 to a u32 in the same order (negative values reversed below positive ones).
pub(super) fn key(v: f32) -> u32 {
    let bits = v.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The inverse of [`key`].
pub(super) fn value(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

/// An index of the tables of [`order_statistics`], which have 2^16 entries.
fn half(index: usize) -> u32 {
    u32::from(u16::try_from(index).expect("the tables have 2^16 entries"))
}

/// The values at the given ranks (0-based) of the sorted sequence; `ranks` are below `values.len()`.
fn order_statistics<const N: usize>(values: &[f32], ranks: [usize; N]) -> [f32; N] {
    let mut high = vec![0usize; 1 << 16];
    for v in values {
        high[to_usize(key(*v) >> 16)] += 1;
    }
    // For each rank: its bin of upper halves, and the rank within that bin.
    let places = ranks.map(|rank| locate(&high, rank));
    let mut low = vec![0usize; 1 << 16];
    let mut counted = None;
    places.map(|(bin, rank)| {
        if counted != Some(bin) {
            low.fill(0);
            for k in values.iter().map(|v| key(*v)).filter(|k| to_usize(k >> 16) == bin) {
                low[to_usize(k & 0xffff)] += 1;
            }
            counted = Some(bin);
        }
        let (rest, _) = locate(&low, rank);
        value(half(bin) << 16 | half(rest))
    })
}

/// The bin that holds the `rank`-th item, and the item's rank within it.
fn locate(bins: &[usize], mut rank: usize) -> (usize, usize) {
    for (bin, &count) in bins.iter().enumerate() {
        if rank < count {
            return (bin, rank);
        }
        rank -= count;
    }
    (bins.len() - 1, 0)
}

/// The `percents`-th percentiles (0 to 100) of `values`, which is not empty.
pub(super) fn percentiles(values: &[f32], percents: [f64; 2]) -> [f64; 2] {
    let last = values.len().saturating_sub(1);
    let at = percents.map(|p| p / 100.0 * to_f64(last));
    let below = at.map(|at| truncate(at.floor()).min(last));
    let above = below.map(|i| (i + 1).min(last));
    let [a0, b0, a1, b1] = order_statistics(values, [below[0], above[0], below[1], above[1]]).map(f64::from);
    let mix = |a: f64, b: f64, t: f64| a + (b - a) * t;
    [mix(a0, b0, at[0] - to_f64(below[0])), mix(a1, b1, at[1] - to_f64(below[1]))]
}

/// Checks a percentile clip.
fn check_clip([low, high]: [f64; 2]) -> Result<()> {
    // NaN fails the comparisons
    if 0.0 <= low && low < high && high <= 100.0 {
        return Ok(());
    }
    Err(Error::new(
        Code::CONFIG_VALUE,
        format!("volume.clip is [{low}, {high}], expected two percentiles with 0 <= low < high <= 100"),
    ))
}

/// Clips to percentiles, if asked, and maps the extremes to 0 and 1. Returns the extremes.
pub(super) fn normalize(values: &mut [f32], min: f32, max: f32, clip: Option<[f64; 2]>) -> Result<[f32; 2]> {
    let (min, max) = match clip {
        None => (min, max),
        Some(percents) => {
            check_clip(percents)?;
            let [low, high] = percentiles(values, percents);
            (to_f32(low), to_f32(high))
        }
    };
    let range = max - min;
    // Below the smallest normal number the quotient has no precision left.
    if range.is_nan() || range < f32::MIN_POSITIVE {
        return Err(Error::new(
            Code::NIFTI_CONSTANT,
            format!("all intensities lie between {min} and {max} after clipping: there is no image"),
        ));
    }
    for v in values {
        *v = (v.clamp(min, max) - min) / range;
    }
    Ok([min, max])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_the_order() {
        let sorted = [-f32::MAX, -1.5, -1e-40, -0.0, 0.0, 1e-40, 2.0, f32::MAX];
        assert!(sorted.windows(2).all(|w| key(w[0]) < key(w[1])));
        assert!(sorted.iter().all(|v| value(key(*v)).to_bits() == v.to_bits()));
    }

    #[test]
    fn percentiles_are_those_of_numpy() {
        // numpy.percentile([15, 20, 35, 40, 50, -3.5], [5, 40]) = [1.125, 20.0]; [12.5, 99] = [8.0625, 49.5]
        let values = [15.0, 20.0, 35.0, 40.0, 50.0, -3.5];
        assert_eq!(percentiles(&values, [5.0, 40.0]), [1.125, 20.0]);
        assert_eq!(percentiles(&values, [12.5, 99.0]), [8.0625, 49.5]);
        assert_eq!(percentiles(&values, [0.0, 100.0]), [-3.5, 50.0]);
        assert_eq!(percentiles(&[7.0], [0.0, 100.0]), [7.0, 7.0]);
    }

    #[test]
    fn normalisation() {
        let mut values = [-1.0, 0.0, 1.0, 3.0];
        normalize(&mut values, -1.0, 3.0, None).unwrap();
        assert_eq!(values, [0.0, 0.25, 0.5, 1.0]);
        let mut values: Vec<f32> = (0..=100u8).map(f32::from).collect();
        normalize(&mut values, 0.0, 100.0, Some([10.0, 90.0])).unwrap();
        assert_eq!((values[5], values[10], values[50], values[95]), (0.0, 0.0, 0.5, 1.0));
        assert_eq!(normalize(&mut [1.0; 9], 1.0, 1.0, None).unwrap_err().code(), Code::NIFTI_CONSTANT);
        // The range is above 0, but its quotients would have no precision.
        assert_eq!(normalize(&mut [0.0, 1e-39], 0.0, 1e-39, None).unwrap_err().code(), Code::NIFTI_CONSTANT);
        for clip in [[5.0, 5.0], [-1.0, 9.0], [0.0, 101.0], [f64::NAN, 50.0]] {
            assert_eq!(normalize(&mut [1.0, 2.0], 1.0, 2.0, Some(clip)).unwrap_err().code(), Code::CONFIG_VALUE);
        }
    }
}
