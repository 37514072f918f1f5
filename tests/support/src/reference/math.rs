//! The elementary functions the towers share, on rows of `f64`.

use super::Array;

/// `y = x Wᵀ + b` on the last axis (`torch.nn.Linear`): x `[.., I]`, weight `[O, I]`, bias `[O]`, y `[.., O]`.
pub fn linear(x: &Array, weight: &Array, bias: Option<&Array>) -> Array {
    let (o, i) = (weight.shape[0], weight.shape[1]);
    assert_eq!(x.shape.last(), Some(&i), "linear {:?} by {:?}", x.shape, weight.shape);
    let rows = x.data.len() / i;
    let mut y = Vec::with_capacity(rows * o);
    for r in 0..rows {
        for k in 0..o {
            y.push(dot(x.row(r), weight.row(k)) + bias.map_or(0.0, |b| b.data[k]));
        }
    }
    let mut shape = x.shape.clone();
    *shape.last_mut().unwrap() = o;
    Array::new(&shape, y)
}

/// `Σ aᵢbᵢ`.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// `a + b`, one shape.
pub fn add(a: &Array, b: &Array) -> Array {
    assert_eq!(a.shape, b.shape);
    Array::new(&a.shape, a.data.iter().zip(&b.data).map(|(x, y)| x + y).collect())
}

/// `f` on every element.
pub fn map(x: &Array, f: impl Fn(f64) -> f64) -> Array {
    Array::new(&x.shape, x.data.iter().map(|&v| f(v)).collect())
}

/// Mean and biased variance.
pub fn mean_var(x: &[f64]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    (mean, x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n)
}

/// LayerNorm over the last axis, biased variance: x `[.., C]`, weight and bias `[C]`.
pub fn layer_norm(x: &Array, weight: &Array, bias: &Array, eps: f64) -> Array {
    let c = weight.data.len();
    let mut y = Vec::with_capacity(x.data.len());
    for r in 0..x.data.len() / c {
        let (mean, var) = mean_var(x.row(r));
        let s = 1.0 / (var + eps).sqrt();
        y.extend((0..c).map(|k| (x.row(r)[k] - mean) * s * weight.data[k] + bias.data[k]));
    }
    Array::new(&x.shape, y)
}

/// RMSNorm over the last axis (HF `LlamaRMSNorm`): `w · x / √(mean(x²) + eps)`; x `[.., C]`, weight `[C]`.
pub fn rms_norm(x: &Array, weight: &Array, eps: f64) -> Array {
    let c = weight.data.len();
    let mut y = Vec::with_capacity(x.data.len());
    for r in 0..x.data.len() / c {
        let s = 1.0 / (dot(x.row(r), x.row(r)) / c as f64 + eps).sqrt();
        y.extend((0..c).map(|k| weight.data[k] * (x.row(r)[k] * s)));
    }
    Array::new(&x.shape, y)
}

/// In-place softmax; an entry of −∞ becomes 0. At least one entry must be finite.
pub fn softmax(x: &mut [f64]) {
    let m = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    x.iter_mut().for_each(|v| *v = (*v - m).exp());
    let s: f64 = x.iter().sum();
    x.iter_mut().for_each(|v| *v /= s);
}

/// max(x, 0).
pub fn relu(x: f64) -> f64 {
    x.max(0.0)
}

/// x · sigmoid(x).
pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// GELU in its exact form, `x Φ(x)` (`torch.nn.GELU()`); the lower tail keeps its relative precision.
pub fn gelu(x: f64) -> f64 {
    0.5 * x * erfc(-x / std::f64::consts::SQRT_2)
}

/// The error function, to about 1e-15.
pub fn erf(x: f64) -> f64 {
    if x.abs() < SPLIT { erf_series(x) } else { x.signum() * (1.0 - erfc_fraction(x.abs())) }
}

/// `1 − erf(x)`; for large x relatively precise too.
pub fn erfc(x: f64) -> f64 {
    if x >= SPLIT { erfc_fraction(x) } else { 1.0 - erf(x) }
}

/// Below it the series, above it the continued fraction.
const SPLIT: f64 = 2.0;

/// `erf x = 2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (1·3·…·(2n+1))` (DLMF 7.6.2): all terms have one sign, nothing cancels.
fn erf_series(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// `√π e^(x²) erfc x = 1/(x + (1/2)/(x + 1/(x + (3/2)/(x + …))))` (DLMF 7.9.1), from the inside out; x ≥ 2.
fn erfc_fraction(x: f64) -> f64 {
    let mut f = x;
    for k in (1..=100).rev() {
        f = x + 0.5 * f64::from(k) / f;
    }
    0.5 * std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() / f
}
