//! Is this a scan that the model can read? Plain figures of header and voxels, and warnings from them.
//!
//! ```text
//! header ─ transform ─ header.rs ─┐
//!                                  ├─► Quality ─ warn.rs ─► warnings of the class `WarningCode::QUALITY`
//! decoded rows ─ sample.rs ───────┘
//! ```
//!
//! In: the checked header, the transform in use, and the decoded voxels of the *file*, row by row, as they stream by
//! (interpolation would smear a mask's two values). Out: a [`Quality`]. Distances are millimetres, angles degrees,
//! intensities the scan's own (scaled, before the model's normalization). Minimum and maximum are exact. All else about
//! voxels is of a sample: whole rows, evenly spread over the file, at most [`SAMPLE`] voxels or so; a volume of fewer
//! voxels is sampled as a whole. The sample depends on the shape alone: the same file gives the same figures.
//!
//! Nothing here fails. The thresholds, and what they were measured on, are in `docs/quality.md`.

mod header;
mod sample;
mod warn;

pub(super) use header::HeaderFigures;
pub(super) use sample::Sample;
use serde::{Deserialize, Serialize};
pub(super) use warn::{clipped, warnings};

/// Voxels of the sample, about.
const SAMPLE: usize = 1 << 17;

/// Figures of a scan, as the file stores it: what the quality warnings are decided by.
///
/// Axes are the file's, in its order. Intensities are the scan's own. Figures that say "sampled" are of an evenly
/// spread sample of the rows along the first axis.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quality {
    /// Size of the scan along each axis, mm: voxels times spacing.
    pub extent_mm: [f32; 3],
    /// Distance between voxels along each axis, mm.
    pub spacing_mm: [f32; 3],
    /// Largest angle between an axis and the world axis that it is taken for, degrees.
    pub rotation_degrees: f32,
    /// How far two axes are from being perpendicular, degrees, at most.
    pub shear_degrees: f32,
    /// How sform and qform differ; none unless the header has both.
    pub transforms: Option<TransformDifference>,
    /// NIfTI's `intent_code`: 0 none, 2 to 24 statistics, 1002 labels.
    pub intent_code: i32,
    /// Smallest value.
    pub min: f32,
    /// Largest value.
    pub max: f32,
    /// 0.1st percentile, sampled.
    pub p0_1: f32,
    /// Median, sampled.
    pub median: f32,
    /// 99.9th percentile, sampled.
    pub p99_9: f32,
    /// Share of the range `min..=max` that lies between the two percentiles, 0 to 1.
    pub range_used: f32,
    /// Share of voxels below 0 by more than a thousandth of the 99.9th percentile, 0 to 1, sampled: what scaling rounds
    /// to -1e-7 is 0.
    pub negative_share: f32,
    /// Median of the border: the outer 2.5 % of planes at each side, sampled.
    pub border_median: f32,
    /// Median of the centre: the middle half of each axis, sampled.
    pub centre_median: f32,
    /// Distinct values in the sample.
    pub distinct_values: usize,
    /// Of the voxels above 5 % of the 99.9th percentile, the share whose neighbour along the first axis has the very
    /// same value, 0 to 1, sampled.
    pub equal_neighbours: f32,
    /// Correlation of neighbours along the first axis, -1 to 1, sampled: 0 in white noise.
    pub neighbour_correlation: f32,
    /// Correlation of voxels 16 mm apart along the first axis (at most an eighth of it), -1 to 1, sampled.
    pub distant_correlation: f32,
    /// Share of neighbours along the first axis that lie more than half of the 16-bit range apart, 0 to 1, sampled; 0
    /// for other types than signed 16-bit integers.
    pub wrapped_share: f32,
    /// Voxels in the sample.
    pub sampled_voxels: usize,
}

/// How the qform differs from the sform.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformDifference {
    /// Whether they are each other's mirror image: left is right in one of them.
    pub mirrored: bool,
    /// Angle of the rotation between them, degrees; of mirrored ones the largest angle between their axes.
    pub rotation_degrees: f32,
    /// Largest difference of a voxel size, percent of the sform's.
    pub spacing_percent: f32,
    /// Whether the qform is one that could be used. If not, the other figures are 0.
    pub usable: bool,
}
