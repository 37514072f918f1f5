//! Weights as references to bytes.
//!
//! A [`LazyTensor`] is cheap to clone and to derive from: a cast, a transposition or a selection of rows makes a
//! new one that reads through the old one when it is written at last. Nothing is held but what some
//! chunks need; only a transposition holds its whole source, once, in the source's own dtype.

use std::borrow::Cow;
use std::sync::Arc;

use super::decode::Band;
use super::views::{Cast, Concat, ConcatColumns, FiniteCheck, Rows, Scaled, Transposed};
use super::{DType, numel, show};
use crate::error::{Error, Result};

/// Largest chunk that a [`Source`] hands over, in bytes; a multiple of every element size.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Receives consecutive chunks of little-endian, row-major elements; every chunk holds whole elements.
pub type Sink<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// Where a tensor's bytes come from.
pub trait Source: Send + Sync {
    /// Hands all elements to `sink`, in row-major order, in chunks of at most [`CHUNK_BYTES`].
    ///
    /// # Errors
    /// When the bytes cannot be read, or when `sink` fails.
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()>;

    /// All bytes at once where they lie in memory (or in a mapping) already, row-major and little-endian.
    fn contiguous(&self) -> Option<&[u8]> {
        None
    }

    /// The tensor under a cast. Moving elements commutes with casting them, and moves fewer bytes before a
    /// widening cast than after it.
    fn under_cast(&self) -> Option<&LazyTensor> {
        None
    }

    /// The transpose of this matrix, where another source has it without moving elements.
    fn transposed(&self) -> Option<LazyTensor> {
        None
    }

    /// A hint that the bytes will not be read again soon: a mapping may give its pages back. Never changes them.
    fn release(&self) {}
}

impl Source for Vec<u8> {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        self.chunks(CHUNK_BYTES).try_for_each(sink)
    }

    fn contiguous(&self) -> Option<&[u8]> {
        Some(self)
    }
}

/// So many bytes of zeros.
struct Zeros(usize);

impl Source for Zeros {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let chunk = vec![0; CHUNK_BYTES.min(self.0)];
        (0..self.0).step_by(CHUNK_BYTES).try_for_each(|at| sink(&chunk[..CHUNK_BYTES.min(self.0 - at)]))
    }
}

/// A dtype, a shape and a [`Source`] of the elements.
#[derive(Clone)]
pub struct LazyTensor {
    dtype: DType,
    shape: Vec<usize>,
    source: Arc<dyn Source>,
}

impl std::fmt::Debug for LazyTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.dtype, show(&self.shape))
    }
}

impl LazyTensor {
    /// A tensor over `source`, which must yield exactly `numel(shape) * dtype.size()` bytes.
    pub fn new(dtype: DType, shape: Vec<usize>, source: Arc<dyn Source>) -> Self {
        Self { dtype, shape, source }
    }

    /// A float32 tensor that owns its values, row-major.
    ///
    /// # Panics
    /// When `values` does not fill `shape`: a mistake of the caller, never of a file.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(numel(shape), Some(values.len()), "values fill the shape");
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(DType::F32, shape.to_vec(), Arc::new(bytes))
    }

    /// float32 zeros, which take no memory until they are read.
    pub fn zeros(shape: &[usize]) -> Self {
        let bytes = numel(shape).and_then(|n| n.checked_mul(4)).unwrap_or(usize::MAX);
        Self::new(DType::F32, shape.to_vec(), Arc::new(Zeros(bytes)))
    }

    /// An int64 tensor that owns its values, row-major.
    ///
    /// # Panics
    /// When `values` does not fill `shape`: a mistake of the caller, never of a file.
    pub fn from_i64(shape: &[usize], values: &[i64]) -> Self {
        assert_eq!(numel(shape), Some(values.len()), "values fill the shape");
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(DType::I64, shape.to_vec(), Arc::new(bytes))
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extent of each axis; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of all elements in bytes.
    pub fn byte_len(&self) -> usize {
        self.len() * self.dtype.size()
    }

    /// Hands all bytes to `sink`, and makes sure that they are as many as the shape says.
    ///
    /// # Errors
    /// When the source cannot be read or yields another number of bytes, or when `sink` fails.
    pub fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let mut seen = 0usize;
        self.source.stream(&mut |chunk| {
            seen += chunk.len();
            sink(chunk)
        })?;
        if seen != self.byte_len() {
            let want = self.byte_len();
            return Err(Error::internal(format!("a tensor yields {seen} bytes, its shape {want}")));
        }
        Ok(())
    }

    /// All bytes where they lie in memory or in a mapping already.
    pub(super) fn contiguous(&self) -> Option<&[u8]> {
        self.source.contiguous().filter(|bytes| bytes.len() == self.byte_len())
    }

    /// All bytes, borrowed where the source has them at hand.
    ///
    /// # Errors
    /// As [`Self::stream`].
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        if let Some(bytes) = self.contiguous() {
            return Ok(Cow::Borrowed(bytes));
        }
        let mut all = Vec::with_capacity(self.byte_len());
        self.stream(&mut |chunk| {
            all.extend_from_slice(chunk);
            Ok(())
        })?;
        Ok(Cow::Owned(all))
    }

    /// The values where they lie in memory or in a mapping already, as float32 of this machine's byte order.
    pub fn as_f32(&self) -> Option<&[f32]> {
        let native = self.dtype == DType::F32 && cfg!(target_endian = "little");
        self.contiguous().filter(|_| native).and_then(|bytes| bytemuck::try_cast_slice(bytes).ok())
    }

    /// A hint that the bytes will not be read again soon, for whoever read them through [`Self::bytes`].
    pub fn release(&self) {
        self.source.release();
    }

    /// All values as `f32`, row-major. Doubles are rounded, integers converted.
    ///
    /// # Errors
    /// As [`Self::stream`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let bytes = self.cast(DType::F32);
        let mut values = Vec::with_capacity(self.len());
        bytes.stream(&mut |chunk| {
            values.extend(chunk.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
            Ok(())
        })?;
        Ok(values)
    }

    /// The same values in another float type (from any type); rounds to nearest, ties to even.
    #[must_use]
    pub fn cast(&self, to: DType) -> Self {
        if to == self.dtype {
            return self.clone();
        }
        Self::new(to, self.shape.clone(), Arc::new(Cast { inner: self.clone(), to }))
    }

    /// Whether the values are those of another type, only widened: casting back to it loses nothing.
    pub fn comes_from(&self, dtype: DType) -> bool {
        self.dtype == dtype || self.source.under_cast().is_some_and(|inner| inner.comes_from(dtype))
    }

    /// The same bytes under another shape of as many elements.
    ///
    /// # Panics
    /// When the numbers of elements differ: a mistake of the caller.
    #[must_use]
    pub fn reshaped(&self, shape: &[usize]) -> Self {
        assert_eq!(numel(shape), Some(self.len()), "a reshape keeps the number of elements");
        Self::new(self.dtype, shape.to_vec(), Arc::clone(&self.source))
    }

    /// The transpose of a matrix: `[n, m]` from `[m, n]`.
    ///
    /// # Panics
    /// When the tensor is not a matrix: a mistake of the caller.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let &[rows, cols] = self.shape.as_slice() else { panic!("a transposition needs a matrix, not {self:?}") };
        // A reshaped tensor has the source of another shape.
        let known = self.source.transposed().filter(|t| t.shape == [cols, rows]);
        known.unwrap_or_else(|| Self::new(self.dtype, vec![cols, rows], Arc::new(Transposed { inner: self.clone() })))
    }

    /// Rows picked along axis 0, in the order given (rows may repeat).
    ///
    /// # Panics
    /// When an index is out of range or the tensor is a scalar: a mistake of the caller.
    #[must_use]
    pub fn rows(&self, indices: impl IntoIterator<Item = usize>) -> Self {
        let indices: Vec<usize> = indices.into_iter().collect();
        assert!(indices.iter().all(|&i| i < self.shape[0]), "row in range");
        if let Some(inner) = self.source.under_cast().filter(|t| t.shape == self.shape) {
            return inner.rows(indices).cast(self.dtype);
        }
        let mut shape = self.shape.clone();
        shape[0] = indices.len();
        Self::new(self.dtype, shape, Arc::new(Rows { inner: self.clone(), indices }))
    }

    /// The float32 matrix (or vector, whose elements are its rows) with row `i` multiplied by `factors[i]`.
    ///
    /// # Panics
    /// When there is not one factor a row: a mistake of the caller.
    #[must_use]
    pub fn scaled_rows(&self, factors: &Arc<[f32]>) -> Self {
        assert_eq!(self.shape.first(), Some(&factors.len()), "one factor a row");
        let scaled = Scaled { inner: self.cast(DType::F32), factors: Arc::clone(factors), by_row: true };
        Self::new(DType::F32, self.shape.clone(), Arc::new(scaled))
    }

    /// The float32 matrix with column `j` multiplied by `factors[j]`.
    ///
    /// # Panics
    /// When there is not one factor a column: a mistake of the caller.
    #[must_use]
    pub fn scaled_columns(&self, factors: &Arc<[f32]>) -> Self {
        assert_eq!(self.shape.get(1..), Some(&[factors.len()][..]), "one factor a column");
        let scaled = Scaled { inner: self.cast(DType::F32), factors: Arc::clone(factors), by_row: false };
        Self::new(DType::F32, self.shape.clone(), Arc::new(scaled))
    }

    /// Hands the matrix (or any tensor, by axis 0) to `band`, some whole rows at a time, with the first row's number.
    /// Rows are decoded to float32 by whoever looks at them, so on as many threads as the caller likes. Memory stays at
    /// `rows` rows in the source's own dtype, or at nothing where the bytes lie in a mapping already.
    ///
    /// # Errors
    /// As [`Self::stream`], and those of `band`.
    pub fn for_each_band(&self, rows: usize, band: &mut dyn FnMut(usize, Band<'_>) -> Result<()>) -> Result<()> {
        let width = self.shape[1..].iter().product::<usize>();
        let single = self.cast(DType::F32);
        // Decoding is the cast: what lies under it is handed over as it is.
        let stored = single.source.under_cast().unwrap_or(&single);
        let (dtype, rows) = (stored.dtype, rows.max(1));
        let full = rows * width * dtype.size();
        if full == 0 {
            return Ok(());
        }
        if let Some(bytes) = stored.contiguous() {
            for (i, bytes) in bytes.chunks(full).enumerate() {
                band(i * rows, Band::new(bytes, dtype, width))?;
            }
            stored.release();
            return Ok(());
        }
        let (mut first, mut held) = (0, Vec::with_capacity(full));
        stored.stream(&mut |mut chunk| {
            while !chunk.is_empty() {
                let (now, later) = chunk.split_at(chunk.len().min(full - held.len()));
                held.extend_from_slice(now);
                chunk = later;
                if held.len() == full {
                    band(first, Band::new(&held, dtype, width))?;
                    first += rows;
                    held.clear();
                }
            }
            Ok(())
        })?;
        if held.is_empty() { Ok(()) } else { band(first, Band::new(&held, dtype, width)) }
    }

    /// Tensors one after the other along axis 0. They agree in dtype and in the other axes.
    ///
    /// # Panics
    /// When `parts` is empty or its members disagree: a mistake of the caller.
    pub fn concat(parts: &[Self]) -> Self {
        let first = parts.first().expect("concat has at least one part");
        assert!(parts.iter().all(|p| p.dtype == first.dtype && p.shape[1..] == first.shape[1..]), "parts agree");
        let mut shape = first.shape.clone();
        shape[0] = parts.iter().map(|p| p.shape[0]).sum();
        Self::new(first.dtype, shape, Arc::new(Concat { parts: parts.to_vec() }))
    }

    /// Matrices side by side: `[n, a + b + …]` from `[n, a]`, `[n, b]`, …. They agree in dtype and in rows.
    ///
    /// # Panics
    /// When `parts` is empty or its members are no matrices or disagree: a mistake of the caller.
    pub fn concat_columns(parts: &[Self]) -> Self {
        let first = parts.first().expect("concat_columns has at least one part");
        let fits = |p: &Self| p.dtype == first.dtype && p.shape.len() == 2 && p.shape[0] == first.shape[0];
        assert!(parts.iter().all(fits), "parts agree");
        let cols = parts.iter().map(|p| p.shape[1]).sum();
        Self::new(first.dtype, vec![first.shape[0], cols], Arc::new(ConcatColumns { parts: parts.to_vec() }))
    }

    /// The same tensor, which fails with `checkpoint.nonfinite` when a NaN or an infinity streams by, or a float64 that
    /// is infinite as float32, in which weights are computed.
    #[must_use]
    pub fn checked_finite(&self, name: &str) -> Self {
        if !self.dtype.is_float() {
            return self.clone();
        }
        let check = FiniteCheck { inner: self.clone(), name: name.to_owned() };
        Self::new(self.dtype, self.shape.clone(), Arc::new(check))
    }
}

#[cfg(test)]
#[path = "lazy_tests.rs"]
mod tests;
