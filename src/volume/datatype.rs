//! Voxel types, and decoding of stored voxels to scaled `f32`.
//!
//! In: bytes of whole voxels in file order, either byte order. Out: `slope · x + inter`, computed in f64, as f32.
//! Non-finite voxels become 0 and are counted. A finite voxel whose scaled value does not fit is `nifti.scaling`;
//! a type that is not a real number is `nifti.datatype`.

use crate::error::{Code, Error, Result};
use crate::tensor::number::{Widen, to_f32};

/// Largest magnitude accepted. Interpolation subtracts two voxels and normalisation two extremes: a quarter of the
/// f32 range keeps every intermediate finite, and no scanner comes near it.
pub(super) const LARGEST: f32 = f32::MAX / 4.0;

/// A real voxel type of NIfTI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Datatype {
    U8,
    I16,
    I32,
    F32,
    F64,
    I8,
    U16,
    U32,
    I64,
    U64,
}

impl Datatype {
    /// The type of NIfTI's `datatype` code.
    pub(super) fn from_code(code: i16) -> Result<Self> {
        Ok(match code {
            2 => Self::U8,
            4 => Self::I16,
            8 => Self::I32,
            16 => Self::F32,
            64 => Self::F64,
            256 => Self::I8,
            512 => Self::U16,
            768 => Self::U32,
            1024 => Self::I64,
            1280 => Self::U64,
            _ => {
                let name = match code {
                    0 => "unknown",
                    1 => "binary (1 bit)",
                    32 => "complex64",
                    128 => "RGB colour",
                    1536 => "float128",
                    1792 => "complex128",
                    2048 => "complex256",
                    2304 => "RGBA colour",
                    _ => "not a NIfTI type",
                };
                return Err(Error::new(
                    Code::NIFTI_DATATYPE,
                    format!(
                        "voxel type {code} ({name}) is not supported: export the scan as 16-bit integers or float32"
                    ),
                ));
            }
        })
    }

    /// The type of Analyze's `datatype` code: NIfTI's, which began as Analyze's, and three of SPM's own.
    pub(super) fn from_analyze(code: i16) -> Result<Self> {
        match code {
            130 => Ok(Self::I8),
            132 => Ok(Self::U16),
            136 => Ok(Self::U32),
            code => Self::from_code(code),
        }
    }

    /// Bytes of one voxel.
    pub(super) fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// The name numpy gives the type.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::U16 => "uint16",
            Self::I16 => "int16",
            Self::U32 => "uint32",
            Self::I32 => "int32",
            Self::U64 => "uint64",
            Self::I64 => "int64",
            Self::F32 => "float32",
            Self::F64 => "float64",
        }
    }

    fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }

    /// A bound on the magnitude of an integer type.
    fn magnitude(self) -> f64 {
        2f64.powi(8 * i32::try_from(self.size()).expect("a voxel has at most 8 bytes"))
    }
}

/// Runs `$convert` over every voxel of `$bytes` and appends to `$out`.
macro_rules! convert {
    ($type:ty, $decoder:expr, $bytes:expr, $out:expr, $convert:expr) => {{
        let convert = $convert;
        let (voxels, _) = $bytes.as_chunks::<{ size_of::<$type>() }>();
        if $decoder.big {
            $out.extend(voxels.iter().map(|b| convert(<$type>::from_be_bytes(*b))));
        } else {
            $out.extend(voxels.iter().map(|b| convert(<$type>::from_le_bytes(*b))));
        }
    }};
}

/// Applies `convert!` with the decoder's own type.
macro_rules! by_type {
    ($decoder:expr, $bytes:expr, $out:expr, $convert:expr) => {
        match $decoder.datatype {
            Datatype::U8 => convert!(u8, $decoder, $bytes, $out, |v| $convert(Widen::widen(v))),
            Datatype::I8 => convert!(i8, $decoder, $bytes, $out, |v| $convert(Widen::widen(v))),
            Datatype::U16 => convert!(u16, $decoder, $bytes, $out, |v| $convert(Widen::widen(v))),
            Datatype::I16 => convert!(i16, $decoder, $bytes, $out, |v| $convert(Widen::widen(v))),
            Datatype::U32 => convert!(u32, $decoder, $bytes, $out, |v| $convert(Widen::widen(v))),
            Datatype::I32 => convert!(i32, $decoder, $bytes, $out, |v| $convert(Widen::widen(v))),
            Datatype::U64 => convert!(u64, $decoder, $bytes, $out, |v| $convert(Widen::widen(v))),
            Datatype::I64 => convert!(i64, $decoder, $bytes, $out, |v| $convert(Widen::widen(v))),
            Datatype::F32 => convert!(f32, $decoder, $bytes, $out, |v| $convert(Widen::widen(v))),
            Datatype::F64 => convert!(f64, $decoder, $bytes, $out, $convert),
        }
    };
}

/// Turns stored voxels into scaled values.
pub(super) struct Decoder {
    datatype: Datatype,
    big: bool,
    scaling: Option<(f64, f64)>,
    /// No stored value can become too large, so none needs a test.
    always_fits: bool,
}

impl Decoder {
    /// A decoder for big- or little-endian voxels with `(slope, inter)`, if any.
    pub(super) fn new(datatype: Datatype, big: bool, scaling: Option<(f64, f64)>) -> Self {
        let (slope, inter) = scaling.unwrap_or((1.0, 0.0));
        let bound = datatype.magnitude() * slope.abs() + inter.abs();
        Self { datatype, big, scaling, always_fits: !datatype.is_float() && bound <= f64::from(LARGEST) }
    }

    /// Replaces `out` with the decoded voxels of `bytes` and returns how many of them were not finite.
    pub(super) fn decode(&self, bytes: &[u8], out: &mut Vec<f32>) -> Result<u64> {
        out.clear();
        match (self.scaling, self.datatype) {
            (Some((slope, inter)), _) => by_type!(self, bytes, out, |v: f64| to_f32(slope * v + inter)),
            // exact in f32, and the two commonest types: no detour through f64
            (None, Datatype::I16) => convert!(i16, self, bytes, out, f32::from),
            (None, Datatype::U8) => convert!(u8, self, bytes, out, f32::from),
            (None, Datatype::F32) => convert!(f32, self, bytes, out, |v| v),
            (None, _) => by_type!(self, bytes, out, to_f32),
        }
        if self.always_fits {
            return Ok(0);
        }
        // Counted without a branch first: almost every block has none.
        let odd: u64 = out.iter().map(|v| u64::from(!fits(*v))).sum();
        if odd == 0 { Ok(0) } else { self.replace_nonfinite(bytes, out) }
    }

    fn replace_nonfinite(&self, bytes: &[u8], out: &mut [f32]) -> Result<u64> {
        let mut count = 0;
        let mut stored: Vec<f64> = Vec::with_capacity(1);
        for (value, voxel) in out.iter_mut().zip(bytes.chunks_exact(self.datatype.size())) {
            if fits(*value) {
                continue;
            }
            stored.clear();
            by_type!(self, voxel, stored, |v: f64| v);
            if let Some(v) = stored.first().filter(|v| v.is_finite()) {
                let scaling = match self.scaling {
                    Some((slope, inter)) => format!(" with scl_slope {slope:e} and scl_inter {inter:e}"),
                    None => String::new(),
                };
                return Err(Error::new(
                    Code::NIFTI_SCALING,
                    format!("a voxel of {v:e}{scaling} exceeds {LARGEST:e}: the scaling or the data are damaged"),
                ));
            }
            *value = 0.0;
            count += 1;
        }
        Ok(count)
    }
}

fn fits(v: f32) -> bool {
    v.abs() <= LARGEST
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(t: Datatype, big: bool, scaling: Option<(f64, f64)>, bytes: &[u8]) -> Result<(Vec<f32>, u64)> {
        let mut out = vec![9.0];
        let count = Decoder::new(t, big, scaling).decode(bytes, &mut out)?;
        Ok((out, count))
    }

    #[test]
    fn types_and_byte_orders() {
        assert_eq!(decode(Datatype::I16, false, None, &[0xfe, 0xff, 1, 0]).unwrap().0, [-2.0, 1.0]);
        assert_eq!(decode(Datatype::I16, true, Some((2.0, 1.0)), &[0xff, 0xfe, 0, 1]).unwrap().0, [-3.0, 3.0]);
        assert_eq!(decode(Datatype::I8, true, None, &[0x80]).unwrap().0, [-128.0]);
        assert_eq!(decode(Datatype::U64, false, None, &u64::MAX.to_le_bytes()).unwrap().0, [u64::MAX as f32]);
        assert_eq!(decode(Datatype::F64, true, None, &1.5f64.to_be_bytes()).unwrap().0, [1.5]);
    }

    #[test]
    fn nonfinite_is_counted_and_overflow_is_refused() {
        let bytes: Vec<u8> =
            [1.0, f32::NAN, f32::NEG_INFINITY, 2.0].iter().flat_map(|v: &f32| v.to_le_bytes()).collect();
        assert_eq!(decode(Datatype::F32, false, Some((2.0, 0.0)), &bytes).unwrap(), (vec![2.0, 0.0, 0.0, 4.0], 2));
        let huge = 1e300f64.to_le_bytes();
        assert_eq!(decode(Datatype::F64, false, None, &huge).unwrap_err().code(), Code::NIFTI_SCALING);
        let e = decode(Datatype::I16, false, Some((3e38, 0.0)), &[0, 0, 9, 0]).unwrap_err();
        assert_eq!(e.code(), Code::NIFTI_SCALING);
        // zero voxels are fine under any slope
        assert!(decode(Datatype::I16, false, Some((3e38, 0.0)), &[0, 0]).is_ok());
    }

    #[test]
    fn other_types_are_named() {
        assert!(Datatype::from_code(128).unwrap_err().message().contains("RGB"));
        assert_eq!(Datatype::from_code(-4).unwrap_err().code(), Code::NIFTI_DATATYPE);
    }
}
