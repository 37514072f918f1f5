//! One axis of the separable resampling: which two file voxels each output voxel lies between.
//!
//! In: voxel counts, spacings (mm) and direction of one file axis and of the output axis it lands on. Out: an
//! [`AxisMap`], the outputs that lie inside the file as one contiguous run with a tap each. With integer divisions,
//! `c = (o − (N−1)/2)·v/s + (n−1)/2`, mirrored when the axis is flipped; a coordinate more than 1e-6 voxel outside
//! `0..=n−1` has no tap and the output stays 0 there. Coordinates are f64, weights f32.

/// How far outside the file a coordinate may lie and still count as its border voxel. Scanners write spacings in f32:
/// exact ties come out a few 1e-8 off.
const SNAP: f64 = 1e-6;
use crate::tensor::number::{to_f32, to_f64, truncate};

/// `x[at] + weight · (x[at + 1] − x[at])`; with weight 0, `at + 1` need not exist.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tap {
    pub at: usize,
    pub weight: f32,
}

impl Tap {
    /// The second voxel; the first itself where it has no weight.
    pub(super) fn next(self) -> usize {
        self.at + usize::from(self.weight > 0.0)
    }
}

/// Shapes of an axis that need no arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// Consecutive voxels, ascending.
    Copy,
    /// Consecutive voxels, descending.
    Reverse,
    /// Anything else.
    Interpolate,
}

/// The outputs of one axis that lie inside the file.
#[derive(Clone, Debug)]
pub(super) struct AxisMap {
    /// The first output index inside.
    pub first: usize,
    /// One tap for each output index from `first`.
    pub taps: Vec<Tap>,
    pub pattern: Pattern,
    /// Source indices descend as output indices ascend.
    pub flipped: bool,
    /// Millimetres of the scan beyond the first and the last output voxel (negative: room to spare).
    pub cut_mm: [f64; 2],
}

impl AxisMap {
    /// Maps `out_n` voxels of `out_mm` onto a file axis of `n` voxels (at least 2) of `spacing` mm.
    pub(super) fn new(n: usize, spacing: f64, flipped: bool, out_n: usize, out_mm: f64) -> Self {
        let last = to_f64(n - 1);
        let step = out_mm / spacing;
        let (centre, out_centre) = (to_f64((n - 1) / 2), to_f64((out_n - 1) / 2));
        let coordinate = |o: usize| (to_f64(o) - out_centre) * step + centre;
        let mut first = 0;
        let mut taps = Vec::with_capacity(out_n);
        for o in 0..out_n {
            let c = coordinate(o);
            if !(-SNAP..=last + SNAP).contains(&c) {
                // coordinates ascend, so the inside is one run
                first += usize::from(taps.is_empty());
                continue;
            }
            let c = if flipped { last - c } else { c }.clamp(0.0, last);
            let at = truncate(c).min(n - 1);
            taps.push(Tap { at, weight: to_f32(c - to_f64(at)) });
        }
        let along = |step: isize| {
            taps.iter().all(|t| t.weight == 0.0)
                && taps.windows(2).all(|w| w[0].at.checked_add_signed(step) == Some(w[1].at))
        };
        let pattern = match (along(1), along(-1)) {
            (true, _) => Pattern::Copy,
            (_, true) => Pattern::Reverse,
            _ => Pattern::Interpolate,
        };
        let cut_mm = [coordinate(0) * spacing, (last - coordinate(out_n - 1)) * spacing];
        Self { first, taps, pattern, flipped, cut_mm }
    }

    /// Output voxels inside the file.
    pub(super) fn len(&self) -> usize {
        self.taps.len()
    }

    /// Resamples one row along this axis; `out` has [`AxisMap::len`] values.
    pub(super) fn apply(&self, row: &[f32], out: &mut [f32]) {
        let Some(first) = self.taps.first() else { return };
        match self.pattern {
            Pattern::Copy => out.copy_from_slice(&row[first.at..][..out.len()]),
            Pattern::Reverse => {
                let source = &row[..=first.at];
                out.iter_mut().zip(source.iter().rev()).for_each(|(out, v)| *out = *v);
            }
            Pattern::Interpolate => {
                for (out, tap) in out.iter_mut().zip(&self.taps) {
                    let (a, b) = (row[tap.at], row[tap.next()]);
                    *out = a + tap.weight * (b - a);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_spacing_copies_and_flips_about_the_lower_middle() {
        let map = AxisMap::new(4, 1.0, false, 8, 1.0);
        assert_eq!((map.first, map.len(), map.pattern), (2, 4, Pattern::Copy));
        let map = AxisMap::new(4, 1.0, true, 8, 1.0);
        assert_eq!((map.first, map.len(), map.pattern), (2, 4, Pattern::Reverse));
        let mut out = [0.0; 4];
        map.apply(&[1.0, 2.0, 3.0, 4.0], &mut out);
        assert_eq!(out, [4.0, 3.0, 2.0, 1.0]);
    }

    #[test]
    fn the_border_is_inside_and_what_lies_beyond_is_not() {
        // 3 voxels of 1 mm, outputs of 0.5 mm: coordinates −0.5, 0, 0.5, … 2, 2.5
        let map = AxisMap::new(3, 1.0, false, 7, 0.5);
        assert_eq!((map.first, map.len()), (1, 5));
        assert_eq!(map.taps.last(), Some(&Tap { at: 2, weight: 0.0 }));
        let mut out = [0.0; 5];
        map.apply(&[0.0, 10.0, 20.0], &mut out);
        assert_eq!(out, [0.0, 5.0, 10.0, 15.0, 20.0]);
        // a spacing a hair smaller leaves the border within the snap
        assert_eq!(AxisMap::new(3, 1.0 - 1e-8, false, 7, 0.5).len(), 5);
        assert_eq!(AxisMap::new(3, 1.0 - 1e-4, false, 7, 0.5).len(), 3);
    }

    #[test]
    fn cuts_are_reported_in_millimetres() {
        let map = AxisMap::new(10, 2.0, false, 5, 2.0);
        assert_eq!(map.cut_mm, [4.0, 6.0]);
        assert!(AxisMap::new(4, 1.0, false, 8, 1.0).cut_mm.iter().all(|&mm| mm <= 0.0));
    }

    #[test]
    fn the_border_snaps_by_a_millionth_of_a_voxel() {
        for (outside, inside) in [(0.9e-6, true), (1.1e-6, false), (1e-5, false)] {
            let map = AxisMap::new(3, 1.0 - outside, false, 7, 0.5);
            assert_eq!(map.len(), if inside { 5 } else { 3 }, "{outside} voxels outside");
        }
    }
}
