//! The derived sources behind [`LazyTensor`]'s methods: cast, transpose, rows, concat (both ways), finite check.

use std::sync::Arc;

use rayon::prelude::*;

use super::decode::{convert_wide, decode_f32, decode_f64, encode_f32, is_wide};
use super::lazy::{CHUNK_BYTES, LazyTensor, Sink, Source};
use super::{DType, show};
use crate::error::{Code, Error, Result};

/// Side of the square tiles that a transposition copies: both tiles stay in the first-level cache.
const TILE: usize = 64;

/// Bands that a transposition makes side by side: enough for the cores of a workstation, little to hold.
const BANDS: usize = 16;

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
                // By way of float32 a wide type would be rounded twice.
                if self.to == DType::F64 || is_wide(from) {
                    convert_wide(piece, from, self.to, &mut out);
                } else {
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

pub(super) struct Transposed {
    pub inner: LazyTensor,
}

impl Source for Transposed {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let (rows, cols) = (self.inner.shape()[0], self.inner.shape()[1]);
        let source = self.inner.bytes()?;
        // A band of output rows (columns of the source) is at most one chunk; some are made side by side.
        let row_bytes = rows * self.inner.dtype().size();
        let band = (CHUNK_BYTES / row_bytes.max(1)).clamp(1, TILE);
        let starts: Vec<usize> = (0..cols).step_by(band).collect();
        let mut made = vec![Vec::new(); BANDS];
        for starts in starts.chunks(BANDS) {
            made.par_iter_mut().zip(starts).for_each(|(out, &start)| {
                out.resize(band.min(cols - start) * row_bytes, 0);
                match self.inner.dtype().size() {
                    1 => transpose_band::<1>(&source, out, rows, cols, start),
                    2 => transpose_band::<2>(&source, out, rows, cols, start),
                    4 => transpose_band::<4>(&source, out, rows, cols, start),
                    _ => transpose_band::<8>(&source, out, rows, cols, start),
                }
            });
            made.iter().zip(starts).flat_map(|(out, _)| out.chunks(CHUNK_BYTES)).try_for_each(&mut *sink)?;
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
    // By way of a tile of its own: rows of a matrix tend to lie a multiple of 4096 bytes apart, where all of them fall
    // into the same few lines of the cache.
    let mut turned = [[0u8; N]; TILE * TILE];
    for tile in (0..rows).step_by(TILE) {
        let height = TILE.min(rows - tile);
        for row in 0..height {
            let line = &source[(tile + row) * cols + start..][..width];
            for (element, to) in line.iter().zip(turned[row..].iter_mut().step_by(TILE)) {
                *to = *element;
            }
        }
        for (i, line) in turned.chunks_exact(TILE).take(width).enumerate() {
            out[i * rows + tile..][..height].copy_from_slice(&line[..height]);
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

pub(super) struct ConcatColumns {
    pub parts: Vec<LazyTensor>,
}

impl Source for ConcatColumns {
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
            let mut rest = chunk.as_chunks::<4>().0;
            while !rest.is_empty() {
                let (row, column) = (index / width, index % width);
                let (now, later) = rest.split_at(rest.len().min(width - column));
                let values = now.iter().map(|b| f32::from_le_bytes(*b));
                if self.by_row {
                    let factor = self.factors[row];
                    out.extend(values.flat_map(|v| (v * factor).to_le_bytes()));
                } else {
                    out.extend(values.zip(&self.factors[column..]).flat_map(|(v, factor)| (v * factor).to_le_bytes()));
                }
                (index, rest) = (index + now.len(), later);
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
        for &size in self.inner.shape().iter().rev() {
            index.insert(0, rest % size.max(1));
            rest /= size.max(1);
        }
        let (name, index) = (&self.name, show(&index));
        if value.is_finite() {
            let message = format!(
                "tensor `{name}` holds {value:e} at {index}, which overflows to infinity in float32 (at most 3.4e38), in \
                 which the model computes"
            );
            return Error::new(Code::CHECKPOINT_NONFINITE, message);
        }
        Error::new(
            Code::CHECKPOINT_NONFINITE,
            format!("tensor `{name}` holds {value} at {index}: weights must be finite"),
        )
    }
}

/// Index of the first element that float32 has no finite number for. Works on the bits: no conversion.
fn first_nonfinite(bytes: &[u8], dtype: DType) -> Option<usize> {
    match dtype {
        // The one NaN of each sign: there is no infinity.
        DType::F8E4M3 => first(bytes, |b| b & 0x7f == 0x7f),
        DType::F8E5M2 => first(bytes, |b| b & 0x7c == 0x7c),
        DType::F16 => first(bytes.as_chunks::<2>().0, |b| u16::from_le_bytes(*b) & 0x7c00 == 0x7c00),
        DType::BF16 => first(bytes.as_chunks::<2>().0, |b| u16::from_le_bytes(*b) & 0x7f80 == 0x7f80),
        DType::F32 => first(bytes.as_chunks::<4>().0, |b| u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000),
        DType::F64 => {
            // From the middle between float32's largest number and 2^128 on, rounding gives infinity. NaN and infinity
            // have larger bits than any number.
            let overflow = 0x47ef_ffff_f000_0000u64;
            first(bytes.as_chunks::<8>().0, |b| u64::from_le_bytes(*b) & (u64::MAX >> 1) >= overflow)
        }
        _ => None,
    }
}

/// Index of the first element that is `bad`. Scans whole pieces first: a loop that may stop at any element is not
/// vectorised.
fn first<T: Sync>(elements: &[T], bad: impl Fn(&T) -> bool + Sync) -> Option<usize> {
    const PIECE: usize = 4096;
    let suspicious = |piece: &&[T]| piece.iter().fold(false, |any, e| any | bad(e));
    let in_piece = |(i, piece): (usize, &[T])| piece.iter().position(&bad).map(|at| i * PIECE + at);
    if elements.len() <= 4 * CHUNK_BYTES {
        return elements.chunks(PIECE).enumerate().find(|(_, piece)| suspicious(piece)).and_then(in_piece);
    }
    elements.par_chunks(PIECE).enumerate().find_first(|(_, piece)| suspicious(piece)).and_then(in_piece)
}
