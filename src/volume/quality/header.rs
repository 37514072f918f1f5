//! Figures of the header: sizes, angles, and how its two transforms differ.
//!
//! In: a checked header and the transform in use. Out: the fields of [`Quality`] that need no voxel. The rotation of a
//! matrix is its nearest orthogonal matrix, so that a shear is not counted twice.

use super::{Quality, TransformDifference};
use crate::tensor::number::{to_f32, to_f64};
use crate::volume::geometry::{
    Affine, Mat3, Orientation, Transform, column_lengths, determinant, linear, nearest_orthogonal, qform, unit_columns,
};
use crate::volume::header::Header;

/// How far an element of a transform may be from the identity's and still count as it.
const IDENTITY: f64 = 1e-6;

/// What the header says of the scan.
pub(in crate::volume) struct HeaderFigures {
    /// The figures, those of voxels left at 0.
    pub figures: Quality,
    /// The transform in use is the identity, or its image in DICOM's axes: no scanner writes it, programs that have
    /// lost the header do.
    pub identity: bool,
    /// Factor and offset of stored values.
    pub scaling: Option<(f64, f64)>,
}

impl HeaderFigures {
    /// Measures the header.
    pub(in crate::volume) fn new(header: &Header, transform: &Transform, orientation: &Orientation) -> Self {
        let spacing = orientation.spacing;
        let linear = linear(&transform.affine);
        let units = unit_columns(&linear, &spacing);
        let turn = nearest_orthogonal(&units);
        let along = |axis: usize| turn[orientation.world[axis]][axis].abs();
        let rotation = (0..3).map(|axis| angle(along(axis))).fold(0.0, f64::max);
        let dot = |a: usize, b: usize| (0..3).map(|r| units[r][a] * units[r][b]).sum::<f64>().abs();
        let shear = [(0, 1), (0, 2), (1, 2)].map(|(a, b)| 90.0 - angle(dot(a, b))).into_iter().fold(0.0, f64::max);
        let both = transform.kind == "sform" && header.qform_code > 0;
        Self {
            figures: Quality {
                extent_mm: [0, 1, 2].map(|a| to_f32(to_f64(header.shape[a]) * spacing[a])),
                spacing_mm: spacing.map(to_f32),
                rotation_degrees: thousandths(rotation),
                shear_degrees: thousandths(shear),
                transforms: both.then(|| difference(header, &turn, &spacing)),
                intent_code: header.intent_code,
                ..Quality::default()
            },
            identity: transform.kind != "none" && is_identity(&transform.affine),
            scaling: header.scaling,
        }
    }
}

/// Degrees of an angle by its cosine.
fn angle(cosine: f64) -> f64 {
    cosine.clamp(-1.0, 1.0).acos().to_degrees()
}

/// An angle as it is reported: rounding noise of 1e-7 degrees is none.
fn thousandths(degrees: f64) -> f32 {
    to_f32((degrees * 1e3).round() / 1e3)
}

/// The identity as NIfTI's axes have it, and as those of DICOM and ITK do (x and y reversed). The world's origin in the
/// centre of the first voxel, at exactly 1 mm along the world's axes: a scanner's origin is inside the head.
fn is_identity(affine: &Affine) -> bool {
    [[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]].iter().any(|signs| {
        (0..3).all(|r| (0..4).all(|c| (affine[r][c] - if r == c { signs[r] } else { 0.0 }).abs() <= IDENTITY))
    })
}

/// How the qform differs from an sform of this rotation and spacing. Origins do not matter: conforming does not use
/// them, and realignment changes them.
fn difference(header: &Header, turn: &Mat3, spacing: &[f64; 3]) -> TransformDifference {
    let Ok(other) = qform(header, &mut Vec::new()) else { return TransformDifference::default() };
    let other = linear(&other);
    let lengths = column_lengths(&other);
    if lengths.iter().any(|mm| !mm.is_finite() || *mm <= 0.0) {
        return TransformDifference::default();
    }
    // A quaternion is a rotation: no orthogonalization is needed, and no shear is possible.
    let theirs = unit_columns(&other, &lengths);
    let mirrored = determinant(turn) * determinant(&theirs) < 0.0;
    let cosines = [0, 1, 2].map(|axis| (0..3).map(|r| turn[r][axis] * theirs[r][axis]).sum::<f64>());
    let rotation = if mirrored {
        cosines.map(angle).into_iter().fold(0.0, f64::max)
    } else {
        angle((cosines.iter().sum::<f64>() - 1.0) / 2.0)
    };
    let percent = [0, 1, 2].map(|axis| (lengths[axis] / spacing[axis] - 1.0).abs() * 100.0);
    TransformDifference {
        mirrored,
        rotation_degrees: thousandths(rotation),
        spacing_percent: thousandths(percent.into_iter().fold(0.0, f64::max)),
        usable: true,
    }
}
