//! Block-wise quantization of a row of weights: one scale, and for 4 bits one zero point, per block of inputs.

use multiversion::multiversion;

use super::rounding::{SHIFT, max_abs, round};

/// A quantized row, laid out as `com.microsoft.MatMulNBits` reads it.
pub(super) struct Blocked {
    /// The integers, padded to whole blocks with zeros; two per byte for 4 bits, the first in the low half.
    pub integers: Vec<u8>,
    /// One scale per block.
    pub scales: Vec<f32>,
    /// For 4 bits the integer that stands for 0, two blocks per byte.
    pub zero_points: Vec<u8>,
}

/// 8 bits, symmetric around 128.
pub(super) fn eight_bits(row: &[f32], block: usize) -> Blocked {
    let mut out = Blocked { integers: Vec::new(), scales: Vec::new(), zero_points: Vec::new() };
    for values in row.chunks(block) {
        let max_abs = max_abs(values);
        let inverse = Some(127.0 / max_abs).filter(|i| i.is_finite()).unwrap_or(0.0);
        out.scales.push(if inverse == 0.0 { 0.0 } else { max_abs / 127.0 });
        out.integers.extend(values.iter().map(|w| (round(w * inverse).clamp(-127.0, 127.0) + 128.0) as u8));
        out.integers.extend(std::iter::repeat_n(128, block - values.len()));
    }
    out
}

/// 4 bits, with the scale and zero point of the least weighted error.
///
/// Compiled for wider vectors too: the search takes most of the time of an export. The arithmetic and its order are the
/// same everywhere, and the compiler fuses no multiplication with an addition, so the bits are the same too.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
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

/// How many ranges are tried at once: a vector of AVX-512, two of AVX2, four of SSE2.
const LANES: usize = 16;

/// One number for each range that is tried.
type Lanes = [f32; LANES];

/// Fractions of the block's range that the 16 levels may span: clipping the outermost value may serve the rest. The
/// last one pads the lanes.
const SHARES: Lanes = [0.66, 0.69, 0.72, 0.75, 0.78, 0.81, 0.84, 0.87, 0.9, 0.93, 0.96, 0.98, 1.0, 1.03, 1.03, 1.03];

/// `w ≈ (q - zero) · scale`, q in 0..=15.
#[derive(Clone, Copy)]
struct Fit {
    scale: f32,
    zero: f32,
    inverse: f32,
}

// Everything below is inlined into each version of `four_bits`: what is called is compiled for the oldest CPU.
impl Fit {
    /// The best of a search over ranges, each refined once by least squares. `values` are left relative to their range,
    /// and so is the fit's inverse: squares of tiny weights would all be 0.
    #[inline(always)]
    fn best(values: &mut [f32], weights: &[f32]) -> Self {
        let (low, high) = values.iter().fold((0f32, 0f32), |(l, h), &w| (l.min(w), h.max(w)));
        let range = high - low;
        // Subnormal ranges have no finite inverse and count as zeros.
        if !(15.0 / range).is_finite() {
            return Self { scale: 0.0, zero: 8.0, inverse: 0.0 };
        }
        values.iter_mut().for_each(|w| *w /= range);
        let best = Self::search(values, weights, low / range, high / range);
        Self { scale: best.scale * range, ..best }
    }

    #[inline(always)]
    fn search(values: &[f32], weights: &[f32], low: f32, high: f32) -> Self {
        let first = Fits::new(SHARES.map(|share| (high - low) * share / 15.0), |scale| {
            round(7.5 - (high + low) / 2.0 / scale).clamp(0.0, 15.0)
        });
        let sums = first.evaluate(values, weights);
        let refined =
            std::array::from_fn(
                |l| {
                    if sums.square[l] > 0.0 { sums.product[l] / sums.square[l] } else { first.scale[l] }
                },
            );
        let second = Fits { scale: refined, inverse: refined.map(|scale| 1.0 / scale), ..first };
        let errors = [sums.error, second.evaluate(values, weights).error];
        let (mut best, mut least) = (Self { scale: 0.0, zero: 8.0, inverse: 0.0 }, f32::INFINITY);
        for l in 0..LANES {
            for (fits, error) in [&first, &second].into_iter().zip(&errors) {
                let fit = Self { scale: fits.scale[l], zero: fits.zero[l], inverse: fits.inverse[l] };
                if error[l] < least && fit.inverse.is_finite() && fit.scale > 0.0 {
                    (best, least) = (fit, error[l]);
                }
            }
        }
        best
    }

    #[inline(always)]
    fn nibble(&self, w: f32) -> u8 {
        round(w * self.inverse + self.zero).clamp(0.0, 15.0) as u8
    }
}

/// A fit for each range.
struct Fits {
    scale: Lanes,
    zero: Lanes,
    inverse: Lanes,
}

/// What [`Fits::evaluate`] finds: the weighted squared error; `product / square` is the scale that the integers would
/// suit best.
struct Sums {
    error: Lanes,
    product: Lanes,
    square: Lanes,
}

impl Sums {
    const ZERO: Self = Self { error: [0.0; LANES], product: [0.0; LANES], square: [0.0; LANES] };
}

impl Fits {
    #[inline(always)]
    fn new(scale: Lanes, zero: impl Fn(f32) -> f32) -> Self {
        Self { scale, zero: scale.map(zero), inverse: scale.map(|scale| 1.0 / scale) }
    }

    /// Evaluates all fits. Every eighth value is summed up by itself, and these eight sums one after the other: less is
    /// rounded off than in one long sum.
    #[inline(always)]
    fn evaluate(&self, values: &[f32], weights: &[f32]) -> Sums {
        let mut total = Sums::ZERO;
        for first in 0..8 {
            let mut sums = Sums::ZERO;
            for (&w, &m) in values[first..].iter().step_by(8).zip(weights[first..].iter().step_by(8)) {
                for l in 0..LANES {
                    // As `round` and `clamp` would give it, less the zero point: these are all integers below 2²⁴.
                    let shifted = (w * self.inverse[l] + self.zero[l] + SHIFT).clamp(SHIFT, SHIFT + 15.0);
                    let q = shifted - (SHIFT + self.zero[l]);
                    let far = q * self.scale[l] - w;
                    sums.error[l] += m * far * far;
                    sums.product[l] += m * q * w;
                    sums.square[l] += m * q * q;
                }
            }
            for l in 0..LANES {
                total.error[l] += sums.error[l];
                total.product[l] += sums.product[l];
                total.square[l] += sums.square[l];
            }
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// The search as it is defined: one range after the other, the first of the best.
    fn one_by_one(values: &[f32], weights: &[f32], low: f32, high: f32) -> Fit {
        let judge = |fit: &Fit| {
            let mut sums = [[0f32; 8]; 3];
            for (i, (&w, &m)) in values.iter().zip(weights).enumerate() {
                let q = round(w * fit.inverse + fit.zero).clamp(0.0, 15.0) - fit.zero;
                let far = q * fit.scale - w;
                sums[0][i % 8] += m * far * far;
                sums[1][i % 8] += m * q * w;
                sums[2][i % 8] += m * q * q;
            }
            sums.map(|sums| sums.iter().sum::<f32>())
        };
        let (mut best, mut least) = (Fit { scale: 0.0, zero: 8.0, inverse: 0.0 }, f32::INFINITY);
        for share in &SHARES[..14] {
            let scale = (high - low) * share / 15.0;
            let zero = round(7.5 - (high + low) / 2.0 / scale).clamp(0.0, 15.0);
            let first = Fit { scale, zero, inverse: 1.0 / scale };
            let [error, product, square] = judge(&first);
            let refined = if square > 0.0 { product / square } else { scale };
            let second = Fit { scale: refined, inverse: 1.0 / refined, ..first };
            for (fit, error) in [(first, error), (second, judge(&second)[0])] {
                if error < least && fit.inverse.is_finite() && fit.scale > 0.0 {
                    (best, least) = (fit, error);
                }
            }
        }
        best
    }

    #[test]
    fn ranges_tried_at_once_give_the_bits_of_one_after_the_other() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let odd = [0.0, -0.0, 1e-30, -1e-41, 3e38, f32::NAN, f32::INFINITY];
        for case in 0..2000 {
            let block = [32, 64, 16][case % 3];
            let len = if case % 7 == 0 { block - 5 } else { block };
            let size = 10f32.powi(rng.random_range(-39..20));
            let mut row: Vec<f32> = (0..len).map(|_| size * rng.random_range(-1.0f32..1.0).powi(3)).collect();
            let mut importance: Vec<f32> = (0..len).map(|_| rng.random_range(0.0f32..1.0).powi(9)).collect();
            match case % 5 {
                0 => row[case % len] = odd[case / 5 % odd.len()],
                1 => row.iter_mut().for_each(|w| *w = w.abs()),
                2 => importance.fill(if case % 2 == 0 { 0.0 } else { 1e-44 }),
                _ => {}
            }
            let found = four_bits(&row, block, Some(&importance));

            row.resize(block, 0.0);
            importance.resize(block, 0.0);
            let (low, high) = row.iter().fold((0f32, 0f32), |(l, h), &w| (l.min(w), h.max(w)));
            let range = high - low;
            let fit = if (15.0 / range).is_finite() {
                row.iter_mut().for_each(|w| *w /= range);
                let best = one_by_one(&row, &importance, low / range, high / range);
                Fit { scale: best.scale * range, ..best }
            } else {
                Fit { scale: 0.0, zero: 8.0, inverse: 0.0 }
            };
            assert_eq!(found.scales[0].to_bits(), fit.scale.to_bits(), "{case}");
            assert_eq!(found.zero_points, [fit.zero as u8], "{case}");
            let nibbles: Vec<u8> =
                row.as_chunks::<2>().0.iter().map(|&[a, b]| fit.nibble(a) | fit.nibble(b) << 4).collect();
            assert_eq!(found.integers, nibbles, "{case}");
        }
    }

    /// Each block is fitted with the importance of its own inputs.
    #[test]
    fn every_block_has_its_own_importance() {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        for block in [16, 32, 64] {
            let row: Vec<f32> = (0..5 * block - 3).map(|_| rng.random_range(-1.0f32..1.0).powi(3)).collect();
            let importance: Vec<f32> = row.iter().map(|_| rng.random_range(0.0f32..1.0).powi(9)).collect();
            let found = four_bits(&row, block, Some(&importance));
            let alone: Vec<Blocked> =
                row.chunks(block).zip(importance.chunks(block)).map(|(w, i)| four_bits(w, block, Some(i))).collect();
            let scales: Vec<f32> = alone.iter().flat_map(|b| b.scales.clone()).collect();
            assert_eq!(found.scales, scales, "blocks of {block}");
            let integers: Vec<u8> = alone.iter().flat_map(|b| b.integers.clone()).collect();
            assert_eq!(found.integers, integers, "blocks of {block}");
            // The importance matters here: without it the blocks are fitted otherwise.
            assert_ne!(found.scales, four_bits(&row, block, None).scales, "blocks of {block}");
        }
    }
}
