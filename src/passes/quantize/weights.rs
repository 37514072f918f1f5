//! Weights as integers: the arithmetic of rounding.
//!
//! A weight comes as PyTorch stores it, `[n, k]` (a row per output), and is streamed in bands of rows: the peak memory
//! is that of one weight's integers. All tensors of a weight are computed together when the first of them is read, and
//! each is freed once it was read, so that a graph of many weights can be written in the memory of one.

use std::sync::{Arc, Mutex};

use half::f16;
use rayon::prelude::*;

use super::blocks::{self, Blocked};
use super::rounding::{SHIFT, max_abs};
use crate::error::Result;
use crate::tensor::{DType, LazyTensor, Sink, Source};

/// Rows that are quantized at a time: enough for every core, little to hold.
const BAND: usize = 256;

/// The largest magnitude of an int8 weight: -128 has no opposite.
const INT8_MAX: f32 = 127.0;

/// Computes the tensors of a set.
type Compute = dyn Fn() -> Result<Vec<LazyTensor>> + Send + Sync;

/// A tensor's element type and shape.
type Type = (DType, Vec<usize>);

/// Tensors that are computed in one pass over a weight.
struct JointTensors {
    compute: Box<Compute>,
    /// Computed and not read yet.
    ready: Mutex<Vec<Option<LazyTensor>>>,
}

/// One tensor of such a set, read lazily.
struct LazyMember {
    set: Arc<JointTensors>,
    index: usize,
}

impl Source for LazyMember {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let mut ready = self.set.ready.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let tensor = match ready.get_mut(self.index).and_then(Option::take) {
            Some(tensor) => tensor,
            None => {
                *ready = (self.set.compute)()?.into_iter().map(Some).collect();
                ready[self.index].take().expect("computed just now")
            }
        };
        drop(ready);
        tensor.stream(sink)
    }
}

/// Lazy tensors of these types, in the order of what `compute` returns.
fn joint(types: &[Type], compute: impl Fn() -> Result<Vec<LazyTensor>> + Send + Sync + 'static) -> Vec<LazyTensor> {
    let set = Arc::new(JointTensors { compute: Box::new(compute), ready: Mutex::new(Vec::new()) });
    let member = |(index, (dtype, shape)): (usize, &Type)| {
        LazyTensor::new(*dtype, shape.clone(), Arc::new(LazyMember { set: Arc::clone(&set), index }))
    };
    types.iter().enumerate().map(member).collect()
}

/// The number format in which scales must be exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// float32. A row of zeros gets the scale 0.
    Fp32,
    /// Normal numbers of float16: GPUs dequantize in fp16, and TensorRT needs scales above 0.
    Fp16,
}

impl Scales {
    /// The scale of symmetric int8 for values of at most this magnitude.
    pub fn of(self, max_abs: f32) -> f32 {
        let scale = max_abs / INT8_MAX;
        match self {
            Self::Fp32 => scale,
            Self::Fp16 => f16::from_f32(scale).max(f16::MIN_POSITIVE).to_f32(),
        }
    }
}

/// The weight `[n, k]` as int8 `[k, n]` and a float32 scale `[n]`, one per output: `w ≈ q · scale`, symmetric, rounded
/// to nearest (Jacob et al. 2018; Wu et al. 2020).
pub fn per_channel(weight: &LazyTensor, kind: Scales) -> [LazyTensor; 2] {
    let (n, k) = (weight.shape()[0], weight.shape()[1]);
    let weight = weight.clone();
    let all = joint(&[(DType::I8, vec![k, n]), (DType::F32, vec![n])], move || {
        let (mut integers, mut scales) = (vec![0u8; n * k], Vec::with_capacity(4 * n));
        weight.for_each_band(BAND, &mut |first, band| {
            let out = integers[first * k..][..band.len() * k].par_chunks_mut(k).enumerate();
            let rounded = out.map_init(Vec::new, |row, (i, out)| {
                band.row(i, row);
                int8_row(row, out, kind)
            });
            scales.extend(rounded.collect::<Vec<f32>>().into_iter().flat_map(f32::to_le_bytes));
            Ok(())
        })?;
        let rows = LazyTensor::new(DType::I8, vec![n, k], Arc::new(integers));
        // Transposed as it is read, so that it is in memory once.
        Ok(vec![rows.transposed(), LazyTensor::new(DType::F32, vec![n], Arc::new(scales))])
    });
    all.try_into().expect("two tensors were asked for")
}

/// Quantizes one row into `out`; returns its scale.
fn int8_row(row: &[f32], out: &mut [u8], kind: Scales) -> f32 {
    let max_abs = max_abs(row);
    let (inverse, scale) = match kind {
        Scales::Fp32 => (INT8_MAX / max_abs, max_abs / INT8_MAX),
        Scales::Fp16 => (1.0 / kind.of(max_abs), kind.of(max_abs)),
    };
    // The reciprocal of a subnormal may be infinite: such a row is 0 for all that it matters.
    if !inverse.is_finite() || inverse == 0.0 {
        out.fill(0);
        return 0.0;
    }
    for (q, w) in out.iter_mut().zip(row) {
        // The low byte of the shifted number's bits is the integer, in two's complement: a conversion would be checked
        // for what does not fit, element by element.
        *q = ((w * inverse).clamp(-INT8_MAX, INT8_MAX) + SHIFT).to_bits() as u8;
    }
    scale
}

/// The weight `[n, k]` in blocks of `block` inputs, as `MatMulNBits` reads it: uint8 `[n, blocks, block · bits / 8]`,
/// float32 scales `[n · blocks]`, and for 4 bits uint8 zero points, two per byte, `[n · ⌈blocks / 2⌉]`.
///
/// `importance` `[k]` is how much an error in that input's weight matters: the mean square of the
/// activation. Without it all matter alike.
pub fn in_blocks(weight: &LazyTensor, bits: u8, block: usize, importance: Option<&Arc<[f32]>>) -> Vec<LazyTensor> {
    let (n, k) = (weight.shape()[0], weight.shape()[1]);
    let blocks = k.div_ceil(block);
    let mut types: Vec<Type> = vec![
        (DType::U8, vec![n, blocks, block * usize::from(bits) / 8]),
        (DType::F32, vec![n * blocks]),
        (DType::U8, vec![n * blocks.div_ceil(2)]),
    ];
    types.truncate(if bits == 4 { 3 } else { 2 });
    let (weight, importance) = (weight.clone(), importance.cloned());
    joint(&types.clone(), move || {
        let mut all = vec![Vec::with_capacity(n * blocks * block * usize::from(bits) / 8), Vec::new(), Vec::new()];
        weight.for_each_band(BAND, &mut |_, band| {
            let rows = (0..band.len()).into_par_iter().map_init(Vec::new, |row, i| {
                band.row(i, row);
                match bits {
                    4 => blocks::four_bits(row, block, importance.as_deref()),
                    _ => blocks::eight_bits(row, block),
                }
            });
            for row in rows.collect::<Vec<Blocked>>() {
                all[0].extend(row.integers);
                all[1].extend(row.scales.into_iter().flat_map(f32::to_le_bytes));
                all[2].extend(row.zero_points);
            }
            Ok(())
        })?;
        let tensor =
            |((dtype, shape), bytes): (&Type, Vec<u8>)| LazyTensor::new(*dtype, shape.clone(), Arc::new(bytes));
        Ok(types.iter().zip(all).map(tensor).collect())
    })
}
