//! t-SNE: an embedding of high-dimensional points in the plane that keeps neighbours together (van der Maaten and
//! Hinton, JMLR 2008).
//!
//! The exact form, for some thousands of points. Affinities, gains and the two momentum terms (0.5, then 0.8) are the
//! paper's; early exaggeration by 12 over the first 250 steps, when the momentum is 0.5, and the learning rate are
//! those of Belkina et al. 2019 (as in scikit-learn). The crate `bhtsne` is not used: it sums over threads in no fixed
//! order, and a last bit grows into another picture. Here each row is summed by itself and rows in their order, so a
//! seed gives one picture on any number of threads.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// The effective number of neighbours of a point; less where there are not three times as many points.
const PERPLEXITY: f64 = 30.0;
/// Number of steps.
const STEPS: usize = 1000;
/// Number of first steps with early exaggeration and the lower momentum.
const EARLY_STEPS: usize = 250;
/// Factor of the affinities in the early steps.
const EXAGGERATION: f64 = 12.0;
/// Standard deviation of the initial points.
const INITIAL_STD: f64 = 1e-4;

/// An embedding in the plane.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// One point for each of the input, in its order; the axes have no unit.
    pub points: Vec<[f64; 2]>,
    /// The Kullback–Leibler divergence of the final points, in nats: what t-SNE minimises.
    pub divergence: f64,
}

/// Embeds `points` (all of one dimension, finite). Time and memory grow with the square of their number.
///
/// ```
/// use brain_adapter::metrics::tsne;
///
/// let points: Vec<Vec<f32>> = (0u8..8).map(|i| vec![f32::from(i / 4), f32::from(i % 4) * 0.01]).collect();
/// let layout = tsne(&points, 1);
/// assert_eq!(layout.points.len(), 8);
/// assert_eq!(layout, tsne(&points, 1));
/// ```
pub fn tsne(points: &[Vec<f32>], seed: u64) -> Layout {
    let n = points.len();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let y: Vec<[f64; 2]> = (0..n).map(|_| normals(&mut rng).map(|v| v * INITIAL_STD)).collect();
    if n < 3 {
        return Layout { points: y, divergence: 0.0 };
    }
    let p = affinities(&distances(points), PERPLEXITY.min((n - 1) as f64 / 3.0));
    let rate = (n as f64 / EXAGGERATION / 4.0).max(50.0);
    let mut state = Descent { velocity: vec![[0.0; 2]; n], gain: vec![[1.0; 2]; n], y };
    for step in 0..STEPS {
        let (exaggeration, momentum) = schedule(step);
        let slope = gradient(&p, &state.y, exaggeration);
        state.update(&slope, rate, momentum);
    }
    let mut y = state.y;
    let mean = [0, 1].map(|a| y.iter().map(|point| point[a]).sum::<f64>() / n as f64);
    y.iter_mut().for_each(|point| *point = [point[0] - mean[0], point[1] - mean[1]]);
    Layout { divergence: divergence(&p, &y), points: y }
}

/// Exaggeration and momentum of a step, from 0.
fn schedule(step: usize) -> (f64, f64) {
    if step < EARLY_STEPS { (EXAGGERATION, 0.5) } else { (1.0, 0.8) }
}

/// Gradient descent with momentum and a gain for each coordinate.
struct Descent {
    y: Vec<[f64; 2]>,
    velocity: Vec<[f64; 2]>,
    gain: Vec<[f64; 2]>,
}

impl Descent {
    fn update(&mut self, slope: &[[f64; 2]], rate: f64, momentum: f64) {
        let state = self.velocity.as_flattened_mut().iter_mut().zip(self.gain.as_flattened_mut());
        for ((y, (velocity, gain)), slope) in self.y.as_flattened_mut().iter_mut().zip(state).zip(slope.as_flattened())
        {
            // Jacobs 1988: longer steps while the direction stays.
            let same_direction = slope * *velocity < 0.0;
            *gain = if same_direction { *gain + 0.2 } else { (*gain * 0.8).max(0.01) };
            *velocity = momentum * *velocity - rate * *gain * slope;
            *y += *velocity;
        }
    }
}

/// Two standard normal numbers (Box and Muller 1958).
fn normals(rng: &mut ChaCha8Rng) -> [f64; 2] {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    let angle = std::f64::consts::TAU * rng.random::<f64>();
    [radius * angle.cos(), radius * angle.sin()]
}

/// Squared distances, row by row.
fn distances(points: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let between = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum();
    points.par_iter().map(|a| points.iter().map(|b| between(a, b)).collect()).collect()
}

/// Joint probabilities p_ij (the paper's section 2 and 3.1), row by row; the diagonal is 0, the sum 1.
fn affinities(distances: &[Vec<f64>], perplexity: f64) -> Vec<Vec<f64>> {
    let conditional: Vec<Vec<f64>> =
        distances.par_iter().enumerate().map(|(i, row)| neighbours(row, i, perplexity)).collect();
    let n = distances.len();
    let joint = |i: usize| (0..n).map(|j| (conditional[i][j] + conditional[j][i]) / (2 * n) as f64).collect();
    (0..n).into_par_iter().map(joint).collect()
}

/// p_j|i of the point `i`: a Gaussian whose width gives the perplexity, found by bisection.
fn neighbours(distances: &[f64], i: usize, perplexity: f64) -> Vec<f64> {
    let others = || distances.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, d)| *d);
    let nearest = others().fold(f64::INFINITY, f64::min);
    let weights = |beta: f64| -> Vec<f64> {
        let weight = |(j, d): (usize, &f64)| if j == i { 0.0 } else { (-beta * (d - nearest)).exp() };
        let all: Vec<f64> = distances.iter().enumerate().map(weight).collect();
        let sum: f64 = all.iter().sum();
        all.into_iter().map(|w| w / sum).collect()
    };
    // The precision 1/(2σ²) lies between bounds that are found by doubling, so that any scale works.
    let typical = others().map(|d| d - nearest).sum::<f64>() / (distances.len() - 1) as f64;
    if typical <= 0.0 {
        return weights(0.0);
    }
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let mut beta = 1.0 / typical;
    for _ in 0..100 {
        let entropy: f64 = weights(beta).into_iter().filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
        *(if entropy > perplexity.ln() { &mut low } else { &mut high }) = beta;
        beta = if high.is_finite() { low + (high - low) / 2.0 } else { 2.0 * beta };
    }
    weights(beta)
}

/// The sum of [`similarity`] over all pairs of different points.
fn normalizer(y: &[[f64; 2]]) -> f64 {
    let row = |a: &[f64; 2]| y.iter().map(|b| similarity(a, b)).sum::<f64>() - 1.0;
    y.par_iter().map(row).collect::<Vec<f64>>().iter().sum()
}

/// 1 / (1 + |a − b|²).
fn similarity(a: &[f64; 2], b: &[f64; 2]) -> f64 {
    1.0 / (1.0 + (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2))
}

/// Equation 5 of the paper: 4 Σ_j (p_ij − q_ij)(y_i − y_j) / (1 + |y_i − y_j|²), p exaggerated.
fn gradient(p: &[Vec<f64>], y: &[[f64; 2]], exaggeration: f64) -> Vec<[f64; 2]> {
    let total = normalizer(y);
    let row = |(p, a): (&Vec<f64>, &[f64; 2])| {
        p.iter().zip(y).fold([0.0; 2], |sum, (p, b)| {
            let q = similarity(a, b);
            let pull = 4.0 * (exaggeration * p - q / total) * q;
            [sum[0] + pull * (a[0] - b[0]), sum[1] + pull * (a[1] - b[1])]
        })
    };
    p.par_iter().zip(y).map(row).collect()
}

/// Σ p ln(p/q), in nats.
fn divergence(p: &[Vec<f64>], y: &[[f64; 2]]) -> f64 {
    let total = normalizer(y);
    let row = |(p, a): (&Vec<f64>, &[f64; 2])| -> f64 {
        p.iter().zip(y).filter(|(p, _)| **p > 0.0).map(|(p, b)| p * (p * total / similarity(a, b)).ln()).sum()
    };
    p.par_iter().zip(y).map(row).collect::<Vec<f64>>().iter().sum()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn rows(value: &Value) -> Vec<Vec<f64>> {
        serde_json::from_value(value.clone()).unwrap()
    }

    /// Made by scikit-learn: tests/data/metrics/make_metrics.py.
    #[test]
    fn affinities_gradient_and_divergence_are_scikit_learns() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/metrics/tsne.json");
        let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(cases.len() >= 3);
        for case in &cases {
            let points: Vec<Vec<f32>> = serde_json::from_value(case["points"].clone()).unwrap();
            let p = affinities(&distances(&points), case["perplexity"].as_f64().unwrap());
            let y: Vec<[f64; 2]> = serde_json::from_value(case["layout"].clone()).unwrap();
            // scikit-learn stops its search at an entropy within 1e-5, and holds distances in float32.
            let close = |a: f64, b: f64, scale: f64| assert!((a - b).abs() <= 1e-4 * scale, "{a} {b}");
            let expected = rows(&case["affinities"]);
            let largest = expected.iter().flatten().copied().fold(0.0, f64::max);
            p.iter().flatten().zip(expected.iter().flatten()).for_each(|(a, b)| close(*a, *b, largest));
            let slope = gradient(&p, &y, 1.0);
            let expected = rows(&case["gradient"]);
            let largest = expected.iter().flatten().fold(0f64, |m, v| m.max(v.abs()));
            slope.iter().flatten().zip(expected.iter().flatten()).for_each(|(a, b)| close(*a, *b, largest));
            close(divergence(&p, &y), case["divergence"].as_f64().unwrap(), 1.0);
            // Another start gives another minimum, which must not be much worse than scikit-learn's.
            let usual = case["usual_divergence"].as_f64().unwrap();
            let found = tsne(&points, 1).divergence;
            assert!(found <= usual * 1.05 + 0.02, "{found}, scikit-learn {usual}");
        }
    }

    /// 0.5 while affinities are exaggerated, 0.8 afterwards: the paper's section 3.4, with the phase of Belkina et al.
    /// 2019.
    #[test]
    fn momentum_and_exaggeration_follow_their_schedule() {
        let changes: Vec<usize> = (1..STEPS).filter(|&step| schedule(step) != schedule(step - 1)).collect();
        assert_eq!((schedule(0), changes.as_slice(), schedule(STEPS - 1)), ((12.0, 0.5), &[250][..], (1.0, 0.8)));
        // A step keeps its momentum's share of the velocity and moves the point by the rest against the gradient.
        let mut state = Descent { y: vec![[1.0, 0.0]], velocity: vec![[0.5, 0.0]], gain: vec![[1.0; 2]] };
        state.update(&[[-0.1, 0.0]], 10.0, schedule(STEPS - 1).1);
        assert!((state.velocity[0][0] - (0.8 * 0.5 + 10.0 * 1.2 * 0.1)).abs() < 1e-15);
        assert!((state.y[0][0] - (1.0 + state.velocity[0][0])).abs() < 1e-15);
    }

    #[test]
    fn a_seed_gives_one_layout_on_any_number_of_threads() {
        let points: Vec<Vec<f32>> = (0..40).map(|i| (0..5).map(|j| ((i * 7 + j * 3) % 11) as f32).collect()).collect();
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| tsne(&points, 3))
        };
        assert_eq!(on(1), on(3));
        assert_ne!(on(1), tsne(&points, 4));
    }

    #[test]
    fn few_and_equal_points_are_finite() {
        for n in [0, 1, 2, 3, 4, 9] {
            let layout = tsne(&vec![vec![1.0, 2.0]; n], 0);
            assert!(layout.points.len() == n && layout.points.iter().flatten().all(|v| v.is_finite()), "{layout:?}");
        }
        let huge = [vec![1e18f32], vec![-1e18], vec![0.0], vec![1.0]];
        assert!(tsne(&huge, 0).points.iter().flatten().all(|v| v.is_finite()));
    }
}
