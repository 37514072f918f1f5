//! Dtypes and shapes of values; broadcasting.

use std::fmt;

use crate::tensor::DType;

/// One dimension of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A size that every run has.
    Known(usize),
    /// A name that stands for one number a run, such as `batch`.
    Symbol(&'static str),
    /// Not known: a rule's result, which a declared type makes precise, or a name in a file that is not ours.
    Any,
}

impl Dim {
    /// How many samples are computed together.
    pub const BATCH: Self = Self::Symbol("batch");

    /// How many tokens a report has.
    pub const TOKENS: Self = Self::Symbol("tokens");

    /// The names of dimensions in files that this crate writes.
    pub const SYMBOLS: [&'static str; 2] = ["batch", "tokens"];

    /// The dimension of that name, which a file declares; none when it is not one of [`Self::SYMBOLS`].
    pub fn symbol(name: &str) -> Option<Self> {
        Self::SYMBOLS.into_iter().find(|symbol| *symbol == name).map(Self::Symbol)
    }

    /// The number, if there is one.
    pub fn known(self) -> Option<usize> {
        match self {
            Self::Known(n) => Some(n),
            Self::Symbol(_) | Self::Any => None,
        }
    }

    /// The dimension both can be, or `None` when they contradict each other.
    pub fn unify(self, other: Self) -> Option<Self> {
        match (self, other) {
            (a, b) if a == b => Some(a),
            (Self::Any, d) | (d, Self::Any) => Some(d),
            _ => None,
        }
    }

    /// The size of two broadcast dimensions, or `None` when they cannot be broadcast for sure.
    pub fn broadcast(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Known(1), d) | (d, Self::Known(1)) => Some(d),
            (a, b) => a.unify(b),
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(n) => write!(f, "{n}"),
            Self::Symbol(name) => f.write_str(name),
            Self::Any => f.write_str("?"),
        }
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Self {
        Self::Known(n)
    }
}

impl From<&'static str> for Dim {
    fn from(name: &'static str) -> Self {
        Self::Symbol(name)
    }
}

/// Element type and shape of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueType {
    /// Type of each element.
    pub dtype: DType,
    /// Size of each axis; empty for a scalar.
    pub shape: Vec<Dim>,
}

impl ValueType {
    /// A type of `dtype` and `shape`.
    pub fn new(dtype: DType, shape: impl Into<Vec<Dim>>) -> Self {
        Self { dtype, shape: shape.into() }
    }

    /// A type whose dimensions are all numbers.
    pub fn known(dtype: DType, shape: &[usize]) -> Self {
        Self { dtype, shape: shape.iter().map(|&n| Dim::Known(n)).collect() }
    }

    /// The type both can be, or `None` when they contradict each other.
    pub fn unify(&self, other: &Self) -> Option<Self> {
        if self.dtype != other.dtype || self.shape.len() != other.shape.len() {
            return None;
        }
        let shape = self.shape.iter().zip(&other.shape).map(|(a, b)| a.unify(*b)).collect::<Option<Vec<_>>>()?;
        Some(Self { dtype: self.dtype, shape })
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, show_dims(&self.shape))
    }
}

/// A shape as people write it: `[batch, 64, 256]`.
pub(super) fn show_dims(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
    format!("[{}]", dims.join(", "))
}

/// NumPy's broadcasting of two shapes, aligned at the last axis.
pub(super) fn broadcast(a: &[Dim], b: &[Dim]) -> Option<Vec<Dim>> {
    let rank = a.len().max(b.len());
    let at = |s: &[Dim], i: usize| (i + s.len()).checked_sub(rank).map_or(Dim::Known(1), |j| s[j]);
    (0..rank).map(|i| at(a, i).broadcast(at(b, i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_numpy() {
        let (b, t) = (Dim::Symbol("batch"), Dim::Symbol("tokens"));
        let k = Dim::Known;
        type Row<'a> = (&'a [Dim], &'a [Dim], Option<Vec<Dim>>);
        let rows: [Row<'_>; 6] = [
            (&[b, k(4)], &[k(4)], Some(vec![b, k(4)])),
            (&[b, k(1)], &[k(1), k(4)], Some(vec![b, k(4)])),
            (&[], &[b], Some(vec![b])),
            (&[b], &[t], None),
            (&[k(2)], &[k(3)], None),
            (&[b], &[Dim::Any], Some(vec![b])),
        ];
        for (x, y, expected) in rows {
            assert_eq!(broadcast(x, y), expected, "{x:?} with {y:?}");
            assert_eq!(broadcast(y, x), expected, "{y:?} with {x:?}");
        }
    }
}
