//! The weights of the frozen vision transformer, in their mapped file.

use std::collections::BTreeMap;

use crate::checkpoint::{Checkpoint, SourceFile};
use crate::error::{Error, Result};
use crate::tensor::{LazyTensor, Tensor, TensorView};

/// The weights of the frozen vision transformer by initializer name, float32.
pub struct FrozenWeights {
    weights: BTreeMap<String, Weight>,
    /// The files that they are read from.
    files: Vec<SourceFile>,
}

enum Weight {
    /// Read from the mapped file, without a copy.
    Mapped(LazyTensor),
    /// Converted to float32, on the heap.
    Owned(Tensor),
}

impl FrozenWeights {
    /// Weights by initializer name. Float32 tensors of a mapped file stay there; others are converted.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn new(tensors: impl IntoIterator<Item = (String, LazyTensor)>) -> Result<Self> {
        let weight = |tensor: LazyTensor| {
            if tensor.as_f32().is_some() {
                return Ok(Weight::Mapped(tensor));
            }
            let owned = Tensor::f32(tensor.shape(), tensor.to_f32()?);
            owned.map(Weight::Owned).ok_or_else(|| Error::internal("frozen weights: a tensor does not fill its shape"))
        };
        let weights = tensors.into_iter().map(|(name, tensor)| Ok((name, weight(tensor)?))).collect::<Result<_>>()?;
        Ok(Self { weights, files: Vec::new() })
    }

    /// The weights that a checkpoint's file holds, which must not be written to while they are in use.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let weights = Self::new(checkpoint.iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())))?;
        Ok(Self { files: checkpoint.files().to_vec(), ..weights })
    }

    /// Makes sure that the file is what it was when it was opened: asked after each pass, before its result counts.
    ///
    /// # Errors
    /// `checkpoint.changed`.
    pub(super) fn unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(SourceFile::unchanged)
    }

    /// Releases the pages of a weight: they stay in the file, and in the system's cache where there is room.
    pub(super) fn release(&self, name: &str) {
        if let Some(Weight::Mapped(tensor)) = self.weights.get(name) {
            tensor.release();
        }
    }

    pub(super) fn view(&self, name: &str) -> Option<TensorView<'_>> {
        match self.weights.get(name)? {
            Weight::Mapped(tensor) => Some(TensorView::F32(tensor.shape(), tensor.as_f32()?)),
            Weight::Owned(tensor) => TensorView::of(tensor),
        }
    }
}
