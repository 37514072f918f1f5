//! Element types as one another: how casts and rows of weights are converted.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::DType;

/// Some rows of a tensor as they are stored, to be decoded row by row.
pub struct Band<'a> {
    bytes: &'a [u8],
    dtype: DType,
    width: usize,
}

impl<'a> Band<'a> {
    pub(super) fn new(bytes: &'a [u8], dtype: DType, width: usize) -> Self {
        Self { bytes, dtype, width }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.bytes.len() / (self.width * self.dtype.size())
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Decodes a row to float32, in place of what `values` held.
    pub fn row(&self, index: usize, values: &mut Vec<f32>) {
        let size = self.width * self.dtype.size();
        decode_f32(&self.bytes[index * size..][..size], self.dtype, values);
    }
}

/// Whether float32 cannot hold all values of the type.
pub(super) fn is_wide(dtype: DType) -> bool {
    matches!(dtype, DType::F64 | DType::I64 | DType::U64 | DType::I32 | DType::U32)
}

/// fp16 values converted at a time, as a slice: one by one, each conversion is a call that detects the CPU's features
/// again.
const HALVES: usize = 1024;

fn widen_halves(bytes: &[u8], out: &mut Vec<f32>) {
    let mut halves = [f16::ZERO; HALVES];
    out.resize(bytes.len() / 2, 0.0);
    for (bytes, out) in bytes.as_chunks::<2>().0.chunks(HALVES).zip(out.chunks_mut(HALVES)) {
        let halves = &mut halves[..bytes.len()];
        halves.iter_mut().zip(bytes).for_each(|(half, b)| *half = f16::from_le_bytes(*b));
        halves.convert_to_f32_slice(out);
    }
}

fn narrow_to_halves(values: &[f32], out: &mut Vec<u8>) {
    let mut halves = [f16::ZERO; HALVES];
    for values in values.chunks(HALVES) {
        let halves = &mut halves[..values.len()];
        halves.convert_from_f32_slice(values);
        out.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
    }
}

/// What each byte of an 8-bit float type is, after the OCP 8-bit Floating Point Specification (OFP8), section 5.
///
/// # Panics
/// For another type: a mistake of the caller.
pub(crate) fn float8(dtype: DType) -> &'static [f32; 256] {
    const E4M3: [f32; 256] = float8_table(3, 7);
    const E5M2: [f32; 256] = float8_table(2, 15);
    match dtype {
        DType::F8E4M3 => &E4M3,
        DType::F8E5M2 => &E5M2,
        other => unreachable!("{other} is no 8-bit float"),
    }
}

/// All values of an 8-bit float of so many bits of fraction and that bias of the exponent.
const fn float8_table(fraction_bits: u32, bias: u32) -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (magnitude, sign) = (byte as u32 & 0x7f, (byte as u32 >> 7) << 31);
        let (exponent, fraction) = (magnitude >> fraction_bits, magnitude & ((1 << fraction_bits) - 1));
        // E4M3 has one NaN and no infinity; E5M2 has both, as IEEE 754 has.
        let special = if fraction_bits == 3 { magnitude == 0x7f } else { exponent == 31 };
        let bits = if special {
            if fraction_bits == 2 && fraction == 0 { 0x7f80_0000 } else { 0x7fc0_0000 }
        } else if exponent == 0 {
            // Fractions of the smallest normal number, 2^(1 - bias).
            (fraction as f32 * f32::from_bits((127 + 1 - bias - fraction_bits) << 23)).to_bits()
        } else {
            (exponent + 127 - bias) << 23 | fraction << (23 - fraction_bits)
        };
        table[byte] = f32::from_bits(sign | bits);
        byte += 1;
    }
    table
}

/// The elements of `bytes` as `f32`, in place of what `out` held; wide types are rounded.
pub(super) fn decode_f32(bytes: &[u8], from: DType, out: &mut Vec<f32>) {
    out.clear();
    match from {
        DType::Bool | DType::U8 => out.extend(bytes.iter().map(|&b| f32::from(b))),
        DType::I8 => out.extend(bytes.iter().map(|&b| f32::from(b as i8))),
        DType::U16 => out.extend(bytes.as_chunks::<2>().0.iter().map(|b| f32::from(u16::from_le_bytes(*b)))),
        DType::I16 => out.extend(bytes.as_chunks::<2>().0.iter().map(|b| f32::from(i16::from_le_bytes(*b)))),
        DType::F8E4M3 | DType::F8E5M2 => {
            let table = float8(from);
            out.extend(bytes.iter().map(|&b| table[usize::from(b)]));
        }
        DType::F16 => widen_halves(bytes, out),
        DType::BF16 => out.extend(bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
        DType::F32 => out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
        DType::U32 | DType::I32 | DType::U64 | DType::I64 | DType::F64 => {
            out.extend(bytes.chunks_exact(from.size()).map(|b| decode_f64(b, from) as f32));
        }
    }
}

pub(super) fn encode_f32(values: &[f32], to: DType, out: &mut Vec<u8>) {
    out.clear();
    match to {
        DType::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        DType::F16 => narrow_to_halves(values, out),
        DType::BF16 => out.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
        other => unreachable!("weights are cast to float types only, not {other}"),
    }
}

/// The slow, general path, by way of `f64`.
pub(super) fn convert_wide(bytes: &[u8], from: DType, to: DType, out: &mut Vec<u8>) {
    out.clear();
    for element in bytes.chunks_exact(from.size()) {
        let value = decode_f64(element, from);
        match to {
            DType::F64 => out.extend(value.to_le_bytes()),
            DType::F32 => out.extend((value as f32).to_le_bytes()),
            DType::F16 => out.extend(f16::from_f64(value).to_le_bytes()),
            DType::BF16 => out.extend(bf16::from_f64(value).to_le_bytes()),
            other => unreachable!("weights are cast to float types only, not {other}"),
        }
    }
}

/// One element as `f64` (64-bit integers beyond 2^53 are rounded).
pub(super) fn decode_f64(b: &[u8], from: DType) -> f64 {
    fn le<const N: usize>(b: &[u8]) -> [u8; N] {
        b.try_into().expect("an element has its type's size")
    }
    match from {
        DType::Bool | DType::U8 => f64::from(b[0]),
        DType::I8 => f64::from(b[0] as i8),
        DType::U16 => f64::from(u16::from_le_bytes(le(b))),
        DType::I16 => f64::from(i16::from_le_bytes(le(b))),
        DType::U32 => f64::from(u32::from_le_bytes(le(b))),
        DType::I32 => f64::from(i32::from_le_bytes(le(b))),
        DType::U64 => u64::from_le_bytes(le(b)) as f64,
        DType::I64 => i64::from_le_bytes(le(b)) as f64,
        DType::F8E4M3 | DType::F8E5M2 => f64::from(float8(from)[usize::from(b[0])]),
        DType::F16 => f16::from_le_bytes(le(b)).to_f64(),
        DType::BF16 => bf16::from_le_bytes(le(b)).to_f64(),
        DType::F32 => f64::from(f32::from_le_bytes(le(b))),
        DType::F64 => f64::from_le_bytes(le(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Section 5 of the specification lists these.
    #[test]
    fn eight_bit_floats_are_those_of_the_specification() {
        let (e4m3, e5m2) = (float8(DType::F8E4M3), float8(DType::F8E5M2));
        assert_eq!((e4m3[0x7e], e4m3[0x08], e4m3[0x07], e4m3[0x01]), (448.0, 0.015625, 0.875 / 64.0, 0.001953125));
        assert_eq!((e5m2[0x7b], e5m2[0x04], e5m2[0x03]), (57344.0, 2f32.powi(-14), 0.75 * 2f32.powi(-14)));
        assert_eq!((e5m2[0x01], e5m2[0x7c], e5m2[0xfc]), (2f32.powi(-16), f32::INFINITY, f32::NEG_INFINITY));
        assert!(e4m3[0x7f].is_nan() && e4m3[0xff].is_nan() && e5m2[0x7d].is_nan() && e5m2[0xff].is_nan());
        assert_eq!((e4m3[0x80].to_bits(), e4m3[0xb8], e4m3[0x38]), ((-0.0f32).to_bits(), -1.0, 1.0));
        for (byte, value) in e5m2.iter().enumerate() {
            let half = f16::from_bits((byte as u16) << 8).to_f32();
            assert!(*value == half || value.is_nan() && half.is_nan(), "{byte:#x}");
        }
        assert_eq!(e4m3.iter().filter(|v| v.is_finite()).count(), 254);
    }
}
