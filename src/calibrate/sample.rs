//! Some tokens of a linear layer's activation and of its results, and how close other results are to these.

use ndarray::{Array2, ArrayD, ArrayView2};
use serde::{Deserialize, Serialize};

use crate::passes::Linear;
use crate::tensor::{cosine, least};

/// Tokens that are kept of all inputs of a role together: at 7B one token of a block's layers takes 260 kB.
const ROWS: usize = 256;
/// Minimum and maximum of one input.
const ROWS_OF_AN_INPUT: std::ops::RangeInclusive<usize> = 8..=128;

/// Rows of float32 values, `[rows, width]`.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    width: usize,
    values: Vec<f32>,
}

impl Rows {
    /// No rows of that width.
    pub fn new(width: usize) -> Self {
        Self { width, values: Vec::new() }
    }

    /// The rows as a matrix.
    pub fn view(&self) -> ArrayView2<'_, f32> {
        let rows = self.values.len() / self.width.max(1);
        ArrayView2::from_shape((rows, self.width), &self.values).expect("whole rows were added")
    }

    /// Adds rows of `[.., width]`, evenly spread and the first one always: a CLS or BOS token is unlike the others.
    fn add(&mut self, tensor: &ArrayD<f32>, inputs: usize) {
        let rows = tensor.len() / self.width.max(1);
        let values = tensor.as_standard_layout();
        let Some(values) = values.as_slice() else { return };
        let share = (ROWS / inputs.max(1)).clamp(*ROWS_OF_AN_INPUT.start(), *ROWS_OF_AN_INPUT.end());
        let kept = rows.min(share);
        for i in 0..kept {
            let row = i * rows / kept;
            self.values.extend_from_slice(&values[row * self.width..][..self.width]);
        }
    }
}

/// The same tokens of an activation and of the layers that read it.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The activation, `[rows, k]`.
    pub x: Rows,
    /// The layers' results in float32, `[rows, n]` each.
    pub y: Vec<Rows>,
}

impl Sample {
    pub(super) fn new(k: usize, linears: &[Linear]) -> Self {
        Self { x: Rows::new(k), y: linears.iter().map(|l| Rows::new(l.n)).collect() }
    }

    /// Adds tokens of one of `inputs` inputs: the activation, then the result of each layer.
    pub(super) fn add(&mut self, tensors: &[&ArrayD<f32>], inputs: usize) {
        for (rows, tensor) in std::iter::once(&mut self.x).chain(&mut self.y).zip(tensors) {
            rows.add(tensor, inputs);
        }
    }
}

/// How close results come to those of float32, over tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fidelity {
    /// Relative error: the root mean square, over tokens, of `‖found - expected‖ / ‖expected‖`.
    pub error: f64,
    /// The least cosine of a token.
    pub cosine: f64,
}

impl Fidelity {
    /// No difference at all.
    pub const EXACT: Self = Self { error: 0.0, cosine: 1.0 };

    /// The worse of the two in each metric.
    #[must_use]
    pub fn worst(&self, other: &Self) -> Self {
        Self { error: self.error.max(other.error), cosine: least(self.cosine, other.cosine) }
    }
}

/// A token whose result is smaller than this part of the typical one is measured against that part: what matters of it
/// is its absolute error.
const LEAST_NORM: f64 = 0.1;

/// Compares `found` with `expected`, `[rows, width]` both, row by row. An infinite or undefined value makes the error
/// infinite.
pub fn fidelity(found: &ArrayView2<'_, f32>, expected: &ArrayView2<'_, f32>) -> Fidelity {
    let norm = |row: ndarray::ArrayView1<'_, f32>| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let norms: Vec<f64> = expected.rows().into_iter().map(norm).collect();
    let mut sorted = norms.clone();
    sorted.sort_by(f64::total_cmp);
    let floor = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0) * LEAST_NORM;
    let (mut squares, mut least_cosine) = (0f64, 1f64);
    for ((found, expected), norm) in found.rows().into_iter().zip(expected.rows()).zip(&norms) {
        let far: f64 =
            found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - f64::from(*e)).powi(2)).sum::<f64>().sqrt();
        squares += if far == 0.0 { 0.0 } else { (far / norm.max(floor).max(f64::MIN_POSITIVE)).powi(2) };
        least_cosine = least(least_cosine, cosine(found.iter().copied(), expected.iter().copied()));
    }
    let error = (squares / norms.len().max(1) as f64).sqrt();
    Fidelity { error: if error.is_finite() { error } else { f64::INFINITY }, cosine: least_cosine }
}

/// As [`fidelity`], of arrays whose last axis is the width.
///
/// # Errors
/// One line when their shapes differ.
pub fn fidelity_of(found: &ArrayD<f32>, expected: &ArrayD<f32>) -> Result<Fidelity, String> {
    if found.shape() != expected.shape() {
        return Err(format!("found shape {:?}, expected {:?}", found.shape(), expected.shape()));
    }
    let width = found.shape().last().copied().unwrap_or(1).max(1);
    let matrix = |a: &ArrayD<f32>| {
        Array2::from_shape_vec((a.len() / width, width), a.iter().copied().collect()).expect("as many values")
    };
    Ok(fidelity(&matrix(found).view(), &matrix(expected).view()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_counts_alike_and_no_nan_passes() {
        let expected = Array2::from_shape_vec((2, 2), vec![100.0, 0.0, 0.0, 1.0]).unwrap();
        let found = Array2::from_shape_vec((2, 2), vec![101.0, 0.0, 0.0, 1.1]).unwrap();
        let f = fidelity(&found.view(), &expected.view());
        // The second row is small compared with the median of 100: its error counts against a tenth of that.
        assert!((f.error - (0.5f64 * (0.01f64.powi(2) + 0.01f64.powi(2))).sqrt()).abs() < 1e-6, "{f:?}");
        for bad in [f32::NAN, f32::INFINITY] {
            let found = Array2::from_shape_vec((2, 2), vec![100.0, 0.0, bad, 1.0]).unwrap();
            assert_eq!(fidelity(&found.view(), &expected.view()).error, f64::INFINITY);
        }
        assert_eq!(fidelity(&expected.view(), &expected.view()).error, 0.0);
    }
}
