//! The NIfTI-1 (348 bytes) and NIfTI-2 (540 bytes) header, and that of Analyze 7.5: fields that matter here, checked.
//!
//! In: the header's bytes, either byte order. Out: a [`Header`] whose sizes are safe to compute with: every spatial
//! dimension is 2..=32767, a volume has at most 2^28 voxels, the data offset is a whole number of at most 16 MiB.
//! Lengths come out in millimetres, whatever `xyzt_units` says. Transforms are only carried along; `geometry` checks
//! the one that is used. Field offsets are those of `nifti1.h` and `nifti2.h`, from which Analyze's differ in meaning
//! only: it has no transforms and no units, and its scaling is SPM's, as nibabel's `Spm2AnalyzeImage` reads it.

use super::datatype::Datatype;
use super::dims::{dimensions, refuse_cifti};
use super::units::Units;
use crate::error::{Code, Error, Result};
use crate::tensor::number::{Widen, to_u64, truncate};

/// Header and extensions together.
pub(super) const MAX_OFFSET: u64 = 16 << 20;
/// What is read from a header.
#[derive(Debug)]
pub(super) struct Header {
    /// 1 or 2; 1 for Analyze too.
    pub version: u8,
    /// Big-endian.
    pub big: bool,
    /// The voxels lie in a separate `.img` file.
    pub pair: bool,
    /// Analyze 7.5, which holds no orientation.
    pub analyze: bool,
    /// What the file's lengths were stored in; here they are millimetres.
    pub units: Units,
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

/// What kind of file a header belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Header and voxels in one file.
    Single,
    /// The voxels are in another file.
    Pair,
    /// Analyze 7.5, or NIfTI-1 that lost its magic; the voxels are in another file.
    Analyze,
}

/// What the magic of a header of 348 or 540 bytes says; `None` when it is not NIfTI's.
pub(super) fn layout(bytes: &[u8]) -> Option<Layout> {
    match bytes.len() {
        348 => match &bytes[344..348] {
            b"n+1\0" => Some(Layout::Single),
            b"ni1\0" => Some(Layout::Pair),
            _ => Some(Layout::Analyze),
        },
        540 => match &bytes[4..12] {
            b"n+2\0\r\n\x1a\n" => Some(Layout::Single),
            b"ni2\0\r\n\x1a\n" => Some(Layout::Pair),
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
    units: Units,
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
            units: Units::from_xyzt(i32::from(f.bytes[123])),
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
            units: Units::from_xyzt(f.i32(500)),
            qform_code: f.i32(344),
            sform_code: f.i32(348),
            quaternion: std::array::from_fn(|i| f.f64(352 + 8 * i)),
            sform: std::array::from_fn(|r| std::array::from_fn(|c| f.f64(400 + 32 * r + 8 * c))),
        }
    }
}

impl Raw {
    /// The fields of an Analyze header, which has other fields where NIfTI's units and transforms are.
    ///
    /// SPM keeps a slope and an intercept where NIfTI does; without them the stored range (`glmin`, `glmax`) may stand
    /// for the calibrated one (`cal_min`, `cal_max`). Both are what nibabel's `Spm2AnalyzeHeader` does.
    fn of_analyze(mut self, f: &Fields<'_>) -> Self {
        (self.units, self.intent_code, self.qform_code, self.sform_code) = (Units::Millimetre, 0, 0, 0);
        if !self.inter.is_finite() {
            self.inter = 0.0;
        }
        if self.slope == 0.0 || !self.slope.is_finite() {
            let calibrated = f.f32(124) - f.f32(128);
            let stored = f64::from(f.i32(140)) - f64::from(f.i32(144));
            let slope = calibrated / stored;
            if calibrated != 0.0 && slope.is_finite() {
                (self.slope, self.inter) = (slope, f.f32(128) - slope * f64::from(f.i32(144)));
            }
        }
        self
    }
}

impl Header {
    /// Parses and checks a whole header: `bytes` is 348 or 540 long and `layout` its own.
    pub(super) fn parse(bytes: &[u8], big: bool, layout: Layout) -> Result<Self> {
        let fields = Fields { bytes, big };
        let version = if bytes.len() == 540 { 2 } else { 1 };
        let (analyze, pair) = (layout == Layout::Analyze, layout != Layout::Single);
        let mut raw = if version == 2 { Raw::version2(&fields) } else { Raw::version1(&fields) };
        if analyze {
            raw = raw.of_analyze(&fields);
        }
        refuse_cifti(&raw.dim, raw.intent_code)?;
        let (shape, volumes) = dimensions(&raw.dim)?;
        let datatype = if analyze { Datatype::from_analyze(raw.datatype)? } else { Datatype::from_code(raw.datatype)? };
        let mm = |v: f64| raw.units.to_mm(v, version);
        let [b, c, d, x, y, z] = raw.quaternion;
        let [qfac, dx, dy, dz] = raw.pixdim;
        Ok(Self {
            version,
            big,
            pair,
            analyze,
            units: raw.units,
            shape,
            volumes,
            datatype,
            bitpix: raw.bitpix,
            offset: data_offset(raw.offset, bytes.len(), pair)?,
            scaling: scaling(raw.slope, raw.inter)?,
            intent_code: raw.intent_code,
            sform_code: raw.sform_code,
            qform_code: raw.qform_code,
            pixdim: [qfac, mm(dx), mm(dy), mm(dz)],
            quaternion: [b, c, d],
            quaternion_offset: [x, y, z].map(mm),
            sform: raw.sform.map(|row| row.map(mm)),
            mgh: None,
            footer: 0,
        })
    }

    /// The format's name.
    pub(super) fn format(&self) -> &'static str {
        match (&self.mgh, self.analyze, self.version) {
            (Some(_), ..) => "MGH",
            (None, true, _) => "Analyze 7.5",
            (None, false, 2) => "NIfTI-2",
            (None, false, _) => "NIfTI-1",
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
