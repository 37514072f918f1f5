//! A bounded sample of a scan's voxels, and the figures of it.
//!
//! In: decoded rows along the file's first axis, in file order, any number at a time. Out: the fields of [`Quality`]
//! that need voxels. Of each run of `stride` rows one is kept, the place within the run by a hash: evenly spread, and
//! in step with no period of the file. Whole rows, since neighbours matter. Cost: a copy of 1 row in many, and one sort
//! of the sample.

use super::{HeaderFigures, Quality, SAMPLE};
use crate::tensor::number::{to_f32, to_f64, to_u64, truncate};
use crate::volume::intensity::{key, value};

/// Of the planes of an axis, the share at each side that is the border.
const BORDER: f64 = 0.025;
/// How far apart the voxels of the distant correlation are, mm.
const DISTANT_MM: f64 = 16.0;
/// Of the 99.9th percentile: what is farther below 0 is negative.
const NEGATIVE: f32 = 1e-3;
/// Of the 99.9th percentile: voxels above are foreground.
const FOREGROUND: f32 = 0.05;

/// Rows of a scan, as they stream by.
pub(in crate::volume) struct Sample {
    shape: [usize; 3],
    /// Rows a run; 0: nothing is sampled.
    stride: usize,
    /// Rows that have passed.
    passed: usize,
    /// The next row to keep.
    next: usize,
    rows: Vec<f32>,
    border: Vec<f32>,
    centre: Vec<f32>,
}

impl Sample {
    /// An empty sample of a file of this shape.
    pub(in crate::volume) fn new(shape: [usize; 3]) -> Self {
        let rows = shape[1] * shape[2];
        let stride = (rows * shape[0]).div_ceil(SAMPLE).clamp(1, rows.max(1));
        let kept = rows.div_ceil(stride) * shape[0];
        let (border, centre) = (Vec::new(), Vec::new());
        let mut sample = Self { shape, stride, passed: 0, next: 0, rows: Vec::with_capacity(kept), border, centre };
        sample.next = sample.kept_of(0);
        sample
    }

    /// A sample that keeps nothing.
    pub(in crate::volume) fn none(shape: [usize; 3]) -> Self {
        Self { stride: 0, next: usize::MAX, ..Self::new(shape) }
    }

    /// The row that is kept of a run, by the finalizer of SplitMix64.
    fn kept_of(&self, run: usize) -> usize {
        let mut x = to_u64(run).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let place = (x ^ (x >> 31)) % to_u64(self.stride);
        run * self.stride + usize::try_from(place).unwrap_or(0)
    }

    /// Takes in complete rows in file order.
    pub(in crate::volume) fn push(&mut self, values: &[f32]) {
        let length = self.shape[0];
        let end = self.passed + values.len() / length;
        while self.next < end {
            if let Some(row) = values.get((self.next - self.passed) * length..).and_then(|rest| rest.get(..length)) {
                self.keep(row);
            }
            self.next = self.kept_of(self.next / self.stride + 1);
        }
        self.passed = end;
    }

    fn keep(&mut self, row: &[f32]) {
        let [n0, n1, n2] = self.shape;
        let (j, k) = (self.next % n1, self.next / n1);
        let (edge, outside) = (margin(n0), is_border(j, n1) || is_border(k, n2));
        if outside {
            self.border.extend_from_slice(row);
        } else {
            self.border.extend_from_slice(&row[..edge]);
            self.border.extend_from_slice(&row[n0 - edge..]);
        }
        if is_centre(j, n1) && is_centre(k, n2) {
            self.centre.extend_from_slice(&row[n0 / 4..n0 - n0 / 4]);
        }
        self.rows.extend_from_slice(row);
    }

    /// The figures: those of the header, and those of the sample. `min` and `max` are of all voxels; `signed_16` says
    /// that the file stores signed 16-bit integers.
    pub(in crate::volume) fn figures(
        mut self,
        header: &HeaderFigures,
        [min, max]: [f32; 2],
        signed_16: bool,
    ) -> Quality {
        let mut found = Quality { min, max, sampled_voxels: self.rows.len(), ..header.figures.clone() };
        if self.rows.is_empty() {
            return found;
        }
        let mut keys: Vec<u32> = self.rows.iter().map(|v| key(*v + 0.0)).collect();
        keys.sort_unstable();
        let last = keys.len() - 1;
        let at = |share: f64| value(keys[truncate((share * to_f64(last)).round()).min(last)]);
        [found.p0_1, found.median, found.p99_9] = [0.001, 0.5, 0.999].map(at);
        let range = f64::from(max) - f64::from(min);
        let used = f64::from(found.p99_9) - f64::from(found.p0_1);
        found.range_used = if range > 0.0 { to_f32((used / range).clamp(0.0, 1.0)) } else { 0.0 };
        found.distinct_values = 1 + keys.windows(2).filter(|pair| pair[0] != pair[1]).count();
        let below = key(-NEGATIVE * found.p99_9.abs());
        let negative = keys.partition_point(|k| *k < below);
        found.negative_share = share(negative, keys.len());
        found.border_median = median(&mut self.border);
        found.centre_median = median(&mut self.centre);
        let spacing = f64::from(found.spacing_mm[0]);
        let step = if signed_16 { wrap_step(header.scaling) } else { None };
        self.neighbours(&mut found, spacing, step);
        found
    }

    /// What neighbours along the first axis have in common. `step` is half of the range of the stored type.
    fn neighbours(&self, found: &mut Quality, spacing: f64, step: Option<f64>) {
        let n0 = self.shape[0];
        let lag = truncate((DISTANT_MM / spacing).round()).min(n0 / 8).max(1);
        let (low, high) = (f64::from(found.p0_1), f64::from(found.p99_9));
        // Without the outliers: one voxel a thousand times as bright as all others would be all of the variance.
        let clip = |v: f32| f64::from(v).clamp(low, high);
        let count = to_f64(self.rows.len());
        let mean = self.rows.iter().map(|v| clip(*v)).sum::<f64>() / count;
        let variance = self.rows.iter().map(|v| (clip(*v) - mean).powi(2)).sum::<f64>() / count;
        let foreground = found.p99_9 * FOREGROUND;
        let (mut bright, mut equal, mut jumps, mut pairs) = (0, 0, 0, 0);
        let mut squares = [(0.0, 0usize); 2];
        for row in self.rows.chunks_exact(n0) {
            for (sum, lag) in squares.iter_mut().zip([1, lag]) {
                sum.0 += row.iter().zip(&row[lag..]).map(|(a, b)| (clip(*a) - clip(*b)).powi(2)).sum::<f64>();
                sum.1 += n0 - lag;
            }
            for pair in row.windows(2) {
                let is_bright = pair[0] > foreground;
                bright += usize::from(is_bright);
                equal += usize::from(is_bright && pair[0] == pair[1]);
                jumps += usize::from(step.is_some_and(|s| (f64::from(pair[0]) - f64::from(pair[1])).abs() > s));
                pairs += 1;
            }
        }
        found.equal_neighbours = share(equal, bright);
        found.wrapped_share = share(jumps, pairs);
        // For a stationary signal E[(a - b)²] = 2·var·(1 - r).
        let correlation = |(sum, count): (f64, usize)| {
            if variance > 0.0 {
                to_f32((1.0 - sum / to_f64(count.max(1)) / (2.0 * variance)).clamp(-1.0, 1.0))
            } else {
                1.0
            }
        };
        [found.neighbour_correlation, found.distant_correlation] = squares.map(correlation);
    }
}

/// Half of the range of a signed 16-bit integer, scaled; none where an offset shows that the whole range was used on
/// purpose, as programs do which store floats as integers.
fn wrap_step(scaling: Option<(f64, f64)>) -> Option<f64> {
    let (slope, inter) = scaling.unwrap_or((1.0, 0.0));
    (inter == 0.0).then_some(32_768.0 * slope.abs())
}

/// Planes of the border at one side of an axis of `n`.
fn margin(n: usize) -> usize {
    truncate((to_f64(n) * BORDER).round()).clamp(1, n)
}

fn is_border(i: usize, n: usize) -> bool {
    i < margin(n) || i + margin(n) >= n
}

fn is_centre(i: usize, n: usize) -> bool {
    (n / 4..n - n / 4).contains(&i)
}

fn share(part: usize, of: usize) -> f32 {
    to_f32(to_f64(part) / to_f64(of.max(1)))
}

/// The (upper) median; 0 of nothing.
fn median(values: &mut [f32]) -> f32 {
    if values.is_empty() {
        return 0.0;
    }
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f32::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(shape: [usize; 3], values: &[f32], rows: usize) -> Quality {
        let mut sample = Sample::new(shape);
        values.chunks(shape[0] * rows).for_each(|block| sample.push(block));
        let figures = Quality { spacing_mm: [1.0; 3], ..Quality::default() };
        let header = HeaderFigures { figures, identity: false, scaling: None };
        let (min, max) = values.iter().fold((f32::MAX, f32::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
        sample.figures(&header, [min, max], true)
    }

    #[test]
    fn a_small_volume_is_sampled_as_a_whole() {
        let values: Vec<f32> = (0..5 * 6 * 7).map(|i| (i * 37 % 211) as f32 - 10.0).collect();
        let found = figures([5, 6, 7], &values, 4);
        assert_eq!(found, figures([5, 6, 7], &values, 1));
        assert_eq!((found.sampled_voxels, found.distinct_values), (210, 210));
        let mut sorted = values.clone();
        sorted.sort_by(f32::total_cmp);
        assert_eq!((found.median, found.p0_1, found.p99_9), (sorted[105], sorted[0], sorted[209]));
        assert_eq!(found.negative_share, 10.0 / 210.0);
        assert_eq!(found.wrapped_share, 0.0);
    }

    #[test]
    fn the_sample_is_bounded_and_evenly_spread() {
        // Of the nine rows of the last one some are kept: bounded, but nothing can be spread.
        let shapes = [[256, 256, 256], [256, 256, 300], [64, 64, 64], [512, 512, 40], [3, 3, 30_000], [30_000, 3, 3]];
        for shape in shapes {
            let mut sample = Sample::new(shape);
            let rows = shape[1] * shape[2];
            let zeros = vec![0.0; shape[0] * 64];
            (0..rows).step_by(64).for_each(|r| sample.push(&zeros[..shape[0] * 64.min(rows - r)]));
            let kept = sample.rows.len();
            assert!(kept <= SAMPLE + shape[0] && kept >= (SAMPLE / 2).min(rows * shape[0] / 2), "{shape:?}: {kept}");
            if rows < 64 {
                continue;
            }
            let border = to_f64(sample.border.len()) / to_f64(kept);
            let inner: f64 = shape.iter().map(|&n| 1.0 - 2.0 * to_f64(margin(n)) / to_f64(n)).product();
            assert!((border - (1.0 - inner)).abs() < 0.06, "{shape:?}: {border}, in all {}", 1.0 - inner);
        }
    }

    #[test]
    fn correlations_of_noise_and_of_a_ramp() {
        let mut x = 1u32;
        let noise: Vec<f32> = (0..64 * 32 * 32)
            .map(|_| {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (x >> 8) as f32
            })
            .collect();
        let found = figures([64, 32, 32], &noise, 7);
        assert!(found.neighbour_correlation.abs() < 0.02 && found.distant_correlation.abs() < 0.02, "{found:?}");
        let ramp: Vec<f32> = (0..64 * 32 * 32).map(|i| (i % 64) as f32).collect();
        let found = figures([64, 32, 32], &ramp, 7);
        assert!(found.neighbour_correlation > 0.99 && found.distant_correlation > 0.9, "{found:?}");
    }

    #[test]
    fn one_hot_voxel_changes_no_correlation() {
        let mut values: Vec<f32> = (0..64 * 32 * 32).map(|i| (i % 64) as f32).collect();
        let before = figures([64, 32, 32], &values, 7);
        values[30_000] = 1e6;
        let after = figures([64, 32, 32], &values, 7);
        assert!((before.neighbour_correlation - after.neighbour_correlation).abs() < 1e-3);
        assert!(before.range_used > 0.99 && after.range_used < 1e-3);
    }

    #[test]
    fn border_and_centre_are_what_they_say() {
        let n = 40usize;
        let inside = |i: usize| (n / 4..3 * n / 4).contains(&i);
        let values: Vec<f32> = (0..n * n * n)
            .map(|at| {
                let (i, j, k) = (at % n, at / n % n, at / n / n);
                let border = [i, j, k].iter().any(|&x| x == 0 || x == n - 1);
                if border {
                    7.0
                } else if inside(i) && inside(j) && inside(k) {
                    3.0
                } else {
                    1.0
                }
            })
            .collect();
        let found = figures([n; 3], &values, 11);
        assert_eq!((found.border_median, found.centre_median, found.median), (7.0, 3.0, 1.0));
    }

    #[test]
    fn jumps_of_overflowed_integers_are_counted() {
        let mut values = vec![20_000.0; 4 * 4 * 4];
        values[5] = -20_000.0;
        assert_eq!(figures([4, 4, 4], &values, 1).wrapped_share, 2.0 / 48.0);
        assert_eq!((wrap_step(Some((2.0, 0.0))), wrap_step(Some((1.0, 5.0)))), (Some(65_536.0), None));
    }
}
