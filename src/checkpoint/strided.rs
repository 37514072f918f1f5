//! Views of a storage: an offset, a shape and strides over one-dimensional elements, as PyTorch has them.
//!
//! Flows in: a storage's byte range, dtype, offset, shape `[..]` and strides, all in elements. Flows out: a
//! [`LazyTensor`] that yields row-major bytes: the range itself where the view is contiguous, a tiled transposition
//! for column-major matrices, and a gathering [`Strided`] source for the rest (steps, permutations, stride 0).
//!
//! # Errors
//! `checkpoint.corrupt` when a view reaches outside its storage, when its size overflows, or when stride 0 makes a few
//! bytes claim to be far more than the file holds.
//!
//! # Safety
//! No `unsafe`. Every reachable element is proved to lie inside the storage before a source is made.

use std::ops::Range;
use std::sync::Arc;

use super::mapping::{Mapped, Mapping};
use crate::error::{Code, Error, Result};
use crate::tensor::{CHUNK_BYTES, DType, LazyTensor, Sink, Source, numel, show};

/// What an expanded (stride 0) view may always claim, however small the file.
const EXPANDED_BYTES: usize = 16 << 20;

/// A view as a pickle describes it; offset and strides in elements.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View {
    pub dtype: DType,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

impl View {
    /// The tensor that this view shows of the storage `storage` (a byte range of `map`).
    pub fn over(&self, map: &Arc<Mapping>, storage: Range<usize>) -> Result<LazyTensor> {
        let (available, size) = (storage.len() / self.dtype.size(), self.dtype.size());
        let elements = numel(&self.shape).filter(|n| n.checked_mul(size).is_some());
        let Some(elements) = elements else {
            return Err(corrupt(format!("shape {} overflows", show(&self.shape))));
        };
        if self.shape.len() != self.strides.len() {
            let (shape, strides) = (show(&self.shape), show(&self.strides));
            return Err(corrupt(format!("shape {shape} and strides {strides} differ in length")));
        }
        // An empty view reaches nothing, wherever it begins: PyTorch makes such by slicing past the end.
        let end = if elements == 0 { Some(0) } else { self.span().and_then(|s| s.checked_add(self.offset)) };
        let Some(end) = end.filter(|&e| e <= available) else {
            let (shape, offset) = (show(&self.shape), self.offset);
            return Err(corrupt(format!(
                "a view of shape {shape} at offset {offset} reaches past its storage of {available} elements"
            )));
        };
        let limit = map.bytes().len().max(EXPANDED_BYTES);
        if elements * size > limit {
            let shape = show(&self.shape);
            return Err(corrupt(format!("a view expands to shape {shape}, more than {limit} bytes")));
        }
        let (start, end) = if elements == 0 { (0, 0) } else { (self.offset, end) };
        let bytes = storage.start + start * size..storage.start + end * size;
        let base = Mapped::new(map, bytes).ok_or_else(|| corrupt("a storage lies outside the file".into()))?;
        Ok(self.arrange(base, elements))
    }

    /// Elements from the first to the last one that the view reaches, both included.
    fn span(&self) -> Option<usize> {
        let steps = self.shape.iter().zip(&self.strides);
        steps.map(|(&n, &s)| n.checked_sub(1)?.checked_mul(s)).try_fold(1usize, |sum, x| sum.checked_add(x?))
    }

    /// The cheapest source for a view whose reach is exactly `base`.
    fn arrange(&self, base: Mapped, elements: usize) -> LazyTensor {
        let (dtype, shape) = (self.dtype, self.shape.clone());
        if elements == 0 || is_contiguous(&self.shape, &self.strides) {
            return LazyTensor::new(dtype, shape, Arc::new(base));
        }
        if let (&[rows, cols], &[1, step]) = (self.shape.as_slice(), self.strides.as_slice())
            && step == rows
        {
            return LazyTensor::new(dtype, vec![cols, rows], Arc::new(base)).transposed();
        }
        let strided = Strided { base, size: dtype.size(), shape: shape.clone(), strides: self.strides.clone() };
        LazyTensor::new(dtype, shape, Arc::new(strided))
    }
}

fn corrupt(message: String) -> Error {
    Error::new(Code::CHECKPOINT_CORRUPT, message)
}

/// Whether the elements lie in row-major order without gaps; axes of size 1 do not count.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut want = 1usize;
    for (&size, &stride) in shape.iter().zip(strides).rev() {
        if size != 1 && stride != want {
            return false;
        }
        want = want.saturating_mul(size);
    }
    true
}

/// Gathers the elements of a non-empty view, row by row; holds one chunk.
struct Strided {
    base: Mapped,
    size: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Source for Strided {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let (axes, bytes) = (self.shape.len(), self.base.bytes());
        let (inner, step) = match axes.checked_sub(1) {
            Some(last) => (self.shape[last], self.strides[last]),
            None => (1, 1),
        };
        let outer = &self.shape[..axes.saturating_sub(1)];
        let mut index = vec![0usize; outer.len()];
        let mut out = Vec::with_capacity(CHUNK_BYTES);
        loop {
            let start: usize = index.iter().zip(&self.strides).map(|(i, s)| i * s).sum();
            for i in 0..inner {
                if out.len() + self.size > CHUNK_BYTES {
                    sink(&out)?;
                    out.clear();
                }
                out.extend_from_slice(&bytes[(start + i * step) * self.size..][..self.size]);
            }
            if !advance(&mut index, outer) {
                break;
            }
        }
        self.base.release();
        sink(&out)
    }
}

/// Increments `index`, a number in mixed radix `sizes`; `false` after the last.
pub(super) fn advance(index: &mut [usize], sizes: &[usize]) -> bool {
    for (i, &size) in index.iter_mut().zip(sizes).rev() {
        *i += 1;
        if *i < size {
            return true;
        }
        *i = 0;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn view(offset: usize, shape: &[usize], strides: &[usize]) -> Result<Vec<f32>> {
        let data: Vec<u8> = (0..24).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let map = Mapping::owned(data, Path::new("m"));
        let view = View { dtype: DType::F32, offset, shape: shape.to_vec(), strides: strides.to_vec() };
        view.over(&map, 0..96)?.to_f32()
    }

    #[test]
    fn views_gather_as_torch_does() {
        assert_eq!(view(2, &[3], &[1]).unwrap(), [2.0, 3.0, 4.0]);
        assert_eq!(view(1, &[2, 3], &[1, 2]).unwrap(), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
        assert_eq!(view(0, &[2, 2, 2], &[12, 1, 4]).unwrap(), [0.0, 4.0, 1.0, 5.0, 12.0, 16.0, 13.0, 17.0]);
        assert_eq!(view(0, &[3, 2], &[1, 5]).unwrap(), [0.0, 5.0, 1.0, 6.0, 2.0, 7.0]);
        assert_eq!(view(5, &[3, 2], &[0, 0]).unwrap(), [5.0; 6]);
        assert_eq!(view(23, &[], &[]).unwrap(), [23.0]);
        assert_eq!(view(23, &[1, 1], &[99, 99]).unwrap(), [23.0]);
        assert_eq!(view(99, &[0, 7], &[7, 1]).unwrap(), [0f32; 0]);
    }

    /// In an archive the next record follows: what a view must not reach are another tensor's numbers.
    #[test]
    fn a_view_stops_at_the_end_of_its_storage_and_not_of_the_file() {
        let data: Vec<u8> = (0..24).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let map = Mapping::owned(data, Path::new("m"));
        let view = |offset: usize, shape: &[usize], strides: &[usize]| {
            let view = View { dtype: DType::F32, offset, shape: shape.to_vec(), strides: strides.to_vec() };
            // Elements 8 to 15.
            view.over(&map, 32..64).and_then(|tensor| tensor.to_f32())
        };
        assert_eq!(view(0, &[8], &[1]).unwrap(), [8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
        assert_eq!(view(1, &[2, 2], &[4, 2]).unwrap(), [9.0, 11.0, 13.0, 15.0]);
        assert_eq!(view(7, &[2], &[0]).unwrap(), [15.0, 15.0]);
        for (offset, shape, strides) in [
            (0, vec![9], vec![1]),
            (8, vec![1], vec![1]),
            (8, vec![], vec![]),
            (2, vec![2, 2], vec![4, 2]),
            (0, vec![2, 3], vec![1, 4]),
        ] {
            let error = view(offset, &shape, &strides).unwrap_err();
            assert_eq!(error.code(), Code::CHECKPOINT_CORRUPT, "{offset} {shape:?}");
        }
    }

    #[test]
    fn what_reaches_outside_is_refused() {
        for (offset, shape, strides) in [
            (24, vec![1], vec![1]),
            (0, vec![25], vec![1]),
            (0, vec![2, 2], vec![23, 1]),
            (usize::MAX, vec![2], vec![1]),
            (0, vec![2], vec![usize::MAX]),
            (0, vec![1 << 62, 4, 4], vec![0, 0, 0]),
            (0, vec![1 << 60], vec![0]),
            (0, vec![1 << 30], vec![0]),
            (0, vec![2, 2], vec![1]),
        ] {
            let error = view(offset, &shape, &strides).unwrap_err();
            assert_eq!(error.code(), Code::CHECKPOINT_CORRUPT, "{shape:?}");
        }
    }

    #[test]
    fn a_gathered_view_comes_in_chunks() {
        let elements = CHUNK_BYTES / 2;
        let map = Mapping::owned(vec![1; 8 * elements], Path::new("m"));
        let view = View { dtype: DType::F32, offset: 0, shape: vec![elements], strides: vec![2] };
        let (mut total, mut longest) = (0, 0);
        let tensor = view.over(&map, 0..8 * elements).unwrap();
        tensor
            .stream(&mut |bytes| {
                (total, longest) = (total + bytes.len(), longest.max(bytes.len()));
                Ok(())
            })
            .unwrap();
        assert_eq!(total, 4 * elements);
        assert!(longest <= CHUNK_BYTES, "{longest}");
    }
}
