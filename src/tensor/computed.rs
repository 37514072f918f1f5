//! Matrices that a formula makes of other bytes, band by band: how quantized weights become floats.
//!
//! Flows in: a [`Formula`]. Flows out: a float32 [`LazyTensor`] that makes some bands of rows side by side and hands
//! them on; memory is what the formula prepares and these bands.

use std::sync::Arc;

use rayon::prelude::*;

use super::DType;
use super::lazy::{CHUNK_BYTES, LazyTensor, Sink, Source};
use crate::error::Result;

/// Bands made side by side.
const BANDS: usize = 16;

/// How a matrix follows from other tensors.
pub(crate) trait Formula: Send + Sync {
    /// Reads what every row needs: scales, the place of packed integers.
    ///
    /// # Errors
    /// Those of reading tensors.
    fn prepare(&self) -> Result<Box<dyn Fill + '_>>;

    /// The transpose.
    fn transposed(&self) -> LazyTensor;

    /// The bytes will not be read again soon.
    fn release(&self);
}

/// A prepared formula.
pub(crate) trait Fill: Sync {
    /// Makes the rows from `first` on, as many as `out` holds, row-major.
    fn rows(&self, first: usize, out: &mut [f32]);
}

/// The float32 matrix `[rows, cols]` that the formula makes.
pub(crate) fn computed(rows: usize, cols: usize, formula: Arc<dyn Formula>) -> LazyTensor {
    LazyTensor::new(DType::F32, vec![rows, cols], Arc::new(Computed { rows, cols, formula }))
}

struct Computed {
    rows: usize,
    cols: usize,
    formula: Arc<dyn Formula>,
}

impl Source for Computed {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        if self.rows == 0 || self.cols == 0 {
            return Ok(());
        }
        let prepared = self.formula.prepare()?;
        let band = (CHUNK_BYTES / 4 / self.cols).max(1);
        let starts: Vec<usize> = (0..self.rows).step_by(band).collect();
        let mut made = vec![Vec::new(); BANDS];
        for starts in starts.chunks(BANDS) {
            made.par_iter_mut().zip(starts).for_each_init(Vec::new, |values: &mut Vec<f32>, (out, &first)| {
                values.clear();
                values.resize(band.min(self.rows - first) * self.cols, 0.0);
                prepared.rows(first, values);
                out.clear();
                out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            });
            made.iter().zip(starts).flat_map(|(out, _)| out.chunks(CHUNK_BYTES)).try_for_each(&mut *sink)?;
        }
        drop(prepared);
        self.formula.release();
        Ok(())
    }

    fn transposed(&self) -> Option<LazyTensor> {
        Some(self.formula.transposed())
    }

    fn release(&self) {
        self.formula.release();
    }
}
