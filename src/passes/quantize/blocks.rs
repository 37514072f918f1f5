//! Rows of weights in blocks: a scale, and for 4 bits a zero point, for every few inputs.

use super::weights::{largest, round};

/// A row in blocks, laid out as `com.microsoft.MatMulNBits` reads it.
pub(super) struct Blocked {
    /// The integers, padded to whole blocks with zeros; two a byte for 4 bits, the first in the low half.
    pub integers: Vec<u8>,
    /// A scale a block.
    pub scales: Vec<f32>,
    /// For 4 bits the integer that stands for 0, two blocks a byte.
    pub zero_points: Vec<u8>,
}

/// 8 bits, symmetric around 128.
pub(super) fn eight_bits(row: &[f32], block: usize) -> Blocked {
    let mut out = Blocked { integers: Vec::new(), scales: Vec::new(), zero_points: Vec::new() };
    for values in row.chunks(block) {
        let largest = largest(values);
        let inverse = Some(127.0 / largest).filter(|i| i.is_finite()).unwrap_or(0.0);
        out.scales.push(if inverse == 0.0 { 0.0 } else { largest / 127.0 });
        out.integers.extend(values.iter().map(|w| (round(w * inverse).clamp(-127.0, 127.0) + 128.0) as u8));
        out.integers.extend(std::iter::repeat_n(128, block - values.len()));
    }
    out
}

/// 4 bits, with the scale and zero point of the least weighted error.
pub(super) fn four_bits(row: &[f32], block: usize, importance: Option<&[f32]>) -> Blocked {
    let blocks = row.len().div_ceil(block);
    let mut out = Blocked {
        integers: Vec::with_capacity(blocks * block / 2),
        scales: Vec::with_capacity(blocks),
        zero_points: vec![0; blocks.div_ceil(2)],
    };
    // Blocks are a multiple of 16 long; what a last one lacks is 0 and does not matter.
    let (mut values, mut weights) = (vec![0.0; block], vec![0.0; block]);
    for (b, row) in row.chunks(block).enumerate() {
        values[..row.len()].copy_from_slice(row);
        values[row.len()..].fill(0.0);
        match importance {
            Some(importance) => weights[..row.len()].copy_from_slice(&importance[b * block..][..row.len()]),
            None => weights[..row.len()].fill(1.0),
        }
        weights[row.len()..].fill(0.0);
        let fit = Fit::best(&mut values, &weights);
        out.scales.push(fit.scale);
        out.zero_points[b / 2] |= (fit.zero as u8) << (4 * (b % 2));
        out.integers.extend(values.as_chunks::<2>().0.iter().map(|&[a, b]| fit.nibble(a) | fit.nibble(b) << 4));
    }
    out
}

/// Shares of the block's range that the 16 levels are tried to span: cutting the outermost value off may serve the rest.
const SHARES: [f32; 14] = [0.66, 0.69, 0.72, 0.75, 0.78, 0.81, 0.84, 0.87, 0.9, 0.93, 0.96, 0.98, 1.0, 1.03];

/// `w ≈ (q - zero) · scale`, q in 0..=15.
#[derive(Clone, Copy)]
struct Fit {
    scale: f32,
    zero: f32,
    inverse: f32,
    error: f32,
}

impl Fit {
    /// The best of a search over ranges, each refined once by least squares. `values` are left relative to their range, and
    /// so is the fit's inverse: squares of tiny weights would all be 0.
    fn best(values: &mut [f32], weights: &[f32]) -> Self {
        let (low, high) = values.iter().fold((0f32, 0f32), |(l, h), &w| (l.min(w), h.max(w)));
        let range = high - low;
        // Subnormal ranges have no finite inverse and count as zeros.
        if !(15.0 / range).is_finite() {
            return Self { scale: 0.0, zero: 8.0, inverse: 0.0, error: 0.0 };
        }
        values.iter_mut().for_each(|w| *w /= range);
        let best = Self::search(values, weights, low / range, high / range);
        Self { scale: best.scale * range, ..best }
    }

    fn search(values: &[f32], weights: &[f32], low: f32, high: f32) -> Self {
        let mut best = Self { scale: 0.0, zero: 8.0, inverse: 0.0, error: f32::INFINITY };
        for share in SHARES {
            let scale = (high - low) * share / 15.0;
            let zero = round(7.5 - (high + low) / 2.0 / scale).clamp(0.0, 15.0);
            let first = Self { scale, zero, inverse: 1.0 / scale, error: 0.0 };
            let (error, refined) = first.judge(values, weights);
            let first = Self { error, ..first };
            let second = Self { scale: refined, inverse: 1.0 / refined, ..first };
            let second = Self { error: second.judge(values, weights).0, ..second };
            for fit in [first, second] {
                if fit.error < best.error && fit.inverse.is_finite() && fit.scale > 0.0 {
                    best = fit;
                }
            }
        }
        best
    }

    /// The weighted squared error, and the scale that these integers would suit best. Eight sums side by side, which
    /// the compiler can keep in vectors: one chain of additions would take most of the time of an export.
    fn judge(&self, values: &[f32], weights: &[f32]) -> (f32, f32) {
        let (mut error, mut product, mut square) = ([0f32; 8], [0f32; 8], [0f32; 8]);
        for (values, weights) in values.as_chunks::<8>().0.iter().zip(weights.as_chunks::<8>().0) {
            for i in 0..8 {
                let (w, m) = (values[i], weights[i]);
                let q = round(w * self.inverse + self.zero).clamp(0.0, 15.0) - self.zero;
                let far = q * self.scale - w;
                error[i] += m * far * far;
                product[i] += m * q * w;
                square[i] += m * q * q;
            }
        }
        let [error, product, square] = [error, product, square].map(|sums| sums.iter().sum::<f32>());
        (error, if square > 0.0 { product / square } else { self.scale })
    }

    fn nibble(&self, w: f32) -> u8 {
        round(w * self.inverse + self.zero).clamp(0.0, 15.0) as u8
    }
}
