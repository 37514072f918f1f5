//! The derived sources behind [`LazyTensor`]'s methods: cast, transpose, rows, concat (both ways), finite check.

use std::sync::Arc;

use half::{bf16, f16};

use super::lazy::{CHUNK_BYTES, LazyTensor, Sink, Source};
use super::{DType, show};
use crate::error::{Code, Error, Result};

/// Side of the square tiles that a transposition copies: both tiles stay in the first-level cache.
const TILE: usize = 64;

pub(super) struct Cast {
    pub inner: LazyTensor,
    pub to: DType,
}

impl Source for Cast {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let from = self.inner.dtype();
        let (mut values, mut out) = (Vec::new(), Vec::new());
        self.inner.stream(&mut |chunk| {
            // Chunks are cut so that widening (f16 to f64 at most: four times) keeps them within CHUNK_BYTES.
            chunk.chunks(CHUNK_BYTES / 8).try_for_each(|piece| {
                if self.to == DType::F64
                    || from == DType::F64
                    || matches!(from, DType::I64 | DType::U64 | DType::I32 | DType::U32)
                {
                    convert_wide(piece, from, self.to, &mut out);
                } else {
                    values.clear();
                    decode_f32(piece, from, &mut values);
                    encode_f32(&values, self.to, &mut out);
                }
                sink(&out)
            })
        })
    }

    fn under_cast(&self) -> Option<&LazyTensor> {
        Some(&self.inner)
    }

    fn transposed(&self) -> Option<LazyTensor> {
        (self.inner.shape().len() == 2).then(|| self.inner.transposed().cast(self.to))
    }
}

/// Appends the elements of `bytes` as `f32`; exact for every type but the 32 and 64-bit integers and doubles.
fn decode_f32(bytes: &[u8], from: DType, out: &mut Vec<f32>) {
    match from {
        DType::Bool | DType::U8 => out.extend(bytes.iter().map(|&b| f32::from(b))),
        DType::I8 => out.extend(bytes.iter().map(|&b| f32::from(b as i8))),
        DType::U16 => out.extend(bytes.as_chunks::<2>().0.iter().map(|b| f32::from(u16::from_le_bytes(*b)))),
        DType::I16 => out.extend(bytes.as_chunks::<2>().0.iter().map(|b| f32::from(i16::from_le_bytes(*b)))),
        DType::F16 => out.extend(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
        DType::BF16 => out.extend(bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
        DType::F32 => out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
        DType::U32 | DType::I32 | DType::U64 | DType::I64 | DType::F64 => {
            unreachable!("wide types go through convert_wide")
        }
    }
}

fn encode_f32(values: &[f32], to: DType, out: &mut Vec<u8>) {
    out.clear();
    match to {
        DType::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        DType::F16 => out.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
        DType::BF16 => out.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
        other => unreachable!("weights are cast to float types only, not {other}"),
    }
}

/// The slow, general path, by way of `f64`.
fn convert_wide(bytes: &[u8], from: DType, to: DType, out: &mut Vec<u8>) {
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
        DType::F16 => f16::from_le_bytes(le(b)).to_f64(),
        DType::BF16 => bf16::from_le_bytes(le(b)).to_f64(),
        DType::F32 => f64::from(f32::from_le_bytes(le(b))),
        DType::F64 => f64::from_le_bytes(le(b)),
    }
}

pub(super) struct Transposed {
    pub inner: LazyTensor,
}

impl Source for Transposed {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let (rows, cols) = (self.inner.shape()[0], self.inner.shape()[1]);
        let source = self.inner.bytes()?;
        // A band of output rows (columns of the source) at a time, at most one chunk.
        let row_bytes = rows * self.inner.dtype().size();
        let band = (CHUNK_BYTES / row_bytes.max(1)).clamp(1, TILE);
        let mut out = vec![0u8; band * row_bytes];
        for start in (0..cols).step_by(band) {
            let width = band.min(cols - start);
            let out = &mut out[..width * row_bytes];
            match self.inner.dtype().size() {
                1 => transpose_band::<1>(&source, out, rows, cols, start),
                2 => transpose_band::<2>(&source, out, rows, cols, start),
                4 => transpose_band::<4>(&source, out, rows, cols, start),
                _ => transpose_band::<8>(&source, out, rows, cols, start),
            }
            out.chunks(CHUNK_BYTES).try_for_each(&mut *sink)?;
        }
        self.inner.release();
        Ok(())
    }

    fn transposed(&self) -> Option<LazyTensor> {
        Some(self.inner.clone())
    }
}

/// Copies columns `start..` of the `[rows, cols]` matrix `source` into the rows of `out`; `N` bytes an element.
fn transpose_band<const N: usize>(source: &[u8], out: &mut [u8], rows: usize, cols: usize, start: usize) {
    let (source, out) = (source.as_chunks::<N>().0, out.as_chunks_mut::<N>().0);
    let width = out.len() / rows.max(1);
    for tile in (0..rows).step_by(TILE) {
        for row in tile..(tile + TILE).min(rows) {
            let line = &source[row * cols + start..][..width];
            for (i, element) in line.iter().enumerate() {
                out[i * rows + row] = *element;
            }
        }
    }
}

pub(super) struct Rows {
    pub inner: LazyTensor,
    pub indices: Vec<usize>,
}

impl Source for Rows {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let bytes = self.inner.bytes()?;
        let row: usize = self.inner.shape()[1..].iter().product::<usize>() * self.inner.dtype().size();
        // Runs of consecutive rows go out together.
        let mut rest = self.indices.as_slice();
        while let Some(&first) = rest.first() {
            let run = rest.iter().zip(first..).take_while(|&(&i, next)| i == next).count();
            bytes[first * row..(first + run) * row].chunks(CHUNK_BYTES).try_for_each(&mut *sink)?;
            rest = &rest[run..];
        }
        self.inner.release();
        Ok(())
    }

    fn contiguous(&self) -> Option<&[u8]> {
        let first = *self.indices.first()?;
        let one_run = self.indices.iter().zip(first..).all(|(&i, next)| i == next);
        let row = self.inner.byte_len() / self.inner.shape()[0];
        let bytes = self.inner.contiguous().filter(|_| one_run)?;
        bytes.get(first * row..(first + self.indices.len()) * row)
    }

    fn release(&self) {
        self.inner.release();
    }
}

pub(super) struct Concat {
    pub parts: Vec<LazyTensor>,
}

impl Source for Concat {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        self.parts.iter().try_for_each(|part| part.stream(sink))
    }
}

pub(super) struct Columns {
    pub parts: Vec<LazyTensor>,
}

impl Source for Columns {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let parts: Vec<_> = self.parts.iter().map(LazyTensor::bytes).collect::<Result<_>>()?;
        let rows = self.parts.first().map_or(0, |p| p.shape()[0]);
        let widths: Vec<usize> = self.parts.iter().map(|p| p.shape()[1] * p.dtype().size()).collect();
        let mut out = Vec::with_capacity(CHUNK_BYTES);
        for row in 0..rows {
            for (part, &width) in parts.iter().zip(&widths) {
                for piece in part[row * width..][..width].chunks(CHUNK_BYTES) {
                    if out.len() + piece.len() > CHUNK_BYTES {
                        sink(&out)?;
                        out.clear();
                    }
                    out.extend_from_slice(piece);
                }
            }
        }
        self.parts.iter().for_each(LazyTensor::release);
        if out.is_empty() { Ok(()) } else { sink(&out) }
    }
}

/// A float32 tensor times one factor a row or a column.
pub(super) struct Scaled {
    pub inner: LazyTensor,
    pub factors: Arc<[f32]>,
    pub by_row: bool,
}

impl Source for Scaled {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let width = self.inner.shape()[1..].iter().product::<usize>().max(1);
        let (mut index, mut out) = (0usize, Vec::new());
        self.inner.stream(&mut |chunk| {
            out.clear();
            for bytes in chunk.as_chunks::<4>().0 {
                let factor = self.factors[if self.by_row { index / width } else { index % width }];
                out.extend((f32::from_le_bytes(*bytes) * factor).to_le_bytes());
                index += 1;
            }
            sink(&out)
        })
    }

    fn transposed(&self) -> Option<LazyTensor> {
        if self.inner.shape().len() != 2 {
            return None;
        }
        let inner = self.inner.transposed();
        Some(if self.by_row { inner.scaled_columns(&self.factors) } else { inner.scaled_rows(&self.factors) })
    }

    fn release(&self) {
        self.inner.release();
    }
}

pub(super) struct FiniteCheck {
    pub inner: LazyTensor,
    pub name: String,
}

impl Source for FiniteCheck {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let (dtype, mut seen) = (self.inner.dtype(), 0usize);
        self.inner.stream(&mut |chunk| {
            if let Some(i) = first_nonfinite(chunk, dtype) {
                let value = decode_f64(&chunk[i * dtype.size()..][..dtype.size()], dtype);
                return Err(self.error(seen + i, value));
            }
            seen += chunk.len() / dtype.size();
            sink(chunk)
        })
    }

    /// Only once all of it is known to be finite; else reading goes through `stream`, which names the element.
    fn contiguous(&self) -> Option<&[u8]> {
        self.inner.contiguous().filter(|bytes| first_nonfinite(bytes, self.inner.dtype()).is_none())
    }

    fn release(&self) {
        self.inner.release();
    }
}

impl FiniteCheck {
    fn error(&self, flat: usize, value: f64) -> Error {
        let mut index = Vec::new();
        let mut rest = flat;
        for &extent in self.inner.shape().iter().rev() {
            index.insert(0, rest % extent.max(1));
            rest /= extent.max(1);
        }
        let (name, index) = (&self.name, show(&index));
        Error::new(
            Code::CHECKPOINT_NONFINITE,
            format!("tensor `{name}` holds {value} at {index}: weights must be finite"),
        )
    }
}

/// Index of the first element whose exponent is all ones. Works on the bits: no conversion.
fn first_nonfinite(bytes: &[u8], dtype: DType) -> Option<usize> {
    match dtype {
        DType::F16 => bytes.as_chunks::<2>().0.iter().position(|b| u16::from_le_bytes(*b) & 0x7c00 == 0x7c00),
        DType::BF16 => bytes.as_chunks::<2>().0.iter().position(|b| u16::from_le_bytes(*b) & 0x7f80 == 0x7f80),
        DType::F32 => bytes.as_chunks::<4>().0.iter().position(|b| u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000),
        DType::F64 => {
            let exponent = 0x7ff0_0000_0000_0000u64;
            bytes.as_chunks::<8>().0.iter().position(|b| u64::from_le_bytes(*b) & exponent == exponent)
        }
        _ => None,
    }
}
