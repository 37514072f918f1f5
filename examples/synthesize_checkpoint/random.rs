//! Random tensors, made while they are written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use brain_adapter::tensor::{CHUNK_BYTES, DType, LazyTensor, Sink, Source};
use half::{bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::plans::{Draw, Plan};

/// Quantiles of the standard normal distribution at the middles of 65,536 equal parts.
static NORMAL: LazyLock<Vec<f32>> =
    LazyLock::new(|| (0..1 << 16).map(|i| quantile((f64::from(i) + 0.5) / 65536.0)).collect());

/// Inverse of the normal distribution function, by bisection on its series: slow, exact, needed 65,536 times.
fn quantile(p: f64) -> f32 {
    // Φ(x) = ½ + φ(x)·(x + x³/3 + x⁵/15 + …)
    let cdf = |x: f64| {
        let (mut sum, mut term, mut n) = (x, x, 1.0);
        while term.abs() > 1e-17 {
            n += 2.0;
            term *= x * x / n;
            sum += term;
        }
        0.5 + sum * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
    };
    let (mut low, mut high) = (-6.0, 6.0);
    for _ in 0..40 {
        let middle = f64::midpoint(low, high);
        if cdf(middle) < p { low = middle } else { high = middle }
    }
    f64::midpoint(low, high) as f32
}

/// The tensor that `plan` describes.
pub fn synthetic(plan: &Plan, dtype: DType, seed: u64, written: &Arc<Progress>) -> LazyTensor {
    let spread = |i: usize| (i as f32 + 0.5) / 65536.0;
    let table = match plan.draw {
        Draw::Normal(mean, std) => NORMAL.iter().map(|q| mean + std * q).collect(),
        Draw::Uniform(low, high) => (0..1 << 16).map(|i| low + (high - low) * spread(i)).collect(),
        Draw::Exactly(value) => vec![value; 1 << 16],
    };
    // FNV-1a: every name its own stream of numbers.
    let name =
        plan.name.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let elements = plan.shape.iter().product();
    let source = Synthetic { table, seed: seed ^ name, elements, dtype, written: Arc::clone(written) };
    LazyTensor::new(dtype, plan.shape.clone(), Arc::new(source))
}

/// Random elements: 16 random bits each choose an entry of a table of 65,536 quantiles.
struct Synthetic {
    table: Vec<f32>,
    seed: u64,
    elements: usize,
    dtype: DType,
    written: Arc<Progress>,
}

impl Synthetic {
    /// Block `index` of the tensor: its own stream of the generator, whoever computes it.
    fn block(&self, index: usize, elements: usize) -> Vec<u8> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(index as u64);
        let mut bits = vec![0u8; 2 * elements];
        rng.fill_bytes(&mut bits);
        let values = bits.as_chunks::<2>().0.iter().map(|b| self.table[usize::from(u16::from_le_bytes(*b))]);
        let mut out = Vec::with_capacity(elements * self.dtype.size());
        match self.dtype {
            DType::F16 => values.for_each(|v| out.extend_from_slice(&f16::from_f32(v).to_le_bytes())),
            DType::BF16 => values.for_each(|v| out.extend_from_slice(&bf16::from_f32(v).to_le_bytes())),
            _ => values.for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        }
        out
    }
}

impl Source for Synthetic {
    fn stream(&self, sink: &mut Sink<'_>) -> brain_adapter::Result<()> {
        let per_block = CHUNK_BYTES / self.dtype.size();
        let blocks: Vec<usize> = (0..self.elements.div_ceil(per_block)).collect();
        for batch in blocks.chunks(32) {
            let size = |i: usize| per_block.min(self.elements - i * per_block);
            let made: Vec<Vec<u8>> = batch.par_iter().map(|&i| self.block(i, size(i))).collect();
            for block in &made {
                sink(block)?;
                self.written.add(block.len() as u64);
            }
        }
        Ok(())
    }
}

/// Bytes written, of how many; a line on stderr at every tenth.
pub struct Progress {
    pub total: u64,
    pub done: AtomicU64,
}

impl Progress {
    /// Counts bytes that were written.
    pub fn add(&self, bytes: u64) {
        let before = self.done.fetch_add(bytes, Ordering::Relaxed);
        let tenth = |n: u64| n * 10 / self.total.max(1);
        if tenth(before + bytes) > tenth(before) {
            eprintln!("{:>3} %  {:.1} GB", tenth(before + bytes) * 10, (before + bytes) as f64 / 1e9);
        }
    }
}
