//! From figures to warnings: the thresholds.
//!
//! In: the figures of a scan and the model's grid. Out: warnings, each one line: what was found, what it means, what to
//! do. `docs/quality.md` has what the thresholds were measured on; a healthy scan must give none.

use super::{HeaderFigures, Quality, TransformDifference};
use crate::error::{Warning, WarningCode};
use crate::volume::Grid;

/// Rotation between sform and qform, degrees.
const CONFLICT_DEGREES: f32 = 5.0;
/// Difference of voxel sizes between sform and qform, percent.
const CONFLICT_PERCENT: f32 = 2.0;
/// Between an axis and its world axis, degrees. Heads are scanned up to some 15° oblique.
const OBLIQUE_DEGREES: f32 = 20.0;
/// From a right angle, degrees.
const SHEAR_DEGREES: f32 = 1.0;
/// Smallest extent along an axis, mm: an adult brain measures 130 to 180 mm, a stripped and cropped one not much less.
const SMALL_MM: f32 = 100.0;
/// Voxel size as a multiple of the grid's. 1 % more is rounding: 1.5 mm on a grid of 1 mm is common.
const COARSE: f64 = 1.5 * 1.01;
/// Voxel size that is coarse on a finer grid, mm.
const COARSE_MM: f64 = 3.0 * 1.01;
/// Share of the range between the 0.1st and 99.9th percentile.
const RANGE_USED: f32 = 0.1;
/// Of the 99.9th percentile: the 0.1st may be so far below 0. Splines overshoot at few voxels and by little.
const NEGATIVE: f32 = 0.02;
/// Of the maximum: the minimum may be so far below 0.
const NEGATIVE_MIN: f32 = 0.1;
/// Of the maximum: the median of the border.
const BACKGROUND: f32 = 0.3;
/// Of the spread of values: how much brighter the border is than the centre.
const INVERTED: f32 = 0.2;
/// Distinct values of a scan, at least.
const FEW_VALUES: usize = 16;
/// Distinct values that an image of labels may have, and the share of neighbours that are equal in it. Healthy scans
/// have at most 0.3 of these.
const LABELS: (usize, f32) = (512, 0.6);
/// Correlation of neighbours in a scan, at least.
const NEIGHBOURS: f32 = 0.3;
/// Correlation of voxels 16 mm apart in a scan, at least. Smoothed noise has none; a head in air has 0.5, and a
/// stripped brain whose mean was subtracted 0.15.
const DISTANT: f32 = 0.08;
/// Share of neighbours more than half of the 16-bit range apart.
const WRAPPED: f32 = 1e-4;

/// The warnings about a scan with these figures that is read onto `grid`; file axis `a` runs along `world[a]`.
pub(in crate::volume) fn warnings(
    header: &HeaderFigures,
    figures: &Quality,
    grid: &Grid,
    world: [usize; 3],
) -> Vec<Warning> {
    let mut found = Vec::new();
    let mut add = |code, message: Option<String>| found.extend(message.map(|m| Warning::new(code, m)));
    add(WarningCode::NO_ORIENTATION, header.identity.then(identity));
    add(WarningCode::XFORM_CONFLICT, figures.transforms.as_ref().and_then(conflict));
    add(WarningCode::OBLIQUE, oblique(figures));
    add(WarningCode::SHEARED, sheared(figures));
    add(WarningCode::FOV_SMALL, small(figures));
    add(WarningCode::RESOLUTION, coarse(figures, grid, world));
    add(WarningCode::INTENT, intent(figures.intent_code));
    if figures.sampled_voxels > 0 {
        of_voxels(figures, &mut add);
    }
    found
}

/// The warnings about voxels. What explains another one is reported in its place.
fn of_voxels(f: &Quality, add: &mut dyn FnMut(WarningCode, Option<String>)) {
    let squeezed = range(f);
    let outliers = squeezed.is_some();
    add(WarningCode::INTENSITY_RANGE, squeezed);
    let wrapped = wrapped(f);
    let overflowed = wrapped.is_some();
    let negative = if overflowed { None } else { negative(f) };
    add(WarningCode::WRAPPED, wrapped);
    add(WarningCode::NEGATIVE, negative);
    let values = few_values(f);
    // A mask of most of the volume has a bright border, and so has noise.
    let noise = if values.is_none() && !overflowed { noise(f) } else { None };
    let (inverted, bright) = (inverted(f), background(f, outliers));
    let other = values.is_some() || noise.is_some() || overflowed;
    add(WarningCode::FEW_VALUES, values);
    add(WarningCode::NOISE, noise);
    if !other {
        let shown = if inverted.is_some() { None } else { bright };
        add(WarningCode::INVERTED, inverted);
        add(WarningCode::BACKGROUND, shown);
    }
}

fn identity() -> String {
    "the header's transform is the identity (1 mm voxels, origin in the first voxel), which programs write that have \
     lost the header: orientation and voxel size are guesses; convert the scan again from its source"
        .to_owned()
}

fn conflict(d: &TransformDifference) -> Option<String> {
    let TransformDifference { mirrored, rotation_degrees: turn, spacing_percent: size, usable } = d;
    let what = match () {
        () if !usable => "the qform cannot be used".to_owned(),
        () if *mirrored => "left and right are swapped between sform and qform".to_owned(),
        () if *turn > CONFLICT_DEGREES => format!("sform and qform are turned by {turn:.1}° against each other"),
        () if *size > CONFLICT_PERCENT => {
            format!("voxel sizes of sform and qform (pixdim) differ by {size:.1} %")
        }
        () => return None,
    };
    Some(format!(
        "{what}: one of the header's two transforms is wrong, and the sform is used; check the orientation with \
         --save-preview, then copy the right one over the other"
    ))
}

fn oblique(f: &Quality) -> Option<String> {
    let turn = f.rotation_degrees;
    (turn > OBLIQUE_DEGREES).then(|| {
        format!(
            "the scan is oblique: its axes are rotated {turn:.1}° from the world's. The rotation is kept, and the \
             model reads a tilted head; resample the scan to straight axes"
        )
    })
}

fn sheared(f: &Quality) -> Option<String> {
    let shear = f.shear_degrees;
    (shear > SHEAR_DEGREES).then(|| {
        format!(
            "the scan's axes are sheared by {shear:.1}° (not perpendicular), and conforming keeps the shear; resample \
             the scan to perpendicular axes"
        )
    })
}

fn small(f: &Quality) -> Option<String> {
    let [x, y, z] = f.extent_mm;
    f.extent_mm.iter().any(|mm| *mm < SMALL_MM).then(|| {
        format!(
            "the scan's field of view is small: {x:.0} × {y:.0} × {z:.0} mm, an adult head needs {SMALL_MM} mm at \
             least along each axis. A slab, another species, or a wrong voxel size: check coverage and units"
        )
    })
}

fn coarse(f: &Quality, grid: &Grid, world: [usize; 3]) -> Option<String> {
    let pairs = f.spacing_mm.iter().zip(world).map(|(mm, w)| (f64::from(*mm), grid.voxel_mm[w]));
    let limit = |grid: f64| if grid < COARSE_MM { (grid * COARSE).min(COARSE_MM) } else { grid * COARSE };
    let (mm, of) = pairs.filter(|(mm, grid)| *mm > limit(*grid)).max_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)))?;
    Some(format!(
        "the scan's resolution is low: slices or voxels of {mm:.1} mm, the model's grid has {of:.1} mm. What lies \
         between them is interpolated; use a scan with thinner slices if there is one"
    ))
}

/// NIfTI's intents whose values are no intensities; the names are those of nifti1.h.
fn intent(code: i32) -> Option<String> {
    let what = match code {
        2..=24 => "a statistical map",
        1001 => "an estimate of a parameter",
        1002 | 1003 => "labels",
        1004..=1010 | 2005 => "vectors, matrices or geometry",
        2002 => "indices of a surface's nodes",
        2003 | 2004 => "colours",
        2006..=2018 => "a displacement or field map of FSL",
        3000..=3099 => "a CIFTI file's matrix",
        _ => return None,
    };
    Some(format!(
        "the header's intent code {code} says that the values are {what}, not intensities: give the T1-weighted scan"
    ))
}

fn range(f: &Quality) -> Option<String> {
    (f.range_used < RANGE_USED).then(|| {
        format!(
            "99.8 % of the voxels lie between {} and {}, {:.1} % of the intensity range {} to {}: a few outliers \
             squeeze the rest. Remove them, or set volume.clip in the model's config.json to percentiles such as \
             [0, 99.9] and export again",
            f.p0_1,
            f.p99_9,
            f.range_used * 100.0,
            f.min,
            f.max
        )
    })
}

fn wrapped(f: &Quality) -> Option<String> {
    (f.wrapped_share > WRAPPED && f.min < 0.0 && f.max > 0.0).then(|| {
        format!(
            "large negative voxels lie next to large positive ones ({} to {}): unsigned 16-bit intensities were stored \
             as signed ones, and the brightest tissue is the darkest; convert the scan again from its source",
            f.min, f.max
        )
    })
}

fn negative(f: &Quality) -> Option<String> {
    let many = f.p0_1 < -NEGATIVE * f.p99_9.abs();
    (f.min < 0.0 && (many || f.min < -NEGATIVE_MIN * f.max.abs())).then(|| {
        format!(
            "negative intensities: from {} to {}, {:.1} % of the voxels below 0. Hounsfield units (CT), z-scores or a \
             ratio image (MP2RAGE UNI)? The model's padding is 0, which is not this scan's air: give the \
             T1-weighted scan in its original intensities, or set its air to 0",
            f.min,
            f.max,
            f.negative_share * 100.0
        )
    })
}

fn background(f: &Quality, outliers: bool) -> Option<String> {
    let max = if outliers { f.p99_9 } else { f.max };
    (f.border_median > BACKGROUND * max && max > 0.0).then(|| {
        format!(
            "the background is not dark: the median of the scan's border is {}, {:.0} % of the maximum {max}. An \
             offset of the intensities? The padding around the scan is 0: subtract the offset",
            f.border_median,
            f.border_median / max * 100.0
        )
    })
}

fn inverted(f: &Quality) -> Option<String> {
    (f.border_median - f.centre_median > INVERTED * (f.p99_9 - f.p0_1)).then(|| {
        format!(
            "the contrast is inverted: the border of the scan (median {}) is brighter than its centre ({}): the \
             background must be dark; invert the intensities or convert the scan again",
            f.border_median, f.centre_median
        )
    })
}

fn few_values(f: &Quality) -> Option<String> {
    let labels = f.distinct_values <= LABELS.0 && f.equal_neighbours > LABELS.1;
    (f.distinct_values <= FEW_VALUES || labels).then(|| {
        format!(
            "{} distinct values, and {:.0} % of neighbouring voxels in the foreground equal: a mask or label image, or \
             rounded intensities; give the T1-weighted scan itself",
            f.distinct_values,
            f.equal_neighbours * 100.0
        )
    })
}

fn noise(f: &Quality) -> Option<String> {
    let (near, far) = (f.neighbour_correlation, f.distant_correlation);
    (near < NEIGHBOURS || far < DISTANT).then(|| {
        format!(
            "the scan is noise: neighbouring voxels correlate by {near:.2} (expected {NEIGHBOURS} at least), voxels 16 mm \
             apart by {far:.2} (expected {DISTANT}); no head can be recognized in it"
        )
    })
}

/// What remains of `warnings` after intensities were clipped to `low..=high`: outliers squeeze nothing any more where
/// the clip cut them off.
pub(in crate::volume) fn clipped(warnings: &mut Vec<Warning>, figures: &Quality, [low, high]: [f32; 2]) {
    let used = (figures.p99_9.min(high) - figures.p0_1.max(low)) / (high - low);
    if used >= RANGE_USED {
        warnings.retain(|warning| warning.code != WarningCode::INTENSITY_RANGE);
    }
}
