//! What is kept until the way back, apart from the heap.
//!
//! A training step keeps a few large arrays for long while it makes and drops hundreds. Among those on the heap they would leave
//! holes: measured at full size, 130 MB. So each lies in a mapping of its own, which goes
//! back to the system when it is dropped.

use memmap2::MmapMut;

use crate::error::{Code, Error, Result};
use crate::tensor::{Tensor, TensorView};

/// Smaller arrays stay on the heap.
const MAPPED_BYTES: usize = 1 << 20;

/// A float32 tensor that is kept.
pub(super) enum Stash {
    /// Where it was made.
    Held(Tensor),
    /// In a mapping of its own: its shape and values.
    Mapped(Vec<usize>, MmapMut),
}

impl Stash {
    /// Keeps a tensor.
    ///
    /// # Errors
    /// `memory.limit` when the system gives no memory.
    pub fn new(tensor: Tensor) -> Result<Self> {
        let Some(values) = tensor.as_f32().filter(|v| size_of_val(*v) >= MAPPED_BYTES) else {
            return Ok(Self::Held(tensor));
        };
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let mut map = MmapMut::map_anon(bytes.len()).map_err(|e| {
            let message = format!("there is no memory for {} bytes of activations: {e}", bytes.len());
            Error::new(Code::MEMORY_LIMIT, message).caused_by(e)
        })?;
        map.copy_from_slice(bytes);
        Ok(Self::Mapped(tensor.shape().to_vec(), map))
    }

    /// The tensor, to be read.
    pub fn view(&self) -> Option<TensorView<'_>> {
        match self {
            Self::Held(tensor) => TensorView::of(tensor),
            Self::Mapped(shape, map) => Some(TensorView::F32(shape, bytemuck::try_cast_slice(map).ok()?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_they_were() {
        for n in [3, MAPPED_BYTES / 4 - 1, MAPPED_BYTES / 4, 300_001] {
            let values: Vec<f32> = (0..n).map(|i| i as f32 * 0.5 - 7.0).collect();
            let stash = Stash::new(Tensor::f32(&[1, n], values.clone()).unwrap()).unwrap();
            assert_eq!(matches!(stash, Stash::Mapped(..)), n * 4 >= MAPPED_BYTES);
            match stash.view() {
                Some(TensorView::F32(shape, found)) => assert_eq!((shape, found), (&[1, n][..], &values[..])),
                other => panic!("{other:?}"),
            }
        }
    }
}
