//! A header's dimensions: what they must be, and what is wrong with those that are not a volume's.
//!
//! In: `dim` as stored, the count first. Out: the spatial shape, each side 2..=32767 and the product at most 2^28,
//! and the number of volumes. Errors: `nifti.dims`, `nifti.too_large`, and `nifti.not_nifti` for values on surfaces.

use crate::error::{Code, Error, Result};

/// Voxels of one volume: sixteen 256³ scans, or a head at 0.4 mm.
const MAX_VOXELS: u64 = 1 << 28;
/// NIfTI-1's own limit per dimension, kept for NIfTI-2: it bounds the row that is held in memory.
const MAX_DIM: i64 = 0x7fff;

/// CIFTI-2 has the header of NIfTI-2, intents of its own, and all data in the fifth to seventh dimensions.
pub(super) fn refuse_cifti(dim: &[i64; 8], intent: i32) -> Result<()> {
    let [count, x, y, z, t, further @ ..] = *dim;
    let flat = [x, y, z, t] == [1; 4] && count >= 5 && further.iter().take(2).any(|&n| n > 1);
    if !(3000..3100).contains(&intent) && !flat {
        return Ok(());
    }
    let text = "not a volume but CIFTI, values on surfaces and grey matter (such as .dscalar.nii or .dtseries.nii): \
                give the subject's T1-weighted volume (.nii.gz)";
    Err(Error::new(Code::NIFTI_NOT_NIFTI, text))
}

/// Checks `dim` and splits it into the spatial shape and the number of volumes.
pub(super) fn dimensions(dim: &[i64; 8]) -> Result<([usize; 3], u64)> {
    let count = match dim[0] {
        n @ 1..=7 => usize::try_from(n).expect("1 to 7"),
        n => {
            return Err(Error::new(Code::NIFTI_DIMS, format!("dim[0] is {n}, expected 1 to 7: the header is damaged")));
        }
    };
    let used = &dim[1..=count];
    let shown = used.iter().map(i64::to_string).collect::<Vec<_>>().join(" × ");
    if used.iter().any(|&n| n < 1) {
        return Err(Error::new(
            Code::NIFTI_DIMS,
            format!("the header says {shown} voxels: every size must be positive"),
        ));
    }
    let mut shape = [1; 3];
    for (axis, &n) in shape.iter_mut().zip(used) {
        // What does not fit is refused below.
        *axis = usize::try_from(n).unwrap_or(usize::MAX);
    }
    let voxels = used.iter().take(3).try_fold(1u64, |product, &n| product.checked_mul(n.unsigned_abs()));
    if voxels.is_none_or(|v| v > MAX_VOXELS) || used.iter().take(3).any(|&n| n > MAX_DIM) {
        return Err(Error::new(
            Code::NIFTI_TOO_LARGE,
            format!("the header says {shown} voxels; at most {MAX_VOXELS} per volume and {MAX_DIM} per axis are read"),
        ));
    }
    let volumes = used.iter().skip(3).try_fold(1u64, |product, &n| product.checked_mul(n.unsigned_abs()));
    let Some(volumes) = volumes.filter(|&n| n <= i64::MAX.unsigned_abs() / (MAX_VOXELS * 8)) else {
        return Err(Error::new(Code::NIFTI_TOO_LARGE, format!("the header says {shown} voxels: too many volumes")));
    };
    if let Some(text) = flat(shape, volumes, &shown) {
        return Err(Error::new(Code::NIFTI_DIMS, text));
    }
    Ok((shape, volumes))
}

/// What is wrong with volumes of a single slice; choosing one of them would not help.
fn flat(shape: [usize; 3], volumes: u64, shown: &str) -> Option<String> {
    let [.., z] = shape;
    let text = match shape.iter().filter(|&&n| n < 2).count() {
        0 => return None,
        1 if z < 2 && volumes > 1 => {
            "each volume is one slice, and the slices lie in the fourth dimension: convert the series again with \
             dcm2niix, or put the slices into the third dimension (fslsplit, then fslmerge -z)"
        }
        1 if volumes > 1 => {
            "each volume is one voxel thin, a single slice: a 3-D scan needs at least 2 along each axis"
        }
        1 => "a single slice: a 3-D scan needs at least 2 along each of its first three axes",
        _ => "not a volume: a 3-D scan needs at least 2 along each of its first three axes",
    };
    Some(format!("the header says {shown} voxels: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(d: &[i64]) -> Result<([usize; 3], u64), Code> {
        let mut dim = [1; 8];
        dim[..d.len()].copy_from_slice(d);
        dimensions(&dim).map_err(|e| e.code())
    }

    #[test]
    fn dimension_rules() {
        assert_eq!(dims(&[3, 4, 5, 6]), Ok(([4, 5, 6], 1)));
        assert_eq!(dims(&[3, 4, 5, 6, 0]), Ok(([4, 5, 6], 1)), "dim[4] beyond dim[0] is ignored");
        assert_eq!(dims(&[5, 4, 5, 6, 2, 3]), Ok(([4, 5, 6], 6)));
        assert_eq!(dims(&[2, 4, 5]), Err(Code::NIFTI_DIMS));
        assert_eq!(dims(&[3, 4, 1, 6]), Err(Code::NIFTI_DIMS));
        assert_eq!(dims(&[4, 40, 46, 1, 38]), Err(Code::NIFTI_DIMS), "slices in the fourth dimension");
        assert_eq!(dims(&[5, 1, 46, 38, 1, 3]), Err(Code::NIFTI_DIMS));
        assert_eq!(dims(&[5, 40, 46, 38, 1, 1]), Ok(([40, 46, 38], 1)));
        assert_eq!(dims(&[0, 4, 4, 6]), Err(Code::NIFTI_DIMS));
        assert_eq!(dims(&[4, 4, 4, 6, -1]), Err(Code::NIFTI_DIMS));
        assert_eq!(dims(&[3, 1 << 32, 1 << 31, 2]), Err(Code::NIFTI_TOO_LARGE), "the product wraps to 0");
        assert_eq!(dims(&[7, 2, 2, 2, i64::MAX, i64::MAX, 1, 1]), Err(Code::NIFTI_TOO_LARGE));
        assert_eq!(dims(&[3, 1 << 20, 2, 2]), Err(Code::NIFTI_TOO_LARGE));
        assert!(dims(&[3, 640, 640, 640]).is_ok());
    }
}
