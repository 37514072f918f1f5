//! Which transform a header asks for, and what it means for the voxel grid.
//!
//! In: a checked [`Header`]. Out: an [`Orientation`]: for each file axis the world axis (0 right, 1 anterior,
//! 2 superior) it runs along, whether it runs backwards, and the voxel spacing in mm, plus the 4×4 voxel-to-world
//! matrix (mm, RAS+). Conforming permutes, flips and rescales axes; an oblique scan keeps its rotation, as
//! nibabel's `conform` does. A transform that cannot be used is `nifti.affine`.

use super::header::{Header, Placement};
use super::stated::AxisCodes;
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::tensor::number::to_f64;

/// Row-major 4×4 matrix, millimetres.
pub(super) type Affine = [[f64; 4]; 4];
pub(super) type Mat3 = [[f64; 3]; 3];

/// The last code nifti1.h defines (`NIFTI_XFORM_TEMPLATE_OTHER`).
const LAST_XFORM_CODE: i32 = 5;

/// How far below 0 the square of a quaternion's real part may be without a word: stored in f32, a half turn may come
/// out a little longer than 1.
const QUATERNION_ROUNDING: f64 = 1e-6;

/// How far it may be at all: programs that compute in f32 leave 1e-5; 1e-3 is a turn by 3.6°, beyond a rounding.
const QUATERNION_LIMIT: f64 = 1e-3;

/// The transform in use.
#[derive(Clone, Debug)]
pub(super) struct Transform {
    pub affine: Affine,
    /// `"sform"`, `"qform"`, `"mgh"`, `"stated"` or `"none"`.
    pub kind: &'static str,
}

/// How the file's axes lie in the world.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Orientation {
    /// For each file axis: the world axis it runs along.
    pub world: [usize; 3],
    /// For each file axis: it runs towards left, posterior or inferior.
    pub flipped: [bool; 3],
    /// For each file axis: millimetres between voxels, the length of the matrix column (not `pixdim`).
    pub spacing: [f64; 3],
}

/// Chooses and checks the transform: sform, else qform, else what the user states, else nibabel's base (x flipped,
/// centred). What is stated overrules no transform: where the two disagree, it is an error.
pub(super) fn transform(header: &Header, stated: Option<AxisCodes>, warnings: &mut Vec<Warning>) -> Result<Transform> {
    if let Some(placement) = &header.mgh {
        return placed(header, placement, stated, warnings);
    }
    let (kind, code, affine) = if header.sform_code > 0 {
        let [x, y, z] = header.sform;
        ("sform", header.sform_code, [x, y, z, [0.0, 0.0, 0.0, 1.0]])
    } else if header.qform_code > 0 {
        ("qform", header.qform_code, qform(header, warnings)?)
    } else if let Some(codes) = stated {
        // Directions are known, so a size's sign says nothing more.
        ("stated", 0, codes.affine(positive(header.pixdim.map(f64::abs))?, header.shape))
    } else {
        warnings.push(Warning::new(WarningCode::NO_ORIENTATION,
            "the header holds no orientation: axes are taken as left, anterior, superior, so left and right are a guess",
        ));
        ("none", 0, base(header)?)
    };
    if code > LAST_XFORM_CODE {
        warnings.push(Warning::new(
            WarningCode::XFORM_CODE,
            format!("{kind}_code is {code}, which NIfTI does not define; the {kind} is used all the same"),
        ));
    }
    header.units.check(kind, column_lengths(&linear(&affine)), header.shape)?;
    check(kind, &affine)?;
    agree(kind, &affine, stated)?;
    Ok(Transform { affine, kind })
}

/// An error where the file's own orientation is another than the one stated.
fn agree(kind: &str, affine: &Affine, stated: Option<AxisCodes>) -> Result<()> {
    let own = orientation(affine).axcodes();
    match stated.map(|codes| codes.to_string()) {
        Some(stated) if stated != own => Err(Error::new(
            Code::NIFTI_ORIENTATION,
            format!(
                "the {kind} says that the file's axes run towards {own}, and --orientation says {stated}: leave it out \
                 for this file, or repair the header if that is what is wrong"
            ),
        )),
        _ => Ok(()),
    }
}

/// The transform of an MGH file.
fn placed(
    header: &Header,
    placement: &Placement,
    stated: Option<AxisCodes>,
    warnings: &mut Vec<Warning>,
) -> Result<Transform> {
    const WHAT: &str = "orientation of the MGH header";
    let affine = placement.affine;
    check(WHAT, &affine)?;
    if placement.stated {
        agree(WHAT, &affine, stated)?;
        return Ok(Transform { affine, kind: "mgh" });
    }
    if let Some(codes) = stated {
        // Without an orientation the header's voxel sizes do not count either: FreeSurfer assumes 1 mm.
        return Ok(Transform { affine: codes.affine([1.0; 3], header.shape), kind: "stated" });
    }
    warnings.push(Warning::new(
        WarningCode::NO_ORIENTATION,
        "the MGH header holds no orientation (goodRASFlag is not set): FreeSurfer's default is assumed, 1 mm voxels with \
         axes towards left, inferior, anterior (coronal slices), so voxel size and left and right are a guess",
    ));
    Ok(Transform { affine, kind: "none" })
}

fn positive(pixdim: [f64; 4]) -> Result<[f64; 3]> {
    let [_, x, y, z] = pixdim;
    // A sign here may be a flip and a zero may be anything: nibabel repairs them, we do not guess.
    if [x, y, z].iter().any(|s| s.is_nan() || *s <= 0.0) {
        return Err(Error::new(
            Code::NIFTI_AFFINE,
            format!("pixdim gives voxels of {x} × {y} × {z} mm, expected positive sizes: the header is damaged"),
        ));
    }
    Ok([x, y, z])
}

/// nifti1.h method 2: a unit quaternion (its real part left out), an offset, and qfac for the third axis.
pub(super) fn qform(header: &Header, warnings: &mut Vec<Warning>) -> Result<Affine> {
    let [b, c, d] = header.quaternion;
    let square = 1.0 - b * b - c * c - d * d;
    if square.is_nan() || square < -QUATERNION_LIMIT {
        return Err(Error::new(
            Code::NIFTI_AFFINE,
            format!("the qform's quaternion ({b}, {c}, {d}) is not a rotation: the header is damaged"),
        ));
    }
    if square < -QUATERNION_ROUNDING {
        let text = format!(
            "the qform's quaternion ({b}, {c}, {d}) is longer than 1 by {:.1e}, more than rounding; it is normalised",
            (1.0 - square).sqrt() - 1.0
        );
        warnings.push(Warning::new(WarningCode::QUATERNION, text));
    }
    // One that is too long is a half turn: its length goes into `k`.
    let a = square.max(0.0).sqrt();
    let k = 1.0 / (a * a + b * b + c * c + d * d);
    let turn = [
        [a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)],
        [2.0 * (b * c + a * d), a * a + c * c - b * b - d * d, 2.0 * (c * d - a * b)],
        [2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ];
    let [x, y, z] = positive(header.pixdim)?;
    let qfac = if header.pixdim[0] == -1.0 { -1.0 } else { 1.0 };
    let scale = [x, y, z * qfac];
    let mut affine = [[0.0, 0.0, 0.0, 1.0]; 4];
    for r in 0..3 {
        for c in 0..3 {
            affine[r][c] = turn[r][c] * k * scale[c];
        }
        affine[r][3] = header.quaternion_offset[r];
    }
    Ok(affine)
}

fn base(header: &Header) -> Result<Affine> {
    let [x, y, z] = positive(header.pixdim)?;
    let scale = [-x, y, z];
    let mut affine = [[0.0, 0.0, 0.0, 1.0]; 4];
    for r in 0..3 {
        affine[r][r] = scale[r];
        affine[r][3] = -scale[r] * to_f64(header.shape[r] - 1) / 2.0;
    }
    Ok(affine)
}

fn check(kind: &str, affine: &Affine) -> Result<()> {
    let error = |what: String| Error::new(Code::NIFTI_AFFINE, format!("the {kind} {what}: the header is damaged"));
    if affine.iter().flatten().any(|v| !v.is_finite()) {
        return Err(error("holds a number that is not finite".into()));
    }
    let linear = linear(affine);
    let spacing = column_lengths(&linear);
    if spacing.iter().any(|s| !(0.01..=100.0).contains(s)) {
        let [x, y, z] = spacing;
        return Err(error(format!("gives voxels of {x:.4} × {y:.4} × {z:.4} mm, expected 0.01 to 100 mm")));
    }
    if determinant(&unit_columns(&linear, &spacing)).abs() < 1e-3 {
        return Err(error("is singular (two axes run the same way)".into()));
    }
    Ok(())
}

pub(super) fn linear(affine: &Affine) -> Mat3 {
    std::array::from_fn(|r| std::array::from_fn(|c| affine[r][c]))
}

pub(super) fn column_lengths(m: &Mat3) -> [f64; 3] {
    std::array::from_fn(|c| m.iter().map(|row| row[c] * row[c]).sum::<f64>().sqrt())
}

pub(super) fn unit_columns(m: &Mat3, lengths: &[f64; 3]) -> Mat3 {
    std::array::from_fn(|r| std::array::from_fn(|c| m[r][c] / lengths[c]))
}

pub(super) fn determinant(m: &Mat3) -> f64 {
    let c = cofactors(m);
    (0..3).map(|i| m[0][i] * c[0][i]).sum()
}

fn cofactors(m: &Mat3) -> Mat3 {
    std::array::from_fn(|r| {
        std::array::from_fn(|c| {
            let (r1, r2, c1, c2) = ((r + 1) % 3, (r + 2) % 3, (c + 1) % 3, (c + 2) % 3);
            m[r1][c1] * m[r2][c2] - m[r1][c2] * m[r2][c1]
        })
    })
}

/// The orthogonal matrix nearest to `m` (U·Vᵀ of its SVD), by Newton's iteration X ← (X + X⁻ᵀ)/2. It converges
/// quadratically for every invertible matrix; `check` has bounded the determinant away from 0.
pub(super) fn nearest_orthogonal(m: &Mat3) -> Mat3 {
    let mut x = *m;
    for _ in 0..60 {
        let (cofactors, det) = (cofactors(&x), determinant(&x));
        let next: Mat3 = std::array::from_fn(|r| std::array::from_fn(|c| 0.5 * (x[r][c] + cofactors[r][c] / det)));
        let step = (0..9).map(|i| (next[i / 3][i % 3] - x[i / 3][i % 3]).abs()).fold(0.0, f64::max);
        x = next;
        if step < 1e-15 {
            break;
        }
    }
    x
}

/// Assigns file axes to world axes as nibabel's `io_orientation` does.
pub(super) fn orientation(affine: &Affine) -> Orientation {
    let linear = linear(affine);
    let spacing = column_lengths(&linear);
    let r = nearest_orthogonal(&unit_columns(&linear, &spacing));
    let strongest = |axis: usize, r: &Mat3| r.iter().map(|row| row[axis] * row[axis]).fold(0.0, f64::max);
    // The axis that is clearest chooses first; the sort is stable.
    let mut order = [0, 1, 2];
    order.sort_by(|&a, &b| strongest(b, &r).total_cmp(&strongest(a, &r)));
    let (mut world, mut flipped, mut free) = ([0; 3], [false; 3], [true; 3]);
    for axis in order {
        let mut best = None;
        for row in (0..3).filter(|&row| free[row]) {
            if best.is_none_or(|b: usize| r[row][axis].abs() > r[b][axis].abs()) {
                best = Some(row);
            }
        }
        let row = best.unwrap_or(axis);
        world[axis] = row;
        flipped[axis] = r[row][axis] < 0.0;
        free[row] = false;
    }
    Orientation { world, flipped, spacing }
}

impl Orientation {
    /// Letters of the directions the file's axes run towards, such as `LPS`.
    pub(super) fn axcodes(&self) -> String {
        AxisCodes::new(self.world, self.flipped).to_string()
    }

    /// The matrix of the conformed grid: the reoriented matrix rescaled about the centre voxel.
    pub(super) fn conformed_affine(&self, affine: &Affine, n: [usize; 3], shape: [usize; 3], mm: [f64; 3]) -> Affine {
        let half = |n: usize| to_f64((n - 1) / 2);
        let mut out = [[0.0, 0.0, 0.0, 1.0]; 4];
        for (row, source) in out.iter_mut().zip(affine).take(3) {
            let mut origin = source[3];
            for axis in 0..3 {
                let w = self.world[axis];
                let (sign, start) = if self.flipped[axis] { (-1.0, to_f64(n[axis] - 1)) } else { (1.0, 0.0) };
                row[w] = source[axis] * sign * (mm[w] / self.spacing[axis]);
                // reoriented origin, then the source's centre voxel minus the output's
                origin += source[axis] * (start + sign * half(n[axis])) - row[w] * half(shape[w]);
            }
            row[3] = origin;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::datatype::Datatype;
    use crate::volume::units::Units;

    fn affine(rows: [[f64; 3]; 3]) -> Affine {
        let [a, b, c] = rows.map(|r| [r[0], r[1], r[2], 0.0]);
        [a, b, c, [0.0, 0.0, 0.0, 1.0]]
    }

    #[test]
    fn plain_orientations() {
        let o = orientation(&affine([[0.0, 0.0, -3.0], [2.0, 0.0, 0.0], [0.0, -1.0, 0.0]]));
        assert_eq!((o.axcodes().as_str(), o.spacing), ("AIL", [2.0, 1.0, 3.0]));
        assert_eq!(o.world, [1, 2, 0]);
    }

    #[test]
    fn the_clearest_axis_chooses_first() {
        // Axis 0 leans more to A than to R, but axis 1 points to A exactly and takes it.
        let o = orientation(&affine([[0.69, 0.0, 0.0], [0.72, 1.0, 0.0], [0.0, 0.0, 1.0]]));
        assert_eq!(o.axcodes(), "RAS");
    }

    #[test]
    fn newton_gives_an_orthogonal_matrix() {
        let m = unit_columns(&[[1.0, 0.9, 0.2], [0.1, 0.5, 0.0], [0.0, 0.1, 1.0]], &[1.0, 1.0, 1.0]);
        let x = nearest_orthogonal(&m);
        for i in 0..3 {
            for j in 0..3 {
                let dot: f64 = (0..3).map(|k| x[k][i] * x[k][j]).sum();
                assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn conformed_affine_keeps_the_centre_in_place() {
        let source = [[-2.0, 0.0, 0.0, 50.0], [0.0, 1.5, 0.0, -60.0], [0.0, 0.0, 3.0, 10.0], [0.0, 0.0, 0.0, 1.0]];
        let o = orientation(&source);
        let out = o.conformed_affine(&source, [10, 11, 12], [8, 9, 7], [1.0, 1.0, 1.0]);
        // file voxel 10-1-4 = 5 along the flipped axis is output voxel 3
        assert_eq!(out[0], [1.0, 0.0, 0.0, 50.0 - 2.0 * 5.0 - 3.0]);
        assert_eq!(out[1][3], -60.0 + 1.5 * 5.0 - 4.0);
        assert_eq!(out[2][3], 10.0 + 3.0 * 5.0 - 3.0);
    }

    fn with_quaternion(quaternion: [f64; 3]) -> Header {
        Header {
            version: 1,
            big: false,
            pair: false,
            analyze: false,
            units: Units::Millimetre,
            shape: [2; 3],
            volumes: 1,
            datatype: Datatype::U8,
            bitpix: 8,
            offset: 352,
            scaling: None,
            intent_code: 0,
            sform_code: 0,
            qform_code: 1,
            pixdim: [1.0; 4],
            quaternion,
            quaternion_offset: [0.0; 3],
            sform: [[0.0; 4]; 3],
            mgh: None,
            footer: 0,
        }
    }

    /// Rounding to f32 is forgiven, a little more is noted, damage is not.
    #[test]
    fn a_quaternion_longer_than_one_is_normalised_or_damage() {
        let read = |b: f64| {
            let mut warnings = Vec::new();
            qform(&with_quaternion([0.0, b, 0.0]), &mut warnings).map(|affine| (affine, warnings.len()))
        };
        for (too_long, noted) in [(1e-8, 0), (4.9e-7, 0), (5.1e-7, 1), (1e-5, 1), (4.9e-4, 1)] {
            let (got, warnings) = read(1.0 + too_long).unwrap();
            assert_eq!(warnings, noted, "{too_long}");
            // A half turn about y, exactly.
            let expected = affine([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]]);
            let worst = (0..16).map(|i| (got[i / 4][i % 4] - expected[i / 4][i % 4]).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-12, "{too_long}: {got:?}");
        }
        for b in [1.0 + 5.1e-4, 1.01, f64::NAN] {
            assert_eq!(read(b).unwrap_err().code(), Code::NIFTI_AFFINE, "{b}");
        }
    }

    #[test]
    fn axes_that_nearly_run_the_same_way_are_singular() {
        let sheared = |apart: f64| check("sform", &affine([[1.0, 1.0, 0.0], [0.0, apart, 0.0], [0.0, 0.0, 1.0]]));
        assert!(sheared(2e-3).is_ok());
        assert!(sheared(5e-4).unwrap_err().message().contains("singular"));
    }
}
