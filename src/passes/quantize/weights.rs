//! Weights as integers: the arithmetic of rounding.
//!
//! A weight comes as PyTorch stores it, `[n, k]` (a row an output), and streams by in bands of rows: memory stays at
//! the integers of one weight. All tensors of a weight are computed together when the first of them is read, and each is
//! let go once it was read, so that a graph of many weights can be written in the memory of one.

use std::sync::{Arc, Mutex};

use rayon::prelude::*;

use super::blocks::{self, Blocked};
use crate::error::Result;
use crate::tensor::{DType, LazyTensor, Sink, Source};

/// Rows that are quantized at a time: enough for every core, little to hold.
const BAND: usize = 64;

/// The largest magnitude of an int8 weight: -128 has no opposite.
const INT8_MAX: f32 = 127.0;

/// What makes some tensors at once.
type Compute = dyn Fn() -> Result<Vec<Vec<u8>>> + Send + Sync;

/// Tensors that are computed together.
struct Together {
    compute: Box<Compute>,
    /// What was computed and not read yet.
    ready: Mutex<Vec<Option<Vec<u8>>>>,
}

/// One of them.
struct Part {
    of: Arc<Together>,
    index: usize,
}

impl Source for Part {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let mut ready = self.of.ready.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bytes = match ready.get_mut(self.index).and_then(Option::take) {
            Some(bytes) => bytes,
            None => {
                *ready = (self.of.compute)()?.into_iter().map(Some).collect();
                ready[self.index].take().expect("computed just now")
            }
        };
        drop(ready);
        bytes.stream(sink)
    }
}

/// Lazy tensors of these types and shapes, in the order in which `compute` gives their bytes.
fn together(
    types: &[(DType, &[usize])],
    compute: impl Fn() -> Result<Vec<Vec<u8>>> + Send + Sync + 'static,
) -> Vec<LazyTensor> {
    let of = Arc::new(Together { compute: Box::new(compute), ready: Mutex::new(Vec::new()) });
    let part = |(index, (dtype, shape)): (usize, &(DType, &[usize]))| {
        LazyTensor::new(*dtype, shape.to_vec(), Arc::new(Part { of: Arc::clone(&of), index }))
    };
    types.iter().enumerate().map(part).collect()
}

/// The weight `[n, k]` as int8 `[k, n]` and a float32 scale `[n]` an output: `w ≈ q · scale`, symmetric, rounded to
/// nearest (Jacob et al. 2018; Wu et al. 2020). A row of zeros gets the scale 0.
pub fn per_channel(weight: &LazyTensor) -> [LazyTensor; 2] {
    let (n, k) = (weight.shape()[0], weight.shape()[1]);
    let weight = weight.clone();
    let all = together(&[(DType::I8, &[k, n]), (DType::F32, &[n])], move || {
        let (mut integers, mut scales) = (vec![0u8; n * k], Vec::with_capacity(4 * n));
        weight.for_each_band(BAND, &mut |first, rows| {
            let out = &mut integers[first * k..][..rows.len()];
            let of_rows: Vec<f32> =
                rows.par_chunks(k).zip(out.par_chunks_mut(k)).map(|(row, out)| int8_row(row, out)).collect();
            scales.extend(of_rows.into_iter().flat_map(f32::to_le_bytes));
            Ok(())
        })?;
        let rows = LazyTensor::new(DType::I8, vec![n, k], Arc::new(integers));
        Ok(vec![rows.transposed().bytes()?.into_owned(), scales])
    });
    all.try_into().expect("two tensors were asked for")
}

/// Rounds one row; gives its scale.
fn int8_row(row: &[f32], out: &mut [u8]) -> f32 {
    let largest = row.iter().fold(0f32, |m, w| m.max(w.abs()));
    let inverse = if largest > 0.0 { INT8_MAX / largest } else { 0.0 };
    // The product of a subnormal's reciprocal may be infinite: such a row is 0 for all that it matters.
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    for (q, w) in out.iter_mut().zip(row) {
        *q = round(w * inverse).clamp(-INT8_MAX, INT8_MAX) as i8 as u8;
    }
    if inverse == 0.0 { 0.0 } else { largest / INT8_MAX }
}

/// Rounds to the nearest integer, ties to even, for magnitudes below 2²². Adding 1.5·2²³ leaves no bits for a
/// fraction; unlike `round_ties_even` it needs no call on processors without SSE 4.1, and is vectorised.
pub(super) fn round(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

/// The weight `[n, k]` in blocks of `block` inputs, as `MatMulNBits` takes it: uint8 `[n, blocks, block · bits / 8]`,
/// float32 scales `[n · blocks]`, and for 4 bits uint8 zero points, two a byte, `[n · ⌈blocks / 2⌉]`.
///
/// `importance`, one number an input, is how much an error in that input's weight matters: the mean square of the
/// activation. Without, all matter alike.
pub fn in_blocks(weight: &LazyTensor, bits: u8, block: usize, importance: Option<&Arc<[f32]>>) -> Vec<LazyTensor> {
    let (n, k) = (weight.shape()[0], weight.shape()[1]);
    let blocks = k.div_ceil(block);
    let (integers, zeros) = ([n, blocks, block * usize::from(bits) / 8], [n * blocks.div_ceil(2)]);
    let scales = [n * blocks];
    let mut types = vec![(DType::U8, &integers[..]), (DType::F32, &scales[..])];
    if bits == 4 {
        types.push((DType::U8, &zeros[..]));
    }
    let (weight, importance) = (weight.clone(), importance.cloned());
    together(&types, move || {
        let mut all = vec![Vec::with_capacity(n * blocks * block * usize::from(bits) / 8), Vec::new(), Vec::new()];
        weight.for_each_band(BAND, &mut |_, rows| {
            let row = |row: &[f32]| match bits {
                4 => blocks::four_bits(row, block, importance.as_deref()),
                _ => blocks::eight_bits(row, block),
            };
            let rows: Vec<Blocked> = rows.par_chunks(k).map(row).collect();
            for row in rows {
                all[0].extend(row.integers);
                all[1].extend(row.scales.into_iter().flat_map(f32::to_le_bytes));
                all[2].extend(row.zero_points);
            }
            Ok(())
        })?;
        all.truncate(if bits == 4 { 3 } else { 2 });
        Ok(all)
    })
}
