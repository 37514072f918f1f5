//! Weights as references to bytes.
//!
//! A [`LazyTensor`] is cheap to clone and to derive from: a cast, a transposition or a selection of rows makes a
//! new one that reads through the old one when it is written at last. Nothing is held but what one chunk
//! needs; only a transposition holds its whole source, once, in the source's own dtype.

use std::borrow::Cow;
use std::sync::Arc;

use super::views::{Cast, Columns, Concat, FiniteCheck, Rows, Transposed};
use super::{DType, numel, show};
use crate::error::{Code, Error, Result};

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
            return Err(Error::new(
                Code::CHECKPOINT_CORRUPT,
                format!("a tensor yields {seen} bytes, its shape {want}"),
            ));
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
        if let Some(inner) = self.source.under_cast() {
            return inner.transposed().cast(self.dtype);
        }
        Self::new(self.dtype, vec![cols, rows], Arc::new(Transposed { inner: self.clone() }))
    }

    /// Rows picked along axis 0, in the order given (rows may repeat).
    ///
    /// # Panics
    /// When an index is out of range or the tensor is a scalar: a mistake of the caller.
    #[must_use]
    pub fn rows(&self, indices: impl IntoIterator<Item = usize>) -> Self {
        let indices: Vec<usize> = indices.into_iter().collect();
        assert!(indices.iter().all(|&i| i < self.shape[0]), "row in range");
        if let Some(inner) = self.source.under_cast() {
            return inner.rows(indices).cast(self.dtype);
        }
        let mut shape = self.shape.clone();
        shape[0] = indices.len();
        Self::new(self.dtype, shape, Arc::new(Rows { inner: self.clone(), indices }))
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
        Self::new(first.dtype, vec![first.shape[0], cols], Arc::new(Columns { parts: parts.to_vec() }))
    }

    /// The same tensor, which fails with `checkpoint.nonfinite` when a NaN or an infinity streams by.
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ramp(shape: &[usize]) -> LazyTensor {
        let values: Vec<f32> = (0..numel(shape).unwrap()).map(|i| i as f32).collect();
        LazyTensor::from_f32(shape, &values)
    }

    proptest! {
        #[test]
        fn transposition_moves_every_element(rows in 1usize..150, cols in 1usize..150, half in any::<bool>()) {
            let dtype = if half { DType::F16 } else { DType::F32 };
            // Small integers: exact in half precision.
            let values: Vec<f32> = (0..rows * cols).map(|i| (i % 2039) as f32).collect();
            let t = LazyTensor::from_f32(&[rows, cols], &values).cast(dtype).transposed();
            prop_assert_eq!(t.shape(), &[cols, rows]);
            let got = t.to_f32().unwrap();
            for r in 0..rows {
                for c in 0..cols {
                    prop_assert_eq!(got[c * rows + r], values[r * cols + c]);
                }
            }
        }

        #[test]
        fn rows_and_concat_select(n in 1usize..40, width in 1usize..9, picks in prop::collection::vec(0usize..40, 1..30)) {
            let picks: Vec<usize> = picks.into_iter().map(|p| p % n).collect();
            let t = ramp(&[n, width]);
            let both = LazyTensor::concat(&[t.rows(picks.iter().copied()), t.clone()]);
            let expected: Vec<f32> = picks.iter().copied().chain(0..n)
                .flat_map(|r| (0..width).map(move |c| (r * width + c) as f32)).collect();
            prop_assert_eq!(both.to_f32().unwrap(), expected);
        }
    }

    #[test]
    fn columns_are_laid_side_by_side() {
        let (a, b) = (ramp(&[2, 2]), LazyTensor::from_f32(&[2, 1], &[8.0, 9.0]));
        let both = LazyTensor::concat_columns(&[a, b]);
        assert_eq!(both.shape(), &[2, 3]);
        assert_eq!(both.to_f32().unwrap(), [0.0, 1.0, 8.0, 2.0, 3.0, 9.0]);
        let wide = ramp(&[3, 700_000]);
        let twice = LazyTensor::concat_columns(&[wide.clone(), wide]).to_f32().unwrap();
        assert_eq!((twice[700_000], twice[4_199_999]), (0.0, 2_099_999.0));
    }

    #[test]
    fn casts_round_to_nearest_even() {
        let t = LazyTensor::from_f32(&[4], &[1.0, 65504.0, 2049.0, -0.1]);
        assert_eq!(t.cast(DType::F16).to_f32().unwrap(), [1.0, 65504.0, 2048.0, half::f16::from_f32(-0.1).to_f32()]);
        assert_eq!(t.cast(DType::F64).cast(DType::F32).to_f32().unwrap(), t.to_f32().unwrap());
        assert_eq!(LazyTensor::from_i64(&[2], &[-3, 1 << 24]).to_f32().unwrap(), [-3.0, 16_777_216.0]);
    }

    #[test]
    fn large_tensors_stream_in_whole_bounded_chunks() {
        let t = ramp(&[700, 1001]).cast(DType::F16).cast(DType::F64);
        let mut total = 0;
        t.stream(&mut |chunk| {
            assert!(chunk.len() <= CHUNK_BYTES && chunk.len() % 8 == 0);
            total += chunk.len();
            Ok(())
        })
        .unwrap();
        assert_eq!(total, 700 * 1001 * 8);
    }

    #[test]
    fn nonfinite_values_are_named_with_their_index() {
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            let t = LazyTensor::from_f32(&[2, 3], &[0.0, 1.0, 2.0, 3.0, f32::NEG_INFINITY, 5.0]).cast(dtype);
            let error = t.checked_finite("w").to_f32().unwrap_err();
            assert_eq!(error.code(), Code::CHECKPOINT_NONFINITE);
            assert!(error.message().contains("`w`") && error.message().contains("[1, 1]"), "{error}");
        }
    }

    #[test]
    fn a_source_that_yields_too_little_is_caught() {
        let t = LazyTensor::new(DType::F32, vec![3], Arc::new(vec![0u8; 8]));
        assert_eq!(t.to_f32().unwrap_err().code(), Code::CHECKPOINT_CORRUPT);
        assert!(t.bytes().is_err());
    }
}
