//! Tensors that the forward pass saves for the backward pass, kept off the heap.
//!
//! A training step keeps a few large arrays for long while it allocates and frees hundreds. On the heap the long-lived
//! ones would leave holes: measured at full size, 130 MB. So each large one gets an anonymous mapping of its own, which
//! goes back to the system when it is dropped.

use memmap2::MmapMut;

use crate::error::{Code, Error, Result};
use crate::tensor::{Tensor, TensorView};

/// Smaller arrays stay on the heap.
const MAPPED_BYTES: usize = 1 << 20;

/// A tensor saved for the backward pass.
pub(super) enum SavedTensor {
    /// On the heap, as it was computed.
    Heap(Tensor),
    /// A float32 tensor in a mapping of its own: shape and values.
    Mapped(Vec<usize>, MmapMut),
}

impl SavedTensor {
    /// Saves a tensor; a large one is copied into a mapping.
    ///
    /// # Errors
    /// `memory.limit` when the system gives no memory.
    pub fn new(tensor: Tensor) -> Result<Self> {
        let Some(values) = tensor.as_f32().filter(|v| size_of_val(*v) >= MAPPED_BYTES) else {
            return Ok(Self::Heap(tensor));
        };
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let mut map = MmapMut::map_anon(bytes.len()).map_err(|e| {
            let message = format!("cannot allocate {} bytes for activations: {e}", bytes.len());
            Error::new(Code::MEMORY_LIMIT, message).caused_by(e)
        })?;
        map.copy_from_slice(bytes);
        Ok(Self::Mapped(tensor.shape().to_vec(), map))
    }

    /// A view of the tensor.
    pub fn view(&self) -> Option<TensorView<'_>> {
        match self {
            Self::Heap(tensor) => TensorView::of(tensor),
            Self::Mapped(shape, map) => Some(TensorView::F32(shape, bytemuck::try_cast_slice(map).ok()?)),
        }
    }
}

/// What a stage's forward pass saves for its backward pass, by value name.
#[derive(Default)]
pub(super) struct SavedTensors(Vec<(String, SavedTensor)>);

impl SavedTensors {
    /// Saves `tensor` under `name`.
    ///
    /// # Errors
    /// `memory.limit` when the system gives no memory.
    pub fn save(&mut self, name: String, tensor: Tensor) -> Result<()> {
        self.0.push((name, SavedTensor::new(tensor)?));
        Ok(())
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&SavedTensor> {
        self.0.iter().find(|(saved, _)| saved == name).map(|(_, tensor)| tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_they_were() {
        for n in [3, MAPPED_BYTES / 4 - 1, MAPPED_BYTES / 4, 300_001] {
            let values: Vec<f32> = (0..n).map(|i| i as f32 * 0.5 - 7.0).collect();
            let saved = SavedTensor::new(Tensor::f32(&[1, n], values.clone()).unwrap()).unwrap();
            assert_eq!(matches!(saved, SavedTensor::Mapped(..)), n * 4 >= MAPPED_BYTES);
            match saved.view() {
                Some(TensorView::F32(shape, found)) => assert_eq!((shape, found), (&[1, n][..], &values[..])),
                other => panic!("{other:?}"),
            }
        }
    }
}
