//! A matrix plus a product of two thin ones: W + s·B·A, as LoRA has it.
//!
//! Flows in: `W [rows, cols]`, `B [rows, r]`, `A [r, cols]` and the factor s. Flows out: a float32 [`LazyTensor`] of
//! W's shape. W streams through in bands of rows, some of which are made side by side; A and B are held in float32
//! while it does. Sums are float32 and not rounded to W's type: rounded, they are what is had in that type.

use std::sync::Arc;

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, s};
use rayon::prelude::*;

use super::DType;
use super::decode::{decode_f32, encode_f32};
use super::lazy::{CHUNK_BYTES, LazyTensor, Sink, Source};
use crate::error::{Error, Result};

/// Bands made side by side.
const BANDS: usize = 16;

impl LazyTensor {
    /// The matrix `[rows, cols]` plus `scale` times `left [rows, r]` times `right [r, cols]`, in float32.
    ///
    /// # Panics
    /// When the shapes do not fit, or `r` is 0: a mistake of the caller.
    #[must_use]
    pub fn plus_low_rank(&self, left: &Self, right: &Self, scale: f32) -> Self {
        let (&[rows, cols], &[m, r], &[k, n]) = (self.shape(), left.shape(), right.shape()) else {
            panic!("three matrices, not {self:?}, {left:?}, {right:?}")
        };
        assert!(r > 0 && (m, k, n) == (rows, r, cols), "{self:?} plus {left:?} times {right:?}");
        let sum = LowRank { base: self.clone(), left: left.clone(), right: right.clone(), rank: r, scale };
        Self::new(DType::F32, vec![rows, cols], Arc::new(sum))
    }
}

struct LowRank {
    base: LazyTensor,
    left: LazyTensor,
    right: LazyTensor,
    rank: usize,
    scale: f32,
}

impl Source for LowRank {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let &[rows, cols] = self.base.shape() else { unreachable!("the constructor has seen a matrix") };
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        let (left, right) = (self.left.to_f32()?, self.right.to_f32()?);
        let shape = |e| Error::internal(format!("a factor does not fill its shape: {e}"));
        let left = ArrayView2::from_shape((rows, self.rank), &left).map_err(shape)?;
        let right = ArrayView2::from_shape((self.rank, cols), &right).map_err(shape)?;
        // A band is at most one chunk in float32.
        let band = (CHUNK_BYTES / 4 / cols).clamp(1, 64) * cols * self.base.dtype().size();
        let (mut first, mut held, mut made) = (0, Vec::with_capacity(BANDS * band), vec![Vec::new(); BANDS]);
        let mut pass = |held: &[u8], sink: &mut Sink<'_>| {
            let bands = held.chunks(band).collect::<Vec<_>>();
            let rows_of_band = band / cols / self.base.dtype().size();
            made.par_iter_mut().zip(&bands).enumerate().for_each_init(Vec::new, |values, (i, (out, bytes))| {
                let start = first + i * rows_of_band;
                self.add(bytes, left.slice(s![start.., ..]), right, values, out);
            });
            first += held.len() / cols / self.base.dtype().size();
            made.iter().zip(&bands).flat_map(|(out, _)| out.chunks(CHUNK_BYTES)).try_for_each(sink)
        };
        self.base.stream(&mut |mut chunk| {
            while !chunk.is_empty() {
                let (now, later) = chunk.split_at(chunk.len().min(BANDS * band - held.len()));
                held.extend_from_slice(now);
                chunk = later;
                if held.len() == BANDS * band {
                    pass(&held, sink)?;
                    held.clear();
                }
            }
            Ok(())
        })?;
        pass(&held, sink)
    }

    /// The transpose of the sum is the sum of the transposes: W's may be at hand without moving elements.
    fn transposed(&self) -> Option<LazyTensor> {
        let (left, right) = (self.right.transposed(), self.left.transposed());
        Some(self.base.transposed().plus_low_rank(&left, &right, self.scale))
    }

    fn release(&self) {
        self.base.release();
    }
}

impl LowRank {
    /// Adds to a band of W; `left` begins with the band's first row.
    fn add(
        &self,
        bytes: &[u8],
        left: ArrayView2<'_, f32>,
        right: ArrayView2<'_, f32>,
        values: &mut Vec<f32>,
        out: &mut Vec<u8>,
    ) {
        decode_f32(bytes, self.base.dtype(), values);
        let shape = (values.len() / right.ncols(), right.ncols());
        let left = left.slice(s![..shape.0, ..]);
        let mut sum = ArrayViewMut2::from_shape(shape, values).expect("a band has whole rows");
        general_mat_mul(self.scale, &left, &right, 1.0, &mut sum);
        encode_f32(values, DType::F32, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers with few bits, whose sums are exact: any order of addition gives the same.
    fn small(n: usize, step: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * step) % 17) as f32 - 8.0).collect()
    }

    fn expected(w: &[f32], b: &[f32], a: &[f32], [rows, cols, r]: [usize; 3], scale: f32) -> Vec<f32> {
        let dot = |i: usize, j: usize| (0..r).map(|k| b[i * r + k] * a[k * cols + j]).sum::<f32>();
        (0..rows * cols).map(|at| w[at] + scale * dot(at / cols, at % cols)).collect()
    }

    #[test]
    fn sums_are_those_of_the_definition_in_every_arrangement() {
        // Less than a band; many bands of one row; groups of bands and a rest.
        for [rows, cols, r] in [[3, 5, 2], [5, 300_000, 1], [1, 1, 7], [2500, 600, 3]] {
            let (w, b, a) = (small(rows * cols, 7), small(rows * r, 5), small(r * cols, 3));
            let [base, left, right] = [(rows, cols, &w), (rows, r, &b), (r, cols, &a)]
                .map(|(m, n, values)| LazyTensor::from_f32(&[m, n], values));
            let want = expected(&w, &b, &a, [rows, cols, r], 0.5);
            for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
                let sum = base.cast(dtype).plus_low_rank(&left, &right.cast(DType::F16), 0.5);
                assert_eq!((sum.dtype(), sum.shape()), (DType::F32, &[rows, cols][..]));
                assert_eq!(sum.to_f32().unwrap(), want, "{rows} {cols} {r} {dtype}");
                assert_eq!(sum.transposed().transposed().to_f32().unwrap(), want);
            }
            let turned = base.plus_low_rank(&left, &right, 0.5).transposed().to_f32().unwrap();
            assert_eq!(turned, LazyTensor::from_f32(&[rows, cols], &want).transposed().to_f32().unwrap());
        }
    }
}
