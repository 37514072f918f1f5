//! Dense arrays at the borders of a session, and how they are compared.

use ndarray::ArrayD;

use super::{DType, show};

/// A dense, row-major array: a session's input or output.
#[derive(Clone, Debug, PartialEq)]
pub enum Tensor {
    /// float32 values.
    F32(ArrayD<f32>),
    /// int64 values (token ids, masks, labels).
    I64(ArrayD<i64>),
}

impl Tensor {
    /// A float32 array from row-major values, or `None` when they do not fill `shape`.
    pub fn f32(shape: &[usize], values: Vec<f32>) -> Option<Self> {
        ArrayD::from_shape_vec(shape.to_vec(), values).ok().map(Self::F32)
    }

    /// An int64 array from row-major values, or `None` when they do not fill `shape`.
    pub fn i64(shape: &[usize], values: Vec<i64>) -> Option<Self> {
        ArrayD::from_shape_vec(shape.to_vec(), values).ok().map(Self::I64)
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::I64(_) => DType::I64,
        }
    }

    /// Extent of each axis.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F32(a) => a.shape(),
            Self::I64(a) => a.shape(),
        }
    }

    /// The values in row-major order when they are float32.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match self {
            Self::F32(a) => a.as_slice(),
            Self::I64(_) => None,
        }
    }

    /// The values in row-major order when they are int64.
    pub fn as_i64(&self) -> Option<&[i64]> {
        match self {
            Self::I64(a) => a.as_slice(),
            Self::F32(_) => None,
        }
    }
}

/// A dense, row-major array that lies elsewhere: in a [`Tensor`], or in a mapped file.
#[derive(Clone, Copy, Debug)]
pub enum TensorView<'a> {
    /// Shape and float32 values.
    F32(&'a [usize], &'a [f32]),
    /// Shape and int64 values.
    I64(&'a [usize], &'a [i64]),
}

impl<'a> TensorView<'a> {
    /// A view of a tensor; nothing where that is not in row-major order.
    pub fn of(tensor: &'a Tensor) -> Option<Self> {
        Some(match tensor {
            Tensor::F32(a) => Self::F32(a.shape(), a.as_slice()?),
            Tensor::I64(a) => Self::I64(a.shape(), a.as_slice()?),
        })
    }

    /// Extent of each axis.
    pub fn shape(&self) -> &'a [usize] {
        match self {
            Self::F32(shape, _) | Self::I64(shape, _) => shape,
        }
    }
}

/// How far `found` lies from `expected`.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Comparison {
    /// Largest |found − expected|; infinite when a value on either side is NaN or infinite.
    pub max_abs: f64,
    /// `max_abs` over the largest |expected|; infinite when that is.
    pub max_rel: f64,
    /// Cosine of the angle between the two, flattened.
    pub cosine: f64,
}

impl Comparison {
    /// Compares two float32 arrays.
    ///
    /// # Errors
    /// One line when their shapes differ.
    pub fn of(found: &ArrayD<f32>, expected: &ArrayD<f32>) -> Result<Self, String> {
        if found.shape() != expected.shape() {
            return Err(format!("found shape {}, expected {}", show(found.shape()), show(expected.shape())));
        }
        let (mut max_abs, mut scale) = (0f64, 0f64);
        for (&f, &e) in found.iter().zip(expected) {
            let difference = (f64::from(f) - f64::from(e)).abs();
            // `max` would drop a NaN: the very thing to be found.
            max_abs = if difference.is_nan() { f64::INFINITY } else { max_abs.max(difference) };
            scale = scale.max(f64::from(e).abs());
        }
        // Infinity over infinity is no number, and would pass every limit.
        let max_rel = match max_abs {
            0.0 => 0.0,
            f64::INFINITY => f64::INFINITY,
            _ => max_abs / scale.max(f64::MIN_POSITIVE),
        };
        let cosine = cosine(found.iter().copied(), expected.iter().copied());
        Ok(Self { max_abs, max_rel, cosine })
    }

    /// The worse value of each metric.
    #[must_use]
    pub fn worst(&self, other: &Self) -> Self {
        Self {
            max_abs: self.max_abs.max(other.max_abs),
            max_rel: self.max_rel.max(other.max_rel),
            cosine: least(self.cosine, other.cosine),
        }
    }
}

/// The smaller of two values; NaN when either is, which `min` would drop.
pub fn least(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }
}

/// Cosine of the angle between two vectors, summed in `f64`; 1 when both are zero, 0 when one is.
pub fn cosine(a: impl Iterator<Item = f32>, b: impl Iterator<Item = f32>) -> f64 {
    let (mut dot, mut aa, mut bb) = (0f64, 0f64, 0f64);
    for (x, y) in a.zip(b) {
        let (x, y) = (f64::from(x), f64::from(y));
        dot += x * y;
        aa += x * x;
        bb += y * y;
    }
    match (aa == 0.0, bb == 0.0) {
        (true, true) => 1.0,
        (true, false) | (false, true) => 0.0,
        // Two roots: the product of two huge squares would overflow.
        (false, false) => dot / (aa.sqrt() * bb.sqrt()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(values: &[f32]) -> ArrayD<f32> {
        ArrayD::from_shape_vec(vec![values.len()], values.to_vec()).unwrap()
    }

    #[test]
    fn no_infinite_or_undefined_value_passes_any_limit() {
        let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        for (found, expected) in bad.iter().flat_map(|f| bad.iter().chain(&[1.0]).map(move |e| (*f, *e))) {
            for (found, expected) in [(found, expected), (expected, found)] {
                let c = Comparison::of(&array(&[1.0, found, 3.0]), &array(&[1.0, expected, 3.0])).unwrap();
                assert_eq!((c.max_abs, c.max_rel), (f64::INFINITY, f64::INFINITY), "{found} {expected}");
                let none = Comparison { max_abs: 0.0, max_rel: 0.0, cosine: 1.0 };
                assert_eq!(none.worst(&c).max_rel, f64::INFINITY);
            }
        }
        let same = Comparison::of(&array(&[0.0, 0.0]), &array(&[0.0, -0.0])).unwrap();
        assert_eq!((same.max_abs, same.max_rel, same.cosine), (0.0, 0.0, 1.0));
        assert_eq!(Comparison::of(&array(&[2.0, 1.0]), &array(&[2.0, 2.0])).unwrap().max_rel, 0.5);
        assert!(Comparison::of(&array(&[1.0]), &array(&[1.0, 2.0])).is_err());
        // A result that vanished, among results that did not.
        let vanished = Comparison::of(&array(&[0.0, 0.0]), &array(&[2.0, 2.0])).unwrap();
        assert_eq!((vanished.cosine, vanished.worst(&same).cosine, same.worst(&vanished).cosine), (0.0, 0.0, 0.0));
        let undefined = Comparison { cosine: f64::NAN, ..same };
        assert!(undefined.worst(&same).cosine.is_nan() && same.worst(&undefined).cosine.is_nan());
    }
}
