//! Weights that are computed from other tensors when they are read: weight norm, spectral norm, masks.
//!
//! Flows in: float tensors of shapes that the caller compared. Flows out: float32 tensors of the weight's shape, which
//! stream: the weight is read twice (once for its norms, whose numbers are kept), and never held. Norms and sums are
//! taken in float64.

use std::sync::{Arc, OnceLock};

use super::DType;
use super::decode::{decode_f32, decode_f64};
use super::lazy::{LazyTensor, Sink, Source};
use super::number::to_f32;
use crate::error::{Code, Error, Result};

/// How the factors of a tensor come about.
enum Rule {
    /// `g / ‖v‖` for each place along the axis, or for the whole.
    WeightNorm(LazyTensor, Option<usize>),
    /// `1 / uᵀ W v`, with the rows of W along one of these axes.
    SpectralNorm { u: LazyTensor, v: LazyTensor, axes: Vec<usize>, name: String },
}

/// A float32 tensor times one factor for each place along an axis, or times one factor; they are computed once.
struct Folded {
    inner: LazyTensor,
    rule: Rule,
    factors: OnceLock<Vec<f64>>,
}

/// A float32 tensor times a mask of the same shape.
struct Masked {
    inner: LazyTensor,
    mask: LazyTensor,
}

impl LazyTensor {
    /// PyTorch's weight norm of the direction `self`: `self · g / ‖self‖`, the norm over all axes but `axis`, along
    /// which `g` has one number each; over all of them, and `g` a single number, without an axis. Float32.
    pub(crate) fn weight_normed(&self, g: &Self, axis: Option<usize>) -> Self {
        self.folded(Rule::WeightNorm(g.clone(), axis))
    }

    /// PyTorch's spectral norm in eval mode: `self / σ`, `σ = uᵀ W v`, where W is `self` with one of `axes` in front
    /// and the rest flattened, `u` as long as that axis and `v` as the rest. Float32. Reading it fails with
    /// `checkpoint.value`, and `name`, when no iteration made `u`.
    pub(crate) fn spectral_normed(&self, u: &Self, v: &Self, axes: &[usize], name: &str) -> Self {
        let (u, v, axes, name) = (u.clone(), v.clone(), axes.to_vec(), name.to_owned());
        self.folded(Rule::SpectralNorm { u, v, axes, name })
    }

    /// The tensor times a mask of its shape, of any type. Float32.
    pub(crate) fn masked(&self, mask: &Self) -> Self {
        let source = Masked { inner: self.cast(DType::F32), mask: mask.clone() };
        Self::new(DType::F32, self.shape().to_vec(), Arc::new(source))
    }

    fn folded(&self, rule: Rule) -> Self {
        let source = Folded { inner: self.clone(), rule, factors: OnceLock::new() };
        Self::new(DType::F32, self.shape().to_vec(), Arc::new(source))
    }

    /// Hands the values to `each` as float64, in order, with their numbers.
    fn for_each(&self, each: &mut dyn FnMut(usize, f64)) -> Result<()> {
        let (dtype, mut at) = (self.dtype(), 0);
        self.stream(&mut |chunk| {
            for element in chunk.chunks_exact(dtype.size()) {
                each(at, decode_f64(element, dtype));
                at += 1;
            }
            Ok(())
        })
    }

    fn to_f64(&self) -> Result<Vec<f64>> {
        let mut values = Vec::with_capacity(self.len());
        self.for_each(&mut |_, x| values.push(x))?;
        Ok(values)
    }
}

/// Number of places along an axis, and of elements between two of them.
fn places(shape: &[usize], axis: usize) -> (usize, usize) {
    (shape[axis].max(1), shape[axis + 1..].iter().product::<usize>().max(1))
}

impl Folded {
    fn factors(&self) -> Result<&[f64]> {
        if let Some(factors) = self.factors.get() {
            return Ok(factors);
        }
        let factors = match &self.rule {
            Rule::WeightNorm(g, axis) => weight_norm(&self.inner, g, *axis)?,
            Rule::SpectralNorm { u, v, axes, name } => vec![1.0 / sigma(&self.inner, u, v, axes, name)?],
        };
        Ok(self.factors.get_or_init(|| factors))
    }
}

fn weight_norm(v: &LazyTensor, g: &LazyTensor, axis: Option<usize>) -> Result<Vec<f64>> {
    let (count, step) = axis.map_or((1, 1), |axis| places(v.shape(), axis));
    let mut squares = vec![0.0; count];
    v.for_each(&mut |at, x| squares[at / step % count] += x * x)?;
    let g = g.to_f64()?;
    Ok(squares.iter().zip(&g).map(|(square, g)| g / square.sqrt()).collect())
}

/// `uᵀ W v`, with the rows of W along the first of `axes` along which a power iteration made one of `u` and `v` of the
/// other: the old form ends with the direction of `W v`, the new one with that of `Wᵀ u`. Each pass in training mode is
/// such an iteration, after which the weights change a little. Without one, `u` and `v` are random still, and so is
/// what PyTorch divides by: no model was trained with that.
fn sigma(weight: &LazyTensor, u: &LazyTensor, v: &LazyTensor, axes: &[usize], name: &str) -> Result<f64> {
    /// The cosine from which two vectors count as parallel: weights change by up to 6 % in the step after the
    /// iteration, and two random vectors of three numbers pass once in a thousand times.
    const PARALLEL: f64 = 0.998;
    let (u, v) = (u.to_f64()?, v.to_f64()?);
    let length = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    for &axis in axes {
        let (rows, step) = places(weight.shape(), axis);
        let (mut left, mut right) = (vec![0.0; rows], vec![0.0; v.len()]);
        weight.for_each(&mut |at, x| {
            let (outer, row, inner) = (at / step / rows, at / step % rows, at % step);
            left[row] += x * v[outer * step + inner];
            right[outer * step + inner] += x * u[row];
        })?;
        let sigma: f64 = left.iter().zip(&u).map(|(p, u)| p * u).sum();
        let least = f64::min(length(&left) * length(&u), length(&right) * length(&v));
        if sigma > 0.0 && sigma >= PARALLEL * least {
            return Ok(sigma);
        }
    }
    let message = format!(
        "the spectral norm of `{name}` has random vectors u and v: it was never run in training mode, and what it divides \
         by means nothing. Call torch.nn.utils.remove_spectral_norm (or parametrize.remove_parametrizations) before \
         saving"
    );
    Err(Error::new(Code::CHECKPOINT_VALUE, message))
}

impl Source for Folded {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let factors = self.factors()?;
        let (count, step) = match self.rule {
            Rule::WeightNorm(_, Some(axis)) => places(self.inner.shape(), axis),
            _ => (1, 1),
        };
        let (dtype, mut at, mut out) = (self.inner.dtype(), 0usize, Vec::new());
        self.inner.stream(&mut |chunk| {
            // float32 may be twice as wide.
            for piece in chunk.chunks((chunk.len() / 2).max(dtype.size()).next_multiple_of(dtype.size())) {
                out.clear();
                for element in piece.chunks_exact(dtype.size()) {
                    let value = decode_f64(element, dtype) * factors[at / step % count];
                    out.extend(to_f32(value).to_le_bytes());
                    at += 1;
                }
                sink(&out)?;
            }
            Ok(())
        })
    }

    fn release(&self) {
        self.inner.release();
    }
}

impl Source for Masked {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let (mask, dtype) = (self.mask.bytes()?, self.mask.dtype());
        let (mut at, mut factors, mut out) = (0, Vec::new(), Vec::new());
        self.inner.stream(&mut |chunk| {
            let values = chunk.as_chunks::<4>().0;
            decode_f32(&mask[at * dtype.size()..][..values.len() * dtype.size()], dtype, &mut factors);
            at += values.len();
            out.clear();
            out.extend(values.iter().zip(&factors).flat_map(|(v, m)| (f32::from_le_bytes(*v) * m).to_le_bytes()));
            sink(&out)
        })
    }

    fn release(&self) {
        self.inner.release();
        self.mask.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &LazyTensor, want: &[f32]) {
        let found = found.to_f32().unwrap();
        assert_eq!(found.len(), want.len());
        for (a, b) in found.iter().zip(want) {
            assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{found:?} {want:?}");
        }
    }

    #[test]
    fn norms_are_taken_over_all_axes_but_one() {
        let v = LazyTensor::from_f32(&[2, 2], &[3.0, 4.0, 6.0, 8.0]);
        close(&v.weight_normed(&LazyTensor::from_f32(&[2, 1], &[10.0, 5.0]), Some(0)), &[6.0, 8.0, 3.0, 4.0]);
        let by_column = [3.0 / 45f32.sqrt(), 8.0 / 80f32.sqrt(), 6.0 / 45f32.sqrt(), 16.0 / 80f32.sqrt()];
        close(&v.weight_normed(&LazyTensor::from_f32(&[1, 2], &[1.0, 2.0]), Some(1)), &by_column);
        let whole = 125f32.sqrt();
        close(&v.weight_normed(&LazyTensor::from_f32(&[], &[whole]), None), &[3.0, 4.0, 6.0, 8.0]);
        let halves = v.cast(DType::F16).weight_normed(&LazyTensor::from_f32(&[], &[whole * 2.0]), None);
        close(&halves, &[6.0, 8.0, 12.0, 16.0]);
    }

    #[test]
    fn the_spectral_norm_is_that_of_the_axis_that_u_was_made_for() {
        let w = LazyTensor::from_f32(&[2, 2], &[3.0, 1.0, 0.0, 2.0]);
        let normed = |u: [f32; 2], v: [f32; 2], axes: &[usize]| {
            let [u, v] = [u, v].map(|values| LazyTensor::from_f32(&[2], &values));
            w.spectral_normed(&u, &v, axes, "w")
        };
        // W v = (3, 0) and Wᵀ v = (3, 1) for v = e0.
        close(&normed([1.0, 0.0], [1.0, 0.0], &[0, 1]), &[1.0, 1.0 / 3.0, 0.0, 2.0 / 3.0]);
        let n = 10f32.sqrt();
        close(&normed([3.0 / n, 1.0 / n], [1.0, 0.0], &[0, 1]), &[3.0 / n, 1.0 / n, 0.0, 2.0 / n]);
        for u in [[0.8, 0.6], [-1.0, 0.0]] {
            let error = normed(u, [1.0, 0.0], &[0]).to_f32().unwrap_err();
            assert!(error.code() == Code::CHECKPOINT_VALUE && error.message().contains("`w`"), "{error}");
        }
    }

    #[test]
    fn masks_of_any_type_cover() {
        let w = LazyTensor::from_f32(&[3], &[1.0, 2.0, 3.0]);
        let mask = LazyTensor::new(DType::Bool, vec![3], Arc::new(vec![1u8, 0, 1]));
        close(&w.masked(&mask), &[1.0, 0.0, 3.0]);
    }
}
