//! 8-bit floats with scales: what the weight is.
//!
//! - A scale for the tensor (`[]`, `[1]`) or for each output (`[m]`, `[m, 1]`): `W[o, i] = q[o, i] · scale[o]`
//!   (compressed-tensors' float-quantized, AutoFP8, FBGEMM; int8 of compressed-tensors is the same formula).
//! - A scale for each block of rows and columns (DeepSeek-V3's `weight_scale_inv`, transformers' fine-grained FP8),
//!   `[⌈m / rows⌉, ⌈n / columns⌉]`: `W[o, i] = q[o, i] · scale[o / rows, i / columns]`.
//!
//! Products are float32.

use std::borrow::Cow;
use std::sync::Arc;

use crate::error::Result;
use crate::tensor::{DType, Fill, Formula, LazyTensor, computed, float8};

/// A weight of 8-bit floats with a scale for each block.
#[derive(Clone)]
pub(super) struct Blocks {
    pub weight: LazyTensor,
    pub scales: LazyTensor,
    pub block: [usize; 2],
    transposed: bool,
}

impl Blocks {
    /// The weight in float32; the caller has compared the shapes.
    pub fn weight(weight: LazyTensor, scales: LazyTensor, block: [usize; 2]) -> LazyTensor {
        Self { weight, scales, block, transposed: false }.computed()
    }

    fn computed(self) -> LazyTensor {
        let (mut rows, mut cols) = (self.weight.shape()[0], self.weight.shape()[1]);
        if self.transposed {
            (rows, cols) = (cols, rows);
        }
        computed(rows, cols, Arc::new(self))
    }
}

impl Formula for Blocks {
    fn prepare(&self) -> Result<Box<dyn Fill + '_>> {
        let bytes = self.weight.bytes()?;
        Ok(Box::new(Prepared { of: self, bytes, scales: self.scales.to_f32()?, values: float8(self.weight.dtype()) }))
    }

    fn transposed(&self) -> LazyTensor {
        Self { transposed: !self.transposed, ..self.clone() }.computed()
    }

    fn release(&self) {
        self.weight.release();
    }
}

struct Prepared<'a> {
    of: &'a Blocks,
    bytes: Cow<'a, [u8]>,
    scales: Vec<f32>,
    values: &'static [f32; 256],
}

impl Fill for Prepared<'_> {
    fn rows(&self, first: usize, out: &mut [f32]) {
        let ([height, width], columns) = (self.of.block, self.of.weight.shape()[1]);
        let across = self.of.scales.shape()[1];
        let value = |row: usize, column: usize| {
            let scale = self.scales[row / height * across + column / width];
            self.values[usize::from(self.bytes[row * columns + column])] * scale
        };
        if self.of.transposed {
            let rows = self.of.weight.shape()[0];
            let wide = out.len() / rows;
            for row in 0..rows {
                for i in 0..wide {
                    out[i * rows + row] = value(row, first + i);
                }
            }
        } else {
            for (row, out) in (first..).zip(out.chunks_mut(columns)) {
                out.iter_mut().enumerate().for_each(|(column, to)| *to = value(row, column));
            }
        }
    }
}

/// The weight with one scale for all of it or one for each row, in float32.
///
/// # Errors
/// Those of reading the scales.
pub(super) fn by_row(weight: &LazyTensor, scale: &LazyTensor) -> Result<LazyTensor> {
    let scales = scale.to_f32()?;
    let rows = weight.shape()[0];
    let factors: Arc<[f32]> = if scales.len() == rows { scales.into() } else { vec![scales[0]; rows].into() };
    Ok(weight.cast(DType::F32).scaled_rows(&factors))
}
