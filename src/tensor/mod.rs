//! Numbers with a shape: element types, weights as references to bytes, and dense arrays.
//!
//! Layer 1. [`LazyTensor`] is how weights travel from a checkpoint to an ONNX file: a dtype, a shape and a
//! source that yields little-endian, row-major bytes in chunks, so that a 13 GB model never sits in memory.
//! [`Tensor`] is a dense owned array: what goes into and comes out of a session.
//!
//! ```
//! use brain_adapter::tensor::{DType, LazyTensor};
//!
//! let weight = LazyTensor::from_f32(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
//! let fp16 = weight.transposed().cast(DType::F16); // nothing is computed before the bytes are read
//! assert_eq!((fp16.byte_len(), fp16.to_f32()?), (8, vec![1.0, 3.0, 2.0, 4.0]));
//! # Ok::<(), brain_adapter::Error>(())
//! ```

mod computed;
mod decode;
mod dense;
mod dtype;
mod folded;
mod lazy;
mod low_rank;
pub(crate) mod number;
mod views;

pub(crate) use computed::{Fill, Formula, computed};
pub use decode::Band;
pub(crate) use decode::float8;
pub use dense::{Comparison, Tensor, TensorView, cosine, least};
pub use dtype::DType;
pub use lazy::{CHUNK_BYTES, LazyTensor, Sink, Source};

/// Number of elements of a shape, or `None` when it does not fit `usize`.
pub fn numel(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// A shape as people write it: `[2, 3]`, and `[]` for a scalar.
pub fn show(shape: &[usize]) -> String {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    format!("[{}]", dims.join(", "))
}

/// Bytes in lower-case hexadecimal: how hashes are written everywhere.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
