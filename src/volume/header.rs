//! The NIfTI-1 (348 bytes) and NIfTI-2 (540 bytes) header: fields that matter here, checked.
//!
//! In: the header's bytes, either byte order. Out: a [`Header`] whose sizes are safe to compute with: every spatial
//! dimension is 2..=32767, a volume has at most 2^28 voxels, the data offset is a whole number of at most 16 MiB.
//! Transforms are only carried along; `geometry` checks the one that is used. Field offsets are those of `nifti1.h`
//! and `nifti2.h`.

use super::datatype::Datatype;
use crate::error::{Code, Error, Result};
use crate::tensor::number::{Widen, to_u64, truncate};

/// Voxels of one volume: sixteen 256³ scans, or a head at 0.4 mm.
const MAX_VOXELS: u64 = 1 << 28;
/// Header and extensions together.
pub(super) const MAX_OFFSET: u64 = 16 << 20;
/// NIfTI-1's own limit per dimension, kept for NIfTI-2: it bounds the row that is held in memory.
const MAX_DIM: i64 = 0x7fff;

/// What is read from a header.
#[derive(Debug)]
pub(super) struct Header {
    /// 1 or 2.
    pub version: u8,
    /// Big-endian.
    pub big: bool,
    /// The voxels lie in a separate `.img` file.
    pub pair: bool,
    /// Voxels along the file's axes, the first fastest.
    pub shape: [usize; 3],
    /// Volumes in the file, at least 1.
    pub volumes: u64,
    pub datatype: Datatype,
    pub bitpix: i16,
    /// Where the first voxel lies, in bytes.
    pub offset: u64,
    /// `(slope, inter)` where they change anything.
    pub scaling: Option<(f64, f64)>,
    /// What the values are, by `nifti1.h`; 0: not said.
    pub intent_code: i32,
    pub sform_code: i32,
    pub qform_code: i32,
    /// `pixdim[0..4]`: qfac, then millimetres.
    pub pixdim: [f64; 4],
    /// b, c, d.
    pub quaternion: [f64; 3],
    pub quaternion_offset: [f64; 3],
    pub sform: [[f64; 4]; 3],
    /// In place of sform and qform, in an MGH file.
    pub mgh: Option<Placement>,
    /// Bytes after the voxels that are part of the file at most.
    pub footer: u64,
}

/// Where the voxels of an MGH file lie in the world.
#[derive(Clone, Debug)]
pub(super) struct Placement {
    /// Voxel index to world, mm, RAS+; unchecked.
    pub affine: [[f64; 4]; 4],
    /// From the file; otherwise FreeSurfer's default.
    pub stated: bool,
}

/// Header length and byte order, detected from `sizeof_hdr`, the first four bytes.
pub(super) fn kind(first: [u8; 4]) -> Option<(usize, bool)> {
    [(i32::from_le_bytes(first), false), (i32::from_be_bytes(first), true)].into_iter().find_map(|(size, big)| {
        match size {
            348 => Some((348, big)),
            540 => Some((540, big)),
            _ => None,
        }
    })
}

/// Whether the magic says that the voxels are in another file; `None` when it is not NIfTI's.
pub(super) fn is_pair(bytes: &[u8]) -> Option<bool> {
    match bytes.len() {
        348 => match &bytes[344..348] {
            b"n+1\0" => Some(false),
            b"ni1\0" => Some(true),
            _ => None,
        },
        540 => match &bytes[4..12] {
            b"n+2\0\r\n\x1a\n" => Some(false),
            b"ni2\0\r\n\x1a\n" => Some(true),
            _ => None,
        },
        _ => None,
    }
}

/// Typed access at fixed offsets, all of them inside the header.
struct Fields<'a> {
    bytes: &'a [u8],
    big: bool,
}

impl Fields<'_> {
    fn take<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[at..at + N]);
        if self.big {
            field.reverse();
        }
        field
    }
    fn i16(&self, at: usize) -> i16 {
        i16::from_le_bytes(self.take(at))
    }
    fn i32(&self, at: usize) -> i32 {
        i32::from_le_bytes(self.take(at))
    }
    fn i64(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.take(at))
    }
    fn f32(&self, at: usize) -> f64 {
        f64::from(f32::from_le_bytes(self.take(at)))
    }
    fn f64(&self, at: usize) -> f64 {
        f64::from_le_bytes(self.take(at))
    }
}

/// Fields as stored, whatever the version.
struct Raw {
    dim: [i64; 8],
    datatype: i16,
    bitpix: i16,
    offset: f64,
    slope: f64,
    inter: f64,
    intent_code: i32,
    qform_code: i32,
    sform_code: i32,
    pixdim: [f64; 4],
    quaternion: [f64; 6],
    sform: [[f64; 4]; 3],
}

impl Raw {
    fn version1(f: &Fields<'_>) -> Self {
        Self {
            dim: std::array::from_fn(|i| i64::from(f.i16(40 + 2 * i))),
            datatype: f.i16(70),
            bitpix: f.i16(72),
            pixdim: std::array::from_fn(|i| f.f32(76 + 4 * i)),
            offset: f.f32(108),
            slope: f.f32(112),
            inter: f.f32(116),
            intent_code: i32::from(f.i16(68)),
            qform_code: i32::from(f.i16(252)),
            sform_code: i32::from(f.i16(254)),
            quaternion: std::array::from_fn(|i| f.f32(256 + 4 * i)),
            sform: std::array::from_fn(|r| std::array::from_fn(|c| f.f32(280 + 16 * r + 4 * c))),
        }
    }

    fn version2(f: &Fields<'_>) -> Self {
        Self {
            datatype: f.i16(12),
            bitpix: f.i16(14),
            dim: std::array::from_fn(|i| f.i64(16 + 8 * i)),
            pixdim: std::array::from_fn(|i| f.f64(104 + 8 * i)),
            // Beyond 2^53 the conversion rounds; such offsets are refused anyway.
            offset: f.i64(168).widen(),
            slope: f.f64(176),
            inter: f.f64(184),
            intent_code: f.i32(504),
            qform_code: f.i32(344),
            sform_code: f.i32(348),
            quaternion: std::array::from_fn(|i| f.f64(352 + 8 * i)),
            sform: std::array::from_fn(|r| std::array::from_fn(|c| f.f64(400 + 32 * r + 8 * c))),
        }
    }
}

impl Header {
    /// Parses and checks a whole header: `bytes` is 348 or 540 long and [`is_pair`] knows its magic.
    pub(super) fn parse(bytes: &[u8], big: bool, pair: bool) -> Result<Self> {
        let fields = Fields { bytes, big };
        let version = if bytes.len() == 540 { 2 } else { 1 };
        let raw = if version == 2 { Raw::version2(&fields) } else { Raw::version1(&fields) };
        let (shape, volumes) = dimensions(&raw.dim)?;
        let datatype = Datatype::from_code(raw.datatype)?;
        let [b, c, d, x, y, z] = raw.quaternion;
        Ok(Self {
            version,
            big,
            pair,
            shape,
            volumes,
            datatype,
            bitpix: raw.bitpix,
            offset: data_offset(raw.offset, bytes.len(), pair)?,
            scaling: scaling(raw.slope, raw.inter)?,
            intent_code: raw.intent_code,
            sform_code: raw.sform_code,
            qform_code: raw.qform_code,
            pixdim: raw.pixdim,
            quaternion: [b, c, d],
            quaternion_offset: [x, y, z],
            sform: raw.sform,
            mgh: None,
            footer: 0,
        })
    }

    /// The format's name.
    pub(super) fn format(&self) -> &'static str {
        match (&self.mgh, self.version) {
            (Some(_), _) => "MGH",
            (None, 2) => "NIfTI-2",
            (None, _) => "NIfTI-1",
        }
    }

    /// Bytes of one row along the first axis.
    pub(super) fn row_bytes(&self) -> usize {
        self.shape[0] * self.datatype.size()
    }

    /// Bytes of one volume.
    pub(super) fn volume_bytes(&self) -> u64 {
        self.shape.iter().map(|&n| to_u64(n)).product::<u64>() * to_u64(self.datatype.size())
    }
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
    if volumes == 1 && shape.iter().any(|&n| n < 2) {
        return Err(Error::new(
            Code::NIFTI_DIMS,
            format!("the header says {shown} voxels: a 3-D scan needs at least 2 along each of its first three axes"),
        ));
    }
    Ok((shape, volumes))
}

fn data_offset(offset: f64, header: usize, pair: bool) -> Result<u64> {
    let least = if pair { 0 } else { to_u64(header) + 4 };
    // The range test fails for NaN too.
    if !(least.widen()..=MAX_OFFSET.widen()).contains(&offset) || offset.fract() != 0.0 {
        return Err(Error::new(
            Code::NIFTI_VOX_OFFSET,
            format!(
                "vox_offset is {offset}, expected a whole number from {least} to {MAX_OFFSET}: the header is damaged"
            ),
        ));
    }
    Ok(to_u64(truncate(offset)))
}

fn scaling(slope: f64, inter: f64) -> Result<Option<(f64, f64)>> {
    if slope == 0.0 || !slope.is_finite() || (slope, inter) == (1.0, 0.0) {
        return Ok(None);
    }
    if !inter.is_finite() {
        return Err(Error::new(
            Code::NIFTI_SCALING,
            format!("scl_inter is {inter} while scl_slope is {slope}: expected a finite number, the header is damaged"),
        ));
    }
    Ok(Some((slope, inter)))
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
        assert_eq!(dims(&[0, 4, 4, 6]), Err(Code::NIFTI_DIMS));
        assert_eq!(dims(&[4, 4, 4, 6, -1]), Err(Code::NIFTI_DIMS));
        assert_eq!(dims(&[3, 1 << 32, 1 << 31, 2]), Err(Code::NIFTI_TOO_LARGE), "the product wraps to 0");
        assert_eq!(dims(&[7, 2, 2, 2, i64::MAX, i64::MAX, 1, 1]), Err(Code::NIFTI_TOO_LARGE));
        assert_eq!(dims(&[3, 1 << 20, 2, 2]), Err(Code::NIFTI_TOO_LARGE));
        assert!(dims(&[3, 640, 640, 640]).is_ok());
    }

    #[test]
    fn offsets_and_scaling() {
        assert_eq!(data_offset(352.0, 348, false).ok(), Some(352));
        assert_eq!(data_offset(0.0, 348, true).ok(), Some(0));
        for bad in [0.0, 351.0, 352.5, f64::NAN, f64::INFINITY, -352.0, 2f64.powi(24) + 1.0] {
            assert!(data_offset(bad, 348, false).is_err(), "{bad}");
        }
        assert_eq!(scaling(f64::NAN, f64::NAN).ok(), Some(None));
        assert_eq!(scaling(0.0, 9.0).ok(), Some(None));
        assert_eq!(scaling(2.0, -1.0).ok(), Some(Some((2.0, -1.0))));
        assert!(scaling(2.0, f64::NAN).is_err());
    }
}
